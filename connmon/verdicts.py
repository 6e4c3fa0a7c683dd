"""What is wrong with a pool, and with whatever pools add up to, in one word and its reason. Pure.

A verdict is read from one row of the JSON contract, so that the console, a snapshot and a script that
has the JSON all come to the same one. What is not known (None, or a key that is missing) never
makes a verdict. The words, the gravest first:

LEAK
    A connection does not come back: it has been held for `HELD_LONG` at least, and that is no habit of
    the pool. Either the pool is quiet (fewer than `QUIET` checkouts a second, for each connection
    that is out), or holds mostly take less than a tenth of that: by the hold p95, or where that is not
    known by the mean hold, which is connections out / checkouts a second (Little's law). Where the hold
    p95 is above a third of it, long holds are what the program does, and no leak.
SATURATED
    Somebody waits: the pool is at its capacity, and connections come back but too few of them.
    Of a pool whose capacity is known, all of it must be checked out; of what sums several pools (a program
    may have one that is full and one that is empty) the waiting alone tells it.
TIMEOUTS
    Somebody waited in vain: a checkout gave up within the minutes that the node remembers
    (`recent_timeouts`, which the reader adds to the row); where these are not known, ever.
LOST
    Silent for longer than the lease: what it has now is not known.
SLOW CONNECT
    The database takes `SLOW` seconds or more to let a connection in (connect p95): every new connection
    makes somebody wait.
OVERCOMMIT
    Of a database server: its pools together may open more connections than it takes (`server_max`,
    which the reader adds to the row from the configuration). Nothing has failed yet, but it will
    under load. It is judged from the sum over all databases of that server.

A row can have several; the gravest is shown, and the others follow in its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from connmon.dbaddress import DatabaseServer, plain, servers_of
from connmon.formats import short_age as age
from connmon.formats import short_duration as duration

Word: TypeAlias = Literal["LEAK", "SATURATED", "TIMEOUTS", "LOST", "SLOW CONNECT", "OVERCOMMIT"]

#: The gravest first.
WORDS: Final[tuple[Word, ...]] = ("LEAK", "SATURATED", "TIMEOUTS", "LOST", "SLOW CONNECT", "OVERCOMMIT")

#: Seconds after which a connection has been held long (the default of connmon_held).
HELD_LONG: Final = 30.0
#: A pool with fewer checkouts a second, for each connection that is out, is quiet.
QUIET: Final = 0.1
#: A hold of so many times the hold p95 is none of the usual ones; one below so many times is.
UNUSUAL: Final = 10.0
USUAL: Final = 3.0
#: Seconds for making a connection (p95) from which on that is slow.
SLOW: Final = 1.0


class Verdict(NamedTuple):
    """One thing that is wrong."""

    word: Word
    reason: str
    """One line without the word: what was seen, in figures, and what to do."""


def of_row(row: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Return what is wrong with a row of any grouping but connection, the gravest first."""
    if row.get("state") == "lost":
        return (Verdict("LOST", _lost(row)), *_overcommitted(row))
    if row.get("state") == "gone":
        return tuple(_overcommitted(row))
    found: list[Verdict] = []
    leak = _leaks(row)
    if leak:
        found.append(Verdict("LEAK", _leak(row)))
    if _saturated(row):
        found.append(Verdict("SATURATED", _saturation(row, leak)))
    timeouts = row.get("recent_timeouts")
    if timeouts is None:
        timeouts = row.get("timeouts_total")
        since = "since first seen"
    else:
        since = "in the last minutes"
    if timeouts:
        found.append(
            Verdict(
                "TIMEOUTS",
                f"{timeouts} checkout{'s' * (timeouts != 1)} gave up waiting {since}: the application got an "
                "error; see who waits and who holds",
            )
        )
    slow = row.get("connect_p95_seconds")
    if slow is not None and slow >= SLOW:
        found.append(
            Verdict(
                "SLOW CONNECT",
                f"making a connection takes {age(slow)} (p95): look at the database server, its name "
                "lookups and the network; a larger pool_size makes fewer of them",
            )
        )
    return (*found, *_overcommitted(row))


def gravest(verdicts: Iterable[Verdict]) -> Word | None:
    return next((verdict.word for verdict in verdicts), None)


def rank(word: str | None) -> int:
    """Return how grave a word is: 0 for none, larger is graver."""
    return 0 if word is None else len(WORDS) - WORDS.index(word)


def explained(verdicts: Iterable[Verdict]) -> str:
    """Return all of them in one line; "" where nothing is wrong."""
    return "; ".join(f"{verdict.word}: {verdict.reason}" for verdict in verdicts)


def with_server_maxima(
    rows: Iterable[Mapping[str, Any]], maxima: Mapping[tuple[str, int | None], int]
) -> list[dict[str, Any]]:
    """Return database rows with `server_max` and `server_capacity`, where the maximum is known.

    `maxima`: connections that a server takes, by host and port; port None: that host, any port.
    A capacity that is not known (a pool without a limit) makes the server's unknown; that of databases
    whose processes are all lost is left out.
    """
    found = [dict(row) for row in rows]
    takes = {(plain(host), port): most for (host, port), most in maxima.items()}
    sums: dict[DatabaseServer, int | None] = {}
    for row in found:
        if row.get("state") == "lost":  # not known: what is known may be too much already
            continue
        for server in _servers(row):
            before, more = sums.get(server, 0), row.get("capacity")
            sums[server] = None if before is None or more is None else before + more
    for row in found:
        # Of several servers, each of which may get all of the pools' connections, the one that takes fewest.
        judged: list[tuple[int, int | None, DatabaseServer]] = []
        for server in _servers(row):
            host = str(server.host)
            most = takes.get((host, server.port), takes.get((host, None)))
            if most is not None:
                judged.append((most, sums.get(server), server))
        if judged:
            row["server_max"], row["server_capacity"], server = min(judged, key=itemgetter(0))
            row["server"] = str(server)
    return found


def _servers(row: Mapping[str, Any]) -> tuple[DatabaseServer, ...]:
    """Return the servers of a database row."""
    host, port = row.get("database_host"), row.get("database_port")
    return servers_of({"dialect": row.get("dialect"), "database_host": host, "database_port": port})


# --- The rules ----------------------------------------------------------------------------------


def _leaks(row: Mapping[str, Any]) -> bool:
    held = row.get("longest_held_seconds")
    if held is None or held < HELD_LONG:
        return False
    usual = row.get("held_p95_seconds")
    if usual is not None and held < USUAL * usual:
        return False
    if usual is not None and held >= UNUSUAL * usual:
        return True
    rate, out = row.get("checkouts_per_second"), row.get("checked_out")
    if rate is None or out is None:
        return False
    if rate < QUIET * max(1, out):
        return True
    return bool(usual is None and held >= UNUSUAL * out / rate)


def _saturated(row: Mapping[str, Any]) -> bool:
    if not row.get("waiting"):
        return False
    capacity, out = row.get("capacity"), row.get("checked_out")
    return "pool" not in row or capacity is None or out is None or out >= capacity


def _overcommitted(row: Mapping[str, Any]) -> list[Verdict]:
    most, capacity = row.get("server_max"), row.get("server_capacity")
    if most is None or capacity is None or capacity <= most:
        return []
    server = row.get("server") or DatabaseServer(row.get("database_host"), row.get("database_port"))
    return [
        Verdict(
            "OVERCOMMIT",
            f"pools may open {capacity} connections to {server}, which takes {most}: lower pool_size and "
            "max_overflow, or raise the server's maximum",
        )
    ]


# --- Their reasons --------------------------------------------------------------------------------


def _leak(row: Mapping[str, Any]) -> str:
    held, usual = row.get("longest_held_seconds"), row.get("held_p95_seconds")
    reason = f"a connection has been held for {age(held)}"
    if usual is not None:
        reason += f", where {duration(usual)} is usual (p95)"
    elif row.get("checkouts_per_second") is not None:
        reason += f" at {row['checkouts_per_second']:.1f} checkouts/s"
    return f"{reason}: see its call site and give it back"


def _saturation(row: Mapping[str, Any], leak: bool) -> str:
    waiting, capacity, out = row.get("waiting"), row.get("capacity"), row.get("checked_out")
    reason = f"{waiting} wait" + ("s" if waiting == 1 else "")
    if row.get("longest_wait_seconds"):
        reason += f" up to {age(row['longest_wait_seconds'])}"
    if out is not None and "pool" in row:  # sums of full and empty pools say nothing of either
        reason += f", {out} of {'unlimited' if capacity is None else capacity} checked out"
    if leak:
        return reason
    if row.get("held_p95_seconds") is not None:
        reason += f", held {duration(row['held_p95_seconds'])} (p95)"
    elif row.get("longest_held_seconds"):
        reason += f", none held longer than {age(row['longest_held_seconds'])}"
    return f"{reason}: raise pool_size or hold for a shorter time"


def _lost(row: Mapping[str, Any]) -> str:
    ago = row.get("last_report_seconds")
    said = "" if ago is None else f"nothing heard for {age(ago)}: "
    return f"{said}the process is stopped, or its host or network is down"

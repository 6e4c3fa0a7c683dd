"""Who holds a database server's session: what `connmon whois` prints. Pure: no I/O, no time.

- Session ids are the server's own, so that two servers may well have the same one, and a forked
  process the same as its parent: all that match are told of, each with its server.
- The operating system's user and the database's are two: each is named as what it is.
- With the server itself asked, the sessions that this one waits for are resolved too, and those that wait
  for it (see `blocking`).
- Of a process that is lost, what was last heard is shown, and that it is lost.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from connmon.database.blocking import SERVER_KEYS, blocked_by, described, in_words, roots, waiting_for
from connmon.database.locks import Locks
from connmon.database.reconcile import Look, Naming
from connmon.database_address import DatabaseServer, joined, named, names, servers_of
from connmon.errors import ConfigError, one_line
from connmon.protocol.text import csv_cell, printable, short_age
from connmon.protocol.values import LARGEST

#: The width of the names on the left.
_LEFT: Final = 10
#: How many of the sessions that it blocks the text shows.
SHOWN: Final = 5
_PLACES: Final = {
    "database": "in the database",
    "application": "in the application",
    "waiting": "waiting for another connection",
}


def parse_session(text: str) -> int:
    """Return the session's id. Raises ConfigError where it is not one."""
    if text.isascii() and text.isdigit() and 0 < len(text) <= 16 and 1 <= int(text) <= LARGEST:
        return int(text)
    raise ConfigError(
        one_line(f"{text[:100]!r} is not a session id; expected the number that SHOW PROCESSLIST or "
                 "pg_stat_activity shows")
    )  # fmt: skip


class At(NamedTuple):
    """The database server itself was asked: what it said, and which rows are there."""

    look: Look
    naming: Naming
    waiting: Locks
    """The waits for the session, and for those that wait for it."""


def whois(
    document: Mapping[str, Any],
    session: int,
    database: Sequence[DatabaseServer] = (),
    pools: Iterable[Mapping[str, Any]] = (),
    at: At | None = None,
) -> tuple[dict[str, Any], str | None]:
    """Return what is known of the session, and where nothing is, why.

    `document` is a snapshot by connection. The result has those of its rows that match; `database`: only
    sessions of one of these servers. `pools`: the rows by pool of the same moment, for their verdicts.
    `at`: the server that `database` names was asked; then `blocked_by` has the sessions that this one waits
    for, a root last (see `blocking`), and `blockers` whose they are; `blocks` and `blocked` are the same of
    those that wait for this one, the nearest first. Otherwise these are None.
    """
    found = [row for row in document["rows"] if row["server_id"] == session]
    matching = [row for row in found if _at(row, database)] if at is None else _there(found, session, at)
    of_pool = _pools(pools)
    rows = [
        {**row, "database_user": database_user(row["pool"]), **of_pool.get(_pool(row), _NO_POOL)}
        for row in matching
    ]
    header = {key: document[key] for key in ("service", "node", "leader", "quorum", "stale_seconds")}
    result: dict[str, Any] = {
        **header, "server_id": session, "database": joined(database) or None, "rows": rows,
        **(_NOT_ASKED if at is None else _asked(session, at)),
    }  # fmt: skip
    return result, None if rows else _nobody(document, session, database, found)


_NOT_ASKED: Final = {
    "session": None, "blocked_by": None, "blockers": None, "blocking_problem": None,
    "blocks": None, "blocked": None, "blocks_problem": None,
}  # fmt: skip
_NO_POOL: Final = {"pool_verdict": None, "pool_verdict_reason": None}


def _there(found: Iterable[Mapping[str, Any]], session: int, at: At) -> list[Mapping[str, Any]]:
    """Return the connections that have the session of the server that was asked."""
    if any(each.id == session for each in at.look.view.sessions):
        return list(at.look.owners(at.naming).get(session, ()))
    return [row for row in found if at.naming.has(at.look.view, row)]


def _asked(session: int, at: At) -> dict[str, Any]:
    view, locks = at.look.view, at.look.locks
    owners, first = at.look.owners(at.naming), roots(locks)
    listed = any(each.id == session for each in view.sessions)
    chain = blocked_by(locks, session)
    sessions = {each.id: each for each in view.sessions}
    blockers = [{**described(each, sessions, owners), "root": each in first} for each in chain or ()]
    own = described(session, sessions, {})
    others = waiting_for(at.waiting, session)
    return {
        "session": {key: own[key] for key in SERVER_KEYS} if listed else None,
        "blocked_by": chain,
        "blockers": None if chain is None else blockers,
        "blocking_problem": locks.problem,
        "blocks": others,
        "blocked": None if others is None else [described(each, sessions, owners) for each in others],
        "blocks_problem": at.waiting.problem,
    }


def _pool(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("instance", "pool", "pool_class", "pool_size", "max_overflow"))


def _pools(pools: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the pools' verdicts; of pools that a connection's row does not tell from another none."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in pools:
        verdict = {"pool_verdict": row.get("verdict"), "pool_verdict_reason": row.get("verdict_reason")}
        found[_pool(row)] = _NO_POOL if _pool(row) in found else verdict
    return found


def database_user(pool: str | None) -> str | None:
    """Return the user that a pool's URL logs in with; None where the URL does not say."""
    match = re.match("[^:/@]+://([^:/?#@]+)[@:]", pool or "")
    return unquote(match[1]) if match else None


def _at(row: Mapping[str, Any], database: Sequence[DatabaseServer]) -> bool:
    """Whether the connection of this row is at one of the servers; no servers: at any, or one not known."""
    return not database or any(names(wanted, server) for wanted in database for server in servers_of(row))


def _nobody(
    document: Mapping[str, Any], session: int, database: Sequence[DatabaseServer], found: list[dict[str, Any]]
) -> str:
    known = [row for row in document["rows"] if row["server_id"] is not None]
    where = f" on {joined(database)}" if database else ""
    if found:
        others = ", ".join(sorted({named(servers_of(row)) for row in found}))
        hint = f"there is one on {others}"
    elif database and not any(_at(row, database) for row in known):
        servers = sorted({named(servers_of(row)) for row in known})
        more = f" and {len(servers) - 10} more" * (len(servers) > 10)
        listed = f"the servers that pools name are {', '.join(servers[:10])}{more}"
        hint = listed if servers else "no server is known"
    else:
        without = len(document["rows"]) - len(known)
        hint = f"sessions known: {len(known)}; connections without a session id: {without}"
        if pooled := sum(bool(row["pooler"]) for row in document["rows"] if row["server_id"] is None):
            hint += f", {pooled} of them through a pooler (PgBouncer), which hides it"
    if left_out := document.get("totals", {}).get("left_out"):
        hint += f"; limits leave out {left_out} of the service"
    return f"no process that reports to service {document['service']} has session {session}{where}: {hint}"


def whois_text(result: Mapping[str, Any]) -> str:
    """Return the matches for people, a block for each; where the server only knows it, what that says."""
    locks = [*_blocked(result), *_blocks(result)]
    blocks = [_block(result["server_id"], row, locks) for row in result["rows"]]
    if not blocks and result["session"] is not None:
        blocks = [[*_strangers(result), *locks]]
    return "\n".join("".join(f"{line.rstrip()}\n" for line in block) for block in blocks)


#: The keys of a CSV row. `kind`: session (a connection that has it, or what the server says of it), blocker,
#: blocked (a session that waits for it).
CSV_KEYS: Final = (
    "kind", "server_id", "host", "program", "pid", "pool", "database_user", "client_host", "client_port",
    "database", "application", "state", "state_seconds", "held_seconds", "verdict", "pool_verdict",
    "pool_verdict_reason", "holder", "holder_in", "holder_site", "call_site", "stack", "blocked_by", "root",
    "blocks",
)  # fmt: skip


def whois_csv(result: Mapping[str, Any]) -> str:
    """Return the matches, who blocks them and whom they block, as rows of one CSV."""
    said = result["session"] or {}
    own = {**said, "server_id": result["server_id"], "database_user": said.get("user")}
    rows = [{**row, "client_host": said.get("client_host"), "client_port": said.get("client_port")}
            for row in result["rows"]] or ([own] if said else [])  # fmt: skip
    chains = {
        key: None if result[key] is None else list(map(str, result[key])) for key in ("blocked_by", "blocks")
    }
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_KEYS)
    for kind, row in (
        *(("session", {**row, **chains}) for row in rows),
        *(("blocker", {**row, "database_user": row["user"]}) for row in result["blockers"] or ()),
        *(("blocked", {**row, "database_user": row["user"]}) for row in result["blocked"] or ()),
    ):
        writer.writerow(csv_cell({**row, "kind": kind}.get(key)) for key in CSV_KEYS)
    return file.getvalue()


def _strangers(result: Mapping[str, Any]) -> list[str]:
    """What the server says of a session that nobody reports."""
    said = result["session"]
    state = said["state"]
    if state is not None and said["state_seconds"] is not None:
        state = f"{state} for {short_age(said['state_seconds'])}"
    client = said["client_host"]
    if client is not None and said["client_port"] is not None:
        client = str(DatabaseServer(client, said["client_port"]))
    return [
        f"session {result['server_id']} of {printable(str(result['database']))}, not one of connmon's",
        *_named(
            ("db user", said["user"]), ("client", client), ("database", said["database"]),
            ("name", said["application"]), ("state", state),
        ),
    ]  # fmt: skip


def _blocked(result: Mapping[str, Any]) -> list[str]:
    """Who blocks it, a line for each; nothing where the server was not asked."""
    lines = [
        f"by session {each['server_id']}{' (the root)' * each['root']}: {in_words(each)}"
        for each in result["blockers"] or ()
    ]
    return _locked("blocked", result["blocked_by"], lines or ["by nobody"], result["blocking_problem"])


def _blocks(result: Mapping[str, Any]) -> list[str]:
    """Whom it blocks, a line for each of some; nothing where the server was not asked."""
    others = result["blocked"] or ()
    lines = [f"session {each['server_id']}: {in_words(each)}" for each in others[:SHOWN]]
    if len(others) > SHOWN:
        lines.append(f"and {len(others) - SHOWN} more")
    return _locked("blocks", result["blocks"], lines or ["nobody"], result["blocks_problem"])


def _locked(name: str, ids: list[int] | None, lines: list[str], problem: str | None) -> list[str]:
    if ids is None:
        return [] if problem is None else _named((name, f"not known: {problem}"))
    if problem is not None:
        lines = [*lines, f"(not all is known: {printable(problem)})"]
    return [f"  {name if not number else '':<{_LEFT}}{line}" for number, line in enumerate(lines)]


def _named(*pairs: tuple[str, object]) -> list[str]:
    return [f"  {name:<{_LEFT}}{'-' if value is None else printable(str(value))}" for name, value in pairs]


def _block(session: int, row: Mapping[str, Any], locks: Iterable[str]) -> list[str]:
    lines = [f"session {session} of {printable(str(row['dialect']))} {printable(named(servers_of(row)))}"]
    if row["state"] is None:
        state = "lost: its process is silent, this is what was last heard"
    elif row["held_seconds"] is None:
        state = row["state"].replace("_", " ")
    else:
        state = f"{row['state'].replace('_', ' ')}, held for {short_age(row['held_seconds'])}"
    verdict, reason = row.get("verdict"), row.get("pool_verdict_reason")
    if reason is not None:
        reason = f"{row['pool_verdict']}: {reason}"
    holder_in, site = row.get("holder_in"), row.get("holder_site")
    now = None if holder_in is None and site is None else " ".join(
        filter(None, (_PLACES.get(str(holder_in), holder_in), site))
    )  # fmt: skip
    lines += _named(
        ("host", row["host"]),
        ("program", row["program"]),
        ("pid", row["pid"]),
        ("os user", row["user"]),
        ("command", row["command"]),
        ("pool", row["pool"]),
        ("db user", row["database_user"]),
        ("state", state),
        *([("verdict", verdict)] if verdict is not None else ()),
        *([("its pool", reason)] if reason is not None else ()),
    )
    lines += locks
    lines += _named(
        ("holder", row["holder"]),
        *([("holder is", now)] if now is not None else ()),
        ("opened", f"{short_age(row['age_seconds'])} ago"),
        ("code", row["call_site"]),
    )
    for number, line in enumerate(row["stack"]):
        lines.append(f"  {'stack' if not number else '':<{_LEFT}}{printable(line)}")
    return lines

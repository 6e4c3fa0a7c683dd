"""What each table can show of a row: its columns, how it is sorted, what is added to a row. Pure.

Rules kept here:

- Who is to blame stands on top: by default tables are in the order of their verdicts, then of those who
  wait, then of connections. Waits are in the order of who waits, connections in that of who holds longest,
  lines of code in that of how many wait in their programs for what they hold.
- Nothing is judged here: the node has the verdicts.
- Rows arrive in the order of their names, which decides between equals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias, get_args

from connmon.console import format, text
from connmon.console.fitting import EXTRA, Cell, Column, Row
from connmon.console.format import count, word
from connmon.protocol.text import short_age as age
from connmon.protocol.text import short_duration as duration
from connmon.protocol.values import VerdictWord

Table: TypeAlias = Literal[
    "program", "host", "database", "process", "pool", "connection", "site", "wait", "node"
]

#: The gravest first.
VERDICTS: Final[tuple[str, ...]] = get_args(VerdictWord)

#: What they mean, where no more is known than the word.
MEANINGS: Final = {
    "LEAK": "it does not come back, and nobody works with it: see the line that took it",
    "BLOCKED": "held long in the database: look for a lock there",
    "SATURATED": "somebody waits and all is checked out: see which lines hold it (9)",
    "TIMEOUTS": "somebody gave up waiting in the last minutes",
    "LOST": "silent for longer than the lease; its present is not known",
    "SLOW CONNECT": "making a connection takes long (p95)",
    "OVERCOMMIT": "the pools may open more connections than the server takes",
}

#: Columns of the lines that show the last minutes, and samples in each of their blocks.
TREND: Final = 15
TREND_EACH: Final = 10
#: Columns of the number at its end.
PEAK: Final = 5
#: What the view adds to the rows on the screen, where it is known: samples, and the number of the last.
TREND_KEY: Final = "_trend"
#: What `source` adds to rows by site: how many wait for connections in the same program on the same host.
WAIT_THERE: Final = "_wait_there"


def state_word(row: Row) -> str:
    """Return the row's verdict, else its state; what colour only repeats."""
    verdict = row.get("verdict")
    if verdict:
        return str(verdict)
    state = row.get("state")
    if (state == "connected" and row.get("waiting")) or (state is None and row.get("waiting_now")):
        return "waiting"
    return word(state).replace("_", " ")


def verdict_word(row: Row) -> str:
    """Return the row's verdict, or that it has no present; "" where nothing is wrong."""
    verdict, state = row.get("verdict"), row.get("state")
    return str(verdict) if verdict else str(state) if state in ("lost", "gone") else ""


def reason(row: Row) -> str:
    """Return the verdict with its reason in one line; "" where nothing is wrong."""
    verdict, why = row.get("verdict"), row.get("verdict_reason")
    if not verdict:
        return ""
    if not why:
        return f"{verdict}: {MEANINGS[verdict]}" if verdict in MEANINGS else str(verdict)
    return str(why) if str(why).startswith(f"{verdict}:") else f"{verdict}: {why}"


def name(row: Row) -> str:
    """Return what a row is called in a sentence."""
    return str(row.get("program") or row.get("host") or row.get("database") or row.get("node"))


def gravity(verdict: Any) -> int:
    """Return how grave a verdict is: 0 for none, larger is graver."""
    return len(VERDICTS) - VERDICTS.index(verdict) if verdict in VERDICTS else 0


# --- Kinds of columns -----------------------------------------------------------------------------


def _number(key: str, title: str, rank: int, short: str = "", form: Callable[[Any], str] = count) -> Column:
    return Column(key, title, short or title, rank, lambda row: Cell(form(row.get(key))))


def _with_max(key: str, title: str, short: str, rank: int) -> Column:
    def write(row: Row) -> Cell:
        return Cell(count(row.get(key)), f"({count(row.get('max_' + key))})")

    return Column(key, title + "\n(max)", short, rank, write)


def _text(key: str, title: str, rank: int, least: int = 0, short: str = "") -> Column:
    return Column(key, title, short or title, rank, lambda row: Cell(word(row.get(key))), True, least)


def _name(key: str, title: str, least: int, rank: int = 0) -> Column:
    """What identifies a row; `rank` counts only where the screen is narrow."""
    return replace(_text(key, title, rank, least), identifies=True)


def _place(key: str, title: str, least: int, rank: int = 0) -> Column:
    """The same, a path."""
    return replace(_name(key, title, least, rank), is_path=True)


def _pid(rank: int = 0) -> Column:
    return replace(_number("pid", "pid", rank), identifies=True)


def _state(rank: int) -> Column:
    return Column("state", "state", "state", rank, lambda row: Cell(state_word(row)), True)


def _gravity(row: Row) -> float:
    gone = row.get("state") == "gone"
    return gravity(row.get("verdict")) - 0.5 * gone


def _line_gravity(row: Row) -> tuple[int, int, bool, int, float]:
    """Who blocks: what is wrong; how many wait in the program, where it holds something; whether somebody
    waits in this very line, and so for a pool that it uses; how much it holds, and how long.
    """
    held = row.get("held_now") or 0
    return (
        gravity(row.get("verdict")),
        (row.get(WAIT_THERE) or 0) if held else -1,
        bool(row.get("waiting_now")),
        held,
        row.get("longest_held_seconds") or 0.0,
    )


def _verdict(rank: int) -> Column:
    """Sorted by how grave it is: a number, though it is a word."""
    return Column(
        "verdict", "verdict", "verdict", rank, lambda row: Cell(verdict_word(row)), True, value=_gravity
    )


def _use(row: Row) -> float | None:
    capacity, out = row.get("capacity"), row.get("checked_out")
    return None if not capacity or out is None else out / capacity


def _bar(rank: int) -> Column:
    def write(row: Row) -> Cell:
        out, capacity = row.get("checked_out"), row.get("capacity")
        return Cell(format.bar(out, capacity, 10), format.of(out, capacity))

    return Column("use", "pool use\nout/capacity", "pool use\nout/capacity", rank, write, value=_use)


def _trend(key: str, title: str, of: str, rank: int) -> Column:
    """The last minutes; sorted by the present value."""

    def write(row: Row) -> Cell:
        known = row.get(TREND_KEY)
        if known is None:
            return Cell(" " * TREND, " " * PEAK)
        samples, number, blocks = known
        means = format.means(samples[key], number, TREND, TREND_EACH)
        return Cell(format.drawn(means, blocks), format.peak(means))

    return Column(key, title, title, rank, write, value=lambda row: row.get(of))


def _server(row: Row) -> str:
    host, port = row.get("database_host"), row.get("database_port")
    if host in (None, ""):
        return format.UNKNOWN
    return text.clean(str(host) if port is None else f"{host}:{port}")


def _sampled(row: Row) -> Cell:
    """Holds; "~" where only a sample of them is known by its line."""
    return Cell(("~" if row.get("estimated") else "") + count(row.get("holds_total")))


def _where_now(row: Row) -> Cell:
    """Where the holder is: in the database, or in which line."""
    where = row.get("holder_in")
    if where == "database":
        return Cell("in the database")
    if where == "ended":
        return Cell("has ended")
    return Cell(word(row.get("holder_site") or where))


def _holder_now(rank: int) -> Column:
    return Column(
        "holder_in", "holder is now", "holder now", rank, _where_now, True, 15,
        lambda row: _where_now(row).first, is_path=True,
    )  # fmt: skip


_CONNECTIONS = _with_max("connections", "connections", "conns\n(max)", 2)
_CHECKED_OUT = _with_max("checked_out", "checked out", "checked\nout(max)", 3)
_WAITING = _number("waiting", "waiting", 1)
_LONGEST_WAIT = _number("longest_wait_seconds", "longest\nwait", 4, form=age)
_LONGEST_HELD = _number("longest_held_seconds", "longest\nheld", 5, form=age)
_RATE = _number("checkouts_per_second", "checkouts\n/s", 8, "check-\nouts/s", form=format.rate)
_TIMEOUTS = _number("recent_timeouts", "recent\ntimeouts", 6, "time-\nouts")
_CONNECT_RATE = _number("connects_per_second", "connects\n/s", 9, "con-\nnects/s", form=format.rate)
#: What every table of pools has of what happens now.
_LATELY: Final = (_TIMEOUTS, _RATE, _CONNECT_RATE)
_TRENDS: Final = (
    _trend("rates", "checkouts/s\n5 minutes, max", "checkouts_per_second", 12),
    _trend("counts", "connections\n5 minutes, max", "connections", 15),
)
_P95: Final = (
    _number("wait_p95_seconds", "wait\np95", 10, form=duration),
    _number("held_p95_seconds", "held\np95", 10, form=duration),
    _number("connect_p95_seconds", "connect\np95", 14, form=duration),
)
_MORE: Final = (
    _number("capacity", "capacity", EXTRA),
    _number("idle", "idle", EXTRA + 1),
    _number("overflow", "overflow", EXTRA + 2),
    _number("timeouts_total", "timeouts\ntotal", EXTRA + 3),
    _number("max_waiting", "waiting\nmax", EXTRA + 4),
    _number("connect_errors_total", "connect\nerrors", EXTRA + 5),
    _number("invalidations_total", "invali-\ndations", EXTRA + 6),
    _number("detached", "detached", EXTRA + 8),
    _number("checkouts_total", "checkouts\ntotal", EXTRA + 9),
    _number("wait_p50_seconds", "wait\np50", EXTRA + 11, form=duration),
    _number("wait_p99_seconds", "wait\np99", EXTRA + 12, form=duration),
    _number("held_p50_seconds", "held\np50", EXTRA + 13, form=duration),
    _number("held_p99_seconds", "held\np99", EXTRA + 14, form=duration),
    _number("connect_p50_seconds", "connect\np50", EXTRA + 15, form=duration),
    _number("connect_p99_seconds", "connect\np99", EXTRA + 16, form=duration),
)
_REPORT = _number("last_report_seconds", "last\nreport", EXTRA + 7, form=age)
#: What every table of sums has behind the column that names its rows.
_SUMS: Final = (
    _with_max("processes", "processes", "procs\n(max)", 7),
    _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, *_LATELY,
    _bar(11), *_P95, *_TRENDS, *_MORE, _REPORT, _number("pools", "pools", EXTRA + 10),
)  # fmt: skip

COLUMNS: Final[dict[Table, tuple[Column, ...]]] = {
    "program": (_name("host", "host", 8, 6), _name("program", "program", 11), _verdict(2), *_SUMS),
    "host": (_name("host", "host", 11), _verdict(2), _number("programs", "programs", 6), *_SUMS),
    "database": (
        replace(_name("server", "server", 8), write=lambda row: Cell(_server(row)), value=_server),
        _place("database", "database", 11),
        _verdict(2),
        _number("server_max", "server\nmax", 6),
        _text("dialect", "dialect", 13),
        _number("programs", "programs", 6),
        *_SUMS,
    ),
    "process": (
        _pid(),
        _name("host", "host", 8, 8),
        _name("program", "program", 11, 6),
        _verdict(2),
        _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, *_LATELY,
        _number("cpu_percent", "CPU", 9, form=format.percent),
        _number("rss_bytes", "memory", 10, form=format.size),
        _number("started_seconds", "running", 11, form=age),
        _text("user", "user", 12, 8),
        _number("threads", "threads", 13),
        _number("open_files", "open\nfiles", 14),
        _bar(15), *_P95, *_TRENDS, *_MORE[:5], _REPORT,
        _text("node", "node", EXTRA + 8, 8),
        _text("container", "container", EXTRA + 8, 12),
        _number("ppid", "parent", EXTRA + 9),
        _text("command", "command", EXTRA + 10, 20),
        *_MORE[5:],
    ),
    "pool": (
        _place("pool", "pool", 16),
        _name("host", "host", 8, 8),
        _name("program", "program", 11, 3),
        _pid(5),
        _verdict(2),
        _CONNECTIONS, _CHECKED_OUT,
        _number("capacity", "capacity", 6),
        _WAITING, _LONGEST_WAIT, _LONGEST_HELD, *_LATELY,
        _bar(9), *_P95,
        _number("pool_size", "size", 16),
        _number("max_overflow", "max\noverflow", 16),
        _number("timeout_seconds", "timeout", 17, form=age),
        _text("pool_class", "class", 18),
        *_MORE[1:],
    ),
    "connection": (
        replace(_number("connection", "connection", 0, "conn"), identifies=True),
        _name("host", "host", 8, 8),
        _name("program", "program", 11, 7),
        _pid(7),
        _state(1),
        _number("held_seconds", "held", 2, form=age),
        _place("call_site", "taken in", 20, 3),
        _holder_now(6),
        _text("holder", "held by", 5, 8),
        _number("server_id", "server session", 4, "server\nsession"),
        _number("age_seconds", "age", 11, form=age),
        _text("pool", "pool", 12, 24),
    ),
    "site": (
        _name("program", "program", 11, 3),
        _name("host", "host", 8, 6),
        _place("call_site", "line of code", 20),
        replace(_verdict(2), value=_line_gravity),
        _number("held_now", "held\nnow", 1),
        _number("in_database_now", "in the\ndatabase", 6, "in\nDB"),
        _number("waiting_now", "wait\nhere", 2),
        _number("longest_held_seconds", "longest\nheld", 3, "long-\nest", age),
        _number("usual_held_seconds", "usual\nhold", 4, "usual", duration),
        replace(_number("holds_total", "holds", 5), write=_sampled),
        _number("hold_seconds_total", "held\naltogether", 9, form=age),
        _number("processes", "processes", 8, "procs"),
    ),
    "wait": (
        _name("program", "program", 8, 1),
        _name("host", "host", 8, 6),
        _place("blocker", "blocked by: who holds", 20),
        _verdict(1),
        _number("waiting", "waiting", 1, "wait"),
        _number("longest_wait_seconds", "worst\nwait", 3, form=age),
        _number("holds", "holds", 4),
        _number("held_seconds", "longest\nheld", 2, "held", age),
        _place("pool", "pool", 8, 7),
        _bar(9),
        _holder_now(8),
        _number("processes", "processes", 11, "procs"),
        _text("holder", "held by", 10, 12),
        *_P95[:2],
    ),
    "node": (
        _name("node", "node", 8),
        _text("role", "role", 1),
        _text("address", "address", 5, 15),
        _number("term", "term", 4),
        _number("applied", "applied", 6),
        _number("lag", "lag", 2),
        _number("stale_seconds", "stale", 2, form=age),
        _number("processes", "processes", 8, "procs"),
        _number("consoles", "consoles", 9),
        _number("uptime_seconds", "uptime", 7, form=age),
        _text("version", "version", 10),
        _text("problem", "problems", 3, 24),
    ),
}  # fmt: skip
DEFAULT_SORT: Final[dict[Table, str]] = {
    "program": "verdict", "host": "verdict", "database": "verdict", "process": "verdict", "pool": "verdict",
    "connection": "held_seconds", "site": "verdict", "wait": "waiting", "node": "node",
}  # fmt: skip

#: What find and filter look at, besides the cells of text.
SEARCHED: Final = (
    "host", "program", "pid", "verdict", "state", "pool", "database", "database_host", "dialect", "user",
    "command", "container", "node", "server_id", "holder", "call_site", "holder_site", "holder_in",
    "blocker", "role", "address", "problem",
)  # fmt: skip


def column(table: Table, key: str) -> Column:
    """Return the table's column of that key. Raises KeyError."""
    for candidate in COLUMNS[table]:
        if candidate.key == key:
            return candidate
    raise KeyError(key)


def falls(col: Column) -> bool:
    """Whether the largest stands on top where the order is not inverted."""
    return not col.is_text or col.key == "verdict"


def arranged(
    table: Table, rows: Sequence[tuple[Any, Row]], sort: str, inverted: bool
) -> tuple[tuple[Any, Row], ...]:
    """Return (key, row) pairs in order: what is not known last, equals by who waits, connections, name."""
    by = column(table, sort)
    value = by.sorted_by
    known: list[tuple[Any, tuple[Any, Row]]] = []
    unknown: list[tuple[Any, Row]] = []
    for pair in sorted(rows, key=lambda pair: troubled(pair[1])):
        what = value(pair[1])
        if what is None:
            unknown.append(pair)
        else:
            known.append((what if not isinstance(what, str) else what.casefold(), pair))
    known.sort(key=lambda entry: entry[0], reverse=falls(by) is not inverted)
    return (*(pair for _, pair in known), *unknown)


def troubled(row: Row) -> tuple[int, int]:
    """Return what decides between rows that are equal in the column that is sorted by."""
    waiting = row.get("waiting") or row.get("waiting_now") or 0
    return -waiting, -(row.get("connections") or row.get("held_now") or 0)


def matches(row: Row, wanted: str) -> bool:
    """Whether a text stands in anything that names the row or says how it is, in any case of letters."""
    wanted = wanted.casefold()
    for key in SEARCHED:
        value = row.get(key)
        if value is not None and wanted in str(value).casefold():
            return True
    return False

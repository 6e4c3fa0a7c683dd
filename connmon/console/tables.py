"""What each table can show of a row: its columns, how it is sorted, what is added to a row. Pure.

Rules kept here:

- Who is to blame stands on top: by default tables are in the order of their verdicts, then of those who
  wait, then of connections. Waits are in the order of who waits, connections in that of who holds longest.
- Rows arrive in the order of their names, which decides between equals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from connmon import verdicts
from connmon.console import forms, text
from connmon.console.columns import EXTRA, Cell, Column, Row
from connmon.console.forms import count, word
from connmon.formats import short_age as age
from connmon.formats import short_duration as duration

Table: TypeAlias = Literal["program", "host", "database", "process", "pool", "connection", "wait", "node"]

#: Columns of the lines that show the last minutes, and samples in each of their blocks.
TREND: Final = 15
TREND_EACH: Final = 10
#: What the view adds to the rows on the screen, where it is known: samples, and the number of the last.
TREND_KEY: Final = "_trend"


def state_word(row: Row) -> str:
    """Return the row's verdict, else its state; what colour only repeats."""
    verdict = row.get("verdict")
    if verdict:
        return str(verdict)
    state = row.get("state")
    if state == "connected" and row.get("waiting"):
        return "waiting"
    return word(state).replace("_", " ")


def judged(row: dict[str, Any], recent_timeouts: int | None) -> None:
    """Add to a row's cells what is wrong with it, and why.

    `recent_timeouts` is of the program, or whatever the node remembers of it; None: not known.
    """
    if recent_timeouts is not None:
        row["recent_timeouts"] = min(recent_timeouts, row.get("timeouts_total") or 0)
    found = verdicts.of_row(row)
    row["verdict"] = verdicts.gravest(found)
    row["why"] = verdicts.explained(found)


# --- Kinds of columns -----------------------------------------------------------------------------


def _number(key: str, title: str, rank: int, short: str = "", form: Callable[[Any], str] = count) -> Column:
    return Column(key, title, short or title, rank, lambda row: Cell(form(row.get(key))))


def _with_max(key: str, title: str, short: str, rank: int) -> Column:
    def write(row: Row) -> Cell:
        return Cell(count(row.get(key)), f"({count(row.get('max_' + key))})")

    return Column(key, title + "\n(max)", short, rank, write)


def _text(key: str, title: str, rank: int, least: int = 0, short: str = "") -> Column:
    return Column(key, title, short or title, rank, lambda row: Cell(word(row.get(key))), True, least)


def _state(rank: int) -> Column:
    return Column("state", "state", "state", rank, lambda row: Cell(state_word(row)), True)


def _gravity(row: Row) -> float:
    gone = row.get("state") == "gone"
    return verdicts.rank(row.get("verdict")) - 0.5 * gone


def _verdict(rank: int) -> Column:
    """Sorted by how grave it is: a number, though it is a word."""
    return Column(
        "verdict", "verdict", "verdict", rank, lambda row: Cell(state_word(row)), True, value=_gravity
    )


def _use(row: Row) -> float | None:
    capacity, out = row.get("capacity"), row.get("checked_out")
    return None if not capacity or out is None else out / capacity


def _bar(rank: int) -> Column:
    def write(row: Row) -> Cell:
        out, capacity = row.get("checked_out"), row.get("capacity")
        return Cell(forms.bar(out, capacity, 10), forms.of(out, capacity))

    return Column("use", "pool use\nout/capacity", "pool use\nout/capacity", rank, write, value=_use)


def _trend(key: str, title: str, of: str, rank: int) -> Column:
    """The last minutes; sorted by the present value."""

    def write(row: Row) -> Cell:
        known = row.get(TREND_KEY)
        if known is None:
            return Cell(" " * TREND)
        samples, number, blocks = known
        return Cell(forms.line(samples[key], number, TREND, TREND_EACH, blocks))

    return Column(key, title, title, rank, write, value=lambda row: row.get(of))


def _server(row: Row) -> str:
    host, port = row.get("database_host"), row.get("database_port")
    if host in (None, ""):
        return forms.UNKNOWN
    return text.clean(str(host) if port is None else f"{host}:{port}")


def _blocker(row: Row) -> Cell:
    return Cell(word(row.get("blocker")))


_CONNECTIONS = _with_max("connections", "connections", "conns\n(max)", 2)
_CHECKED_OUT = _with_max("checked_out", "checked out", "checked\nout(max)", 3)
_WAITING = _number("waiting", "waiting", 1)
_LONGEST_WAIT = _number("longest_wait_seconds", "longest\nwait", 4, form=age)
_LONGEST_HELD = _number("longest_held_seconds", "longest\nheld", 5, form=age)
_RATE = _number("checkouts_per_second", "checkouts\n/s", 8, form=forms.rate)
_TRENDS: Final = (
    _trend("rates", "checkouts/s\nlast 5 minutes", "checkouts_per_second", 12),
    _trend("counts", "connections\nlast 5 minutes", "connections", 15),
)
_P95: Final = (
    _number("wait_p95_seconds", "wait\np95", 9, form=duration),
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
    _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, _RATE,
    _bar(11), *_P95, *_TRENDS, *_MORE, _REPORT, _number("pools", "pools", EXTRA + 10),
)  # fmt: skip

COLUMNS: Final[dict[Table, tuple[Column, ...]]] = {
    "program": (_text("host", "host", 6, 8), _text("program", "program", 0, 11), _verdict(2), *_SUMS),
    "host": (_text("host", "host", 0, 11), _verdict(2), _number("programs", "programs", 6), *_SUMS),
    "database": (
        Column("server", "server", "server", 0, lambda row: Cell(_server(row)), True, 8, _server),
        _text("database", "database", 0, 11),
        _verdict(2),
        _number("server_max", "server\nmax", 6),
        _text("dialect", "dialect", 13),
        _number("programs", "programs", 6),
        *_SUMS,
    ),
    "process": (
        _number("pid", "pid", 0),
        _text("host", "host", 8, 8),
        _text("program", "program", 6, 11),
        _verdict(2),
        _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, _RATE,
        _number("cpu_percent", "CPU", 9, form=forms.percent),
        _number("rss_bytes", "memory", 10, form=forms.size),
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
        _text("pool", "pool", 0, 16),
        _verdict(2),
        _text("host", "host", 15, 8),
        _text("program", "program", 3, 11),
        _number("pid", "pid", 5),
        _CONNECTIONS, _CHECKED_OUT,
        _number("capacity", "capacity", 6),
        _WAITING, _LONGEST_WAIT, _LONGEST_HELD, _RATE,
        _bar(9), *_P95,
        _number("pool_size", "size", 16),
        _number("max_overflow", "max\noverflow", 16),
        _number("timeout_seconds", "timeout", 17, form=age),
        _text("pool_class", "class", 18),
        *_MORE[1:],
    ),
    "connection": (
        _number("connection", "connection", 0, "conn"),
        _number("server_id", "server session", 2, "server\nsession"),
        _state(1),
        _number("held_seconds", "held", 2, form=age),
        _number("age_seconds", "age", 5, form=age),
        _text("holder", "held by", 3, 12),
        _text("call_site", "call site", 4, 20),
        _text("host", "host", 10, 8),
        _text("program", "program", 9, 11),
        _number("pid", "pid", 9),
        _text("pool", "pool", EXTRA, 24),
    ),
    "wait": (
        _text("program", "program", 1, 8),
        _verdict(2),
        _WAITING,
        _number("longest_wait_seconds", "worst\nwait", 2, form=age),
        Column("blocker", "blocked by: who holds", "blocked by", 0, _blocker, True, 28),
        _number("holds", "holds", 3),
        _number("held_seconds", "longest\nheld", 3, form=age),
        _bar(5),
        _text("host", "host", 6, 8),
        _text("pool", "pool", 7, 24),
        _number("processes", "processes", 9, "procs"),
        _text("holder", "thread", 10, 12),
        *_P95[:2],
    ),
    "node": (
        _text("node", "node", 0, 8),
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
    "connection": "held_seconds", "wait": "waiting", "node": "node",
}  # fmt: skip

#: What find and filter look at, besides the cells of text.
SEARCHED: Final = (
    "host", "program", "pid", "verdict", "state", "pool", "database", "database_host", "dialect", "user",
    "command", "container", "node", "server_id", "holder", "call_site", "blocker", "role", "address",
    "problem",
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
    for pair in sorted(rows, key=_troubled):
        what = value(pair[1])
        if what is None:
            unknown.append(pair)
        else:
            known.append((what if not isinstance(what, str) else what.casefold(), pair))
    known.sort(key=lambda entry: entry[0], reverse=falls(by) is not inverted)
    return (*(pair for _, pair in known), *unknown)


def _troubled(pair: tuple[Any, Row]) -> tuple[int, int]:
    row = pair[1]
    return -(row.get("waiting") or 0), -(row.get("connections") or 0)


def matches(row: Row, wanted: str) -> bool:
    """Whether a text stands in anything that names the row or says how it is, in any case of letters."""
    wanted = wanted.casefold()
    for key in SEARCHED:
        value = row.get(key)
        if value is not None and wanted in str(value).casefold():
            return True
    return False

"""The tables of the console: the columns of each, its order, what find looks at. Pure.

- A column reads its row by attributes: an accessor that names a field which the row lacks is a type error.
- The worst stands on top. By default tables are in the order of their verdicts, then of how many wait,
  then of their connections. Waits are in the order of how many wait, connections in that of how long they
  are held, call sites of equal verdicts in that of how many wait in their program for what they hold, then
  of how much they hold on average.
- Rows arrive in the order of their names, which decides between equals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, NamedTuple, TypeVar

from connmon.console import format, text
from connmon.console.format import count, word
from connmon.console.row_words import gravity, state_word, verdict_word
from connmon.console.rows import (
    CallSiteRow,
    DatabaseUser,
    FigureRow,
    KeyedRow,
    NodeRow,
    PoolGroup,
    ProcessPart,
    ProgramGroup,
    RatedRow,
    Samples,
    Table,
    TableRow,
    Trend,
    WaitRow,
)
from connmon.protocol.document import (
    FigureFields,
    JsonConnection,
    JsonDatabase,
    JsonHost,
    JsonPool,
    JsonProcess,
    JsonProgram,
    ProcessFields,
)
from connmon.protocol.text import short_age as age
from connmon.protocol.text import short_duration as duration
from connmon.reader.cells import mean, other_places, percent, shortened_places

R = TypeVar("R", contravariant=True)

#: Columns up to this rank keep their place longer: titles get short before one of them is left out.
CORE_RANK: Final = 8
#: Columns from this rank on are shown only where no other column has to give way.
EXTRA_RANK: Final = 20
#: Terminal columns of a trend, samples in each of its blocks, and terminal columns of its peak.
TREND_WIDTH: Final = 15
TREND_BLOCK_SAMPLES: Final = 10
PEAK_WIDTH: Final = 5


class Cell(NamedTuple):
    """What a column shows of one row; `second` stands behind it, in a column of its own."""

    first: str
    second: str = ""


@dataclass(frozen=True)
class Column(Generic[R]):
    """One column of a table."""

    key: str
    """Its name within its table."""
    title: str
    """In two lines at most."""
    short: str
    """The title where room is scarce."""
    rank: int
    """0: names the row and always stays; 1: the most important; see `CORE_RANK` and `EXTRA_RANK`."""
    write: Callable[[R], Cell]
    value: Callable[[R], Any]
    """What the column is sorted by; None: unknown."""
    is_text: bool = False
    """Left-aligned and sorted from A; else right-aligned and sorted from the largest."""
    least: int = 0
    """The width to which a name may be shortened. 0: never."""
    identifies: bool = False
    """Rows differ in it: a host, a pid, a call site."""
    is_path: bool = False
    """Shortened from its left; `least` then counts for the rest."""
    is_places: bool = False
    """Where time goes, the largest part first: it gives way to other columns, its last parts first."""
    ages: bool = False
    """The value grows by itself between two reports."""
    samples: Callable[[Samples], Sequence[float | None]] | None = None
    """The samples that it draws."""

    @property
    def name(self) -> str:
        return " ".join(self.title.split())

    @property
    def falls(self) -> bool:
        """Whether the largest stands on top where the order is not inverted."""
        return not self.is_text or self.key == "verdict"

    def cell(self, row: R, trend: Trend | None) -> Cell:
        """Return the cell of a row; `trend`: its last minutes, where they are known."""
        if self.samples is None or trend is None:
            return self.write(row)
        means = format.means(self.samples(trend.samples), trend.number, TREND_WIDTH, TREND_BLOCK_SAMPLES)
        return Cell(format.drawn(means, trend.blocks), format.peak(means))

    def heading(self, short: bool, lines: int, mark: str = "") -> list[str]:
        """Return the title in exactly `lines` (1 or 2) lines, the mark at its end."""
        parts = (self.short if short else self.title).split("\n")
        if lines == 1:
            return [" ".join(parts) + mark]
        return [parts[0], parts[1] + mark] if len(parts) == 2 else ["", parts[0] + mark]

    def shortened(self, cell: str, width: int) -> str:
        if self.is_places:
            return shortened_places(cell, width)
        return (text.shorten_path if self.is_path else text.shorten)(cell, width)


@dataclass(frozen=True)
class Definition(Generic[R]):
    """One table."""

    columns: tuple[Column[R], ...]
    sort: str
    """The key of the column that it is sorted by at first."""
    searched: Callable[[R], tuple[object, ...]]
    """What find and filter look at."""
    trouble: Callable[[R], tuple[int, float]] | None = None
    """A sort key for rows that are equal in the column that is sorted by; None: their names decide."""


# --- Kinds of columns -----------------------------------------------------------------------------


def _number(
    key: str,
    title: str,
    rank: int,
    value: Callable[[R], Any],
    short: str = "",
    form: Callable[[Any], str] = count,
    ages: bool = False,
) -> Column[R]:
    return Column(key, title, short or title, rank, lambda row: Cell(form(value(row))), value, ages=ages)


def _figure(
    key: str,
    title: str,
    rank: int,
    value: Callable[[FigureFields], Any],
    short: str = "",
    form: Callable[[Any], str] = count,
    ages: bool = False,
) -> Column[FigureRow]:
    return _number(key, title, rank, lambda row: value(row.figures), short, form, ages)


def _with_max(
    key: str,
    title: str,
    short: str,
    rank: int,
    value: Callable[[FigureFields], Any],
    most: Callable[[FigureFields], Any],
) -> Column[FigureRow]:
    def write(row: FigureRow) -> Cell:
        return Cell(count(value(row.figures)), f"({count(most(row.figures))})")

    return Column(key, title + "\n(max)", short, rank, write, lambda row: value(row.figures))


def _text(key: str, title: str, rank: int, value: Callable[[R], Any], least: int = 0) -> Column[R]:
    return Column(key, title, title, rank, lambda row: Cell(word(value(row))), value, True, least)


def _name(key: str, title: str, value: Callable[[R], Any], least: int, rank: int = 0) -> Column[R]:
    """Return a column that identifies a row; `rank` counts only where the screen is narrow."""
    return replace(_text(key, title, rank, value, least), identifies=True)


def _path(key: str, title: str, value: Callable[[R], Any], least: int, rank: int = 0) -> Column[R]:
    """Return a column that identifies a row by a path, a URL or a call site."""
    return replace(_name(key, title, value, least, rank), is_path=True)


def _process(key: str, title: str, rank: int, value: Callable[[ProcessFields], Any]) -> Column[ProcessPart]:
    return _number(key, title, rank, lambda row: value(row.process))


def _host(least: int, rank: int) -> Column[ProcessPart]:
    return _name("host", "host", lambda row: row.process.host, least, rank)


def _program(least: int, rank: int) -> Column[ProcessPart]:
    return _name("program", "program", lambda row: row.process.program, least, rank)


def _pid(rank: int = 0) -> Column[ProcessPart]:
    return replace(_process("pid", "pid", rank, lambda process: process.pid), identifies=True)


def _state(rank: int) -> Column[JsonConnection]:
    return Column(
        "state", "state", "state", rank, lambda row: Cell(state_word(row)), lambda row: row.state, True
    )


def _figure_gravity(row: FigureRow) -> float:
    return gravity(row.verdict) - 0.5 * (row.state == "gone")


def _site_gravity(row: CallSiteRow) -> tuple[int, int, bool, float, int, float]:
    """Return how much a call site is to blame.

    First what is wrong; then how many wait in the program, if the site holds anything; then whether somebody
    has waited for what it holds, or waits at this very site, and so for a pool that it uses; then how much it
    holds, on average and now, and how long.
    """
    site = row.site
    held, mean_held = site.held_now or 0, site.mean_held or 0.0
    return (
        gravity(site.verdict),
        row.waiting_in_program if held or mean_held else -1,
        bool(site.waiting_now or site.mean_waiting_caused),
        mean_held,
        held,
        site.longest_held_seconds or 0.0,
    )


def _verdict(rank: int) -> Column[FigureRow]:
    """Return the column of verdicts, which is sorted by gravity."""
    return Column(
        "verdict", "verdict", "verdict", rank, lambda row: Cell(verdict_word(row)), _figure_gravity, True
    )


def _use(row: FigureRow) -> float | None:
    capacity, out = row.figures.capacity, row.figures.checked_out
    return None if not capacity or out is None else out / capacity


def _bar(rank: int) -> Column[FigureRow]:
    def write(row: FigureRow) -> Cell:
        out, capacity = row.figures.checked_out, row.figures.capacity
        return Cell(format.bar(out, capacity, 10), format.of(out, capacity))

    title = "pool use\nout/capacity"
    return Column("use", title, title, rank, write, _use)


def _trend(
    key: str,
    title: str,
    rank: int,
    samples: Callable[[Samples], Sequence[float | None]],
    value: Callable[[FigureFields], Any],
) -> Column[FigureRow]:
    """Return a column of the last minutes, which is sorted by the present value."""
    unknown = Cell(" " * TREND_WIDTH, " " * PEAK_WIDTH)
    return Column(
        key, title, title, rank, lambda row: unknown, lambda row: value(row.figures), samples=samples
    )


def _server(row: JsonDatabase) -> str:
    host, port = row.database_host, row.database_port
    if host in (None, ""):
        return format.UNKNOWN
    return text.sanitize(str(host) if port is None else f"{host}:{port}")


def _estimated(column: Column[CallSiteRow]) -> Column[CallSiteRow]:
    """Return the column with "~" in front of what is estimated from a sample of the checkouts."""

    def write(row: CallSiteRow) -> Cell:
        mark = "~" if row.site.estimated and column.value(row) is not None else ""
        return Cell(mark + column.write(row).first)

    return replace(column, write=write)


def _part(share: float | None) -> str:
    return percent(share, "%")


def _what_else(row: CallSiteRow) -> Cell:
    return Cell(other_places(row.site.where_shares, "%", text.sanitize))


def _sorted_places(row: CallSiteRow) -> str | None:
    """Return the places, so that the same ones stand together; None: unknown."""
    return _what_else(row).first if row.site.where_shares else None


def _where_now(row: JsonConnection | WaitRow) -> Cell:
    """Return where the holder is: in the database, or at which call site."""
    if row.holder_in == "database":
        return Cell("in the database")
    if row.holder_in == "ended":
        return Cell("has ended")
    return Cell(word(row.holder_site or row.holder_in))


def _holder_now(rank: int) -> Column[JsonConnection | WaitRow]:
    return Column(
        "holder_in", "holder is now", "holder now", rank, _where_now, lambda row: _where_now(row).first,
        is_text=True, least=15, is_path=True,
    )  # fmt: skip


# --- Columns of several tables --------------------------------------------------------------------

_EXTRA: Final = EXTRA_RANK
_CONNECTIONS = _with_max(
    "connections", "connections", "conns\n(max)", 2, lambda f: f.connections, lambda f: f.max_connections
)
_CHECKED_OUT = _with_max(
    "checked_out", "checked out", "checked\nout(max)", 3, lambda f: f.checked_out, lambda f: f.max_checked_out
)
_PROCESSES = _with_max(
    "processes", "processes", "procs\n(max)", 7, lambda f: f.processes, lambda f: f.max_processes
)
_WAITING = _figure("waiting", "waiting", 1, lambda f: f.waiting)
_LONGEST_WAIT = _figure(
    "longest_wait_seconds", "longest\nwait", 4, lambda f: f.longest_wait_seconds, form=age
)
_LONGEST_HELD = _figure(
    "longest_held_seconds", "longest\nheld", 5, lambda f: f.longest_held_seconds, form=age
)
_CAPACITY = _figure("capacity", "capacity", _EXTRA, lambda f: f.capacity)
_CONNECT_RATE: Column[RatedRow] = _number(
    "connects_per_second",
    "connects\n/s",
    9,
    lambda row: row.connects_per_second,
    "con-\nnects/s",
    format.rate,
)
#: What every table of pools has of the last seconds and minutes.
_RECENT: Final[tuple[Column[RatedRow], ...]] = (
    _figure("recent_timeouts", "recent\ntimeouts", 6, lambda f: f.recent_timeouts, "time-\nouts"),
    _figure("checkouts_per_second", "checkouts\n/s", 8, lambda f: f.checkouts_per_second, "check-\nouts/s",
            format.rate),
    _CONNECT_RATE,
)  # fmt: skip
_TRENDS: Final = (
    _trend("rates", "checkouts/s\n5 minutes, max", 12, lambda samples: samples.rates,
           lambda f: f.checkouts_per_second),
    _trend("counts", "connections\n5 minutes, max", 15, lambda samples: samples.counts,
           lambda f: f.connections),
)  # fmt: skip
_P95: Final = (
    _figure("wait_p95_seconds", "wait\np95", 10, lambda f: f.wait_p95_seconds, form=duration),
    _figure("held_p95_seconds", "held\np95", 10, lambda f: f.held_p95_seconds, form=duration),
    _figure("connect_p95_seconds", "connect\np95", 14, lambda f: f.connect_p95_seconds, form=duration),
)
_MORE: Final = (
    _figure("idle", "idle", _EXTRA + 1, lambda f: f.idle),
    _figure("overflow", "overflow", _EXTRA + 2, lambda f: f.overflow),
    _figure("timeouts_total", "timeouts\ntotal", _EXTRA + 3, lambda f: f.timeouts_total),
    _figure("max_waiting", "waiting\nmax", _EXTRA + 4, lambda f: f.max_waiting),
    _figure("connect_errors_total", "connect\nerrors", _EXTRA + 5, lambda f: f.connect_errors_total),
    _figure("invalidations_total", "invali-\ndations", _EXTRA + 6, lambda f: f.invalidations_total),
    _figure("detached", "detached", _EXTRA + 8, lambda f: f.detached),
    _figure("checkouts_total", "checkouts\ntotal", _EXTRA + 9, lambda f: f.checkouts_total),
    _figure("wait_p50_seconds", "wait\np50", _EXTRA + 11, lambda f: f.wait_p50_seconds, form=duration),
    _figure("wait_p99_seconds", "wait\np99", _EXTRA + 12, lambda f: f.wait_p99_seconds, form=duration),
    _figure("held_p50_seconds", "held\np50", _EXTRA + 13, lambda f: f.held_p50_seconds, form=duration),
    _figure("held_p99_seconds", "held\np99", _EXTRA + 14, lambda f: f.held_p99_seconds, form=duration),
    _figure("connect_p50_seconds", "connect\np50", _EXTRA + 15, lambda f: f.connect_p50_seconds,
            form=duration),
    _figure("connect_p99_seconds", "connect\np99", _EXTRA + 16, lambda f: f.connect_p99_seconds,
            form=duration),
)  # fmt: skip
_REPORT = _figure(
    "last_report_seconds", "last\nreport", _EXTRA + 7, lambda f: f.last_report_seconds, form=age, ages=True
)
#: What every table of sums has behind the column that names its rows.
_SUMS: Final[tuple[Column[RatedRow], ...]] = (
    _PROCESSES, _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, *_RECENT,
    _bar(11), *_P95, *_TRENDS, _CAPACITY, *_MORE, _REPORT,
    _figure("pools", "pools", _EXTRA + 10, lambda f: f.pools),
)  # fmt: skip


# --- Tables ---------------------------------------------------------------------------------------

_PROGRAM_COLUMNS: Final[tuple[Column[JsonProgram | ProgramGroup | DatabaseUser], ...]] = (
    _name("host", "host", lambda row: row.host, 8, 6),
    _name("program", "program", lambda row: row.program, 11),
    _verdict(2),
    *_SUMS,
)
_HOST_COLUMNS: Final[tuple[Column[JsonHost], ...]] = (
    _name("host", "host", lambda row: row.host, 11),
    _verdict(2),
    _number("programs", "programs", 6, lambda row: row.programs),
    *_SUMS,
)
_DATABASE_COLUMNS: Final[tuple[Column[JsonDatabase], ...]] = (
    Column("server", "server", "server", 0, lambda row: Cell(_server(row)), _server, is_text=True, least=8,
           identifies=True),
    _path("database", "database", lambda row: row.database, 11),
    _verdict(2),
    _number("server_max", "server\nmax", 6, lambda row: row.server_max),
    _text("dialect", "dialect", 13, lambda row: row.dialect),
    _number("programs", "programs", 6, lambda row: row.programs),
    *_SUMS,
)  # fmt: skip
_PROCESS_COLUMNS: Final[tuple[Column[JsonProcess], ...]] = (
    _pid(), _host(8, 8), _program(11, 6), _verdict(2),
    _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, *_RECENT,
    _number("cpu_percent", "CPU", 9, lambda row: row.process.cpu_percent, form=format.percent),
    _number("rss_bytes", "memory", 10, lambda row: row.process.rss_bytes, form=format.size),
    _number("started_seconds", "running", 11, lambda row: row.process.started_seconds, form=age, ages=True),
    _text("user", "user", 12, lambda row: row.process.user, 8),
    _process("threads", "threads", 13, lambda process: process.threads),
    _process("open_files", "open\nfiles", 14, lambda process: process.open_files),
    _bar(15), *_P95, *_TRENDS, _CAPACITY, *_MORE[:4], _REPORT,
    _text("node", "node", _EXTRA + 8, lambda row: row.process.node, 8),
    _text("container", "container", _EXTRA + 8, lambda row: row.process.container, 12),
    _process("ppid", "parent", _EXTRA + 9, lambda process: process.ppid),
    _text("command", "command", _EXTRA + 10, lambda row: row.process.command, 20),
    *_MORE[4:],
)  # fmt: skip
_POOL_COLUMNS: Final[tuple[Column[JsonPool | PoolGroup], ...]] = (
    _path("pool", "pool", lambda row: row.pool.pool, 16),
    _host(8, 8), _program(11, 3), _pid(5), _verdict(2), _CONNECTIONS, _CHECKED_OUT,
    replace(_CAPACITY, rank=6),
    _WAITING, _LONGEST_WAIT, _LONGEST_HELD, *_RECENT, _bar(9), *_P95,
    _number("pool_size", "size", 16, lambda row: row.pool.pool_size),
    _number("max_overflow", "max\noverflow", 16, lambda row: row.pool.max_overflow),
    _number("timeout_seconds", "timeout", 17, lambda row: row.pool.timeout_seconds, form=age),
    _text("pool_class", "class", 18, lambda row: row.pool.pool_class),
    *_MORE,
)  # fmt: skip
_CONNECTION_COLUMNS: Final[tuple[Column[JsonConnection], ...]] = (
    Column("connection", "connection", "conn", 0, lambda row: Cell(count(row.connection)),
           lambda row: row.connection, identifies=True),
    _host(8, 8), _program(11, 7), _pid(7), _state(1),
    _number("held_seconds", "held", 2, lambda row: row.held_seconds, form=age),
    _path("call_site", "taken in", lambda row: row.call_site, 20, 3),
    _holder_now(6),
    _text("holder", "held by", 5, lambda row: row.holder, 8),
    _number("server_id", "server session", 4, lambda row: row.server_id, "server\nsession"),
    _number("age_seconds", "age", 11, lambda row: row.age_seconds, form=age, ages=True),
    _text("pool", "pool", 12, lambda row: row.pool.pool, 24),
)  # fmt: skip
_SITE_COLUMNS: Final[tuple[Column[CallSiteRow], ...]] = (
    _name("program", "program", lambda row: row.site.program, 11, 3),
    _name("host", "host", lambda row: row.site.host, 8, 6),
    _path("call_site", "line of code", lambda row: row.site.call_site, 20),
    Column("verdict", "verdict", "verdict", 2, lambda row: Cell(verdict_word(row)), _site_gravity, True),
    _estimated(_number("share", "share", 1, lambda row: row.site.share, form=_part)),
    _number("mean_held", "mean\nheld", 2, lambda row: row.site.mean_held, form=mean),
    _number("database_share", "in the\ndatabase", 3, lambda row: row.site.database_share, "in\nDB", _part),
    Column("where_shares", "what else it does", "what\nelse", 4, _what_else, _sorted_places, is_text=True,
           least=12, is_places=True),
    _estimated(_number("holds_per_second", "holds\n/s", 8, lambda row: row.site.holds_per_second, form=mean)),
    _number("mean_hold_seconds", "mean\nhold", 9, lambda row: row.site.mean_hold_seconds, form=duration),
    _number("mean_waiting_caused", "waiting\ncaused", 6, lambda row: row.site.mean_waiting_caused,
            "waits\ncaused", mean),
    _number("held_now", "held\nnow", 5, lambda row: row.site.held_now),
    _number("waiting_now", "wait\nhere", 7, lambda row: row.site.waiting_now),
    _number("longest_held_seconds", "longest\nheld", 10, lambda row: row.site.longest_held_seconds,
            "long-\nest", age),
    _number("usual_held_seconds", "usual\nhold", 11, lambda row: row.site.usual_held_seconds, "usual",
            duration),
    _number("in_database_now", "in the\nDB now", 12, lambda row: row.site.in_database_now, "in DB\nnow"),
    _estimated(_number("holds_total", "holds", 13, lambda row: row.site.holds_total)),
    _number("hold_seconds_total", "held\naltogether", 15, lambda row: row.site.hold_seconds_total, form=age),
    _number("mean_waiting", "mean\nwaiting", 16, lambda row: row.site.mean_waiting, form=mean),
    _number("processes", "processes", 14, lambda row: row.site.processes, "procs"),
)  # fmt: skip
_WAIT_COLUMNS: Final[tuple[Column[WaitRow], ...]] = (
    _program(8, 1), _host(8, 6),
    _path("blocker", "blocked by: who holds", lambda row: row.blocker, 20),
    _verdict(1),
    replace(_WAITING, short="wait"),
    replace(_LONGEST_WAIT, title="worst\nwait", short="worst\nwait", rank=3),
    _number("holds", "holds", 4, lambda row: row.holds),
    _number("held_seconds", "longest\nheld", 2, lambda row: row.held_seconds, "held", age),
    _path("pool", "pool", lambda row: row.pool.pool, 8, 7),
    _bar(9), _holder_now(8),
    _number("processes", "processes", 11, lambda row: row.processes, "procs"),
    _text("holder", "held by", 10, lambda row: row.holder, 12),
    *_P95[:2],
)  # fmt: skip
_NODE_COLUMNS: Final[tuple[Column[NodeRow], ...]] = (
    _name("node", "node", lambda row: row.node, 8),
    _text("role", "role", 1, lambda row: row.role),
    _text("address", "address", 5, lambda row: row.address, 15),
    _number("term", "term", 4, lambda row: row.term),
    _number("applied", "applied", 6, lambda row: row.applied),
    _number("lag", "lag", 2, lambda row: row.lag),
    _number("stale_seconds", "stale", 2, lambda row: row.stale_seconds, form=age),
    _number("processes", "processes", 8, lambda row: row.processes, "procs"),
    _number("consoles", "consoles", 9, lambda row: row.consoles),
    _number("uptime_seconds", "uptime", 7, lambda row: row.uptime_seconds, form=age),
    _text("version", "version", 10, lambda row: row.version),
    _text("problem", "problems", 3, lambda row: row.problem, 24),
)


def _of_figures(row: FigureRow) -> tuple[object, ...]:
    return row.verdict, row.state


def _of_process(row: ProcessPart) -> tuple[object, ...]:
    process = row.process
    return (
        row.verdict, row.state, process.host, process.program, process.pid, process.user, process.command,
        process.container, process.node,
    )  # fmt: skip


def _of_pool(row: JsonPool | PoolGroup | JsonConnection | WaitRow) -> tuple[object, ...]:
    pool = row.pool
    return (*_of_process(row), pool.pool, pool.database, pool.database_host, pool.dialect)


def _of_holder(row: JsonConnection | WaitRow) -> tuple[object, ...]:
    return (*_of_pool(row), row.server_id, row.holder, row.call_site, row.holder_site, row.holder_in)


def _figure_trouble(row: FigureRow) -> tuple[int, int]:
    return -(row.figures.waiting or 0), -(row.figures.connections or 0)


def _site_trouble(row: CallSiteRow) -> tuple[int, float]:
    return -(row.site.waiting_now or 0), -(row.site.mean_held or row.site.held_now or 0)


def _of_call_site(row: CallSiteRow) -> tuple[object, ...]:
    site = row.site
    return (site.host, site.program, site.call_site, site.verdict, *site.where_shares)


TABLES: Final[Mapping[Table, Definition[Any]]] = {
    "program": Definition(
        _PROGRAM_COLUMNS, "verdict", lambda row: (row.host, row.program, *_of_figures(row)), _figure_trouble
    ),
    "host": Definition(
        _HOST_COLUMNS, "verdict", lambda row: (row.host, *_of_figures(row)), _figure_trouble
    ),
    "database": Definition(
        _DATABASE_COLUMNS, "verdict",
        lambda row: (row.database, row.database_host, row.dialect, *_of_figures(row)), _figure_trouble,
    ),
    "process": Definition(_PROCESS_COLUMNS, "verdict", _of_process, _figure_trouble),
    "pool": Definition(_POOL_COLUMNS, "verdict", _of_pool, _figure_trouble),
    "connection": Definition(_CONNECTION_COLUMNS, "held_seconds", _of_holder),
    "site": Definition(
        _SITE_COLUMNS, "verdict", _of_call_site, _site_trouble
    ),
    "wait": Definition(
        _WAIT_COLUMNS, "waiting", lambda row: (*_of_holder(row), row.blocker), _figure_trouble
    ),
    "node": Definition(
        _NODE_COLUMNS, "node", lambda row: (row.node, row.role, row.address, row.problem)
    ),
}  # fmt: skip


def columns(table: Table) -> tuple[Column[Any], ...]:
    return TABLES[table].columns


def column(table: Table, key: str) -> Column[Any]:
    """Return the table's column of that key. Raises KeyError."""
    for candidate in TABLES[table].columns:
        if candidate.key == key:
            return candidate
    raise KeyError(key)


def arranged(
    table: Table, rows: Sequence[KeyedRow], sort: str, inverted: bool
) -> tuple[KeyedRow, ...]:  # fmt: skip
    """Return the rows in order: unknown values last; equals by how many wait, connections, name."""
    by, trouble = column(table, sort), TABLES[table].trouble
    values = [by.value(row) for _, row in rows]
    if by.is_text:
        values = [value.casefold() if isinstance(value, str) else value for value in values]
    # Sorting positions by lists keeps Python code out of the comparisons: there may be 100,000 rows.
    order: Iterable[int] = range(len(rows))
    if trouble is not None:
        order = sorted(order, key=[trouble(row) for _, row in rows].__getitem__)
    order = list(order)
    known = [at for at in order if values[at] is not None]
    known.sort(key=values.__getitem__, reverse=by.falls is not inverted)
    if len(known) < len(order):
        known += [at for at in order if values[at] is None]
    return tuple([rows[at] for at in known])


def matches(table: Table, row: TableRow, wanted: str) -> bool:
    """Whether a text is in anything that names the row or says how it is, in upper or lower case."""
    wanted = wanted.casefold()
    return any(value is not None and wanted in str(value).casefold() for value in TABLES[table].searched(row))

"""The rows of the JSON contract: what `connmon snapshot --format json` prints of each grouping. Pure.

This is the one definition. JSON, CSV, the tables, the console's columns and docs/json.rst derive from the
fields of these structs: `KEYS` has the keys of each grouping in their order, `cells` returns a row as a flat
dict.

- Parts that rows share (a process, a pool, the figures) are structs of their own; in JSON their fields stand
  in the row itself.
- Seconds are floats with three digits, quantiles and mean holds with nine; shares and means have four figures
  below 1; sizes are bytes. None is an unknown value, never 0.
- A field that only this reader knows is no part of the contract: `READER_ONLY`.
- The structs hold no reference cycles, so the garbage collector does not follow them (`gc=False`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias, Union

from msgspec import Struct, structs

from connmon.protocol.values import ConnectionState, Grouping, HolderIn, RowState, VerdictWord


class ProcessFields(Struct, frozen=True, kw_only=True, gc=False):
    """A process, and what it takes of its host. All are null where the row of the process did not come."""

    host: str | None = None
    """The host's name."""
    program: str | None = None
    """The program's name."""
    pid: int | None = None
    """The process id on its host, or in its container."""
    instance: str | None = None
    """Identifies the process, also after its pid is used again."""
    ppid: int | None = None
    """The process id of its parent."""
    node: str | None = None
    """The node that it reports to."""
    user: str | None = None
    """The account that it runs as."""
    command: str | None = None
    """The command line."""
    started_seconds: float | None = None
    """How long ago it started."""
    container: str | None = None
    """The id of its container. Null: none."""
    cpu_percent: float | None = None
    """CPU time in percent of one core. Null for a lost process, as the next three."""
    rss_bytes: int | None = None
    """Resident memory."""
    threads: int | None = None
    """Threads."""
    open_files: int | None = None
    """Open file descriptors."""


class PoolFields(Struct, frozen=True, kw_only=True, gc=False):
    """A pool, and where its database is. All are null where the row of the pool did not come."""

    pool: str | None = None
    """The engine's URL without password and query."""
    pool_class: str | None = None
    """The class of SQLAlchemy's pool. Null: the row sums several pools."""
    pool_size: int | None = None
    """The option of this name."""
    max_overflow: int | None = None
    """The option of this name; -1: no limit."""
    timeout_seconds: float | None = None
    """How long a checkout waits before it gives up."""
    dialect: str | None = None
    """The name of SQLAlchemy's dialect, such as mysql or postgresql."""
    database_host: str | None = None
    """The server's host; the path of a socket; several servers as HOST:PORT,HOST:PORT."""
    database_port: int | None = None
    """The server's port."""
    database: str | None = None
    """The name of the database."""
    pooler: bool | None = None
    """Whether a connection pooler (PgBouncer) stands in front of the server."""


class FigureFields(Struct, frozen=True, kw_only=True, gc=False):
    """The figures of a row, or of the totals.

    The present is null where all processes of the row are lost; maxima and totals are known.
    """

    processes: int | None = None
    """Processes that report."""
    max_processes: int | None = None
    """Most processes at once since first seen."""
    pools: int | None = None
    """Pools."""
    capacity: int | None = None
    """Connections that all pools may open. Null also where one of the pools has no limit."""
    connections: int | None = None
    """Open connections: idle, checked out and detached."""
    max_connections: int | None = None
    """Most open connections since first seen."""
    checked_out: int | None = None
    """Connections that the application holds, without detached ones."""
    max_checked_out: int | None = None
    """Most connections checked out since first seen."""
    idle: int | None = None
    """Connections in a pool that nobody holds."""
    overflow: int | None = None
    """Connections beyond pool_size."""
    detached: int | None = None
    """Connections taken out of their pool for good."""
    waiting: int | None = None
    """Threads and tasks that wait for a connection."""
    max_waiting: int | None = None
    """Most that waited at once since first seen."""
    longest_wait_seconds: float | None = None
    """The longest wait as of the last report, including those that have ended since the report before."""
    longest_held_seconds: float | None = None
    """How long the connection held longest had been held at the last report."""
    connects_total: int | None = None
    """Connections opened."""
    closes_total: int | None = None
    """Connections closed."""
    checkouts_total: int | None = None
    """Connections taken from a pool."""
    checkins_total: int | None = None
    """Checkouts that have ended, in whatever way."""
    invalidations_total: int | None = None
    """Connections invalidated."""
    timeouts_total: int | None = None
    """Checkouts that gave up waiting."""
    connect_errors_total: int | None = None
    """Connections that could not be opened."""
    checkouts_per_second: float | None = None
    """Between the last two reports. Null after a first report."""
    last_report_seconds: float | None = None
    """How long ago the last report came. Null: there was none yet."""
    wait_p50_seconds: float | None = None
    """What 50 % of the waits that ended in the last 1 to 2 minutes took at most. Null: there were none."""
    wait_p95_seconds: float | None = None
    """The same of 95 %."""
    wait_p99_seconds: float | None = None
    """The same of 99 %."""
    held_p50_seconds: float | None = None
    """The same of holds, from checkout to checkin."""
    held_p95_seconds: float | None = None
    """The same of 95 %."""
    held_p99_seconds: float | None = None
    """The same of 99 %."""
    connect_p50_seconds: float | None = None
    """The same of connects that succeeded."""
    connect_p95_seconds: float | None = None
    """The same of 95 %."""
    connect_p99_seconds: float | None = None
    """The same of 99 %."""
    left_out: int | None = None
    """Pools and connections that a limit leaves out. Null: none."""
    recent_timeouts: int | None = None
    """Checkouts that gave up in the last one to two minutes."""


class JsonProgram(Struct, frozen=True, kw_only=True, gc=False):
    """The processes of one program on one host."""

    host: str
    """The host's name."""
    program: str
    """The program's name."""
    state: RowState | None
    """connected, lost (all processes are silent for longer than the lease) or gone (all have ended)."""
    figures: FigureFields
    verdict: VerdictWord | None = None
    """The gravest verdict. Null: nothing is wrong."""
    verdict_reason: str | None = None
    """The reasons of all verdicts, in one line."""
    connects_per_second: float | None = None
    """Only the reader knows it."""


class JsonHost(Struct, frozen=True, kw_only=True, gc=False):
    """The processes of one host."""

    host: str
    """The host's name."""
    programs: int
    """Programs on it."""
    state: RowState | None
    """As of a program."""
    figures: FigureFields
    verdict: VerdictWord | None = None
    """The gravest verdict. Null: nothing is wrong."""
    verdict_reason: str | None = None
    """The reasons of all verdicts, in one line."""
    connects_per_second: float | None = None
    """Only the reader knows it."""


class JsonDatabase(Struct, frozen=True, kw_only=True, gc=False):
    """All pools of one database."""

    dialect: str
    """The name of SQLAlchemy's dialect, such as mysql or postgresql."""
    database_host: str | None
    """The server's host, as of a pool."""
    database_port: int | None
    """The server's port."""
    database: str | None
    """The name of the database."""
    programs: int
    """Programs with pools of it."""
    state: RowState | None
    """As of a program."""
    figures: FigureFields
    verdict: VerdictWord | None = None
    """The gravest verdict. Null: nothing is wrong."""
    verdict_reason: str | None = None
    """The reasons of all verdicts, in one line."""
    connects_per_second: float | None = None
    """Only the reader knows it, as the next three."""
    server: str | None = None
    """The server whose maximum this reader was given."""
    server_max: int | None = None
    """That maximum, in connections."""
    server_capacity: int | None = None
    """What all pools of that server may open together."""


class JsonProcess(Struct, frozen=True, kw_only=True, gc=False):
    """One process."""

    process: ProcessFields
    state: RowState | None
    """connected, lost (silent for longer than the lease) or gone (it has ended)."""
    figures: FigureFields
    verdict: VerdictWord | None = None
    """The gravest verdict. Null: nothing is wrong."""
    verdict_reason: str | None = None
    """The reasons of all verdicts, in one line."""
    connects_per_second: float | None = None
    """Only the reader knows it."""


class JsonPool(Struct, frozen=True, kw_only=True, gc=False):
    """One pool of one process."""

    process: ProcessFields
    pool: PoolFields
    state: RowState | None
    """As of its process."""
    figures: FigureFields
    verdict: VerdictWord | None = None
    """The gravest verdict. Null: nothing is wrong."""
    verdict_reason: str | None = None
    """The reasons of all verdicts, in one line."""
    connects_per_second: float | None = None
    """Only the reader knows it."""


class JsonConnection(Struct, frozen=True, kw_only=True, gc=False):
    """One open connection."""

    process: ProcessFields
    pool: PoolFields
    connection: int
    """Its number within its process."""
    server_id: int | None
    """The session as the server lists it. Null: the driver does not know it, or a pooler made it up."""
    state: ConnectionState | None
    """idle, checked_out or detached. Null: its process is lost."""
    age_seconds: float | None
    """How long ago it was opened."""
    held_seconds: float | None
    """How long it had been held at its process's last report. Null: nobody holds it, or it is unknown."""
    holder: str | None
    """The thread, task or greenlet that holds it, or held it last."""
    call_site: str | None
    """The line of code that took it."""
    stack: tuple[str, ...]
    """The calls that led there, the innermost first."""
    holder_in: HolderIn | None
    """Where its holder was when last looked at: database, application, waiting, elsewhere or ended."""
    holder_site: str | None
    """The line of code where its holder is now."""
    verdict: VerdictWord | None = None
    """LEAK or BLOCKED. Null: neither."""


class JsonCallSite(Struct, frozen=True, kw_only=True, gc=False):
    """A line of code of one program on one host that takes connections."""

    host: str
    """The host's name."""
    program: str
    """The program's name."""
    call_site: str
    """The line of code, and its function."""
    processes: int
    """Processes that have reported it and are not lost."""
    held_now: int | None
    """Connections taken there that are held. Null, as the next two: no process reports it any more."""
    in_database_now: int | None
    """Of these, connections whose holder waits for the database."""
    waiting_now: int | None
    """Threads and tasks that wait there for a connection."""
    holds_total: int
    """Holds that have ended, of ended processes too."""
    hold_seconds_total: float
    """How long connections taken there were held, present holds included. The call sites of a program sum to
    all that it held."""
    database_seconds_total: float | None
    """Of these, the time in which the holder was in the database. Null: nobody has looked."""
    share: float | None
    """Its part of what its program on this host held in the last one to two minutes, from 0 to 1. Null:
    nothing was held."""
    mean_held: float | None
    """Connections that it held on average in that time. Null, as the next five: not known."""
    database_share: float | None
    """The part of that time in which the holders were in the database, from 0 to 1."""
    holds_per_second: float | None
    """Holds that ended in that time, per second."""
    mean_hold_seconds: float | None
    """How long a hold took in that time, on average. Null also where none has ended."""
    mean_waiting: float | None
    """Threads and tasks that waited there for a connection, on average over that time."""
    mean_waiting_caused: float | None
    """How many waited for the pool because of its holds, on average over that time: while somebody waits,
    each call site causes its part of what is held."""
    where_shares: dict[str, float]
    """Where the holders were in that time, from 0 to 1: database, waiting, own code, or what the application
    has called. Empty: not known."""
    where_seconds_total: dict[str, float]
    """The same in seconds since first seen."""
    waited_seconds_total: float | None
    """How long threads and tasks have waited there for a connection."""
    waiting_caused_seconds_total: float | None
    """How long others have waited for the pool because of its holds."""
    longest_held_seconds: float | None
    """How long the connection held longest had been held at the last report."""
    usual_held_seconds: float | None
    """What 95 % of the latest holds took at most; of several processes the largest."""
    estimated: bool
    """Whether only a sample of the checkouts is known by its line: holds and seconds are estimated then."""
    verdict: VerdictWord | None = None
    """The gravest verdict of its connections, or SATURATED for the line that fills a pool. Null: none."""
    verdict_reason: str | None = None
    """Its reason, in one line."""
    stack: tuple[str, ...] = ()
    """A recent stack of a holder, the innermost first. Empty: none is known."""


class JsonTotals(Struct, frozen=True, kw_only=True, gc=False):
    """The figures of everything, the same in every grouping."""

    hosts: int
    """Hosts."""
    programs: int
    """Programs, counted on each host."""
    figures: FigureFields
    verdicts: dict[VerdictWord, int]
    """How many programs have each verdict as their gravest."""


class JsonHead(Struct, frozen=True, kw_only=True, gc=False):
    """The document without its rows: who answered, and the totals."""

    service: str
    """The service of the config."""
    node: str
    """The node that answered."""
    leader: str | None
    """The leader that it knows. Null: none."""
    quorum: bool
    """Whether it hears from a majority of the nodes."""
    stale_seconds: float
    """How long its replica has stood still."""
    totals: JsonTotals
    """The figures of everything."""


JsonRow: TypeAlias = Union[
    JsonProgram, JsonHost, JsonDatabase, JsonProcess, JsonPool, JsonConnection, JsonCallSite
]  # fmt: skip

ROW_TYPES: Final[Mapping[Grouping, type[Any]]] = {
    "program": JsonProgram,
    "host": JsonHost,
    "database": JsonDatabase,
    "process": JsonProcess,
    "pool": JsonPool,
    "connection": JsonConnection,
    "site": JsonCallSite,
}

#: Fields that are no part of the contract: what only this reader knows.
READER_ONLY: Final = frozenset({"connects_per_second", "server", "server_max", "server_capacity"})
PARTS: Final[Mapping[str, type[Any]]] = {
    "process": ProcessFields, "pool": PoolFields, "figures": FigureFields,
}  # fmt: skip
#: Figures that a grouping's rows are without: a process is one process, a pool one pool.
WITHOUT: Final[Mapping[Grouping, frozenset[str]]] = {
    "process": frozenset({"processes", "max_processes"}),
    "pool": frozenset({"processes", "max_processes", "pools"}),
}


def _paths(by: Grouping) -> Iterator[tuple[str, str]]:
    """Yield each key of a grouping's rows with the path of its attribute."""
    for name in ROW_TYPES[by].__struct_fields__:
        # JsonPool.pool is a part; in JSON "pool" is a field of that part.
        part = PARTS.get(name)
        if part is not None:
            for field in part.__struct_fields__:
                if name != "figures" or field not in WITHOUT.get(by, ()):
                    yield field, f"{name}.{field}"
        elif name not in READER_ONLY:
            yield name, name


_PATHS: Final = {by: dict(_paths(by)) for by in ROW_TYPES}
#: The keys of a row of each grouping, in the order of JSON and CSV.
KEYS: Final[Mapping[Grouping, tuple[str, ...]]] = {by: tuple(paths) for by, paths in _PATHS.items()}
#: The keys of a row's figures, in the order of JSON and CSV.
FIGURES: Final[tuple[str, ...]] = FigureFields.__struct_fields__
#: Figures of the present, which are unknown of a lost process. Counts of processes, maxima, totals and the
#: time of the last report are known.
PRESENT: Final = tuple(
    key
    for key in FIGURES
    if not key.startswith("max_")
    and not key.endswith("_total")
    and key not in ("processes", "last_report_seconds")
)
_GETTERS: Final = {ROW_TYPES[by]: (KEYS[by], attrgetter(*paths.values())) for by, paths in _PATHS.items()}


def cells(row: JsonRow) -> dict[str, Any]:
    """Return the row as a flat dict, as in JSON."""
    keys, values = _GETTERS[type(row)]
    flat = dict(zip(keys, values(row), strict=True))
    if "stack" in flat:
        flat["stack"] = list(flat["stack"])
    return flat


class Document(NamedTuple):
    """A whole answer: who answered, the totals, and the rows of one grouping."""

    by: Grouping
    head: JsonHead
    rows: Sequence[JsonRow]

    def flat(self) -> dict[str, Any]:
        """Return the document of the JSON contract."""
        return {**head_cells(self.head), "rows": [cells(row) for row in self.rows]}


def head_cells(head: JsonHead) -> dict[str, Any]:
    """Return the document of the JSON contract without its rows."""
    totals = head.totals
    return {
        "service": head.service,
        "node": head.node,
        "leader": head.leader,
        "quorum": head.quorum,
        "stale_seconds": head.stale_seconds,
        "totals": {
            "hosts": totals.hosts,
            "programs": totals.programs,
            **structs.asdict(totals.figures),
            "verdicts": totals.verdicts,
        },
    }

"""The rows of the JSON contract: what `connmon snapshot --format json` prints of each grouping. Pure.

This is the one definition. JSON, CSV, the tables, the console's columns and docs/json.rst derive from the
fields of these structs: `KEYS` has the keys of each grouping in their order, `cells` returns a row as a flat
dict.

- Parts that rows share (a process, a pool, the figures) are structs of their own; in JSON their fields stand
  in the row itself.
- Seconds are floats with three digits, quantiles with nine; sizes are bytes. None is an unknown value, never
  0.
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
    """What identifies a process, and what it takes of its host."""

    host: str | None = None
    program: str | None = None
    pid: int | None = None
    instance: str | None = None
    ppid: int | None = None
    node: str | None = None
    """The node that it reports to."""
    user: str | None = None
    command: str | None = None
    started_seconds: float | None = None
    container: str | None = None
    cpu_percent: float | None = None
    rss_bytes: int | None = None
    threads: int | None = None
    open_files: int | None = None


class PoolFields(Struct, frozen=True, kw_only=True, gc=False):
    """What identifies a pool, and where its server is."""

    pool: str | None = None
    """The engine's URL without password and query."""
    pool_class: str | None = None
    """None: the row sums several pools."""
    pool_size: int | None = None
    max_overflow: int | None = None
    timeout_seconds: float | None = None
    dialect: str | None = None
    database_host: str | None = None
    database_port: int | None = None
    database: str | None = None
    pooler: bool | None = None


class FigureFields(Struct, frozen=True, kw_only=True, gc=False):
    """The figures of a row, whatever it groups."""

    processes: int | None = None
    max_processes: int | None = None
    pools: int | None = None
    capacity: int | None = None
    """None also where one of the pools has no limit."""
    connections: int | None = None
    max_connections: int | None = None
    checked_out: int | None = None
    max_checked_out: int | None = None
    idle: int | None = None
    overflow: int | None = None
    detached: int | None = None
    waiting: int | None = None
    max_waiting: int | None = None
    longest_wait_seconds: float | None = None
    longest_held_seconds: float | None = None
    connects_total: int | None = None
    closes_total: int | None = None
    checkouts_total: int | None = None
    checkins_total: int | None = None
    invalidations_total: int | None = None
    timeouts_total: int | None = None
    connect_errors_total: int | None = None
    checkouts_per_second: float | None = None
    last_report_seconds: float | None = None
    wait_p50_seconds: float | None = None
    wait_p95_seconds: float | None = None
    wait_p99_seconds: float | None = None
    held_p50_seconds: float | None = None
    held_p95_seconds: float | None = None
    held_p99_seconds: float | None = None
    connect_p50_seconds: float | None = None
    connect_p95_seconds: float | None = None
    connect_p99_seconds: float | None = None
    left_out: int | None = None
    """Pools and connections that a limit leaves out. None: none."""
    recent_timeouts: int | None = None


class JsonProgram(Struct, frozen=True, kw_only=True, gc=False):
    """A row of `--by program`: the processes of one program on one host."""

    host: str
    program: str
    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None = None
    verdict_reason: str | None = None
    connects_per_second: float | None = None


class JsonHost(Struct, frozen=True, kw_only=True, gc=False):
    """A row of `--by host`."""

    host: str
    programs: int
    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None = None
    verdict_reason: str | None = None
    connects_per_second: float | None = None


class JsonDatabase(Struct, frozen=True, kw_only=True, gc=False):
    """A row of `--by database`: all pools of one database."""

    dialect: str
    database_host: str | None
    database_port: int | None
    database: str | None
    programs: int
    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None = None
    verdict_reason: str | None = None
    connects_per_second: float | None = None
    server: str | None = None
    """The server whose maximum this reader was given."""
    server_max: int | None = None
    server_capacity: int | None = None
    """What all pools of that server may open together."""


class JsonProcess(Struct, frozen=True, kw_only=True, gc=False):
    """A row of `--by process`."""

    process: ProcessFields
    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None = None
    verdict_reason: str | None = None
    connects_per_second: float | None = None


class JsonPool(Struct, frozen=True, kw_only=True, gc=False):
    """A row of `--by pool`: one pool of one process."""

    process: ProcessFields
    pool: PoolFields
    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None = None
    verdict_reason: str | None = None
    connects_per_second: float | None = None


class JsonConnection(Struct, frozen=True, kw_only=True, gc=False):
    """A row of `--by connection`: one open connection."""

    process: ProcessFields
    pool: PoolFields
    connection: int
    server_id: int | None
    state: ConnectionState | None
    age_seconds: float | None
    held_seconds: float | None
    """As of the last report of its process. None: nobody holds it, or that is not known."""
    holder: str | None
    call_site: str | None
    stack: tuple[str, ...]
    """The innermost frame first."""
    holder_in: HolderIn | None
    holder_site: str | None
    verdict: VerdictWord | None = None


class JsonCallSite(Struct, frozen=True, kw_only=True, gc=False):
    """A row of `--by site`: a line of code of one program on one host."""

    host: str
    program: str
    call_site: str
    processes: int
    held_now: int | None
    in_database_now: int | None
    waiting_now: int | None
    holds_total: int
    hold_seconds_total: float
    database_seconds_total: float | None
    share: float | None
    longest_held_seconds: float | None
    usual_held_seconds: float | None
    estimated: bool
    verdict: VerdictWord | None = None
    verdict_reason: str | None = None


class JsonTotals(Struct, frozen=True, kw_only=True, gc=False):
    """The figures of everything together, in every grouping."""

    hosts: int
    programs: int
    figures: FigureFields
    verdicts: dict[VerdictWord, int]
    """How many programs have each verdict as their gravest."""


class JsonHead(Struct, frozen=True, kw_only=True, gc=False):
    """The document without its rows: who answered, and the totals."""

    service: str
    node: str
    leader: str | None
    quorum: bool
    stale_seconds: float
    """For how long the node's replica has stood still."""
    totals: JsonTotals


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
_PARTS: Final[Mapping[str, type[Any]]] = {
    "process": ProcessFields, "pool": PoolFields, "figures": FigureFields,
}  # fmt: skip
#: Figures that a grouping's rows are without: a process is one process, a pool one pool.
_WITHOUT: Final[Mapping[Grouping, frozenset[str]]] = {
    "process": frozenset({"processes", "max_processes"}),
    "pool": frozenset({"processes", "max_processes", "pools"}),
}


def _paths(by: Grouping) -> Iterator[tuple[str, str]]:
    """Yield each key of a grouping's rows with the path of its attribute."""
    for name in ROW_TYPES[by].__struct_fields__:
        # JsonPool.pool is a part; in JSON "pool" is a field of that part.
        part = _PARTS.get(name)
        if part is not None:
            for field in part.__struct_fields__:
                if name != "figures" or field not in _WITHOUT.get(by, ()):
                    yield field, f"{name}.{field}"
        elif name not in READER_ONLY:
            yield name, name


_PATHS: Final = {by: dict(_paths(by)) for by in ROW_TYPES}
#: The keys of a row of each grouping, in the order of JSON and CSV.
KEYS: Final[Mapping[Grouping, tuple[str, ...]]] = {by: tuple(paths) for by, paths in _PATHS.items()}
#: The keys of a row's figures, in the order of JSON and CSV.
FIGURES: Final[tuple[str, ...]] = FigureFields.__struct_fields__
#: Figures of the last one to two minutes: half, 95 % and 99 % of the waits, holds and connects that ended
#: took at most this long. None: there were none.
QUANTILES: Final = tuple(key for key in FIGURES if "_p50_" in key or "_p95_" in key or "_p99_" in key)
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


def typed(by: Grouping, flat: Mapping[str, Any]) -> Any:
    """Return the row of a flat dict as in JSON. A key that the dict lacks is an unknown value."""
    parts: dict[str, Any] = {}
    for name in ROW_TYPES[by].__struct_fields__:
        part = _PARTS.get(name)
        if part is not None:
            parts[name] = part(**{field: flat.get(field) for field in part.__struct_fields__})
        elif name == "stack":
            parts[name] = tuple(flat.get(name) or ())
        else:
            parts[name] = flat.get(name)
    return ROW_TYPES[by](**parts)


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

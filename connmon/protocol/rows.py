"""The rows that a node answers with, one struct for each grouping. Pure.

- Structs are encoded as arrays. A new field goes to the end and has a default.
- A row carries times of the replica's own clock (`*_since`, `reported`), so that a row changes only when
  something happened. The age of a start or a report is the answer's `clock`, plus for how long that has
  stood still (`stale`), minus its time. A hold or a wait may have ended since the last report: how long it
  lasted is `reported` minus its time.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, Union

from msgspec import Struct

from connmon.protocol.reports import PoolInfo, Process, ServerAddress, Usage
from connmon.protocol.values import (
    ConnectionState,
    Count,
    Gauges,
    HolderIn,
    Number,
    RowState,
    Seconds,
    Totals,
    VerdictWord,
)


class Quantiles(NamedTuple):
    """What half, 95 % and 99 % of something took at most, lately, within `histogram.ERROR`. None: there was
    nothing."""

    p50: Seconds | None = None
    p95: Seconds | None = None
    p99: Seconds | None = None


class Verdict(Struct, frozen=True, array_like=True):
    """One thing that is wrong with a row."""

    word: VerdictWord
    reason: str
    """One line without the word: what was seen, in figures as of the last report, and what to do."""


class Figures(Struct, frozen=True, array_like=True):
    """The numbers of one row, whatever it groups."""

    processes: Count
    lost_processes: Count
    gauges: Gauges
    totals: Totals
    max_processes: Count
    max_connections: Count
    max_checked_out: Count
    max_waiting: Count
    longest_wait: Seconds
    """The longest wait that the latest reports tell of, those that have ended included."""
    waiting_since: float | None
    """By the replica's clock, as all times of rows; may be negative: before that clock began. `reported`
    minus this is how long somebody had waited at the last report of the process, and no more is known."""
    held_since: float | None
    """The same of the connection held longest. (Of several processes each is taken as of its own report.)"""
    checkouts_per_second: Number | None
    """Between the last two reports of each process. None: not known, nobody has sent a second one yet."""
    reported: Seconds | None
    """When the latest report was applied."""
    waits: Quantiles = Quantiles()
    """Of those that ended in the last one to two minutes, as the two that follow; see `Times`."""
    holds: Quantiles = Quantiles()
    connects: Quantiles = Quantiles()
    left_out: Count = 0
    """Pools and connections without a row of their own, since a limit leaves them out."""
    verdicts: tuple[Verdict, ...] = ()
    """What is wrong, the gravest first. Of what sums pools: what is wrong with its gravest pool."""
    recent_timeouts: Count = 0
    """Checkouts that gave up within the last one to two minutes."""

    @property
    def known(self) -> bool:
        """Whether the present is known: not where there are processes, and all of them are lost."""
        return self.processes > 0 or not self.lost_processes


class ProgramRow(Struct, frozen=True, array_like=True, tag="program"):
    host: str
    program: str
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("program", self.host, self.program)


class HostRow(Struct, frozen=True, array_like=True, tag="host"):
    host: str
    programs: int
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("host", self.host)


class DatabaseRow(Struct, frozen=True, array_like=True, tag="database"):
    dialect: str
    database_host: str | None
    database_port: int | None
    database: str | None
    programs: int
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return database_key(self)


class ProcessRow(Struct, frozen=True, array_like=True, tag="process"):
    instance: str
    node: str
    """The node that it reports to."""
    process: Process
    started: float | None
    """By the replica's clock; may be negative: before the replica's clock began."""
    usage: Usage
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("process", self.instance)


class PoolRow(Struct, frozen=True, array_like=True, tag="pool"):
    instance: str
    number: int
    info: PoolInfo
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("pool", self.instance, self.number)


class ConnectionRow(Struct, frozen=True, array_like=True, gc=False, tag="connection"):
    instance: str
    number: int
    pool: int
    server_id: int | None
    state: ConnectionState
    opened: float
    """By the replica's clock; may be negative."""
    held_since: float | None
    """The same. How long it was held is known as of its process's last report, `Figures.reported`."""
    holder: str | None
    call_site: str | None
    stack: tuple[str, ...]
    server: ServerAddress | None = None
    """Where it is connected. None: where its pool is."""
    holder_in: HolderIn | None = None
    holder_site: str | None = None
    verdict: VerdictWord | None = None
    """LEAK or BLOCKED, where it is this connection that is."""

    @property
    def key(self) -> RowKey:
        return ("connection", self.instance, self.number)


class SiteRow(Struct, frozen=True, array_like=True, tag="site"):
    """One line of the application: the sum over the processes of one program on one host."""

    host: str
    program: str
    call_site: str
    processes: Count
    """Those that have reported this line, and are not lost."""
    held: Count
    in_database: Count
    """Of these, connections whose holder was in the database when it was last looked at."""
    held_since: float | None
    """`reported` minus this is how long the connection held longest had been held at the last report."""
    waiting: Count
    holds: Count
    """Holds that have ended."""
    hold_ms: Count
    usual: Seconds | None
    """The largest of the processes' `SiteReport.usual`."""
    estimated: bool
    """Whether only a sample of the checkouts is known by its line."""
    reported: Seconds | None
    verdict: VerdictWord | None = None
    """LEAK or BLOCKED, where that is of a connection that this line took; SATURATED, where it holds most of
    what is checked out of a pool that is."""
    reason: str | None = None
    """Of the verdict, one line."""

    @property
    def key(self) -> RowKey:
        return ("site", self.host, self.program, self.call_site)


Row: TypeAlias = Union[ProgramRow, HostRow, DatabaseRow, ProcessRow, PoolRow, ConnectionRow, SiteRow]
RowKey: TypeAlias = tuple[Union[str, int, None], ...]
"""The row's table, then what identifies it there."""


def database_key(where: DatabaseRow | PoolInfo) -> RowKey:
    """Return the key of the database row that a pool belongs to."""
    return (
        "database", where.dialect, where.database_host, where.database_port, where.database,
    )  # fmt: skip


class Rows(Struct, frozen=True, array_like=True, tag="rows"):
    """The answer to a query, in one or several frames; `more` says that another follows.

    The header (everything but rows, removed and more) is the same in all frames of an answer.
    """

    service: str
    node: str
    leader: str | None
    quorum: bool
    stale: Seconds
    """Seconds since the node's replica last moved."""
    epoch: str
    version: Count
    clock: Seconds
    complete: bool
    """The rows are all there are, and replace what the reader has."""
    hosts: Count
    programs: Count
    totals: Figures
    rows: tuple[Row, ...] = ()
    removed: tuple[RowKey, ...] = ()
    more: bool = False
    left_out: Count = 0
    """Rows that would have been in the answer to `waits`, but for its limits."""
    verdicts: tuple[tuple[VerdictWord, Count], ...] = ()
    """How many programs of the fleet have each verdict as their gravest, the gravest first."""

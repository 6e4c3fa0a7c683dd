"""The rows that a node answers with, one struct for each grouping. Pure.

- Structs are encoded as arrays. A new field goes to the end and has a default.
- A row carries times of the replica's own clock (`*_since`, `reported`), so that it changes only when
  something happens. They may be negative: before that clock began. The age of a start or a report is the
  answer's `clock`, plus how long that clock has stood still (`stale`), minus its time. A hold or a wait may
  have ended since the last report, so it lasted for `reported` minus its time.
- No row refers to itself, so the garbage collector does not follow them (`gc=False`).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, Union

from msgspec import Struct

from connmon.protocol.reports import HoldProfile, PoolInfo, Process, ServerAddress, Usage
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
    """Seconds that half, 95 % and 99 % of recent durations took at most, within `histogram.ERROR_FRACTION`.

    None: there were no durations.
    """

    p50: Seconds | None = None
    p95: Seconds | None = None
    p99: Seconds | None = None


class Verdict(Struct, frozen=True, array_like=True, gc=False):
    """A problem of a row."""

    word: VerdictWord
    reason: str
    """One line without the word: figures as of the last report, and what to do."""


class Figures(Struct, frozen=True, array_like=True, gc=False):
    """The figures of one row, whatever it groups."""

    processes: Count
    lost_processes: Count
    gauges: Gauges
    totals: Totals
    max_processes: Count
    max_connections: Count
    max_checked_out: Count
    max_waiting: Count
    longest_wait: Seconds
    """The longest wait in the latest reports, including waits that have ended."""
    waiting_since: float | None
    """`reported` minus this is how long the longest wait had lasted at the last report."""
    held_since: float | None
    """The same of the connection held longest. Of several processes each counts as of its own report."""
    checkouts_per_second: Number | None
    """Between the last two reports of each process. None: no process has sent a second one yet."""
    reported: Seconds | None
    """The time at which the latest report was applied."""
    waits: Quantiles = Quantiles()
    """Of waits that ended in the last one to two minutes. The next two: the same of holds and connects."""
    holds: Quantiles = Quantiles()
    connects: Quantiles = Quantiles()
    left_out: Count = 0
    """Pools and connections without a row of their own, because a limit leaves them out."""
    verdicts: tuple[Verdict, ...] = ()
    """The gravest first. A row that sums pools has the verdicts of its gravest pools."""
    recent_timeouts: Count = 0
    """Checkouts that gave up within the last one to two minutes."""

    @property
    def known(self) -> bool:
        """Whether the present is known: not if there are processes, and all of them are lost."""
        return self.processes > 0 or not self.lost_processes


class ProgramRow(Struct, frozen=True, array_like=True, gc=False, tag="program"):
    host: str
    program: str
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("program", self.host, self.program)


class HostRow(Struct, frozen=True, array_like=True, gc=False, tag="host"):
    host: str
    programs: int
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("host", self.host)


class DatabaseRow(Struct, frozen=True, array_like=True, gc=False, tag="database"):
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


class ProcessRow(Struct, frozen=True, array_like=True, gc=False, tag="process"):
    instance: str
    node: str
    """The node that it reports to."""
    process: Process
    started: float | None
    """By the replica's clock. None: unknown."""
    usage: Usage
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("process", self.instance)


class PoolRow(Struct, frozen=True, array_like=True, gc=False, tag="pool"):
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
    """By the replica's clock."""
    held_since: float | None
    """The same. It was held until the last report of its process, `Figures.reported`, at least."""
    holder: str | None
    call_site: str | None
    stack: tuple[str, ...]
    server: ServerAddress | None = None
    """Its server. None: that of its pool."""
    holder_in: HolderIn | None = None
    holder_site: str | None = None
    verdict: VerdictWord | None = None
    """LEAK or BLOCKED, if it is this connection."""

    @property
    def key(self) -> RowKey:
        return ("connection", self.instance, self.number)


class SiteRow(Struct, frozen=True, array_like=True, gc=False, tag="site"):
    """One call site: the sum over the processes of one program on one host."""

    host: str
    program: str
    call_site: str
    processes: Count
    """Processes that have reported this call site and are not lost."""
    held: Count
    in_database: Count
    """Of these, connections whose holder was in the database when last looked at."""
    held_since: float | None
    """Of the connection held longest, as in `Figures`."""
    waiting: Count
    holds: Count
    """Holds that have ended."""
    hold_ms: Count
    usual: Seconds | None
    """The largest of the processes' `SiteReport.usual`."""
    estimated: bool
    """Whether only a sample of the checkouts has a known call site."""
    reported: Seconds | None
    verdict: VerdictWord | None = None
    """LEAK or BLOCKED of a connection taken here; SATURATED if connections taken here are most of those that
    are checked out of a saturated pool."""
    reason: str | None = None
    """The verdict's reason, in one line."""
    profile: HoldProfile | None = None
    """Since first seen, ended processes included. None: no process has reported one."""
    recent: HoldProfile | None = None
    """The same of the last one to two minutes."""
    recent_seconds: Seconds = 0.0
    """What `recent` covers."""
    share: float | None = None
    """Its part of `recent.held_ms` of its program on this host: 0 to 1. None: nothing was held."""
    stack: tuple[str, ...] = ()
    """A recent stack of a holder, the innermost frame first. Empty: none is known."""

    @property
    def key(self) -> RowKey:
        return ("site", self.host, self.program, self.call_site)


Row: TypeAlias = Union[ProgramRow, HostRow, DatabaseRow, ProcessRow, PoolRow, ConnectionRow, SiteRow]
RowKey: TypeAlias = tuple[Union[str, int, None], ...]
"""The row's grouping, then what identifies the row there."""


def database_key(where: DatabaseRow | PoolInfo) -> RowKey:
    """Return the key of the database row that a pool belongs to."""
    return (
        "database", where.dialect, where.database_host, where.database_port, where.database,
    )  # fmt: skip


class Rows(Struct, frozen=True, array_like=True, tag="rows"):
    """The answer to a query, in one or several frames; `more`: another frame follows.

    The header (all fields but rows, removed and more) is the same in all frames of an answer.
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
    """The rows are all rows, and replace those of the reader. Otherwise they are those that have changed."""
    hosts: Count
    programs: Count
    totals: Figures
    rows: tuple[Row, ...] = ()
    removed: tuple[RowKey, ...] = ()
    more: bool = False
    left_out: Count = 0
    """Rows that the limits of an answer to `waits` leave out."""
    verdicts: tuple[tuple[VerdictWord, Count], ...] = ()
    """How many programs of the fleet have each verdict as their gravest; the gravest first."""

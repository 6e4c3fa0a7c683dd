"""What the state keeps of a process, a pool, a connection, a call site; as in a checkpoint. Pure.

- Times are seconds of the replica's clock. Versions are those at which a record last changed.
- Counts are at most `LARGEST_COUNT`, so that sums over the pools of a process stay below `LARGEST`.
- A record has the field names of its row. Its fields are in the order of the checkpoint: a new field goes to
  the end and has a default.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from msgspec import Struct

from connmon.cluster.state.hold_profiles import (
    NO_PROFILES_PACKED,
    HoldSum,
    PackedProfiles,
    Profiles,
)
from connmon.cluster.state.times import (
    NO_TIMES,
    NO_TIMES_PACKED,
    PackedTimes,
    times_since,
    unpacked,
    window_of,
)
from connmon.protocol.reports import HoldProfile, PoolInfo, Process, ServerAddress, SiteReport, Usage
from connmon.protocol.rows import RowKey
from connmon.protocol.values import ConnectionState, Gauges, HolderIn, Peaks, RowState, Times, Totals, Vector

#: The largest count taken from a report: 280 years of 1,000 checkouts a second; or, in milliseconds, 100 days
#: of 1,000 connections that are held all the time.
LARGEST_COUNT: Final = 2**43

NO_GAUGES: Final = Gauges()
NO_TOTALS: Final = Totals()


def bounded(vector: Vector) -> Vector:
    """Return the vector with no count above `LARGEST_COUNT`."""
    if max(vector) <= LARGEST_COUNT:
        return vector
    return type(vector)(*[min(count, LARGEST_COUNT) for count in vector])


class ConnectionRecord(Struct, array_like=True, frozen=True, gc=False):
    """One connection as last reported. It holds plain values only, so it needs no garbage collection."""

    number: int
    pool: int
    server_id: int | None
    state: ConnectionState
    opened: float
    held_since: float | None
    holder: str | None
    call_site: str | None
    stack: tuple[str, ...]
    version: int
    server: ServerAddress | None = None
    holder_in: HolderIn | None = None
    holder_site: str | None = None


class CallSiteRecord(Struct, array_like=True, frozen=True, gc=False):
    """One call site that takes connections from one pool, as last reported."""

    waiting: int
    holds: int
    hold_ms: int
    usual: float | None
    share: float
    profile: HoldProfile | None = None
    """None: not reported, or there was no room for it."""

    @classmethod
    def of(cls, report: SiteReport, profile: HoldProfile | None) -> CallSiteRecord:
        """Return what is kept of a report. `profile`: the part of its profile that fits."""
        waiting, holds, hold_ms = report.waiting, report.holds, report.hold_ms
        # Not by min(), which takes twice as long.
        return cls(
            waiting=waiting if waiting <= LARGEST_COUNT else LARGEST_COUNT,
            holds=holds if holds <= LARGEST_COUNT else LARGEST_COUNT,
            hold_ms=hold_ms if hold_ms <= LARGEST_COUNT else LARGEST_COUNT,
            usual=report.usual,
            share=report.share,
            profile=profile,
        )


class Recent(NamedTuple):
    """Earlier values of two of a pool's totals: its timeouts, and the milliseconds that its connects took."""

    window: int
    """The window in which one of these last grew."""
    mark: tuple[int, int]
    """Their values before that window."""
    mark_before: tuple[int, int]
    """Their values before the window before that one."""


class PoolRecord(Struct, array_like=True):
    """One pool as last reported, with its maxima."""

    number: int
    info: PoolInfo
    database: RowKey
    gauges: Gauges = NO_GAUGES
    totals: Totals = NO_TOTALS
    max_connections: int = 0
    max_checked_out: int = 0
    max_waiting: int = 0
    longest_wait: float = 0.0
    waiting_since: float | None = None
    held_since: float | None = None
    checkouts_per_second: float | None = 0.0
    """None: still unknown."""
    version: int = 0
    """When it was last reported; its row changes with every report of the process."""
    times: PackedTimes = NO_TIMES_PACKED
    window: int = 0
    """The window in which its times were last reported."""
    mark: PackedTimes = NO_TIMES_PACKED
    """`times` before that window."""
    mark_before: PackedTimes = NO_TIMES_PACKED
    """`times` before the window before that one."""
    left_out: int = 0
    """How many pools without a row of their own this is the sum of. 0: it is one pool."""
    listed: int = 0
    """How many of its connections are known one by one."""
    recent: Recent | None = None
    """None: nothing has been counted."""

    @property
    def shown(self) -> bool:
        """Whether it has a row by pool. The remains of closed pools and a sum of several pools have none."""
        return self.gauges.pools > 0 and not self.left_out

    @property
    def has_row(self) -> bool:
        """Whether it has a row among those by connection, where a sum of several pools has one too."""
        return self.gauges.pools > 0 or self.left_out > 0

    def add_times(self, times: PackedTimes, clock: float) -> None:
        """Replace its times by these, which were just reported."""
        window = window_of(clock)
        if window != self.window:
            self.mark_before = self.mark if window == self.window + 1 else self.times
            self.mark, self.window = self.times, window
        self.times = times

    def age_times(self, clock: float) -> None:
        """Take all times reported so far for long past."""
        self.mark = self.mark_before = self.times
        self.window = window_of(clock)

    def count(self, totals: Totals, clock: float) -> None:
        """Note what its recent totals were; called before `totals` replaces them."""
        was = self.totals
        if totals.timeouts == was.timeouts and totals.connect_ms == was.connect_ms:
            return
        before, window = (was.timeouts, was.connect_ms), window_of(clock)
        if self.recent is None:
            self.recent = Recent(window, before, before)
        elif window != self.recent.window:
            follows = window == self.recent.window + 1
            self.recent = Recent(window, before, self.recent.mark if follows else before)

    def age_counts(self, totals: Totals, clock: float) -> None:
        """Take everything that these totals count for long past."""
        mark = (totals.timeouts, totals.connect_ms)
        self.recent = Recent(window_of(clock), mark, mark) if any(mark) else None

    def recent_counts(self, window: int) -> tuple[int, int]:
        """Return the timeouts and the milliseconds of connects in this window and the one before."""
        recent = self.recent
        # The remains of closed pools take over what is long past.
        if recent is None or not self.gauges.pools:
            return (0, 0)
        passed = window - recent.window
        if passed > 1:
            return (0, 0)
        timeouts, connect_ms = recent.mark if passed else recent.mark_before
        return max(0, self.totals.timeouts - timeouts), max(0, self.totals.connect_ms - connect_ms)

    def recent_times(self, clock: float) -> Times:
        """Return the times of this window and the one before."""
        passed = window_of(clock) - self.window
        # The remains of closed pools take over what is long past.
        if passed > 1 or not self.gauges.pools:
            return NO_TIMES
        before = self.mark if passed else self.mark_before
        return NO_TIMES if self.times == before else times_since(unpacked(self.times), unpacked(before))


class ProcessRecord(Struct, array_like=True):
    """One process that is connected or lost; `gauges` and `totals` are the sums of its pools."""

    instance: str
    node: str
    process: Process
    """Host and program are those of its first report, whatever later ones say."""
    sequence: int
    reported: float
    version: int
    started: float | None = None
    usage: Usage = Usage()
    lost: bool = False
    gauges: Gauges = NO_GAUGES
    totals: Totals = NO_TOTALS
    max_connections: int = 0
    max_checked_out: int = 0
    max_waiting: int = 0
    longest_wait: float = 0.0
    waiting_since: float | None = None
    held_since: float | None = None
    checkouts_per_second: float | None = None
    pools: dict[int, PoolRecord] = {}
    connections: dict[int, ConnectionRecord] = {}
    shared: int = 0
    """Pools that it reports in sums only."""
    refused_pools: int = 0
    """Pools that there was no room for here: they are in no sum."""
    unlisted: int = 0
    """Connections that it does not report one by one."""
    refused: bool = False
    """Whether there was no room here for some of its connections; the sums count them."""
    asked: float | None = None
    """When it was last asked for a full report because left-out rows would fit."""
    left_out: int = 0
    """Pools and connections without a row of their own."""
    sites: dict[int, dict[str, CallSiteRecord]] = {}
    """By pool, then by call site."""
    surplus: Profiles = {}
    """What the sums of hold profiles have of it beyond its call sites."""
    unprofiled: bool = False
    """Whether there was no room here for some of its call sites, or for their profiles."""

    def missing(self, pool: PoolRecord) -> int:
        """Return how many of a pool's connections a limit keeps from being known one by one."""
        return max(0, pool.gauges.connections - pool.listed) if self.refused or self.unlisted else 0

    @property
    def missing_connections(self) -> int:
        """The same over all pools."""
        if not (self.refused or self.unlisted):
            return 0
        return sum([self.missing(pool) for pool in self.pools.values()])

    @property
    def state(self) -> RowState:
        return "lost" if self.lost else "connected"

    @property
    def program_key(self) -> RowKey:
        return ("program", self.process.host, self.process.program)

    @property
    def host_key(self) -> RowKey:
        return ("host", self.process.host)

    def databases(self) -> dict[RowKey, None]:
        """Return the keys of the databases that it has pools in, each once, in a fixed order."""
        return dict.fromkeys([pool.database for pool in self.pools.values()])

    def row_keys(self) -> list[RowKey]:
        """Return the keys of all rows that readers may have of this process."""
        keys: list[RowKey] = [("process", self.instance)]
        keys += [("pool", self.instance, pool.number) for pool in self.pools.values() if pool.has_row]
        keys += [("connection", self.instance, number) for number in self.connections]
        return keys


class EndedRecord(Struct, array_like=True, frozen=True):
    """A process that was dropped, and what of it was added to the ended totals of its groups."""

    instance: str
    sequence: int
    at: float
    version: int
    totals: tuple[tuple[RowKey, Totals], ...]
    times: tuple[PackedTimes, ...] = ()
    """One for each of `totals`."""
    profiles: PackedProfiles | None = NO_PROFILES_PACKED
    """What the sums of hold profiles have of it. None: there was no room to remember that."""
    reported: float = float("-inf")
    """When it last reported."""


class BootRecord(Struct, array_like=True, frozen=True):
    """The last batch of one start of a node."""

    boot: str
    number: int
    heard: float


class GroupRecord(Struct, array_like=True, frozen=True):
    """What of a group cannot be recomputed from its processes."""

    key: RowKey
    ended: Totals
    maxima: tuple[int, int, int, int]
    """Processes, connections, checked out, waiting."""
    reported: float | None
    version: int
    born: int
    gone_since: float | None
    ended_times: PackedTimes = NO_TIMES_PACKED
    holds: tuple[tuple[RowKey, dict[str, HoldSum]], ...] = ()
    """Of a program: the sums of hold profiles, by database and call site."""


class HasMaxima(Protocol):
    """What has gauges, and the largest values that some of them ever had: a pool, a process, a group."""

    gauges: Gauges
    max_connections: int
    max_checked_out: int
    max_waiting: int


def raise_maxima(record: HasMaxima, own: Gauges, peaks: Peaks) -> None:
    """Raise the maxima to the present values, with these peaks in place of `own` among them."""
    present = record.gauges
    largest = present.connections
    if peaks.connections > own.connections:
        largest += max(min(peaks.connections, LARGEST_COUNT) - own.connections, 0)
    if largest > record.max_connections:
        record.max_connections = largest
    largest = present.checked_out
    if peaks.checked_out > own.checked_out:
        largest += max(min(peaks.checked_out, LARGEST_COUNT) - own.checked_out, 0)
    if largest > record.max_checked_out:
        record.max_checked_out = largest
    largest = present.waiting
    if peaks.waiting > own.waiting:
        largest += max(min(peaks.waiting, LARGEST_COUNT) - own.waiting, 0)
    if largest > record.max_waiting:
        record.max_waiting = largest

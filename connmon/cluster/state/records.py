"""What the connection-state machine keeps: of a process, a pool, a connection, a group. Pure.

- Times are of the replica's clock. Versions are those at which something last changed.
- What is dumped is a Struct; a `Group` has sums besides, which are made again after loading.
  They are whole numbers, so they come out the same however they were added up.
- Counts are held down to `LARGEST_COUNT`, and what is kept of all processes together to
  `Limits.room`: whoever reaches a port may say what he likes, and harms nothing by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from connmon.protocol import histogram
from connmon.protocol.reports import (
    MOST_SITES,
    Connection,
    PoolInfo,
    Process,
    ServerAddress,
    SiteReport,
    Usage,
)
from connmon.protocol.rows import ConnectionRow, Figures, RowKey, Verdict
from connmon.protocol.values import (
    ConnectionState,
    Gauges,
    HolderIn,
    RowState,
    Times,
    Totals,
    Vector,
)

#: The largest count taken from a report: 280 years of 1,000 checkouts a second; or, in milliseconds, 100
#: days of 1,000 connections that are held all the time. The sum over the pools of one process stays below
#: LARGEST with it.
LARGEST_COUNT: Final = 2**43

NO_GAUGES: Final = Gauges()
NO_TOTALS: Final = Totals()
NO_TIMES: Final = Times()

#: What took how long "lately" is what ended in this window of the replica's clock and in the one before.
WINDOW: Final = 60.0


class Limits(NamedTuple):
    """How much is kept at most. All replicas of a group must have the same."""

    processes: int = 50_000
    pools: int = 1_200
    """Of one process: `POOLS_REPORTED`, and the sums over closed pools and over the pools beyond."""
    connections: int = 200_000
    """Of one process."""
    room: int = 2**30
    """What all processes, pools, connections and call sites may weigh together, about in bytes."""
    ended: int = 10_000
    """Processes that ended and are remembered, so that one that comes back is not counted twice."""
    gone: int = 10_000
    """Groups without a process."""
    boots: int = 1_000
    """Starts of nodes."""
    tombstones: int = 20_000
    """Keys of removed rows, for each kind of row."""
    turned_away: int = 50_000
    """Processes that are left out and counted; more are left out and not counted."""
    sites: int = MOST_SITES
    """Call sites of one process."""


LIMITS: Final = Limits()


def bounded(vector: Vector) -> Vector:
    """Return the vector with no count above LARGEST_COUNT."""
    if max(vector) <= LARGEST_COUNT:
        return vector
    return type(vector)(*[min(count, LARGEST_COUNT) for count in vector])


def bounded_times(times: Times, most: int = LARGEST_COUNT) -> Times:
    """Return the times with no count above `most`."""
    if max([max(counts.values()) for counts in times if counts], default=0) <= most:
        return times
    return Times(*[{number: min(count, most) for number, count in counts.items()} for counts in times])


def added_times(parts: Sequence[Times]) -> Times:
    """Return the sum."""
    return Times(*[histogram.added(counts) for counts in zip(*parts, strict=True)]) if parts else NO_TIMES


def times_since(now: Times, before: Times) -> Times:
    """Return what has come since `before`; where a count went back, nothing has."""
    return Times(*map(histogram.since, now, before))


def merged_times(before: Times, changes: Times) -> Times:
    """Return `before` with the counts that have changed."""
    return Times(*map(histogram.merged, before, changes))


#: Times as bytes, as they are kept: a dict takes ten times as much.
Packed: TypeAlias = bytes

NO_TIMES_PACKED: Final[Packed] = b""


class _Packed(NamedTuple):
    """What is read from packed times without looking at its ranges, in half the time."""

    waits: dict[int, int]
    holds: dict[int, int]
    connects: dict[int, int]


_times_encoder: Final = msgspec.msgpack.Encoder()
_times_decoder: Final = msgspec.msgpack.Decoder(_Packed)
_times_checker: Final = msgspec.msgpack.Decoder(Times)


def packed(times: Times) -> Packed:
    """Return the times as bytes; times that were made by the same steps have equal ones."""
    if not any(times):
        return NO_TIMES_PACKED
    return _times_encoder.encode(times)


def unpacked(data: Packed) -> Times:
    """Return the times that were packed here, or were checked."""
    return Times(*_times_decoder.decode(data)) if data else NO_TIMES


def check_packed(data: Packed) -> None:
    """Raise msgspec.MsgspecError where these are no packed times."""
    if data:
        _times_checker.decode(data)


# --- Kept and dumped ------------------------------------------------------------------------


class ConnectionRecord(Struct, array_like=True, frozen=True, gc=False):
    """One connection as last reported. Plain values only, hence no garbage collection."""

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


class SiteRecord(Struct, array_like=True, frozen=True, gc=False):
    """One line of the application that takes connections from one pool, as last reported."""

    waiting: int
    holds: int
    hold_ms: int
    usual: float | None
    share: float


class Recent(NamedTuple):
    """What a pool's totals were: its timeouts, and the milliseconds that its connects took."""

    window: int
    """The window in which one of these last grew."""
    mark: tuple[int, int]
    """What they were before that window; and before the one before it."""
    mark_before: tuple[int, int]


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
    rate: float | None = 0.0
    """Checkouts per second. None: not known yet."""
    version: int = 0
    """When it was last told of; its row changes with every report of the process."""
    times: Packed = NO_TIMES_PACKED
    window: int = 0
    """The window in which it was last told of."""
    mark: Packed = NO_TIMES_PACKED
    """What `times` was before that window; and before the one before it."""
    mark_before: Packed = NO_TIMES_PACKED
    left_out: int = 0
    """How many pools without a row each this is the sum of. 0: it is one pool."""
    listed: int = 0
    """How many of its connections are known one by one."""
    recent: Recent | None = None
    """None: nothing has been counted."""

    @property
    def shown(self) -> bool:
        """Whether it has a row: what remains of closed pools, and a sum of several, has none."""
        return self.gauges.pools > 0 and not self.left_out

    @property
    def has_row(self) -> bool:
        """Whether it has a row among those by connection, where a sum of several pools has one too."""
        return self.gauges.pools > 0 or self.left_out > 0

    def tell_times(self, times: Packed, clock: float) -> None:
        """Take what it was just told of."""
        window = int(clock // WINDOW)
        if window != self.window:
            self.mark_before = self.mark if window == self.window + 1 else self.times
            self.mark, self.window = self.times, window
        self.times = times

    def forget_times(self, clock: float) -> None:
        """Take for long past what it was told of so far."""
        self.mark = self.mark_before = self.times
        self.window = int(clock // WINDOW)

    def count(self, totals: Totals, clock: float) -> None:
        """Note that its totals are these from now on; called before they are replaced."""
        was = self.totals
        if totals.timeouts == was.timeouts and totals.connect_ms == was.connect_ms:
            return
        before, window = (was.timeouts, was.connect_ms), int(clock // WINDOW)
        if self.recent is None:
            self.recent = Recent(window, before, before)
        elif window != self.recent.window:
            follows = window == self.recent.window + 1
            self.recent = Recent(window, before, self.recent.mark if follows else before)

    def forget_counts(self, totals: Totals, clock: float) -> None:
        """Take what these totals count for long past."""
        mark = (totals.timeouts, totals.connect_ms)
        self.recent = Recent(int(clock // WINDOW), mark, mark) if any(mark) else None

    def counted_lately(self, window: int) -> tuple[int, int]:
        """Return timeouts and milliseconds of connects in this window and the one before."""
        recent = self.recent
        if (
            recent is None or not self.gauges.pools
        ):  # what remains of closed pools takes over things long past
            return (0, 0)
        passed = window - recent.window
        if passed > 1:
            return (0, 0)
        timeouts, connect_ms = recent.mark if passed else recent.mark_before
        return max(0, self.totals.timeouts - timeouts), max(0, self.totals.connect_ms - connect_ms)

    def lately(self, clock: float) -> Times:
        """Return what took how long in this window and the one before."""
        passed = int(clock // WINDOW) - self.window
        if passed > 1 or not self.gauges.pools:  # what remains of closed pools takes over things long past
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
    rate: float | None = None
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
    """When it was last asked for a full report, since some of what was refused would fit."""
    left_out: int = 0
    """Pools and connections without a row of their own."""
    sites: dict[int, dict[str, SiteRecord]] = {}
    """By pool, then by call site."""

    def missing(self, pool: PoolRecord) -> int:
        """Return how many of a pool's connections are not known one by one, because of a limit."""
        return max(0, pool.gauges.connections - pool.listed) if self.refused or self.unlisted else 0

    @property
    def missing_connections(self) -> int:
        """The same of all pools."""
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
        """Return the keys of all rows that this process is, or was, shown with."""
        keys: list[RowKey] = [("process", self.instance)]
        keys += [("pool", self.instance, pool.number) for pool in self.pools.values() if pool.has_row]
        keys += [("connection", self.instance, number) for number in self.connections]
        return keys


class EndedRecord(Struct, array_like=True, frozen=True):
    """A process that was dropped: what of it was added to the ended totals of its groups."""

    instance: str
    sequence: int
    at: float
    version: int
    totals: tuple[tuple[RowKey, Totals], ...]
    times: tuple[Packed, ...] = ()
    """One for each of `totals`."""


class BootRecord(Struct, array_like=True, frozen=True):
    """The last batch of one start of a node."""

    boot: str
    number: int
    heard: float


class GroupRecord(Struct, array_like=True, frozen=True):
    """What of a group cannot be made from its processes."""

    key: RowKey
    ended: Totals
    maxima: tuple[int, int, int, int]
    """Processes, connections, checked out, waiting."""
    reported: float | None
    version: int
    born: int
    gone_since: float | None
    ended_times: Packed = NO_TIMES_PACKED


# --- Kept, and made again after loading -----------------------------------------------------


class GroupJudge(Protocol):
    """What a group needs to say what is wrong with it."""

    def of_group(self, group: Group) -> tuple[tuple[Verdict, ...], int]:
        """Return its verdicts and its recent timeouts."""

    def lasts(self, verdicts: Iterable[Verdict]) -> bool:
        """Return whether these stay what they are for as long as the group does."""

    def of_servers(self, group: Group) -> tuple[Verdict, ...]:
        """Return what is wrong with the servers of a database."""


class Group:
    """A program on a host, a host, or a database: the sums over its processes."""

    __slots__ = (
        "born", "cached", "cached_at", "ended", "ended_times", "gauges", "gone_since", "judge", "key",
        "lost", "max_checked_out", "max_connections", "max_processes", "max_waiting", "members", "processes",
        "reported", "totals", "version",
    )  # fmt: skip

    def __init__(self, key: RowKey, version: int) -> None:
        self.key = key
        self.gauges = NO_GAUGES
        """Of connected processes."""
        self.totals = NO_TOTALS
        """Of connected and lost processes."""
        self.ended = NO_TOTALS
        """Of processes that were dropped."""
        self.ended_times: Packed = NO_TIMES_PACKED
        self.processes = 0
        self.lost = 0
        self.max_processes = self.max_connections = self.max_checked_out = self.max_waiting = 0
        self.reported: float | None = None
        self.version = self.born = version
        self.gone_since: float | None = None
        self.members: dict[str, ProcessRecord] = {}
        self.cached: Figures | None = None
        self.cached_at = -1
        """The version that the cached figures are of."""
        self.judge: GroupJudge | None = None
        """Who says what is wrong with it; None: nobody."""

    @property
    def state(self) -> RowState:
        return "connected" if self.processes else "lost" if self.lost else "gone"

    def pools(self, present: bool = False) -> list[PoolRecord]:
        """Return the pools that count in it, of connected and, but for the present, of lost processes."""
        members = [process for process in self.members.values() if not (present and process.lost)]
        pools = [pool for process in members for pool in process.pools.values()]
        if self.key[0] == "database":
            return [pool for pool in pools if pool.database == self.key]
        return pools

    @property
    def times(self) -> Times:
        """What took how long, ended processes included. It never goes back, as totals."""
        return added_times([unpacked(self.ended_times), *(unpacked(pool.times) for pool in self.pools())])

    def record(self) -> GroupRecord:
        maxima = (self.max_processes, self.max_connections, self.max_checked_out, self.max_waiting)
        return GroupRecord(
            self.key, self.ended, maxima, self.reported, self.version, self.born, self.gone_since,
            self.ended_times,
        )  # fmt: skip

    @classmethod
    def of(cls, record: GroupRecord) -> Group:
        """Return the group without its processes."""
        group = cls(record.key, record.version)
        group.ended, group.ended_times = record.ended, record.ended_times
        group.max_processes, group.max_connections, group.max_checked_out, group.max_waiting = record.maxima
        group.reported, group.born, group.gone_since = record.reported, record.born, record.gone_since
        return group


class Tombstones:
    """The keys of rows of one kind that were removed, and when; only the newest are kept.

    They are not dumped: a replica that was loaded sends a reader everything, once.
    """

    __slots__ = ("_kept", "floor")

    def __init__(self, most: int, floor: int = 0) -> None:
        self._kept: deque[tuple[int, RowKey]] = deque(maxlen=most)
        self.floor = floor
        """What was removed at this version or earlier is not known any more."""

    def add(self, version: int, key: RowKey) -> None:
        kept = self._kept
        if len(kept) == kept.maxlen:
            self.floor = kept[0][0]
        kept.append((version, key))

    def after(self, version: int) -> Iterator[RowKey]:
        """Yield the keys that were removed after `version`, the newest first."""
        for removed, key in reversed(self._kept):
            if removed <= version:
                return
            yield key


# --- Weights --------------------------------------------------------------------------------

#: More than any one process can weigh without its pools and connections.
PROCESS_WEIGHT: Final = 2**14


def pool_weight(info: PoolInfo) -> int:
    """Return about how many bytes a pool takes; at least 2048, which bounds the number of pools."""
    return 2048 + len(info.url) + len(info.database or "")


#: No pool can weigh more; and what a connection weighs at least, without holder, call site and stack.
LARGEST_POOL_WEIGHT: Final = 2048 * 3
BARE_WEIGHT: Final = 256


def connection_weight(connection: Connection | ConnectionRecord | ConnectionRow) -> int:
    """Return about how many bytes a connection takes."""
    weight = BARE_WEIGHT
    if connection.holder:
        weight += len(connection.holder)
    if connection.server is not None:
        weight += 64 + len(connection.server.host or "")
    if connection.call_site:
        weight += len(connection.call_site)
    if connection.holder_site:
        weight += len(connection.holder_site)
    if connection.stack:
        weight += sum([64 + len(line) for line in connection.stack])
    return weight


def site_weight(call_site: str) -> int:
    """Return about how many bytes a call site of a process takes."""
    return 256 + len(call_site)


def sites_weight(process: ProcessRecord) -> int:
    """Return what all call sites of a process weigh."""
    return sum([site_weight(call_site) for sites in process.sites.values() for call_site in sites])


def site_record(site: SiteReport) -> SiteRecord:
    """Return what is kept of a report."""
    return SiteRecord(
        min(site.waiting, LARGEST_COUNT),
        min(site.holds, LARGEST_COUNT),
        min(site.hold_ms, LARGEST_COUNT),
        site.usual,
        site.share,
    )

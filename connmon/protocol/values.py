"""Values that reports, batches and rows share: counts, gauges, totals, peaks, times. Pure.

Every value is typed and bounded, so that decoding is validation: `msgspec` raises for a number out of range
or a text that is too long.

Units: seconds as floats, sizes in bytes. A value that is not known is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import add, sub
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, TypeVar

from msgspec import Meta

from connmon.protocol import histogram

#: The largest integer that JSON readers keep exact; no count can pass it.
LARGEST = 2**53 - 1
#: The largest rate, per second: the bound of `Number`.
LARGEST_RATE: Final = 1e15

Count: TypeAlias = Annotated[int, Meta(ge=0, le=LARGEST)]
Integer: TypeAlias = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e12)]
Number: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e15)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]
Text: TypeAlias = Annotated[str, Meta(max_length=2048)]
Instance: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]

IDLE: Final = "idle"
CHECKED_OUT: Final = "checked_out"
DETACHED: Final = "detached"
ConnectionState: TypeAlias = Literal["idle", "checked_out", "detached"]

LOST: Final = "lost"
RowState: TypeAlias = Literal["connected", "lost", "gone"]

HolderIn: TypeAlias = Literal["database", "application", "waiting", "elsewhere", "ended"]
"""Where the holder of a connection was when it was last looked at.

`database`: the driver is on its stack, and it works with this connection as far as can be seen;
`application`: it is in work of its own, in the function that took the connection or below it;
`waiting`: as that, and it waits until another connection of a pool comes back;
`elsewhere`: that function is not on its stack any more; `ended`: the thread, task or greenlet has ended.
Where the function is not known, `application` stands for `elsewhere` too.
"""

VerdictWord: TypeAlias = Literal[
    "LEAK", "BLOCKED", "SATURATED", "TIMEOUTS", "LOST", "SLOW CONNECT", "OVERCOMMIT"
]  # fmt: skip
"""What can be wrong; see the module `verdicts`."""

NodeRole: TypeAlias = Literal["leader", "follower", "candidate"]

Grouping: TypeAlias = Literal["program", "host", "database", "process", "pool", "connection", "site"]
GROUPINGS: tuple[Grouping, ...] = (
    "program", "host", "database", "process", "pool", "connection", "site",
)  # fmt: skip


class Gauges(NamedTuple):
    """What there is now, of a pool or of anything that pools add up to."""

    pools: Count = 0
    capacity: Count = 0
    """pool_size + max_overflow, summed over the pools that have a limit."""
    unbounded: Count = 0
    """Pools without a limit (NullPool, max_overflow=-1); where there is one, capacity is not known."""
    connections: Count = 0
    """Open connections to the database: idle + checked out + detached."""
    checked_out: Count = 0
    overflow: Count = 0
    """Open, attached connections beyond pool_size, as SQLAlchemy counts them: none where that is no limit
    (QueuePool's pool_size=0)."""
    detached: Count = 0
    waiting: Count = 0

    @property
    def idle(self) -> int:
        """Open connections that nobody holds."""
        return max(0, self.connections - self.checked_out - self.detached)


class Totals(NamedTuple):
    """What has happened since the beginning, of a pool or of anything that pools add up to.

    Once quiet, connects - closes = connections, and checkouts - checkins = checked_out +
    detached: a checkin is the end of a checkout, however it ended (given back, invalidated,
    closed while detached, or collected as garbage). Connections inherited through a fork are
    in neither connects nor closes.

    The last three are milliseconds, of what `Times` has the histograms of.
    """

    connects: Count = 0
    closes: Count = 0
    checkouts: Count = 0
    checkins: Count = 0
    invalidations: Count = 0
    timeouts: Count = 0
    connect_errors: Count = 0
    wait_ms: Count = 0
    hold_ms: Count = 0
    connect_ms: Count = 0


class Peaks(NamedTuple):
    """The largest values since the last acknowledged report, the present included."""

    connections: Count = 0
    checked_out: Count = 0
    waiting: Count = 0
    longest_wait: Seconds = 0.0


BucketNumber: TypeAlias = Annotated[int, Meta(ge=0, lt=histogram.BUCKETS)]
BucketCount: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST)]
Buckets: TypeAlias = Annotated[Mapping[BucketNumber, BucketCount], Meta(max_length=histogram.BUCKETS)]


class Times(NamedTuple):
    """How long things took, since the beginning; see the module `histogram`."""

    waits: Buckets = histogram.EMPTY
    """Waits that have ended, by a connection, a timeout or a cancellation. Who got a connection at
    once has not waited."""
    holds: Buckets = histogram.EMPTY
    """From checkout to checkin, however that came about."""
    connects: Buckets = histogram.EMPTY
    """Making a connection; those that failed are not in here."""


def changed_times(now: Times, before: Times) -> Times:
    """Return those counts of `now` that are others than they were."""
    return Times(*map(histogram.changed, now, before))


Vector = TypeVar("Vector", Gauges, Totals)


def plus(a: Vector, b: Vector) -> Vector:
    """Return a + b, field by field."""
    return type(a)._make(map(add, a, b))


def minus(a: Vector, b: Vector) -> Vector:
    """Return a - b, field by field."""
    return type(a)._make(map(sub, a, b))


def saturated(vector: Vector) -> Vector:
    """Return the vector with no count below 0 or above `LARGEST`, as readers require it."""
    if max(vector) <= LARGEST and min(vector) >= 0:
        return vector
    return type(vector)(*[max(0, min(count, LARGEST)) for count in vector])

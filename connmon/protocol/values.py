"""Values that reports, batches and rows share: counts, gauges, totals, peaks, times. Pure.

Every value is typed and bounded, so that decoding validates: `msgspec` raises for a number out of range or a
text that is too long.

Units: seconds as floats, sizes in bytes. An unknown value is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import add, sub
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, TypeVar

from msgspec import Meta

from connmon.protocol import histogram

#: The largest integer that JSON readers keep exact; no count is larger.
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

#: What stands for all call sites of a process that are not reported one by one. It goes over the wire.
OTHER_CALL_SITES: Final = "(other)"

IDLE: Final = "idle"
CHECKED_OUT: Final = "checked_out"
DETACHED: Final = "detached"
ConnectionState: TypeAlias = Literal["idle", "checked_out", "detached"]

LOST: Final = "lost"
RowState: TypeAlias = Literal["connected", "lost", "gone"]

HolderIn: TypeAlias = Literal["database", "application", "waiting", "elsewhere", "ended"]
"""Where the holder of a connection was when it was last looked at.

`database`: the driver is on its stack, and as far as can be seen it works with this connection.
`application`: it runs the function that took the connection, or code below it.
`waiting`: the same, and it waits for another connection of a pool.
`elsewhere`: that function is no longer on its stack. `ended`: the thread, task or greenlet has ended.
Where the function is unknown, `application` stands for `elsewhere` too.
"""

Where: TypeAlias = Annotated[Mapping[Name, Count], Meta(max_length=16)]
"""Milliseconds of holds by where their holders were; see the module `hold_profile` of the plugin.

`database`: the driver is innermost, or an await in it. `waiting`: it waits for another connection of a pool.
`own code`: it runs the application's own lines. `computing`: its thread computes, as the CPU clock says, but
no look has met it at that: in its own lines, SQLAlchemy or the driver. `event loop`: its task is ready, and
the loop is busy. `other connection`: the driver is innermost, with a connection that the holder took later.
`elsewhere`: no line of the application is on its stack any more, or it works with a connection that it took
later. `ended`: as in `HolderIn`. `(other)`: labels without an entry of their own. Every other label is the
package that the application has called, such as `requests`, or a function of Python's library: `time.sleep`.
"""
IN_DATABASE: Final = "database"
WAITING: Final = "waiting"
OWN_CODE: Final = "own code"
COMPUTING: Final = "computing"
EVENT_LOOP: Final = "event loop"
OTHER_CONNECTION: Final = "other connection"
ELSEWHERE: Final = "elsewhere"
ENDED: Final = "ended"
#: Stands for all labels without an entry of their own.
OTHER_LABELS: Final = "(other)"

VerdictWord: TypeAlias = Literal[
    "LEAK", "BLOCKED", "SATURATED", "TIMEOUTS", "LOST", "SLOW CONNECT", "OVERCOMMIT"
]  # fmt: skip
"""See the module `verdicts`."""

NodeRole: TypeAlias = Literal["leader", "follower", "candidate"]

Grouping: TypeAlias = Literal["program", "host", "database", "process", "pool", "connection", "site"]
GROUPINGS: tuple[Grouping, ...] = (
    "program", "host", "database", "process", "pool", "connection", "site",
)  # fmt: skip


class Gauges(NamedTuple):
    """The present values of a pool, or their sum over several pools."""

    pools: Count = 0
    capacity: Count = 0
    """pool_size + max_overflow, summed over the pools that have a limit."""
    unbounded: Count = 0
    """Pools without a limit (NullPool, max_overflow=-1); with one of them, the capacity is unknown."""
    connections: Count = 0
    """Open connections to the database: idle + checked out + detached."""
    checked_out: Count = 0
    overflow: Count = 0
    """Open, attached connections beyond pool_size, as SQLAlchemy counts them: none where pool_size is no
    limit (QueuePool's pool_size=0)."""
    detached: Count = 0
    waiting: Count = 0

    @property
    def idle(self) -> int:
        """Open connections that nobody holds."""
        return max(0, self.connections - self.checked_out - self.detached)


class Totals(NamedTuple):
    """What a pool, or several, has counted since it was made.

    When nothing happens, connects - closes = connections, and checkouts - checkins = checked_out + detached:
    a checkin is the end of a checkout, however it ended (returned, invalidated, closed while detached, or
    garbage collected). Connections inherited through a fork are in neither connects nor closes.

    The last three are milliseconds; `Times` has the histograms of the same durations.
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
    """Latency histograms since the pool was made; see the module `histogram`."""

    waits: Buckets = histogram.EMPTY
    """Waits that have ended, by a connection, a timeout or a cancellation. A checkout that got a connection
    at once has not waited."""
    holds: Buckets = histogram.EMPTY
    """From checkout to checkin, however the checkout ended."""
    connects: Buckets = histogram.EMPTY
    """Opening a connection; failed attempts do not count."""


def changed_times(now: Times, before: Times) -> Times:
    """Return the counts of `now` that differ from `before`."""
    return Times(*map(histogram.changed, now, before))


Vector = TypeVar("Vector", Gauges, Totals)


def plus(a: Vector, b: Vector) -> Vector:
    """Return a + b, field by field."""
    # Not by _make(), which takes half as long again: every report adds some twenty times.
    return tuple.__new__(type(a), map(add, a, b))


def minus(a: Vector, b: Vector) -> Vector:
    """Return a - b, field by field."""
    return tuple.__new__(type(a), map(sub, a, b))


def saturated(vector: Vector) -> Vector:
    """Return the vector with no count below 0 or above `LARGEST`, as readers require it."""
    if max(vector) <= LARGEST and min(vector) >= 0:
        return vector
    return type(vector)(*[max(0, min(count, LARGEST)) for count in vector])


Key = TypeVar("Key", bound=str)
Amount = TypeVar("Amount", int, float)


def largest_first(amounts: Mapping[Key, Amount]) -> list[tuple[Key, Amount]]:
    """Return the entries, the largest first; equal ones by their keys."""
    return sorted(amounts.items(), key=lambda entry: (-entry[1], entry[0]))

"""Histograms of waits, holds and connects, packed as bytes while they are kept. Pure.

Recent times are those that ended in the current window of the replica's clock or in the one before: in the
last one to two minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from connmon.protocol import histogram
from connmon.protocol.values import Times

#: The length of a window. It is part of what replicas have to agree on.
WINDOW_SECONDS: Final = 60.0

NO_TIMES: Final = Times()

#: Times as they are kept: a dict takes ten times as much memory.
PackedTimes: TypeAlias = bytes

NO_TIMES_PACKED: Final[PackedTimes] = b""


class _Unchecked(NamedTuple):
    """Times without their ranges: decoding these takes half the time."""

    waits: dict[int, int]
    holds: dict[int, int]
    connects: dict[int, int]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Unchecked)
_checker: Final = msgspec.msgpack.Decoder(Times)


def window_of(clock: float) -> int:
    """Return the number of the window that a time (seconds of the replica's clock) is in."""
    return int(clock // WINDOW_SECONDS)


def bounded_times(times: Times, most: int) -> Times:
    """Return the times with no count above `most`."""
    if max([max(counts.values()) for counts in times if counts], default=0) <= most:
        return times
    return Times(*[{number: min(count, most) for number, count in counts.items()} for counts in times])


def added_times(parts: Sequence[Times]) -> Times:
    """Return the sum."""
    return Times(*[histogram.added(counts) for counts in zip(*parts, strict=True)]) if parts else NO_TIMES


def times_since(now: Times, before: Times) -> Times:
    """Return the increase since `before`; a count that went back counts as none."""
    return Times(*map(histogram.since, now, before))


def merged_times(before: Times, changes: Times) -> Times:
    """Return `before` with the counts that have changed."""
    return Times(*map(histogram.merged, before, changes))


def packed(times: Times) -> PackedTimes:
    """Return the times as bytes. Times that were computed in the same steps have equal bytes."""
    if not any(times):
        return NO_TIMES_PACKED
    return _encoder.encode(times)


def unpacked(data: PackedTimes) -> Times:
    """Return times that were packed here, or that `check_packed` has accepted."""
    return Times(*_decoder.decode(data)) if data else NO_TIMES


def check_packed(data: PackedTimes) -> None:
    """Raise msgspec.MsgspecError where these are no packed times."""
    if data:
        _checker.decode(data)

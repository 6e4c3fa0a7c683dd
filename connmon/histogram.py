"""How often something took how long: counts in fixed buckets, which add up over pools and processes. Pure.

- A histogram is a tuple of counts, one for each bucket, without the zeros at its end. It grows like
  a total and never goes back; the difference of two is what came in between.
- The bounds are the same everywhere and for ever: five a decade (the R5 series of ISO 3: each about
  1.6 times the one before), from 100 us to 1000 s. So a quantile is wrong by a quarter at most.
- A bound belongs to the bucket below it ("less or equal"), as in Prometheus, and quantiles are
  interpolated as Prometheus does it, so that both show the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Final, TypeAlias

Histogram: TypeAlias = "tuple[int, ...]"

_STEPS: Final = (1.0, 1.6, 2.5, 4.0, 6.3)

#: Upper bounds of the buckets, in seconds; one more bucket has what took longer.
BOUNDS: Final = (*(float(f"{step}e{decade}") for decade in range(-4, 3) for step in _STEPS), 1000.0)
BUCKETS: Final = len(BOUNDS) + 1

EMPTY: Final[Histogram] = ()


def bucket(seconds: float) -> int:
    """Return the number of the bucket for something that took so long."""
    return bisect_left(BOUNDS, seconds)


def trimmed(counts: Sequence[int]) -> Histogram:
    """Return the counts without the zeros at the end."""
    end = len(counts)
    while end and not counts[end - 1]:
        end -= 1
    return tuple(counts[:end])


def added(histograms: Iterable[Sequence[int]]) -> Histogram:
    """Return the sum of all of them."""
    told = [counts for counts in histograms if counts]
    if len(told) == 1:  # mostly: one process, one pool, none that has ended
        return trimmed(told[0])
    return trimmed(list(map(sum, zip_longest(*told, fillvalue=0))))


def since(now: Histogram, before: Histogram) -> Histogram:
    """Return what has come since `before`; where a count went back, nothing has."""
    if now == before:
        return EMPTY
    return trimmed([max(0, a - b) for a, b in zip_longest(now, before, fillvalue=0)])


def quantile(histogram: Sequence[int], share: float) -> float | None:
    """Return how many seconds `share` (0 to 1) of what is counted took at most; None where nothing is.

    Within a bucket it is taken to be spread evenly. Of what took longer than the last bound only
    that is known, so that bound is the answer.
    """
    count = sum(histogram)
    if not count:
        return None
    rank, below = share * count, 0
    for number, here in enumerate(histogram):
        if here and below + here >= rank:
            if number >= len(BOUNDS):
                break
            low = BOUNDS[number - 1] if number else 0.0
            return low + (BOUNDS[number] - low) * max(0.0, rank - below) / here
        below += here
    return BOUNDS[-1]

"""Latency histograms with fixed buckets, which add up over pools and processes. Pure.

- A histogram maps the number of a bucket to its count; a bucket without a count is left out. Like a total it
  never goes back; the difference of two histograms counts what happened in between.
- The bounds are the same everywhere and never change: 15 per decade, from 1 us to 1,000,000 s, each at most
  1.2 times the previous one. Every third is one of the R5 series of ISO 3, so that coarser histograms
  (Prometheus's) can be derived without loss.
- A bound belongs to the bucket below it ("less or equal"), as in Prometheus.
- A quantile is the inverted distribution function, also called nearest rank: the smallest value that at least
  so many per cent of the values do not exceed (numpy's method "inverted_cdf"). Its bucket is exact. Within a
  bucket from a to b the quantile is 2ab/(a+b), whose error is the same at both bounds: at most (b-a)/(b+a).
  So between the first bound and the last a quantile differs from the exact value by less than
  `ERROR_FRACTION` of it, whatever the distribution.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, TypeAlias

#: Read only: a change makes another one.
Histogram: TypeAlias = Mapping[int, int]

_STEPS: Final = (1.0, 1.2, 1.4, 1.6, 1.9, 2.2, 2.5, 2.9, 3.4, 4.0, 4.7, 5.5, 6.3, 7.4, 8.6)

#: Upper bounds of the buckets, in seconds; one more bucket counts what took longer.
BOUNDS: Final = (*(float(f"{step}e{decade}") for decade in range(-6, 6) for step in _STEPS), 1e6)
BUCKETS: Final = len(BOUNDS) + 1

#: The part of the exact quantile by which a quantile may differ from it. (The widest bucket allows 1/11, and
#: each value is rounded to three digits.)
ERROR_FRACTION: Final = 0.092

#: The quantile in each bucket. Below the first bound and above the last one, that bound.
_VALUES: Final = (
    BOUNDS[0],
    *(float(f"{2 * low * high / (low + high):.3g}") for low, high in pairwise(BOUNDS)),
    BOUNDS[-1],
)

EMPTY: Final[Histogram] = {}


def bucket(seconds: float) -> int:
    """Return the number of the bucket that counts this duration."""
    return bisect_left(BOUNDS, seconds)


def of(seconds: Iterable[float]) -> Histogram:
    """Return the histogram of these durations."""
    return added([{bucket(duration): 1} for duration in seconds])


def added(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of all of them."""
    filled = [histogram for histogram in histograms if histogram]
    if len(filled) < 2:  # mostly: one process, one pool, none that has ended
        return filled[0] if filled else EMPTY
    total = dict(filled[0])
    for histogram in filled[1:]:
        for number, count in histogram.items():
            total[number] = total.get(number, 0) + count
    return total


def ordered(histogram: Histogram) -> Histogram:
    """Return the same, in the order of the buckets."""
    return dict(sorted(histogram.items()))


def since(now: Histogram, before: Histogram) -> Histogram:
    """Return the increase since `before`; a count that went back counts as none."""
    if not before:
        return now
    return {
        number: more for number, count in now.items() if (more := count - before.get(number, 0)) > 0
    }  # fmt: skip


def changed(now: Histogram, before: Histogram) -> Histogram:
    """Return the counts of `now` that differ from `before`; the reverse of `merged`."""
    return {number: count for number, count in now.items() if count != before.get(number)}


def merged(before: Histogram, changes: Histogram) -> Histogram:
    """Return `before` with these changed counts; no count goes back."""
    total = dict(before)
    for number, count in changes.items():
        if count > total.get(number, 0):
            total[number] = count
    return total


def quantile(histogram: Histogram, percent: int) -> float | None:
    """Return how many seconds `percent` (1 to 100) of the counted values took at most; None without any.

    It differs from the exact quantile by less than `ERROR_FRACTION` of it. Values below the first bound count
    as that bound, and values above the last one as that.
    """
    return quantiles(histogram, (percent,))[0]


def quantiles(histogram: Histogram, percents: Sequence[int]) -> list[float | None]:
    """Return the quantile of each of these percents, which ascend."""
    if not histogram:
        return [None] * len(percents)
    numbers = sorted(histogram)
    up_to = list(accumulate([histogram[number] for number in numbers]))
    # Ranks are whole numbers: rounded up, and exact.
    ranks = [-(-up_to[-1] * percent // 100) for percent in percents]
    return [_VALUES[numbers[bisect_left(up_to, rank)]] for rank in ranks]

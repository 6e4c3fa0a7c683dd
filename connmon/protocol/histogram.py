"""Latency histograms with fixed buckets, which add up over pools and processes. Pure.

- A histogram maps the number of a bucket to its count; a bucket without a count is left out. It grows
  like a total and never goes back; the difference of two is what came in between.
- The bounds are the same everywhere and for ever: 15 a decade, from 1 us to 1,000,000 s, each at most
  1.2 times the one before. Every third is one of the R5 series of ISO 3, so that coarser histograms
  (Prometheus's) can be made of these without loss.
- A bound belongs to the bucket below it ("less or equal"), as in Prometheus.
- A quantile is the inverted distribution function, also called nearest rank: the smallest value that at
  least so many per cent of the values do not exceed (numpy's method "inverted_cdf"). Its bucket is known
  exactly. What is returned is one value for each bucket, chosen so that the error is the same at both of
  its bounds: 2ab/(a+b) of a bucket from a to b, which is wrong by (b-a)/(b+a) at most. So for any
  distribution a quantile errs by less than `ERROR` of the exact value, between the first bound and the last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, TypeAlias

#: Read only; who wants another one makes another one.
Histogram: TypeAlias = Mapping[int, int]

_STEPS: Final = (1.0, 1.2, 1.4, 1.6, 1.9, 2.2, 2.5, 2.9, 3.4, 4.0, 4.7, 5.5, 6.3, 7.4, 8.6)

#: Upper bounds of the buckets, in seconds; one more bucket has what took longer.
BOUNDS: Final = (*(float(f"{step}e{decade}") for decade in range(-6, 6) for step in _STEPS), 1e6)
BUCKETS: Final = len(BOUNDS) + 1

#: The share by which a quantile may differ from the exact one. (The widest bucket allows 1/11, and
#: three digits are kept of each value.)
ERROR: Final = 0.092

#: What a quantile in each bucket is shown as. Below the first bound and above the last one nothing but
#: that bound is known.
_VALUES: Final = (
    BOUNDS[0],
    *(float(f"{2 * low * high / (low + high):.3g}") for low, high in pairwise(BOUNDS)),
    BOUNDS[-1],
)

EMPTY: Final[Histogram] = {}


def bucket(seconds: float) -> int:
    """Return the number of the bucket for something that took so long."""
    return bisect_left(BOUNDS, seconds)


def of(seconds: Iterable[float]) -> Histogram:
    """Return the histogram of these."""
    return added([{bucket(each): 1} for each in seconds])


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
    """Return what has come since `before`; where a count went back, nothing has."""
    if not before:
        return now
    return {
        number: more for number, count in now.items() if (more := count - before.get(number, 0)) > 0
    }  # fmt: skip


def changed(now: Histogram, before: Histogram) -> Histogram:
    """Return those counts of `now` that are others than they were; see `merged`."""
    return {number: count for number, count in now.items() if count != before.get(number)}


def merged(before: Histogram, changes: Histogram) -> Histogram:
    """Return the histogram that `changes` were made of; no count goes back."""
    total = dict(before)
    for number, count in changes.items():
        if count > total.get(number, 0):
            total[number] = count
    return total


def quantile(histogram: Histogram, percent: int) -> float | None:
    """Return how many seconds `percent` (1 to 100) of the counted values took at most; None: none is counted.

    It differs from the exact quantile by less than `ERROR` of it. Values below the first bound are shown as
    that bound, and values above the last one as that.
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

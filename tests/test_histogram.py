"""Histograms: which bucket, what adds up, and how near a quantile comes to the truth."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from math import ceil, inf, nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.histogram import BOUNDS, BUCKETS, added, bucket, quantile, since, trimmed

_histograms = st.lists(st.integers(0, 5), max_size=BUCKETS).map(trimmed)
_seconds = st.floats(0.0, 2000.0)


def histogram(took: list[float]) -> tuple[int, ...]:
    counts = [0] * BUCKETS
    for seconds in took:
        counts[bucket(seconds)] += 1
    return trimmed(counts)


def test_bounds() -> None:
    """Five a decade from 100 us to 1000 s, each rightly rounded, each at most 1.6 times the one before."""
    assert len(BOUNDS) == BUCKETS - 1 == 36
    assert (BOUNDS[0], BOUNDS[-1]) == (1e-4, 1e3)
    assert BOUNDS[5:11] == (0.001, 0.0016, 0.0025, 0.004, 0.0063, 0.01)
    assert all(1.55 < b / a < 1.61 for a, b in itertools.pairwise(BOUNDS))


def test_buckets() -> None:
    """A bound belongs to the bucket below it; the first and the last have what is beyond."""
    for number, bound in enumerate(BOUNDS):
        assert bucket(bound) == number
        assert bucket(nextafter(bound, inf)) == number + 1
    assert bucket(-1.0) == bucket(0.0) == 0
    assert bucket(inf) == bucket(1e9) == BUCKETS - 1


@given(st.lists(_histograms, max_size=4))
def test_sums(histograms: list[tuple[int, ...]]) -> None:
    """However they are added up, the sum is the same, and taking a part away leaves the others."""
    whole = added(histograms)
    assert sum(whole) == sum(map(sum, histograms))
    assert whole == added([added(histograms[:2]), added(histograms[2:])]) == added(reversed(histograms))
    assert not whole or whole[-1] > 0
    if histograms:
        assert since(whole, histograms[0]) == added(histograms[1:])


def test_what_goes_back() -> None:
    """A peer may say anything: nothing becomes negative by it."""
    assert since((1, 0, 3), (2, 0, 1)) == (0, 0, 2)
    assert since((1,), (2, 5)) == ()
    assert since((1, 2), (1, 2)) == ()


def test_quantiles() -> None:
    """None of nothing; within a bucket as Prometheus interpolates; the last bound where it was longer."""
    assert quantile((), 0.95) is None
    assert quantile((0, 0), 0.95) is None
    assert quantile((4,), 0.5) == pytest.approx(0.00005)
    ten_milliseconds = (0,) * bucket(0.008) + (10,)
    assert quantile(ten_milliseconds, 1.0) == 0.01
    assert quantile(ten_milliseconds, 0.5) == pytest.approx((0.0063 + 0.01) / 2)
    assert quantile((*([0] * (BUCKETS - 1)), 1), 0.5) == 1000.0


@given(st.lists(_seconds, min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_quantile_against_the_truth(took: list[float], share: float) -> None:
    """A quantile is in the bucket of the value that stands at that place, when all are sorted."""
    found = quantile(histogram(took), share)
    true = sorted(took)[ceil(share * len(took)) - 1]
    assert found is not None
    number = bisect_left(BOUNDS, true)
    assert (BOUNDS[number - 1] if number else 0.0) <= found <= BOUNDS[min(number, len(BOUNDS) - 1)]

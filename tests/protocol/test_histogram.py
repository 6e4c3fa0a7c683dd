"""Histograms: buckets, sums, and the error of quantiles."""

from __future__ import annotations

import itertools
from math import inf, nextafter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connmon.protocol.histogram import (
    BOUNDS,
    BUCKETS,
    EMPTY,
    ERROR_FRACTION,
    Histogram,
    added,
    bucket,
    changed,
    merged,
    of,
    ordered,
    quantile,
    since,
)

PERCENTS = (50, 95, 99)
_histograms = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, 5))


def exact(took: list[float], percent: int) -> float:
    """Return the smallest value that at least so many per cent of the values do not exceed."""
    values = sorted(took)
    return next(value for place, value in enumerate(values, 1) if place * 100 >= percent * len(values))


def right(took: list[float]) -> bool:
    counts = of(took)
    shown = [quantile(counts, percent) for percent in PERCENTS]
    return all(
        value is not None and abs(value - (true := exact(took, percent))) <= ERROR_FRACTION * true
        for value, percent in zip(shown, PERCENTS, strict=True)
    )


def test_bounds() -> None:
    """There are 15 bounds per decade from 1 us to 1,000,000 s, each at most 1.2 times the previous one."""
    assert len(BOUNDS) == BUCKETS - 1 == 181
    assert (BOUNDS[0], BOUNDS[-1]) == (1e-6, 1e6)
    assert BOUNDS[45:52] == (0.001, 0.0012, 0.0014, 0.0016, 0.0019, 0.0022, 0.0025)
    assert all(1.13 < b / a <= 1.2 + 1e-9 for a, b in itertools.pairwise(BOUNDS))


def test_coarser_bounds_are_among_them() -> None:
    """The bounds include the R5 series, from which Prometheus's buckets are derived."""
    assert {float(f"{step}e{decade}") for decade in range(-6, 6) for step in (1, 1.6, 2.5, 4, 6.3)} <= set(
        BOUNDS
    )


def test_buckets() -> None:
    """A bound belongs to the bucket below it; the first and the last bucket count everything beyond."""
    for number, bound in enumerate(BOUNDS):
        assert bucket(bound) == number
        assert bucket(nextafter(bound, inf)) == number + 1
    assert bucket(-1.0) == bucket(0.0) == 0
    assert bucket(inf) == bucket(1e9) == BUCKETS - 1


@given(st.lists(_histograms, max_size=4))
def test_sums(histograms: list[Histogram]) -> None:
    """Sums do not depend on the order, and subtracting a part leaves the others."""
    whole = added(histograms)
    assert sum(whole.values()) == sum(sum(counts.values()) for counts in histograms)
    assert whole == added([added(histograms[:2]), added(histograms[2:])]) == added(reversed(histograms))
    assert all(whole.values())
    assert ordered(whole) == whole
    assert list(ordered(whole)) == sorted(whole)
    if histograms:
        assert since(whole, histograms[0]) == added(histograms[1:])


@given(_histograms, _histograms)
def test_changes(before: Histogram, more: Histogram) -> None:
    """Merging the changes into the old counts gives the new ones; unchanged buckets are left out."""
    now = added([before, more])
    assert merged(before, changed(now, before)) == now
    assert changed(now, before).keys() == more.keys()


def test_what_goes_back() -> None:
    """Whatever a peer sends, no count becomes negative or goes back."""
    assert since({0: 1, 2: 3}, {0: 2, 2: 1}) == {2: 2}
    assert since({0: 1}, {0: 2, 1: 5}) == {}
    assert since({0: 1, 1: 2}, {0: 1, 1: 2}) == {}
    assert merged({0: 5}, {0: 3, 1: 1}) == {0: 5, 1: 1}


def test_quantiles() -> None:
    """The quantile of nothing is None; beyond the bounds it is the bound."""
    assert quantile(EMPTY, 95) is None
    assert quantile(of([1e-9]), 50) == 1e-6
    assert quantile(of([1e9]), 50) == 1e6


@pytest.mark.parametrize("seconds", [30.0, 0.025, 0.1, 1.0, 3600.0, 0.00002, *BOUNDS])
def test_quantiles_of_equal_values(seconds: float) -> None:
    """A thousand equal values give three equal quantiles within the error, also just above each bound."""
    assert right([seconds] * 1000)
    assert right([min(nextafter(seconds, inf), BOUNDS[-1])] * 1000)


@given(st.lists(st.floats(BOUNDS[0], BOUNDS[-1]), min_size=1, max_size=60))
@example([1.0] * 94 + [2.0] * 5 + [1000.0])  # the places at which a share falls between two values
@example([1.0] * 95 + [1000.0] * 5)
@example([1.0] * 99 + [1000.0])
def test_quantiles_against_the_truth(took: list[float]) -> None:
    """p50, p95 and p99 are within the error of the exact quantiles, for any values."""
    assert right(took)


@given(
    st.lists(st.tuples(st.floats(-6, 6), st.integers(1, 500)), min_size=1, max_size=8),
    st.lists(st.floats(BOUNDS[0], 1.0), max_size=20),
)
def test_quantiles_of_lumps_against_the_truth(lumps: list[tuple[float, int]], more: list[float]) -> None:
    """The same holds for repeated values over all decades, and for sums of parts."""
    parts = [[min(max(10.0**power, BOUNDS[0]), BOUNDS[-1])] * times for power, times in lumps] + [more]
    took = list(itertools.chain(*parts))
    assert right(took)
    assert added(of(part) for part in parts) == of(took)


def test_the_bound_by_construction() -> None:
    """In each bucket the quantile is within the error of every value that may be in it."""
    for low, high in itertools.pairwise(BOUNDS):
        shown = quantile({bucket(high): 1}, 50)
        assert shown is not None
        assert shown - low <= ERROR_FRACTION * low
        assert high - shown <= ERROR_FRACTION * high
    assert ERROR_FRACTION < 0.1

"""Splitting what a pool counts over call sites and places: exact sums, and what looks are worth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.plugin.hold_profile import (
    Counted,
    HeldTime,
    Lateness,
    Places,
    PoolProfile,
    PoolTotals,
    ProfileSettings,
    Sample,
    Split,
    added_profiles,
    apportion,
)
from connmon.protocol.reports import HoldProfile
from connmon.protocol.values import COMPUTING, OTHER_LABELS

AT_ONCE = Lateness(late=False, preempted=False)
LATE = Lateness(late=True, preempted=False)
PREEMPTED = Lateness(late=True, preempted=True)

weights = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-1.0, 1e9))


@given(st.integers(0, 10**12), weights)
def test_parts_sum_to_the_whole(total: int, shares: dict[str, float]) -> None:
    """Whole parts sum to the total, differ from the exact ones by less than 1, and none is without weight."""
    parts = apportion(total, shares)
    whole = sum(weight for weight in shares.values() if weight > 0.0)
    assert sum(parts.values()) == (total if whole > 0.0 else 0)
    for key, part in parts.items():
        assert shares[key] > 0.0
        assert part == pytest.approx(total * (shares[key] / whole), abs=1.01, rel=1e-9)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 5_000.0)), max_size=60))
def test_what_is_counted_is_split_exactly(steps: list[tuple[str, float]]) -> None:
    """Parts never go back and sum to the total; each is right to as many units as there are parts."""
    split: Split[str] = Split()
    exact: dict[str, float] = {}
    for key, more in steps:
        before = dict(split.parts)
        exact[key] = exact.get(key, 0.0) + more
        split.settle(int(sum(exact.values())), exact)
        assert sum(split.parts.values()) == split.whole == int(sum(exact.values()))
        assert all(split.parts[name] >= part for name, part in before.items())
        assert all(part == pytest.approx(exact[name], abs=3.0) for name, part in split.parts.items())


def test_a_rest_waits_until_something_is_known_of_it() -> None:
    """What is neither counted nor estimated is in no part; then it is split by the weights."""
    split: Split[str] = Split()
    split.settle(1_000, {"a": 400.0})
    assert split.parts == {"a": 400}
    assert split.rest(1_000.0, {"a": 400.0}) == 600.0
    assert not split.estimate(600.0, {})
    assert split.estimate(600.0, {"b": 2.0, "c": 1.0})
    split.settle(1_000, {"a": 400.0})
    assert split.parts == {"a": 400, "b": 400, "c": 200}


def settled(
    profile: PoolProfile[str],
    now: float,
    counted: dict[str, Counted],
    total: HeldTime,
    holds: int = 0,
    samples: dict[str, Sample] | None = None,
    waited_ms: int = 0,
) -> None:
    totals = PoolTotals(
        held_ms=int(total.seconds * 1000.0),
        holds=holds,
        waited_ms=waited_ms,
        held=total,
        sampled=samples is not None,
    )
    profile.settle(now, totals, counted, samples or {}, "(other)")


def test_counted_call_sites_are_not_estimated() -> None:
    """Where every checkout is noted, seconds and holds are those of each call site's own holds."""
    profile: PoolProfile[str] = PoolProfile()
    counted = {"a": Counted(seconds=1.5, holds=3), "b": Counted(seconds=0.5, holds=1)}
    settled(profile, 1.0, counted, HeldTime(seconds=2.0), holds=4)
    assert profile.of("a") == HoldProfile(holds=3, held_ms=1_500)
    assert profile.of("b") == HoldProfile(holds=1, held_ms=500)


def test_short_holds_by_the_sample_and_long_ones_by_looks() -> None:
    """Of 100 s that were not noted, 10 s of young holds go by noted holds, 90 s of old ones by looks."""
    profile: PoolProfile[str] = PoolProfile()
    profile.see_old({"slow": 1.0}, 9.0)
    samples = {"fast": Sample(holds=900.0, young_seconds=9.0), "slow": Sample(holds=10.0, young_seconds=1.0)}
    counted = {"fast": Counted(seconds=1.0, holds=100), "slow": Counted()}
    settled(profile, 1.0, counted, HeldTime(seconds=101.0, old_seconds=90.0), holds=1_010, samples=samples)
    assert profile.held.parts == {"fast": 10_000, "slow": 91_000}
    assert profile.holds.parts == {"fast": 1_000, "slow": 10}


def test_time_of_which_nothing_is_known_goes_like_the_rest_after_a_while() -> None:
    """A rest is held back for the patience of the settings, then it is split as all time so far."""
    profile: PoolProfile[str] = PoolProfile(ProfileSettings(patience_seconds=10.0))
    counted = {"a": Counted(seconds=3.0), "b": Counted(seconds=1.0)}
    settled(profile, 1.0, counted, HeldTime(seconds=8.0))
    assert profile.held.whole == 4_000
    settled(profile, 10.0, counted, HeldTime(seconds=8.0))
    assert profile.held.whole == 4_000
    settled(profile, 11.0, counted, HeldTime(seconds=8.0))
    assert profile.held.parts == {"a": 6_000, "b": 2_000}


def test_without_any_call_site_it_is_of_the_others() -> None:
    """With connmon_trace=off all time belongs to the other call sites."""
    profile: PoolProfile[str] = PoolProfile(ProfileSettings(patience_seconds=0.0))
    settled(profile, 1.0, {}, HeldTime(seconds=8.0))
    assert profile.held.parts == {"(other)": 8_000}


def test_waits_are_caused_by_those_who_hold() -> None:
    """The time that others waited is split by what was held while somebody waited."""
    profile: PoolProfile[str] = PoolProfile()
    profile.see_cause("a", 3.0)
    profile.see_cause("b", 1.0)
    counted = {"a": Counted(seconds=1.0), "b": Counted(seconds=1.0), "c": Counted(waited_seconds=4.0)}
    settled(profile, 1.0, counted, HeldTime(seconds=2.0), waited_ms=4_000)
    assert profile.caused.parts == {"a": 3_000, "b": 1_000}
    assert profile.waited.parts == {"c": 4_000}


def test_places_split_what_is_held() -> None:
    """Places split a call site's time, of which nothing is known before somebody has looked."""
    places = Places(ProfileSettings())
    places.settle(1_000)
    assert places.split.parts == {}
    places.see("database", 1.0, AT_ONCE)
    places.see("requests", 3.0, AT_ONCE)
    places.settle(2_000)
    assert places.split.parts == {"database": 500, "requests": 1_500}
    assert places.split.whole == 2_000


def test_a_holder_that_computes_is_met_in_the_driver() -> None:
    """Half of the looks were late and met the driver: the holder computed until then."""
    places = Places(ProfileSettings())
    places.compute(5.0, 10.0)
    places.see("database", 50.0, AT_ONCE)
    places.see("database", 50.0, LATE)
    places.settle(10_000)
    assert places.split.parts == {"database": 5_000, COMPUTING: 5_000}


def test_what_is_preempted_shows_where_it_computes() -> None:
    """Where late looks have stopped a holder in the middle, the computed part goes there."""
    places = Places(ProfileSettings())
    places.compute(5.0, 10.0)
    places.see("database", 50.0, AT_ONCE)
    places.see("sqlalchemy", 50.0, PREEMPTED)
    places.settle(10_000)
    assert places.split.parts == {"database": 5_000, "sqlalchemy": 5_000}


def test_late_looks_because_of_others_count() -> None:
    """A holder that does not compute is seen rightly, however late others make the looks."""
    places = Places(ProfileSettings())
    places.compute(0.01, 10.0)
    places.see("database", 25.0, LATE)
    places.see("time.sleep", 75.0, PREEMPTED)
    places.settle(10_000)
    assert places.split.parts == {"database": 2_500, "time.sleep": 7_500}


@given(st.lists(st.sampled_from([f"package{number}" for number in range(40)]), min_size=1, max_size=200))
def test_places_are_bounded(seen: list[str]) -> None:
    """However many places there are, few are kept apart, and the sum is right."""
    settings = ProfileSettings(places=7)
    places = Places(settings)
    for number, place in enumerate(seen):
        places.see(place, 1.0, PREEMPTED if number % 3 else AT_ONCE)
        places.compute(0.5, 1.0)
        places.settle(1_000 * (number + 1))
    assert len(places.split.parts) <= 9
    assert sum(places.split.parts.values()) == 1_000 * len(seen)
    if len(set(seen)) > settings.places + 1:
        assert OTHER_LABELS in places.split.parts


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.floats(0.0, 3.0),
            st.floats(0.0, 3.0),
            st.booleans(),
            st.integers(0, 20),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_nothing_ever_goes_back(steps: list[tuple[str, float, float, bool, int]]) -> None:
    """Whatever is counted, seen or missing: parts grow only, never beyond the total, and reach it at last."""
    profile: PoolProfile[str] = PoolProfile()
    counted: dict[str, Counted] = {}
    seconds = old_seconds = 0.0
    holds, now = 0, 0.0
    for call_site, noted, unnoted, look, ended in steps:
        now += 1.0
        before = counted.get(call_site, Counted())
        counted[call_site] = before._replace(seconds=before.seconds + noted, holds=before.holds + 1)
        seconds += noted + unnoted
        old_seconds += unnoted / 2.0
        holds += 1 + ended
        if look:
            profile.see_old({call_site: 1.0} if ended else {}, 1.0)
            profile.places_of(call_site).see("database", 1.0, AT_ONCE)
        parts = dict(profile.held.parts)
        samples = {call_site: Sample(holds=float(ended), young_seconds=unnoted)} if ended else {}
        total = HeldTime(seconds=seconds, old_seconds=old_seconds)
        settled(profile, now, counted, total, holds=holds, samples=samples, waited_ms=int(seconds * 100.0))
        assert all(profile.held.parts[name] >= part for name, part in parts.items())
        assert profile.held.whole <= int(seconds * 1000.0)
        assert profile.holds.whole <= holds
        for name in profile.held.parts:
            of = profile.of(name)
            assert sum(of.where.values()) <= of.held_ms
    for _ in range(3):
        now += 20.0
        settled(
            profile, now, counted, HeldTime(seconds=seconds, old_seconds=old_seconds), holds=holds,
            waited_ms=int(seconds * 100.0),
        )  # fmt: skip
    assert profile.held.whole == pytest.approx(int(seconds * 1000.0), abs=1)
    assert profile.holds.whole == holds


def test_a_closed_pools_profile_goes_to_its_heir() -> None:
    """The heir's call sites have the sum, and go on from there."""
    closed: PoolProfile[str] = PoolProfile()
    heir: PoolProfile[str] = PoolProfile()
    closed.places_of("a").see("database", 1.0, AT_ONCE)
    settled(closed, 1.0, {"a": Counted(seconds=2.0, holds=1)}, HeldTime(seconds=2.0), holds=1)
    settled(heir, 1.0, {"b": Counted(seconds=1.0, holds=1)}, HeldTime(seconds=1.0), holds=1)
    heir.absorb(closed, {"a": "b"})
    assert heir.of("b") == HoldProfile(holds=2, held_ms=3_000, where={"database": 2_000})
    settled(heir, 2.0, {"b": Counted(seconds=3.0, holds=2)}, HeldTime(seconds=3.0), holds=2)
    assert heir.held.parts == {"b": 3_000}


def test_waits_that_nobody_caused_are_settled_once() -> None:
    """Waits of a pool that holds nothing go to all others after a while; then nothing is pending."""
    profile: PoolProfile[str] = PoolProfile()
    settled(profile, 1.0, {}, HeldTime(), waited_ms=1_000)
    assert profile.pending
    for now in (13.0, 14.0):
        settled(profile, now, {}, HeldTime(), waited_ms=1_000)
    assert profile.caused.parts == {OTHER_LABELS: 1_000}
    assert not profile.pending


def test_sums_of_profiles() -> None:
    """The sum has the sum of each figure, and at most so many places."""
    one = HoldProfile(holds=1, held_ms=2, waited_ms=3, caused_ms=4, where={"database": 1, "requests": 1})
    two = HoldProfile(holds=10, held_ms=20, waited_ms=30, caused_ms=40, where={"boto3": 5, "database": 7})
    assert added_profiles([one, two], {}, places=2) == HoldProfile(
        holds=11, held_ms=22, waited_ms=33, caused_ms=44, where={"database": 8, "requests": 1, "(other)": 5}
    )

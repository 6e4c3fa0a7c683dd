"""Profiles of a stretch of time: from a node's recent sums, and between two answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.errors import ConnmonError
from connmon.protocol.reports import HoldProfile
from connmon.protocol.rows import SiteRow
from connmon.reader.profile import (
    MeasuredProfile,
    SiteTotals,
    database_share,
    fitted,
    profile_between,
    recent_profile,
    total_of,
    unknown_ms,
)
from tests.support import json_rows


def hold_profile(
    held_ms: int = 0,
    where: Mapping[str, int] | None = None,
    *,
    holds: int = 0,
    waited_ms: int = 0,
    caused_ms: int = 0,
) -> HoldProfile:
    return HoldProfile(
        holds=holds, held_ms=held_ms, waited_ms=waited_ms, caused_ms=caused_ms, where=where or {}
    )


def site_row(call_site: str = "shop.py:12 order", **changes: Any) -> SiteRow:
    """Return a row with a profile of what these changes say; `seconds` is what `recent` covers."""
    given = {"host": "web1", "program": "shop", "call_site": call_site, "reported": 100.0}
    return json_rows.site_row(**(given | changes))


def totals(*rows: SiteRow, node: str = "node1", epoch: str = "e1", version: int = 7) -> SiteTotals:
    return SiteTotals(node, epoch, version, rows)


def held(measured: MeasuredProfile) -> dict[str, float]:
    return {site.call_site: round(site.mean_held, 3) for site in measured.sites}


# --- The last one to two minutes ------------------------------------------------------------


def test_the_recent_profile_has_the_most_time_first() -> None:
    """Call sites that held nothing and waited for nothing are left out; the head has the whole stretch."""
    measured = recent_profile(
        totals(
            site_row("a", recent=hold_profile(10_000), recent_seconds=100.0),
            site_row("b", recent=hold_profile(50_000, {"database": 20_000}), recent_seconds=100.0),
            site_row("c", recent=hold_profile(), recent_seconds=100.0, profile=hold_profile(9_000)),
            site_row("d", recent=hold_profile(waited_ms=5), recent_seconds=100.0),
        )
    )
    assert held(measured) == {"b": 0.5, "a": 0.1, "d": 0.0}
    assert (measured.node, measured.seconds, measured.mean_held) == ("node1", 100.0, 0.6)
    assert not measured.several_hosts


def test_a_call_site_that_is_new_has_held_nothing_before() -> None:
    """Its mean is over the whole stretch, like those of the others, not over the second since it is known."""
    rows = (
        site_row("old", recent=hold_profile(100_000), recent_seconds=100.0),
        site_row("new", recent=hold_profile(1_000), recent_seconds=1.0),
    )
    assert held(recent_profile(totals(*rows))) == {"old": 1.0, "new": 0.01}


def test_what_comes_after_the_last_report_does_not_count() -> None:
    """A process that reported 20 s before the others is known for 20 s less."""
    rows = (
        site_row("now", recent=hold_profile(100_000), recent_seconds=100.0, reported=500.0),
        site_row("quiet", recent=hold_profile(80_000), recent_seconds=80.0, reported=480.0),
    )
    assert held(recent_profile(totals(*rows))) == {"now": 1.0, "quiet": 1.0}


def test_call_sites_whose_processes_are_lost() -> None:
    """Nobody has reported them for long: what they held counts for the time that is known."""
    rows = (
        site_row("lost", recent=hold_profile(60_000), recent_seconds=60.0, reported=None),
        site_row("gone", recent=hold_profile(), recent_seconds=0.0, reported=None),
        site_row("here", recent=hold_profile(100_000), recent_seconds=100.0),
    )
    assert held(recent_profile(totals(*rows))) == {"here": 1.0, "lost": 1.0}


def test_no_call_sites() -> None:
    """A node that knows no call sites has a profile without any."""
    measured = recent_profile(totals())
    assert (measured.sites, measured.seconds, measured.mean_held) == ([], 0.0, 0)


def test_programs_whose_connmon_keeps_no_profile() -> None:
    """They are named once each; a program with some processes of a new version is not."""
    rows = (
        site_row("a", program="old"), site_row("b", program="old"),
        site_row("a", program="mixed"), site_row("b", program="mixed", profile=hold_profile(5)),
    )  # fmt: skip
    assert list(recent_profile(totals(*rows)).without) == [("web1", "old")]


def test_only_some_programs() -> None:
    """Programs are chosen by their exact names; without a name, all are."""
    answer = totals(*(site_row("x", program=name) for name in ("shop", "shop-api", "api")))
    assert answer.programs == ["api", "shop", "shop-api"]
    assert [row.program for row in answer.of(["shop", "api"]).rows] == ["shop", "api"]
    assert answer.of([]) is answer


# --- Between two answers --------------------------------------------------------------------


def test_a_measurement_is_the_difference_of_two_answers() -> None:
    """A call site that is new has its whole total; one that did nothing meanwhile is left out."""
    before = totals(
        site_row("a", profile=hold_profile(5_000, {"database": 5_000}, holds=10, waited_ms=7, caused_ms=9)),
        site_row("idle", profile=hold_profile(70_000)),
        site_row("removed", profile=hold_profile(70_000)),
    )
    after = totals(
        site_row(
            "a",
            profile=hold_profile(
                25_000, {"database": 8_000, "requests": 15_000}, holds=14, waited_ms=8, caused_ms=11
            ),
            reported=110.0,
        ),
        site_row("idle", profile=hold_profile(70_000), reported=110.0),
        site_row("new", profile=hold_profile(1_000), reported=110.0),
        node="node2",
    )
    measured = profile_between(before, after, 10.0)
    assert held(measured) == {"a": 2.0, "new": 0.1}
    assert measured.sites[0].profile == hold_profile(
        20_000, {"database": 3_000, "requests": 15_000}, holds=4, waited_ms=1, caused_ms=2
    )
    assert (measured.node, measured.seconds) == ("node2", 10.0)


def test_means_are_over_what_the_reports_cover() -> None:
    """A quiet process reports every 5 s: one connection held all the time is one, however short N is."""
    before = totals(site_row("a", profile=hold_profile(5_000), reported=105.0))
    after = totals(site_row("a", profile=hold_profile(10_000), reported=110.0))
    assert held(profile_between(before, after, 2.0)) == {"a": 1.0}


@pytest.mark.parametrize(("before", "after"), [(None, 108.0), (108.0, None), (108.0, 108.0), (108.0, 3.0)])
def test_without_two_reports_the_time_between_the_answers_counts(
    before: float | None, after: float | None
) -> None:
    """So it is where the processes of a call site are lost or have ended."""
    measured = profile_between(
        totals(site_row("a", profile=hold_profile(1_000), reported=before)),
        totals(site_row("a", profile=hold_profile(2_000), reported=after)),
        4.0,
    )
    assert held(measured) == {"a": 0.25}


def test_totals_that_all_nodes_have_forgotten() -> None:
    """Another epoch has other totals: one line says so, whether they are larger or smaller."""
    for held_ms in (1, 99_999):
        with pytest.raises(ConnmonError, match="restarted and forgotten the totals"):
            profile_between(
                totals(site_row("a", profile=hold_profile(500))),
                totals(site_row("a", profile=hold_profile(held_ms)), epoch="e2"),
                5.0,
            )
    # A cluster that had heard of nothing has forgotten nothing.
    assert held(profile_between(totals(epoch=""), totals(site_row("a", profile=hold_profile(500))), 5.0)) == {
        "a": 0.1
    }


def test_a_second_answer_that_is_older_than_the_first() -> None:
    """A node that is behind is no source of a difference: one line names it."""
    with pytest.raises(ConnmonError, match="node2 is behind node1, which was read before"):
        profile_between(totals(version=8), totals(node="node2", version=7), 5.0)


def test_a_program_that_was_forgotten_and_has_come_back() -> None:
    """Its totals have begun again, and all that they have is of the time since."""
    before = totals(site_row("a", profile=hold_profile(900_000, {"database": 9}, holds=80)))
    after = totals(site_row("a", profile=hold_profile(500, {"own code": 500}, holds=1)), version=9)
    (site,) = profile_between(before, after, 5.0).sites
    assert site.profile == hold_profile(500, {"own code": 500}, holds=1)


def test_places_that_are_reported_later_than_the_hold() -> None:
    """They are scaled down to what was held meanwhile; their ratio stays."""
    before = totals(site_row("a", profile=hold_profile(10_000)))
    after = totals(site_row("a", profile=hold_profile(11_000, {"database": 3_000, "requests": 6_000})))
    (site,) = profile_between(before, after, 1.0).sites
    assert site.profile.where == {"database": 333, "requests": 667}
    assert unknown_ms(site.profile) == 0


PLACES = st.dictionaries(
    st.sampled_from(["database", "own code", "requests", "(other)"]), st.integers(0, 10**12)
)


@given(PLACES, st.integers(0, 10**12))
def test_places_fit_into_what_was_held(where: dict[str, int], held_ms: int) -> None:
    """They sum to what was held or to less, none is negative, and each is off its part by 1 ms at most."""
    places = fitted(where, held_ms)
    looked_ms = sum(where.values())
    assert sum(places.values()) == min(held_ms, looked_ms)
    assert all(ms >= 0 for ms in places.values())
    for label, ms in where.items():
        part = ms if looked_ms <= held_ms else ms * held_ms / looked_ms
        assert abs(places.get(label, 0) - part) <= 1.0 + part * 1e-9


PROFILES = st.builds(
    HoldProfile,
    holds=st.integers(0, 10**6),
    held_ms=st.integers(0, 10**9),
    waited_ms=st.integers(0, 10**9),
    caused_ms=st.integers(0, 10**9),
    where=PLACES,
)


@given(st.lists(st.tuples(PROFILES, PROFILES), max_size=5), st.floats(0.1, 1e5))
def test_no_difference_is_negative(pairs: list[tuple[HoldProfile, HoldProfile]], seconds: float) -> None:
    """Whatever two answers say, nothing is negative, and places sum to at most what was held."""
    before, after = (
        totals(*(site_row(str(number), profile=pair[which]) for number, pair in enumerate(pairs)))
        for which in (0, 1)
    )
    measured = profile_between(before, after, seconds)
    total = total_of(measured.sites)
    for profile in (total, *(site.profile for site in measured.sites)):
        assert min(profile.holds, profile.held_ms, profile.waited_ms, profile.caused_ms) >= 0
        assert all(ms >= 0 for ms in profile.where.values())
        assert sum(profile.where.values()) + unknown_ms(profile) == profile.held_ms
        share = database_share(profile)
        assert share is None or 0.0 <= share <= 1.0

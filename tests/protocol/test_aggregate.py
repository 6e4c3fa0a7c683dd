"""Aggregates of figures: each rule by example, and that the grouping of the parts does not matter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.protocol.aggregate import (
    CALL_SITE_RULES,
    CONNECTS_PER_SECOND,
    FIGURES_RULES,
    JSON_RULES,
    aggregate,
    aggregate_figures,
    aggregate_state,
)
from connmon.protocol.document import FIGURES, KEYS
from connmon.protocol.reports import HoldProfile
from connmon.protocol.rows import Figures
from connmon.protocol.typed_rows import one_row
from connmon.protocol.values import LARGEST, Gauges, RowState, Totals
from tests.support.json_rows import site_row

Cells = dict[str, Any]


def of_json(*parts: tuple[RowState, Cells]) -> Cells:
    """Return the aggregate of rows of the JSON contract; a figure that a part does not name is 0."""
    cells = [dict.fromkeys(FIGURES, 0) | part for _, part in parts]
    return aggregate(cells, JSON_RULES, [state for state, _ in parts], dict.__getitem__)


def figures(connected: bool = True, **values: Any) -> Figures:
    """Return figures of one process."""
    given = dict.fromkeys(FIGURES_RULES, 0) | {
        "processes": int(connected),
        "lost_processes": int(not connected),
        "gauges": Gauges(),
        "totals": Totals(),
        "waiting_since": None,
        "held_since": None,
        "reported": 0.0,
    }
    return Figures(**(given | values))


# --- the JSON contract --------------------------------------------------------------------------


def test_each_figure_has_a_rule() -> None:
    """No figure of the contract and no field on the wire is forgotten."""
    assert tuple(JSON_RULES) == FIGURES
    named = {"waits", "holds", "connects", "verdicts"}
    assert {*FIGURES_RULES, *named} == set(Figures.__struct_fields__)
    apart = {"host", "program", "call_site", "share", "verdict", "verdict_reason"}
    assert {*CALL_SITE_RULES, *apart} == set(KEYS["site"])


def test_gauges_are_of_rows_that_report() -> None:
    """A lost row adds its totals and maxima, and no present."""
    row = of_json(
        ("connected", {"connections": 3, "checkouts_total": 10, "max_connections": 5, "processes": 1}),
        ("lost", {"connections": None, "checkouts_total": 4, "max_connections": 2, "processes": 0}),
    )
    assert (row["connections"], row["checkouts_total"], row["max_connections"]) == (3, 14, 7)
    assert row["processes"] == 1


@pytest.mark.parametrize("other", ["lost", "gone"])
def test_the_present_of_lost_rows_is_unknown(other: RowState) -> None:
    """Where no row reports, gauges are unknown as soon as one row is lost."""
    row = of_json(("lost", {"waiting": None}), (other, {}))
    assert row["waiting"] is row["checkouts_per_second"] is None


def test_gone_rows_have_nothing() -> None:
    """Where all rows are gone, gauges are 0."""
    row = of_json(("gone", {}), ("gone", {}))
    assert row["waiting"] == row["checkouts_per_second"] == 0


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    """A pool without a limit makes the capacity of everything unknown."""
    row = of_json(("connected", {"capacity": None, "pools": 1}), ("connected", {"capacity": 15, "pools": 1}))
    assert (row["capacity"], row["pools"]) == (None, 2)


def test_ages_are_the_longest_and_the_last_report_is_the_latest() -> None:
    """Waits, holds and percentiles are the worst of the rows that know their own."""
    row = of_json(
        ("connected", {"longest_held_seconds": 2.0, "wait_p95_seconds": None, "last_report_seconds": 0.5}),
        ("connected", {"longest_held_seconds": 9.0, "wait_p95_seconds": 0.1, "last_report_seconds": 4.0}),
        ("lost", {"longest_held_seconds": None, "wait_p95_seconds": None, "last_report_seconds": 60.0}),
    )
    assert (row["longest_held_seconds"], row["wait_p95_seconds"]) == (9.0, 0.1)
    assert row["last_report_seconds"] == 0.5


def test_left_out_is_none_where_nothing_is_left_out() -> None:
    """None means none, so it makes no sum unknown."""
    three, none = {"left_out": 3}, {"left_out": None}
    assert of_json(("connected", three), ("connected", none))["left_out"] == 3
    assert of_json(("connected", none), ("connected", none))["left_out"] is None


def test_recent_timeouts_of_a_lost_row_are_unknown() -> None:
    """They are of the last minutes, which are unknown of a lost row."""
    row = of_json(("connected", {"recent_timeouts": 2}), ("lost", {"recent_timeouts": None}))
    assert row["recent_timeouts"] is None


def test_the_derived_rate_is_unknown_without_a_reporting_row() -> None:
    """Connects per second are summed over rows that report."""
    rules, cells = {"rate": CONNECTS_PER_SECOND}, [{"rate": 2.5}, {"rate": None}]
    assert aggregate(cells, rules, ["connected", "lost"], dict.__getitem__) == {"rate": 2.5}
    assert aggregate(cells, rules, ["gone", "lost"], dict.__getitem__) == {"rate": None}


def test_one_connected_row_makes_an_aggregate_connected() -> None:
    """Else one lost row makes it lost."""
    assert aggregate_state(["lost", "connected", "gone"]) == "connected"
    assert aggregate_state(["gone", "lost"]) == "lost"
    assert aggregate_state([]) is None


_STATES: tuple[RowState, ...] = ("connected", "lost", "gone")
_ALWAYS_KNOWN = [name for name in FIGURES if name.endswith("_total") or "processes" in name]


@st.composite
def _json_rows(draw: st.DrawFn) -> tuple[RowState, Cells]:
    """Return a row as a node sends it: a row that does not report has no present."""
    state = draw(st.sampled_from(_STATES))
    counts = draw(st.lists(st.integers(0, 9), min_size=len(FIGURES), max_size=len(FIGURES)))
    cells: Cells = dict(zip(FIGURES, counts, strict=True))
    unknown = FIGURES if state != "connected" else draw(st.sets(st.sampled_from(FIGURES), max_size=4))
    return state, cells | {name: None for name in unknown if name not in _ALWAYS_KNOWN}


def _groups(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[list[list[Any]]]:
    return st.lists(st.lists(parts, min_size=1, max_size=4), min_size=1, max_size=4)


@given(_groups(_json_rows()))
def test_aggregates_of_json_rows_can_be_aggregated(groups: list[list[tuple[RowState, Cells]]]) -> None:
    """Aggregating by host and then everything is the same as aggregating everything, in any order."""
    parts = []
    for rows in groups:
        state = aggregate_state([state for state, _ in rows])
        assert state is not None
        parts.append((state, of_json(*rows)))
    everything = [row for rows in groups for row in rows]
    assert of_json(*parts) == of_json(*everything) == of_json(*reversed(everything))


# --- the wire -----------------------------------------------------------------------------------


def test_a_state_lasts_until_the_report_of_its_own_process() -> None:
    """The oldest hold is not the longest where its process has reported long ago."""
    parts = [figures(reported=10.0, held_since=0.0), figures(reported=20.0, held_since=5.0)]
    found = aggregate_figures(parts)
    assert (found.reported, found.held_since, found.waiting_since) == (20.0, 5.0, None)
    assert aggregate_figures(parts, reported=30.0).held_since == 15.0


def test_known_rates_are_summed() -> None:
    """A process without a second report has no rate; only where none has one is the sum unknown."""
    parts = [figures(checkouts_per_second=None), figures(checkouts_per_second=2.0)]
    assert aggregate_figures(parts).checkouts_per_second == 2.0
    assert aggregate_figures(parts[:1]).checkouts_per_second is None
    lost = figures(connected=False, checkouts_per_second=0.0)
    states: list[RowState] = ["connected", "lost"]
    assert aggregate_figures([parts[0], lost], states).checkouts_per_second is None
    assert aggregate_figures([]).checkouts_per_second == 0.0


def test_sums_on_the_wire_are_capped() -> None:
    """A reader refuses larger counts."""
    part = figures(
        gauges=Gauges(connections=LARGEST), totals=Totals(checkouts=LARGEST), left_out=LARGEST
    )  # fmt: skip
    found = aggregate_figures([part, part])
    assert found.gauges.connections == found.totals.checkouts == found.left_out == LARGEST


def test_what_the_caller_knows_is_taken_over() -> None:
    """Parts need no field that is given, and a given field is not aggregated."""
    assert aggregate_figures([figures(), figures()], max_processes=1).max_processes == 1


_counts = st.integers(0, 9)
_seconds = st.integers(0, 1_000).map(float)
_figures = st.builds(
    figures,
    st.booleans(),
    gauges=_counts.map(lambda count: Gauges(connections=count, waiting=9 - count)),
    totals=_counts.map(lambda count: Totals(checkouts=count)),
    max_connections=_counts,
    longest_wait=_seconds,
    held_since=st.none() | _seconds.map(lambda since: -since),
    checkouts_per_second=st.none() | _seconds,
    reported=_seconds,
    left_out=_counts,
)


def _of_figures(parts: list[Figures]) -> Figures:
    return aggregate_figures(parts, ["connected" if part.processes else "lost" for part in parts])


@given(_groups(_figures))
def test_aggregates_on_the_wire_can_be_aggregated(groups: list[list[Figures]]) -> None:
    """Aggregating programs of processes is the same as aggregating the processes, in any order."""
    everything = [part for parts in groups for part in parts]
    aggregated = _of_figures([_of_figures(parts) for parts in groups])
    assert aggregated == _of_figures(everything) == _of_figures(everything[::-1])


# --- call sites ---------------------------------------------------------------------------------

MS = st.integers(0, 10**7)
PROFILES = st.builds(
    HoldProfile,
    holds=st.integers(0, 10**5),
    held_ms=MS,
    waited_ms=MS,
    caused_ms=MS,
    # Looks find the whole time, as in a process in which somebody looks all the time.
    where=st.just({}),
).flatmap(
    lambda profile: st.integers(0, profile.held_ms).map(
        lambda ms: HoldProfile(
            holds=profile.holds,
            held_ms=profile.held_ms,
            waited_ms=profile.waited_ms,
            caused_ms=profile.caused_ms,
            where={"database": ms, "requests": profile.held_ms - ms},
        )
    )
)


def call_site(profile: HoldProfile | None, seconds: float = 60.0) -> Any:
    """Return the row of the JSON contract of a call site with this profile, recent and whole."""
    row = site_row(profile=profile, recent=profile, recent_seconds=seconds)
    return one_row(row.key, row, 1.0)[1]


@given(st.lists(PROFILES, min_size=1, max_size=4))
def test_a_call_site_over_hosts_is_that_of_the_sums(profiles: list[HoldProfile]) -> None:
    """Means and shares are those of the summed profile, and not means of means."""
    summed = HoldProfile(
        holds=sum(profile.holds for profile in profiles),
        held_ms=sum(profile.held_ms for profile in profiles),
        waited_ms=sum(profile.waited_ms for profile in profiles),
        caused_ms=sum(profile.caused_ms for profile in profiles),
        where={
            label: sum(profile.where[label] for profile in profiles) for label in ("database", "requests")
        },
    )
    expected = call_site(summed)
    whole = aggregate([call_site(profile) for profile in profiles], CALL_SITE_RULES)
    for name in (
        "holds_total", "hold_seconds_total", "mean_held", "holds_per_second", "mean_hold_seconds",
        "mean_waiting", "mean_waiting_caused", "database_share", "waited_seconds_total",
        "waiting_caused_seconds_total", "where_seconds_total", "where_shares",
    ):  # fmt: skip
        value, wanted = whole[name], getattr(expected, name)
        assert value == (None if wanted is None else pytest.approx(wanted, rel=2e-3, abs=2e-3)), name


def test_an_unlike_share_is_weighted_by_what_is_held() -> None:
    """One connection wholly in the database and three wholly outside it are 25 % in the database."""
    busy = call_site(HoldProfile(holds=1, held_ms=60_000, where={"database": 60_000}))
    idle = call_site(HoldProfile(holds=600, held_ms=180_000, where={"requests": 180_000}))
    whole = aggregate([busy, idle], CALL_SITE_RULES)
    assert (whole["mean_held"], whole["database_share"]) == (4.0, 0.25)
    assert whole["where_shares"] == {"requests": 0.75, "database": 0.25}
    assert whole["mean_hold_seconds"] == pytest.approx(240 / 601, rel=1e-3)
    # Hosts whose places nobody has looked at say nothing about places; a host of an earlier version has no
    # profile, so that the sums are not known.
    unseen = call_site(HoldProfile(holds=1, held_ms=60_000))
    assert aggregate([busy, unseen], CALL_SITE_RULES)["where_shares"] == {"database": 1.0}
    old = aggregate([busy, call_site(None, 0.0)], CALL_SITE_RULES)
    assert (old["mean_held"], old["holds_per_second"], old["mean_hold_seconds"]) == (None, None, None)
    assert old["where_shares"] == {"database": 1.0}

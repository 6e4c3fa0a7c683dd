"""Where connection time goes: the sums of profiles by call site, and the rows that show them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.cluster.export.call_site_metrics import TopCallSites
from connmon.cluster.state.hold_profiles import HoldSum, Labels, added, highest
from connmon.cluster.state.machine import StateMachine
from connmon.cluster.state.settings import Limits
from connmon.cluster.state.times import window_of
from connmon.protocol.batch import Departure
from connmon.protocol.queries import Query
from connmon.protocol.reports import HoldProfile, PoolReport, Process, Report, SiteReport, excess
from connmon.protocol.rows import SiteRow
from connmon.protocol.values import LARGEST, Gauges, Peaks, Totals
from tests.cluster.export.test_node_metrics import samples
from tests.cluster.state import test_machine
from tests.cluster.state.test_judging import pool as judged_pool
from tests.cluster.state.test_machine import LEASE, Group, change, info, pool
from tests.support.prometheus import promtool

SITE = "orders.py:88 checkout"
HUGE = HoldProfile(LARGEST, LARGEST, LARGEST, LARGEST, {"database": LARGEST})


@pytest.fixture
def group() -> Group:
    return Group()


def profile(held_ms: int, where: dict[str, int] | None = None) -> HoldProfile:
    return HoldProfile(held_ms, held_ms, 2 * held_ms, 3 * held_ms, where or {})


def site(
    held_ms: int,
    where: dict[str, int] | None = None,
    of: int = 1,
    name: str = SITE,
    stack: tuple[str, ...] = (),
) -> SiteReport:
    return SiteReport(of, name, profile=profile(held_ms, where), stack=stack)


def process(program: str = "nova-api", pid: int = 1, started: float | None = 1.0) -> Process:
    """Return a process that has started a second ago."""
    return msgspec.structs.replace(test_machine.process("ctl1", program, pid), started=started)


def full(instance: str, sequence: int, *pools: PoolReport, **more: Any) -> Report:
    return test_machine.full(instance, sequence, *pools, **{"process": process(), **more})


def remains(number: int, database: str = "neutron") -> PoolReport:
    return PoolReport(number, info(database), Gauges(), Totals(), Peaks(), moved=True)


def row(group: Group, name: str = SITE, **narrow: Any) -> SiteRow:
    call_site = group.rows("site", **narrow)["site", "ctl1", "nova-api", name]
    assert isinstance(call_site, SiteRow)
    return call_site


def held(group: Group, name: str = SITE) -> int:
    own = row(group, name).profile
    assert own is not None
    return own.held_ms


def checked(group: Group) -> None:
    """Assert that the state is the same after a load, also in what it weighs."""
    loaded = StateMachine.decode(group.state.encode(), group.state.settings)
    assert loaded.encode() == group.state.encode()
    assert loaded.contents.room.weight == group.state.contents.room.weight
    group.state = loaded


# --- Sums -------------------------------------------------------------------------------------


def test_a_call_site_sums_its_processes(group: Group) -> None:
    """Profiles are summed over processes; narrowed to one process, the row has that one's own."""
    group.say(
        full("a", 1, pool(), sites=(site(700, {"database": 500, "requests": 200}, stack=("x.py:1 f",)),)),
        full("b", 1, pool(), process=process(pid=2), sites=(site(300, {"database": 100}),)),
        full("c", 1, pool(), process=process(program="other"), sites=(site(9_000),)),
    )
    both = row(group)
    assert both.profile == HoldProfile(1_000, 1_000, 2_000, 3_000, {"database": 600, "requests": 200})
    assert both.recent == both.profile
    assert (both.share, both.stack, both.processes) == (1.0, ("x.py:1 f",), 2)
    own = row(group, instance="b")
    assert own.profile == HoldProfile(300, 300, 600, 900, {"database": 100})
    assert (own.recent, own.share) == (None, None)
    checked(group)
    assert row(group) == both


def test_shares_are_of_the_program(group: Group) -> None:
    """The shares of a program's call sites sum to 1, over all its databases."""
    sites = (site(600), site(100, of=2, name="b.py:1 f"), site(300, of=0, name="(other)"))
    group.say(full("a", 1, pool(), pool(2, database="nova"), sites=sites))
    assert [row(group, name).share for name in (SITE, "b.py:1 f", "(other)")] == [0.6, 0.1, 0.3]


def test_what_an_ended_process_has_held_stays(group: Group) -> None:
    """A call site keeps its row and its sums after its last process, until the program's row goes."""
    group.say(full("a", 1, pool(), sites=(site(700),)))
    group.say(Departure("a", 1))
    gone = row(group)
    assert (gone.processes, held(group)) == (0, 700)
    checked(group)
    group.wait(3_700)
    assert group.rows("site") == {}
    assert group.state.contents.room.weight == 0


def test_who_comes_back_counts_once(group: Group) -> None:
    """A process that was dropped and is back counts for what it has held since, also after a load."""
    group.say(full("a", 1, pool(), sites=(site(700, {"database": 700}),)))
    group.wait(6 * LEASE)
    assert not group.state.processes
    checked(group)
    group.say(full("a", 5, pool(), sites=(site(750, {"database": 720, "requests": 30}),)))
    assert row(group).profile == HoldProfile(750, 750, 1_500, 2_250, {"database": 720, "requests": 30})
    group.say(full("a", 6, pool(), sites=(site(750, {"database": 720, "requests": 30}),)))
    assert held(group) == 750
    checked(group)


def test_a_closed_pool_hands_over(group: Group) -> None:
    """What the remains of a closed pool take over counts once: in the same report, later, in a full one."""
    two = pool(), pool(2)
    group.say(full("a", 1, *two, sites=(site(700), site(50, of=2))))
    group.say(change("a", 2, remains(7), closed_pools=(2,), sites=(site(60, of=7),)))
    assert held(group) == 760
    group.say(change("a", 3, remains(7), closed_pools=(1,)))
    group.say(change("a", 4))
    assert held(group) == 760
    checked(group)
    group.say(change("a", 5, sites=(site(780, of=7),)))
    assert held(group) == 780
    group.say(full("a", 6, remains(7), sites=(site(780, of=7),)))
    assert held(group) == 780
    assert group.state.processes["a"].surplus == {}
    checked(group)


def test_a_pool_whose_database_becomes_known(group: Group) -> None:
    """What was counted before stays where it was counted; nothing counts twice, also after a return."""
    group.say(full("a", 1, pool(), sites=(site(700),)))
    group.say(change("a", 2, pool(1, database="nova"), sites=(site(800),)))
    assert held(group) == 800
    group.say(Departure("a", 2))
    group.say(full("a", 3, pool(1, database="nova"), sites=(site(810),)))
    assert held(group) == 810


@pytest.mark.parametrize("counts", [(500, 700), (0, 700, 0, 700)])
def test_counts_that_go_back_change_nothing(group: Group, counts: tuple[int, ...]) -> None:
    """A counter that goes back and comes again neither lowers nor raises a sum."""
    group.say(full("a", 1, pool(), sites=(site(700, {"database": 300}),)))
    for sequence, count in enumerate(counts, 2):
        group.say(change("a", sequence, sites=(site(count, {"database": min(count, 300)}),)))
        assert (held(group), row(group).profile) == (700, profile(700, {"database": 300}))
    checked(group)


def test_counts_are_bounded(group: Group) -> None:
    """However much is reported, a sum is at most what readers accept."""
    for number in range(3):
        who = process(pid=number)
        huge = SiteReport(1, SITE, profile=HUGE)
        group.say(full(f"p{number}", 1, pool(), process=who, sites=(huge,)))
    assert row(group).profile == HUGE
    for frame in group.answer(Query("site")):
        msgspec.msgpack.encode(frame)
    checked(group)


def test_an_older_process_has_no_profile(group: Group) -> None:
    """Of a process that reports none nothing is known, and that is said."""
    group.say(full("a", 1, pool(), sites=(SiteReport(1, SITE, holds=9, hold_ms=90),)))
    assert (row(group).profile, row(group).recent, row(group).share) == (None, None, None)
    assert row(group).hold_ms == 90


# --- Recent -----------------------------------------------------------------------------------


def test_recent_is_the_last_one_to_two_minutes(group: Group) -> None:
    """Recent covers this window and the one before; a reader that follows gets rows when it turns."""
    group.wait(60)
    group.say(full("a", 1, pool(), sites=(site(700, {"database": 700}),)))
    group.wait(60, 1_000)
    group.say(change("a", 2, sites=(site(800, {"database": 700, "requests": 100}),)))
    now = row(group)
    assert now.recent == HoldProfile(800, 800, 1_600, 2_400, {"database": 700, "requests": 100})
    assert now.recent_seconds == pytest.approx(60, abs=1)
    (before,) = group.answer(Query("site"))
    group.wait(60, 1_000)
    (frame,) = group.answer(Query("site", epoch=before.epoch, since=before.version))
    (turned,) = frame.rows
    assert isinstance(turned, SiteRow) and turned.recent is not None
    assert (turned.recent.held_ms, turned.recent.where) == (100, {"requests": 100})
    assert turned.recent_seconds == pytest.approx(60, abs=1)
    (unchanged,) = group.answer(Query("site", epoch=before.epoch, since=frame.version))
    assert not unchanged.rows and not unchanged.complete
    group.wait(120, 1_000)
    assert (row(group).recent, row(group).share) == (HoldProfile(), None)


def test_what_is_long_past_is_not_recent(group: Group) -> None:
    """What a process that is not new has held, or one that was silent for minutes, is in the sums only."""
    group.say(full("a", 7, pool(), sites=(site(700, {"database": 700}),)))
    assert (held(group), row(group).recent) == (700, HoldProfile())
    group.say(change("a", 8, sites=(site(705, {"database": 705}),), interval=1.0))
    assert row(group).recent == HoldProfile(5, 5, 10, 15, {"database": 5})
    group.say(change("a", 9, sites=(site(905, {"database": 905}),), interval=300.0))
    recent = row(group).recent
    assert recent is not None and (held(group), recent.held_ms) == (905, 5)


@pytest.mark.parametrize("started", [600.0, 61.0, None])
def test_what_an_old_process_reports_first_is_past(group: Group, started: float | None) -> None:
    """What a process held before it reached a node has not happened in the last minute."""
    group.wait(700, 1_000)
    full_pool = judged_pool(out=15, waiting=2, wait=1.0, held=0.5)
    old, sites = process(pid=2, started=started), (site(600_000, name="old.py:1 f"),)
    group.say(full("old", 1, judged_pool(), process=old, sites=sites))
    group.say(full("young", 1, full_pool, sites=(site(71_000, {"requests": 71_000}),)))
    past = row(group, "old.py:1 f")
    assert (past.profile, past.recent, past.share) == (profile(600_000), HoldProfile(), 0.0)
    assert row(group).share == 1.0
    (verdict,) = group.pool("young").figures.verdicts
    assert "100 % of nova-api's pool time is orders.py:88 checkout" in verdict.reason
    group.say(change("old", 2, sites=(site(601_000, name="old.py:1 f"),)))
    assert row(group, "old.py:1 f").recent == profile(1_000)


def test_recent_covers_what_it_counts(group: Group) -> None:
    """A process's first report counts since its start, and a new call site since the report before."""
    group.wait(100, 1_000)
    group.say(full("a", 1, pool(), process=process(started=30.0), sites=(site(30_000),)))
    assert row(group).recent_seconds == pytest.approx(30.0)
    group.wait(10)
    new = site(9_000, name="new.py:1 f")
    group.say(change("a", 2, interval=10.0, sites=(site(40_000), new)))
    assert row(group, "new.py:1 f").recent_seconds == pytest.approx(10.0)
    assert row(group).recent_seconds == pytest.approx(40.0)
    late = process(pid=2, started=50.0)
    group.say(full("b", 1, pool(), process=late, sites=(site(50_000, name="new.py:1 f"),)))
    assert row(group, "new.py:1 f").recent == profile(59_000)
    assert row(group, "new.py:1 f").recent_seconds == pytest.approx(50.0)
    checked(group)


@pytest.mark.parametrize(("silent", "recent"), [(40, 50), (80, 0)])
def test_recent_of_a_process_that_comes_back(group: Group, silent: int, recent: int) -> None:
    """What it has held while nobody heard of it is recent if its last report is."""
    group.wait(100, 1_000)
    group.say(full("a", 1, pool(), process=process(started=500.0), sites=(site(700),)))
    group.wait(silent, lease=7)
    assert not group.state.processes
    checked(group)
    group.say(full("a", 9, pool(), process=process(started=600.0), sites=(site(750),)))
    assert (held(group), row(group).recent) == (750, profile(recent))


@pytest.mark.parametrize("ends", [False, True])
def test_what_was_estimated_stays_estimated(group: Group, ends: bool) -> None:
    """Sums of a process that noted a sample of its checkouts are marked, also after its end and a load."""
    sample = msgspec.structs.replace(site(700), share=0.3)
    group.say(full("a", 1, pool(), sites=(sample, site(5, name="counted.py:1 f"))))
    grows = full("b", 1, pool(), process=process(pid=2), sites=(site(9, name="grows.py:1 f"),))
    group.say(grows)
    grown = msgspec.structs.replace(site(10, name="grows.py:1 f"), share=0.9)
    group.say(change("b", 2, sites=(grown,)))
    if ends:
        group.say(Departure("a", 1), Departure("b", 2))
    checked(group)
    names = (SITE, "counted.py:1 f", "grows.py:1 f")
    assert [row(group, name).estimated for name in names] == [True, False, True]


# --- Bounds -----------------------------------------------------------------------------------


def test_a_program_has_so_many_call_sites() -> None:
    """Beyond the limit all others are summed as one, and so are their rows."""
    group = Group(program_call_sites=4)
    sites = tuple(site(100 + number, name=f"m{number}.py:1 f") for number in range(9))
    group.say(full("a", 1, pool(), sites=sites))
    assert len(group.rows("site")) == 4
    assert held(group, "(other)") == sum(range(103, 109))
    group.say(change("a", 2, sites=(site(1_000, name="m8.py:1 f"),)))
    assert held(group, "(other)") == sum(range(103, 108)) + 1_000
    checked(group)


def test_a_call_site_has_so_many_labels(group: Group) -> None:
    """Beyond nine the labels are summed as one; the database has a place always."""
    group.say(full("a", 1, pool(), sites=(site(99, {f"l{number}": 1 for number in range(16)}),)))
    group.say(full("b", 1, pool(), process=process(pid=2), sites=(site(99, {"database": 7, "l15": 3}),)))
    own = row(group).profile
    assert own is not None
    assert own.where == {**{f"l{number}": 1 for number in range(7)}, "(other)": 12, "database": 7}
    checked(group)


def test_a_label_never_loses_its_place(group: Group) -> None:
    """Which labels of a call site are kept does not change, over databases and pools: readers subtract."""
    pools = pool(), pool(2, database="nova")
    many = {f"l{number}": 10 for number in range(6)}
    group.say(full("a", 1, *pools, sites=(site(99, many), site(99, {"m0": 1, "m1": 2, "m2": 3}, of=2))))
    before, own_before = row(group).profile, row(group, instance="a").profile
    sites = site(999, {**many, "l5": 500}), site(999, {"m0": 1, "m1": 2, "m2": 900, "m3": 950}, of=2)
    group.say(change("a", 2, sites=sites))
    after, own_after = row(group).profile, row(group, instance="a").profile
    assert before is not None and after is not None
    assert before.where == {**many, "m0": 1, "(other)": 5}
    assert after.where == {**many, "l5": 500, "m0": 1, "(other)": 1_852}
    assert (own_before, own_after) == (before, after)
    checked(group)
    assert row(group).profile == after


def hostile(count: int, odd: int, labels: int = 16) -> tuple[SiteReport, ...]:
    """Return as many call sites, labels and stacks as a report can have, all long, with these counts."""
    return tuple(
        SiteReport(
            1, f"{number}" * 500, stack=("x" * 2_048,) * 16,
            profile=HoldProfile(
                count, count, where={f"{label + odd}".rjust(256, "x"): count for label in range(labels)}
            ),
        )
        for number in range(1_000)
    )  # fmt: skip


def test_a_hostile_process_takes_bounded_room() -> None:
    """1,000 call sites with 16 long labels each: memory is bounded, others are not affected."""
    room = 16 * 2**20
    group = Group(Limits(room=room))
    group.say(full("good", 1, pool(), sites=(site(700, {"database": 700}),)))
    for number in range(5):
        who = process(program="bad", pid=number)
        group.say(full(f"bad{number}", 1, pool(), process=who, sites=hostile(1, 0, 16 if number else 1)))
    for sequence in range(2, 5):
        group.say(change("bad0", sequence, sites=hostile(sequence, sequence)))
        assert group.state.contents.room.weight <= room
    group.say(change("bad0", 5, sites=hostile(LARGEST, 0)))
    group.say(change("bad0", 6, sites=hostile(LARGEST, 9)))
    checked(group)
    group.say(change("good", 2, sites=(site(800, {"database": 800}),)))
    group.say(full("new", 1, pool(), process=process(pid=99), sites=(site(5),)))
    assert "new" in group.state.processes
    assert held(group) == 800  # there is no room for the profile of the new one
    sums = group.state.groups["program", "ctl1", "bad"].holds
    assert sums is not None and sums.number <= group.state.settings.program_call_sites
    checked(group)
    for number in range(5):
        group.say(Departure(f"bad{number}", 99))
    checked(group)
    again = full("bad0", 100, pool(), process=process(program="bad", pid=0), sites=hostile(LARGEST, 3))
    group.say(again)
    assert "bad0" in group.state.processes
    checked(group)
    group.wait(3_700, 10_000)
    assert "good" in group.state.processes
    checked(group)


@pytest.mark.parametrize("ends", [False, True])
def test_a_count_that_is_folded_is_bounded(ends: bool) -> None:
    """Without room for its labels the largest counts of a known call site can be read, also after its end."""
    group = Group(Limits(room=200_000))
    group.say(full("a", 1, pool(), sites=(site(700, {"a": 700}),)))
    group.state.contents.room.weight += 130_000
    most = HoldProfile(LARGEST, LARGEST, where={f"l{number}": LARGEST for number in range(15)})
    group.say(change("a", 2, sites=(SiteReport(1, SITE, profile=most),)))
    record = group.state.processes["a"].sites[1][SITE]
    assert record.profile is not None
    assert record.profile.where == {"a": 700, "(other)": LARGEST}
    group.state.contents.room.weight -= 130_000
    checked(group)
    if ends:
        group.say(Departure("a", 2))
        checked(group)
        group.say(full("a", 3, pool(), sites=(SiteReport(1, SITE, profile=most),)))
        assert group.state.processes["a"].sequence == 3
        checked(group)


def test_an_ended_process_whose_profiles_cannot_be_read(group: Group) -> None:
    """It comes back all the same, as one of which nobody knows what the sums have."""
    group.say(full("a", 1, pool(), sites=(site(700),)))
    group.say(Departure("a", 1))
    ended = group.state.contents.ended
    ended.add(msgspec.structs.replace(ended.by_instance["a"], profiles=b"\xc1"))
    group.say(full("a", 2, pool(), sites=(site(750),)))
    assert (held(group), group.state.processes["a"].sequence) == (700, 2)
    group.say(change("a", 3, sites=(site(760),)))
    assert held(group) == 710


def test_without_room_nothing_counts_twice() -> None:
    """Of an ended process that there was no room to remember, what it had held does not count again."""
    group = Group(Limits(room=60_000))
    group.say(full("a", 1, pool(), sites=(site(700),)))
    group.state.contents.room.weight += 45_000
    group.say(Departure("a", 1))
    assert group.state.contents.ended.by_instance["a"].profiles is None
    group.state.contents.room.weight -= 45_000
    group.say(full("a", 2, pool(), sites=(site(750),)))
    assert held(group) == 700
    group.say(change("a", 3, sites=(site(760),)))
    assert held(group) == 710


def test_nothing_to_remember_needs_no_room() -> None:
    """A process that ended without a profile counts from its first one on, however little room there was."""
    group = Group(Limits(room=60_000))
    group.say(full("a", 1, pool()))
    group.state.contents.room.weight += 46_000
    assert group.state.contents.room.spare < 0
    group.say(Departure("a", 1))
    group.state.contents.room.weight -= 46_000
    group.say(full("a", 2, pool(), sites=(site(750),)))
    assert held(group) == 750


# --- Verdict and metrics ------------------------------------------------------------------------


def test_every_row_of_a_full_pool_quotes_the_profile(group: Group) -> None:
    """The pool, its process, program and database, and the call site say the same of where the time goes."""
    full_pool = judged_pool(out=15, waiting=2, wait=1.0, held=0.5)
    group.say(full("a", 1, full_pool, sites=(site(71_000, {"database": 5_680, "requests": 65_320}),)))
    group.say(full("b", 1, judged_pool(), process=process(pid=2), sites=(site(29_000, name="b.py:2 g"),)))
    text = f"71 % of nova-api's pool time is {SITE}, 92 % of it outside the database (requests): "
    for by in ("program", "host", "database", "process", "pool"):
        by_grouping: Any = by
        rows: list[Any] = list(group.rows(by_grouping).values())
        reasons = [verdict.reason for one in rows for verdict in one.figures.verdicts]
        assert reasons and all(text in reason for reason in reasons), by


def test_a_quote_is_of_the_pools_database(group: Group) -> None:
    """The share is of the time in the full pool's database, which is named once there is time in another."""
    full_pool, nova = judged_pool(out=15, waiting=2, wait=1.0, held=0.5), pool(2, database="nova")
    own = site(71_000, {"requests": 71_000})
    group.say(full("a", 1, full_pool, nova, sites=(own, site(0, of=2, name="b.py:2 g"))))

    def reason() -> str:
        (verdict,) = group.pool("a").figures.verdicts
        return verdict.reason

    assert f"100 % of nova-api's pool time is {SITE}" in reason()
    group.say(change("a", 2, full_pool, sites=(own, site(29_000, of=2, name="b.py:2 g"))))
    assert f"100 % of nova-api's pool time in shop is {SITE}" in reason()
    assert row(group).share == 0.71


def metrics_page(group: Group, most: int) -> str:
    top = TopCallSites(most, window_of(group.state.clock))
    for key, one in group.state.groups.items():
        if one.holds is not None:
            top.take(str(key[1]), str(key[2]), one.holds)
    return "".join(top.pages())


def hold_seconds(group: Group) -> dict[str, float]:
    """Return the seconds of the only call site by where its holders were."""
    return {
        labels["where"]: value
        for labels, value in samples(metrics_page(group, 1))["connmon_hold_seconds_total"]
    }


def test_metrics_of_the_call_sites_that_take_most(group: Group) -> None:
    """The call sites that take most have series, which sum to what was held; the others are counted."""
    sites = (
        site(5_000, {"database": 3_000, "requests": 500}),
        site(2_000, name="b.py:1 f"),
        site(9, name="c.py:1 f"),
    )
    group.say(full("a", 1, pool(), sites=sites))
    group.wait(120, 1_000)
    page = metrics_page(group, 2)
    parsed = samples(page)
    labels = {"host": "ctl1", "program": "nova-api"}
    assert parsed["connmon_hold_seconds_total"] == [
        ({**labels, "site": SITE, "where": "database"}, 3.0),
        ({**labels, "site": SITE, "where": "requests"}, 0.5),
        ({**labels, "site": SITE, "where": "unknown"}, 1.5),
        ({**labels, "site": "b.py:1 f", "where": "unknown"}, 2.0),
    ]
    assert parsed["connmon_hold_seconds_left_out"] == [({}, 1.0)]
    promtool("check", "metrics", stdin=page.encode())
    assert list(TopCallSites(0, 0).pages()) == []


def test_metrics_sum_to_what_was_held(group: Group) -> None:
    """Time is unknown if nothing was known of it one to two minutes later; no counter goes back."""
    group.say(full("a", 1, pool(), sites=(site(60_000),)))
    assert hold_seconds(group) == {"unknown": 0.0}
    group.wait(50)
    group.say(change("a", 2, sites=(site(60_000, {"database": 60_000}),)))
    assert hold_seconds(group) == {"database": 60.0}
    group.wait(240, 1_000)
    assert hold_seconds(group) == {"database": 60.0}
    group.say(change("a", 3, sites=(site(70_000, {"database": 60_000}),)))
    group.wait(240, 1_000)
    assert hold_seconds(group) == {"database": 60.0, "unknown": 10.0}
    group.say(change("a", 4, sites=(site(70_000, {"database": 64_000}),)))
    assert hold_seconds(group) == {
        "database": 64.0,
        "unknown": 10.0,
    }  # as documented: a counter must not fall
    checked(group)
    assert hold_seconds(group) == {"database": 64.0, "unknown": 10.0}


def test_names_that_are_written_alike_have_one_series(group: Group) -> None:
    """Two samples with the same labels would make Prometheus refuse the page: they are summed."""
    odd = {"\x00": 1_000, "\\x00": 2_000, "database": 3_000}
    long = "x" * 300
    sites = (
        site(6_000, odd), site(100, {"a": 100}, name="\x01"), site(200, {"a": 200}, name="\\x01"),
        site(10, {"a": 10}, name=f"1{long}"), site(20, {"a": 20}, name=f"2{long}"),
    )  # fmt: skip
    group.say(full("a", 1, pool(), sites=sites))
    group.say(full("b", 1, pool(), process=process(program="p\x00", pid=2), sites=sites[:1]))
    group.say(full("c", 1, pool(), process=process(program="p\\x00", pid=3), sites=sites[:1]))
    parsed = samples(metrics_page(group, 100))["connmon_hold_seconds_total"]
    assert len({tuple(sorted(labels.items())) for labels, _ in parsed}) == len(parsed)
    own = [(labels["site"][-20:], labels["where"], value) for labels, value in parsed
           if labels["program"] == "nova-api"]  # fmt: skip
    assert own == [
        (SITE[-20:], r"\x00", 3.0), (SITE[-20:], "database", 3.0), (r"\x01", "a", 0.3), ("x" * 20, "a", 0.03),
    ]  # fmt: skip
    promtool("check", "metrics", stdin=metrics_page(group, 100).encode())


# --- For anything -----------------------------------------------------------------------------

COUNTS = st.integers(0, 9)
PROFILES = st.builds(
    HoldProfile, COUNTS, COUNTS, COUNTS, COUNTS,
    st.dictionaries(st.sampled_from(["database", "a", "b", "c", "(other)"]), COUNTS),
)  # fmt: skip


def counts(one: HoldProfile | HoldSum) -> list[int]:
    known = [one.where.get(label, 0) for label in ("database", "a", "b", "c", "(other)")]
    return [one.holds, one.held_ms, one.waited_ms, one.caused_ms, *known]


@given(st.lists(PROFILES, min_size=2, max_size=6))
def test_growing_is_adding_the_excess(profiles: list[HoldProfile]) -> None:
    """The quick way gives what the slow one gives, or refuses and changes no count."""
    quick, slow = HoldSum(0.0, 0), HoldSum(0.0, 0)
    for one in (quick, slow):
        one.add(profiles[0], 0, Labels(9), recent=True)
    old = profiles[0]
    for new in profiles[1:]:
        before = counts(quick)
        new = highest(new, old)
        if not quick.grow(old, new, 0):
            assert counts(quick) == before
            quick.add(excess(new, old), 0, Labels(9), recent=True)
        slow.add(excess(new, old), 0, Labels(9), recent=True)
        assert counts(quick) == counts(slow) == counts(new)
        assert quick.known_ms == slow.known_ms == sum(new.where.values())
        old = new


@given(st.lists(st.tuples(PROFILES, st.integers(0, 3), st.sampled_from(["grow", "add", "past"])), max_size=9))
def test_unknown_never_goes_back(steps: list[tuple[HoldProfile, int, str]]) -> None:
    """Neither when time passes, nor when something is added or becomes known; it is at most what was held."""
    hold_sum, old, window, unknown = HoldSum(0.0, 0), HoldProfile(), 0, 0
    for more, windows, way in steps:
        for _ in range(windows):
            window += 1
            assert hold_sum.unknown(window) >= unknown
            unknown = hold_sum.unknown(window)
        new = added(old, more)
        if way != "grow" or not hold_sum.grow(old, new, window):
            hold_sum.add(more, window, Labels(9), recent=way != "past")
        assert unknown <= hold_sum.unknown(window) <= hold_sum.held_ms
        old, unknown = new, hold_sum.unknown(window)
    assert hold_sum.unknown(window + 2) >= hold_sum.held_ms - hold_sum.known_ms


@given(PROFILES, PROFILES)
def test_excess_and_sum(a: HoldProfile, b: HoldProfile) -> None:
    """What one profile has above another, added to that, is the larger one of each count."""
    assert counts(added(b, excess(a, b))) == list(map(max, counts(a), counts(b)))

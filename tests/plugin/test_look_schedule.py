"""When the holders of connections are looked at."""

from __future__ import annotations

import random
import statistics

import pytest

from connmon.plugin.look_schedule import LookSchedule, LookScheduleSettings


def schedule(seed: int = 1) -> LookSchedule:
    return LookSchedule(random.Random(seed), LookScheduleSettings(idle_seconds=2.0))


@pytest.mark.parametrize("looks_per_second", [0.5, 10.0, 100.0])
def test_intervals_are_exponential(looks_per_second: float) -> None:
    """On average so many looks are planned per second, at intervals that are as long as they vary."""
    plan = schedule()
    intervals = []
    now = 100.0
    for _ in range(20_000):
        plan.plan(now, looks_per_second)
        assert plan.due is not None
        intervals.append(plan.due - now)
        now = plan.due
    assert statistics.mean(intervals) == pytest.approx(1.0 / looks_per_second, rel=0.05)
    assert statistics.stdev(intervals) == pytest.approx(1.0 / looks_per_second, rel=0.05)
    assert min(intervals) >= 0.0009


def test_off() -> None:
    """Without looks per second none is planned, also where one was."""
    plan = schedule()
    plan.consider(1.0, 0.0, busy=True)
    assert plan.due is None
    plan.consider(1.0, 10.0, busy=True)
    assert plan.due is not None
    plan.consider(1.0, 0.0, busy=True)
    assert plan.due is None
    plan.plan(1.0, 0.0)
    assert plan.due is None


def test_nothing_is_held() -> None:
    """A process that holds nothing is not woken for looks. They go on for a while after the last hold, and
    begin at the first turn that sees another one.
    """
    plan = schedule()
    plan.consider(100.0, 10.0, busy=False)
    assert plan.due is None
    plan.consider(101.0, 10.0, busy=True)
    first = plan.due
    assert first is not None
    assert first > 101.0
    plan.consider(102.9, 10.0, busy=False)
    assert plan.due == first
    plan.consider(103.1, 10.0, busy=False)
    assert plan.due is None
    plan.consider(110.0, 10.0, busy=False)
    assert plan.due is None
    plan.consider(111.0, 10.0, busy=True)
    assert plan.due is not None


def test_a_look_that_is_planned_stays() -> None:
    """More turns of the reporter do not move a look."""
    plan = schedule()
    plan.consider(100.0, 0.1, busy=True)
    due = plan.due
    for turn in range(50):
        plan.consider(100.0 + turn / 10.0, 0.1, busy=True)
    assert plan.due == due


def test_nothing_is_caught_up_with() -> None:
    """After a pause of the process there is one look, and the next interval begins then."""
    plan = schedule()
    plan.consider(100.0, 10.0, busy=True)
    assert plan.due is not None
    assert plan.late(5000.0, plan.due) is not None
    plan.plan(5000.0, 10.0)
    assert plan.due > 5000.0
    assert plan.late(5000.0, 5000.0) is None


def test_lateness() -> None:
    """A look is late by what has passed since the wait for it had to end, and not since a moment before."""
    plan = schedule()
    assert plan.late(100.0, 100.0) is None
    plan.put_off(100.0, 1.0)
    assert plan.due == 101.0
    assert plan.late(100.9, 100.0) is None
    assert plan.late(101.0, 101.0) == 0.0
    assert plan.late(101.5, 101.0) == 0.5
    assert plan.late(101.5, 100.0) == 0.5  # the wait has ended for something else, before the look was due
    assert plan.late(101.5, 101.4) == pytest.approx(0.1)  # the reporter itself was at work before it waited
    assert plan.late(101.0005, 101.001) == 0.0  # something else has ended the wait, in the last millisecond


def test_repr() -> None:
    """A debugger shows when the next look is due."""
    plan = schedule()
    assert repr(plan) == "<LookSchedule: no look planned>"
    plan.put_off(1.0, 0.25)
    assert repr(plan) == "<LookSchedule: due at 1.250>"


def test_looks_that_take_long_are_fewer() -> None:
    """A look of 10 ms would take a tenth of a core ten times a second: then there is one in five seconds."""
    schedule = LookSchedule(random.Random(1))
    for _ in range(200):
        schedule.took(0.010)
    waits = []
    for number in range(2_000):
        schedule.plan(float(number), 10.0)
        assert schedule.due is not None
        waits.append(schedule.due - number)
    assert sum(waits) / len(waits) == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize("looks_per_second", [2.0, 10.0, 100.0])
def test_looks_that_take_little_are_as_many_as_wanted(looks_per_second: float) -> None:
    """A quick look does not change how often they come, and more looks may take more."""
    schedule = LookSchedule(random.Random(1))
    schedule.took(0.0002)
    waits = []
    for number in range(2_000):
        schedule.plan(float(number), looks_per_second)
        assert schedule.due is not None
        waits.append(schedule.due - number)
    assert sum(waits) / len(waits) == pytest.approx(1.0 / looks_per_second, rel=0.1)

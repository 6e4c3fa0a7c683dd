"""What waits to be applied: in order, and bounded by how many processes there are."""

from __future__ import annotations

import tracemalloc

import msgspec

from connmon.cluster.batching import Intake, Waiting
from connmon.cluster.client_connection import footprint
from connmon.protocol.batch import Departure
from connmon.protocol.reports import PoolReport, Report
from connmon.protocol.values import Gauges, Peaks, Times, Totals


def report(instance: str, sequence: int = 1, base: int = 0, size: int = 10) -> Waiting[str]:
    return Waiting(Report(instance, sequence, base, 1.0, Peaks()), f"link of {instance}", size, 100)


def departure(instance: str, sequence: int = 1) -> Waiting[str]:
    return Waiting(Departure(instance, sequence), None, 10, 100)


def test_order() -> None:
    """The oldest first, as many as go into the batch; a larger one goes alone."""
    intake: Intake[str] = Intake()
    given = [report("a"), departure("b"), report("c", size=1000), report("d")]
    for each in given:
        assert intake.put(each) is None
    assert (len(intake), list(intake)) == (4, given)
    assert intake.take(20) == given[:2]
    assert intake.take(20) == given[2:3]
    assert intake.take(20) == given[3:]
    assert (len(intake), intake.take(20)) == (0, [])


def test_a_full_report_takes_the_place_of_an_earlier_one() -> None:
    """It says all that the earlier one did. So however often an application comes again, one waits."""
    intake: Intake[str] = Intake()
    first = report("a", 1)
    assert intake.put(first) is None
    assert intake.put(report("b", 1)) is None
    assert intake.put(report("a", 2)) is first
    for sequence in range(3, 100):
        assert intake.put(report("a", sequence)) is not None
    assert [(each.what.instance, each.what.sequence) for each in intake] == [("b", 1), ("a", 99)]


def test_a_change_takes_no_place() -> None:
    """It builds on what came before it, which has to be applied first."""
    intake: Intake[str] = Intake()
    assert intake.put(report("a", 1)) is None
    assert intake.put(report("a", 2, base=1)) is None
    assert len(intake) == 2


def test_what_was_taken_is_out_of_reach() -> None:
    """A report that is being applied is not dropped any more."""
    intake: Intake[str] = Intake()
    intake.put(report("a", 1))
    (taken,) = intake.take(100)
    assert taken.what.sequence == 1
    assert intake.put(report("a", 2)) is None
    assert len(intake) == 1


def test_one_departure_of_each() -> None:
    """The latest; a report between does not change that, and is not replaced by one."""
    intake: Intake[str] = Intake()
    intake.put(departure("a", 1))
    intake.put(report("a", 2))
    assert intake.put(departure("a", 2)) == departure("a", 1)
    assert [type(each.what) for each in intake] == [Report, Departure]


def test_a_histogram_weighs_what_it_takes_in_memory() -> None:
    """Three bytes on the wire are an entry of a dict: a report must not take much more than it counts for."""
    times = Times(*[dict.fromkeys(range(180), 1) for _ in range(3)])
    pools = tuple(PoolReport(number, None, Gauges(), Totals(), Peaks(), times=times) for number in range(50))
    report = Report("i", 1, 0, 0.0, Peaks(), pools)
    data = msgspec.msgpack.encode(report)
    tracemalloc.start()
    decoded = msgspec.msgpack.decode(data, type=Report)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoded == report
    assert footprint(report, len(data)) >= taken

"""The queue of reports: in order, and bounded by the number of processes."""

from __future__ import annotations

import tracemalloc

import msgspec

from connmon.cluster.batch_queue import BatchQueue, Waiting
from connmon.cluster.client_connection import memory_bytes
from connmon.protocol.batch import Departure
from connmon.protocol.reports import PoolReport, Report
from connmon.protocol.values import Gauges, Peaks, Times, Totals


def report(instance: str, sequence: int = 1, base: int = 0, size: int = 10) -> Waiting[str]:
    return Waiting(Report(instance, sequence, base, 1.0, Peaks()), f"connection of {instance}", size, 100)


def departure(instance: str, sequence: int = 1) -> Waiting[str]:
    return Waiting(Departure(instance, sequence), None, 10, 100)


def test_order() -> None:
    """The oldest entries are taken first, as many as fit; a larger one goes alone."""
    queue: BatchQueue[str] = BatchQueue()
    given = [report("a"), departure("b"), report("c", size=1000), report("d")]
    for waiting in given:
        assert queue.put(waiting) is None
    assert (len(queue), list(queue)) == (4, given)
    assert queue.take(20, 100) == given[:2]
    assert queue.take(20, 100) == given[2:3]
    assert queue.take(20, 100) == given[3:]
    assert (len(queue), queue.take(20, 100)) == (0, [])


def test_entries_of_a_batch() -> None:
    """No more entries are taken at once than the limit allows."""
    queue: BatchQueue[str] = BatchQueue()
    for number in range(5):
        queue.put(report(f"i{number}"))
    assert [len(queue.take(10_000, 2)) for _ in range(4)] == [2, 2, 1, 0]


def test_a_full_report_takes_the_place_of_an_earlier_one() -> None:
    """However often an application reconnects, one of its full reports waits."""
    queue: BatchQueue[str] = BatchQueue()
    first = report("a", 1)
    assert queue.put(first) is None
    assert queue.put(report("b", 1)) is None
    assert queue.put(report("a", 2)) is first
    for sequence in range(3, 100):
        assert queue.put(report("a", sequence)) is not None
    assert [(waiting.message.instance, waiting.message.sequence) for waiting in queue] == [
        ("b", 1),
        ("a", 99),
    ]


def test_a_change_takes_no_place() -> None:
    """A report of changes replaces none: the one before it must be applied first."""
    queue: BatchQueue[str] = BatchQueue()
    assert queue.put(report("a", 1)) is None
    assert queue.put(report("a", 2, base=1)) is None
    assert len(queue) == 2


def test_what_was_taken_is_out_of_reach() -> None:
    """A report that was taken is not replaced."""
    queue: BatchQueue[str] = BatchQueue()
    queue.put(report("a", 1))
    (taken,) = queue.take(100, 100)
    assert taken.message.sequence == 1
    assert queue.put(report("a", 2)) is None
    assert len(queue) == 1


def test_one_departure_of_each() -> None:
    """The latest departure of a process waits, whatever reports are in between; it replaces no report."""
    queue: BatchQueue[str] = BatchQueue()
    queue.put(departure("a", 1))
    queue.put(report("a", 2))
    assert queue.put(departure("a", 2)) == departure("a", 1)
    assert [type(waiting.message) for waiting in queue] == [Report, Departure]


def test_a_histogram_weighs_what_it_takes_in_memory() -> None:
    """The estimate for a histogram, whose counts take 3 bytes on the wire, is at least its memory."""
    times = Times(*[dict.fromkeys(range(180), 1) for _ in range(3)])
    pools = tuple(PoolReport(number, None, Gauges(), Totals(), Peaks(), times=times) for number in range(50))
    report = Report("i", 1, 0, 0.0, Peaks(), pools)
    data = msgspec.msgpack.encode(report)
    tracemalloc.start()
    decoded = msgspec.msgpack.decode(data, type=Report)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoded == report
    assert memory_bytes(report, len(data)) >= taken

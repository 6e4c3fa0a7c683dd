"""Each table of the state alone: its invariant, and what expires first."""

from __future__ import annotations

import pytest

from connmon.cluster.state.groups import Groups
from connmon.cluster.state.records import NO_TOTALS, EndedRecord, ProcessRecord
from connmon.cluster.state.tables import (
    Boots,
    EndedProcesses,
    Now,
    Processes,
    RecentTimes,
    Room,
    Tombstones,
    TurnedAway,
)
from connmon.protocol.batch import Batch
from connmon.protocol.reports import Process
from connmon.protocol.values import LARGEST, Gauges, Times, Totals


def process(instance: str = "a", reported: float = 0.0, lost: bool = False) -> ProcessRecord:
    identity = Process("ctl1", "api", 1, 0, None, None, None)
    return ProcessRecord(instance, "node1", identity, 1, reported, 1, lost=lost)


def ended(instance: str, at: float = 0.0, totals: int = 2) -> EndedRecord:
    return EndedRecord(instance, 1, at, 1, tuple((("host", str(n)), NO_TOTALS) for n in range(totals)))


@pytest.fixture
def now() -> Now:
    return Now()


def test_processes_are_in_the_order_of_their_last_reports() -> None:
    """The one that has been silent longest comes first, and expires first."""
    table = Processes()
    for instance in ("a", "b", "c"):
        table.put_last(process(instance))
    table.put_last(table.by_instance["a"])
    assert list(table.by_instance) == ["b", "c", "a"]


def test_silent_processes_are_lost_once_and_then_dropped() -> None:
    """A lost process is due again only when it is to be dropped."""
    table = Processes()
    for record in (process("a", 0.0, lost=True), process("b", 60.0, lost=True), process("c", 70.0)):
        table.put_last(record)
    assert [record.instance for record in table.silent(80.0, 15.0, 75.0)] == ["a"]
    assert [record.instance for record in table.silent(86.0, 15.0, 75.0)] == ["a", "c"]


def test_ended_processes_are_bounded_by_their_totals_too() -> None:
    """A process with many databases takes the place of several others; forgotten ones are counted."""
    table = EndedProcesses(2, Room(2**20))
    for record in (ended("a"), ended("b"), ended("c")):
        table.add(record)
    assert (list(table.by_instance), table.forgotten) == (["b", "c"], 1)
    table.add(ended("d", totals=19))
    assert (list(table.by_instance), table.forgotten) == (["d"], 3)
    table.add(ended("d", at=5.0))
    table.expire(100.0, 95.0)
    assert list(table.by_instance) == ["d"]
    table.expire(100.1, 95.0)
    assert table.by_instance == {}


def test_a_batch_is_known_by_its_boot_and_number() -> None:
    """Numbers count per boot, and a boot without a batch for long is forgotten."""
    table = Boots(10)
    table.note(Batch("node1", "x", 2), 1.0)
    assert table.has(Batch("node1", "x", 1)) and table.has(Batch("node1", "x", 2))
    assert not table.has(Batch("node1", "x", 3)) and not table.has(Batch("node1", "y", 1))
    table.expire(12.0, 10.0)
    assert not table.has(Batch("node1", "x", 1))


def test_tombstones_know_from_which_version_on_they_are_complete(now: Now) -> None:
    """The oldest removals are forgotten per grouping; older readers get everything."""
    table = Tombstones(now, 2)
    for version in (1, 2, 3):
        now.version = version
        table.bury(("process", str(version)))
    assert list(table.since("process", 1)) == [("process", "3"), ("process", "2")]
    assert table.know_all_since("process", 1) and not table.know_all_since("process", 0)
    assert table.know_all_since("pool", 0)
    table.restart(7)
    assert not table.know_all_since("pool", 6) and table.know_all_since("pool", 7)


def test_processes_without_a_place_are_counted_while_they_report(now: Now) -> None:
    """The number of counted ones is bounded; each change moves the totals."""
    table = TurnedAway(now, 2)
    for version, instance in enumerate(("a", "b", "c"), 1):
        now.version = version
        table.add(instance)
    assert (list(table.heard), now.moved) == (["a", "b"], 3)
    now.version, now.clock = 4, 20.0
    table.add("a")
    assert now.moved == 3
    table.expire(15.0)
    assert (list(table.heard), now.moved) == (["a"], 4)


def test_recent_times_are_of_two_windows(now: Now) -> None:
    """A window that nobody reported in ends the one before it."""
    table = RecentTimes(now)
    table.add(Times({1: 2}))
    table.add(Times({1: LARGEST}))
    assert table.total().waits == {1: LARGEST}
    now.clock = 60.0
    table.turn()
    table.add(Times({3: 1}))
    assert table.total().waits == {1: LARGEST, 3: 1}
    now.clock = 180.0
    table.turn()
    assert table.total() == Times()


def test_a_group_without_members_is_gone_and_expires(now: Now) -> None:
    """`gone` has exactly the groups without a member, and removes those beyond the limit early."""
    groups, member = Groups(now, Room(2**20)), process()
    first, second = groups.at(("host", "a")), groups.at(("host", "b"))
    groups.enroll(first, member)
    assert list(groups.gone) == [second.key]
    groups.unenroll(first, member)
    assert list(groups.gone) == [second.key, first.key]
    assert list(groups.expire(10.0, 1)) == [second.key]
    assert groups.forgotten == 1
    now.clock = 11.0
    assert list(groups.expire(10.0, 1)) == [first.key]
    assert (groups.by_key, groups.forgotten) == ({}, 1)


def test_a_lost_process_takes_its_gauges_out_of_its_groups(now: Now) -> None:
    """Its totals stay, and its gauges come back with it."""
    groups, member = Groups(now, Room(2**20)), process()
    member.gauges, member.totals = Gauges(1, connections=3), Totals(checkouts=5)
    for key in (member.program_key, member.host_key):
        groups.enroll(groups.at(key), member)
        groups.shift(key, member.gauges, member.totals)
    group = groups.at(member.host_key)
    groups.set_lost(member, True)
    assert (group.gauges.connections, group.totals.checkouts, group.state) == (0, 5, "lost")
    groups.set_lost(member, False)
    assert (group.gauges.connections, group.state) == (3, "connected")

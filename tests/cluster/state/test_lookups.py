"""Waits queries (who waits, who holds) and users queries (which programs use a database)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from connmon.cluster.state.answer_frames import About
from connmon.cluster.state.settings import AnswerSettings
from connmon.protocol.batch import Tick
from connmon.protocol.queries import UsersQuery, WaitsQuery
from connmon.protocol.reports import PoolReport
from connmon.protocol.rows import ConnectionRow, PoolRow, ProcessRow, ProgramRow, Rows
from connmon.protocol.values import Gauges
from tests.cluster.state.test_machine import Group, change, connection, full, pool, process

ABOUT = About("default", "node1", "node1", True, 0.1)
NEUTRON = UsersQuery("mysql", "db1", None, "neutron")


def whole(frames: Iterator[Rows]) -> Rows:
    """Return an answer as one frame."""
    answer = list(frames)
    assert [frame.more for frame in answer] == [True] * (len(answer) - 1) + [False]
    return msgspec.structs.replace(answer[-1], rows=tuple(row for frame in answer for row in frame.rows))


def waited(number: int, waiting: int, held: float | None, out: int = 1) -> PoolReport:
    gauges = Gauges(1, 15, 0, 5, out, waiting=waiting)
    return msgspec.structs.replace(pool(number, 5), gauges=gauges, held=held)


def kinds(rows: Rows, kind: type[Any]) -> list[Any]:
    return [row for row in rows.rows if isinstance(row, kind)]


def test_pools_that_are_waited_for_come_first_with_their_holders() -> None:
    """Pools with waiters come first, then those held long; each with its holders, the longest first."""
    group = Group()
    group.say(
        full("quiet", 1, waited(1, 0, 1.0), connections=(connection(1, held=1.0),)),
        full("leak", 1, waited(1, 0, 50.0), connections=(connection(1, held=50.0), connection(2))),
        full(
            "busy", 1, waited(1, 3, 0.5), waited(2, 0, 0.1),
            connections=(connection(1, held=0.2), connection(2, held=0.5), connection(3, 2, held=0.1)),
        ),
    )  # fmt: skip
    answer = whole(group.state.rows(WaitsQuery(30.0), ABOUT))
    assert [(row.instance, row.number) for row in kinds(answer, PoolRow)] == [("busy", 1), ("leak", 1)]
    assert [row.instance for row in kinds(answer, ProcessRow)] == ["busy", "leak"]
    assert [(row.instance, row.number) for row in kinds(answer, ConnectionRow)] == [
        ("busy", 2), ("busy", 1), ("leak", 1),
    ]  # fmt: skip
    assert answer.complete


def test_lost_processes_block_nobody() -> None:
    """A lost process has no known waiters or holders."""
    group = Group()
    group.say(full("a", 1, waited(1, 3, 50.0)))
    for _ in range(10):
        group.say(tick=Tick(2.0, 15.0))
    assert whole(group.state.rows(WaitsQuery(30.0), ABOUT)).rows == ()


def test_what_was_held_long_when_it_was_reported() -> None:
    """A hold lasts until its process's last report, not until now."""
    group = Group()
    group.say(full("a", 1, waited(1, 0, 20.0), connections=(connection(1, held=20.0),)))
    group.say(full("b", 1, waited(1, 0, 20.0), connections=(connection(1, held=20.0),)))
    for _ in range(6):
        group.say(tick=Tick(2.0, 15.0))
    assert whole(group.state.rows(WaitsQuery(30.0), ABOUT)).rows == ()
    group.say(change("a", 2))  # it goes on, since no report says otherwise
    answer = whole(group.state.rows(WaitsQuery(30.0), ABOUT))
    assert [(row.instance, row.number) for row in kinds(answer, PoolRow)] == [("a", 1)]
    (row,) = kinds(whole(group.state.rows(NEUTRON, ABOUT)), ProgramRow)
    assert row.figures.reported - row.figures.held_since == 32.0


def test_the_answer_is_bounded() -> None:
    """However many wait, only the worst pools and holders are in the answer."""
    group = Group(answering=AnswerSettings(waits_pools=2, waits_holders=1))
    for number in range(1, 5):
        holders = (connection(1, held=5.0), connection(2, held=6.0))
        group.say(full(f"p{number}", 1, waited(1, number, 6.0, out=2), connections=holders))
    answer = whole(group.state.rows(WaitsQuery(30.0), ABOUT))
    assert [row.instance for row in kinds(answer, PoolRow)] == ["p4", "p3"]
    assert [row.number for row in kinds(answer, ConnectionRow)] == [2, 2]
    # Two pools, and a holder of each of the others.
    assert answer.left_out == 4


def test_pools_that_are_known_as_a_sum_only_are_counted() -> None:
    """Pools that are reported as a sum are counted as left out."""
    group = Group()
    group.say(full("a", 1, waited(1, 1, 0.5), msgspec.structs.replace(waited(2, 3, 1.0), left_out=5)))
    answer = whole(group.state.rows(WaitsQuery(30.0), ABOUT))
    assert [row.number for row in kinds(answer, PoolRow)] == [1]
    assert answer.left_out == 5


def test_the_users_of_a_database_count_its_pools_only() -> None:
    """Each program with a pool in the database has a row; pools of other databases do not count."""
    group = Group()
    group.say(
        full("a", 1, pool(1, 3, 30, out=2), pool(2, 9, database="nova")),
        full("b", 1, pool(1, 2, 10)),
        full("c", 1, pool(1, 1), process=process("ctl2", "glance-api")),
        full("d", 1, pool(1, 1, database="nova"), process=process("ctl2", "other")),
    )
    rows = kinds(whole(group.state.rows(NEUTRON, ABOUT)), ProgramRow)
    found = {(row.host, row.program): row for row in rows}
    assert set(found) == {("ctl1", "nova-api"), ("ctl2", "glance-api")}
    figures = found["ctl1", "nova-api"].figures
    assert (figures.processes, figures.gauges.connections, figures.gauges.checked_out) == (2, 5, 2)
    assert figures.totals.checkouts == 40
    assert figures.gauges.capacity == 30


def test_users_are_sent_again_only_when_they_changed() -> None:
    """A reader that is up to date gets no rows; an unknown database has no users."""
    group = Group(answering=AnswerSettings(piece_records=1))
    group.say(full("a", 1, pool(1, 3)), full("b", 1, pool(1, 3)))
    first = whole(group.state.rows(NEUTRON, ABOUT))
    again = msgspec.structs.replace(NEUTRON, epoch=first.epoch, since=first.version)
    assert first.complete and len(first.rows) == 1
    same = whole(group.state.rows(again, ABOUT))
    assert not same.complete and same.rows == ()
    nothing = msgspec.structs.replace(again, database="never")
    assert whole(group.state.rows(nothing, ABOUT)).complete


def test_a_lost_process_is_shown_as_lost() -> None:
    """A program whose processes are all lost has totals and no present."""
    group = Group()
    group.say(full("a", 1, pool(1, 3, 30)))
    for _ in range(10):
        group.say(tick=Tick(2.0, 15.0))
    (row,) = kinds(whole(group.state.rows(NEUTRON, ABOUT)), ProgramRow)
    assert (row.state, row.figures.gauges.connections, row.figures.totals.checkouts) == ("lost", 0, 30)

"""The last minutes that a node keeps, by example."""

from __future__ import annotations

import msgspec

from connmon.cluster.state.history import Past
from connmon.cluster.state.settings import HISTORY, HistorySettings
from connmon.protocol.batch import Departure, Tick
from connmon.protocol.queries import EVERYTHING, History, HistoryQuery
from connmon.protocol.rows import RowKey
from connmon.protocol.values import Totals
from tests.cluster.state.test_machine import Group, full, pool

PROGRAM: RowKey = ("program", "ctl1", "nova-api")


def sampled(past: Past, group: Group, known: bool = True) -> None:
    for _ in past.sample(group.state, known):
        pass


def asked(past: Past, *keys: RowKey, most: int = 1000) -> History:
    return past.answer(HistoryQuery(keys, most), "default", "node1")


def test_it_is_there_before_anybody_asks() -> None:
    """Each sample has connections and rate of programs, hosts, databases, processes and everything."""
    group, past = Group(), Past()
    for sequence, connections in enumerate((3, 5, 4), 1):
        group.say(full("a", sequence, pool(connections=connections, checkouts=10 * sequence)))
        sampled(past, group)
    keys: list[RowKey] = [
        EVERYTHING, PROGRAM, ("host", "ctl1"), ("database", "mysql", "db1", None, "neutron"),
        ("process", "a"),
    ]  # fmt: skip
    answer = asked(past, *keys, ("program", "ctl1", "no-such"))
    assert [series.key for series in answer.series] == keys
    assert {series.connections for series in answer.series} == {(3, 5, 4)}
    assert answer.series[1].rates == (None, 10.0, 10.0)
    assert (answer.number, answer.interval) == (3, HISTORY.interval_seconds)
    assert asked(past, PROGRAM, most=2).series[0].connections == (5, 4)


def test_only_the_newest_are_kept() -> None:
    """The ring goes round, and what is asked for comes in the order of time."""
    group, past = Group(), Past(HistorySettings(samples=4))
    for sequence in range(1, 11):
        group.say(full("a", sequence, pool(connections=sequence)))
        sampled(past, group)
    assert asked(past, PROGRAM).series[0].connections == (7, 8, 9, 10)


def test_what_is_not_known_is_a_gap() -> None:
    """Without quorum, before a row was there, and where all processes are lost, the sample is null."""
    group, past = Group(), Past()
    sampled(past, group)
    group.say(full("a", 1, pool(connections=2)))
    sampled(past, group)
    sampled(past, group, known=False)
    for _ in range(10):
        group.say(tick=Tick(2.0, 15.0))
    sampled(past, group)
    answer = asked(past, PROGRAM, ("process", "a"), EVERYTHING)
    assert answer.series[0].connections == (None, 2, None, None)
    assert answer.series[1].connections == (None, 2, None, None)
    assert answer.series[2].connections == (0, 2, None, None)
    group.say(Departure("a", 1))
    sampled(past, group)  # it has ended, so nothing of it is open: that is known
    assert asked(past, PROGRAM, EVERYTHING).series[0].connections == (None, 2, None, None, 0)


def test_timeouts_count_since_they_were_watched() -> None:
    """Timeouts between two samples are listed for as long as the samples are kept; earlier ones never."""
    group, past = Group(), Past(HistorySettings(samples=3))
    for sequence, timeouts in enumerate((7, 7, 9, 9), 1):
        happened = Totals(connects=1, timeouts=timeouts)
        group.say(full("a", sequence, msgspec.structs.replace(pool(connections=1), totals=happened)))
        sampled(past, group)
    assert (PROGRAM, 2) in asked(past).timeouts
    for _ in range(3):
        sampled(past, group)
    assert asked(past).timeouts == ()


def test_rows_with_timeouts_that_are_too_many_are_counted() -> None:
    """The answer says how many rows with timeouts are not in it."""
    group, past, short = Group(), Past(), Past(HistorySettings(answer_timeouts=3))
    for sequence in (1, 2):
        happened = Totals(connects=1, timeouts=sequence)
        group.say(full("a", sequence, msgspec.structs.replace(pool(connections=1), totals=happened)))
        sampled(past, group)
        sampled(short, group)
    every = asked(past)
    assert (len(every.timeouts), every.left_out) == (4, 0)  # program, host, database, process
    assert (asked(short).timeouts, asked(short).left_out) == (every.timeouts[:3], 1)


def test_rows_that_went_away_are_forgotten_and_their_number_is_limited() -> None:
    """A history lives as long as its row; beyond the limit, further rows have none."""
    group, past = Group(), Past(HistorySettings(series=5))
    group.say(full("a", 1, pool()), full("b", 1, pool()), full("c", 1, pool()))
    sampled(past, group)
    answer = asked(past, ("process", "a"), ("process", "b"), ("process", "c"))
    assert [series.key for series in answer.series] == [("process", "a")]
    group.say(Departure("a", 1))
    for _ in range(2):  # one goes, and leaves its place to the next
        sampled(past, group)
    answer = asked(past, ("process", "a"), ("process", "b"))
    assert [series.key for series in answer.series] == [("process", "b")]

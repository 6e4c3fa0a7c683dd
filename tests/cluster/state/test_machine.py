"""The state machine by example, one rule at a time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from connmon.cluster.state.answer_frames import About
from connmon.cluster.state.machine import Outcome, StateMachine
from connmon.cluster.state.settings import ANSWERS, LIMITS, AnswerSettings, Limits, StateSettings
from connmon.cluster.state.weights import PROCESS_WEIGHT, pool_weight
from connmon.errors import ProtocolError
from connmon.protocol import histogram
from connmon.protocol.batch import Batch, Departure, Tick
from connmon.protocol.histogram import BUCKETS, quantile
from connmon.protocol.queries import Query
from connmon.protocol.reports import Connection, PoolInfo, PoolReport, Process, Report, ServerAddress, Usage
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    Figures,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Quantiles,
    Row,
    RowKey,
    Rows,
    database_key,
)
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.values import GROUPINGS, LARGEST, Gauges, Grouping, Peaks, Times, Totals

LEASE = 15.0


def info(database: str = "neutron", size: int = 5) -> PoolInfo:
    return PoolInfo(f"mysql://db1/{database}", "mysql", "db1", None, database, "QueuePool", size, 10, 30.0)


def process(host: str = "ctl1", program: str = "nova-api", pid: int = 1) -> Process:
    return Process(host, program, pid, 0, None, None, 100.0)


def pool(
    number: int = 1,
    connections: int = 0,
    checkouts: int = 0,
    *,
    database: str | None = "neutron",
    peak: int = 0,
    out: int = 0,
    pools: int = 1,
    **more: Any,
) -> PoolReport:
    """Return a pool report; `database` None: without the pool's identity."""
    return PoolReport(
        number,
        None if database is None else info(database),
        Gauges(pools, 15 * pools, 0, connections, out),
        Totals(connects=connections, checkouts=checkouts, checkins=checkouts - out),
        Peaks(max(connections, peak), out),
        **more,
    )


def connection(number: int = 1, pool: int = 1, age: float = 1.0, held: float | None = None) -> Connection:
    return Connection(number, pool, 800 + number, "idle" if held is None else "checked_out", age, held, None)


def full(instance: str = "a", sequence: int = 1, *pools: PoolReport, **more: Any) -> Report:
    peak = sum(each.peaks.connections for each in pools)
    values: dict[str, Any] = {"process": process(), "peaks": Peaks(peak), "interval": 1.0, **more}
    return Report(instance, sequence, 0, pools=pools, **values)


def change(instance: str = "a", sequence: int = 2, *pools: PoolReport, **more: Any) -> Report:
    peak = sum(each.peaks.connections for each in pools)
    values: dict[str, Any] = {"base": sequence - 1, "peaks": Peaks(peak), "interval": 1.0, **more}
    return Report(instance, sequence, pools=pools, **values)


class Group:
    """A state and the nodes that propose batches to it."""

    def __init__(self, limits: Limits = LIMITS, answering: AnswerSettings = ANSWERS, **settings: Any) -> None:
        self.state = StateMachine(StateSettings(limits=limits, **settings), answering)
        self.numbers: dict[str, int] = {}

    def say(self, *messages: Report | Departure, node: str = "node1", tick: Tick | None = None) -> Outcome:
        """Apply a batch of one node."""
        self.numbers[node] = self.numbers.get(node, 0) + 1
        return self.state.apply(
            Batch(
                node,
                f"boot-{node}",
                self.numbers[node],
                tick,
                tuple(m for m in messages if isinstance(m, Report)),
                tuple(m for m in messages if isinstance(m, Departure)),
            )
        )

    def wait(self, seconds: float, lease: float = LEASE) -> None:
        while seconds > 0:
            self.say(tick=Tick(min(seconds, 2.0), lease))
            seconds -= 2.0

    def wanted(self, *reports: Report, node: str = "node1") -> list[bool]:
        return [answer[2] for answer in self.say(*reports, node=node).answers]

    def answer(self, query: Query) -> list[Rows]:
        return ask(self.state, query)

    def rows(
        self, by: Grouping, host: str | None = None, program: str | None = None, instance: str | None = None
    ) -> dict[RowKey, Row]:
        frames = self.answer(Query(by, host=host, program=program, instance=instance))
        return {row.key: row for frame in frames for row in frame.rows}

    def program(self, host: str = "ctl1", program: str = "nova-api") -> ProgramRow:
        row = self.rows("program")["program", host, program]
        assert isinstance(row, ProgramRow)
        return row

    def database(self, database: str = "neutron") -> DatabaseRow:
        row = self.rows("database")[database_key(info(database))]
        assert isinstance(row, DatabaseRow)
        return row

    def process(self, instance: str = "a") -> ProcessRow:
        row = self.rows("process")["process", instance]
        assert isinstance(row, ProcessRow)
        return row

    def pool(self, instance: str = "a", number: int = 1) -> PoolRow:
        row = self.rows("pool")["pool", instance, number]
        assert isinstance(row, PoolRow)
        return row


def ask(state: StateMachine, query: Query) -> list[Rows]:
    frames = list(state.rows(query, About("default", "node1", "node1", True, 0.1)))
    # What is sent must be what a reader may read.
    return [msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=Rows) for frame in frames]


@pytest.fixture
def group() -> Group:
    return Group()


# --- batches and answers ----------------------------------------------------------------------


def test_first_batch_names_the_epoch(group: Group) -> None:
    """A state's epoch is the first batch's boot; before, the state is empty."""
    assert (group.state.epoch, group.state.version, group.state.clock) == ("", 0, 0.0)
    group.say(node="node2")
    group.say(node="node1")
    assert (group.state.epoch, group.state.version) == ("boot-node2", 2)


def test_a_batch_counts_once_and_is_answered_each_time(group: Group) -> None:
    """A batch that comes again changes nothing and gets the same answers."""
    batch = Batch("node1", "boot", 1, Tick(1.0, LEASE), (full("a"), change("b", 5)))
    first = group.state.apply(batch)
    dump = group.state.encode()
    again = group.state.apply(batch)
    assert first == Outcome(1, (("a", 1, False), ("b", 5, True)), True)
    assert again == Outcome(1, first.answers, False)
    assert group.state.encode() == dump


def test_boots_are_forgotten_after_an_hour(group: Group) -> None:
    """A boot without a batch for an hour is forgotten."""
    group.say(node="old")
    group.wait(3602)
    assert list(group.state.contents.boots.by_boot) == ["boot-node1"]


def test_clock_steps_are_bounded(group: Group) -> None:
    """Only a tick moves the clock, by two seconds at most, even if its step is larger."""
    group.say(tick=Tick(500.0, LEASE))
    group.say(tick=Tick(0.5, LEASE))
    group.say()
    assert group.state.clock == 2.5


def test_a_gap_is_answered_by_asking_for_a_full_report(group: Group) -> None:
    """A change counts only on top of the report that it builds on; else a full report is wanted."""
    assert group.wanted(full("a", 1, pool(1, 2))) == [False]
    assert group.wanted(change("a", 3, pool(1, 9))) == [True]
    assert group.program().figures.gauges.connections == 2
    assert group.wanted(full("a", 4, pool(1, 4))) == [False]
    assert group.wanted(change("a", 5, pool(1, 5))) == [False]
    assert group.program().figures.gauges.connections == 5


def test_a_report_that_is_there_already_is_acknowledged(group: Group) -> None:
    """Repeated and overtaken reports, full ones too, are ignored, and no full report is wanted."""
    group.say(full("a", 4, pool(1, 2)))
    assert group.wanted(full("a", 3, pool(1, 7)), change("a", 4, pool(1, 7))) == [False, False]
    assert group.program().figures.gauges.connections == 2


def test_a_process_not_known_is_asked_for_a_full_report(group: Group) -> None:
    """A change of an unknown process wants a full report; a full one without identity is ignored."""
    assert group.wanted(change("a", 2)) == [True]
    assert group.wanted(full("b", 1, process=None)) == [False]
    assert group.state.processes == {}


# --- what a report does -----------------------------------------------------------------------


def test_a_report_makes_rows_of_all_kinds(group: Group) -> None:
    """Process, pools and connections have rows as reported, with times by the replica's clock."""
    group.wait(10)
    group.say(
        full(
            "a", 1, pool(1, 2, 7, out=1, held=4.0), pool(2, 0, database="nova"),
            connections=(connection(1, age=3.0, held=2.0), connection(2)), usage=Usage(5.0),
        )
    )  # fmt: skip
    rows = group.rows("connection")
    row = rows["process", "a"]
    assert isinstance(row, ProcessRow)
    assert (row.started, row.usage, row.state, row.node) == (-90.0, Usage(5.0), "connected", "node1")
    assert row.figures.gauges == Gauges(2, 30, 0, 2, 1)
    assert row.figures.totals == Totals(connects=2, checkouts=7, checkins=6)
    assert (row.figures.held_since, row.figures.reported) == (6.0, 10.0)
    assert ("pool", "a", 1) in rows
    assert ("pool", "a", 2) in rows
    one = rows["connection", "a", 1]
    assert isinstance(one, ConnectionRow)
    assert (one.opened, one.held_since, one.server_id, one.state) == (7.0, 8.0, 801, "checked_out")
    assert group.database("nova").figures.processes == 1


def test_times_before_the_clock_began_can_be_read(group: Group) -> None:
    """A hold from before the replica's clock began has a negative time, which readers accept."""
    group.say(full("a", 1, pool(1, 1, held=50.0, wait=2.0)))
    assert (group.program().figures.held_since, group.program().figures.waiting_since) == (-50.0, -2.0)


def lasted(figures: Figures) -> tuple[float, float]:
    """Return how many seconds the longest hold and the longest wait had lasted."""
    assert figures.reported is not None
    assert figures.held_since is not None
    assert figures.waiting_since is not None
    return figures.reported - figures.held_since, figures.reported - figures.waiting_since


def test_the_longest_hold_is_as_of_each_processs_own_report(group: Group) -> None:
    """A hold lasts until its process's last report: the oldest one need not be the longest."""
    group.say(full("a", 1, pool(1, 1, held=10.0, wait=6.0)), full("c", 1, process=process(program="agent")))
    group.wait(8.0)
    group.say(full("b", 1, pool(1, 1, held=12.0, wait=5.0)))
    group.wait(2.0)
    group.say(change("c", 2))
    (answer,) = group.answer(Query("program"))
    host = group.rows("host")["host", "ctl1"]
    assert isinstance(host, HostRow)
    for figures in (group.program().figures, group.database().figures, host.figures, answer.totals):
        assert lasted(figures) == (12.0, 6.0)
    group.say(change("a", 2))  # and by now it is a's, which has lasted until now
    assert lasted(group.program().figures) == (20.0, 16.0)


def test_short_holds_are_never_shown_as_long(group: Group) -> None:
    """A connection that is held for 0.1 s at a time is never shown as held for longer."""
    snapshot, pools = Snapshot("connection"), Snapshot("pool")
    seen: list[float] = []
    for second in range(5):
        held = 0.1
        group.say(
            (full if not second else change)(
                "a", second + 1, pool(1, 1, out=1, held=held), connections=(connection(1, held=held),)
            )
        )
        for _ in range(5):  # readers come between two reports as well
            group.wait(0.2)
            for follower in (snapshot, pools):
                for frame in group.state.rows(follower.query(), About("s", "n", "n", True, 0.4)):
                    follower.apply(frame)
            seen += [row["held_seconds"] for row in snapshot.document()["rows"]]
            seen += [row["longest_held_seconds"] for row in pools.document()["rows"]]
            seen.append(pools.document()["totals"]["longest_held_seconds"])
    assert set(seen) == {0.1}


def test_a_full_report_replaces_everything_but_the_maxima(group: Group) -> None:
    """Pools and connections that are not in a full report are removed; maxima stay."""
    group.say(
        full("a", 1, pool(1, 3), pool(2, 4), connections=(connection(1), connection(2, 2)))
    )  # fmt: skip
    group.say(full("a", 2, pool(1, 1), connections=(connection(3),)))
    assert set(group.rows("connection")) == {("process", "a"), ("pool", "a", 1), ("connection", "a", 3)}
    figures = group.process().figures
    assert (figures.gauges.connections, figures.max_connections) == (1, 7)


def test_a_change_leaves_the_rest_as_it_was(group: Group) -> None:
    """A change replaces the pools and connections that it names and removes closed ones."""
    group.say(full("a", 1, pool(1, 2), pool(2, 1), connections=(connection(1), connection(2))))
    group.say(
        change("a", 2, pool(1, 1, database=None), closed_connections=(1,), connections=(connection(3, 2),))
    )  # fmt: skip
    rows = group.rows("connection")
    assert set(rows) == {
        ("process", "a"), ("pool", "a", 1), ("pool", "a", 2), ("connection", "a", 2), ("connection", "a", 3),
    }  # fmt: skip
    assert group.program().figures.gauges == Gauges(2, 30, 0, 2)


def test_invalid_input_is_dropped(group: Group) -> None:
    """An unknown pool without identity, a connection of no pool, a close of nothing are ignored."""
    group.say(
        full("a", 1, pool(1, 2), pool(2, 5, database=None), connections=(connection(1), connection(2, 9)))
    )  # fmt: skip
    assert group.wanted(change("a", 2, closed_pools=(7,), closed_connections=(7,))) == [False]
    assert set(group.rows("connection")) == {("process", "a"), ("pool", "a", 1), ("connection", "a", 1)}
    assert group.program().figures.gauges.connections == 2


def test_a_closed_pool_takes_its_connections_along(group: Group) -> None:
    """Closing a pool removes its connections."""
    group.say(full("a", 1, pool(1, 1), pool(2, 1), connections=(connection(1), connection(2, 2))))
    group.say(change("a", 2, closed_pools=(1,)))
    assert set(group.rows("connection")) == {("process", "a"), ("pool", "a", 2), ("connection", "a", 2)}


def test_the_remains_of_a_closed_pool_count_and_have_no_row(group: Group) -> None:
    """The totals of closed pools live on in a report with `gauges.pools == 0`, so that none goes back."""
    group.say(full("a", 1, pool(1, 1, 10)))
    group.say(change("a", 2, pool(9, 0, 10, pools=0), closed_pools=(1,)))
    assert group.program().figures.totals.checkouts == 10
    assert group.program().figures.gauges == Gauges()
    assert set(group.rows("pool")) == {("process", "a")}
    assert group.program().figures.checkouts_per_second == 0.0
    assert group.database().figures.totals.checkouts == 10


def test_the_number_of_a_closed_pool_can_be_given_again(group: Group) -> None:
    """A closed pool and a new one of the same number in the same report are two pools."""
    group.say(full("a", 1, pool(1, 3, peak=8), connections=(connection(1),)))
    group.say(change("a", 2, pool(1, 1, database="nova"), closed_pools=(1,), connections=(connection(2),)))
    row = group.rows("connection")["pool", "a", 1]
    assert isinstance(row, PoolRow)
    assert (row.info.database, row.figures.max_connections) == ("nova", 1)
    assert ("connection", "a", 1) not in group.rows("connection")
    assert group.database("neutron").figures.gauges.connections == 0


def test_a_pool_that_changes_its_database_moves_there(group: Group) -> None:
    """The sums of its former database have nothing of it any more."""
    group.say(full("a", 1, pool(1, 3, 5)))
    group.say(full("a", 2, pool(1, 4, 6, database="nova")))
    assert group.database("neutron").state == "gone"
    assert group.database("neutron").figures.totals == Totals()
    assert group.database("nova").figures.gauges.connections == 4


def test_host_and_program_of_a_process_do_not_change(group: Group) -> None:
    """They stay those of its first report; the rest of its identity is the latest."""
    group.say(full("a", 1))
    group.say(full("a", 2, process=process("ctl2", "other", 77)))
    identity = group.process().process
    assert (identity.host, identity.program, identity.pid) == ("ctl1", "nova-api", 77)
    assert len(group.rows("program")) == 1


def test_rates_are_checkouts_over_the_interval(group: Group) -> None:
    """After a first report or an interval of 0 the rate is unknown; a quiet pool's goes to 0."""
    assert group.answer(Query("program"))[0].totals.checkouts_per_second == 0.0  # nobody is there
    group.say(full("a", 1, pool(1, 1, 100)))
    (answer,) = group.answer(Query("program"))
    for row in (group.program(), group.database(), group.process(), group.pool()):
        assert row.figures.checkouts_per_second is answer.totals.checkouts_per_second is None
    group.say(change("a", 2, pool(1, 1, 150), interval=2.0))
    assert group.program().figures.checkouts_per_second == 25.0
    assert group.database().figures.checkouts_per_second == 25.0
    group.say(change("a", 3, interval=5.0))
    assert group.program().figures.checkouts_per_second == 0.0
    assert group.database().figures.checkouts_per_second == 0.0
    group.say(change("a", 4, pool(1, 1, 160), interval=0.0))
    assert group.program().figures.checkouts_per_second is None
    group.say(change("a", 5, pool(1, 1, 170), interval=1.0), full("b", 1, pool(1, 1, 9)))
    assert group.program().figures.checkouts_per_second == 10.0  # of those of which it is known
    group.say(Departure("a", 5), Departure("b", 1))
    assert group.program().figures.checkouts_per_second == 0.0


def test_the_rate_after_lost_reports_is_over_the_time_since_the_last(group: Group) -> None:
    """Lost reports take their intervals along: the replica's clock stands in."""
    group.say(full("a", 1, pool(1, 1, 100)))
    group.wait(10)
    group.say(full("a", 5, pool(1, 1, 200), interval=1.0))
    assert group.program().figures.checkouts_per_second == 10.0


def test_longest_wait_is_of_the_latest_reports(group: Group) -> None:
    """It stays while somebody waits, and ends with the next report."""
    waiting = pool(1, 1, wait=3.0)
    waiting = msgspec.structs.replace(
        waiting, gauges=waiting.gauges._replace(waiting=1), peaks=Peaks(1, 0, 1, 4.0)
    )  # fmt: skip
    group.wait(10)
    group.say(full("a", 1, waiting, peaks=Peaks(1, 0, 1, 4.0)))
    figures = group.program().figures
    assert (figures.longest_wait, figures.waiting_since, figures.max_waiting) == (4.0, 7.0, 1)
    group.say(change("a", 2, peaks=Peaks(1, 0, 1, 4.5)))
    assert group.database().figures.longest_wait == 4.0
    group.say(change("a", 3, pool(1, 1, database=None)))
    figures = group.database().figures
    assert (figures.longest_wait, figures.waiting_since, figures.max_waiting) == (0.0, None, 1)


# --- groups and maxima ------------------------------------------------------------------------


def test_groups_add_up_their_processes(group: Group) -> None:
    """A process counts in its program, its host, and once in each database that it has pools in."""
    group.say(full("a", 1, pool(1, 2, 5), pool(2, 3, 6), pool(3, 4, 7, database="nova")))
    group.say(full("b", 1, pool(1, 1, 1), process=process(program="neutron", pid=2)))
    group.say(full("c", 1, pool(1, 1, 1), process=process("ctl2")))
    assert group.program().figures.gauges.connections == 9
    hosts = group.rows("host")
    assert [getattr(hosts["host", host], "programs", None) for host in ("ctl1", "ctl2")] == [2, 1]
    neutron = group.database("neutron")
    assert (neutron.figures.processes, neutron.programs) == (3, 3)
    assert neutron.figures.gauges.connections == 7
    assert group.database("nova").figures.totals.checkouts == 7
    header = group.answer(Query("program"))[0]
    assert (header.hosts, header.programs) == (2, 3)
    assert (header.totals.processes, header.totals.gauges.connections) == (3, 11)


def test_a_maximum_has_the_reporting_processs_peak_in_place_of_its_present(group: Group) -> None:
    """Peaks of two processes at different times are not added."""
    group.say(full("a", 1, pool(1, 2, peak=10)), full("b", 1, pool(1, 3, peak=4)))
    figures = group.program().figures
    assert figures.gauges.connections == 5
    assert figures.max_connections == 10  # a's peak before b was there; then 2 + 4
    group.say(change("b", 2, pool(1, 3, peak=9)))
    assert group.program().figures.max_connections == 11  # 2 + 9
    assert group.program().figures.max_processes == 2


def test_a_databases_maximum_takes_one_pools_peak_at_a_time(group: Group) -> None:
    """Peaks of two pools of a process are not added."""
    group.say(full("a", 1, pool(1, 1, peak=10), pool(2, 1, peak=10), peaks=Peaks(12)))
    assert group.database().figures.max_connections == 11
    assert group.program().figures.max_connections == 12


def test_present_is_never_above_the_maximum(group: Group) -> None:
    """A maximum is at least the present value, even where a report's own peaks are too low."""
    group.say(full("a", 1, msgspec.structs.replace(pool(1, 5, out=3), peaks=Peaks()), peaks=Peaks()))
    for figures in (group.program().figures, group.database().figures, group.process().figures):
        assert (figures.max_connections, figures.max_checked_out) == (5, 3)


# --- ends -------------------------------------------------------------------------------------


def test_a_departure_drops_the_process_and_keeps_its_totals(group: Group) -> None:
    """Gauges leave at once; totals and maxima stay with the groups, whose state is gone."""
    group.say(full("a", 1, pool(1, 2, 7), connections=(connection(1),)))
    group.say(Departure("a", 1))
    assert group.rows("connection") == {}
    for row in (group.program(), group.database()):
        assert row.state == "gone"
        assert (row.figures.processes, row.figures.gauges) == (0, Gauges())
        assert (row.figures.totals.checkouts, row.figures.max_connections) == (7, 2)
    header = group.answer(Query("program"))[0]
    assert (header.hosts, header.programs, header.totals.totals.checkouts) == (0, 0, 7)


@pytest.mark.parametrize("departure", [("a", 1, "node1"), ("a", 2, "node2"), ("b", 2, "node1")])
def test_a_departure_that_was_overtaken_does_not_count(
    group: Group, departure: tuple[str, int, str]
) -> None:  # fmt: skip
    """A departure does not count after a later report over any node."""
    instance, sequence, node = departure
    group.say(full("a", 1), change("a", 2))
    group.say(Departure(instance, sequence), node=node)
    assert group.process().state == "connected"


def test_the_owner_is_the_node_of_the_last_report(group: Group) -> None:
    """A departure counts only from the node of the process's last report."""
    group.say(full("a", 1))
    group.say(full("a", 2), node="node2")
    group.say(Departure("a", 2), node="node1")
    assert group.process().node == "node2"
    group.say(Departure("a", 2), node="node2")
    assert group.rows("process") == {}


def test_a_report_and_the_departure_after_it_in_one_batch(group: Group) -> None:
    """Departures count after the reports of their batch."""
    group.say(full("a", 1, pool(1, 1, 3)), Departure("a", 1))
    assert group.rows("process") == {}
    assert group.program().figures.totals.checkouts == 3


def test_a_late_duplicate_does_not_bring_an_ended_process_back(group: Group) -> None:
    """A report from before the end of its process is acknowledged and ignored."""
    group.say(full("a", 1), change("a", 2), Departure("a", 2))
    assert group.wanted(full("a", 1), full("a", 2), change("a", 2)) == [False, False, False]
    assert group.rows("process") == {}


def test_a_process_that_comes_back_is_not_counted_twice(group: Group) -> None:
    """Its totals leave the ended totals of all its groups."""
    group.say(full("a", 1, pool(1, 2, 7)), full("b", 1, pool(1, 1, 1)), Departure("a", 1))
    assert group.wanted(change("a", 2, pool(1, 2, 9))) == [True]
    assert group.wanted(full("a", 3, pool(1, 2, 9))) == [False]
    assert group.program().figures.totals.checkouts == 10
    assert group.database().figures.totals.checkouts == 10
    assert group.program().figures.processes == 2
    group.say(Departure("a", 3))
    assert group.program().figures.totals.checkouts == 10


def test_ended_processes_are_remembered_for_an_hour_and_in_bounds() -> None:
    """Beyond the limit the oldest are forgotten and counted; the totals of their groups stay."""
    group = Group(Limits(ended=3))
    for number in range(5):
        group.say(full(f"p{number}", 1, pool(1, 1, 1)), Departure(f"p{number}", 1))
    assert list(group.state.contents.ended.by_instance) == ["p2", "p3", "p4"]
    group.wait(1800)
    group.say(full("live", 1))
    group.wait(1802, lease=10_000)
    assert group.state.contents.ended.by_instance == {}
    assert group.state.forgotten == {"ended": 2, "gone": 0}
    assert group.program().figures.totals.checkouts == 5


def test_a_new_group_of_the_same_key_never_had_the_ended_process() -> None:
    """A process that comes back after its group was removed takes nothing from the new group's totals."""
    group = Group(Limits(gone=1))
    group.say(full("a", 1, pool(1, 0, 7)), Departure("a", 1))
    group.say(full("b", 1, process=process("ctl2", "other")), Departure("b", 1), tick=Tick(1.0, LEASE))
    assert ("program", "ctl1", "nova-api") not in group.state.groups
    assert group.state.forgotten["gone"] == 4
    group.say(full("c", 1, pool(1, 0, 5)), Departure("c", 1))
    group.say(full("a", 2, pool(1, 0, 8)))
    assert group.program().figures.totals.checkouts == 13


# --- silence ----------------------------------------------------------------------------------


def test_a_silent_process_is_lost_after_the_lease(group: Group) -> None:
    """Its gauges leave the groups, its totals stay, its rows are lost and have no present."""
    group.say(full("a", 1, pool(1, 2, 7), connections=(connection(1),)))
    group.wait(LEASE)
    assert group.process().state == "connected"
    group.wait(0.1)
    rows = group.rows("connection")
    assert ("connection", "a", 1) in rows
    for key in (("process", "a"), ("pool", "a", 1)):
        row = rows[key]
        assert isinstance(row, (ProcessRow, PoolRow))
        assert row.state == "lost"
        assert (row.figures.processes, row.figures.lost_processes) == (0, 1)
        assert (row.figures.gauges, row.figures.totals.checkouts) == (Gauges(), 7)
    for group_row in (group.program(), group.database()):
        figures = group_row.figures
        assert (group_row.state, figures.processes, figures.lost_processes) == ("lost", 0, 1)
        assert (figures.gauges, figures.totals.checkouts) == (Gauges(), 7)


def test_a_lost_process_that_reports_is_connected_again(group: Group) -> None:
    """A change on top of its last report reconnects it."""
    group.say(full("a", 1, pool(1, 2, 7), pool(2, 1, 1)))
    group.wait(20)
    assert group.wanted(change("a", 2, pool(1, 3, 8))) == [False]
    row = group.program()
    assert (row.state, row.figures.processes, row.figures.lost_processes) == ("connected", 1, 0)
    assert (row.figures.gauges.connections, row.figures.totals.checkouts) == (4, 9)
    assert group.database().figures.gauges.connections == 4
    assert group.database().figures.max_connections == 4


def test_a_lost_process_is_dropped_after_four_more_leases(group: Group) -> None:
    """Like a departed process it is remembered, and does not count twice when it comes back."""
    group.say(full("a", 1, pool(1, 2, 7)))
    group.wait(5 * LEASE)
    assert group.process().state == "lost"
    group.wait(0.1)
    assert group.rows("process") == {}
    assert group.program().state == "gone"
    assert group.wanted(change("a", 2)) == [True]
    group.say(full("a", 3, pool(1, 2, 7)))
    assert group.program().figures.totals.checkouts == 7


def test_no_process_is_lost_in_the_batch_that_brings_its_report(group: Group) -> None:
    """Time passes before reports count, and silent processes expire after them."""
    group.say(full("a", 1))
    group.wait(14)
    group.say(change("a", 2), tick=Tick(2.0, LEASE))
    assert group.process().state == "connected"


def test_many_silent_processes_are_dropped_over_several_ticks() -> None:
    """No batch takes long to apply; until they are dropped, silent processes are lost."""
    group = Group(rows_dropped_per_tick=2)
    group.say(*[full(f"p{n}", 1) for n in range(5)])
    lease = 0.1
    left = []
    for _ in range(3):
        group.say(tick=Tick(2.0, lease))
        left.append([row.state for row in group.state.processes.values()])
    assert left == [["lost"] * 3, ["lost"], []]


def test_a_group_without_processes_is_removed_after_an_hour(group: Group) -> None:
    """Its row keeps maxima and totals until then."""
    group.say(full("a", 1, pool(1, 2, 7)), Departure("a", 1))
    group.wait(3600)
    assert group.program().figures.totals.checkouts == 7
    since = group.state.version
    group.wait(2)
    answer = group.answer(Query("program", group.state.epoch, since))[0]
    assert answer.removed == (("program", "ctl1", "nova-api"),)
    assert group.state.groups == {}


# --- bounds -----------------------------------------------------------------------------------


def test_no_more_processes_than_allowed() -> None:
    """Reports of a process beyond the limit are acknowledged and ignored; no full report is wanted."""
    group = Group(Limits(processes=2))
    assert group.wanted(full("a"), full("b"), full("c"), change("c", 2)) == [False] * 4
    assert set(group.state.processes) == {"a", "b"}
    group.say(Departure("a", 1))
    assert group.wanted(change("c", 3)) == [True]


def test_no_more_pools_and_connections_than_allowed() -> None:
    """The first ones are kept, and still change."""
    group = Group(Limits(pools=2, connections=2))
    group.say(
        full(
            "a", 1, pool(1, 1), pool(2, 1), pool(3, 1),
            connections=(connection(1), connection(2), connection(3), connection(4, 3)),
        )
    )  # fmt: skip
    group.say(change("a", 2, pool(1, 5), connections=(connection(5), connection(2))))
    assert group.wanted(change("a", 3)) == [False]
    found = group.state.processes["a"]
    assert (list(found.pools), list(found.connections)) == ([1, 2], [1, 2])
    assert found.gauges.connections == 6


def test_all_processes_together_have_bounded_room() -> None:
    """Long texts cannot fill the memory; a removed process frees its room."""
    group = Group(Limits(room=100_000))
    long = tuple(msgspec.structs.replace(connection(n), call_site="x" * 2000) for n in range(100))
    group.say(full("a", 1, pool(1), connections=long))
    assert group.state.contents.room.weight <= 100_000
    assert 10 < len(group.state.processes["a"].connections) < 50
    group.say(full("b", 1, pool(1)), full("c", 1))
    assert set(group.state.processes) == {"a"}
    group.say(change("a", 2, closed_pools=(1,)), full("b", 2, pool(1)))
    group.say(Departure("a", 2), Departure("b", 2))
    assert group.state.contents.room.weight == 0


def test_absurd_counts_stay_readable_and_loadable(group: Group) -> None:
    """Absurd counts make no row that a reader refuses, and the checkpoint stays loadable."""
    most = Gauges(*[LARGEST] * 8)
    mad = tuple(
        PoolReport(
            n,
            info(),
            most,
            Totals(*[LARGEST] * len(Totals._fields)),
            Peaks(LARGEST, LARGEST, LARGEST, 1e12),
            1e12,
            1e12,
        )
        for n in range(1000)
    )
    for turn in range(3):
        for n in range(3):
            sequence = 2 * turn + 1
            group.say(full(f"p{n}", sequence, *mad, interval=1e-300))
            group.say(change(f"p{n}", sequence + 1, *mad, interval=5e-324))
            for by in GROUPINGS:
                group.answer(Query(by))
        group.say(*[Departure(f"p{n}", 9) for n in range(3)])
        for by in GROUPINGS:
            group.answer(Query(by))
        assert StateMachine.decode(group.state.encode()).encode() == group.state.encode()


# --- reading ----------------------------------------------------------------------------------


def test_a_reader_gets_what_changed_since(group: Group) -> None:
    """A reader gets changed rows and removed keys; nothing when nothing happened."""
    group.say(full("a", 1, pool(1, 1), connections=(connection(1), connection(2))))
    group.say(full("b", 1, process=process(program="other")))
    first = group.answer(Query("connection"))
    assert first[0].complete
    since = first[0].version
    empty = group.answer(Query("connection", group.state.epoch, since))
    assert (len(empty), empty[0].complete, empty[0].rows, empty[0].removed) == (1, False, (), ())
    group.say(change("a", 2, closed_connections=(1,), connections=(connection(2),)))
    (answer,) = group.answer(Query("connection", group.state.epoch, since))
    assert [row.key for row in answer.rows] == [("process", "a"), ("pool", "a", 1), ("connection", "a", 2)]
    assert answer.removed == (("connection", "a", 1),)
    (programs,) = group.answer(Query("program", group.state.epoch, since))
    assert [row.key for row in programs.rows] == [("program", "ctl1", "nova-api")]


def test_rows_that_a_full_report_lacks_are_removed(group: Group) -> None:
    """Rows that a full report lacks, and the row of a pool with totals only, are removed."""
    group.say(full("a", 1, pool(1), pool(2), pool(3), connections=(connection(1), connection(2))))
    since = group.state.version
    group.say(full("a", 2, pool(1), pool(3, pools=0), connections=(connection(2),)))
    (answer,) = group.answer(Query("connection", group.state.epoch, since))
    assert set(answer.removed) == {("pool", "a", 2), ("pool", "a", 3), ("connection", "a", 1)}
    assert {row.key for row in answer.rows} == {("process", "a"), ("pool", "a", 1), ("connection", "a", 2)}


def test_a_row_that_came_back_is_not_removed(group: Group) -> None:
    """A key that has a row again is not among the removed ones."""
    group.say(full("a", 1))
    since = group.state.version
    group.say(Departure("a", 1))
    group.say(full("a", 2))
    (answer,) = group.answer(Query("process", group.state.epoch, since))
    assert ([row.key for row in answer.rows], answer.removed) == ([("process", "a")], ())


def test_a_reader_of_another_epoch_or_from_too_long_ago_gets_everything() -> None:
    """When removals have been forgotten, the answer is complete."""
    group = Group(Limits(tombstones=2))
    group.say(full("a", 1))
    since = group.state.version
    assert group.answer(Query("process", "another", since))[0].complete
    for n in range(3):
        group.say(full(f"p{n}", 1), Departure(f"p{n}", 1))
    assert group.answer(Query("process", group.state.epoch, since))[0].complete
    assert not group.answer(Query("program", group.state.epoch, since))[0].complete
    assert not group.answer(Query("process", group.state.epoch, since + 1))[0].complete


def test_a_reader_that_is_ahead_is_not_sent_back(group: Group) -> None:
    """A replica that lags sends no rows and keeps the reader's version."""
    group.say(full("a", 1))
    (answer,) = group.answer(Query("process", group.state.epoch, 100))
    assert (answer.version, answer.rows, answer.complete) == (100, (), False)


def test_answers_are_narrowed(group: Group) -> None:
    """Answers are narrowed by host, program and instance; groups by their members."""
    group.say(full("a", 1, pool(1, 1), connections=(connection(1),)))
    group.say(full("b", 1, pool(1, 1, database="nova"), process=process("ctl2")))
    group.say(full("c", 1, process=process("ctl1", "other")))
    assert set(group.rows("process", host="ctl1")) == {("process", "a"), ("process", "c")}
    assert set(group.rows("process", host="ctl1", program="nova-api")) == {("process", "a")}
    assert set(group.rows("connection", instance="a")) == {
        ("process", "a"), ("pool", "a", 1), ("connection", "a", 1),
    }  # fmt: skip
    assert group.rows("pool", instance="none") == {}
    assert set(group.rows("program", host="ctl2")) == {("program", "ctl2", "nova-api")}
    assert set(group.rows("program", program="other")) == {("program", "ctl1", "other")}
    assert set(group.rows("program", instance="c")) == {("program", "ctl1", "other")}
    assert set(group.rows("host", program="other")) == {("host", "ctl1")}
    assert set(group.rows("database", host="ctl2")) == {database_key(info("nova"))}


def test_answers_come_in_frames_and_bear_changes_between(group: Group) -> None:
    """A frame has at most 2,000 rows; rows removed between frames are left out, and removed next."""
    group.say(full("a", 1, pool(1), connections=tuple(connection(n) for n in range(4500))))
    reader = group.state.rows(Query("connection"), About("s", "n", None, False, 1.0))
    first = next(reader)
    group.say(change("a", 2, closed_connections=tuple(range(2500))))
    frames = [first, *reader]
    assert [frame.more for frame in frames] == [True, False]
    assert [len(frame.rows) for frame in frames] == [2000, 2000]
    bare = {msgspec.msgpack.encode(msgspec.structs.replace(f, rows=(), more=False)) for f in frames}
    assert len(bare) == 1
    snapshot = Snapshot("connection")
    for frame in frames:
        snapshot.apply(frame)
    for frame in group.answer(snapshot.query()):
        assert not frame.complete
        assert len(frame.removed) <= 2000
        snapshot.apply(frame)
    assert len(snapshot.document()["rows"]) == 2000


def test_frames_are_bounded_in_size(group: Group) -> None:
    """A frame has fewer rows when they have long stacks."""
    deep = tuple(
        msgspec.structs.replace(connection(n), stack=("x" * 2048,) * 64) for n in range(100)
    )  # fmt: skip
    group.say(full("a", 1, pool(1), connections=deep))
    frames = group.answer(Query("connection"))
    assert max(len(msgspec.msgpack.encode(frame)) for frame in frames) < 8 * 1024 * 1024
    assert sum(len(frame.rows) for frame in frames) == 102


def test_the_header_has_the_totals_of_all_programs(group: Group) -> None:
    """Totals are sums, and the longest waits and holds; an unknown rate is None."""
    group.say(full("a", 1, pool(1, 2, 3, held=5.0), peaks=Peaks(2, 0, 0, 1.0)))
    group.say(full("b", 1, pool(1, 4, 5, held=9.0), process=process("ctl2"), peaks=Peaks(6, 0, 0, 3.0)))
    totals = group.answer(Query("host", instance="a"))[0].totals
    assert totals == Figures(
        2, 0, Gauges(2, 30, 0, 6), Totals(connects=6, checkouts=8, checkins=8),
        2, 8, 0, 0, 3.0, None, -9.0, None, 0.0,
    )  # fmt: skip


# --- checkpoints ------------------------------------------------------------------------------


def test_an_empty_state_is_loaded_from_its_checkpoint() -> None:
    """An empty state has a checkpoint."""
    state = StateMachine.decode(StateMachine().encode())
    assert (state.encode(), state.digest()) == (StateMachine().encode(), StateMachine().digest())


def test_a_loaded_state_goes_on_as_the_other(group: Group) -> None:
    """A state loaded from a checkpoint goes on like the original."""
    group.say(full("a", 1, pool(1, 2, 7), pool(9, 0, 3, pools=0)), full("b", 1, pool(1, 1, 1)))
    group.say(full("c", 1, pool(1, 0, 4, database="nova")), Departure("c", 1))
    group.wait(20)
    group.say(full("d", 1, pool(1, 5, 5), connections=(connection(1),)))
    other = Group()
    other.state, other.numbers = StateMachine.decode(group.state.encode()), dict(group.numbers)
    assert other.state.digest() == group.state.digest()
    assert other.state.contents.room.weight == group.state.contents.room.weight
    for each in (group, other):
        each.say(change("a", 2, pool(1, 3, 8)), full("c", 2, pool(1, 0, 5)), Departure("d", 1))
        each.wait(100)
    assert other.state.encode() == group.state.encode()
    assert other.rows("program") == group.rows("program")
    assert other.rows("database") == group.rows("database")


def test_a_loaded_state_forgets_the_same_groups() -> None:
    """Groups are removed in the order in which they lost their last process, on every replica."""
    limits = Limits(gone=3)
    group, other = Group(limits), Group(limits)
    for host in ("ctl1", "ctl2", "ctl3"):
        group.say(full(host, 1, process=process(host)))
    group.say(Departure("ctl3", 1), Departure("ctl1", 1), Departure("ctl2", 1))
    other.state, other.numbers = (
        StateMachine.decode(group.state.encode(), StateSettings(limits=limits)),
        dict(group.numbers),
    )
    for each in (group, other):
        each.say(tick=Tick(1.0, LEASE))
        assert set(each.state.groups) == {
            ("host", "ctl1"), ("program", "ctl2", "nova-api"), ("host", "ctl2"),
        }  # fmt: skip
    assert other.state.encode() == group.state.encode()


def test_the_header_is_as_new_as_the_rows(group: Group) -> None:
    """The totals change with the rows."""
    for sequence in (1, 2):
        group.say(full("a", sequence, pool(1, sequence)))
        assert group.answer(Query("program"))[0].totals.gauges.connections == sequence


def test_a_loaded_state_sends_readers_from_before_everything(group: Group) -> None:
    """Removals are not in a checkpoint; only a reader with the loaded version needs nothing."""
    group.say(full("a", 1))
    group.say(full("b", 1))
    state = StateMachine.decode(group.state.encode())
    assert ask(state, Query("process", state.epoch, 1))[0].complete
    assert not ask(state, Query("process", state.epoch, 2))[0].complete


@pytest.mark.parametrize("data", [b"", b"\x90", b"rubbish", msgspec.msgpack.encode([99, 1])])
def test_invalid_checkpoints_are_refused(data: bytes) -> None:
    """Data that is no checkpoint raises ProtocolError with one line."""
    with pytest.raises(ProtocolError, match="checkpoint of the state"):
        StateMachine.decode(data)


def test_a_checkpoint_of_another_layout_is_refused(group: Group) -> None:
    """The error says to run the same version of connmon."""
    layout_and_parts = msgspec.msgpack.decode(group.state.encode())
    with pytest.raises(ProtocolError, match="same version"):
        StateMachine.decode(msgspec.msgpack.encode([99, *layout_and_parts[1:]]))


def test_closing_twice_closes_once(group: Group) -> None:
    """Naming a closed pool or connection twice closes it once."""
    group.say(full("a", 1, pool(1, 2), pool(2, 1), connections=(connection(1, 1), connection(2, 2))))
    group.say(change("a", 2, closed_pools=(1, 1), closed_connections=(2, 2)))
    assert group.process().figures.gauges.pools == 1
    assert list(group.state.processes["a"].pools) == [2]
    assert not group.state.processes["a"].connections


# --- how long things took -----------------------------------------------------------------------


def holds(*counts: int) -> Times:
    """Return times with these counts in the first buckets."""
    return Times(holds={bucket: count for bucket, count in enumerate(counts) if count})


def timed(counts: tuple[int, ...], number: int = 1, **more: Any) -> PoolReport:
    return pool(number, times=holds(*counts), **more)


def shown(bucket: int) -> float | None:
    """Return the quantile in this bucket."""
    return quantile({bucket: 1}, 50)


def p50(group: Group) -> float | None:
    """Return the median of the program's recent holds; its process and pool have the same."""
    found = {row.figures.holds.p50 for row in (group.program(), group.process(), group.pool())}
    assert len(found) == 1
    return found.pop()


def test_quantiles_are_of_the_last_one_to_two_minutes(group: Group) -> None:
    """Quantiles of a new process cover everything; they drop each window after one to two minutes."""
    group.say(full("a", 1, timed((4,))), tick=Tick(1.0, LEASE))
    assert p50(group) == shown(0)
    group.wait(58.0, lease=1000.0)
    group.say(change("a", 2, timed((4, 8))))
    assert p50(group) == shown(1)
    group.wait(2.0, lease=1000.0)
    group.say(change("a", 3, timed((4, 8, 12))))
    assert p50(group) == shown(1)  # all of it is within two minutes
    group.wait(60.0, lease=1000.0)
    group.say(change("a", 4, timed((4, 8, 12))))
    assert p50(group) == shown(2)
    group.wait(60.0, lease=1000.0)
    group.say(change("a", 5))
    assert p50(group) is None
    assert group.state.groups["program", "ctl1", "nova-api"].times == holds(4, 8, 12)


def test_times_from_before_a_process_was_known_are_not_recent(group: Group) -> None:
    """A process that has reported elsewhere before has no recent times until it counts more."""
    group.say(full("a", 7, timed((1000,))))
    assert p50(group) is None
    group.say(change("a", 8, timed((1000, 3))))
    assert p50(group) == shown(1)
    group.say(change("a", 9, timed((0, 0, 5), number=2)))
    assert group.program().figures.holds.p99 == shown(2)


def test_times_of_closed_pools_are_not_recent(group: Group) -> None:
    """The remains of closed pools take over their times, which are not recent."""
    group.say(full("a", 1, timed((3,)), timed((5,), number=2)))
    group.say(change("a", 2, timed((5,), number=3, pools=0), closed_pools=(2,)))
    assert p50(group) == shown(0)
    assert group.state.groups["program", "ctl1", "nova-api"].times == holds(8)


def test_times_of_ended_processes(group: Group) -> None:
    """Times of ended processes stay in the sums and count once; lost processes have no quantiles."""
    key = ("program", "ctl1", "nova-api")
    group.say(full("a", 1, timed((3, 1))), full("b", 1, timed((0, 2))))
    group.say(Departure("a", 1))
    assert group.state.groups[key].times == holds(3, 3)
    assert group.program().figures.holds.p50 == shown(1)
    group.say(full("a", 2, timed((3, 4))))
    assert group.state.groups[key].times == holds(3, 6)
    group.wait(20.0)
    assert (group.program().state, group.program().figures.holds.p50) == ("lost", None)
    assert group.process("b").figures.holds == Quantiles()
    loaded = StateMachine.decode(group.state.encode())
    assert loaded.groups[key].times == holds(3, 6)
    assert loaded.digest() == group.state.digest()


@pytest.mark.parametrize("times", [b"x", b"\x93\x80\x80", msgspec.msgpack.encode([{}, {BUCKETS: 1}, {}])])
def test_a_checkpoint_with_invalid_times_is_refused(group: Group, times: bytes) -> None:
    """A checkpoint with invalid packed times is refused, wherever these are."""
    group.say(full("a", 1, timed((3, 1))))
    group.state.processes["a"].pools[1].mark = times
    with pytest.raises(ProtocolError, match="cannot be read"):
        StateMachine.decode(group.state.encode())


def test_only_changed_times_are_reported(group: Group) -> None:
    """A pool report without `info` has the changed counts only; one with `info` replaces them all."""
    key = ("program", "ctl1", "nova-api")
    group.say(full("a", 1, timed((3, 1))))
    group.say(change("a", 2, timed((0, 2), database=None)))
    assert group.state.groups[key].times == holds(3, 2)
    group.say(change("a", 3, timed((), database=None)))
    assert group.state.groups[key].times == holds(3, 2)
    assert p50(group) == shown(0)
    group.say(change("a", 4, timed((1, 9), database=None)))  # no count goes back, whatever is said
    assert group.state.groups[key].times == holds(3, 9)
    group.say(full("a", 5, timed((0, 9, 1))))
    assert group.state.groups[key].times == holds(0, 9, 1)


def test_a_thousand_waits_of_the_same_length_are_shown_as_that(group: Group) -> None:
    """Equal waits give the same three percentiles, in every row and in the totals."""
    times = Times(histogram.of([30.0] * 1000), histogram.of([0.0251] * 1000))
    group.say(full("a", 1, pool(1, times=times)))
    for by in GROUPINGS[:-2]:
        snapshot = Snapshot(by)
        for frame in group.answer(Query(by)):
            snapshot.apply(frame)
        document = snapshot.document()
        for cells in (document["rows"][0], document["totals"]):
            for part in (50, 95, 99):
                assert cells[f"wait_p{part}_seconds"] == pytest.approx(30.0, rel=0.1)
                assert cells[f"held_p{part}_seconds"] == pytest.approx(0.0251, rel=0.1)


def test_quantiles_of_everything(group: Group) -> None:
    """The totals have quantiles over all programs."""
    group.say(full("a", 1, timed((1,))), full("b", 1, timed((0, 9)), process=process(program="agent")))
    (answer,) = group.answer(Query("program"))
    assert answer.totals.holds.p95 == shown(1)
    assert answer.totals.waits == Quantiles()


# --- what limits leave out ---------------------------------------------------------------------


def left_out(group: Group) -> tuple[int, int, int, int, int]:
    """Return what is left out of: process, program, host, database and totals."""
    (head,) = {frame.totals.left_out for frame in group.answer(Query("program"))}
    process = group.process().figures.left_out
    host = group.rows("host")["host", "ctl1"]
    assert isinstance(host, HostRow)
    return (
        process, group.program().figures.left_out, host.figures.left_out, group.database().figures.left_out,
        head,
    )  # fmt: skip


def test_pools_beyond_the_limit_are_counted_and_asked_for_when_they_fit() -> None:
    """Refused pools are counted; once there is room, a full report is wanted and brings them."""
    group = Group(Limits(pools=2))
    group.say(full("a", 1, pool(1, 1), pool(2, 1), pool(3, 4), pool(4, 4)))
    assert left_out(group) == (2, 2, 2, 0, 2)
    assert group.state.left_out() == {"processes": 0, "pools": 2, "connections": 0, "room": 0}
    # What was left out changes: it is left out still, once.
    unknown = msgspec.structs.replace(pool(3, 5), info=None)
    assert group.wanted(change("a", 2, unknown)) == [False]
    assert left_out(group)[0] == 2
    # One of those left out is closed; then one that has a row, so that another fits.
    assert group.wanted(change("a", 3, closed_pools=(4,))) == [False]
    assert left_out(group)[0] == 1
    assert group.wanted(change("a", 4, closed_pools=(1,))) == [True]
    assert group.wanted(full("a", 5, pool(2, 1), pool(3, 5))) == [False]
    assert left_out(group) == (0, 0, 0, 0, 0)
    assert group.pool("a", 3).figures.gauges.connections == 5
    assert group.process().figures.gauges.connections == 6
    assert not group.state.contents.processes.crowded


def test_a_process_over_a_limit_for_good_sends_no_full_reports_for_it() -> None:
    """No full report is wanted for what would not fit; for what would, at most every five seconds."""
    group = Group(Limits(pools=2))
    group.say(full("a", 1, pool(1), pool(2), pool(3)))
    assert [group.wanted(change("a", n, pool(1, n)))[0] for n in range(2, 12)] == [False] * 10
    assert group.wanted(change("a", 12, closed_pools=(1,))) == [True]
    # It goes on as if it had not been asked: an application that is another one than ours.
    assert [group.wanted(change("a", n))[0] for n in range(13, 20)] == [False] * 7
    group.wait(6.0)
    assert group.wanted(change("a", 20)) == [True]


def test_connections_beyond_the_limit_are_counted_and_asked_for_when_they_fit() -> None:
    """Refused connections stay in the sums; process, pool and database count the missing rows."""
    group = Group(Limits(connections=2))
    group.say(full("a", 1, pool(1, 4), connections=tuple(connection(n) for n in range(1, 5))))
    assert left_out(group) == (2, 2, 2, 2, 2)
    assert group.pool().figures.left_out == 2
    assert group.process().figures.gauges.connections == 4
    assert group.state.left_out()["connections"] == 2
    # Changes of those left out count once.
    assert group.wanted(change("a", 2, connections=(connection(3), connection(4)))) == [False]
    assert group.process().figures.left_out == 2
    assert group.wanted(change("a", 3, pool(1, 3), closed_connections=(4,))) == [False]
    assert group.process().figures.left_out == 1
    assert group.wanted(change("a", 4, pool(1, 2), closed_connections=(1,))) == [True]
    group.say(full("a", 5, pool(1, 2), connections=(connection(2), connection(3))))
    assert left_out(group) == (0, 0, 0, 0, 0)
    assert list(group.state.processes["a"].connections) == [2, 3]


def test_a_known_connection_does_not_get_stale_for_want_of_room() -> None:
    """A connection that there is no room for loses its stack before its state goes stale."""
    group = Group(Limits(room=16384 + 2048 + 23 + 256 + 100))
    group.say(full("a", 1, msgspec.structs.replace(pool(1, 1)), connections=(connection(1),)))
    stack = ("app.py:1 work",) * 10
    held = msgspec.structs.replace(connection(1, held=2.0), state="checked_out", stack=stack)
    group.say(change("a", 2, connections=(held,)))
    record = group.state.processes["a"].connections[1]
    assert (record.state, record.stack) == ("checked_out", ())
    assert group.state.contents.room.weight <= group.state.limits.room


def test_refused_rows_are_counted_and_asked_for() -> None:
    """Pools and connections without room are counted under the limit's name, and asked for later."""
    # A process, a pool and two connections.
    group = Group(Limits(room=16384 + 2200 + 2 * 256))
    assert group.wanted(full("a", 1, pool(1, 4), connections=tuple(map(connection, (1, 2, 3, 4))))) == [False]
    assert len(group.state.processes["a"].connections) == 2
    assert group.state.left_out() == {"processes": 0, "pools": 0, "connections": 0, "room": 2}
    group.say(change("a", 2, pool(2, 1)))
    assert group.state.left_out()["room"] == 3
    assert group.wanted(change("a", 3, pool(1, 3), closed_connections=(1,))) == [True]
    # A pool is asked for only where any pool would fit.
    group = Group(Limits(room=16384 + 2 * 6144))
    url = "mysql://" + "x" * 2000
    wide = msgspec.structs.replace(
        pool(2), info=msgspec.structs.replace(info(), url=url, database="y" * 2000)
    )
    widest = msgspec.structs.replace(wide, number=3)
    group.say(full("a", 1, pool(1), wide, widest))
    assert group.state.left_out()["room"] == 1
    assert group.wanted(change("a", 2)) == [False]
    assert group.wanted(change("a", 3, closed_pools=(2,))) == [True]


def test_processes_too_many_are_counted_until_they_come_in_or_end() -> None:
    """Processes without a place are counted; only as many are invited as there are places."""
    group = Group(Limits(processes=2))
    group.say(full("a", 1, pool(1)), full("b"), full("c"), full("d"), full("e"))
    assert left_out(group) == (0, 0, 0, 0, 3)
    assert group.state.left_out() == {"processes": 3, "pools": 0, "connections": 0, "room": 0}
    loaded = StateMachine.decode(group.state.encode(), group.state.settings)
    assert loaded.encode() == group.state.encode()
    assert loaded.left_out() == group.state.left_out()
    group.say(Departure("c", 1))
    assert group.state.left_out()["processes"] == 2
    group.say(Departure("b", 1))
    assert group.wanted(change("d", 2), change("e", 2)) == [True, False]
    group.say(full("d", 3))
    assert group.state.left_out()["processes"] == 1
    group.wait(LEASE + 2)  # all silent: what was left out is no longer, nor known to be there
    assert group.state.left_out()["processes"] == 0


def test_pools_that_a_process_reports_as_a_sum_count_and_have_no_row() -> None:
    """They are in every sum; the row of their sum exists only for their connections."""
    group = Group()
    others = msgspec.structs.replace(info(), url="(others)", pool_class="", pool_size=None, max_overflow=None)
    summed = msgspec.structs.replace(pool(9, 7, 3), info=others, gauges=Gauges(3, 45, 0, 7, 3), left_out=3)
    group.say(full("a", 1, pool(1, 2), summed, connections=(connection(1), connection(2, 9))))
    assert left_out(group) == (3, 3, 3, 3, 3)
    assert group.state.left_out()["pools"] == 3
    for row in (group.process(), group.program(), group.database()):
        assert (row.figures.gauges.pools, row.figures.gauges.connections) == (4, 9)
    assert [key for key in group.rows("pool") if key[0] == "pool"] == [("pool", "a", 1)]
    assert ("pool", "a", 9) in group.rows("connection")
    # One of them gets a report of its own, and takes its part along.
    mine = pool(2, 4, 50, times=Times({}, {1: 50}), moved=True)
    rest = msgspec.structs.replace(summed, gauges=Gauges(2, 30, 0, 3, 1), left_out=2, moved=True, info=None)
    group.say(change("a", 2, mine, rest, connections=(connection(2, 2),)))
    assert left_out(group)[0] == 2
    figures = group.pool("a", 2).figures
    assert (figures.checkouts_per_second, figures.holds.p50) == (None, None)
    assert group.process().figures.gauges.connections == 9
    assert group.state.processes["a"].connections[2].pool == 2


def test_connections_that_a_process_does_not_report_one_by_one_are_counted() -> None:
    """They count in the process, the pool and their groups; not for a lost process."""
    group = Group()
    group.say(full("a", 1, pool(1, 5), pool(2, 1), connections=(connection(1), connection(2, 2)), left_out=4))
    assert left_out(group) == (4, 4, 4, 4, 4)
    assert [group.pool("a", n).figures.left_out for n in (1, 2)] == [4, 0]
    assert group.state.left_out()["connections"] == 4
    group.wait(LEASE + 2)
    assert left_out(group) == (0, 0, 0, 0, 0)
    assert not any(group.state.left_out().values())


def test_a_connection_without_its_holder_weighs_the_same_everywhere() -> None:
    """A connection that lost its stack for want of room weighs the same after loading."""
    limits = Limits(room=PROCESS_WEIGHT + pool_weight(info()) + 500)
    group = Group(limits)
    stack = ("x" * 400,) * 3
    one = msgspec.structs.replace(
        connection(1, held=1.0),
        holder="thread",
        stack=stack,
        server=ServerAddress("replica-2.example.org", 3306),
    )
    group.say(full("a", 1, pool(1, 2, 1, out=1), connections=(one,)))
    assert group.state.processes["a"].connections[1].stack == ()
    loaded = StateMachine.decode(group.state.encode(), StateSettings(limits=limits))
    assert loaded.contents.room.weight == group.state.contents.room.weight
    group.say(Departure("a", 9))
    assert group.state.contents.room.weight == 0


def test_a_pool_that_comes_in_late_is_not_new() -> None:
    """A pool that was refused before has no rate and no recent times from before it came in."""
    group = Group(Limits(pools=1))
    late = pool(2, 1, 1_000_000, times=Times({}, {40: 1_000_000}))
    group.say(full("a", 1, pool(1, 1, 10), late))
    assert left_out(group)[0] == 1
    group.say(full("a", 2, late))
    process = group.state.processes["a"]
    assert (process.checkouts_per_second, process.pools[2].checkouts_per_second) == (None, None)
    assert not group.state.contents.recent_times.total().holds
    group.say(change("a", 3, pool(2, 1, 1_000_005, database=None)))
    assert process.pools[2].checkouts_per_second == process.checkouts_per_second == 5.0


def test_a_sum_of_pools_that_is_refused_counts_as_many() -> None:
    """A refused sum counts as many pools as it stands for, however often it is reported."""
    group = Group(Limits(pools=1))
    others = msgspec.structs.replace(info(), url="(others)", pool_class="", pool_size=None, max_overflow=None)
    summed = msgspec.structs.replace(pool(9), info=others, gauges=Gauges(500), left_out=500)
    group.say(full("a", 1, pool(1), summed))
    assert left_out(group)[0] == 500
    for sequence in range(2, 6):
        group.say(change("a", sequence, msgspec.structs.replace(summed, left_out=499, moved=True)))
        assert left_out(group)[0] == 500
    assert group.state.left_out()["pools"] == 500


def test_a_loaded_state_knows_what_is_left_out() -> None:
    """A loaded state counts the same as left out, and wants the same full reports."""
    group = Group(Limits(pools=1, connections=1))
    group.say(full("a", 1, pool(1, 2), pool(2), connections=(connection(1), connection(2))))
    loaded = StateMachine.decode(group.state.encode(), group.state.settings)
    assert loaded.encode() == group.state.encode()
    assert loaded.left_out() == group.state.left_out() == {
        "processes": 0, "pools": 1, "connections": 1, "room": 0,
    }  # fmt: skip
    batch = Batch("node1", "boot-node1", 2, None, (change("a", 2, closed_pools=(1,)),))
    assert loaded.apply(batch) == group.state.apply(batch)
    assert loaded.encode() == group.state.encode()

"""The way to the nodes, with a virtual clock: which node, what to send, when to warn."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

import pytest

from connmon.config import Address, Node, Service
from connmon.errors import ProtocolError
from connmon.plugin.ledger import Ledger
from connmon.plugin.uplink import TRANSITIONS, Uplink, UplinkEvent, UplinkSettings, UplinkState
from connmon.protocol.frames import Ack, Goodbye, Hello, NodeSide, Welcome, frame
from connmon.protocol.reports import PoolInfo, Process, Report, Usage

INFO = PoolInfo(
    url="mysql+pymysql://db/x",
    dialect="mysql",
    database_host="db",
    database_port=3306,
    database="x",
    pool_class="QueuePool",
    pool_size=5,
    max_overflow=10,
    timeout=30.0,
)

SETTINGS = UplinkSettings()


def service(count: int = 3) -> Service:
    addresses = [Address(f"10.0.0.{number}", 5800) for number in range(1, count + 1)]
    return Service("default", tuple(Node(f"n{a.host[-1]}", a, a) for a in addresses))


class World:
    """An uplink, its ledger, and the node that it has reached, if any."""

    def __init__(self, count: int = 3, seed: int = 1) -> None:
        self.now = 1000.0
        self.ledger = Ledger("i", threading.Lock, time.monotonic)
        self.account = self.ledger.pool(INFO)
        self.uplink = Uplink(service(count), self.ledger, self.describe, random.Random(seed), "connmon test")
        self.node = NodeSide()
        self.tried: list[str] = []

    def describe(self, full: bool) -> tuple[Process | None, Usage | None]:
        return (
            Process(host="h", program="p", pid=1, ppid=0, user=None, command=None, started=None)
            if full
            else None
        ), None

    def connect(self) -> None:
        """Wait as long as necessary, and connect."""
        state = self.uplink.state
        assert state is UplinkState.RESTING
        self.now = max(self.now, self.uplink.due)
        self.tried.append(self.uplink.connect(self.now).host)
        assert self.uplink.state is UplinkState.CONNECTING

    def fail(self, reason: str = "refused") -> None:
        self.uplink.failed(reason, self.now)

    def greet(self) -> None:
        """Connect, and be welcomed."""
        self.connect()
        self.node = NodeSide()
        (hello,) = self.node.receive(self.uplink.connected(self.now))
        assert hello == Hello(1, "application", "default", "connmon test")
        assert self.uplink.outgoing(self.now) == b""
        self.uplink.received(self.node.welcome("default", "n1"), self.now)

    def send(self) -> list[Any]:
        """Return the messages that are sent when due."""
        self.now = max(self.now, self.uplink.due)
        return list(self.node.receive(self.uplink.outgoing(self.now)))

    def report(self) -> Report:
        """Wait for the next report as long as necessary."""
        for _ in range(10):
            for report in self.send():
                assert isinstance(report, Report)
                return report
        raise AssertionError("nothing is sent")

    def ack(self, report: Report, full: bool = False, elsewhere: str | None = None) -> None:
        self.uplink.received(frame(Ack(report.instance, report.sequence, full, elsewhere)), self.now)


# --- States -----------------------------------------------------------------------------------


def test_a_failure_leads_to_rest_from_every_state() -> None:
    """Every state can be reached, and each ends in rest when the connection fails."""
    reached = {UplinkState.RESTING}
    for transitions in TRANSITIONS.values():
        reached.update(transitions.values())
        assert transitions[UplinkEvent.FAILED] is UplinkState.RESTING
    assert reached == set(UplinkState) == set(TRANSITIONS)


def test_an_event_without_a_transition_is_an_error() -> None:
    """The state and the story stay as they were."""
    world = World()
    with pytest.raises(KeyError):
        world.uplink.connected(world.now)
    assert world.uplink.state is UplinkState.RESTING
    assert world.uplink.story == []


def test_repr_names_service_node_and_state() -> None:
    """A debugger shows service, node, state and the report in flight."""
    world = World(count=1)
    world.greet()
    report = world.report()
    expected = f"<Uplink to service 'default', node 10.0.0.1:5800: ready, report {report.sequence} in flight>"
    assert repr(world.uplink) == expected


# --- Which node -----------------------------------------------------------------------------


def test_all_nodes_in_random_order() -> None:
    """Every turn tries each node once, in random order."""
    first = set()
    for seed in range(30):
        world = World(seed=seed)
        for _ in range(3):
            world.connect()
            world.fail()
        assert sorted(world.tried) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        first.add(world.tried[0])
    assert len(first) == 3


@pytest.mark.parametrize("seed", range(5))
def test_the_next_node_at_once(seed: int) -> None:
    """A node that fails before it has applied anything costs no pause, until all have failed."""
    world = World(seed=seed)
    start = world.now
    for _ in range(2):
        world.connect()
        world.fail()
        assert world.uplink.due == start
    world.connect()
    world.fail()
    assert world.uplink.due > start


def test_pauses() -> None:
    """After a turn of failures comes a pause with jitter; it doubles, within its bounds."""
    world = World(count=1)
    pause = SETTINGS.pause_min_seconds
    lengths = []
    for _ in range(20):
        world.connect()
        world.fail()
        length = world.uplink.due - world.now
        assert 0.5 * pause <= length <= pause
        lengths.append(length)
        pause = min(2 * pause, SETTINGS.pause_max_seconds)
    assert len({round(length, 6) for length in lengths[8:]}) > 5, "no jitter"
    world.greet()
    world.ack(world.report())
    world.fail()
    world.connect()
    world.fail()
    assert world.uplink.due - world.now <= SETTINGS.pause_min_seconds, (
        "an acknowledged report ends the outage"
    )


def test_a_node_that_was_well_is_tried_last() -> None:
    """When a node goes, its applications try the others first, not all at the same moment."""
    delays = set()
    for seed in range(10):
        world = World(seed=seed)
        world.greet()
        world.ack(world.report())
        world.fail("the node closed the connection")
        assert 0.0 <= world.uplink.due - world.now <= SETTINGS.pause_min_seconds
        delays.add(world.uplink.due - world.now)
        lost, world.tried = world.tried, []
        for _ in range(3):
            world.connect()
            world.fail()
        assert world.tried[-1:] == lost
        assert len(set(world.tried)) == 3
    assert len(delays) > 5


@pytest.mark.parametrize("stage", ["connecting", "greeting", "report"])
def test_what_takes_too_long(stage: str) -> None:
    """Connect, hello and report each have a time limit, and the reason names it."""
    world = World()
    if stage == "connecting":
        world.connect()
        limit, expected = SETTINGS.answer_seconds, "no answer within 3 s"
    elif stage == "greeting":
        world.connect()
        world.uplink.connected(world.now)
        limit, expected = SETTINGS.answer_seconds, "the hello was not answered within 3 s"
    else:
        world.greet()
        world.report()
        limit, expected = SETTINGS.acknowledge_seconds, "a report was not acknowledged within 10 s"
        assert world.uplink.outgoing(world.now) == b""
    assert world.uplink.due == world.now + limit
    assert world.uplink.overdue(world.now + limit - 0.01) is None
    assert world.uplink.overdue(world.now + limit) == expected


def test_nothing_is_overdue_while_there_is_nothing_to_wait_for() -> None:
    """That is: when resting, and with no report in flight."""
    world = World()
    assert world.uplink.overdue(1e9) is None
    world.greet()
    world.ack(world.report())
    assert world.uplink.overdue(1e9) is None


def test_a_trickle_does_not_buy_time() -> None:
    """Bytes that do not complete a message leave the time limit as it was."""
    world = World()
    world.connect()
    world.uplink.connected(world.now)
    due = world.uplink.due
    for byte in frame(Welcome(1, "default", "n1"))[:-1]:
        world.now += 0.01
        world.uplink.received(bytes([byte]), world.now)
    assert (world.uplink.due, world.uplink.state) == (due, UplinkState.GREETING)


def test_another_address_of_the_node_has_its_own_time() -> None:
    """So a name with an address that leads nowhere is not a lost node."""
    world = World()
    world.connect()
    world.now += 100.0
    world.uplink.connecting(world.now)
    assert world.uplink.overdue(world.now) is None


# --- Reports --------------------------------------------------------------------------------


def test_the_first_report_on_every_connection_is_full() -> None:
    """It is, whatever the node before had acknowledged."""
    world = World()
    for _ in range(3):
        world.greet()
        report = world.report()
        assert report.full
        assert report.process is not None
        assert [pool.info for pool in report.pools] == [INFO]
        world.ack(report)
        world.account.opened(1, world.now)
        change = world.report()
        assert not change.full
        assert (change.base, change.process) == (report.sequence, None)
        world.ack(change)
        world.fail()


def test_a_full_one_at_once_where_it_is_asked_for() -> None:
    """An acknowledgement that asks for a full report gets it without waiting for the interval."""
    world = World()
    world.greet()
    world.ack(world.report())
    change = world.report()
    at = world.now
    world.ack(change, full=True)
    again = world.report()
    assert (again.full, world.now) == (True, at)
    assert again.sequence == change.sequence + 1


def test_a_node_that_is_never_content_is_sent_no_more() -> None:
    """A node that asks for a full report after a full one gets it at the usual pace."""
    world = World()
    world.greet()
    start = world.now
    for _ in range(20):
        world.ack(world.report(), full=True)
    assert world.now >= start + 18.0


def test_one_report_in_flight() -> None:
    """Until it is acknowledged nothing else is sent, however much happens."""
    world = World()
    world.greet()
    report = world.report()
    for key in range(5):
        world.account.opened(key, world.now)
        world.now += 1.0
        assert world.uplink.outgoing(world.now) == b""
    world.ack(report)
    assert len(world.report().connections) == 5


def test_a_report_a_second_while_something_changes() -> None:
    """One more follows, by which rates come to rest, then a sign of life every five seconds."""
    world = World()
    world.greet()
    times = []
    for key in range(20):
        if key < 3:
            world.account.opened(key, world.now)
        world.ack(world.report())
        times.append(world.now)
    steps = [b - a for a, b in itertools.pairwise(times)]
    assert steps[:3] == [SETTINGS.report_interval_seconds] * 3
    assert set(steps[4:]) == {SETTINGS.alive_seconds}


def test_change_after_rest_is_reported_within_a_second() -> None:
    """While nothing changes, the uplink still looks once per interval."""
    world = World()
    world.greet()
    for _ in range(3):
        for report in world.send():
            world.ack(report)
    world.account.opened(1, world.now)
    at = world.now
    assert world.report().connections
    assert world.now <= at + SETTINGS.report_interval_seconds


@pytest.mark.parametrize("instance", ["i", "j"])
def test_a_wrong_acknowledgement(instance: str) -> None:
    """One of a report that was not sent, or of another instance, breaks the connection."""
    world = World()
    world.greet()
    report = world.report()
    sequence = report.sequence + (instance == "i")
    with pytest.raises(ProtocolError):
        world.uplink.received(frame(Ack(instance, sequence)), world.now)


def test_refused() -> None:
    """The error has the node's reason."""
    world = World(count=1)
    world.connect()
    world.uplink.connected(world.now)
    with pytest.raises(ProtocolError, match="refused: service 'x' is not served here"):
        world.uplink.received(NodeSide.refuse("service 'x' is not served here"), world.now)


# --- Complaints -----------------------------------------------------------------------------


def test_one_complaint_per_outage() -> None:
    """One warning when all nodes have failed; another only after a report was acknowledged in between."""
    world = World(count=2)
    for outage in range(3):
        for attempt in range(7):
            world.connect()
            world.fail(f"reason {outage}")
            # After an acknowledgement the turn is as long as at the start.
            assert (world.uplink.complaint is not None) == (attempt == 1)
            if world.uplink.complaint is not None:
                assert world.uplink.complaint.count(f"reason {outage}") == 2
                assert "10.0.0.1:5800" in world.uplink.complaint
                assert "\n" not in world.uplink.complaint
                world.uplink.complaint = None
        world.greet()
        world.ack(world.report())
        world.fail("gone")
        assert world.uplink.complaint is None


def test_the_story_has_a_line_for_each_change() -> None:
    """Connecting, connected, ready, sent elsewhere, failed, leaving: one line each, up to a limit."""
    world = World()
    world.greet()
    node = f"connmon: service 'default', node {world.tried[0]}:5800: "
    assert world.uplink.story == [
        f"{node}connecting", f"{node}connected, sending the hello", f"{node}ready, a full report is next"
    ]  # fmt: skip
    world.uplink.story.clear()
    other = next(n for n in world.uplink.service.nodes if n.address.host != world.tried[0])
    world.ack(world.report(), elsewhere=other.name)
    assert world.uplink.story == [f"{node}asks to go to {other.address}"]
    world.uplink.story.clear()
    world.fail("two\nlines")
    (line,) = world.uplink.story
    assert line.startswith(f"{node}resting for 0.00 s: two") and "\n" not in line
    for _ in range(200):
        world.connect()
        world.fail()
    assert len(world.uplink.story) == SETTINGS.story_lines
    world.uplink.story.clear()
    world.uplink.leave(world.now)
    assert world.uplink.story[0].endswith("the process ends")


def test_no_complaint_where_another_node_takes_over() -> None:
    """One failed node out of three is not an outage."""
    world = World()
    for _ in range(5):
        world.greet()
        world.ack(world.report())
        world.fail()
        world.connect()
        world.fail()
    assert world.uplink.complaint is None


def test_it_goes_where_the_node_asks_it_to() -> None:
    """At once, with a full report; where that node is away it goes back, without a warning."""
    world = World()
    world.greet()
    elsewhere = next(node for node in service().nodes if node.address.host != world.tried[0])
    world.ack(world.report())
    world.ack(world.report(), elsewhere=elsewhere.name)
    assert world.uplink.overdue(world.now) == f"sent to {elsewhere.address}"
    before, world.now = world.now, world.now
    world.fail("sent")
    assert world.uplink.due == before
    world.greet()
    assert world.tried[-1] == elsewhere.address.host
    assert world.report().full
    world.fail()
    world.connect()
    world.fail()
    world.greet()
    assert sorted([*world.tried[-2:], elsewhere.address.host]) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert world.uplink.complaint is None


def test_a_node_that_is_away_is_left_for_the_one_before() -> None:
    """Where the node that it was sent to cannot be reached, it returns to the one before without a pause."""
    world = World()
    world.greet()
    elsewhere = next(node for node in service().nodes if node.address.host != world.tried[0])
    world.ack(world.report(), elsewhere=elsewhere.name)
    world.fail("sent")
    start = world.now
    world.connect()
    world.fail()
    world.greet()
    assert world.tried == [world.tried[0], elsewhere.address.host, world.tried[0]]
    assert world.now == start


@pytest.mark.parametrize("name", ["n9", "", "here"])
def test_it_stays_where_it_knows_no_other(name: str) -> None:
    """An unknown name, or that of the present node, is no reason to go."""
    world = World()
    world.greet()
    here = next(node.name for node in service().nodes if node.address.host == world.tried[0])
    world.ack(world.report(), elsewhere=here if name == "here" else name)
    assert world.uplink.overdue(world.now) is None
    assert world.uplink.state is UplinkState.READY


def test_a_node_that_only_welcomes_is_an_outage() -> None:
    """A welcome is not enough: an outage ends with an acknowledged report."""
    world = World(count=1)
    for _ in range(3):
        world.greet()
        world.report()
        world.fail("the node closed the connection")
    assert world.uplink.complaint is not None


# --- Farewell -------------------------------------------------------------------------------


def farewell(world: World) -> Report:
    report, goodbye = world.send()
    assert report.full
    assert goodbye == Goodbye(report.instance, report.sequence)
    return report  # type: ignore[no-any-return]


def test_farewell() -> None:
    """At the end a full report at once, whatever the interval, and goodbye; then nothing more."""
    world = World()
    world.greet()
    world.ack(world.report())
    world.uplink.leave(world.now)
    at = world.now
    report = farewell(world)
    assert world.now == at
    assert not world.uplink.finished
    assert world.uplink.outgoing(world.now) == b""
    world.ack(report)
    assert world.uplink.finished


def test_farewell_does_not_wait_for_what_is_in_flight() -> None:
    """The report before is acknowledged before the last one, or never; either way the last one counts."""
    world = World()
    world.greet()
    report = world.report()
    world.uplink.leave(world.now)
    last = farewell(world)
    world.ack(report)
    assert not world.uplink.finished
    world.ack(last)
    assert world.uplink.finished


def test_at_the_end_everything_is_closed_and_given_back() -> None:
    """The last report has no connection: the process ends, and all that it has open with it."""
    world = World()
    world.greet()
    entry = world.account.opened(1, world.now)
    world.account.opened(2, world.now)
    entry.since, entry.checkouts = world.now, 1
    world.uplink.leave(world.now)
    last = farewell(world)
    assert last.connections == ()
    (pool,) = last.pools
    assert (pool.gauges.connections, pool.gauges.checked_out) == (0, 0)
    assert pool.totals[:4] == (2, 2, 1, 1)


def test_farewell_of_one_who_never_met_a_node() -> None:
    """A short program's only report may be its last."""
    world = World()
    world.uplink.leave(world.now)
    at = world.now
    world.greet()
    world.ack(farewell(world))
    assert (world.uplink.finished, world.now) == (True, at)


def test_farewell_that_was_not_heard() -> None:
    """Where the node failed before it acknowledged the last report, the next node gets it."""
    world = World()
    world.greet()
    world.ack(world.report())
    world.uplink.leave(world.now)
    farewell(world)
    world.fail("the node closed the connection")
    assert not world.uplink.finished
    assert not world.uplink.hopeless
    at = world.now
    world.greet()
    world.ack(farewell(world))
    assert (world.uplink.finished, world.now) == (True, at)


def test_hopeless() -> None:
    """Once every node has failed, the exit does not wait for another turn; nor during an outage."""
    world = World()
    world.uplink.leave(world.now)
    for _ in range(3):
        assert not world.uplink.hopeless
        world.connect()
        world.fail()
    assert world.uplink.hopeless

    world = World()
    for _ in range(4):
        world.connect()
        world.fail()
    assert not world.uplink.hopeless
    world.uplink.leave(world.now)
    assert world.uplink.hopeless

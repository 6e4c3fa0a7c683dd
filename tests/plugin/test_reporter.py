"""The reporter's thread, with small nodes that behave well or badly; forks and exits of real processes."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool

from connmon.cluster.state.machine import StateMachine
from connmon.config import direct
from connmon.errors import ProtocolError
from connmon.plugin import unpatched, uplink_socket
from connmon.plugin.engine import describe
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool import instrument
from connmon.plugin.reporter import Reporter, ReporterSettings
from connmon.plugin.uplink import UplinkSettings, UplinkState
from connmon.protocol.batch import Batch, Departure
from connmon.protocol.frames import Ack, Goodbye, NodeSide, frame
from connmon.protocol.reports import Report
from connmon.protocol.values import Totals
from tests.support.fake_dbapi import Database
from tests.support.waiting import wait_for

Behaviour: TypeAlias = Literal["good", "close", "garbage", "mute", "refuse", "deaf"]
BAD: list[Behaviour] = ["close", "garbage", "mute", "refuse", "deaf"]


class Node:
    """A node with one thread per connection, which applies reports to the real state machine."""

    def __init__(self, behaviour: Behaviour = "good", port: int = 0) -> None:
        self.behaviour: Behaviour = behaviour
        self.state = StateMachine()
        self.reports: list[Report] = []
        self.last: dict[str, Totals] = {}
        """By instance, the latest totals."""
        self.peaks: dict[str, int] = {}
        self.goodbyes: list[str] = []
        self.ended: list[str] = []
        """Instances whose connection has ended, however."""
        self.accepted = 0
        self._batches = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # shutdown wakes the thread in accept, which close does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def drop(self) -> None:
        """End all connections."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection, self.behaviour), daemon=True).start()

    def _serve(self, connection: socket.socket, behaviour: Behaviour) -> None:
        self._open.add(connection)
        instances: set[str] = set()
        with contextlib.suppress(OSError, ProtocolError), connection:
            if behaviour != "close":
                self._talk(connection, behaviour, instances)
        self._open.discard(connection)
        self.ended += instances

    def _talk(self, connection: socket.socket, behaviour: Behaviour, instances: set[str]) -> None:
        side = NodeSide()
        while data := connection.recv(65536):
            if behaviour == "mute":
                continue
            if behaviour == "garbage":
                connection.sendall(b"\x00\x00\x00\x05HTTP/1.1 400 Bad Request\r\n" * 100)
                continue
            for message in side.receive(data):
                if side.role is None:
                    if behaviour == "refuse":
                        connection.sendall(NodeSide.refuse("not you"))
                        return
                    connection.sendall(side.welcome("", "n1"))
                elif behaviour == "good":
                    self._apply(connection, message, instances)

    def _apply(self, connection: socket.socket, message: Any, instances: set[str]) -> None:
        with self._lock:
            self._batches += 1
            if isinstance(message, Goodbye):
                self.goodbyes.append(message.instance)
                departure = Departure(message.instance, message.sequence)
                self.state.apply(Batch("n1", "boot", self._batches, departures=(departure,)))
                return
            assert isinstance(message, Report)
            instances.add(message.instance)
            outcome = self.state.apply(Batch("n1", "boot", self._batches, reports=(message,)))
            self.reports.append(message)
            process = self.state.processes.get(message.instance)
            if process is not None:
                self.last[message.instance] = process.totals
                self.peaks[message.instance] = process.max_connections
        for instance, sequence, wanted in outcome.answers:
            connection.sendall(frame(Ack(instance, sequence, wanted)))


@pytest.fixture
def node() -> Iterator[Node]:
    """A node that behaves well until its behaviour is changed."""
    made = Node()
    yield made
    made.close()


class Observed(Reporter):
    """A reporter that says when its thread has ended."""

    def __init__(self, settings: ReporterSettings) -> None:
        super().__init__(settings)
        self.ended = threading.Event()

    def _run(self) -> None:
        self.ended.clear()
        super()._run()
        self.ended.set()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Observed]:
    """A reporter of its own, with the settings of `with_settings`; the process's own is left alone."""
    made = Observed(getattr(request, "param", ReporterSettings()))
    yield made
    made.leave()
    if made._running:  # `leave` waits only so long
        assert made.ended.wait(20), "the thread does not end"


def with_settings(settings: ReporterSettings) -> pytest.MarkDecorator:
    """Return a mark that gives the fixture `report` these settings."""
    return pytest.mark.parametrize("report", [settings], indirect=True, ids=["settings"])


#: Time limits that a test can wait for.
IMPATIENT = UplinkSettings(
    answer_seconds=0.2, acknowledge_seconds=0.3, pause_min_seconds=0.02, pause_max_seconds=0.05
)
impatient = with_settings(ReporterSettings(uplink=IMPATIENT))


def watched(report: Observed, port: int, program: str = "p") -> tuple[Engine, Ledger]:
    """Return an engine whose pool reports to that port."""
    engine = Database().engine(QueuePool)
    ledger = report.ledger_for(direct(f"127.0.0.1:{port}"), program)
    instrument(engine.pool, ledger, describe(engine), lambda _: None)
    return engine, ledger


def failing(error: BaseException) -> Any:
    """Return a function that raises this, whatever it is called with."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]  # type: ignore[no-any-return]


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "connmon" and r.levelno >= logging.WARNING]


# --- Looks at the holders -------------------------------------------------------------------


class Looks:
    """Records the looks of a ledger in place of making them."""

    def __init__(
        self, ledger: Ledger, looks_per_second: float = 100.0, error: Exception | None = None
    ) -> None:
        self.late: list[float] = []
        self.threads: set[int] = set()
        self.error = error
        ledger.profile_hz = looks_per_second
        setattr(ledger, "look", self.look)  # noqa: B010  # mypy lets no method be assigned to

    def look(self, now: float, late: float, cpu_seconds: float) -> None:
        self.late.append(late)
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error


def test_looks(report: Observed, node: Node) -> None:
    """While a connection is held its ledger is asked to look, by the reporter's thread; not for a ledger that
    has its looks off, and not when nothing was held for a while.
    """
    idle_seconds = report.settings.looks.idle_seconds
    engine, ledger = watched(report, node.port)
    other_engine, other = watched(report, node.port, "other")
    looks, no_looks = Looks(ledger), Looks(other, 0.0)
    kept = [engine.raw_connection(), other_engine.raw_connection()]
    wait_for(lambda: len(looks.late) >= 20, 20, "looks")
    assert no_looks.late == []
    assert threading.get_ident() not in looks.threads
    assert len(looks.threads) == 1
    kept.pop(0).close()
    schedule = report._schedules[ledger]
    wait_for(lambda: schedule.due is None, idle_seconds + 10, "the looks to end")
    seen = len(looks.late)
    wait_for(lambda: len(node.reports) > 3, 20)
    assert len(looks.late) == seen
    kept.append(engine.raw_connection())
    wait_for(lambda: len(looks.late) > seen, 20, "looks again")
    for connection in kept:
        connection.close()


def test_looks_without_a_node(report: Observed) -> None:
    """Looks go on while no node can be reached."""
    engine, ledger = watched(report, free_port())
    looks = Looks(ledger)
    connection = engine.raw_connection()
    wait_for(lambda: len(looks.late) >= 20, 20, "looks")
    connection.close()


def test_a_look_that_is_late(report: Observed, node: Node) -> None:
    """A look is late by the time for which another thread has kept the interpreter lock."""
    engine, ledger = watched(report, node.port)
    looks = Looks(ledger)
    connection = engine.raw_connection()
    wait_for(lambda: len(looks.late) >= 20, 20, "looks")
    numbers = list(range(1_000_000, 0, -1)) * 4

    def a_late_one() -> bool:
        before = time.monotonic()
        numbers.sort(key=None)
        numbers.reverse()
        kept = time.monotonic() - before
        wait_for(lambda: looks.late, 20)
        return kept > 0.02 and any(late > kept / 10.0 for late in looks.late)

    wait_for(a_late_one, 60, "a late look")
    connection.close()


def test_a_look_that_fails(report: Observed, node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """A failing look is one error in the log; the reports go on."""
    engine, ledger = watched(report, node.port)
    looks = Looks(ledger, error=ValueError("no look"))
    connection = engine.raw_connection()
    wait_for(lambda: looks.late, 20, "a look")
    wait_for(lambda: complaints(caplog))
    engine.raw_connection().close()
    wait_for(lambda: node.last.get(ledger.instance, Totals()).checkouts == 2, 20, "a report")
    (complaint,) = complaints(caplog)
    assert complaint == (
        "connmon: where connections are held cannot be looked at, and is tried again after 30 s: "
        "ValueError('no look')"
    )
    assert len(looks.late) == 1
    connection.close()


@with_settings(ReporterSettings(restart_seconds=0.01))
def test_looks_that_fail_again(report: Observed, node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """The second failure and those after it are not logged."""
    engine, ledger = watched(report, node.port)
    looks = Looks(ledger, error=ValueError("no look"))
    connection = engine.raw_connection()
    wait_for(lambda: len(looks.late) > 3, 20, "looks")
    assert len(complaints(caplog)) == 1
    connection.close()


def test_no_looks_at_the_end(report: Observed, node: Node) -> None:
    """From the moment at which the process begins to end nobody is looked at, and the goodbye is sent."""
    engine, ledger = watched(report, node.port)
    looks = Looks(ledger)
    connection = engine.raw_connection()
    wait_for(lambda: len(looks.late) > 3, 20, "looks")
    try:
        report.prepare_to_leave()
        seen = len(looks.late)
        engine.raw_connection().close()
        wait_for(lambda: node.last[ledger.instance].checkouts == 2, 20, "a report")
        assert len(looks.late) <= seen + 1  # one may have been on its way
    finally:
        gc.callbacks.remove(report._collecting)
    report.leave()
    wait_for(lambda: node.goodbyes == [ledger.instance])
    connection.close()


def test_looks_in_a_child(report: Observed, node: Node) -> None:
    """The child of a fork has schedules of its own, with nothing planned."""
    engine, ledger = watched(report, node.port)
    looks = Looks(ledger)
    connection = engine.raw_connection()
    wait_for(lambda: looks.late, 20, "a look")
    connection.close()
    report.leave()
    assert report.ended.wait(20)
    parents = report._schedules[ledger]
    report.after_fork_in_child()
    assert report._schedules[ledger] is not parents
    assert report._schedules[ledger].due is None
    seen = len(looks.late)
    connection = engine.raw_connection()
    wait_for(lambda: len(looks.late) > seen, 20, "looks in the child")
    connection.close()


# --- With a node that is there --------------------------------------------------------------


@pytest.mark.slow
def test_the_first_report(report: Observed, node: Node) -> None:
    """It is sent as soon as the first connection is seen, complete, with the process."""
    engine, ledger = watched(report, node.port)
    assert not report._running, "no thread before there is anything to report"
    connection = engine.raw_connection()
    wait_for(lambda: node.reports, what="a report")
    first = node.reports[0]
    assert first.full
    assert first.instance == ledger.instance == report.instance
    assert first.process is not None
    assert (first.process.pid, first.process.program) == (os.getpid(), "p")
    assert first.usage is not None
    wait_for(lambda: node.state.processes[ledger.instance].gauges.checked_out == 1)
    connection.close()
    wait_for(lambda: node.state.processes[ledger.instance].gauges.checked_out == 0)
    engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_at_debug_the_log_has_the_story_of_the_connection(
    level: int, report: Observed, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """The logger connmon has a line for each change at DEBUG, and none above."""
    caplog.set_level(level, "connmon")
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: ledger.instance in node.last, what="a report")
    report.leave()
    wait_for(lambda: node.goodbyes == [ledger.instance])
    lines = [r.getMessage() for r in caplog.records if r.name == "connmon" and r.levelno == logging.DEBUG]
    if level == logging.INFO:
        assert lines == []
        return
    story = [line.rpartition(": ")[2] for line in lines]
    assert story[:3] == ["connecting", "connected, sending the hello", "ready, a full report is next"]
    assert all(f"127.0.0.1:{node.port}" in line for line in lines)


def test_repr_of_what_lives_long(report: Observed, node: Node) -> None:
    """A debugger shows where the reporter, its sockets, its ledgers and their pools are."""
    engine, ledger = watched(report, node.port)
    assert (
        repr(report) == f"<Reporter of instance {report.instance}: no thread, {[*report._sockets.values()]}>"
    )
    connection = engine.raw_connection()
    wait_for(lambda: node.reports, what="a report")
    assert repr(report).startswith(
        f"<Reporter of instance {report.instance}: running, [<UplinkSocket descriptor "
    )
    assert f"node 127.0.0.1:{node.port}: ready" in repr(report)
    (account,) = ledger.pools.values()
    (entry,) = account.entries.values()
    counts = "<LiveCounts 1 open, 1 checked out, 0 waiting>"
    assert repr(entry) == f"<Entry {entry.number} of pool {account.number}: held, 1 checkouts>"
    assert repr(account) == f"<PoolAccount {account.number} of {account.info.url}: {counts}>"
    assert repr(ledger).startswith(f"<Ledger of instance {ledger.instance}: report ")
    assert repr(ledger).endswith(f"<ProcessAccount of 1 pools: {counts}>>")
    connection.close()


def test_goodbye(report: Observed, node: Node) -> None:
    """At the end the last totals are reported, and goodbye; the process's row goes at once."""
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: node.reports)
    for _ in range(10):
        engine.raw_connection().close()
    report.leave()
    wait_for(lambda: node.goodbyes == [ledger.instance])
    assert node.last[ledger.instance].checkouts == 11
    assert ledger.instance not in node.state.processes


def test_two_programs_in_one_process(report: Observed, node: Node) -> None:
    """Two names are two instances, over one thread; the same name is one ledger."""
    one, first = watched(report, node.port, "one")
    two, second = watched(report, node.port, "two")
    assert watched(report, node.port, "two")[1] is second
    assert first.instance != second.instance
    kept = [one.raw_connection(), two.raw_connection()]
    wait_for(lambda: {first.instance, second.instance} <= set(node.last))
    for connection in kept:
        connection.close()


@pytest.mark.slow
@impatient
def test_absent_then_there(report: Observed, caplog: pytest.LogCaptureFixture) -> None:
    """Without a node the application goes on; the first node that appears gets the complete present."""
    port = free_port()
    engine, ledger = watched(report, port)
    kept = [engine.raw_connection() for _ in range(3)]
    for _ in range(100):
        engine.raw_connection().close()
    wait_for(lambda: complaints(caplog))
    kept.pop().close()
    node = Node(port=port)
    try:
        wait_for(lambda: ledger.instance in node.last)
        process = node.state.processes[ledger.instance]
        assert (process.gauges.connections, process.gauges.checked_out) == (4, 2)
        assert process.totals[:4] == (4, 0, 103, 101)
        assert process.max_checked_out == 4
        assert len(process.connections) == 4
        (complaint,) = complaints(caplog)
        assert f"127.0.0.1:{port}" in complaint
    finally:
        node.close()
        for connection in kept:
            connection.close()


@pytest.mark.slow
@impatient
@pytest.mark.parametrize("behaviour", BAD)
def test_bad_nodes(
    behaviour: Behaviour, report: Observed, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """The application does not notice; one warning per outage; afterwards the reports are complete."""
    node.behaviour = behaviour
    engine, ledger = watched(report, node.port)
    for outage in (1, 2):
        before = node.accepted

        def tried(wanted: int = before + 5) -> bool:
            engine.raw_connection().close()
            return node.accepted >= wanted

        wait_for(tried)
        wait_for(lambda outage=outage: len(complaints(caplog)) >= outage)  # type: ignore[misc]
        assert len(complaints(caplog)) == outage, complaints(caplog)
        node.behaviour = "good"
        engine.raw_connection().close()
        wait_for(
            lambda: (
                ledger.instance in node.last
                and node.last[ledger.instance] == next(iter(ledger.pools.values())).count()[1]
            )
        )
        # An outage is over with an acknowledgement, which must not be lost with the connection.
        (own,) = report._sockets.values()
        wait_for(lambda own=own: own.uplink._in_flight is None)  # type: ignore[misc]
        node.behaviour = behaviour
        node.drop()
    assert next(iter(ledger.pools.values())).count()[0].checked_out == 0
    node.drop()


@pytest.mark.slow
@impatient
def test_another_address_of_the_same_node(
    report: Observed, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a name's first address leads nowhere, the second one is tried, without a warning."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filling = []
        while True:  # until the kernel answers no further attempt
            filling.append(socket.socket())
            filling[-1].settimeout(0.2)
            try:
                filling[-1].connect(full.getsockname())
            except TimeoutError:
                break
        stream = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        addresses = [(*stream, full.getsockname()), (*stream, ("127.0.0.1", node.port))]
        monkeypatch.setattr(unpatched, "getaddrinfo", lambda *_: list(addresses))
        engine, ledger = watched(report, node.port)
        engine.raw_connection().close()
        wait_for(lambda: ledger.instance in node.last)
        for one in filling:
            one.close()
    assert not complaints(caplog)


@impatient
def test_a_slow_resolver(report: Observed, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for resolving the name is not taken from the time to connect."""
    real = unpatched.getaddrinfo
    slept = threading.Event()

    def slow(*arguments: Any) -> Any:
        slept.wait(2 * IMPATIENT.answer_seconds)
        return real(*arguments)

    monkeypatch.setattr(unpatched, "getaddrinfo", slow)
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: ledger.instance in node.last)
    slept.set()


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long")])
def test_a_name_that_cannot_be_looked_up(
    error: Exception, report: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a node that cannot be reached."""
    monkeypatch.setattr(unpatched, "getaddrinfo", failing(error))
    engine, _ledger = watched(report, 5800)
    engine.raw_connection().close()
    wait_for(lambda: complaints(caplog))
    assert str(error) in complaints(caplog)[0]


def test_a_failing_database_is_reported(report: Observed, node: Node) -> None:
    """A process that could never connect to its database is shown, with its errors."""
    database = Database()
    engine = database.engine(QueuePool)
    ledger = report.ledger_for(direct(f"127.0.0.1:{node.port}"), "p")
    instrument(engine.pool, ledger, describe(engine), lambda _: None)
    database.refuse = ConnectionError("no")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            engine.raw_connection()
    wait_for(lambda: ledger.instance in node.last)
    wait_for(lambda: node.last[ledger.instance] == Totals(connect_errors=2))


# --- The thread -----------------------------------------------------------------------------


def test_started_while_another_engine_is_made(report: Observed, node: Node) -> None:
    """The first connection starts the thread also while another thread asks for a ledger."""
    engine, ledger = watched(report, node.port)
    with report._guard:
        engine.raw_connection().close()
        wait_for(lambda: ledger.instance in node.last)


def test_no_thread_can_be_started(
    report: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The application goes on unwatched, with one warning; no descriptor is left behind."""
    monkeypatch.setattr(unpatched, "start_thread", failing(RuntimeError("can't start new thread")))
    gc.collect()  # what tests before have left
    before = len(os.listdir("/proc/self/fd"))
    engine, _ledger = watched(report, 5800)
    for _ in range(3):
        engine.raw_connection().close()
    assert len(complaints(caplog)) == 1
    assert len(os.listdir("/proc/self/fd")) == before


@with_settings(ReporterSettings(restart_seconds=0.5))
def test_the_thread_fails(
    report: Observed, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in it is an error in the log; the thread restarts after a while, and reports everything."""
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: ledger.instance in node.last)
    step = uplink_socket.UplinkSocket.step
    monkeypatch.setattr(uplink_socket.UplinkSocket, "step", failing(ZeroDivisionError("a bug")))
    engine.raw_connection().close()
    wait_for(lambda: complaints(caplog))
    assert "restarts in 0.5 s: ZeroDivisionError('a bug')" in complaints(caplog)[0]
    engine.raw_connection().close()
    monkeypatch.setattr(uplink_socket.UplinkSocket, "step", step)
    wait_for(lambda: node.last[ledger.instance].checkouts == 3)


@with_settings(ReporterSettings(restart_seconds=1.0, exit_seconds=20.0))
def test_exit_while_it_has_failed(
    report: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The exit does not wait for a thread that has failed."""
    monkeypatch.setattr(uplink_socket.UplinkSocket, "step", failing(ZeroDivisionError("a bug")))
    engine, _ledger = watched(report, 5800)
    engine.raw_connection().close()
    wait_for(lambda: report._failed)
    report.leave()
    assert not report.ended.is_set(), "it was waited for"


def test_the_end_that_is_announced_twice(
    report: Observed, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """An embedder may run the atexit functions twice; the thread goes on until the process ends."""
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: ledger.instance in node.last)
    before = len(gc.callbacks)
    try:
        report.prepare_to_leave()
        report.prepare_to_leave()
        assert len(gc.callbacks) == before + 1
        engine.raw_connection().close()
        wait_for(lambda: node.last[ledger.instance].checkouts == 2)
    finally:
        gc.callbacks.remove(report._collecting)
    assert complaints(caplog) == []


def test_the_main_thread_does_not_connect_at_the_end(
    report: Observed, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolving a name can take long: without a connection there is no goodbye. Nor does the main thread wait
    for locks of a thread that is gone.
    """
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: ledger.instance in node.last)
    (own_socket,) = report._sockets.values()
    resolved: list[object] = []
    monkeypatch.setattr(own_socket, "_resolve", resolved.append)
    own_socket.uplink._elsewhere = own_socket.uplink._address  # the node asks to go to another one
    ledger.process.fold_lock.current.acquire()
    own_socket.take_over(own_socket._fork_lock)
    assert ledger.take(time.monotonic(), alive=True) is not None
    own_socket.step(time.monotonic(), begin=False)
    assert (own_socket.uplink.state, resolved) == (UplinkState.RESTING, [])


def test_the_thread_is_ended_from_outside(
    report: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that ends threads ends it, with one line in the log and none on stderr."""
    monkeypatch.setattr(uplink_socket.UplinkSocket, "step", failing(SystemExit("enough")))
    engine, _ledger = watched(report, 5800)
    engine.raw_connection().close()
    assert report.ended.wait(20)
    (complaint,) = complaints(caplog)
    assert "the reporter has ended, nothing more is reported: SystemExit('enough')" in complaint


@with_settings(ReporterSettings(restart_seconds=0.1))
@pytest.mark.parametrize("which", ["all", "socket", "write end", "read end"])
@pytest.mark.parametrize("taken", [False, True], ids=["closed", "taken"])
def test_the_application_closes_descriptors(which: str, taken: bool, report: Observed, node: Node) -> None:
    """The reporter replaces its own closed descriptors, and leaves files alone that have their numbers by
    then.
    """
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: ledger.instance in node.last)
    (own,) = report._sockets.values()
    alarm = report._alarm
    assert alarm is not None
    numbers = {"socket": own.socket.fileno(), "write end": alarm._write_end, "read end": alarm.read_end}
    mine, full = os.pipe()
    os.write(full, b"mine")
    for name, number in numbers.items():
        if which not in ("all", name):
            continue
        if taken:
            os.dup2(mine, number)
        else:
            with contextlib.suppress(OSError):  # the reporter has seen what was closed first, and closed this
                os.close(number)
    engine.raw_connection().close()
    wait_for(lambda: node.last[ledger.instance].checkouts == 2)
    report.leave()
    assert report.ended.wait(20)
    assert os.read(mine, 100) == b"mine"
    if taken:
        for name, number in numbers.items():
            if which in ("all", name):
                assert unpatched.identity(number) == unpatched.identity(mine)
                os.close(number)
    os.close(mine)
    os.close(full)


@with_settings(ReporterSettings(restart_seconds=0.05))
def test_no_descriptor_is_left(report: Observed, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the application has used up all descriptors at a restart, the reporter tries again later."""
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: ledger.instance in node.last)
    tried = []

    def none() -> tuple[int, int]:
        tried.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", none)
        assert report._alarm is not None
        os.close(report._alarm.read_end)
        wait_for(lambda: len(tried) > 1)
    engine.raw_connection().close()
    wait_for(lambda: node.last[ledger.instance].checkouts == 2)


# --- Real processes -------------------------------------------------------------------------

APPLICATION = """
import sys, os, time
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[1])
def use(times):
    for _ in range(times):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
"""


class Application:
    """A program of its own that reports to a port; with "-" as the port, one without connmon."""

    def __init__(self, tmp_path: Path, port: int | str, body: str) -> None:
        url = f"sqlite:///{tmp_path}/x.db"
        if port != "-":
            url += f"?plugin=connmon&connmon_addr=127.0.0.1:{port}"
        script = tmp_path / "application.py"
        script.write_text(APPLICATION + textwrap.dedent(body))
        self.process = subprocess.Popen(
            [sys.executable, str(script), url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[float, str]:
        """Close its input and wait for its end; return how long that took in seconds, and its errors."""
        begun = time.monotonic()
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return time.monotonic() - begun, errors


WAIT_THEN_END = """
use(3)
print("used", flush=True)
sys.stdin.read()
use(4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [*BAD, "good", "absent", "unaccepted"])
def test_exit(behaviour: Any, tmp_path: Path) -> None:
    """Whatever the node does, the application's end is not delayed, and no error is shown."""
    with Application(tmp_path, "-", WAIT_THEN_END) as bare:
        assert bare.line() == "used"
        without, _ = bare.end()
    with contextlib.ExitStack() as stack:
        if behaviour == "absent":
            port = free_port()
        elif behaviour == "unaccepted":  # as of a node that was stopped
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = server.getsockname()[1]
        else:
            node = Node(behaviour)
            stack.callback(node.close)
            port = node.port
        application = stack.enter_context(Application(tmp_path, port, WAIT_THEN_END))
        assert application.line() == "used"
        if behaviour == "good":
            wait_for(lambda: node.reports)
        took, errors = application.end()
        assert took < without + 3.0
        assert "Traceback" not in errors
        assert errors.count("\n") <= 1, errors
        if behaviour == "good":
            (totals,) = node.last.values()
            assert totals[:4] == (1, 1, 7, 7)
            assert len(node.goodbyes) == 1
            assert not errors


@pytest.mark.slow
def test_a_short_program(tmp_path: Path, node: Node) -> None:
    """A program that ends right after its work is reported as well, completely."""
    with Application(tmp_path, node.port, "use(5); engine.dispose()") as application:
        application.end()
    (totals,) = node.last.values()
    assert totals[:4] == (1, 1, 5, 5)
    wait_for(lambda: node.goodbyes == list(node.last))


FORK = """
use(3)
held = engine.connect()
child = os.fork()
if child == 0:
    engine.dispose(close=False)
    use(2)
    kept = engine.connect()
    print(f"child {os.getpid()}\\n", end="", flush=True)
    sys.stdin.read()
    os._exit(0)
print(f"parent {os.getpid()}\\n", end="", flush=True)
time.sleep(120)
"""


@pytest.mark.slow
def test_fork(tmp_path: Path, node: Node) -> None:
    """The child is another instance with its own counts, and does not keep the parent's connection open."""
    with Application(tmp_path, node.port, FORK) as application:
        pids = dict(application.line().split() for _ in range(2))
        wait_for(lambda: len(node.state.processes) == 2)
        instances = {p.process.pid: p for p in list(node.state.processes.values())}
        parent, child = instances[int(pids["parent"])], instances[int(pids["child"])]

        def settled() -> bool:
            # The one that is held is not inherited: the child has disposed of its pool.
            assert parent.totals[:4] == (1, 0, 4, 3)
            assert child.totals[:4] == (1, 0, 3, 2)
            return True

        wait_for(settled)
        assert (child.gauges.connections, parent.gauges.connections) == (1, 1)
        os.kill(parent.process.pid, signal.SIGKILL)
        wait_for(lambda: node.ended == [parent.instance], what="the end of the parent's connection")
        os.kill(child.process.pid, 0)  # it lives
        assert child.instance not in node.ended
        assert application.process.stdin is not None
        application.process.stdin.close()  # and now it ends
        wait_for(lambda: child.instance in node.ended)
        application.process.stdin = None


IMPORTS = """
import threading
main = threading.get_ident()
def hook(event, arguments):
    if event == "import" and threading.get_ident() != main:
        print("imported:", arguments[0], file=sys.stderr)
sys.addaudithook(hook)
use(3)
print("used", flush=True)
sys.stdin.read()
use(4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["good", "refuse"])
def test_the_thread_imports_nothing(behaviour: Behaviour, tmp_path: Path) -> None:
    """A fork in the middle of an import would leave a child that can never import that module.

    It was the codec that getaddrinfo looks up: two children in five could not resolve any name.
    """
    node = Node(behaviour)
    try:
        with Application(tmp_path, node.port, IMPORTS) as application:
            assert application.line() == "used"
            wait_for(lambda: node.accepted and (behaviour != "good" or node.reports))
            _, errors = application.end()
        assert "imported:" not in errors
    finally:
        node.close()


WORKERS = """
import multiprocessing
def work(times):
    engine.dispose(close=False)
    use(times)
if __name__ == "__main__":
    multiprocessing.set_start_method("METHOD")
    use(1)
    for times in (5, 6):
        worker = multiprocessing.Process(target=work, args=(times,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    use(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Path, node: Node) -> None:
    """A worker that ends normally has reported its last totals, although it runs no atexit functions."""
    with Application(tmp_path, node.port, WORKERS.replace("METHOD", method)) as application:
        application.end()
    wait_for(lambda: len(node.goodbyes) == 3)
    assert sorted(totals.checkouts for totals in node.last.values()) == [2, 5, 6]
    assert [totals.connects for totals in node.last.values()] == [1, 1, 1]


@pytest.mark.slow
def test_sigpipe(tmp_path: Path) -> None:
    """An application that dies of SIGPIPE by its own wish does not die of connmon's."""
    body = """
    import signal, socket
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    import threading
    from connmon.plugin.uplink import UplinkState
    from connmon.plugin.uplink_socket import UplinkSocket
    class Uplink:
        state = UplinkState.READY
        def failed(self, reason, now):
            print(reason, flush=True)
    uplink_socket = UplinkSocket(Uplink(), threading.Lock(), None)
    uplink_socket.socket, other = socket.socketpair()
    other.close()
    uplink_socket._send(b"x", 0.0)
    """
    with Application(tmp_path, "-", body) as application:
        assert application.line() == "Broken pipe"
        application.end()


def test_the_application_has_closed_all_descriptors(report: Observed, node: Node) -> None:
    """A fork after that leaves a child that can start again."""
    engine, ledger = watched(report, node.port)
    engine.raw_connection().close()
    wait_for(lambda: node.reports)
    report.leave()
    wait_for(lambda: ledger.instance in node.ended)
    assert report._alarm is not None
    for end in (report._alarm.read_end, report._alarm._write_end):
        os.close(end)
    report.after_fork_in_child()
    assert report._alarm is None
    assert ledger.instance == report.instance
    engine.raw_connection().close()
    wait_for(lambda: report.instance in node.last)

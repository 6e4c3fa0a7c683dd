"""The node's port, in this process: the answers to clients, and the limits."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec
import pytest

from connmon.cluster.batching import BatchSettings
from connmon.cluster.client_connection import ConnectionSettings
from connmon.cluster.raft.replica import Replica
from connmon.cluster.server import Server, ServerSettings
from connmon.config import Address, Node, Service
from connmon.protocol.batch import Batch, Departure
from connmon.protocol.frames import Ack, ClientSide, Goodbye, Hello, Message, Refuse, Welcome, frame
from connmon.protocol.queries import EVERYTHING, History, HistoryQuery, Query, UsersQuery, WaitsQuery
from connmon.protocol.reports import PoolReport
from connmon.protocol.rows import Rows
from connmon.protocol.values import Gauges, Peaks, Totals
from tests.support.cluster_fakes import FakeState, change, full

LIMIT = 20.0


class Client:
    """A client that sends any message and keeps the answers."""

    made: ClassVar[list[Client]] = []
    """The clients of a test; with_server ends them."""

    def __init__(self, role: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.side = ClientSide(role, "default", "a test")
        self.reader, self.writer = reader, writer
        self.inbox: list[Any] = []
        self.made.append(self)

    @classmethod
    async def connect(cls, server: Server, role: str = "application", hello: bool = True) -> Client:
        client = cls(role, *await asyncio.open_connection("127.0.0.1", server.port))
        greeting = client.side.hello()
        if hello:
            client.writer.write(greeting)
            assert isinstance(await client.next(), Welcome)
        return client

    def send(self, *messages: Message) -> None:
        self.writer.write(b"".join(map(frame, messages)))

    async def next(self) -> Any:
        """Return the next message; None at the end."""
        while not self.inbox:
            try:
                data = await self.reader.read(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self.inbox += self.side.receive(data)
        return self.inbox.pop(0)

    async def rest(self) -> list[Any]:
        """Return all messages until the node closes."""
        messages = []
        while (message := await self.next()) is not None:
            messages.append(message)
        return messages

    async def report(self, instance: str, sequence: int = 1) -> Ack:
        self.send(full(instance, sequence))
        ack = await self.next()
        assert isinstance(ack, Ack), ack
        return ack

    async def ask(self) -> dict[str, int]:
        """Return the last sequence of each instance by the rows of the node."""
        self.send(Query("process"))
        last_sequences: dict[str, int] = {}
        more = True
        while more:
            rows = await self.next()
            assert isinstance(rows, Rows)
            last_sequences.update({row.instance: row.figures.processes for row in rows.rows})  # type: ignore[union-attr]
            more = rows.more
        return last_sequences

    def kill(self) -> None:
        """End as a killed process does: the system closes the socket."""
        self.writer.transport.abort()


Body = Callable[[Server, FakeState], Awaitable[None]]


def with_server(body: Body, lease: float = 15.0, **options: Any) -> None:
    """Run `body` with a started server, for at most `LIMIT` seconds."""
    node = Node("node1", Address("127.0.0.1", 1), Address("127.0.0.1", 0))
    _run(body, Service("default", (node,), lease=lease), None, **options)


def _run(body: Body, service: Service, others: Any, **options: Any) -> None:
    async def run() -> None:
        state: Any = FakeState()
        node = service.nodes[0]
        server = Server(service, node, Replica("default", node.name, state, peers=others), **options)
        await server.start()
        try:
            await asyncio.wait_for(body(server, state), LIMIT)
        finally:
            await server.close()
            while Client.made:
                Client.made.pop().kill()
            await asyncio.sleep(0)
            assert server.clients == 0
            assert server.held_bytes == sum(waiting.memory_bytes for waiting in server._batcher._queue)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; with_server's limit applies."""
    while not condition():
        await asyncio.sleep(0.005)


def sequences(batches: list[Batch]) -> list[list[int]]:
    return [[report.sequence for report in batch.reports] for batch in batches]


def watch(server: Server) -> list[Batch]:
    """Return the list to which every applied batch will be added."""
    batches: list[Batch] = []
    server._replica.on_applied = lambda batch, outcome: batches.append(batch)
    return batches


# --- applications and readers ---------------------------------------------------------------


def test_a_report_is_acknowledged_and_a_query_shows_it() -> None:
    """A report is acknowledged after it is applied; then a reader sees it, with node, leader and quorum."""

    async def body(server: Server, state: FakeState) -> None:
        application = await Client.connect(server)
        assert await application.report("i1") == Ack("i1", 1, False)
        reader = await Client.connect(server, "reader")
        assert await reader.ask() == {"i1": 1}
        reader.send(Query("process"))
        rows = await reader.next()
        assert (rows.service, rows.node, rows.leader, rows.quorum) == ("default", "node1", "node1", True)

    with_server(body)


def test_the_welcome_names_the_node() -> None:
    """The welcome names service and node; the service of the hello may be empty."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server, "reader", hello=False)
        client.send(Hello(1, "reader", ""))
        welcome = await client.next()
        assert (welcome.service, welcome.node) == ("default", "node1")

    with_server(body)


def test_hello_and_first_report_may_come_together() -> None:
    """A client need not wait for the welcome before it sends its first report."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server, hello=False)
        client.send(Hello(1, "application", "default"), full("i1"))
        assert isinstance(await client.next(), Welcome)
        assert await client.next() == Ack("i1", 1, False)

    with_server(body)


def test_a_gap_is_answered_with_a_wish_for_a_full_report() -> None:
    """A report whose base the group lacks is answered with a request for a full one, which helps."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server)
        client.send(change("i1", 5))
        assert await client.next() == Ack("i1", 5, True)
        client.send(full("i1", 6))
        assert await client.next() == Ack("i1", 6, False)
        client.send(change("i1", 7))
        assert await client.next() == Ack("i1", 7, False)

    with_server(body)


def test_reports_of_the_same_moment_share_a_batch() -> None:
    """Reports within the gathering time after a batch share the next one."""

    async def body(server: Server, state: FakeState) -> None:
        clients = [await Client.connect(server) for _ in range(10)]
        await clients[0].report("i0")
        batches = watch(server)
        for number, client in enumerate(clients):
            client.send(full(f"i{number}", 2))
        for client in clients:
            assert isinstance(await client.next(), Ack)
        with_reports = [batch for batch in batches if batch.reports]
        assert sum(len(batch.reports) for batch in with_reports) == 10
        assert len(with_reports) < 5

    with_server(body)


def test_a_batch_is_limited_in_bytes() -> None:
    """Many large reports are spread over several batches, and all are applied."""

    async def body(server: Server, state: FakeState) -> None:
        clients = [await Client.connect(server) for _ in range(8)]
        batches = watch(server)
        for number, client in enumerate(clients):
            client.send(full(f"i{number}", 1, "x" * 2000))
        for client in clients:
            assert isinstance(await client.next(), Ack)
        assert max(len(batch.reports) for batch in batches) == 2
        assert len(state.reports) == 8

    with_server(body, settings=ServerSettings(batch=BatchSettings(batch_bytes=5000)))


def test_the_leaders_ticks_move_the_clock_while_nothing_is_reported() -> None:
    """The replica's clock advances by bounded steps without any client."""

    async def body(server: Server, state: FakeState) -> None:
        batches = watch(server)
        await until(lambda: len(batches) >= 3)
        ticks = [batch.tick for batch in batches]
        assert all(tick is not None and 0.0 <= tick.step <= 2.0 and tick.lease == 7.0 for tick in ticks)
        assert state.clock > 0.0
        assert [batch.number for batch in batches] == sorted({batch.number for batch in batches})

    with_server(body, lease=7.0)


def test_a_long_sleep_is_one_bounded_step() -> None:
    """A leader that slept for a minute moves the replica's clock by 2 s at most."""
    late = 0.0

    def clock() -> float:
        return asyncio.get_running_loop().time() + late

    async def body(server: Server, state: FakeState) -> None:
        nonlocal late
        batches = watch(server)
        await until(lambda: len(batches) >= 2)
        late = 60.0
        seen = len(batches)
        await until(lambda: len(batches) > seen + 1)
        assert max(batch.tick.step for batch in batches if batch.tick) == 2.0

    with_server(body, clock=clock)


def test_a_query_in_many_frames_lets_others_through() -> None:
    """Rows are sent chunk by chunk; a report is acknowledged while a long answer goes on."""

    async def body(server: Server, state: FakeState) -> None:
        application, reader = await Client.connect(server), await Client.connect(server, "reader")
        await application.report("i1")
        state.chunks = 2000
        reader.send(Query("process"))
        assert isinstance(await reader.next(), Rows)
        await application.report("i1", 2)
        assert len([1 for _ in range(1999) if isinstance(await reader.next(), Rows)]) == 1999
        state.chunks = 1
        assert await reader.ask() == {"i1": 2}

    with_server(body)


def test_queries_are_answered_in_order() -> None:
    """Ten queries sent at once get ten answers."""

    async def body(server: Server, state: FakeState) -> None:
        reader = await Client.connect(server, "reader")
        reader.send(*[Query("process")] * 10)
        for _ in range(10):
            assert isinstance(await reader.next(), Rows)

    with_server(body)


def test_without_quorum_readers_are_answered_and_reports_wait() -> None:
    """A node without a leader answers with quorum False; reports are acknowledged once there is a leader."""

    async def body(server: Server, state: FakeState) -> None:
        reader, application = await Client.connect(server, "reader"), await Client.connect(server)
        group: Any = server._replica._group
        group.tick = lambda: None  # nobody is elected
        application.send(full("i1"))
        reader.send(Query("process"))
        rows = await reader.next()
        assert (rows.leader, rows.quorum, rows.rows) == (None, False, ())
        del group.tick
        assert await application.next() == Ack("i1", 1, False)

    with_server(body)


class Elsewhere:
    """The other nodes, as the server uses them."""

    names = ("node2",)

    def start(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def send(self, name: str, message: object) -> bool:
        return False

    def room(self, name: str) -> bool:
        return False


def with_a_node_cut_off(body: Body, **options: Any) -> None:
    """Run `body` with the server of one of two nodes, which never reaches the other."""

    nodes = tuple(Node(f"node{n}", Address("127.0.0.1", n), Address("127.0.0.1", 0)) for n in (1, 2))
    _run(body, Service("default", nodes), Elsewhere(), **options)


def test_applications_leave_a_node_without_quorum() -> None:
    """An application whose report waits there must try another node; readers stay, and no process counts as
    ended."""

    async def body(server: Server, state: FakeState) -> None:
        reader, application = await Client.connect(server, "reader"), await Client.connect(server)
        idle = await Client.connect(server)
        application.send(full("i1"))
        (refusal,) = await application.rest()
        assert isinstance(refusal, Refuse)
        assert refusal.reason.startswith("this node has had no quorum for")
        await asyncio.sleep(0.2)  # longer than the grace time of who ends without a word
        assert await reader.ask() == {}
        assert not any(isinstance(waiting.message, Departure) for waiting in server._batcher._queue)
        assert not server._grace
        assert server.clients == 2
        idle.kill()

    with_a_node_cut_off(
        body, settings=ServerSettings(patience_seconds=0.2, sweep_seconds=0.05, grace_seconds=0.1)
    )


def test_reconnecting_without_quorum_takes_bounded_memory() -> None:
    """The memory of waiting reports depends on the number of processes, not on the time."""

    async def body(server: Server, state: FakeState) -> None:
        held: list[int] = []
        for sequence in range(1, 50):
            client = await Client.connect(server)
            client.send(full("i1", sequence, "x" * 1000))
            await until(
                lambda: server._reporting["i1"].sequence == len(held) + 1 if server._reporting else False
            )
            client.kill()
            held.append(server.held_bytes)
        await until(lambda: server.clients == 0)
        # One is being proposed, one waits, and so does the word that the process has ended.
        assert max(held) <= 3 * max(held[:2])
        assert len(server._batcher._queue) <= 2

    with_a_node_cut_off(body)


def test_an_application_that_moves_has_time_to_arrive() -> None:
    """The acknowledgement names the node to move to; a process that then leaves has time to arrive there."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server)
        await client.report("i1")
        server._reporting["i1"].move_to = "node2"
        assert await client.report("i1", 2) == Ack("i1", 2, False, "node2")
        client.kill()
        await until(lambda: server.clients == 0)
        other = await Client.connect(server)
        await other.report("i2")
        assert state.reports == {"i1": 2, "i2": 1}
        await until(lambda: state.reports == {"i2": 1})

    with_server(body, settings=ServerSettings(grace_seconds=0.0, moving_seconds=0.3))


# --- the end of a process -------------------------------------------------------------------


def test_goodbye_takes_the_process_out() -> None:
    """The last report is acknowledged, the process leaves, and the node closes the connection."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server)
        await client.report("i1")
        client.send(full("i1", 2), Goodbye("i1", 2))
        assert await client.rest() == [Ack("i1", 2, False)]
        assert state.reports == {}

    with_server(body)


def test_goodbye_is_honoured_though_the_client_closes_at_once() -> None:
    """The last report of a process that closes at once is applied, then its departure."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server)
        batches = watch(server)
        client.send(full("i1"), Goodbye("i1", 1))
        client.writer.close()
        await until(lambda: any(batch.departures for batch in batches))
        assert [1] in sequences(batches)
        assert state.reports == {}

    with_server(body)


def test_a_killed_process_leaves() -> None:
    """A connection that is reset or closed without goodbye is a departure after the grace time."""

    async def body(server: Server, state: FakeState) -> None:
        killed, ended = await Client.connect(server), await Client.connect(server)
        await killed.report("i1")
        await ended.report("i2")
        batches = watch(server)
        killed.kill()
        ended.writer.close()
        await until(lambda: state.reports == {})
        departures = {(d.instance, d.sequence) for batch in batches for d in batch.departures}
        assert departures == {("i1", 1), ("i2", 1)}

    with_server(body)


def test_a_process_that_comes_back_does_not_leave() -> None:
    """An instance that reports on another connection within the grace time is no departure."""

    async def body(server: Server, state: FakeState) -> None:
        other = await Client.connect(server)
        client = await Client.connect(server)
        await client.report("i1")
        batches = watch(server)
        client.kill()
        await until(lambda: bool(server._grace))
        back = await Client.connect(server)
        assert await back.report("i1", 2) == Ack("i1", 2, False)
        await other.report("i2")
        other.kill()
        await until(lambda: any(batch.departures for batch in batches))
        assert {d.instance for batch in batches for d in batch.departures} == {"i2"}
        assert state.reports == {"i1": 2}

    with_server(body)


def test_an_old_connection_that_ends_after_the_new_one_reported_is_no_departure() -> None:
    """Only the end of the connection with the latest report is a departure."""

    async def body(server: Server, state: FakeState) -> None:
        old, new, other = [await Client.connect(server) for _ in range(3)]
        await old.report("i1")
        await new.report("i1", 2)
        await other.report("i2")
        old.kill()
        await until(lambda: server.clients == 2)
        other.kill()
        await until(lambda: "i2" not in state.reports)
        assert state.reports == {"i1": 2}

    with_server(body)


def test_a_silent_process_is_closed_but_not_departed() -> None:
    """Silence for a lease ends the connection; it is no departure: the state judges that."""

    async def body(server: Server, state: FakeState) -> None:
        client, reader = await Client.connect(server), await Client.connect(server, "reader")
        await client.report("i1")
        batches = watch(server)
        (refuse,) = await client.rest()
        assert "silent" in refuse.reason
        await until(lambda: len(batches) >= 3)
        assert not any(batch.departures for batch in batches)
        assert not server._grace
        assert await reader.ask() == {"i1": 1}

    with_server(body, lease=0.2, settings=ServerSettings(sweep_seconds=0.05))


# --- what is not allowed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(99, "reader", "default"), "protocol version 99"),
        (Hello(1, "king", "default"), "role 'king'"),
        (Hello(1, "peer", "default", "node2"), "alone in its config"),
        (Hello(1, "application", "other"), "service 'other' is not served here"),
    ],
)
def test_a_wrong_hello_is_refused_with_the_reason(
    hello: Hello, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the reason, the connection is closed, and one warning has the address."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server, hello=False)
        host, port = client.writer.get_extra_info("sockname")
        client.send(hello)
        (refuse,) = await client.rest()
        assert isinstance(refuse, Refuse)
        assert reason in refuse.reason
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert f"{host}:{port}" in record.getMessage()
        assert reason in record.getMessage()

    with_server(body)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\xff" * 1000,
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x04\x80\x04\x95.",
    ],
)
def test_garbage_closes_that_connection_only(garbage: bytes) -> None:
    """HTTP, TLS, pickle and noise end their own connection; others go on."""

    async def body(server: Server, state: FakeState) -> None:
        good = await Client.connect(server)
        await good.report("i1")
        for hello in (False, True):
            bad = await Client.connect(server, hello=hello)
            bad.writer.write(garbage)
            (refuse,) = await bad.rest()
            assert isinstance(refuse, Refuse)
        assert await good.report("i1", 2) == Ack("i1", 2, False)

    with_server(body)


def test_a_second_instance_on_one_connection_is_refused() -> None:
    """One connection is for one process; the process that reported first leaves."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server)
        await client.report("i1")
        client.send(full("i2"))
        (refuse,) = await client.rest()
        assert "another instance" in refuse.reason
        await until(lambda: state.reports == {})

    with_server(body)


def test_nothing_goes_after_goodbye() -> None:
    """A report after the goodbye is refused."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server)
        client.send(full("i1"), Goodbye("i1", 1), full("i1", 2))
        messages = await client.rest()
        assert messages[0] == Ack("i1", 1, False)
        assert "after goodbye" in messages[1].reason
        await until(lambda: state.reports == {})

    with_server(body)


def test_no_hello_is_not_waited_for() -> None:
    """A client without a hello is closed; a reader without a question may stay."""

    async def body(server: Server, state: FakeState) -> None:
        reader = await Client.connect(server, "reader")
        mute = await Client.connect(server, hello=False)
        (refuse,) = await mute.rest()
        assert "no hello" in refuse.reason
        assert await reader.ask() == {}

    with_server(
        body,
        lease=0.2,
        settings=ServerSettings(connection=ConnectionSettings(hello_seconds=0.1), sweep_seconds=0.05),
    )


def test_a_frame_that_is_never_completed_is_not_waited_for() -> None:
    """A frame that is not completed ends the connection."""

    async def body(server: Server, state: FakeState) -> None:
        client = await Client.connect(server, "reader")
        client.writer.write(frame(Query("process"))[:-1])
        (refuse,) = await client.rest()
        assert "completed" in refuse.reason

    with_server(
        body, settings=ServerSettings(connection=ConnectionSettings(frame_seconds=0.1), sweep_seconds=0.05)
    )


def test_a_slow_reader_is_dropped() -> None:
    """A reader that does not read its answers costs bounded memory, and is dropped."""

    async def body(server: Server, state: FakeState) -> None:
        slow, application = await Client.connect(server, "reader"), await Client.connect(server)
        await application.report("i1")
        state.row_text = "x" * 100_000
        state.chunks = 1000
        slow.send(Query("process"))
        await until(lambda: server.held_bytes > 0)
        most = 0
        while server.clients > 1:
            most = max(most, server.held_bytes)
            await asyncio.sleep(0.005)
        assert most < ConnectionSettings().unsent_bytes + 2 * 100_000 + 4096
        await application.report("i1", 2)

    with_server(
        body, settings=ServerSettings(connection=ConnectionSettings(drain_seconds=0.3), sweep_seconds=0.05)
    )


def test_a_flood_of_reports_is_held_back() -> None:
    """A flooding client gets TCP backpressure: it is read no faster than its reports are applied."""

    async def body(server: Server, state: FakeState) -> None:
        flood, good = await Client.connect(server), await Client.connect(server)
        most = 0

        async def pour() -> None:
            for sequence in range(1, 20_000):
                flood.send(full("flood", sequence, "x" * 1000))
                await flood.writer.drain()

        pouring = asyncio.create_task(pour())
        for sequence in range(1, 6):
            await good.report("good", sequence)
            most = max(most, server.held_bytes)
        pouring.cancel()
        assert most < 2 * 1024 * 1024
        assert state.reports["flood"] < 100

    with_server(body)


def test_the_connection_that_holds_the_most_memory_is_closed_first(caplog: pytest.LogCaptureFixture) -> None:
    """Above the memory limit the connection that holds the most is closed; the others stay."""

    async def body(server: Server, state: FakeState) -> None:
        good = await Client.connect(server)
        await good.report("good")
        greedy = [await Client.connect(server) for _ in range(8)]
        for size, client in enumerate(greedy, 1):
            client.writer.write(struct.pack(">I", 10_000_000) + bytes(size * 100_000))
        await until(lambda: server.clients < 9)
        assert "memory for clients" in caplog.text
        await until(lambda: server.held_bytes <= 2_000_000)
        assert await good.report("good", 2) == Ack("good", 2, False)

    with_server(body, settings=ServerSettings(memory_bytes=2_000_000))


def test_a_report_that_swells_when_decoded_is_weighed_so() -> None:
    """A report with many tiny pools counts for the memory that it takes when decoded."""

    async def body(server: Server, state: FakeState) -> None:
        good, bad = await Client.connect(server), await Client.connect(server)
        pools = (PoolReport(0, None, Gauges(), Totals(), Peaks()),) * 3000
        report = msgspec.structs.replace(full("bad"), pools=pools)
        assert len(frame(report)) < 250_000
        bad.send(report)
        assert await bad.rest() == []
        assert await good.report("good") == Ack("good", 1, False)

    with_server(body, settings=ServerSettings(memory_bytes=2_000_000))


def test_clients_are_limited() -> None:
    """A client above the limit gets the reason; after another leaves there is room again."""

    async def body(server: Server, state: FakeState) -> None:
        clients = [await Client.connect(server, "reader") for _ in range(3)]
        extra = await Client.connect(server, hello=False)
        (refuse,) = await extra.rest()
        assert "3 clients" in refuse.reason
        clients[0].kill()
        await until(lambda: server.clients == 2)
        again = await Client.connect(server, "reader")
        assert await again.ask() == {}

    with_server(body, clients=3)


def test_a_flood_of_garbage_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of bad clients cause some twenty log lines, short and without control characters."""

    async def body(server: Server, state: FakeState) -> None:
        for _ in range(300):
            bad = await Client.connect(server, hello=False)
            bad.send(Hello(1, "\x1b[31m\n" * 50, "default"))
            await bad.rest()

    with_server(body)
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) < 40
    assert all(line.isprintable() and len(line) < 600 for line in lines)


def test_a_state_that_raises_ends_the_connections_not_the_node(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that cannot be applied closes the connections of its reports; later batches are applied."""

    async def body(server: Server, state: FakeState) -> None:
        bad, good = await Client.connect(server), await Client.connect(server)
        state.fail_on = "bad"
        bad.send(full("bad"))
        (refuse,) = await bad.rest()
        assert "could not apply" in refuse.reason
        assert await good.report("good") == Ack("good", 1, False)

    with_server(body)
    assert "cannot be applied" in caplog.text


def test_a_query_that_raises_ends_that_reader_only(caplog: pytest.LogCaptureFixture) -> None:
    """A bug behind a query is logged and costs that connection."""

    async def body(server: Server, state: FakeState) -> None:
        reader, other = await Client.connect(server, "reader"), await Client.connect(server, "reader")
        state.chunks = None  # type: ignore[assignment]
        reader.send(Query("process"))
        (refuse,) = await reader.rest()
        assert "see its log" in refuse.reason
        state.chunks = 1
        assert await other.ask() == {}

    with_server(body)
    assert "could not be answered" in caplog.text


def test_closing_ends_every_connection() -> None:
    """close() returns with clients connected, one of which reads nothing."""

    async def body(server: Server, state: FakeState) -> None:
        application, stuck = await Client.connect(server), await Client.connect(server, "reader")
        await application.report("i1")
        state.row_text, state.chunks = "x" * 100_000, 1000
        stuck.send(Query("process"))
        await until(lambda: server.held_bytes > 0)
        await server.close()
        assert server.clients == 0
        assert await application.next() is None

    with_server(body)


@pytest.mark.parametrize("turns", range(5))
def test_closing_while_work_comes_in_is_not_missed(turns: int) -> None:
    """close() returns even if the batcher is being woken at that moment."""

    async def body(server: Server, state: FakeState) -> None:
        await until(lambda: server._batcher._tick_at is not None)
        server._put(Departure("i1", 1), None, 1, 1)
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(server.close(), 5)

    with_server(body)


def test_a_reader_gets_history_waits_and_users() -> None:
    """The node samples without being asked, and answers each kind of question."""

    async def body(server: Server, state: FakeState) -> None:
        reader = await Client.connect(server, "reader")
        number = 0
        while not number:
            reader.send(HistoryQuery((EVERYTHING,)))
            past = await reader.next()
            assert isinstance(past, History)
            number = past.number
        assert past.series[0].key == EVERYTHING
        for question in (WaitsQuery(30.0), UsersQuery("mysql", "db1", None, "nova")):
            reader.send(question)
            rows = await reader.next()
            assert isinstance(rows, Rows) and rows.complete and not rows.more

    with_server(body)

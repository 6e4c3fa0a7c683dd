"""The node's one port: accepts clients, passes on their reports, answers their queries.

Rules:

- A connection that ends is a Departure of its instance: after a goodbye at once, otherwise after
  `grace_seconds`, unless the instance has reported on another connection here. Silence is not the end
  of a process: the state's lease judges that.
- In a group of several nodes, an application whose report waits here without quorum is asked to try another
  node. If this node has more applications than others, some are asked to move.
- Clients cannot make the node grow without bound: their number, the bytes held for them and the lines
  logged about them are limited. Above the memory limit the connection that holds the most is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from connmon.cluster import status
from connmon.cluster.batch_queue import Waiting
from connmon.cluster.batching import Batcher, BatchSettings
from connmon.cluster.client_connection import ClientConnection, ConnectionSettings, End, memory_bytes
from connmon.cluster.log_limit import LimitLog, RateLimitedLog
from connmon.cluster.open_files import ClientRoom, current_limit, room
from connmon.cluster.raft.replica import Replica
from connmon.cluster.rebalance import Rebalancer
from connmon.cluster.state.answer_frames import About
from connmon.cluster.state.digest import Digests
from connmon.cluster.state.history import Past
from connmon.config import Node, Service
from connmon.errors import ProtocolError
from connmon.protocol.batch import Batch, Departure
from connmon.protocol.credentials import OPEN, Credentials, TlsChannel
from connmon.protocol.frames import Hello, NodeSide
from connmon.protocol.queries import (
    History,
    HistoryQuery,
    NodeStatus,
    RowsQuery,
    StatusQuery,
)
from connmon.protocol.reports import CONNECTIONS_REPORTED, POOLS_REPORTED, Report
from connmon.protocol.rows import Rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """Limits and intervals of a node's port."""

    grace_seconds: float = 0.5
    """For a process to report on another connection before it counts as ended."""
    moving_seconds: float = 5.0
    """The same for one that was asked to move to another node: its next report goes there."""
    patience_seconds: float = 3.0
    """For which a report waits without quorum before the application is asked to try another node."""
    rebalance_seconds: float = 5.0
    """Between two checks whether the nodes have about as many applications each."""
    sweep_seconds: float = 1.0
    """Between two checks of all connections' deadlines."""
    memory_bytes: int = 64 * 1024 * 1024
    """For all clients together: received, waiting to be applied, waiting to be sent."""
    accept_connections: int = 16
    """Accepted at once, before asyncio looks at any of them; far fewer than `open_files.OWN_FILES`."""
    backlog_connections: int = 1024
    """That the system keeps until they are accepted."""
    departure_bytes: int = 256
    """What a departure counts for in memory."""
    closing_seconds: float = 0.3
    """That `close` waits for clients to take what was written."""
    digest_wait_seconds: float = 1.0
    """That a status waits for the version of the state whose digest is asked for."""
    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)


class Server:
    """One node's port. `start` and `close` are called on one running event loop.

    `clock` is monotonic, in seconds. `boot` is random per start of the node. `clients` limits their number;
    None: as the limit on open files allows.
    """

    def __init__(
        self,
        service: Service,
        node: Node,
        replica: Replica,
        *,
        clock: Callable[[], float] = time.monotonic,
        boot: str | None = None,
        clients: ClientRoom | int | None = None,
        credentials: Credentials = OPEN,
        settings: ServerSettings = ServerSettings(),
    ) -> None:
        self.clock = clock
        self.credentials = credentials
        """For clients that connect from now on."""
        self._service = service
        self._node = node
        self._replica = replica
        self._settings = settings
        boot = boot if boot is not None else secrets.token_hex(8)
        if clients is None:
            clients = room(current_limit())
        self._room = ClientRoom(clients, None) if isinstance(clients, int) else clients
        self._client_log = RateLimitedLog(clock)
        self._limit_log = LimitLog(clock)
        self._forgotten: dict[str, int] = {}
        """The state's counts of forgotten rows at the last sweep."""
        self._listener: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._connections: set[ClientConnection] = set()
        self._connections_bytes = 0
        self._reporting: dict[str, ClientConnection] = {}
        """By instance: the connection of its last report."""
        self._grace: dict[str, asyncio.TimerHandle] = {}
        """By instance: the timer that reports its departure."""
        self._batcher = Batcher(
            replica,
            node=node.name,
            boot=boot,
            lease_seconds=service.lease,
            clock=clock,
            settings=settings.batch,
        )
        self._rebalancer = Rebalancer(node.name, random.Random(boot))
        self._rebalanced_at = self._quorum_at = clock()
        self._digests = Digests(clock)
        self._past = Past()
        replica.on_applied = lambda _batch, _outcome: self._digests.moved(replica.state)
        self._started_at = clock()
        self._closing = False

    def __repr__(self) -> str:
        return f"<Server of {self._node.name}: {self.clients} clients, {self.held_bytes} bytes>"

    # --- called by the daemon and the metrics ---

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def clients(self) -> int:
        """The number of client connections."""
        return len(self._connections)

    @property
    def held_bytes(self) -> int:
        """The memory held for clients."""
        return self._connections_bytes + self._batcher.held_bytes

    def on_command(self, call: Callable[[Batch, float], None]) -> None:
        """Have `call` called after each batch of this node with the seconds from proposing to applying it."""
        self._batcher.on_command = call

    async def start(self) -> None:
        """Listen, join the group and begin to work. Raises OSError if the port cannot be opened."""
        loop = asyncio.get_running_loop()
        bind = self._node.bind
        self._listener = await loop.create_server(
            lambda: ClientConnection(self),
            bind.host,
            bind.port,
            reuse_address=True,
            backlog=self._settings.accept_connections,
        )
        for listening in self._listener.sockets:
            # asyncio has one number for both; the system takes the later call.
            with socket.socket(fileno=os.dup(listening.fileno())) as twin:
                twin.listen(self._settings.backlog_connections)
        self._replica.start()
        work = (self._batcher.run, self._sweep, self._sample)
        self._tasks = [loop.create_task(run()) for run in work]

    async def close(self) -> None:
        """Stop listening, close every connection, leave the group; takes about `closing_seconds` at most."""
        self._closing = True
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in self._grace.values():
            timer.cancel()
        for connection in list(self._connections):
            connection.close("the node ends")
        deadline = self.clock() + self._settings.closing_seconds
        while self._connections and self.clock() < deadline:
            await asyncio.sleep(0.01)
        self.abort_clients()
        await asyncio.sleep(0)
        self._replica.close()

    def abort_clients(self) -> None:
        """Close every client connection at once."""
        for connection in list(self._connections):
            connection.abort("the node ends")

    # --- called by client connections (client_connection.Owner) ---

    @property
    def service_name(self) -> str:
        return self._service.name

    @property
    def node_name(self) -> str:
        return self._node.name

    @property
    def lease_seconds(self) -> float:
        return self._service.lease

    @property
    def connection_settings(self) -> ConnectionSettings:
        return self._settings.connection

    def accepted(self, connection: ClientConnection) -> str | None:
        self._connections.add(connection)
        if len(self._connections) > self._room.clients:
            why = f" ({self._room.reason})" if self._room.reason else ""
            return f"the node has its {self._room.clients} clients already{why}"
        return None

    def closed(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        instance = connection.instance
        if instance is None or self._reporting.get(instance) is not connection:
            return
        del self._reporting[instance]
        if connection.end is End.UNEXPECTED and not self._closing:
            settings = self._settings
            grace = settings.grace_seconds if connection.move_to is None else settings.moving_seconds
            self._grace[instance] = asyncio.get_running_loop().call_later(
                grace, self._missing, instance, connection.sequence
            )

    def reported(self, connection: ClientConnection, report: Report, wire_bytes: int) -> None:
        self._reporting[report.instance] = connection
        if (timer := self._grace.pop(report.instance, None)) is not None:
            timer.cancel()
        self._put(report, connection, wire_bytes, memory_bytes(report, wire_bytes))

    def departed(self, connection: ClientConnection, instance: str, sequence: int) -> None:
        size = self._settings.departure_bytes
        self._put(Departure(instance, sequence), connection, size, size)

    def hurry(self) -> None:
        self._batcher.hurry()

    def peer_refusal(self, hello: Hello) -> str | None:
        peers = self._replica.peers
        return "this node is alone in its config" if peers is None else peers.refusal(hello)

    def hand_over(
        self,
        connection: ClientConnection,
        side: NodeSide,
        channel: TlsChannel | None,
        transport: asyncio.Transport,
    ) -> None:
        if self._replica.peers is None or self._closing:
            transport.abort()
            return
        try:
            self._replica.peers.adopt(side, channel, transport, list(side.receive(b"")))
        except ProtocolError as error:
            self.refused(connection, str(error))
            transport.abort()

    def rows(self, query: RowsQuery) -> Iterator[Rows]:
        replica, group = self._replica, self._replica.status
        about = About(
            service=self._service.name,
            node=self._node.name,
            leader=group.leader,
            quorum=group.quorum,
            stale=group.stale,
        )
        return replica.state.rows(query, about)

    def history(self, query: HistoryQuery) -> History:
        return self._past.answer(query, self._service.name, self._node.name)

    async def status(self, query: StatusQuery) -> NodeStatus:
        replica = self._replica
        digest = None if query.digest_at is None else await self._digest(query.digest_at)
        return status.of_node(
            self._service.name,
            self._node.name,
            replica.status,
            replica.state,
            processes=len(self._reporting),
            consoles=sum(connection.wants_rows for connection in self._connections),
            uptime=self.clock() - self._started_at,
            digest=digest,
        )

    async def _digest(self, version: int) -> str | None:
        """Return the state's digest at that version, None if it does not come in time."""
        made: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def answered(digest: str | None) -> None:
            if not made.done():
                made.set_result(digest)

        self._digests.ask(self._replica.state, version, answered)
        try:
            return await asyncio.wait_for(made, self._settings.digest_wait_seconds)
        except asyncio.TimeoutError:
            return None
        finally:
            self._digests.give_up(version, answered)

    def held_changed(self, connection: ClientConnection, change_bytes: int) -> None:
        self._connections_bytes += change_bytes
        if change_bytes > 0:
            self._limit_memory()

    def refused(self, connection: ClientConnection, reason: str) -> None:
        self._client_log.warning("client %s: connection closed: %s", connection.address, reason)

    def failed(self, connection: ClientConnection, error: Exception) -> None:
        logger.error("the query of %s could not be answered", connection.address, exc_info=error)

    # --- internal ---

    def _missing(self, instance: str, sequence: int) -> None:
        """Report the departure of a process that has not come back."""
        self._grace.pop(instance, None)
        size = self._settings.departure_bytes
        self._put(Departure(instance, sequence), None, size, size)

    def _put(
        self, message: Report | Departure, source: ClientConnection | None, wire_bytes: int, memory_bytes: int
    ) -> None:
        self._batcher.put(Waiting(message, source, wire_bytes, memory_bytes))
        self._limit_memory()

    def _limit_memory(self) -> None:
        """Close the connections that hold the most until the limit is kept."""
        limit = self._settings.memory_bytes
        while self.held_bytes > limit:
            largest = max(self._connections, key=lambda connection: connection.held_bytes, default=None)
            if largest is None or not largest.held_bytes:
                return
            reason = f"the memory for clients ({limit} bytes) is used up"
            self.refused(largest, reason)
            largest.abort(reason)

    async def _sample(self) -> None:
        """Keep the last minutes of every row, until cancelled."""
        while True:
            began = self.clock()
            try:
                for _ in self._past.sample(self._replica.state, self._replica.status.quorum):
                    await asyncio.sleep(0)
            except Exception:
                logger.exception("a sample for the history was not taken; going on")
            await asyncio.sleep(max(0.0, began + self._past.settings.interval_seconds - self.clock()))

    async def _sweep(self) -> None:
        """Check all deadlines, the balance between the nodes and the limits, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.sweep_seconds)
            now = self.clock()
            for connection in list(self._connections):
                connection.check(now)
            if self._replica.peers is not None:
                self._send_away(now)
            self._log_limits()

    def _log_limits(self) -> None:
        state = self._replica.state
        limits = {**state.limits._asdict(), "pools": POOLS_REPORTED, "connections": CONNECTIONS_REPORTED}
        forgotten = {name: count - self._forgotten.get(name, 0) for name, count in state.forgotten.items()}
        self._forgotten = dict(state.forgotten)
        self._limit_log.observe({**state.left_out(), **forgotten}, limits)

    def _send_away(self, now: float) -> None:
        """Have applications move to a node that has quorum, or that has fewer of them."""
        settings = self._settings
        group = self._replica.status
        self._rebalancer.observe([node for node, connected in group.connected.items() if connected], now)
        if not group.quorum:
            outage = now - self._quorum_at
            if outage > settings.patience_seconds:
                for connection in list(self._connections):
                    reason = f"this node has had no quorum for {outage:.0f} s"
                    connection.send_away(reason, settings.patience_seconds)
            return
        self._quorum_at = now
        if now - self._rebalanced_at < settings.rebalance_seconds:
            return
        self._rebalanced_at = now
        processes = self._replica.state.processes.values()
        nodes = [process.node for process in processes if not process.lost]
        for instance, node in self._rebalancer.moves(nodes, list(self._reporting), now):
            self._reporting[instance].move_to = node

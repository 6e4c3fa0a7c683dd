"""One client connection: an application that reports, or a reader that asks.

Rules:

- `TRANSITIONS` has every legal change of the state. Each change is one debug line.
- One message is worked on at a time: a report until it is applied, a query until its rows are sent. Later
  messages wait, and nothing is read meanwhile: a flooding client gets TCP backpressure, and the node's
  memory stays bounded.
- A connection carries one instance, named by its first report.
- Any ProtocolError ends this one connection. The client gets the reason, and it is logged.
- TLS and the proof of the secret come first, within the time and the sizes of the hello. A client
  whose TLS fails gets the reason as a TLS alert.
- The server's sweep checks the deadlines (hello, incomplete frame, unread answers, silence), so a
  connection needs no timer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from connmon.errors import ProtocolError, one_line
from connmon.protocol.credentials import Credentials, TlsChannel, nonce
from connmon.protocol.frames import Ack, FromClient, Goodbye, HandshakeState, Hello, NodeSide, Proof, Refuse
from connmon.protocol.queries import History, HistoryQuery, NodeStatus, Question, RowsQuery, StatusQuery
from connmon.protocol.reports import Report
from connmon.protocol.rows import Rows
from connmon.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionSettings:
    """Limits of one client connection."""

    hello_seconds: float = 5.0
    """For TLS, hello and proof."""
    frame_seconds: float = 30.0
    """To complete a frame."""
    drain_seconds: float = 30.0
    """To read the answers."""
    close_seconds: float = 5.0
    """To take the last bytes of a connection that the node closes."""
    unsent_bytes: int = 256 * 1024
    """Unsent bytes beyond which no further rows are produced."""
    keepalive_idle_seconds: int = 15
    keepalive_interval_seconds: int = 5
    keepalive_probes: int = 3
    reason_characters: int = 400
    """Of a refusal, in the answer and in the log."""


#: Estimated memory of one element of a report, at least. On the wire they take 20, 12, 1 and 3 bytes or more.
POOL_BYTES: Final = 1000
CONNECTION_BYTES: Final = 400
CLOSED_NUMBER_BYTES: Final = 8
HISTOGRAM_COUNT_BYTES: Final = 100


def memory_bytes(message: FromClient, wire_bytes: int) -> int:
    """Return an upper estimate of the memory that a message takes, from its size on the wire."""
    if not isinstance(message, Report):
        return wire_bytes
    return (
        wire_bytes
        + POOL_BYTES * len(message.pools)
        + CONNECTION_BYTES * len(message.connections)
        + CLOSED_NUMBER_BYTES * (len(message.closed_pools) + len(message.closed_connections))
        + HISTOGRAM_COUNT_BYTES * sum([len(counts) for pool in message.pools for counts in pool.times])
    )


class ServingState(Enum):
    """What a client connection is doing."""

    HANDSHAKE = "handshake"
    """Accepted, not welcomed yet."""
    IDLE = "idle"
    """Welcomed; no message is being worked on."""
    BUSY = "busy"
    """A report waits to be applied, or a query is being answered."""
    LEAVING = "leaving"
    """The process has said goodbye; its departure waits to be applied."""
    CLOSING = "closing"
    """Nothing is received or sent any more, but for what was written before."""
    HANDED_OVER = "handed over"
    """It is a peer link now."""
    CLOSED = "closed"


class ConnectionEvent(Enum):
    """What changes the state."""

    WELCOMED = "welcomed"
    REQUEST = "request"
    """A report or a query is taken up."""
    DONE = "done"
    """The report is applied, or the query is answered."""
    GOODBYE = "goodbye"
    PEER_WELCOMED = "peer welcomed"
    CLOSE = "close"
    """The node closes the connection."""
    LOST = "lost"
    """The connection has ended."""


_END: Final = {ConnectionEvent.CLOSE: ServingState.CLOSING, ConnectionEvent.LOST: ServingState.CLOSED}

#: state -> event -> next state.
TRANSITIONS: Final[dict[ServingState, dict[ConnectionEvent, ServingState]]] = {
    ServingState.HANDSHAKE: {
        ConnectionEvent.WELCOMED: ServingState.IDLE,
        ConnectionEvent.PEER_WELCOMED: ServingState.HANDED_OVER,
        **_END,
    },
    ServingState.IDLE: {
        ConnectionEvent.REQUEST: ServingState.BUSY,
        ConnectionEvent.GOODBYE: ServingState.LEAVING,
        **_END,
    },
    ServingState.BUSY: {ConnectionEvent.DONE: ServingState.IDLE, **_END},
    ServingState.LEAVING: _END,
    ServingState.CLOSING: _END,
    ServingState.HANDED_OVER: _END,  # a connection that the peer links do not take is closed here
    ServingState.CLOSED: {},
}

#: The states in which the client's bytes are received and answered.
_ACTIVE: Final = (ServingState.HANDSHAKE, ServingState.IDLE, ServingState.BUSY, ServingState.LEAVING)


class End(Enum):
    """What the end of a connection says about the process behind it."""

    GOODBYE = "goodbye"
    """The process has ended, and its departure is reported."""
    SILENCE = "silence"
    """Closed for silence or overload; the process may still be alive."""
    UNEXPECTED = "no goodbye"
    """The process has ended, unless it reports on another connection soon."""


class Owner(Protocol):
    """The server, as a client connection uses it."""

    clock: Callable[[], float]

    @property
    def service_name(self) -> str: ...
    @property
    def node_name(self) -> str: ...
    @property
    def lease_seconds(self) -> float: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def connection_settings(self) -> ConnectionSettings: ...

    def accepted(self, connection: ClientConnection) -> str | None:
        """Count a new connection. Return the reason to refuse it, or None."""

    def held_changed(self, connection: ClientConnection, change_bytes: int) -> None:
        """Count the memory of a connection."""

    def reported(self, connection: ClientConnection, report: Report, wire_bytes: int) -> None:
        """Have a report applied; `ClientConnection.acknowledge` follows."""

    def departed(self, connection: ClientConnection, instance: str, sequence: int) -> None:
        """Have the departure of a process applied after its goodbye; `ClientConnection.close` follows."""

    def hurry(self) -> None:
        """Gather only briefly: an ending process waits for its last report."""

    def peer_refusal(self, hello: Hello) -> str | None:
        """Return the reason to refuse another node, or None. The node has proven the secret."""

    def hand_over(
        self,
        connection: ClientConnection,
        side: NodeSide,
        channel: TlsChannel | None,
        transport: asyncio.Transport,
    ) -> None:
        """Make a peer link of the connection of a node that was welcomed."""

    def rows(self, query: RowsQuery) -> Iterator[Rows]:
        """Return the answer to a query."""

    def history(self, query: HistoryQuery) -> History:
        """Return the last minutes of some rows."""

    async def status(self, query: StatusQuery) -> NodeStatus:
        """Return the node's status, with a digest if `digest_at` asks for one and it comes in time."""

    def closed(self, connection: ClientConnection) -> None:
        """Forget a connection that has ended or was handed over."""

    def refused(self, connection: ClientConnection, reason: str) -> None:
        """Log a refusal."""

    def failed(self, connection: ClientConnection, error: Exception) -> None:
        """Log a query that the node could not answer."""


class ClientConnection(asyncio.Protocol):
    """The server makes one for each connection that it accepts."""

    def __init__(self, owner: Owner) -> None:
        self.state = ServingState.HANDSHAKE
        self.end = End.UNEXPECTED
        self.address = "?"
        self.held_bytes = 0
        """The node's memory that this connection holds."""
        self.instance: str | None = None
        """Of the process, from its first report on."""
        self.sequence = 0
        """Of the last report received here."""
        self.wants_rows = False
        """It is a reader that has asked for more than the node's status."""
        self.move_to: str | None = None
        """The node to which the application is asked to move, with each acknowledgement."""
        self._owner = owner
        self._settings = owner.connection_settings
        self._side = NodeSide(owner.credentials.secret, nonce(), self._handshake_changed)
        self._channel = owner.credentials.channel(None)
        self._transport: asyncio.Transport | None = None
        self._inbox: deque[tuple[FromClient, int]] = deque()
        """Messages that wait, with their sizes on the wire."""
        self._inbox_bytes = 0
        """Their memory."""
        self._answering: asyncio.Task[None] | None = None
        """Kept because the event loop keeps no reference to it."""
        self._drained: asyncio.Future[None] | None = None
        self._state_since = self._received_at = owner.clock()
        self._frame_since: float | None = None
        """Since when a frame is incomplete."""
        self._stalled_since: float | None = None
        """Since when the client does not read its answers."""
        self._close_reason: str | None = None

    def __repr__(self) -> str:
        who = self.instance or self._side.role or "client"
        return f"<ClientConnection {self.address} of {who}: {self.state.value}, {self.held_bytes} bytes>"

    def _on(self, event: ConnectionEvent) -> None:
        """Change the state."""
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            raise RuntimeError(f"{event} in {self!r}")
        if state is not self.state:
            logger.debug("client %s: %s -> %s (%s)", self.address, self.state.value, state.value, event.value)
            self.state, self._state_since = state, self._owner.clock()

    def _handshake_changed(self, state: HandshakeState) -> None:
        logger.debug("client %s: handshake: %s", self.address, state.value)

    # --- called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        name = transport.get_extra_info("peername")
        self.address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"
        transport.set_write_buffer_limits(high=self._settings.unsent_bytes)
        logger.debug("client %s: accepted", self.address)
        _keep_alive(transport.get_extra_info("socket"), self._settings)
        if (reason := self._owner.accepted(self)) is not None:
            self.refuse(reason)

    def data_received(self, data: bytes) -> None:
        if self.state not in _ACTIVE:
            return
        self._received_at = self._owner.clock()
        try:
            if self._channel is not None:
                data = self._decrypt(data)
            buffered = self._side.buffered
            messages = self._receive(data)
        except ProtocolError as error:
            self.refuse(str(error))
            return
        incomplete = self._side.buffered
        if not incomplete:
            self._frame_since = None
        elif messages or self._frame_since is None:
            self._frame_since = self._received_at
        if messages:
            size = (buffered + len(data) - incomplete) // len(messages)
            self._inbox.extend((message, size) for message in messages)
            self._inbox_bytes += sum(memory_bytes(message, size) for message in messages)
            self._count_held()
            self._hurry()
        self._advance()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._stalled_since = self._owner.clock()
        self._control_reading()

    def resume_writing(self) -> None:
        self._stalled_since = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._control_reading()

    def connection_lost(self, error: Exception | None) -> None:
        # An unreachable host is silence, not the end of the process.
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            self.end = End.SILENCE
        logger.debug("client %s: closed: %s", self.address, self._reason_of_end(error))
        self._on(ConnectionEvent.LOST)
        self._release()
        self._owner.closed(self)

    def _reason_of_end(self, error: Exception | None) -> str:
        if self.end is End.GOODBYE:
            return "goodbye"
        if self._close_reason is not None:
            return self._close_reason
        if error is not None:
            return f"lost: {error}"
        return "left without a goodbye" if self._side.role == "application" else "left"

    # --- called by the server ---

    def acknowledge(self, instance: str, sequence: int, full: bool) -> None:
        """Acknowledge an applied report; with `full`, ask for a full one. Take up the next message."""
        self._write(self._side.frame(Ack(instance, sequence, full, self.move_to)))
        if self.state is ServingState.BUSY:
            self._on(ConnectionEvent.DONE)
        self._advance()

    def refuse(self, reason: str) -> None:
        """Send the reason and close."""
        if self.state in _ACTIVE:
            reason = one_line(reason, self._settings.reason_characters)
            self._owner.refused(self, reason)
            self._refuse(reason)

    def send_away(self, reason: str, patience_seconds: float) -> None:
        """Refuse an application whose report has waited for that long, so that it tries another node."""
        waiting = self.state is ServingState.BUSY and self._side.role == "application"
        if waiting and self._owner.clock() - self._received_at >= patience_seconds:
            self.end = End.SILENCE
            self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        self._write(self._side.frame(Refuse(reason)))
        self.close(f"refused: {reason}")

    def close(self, reason: str = "the node closes it") -> None:
        """Close once all that was written is sent."""
        if self.state in _ACTIVE:
            self._stop(reason)
            if self._transport is not None:
                self._transport.close()

    def abort(self, reason: str = "the node closes it") -> None:
        """Close at once; bytes written may be lost."""
        if self.state is not ServingState.CLOSED:
            self._stop(reason)
        if self._transport is not None:
            self._transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if a deadline has passed. `now` is the server's clock."""
        settings = self._settings
        in_state = now - self._state_since
        stalled = 0.0 if self._stalled_since is None else now - self._stalled_since
        incomplete = 0.0 if self._inbox or self._frame_since is None else now - self._frame_since
        silent = 0.0
        if self._side.role == "application" and self.state is not ServingState.BUSY:
            silent = now - self._received_at
        if self.state is ServingState.CLOSING:
            if in_state > settings.close_seconds:
                self.abort()
        elif self._stalled_since is not None:
            if stalled > settings.drain_seconds:
                self._close_stalled()
        elif self.state is ServingState.HANDSHAKE:
            if in_state > settings.hello_seconds:
                self.refuse(f"no hello within {settings.hello_seconds:g} s")
        elif incomplete > settings.frame_seconds:
            self.end = End.SILENCE
            self.refuse(f"a frame has not been completed within {settings.frame_seconds:g} s")
        elif silent > self._owner.lease_seconds:
            self.end = End.SILENCE
            self.refuse(f"silent for longer than the lease, {self._owner.lease_seconds:g} s")

    def _close_stalled(self) -> None:
        self.end = End.SILENCE
        reason = f"it has not read its answers for {self._settings.drain_seconds:g} s"
        self._owner.refused(self, reason)
        self.abort(reason)

    # --- receiving ---

    def _decrypt(self, data: bytes) -> bytes:
        """Return the decrypted bytes, and send what TLS has to send. Raises ProtocolError."""
        assert self._channel is not None
        try:
            return self._channel.receive(data)
        finally:
            if self._channel.plain:
                self._channel = None  # the client speaks no TLS: the refusal goes in plain
            self._write(b"")

    def _receive(self, data: bytes) -> list[FromClient]:
        """Return the messages of a welcomed client; answer hello and proof. Raises ProtocolError."""
        messages = self._side.receive(data)
        while messages and self.state is ServingState.HANDSHAKE:
            message = messages[0]
            if isinstance(message, Hello):
                self._check_hello(message)
            if self._side.needs_proof:
                self._write(self._side.challenge(self._owner.service_name, self._owner.node_name))
            else:
                self._welcome()
                if self._side.role == "peer":
                    self._hand_over()
                    return []
            messages = self._side.receive(b"")
        return messages

    def _check_hello(self, hello: Hello) -> None:
        logger.debug(
            "client %s: hello: version %d, %s %s, service %r",
            self.address,
            hello.version,
            one_line(hello.role, 64),
            one_line(hello.client, 256),
            hello.service,
        )
        reason = self._side.check(hello, self._owner.service_name)
        if reason is not None:
            raise ProtocolError(reason)

    def _welcome(self) -> None:
        hello = self._side.hello
        assert hello is not None
        if hello.role == "peer" and (reason := self._owner.peer_refusal(hello)) is not None:
            raise ProtocolError(reason)
        self._write(self._side.welcome(self._owner.service_name, self._owner.node_name, __version__))
        proven = ", secret proven" if self._owner.credentials.secret is not None else ""
        logger.debug(
            "client %s: welcomed: %s %s%s", self.address, hello.role, one_line(hello.client, 256), proven
        )
        self._on(ConnectionEvent.PEER_WELCOMED if hello.role == "peer" else ConnectionEvent.WELCOMED)

    def _hand_over(self) -> None:
        """Leave the connection to the peer links."""
        assert self._transport is not None
        side, channel, transport = self._side, self._channel, self._transport
        self._transport = None
        self._release()
        self._owner.closed(self)
        self._owner.hand_over(self, side, channel, transport)

    # --- working on messages ---

    def _advance(self) -> None:
        """Take up waiting messages until one has to be waited for."""
        try:
            while self._inbox and self.state in (ServingState.IDLE, ServingState.LEAVING):
                message, size = self._inbox.popleft()
                self._inbox_bytes -= memory_bytes(message, size)
                self._count_held()
                self._take_up(message, size)
        except ProtocolError as error:
            self.refuse(str(error))
        self._control_reading()

    def _take_up(self, message: FromClient, wire_bytes: int) -> None:
        if self.state is ServingState.LEAVING:
            raise ProtocolError("a message after goodbye")
        if isinstance(message, Report | Goodbye):
            if self.instance not in (None, message.instance):
                raise ProtocolError(
                    "another instance on the same connection: one connection is for one process"
                )
            if isinstance(message, Report):
                self._on(ConnectionEvent.REQUEST)
                self.instance, self.sequence = message.instance, message.sequence
                self._owner.reported(self, message, wire_bytes)
                self._hurry()
            else:
                self._on(ConnectionEvent.GOODBYE)
                self.end = End.GOODBYE
                sequence = message.sequence if self.instance is None else self.sequence
                self._owner.departed(self, message.instance, sequence)
        else:
            assert not isinstance(message, Hello | Proof)
            self._on(ConnectionEvent.REQUEST)
            self.wants_rows = self.wants_rows or not isinstance(message, StatusQuery)
            self._answering = asyncio.get_running_loop().create_task(self._answer(message))

    def _hurry(self) -> None:
        """A process that says goodbye waits for its last report to be applied."""
        if self.state is ServingState.BUSY and self._inbox and isinstance(self._inbox[-1][0], Goodbye):
            self._owner.hurry()

    async def _answer(self, query: Question) -> None:
        try:
            if isinstance(query, StatusQuery):
                status = await self._owner.status(query)
                self._write(self._side.frame(status))
            elif isinstance(query, HistoryQuery):
                self._write(self._side.frame(self._owner.history(query)))
            else:
                for rows in self._owner.rows(query):
                    self._write(self._side.frame(rows))
                    await self._drain()
                    if self.state is not ServingState.BUSY:
                        return
        except Exception as error:
            self._owner.failed(self, error)
            self.refuse("the node could not answer this query: see its log")
        if self.state is ServingState.BUSY:
            self._on(ConnectionEvent.DONE)
        self._advance()

    async def _drain(self) -> None:
        """Wait until the client has taken most of what was written; give other tasks a turn."""
        if self._stalled_since is not None and self.state in _ACTIVE:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        else:
            await asyncio.sleep(0)

    # --- sending, reading, memory ---

    def _write(self, data: bytes) -> None:
        if self.state in _ACTIVE and self._transport is not None:
            if self._channel is not None:
                self._channel.send(data)
                data = self._channel.outgoing()
            if data:
                self._transport.write(data)
            self._count_held()

    def _control_reading(self) -> None:
        """Read only while no message waits and the client reads its answers."""
        if self._transport is not None and self.state in _ACTIVE:
            if self._inbox or self._stalled_since is not None:
                self._transport.pause_reading()
            elif not self._transport.is_reading():
                self._received_at = self._owner.clock()
                if self._frame_since is not None:
                    self._frame_since = self._received_at
                self._transport.resume_reading()
        self._count_held()

    def _count_held(self) -> None:
        held = 0
        if self.state in _ACTIVE:
            held = self._side.buffered + self._inbox_bytes
            if self._channel is not None:
                held += self._channel.pending
            if self._transport is not None:
                held += self._transport.get_write_buffer_size()
        if held != self.held_bytes:
            change, self.held_bytes = held - self.held_bytes, held
            self._owner.held_changed(self, change)

    def _stop(self, reason: str) -> None:
        """Receive and send nothing more."""
        if self._close_reason is None:
            self._close_reason = reason
        self._on(ConnectionEvent.CLOSE)
        self._release()

    def _release(self) -> None:
        """Free the buffers."""
        self._inbox.clear()
        self._inbox_bytes = 0
        self._side = NodeSide()
        self._channel = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._count_held()


def _keep_alive(connection: socket.socket | None, settings: ConnectionSettings) -> None:
    """Have the system notice an unreachable host."""
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", settings.keepalive_idle_seconds),
        ("TCP_KEEPINTVL", settings.keepalive_interval_seconds),
        ("TCP_KEEPCNT", settings.keepalive_probes),
    ):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

"""One client's connection to this node: an application that reports, or a reader that asks.

The rules it keeps:

- One message of a client is worked on at a time: a report until it has been applied, a query
  until its rows are sent. What came beyond it waits, and meanwhile nothing is read: who floods
  is held back by TCP, and the node does not grow.
- One instance per connection: the first report says which.
- Any ProtocolError ends this one connection: the client is told why and it is logged.
- TLS and the proof of the secret come before anything else is looked at, within the time for the
  hello and its limits; a client whose TLS has failed is told so by TLS.
- Deadlines (hello, a frame begun, answers not read, silence) are checked by the server's sweep,
  so that a connection costs no timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from connmon import __version__
from connmon.errors import ProtocolError, one_line
from connmon.protocol.credentials import Credentials, nonce
from connmon.protocol.frames import Ack, Goodbye, Hello, NodeSide, Proof, Refuse
from connmon.protocol.queries import History, HistoryQuery, NodeStatus, Question, RowsQuery, StatusQuery
from connmon.protocol.reports import Report
from connmon.protocol.rows import Rows

if TYPE_CHECKING:
    from connmon.protocol.tls import Channel

logger = logging.getLogger(__name__)

#: Seconds that a client has for its hello, for a frame it has begun, for reading its answers,
#: and for taking the last bytes of a connection that the node closes.
HELLO_TIME: Final = 5.0
FRAME_TIME: Final = 30.0
DRAIN_TIME: Final = 30.0
CLOSE_TIME: Final = 5.0
#: Bytes that may wait to be sent on one connection before the node stops producing more.
WRITE_HIGH: Final = 256 * 1024
#: TCP keepalive: seconds idle, seconds between probes, probes.
KEEPALIVE: Final = (15, 5, 3)
#: Characters of a reason, in an answer or in the log.
REASON_LENGTH: Final = 400

#: What one pool and one connection of a report take in memory at least, whatever their size on
#: the wire (20 and 12 bytes will do), and one number of a closed one.
POOL_BYTES: Final = 1000
CONNECTION_BYTES: Final = 400
NUMBER_BYTES: Final = 8
#: And one count of a histogram (3 bytes on the wire).
COUNT_BYTES: Final = 100

Message: TypeAlias = "Hello | Proof | Report | Goodbye | Question"


def footprint(message: Message, size: int) -> int:
    """Return about how many bytes of memory a message takes that had `size` bytes on the wire."""
    if not isinstance(message, Report):
        return size
    return (
        size
        + POOL_BYTES * len(message.pools)
        + CONNECTION_BYTES * len(message.connections)
        + NUMBER_BYTES * (len(message.closed_pools) + len(message.closed_connections))
        + COUNT_BYTES * sum([len(counts) for pool in message.pools for counts in pool.times])
    )


class Owner(Protocol):
    """What a link needs of the server."""

    clock: Callable[[], float]

    @property
    def service_name(self) -> str: ...
    @property
    def node_name(self) -> str: ...
    @property
    def lease(self) -> float: ...
    @property
    def credentials(self) -> Credentials: ...

    def joined(self, link: Link) -> str | None:
        """A client has connected. Returns why it has to go, or None."""

    def weighed(self, link: Link, change: int) -> None:
        """The bytes that the link holds have changed by so many."""

    def reported(self, link: Link, report: Report, size: int) -> None:
        """A report of `size` bytes waits to be applied; `Link.acknowledge` is to follow."""

    def departed(self, link: Link, instance: str, sequence: int) -> None:
        """The process has said goodbye; `Link.close` is to follow."""

    def hurry(self) -> None:
        """A process waits for what was reported, since it ends: do not gather for long."""

    def peer_refusal(self, hello: Hello) -> str | None:
        """Another node has connected and proven what it has to. Returns why it has to go, or None."""

    def adopt(
        self, link: Link, side: NodeSide, channel: Channel | None, transport: asyncio.Transport
    ) -> None:
        """The connection is another node's, which was welcomed: it is the link's no more."""

    def rows(self, query: RowsQuery) -> Iterator[Rows]:
        """The answer to a query."""

    def history(self, query: HistoryQuery) -> History:
        """The last minutes of some rows."""

    async def status(self, query: StatusQuery) -> NodeStatus:
        """What this node says of itself; may take as long as `digest_at` needs."""

    def left(self, link: Link) -> None:
        """The connection has ended."""

    def refused(self, link: Link, reason: str) -> None:
        """The link has been told no; for the log."""

    def failed(self, link: Link, error: Exception) -> None:
        """A query could not be answered for a reason that is the node's; for the log."""


class Link(asyncio.Protocol):
    """One connection; made by the server for each client that connects."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._side = NodeSide(owner.credentials.secret, nonce())
        self._channel = owner.credentials.channel(None)
        self._transport: asyncio.Transport | None = None
        self._inbox: deque[tuple[Message, int]] = deque()
        self._inbox_bytes = 0
        self._busy = False
        self._answering: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._opened = self._heard = owner.clock()
        self._frame_since: float | None = None
        self._stalled_since: float | None = None
        self._closing_since: float | None = None
        self.peer = "?"
        self.held = 0
        """Bytes that this connection holds of the node's memory."""
        self.instance: str | None = None
        self.sequence = 0
        """Of the last report received here."""
        self.goodbye = False
        self.asked = False
        """It is a reader that has asked for rows."""
        self.elsewhere: str | None = None
        """The node that the application is asked to go to."""
        self.silent = False
        """Ended because nothing was heard, which does not say that the process has ended."""

    # --- from asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        logger.debug("client %s: connected", self.peer)
        _keep_alive(transport.get_extra_info("socket"))
        if (reason := self._owner.joined(self)) is not None:
            self.refuse(reason)

    def data_received(self, data: bytes) -> None:
        if self._closing_since is not None:
            return
        self._heard = self._owner.clock()
        try:
            if self._channel is not None:
                data = self._decrypt(data)
            before = self._side.buffered
            messages = self._receive(data)
        except ProtocolError as error:
            self.refuse(str(error))
            return
        after = self._side.buffered
        if not after:
            self._frame_since = None
        elif messages or self._frame_since is None:
            self._frame_since = self._heard
        if messages:
            size = (before + len(data) - after) // len(messages)
            self._inbox.extend((message, size) for message in messages)
            self._inbox_bytes += sum(footprint(message, size) for message in messages)
            self._weigh()
            self._hurry()
        self._advance()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._stalled_since = self._owner.clock()
        self._flow()

    def resume_writing(self) -> None:
        self._stalled_since = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._flow()

    def connection_lost(self, error: Exception | None) -> None:
        # The host cannot be reached: that is silence, not the end of the process.
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            self.silent = True
        logger.debug("client %s: %s", self.peer, self._ending(error))
        self._shut()
        self._owner.left(self)

    def _ending(self, error: Exception | None) -> str:
        """Return why the connection has ended."""
        if self.goodbye:
            return "left with a goodbye"
        if self._closing_since is not None:
            return "closed"
        if error is not None:
            return f"lost: {error}"
        return "left without a goodbye" if self._side.role == "application" else "left"

    # --- from the server ---

    def acknowledge(self, instance: str, sequence: int, full: bool) -> None:
        """The report was applied, or (`full`) a full one is wanted: tell the client, go on."""
        self._write(self._side.frame(Ack(instance, sequence, full, self.elsewhere)))
        self._busy = False
        self._advance()

    def refuse(self, reason: str) -> None:
        """Say why and close."""
        if self._closing_since is None:
            reason = one_line(reason, REASON_LENGTH)
            self._owner.refused(self, reason)
            self._write(self._side.frame(Refuse(reason)))
            self.close()

    def give_up(self, reason: str, patience: float) -> None:
        """Have an application whose report has waited for `patience` seconds try another node."""
        if self._side.role == "application" and self._busy and self._closing_since is None:
            if self._owner.clock() - self._heard < patience:
                return
            self.silent = True  # the process goes on
            self._write(self._side.frame(Refuse(reason)))
            self.close()

    def close(self) -> None:
        """Close as soon as what was written is sent."""
        if self._closing_since is None:
            self._shut()
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """Close at once; what was written may be lost."""
        self._shut()
        if self._transport is not None:
            self._transport.abort()

    def check(self, now: float) -> None:
        """Close if a deadline has passed."""
        if self._closing_since is not None:
            if now - self._closing_since > CLOSE_TIME:
                self.abort()
        elif self._stalled_since is not None:
            if now - self._stalled_since > DRAIN_TIME:
                self.silent = True
                self._owner.refused(self, f"it has not read its answers for {DRAIN_TIME:g} s")
                self.abort()
        elif self._side.role is None:
            if now - self._opened > HELLO_TIME:
                self.refuse(f"no hello within {HELLO_TIME:g} s")
        elif not self._inbox and self._frame_since is not None and now - self._frame_since > FRAME_TIME:
            self.silent = True
            self.refuse(f"a frame has not been completed within {FRAME_TIME:g} s")
        elif self._side.role == "application" and not self._busy and now - self._heard > self._owner.lease:
            self.silent = True
            self.refuse(f"silent for longer than the lease, {self._owner.lease:g} s")

    # --- inside ---

    def _decrypt(self, data: bytes) -> bytes:
        """Return what the client means by these bytes; tell it what TLS has to tell. Raises ProtocolError."""
        assert self._channel is not None
        try:
            return self._channel.receive(data)
        finally:
            if self._channel.plain:
                self._channel = None  # it is told why in its own words
            self._write(b"")

    def _receive(self, data: bytes) -> list[Message]:
        messages: list[Message] = list(self._side.receive(data))
        while messages and self._side.role is None:  # a hello, and where there is a secret a proof
            if isinstance(hello := messages[0], Hello):
                reason = self._side.check(hello, self._owner.service_name)
                if reason is not None:
                    raise ProtocolError(reason)
            known = self._side.hello
            last = self._owner.credentials.secret is None or isinstance(messages[0], Proof)
            if last and known is not None and known.role == "peer":
                reason = self._owner.peer_refusal(known)
                if reason is not None:
                    raise ProtocolError(reason)
            if self._side.needs_proof:
                self._write(self._side.challenge(self._owner.service_name, self._owner.node_name))
            else:
                self._write(self._side.welcome(self._owner.service_name, self._owner.node_name, __version__))
            if self._side.role is not None and known is not None:
                logger.debug(
                    "client %s: welcomed: %s %s%s", self.peer, known.role, one_line(known.client, 256),
                    ", proven" if self._owner.credentials.secret is not None else "",
                )  # fmt: skip
            if self._side.role == "peer":
                self._hand_over()
                return []
            messages = list(self._side.receive(b""))
        return messages

    def _hand_over(self) -> None:
        """Leave the connection to the links between the nodes."""
        assert self._transport is not None
        side, channel, transport = self._side, self._channel, self._transport
        self._transport = None
        self._shut()
        self._owner.left(self)
        self._owner.adopt(self, side, channel, transport)

    def _advance(self) -> None:
        """Work on the messages received until one has to be waited for."""
        try:
            while self._inbox and not self._busy and self._closing_since is None:
                message, size = self._inbox.popleft()
                self._inbox_bytes -= footprint(message, size)
                self._weigh()
                self._handle(message, size)
        except ProtocolError as error:
            self.refuse(str(error))
        self._flow()

    def _handle(self, message: Message, size: int) -> None:
        if self.goodbye:
            raise ProtocolError("a message after goodbye")
        if not isinstance(message, Report | Goodbye | Hello | Proof):
            self._busy = True
            self.asked = self.asked or not isinstance(message, StatusQuery)
            self._answering = asyncio.get_running_loop().create_task(self._answer(message))
            return
        assert isinstance(message, Report | Goodbye)
        if self.instance not in (None, message.instance):
            raise ProtocolError("another instance on the same connection: one connection is for one process")
        if isinstance(message, Report):
            self.instance, self.sequence = message.instance, message.sequence
            self._busy = True
            self._owner.reported(self, message, size)
            self._hurry()
        else:
            self.goodbye = True
            sequence = message.sequence if self.instance is None else self.sequence
            self._owner.departed(self, message.instance, sequence)

    def _hurry(self) -> None:
        """A process that says goodbye waits for its last report to be applied."""
        if self._busy and self._inbox and isinstance(self._inbox[-1][0], Goodbye):
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
                    if self._closing_since is not None:
                        return
        except Exception as error:
            self._owner.failed(self, error)
            self.refuse("the node could not answer this query: see its log")
        self._busy = False
        self._advance()

    async def _drain(self) -> None:
        """Wait until the client has taken most of what was written; let others go on meanwhile."""
        if self._stalled_since is not None and self._closing_since is None:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        else:
            await asyncio.sleep(0)

    def _write(self, data: bytes) -> None:
        if self._closing_since is None and self._transport is not None:
            if self._channel is not None:
                self._channel.send(data)
                data = self._channel.outgoing()
            if data:
                self._transport.write(data)
            self._weigh()

    def _flow(self) -> None:
        """Read on only when nothing that was read before still waits."""
        if self._transport is not None and self._closing_since is None:
            if self._inbox or self._stalled_since is not None:
                self._transport.pause_reading()
            elif not self._transport.is_reading():
                self._heard = self._owner.clock()
                if self._frame_since is not None:
                    self._frame_since = self._heard
                self._transport.resume_reading()
        self._weigh()

    def _weigh(self) -> None:
        now = 0
        if self._closing_since is None:
            now = self._side.buffered + self._inbox_bytes
            if self._channel is not None:
                now += self._channel.pending
            if self._transport is not None:
                now += self._transport.get_write_buffer_size()
        if now != self.held:
            change, self.held = now - self.held, now
            self._owner.weighed(self, change)

    def _shut(self) -> None:
        """Forget what was received; nothing is read or written from now."""
        if self._closing_since is None:
            self._closing_since = self._owner.clock()
        self._inbox.clear()
        self._inbox_bytes = 0
        self._side = NodeSide()
        self._channel = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._weigh()


def _keep_alive(connection: socket.socket | None) -> None:
    """Have the system find out about a host that is gone."""
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), KEEPALIVE, strict=True):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

"""The links between the nodes of a group: their messages in connmon's own frames on the one port.

The rules it keeps:

- One link per pair. The node whose name comes first dials, every `RETRY` seconds; the other one
  dials too when there was none for `LATE` seconds (the first may be unable to get through).
- The hello says who it is, which run of it (`boot`), and which nodes it believes there are; what
  does not fit is refused with a reason, which is logged on both sides. A second node under a
  name is refused while the first one is heard of.
- Messages of a node count only while they come over its present link, in their order.
- A link that has nothing to carry carries a ping every `PING` seconds; one on which nothing was
  heard for `DEAD` seconds is dropped, as is one that takes nothing of what waits for it.
- Nothing here ever waits: what a link does not take is left out, and Raft sends it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

import msgspec

from connmon.cluster.log_limit import system_reason
from connmon.cluster.raft import messages
from connmon.cluster.state.records import LIMITS
from connmon.config import Address, Node, Service
from connmon.errors import PeerError, ProtocolError, one_line
from connmon.protocol.credentials import OPEN, Credentials, TlsChannel, nonce
from connmon.protocol.frames import VERSION, ClientSide, Hello, NodeSide, Refuse, Welcome

logger = logging.getLogger(__name__)

#: Seconds between two attempts to dial; without a link until the other side dials too; for one
#: attempt, hello included.
RETRY: Final = 0.5
LATE: Final = 2.0
OPENING: Final = 3.0
#: Seconds between two signs of life, and without one until a link is dropped.
PING: Final = 0.4
DEAD: Final = 3.0
#: Seconds within which the first node of a name has to have been heard of for a second one to be
#: refused rather than to take its place.
ALIVE: Final = 1.5
#: Bytes that wait to be sent on a link before it carries signs of life only, and before it is dropped.
ROOM: Final = 1024 * 1024
OUTPUT_LIMIT: Final = 64 * 1024 * 1024
#: Seconds between two equal log lines about a node.
QUIET: Final = 60.0
REASON_LENGTH: Final = 1000
#: Changes where nodes of two versions cannot be in one group: messages, batches, state.
REVISION: Final = 1

_framed: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(messages.Framed | Refuse)


class Member(Protocol):
    """What the links need of the group."""

    def receive(self, name: str, message: messages.Message) -> None: ...
    def link_up(self, name: str) -> None: ...
    def link_down(self, name: str) -> None: ...
    def roomy(self, name: str) -> None: ...


def cluster_text(service: Service) -> str:
    """Return what all nodes of a group must have alike, as a text for people and for comparison."""
    nodes = " ".join(sorted(f"{node.name}={node.address}" for node in service.nodes))
    if len(nodes) > 1500:
        nodes = f"{len(service.nodes)} nodes, {hashlib.blake2b(nodes.encode(), digest_size=8).hexdigest()}"
    alike = (VERSION, REVISION, tuple(LIMITS))
    return f"{nodes} (rules {hashlib.blake2b(repr(alike).encode(), digest_size=4).hexdigest()})"


class _Link(asyncio.Protocol):
    """One connection to another node, from its hello on."""

    def __init__(
        self,
        peers: Peers,
        name: str,
        side: ClientSide | NodeSide,
        channel: TlsChannel | None,
        boot: str = "",
    ) -> None:
        self._peers = peers
        self.name = name
        self.boot = boot
        self._side = side
        self._channel = channel
        self._joiner = messages.Joiner()
        self._transport: asyncio.Transport | None = None
        self.where = "?"
        self.heard = self.sent = self.opened = self.moved = peers.clock()
        self.paused = False
        self.open = isinstance(side, NodeSide)
        """The hello has been answered."""
        self.ended = asyncio.get_running_loop().create_future()

    # --- from asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.take(transport)
        if isinstance(self._side, ClientSide):
            self._write(self._side.hello())

    def take(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=ROOM)
        name = transport.get_extra_info("peername")
        self.where = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"

    def data_received(self, data: bytes) -> None:
        self.heard = self._peers.clock()
        try:
            if self._channel is not None:
                data = self._channel.receive(data)
                self._write(b"")
            messages: list[Any] = list(self._side.receive(data))
            if isinstance(self._side, ClientSide) and (reply := self._side.reply()):
                self._write(reply)
            for message in messages:
                self.handle(message)
        except PeerError as error:
            self._write(b"")  # what TLS has to say to the other side about it
            self._peers.complain(self.name, f"the link to {self.where} is dropped: {error}")
            self.abort()
        except Exception:
            logger.exception("a message of node %s cannot be handled; the link is dropped", self.name)
            self.abort()
        self._peers.wake()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.paused = True
        self.moved = self._peers.clock()

    def resume_writing(self) -> None:
        self.paused = False
        self._peers.roomy(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        self._peers.lost(self)

    # --- from Peers ---

    def handle(self, message: Any) -> None:
        if isinstance(message, msgspec.Raw):
            try:
                message = _framed.decode(message)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise ProtocolError(f"a message that cannot be read: {error}") from None
        if isinstance(message, Welcome):
            if message.node != self.name:
                raise ProtocolError(f"{message.node!r} answers where {self.name!r} was expected")
            self.open = True
            self._peers.joined(self)
        elif isinstance(message, Refuse):
            raise PeerError(f"it says: {one_line(message.reason, REASON_LENGTH)}")
        elif not self.open:
            raise ProtocolError("a message before the welcome")
        elif isinstance(message, messages.Part):
            if (whole := self._joiner.add(message)) is not None:
                self._peers.received(self, whole)
        elif not isinstance(message, messages.Ping):
            self._peers.received(self, message)

    def send(self, message: messages.Framed) -> None:
        self._write(self._side.frame(message))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        if not self.ended.done():
            self.ended.set_result(None)
        self._peers.lost(self)

    def close(self) -> None:
        """Close when what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def check(self, now: float) -> None:
        """Drop the link where it is dead, else show that this side is not."""
        if not self.open:
            if now - self.opened > OPENING:
                self._peers.complain(self.name, f"{self.where} has not answered within {OPENING:g} s")
                self.abort()
        elif now - self.heard > DEAD:
            self._peers.complain(self.name, f"nothing was heard from {self.where} for {DEAD:g} s")
            self.abort()
        elif self.waiting > OUTPUT_LIMIT or (self.paused and now - self.moved > 2 * DEAD):
            self._peers.complain(self.name, f"{self.where} does not take what is sent to it")
            self.abort()
        elif now - self.sent >= PING * 0.9:
            self.send(messages.Ping())

    @property
    def waiting(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self.sent = self._peers.clock()
            if self._channel is not None:
                self._channel.send(data)
                data = self._channel.outgoing()
            if data and not self._transport.is_closing():
                self._transport.write(data)


class Peers:
    """The links of one node to all others of its service. Used on one running event loop.

    `credentials` are those of a client, for dialing. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        service: Service,
        node: Node,
        *,
        credentials: Credentials = OPEN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._service = service.name
        self._node = node.name
        self._addresses = {other.name: other.address for other in service.nodes if other.name != node.name}
        self._cluster = cluster_text(service)
        self._boot = secrets.token_hex(8)
        self._credentials = credentials
        self._links: dict[str, _Link] = {}
        self._opening: set[_Link] = set()
        self._down_since = dict.fromkeys(self._addresses, clock())
        self._told: dict[str, tuple[str, float]] = {}
        self._member: Member | None = None
        self._wake: Callable[[], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # --- what the replica uses (raft.Carrier) ---

    @property
    def names(self) -> tuple[str, ...]:
        """The other nodes."""
        return tuple(self._addresses)

    def start(self, member: Member, wake: Callable[[], None]) -> None:
        """Begin to dial. `wake` is called after messages: something may be due."""
        self._member, self._wake = member, wake
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._dial(name, at)) for name, at in self._addresses.items()]
        self._tasks.append(loop.create_task(self._pulse()))

    def close(self) -> None:
        """Drop all links; what was written is still sent."""
        self._member = self._wake = None
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        for link in [*self._links.values(), *self._opening]:
            link.close()
        self._links.clear()

    def send(self, name: str, message: messages.Message) -> bool:
        link = self._links.get(name)
        if link is None:
            return False
        for part in messages.cut(message):
            link.send(part)
        return True

    def room(self, name: str) -> bool:
        link = self._links.get(name)
        return link is not None and not link.paused

    def renew(self, credentials: Credentials) -> None:
        """Dial with these certificates from now on; the secret stays."""
        self._credentials = replace(self._credentials, tls=credentials.tls)

    # --- what the server uses: nodes that dial this one ---

    def refusal(self, hello: Hello) -> str | None:
        """Return why this hello of another node cannot be welcomed, or None."""
        name = hello.client
        if name == self._node:
            return f"this is node {name!r}: two nodes were started under one name, or one dials itself"
        if name not in self._addresses:
            nodes = ", ".join(sorted([*self._addresses, self._node]))
            return f"node {name!r} is not in this node's config; its nodes are: {nodes}"
        if hello.cluster != self._cluster:
            return (
                f"the config files differ, or the versions of connmon: {hello.cluster} there, "
                f"{self._cluster} here; all nodes need the same"
            )
        current = self._links.get(name)
        if current is not None and current.boot != hello.boot and self.clock() - current.heard < ALIVE:
            return f"node {name!r} is connected from {current.where} already: two nodes under one name"
        return None

    def adopt(
        self, side: NodeSide, channel: TlsChannel | None, transport: asyncio.Transport, messages: list[Any]
    ) -> None:
        """Take over a connection whose hello was welcomed, and what came after it. Raises ProtocolError."""
        assert side.hello is not None
        link = _Link(self, side.hello.client, side, channel, side.hello.boot)
        link.take(transport)
        transport.set_protocol(link)
        self._opening.add(link)
        self.joined(link)
        for message in messages:
            link.handle(message)

    # --- what links use ---

    def joined(self, link: _Link) -> None:
        """The link can be used: it is the node's present one from now."""
        self._opening.discard(link)
        if self._member is None:
            link.abort()
            return
        former = self._links.pop(link.name, None)
        if former is not None:
            self._member.link_down(link.name)
            former.abort()
        self._links[link.name] = link
        self._told.pop(link.name, None)
        logger.info("node %s is linked (%s)", link.name, link.where)
        self._member.link_up(link.name)
        self.wake()

    def received(self, link: _Link, message: messages.Message) -> None:
        if self._links.get(link.name) is link and self._member is not None:
            self._member.receive(link.name, message)

    def roomy(self, link: _Link) -> None:
        if self._links.get(link.name) is link and self._member is not None:
            self._member.roomy(link.name)

    def lost(self, link: _Link) -> None:
        self._opening.discard(link)
        if self._links.get(link.name) is link:
            del self._links[link.name]
            self._down_since[link.name] = self.clock()
            logger.info("node %s is not linked any more (%s)", link.name, link.where)
            if self._member is not None:
                self._member.link_down(link.name)
                self.wake()

    def wake(self) -> None:
        if self._wake is not None:
            self._wake()

    def complain(self, name: str, reason: str) -> None:
        """Log what is wrong with a node, but not over and over."""
        told, at = self._told.get(name, ("", float("-inf")))
        now = self.clock()
        if reason != told or now - at > QUIET:
            self._told[name] = reason, now
            logger.warning("node %s: %s", name, reason)

    # --- inside ---

    async def _dial(self, name: str, address: Address) -> None:
        """Have a link to that node, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            mine = self._node < name or self.clock() - self._down_since[name] > LATE
            if mine and name not in self._links:
                try:
                    await self._open(loop, name, address)
                except (OSError, asyncio.TimeoutError, PeerError) as error:
                    said = system_reason(error) if isinstance(error, OSError) else str(error)
                    problem = one_line(said or type(error).__name__, REASON_LENGTH)
                    self.complain(name, f"{address} cannot be reached: {problem}")
                except Exception:
                    logger.exception("dialing node %s has failed; going on", name)
            await asyncio.sleep(RETRY * random.uniform(0.8, 1.2))

    async def _open(self, loop: asyncio.AbstractEventLoop, name: str, address: Address) -> None:
        side = ClientSide(
            "peer",
            self._service,
            self._node,
            self._credentials.secret,
            nonce(),
            boot=self._boot,
            cluster=self._cluster,
        )
        link = _Link(self, name, side, self._credentials.channel(address.host))
        await asyncio.wait_for(
            loop.create_connection(lambda: link, address.host, address.port),
            OPENING,
        )
        if not link.open:
            self._opening.add(link)
        await link.ended

    async def _pulse(self) -> None:
        """Ping, and find out who is dead."""
        before = self.clock()
        while True:
            await asyncio.sleep(PING / 4)
            now = self.clock()
            late, before = now - before > 1.0, now
            for link in [*self._links.values(), *self._opening]:
                if late:  # this process stood still: the others are to be heard first
                    link.heard = link.opened = link.moved = now
                link.check(now)

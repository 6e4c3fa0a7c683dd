"""The peer links between the nodes of a group: their messages in connmon's own frames on the one port.

The rules kept here:

- One link per pair. The node whose name comes first dials, every `dial_retry_seconds`; the other one dials
  too if there was no link for `late_seconds` (the first may be unable to get through).
- The hello has the node's name, which run of it this is (`boot`), and the nodes of its config; what does not
  fit is refused with a reason, which is logged on both sides. A second node under a name is refused while the
  first one is heard of.
- Messages of a node count only while they come over its present link, in their order.
- A link that has nothing to carry carries a ping every `ping_seconds`. One on which nothing was heard for
  `dead_seconds` is dropped, as is one that takes nothing of what waits for it.
- Nothing here ever waits: what a link does not take is left out, and Raft sends it again.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgspec

from connmon.cluster.log_limit import system_reason
from connmon.cluster.raft import messages
from connmon.cluster.state.settings import LIMITS
from connmon.config import Address, Node, Service
from connmon.errors import PeerError, ProtocolError, one_line
from connmon.protocol.credentials import OPEN, Credentials, TlsChannel, nonce
from connmon.protocol.frames import VERSION, ClientSide, Hello, NodeSide, Refuse, Welcome

logger = logging.getLogger(__name__)

#: Longest reason that is logged, in characters.
REASON_CHARACTERS: Final = 1000
#: Changes when nodes of two versions cannot be in one group: messages, batches, state.
REVISION: Final = 2

#: Stands in the cluster text between the nodes and the digest of what their versions have to have in common.
_RULES: Final = " (rules "

_framed: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(messages.Framed | Refuse)


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """Timings and sizes of peer links. The defaults are those of connmond."""

    dial_retry_seconds: float = 0.5
    """Between two attempts to dial."""
    late_seconds: float = 2.0
    """Without a link for so long, the other side dials too."""
    opening_seconds: float = 3.0
    """For one attempt, hello included."""
    ping_seconds: float = 0.4
    """Between two pings on a link that has nothing else to carry."""
    dead_seconds: float = 3.0
    """A link on which nothing was heard for so long is dropped."""
    alive_seconds: float = 1.5
    """A second node under a name is refused if the first was heard of within this; else it replaces it."""
    room_bytes: int = 1024 * 1024
    """Unsent bytes above which a link carries heartbeats only..."""
    output_bytes: int = 64 * 1024 * 1024
    """...and above which it is dropped."""
    warning_interval_seconds: float = 60.0
    """Between two equal log lines about a node."""


class LinkState(enum.Enum):
    """The states of a peer link."""

    OPENING = "opening"
    """This node dials; the hello was not answered yet."""
    OPEN = "open"
    """Both sides know each other."""
    CONGESTED = "congested"
    """Open, but more than `room_bytes` wait to be sent: only heartbeats are added."""
    CLOSED = "closed"


LINK_CHANGES: Final[Mapping[LinkState, frozenset[LinkState]]] = {
    # A link that another node dialed begins as OPEN.
    LinkState.OPENING: frozenset({LinkState.OPEN, LinkState.CLOSED}),
    LinkState.OPEN: frozenset({LinkState.CONGESTED, LinkState.CLOSED}),
    LinkState.CONGESTED: frozenset({LinkState.OPEN, LinkState.CLOSED}),
    LinkState.CLOSED: frozenset(),
}


class PeerGroup(Protocol):
    """What the links need of the group."""

    def receive(self, name: str, message: messages.Message) -> None: ...
    def link_up(self, name: str) -> None: ...
    def link_down(self, name: str) -> None: ...
    def roomy(self, name: str) -> None: ...


def cluster_text(service: Service) -> str:
    """Return what all nodes of a group must have in common, as a text for people and for comparison."""
    nodes = " ".join(sorted(f"{node.name}={node.address}" for node in service.nodes))
    if len(nodes) > 1500:
        nodes = f"{len(service.nodes)} nodes, {hashlib.blake2b(nodes.encode(), digest_size=8).hexdigest()}"
    alike = (VERSION, REVISION, tuple(LIMITS))
    return f"{nodes}{_RULES}{hashlib.blake2b(repr(alike).encode(), digest_size=4).hexdigest()})"


def _difference(there: str, here: str) -> str:
    """Return why nodes with these two cluster texts cannot be in one group, and what to do."""
    if there.rpartition(_RULES)[0] == here.rpartition(_RULES)[0]:
        return (
            f"the versions of connmon differ too much for one group: {there} there, {here} here; "
            "upgrade the older ones"
        )
    return (
        f"the config files differ, or the versions of connmon: {there} there, {here} here; "
        "all nodes need the same"
    )


class PeerLink(asyncio.Protocol):
    """One connection to another node."""

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
        """Which run of the other node this is; "" if this node has dialed it."""
        self.state = LinkState.OPEN if isinstance(side, NodeSide) else LinkState.OPENING
        self._side = side
        self._channel = channel
        self._joiner = messages.Joiner()
        self._transport: asyncio.Transport | None = None
        self.address = "?"
        """Where the other side is, as HOST:PORT."""
        self.heard_at = self.sent_at = self.opened_at = self.congested_at = peers.clock()
        self.ended = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<PeerLink {self.name} {self.address} {self.state.value} unsent={self.unsent_bytes}>"

    def _become(self, state: LinkState) -> None:
        if state is self.state:
            return
        if state not in LINK_CHANGES[self.state]:
            raise AssertionError(f"{self!r} cannot become {state.value}")
        logger.debug("link to node %s (%s): %s -> %s", self.name, self.address, self.state.value, state.value)
        self.state = state

    # --- from asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.take(transport)
        if isinstance(self._side, ClientSide):
            logger.debug("link to node %s (%s): %s", self.name, self.address, self.state.value)
            self._write(self._side.hello())

    def take(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=self._peers.settings.room_bytes)
        name = transport.get_extra_info("peername")
        self.address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._peers.clock()
        try:
            if self._channel is not None:
                data = self._channel.receive(data)
                self._write(b"")
            received: list[Any] = list(self._side.receive(data))
            if isinstance(self._side, ClientSide) and (reply := self._side.reply()):
                self._write(reply)
            for message in received:
                self.handle(message)
        except PeerError as error:
            self._write(b"")  # the alert of TLS, if there is one
            self._peers.complain(self.name, f"the link to {self.address} is dropped: {error}")
            self.abort()
        except Exception:
            logger.exception("a message of node %s cannot be handled; the link is dropped", self.name)
            self.abort()
        self._peers.wake()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self.state is LinkState.OPEN:  # while it opens, a hello is all that is sent
            self._become(LinkState.CONGESTED)
            self.congested_at = self._peers.clock()

    def resume_writing(self) -> None:
        if self.state is LinkState.CONGESTED:
            self._become(LinkState.OPEN)
            self._peers.roomy(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

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
            if self.state is not LinkState.OPENING:
                raise ProtocolError("a second welcome")
            self._become(LinkState.OPEN)
            self._peers.joined(self)
        elif isinstance(message, Refuse):
            raise PeerError(f"it says: {one_line(message.reason, REASON_CHARACTERS)}")
        elif self.state is LinkState.OPENING:
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
        self._end()

    def _end(self) -> None:
        self._become(LinkState.CLOSED)
        if not self.ended.done():
            self.ended.set_result(None)
        self._peers.lost(self)

    def close(self) -> None:
        """Close once everything written is sent."""
        if self._transport is not None:
            self._transport.close()

    def check(self, now: float) -> None:
        """Drop the link if it is dead, else send a ping if one is due."""
        settings = self._peers.settings
        congested = self.state is LinkState.CONGESTED
        if self.state is LinkState.OPENING:
            if now - self.opened_at > settings.opening_seconds:
                self._drop(f"{self.address} has not answered within {settings.opening_seconds:g} s")
        elif now - self.heard_at > settings.dead_seconds:
            self._drop(f"nothing was heard from {self.address} for {settings.dead_seconds:g} s")
        elif self.unsent_bytes > settings.output_bytes or (
            congested and now - self.congested_at > 2 * settings.dead_seconds
        ):
            self._drop(f"{self.address} does not take what is sent to it")
        elif now - self.sent_at >= settings.ping_seconds * 0.9:
            self.send(messages.Ping())

    def _drop(self, reason: str) -> None:
        self._peers.complain(self.name, reason)
        self.abort()

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self.sent_at = self._peers.clock()
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
        settings: PeerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or PeerSettings()
        self.clock = clock
        self._service = service.name
        self._node = node.name
        self._addresses = {other.name: other.address for other in service.nodes if other.name != node.name}
        self._cluster = cluster_text(service)
        self._boot = secrets.token_hex(8)
        self._credentials = credentials
        self._links: dict[str, PeerLink] = {}
        self._opening: set[PeerLink] = set()
        self._down_since = dict.fromkeys(self._addresses, clock())
        self._complaints: dict[str, tuple[str, float]] = {}
        """By node: what was last logged about it, and when."""
        self._group: PeerGroup | None = None
        self._wake: Callable[[], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Peers of {self._node} {[*self._links.values(), *self._opening]}>"

    # --- what the replica uses (`messages.Carrier`) ---

    @property
    def names(self) -> tuple[str, ...]:
        """The other nodes."""
        return tuple(self._addresses)

    def start(self, group: PeerGroup, wake: Callable[[], None]) -> None:
        """Begin to dial. `wake` is called after messages: something may be due."""
        self._group, self._wake = group, wake
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._dial(name, at)) for name, at in self._addresses.items()]
        self._tasks.append(loop.create_task(self._pulse()))

    def close(self) -> None:
        """Drop all links; what was written is still sent."""
        self._group = self._wake = None
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
        return link is not None and link.state is not LinkState.CONGESTED

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
            return _difference(hello.cluster, self._cluster)
        current = self._links.get(name)
        if (
            current is not None
            and current.boot != hello.boot
            and self.clock() - current.heard_at < self.settings.alive_seconds
        ):
            return f"node {name!r} is connected from {current.address} already: two nodes under one name"
        return None

    def adopt(
        self, side: NodeSide, channel: TlsChannel | None, transport: asyncio.Transport, pending: list[Any]
    ) -> None:
        """Take over a welcomed connection, and the messages after its hello. Raises ProtocolError."""
        assert side.hello is not None
        link = PeerLink(self, side.hello.client, side, channel, side.hello.boot)
        link.take(transport)
        transport.set_protocol(link)
        self._opening.add(link)
        self.joined(link)
        for message in pending:
            link.handle(message)

    # --- what links use ---

    def joined(self, link: PeerLink) -> None:
        """Make an open link the present one to its node."""
        self._opening.discard(link)
        if self._group is None:
            link.abort()
            return
        former = self._links.pop(link.name, None)
        if former is not None:
            self._group.link_down(link.name)
            former.abort()
        self._links[link.name] = link
        self._complaints.pop(link.name, None)
        logger.info("node %s is linked (%s)", link.name, link.address)
        self._group.link_up(link.name)
        self.wake()

    def received(self, link: PeerLink, message: messages.Message) -> None:
        if self._links.get(link.name) is link and self._group is not None:
            self._group.receive(link.name, message)

    def roomy(self, link: PeerLink) -> None:
        if self._links.get(link.name) is link and self._group is not None:
            self._group.roomy(link.name)

    def lost(self, link: PeerLink) -> None:
        self._opening.discard(link)
        if self._links.get(link.name) is link:
            del self._links[link.name]
            self._down_since[link.name] = self.clock()
            logger.info("node %s is not linked any more (%s)", link.name, link.address)
            if self._group is not None:
                self._group.link_down(link.name)
                self.wake()

    def wake(self) -> None:
        if self._wake is not None:
            self._wake()

    def complain(self, name: str, reason: str) -> None:
        """Log a problem with a node, and the same one once in `warning_interval_seconds`."""
        former, at = self._complaints.get(name, ("", float("-inf")))
        now = self.clock()
        if reason != former or now - at > self.settings.warning_interval_seconds:
            self._complaints[name] = reason, now
            logger.warning("node %s: %s", name, reason)

    # --- inside ---

    async def _dial(self, name: str, address: Address) -> None:
        """Dial that node whenever there is no link to it and it is this node's turn, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            mine = self._node < name or self.clock() - self._down_since[name] > self.settings.late_seconds
            if mine and name not in self._links:
                try:
                    await self._open(loop, name, address)
                except (OSError, asyncio.TimeoutError, PeerError) as error:
                    reason = system_reason(error) if isinstance(error, OSError) else str(error)
                    problem = one_line(reason or type(error).__name__, REASON_CHARACTERS)
                    self.complain(name, f"{address} cannot be reached: {problem}")
                except Exception:
                    logger.exception("dialing node %s has failed; going on", name)
            await asyncio.sleep(self.settings.dial_retry_seconds * random.uniform(0.8, 1.2))

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
        link = PeerLink(self, name, side, self._credentials.channel(address.host))
        await asyncio.wait_for(
            loop.create_connection(lambda: link, address.host, address.port),
            self.settings.opening_seconds,
        )
        if link.state is LinkState.OPENING:
            self._opening.add(link)
        await link.ended

    async def _pulse(self) -> None:
        """Send pings, and drop dead links."""
        before = self.clock()
        while True:
            await asyncio.sleep(self.settings.ping_seconds / 4)
            now = self.clock()
            late, before = now - before > 1.0, now
            for link in [*self._links.values(), *self._opening]:
                if late:  # this process stood still: what the others sent meanwhile comes first
                    link.heard_at = link.opened_at = link.congested_at = now
                link.check(now)

"""The node's one port: takes clients in, gathers what they report, answers what they ask.

The rules it keeps:

- Reports and departures of the last `GATHER` seconds go into one Batch, at once when idle. They
  are proposed in the order in which they came, and a report is acknowledged after it has
  been applied.
- The leader adds a Tick to its batches, at least every `TICK` seconds: the time that has passed
  by its own monotonic clock, bounded.
- A process that ends waits for its last report: for it the node gathers `HURRY` seconds at most.
- A connection that ends is a Departure of its instance: after a goodbye at once, otherwise after
  `GRACE` seconds unless the instance has reported on another connection here. Silence
  is not the end of a process: the state's lease judges that.
- Where there are several nodes, an application whose report waits here without quorum is told to try
  another one, and where this node has more applications than others, some are asked to go there.
- Nothing that clients do makes the node grow without bound: their number, the bytes held for
  them and the lines logged about them are limited. Who holds the most goes first.
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
from typing import TYPE_CHECKING, Final

from connmon.cluster import status
from connmon.cluster.batching import Intake, Waiting
from connmon.cluster.client_connection import Link, footprint
from connmon.cluster.log_limit import LimitNotices, Notices
from connmon.cluster.open_files import Room, current_limit, room
from connmon.cluster.raft.replica import ApplyError, Replica
from connmon.cluster.rebalance import Spread
from connmon.cluster.state import history, lookups
from connmon.cluster.state.answers import About
from connmon.cluster.state.digest import Digests
from connmon.config import Node, Service
from connmon.errors import ProtocolError
from connmon.protocol.batch import Batch, Departure, Tick
from connmon.protocol.credentials import OPEN, Credentials
from connmon.protocol.frames import Hello, NodeSide
from connmon.protocol.queries import (
    History,
    HistoryQuery,
    NodeStatus,
    RowsQuery,
    StatusQuery,
    UsersQuery,
    WaitsQuery,
)
from connmon.protocol.reports import CONNECTIONS_REPORTED, POOLS_REPORTED, Report
from connmon.protocol.rows import Rows

if TYPE_CHECKING:
    from connmon.protocol.tls import Channel

logger = logging.getLogger(__name__)

#: Seconds for which reports are gathered into one batch.
GATHER: Final = 0.1
#: The same where a process that ends waits for it.
HURRY: Final = 0.01
#: Seconds between two ticks of the leader, and the largest step of one.
TICK: Final = 0.5
LARGEST_STEP: Final = 2.0
#: Seconds that a process has to come back on another connection before it counts as ended.
GRACE: Final = 0.5
#: The same for one that was asked to go to another node: its next report comes there.
MOVING: Final = 5.0
#: Seconds for which a report waits at a node without quorum, before the application is told to try another.
PATIENCE: Final = 3.0
#: Seconds between two looks at whether the nodes have about as many applications each.
SPREAD: Final = 5.0
#: Seconds between two looks at the deadlines of all connections.
SWEEP: Final = 1.0
#: Bytes of reports in one batch; a larger report goes alone.
BATCH_BYTES: Final = 2 * 1024 * 1024
#: Bytes that all clients together may hold: received, waiting to be applied, waiting to be sent.
MEMORY: Final = 64 * 1024 * 1024
#: Connections accepted in one go, which asyncio does before it looks at any of them (so fewer than
#: `openfiles.OWN_FILES` by far), and connections that the system keeps until they are accepted.
ACCEPT: Final = 16
BACKLOG: Final = 1024
#: What a departure counts for in memory.
DEPARTURE_BYTES: Final = 256
#: Seconds that closing waits for clients to take what was written.
CLOSING: Final = 0.3
#: Seconds that a status waits for the version of the state whose digest is asked for.
DIGEST_WAIT: Final = 1.0


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so many seconds, with it set."""
    # Not wait_for: it can swallow a cancellation that comes when there is work.
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


class Server:
    """One node's port. `start` and `close` are called on one running event loop.

    `clock` is monotonic, in seconds; `boot` names this run of the node and must be new for each
    (random where it is not given); `clients` and `memory` (bytes) are the limits.
    """

    def __init__(
        self,
        service: Service,
        node: Node,
        replica: Replica,
        *,
        clock: Callable[[], float] = time.monotonic,
        boot: str | None = None,
        clients: Room | int | None = None,
        memory: int = MEMORY,
        credentials: Credentials = OPEN,
    ) -> None:
        self.clock = clock
        self.credentials = credentials
        """What clients that connect from now on have to have."""
        self._service = service
        self._node = node
        self._replica = replica
        self._boot = boot if boot is not None else secrets.token_hex(8)
        if clients is None:
            clients = room(current_limit())
        self._room = Room(clients, None) if isinstance(clients, int) else clients
        self._memory = memory
        self._notices = Notices(clock)
        self._limit_notices = LimitNotices(clock)
        self._forgotten: dict[str, int] = {}
        """What the state had forgotten at the last look."""
        self._listener: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._links: set[Link] = set()
        self._speaking: dict[str, Link] = {}
        """By instance: the connection on which it reported last."""
        self._grace: dict[str, asyncio.TimerHandle] = {}
        self._intake: Intake[Link] = Intake()
        self._work = asyncio.Event()
        self._hurried = asyncio.Event()
        """A process that ends waits for what is queued."""
        self._number = 0
        self._batch_at = float("-inf")
        self._tick_at: float | None = None
        """When the last tick was made; None while another node leads."""
        self._spread = Spread(node.name, random.Random(self._boot))
        self._spread_at = self._quorum_at = clock()
        self._digests = Digests(clock)
        self._past = history.Past()
        replica.on_applied = lambda _batch, _outcome: self._digests.moved(replica.state)
        self.on_command: Callable[[Batch, float], None] | None = None
        """Called after each batch of this node's with the seconds from proposing to applying it."""
        self._started = clock()
        self.held = 0
        """Bytes that clients hold of this node's memory."""
        self._closing = False

    # --- what the daemon uses ---

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def clients(self) -> int:
        """How many connections there are."""
        return len(self._links)

    async def start(self) -> None:
        """Listen, join the group and begin to work. Raises OSError where it cannot listen."""
        loop = asyncio.get_running_loop()
        bind = self._node.bind
        self._listener = await loop.create_server(
            lambda: Link(self), bind.host, bind.port, reuse_address=True, backlog=ACCEPT
        )
        for each in self._listener.sockets:
            # asyncio has one number for both; the system takes the later word.
            with socket.socket(fileno=os.dup(each.fileno())) as twin:
                twin.listen(BACKLOG)
        self._replica.start()
        self._tasks = [loop.create_task(work()) for work in (self._pump, self._sweep, self._remember)]

    async def close(self) -> None:
        """Stop listening, close every connection, leave the group; takes at most about `CLOSING` seconds."""
        self._closing = True
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in self._grace.values():
            timer.cancel()
        for link in list(self._links):
            link.close()
        deadline = self.clock() + CLOSING
        while self._links and self.clock() < deadline:
            await asyncio.sleep(0.01)
        for link in list(self._links):
            link.abort()
        await asyncio.sleep(0)
        self._replica.close()

    # --- what links use (link.Owner) ---

    @property
    def service_name(self) -> str:
        return self._service.name

    @property
    def node_name(self) -> str:
        return self._node.name

    @property
    def lease(self) -> float:
        return self._service.lease

    def joined(self, link: Link) -> str | None:
        self._links.add(link)
        if len(self._links) > self._room.clients:
            why = f" ({self._room.reason})" if self._room.reason else ""
            return f"the node has its {self._room.clients} clients already{why}"
        return None

    def left(self, link: Link) -> None:
        self._links.discard(link)
        instance = link.instance
        if instance is None or self._speaking.get(instance) is not link:
            return
        del self._speaking[instance]
        if not (link.goodbye or link.silent or self._closing):
            loop = asyncio.get_running_loop()
            grace = GRACE if link.elsewhere is None else MOVING
            self._grace[instance] = loop.call_later(grace, self._missing, instance, link.sequence)

    def reported(self, link: Link, report: Report, size: int) -> None:
        self._speaking[report.instance] = link
        if (timer := self._grace.pop(report.instance, None)) is not None:
            timer.cancel()
        self._enqueue(Waiting(report, link, size, footprint(report, size)))

    def departed(self, link: Link, instance: str, sequence: int) -> None:
        self._enqueue(Waiting(Departure(instance, sequence), link, DEPARTURE_BYTES, DEPARTURE_BYTES))

    def hurry(self) -> None:
        self._hurried.set()

    def peer_refusal(self, hello: Hello) -> str | None:
        peers = self._replica.peers
        return "this node is alone in its config" if peers is None else peers.refusal(hello)

    def adopt(
        self, link: Link, side: NodeSide, channel: Channel | None, transport: asyncio.Transport
    ) -> None:
        if self._replica.peers is None or self._closing:
            transport.abort()
            return
        try:
            self._replica.peers.adopt(side, channel, transport, list(side.receive(b"")))
        except ProtocolError as error:
            self.refused(link, str(error))
            transport.abort()

    def rows(self, query: RowsQuery) -> Iterator[Rows]:
        replica = self._replica
        about = About(
            self._service.name, self._node.name, replica.leader, replica.quorum, replica.stale
        )  # fmt: skip
        if isinstance(query, WaitsQuery):
            return lookups.waits(replica.state, query, about)
        if isinstance(query, UsersQuery):
            return lookups.users(replica.state, query, about)
        return replica.state.rows(query, **about._asdict())

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
            processes=len(self._speaking),
            consoles=sum(link.asked for link in self._links),
            uptime=self.clock() - self._started,
            digest=digest,
        )

    async def _digest(self, version: int) -> str | None:
        """Return the digest of the state at that version, None where it does not come."""
        made: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def told(digest: str | None) -> None:
            if not made.done():
                made.set_result(digest)

        self._digests.ask(self._replica.state, version, told)
        try:
            return await asyncio.wait_for(made, DIGEST_WAIT)
        except asyncio.TimeoutError:
            return None
        finally:
            self._digests.give_up(version, told)

    def weighed(self, link: Link, change: int) -> None:
        self.held += change
        if change > 0:
            self._shed()

    def refused(self, link: Link, reason: str) -> None:
        self._notices.warning("client %s: connection closed: %s", link.peer, reason)

    def failed(self, link: Link, error: Exception) -> None:
        logger.error("the query of %s could not be answered", link.peer, exc_info=error)

    # --- inside ---

    def _missing(self, instance: str, sequence: int) -> None:
        self._grace.pop(instance, None)
        self._enqueue(Waiting(Departure(instance, sequence), None, DEPARTURE_BYTES, DEPARTURE_BYTES))

    def _enqueue(self, waiting: Waiting[Link]) -> None:
        self.held += waiting.memory
        if (dropped := self._intake.put(waiting)) is not None:
            self.held -= dropped.memory
            if dropped.link is not None:
                dropped.link.abort()  # its process speaks on another connection now
        self._work.set()
        self._shed()

    def _shed(self) -> None:
        """Drop who holds the most until the limit is kept."""
        while self.held > self._memory:
            greediest = max(self._links, key=lambda link: link.held, default=None)
            if greediest is None or not greediest.held:
                return
            self.refused(greediest, f"the memory for clients ({self._memory} bytes) is used up")
            greediest.abort()

    async def _pump(self) -> None:
        """Batch after batch, one at a time, for ever."""
        while True:
            try:
                await self._wait()
                taken = self._intake.take(BATCH_BYTES)
                if (batch := self._batch(taken)) is not None:
                    await self._apply(batch, taken)
                # A group of one applies without ever waiting; clients have to get their turn.
                await asyncio.sleep(0)
            except Exception:
                logger.exception("gathering a batch has failed; going on")
                await asyncio.sleep(TICK)

    async def _wait(self) -> None:
        """Return when a batch is due: something is queued, or the leader's clock has to go on."""
        now = self.clock()
        due = now + TICK if self._tick_at is None else self._tick_at + TICK
        if not self._intake and due > now:
            self._work.clear()
            await _until(self._work, due - now)
        if self._intake and (pause := self._batch_at + GATHER - self.clock()) > 0:
            await _until(self._hurried, pause)
            if (pause := self._batch_at + HURRY - self.clock()) > 0:
                await asyncio.sleep(pause)
        self._hurried.clear()

    def _batch(self, taken: list[Waiting[Link]]) -> Batch | None:
        """Return the next batch; None where there is nothing to say."""
        now = self.clock()
        tick: Tick | None = None
        if not self._replica.is_leader:
            self._tick_at = None
        else:
            since = now - self._tick_at if self._tick_at is not None else 0.0
            tick = Tick(min(max(since, 0.0), LARGEST_STEP), self._service.lease)
            self._tick_at = now
        if taken:
            self._batch_at = now
        elif tick is None:
            return None
        self._number += 1
        return Batch(
            self._node.name,
            self._boot,
            self._number,
            tick,
            tuple(waiting.what for waiting in taken if isinstance(waiting.what, Report)),
            tuple(waiting.what for waiting in taken if isinstance(waiting.what, Departure)),
        )

    async def _apply(self, batch: Batch, taken: list[Waiting[Link]]) -> None:
        """Have the batch applied and answer those who wait for it."""
        proposed = self.clock()
        try:
            outcome = await self._replica.propose(batch)
        except Exception as error:
            if not isinstance(error, ApplyError):  # which was logged where it happened
                logger.exception("batch %d was given up", batch.number)
            # Whoever comes back sends everything anew.
            for waiting in taken:
                if waiting.link is not None:
                    waiting.link.refuse("the node could not apply this: see its log")
            return
        finally:
            self.held -= sum(waiting.memory for waiting in taken)
        if taken:  # else it is a tick of the leader, twice a second
            logger.debug(
                "batch %d applied after %.1f ms: %d reports, %d departures",
                batch.number, (self.clock() - proposed) * 1e3, len(batch.reports), len(batch.departures),
            )  # fmt: skip
        if self.on_command is not None:
            self.on_command(batch, self.clock() - proposed)
        full = {(instance, sequence): wanted for instance, sequence, wanted in outcome.answers}
        for each in taken:
            what, link = each.what, each.link
            if link is None:
                continue
            if isinstance(what, Report):
                key = (what.instance, what.sequence)
                # No answer: it was applied by an earlier attempt that was not heard of.
                link.acknowledge(*key, full.get(key, True))
            else:
                link.close()

    async def _remember(self) -> None:
        """Keep the last minutes of every row."""
        while True:
            began = self.clock()
            try:
                for _ in self._past.sample(self._replica.state, self._replica.quorum):
                    await asyncio.sleep(0)
            except Exception:
                logger.exception("a sample for the history was not taken; going on")
            await asyncio.sleep(max(0.0, began + history.INTERVAL - self.clock()))

    async def _sweep(self) -> None:
        """Look at every connection's deadlines now and then, and at who would be better off elsewhere."""
        while True:
            await asyncio.sleep(SWEEP)
            now = self.clock()
            for link in list(self._links):
                link.check(now)
            if self._replica.peers is not None:
                self._send_away(now)
            self._look_at_limits()

    def _look_at_limits(self) -> None:
        """Have it logged where a limit begins to leave something out."""
        state = self._replica.state
        limits = {**state.limits._asdict(), "pools": POOLS_REPORTED, "connections": CONNECTIONS_REPORTED}
        forgotten = {name: count - self._forgotten.get(name, 0) for name, count in state.forgotten.items()}
        self._forgotten = dict(state.forgotten)
        self._limit_notices.look({**state.left_out(), **forgotten}, limits)

    def _send_away(self, now: float) -> None:
        """Have applications go to a node that has quorum, or that has fewer of them."""
        status = self._replica.status
        self._spread.look([node for node, linked in status.connected.items() if linked], now)
        if not status.quorum:
            if now - self._quorum_at > PATIENCE:
                for link in list(self._links):
                    link.give_up(f"this node has had no quorum for {now - self._quorum_at:.0f} s", PATIENCE)
            return
        self._quorum_at = now
        if now - self._spread_at < SPREAD:
            return
        self._spread_at = now
        reporting = [process.node for process in self._replica.state.processes.values() if not process.lost]
        for instance, node in self._spread.moves(reporting, list(self._speaking), now):
            self._speaking[instance].elsewhere = node

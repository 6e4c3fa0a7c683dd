"""This node's member of the Raft group, and the state that it keeps: batches in, outcomes out.

Knows nothing of asyncio, sockets or threads: it is driven by ticks, messages and one clock, so
that a simulation drives it as the server does. The rules it keeps:

- One batch in flight. It is proposed again, with the same number, on any error and after
  `REPEAT` seconds until it has been applied here: callbacks may never come, and an error does
  not mean "not applied". The state ignores a batch that it has already.
- Nothing raises into pysyncobj: what is applied and raises is logged and told to the proposer.
- A view is current only while this node hears from a leader with a majority, and applies.
  What it shows otherwise it calls stale, and says for how long (`stale`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

from connmon.cluster.raft import member, messages
from connmon.cluster.raft.core import Carrier, Raft, Store
from connmon.errors import ConnmonError
from connmon.protocol.batch import Batch

if TYPE_CHECKING:
    from connmon.cluster.state.machine import Outcome, State

logger = logging.getLogger(__name__)

#: Seconds after which a batch that was not applied is proposed again.
REPEAT: Final = 2.0
#: Seconds to wait before a batch that was refused (no leader yet) is proposed again.
RETRY: Final = 0.05
#: Seconds without a word of the leader (of a majority, on the leader), and without a batch
#: applied, after which a node does not call its view current any more.
SILENT: Final = 1.5
STILL: Final = 3.0
#: Seconds for which applying may lag behind before it is logged, and between two such lines.
LAGGING: Final = 5.0
QUIET: Final = 60.0

GroupRole: TypeAlias = Literal["leader", "follower", "candidate"]


class ApplyError(ConnmonError):
    """The state could not apply a batch. That is a bug; it is logged, and the group goes on."""


class _Flight:
    """The batch that is being proposed."""

    def __init__(self, batch: Batch, done: Callable[[Outcome | ApplyError], None], now: float) -> None:
        self.boot, self.number = batch.boot, batch.number
        self.data = msgspec.msgpack.encode(batch)
        self.done = done
        self.due = now
        """When it is to be proposed (again)."""
        self.attempt = 0


class Status(NamedTuple):
    """What `connmon cluster-status` tells of a node."""

    role: GroupRole
    leader: str | None
    term: int
    applied: int
    """The index of the last log entry applied."""
    lag: int
    """How many entries the leader had committed, when last heard of, that are not applied here."""
    quorum: bool
    stale: float
    """Seconds since the last batch was applied here."""
    connected: dict[str, bool]
    """By the name of each other node: whether there is a link to it."""
    log_entries: int


class Group:
    """One node's member of the group of `service`.

    `others` are the names of the other nodes, `carrier` takes messages to them. `journal` is the
    log on disk (datadir.Journal, or a path for pysyncobj's own) and `store` keeps the snapshot;
    None: both are in memory only.
    """

    def __init__(
        self,
        service: str,
        node: str,
        others: Sequence[str],
        state: State,
        carrier: Carrier,
        *,
        journal: object | None = None,
        store: Store | None = None,
        on_applied: Callable[[Batch, Outcome | None], None] | None = None,
        on_rebuilt: Callable[[], None] | None = None,
    ) -> None:
        self.service = service
        self.node = node
        self.state = state
        """As of the last applied batch; another object after a snapshot was loaded."""
        self.on_applied = on_applied
        """Called after each batch; with None where the state could not apply it."""
        self.on_rebuilt = on_rebuilt
        """Called after the state was replaced: by a snapshot, or by nothing."""
        self._others = tuple(others)
        self._decoder = msgspec.msgpack.Decoder(Batch)
        self._flight: _Flight | None = None
        self._applied_at = member.clock()
        self._moved = False
        """A batch was applied, or a snapshot taken, since the start (over)."""
        self._even_at = float("-inf")
        """When all that the leader had committed was last applied here."""
        self._lag_since: float | None = None
        self._lag_at = 0
        self._leading: tuple[str | None, int] = (None, 0)
        """Who led, and in which term, when it was last logged."""
        self._lag_told = float("-inf")
        self._failure_told = float("-inf")
        self._ticking = False
        self.raft = Raft(node, others, self, carrier, journal=journal, store=store)

    # --- what it knows ---

    @property
    def leader(self) -> str | None:
        """The leader's name as far as known here."""
        return self.raft.leader

    @property
    def is_leader(self) -> bool:
        return self.raft.is_leader

    @property
    def term(self) -> int:
        return self.raft.term

    @property
    def role(self) -> GroupRole:
        if self.raft.is_leader:
            return "leader"
        return "candidate" if self.raft.leader is None else "follower"

    @property
    def stale(self) -> float:
        """Seconds since the last batch was applied here; since the start where there was none."""
        return max(0.0, member.clock() - self._applied_at)

    @property
    def quorum(self) -> bool:
        """Whether what this node shows is what a majority has agreed on, up to a moment ago."""
        return (
            self.raft.leader is not None
            and (self.raft.is_leader or self.raft.leader in self.raft.connected)
            and self.raft.awake
            and self.raft.ready
            and self._moved
            and member.clock() - self.raft.contact < SILENT
            and member.clock() - self._even_at < SILENT
            and self.stale < STILL
        )

    @property
    def status(self) -> Status:
        linked = self.raft.connected
        return Status(
            self.role,
            self.leader,
            self.term,
            self.raft.applied,
            self.raft.lag,
            self.quorum,
            self.stale,
            {other: other in linked for other in self._others},
            self.raft.log_entries,
        )

    # --- what drives it ---

    def tick(self) -> None:
        """Do what is due. Never raises."""
        if self._ticking:
            return
        self._ticking = True
        try:
            if self._flight is not None and member.clock() >= self._flight.due:
                self._attempt(self._flight)
            self.raft.tick()
        except Exception:
            now = member.clock()
            if now - self._failure_told > QUIET:
                self._failure_told = now
                logger.exception("a tick of the Raft group has failed; going on")
        finally:
            self._ticking = False
        self._watch()

    def receive(self, name: str, message: messages.Message) -> None:
        """Take a message of another node. Raises ProtocolError where it makes no sense."""
        self.raft.receive(name, message)

    def link_up(self, name: str) -> None:
        """There is a link to that node now."""
        self.raft.link_up(name)

    def link_down(self, name: str) -> None:
        """There is none any more."""
        self.raft.link_down(name)

    def roomy(self, name: str) -> None:
        """The link to that node takes more again."""
        self.raft.roomy(name)

    def propose(self, batch: Batch, done: Callable[[Outcome | ApplyError], None]) -> None:
        """Have the group apply `batch`; `done` is told once what applying it here brought.

        Only one at a time. The next tick proposes it.
        """
        if self._flight is not None:
            raise RuntimeError(f"batch {self._flight.number} is still being proposed")
        self._flight = _Flight(batch, done, member.clock())

    def give_up(self) -> None:
        """Propose no more what is being proposed; it may still be applied."""
        self._flight = None

    def close(self) -> None:
        self._flight = None
        self.raft.close()

    # --- inside ---

    def _attempt(self, flight: _Flight) -> None:
        flight.attempt += 1
        flight.due = member.clock() + REPEAT
        attempt = flight.attempt

        def answered(_result: object, error: int) -> None:
            # Success is heard of in `apply`, which also hears of an earlier attempt.
            if error and self._flight is flight and flight.attempt == attempt:
                flight.due = min(flight.due, member.clock() + RETRY)

        self.raft.propose(flight.data, answered)

    def _watch(self) -> None:
        """Say so where the leader goes on and this node does not, and at DEBUG who leads."""
        leading = (self.raft.leader, self.raft.term)
        if leading != self._leading:
            self._leading = leading
            logger.debug("leader %s in term %d; this node: %s", leading[0], leading[1], self.role)
        now, applied = member.clock(), self.raft.applied
        if not self.raft.lag and now - self.raft.contact < SILENT:
            self._even_at = now
        if not self.raft.lag or applied != self._lag_at:
            self._lag_since, self._lag_at = None, applied
        elif self._lag_since is None:
            self._lag_since = now
        elif now - self._lag_since > LAGGING and now - self._lag_told > QUIET:
            self._lag_told = now
            logger.warning(
                "nothing has been applied for %.0f s although leader %s has %d entries more",
                now - self._lag_since,
                self.leader,
                self.raft.lag,
            )

    # --- what the log calls (raft.Machine) ---

    def apply(self, data: bytes) -> None:
        """Apply one batch. Never raises."""
        try:
            batch = self._decoder.decode(data)
        except Exception:
            logger.exception("a replicated command of %d bytes cannot be read; it is skipped", len(data))
            return
        self._applied_at = member.clock()
        self._moved = True
        outcome: Outcome | None = None
        try:
            outcome = self.state.apply(batch)
        except Exception:
            logger.exception("batch %d of node %r cannot be applied; it is skipped", batch.number, batch.node)
        try:
            flight = self._flight
            if flight is not None and (batch.boot, batch.number) == (flight.boot, flight.number):
                self._flight = None
                flight.done(
                    ApplyError(f"batch {batch.number} of node {self.node!r} could not be applied")
                    if outcome is None
                    else outcome
                )
            if self.on_applied is not None:
                self.on_applied(batch, outcome)
        except Exception:
            logger.exception("what follows batch %d of node %r has failed", batch.number, batch.node)

    def begin(self, name: str) -> None:
        """Name the state after the leader's term that has begun.

        Where nodes lose their memory, a leader may begin with less than another replica had;
        versions can be compared only where what has been led by the same leader is the same.
        """
        self.state.epoch = name

    def dump(self) -> bytes:
        return self.state.dump()

    def load(self, data: bytes) -> None:
        self._replace(type(self.state).load(data))
        self._rebuilt(True)

    def forget(self) -> None:
        self._replace(type(self.state)())
        self._rebuilt(False)

    def _replace(self, state: State) -> None:
        state.judge.judge_as(self.state.judge)
        self.state = state

    def _rebuilt(self, moved: bool) -> None:
        self._moved = moved
        if moved:
            self._applied_at = member.clock()
        if self._flight is not None:
            self._flight.due = member.clock()  # it may be in there already, which only an attempt tells
        if self.on_rebuilt is not None:
            self.on_rebuilt()

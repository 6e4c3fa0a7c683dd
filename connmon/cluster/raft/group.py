"""This node's member of the Raft group: puts the parts together, and routes messages between them.

Knows nothing of asyncio, sockets or threads: it is driven by ticks, messages and one clock, so that a
simulation drives it as the server does. The rules kept here:

- A view is current only while this node hears from a leader with a majority, and applies. Otherwise it is
  stale, and `Status.stale` says for how long.
- The log is cut to what slow members need. Only with a store does that take a checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from connmon.cluster.raft import messages
from connmon.cluster.raft.applier import Applier, ApplyError
from connmon.cluster.raft.election import Election
from connmon.cluster.raft.follower import Follower, Store
from connmon.cluster.raft.leader import Leader
from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.raft.member import Member
from connmon.cluster.raft.messages import BATCH, Carrier
from connmon.cluster.raft.settings import RaftSettings
from connmon.cluster.raft.status import ROLE_CHANGES, Role, Status
from connmon.cluster.state.machine import Outcome, StateMachine
from connmon.protocol.batch import Batch

logger = logging.getLogger(__name__)


class _LagWatch:
    """Notices when this node applies nothing although the leader has more."""

    def __init__(self, settings: RaftSettings) -> None:
        self._settings = settings
        self.even_at = float("-inf")
        """When all that the leader had committed was last applied here."""
        self._since: float | None = None
        self._applied = 0
        self._warned_at = float("-inf")

    def look(self, now: float, lag: int, applied: int, contact: float) -> float | None:
        """Return for how many seconds nothing was applied, if it is time to warn of it."""
        if not lag and now - contact < self._settings.silent_seconds:
            self.even_at = now
        if not lag or applied != self._applied:
            self._since, self._applied = None, applied
        elif self._since is None:
            self._since = now
        elif (
            now - self._since > self._settings.lagging_seconds
            and now - self._warned_at > self._settings.warning_interval_seconds
        ):
            self._warned_at = now
            return now - self._since
        return None


class RaftGroup:
    """One node's member of a group. `others` are the names of the other nodes.

    `carrier` takes messages to them. `journal` is the log on disk (`storage.Journal`, or a path for
    pysyncobj's own) and `store` keeps the checkpoint; None: both are in memory only. `clock` is monotonic, in
    seconds. `tick` and `receive` never block. Raises ConfigError (member.check_pysyncobj), and OSError and
    ProtocolError if journal or store cannot be read.
    """

    def __init__(
        self,
        node: str,
        others: Sequence[str],
        state: StateMachine,
        carrier: Carrier,
        *,
        journal: object | None = None,
        store: Store | None = None,
        settings: RaftSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_applied: Callable[[Batch, Outcome | None], None] | None = None,
        on_rebuilt: Callable[[], None] | None = None,
    ) -> None:
        settings = settings or RaftSettings()
        self._settings = settings if others else settings.of_one()
        self._carrier = carrier
        self._store = store
        self._clock = clock
        self._role = Role.CANDIDATE
        self._leading: tuple[str | None, int] = (None, 0)
        """The leader and term that were last logged."""
        self._lag_watch = _LagWatch(self._settings)
        self._failure_logged_at = float("-inf")
        self._ticking = False
        self._applied_bytes = 0
        """Bytes of the commands applied since the log was last cut."""
        self.applier = Applier(node, state, self._settings, clock, on_applied, on_rebuilt)
        self.member = Member(node, others, self, journal=journal, settings=self._settings, clock=clock)
        forgot_vote = bool(others) and (journal is None or bool(getattr(journal, "forgetful", False)))
        self.election = Election(self.member, self._settings, clock(), forgot_vote)
        self.leader = Leader(self.member, carrier, self._settings, self._take_checkpoint)
        self.follower = Follower(self.member, self, store)

    def __repr__(self) -> str:
        parts = (self.member, self.election, self.leader, self.follower)
        return f"<RaftGroup {self._role.value} {' '.join(map(repr, parts))}>"

    # --- what it knows ---

    @property
    def state(self) -> StateMachine:
        """As of the last applied batch; another object after a checkpoint was loaded."""
        return self.applier.state

    @property
    def role(self) -> Role:
        if self.member.is_leader:
            return Role.LEADER
        return Role.CANDIDATE if self.member.leader is None else Role.FOLLOWER

    @property
    def status(self) -> Status:
        member, now = self.member, self._clock()
        connected = member.connected
        return Status(
            role=self.role,
            leader=member.leader,
            term=member.term,
            applied=member.applied,
            lag=self.follower.lag,
            quorum=self.has_quorum(now),
            stale=self.applier.stale(now),
            connected={other: other in connected for other in member.others},
            log_entries=len(member.log),
        )

    def has_quorum(self, now: float) -> bool:
        """Whether what this node shows is what a majority has agreed on, up to a moment ago."""
        member, settings = self.member, self._settings
        return (
            member.leader is not None
            and (member.is_leader or member.leader in member.connected)
            and self.election.awake(now)
            # Only an entry of the present term shows what former leaders had committed (Raft, section 8).
            and member.log.entry(member.applied).term == member.term
            and self.applier.moved
            and now - self.election.contact < settings.silent_seconds
            and now - self._lag_watch.even_at < settings.silent_seconds
            and self.applier.stale(now) < settings.still_seconds
        )

    # --- what drives it ---

    def tick(self) -> None:
        """Do what is due. Never raises."""
        if self._ticking:
            return
        self._ticking = True
        now = self._clock()
        try:
            self._tick(now)
        except Exception:
            if now - self._failure_logged_at > self._settings.warning_interval_seconds:
                self._failure_logged_at = now
                logger.exception("a tick of the Raft group has failed; going on")
        finally:
            self._ticking = False
        self._watch()

    def _tick(self, now: float) -> None:
        member = self.member
        if (due := self.applier.due(now)) is not None:
            data, answered = due
            member.propose(BATCH + data, answered)
        if (question := self.election.tick(now)) is not None:
            for name in sorted(member.connected):
                self._carrier.send(name, question)
        member.tick()
        if member.is_leader:
            self.follower.leader_commit = member.commit
            self.election.heard_majority(member.answered_at(), now)

    def receive(self, name: str, message: messages.Message) -> None:
        """Take a message of another node. Raises ProtocolError if it is not valid."""
        messages.check_commands(message)
        for answer in self._answers(name, message):
            self._carrier.send(name, answer)

    def _answers(self, name: str, message: messages.Message) -> Sequence[messages.Message]:
        """Pass a message to the part that takes it, and return the answers."""
        now = self._clock()
        answer: messages.Message | None = None
        if isinstance(message, (messages.Append, messages.Install)):
            if (stale := self.follower.follow(name, message)) is not None:
                return [stale]
            self.election.heard_leader(now)
            if isinstance(message, messages.Install):
                return self.follower.install(name, message)
            answer = self.follower.append(name, message)
        elif isinstance(message, messages.Matched):
            self.leader.matched(name, message)
        elif isinstance(message, messages.Ask):
            answer = self.election.asked(name, message, now)
        elif isinstance(message, messages.Would):
            self.election.would(name, message)
        elif isinstance(message, messages.RequestVote):
            answer = self.election.vote_requested(name, message, now)
        elif isinstance(message, messages.Vote):
            self.election.voted(name, message)
        elif isinstance(message, messages.Stale):
            self.election.later_term(message.term)
        else:
            self.member.receive(name, message)
        return [] if answer is None else [answer]

    def link_up(self, name: str) -> None:
        """There is a link to that node now."""
        self.member.link_up(name)
        if self.member.is_leader:
            self.member.forget_progress(name)
            self.leader.feed(name)

    def link_down(self, name: str) -> None:
        """The link to that node is gone."""
        self.member.link_down(name)
        self.leader.link_down(name)
        self.election.lost_link(name, self._clock())

    def roomy(self, name: str) -> None:
        """The link to that node takes more again."""
        if self.member.is_leader and name in self.member.connected:
            self.leader.feed(name)

    def propose(self, batch: Batch, done: Callable[[Outcome | ApplyError], None]) -> None:
        """Have the group apply `batch`; `done` is called once with the result of applying it here.

        Only one at a time. The next tick proposes it.
        """
        self.applier.propose(batch, done)

    def give_up(self) -> None:
        """Propose no more what is being proposed; it may still be applied."""
        self.applier.give_up()

    def close(self) -> None:
        self.applier.give_up()
        self.member.close()

    def _watch(self) -> None:
        """Log changes of leader and role, and that the leader goes on while this node does not."""
        member = self.member
        leading = (member.leader, member.term)
        role = self.role
        if leading != self._leading:
            self._leading = leading
            logger.debug("leader %s in term %d; this node: %s", *leading, role.value)
        if role is not self._role:
            level = logging.DEBUG if role in ROLE_CHANGES[self._role] else logging.ERROR
            logger.log(level, "this node: %s -> %s in term %d", self._role.value, role.value, member.term)
            self._role = role
        lag = self.follower.lag
        still = self._lag_watch.look(self._clock(), lag, member.applied, self.election.contact)
        if still is not None:
            logger.warning(
                "nothing has been applied for %.0f s although leader %s has %d entries more",
                still,
                member.leader,
                lag,
            )

    # --- what the member calls (member.Hooks) ---

    def send(self, name: str, message: messages.Message) -> bool:
        return self._carrier.send(name, message)

    def apply(self, command: bytes) -> None:
        if command[:1] == BATCH:
            self._applied_bytes += len(command)
            self.applier.apply(command[1:])
        else:
            self.applier.begin(command[1:].hex())

    def send_entries(self) -> None:
        self.member.next_heartbeat = self._clock() + self._settings.heartbeat_seconds
        self.leader.feed_all()

    def compact(self) -> None:
        log, settings, applied = self.member.log, self._settings, self.member.applied
        if len(log) <= settings.log_entries and self._applied_bytes <= settings.log_bytes:
            return
        first, self._applied_bytes = log.cut_at(applied, settings.kept_entries, settings.log_bytes // 4)
        if first == log.first:
            return
        if self._store is not None:
            self._store.save(self._take_checkpoint())
        log.delete_before(first)
        logger.debug("cut: %r", log)

    def _take_checkpoint(self) -> Checkpoint:
        entry = self.member.log.entry(self.member.applied)
        return Checkpoint(
            index=entry.index, term=entry.term, command=entry.command, state=self.applier.encode()
        )

    # --- what the follower calls (follower.Machine) ---

    def load(self, data: bytes) -> None:
        """Become the state encoded in a checkpoint. Raises ProtocolError."""
        self.applier.load(data)
        self._applied_bytes = 0

    def forget(self) -> None:
        """Become empty: the group has lost what this node had, and this node its vote."""
        self.applier.forget()
        self.election.abstain(self._clock())

"""The follower's side of the log: what is believed of a leader, appended, loaded. No I/O but the store's, no
clock.

- Only what differs from the leader's log is deleted. (pysyncobj deletes all that follows the entry that the
  leader names; what this follower had confirmed before was gone for a moment.)
- Nothing counts as committed that this leader has not confirmed. (pysyncobj commits whatever it has while a
  checkpoint comes in.)
- An entry that the leader names and that differs here is deleted at once. (pysyncobj keeps it, and two
  rejections under way can send the leader to and fro forever.)
- Starting over: where a majority has lost its memory and has gone on without it, this member's history is
  void. The leader's last entry, terms and checksums show that. The member then begins again from nothing,
  rather than mixing the two histories.
"""

from __future__ import annotations

import logging
from typing import Protocol

from connmon.cluster.raft.log import Checkpoint, Log, LogEntry
from connmon.cluster.raft.messages import NO_OP, Append, Install, Matched, Stale, check
from connmon.errors import ProtocolError

logger = logging.getLogger(__name__)


class FollowingMember(Protocol):
    """What the follower's side needs of its member."""

    log: Log
    applied: int
    commit: int

    @property
    def term(self) -> int: ...
    @property
    def is_leader(self) -> bool: ...
    def follow(self, name: str, term: int) -> None: ...
    def become_follower(self, term: int) -> None: ...
    def drop_waiting(self, index: int | None = None) -> None: ...


class Machine(Protocol):
    """What has the state."""

    def load(self, data: bytes) -> None:
        """Become the state encoded in a checkpoint. Raises ProtocolError."""

    def forget(self) -> None:
        """Become empty."""


class Store(Protocol):
    """Where the latest checkpoint is kept over a restart."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace what is kept. Raises OSError."""

    def load(self) -> Checkpoint | None:
        """Return what is kept. Raises OSError and ProtocolError."""

    def drop(self) -> None:
        """Keep nothing. Raises OSError."""


class _Incoming:
    """A checkpoint that is being received."""

    def __init__(self, leader: str, first: Install) -> None:
        self._key = (leader, first.term, first.index, first.size)
        self.state = bytearray()

    def goes_on_with(self, leader: str, message: Install) -> bool:
        key = (leader, message.term, message.index, message.size)
        return self._key == key and len(self.state) == message.offset


class Follower:
    """What a member does with the messages of a leader. The answers are returned, in their order.

    Raises OSError and ProtocolError if what the store keeps cannot be read.
    """

    def __init__(self, member: FollowingMember, machine: Machine, store: Store | None) -> None:
        self._member = member
        self._machine = machine
        self._store = store
        self.leader_commit = 0
        """What a leader was last known to have committed."""
        self.overwritten = 0
        """How often this member has started over."""
        self._verified = -1
        """The term whose leader was found to have all that is committed here."""
        self._incoming: _Incoming | None = None
        if store is not None and (checkpoint := store.load()) is not None:
            self._restore(checkpoint, keep_log=True)

    def __repr__(self) -> str:
        incoming = (
            "" if self._incoming is None else f" receiving a checkpoint, {len(self._incoming.state)} bytes"
        )
        return f"<Follower verified={self._verified} overwritten={self.overwritten}{incoming}>"

    @property
    def lag(self) -> int:
        """How many entries the leader had committed, when last heard of, that are not applied here."""
        return max(0, max(self.leader_commit, self._member.commit) - self._member.applied)

    def follow(self, name: str, message: Append | Install) -> Stale | None:
        """Take the sender for the leader; if it is none any more, return the later term that there is."""
        member = self._member
        if message.term < member.term:
            return Stale(member.term)
        if message.term == member.term and member.is_leader:
            # A node voted twice, having forgotten the first time. Nobody leads in the next term.
            logger.error("node %s leads in term %d, and so does this node", name, member.term)
            member.become_follower(member.term + 1)
            return Stale(member.term)
        member.follow(name, message.term)
        if message.last < member.commit and message.term != self._verified:
            # A leader has all that was ever committed, or the group has forgotten it.
            self._start_over(name)
        return None

    def append(self, name: str, message: Append) -> Matched:
        """Append what the leader of this name has; return the answer to it."""
        member, log = self._member, self._member.log
        self.leader_commit = max(self.leader_commit, message.commit)
        index = message.previous
        if index not in log:
            return self._reset()
        if not log.matches(index, message.previous_term, message.previous_check):
            self._disown(name, index)
            return self._reset()
        for entry in message.entries:
            index += 1
            if index <= log.last:
                own = log.entry(index)
                if own.term == entry.term and own.command == entry.command:
                    continue
                if self._disown(name, index):
                    return self._reset()
            log.append(entry.command, entry.term)
        if index >= member.commit:
            self._verified = message.term
        commit = min(message.commit, index)
        if commit > member.commit:
            member.commit = commit
        return self._matched(index + 1, success=True)

    def _disown(self, name: str, index: int) -> bool:
        """Delete the log from `index` on, which the leader has not; return whether to start over."""
        if index <= self._member.commit:
            self._start_over(name)
            return True
        self._member.log.delete_from(index)
        return False

    def _matched(self, next_index: int, reset: bool = False, success: bool = False) -> Matched:
        return Matched(self._member.term, next_index, reset, success)

    def _reset(self) -> Matched:
        """Return the answer that what was sent does not fit."""
        return self._matched(self._member.commit + 1, reset=True)

    def _start_over(self, name: str) -> None:
        """Forget everything: the group's history is another one than this node's."""
        logger.warning(
            "node %s leads a group that has lost what this node had applied (a majority of the nodes was "
            "restarted without data): this node starts over from nothing",
            name,
        )
        member = self._member
        self._machine.forget()
        member.log.restart(NO_OP, 1, 0)
        if self._store is not None:  # after the log: one that begins later needs its checkpoint
            self._store.drop()
        member.applied = member.commit = 1
        member.drop_waiting()
        self.leader_commit = 0
        self._verified = -1
        self._incoming = None
        self.overwritten += 1

    # --- checkpoints ---

    def install(self, name: str, message: Install) -> list[Matched]:
        """Take a piece of the leader's checkpoint, and load it with the last one; return the answers."""
        member, log = self._member, self._member.log
        if message.index <= member.applied:
            if message.index < log.first or log.matches(
                message.index, message.index_term, check(message.index_command)
            ):  # the same history as far as can be seen; the next Append shows it
                return [self._reset()]
            self._start_over(name)
        if message.offset == 0:
            self._incoming = _Incoming(name, message)
        incoming = self._incoming
        if incoming is None or not incoming.goes_on_with(name, message):
            return []  # the beginning was not for this node, or is lost: it will be sent again
        incoming.state += message.data
        answers = [self._matched(member.commit + 1)]
        if len(incoming.state) < message.size:
            return answers
        self._incoming = None
        checkpoint = Checkpoint(
            index=message.index,
            term=message.index_term,
            command=message.index_command,
            state=bytes(incoming.state),
        )
        try:
            self._restore(checkpoint, keep_log=False)
        except ProtocolError as error:
            logger.error("the checkpoint of node %s cannot be used: %s", name, error)
            return answers
        return [*answers, self._matched(checkpoint.index + 1, success=True)]

    def _restore(self, checkpoint: Checkpoint, keep_log: bool) -> None:
        """Become what the checkpoint has, and what the log has beyond it. Raises ProtocolError."""
        member, log = self._member, self._member.log
        self._machine.load(checkpoint.state)
        if self._store is not None and not keep_log:  # before the log, which is cut to what follows it
            self._store.save(checkpoint)
        index, term, command = checkpoint.index, checkpoint.term, checkpoint.command
        if not (keep_log and index in log and log.entry(index) == LogEntry(command, index, term)):
            log.restart(command, index, term)
        member.applied = index
        member.commit = max(min(member.commit, log.last), index)
        member.drop_waiting(index)
        self.leader_commit = 0
        logger.debug("loaded %r", checkpoint)

"""One member of a Raft group: pysyncobj, made safe to rely on. Driven by ticks and messages.

What is left to pysyncobj: terms, votes, the log and its journal, the commit rule, forwarding a
command to the leader. What is not, and why, is said in `elections`, `leading`, `following` and
`pysync`. Here they are put together. The rules kept here:

- A tick that comes late has been kept waiting together with what others said meanwhile: no election
  before that was heard.
- The log is cut to what slow members need. Only with a `Store` does that cost a snapshot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from connmon.cluster.raft import member, messages
from connmon.cluster.raft.follower import Following, write_image
from connmon.cluster.raft.leader import Leading
from connmon.cluster.raft.member import Carrier, Machine, Store
from connmon.cluster.raft.messages import BATCH
from connmon.errors import ProtocolError

__all__ = ["Carrier", "Machine", "Raft", "Store"]

#: Seconds within which the link to a leader that has just broken leads to an election.
ORPHANED: Final = (0.05, 0.3)
#: A tick that comes so many seconds after the one before: this process stood still.
STALL: Final = 0.3
#: The log is cut when it is longer than this, in commands and in bytes; so many entries are kept.
LOG_ENTRIES: Final = 500
LOG_BYTES: Final = 32 * 1024 * 1024
KEEP: Final = 100


class Raft(Leading, Following):
    """One member of a group; driven by `tick` and `receive`, which never block.

    `others` are the names of the other members. Raises OSError and ProtocolError where journal or
    store cannot be read.
    """

    def __init__(
        self,
        name: str,
        others: Sequence[str],
        machine: Machine,
        carrier: Carrier,
        *,
        journal: object | None = None,
        store: Store | None = None,
    ) -> None:
        super().__init__(name, others, machine, carrier, journal, store)
        self._ticked: float | None = None
        self._stalled_at = float("-inf")

    @property
    def awake(self) -> bool:
        """Whether what is heard is new: it is not, while what has waited is heard."""
        now = member.clock()
        late = self._ticked is not None and now - self._ticked > STALL
        return not self._nodes or not (late or now - self._stalled_at < STALL)

    def tick(self) -> None:
        """Do what is due."""
        now = member.clock()
        if self._ticked is not None and now - self._ticked > STALL and self._nodes:
            self._deadline = max(self._deadline, now + STALL)
            self._stalled_at = now
        self._ticked = now
        self._elect(now)
        self._run()
        if self.is_leader:
            self._leader_commit = self._commit
            self._hear_majority(now)

    def propose(self, data: bytes, answered: Callable[[object, int], None]) -> None:
        """Have `data` put into the log, here or by the leader, at the next tick.

        `answered` is called with pysyncobj's result and error, or never; it must not raise.
        """
        self._core._applyCommand(BATCH + data, answered)

    def receive(self, name: str, message: messages.Message) -> None:
        """Take a message of another member. Raises ProtocolError where it makes no sense."""
        node = self._nodes[name]
        if isinstance(message, messages.Append):
            self._append(node, message)
        elif isinstance(message, messages.Matched):
            self._matched(node, message)
        elif isinstance(message, messages.Install):
            self._install(node, message)
        elif isinstance(message, messages.Propose):
            if message.command[:1] != BATCH:
                raise ProtocolError("a command that is no batch")
            self._tell(node, type="apply_command", request_id=message.request, command=message.command)
        elif isinstance(message, messages.Proposed):
            self._tell(
                node,
                type="apply_command_response",
                request_id=message.request,
                error=message.error,
                log_idx=message.index,
                log_term=message.term,
            )
        elif isinstance(message, messages.Ask):
            self._asked(name, message)
        elif isinstance(message, messages.Would):
            self._would(name, message)
        elif isinstance(message, messages.RequestVote):
            self._vote_requested(node, message)
        elif isinstance(message, messages.Vote):
            self._voted(node, message)
        elif isinstance(message, messages.TimeoutNow):
            self._tell(node, type="timeout_now", term=message.term)
        else:
            self._stale(message.term)

    def link_up(self, name: str) -> None:
        """There is a link to that member now."""
        node = self._nodes[name]
        self._connected.add(name)
        self._core._SyncObj__onNodeConnected(node)
        if self.is_leader:
            # It may have been started anew, and have forgotten what it had.
            self._match[node] = 0
            self._next[node] = self.last + 1
            self._feed(node)

    def link_down(self, name: str) -> None:
        """There is none any more."""
        node = self._nodes[name]
        self._connected.discard(name)
        self._sending.pop(name, None)
        if not self._sending:
            self._image = None
        self._core._SyncObj__onNodeDisconnected(node)
        if self._leader == node:
            self._fail_proposals()  # its answers will never come
            shortest, longest = ORPHANED
            soon = member.clock() + shortest + (longest - shortest) * random.random()
            self._deadline = min(self._deadline, soon)

    def roomy(self, name: str) -> None:
        """The link to that member takes more again."""
        if self.is_leader and name in self._connected:
            self._feed(self._nodes[name])

    def step_down(self) -> None:
        """Have another member lead, where this one does and there is one that has everything."""
        if self.is_leader:
            self._core.transferLeadership()

    def compact(self) -> None:
        """Cut the log where it is too long."""
        log = self._log
        if len(log) <= LOG_ENTRIES and self._applied_bytes <= LOG_BYTES:
            return
        first = log[0][1]
        keep, size = self._applied, 0
        while keep > first and self._applied - keep < KEEP:
            size += len(log[keep - 1 - first][0])
            if size > LOG_BYTES // 4:
                break
            keep -= 1
        self._applied_bytes = size
        if keep == first:
            return
        if self._store is not None:
            self._store.save(write_image(self._take_image()))
        log.deleteEntriesTo(keep - first)

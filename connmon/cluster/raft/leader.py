"""The leader's side of the log: what is sent to whom. No I/O, no clock.

- A follower is sent no more than its link takes (`Carrier.room`), but always a heartbeat.
- One that lacks entries which the log no longer has is sent a checkpoint, taken when that is found, in
  pieces; all that need one at a time are sent the same.
- An answer to an earlier term says nothing about this one: the log may have changed since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from typing import Protocol

from connmon.cluster.raft.log import Checkpoint, Log
from connmon.cluster.raft.messages import (
    PART_BYTES,
    Append,
    AppendEntry,
    Carrier,
    Install,
    Matched,
    check,
)
from connmon.cluster.raft.settings import RaftSettings

logger = logging.getLogger(__name__)


class LeadingMember(Protocol):
    """What the leader's side needs of its member."""

    log: Log

    @property
    def connected(self) -> Set[str]: ...
    @property
    def term(self) -> int: ...
    @property
    def commit(self) -> int: ...
    def next_index(self, name: str) -> int: ...
    def set_next_index(self, name: str, index: int) -> None: ...
    def receive(self, name: str, message: Matched, /) -> None: ...


class Leader:
    """Sends each follower what it lacks. `take_checkpoint` returns the present state."""

    def __init__(
        self,
        member: LeadingMember,
        carrier: Carrier,
        settings: RaftSettings,
        take_checkpoint: Callable[[], Checkpoint],
    ) -> None:
        self._member = member
        self._carrier = carrier
        self._settings = settings
        self._take_checkpoint = take_checkpoint
        self._checkpoint: Checkpoint | None = None
        """Kept while it is being sent."""
        self._transfers: dict[str, tuple[Checkpoint, int]] = {}
        """By follower: the checkpoint being sent to it, and how many bytes of its state were sent."""
        self._term = 0
        """The term that these two belong to."""

    def __repr__(self) -> str:
        transfers = {name: f"{offset}/{len(cp.state)}" for name, (cp, offset) in self._transfers.items()}
        return f"<Leader term={self._term} transfers={transfers}>"

    def feed_all(self) -> None:
        """Send each connected follower a heartbeat and what it lacks."""
        for name in sorted(self._member.connected):
            self.feed(name)

    def feed(self, name: str) -> None:
        """Send a heartbeat, and what the follower lacks as far as its link takes it."""
        member, log = self._member, self._member.log
        if self._term != member.term:  # what was being sent in an earlier term may be history
            self._term = member.term
            self._transfers.clear()
            self._checkpoint = None
        sent = False
        while True:
            next_index = min(member.next_index(name), log.last + 1)
            room = self._carrier.room(name)
            if next_index <= log.first:
                if not room or not self._send_piece(name):
                    return
                sent = True
                continue
            self._transfers.pop(name, None)
            entries = self._entries(next_index) if room else ()
            if sent and not entries:
                return
            if not self._carrier.send(name, self._append(next_index, entries)) or not entries:
                return
            member.set_next_index(name, next_index + len(entries))
            sent = True

    def _append(self, next_index: int, entries: tuple[AppendEntry, ...]) -> Append:
        previous = self._member.log.entry(next_index - 1)
        return Append(
            term=self._member.term,
            commit=self._member.commit,
            last=self._member.log.last,
            previous=previous.index,
            previous_term=previous.term,
            previous_check=check(previous.command),
            entries=entries,
        )

    def _entries(self, next_index: int) -> tuple[AppendEntry, ...]:
        entries: list[AppendEntry] = []
        size = 0
        for command, _, term in self._member.log.slice(next_index, self._settings.append_entries):
            size += len(command)
            if entries and size > self._settings.append_bytes:
                break
            entries.append(AppendEntry(term, command))
        return tuple(entries)

    def _send_piece(self, name: str) -> bool:
        """Send the next piece of a checkpoint; return whether to go on."""
        if name not in self._transfers:
            self._transfers[name] = (self._current_checkpoint(), 0)
            logger.debug("node %s is sent %r", name, self._transfers[name][0])
        checkpoint, offset = self._transfers[name]
        piece = checkpoint.state[offset : offset + PART_BYTES]
        message = Install(
            term=self._member.term,
            last=self._member.log.last,
            index=checkpoint.index,
            index_term=checkpoint.term,
            index_command=checkpoint.command,
            size=len(checkpoint.state),
            offset=offset,
            data=piece,
        )
        if not self._carrier.send(name, message):
            return False
        offset += len(piece)
        if offset < len(checkpoint.state):
            self._transfers[name] = (checkpoint, offset)
        else:
            self._end_transfer(name)
            self._member.set_next_index(name, checkpoint.index + 1)
        return True

    def _current_checkpoint(self) -> Checkpoint:
        """Return a checkpoint that the log goes on from."""
        if self._checkpoint is None or self._checkpoint.index < self._member.log.first:
            self._checkpoint = self._take_checkpoint()
        return self._checkpoint

    def _end_transfer(self, name: str) -> None:
        self._transfers.pop(name, None)
        if not self._transfers:
            self._checkpoint = None

    def link_down(self, name: str) -> None:
        """Stop sending a checkpoint to that follower: the pieces sent may be lost."""
        self._end_transfer(name)

    def matched(self, name: str, message: Matched) -> None:
        """Take a follower's answer."""
        if message.term == self._member.term and message.next <= self._member.log.last + 1:
            self._member.receive(name, message)

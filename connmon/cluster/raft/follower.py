"""The follower's side of the log: what is believed of a leader, appended, loaded.

- Only what differs from the leader's log is deleted. (Stock deletes all that follows the entry that
  the leader names; what this follower had confirmed before was gone for a moment.)
- Nothing counts as committed that this leader has not confirmed. (Stock commits whatever it has
  while a snapshot comes in.)
- An entry that the leader names and that differs here is deleted at once. (Stock keeps it, and two
  rejections on the way can send the leader to and fro for ever.)
- Starting over: where a majority has lost its memory and gone on without it, this member's
  history is worth nothing any more. It is found by what the leader has (its last entry, terms,
  checksums), and the member begins again from nothing, rather than mixing the two.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

from connmon.cluster.raft import member, messages
from connmon.cluster.raft.election import Elections
from connmon.cluster.raft.member import Image
from connmon.cluster.raft.messages import BATCH, NO_OP
from connmon.errors import ProtocolError

logger = logging.getLogger(__name__)


class _Coming:
    """A snapshot that is being received."""

    def __init__(self, leader: str, first: messages.Install) -> None:
        self.key = (leader, first.term, first.index, first.size)
        self.data = bytearray()


class Following(Elections):
    """What a follower does with a leader's word."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.overwritten = 0
        """How often this member has started over."""
        self._verified = -1
        """The term whose leader was found to have all that is committed here."""
        self._coming: _Coming | None = None
        if self._store is not None and (kept := self._store.load()) is not None:
            self._restore(read_image(kept), keep_log=True)

    def _follow(self, node: Any, message: messages.Append | messages.Install) -> bool:
        """Take the sender as the leader; return whether it is one, and its log can be ours."""
        if message.term < self._term:
            self._carrier.send(node.id, messages.Stale(self._term))
            return False
        if message.term == self._term and self.is_leader:
            # A node voted twice, having forgotten the first time. Nobody leads in the next term.
            logger.error("node %s leads in term %d, and so does this node", node.id, self._term)
            self._stale(self._term + 1)
            self._carrier.send(node.id, messages.Stale(self._term))
            return False
        # Without an entry to append, pysyncobj sees to term, state, leader and deadline only.
        self._tell(node, type="append_entries", term=message.term, commit_index=0)
        self._willing = None
        self.contact = member.clock()
        if message.last < self._commit and message.term != self._verified:
            # A leader has all that was ever committed, or the group has forgotten it.
            self._start_over(node)
        return True

    def _append(self, node: Any, message: messages.Append) -> None:
        if any(entry.command[:1] not in (BATCH, NO_OP) for entry in message.entries):
            raise ProtocolError("an entry that is neither a batch nor nothing")
        if not self._follow(node, message):
            return
        self._leader_commit = max(self._leader_commit, message.commit)
        log = self._log
        first, last = log[0][1], log[-1][1]
        index = message.previous
        if not first <= index <= last:
            self._answer(node, self._commit + 1, reset=True)
            return
        if not self._same(index, message.previous_term, message.previous_check):
            self._disown(node, index)
            self._answer(node, self._commit + 1, reset=True)
            return
        for entry in message.entries:
            index += 1
            if index <= last:
                command, _, term = log[index - first]
                if term == entry.term and command == entry.command:
                    continue
                if self._disown(node, index):
                    self._answer(node, self._commit + 1, reset=True)
                    return
                last = index - 1
            log.add(entry.command, index, entry.term)
        commit = min(message.commit, index)
        if index >= self._commit:
            self._verified = message.term
        if commit > self._commit:
            self._commit = commit
            log.setRaftCommitIndex(commit)
        self._answer(node, index + 1, success=True)

    def _same(self, index: int, term: int, checksum: int) -> bool:
        command, _, own = self._log[index - self._log[0][1]]
        return bool(own == term and messages.check(command) == checksum)

    def _disown(self, node: Any, index: int) -> bool:
        """Delete the log from `index` on, which the leader has not; return whether to start over."""
        if index <= self._commit:
            self._start_over(node)
            return True
        self._log.deleteEntriesFrom(index - self._log[0][1])
        return False

    def _answer(self, node: Any, following: int, reset: bool = False, success: bool = False) -> None:
        self._carrier.send(node.id, messages.Matched(self._term, following, reset, success))

    def _start_over(self, node: Any) -> None:
        """Forget everything: the group's history is another one than this node's."""
        logger.warning(
            "node %s leads a group that has lost what this node had applied (a majority of the nodes was "
            "restarted without data): this node starts over from nothing",
            node.id,
        )
        self._machine.forget()
        self._log.clear()
        self._log.add(NO_OP, 1, 0)
        if self._store is not None:  # after the log: one that begins later needs its snapshot
            self._store.drop()
        self._applied = self._commit = 1
        self._leader_commit = 0
        self._verified = -1
        self._log.setRaftCommitIndex(1)
        self._waiting.clear()
        self._coming = None
        self.overwritten += 1
        self._be_quiet()

    def _install(self, node: Any, message: messages.Install) -> None:
        if not self._follow(node, message):
            return
        first = self._log[0][1]
        if message.index <= self._applied:
            same = message.index < first or self._same(
                message.index, message.index_term, messages.check(message.index_command)
            )
            if same:  # as far as can be seen; the next Append will tell
                self._answer(node, self._commit + 1, reset=True)
                return
            self._start_over(node)
        coming = self._coming
        if message.offset == 0:
            coming = self._coming = _Coming(node.id, message)
        if (
            coming is None
            or coming.key != (node.id, message.term, message.index, message.size)
            or len(coming.data) != message.offset
        ):
            return  # the beginning was not for this node, or is lost: it will be sent again
        coming.data += message.data
        self._answer(node, self._commit + 1)
        if len(coming.data) < message.size:
            return
        self._coming = None
        image = Image(message.index, message.index_term, message.index_command, bytes(coming.data))
        try:
            self._restore(image, keep_log=False)
        except ProtocolError as error:
            logger.error("the snapshot of node %s cannot be used: %s", node.id, error)
            return
        self._answer(node, image.index + 1, success=True)

    def _restore(self, image: Image, keep_log: bool) -> None:
        """Become what the image is, and what the log has beyond it. Raises ProtocolError."""
        self._machine.load(image.state)
        if self._store is not None and not keep_log:  # before the log, which is cut to what follows it
            self._store.save(write_image(image))
        log = self._log
        at = image.index - log[0][1]
        if not (keep_log and 0 <= at < len(log) and log[at][2] == image.term and log[at][0] == image.command):
            log.clear()
            log.add(image.command, image.index, image.term)
        self._applied = image.index
        self._commit = max(min(self._commit, self.last), image.index)
        self._leader_commit = 0
        log.setRaftCommitIndex(self._commit)
        for index in [index for index in self._waiting if index <= image.index]:
            del self._waiting[index]
        self._applied_bytes = 0


_image_decoder: Final = msgspec.msgpack.Decoder(Image)


def write_image(image: Image) -> bytes:
    return msgspec.msgpack.encode(image)


def read_image(data: bytes) -> Image:
    try:
        return _image_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"a snapshot that cannot be read: {error}") from None

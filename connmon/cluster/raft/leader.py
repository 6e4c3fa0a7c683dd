"""The leader's side of the log: what is sent to whom.

- A follower is sent no more than its link takes (`Carrier.room`), but always a heartbeat.
- One that is further behind than the log goes back is sent the state, dumped when it is found
  to need it, in pieces; all that need one at a time are sent the same.
- An answer to an earlier term says nothing about this one: the log may have changed since.
"""

from __future__ import annotations

from typing import Any, Final

from connmon.cluster.raft import member, messages
from connmon.cluster.raft.member import Image, Member

#: Entries in one message, and their bytes beyond the first.
BATCH_ENTRIES: Final = 500
BATCH_BYTES: Final = 1024 * 1024


class Leading(Member):
    """What a leader tells the others."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._image: Image | None = None
        """Kept while it is being sent."""
        self._sending: dict[str, tuple[Image, int]] = {}
        """By member: what is sent, and how many bytes of it have been."""
        self._led = 0
        """The term that these two belong to."""

    def feed_all(self) -> None:
        """Send a heartbeat, and what there is, to all."""
        self._core._SyncObj__newAppendEntriesTime = member.clock() + self._heartbeat
        for name in sorted(self._connected):
            self._feed(self._nodes[name])

    def _feed(self, node: Any) -> None:
        """Send a heartbeat, and what there is and the link takes."""
        log, name = self._log, node.id
        if self._led != self._term:  # what was being sent in an earlier term may be history
            self._led = self._term
            self._sending.clear()
            self._image = None
        sent = False
        while True:
            first, last = log[0][1], log[-1][1]
            following = min(self._next[node], last + 1)
            room = self._carrier.room(name)
            if following <= first:
                if not room or not self._send_piece(node):
                    return
                sent = True
                continue
            self._sending.pop(name, None)
            entries = self._entries(following, first) if room else ()
            if sent and not entries:
                return
            _, previous, previous_term = log[following - 1 - first]
            message = messages.Append(
                self._term,
                self._commit,
                last,
                previous,
                previous_term,
                messages.check(log[following - 1 - first][0]),
                entries,
            )
            if not self._carrier.send(name, message) or not entries:
                return
            self._next[node] = following + len(entries)
            sent = True

    def _entries(self, following: int, first: int) -> tuple[messages.Entry, ...]:
        entries: list[messages.Entry] = []
        size = 0
        for command, _, term in self._log[following - first : following - first + BATCH_ENTRIES]:
            size += len(command)
            if entries and size > BATCH_BYTES:
                break
            entries.append(messages.Entry(term, command))
        return tuple(entries)

    def _send_piece(self, node: Any) -> bool:
        """Send the next piece of a snapshot; return whether to go on."""
        if node.id not in self._sending:
            self._sending[node.id] = (self._current_image(), 0)
        image, offset = self._sending[node.id]
        piece = image.state[offset : offset + messages.PART]
        message = messages.Install(
            self._term, self.last, image.index, image.term, image.command, len(image.state), offset, piece
        )
        if not self._carrier.send(node.id, message):
            return False
        offset += len(piece)
        if offset < len(image.state):
            self._sending[node.id] = (image, offset)
        else:
            del self._sending[node.id]
            self._next[node] = image.index + 1
            if not self._sending:
                self._image = None
        return True

    def _current_image(self) -> Image:
        """Return a snapshot that the log goes on from."""
        if self._image is None or self._image.index < self._log[0][1]:
            self._image = self._take_image()
        return self._image

    def _take_image(self) -> Image:
        command, index, term = self._log[self._applied - self._log[0][1]]
        return Image(index, term, command, self._machine.dump())

    def _matched(self, node: Any, message: messages.Matched) -> None:
        if message.term == self._term and message.next <= self.last + 1:
            self._tell(
                node,
                type="next_node_idx",
                next_node_idx=message.next,
                reset=message.reset,
                success=message.success,
            )

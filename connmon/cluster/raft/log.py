"""The replicated log, by index, and a checkpoint of the state at one of its entries. Pure.

The first entry in memory is not the first ever: what every member has is cut off. The log always has an
entry: it begins with the no-op entry 1, or with the entry of the checkpoint from which it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, overload

from msgspec import Struct

from connmon.cluster.raft.messages import check


class Checkpoint(Struct, frozen=True, array_like=True):
    """The state as of an entry of the log, with that entry. data_dir has it in this form."""

    index: int
    term: int
    command: bytes
    state: bytes
    """As connmon.cluster.state.checkpoint encodes it."""

    def __repr__(self) -> str:
        return f"<Checkpoint index={self.index} term={self.term} {len(self.state)} bytes>"


class LogEntry(Struct, frozen=True, gc=False):
    """One entry, its fields in the order of pysyncobj's tuples."""

    command: bytes
    index: int
    term: int


class LogJournal(Protocol):
    """Where pysyncobj keeps the entries, by its method names; positions count from the first entry kept."""

    def add(self, command: bytes, index: int, term: int) -> None: ...
    def clear(self) -> None: ...
    def deleteEntriesFrom(self, position: int) -> None: ...
    def deleteEntriesTo(self, position: int) -> None: ...
    def setRaftCommitIndex(self, index: int) -> None: ...
    @overload
    def __getitem__(self, position: int) -> tuple[bytes, int, int]: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[tuple[bytes, int, int]]: ...
    def __len__(self) -> int: ...


class Log:
    """A journal's entries by their index."""

    def __init__(self, journal: LogJournal) -> None:
        self._journal = journal

    def __repr__(self) -> str:
        return f"<Log entries {self.first} to {self.last}>"

    def __len__(self) -> int:
        return len(self._journal)

    def __contains__(self, index: int) -> bool:
        return self.first <= index <= self.last

    @property
    def first(self) -> int:
        return int(self._journal[0][1])

    @property
    def last(self) -> int:
        return int(self._journal[-1][1])

    @property
    def last_term(self) -> int:
        return int(self._journal[-1][2])

    def entry(self, index: int) -> LogEntry:
        """Return an entry that the log contains."""
        return LogEntry(*self._journal[index - self.first])

    def slice(self, index: int, count: int) -> Sequence[tuple[bytes, int, int]]:
        """Return up to `count` entries from `index` on, as (command, index, term)."""
        position = index - self.first
        return self._journal[position : position + count]

    def matches(self, index: int, term: int, checksum: int) -> bool:
        """Whether the entry at `index`, which the log contains, is the one of this term and checksum."""
        entry = self.entry(index)
        return entry.term == term and check(entry.command) == checksum

    def append(self, command: bytes, term: int) -> None:
        self._journal.add(command, self.last + 1, term)

    def delete_from(self, index: int) -> None:
        """Delete the entry at `index` and all after it."""
        self._journal.deleteEntriesFrom(index - self.first)

    def delete_before(self, index: int) -> None:
        """Delete all entries before `index`."""
        self._journal.deleteEntriesTo(index - self.first)

    def restart(self, command: bytes, index: int, term: int) -> None:
        """Have this entry, and nothing else."""
        self._journal.clear()
        self._journal.add(command, index, term)

    def commit(self, index: int) -> None:
        """Remember, on disk too, that all up to `index` is committed."""
        self._journal.setRaftCommitIndex(index)

    def cut_at(self, applied: int, keep_entries: int, keep_bytes: int) -> tuple[int, int]:
        """Return the first entry that a cut keeps, and the bytes of the applied commands kept with it.

        It keeps up to `keep_entries` before the one last applied, of up to `keep_bytes`.
        """
        first = self.first
        index, size = applied, 0
        while index > first and applied - index < keep_entries:
            size += len(self.entry(index - 1).command)
            if size > keep_bytes:
                break
            index -= 1
        return index, size

"""Recordings: read a file of recorded snapshots, one JSON document per line, and its format.

The format, which this version and later ones read:

- The first line says what the file is: ``{"connmon": "recording", "version": 1, "service": ...}``.
- Each further line is a `RecordedSnapshot`: the time, and a node's answers by grouping, as on the wire
  (arrays). With ``"complete": true`` it stands alone; otherwise it has the changes since the one before it.
- The first recorded snapshot of a file is complete, and so is every `COMPLETE_EVERY_SNAPSHOTS`-th
  after it: to show one, no more than that has to be read.

Rules kept here:

- A file is not trusted: each line is decoded into the types of the protocol, as from the network.
- A file that is no recording, or has no whole recorded snapshot, is one clear error. A file that ends in the
  middle of one (the recorder was killed, the disk was full) shows the whole ones; `cut` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from connmon.errors import UsageError
from connmon.protocol.rows import Rows
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.values import Grouping

VERSION: Final = 1
#: This many recorded snapshots after a complete one, the next is complete.
COMPLETE_EVERY_SNAPSHOTS: Final = 60
#: The longest first line.
FIRST_LINE_BYTES: Final = 64 * 1024
#: The groupings that are recorded; connection brings the rows of processes and pools as well.
RECORDED: Final[tuple[Grouping, ...]] = ("program", "host", "database", "connection", "site")


class Beginning(Struct, frozen=True):
    """The first line."""

    connmon: Literal["recording"]
    version: int
    service: str = ""
    software: str = ""


class RecordedSnapshot(Struct, frozen=True):
    """The answers of a node at one moment."""

    at: float
    """Seconds since 1970, by the clock of the host that recorded it."""
    complete: bool
    answers: dict[Grouping, tuple[Rows, ...]]
    timeouts: tuple[tuple[tuple[str | int | None, ...], int], ...] | None = None
    """The keys of rows with pool timeouts in the minutes before, and how many. None: unknown."""
    nodes: tuple[dict[str, Any], ...] | None = None
    """The rows of cluster-status. None: they were not asked for, or have not changed."""


_beginning: Final = msgspec.json.Decoder(Beginning)
_recorded: Final = msgspec.json.Decoder(RecordedSnapshot)
encode: Final = msgspec.json.Encoder().encode


class Recording:
    """A recording that can be read at any recorded snapshot."""

    def __init__(self, path: str) -> None:
        """Raises UsageError if the file is no recording or cannot be read."""
        self.path: Final = path
        self.cut = ""
        """One line that says what the end of the file lacks; "": nothing."""
        self._offsets: list[int] = []
        """Where each recorded snapshot begins in the file."""
        self._complete: list[int] = []
        """The numbers of the complete recorded snapshots."""
        self._cache: tuple[int, RecordedSnapshot] | None = None
        try:
            self._file = open(path, "rb")  # noqa: SIM115  (closed by `close`)
            self._index()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Close the file. It stays open until then, so that a recorder may rotate it meanwhile."""
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    __del__ = close

    def __repr__(self) -> str:
        return f"<Recording {self.path}, {len(self)} snapshots>"

    def __len__(self) -> int:
        return len(self._offsets)

    def _index(self) -> None:
        """Find where the recorded snapshots begin, without decoding them."""
        first = self._file.readline(FIRST_LINE_BYTES)
        try:
            beginning = _beginning.decode(first)
        except msgspec.MsgspecError:
            raise UsageError(f"{self.path}: no recording of connmon: its first line is another") from None
        if beginning.version != VERSION:
            raise UsageError(
                f"{self.path}: a recording of version {beginning.version}, this connmon reads {VERSION}: "
                "use the version that wrote it"
            )
        self.service = beginning.service
        offset = len(first)
        whole = True
        for line in self._file:
            whole = line.endswith(b"\n")
            if whole:
                if b'"complete":true' in line[:200]:
                    self._complete.append(len(self._offsets))
                self._offsets.append(offset)
            offset += len(line)
        if not self._offsets or self._complete[:1] != [0]:
            raise UsageError(f"{self.path}: the recording ends before its first snapshot is whole")
        if not whole:
            self.cut = f"{self.path}: truncated: it ends in the middle of snapshot {len(self) + 1}"

    def recorded(self, number: int) -> RecordedSnapshot:
        """Return a recorded snapshot, from 0. Raises UsageError if the file is damaged there."""
        if self._cache is not None and self._cache[0] == number:
            return self._cache[1]
        self._file.seek(self._offsets[number])
        try:
            recorded = _recorded.decode(self._file.readline())
        except msgspec.MsgspecError as error:
            raise UsageError(f"{self.path}: snapshot {number + 1} cannot be read: {error}") from None
        self._cache = (number, recorded)
        return recorded

    def before(self, number: int) -> int:
        """Return the number of the last complete recorded snapshot up to this one."""
        return max(complete for complete in self._complete if complete <= number)

    def snapshot(self, number: int, by: Grouping) -> Snapshot:
        """Return the rows of that moment in one grouping."""
        snapshot = Snapshot(by)
        for earlier in range(self.before(number), number + 1):
            for rows in answered(self.recorded(earlier), by):
                snapshot.apply(rows)
        return snapshot


def answered(recorded: RecordedSnapshot, by: Grouping) -> tuple[Rows, ...]:
    """Return the frames of the answer for a grouping. Raises UsageError if there is no whole one.

    An old recording without call sites has no rows for them.
    """
    is_recorded = by in RECORDED and not (by == "site" and by not in recorded.answers)
    answer = recorded.answers.get(by if is_recorded else "connection")
    if not answer or answer[-1].more:
        raise UsageError(f"a snapshot of the recording has no whole answer for {by}")
    return answer


def first_line(beginning: Mapping[str, str]) -> bytes:
    """Return the first line of a file; `beginning` has the service and the software's version."""
    return encode(Beginning("recording", VERSION, **beginning)) + b"\n"

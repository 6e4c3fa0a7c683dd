"""Recordings: a file of pictures, one JSON document per line, and what they showed. Reading and the format.

The format, which is read again by this version and later ones:

- The first line of a file says what it is: ``{"connmon": "recording", "version": 1, "service": ...}``.
- Each further line is a `Frame`: the time, and a node's answers by grouping, as on the wire (arrays). A
  frame with ``"complete": true`` stands alone; any other has what changed since the frame before it.
- A file always begins with a complete frame, and so does every `EVERY`-th frame after it: to show one, not
  more than that has to be read.

Rules kept here:

- Nothing of a file is believed: each line is decoded into the types of `model`, as from the network.
- A file that is no recording, or has no whole frame, is one clear error. One that ends in the middle
  of a frame (the recorder was killed, the disk was full) shows what is whole; `cut` says so.
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
#: So many frames after a complete one there is another.
EVERY: Final = 60
#: What a frame has the answers to; connection brings the rows of processes and pools as well.
RECORDED: Final[tuple[Grouping, ...]] = ("program", "host", "database", "connection", "site")

Cluster = dict[str, Any]


class Beginning(Struct, frozen=True):
    """The first line."""

    connmon: Literal["recording"]
    version: int
    service: str = ""
    software: str = ""


class Frame(Struct, frozen=True):
    """One picture."""

    at: float
    """Seconds since the epoch, by the clock of the host that recorded it."""
    complete: bool
    answers: dict[Grouping, tuple[Rows, ...]]
    timeouts: tuple[tuple[tuple[str | int | None, ...], int], ...] | None = None
    """Which rows had pool timeouts in the minutes before. None: not known."""
    nodes: tuple[dict[str, Any], ...] | None = None
    """The rows of cluster-status. None: they were not asked for, or are as before."""


_beginning: Final = msgspec.json.Decoder(Beginning)
_frame: Final = msgspec.json.Decoder(Frame)
encode: Final = msgspec.json.Encoder().encode


class Recording:
    """A recording that can be read at any frame. Raises UsageError where the file is none."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.cut = ""
        """What is missing at the end of the file, in one line; "": nothing."""
        self._offsets: list[int] = []
        self._complete: list[int] = []
        """The numbers of the complete frames."""
        self._cache: tuple[int, Frame] | None = None
        try:
            self._file = open(path, "rb")  # noqa: SIM115  (closed by `close`)
            self._index()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Close the file, which is held open so that a recorder may rotate it meanwhile."""
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    __del__ = close

    def __len__(self) -> int:
        return len(self._offsets)

    def _index(self) -> None:
        """Find where the frames begin; only the first and the last of them are looked into here."""
        first = self._file.readline(64 * 1024)
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
            raise UsageError(f"{self.path}: the recording ends before its first picture is whole")
        if not whole:
            self.cut = f"{self.path}: truncated: it ends in the middle of picture {len(self) + 1}"

    def frame(self, number: int) -> Frame:
        """Return a frame, from 0. Raises UsageError where the file is damaged there."""
        if self._cache is not None and self._cache[0] == number:
            return self._cache[1]
        self._file.seek(self._offsets[number])
        try:
            frame = _frame.decode(self._file.readline())
        except msgspec.MsgspecError as error:
            raise UsageError(f"{self.path}: picture {number + 1} cannot be read: {error}") from None
        self._cache = (number, frame)
        return frame

    def before(self, number: int) -> int:
        """Return the number of the last complete frame up to this one."""
        return max(complete for complete in self._complete if complete <= number)

    def snapshot(self, number: int, by: Grouping) -> Snapshot:
        """Return what a node would have answered in that moment."""
        snapshot = Snapshot(by)
        for at in range(self.before(number), number + 1):
            for rows in answered(self.frame(at), by):
                snapshot.apply(rows)
        return snapshot


def answered(frame: Frame, by: Grouping) -> tuple[Rows, ...]:
    """Return the frames of an answer to a grouping. Raises UsageError where there is none.

    In a recording from before lines of code were recorded there is none of these.
    """
    kept = by in RECORDED and not (by == "site" and by not in frame.answers)
    answer = frame.answers.get(by if kept else "connection")
    if not answer or answer[-1].more:
        raise UsageError(f"a picture of the recording has no whole answer for {by}")
    return answer


def first_line(beginning: Mapping[str, str]) -> bytes:
    return encode(Beginning("recording", VERSION, **beginning)) + b"\n"

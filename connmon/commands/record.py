"""`connmon record`: a node's snapshots, at an interval, in a file that rotates by size.

- A snapshot is written whole and flushed, or removed again where the disk is full.
- When the next snapshot would exceed the size, FILE becomes FILE.1, FILE.1 becomes FILE.2 and so on, and the
  oldest is removed. Each file begins with a complete snapshot, so that it can be replayed alone.
- An existing file is never overwritten.
- Where a node goes away another one is read. While none answers, nothing is recorded; one line says so.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final

from connmon.config import Service
from connmon.errors import ConnmonError, UsageError
from connmon.protocol.credentials import Credentials
from connmon.protocol.queries import EVERYTHING, HistoryQuery
from connmon.protocol.rows import Rows
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.values import Grouping
from connmon.reader import client
from connmon.reader.cluster_status import ask
from connmon.reader.recording import COMPLETE_EVERY_SNAPSHOTS, RECORDED, RecordedSnapshot, encode, first_line
from connmon.rotating_file import RotatingFile
from connmon.signals import Terminated, terminable
from connmon.version import __version__

#: Between two questions to all nodes for their status.
STATUS_SECONDS: Final = 10.0


class Rotating:
    """The file, and its older parts."""

    def __init__(self, path: str, size: int, keep: int, service: str) -> None:
        """Raises UsageError where the file is there already, or cannot be written."""
        first = first_line({"service": service, "software": __version__})
        self._file = RotatingFile(path, first, size, keep)
        self._begin(lambda: self._file.open(new=True))

    def __repr__(self) -> str:
        return f"<Rotating {self._file!r}>"

    def _begin(self, open_file: Callable[[], None]) -> None:
        path = self._file.path
        try:
            open_file()
        except FileExistsError:
            raise UsageError(f"{path}: is there already: name a new file, or move it away") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from None

    def fits(self, line: bytes) -> bool:
        return self._file.fits(line)

    def rotate(self) -> None:
        """Begin a new file."""
        self._begin(lambda: self._file.rotate(new=True))

    def write(self, line: bytes) -> None:
        """Raises ConnmonError where the disk does not take it."""
        try:
            self._file.append(line)
        except OSError as error:
            raise ConnmonError(f"{self._file.path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()


class Recorder:
    """Reads a node, and another one where it goes away; makes recorded snapshots of the answers."""

    def __init__(self, service: Service, credentials: Credentials) -> None:
        self._service, self._credentials = service, credentials
        self._client: client.Client | None = None
        self._nodes_again = 0.0
        self._snapshots: dict[Grouping, Snapshot] = {}

    def __repr__(self) -> str:
        return f"<Recorder of {self._service.name} by {self._client!r}>"

    def frame(self, complete: bool) -> RecordedSnapshot:
        """Return the next recorded snapshot. Raises ConnmonError where no node answers."""
        if self._client is None or self._client.closed:
            self._client = client.connect(
                self._service.nodes, self._service.name, credentials=self._credentials
            )
            complete = True
        if complete or not self._snapshots:
            self._snapshots = {by: Snapshot(by) for by in RECORDED}
            complete = True
        answers: dict[Grouping, tuple[Rows, ...]] = {}
        try:
            for by, snapshot in self._snapshots.items():
                answers[by] = tuple(self._client.ask(snapshot.query()))
                for rows in answers[by]:
                    snapshot.apply(rows)
            past = self._client.history(HistoryQuery((EVERYTHING,), 1))
        except ConnmonError:
            self.close()
            raise
        timeouts = None if past.left_out else past.timeouts
        return RecordedSnapshot(
            at=round(time.time(), 3),
            complete=complete,
            answers=answers,
            timeouts=timeouts,
            nodes=self._nodes(complete),
        )

    def _nodes(self, complete: bool) -> tuple[dict[str, Any], ...] | None:
        now = time.monotonic()
        if not complete and now < self._nodes_again:
            return None
        self._nodes_again = now + STATUS_SECONDS
        return tuple(dict(row) for row in ask(self._service, credentials=self._credentials).document["nodes"])

    def close(self) -> None:
        self._snapshots = {}
        if self._client is not None:
            self._client.close()
            self._client = None


def run(
    service: Service,
    path: str,
    credentials: Credentials,
    *,
    interval: float,
    times: int | None,
    size: int,
    keep: int,
) -> int:
    """Record until interrupted, or `times` snapshots; return 0.

    Raises ConnmonError where no node answers at the start, or the file cannot be written.
    """
    recorder = Recorder(service, credentials)
    file: Rotating | None = None
    number = since = 0
    silent = False
    try:
        with terminable():
            due = time.monotonic()
            while times is None or number < times:
                try:
                    frame = recorder.frame(since % COMPLETE_EVERY_SNAPSHOTS == 0)
                    silent = False
                except ConnmonError as error:
                    if file is None:
                        raise
                    if not silent:
                        print(f"connmon: not recorded: {error}", file=sys.stderr, flush=True)
                    silent = True
                else:
                    if file is None:
                        file = Rotating(path, size, keep, service.name)
                    line = encode(frame) + b"\n"
                    if not file.fits(line):
                        file.rotate()
                        since = 0
                        line = encode(recorder.frame(True)) + b"\n"
                    file.write(line)
                    number, since = number + 1, since + 1
                due = max(due + interval, time.monotonic())
                if times is None or number < times:
                    time.sleep(max(0.0, due - time.monotonic()))
    except (KeyboardInterrupt, Terminated):
        pass
    finally:
        recorder.close()
        if file is not None:
            file.close()
    print(f"connmon: {number} snapshots in {path}", file=sys.stderr, flush=True)
    return 0

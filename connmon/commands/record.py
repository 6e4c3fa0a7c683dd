"""`connmon record`: a node's snapshots, at an interval, in a file that rotates by size.

- A snapshot is written whole and flushed, or removed again where the disk is full.
- When the next snapshot would exceed the size, FILE becomes FILE.1, FILE.1 becomes FILE.2 and so on, and the
  oldest is removed. Each file begins with a complete snapshot, so that it can be replayed alone.
- An existing file is never overwritten.
- Where a node goes away another one is read. While none answers, nothing is recorded; one line says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, BinaryIO, Final

from connmon import __version__
from connmon.config import Service
from connmon.errors import ConnmonError, UsageError
from connmon.protocol.credentials import Credentials
from connmon.protocol.queries import EVERYTHING, HistoryQuery
from connmon.protocol.rows import Rows
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.values import Grouping
from connmon.reader import client
from connmon.reader.cluster_status import ask
from connmon.reader.recording import EVERY, RECORDED, Frame, encode, first_line

#: Between two questions to all nodes for their status.
STATUS_SECONDS: Final = 10.0


class Rotating:
    """The file, and its older parts."""

    def __init__(self, path: str, size: int, keep: int, service: str) -> None:
        """Raises UsageError where the file is there already, or cannot be written."""
        self._path, self._size, self._keep = path, size, keep
        self._first = first_line({"service": service, "software": __version__})
        self._written = 0
        self._file = self._open()

    def _open(self) -> BinaryIO:
        try:
            file = open(self._path, "xb", buffering=0)  # noqa: SIM115  (closed by `close`)
        except FileExistsError:
            raise UsageError(f"{self._path}: is there already: name a new file, or move it away") from None
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be written: {error.strerror}") from None
        file.write(self._first)
        self._written = len(self._first)
        return file

    @property
    def fresh(self) -> bool:
        """No frame is in the file yet."""
        return self._written == len(self._first)

    def fits(self, line: bytes) -> bool:
        return self.fresh or self._written + len(line) <= self._size

    def rotate(self) -> None:
        """Begin a new file."""
        self._file.close()
        for number in range(self._keep, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, f"{self._path}.{number}")
        self._file = self._open()

    def write(self, line: bytes) -> None:
        """Raises ConnmonError where the disk does not take it."""
        try:
            self._file.write(line)
        except OSError as error:
            with contextlib.suppress(OSError):  # half a frame is none
                self._file.truncate(self._written)
            raise ConnmonError(f"{self._path}: cannot be written: {error.strerror}") from None
        self._written += len(line)

    def close(self) -> None:
        self._file.close()


class Recorder:
    """Reads a node, and another one where it goes away; makes recorded snapshots of the answers."""

    def __init__(self, service: Service, credentials: Credentials) -> None:
        self._service, self._credentials = service, credentials
        self._client: client.Client | None = None
        self._nodes_again = 0.0
        self._snapshots: dict[Grouping, Snapshot] = {}

    def frame(self, complete: bool) -> Frame:
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
        return Frame(round(time.time(), 3), complete, answers, timeouts, self._nodes(complete))

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
        with _signals():
            due = time.monotonic()
            while times is None or number < times:
                try:
                    frame = recorder.frame(since % EVERY == 0)
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
    except (KeyboardInterrupt, _Ended):
        pass
    finally:
        recorder.close()
        if file is not None:
            file.close()
    print(f"connmon: {number} snapshots in {path}", file=sys.stderr, flush=True)
    return 0


class _Ended(BaseException):
    """SIGTERM or SIGHUP came."""


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """End after SIGTERM and SIGHUP as after Ctrl-C, between two pictures or in the middle of asking."""

    def ended(number: int, frame: FrameType | None) -> None:
        raise _Ended

    before = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A CSV file that grows by whole rows, rotates by size, and survives a disk that is full.

- What could not be written whole is taken back: the file never has half a row, and after a crash
  in the middle of one what is left of it is cut off.
- When the file would grow beyond its size it becomes FILE.1, FILE.1 becomes FILE.2 and so on; the
  oldest goes. Each file begins with the heading; one that has another heading is rotated.
- One warning where writing fails, one line when it works again; the rows between are lost.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Final

from connmon.cluster.writable import check_file

logger = logging.getLogger(__name__)

#: How much of the file's end is looked at for the end of its last row.
TAIL: Final = 1024 * 1024


class DumpFile:
    """Not for several threads at once. `size` is in bytes; `keep` is how many old files there are."""

    def __init__(self, path: str, heading: str, size: int, keep: int) -> None:
        self._path = Path(path)
        self._heading = heading.encode()
        self._size = size
        self._keep = keep
        self._failed = False

    def check(self) -> None:
        """Raise OSError where the file cannot be written to; what was not there is there then."""
        os.close(self._open())

    def check_only(self) -> None:
        """Raise OSError where `check` would, and leave the disk as it is."""
        check_file(str(self._path))

    def write(self, rows: str) -> bool:
        """Append whole rows; return whether that could be done."""
        try:
            self._write(rows.encode())
        except OSError as error:
            if not self._failed:
                logger.warning(
                    "csv_dump %s cannot be written: %s; rows are left out until it can",
                    self._path, error.strerror,
                )  # fmt: skip
            self._failed = True
            return False
        if self._failed:
            self._failed = False
            logger.warning("csv_dump %s is written again", self._path)
        return True

    def _write(self, rows: bytes) -> None:
        descriptor = self._open()
        try:
            size = self._mended(descriptor)
            stale = size > 0 and os.pread(descriptor, len(self._heading), 0) != self._heading
            if stale or (size > len(self._heading) and size + len(rows) > self._size):
                self._rotate()
                os.close(descriptor)
                descriptor = -1
                descriptor, size = self._open(), 0
            _append(descriptor, size, rows if size else self._heading + rows)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _open(self) -> int:
        # Non-blocking, for a pipe that somebody put there.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o640)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file")
        return descriptor

    def _mended(self, descriptor: int) -> int:
        """Cut off half a row at the end; return the file's size."""
        size = os.fstat(descriptor).st_size
        start = max(0, size - TAIL)
        tail = os.pread(descriptor, TAIL, start)
        if tail and not tail.endswith(b"\n"):
            size = start + tail.rfind(b"\n") + 1
            os.ftruncate(descriptor, size)
        return size

    def _rotate(self) -> None:
        if self._keep == 0:
            self._path.unlink()
            return
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _append(descriptor: int, size: int, data: bytes) -> None:
    """Write all of it or nothing."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise

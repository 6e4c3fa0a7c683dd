"""A file that grows by whole records and rotates by size.

- A record that could not be written whole is cut off again, and so is half a record at the end of a file
  that is opened: after a full disk or a crash the file has whole records only. Records end with a line feed.
- On rotation FILE becomes FILE.1, FILE.1 becomes FILE.2 and so on; the oldest is removed. Each file begins
  with the heading.

Not logging.handlers.RotatingFileHandler: it leaves half a record after a full disk, reports errors to
nobody, and has no heading.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

#: The end of a file that is searched for the end of its last record.
_TAIL_BYTES: Final = 1024 * 1024
_FILE_MODE: Final = 0o640


class RotatingFile:
    """Not for several threads at once. All methods raise OSError.

    `size_bytes` limits each file, unless a single record is larger; `keep` is the number of old files.
    """

    def __init__(self, path: str, heading: bytes, size_bytes: int, keep: int) -> None:
        self.path = path
        self._heading = heading
        self._size_bytes = size_bytes
        self._keep = keep
        self._descriptor = -1
        self._size = 0

    def __repr__(self) -> str:
        return f"<RotatingFile {self.path}: {self._size} of {self._size_bytes} bytes>"

    def open(self, *, new: bool = False) -> None:
        """Open the file, or make it. `new`: FileExistsError if it exists."""
        # Non-blocking, in case it is a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self.path, flags | (os.O_EXCL if new else 0), _FILE_MODE)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            self._size = self._mended_size()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fits(self, record: bytes) -> bool:
        """Return whether the record belongs into this file rather than the next one."""
        return self._size <= len(self._heading) or self._size + len(record) <= self._size_bytes

    @property
    def has_other_heading(self) -> bool:
        """Whether the file begins with something else than the heading."""
        return self._size > 0 and os.pread(self._descriptor, len(self._heading), 0) != self._heading

    def append(self, record: bytes) -> None:
        """Write all of the record, after the heading in an empty file, or nothing."""
        view = memoryview(record if self._size else self._heading + record)
        length = len(view)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += length

    def rotate(self, *, new: bool = False) -> None:
        """Rename the files and open an empty one. `new` as for `open`."""
        self.close()
        if self._keep == 0:
            os.unlink(self.path)
        for number in range(self._keep, 0, -1):
            newer = self.path if number == 1 else f"{self.path}.{number - 1}"
            if os.path.exists(newer):
                os.replace(newer, f"{self.path}.{number}")
        self.open(new=new)

    def _mended_size(self) -> int:
        """Cut off half a record at the end; return the file's size."""
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(self._descriptor, _TAIL_BYTES, start)
        if tail and not tail.endswith(b"\n"):
            size = start + tail.rfind(b"\n") + 1
            os.ftruncate(self._descriptor, size)
        return size

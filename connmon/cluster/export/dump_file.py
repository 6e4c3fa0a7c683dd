"""The file of the CSV dump: rotated, and written again by itself after a full disk.

One warning is logged when writing fails, and one when it works again; the rows between are lost. A file with
another heading, from another configuration, is rotated.
"""

from __future__ import annotations

import logging

from connmon.cluster.writable import check_file
from connmon.rotating_file import RotatingFile

logger = logging.getLogger(__name__)


class DumpFile:
    """Not for several threads at once. `size_bytes` and `keep` as for RotatingFile."""

    def __init__(self, path: str, heading: str, size_bytes: int, keep: int) -> None:
        self._file = RotatingFile(path, heading.encode(), size_bytes, keep)
        self._failed = False

    def __repr__(self) -> str:
        return f"<DumpFile {self._file!r}{', failing' if self._failed else ''}>"

    def check(self) -> None:
        """Raise OSError if the file cannot be written to. Makes the file."""
        self._file.open()
        self._file.close()

    def check_only(self) -> None:
        """Raise OSError if `check` would. Makes nothing."""
        check_file(self._file.path)

    def write(self, rows: str) -> bool:
        """Append whole rows; return whether that succeeded."""
        try:
            self._write(rows.encode())
        except OSError as error:
            if not self._failed:
                logger.warning(
                    "csv_dump %s cannot be written: %s; rows are left out until it can",
                    self._file.path, error.strerror,
                )  # fmt: skip
            self._failed = True
            return False
        if self._failed:
            self._failed = False
            logger.warning("csv_dump %s is written again", self._file.path)
        return True

    def _write(self, rows: bytes) -> None:
        file = self._file
        file.open()  # each time: an operator may have moved the file away
        try:
            if file.has_other_heading or not file.fits(rows):
                file.rotate()
            file.append(rows)
        finally:
            file.close()

"""A file of whole records that rotates by size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from connmon.rotating_file import RotatingFile


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_rotation_keeps_so_many_old_files(tmp_path: Path, keep: int) -> None:
    """The newest records are in FILE, older ones in FILE.1 and on; each file begins with the heading."""
    file = RotatingFile(str(tmp_path / "f"), b"head\n", size_bytes=12, keep=keep)
    file.open()
    for number in range(5):
        record = b"%d....\n" % number
        if not file.fits(record):
            file.rotate()
        file.append(record)
    file.close()
    names = ["f", "f.1", "f.2", "f.3"][: keep + 1]
    assert contents(tmp_path) == {name: b"head\n%d....\n" % (4 - at) for at, name in enumerate(names)}


def test_a_record_larger_than_the_file_goes_alone(tmp_path: Path) -> None:
    """It fits into an empty file only."""
    file = RotatingFile(str(tmp_path / "f"), b"head\n", size_bytes=12, keep=1)
    file.open()
    assert file.fits(b"x" * 100)
    file.append(b"x" * 99 + b"\n")
    assert not file.fits(b"y\n")
    file.close()


def test_half_a_record_is_cut_off_when_the_file_is_opened(tmp_path: Path) -> None:
    """A crash in the middle of a record leaves whole records only."""
    path = tmp_path / "f"
    path.write_bytes(b"head\none\ntw")
    file = RotatingFile(str(path), b"head\n", size_bytes=100, keep=1)
    file.open()
    assert not file.has_other_heading
    file.append(b"two\n")
    file.close()
    assert path.read_bytes() == b"head\none\ntwo\n"


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write is undone and raised."""
    write = os.write

    def full_disk(descriptor: int, data: bytes) -> int:
        if len(data) < 4:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) - 3])

    path = tmp_path / "f"
    file = RotatingFile(str(path), b"head\n", size_bytes=100, keep=1)
    file.open()
    file.append(b"one\n")
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"two two\n")
    file.close()
    assert path.read_bytes() == b"head\none\n"


def test_an_existing_file_is_not_opened_as_a_new_one(tmp_path: Path) -> None:
    """`new` refuses an existing file, and a directory is no file to write to."""
    path = tmp_path / "f"
    path.write_bytes(b"")
    with pytest.raises(FileExistsError):
        RotatingFile(str(path), b"", size_bytes=1, keep=1).open(new=True)
    with pytest.raises(OSError):
        RotatingFile(str(tmp_path), b"", size_bytes=1, keep=1).open()

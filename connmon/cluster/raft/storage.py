"""`data_dir`: the log and the checkpoint of one node on disk, so that a restart does not forget them.

The files: `identity` (the node and the format), `lock`, `journal`, and `snapshot`, which has the checkpoint.
The rules kept here:

- One node, one directory. Another node's, another service's and one in use are refused, and so is one with a
  file that is damaged, truncated or missing. Nothing is guessed: the other nodes have it all.
- pysyncobj's own journal writes to a mapped file, and a full disk kills its process (SIGBUS). This one writes
  at the end and then, in one block in place, how far the log goes, with term and vote: what kill -9 tears off
  was never counted, and the vote is kept on a full disk too.
- A disk that fails while the node runs is logged once; the node goes on in memory. The disk keeps a whole,
  older state. Everything is written again, the checkpoint first, as soon as that is possible.
- The checkpoint is written to a temporary file, synced and renamed. The journal is not synced: it survives
  the process, not a power failure of the host.
- A checkpoint has one envelope on disk: a header with size and checksum before the encoded `Checkpoint`. Only
  this module knows it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.state.machine import State
from connmon.cluster.writable import check_directory, check_parent
from connmon.errors import ConfigError, ProtocolError, one_line

logger = logging.getLogger(__name__)

FORMAT: Final = 1
#: Between two attempts to write again what could not be written.
DISK_RETRY_SECONDS: Final = 5.0
#: The file that has the checkpoint.
_CHECKPOINT_FILE: Final = "snapshot"

_MAGIC: Final = b"connmonJ"
_CHECKPOINT_MAGIC: Final = b"connmonS"
_HEADER: Final = struct.Struct("<8sIQQQB?H")  # magic, format, end, term, commit, voted, behind, name's size
_BLOCK: Final = 512
_RECORD: Final = struct.Struct("<II")  # size and checksum of what follows
_ENTRY: Final = struct.Struct("<QQ")  # index, term; the command follows
_CHECKPOINT_HEADER: Final = struct.Struct("<8sIQI")  # magic, format, size, checksum; the checkpoint follows
_decoder: Final = msgspec.msgpack.Decoder(Checkpoint)

_Entry = tuple[bytes, int, int]


class DataDir:
    """The directory of a node, locked until `close`. It is the group's store (follower.Store).

    Raises ConfigError if the directory cannot be made, locked or used.
    """

    def __init__(self, path: str, service: str, node: str, origin: str = "") -> None:
        self._begin(path, service, (node,), origin)

    def _begin(self, path: str, service: str, nodes: Sequence[str], origin: str) -> None:
        self.path = Path(path)
        self._where = f"{origin} " if origin else ""
        self._lock = -1
        self._unwritten: Checkpoint | None = None
        """What is still to be written; None: the file is up to date."""
        self._kept: Checkpoint | None = None
        """What the file had when the directory was opened, until `load`."""
        try:
            self._open(service, nodes)
        except OSError as error:
            self.close()
            raise self._error(
                f"{error.strerror or error}; name a directory that connmond may write to"
            ) from None
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} unwritten={self._unwritten!r}>"

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}data_dir {one_line(str(self.path))}: {problem}")

    def damaged(self, problem: str) -> ConfigError:
        return self._error(
            f"{problem}; move its files away to start this node without them: the other nodes, or else "
            "the applications, bring the present back"
        )

    def _open(self, service: str, nodes: Sequence[str]) -> None:
        if not self._make():
            return
        if not self.path.is_dir():
            raise self._error("not a directory; name a directory that is this node's own")
        identity, names = self.path / "identity", set(os.listdir(self.path)) - {"lost+found"}
        if "identity" not in names and names - {"lock", "journal", "identity.tmp"}:
            raise self._error("holds files but no identity of a connmon node; name an empty directory")
        if not self._hold():
            return
        self._probe()
        fresh = "identity" not in names
        if not fresh:
            self._check(identity.read_bytes(), service, nodes)
            if "journal" not in names:
                raise self.damaged("the journal is missing")
        elif "journal" in names and (self.path / "journal").stat().st_size > _BLOCK:
            raise self.damaged("the identity is missing")
        self._kept = self._read_checkpoint()
        self._open_journal(fresh, service, nodes)

    def _make(self) -> bool:
        """Make the directory. Return whether its files can be read."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        return True

    def _hold(self) -> bool:
        """Lock the directory. Return whether its files can be read."""
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._error("in use by another connmond; each node needs a directory of its own") from None
        return True

    def _probe(self) -> None:
        """Raise OSError if no file can be written into the directory."""
        self._write("probe", b"x")
        os.unlink(self.path / "probe")

    def _open_journal(self, fresh: bool, service: str, nodes: Sequence[str]) -> None:
        self.journal = Journal(self, fresh)
        try:
            self._compare(self.journal)
            if fresh:
                owner = {"connmon": "data_dir", "format": FORMAT, "service": service, "node": nodes[0]}
                self._write("identity", json.dumps(owner).encode() + b"\n")
        except BaseException:
            self.journal._destroy()
            raise

    def _compare(self, journal: Journal) -> None:
        """Raise ConfigError if checkpoint and journal do not belong together."""
        first = int(journal[0][1]) if len(journal) else 0
        checkpoint = self._kept
        if first > 1 and checkpoint is None:
            raise self.damaged("the checkpoint is missing")
        if checkpoint is not None and checkpoint.index < first:
            raise self.damaged("the checkpoint is older than the journal")
        if journal.commit > max(journal.last, 1 if checkpoint is None else checkpoint.index):
            raise self.damaged("the journal is truncated")

    def _check(self, data: bytes, service: str, nodes: Sequence[str]) -> None:
        try:
            identity: Any = json.loads(data)
            known, form = identity["connmon"] == "data_dir", int(identity["format"])
            owner = str(identity["service"]), str(identity["node"])
        except (ValueError, KeyError, TypeError):
            known, form, owner = False, 0, ("", "")
        if not known:
            raise self.damaged("the identity is damaged")
        if form != FORMAT:
            raise self._error(
                f"in format {form}, {FORMAT} is known here; run the version of connmon that wrote it"
            )
        if owner[0] != service or owner[1] not in nodes:
            expected = " or ".join(map(repr, nodes))
            raise self._error(
                f"belongs to node {one_line(owner[1])!r} of service {one_line(owner[0])!r}, not to node "
                f"{expected} of service {service!r}; name a directory that is this node's own"
            )

    def _read_checkpoint(self) -> Checkpoint | None:
        try:
            data = (self.path / _CHECKPOINT_FILE).read_bytes()
        except FileNotFoundError:
            return None
        if len(data) < _CHECKPOINT_HEADER.size:
            raise self.damaged("the checkpoint is truncated")
        magic, form, size, check = _CHECKPOINT_HEADER.unpack_from(data)
        body = memoryview(data)[_CHECKPOINT_HEADER.size :]
        if magic != _CHECKPOINT_MAGIC or form != FORMAT:
            raise self.damaged("the checkpoint is damaged, or of another version")
        if len(body) < size:
            raise self.damaged("the checkpoint is truncated")
        if len(body) != size or zlib.crc32(body) != check:
            raise self.damaged("the checkpoint is damaged")
        try:
            return _decoder.decode(body)
        except (msgspec.MsgspecError, ValueError):
            raise self.damaged("the checkpoint is damaged") from None

    def _write(self, name: str, *parts: bytes) -> None:
        """Replace a file as a whole. If that raises OSError, the old file stays."""
        temporary = self.path / f"{name}.tmp"
        try:
            with temporary.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def close(self) -> None:
        """Unlock the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- follower.Store ---

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep this from now on. Never raises: what the disk does not take is written later."""
        self._unwritten = checkpoint
        if not self.journal.behind:
            try:
                self.flush()
            except OSError as error:
                self.journal.fall_behind(error)

    def load(self) -> Checkpoint | None:
        """Return what was kept when the directory was opened, once."""
        kept, self._kept = self._kept, None
        return kept

    def drop(self) -> None:
        """Keep nothing."""
        self._unwritten = None
        try:
            (self.path / _CHECKPOINT_FILE).unlink(missing_ok=True)
        except OSError as error:
            self.journal.fall_behind(error)

    def flush(self) -> None:
        """Write what is still to be written. Raises OSError."""
        checkpoint = self._unwritten
        if checkpoint is not None:
            body = msgspec.msgpack.encode(checkpoint)
            header = _CHECKPOINT_HEADER.pack(_CHECKPOINT_MAGIC, FORMAT, len(body), zlib.crc32(body))
            self._write(_CHECKPOINT_FILE, header, body)
            self._unwritten = None
            logger.debug("data_dir %s: wrote %r", self.path, checkpoint)


class Trial(DataDir):
    """The checks of `DataDir` without making, writing or locking anything.

    `nodes`: any of these may own the directory. Raises ConfigError as `DataDir` does, and if the node could
    not load the checkpoint.
    """

    def __init__(self, path: str, service: str, nodes: Sequence[str], origin: str = "") -> None:
        self.running = False
        """A node has the directory; its files were not read."""
        self._begin(path, service, nodes, origin)
        self.close()

    def _make(self) -> bool:
        if os.path.lexists(self.path):
            return True
        check_parent(str(self.path))
        return False

    def _hold(self) -> bool:
        try:
            lock = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.running = True
            return False
        finally:
            os.close(lock)
        return True

    def _probe(self) -> None:
        check_directory(str(self.path))

    def _open_journal(self, fresh: bool, service: str, nodes: Sequence[str]) -> None:
        if fresh:
            return
        journal = Journal(self, False, read_only=True)
        os.close(journal._file)
        self._compare(journal)
        if self._kept is not None:
            try:
                State.load(self._kept.state)
            except ProtocolError as error:
                raise self.damaged(str(error)) from None


def _record(entry: _Entry) -> bytes:
    command, index, term = entry
    body = _ENTRY.pack(index, term) + command
    return _RECORD.pack(len(body), zlib.crc32(body)) + body


class Journal:
    """The log, in memory and on disk: a journal for pysyncobj, by its method names (log.Journal)."""

    def __init__(self, directory: DataDir, fresh: bool, read_only: bool = False) -> None:
        self._directory = directory
        self._path = directory.path / "journal"
        self._entries: list[_Entry] = []
        self._ends: list[int] = []
        self._term = 0
        self._vote: str | None = None
        self.commit = 1
        self._end = _BLOCK
        self._dirty = False
        self.behind = False
        """The disk has not taken everything."""
        self.forgetful = fresh
        """Whether it may have voted without knowing: this member must not vote for a while."""
        self._retry_at = 0.0
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        flags |= os.O_CREAT | os.O_TRUNC if fresh else 0
        self._file = os.open(self._path, flags, 0o600)
        try:
            if fresh:
                self._write_header()
            else:
                self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __repr__(self) -> str:
        return f"<Journal {self._path} {len(self)} entries, last {self.last}, behind={self.behind}>"

    @property
    def last(self) -> int:
        return self._entries[-1][1] if self._entries else 0

    def _read(self) -> None:
        damaged = self._directory.damaged
        data = self._path.read_bytes()
        if len(data) < _BLOCK:
            raise damaged("the journal is truncated")
        magic, form, end, self._term, self.commit, voted, behind, size = _HEADER.unpack_from(data)
        block = data[: _BLOCK - 4]
        if magic != _MAGIC or zlib.crc32(block) != int.from_bytes(data[_BLOCK - 4 : _BLOCK], "little"):
            raise damaged("the journal is damaged")
        if form != FORMAT:
            raise damaged(f"the journal is in format {form}, {FORMAT} is known here")
        self._vote = block[_HEADER.size : _HEADER.size + size].decode() if voted else None
        if len(data) < end:
            raise damaged("the journal is truncated")
        at = _BLOCK
        while at < end:
            length, check = _RECORD.unpack_from(data, at) if at + _RECORD.size <= end else (0, 0)
            at += _RECORD.size
            body = data[at : at + length]
            at += length
            if length < _ENTRY.size or at > end or zlib.crc32(body) != check:
                raise damaged("the journal is damaged")
            index, term = _ENTRY.unpack_from(body)
            if self._entries and index != self.last + 1:
                raise damaged("the journal is damaged")
            self._entries.append((body[_ENTRY.size :], index, term))
            self._ends.append(at)
        self._end = end
        if behind:
            self.forgetful = True
            logger.warning(
                "data_dir %s: the disk was full when the node ended; what came then is not in it",
                self._directory.path,
            )

    def _header(self, end: int, behind: bool) -> bytes:
        vote = (self._vote or "").encode()
        values = (FORMAT, end, self._term, self.commit, self._vote is not None, behind, len(vote))
        block = (_HEADER.pack(_MAGIC, *values) + vote).ljust(_BLOCK - 4, b"\0")
        return block + zlib.crc32(block).to_bytes(4, "little")

    def _write_header(self) -> None:
        """Write how far the log goes: one block, in place."""
        if os.pwrite(self._file, self._header(self._end, self.behind), 0) != _BLOCK:
            raise OSError("the disk takes no more")
        self._dirty = False

    def fall_behind(self, error: OSError) -> None:
        """Go on in memory; what is on disk stays as it is."""
        self._retry_at = time.monotonic() + DISK_RETRY_SECONDS
        if self.behind:
            return
        self.behind = True
        logger.warning(
            "data_dir %s cannot be written to: %s; the node goes on in memory and tries again",
            self._directory.path,
            error.strerror or error,
        )
        with contextlib.suppress(OSError):
            self._write_header()

    def _rewrite(self) -> None:
        """Replace the file with all entries. Raises OSError."""
        ends, parts, end = [], [], _BLOCK
        for entry in self._entries:
            parts.append(_record(entry))
            end += len(parts[-1])
            ends.append(end)
        self._directory._write("journal", self._header(end, False) + b"".join(parts))
        file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        os.close(self._file)
        self._file, self._ends, self._end, self._dirty = file, ends, end, False

    # --- what pysyncobj calls ---

    def add(self, command: bytes, index: int, term: int) -> None:
        entry = (bytes(command), index, term)
        self._entries.append(entry)
        if self.behind:
            return
        data = _record(entry)
        before = self._end
        try:
            if os.pwrite(self._file, data, before) != len(data):
                raise OSError("the disk is full")
            self._end = before + len(data)
            self._ends.append(self._end)
            self._write_header()
        except OSError as error:
            self._end = before
            self.fall_behind(error)

    def clear(self) -> None:
        self.deleteEntriesFrom(0)

    def deleteEntriesFrom(self, start: int) -> None:
        del self._entries[start:]
        if self.behind:
            return
        del self._ends[start:]
        self._end = self._ends[-1] if self._ends else _BLOCK
        try:
            self._write_header()
        except OSError as error:
            self.fall_behind(error)

    def deleteEntriesTo(self, end: int) -> None:
        del self._entries[:end]
        if not self.behind:
            try:
                self._rewrite()
            except OSError as error:
                self.fall_behind(error)

    def __getitem__(self, index: Any) -> Any:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, index: int) -> None:
        self.commit = index
        self._dirty = True

    def getRaftCommitIndex(self) -> int:
        return self.commit

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self._term, self._vote = term, vote
        try:
            self._write_header()
        except OSError as error:
            self.fall_behind(error)

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._vote

    def onOneSecondTimer(self) -> None:
        if self.behind and time.monotonic() >= self._retry_at:
            try:
                self._directory.flush()
                self._rewrite()
            except OSError as error:
                self.fall_behind(error)
            else:
                self.behind = False
                logger.warning("data_dir %s is written to again", self._directory.path)
        elif self._dirty and not self.behind:
            try:
                self._write_header()
            except OSError as error:
                self.fall_behind(error)

    def _destroy(self) -> None:
        with contextlib.suppress(OSError):
            if not self.behind:
                self._write_header()
        os.close(self._file)

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.raft.settings import RaftSettings
from connmon.cluster.state.machine import StateMachine
from connmon.cluster.writable import check_directory, check_parent
from connmon.errors import ConfigError, ProtocolError, one_line

logger = logging.getLogger(__name__)

FORMAT: Final = 1
_JOURNAL_FILE: Final = "journal"
_CHECKPOINT_FILE: Final = "snapshot"

_MAGIC: Final = b"connmonJ"
_CHECKPOINT_MAGIC: Final = b"connmonS"
_HEADER: Final = struct.Struct("<8sIQQQB?H")  # magic, format, end, term, commit, voted, behind, name's size
_BLOCK_BYTES: Final = 512
_RECORD: Final = struct.Struct("<II")  # size and checksum of what follows
_ENTRY: Final = struct.Struct("<QQ")  # index, term; the command follows
_CHECKPOINT_HEADER: Final = struct.Struct("<8sIQI")  # magic, format, size, checksum; the checkpoint follows
_decoder: Final = msgspec.msgpack.Decoder(Checkpoint)

_Entry = tuple[bytes, int, int]


class _Directory:
    """The files of a data_dir, and the errors that name it."""

    def __init__(self, path: str, origin: str) -> None:
        self.path = Path(path)
        self._where = f"{origin} " if origin else ""

    def error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}data_dir {one_line(str(self.path))}: {problem}")

    def damaged(self, problem: str) -> ConfigError:
        return self.error(
            f"{problem}; move its files away to start this node without them: the other nodes, or else "
            "the applications, bring the present back"
        )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raise ConfigError for each OSError in the block."""
        try:
            yield
        except OSError as error:
            problem = f"{error.strerror or error}; name a directory that connmond may write to"
            raise self.error(problem) from None

    def names(self) -> set[str]:
        """Return the names of its files. Raises OSError and ConfigError."""
        if not self.path.is_dir():
            raise self.error("not a directory; name a directory that is this node's own")
        names = set(os.listdir(self.path)) - {"lost+found"}
        if "identity" not in names and names - {"lock", "journal", "identity.tmp"}:
            raise self.error("holds files but no identity of a connmon node; name an empty directory")
        return names

    def check_owner(self, names: set[str], service: str, nodes: Sequence[str]) -> bool:
        """Return whether one of the nodes has it; False: nobody has. Raises OSError and ConfigError."""
        if "identity" not in names:
            if "journal" in names and (self.path / "journal").stat().st_size > _BLOCK_BYTES:
                raise self.damaged("the identity is missing")
            return False
        self._check_identity((self.path / "identity").read_bytes(), service, nodes)
        if "journal" not in names:
            raise self.damaged("the journal is missing")
        return True

    def _check_identity(self, data: bytes, service: str, nodes: Sequence[str]) -> None:
        try:
            identity: Any = json.loads(data)
            known, form = identity["connmon"] == "data_dir", int(identity["format"])
            owner = str(identity["service"]), str(identity["node"])
        except (ValueError, KeyError, TypeError):
            known, form, owner = False, 0, ("", "")
        if not known:
            raise self.damaged("the identity is damaged")
        if form != FORMAT:
            raise self.error(
                f"in format {form}, {FORMAT} is known here; run the version of connmon that wrote it"
            )
        if owner[0] != service or owner[1] not in nodes:
            expected = " or ".join(map(repr, nodes))
            raise self.error(
                f"belongs to node {one_line(owner[1])!r} of service {one_line(owner[0])!r}, not to node "
                f"{expected} of service {service!r}; name a directory that is this node's own"
            )

    def write_identity(self, service: str, node: str) -> None:
        owner = {"connmon": "data_dir", "format": FORMAT, "service": service, "node": node}
        self.replace("identity", json.dumps(owner).encode() + b"\n")

    def replace(self, name: str, *parts: bytes) -> None:
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

    def probe(self) -> None:
        """Raise OSError if no file can be written."""
        self.replace("probe", b"x")
        os.unlink(self.path / "probe")

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint. Raises OSError."""
        body = msgspec.msgpack.encode(checkpoint)
        header = _CHECKPOINT_HEADER.pack(_CHECKPOINT_MAGIC, FORMAT, len(body), zlib.crc32(body))
        self.replace(_CHECKPOINT_FILE, header, body)
        logger.debug("data_dir %s: wrote %r", self.path, checkpoint)

    def remove_checkpoint(self) -> None:
        """Remove the checkpoint, if there is one. Raises OSError."""
        (self.path / _CHECKPOINT_FILE).unlink(missing_ok=True)

    def read_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint, if there is one. Raises OSError and ConfigError."""
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

    def read_journal(self) -> _JournalContent:
        """Return what the journal has. Raises OSError and ConfigError."""
        try:
            content = _parse_journal((self.path / _JOURNAL_FILE).read_bytes())
        except _DamagedError as error:
            raise self.damaged(str(error)) from None
        if content.behind:
            logger.warning(
                "data_dir %s: the disk was full when the node ended; what came then is not in it", self.path
            )
        return content

    def check_pair(self, checkpoint: Checkpoint | None, journal: _JournalContent) -> None:
        """Raise ConfigError if checkpoint and journal do not belong together."""
        if journal.first > 1 and checkpoint is None:
            raise self.damaged("the checkpoint is missing")
        if checkpoint is not None and checkpoint.index < journal.first:
            raise self.damaged("the checkpoint is older than the journal")
        if journal.commit > max(journal.last, 1 if checkpoint is None else checkpoint.index):
            raise self.damaged("the journal is truncated")


class DataDir:
    """The directory of a node, locked until `close`. It is the group's store (`follower.Store`).

    Raises ConfigError if the directory cannot be made, locked or used.
    """

    def __init__(
        self,
        path: str,
        service: str,
        node: str,
        origin: str = "",
        settings: RaftSettings | None = None,
    ) -> None:
        self._directory = directory = _Directory(path, origin)
        self._settings = settings or RaftSettings()
        self._unwritten: Checkpoint | None = None
        """What is still to be written; None: the file is up to date."""
        self._kept: Checkpoint | None = None
        """What the file had when the directory was opened, until `load`."""
        self._lock = -1
        try:
            with directory.errors():
                self._open(directory, service, node)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<DataDir {self._directory.path} {self.journal!r} unwritten={self._unwritten!r}>"

    def _open(self, directory: _Directory, service: str, node: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory.path, 0o700)
        names = directory.names()
        self._lock = os.open(directory.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise directory.error(
                "in use by another connmond; each node needs a directory of its own"
            ) from None
        directory.probe()
        content: _JournalContent | None = None
        if directory.check_owner(names, service, (node,)):
            self._kept = directory.read_checkpoint()
            content = directory.read_journal()
            directory.check_pair(self._kept, content)
        self.journal = Journal(directory, content, self.flush, self._settings)
        if content is None:
            try:
                directory.write_identity(service, node)
            except BaseException:
                self.journal._destroy()
                raise

    def damaged(self, problem: str) -> ConfigError:
        """Return the error that the files cannot be used, and what to do."""
        return self._directory.damaged(problem)

    def close(self) -> None:
        """Unlock the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

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
            self._directory.remove_checkpoint()
        except OSError as error:
            self.journal.fall_behind(error)

    def flush(self) -> None:
        """Write what is still to be written. Raises OSError."""
        if self._unwritten is not None:
            self._directory.write_checkpoint(self._unwritten)
            self._unwritten = None


def check_data_dir(path: str, service: str, nodes: Sequence[str], origin: str = "") -> bool:
    """Make the checks of `DataDir` without making, writing or locking anything.

    `nodes`: any of these may own the directory. Returns whether a node runs there, whose files are then not
    read. Raises ConfigError as `DataDir` does, and if the node could not load the checkpoint.
    """
    directory = _Directory(path, origin)
    with directory.errors():
        if not os.path.lexists(path):
            check_parent(path)
            return False
        names = directory.names()
        if _is_locked(directory.path / "lock"):
            return True
        check_directory(path)
        if not directory.check_owner(names, service, nodes):
            return False
        checkpoint = directory.read_checkpoint()
        directory.check_pair(checkpoint, directory.read_journal())
        if checkpoint is not None:
            try:
                StateMachine.decode(checkpoint.state)
            except ProtocolError as error:
                raise directory.damaged(str(error)) from None
        return False


def _is_locked(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


# --- the journal ----------------------------------------------------------------------------


class _DamagedError(Exception):
    """A journal cannot be read; the message says why."""


class _JournalContent(NamedTuple):
    """What a journal's file has."""

    entries: list[_Entry]
    ends: list[int]
    """Where each entry ends, in bytes from the file's start."""
    end: int
    """Where the log ends; bytes after that do not count."""
    term: int
    vote: str | None
    commit: int
    behind: bool
    """The disk was full when the node ended."""

    @property
    def first(self) -> int:
        return self.entries[0][1] if self.entries else 0

    @property
    def last(self) -> int:
        return self.entries[-1][1] if self.entries else 0


def _parse_journal(data: bytes) -> _JournalContent:
    """Return what a journal has. Raises _DamagedError."""
    if len(data) < _BLOCK_BYTES:
        raise _DamagedError("the journal is truncated")
    magic, form, end, term, commit, voted, behind, size = _HEADER.unpack_from(data)
    block = data[: _BLOCK_BYTES - 4]
    checksum = int.from_bytes(data[_BLOCK_BYTES - 4 : _BLOCK_BYTES], "little")
    if magic != _MAGIC or zlib.crc32(block) != checksum:
        raise _DamagedError("the journal is damaged")
    if form != FORMAT:
        raise _DamagedError(f"the journal is in format {form}, {FORMAT} is known here")
    vote = block[_HEADER.size : _HEADER.size + size].decode() if voted else None
    if len(data) < end:
        raise _DamagedError("the journal is truncated")
    entries: list[_Entry] = []
    ends: list[int] = []
    at = _BLOCK_BYTES
    while at < end:
        length, check = _RECORD.unpack_from(data, at) if at + _RECORD.size <= end else (0, 0)
        at += _RECORD.size
        body = data[at : at + length]
        at += length
        if length < _ENTRY.size or at > end or zlib.crc32(body) != check:
            raise _DamagedError("the journal is damaged")
        index, entry_term = _ENTRY.unpack_from(body)
        if entries and index != entries[-1][1] + 1:
            raise _DamagedError("the journal is damaged")
        entries.append((body[_ENTRY.size :], index, entry_term))
        ends.append(at)
    return _JournalContent(
        entries=entries, ends=ends, end=end, term=term, vote=vote, commit=commit, behind=behind
    )


def _record(entry: _Entry) -> bytes:
    command, index, term = entry
    body = _ENTRY.pack(index, term) + command
    return _RECORD.pack(len(body), zlib.crc32(body)) + body


class Journal:
    """The log, in memory and on disk: a journal for pysyncobj, by its method names (`log.LogJournal`).

    `content` is what the file has; None: it is made. `flush_checkpoint` writes the checkpoint if the disk has
    not taken it yet; it raises OSError.
    """

    def __init__(
        self,
        directory: _Directory,
        content: _JournalContent | None,
        flush_checkpoint: Callable[[], None],
        settings: RaftSettings,
    ) -> None:
        self._directory = directory
        self._flush_checkpoint = flush_checkpoint
        self.behind = False
        """The disk has not taken everything."""
        self.forgetful = content is None or content.behind
        """Whether it may have voted without knowing: this member must not vote for a while."""
        self._disk_retry_seconds = settings.disk_retry_seconds
        self._retry_at = 0.0
        self._dirty = False
        fresh = content is None
        if content is None:
            content = _JournalContent([], [], end=_BLOCK_BYTES, term=0, vote=None, commit=1, behind=False)
        self._entries, self._ends, self._end = content.entries, content.ends, content.end
        self._term, self._vote, self.commit = content.term, content.vote, content.commit
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if fresh else 0)
        self._file = os.open(directory.path / _JOURNAL_FILE, flags, 0o600)
        if fresh:
            try:
                self._write_header()
            except BaseException:
                os.close(self._file)
                raise

    def __repr__(self) -> str:
        return f"<Journal {len(self)} entries, last {self.last}, behind={self.behind}>"

    @property
    def last(self) -> int:
        return self._entries[-1][1] if self._entries else 0

    def _header(self, end: int, behind: bool) -> bytes:
        vote = (self._vote or "").encode()
        values = (FORMAT, end, self._term, self.commit, self._vote is not None, behind, len(vote))
        block = (_HEADER.pack(_MAGIC, *values) + vote).ljust(_BLOCK_BYTES - 4, b"\0")
        return block + zlib.crc32(block).to_bytes(4, "little")

    def _write_header(self) -> None:
        """Write how far the log goes: one block, in place."""
        if os.pwrite(self._file, self._header(self._end, self.behind), 0) != _BLOCK_BYTES:
            raise OSError("the disk takes no more")
        self._dirty = False

    def fall_behind(self, error: OSError) -> None:
        """Go on in memory; what is on disk stays as it is."""
        self._retry_at = time.monotonic() + self._disk_retry_seconds
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
        ends, parts, end = [], [], _BLOCK_BYTES
        for entry in self._entries:
            parts.append(_record(entry))
            end += len(parts[-1])
            ends.append(end)
        self._directory.replace(_JOURNAL_FILE, self._header(end, False), *parts)
        file = os.open(self._directory.path / _JOURNAL_FILE, os.O_RDWR | os.O_CLOEXEC)
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
        self._end = self._ends[-1] if self._ends else _BLOCK_BYTES
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
                self._flush_checkpoint()
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

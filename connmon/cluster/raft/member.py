"""PySyncObj, closed: one member of a Raft group, with what is dangerous in it shut off.

The only module that imports pysyncobj. The rules it keeps:

- No unpickler that knows a name. What pysyncobj pickles here is the journal's term and vote.
- Commands are bytes: a batch or nothing (`NO_OP`). pysyncobj's own membership and version
  commands are not carried out.
- No socket, no pipe, no thread. What pysyncobj sends goes out as messages of `peer`; what it
  replaces by the parts in elections, leading and following it calls by the names in `_Core`.
- `clock` is the only clock; a simulation replaces it.
- Importing pysyncobj changes nothing for anybody else: it puts a function for Windows in the place of
  `socket.inet_ntop`, everywhere, which is taken back.
"""

from __future__ import annotations

import _socket
import io
import pickle
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Final, Protocol

import pysyncobj
import pysyncobj.journal
import pysyncobj.node
import pysyncobj.pickle
import pysyncobj.syncobj
import pysyncobj.transport
from msgspec import Struct

from connmon.cluster.raft import messages
from connmon.cluster.raft.messages import BATCH, NO_OP
from connmon.errors import ProtocolError

socket.inet_ntop = _socket.inet_ntop

#: Monotonic, in seconds.
clock: Callable[[], float] = time.monotonic

#: Seconds: between two heartbeats; without one until an election, at random between these two;
#: after which a leader without a majority's answers stops being one.
HEARTBEAT: Final = 0.1
MIN_TIMEOUT: Final = 0.6
MAX_TIMEOUT: Final = 1.2
FALLBACK: Final = 2.0
#: The same for a group of one, where there is nobody to wait for.
ALONE: Final = (0.03, 0.1, 0.2)
#: Commands of other nodes that may wait here; each has one in flight.
COMMANDS: Final = 1000

# --- pysyncobj's pickle, closed -------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Reads numbers, text, bytes and containers; knows no name of any module."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is nothing that pysyncobj writes")


def _load(file: BinaryIO) -> Any:
    return _Unpickler(file).load()


def _loads(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


def _dump(value: object, file: BinaryIO, protocol: int | None = None) -> None:
    pickle.dump(value, file, 4)


def _dumps(value: object, protocol: int | None = None) -> bytes:
    # Protocol 2 writes bytes through `_codecs.encode`: one more name to allow.
    return pickle.dumps(value, 4)


def _get_meta(storer: Any) -> dict[str, Any]:
    """Return a journal's term, vote and commit index. Raises OSError and ProtocolError.

    Stock takes a file that it cannot read for none, and so forgets whom it has voted for.
    """
    path = storer.getPath()
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return {}
    try:
        return dict(_loads(content))
    except Exception as error:
        raise ProtocolError(f"{path} cannot be read: {error}") from None


def _create_journal(journal: Any) -> Any:
    """Return the journal that was given, or pysyncobj's own in the file of that name (None: in memory)."""
    given = journal is not None and not isinstance(journal, str)
    return journal if given else pysyncobj.journal.createJournal(journal)


def _close_pysyncobj() -> None:
    """Replace pysyncobj's pickling, clock and pipes, for the whole process.

    All that it still pickles here is the journal's term and vote, in a file of this node.
    """
    pysyncobj.pickle.load, pysyncobj.pickle.loads = _load, _loads
    pysyncobj.pickle.dump, pysyncobj.pickle.dumps = _dump, _dumps
    pysyncobj.journal.loads, pysyncobj.journal.dumps = _loads, _dumps
    pysyncobj.journal.MetaStorer.getMeta = _get_meta
    pysyncobj.syncobj.monotonicTime = lambda: clock()
    pysyncobj.syncobj.createJournal = _create_journal
    # A pipe per member, never closed, to wake a thread that there is not.
    pysyncobj.syncobj.PIPE_NOTIFIER_ENABLED = False


_close_pysyncobj()

# --- What it is connected with --------------------------------------------------------------


class Machine(Protocol):
    """What the log's commands are applied to."""

    def apply(self, data: bytes) -> None:
        """Apply one batch. Never raises."""

    def begin(self, name: str) -> None:
        """A leader's term begins; the name is the same everywhere, and no other's. Never raises."""

    def dump(self) -> bytes:
        """The whole state."""

    def load(self, data: bytes) -> None:
        """Become the state that was dumped. Raises ProtocolError."""

    def forget(self) -> None:
        """Become empty."""


class Carrier(Protocol):
    """What takes messages to the other nodes. Never blocks."""

    def send(self, name: str, message: messages.Message) -> bool:
        """Send; False: there is no link to that node now."""

    def room(self, name: str) -> bool:
        """Whether the link takes more than signs of life now; `Raft.roomy` says when again."""


class Store(Protocol):
    """Where the latest snapshot is kept over a restart."""

    def save(self, data: bytes) -> None:
        """Replace what is kept. Raises OSError."""

    def load(self) -> bytes | None:
        """What is kept. Raises OSError."""

    def drop(self) -> None:
        """Keep nothing. Raises OSError."""


class Image(Struct, frozen=True, array_like=True):
    """A state as of an entry of the log."""

    index: int
    term: int
    command: bytes
    state: bytes


class _Transport(pysyncobj.transport.Transport):  # type: ignore[misc]
    """What pysyncobj itself sends, as our messages."""

    def __init__(self, member: Member) -> None:
        super().__init__(None, None, ())
        self._member = member

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        return self._member.pass_on(node.id, message)


class _Nothing:
    """pysyncobj's poller, with nothing to poll."""

    def poll(self, timeout: float) -> None:
        pass


class _Core(pysyncobj.SyncObj):  # type: ignore[misc]
    """The parts of pysyncobj that are replaced; it calls them by these names."""

    def __init__(self, member: Member, *arguments: Any, **named: Any) -> None:
        self.member = member
        super().__init__(*arguments, **named)
        self._poller = _Nothing()

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        self.member.apply(command)

    def _SyncObj__sendAppendEntries(self) -> None:
        self.member.feed_all()

    def _SyncObj__tryLogCompaction(self) -> None:
        self.member.compact()


def _private(name: str) -> Any:
    """Return access to a private attribute of pysyncobj, which tests/cluster pins."""
    key = f"_SyncObj__{name}"

    def get(member: Member) -> Any:
        return getattr(member._core, key)

    def put(member: Member, value: Any) -> None:
        setattr(member._core, key, value)

    return property(get, put)


class Member:
    """What pysyncobj knows of this member, and what it is told and tells.

    `others` are the names of the other members. Raises OSError and ProtocolError where the journal
    cannot be read.
    """

    _log: Any = _private("raftLog")
    _term: int = _private("raftCurrentTerm")
    _commit: int = _private("raftCommitIndex")
    _applied: int = _private("raftLastApplied")
    _next: dict[Any, int] = _private("raftNextIndex")
    _match: dict[Any, int] = _private("raftMatchIndex")
    _answered: dict[Any, float] = _private("lastResponseTime")
    _leader: Any = _private("raftLeader")
    _deadline: float = _private("raftElectionDeadline")
    _transfer: bool = _private("transferInProgress")
    _waiting: dict[int, list[Any]] = _private("commandsWaitingCommit")
    _unanswered: dict[int, Any] = _private("commandsWaitingReply")

    def __init__(
        self,
        name: str,
        others: Sequence[str],
        machine: Machine,
        carrier: Carrier,
        journal: object | None,
        store: Store | None,
    ) -> None:
        self.name = name
        self._machine = machine
        self._carrier = carrier
        self._store = store
        self._nodes = {other: pysyncobj.node.Node(other) for other in others}
        self._connected: set[str] = set()
        self._heartbeat, shortest, longest = ALONE if not others else (HEARTBEAT, MIN_TIMEOUT, MAX_TIMEOUT)
        conf = pysyncobj.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            commandsQueueSize=COMMANDS,
            raftMinTimeout=shortest,
            raftMaxTimeout=longest,
            appendEntriesPeriod=self._heartbeat,
            leaderFallbackTimeout=FALLBACK,
            journalFile=journal,
        )
        self._core = _Core(
            self,
            pysyncobj.node.Node(name),
            list(self._nodes.values()),
            conf,
            nodeClass=pysyncobj.node.Node,
            transport=_Transport(self),
        )
        self.contact = float("-inf")
        """When the leader was last heard of; on the leader itself, a majority of the others."""
        self._applied_bytes = 0
        """Of the commands applied since the log was last cut."""
        self._leader_commit = 0
        """What a leader was last known to have committed."""
        self._quiet_until = clock()
        """Until then it votes for nobody, and does not stand for election."""
        if (journal is None or getattr(journal, "forgetful", False)) and others:
            self._be_quiet()
        self._willing: set[str] | None = None
        """Who would vote for this member in the present round; None: not asking."""
        self._commit = min(self._commit, self.last)
        self._name_leaders()

    def close(self) -> None:
        self._core.destroy()

    # --- what it knows ---

    @property
    def leader(self) -> str | None:
        return None if self._leader is None else str(self._leader.id)

    @property
    def is_leader(self) -> bool:
        return bool(self._core._isLeader())

    @property
    def term(self) -> int:
        return self._term

    @property
    def applied(self) -> int:
        """The index of the last entry applied here."""
        return self._applied

    @property
    def last(self) -> int:
        """The index of the last entry of the log."""
        return int(self._log[-1][1])

    @property
    def lag(self) -> int:
        """How many entries the leader had committed, when last heard of, that are not applied here."""
        return max(0, max(self._leader_commit, self._commit) - self._applied)

    @property
    def ready(self) -> bool:
        """Whether something of the present term is applied here.

        Only then is it known what former leaders had committed (Raft, section 8).
        """
        return bool(self._log[self._applied - self._log[0][1]][2] == self._term)

    @property
    def log_entries(self) -> int:
        return len(self._log)

    @property
    def connected(self) -> frozenset[str]:
        return frozenset(self._connected)

    # --- what the parts use ---

    def _be_quiet(self) -> None:
        """Vote for nobody for a while: this member has forgotten whom it has voted for."""
        self._quiet_until = clock() + MAX_TIMEOUT

    def _lose_leader(self) -> None:
        """Nobody leads, as far as is known here; what was proposed to him has failed."""
        self._leader = None
        self._fail_proposals()

    def _fail_proposals(self) -> None:
        self._core._SyncObj__onLeaderChanged()

    def _become_follower(self, term: int) -> None:
        """Go on to a later term, in which nobody leads yet."""
        self._core._SyncObj__setCurrentTerm(term, None)
        self._core._SyncObj__setState(pysyncobj.syncobj._RAFT_STATE.FOLLOWER)
        self._lose_leader()

    def _random_timeout(self) -> float:
        return float(self._core._SyncObj__generateRaftTimeout())

    def _run(self) -> None:
        """Have pysyncobj do what is due."""
        self._core._onTick(0.0)

    def _tell(self, node: Any, **message: Any) -> None:
        """Have pysyncobj take a message of its own kind."""
        self._core._SyncObj__onMessageReceived(node, message)

    def _name_leaders(self) -> None:
        """Have the entry with which a leader begins differ from any other's.

        It names the history that begins with it, and `check` tells it from another history's.
        """
        add = self._log.add

        def named(command: bytes, index: int, term: int) -> None:
            if command == NO_OP and index > 1:
                command += random.getrandbits(64).to_bytes(8, "big")
            add(command, index, term)

        self._log.add = named

    # --- what pysyncobj calls ---

    def apply(self, command: bytes) -> None:
        if command[:1] == BATCH:
            self._applied_bytes += len(command)
            self._machine.apply(command[1:])
        else:
            self._machine.begin(command[1:].hex())

    def feed_all(self) -> None:
        raise NotImplementedError

    def compact(self) -> None:
        raise NotImplementedError

    def pass_on(self, name: str, message: dict[str, Any]) -> bool:
        """Send what pysyncobj sends."""
        kind = message["type"]
        told: messages.Message
        if kind == "apply_command":
            told = messages.Propose(message["request_id"], message["command"])
        elif kind == "apply_command_response":
            told = messages.Proposed(
                message["request_id"],
                message.get("error"),
                message.get("log_idx", 0),
                message.get("log_term", 0),
            )
        elif kind == "request_vote":
            told = messages.RequestVote(message["term"], message["last_log_term"], message["last_log_index"])
        elif kind == "response_vote":
            told = messages.Vote(message["term"])
        elif kind == "timeout_now":
            told = messages.TimeoutNow(message["term"])
        else:
            raise AssertionError(f"pysyncobj sends {kind!r}, which is not expected of it")
        sent = self._carrier.send(name, told)
        if not sent and isinstance(told, messages.Propose):
            answered = self._unanswered.pop(told.request, None)
            if answered is not None:
                answered(None, pysyncobj.FAIL_REASON.MISSING_LEADER)
        return sent

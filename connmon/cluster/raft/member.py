"""pysyncobj behind names of our own: terms, votes, the log, and the rule of what is committed.

The only module that imports pysyncobj, or knows its private attributes. The rules kept here:

- No unpickler that knows a name. What pysyncobj pickles here is the journal's term and vote.
- Commands are bytes: a batch or a no-op. pysyncobj's own membership and version commands are not carried out.
- No socket, no pipe, no thread. What pysyncobj sends goes out as messages of `messages`; the parts of it that
  are replaced call the `Hooks`.
- pysyncobj has one clock per process. It is the clock of the member at work: a simulation passes one in.
- Importing pysyncobj changes nothing for anyone else: it replaces `socket.inet_ntop` by a function for
  Windows, which is undone.
- A pysyncobj without what is relied on here (the tables of pysyncobj_check) is refused before any of it is
  used.
"""

from __future__ import annotations

import _socket
import importlib.metadata
import io
import pickle
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Final, Protocol

from connmon.cluster.raft import messages
from connmon.cluster.raft.log import Log
from connmon.cluster.raft.messages import NO_OP
from connmon.cluster.raft.pysyncobj_check import EXPECTED_VERSIONS, missing
from connmon.cluster.raft.settings import RaftSettings
from connmon.errors import ConfigError, ProtocolError, one_line

_SyncObj: Any
_Transport: Any
try:
    import pysyncobj
    import pysyncobj.journal
    import pysyncobj.node
    import pysyncobj.pickle
    import pysyncobj.syncobj
    import pysyncobj.transport

    _SyncObj, _Transport = pysyncobj.SyncObj, pysyncobj.transport.Transport
    _import_problem: str | None = None
except Exception as error:  # whatever it is: `check_pysyncobj` has to report it
    _SyncObj = _Transport = object
    _import_problem = f"importing it fails: {error}"
finally:
    socket.inet_ntop = _socket.inet_ntop


def _find_problem() -> str | None:
    """Return what is wrong with the pysyncobj that is installed, or None."""
    if _import_problem is not None:
        return _import_problem
    try:
        lacking = next(missing(pysyncobj), None)
    except Exception as error:  # so much is missing that it cannot even be looked at
        return f"looking into it fails: {error}"
    return None if lacking is None else f"it lacks {lacking}"


_problem: Final = _find_problem()


def check_pysyncobj() -> None:
    """Raise ConfigError if the pysyncobj that is installed lacks anything that this module relies on."""
    if _problem is None:
        return
    try:
        version = importlib.metadata.version("pysyncobj")
    except importlib.metadata.PackageNotFoundError:
        version = "of an unknown version"
    raise ConfigError(
        f"pysyncobj {version} cannot be used: {one_line(_problem)}; install pysyncobj {EXPECTED_VERSIONS}"
    )


# --- pysyncobj's pickle, clock and pipes ----------------------------------------------------


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

    pysyncobj itself takes a file that it cannot read for a missing one, and so forgets its vote.
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
    """Return the journal passed in, or pysyncobj's own in the file of that name (None: in memory)."""
    is_journal = journal is not None and not isinstance(journal, str)
    return journal if is_journal else pysyncobj.journal.createJournal(journal)


class _Clock:
    """pysyncobj's clock: that of the member at work."""

    now: Callable[[], float] = time.monotonic


def _replace_globals() -> None:
    """Replace pysyncobj's pickling, clock and pipes, for the whole process.

    All that it still pickles here is the journal's term and vote, in a file of this node.
    """
    pysyncobj.pickle.load, pysyncobj.pickle.loads = _load, _loads
    pysyncobj.pickle.dump, pysyncobj.pickle.dumps = _dump, _dumps
    pysyncobj.journal.loads, pysyncobj.journal.dumps = _loads, _dumps
    pysyncobj.journal.MetaStorer.getMeta = _get_meta
    pysyncobj.syncobj.monotonicTime = lambda: _Clock.now()
    pysyncobj.syncobj.createJournal = _create_journal
    # A pipe per member, never closed, to wake a thread that does not exist here.
    pysyncobj.syncobj.PIPE_NOTIFIER_ENABLED = False


if _problem is None:
    _replace_globals()

# --- messages as pysyncobj has them ---------------------------------------------------------


def from_pysyncobj(message: Mapping[str, Any]) -> messages.Message:
    """Return what pysyncobj sends as a message of ours."""
    kind = message["type"]
    if kind == "apply_command":
        return messages.Propose(message["request_id"], message["command"])
    if kind == "apply_command_response":
        return messages.Proposed(
            message["request_id"], message.get("error"), message.get("log_idx", 0), message.get("log_term", 0)
        )
    if kind == "request_vote":
        return messages.RequestVote(message["term"], message["last_log_term"], message["last_log_index"])
    if kind == "response_vote":
        return messages.Vote(message["term"])
    if kind == "timeout_now":
        return messages.TimeoutNow(message["term"])
    raise AssertionError(f"pysyncobj sends {kind!r}, which is not expected of it")


def to_pysyncobj(message: messages.Message) -> dict[str, Any]:
    """Return a message of ours as pysyncobj takes it."""
    if isinstance(message, messages.Propose):
        return {"type": "apply_command", "request_id": message.request, "command": message.command}
    if isinstance(message, messages.Proposed):
        answer = {"request_id": message.request, "error": message.error}
        return {
            "type": "apply_command_response",
            **answer,
            "log_idx": message.index,
            "log_term": message.term,
        }
    if isinstance(message, messages.RequestVote):
        last = {"last_log_term": message.last_term, "last_log_index": message.last}
        return {"type": "request_vote", "term": message.term, **last}
    if isinstance(message, messages.Vote):
        return {"type": "response_vote", "term": message.term}
    if isinstance(message, messages.TimeoutNow):
        return {"type": "timeout_now", "term": message.term}
    if isinstance(message, messages.Matched):
        result = {"reset": message.reset, "success": message.success}
        return {"type": "next_node_idx", "next_node_idx": message.next, **result}
    raise AssertionError(f"pysyncobj does not take {message!r}")


# --- the member -----------------------------------------------------------------------------


class Hooks(Protocol):
    """What a member calls while it works."""

    def send(self, name: str, message: messages.Message) -> bool:
        """Send to another node; False: there is no link to it now. Never blocks."""

    def apply(self, command: bytes) -> None:
        """Apply a committed command. Never raises."""

    def send_entries(self) -> None:
        """This member leads: heartbeats and new entries are due."""

    def compact(self) -> None:
        """Cut the log if it is too long."""


class _HookTransport(_Transport):  # type: ignore[misc]
    """Where pysyncobj puts what it sends."""

    def __init__(self, member: Member) -> None:
        super().__init__(None, None, ())
        self._member = member

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        return self._member._send(node.id, from_pysyncobj(message))


class _NoPoller:
    """pysyncobj's poller, with nothing to poll."""

    def poll(self, timeout: float) -> None:
        pass


class _Core(_SyncObj):  # type: ignore[misc]
    """pysyncobj with the methods of `pysyncobj_check.REPLACED` calling the hooks."""

    def __init__(self, hooks: Hooks, *arguments: Any, **named: Any) -> None:
        self.hooks = hooks
        super().__init__(*arguments, **named)
        self._poller = _NoPoller()

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        self.hooks.apply(command)

    def _SyncObj__sendAppendEntries(self) -> None:
        self.hooks.send_entries()

    def _SyncObj__tryLogCompaction(self) -> None:
        self.hooks.compact()


def _private(name: str) -> Any:
    """Return access to a private attribute of pysyncobj, one of `pysyncobj_check.ATTRIBUTES`."""
    key = f"_SyncObj__{name}"

    def get(member: Member) -> Any:
        return getattr(member._core, key)

    def put(member: Member, value: Any) -> None:
        setattr(member._core, key, value)

    return property(get, put)


class Member:
    """One member of the group. `others` are the names of the other members.

    `journal` is the log on disk (`storage.Journal`, or a path for pysyncobj's own); None: in memory.
    `clock` is monotonic, in seconds. Raises ConfigError, and OSError and ProtocolError if the journal cannot
    be read.
    """

    deadline: float = _private("raftElectionDeadline")
    """When this member stands for election unless it hears from a leader, by the clock."""
    applied: int = _private("raftLastApplied")
    """The index of the last entry applied here."""
    transferring: bool = _private("transferInProgress")
    """The leader has asked this member to take over."""
    next_heartbeat: float = _private("newAppendEntriesTime")
    """When a leader's next heartbeat is due, by the clock."""
    _term: int = _private("raftCurrentTerm")
    _commit: int = _private("raftCommitIndex")
    _next: dict[Any, int] = _private("raftNextIndex")
    _match: dict[Any, int] = _private("raftMatchIndex")
    _answered: dict[Any, float] = _private("lastResponseTime")
    _leader: Any = _private("raftLeader")
    _waiting: dict[int, list[Any]] = _private("commandsWaitingCommit")
    _unanswered: dict[int, Any] = _private("commandsWaitingReply")
    _journal: Any = _private("raftLog")

    def __init__(
        self,
        name: str,
        others: Sequence[str],
        hooks: Hooks,
        *,
        journal: object | None,
        settings: RaftSettings,
        clock: Callable[[], float],
    ) -> None:
        check_pysyncobj()
        self.name = name
        self._hooks = hooks
        self._clock = clock
        self._nodes = {other: pysyncobj.node.Node(other) for other in others}
        self._connected: set[str] = set()
        conf = pysyncobj.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            commandsQueueSize=settings.queued_commands,
            raftMinTimeout=settings.election_min_seconds,
            raftMaxTimeout=settings.election_max_seconds,
            appendEntriesPeriod=settings.heartbeat_seconds,
            leaderFallbackTimeout=settings.fallback_seconds,
            journalFile=journal,
        )
        _Clock.now = clock
        self._core = _Core(
            hooks,
            pysyncobj.node.Node(name),
            list(self._nodes.values()),
            conf,
            nodeClass=pysyncobj.node.Node,
            transport=_HookTransport(self),
        )
        self.log = Log(self._journal)
        self._commit = min(self._commit, self.log.last)
        self._name_leaders()

    def __repr__(self) -> str:
        return (
            f"<Member {self.name} leader={self.leader} term={self.term} applied={self.applied} {self.log!r}>"
        )

    # --- what it knows ---

    @property
    def others(self) -> tuple[str, ...]:
        return tuple(self._nodes)

    @property
    def connected(self) -> frozenset[str]:
        """The other members to which there is a link."""
        return frozenset(self._connected)

    @property
    def leader(self) -> str | None:
        """The leader's name, as far as known here."""
        return None if self._leader is None else str(self._leader.id)

    @property
    def is_leader(self) -> bool:
        return bool(self._core._isLeader())

    @property
    def term(self) -> int:
        return self._term

    @property
    def commit(self) -> int:
        """The index up to which all entries are committed, as far as known here."""
        return self._commit

    @commit.setter
    def commit(self, index: int) -> None:
        self._commit = index
        self.log.commit(index)

    def random_timeout(self) -> float:
        """Return a random time without a leader after which to stand for election, in seconds."""
        return float(self._core._SyncObj__generateRaftTimeout())

    # --- what a leader knows of the others ---

    def next_index(self, name: str) -> int:
        """Return the index of the next entry to send to that member."""
        return self._next[self._nodes[name]]

    def set_next_index(self, name: str, index: int) -> None:
        self._next[self._nodes[name]] = index

    def forget_progress(self, name: str) -> None:
        """Assume nothing of what that member has: it may have been restarted without its data."""
        self._match[self._nodes[name]] = 0
        self.set_next_index(name, self.log.last + 1)

    def answered_at(self) -> list[float]:
        """Return when each other member last answered this leader, by the clock."""
        return [self._answered[node] for node in self._nodes.values()]

    # --- what drives it ---

    def tick(self) -> None:
        """Do what is due: apply, send heartbeats, stand for election, take proposals."""
        _Clock.now = self._clock
        self._core._onTick(0.0)

    def receive(self, name: str, message: messages.Message) -> None:
        """Take a message that `to_pysyncobj` knows."""
        self._receive(name, to_pysyncobj(message))

    def propose(self, command: bytes, answered: Callable[[object, int], None]) -> None:
        """Have the command put into the log, here or by the leader, at the next tick.

        `answered` is called with pysyncobj's result and error (0: none), or never; it must not raise.
        """
        self._core._applyCommand(command, answered)

    def link_up(self, name: str) -> None:
        self._connected.add(name)
        self._core._SyncObj__onNodeConnected(self._nodes[name])

    def link_down(self, name: str) -> None:
        self._connected.discard(name)
        self._core._SyncObj__onNodeDisconnected(self._nodes[name])

    def close(self) -> None:
        self._core.destroy()

    # --- changes of leader and term ---

    def follow(self, name: str, term: int) -> None:
        """Take that member for the leader of this term, which is not an earlier one."""
        # Without an entry to append, pysyncobj handles term, state, leader and deadline only.
        self._receive(name, {"type": "append_entries", "term": term, "commit_index": 0})

    def become_follower(self, term: int) -> None:
        """Go on to a later term, in which nobody leads yet."""
        self._core._SyncObj__setCurrentTerm(term, None)
        self._core._SyncObj__setState(pysyncobj.syncobj._RAFT_STATE.FOLLOWER)
        self.lose_leader()

    def lose_leader(self) -> None:
        """Know of no leader; what was proposed to the former one has failed."""
        self._leader = None
        self.fail_proposals()

    def fail_proposals(self) -> None:
        """Answer what was proposed to the leader: it has failed."""
        self._core._SyncObj__onLeaderChanged()

    def stand_for_election(self) -> None:
        """Begin a new term, and ask all others for their votes."""
        self.deadline = float("-inf")
        self.tick()

    def step_down(self) -> None:
        """Have another member lead, if this one does and one of the others has everything."""
        if self.is_leader:
            self._core.transferLeadership()

    # --- another state ---

    def drop_waiting(self, index: int | None = None) -> None:
        """Forget who waits for entries up to `index` (None: for any): they will not be applied one by one."""
        for waiting in [each for each in self._waiting if index is None or each <= index]:
            del self._waiting[waiting]

    # --- inside ---

    def _receive(self, name: str, message: dict[str, Any]) -> None:
        _Clock.now = self._clock
        self._core._SyncObj__onMessageReceived(self._nodes[name], message)

    def _send(self, name: str, message: messages.Message) -> bool:
        sent = self._hooks.send(name, message)
        if not sent and isinstance(message, messages.Propose):
            answered = self._unanswered.pop(message.request, None)
            if answered is not None:
                answered(None, pysyncobj.FAIL_REASON.MISSING_LEADER)
        return sent

    def _name_leaders(self) -> None:
        """Make the no-op entry with which a leader begins differ from any other's.

        It names the history that begins with it, and its checksum tells it from another history's.
        """
        add = self._journal.add

        def add_named(command: bytes, index: int, term: int) -> None:
            if command == NO_OP and index > 1:
                command += random.getrandbits(64).to_bytes(8, "big")
            add(command, index, term)

        self._journal.add = add_named

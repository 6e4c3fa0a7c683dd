"""The private parts of pysyncobj that member.py relies on, and whether a pysyncobj has them.

The tables name private methods with their parameters, private attributes, and the fields of messages. They
are compared with the names and texts in pysyncobj's compiled functions, which needs no source files and takes
half a millisecond. This module does not import pysyncobj; the one to look at is passed in.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: The versions that member.py was written for, as an error names them.
EXPECTED_VERSIONS: Final = "0.3.17"

#: Methods of SyncObj that are replaced, all of which it calls by these names.
REPLACED: Final = ("doApplyCommand", "sendAppendEntries", "tryLogCompaction")
#: Methods of SyncObj that are called, with the names of their parameters.
CALLED: Final[Mapping[str, tuple[str, ...]]] = {
    "_SyncObj__onMessageReceived": ("node", "message"),
    "_SyncObj__onNodeConnected": ("node",),
    "_SyncObj__onNodeDisconnected": ("node",),
    "_SyncObj__onLeaderChanged": (),
    "_SyncObj__setCurrentTerm": ("term", "votedForNodeId"),
    "_SyncObj__setState": ("newState",),
    "_SyncObj__generateRaftTimeout": (),
    "_applyCommand": ("command", "callback", "commandType"),
    "_onTick": ("timeToWait",),
    "_isLeader": (),
    "transferLeadership": ("node", "callback"),
    "destroy": (),
}
_PARAMETERS: Final = (
    "selfNode",
    "otherNodes",
    "conf",
    "consumers",
    "nodeClass",
    "transport",
    "transportClass",
)
#: Private attributes of SyncObj that are read or written.
ATTRIBUTES: Final = (
    "raftLog", "raftCurrentTerm", "raftCommitIndex", "raftLastApplied", "raftNextIndex", "raftMatchIndex",
    "lastResponseTime", "raftLeader", "raftElectionDeadline", "transferInProgress", "commandsWaitingCommit",
    "commandsWaitingReply", "newAppendEntriesTime",
)  # fmt: skip
#: By the method that takes or sends them: the kinds and fields of messages.
_SHAPES: Final[Mapping[str, tuple[str, ...]]] = {
    "_SyncObj__onMessageReceived": (
        "type", "append_entries", "term", "commit_index", "request_vote", "last_log_term", "last_log_index",
        "response_vote", "next_node_idx", "reset", "success", "apply_command", "request_id", "command",
        "apply_command_response", "error", "log_idx", "log_term", "timeout_now",
    ),
    "_checkCommandsToApply": (
        "type", "apply_command", "command", "request_id", "apply_command_response", "error", "log_idx",
        "log_term",
    ),
    "_onTick": ("type", "request_vote", "term", "last_log_index", "last_log_term"),
    "transferLeadership": ("type", "timeout_now", "term"),
}  # fmt: skip
OPTIONS: Final = (
    "autoTick", "appendEntriesUseBatch", "commandsWaitLeader", "dynamicMembershipChange", "commandsQueueSize",
    "raftMinTimeout", "raftMaxTimeout", "appendEntriesPeriod", "leaderFallbackTimeout", "journalFile",
)  # fmt: skip
_JOURNAL: Final = (
    "add", "clear", "deleteEntriesFrom", "deleteEntriesTo", "setRaftCommitIndex", "getRaftCommitIndex",
    "setCurrentTerm", "getCurrentTerm", "getVotedForNodeId", "onOneSecondTimer",
)  # fmt: skip
#: What is replaced, for the whole process or in each SyncObj: it must be used, or replacing it does nothing.
_STUBBED: Final = ("monotonicTime", "PIPE_NOTIFIER_ENABLED", "createJournal", "_poller", "poll")


def _names(function: Any) -> set[str]:
    """Return the names that a function uses: what it calls, reads and sets."""
    return set(function.__code__.co_names)


def _texts(function: Any) -> set[str]:
    """Return the text constants of a function."""
    constants = list(function.__code__.co_consts)
    texts: set[str] = set()
    while constants:
        constant = constants.pop()
        if isinstance(constant, str):
            texts.add(constant)
        elif isinstance(constant, (tuple, frozenset)):
            constants.extend(constant)
    return texts


def missing(pysyncobj: Any) -> Iterator[str]:
    """Yield what this module pysyncobj lacks. May raise anything if it lacks much."""
    functions = {name: value for name, value in vars(pysyncobj.SyncObj).items() if inspect.isfunction(value)}
    used = {name for function in functions.values() for name in _names(function)}
    for name in REPLACED:
        if f"_SyncObj__{name}" not in functions or f"_SyncObj__{name}" not in used:
            yield f"SyncObj.__{name}"
    for name, parameters in {**CALLED, "__init__": _PARAMETERS}.items():
        present = tuple(inspect.signature(functions[name]).parameters)[1:] if name in functions else None
        if present != parameters:
            yield f"SyncObj.{name.removeprefix('_SyncObj')}({', '.join(parameters)})"
    attributes = _names(functions["__init__"])
    yield from (f"SyncObj.__{name}" for name in ATTRIBUTES if f"_SyncObj__{name}" not in attributes)
    for name, texts in _SHAPES.items():
        known = _texts(functions[name]) if name in functions else set()
        yield from (f"{text!r} in {name.removeprefix('_SyncObj')}" for text in texts if text not in known)
    yield from (f"syncobj.{name}" for name in _STUBBED if name not in used)
    options = _texts(pysyncobj.SyncObjConf.__init__)
    yield from (f"option {name}" for name in OPTIONS if name not in options)
    yield from _missing_elsewhere(pysyncobj)


def _missing_elsewhere(pysyncobj: Any) -> Iterator[str]:
    """Yield what is missing outside of SyncObj."""
    memory, file = pysyncobj.journal.MemoryJournal, pysyncobj.journal.FileJournal
    yield from (f"Journal.{name}" for name in _JOURNAL if not (hasattr(memory, name) and hasattr(file, name)))
    if "getMeta" not in _names(file.__init__) or not hasattr(pysyncobj.journal.MetaStorer, "getPath"):
        yield "MetaStorer.getMeta"
    states = pysyncobj.syncobj._RAFT_STATE
    yield from (f"_RAFT_STATE.{name}" for name in ("FOLLOWER", "LEADER") if not hasattr(states, name))
    if pysyncobj.FAIL_REASON.SUCCESS != 0 or not hasattr(pysyncobj.FAIL_REASON, "MISSING_LEADER"):
        yield "FAIL_REASON"

"""What is relied on in pysyncobj without being documented; a new version has to have it still."""

from __future__ import annotations

import inspect
import socket

import pysyncobj
import pysyncobj.journal
import pysyncobj.syncobj
import pytest

from connmon.cluster.raft import member
from connmon.cluster.raft.core import Raft

REPLACED = ("doApplyCommand", "sendAppendEntries", "tryLogCompaction")
CALLED = (
    "onMessageReceived", "onNodeConnected", "onNodeDisconnected", "onLeaderChanged", "setCurrentTerm",
    "setState", "generateRaftTimeout",
)  # fmt: skip


class Alone:
    """A Machine and a Carrier that keep nothing."""

    def apply(self, data: bytes) -> None: ...
    def begin(self, name: str) -> None: ...
    def load(self, data: bytes) -> None: ...
    def forget(self) -> None: ...

    def dump(self) -> bytes:
        return b""

    def send(self, name: str, message: object) -> bool:
        return False

    def room(self, name: str) -> bool:
        return False


@pytest.mark.parametrize("name", REPLACED + CALLED)
def test_private_methods_are_there(name: str) -> None:
    """Those that are replaced are still called by their names, those that are called still exist."""
    assert callable(getattr(pysyncobj.SyncObj, f"_SyncObj__{name}"))
    if name in REPLACED:
        assert f"self.__{name}(" in inspect.getsource(pysyncobj.syncobj)
        assert f"_SyncObj__{name}" in vars(member._Core)


def test_private_attributes_are_there() -> None:
    """Each that is read or written has been set by pysyncobj."""
    alone = Alone()
    raft = Raft("node1", ["node2"], alone, alone)
    names = [name for name, value in vars(member.Member).items() if isinstance(value, property)]
    private = [name for name in names if name.startswith("_")]
    assert len(private) == 12
    for name in private:
        getattr(raft, name)
    raft.close()


def test_what_is_stubbed_out_is_used() -> None:
    """pysyncobj takes its clock, pipes, poller and journal's term from where they were replaced."""
    source = inspect.getsource(pysyncobj.syncobj)
    assert "monotonicTime()" in source
    assert source.count("PIPE_NOTIFIER_ENABLED") >= 3
    assert "self._poller.poll(" in source
    assert "self.__metaStorer.getMeta()" in inspect.getsource(pysyncobj.journal)


def test_the_socket_module_is_as_it_was() -> None:
    """pysyncobj replaces `socket.inet_ntop` when it is imported, by one that works on Windows only."""
    assert socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "::1")) == "::1"
    assert socket.inet_ntop(socket.AF_INET, b"\x7f\0\0\1") == "127.0.0.1"

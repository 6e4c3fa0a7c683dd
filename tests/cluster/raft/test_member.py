"""The private parts of pysyncobj that member.py relies on, and how a pysyncobj without them is refused."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pysyncobj
import pysyncobj.journal
import pysyncobj.syncobj
import pytest

from connmon.cluster.raft import member, messages, pysyncobj_check
from connmon.cluster.raft.settings import RaftSettings


class NoHooks:
    """Hooks that do nothing."""

    def send(self, name: str, message: object) -> bool:
        return False

    def apply(self, command: bytes) -> None: ...
    def send_entries(self) -> None: ...
    def compact(self) -> None: ...


def a_member() -> member.Member:
    return member.Member(
        "node1", ["node2"], NoHooks(), journal=None, settings=RaftSettings(), clock=lambda: 0.0
    )


PRIVATE_CALLED = [
    name.removeprefix("_SyncObj__") for name in pysyncobj_check.CALLED if name.startswith("_SyncObj__")
]


@pytest.mark.parametrize("name", [*pysyncobj_check.REPLACED, *PRIVATE_CALLED])
def test_private_methods_are_there(name: str) -> None:
    """pysyncobj calls the replaced methods by their names, and has the methods that are called."""
    assert callable(getattr(pysyncobj.SyncObj, f"_SyncObj__{name}"))
    if name in pysyncobj_check.REPLACED:
        assert f"self.__{name}(" in inspect.getsource(pysyncobj.syncobj)
        assert f"_SyncObj__{name}" in vars(member._Core)


def test_what_member_uses_is_in_its_tables() -> None:
    """The check at start covers each private method and attribute that member.py names."""
    source = inspect.getsource(member)
    called = set(re.findall(r"self\._core\._SyncObj__(\w+)", source))
    assert called == set(PRIVATE_CALLED)
    assert set(re.findall(r'_private\("(\w+)"\)', source)) == set(pysyncobj_check.ATTRIBUTES)
    assert set(re.findall(r"^            (\w+)=.*,$", source, re.M)) >= set(pysyncobj_check.OPTIONS)


def test_private_attributes_are_there() -> None:
    """pysyncobj sets each attribute that is read or written."""
    made = a_member()
    for name in pysyncobj_check.ATTRIBUTES:
        assert hasattr(made._core, f"_SyncObj__{name}"), name
    made.close()


def test_what_is_stubbed_out_is_used() -> None:
    """pysyncobj uses the replaced clock, pipes, poller and journal's term."""
    source = inspect.getsource(pysyncobj.syncobj)
    assert "monotonicTime()" in source
    assert source.count("PIPE_NOTIFIER_ENABLED") >= 3
    assert "self._poller.poll(" in source
    assert "self.__metaStorer.getMeta()" in inspect.getsource(pysyncobj.journal)


def test_the_socket_module_is_as_it_was() -> None:
    """pysyncobj replaces `socket.inet_ntop` when it is imported, by one that works on Windows only."""
    assert socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "::1")) == "::1"
    assert socket.inet_ntop(socket.AF_INET, b"\x7f\0\0\1") == "127.0.0.1"


@pytest.mark.parametrize(
    "message",
    [
        messages.Propose(1, b"\0x"),
        messages.Proposed(1, None, 2, 3),
        messages.Proposed(1, 4),
        messages.RequestVote(3, 2, 1),
        messages.Vote(3),
        messages.TimeoutNow(3),
    ],
)
def test_messages_go_through_pysyncobj_and_back(message: messages.Message) -> None:
    """The two translations are inverse to each other."""
    assert member.from_pysyncobj(member.to_pysyncobj(message)) == message


def test_each_member_has_its_clock() -> None:
    """pysyncobj sees the clock of the member at work."""
    first, second = a_member(), a_member()
    second._clock = lambda: 1000.0
    second.follow("node2", 1)
    assert second.deadline > 1000.0
    first.follow("node2", 1)
    assert first.deadline < 1000.0
    first.close()
    second.close()


# --- another pysyncobj ----------------------------------------------------------------------

OTHER_VERSIONS = {
    "no such method": ("syncobj.py", "__sendAppendEntries", "__pushEntries", "SyncObj.__sendAppendEntries"),
    "no such attribute": ("syncobj.py", "__raftElectionDeadline", "__deadline", "__raftElectionDeadline"),
    "another parameter": ("syncobj.py", "_onTick(self, timeToWait", "_onTick(self, wait", "SyncObj._onTick"),
    "another message": ("syncobj.py", "'next_node_idx'", "'next_index'", "'next_node_idx'"),
    "another option": ("config.py", "'leaderFallbackTimeout'", "'fallback'", "leaderFallbackTimeout"),
    "a clock of its own": ("syncobj.py", "monotonicTime", "ownTime", "monotonicTime"),
    "an older journal": ("journal.py", "getVotedForNodeId", "getVote", "getVotedForNodeId"),
    "no transport": ("transport.py", "class Transport(", "class Carrier(", "Transport"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER_VERSIONS)
def test_another_pysyncobj_is_refused_at_start(case: str, tmp_path: Path) -> None:
    """connmond exits with 2 and one line: the installed version, what it lacks, and the expected version."""
    file, old, new, lacking = OTHER_VERSIONS[case]
    package = tmp_path / "pysyncobj"
    shutil.copytree(Path(pysyncobj.__file__).parent, package)
    source = package / file
    source.write_text(source.read_text().replace(old, new))
    information = tmp_path / "pysyncobj-9.8.7.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: pysyncobj\nVersion: 9.8.7\n")
    config = tmp_path / "connmon.cfg"
    config.write_text("[connmon_service_default]\nname: default\nnodes:\n    node1 hostname=localhost:1\n")
    for option in ([], ["--check-config"]):
        done = subprocess.run(
            [sys.executable, "-m", "connmon.cluster.daemon", "--config", str(config), *option],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            timeout=30,
        )
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith("connmond: pysyncobj 9.8.7 cannot be used: ")
        assert lacking in line and line.endswith("; install pysyncobj 0.3.17")

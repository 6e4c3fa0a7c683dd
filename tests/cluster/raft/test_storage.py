"""data_dir: what a node keeps over a restart, which directories it refuses, and a group that grows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from connmon.cluster import daemon
from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.raft.storage import DataDir
from connmon.config import Address, Node
from connmon.errors import ConfigError
from connmon.reader.client import read_once
from tests.support.nodes import _ENVIRONMENT, RunningNode
from tests.support.requirements import lacking, needs_root
from tests.support.trio import free_ports
from tests.support.waiting import wait_for

LIMIT = 30.0

# --- the store, by example -------------------------------------------------------------------

CHECKPOINT = Checkpoint(2, 1, b"\1two", b"state")


def filled(path: Path) -> Path:
    """Make a directory with a checkpoint of entry 2 and a log of three entries; return it."""
    kept = DataDir(str(path), "default", "node1")
    for index in (1, 2, 3):
        kept.journal.add(b"\1" + b"x" * index, index, 1)
    kept.journal.setCurrentTerm(7, "node2")
    kept.journal.setRaftCommitIndex(3)
    kept.save(CHECKPOINT)
    kept.journal._destroy()
    kept.close()
    return path


def opened(path: Path, service: str = "default", node: str = "node1") -> tuple[list[Any], Checkpoint | None]:
    kept = DataDir(str(path), service, node)
    log, checkpoint = [kept.journal[at] for at in range(len(kept.journal))], kept.load()
    assert (kept.journal.getCurrentTerm(), kept.journal.getVotedForNodeId()) == (7, "node2")
    kept.journal._destroy()
    kept.close()
    return log, checkpoint


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    """Log, term, vote, commit index and checkpoint come back, each time the directory is opened."""
    path = filled(tmp_path / "d")
    log, checkpoint = opened(path)
    assert [(index, term) for _, index, term in log] == [(1, 1), (2, 1), (3, 1)]
    assert checkpoint == CHECKPOINT
    assert opened(path) == (log, checkpoint)


def test_what_was_deleted_is_not(tmp_path: Path) -> None:
    """The log is cut at both ends on disk as in memory; bytes beyond its end do not count."""
    path = filled(tmp_path / "d")
    kept = DataDir(str(path), "default", "node1")
    kept.journal.deleteEntriesTo(1)
    kept.journal.deleteEntriesFrom(1)
    kept.journal.add(b"\1new", 3, 2)
    kept.journal._destroy()
    kept.close()
    with (path / "journal").open("ab") as file:
        file.write(b"\x30\0\0\0torn")
    assert [entry[1:] for entry in opened(path)[0]] == [(2, 1), (3, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["journal", "snapshot", "identity"])
def test_truncated_at_every_length_and_damaged_at_every_byte(name: str, tmp_path: Path) -> None:
    """Each is refused with one line with the directory and what to do; none gives a wrong state."""
    path = filled(tmp_path / "d")
    right = opened(path)
    whole = (path / name).read_bytes()
    variants = [whole[:length] for length in range(len(whole))]
    variants += [whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :] for at in range(len(whole))]
    for variant in variants:
        (path / name).write_bytes(variant)
        try:
            assert opened(path) == right, variant  # a line feed or a space less
            assert name == "identity"
        except ConfigError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert re.search("move its files away|run the version|name a directory", str(error))
    (path / name).write_bytes(whole)
    assert opened(path) == right


@pytest.mark.parametrize(
    ("service", "node", "expected"),
    [
        ("default", "node2", "belongs to node 'node1' of service 'default'"),
        ("other", "node1", "not to node 'node1' of service 'other'"),
    ],
)
def test_a_foreign_directory_is_refused(service: str, node: str, expected: str, tmp_path: Path) -> None:
    """The error says whose directory it is, and whose was expected."""
    path = filled(tmp_path / "d")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        DataDir(str(path), service, node)
    opened(path)


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    """Two nodes cannot share a directory, even under one name."""
    kept = DataDir(str(tmp_path / "d"), "default", "node1")
    with pytest.raises(ConfigError, match="in use by another connmond"):
        DataDir(str(tmp_path / "d"), "default", "node1")
    kept.journal._destroy()
    kept.close()


@pytest.mark.parametrize("missing", ["journal", "snapshot", "identity"])
def test_a_missing_file_is_refused(missing: str, tmp_path: Path) -> None:
    """A log that begins later needs its checkpoint, and half a directory does not count as an empty one."""
    path = filled(tmp_path / "d")
    kept = DataDir(str(path), "default", "node1")
    kept.journal.deleteEntriesTo(1)
    kept.journal._destroy()
    kept.close()
    (path / missing).unlink()
    with pytest.raises(ConfigError, match=r"missing|no identity"):
        DataDir(str(path), "default", "node1")


def test_what_cannot_be_a_data_dir_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, a directory of something else, one whose parent is missing: exit code 2, one line."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("x")
    for path, expected in {
        tmp_path / "file": "not a directory",
        tmp_path / "full": "holds files but no identity",
        tmp_path / "none" / "d": "No such file or directory",
        Path("/proc/connmon"): "may write to",
    }.items():
        config = tmp_path / "c.cfg"
        config.write_text(
            f"[connmon_service_default]\nname: default\ndata_dir: {path}\n"
            "nodes:\n    node1 hostname=localhost:1\n"
        )
        assert daemon.main(["--config", str(config)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("connmond: ") and str(path) in line and expected in line


# --- real nodes ------------------------------------------------------------------------------

APPLICATION = """
import sys
from sqlalchemy import create_engine
engine = create_engine("sqlite:///" + sys.argv[1], pool_size=3)
for line in sys.stdin:
    for _ in range(int(line)):
        with engine.connect():
            pass
    print("done", flush=True)
"""


class Application:
    """A program that checks out connections on request."""

    def __init__(self, directory: Path, config: Path, program: str) -> None:
        options = f"plugin=connmon&connmon_config={config}&connmon_program={program}"
        self.program = program
        self.checkouts = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION, f"{directory}/{program}.db?{options}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_ENVIRONMENT,
        )

    def work(self, count: int) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"
        self.checkouts += count

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.communicate(timeout=LIMIT)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Member(RunningNode):
    """A node of a group with a config file that the test writes."""

    def __init__(self, directory: Path, name: str, port: int) -> None:
        self.name, self.service, self.port = name, "default", port
        self.which = ("--node", name)
        self.config = directory / f"{name}.cfg"
        self._log = directory / f"{name}.log"
        self._process = None
        self._before = 0

    def rows(self, by: Any = "program") -> list[dict[str, Any]]:
        address = Address("127.0.0.1", self.port)
        document = read_once([Node(self.name, address, address)], "default", by).document()
        assert document["quorum"]
        rows: list[dict[str, Any]] = document["rows"]
        return rows


class Members:
    """Up to five nodes, each with its own config file and optionally a data_dir."""

    def __init__(self, directory: Path, data: bool) -> None:
        self.directory, self.data = directory, data
        ports = free_ports(5)
        self.all = [Member(directory, f"node{i}", port) for i, port in enumerate(ports, 1)]
        self.applications: list[Application] = []
        self.config = directory / "applications.cfg"
        self.config.write_text(self.text(5, ""))

    def text(self, count: int, more: str) -> str:
        lines = "".join(
            f"    {m.name} hostname=127.0.0.1:{m.port} bind=127.0.0.1\n" for m in self.all[:count]
        )
        return f"[connmon_service_default]\nname: default\n{more}\nnodes:\n{lines}"

    def configure(self, count: int, members: Sequence[Member]) -> None:
        """Write the config files of these nodes, with the first `count` nodes in them."""
        for member in members:
            more = f"data_dir: {self.directory / member.name}\n" if self.data else ""
            member.config.write_text(self.text(count, more))

    def start(self, members: Sequence[Member]) -> None:
        for member in members:
            member.begin()
        for member in members:
            member.wait_until_ready()

    def application(self, program: str) -> Application:
        self.applications.append(Application(self.directory, self.config, program))
        return self.applications[-1]

    def equal(self, members: Sequence[Member], *applications: Application) -> None:
        """Wait until these nodes show exactly the checkouts of these applications."""

        def shown() -> bool:
            for member in members:
                try:
                    rows = {row["program"]: row["checkouts_total"] for row in member.rows()}
                except Exception as error:  # not yet
                    raise AssertionError(f"{member.name}: {error!r}") from None
                assert rows == {each.program: each.checkouts for each in applications}, member.name
            return True

        wait_for(shown, LIMIT, "the nodes to show what was done")

    def remove(self) -> None:
        for application in self.applications:
            application.end()
        for member in self.all:
            if member._process is not None:
                member.kill()


@pytest.fixture
def members(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Members]:
    made = Members(tmp_path, getattr(request, "param", True))
    yield made
    made.remove()


@pytest.mark.slow
def test_kill_9_of_all_nodes_keeps_maxima_and_ended_totals(members: Members) -> None:
    """The row of a program whose processes have ended is the same after a restart of everything."""
    three = members.all[:3]
    members.configure(3, three)
    members.start(three)
    application = members.application("ended")
    application.work(50)
    members.equal(three, application)
    application.end()
    wait_for(lambda: three[0].rows()[0]["state"] == "gone", LIMIT)
    (before,) = three[0].rows()
    for member in three:
        member.kill()
    members.start(three)
    members.equal(three, application)
    for member in three:
        (after,) = member.rows()
        kept = {key for key in before if key.endswith("_total") or key.startswith("max_")} | {"state"}
        assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    assert before["max_connections"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("members", [False], indirect=True)
def test_without_data_dir_the_present_comes_back(members: Members) -> None:
    """Applications that still run report their totals to the restarted group."""
    three = members.all[:3]
    members.configure(3, three)
    members.start(three)
    application = members.application("living")
    application.work(50)
    members.equal(three, application)
    for member in three:
        member.kill()
    members.start(three)
    members.equal(three, application)


@pytest.mark.slow
def test_growing_and_shrinking_keeps_the_totals(members: Members) -> None:
    """1 -> 3 -> 5 -> 3 nodes as in docs/operations.rst, while an application reports."""
    nodes = members.all
    members.configure(1, nodes[:1])
    members.start(nodes[:1])
    ended = members.application("ended")
    ended.work(30)
    members.equal(nodes[:1], ended)
    ended.end()
    living = members.application("living")

    def work(shown_by: Sequence[Member]) -> None:
        living.work(20)
        members.equal(shown_by, ended, living)

    work(nodes[:1])
    for before, after in ((1, 3), (3, 5)):
        members.configure(after, nodes[:after])
        for member in nodes[:before]:
            member.stop()
            member.begin()
            living.work(5)
        for count in range(before + 1, after + 1):
            nodes[count - 1].begin()
            if 2 * count > after:
                work(nodes[:count])
    for member in nodes[3:]:
        member.stop()
    work(nodes[:3])
    members.configure(3, nodes[:3])
    for member in nodes[:3]:
        member.stop()
        member.begin()
        living.work(5)
    work(nodes[:3])


@pytest.mark.slow
def test_a_full_disk_is_one_warning_and_the_node_goes_on(members: Members, tmp_path: Path) -> None:
    """The node goes on in memory, logs that once, and writes everything again once there is room."""
    needs_root("mount a small disk")
    disk, node = tmp_path / "node1", members.all[0]
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        lacking("to mount a tmpfs", "run where root may mount, not in an unprivileged container")
    try:
        members.configure(1, [node])
        members.start([node])
        with (disk / "lost+found").open("wb", buffering=0) as filler:
            for size in (4096, 64):
                try:
                    while filler.write(b"x" * size) == size:
                        pass
                except OSError:
                    pass
        application = members.application("living")

        def disk_is_full() -> bool:
            application.work(1)
            return "cannot be written to" in node.log

        wait_for(disk_is_full, LIMIT, "the disk to be full")
        application.work(40)
        members.equal([node], application)
        assert node.log.count("cannot be written to") == 1
        (disk / "lost+found").unlink()
        wait_for(lambda: "is written to again" in node.log, LIMIT)
        members.equal([node], application)
        application.end()
        wait_for(lambda: node.rows()[0]["state"] == "gone", LIMIT)
        node.kill()
        node.start()
        members.equal([node], application)
        assert json.loads((disk / "identity").read_text())["node"] == "node1"
    finally:
        members.remove()
        subprocess.run(["umount", disk], check=True)

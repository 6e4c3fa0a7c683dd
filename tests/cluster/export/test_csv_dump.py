"""The CSV dump: which rows are written, by which node, and what a full disk does."""

from __future__ import annotations

import asyncio
import csv
import errno
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.cluster import daemon
from connmon.cluster.export.csv_dump import COLUMNS, DEFAULT_COLUMNS, ChangedRows, Dump, columns_of, open_dump
from connmon.cluster.export.dump_file import DumpFile
from connmon.cluster.raft.status import Role as RaftRole
from connmon.cluster.raft.status import Status
from connmon.config import direct, load
from connmon.errors import ConfigError
from connmon.protocol.queries import Query
from tests.protocol.test_snapshot import SHOWN_1
from tests.reader.test_client import rows as answered
from tests.support.nodes import RunningNode
from tests.support.servers import _free_port
from tests.support.waiting import wait_for

HEADING = "a,b\n"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- Which rows ---------------------------------------------------------------------------

CELLS: dict[str, Any] = {"host": "h", "program": "p", "state": "connected", **SHOWN_1}


def test_only_what_has_changed() -> None:
    """A row is written when a column changes, not when only its time or its last report does."""
    rows = ChangedRows(("timestamp", "program", "connections", "last_report_seconds"), {})
    assert rows.due([(("p",), CELLS)], "t1") == "t1,p,78,0.8\n"
    assert rows.due([(("p",), {**CELLS, "last_report_seconds": 1.8, "waiting": 9})], "t2") == ""
    assert rows.due([(("p",), {**CELLS, "connections": 79})], "t3") == "t3,p,79,0.8\n"
    assert rows.due([], "t4") == ""
    assert rows.due([(("p",), CELLS)], "t5") == "t5,p,78,0.8\n"
    rows.forget()
    assert rows.due([(("p",), CELLS)], "t6") == "t6,p,78,0.8\n"


def test_token_service_and_unknown() -> None:
    """Token, service and node are in each row if configured; unknown values are empty."""
    rows = ChangedRows(
        ("token", "service", "node", "capacity", "host"), {"token": "T", "service": "s", "node": "n"}
    )
    assert rows.due([(("p",), {**CELLS, "capacity": None, "host": '=a\n"b'})], "t") == 'T,s,n,,"\'=a?""b"\n'


# --- The file -----------------------------------------------------------------------------


def test_file_that_grows(tmp_path: Path) -> None:
    """The heading is written once, also after a restart, and the file is closed to others."""
    path = tmp_path / "x.csv"
    for row in ("1,2\n", "3,4\n"):
        assert DumpFile(str(path), HEADING, 1000, 2).write(row)
    assert path.read_text() == HEADING + "1,2\n3,4\n"
    assert path.stat().st_mode & 0o007 == 0


def test_half_a_row_is_cut_off(tmp_path: Path) -> None:
    """Half a row, left by a crash, is cut off."""
    path = tmp_path / "x.csv"
    path.write_text(HEADING + "1,2\n3")
    DumpFile(str(path), HEADING, 1000, 2).write("5,6\n")
    assert path.read_text() == HEADING + "1,2\n5,6\n"
    path.write_text("a,")
    DumpFile(str(path), HEADING, 1000, 2).write("5,6\n")
    assert path.read_text() == HEADING + "5,6\n"


def test_other_columns_begin_a_new_file(tmp_path: Path) -> None:
    """A file with another heading is kept and not continued."""
    path = tmp_path / "x.csv"
    path.write_text("x,y\n1,2\n")
    DumpFile(str(path), HEADING, 1000, 2).write("5,6\n")
    assert path.read_text() == HEADING + "5,6\n"
    assert (tmp_path / "x.csv.1").read_text() == "x,y\n1,2\n"


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(20, 80), st.integers(0, 3))
def test_rotation(lengths: list[int], size: int, keep: int) -> None:
    """Files stay within their size and begin with the heading; the newest rows are kept, once."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.csv")
        written = [f"{number},{'x' * length}\n" for number, length in enumerate(lengths)]
        for row in written:
            assert DumpFile(str(path), HEADING, size, keep).write(row)
        files = [Path(directory, f"x.csv.{number}") for number in range(keep, 0, -1)]
        kept_rows = []
        for file in [
            *(old for old in files if old.exists()),
            *([path] if written else []),
        ]:
            text = file.read_text()
            assert text.startswith(HEADING)
            own = text[len(HEADING) :].splitlines(keepends=True)
            assert own
            assert len(text) <= size or len(own) == 1
            kept_rows += own
        assert kept_rows == written[len(written) - len(kept_rows) :]
        assert len(os.listdir(directory)) <= keep + 1


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk is one warning; no half row stays; with room again writing continues."""
    path = tmp_path / "x.csv"
    file = DumpFile(str(path), HEADING, 1000, 2)
    assert file.write("1,2\n")
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) > 2:
            return real(descriptor, bytes(data)[:2])  # what still went in
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    for _ in range(5):
        assert not file.write("3,4\n")
        assert path.read_text() == HEADING + "1,2\n"
    monkeypatch.setattr(os, "write", real)
    assert file.write("5,6\n")
    assert path.read_text() == HEADING + "1,2\n5,6\n"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "No space left on device" in caplog.messages[0]
    assert "is written again" in caplog.messages[1]


# --- The configuration --------------------------------------------------------------------


def configured(tmp_path: Path, *settings: str) -> Any:
    path = tmp_path / "c.cfg"
    lines = "".join(f"{setting}\n" for setting in settings)
    path.write_text(
        f"[connmon_service_default]\nname: default\n{lines}nodes:\n    a hostname=localhost:{_free_port()}\n"
    )
    return load(str(path)).services[0]


def test_columns(tmp_path: Path) -> None:
    """Without csv_columns there are default ones, the token only if there is one."""
    service = configured(tmp_path, "csv_dump: x", "csv_token: T")
    assert columns_of(service) == DEFAULT_COLUMNS
    assert columns_of(configured(tmp_path, "csv_dump: x")) == tuple(
        c for c in DEFAULT_COLUMNS if c != "token"
    )
    assert columns_of(configured(tmp_path, "csv_columns: host, pools")) == ("host", "pools")
    assert set(DEFAULT_COLUMNS) <= set(COLUMNS)
    assert open_dump(direct("localhost")) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ("csv_dump: {}/x.csv", "csv_columns: host, hostname"),
            "csv_columns: no column 'hostname'; possible are",
        ),
        (("csv_dump: {}/x.csv", "csv_columns: token"), "csv_columns: token, but there is no csv_token"),
        (("csv_dump: {}/no/x.csv",), "csv_dump: {}/no/x.csv cannot be written: No such file or directory"),
        (("csv_dump: {}",), "csv_dump: {} cannot be written: Is a directory"),
        (("csv_dump: /dev/null",), "csv_dump: /dev/null cannot be written: not a regular file"),
        (("csv_token: seSAme",), "csv_token: without csv_dump"),
        (("csv_dump: {}/x.csv", "csv_by: all"), "csv_by: 'all' is not one of leader, node"),
        (("csv_dump: {}/x.csv", "csv_size: 12 parsec"), "csv_size: '12 parsec' is not a size"),
        (("csv_dump: {}/x.csv", "csv_size: 1000"), "csv_size: '1000' is not a size"),
        (("csv_dump: {}/x.csv", "csv_keep: -1"), "csv_keep: '-1' is not a number of files"),
    ],
)
def test_mistakes(
    settings: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid setting is one line with file, section and option, without the token; exit code 2."""
    filled = [setting.format(tmp_path) for setting in settings]
    with pytest.raises(ConfigError):
        open_dump(configured(tmp_path, *filled))
    assert daemon.main(["--config", str(tmp_path / "c.cfg")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected.format(tmp_path) in line
    assert "[connmon_service_default]" in line
    assert "seSAme" not in line


def test_sizes(tmp_path: Path) -> None:
    """A size may have a unit."""
    for text, size in (("2048", 2048), ("4k", 4096), ("100M", 100 * 2**20), ("1 GB", 2**30)):
        assert configured(tmp_path, f"csv_size: {text}").csv_size == size


# --- Nodes --------------------------------------------------------------------------------

APPLICATION = """
import sqlalchemy, sys
engine = sqlalchemy.create_engine(sys.argv[1], poolclass=sqlalchemy.QueuePool)
held = []
for line in sys.stdin:
    held.append(engine.connect())
"""


class Dumping(RunningNode):
    def __init__(self, directory: Path, *settings: str) -> None:
        super().__init__(directory)
        self.dump = directory / "dump.csv"
        lines = "".join(f"{setting}\n" for setting in (f"csv_dump: {self.dump}", *settings))
        self.config.write_text(self.config.read_text().replace("\nnodes:", f"{lines}nodes:"))


@pytest.fixture(name="application")
def an_application() -> Iterator[Any]:
    processes: list[subprocess.Popen[bytes]] = []

    def started(node: RunningNode) -> subprocess.Popen[bytes]:
        url = f"sqlite://?plugin=connmon&connmon_addr={node.address}&connmon_program=app"
        processes.append(subprocess.Popen([sys.executable, "-c", APPLICATION, url], stdin=subprocess.PIPE))
        return processes[-1]

    yield started
    for process in processes:
        process.communicate()


@pytest.mark.slow
def test_a_node_dumps(tmp_path: Path, application: Any) -> None:
    """A node writes a row when something has changed, with the values of the snapshot."""
    node = Dumping(
        tmp_path, "csv_token: run 7", "csv_columns: timestamp token program connections checkouts_total"
    )
    try:
        node.start()
        process = application(node)
        for number in (1, 2):
            process.stdin.write(b"\n")
            process.stdin.flush()
            wait_for(lambda: [row for row in rows_of(node.dump) if row["connections"] == str(number)])  # noqa: B023
        first, *_, last = rows_of(node.dump)
        assert list(first) == ["timestamp", "token", "program", "connections", "checkouts_total"]
        assert (last["token"], last["program"], last["checkouts_total"]) == ("run 7", "app", "2")
        assert last["timestamp"].endswith("Z")
        count = len(rows_of(node.dump))
        changed = [(row["connections"], row["checkouts_total"]) for row in rows_of(node.dump)]
        assert len(set(changed)) == count  # reports without news have no row
    finally:
        node.remove()


class Role:
    """A replica and a node's port, as a dump uses them."""

    def __init__(self, quorum: bool, is_leader: bool) -> None:
        self.status = Status(quorum=quorum, role=RaftRole.LEADER if is_leader else RaftRole.FOLLOWER)

    def rows(self, query: Query) -> Iterator[Any]:
        yield answered("nova")


@pytest.mark.parametrize(
    ("by", "quorum", "leads", "writes"),
    [
        ("leader", True, True, True),
        ("leader", True, False, False),
        ("leader", False, True, False),
        ("node", True, False, True),
        ("node", False, False, False),
    ],
)
def test_which_node_writes(by: str, quorum: bool, leads: bool, writes: bool, tmp_path: Path) -> None:
    """The leader writes, or every node, as configured; a node without quorum does not."""
    service = configured(tmp_path, f"csv_dump: {tmp_path}/x.csv", f"csv_by: {by}")
    file = open_dump(service)
    assert file is not None
    role: Any = Role(quorum, leads)
    dump = Dump(service, "node1", role, role, file)

    async def look_twice() -> None:
        await dump._write_changes()
        await dump._write_changes()

    asyncio.run(look_twice())
    assert len(rows_of(tmp_path / "x.csv")) == writes


@pytest.mark.slow
@pytest.mark.parametrize("by", ["leader", "node"])
def test_without_quorum_nothing_is_dumped(by: str, tmp_path: Path) -> None:
    """A node without quorum writes no rows; the file is made at start."""
    node = Dumping(tmp_path, f"csv_by: {by}")
    node.config.write_text(node.config.read_text() + f"    node2 hostname=localhost:{_free_port()}\n")
    node.which = ("--node", "node1")
    try:
        node.begin()
        wait_for(lambda: "listens on" in node.log)
        assert node.dump.stat().st_size == 0
    finally:
        node.remove()

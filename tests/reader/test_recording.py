"""Recordings: what `connmon record` writes, what `connmon replay` reads, and errors of other files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from connmon.commands import cli
from connmon.commands.record import Rotating, run
from connmon.config import Address, Node, Service
from connmon.console import actions, state
from connmon.console.fetcher import Demand, Note, Position
from connmon.console.replay import Player
from connmon.console.rows import DatabaseUser
from connmon.console.source import Want
from connmon.console.state import ConsoleState, Reel, Refresh
from connmon.errors import UsageError
from connmon.protocol.credentials import OPEN
from connmon.reader.recording import Recording
from tests.commands.test_cli import command, environment
from tests.support.console_fakes import FLEET, NOVA, FakeNode
from tests.support.waiting import wait_for


def service_of(node: FakeNode) -> Service:
    address = Address("127.0.0.1", node.port)
    return Service("default", (Node(node.name, address, address),))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recorded snapshots; the last two are without nova-api."""
    path = tmp_path_factory.mktemp("recording") / "a.jsonl"
    node = FakeNode()
    with contextlib.closing(Stopping(node)):
        node.after = (8, FLEET[1:])
        assert run(service_of(node), str(path), OPEN, interval=0.1, times=4, size=2**20, keep=2) == 0
    return path


class Stopping:
    """A node, for `closing`."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def close(self) -> None:
        self._node.stop()


def programs(refresh: Refresh) -> list[str]:
    rows: list[Any] = [row for _, row in refresh.tables[Want("program")]]
    return [row.program for row in rows]


def shown(player: Player, demand: Demand) -> Refresh:
    player.want(demand)
    refreshes = [news for news in player.news() if isinstance(news, Refresh)]
    assert refreshes
    return refreshes[-1]


def test_a_recording_shows_what_the_node_showed(recorded: Path) -> None:
    """Every grouping can be read at every recorded snapshot; the first line says what the file is."""
    first = json.loads(recorded.read_text().splitlines()[0])
    assert (first["connmon"], first["version"], first["service"]) == ("recording", 1, "default")
    recording = Recording(str(recorded))
    assert len(recording) == 4 and not recording.cut
    rows = recording.snapshot(0, "program").document()["rows"]
    assert {row["program"] for row in rows} >= {"nova-api", "keystone"}
    assert "nova-api" not in {row["program"] for row in recording.snapshot(3, "program").document()["rows"]}
    for by, number in (("host", 2), ("database", 2), ("process", 3), ("pool", 3), ("connection", 16)):
        assert len(recording.snapshot(0, by).document()["rows"]) == number  # type: ignore[arg-type]


def test_the_player_steps_back_and_forth(recorded: Path) -> None:
    """Any recorded snapshot can follow any other; the same one is not built twice."""
    player = Player(Recording(str(recorded)), lambda: 0.0)
    reel = Reel(4, playing=False)
    wants = (Want("program"),)
    assert "nova-api" in programs(shown(player, Demand(wants, reel=reel)))
    assert "nova-api" not in programs(shown(player, Demand(wants, reel=reel.moved(3))))
    assert "nova-api" in programs(shown(player, Demand(wants, reel=reel.moved(1))))
    player.want(Demand(wants, reel=reel.moved(1)))
    assert player.news() == []


def test_the_player_goes_on_with_time(recorded: Path) -> None:
    """It goes on after the time between two recorded snapshots, divided by the speed."""
    now = 0.0
    player = Player(Recording(str(recorded)), lambda: now)
    demand = Demand((Want("program"),), reel=Reel(4))
    player.want(demand)
    player.news()
    player.want(demand)
    assert player.news() == []
    now = 60.0
    player.want(demand)
    assert Position(1) in player.news()


def test_all_views_of_a_replay(recorded: Path) -> None:
    """Each view, and the table that Enter opens in it, has its rows; a database only its programs."""
    player = Player(Recording(str(recorded)), lambda: 0.0)
    for key, view in (
        ("1", "programs"), ("2", "hosts"), ("3", "databases"), ("4", "processes"), ("5", "pools"),
        ("6", "connections"), ("7", "waits"), ("1", "programs"),
    ):  # fmt: skip
        here = actions.pressed(ConsoleState("", reel=Reel(4, playing=False)), key)
        assert here.view == view
        for _ in range(2):
            refresh = shown(player, Demand(here.wants, reel=here.reel))
            here = state.refreshed(here, refresh)
            assert here.page.pane.rows, here.wants
            here = actions.pressed(here, "enter")
    users = shown(player, Demand((Want("program", database=NOVA),), reel=Reel(4, playing=False)))
    ((_, row),) = users.tables[Want("program", database=NOVA)]
    assert isinstance(row, DatabaseUser)
    assert (row.program, row.figures.connections, row.figures.pools) == ("nova-api", 15, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no recording of connmon"),
        (b"hello\n", "no recording of connmon"),
        (b'{"a": 1}\n', "no recording of connmon"),
        (b"\x00\xff" * 100_000, "no recording of connmon"),
        (b'{"connmon":"recording","version":99}\n', "version 99, this connmon reads 1"),
        (b'{"connmon":"recording","version":1}\n', "ends before its first snapshot"),
        (b'{"connmon":"recording","version":1}\n{"at":1.0,"compl', "ends before its first snapshot"),
    ],
)
def test_a_foreign_file_is_one_clear_line(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no recording is exit code 2 and one line with its name."""
    path = tmp_path / "foreign"
    path.write_bytes(content)
    assert cli.main(["replay", str(path)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert said in errors and str(path) in errors
    assert cli.main(["replay", str(tmp_path / "missing")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_a_truncated_file_is_shown_up_to_there(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole snapshots are shown, and one line says what is missing; damage within is one line as well."""
    path = tmp_path / "cut"
    whole = recorded.read_bytes()
    path.write_bytes(whole[:-50])
    assert cli.main(["replay", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == f"connmon: {path}: truncated: it ends in the middle of snapshot 4\n"
    assert "keystone" in out
    recording = Recording(str(path))
    assert [news for news in Player(recording).news() if isinstance(news, Note)]
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"at":"x"}\n', *lines[3:]]))
    assert cli.main(["replay", str(path)]) == 2
    assert "snapshot 2 cannot be read" in capsys.readouterr().err


def test_without_a_terminal_the_last_snapshot_is_printed(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe, replay prints the last recorded snapshot, as table, JSON or CSV."""
    assert cli.main(["replay", str(recorded), "--by", "host", "--format", "json"]) == 0
    assert [row["host"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["ctl1", "ctl2"]


@pytest.mark.parametrize("after", [False, True])
def test_replay_takes_the_options_of_reading(
    after: bool, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They change nothing, except the service: the service of another recording is a usage error."""
    for options in (
        ["-H", "x"], ["--host", "x:1"], ["-n", "a"], ["--node", "a"], ["-c", "none"],
        ["--secret-file", "none"], ["-s", "default"], ["--config", "none", "--service", "default"],
    ):  # fmt: skip
        arguments = ["replay", str(recorded)]
        assert cli.main([*arguments, *options] if after else [*options, *arguments]) == 0
        assert "keystone" in capsys.readouterr().out
    assert cli.main(["replay", str(recorded), "--service", "other"]) == 2
    expected = f"connmon: --service other: {recorded} is a recording of service 'default'\n"
    assert capsys.readouterr().err == expected


def test_files_rotate_by_size_and_never_overwrite(tmp_path: Path) -> None:
    """The named file is the newest; older parts count up, and the oldest is deleted."""
    path = tmp_path / "r.jsonl"
    file = Rotating(str(path), 1000, 2, "default")
    assert file.fits(b"x" * 5000)  # one snapshot always does
    for number in range(4):
        line = b"%d" % number * 600 + b"\n"
        if not file.fits(line):
            file.rotate()
        file.write(line)
    file.close()
    found = sorted(each.name for each in tmp_path.iterdir())
    assert found == ["r.jsonl", "r.jsonl.1", "r.jsonl.2"]
    assert b"3333" in path.read_bytes() and b"1111" in (tmp_path / "r.jsonl.2").read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        Rotating(str(path), 1000, 2, "default")
    with pytest.raises(UsageError, match="cannot be written"):
        Rotating(str(tmp_path / "no" / "where"), 1000, 2, "default")


@pytest.mark.slow
def test_every_part_can_be_replayed_alone(tmp_path: Path) -> None:
    """After a rotation the next file begins with a complete snapshot."""
    path = tmp_path / "r.jsonl"
    node = FakeNode()
    with contextlib.closing(Stopping(node)):
        run(service_of(node), str(path), OPEN, interval=0.1, times=4, size=12_000, keep=9)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 1
    for part in parts:
        assert Recording(str(part)).snapshot(0, "program").document()["rows"]


@pytest.mark.slow
def test_record_outlives_a_node_and_ends_with_sigterm(tmp_path: Path) -> None:
    """A node that dies is one line, and its return is recorded; SIGTERM ends with 0 and a whole file."""
    path = tmp_path / "r.jsonl"
    node = FakeNode()
    arguments = ["record", str(path), "-H", f"127.0.0.1:{node.port}", "--interval", "0.1"]
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=environment())
    try:
        wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") > 2, what="snapshots")
        node.stop()
        assert process.stderr is not None
        assert "connmon: not recorded: " in process.stderr.readline()
        node = FakeNode(port=node.port)
        before = path.read_bytes().count(b"\n")
        wait_for(lambda: path.read_bytes().count(b"\n") > before, what="more snapshots")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert "snapshots in" in process.stderr.read()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        node.stop()
    assert not Recording(str(path)).cut


def test_no_node_to_record_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If no node answers, nothing is written: one line, exit code 1."""
    path = tmp_path / "r.jsonl"
    node = FakeNode()
    node.stop()
    assert cli.main(["record", str(path), "-H", f"127.0.0.1:{node.port}"]) == 1
    assert capsys.readouterr().err.startswith("connmon: no node could be read")
    assert not os.path.exists(path)


def test_the_recorded_rows_are_judged(recorded: Path) -> None:
    """A replay shows the recorded verdicts."""
    player = Player(Recording(str(recorded)), lambda: 0.0)
    refresh = shown(player, Demand((Want("program"),), reel=Reel(4, playing=False)))
    rows: list[Any] = [row for _, row in refresh.tables[Want("program")]]
    found = {row.program: row.verdict for row in rows}
    assert (found["nova-api"], found["cinder-volume"], found["keystone"]) == ("LEAK", "LOST", None)

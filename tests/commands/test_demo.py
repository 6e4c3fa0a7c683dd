"""`connmon demo`: its output without a terminal, its proof, and that it leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import connmon
from connmon.commands.demo.child import PREFIX
from connmon.commands.demo.settings import DemoSettings
from tests.support.waiting import wait_for

ROOT = Path(connmon.__file__).parents[1]
#: Shorter than a person would like to watch.
QUICK = DemoSettings(kill_every_seconds=2.0, down_seconds=1.0, work_seconds=0.5)
#: Replaces the applications' own counts by others than the nodes show.
WRONG_COUNTS = """
from connmon.commands.demo import chaos
right = chaos.stop_and_count
chaos.stop_and_count = lambda *arguments: {
    pid: {**counts, "checkouts_total": 1} for pid, counts in right(*arguments).items()
}
"""


class Demo:
    """The command as a process, with its own temporary directory."""

    def __init__(
        self, directory: Path, *arguments: str, settings: DemoSettings = QUICK, code: str = ""
    ) -> None:
        self.directory = directory
        program = (
            "import sys\nfrom connmon.commands.cli import main\n"
            "from connmon.commands.settings import CommandSettings\n"
            f"from connmon.commands.demo.settings import DemoSettings\n{code}\n"
            f"sys.exit(main(settings=CommandSettings(demo={settings!r})))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)},
        )

    def children(self) -> list[psutil.Process]:
        """Return the children that run, also after their parent's end."""
        children = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "connmon.commands.demo.child" in command and any(
                str(self.directory) in word for word in command
            ):
                children.append(process)
        return children

    def has_remains(self) -> bool:
        """Return whether a process or a file of it exists."""
        return bool(self.children() or list(self.directory.glob(f"{PREFIX}*")))


@pytest.fixture(name="directory")
def a_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.slow
def test_without_a_terminal(directory: Path) -> None:
    """It prints the state of the nodes and the work of the applications, and leaves nothing."""
    demo = Demo(directory)
    output, errors = demo.process.communicate(timeout=100)
    assert demo.process.returncode == 0, errors
    assert output.startswith("HEALTHY  service demo  quorum yes")
    assert all(
        name in output for name in ("node1", "node2", "node3", "shop-api", "report-worker", "QueuePool")
    )
    assert "\x1b" not in output
    assert not demo.has_remains()


@pytest.mark.slow
def test_chaos_loses_nothing(directory: Path) -> None:
    """After each node was killed and restarted, all show exactly the applications' own counts."""
    demo = Demo(directory, "--chaos")
    output, errors = demo.process.communicate(timeout=110)
    assert demo.process.returncode == 0, output + errors
    assert sorted(re.findall(r"(node\d), \w+ \w+, is killed", errors)) == ["node1", "node2", "node3"]
    heading, *lines, verdict = output.splitlines()
    assert heading.split() == ["CONNECTS", "CLOSES", "CHECKOUTS", "CHECKINS", "TIMEOUTS"]
    assert [line.split()[0] for line in lines] == ["applications", "node1", "node2", "node3"]
    (counts,) = {tuple(line.split()[1:]) for line in lines}
    assert int(counts[2]) > 100
    assert verdict.startswith("Nothing was lost")
    assert not demo.has_remains()


@pytest.mark.slow
def test_a_loss_would_be_noticed(directory: Path) -> None:
    """Where a node shows other counts than the applications' own, it is named, and the exit code is 1."""
    settings = replace(QUICK, agree_seconds=1.0, kills=0)
    demo = Demo(directory, "--chaos", settings=settings, code=WRONG_COUNTS)
    output, errors = demo.process.communicate(timeout=100)
    assert demo.process.returncode == 1, errors
    assert "LOST OR COUNTED TWICE: node1, node2, node3" in output
    assert not demo.has_remains()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(directory: Path, number: signal.Signals) -> None:
    """After Ctrl-C, SIGTERM and even SIGKILL in the middle, no process and no file is left."""
    demo = Demo(directory, "--chaos")
    try:
        wait_for(lambda: len(demo.children()) == 8, 60, "all children")
    finally:
        demo.process.send_signal(number)
        output, _ = demo.process.communicate(timeout=60)
    assert output == ""
    assert demo.process.returncode == {
        signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9,
    }[number]  # fmt: skip
    wait_for(lambda: not demo.has_remains(), 20, "the children's end")

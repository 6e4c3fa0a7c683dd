"""`connmon demo`: what it prints without a terminal, what it proves, and that it leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import connmon
from connmon.commands.demo.child import PREFIX
from tests.support.waiting import wait_for

ROOT = Path(connmon.__file__).parents[1]
#: Shorter than a person would like to watch.
QUICK = "from connmon import chaos, demo; chaos.EVERY, chaos.DOWN, demo.WORK = 2.0, 1.0, 0.5"
#: Applications that say to have counted something else than what the nodes show.
LIAR = """
stop, chaos.AGREE, chaos.ROUNDS = chaos._stop, 1.0, 0
chaos._stop = lambda *given: {pid: {**of, "checkouts_total": 1} for pid, of in stop(*given).items()}
"""


class Demo:
    """The command in a process of its own, with a temporary directory of its own."""

    def __init__(self, directory: Path, *arguments: str, code: str = "") -> None:
        self.directory = directory
        program = f"import sys\n{QUICK}\n{code}\nfrom connmon.commands.cli import main\nsys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)},
        )

    def children(self) -> list[psutil.Process]:
        """Return those that run, however their parent ended."""
        found = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "connmon.commands.demo.child" in command and any(
                str(self.directory) in word for word in command
            ):
                found.append(process)
        return found

    def left(self) -> bool:
        """Return whether anything is left of it."""
        return bool(self.children() or list(self.directory.glob(f"{PREFIX}*")))


@pytest.fixture(name="directory")
def a_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.slow
def test_without_a_terminal(directory: Path) -> None:
    """It prints how the three nodes are and what the applications do, and ends with nothing left."""
    demo = Demo(directory)
    output, errors = demo.process.communicate(timeout=100)
    assert demo.process.returncode == 0, errors
    assert output.startswith("HEALTHY  service demo  quorum yes")
    assert all(
        name in output for name in ("node1", "node2", "node3", "shop-api", "report-worker", "QueuePool")
    )
    assert "\x1b" not in output
    assert not demo.left()


@pytest.mark.slow
def test_chaos_loses_nothing(directory: Path) -> None:
    """Each node is killed and comes back; then all show, to the unit, what the applications counted."""
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
    assert not demo.left()


@pytest.mark.slow
def test_a_loss_would_be_noticed(directory: Path) -> None:
    """Where a node shows something else than what was counted, that is said, and the exit code is 1."""
    demo = Demo(directory, "--chaos", code=LIAR)
    output, errors = demo.process.communicate(timeout=100)
    assert demo.process.returncode == 1, errors
    assert "LOST OR COUNTED TWICE: node1, node2, node3" in output
    assert not demo.left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(directory: Path, number: signal.Signals) -> None:
    """After Ctrl-C, SIGTERM and even SIGKILL in the midst of it, no process and no file is left."""
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
    wait_for(lambda: not demo.left(), 20, "the children's end")

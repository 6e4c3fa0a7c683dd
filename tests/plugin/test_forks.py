"""Forks: what the child inherits is the parent's until the child uses it, and nothing is counted twice.

Real processes on a real MariaDB, a real connmond, and the real `connmon snapshot`. Each process counts what
it does (tests/support/fork_application.py), and the node has to show exactly that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connmon.plugin import forks
from tests.support.nodes import RunningNode, running_node
from tests.support.servers import Server
from tests.support.site import ROOT
from tests.support.truth import Meetings, Truth, engine


class Running(Meetings):
    """A scenario of tests.support.fork_application, and what the node has to show of it."""

    def __init__(
        self, scenario: str, directory: Path, node: RunningNode, server: Server, **options: Any
    ) -> None:
        super().__init__(directory)
        spec = engine(server, node, scenario, timeout=30.0, **options.pop("engine", {}))
        self.truth = Truth(node, server, spec, scenario)
        arguments = json.dumps({"engine": spec, "directory": str(directory), **options})
        self.log = directory / "stderr"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # Python 3.12 and newer warns a forking process of other threads: the reporter's, too.
                [
                    sys.executable,
                    "-W",
                    "ignore:This process:DeprecationWarning",
                    "-m",
                    "tests.support.fork_application",
                    scenario,
                    arguments,
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": ROOT},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def at(self, name: str, processes: int, unseen: int = 0) -> dict[int, dict[str, Any]]:
        """Compare the node with what the processes know at this meeting; they stay.

        `unseen` of them have used no connection, so that the node does not know them.
        """
        books = self.books(name, processes)
        used = {
            pid: counts
            for pid, counts in books.items()
            if any(counts[key] for key in ("connects", "checkouts", "adopted", "connect_errors"))
        }
        assert len(books) - len(used) == unseen
        self.truth.update(used)
        return books

    def equal(self, name: str, processes: int, unseen: int = 0) -> dict[int, dict[str, Any]]:
        """Compare the node with what the processes know at this meeting, then let them go on."""
        books = self.at(name, processes, unseen)
        self.truth.equal()
        self.go(name)
        return books

    def end(self) -> None:
        """Let the first process end: the program's row is gone, and its totals stay."""
        status = self.process.wait(30)
        assert (status, self.log.read_text()) == (0, "")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the children too
        self.process.wait()


@pytest.fixture
def run(tmp_path: Path, mariadb: Server) -> Iterator[Any]:
    """Start a scenario: run(name, **options)."""
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(running_node(tmp_path))
        meetings = tmp_path / "meetings"
        meetings.mkdir()

        def start(scenario: str, **options: Any) -> Running:
            return stack.enter_context(
                contextlib.closing(Running(scenario, meetings, node, mariadb, **options))
            )

        yield start
        assert "ERROR" not in node.log
        assert "Traceback" not in node.log


@pytest.mark.timeout(180)
def test_idle_connections_are_the_childs_when_it_uses_them(run: Any) -> None:
    """A child is shown once it uses a connection. An inherited one is in its gauges and in neither its
    connects nor its closes. The parent's figures stay as they were, and add up with the child's.
    """
    scenario = run("idle")
    scenario.equal("before", 1)
    books = scenario.equal("unused", 2, unseen=1)
    (child,) = set(books) - {scenario.pid}
    assert scenario.equal("one", 2)[child]["adopted"] == 1
    assert scenario.equal("all", 2)[child]["adopted"] == 2
    scenario.equal("given back", 2)
    scenario.equal("dropped", 2)
    scenario.equal("own", 2)
    scenario.at("ended", 1)
    scenario.truth.has_ended(child)
    scenario.equal("ended", 1)
    scenario.equal("again", 1)
    scenario.end()


@pytest.mark.timeout(180)
def test_held_connections_are_the_childs_when_it_checks_them_out(run: Any) -> None:
    """What was held or detached at the fork stays the parent's alone, also when the child returns it to its
    copy of the pool. From the child's next checkout on it is in the child as well.
    """
    scenario = run("held")
    scenario.equal("before", 1)
    assert {state for _, state in scenario.truth.living[scenario.pid]["sessions"]} == {
        "checked_out", "detached",
    }  # fmt: skip
    books = scenario.equal("given back", 2, unseen=1)
    (child,) = set(books) - {scenario.pid}
    assert scenario.equal("used", 2)[child]["adopted"] == 1
    scenario.at("ended", 1)
    scenario.truth.has_ended(child, killed=True)  # it ends by os._exit
    scenario.equal("ended", 1)
    scenario.equal("again", 1)
    scenario.end()


@pytest.mark.timeout(180)
def test_grandchildren(run: Any) -> None:
    """A process that has used nothing is not shown, though its parent and its child are."""
    scenario = run("twice")
    books = scenario.at("used", 2)
    (grandchild,) = set(books) - {scenario.pid}
    scenario.at("unused", 1, unseen=1)
    scenario.truth.equal()
    scenario.go("used")
    scenario.go("unused")
    books = scenario.at("alone", 2)
    scenario.truth.has_ended(grandchild)
    scenario.equal("alone", 2)
    (child,) = set(books) - {scenario.pid}
    scenario.at("ended", 1)
    scenario.truth.has_ended(child)
    scenario.equal("ended", 1)
    scenario.end()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("hard", [False, True], ids=["exit", "_exit"])
def test_a_fork_in_the_middle_of_work(run: Any, hard: bool) -> None:
    """Whatever the parent's threads and its reporter do at the fork, each process has its own figures. A
    child's end by sys.exit loses none of them; its end by os._exit takes it from the counts.
    """
    scenario = run("busy", children=8, hard=hard)
    books = scenario.equal("worked", 9)
    last = scenario.books("last", 8)
    assert set(last) == set(books) - {scenario.pid}
    scenario.truth.update(last)
    if hard:  # what is not reported by then is lost
        scenario.truth.equal()
    scenario.go("last")
    scenario.at("ended", 1)
    scenario.truth.has_ended(*last, killed=hard)
    scenario.equal("ended", 1)
    scenario.end()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(run: Any, method: str) -> None:
    """Each child is a process of its own, and its last counts are complete, although multiprocessing runs no
    atexit functions.
    """
    scenario = run("spawning", method=method)
    books = scenario.equal("worked", 3)
    last = scenario.books("last", 2)
    assert set(last) == set(books) - {scenario.pid}
    scenario.go("last")
    scenario.truth.update(last)
    scenario.at("ended", 1)
    scenario.truth.has_ended(*last)
    scenario.equal("ended", 1)
    scenario.end()


def test_outside_uwsgi_the_listeners_are_as_they_were() -> None:
    """Only within uWSGI a listener checks for forks; elsewhere it is unchanged and costs what it did."""

    def listener() -> None: ...

    assert forks.after_fork_check(listener) is listener
    assert forks.threads_allowed()


@pytest.mark.parametrize("options", [(), ("no-page",)], ids=["page", "pid"])
def test_a_fork_in_c(options: tuple[str, ...]) -> None:
    """Within uWSGI a child is noticed once, by uWSGI's hook or else by the next listener, also where the
    kernel blanks no page. The hook's previous owner is called, no thread is allowed before the fork, and
    each warning comes once.
    """
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.raw_fork", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [
        {"step": "before", "called": [], "seen": [1], "allowed": [False, False]},
        {"step": "listener", "called": ["forked"], "seen": [1, 2, 3], "allowed": True, "earlier": 0},
        {
            "step": "hook",
            "called": ["forked", "may have threads"],
            "seen": [1, 2],
            "allowed": True,
            "earlier": 1,
        },
        {"step": "grandchild", "called": ["forked", "forked"], "seen": [1, 2, 4]},
        {"step": "parent", "called": ["forked"], "seen": [1, 2], "allowed": True, "earlier": 0},
        {"step": "after", "called": [], "seen": [1]},
    ]
    complaints = run.stderr.splitlines()
    assert ["enable-threads" in line for line in complaints] == [True, False]
    assert ["lazy-apps" in line for line in complaints] == [False, True]

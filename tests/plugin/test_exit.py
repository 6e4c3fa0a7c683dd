"""The end of a process: its last work counts, it is alive until then, and it leaves nothing open.

Real processes and a real connmond.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import RunningNode, running_node
from tests.support.site import ROOT
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

#: Registered with atexit before connmon is imported, as libraries do, so it runs after connmon's own.
LAST_WORDS = """
import atexit, gc, sys, time
def use(times):
    for _ in range(times):
        with engine.connect() as connection:
            connection.execute(text("select 1"))
def bye():
    use(3)
    print("in atexit", flush=True)
    sys.stdin.readline()
    use(2)
atexit.register(bye)
OPTIONS
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[1])
use(5)
print("used", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path) as node:
        yield node


def start(code: str, directory: Path, node: RunningNode, program: str) -> subprocess.Popen[str]:
    url = f"sqlite:///{directory}/x.db?plugin=connmon&connmon_addr={node.address}&connmon_program={program}"
    return subprocess.Popen(
        [sys.executable, "-c", code, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )


def row_of(node: RunningNode, program: str) -> dict[str, Any] | None:
    return next((row for row in node.rows("program") if row["program"] == program), None)


@pytest.mark.parametrize("options", ["", "gc.freeze()", "import multiprocessing.util"])
def test_atexit_functions_registered_before_connmon(options: str, tmp_path: Path, node: RunningNode) -> None:
    """Their work is counted, and the process is alive while they run."""
    process = start(LAST_WORDS.replace("OPTIONS", options), tmp_path, node, "last-words")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "used\n"

        def shown(state: str, **expected: int) -> bool:
            row = row_of(node, "last-words")
            assert row is not None
            assert row["state"] == state
            assert {key: row[key] for key in expected} == expected
            return True

        wait_for(lambda: shown("connected", processes=1, checkouts_total=5, connections=1), 10)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "in atexit\n"
        wait_for(lambda: shown("connected", processes=1, checkouts_total=8, connections=1), 10)
        out, errors = process.communicate("\n", timeout=20)
        assert (process.returncode, out, errors) == (0, "", "")
        totals = {"connects_total": 1, "closes_total": 1, "checkouts_total": 10, "checkins_total": 10}
        wait_for(lambda: shown("gone", processes=0, connections=0, **totals), 10)
    finally:
        process.kill()
        process.wait()


SHORT = """
import sys
OPTIONS
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[1])
connection = engine.connect()
connection.execute(text("select 1"))
"""


@pytest.mark.parametrize("options", ["", "import gc; gc.disable()"], ids=["", "no garbage collection"])
def test_a_process_that_ends_in_good_order_leaves_nothing_open(
    options: str, tmp_path: Path, node: RunningNode
) -> None:
    """What it has not closed or returned counts as closed and returned, however short its life was."""
    for number in range(3):
        process = start(SHORT.replace("OPTIONS", options), tmp_path, node, "short")
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0

        def shown(times: int = number + 1) -> bool:
            row = row_of(node, "short")
            assert row is not None
            keys = ("processes", "connects_total", "closes_total", "checkouts_total", "checkins_total")
            assert [row[key] for key in keys] == [0, times, times, times, times]
            return True

        wait_for(shown, 10)

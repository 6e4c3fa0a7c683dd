"""eventlet and gevent: the reports go on, whatever a greenlet does with the CPU.

Programs whose threads are greenlets (tests/support/green_application.py) on a real MariaDB, with a real
connmond.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nodes import RunningNode, running_node
from tests.support.requirements import needs
from tests.support.servers import Server
from tests.support.site import ROOT
from tests.support.truth import Meetings, Truth, engine
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("patched", ["first", "imported", "connected"])
@pytest.mark.parametrize("library", ["eventlet", "gevent"])
def test_greenlets(tmp_path: Path, mariadb: Server, library: str, patched: str) -> None:
    """Wherever the monkey patch is applied, greenlets that hold and that wait are counted. While one of them
    keeps the CPU to itself, the reports go on every second and show what it does.
    """
    needs(library)
    wait_for(lambda: not mariadb.sessions(), 10, "earlier sessions to end")
    directory = tmp_path / "meetings"
    directory.mkdir()
    with running_node(tmp_path) as node:
        spec = engine(mariadb, node, library, timeout=60.0)
        truth, meetings = Truth(node, mariadb, spec, library), Meetings(directory)
        options = json.dumps({"engine": spec, "directory": str(directory)})
        log = tmp_path / "stderr"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.green_application", library, patched, options],
                stdin=subprocess.DEVNULL,
                stderr=output,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": ROOT},
            )
        try:
            _greenlets(node, truth, meetings, process.pid)
            assert process.wait(30) == 0
            truth.has_ended(process.pid)
            truth.equal_in_snapshots()
        finally:
            process.kill()
            process.wait()
            print(log.read_text())
        assert "connmon" not in log.read_text()
        assert "Traceback" not in node.log


def _greenlets(node: RunningNode, truth: Truth, meetings: Meetings, pid: int) -> None:
    (books,) = meetings.books("waiting", 1).values()
    assert books["kept"] == 4

    def waiting() -> bool:
        (row,) = node.rows("process")
        return (row["checked_out"], row["waiting"]) == (4, 3) and row["longest_wait_seconds"] > 1.0

    wait_for(waiting, 15, "the holders and the waiting to be shown")
    held = [row for row in node.rows("connection") if row["state"] == "checked_out"]
    assert len(held) == 4
    assert all(row["holder"] for row in held)
    meetings.go("waiting")
    truth.update(meetings.books("quiet", 1))
    truth.equal()
    (row,) = node.rows("process")
    assert row["max_waiting"] == 3
    meetings.go("quiet")
    # Were the reporter a greenlet, it would stand still from here on.
    before = row["checkouts_total"]

    def went_on() -> bool:
        (row,) = node.rows("process")
        assert row["last_report_seconds"] < 2.5
        return bool(row["checkouts_total"] > before)

    for _ in range(4):
        wait_for(went_on, 5, "a report")
        before = node.rows("process")[0]["checkouts_total"]
    meetings.go("hogged")
    truth.update(meetings.books("hogged, and done", 1))
    truth.equal()
    meetings.go("hogged, and done")

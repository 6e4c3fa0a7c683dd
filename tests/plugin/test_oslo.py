"""oslo.db from PyPI: connmon is exact under it, and does not change what a service sees.

Applications as oslo.db's users write them (oslo_application.py and oslo_errors.py of tests/support) on a real
MariaDB, a real connmond; both forms of the URL, and the options that a service has for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy.engine import make_url

from tests.support.nodes import RunningNode, running_node
from tests.support.requirements import needs, needs_driver
from tests.support.servers import Server
from tests.support.site import ROOT, TOTALS, assert_row, at_the_end, figures
from tests.support.truth import TRUTH, Meetings
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(180)

#: The pool that the configuration asks for.
SIZE = {"size": 2, "overflow": 2}
FORMS = pytest.mark.parametrize("form", ["classic", "connection_parameters"])

Books = Mapping[str, dict[str, Any]]


@pytest.fixture
def node(tmp_path: Path, mariadb: Server) -> Iterator[RunningNode]:
    needs("oslo_db", "oslo_config")
    wait_for(lambda: not mariadb.sessions(), 10, "earlier sessions to end")
    with running_node(tmp_path) as running:
        yield running
        assert "Traceback" not in running.log


def configuration(node: RunningNode, form: str, program: str, urls: Mapping[str, str]) -> str:
    """Return a service's [database] section; `urls` are by the name of their option."""
    options = {"connmon_addr": node.address, "connmon_program": program}
    lines = ["[database]", "max_pool_size = 2", "max_overflow = 2", "max_retries = 1"]
    for name, url in urls.items():
        parsed = make_url(url)
        if form == "classic":
            parsed = parsed.set(drivername=f"{parsed.drivername}_connmon").update_query_dict(options)
        lines.append(f"{name} = {parsed.render_as_string(hide_password=False)}")
    if form != "classic":
        lines.append(f"connection_parameters = {urlencode({'plugin': 'connmon', **options}, safe=':')}")
    return "\n".join(lines) + "\n"


class Service(Meetings):
    """A scenario of tests.support.oslo_application that reports under the name of the scenario."""

    def __init__(
        self,
        scenario: str,
        directory: Path,
        node: RunningNode,
        server: Server,
        configured: str,
        *databases: str,
    ) -> None:
        directory.mkdir()
        super().__init__(directory)
        self.node, self.server, self.program = node, server, scenario
        file, self.log = directory / "service.conf", directory / "stderr"
        file.write_text(configured)
        options = {"file": str(file), "directory": str(directory), "databases": databases}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.oslo_application", scenario, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": ROOT},
                start_new_session=True,
            )

    def equal(self, name: str, processes: int = 1, *, open_at_server: bool = True) -> dict[int, Books]:
        """Compare the node with what the processes know at this meeting, then let them go on.

        Not `open_at_server`: the server has ended some of their connections, which they cannot know.
        """
        books: dict[int, Books] = dict(self.books(name, processes))
        wait_for(
            lambda: self._compare(books, open_at_server), TRUTH, f"the node to show what is known {name!r}"
        )
        self.go(name)
        return books

    def _compare(self, books: Mapping[int, Books], open_at_server: bool) -> bool:
        rows = {row["pid"]: row for row in self.node.rows("process")}
        pools = {(row["pid"], make_url(row["pool"]).database): row for row in self.node.rows("pool")}
        assert set(rows) == set(books)
        for pid, process in books.items():
            truths = {name: figures(SIZE, report) for name, report in process.items()}
            for name, truth in truths.items():
                assert_row(pools[pid, name], truth, f"pool {name}")
                assert (pools[pid, name]["pool_size"], pools[pid, name]["max_overflow"]) == (2, 2)
            assert_row(rows[pid], sum(truths.values(), Counter()), "the process")
        shown = Counter((row["pid"], row["server_id"], row["state"]) for row in self.node.rows("connection"))
        assert shown == Counter(
            (pid, number, state)
            for pid, process in books.items()
            for report in process.values()
            for number, state in report["sessions"]
        )
        sessions = {session.id for session in self.server.sessions()}
        assert not open_at_server or sessions == {number for _, number, _ in shown}
        return True

    def end(self, *last: Books) -> None:
        """Let it end; its program keeps the totals of all its processes."""
        status = self.process.wait(30)
        errors = self.log.read_text()
        assert (status, "connmon" in errors, "Traceback" in errors) == (0, False, False), errors
        total: Counter[str] = Counter()
        for books in last:
            for report in books.values():
                total.update(at_the_end(figures(SIZE, report), killed=False))

        def ended() -> bool:
            (row,) = self.node.rows("program")
            assert (row["program"], row["state"]) == (self.program, "gone")
            assert {key: row[key] for key in TOTALS} == {key: total[key] for key in TOTALS}
            return True

        wait_for(ended, TRUTH, "the program to be gone")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the children too
        self.process.wait()
        print(self.log.read_text())


@FORMS
def test_facade(tmp_path: Path, node: RunningNode, mariadb: Server, form: str) -> None:
    """A service whose [database] section has connection and slave_connection: both engines are shown, however
    enginefacade uses them for writers and readers.
    """
    url = make_url(mariadb.url("pymysql"))
    urls = {
        "connection": url.render_as_string(hide_password=False),
        "slave_connection": url.set(database="information_schema").render_as_string(hide_password=False),
    }
    configured = configuration(node, form, "facade", urls)
    databases = (mariadb.database, "information_schema")
    with contextlib.closing(
        Service("facade", tmp_path / "service", node, mariadb, configured, *databases)
    ) as service:
        for name in ("writing", "a connection", "reading what was written", "reading", "quiet", "disposed"):
            service.equal(name)
        (last,) = service.equal("end").values()
        service.end(last)


@FORMS
def test_asyncio_facade(tmp_path: Path, node: RunningNode, mariadb: Server, form: str) -> None:
    """The same on asyncio: tasks that hold a connection are named, and tasks that wait are counted."""
    configured = configuration(node, form, "asynchronous", {"connection": mariadb.url("asyncmy")})
    with contextlib.closing(
        Service("asynchronous", tmp_path / "service", node, mariadb, configured, mariadb.database)
    ) as service:
        (held,) = service.books("held", 1).values()
        (report,) = held.values()
        truth = figures(SIZE, report)

        def shown() -> bool:
            (row,) = node.rows("process")
            assert row["checked_out"] == truth["checked_out"] == 4
            return bool(row["waiting"] == 2)

        wait_for(shown, TRUTH, "the tasks to be shown")
        holders = {row["holder"] for row in node.rows("connection")}
        assert holders == {f"request-{number}" for number in range(4)}
        service.go("held")
        service.equal("quiet")
        (last,) = service.equal("end").values()
        service.end(last)


@FORMS
def test_pid_guard(tmp_path: Path, node: RunningNode, mariadb: Server, form: str) -> None:
    """oslo.db replaces a connection that was inherited through a fork: the child is shown with its own one
    only, and neither process has a connect, a close or a checkout too many.
    """
    configured = configuration(node, form, "guard", {"connection": mariadb.url("pymysql")})
    with contextlib.closing(
        Service("guard", tmp_path / "service", node, mariadb, configured, mariadb.database)
    ) as service:
        service.equal("before")
        books = service.equal("forked", 2, open_at_server=False)
        child = books[next(pid for pid in books if pid != service.process.pid)]
        (last,) = service.equal("end").values()
        service.end(last, child)


@pytest.mark.parametrize("driver", ["pymysql", "mysqldb", "mysqlconnector"])
def test_errors_are_what_they_are_without_connmon(
    tmp_path: Path, node: RunningNode, mariadb: Server, driver: str
) -> None:
    """oslo.db's filters turn the driver's errors into the same exceptions, with the same messages and
    details, and the engine is the one that oslo.db would have made.
    """
    needs_driver(driver)
    plain = mariadb.url(driver)
    addr = {"connmon_addr": node.address}
    parameters = urlencode({"plugin": "connmon", **addr}, safe=":")
    seen = _errors(plain, None)
    assert _errors(mariadb.url(f"{driver}_connmon", **addr), None) == seen
    assert _errors(plain, parameters) == seen
    named = {name: what[0] for name, what in seen if isinstance(what, list)}
    assert named["duplicate key"] == named["duplicate name"] == "DBDuplicateEntry"
    assert named["no parent"] == named["has children"] == "DBReferenceError"
    assert named["no database"] == "DBNonExistentDatabase" or driver == "mysqlconnector"
    assert named["deadlock"] == "DBDeadlock"
    assert named["lost"] == "DBConnectionError"
    assert named["nobody there"] == "DBConnectionError" or driver == "mysqlconnector"
    assert ["after it was lost", "well"] in seen

    def counted() -> bool:
        (row,) = node.rows("program")  # two processes of one program
        assert (row["state"], row["max_processes"]) == ("gone", 1)
        # Of each: the connection, and the one after it was lost; the pool timeout; nobody there.
        found = {key: row[key] for key in TOTALS if not key.startswith("check")}
        assert found == {
            "connects_total": 4, "closes_total": 4, "invalidations_total": 2,
            "timeouts_total": 2, "connect_errors_total": 2,
        }  # fmt: skip
        assert row["checkouts_total"] == row["checkins_total"]
        return True

    wait_for(counted, TRUTH, "both processes to be counted and gone")


def _errors(url: str, parameters: str | None) -> list[list[Any]]:
    """Run tests.support.oslo_errors; return its results."""
    nobody = make_url(url).set(host="127.0.0.1", port=1).render_as_string(hide_password=False)
    options = json.dumps({"url": url, "connection_parameters": parameters, "nobody": nobody})
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.oslo_errors", options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "connmon:" not in run.stderr
    seen = [json.loads(line) for line in run.stdout.splitlines()]
    for name, what in seen:
        if name == "lost" and re.search(r"\b(2013|2055): Lost connection to MySQL server", what[2]):
            # Which of the two MySQL's own driver says depends on how far the server has closed it by then.
            what[1:3] = ["", "2013 or 2055: Lost connection"]
    return seen

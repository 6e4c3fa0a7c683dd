"""A whole OpenStack service from PyPI: connmon shows what the database server lists.

placement, the smallest of them, on a real MariaDB and behind real WSGI servers, unchanged: it knows of
connmon only by its configuration and environment. The truth is the server's: its list of sessions, and how
many connections it has counted for the service's user.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pymysql
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from connmon.plugin.pool_account import KEY
from connmon.protocol.values import Grouping
from tests.support.devstack import Stack, uwsgi
from tests.support.nodes import RunningNode, running_node
from tests.support.requirements import needs
from tests.support.servers import Server
from tests.support.site import ROOT
from tests.support.truth import GROUPINGS, TRUTH
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WORKERS = 2
#: Of each worker. One more than its pool can give.
THREADS = 3
SIZE = OVERFLOW = 1
#: The user and the database of the service at the database server.
NAME = "placement"
PROGRAM = "placement-api"

Rows = dict[Grouping, list[dict[str, Any]]]


class Database:
    """The service's own database on the server, and what the server knows of its sessions."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = pymysql.connect(
            host=server.host, port=server.port, user=server.user, password=server.password, autocommit=True
        )
        self._run("SET GLOBAL userstat = 1")  # connections are counted by user
        self.drop()
        self._run(f"CREATE DATABASE {NAME} CHARACTER SET utf8")
        self._run(f"CREATE USER '{NAME}'@'%%' IDENTIFIED BY %s", server.password)
        self._run(f"GRANT ALL ON {NAME}.* TO '{NAME}'@'%%'")
        self._run("FLUSH USER_STATISTICS")  # zero them

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or ())
            return list(cursor.fetchall())

    @property
    def url(self) -> str:
        url = make_url(self._server.url("pymysql", charset="utf8"))
        return url.set(username=NAME, database=NAME).render_as_string(hide_password=False)

    def sessions(self) -> dict[int, bool]:
        """Return the service's sessions, and whether each is executing a statement."""
        query = "SELECT id, command FROM information_schema.processlist WHERE user = %s"
        return {int(number): command == "Query" for number, command in self._run(query, NAME)}

    def connections(self) -> int:
        """Return how many connections the server has accepted from the service."""
        query = "SELECT total_connections FROM information_schema.user_statistics WHERE user = %s"
        return sum(int(number) for (number,) in self._run(query, NAME))

    def names(self) -> set[str]:
        return {name for (name,) in self._run(f"SELECT name FROM {NAME}.resource_providers")}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Block reads of the table that every request reads."""
        self._run(f"LOCK TABLES {NAME}.resource_providers WRITE")
        try:
            yield
        finally:
            self._run("UNLOCK TABLES")

    def drop(self) -> None:
        self._run(f"DROP DATABASE IF EXISTS {NAME}")
        self._run(f"DROP USER IF EXISTS '{NAME}'@'%%'")

    def close(self) -> None:
        self.drop()
        self._run("SET GLOBAL userstat = 0")
        self._connection.close()


class Placement:
    """placement behind a WSGI server."""

    def __init__(self, directory: Path, node: RunningNode, database: Database) -> None:
        self.node, self.database = node, database
        self.directory = directory / "etc"
        self.configuration = self.directory / "placement.conf"
        self._log = directory / "placement.log"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def configure(self, url: str) -> None:
        """Write the service's configuration file."""
        self.configuration.write_text(
            "[api]\nauth_strategy = noauth2\n\n"
            f"[placement_database]\nmax_pool_size = {SIZE}\nmax_overflow = {OVERFLOW}\npool_timeout = 60\n"
            f"connection = {url}\n"
        )

    def make_tables(self) -> None:
        self._manage("--config-file", str(self.configuration), "db", "sync")

    def _manage(self, *arguments: str) -> None:
        """Run the service's own tool, which reads the same file."""
        tool = Path(sys.executable).with_name("placement-manage")
        run = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *command: str, **environment: str) -> None:
        """Start the service, and return when it answers."""
        with self._log.open("wb") as output:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "OS_PLACEMENT_CONFIG_DIR": str(self.directory), **environment},
                start_new_session=True,
            )

        def ready() -> bool:
            assert process.poll() is None, self.log
            with contextlib.suppress(OSError):
                return self.ask("GET", "/")[0] == 200  # which needs no database
            return False

        wait_for(ready, 60, "placement to answer")

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        headers = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement latest"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as server:
            server.request(method, path, None if body is None else json.dumps(body), headers)
            response = server.getresponse()
            text = response.read()
        return response.status, json.loads(text) if text else None

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.pid).children()}

    def equal(self, held: int, waiting: int = 0) -> dict[str, Any]:
        """The node, and then the real `connmon snapshot`, shows the server's sessions, so many of them held.

        Returns the program's row.
        """

        def rows() -> Rows:
            return {by: self.node.rows(by) for by in GROUPINGS}

        def snapshots() -> Rows:
            documents = self.node.snapshots(("connection", "program"))
            return {**rows(), **{by: document["rows"] for by, document in documents.items()}}

        what = "the server's sessions to be shown"
        wait_for(lambda: self._compare(rows, held, waiting), TRUTH, what)
        return wait_for(lambda: self._compare(snapshots, held, waiting), TRUTH, what)

    def _compare(self, look: Callable[[], Rows], held: int, waiting: int) -> dict[str, Any]:
        sessions = self.database.sessions()
        everything = look()
        assert self.database.sessions() == sessions, "the server was not quiet"
        assert sum(sessions.values()) == held
        own = {by: [row for row in rows if row["program"] == PROGRAM] for by, rows in everything.items()}
        shown = {row["server_id"]: row["state"] == "checked_out" for row in own["connection"]}
        assert shown == sessions
        assert len(own["connection"]) == len(shown)
        states = Counter(row["state"] for row in own["connection"])
        expected = {
            "connections": len(sessions), "checked_out": held, "idle": states["idle"],
            "detached": 0, "waiting": waiting,
        }  # fmt: skip
        summed: tuple[Grouping, ...] = ("program", "process", "pool")
        for by in summed:
            assert {key: sum(row[key] for row in own[by]) for key in expected} == expected
        assert {row["pid"] for row in own["process"]} <= self.workers()
        for row in own["pool"]:
            assert (row["pool_size"], row["max_overflow"]) == (SIZE, OVERFLOW)
            assert make_url(row["pool"]).drivername == "mysql+pymysql"
        # Each connection that the server took, those of the service's own tool too, and none twice.
        taken = sum(row["connects_total"] for row in everything["program"])
        assert taken == self.database.connections()
        program: dict[str, Any]
        (program,) = own["program"]
        assert program["connects_total"] - program["closes_total"] == len(sessions)
        assert program["checkouts_total"] - program["checkins_total"] == held
        return program

    def stop(self, number: signal.Signals) -> None:
        """Stop it in good order."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)

    def remove(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            print(self.log)  # shown where the test has failed


Start = Callable[[Placement, Path], None]


@pytest.fixture
def node(tmp_path: Path, mariadb: Server) -> Iterator[RunningNode]:
    needs("placement")
    with running_node(tmp_path) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def database(mariadb: Server) -> Iterator[Database]:
    with contextlib.closing(Database(mariadb)) as database:
        yield database


def under_uwsgi(placement: Placement, directory: Path) -> None:
    """As devstack configures it, with its plugin: connection_parameters, and the name in the environment."""
    stack = Stack(directory)
    stack.settings["CONNMON_CONFIG"] = str(placement.node.config)
    placement.configure(placement.database.url)
    file = stack.directory / "placement-uwsgi.ini"
    file.write_text(
        f"[uwsgi]\nmodule = placement.wsgi.api:application\nhttp-socket = 127.0.0.1:{placement.port}\n"
        f"processes = {WORKERS}\nthreads = {THREADS}\nvirtualenv = {sys.prefix}\nmaster = true\n"
        "die-on-term = true\nexit-on-reload = false\nworker-reload-mercy = 60\nenable-threads = true\n"
        "thunder-lock = true\nhook-master-start = unix_signal:15 gracefully_kill_them_all\n"
        "buffer-size = 65535\nlazy-apps = true\nstart-time = %t\n"
    )
    stack.stack()
    placement.make_tables()
    placement.start(uwsgi(), "--ini", str(file))


def under_gunicorn(placement: Placement, directory: Path) -> None:
    """By hand: connmon in the URL, in its first form, and the name in the environment."""
    placement.directory.mkdir()
    url = make_url(placement.database.url).set(drivername="mysql+pymysql_connmon")
    url = url.update_query_dict({"connmon_addr": placement.node.address})
    placement.configure(url.render_as_string(hide_password=False))
    placement.make_tables()
    placement.start(
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{placement.port}", "--workers", str(WORKERS),
        "--worker-class", "gthread", "--threads", str(THREADS), "placement.wsgi.api:application",
        OS_PLACEMENT_DATABASE__CONNECTION_PARAMETERS=f"connmon_program={PROGRAM}",
    )  # fmt: skip


#: By file: the sections with a database.
FILES = {
    "nova.conf": ("database", "api_database"), "neutron.conf": ("database",), "keystone.conf": ("database",),
    "cinder.conf": ("database",), "glance-api.conf": ("database",), "placement.conf": ("placement_database",),
}  # fmt: skip


def examples() -> list[tuple[str, str]]:
    """Return the configuration files that docs/openstack.rst shows: name and text."""
    page = Path(ROOT, "docs", "openstack.rst").read_text()
    found = []
    for before, block in re.findall(r"^(.*)::\n\n((?:(?:    .*)?\n)+)", page, re.M):
        # One file, which is named before, or several, each named by a comment.
        parts = re.split(r"^# (\S+)\n", textwrap.dedent(block), flags=re.M)
        named = re.search(r"^``/etc/.*/(.*\.conf)``", before)
        if named:
            found.append((named[1], parts[0]))
        found += zip(parts[1::2], parts[2::2], strict=True)
    return found


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    """oslo.config reads what the page shows for each service, in three ways; it makes a watched engine, and
    the service sees no difference.
    """
    needs("oslo_config", "oslo_db")
    from tests.support.devstack_services import configured

    seen: Counter[tuple[str, str]] = Counter()
    ways = set()
    for name, written in examples():
        file = tmp_path / name
        file.write_text(written)
        assert written.count("[") == len(FILES[name])
        for section in FILES[name]:
            group = configured([str(file)], section)[section]
            url = make_url(group.connection)
            whole = url.update_query_string(group.connection_parameters or "", append=True)
            engine = create_engine(whole)
            assert (
                whole
                != engine.url
                == make_url(f"mysql+pymysql://{url.username}:secret@db/{url.database}?charset=utf8")
            )
            assert hasattr(engine.pool._creator, KEY)
            seen[name, section] += 1
            ways.add((url.drivername, url.query.get("plugin"), group.connection_parameters))
    assert seen == {(name, section): 3 for name, sections in FILES.items() for section in sections}
    assert ways == {
        ("mysql+pymysql", None, "plugin=connmon"), ("mysql+pymysql_connmon", None, ""),
        ("mysql+pymysql", "connmon", ""),
    }  # fmt: skip


@pytest.mark.parametrize("start", [under_uwsgi, under_gunicorn])
def test_placement(tmp_path: Path, node: RunningNode, database: Database, start: Start) -> None:
    """Before any request, while requests hold and wait for connections, afterwards, and after its end: the
    snapshot and the server's list of sessions are exactly the same.
    """
    needs("uwsgi", "gunicorn")
    placement = Placement(tmp_path, node, database)
    try:
        start(placement, tmp_path)
        scenario(placement)
        ended(placement)
        assert "Traceback" not in placement.log
        assert "connmon:" not in placement.log
    finally:
        placement.remove()


def scenario(placement: Placement) -> None:
    database = placement.database
    placement.equal(held=0)

    names = {f"compute-{number}" for number in range(8)}
    for name in names:
        status, answer = placement.ask("POST", "/resource_providers", {"name": name})
        assert status == 200, answer
    assert database.names() == names
    before = placement.equal(held=0)

    answers: list[tuple[int, Any]] = []
    requests: list[threading.Thread] = []

    def ask() -> None:
        answers.append(placement.ask("GET", "/resource_providers"))

    def all_busy() -> bool:
        """Send one more request, unless each worker holds all that its pool can give, and waits for more.

        The server chooses the worker of a request, at random.
        """
        held, waiting = sum(database.sessions().values()), 0
        for row in placement.node.rows("program"):
            waiting += row["waiting"]
        if (held, waiting) == (WORKERS * (SIZE + OVERFLOW), WORKERS):
            return True
        if len(requests) < 100:
            requests.append(threading.Thread(target=ask, daemon=True))
            requests[-1].start()
        return False

    with database.locked():
        wait_for(all_busy, 30, "requests to take and await all connections")
        # Each worker has as many requests as threads, and a connection for all but one.
        under = placement.equal(held=WORKERS * (SIZE + OVERFLOW), waiting=WORKERS)
        assert (under["processes"], under["overflow"]) == (WORKERS, WORKERS * OVERFLOW)
        assert under["longest_wait_seconds"] > 0
    for request in requests:
        request.join(60)
    assert [status for status, _ in answers] == [200] * len(requests)
    assert {provider["name"] for provider in answers[0][1]["resource_providers"]} == names

    after = placement.equal(held=0)
    assert (after["max_checked_out"], after["max_waiting"]) == (WORKERS * (SIZE + OVERFLOW), WORKERS)
    assert after["checkouts_total"] > before["checkouts_total"]
    assert after["timeouts_total"] == after["connect_errors_total"] == 0


def ended(placement: Placement) -> None:
    """Nothing is left but the totals, also those of the service's tool."""
    placement.stop(signal.SIGTERM)
    wait_for(lambda: not placement.database.sessions(), TRUTH, "the sessions to end")

    def gone() -> bool:
        rows = {row["program"]: row for row in placement.node.rows("program")}
        assert set(rows) == {PROGRAM, "placement-manage db sync"}
        for row in rows.values():
            assert (row["state"], row["processes"], row["connections"]) == ("gone", 0, 0)
            assert row["checkouts_total"] == row["checkins_total"] > 0
        taken = sum(row["connects_total"] for row in rows.values())
        assert taken == placement.database.connections()
        return True

    wait_for(gone, TRUTH, "the programs to be gone")

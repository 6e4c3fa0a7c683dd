"""gunicorn and uWSGI from PyPI: each worker is shown as a process, each deployment as a row.

A real server with real workers on a real MariaDB, a real connmond, the real `connmon snapshot`. The workers
count what they do (tests/support/wsgi_application.py), and the node has to show exactly that.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.heirs import Books
from tests.support.nodes import RunningNode, running_node
from tests.support.requirements import needs
from tests.support.servers import Server
from tests.support.site import ROOT
from tests.support.truth import Truth, engine
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WORKERS = 2


class Served:
    """A server that runs tests.support.wsgi_application, and its workers."""

    def __init__(self, directory: Path, node: RunningNode, mariadb: Server, program: str, **options: Any):
        spec = engine(mariadb, node, program)
        self.truth = Truth(node, mariadb, spec, program)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._log = directory / f"{program}.log"
        self._environment = {
            **os.environ,
            "PYTHONPATH": ROOT,
            "CONNMON_TEST_APPLICATION": json.dumps({"engine": spec, **options}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.pids: list[int] = []
        self.threads = False
        """Whether a worker serves several requests at once."""
        self.is_uwsgi = False
        self._requests = 0

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def complaints(self) -> list[str]:
        """Return connmon's log lines."""
        return [line for line in self.log.splitlines() if "connmon:" in line]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *command: str, itself: bool = False) -> None:
        """Start it, and return when all workers are there; without a master, the process `itself` is one."""
        with self._log.open("wb") as output:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self._environment,
                start_new_session=True,
            )

        def ready() -> bool:
            assert process.poll() is None, self.log
            self.pids = self._workers(itself)
            return len(self.pids) == WORKERS and self._answers()

        wait_for(ready, 30, "the server to answer")

    def _workers(self, itself: bool = False) -> list[int]:
        children = [child.pid for child in psutil.Process(self.pid).children()]
        return [self.pid, *children] if itself else children

    def replace(self, pid: int) -> int:
        """Kill a worker; return the one that the server starts for it."""
        psutil.Process(pid).kill()
        self.truth.has_ended(pid, killed=True)

        def other() -> bool:
            self.pids = self._workers()
            return len(self.pids) == WORKERS and pid not in self.pids

        wait_for(other, 30, "another worker")
        return self.pids[-1]

    def _answers(self) -> bool:
        try:
            self.ask("")
        except OSError:
            return False
        return True

    def ask(self, path: str) -> Books:
        """Send a request to any worker."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)) as http_:
            http_.request("GET", f"/{path}")
            response = http_.getresponse()
            body = response.read()
        self._requests += 1
        assert response.status == 200, self.log
        books: Books = json.loads(body)
        return books

    def tell(self, pid: int, path: str) -> Books:
        """Send a request to this worker."""
        return self._wait_for(pid, path) if self.threads else self._stop_others(pid, path)

    def _wait_for(self, pid: int, path: str) -> Books:
        # Of a worker with several threads that is stopped, one may have taken the request by then.
        for _ in range(1000):
            books = self.ask(path)
            self.truth.update({books["pid"]: books})
            if books["pid"] == pid:
                return books
        raise AssertionError(f"1000 requests, and none came to worker {pid}")

    def _stop_others(self, pid: int, path: str) -> Books:
        others = [psutil.Process(other) for other in self.pids if other != pid]
        for other in others:
            other.suspend()
        try:
            books = self.ask(path)
        finally:
            for other in others:
                other.resume()
        assert books["pid"] == pid
        self.truth.update({pid: books})
        return books

    def stop(self) -> None:
        """Stop the server in good order."""
        assert self._process is not None
        if self.is_uwsgi:  # a worker that is not quite done with a request runs nothing of atexit
            wait_for(lambda: self.log.count(" generated ") == self._requests, what="all requests to end")
        # To uWSGI, SIGTERM means a reload.
        self._process.send_signal(signal.SIGINT if self.is_uwsgi else signal.SIGTERM)
        self._process.wait(30)
        self.truth.has_ended(*self.pids)

    def remove(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            print(self.log)  # shown where the test has failed


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, mariadb: Server) -> Iterator[Serve]:
    """Make a server: serve(program, **options of the application)."""
    wait_for(lambda: not mariadb.sessions(), 10, "earlier sessions to end")
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(running_node(tmp_path))

        def make(program: str, **options: Any) -> Served:
            served = Served(tmp_path, node, mariadb, program, **options)
            stack.callback(served.remove)
            return served

        yield make
        assert "ERROR" not in node.log
        assert "Traceback" not in node.log


def everything(served: Served, loaded: Books | None, without: list[int] | None = None) -> None:
    """Exercise the workers until they have ended, and check that the node shows exactly what they did.

    `loaded` is what the master did while it loaded the application, where the master is reported; `without`
    are its sessions where it is not.
    """
    adopted = 0 if loaded is None and without is None else 2
    first, second = served.pids
    books = served.tell(first, "two")
    assert books["adopted"] == adopted
    served.truth.equal(without or ())
    served.tell(second, "one")
    served.tell(first, "keep_one")
    served.truth.equal(without or ())
    served.tell(second, "keep_one")
    served.tell(second, "two")
    served.tell(first, "give_back")
    served.tell(second, "give_back")
    served.truth.equal_in_snapshots(without or ())
    if without is not None or loaded is not None:
        assert served.tell(served.replace(second), "two")["adopted"] == adopted
        served.truth.equal(without or ())
    served.tell(first, "one")
    if loaded is not None:
        served.pids.append(served.pid)
    served.stop()
    served.truth.equal()


def loading(books: Books) -> Books:
    """Two connections of the master at once, both returned. The sessions are the first worker's."""
    return {
        **books, "connects": 2, "checkouts": 2, "checkins": 2, "adopted": 0, "kept": 0,
        "sessions": [[number, "idle"] for number, _ in books["sessions"]],
    }  # fmt: skip


# --- gunicorn


def gunicorn(served: Served, *options: str) -> None:
    served.start(
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{served.port}", "--workers", str(WORKERS),
        *options, "tests.support.wsgi_application:application",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_gunicorn(serve: Serve, kind: str) -> None:
    """Workers that load the application themselves, each with its own connections."""
    needs("gunicorn", *([kind] if kind == "gevent" else []))
    served = serve("gunicorn")
    gunicorn(served, "--worker-class", kind)
    everything(served, None)
    assert not served.complaints


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_gunicorn_preload(serve: Serve, kind: str) -> None:
    """The application is loaded before the fork, and has not used its pool by then."""
    needs("gunicorn", *([kind] if kind == "gevent" else []))
    served = serve("gunicorn")
    gunicorn(served, "--worker-class", kind, "--preload")
    everything(served, None)
    assert not served.complaints


def test_gunicorn_preload_with_connections(serve: Serve) -> None:
    """The application has used its pool before the fork: a worker with nothing but an inherited connection is
    reported, and the arbiter keeps its own figures.
    """
    needs("gunicorn")
    served = serve("gunicorn", use_while_loading=True)
    gunicorn(served, "--preload")
    first = served.tell(served.pids[0], "two")
    assert (first["connects"], first["adopted"]) == (0, 2)
    served.truth.update({served.pid: loading(first)})
    everything(served, first)
    assert not served.complaints


# --- uWSGI


def uwsgi(served: Served, *options: str, **how: Any) -> None:
    program = shutil.which("uwsgi", path=str(Path(sys.executable).parent)) or "uwsgi"
    served.threads = "--threads" in options
    served.is_uwsgi = True
    served.start(
        program, "--http-socket", f"127.0.0.1:{served.port}", "--processes", str(WORKERS), "--need-app",
        "--module", "tests.support.wsgi_application:application", "--virtualenv", sys.prefix, *options, **how,
    )  # fmt: skip


HOOKS = pytest.mark.parametrize(
    "hooks",
    [(), ("--py-call-osafterfork",), ("--py-call-uwsgi-fork-hooks",), ("--threads", "2")],
    ids=["none", "osafterfork", "fork-hooks", "threads"],
)


@HOOKS
def test_uwsgi(serve: Serve, hooks: tuple[str, ...]) -> None:
    """Workers are distinguished from the master that loaded the application, also where uWSGI runs none of
    Python's at-fork functions.
    """
    needs("uwsgi")
    served = serve("uwsgi")
    uwsgi(served, "--master", "--enable-threads", *hooks)
    everything(served, None)
    assert not served.complaints


@HOOKS
def test_uwsgi_with_connections(serve: Serve, hooks: tuple[str, ...]) -> None:
    """The application has used its pool in the master: no worker hangs, and each is reported as soon as it
    uses a connection, inherited or not. The master is not reported, and connmon warns of that.
    """
    needs("uwsgi")
    served = serve("uwsgi", use_while_loading=True)
    uwsgi(served, "--master", "--enable-threads", *hooks)
    first = served.tell(served.pids[0], "two")
    assert (first["connects"], first["adopted"]) == (0, 2)
    everything(served, None, [number for number, _ in first["sessions"]])
    assert ["master" in line for line in served.complaints] == [True]


def test_uwsgi_decorators(serve: Serve) -> None:
    """`uwsgidecorators`, imported after the engine was made, overwrites connmon's uWSGI hook: a worker is
    recognized all the same, at its first checkout.
    """
    needs("uwsgi")
    served = serve("uwsgi", use_while_loading=True, uwsgidecorators=True)
    uwsgi(served, "--master", "--enable-threads")
    first = served.tell(served.pids[0], "two")
    assert (first["connects"], first["adopted"]) == (0, 2)
    everything(served, None, [number for number, _ in first["sessions"]])


@pytest.mark.parametrize("options", [("--lazy-apps",), ("--lazy",)])
def test_uwsgi_lazy(serve: Serve, options: tuple[str, ...]) -> None:
    """Workers that load the application themselves."""
    needs("uwsgi")
    served = serve("uwsgi", use_while_loading=True)
    uwsgi(served, "--master", "--enable-threads", *options)
    for pid in served.pids:
        served.tell(pid, "")
    served.truth.equal()
    everything(served, None)
    assert not served.complaints


def test_uwsgi_without_a_master(serve: Serve) -> None:
    """The process that loaded the application, and used its pool for that, becomes the first worker."""
    needs("uwsgi")
    served = serve("uwsgi", use_while_loading=True)
    uwsgi(served, "--enable-threads", itself=True)
    first = served.tell(served.pids[0], "")
    assert (first["connects"], first["adopted"]) == (2, 0)
    served.truth.equal()
    assert served.tell(served.pids[1], "two")["adopted"] == 2
    served.truth.equal()
    assert not served.complaints


# --- What they are called

APPLICATION = """
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
engine = create_engine(
    "sqlite://?plugin=connmon&connmon_addr=ADDRESS", poolclass=QueuePool,
    connect_args={"check_same_thread": False},
)
with engine.connect() as connection:
    connection.execute(text("select 1"))
def application(environ, start_response):
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    start_response("200 OK", [("Content-Length", "0")])
    return []
app = application
"""


class Sites:
    """Two deployments, each with its package, an app.py, and the servers' configuration files."""

    def __init__(self, directory: Path, node: RunningNode) -> None:
        self.directory, self.node = directory, node
        self._processes: list[subprocess.Popen[bytes]] = []
        for site in ("shop", "blog"):
            package = directory / site / site
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
            (package / "main.py").write_text(APPLICATION.replace("ADDRESS", node.address))
            (package / "wsgi.py").write_text(f"from {site}.main import application\n")
            (package.parent / "app.py").write_text(f"from {site}.main import app\n")
            (package.parent / "conf.py").write_text(f"wsgi_app = '{site}.main:app'\n")
            (package.parent / "site.ini").write_text(
                f"[uwsgi]\nmodule = {site}.main\ncallable = app\nlazy-apps = true\nenable-threads = true\n"
            )

    def start(self, *command: str, site: str = "", **environment: str) -> int:
        """Start a server in the directory of a site, PORT being its port; return the port."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        path = os.pathsep.join([ROOT, str(self.directory / site)])
        words = [word.replace("PORT", str(port)) for word in command]
        with (self.directory / f"{port}.log").open("wb") as output:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory / site,
                env={**os.environ, "PYTHONPATH": path}
                | {key: value.replace("PORT", str(port)) for key, value in environment.items()},
                start_new_session=True,
            )
        self._processes.append(process)
        return port

    def called(self, *ports: int) -> dict[str, int]:
        """Return the shown programs and their processes, once every server has reported."""

        def answered() -> bool:
            for port in ports:
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=15)) as http_:
                    try:
                        http_.request("GET", "/")
                        http_.getresponse().read()
                    except OSError:
                        return False
            return True

        def rows() -> list[dict[str, Any]]:
            shown = [row for row in self.node.rows("process") if row["checkouts_total"] >= 1]
            served = [self._server_of(row["pid"]) for row in shown]
            return shown if {each.pid for each in self._processes} <= set(served) else []

        wait_for(lambda: answered() and rows(), 30, "the servers to be shown")
        programs = self.node.snapshots(("program",))["program"]["rows"]
        return {row["program"]: row["processes"] for row in programs}

    def _server_of(self, pid: int) -> int | None:
        """Return which of the servers a process belongs to."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (process := psutil.Process(pid), *process.parents()):
                if each.pid in {server.pid for server in self._processes}:
                    return int(each.pid)
        return None

    def remove(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for log in self.directory.glob("*.log"):
            print(log.read_text(errors="replace"))


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with running_node(tmp_path) as node:
        made = Sites(tmp_path / "sites", node)
        try:
            yield made
        finally:
            made.remove()


GUNICORN = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:PORT")


def test_two_sites_of_gunicorn(sites: Sites) -> None:
    """Two deployments on one host are two rows, named by what a person typed."""
    needs("gunicorn")
    ports = (
        sites.start(*GUNICORN, "--workers", "1", "shop.main:app", site="shop"),
        sites.start(*GUNICORN, "blog.wsgi:application", site="blog"),
    )
    assert set(sites.called(*ports)) == {"shop.main:app", "blog"}


def test_two_sites_of_the_same_application(sites: Sites) -> None:
    """A name that says nothing of its deployment has the directory before it: two rows, also with --chdir."""
    needs("gunicorn")
    ports = (
        sites.start(*GUNICORN, "app:app", site="shop"),
        sites.start(*GUNICORN, "--chdir", "blog", "app:app"),
    )
    assert set(sites.called(*ports)) == {"shop/app:app", "blog/app:app"}


def test_gunicorn_by_its_configuration(sites: Sites) -> None:
    """The application may be in the configuration file, and the file in a variable; CONNMON_PROGRAM wins."""
    needs("gunicorn")
    command = (sys.executable, "-m", "gunicorn")
    ports = (
        sites.start(*GUNICORN, "-c", "conf.py", "--preload", site="shop"),
        sites.start(*command, site="blog", GUNICORN_CMD_ARGS="-c conf.py --bind 127.0.0.1:PORT"),
        sites.start(*GUNICORN, "-c", "conf.py", site="shop", CONNMON_PROGRAM="shop-eu"),
    )
    assert set(sites.called(*ports)) == {"shop.main:app", "blog.main:app", "shop-eu"}


def test_two_sites_of_uwsgi(sites: Sites) -> None:
    """uWSGI is named after what it serves: by its command line, its file, or a WSGI script."""
    needs("uwsgi")
    program = shutil.which("uwsgi", path=str(Path(sys.executable).parent)) or "uwsgi"
    command = (program, "--virtualenv", sys.prefix, "--http-socket", "127.0.0.1:PORT")
    ports = (
        sites.start(*command, "--master", "--ini", "site.ini", site="shop"),
        sites.start(*command, "--enable-threads", "--module", "blog.wsgi", site="blog"),
        sites.start(*command, "--enable-threads", "--wsgi-file", "app.py", site="blog"),
    )
    assert set(sites.called(*ports)) == {"shop.main:app", "blog", "blog/app.py"}

"""connmond as a real process: its start, its log, its end."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connmon import __version__
from connmon.cluster import daemon
from connmon.protocol.frames import Ack, ClientSide, frame
from connmon.protocol.queries import Query
from connmon.protocol.rows import Rows
from tests.cluster.test_service_manager import LOGGING
from tests.support.cluster_fakes import full
from tests.support.requirements import lacking

LIMIT = 15.0
"""Seconds that a condition is waited for."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write(path: Path, port: int, more: str = "") -> Path:
    path.write_text(
        "[connmon_service_default]\nname: default\n\n"
        f"nodes:\n    node1 hostname=127.0.0.1:{port} bind=127.0.0.1\n{more}"
    )
    return path


class Connmond:
    """One process, and what it has written to stderr so far."""

    def __init__(self, *arguments: str, files: int | None = None) -> None:
        """`files`: its limit on open files, which it cannot raise."""

        def limit() -> None:
            if files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "connmon.cluster.daemon", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def stderr(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of a log line; wait for it."""
        deadline = time.monotonic() + LIMIT
        while (match := re.search(pattern, self.stderr)) is None:
            assert self.process.poll() is None, f"it has ended: {self.stderr}"
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.stderr}"
            time.sleep(0.01)
        return match

    def end(self, number: int | None = None) -> int:
        """Send the signal, if any, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(LIMIT)
        self._thread.join(LIMIT)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def started() -> Iterator[list[Connmond]]:
    """The processes of a test, which end with it."""
    processes: list[Connmond] = []
    yield processes
    for each in processes:
        each.close()


def run(started: list[Connmond], *arguments: str) -> Connmond:
    started.append(Connmond(*arguments))
    return started[-1]


def ready(started: list[Connmond], path: Path, *arguments: str) -> Connmond:
    node = run(started, "--config", str(path), *arguments)
    node.wait_for(r"ready service=default node=node1 port=\d+ pid=\d+")
    return node


class Client:
    """A blocking client of one node."""

    def __init__(self, port: int, role: str = "application") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT)
        self.side = ClientSide(role, "default")  # type: ignore[arg-type]
        self.inbox: list[object] = []
        self.socket.sendall(self.side.hello())
        self.next()

    def next(self) -> object:
        while not self.inbox:
            data = self.socket.recv(65536)
            if not data:
                return None
            self.inbox += self.side.receive(data)
        return self.inbox.pop(0)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_it_says_where_it_listens_and_that_it_is_ready(started: list[Connmond], tmp_path: Path) -> None:
    """The log names node, service and address, warns once that it is open, and says ready."""
    port = free_port()
    node = ready(started, write(tmp_path / "c.cfg", port))
    match = node.wait_for(r"ready service=(\S+) node=(\S+) port=(\d+) pid=(\d+)\n")
    assert match.groups() == ("default", "node1", str(port), str(node.process.pid))
    assert f"connmond {__version__}: node node1 of service default listens on 127.0.0.1:{port}" in node.stderr
    assert node.stderr.count("anyone who reaches") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_clients_connected(
    started: list[Connmond], tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM and SIGINT close the connections and end it with exit code 0, without a traceback."""
    port = free_port()
    node = ready(started, write(tmp_path / "c.cfg", port))
    with Client(port) as application, Client(port, "reader") as reader:
        application.socket.sendall(frame(full("i1")))
        assert application.next() == Ack("i1", 1, False)
        assert node.end(number) == 0
        assert application.next() is None
        assert reader.next() is None
    assert "Traceback" not in node.stderr
    assert f"{number.name}: ending" in node.stderr


def test_it_restarts_on_its_port_at_once(started: list[Connmond], tmp_path: Path) -> None:
    """After a stop with clients, and after kill -9, a new node listens on the same port and starts empty."""
    port = free_port()
    path = write(tmp_path / "c.cfg", port)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        node = ready(started, path)
        with Client(port) as application, Client(port, "reader") as reader:
            application.socket.sendall(frame(full("i1")))
            assert application.next() == Ack("i1", 1, False)
            reader.socket.sendall(frame(Query("program")))
            rows = reader.next()
            assert isinstance(rows, Rows)
            assert (rows.node, rows.leader, rows.quorum, rows.programs) == ("node1", "node1", True, 1)
            assert node.end(number) == (0 if number == signal.SIGTERM else -number)


@pytest.mark.slow
def test_running_out_of_files_is_survived(started: list[Connmond], tmp_path: Path) -> None:
    """Without free file descriptors the node logs few lines; with room again it continues."""
    if not hasattr(resource, "prlimit"):
        lacking("prlimit", "run on Linux")
    port = free_port()
    node = ready(started, write(tmp_path / "c.cfg", port))
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (30, 30))
    sockets = [socket.create_connection(("127.0.0.1", port), LIMIT) for _ in range(100)]
    node.wait_for("Too many open files")
    for each in sockets:
        each.close()
    with Client(port) as application:
        application.socket.sendall(frame(full("i1")))
        assert application.next() == Ack("i1", 1, False)
    assert node.end(signal.SIGTERM) == 0
    assert len(node.lines) < 40, node.lines[:60]
    assert "Traceback" not in node.stderr


def test_a_port_that_is_taken_is_one_line(started: list[Connmond], tmp_path: Path) -> None:
    """Exit code 1 and one line that names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = run(started, "--config", str(write(tmp_path / "c.cfg", port)))
        assert node.end() == 1
    assert re.fullmatch(
        rf"connmond: cannot listen on 127\.0\.0\.1:{port} \(bind of node 'node1'\): .*in use\n", node.stderr
    )


def test_a_bind_address_that_is_not_here_is_one_line(started: list[Connmond], tmp_path: Path) -> None:
    """Exit code 1 and one line, for an address of another host and for a name that does not exist."""
    for host in ("192.0.2.1", "nowhere.invalid"):
        path = write(tmp_path / "c.cfg", free_port())
        path.write_text(path.read_text().replace("bind=127.0.0.1", f"bind={host}"))
        node = run(started, "--config", str(path))
        assert node.end() == 1
        assert len(node.stderr.splitlines()) == 1
        assert node.stderr.startswith(f"connmond: cannot listen on {host}:")


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("[connmon_service_default]\nname: default\nnodes:\n  a hostname=h:99999\n", (), "99999"),
        ("[connmon_service_default]\nname: default\nnodes:\n  a hostname=h\nfoo: 1\n", (), "foo"),
        ("[connmon_service_default]\nname: default\nnodes:\n  a hostname=h\n", ("--service", "x"), "'x'"),
        ("[connmon_service_default]\nname: default\nnodes:\n  a hostname=h\n", ("--node", "b"), "'b'"),
        ("[connmon_service_default]\nname: default\nnodes:\n  a hostname=h\n  b hostname=i\n", (), "several"),
        (None, (), "cannot be read"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    text: str | None,
    arguments: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and one line that names the file and what is wrong; never a traceback."""
    path = tmp_path / "c.cfg"
    if text is not None:
        path.write_text(text)
    assert daemon.main(["--config", str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("connmond: ")
    assert str(path) in line
    assert expected in line


def test_a_process_says_it_in_one_line_too(started: list[Connmond], tmp_path: Path) -> None:
    """The real process exits with 2 and prints one line only."""
    node = run(started, "--config", str(tmp_path / "none.cfg"))
    assert node.end() == 2
    assert len(node.stderr.splitlines()) == 1


def test_logging_sections_are_used(started: list[Connmond], tmp_path: Path) -> None:
    """With [loggers] the log, and the ready line in it, goes where the config says."""
    log = tmp_path / "node.log"
    sections = f"""
[loggers]
keys: root
[handlers]
keys: file
[formatters]
keys: plain
[logger_root]
level: INFO
handlers: file
[handler_file]
class: FileHandler
formatter: plain
args: ({str(log)!r},)
[formatter_plain]
format: %(levelname)s|%(message)s
"""
    node = run(started, "--config", str(write(tmp_path / "c.cfg", free_port(), sections)))
    deadline = time.monotonic() + LIMIT
    while not log.exists() or "INFO|ready service=default" not in log.read_text():
        assert time.monotonic() < deadline and node.process.poll() is None, node.stderr
        time.sleep(0.01)
    assert node.end(signal.SIGTERM) == 0
    assert node.stderr == ""


def test_broken_logging_sections_are_one_line(started: list[Connmond], tmp_path: Path) -> None:
    """A logging section that cannot be used is exit code 2 and names the file, with --check-config too."""
    path = write(tmp_path / "c.cfg", free_port(), "[loggers]\nkeys: root\n")
    for more in ([], ["--check-config"]):
        node = run(started, "--config", str(path), *more)
        assert node.end() == 2
        (line,) = node.stderr.splitlines()
        assert str(path) in line and "[loggers]" in line


def test_logging_sections_are_checked(started: list[Connmond], tmp_path: Path) -> None:
    """--check-config finds a log file whose directory is missing, and makes none whose directory is there."""
    for directory, code in ((tmp_path, 0), (tmp_path / "none", 2)):
        sections = LOGGING.format(path=str(directory / "node.log"))
        path = write(tmp_path / "c.cfg", free_port(), sections)
        node = run(started, "--config", str(path), "--check-config")
        assert node.end() == code
        assert ("none" in node.stderr) == bool(code)
        assert os.listdir(tmp_path) == ["c.cfg"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--verbose"], ["-v"]])
def test_verbose_tells_the_story_of_a_client_connection(
    started: list[Connmond], tmp_path: Path, arguments: list[str]
) -> None:
    """-v logs each step of a client connection, the leader and batches; without it there is no debug line."""
    port = free_port()
    node = ready(started, write(tmp_path / "c.cfg", port), *arguments)
    with Client(port) as application, Client(port, "reader") as reader:
        application.socket.sendall(frame(full("i1")))
        assert application.next() == Ack("i1", 1, False)
        client = "{}:{}".format(*application.socket.getsockname())
        reader.socket.sendall(frame(full("i2")))  # which a reader may not send
        reader.next()
        refused = "{}:{}".format(*reader.socket.getsockname())
    story = (
        f"client {client}: accepted",
        f"client {client}: handshake: greeted",
        f"client {client}: hello: version 1, application",
        f"client {client}: welcomed: application",
        rf"client {client}: handshake -> idle \(welcomed\)",
        rf"client {client}: idle -> busy \(request\)",
        rf"client {client}: busy -> idle \(done\)",
        f"client {client}: closed: left without a goodbye",
        rf"client {client}: idle -> closed \(lost\)",
        f"client {refused}: handshake: failed",
        rf"client {refused}: idle -> closing \(close\)",
        f"client {refused}: closed: refused: a message that cannot be read",
        "leader node1 in term 1; this node: leader",
        r"batch \d+ applied after [\d.]+ ms: 1 reports",
    )
    for line in story if arguments else ():
        node.wait_for(f"DEBUG connmon[._a-z]*: {line}")
    assert node.end(signal.SIGTERM) == 0
    assert ("DEBUG" in node.stderr) == bool(arguments)
    assert all(" connmon" in line for line in node.lines if "DEBUG" in line)


@pytest.mark.slow
def test_verbose_tells_the_story_of_a_peer_link(started: list[Connmond], tmp_path: Path) -> None:
    """-v logs on the accepting node that a node connects, is welcomed as a peer and gets a peer link."""
    ports = free_port(), free_port()
    path = write(tmp_path / "c.cfg", ports[0], f"    node2 hostname=127.0.0.1:{ports[1]} bind=127.0.0.1\n")
    accepting = run(started, "--config", str(path), "--node", "node2", "-v")
    accepting.wait_for("listens on")
    dialing = run(started, "--config", str(path), "--node", "node1", "-v")
    dialing.wait_for("ready service=default node=node1")
    address = accepting.wait_for(r"client (\S+): hello: version 1, peer node1, service 'default'")[1]
    for line in (
        "accepted",
        "handshake: greeted",
        "handshake: open",
        "welcomed: peer node1",
        r"handshake -> handed over \(peer welcomed\)",
    ):
        accepting.wait_for(f"DEBUG connmon[._a-z]*: client {address}: {line}")
    for node, other in ((accepting, "node1"), (dialing, "node2")):
        node.wait_for(f"connmon.cluster.raft[._a-z]*: .*{other}")
        assert node.end(signal.SIGTERM) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the version and exits with 0."""
    with pytest.raises(SystemExit) as ended:
        daemon.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"connmond {__version__}\n"

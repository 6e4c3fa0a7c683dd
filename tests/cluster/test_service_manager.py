"""The node as a service: readiness, watchdog, reload, and the unit file."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connmon.cluster import daemon
from connmon.cluster.service_manager import Manager
from connmon.config import load
from connmon.errors import UnreachableError
from connmon.protocol.credentials import of_client
from connmon.reader.client import read_once
from tests.support import nodes
from tests.support.certificates import Authority
from tests.support.nodes import RunningNode, command
from tests.support.requirements import program
from tests.support.trio import free_ports
from tests.support.waiting import wait_for

CONTRIB = Path(__file__).parents[2] / "contrib"


class Watched(RunningNode):
    """A node with more options in its config."""

    def __init__(self, directory: Path, service: str = "", file: str = "") -> None:
        super().__init__(directory)
        text = self.config.read_text().replace("\nnodes:", f"{service}nodes:")
        self.config.write_text(f"{text}\n{file}")

    def hang_up(self) -> None:
        self._signal(signal.SIGHUP)


@contextlib.contextmanager
def running(node: RunningNode) -> Iterator[None]:
    try:
        node.start()
        yield
    finally:
        node.remove()


class Notified:
    """A service manager's end of its socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.lines: list[str] = []

    def hear(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.lines += self._sock.recv(4096).decode().splitlines()
        return self.lines


@pytest.fixture(name="manager", params=["path", "abstract"])
def a_service_manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            # Not in pytest's directory: a socket's path may have 107 characters.
            address = f"/tmp/connmon-{os.getpid()}-notify"
            sock.bind(address)
            request.addfinalizer(lambda: os.unlink(address))
        else:
            address = f"@connmon-{os.getpid()}-notify"
            sock.bind("\0" + address[1:])
        sock.setblocking(False)
        monkeypatch.setitem(nodes._ENVIRONMENT, "NOTIFY_SOCKET", address)
        yield Notified(sock)


@pytest.mark.slow
def test_readiness_and_watchdog(manager: Notified, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager is notified that the node listens, who leads, that it works, and that it ends."""
    monkeypatch.setitem(nodes._ENVIRONMENT, "WATCHDOG_USEC", "300000")
    node = Watched(tmp_path)
    with running(node):
        wait_for(lambda: manager.hear().count("WATCHDOG=1") > 2)
        assert manager.lines[0] == "READY=1"
        wait_for(lambda: "STATUS=leader node1" in manager.hear())
        node.pause()
        wait_for(lambda: not _hears_more(manager), 5, "a node that is stopped to be silent")
        node.resume()
        wait_for(lambda: _hears_more(manager), 5, "it to go on")
        node.hang_up()
        wait_for(lambda: manager.hear().count("READY=1") == 2)
        assert any(line.startswith("MONOTONIC_USEC=") for line in manager.lines)
        node.stop()
    assert "STOPPING=1" in manager.hear()


def _hears_more(manager: Notified) -> bool:
    """Return whether a notification arrives within several watchdog intervals."""
    before = len(manager.hear())
    select.select([manager._sock], [], [], 0.5)
    return len(manager.hear()) > before


@pytest.mark.slow
def test_ready_without_quorum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without quorum is ready for the manager, with "no quorum" as its status."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0connmon-{os.getpid()}-alone")
        sock.setblocking(False)
        monkeypatch.setitem(nodes._ENVIRONMENT, "NOTIFY_SOCKET", f"@connmon-{os.getpid()}-alone")
        node = RunningNode(tmp_path)
        (other,) = free_ports(1)
        node.config.write_text(node.config.read_text() + f"    node2 hostname=localhost:{other}\n")
        node.which = ("--node", "node1")
        heard = Notified(sock)
        try:
            node.begin()
            wait_for(lambda: {"READY=1", "STATUS=no quorum"} <= set(heard.hear()), 15)
        finally:
            node.remove()


@pytest.mark.parametrize(
    "address", ["", "relative", "/no/such/socket", "@connmon-nobody-listens", "/" + "x" * 200]
)
def test_nobody_to_tell(address: str) -> None:
    """Without a manager, or with one that does not listen, notifying does nothing."""
    manager = Manager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "x"})
    manager.notify("READY=1")
    assert manager.watchdog_seconds is None
    assert Manager({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Manager({"WATCHDOG_USEC": "3000000"}).watchdog_seconds == 3.0


LOGGING = """
[loggers]
keys: root
[handlers]
keys: file
[formatters]
keys:
[logger_root]
level: INFO
handlers: file
[handler_file]
class: FileHandler
args: ({path!r}, "a")
"""


@pytest.mark.slow
def test_log_files_are_reopened(tmp_path: Path) -> None:
    """After SIGHUP the log goes to a new file of the same name; if none can be made, to the old one."""
    directory = tmp_path / "log"
    directory.mkdir()
    log = directory / "connmond.log"
    node = Watched(tmp_path, file=LOGGING.format(path=str(log)))
    try:
        node.begin()
        wait_for(lambda: log.exists() and "ready service=" in log.read_text())
        moved = log.rename(directory / "old.log")
        node.hang_up()
        wait_for(lambda: log.exists() and "log files are reopened" in log.read_text())
        assert "reopened" not in moved.read_text()
        directory.rename(tmp_path / "away")
        node.hang_up()
        away = tmp_path / "away" / "connmond.log"
        wait_for(lambda: f"reopened: {log}: No such file or directory" in away.read_text())
        assert node.rows("program") == []
    finally:
        node.remove()


@pytest.mark.slow
def test_certificates_are_read_again(tmp_path: Path) -> None:
    """After SIGHUP new clients get the new certificate; a broken one changes nothing."""
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    files = first.sign("node", "127.0.0.1", "localhost")
    node = Watched(tmp_path, f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\n")
    clients: dict[str, Any] = {}
    for authority in (first, second):
        config = tmp_path / f"{authority.file.stem}.cfg"
        config.write_text(
            f"[connmon_service_x]\nname: default\nssl_cafile: {authority.file}\n"
            f"nodes:\n    node1 hostname=127.0.0.1:{node.port}\n"
        )
        clients[authority.file.stem] = load(str(config)).services[0]

    def reads(name: str) -> bool:
        try:
            read_once(clients[name].nodes, "default", "program", credentials=of_client(clients[name]))
        except UnreachableError:
            return False
        return True

    try:
        node.begin()
        wait_for(lambda: reads("first"))
        assert not reads("second")
        second.sign("node", "127.0.0.1", "localhost")  # in the same files
        assert reads("first")
        node.hang_up()
        wait_for(lambda: reads("second"))
        assert not reads("first")
        files.key.write_text("nothing")
        node.hang_up()
        wait_for(lambda: "the certificates from before stay" in node.log)
        assert reads("second")
        assert "Traceback" not in node.log
    finally:
        node.remove()


# --- --check-config -----------------------------------------------------------------------


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check-config says that a file is right, for all its services, and touches nothing."""
    path = tmp_path / "c.cfg"
    path.write_text(
        f"[connmon_service_a]\nname: a\ndata_dir: {tmp_path}/data\ncsv_dump: {tmp_path}/x.csv\n"
        "nodes:\n    n1 hostname=h1\n    n2 hostname=h2\n"
        "[connmon_service_b]\nname: b\nnodes:\n    n hostname=h\n"
    )
    assert daemon.main(["--check-config", "-c", str(path)]) == 0
    assert capsys.readouterr().out == f"service a: 2 nodes\nservice b: 1 node\n{path} is right\n"
    assert os.listdir(tmp_path) == ["c.cfg"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("lease: never", "lease"),
        ("secret_file: {}/none", "secret_file"),
        ("ssl_certfile: {0}/x\nssl_keyfile: {0}/x", "ssl_certfile"),
        ("csv_columns: nothing", "csv_columns"),
    ],
)
def test_check_config_finds(
    line: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake is one line with file, section and option, and exit code 2."""
    path = tmp_path / "c.cfg"
    path.write_text(f"[connmon_service_a]\nname: a\n{line.format(tmp_path)}\nnodes:\n    n hostname=h\n")
    assert daemon.main(["--check-config", "-c", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"connmond: {path}: [connmon_service_a] {problem}")


# --- systemd's files ----------------------------------------------------------------------


def test_unit(tmp_path: Path) -> None:
    """systemd accepts the unit, which runs as its own user and is sandboxed."""
    analyze = program("systemd-analyze")
    text = (CONTRIB / "connmond.service").read_text()
    assert "\nUser=connmon\n" in text
    unit = tmp_path / "connmond.service"
    unit.write_text(text.replace("/usr/bin/connmond", command("connmond")))
    for arguments in (["verify", str(unit)], ["security", "--offline=true", "--threshold=20", str(unit)]):
        done = subprocess.run([analyze, *arguments], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
        assert arguments[0] != "verify" or not done.stderr


def test_help_has_the_exit_codes() -> None:
    """--help has the exit codes and the effect of SIGHUP."""
    done = subprocess.run(
        [sys.executable, "-m", "connmon.cluster.daemon", "--help"], capture_output=True, text=True
    )
    assert "exit codes: 0" in done.stdout
    assert "SIGHUP" in done.stdout

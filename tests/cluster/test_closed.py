"""A service with secret and TLS, with real processes: connmond, an application, `connmon snapshot`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from connmon.protocol.frames import ClientSide, Refuse
from tests.support.certificates import Authority
from tests.support.nodes import RunningNode, command
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

SECRET = "hush-0123456789abcdef"
OTHER = "other-0123456789abcdef"

#: Holds one connection until its stdin ends; connmon's log goes to stderr.
APPLICATION = """
import logging, sys
logging.basicConfig(format="%(message)s")
from sqlalchemy import create_engine
engine = create_engine(sys.stdin.readline().strip())
connection = engine.connect()
print("open", flush=True)
sys.stdin.read()
"""

#: The same, but the application forks, and it is the child that goes on.
FORKING = APPLICATION.replace(
    "sys.stdin.read()",
    """
import os, time
time.sleep(1.5)
if os.fork():
    os.wait()
    os._exit(0)
other = create_engine(str(engine.url) + "?plugin=connmon&connmon_program=child&connmon_config=" + sys.argv[1])
connection = other.connect()
sys.stdin.read()
""",
)


class Application:
    """A process with one open connection, and its log."""

    def __init__(self, url: str, log: Path, program: str = APPLICATION, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{url}\n".encode())
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"open\n", self.log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(10)


class Place:
    """A directory with a closed node and its clients."""

    def __init__(self, directory: Path, ends: contextlib.ExitStack) -> None:
        self.directory = directory
        self._ends = ends
        self._applications = 0
        self.node = RunningNode(directory, host="127.0.0.1")
        self.plain = self.node.config.read_text()
        ends.callback(self.node.remove)

    def secret_file(self, secret: str, name: str = "secret") -> Path:
        path = self.directory / name
        path.write_text(f"{secret}\n")
        path.chmod(0o600)
        return path

    def config(self, more: str, name: str = "other.cfg") -> Path:
        """Write another client's config file for the same node."""
        path = self.directory / name
        path.write_text(self.plain + more)
        path.chmod(0o600)
        return path

    def start(self, more: str) -> None:
        self.config(more, self.node.config.name)
        self.node.start()

    def application(self, options: str, program: str = APPLICATION, *arguments: str) -> Application:
        self._applications += 1
        url = f"sqlite:///{self.directory}/a.db?plugin=connmon&connmon_program=app{options}"
        log = self.directory / f"app{self._applications}.log"
        application = Application(url, log, program, *arguments)
        self._ends.callback(application.close)
        return application

    def read(self, *options: str) -> tuple[int, str, str]:
        """Return exit code, output and errors of the real `connmon snapshot`."""
        done = subprocess.run(
            [command("connmon"), "snapshot", "--format", "json", *options],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        return done.returncode, done.stdout, done.stderr

    def programs(self, *options: str) -> dict[str, int]:
        """Return the number of connections of each program."""
        code, output, errors = self.read(*options)
        assert code == 0, errors
        return {row["program"]: row["connections"] for row in json.loads(output)["rows"]}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with contextlib.ExitStack() as ends:
        yield Place(tmp_path, ends)


def test_with_the_secret(place: Place) -> None:
    """Application and reader with the secret work, by config file, URL option and --secret-file."""
    secret = place.secret_file(SECRET)
    place.start(f"secret_file: {secret}\n")
    inline = place.config(f"secret: {SECRET}\n")
    place.application(f"&connmon_config={inline}")
    place.application(f"&connmon_addr={place.node.address}&connmon_secret_file={secret}")
    where = ("--host", place.node.address, "--secret-file", str(secret))
    wait_for(lambda: place.programs(*where) == {"app": 2}, 20, "both applications")
    assert place.programs("--config", str(inline)) == {"app": 2}
    assert place.programs("--host", place.node.address, "--config", str(inline)) == {"app": 2}
    assert "neither secret nor TLS" not in place.node.log
    assert "WARNING" not in place.node.log


def test_without_it_or_with_another(place: Place) -> None:
    """A client with another secret or none neither reports nor reads, and both sides report why; no line
    has the secret."""
    secret, wrong = place.secret_file(SECRET), place.secret_file(OTHER, "wrong")
    place.start(f"secret_file: {secret}\n")
    address = place.node.address
    stranger = place.application(f"&connmon_addr={address}")
    impostor = place.application(f"&connmon_addr={address}&connmon_secret_file={wrong}")
    code, _, errors = place.read("--host", address)
    assert code == 1 and "the client has none" in errors
    code, _, errors_wrong = place.read("--host", address, "--secret-file", str(wrong))
    assert code == 1 and "the secrets differ" in errors_wrong
    wait_for(lambda: "the client has none" in stranger.log, 20, "the stranger's log")
    wait_for(lambda: "the secrets differ" in impostor.log, 20, "the impostor's log")
    assert "the client has none" in place.node.log and "the secrets differ" in place.node.log
    assert place.programs("--host", address, "--secret-file", str(secret)) == {}
    for text in (place.node.log, stranger.log, impostor.log, errors, errors_wrong):
        assert SECRET not in text and OTHER not in text and "Traceback" not in text


def test_a_node_without_the_secret(place: Place) -> None:
    """An application and a reader with a secret send an open node nothing, and report why."""
    secret = place.secret_file(SECRET)
    place.start("")
    options = ("--host", place.node.address)
    application = place.application(f"&connmon_addr={place.node.address}&connmon_secret_file={secret}")
    wait_for(lambda: "the node has none" in application.log, 20, "the application's log")
    code, _, errors = place.read(*options, "--secret-file", str(secret))
    assert code == 1 and "the client has a secret and the node has none" in errors
    assert "the client has a secret and the node has none" in place.node.log
    assert place.programs(*options) == {}
    assert place.node.log.count("neither secret nor TLS") == 1


def test_the_secret_is_in_no_process_list(place: Place) -> None:
    """The secret is neither in command lines on this host nor in reports."""
    secret = place.secret_file(SECRET)
    place.start(f"secret: {SECRET}\n")
    application = place.application(f"&connmon_addr={place.node.address}&connmon_secret_file={secret}")
    where = ("--host", place.node.address, "--secret-file", str(secret))
    wait_for(lambda: place.programs(*where) == {"app": 1}, 20, "the application")
    listing = {process.pid: process.info["cmdline"] for process in psutil.process_iter(["cmdline"])}
    assert application.process.pid in listing
    assert SECRET not in " ".join(word for words in listing.values() for word in words or ())
    for by in ("process", "pool", "connection"):
        assert SECRET not in place.read(*where, "--by", by)[1]


def test_a_secret_that_others_can_read(place: Place) -> None:
    """connmond does not start with such a secret (exit code 2), nor a reader; the application logs it and
    goes on."""
    secret = place.secret_file(SECRET)
    secret.chmod(0o644)
    path = place.config(f"secret_file: {secret}\n")
    done = subprocess.run([command("connmond"), "-c", str(path)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"secret_file: {secret}: others have access to it (mode 0644), refused" in done.stderr
    code, _, errors = place.read("-c", str(path))
    assert code == 2 and "others have access to it" in errors and errors.count("\n") == 1
    application = place.application(f"&connmon_config={path}")
    wait_for(lambda: "others have access to it" in application.log, 20, "the application's log")
    place.start(f"secret: {SECRET}\n")
    secret.chmod(0o600)
    where = ("--host", place.node.address, "--secret-file", str(secret))
    wait_for(lambda: place.programs(*where) == {"app": 1}, 20, "the application, once that is mended")


@pytest.mark.parametrize("with_secret", [False, True], ids=["tls", "tls and secret"])
def test_with_tls(place: Place, with_secret: bool) -> None:
    """With certificates of the right authority everything works, with or without a secret."""
    authority = Authority(place.directory)
    files = authority.sign("node", "127.0.0.1")
    more = f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\nssl_cafile: {authority.file}\n"
    if with_secret:
        more += f"secret: {SECRET}\n"
    place.start(more)
    config = str(place.node.config)
    application = place.application(f"&connmon_config={config}")
    wait_for(lambda: place.programs("--config", config) == {"app": 1}, 20, "the application")
    assert place.programs("--config", config, "--host", place.node.address) == {"app": 1}
    assert "WARNING" not in place.node.log
    # Back after the node was killed.
    place.node.kill()
    place.node.start()
    wait_for(lambda: place.programs("--config", config) == {"app": 1}, 20, "the application again")
    assert "Traceback" not in application.log


def test_a_client_with_wrong_tls_is_refused(place: Place) -> None:
    """A client without TLS, of another authority, without a certificate or for another name gets the reason
    and reads nothing."""
    authority, other = Authority(place.directory), Authority(place.directory, "other")
    files = authority.sign("node", "127.0.0.1")
    pair = f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\n"
    place.start(f"{pair}ssl_cafile: {authority.file}\n")
    code, _, errors = place.read("--host", place.node.address)
    assert code == 1 and "the client speaks no TLS and the node does" in errors
    stranger = place.application(f"&connmon_addr={place.node.address}")
    wait_for(lambda: "the client speaks no TLS" in stranger.log, 20, "the stranger's log")
    path = str(place.config(f"{pair}ssl_cafile: {other.file}\n"))
    code, _, errors = place.read("--config", path)
    assert code == 1 and "certificate is not accepted" in errors
    impostor = place.application(f"&connmon_config={path}")
    wait_for(lambda: "certificate is not accepted" in impostor.log, 20, "the impostor's log")
    path = str(place.config(f"ssl_cafile: {authority.file}\n"))
    code, _, errors = place.read("--config", path)
    assert code == 1 and "the node wants a certificate" in errors
    path = str(place.config(f"{pair}ssl_cafile: {authority.file}\n"))
    code, _, errors = place.read("--config", path, "--host", f"localhost:{place.node.port}")
    assert code == 1 and "Hostname mismatch" in errors
    wait_for(lambda: "shows no certificate" in place.node.log, 10, "the node's log")
    assert "the client speaks no TLS" in place.node.log and "Traceback" not in place.node.log
    assert place.programs("--config", path) == {}


def test_tls_towards_an_open_node(place: Place) -> None:
    """A client with TLS sends nothing to a node without it, and both report why."""
    authority = Authority(place.directory)
    place.start("")
    path = place.config(f"ssl_cafile: {authority.file}\n")
    code, _, errors = place.read("--config", str(path))
    assert code == 1 and "the node speaks no TLS and the client does" in errors
    application = place.application(f"&connmon_config={path}")
    wait_for(lambda: "the node speaks no TLS" in application.log, 20, "the application's log")
    wait_for(lambda: "the other side speaks TLS" in place.node.log, 10, "the node's log")


def test_an_application_that_forks(place: Place) -> None:
    """A child forked while TLS is in use reports over its own connection."""
    authority = Authority(place.directory)
    files = authority.sign("node", "127.0.0.1")
    place.start(
        f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\nssl_cafile: {authority.file}\n"
        f"secret: {SECRET}\n"
    )
    config = str(place.node.config)
    place.application(f"&connmon_config={config}", FORKING, config)
    wait_for(lambda: place.programs("--config", config).get("child") == 1, 20, "the child")


def test_only_a_node_that_belongs_to_it_joins_the_group(tmp_path: Path) -> None:
    """Nodes with the same secret and certificates join; one with another secret, none, or a certificate of
    another authority does not, and both sides log why."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    files, evil = authority.sign("node", "127.0.0.1"), stranger.sign("evil", "127.0.0.1")
    ports = []
    with contextlib.ExitStack() as probes:
        for _ in range(3):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])

    def config(name: str, secret: str, pair: tuple[Path, Path] = files) -> Path:
        path = tmp_path / name
        path.write_text(
            "[connmon_service_default]\nname: default\nnodes:\n"
            + "".join(f"    node{n + 1} hostname=127.0.0.1:{port}\n" for n, port in enumerate(ports))
            + (f"secret: {secret}\n" if secret else "")
            + f"ssl_certfile: {pair[0]}\nssl_keyfile: {pair[1]}\nssl_cafile: {authority.file}\n"
        )
        path.chmod(0o600)
        return path

    good = config("good.cfg", SECRET)

    @contextlib.contextmanager
    def node(name: str, path: Path) -> Iterator[Path]:
        log = path.with_name(f"{path.stem}-{name}.log")
        with log.open("ab") as output:
            process = subprocess.Popen(
                [command("connmond"), "-c", str(path), "-n", name],
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        try:
            yield log
        finally:
            process.terminate()
            process.wait(10)

    def status() -> int:
        return subprocess.run(
            [command("connmon"), "cluster-status", "-c", str(good)], capture_output=True, timeout=30
        ).returncode

    with node("node1", good) as one, node("node2", good):
        wait_for(lambda: "ready service=" in one.read_text(), 20, "two of three")
        for name, path, line in (
            ("wrong", config("wrong.cfg", OTHER), "the secrets differ"),
            ("none", config("none.cfg", ""), "the client has none"),
            ("evil", config("evil.cfg", SECRET, evil), "certificate"),
        ):
            before = len(one.read_text())
            with node("node3", path) as three:
                wait_for(lambda s=line, at=before: s in one.read_text()[at:], 20, f"node1 to refuse ({name})")  # type: ignore[misc]
                wait_for(lambda s=line, t=three: s in t.read_text(), 20, f"node3 to hear it ({name})")  # type: ignore[misc]
                assert "ready service=" not in three.read_text()
            assert "node3 is linked" not in one.read_text()
        with node("node3", good) as three:
            wait_for(lambda: "ready service=" in three.read_text(), 20, "the third")
            wait_for(lambda: status() == 0, 20, "a healthy group")
        for log in tmp_path.glob("*.log"):
            assert SECRET not in log.read_text() and OTHER not in log.read_text()


@pytest.mark.parametrize("tls", [False, True], ids=["secret", "tls"])
def test_a_silent_client_is_closed(place: Place, tls: bool) -> None:
    """A client that never proves the secret, or never begins TLS, is closed after 5 s."""
    authority = Authority(place.directory)
    files = authority.sign("node", "127.0.0.1")
    more = f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\n" if tls else f"secret: {SECRET}\n"
    place.start(more)
    with socket.create_connection(("127.0.0.1", place.node.port), 15) as one:
        side = ClientSide("reader", "", "", SECRET.encode(), b"n" * 32)
        if tls:
            one.sendall(b"\x16\x03\x01")
        else:
            one.sendall(side.hello())
        messages = []
        while data := one.recv(65536):
            messages += [] if tls else side.receive(data)
        assert tls or messages == [Refuse("no hello within 5 s")]


def test_certificates_that_cannot_be_used(place: Place) -> None:
    """connmond names the option in one line and exits with 2."""
    authority = Authority(place.directory)
    one, other = authority.sign("one", "h"), authority.sign("two", "h")
    for more, line in (
        (f"ssl_certfile: {one.certificate}\nssl_keyfile: {other.key}\n", "is not the key of the certificate"),
        (f"ssl_certfile: {place.directory}/x\nssl_keyfile: {one.key}\n", "cannot be read: No such file"),
        (f"ssl_cafile: {authority.file}\n", "a node needs ssl_certfile and ssl_keyfile"),
    ):
        path = place.config(more)
        done = subprocess.run(
            [command("connmond"), "-c", str(path)], capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1
        assert f"{path}: [connmon_service_default] ssl_" in done.stderr

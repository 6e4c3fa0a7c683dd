"""`connmon`: its arguments, its output, and its exit codes."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import connmon
from connmon.commands import cli, output
from connmon.commands.arguments import argument_parser, server_max
from connmon.commands.demo.settings import DemoSettings
from connmon.config import Node
from connmon.protocol.credentials import nonce
from connmon.protocol.frames import Hello, NodeSide, Proof
from tests.reader.test_client import nobody, refusing, rows, serving, silent, welcoming
from tests.support.nodes import running_node
from tests.support.requirements import lacking

ROOT = Path(connmon.__file__).parents[1]


def command(*arguments: str, code: str = "") -> list[str]:
    program = f"import sys; from connmon.commands.cli import main; code = main(); {code or 'sys.exit(code)'}"
    return [sys.executable, "-W", "error", "-c", program, *arguments]


def environment(**changes: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CONNMON_")}
    return {**inherited, "PYTHONPATH": str(ROOT), **changes}


def run(*arguments: str, code: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `connmon` as a process, without a terminal."""
    return subprocess.run(
        command(*arguments, code=code),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=environment(**changes),
    )


@pytest.fixture(name="node")
def a_node() -> Iterator[Node]:
    with serving(welcoming(rows("nova"), service="default")) as node:
        yield node


@pytest.fixture(autouse=True)
def without_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONNMON_CONFIG", raising=False)


def config(tmp_path: Path, *nodes: Node, service: str = "default") -> str:
    path = tmp_path / "connmon.cfg"
    lines = "".join(f"    {node.name} hostname={node.address}\n" for node in nodes)
    path.write_text(f"[connmon_service_x]\nname: {service}\nnodes:\n{lines}")
    return str(path)


# --- What is printed ----------------------------------------------------------------------


def test_snapshot_formats(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A snapshot is printed as table, JSON or CSV."""
    host = str(node.address)
    assert cli.main(["snapshot", "--host", host]) == 0
    table = capsys.readouterr().out
    assert table.startswith("service default  node node1  leader node1  quorum yes")
    assert cli.main(["snapshot", "-H", host, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["program"] == "nova"
    assert cli.main(["snapshot", "-H", host, "--format", "csv", "--by", "program"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["program"] == "nova"


def test_service_node_and_config(node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Service, config file and node are chosen by options, before the command or after it."""
    with nobody("down") as down, serving(welcoming(rows("other"), service="two"), "up") as up:
        path = config(tmp_path, down, up, service="two")
        for arguments in (
            ["snapshot", "--config", path, "--service", "two"],
            ["-c", path, "-s", "two", "snapshot"],
            ["-c", path, "snapshot", "-s", "two", "-n", "up"],
            ["--config", path, "-s", "two"],  # the console, without a terminal
            ["console", "--config", path, "-s", "two", "--node", "up"],
        ):
            assert cli.main(arguments) == 0
            assert "other" in capsys.readouterr().out
        assert cli.main(["snapshot", "-c", path, "-s", "two", "-n", "down"]) == 1
        error = capsys.readouterr().err
        assert "down (" in error
        assert "up (" not in error


def test_every_command_that_reads_takes_the_options_of_reading() -> None:
    """Every command that reads has the same options for the node; -n is the node, never a count."""
    (commands,) = (a for a in argument_parser()._actions if isinstance(a, argparse._SubParsersAction))
    reading = {
        "-s", "--service", "-H", "--host", "-n", "--node", "-c", "--config", "--secret-file",
        "-v", "--verbose",
    }  # fmt: skip
    assert set(commands.choices) > {"console", "snapshot", "replay", "record"}
    for name, command_parser in commands.choices.items():
        known = {option: a.dest for a in command_parser._actions for option in a.option_strings}
        if name != "demo":
            assert reading <= set(known), name
            assert known["-n"] == known["--node"] == "node"
            assert "--times" not in known or known["-t"] == "times"


def test_a_node_may_have_a_number_for_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --batch too, -n is the node, also where its name is a number."""
    with serving(welcoming(rows("nova")), "3") as node:
        path = config(tmp_path, node)
        for option in ("-n", "--node"):
            assert cli.main(["-b", "-c", path, option, "3", "-t", "1"]) == 0
            assert "nova" in capsys.readouterr().out


def test_verbose_tells_which_nodes_are_tried(node: Node, tmp_path: Path) -> None:
    """-v logs each step of the connection on stderr, without the secret; stdout stays the same."""
    secret = "0123456789abcdef-never-shown"
    file = tmp_path / "secret"
    file.write_text(secret)
    file.chmod(0o600)
    with nobody("gone") as gone:
        path = config(tmp_path, gone, node)
        quiet = run("snapshot", "-c", path, "--format", "json", "-n", node.name)
        for arguments in (["snapshot", "-v"], ["-v", "snapshot"], ["snapshot", "--verbose"]):
            loud = run(*arguments, "-c", path, "--format", "json", "-n", node.name)
            assert loud.returncode == 0
            assert json.loads(loud.stdout)["node"] == json.loads(quiet.stdout)["node"]
            where = f"{node.name} ({node.address})"
            assert loud.stderr.splitlines() == [
                f"connmon: {where}: connecting to 127.0.0.1",
                f"connmon: {where}: connected, hello sent",
                f"connmon: {where}: welcomed",
                f"connmon: {where}: Query sent",
                f"connmon: {where}: Rows received, quorum yes, view 0.2 s old",
                f"connmon: {where}: closed",
            ]
        assert quiet.stderr == ""
        failed = run("cluster-status", "-v", "-c", path, "-n", "gone", "--secret-file", str(file))
        assert failed.stderr.splitlines() == [
            f"connmon: gone ({gone.address}): connecting to 127.0.0.1",
            f"connmon: gone ({gone.address}): closed: Connection refused",
        ]
        assert secret not in failed.stderr


def test_verbose_says_why_a_node_refuses() -> None:
    """A refusal is the last line of its connection, sanitized; the error follows."""
    with serving(refusing("no\x1b[2J")) as node:
        host = str(node.address)
        assert run("snapshot", "-v", "-H", host).stderr.splitlines() == [
            f"connmon: {host}: connecting to 127.0.0.1",
            f"connmon: {host}: connected, hello sent",
            f"connmon: {host}: closed: no?[2J",
            f"connmon: no node could be read: {host}: no?[2J",
        ]


def test_verbose_of_a_connection_with_a_secret(tmp_path: Path) -> None:
    """The challenge is part of the story, and the welcome says that a secret protects the connection."""
    secret = b"0123456789abcdef-never-shown"
    file = tmp_path / "secret"
    file.write_bytes(secret)
    file.chmod(0o600)

    def behave(sock: socket.socket) -> None:
        side = NodeSide(secret, nonce())
        while data := sock.recv(65536):
            for message in side.receive(data):
                if isinstance(message, Hello):
                    sock.sendall(side.challenge("default", "node1"))
                elif isinstance(message, Proof):
                    sock.sendall(side.welcome("default", "node1"))
                else:
                    sock.sendall(side.frame(rows()))

    with serving(behave) as node:
        host = str(node.address)
        done = run("snapshot", "-v", "-H", host, "--secret-file", str(file))
    assert done.returncode == 0
    assert done.stderr.splitlines()[2:4] == [
        f"connmon: {host}: challenged, proof sent",
        f"connmon: {host}: welcomed, with secret",
    ]
    assert secret.decode() not in done.stderr


@pytest.mark.slow
def test_verbose_of_the_console_goes_to_a_file(tmp_path: Path) -> None:
    """With stderr in a file the console takes -v: the lines are there, and none is on the screen."""
    log = tmp_path / "log"
    with running_node(tmp_path) as running, log.open("wb") as stderr:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            command("-v", "-H", running.address),
            stdin=theirs, stdout=theirs, stderr=stderr, env=environment(TERM="xterm"),
        )  # fmt: skip
        os.close(theirs)
        screen = b""
        with process, contextlib.suppress(OSError):  # EIO: the process has ended
            while data := os.read(ours, 65536):
                screen += data
                if "Rows received" in log.read_text():
                    os.write(ours, b"q")
        os.close(ours)
    assert process.returncode == 0
    assert "welcomed" in log.read_text()
    assert b"\x1b[?1049h" in screen  # the screen of the console
    assert b"welcomed" not in screen and b"hello" not in screen


def test_console_without_a_terminal(node: Node) -> None:
    """Without a terminal the console is one plain table, and curses is not imported."""
    seen = "print([name for name in ('curses', 'connmon.console') if name in sys.modules], file=sys.stderr)"
    for arguments in (["--host", str(node.address)], ["console", "-H", str(node.address)]):
        done = run(*arguments, code=seen, TERM="xterm-256color")
        assert "nova" in done.stdout
        assert "\x1b" not in done.stdout
        assert done.stderr == "[]\n"


def test_snapshot_imports_little(node: Node) -> None:
    """A snapshot imports nothing of the console, the plugin or the cluster."""
    names = (
        "curses",
        "connmon.console",
        "connmon.plugin",
        "connmon.cluster",
        "pysyncobj",
        "sqlalchemy",
        "asyncio",
    )
    done = run(
        *("snapshot", "-H", str(node.address)),
        code=f"print([name for name in {names!r} if name in sys.modules], file=sys.stderr)",
    )
    assert done.stderr == "[]\n"


def test_locale_that_cannot_write_a_name() -> None:
    """A name that the terminal's encoding lacks is printed with escapes instead of failing."""
    with serving(welcoming(rows("主机"))) as node:
        done = run("-H", str(node.address), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "\\u4e3b\\u673a" in done.stdout


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """--version and --help print and exit with 0."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"connmon {connmon.__version__}\n"
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text
        for word in (
            "console", "snapshot", "profile", "cluster-status", "whois", "reconcile", "record", "replay",
            "demo", "--host",
        )
    )  # fmt: skip


# --- Who is called ------------------------------------------------------------------------


@pytest.fixture(name="calls")
def fake_rooms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace console and demo by functions that record their arguments."""
    calls: list[tuple[Any, ...]] = []
    console, demo = ModuleType("connmon.console.app"), ModuleType("connmon.commands.demo.run")

    def run_console(nodes: Any, service: str, *more: Any) -> int:
        calls.append((tuple(str(node.address) for node in nodes), service))
        return 0

    def run_demo(once: bool, chaos: bool, settings: DemoSettings) -> int:
        calls.append(("demo", once, chaos))
        return 0

    monkeypatch.setattr(console, "run", run_console, raising=False)
    monkeypatch.setattr(demo, "run", run_demo, raising=False)
    monkeypatch.setitem(sys.modules, "connmon.console.app", console)
    monkeypatch.setitem(sys.modules, "connmon.commands.demo.run", demo)
    return calls


def terminal(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda stream: there)
    monkeypatch.setenv("TERM", "xterm")


def test_console_is_run(
    calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the console is the default command, and gets the nodes and the service."""
    terminal(monkeypatch, there=True)
    with nobody("a") as a, nobody("b") as b:
        path = config(tmp_path, a, b)
        assert cli.main(["--host", "10.0.0.1"]) == 0
        assert cli.main(["console", "-H", "[::1]:1"]) == 0
        assert cli.main(["-c", path]) == 0
        assert cli.main(["-c", path, "console", "-n", "b"]) == 0
        assert calls == [
            (("10.0.0.1:5800",), ""),
            (("[::1]:1",), ""),
            ((str(a.address), str(b.address)), "default"),
            ((str(b.address),), "default"),
        ]


def test_console_takes_no_options_of_the_batch_output(
    calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options of printed snapshots are refused on a screen; the error names --batch."""
    terminal(monkeypatch, there=True)
    for option in (["--times", "3"], ["--by", "host"], ["--format", "json"], ["--verbose"]):
        assert cli.main(["-H", "h", *option]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"connmon: {option[0]} ") and "add --batch" in error
    assert calls == []


def test_batch_output(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """-b prints plain snapshots, also on a terminal; -t is their number; JSON is one document per line."""
    terminal(monkeypatch, there=True)
    monkeypatch.setattr(output, "terminal_width", lambda: None)
    host = str(node.address)
    assert cli.main(["-H", host, "-b", "-t", "2", "--interval", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.count("HOST  PROGRAM") == 2
    assert "\n\nservice default" in out and "\x1b" not in out
    assert (
        cli.main(["console", "-H", host, "-b", "--times", "3", "--interval", "0.1", "--format", "json"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["rows"][0]["program"] for line in lines] == ["nova"] * 3
    assert cli.main(["-b", "-H", host, "-t", "1", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("host,program,state,")


def test_batch_output_goes_on_without_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    """A snapshot that no node gives is one line; the exit code is the last snapshot's."""
    with nobody() as gone:
        assert cli.main(["-H", str(gone.address), "-b", "-t", "2", "--interval", "0.1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 2 and err.count("no node could be read") == 2


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("db1=151", (("db1", None), 151)),
        ("db1:3306=151", (("db1", 3306), 151)),
        ("[::1]:3306=5", (("::1", 3306), 5)),
        ("[::1]=5", (("::1", None), 5)),
    ],
)
def test_server_max(text: str, server: object) -> None:
    """A database server is named by host, or host and port."""
    assert server_max(text) == server


def test_console_on_a_dumb_terminal(
    calls: list[tuple[Any, ...]],
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A terminal that cannot move its cursor gets the plain table."""
    terminal(monkeypatch, there=True)
    monkeypatch.setenv("TERM", "dumb")
    assert cli.main(["-H", str(node.address)]) == 0
    assert "nova" in capsys.readouterr().out
    assert calls == []


@pytest.mark.parametrize("there", [True, False])
def test_demo_is_run(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """Without a terminal the demo ends by itself."""
    terminal(monkeypatch, there=there)
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--chaos"]) == 0
    assert calls == [("demo", not there, False), ("demo", not there, True)]


# --- How it ends --------------------------------------------------------------------------

USAGE = [
    (["--host", "1.2.3.4:x"], "port 'x'"),
    (["--host", ""], "--host: "),
    (["--node", "a", "--host", "b"], "--node and --host exclude each other"),
    (["snapshot", "-s", "a", "-H", "b"], "--service and --host exclude each other"),
    (["snapshot", "--by", "thread"], "argument --by: invalid choice: 'thread'"),
    (["snapshot", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
    (["snapshot", "--by"], "argument --by: expected one argument"),
    (["snapshot", "--hos", "x"], "unrecognized arguments: --hos x"),
    (["whois"], "the following arguments are required: ID"),
    (["whois", "0x1f"], "'0x1f' is not a session id"),
    (["whois", "1", "--database", "db:x"], "--database: 'db:x': port 'x'"),
    (["snapshot", "mysql://root:se%cret@db/"], "unrecognized arguments: mysql://root:***@db/"),
    (["whois", "mysql://root:p@ss@db/"], "'mysql://root:***@db/' is not a session id"),
    (["--by", "thread"], "invalid choice: 'thread'"),
    (["-b", "-t", "many"], "argument -t/--times: a whole number from 1 on is expected"),
    (["-b", "-n", "3"], "has no node '3'; its nodes are: node1; how many times is --times 3 (-t)"),
    (["-b", "-n", "3", "-H", "h"], "a node by its address; how many times is --times 3 (-t)"),
    (["record", "f", "-n", "3"], "how many times is --times 3 (-t)"),
    (["--interval", "0"], "argument --interval: seconds from 0.1 to 86400 are expected, not '0'"),
    (
        ["--server-max", "db1"],
        "argument --server-max: 'db1' is not a server's maximum; expected HOST=N",
    ),
    (["record"], "the following arguments are required: FILE"),
    (["--host", "x", "replay", "f"], "f: cannot be read"),
    (["snapshot", "\x1b[2J\n"], "unrecognized arguments: ?[2J?"),
    (["--config", "no/such/file"], "no/such/file: "),
    (["snapshot", "--service", "nope"], "'nope'"),
    (["snapshot", "--node", "nope"], "'nope'"),
    (["--host", "x", "demo"], "demo takes no --host"),
]


@pytest.mark.parametrize(("arguments", "reason"), USAGE)
def test_usage_errors(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument or configuration is one line on stderr, and exit code 2."""
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("connmon: ")
    assert output.err.endswith("\n")
    assert output.err[:-1].isprintable()
    assert reason in output.err


def test_usage_error_as_a_process(tmp_path: Path) -> None:
    """As a process: no traceback, exit code 2, also for a broken config file in the environment."""
    path = tmp_path / "broken.cfg"
    path.write_text("[connmon_service_default]\nname: default\nnodes:\n    a hostname=x:99999\n")
    done = run("snapshot", CONNMON_CONFIG=str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"connmon: {path}")
    assert done.stderr.count("\n") == 1


def test_no_node_reachable() -> None:
    """Where no node can be read, one line names each node, and the exit code is 1."""
    with nobody() as down:
        for arguments in (
            ["--host", str(down.address)],
            ["snapshot", "--format", "json", "-H", str(down.address)],
        ):
            done = run(*arguments)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == (
                f"connmon: no node could be read: {down.address}: Connection refused "
                "(is connmond running there?)\n"
            )


def test_interrupted() -> None:
    """Ctrl-C during a wait for a node prints nothing, and the exit code is 130."""
    reached = threading.Event()

    def mute(sock: socket.socket) -> None:
        reached.set()
        silent(sock)

    with serving(mute) as node:
        process = subprocess.Popen(
            command("snapshot", "-H", str(node.address)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        with process:
            assert reached.wait(30)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=30)
        assert (process.returncode, out, error) == (130, b"", b"")


def without_reader(*arguments: str) -> tuple[int, bytes]:
    """Run `connmon` while nobody reads its output; return exit code and stderr."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    return process.returncode, err


def test_broken_pipe() -> None:
    """Where the reader of the output goes away, nothing is printed on stderr."""
    many = rows(rows=tuple(rows(f"program-{n}").rows[0] for n in range(5000)))
    with serving(welcoming(many)) as node:
        assert without_reader("snapshot", "-H", str(node.address)) == (141, b"")


def test_full_disk(node: Node) -> None:
    """Where the output cannot be written, one line says so, and the exit code is 1."""
    if not os.path.exists("/dev/full"):
        lacking("/dev/full", "run on Linux")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("snapshot", "-H", str(node.address)),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "connmon: the output cannot be written: No space left on device\n"


def test_without_any_streams(node: Node) -> None:
    """It runs without stdin, stdout and stderr."""
    shell = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *command("-H", str(node.address))], env=environment(), timeout=60
    )
    assert done.returncode == 0

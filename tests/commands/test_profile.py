"""`connmon profile`: what it measures, prints and refuses, against small nodes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connmon.commands import cli
from connmon.protocol.frames import Ack, ClientSide, Hello, NodeSide, Welcome, frame
from connmon.protocol.queries import Query
from connmon.protocol.reports import PoolInfo, PoolReport, Process, Report, SiteReport
from connmon.protocol.rows import Rows, SiteRow
from connmon.protocol.values import Gauges, Peaks, Totals
from tests.commands.test_cli import command, config, environment, run, without_reader
from tests.reader.test_client import Manner, nobody, rows, serving
from tests.reader.test_cluster_status import status
from tests.reader.test_profile import hold_profile, site_row
from tests.support.nodes import running_node


@pytest.fixture(autouse=True)
def without_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONNMON_CONFIG", raising=False)


def answer(*sites: SiteRow, **changes: Any) -> Rows:
    return rows(rows=sites, **changes)


def answering(
    *answers: Rows, name: str = "node1", software: str = "0.9.0", asked: Callable[[], object] = lambda: None
) -> Manner:
    """Return a node that answers its first query with the first of these, and so on; then with the last.

    `asked` is called with each query.
    """
    left = list(answers)

    def behave(sock: socket.socket) -> None:
        side = NodeSide()
        while data := sock.recv(65536):
            for message in side.receive(data):
                if isinstance(message, Hello):
                    sock.sendall(side.welcome("default", name))
                elif isinstance(message, Query):
                    assert message.by == "site"
                    asked()
                    sock.sendall(frame(left.pop(0) if len(left) > 1 else left[0]))
                else:
                    sock.sendall(frame(status(name, software=software)))

    return behave


def shop(held_ms: int, **changes: Any) -> SiteRow:
    """Return a call site of which a tenth was in the database, in all and recently."""
    profile = hold_profile(held_ms, {"database": held_ms // 10, "requests": held_ms - held_ms // 10})
    return site_row(profile=profile, recent=profile, recent_seconds=100.0, **changes)


RECENT = answer(shop(50_000), site_row("api.py:9 get", program="api", recent_seconds=100.0,
                recent=hold_profile(10_000), profile=hold_profile(10_000)))  # fmt: skip


# --- The last minutes -----------------------------------------------------------------------


def test_the_last_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    """Without seconds the answer is there at once, of all programs or of some; nothing is on stderr."""
    with serving(answering(RECENT)) as node:
        host = str(node.address)
        assert cli.main(["profile", "--host", host]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("100.0 s measured on node1, 0.60 connections held on average, 10 % in the")
        assert [line.split()[0] for line in out.splitlines()[3:]] == ["83", "17", "100"]
        assert err == ""
        assert cli.main(["-H", host, "profile", "--program", "api"]) == 0
        assert "shop" not in capsys.readouterr().out
        assert cli.main(["profile", "-H", host, "--program", "api", "--program", "shop"]) == 0
        assert capsys.readouterr().out == out


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    """Folded stacks in milliseconds, and a file for speedscope."""
    with serving(answering(RECENT)) as node:
        assert cli.main(["profile", "-H", str(node.address), "--format", "folded"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "shop;shop.py:12 order;requests 45000",
            "shop;shop.py:12 order;database 5000",
            "api;api.py:9 get;unknown 10000",
        ]
        assert cli.main(["profile", "-H", str(node.address), "--format", "speedscope"]) == 0
        document = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in document["profiles"]] == ["shop", "api"]


def test_in_a_pipe() -> None:
    """No escape codes, no message on stderr, whatever TERM says, and little is imported."""
    names = ("curses", "connmon.console", "connmon.plugin", "connmon.cluster", "sqlalchemy", "asyncio")
    code = f"import sys; print([name for name in {names!r} if name in sys.modules], file=sys.stderr)"
    with serving(answering(RECENT)) as node:
        done = run(
            *("profile", "-H", str(node.address), "--seconds", "0.1"), code=code, TERM="xterm-256color"
        )
    assert "\x1b" not in done.stdout
    assert done.stderr == "[]\n"


def test_hostile_names(capsys: pytest.CaptureFixture[str]) -> None:
    """No control character of a name reaches the terminal, in any format and in no message."""
    evil = "a\n\x1b[2J\u202eb"
    row = shop(50_000, call_site=evil, program=evil, host=evil)
    old = site_row(evil, program="\x1b]0;", host=evil)
    for form in ("table", "folded", "speedscope"):
        with serving(answering(answer(row, old, node=evil))) as node:
            assert cli.main(["profile", "-H", str(node.address), "--format", form]) == 0
        out, err = capsys.readouterr()
        assert all(line.isprintable() for line in (out + err).splitlines())


def test_nothing_was_held(capsys: pytest.CaptureFixture[str]) -> None:
    """The table says so; where the format has no place for it, stderr does. It is no error."""
    line = "node1: nothing was held in the last minutes\n"
    with serving(answering(answer())) as node:
        assert cli.main(["profile", "-H", str(node.address)]) == 0
        assert capsys.readouterr() == (line, "")
        assert cli.main(["profile", "-H", str(node.address), "--format", "folded"]) == 0
        assert capsys.readouterr() == ("", f"connmon: {line}")


def test_a_node_without_quorum(capsys: pytest.CaptureFixture[str]) -> None:
    """What it shows is old: one line says so, as of every command."""
    with serving(answering(answer(shop(1_000), quorum=False, stale=61.0))) as node:
        assert cli.main(["profile", "-H", str(node.address)]) == 0
    assert capsys.readouterr().err == (
        "connmon: node1 has no quorum: what it shows has stood still for 1m01s\n"
    )


# --- Measuring ------------------------------------------------------------------------------


def test_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    """With seconds it is the difference of two answers."""
    first, second = shop(50_000, reported=100.0), shop(50_400, reported=100.2)
    with serving(answering(answer(first), answer(second, version=8))) as node:
        assert cli.main(["profile", "-H", str(node.address), "--seconds", "0.2"]) == 0
        out, err = capsys.readouterr()
    assert out.startswith("0.2 s measured on node1, 2.00 connections held on average, 10 % in the database")
    assert err == ""


def test_measuring_goes_on_with_another_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the node goes away, another one has the same totals; one line names both."""
    gone = threading.Event()
    behave_1 = answering(answer(shop(1_000)), asked=gone.set)
    behave_2 = answering(answer(shop(3_000, reported=101.0), node="node2", version=8), name="node2")

    def first(sock: socket.socket) -> None:
        if not gone.is_set():
            behave_1(sock)

    def then(sock: socket.socket) -> None:
        if gone.is_set():
            behave_2(sock)

    with serving(first, "node1") as node1, serving(then, "node2") as node2:
        path = config(tmp_path, node1, node2)
        assert cli.main(["profile", "-c", path, "--seconds", "0.1", "--format", "folded"]) == 0
        out, err = capsys.readouterr()
        gone.clear()
        assert cli.main(["profile", "-c", path, "-n", "node1", "--seconds", "0.1"]) == 1
    assert out == "shop;shop.py:12 order;requests 1800\nshop;shop.py:12 order;database 200\n"
    assert err == "connmon: the second answer is of node2, not of node1: it has the same totals\n"
    assert "no node could be read: node1" in capsys.readouterr().err


def test_the_same_node_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as a node answers, both answers are its own."""
    asked: list[str] = []
    one = answering(answer(shop(1_000), node="one"), name="one", asked=lambda: asked.append("one"))
    two = answering(answer(shop(1_000), node="two"), name="two", asked=lambda: asked.append("two"))
    with serving(one, "one") as node1, serving(two, "two") as node2:
        path = config(tmp_path, node1, node2)
        for _ in range(10):
            assert cli.main(["profile", "-c", path, "--seconds", "0.1"]) == 0
    assert len(asked) == 20
    assert asked[::2] == asked[1::2]
    assert capsys.readouterr().err == ""


def test_all_nodes_have_restarted(capsys: pytest.CaptureFixture[str]) -> None:
    """The totals have begun again: one line instead of negative numbers, and exit code 1."""
    with serving(answering(answer(shop(9_000)), answer(shop(10), epoch="e2", version=2))) as node:
        assert cli.main(["profile", "-H", str(node.address), "--seconds", "0.1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "connmon: the nodes have restarted and forgotten the totals that were measured: measure again\n"
    )


def test_ctrl_c_ends_a_measurement_early() -> None:
    """What was measured until then is printed; stderr says that it is less than was asked for."""
    answers = answer(shop(50_000)), answer(shop(60_000, reported=105.0), version=8)
    with serving(answering(*answers)) as node:
        arguments = ("profile", "-H", str(node.address), "--seconds", "3600", "--format", "folded")
        with measuring(*arguments) as (process, terminal):
            line = read_until(terminal, "early\r\n")
            assert line == "connmon: measuring for 3600 s on node1; Ctrl-C ends it early\r\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            out = process.stdout.read().decode()
            err = read_until(terminal, "\r\n")
    assert process.returncode == 0
    assert out == "shop;shop.py:12 order;requests 9000\nshop;shop.py:12 order;database 1000\n"
    assert err.startswith("connmon: ended early: ") and " s of 3600 s are measured" in err


def test_a_second_ctrl_c_ends_at_once() -> None:
    """While the second answer does not come, nothing is printed, and the exit code is 130."""
    numbers = iter(range(9))
    second = threading.Event()
    behave = answering(answer(shop(50_000)))

    def mute(sock: socket.socket) -> None:
        if next(numbers):
            second.set()
            while sock.recv(65536):
                pass
        else:
            behave(sock)

    with (
        serving(mute) as node,
        measuring("profile", "-H", str(node.address), "--seconds", "3600") as (process, terminal),
    ):
        read_until(terminal, "early\r\n")
        process.send_signal(signal.SIGINT)
        assert second.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert process.returncode == 130


@contextlib.contextmanager
def measuring(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `connmon` with stderr on a terminal, where it says when it measures; yield process and terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=theirs, env=environment())
    os.close(theirs)
    try:
        with process:
            yield process, ours
    finally:
        os.close(ours)


def read_until(terminal: int, end: str) -> str:
    """Return what the terminal gets until a line ends so."""
    text = ""
    while not text.endswith(end):
        text += os.read(terminal, 1).decode()
    return text


# --- What cannot be measured ----------------------------------------------------------------


def test_a_program_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The line has the names that there are, before anything is measured; the exit code is 1."""
    with serving(answering(RECENT)) as node:
        arguments = ["profile", "-H", str(node.address), "--program", "sho", "--program", "api"]
        assert cli.main([*arguments, "--seconds", "3600"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "connmon: no call site of sho is known to node1; programs with call sites are: api, shop\n"
    )


def test_an_empty_name_of_a_program_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    """A line without a visible name would not say what is wrong."""
    with serving(answering(RECENT)) as node:
        assert cli.main(["profile", "-H", str(node.address), "--program", ""]) == 1
    assert capsys.readouterr().err == (
        'connmon: no call site of "" is known to node1; programs with call sites are: api, shop\n'
    )


def test_many_programs_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """A line names ten, and says how many more there are."""
    many = [shop(1_000, program=f"program-{number:02}") for number in range(25)]
    with serving(answering(answer(*many))) as node:
        assert cli.main(["profile", "-H", str(node.address), "--program", "x"]) == 1
    assert capsys.readouterr().err.endswith("program-08, program-09 and 15 more\n")


def test_a_version_that_keeps_no_profile(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no program has a profile, one line names node and version, instead of zeros."""
    with serving(answering(answer(site_row("a"), site_row("b", program="api")), software="0.9.0")) as node:
        for more in ([], ["--seconds", "3600"]):
            assert cli.main(["profile", "-H", str(node.address), *more]) == 1
            out, err = capsys.readouterr()
            assert out == ""
            assert err == (
                "connmon: node1 runs connmon 0.9.0 and has no profile of api, shop: upgrade connmon there, "
                "or in the applications\n"
            )


def test_some_applications_of_an_earlier_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The others are printed, and one line says which are missing."""
    with serving(answering(answer(shop(1_000), site_row("b", program="api")))) as node:
        assert cli.main(["profile", "-H", str(node.address)]) == 0
        out, err = capsys.readouterr()
    assert "total of 1 call site" in out
    assert err == (
        "connmon: no profile of api on web1: connmon is of an earlier version there, "
        "or was on the node that it reported to\n"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--seconds", "0"], "argument --seconds: seconds from 0.1 to 86400 are expected, not '0'"),
        (["--seconds", "nan"], "argument --seconds: seconds from 0.1 to 86400 are expected, not 'nan'"),
        (["--seconds", "86401"], "argument --seconds: seconds from 0.1 to 86400 are expected"),
        (["--format", "json"], "argument --format: invalid choice: 'json'"),
        (["--program"], "argument --program: expected one argument"),
        (["shop"], "unrecognized arguments: shop"),
    ],
)
def test_usage_errors(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is one line on stderr, and exit code 2."""
    assert cli.main(["profile", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err and err.count("\n") == 1


def test_no_node(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no node answers, one line names it, and the exit code is 1."""
    with nobody() as down:
        assert cli.main(["profile", "-H", str(down.address)]) == 1
    assert capsys.readouterr().err == (
        f"connmon: no node could be read: {down.address}: Connection refused (is connmond running there?)\n"
    )


def test_broken_pipe() -> None:
    """Where the reader of the output goes away, nothing is printed on stderr."""
    many = [shop(1_000, call_site=f"a/long/path/{number}.py:1 f") for number in range(5_000)]
    with serving(answering(answer(*many))) as node:
        assert without_reader("profile", "-H", str(node.address)) == (141, b"")


# --- With a real node -----------------------------------------------------------------------


class Reporting:
    """An application that reports to a real node: one pool with one call site."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._side = ClientSide("application", "default", "a test")
        self._number = 0
        self._socket.sendall(self._side.hello())
        assert isinstance(self._next(), Welcome)

    def _next(self) -> object:
        while True:
            messages = self._side.receive(self._socket.recv(65536))
            if messages:
                return messages[0]

    def report(self, held_ms: int, where: dict[str, int]) -> None:
        """Report that one connection has been held for so long in all."""
        self._number += 1
        first = self._number == 1
        info = PoolInfo("sqlite:///x", "sqlite", None, None, "x", "QueuePool", 5, 10, 30.0)
        pool = PoolReport(
            1, info if first else None, Gauges(1, 15, 0, 1, 1), Totals(connects=1, checkouts=1), Peaks(1, 1)
        )
        site = SiteReport(
            1, "shop.py:12 order", holds=3, profile=hold_profile(held_ms, where, holds=3, caused_ms=500)
        )
        process = Process("web1", "shop", 42, 1, "www", "python shop.py", 5.0)
        self._socket.sendall(
            frame(
                Report(
                    instance="i1", sequence=self._number, base=self._number - 1, interval=1.0,
                    peaks=Peaks(1, 1), pools=(pool,), sites=(site,), process=process if first else None,
                )
            )
        )  # fmt: skip
        assert self._next() == Ack("i1", self._number, False)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.slow
def test_a_real_node(tmp_path: Path) -> None:
    """What a process reports while `connmon profile` measures is what it prints, of all places."""
    with running_node(tmp_path) as node, contextlib.closing(Reporting(node.port)) as application:
        application.report(10_000, {"database": 4_000})
        arguments = ("profile", "-H", node.address, "--seconds", "3600", "--format", "folded")
        with measuring(*arguments) as (process, terminal):
            read_until(terminal, "early\r\n")
            application.report(13_000, {"database": 5_000, "requests": 1_500})
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            lines = process.stdout.read().decode().splitlines()
        done = run("profile", "-H", node.address)
    assert lines == [
        "shop;shop.py:12 order;requests 1500",
        "shop;shop.py:12 order;database 1000",
        "shop;shop.py:12 order;unknown 500",
    ]
    assert process.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("100 %")
    assert done.stderr == ""

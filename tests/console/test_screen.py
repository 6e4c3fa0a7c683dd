"""The console on a real terminal: `run` in a pseudo-terminal, its bytes rendered by pyte."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyte
import pytest

from connmon.console.screen import ScreenError, _known, check
from connmon.protocol.queries import Query
from tests.support.console_fakes import FLEET, FakeNode
from tests.support.requirements import lacking, program
from tests.support.waiting import wait_for

PROGRAM = """
import signal
import sys
from connmon.config import Address, Node
from connmon.console import app
nodes = []
for number, port in enumerate(sys.argv[2:], 1):
    address = Address("127.0.0.1", int(port))
    nodes.append(Node(f"node{number}", address, address))
if sys.argv[1] == "crash":
    app.views.view = lambda *given: 1 / 0
if sys.argv[1] == "no-hup":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
sys.exit(app.run(nodes, "default"))
"""


class Terminal:
    """A console in a pseudo-terminal, and its screen as text."""

    def __init__(
        self,
        *ports: int,
        columns: int = 80,
        lines: int = 24,
        mode: str = "run",
        environ: Mapping[str, str] | None = None,
        **more: str,
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._done = False
        self.master, self._slave = pty.openpty()
        self._set_size(columns, lines)
        self._before = termios.tcgetattr(self._slave)
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, *map(str, ports)],
            stdin=self._slave, stdout=self._slave, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "linux", "PYTHONPATH": str(Path(__file__).parents[2]),
                 **(environ or {}), **more},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # Never blocked in read: that would keep the terminal open beyond its close.
        with contextlib.suppress(OSError):
            while not self._done:
                if not select.select([self.master], [], [], 0.02)[0]:
                    continue
                data = os.read(self.master, 65536)
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self._screen.resize(lines, columns)
        self._set_size(columns, lines)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    @property
    def lines(self) -> list[str]:
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def shows(self, *facts: str) -> None:
        """Wait until all of these are on the screen."""

        def there() -> bool:
            missing = [fact for fact in facts if fact not in self.text]
            assert not missing, f"{missing} not in:\n{self.text}"
            return True

        wait_for(there, what="the screen")

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return exit code and stderr."""
        _, errors = self.process.communicate(timeout=10)
        return self.process.returncode, errors.decode()

    @property
    def restored(self) -> bool:
        """Whether the terminal's modes are as before."""
        return termios.tcgetattr(self._slave) == self._before

    def hang_up(self) -> None:
        """Close the terminal's other end, as when a terminal window is closed."""
        self._stop_reading()
        os.close(self._slave)
        os.close(self.master)
        self.master = self._slave = -1

    def _stop_reading(self) -> None:
        self._done = True
        self._reader.join(5)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._stop_reading()
        for descriptor in {self._slave, self.master} - {-1}:
            os.close(descriptor)


@pytest.fixture
def node() -> Iterator[FakeNode]:
    served = FakeNode()
    yield served
    served.stop()


@pytest.mark.parametrize(
    "environ",
    [
        {"LC_ALL": "xx_YY.UTF-8"},
        {"LC_ALL": "", "LC_CTYPE": "xx_YY"},
        {"LC_ALL": "", "LC_CTYPE": "", "LANG": "de_DE@euro"},
        {"LC_ALL": "tr_TR.NO-SUCH-CHARSET"},
        {"LC_ALL": "not a locale"},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8"},
    ],
    ids=str,
)
def test_any_locale(node: FakeNode, environ: dict[str, str]) -> None:
    """The console runs with a locale that is not installed, or that has only ASCII."""
    with contextlib.closing(Terminal(node.port, environ=environ)) as terminal:
        terminal.shows("node node1", "waiting 5", ">ctl1 nova-api", "q quit")
        terminal.press("q")
        assert terminal.ended() == (0, "")
        assert terminal.restored


def test_an_encoding_that_python_does_not_know() -> None:
    """Text is then written as ASCII."""
    assert (_known("GEORGIAN-PS"), _known("UTF-8"), _known("ANSI_X3.4-1968")) == ("ascii", "utf-8", "ascii")


def test_an_operators_walk(node: FakeNode) -> None:
    """Open, drill down twice, resize, come back, sort, ask for help, quit: the screen follows, exit 0."""
    with contextlib.closing(Terminal(node.port)) as terminal:
        terminal.shows("node node1", "waiting 5", ">ctl1 nova-api", "LEAK", "q quit", "cinder-volume")
        terminal.press("\r")
        terminal.shows("programs > nova-api on ctl1", ">4711", "4713")
        terminal.press("\r")
        terminal.shows("> pid 4711", "@db1/nova", "884200", "Thread-0")
        terminal.resize(200, 50)
        terminal.shows("server session", "QueuePool", "mysql+pymysql://nova@db1/nova")
        terminal.resize(40, 10)
        terminal.shows("node node1")
        wait_for(lambda: len(terminal.lines) == 10 and "quit" in terminal.lines[-1])
        terminal.resize(80, 24)
        terminal.press("\x1b")
        terminal.shows("programs > nova-api on ctl1", "4713")
        terminal.press("\x1b")
        terminal.shows("cinder-volume")
        terminal.press("j")
        terminal.shows(">ctl2 cinder-volume", "2 of 5")
        terminal.press("I")
        terminal.shows("gravest last", ">ctl2 cinder-volume")
        terminal.press("?")
        terminal.shows("connmon help", "invert the order")
        terminal.press("q")
        assert terminal.ended() == (0, "")
        assert terminal.restored


def test_arrow_keys_are_read(node: FakeNode) -> None:
    """Keys that come as escape sequences are keys, not Escape and letters."""
    with contextlib.closing(Terminal(node.port, TERM="xterm-256color")) as terminal:
        terminal.shows(">ctl1 nova-api")
        terminal.press("\x1bOB")
        terminal.shows("2 of 5")
        terminal.press("\x1bOF")
        terminal.press("\x1b[17~")
        terminal.shows("by processes")
        terminal.press("q")
        assert terminal.ended()[0] == 0


@pytest.mark.slow
def test_a_node_that_dies_is_replaced_with_a_note() -> None:
    """Another node is read, with a note; with none left a banner says since when, until a node returns."""
    first, second = FakeNode("node1"), FakeNode("node2")
    both = {"node1": first, "node2": second}
    with contextlib.closing(Terminal(first.port, second.port)) as terminal:
        terminal.shows("nova-api", "leader node")
        dead = "node1" if "node node1" in terminal.lines[0] else "node2"
        alive = "node2" if dead == "node1" else "node1"
        both[dead].stop()
        terminal.shows(f"{dead} does not answer: now reading from {alive}", f"node {alive}")
        both[alive].stop()
        terminal.shows("DISCONNECTED since", "this is the last snapshot", "nova-api")
        again = FakeNode(alive, port=both[alive].port)
        terminal.shows(f"connected again, to {alive}")
        assert "DISCONNECTED" not in terminal.text
        terminal.press("q")
        assert terminal.ended() == (0, "")
        again.stop()


@pytest.mark.slow
def test_a_node_without_quorum_is_left_for_one_that_has_it() -> None:
    """Without quorum the screen says so; a node with quorum is read instead, with a note."""
    first = FakeNode("node1")
    first.quorum = False
    second = FakeNode("node2")
    second.stop()
    with contextlib.closing(Terminal(first.port, second.port)) as terminal:
        terminal.shows("NO QUORUM on node1", "quorum NO")
        second = FakeNode("node2", port=second.port)
        terminal.shows("node1 has no quorum: now reading from node2", "quorum yes")
        terminal.press("q")
        assert terminal.ended()[0] == 0
    first.stop()
    second.stop()


def test_only_changes_are_asked_for(node: FakeNode) -> None:
    """After the first answer, queries name the version that the console has; changes reach the screen."""
    with contextlib.closing(Terminal(node.port)) as terminal:
        wait_for(lambda: len(node.queries) >= 3)
        asked = [query for query in node.queries if isinstance(query, Query)]
        assert [(query.since, query.epoch) for query in asked[:3]] == [
            (0, ""),
            (1, "e-node1"),
            (1, "e-node1"),
        ]
        node.rows = FLEET[1:]
        wait_for(lambda: "nova-api" not in terminal.text)
        terminal.press("q")
        terminal.ended()


def test_ctrl_c_ends_it_cleanly(node: FakeNode) -> None:
    """Ctrl-C is a way to quit: exit 0, nothing on stderr, terminal restored."""
    with contextlib.closing(Terminal(node.port)) as terminal:
        terminal.shows("nova-api")
        terminal.press("\x03")
        assert terminal.ended() == (0, "")
        assert terminal.restored


def test_sigterm_restores_the_terminal(node: FakeNode) -> None:
    """SIGTERM ends it with 143 and the terminal restored."""
    with contextlib.closing(Terminal(node.port)) as terminal:
        terminal.shows("nova-api")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == (143, "")
        assert terminal.restored


def test_a_bug_restores_the_terminal_before_its_traceback(node: FakeNode) -> None:
    """After an exception the terminal is as before, and the traceback is on stderr."""
    with contextlib.closing(Terminal(node.port, mode="crash")) as terminal:
        code, errors = terminal.ended()
        assert code == 1
        assert "ZeroDivisionError" in errors
        assert terminal.restored


@pytest.mark.parametrize("mode", ["run", "no-hup"])
def test_a_terminal_that_vanishes_ends_it(node: FakeNode, mode: str) -> None:
    """When the terminal window is closed, the console ends by itself, even if SIGHUP does not come."""
    terminal = Terminal(node.port, mode=mode)
    with contextlib.closing(terminal):
        terminal.shows("nova-api")
        terminal.hang_up()
        assert terminal.ended() == (0, "")


def test_no_node_at_the_start_is_one_line_and_exit_1(node: FakeNode) -> None:
    """When no node can be reached, nothing is drawn: one line on stderr, exit 1."""
    node.stop()
    with contextlib.closing(Terminal(node.port)) as terminal:
        code, errors = terminal.ended()
        assert code == 1
        assert errors.count("\n") == 1
        assert errors.startswith("connmon: no node could be read: node1 (127.0.0.1:")
        assert terminal.raw == b""


@pytest.mark.parametrize("term", ["dumb", "", "no-such-terminal"])
def test_a_terminal_that_cannot_show_it_is_one_clear_error(node: FakeNode, term: str) -> None:
    """TERM=dumb, none, or an unknown one: ScreenError, one line, before anything is drawn."""
    with contextlib.closing(Terminal(node.port, TERM=term)) as terminal:
        code, errors = terminal.ended()
        assert code == 1
        last = errors.splitlines()[-1]
        assert last.startswith("connmon.console.screen.ScreenError: the console cannot run with TERM=")
        assert terminal.raw == b""


def _needs_terminfo(term: str) -> None:
    """Skip where this machine does not know the terminal (Debian's ncurses-term has them all)."""
    # In a process of its own: curses takes the first terminal for all that follow.
    known = f"import curses; curses.setupterm({term!r}, 1)"
    if subprocess.run([sys.executable, "-c", known], capture_output=True).returncode:
        lacking(f"a terminfo entry for {term}", "apt-get install ncurses-term")


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({}, True),
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-16color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "vt220"}, False),
    ],
)
def test_colour_only_where_it_is_wanted_and_there(
    node: FakeNode, environ: dict[str, Any], coloured: bool
) -> None:
    """With NO_COLOR, or on a terminal without colours, no colour is sent; the text is the same."""
    _needs_terminfo(environ.get("TERM", "linux"))
    with contextlib.closing(Terminal(node.port, environ=environ)) as terminal:
        terminal.shows(">ctl1 nova-api", "cinder-volume", "LOST")
        codes = (b"\x1b[31", b";31m", b"38;5;203", b"[91m", b";91m")
        assert any(code in terminal.raw for code in codes) is coloured
        terminal.press("q")
        assert terminal.ended()[0] == 0


def test_pipes_are_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdin or stdout is no terminal, `check` says what to use instead."""
    with open(os.devnull) as null, pytest.raises(ScreenError, match="connmon -b"):
        monkeypatch.setattr(sys, "stdin", null)
        check({"TERM": "xterm"})


def test_every_view_on_a_real_terminal(node: FakeNode) -> None:
    """Each view comes with its key; a filter is typed; a frozen screen has a banner."""
    with contextlib.closing(Terminal(node.port)) as terminal:
        terminal.shows(">ctl1 nova-api")
        for key, facts in (
            ("2", ("hosts", ">ctl1")),
            ("3", ("databases", "db1:3306", "keystone")),
            ("4", ("processes", "4712")),
            ("5", ("pools", "db1/nova")),
            ("6", ("connections", "884200")),
            ("7", ("waits", "blocked by", "Thread-0")),
            ("8", ("cluster", "not known in this snapshot")),
            ("1", ("programs", "glance-api")),
        ):
            terminal.press(key)
            terminal.shows(*facts)
        terminal.press("\\")
        terminal.shows("show only rows with: _")
        terminal.press("keystone\r")
        terminal.shows("[only 'keystone', 4 hidden]", ">ctl1 keystone")
        terminal.press("\x1b")
        terminal.shows("glance-api")
        terminal.press("Z")
        terminal.shows("PAUSED at")
        node.rows = FLEET[1:]
        terminal.press("Z")
        wait_for(lambda: "nova-api" not in terminal.text and "PAUSED" not in terminal.text)
        terminal.press("q")
        assert terminal.ended() == (0, "")


def test_a_table_is_saved_where_it_was_asked_for(node: FakeNode, tmp_path: Path) -> None:
    """s and a name write the table, but never over an existing file."""
    path = tmp_path / "table.txt"
    with contextlib.closing(Terminal(node.port)) as terminal:
        terminal.shows(">ctl1 nova-api")
        terminal.press("s")
        terminal.shows("save as: connmon-programs-")
        terminal.press("\x7f" * 40 + str(path) + "\r")
        terminal.shows("saved:")
        assert "neutron-server" in path.read_text()
        terminal.press("s" + "\x7f" * 40 + str(path) + "\r")
        terminal.shows("is there already")
        terminal.press("q")
        assert terminal.ended()[0] == 0


def test_the_mouse_works(node: FakeNode) -> None:
    """A click on a heading sorts by it, a click on a row selects it, as terminals report clicks."""
    with contextlib.closing(Terminal(node.port, TERM="xterm-256color")) as terminal:
        terminal.shows(">ctl1 nova-api")
        lines = terminal.lines
        row = next(at for at, line in enumerate(lines) if "keystone" in line)
        terminal.press(f"\x1b[<0;10;{row + 1}M\x1b[<0;10;{row + 1}m")
        terminal.shows(">ctl1 keystone")
        heading = next(at for at, line in enumerate(lines) if "host program" in line)
        x = lines[heading].index("waiting") + 1
        terminal.press(f"\x1b[<0;{x};{heading + 1}M\x1b[<0;{x};{heading + 1}m")
        terminal.shows("by waiting, largest first")
        terminal.press("q")
        assert terminal.ended()[0] == 0


@pytest.mark.parametrize("size", [(20, 5), (40, 12), (80, 24), (200, 50), (30, 3), (5, 2)])
@pytest.mark.parametrize("term", ["linux", "xterm-256color", "xterm-16color", "vt100"])
def test_any_size_on_any_terminal(node: FakeNode, size: tuple[int, int], term: str) -> None:
    """At any size, also far below what is useful, it draws, takes keys and quits cleanly."""
    _needs_terminfo(term)
    columns, rows = size
    with contextlib.closing(Terminal(node.port, columns=columns, lines=rows, TERM=term)) as terminal:
        if rows >= 5:
            terminal.shows(">", "nova-api" if columns >= 20 else "n")
        else:
            terminal.shows("node" if columns > 5 else "n")
        terminal.press("7?q")
        assert terminal.ended() == (0, "")
        assert terminal.restored


def test_the_terminal_knows_its_size(node: FakeNode) -> None:
    """The terminal's own size counts, not LINES and COLUMNS that are left from another terminal."""
    with contextlib.closing(Terminal(node.port, LINES="50", COLUMNS="200")) as terminal:
        terminal.shows(">", "nova-api", "quit")
        terminal.press("q")
        assert terminal.ended() == (0, "")


def test_in_tmux(node: FakeNode, tmp_path: Path) -> None:
    """In tmux it draws, follows a resize, and gives the terminal back."""
    tmux = program("tmux")
    script = tmp_path / "console.py"
    script.write_text(PROGRAM)
    base = [tmux, "-S", str(tmp_path / "socket"), "-f", os.devnull]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm-256color"}

    def run(*arguments: str) -> str:
        done = subprocess.run([*base, *arguments], capture_output=True, text=True, env=environ, timeout=20)
        return done.stdout

    command = f"{sys.executable} {script} run {node.port}; echo code $?; exec sleep 60"
    run("new-session", "-d", "-x", "80", "-y", "24", command)
    try:
        wait_for(lambda: ">ctl1 nova-api" in run("capture-pane", "-p"), what="tmux")
        run("resize-window", "-x", "200", "-y", "30")
        wait_for(lambda: "pool use" in run("capture-pane", "-p"), what="the wider screen")
        run("send-keys", "q")
        wait_for(lambda: "code 0" in run("capture-pane", "-p"), what="the end")
    finally:
        run("kill-server")

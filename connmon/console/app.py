"""The loop of the console, and the thread that talks to the node.

Rules kept here:

- The screen never waits for the network: the fetcher thread asks, and leaves what happened in a
  queue that the loop empties many times a second.
- One connection at a time. When it breaks, any other node is tried at once; only when none answers
  is the screen told so, and it is tried again each second for as long as the console runs.
- Only changed rows are asked for. After a broken connection everything is asked for once more.
- The terminal is restored before anything is said on stderr.

Exit codes of `run`: 0 after q, Ctrl-C or a terminal that vanished; 1 where no node could be
reached at the start; 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import datetime
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NoReturn, TypeAlias

from connmon import client
from connmon.config import Node
from connmon.console import screen, state, views
from connmon.console.state import Picture, Silence, State, Want
from connmon.credentials import OPEN, Credentials
from connmon.errors import ConnmonError
from connmon.snapshot import Snapshot

#: Seconds between refreshes.
REFRESH: Final = 1.0
#: Longest time for which the loop waits for a key before it looks for news.
LOOK: Final = 0.1
#: Seconds after which a node that was asked counts as dead.
ANSWER: Final = 5.0
#: Seconds between looks for a node with quorum, while the present one has none.
LEAVE: Final = 5.0
#: Seconds that each of them has for an answer; meanwhile the picture does not move.
LOOKED_AT: Final = 0.8


@dataclass(frozen=True)
class Note:
    """Something to be read for a while."""

    text: str


@dataclass(frozen=True)
class Crash:
    """The fetcher met a bug."""

    error: BaseException


News: TypeAlias = "Picture | Silence | Note | Crash"


class Fetcher(threading.Thread):
    """Asks the node for what the screen shows, once a second and whenever that changes.

    `want` and `stop` may be called from any thread; what happened is in `news`, in order.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        service: str,
        first: client.Client,
        wants: tuple[Want, ...],
        credentials: Credentials = OPEN,
    ) -> None:
        super().__init__(name="connmon-console-fetcher", daemon=True)
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._nodes = tuple(nodes)
        self._service = service
        self._credentials = credentials
        self._client: client.Client | None = first
        self._wants = wants
        self._snapshots: dict[Want, Snapshot] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._silent = False
        self._look_again = 0.0

    def want(self, wants: tuple[Want, ...]) -> None:
        """Ask for these rows from now on, beginning at once if they are others than before."""
        if wants != self._wants:
            self._wants = wants
            self._wake.set()

    def stop(self) -> None:
        """End soon. An answer that is being waited for is not waited for by the caller."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        try:
            while not self._stopping:
                began = time.monotonic()
                self._refresh()
                if self._wake.wait(max(0.0, REFRESH - (time.monotonic() - began))):
                    self._wake.clear()
        except Exception as error:
            self.news.put(Crash(error))
        finally:
            self._disconnect()

    def _refresh(self) -> None:
        broken = ""
        if self._client is not None:
            broken = self._client.node.name
            try:
                self._fetched(self._fetch(self._client), "")
            except (ConnmonError, OSError):
                self._disconnect()
            else:
                return
        try:
            self._client = self._connect(broken)
            self._fetched(self._fetch(self._client), broken)
        except (ConnmonError, OSError) as error:
            self._disconnect()
            self._silent = True
            self.news.put(Silence(str(error)))

    def _connect(self, broken: str) -> client.Client:
        """Connect to any node, to the one that has just failed as the last resort."""
        if broken and len(self._nodes) > 1:
            with contextlib.suppress(ConnmonError, OSError):
                return client.connect(
                    self._nodes, self._service, exclude=(broken,), credentials=self._credentials
                )
        return client.connect(self._nodes, self._service, credentials=self._credentials)

    def _disconnect(self) -> None:
        self._snapshots.clear()
        gone, self._client = self._client, None
        if gone is not None:
            gone.close()

    def _fetch(self, node: client.Client) -> Picture:
        node.timeout = ANSWER
        wants = self._wants
        self._snapshots = {want: self._snapshots.get(want) or Snapshot(*want) for want in wants}
        for snapshot in self._snapshots.values():
            for rows in node.ask(snapshot.query()):
                snapshot.apply(rows)
        head = self._snapshots[wants[0]].document()
        del head["rows"]
        return Picture(
            head,
            {want: snapshot.keyed_rows() for want, snapshot in self._snapshots.items()},
            time.monotonic(),
            _wall_clock(0.0),
            _wall_clock(head["stale_seconds"]),
        )

    def _fetched(self, picture: Picture, broken: str) -> None:
        assert self._client is not None
        name, node = self._client.node.name, str(picture.head["node"])
        if self._silent:
            self.news.put(Note(f"connected again, to {node}"))
        elif broken == name:
            self.news.put(Note(f"the connection to {node} broke, and was made again"))
        elif broken:
            self.news.put(Note(f"{broken} does not answer: now reading from {node}"))
        self._silent = False
        self.news.put(picture)
        if not picture.head["quorum"] and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + LEAVE
            self._leave(name)

    def _leave(self, name: str) -> None:
        """Go over to a node that has quorum, if there is one."""
        for node in self._nodes:
            if node.name == name or self._stopping:
                continue
            with contextlib.suppress(ConnmonError, OSError):
                other = client.connect([node], self._service, LOOKED_AT, credentials=self._credentials)
                other.timeout = LOOKED_AT
                if _has_quorum(other):
                    self._disconnect()
                    self._client = other
                    self.news.put(Note(f"{name} has no quorum: now reading from {node.name}"))
                    self._wake.set()
                    return
                other.close()


def _wall_clock(ago: float) -> str:
    """Return the time of so many seconds ago as people write it, with the day where that is not today's."""
    now = datetime.datetime.now()
    try:
        then = now - datetime.timedelta(seconds=ago)
    except OverflowError:
        return "long ago"
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def _has_quorum(node: client.Client) -> bool:
    snapshot = Snapshot("host")
    for rows in node.ask(snapshot.query()):
        snapshot.apply(rows)
    return bool(snapshot.document()["quorum"])


def run(nodes: Sequence[Node], service: str, credentials: Credentials = OPEN) -> int:
    """Show the console until it is left; return the exit code (see above).

    `service` "": whichever the nodes serve. Raises ScreenError, a UsageError, where the console
    cannot run on this terminal, so that the caller can fall back to plain output.
    """
    screen.check()
    try:
        first = client.connect(nodes, service, credentials=credentials)
    except ConnmonError as error:
        print(f"connmon: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    option = f"connmon_service={service}" if service else f"connmon_addr={nodes[0].address}"
    shown = State(option, now=time.monotonic())
    fetcher = Fetcher(nodes, service, first, shown.wants, credentials)
    try:
        with _signals(), screen.Screen() as terminal:
            fetcher.start()
            _loop(shown, terminal, fetcher)
    except (KeyboardInterrupt, screen.TerminalGone):
        return 0
    except _Terminated:
        return 143
    finally:
        fetcher.stop()
        if not fetcher.is_alive():
            first.close()
    return 0


def _loop(shown: State, terminal: screen.Screen, fetcher: Fetcher) -> None:
    drawn: Any = None
    while not shown.ended:
        shown = state.ticked(shown, time.monotonic())
        shown = _told(shown, fetcher)
        fetcher.want(shown.wants)
        width, height = terminal.size()
        shown = state.fitted(shown, views.layout(shown, width, height).panes)
        lines = views.view(shown, width, height)
        if (width, height, lines) != drawn:
            terminal.draw(lines)
            drawn = (width, height, lines)
        key = terminal.key(LOOK)
        if key == "resize":
            drawn = None
        elif key is not None:
            shown = state.pressed(shown, key)


def _told(shown: State, fetcher: Fetcher) -> State:
    """Take in what the fetcher has left."""
    while True:
        try:
            news = fetcher.news.get_nowait()
        except queue.Empty:
            return shown
        if isinstance(news, Picture):
            shown = state.pictured(shown, news)
        elif isinstance(news, Silence):
            shown = state.silenced(shown, news)
        elif isinstance(news, Note):
            shown = state.noted(shown, news.text)
        else:
            raise news.error


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGHUP and SIGTERM into exceptions, so that the terminal is restored on the way out."""

    def vanished(number: int, frame: FrameType | None) -> NoReturn:
        raise screen.TerminalGone

    def terminated(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], NoReturn]] = {
        signal.SIGHUP: vanished,
        signal.SIGTERM: terminated,
    }
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can; the caller's signals stay as they are
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

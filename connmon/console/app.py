"""The loop of the console: keys and news in, a screen out.

Rules kept here:

- The screen is drawn when something has happened, and not otherwise: at rest the loop only looks.
- The terminal is restored before anything is said on stderr.

Exit codes of `run`: 0 after q, Ctrl-C or a terminal that vanished; 1 where no node could be
reached at the start; 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, Final, NoReturn, Protocol

from connmon.config import Node
from connmon.console import actions, mouse, screen, state, views
from connmon.console.fetcher import AskNodes, Demand, Fetcher, News, Note, Position
from connmon.console.source import Maxima
from connmon.console.state import Picture, Silence, State
from connmon.errors import ConnmonError
from connmon.protocol.credentials import OPEN, Credentials
from connmon.reader import client

#: Longest time for which the loop waits for a key before it looks for news.
LOOK: Final = 0.1


class Feed(Protocol):
    """Where pictures come from: a node, or a recording."""

    def want(self, demand: Demand) -> None:
        """The screen shows this from now on."""

    def news(self) -> Sequence[News]:
        """What has happened since this was asked last."""


def run(
    nodes: Sequence[Node],
    service: str,
    credentials: Credentials = OPEN,
    ask_nodes: AskNodes | None = None,
    maxima: Maxima | None = None,
    interval: float = state.INTERVAL,
) -> int:
    """Show the console until it is left; return the exit code (see above).

    `service` "": whichever the nodes serve. `ask_nodes` asks all nodes how they are, for the view of
    the cluster. `maxima`: connections that database servers take. `interval`: seconds
    between two pictures. Raises ScreenError, a UsageError,
    where the console cannot run on this terminal, so that the caller can fall back to plain output.
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
    shown = State(option, now=time.monotonic(), interval=interval)
    fetcher = Fetcher(nodes, service, first, demand(shown), credentials, ask_nodes, maxima)
    try:
        return show(shown, fetcher, fetcher.start)
    finally:
        fetcher.stop()
        if not fetcher.is_alive():
            first.close()


def show(shown: State, feed: Feed, begin: Callable[[], None] = lambda: None) -> int:
    """Show pictures until the console is left; return the exit code. `begin` is called on the screen."""
    try:
        with _signals(), screen.Screen() as terminal:
            begin()
            _loop(replace(shown, blocks=terminal.blocks), terminal, feed)
    except (KeyboardInterrupt, screen.TerminalGone):
        return 0
    except _Terminated:
        return 143
    return 0


def demand(shown: State) -> Demand:
    return Demand(shown.wants, shown.remembers, shown.interval, shown.seen, shown.reel)


def _loop(shown: State, terminal: screen.Screen, feed: Feed) -> None:
    drawn: Any = None
    changed = True
    while not shown.ended:
        shown = state.ticked(shown, time.monotonic())
        for news in feed.news():
            shown = _told(shown, news)
            changed = True
        width, height = terminal.size()
        # What the time alone changes: how late it is, in words, and whether the note is still there.
        moment = (width, height, shown.note, shown.silence, _late(shown))
        if changed or moment != drawn:
            plan = views.layout(shown, width, height)
            shown = state.fitted(shown, plan.panes, plan.spread)
            terminal.draw(views.view(shown, width, height))
            drawn, changed = moment, False
        feed.want(demand(shown))
        key = terminal.key(LOOK)
        if key is not None:
            changed = True
            shown = _did(shown, key, width, height)


def _late(shown: State) -> int:
    """Return the seconds that the screen counts, 0 where it counts none."""
    if shown.received is None or not (shown.late or shown.silence is not None):
        return 0
    return int(shown.now - shown.received)


def _did(shown: State, key: str | screen.Click, width: int, height: int) -> State:
    if isinstance(key, screen.Click):
        shown = mouse.clicked(shown, key.x, key.y, width, height)
    elif key in ("wheelup", "wheeldown"):
        shown = mouse.turned(shown, key == "wheeldown")
    else:
        shown = actions.pressed(shown, key)
    if shown.save:
        path = shown.save
        shown = state.noted(replace(shown, save=""), _save(path, views.saved(shown)))
    return shown


def _save(path: str, text: str) -> str:
    """Write a new file; return what is to be said of it."""
    try:
        with open(os.path.expanduser(path), "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return f"not saved, it is there already: {path}"
    except (OSError, ValueError) as error:
        return f"not saved, {getattr(error, 'strerror', None) or error}: {path}"
    return f"saved: {os.path.abspath(os.path.expanduser(path))}"


def _told(shown: State, news: News) -> State:
    """Take in what the feed has told."""
    if isinstance(news, Picture):
        return state.pictured(shown, news)
    if isinstance(news, Silence):
        return state.silenced(shown, news)
    if isinstance(news, Note):
        return state.noted(shown, news.text)
    if isinstance(news, Position):
        return state.played(shown, news.number)
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

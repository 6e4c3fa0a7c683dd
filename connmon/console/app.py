"""The loop of the console: keys and news in, a screen out.

- The screen is drawn when something has happened, and not otherwise: at rest the loop only looks.
- The terminal is restored before anything is written to stderr.
- A change of the mode is one debug line of the logger "connmon.console"; no log line reaches the screen.

Exit codes of `run`: 0 after q, Ctrl-C or a terminal that vanished; 1 where no node could be reached at the
start; 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn, Protocol

from connmon.config import Node
from connmon.console import actions, layout, screen, views
from connmon.console.fetcher import AskNodes, Demand, Fetcher, News, Note, Position
from connmon.console.settings import DEFAULT_SETTINGS
from connmon.console.source import Maxima
from connmon.console.state import (
    ConsoleState,
    Refresh,
    Silence,
    fitted,
    noted,
    played,
    refreshed,
    silenced,
    ticked,
)
from connmon.errors import ConnmonError
from connmon.protocol.credentials import OPEN, Credentials
from connmon.reader import client

logger = logging.getLogger("connmon.console")


class Feed(Protocol):
    """Where snapshots come from: a node, or a recording."""

    def want(self, demand: Demand) -> None:
        """Get this from now on."""

    def news(self) -> Sequence[News]:
        """Return what has happened since the last call."""


def run(
    nodes: Sequence[Node],
    service: str,
    credentials: Credentials = OPEN,
    ask_nodes: AskNodes | None = None,
    maxima: Maxima | None = None,
    interval: float = DEFAULT_SETTINGS.refresh_seconds,
) -> int:
    """Show the console until it is left; return the exit code (see above).

    `service` "": any service of the nodes. `ask_nodes` asks all nodes how they are, for the view of the
    cluster. `maxima`: connections that database servers take. `interval`: seconds between two refreshes.
    Raises ScreenError, a UsageError, where the console cannot run on this terminal, so that the caller can
    fall back to plain output.
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
    begin = ConsoleState(option, now=time.monotonic(), interval=interval)
    fetcher = Fetcher(nodes, service, first, demand(begin), credentials, ask_nodes, maxima)
    try:
        return show(begin, fetcher, fetcher.start)
    finally:
        fetcher.stop()
        if not fetcher.is_alive():
            first.close()


def show(begin: ConsoleState, feed: Feed, started: Callable[[], None] = lambda: None) -> int:
    """Show snapshots until the console is left; return the exit code. `started` is called on the screen."""
    try:
        with _signals(), _no_log_lines(), screen.Screen() as terminal:
            started()
            _App(replace(begin, blocks=terminal.blocks), terminal, feed).run()
    except (KeyboardInterrupt, screen.TerminalGone):
        return 0
    except _Terminated:
        return 143
    return 0


def demand(state: ConsoleState) -> Demand:
    """Return what the feed has to get for this state."""
    return Demand(state.wants, state.remembers, state.interval, state.seen, state.reel)


class _App:
    """The state on its way from one event to the next, and the terminal that shows it."""

    def __init__(self, begin: ConsoleState, terminal: screen.Screen, feed: Feed) -> None:
        self._state = begin
        self._terminal = terminal
        self._feed = feed

    def __repr__(self) -> str:
        state = self._state
        return f"<App: view {state.view}, mode {state.mode.value}, {self._terminal}, {self._feed}>"

    def run(self) -> None:
        drawn: Any = None
        changed = True
        while not self._state.ended:
            self._state = ticked(self._state, time.monotonic())
            for news in self._feed.news():
                self._state = _after(self._state, news)
                changed = True
            width, height = self._terminal.size()
            state = self._state
            # Time alone changes these: how late the node is, in words, and whether the note is still there.
            moment = (width, height, state.note, state.silence, _late_seconds(state))
            if changed or moment != drawn:
                self._draw(width, height)
                drawn, changed = moment, False
            self._feed.want(demand(self._state))
            key = self._terminal.key(self._state.settings.key_wait_seconds)
            if key is not None:
                changed = True
                self._press(key, width, height)

    def _draw(self, width: int, height: int) -> None:
        plan = layout.layout(self._state, width, height)
        self._state = fitted(self._state, plan.panes, plan.spread)
        self._terminal.draw(views.view(self._state, width, height))

    def _press(self, key: str | screen.Click, width: int, height: int) -> None:
        before = self._state.mode
        self._state = _pressed(self._state, key, width, height)
        if self._state.mode is not before:
            logger.debug("mode: %s -> %s", before.value, self._state.mode.value)


def _late_seconds(state: ConsoleState) -> int:
    """Return the seconds that the screen counts, 0 where it counts none."""
    if state.received is None or not (state.late or state.silence is not None):
        return 0
    return int(state.now - state.received)


def _pressed(state: ConsoleState, key: str | screen.Click, width: int, height: int) -> ConsoleState:
    """Return the state after a key, a click or a notch of the wheel."""
    if isinstance(key, screen.Click):
        state = actions.clicked(state, key.x, key.y, width, height)
    elif key in ("wheelup", "wheeldown"):
        state = actions.turned(state, key == "wheeldown")
    else:
        state = actions.pressed(state, key)
    if state.save:
        path = state.save
        state = noted(replace(state, save=""), _save(path, views.saved(state)))
    return state


def _save(path: str, text: str) -> str:
    """Write a new file; return the note about it."""
    try:
        with open(os.path.expanduser(path), "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return f"not saved, it is there already: {path}"
    except (OSError, ValueError) as error:
        return f"not saved, {getattr(error, 'strerror', None) or error}: {path}"
    return f"saved: {os.path.abspath(os.path.expanduser(path))}"


def _after(state: ConsoleState, news: News) -> ConsoleState:
    """Return the state after news of the feed. Raises the error of a feed that met a bug."""
    if isinstance(news, Refresh):
        return refreshed(state, news)
    if isinstance(news, Silence):
        return silenced(state, news)
    if isinstance(news, Note):
        return noted(state, news.text)
    if isinstance(news, Position):
        return played(state, news.number)
    raise news.error


# --- Around the loop ----------------------------------------------------------------------------


@contextlib.contextmanager
def _no_log_lines() -> Iterator[None]:
    """Keep log lines off the terminal while the console has it; those into files and pipes go on."""
    if not sys.stderr.isatty():
        yield
        return
    parent = logging.getLogger("connmon")
    handlers = {
        handler
        for handler in (*parent.handlers, *logging.getLogger().handlers)
        if not isinstance(handler, logging.FileHandler)
    }

    def nothing(record: logging.LogRecord) -> bool:
        return False

    for handler in handlers:
        handler.addFilter(nothing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(nothing)


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
        yield  # only the main thread can set handlers; the caller's signals stay as they are
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The console's loop with a terminal and a feed made for it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from connmon.console import app
from connmon.console.fetcher import Crash, Demand, News, Note
from connmon.console.lines import Line
from connmon.console.screen import Click
from connmon.console.state import ConsoleState, Silence
from tests.support.console_fakes import FLEET
from tests.support.console_states import refresh


class Keyboard:
    """A terminal with these keys; it keeps what was drawn."""

    def __init__(self, *keys: str | Click) -> None:
        self._keys = list(keys)
        self.drawn: list[list[Line]] = []

    def size(self) -> tuple[int, int]:
        return 80, 24

    def draw(self, lines: list[Line]) -> None:
        self.drawn.append(lines)

    def key(self, seconds: float) -> str | Click | None:
        return self._keys.pop(0) if self._keys else "q"


class Fleet:
    """A feed that has the fleet, once."""

    def __init__(self) -> None:
        self.demands: list[Demand] = []
        self._news: list[News] = [Note("hello"), refresh(ConsoleState("x"), FLEET, 100.0)]

    def want(self, demand: Demand) -> None:
        self.demands.append(demand)

    def news(self) -> Sequence[News]:
        news, self._news = self._news, []
        return news


def loop(*keys: str | Click) -> tuple[app._App, Keyboard, Fleet]:
    terminal: Any = Keyboard(*keys)
    fleet = Fleet()
    running = app._App(ConsoleState("x"), terminal, fleet)
    running.run()
    return running, terminal, fleet


def test_a_change_of_the_mode_is_one_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    """Keys that stay in a mode log nothing; what is typed is not logged."""
    with caplog.at_level(logging.DEBUG, "connmon.console"):
        running, terminal, _ = loop("down", "/", "k", "e", "enter", "?", "down", "x", "!", "esc", "q")
    assert [record.message for record in caplog.records] == [
        "mode: table -> find",
        "mode: find -> table",
        "mode: table -> help",
        "mode: help -> table",
        "mode: table -> filter out",
        "mode: filter out -> table",
        "mode: table -> ended",
    ]
    assert len(terminal.drawn) == 11
    assert repr(running).startswith("<App: view programs, mode ended, ")


def test_the_feed_is_asked_for_what_the_screen_shows() -> None:
    """After a key for a view the feed is asked for the rows of that view."""
    _, _, fleet = loop("2", "x")
    assert [demand.wants[0].by for demand in fleet.demands] == ["program", "host", "host"]


def test_no_log_line_reaches_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines for the terminal are held back while the console has it; without a terminal they go on."""
    logger = logging.getLogger("connmon.console")
    handler = logging.StreamHandler(sys.stderr)
    parent = logging.getLogger("connmon")
    parent.addHandler(handler)
    try:
        for a_terminal in (True, False):
            monkeypatch.setattr(sys.stderr, "isatty", lambda a_terminal=a_terminal: a_terminal)
            with app._no_log_lines():
                logger.error("on the screen, terminal: %s", a_terminal)
        logger.error("after the screen")
    finally:
        parent.removeHandler(handler)
    assert capsys.readouterr().err == "on the screen, terminal: False\nafter the screen\n"


def test_a_bug_of_the_feed_ends_the_loop() -> None:
    """The error that the feed met is raised by the loop."""
    with pytest.raises(ZeroDivisionError):
        app._after(ConsoleState("x"), Crash(ZeroDivisionError()))
    assert app._after(ConsoleState("x"), Silence("no node")).silence == Silence("no node")

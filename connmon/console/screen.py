"""The terminal: styled lines -> curses, curses keys -> names. The only import of curses.

- A `Screen` is a context manager: when its block ends, however it ends, the terminal is as it was before.
- A terminal that cannot show the console is a `ScreenError` before anything is drawn, so that the
  caller can fall back to plain output.
- Colour is used where the terminal has it and NO_COLOR is not set; nothing depends on it.
"""

from __future__ import annotations

import codecs
import contextlib
import curses
import locale
import os
import select
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Final, NamedTuple, TypeAlias

from connmon.console import format
from connmon.console.lines import Line, Role
from connmon.errors import UsageError

#: Five roles have a colour: where there are 8, where there are 16 (the bright ones), where there are 256.
_COLOURS: Final[Mapping[Role, tuple[int, int, int]]] = {
    "good": (curses.COLOR_GREEN, 10, 71),
    "warn": (curses.COLOR_YELLOW, 11, 178),
    "bad": (curses.COLOR_RED, 9, 203),
    "faded": (curses.COLOR_WHITE, 8, 244),
    "header": (curses.COLOR_CYAN, 14, 73),
}
_BRIGHTNESS: Final[Mapping[Role, int]] = {
    "warn": curses.A_BOLD,
    "bad": curses.A_BOLD,
    "faded": curses.A_DIM,
    "header": curses.A_REVERSE,
    "cursor": curses.A_REVERSE,
    "cursor_warn": curses.A_REVERSE | curses.A_BOLD,
    "cursor_bad": curses.A_REVERSE | curses.A_BOLD,
    "strong": curses.A_BOLD,
    "paused": curses.A_REVERSE | curses.A_BOLD,
}
#: Roles that borrow the colour of another one.
_LIKE: Final[Mapping[Role, Role]] = {"paused": "warn", "cursor_warn": "warn", "cursor_bad": "bad"}
_NAMES: Final[Mapping[int | str, str]] = {
    curses.KEY_UP: "up", curses.KEY_DOWN: "down", curses.KEY_LEFT: "left", curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "pgup", curses.KEY_NPAGE: "pgdn",
    curses.KEY_HOME: "home", curses.KEY_END: "end", curses.KEY_ENTER: "enter", "\n": "enter", "\r": "enter",
    curses.KEY_BACKSPACE: "backspace", "\b": "backspace", "\x7f": "backspace", "\x1b": "esc", "\t": "tab",
    curses.KEY_RESIZE: "resize", **{curses.KEY_F0 + number: f"f{number}" for number in range(1, 13)},
}  # fmt: skip
#: The events of the mouse that are read. Wheels are buttons 4 and 5; Python has no button 5 everywhere.
_WHEEL_DOWN: Final = int(getattr(curses, "BUTTON5_PRESSED", 0))
_MOUSE: Final = curses.BUTTON1_PRESSED | curses.BUTTON4_PRESSED | _WHEEL_DOWN

#: Milliseconds after which an Escape is the key and not the beginning of a sequence.
ESCAPE_MS: Final = 25

_Window: TypeAlias = "curses.window"


class Click(NamedTuple):
    """A press of the first mouse button, in columns and lines from 0."""

    x: int
    y: int


class ScreenError(UsageError):
    """This terminal cannot show the console."""


class TerminalGone(Exception):
    """The terminal has vanished."""


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raise ScreenError where the console cannot run: without a terminal that can move its cursor."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ScreenError("the console needs a terminal on stdin and stdout: use `connmon -b` in pipes")
    term = environ.get("TERM", "")
    if term in ("", "dumb"):
        raise ScreenError(
            f"the console cannot run with TERM={term or '(not set)'}: set TERM, or use `connmon -b`"
        )
    try:
        curses.setupterm()
    except curses.error as error:
        raise ScreenError(f"the console cannot run with TERM={term}: {error}: use `connmon -b`") from None
    if not curses.tigetstr("cup"):
        raise ScreenError(
            f"the console cannot run with TERM={term}: it cannot move its cursor: use `connmon -b`"
        )


def _set_locale() -> None:
    """Take the user's locale; if it is not installed, C.UTF-8, or else plain ASCII."""
    for name in ("", "C.UTF-8", "C"):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            return


def _known(encoding: str) -> str:
    """Return the encoding, or ASCII if Python does not know it."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return "ascii"


def _forget_stale_size() -> None:
    """Make curses ask the terminal for its size: LINES and COLUMNS may be those of another terminal."""
    with contextlib.suppress(OSError):
        if all(os.get_terminal_size(1)):
            os.environ.pop("COLUMNS", None)
            os.environ.pop("LINES", None)


class Screen:
    """The terminal while the console has it. Raises ScreenError on entry where `check` would."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._window: _Window | None = None
        self._attributes: dict[Role, int] = {"": curses.A_NORMAL}
        self._encoding = "utf-8"

    def __enter__(self) -> Screen:
        check(self._environ)
        _set_locale()
        _forget_stale_size()
        try:
            window = curses.initscr()
            self._window = window
            self._encoding = _known(window.encoding)
            curses.set_escdelay(ESCAPE_MS)
            curses.noecho()
            curses.cbreak()
            window.keypad(True)
            _hide_cursor()
            curses.mouseinterval(0)  # report a press at once, and do not wait whether it becomes a click
            curses.mousemask(_MOUSE)
            self._attributes |= _attributes(self._environ)
        except curses.error as error:
            self._restore()
            raise ScreenError(f"the console cannot use this terminal: {error}: use `connmon -b`") from None
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._restore()

    def __repr__(self) -> str:
        return f"<Screen, {self._encoding}, {'open' if self._window is not None else 'closed'}>"

    def _restore(self) -> None:
        """Give the terminal back."""
        window, self._window = self._window, None
        if window is None:
            return
        with contextlib.suppress(curses.error):  # a terminal that vanished cannot be restored
            curses.mousemask(0)
            window.keypad(False)
            curses.nocbreak()
            curses.echo()
        with contextlib.suppress(curses.error):
            curses.endwin()

    @property
    def blocks(self) -> bool:
        """Whether its encoding has block characters."""
        try:
            format.BLOCKS.encode(self._encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    def size(self) -> tuple[int, int]:
        """Return width and height."""
        assert self._window is not None
        height, width = self._window.getmaxyx()
        return width, height

    def draw(self, lines: list[Line]) -> None:
        """Show these lines and nothing else; only what differs is sent to the terminal."""
        window = self._window
        assert window is not None
        window.erase()
        for row, line in enumerate(lines):
            column: int | None = 0
            for part, role in line:
                encodable = part.encode(self._encoding, "replace").decode(self._encoding)
                try:
                    if column == 0:
                        window.addstr(row, 0, encodable, self._attributes.get(role, 0))
                    else:
                        window.addstr(encodable, self._attributes.get(role, 0))
                except curses.error:
                    # curses complains after it has written the last cell of the screen, and where the
                    # terminal has shrunk since the lines were made. Both are fine.
                    break
                column = None
        window.refresh()

    def key(self, seconds: float) -> str | Click | None:
        """Return the name of the next key, None when none came in time; "resize" when the size changed.

        The mouse is a `Click`, or "wheelup" and "wheeldown".

        Raises TerminalGone where there is no terminal any more.
        """
        window = self._window
        assert window is not None
        window.timeout(max(0, round(seconds * 1000)))
        try:
            key = window.get_wch()
        except curses.error:
            if _vanished(sys.stdin.fileno()):
                raise TerminalGone from None
            return None
        if key == curses.KEY_RESIZE:
            curses.update_lines_cols()
        if key == curses.KEY_MOUSE:
            return _mouse()
        name = _NAMES.get(key)
        if name is not None:
            return name
        return key if isinstance(key, str) and key.isprintable() else None


def _mouse() -> str | Click | None:
    try:
        _, x, y, _, pressed = curses.getmouse()
    except curses.error:  # an event that was not asked for
        return None
    if pressed & curses.BUTTON4_PRESSED:
        return "wheelup"
    if pressed & _WHEEL_DOWN:
        return "wheeldown"
    return Click(x, y)


def _hide_cursor() -> None:
    with contextlib.suppress(curses.error):  # a terminal without that shows it in the last cell
        curses.curs_set(0)


def _attributes(environ: Mapping[str, str]) -> dict[Role, int]:
    """Return what each role looks like here."""
    looks: dict[Role, int] = dict(_BRIGHTNESS)
    if environ.get("NO_COLOR") or not curses.has_colors():
        return looks
    curses.start_color()
    background = curses.COLOR_BLACK
    with contextlib.suppress(curses.error):
        curses.use_default_colors()
        background = -1
    many = 2 if curses.COLORS >= 256 else 1 if curses.COLORS >= 16 else 0
    for number, (role, colours) in enumerate(_COLOURS.items(), 1):
        curses.init_pair(number, colours[many], background)
        for same in (role, *(other for other, like in _LIKE.items() if like == role)):
            looks[same] = looks.get(same, 0) | curses.color_pair(number)
    return looks


def _vanished(descriptor: int) -> bool:
    """Whether the other end of the terminal is closed: curses cannot tell that from silence."""
    watch = select.poll()
    watch.register(descriptor, 0)
    return any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in watch.poll(0))

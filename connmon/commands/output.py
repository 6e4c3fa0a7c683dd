"""The standard streams of a command: what is written to them, and whether they are a terminal.

- Each message on stderr is one line that begins with "connmon: ", without passwords and sanitized for the
  terminal.
- Each stream may be missing, closed, full, or without a reader.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from getpass import getpass
from typing import TextIO

from connmon.errors import ConnmonError, UsageError, without_passwords
from connmon.protocol.text import printable


def write(text: str) -> None:
    """Write to stdout and flush. Raises ConnmonError where that fails, BrokenPipeError without a reader."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        let_go(sys.stdout)
        raise ConnmonError(f"the output cannot be written: {error.strerror}") from None


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal. None: the process was started without this stream."""
    return stream is not None and not stream.closed and stream.isatty()


def terminal_width() -> int | None:
    """Return the columns of stdout's terminal; None: it is no terminal."""
    if not is_terminal(sys.stdout):
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def complain(message: str) -> None:
    """Write one line to stderr."""
    if sys.stderr is not None:
        print(f"connmon: {printable(without_passwords(message))}", file=sys.stderr)


def let_go(stream: TextIO) -> None:
    """Redirect the stream to /dev/null: Python flushes it again at exit, and would print an error."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # the stream has no file descriptor
        pass


def can_show() -> bool:
    """Whether there is a terminal for the console, as far as it is known without curses."""
    if os.environ.get("TERM", "") in ("", "dumb"):
        return False
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def password_prompt() -> Callable[[str], str] | None:
    """Return `ask_password` where there is a terminal to ask on, else None."""
    return ask_password if is_terminal(sys.stdin) and is_terminal(sys.stderr) else None


def ask_password(prompt: str) -> str:
    """Ask on the terminal, without an echo. Raises UsageError where nothing is given."""
    try:
        return getpass(printable(prompt), sys.stderr)
    except EOFError:
        raise UsageError("no password given") from None

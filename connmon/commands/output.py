"""The terminal of a command, or what stands in its place: what is written to it, and what it is.

- Whatever is said on stderr is one line that begins with "connmon: ", without passwords and without
  characters that a terminal obeys.
- Each stream may be missing, closed, full, or read by nobody.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from connmon.errors import ConnmonError, UsageError, without_passwords


def write(text: str) -> None:
    """Write to stdout. Raises ConnmonError where that cannot be, BrokenPipeError where nobody reads."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        let_go(sys.stdout)
        raise ConnmonError(f"the output cannot be written: {error.strerror}") from None


def is_terminal(stream: TextIO | None) -> bool:
    """None: the process was started without this stream."""
    return stream is not None and not stream.closed and stream.isatty()


def terminal_width() -> int | None:
    """Return the cells of a line of stdout, or None where it is no terminal."""
    if not is_terminal(sys.stdout):
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def complain(message: str) -> None:
    from connmon.protocol.text import printable

    if sys.stderr is not None:
        print(f"connmon: {printable(without_passwords(message))}", file=sys.stderr)


def let_go(stream: TextIO) -> None:
    """Give the stream somewhere to write, since Python flushes it once more at exit and would complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a file of the system's
        pass


def can_show() -> bool:
    """Whether there is a terminal for the console, as far as can be told without curses."""
    if os.environ.get("TERM", "") in ("", "dumb"):
        return False
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def can_ask() -> bool:
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def ask_password(prompt: str) -> str:
    """Ask on the terminal, without an echo. Raises UsageError where nothing is given."""
    from getpass import getpass

    from connmon.protocol.text import printable

    try:
        return getpass(printable(prompt), sys.stderr)
    except EOFError:
        raise UsageError("no password given") from None

"""The errors that connmon raises on purpose.

Each message is one line with the mistake, its place, and the remedy, so that a command prints it unchanged. A
traceback is for a bug, never for one of these.
"""

from __future__ import annotations

import re
from typing import Final

_PASSWORD: Final = re.compile(r"(://[^:/?#@\s]{0,256}):\S*@")


def one_line(text: str, longest: int = 2000) -> str:
    """Return untrusted text for an error: control characters escaped, cut to `longest` characters."""
    short = text if len(text) <= longest else text[:longest] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def without_passwords(text: str) -> str:
    """Return the text with the passwords of URLs replaced by ***; in doubt more of it than less."""
    return _PASSWORD.sub(r"\1:***@", text)


class ConnmonError(Exception):
    """The base of all errors that connmon raises on purpose."""


class UsageError(ConnmonError):
    """An option, a file or an argument is wrong. Commands exit with 2."""


class ConfigError(UsageError):
    """The config file, or an option of a URL, is wrong."""


class PeerError(ConnmonError):
    """The other side of a connection is away, refuses, or violates the protocol."""


class UnreachableError(PeerError):
    """No node could be reached, or none answered in time."""


class ProtocolError(PeerError):
    """The peer sent bytes that the protocol does not allow. Only this connection is closed."""


class RefusedError(PeerError):
    """The node refused; the message is its reason."""

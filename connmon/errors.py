"""One error tree: what the caller did wrong, and what the peer did wrong.

Every message is one line that says what is wrong, where, and what to do, so that a
command can print it as it stands. A traceback is for a bug, never for one of these.
"""

from __future__ import annotations

import re
from typing import Final

_PASSWORD: Final = re.compile(r"(://[^:/?#@\s]{0,256}):\S*@")


def one_line(text: str, longest: int = 2000) -> str:
    """Return text from outside as an error may quote it: no control characters, no more than so many."""
    short = text if len(text) <= longest else text[:longest] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def without_passwords(text: str) -> str:
    """Return the text with the passwords of URLs replaced by ***; rather too much of it than too little."""
    return _PASSWORD.sub(r"\1:***@", text)


class ConnmonError(Exception):
    """Anything that connmon raises on purpose."""


class UsageError(ConnmonError):
    """The caller's side: an option, a file or an argument is wrong. Commands exit with 2."""


class ConfigError(UsageError):
    """The configuration file, or a URL option, says something that cannot be done."""


class PeerError(ConnmonError):
    """The other side of a connection: it is not there, or it does not keep the protocol."""


class UnreachableError(PeerError):
    """No node could be reached, or none answered in time."""


class ProtocolError(PeerError):
    """Bytes came that the protocol does not allow. The connection is closed, nothing else."""


class RefusedError(PeerError):
    """The node understood and said no; the message is the node's reason."""

"""How many clients the limit on open files allows.

Every client connection is an open file, like the node's own files, peer links and scrapes.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final, NamedTuple

from connmon.errors import UsageError

#: Clients at the same time, whatever the limit.
CLIENTS: Final = 20_000
#: Files reserved for everything else if the limit is at least `PLENTY_FILES`.
SPARE_FILES: Final = 128
PLENTY_FILES: Final = 1024
#: Files reserved below that limit: by the node itself, with connections accepted but not counted yet; for
#: each other node (a connection each way, and their replacements); for scrapes.
OWN_FILES: Final = 40
PEER_FILES: Final = 4
SCRAPE_FILES: Final = 32
#: A node that has no room for so many does not start.
FEWEST_CLIENTS: Final = 4

_RAISE: Final = "raise it with ulimit -n, under systemd with LimitNOFILE="


class ClientRoom(NamedTuple):
    """How many clients there is room for."""

    clients: int
    limit: int | None
    """The limit on open files, if it is the reason. None: `CLIENTS` is the limit."""

    @property
    def few(self) -> bool:
        return self.limit is not None and self.limit < PLENTY_FILES

    @property
    def reason(self) -> str:
        """Why there is no more room; "" if the limit on open files is not the reason."""
        return "" if self.limit is None else f"ulimit -n {self.limit} leaves room for no more: {_RAISE}"

    @property
    def notice(self) -> str:
        """What to log at start; "" for nothing."""
        if self.limit is None:
            return ""
        return f"open files: ulimit -n {self.limit} leaves room for {self.clients} clients; {_RAISE}"


def room(limit: int | None, peers: int = 0, scrapes: bool = False) -> ClientRoom:
    """Return the room for clients under a limit on open files (None: no limit), with `peers` other nodes.

    Raises UsageError if the limit is too low for a node.
    """
    if limit is None or limit >= CLIENTS + SPARE_FILES:
        return ClientRoom(CLIENTS, None)
    spare = SPARE_FILES
    if limit < PLENTY_FILES:
        spare = OWN_FILES + peers * PEER_FILES + scrapes * SCRAPE_FILES
    if limit - spare < FEWEST_CLIENTS:
        raise UsageError(
            f"open files: ulimit -n {limit} leaves no room for clients, "
            f"{spare + FEWEST_CLIENTS} is the least here; {_RAISE}"
        )
    return ClientRoom(limit - spare, limit)


def current_limit() -> int | None:
    """Return the process's limit on open files, None if it has none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the process's limit on open files as far as clients need it and the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CLIENTS + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

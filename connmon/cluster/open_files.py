"""The limit on open files: how many clients it leaves room for, and what to say where that is few.

Every client is an open file, and so is all else that a node has: its own files, the other nodes, scrapes.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final, NamedTuple

from connmon.errors import UsageError

#: Clients at the same time, whatever the limit.
CLIENTS: Final = 20_000
#: Files kept for anything else where the limit is `PLENTY` or more.
SPARE_FILES: Final = 128
PLENTY: Final = 1024
#: Where it is less: what the node itself opens and what is accepted before it is looked at; each other
#: node (a connection each way, and the ones that replace them); scrapes.
OWN_FILES: Final = 40
PEER_FILES: Final = 4
SCRAPE_FILES: Final = 32
#: Fewer clients than this are none.
FEWEST_CLIENTS: Final = 4

_RAISE: Final = "raise it with ulimit -n, under systemd with LimitNOFILE="


class Room(NamedTuple):
    """How many clients there is room for."""

    clients: int
    limit: int | None
    """The limit on open files, where it is that which leaves no more room. None: it is `CLIENTS`."""

    @property
    def few(self) -> bool:
        return self.limit is not None and self.limit < PLENTY

    @property
    def reason(self) -> str:
        """Why there is no more room; "" where the limit on open files is not why."""
        return "" if self.limit is None else f"ulimit -n {self.limit} leaves room for no more: {_RAISE}"

    @property
    def notice(self) -> str:
        """What to log at start; "" for nothing."""
        if self.limit is None:
            return ""
        return f"open files: ulimit -n {self.limit} leaves room for {self.clients} clients; {_RAISE}"


def room(limit: int | None, peers: int = 0, scrapes: bool = False) -> Room:
    """Return the room that a limit (None: there is none) leaves on a node with so many other nodes.

    Raises UsageError where a node cannot work with it.
    """
    if limit is None or limit >= CLIENTS + SPARE_FILES:
        return Room(CLIENTS, None)
    spare = SPARE_FILES
    if limit < PLENTY:
        spare = OWN_FILES + peers * PEER_FILES + scrapes * SCRAPE_FILES
    if limit - spare < FEWEST_CLIENTS:
        raise UsageError(
            f"open files: ulimit -n {limit} leaves no room for clients, "
            f"{spare + FEWEST_CLIENTS} is the least here; {_RAISE}"
        )
    return Room(limit - spare, limit)


def current_limit() -> int | None:
    """Return the process's limit on open files; None: there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Allow as many open files as clients need, where the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CLIENTS + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

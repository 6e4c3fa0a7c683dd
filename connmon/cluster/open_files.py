"""How many clients the limit on open files allows.

Every client connection is an open file, like the node's own files, peer links and scrapes.
"""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from typing import Final, NamedTuple

from connmon.errors import UsageError

#: The default of `OpenFileSettings.own_files`.
OWN_FILES: Final = 40


@dataclass(frozen=True)
class OpenFileSettings:
    """How many clients are accepted, and how many files are reserved for everything else."""

    most_clients: int = 20_000
    """Clients at the same time, whatever the limit on open files."""
    fewest_clients: int = 4
    """A node that has no room for so many does not start."""
    plenty_files: int = 1024
    """From this limit on `spare_files` are reserved..."""
    spare_files: int = 128
    own_files: int = OWN_FILES
    """...and below it: these for the node itself, with connections accepted but not counted yet..."""
    peer_files: int = 4
    """...these for each other node: a connection each way, and their replacements..."""
    scrape_files: int = 32
    """...and these if there are scrapes."""


SETTINGS: Final = OpenFileSettings()

_RAISE: Final = "raise it with ulimit -n, under systemd with LimitNOFILE="


class ClientRoom(NamedTuple):
    """How many clients there is room for."""

    clients: int
    limit: int | None
    """The limit on open files, if it is the reason. None: `most_clients` is the limit."""

    @property
    def few(self) -> bool:
        return self.limit is not None and self.limit < SETTINGS.plenty_files

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


def room(
    limit: int | None, peers: int = 0, scrapes: bool = False, settings: OpenFileSettings = SETTINGS
) -> ClientRoom:
    """Return the room for clients under a limit on open files (None: no limit), with `peers` other nodes.

    Raises UsageError if the limit is too low for a node.
    """
    if limit is None or limit >= settings.most_clients + settings.spare_files:
        return ClientRoom(settings.most_clients, None)
    spare = settings.spare_files
    if limit < settings.plenty_files:
        spare = settings.own_files + peers * settings.peer_files + scrapes * settings.scrape_files
    if limit - spare < settings.fewest_clients:
        raise UsageError(
            f"open files: ulimit -n {limit} leaves no room for clients, "
            f"{spare + settings.fewest_clients} is the least here; {_RAISE}"
        )
    return ClientRoom(limit - spare, limit)


def current_limit() -> int | None:
    """Return the process's limit on open files, None if it has none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_limit(settings: OpenFileSettings = SETTINGS) -> None:
    """Raise the process's limit on open files as far as clients need it and the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.most_clients + settings.spare_files
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

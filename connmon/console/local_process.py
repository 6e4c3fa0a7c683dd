"""What this host's own system says of the process on the screen, beside what the process reported.

Rules kept here:

- Only of a process on this host, and only if it is the same one: the host's name, the pid and the time of
  its start have to fit, so that a container's pid is not taken for the host's.
- Connections to the database that no pool accounts for are counted by their far ends: sockets of the
  process to the addresses of its pools' servers, less what these pools report.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from connmon import process_info
from connmon.console import format
from connmon.console.fitting import Row
from connmon.console.state import Local
from connmon.database_address import FAMILIES, servers_of


class Watch:
    """Looks at one process after the other, as the console opens them."""

    def __init__(self) -> None:
        self._host = process_info.host()
        self._addresses: dict[str, frozenset[str]] = {}
        self._instance = ""
        self._process: process_info.Watched | None = None

    def look(self, instance: str, pools: Sequence[Row]) -> Local | None:
        """Return what the system says of the process that has these pools; None where it is elsewhere."""
        row: Row = pools[0] if pools else {}
        pid = row.get("pid")
        if not isinstance(pid, int) or row.get("host") != self._host or row.get("state") != "connected":
            return None
        if instance != self._instance or self._process is None:
            self._instance, self._process = instance, process_info.Watched(pid, row.get("started_seconds"))
        servers = {server for pool in pools for server in _by_tcp(pool)}
        ends = {(address, port) for host, port in servers for address in self._resolved(host)}
        live = self._process.look(ends)
        if live is None:
            return None
        if any(pool.get("dialect") in FAMILIES and not pool.get("database_host") for pool in pools):
            # Its connections may be among the sockets, or not.
            return Local(instance, _told(live, None, 0))
        counted = sum(pool.get("connections") or 0 for pool in pools if _by_tcp(pool))
        return Local(instance, _told(live, len(servers), counted))

    def _resolved(self, host: str) -> frozenset[str]:
        """Return the addresses of a name, asked for once."""
        if host not in self._addresses:
            try:
                found: Sequence[Any] = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                found = ()
            self._addresses[host] = frozenset(str(each[4][0]).removeprefix("::ffff:") for each in found)
        return self._addresses[host]


def _by_tcp(pool: Row) -> list[tuple[str, int]]:
    """Return the servers of a pool that are reached by TCP, where their ports are known."""
    cells = {key: pool.get(key) for key in ("dialect", "database_host", "database_port")}
    found = [server for server in servers_of(cells) if not server.socket]
    return [(server.host, server.port) for server in found if server.host and server.port]


def _told(live: process_info.Live, servers: int | None, counted: int) -> str:
    """`servers`: how many its pools reach by TCP; None: not known."""
    usage = (
        f"CPU {format.percent(live.cpu_percent)}   memory {format.size(live.rss_bytes)}   "
        f"threads {format.count(live.threads)}   open files {format.count(live.open_files)}"
    )
    if servers is None:
        return f"on this host now: {usage}   TCP to the database - (the server of a pool is not known)"
    if not servers:
        return f"on this host now: {usage}   no TCP: the database is a file or a socket"
    if live.sockets is None:
        return f"on this host now: {usage}   TCP to the database - (another user's process)"
    beyond = live.sockets - counted
    how = f"{beyond} BEYOND its pools' {counted}" if beyond > 0 else "all its pools'"
    return f"on this host now: TCP to the database {live.sockets}, {how}   {usage}"

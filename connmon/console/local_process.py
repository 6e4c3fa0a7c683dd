"""What the system of this host says of the process on the screen, in addition to its reports.

- The process has to run on this host: host name, pid and start time have to match, so that the pid of a
  container is not taken for one of the host.
- Connections to the database that no pool accounts for are counted by their far ends: sockets of the
  process to the addresses of its pools' servers, minus the connections that these pools report.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from connmon import process_info
from connmon.console import format
from connmon.console.state import Local
from connmon.database_address import FAMILIES, servers_of
from connmon.protocol.document import JsonPool


class Watch:
    """Looks at one process after the other, as the console opens them."""

    def __init__(self) -> None:
        self._host = process_info.host()
        self._addresses: dict[str, frozenset[str]] = {}
        self._instance = ""
        self._process: process_info.Watched | None = None

    def __repr__(self) -> str:
        return f"<Watch of {self._instance or 'no process'}>"

    def look(self, instance: str, pools: Sequence[JsonPool]) -> Local | None:
        """Return what the system says of the process that has these pools; None if it is elsewhere."""
        if not pools:
            return None
        process = pools[0].process
        if process.pid is None or process.host != self._host or pools[0].state != "connected":
            return None
        if instance != self._instance or self._process is None:
            self._instance = instance
            self._process = process_info.Watched(process.pid, process.started_seconds)
        servers = {server for pool in pools for server in _by_tcp(pool)}
        ends = {(address, port) for host, port in servers for address in self._resolved(host)}
        live = self._process.look(ends)
        if live is None:
            return None
        if any(pool.pool.dialect in FAMILIES and not pool.pool.database_host for pool in pools):
            # Its connections may be among the sockets, or not.
            return Local(instance, _in_words(live, None, 0))
        counted = sum(pool.figures.connections or 0 for pool in pools if _by_tcp(pool))
        return Local(instance, _in_words(live, len(servers), counted))

    def _resolved(self, host: str) -> frozenset[str]:
        """Return the addresses of a name, which is resolved once."""
        if host not in self._addresses:
            try:
                infos: Sequence[Any] = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                infos = ()
            self._addresses[host] = frozenset(str(info[4][0]).removeprefix("::ffff:") for info in infos)
        return self._addresses[host]


def _by_tcp(pool: JsonPool) -> list[tuple[str, int]]:
    """Return the servers of a pool that are reached by TCP, where their ports are known."""
    where = pool.pool
    servers = servers_of(where.dialect, where.database_host, where.database_port)
    return [
        (server.host, server.port) for server in servers if not server.socket and server.host and server.port
    ]


def _in_words(live: process_info.Live, servers: int | None, counted: int) -> str:
    """`servers`: how many its pools reach by TCP, None if unknown; `counted`: connections of these pools."""
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

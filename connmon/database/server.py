"""Which database server a pool talks to, as pools, users and URLs name it. Pure: nothing is resolved.

- A server is a host and a port; the port that a pool's URL leaves out is its dialect's usual one.
- Names are compared as they are written, but for what names ignore (case, a dot at the end, how
  an IPv6 address is written). A resolver's answer on this host would say nothing about what the
  name means on the application's.
- A host that means the process's own (`localhost`, 127.0.0.1, ::1, a socket) is told apart from a
  host that has a name, because the same words mean another server on each host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from connmon.address import parse_address

#: The port that a dialect's servers usually have.
PORTS: Final[Mapping[str, int]] = {"mysql": 3306, "mariadb": 3306, "postgresql": 5432}
#: Dialects that speak to the same kind of server.
FAMILIES: Final[Mapping[str, str]] = {"mysql": "mysql", "mariadb": "mysql", "postgresql": "postgresql"}


class DatabaseServer(NamedTuple):
    """Where a database server is. The host is as `plain` makes it."""

    host: str | None
    """None: on the process's own host, reached by a socket."""
    port: int | None
    """None: any, or not known."""

    def __str__(self) -> str:
        host = "local socket" if self.host is None else self.host
        if self.port is None or self.host is None:
            return host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether these words mean the host of whoever uses them."""
        if self.host in (None, "localhost"):
            return True
        try:
            return ipaddress.ip_address(str(self.host)).is_loopback
        except ValueError:
            return False


def plain(host: str) -> str:
    """Return the host as it is compared."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.rstrip(".").casefold()


def parse_server(text: str) -> DatabaseServer:
    """Return the server written as HOST[:PORT], IPv6 in brackets. Raises ConfigError."""
    address = parse_address(text, 0)  # 0, which nobody can write: left out
    return DatabaseServer(plain(address.host), address.port or None)


def server_of(cells: Mapping[str, Any]) -> DatabaseServer:
    """Return the server of a row that has the keys of a pool."""
    host = cells["database_host"]
    port = cells["database_port"] or PORTS.get(cells["dialect"] or "")
    return DatabaseServer(None if host is None else plain(host), port)


def names(wanted: DatabaseServer, server: DatabaseServer) -> bool:
    """Whether `wanted`, which may leave the port out, names this server."""
    return wanted.host == server.host and wanted.port in (None, server.port)

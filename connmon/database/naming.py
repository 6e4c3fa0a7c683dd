"""Which reported connections are at the database server that is asked. Pure.

A process reports its server in its own words, and the words depend on the host: `localhost` on two hosts is
two servers, and one server may be `db1`, `db1.example`, 10.0.0.5 or a socket. No name is resolved: the
resolver of this host may know another address than that of the application's host.
"""

from __future__ import annotations

from typing import NamedTuple

from connmon.database.server_view import ServerView
from connmon.database_address import FAMILIES, DatabaseServer, names, plain, servers_of
from connmon.protocol.document import JsonConnection, JsonPool, PoolFields


class Naming(NamedTuple):
    """The names by which the server is known."""

    here: str
    """The name of the host on which the command runs, and on which the URL's words are meant."""
    also: tuple[DatabaseServer, ...] = ()
    """Further names that applications use for it, on whichever host they run (--database)."""
    addresses: frozenset[str] = frozenset()
    """The IP addresses of the host `here`."""

    def has(self, view: ServerView, row: JsonPool | JsonConnection) -> bool:
        """Whether the pool or connection of this row is, or may be, at the server.

        A pool that is at one of several servers is at each of them.
        """
        if family_of(row.pool) != FAMILIES[view.dialect]:
            return False
        return any(self.names(view, server, row.process.host or "") for server in pool_servers(row.pool))

    def names(self, view: ServerView, server: DatabaseServer, host: str) -> bool:
        """Whether `server`, reported by a process on `host`, is the server that is asked."""
        return (
            self._is_further_name(server)
            or self._is_url_name(view, server, host)
            or self._is_local_name_on_its_host(view, server, host)
            or self._is_listen_address(view, server)
        )

    def _is_further_name(self, server: DatabaseServer) -> bool:
        for other in self.also:
            if names(other, server):
                return True
            if other.local and server.local and not other.socket and other.port in (None, server.port):
                return True
        return False

    def _is_url_name(self, view: ServerView, server: DatabaseServer, host: str) -> bool:
        """The same words as the URL's; local words only on the same host."""
        if server.local and view.server.local:
            return same_host(host, self.here) and _same_local_server(server, view.server)
        return names(view.server, server)

    def _is_local_name_on_its_host(self, view: ServerView, server: DatabaseServer, host: str) -> bool:
        """A socket, a loopback address or an own address, on the host that the server runs on."""
        asked, listening = view.server, view.listening
        if not any(same_host(host, name) for name in self.runs_on(view)):
            return False
        port = listening.port
        if port is None and not asked.socket:
            port = asked.port
        if server.socket:
            return server in listening.sockets if listening.sockets is not None else server.port == port
        is_own = server.local or (self._is_here(view) and server.host in self.addresses)
        return server.port == port and is_own

    def _is_listen_address(self, view: ServerView, server: DatabaseServer) -> bool:
        """An address that the server listens on, or a name of its host, with its port."""
        listening = view.listening
        if server.local or listening.port is None or server.port != listening.port:
            return False
        if server.host in listening.addresses:
            return True
        hostnames = [listening.hostname, self.here if self._is_here(view) else None]
        return any(same_host(server.host or "", name) for name in hostnames if name)

    def runs_on(self, view: ServerView) -> list[str]:
        """Return the names of the host that the server runs on, as far as they are known."""
        asked, hostname = view.server, view.listening.hostname
        hosts = [hostname or ""]
        if not asked.local:
            hosts.append(asked.host or "")
        if self._is_here(view):
            hosts.append(self.here)
        return [name for name in hosts if name]

    def _is_here(self, view: ServerView) -> bool:
        """Whether the server surely runs on this host; not behind a forwarded port (container, ssh)."""
        asked, listening = view.server, view.listening
        if not asked.local and asked.host not in self.addresses:
            return False
        if listening.hostname is not None and not same_host(listening.hostname, self.here):
            return False
        if asked.socket:
            return listening.sockets is not None and asked in listening.sockets
        if listening.port != asked.port:
            return False
        if (reached := listening.reached) is not None:
            return reached.port == asked.port and reached.host in (self.addresses | {asked.host})
        return listening.hostname is not None


def family_of(pool: PoolFields) -> str | None:
    """Return the family of servers that the pool's dialect speaks to. None: one that is not supported."""
    return FAMILIES.get(pool.dialect or "")


def pool_servers(pool: PoolFields) -> tuple[DatabaseServer, ...]:
    """Return the servers of the pool, in comparable form; none: not known."""
    return servers_of(pool.dialect, pool.database_host, pool.database_port)


def _same_local_server(one: DatabaseServer, other: DatabaseServer) -> bool:
    """Whether two local names, used on one host, mean the same server."""
    return one == other if one.socket or other.socket else one.port == other.port


def same_host(one: str, other: str) -> bool:
    """Whether two host names, with or without their domains, can mean the same host."""
    a, b = plain(one), plain(other)
    if a == b:
        return True
    same_label = a.partition(".")[0] == b.partition(".")[0] and not a.replace(".", "").isdigit()
    return same_label and ("." not in a or "." not in b) and ":" not in a + b

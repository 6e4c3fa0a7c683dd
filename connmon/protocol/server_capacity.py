"""What database servers take, against what all pools in them may open and have open. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from connmon.database_address import DatabaseServer, plain

Maxima: TypeAlias = Mapping[tuple[str, "int | None"], int]
"""How many connections database servers take, by host and port; port None: that host, any port."""


class ServerLoad(NamedTuple):
    """One database server whose maximum is known."""

    server: DatabaseServer
    most: int
    """How many connections it takes."""
    capacity: int | None
    """What all pools in it may open together. None: one has no limit, or no pool is counted."""
    connections: int
    """What they have open."""


class ServerLoads:
    """The sums over all databases on each server; a database on several servers counts fully on each."""

    def __init__(self, maxima: Maxima) -> None:
        self._maxima = {(plain(host), port): most for (host, port), most in maxima.items()}
        self._capacities: dict[DatabaseServer, int | None] = {}
        self._connections: dict[DatabaseServer, int] = {}

    def add(self, servers: tuple[DatabaseServer, ...], capacity: int | None, connections: int = 0) -> None:
        """Add one database, with its servers as they are compared. Capacity None: no limit."""
        for server in servers:
            before = self._capacities.get(server, 0)
            self._capacities[server] = None if before is None or capacity is None else before + capacity
            self._connections[server] = self._connections.get(server, 0) + connections

    def tightest(self, servers: tuple[DatabaseServer, ...]) -> ServerLoad | None:
        """Return the load of the server that takes fewest connections; None: no maximum is known.

        Each of several servers may get all of the pools' connections.
        """
        known: list[tuple[int, DatabaseServer]] = []
        for server in servers:
            host = str(server.host)
            most = self._maxima.get((host, server.port), self._maxima.get((host, None)))
            if most is not None:
                known.append((most, server))
        if not known:
            return None
        most, server = min(known, key=itemgetter(0))
        return ServerLoad(server, most, self._capacities.get(server), self._connections.get(server, 0))

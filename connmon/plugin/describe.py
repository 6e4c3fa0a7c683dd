"""At which server the connections of one pool are, and their session ids there. Pure: the driver is asked.

- What a driver says of its own connection wins. The URL's words stand where the driver says the same (pg8000
  knows an address only), where it says nothing, and until the first connection is made.
- A pool whose connections are at several servers is reported at all that it was ever seen at; each connection
  is at one. A pool whose connections are in several databases is reported in none.
- A session id that the server cannot have was made up by a pooler. Then no session id of that pool's
  connections to the same place is taken for the server's, since a pooler's ids sometimes look possible.
- A session id is read again where the driver may have reconnected since: while the connection is held, and
  once after. Another id is another session, so the connection's age starts again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from connmon.database_address import UNKNOWN, DatabaseServer, comparable, joined, servers_of
from connmon.drivers import ConnectedServer, Driver
from connmon.protocol.reports import PoolInfo, ServerAddress

#: A pool that was seen at more servers is reported at none; its connections still are.
MOST_SERVERS: Final = 16
#: The longest server name, or list of them, that is reported; and the longest database name.
SERVER_CHARACTERS: Final = 256
DATABASE_CHARACTERS: Final = 2048


class Located(Protocol):
    """What is known of a connection; see `pool_account.Entry`."""

    server_id: int | None
    server: DatabaseServer | None
    driver_ref: Any
    session_read_at: int
    checkouts: int
    since: float
    opened: float


class Location:
    """What one pool's connections have connected."""

    __slots__ = ("_ask", "_databases", "_seen", "_single", "_url", "at", "poolers")

    def __init__(self, info: PoolInfo, ask: Callable[[Any], int | None]) -> None:
        """`info` has the URL's words; `ask` returns a connection's session id, and usually is a `Driver`."""
        self._ask = ask
        self._url: Final = servers_of(info.dialect, info.database_host, info.database_port)
        self._single: DatabaseServer | None = None
        """The URL's server as it is written there, if it is just one."""
        if len(self._url) == 1:
            self._single = DatabaseServer(info.database_host, info.database_port)
        self._seen: dict[DatabaseServer, DatabaseServer] = {}
        self.poolers: dict[DatabaseServer, None] = {}
        """Where session ids are not the server's."""
        self.at: DatabaseServer | None = None
        """The one server that `described` returned last: the same object as in the pool's entries."""
        self._databases: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<Location: {len(self._seen)} servers, {len(self._databases)} databases>"

    def meet(self, entry: Located, connection: Any) -> None:
        """Ask a driver connection that was just made or found. May raise what the driver raises."""
        ask = self._ask
        if not isinstance(ask, Driver):
            entry.server_id = ask(connection)
            return
        self._place(entry, ask.server(connection))
        self._number(entry, ask, ask.session(connection))
        entry.session_read_at = entry.checkouts
        if ask.reconnects:
            try:
                entry.driver_ref = weakref.ref(connection)
            except TypeError:
                pass  # the id of the connect stays

    def read_session_again(self, entry: Located, now: float) -> None:
        """Read the session id again where it may have changed. For the reporter's thread.

        It refers to the connection for that moment only; a pool or a holder has it.
        """
        ask, held, checkouts = self._ask, entry.since, entry.checkouts
        if (
            entry.driver_ref is None
            or not isinstance(ask, Driver)
            or not (held or entry.session_read_at != checkouts)
        ):
            return
        connection = entry.driver_ref()
        if connection is None:
            return
        # Held, it may change until its checkin, and is read once more then.
        entry.session_read_at = -1 if held else checkouts
        number = ask.session(connection)
        if number == entry.server_id:
            return
        if number is not None:
            entry.opened = now
            if ask.moves:
                self._place(entry, ask.server(connection))
        self._number(entry, ask, number)

    def _number(self, entry: Located, ask: Driver, number: int | None) -> None:
        if not ask.can_be(number):
            if len(self.poolers) <= MOST_SERVERS:
                self.poolers[comparable(entry.server or UNKNOWN)] = None
            number = None
        entry.server_id = number

    def _place(self, entry: Located, connected: ConnectedServer) -> None:
        server, single = connected.server, self._single
        if server.host is None or len(server.host) > SERVER_CHARACTERS:
            server = single or UNKNOWN
        elif single is not None and (
            server == single
            or comparable(server) == comparable(single)
            or (not connected.named and server.port == single.port and not (server.socket or single.socket))
        ):
            server = single
        if server.host is not None and len(self._seen) <= MOST_SERVERS:
            server = self._seen.setdefault(server, server)
        if connected.database is not None and len(self._databases) < 2:
            self._databases[connected.database[:DATABASE_CHARACTERS]] = None
        entry.server = server

    # --- What is reported

    def session_of(self, entry: Located) -> int | None:
        """Return the session id of a connection; None where it is not the server's."""
        if self.poolers and comparable(entry.server or UNKNOWN) in self.poolers:
            return None
        return entry.server_id

    def address_of(self, entry: Located, info: PoolInfo) -> ServerAddress | None:
        """Return the server of a connection. None: its pool's."""
        server = entry.server
        if server is None:  # not asked yet
            server = self._single or UNKNOWN
        if server == (info.database_host, info.database_port):
            return None
        return ServerAddress(*server)

    def described(self, info: PoolInfo) -> PoolInfo:
        """Return `info` with what is known of the server by now; the same object where that is the same."""
        host, port = info.database_host, info.database_port
        seen = tuple(self._seen)
        if seen and len(self._url) < 2:  # a URL's list stands
            self.at = None
            if len(seen) == 1:
                host, port = self.at = seen[0]
            else:
                host, port = joined(sorted(seen, key=str)), None
                if len(seen) > MOST_SERVERS or len(host) > SERVER_CHARACTERS:
                    host = None
        pooler = True if self.poolers else None
        database, databases = info.database, tuple(self._databases)
        if databases:
            database = databases[0] if len(databases) == 1 else None
        known = (info.database_host, info.database_port, info.database, info.pooler)
        if (host, port, database, pooler) == known:
            return info
        return msgspec.structs.replace(
            info, database_host=host, database_port=port, database=database, pooler=pooler
        )

"""What a driver's connection says of itself: the server's session id, and where it is connected.

- Nothing is sent to the server: these are attributes, and for mysqlclient the name of the socket's far end.
- Nothing raises; what a driver does not say is None. A driver that is not in the table says nothing.
- Another thread may ask for the session id again where `reconnects`: those drivers answer from an attribute.
  Where the server is, only the thread that has the connection asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.database_address import FAMILIES, LARGEST_BACKEND_ID, UNKNOWN, DatabaseServer, of_socket
from connmon.interrupts import interrupted
from connmon.protocol.values import LARGEST


class ConnectedServer(NamedTuple):
    """Where a connection is connected."""

    server: DatabaseServer
    named: bool = True
    """False: the host is the far end's address, for which the application may have a name."""
    database: str | None = None
    """The database of the connect. None: the driver does not say, or it connected to none."""


_NOTHING: Final = ConnectedServer(UNKNOWN)
Ask: TypeAlias = Callable[[Any], Any]


class _DriverCalls(NamedTuple):
    session: Ask
    server: Callable[[Any], ConnectedServer]
    reconnects: bool = False
    """Whether it can reconnect within the same object (ping(reconnect=True), reconnect())."""
    moves: bool = True
    """Whether its attributes say where a reconnect has led."""


class Driver:
    """Asks the connections of a driver. A call returns the session id, if it can be the server's."""

    __slots__ = ("_driver", "family")

    def __init__(self, dialect: str, driver: str) -> None:
        self.family: Final = FAMILIES.get(dialect)
        self._driver = _DRIVERS.get(driver)

    @property
    def reconnects(self) -> bool:
        return self._driver is not None and self._driver.reconnects

    @property
    def moves(self) -> bool:
        return self._driver is not None and self._driver.moves

    def __call__(self, connection: Any) -> int | None:
        number = self.session(connection)
        return number if self.can_be(number) else None

    def session(self, connection: Any) -> int | None:
        """Return the session id as the driver has it. None: it has none."""
        if self._driver is None or connection is None:
            return None
        try:
            number = int(self._driver.session(connection))
            return number if 0 < abs(number) <= LARGEST else None
        except Exception as error:
            if interrupted(error, in_driver=True):
                raise
            return None

    def can_be(self, number: int | None) -> bool:
        """Return whether a server of this kind can have this session id. If not, a pooler has made it up."""
        if number is None:
            return True
        return 0 < number <= LARGEST_BACKEND_ID if self.family == "postgresql" else number > 0

    def server(self, connection: Any) -> ConnectedServer:
        """Return where it is connected."""
        if self._driver is None or connection is None:
            return _NOTHING
        try:
            return self._driver.server(connection)
        except Exception as error:
            if interrupted(error, in_driver=True):
                raise
            return _NOTHING


# --- The drivers ----------------------------------------------------------------------------


def _server_at(host: Any, port: Any) -> ConnectedServer:
    """Return the server at this host and port, as a driver names them. A MySQL socket has no port."""
    if not isinstance(host, (str, bytes)) or not host:
        return _NOTHING
    number = int(port) if port not in (None, "") else 0
    return ConnectedServer(DatabaseServer(_text(host), number if 0 < number < 65536 else None))


def _in(server: ConnectedServer, database: Any) -> ConnectedServer:
    """Return the same server with the database's name."""
    if not isinstance(database, (str, bytes)) or not database:
        return server
    return server._replace(database=_text(database))


def _text(name: str | bytes) -> str:
    """Return a name as a report can have it: bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _peer(name: Any, family: str) -> ConnectedServer:
    """Return the server at a socket's far end, as getpeername() names it."""
    if isinstance(name, (str, bytes)):
        path = _text(name)
        return ConnectedServer(of_socket(family, path)) if path else _NOTHING
    return ConnectedServer(DatabaseServer(str(name[0]).removeprefix("::ffff:"), int(name[1])), False)


def _thread_id(connection: Any) -> Any:
    return connection.thread_id()


def _pymysql(connection: Any) -> ConnectedServer:
    """PyMySQL, CyMySQL, and the asyncio drivers derived from them."""

    def get(name: str) -> Any:
        value = getattr(connection, name, None)
        return getattr(connection, f"_{name}", None) if value is None else value

    if get("host_info") == "Not connected":  # it was given a socket, and has no name for the server
        server = _peer(connection._sock.getpeername(), "mysql")
    elif get("unix_socket"):
        server = _server_at(get("unix_socket"), None)
    else:
        server = _server_at(get("host"), get("port"))
    return _in(server, get("db"))


def _mysqldb(connection: Any) -> ConnectedServer:
    host, via, how = connection.get_host_info().partition(" via ")
    if via and how.startswith("TCP"):
        return _server_at(host, connection.port)
    if via and "socket" in how:
        return _peer(_name_of_far_end(connection.fileno()), "mysql")
    return _NOTHING


def _name_of_far_end(descriptor: int) -> Any:
    """Return getpeername() of the driver's descriptor, without changing the descriptor."""
    # The C class, which eventlet and gevent leave alone. A default timeout would have it change the mode.
    import _socket

    blocking = os.get_blocking(descriptor)
    sock = _socket.socket(fileno=descriptor)
    try:
        return sock.getpeername()
    finally:
        sock.detach()  # else its end would close the driver's descriptor
        if os.get_blocking(descriptor) != blocking:
            os.set_blocking(descriptor, blocking)


def _mysqlconnector(connection: Any) -> ConnectedServer:
    if connection.unix_socket:
        server = _server_at(connection.unix_socket, None)
    else:
        server = _server_at(connection.server_host, connection.server_port)
    return _in(server, getattr(connection, "_database", None))  # its property asks the server


def _mariadb(connection: Any) -> ConnectedServer:
    if connection.unix_socket:
        return _server_at(connection.unix_socket, None)
    return _server_at(connection.server_name, connection.server_port)


def _libpq(connection: Any) -> ConnectedServer:
    info = connection.info
    return _in(
        _server_at(info.host or getattr(info, "hostaddr", None), info.port), getattr(info, "dbname", None)
    )


def _asyncpg(connection: Any) -> ConnectedServer:
    address = connection._addr  # as it was asked for; nothing public has it
    server = _peer(address, "postgresql") if isinstance(address, str) else _server_at(*address[:2])
    return _in(server, getattr(getattr(connection, "_params", None), "database", None))


def _pg8000(connection: Any) -> ConnectedServer:
    return _peer(connection._usock.getpeername(), "postgresql")


def _pg8000_session(connection: Any) -> Any:
    # Process id and cancel key, as the server sent them; pg8000 offers nothing public.
    return int.from_bytes(connection._backend_key_data[:4], "big")


_DRIVERS: Final[Mapping[str, _DriverCalls]] = {
    "pymysql": _DriverCalls(_thread_id, _pymysql, True),
    "cymysql": _DriverCalls(_thread_id, _pymysql, True),
    "aiomysql": _DriverCalls(_thread_id, _pymysql, True),
    "asyncmy": _DriverCalls(_thread_id, _pymysql, True),
    "mysqldb": _DriverCalls(_thread_id, _mysqldb, True, False),
    "mysqlconnector": _DriverCalls(lambda connection: connection.connection_id, _mysqlconnector, True),
    "mariadbconnector": _DriverCalls(lambda connection: connection.connection_id, _mariadb, True),
    "psycopg2": _DriverCalls(lambda connection: connection.get_backend_pid(), _libpq),
    "psycopg2cffi": _DriverCalls(lambda connection: connection.get_backend_pid(), _libpq),
    "psycopg": _DriverCalls(lambda connection: connection.info.backend_pid, _libpq),
    "psycopg_async": _DriverCalls(lambda connection: connection.info.backend_pid, _libpq),
    "asyncpg": _DriverCalls(lambda connection: connection.get_server_pid(), _asyncpg),
    "pg8000": _DriverCalls(_pg8000_session, _pg8000),
}
"""By the dialect's driver."""

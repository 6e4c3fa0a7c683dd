"""What a driver's connection says of itself: the server's session id, and where it is connected.

Rules kept here:

- Nothing is sent: these are attributes, and for mysqlclient the name of the socket's far end.
- Nothing raises; what a driver does not say is None. A driver that is not in the table says nothing.
- The session id may be asked for again by another thread, where `reconnects`: those drivers answer from
  an attribute. Where the server is, is asked by the thread that has the connection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.database_address import FAMILIES, LARGEST_BACKEND, UNKNOWN, DatabaseServer, of_socket
from connmon.interrupts import interrupted
from connmon.protocol.values import LARGEST


class Said(NamedTuple):
    """Where a connection is connected."""

    server: DatabaseServer
    named: bool = True
    """False: the host is the address of the far end, for which the application may have a name."""
    database: str | None = None
    """Which it was connected to. None: the driver does not say, or none."""


_NOTHING: Final = Said(UNKNOWN)
Ask: TypeAlias = Callable[[Any], Any]


class _Driver(NamedTuple):
    session: Ask
    server: Callable[[Any], Said]
    reconnects: bool = False
    """Whether it can connect again within the same object (ping(reconnect=True), reconnect())."""
    moves: bool = True
    """Whether it tells by attributes alone where that has led."""


class Driver:
    """Asks the connections of a dialect's driver. Called: the session id, if it can be the server's."""

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
        """Whether a server of this kind can have such a session. If not, a pooler has made the id up."""
        if number is None:
            return True
        return 0 < number <= LARGEST_BACKEND if self.family == "postgresql" else number > 0

    def server(self, connection: Any) -> Said:
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


def _said(host: Any, port: Any) -> Said:
    """Return the server that a driver names; the port of a MySQL socket is none."""
    if not isinstance(host, (str, bytes)) or not host:
        return _NOTHING
    number = int(port) if port not in (None, "") else 0
    return Said(DatabaseServer(_text(host), number if 0 < number < 65536 else None))


def _in(said: Said, database: Any) -> Said:
    """Return the same with the database's name."""
    if not isinstance(database, (str, bytes)) or not database:
        return said
    return said._replace(database=_text(database))


def _text(name: str | bytes) -> str:
    """Return a name as a report can take it: without bytes that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def _peer(name: Any, family: str) -> Said:
    """Return the server at a socket's far end, as getpeername() names it."""
    if isinstance(name, (str, bytes)):
        path = _text(name)
        return Said(of_socket(family, path)) if path else _NOTHING
    return Said(DatabaseServer(str(name[0]).removeprefix("::ffff:"), int(name[1])), False)


def _thread_id(connection: Any) -> Any:
    return connection.thread_id()


def _pymysql(connection: Any) -> Said:
    """PyMySQL, CyMySQL and the drivers for asyncio that are made of it."""

    def get(name: str) -> Any:
        value = getattr(connection, name, None)
        return getattr(connection, f"_{name}", None) if value is None else value

    if get("host_info") == "Not connected":  # by a socket that it was given: it has no name for the server
        said = _peer(connection._sock.getpeername(), "mysql")
    elif get("unix_socket"):
        said = _said(get("unix_socket"), None)
    else:
        said = _said(get("host"), get("port"))
    return _in(said, get("db"))


def _mysqldb(connection: Any) -> Said:
    host, via, how = connection.get_host_info().partition(" via ")
    if via and how.startswith("TCP"):
        return _said(host, connection.port)
    if via and "socket" in how:
        return _peer(_name_of_far_end(connection.fileno()), "mysql")
    return _NOTHING


def _name_of_far_end(descriptor: int) -> Any:
    """Return what getpeername() says of a descriptor that is the driver's, and stays as it is."""
    # The C class, which eventlet and gevent leave alone. A default timeout would have it change the mode.
    import _socket

    blocking = os.get_blocking(descriptor)
    sock = _socket.socket(fileno=descriptor)
    try:
        return sock.getpeername()
    finally:
        sock.detach()  # without which its end would close the driver's
        if os.get_blocking(descriptor) != blocking:
            os.set_blocking(descriptor, blocking)


def _mysqlconnector(connection: Any) -> Said:
    if connection.unix_socket:
        said = _said(connection.unix_socket, None)
    else:
        said = _said(connection.server_host, connection.server_port)
    return _in(said, getattr(connection, "_database", None))  # its property asks the server


def _mariadb(connection: Any) -> Said:
    if connection.unix_socket:
        return _said(connection.unix_socket, None)
    return _said(connection.server_name, connection.server_port)


def _libpq(connection: Any) -> Said:
    info = connection.info
    return _in(_said(info.host or getattr(info, "hostaddr", None), info.port), getattr(info, "dbname", None))


def _asyncpg(connection: Any) -> Said:
    address = connection._addr  # as it was asked for; there is nothing public
    said = _peer(address, "postgresql") if isinstance(address, str) else _said(*address[:2])
    return _in(said, getattr(getattr(connection, "_params", None), "database", None))


def _pg8000(connection: Any) -> Said:
    return _peer(connection._usock.getpeername(), "postgresql")


def _pg8000_session(connection: Any) -> Any:
    # Process id and cancel key, as the server sent them; pg8000 offers nothing public.
    return int.from_bytes(connection._backend_key_data[:4], "big")


_DRIVERS: Final[Mapping[str, _Driver]] = {
    "pymysql": _Driver(_thread_id, _pymysql, True),
    "cymysql": _Driver(_thread_id, _pymysql, True),
    "aiomysql": _Driver(_thread_id, _pymysql, True),
    "asyncmy": _Driver(_thread_id, _pymysql, True),
    "mysqldb": _Driver(_thread_id, _mysqldb, True, False),
    "mysqlconnector": _Driver(lambda connection: connection.connection_id, _mysqlconnector, True),
    "mariadbconnector": _Driver(lambda connection: connection.connection_id, _mariadb, True),
    "psycopg2": _Driver(lambda connection: connection.get_backend_pid(), _libpq),
    "psycopg2cffi": _Driver(lambda connection: connection.get_backend_pid(), _libpq),
    "psycopg": _Driver(lambda connection: connection.info.backend_pid, _libpq),
    "psycopg_async": _Driver(lambda connection: connection.info.backend_pid, _libpq),
    "asyncpg": _Driver(lambda connection: connection.get_server_pid(), _asyncpg),
    "pg8000": _Driver(_pg8000_session, _pg8000),
}
"""By the dialect's driver."""

"""Asks a MySQL, MariaDB or PostgreSQL server for its sessions: the only talk with one, read only.

- It runs in the terminal's process, never in an application or a node.
- The URL may be an application's own: what connmon adds to it is taken off, so that asking is not
  reported itself, and an asynchronous driver gives way to one that is there.
- The password is the URL's, else that of ~/.my.cnf or ~/.pgpass, else the terminal is asked for
  it where the server wants one. It is part of no message and of no repr().
- A server that does not answer is given up after `LIMIT` seconds, wherever the driver hangs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from connmon.database import locks
from connmon.database.crowded import hint
from connmon.database.locks import Locks, Unseen
from connmon.database.passwords import from_my_cnf, from_pgpass
from connmon.database.server_view import Listening, ServerView, Session
from connmon.database_address import (
    FAMILIES,
    PORTS,
    UNKNOWN,
    DatabaseServer,
    comparable,
    decides_elsewhere,
    of_socket,
    plain,
    servers_in_url,
)
from connmon.drivers import Driver
from connmon.errors import ConnmonError, UnreachableError, UsageError, one_line

T = TypeVar("T")

_UNHEARD: Final = logging.NullHandler()

#: Seconds for connecting, and for each look.
LIMIT: Final = 10.0
#: Seconds that a driver itself has for connecting, where it takes such a limit.
CONNECT: Final = 5

#: Seconds that a server has for ending the session in good order.
GOODBYE: Final = 1.0

#: Drivers that wait, by the kind of server, the best known first.
DRIVERS: Final[Mapping[str, tuple[str, ...]]] = {
    "mysql": ("pymysql", "mysqldb", "mysqlconnector"),
    "postgresql": ("psycopg", "psycopg2", "pg8000"),
}
_LIMITS: Final[Mapping[str, dict[str, Any]]] = {
    "pymysql": {"connect_timeout": CONNECT, "read_timeout": LIMIT},
    "mysqldb": {"connect_timeout": CONNECT, "read_timeout": int(LIMIT)},
    "mysqlconnector": {"connection_timeout": CONNECT},
    "psycopg": {"connect_timeout": CONNECT},
    "psycopg2": {"connect_timeout": CONNECT},
    "pg8000": {"timeout": LIMIT},
}
#: MySQL's errors for a login that was not accepted: wrong password, or none where one is wanted.
_DENIED: Final = (1045, 1698)


def parse_url(given: str) -> URL:
    """Return the URL of a database server. Raises UsageError, with nothing of the URL in it."""
    expected = (
        "expected DIALECT://USER@HOST:PORT/DATABASE with DIALECT mysql, mariadb or postgresql; "
        "special characters of the password written as in applications' URLs: @ as %40, / as %2F, : as %3A"
    )
    # More than one "@" means that part of a password would be taken for a host, and shown.
    if given.partition("?")[0].count("@") > 1 or not given.isprintable():
        raise UsageError(f"URL: not to be understood; {expected}")
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise UsageError(f"URL: not to be understood; {expected}") from None
    if url.get_backend_name() not in FAMILIES:
        raise UsageError(f"URL: this dialect has no server to ask; {expected}")
    query = {key: value for key, value in url.query.items() if not key.startswith("connmon_")}
    plugins = query.pop("plugin", ())
    others = [each for each in ([plugins] if isinstance(plugins, str) else plugins) if each != "connmon"]
    if others:
        query["plugin"] = tuple(others)
    return url.set(drivername=url.drivername.replace("_connmon", "").replace("+connmon", ""), query=query)


def server_of_url(url: URL, environ: Mapping[str, str] = os.environ) -> DatabaseServer:
    """Return the server that the URL names, as it is compared: of several the first, of none the usual one.

    Once connected, `DatabaseSessions.server` is the real one.
    """
    servers = _servers_of_url(url, environ)
    if servers:
        return comparable(servers[0])
    dialect = url.get_backend_name()
    by_environment = FAMILIES[dialect] == "postgresql"
    if decides_elsewhere(url.query) or (by_environment and environ.get("PGSERVICE")):
        return UNKNOWN
    host, port = url.host, url.port
    if by_environment:
        host, port = host or environ.get("PGHOST"), port or _port(environ.get("PGPORT"))
    return DatabaseServer(plain((host or "localhost").partition(",")[0]), port or PORTS[dialect])


def _servers_of_url(url: URL, environ: Mapping[str, str]) -> tuple[DatabaseServer, ...]:
    # Without one in it, the first that is installed, which reads the environment.
    driver = url.get_driver_name() if "+" in url.drivername else DRIVERS[FAMILIES[url.get_backend_name()]][0]
    return servers_in_url(url.get_backend_name(), driver, url.host, url.port, url.query, environ)


def _port(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


class DatabaseSessions:
    """One session with a database server; `look` asks it for all others. Close it."""

    def __init__(self, url: URL, ask_password: Callable[[str], str] | None = None) -> None:
        """Connect. `ask_password` is given a prompt; None: nobody can be asked.

        Raises UsageError where no driver is there or nobody may log in so, UnreachableError
        where no server answers.
        """
        self.server = server_of_url(url)
        self._family = FAMILIES[url.get_backend_name()]
        self._engine: Engine | None = None
        self._waits = False
        """A thread has not come back from the driver."""
        self._connection: Connection | None = None
        # What SQLAlchemy has to say of a connection that broke is said in one line by the error.
        logging.getLogger("sqlalchemy").addHandler(_UNHEARD)
        url = with_password(_with_driver(url, self._family), self.server)
        try:
            self._connect(url)
        except _Denied as denied:
            if url.password is not None or ask_password is None:
                raise UsageError(
                    f"{denied} (the password is the URL's, or that of ~/.my.cnf or ~/.pgpass, or a terminal "
                    "is asked for it)"
                ) from None
            url = url.set(password=ask_password(f"Password of {url.username or ''} at {self.server}: "))
            try:
                self._connect(url)
            except _Denied as again:
                raise UsageError(str(again)) from None

    def _connect(self, url: URL) -> None:
        driver = url.get_driver_name()
        arguments = dict(_LIMITS.get(driver, {}))
        if driver == "pymysql" and url.password:
            # It would make Latin-1 of a text; the servers' own clients send what a terminal does.
            arguments["password"] = str(url.password).encode()

        def connect() -> Connection:
            engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
            self._engine = engine
            return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

        self._connection = self._within(connect, url)
        self._url = url
        self.server = self._connected_to(driver)

    def _connected_to(self, driver: str) -> DatabaseServer:
        """Return the server that the driver says; by the URL's name, where it knows an address only."""
        assert self._connection is not None
        dialect = self._connection.engine.dialect
        said = Driver(dialect.name, driver).server(self._connection.connection.driver_connection)
        server = comparable(said.server)
        if server.host is None or (not said.named and server.port == self.server.port and not server.socket):
            return self.server
        return server

    def look(self) -> ServerView:
        """Return what the server says now. Raises UnreachableError and UsageError."""
        connection = self._connection
        if connection is None:
            raise UnreachableError(f"{self.server}: the connection is closed")
        how = _look_mysql if self._family == "mysql" else _look_postgresql
        return self._within(lambda: how(connection, self._url.get_backend_name(), self.server), self._url)

    def locks(self, view: ServerView, session: int | None = None, down: bool = False) -> Locks:
        """Return who waits for whose lock now, as far as the account may see it; `view` is a look before.

        `session`: only the waits of this one and of those that block it, and so whatever the limits of rows
        leave out of all; `down`: the waits for this one and for those that wait for it.
        Never raises for what the server says or does not: see `Locks.problem`.
        """
        connection, url = self._connection, self._url
        if connection is None:
            return Locks(problem="the connection is closed", partial=True)

        def query(statement: str) -> list[Any]:
            try:
                return _rows(connection, statement)
            except DBAPIError as error:
                raise Unseen(_said(error, url)) from None

        def look() -> Locks:
            if self._family == "mysql":
                return locks.mysql(query, view.version, session, down)
            # The time limit ends with the transaction: behind a pooler the session is not ours alone.
            query("BEGIN READ ONLY")
            try:
                query(f"SET LOCAL statement_timeout = {locks.SECONDS * 1000}")
                return locks.postgresql(query, session, down)
            finally:
                query("ROLLBACK")

        try:
            return self._within(look, url)
        except ConnmonError as error:
            return Locks(problem=f"which session blocks which is not seen: {error}", partial=True)

    def close(self) -> None:
        """End the session; a server that does not answer is left alone, as is a driver that still waits."""
        if self._waits:
            return
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None

        def close() -> None:
            if connection is not None:
                connection.close()
            if engine is not None:
                engine.dispose()

        thread = threading.Thread(target=_silently(close), name="close-database", daemon=True)
        thread.start()
        thread.join(GOODBYE)

    def __enter__(self) -> DatabaseSessions:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _within(self, call: Callable[[], T], url: URL) -> T:
        """Return what it returns; it has `LIMIT` seconds, after which it is left alone."""
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=run, name="ask-database", daemon=True).start()
        if not done.wait(LIMIT):
            self._waits = True
            raise UnreachableError(f"{self.server}: no answer within {LIMIT:g} s")
        if not errors:
            return results[0]
        error = errors[0]
        if isinstance(error, ConnmonError):
            raise error
        said = _said(error, url)
        message = f"{self.server}: {said}{hint(_code(error), said)}"
        if _denied(error):
            raise _Denied(message)
        if isinstance(error, (SQLAlchemyError, OSError)):
            raise UnreachableError(message)
        raise UsageError(f"{message} ({type(error).__name__} of the driver {url.get_driver_name()})")


class _Denied(ConnmonError):
    """The server did not accept the login."""


def _silently(call: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with contextlib.suppress(Exception):  # the process ends anyway
            call()

    return run


def _said(error: BaseException, url: URL) -> str:
    """Return what the server or the driver said, in one line, without the password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    arguments = [each for each in cause.args if isinstance(each, str)]
    said = " ".join((arguments[-1] if arguments else str(cause)).split()) or type(cause).__name__
    if url.password:
        for form in (url.password, url.render_as_string(hide_password=False).partition("@")[0]):
            said = said.replace(str(form), "***")
    return one_line(said, 500)


def _code(error: BaseException) -> object:
    """Return MySQL's number or PostgreSQL's SQLSTATE of the error, None where the driver does not say."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if cause.args and isinstance(cause.args[0], dict):  # pg8000
        return cause.args[0].get("C")
    if cause.args and isinstance(cause.args[0], int):
        return cause.args[0]
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def _denied(error: BaseException) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if cause is None:
        return False
    if cause.args and cause.args[0] in _DENIED:
        return True
    code = getattr(cause, "errno", None) or getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code in (*_DENIED, "28P01", "28000") or "password" in str(cause).lower()


# --- The URL ------------------------------------------------------------------------------


def _with_driver(url: URL, family: str) -> URL:
    """Return the URL with a driver that waits and is installed: its own, where that is so."""
    own = url.get_driver_name() if "+" in url.drivername else ""
    candidates = dict.fromkeys([*([own] if own in DRIVERS[family] else []), *DRIVERS[family]])
    for driver in candidates:
        changed = url.set(drivername=f"{url.get_backend_name()}+{driver}")
        try:
            changed.get_dialect().import_dbapi()
        except (ImportError, SQLAlchemyError):
            continue
        if own == "asyncpg" and "ssl" in url.query and driver != own:
            # The same words, for which libpq has another name: never less closed than was asked for.
            query = {("sslmode" if key == "ssl" else key): value for key, value in url.query.items()}
            changed = changed.set(query=query)
        return changed
    package = {"mysql": "PyMySQL", "postgresql": "psycopg[binary]"}[family]
    raise UsageError(f"no driver for {url.get_backend_name()} is installed here; pip install '{package}'")


def with_password(url: URL, server: DatabaseServer, environ: Mapping[str, str] = os.environ) -> URL:
    """Return the URL with the password of the user's own files, where it has none."""
    if url.password is not None:
        return url
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    if FAMILIES[url.get_backend_name()] == "mysql":
        content = _read(home / ".my.cnf", closed=False)
        user, password = from_my_cnf(content, url.username)
        return url.set(username=user, password=password)
    password = environ.get("PGPASSWORD")
    if password is None and (server.host is None or len(_servers_of_url(url, environ)) > 1):
        return url  # libpq itself looks for the password of the one that it comes to
    if password is None:
        content = _read(Path(environ.get("PGPASSFILE") or home / ".pgpass"), closed=True)
        user = url.username or environ.get("PGUSER") or environ.get("USER") or ""
        host = None if server.socket else url.host or server.host
        password = from_pgpass(content, host, server.port or 0, url.database or user, user)
    return url.set(password=password)


def _read(path: Path, closed: bool) -> str:
    """Return the file's text; "" where there is none, or where others could have written or read it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & (0o077 if closed else 0o002):
                return ""  # as the servers' own clients do
            return file.read(1024 * 1024)
    except OSError:
        return ""


# --- What is asked ------------------------------------------------------------------------


def _rows(connection: Connection, query: str) -> list[Any]:
    result = connection.execute(text(query))
    return list(result) if result.returns_rows else []


def _look_mysql(connection: Connection, dialect: str, server: DatabaseServer) -> ServerView:
    variables = dict(
        map(
            tuple,
            _rows(
                connection,
                "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('max_connections', 'version', 'hostname',"
                " 'port', 'socket', 'bind_address', 'skip_networking')",
            ),
        )
    )
    (own,) = _rows(connection, "SELECT connection_id(), substring_index(current_user(), '@', 1)")
    listed = _rows(
        connection, "SELECT id, user, host, db, command, time FROM information_schema.processlist ORDER BY id"
    )
    status = dict(
        map(
            tuple,
            _rows(connection, "SHOW GLOBAL STATUS WHERE Variable_name IN ('Threads_connected', 'Uptime')"),
        )
    )
    sessions = []
    for number, user, host, database, command, seconds in listed:
        if command == "Daemon" or user in ("system user", "event_scheduler") or number == own[0]:
            continue
        client, port = _client(host or "")
        sessions.append(Session(int(number), user, client, port, database, command, _seconds(seconds)))
    used = int(status["Threads_connected"])
    strangers = any(session.user != own[1] for session in sessions)
    # Without the right to see others an account sees just its own sessions.
    hidden = 0 if strangers else max(0, used - len(sessions) - 1)
    return ServerView(
        dialect,
        server,
        str(variables["version"]),
        float(status["Uptime"]),
        int(variables["max_connections"]),
        0,
        used,
        tuple(sessions),
        hidden,
        _listening_mysql(variables),
    )


def _listening_mysql(variables: Mapping[Any, Any]) -> Listening:
    networking = str(variables.get("skip_networking", "OFF")).upper() in ("OFF", "0")
    port = int(variables.get("port") or 0) if networking else 0
    bound = [word for word in map(str.strip, str(variables.get("bind_address") or "").split(",")) if word]
    socket = str(variables.get("socket") or "")
    return Listening(
        hostname=str(variables.get("hostname") or "") or None,
        port=port or None,
        sockets=(of_socket("mysql", plain(socket)),) if socket.startswith("/") else (),
        addresses=tuple(plain(word) for word in bound),
    )


def _client(host: str) -> tuple[str | None, int | None]:
    """Return the client's host and port; "localhost" without a port is by a socket."""
    if host == "localhost":
        return None, None
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return name.strip("[]"), int(port)
    return host or None, None


_POSTGRESQL: Final = """
SELECT pid, usename, host(client_addr), client_port, datname, state,
    extract(epoch FROM clock_timestamp() - state_change),
    nullif(application_name, ''), extract(epoch FROM clock_timestamp() - backend_start)
FROM pg_stat_activity
WHERE (backend_type = 'client backend'
        OR (backend_type IS NULL AND datid IS NOT NULL AND usesysid IS NOT NULL))
    AND pid <> pg_backend_pid()
ORDER BY pid
"""
#: Whom it does not concern gets no row of the directories: that takes pg_read_all_settings.
_POSTGRESQL_LISTENING: Final = """
SELECT current_setting('port')::int, current_setting('listen_addresses', true),
    (SELECT setting FROM pg_settings WHERE name = 'unix_socket_directories'),
    host(inet_server_addr()), inet_server_port()
"""
_POSTGRESQL_LIMITS: Final = """
SELECT current_setting('max_connections')::int,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0),
    current_setting('server_version'),
    extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())
"""


def _look_postgresql(connection: Connection, dialect: str, server: DatabaseServer) -> ServerView:
    (limits,) = _rows(connection, _POSTGRESQL_LIMITS)
    sessions = tuple(
        Session(
            int(pid),
            user,
            host,
            None if port in (None, -1) else int(port),
            database,
            state,
            _seconds(since),
            application,
            _seconds(age),
        )
        for pid, user, host, port, database, state, since, application, age in _rows(connection, _POSTGRESQL)
    )
    # Of a session that it may not look into an account sees that it is there, and whose it is.
    hidden = sum(session.age_seconds is None for session in sessions)
    maximum, reserved, version, uptime = limits
    used = len(sessions) + 1
    (listening,) = _rows(connection, _POSTGRESQL_LISTENING)
    return ServerView(
        dialect, server, str(version), _seconds(uptime), maximum, reserved, used, sessions, hidden,
        _listening_postgresql(*listening),
    )  # fmt: skip


def _listening_postgresql(
    port: int, addresses: str | None, directories: str | None, reached: str | None, reached_port: int | None
) -> Listening:
    sockets = None
    if directories is not None:
        places = [place.strip().strip('"') for place in directories.split(",")]
        sockets = tuple(DatabaseServer(plain(place), port) for place in places if place.startswith("/"))
    bound = [plain(word.strip()) for word in (addresses or "").split(",") if word.strip()]
    return Listening(
        port=port,
        sockets=sockets,
        addresses=tuple(bound),
        reached=None if reached is None else DatabaseServer(plain(reached), reached_port),
    )


def _seconds(value: Any) -> float | None:
    return None if value is None else round(max(0.0, float(value)), 3)

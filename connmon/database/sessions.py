"""One connection to a MySQL, MariaDB or PostgreSQL server, read only; the only module here with SQLAlchemy.

- It runs in the process of a command, never in an application or a node.
- The URL may be an application's own: connmon's options are taken off, so that asking is not itself reported,
  and an asynchronous driver is replaced by a blocking one that is installed.
- The password is the URL's, else that of ~/.my.cnf or ~/.pgpass; else the user is asked for it where the
  server wants one. It is in no message and no repr().
- A server that does not answer is given up after the limits of `DatabaseSettings`, wherever the driver hangs.
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

from connmon.database import mysql, postgresql
from connmon.database.connection_limit import hint
from connmon.database.locks import Locks, Unseen
from connmon.database.login_files import from_my_cnf, from_pgpass
from connmon.database.server_view import ServerView
from connmon.database.settings import DEFAULTS, DatabaseSettings
from connmon.database_address import (
    FAMILIES,
    PORTS,
    UNKNOWN,
    DatabaseServer,
    comparable,
    decides_elsewhere,
    plain,
    servers_in_url,
)
from connmon.drivers import Driver
from connmon.errors import ConnmonError, UnreachableError, UsageError, one_line

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Blocking drivers of each family, the most common first.
DRIVERS: Final[Mapping[str, tuple[str, ...]]] = {
    "mysql": ("pymysql", "mysqldb", "mysqlconnector"),
    "postgresql": ("psycopg", "psycopg2", "pg8000"),
}
#: MySQL's errors for a refused login: a wrong password, or none where one is wanted.
_DENIED: Final = (1045, 1698)
#: What is read of ~/.my.cnf or ~/.pgpass.
_LOGIN_FILE_BYTES: Final = 1024 * 1024


def _driver_limits(driver: str, settings: DatabaseSettings) -> dict[str, Any]:
    """Return the arguments by which a driver limits its own waiting."""
    connect, answer = settings.driver_connect_seconds, settings.driver_answer_seconds
    limits: Mapping[str, dict[str, Any]] = {
        "pymysql": {"connect_timeout": connect, "read_timeout": answer},
        "mysqldb": {"connect_timeout": connect, "read_timeout": answer},
        "mysqlconnector": {"connection_timeout": connect},
        "psycopg": {"connect_timeout": connect},
        "psycopg2": {"connect_timeout": connect},
        "pg8000": {"timeout": answer},
    }
    return dict(limits.get(driver, {}))


def parse_url(given_url: str) -> URL:
    """Return the URL of a database server. Raises UsageError, which quotes nothing of the URL."""
    expected = (
        "expected DIALECT://USER@HOST:PORT/DATABASE with DIALECT mysql, mariadb or postgresql; "
        "special characters of the password written as in applications' URLs: @ as %40, / as %2F, : as %3A"
    )
    # More than one "@" means that part of a password would be taken for a host, and shown.
    if given_url.partition("?")[0].count("@") > 1 or not given_url.isprintable():
        raise UsageError(f"URL: not to be understood; {expected}")
    try:
        url = make_url(given_url)
    except (ArgumentError, ValueError):
        raise UsageError(f"URL: not to be understood; {expected}") from None
    if url.get_backend_name() not in FAMILIES:
        raise UsageError(f"URL: this dialect has no server to ask; {expected}")
    query = {key: value for key, value in url.query.items() if not key.startswith("connmon_")}
    plugins = query.pop("plugin", ())
    others = tuple(name for name in ([plugins] if isinstance(plugins, str) else plugins) if name != "connmon")
    if others:
        query["plugin"] = others
    return url.set(drivername=url.drivername.replace("_connmon", "").replace("+connmon", ""), query=query)


def server_of_url(url: URL, environ: Mapping[str, str] = os.environ) -> DatabaseServer:
    """Return the server that the URL names, in comparable form: of several the first, of none the default.

    Once connected, `DatabaseSessions.server` is the actual one.
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
    # A URL without a driver gets the first one of its family, which reads the environment.
    driver = url.get_driver_name() if "+" in url.drivername else DRIVERS[FAMILIES[url.get_backend_name()]][0]
    return servers_in_url(url.get_backend_name(), driver, url.host, url.port, url.query, environ)


def _port(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


class DatabaseSessions:
    """One session with a database server; `look` reads all others. Close it."""

    def __init__(
        self,
        url: URL,
        ask_password: Callable[[str], str] | None = None,
        settings: DatabaseSettings = DEFAULTS,
    ) -> None:
        """Connect. `ask_password` gets a prompt; None: nobody can be asked.

        Raises UsageError where no driver is installed or the login is refused, UnreachableError where no
        server answers.
        """
        self.server = server_of_url(url)
        self._settings = settings
        self._family = FAMILIES[url.get_backend_name()]
        self._engine: Engine | None = None
        self._hanging: threading.Thread | None = None
        """A thread that has not come back from the driver in time."""
        self._connection: Connection | None = None
        # SQLAlchemy's own lines about a broken connection: the error says it in one.
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

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else "hanging" if self._is_hanging else "open"
        return f"<DatabaseSessions {self.server} {state}>"

    @property
    def _is_hanging(self) -> bool:
        return self._hanging is not None and self._hanging.is_alive()

    def _connect(self, url: URL) -> None:
        driver = url.get_driver_name()
        arguments = _driver_limits(driver, self._settings)
        if driver == "pymysql" and url.password:
            # It would encode a str as Latin-1; the servers' own clients send the bytes of the terminal.
            arguments["password"] = str(url.password).encode()

        def connect() -> Connection:
            engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
            self._engine = engine
            return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

        logger.debug("%s: connecting with %s", self.server, driver)
        self._connection = self._within(connect, url, self._settings.connect_seconds)
        self._url = url
        self.server = self._connected_to(driver)
        logger.debug("%s: connected", self.server)

    def _connected_to(self, driver: str) -> DatabaseServer:
        """Return the server by the driver; by the URL's name where the driver knows an address only."""
        assert self._connection is not None
        dialect = self._connection.engine.dialect
        reported = Driver(dialect.name, driver).server(self._connection.connection.driver_connection)
        server = comparable(reported.server)
        same_port = server.port == self.server.port and not server.socket
        if server.host is None or (not reported.named and same_port):
            return self.server
        return server

    def look(self) -> ServerView:
        """Return the server's sessions and limits now. Raises UnreachableError and UsageError."""
        connection = self._connection
        if connection is None:
            raise UnreachableError(f"{self.server}: the connection is closed")
        read = mysql.read_server if self._family == "mysql" else postgresql.read_server

        def call() -> ServerView:
            return read(
                lambda statement: _rows(connection, statement), self._url.get_backend_name(), self.server
            )

        view = self._within(call, self._url, self._settings.answer_seconds)
        logger.debug("%s: %d sessions of at most %d", self.server, len(view.sessions), view.max_connections)
        return view

    def locks(self, view: ServerView, session: int | None = None, waiters: bool = False) -> Locks:
        """Return the waits for locks now, as far as the account may see them; `view`: an earlier look.

        `session`: only the waits of this one and of its blockers, so that limits of rows leave none out;
        `waiters`: the waits for this one and for those that wait for it. Never raises for what the server
        says or does not say: see `Locks.problem`.
        """
        connection, url, limits = self._connection, self._url, self._settings.locks
        if connection is None:
            return Locks(problem="the connection is closed", partial=True)

        def query(statement: str) -> list[Any]:
            try:
                return _rows(connection, statement)
            except DBAPIError as error:
                raise Unseen(_reason(error, url)) from None

        def call() -> Locks:
            if self._family == "mysql":
                return mysql.read_locks(query, view.version, session, waiters, limits)
            # The time limit ends with the transaction: behind a pooler the session is shared.
            query("BEGIN READ ONLY")
            try:
                query(f"SET LOCAL statement_timeout = {limits.statement_seconds * 1000}")
                return postgresql.read_locks(query, session, waiters, limits)
            finally:
                query("ROLLBACK")

        try:
            return self._within(call, url, self._settings.answer_seconds)
        except ConnmonError as error:
            return Locks(problem=f"which session blocks which is not seen: {error}", partial=True)

    def close(self) -> None:
        """End the session. A server that does not answer, or a driver that still hangs, is left alone."""
        if self._is_hanging:
            return
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None

        def close() -> None:
            with contextlib.suppress(Exception):  # the process ends anyway
                if connection is not None:
                    connection.close()
                if engine is not None:
                    engine.dispose()

        thread = threading.Thread(target=close, name="close-database", daemon=True)
        thread.start()
        thread.join(self._settings.close_seconds)
        logger.debug("%s: closed", self.server)

    def __enter__(self) -> DatabaseSessions:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _within(self, call: Callable[[], T], url: URL, limit_seconds: float) -> T:
        """Return the result of the call, which is left alone after so many seconds."""
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

        thread = threading.Thread(target=run, name="ask-database", daemon=True)
        thread.start()
        if not done.wait(limit_seconds):
            self._hanging = thread
            raise UnreachableError(f"{self.server}: no answer within {limit_seconds:g} s")
        if not errors:
            return results[0]
        error = errors[0]
        if isinstance(error, ConnmonError):
            raise error
        reason = _reason(error, url)
        message = f"{self.server}: {reason}{hint(_code(error), reason)}"
        if _denied(error):
            raise _Denied(message)
        if isinstance(error, (SQLAlchemyError, OSError)):
            raise UnreachableError(message)
        raise UsageError(f"{message} ({type(error).__name__} of the driver {url.get_driver_name()})")


_UNHEARD: Final = logging.NullHandler()


class _Denied(ConnmonError):
    """The server refused the login."""


def _rows(connection: Connection, statement: str) -> list[Any]:
    result = connection.execute(text(statement))
    return list(result) if result.returns_rows else []


def _cause(error: BaseException) -> BaseException:
    """Return the driver's own error."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _reason(error: BaseException, url: URL) -> str:
    """Return the message of the server or the driver, in one line, without the password."""
    cause = _cause(error)
    texts = [argument for argument in cause.args if isinstance(argument, str)]
    reason = " ".join((texts[-1] if texts else str(cause)).split()) or type(cause).__name__
    if url.password:
        for form in (url.password, url.render_as_string(hide_password=False).partition("@")[0]):
            reason = reason.replace(str(form), "***")
    return one_line(reason, 500)


def _code(error: BaseException) -> object:
    """Return MySQL's number or PostgreSQL's SQLSTATE of the error; None where the driver gives none."""
    cause = _cause(error)
    if cause.args and isinstance(cause.args[0], dict):  # pg8000
        return cause.args[0].get("C")
    if cause.args and isinstance(cause.args[0], int):
        return cause.args[0]
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def _denied(error: BaseException) -> bool:
    cause = _cause(error)
    if cause.args and cause.args[0] in _DENIED:
        return True
    code = getattr(cause, "errno", None) or getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code in (*_DENIED, "28P01", "28000") or "password" in str(cause).lower()


# --- The URL ------------------------------------------------------------------------------


def _with_driver(url: URL, family: str) -> URL:
    """Return the URL with a blocking driver that is installed: its own where it is one."""
    own = url.get_driver_name() if "+" in url.drivername else ""
    candidates = dict.fromkeys([*([own] if own in DRIVERS[family] else []), *DRIVERS[family]])
    for driver in candidates:
        changed = url.set(drivername=f"{url.get_backend_name()}+{driver}")
        try:
            changed.get_dialect().import_dbapi()
        except (ImportError, SQLAlchemyError):
            continue
        if own == "asyncpg" and "ssl" in url.query and driver != own:
            # libpq's name for the same option: the connection must not be less secure than the URL says.
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
        content = _read(home / ".my.cnf", private=False)
        user, password = from_my_cnf(content, url.username)
        return url.set(username=user, password=password)
    password = environ.get("PGPASSWORD")
    if password is None and (server.host is None or len(_servers_of_url(url, environ)) > 1):
        return url  # libpq looks up the password of the server that it connects to
    if password is None:
        content = _read(Path(environ.get("PGPASSFILE") or home / ".pgpass"), private=True)
        user = url.username or environ.get("PGUSER") or environ.get("USER") or ""
        host = None if server.socket else url.host or server.host
        password = from_pgpass(content, host, server.port or 0, url.database or user, user)
    return url.set(password=password)


def _read(path: Path, private: bool) -> str:
    """Return the file's text; "" where it is missing, or others may write (`private`: or read) it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & (0o077 if private else 0o002):
                return ""  # as the servers' own clients do
            return file.read(_LOGIN_FILE_BYTES)
    except OSError:
        return ""

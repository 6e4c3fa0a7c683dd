"""From an engine to an instrumented pool: `attach(engine)`, `?plugin=connmon`, and what both URL forms share.

- There is one split of the URL and one way to attach; a pool is attached once, however
  often that is asked for, and the first one's options count.
- Options that are wrong fail with ArgumentError, where the engine is made. Any other failure in here is one
  warning in the log, and an engine that works without connmon.
- What is reported of an engine has no password and no query option in it.
- No listener of ConnectionEvents is ever registered: it would slow every statement.
- The URL of an engine is the plain one, in a class of its own: an engine that is made from it (Alembic's
  migrations, `engine.url.set(database=...)`) is watched like the first. Its text is only the plain URL.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy.engine import URL, CreateEnginePlugin, Engine, create_engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import AssertionPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from connmon.config import url_options
from connmon.database_address import DatabaseServer, joined, servers_in_url
from connmon.drivers import Driver
from connmon.errors import ConfigError
from connmon.interrupts import interrupted
from connmon.protocol.reports import PoolInfo

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine

_log = logging.getLogger(__name__)

Options: TypeAlias = Mapping[str, "str | Sequence[str]"]
"""The connmon_ options of a URL, unparsed, with their prefix."""

_PREFIX: Final = "connmon_"
#: The option that names the driver of `<dialect>+connmon://`.
DRIVER: Final = "connmon_driver"

# --- The URL ------------------------------------------------------------------------------


def split(url: URL) -> tuple[URL, Options]:
    """Return the URL as it would be without connmon, and the connmon options in it.

    Raises ArgumentError where connmon_driver does not fit the URL.
    """
    options = {key: value for key, value in url.query.items() if key.startswith(_PREFIX)}
    if DRIVER in options and not url.drivername.endswith("+connmon"):
        raise ArgumentError(
            f"{DRIVER}={options[DRIVER]}: this URL names its driver, {url.drivername}; the option is for "
            "<dialect>+connmon:// only"
        )
    drivername = plain_drivername(url.drivername, options.get(DRIVER))
    if options:
        url = url.difference_update_query(options)
    return (url if drivername == url.drivername else url.set(drivername=drivername)), options


def plain_drivername(drivername: str, chosen: str | Sequence[str] | None = None) -> str:
    """Return a URL's `backend+driver` without connmon in it.

    `mysql+connmon` becomes `mysql`, with SQLAlchemy's default driver: being watched is no reason to change
    the driver. Where that default, mysqlclient, is not installed, plain `mysql` could not work at all; there
    it is PyMySQL, which connmon brings along. `chosen` is the URL's connmon_driver, which takes the place of
    that default.
    """
    backend, _, driver = drivername.partition("+")
    if driver == "connmon" and isinstance(chosen, str):
        return f"{backend}+{chosen}"
    if driver == "connmon":
        needs_pymysql = backend in ("mysql", "mariadb") and not _has_mysqldb()
        return f"{backend}+pymysql" if needs_pymysql else backend
    if driver.endswith("_connmon"):
        return f"{backend}+{driver.removesuffix('_connmon')}"
    return drivername


@functools.cache
def _has_mysqldb() -> bool:
    try:
        importlib.import_module("MySQLdb")
    except ImportError:
        return False
    return True


class WatchedURL(URL):
    """The plain URL of a watched engine: an engine made from it is watched too."""

    options: Options | None = None
    """Those of the engine's URL. None: engines made from this URL are not watched."""

    def watching(self, options: Options) -> WatchedURL:
        self.options = options
        return self

    def _replace(self, **changes: Any) -> WatchedURL:
        changed: WatchedURL = super()._replace(**changes)
        changed.options = self.options
        return changed

    def __copy__(self) -> WatchedURL:
        return self  # it is immutable

    def __reduce__(self) -> Any:
        return URL, tuple(self)  # another process may not have connmon

    # Private to SQLAlchemy; a version that does not call it does not watch engines made from this URL.
    def _instantiate_plugins(self, kwargs: Any) -> Any:
        url, plugins, kwargs = super()._instantiate_plugins(kwargs)
        if self.options is not None and not any(isinstance(present, ConnmonPlugin) for present in plugins):
            plugin = ConnmonPlugin(self, kwargs)
            url = plugin.update_url(url)
            plugin.options = {**self.options, **plugin.options}
            plugins.append(plugin)
        return url, plugins, kwargs


# --- Attaching ----------------------------------------------------------------------------


class ConnmonPlugin(CreateEnginePlugin):
    """`?plugin=connmon`, the form that leaves the URL's driver as it is."""

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        self.options: Options = {}

    def update_url(self, url: URL) -> URL:
        # This takes a `_connmon` out of the driver as well: with both forms at once, this one has the
        # options, and the dialect is the plain one.
        url, self.options = split(url)
        return url

    def engine_created(self, engine: Engine) -> None:
        created(engine, self.options)
        engine.url = WatchedURL(*engine.url).watching(self.options)


def attach(engine: Engine | AsyncEngine, **options: object) -> None:
    """Watch the connection pool of an existing engine: see `connmon.attach`, which is this function."""
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise ArgumentError(f"attach() got {engine!r}, expected an Engine or an AsyncEngine")
    given = {_PREFIX + name: str(value) for name, value in options.items() if value is not None}
    created(sync_engine, given)


#: The attached pools; those that recreate() made from them are not in here.
_attached: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()


def created(engine: Engine, options: Options) -> None:
    """Watch the pool of an engine whose URL is the plain one.

    Raises ArgumentError for options that are wrong, and nothing else.
    """
    try:
        given = url_options(options)
        if engine.pool in _attached:
            return
        service = given.resolve()
        # Imported by the first engine, and inside of this `try`: the application does not notice where one
        # fails.
        from connmon.plugin import holder
        from connmon.plugin.pool import instrument
        from connmon.plugin.program_name import program_name
        from connmon.plugin.reporter import ledger_for

        ledger = ledger_for(service, given.program or program_name())
        if given.project:
            holder.project(given.project)
        # Without call sites nothing can be charged to one, and `off` says that no stack is read.
        profile_hz = 0.0 if given.trace == "off" else given.profile
        tracing = holder.Tracing(given.trace, given.held, profile_hz)
        instrument(engine.pool, ledger, describe(engine), driver_of(engine.dialect), tracing)
        _attached.add(engine.pool)
    except ConfigError as error:
        raise ArgumentError(str(error)) from None
    except Exception as error:
        if interrupted(error):
            raise
        name = f"{engine.dialect.name}+{engine.dialect.driver}"
        _log.warning("connmon does not watch this engine (%s): %r", name, error, exc_info=True)


# --- Which pool and database --------------------------------------------------------------


def driver_of(dialect: Dialect) -> Driver:
    """Return the `Driver` that asks this dialect's connections for their session and server."""
    return Driver(dialect.name, dialect.driver)


def describe(engine: Engine) -> PoolInfo:
    """Return what is reported of an engine's pool: nothing secret, everything within the wire's bounds."""
    url, dialect, pool = engine.url, engine.dialect.name, engine.pool
    name = _text(url.database or "", 2048)
    if dialect == "sqlite":
        host, port = None, None
        if name.startswith("file:"):
            name = name.partition("?")[0]
        database = name or ":memory:"
        if not database.startswith((":memory:", "file:")):
            database = os.path.abspath(database)
    else:
        servers = _servers(engine)
        if len(servers) == 1:
            host, port = servers[0]
        else:
            host, port = joined(servers), None
            if not 0 < len(host) <= 256:  # cut, it would be another list
                host = None
        # libpq takes a whole connection string for a database's name, password included.
        database = name = "" if re.search("=|://", name) else name
    if not _as_in_url(engine, _WHICH):
        database = ""
    plain_url = URL.create(
        url.drivername, _text(url.username or "", 256) or None, None, url.host, url.port, name or None
    )
    size, overflow, timeout = _limits(pool)
    return PoolInfo(
        url=_text(plain_url.render_as_string(), 2048),
        dialect=_text(dialect, 256),
        database_host=_text(host, 256) if host else None,
        database_port=port,
        database=_text(database, 2048) if database else None,
        pool_class=_text(type(pool).__name__, 256),
        pool_size=size,
        max_overflow=overflow,
        timeout=timeout,
    )


def _servers(engine: Engine) -> tuple[DatabaseServer, ...]:
    """Return the servers that the URL names; none where something else decides."""
    url, dialect = engine.url, engine.dialect
    if not _as_in_url(engine, _WHERE):
        return ()
    return servers_in_url(dialect.name, dialect.driver, url.host, url.port, url.query, os.environ)


#: The arguments by which drivers decide where they connect.
_WHERE: Final = (
    "host", "hostaddr", "port", "unix_socket", "unix_sock", "dsn", "service", "sock", "server",
    "read_default_file", "read_default_group", "option_files", "option_groups", "failover",
)  # fmt: skip

#: The arguments by which they decide to which database.
_WHICH: Final = (
    "database", "db", "dbname", "dsn", "service", "read_default_file", "read_default_group", "option_files",
)  # fmt: skip


def _as_in_url(engine: Engine, names: Sequence[str]) -> bool:
    """Return whether SQLAlchemy itself connects, and these arguments are the URL's."""
    given = _arguments(engine)
    if given is None:
        return False
    try:
        _, of_url = engine.dialect.create_connect_args(engine.url)
    except Exception:  # the dialect connects in a way of its own
        return False
    return [given.get(name) for name in names] == [of_url.get(name) for name in names]


def _arguments(engine: Engine) -> Mapping[str, Any] | None:
    """Return the keyword arguments that SQLAlchemy connects with; None where another creator connects."""
    creator: Any = engine.pool._creator
    code = getattr(creator, "__code__", None)
    if getattr(creator, "__module__", None) != create_engine.__module__ or code is None:
        return None
    try:
        cells = dict(zip(code.co_freevars, creator.__closure__ or (), strict=True))
        arguments = cells["cparams"].cell_contents
    except (KeyError, ValueError):
        return None  # of another version of SQLAlchemy: the first connection is asked
    return arguments if isinstance(arguments, Mapping) else None


def _limits(pool: Pool) -> tuple[int | None, int | None, float | None]:
    """Return pool_size, max_overflow and timeout in seconds, as PoolInfo has them."""
    if isinstance(pool, QueuePool):  # the one for asyncio is a subclass
        overflow = getattr(pool, "_max_overflow", None)
        # pool_timeout=None, to wait forever, has no number; it is reported as not known.
        seconds: float | None = pool.timeout()
        return max(0, pool.size()), overflow, None if seconds is None else max(0.0, float(seconds))
    if isinstance(pool, SingletonThreadPool):
        return pool.size, None, None
    if isinstance(pool, (StaticPool, AssertionPool)):
        return 1, None, None
    return None, None, None


def _text(value: str, limit: int) -> str:
    """Return the text as the wire accepts it: no lone surrogates, at most `limit` characters."""
    return value.encode("utf-8", "replace").decode()[:limit]

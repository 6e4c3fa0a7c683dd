"""The URL form: `mysql+pymysql_connmon://` and the like.

The entry points of `sqlalchemy.dialects` name attributes of this module, `<backend>_<driver>`
(`mysql_pymysql`) and `<backend>_default` (for `mysql+connmon://`). Each is a subclass of the real dialect,
made when it is first asked for, and the same one ever after.

- A URL cannot be changed on its way through create_engine, so the three methods that receive one pass on the
  plain one; nothing else of the real dialect is touched.
- Wherever SQLAlchemy looks, the subclass looks like the real dialect: name, driver, class name, what is in
  the class's own `__dict__`, and when pickled. Once the engine is made, its dialect is of the real class:
  what others patch there counts for it.
- create_engine does what it would do with the plain URL: short forms take the driver that the same URL
  without `+connmon` takes, or that connmon_driver names (see engine.plain_drivername).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy.engine import URL, Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.interfaces import ConnectArgsType, Dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import Pool

from connmon.config import url_options
from connmon.errors import ConfigError
from connmon.plugin.engine import DRIVER, WatchedURL, created, plain_drivername, split

_MYSQL: Final = ("pymysql", "mysqldb", "mysqlconnector", "asyncmy", "aiomysql")

DRIVERS: Final[Mapping[str, tuple[str, ...]]] = {
    "sqlite": ("pysqlite", "aiosqlite"),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "postgresql": ("psycopg2", "psycopg", "psycopg_async", "asyncpg", "pg8000"),
}
"""The drivers of each backend for which there is a `<backend>+<driver>_connmon`."""


class _Watched(DefaultDialect):
    """The base class before the real dialect, in the subclass of both."""

    def create_connect_args(self, url: URL) -> ConnectArgsType:
        return super().create_connect_args(split(url)[0])

    def on_connect_url(self, url: URL) -> Callable[[Any], Any] | None:
        return super().on_connect_url(split(url)[0])

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        return super().get_pool_class(split(url)[0])

    @classmethod
    def get_dialect_cls(cls, url: URL) -> type[Dialect]:
        chosen = cls._chosen(url)
        return super().get_dialect_cls(url) if chosen is None else watched(chosen.get_dialect())

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> type[Dialect]:
        # psycopg answers with another class, which has to be watched as well.
        chosen = cls._chosen(url)
        real = super().get_async_dialect_cls(url) if chosen is None else chosen.get_dialect(_is_async=True)
        return real if issubclass(real, _Watched) else watched(real)

    @classmethod
    def _chosen(cls, url: URL) -> URL | None:
        """Return a URL with the driver that connmon_driver names, where it does."""
        if DRIVER not in url.query:
            return None
        try:
            url_options(url.query)
        except ConfigError as error:
            raise ArgumentError(str(error)) from None
        return URL.create(split(url)[0].drivername)

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        url, options = split(engine.url)
        if (
            options or url is not engine.url
        ):  # else it was done: SQLAlchemy calls the entry point and the dialect
            engine.url = url
            created(engine, options)
            engine.url = WatchedURL(*url).watching(options)
        if isinstance(engine.dialect, _Watched):
            _be_real(engine.dialect)
        super().engine_created(engine)

    def __reduce__(self) -> Any:
        # As the real dialect: only that can be found again by its name.
        return object.__new__, (type(self).__mro__[2],), self.__dict__


def _be_real(dialect: Any) -> None:
    """Make the dialect one of the real class that still understands the URL as it was written."""
    dialect.__class__ = type(dialect).__mro__[2]
    for name in ("create_connect_args", "on_connect_url", "get_pool_class"):
        setattr(dialect, name, functools.partial(_with_plain_url, dialect, name))


def _with_plain_url(dialect: Any, name: str, url: URL) -> Any:
    method = inspect.getattr_static(type(dialect), name)  # as it is now: others may have patched it
    return method.__get__(dialect, type(dialect))(split(url)[0])


#: SQLAlchemy looks for these in the class's own __dict__, so what is there has to be here too.
_COPIED: Final = ("supports_statement_cache", "import_dbapi", "dbapi")

_watched: Final[dict[type[Dialect], type[Dialect]]] = {}


def watched(real: type[Dialect]) -> type[Dialect]:
    """Return the subclass of a real dialect that connmon watches; always the same one."""
    if real not in _watched:
        own: dict[str, Any] = {name: real.__dict__[name] for name in _COPIED if name in real.__dict__}
        own |= {"__module__": real.__module__, "__qualname__": real.__qualname__, "__doc__": real.__doc__}
        _watched.setdefault(real, type(real.__name__, (_Watched, real), own))
    return _watched[real]


def __getattr__(name: str) -> type[Dialect]:
    """Return the class that an entry point names. Raises AttributeError where there is none."""
    backend, _, driver = name.partition("_")
    if driver == "default" and backend in DRIVERS:
        drivername = plain_drivername(f"{backend}+connmon")
    elif driver in DRIVERS.get(backend, ()):
        drivername = f"{backend}+{driver}"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return watched(URL.create(drivername).get_dialect())

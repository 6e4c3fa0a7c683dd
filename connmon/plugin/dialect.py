"""The URL form: `mysql+pymysql_connmon://` and its sisters.

The entry points of `sqlalchemy.dialects` name attributes of this module, `<backend>_<driver>`
(`mysql_pymysql`) and `<backend>_default` (for `mysql+connmon://`). Each is a subclass of the
real dialect, made when it is first asked for, and the same one ever after.

Rules kept here:

- A URL cannot be changed on its way through create_engine, so the three methods that are
  handed one hand on the plain one; nothing else of the real dialect is touched.
- Wherever SQLAlchemy looks, the subclass looks like the real dialect: name, driver, class
  name, what is in the class's own `__dict__`, and when pickled.
- What create_engine would do with the plain URL is what it does: short forms take the driver
  that the same URL without `+connmon` takes (engine.plain_drivername says which).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy.engine import URL, Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.interfaces import ConnectArgsType, Dialect
from sqlalchemy.pool import Pool

from connmon.plugin.engine import created, plain_drivername, split

_MYSQL: Final = ("pymysql", "mysqldb", "mysqlconnector", "asyncmy", "aiomysql")

DRIVERS: Final[Mapping[str, tuple[str, ...]]] = {
    "sqlite": ("pysqlite", "aiosqlite"),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "postgresql": ("psycopg2", "psycopg", "psycopg_async", "asyncpg", "pg8000"),
}
"""The drivers of each backend for which there is a `<backend>+<driver>_connmon`."""


class _Watched(DefaultDialect):
    """What goes before a real dialect in the subclass made of it."""

    def create_connect_args(self, url: URL) -> ConnectArgsType:
        return super().create_connect_args(split(url)[0])

    def on_connect_url(self, url: URL) -> Callable[[Any], Any] | None:
        return super().on_connect_url(split(url)[0])

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        return super().get_pool_class(split(url)[0])

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> type[Dialect]:
        # psycopg answers with another class, which has to be watched as well.
        found = super().get_async_dialect_cls(url)
        return found if issubclass(found, _Watched) else watched(found)

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        engine.url, options = split(engine.url)
        super().engine_created(engine)
        created(engine, options)

    def __reduce__(self) -> Any:
        # As the real dialect, which alone can be found again under its name.
        return object.__new__, (type(self).__mro__[2],), self.__dict__


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

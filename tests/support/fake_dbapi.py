"""A DBAPI driver without a database: it knows which of its connections are physically open.

A connection is open from its creation to its close(), or until it is garbage collected, as a driver's
socket is. The dialect is SQLite's, which every SQLAlchemy has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import Pool

sqlite_version_info = (3, 40, 0)
sqlite_version = "3.40.0"
version_info = (2, 6, 0)
paramstyle = "qmark"
apilevel = "2.0"
threadsafety = 2
PARSE_DECLTYPES = PARSE_COLNAMES = 0


class Error(Exception):
    pass


class Disconnected(Error):
    pass


Warning = InterfaceError = DatabaseError = DataError = OperationalError = IntegrityError = Error
InternalError = ProgrammingError = NotSupportedError = Error
Binary = bytes


class Database:
    """The truth: which connections are open, and the most that were open at once."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.connects = 0
        self.closes = 0
        self.most = 0
        self.refuse: BaseException | None = None
        """The exception that the next connects raise."""
        self.dead: set[int] = set()
        """Connections that no longer answer a ping."""
        self.on_connect: Callable[[], None] | None = None
        self._numbers = itertools.count(1)

    def connect(self, *_: Any, **__: Any) -> Connection:
        """The creator of the engine's pool."""
        if self.on_connect is not None:
            self.on_connect()
        if self.refuse is not None:
            raise self.refuse
        return Connection(self, next(self._numbers))

    def watchless(self, *_: Any, **__: Any) -> Watchless:
        """Create a connection that no weak reference can watch, like those of some C drivers."""
        return Watchless(self, next(self._numbers))

    def engine(self, poolclass: type[Pool], **arguments: Any) -> Engine:
        """Return an engine with a pool of this class."""
        arguments.setdefault("creator", self.connect)
        return create_engine("sqlite://", module=Driver(), poolclass=poolclass, **arguments)


class Driver:
    """The driver module that the dialect needs: its attributes are those of this module."""

    def __getattr__(self, name: str) -> Any:
        try:
            return globals()[name]
        except KeyError:
            raise AttributeError(name) from None


class Cursor:
    description = None
    rowcount = -1
    lastrowid = 0
    arraysize = 1

    def __init__(self, connection: Watchless) -> None:
        self.connection = connection

    def execute(self, *_: Any) -> None:
        self.connection.check()

    def fetchone(self) -> None:
        return None

    def fetchall(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class Watchless:
    """One physical connection that no weak reference can watch."""

    __slots__ = ("_database", "isolation_level", "number")

    def __init__(self, database: Database, number: int) -> None:
        self._database = database
        self.number = number
        self.isolation_level: str | None = ""
        database.connects += 1
        database.open.add(number)
        database.most = max(database.most, len(database.open))

    def check(self) -> None:
        """Raise Disconnected if the server would not answer."""
        if self.number in self._database.dead or self.number not in self._database.open:
            # The text that the dialect recognizes as a disconnect.
            raise Disconnected(f"connection {self.number}: Cannot operate on a closed database.")

    def close(self) -> None:
        if self.number in self._database.open:
            self._database.open.discard(self.number)
            self._database.closes += 1

    def __del__(self) -> None:
        self.close()

    def cursor(self, *_: Any) -> Cursor:
        return Cursor(self)

    def rollback(self) -> None:
        self.check()

    def commit(self) -> None:
        self.check()

    def create_function(self, *_: Any, **__: Any) -> None:
        pass


class Connection(Watchless):
    """One physical connection that a weak reference can watch."""

    __slots__ = ("__weakref__",)

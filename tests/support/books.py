"""An application's own account of one engine, to compare with connmon's figures.

Rules kept here:

- The account uses neither connmon, nor the pool, nor pool events. Connects are counted around the
  driver's `connect`; checkouts, checkins, timeouts and invalidations where the application itself
  causes them. Open connections are those of the driver's connection objects (weakly referenced) that
  are open; for SQLite, the files that the process has open.
- An event counts when it happens: a count never depends on a later success.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import NullPool

COUNTS = (
    "connects", "connect_errors", "checkouts", "checkins", "timeouts", "invalidations", "adopted",
)  # fmt: skip


class Refused(Exception):
    """No connection was available; the account has counted that."""


class OrderedToFail(OSError):
    """Raised by the driver's connect when the work orders it to fail."""


class Driver:
    """The driver's module, with a `connect` that counts."""

    def __init__(self, module: Any, account: Account) -> None:
        self._module = module
        self._account = account

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def connect(self, *arguments: Any, **options: Any) -> Any:
        account = self._account
        try:
            if account.take_order_to_fail():
                raise OrderedToFail("this connect was ordered to fail")
            connection = self._module.connect(*arguments, **options)
        except BaseException:
            account.count("connect_errors")
            raise
        account.made(connection)
        return connection


def _mysql_id(connection: Any) -> int:
    return int(connection.thread_id())


#: By driver: functions that return the server's id of a session, and whether the session is open.
DRIVERS: dict[str, tuple[Callable[[Any], int], Callable[[Any], bool]]] = {
    "pymysql": (_mysql_id, lambda c: bool(c.open)),
    "mysqldb": (_mysql_id, lambda c: bool(c.open)),
    "asyncmy": (_mysql_id, lambda c: bool(c.connected)),
    "psycopg2": (lambda c: int(c.get_backend_pid()), lambda c: not c.closed),
    "psycopg": (lambda c: int(c.info.backend_pid), lambda c: not c.closed),
    "asyncpg": (lambda c: int(c.get_server_pid()), lambda c: not c.is_closed()),
}


class Account:
    """The application's own counts for one engine."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.driver: str = spec["driver"]
        self.file: str | None = spec.get("file")
        self.lock = threading.Lock()
        self.numbers = dict.fromkeys(COUNTS, 0)
        self.orders_to_fail = 0
        self.kept: list[tuple[Any, str, int | None]] = []
        """Connections held longer than one piece of work: the connection, its state, the server's id."""
        self.connections: list[tuple[int, weakref.ref[Any]]] = []
        self.files_before = 0
        """Open descriptors of the file that do not belong to this account."""

    def options(self) -> dict[str, Any]:
        spec = self.spec
        if spec.get("null"):
            return {"poolclass": NullPool}
        options = {
            "pool_size": spec["size"],
            "max_overflow": spec["overflow"],
            "pool_timeout": spec["timeout"],
        }
        if spec.get("ping"):
            options["pool_pre_ping"] = True
        return options

    def count(self, event: str, number: int = 1) -> None:
        with self.lock:
            self.numbers[event] += number

    def take_order_to_fail(self) -> bool:
        with self.lock:
            if not self.orders_to_fail:
                return False
            self.orders_to_fail -= 1
            return True

    def made(self, connection: Any) -> None:
        """Count a connection that the driver has opened."""
        self.count("connects")
        if self.driver in DRIVERS:
            native = getattr(connection, "_connection", connection)  # SQLAlchemy's, around an async one
            with self.lock:
                self.connections.append((DRIVERS[self.driver][0](native), weakref.ref(native)))

    def open_ids(self) -> list[int | None]:
        """Return the ids of the sessions that are open now; None for each if the server has no ids."""
        if self.file is not None and self.spec.get("gone"):
            return []  # an open one would count for the engine that is still there
        if self.file is not None:
            return [None] * (open_files(self.file) - self.files_before)
        is_open = DRIVERS[self.driver][1]
        with self.lock:
            alive = [
                (number, ref) for number, ref in self.connections if (c := ref()) is not None and is_open(c)
            ]
            self.connections = alive
        return [number for number, _ in alive]

    def report(self) -> dict[str, Any]:
        with self.lock:
            numbers = dict(self.numbers)
        ids = self.open_ids()
        states = {number: state for _, state, number in self.kept if number is not None}
        anonymous = [state for _, state, number in self.kept if number is None]
        sessions = []
        for number in ids:
            if number is None:
                state = anonymous.pop() if anonymous else "idle"
            else:
                state = states.get(number, "idle")
            sessions.append((number, state))
        return {
            "name": self.spec["name"],
            "gone": bool(self.spec.get("gone")),
            **numbers,
            "sessions": sessions,
            "kept": len(self.kept),
        }

    def forget(self) -> None:
        """Reset the counts in the child of a fork: until now everything was the parent's."""
        self.lock = threading.Lock()
        self.numbers = dict.fromkeys(COUNTS, 0)
        self.connections = []
        self.kept = []
        self.orders_to_fail = 0


def open_files(path: str) -> int:
    """Return how many descriptors of this file the process has open."""
    descriptors = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
            descriptors += os.readlink(f"/proc/self/fd/{name}") == path
    return descriptors

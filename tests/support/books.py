"""What an application knows by itself of one engine, for connmon's figures to be compared with.

Rules kept here:

- Nothing is asked of connmon, of the pool, or of pool events. Connects are counted around the
  driver's `connect`; checkouts, checkins, timeouts and invalidations where the application
  itself asks for them; what is open is asked of the driver's connections (which are weakly
  referenced), and for SQLite of the files that the process has open.
- What is counted happens, whatever comes after: a count never depends on a later success.
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
    """There was no connection to be had; that was counted."""


class ToldToFail(OSError):
    """What the driver's connect raises where the work wants it to."""


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
                raise ToldToFail("this connect was told to fail")
            connection = self._module.connect(*arguments, **options)
        except BaseException:
            account.count("connect_errors")
            raise
        account.made(connection)
        return connection


def _mysql_id(connection: Any) -> int:
    return int(connection.thread_id())


#: By driver: the server's id of a session, and whether the driver has it open.
DRIVERS: dict[str, tuple[Callable[[Any], int], Callable[[Any], bool]]] = {
    "pymysql": (_mysql_id, lambda c: bool(c.open)),
    "mysqldb": (_mysql_id, lambda c: bool(c.open)),
    "asyncmy": (_mysql_id, lambda c: bool(c.connected)),
    "psycopg2": (lambda c: int(c.get_backend_pid()), lambda c: not c.closed),
    "psycopg": (lambda c: int(c.info.backend_pid), lambda c: not c.closed),
    "asyncpg": (lambda c: int(c.get_server_pid()), lambda c: not c.is_closed()),
}


class Account:
    """What the application knows of one engine."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.driver: str = spec["driver"]
        self.file: str | None = spec.get("file")
        self.lock = threading.Lock()
        self.numbers = dict.fromkeys(COUNTS, 0)
        self.orders_to_fail = 0
        self.kept: list[tuple[Any, str, int | None]] = []
        """Connections held beyond one piece of work: the connection, its state, the server's id."""
        self.connections: list[tuple[int, weakref.ref[Any]]] = []
        self.files_before = 0
        """Open descriptors of the file that are not this account's."""

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

    def count(self, what: str, number: int = 1) -> None:
        with self.lock:
            self.numbers[what] += number

    def take_order_to_fail(self) -> bool:
        with self.lock:
            if not self.orders_to_fail:
                return False
            self.orders_to_fail -= 1
            return True

    def made(self, connection: Any) -> None:
        """The driver has connected."""
        self.count("connects")
        if self.driver in DRIVERS:
            native = getattr(connection, "_connection", connection)  # SQLAlchemy's, around an async one
            with self.lock:
                self.connections.append((DRIVERS[self.driver][0](native), weakref.ref(native)))

    def open_ids(self) -> list[int | None]:
        """The sessions that are open by now; None for each where the server has no ids."""
        if self.file is not None and self.spec.get("gone"):
            return []  # were there one, the engine that is there would have one too many
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
        """In the child of a fork: what was done and is held was the parent's."""
        self.lock = threading.Lock()
        self.numbers = dict.fromkeys(COUNTS, 0)
        self.connections = []
        self.kept = []
        self.orders_to_fail = 0


def open_files(path: str) -> int:
    """How many descriptors of this file the process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them is gone
            found += os.readlink(f"/proc/self/fd/{name}") == path
    return found

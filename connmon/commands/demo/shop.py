"""What the applications of `connmon demo` do with their connections: the lines of code that it shows.

`invoice` keeps its connection while it waits for somebody else, which makes a small pool too small;
`monthly_report` never gives its connection back. `got` is called once there is a connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

Work: TypeAlias = "Callable[[Engine, int, float, Callable[[], None]], None]"

#: What `monthly_report` has forgotten to close.
_forgotten: list[Connection] = []


def list_items(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Read something, and give the connection back soon."""
    with engine.connect() as connection:
        got()
        _count_items(connection, item)
        time.sleep(seconds)


def invoice(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Hold the connection while another service takes its time."""
    with engine.connect() as connection:
        got()
        _count_items(connection, item)
        _wait_for_payment(seconds)


def daily_report(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Take its time, but give the connection back."""
    with engine.connect() as connection:
        got()
        _count_items(connection, item)
        time.sleep(seconds)


def monthly_report(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Take a connection, and forget to give it back."""
    connection = engine.connect()
    got()
    _count_items(connection, item)
    _forgotten.append(connection)


def _wait_for_payment(seconds: float) -> None:
    time.sleep(seconds)


def _count_items(connection: Connection, item: int) -> None:
    connection.exec_driver_sql("SELECT count(*) FROM item WHERE id > ?", (item,))

"""The work of the demo's applications: the call sites that it shows.

`invoice` holds its connection while it waits for another service, so that its pool is too small;
`monthly_report` never closes its connection. `got` is called after the checkout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

Work: TypeAlias = "Callable[[Engine, int, float, Callable[[], None]], None]"

#: Connections that `monthly_report` never closes.
_leaked: list[Connection] = []


def list_items(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Read something and return the connection soon."""
    with engine.connect() as connection:
        got()
        _count_items(connection, item)
        time.sleep(seconds)


def invoice(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Hold the connection while another service works."""
    with engine.connect() as connection:
        got()
        _count_items(connection, item)
        _wait_for_payment(seconds)


def daily_report(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Hold the connection for long, then return it."""
    with engine.connect() as connection:
        got()
        _count_items(connection, item)
        time.sleep(seconds)


def monthly_report(engine: Engine, item: int, seconds: float, got: Callable[[], None]) -> None:
    """Check a connection out and never return it."""
    connection = engine.connect()
    got()
    _count_items(connection, item)
    _leaked.append(connection)


def _wait_for_payment(seconds: float) -> None:
    time.sleep(seconds)


def _count_items(connection: Connection, item: int) -> None:
    connection.exec_driver_sql("SELECT count(*) FROM item WHERE id > ?", (item,))

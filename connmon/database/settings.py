"""The limits of talking to a database server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class LockLimits:
    """Bounds of the queries for locks."""

    statement_seconds: int = 5
    """For each query, kept by the server."""
    rows: int = 10_000
    """Rows of one answer."""
    waiting_sessions: int = 500
    """PostgreSQL: sessions whose blockers are asked for; each is a look into the server's lock manager."""
    steps: int = 16
    """How far one session is followed, upwards to its blockers or downwards to those that wait for it."""


@dataclass(frozen=True)
class DatabaseSettings:
    """Time limits of one connection to a database server."""

    connect_seconds: float = 10.0
    """For connecting, wherever the driver hangs."""
    driver_connect_seconds: int = 5
    """The driver's own limit for connecting, where it takes one."""
    answer_seconds: float = 10.0
    """For all queries of one look at the server, wherever the driver hangs."""
    driver_answer_seconds: int = 10
    """The driver's own limit for reading, where it takes one."""
    close_seconds: float = 1.0
    """For closing the session in good order."""
    settle_seconds: float = 2.5
    """Between two looks: a report each second, a batch, and some to spare."""
    locks: LockLimits = field(default_factory=LockLimits)


DEFAULTS: Final = DatabaseSettings()
LOCK_LIMITS: Final = LockLimits()

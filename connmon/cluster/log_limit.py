"""Rate limits for log lines that clients or limits cause, so that no flood fills a disk."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogSettings:
    burst_lines: int = 20
    """Lines about clients at once."""
    interval_seconds: float = 3.0
    """Between two of them after that."""
    limit_interval_seconds: float = 60.0
    """Between two lines about the same limit."""


class RateLimitedLog:
    """Warnings about clients. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], settings: LogSettings = LogSettings()) -> None:
        self._clock = clock
        self._settings = settings
        self._allowed = float(settings.burst_lines)
        self._at = clock()
        self._left_out = 0

    def __repr__(self) -> str:
        return f"<RateLimitedLog: {self._allowed:.1f} lines allowed, {self._left_out} left out>"

    def warning(self, message: str, *values: object) -> None:
        now = self._clock()
        settings = self._settings
        regained = (now - self._at) / settings.interval_seconds
        self._allowed = min(float(settings.burst_lines), self._allowed + regained)
        self._at = now
        if self._allowed < 1.0:
            self._left_out += 1
            return
        self._allowed -= 1.0
        if self._left_out:
            logger.warning("%d more lines about clients were left out", self._left_out)
            self._left_out = 0
        logger.warning(message, *values)


#: What it means that a limit leaves out so many.
_MEANING: Final = {
    "processes": "%d processes are left out: they are in no row and in no sum",
    "pools": "%d pools have no row of their own",
    "connections": "%d connections have no row of their own",
    "room": "%d processes, pools or connections are left out for want of room",
    "ended": "%d ended processes were forgotten within the hour: one that comes back is counted twice",
    "gone": "%d rows without a process were removed within the hour, and their totals with them",
}


class LimitLog:
    """One warning when a limit begins to leave something out, and one when it stops.

    A limit that changes often is logged every `limit_interval_seconds` at most. `clock` is monotonic, in
    seconds.
    """

    def __init__(self, clock: Callable[[], float], settings: LogSettings = LogSettings()) -> None:
        self._clock = clock
        self._interval_seconds = settings.limit_interval_seconds
        self._logged: dict[str, bool] = {}
        """What was last logged about each limit: whether it leaves something out."""
        self._at: dict[str, float] = {}

    def __repr__(self) -> str:
        reached = ", ".join(name for name, logged in self._logged.items() if logged)
        return f"<LimitLog: reached: {reached or 'none'}>"

    def observe(self, left_out: Mapping[str, int], limits: Mapping[str, int]) -> None:
        """Log changes. Both arguments are by the limit's name; `limits` has their values."""
        now = self._clock()
        for name, count in left_out.items():
            if (count > 0) == self._logged.get(name, False):
                continue
            if now - self._at.get(name, float("-inf")) < self._interval_seconds:
                continue
            self._logged[name], self._at[name] = count > 0, now
            if count > 0:
                meaning = _MEANING[name] % count
                logger.warning("limit reached: %s (%d): %s; see docs/limits.rst", name, limits[name], meaning)
            else:
                logger.warning("limit %s (%d): nothing is left out any more", name, limits[name])


def system_reason(error: OSError) -> str:
    """Return the system's words, without those of asyncio around them."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)

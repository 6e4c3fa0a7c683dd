"""What is logged of others and of limits: in plain words, and so little that no flood fills a disk."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

logger = logging.getLogger(__name__)

#: Log lines about clients: so many at once, then one per so many seconds.
LOG_BURST: Final = 20
LOG_INTERVAL: Final = 3.0
#: Seconds between two log lines about the same limit.
LIMIT_INTERVAL: Final = 60.0


class Notices:
    """Log lines about clients, so few that a flood of bad clients does not fill the disk."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._allowed = float(LOG_BURST)
        self._at = clock()
        self._left_out = 0

    def warning(self, message: str, *values: object) -> None:
        now = self._clock()
        self._allowed = min(float(LOG_BURST), self._allowed + (now - self._at) / LOG_INTERVAL)
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


class LimitNotices:
    """One log line when a limit begins to leave something out, and one when it no longer does.

    One that goes to and fro is logged at most every `LIMIT_INTERVAL` seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged: dict[str, bool] = {}
        """What was last logged of each limit: whether it leaves something out."""
        self._at: dict[str, float] = {}

    def look(self, left_out: Mapping[str, int], limits: Mapping[str, int]) -> None:
        """Log what has changed; `left_out` is by the name of the limit, as `limits`, their values."""
        now = self._clock()
        for name, count in left_out.items():
            if (count > 0) == self._logged.get(name, False):
                continue
            if now - self._at.get(name, float("-inf")) < LIMIT_INTERVAL:
                continue
            self._logged[name], self._at[name] = count > 0, now
            if count > 0:
                meaning = _MEANING[name] % count
                logger.warning("limit reached: %s (%d): %s; see docs/limits.rst", name, limits[name], meaning)
            else:
                logger.warning("limit %s (%d): nothing is left out any more", name, limits[name])


def system_reason(error: OSError) -> str:
    """Return what the system says, without asyncio's wording around it."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)

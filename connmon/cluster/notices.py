"""What is logged of others: in plain words, and so little that a flood of bad clients fills no disk."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

#: Log lines about clients: so many at once, then one per so many seconds.
LOG_BURST: Final = 20
LOG_INTERVAL: Final = 3.0


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


def system_reason(error: OSError) -> str:
    """Return what the system says, without asyncio's wording around it."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)

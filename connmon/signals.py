"""End in good order on SIGTERM and SIGHUP."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived. Uncaught, it ends the process with the exit code of that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the main thread on SIGTERM and SIGHUP, as Ctrl-C raises KeyboardInterrupt."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def call_once(loop: asyncio.AbstractEventLoop, stop: Callable[[signal.Signals], None]) -> None:
    """Have the event loop call `stop` on SIGTERM or SIGINT. A second signal ends the process at once."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stopped(received: signal.Signals) -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop(received)

    for number in numbers:
        loop.add_signal_handler(number, stopped, number)

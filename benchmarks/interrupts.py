"""How many exceptions of a signal handler reach the application, with and without connmon.

    python benchmarks/interrupts.py [--alarms N]

A loop checks connections of a pool out and in, over a driver that does nothing, while a timer raises a time
limit at random moments, as Celery's soft limit does. The result is how many of them reach the loop:
SQLAlchemy itself catches those that arrive while it returns a connection. The loops take turns, in slices. At
the end connmon's counts are compared with the driver's.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy.pool import QueuePool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from connmon.plugin import holder
from connmon.plugin.engine import describe
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool import instrument
from tests.support.fake_dbapi import Database


class TimeLimit(Exception):
    """Raised by the signal handler."""


class Loop:
    """An engine, and the alarms of its loop: all, and those that reached it."""

    def __init__(self, trace: Any) -> None:
        self.database = Database()
        self.engine = self.database.engine(QueuePool, pool_size=5, max_overflow=1_000_000)
        self.account = None
        if trace is not None:
            ledger = Ledger("i", threading.Lock, time.monotonic, holder)
            ledger.process.wake = lambda: None
            tracing = holder.Tracing(trace)
            self.account = instrument(self.engine.pool, ledger, describe(self.engine), lambda _: 7, tracing)
        self.fired = self.seen = 0

    def run(self, alarms: int) -> None:
        pool = self.engine.pool

        def expired(*_: object) -> None:
            self.fired += 1
            raise TimeLimit

        signal.signal(signal.SIGALRM, expired)
        for _ in range(alarms):
            before = self.fired
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, 0.002))
                while self.fired == before:
                    pool.connect().close()
            except TimeLimit:
                self.seen += 1

    def drift(self) -> str:
        gc.collect()
        if self.account is None:
            return ""
        self.account.fold()
        gauges, totals, _ = self.account.count()
        wrong = gauges.connections - len(self.database.open), gauges.checked_out
        return f"{wrong[0]:+d} open, {wrong[1]:+d} held, {totals.checkouts - totals.checkins:+d} checkouts"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--alarms", type=int, default=4000)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    loops = {"SQLAlchemy alone": Loop(None), "connmon": Loop("auto"), "connmon, every call site": Loop("all")}
    for _ in range(20):
        for loop in loops.values():
            loop.run(arguments.alarms // 20)
    print(f"{'':26} {'alarms':>7} {'not seen':>9}   counted wrong")
    for name, loop in loops.items():
        lost = loop.fired - loop.seen
        print(f"{name:26} {loop.fired:7} {100 * lost / loop.fired:8.1f}%   {loop.drift()}")


if __name__ == "__main__":
    main()

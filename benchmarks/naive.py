"""Naive replication for benchmarks/cluster.py: one replicated call per event on stock PySyncObj.

    python benchmarks/naive.py SELF OTHER...      (addresses host:port of Raft; cluster.py starts it)

PySyncObj has all its defaults: its TCP transport, its thread, its settings. The events come from inside the
process, so it does not have connmond's work of receiving reports from applications.

One JSON array per line on stdin is one order, answered with one line:

- ["rate", N, S]: N events per second for S seconds
- ["ceiling", N, S]: for S seconds, and a third of that before, always N pending events
- ["count"]: how many events this replica has applied, and whether it knows a leader
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any, Final

from pysyncobj import FAIL_REASON, SyncObj, replicated

#: Seconds to wait for the last callbacks; with stock PySyncObj some may never come.
DRAIN: Final = 5.0
EVENT: Final = ("0123456789abcdef0123456789abcdef", 1, "checkout")


class Naive(SyncObj):  # type: ignore[misc]
    """Counts events."""

    def __init__(self, own: str, others: list[str]) -> None:
        super().__init__(own, others)
        self.applied = 0

    @replicated  # type: ignore[untyped-decorator]
    def event(self, instance: str, pool: int, name: str) -> None:
        self.applied += 1


class Run:
    """The events of one order."""

    def __init__(self, node: Naive) -> None:
        self._node = node
        self.sent = 0
        self.failed = 0
        self.latencies: list[float] = []
        """Seconds from the call to its callback: applied here."""
        self.moved = threading.Event()
        self.mark()

    def send(self) -> None:
        self.sent += 1
        began = time.monotonic()

        def done(_: Any, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                self.latencies.append(time.monotonic() - began)
            else:
                self.failed += 1
            self.moved.set()

        self._node.event(*EVENT, callback=done)

    @property
    def pending(self) -> int:
        return self.sent - self.failed - len(self.latencies)

    def at_rate(self, rate: float, seconds: float) -> None:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            while self.sent < passed * rate:
                self.send()
            time.sleep(0.002)

    def at_most(self, pending: int, seconds: float) -> None:
        self._keep(pending, seconds / 3)  # until the number of pending events is steady
        self.mark()
        self._keep(pending, seconds)

    def _keep(self, pending: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while self.pending < pending:
                self.send()
            self.moved.clear()
            self.moved.wait(0.01)

    def mark(self) -> None:
        """Start the measurement here."""
        self._mark = len(self.latencies), time.process_time(), time.monotonic()

    def measured(self) -> dict[str, float]:
        """Return the events done since the mark, CPU as a share of one core, and seconds."""
        done, cpu, began = self._mark
        seconds = time.monotonic() - began
        return {
            "done": len(self.latencies) - done,
            "cpu": (time.process_time() - cpu) / seconds,
            "seconds": seconds,
        }

    def drain(self) -> None:
        end = time.monotonic() + DRAIN
        while self.pending and time.monotonic() < end:
            time.sleep(0.01)


def main(own: str, *others: str) -> None:
    node = Naive(own, list(others))
    for line in sys.stdin:
        order, *values = json.loads(line)
        answer: dict[str, Any]
        if order == "count":
            answer = {"applied": node.applied, "ready": node.isReady()}
        else:
            run = Run(node)
            (run.at_rate if order == "rate" else run.at_most)(*values)
            measured = run.measured()
            run.drain()
            answer = {**measured, "sent": run.sent, "failed": run.failed, "latencies": run.latencies}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

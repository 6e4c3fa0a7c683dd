"""A child process of `connmon demo`: a node, or an application with pools.

- A child ends when its standard input does, so that it does not outlive its parent.
- An application counts its own work independently of connmon: checkouts and checkins of its threads, and
  connections that SQLAlchemy's events report opened and closed. When a line comes in, it stops working,
  writes its counts to a file, and keeps its connections.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from connmon.commands.demo import shop
from connmon.commands.demo.shop import Work

SERVICE: Final = "demo"
#: Of the name of the demo's directory.
PREFIX: Final = "connmon-demo-"


class Pool(NamedTuple):
    """One engine of a demo application, and the threads that use it."""

    database: str
    size: int
    overflow: int
    timeout_seconds: float
    threads: int
    hold_seconds: tuple[float, float]
    """How long a thread holds a connection, from and to."""
    rest_seconds: tuple[float, float]
    """How long it then rests."""
    work: Work
    leak: Work | None = None
    """Called once, in a thread that then ends: leaks one more connection."""


#: By program: the number of processes, and their pools.
PROGRAMS: Final[dict[str, tuple[int, tuple[Pool, ...]]]] = {
    "shop-api": (
        3,
        (
            Pool(
                database="shop.db", size=5, overflow=10, timeout_seconds=30.0, threads=6,
                hold_seconds=(0.002, 0.03), rest_seconds=(0.0, 0.05), work=shop.list_items,
            ),
            Pool(
                database="billing.db", size=2, overflow=0, timeout_seconds=3.0, threads=5,
                hold_seconds=(0.2, 0.9), rest_seconds=(0.0, 0.2), work=shop.invoice,
            ),
        ),
    ),
    "report-worker": (
        2,
        (
            Pool(
                database="reports.db", size=3, overflow=2, timeout_seconds=30.0, threads=2,
                hold_seconds=(0.1, 0.4), rest_seconds=(0.1, 0.6), work=shop.daily_report,
                leak=shop.monthly_report,
            ),
        ),
    ),
}  # fmt: skip


def counts_file(directory: Path, pid: int) -> Path:
    """Return the file with the counts of the application of that pid."""
    return directory / f"counts-{pid}.json"


def _watch_parent(directory: Path, on_line: Callable[[], None]) -> None:
    """Call `on_line` for each line of the standard input; end this process by SIGTERM at its end.

    Where the parent has ended it cannot clean up: the demo's directory is removed here.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.read(0, 512):
            on_line()
        for _ in range(20):  # the system closes a process's files before its pid is gone
            if os.getppid() != parent:
                if directory.name.startswith(PREFIX):
                    shutil.rmtree(directory, ignore_errors=True)
                break
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


class _Application:
    """One program's engines and threads."""

    def __init__(self, config: str, program: str) -> None:
        from sqlalchemy import create_engine, event

        self._stopping = threading.Event()
        _watch_parent(Path(config).parent, self._stopping.set)
        self._pools = PROGRAMS[program][1]
        self._counts: Counter[str] = Counter()
        self._guard = threading.Lock()
        self._engines = [
            create_engine(
                f"sqlite+pysqlite_connmon:///{pool.database}"
                f"?connmon_config={config}&connmon_service={SERVICE}&connmon_program={program}&connmon_held=2",
                pool_size=pool.size,
                max_overflow=pool.overflow,
                pool_timeout=pool.timeout_seconds,
            )
            for pool in self._pools
        ]
        for engine in self._engines:
            event.listen(engine, "connect", lambda *_: self._count("connects_total"))
            event.listen(engine, "close", lambda *_: self._count("closes_total"))

    def run(self) -> None:
        """Work until a line comes in, write the counts, and wait for the end."""
        threads = [
            threading.Thread(
                target=self._work, args=(at, pool), name=f"{Path(pool.database).stem}-{number}", daemon=True
            )
            for at, pool in enumerate(self._pools)
            for number in range(pool.threads)
        ]
        for thread in threads:
            thread.start()
        # After them, so that no later thread gets the identity of the one that has ended.
        for engine, pool in zip(self._engines, self._pools, strict=True):
            if pool.leak is not None:
                leaking = threading.Thread(
                    target=pool.leak, name=pool.leak.__name__, daemon=True,
                    args=(engine, 0, 0.0, lambda: self._count("checkouts_total")),
                )  # fmt: skip
                leaking.start()
                leaking.join()
        for thread in threads:
            thread.join()
        target = counts_file(Path.cwd(), os.getpid())
        target.with_suffix(".new").write_text(json.dumps(self._counts), encoding="ascii")
        target.with_suffix(".new").rename(target)
        while True:
            signal.pause()

    def _count(self, key: str) -> None:
        with self._guard:
            self._counts[key] += 1

    def _work(self, at: int, pool: Pool) -> None:
        from sqlalchemy import exc

        rng = random.Random(f"{os.getpid()} {at} {threading.get_ident()}")
        while not self._stopping.is_set():
            try:
                pool.work(
                    self._engines[at], rng.randrange(100), rng.uniform(*pool.hold_seconds),
                    lambda: self._count("checkouts_total"),
                )  # fmt: skip
            except exc.TimeoutError:  # the pool was too small for too long
                self._count("timeouts_total")
            else:
                self._count("checkins_total")
            self._stopping.wait(rng.uniform(*pool.rest_seconds))


def main(role: str, config: str, name: str) -> int:
    """Run the node or the program of that name; return the exit code."""
    if role == "node":
        from connmon.cluster.daemon import main as run_node

        _watch_parent(Path(config).parent, lambda: None)
        return run_node(["--config", config, "--service", SERVICE, "--node", name])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    _Application(config, name).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

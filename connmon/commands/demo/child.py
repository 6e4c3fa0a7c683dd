"""What the children of `connmon demo` do: run a node, or an application with pools of its own.

- A child ends when its standard input does, so it outlives no parent, however that ended.
- An application counts by itself what it does, beside connmon and by other means: what its own
  threads got and gave back, and what SQLAlchemy says of opened and closed connections. When
  a line comes in, it stops working, leaves its counts in a file, and stays as it is.
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
#: What the name of the demo's directory begins with.
PREFIX: Final = "connmon-demo-"


class Pool(NamedTuple):
    """One engine of a demo application, and the threads that use it."""

    database: str
    size: int
    overflow: int
    timeout: float
    threads: int
    hold: tuple[float, float]
    """Seconds that a thread keeps a connection, from and to."""
    rest: tuple[float, float]
    """Seconds that it then goes without."""
    work: Work
    """What it does with it."""
    leak: Work | None = None
    """Done once, in a thread that then ends: one more connection, which is never given back."""


#: By program: how many processes, and their pools.
PROGRAMS: Final[dict[str, tuple[int, tuple[Pool, ...]]]] = {
    "shop-api": (
        3,
        (
            Pool("shop.db", 5, 10, 30.0, 6, (0.002, 0.03), (0.0, 0.05), shop.list_items),
            Pool("billing.db", 2, 0, 3.0, 5, (0.2, 0.9), (0.0, 0.2), shop.invoice),
        ),
    ),
    "report-worker": (
        2,
        (
            Pool(
                "reports.db",
                3,
                2,
                30.0,
                2,
                (0.1, 0.4),
                (0.1, 0.6),
                shop.daily_report,
                shop.monthly_report,
            ),
        ),
    ),
}


def counts_file(directory: Path, pid: int) -> Path:
    """Return where the application of that pid leaves its counts."""
    return directory / f"counts-{pid}.json"


def _watch(directory: Path, told: Callable[[], None]) -> None:
    """Call `told` for each line of the standard input; leave as by SIGTERM at its end.

    Where the parent has ended, it cannot tidy up any more: the demo's directory goes too.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.read(0, 512):
            told()
        for _ in range(20):  # the system closes a process's files before it calls it ended
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
        _watch(Path(config).parent, self._stopping.set)
        self._pools = PROGRAMS[program][1]
        self._counts: Counter[str] = Counter()
        self._guard = threading.Lock()
        self._engines = [
            create_engine(
                f"sqlite+pysqlite_connmon:///{pool.database}"
                f"?connmon_config={config}&connmon_service={SERVICE}&connmon_program={program}&connmon_held=2",
                pool_size=pool.size,
                max_overflow=pool.overflow,
                pool_timeout=pool.timeout,
            )
            for pool in self._pools
        ]
        for engine in self._engines:
            event.listen(engine, "connect", lambda *_: self._count("connects_total"))
            event.listen(engine, "close", lambda *_: self._count("closes_total"))

    def run(self) -> None:
        """Work until told to stop, leave the counts, and wait for the end."""
        threads = [
            threading.Thread(
                target=self._work, args=(at, pool), name=f"{Path(pool.database).stem}-{number}", daemon=True
            )
            for at, pool in enumerate(self._pools)
            for number in range(pool.threads)
        ]
        for thread in threads:
            thread.start()
        # After them, so that no thread of theirs gets the identity of the one that has ended.
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

    def _count(self, what: str) -> None:
        with self._guard:
            self._counts[what] += 1

    def _work(self, at: int, pool: Pool) -> None:
        from sqlalchemy import exc

        rng = random.Random(f"{os.getpid()} {at} {threading.get_ident()}")
        while not self._stopping.is_set():
            try:
                pool.work(
                    self._engines[at], rng.randrange(100), rng.uniform(*pool.hold),
                    lambda: self._count("checkouts_total"),
                )  # fmt: skip
            except exc.TimeoutError:  # the pool was too small for too long
                self._count("timeouts_total")
            else:
                self._count("checkins_total")
            self._stopping.wait(rng.uniform(*pool.rest))


def main(role: str, config: str, name: str) -> int:
    """Be the node of that name, or the program; return the exit code."""
    if role == "node":
        from connmon.cluster.daemon import main as run_node

        _watch(Path(config).parent, lambda: None)
        return run_node(["--config", config, "--service", SERVICE, "--node", name])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    _Application(config, name).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""What the profile costs: the part --cost of benchmarks/profile.py.

- CPU of the reporter's thread, from /proc/self/task, in a process with 100 connections held by 100 threads
  whose stacks have 40 frames more, next to the same process with connmon_profile=0.
  Both run at the same time.
- Bytes of a full report with 64 call sites with everything that a profile has, and of those that this
  process sends, next to the same without profiles.
- p99 of `SELECT 1` on SQLite in a process in which 100 other connections are held as above: slices of
  processes with and without looks in turns, and the ratio within such a pair (see harmless.py). A second
  process without looks shows the error.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import QueuePool

HELD: Final = 100
FRAMES: Final = 40
SITES: Final = 64
SLICE: Final = 400
"""Statements."""
CPU_TARGET: Final = 0.5
"""Percent of a core."""

_DEEP: Final = """
def level_{n}(depth, call):
    return LEVELS[depth % 40](depth - 1, call) if depth else call()
"""
_SITE: Final = """
def site_{n}(engine, depth, hold):
    return LEVELS[0](depth, lambda: take_{n}(engine, hold))

def take_{n}(engine, hold):
    with engine.connect() as connection:
        hold(connection)
"""


def _functions() -> list[Callable[..., Any]]:
    """Return the call sites: functions of a module of its own, below which the stack is deep."""
    names: dict[str, Any] = {"LEVELS": []}
    source = "".join(_DEEP.format(n=n) for n in range(FRAMES))
    source += "".join(_SITE.format(n=n) for n in range(SITES))
    exec(compile(source, str(Path(__file__).with_name("shop.py")), "exec"), names)
    names["LEVELS"] += [names[f"level_{n}"] for n in range(FRAMES)]
    return [names[f"site_{n}"] for n in range(SITES)]


# --- The process that is measured -----------------------------------------------------------


def work(url: str) -> None:
    """Hold connections, and answer each line on stdin.

    A number: that many statements, answered with mean, p99 and largest in nanoseconds. "cpu": CPU nanoseconds
    of the threads that are not the application's, and the clock. "bytes": of a full report.
    """
    engine = create_engine(url, poolclass=QueuePool, pool_size=HELD + 5)
    event.listen(engine, "connect", lambda connection, _: connection.create_function("nap", 1, time.sleep))
    sites = _functions()
    ready = threading.Barrier(HELD + 1)

    def hold(connection: Any) -> None:
        ready.wait()
        nap, rng = text("SELECT nap(:seconds)"), random.Random()
        while True:
            connection.execute(nap, {"seconds": rng.uniform(1.0, 3.0)})
            time.sleep(rng.uniform(1.0, 3.0))

    for number in range(HELD):
        arguments = engine, FRAMES, hold
        threading.Thread(target=sites[number % SITES], args=arguments, daemon=True).start()
    ready.wait()
    own = {str(thread.native_id) for thread in threading.enumerate()}
    print("ready", flush=True)
    select = text("SELECT 1")
    for line in sys.stdin:
        if line.strip() == "cpu":
            answer: Any = [_cpu_nanoseconds(own), time.monotonic_ns()]
        elif line.strip() == "bytes":
            answer = _report_bytes()
        else:
            answer = _statements(engine, select, int(line))
        print(json.dumps(answer), flush=True)


def _cpu_nanoseconds(own: set[str]) -> int:
    """Return the CPU time of all threads but these."""
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name not in own]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def _statements(engine: Any, select: Any, count: int) -> list[float]:
    took, clock = [], time.perf_counter_ns
    for _ in range(count):
        began = clock()
        with engine.connect() as connection:
            connection.scalar(select)
        took.append(clock() - began)
    took.sort()
    return [sum(took) / len(took), took[len(took) * 99 // 100], took[-1]]


def _report_bytes() -> dict[str, int]:
    """Return the bytes of a full report, with and without profiles and stacks, and what is in it."""
    from connmon.plugin import reporter  # not before the engine: it is what is measured

    (uplink_socket,) = reporter._reporter._sockets.values()
    ledger = uplink_socket.uplink.ledger
    ledger.restart()
    report = ledger.take(time.monotonic(), alive=True)
    assert report is not None
    bare = msgspec.structs.replace(
        report, sites=tuple(msgspec.structs.replace(site, profile=None, stack=()) for site in report.sites)
    )
    without_stacks = msgspec.structs.replace(
        report, sites=tuple(msgspec.structs.replace(site, stack=()) for site in report.sites)
    )
    encode = msgspec.msgpack.Encoder().encode
    return {
        "sites": len(report.sites),
        "bytes": len(encode(report)),
        "without_stacks": len(encode(without_stacks)),
        "without_profile": len(encode(bare)),
    }


class Worker:
    """The handle of one measured process."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def ask(self, line: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


# --- Measuring ------------------------------------------------------------------------------


def cpu(workers: dict[str, Worker], rounds: int, seconds: float) -> dict[str, float]:
    """Return the median CPU of connmon's threads in percent of a core."""
    shares: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        before = {name: worker.ask("cpu") for name, worker in workers.items()}
        time.sleep(seconds)
        for name, worker in workers.items():
            used, clock = worker.ask("cpu")
            shares[name].append(100 * (used - before[name][0]) / (clock - before[name][1]))
    return {name: statistics.median(values) for name, values in shares.items()}


def p99(workers: dict[str, Worker], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return, by worker but the first, the ratios of mean and p99 to the first."""
    bare, *others = workers
    ratios: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in others}
    for worker in workers.values():
        worker.ask(str(2 * SLICE))
    for _ in range(rounds):
        for name in random.sample(others, len(others)):
            took = {one: workers[one].ask(str(SLICE)) for one in random.sample([bare, name], 2)}
            for number in (0, 1):
                ratios[name][number].append(took[name][number] / took[bare][number])
    return ratios


def measure(address: str, quick: bool) -> bool:
    """Measure and print; return whether the targets are met."""
    with tempfile.TemporaryDirectory(prefix="connmon-cost-") as directory:
        base = f"sqlite:///{directory}/cost.db"
        urls = {
            "no looks": f"{base}?plugin=connmon&connmon_addr={address}&connmon_profile=0",
            "no looks, once more": f"{base}?plugin=connmon&connmon_addr={address}&connmon_profile=0",
            "10 looks a second": f"{base}?plugin=connmon&connmon_addr={address}&connmon_profile=10",
            "no connmon": base,
        }
        workers = {name: Worker(url) for name, url in urls.items()}
        try:
            time.sleep(8.0)  # until the start is over, and every call site has been seen
            watched = {name: worker for name, worker in workers.items() if name != "no connmon"}
            used = cpu(watched, 3 if quick else 9, 10.0)
            print(f"CPU of connmon's thread, {HELD} connections held, stacks {FRAMES} frames deep:")
            for name, percent in used.items():
                print(f"  {name:24}{percent:8.3f} % of a core")
            print(f"  target: at most {CPU_TARGET} %")
            figures = p99(workers, 20 if quick else 120)
            print(f"p99 of SELECT 1 in the same processes, ratio to {next(iter(workers))!r}")
            for name, columns in figures.items():
                mean, tail = (statistics.quantiles(column, n=4) for column in columns)
                print(f"  {name:24} mean {_ratio(mean)}   p99 {_ratio(tail)}")
            sizes = workers["10 looks a second"].ask("bytes")
            print(
                f"full report of {sizes['sites']} call sites and {HELD} connections: "
                f"{sizes['bytes']:,} bytes; without stacks {sizes['without_stacks']:,}; "
                f"without profiles {sizes['without_profile']:,}"
            )
        finally:
            for worker in workers.values():
                worker.end()
    return used["10 looks a second"] <= CPU_TARGET


def _ratio(quartiles: Sequence[float]) -> str:
    low, middle, high = quartiles
    return f"x{middle:.3f} [{low:.2f} {high:.2f}]"


if __name__ == "__main__":
    work(sys.argv[1])

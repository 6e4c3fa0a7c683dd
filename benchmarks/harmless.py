"""Effect of connmon on an application when its node is well, down, stopped, unreachable, or misbehaves.

    python benchmarks/harmless.py [--rounds N] [--events N] [--exits N]

Run it as root, with iproute2 and iptables, to include a node behind a firewall that drops everything, in a
network namespace made for this.

Rules kept here, since the machine's noise is larger than the effect:

- Every condition has its own process. All of them run at the same time, and a second one without connmon
  shows the error. For each condition, in random order, a round runs one slice of its process and one of the
  process without connmon; the ratio within such a pair counts.
- p99 is over single statements within a slice; the figure is the median over all slices.
- Memory is read after the first tenth of the events, and after the last.
- An exit is timed from the order to end until the end of the process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from overhead import HOST, _port, connmond
from sqlalchemy import create_engine, text

SLICE: Final = 400
"""Statements."""
CONDITIONS: Final = (
    "without connmon", "without, once more", "node is well", "node is well, no looks",
    "no node", "stopped by SIGSTOP", "behind a firewall", "closes at once", "answers rubbish",
    "answers a byte a second", "accepts, says nothing",
)  # fmt: skip
NAMESPACE: Final = f"connmon-harmless-{os.getpid()}"

# --- The process that is measured -----------------------------------------------------------


def work(address: str, database: str) -> None:
    """Answer each line on stdin, a number of statements, with their times; end when stdin ends."""
    logging.disable()
    url = f"sqlite:///{database}"
    if address:
        url += f"?plugin=connmon&connmon_addr={address}"
    engine = create_engine(url, pool_size=5)
    statement = text("SELECT 1")
    clock = time.perf_counter_ns
    for line in sys.stdin:
        took = []
        for _ in range(int(line)):
            began = clock()
            with engine.connect() as connection:
                connection.scalar(statement)
            took.append(clock() - began)
        took.sort()
        answer = [sum(took) / len(took), took[len(took) * 99 // 100], took[-1], _memory()]
        print(json.dumps(answer), flush=True)


def _memory() -> int:
    """Return the resident memory in KiB."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS:")).split()[1])


class Worker:
    """The handle of one measured process."""

    def __init__(self, address: str, database: Path, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__, "--work", address, str(database)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, statements: int) -> tuple[float, float, float, int]:
        """Return nanoseconds per statement: mean, p99 and largest; and KiB of memory."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{statements}\n")
        self._process.stdin.flush()
        mean, p99, largest, memory = json.loads(self._process.stdout.readline())
        return mean, p99, largest, memory

    def end(self) -> float:
        """Return how many seconds it took to end."""
        assert self._process.stdin is not None
        began = time.perf_counter()
        self._process.stdin.close()
        code = self._process.wait()
        assert code == 0, code
        return time.perf_counter() - began


# --- Nodes, good and bad --------------------------------------------------------------------


@contextlib.contextmanager
def _bad_node(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listen, and treat each client with `behave`, in a separate thread."""
    listener = socket.create_server((HOST, 0), backlog=64)
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            kept.append(client)
            threading.Thread(target=_quietly, args=(behave, client), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"{HOST}:{listener.getsockname()[1]}"
    finally:
        listener.close()
        for client in kept:
            client.close()


def _quietly(behave: Callable[[socket.socket], None], client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        behave(client)


def _rubbish(client: socket.socket) -> None:
    while client.recv(65536):
        client.sendall(os.urandom(1000))


def _slowly(client: socket.socket) -> None:
    for byte in b"\0\0\0\x40" + os.urandom(1000):
        client.sendall(bytes([byte]))
        time.sleep(1.0)


def _nothing(client: socket.socket) -> None:
    while client.recv(65536):
        pass


@contextlib.contextmanager
def _firewall() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Create a network in which nothing answers; yield an address in it and the command prefix."""
    inside = ("ip", "netns", "exec", NAMESPACE)
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        subprocess.run([*inside, "iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP"], check=True)
        yield f"{HOST}:5800", inside
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


@contextlib.contextmanager
def _stopped(directory: Path) -> Iterator[str]:
    """Run a node and stop it as a debugger does: it listens, and never answers."""
    directory.mkdir()
    with connmond(directory) as address:
        listing = subprocess.run(
            ["pgrep", "-f", f"^[^ ]*python.* -m connmon.cluster.daemon --config {directory}/"],
            capture_output=True, text=True,
        )  # fmt: skip
        pids = [int(pid) for pid in listing.stdout.split()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield address if pids else ""
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def conditions(directory: Path) -> Iterator[dict[str, tuple[str, tuple[str, ...]]]]:
    """Yield, for each condition that is possible here, the node's address and the command prefix."""
    with contextlib.ExitStack() as stack:
        well = directory / "well"
        well.mkdir()
        address = stack.enter_context(connmond(well))
        made = {
            "without connmon": "",
            "without, once more": "",
            "node is well": address,
            "node is well, no looks": f"{address}&connmon_profile=0",
            "no node": f"{HOST}:{_port()}",
            "stopped by SIGSTOP": stack.enter_context(_stopped(directory / "stopped")),
            "closes at once": stack.enter_context(_bad_node(lambda client: client.close())),
            "answers rubbish": stack.enter_context(_bad_node(_rubbish)),
            "answers a byte a second": stack.enter_context(_bad_node(_slowly)),
            "accepts, says nothing": stack.enter_context(_bad_node(_nothing)),
        }
        places: dict[str, tuple[str, tuple[str, ...]]] = {name: (where, ()) for name, where in made.items()}
        if os.geteuid() == 0 and shutil.which("ip") and shutil.which("iptables"):
            places["behind a firewall"] = stack.enter_context(_firewall())
        yield {name: places[name] for name in CONDITIONS if name in places}


# --- Measuring ------------------------------------------------------------------------------


def feel(places: dict[str, tuple[str, tuple[str, ...]]], directory: Path, rounds: int) -> None:
    """Print the times of statements under each condition, compared with the process without connmon."""
    bare, *others = places
    workers = {
        name: Worker(address, directory / f"{number}.db", prefix)
        for number, (name, (address, prefix)) in enumerate(places.items())
    }
    ratios: dict[str, dict[str, list[float]]] = {name: {"mean": [], "p99": []} for name in others}
    absolute: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
    largest = dict.fromkeys(places, 0.0)
    for worker in workers.values():
        worker.run(2 * SLICE)
    for _ in range(rounds):
        for name in random.sample(others, len(others)):
            took: dict[str, tuple[float, float, float, int]] = {}
            for condition in random.sample([bare, name], 2):
                took[condition] = workers[condition].run(SLICE)
                absolute[condition].append(took[condition][:2])
                largest[condition] = max(largest[condition], took[condition][2])
            ratios[name]["mean"].append(took[name][0] / took[bare][0])
            ratios[name]["p99"].append(took[name][1] / took[bare][1])
    print(f"SELECT 1 on SQLite, {rounds} rounds of {SLICE} statements; ratios to the process without connmon")
    print(f"{'':26}{'mean us':>9}{'p99 us':>9}{'max ms':>9}   {'mean':22}{'p99'}")
    for name in places:
        mean, p99 = (statistics.median(column) / 1000 for column in zip(*absolute[name], strict=True))
        line = f"  {name:24}{mean:9.1f}{p99:9.1f}{largest[name] / 1e6:9.1f}"
        for which in ("mean", "p99") if name in ratios else ():
            low, middle, high = statistics.quantiles(ratios[name][which], n=4)
            line += f"   x{middle:.3f} [{low:.2f} {high:.2f}]"
        print(line)
    for worker in workers.values():
        worker.end()


def memory(places: dict[str, tuple[str, tuple[str, ...]]], directory: Path, events: int) -> None:
    """Print the memory of a process after a tenth of `events` checkouts and checkins, and after all."""
    first, all_of_them = events // 20, events // 2
    print(f"\nresident memory, MiB, after {first:,} and after {all_of_them:,} statements of 2 events each")
    for number, (name, (address, prefix)) in enumerate(places.items()):
        worker = Worker(address, directory / f"memory{number}.db", prefix)
        seen = [worker.run(SLICE)[3] / 1024 for _ in range(all_of_them // SLICE)]
        worker.end()
        before, after = seen[first // SLICE], seen[-1]
        print(f"  {name:24}{before:9.1f}{after:9.1f}   {after - before:+.2f}", flush=True)


def exits(places: dict[str, tuple[str, tuple[str, ...]]], directory: Path, times: int) -> None:
    """Print how long a process takes to end, right after its last statement."""
    took: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(times):
        for number, name in random.sample(list(enumerate(places)), len(places)):
            worker = Worker(places[name][0], directory / f"exit{number}.db", places[name][1])
            worker.run(50)
            took[name].append(worker.end())
    print(f"\nend of the process, ms, {times} times each (target: never 500 ms more than without)")
    for name, seconds in took.items():
        middle, most = statistics.median(seconds) * 1000, max(seconds) * 1000
        print(f"  {name:24}median {middle:6.0f}   longest {most:6.0f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="default: %(default)s")
    parser.add_argument(
        "--events", type=int, default=1_000_000, help="of the measurement of memory (%(default)s)"
    )
    parser.add_argument("--exits", type=int, default=7, help="ends of each process (default: %(default)s)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options: Any = parser.parse_args(argv)
    if options.work:
        work(*options.work)
        return 0
    with tempfile.TemporaryDirectory(prefix="connmon-harmless-") as name, conditions(Path(name)) as places:
        for missing in set(CONDITIONS) - set(places):
            print(f"{missing}: not here (needs root, iproute2 and iptables)")
        feel(places, Path(name), options.rounds)
        memory(places, Path(name), options.events)
        exits(places, Path(name), options.exits)
    return 0


if __name__ == "__main__":
    sys.exit(main())

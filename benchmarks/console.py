"""Cost of the console and of the node that it reads, with 5,000 programs and 100,000 connections.

    python benchmarks/console.py [--programs N] [--connections N] [--call-sites N] [--seconds S] [--json FILE]

One real node (connmond's own server, alone in its group) has one process for each program, which takes
connections in 12 call sites. Measured are:

- drawing a screen, from the state to styled lines, for each large view, and the work that a new snapshot
  needs before;
- the CPU time of the real console in a pseudo-terminal, at rest and while the fleet reports;
- the acknowledgement of a report, without readers and with each kind of reader. The kinds take turns in
  short slices, so that other load on the machine affects all of them alike.

Targets are printed next to the figures and not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import select
import socket
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from connmon.config import Address, Node, Service
from connmon.console import layout, state, views
from connmon.console.panes import page
from connmon.console.source import Source, Want
from connmon.console.state import ConsoleState, Refresh
from connmon.protocol import frames
from connmon.protocol.batch import Batch
from connmon.protocol.queries import HistoryQuery, Query, WaitsQuery
from connmon.protocol.reports import (
    Connection,
    HoldProfile,
    PoolInfo,
    PoolReport,
    Process,
    Report,
    SiteReport,
)
from connmon.protocol.values import Gauges, Peaks, Totals
from connmon.reader.client import connect

INFO = PoolInfo("mysql+pymysql://n@db1/n", "mysql", "db1", 3306, "n", "QueuePool", 5, 30, 30.0)
#: Seconds of measurement of one kind of reader before the next has its turn.
SLICE = 2.0


def call_site(number: int, at: int, sequence: int) -> SiteReport:
    """Return a call site of a program; every report changes one of them."""
    reports = sequence // 12 + (sequence % 12 > at)
    held_ms = reports * (500 + 37 * at + number % 997)
    where = {"database": held_ms // 2, "requests": held_ms // 3, "own code": held_ms // 10}
    return SiteReport(
        pool=0,
        call_site=f"program_{number % 50:02}/orders/views_{at:02}.py:{100 + at} place_order_{at:02}",
        holds=10 * reports,
        hold_ms=held_ms,
        usual=0.05,
        profile=HoldProfile(holds=10 * reports, held_ms=held_ms, where=where),
        stack=tuple(f"program_{number % 50:02}/orders/layer_{n}.py:{n} call_{n}" for n in range(8)),
    )


def report(number: int, sequence: int, connections: int, call_sites: int = 0) -> Report:
    out = (number + sequence) % (connections + 1)
    return Report(
        f"i-{number}", sequence, 0, 1.0, Peaks(connections, out),
        pools=(
            PoolReport(
                0, INFO, Gauges(1, 35, 0, connections, out),
                Totals(connections, 0, 100 * sequence, 100 * sequence - out), Peaks(connections, out),
                held=0.5 if out else None,
            ),
        ),
        connections=tuple(
            Connection(c, 0, number * 100 + c, "checked_out" if c < out else "idle", 60.0,
                       0.5 if c < out else None, f"Thread-{c}" if c < out else None)
            for c in range(connections)
        ),
        process=Process(f"host{number % 50:03}", f"program-{number:04}", number, 1, "u", None, 60.0),
        sites=tuple(call_site(number, at, sequence) for at in range(call_sites)),
    )  # fmt: skip


# --- The node, in a separate process -----------------------------------------------------------


async def node(programs: int, connections: int, call_sites: int) -> None:
    from connmon.cluster.raft.replica import Replica
    from connmon.cluster.server import Server
    from connmon.cluster.state.machine import StateMachine as Replicated

    here = Node("node1", Address("127.0.0.1", 1), Address("127.0.0.1", 0))
    service = Service("default", (here,), lease=86400.0)
    replica = Replica("default", "node1", Replicated())
    server = Server(service, here, replica)
    await server.start()
    sequence = [0] * programs
    batches = 0

    async def apply_reports(numbers: range) -> None:
        nonlocal batches
        batches += 1
        for number in numbers:
            sequence[number] += 1
        reports = tuple(report(number, sequence[number], connections, call_sites) for number in numbers)
        await replica.propose(Batch("loader", "loader", batches, None, reports))

    for begin in range(0, programs, 100):
        await apply_reports(range(begin, min(begin + 100, programs)))
    print(server.port, flush=True)
    loop = asyncio.get_running_loop()
    live = False
    at = 0

    def read_order() -> None:
        nonlocal live
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        live = line.strip() == "live"

    loop.add_reader(sys.stdin.fileno(), read_order)
    while True:
        await asyncio.sleep(0.1)
        if live:  # every process reports once in five seconds, like an idle plugin
            step = max(1, programs // 50)
            await apply_reports(range(at, min(at + step, programs)))
            at = 0 if at + step >= programs else at + step


# --- Measured ------------------------------------------------------------------------------------


def timed(call: Callable[[], Any], times: int) -> float:
    """Return the median of `times` calls, in ms."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


def screen_times(nodes: list[Node]) -> dict[str, float]:
    figures: dict[str, float] = {}
    client = connect(nodes, "default")
    client.timeout = 120.0
    for want in (Want("program"), Want("process"), Want("connection"), Want("site")):
        source = Source(want)
        for rows in client.ask(source.question()):
            source.apply(rows)
        shown = ConsoleState("", pages=(page("all", want),))
        refresh = Refresh(source.head(), {want: source.rows()}, 1.0, "12:00:00")
        shown = state.refreshed(shown, refresh)
        shown = state.fitted(shown, layout.layout(shown, 200, 50).panes)
        many = len(refresh.tables[want])
        size = f"{many} {want.by} rows"
        figures[f"screen, {size}"] = timed(lambda shown=shown: views.view(shown, 200, 50), 30)
        figures[f"rows of an answer without changes, {size}"] = timed(
            lambda source=source: source.rows(frozenset()), 5
        )
        figures[f"a new snapshot in order, {size}"] = timed(
            lambda shown=shown, refresh=refresh: state.refreshed(shown, refresh), 5
        )
    client.close()
    return figures


def console(port: int, seconds: float) -> float:
    """Return the CPU time of a real console that has all rows, in percent of a core."""
    program = (
        "import sys; from connmon.config import Address, Node; from connmon.console import app; "
        f"address = Address('127.0.0.1', {port}); sys.exit(app.run([Node('node1', address, address)], ''))"
    )
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    seen = bytearray()
    done = False

    def read() -> None:
        while not done:
            if select.select([master], [], [], 0.05)[0]:
                seen.extend(os.read(master, 65536))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while b"program-" not in seen:
            time.sleep(0.1)
        time.sleep(2.0)
        usage = psutil.Process(process.pid)
        before, began = usage.cpu_times(), time.monotonic()
        time.sleep(seconds)
        after, ended = usage.cpu_times(), time.monotonic()
    finally:
        os.write(master, b"q")
        process.wait(10)
        done = True
        reader.join()
        os.close(master)
        os.close(slave)
    return 100.0 * (after.user + after.system - before.user - before.system) / (ended - began)


def acknowledged(port: int, seconds: float) -> list[float]:
    """Report continuously from one application; return how long each acknowledgement took, in ms."""
    side = frames.ClientSide("application", "default")
    taken: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(side.hello())
        while side.welcome is None:
            side.receive(sock.recv(65536))
        instance = f"probe-{time.monotonic_ns()}"
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            message = Report(
                instance, number, 0, 1.0, Peaks(), process=Process("probe", "probe", 1, 1, None, None, None)
            )
            began = time.perf_counter()
            sock.sendall(side.frame(message))
            while not any(isinstance(answer, frames.Ack) for answer in side.receive(sock.recv(65536))):
                pass
            taken.append((time.perf_counter() - began) * 1000)
    return taken


class Asking:
    """A reader of one kind, in a separate process, that asks until the block ends."""

    def __init__(self, port: int, kind: str) -> None:
        self._process = (
            None
            if kind == "no reader asks"
            else subprocess.Popen([sys.executable, __file__, "--ask", kind, str(port)], stdin=subprocess.PIPE)
        )

    def __enter__(self) -> Asking:
        if self._process is not None:
            time.sleep(0.5)  # it has to start first
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


KINDS = ("no reader asks", "changed programs", "changed connections", "waits", "history", "all connections")


def ask(kind: str, port: int) -> None:
    """Ask as a console does, once a second; for all connections, as fast as possible."""
    address = Address("127.0.0.1", port)
    client = connect([Node("node1", address, address)], "default")
    client.timeout = 60.0
    version, epoch = 0, ""
    by: Any = "program" if kind == "changed programs" else "connection"
    while True:
        if kind == "history":
            client.history(HistoryQuery(tuple(("host", f"host{n:03}") for n in range(50)), 150))
        elif kind == "waits":
            for _ in client.ask(WaitsQuery(30.0)):
                pass
        else:
            since = 0 if kind == "all connections" else version
            for rows in client.ask(Query(by, epoch, since)):
                version, epoch = rows.version, rows.epoch
        if kind != "all connections":
            time.sleep(1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=int, default=5_000)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--call-sites", type=int, default=12, help="of each program")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each measurement of the console's CPU time"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--node", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    per_program = max(1, arguments.connections // arguments.programs)
    if arguments.node:
        asyncio.run(node(arguments.programs, per_program, arguments.call_sites))
    if arguments.ask:
        ask(arguments.ask[0], int(arguments.ask[1]))
    figures: dict[str, Any] = {}
    total = arguments.programs * per_program
    print(f"{arguments.programs} programs, {total} connections; load {os.getloadavg()[0]:.1f}")
    command = [sys.executable, __file__, "--node", "--programs", str(arguments.programs),
               "--connections", str(arguments.connections),
               "--call-sites", str(arguments.call_sites)]  # fmt: skip
    served = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert served.stdin is not None and served.stdout is not None
    try:
        port = int(served.stdout.readline())
        address = Address("127.0.0.1", port)
        for name, ms in screen_times([Node("node1", address, address)]).items():
            figures[name] = ms
            print(f"{name:70} {ms:9.1f} ms{'   (target: 50)' if name.startswith('screen') else ''}")
        for name in ("at rest", "live"):
            served.stdin.write(f"{name.rsplit(maxsplit=1)[-1]}\n")
            served.stdin.flush()
            figures[f"console, {name}"] = cpu = console(port, arguments.seconds)
            note = "(target: 2)" if name == "at rest" else "(a fifth of all rows changes every second)"
            print(f"{'CPU of the console, ' + name:70} {cpu:9.1f} %    {note}")
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(arguments.rounds):
            for kind in KINDS:
                with Asking(port, kind):
                    taken[kind] += acknowledged(port, SLICE)
        for kind, times in taken.items():
            times.sort()
            middle, late = statistics.median(times), times[int(len(times) * 0.99)]
            figures[f"acknowledged while {kind}"] = {"p50": middle, "p99": late, "max": times[-1]}
            print(f"acknowledged while {kind:51} p50 {middle:6.1f}  p99 {late:6.1f}  max {times[-1]:6.1f} ms")
    finally:
        served.stdin.close()
        served.kill()
        served.wait()
        served.stdout.close()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

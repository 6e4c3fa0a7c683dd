"""Parts of benchmarks/cluster.py: nodes that can be killed, simulated applications, and readers.

Rules kept here:

- The applications speak connmon.protocol.frames and keep the reporter's rules: at most one unacknowledged
  report, absolute totals, a full report first on each connection and whenever the node asks for one.
- Applications and readers run on one event loop. Times are from the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from connmon.protocol.frames import Ack, ClientSide, Refuse, Welcome
from connmon.protocol.queries import NodeStatus, Query, StatusQuery
from connmon.protocol.reports import Connection, PoolInfo, PoolReport, Process, Report
from connmon.protocol.rows import ProcessRow, ProgramRow, Rows
from connmon.protocol.values import CHECKED_OUT, IDLE, Gauges, Peaks, Totals

HOST: Final = "127.0.0.1"
NAMES: Final = ("node1", "node2", "node3")
#: Makes a program die with the benchmark.
LAUNCH: Final = str(Path(__file__).resolve().parents[1] / "tests" / "support" / "launch.py")
#: Limit in seconds of every wait.
WAIT: Final = 30.0
#: Checkouts between two reports of one process; naive replication would send them one by one.
EVENTS: Final = 50
#: Outside the system's range for outgoing connections, which could take a killed node's port.
PORTS: Final = range(20000, 32000)


class Wrong(Exception):
    """A count is wrong, or an expected event did not happen."""


async def until(condition: Callable[[], Any], what: str, every: float = 0.01, limit: float = WAIT) -> None:
    """Wait for a condition. Raises Wrong."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise Wrong(f"waited {limit:g} s for {what}")
        await asyncio.sleep(every)


def free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(PORTS, 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise Wrong(f"no free ports from {PORTS.start} to {PORTS.stop - 1}")


def launched(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program that dies with this one; its pid is the program's own."""
    return subprocess.Popen([sys.executable, "-I", "-S", LAUNCH, "SIGKILL", "", *command], **options)


class Cluster:
    """Three connmond on loopback, each a process. Used by `async with`; inside the block all are well."""

    def __init__(self, directory: Path) -> None:
        self.ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self._directory = directory
        directory.mkdir()
        self.config = directory / "connmon.cfg"
        lines = (
            f"    {name} hostname={HOST}:{port} bind={HOST}:{port}\n" for name, port in self.ports.items()
        )
        # The lease is longer than the applications' silence during the other measurements.
        self.config.write_text(
            f"[connmon_service_default]\nname: default\nlease: 120\nnodes:\n{''.join(lines)}"
        )
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self.readers: dict[str, Reader] = {}
        self.leader = ""
        self.applications: list[Application] = []
        """All applications that have ever reported."""

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def start(self, name: str) -> None:
        # The module, not the script: sqlalchemy-collectd installs a script named connmon as well.
        command = [
            sys.executable, "-m", "connmon.cluster.daemon", "--config", str(self.config), "--node", name,
        ]  # fmt: skip
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = launched(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """End the node by kill -9."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.readers.pop(name).close()

    def followers(self) -> list[str]:
        return [name for name in NAMES if name != self.leader]

    async def well(self) -> None:
        """Wait until all nodes run and follow one leader."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            for name in NAMES:
                if name not in self.readers or self.readers[name].lost:
                    with contextlib.suppress(OSError):
                        self.readers[name] = await Reader.connect(self.ports[name])
            with contextlib.suppress(OSError):
                statuses = [await self.readers[name].status() for name in NAMES if name in self.readers]
                leaders = {status.leader for status in statuses}
                if len(statuses) == len(NAMES) and len(leaders) == 1 and all(
                    status.quorum and not status.lag and not status.unlinked for status in statuses
                ):  # fmt: skip
                    self.leader = leaders.pop() or ""
                    if self.leader:
                        return
            await asyncio.sleep(0.05)
        logs = "".join(path.read_text(errors="replace")[-800:] for path in self._directory.glob("*.log"))
        raise Wrong(f"the nodes did not find together in {WAIT:g} s:\n{logs}")

    async def __aenter__(self) -> Cluster:
        for name in NAMES:
            self.start(name)
        await self.well()
        return self

    async def __aexit__(self, *raised: object) -> None:
        for reader in self.readers.values():
            reader.close()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            finally:
                process.kill()


class Usage:
    """The CPU time of processes since its creation."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._began = time.monotonic()
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: used.user + used.system for name, used in times.items()}

    def percent(self) -> dict[str, float]:
        """Return percent of one core by name."""
        now, seconds = self._now(), time.monotonic() - self._began
        return {name: 100 * (now[name] - self._before[name]) / seconds for name in now}


class _Speaker(asyncio.Protocol):
    """One client connection to a node, as application or reader."""

    def __init__(self) -> None:
        self._side: ClientSide | None = None
        self._transport: asyncio.Transport | None = None
        self.lost = False

    async def open(self, port: int, role: Any) -> None:
        """Connect, and wait for the welcome. Raises OSError."""
        self._side, self.lost = ClientSide(role, "default"), False
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, HOST, port)
        self._transport = transport
        transport.write(self._side.hello())
        end = time.monotonic() + WAIT
        while self._side.welcome is None:
            if self.lost or time.monotonic() > end:
                raise ConnectionError("no welcome")
            await asyncio.sleep(0.002)

    def write(self, message: Any) -> None:
        assert self._side is not None and self._transport is not None
        self._transport.write(self._side.frame(message))

    def data_received(self, data: bytes) -> None:
        assert self._side is not None
        for message in self._side.receive(data):
            if isinstance(message, Refuse):
                raise Wrong(f"refused: {message.reason}")
            if not isinstance(message, Welcome):
                self.heard(message)

    def heard(self, message: Any) -> None:
        raise NotImplementedError

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Reader(_Speaker):
    """A reader of one node; it sends one query at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[None] | None = None
        self._parts: list[Any] = []

    @classmethod
    async def connect(cls, port: int) -> Reader:
        reader = cls()
        await reader.open(port, "reader")
        return reader

    def heard(self, message: Any) -> None:
        self._parts.append(message)
        if not (isinstance(message, Rows) and message.more) and self._answer is not None:
            self._answer.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the node has gone"))

    async def _ask(self, query: Any) -> list[Any]:
        async with self._turn:
            if self.lost:
                raise ConnectionError("the node has gone")
            self._parts = []
            self._answer = asyncio.get_running_loop().create_future()
            self.write(query)
            try:
                await self._answer
            finally:
                self._answer = None
            return self._parts

    async def status(self) -> NodeStatus:
        status: NodeStatus = (await self._ask(StatusQuery()))[0]
        return status

    async def processes(self, **narrow: Any) -> list[ProcessRow]:
        parts = await self._ask(Query("process", **narrow))
        return [row for part in parts for row in part.rows if isinstance(row, ProcessRow)]

    async def checkouts(self, programs: Collection[str]) -> dict[str, int]:
        """Return the checkouts of these programs on all hosts, ended processes included."""
        totals = dict.fromkeys(programs, 0)
        for part in await self._ask(Query("program")):
            for row in part.rows:
                if isinstance(row, ProgramRow) and row.program in totals:
                    totals[row.program] += row.figures.totals.checkouts
        return totals

    async def shows(self, instance: str, checkouts: int, every: float) -> float:
        """Query every `every` seconds; return the time when this was visible here. Raises Wrong."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            for row in await self.processes(instance=instance):
                if row.figures.totals.checkouts >= checkouts:
                    return time.monotonic()
            await asyncio.sleep(every)
        raise Wrong(f"a report was not visible on a node within {WAIT:g} s")


class Application(_Speaker):
    """One process with one pool, which sends reports like the plugin's reporter."""

    def __init__(self, number: int, connections: int = 10, busy: int = 1, program: str = "simulated") -> None:
        super().__init__()
        self.instance = secrets.token_hex(16)
        self.node = ""
        self.checkouts = 0
        self.sent = self.acknowledged = self.coalesced = 0
        self.latencies: list[tuple[str, float]] = []
        """The node, and the seconds from report to acknowledgement."""
        self.waiting = False
        self.sent_at = self.answered_for = 0.0
        """When the last report was sent, and when the last acknowledged one was."""
        self.program = program
        self._number, self._connections, self._busy = number, connections, busy
        self._sequence = self._reported = 0
        self._full = True
        self._held = 0

    async def to(self, node: str, port: int) -> None:
        """Report to this node from now on."""
        self.node, self._full, self.waiting = node, True, False
        await self.open(port, "application")

    def work(self) -> None:
        """Count more events, and report them unless a report is unacknowledged."""
        self.checkouts += EVENTS
        if self.waiting or self.lost:
            self.coalesced += 1
        else:
            self._report()

    def settled(self) -> bool:
        """Return whether all events are acknowledged; report those that are not."""
        if not self.waiting and not self.lost and self._reported != self.checkouts:
            self._report()
        return not self.waiting and self._reported == self.checkouts

    def _report(self) -> None:
        before, self._held = self._held, (self._held + 1) % self._connections
        held = {(self._held + offset) % self._connections for offset in range(self._busy)}
        changed = (
            range(self._connections)
            if self._full
            else sorted({before, (before + self._busy) % self._connections})
        )
        info = PoolInfo(
            "mysql+pymysql://nova@db.example/nova", "mysql", "db.example", 3306, "nova", "QueuePool",
            5, 10, 30.0,
        )  # fmt: skip
        n = self._connections
        peaks = Peaks(n, min(n, self._busy + 2), 0, 0.0)
        pool = PoolReport(
            1, info if self._full else None, Gauges(1, 15, 0, n, self._busy, max(0, n - 5), 0, 0),
            Totals(n, 0, self.checkouts, self.checkouts - self._busy, 0, 0, 0), peaks, None, 0.01,
        )  # fmt: skip
        self._sequence += 1
        report = Report(
            self.instance, self._sequence, 0 if self._full else self._sequence - 1, 1.0,
            peaks, (pool,), (),
            tuple(
                Connection(
                    number + 1, 1, 100 * self._number + number, CHECKED_OUT if number in held else IDLE,
                    60.0, 0.01 if number in held else None,
                    "Thread-7 (worker)" if number in held else None,
                    "nova/db/main/api.py:412 instance_get" if number in held else None,
                )
                for number in changed
            ), (),
            Process(
                f"ctl{self._number % 3 + 1}", self.program, 1000 + self._number, 1, "nova",
                f"/usr/bin/python3 /usr/bin/{self.program}", 600.0,
            ) if self._full else None,
        )  # fmt: skip
        self.waiting, self.sent_at = True, time.monotonic()
        self.sent += 1
        self._reported = self.checkouts
        self.write(report)

    def heard(self, message: Any) -> None:
        if not isinstance(message, Ack) or message.sequence != self._sequence:
            return
        self.waiting = False
        if message.full:
            self.sent -= 1  # it was not applied; the full one replaces it
            self._full = True
            self._report()
            return
        self._full = False
        self.acknowledged += 1
        self.answered_for = self.sent_at
        self.latencies.append((self.node, time.monotonic() - self.sent_at))


async def settle(applications: Sequence[Application]) -> None:
    """Wait until all events are acknowledged. Raises Wrong."""

    def settled() -> bool:
        return not [one for one in applications if not one.settled()]  # a list, to call every settled()

    await until(settled, "all reports to be acknowledged")


async def compare(cluster: Cluster, applications: Sequence[Application]) -> None:
    """Check that every node shows exactly these processes with their counts. Raises Wrong.

    The programs' totals have to include the counts of processes that have ended.
    """
    now = {application.instance: application.checkouts for application in applications}
    ever: dict[str, int] = {}
    for application in cluster.applications:
        ever[application.program] = ever.get(application.program, 0) + application.checkouts
    for name in NAMES:
        end = time.monotonic() + WAIT
        while True:
            rows = await cluster.readers[name].processes()
            reported = {row.instance: row.figures.totals.checkouts for row in rows}
            totals = await cluster.readers[name].checkouts(ever)
            if reported == now and totals == ever:
                break
            if time.monotonic() > end:
                wrong = sum(reported.get(key) != now.get(key) for key in {*reported, *now})
                raise Wrong(
                    f"{name} shows wrong figures for {wrong} of {len(now)} processes, "
                    f"and the programs' totals {totals} instead of {ever}"
                )
            await asyncio.sleep(0.1)

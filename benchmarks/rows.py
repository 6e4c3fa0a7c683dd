"""The read path of the connections view with 100,000 connections: node, reader and console, in one process.

    python benchmarks/rows.py [--connections N] [--rounds R] [--json FILE] [--compare FILE]

It fills a node's state with reports as the plugin encodes them, and times, without a network:

- the node: from a query to the bytes of the answer's frames;
- the reader: from these bytes to the view's rows;
- the console: from the reader's table to the lines of the screen;
- a report: from the plugin's bytes to the replicated command, and until it is applied;
- a checkpoint: the state to bytes and back;
- the memory of the state and of the reader.

Between two refreshes 1 % of the processes report a change of 10 % of their connections, and one second
passes. Figures are medians over all rounds. `--compare` prints them next to those that an earlier run has
written with `--json`. Compare only runs on the same machine with the same options.

Only `Path`, `Node`, `Reader` and `Console` call connmon; where its names change, they change with them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple

import msgspec

from connmon.cluster.batch_queue import BatchQueue, Waiting
from connmon.cluster.batching import BatchSettings
from connmon.cluster.client_connection import memory_bytes
from connmon.cluster.raft.group import RaftGroup
from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.raft.messages import BATCH
from connmon.cluster.state.answer_frames import About
from connmon.cluster.state.machine import StateMachine
from connmon.console import layout, navigation, views
from connmon.console import state as screens
from connmon.console.source import Source
from connmon.protocol.batch import Batch, Tick
from connmon.protocol.frames import ClientSide, NodeSide
from connmon.protocol.queries import Query
from connmon.protocol.reports import Connection, PoolInfo, PoolReport, Process, Report, SiteReport, Usage
from connmon.protocol.rows import Rows
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.values import CHECKED_OUT, IDLE, Gauges, Peaks, Times, Totals

SERVICE: Final = "default"
#: Bytes that a reader takes from its socket at once.
RECEIVE_BYTES: Final = 256 * 1024
#: Rows of the first table on the screen, for a refresh that needs only their ages.
SCREEN_ROWS: Final = 46
#: Connections of the one large report.
LARGE_REPORT: Final = 1_000
#: Reports in the batch of small ones.
SMALL_REPORTS: Final = 100
#: Rounds of the reports for each round of the other measurements, since reports are short.
REPORT_ROUNDS: Final = 5
STACK_FRAMES: Final = 8
CALL_SITES: Final = 12
HOSTS: Final = 50
PROGRAMS: Final = 20


# --- The fleet ----------------------------------------------------------------------------------


def call_site(process: int, number: int) -> str:
    program, site = process % PROGRAMS, number % CALL_SITES
    return f"program_{program:02}/orders/views_{site:02}.py:{100 + site * 7} place_order_{site:02}"


def connection_of(process: int, number: int, pool: int, sequence: int) -> Connection:
    """Return one connection. Every second one is held, and every tenth has a stack."""
    drawn = random.Random(process * 1_000_003 + number * 1_009 + sequence)
    server_id, age = 10_000 + process * 1_000 + number, round(drawn.uniform(60, 86_400), 3)
    if number % 2:
        return Connection(
            number=number, pool=pool, server_id=server_id, state=IDLE, age=age, held=None, holder=None
        )
    site = call_site(process, drawn.randrange(CALL_SITES))
    stack: tuple[str, ...] = ()
    if number % 10 == 0:
        stack = (
            site,
            *(
                f"program_{process % PROGRAMS:02}/layer_{depth}.py:{20 + number % 50} call_{depth}"
                for depth in range(1, STACK_FRAMES)
            ),
        )
    in_database = drawn.random() < 0.7
    return Connection(
        number=number,
        pool=pool,
        server_id=server_id,
        state=CHECKED_OUT,
        age=age,
        # One connection of each process is held for long.
        held=round(drawn.uniform(40, 400) if number == 0 else drawn.uniform(0.001, 2), 6),
        holder=f"Thread-{number} (process_request_thread)",
        call_site=site,
        stack=stack,
        holder_in="database" if in_database else "application",
        holder_site=site
        if in_database
        else f"program_{process % PROGRAMS:02}/gateway.py:214 wait_for_answer",
    )


def pool_report_of(process: int, number: int, connections: int, sequence: int, full: bool) -> PoolReport:
    info = PoolInfo(
        url=f"postgresql+psycopg://shop@db{number}.example.org/shop",
        dialect="postgresql",
        database_host=f"db{number}.example.org",
        database_port=5432,
        database="shop",
        pool_class="QueuePool",
        pool_size=connections,
        max_overflow=10,
        timeout=30.0,
    )
    held = (connections + 1) // 2
    checkouts = 10_000 + sequence * 50
    return PoolReport(
        number=number,
        info=info if full else None,
        gauges=Gauges(
            pools=1, capacity=connections + 10, connections=connections, checked_out=held, waiting=process % 3
        ),
        totals=Totals(connects=connections, checkouts=checkouts, checkins=checkouts - held),
        peaks=Peaks(connections=connections, checked_out=held, waiting=3, longest_wait=0.2),
        wait=0.1 if process % 3 else None,
        held=400.0,
        times=Times(*[dict.fromkeys(range(70, 100 if full else 80), 10 + sequence)] * 3),
    )


def report_of(process: int, sequence: int, size: int, changed: Iterable[int] | None = None) -> Report:
    """Return a report of a process with two pools and `size` connections.

    `changed`: the numbers of the connections that have changed since the last report; None: a full report.
    """
    full = changed is None
    return Report(
        instance=f"{process:08x}{process * 2_654_435_761 % 2**32:08x}",
        sequence=sequence,
        base=0 if full else sequence - 1,
        interval=1.0,
        peaks=Peaks(connections=size, checked_out=(size + 1) // 2, waiting=3, longest_wait=0.2),
        pools=tuple(pool_report_of(process, pool, size // 2, sequence, full) for pool in (1, 2)),
        connections=tuple(
            connection_of(process, number, 1 + number * 2 // size, sequence)
            for number in (range(size) if changed is None else changed)
        ),
        process=Process(
            host=f"web{process % HOSTS:03}.example.org",
            program=f"program-{process % PROGRAMS:02}",
            pid=1_000 + process,
            ppid=1,
            user="www-data",
            command=f"/usr/bin/python3 /srv/program_{process % PROGRAMS:02}/server.py --workers 8",
            started=3_600.0,
        )
        if full
        else None,
        usage=Usage(cpu_percent=12.5, rss_bytes=150_000_000, threads=40, open_files=200),
        sites=tuple(
            SiteReport(
                pool=pool, call_site=call_site(process, site), held=2, longest=1.5, holds=1_000 + sequence,
                hold_ms=40_000 + sequence, usual=0.05,
            )
            for pool in (1, 2)
            for site in range(CALL_SITES if full else 3)
        ),
    )  # fmt: skip


def some(drawn: random.Random, size: int, part: float) -> list[int]:
    """Return random numbers of this part of `size` connections, in order."""
    return sorted(drawn.sample(range(size), max(1, round(size * part))))


# --- What connmon does --------------------------------------------------------------------------


class Alone:
    """The carrier of a group of one."""

    def send(self, name: str, message: object) -> bool:
        return False

    def room(self, name: str) -> bool:
        return False


def welcomed(role: Any) -> tuple[NodeSide, ClientSide]:
    """Return both sides of one connection, after the handshake."""
    client, node = ClientSide(role, SERVICE), NodeSide()
    node.receive(client.hello())
    client.receive(node.welcome(SERVICE, "node1"))
    return node, client


class Path:
    """The way of a report: the plugin's bytes, the batch, the replicated command."""

    def __init__(self) -> None:
        self._node, self._application = welcomed("application")
        self._queue: BatchQueue[None] = BatchQueue()
        self._number = 0

    def sent(self, report: Report) -> bytes:
        """Return the bytes that the plugin sends."""
        return self._application.frame(report)

    def queue(self, data: bytes) -> None:
        """Take the bytes of one report."""
        for message in self._node.receive(data):
            assert isinstance(message, Report)
            self._queue.put(Waiting(message, None, len(data), memory_bytes(message, len(data))))

    def batch(self) -> Batch | None:
        """Return the next batch; None where nothing waits."""
        settings = BatchSettings()
        taken = self._queue.take(settings.batch_bytes, settings.batch_entries)
        return self.tick(tuple(waiting.message for waiting in taken)) if taken else None

    def tick(self, reports: tuple[Any, ...] = ()) -> Batch:
        self._number += 1
        return Batch("node1", "boot-1", self._number, Tick(1.0, 86_400.0), reports)

    @staticmethod
    def command(batch: Batch) -> bytes:
        """Return what goes into the Raft log."""
        return BATCH + msgspec.msgpack.encode(batch)


class Node:
    """A node's state, and its side of a reader's connection."""

    def __init__(self, state: StateMachine | None = None) -> None:
        self._group = RaftGroup("node1", (), StateMachine() if state is None else state, Alone())
        self._side = welcomed("reader")[0]
        self.path = Path()

    @property
    def version(self) -> int:
        return self._group.state.version

    def apply(self, command: bytes) -> None:
        """Apply what the Raft log hands over."""
        before = self.version
        self._group.apply(command)
        assert self.version > before, "the batch was not applied"

    def take(self, reports: Iterable[Report] = ()) -> None:
        """Apply these reports in batches; without reports, one batch in which only time passes."""
        for report in reports:
            self.path.queue(self.path.sent(report))
        batch = self.path.batch() or self.path.tick()
        while batch is not None:
            self.apply(self.path.command(batch))
            batch = self.path.batch()

    def answer(self, since: int) -> Iterator[Rows]:
        """Return the frames of the answer for all connections that changed since that version."""
        state = self._group.state
        query = Query("connection", state.epoch if since else "", since)
        return state.rows(query, About(SERVICE, "node1", "node1", True, 0.0))

    def encoded(self, rows: Rows) -> bytes:
        return self._side.frame(rows)

    def checkpoint(self) -> bytes:
        return msgspec.msgpack.encode(
            Checkpoint(index=1, term=1, command=BATCH, state=self._group.applier.encode())
        )

    @staticmethod
    def restored(checkpoint: bytes) -> StateMachine:
        return StateMachine.decode(msgspec.msgpack.decode(checkpoint, type=Checkpoint).state)

    def close(self) -> None:
        self._group.close()


class Reader:
    """The reader's table of all connections."""

    def __init__(self) -> None:
        self._side = welcomed("reader")[1]
        self._table = Snapshot("connection")

    def apply(self, data: bytes) -> None:
        for rows in decoded(self._side, data):
            self._table.apply(rows)

    def rows(self, seen: frozenset[Any] | None = None) -> list[tuple[Any, Any]]:
        """Return the rows of the view; `seen`: the keys of rows whose ages are needed. None: all."""
        return self._table.typed_rows(seen)


def decoded(side: ClientSide, data: bytes) -> Iterator[Rows]:
    """Yield the frames of an answer as they come from a socket."""
    for begin in range(0, len(data), RECEIVE_BYTES):
        for message in side.receive(data[begin : begin + RECEIVE_BYTES]):
            assert isinstance(message, Rows)
            yield message


class Console:
    """The console on its connections view."""

    def __init__(self, width: int, height: int, sort: str) -> None:
        self._side = welcomed("reader")[1]
        self._want = navigation.VIEWS["connections"]
        self._source = Source(self._want)
        self._width, self._height = width, height
        root = navigation.root("connections")
        page = root.with_pane(root.pane.changed(sort=sort))
        self._screen = screens.ConsoleState("connmon_service=default", view="connections", pages=(page,))
        self._clock = 0.0

    def apply(self, data: bytes) -> None:
        for rows in decoded(self._side, data):
            self._source.apply(rows)

    def rows(self) -> Any:
        """Return the rows as the thread that talks to the node makes them."""
        return self._source.rows(self._screen.seen)

    def order(self, rows: Any) -> None:
        """Take the rows into the screen's state, in order."""
        self._clock += 1.0
        refresh = screens.Refresh(
            head=self._source.head(), tables={self._want: rows}, received=self._clock, received_at="12:00:00"
        )
        self._screen = screens.refreshed(screens.ticked(self._screen, self._clock), refresh)

    def draw(self) -> list[Any]:
        """Return the lines of the screen."""
        plan = layout.layout(self._screen, self._width, self._height)
        self._screen = screens.fitted(self._screen, plan.panes, plan.spread)
        return views.view(self._screen, self._width, self._height)


# --- Measured -----------------------------------------------------------------------------------


class Sequel(NamedTuple):
    """The bytes of the answers to a reader: everything, and then the changes for each refresh."""

    complete: bytes
    changes: list[bytes]
    quiet: list[bytes]
    """The answer after each change: only time has passed."""


class Figures:
    """The measured values, in the order of the table."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, list[float]]] = {}

    def add(self, step: str, value: float, unit: str = "ms") -> None:
        self._values.setdefault(step, (unit, []))[1].append(value)

    def summary(self) -> dict[str, dict[str, Any]]:
        return {
            step: {
                "unit": unit,
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "values": values,
            }
            for step, (unit, values) in self._values.items()
        }


class Laps:
    """A stopwatch for one round of a step: the time of each part, and at the end their sum."""

    def __init__(self, figures: Figures, step: str, factor: float = 1e3, unit: str = "ms") -> None:
        self._figures, self._step, self._factor, self._unit = figures, step, factor, unit
        self._total = 0.0
        self._parts = 0
        gc.collect()
        self._began = time.perf_counter()

    def lap(self, part: str) -> None:
        taken = (time.perf_counter() - self._began) * self._factor
        self._figures.add(f"{self._step}: {part}", taken, self._unit)
        self._total += taken
        self._parts += 1
        self._began = time.perf_counter()

    def end(self) -> None:
        if self._parts > 1:
            self._figures.add(f"{self._step}: total", self._total, self._unit)


def filled(connections: int, processes: int) -> tuple[Node, int]:
    """Return a node with `connections` connections, and how many each process has."""
    size = connections // processes
    node = Node()
    node.take(report_of(process, 1, size) for process in range(processes))
    return node, size


def answered(figures: Figures, step: str, node: Node, since: int) -> bytes:
    """Measure one answer, frame by frame as a node sends it; return its bytes."""
    gc.collect()
    making = encoding = 0.0
    data: list[bytes] = []
    frames = None
    while True:
        began = time.perf_counter()
        if frames is None:
            frames = iter(node.answer(since))
        rows = next(frames, None)
        made = time.perf_counter()
        making += made - began
        if rows is None:
            break
        data.append(node.encoded(rows))
        encoding += time.perf_counter() - made
    figures.add(f"{step}: rows made", making * 1e3)
    figures.add(f"{step}: frames encoded", encoding * 1e3)
    figures.add(f"{step}: total", (making + encoding) * 1e3)
    return b"".join(data)


def measure_node(figures: Figures, node: Node, size: int, options: argparse.Namespace) -> Sequel:
    """Measure the node's answers; return them for the readers."""
    drawn = random.Random(1)
    reporting = max(1, round(options.processes * options.reporting))
    for _ in range(options.rounds):
        complete = answered(figures, "node, complete answer", node, 0)
    changes: list[bytes] = []
    quiet: list[bytes] = []
    sequences = dict.fromkeys(range(options.processes), 1)
    for _ in range(options.rounds):
        since = node.version
        chosen = drawn.sample(range(options.processes), reporting)
        for process in chosen:
            sequences[process] += 1
        node.take(
            [
                report_of(number, sequences[number], size, some(drawn, size, options.touched))
                for number in chosen
            ]
        )
        changes.append(answered(figures, "node, small change", node, since))
        since = node.version
        node.take()
        quiet.append(answered(figures, "node, nothing changed", node, since))
    figures.add("node, complete answer: bytes", len(complete) / 1e6, "MB")
    for data in changes:
        figures.add("node, small change: bytes", len(data) / 1e6, "MB")
    return Sequel(complete, changes, quiet)


def measure_checkpoint(figures: Figures, node: Node, rounds: int) -> bytes:
    checkpoint = b""
    for _ in range(rounds):
        laps = Laps(figures, "checkpoint")
        checkpoint = node.checkpoint()
        laps.lap("encoded")
        gc.collect()
        laps = Laps(figures, "checkpoint")
        state = node.restored(checkpoint)
        laps.lap("decoded and loaded")
        del state
    figures.add("checkpoint: bytes", len(checkpoint) / 1e6, "MB")
    return checkpoint


def measure_reports(figures: Figures, node: Node, options: argparse.Namespace) -> None:
    """Measure the way of reports into a state that is full already; times are per report."""
    first = 1_000_000
    drawn = random.Random(2)
    small = options.connections // options.processes
    everything = range(LARGE_REPORT)
    node.take([report_of(first, 1, LARGE_REPORT)])
    node.take(report_of(first + 1 + number, 1, small) for number in range(SMALL_REPORTS))
    for number in range(options.rounds * REPORT_ROUNDS):
        sequence = 2 + number
        follow(
            figures, f"report with {LARGE_REPORT:,} connections, full", node,
            [report_of(first + 1_000 + number, 1, LARGE_REPORT)],
        )  # fmt: skip
        follow(
            figures, f"report with {LARGE_REPORT:,} connections, changed", node,
            [report_of(first, sequence, LARGE_REPORT, everything)],
        )  # fmt: skip
        changed = max(1, round(small * options.touched))
        follow(
            figures, f"report of {SMALL_REPORTS} with {changed} connections, changed", node,
            [
                report_of(first + 1 + other, sequence, small, some(drawn, small, options.touched))
                for other in range(SMALL_REPORTS)
            ],
        )  # fmt: skip


def follow(figures: Figures, step: str, node: Node, reports: Sequence[Report]) -> None:
    """Measure one batch from the bytes of its reports until it is applied, in us per report."""
    path = node.path
    sent = [path.sent(report) for report in reports]
    del reports
    laps = Laps(figures, step, 1e6 / len(sent), "us")
    for data in sent:
        path.queue(data)
    batch = path.batch()
    laps.lap("bytes to batch")
    assert batch is not None
    command = path.command(batch)
    laps.lap("batch to command")
    node.apply(command)
    laps.lap("command to applied")
    laps.end()


def measure_reader(figures: Figures, sequel: Sequel, connections: int) -> None:
    seen: frozenset[Any] = frozenset()
    for _ in sequel.changes:
        reader = Reader()
        laps = Laps(figures, "reader, first refresh")
        reader.apply(sequel.complete)
        laps.lap("decoded and applied")
        rows = reader.rows()
        laps.lap("rows made")
        laps.end()
        assert len(rows) == connections, len(rows)
        seen = frozenset(key for key, _ in rows[:SCREEN_ROWS])
        del rows
    for step, keys in (("all ages", None), ("ages on the screen", seen)):
        reader = Reader()
        reader.apply(sequel.complete)
        rows = reader.rows(keys)
        for change, quiet in zip(sequel.changes, sequel.quiet, strict=True):
            laps = Laps(figures, f"reader, small change, {step}")
            reader.apply(change)
            laps.lap("decoded and applied")
            rows = reader.rows(keys)
            laps.lap("rows made")
            laps.end()
            laps = Laps(figures, f"reader, nothing changed, {step}")
            reader.apply(quiet)
            rows = reader.rows(keys)
            laps.lap("total")
            assert len(rows) == connections, len(rows)


def measure_console(figures: Figures, sequel: Sequel, connections: int) -> None:
    """Measure refreshes of the view: ordered by held time, and in an order that does not depend on ages."""
    for _ in sequel.changes:
        console = Console(200, 50, "held_seconds")
        console.apply(sequel.complete)
        refresh(figures, "console, first refresh, by held time, 200x50", console, connections)
    for sort, by in (("held_seconds", "held time"), ("server_id", "server id")):
        for width, height in ((80, 24), (200, 50)):
            console = Console(width, height, sort)
            console.apply(sequel.complete)
            refresh(Figures(), "", console, connections)
            for change in sequel.changes:
                console.apply(change)
                refresh(figures, f"console, refresh, by {by}, {width}x{height}", console, connections)


def refresh(figures: Figures, step: str, console: Console, connections: int) -> None:
    laps = Laps(figures, step)
    rows = console.rows()
    laps.lap("rows made")
    console.order(rows)
    laps.lap("in order")
    lines = console.draw()
    laps.lap("drawn")
    laps.end()
    assert len(rows) == connections and len(lines) > 20


def measure_memory(figures: Figures, sequel: Sequel, checkpoint: bytes) -> None:
    """Measure the memory of Python objects, by tracemalloc."""

    def grown(step: str, call: Callable[[], Any]) -> Any:
        gc.collect()
        tracemalloc.start()
        kept = call()
        gc.collect()
        figures.add(f"memory: {step}", tracemalloc.get_traced_memory()[0] / 1e6, "MB")
        tracemalloc.stop()
        return kept

    def read(rows: bool) -> Any:
        reader = Reader()
        reader.apply(sequel.complete)
        return reader, reader.rows() if rows else None

    def drawn() -> Console:
        console = Console(200, 50, "held_seconds")
        console.apply(sequel.complete)
        console.order(console.rows())
        console.draw()
        return console

    grown("node's state", lambda: Node.restored(checkpoint))
    grown("reader's table", lambda: read(False))
    grown("reader's table and rows", lambda: read(True))
    grown("console's table, rows and order", drawn)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    figures = Figures()
    began = time.perf_counter()
    node, size = filled(options.connections, options.processes)
    connections = size * options.processes
    print(
        f"{options.processes} processes, {connections} connections; load {os.getloadavg()[0]:.1f}", flush=True
    )
    figures.add("node, filled", time.perf_counter() - began, "s")
    sequel = measure_node(figures, node, size, options)
    checkpoint = measure_checkpoint(figures, node, options.rounds)
    measure_reports(figures, node, options)
    node.close()
    del node  # a reader is another process: its garbage collector does not see the state
    gc.collect()
    measure_reader(figures, sequel, connections)
    measure_console(figures, sequel, connections)
    measure_memory(figures, sequel, checkpoint)
    chosen = ("connections", "processes", "reporting", "touched", "rounds")
    return {
        "options": {name: getattr(options, name) for name in chosen},
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "steps": figures.summary(),
    }


# --- Printing -----------------------------------------------------------------------------------


def form(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def ranged(figure: dict[str, Any]) -> str:
    return f"{form(figure['median']):>9} [{form(figure['min'])} {form(figure['max'])}]"


def table(measured: dict[str, Any]) -> list[str]:
    return [f"{step:66} {figure['unit']:2} {ranged(figure)}" for step, figure in measured["steps"].items()]


def compared(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each step: both figures, and their ratio."""
    lines = []
    if before["options"] != now["options"]:
        lines.append(f"NOT THE SAME OPTIONS: {before['options']} before, {now['options']} now")
    lines.append(f"{'':66}    {'before':32} {'now':32} ratio")
    for step in [*before["steps"], *(step for step in now["steps"] if step not in before["steps"])]:
        old, new = before["steps"].get(step), now["steps"].get(step)
        cells = [f"{'-' if figure is None else ranged(figure):32}" for figure in (old, new)]
        both = old is not None and new is not None and old["median"] > 0
        ratio = f"x{new['median'] / old['median']:.2f}" if both else "-"
        lines.append(f"{step:66} {(old or new)['unit']:2} {cells[0]} {cells[1]} {ratio}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=500)
    parser.add_argument("--reporting", type=float, default=0.01, help="part of the processes that report")
    parser.add_argument("--touched", type=float, default=0.1, help="part of their connections that change")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument("--compare", metavar="FILE", help="show the figures of this file next to these")
    options = parser.parse_args()
    if options.connections // max(1, options.processes) < 2 or options.rounds < 1:
        parser.error("each process has two connections or more, and there is one round or more")
    before = json.loads(FilePath(options.compare).read_text()) if options.compare else None
    measured = measure(options)
    if options.json:
        FilePath(options.json).write_text(json.dumps(measured, indent=1) + "\n")
    print("\n".join(table(measured) if before is None else compared(before, measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

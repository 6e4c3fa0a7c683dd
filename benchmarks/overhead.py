"""Overhead of the plugin in an application: per checkout + checkin, per statement, and in other threads.

    python benchmarks/overhead.py [--quick] [--rounds N] [--load LOAD] [--json FILE] [--instructions]
    python benchmarks/overhead.py --background  time of the import, and of its thread with 100 connections

Exit code 1 if connmond has not counted exactly the checkouts, or a ConnectionEvents listener is registered.
The targets of time are printed and not judged.

Rules kept here, since the machine's noise is larger than the overhead:

- Every variant has its own process, and all of them run at the same time. For each variant, in random order,
  a round runs a slice of some milliseconds of it and one of the bare variant, in random order as well. The
  ratio within such a pair counts; the figures are the median of all pairs, and the quartiles.
- Two processes that do the same differ by some percent for their whole life (the place of their memory, the
  hashes of their dicts). So all are replaced several times (`GENERATIONS`), and a second variant is bare as
  well: its overhead is the error.
- connmon is measured in its usual state: its reporter thread runs, and reports go to a real connmond. At the
  end connmond has to know exactly the checkouts of the processes.
- CPU time covers the whole process. The CPU time of other threads is printed as well, since a median does
  not see an event that comes once a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import pwd
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from sqlalchemy import (
    URL,
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    make_url,
    orm,
    select,
    text,
)  # fmt: skip
from sqlalchemy.dialects import registry
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import QueuePool

#: Label of each variant, and the modules that it needs.
VARIANTS: Final[dict[str, tuple[str, str]]] = {
    "bare": ("no plugin", "sqlalchemy"),
    "again": ("no plugin, once more", "sqlalchemy"),
    "listeners": ("two empty listeners", "sqlalchemy"),
    "connmon": ("connmon", "connmon"),
    "quiet": ("connmon, no looks", "connmon"),
    "collectd": ("sqlalchemy-collectd", "sqlalchemy_collectd"),
    # greenlet: it imports sqlalchemy.ext.asyncio, and SQLAlchemy 2.1 does not install greenlet.
    "opentelemetry": ("opentelemetry", "opentelemetry.instrumentation.sqlalchemy opentelemetry.sdk greenlet"),
}
#: The variants with connmon, and their options.
WATCHED: Final[dict[str, dict[str, str]]] = {"connmon": {}, "quiet": {"connmon_profile": "0"}}
#: Title, statements per slice, and connmon's target as a ratio of CPU time.
LOADS: Final[dict[str, tuple[str, int, float | None]]] = {
    "pool": ("pool checkout + checkin, dummy driver", 1500, 1.30),
    "threads": ("the same, 8 threads at a pool of 4", 800, None),
    "asyncio": ("SELECT 1, aiosqlite, 8 tasks at a pool of 4", 96, None),
    "orm": ("Session and select of one object, SQLite", 100, None),
    "select": ("SELECT 1, PyMySQL and MariaDB", 100, 1.03),
}
#: Threads or tasks of the loads that have several, and the size of the pool that they share.
TOGETHER: Final = 8
SHARED: Final = 4
FIRST: Final = TOGETHER
"""Statements before the first measured one."""
PREPARING: Final = {"orm": 2}
"""Checkouts before those: to create the table, and to look for the object."""
#: Targets of the reporter's thread and of the import: a share of a core, and seconds on top of SQLAlchemy.
REPORTER_TARGET: Final = 0.002
IMPORT_TARGET: Final = 0.060
GENERATIONS: Final = 12
WARM: Final = 5
"""Before a slice, one in this many of its statements runs unmeasured."""
HOST: Final = "127.0.0.1"
#: Makes a program die with the benchmark.
LAUNCH: Final = str(Path(__file__).resolve().parents[1] / "tests" / "support" / "launch.py")
WAIT: Final = 30.0
"""Limit in seconds of every wait."""


class NotInstalled(Exception):
    """A requirement of a part of the benchmark is not on this machine."""


# --- The process that is measured ---------------------------------------------------------


class DummyDBAPI:
    """A driver that does nothing, so that only the pool is measured."""

    paramstyle = "qmark"
    Error = Exception

    def connect(self, **_: Any) -> DummyDBAPI:
        return DummyDBAPI()

    def rollback(self) -> None: ...

    def close(self) -> None: ...


class DummyDialect(DefaultDialect):
    name = driver = "dummy"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        return DummyDBAPI()

    def initialize(self, connection: Any) -> None: ...


def make_engine(variant: str, url: URL, report_to: str, load: str = "pool") -> Engine:
    """Return an engine that a variant watches, set up as the variant's documentation says."""
    registry.register("dummy", __name__, "DummyDialect")
    options: dict[str, Any] = {} if load == "asyncio" else {"poolclass": QueuePool}
    if load in ("threads", "asyncio"):
        options |= {"pool_size": SHARED, "max_overflow": 0}
    if variant in WATCHED:
        url = url.update_query_dict({"plugin": "connmon", "connmon_addr": report_to, **WATCHED[variant]})
    elif variant == "collectd":
        host, port = report_to.split(":")
        url = url.update_query_dict({"plugin": "collectd", "collectd_host": host, "collectd_port": port})
    if load == "asyncio":
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(url, **options).sync_engine
    else:
        engine = create_engine(url, **options)
    if variant == "listeners":
        event.listen(engine, "checkout", lambda connection, record, proxy: None)
        event.listen(engine, "checkin", lambda connection, record: None)
    elif variant == "opentelemetry":
        _opentelemetry(engine)
    return engine


def _opentelemetry(engine: Engine) -> None:
    """Trace and count with the SDK; exports are discarded, so they cost nothing here."""
    base = "opentelemetry"
    # No import statements: mypy would reject them if the packages are not installed.
    api_metrics, api_trace, sdk_metrics, readers, resources, sdk_trace, processors, instrumentation = map(
        importlib.import_module,
        (
            f"{base}.metrics", f"{base}.trace", f"{base}.sdk.metrics", f"{base}.sdk.metrics.export",
            f"{base}.sdk.resources", f"{base}.sdk.trace", f"{base}.sdk.trace.export",
            f"{base}.instrumentation.sqlalchemy",
        ),
    )  # fmt: skip

    class Nowhere:
        def export(self, spans: Any) -> Any:
            return processors.SpanExportResult.SUCCESS

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    own = resources.Resource.create({resources.SERVICE_NAME: "overhead"})
    traces = sdk_trace.TracerProvider(resource=own)
    traces.add_span_processor(processors.BatchSpanProcessor(Nowhere()))
    api_trace.set_tracer_provider(traces)
    nowhere = open(os.devnull, "w")  # noqa: SIM115  # it is open as long as the process runs
    reader = readers.PeriodicExportingMetricReader(readers.ConsoleMetricExporter(nowhere))
    api_metrics.set_meter_provider(sdk_metrics.MeterProvider(resource=own, metric_readers=[reader]))
    # 0.66b1 requires SQLAlchemy < 2.1, but works with 2.1.
    instrumentation.SQLAlchemyInstrumentor().instrument(engine=engine, skip_dep_check=True)


def runner(engine: Engine, load: str) -> Callable[[int], Any]:
    """Return a function that runs a number of statements."""
    if load == "threads":
        return _in_threads(engine)
    if load == "asyncio":
        return _in_tasks(engine)
    once = _statement(engine, load)

    def run(count: int) -> None:
        for _ in range(count):
            once()

    return run


def _statement(engine: Engine, load: str) -> Callable[[], Any]:
    """Return a function that runs one statement."""
    if load == "pool":
        connect = engine.raw_connection
        return lambda: connect().close()
    if load == "orm":
        return _orm(engine)
    select_1 = text("SELECT 1")

    def select_one() -> None:
        with engine.connect() as connection:
            connection.scalar(select_1)

    return select_one


def _orm(engine: Engine) -> Callable[[], Any]:
    things = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))
    things.metadata.create_all(engine)

    class Thing:
        name: str

    orm.registry().map_imperatively(Thing, things)
    with orm.Session(engine) as session:
        if session.get(Thing, 1) is None:
            session.execute(things.insert().values(id=1, name="one"))
            session.commit()
    wanted = select(Thing).where(things.c.id == 1)

    def one() -> None:
        with orm.Session(engine) as session:
            assert session.scalars(wanted).one().name == "one"

    return one


def _in_threads(engine: Engine) -> Callable[[int], Any]:
    connect = engine.raw_connection

    def some(count: int) -> None:
        for _ in range(count):
            connection = connect()
            time.sleep(0.0)  # while it holds the connection: other threads run, and wait for one
            connection.close()

    def run(count: int) -> None:
        threads = [threading.Thread(target=some, args=(count // TOGETHER,)) for _ in range(TOGETHER)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def _in_tasks(engine: Engine) -> Callable[[int], Any]:
    from sqlalchemy.ext.asyncio import AsyncEngine

    asynchronous, select_1, loop = AsyncEngine(engine), text("SELECT 1"), asyncio.new_event_loop()

    async def some(count: int) -> None:
        for _ in range(count):
            async with asynchronous.connect() as connection:
                await connection.scalar(select_1)

    async def all_of(count: int) -> None:
        await asyncio.gather(*[some(count // TOGETHER) for _ in range(TOGETHER)])

    return lambda count: loop.run_until_complete(all_of(count))


def connection_listeners(engine: Engine) -> list[str]:
    """Return the names of the ConnectionEvents that have a listener."""
    dispatch: Any = engine.dispatch
    names = [name for name in dispatch._event_names if len(getattr(dispatch, name))]
    return names + ["_has_events"] * bool(engine._has_events)


def warming(statements: int) -> int:
    """Return how many statements run unmeasured before this many measured ones."""
    return TOGETHER * max(1, statements // WARM // TOGETHER)


def work(variant: str, load: str, url: str, report_to: str) -> None:
    """Run as a measured process: answer each number on stdin with the time of that many statements."""
    logging.disable()  # sqlalchemy-collectd's own warnings would be measured as well
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    engine = make_engine(variant, make_url(url), report_to, load)
    run = runner(engine, load)
    run(FIRST)
    print(json.dumps(connection_listeners(engine)), file=answer)
    for line in sys.stdin:
        statements = int(line)
        # A process that ran less recently would be slower: its code and data have left the caches.
        run(warming(statements))
        others = time.process_time_ns() - time.thread_time_ns()
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        run(statements)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        print(json.dumps([cpu, wall, others]), file=answer)


# --- Nodes and servers --------------------------------------------------------------------


def _port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    with log.open("wb") as output:
        launch = [sys.executable, "-I", "-S", LAUNCH, "SIGKILL", "", *command]
        process = subprocess.Popen(launch, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        limit = time.monotonic() + WAIT
        while not ready():
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(
                    f"{command[0]!r} did not start:\n{log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def connmond(directory: Path) -> Iterator[str]:
    """Run a node; yield its address."""
    address, log = f"{HOST}:{_port()}", directory / "connmond.log"
    config = directory / "connmon.cfg"
    config.write_text(
        "[connmon_service_default]\nname: default\n\n"
        f"nodes:\n    node1 hostname={address} bind={HOST}\n"
    )  # fmt: skip
    # The module, not the script: sqlalchemy-collectd installs a script named connmon as well.
    command = [sys.executable, "-m", "connmon.cluster.daemon", "--config", str(config)]
    with _running(command, log, lambda: b"ready service=" in log.read_bytes()):
        yield address


@contextlib.contextmanager
def mariadb(directory: Path) -> Iterator[str]:
    """Run a MariaDB server with all files in `directory`; yield its URL. Raises NotInstalled."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/libexec"])
    server, install = (shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db"))
    if server is None or install is None or importlib.util.find_spec("pymysql") is None:
        raise NotInstalled("MariaDB or PyMySQL")
    import pymysql

    own = [f"--datadir={directory}/data", f"--user={pwd.getpwuid(os.geteuid()).pw_name}"]
    subprocess.run(
        [install, "--no-defaults", *own, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    port = _port()

    def answers() -> bool:
        with contextlib.suppress(pymysql.Error):
            pymysql.connect(host=HOST, port=port, user="root").close()
            return True
        return False

    command = [
        server, "--no-defaults", *own, f"--socket={directory}/socket", f"--pid-file={directory}/pid",
        f"--bind-address={HOST}", f"--port={port}", "--skip-name-resolve",
        "--innodb-buffer-pool-size=32M",
    ]  # fmt: skip
    with _running(command, directory / "mariadb.log", answers):
        yield f"mysql+pymysql://root@{HOST}:{port}/mysql?charset=utf8mb4"


def known_checkouts(address: str) -> int:
    """Return the checkouts that connmond has counted, over all processes, ended ones included."""
    command = [
        sys.executable, "-c", "import sys; from connmon.commands.cli import main; sys.exit(main())",
        "snapshot", "--host", address, "--format", "json",
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=WAIT)
    return int(json.loads(done.stdout)["totals"]["checkouts_total"] or 0)


# --- Measuring ----------------------------------------------------------------------------


class Worker:
    """The handle of one measured process."""

    def __init__(self, variant: str, load: str, url: str, report_to: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", variant, load, url, report_to],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._load = load
        self.listeners: list[str] = []
        self.statements = 0
        self.others = 0
        """CPU nanoseconds, until the last slice, of all threads but the main one."""

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"this process has ended, run it to see why: {self._process.args!r}")
        return json.loads(line)

    def started(self) -> None:
        """Wait until the process has started."""
        self.listeners = self._read()
        self.statements = FIRST + PREPARING.get(self._load, 0)

    def run(self, statements: int) -> tuple[float, float]:
        """Run a slice; return nanoseconds per statement, of CPU and of the clock."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{statements}\n")
        self._process.stdin.flush()
        cpu, wall, self.others = self._read()
        self.statements += statements + warming(statements)
        return cpu / statements, wall / statements

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(WAIT)


@dataclass
class Row:
    """One variant under one load."""

    variant: str
    cpu: list[float] = field(default_factory=list)
    """Nanoseconds per statement, by slice."""
    cpu_ratios: list[float] = field(default_factory=list)
    wall_ratios: list[float] = field(default_factory=list)
    others: float = 0.0
    """CPU milliseconds per second of all threads but the main one."""
    instructions: float | None = None
    """Per statement, of user code."""
    missing: bool = False

    def summary(self) -> dict[str, Any]:
        """Return medians and quartiles."""
        summary: dict[str, Any] = {"variant": self.variant, "missing": self.missing}
        if self.cpu:
            summary["cpu_ns"] = statistics.median(self.cpu)
            summary["others_ms_per_second"] = self.others
            for name in ("cpu_ratios", "wall_ratios"):
                low, middle, high = statistics.quantiles(getattr(self, name), n=4, method="inclusive")
                summary[name] = {"median": middle, "quartiles": [low, high]}
        if self.instructions is not None:
            summary["instructions"] = self.instructions
        return summary


@dataclass
class Measured:
    load: str
    rows: list[Row]
    connmon_listeners: list[str] = field(default_factory=list)
    connmon_checkouts: int = 0


def measure(
    load: str, rounds: int, chosen: set[str], urls: dict[str, str], url: str, rng: random.Random
) -> Measured:
    """Run one load with all variants that are installed, interleaved."""
    rows = {name: Row(name, missing=name not in urls) for name in VARIANTS if name in chosen}
    result = Measured(load, list(rows.values()))
    count = LOADS[load][1]
    shares = _shares(rounds, GENERATIONS)
    for share in shares:
        workers = {variant: Worker(variant, load, url, urls[variant]) for variant in urls}
        try:
            for worker in workers.values():
                worker.started()
            for worker in workers.values():  # warm up the caches and the interpreter's specialisation
                worker.run(2 * count)
            started = time.monotonic()
            others = {variant: worker.others for variant, worker in workers.items()}
            for _ in range(share):
                for variant in rng.sample(sorted(set(urls) - {"bare"}), len(urls) - 1):
                    pair = rng.sample(["bare", variant], 2)
                    took = {name: workers[name].run(count) for name in pair}
                    rows["bare"].cpu.append(took["bare"][0])
                    rows[variant].cpu.append(took[variant][0])
                    rows[variant].cpu_ratios.append(took[variant][0] / took["bare"][0])
                    rows[variant].wall_ratios.append(took[variant][1] / took["bare"][1])
            seconds = time.monotonic() - started
            for variant, worker in workers.items():
                rows[variant].others += max(0, worker.others - others[variant]) / 1e6 / seconds / len(shares)
        finally:
            for worker in workers.values():
                worker.close()
        for watched in WATCHED.keys() & workers.keys():
            result.connmon_listeners += workers[watched].listeners
            result.connmon_checkouts += workers[watched].statements
    rows["bare"].cpu_ratios = rows["bare"].wall_ratios = [1.0, 1.0]
    return result


def _shares(rounds: int, parts: int) -> list[int]:
    parts = max(1, min(parts, rounds))
    return [rounds // parts + (number < rounds % parts) for number in range(parts)]


def instructions(
    variant: str, load: str, url: str, report_to: str, directory: Path
) -> tuple[float | None, int]:
    """Return the user instructions per statement, over all threads, and how many statements ran for that.

    It is the difference of two runs of different length, so the start and end of a process cancel out; the
    median of three differences, since memory has other places each time. None: nothing here can count.
    """
    counter = _counter(directory / "instructions")
    if counter is None:
        return None, 0
    statements, figures = 0, []
    for _ in range(3):
        counts = []
        for factor in (2, 12):
            slice_ = factor * LOADS[load][1]
            command = [*counter[0], sys.executable, __file__, "--work", variant, load, url, report_to]
            environment = {**os.environ, "PYTHONHASHSEED": "0"}
            done = subprocess.run(
                command, input=f"{slice_}\n", text=True, capture_output=True, env=environment, check=True
            )
            statements += PREPARING.get(load, 0) + FIRST + slice_ + warming(slice_)
            match = re.search(counter[1], done.stderr)
            if match is None:
                return None, statements
            counts.append(int(match[1]))
        figures.append((counts[1] - counts[0]) / (10 * LOADS[load][1] * (1 + 1 / WARM)))
    return statistics.median(figures), statements


def _counter(output: Path) -> tuple[list[str], str] | None:
    """Return the command that counts instructions, and the pattern of the number on its stderr."""
    perf = shutil.which("perf")
    if perf is not None:
        command, pattern = [perf, "stat", "-x,", "-e", "instructions:u", "--"], r"(?m)^(\d+),,instructions"
        tried = subprocess.run([*command, sys.executable, "-c", ""], capture_output=True, text=True)
        if re.search(pattern, tried.stderr):  # a virtual machine may have no such counter
            return command, pattern
    valgrind = shutil.which("valgrind")
    if valgrind is not None:
        return [valgrind, "--tool=callgrind", f"--callgrind-out-file={output}"], r"Collected : (\d+)"
    return None


# --- In the background --------------------------------------------------------------------

_IMPORT: Final = "import time; a = time.perf_counter(); import {}; print(time.perf_counter() - a)"
_BARE: Final = "sqlalchemy, sqlalchemy.dialects.mysql.pymysql, socket, threading, logging"
_WATCHED: Final = f"{_BARE}, connmon.plugin.dialect, connmon.plugin.pool, connmon.plugin.reporter"
_HUNDRED: Final = """
import sys, time
from sqlalchemy import create_engine
engines = [create_engine(sys.argv[2], pool_size=10, max_overflow=0) for _ in range(10)]
held = [engine.raw_connection() for engine in engines for _ in range(10)]
for connection in held:
    connection.close()
time.sleep(3.0)
others = lambda: time.process_time_ns() - time.thread_time_ns()
before, began = others(), time.perf_counter_ns()
while time.perf_counter_ns() - began < float(sys.argv[1]) * 1e9:
    if sys.argv[3] == "busy":
        for engine in engines:
            taken = [engine.raw_connection() for _ in range(10)]
            for connection in taken:
                connection.close()
    time.sleep(0.1)
print((others() - before) / (time.perf_counter_ns() - began))
"""


def background(rounds: int) -> int:
    """Print the cost of the import on top of SQLAlchemy's, and of the reporter with 100 connections."""

    def output(*command: str) -> float:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
        return float(done.stdout)

    took: dict[str, list[float]] = {_BARE: [], _WATCHED: []}
    for _ in range(rounds):
        for modules in random.sample([*took], 2):
            took[modules].append(output("-c", _IMPORT.format(modules)))
    bare, watched = (statistics.median(took[modules]) for modules in (_BARE, _WATCHED))
    print(f"import, medians of {rounds}: SQLAlchemy with PyMySQL {bare * 1000:.0f} ms, with connmon ", end="")
    print(f"{(watched - bare) * 1000:+.0f} ms   target: at most +{IMPORT_TARGET * 1000:.0f} ms", flush=True)
    with tempfile.TemporaryDirectory(prefix="connmon-overhead-") as name, connmond(Path(name)) as address:
        plain = f"sqlite:///{name}/x.db"
        for use in ("idle", "busy"):
            shares: dict[str, list[float]] = {"without": [], "with": []}
            for _ in range(3):
                shares["without"].append(output("-c", _HUNDRED, "5", plain, use))
                shares["with"].append(
                    output("-c", _HUNDRED, "10", f"{plain}?plugin=connmon&connmon_addr={address}", use)
                )
            without, reporter = (100 * statistics.median(shares[which]) for which in ("without", "with"))
            text_of_use = "all at rest" if use == "idle" else "each used 10 times a second"
            print(
                f"other threads, 100 connections, {text_of_use}: {without:.3f} % of a core without "
                f"connmon, {reporter:.3f} % with it   target: at most {REPORTER_TARGET * 100:.1f} %",
                flush=True,
            )
    return 0


# --- Printing -----------------------------------------------------------------------------


def table(measured: Measured) -> Iterator[str]:
    """Yield the lines of one load's table."""
    title, _, target = LOADS[measured.load]
    yield f"{title} (quartiles in brackets)"
    heads = ("CPU ratio", "wall ratio")
    yield f"{'':24}{'CPU us':>8}  {heads[0]:<19}{heads[1]:<19}{'other threads':>13}{'instructions':>14}"
    bare = measured.rows[0].instructions
    for row in measured.rows:
        label = f"  {VARIANTS[row.variant][0]:22}"
        if row.missing:
            yield f"{label}not installed"
            continue
        summary = row.summary()
        yield (
            f"{label}{summary['cpu_ns'] / 1000:8.2f}  {_ratio(summary['cpu_ratios']):<19}"
            f"{_ratio(summary['wall_ratios']):<19}{row.others:8.2f} ms/s"
            + (f"{row.instructions:8.0f} x{row.instructions / bare:.2f}" if row.instructions and bare else "")
        ) + (f"   target: at most x{target:.2f}" if row.variant == "connmon" and target else "")
    names = sorted(set(measured.connmon_listeners))
    if measured.connmon_checkouts:
        yield f"  ConnectionEvents listeners registered: {', '.join(names) or 'none'}"
    yield ""


def _ratio(ratio: dict[str, Any]) -> str:
    low, high = ratio["quartiles"]
    return f"x{ratio['median']:.3f} [{low:.2f} {high:.2f}]" if low != high else f"x{ratio['median']:.3f}"


def check(measured: Sequence[Measured], address: str) -> bool:
    """Print and return whether connmond has counted exactly the checkouts."""
    expected = sum(one.connmon_checkouts for one in measured)
    limit = time.monotonic() + WAIT
    while (known := known_checkouts(address)) != expected and time.monotonic() < limit:
        time.sleep(0.2)
    verdict = "all of them" if known == expected else f"NOT the real {expected}"
    print(f"connmond counted {known} checkouts of the connmon rows: {verdict}")
    return known == expected


def _installed(modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules.split())
    except ModuleNotFoundError:  # not even the package around it
        return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=120, help="rounds of each load (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="20 rounds: a first look")
    parser.add_argument("--load", choices=[*LOADS], action="append", help="default: all")
    parser.add_argument(
        "--background", action="store_true", help="the import and the reporter's thread instead"
    )
    parser.add_argument("--only", choices=[*VARIANTS], action="append", help="variants besides the bare one")
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions as well (perf or valgrind)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        work(*options.work)
        return 0
    if options.background:
        return background(5 if options.quick else 15)
    rounds = min(options.rounds, 20) if options.quick else options.rounds
    chosen = {"bare", *(options.only or VARIANTS)}
    measured: list[Measured] = []
    good = True
    print(
        f"SQLAlchemy {sqlalchemy.__version__}, Python {sys.version.split()[0]}, {rounds} rounds\n", flush=True
    )
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="connmon-overhead-")))
        installed = [
            name for name, (_, modules) in VARIANTS.items() if name in chosen and _installed(modules)
        ]
        # sqlalchemy-collectd sends datagrams to a port that is open; they are not read.
        sink = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sink.bind((HOST, 0))
        report_to = {name: f"{HOST}:{sink.getsockname()[1]}" for name in installed}
        watched = WATCHED.keys() & set(installed)
        if watched:
            report_to |= dict.fromkeys(watched, stack.enter_context(connmond(directory)))
        for load in options.load or LOADS:
            url = "dummy://"
            if load in ("orm", "asyncio"):
                driver = "aiosqlite" if load == "asyncio" else "pysqlite"
                url = f"sqlite+{driver}:///{directory}/{load}.db"
            if load == "orm":  # before all workers try to create its table at once
                _orm(create_engine(url))
            if load == "asyncio" and not _installed("aiosqlite greenlet"):
                print(f"{LOADS[load][0]}: aiosqlite or greenlet not installed\n")
                continue
            if load == "select":
                try:
                    url = stack.enter_context(mariadb(directory))
                except NotInstalled as error:
                    print(f"{LOADS[load][0]}: {error} not installed\n")
                    continue
            result = measure(load, rounds, chosen, report_to, url, random.Random())
            if options.instructions:
                for row in result.rows:
                    if not row.missing:
                        where = report_to[row.variant]
                        row.instructions, ran = instructions(row.variant, load, url, where, directory)
                        result.connmon_checkouts += ran if row.variant in WATCHED else 0
            measured.append(result)
            print("\n".join(table(result)), flush=True)
        if watched and measured:
            good = check(measured, report_to[min(watched)]) and not any(
                one.connmon_listeners for one in measured
            )
    if options.json:
        document = {
            "sqlalchemy": sqlalchemy.__version__, "python": sys.version.split()[0], "rounds": rounds,
            "loads": [{**asdict(one), "rows": [row.summary() for row in one.rows]} for one in measured],
        }  # fmt: skip
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

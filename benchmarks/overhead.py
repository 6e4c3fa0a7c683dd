"""What it costs an application to be watched: per checkout + checkin, per statement, and beside them.

    python benchmarks/overhead.py [--quick] [--rounds N] [--load LOAD] [--json FILE] [--instructions]
    python benchmarks/overhead.py --beside      what importing it takes, and its thread with 100 connections

Exit code 1 where connmond has not counted what happened, or a ConnectionEvents listener is
registered; the targets of time are shown and not judged.

Rules kept here, since the machine is noisier than what is measured:

- Every variant is a process of its own, and all of them live at the same time. A round runs, for
  each variant in random order, a slice of some milliseconds of it and one of the bare variant
  beside it, in random order as well. What counts is the ratio within such a pair; told are the
  median of all of them, and the quartiles.
- Two processes that do the same differ by some percent, for as long as they live (where their
  memory lies, how their dicts hash). So all are replaced several times (`GENERATIONS`), and one
  variant is bare as well: what it shows as added is the error.
- connmon is measured as it is used: reporter thread running, reports going to a real connmond.
  At the end connmond must know as many checkouts as the processes say they did.
- CPU is of the whole process. Threads beside the main one are told apart as well: the median does
  not see what comes once a second.
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
    "collectd": ("sqlalchemy-collectd", "sqlalchemy_collectd"),
    # greenlet: it imports sqlalchemy.ext.asyncio, and SQLAlchemy 2.1 does not bring it along.
    "opentelemetry": ("opentelemetry", "opentelemetry.instrumentation.sqlalchemy opentelemetry.sdk greenlet"),
}
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
"""Statements before any is measured."""
PREPARING: Final = {"orm": 2}
"""Checkouts before those: of making the table, and of looking for the object."""
#: What the reporter's thread and the import may take: a share of a core, and seconds beyond SQLAlchemy.
REPORTER_TARGET: Final = 0.002
IMPORT_TARGET: Final = 0.060
GENERATIONS: Final = 12
WARM: Final = 5
"""One in so many statements of a slice is run once more before it, unmeasured."""
HOST: Final = "127.0.0.1"
#: Makes a program die with the benchmark.
LAUNCH: Final = str(Path(__file__).resolve().parents[1] / "tests" / "support" / "launch.py")
WAIT: Final = 30.0
"""Seconds that anything is waited for."""


class NotInstalled(Exception):
    """What a part of the benchmark needs is not on this machine."""


# --- The process that is measured ---------------------------------------------------------


class DummyDBAPI:
    """A driver that does nothing: what is left is the pool."""

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
    """Return an engine watched by a variant as its own documentation says."""
    registry.register("dummy", __name__, "DummyDialect")
    options: dict[str, Any] = {} if load == "asyncio" else {"poolclass": QueuePool}
    if load in ("threads", "asyncio"):
        options |= {"pool_size": SHARED, "max_overflow": 0}
    if variant == "connmon":
        url = url.update_query_dict({"plugin": "connmon", "connmon_addr": report_to})
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
    """Trace and count with the SDK; what is exported is thrown away, so that costs nothing here."""
    base = "opentelemetry"
    # Not by import statements: where they are not installed, mypy would not like those.
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
    nowhere = open(os.devnull, "w")  # noqa: SIM115  # as long as the process lives
    reader = readers.PeriodicExportingMetricReader(readers.ConsoleMetricExporter(nowhere))
    api_metrics.set_meter_provider(sdk_metrics.MeterProvider(resource=own, metric_readers=[reader]))
    # 0.66b1 says it wants SQLAlchemy < 2.1, and works with 2.1 all the same.
    instrumentation.SQLAlchemyInstrumentor().instrument(engine=engine, skip_dep_check=True)


def runner(engine: Engine, load: str) -> Callable[[int], Any]:
    """Return what runs so many statements."""
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
    """Return what is run once per statement."""
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
            time.sleep(0.0)  # while it holds it: the others get their turn, and wait
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
    """Return the names of the ConnectionEvents that somebody listens to."""
    dispatch: Any = engine.dispatch
    found = [name for name in dispatch._event_names if len(getattr(dispatch, name))]
    return found + ["_has_events"] * bool(engine._has_events)


def warming(statements: int) -> int:
    """Return how many statements are run unmeasured before so many."""
    return TOGETHER * max(1, statements // WARM // TOGETHER)


def work(variant: str, load: str, url: str, report_to: str) -> None:
    """Be a measured process: each number on stdin is answered with what so many statements took."""
    logging.disable()  # sqlalchemy-collectd's own warnings would be measured as well
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    engine = make_engine(variant, make_url(url), report_to, load)
    run = runner(engine, load)
    run(FIRST)
    print(json.dumps(connection_listeners(engine)), file=answer)
    for line in sys.stdin:
        statements = int(line)
        # What ran less lately would be slower for that alone: its code and data have left the caches.
        run(warming(statements))
        others = time.process_time_ns() - time.thread_time_ns()
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        run(statements)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        print(json.dumps([cpu, wall, others]), file=answer)


# --- What it takes beside it --------------------------------------------------------------


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
    """Run a node; give its address."""
    address, log = f"{HOST}:{_port()}", directory / "connmond.log"
    config = directory / "connmon.cfg"
    config.write_text(
        "[connmon_service_default]\nname: default\n\n"
        f"nodes:\n    node1 hostname={address} bind={HOST}\n"
    )  # fmt: skip
    # By its module: sqlalchemy-collectd installs a script of the name connmon as well.
    command = [sys.executable, "-m", "connmon.cluster.daemon", "--config", str(config)]
    with _running(command, log, lambda: b"ready service=" in log.read_bytes()):
        yield address


@contextlib.contextmanager
def mariadb(directory: Path) -> Iterator[str]:
    """Run a MariaDB server with everything in `directory`; give the URL. Raises NotInstalled."""
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
    """Return what connmond has counted, over all processes, ended ones included."""
    command = [
        sys.executable, "-c", "import sys; from connmon.commands.cli import main; sys.exit(main())",
        "snapshot", "--host", address, "--format", "json",
    ]  # fmt: skip
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=WAIT)
    return int(json.loads(found.stdout)["totals"]["checkouts_total"] or 0)


# --- Measuring ----------------------------------------------------------------------------


class Worker:
    """One measured process, seen from here."""

    def __init__(self, variant: str, load: str, url: str, report_to: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", variant, load, url, report_to],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._load = load
        self.listeners: list[str] = []
        self.statements = 0
        self.others = 0
        """CPU nanoseconds, until the last slice, of threads beside the main one."""

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"this process has ended, run it to see why: {self._process.args!r}")
        return json.loads(line)

    def started(self) -> None:
        """Wait until it has started."""
        self.listeners = self._read()
        self.statements = FIRST + PREPARING.get(self._load, 0)

    def run(self, statements: int) -> tuple[float, float]:
        """Run a slice; return nanoseconds per statement, of CPU and by the clock."""
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
    """CPU milliseconds per second of threads beside the main one."""
    instructions: float | None = None
    """Per statement, of user code."""
    missing: bool = False

    def summary(self) -> dict[str, Any]:
        """Return medians and quartiles."""
        found: dict[str, Any] = {"variant": self.variant, "missing": self.missing}
        if self.cpu:
            found["cpu_ns"] = statistics.median(self.cpu)
            found["others_ms_per_second"] = self.others
            for name in ("cpu_ratios", "wall_ratios"):
                low, middle, high = statistics.quantiles(getattr(self, name), n=4, method="inclusive")
                found[name] = {"median": middle, "quartiles": [low, high]}
        if self.instructions is not None:
            found["instructions"] = self.instructions
        return found


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
    rows = {each: Row(each, missing=each not in urls) for each in VARIANTS if each in chosen}
    result = Measured(load, list(rows.values()))
    count = LOADS[load][1]
    shares = _shares(rounds, GENERATIONS)
    for share in shares:
        workers = {variant: Worker(variant, load, url, urls[variant]) for variant in urls}
        try:
            for worker in workers.values():
                worker.started()
            for worker in workers.values():  # warm: caches, and what the interpreter specialises
                worker.run(2 * count)
            started = time.monotonic()
            others = {variant: worker.others for variant, worker in workers.items()}
            for _ in range(share):
                for variant in rng.sample(sorted(set(urls) - {"bare"}), len(urls) - 1):
                    pair = rng.sample(["bare", variant], 2)
                    took = {each: workers[each].run(count) for each in pair}
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
        if "connmon" in workers:
            result.connmon_listeners += workers["connmon"].listeners
            result.connmon_checkouts += workers["connmon"].statements
    rows["bare"].cpu_ratios = rows["bare"].wall_ratios = [1.0, 1.0]
    return result


def _shares(rounds: int, parts: int) -> list[int]:
    parts = max(1, min(parts, rounds))
    return [rounds // parts + (number < rounds % parts) for number in range(parts)]


def instructions(
    variant: str, load: str, url: str, report_to: str, directory: Path
) -> tuple[float | None, int]:
    """Return user instructions per statement, all threads, and how many statements were run for that.

    Two runs of different length are told apart, so what starts and ends a process cancels out;
    the median of three such, since memory lies elsewhere each time. None: nothing here counts them.
    """
    counter = _counter(directory / "instructions")
    if counter is None:
        return None, 0
    statements, found = 0, []
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
        found.append((counts[1] - counts[0]) / (10 * LOADS[load][1] * (1 + 1 / WARM)))
    return statistics.median(found), statements


def _counter(output: Path) -> tuple[list[str], str] | None:
    """Return the tool that counts instructions, and where on its stderr the number stands."""
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


# --- Beside the statements ----------------------------------------------------------------

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


def beside(rounds: int) -> int:
    """Print what the import takes beyond SQLAlchemy's, and the reporter's thread with 100 connections."""

    def said(*command: str) -> float:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
        return float(done.stdout)

    took: dict[str, list[float]] = {_BARE: [], _WATCHED: []}
    for _ in range(rounds):
        for modules in random.sample([*took], 2):
            took[modules].append(said("-c", _IMPORT.format(modules)))
    bare, watched = (statistics.median(took[modules]) for modules in (_BARE, _WATCHED))
    print(f"import, medians of {rounds}: SQLAlchemy with PyMySQL {bare * 1000:.0f} ms, with connmon ", end="")
    print(f"{(watched - bare) * 1000:+.0f} ms   target: at most +{IMPORT_TARGET * 1000:.0f} ms", flush=True)
    with tempfile.TemporaryDirectory(prefix="connmon-overhead-") as name, connmond(Path(name)) as address:
        plain = f"sqlite:///{name}/x.db"
        for kind in ("idle", "busy"):
            shares: dict[str, list[float]] = {"without": [], "with": []}
            for _ in range(3):
                shares["without"].append(said("-c", _HUNDRED, "5", plain, kind))
                shares["with"].append(
                    said("-c", _HUNDRED, "10", f"{plain}?plugin=connmon&connmon_addr={address}", kind)
                )
            without, reporter = (100 * statistics.median(shares[which]) for which in ("without", "with"))
            what = "all at rest" if kind == "idle" else "each used 10 times a second"
            print(
                f"threads beside the main one, 100 connections, {what}: {without:.3f} % of a core without "
                f"connmon, {reporter:.3f} % with it   target: at most {REPORTER_TARGET * 100:.1f} %",
                flush=True,
            )
    return 0


# --- Telling ------------------------------------------------------------------------------


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
        found = row.summary()
        yield (
            f"{label}{found['cpu_ns'] / 1000:8.2f}  {_ratio(found['cpu_ratios']):<19}"
            f"{_ratio(found['wall_ratios']):<19}{row.others:8.2f} ms/s"
            + (f"{row.instructions:8.0f} x{row.instructions / bare:.2f}" if row.instructions and bare else "")
        ) + (f"   target: at most x{target:.2f}" if row.variant == "connmon" and target else "")
    names = sorted(set(measured.connmon_listeners))
    if measured.connmon_checkouts:
        yield f"  ConnectionEvents listeners registered: {', '.join(names) or 'none'}"
    yield ""


def _ratio(found: dict[str, Any]) -> str:
    low, high = found["quartiles"]
    return f"x{found['median']:.3f} [{low:.2f} {high:.2f}]" if low != high else f"x{found['median']:.3f}"


def check(measured: Sequence[Measured], address: str) -> bool:
    """Say whether connmond got all that happened, and return it."""
    expected = sum(each.connmon_checkouts for each in measured)
    limit = time.monotonic() + WAIT
    while (known := known_checkouts(address)) != expected and time.monotonic() < limit:
        time.sleep(0.2)
    verdict = "all of them" if known == expected else f"NOT the {expected} that there were"
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
    parser.add_argument("--beside", action="store_true", help="the import and the reporter's thread instead")
    parser.add_argument("--only", choices=[*VARIANTS], action="append", help="variants beside the bare one")
    parser.add_argument("--instructions", action="store_true", help="count these as well (perf or valgrind)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE, too")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        work(*options.work)
        return 0
    if options.beside:
        return beside(5 if options.quick else 15)
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
        if "connmon" in installed:
            report_to["connmon"] = stack.enter_context(connmond(directory))
        for load in options.load or LOADS:
            url = "dummy://"
            if load in ("orm", "asyncio"):
                driver = "aiosqlite" if load == "asyncio" else "pysqlite"
                url = f"sqlite+{driver}:///{directory}/{load}.db"
            if load == "orm":  # before all workers find at once that its table is missing
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
            found = measure(load, rounds, chosen, report_to, url, random.Random())
            if options.instructions:
                for row in found.rows:
                    if not row.missing:
                        where = report_to[row.variant]
                        row.instructions, ran = instructions(row.variant, load, url, where, directory)
                        found.connmon_checkouts += ran if row.variant == "connmon" else 0
            measured.append(found)
            print("\n".join(table(found)), flush=True)
        if "connmon" in installed and measured:
            good = check(measured, report_to["connmon"]) and not any(
                each.connmon_listeners for each in measured
            )
    if options.json:
        document = {
            "sqlalchemy": sqlalchemy.__version__, "python": sys.version.split()[0], "rounds": rounds,
            "loads": [{**asdict(each), "rows": [row.summary() for row in each.rows]} for each in measured],
        }  # fmt: skip
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compare what three tools say about one pool with the truth: connections open, held, idle, threads waiting.

    python benchmarks/exactness.py

Besides connmon it needs sqlalchemy-collectd, opentelemetry-instrumentation-sqlalchemy, opentelemetry-sdk and
setuptools; a tool that is not installed is left out. Exit code 1 if connmon is wrong.

Rules kept here:

- The driver's connections themselves count the truth (open), and the script (held, waiting); idle is open
  minus held.
- Every tool sees the same steps in a separate process. connmon is read from a real connmond, after time for a
  report; the others directly.
- A figure that a tool does not report is a dash.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import QueuePool

TOOLS = {
    "connmon": "connmon",
    "sqlalchemy-collectd": "sqlalchemy_collectd",
    "opentelemetry": "opentelemetry.instrumentation.sqlalchemy",
}


class Counts(NamedTuple):
    """The truth, or a tool's figures; None: the tool does not report it."""

    open: int
    held: int
    idle: int
    waiting: int | None


class Counted(sqlite3.Connection):
    """A connection; `open` has all connections that are open."""

    open: ClassVar[weakref.WeakSet[Counted]] = weakref.WeakSet()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        Counted.open.add(self)

    def close(self) -> None:
        Counted.open.discard(self)
        super().close()


def steps(engine: Engine) -> Iterator[tuple[str, Counts]]:
    """Use the engine's pool of two; after each step yield its name and the truth."""

    def truth(held: int, waiting: int = 0) -> Counts:
        gc.collect()
        return Counts(len(Counted.open), held, len(Counted.open) - held, waiting)

    one, two = engine.connect(), engine.connect()
    waiter = threading.Thread(target=lambda: engine.connect().close())
    waiter.start()
    time.sleep(0.3)
    yield "two are held, a thread waits for a third", truth(2, 1)
    one.detach()
    waiter.join()
    one.close()
    two.close()
    yield "one was detached and closed, all others are given back", truth(0)
    with engine.connect() as connection:
        connection.invalidate()
    yield "one was invalidated and given back", truth(0)
    with engine.connect(), engine.connect():
        pass
    yield "two were taken and given back", truth(0)
    engine.dispose()
    yield "dispose()", truth(0)
    with engine.connect():
        engine.dispose(close=False)
    del connection
    yield "dispose(close=False), the pool is garbage", truth(0)


#: A watched engine, a function that asks the tool, and one that ends the tool's processes.
Watched = tuple[Engine, Callable[[], Counts], Callable[[], object]]


def connmon(engine_url: str, options: dict[str, Any]) -> Watched:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    config = Path(tempfile.mkdtemp()) / "connmon.cfg"
    config.write_text(
        f"[connmon_service_default]\nname: default\nnodes:\n  one hostname=127.0.0.1:{port} bind=127.0.0.1\n"
    )
    command = [sys.executable, "-m", "connmon.cluster.daemon", "-c", str(config)]
    node = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert node.stderr is not None
    while " ready " not in (line := node.stderr.readline()):
        assert line, "connmond has ended"
    engine = create_engine(f"{engine_url}?plugin=connmon&connmon_addr=127.0.0.1:{port}", **options)

    def ask() -> Counts:
        time.sleep(2.5)
        # The module, not the script: sqlalchemy-collectd has a script of the same name.
        program = "import sys; from connmon.commands.cli import main; sys.exit(main(sys.argv[1:]))"
        arguments = ["snapshot", "--host", f"127.0.0.1:{port}", "--format", "json"]
        output = subprocess.check_output([sys.executable, "-c", program, *arguments])
        totals = json.loads(output)["totals"]
        return Counts(*[totals[key] for key in ("connections", "checked_out", "idle", "waiting")])

    return engine, ask, node.terminate


def collectd(engine_url: str, options: dict[str, Any]) -> Watched:
    from sqlalchemy_collectd.client import collector

    engine = create_engine(engine_url, **options)
    target = collector.CollectionTarget("exactness")
    collector.EngineCollector(target, engine)

    def ask() -> Counts:
        return Counts(target.num_connections, target.num_checkedout, target.num_checkedin, None)

    return engine, ask, lambda: None


def opentelemetry(engine_url: str, options: dict[str, Any]) -> Watched:
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    engine = create_engine(engine_url, **options)
    SQLAlchemyInstrumentor().instrument(
        engine=engine, meter_provider=MeterProvider([reader]), skip_dep_check=True
    )

    def ask() -> Counts:
        data = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]
        metrics = data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
        points = next(m for m in metrics if m["name"] == "db.client.connections.usage")["data"]["data_points"]
        by_state = {point["attributes"]["state"]: point["value"] for point in points}
        return Counts(sum(by_state.values()), by_state.get("used", 0), by_state.get("idle", 0), None)

    return engine, ask, lambda: None


def run(tool: str) -> None:
    """Print a line of JSON for each step: its name, the truth and the tool's figures."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        options: dict[str, Any] = {
            "poolclass": QueuePool, "pool_size": 2, "max_overflow": 0, "connect_args": {"factory": Counted}
        }  # fmt: skip
        make = {"connmon": connmon, "sqlalchemy-collectd": collectd, "opentelemetry": opentelemetry}[tool]
        engine, ask, end = make(f"sqlite:///{place}/one.db", options)
        try:
            for step, truth in steps(engine):
                print(json.dumps([step, truth, ask()]), flush=True)
        finally:
            end()


def formatted(counts: list[int | None]) -> str:
    return " ".join(f"{'-' if count is None else count:>4}" for count in counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tool", nargs="?", choices=TOOLS, help=argparse.SUPPRESS)
    tool_to_run = parser.parse_args().tool
    if tool_to_run:
        run(tool_to_run)
        return 0
    results: dict[str, list[Any]] = {}
    for tool, module in TOOLS.items():
        try:
            installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            installed = False
        if not installed:
            print(f"{tool}: not installed")
            continue
        output = subprocess.check_output([sys.executable, __file__, tool], text=True)
        results[tool] = [json.loads(line) for line in output.splitlines()]
    first = next(iter(results.values()))
    print(f"{'open, held, idle, waiting':62}  {'actual':19}  " + "  ".join(f"{tool:25}" for tool in results))
    for number, (step, truth, _) in enumerate(first):
        cells = []
        for lines in results.values():
            assert lines[number][1] == truth, "not the same steps"
            counts = lines[number][2]
            wrong = any(a != b for a, b in zip(counts, truth, strict=True) if a is not None)
            cells.append(f"{formatted(counts)}{' wrong' if wrong else '':5}")
        print(f"{step:62}  {formatted(truth)}  " + "  ".join(f"{cell:25}" for cell in cells))
    return int(any(truth != counts for _, truth, counts in results.get("connmon", [])))


if __name__ == "__main__":
    sys.exit(main())

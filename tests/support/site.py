"""A node, the applications that report to it, and the comparison of what both know.

`Worker` is one process of an application; `Site` starts and stops workers and compares. Rule kept here: every
comparison is for equality, to the unit. No figure is left out because it is hard to know.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url

from connmon.protocol.values import Grouping
from tests.support.nodes import RunningNode
from tests.support.servers import Server
from tests.support.waiting import wait_for

ROOT = str(Path(__file__).parents[2])
GAUGES = ("connections", "checked_out", "idle", "overflow", "detached")
TOTALS = (
    "connects_total", "closes_total", "checkouts_total", "checkins_total",
    "invalidations_total", "timeouts_total", "connect_errors_total",
)  # fmt: skip
#: The seed of the applications' random work; how their threads interleave differs each time.
SEED = int(os.environ.get("CONNMON_TEST_SEED", "1"))
#: Seconds of work, before and between events.
WORK = 1.0
#: Seconds within which a quiet system has to show the truth.
TRUTH = 10.0
#: Seconds that no call of an application may reach. A call that waited for a stopped node would take longer.
CALL = 2.5

Spec = dict[str, Any]


def figures(spec: Spec, report: dict[str, Any]) -> Counter[str]:
    """Return the figures of one engine's own books, by the keys of the snapshot."""
    states = [state for _, state in report["sessions"]]
    assert len(states) - states.count("idle") == report["kept"], f"the books are wrong: {report}"
    attached = len(states) - states.count("detached")
    own = len(states) - report["adopted"]
    size = spec.get("size")
    return Counter(
        pools=0 if report["gone"] else 1,
        connections=len(states),
        checked_out=states.count("checked_out"),
        idle=states.count("idle"),
        detached=states.count("detached"),
        overflow=0 if size is None else max(0, attached - size),
        connects_total=report["connects"],
        closes_total=report["connects"] - own,
        checkouts_total=report["checkouts"],
        checkins_total=report["checkins"],
        invalidations_total=report["invalidations"],
        timeouts_total=report["timeouts"],
        connect_errors_total=report["connect_errors"],
    )


def at_the_end(truth: Counter[str], killed: bool) -> Counter[str]:
    """Return the totals that a process leaves when it ends after these books.

    A process that ends in good order has closed its open connections, and returned those that it held.
    """
    totals = Counter({key: truth[key] for key in TOTALS})
    if not killed:
        totals["closes_total"] = totals["connects_total"]
        totals["checkins_total"] = totals["checkouts_total"]
    return totals


def capacity(specs: Sequence[Spec]) -> int | None:
    if any(spec.get("null") for spec in specs):
        return None
    return sum(int(spec["size"]) + int(spec["overflow"]) for spec in specs)


def assert_row(row: dict[str, Any], truth: Counter[str], name: str) -> None:
    """Assert that every figure of the row is right; `name` is the row's in the failure."""
    reported = {key: row[key] for key in (*GAUGES, *TOTALS)}
    assert reported == {key: truth[key] for key in reported}, name
    assert row["waiting"] == 0, name
    for key in ("connections", "checked_out", "waiting"):
        assert row[f"max_{key}"] >= row[key], name


class Worker:
    """One process of an application."""

    def __init__(
        self,
        program: str,
        specs: list[Spec],
        threads: int,
        seed: int,
        environment: dict[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self.program = program
        self.specs = {spec["name"]: spec for spec in specs}
        options = json.dumps({"engines": specs, "threads": threads, "seed": seed})
        self.process = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                "-W",
                "error",
                "-W",
                "ignore::ResourceWarning",
                "-m",
                "tests.support.application",
                options,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": ROOT, **environment},
            text=True,
            start_new_session=True,
        )
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stderr: list[str] = []
        self.last: dict[str, Any] = {}
        self.threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._complaints, daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))

    def _complaints(self) -> None:
        assert self.process.stderr is not None
        self.stderr.extend(self.process.stderr)

    def tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": order}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        try:
            return self.answers.get(timeout=20)
        except queue.Empty:
            pytest.fail(f"{self.program} {self.process.pid} does not answer: {''.join(self.stderr)}")

    @property
    def pid(self) -> int:
        return int(self.last["pid"])

    def take_report(self) -> dict[str, Any]:
        """Take an answer that is a report, and check that no call of the application failed or was slow."""
        self.last = self.answer()
        assert not self.last["errors"], "\n".join(self.last["errors"][:3])
        assert self.last["slowest"] < CALL
        return self.last

    def truth(self) -> list[tuple[Spec, dict[str, Any], Counter[str]]]:
        """Return for each engine its spec, the application's report, and the figures."""
        return [
            (spec, report, figures(spec, report))
            for report in self.last["accounts"]
            for spec in [self.specs[report["name"]]]
        ]

    def sum(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for _, _, truth in self.truth():
            total.update(truth)
        return total

    def end(self) -> None:
        """Wait for the process, which has the order to end."""
        assert self.process.wait(20) == 0, "".join(self.stderr)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self.threads:
            thread.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


class Child(Worker):
    """A process that a worker has forked; it answers on the worker's stdout."""

    def __init__(self, parent: Worker) -> None:
        self.program = parent.program
        self.specs = parent.specs
        self.last = parent.answer()
        assert not self.last["errors"], "\n".join(self.last["errors"][:3])


class Site:
    """A node and the applications, and what the node has to show."""

    #: The command under which the applications run (for a network namespace).
    prefix: tuple[str, ...] = ()

    def __init__(self, directory: Path, mariadb: Server, postgresql: Server) -> None:
        self.directory = directory
        self.mariadb = mariadb
        self.postgresql = postgresql
        self.node = RunningNode(directory)
        self.workers: list[Worker] = []
        self.living: list[Worker] = []
        self.ended: list[tuple[str, Spec, Counter[str]]] = []
        """The totals of ended processes: the program, the engine, the figures."""

    # --- engines

    def engine(self, driver: str, where: str, plugin: bool = False, **spec: Any) -> Spec:
        """Return the spec of an engine for the application. `where`: its connmon options."""
        made: Spec = {"driver": driver, "size": 2, "overflow": 2, "timeout": 0.1, **spec}
        made["async"] = driver in ("asyncmy", "asyncpg", "aiosqlite") or made.get("async", False)
        if driver in ("pysqlite", "aiosqlite"):
            made["file"] = str(self.directory / f"{driver}.db")
            url = URL.create(f"sqlite+{driver}", database=made["file"])
            database: tuple[Any, ...] = ("sqlite", None, None, made["file"])
        else:
            server = self.postgresql if driver in ("psycopg2", "psycopg", "asyncpg") else self.mariadb
            url = make_url(server.url(driver))
            if made.get("broken"):
                url = url.set(port=1)
            database = (url.get_backend_name(), url.host, url.port, url.database)
            login = {
                "host": server.host,
                "port": server.port,
                "user": server.user,
                "password": server.password,
            }
            if server is self.mariadb:
                made["login"] = {**login, "database": server.database}
                made["id_query"], made["sleep_query"] = "SELECT connection_id()", "SELECT sleep(0.2)"
                made["kill_self"] = "KILL connection_id()"
            else:
                made["login"] = {**login, "dbname": server.database}
                made["id_query"], made["sleep_query"] = "SELECT pg_backend_pid()", "SELECT pg_sleep(0.2)"
                made["kill_self"] = "SELECT pg_terminate_backend(pg_backend_pid())"
        if made.get("null"):
            made["size"] = None
        made["database"] = database
        plain = URL.create(url.drivername, url.username, None, url.host, url.port, url.database)
        made["plain_url"] = plain.render_as_string()
        options = dict(pair.split("=") for pair in where.split("&"))
        if plugin:
            url = url.update_query_dict({"plugin": "connmon", **options})
        else:
            url = url.set(drivername=f"{url.drivername}_connmon").update_query_dict(options)
        made["url"] = url.render_as_string(hide_password=False)
        made.setdefault("name", f"{driver} {len(made['url'])}")
        return made

    def engines(self, number: int, where: str) -> list[Spec]:
        """Return a mixture of engines; three successive numbers cover every kind."""
        mixtures: list[list[tuple[str, dict[str, Any]]]] = [
            [
                ("pymysql", {}),
                ("psycopg2", {"size": 1, "overflow": 3}),
                ("pysqlite", {"size": 3, "overflow": 0}),
                ("asyncpg", {}),
                ("pymysql", {"name": "ping", "ping": True, "size": 1, "overflow": 0, "timeout": 5.0}),
            ],
            [
                ("mysqldb", {"size": 3, "overflow": 1}),
                ("psycopg", {}),
                ("asyncmy", {"size": 1, "overflow": 2}),
                ("pysqlite", {"null": True}),
                ("pymysql", {"name": "broken", "broken": True}),
                ("psycopg2", {"name": "ping", "ping": True, "size": 1, "overflow": 0, "timeout": 5.0}),
            ],
            [
                ("pymysql", {"null": True}),
                ("psycopg2", {"size": 1, "overflow": 0}),
                ("aiosqlite", {}),
                ("psycopg", {"name": "psycopg async", "async": True}),
                ("pysqlite", {"size": 1, "overflow": 4}),
            ],
        ]
        return [
            self.engine(driver, where, plugin=bool((number + place) % 2), **options)
            for place, (driver, options) in enumerate(mixtures[number % len(mixtures)])
        ]

    # --- processes

    def where(self, number: int, program: str) -> tuple[str, dict[str, str]]:
        """Return the options and the environment that give a worker the node: each way in turn."""
        if number % 3 == 0:
            return f"connmon_program={program}&connmon_config={self.node.config}", {}
        if number % 3 == 1:
            return f"connmon_program={program}&connmon_addr={self.node.address}", {}
        environment = {"CONNMON_CONFIG": str(self.node.config)}
        return f"connmon_program={program}&connmon_service=default", environment

    def worker(self, program: str, specs: list[Spec] | None = None, threads: int = 4) -> Worker:
        number = len(self.workers)
        where, environment = self.where(number, program)
        specs = specs if specs is not None else self.engines(number, where)
        worker = Worker(program, specs, threads, SEED + number, environment, self.prefix)
        self.workers.append(worker)
        self.living.append(worker)
        return worker

    def start(self, *programs: str) -> list[Worker]:
        """Start a worker for each program, and return when all of them work."""
        started = [self.worker(program) for program in programs]
        for worker in started:
            worker.last = worker.answer()
        self.load(started)
        return started

    def load(self, workers: Sequence[Worker] | None = None) -> None:
        for worker in self.living if workers is None else workers:
            worker.tell("load")
            assert worker.answer() == {}

    def quiet(self, workers: Sequence[Worker] | None = None) -> None:
        """Have the applications finish their work and report."""
        workers = self.living if workers is None else workers
        for worker in workers:
            worker.tell("quiet")
        for worker in workers:
            worker.take_report()

    def has_ended(self, worker: Worker, *, killed: bool = False) -> None:
        """Count the worker as ended, with the totals of its last report."""
        self.living.remove(worker)
        self.ended += [(worker.program, spec, at_the_end(truth, killed)) for spec, _, truth in worker.truth()]

    def work(self, seconds: float = WORK) -> None:
        """Let the applications work for some seconds. There is no condition to wait for."""
        deadline = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() > deadline, seconds + 5)

    # --- comparing

    def check(self) -> bool:
        """Assert that the node shows exactly what the applications know."""
        documents = self.node.snapshots()
        process_rows = {row["pid"]: row for row in documents["process"]["rows"]}
        assert len(process_rows) == len(documents["process"]["rows"])
        # The smallest rows first: a difference there says most.
        self._check_pools(documents["pool"]["rows"])
        self._check_connections(documents["connection"]["rows"])
        self._check_processes(process_rows)
        self._check_programs(documents["program"]["rows"])
        self._check_host(documents["host"]["rows"])
        self._check_databases(documents["database"]["rows"])
        everything = self._sum()
        for by, document in documents.items():
            assert document["service"] == self.node.service
            assert document["quorum"]
            totals = document["totals"]
            assert_row(totals, everything, f"totals by {by}")
            assert totals["processes"] == len(self.living)
            assert totals["pools"] == everything["pools"]
            assert totals["capacity"] == capacity(self._living_specs())
            assert totals["programs"] == len({worker.program for worker in self.living})
            assert totals["hosts"] == (1 if self.living else 0)
        return True

    def equal(self) -> None:
        """Wait until the node shows the truth, and compare it with the servers' own lists."""

        # A cheap check first, then the real command.
        def processes() -> bool:
            self._check_processes({row["pid"]: row for row in self.node.rows("process")})
            return True

        with contextlib.suppress(pytest.fail.Exception):  # the check below says it in more detail
            wait_for(processes, TRUTH)
        wait_for(self.check, 2.0, "the node to show what the applications know")
        rows = self.node.rows("connection")
        for server in (self.mariadb, self.postgresql):
            own = {row["server_id"] for row in rows if row["dialect"] == server.backend}
            assert {session.id for session in server.sessions()} == own
        processes()  # still equal

    def _living_specs(self, only: Callable[[Worker, Spec], bool] = lambda worker, spec: True) -> list[Spec]:
        """Return the engines of running processes."""
        return [spec for worker in self.living for spec in worker.specs.values() if only(worker, spec)]

    def _sum(self, only: Callable[[str, Spec], bool] = lambda program, spec: True) -> Counter[str]:
        """Return the sum of the figures of running processes and the totals of ended ones."""
        total: Counter[str] = Counter()
        for worker in self.living:
            for spec, _, truth in worker.truth():
                if only(worker.program, spec):
                    total.update(truth)
        for program, spec, truth in self.ended:
            if only(program, spec):
                total.update({key: truth[key] for key in TOTALS})
        return total

    def _check_processes(self, rows: dict[int, dict[str, Any]]) -> None:
        assert set(rows) == {worker.pid for worker in self.living}
        for worker in self.living:
            row = rows[worker.pid]
            name = f"process {worker.pid} of {worker.program}"
            assert row["program"] == worker.program
            assert row["state"] == "connected"
            assert_row(row, worker.sum(), name)
            assert row["pools"] == len(worker.specs), name
            assert row["capacity"] == capacity(list(worker.specs.values())), name

    def _check_programs(self, rows: list[dict[str, Any]]) -> None:
        programs = {row["program"]: row for row in rows}
        assert len(programs) == len(rows)
        known = {worker.program for worker in self.living} | {program for program, _, _ in self.ended}
        assert set(programs) == known
        for name, row in programs.items():
            living = [worker for worker in self.living if worker.program == name]
            assert row["processes"] == len(living)
            assert row["max_processes"] >= len(living)
            assert row["state"] == ("connected" if living else "gone")
            assert_row(row, self._sum(lambda program, _, name=name: program == name), f"program {name}")  # type: ignore[misc]
            specs = self._living_specs(lambda worker, _, name=name: worker.program == name)  # type: ignore[misc]
            assert row["capacity"] == capacity(specs)
            assert row["pools"] == len(specs)

    def _check_host(self, rows: list[dict[str, Any]]) -> None:
        (row,) = rows
        assert_row(row, self._sum(), "the host")
        assert row["processes"] == len(self.living)
        assert row["programs"] == len({worker.program for worker in self.living})
        assert row["pools"] == len(self._living_specs())

    def _check_databases(self, rows: list[dict[str, Any]]) -> None:
        def key(row: dict[str, Any]) -> tuple[Any, ...]:
            return row["dialect"], row["database_host"], row["database_port"], row["database"]

        databases = {key(row): row for row in rows}
        assert len(databases) == len(rows)
        engines = [(worker.pid, worker.program, s) for worker in self.living for s in worker.specs.values()]
        ended = [spec for _, spec, _ in self.ended]
        assert set(databases) == {spec["database"] for spec in [*(e[2] for e in engines), *ended]}
        for database, row in databases.items():
            name = f"database {database}"
            here = [engine for engine in engines if engine[2]["database"] == database]
            truth = self._sum(lambda _, spec, database=database: spec["database"] == database)  # type: ignore[misc]
            assert_row(row, truth, name)
            assert row["processes"] == len({pid for pid, _, _ in here}), name
            assert row["programs"] == len({program for _, program, _ in here}), name
            assert row["pools"] == len(here), name
            assert row["capacity"] == capacity([spec for _, _, spec in here]), name

    def _check_pools(self, rows: list[dict[str, Any]]) -> None:
        """Compare the pools with the engines; engines of one URL are compared as one."""
        truth: dict[tuple[int, str], Counter[str]] = {}
        for worker in self.living:
            for spec, report, engine_figures in worker.truth():
                if not report["gone"]:
                    truth.setdefault((worker.pid, spec["plain_url"]), Counter()).update(engine_figures)
        pool_rows: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in rows:
            pool_rows.setdefault((row["pid"], row["pool"]), []).append(row)
        assert set(pool_rows) == set(truth)
        for key, here in pool_rows.items():
            assert len(here) == truth[key]["pools"], key
            sums = {figure: sum(row[figure] for row in here) for figure in (*GAUGES, *TOTALS)}
            true = {figure: truth[key][figure] for figure in sums}
            assert sums == true, f"pool {key}: {set(sums.items()) ^ set(true.items())}"

    def _check_connections(self, rows: list[dict[str, Any]]) -> None:
        truth: Counter[tuple[Any, ...]] = Counter()
        for worker in self.living:
            for spec, report, _ in worker.truth():
                assert not (report["gone"] and report["sessions"]), f"an engine that is gone holds: {report}"
                for number, state in report["sessions"]:
                    truth[worker.pid, spec["plain_url"], number, state] += 1
        reported = Counter((row["pid"], row["pool"], row["server_id"], row["state"]) for row in rows)
        assert reported == truth
        for row in rows:
            assert (row["held_seconds"] is None) == (row["state"] == "idle"), row
            assert (row["server_id"] is None) == (row["dialect"] == "sqlite"), row

    def pids(self, by: Grouping = "process") -> set[int]:
        return {row["pid"] for row in self.node.rows(by)}

    def remove(self) -> None:
        for worker in self.workers:
            worker.remove()
        self.node.remove()

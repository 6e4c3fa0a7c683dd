"""Print the profile of real programs, next to what others say of the same time.

    python benchmarks/real_profiles.py [--directory services] [--seconds 60] [placement airflow fastapi]

Each program is installed from PyPI into an environment of its own, with this connmon, and runs under load on
loopback, with a private MariaDB or PostgreSQL. After a warm-up of two minutes it prints `connmon profile`,
the mean number of sessions at work on the server, and of FastAPI what the application itself has timed. A
person reads it: there is no exit code for a wrong profile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
import psycopg.conninfo
import pymysql
from names import end
from overhead import HOST, _port, connmond
from services import SERVICES, environment
from simulated import launched
from sqlalchemy import make_url

from tests.support.servers import MariaDB, PostgreSQL

ROOT: Final = Path(__file__).resolve().parents[1]
REAL: Final = Path(__file__).with_name("real")
#: What a program needs besides its own packages.
EXTRAS: Final = {
    "placement": ["gunicorn"],
    "airflow": ["psycopg2-binary", "asyncpg"],
    "fastapi": ["psycopg2-binary", "asyncpg", "uvicorn"],
}
ENDPOINTS: Final = ("report", "checkout", "forecast", "one")
CONNMON: Final = "import sys; from connmon.commands.cli import main; sys.exit(main())"


@dataclass
class Bench:
    """What runs: servers, nodes, and the processes that `start` has started."""

    directory: Path
    environments: Path
    stack: contextlib.ExitStack

    @property
    def config(self) -> Path:
        return self.directory / "connmon.cfg"

    def start(self, name: str, *command: object, env: Mapping[str, str] | None = None) -> None:
        """Start a command; its output is in a file of this name. It ends with this process."""
        with (self.directory / f"{name}.log").open("wb") as output:
            process = launched(
                [*map(str, command)], cwd=self.directory,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "CONNMON_CONFIG": str(self.config), **(env or {})},
            )  # fmt: skip
        self.stack.callback(end, process)

    def python(self, service: str) -> Path:
        """Return the Python of the service's environment."""
        python = environment(self.environments, service)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *EXTRAS[service]], check=True)
        return python

    def connmon(self, *words: str) -> str:
        command = [sys.executable, "-c", CONNMON, "--config", str(self.config), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return done.stdout


def watched(url: str) -> str:
    return url + ("&" if "?" in url else "?") + "plugin=connmon"


def wait_for_page(url: str) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


def placement(bench: Bench, server: MariaDB) -> None:
    python, port = bench.python("placement"), _port()
    bench.start(
        "placement", python, "-m", "gunicorn", "-w", 1, "--threads", 12, "-b", f"{HOST}:{port}",
        "placement.wsgi.api:application",
        env={
            "OS_PLACEMENT_DATABASE__CONNECTION": watched(server.url("pymysql", charset="utf8")),
            "OS_PLACEMENT_DATABASE__SYNC_ON_STARTUP": "true",
            "OS_PLACEMENT_DATABASE__MAX_POOL_SIZE": "3",
            "OS_PLACEMENT_DATABASE__MAX_OVERFLOW": "2",
            "OS_API__AUTH_STRATEGY": "noauth2",
        },
    )  # fmt: skip
    wait_for_page(f"http://{HOST}:{port}/")
    bench.start("placement-load", sys.executable, REAL / "placement_load.py", port, 150, 4)


def fastapi(bench: Bench, server: PostgreSQL) -> list[str]:
    """Return the addresses of the two applications."""
    python, payments = bench.python("fastapi"), _port()
    bench.start("payments", sys.executable, REAL / "payments.py", payments)
    addresses = []
    for name, driver in (("orders_async", "asyncpg"), ("orders_sync", "psycopg2")):
        port = _port()
        environ = {
            "DATABASE_URL": watched(server.url(driver)),
            "PAYMENTS_URL": f"http://{HOST}:{payments}",
        }
        bench.start(
            name, python, "-m", "uvicorn", "--app-dir", REAL, "--port", port, "--no-access-log",
            f"{name}:app", env=environ,
        )  # fmt: skip
        addresses.append(f"http://{HOST}:{port}")
        wait_for_page(f"{addresses[-1]}/hold-times")
        bench.start(f"{name}-load", python, REAL / "orders_load.py", addresses[-1])
    return addresses


def airflow(bench: Bench, server: PostgreSQL) -> None:
    python, port = bench.python("airflow"), _port()
    command = python.with_name("airflow")
    home = bench.directory / "airflow"
    (home / "dags").mkdir(parents=True)
    (home / "dags" / "dags.py").write_text((REAL / "dags.py").read_text())
    with psycopg.connect(connection_string(server), autocommit=True) as connection:
        connection.execute("CREATE DATABASE airflow")
    urls = [
        watched(str(server.url(driver)).rpartition("/")[0] + "/airflow") for driver in ("psycopg2", "asyncpg")
    ]
    environ = {
        "AIRFLOW_HOME": str(home),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{port}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": urls[0],
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": urls[1],
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://{HOST}:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": "abc",
        "AIRFLOW__API_AUTH__JWT_SECRET": "0123456789abcdef" * 4,
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_port()),
    }
    subprocess.run(
        [command, "db", "migrate"], env={**os.environ, **environ}, check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd=bench.directory,
    )  # fmt: skip
    for name in ("api-server", "dag-processor", "scheduler"):
        bench.start(f"airflow-{name}", command, name, env=environ)
        if name == "api-server":
            wait_for_page(f"http://{HOST}:{port}/api/v2/version")


# --- Others that know ---------------------------------------------------------------------


def connection_string(server: PostgreSQL) -> str:
    url = make_url(server.url("psycopg"))
    return psycopg.conninfo.make_conninfo(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database
    )


class Sessions:
    """The servers' own session lists, sampled at random moments."""

    def __init__(self, bench: Bench, servers: list[Any]) -> None:
        self._bench = bench
        self._servers = servers
        self._ask: list[Any] = []
        for server in servers:
            if isinstance(server, PostgreSQL):
                self._ask.append(psycopg.connect(connection_string(server), autocommit=True).execute)
            else:
                url = make_url(server.url("pymysql"))
                connection = pymysql.connect(
                    host=HOST, port=server.port, user=url.username, password=url.password, autocommit=True
                )
                self._ask.append(self._mysql(connection))
        self.looks = 0
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        """By program: sessions that execute, and those that are in a transaction and do not."""

    @staticmethod
    def _mysql(connection: Any) -> Any:
        def execute(query: str) -> list[Any]:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return list(cursor.fetchall())

        return execute

    def _programs(self) -> dict[tuple[int, int], str]:
        rows = json.loads(self._bench.connmon("snapshot", "--by", "connection", "--format", "json"))["rows"]
        return {(row["database_port"], row["server_id"]): row["program"] for row in rows}

    def sample(self, seconds: float) -> None:
        programs, limit = self._programs(), time.monotonic() + seconds
        while time.monotonic() < limit:
            time.sleep(random.expovariate(10.0))
            self.looks += 1
            for server, ask in zip(self._servers, self._ask, strict=True):
                query = (
                    "SELECT id, command, 0 FROM information_schema.processlist WHERE id <> connection_id()"
                )
                if isinstance(server, PostgreSQL):
                    query = "SELECT pid, state, state LIKE 'idle in%' FROM pg_stat_activity"
                for session, state, in_transaction in ask(query):
                    # Only placement uses MariaDB, and its connections come and go too fast for a list.
                    default = "placement" if isinstance(server, MariaDB) else None
                    if program := programs.get((server.port, session), default):
                        self.counts[program][0] += state in ("active", "Query", "Execute", "Commit")
                        self.counts[program][1] += bool(in_transaction)

    def __str__(self) -> str:
        lines = [f"{self.looks} looks at the servers' session lists:"]
        lines += [
            f"  {program:22} executing {active / self.looks:5.2f}  in transaction {held / self.looks:5.2f}"
            for program, (active, held) in sorted(self.counts.items())
        ]
        return "\n".join(lines)


def own_times(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/hold-times", timeout=30) as response:
        times: dict[str, float] = json.load(response)
        return times


def endpoint_lines(before: dict[str, float], after: dict[str, float], seconds: float) -> Iterator[str]:
    """Yield what an application of orders has timed itself, by endpoint."""
    spent = {key: value - before.get(key, 0.0) for key, value in after.items()}
    whole = sum(spent.get(f"{name} held", 0.0) for name in ENDPOINTS)
    for name in ENDPOINTS:
        held, holds = spent.get(f"{name} held", 0.0), spent.get(f"{name} holds", 0.0)
        if held and holds:
            yield (
                f"  {name:9} share {100 * held / whole:5.1f} %  held {held / seconds:5.2f}"
                f"  holds/s {holds / seconds:5.1f}  mean {1000 * held / holds:6.1f} ms"
                f"  http {100 * spent.get(f'{name} http', 0.0) / held:5.1f} %"
                f"  own code {100 * spent.get(f'{name} own code', 0.0) / held:5.1f} %"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("programs", nargs="*", metavar="program", help=", ".join(EXTRAS))
    parser.add_argument(
        "--directory", type=Path, default=Path("services"), help="where the environments are kept"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is measured (default: 60)")
    parser.add_argument(
        "--warm-up", type=float, default=120.0, help="seconds of load before that (default: 120)"
    )
    options = parser.parse_args()
    programs = options.programs or list(EXTRAS)
    if unknown := set(programs) - set(EXTRAS):
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    assert set(EXTRAS) <= set(SERVICES)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(connmond(directory))
        bench = Bench(directory, options.directory.absolute(), stack)
        measure(bench, programs, options.warm_up, options.seconds)
    return 0


def measure(bench: Bench, programs: list[str], warm_up: float, seconds: float) -> None:
    servers: list[Any] = []
    addresses: list[str] = []
    if "placement" in programs:
        servers.append(MariaDB())
        bench.stack.callback(servers[-1].remove)
        placement(bench, servers[-1])
    if {"airflow", "fastapi"} & set(programs):
        servers.append(PostgreSQL())
        bench.stack.callback(servers[-1].remove)
    if "airflow" in programs:
        airflow(bench, servers[-1])
    if "fastapi" in programs:
        addresses = fastapi(bench, servers[-1])
    time.sleep(warm_up)
    sessions = Sessions(bench, servers)
    before, began = [own_times(address) for address in addresses], time.monotonic()
    profile = subprocess.Popen(
        [sys.executable, "-c", CONNMON, "--config", str(bench.config), "profile", "--seconds", str(seconds)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    sessions.sample(seconds)
    after, took = [own_times(address) for address in addresses], time.monotonic() - began
    print(profile.communicate()[0])
    print(sessions)
    for address, times_before, times_after in zip(addresses, before, after, strict=True):
        print(f"what {address} has timed itself:")
        print("\n".join(endpoint_lines(times_before, times_after, took)))


if __name__ == "__main__":
    sys.exit(main())

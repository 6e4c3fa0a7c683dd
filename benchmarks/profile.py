"""Whether the profile of holds is right: applications with exact books of their own, compared with connmon.

    python benchmarks/profile.py [--seconds 100] [--hz 10] [SCENARIO...]
    python benchmarks/profile.py --quick        20 s of each scenario, with wider bounds
    python benchmarks/profile.py --list
    python benchmarks/profile.py --cost         CPU of the reporter, bytes of a report, p99 of the application

Each scenario is a process of its own (profile_application) with the real plugin, that reports to a real
connmond on loopback; the table comes from `connmon snapshot --by site`. Exit code 1 where a bound is broken:

- A call site's share of its program's connection time is right within 3 points.
- The split of a program's time, and that of each call site, is right within 5 points, or within three
  standard errors where a call site was seen in too few looks for that.
- The seconds of the call sites sum to the seconds that the pools counted, to 1 ms for each call site, and are
  those of the application within the error of its clock: `CLOCK_ERROR` of them.
- No total ever goes back, and none changes when the process ends.

With --quick there are 200 looks instead of 1,000, so the bounds of shares and splits are wider by the square
root of 5.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import profile_cost
from simulated import free_ports, launched
from sqlalchemy import make_url

from connmon.config import load
from connmon.errors import ConnmonError
from connmon.protocol.document import cells
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.values import Grouping
from connmon.reader.client import read_once
from tests.support.servers import MariaDB, PostgreSQL, Server

ROOT: Final = Path(__file__).resolve().parents[1]
HOST: Final = "127.0.0.1"
APPLICATION: Final = str(Path(__file__).with_name("profile_application.py"))
_RUN: Final = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
#: How a program is started whose standard library is patched before everything else.
PATCHED: Final = {
    "gevent": ("-c", f"import gevent.monkey; gevent.monkey.patch_all(); {_RUN}"),
    "eventlet": ("-c", f"import eventlet; eventlet.monkey_patch(); {_RUN}"),
}
SHARE_POINTS: Final = 3.0
SPLIT_POINTS: Final = 5.0
#: The part of the held seconds by which the application's clock may differ, and seconds for each hold.
CLOCK_ERROR: Final = 0.002
CLOCK_ERROR_SECONDS: Final = 0.000_05
WAIT: Final = 30.0
"""Limit in seconds of every wait."""
PRESENT_LAG: Final = 6.5
"""Seconds by which a present hold may be behind: a call site is reported every 5 s."""
SETTLE: Final = 20.0
"""Seconds within which a quiet system shows everything."""


@dataclass(frozen=True)
class Kind:
    """How one scenario runs, and what is compared."""

    database: str
    """mysql+pymysql, ... or "" for SQLite in a file."""
    scenario: str
    wave: int
    """Scenarios of one wave run at the same time; 0: each alone, since they need the CPU."""
    library: str = ""
    coarse: bool = False
    """Only the database and everything else are compared: other labels depend on a library's names."""
    rest: str = "computing"
    """What the rest is. aiosqlite's cursors are made and closed in its thread: that is the database."""
    lost_seconds: float = 0.0
    """What the application's books may have more, since processes are killed."""
    nodes: int = 1


COMPUTING: Final = "computing"
#: Compared as one: by the CPU clock of a thread that a holder computed is known, but not always in what. The
#: database has answered a task that waits for the loop.
SAME: Final = {
    "own code": COMPUTING, "sqlalchemy": COMPUTING, "event loop": "database",
}  # fmt: skip

KINDS: Final[dict[str, Kind]] = {
    "threads-mariadb": Kind("mysql+pymysql", "threads", 1),
    "threads-psycopg2": Kind("postgresql+psycopg2", "threads", 1),
    "threads-psycopg": Kind("postgresql+psycopg", "threads", 1),
    "asyncio-asyncpg": Kind("postgresql+asyncpg", "async:asyncpg", 1),
    "asyncio-aiosqlite": Kind("sqlite+aiosqlite", "async:aiosqlite", 2, rest="database"),
    "gevent": Kind("mysql+pymysql", "greenlets", 2, library="gevent", coarse=True),
    "eventlet": Kind("mysql+pymysql", "greenlets", 2, library="eventlet", coarse=True),
    "sites-counted": Kind("mysql+pymysql", "sites-counted", 2),
    "sites-sampled": Kind("mysql+pymysql", "sites-sampled", 0),
    "busy": Kind("mysql+pymysql", "busy", 0),
    "locked": Kind("postgresql+psycopg2", "locked", 0, coarse=True),
    "alternating-1": Kind("mysql+pymysql", "alternating-1", 0),
    "alternating-8": Kind("mysql+pymysql", "alternating-8", 0),
    "alternating-psycopg2": Kind("postgresql+psycopg2", "alternating-8", 0),
    "short": Kind("mysql+pymysql", "short", 0),
    "short-psycopg2": Kind("postgresql+psycopg2", "short", 0),
    "periodic": Kind("mysql+pymysql", "periodic", 0),
    "bursts": Kind("mysql+pymysql", "bursts", 3),
    "sessions": Kind("mysql+pymysql", "sessions", 3),
    "waiting": Kind("mysql+pymysql", "waiting", 3),
    "waiting-fast": Kind("mysql+pymysql", "waiting-fast", 0),
    "nested": Kind("mysql+pymysql", "nested", 3),
    "present": Kind("mysql+pymysql", "present", 3, coarse=True),
    "prefork": Kind("mysql+pymysql", "prefork", 4, coarse=True, lost_seconds=2.0),
    "killed-node": Kind("mysql+pymysql", "threads", 5, nodes=3),
}


# --- What they run against ------------------------------------------------------------------


class Nodes:
    """One connmond, or a cluster of them, on loopback."""

    def __init__(self, directory: Path, count: int) -> None:
        directory.mkdir()
        self._directory = directory
        self.names = [f"node{number}" for number in range(1, count + 1)]
        free = free_ports(2 * count)
        ports, self.metrics = free[:count], free[count:]
        lines = "".join(
            f"    {name} hostname={HOST}:{port} bind={HOST}:{port}\n"
            for name, port in zip(self.names, ports, strict=True)
        )
        self.config = directory / "connmon.cfg"
        self.address = f"{HOST}:{ports[0]}"
        text = "[connmon_service_default]\nname: default\n"
        self.config.write_text(f"{text}\nnodes:\n{lines}")
        for name, port in zip(self.names, self.metrics, strict=True):
            own = f"{text}metrics: {HOST}:{port}\n\nnodes:\n{lines}"
            directory.joinpath(f"{name}.cfg").write_text(own)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Nodes:
        for name in self.names:
            self.start(name)
        self.ready(self.names)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(WAIT)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def start(self, name: str) -> None:
        command = [
            sys.executable, "-m", "connmon.cluster.daemon", "--node", name,
            "--config", str(self._directory / f"{name}.cfg"),
        ]  # fmt: skip
        with self._log(name).open("wb") as log:
            self._processes[name] = launched(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )

    def ready(self, names: Sequence[str]) -> None:
        limit = time.monotonic() + WAIT
        while not all(b"ready service=" in self._log(name).read_bytes() for name in names):
            if time.monotonic() > limit:
                raise RuntimeError(self._log(names[0]).read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def document(self, by: str, node: str | None = None) -> dict[str, Any]:
        """Return the output of the real `connmon snapshot`."""
        command = [
            sys.executable, "-c", "import sys; from connmon.commands.cli import main; sys.exit(main())",
            "snapshot", "--config", str(self.config), "--by", by, "--format", "json",
            *(["--node", node] if node else []),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=True, timeout=WAIT, cwd=ROOT)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def snapshot(self, by: Grouping) -> Snapshot:
        """Return a snapshot of any node, without a process for it."""
        return read_once(load(str(self.config)).service("default").nodes, "default", by)


class _Sleepy(BaseHTTPRequestHandler):
    """Answers /0.25 after 0.25 s."""

    def do_GET(self) -> None:
        time.sleep(float(self.path.strip("/") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@contextlib.contextmanager
def http_server() -> Iterator[str]:
    """Serve in a thread of this process; yield the URL."""
    server = ThreadingHTTPServer((HOST, 0), _Sleepy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Servers:
    """Private database servers, started when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: dict[str, Server] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.remove()

    def url(self, name: str, kind: Kind) -> str:
        if kind.database.startswith("sqlite"):
            return f"{kind.database}:///{self._directory}/{name}.db"
        backend = kind.database.split("+")[0]
        if backend not in self._servers:
            self._servers[backend] = MariaDB() if backend == "mysql" else PostgreSQL()
        return self._servers[backend].url(kind.database)


# --- One application ------------------------------------------------------------------------


@dataclass
class Outcome:
    """What was compared of one scenario, and what is wrong."""

    name: str
    kind: Kind
    books: dict[str, Any]
    rows: list[dict[str, Any]]
    counted_seconds: float
    """What the pools counted, by the program's row."""
    present: int = 0
    """Holds that went on when this was read."""
    faults: list[str] = field(default_factory=list)

    @property
    def lag(self) -> float:
        """Seconds that may be missing: present holds grow from report to report."""
        return self.kind.lost_seconds + PRESENT_LAG * self.present


class Worker:
    """The handle of one application."""

    def __init__(
        self, name: str, kind: Kind, url: str, nodes: Nodes, http: str, directory: Path, seconds: float,
        hz: float,
    ) -> None:  # fmt: skip
        query = {"plugin": "connmon", "connmon_config": str(nodes.config), "connmon_program": name,
                 "connmon_profile": f"{hz:g}"}  # fmt: skip
        watched = make_url(url).update_query_dict(query)
        self.name, self.kind, self.nodes = name, kind, nodes
        options = {
            "scenario": kind.scenario,
            "url": watched.render_as_string(hide_password=False),
            "http": http,
            "seconds": seconds,
            "seed": 7,
            "journal": str(directory / f"journal-{name}"),
        }
        self._errors = (directory / f"{name}.err").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, *PATCHED.get(kind.library, ()), APPLICATION, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def books(self) -> dict[str, Any]:
        """Wait until the work is done; return the books by call site."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} has ended:\n{self._errors.read().decode()[-3000:]}")
        books: dict[str, Any] = json.loads(line)
        return books

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(WAIT)


class Totals:
    """What the nodes show of running programs, which must never go back."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._before: dict[tuple[str, str], dict[str, float]] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Totals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(1.0):
            with contextlib.suppress(ConnmonError, OSError):
                rows = self._nodes.snapshot("site").typed_document().rows
                self._compare([cells(row) for row in rows])

    def _compare(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            key = row["program"], row["call_site"]
            now = {name: row[name] for name in row if name.endswith("_total") and _is_number(row[name])}
            places = row["where_seconds_total"] or {}
            now |= {f"where {label}": seconds for label, seconds in places.items()}
            for name, seconds in self._before.get(key, {}).items():
                if seconds > now.get(name, 0.0) + 1e-9:
                    self.faults[key[0]].append(
                        f"{key[1]}: {name} went back from {seconds} to {now.get(name)}"
                    )
            if sum(places.values()) > row["hold_seconds_total"] + 0.002 * (1 + len(places)):
                self.faults[key[0]].append(f"{key[1]}: {sum(places.values())} s by place are more than held")
            self._before[key] = now


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def counted_seconds(nodes: Nodes, program: str) -> float:
    """Return what the program's pools have counted of holds that have ended, as Prometheus reads it."""
    url = f"http://{HOST}:{nodes.metrics[0]}/metrics"
    with urllib.request.urlopen(url, timeout=WAIT) as page:
        lines = page.read().decode().splitlines()
    start, labelled = "connmon_hold_seconds_sum{", f'program="{program}"'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start) and labelled in line)


def site_rows(nodes: Nodes, program: str, node: str | None = None) -> list[dict[str, Any]]:
    return [row for row in nodes.document("site", node)["rows"] if row["program"] == program]


def settle(nodes: Nodes, program: str) -> tuple[list[dict[str, Any]], float]:
    """Read until nothing changes any more; return the rows and what the pools counted."""
    limit = time.monotonic() + SETTLE
    rows, counted = site_rows(nodes, program), counted_seconds(nodes, program)
    while time.monotonic() < limit:
        time.sleep(6.0)  # longer than between two reports of a call site
        before, rows, counted = rows, site_rows(nodes, program), counted_seconds(nodes, program)
        if [row["hold_seconds_total"] for row in rows] == [row["hold_seconds_total"] for row in before]:
            break
    return rows, counted


# --- The comparison -------------------------------------------------------------------------


def by_site(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows by the name of the books: that of the function."""
    return {_name(row["call_site"]): row for row in rows}


def _name(call_site: str) -> str:
    return call_site.rsplit(" ", 1)[-1].removesuffix("_async").removesuffix("_session")


def judge_sums(outcome: Outcome) -> Iterator[str]:
    """Yield lines; faults are added to the outcome."""
    seconds = sum(row["hold_seconds_total"] for row in outcome.rows)
    own = sum(site["held"] for site in outcome.books.values())
    holds = sum(row["holds_total"] for row in outcome.rows)
    own_holds = sum(site["holds"] for site in outcome.books.values())
    difference = seconds - outcome.counted_seconds
    yield (
        f"  sums: call sites {seconds:.3f} s, pools {outcome.counted_seconds:.3f} s "
        f"({difference * 1000:+.0f} ms), books {own:.3f} s ({(seconds - own) * 1000:+.1f} ms); "
        f"holds {holds} of {own_holds}"
    )
    rounding = 0.001 * max(1, len(outcome.rows)) + 1e-6
    # A process that was killed in a hold leaves that hold in its call site only: it has never ended.
    most = rounding + outcome.kind.lost_seconds
    if not -rounding - PRESENT_LAG * outcome.present <= difference <= most:
        outcome.faults.append(f"the call sites sum to {difference:+.3f} s of what the pools counted")
    allowed = CLOCK_ERROR * own + CLOCK_ERROR_SECONDS * own_holds + 0.005
    if not -allowed - outcome.lag <= seconds - own <= allowed:
        outcome.faults.append(f"the call sites sum to {seconds - own:+.3f} s of the application's books")


def judge_shares(outcome: Outcome, wider: float) -> Iterator[str]:
    shown = by_site(outcome.rows)
    own = sum(site["held"] for site in outcome.books.values()) or 1.0
    seconds = sum(row["hold_seconds_total"] for row in outcome.rows) or 1.0
    worst, lines = 0.0, []
    for name in sorted({*outcome.books, *shown}, key=lambda n: -outcome.books.get(n, {"held": 0.0})["held"]):
        held = outcome.books.get(name, {"held": 0.0})["held"]
        real = 100 * held / own
        row = shown.get(name)
        share = 100 * row["hold_seconds_total"] / seconds if row else 0.0
        worst = max(worst, abs(share - real))
        mark = " !" if abs(share - real) > SHARE_POINTS * wider else ""
        regime = "-" if row is None else "estimated" if row["estimated"] else "counted"
        lines.append(f"  {name:16}{real:8.2f}{share:8.2f}{share - real:+8.2f}{mark:2} {regime:10}")
        if mark:
            outcome.faults.append(f"{name}: a share of {share:.2f} % instead of {real:.2f} %")
    yield f"  {'call site':16}{'true %':>8}{'shown %':>8}{'points':>8}"
    yield from lines if len(lines) <= 12 else [*lines[:10], f"  ... {len(lines) - 10} more"]
    yield f"  worst difference of a share: {worst:.2f} points"


def renamed(places: dict[str, float], kind: Kind) -> Counter[str]:
    """Return seconds by the labels that are compared."""
    merged: Counter[str] = Counter()
    for label, seconds in places.items():
        label = kind.rest if label == "(rest)" else SAME.get(label, label)
        if kind.coarse and label not in ("database",):
            label = "application"
        merged[label] += seconds
    return merged


def judge_split(outcome: Outcome, looks: float, wider: float, elapsed: float) -> Iterator[str]:
    if outcome.kind.lost_seconds:
        return  # journals do not say where holders were
    shown = by_site(outcome.rows)
    yield f"  {'where':24}{'true %':>8}{'shown %':>8}{'points':>8}"
    everything: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    sites = []
    for name, site in outcome.books.items():
        row = shown.get(name)
        real = renamed(site["where"], outcome.kind)
        seen = renamed((row or {}).get("where_seconds_total") or {}, outcome.kind)
        everything[0].update(real)
        everything[1].update(seen)
        sites.append((name, real, seen, site["held"]))
    known = sum(everything[1].values())
    seconds = sum(row["hold_seconds_total"] for row in outcome.rows) or 1.0
    yield f"  known of {100 * known / seconds:.1f} % of the time"
    yield from _split(outcome, "all", *everything, SPLIT_POINTS * wider)
    for name, real, seen, held in sorted(sites, key=lambda entry: -entry[3])[:8]:
        # Looks in which this call site held a connection, and how far chance alone may take the figure.
        count = max(1.0, looks * min(20.0, held / elapsed))
        part = real["database"] / max(1e-9, sum(real.values()))
        error = 300 * math.sqrt(max(0.01, part * (1 - part)) / count)
        yield from _split(outcome, name, real, seen, max(SPLIT_POINTS * wider, error))


def _split(
    outcome: Outcome, name: str, real: Counter[str], seen: Counter[str], bound: float
) -> Iterator[str]:
    true_sum, shown_sum = sum(real.values()) or 1.0, sum(seen.values())
    if not shown_sum:
        yield f"  {name:16} nobody has looked"
        outcome.faults.append(f"{name}: no place is shown")
        return
    for label in sorted({*real, *seen}, key=lambda key: -max(real[key], seen[key])):
        true_part, shown_part = 100 * real[label] / true_sum, 100 * seen[label] / shown_sum
        if max(true_part, shown_part) < 0.5:
            continue
        wrong = abs(shown_part - true_part) > bound
        yield (
            f"  {name[:9]:9} {label[:14]:14}{true_part:8.2f}{shown_part:8.2f}{shown_part - true_part:+8.2f}"
            f"{' !' if wrong else ''}"
        )
        if wrong:
            outcome.faults.append(
                f"{name}: {label} {shown_part:.1f} % instead of {true_part:.1f} % (bound {bound:.1f})"
            )


def judge_waits(outcome: Outcome, wider: float) -> Iterator[str]:
    shown = by_site(outcome.rows)
    real = {name: (site["waited"], site["caused"]) for name, site in outcome.books.items()}
    if sum(waited for waited, _ in real.values()) < 1.0:
        return
    sums = [sum(column) or 1.0 for column in zip(*real.values(), strict=True)]
    for name, (waited, caused) in real.items():
        row = shown.get(name, {})
        seen = row.get("waited_seconds_total") or 0.0, row.get("waiting_caused_seconds_total") or 0.0
        yield (
            f"  {name:16} waited {waited:8.2f} s, shown {seen[0]:8.2f}; "
            f"caused {caused:8.2f} s, shown {seen[1]:8.2f}"
        )
        for label, true_seconds, seconds, total in zip(
            ("waited", "caused"), (waited, caused), seen, sums, strict=True
        ):
            if 100 * abs(true_seconds - seconds) / total > SPLIT_POINTS * wider:
                outcome.faults.append(f"{name}: {label} {seconds:.2f} s instead of {true_seconds:.2f} s")


def report(outcome: Outcome, looks: float, wider: float, elapsed: float) -> None:
    print(f"\n{outcome.name} ({outcome.kind.database}, {outcome.kind.scenario}), {looks:.0f} looks")
    for lines in (
        judge_sums(outcome),
        judge_shares(outcome, wider),
        judge_split(outcome, looks, wider, elapsed),
        judge_waits(outcome, wider),
    ):
        for line in lines:
            print(line)
    for fault in outcome.faults[:20]:
        print(f"  WRONG: {fault}")
    sys.stdout.flush()


# --- Running --------------------------------------------------------------------------------


def run_wave(
    names: Sequence[str], servers: Servers, http: str, directory: Path, seconds: float, hz: float
) -> list[Outcome]:
    """Run these scenarios at the same time; return what is to be compared."""
    kinds = {name: KINDS[name] for name in names}
    count = max(kind.nodes for kind in kinds.values())
    urls = {name: servers.url(name, kind) for name, kind in kinds.items()}
    wave = Path(tempfile.mkdtemp(prefix="wave-", dir=directory))
    outcomes = []
    with Nodes(wave / "nodes", count) as nodes, Totals(nodes) as totals:
        workers = [
            Worker(name, kind, urls[name], nodes, http, wave, seconds, hz) for name, kind in kinds.items()
        ]
        try:
            if count > 1:
                _kill_nodes(nodes, seconds)
            for worker in workers:
                books = worker.books()
                rows, counted = settle(nodes, worker.name)
                outcome = Outcome(worker.name, worker.kind, books, rows, counted)
                _add_present_holds(outcome)
                outcomes.append(outcome)
        finally:
            for worker in workers:
                worker.end()
        for outcome in outcomes:
            _after_the_end(nodes, outcome)
            outcome.faults += totals.faults[outcome.name][:5]
    return outcomes


def _add_present_holds(outcome: Outcome) -> None:
    """Add the holds that go on to the books, up to now: all processes of a host have the same clock."""
    for site in outcome.books.values():
        seconds = sum(time.monotonic() - since for since in site["open"])
        site["held"] += seconds
        site["where"]["(rest)"] += seconds
        outcome.counted_seconds += seconds
        outcome.present += len(site["open"])


def _kill_nodes(nodes: Nodes, seconds: float) -> None:
    """Kill each node once, one after the other, while the applications work."""
    for name in nodes.names:
        time.sleep(seconds / 5)
        nodes.kill(name)
        time.sleep(seconds / 10)
        nodes.start(name)
    nodes.ready(nodes.names)


def _after_the_end(nodes: Nodes, outcome: Outcome) -> None:
    """Compare what is shown after the process has ended with what was shown before."""
    limit = time.monotonic() + WAIT
    while any(row["processes"] for row in site_rows(nodes, outcome.name)) and time.monotonic() < limit:
        time.sleep(0.5)
    before = by_site(outcome.rows)
    for node in nodes.names:
        after = by_site(site_rows(nodes, outcome.name, node))
        for name, row in before.items():
            for figure in (
                "holds_total",
                "hold_seconds_total",
                "database_seconds_total",
                "where_seconds_total",
            ):
                now = after.get(name, {}).get(figure)
                if now != row[figure] and not outcome.present:
                    outcome.faults.append(
                        f"{node}, {name}: after the end {figure} is {now} instead of {row[figure]}"
                    )


def waves(chosen: Sequence[str]) -> Iterator[list[str]]:
    """Yield the scenarios that run at the same time."""
    numbered: dict[int, list[str]] = defaultdict(list)
    for name in chosen:
        if KINDS[name].wave:
            numbered[KINDS[name].wave].append(name)
        else:
            yield [name]
    yield from numbered.values()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--hz", type=float, default=10.0, help="looks a second")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true", help="the names of all scenarios")
    parser.add_argument("--cost", action="store_true", help="what the profile costs instead")
    options = parser.parse_args()
    if options.list:
        print("\n".join(KINDS))
        return 0
    if options.cost:
        with (
            tempfile.TemporaryDirectory(prefix="connmon-profile-") as name,
            Nodes(Path(name) / "n", 1) as nodes,
        ):
            return 0 if profile_cost.measure(nodes.address, options.quick) else 1
    unknown = [name for name in options.scenarios if name not in KINDS]
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}; --list has all")
    seconds = 20.0 if options.quick else options.seconds
    looks = seconds * options.hz
    wider = max(1.0, math.sqrt(1000.0 / looks))
    print(f"{seconds:g} s, {options.hz:g} looks a second; load {os.getloadavg()[0]:.1f}", flush=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="connmon-profile-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        servers, http = stack.enter_context(Servers(directory)), stack.enter_context(http_server())
        for wave in waves(options.scenarios or [*KINDS]):
            for outcome in run_wave(wave, servers, http, directory, seconds, options.hz):
                report(outcome, looks, wider, seconds)
                outcomes.append(outcome)
    wrong = [outcome.name for outcome in outcomes if outcome.faults]
    print(f"\n{len(outcomes) - len(wrong)} of {len(outcomes)} scenarios are right")
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

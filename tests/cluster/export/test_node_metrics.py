"""The metrics: the page, and access to it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from connmon.cluster.export.prometheus import Fleet, label, limits_text
from connmon.cluster.state.machine import StateMachine
from connmon.protocol.document import FIGURES, PRESENT
from connmon.protocol.histogram import BUCKETS, bucket, of
from connmon.protocol.rows import DatabaseRow, Figures, ProgramRow, Verdict
from connmon.protocol.values import Times, VerdictWord
from tests.protocol.test_snapshot import FIGURES_1, SHOWN_1
from tests.support.nodes import RunningNode
from tests.support.prometheus import promtool, running_prometheus
from tests.support.servers import _free_port
from tests.support.waiting import wait_for

CONTRIB = Path(__file__).parents[3] / "contrib"
#: What took how long, by the last part of a row's key.
HOLDS = {bucket(0.0002): 3, bucket(0.001): 2, BUCKETS - 2: 1, BUCKETS - 1: 1}
TIMES = {"timed": Times({}, HOLDS, {bucket(0.02): 9})}
HOSTILE = 'a\\"\n}{\x00\r\x1b[2J\u202e=1,b="'


def samples(page: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return labels and values by name of the sample, as Prometheus's own client reads them."""
    parsed: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            parsed.setdefault(sample.name, []).append((sample.labels, sample.value))
    return parsed


def fleet(*rows: ProgramRow | DatabaseRow) -> str:
    made = Fleet()
    for row in rows:
        made.take(row.key, row.figures, TIMES.get(str(row.key[-1]), Times()), 100.0)
    return "".join(made.pages())


# --- The page -----------------------------------------------------------------------------


#: Under another name, with the state as a label.
STATES = ("processes", "connections", "checked_out", "idle", "detached")
#: By limit, and not by program.
BY_LIMIT = ("left_out",)
#: Prometheus makes its own quantiles of the histograms.
QUANTILES = tuple(key for key in FIGURES if "_p50_" in key or "_p95_" in key or "_p99_" in key)
#: Of the last minutes: Prometheus makes its own rates of the totals.
LATELY = ("checkouts_per_second", "recent_timeouts")


def test_the_numbers_of_a_snapshot() -> None:
    """Metrics have the names and the numbers of a snapshot, with labels host and program, and never a pid."""
    page = fleet(ProgramRow("ctl1", "nova-api", "connected", FIGURES_1))
    parsed = samples(page)
    labels = {"host": "ctl1", "program": "nova-api"}
    for name, value in SHOWN_1.items():
        if name in (*STATES, *BY_LIMIT, *QUANTILES, *LATELY):
            continue
        assert parsed[f"connmon_{name}"] == [(labels, value)], name
    assert {row[0]["state"]: row[1] for row in parsed["connmon_connections"]} == {
        "idle": 45, "checked_out": 31, "detached": 2,
    }  # fmt: skip
    assert {row[0]["state"]: row[1] for row in parsed["connmon_processes"]} == {"connected": 8, "lost": 0}
    assert "pid" not in page


def test_databases() -> None:
    """Databases have the same metrics with another prefix; unknown parts of their names are empty."""
    rows = (
        DatabaseRow("mysql", "db", 3306, "nova", 2, "connected", FIGURES_1),
        DatabaseRow("sqlite", None, None, None, 1, "connected", FIGURES_1),
    )
    parsed = samples(fleet(*rows))
    first, second = parsed["connmon_database_checkouts_total"]
    assert first == (
        {"dialect": "mysql", "database_host": "db", "database_port": "3306", "database": "nova"},
        88213,
    )
    assert second[0] == {"dialect": "sqlite", "database_host": "", "database_port": "", "database": ""}


def ill(*words: VerdictWord) -> Figures:
    """Return the figures of a program with these verdicts."""
    return msgspec.structs.replace(FIGURES_1, verdicts=tuple(Verdict(word, "why") for word in words))


def test_verdicts() -> None:
    """A verdict has a sample of 1 while it lasts; programs are counted by the gravest."""
    page = fleet(
        ProgramRow("ctl1", "nova-api", "connected", ill("LEAK", "SATURATED")),
        ProgramRow("ctl1", HOSTILE, "connected", ill("SATURATED")),
        ProgramRow("ctl2", "well", "connected", FIGURES_1),
        DatabaseRow("mysql", "db", 3306, "nova", 2, "connected", ill("OVERCOMMIT")),
    )
    parsed = samples(page)
    nova = {"host": "ctl1", "program": "nova-api"}
    assert parsed["connmon_verdict"][:2] == [
        ({**nova, "verdict": "LEAK"}, 1),
        ({**nova, "verdict": "SATURATED"}, 1),
    ]
    assert len(parsed["connmon_verdict"]) == 3
    counts = {labels["verdict"]: value for labels, value in parsed["connmon_verdicts"]}
    assert counts == {**dict.fromkeys(get_args(VerdictWord), 0), "LEAK": 1, "SATURATED": 1}
    ((labels, value),) = parsed["connmon_database_verdict"]
    assert (labels["database"], labels["verdict"], value) == ("nova", "OVERCOMMIT", 1)
    promtool("check", "metrics", stdin=page.encode())


def test_no_verdict_of_a_healthy_fleet() -> None:
    """A healthy fleet has no sample of a verdict, and all are counted as 0."""
    parsed = samples(fleet(ProgramRow("h", "p", "connected", FIGURES_1)))
    assert "connmon_verdict" not in parsed
    assert {value for _, value in parsed["connmon_verdicts"]} == {0}


def test_unknown_is_left_out() -> None:
    """An unknown value has no sample: the capacity of pools without a limit."""
    figures = FIGURES_1
    unlimited = type(figures)(
        **{
            **{name: getattr(figures, name) for name in figures.__struct_fields__},
            "gauges": figures.gauges._replace(unbounded=1),
        }
    )
    parsed = samples(fleet(ProgramRow("h", "p", "connected", unlimited)))
    assert "connmon_capacity" not in parsed
    assert "connmon_pools" in parsed


def test_what_each_limit_leaves_out() -> None:
    """Each limit has a gauge of what it leaves out of the rows, also if that is 0."""
    page = limits_text(StateMachine().left_out() | {"pools": 10}, StateMachine().forgotten | {"gone": 3})
    forgotten = {labels["limit"]: value for labels, value in samples(page)["connmon_forgotten_total"]}
    assert forgotten == {"ended": 0, "gone": 3}
    parsed = {labels["limit"]: value for labels, value in samples(page)["connmon_left_out"]}
    assert parsed == {"processes": 0, "pools": 10, "connections": 0, "room": 0}
    promtool("check", "metrics", stdin=page.encode())


def test_of_what_is_lost_the_present_is_left_out() -> None:
    """A program whose processes are all lost has no samples of its present, but its maxima and counters."""
    lost = msgspec.structs.replace(FIGURES_1, processes=0, lost_processes=2)
    row = ProgramRow("h", "p", "lost", lost)
    parsed = samples(fleet(row, DatabaseRow("mysql", "db", 3306, "nova", 1, "lost", lost)))
    for prefix in ("connmon", "connmon_database"):
        for name in (*PRESENT, "connections"):
            assert f"{prefix}_{name}" not in parsed
        assert {row[0]["state"]: row[1] for row in parsed[f"{prefix}_processes"]} == {
            "connected": 0,
            "lost": 2,
        }
        assert parsed[f"{prefix}_max_connections"][0][1] == 80
        assert parsed[f"{prefix}_checkouts_total"][0][1] == 88213
        assert parsed[f"{prefix}_last_report_seconds"][0][1] == 0.8


def test_hostile_names() -> None:
    """Quotes, line ends and escape codes in a name stay within its label, and promtool takes the page."""
    page = fleet(
        ProgramRow(HOSTILE, HOSTILE, "connected", FIGURES_1), ProgramRow("h", "p", "gone", FIGURES_1)
    )
    parsed = samples(page)["connmon_checkouts_total"]
    assert len(parsed) == 2
    assert all(line.isprintable() for line in page.splitlines())
    promtool("check", "metrics", stdin=page.encode())


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(), st.text()), unique=True))
def test_any_names(names: list[tuple[str, str]]) -> None:
    """No two samples have the same labels, whatever the names: that would invalidate the page."""
    rows = [ProgramRow(host, program, "connected", FIGURES_1) for host, program in names]
    rows += [
        ProgramRow("a\x00", "b", "connected", FIGURES_1),
        ProgramRow("a\\x00", "b", "connected", FIGURES_1),
    ]
    parsed = [tuple(sorted(labels.items())) for labels, _ in samples(fleet(*rows))["connmon_pools"]]
    assert len(set(parsed)) == len(parsed)
    printable = {(host, program) for host, program in names if (host + program).isprintable()}
    assert printable <= {(dict(labels)["host"], dict(labels)["program"]) for labels in parsed}


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_label(text: str) -> None:
    """A label has the same value when it is read."""
    ((labels, _),) = samples(f"x{{a={label(text)}}} 1\n")["x"]
    assert labels == {"a": text}


def test_histograms() -> None:
    """Histograms of waits, holds and connects have fixed cumulative buckets; empty ones are left out."""
    page = fleet(
        ProgramRow("h", "p", "connected", FIGURES_1),
        ProgramRow("h", "timed", "connected", FIGURES_1),
        DatabaseRow("mysql", "db", 3306, "timed", 2, "connected", FIGURES_1),
    )
    parsed = samples(page)
    for prefix in ("connmon", "connmon_database"):
        buckets = {float(labels["le"]): value for labels, value in parsed[f"{prefix}_hold_seconds_bucket"]}
        assert buckets[0.001] == 5
        assert min(buckets) == 0.001
        assert buckets[100.0] == 5
        assert buckets[math.inf] == 7
        assert list(buckets.values()) == sorted(buckets.values())
        assert [value for _, value in parsed[f"{prefix}_hold_seconds_count"]] == [7]
        assert [value for _, value in parsed[f"{prefix}_hold_seconds_sum"]] == [4.321]
        assert {float(labels["le"]) for labels, _ in parsed[f"{prefix}_connect_seconds_bucket"]} == {
            bound for bound in buckets if 0.001 <= bound <= 10 or bound == math.inf
        }
        assert [value for _, value in parsed[f"{prefix}_connect_seconds_sum"]] == [9.001]
        assert f"{prefix}_wait_seconds_count" not in parsed
        assert f"{prefix}_wait_seconds_sum" not in parsed
    promtool("check", "metrics", stdin=page.encode())


@given(st.lists(st.floats(0, 3000), min_size=1, max_size=30))
def test_histogram_counts(seconds: list[float]) -> None:
    """A bucket counts durations up to its bound, for any choice of bounds."""
    made = Fleet()
    made.take(("program", "h", "p"), FIGURES_1, Times(*[of(seconds)] * 3), 1.0)
    parsed = samples("".join(made.pages()))
    assert [value for _, value in parsed["connmon_wait_seconds_sum"]] == [5.0]
    for name in ("wait", "hold", "connect"):
        for labels, value in parsed[f"connmon_{name}_seconds_bucket"]:
            assert value == sum(bound <= float(labels["le"]) for bound in seconds)


# --- A node -------------------------------------------------------------------------------


class Measured(RunningNode):
    """A node with metrics."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.metrics = _free_port()
        text = self.config.read_text().replace("\nnodes:", f"metrics: 127.0.0.1:{self.metrics}\nnodes:")
        self.config.write_text(text)

    def page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            page: str = answer.read().decode()
            return page

    def value(self, name: str, **labels: str) -> float | None:
        """Return a sample's value, with any further labels; None if there is none."""
        for had, value in samples(self.page()).get(name, []):
            if labels.items() <= had.items():
                return value
        return None


@pytest.fixture(name="node", scope="module")
def a_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    node = Measured(tmp_path_factory.mktemp("node"))
    try:
        node.start()
        yield node
    finally:
        node.remove()


@contextlib.contextmanager
def load(node: Measured, directory: Path, program: str = "loaded") -> Iterator[None]:
    """An application of this process whose pool is too small for its threads."""
    url = (
        f"sqlite:///{directory / 'x.db'}?plugin=connmon&connmon_addr={node.address}&connmon_program={program}"
    )
    engine = sqlalchemy.create_engine(
        url, pool_size=1, max_overflow=1, pool_timeout=0.2, poolclass=sqlalchemy.QueuePool
    )
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with contextlib.suppress(sqlalchemy.exc.TimeoutError), engine.connect():
                over.wait(0.11)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        engine.dispose()


@pytest.mark.slow
def test_rules_and_their_tests() -> None:
    """promtool accepts the alert rules; they alert when they should and only then."""
    promtool("check", "rules", str(CONTRIB / "alerts.yml"))
    promtool("test", "rules", str(CONTRIB / "alerts_test.yml"))
    rules = (CONTRIB / "alerts.yml").read_text()
    tested = (CONTRIB / "alerts_test.yml").read_text()
    for name in re.findall(r"- alert: (\w+)", rules):
        assert re.search(rf"alertname: {name}\n\s+exp_alerts", tested), name
    for word in get_args(VerdictWord):
        assert f'verdict{{verdict="{word}"}}' in rules, word


@pytest.mark.slow
@pytest.mark.parametrize(
    "scene", ["warm pools", "a restart of all nodes", "a rolling deploy of an application"]
)
def test_no_rule_fires_where_all_is_well(scene: str, tmp_path: Path) -> None:
    """In scenes of healthy programs no rule fires, while a plain threshold would."""
    tested = (CONTRIB / "alerts_test.yml").read_text()
    (calm,) = re.findall(rf"  - name: calm - {scene}\n.*?(?=^  - name:|\Z)", tested, re.M | re.S)
    assert 'ALERTS{alertstate="firing"}' in calm and "exp_samples: []" in calm
    # The same with a rule on a threshold, which fires on a pool that is merely warm, deployed or restarted.
    naive = {
        "warm pools": "connmon_longest_held_seconds > 300",
        "a restart of all nodes": 'connmon_processes{state="lost"} > 0',
        "a rolling deploy of an application": 'connmon_verdict{verdict="SATURATED"} == 1',
    }[scene]
    head = "rule_files: [alerts.yml]\nevaluation_interval: 15s\ntests:\n"
    (tmp_path / "calm.yml").write_text(head + calm)
    (tmp_path / "alerts.yml").write_text((CONTRIB / "alerts.yml").read_text())
    promtool("test", "rules", str(tmp_path / "calm.yml"))
    (tmp_path / "alerts.yml").write_text(
        f"groups: [{{name: naive, rules: [{{alert: Naive, expr: '{naive}'}}]}}]\n"
    )
    with pytest.raises(AssertionError, match="Naive"):
        promtool("test", "rules", str(tmp_path / "calm.yml"))


@pytest.mark.slow
def test_prometheus_and_dashboard(node: Measured, tmp_path: Path) -> None:
    """A real Prometheus scrapes the node under load, promtool finds no fault, and all queries return data.

    Those of the dashboard, its variables', and each metric of the alert rules.
    """
    dashboard = json.loads((CONTRIB / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 25
    rules = (CONTRIB / "alerts.yml").read_text()
    with load(node, tmp_path), running_prometheus(
        tmp_path, [f"127.0.0.1:{node.metrics}"], CONTRIB / "alerts.yml"
    ) as prometheus:  # fmt: skip
        wait_for(
            lambda: node.value("connmon_timeouts_total", program="loaded"), what="the pool to be too small"
        )
        output = promtool("check", "metrics", "--extended", stdin=node.page().encode())
        assert output.startswith("Metric ")  # its table, and no complaint
        wait_for(lambda: prometheus.query('connmon_timeouts_total{program="loaded"} > 0'), 20, "a scrape")

        def all_answered() -> bool:
            for query in queries:
                filled = (
                    query.replace("$__rate_interval", "10s").replace("$host", ".*").replace("$program", ".*")
                )
                assert "$" not in filled
                assert prometheus.query(filled), query
            return True

        wait_for(all_answered, 20, "every query to return data")
        page = node.page()
        expressions = "".join(re.findall(r"expr: [^|].*|^ {10}\S.*", rules, re.M))
        for name in set(re.findall(r"connmon_\w+", expressions)):
            # A verdict is there where something is wrong only.
            assert prometheus.query(name) or f"# TYPE {name} gauge" in page, name
        for variable in dashboard["templating"]["list"][1:]:
            metric, name = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            values = prometheus.get(
                f"/api/v1/label/{name}/values", **{"match[]": metric.replace("$host", ".*")}
            )["data"]
            assert values, variable
        assert [target["health"] for target in prometheus.targets()] == ["up"]
        assert {alert["state"] for alert in prometheus.get("/api/v1/alerts")["data"]["alerts"]} <= {
            "pending",
            "firing",
        }


PROCESS = """
import sqlalchemy, sys
engine = sqlalchemy.create_engine(sys.argv[1])
for _ in range(25):
    engine.connect().close()
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_counters_never_go_back(node: Measured) -> None:
    """A process that ends takes nothing from its program's counters, and the next one adds to them."""
    url = f"sqlite://?plugin=connmon&connmon_addr={node.address}&connmon_program=ending"
    for expected in (25, 50):
        with subprocess.Popen(
            [sys.executable, "-c", PROCESS, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            wait_for(lambda: node.value("connmon_checkouts_total", program="ending") == expected)  # noqa: B023
            process.communicate(b"")
        wait_for(lambda: node.value("connmon_processes", program="ending", state="connected") == 0)
        assert node.value("connmon_checkouts_total", program="ending") == expected
        assert node.value("connmon_connections", program="ending", state="idle") == 0


@pytest.mark.slow
def test_its_own_figures(node: Measured) -> None:
    """The node has metrics of its role, term, reports, batches, latency, clients and memory."""
    for name in ("term", "applied_index", "uptime_seconds", "batches_total", "command_seconds_count",
                 "resident_memory_bytes", "quorum"):  # fmt: skip
        assert (node.value(f"connmon_node_{name}") or 0) > 0, name
    assert node.value("connmon_node_role", role="leader") == 1
    assert node.value("connmon_node_info", node="node1", service="default") == 1


GARBAGE = [
    b"", b"\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 20_000, os.urandom(4096), b"GET /metrics\r\n\r\n",
    b"GET /" + b"a" * 100_000, b"POST /metrics HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00", b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n\r\n",
]  # fmt: skip


@pytest.mark.slow
def test_hammered_with_garbage_and_slow_clients(node: Measured) -> None:
    """Garbage and idle clients harm neither node nor scrapes, and do not fill the log."""
    before = len(node.log)
    idle = []
    try:
        for _ in range(20):
            slow = socket.create_connection(("127.0.0.1", node.metrics), 5)
            slow.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no end
            idle.append(slow)
        for data in GARBAGE:
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", node.metrics), 5) as sock,
            ):
                sock.sendall(data)
                with contextlib.suppress(OSError):  # ENOTCONN, which is none: it was ended already
                    sock.shutdown(socket.SHUT_WR)
                answer = sock.recv(100)
                assert not answer.startswith(b"HTTP/1.1 200")
        assert "connmon_node_info" in node.page()
        for _ in range(100):  # more than there is room for: the oldest go
            idle.append(socket.create_connection(("127.0.0.1", node.metrics), 5))
        assert "connmon_node_info" in node.page()
    finally:
        for bound in idle:
            bound.close()
    assert node.rows("program") is not None
    assert "Traceback" not in node.log
    assert len(node.log) - before < 2000


def _page_or_none(node: Measured) -> str | None:
    try:
        return node.page()
    except (OSError, urllib.error.URLError):
        return None


@pytest.mark.slow
def test_without_quorum(tmp_path: Path) -> None:
    """A node without quorum has its own metrics and none of the fleet."""
    node = Measured(tmp_path)
    text = node.config.read_text()
    node.config.write_text(text + f"    node2 hostname=localhost:{_free_port()}\n")
    node.which = ("--node", "node1")
    try:
        node.begin()
        page = wait_for(lambda: _page_or_none(node), 15, "the page") or ""
        parsed = samples(page)
        assert parsed["connmon_node_quorum"] == [({}, 0)]
        assert not [name for name in parsed if not name.startswith("connmon_node_")]
    finally:
        node.remove()


def test_port_that_cannot_be_had(tmp_path: Path) -> None:
    """A metrics port that is in use is one line with the option, and exit code 1."""
    node = Measured(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.metrics))
        taken.listen()
        node.begin()
        process: Any = node._process
        assert process.wait(20) == 1
    (line,) = [line for line in node.log.splitlines() if line.startswith("connmond: ")]
    assert "metrics: cannot listen on 127.0.0.1:" in line
    assert "Traceback" not in node.log

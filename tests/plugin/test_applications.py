"""The main job, end to end: real applications on real servers, a real connmond, the real `connmon snapshot`.

Each application counts what it does (tests/support/application.py). In every scenario they work for a while,
something happens to a process or to the node, and when they are quiet, `connmon snapshot` has to show exactly
their sums in every grouping. The connections that it shows have to be the sessions that the servers list.
"""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.books import DRIVERS
from tests.support.requirements import needs_driver
from tests.support.servers import Server
from tests.support.site import GAUGES, TOTALS, TRUTH, Child, Site, assert_row
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

#: Seconds: far below the lease, so that it is the end of the process that was noticed and not its
#: silence. (It takes 0.5 to 0.6 s on a quiet machine; a loaded one is no reason to fail.)
GONE = 5.0


@pytest.fixture
def site(tmp_path: Path, mariadb: Server, postgresql: Server) -> Iterator[Site]:
    """A running node without applications; the servers have no other clients."""
    needs_driver("mysqldb")
    for server in (mariadb, postgresql):
        wait_for(lambda server=server: not server.sessions(), 10, "earlier sessions to end")  # type: ignore[misc]
    made = Site(tmp_path, mariadb, postgresql)
    try:
        made.node.start()
        yield made
        assert "Traceback" not in made.node.log, made.node.log
        assert " ERROR " not in made.node.log, made.node.log
    finally:
        made.remove()


def measured(what: str, began: float) -> None:
    print(f"\n  measured: {what}: {time.monotonic() - began:.2f} s")


def test_steady_load(site: Site) -> None:
    """Three programs do everything that pools can do, and every number is right, repeatedly."""
    workers = site.start("alpha", "alpha", "beta")
    for _ in range(2):
        site.work()
        site.quiet()
        site.equal()
        site.load()
    site.work()
    site.quiet()
    site.equal()
    done = Counter[str]()
    for worker in workers:
        done += worker.sum()
    for key in TOTALS:
        assert done[key], f"the load did nothing that counts in {key}"
    drivers = {name for worker in workers for name in (spec["driver"] for spec in worker.specs.values())}
    assert drivers == {*DRIVERS, "pysqlite", "aiosqlite"}
    assert not any(worker.last["log"] for worker in workers)


def test_killed_worker(site: Site) -> None:
    """The row of a killed process goes; its counts stay in its program's totals."""
    _, victim, last = site.start("alpha", "alpha", "beta")
    site.work()
    site.quiet([victim])  # the others go on working

    def reported() -> bool:
        row = {row["pid"]: row for row in site.node.rows("process")}[victim.pid]
        assert_row(row, victim.sum(), "the victim")
        return True

    wait_for(reported, TRUTH)
    began = time.monotonic()
    victim.process.kill()
    wait_for(lambda: victim.pid not in site.pids(), GONE, "the rows of a killed process to leave")
    measured("rows gone after kill -9 of an application", began)
    assert victim.pid not in site.pids("pool") | site.pids("connection")
    site.has_ended(victim, killed=True)
    site.quiet()
    site.equal()

    # The only process of a program, while it works: its work after its last report is not known.
    site.load()
    site.work()
    before = {row["pid"]: row for row in site.node.rows("process")}[last.pid]
    began = time.monotonic()
    last.process.kill()
    wait_for(lambda: last.pid not in site.pids(), GONE, "the rows of a killed process to leave")
    measured("rows gone after kill -9 of an application under load", began)
    (row,) = [row for row in site.node.rows("program") if row["program"] == "beta"]
    assert row["state"] == "gone"
    for key in TOTALS:
        assert row[key] >= before[key]
    for key in ("processes", *GAUGES, "waiting"):
        assert row[key] == 0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_node_ends_and_starts(site: Site, how: str) -> None:
    """A node that restarts has the complete present again, and the applications did not notice."""
    workers = site.start("alpha", "alpha", "beta")
    site.work()
    getattr(site.node, how)()
    site.work(1.0)
    site.node.start()
    began = time.monotonic()
    wait_for(lambda: site.pids() == {worker.pid for worker in workers}, TRUTH, "all processes to be back")
    measured(f"all processes back after {how} and restart of connmond", began)
    site.work(0.5)
    site.quiet()
    site.equal()
    for worker in workers:
        assert len(worker.last["log"]) <= 1, "one warning for one outage"


def test_node_that_is_stopped_like_a_process(site: Site) -> None:
    """No application waits for a node that is stopped by SIGSTOP; once continued, it shows the truth."""
    workers = site.start("alpha", "alpha", "beta")
    site.work(1.0)
    site.node.pause()
    site.work(12.0)
    site.quiet()  # and here every call is judged
    site.load()
    site.node.resume()
    began = time.monotonic()
    site.work(0.5)
    site.quiet()
    site.equal()
    measured("the truth after SIGCONT of connmond, work and comparison included", began)
    for worker in workers:
        assert len(worker.last["log"]) <= 1, "one warning for one outage"


def test_ends_of_processes(site: Site) -> None:
    """A process's counts stay in the totals when it ends under load, and when it lived only a moment."""
    first, *_ = site.start("alpha", "alpha", "beta")
    site.work()
    first.tell("end")
    first.take_report()
    began = time.monotonic()
    first.end()
    wait_for(lambda: first.pid not in site.pids(), GONE, "the rows of an ended process to leave")
    measured("rows gone after the end of an application", began)
    site.has_ended(first)

    for program in ("alpha", "brief", "brief"):
        where = f"connmon_program={program}&connmon_addr={site.node.address}"
        specs = [site.engine("pymysql", where), site.engine("pysqlite", where, plugin=True)]
        brief = site.worker(program, specs)
        brief.last = brief.answer()
        brief.tell("once")
        brief.tell("end")
        brief.take_report()
        brief.take_report()
        brief.end()
        site.has_ended(brief)
    site.quiet()
    site.equal()


def test_applications_before_any_node(site: Site) -> None:
    """The first node that appears gets the complete present, and all counts before it."""
    site.node.stop()
    workers = site.start("alpha", "beta")
    site.work()
    site.quiet()
    for worker in workers:
        (line,) = worker.last["log"]
        assert re.match(r"WARNING connmon: no node of .* can be reached", line)
    began = time.monotonic()
    site.node.start()
    wait_for(lambda: site.pids() == {worker.pid for worker in workers}, TRUTH, "all processes to be there")
    measured("all processes there after the first start of connmond, its start included", began)
    site.equal()
    site.load()
    site.work(0.5)
    site.quiet()
    site.equal()


@pytest.mark.parametrize("adopt", [False, True])
def test_fork(site: Site, adopt: bool) -> None:
    """A child of a process with idle connections is a process of its own, with only its own counts."""
    where = f"connmon_program=forks&connmon_config={site.node.config}"
    specs = [
        site.engine("pymysql", where, adopt=True, size=3),
        site.engine("psycopg2", where, plugin=True),
        site.engine("pysqlite", where, adopt=True),
    ]
    parent = site.worker("forks", specs)
    parent.last = parent.answer()
    site.load()
    site.work(1.0)
    site.quiet()
    site.equal()
    if adopt:
        parent.tell("renew")
        parent.take_report()
    parent.tell("fork_adopt" if adopt else "fork")
    child = Child(parent)
    assert child.pid != parent.pid
    if adopt:
        assert child.sum()["connects_total"] == 0
        assert child.sum()["connections"] == 2
    else:
        assert child.sum()["connects_total"] > 0
    site.living.append(child)
    site.equal()
    assert {row["pid"]: row["ppid"] for row in site.node.rows("process")}[child.pid] == parent.pid
    parent.tell("end_child")
    assert parent.answer() == {}
    wait_for(lambda: child.pid not in site.pids(), GONE, "the rows of the child to leave")
    site.has_ended(child)
    site.load()
    site.work(0.5)
    site.quiet()
    site.equal()


def test_service_of_another_name(site: Site, tmp_path: Path) -> None:
    """A node refuses an application that asks for another service; the application warns once and goes on."""
    other = tmp_path / "other.cfg"
    other.write_text(
        f"[connmon_service_other]\nname: other\n\nnodes:\n    node1 hostname=localhost:{site.node.port}\n"
    )
    where = f"connmon_program=astray&connmon_config={other}&connmon_service=other"
    specs = [site.engine("pysqlite", where), site.engine("pymysql", where, plugin=True)]
    astray = site.worker("astray", specs, threads=2)
    astray.last = astray.answer()
    site.start("alpha")
    site.work()
    site.quiet()
    before = astray.last["done"]
    site.load()
    site.work(4.0)  # several more tries
    site.quiet()
    assert astray.last["done"] > before
    (line,) = astray.last["log"]
    assert line.startswith("WARNING connmon: no node of service 'other' can be reached")
    assert "'default'" in line
    site.living.remove(astray)
    astray.tell("end")
    astray.take_report()
    astray.end()
    site.equal()


def test_signal_is_no_error(site: Site) -> None:
    """SIGTERM ends connmond with exit code 0 while applications are connected to it."""
    site.start("alpha")
    wait_for(lambda: len(site.pids()) == 1)
    site.node.stop()
    assert f"{signal.SIGTERM.name}: ending" in site.node.log

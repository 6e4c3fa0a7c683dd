"""What the node finds wrong with rows: from reports to verdicts, call sites and counts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connmon.cluster.state.answer_frames import About
from connmon.cluster.state.machine import StateMachine
from connmon.cluster.state.settings import AnswerSettings, Limits
from connmon.protocol import histogram
from connmon.protocol.batch import Tick
from connmon.protocol.queries import Query, UsersQuery, WaitsQuery
from connmon.protocol.reports import Connection, PoolReport, SiteReport
from connmon.protocol.rows import ConnectionRow, Figures, RowKey, SiteRow
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.values import Gauges, Peaks, Times, Totals
from connmon.protocol.verdicts import Thresholds, rank
from tests.cluster.state.test_machine import LEASE, Group, change, connection, full, info, process

ABOUT = About("default", "node1", "node1", True, 0.0)
QUICK = Times(histogram.EMPTY, histogram.of([0.0005] * 1000))


def pool(
    number: int = 1, database: str = "shop", *, out: int = 0, waiting: int = 0, held: float | None = None,
    wait: float | None = None, timeouts: int = 0, connect_ms: int = 0, times: Times = QUICK, **more: Any,
) -> PoolReport:  # fmt: skip
    """Return the report of a pool of 15 whose holds take half a millisecond."""
    ended = sum(times.holds.values())
    totals = Totals(out, 0, ended + out, ended, timeouts=timeouts, hold_ms=ended // 2, connect_ms=connect_ms)
    return PoolReport(
        number, info(database), Gauges(1, 15, 0, out, out, waiting=waiting), totals, Peaks(out, out, waiting),
        wait, held, times, **more,
    )  # fmt: skip


def leak(number: int = 1, of: int = 1, held: float = 41.0, **more: Any) -> Connection:
    given = {"call_site": "jobs.py:12 run", "holder_in": "ended", **more}
    return msgspec.structs.replace(connection(number, of, 100.0, held), **given)


def figures(group: Group, key: RowKey) -> Figures:
    by: Any = key[0]
    row = group.rows(by)[key]
    return row.figures  # type: ignore[union-attr]


def words(group: Group, key: RowKey) -> list[str]:
    return [verdict.word for verdict in figures(group, key).verdicts]


PROGRAM: RowKey = ("program", "ctl1", "nova-api")
SHOP: RowKey = ("database", "mysql", "db1", None, "shop")


@pytest.fixture
def group() -> Group:
    return Group()


def test_a_leak_is_in_every_row_that_sums_its_pool(group: Group) -> None:
    """Every row that sums the pool quotes it; the connection and its call site have the verdict too."""
    site = SiteReport(1, "jobs.py:12 run", 1, 41.0, holds=900, usual=0.0005)
    well = SiteReport(2, "api.py:88 list", 0, None, holds=900, usual=0.0005)
    group.say(
        full("a", 1, pool(out=1, held=41.0), pool(2, "nova"), connections=(leak(),), sites=(site, well)),
        full("b", 1, pool(), process=process(pid=2)),
    )
    url = "mysql://db1/shop"
    for key, where in (
        (PROGRAM, f"pool {url}, pid 1: "),
        (("host", "ctl1"), f"pool {url} of nova-api, pid 1: "),
        (SHOP, f"pool {url} of nova-api on ctl1, pid 1: "),
        (("process", "a"), f"pool {url}: "),
        (("pool", "a", 1), ""),
    ):
        (verdict,) = figures(group, key).verdicts
        assert verdict.word == "LEAK"
        assert verdict.reason.startswith(f"{where}a connection taken at jobs.py:12 run has been held for 41s")
    for well_key in (("process", "b"), ("pool", "a", 2), ("pool", "b", 1)):
        assert words(group, well_key) == []
    row = group.rows("connection")["connection", "a", 1]
    assert isinstance(row, ConnectionRow)
    assert (row.verdict, row.holder_in, row.call_site) == ("LEAK", "ended", "jobs.py:12 run")
    sites = group.rows("site")
    line = sites["site", "ctl1", "nova-api", "jobs.py:12 run"]
    assert isinstance(line, SiteRow)
    assert line.verdict == "LEAK"
    assert line.reason == (
        "a connection taken here has been held for 41s, where 0.5ms is usual (p95): give back what is taken"
    )
    other = sites["site", "ctl1", "nova-api", "api.py:88 list"]
    assert isinstance(other, SiteRow)
    assert (other.verdict, other.reason) == (None, None)
    (answer,) = group.answer(Query("host"))
    assert answer.verdicts == (("LEAK", 1),)


def test_two_pools_of_one_program(group: Group) -> None:
    """A quick pool and one with holds of 40 s give no verdict together."""
    holds = tuple(
        msgspec.structs.replace(connection(number, 2, 100.0, 31.0), holder_in=where)
        for number, where in ((1, "application"), (2, None))
    )
    slow = Times(histogram.EMPTY, histogram.EMPTY)
    group.say(full("a", 1, pool(out=0), pool(2, "batch", out=2, held=31.0, times=slow), connections=holds))
    for by in ("program", "host", "database", "process", "pool"):
        for key in group.rows(by):
            assert words(group, key) == []
    # And a leak of the quick one shows behind the slow one's holds.
    long = Times(histogram.EMPTY, histogram.of([40.0] * 20))
    quick = pool(out=1, held=41.0)
    group.say(change("a", 2, quick, pool(2, "batch", out=2, held=39.0, times=long), connections=(leak(3),)))
    assert words(group, PROGRAM) == ["LEAK"]
    assert words(group, ("pool", "a", 2)) == []


def test_recent_timeouts_end(group: Group) -> None:
    """Timeouts are recent for one to two minutes; those from before the pool was known are not."""
    group.say(full("a", 1, pool(timeouts=3)), full("old", 7, pool(timeouts=100), process=process(pid=2)))
    found = figures(group, PROGRAM)
    assert (found.recent_timeouts, [verdict.word for verdict in found.verdicts]) == (3, ["TIMEOUTS"])
    assert figures(group, ("pool", "old", 1)).recent_timeouts == 0
    loaded = Group()
    loaded.state = StateMachine.decode(group.state.encode())
    assert figures(loaded, PROGRAM).recent_timeouts == 3
    sequence = 1
    for second in range(130):
        group.say(tick=Tick(1.0, LEASE))
        sequence += 1
        group.say(change("a", sequence), change("old", sequence + 6))
        if second == 20:
            sequence += 1
            group.say(change("a", sequence, pool(timeouts=4)), change("old", sequence + 6))
    assert figures(group, PROGRAM).recent_timeouts == 0
    assert words(group, PROGRAM) == []
    assert figures(group, PROGRAM).totals.timeouts == 104


def test_one_pools_leak_does_not_hide_what_is_wrong_with_others(group: Group) -> None:
    """A row that sums pools has each word once, and names the gravest pool that has it."""
    group.say(
        full("a", 1, pool(out=1, held=41.0), pool(2, "nova", timeouts=3), connections=(leak(),)),
        full("b", 1, pool(out=15, waiting=2, wait=1.0, held=0.1, timeouts=1), process=process(pid=2)),
        full("c", 1, pool(out=15, waiting=4, wait=1.0, held=0.1), process=process(pid=3)),
    )
    for key in (PROGRAM, ("host", "ctl1")):
        leaked, full_pool, timeouts = figures(group, key).verdicts
        of = "" if key == PROGRAM else " of nova-api"
        assert leaked.word == "LEAK"
        assert leaked.reason.startswith(f"pool mysql://db1/shop{of}, pid 1 (and 3 more): a connection")
        assert full_pool.word == "SATURATED"
        assert full_pool.reason.startswith(f"pool mysql://db1/shop{of}, pid 3: 4 wait up to 1.0s")
        assert timeouts.word == "TIMEOUTS"
        assert timeouts.reason.startswith(f"pool mysql://db1/nova{of}, pid 1: 3 checkouts")
    assert words(group, SHOP) == ["LEAK", "SATURATED", "TIMEOUTS"]
    assert words(group, ("process", "a")) == ["LEAK", "TIMEOUTS"]
    (_, timeouts) = figures(group, ("process", "a")).verdicts
    assert timeouts.reason.startswith("pool mysql://db1/nova: 3 checkouts")


def test_what_a_limit_leaves_out_is_no_leak_where_the_longest_hold_is_known(group: Group) -> None:
    """Where a limit hides connections, only a hold longer than all known ones is judged without them."""
    works = leak(held=41.0, holder_in="application")  # which its line does for 5 s, and others not at all
    quick = pool(out=3, held=41.5)
    site = SiteReport(1, "jobs.py:12 run", 1, 41.0, holds=20, usual=5.0)
    group.say(full("a", 1, quick, connections=(works,), sites=(site,), left_out=2))
    assert group.state.processes["a"].missing(group.state.processes["a"].pools[1]) == 2
    assert words(group, PROGRAM) == []
    group.say(change("a", 2, pool(out=3, held=50.0), left_out=2))
    assert words(group, PROGRAM) == ["LEAK"]


def test_a_sum_of_several_pools_has_timeouts_only(group: Group) -> None:
    """A sum of several pools has TIMEOUTS only, since its pools are unknown one by one."""
    several = pool(out=15, waiting=2, wait=1.0, held=41.0, timeouts=2, left_out=3)
    group.say(full("a", 1, several, connections=(leak(),)))
    assert words(group, PROGRAM) == ["TIMEOUTS"]
    assert figures(group, PROGRAM).recent_timeouts == 2


def test_what_is_lost_is_no_more_than_that(group: Group) -> None:
    """Rows are LOST where all processes are lost; else the others are judged."""
    group.say(full("a", 1, pool(out=1, held=41.0), connections=(leak(),)))
    group.wait(20)
    for key in (PROGRAM, ("host", "ctl1"), SHOP, ("process", "a"), ("pool", "a", 1)):
        assert words(group, key) == ["LOST"]
    row = group.rows("connection")["connection", "a", 1]
    assert isinstance(row, ConnectionRow)
    assert row.verdict is None
    group.say(full("b", 1, pool(), process=process(pid=2)))
    assert words(group, PROGRAM) == []


def test_calm_scenes_have_no_verdict(group: Group) -> None:
    """A restart of all nodes, an idle warm pool, one slow connect and a rolling deploy give no verdict."""
    one_slow = Times(histogram.EMPTY, histogram.EMPTY, histogram.of([2.0]))
    group.say(
        full("restart", 500, pool(timeouts=9, connect_ms=10**6, out=3, held=5.0)),
        full("idle", 1, pool(), process=process(pid=2)),
        full("slow", 1, pool(times=one_slow, connect_ms=2_000), process=process(pid=3)),
    )
    assert words(group, PROGRAM) == []
    for number in range(3):
        group.say(full(f"new{number}", 1, pool(), process=process(pid=10 + number)))
    assert words(group, PROGRAM) == []
    many = Times(histogram.EMPTY, histogram.EMPTY, histogram.of([2.0] * 5))
    group.say(change("slow", 2, pool(times=many, connect_ms=10_000)))
    assert words(group, PROGRAM) == ["SLOW CONNECT"]


def test_overcommit_of_a_server(group: Group) -> None:
    """OVERCOMMIT is of the sum over a server's databases; SATURATED states the server's headroom."""
    group.state.judge.configure(Thresholds(), {("DB1", None): 29})
    group.say(full("a", 1, pool(), pool(2, "nova")))
    assert words(group, SHOP) == ["OVERCOMMIT"]
    assert "30 connections to db1:3306, which takes 29" in figures(group, SHOP).verdicts[0].reason
    assert words(group, PROGRAM) == []
    group.say(change("a", 2, pool(out=15, waiting=2, wait=1.0, held=0.1)))
    assert "the database server takes no more connections" in figures(group, PROGRAM).verdicts[0].reason
    group.state.judge.configure(Thresholds(), {("db1", 3306): 30})
    group.say(change("a", 3))
    assert words(group, SHOP) == ["SATURATED"]


def test_the_headroom_of_a_server_is_as_of_now_on_every_replica(group: Group) -> None:
    """A server's headroom is looked up for each answer, so that all replicas give the same reasons."""
    group.state.judge.configure(Thresholds(), {("db1", None): 40})
    group.say(full("a", 1, pool(out=15, waiting=2, wait=1.0, held=0.1), pool(2, "nova")))
    keys: list[RowKey] = [PROGRAM, ("host", "ctl1"), SHOP, ("process", "a"), ("pool", "a", 1)]
    for key in keys:
        assert "the database server takes 10 more" in figures(group, key).verdicts[0].reason
    group.say(full("b", 1, pool(2, "nova"), process=process("ctl2", "other", 2)))
    loaded = Group()
    loaded.state = StateMachine.decode(group.state.encode())
    loaded.state.judge.judge_as(group.state.judge)
    for key in keys:
        assert "the database server takes no more connections" in figures(group, key).verdicts[0].reason
        assert figures(group, key) == figures(loaded, key)


def test_the_judge_forgets_dropped_processes(group: Group) -> None:
    """The judge keeps nothing of a process that was dropped, even if asked for it later."""
    group.say(full("a", 1, pool(out=1, held=41.0), connections=(leak(),)))
    process, judge = group.state.processes["a"], group.state.judge
    assert judge.of_process(process) is judge.of_process(process)
    group.wait(200)
    assert "a" not in group.state.processes
    assert judge.of_process(process) is not judge.of_process(process)


def test_a_detached_connection_is_not_blocked(group: Group) -> None:
    """A detached connection that listens for notifications is not BLOCKED."""
    listens = leak(held=900.0, holder_in="database", state="detached")
    group.say(full("a", 1, pool(held=900.0), connections=(listens,)))
    assert words(group, PROGRAM) == []


def test_thresholds_are_kept_when_the_state_is_replaced() -> None:
    """A state that replaces another one judges by the same thresholds and maxima."""
    group = Group()
    group.state.judge.configure(Thresholds(held_long=300.0), {("db1", None): 5})
    group.say(full("a", 1, pool(out=1, held=41.0), connections=(leak(),)))
    assert words(group, PROGRAM) == []
    loaded = StateMachine.decode(group.state.encode())
    loaded.judge.judge_as(group.state.judge)
    group.state = loaded
    assert words(group, PROGRAM) == []
    assert words(group, SHOP) == ["OVERCOMMIT"]


def test_waits_and_users_have_verdicts(group: Group) -> None:
    """Rows of waits and users queries have the same verdicts as rows by grouping."""
    group.say(full("a", 1, pool(out=15, waiting=2, wait=1.0, held=41.0, timeouts=1), connections=(leak(),)))
    (users,) = group.state.rows(UsersQuery("mysql", "db1", None, "shop"), ABOUT)
    (row,) = users.rows
    found: Figures = row.figures  # type: ignore[union-attr]
    assert [verdict.word for verdict in found.verdicts] == ["LEAK", "SATURATED", "TIMEOUTS"]
    assert found.recent_timeouts == 1
    (waits,) = group.state.rows(WaitsQuery(30.0), ABOUT)
    assert {row.key: row for row in waits.rows} == group.rows("connection")


# --- Call sites -------------------------------------------------------------------------------


def site(call_site: str, of: int = 1, **more: Any) -> SiteReport:
    return SiteReport(of, call_site, **more)


def lines(group: Group, **narrow: Any) -> dict[str, SiteRow]:
    return {
        row.call_site: row for row in group.rows("site", **narrow).values() if isinstance(row, SiteRow)
    }  # fmt: skip


def test_call_sites_are_summed_over_processes(group: Group) -> None:
    """Counts are summed, the usual hold is the largest, the longest hold is as of its process's report."""
    first = full(
        "a", 1, pool(out=2, held=5.0),
        connections=(
            leak(held=5.0, holder_in="database", call_site="x.py:1 f"),
            leak(2, held=4.0, call_site="x.py:1 f"),
            leak(3, held=1.0, call_site="too many lines.py:7 g"),
        ),
        sites=(site("x.py:1 f", held=2, longest=5.0, waiting=1, holds=10, hold_ms=50, usual=0.1),),
    )  # fmt: skip
    group.say(first)
    group.wait(4)
    more = (site("x.py:1 f", held=1, longest=2.0, holds=5, hold_ms=5, usual=0.2, share=0.5), site("y.py:2 g"))
    holding = (leak(held=2.0, call_site="x.py:1 f"),)
    report = full("b", 1, pool(out=1, held=2.0), process=process(pid=2), sites=more, connections=holding)
    group.say(report)
    found = lines(group)
    assert list(found) == ["x.py:1 f", "(other)", "y.py:2 g"]
    assert found["(other)"].held == 1  # of a line that the process does not report by itself
    row = found["x.py:1 f"]
    assert (row.processes, row.held, row.in_database, row.waiting) == (2, 3, 1, 1)
    assert (row.holds, row.hold_ms, row.usual, row.estimated) == (15, 55, 0.2, True)
    assert row.reported == 4.0
    assert row.held_since == -1.0
    assert list(lines(group, instance="b")) == ["x.py:1 f", "y.py:2 g"]
    assert lines(group, instance="a")["x.py:1 f"].held == 2
    assert lines(group, host="other") == lines(group, program="other") == {}
    snapshot = Snapshot("site")
    for frame in group.answer(snapshot.query()):
        snapshot.apply(frame)
    document = snapshot.document()
    assert [(cells["call_site"], cells["longest_held_seconds"]) for cells in document["rows"]] == [
        ("(other)", 1.0), ("x.py:1 f", 5.0), ("y.py:2 g", 0.0),
    ]  # fmt: skip
    (again,) = group.answer(snapshot.query())
    assert (again.complete, again.rows) == (False, ())
    group.wait(20)  # lost: what has been is known, and not what is
    (row,) = [row for row in lines(group).values() if row.holds]
    assert (row.processes, row.held, row.holds) == (0, 0, 15)
    for frame in group.answer(snapshot.query()):
        snapshot.apply(frame)
    known = {cells["held_now"] for cells in snapshot.document()["rows"]}
    assert known == {None}
    group.wait(200)
    assert lines(group) == {}


def taken(number: int, where: str, of: int = 1, held: float = 0.5) -> Connection:
    return leak(number, of, held, call_site=where, holder_in="application")


def test_the_call_site_that_fills_a_pool_is_saturated(group: Group) -> None:
    """The call site that holds most of a full pool is SATURATED, and names the pool with most waiters."""

    def filled(of: int, first: int, **counts: int) -> list[Connection]:
        lines_ = [f"{name}.py:1 f" for name, count in counts.items() for _ in range(count)]
        return [taken(first + at, where, of) for at, where in enumerate(lines_)]

    sites = tuple(site(f"{name}.py:1 f", of) for name in ("a", "b", "c") for of in (1, 2))
    busy = pool(out=15, waiting=3, wait=1.0, held=0.5)
    group.say(
        full("a", 1, busy, pool(2, "nova", out=9, held=0.5), sites=sites,
             connections=(*filled(1, 1, a=9, b=6), *filled(2, 20, c=9))),
        full("b", 1, pool(out=15, waiting=7, wait=2.0, held=0.5), process=process(pid=2), sites=sites[:5],
             connections=tuple(filled(1, 1, a=15))),
        full("c", 1, pool(out=15, waiting=9, wait=2.0, held=0.5), process=process(pid=3), sites=sites[:5],
             connections=tuple(filled(1, 1, a=7, b=8))),
        full("d", 1, pool(out=15, waiting=1, held=0.5), process=process(pid=4), sites=sites[:5],
             connections=tuple(filled(1, 1, a=5, b=5, c=5))),
        full("e", 1, pool(out=15, waiting=1, held=0.5), process=process(pid=5), sites=sites[:5],
             connections=tuple(filled(1, 1, unreported=15))),
    )  # fmt: skip
    found = lines(group)
    # In all processes together it holds less than half, and in one pool without waiters another holds all.
    assert {name: row.verdict for name, row in found.items()} == {
        "a.py:1 f": "SATURATED", "b.py:1 f": "SATURATED", "c.py:1 f": None, "unreported.py:1 f": "SATURATED",
    }  # fmt: skip
    assert (found["a.py:1 f"].reason or "").startswith(
        "pool mysql://db1/shop, pid 2 (and 1 more): 15 connections taken here fill a pool for which 7 wait "
        "up to 2.0s: "
    )
    assert (found["b.py:1 f"].reason or "").startswith(
        "pool mysql://db1/shop, pid 3: 8 connections taken here are most of the 15 of a full pool for which "
    )
    assert found["unreported.py:1 f"].held == 15 and "(other)" not in found
    # A leak is graver.
    group.say(change("b", 2, busy, connections=(leak(99, call_site="a.py:1 f"),)))
    assert lines(group)["a.py:1 f"].verdict == "LEAK"
    group.say(*(change(each, 3 if each == "b" else 2, pool(out=15, held=0.5)) for each in "abce"))
    assert {row.verdict for row in lines(group).values()} <= {None, "LEAK"}


def test_the_advice_to_a_call_site_knows_the_server(group: Group) -> None:
    """When the server takes no more connections, no call site is advised to raise the pool."""
    group.state.judge.configure(Thresholds(), {("db1", None): 15})
    holding = tuple(taken(number, "a.py:1 f") for number in range(1, 16))
    busy = pool(out=15, waiting=3, wait=1.0, held=0.5)
    group.say(full("a", 1, busy, sites=(site("a.py:1 f"),), connections=holding))
    reason = lines(group)["a.py:1 f"].reason or ""
    assert "the database server takes no more connections" in reason
    assert reason.rpartition(": ")[2] in figures(group, ("pool", "a", 1)).verdicts[0].reason


def test_a_change_has_some_call_sites_and_a_full_report_all(group: Group) -> None:
    """The call sites of a closed pool end with it, and free their room."""
    empty = group.state.contents.room.weight
    group.say(full("a", 1, pool(), pool(2, "nova"), sites=(site("x"), site("y", holds=1), site("z", 2))))
    group.say(change("a", 2, sites=(site("y", holds=2),)))
    assert {name: row.holds for name, row in lines(group).items()} == {"x": 0, "y": 2, "z": 0}
    assert StateMachine.decode(group.state.encode()).encode() == group.state.encode()
    assert StateMachine.decode(group.state.encode()).contents.room.weight == group.state.contents.room.weight
    group.say(change("a", 3, closed_pools=(2,)))
    assert list(lines(group)) == ["x", "y"]
    group.say(full("a", 4, pool(), sites=(site("y"), site("of an unknown pool", 9))))
    assert list(lines(group)) == ["y"]
    group.say(full("a", 5))
    group.wait(200)
    assert group.state.contents.room.weight == empty == 0


def test_call_sites_are_bounded() -> None:
    """Call sites are limited per process and by room; known ones still change."""
    group = Group(Limits(sites=2))
    group.say(full("a", 1, pool(), sites=(site("x"), site("y"), site("z"))))
    assert list(lines(group)) == ["x", "y"]
    group.say(change("a", 2, sites=(site("z"), site("y", holds=5))))
    assert {name: row.holds for name, row in lines(group).items()} == {"x": 0, "y": 5}
    room = group.state.contents.room.weight
    group = Group(Limits(room=room))
    group.say(full("a", 1, pool(), sites=(site("x"), site("y"), site("z" * 2048), site("w"))))
    assert list(lines(group)) == ["x", "y"]
    assert group.state.contents.room.weight <= room


def test_a_checkpoint_of_an_earlier_version_is_loaded(group: Group) -> None:
    """A checkpoint of an earlier version loads: without call sites, profiles, timeouts, holders' places."""
    group.say(full("a", 1, pool(out=1, held=5.0), connections=(leak(held=5.0, holder_in=None),)))
    layout, *parts = msgspec.msgpack.decode(group.state.encode())
    for record in parts[4]:
        del record[-3:]  # sites, surplus, unprofiled
        pools, connections = record[18], record[19]
        for each in pools.values():
            del each[-1]  # recent
        for each in connections.values():
            del each[-2:]  # holder_in, holder_site
    for record in parts[5]:
        del record[-1]  # holds
    assert StateMachine.decode(msgspec.msgpack.encode([layout, *parts])).encode() == group.state.encode()


# --- For anything -----------------------------------------------------------------------------

POOLS = st.builds(
    lambda out, waiting, timeouts, held, where, usual: (out, waiting, timeouts, held, where, usual),
    st.sampled_from([0, 1, 15]), st.sampled_from([0, 2]), st.sampled_from([0, 0, 3]),
    st.sampled_from([1.0, 41.0]), st.sampled_from([None, "ended", "database", "application"]), st.booleans(),
)  # fmt: skip


def fleet(each: list[list[Any]]) -> Group:
    group = Group()
    for process_number, pools in enumerate(each):
        reports, connections = [], []
        for number, (out, waiting, timeouts, held, where, usual) in enumerate(pools, 1):
            times = QUICK if usual else Times()
            reports.append(
                pool(number, f"db{number}", out=out, waiting=waiting, timeouts=timeouts, times=times,
                     held=held if out else None)
            )  # fmt: skip
            if out:
                connections.append(leak(number, number, held, holder_in=where))
        who = process(pid=process_number)
        group.say(full(f"p{process_number}", 1, *reports, connections=tuple(connections), process=who))
    return group


def gravest(group: Group, key: RowKey) -> int:
    return max([rank(word) for word in words(group, key)], default=0)


@settings(deadline=None)
@given(st.lists(st.lists(POOLS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_row_is_as_grave_as_its_gravest_pool(each: list[list[Any]]) -> None:
    """A row has the gravest verdict of its pools; a healthy pool more changes nothing; timeouts add up."""
    group = fleet(each)
    pools = [gravest(group, key) for key in group.rows("pool") if key[0] == "pool"]
    assert gravest(group, PROGRAM) == gravest(group, ("host", "ctl1")) == max(pools)
    own_words = {word for key in group.rows("pool") for word in words(group, key)}
    assert words(group, PROGRAM) == sorted(own_words, key=rank, reverse=True)
    for key in group.rows("process"):
        own = [gravest(group, k) for k in group.rows("pool") if k[:2] == ("pool", key[1])]
        assert gravest(group, key) == max(own)
    recent = [figures(group, key).recent_timeouts for key in group.rows("process")]
    assert figures(group, PROGRAM).recent_timeouts == sum(recent)
    before = words(group, PROGRAM)
    group.say(full("well", 1, pool(9, "well"), process=process(pid=99)))
    assert words(group, PROGRAM) == before
    loaded = Group()
    loaded.state = StateMachine.decode(group.state.encode())
    for by in ("program", "host", "database", "process", "pool", "connection"):
        assert loaded.rows(by) == group.rows(by)


def test_of_very_many_held_connections_the_longest_are_judged() -> None:
    """However many connections a process holds, judging them takes bounded time."""
    group = Group(answering=AnswerSettings(judged_connections=2))
    leaks = tuple(leak(number, held=40.0 + number) for number in range(1, 6))
    group.say(full("a", 1, pool(out=5, held=45.0), connections=leaks))
    (verdict,) = figures(group, PROGRAM).verdicts
    assert verdict.reason.startswith("2 connections are held, the longest taken at jobs.py:12 run for 45s")


# --- What it costs ------------------------------------------------------------------------------


def crowd(processes: int, sites: int) -> Group:
    group = Group()
    for number in range(processes):
        group.say(
            full(
                f"p{number}", 1, pool(out=1, held=0.1), pool(2, "nova", out=1, held=0.1),
                connections=tuple(leak(at, at, 0.1, call_site=f"module{at}.py:{at} f") for at in (1, 2)),
                sites=tuple(site(f"module{at}.py:{at} f", 1 + at % 2, holds=1) for at in range(sites)),
                process=process(f"host{number % 50}", f"program{number % 7}", number),
            )
        )  # fmt: skip
    return group


def test_many_processes_do_not_block_the_node() -> None:
    """Rows by call site of 3,000 processes come in pieces: other clients have their turn between them."""
    group = crowd(3_000, 20)
    frames = list(group.state.rows(Query("site"), ABOUT))
    assert sum([len(frame.rows) for frame in frames]) == 350 * 20
    looked_at = 3_000 * (20 + 2)  # call sites and connections that are held
    assert len(frames) >= looked_at // (group.state.answering.piece_records + 22) + 4
    assert max([len(frame.rows) for frame in frames]) <= group.state.answering.frame_rows

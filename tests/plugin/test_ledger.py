"""The ledger: each rule of its docstring, and any sequence of events against a simple model.

Events go in as the listeners write them: the real ones of plugin/pool.py, on a pool that makes no
connections, called in any order. The reports go to the real state machine of the cluster.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs
from sqlalchemy.pool import NullPool

from connmon.cluster.state.machine import StateMachine
from connmon.cluster.state.times import added_times, unpacked
from connmon.plugin.call_site_accounts import Held, Look, Whereabouts
from connmon.plugin.ledger import Ledger, LedgerSettings
from connmon.plugin.pool import instrument
from connmon.plugin.pool_account import KEY, PoolAccount, Token, highest, within_peaks
from connmon.protocol import histogram
from connmon.protocol.batch import Batch
from connmon.protocol.frames import REPORT_BYTES, frame
from connmon.protocol.reports import PoolInfo, Process, Report
from connmon.protocol.rows import database_key
from connmon.protocol.values import Gauges, HolderIn, Peaks, Times, Totals


class Holders:
    """Knows every holder, by its number."""

    def name(self, holder: int) -> str:
        return f"t{holder}"

    def frame_text(self, code: CodeType, number: int) -> str:
        return f"{code.co_filename}:{number} {code.co_name}"

    def whereabouts(self, holder: int, code: CodeType | None, mine: bool) -> Whereabouts:
        where: HolderIn = "database" if mine else "application" if code is None else "elsewhere"
        return Whereabouts(where, f"app.py:{holder} work", (f"app.py:{holder} work", "app.py:1 main"))

    def in_driver(self) -> frozenset[int]:
        return frozenset()

    def look(self, held: Sequence[Held], other_holders: Iterable[Any]) -> list[Look]:
        return [Look("database" if one.code is None else "own code") for one in held]

    def application(self, look: Look) -> tuple[tuple[CodeType, int], ...]:
        return ()

    def stack_texts(self, look: Look) -> tuple[str, ...]:
        return ()


PROCESS = Process(host="ctl1", program="nova-api", pid=1, ppid=0, user=None, command=None, started=None)


def info(database: str = "neutron", size: int | None = 5, overflow: int | None = 10) -> PoolInfo:
    url = f"mysql+pymysql://root@db/{database}"
    return PoolInfo(
        url=url,
        dialect="mysql",
        database_host="db",
        database_port=3306,
        database=database,
        pool_class="QueuePool",
        pool_size=size,
        max_overflow=overflow,
        timeout=30.0,
    )


SETTINGS = LedgerSettings()


def make_ledger(instance: str = "one", settings: LedgerSettings = SETTINGS) -> Ledger:
    return Ledger(instance, threading.Lock, time.monotonic, Holders(), settings)


class Driver:
    """A driver's connection, as far as listeners look at it."""


class Record:
    """A connection record."""

    driver_connection = None

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}


def _no_connection() -> Any:
    raise AssertionError("nothing connects here")


class Pool:
    """A pool whose events are called by the test; nothing connects."""

    def __init__(self, ledger: Ledger, what: PoolInfo) -> None:
        pool: Any = NullPool(_no_connection)
        self.account = instrument(pool, ledger, what, lambda _: 884213)
        self.events = pool.dispatch
        self.pool = pool

    def connect(self) -> tuple[Driver, Record]:
        connection, record = Driver(), Record()
        self.events.connect(connection, record)
        return connection, record

    def checkout(self) -> tuple[Driver, Record]:
        connection, record = self.connect()
        self.events.checkout(connection, record, None)
        return connection, record


def taken(report: Report | None) -> Report:
    assert report is not None
    return report


def acknowledged(ledger: Ledger, now: float, *, alive: bool = True) -> Report:
    """Take a report and acknowledge it."""
    report = taken(ledger.take(now, alive=alive))
    ledger.acknowledged(report.sequence)
    return report


# --- The rules by example -------------------------------------------------------------------


def test_totals_are_sums_over_entries() -> None:
    """The totals are the counts of the entries plus those that ended entries have left behind."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    first, record = pool.checkout()
    pool.events.checkin(first, record)
    second = pool.checkout()
    pool.events.close(first, record)
    (reported,) = taken(ledger.take(10.0)).pools
    assert reported.totals._replace(hold_ms=0) == Totals(connects=2, closes=1, checkouts=2, checkins=1)
    del second  # and with it the token in its record
    (reported,) = taken(ledger.take(11.0)).pools
    assert reported.totals._replace(hold_ms=0) == Totals(connects=2, closes=2, checkouts=2, checkins=2)
    assert not pool.account.entries


def test_only_counts_that_changed_are_reported() -> None:
    """A full report has complete histograms; another one only the buckets that have changed."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    for seconds in (0.001, 0.02):
        entry = pool.account.opened(1, 5.0, connect_seconds=0.3)
        entry.holds += [seconds] * 3
    whole = Times({}, histogram.of([0.001, 0.02] * 3), histogram.of([0.3, 0.3]))
    (reported,) = acknowledged(ledger, 10.0).pools
    assert reported.times == whole
    entry.holds.append(0.02)
    (reported,) = acknowledged(ledger, 11.0).pools
    assert (reported.info, reported.times) == (None, Times({}, {histogram.bucket(0.02): 4}, {}))
    pool.account.timeouts += 1
    (reported,) = acknowledged(ledger, 12.0).pools
    assert reported.times == Times()
    ledger.restart()
    (reported,) = taken(ledger.take(13.0)).pools
    assert reported.times == whole._replace(holds=histogram.of([0.001] * 3 + [0.02] * 4))


def test_an_entry_is_folded_once() -> None:
    """Two threads that fold at once count an entry once."""
    account = make_ledger().pool(info())
    entry = account.opened(1, 5.0)
    entry.end()

    class Racing(dict[int, Any]):
        def values(self) -> Any:
            listed = list(super().values())
            if listed:
                self.values = lambda: listed  # type: ignore[method-assign]
                account.fold()  # another one is faster
            return listed

    account.entries = Racing(account.entries)
    account.fold()
    assert account.ended == Totals(connects=1, closes=1)


def test_an_end_counts_once() -> None:
    """Of a close event, the end of the token and the end of the driver's connection the first one counts."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    connection, record = pool.checkout()
    pool.events.detach(connection, record)
    pool.events.close_detached(connection)
    pool.events.close_detached(connection)
    pool.events.close(connection, record)
    del connection, record
    assert (ledger.process.live.open, ledger.process.live.checked_out) == (0, 0)
    pool.account.fold()
    assert pool.account.count()[1][:4] == (1, 1, 1, 1)


def test_an_ended_detached_connection_leaves_no_cycle() -> None:
    """It is freed without a garbage collection, which some applications switch off."""
    pool = Pool(make_ledger(), info())
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing).__name__ == "Entry" for thing in gc.get_objects())
        for _ in range(10):
            connection, record = pool.checkout()
            pool.events.detach(connection, record)
            pool.events.close_detached(connection)
            pool.account.fold()
        del connection, record
        assert sum(type(thing).__name__ == "Entry" for thing in gc.get_objects()) <= before + 1
    finally:
        gc.enable()


def test_no_connection_is_none() -> None:
    """A record that returns without a connection ends the one that it had, and nothing else."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    connection, record = pool.checkout()
    pool.events.checkin(None, record)
    assert (ledger.process.live.open, ledger.process.live.checked_out) == (0, 0)
    pool.events.checkin(None, record)
    pool.events.checkin(None, Record())
    pool.events.close(None, Record())
    assert (ledger.process.live.open, ledger.process.live.checked_out) == (0, 0)
    del connection


def test_a_report_says_what_changed() -> None:
    """After an acknowledged report comes one with the changes, then one more without, then nothing."""
    ledger = make_ledger()
    pool, other = Pool(ledger, info()), Pool(ledger, info("nova"))
    connection, record = pool.checkout()
    first = acknowledged(ledger, 10.0, alive=False)
    assert (first.sequence, first.base, first.full) == (1, 0, True)
    assert {p.number for p in first.pools} == {pool.account.number, other.account.number}
    assert [(c.state, c.server_id) for c in first.connections] == [("checked_out", 884213)]
    assert all(p.info is not None for p in first.pools)
    rest = acknowledged(ledger, 11.0, alive=False)
    assert (rest.base, rest.pools, rest.connections) == (1, (), ())
    assert ledger.take(12.0) is None
    alive = acknowledged(ledger, 13.0)
    assert (alive.sequence, alive.base, alive.interval) == (3, 2, 2.0)
    pool.events.checkin(connection, record)
    change = taken(ledger.take(14.0))
    assert [(p.number, p.info) for p in change.pools] == [(pool.account.number, None)]
    assert [c.state for c in change.connections] == ["idle"]


def test_a_session_id_that_comes_late_is_reported() -> None:
    """A connection that is reported during its first statements has no session id yet; the id follows when it
    is known, even if the connection is not used again.
    """
    ledger = make_ledger()
    pool = Pool(ledger, info())
    connection, record = Driver(), Record()
    entry = pool.account.opened(id(connection), time.monotonic(), owned=True)
    record.info[KEY] = Token(entry)  # as the creator does, before any event
    (early,) = acknowledged(ledger, time.monotonic()).connections
    assert early.server_id is None
    pool.events.connect(connection, record)
    (late,) = acknowledged(ledger, time.monotonic()).connections
    assert (late.number, late.server_id) == (early.number, 884213)
    assert not acknowledged(ledger, time.monotonic()).connections


def test_after_restart_everything_is_reported() -> None:
    """A full report makes up for a lost one, and names neither closed pools nor connections."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    connection, record = pool.checkout()
    acknowledged(ledger, 10.0)
    pool.events.close(connection, record)
    lost = taken(ledger.take(11.0))
    assert lost.closed_connections
    ledger.restart()
    again = taken(ledger.take(12.0))
    assert again.full
    assert (again.connections, again.closed_connections, again.closed_pools) == ((), (), ())
    assert again.pools[0].info == info()
    assert again.pools[0].totals[:2] == (1, 1)


def test_a_late_acknowledgement_counts_for_nothing() -> None:
    """Only the acknowledgement of the latest report changes what the next one builds on."""
    ledger = make_ledger()
    Pool(ledger, info()).checkout()
    first = taken(ledger.take(10.0))
    second = taken(ledger.take(11.0, alive=True))
    ledger.acknowledged(first.sequence)
    assert taken(ledger.take(12.0, alive=True)).full
    assert second.full


def test_peaks_stay_until_acknowledged() -> None:
    """A peak that was over before the first report is in every report until one is acknowledged."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    held = [pool.checkout() for _ in range(3)]
    for connection, record in held:
        pool.events.checkin(connection, record)
        pool.events.close(connection, record)
    wait = pool.account.wait_begins(5.0)
    pool.account.wait_ends(wait, 7.0)
    for now in (10.0, 11.0, 12.0):
        report = taken(ledger.take(now, alive=True))
        assert report.peaks == report.pools[0].peaks == Peaks(3, 3, 1, 2.0)
        ledger.restart()
    acknowledged(ledger, 13.0)
    report = acknowledged(ledger, 14.0)
    assert report.peaks == report.pools[0].peaks == Peaks()


def test_the_peak_of_a_pool_that_lived_between_two_reports() -> None:
    """An engine made, used and dropped within a second is in the peaks of process and database."""
    ledger = make_ledger()
    acknowledged(ledger, 9.0)
    pool = Pool(ledger, info())
    kept = [pool.checkout() for _ in range(4)]
    wait = pool.account.wait_begins(9.0)
    pool.account.wait_ends(wait, 9.5)
    del kept, pool
    report = taken(ledger.take(10.0))
    (remains,) = report.pools
    assert remains.gauges == Gauges()
    assert remains.totals[:4] == (4, 4, 4, 4)
    assert remains.peaks == report.peaks == Peaks(4, 4, 1, 0.5)


def test_a_torn_sum_is_no_maximum() -> None:
    """While entries are summed, one is returned and another taken: two are seen held, but never at once."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    one, two = pool.checkout(), pool.checkout()
    for connection, record in (one, two):
        pool.events.checkin(connection, record)
    acknowledged(ledger, 10.0)
    acknowledged(ledger, 11.0)
    pool.events.checkout(*one, None)
    acknowledged(ledger, 12.0)
    entry = one[1].info["connmon"].entry
    held: float = entry.since

    class Watched(type(entry)):  # type: ignore[misc]
        __slots__ = ()

        @property
        def since(self) -> float:
            if entry.closed or torn:
                return 0.0
            torn.append(1)
            pool.account.live.checked_out -= 1
            ledger.process.live.checked_out -= 1
            pool.events.checkout(*two, None)
            return held

    torn: list[int] = []
    watched = Watched.__new__(Watched)
    for name in type(entry).__slots__:
        if name != "since":
            setattr(watched, name, getattr(entry, name))
    pool.account.entries[entry.number] = watched
    report = taken(ledger.take(13.0))
    assert torn
    assert report.pools[0].gauges.checked_out == 1
    assert (report.peaks.checked_out, report.pools[0].peaks.checked_out) == (1, 1)


def test_torn_sums_over_pools() -> None:
    """The pools together never show more than the process had at one moment."""
    a = Gauges(1, 15, 0, connections=3, checked_out=2, overflow=1, detached=1, waiting=2)
    peaks = Peaks(3, 2, 2)
    assert within_peaks(a, peaks, peaks, Gauges()) == a
    assert within_peaks(a, peaks, Peaks(4, 2, 3), Gauges(connections=3, checked_out=1, waiting=2)) == Gauges(
        1, 15, 0, connections=1, checked_out=0, overflow=0, detached=1, waiting=1
    )
    assert within_peaks(a, peaks, peaks, Gauges(connections=3, checked_out=2, waiting=2))[3:] == (
        0,
        0,
        0,
        0,
        0,
    )


def test_highest() -> None:
    """Each peak is the larger of both; against None it is the other."""
    assert highest(None, Peaks(1)) == Peaks(1)
    assert highest(Peaks(1, 5, 2, 3.0), Peaks(2, 4, 2, 4.0)) == Peaks(2, 5, 2, 4.0)


def test_what_ended_since_fold_is_not_open() -> None:
    """An entry that ends while a report is made counts as ended, and is not held since time 0."""
    pool = Pool(make_ledger(), info())
    connection, record = pool.checkout()
    pool.events.detach(connection, record)
    pool.events.close_detached(connection)
    gauges, totals, longest = pool.account.count()  # without fold
    assert gauges[3:] == (0, 0, 0, 0, 0)
    assert totals[:4] == (1, 1, 1, 1)
    assert longest is None


def test_drift_is_set_right_when_quiet() -> None:
    """A live count that has lost an update is corrected once nothing has changed for a while."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    kept = pool.checkout()
    for live in (pool.account.live, ledger.process.live):
        live.open += 2
        live.checked_out -= 1
    now = 10.0
    for _ in range(3):
        ledger.take(now)
        now += 0.001
    assert pool.account.live.open == 3, "not at once: a thread may be in the middle of it"
    for _ in range(8):
        report = acknowledged(ledger, now := now + 1.0)
    for live in (pool.account.live, ledger.process.live):
        assert (live.open, live.checked_out) == (1, 1)
    report = acknowledged(ledger, now + 2.0)
    assert report.peaks[:2] == (1, 1)
    ledger.restart()
    assert taken(ledger.take(now + 3.0)).pools[0].gauges[3:5] == (1, 1)
    del kept


def test_pools_that_are_gone_leave_their_totals() -> None:
    """A pool's totals go on in the remains of the same database; its number is reported as closed."""
    ledger = make_ledger()
    pool, stays = Pool(ledger, info()), Pool(ledger, info("nova"))
    pool.checkout()
    number = pool.account.number
    acknowledged(ledger, 10.0)
    del pool
    report = acknowledged(ledger, 11.0)
    assert report.closed_pools == (number,)
    (remains,) = report.pools
    assert remains.info is not None
    assert database_key(remains.info) == database_key(info())
    assert remains.totals[:4] == (1, 1, 1, 1)
    for _ in range(2):
        Pool(ledger, info()).checkout()
    report = acknowledged(ledger, 12.0)
    assert [(p.number, p.totals[0]) for p in report.pools] == [(remains.number, 3)]
    assert report.closed_pools == ()
    assert list(ledger.pools) == [stays.account.number]


def test_remains_are_those_of_the_database() -> None:
    """Two pools with the same URL (hosts were in the query) may be of different databases."""
    ledger = make_ledger()
    one = PoolInfo(
        url="postgresql:///x",
        dialect="postgresql",
        database_host="h1",
        database_port=5432,
        database="x",
        pool_class="NullPool",
        pool_size=None,
        max_overflow=None,
        timeout=None,
    )
    two = structs.replace(one, database_host="h2")
    for what in (one, two, two):
        Pool(ledger, what).checkout()
    report = taken(ledger.take(10.0))
    connects = {database_key(p.info): p.totals.connects for p in report.pools if p.info is not None}
    assert connects == {database_key(one): 1, database_key(two): 2}


def test_remains_are_limited() -> None:
    """Beyond the limit closed pools share one account, and no total is lost."""
    ledger = make_ledger()
    for number in range(SETTINGS.databases + 20):
        Pool(ledger, info(f"db{number}")).checkout()
        acknowledged(ledger, 10.0 + number)
    ledger.restart()
    report = taken(ledger.take(1000.0))
    assert len(report.pools) == SETTINGS.databases + 1
    assert sum(p.totals.connects for p in report.pools) == SETTINGS.databases + 20


def test_a_detached_connection_outlives_its_pool() -> None:
    """The pool is reported as closed, together with its connection, when that ends."""
    ledger = make_ledger()
    pool = Pool(ledger, info())
    connection, record = pool.checkout()
    pool.events.detach(connection, record)
    del pool
    report = acknowledged(ledger, 10.0)
    assert report.pools[0].gauges == Gauges(0, 0, 0, connections=1, detached=1)
    del connection
    report = acknowledged(ledger, 11.0)
    assert report.closed_pools
    assert report.closed_connections
    assert report.pools[0].totals[:4] == (1, 1, 1, 1)


def test_nothing_grows_while_no_report_is_taken() -> None:
    """Neither ended connections nor dropped engines pile up beyond a bound."""
    ledger = make_ledger()
    pool = Pool(ledger, info(size=None, overflow=None))
    reported_before = pool.checkout()
    acknowledged(ledger, 10.0)
    for _ in range(5 * SETTINGS.accounts.backlog_entries):
        pool.checkout()
    assert len(pool.account.entries) <= 2 * SETTINGS.accounts.backlog_entries
    assert len(pool.account.closed_connections) <= 1
    for _ in range(3 * SETTINGS.accounts.backlog_entries):
        Pool(ledger, info())
    assert len(ledger.pools) <= 2 * SETTINGS.accounts.backlog_entries
    report = taken(ledger.take(11.0))
    assert sum(p.totals.connects for p in report.pools) == 5 * SETTINGS.accounts.backlog_entries + 1
    del reported_before


def test_ages() -> None:
    """A report carries ages at its time: of the connection, of its hold, of the wait."""
    ledger = make_ledger()
    account = ledger.pool(info())
    entry = account.opened(1, 100.0)
    entry.holder, entry.checkouts, entry.since = 7, 1, 110.0
    account.wait_begins(115.0)
    account.wait_begins(116.0)
    report = taken(ledger.take(120.0))
    (connection,) = report.connections
    assert (connection.age, connection.held, connection.holder) == (20.0, 10.0, "t7")
    assert (report.pools[0].held, report.pools[0].wait) == (10.0, 5.0)
    assert report.peaks.longest_wait == 5.0


def test_a_connection_held_long_is_reported_again() -> None:
    """The replica ages it by its own clock, so its age is reported again now and then; not an idle one's."""
    ledger = make_ledger()
    account = ledger.pool(info())
    held, _idle = account.opened(1, 100.0), account.opened(2, 100.0)
    held.checkouts, held.since = 1, 100.0
    acknowledged(ledger, 100.0)
    assert acknowledged(ledger, 100.0 + SETTINGS.refresh_seconds).connections == ()
    (again,) = acknowledged(ledger, 101.0 + SETTINGS.refresh_seconds).connections
    assert again.held == 1.0 + SETTINGS.refresh_seconds


def test_limits() -> None:
    """Capacity is known where there is a limit; overflow is the number of attached connections beyond the
    size.
    """
    ledger = make_ledger()
    for size, overflow, expected in [
        (5, 10, (1, 15, 0)),
        (5, -1, (1, 0, 1)),
        (None, None, (1, 0, 1)),
        (1, None, (1, 1, 0)),
    ]:
        assert ledger.pool(info(size=size, overflow=overflow)).count()[0][:3] == expected
    account = ledger.pool(info(size=1))
    for key in range(3):
        account.opened(key, 1.0)
    assert account.count()[0].overflow == 2


def test_a_take_that_cannot_fold_in_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another thread does not stop folding, the reporter tries again later."""

    class Taken:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            return False

        def release(self) -> None:
            raise AssertionError

    ledger = Ledger("one", Taken, time.monotonic)
    assert ledger.take(1.0, alive=True) is None


def test_after_a_fork_all_was_the_parents() -> None:
    """The child counts from nothing; a connection that it goes on using is adopted, the parent has connected
    it.
    """
    ledger = make_ledger()
    pool = Pool(ledger, info())
    (used, record), (idle, _idle_record), held = pool.connect(), pool.connect(), pool.checkout()
    wait = pool.account.wait_begins(1.0)
    pool.account.timeouts = 3
    acknowledged(ledger, 10.0)
    ledger.forked("two")
    assert not ledger.process.used
    pool.account.wait_ends(wait, 2.0)
    pool.events.checkin(*held)
    pool.events.close(*held)
    report = taken(ledger.take(11.0))
    assert (report.instance, report.sequence, report.full) == ("two", 1, True)
    assert report.pools[0].gauges == Gauges(1, 15)
    assert report.pools[0].totals == Totals()
    assert report.peaks == Peaks()
    pool.events.checkout(used, record, None)
    report = taken(ledger.take(12.0))
    assert report.pools[0].gauges[3:5] == (1, 1)
    assert report.pools[0].totals == Totals(checkouts=1)
    pool.events.checkin(used, record)
    pool.events.close(used, record)
    totals = taken(ledger.take(13.0)).pools[0].totals
    assert totals._replace(hold_ms=0) == Totals(checkouts=1, checkins=1)
    assert (ledger.process.live.open, ledger.process.live.checked_out, ledger.process.live.waiting) == (
        0,
        0,
        0,
    )
    del idle


def test_a_lock_that_an_interruption_left_held() -> None:
    """A fold lock that is never released is replaced, and nothing piles up."""
    clock = [100.0]
    ledger = Ledger("i", threading.Lock, lambda: clock[0])
    account = ledger.pool(
        PoolInfo(
            url="u",
            dialect="sqlite",
            database_host=None,
            database_port=None,
            database=None,
            pool_class="QueuePool",
            pool_size=5,
            max_overflow=10,
            timeout=30.0,
        )
    )
    ledger.process.fold_lock.current.acquire()
    for _ in range(3):
        account.wait_times.append(0.5)
        account.count_times()
        clock[0] += 1.0
    assert account.wait_times == [0.5] * 3
    account.count_times()
    assert account.wait_times == []
    assert sum(account.times().waits.values()) == 3


# --- More than fits into a report -------------------------------------------------------------


def on_the_wire(report: Report) -> Report:
    """Return the report as a node reads it."""
    framed = frame(report)
    assert len(framed) < REPORT_BYTES
    return msgspec.msgpack.decode(framed[4:], type=Report)


def totals_of(report: Report) -> Totals:
    return Totals(*map(sum, zip(*[pool.totals for pool in report.pools], strict=True)))


def test_a_report_is_taken_by_a_node_however_many_pools_there_are() -> None:
    """The oldest 1,000 are reported one by one, the others as one sum for each database, and no count is
    lost.
    """
    ledger = make_ledger()
    accounts = [ledger.pool(info(f"db{number % 100}")) for number in range(12_000)]
    for account in accounts:
        account.opened(1, 9.0)
    report = on_the_wire(taken(ledger.take(10.0)))
    own = [pool for pool in report.pools if not pool.left_out]
    sums = [pool for pool in report.pools if pool.left_out]
    assert [pool.number for pool in own] == [account.number for account in accounts[:1000]]
    assert sum(pool.left_out for pool in sums) == 11_000
    assert len(sums) == SETTINGS.databases + 1
    assert sum(pool.gauges.pools for pool in report.pools) == 12_000
    assert totals_of(report).connects == 12_000
    for pool in sums[:-1]:
        assert pool.info is not None
        assert (pool.info.several, pool.info.database_host) == (True, "db")
        assert (pool.left_out, pool.gauges.connections) == (110, 110)
    # Their connections are reported, each with the sum that its pool is in.
    assert len(report.connections) == 12_000
    assert {connection.pool for connection in report.connections} == {pool.number for pool in report.pools}
    ledger.acknowledged(report.sequence)
    assert ledger.take(11.0) is not None  # one more, as after any change
    assert ledger.take(12.0) is None


def test_a_pool_that_fits_later_is_reported_with_all_its_counts() -> None:
    """It takes its part out of the sum; neither change counts as something that has just happened."""
    ledger = make_ledger(settings=LedgerSettings(pools_reported=2, few_pools=0))
    pools = [Pool(ledger, info()) for _ in range(4)]
    kept = [pool.checkout() for pool in pools]
    report = acknowledged(ledger, 10.0)
    assert [(p.left_out, p.totals.connects) for p in report.pools] == [(0, 1), (0, 1), (2, 2)]
    number = report.pools[2].number
    first = pools[0].account.number
    del kept[0], pools[0]
    report = acknowledged(ledger, 11.0)
    assert report.closed_pools == (first,)
    assert report.closed_connections
    by_number = {pool.number: pool for pool in report.pools}
    third, rest = by_number[pools[1].account.number], by_number[number]
    assert (third.totals.connects, third.gauges.connections, third.moved) == (1, 1, True)
    assert third.info == info()
    assert (rest.totals.connects, rest.gauges.connections, rest.left_out, rest.moved) == (1, 1, 1, True)
    assert third.number in {connection.pool for connection in report.connections}
    assert totals_of(report).connects == 3  # with what remains of the first
    del kept[0], pools[0]
    report = acknowledged(ledger, 12.0)
    # No pool is left for the sum.
    assert number in report.closed_pools
    assert not any(pool.left_out for pool in report.pools)
    assert not acknowledged(ledger, 13.0).closed_pools
    ledger.restart()
    assert not any(pool.moved for pool in acknowledged(ledger, 14.0).pools)


def test_connections_that_are_too_many_are_counted_and_reported_when_others_end() -> None:
    """The gauges include them all the time."""
    ledger = make_ledger(settings=LedgerSettings(connections_reported=3))
    account = ledger.pool(info())
    entries = [account.opened(number, 9.0) for number in range(5)]
    report = acknowledged(ledger, 10.0)
    assert (report.left_out, report.pools[0].gauges.connections) == (2, 5)
    assert [connection.number for connection in report.connections] == [e.number for e in entries[:3]]
    entries[3].checkouts, entries[3].since = 1, 10.5
    report = acknowledged(ledger, 11.0)
    assert (report.connections, report.left_out, report.pools[0].totals.checkouts) == ((), 2, 1)
    entries[0].end()
    entries[4].end()
    report = acknowledged(ledger, 12.0)
    assert report.closed_connections == (entries[0].number,)
    assert ([c.number for c in report.connections], report.left_out) == ([entries[3].number], 0)
    ledger.restart()
    assert len(acknowledged(ledger, 13.0).connections) == 3


def test_stacks_that_do_not_fit_are_in_the_next_report() -> None:
    """The connections are reported at once; where they are held follows, and no report gets too large."""
    ledger = make_ledger(settings=LedgerSettings(holder_bytes=200))
    account = ledger.pool(info())
    account.long_hold_seconds = 1.0
    for number in range(9):
        entry = account.opened(number, 1.0)
        entry.holder, entry.checkouts, entry.since = number + 1, 1, 2.0
    report = acknowledged(ledger, 10.0)
    assert [bool(connection.stack) for connection in report.connections] == [True] * 3 + [False] * 6
    with_stack = {connection.number for connection in report.connections if connection.stack}
    for second in (11.0, 12.0):
        more = [connection.number for connection in acknowledged(ledger, second).connections]
        assert len(more) == 3
        with_stack.update(more)
    assert len(with_stack) == 9


def test_the_largest_report_fits() -> None:
    """A report fits, however long the names of pools, databases and holders are."""
    ledger = make_ledger()
    long = "\U0001f40d" * 256
    what = structs.replace(info(), url="\U0001f40d" * 2048, database="\U0001f40d" * 2048, database_host=long)
    for number in range(300):
        account = ledger.pool(structs.replace(what, database_port=number))
        account.long_hold_seconds = 0.0
        for _ in range(30):
            entry = account.opened(1, 1.0)
            entry.checkouts, entry.since = 1, 2.0
    assert ledger.holder_checks.holders is not None

    class Verbose(Holders):
        def whereabouts(self, holder: int, code: CodeType | None, mine: bool) -> Whereabouts:
            return Whereabouts("elsewhere", "\U0001f40d" * 100, ("\U0001f40d" * 100,) * 20)

    ledger.holder_checks.holders = Verbose()
    report = on_the_wire(taken(ledger.take(10.0)))
    assert len(report.connections) == 9_000
    assert sum(pool.gauges.connections for pool in report.pools) == 9_000
    assert sum(pool.gauges.pools for pool in report.pools) == 300


# --- Any sequence of facts ------------------------------------------------------------------


class Truth:
    """One physical connection in the model."""

    def __init__(self, pool: int, owned: bool = True) -> None:
        self.pool = pool
        self.owned = owned
        self.connection: Driver | None = Driver()
        self.record: Record | None = Record()
        self.proxy: dict[str, Any] | None = None
        self.known = True
        """False: inherited, and not used yet in this process."""
        self.held = False
        self.since = 0.0
        self.detached = False


class Facts:
    """What has happened in one pool, in this process."""

    def __init__(self, pool: Pool | None, account: PoolAccount) -> None:
        self.pool = pool
        self.account = account
        self.totals = dict.fromkeys(Totals._fields, 0)
        self.unfinished: dict[int, int] = {}
        """Checkouts of each connection that have not ended."""
        self.waits: dict[object, float] = {}
        """Since when, by what they are ended with."""
        self.holds = self.waited = 0
        """Holds and waits that have ended; and seconds of both."""
        self.held = self.waiting = 0.0
        self.most = [0, 0, 0]


class Ledgers(RuleBasedStateMachine):
    """Any event of a ledger, its reports and its process."""

    #: Of all clocks. It moves by steps that a float has exactly, so that sums of them are exact as well.
    now = 0.0
    settings = SETTINGS

    def __init__(self) -> None:
        super().__init__()
        Ledgers.now = 1000.0
        self.ledger = Ledger("0", threading.Lock, Ledgers.clock, Holders(), self.settings)
        self.instances = 1
        self.state = StateMachine()
        self.batches = 0
        self.facts: list[Facts] = []
        self.connections: list[Truth] = []
        self.most = [0, 0, 0]
        self.seen, self.times = Totals(), Times()
        self.pool(0)

    @staticmethod
    def clock() -> float:
        return Ledgers.now

    # -- the application

    @rule(database=st.integers(0, 2))
    def pool(self, database: int) -> None:
        if len(self.facts) < 6:
            made = Pool(self.ledger, info(f"db{database}"))
            self.facts.append(Facts(made, made.account))

    def _pool(self, pick: int) -> int | None:
        alive = [number for number, facts in enumerate(self.facts) if facts.pool is not None]
        return alive[pick % len(alive)] if alive else None

    @rule(pick=st.integers(0, 99))
    def connect(self, pick: int) -> None:
        number = self._pool(pick)
        if number is None or len(self.connections) > 12:
            return
        self._connect(Truth(number))

    def _connect(self, truth: Truth) -> None:
        facts = self.facts[truth.pool]
        assert facts.pool is not None
        facts.pool.events.connect(truth.connection, truth.record)
        facts.totals["connects"] += 1
        self.connections.append(truth)
        self._look()

    def _pick(self, pick: int, *, held: bool | None = None, detached: bool = False) -> Truth | None:
        candidates = [
            c
            for c in self.connections
            if c.detached == detached and (held is None or c.held == held) and self.facts[c.pool].pool
        ]
        return candidates[pick % len(candidates)] if candidates else None

    @rule(pick=st.integers(0, 99), again=st.booleans())
    def checkout(self, pick: int, again: bool) -> None:
        """`again`: twice without a checkin between, as StaticPool and retries do."""
        truth = self._pick(pick, held=again)
        if truth is None:
            return
        facts = self.facts[truth.pool]
        assert facts.pool is not None
        facts.pool.events.checkout(truth.connection, truth.record, None)
        if not truth.known:
            truth.known, truth.owned = True, False
        truth.held, truth.since = True, self.now
        facts.totals["checkouts"] += 1
        facts.unfinished[id(truth)] = facts.unfinished.get(id(truth), 0) + 1
        self._look()

    def _finish(self, truth: Truth) -> None:
        facts = self.facts[truth.pool]
        facts.totals["checkins"] += facts.unfinished.pop(id(truth), 0)
        if truth.held:
            facts.holds += 1
            facts.held += self.now - truth.since
        truth.held = False

    @rule(pick=st.integers(0, 99))
    def checkin(self, pick: int) -> None:
        """With or without a checkout before it."""
        truth = self._pick(pick)
        if truth is not None:
            events = self._events(truth)
            events.checkin(truth.connection, truth.record)
            self._finish(truth)

    def _events(self, truth: Truth) -> Any:
        pool = self.facts[truth.pool].pool
        assert pool is not None
        return pool.events

    def _end(self, truth: Truth) -> None:
        self.connections.remove(truth)
        self._finish(truth)
        if truth.known and truth.owned:
            self.facts[truth.pool].totals["closes"] += 1

    @rule(pick=st.integers(0, 99), soft=st.booleans())
    def invalidate(self, pick: int, soft: bool) -> None:
        truth = self._pick(pick)
        if truth is None:
            return
        events = self._events(truth)
        (events.soft_invalidate if soft else events.invalidate)(truth.connection, truth.record, None)
        if not truth.known:  # the parent's: what happens to it here is the child's
            truth.known, truth.owned = True, False
            self._look()
        self.facts[truth.pool].totals["invalidations"] += 1
        if not soft:
            events.close(truth.connection, truth.record)
            events.checkin(None, truth.record)
            self._end(truth)

    @rule(pick=st.integers(0, 99), reconnect=st.booleans())
    def close(self, pick: int, reconnect: bool) -> None:
        """`reconnect`: the record goes on with another connection."""
        truth = self._pick(pick)
        if truth is None:
            return
        events = self._events(truth)
        events.close(truth.connection, truth.record)
        self._end(truth)
        if reconnect:
            successor = Truth(truth.pool)
            successor.record = truth.record
            assert truth.record is not None
            truth.record.info.clear()
            truth.connection = None
            self._connect(successor)

    @rule(pick=st.integers(0, 99))
    def record_dies(self, pick: int) -> None:
        """No event: dispose(close=False), a failing connect listener, a pool that is collected."""
        truth = self._pick(pick)
        if truth is not None:
            truth.record = truth.connection = None
            self._end(truth)

    @rule(pick=st.integers(0, 99), raced=st.booleans())
    def detach(self, pick: int, raced: bool) -> None:
        """`raced`: another thread reconnects the record before the event comes."""
        truth = self._pick(pick, held=True)
        if truth is None or len(self.connections) > 12:
            return
        record = truth.record
        assert record is not None
        truth.proxy = record.info.copy()
        if raced:
            record.info.clear()
            successor = Truth(truth.pool)
            successor.record = record
            self._connect(successor)
        self._events(truth).detach(truth.connection, record)
        truth.detached = truth.known
        truth.record = None
        self._look()

    @rule(pick=st.integers(0, 99), how=st.sampled_from(["close", "proxy first", "garbage"]))
    def detached_ends(self, pick: int, how: str) -> None:
        detached = [c for c in self.connections if c.detached]
        if not detached:
            return
        truth = detached[pick % len(detached)]
        pool = self.facts[truth.pool].pool
        if how == "close" and pool is not None:
            pool.events.close_detached(truth.connection)
        if how == "proxy first":
            truth.proxy = None
            self.check()
        truth.connection = truth.proxy = None
        self._end(truth)

    @rule(pick=st.integers(0, 99))
    def wait(self, pick: int) -> None:
        number = self._pool(pick)
        if number is not None:
            facts = self.facts[number]
            facts.waits[facts.account.wait_begins(self.now)] = self.now
            self._look()

    @rule(pick=st.integers(0, 99), timeout=st.booleans())
    def wait_ends(self, pick: int, timeout: bool) -> None:
        waiting = [facts for facts in self.facts if facts.waits]
        if waiting:
            facts = waiting[pick % len(waiting)]
            wait, since = facts.waits.popitem()
            facts.account.wait_ends(wait, self.now)
            facts.waited += 1
            facts.waiting += self.now - since
            if timeout:
                facts.account.timeouts += 1
                facts.totals["timeouts"] += 1

    @rule(pick=st.integers(0, 99))
    def connect_error(self, pick: int) -> None:
        number = self._pool(pick)
        if number is not None:
            self.facts[number].account.connect_errors += 1
            self.facts[number].totals["connect_errors"] += 1

    @rule(pick=st.integers(0, 99))
    def engine_dies(self, pick: int) -> None:
        """With all connections of its pool; detached ones live on, and waits do not end."""
        number = self._pool(pick)
        if number is None or len(self.facts) < 2:
            return
        for truth in [c for c in self.connections if c.pool == number and not c.detached]:
            truth.record = truth.connection = None
            self._end(truth)
        self.facts[number].pool = None

    @rule(seconds=st.sampled_from([2**-7, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        Ledgers.now += seconds

    @rule()
    def garbage(self) -> None:
        for facts in self.facts:
            facts.account.fold()

    @rule()
    @precondition(lambda self: self.instances < 4)
    def fork(self) -> None:
        """From here on this is the child."""
        self.ledger.forked(str(self.instances))
        self.instances += 1
        self.most, self.seen, self.times = [0, 0, 0], Totals(), Times()
        for facts in self.facts:
            facts.totals = dict.fromkeys(Totals._fields, 0)
            facts.unfinished, facts.waits, facts.most = {}, {}, [0, 0, 0]
            facts.holds = facts.waited = 0
            facts.held = facts.waiting = 0.0
        for truth in list(self.connections):
            truth.held = truth.known = False
            if truth.detached or self.facts[truth.pool].pool is None:
                self.connections.remove(truth)  # the parent keeps it
        self._look()

    def _look(self) -> None:
        """Update the model's peaks."""

        def highest_of(most: list[int], known: list[Truth], waits: int) -> None:
            present = [len(known), sum(c.held and not c.detached for c in known), waits]
            most[:] = map(max, most, present)

        known = [c for c in self.connections if c.known]
        highest_of(self.most, known, sum(len(facts.waits) for facts in self.facts))
        for number, facts in enumerate(self.facts):
            highest_of(facts.most, [c for c in known if c.pool == number], len(facts.waits))

    # -- the reporter

    @rule(
        fate=st.sampled_from(["acknowledged", "lost", "not acknowledged", "applied twice"]),
        alive=st.booleans(),
    )
    def report(self, fate: str, alive: bool) -> None:
        report = self.ledger.take(self.now, alive=alive)
        if report is None:
            return
        if report.full:
            report = _with_process(report)
        self._check_report(report)
        if fate == "lost":
            self.ledger.restart()
            return
        wanted = self._apply(report)
        if fate == "applied twice":
            assert not self._apply(report)
        if fate == "not acknowledged" or wanted:
            self.ledger.restart()
            return
        self.ledger.acknowledged(report.sequence)

    def _apply(self, report: Report) -> bool:
        self.batches += 1
        outcome = self.state.apply(Batch("node1", "boot", self.batches, reports=(report,)))
        ((_, _, wanted),) = outcome.answers
        process = self.state.processes[self.ledger.instance]
        assert all(now >= then for now, then in zip(process.totals, self.seen, strict=True))
        self.seen = process.totals
        times = added_times([unpacked(pool.times) for pool in process.pools.values()])
        for now, then in zip(times, self.times, strict=True):
            assert all(now.get(number, 0) >= count for number, count in then.items())
        self.times = times
        return wanted

    def _check_report(self, report: Report) -> None:
        for pool in report.pools:
            assert pool.gauges.connections <= pool.peaks.connections <= report.peaks.connections
            assert pool.gauges.checked_out <= pool.peaks.checked_out <= report.peaks.checked_out
            assert pool.gauges.waiting <= pool.peaks.waiting <= report.peaks.waiting
            assert pool.gauges.idle >= 0

    @rule()
    def quiet(self) -> None:
        """Once reports get through, the node has the truth, whatever was lost before."""
        for _ in range(3):
            Ledgers.now += 1.0
            self.report("acknowledged", alive=True)
        self.check()
        for facts in self.facts:
            facts.totals |= {"hold_ms": int(facts.held * 1000), "wait_ms": int(facts.waiting * 1000)}
        process = self.state.processes[self.ledger.instance]
        known = [c for c in self.connections if c.known]
        expected = Totals(*(sum(f.totals[field] for f in self.facts) for field in Totals._fields))
        assert process.totals == expected
        assert sum(self.times.holds.values()) == sum(facts.holds for facts in self.facts)
        assert sum(self.times.waits.values()) == sum(facts.waited for facts in self.facts)
        gauges = process.gauges
        assert gauges.pools == sum(facts.pool is not None for facts in self.facts)
        assert gauges[3:5] == (len(known), sum(c.held and not c.detached for c in known))
        assert gauges.detached == sum(c.detached for c in known)
        assert gauges.waiting == sum(len(facts.waits) for facts in self.facts)
        assert [process.max_connections, process.max_checked_out, process.max_waiting] == self.most
        self._check_one_by_one(known)

    def _check_one_by_one(self, known: list[Truth]) -> None:
        process = self.state.processes[self.ledger.instance]
        assert process.left_out == 0
        assert len(process.connections) == len(known)
        states = sorted(
            "detached" if c.detached else "checked_out" if c.held else "idle" for c in known
        )  # fmt: skip
        assert sorted(c.state for c in process.connections.values()) == states
        for facts in self.facts:
            record = process.pools.get(facts.account.number)
            if facts.pool is not None:
                assert record is not None
                assert record.totals == Totals(**facts.totals)
                assert sum(unpacked(record.times).holds.values()) == facts.holds
                assert sum(unpacked(record.times).waits.values()) == facts.waited
                assert [record.max_connections, record.max_checked_out, record.max_waiting] == facts.most
        self._check_databases()

    def _check_databases(self) -> None:
        for facts in self.facts:
            group = self.state.groups.get(database_key(facts.account.info))
            if group is None:
                assert facts.most == [0, 0, 0]
                continue
            assert group.max_connections >= facts.most[0]
            assert group.max_checked_out >= facts.most[1]
            assert group.max_waiting >= facts.most[2]

    @invariant()
    def time_goes_on(self) -> None:
        """So that no duration is 0."""
        Ledgers.now += 2**-7

    @invariant()
    def check(self) -> None:
        """The live counts have not drifted from the sums."""
        known = [c for c in self.connections if c.known]
        live = self.ledger.process.live
        assert (live.open, live.checked_out, live.waiting) == (
            len(known),
            sum(c.held and not c.detached for c in known),
            sum(len(facts.waits) for facts in self.facts),
        )

    def teardown(self) -> None:
        self.quiet()


#: More than these are not reported one by one.
FEW_POOLS, FEW_CONNECTIONS = 2, 4


class CrowdedLedgers(Ledgers):
    """The same with more pools and connections than are reported one by one."""

    settings = LedgerSettings(pools_reported=FEW_POOLS, connections_reported=FEW_CONNECTIONS, few_pools=0)

    def _check_one_by_one(self, known: list[Truth]) -> None:
        """As many as fit have a correct row each; the others are counted, and right in the sums."""
        process = self.state.processes[self.ledger.instance]
        open_pools = [facts for facts in self.facts if facts.account.number in self.ledger.pools]
        rows = [facts for facts in open_pools if facts.account.number in process.pools]
        assert len(rows) == min(len(open_pools), FEW_POOLS)
        assert len(process.connections) == min(len(known), FEW_CONNECTIONS)
        without = [facts for facts in open_pools if facts not in rows and not facts.account.retired]
        left_out = len(without) + len(known) - len(process.connections)
        assert process.left_out == left_out
        for facts in rows:
            record = process.pools[facts.account.number]
            assert not record.left_out
            assert record.totals == Totals(**facts.totals)
            assert sum(unpacked(record.times).holds.values()) == facts.holds
            assert sum(unpacked(record.times).waits.values()) == facts.waited
        for connection in process.connections.values():
            assert connection.pool in process.pools
        for key in {database_key(facts.account.info) for facts in self.facts}:
            if key in self.state.groups:
                mine = [facts for facts in self.facts if database_key(facts.account.info) == key]
                happened = [pool.totals for pool in process.pools.values() if pool.database == key]
                for number, field in enumerate(Totals._fields[:7]):
                    assert sum(t[number] for t in happened) == sum(facts.totals[field] for facts in mine)
        self._check_databases()


def _with_process(report: Report) -> Report:
    return structs.replace(report, process=PROCESS)


@pytest.mark.slow
@pytest.mark.parametrize("world", [Ledgers, CrowdedLedgers])
def test_any_sequence_of_facts(world: type[Ledgers]) -> None:
    """Random events, reports that are lost or repeated, and forks, against the model."""
    run_state_machine_as_test(
        world,
        settings=settings(
            max_examples=150,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

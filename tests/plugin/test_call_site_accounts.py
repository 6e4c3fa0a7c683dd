"""Which checkouts have their call site noted, and what is counted by call site."""

from __future__ import annotations

import math
import random
import threading
import time
import types
from types import CodeType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.pool import QueuePool

from connmon.plugin import call_site_accounts, holder
from connmon.plugin.call_site_accounts import (
    RECENT_HOLDS,
    CallSiteAccount,
    CallSiteRoom,
    CallSites,
    CallSiteSettings,
    EndedHold,
    HoldFigures,
    Sampling,
    SamplingSettings,
)
from connmon.plugin.call_site_reports import CallSiteReportSettings
from connmon.plugin.engine import describe
from connmon.plugin.holder_checks import HolderCheckSettings
from connmon.plugin.ledger import Ledger, LedgerSettings
from connmon.plugin.pool import instrument
from connmon.protocol import histogram
from connmon.protocol.reports import SITES_REPORTED, Report, SiteReport
from connmon.protocol.values import OTHER_CALL_SITES
from tests.support.fake_dbapi import Database
from tests.support.waiting import wait_for


def code(name: str) -> CodeType:
    """Return a code object of its own."""
    return compile("0", f"/app/{name}.py", "exec")


def figures(account: CallSiteAccount) -> HoldFigures:
    """Return what an account has counted, with the holds that have just ended."""
    account.count()
    return account.figures()


# --- Which are noted --------------------------------------------------------------------------


class Traffic:
    """Checkouts of some connections, as the pool offers them to be noted."""

    def __init__(self, connections: int, settings: SamplingSettings = SamplingSettings()) -> None:  # noqa: B008
        self.sampling = Sampling(settings)
        self.counts = [0] * connections
        self.note_at = [0] * connections

    def checkout(self, connection: int, now: float) -> bool:
        self.counts[connection] += 1
        if self.counts[connection] < self.note_at[connection]:
            return False
        noted = self.sampling.due(now)
        self.note_at[connection] = self.counts[connection] + self.sampling.pause()
        return noted


@given(st.lists(st.floats(0.0101, 3.0), max_size=300), st.integers(1, 5))
def test_each_is_noted_while_there_are_few(gaps: list[float], connections: int) -> None:
    """Below 100 a second each checkout is noted, however they are spread."""
    traffic, now = Traffic(connections), 1000.0
    for number, gap in enumerate(gaps):
        now += gap
        assert traffic.checkout(number % connections, now)


def test_a_burst_of_a_hundred_is_noted() -> None:
    """A burst as large as a second's allowance is noted completely."""
    traffic = Traffic(10)
    assert all(traffic.checkout(number % 10, 1000.0) for number in range(100))
    assert not traffic.checkout(0, 1000.0)


@pytest.mark.parametrize("per_second", [200, 1_000, 20_000])
def test_no_more_than_a_hundred_a_second_are_noted(per_second: int) -> None:
    """Above that rate at most 100 a second are noted, and not much fewer than half of that."""
    traffic, seconds = Traffic(5), 20
    noted = sum(
        traffic.checkout(number % 5, 1000.0 + number / per_second) for number in range(per_second * seconds)
    )
    assert 40 * seconds <= noted <= 100 * (seconds + 1)


def test_the_sample_is_fair() -> None:
    """Call sites have the same shares in the sample as in the checkouts, though one comes in bursts and
    another as regularly as a clock.
    """
    traffic, rng = Traffic(8), random.Random(7)
    arrivals = [(0.001 * number, "clock") for number in range(30_000)]
    arrivals += [(burst + 0.00001 * number, "burst") for burst in range(30) for number in range(1_000)]
    arrivals += [(30 * rng.random(), "random") for _ in range(30_000)]
    noted = {"clock": 0, "burst": 0, "random": 0}
    for number, (at, line) in enumerate(sorted(arrivals)):
        noted[line] += traffic.checkout(number % 8, 1000.0 + at)
    total = sum(noted.values())
    assert total > 1_000
    assert noted["clock"] / total == pytest.approx(1 / 3, abs=0.08)
    assert noted["random"] / total == pytest.approx(1 / 3, abs=0.08)


def test_each_is_noted_again_once_there_are_few() -> None:
    """After a rush the next report ends the sampling."""
    traffic = Traffic(1)
    for number in range(50_000):
        traffic.checkout(0, 1000.0 + number / 10_000)
    assert traffic.sampling.mean > 1
    assert not traffic.sampling.relax(1006.0, 5_000.0)
    assert traffic.sampling.relax(1007.0, 50.0)
    assert traffic.sampling.pause() == 1


def test_more_is_noted_for_a_while() -> None:
    """After a look at a hold whose call site is not known, three times as many checkouts are noted."""

    def noted(curious: bool) -> int:
        sampling = Sampling(SamplingSettings(checkouts_per_second=100.0))
        for number in range(10_000):
            sampling.due(1000.0 + number / 1000)
        if curious:
            assert sampling.be_curious(1010.0)
            assert not sampling.be_curious(1010.0)
        return sum(sampling.due(1010.0 + number / 1000) for number in range(20_000))

    assert noted(curious=False) == pytest.approx(2_000, rel=0.05)
    assert noted(curious=True) == pytest.approx(6_000, rel=0.05)


def test_all() -> None:
    """With connmon_trace=all there is no limit, not even within one moment."""
    traffic = Traffic(3, SamplingSettings(checkouts_per_second=math.inf))
    assert all(traffic.checkout(number % 3, 1000.0) for number in range(10_000))


# --- What is counted by line ------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0.0, 100.0)), max_size=400), st.integers(0, 64))
def test_nothing_is_lost_where_call_sites_are_many(holds: list[tuple[int, float]], room: int) -> None:
    """Call sites beyond the limit are counted as one, and the sums are right."""
    shared = CallSiteRoom(CallSiteSettings(reported_per_process=room))
    lines = CallSites(shared)
    codes = [code(f"m{number}") for number in range(201)]
    for number, held in holds:
        lines.of(codes[number], 1).counts.holds.append(EndedHold(held))
    reported = lines.reported()
    assert len(reported) <= room
    assert shared.left == room - len(reported)
    counted = [figures(account) for account in lines.counting()]
    assert sum(usual.holds for usual in counted) == len(holds)
    total = sum(account.seconds for account in lines.counting())
    assert total == pytest.approx(math.fsum(held for _, held in holds))


def test_call_sites_that_are_kept_are_bounded() -> None:
    """A program that generates code does not take more memory for it."""
    settings = CallSiteSettings(kept_per_pool=1_000, reported_per_process=2)
    lines = CallSites(CallSiteRoom(settings))
    for number in range(3_000):
        lines.of(code("made"), number).counts.holds.append(EndedHold(1.0))
    assert len(lines.accounts) == settings.kept_per_pool
    assert len(lines.reported()) == 2


def test_what_a_pool_leaves_goes_to_its_heirs() -> None:
    """A pool that is gone hands over the counts of its call sites, and frees their room."""
    room = CallSiteRoom(CallSiteSettings(reported_per_process=2))
    gone, heirs = CallSites(room), CallSites(room)
    here = code("here")
    gone.of(here, 1).counts.holds += [EndedHold(1.0), EndedHold(3.0)]
    heirs.of(here, 1).counts.holds.append(EndedHold(5.0))
    gone.hand_over(heirs)
    assert gone.accounts == {}
    assert room.left == 1
    (account,) = heirs.reported()
    assert figures(account)[:2] == (3, 9_000)


def test_what_is_usual() -> None:
    """It is the 95th percentile of the latest holds; old ones do not count."""
    account = CallSiteAccount(code("x"), 1)
    assert figures(account).usual is None
    account.holds += [EndedHold(0.01)] * 100
    assert figures(account).usual == pytest.approx(0.01, rel=histogram.ERROR_FRACTION)
    for _ in range(3):
        account.holds += [EndedHold(2.0)] * RECENT_HOLDS
        account.count()
    assert figures(account).usual == pytest.approx(2.0, rel=histogram.ERROR_FRACTION)


def test_the_share_is_that_of_all_checkouts() -> None:
    """It is 1 only where every checkout was noted; otherwise it stays that of a sample."""
    lines = CallSites(CallSiteRoom())
    lines.noted = 10
    assert lines.share(10) == 1.0
    assert lines.share(11) == 0.9
    assert lines.share(1_000) == 0.01
    lines.noted = 9_999
    assert lines.share(10_000) == 0.99


# --- In reports -------------------------------------------------------------------------------


DEFAULTS = LedgerSettings()


class Program:
    """An engine whose pool is accounted for, and its reports."""

    def __init__(
        self,
        trace: str = "auto",
        size: int = 5,
        settings: LedgerSettings = DEFAULTS,
    ) -> None:
        self.database = Database()
        self.engine = self.database.engine(QueuePool, pool_size=size, max_overflow=0, pool_timeout=10)
        self.ledger = Ledger("i", threading.Lock, time.monotonic, holder, settings)
        self.ledger.process.wake = lambda: None
        tracing = holder.Tracing(trace, 30.0)  # type: ignore[arg-type]
        self.account = instrument(self.engine.pool, self.ledger, describe(self.engine), lambda _: 7, tracing)

    def take(self, later: float = 0.0) -> Report:
        report = self.ledger.take(time.monotonic() + later, alive=True)
        assert report is not None
        self.ledger.acknowledged(report.sequence)
        return report

    def first_line(self) -> object:
        return self.engine.raw_connection()

    def second_line(self) -> object:
        return self.engine.raw_connection()


def by_function(report: Report) -> dict[str, SiteReport]:
    return {site.call_site.rpartition(" ")[2]: site for site in report.sites}


def test_few_call_sites_are_reported_at_once() -> None:
    """Where no more call sites change than the settings say, each report has them."""
    program = Program(settings=LedgerSettings(call_site_reports=CallSiteReportSettings(few=1)))
    program.first_line().close()  # type: ignore[attr-defined]
    program.second_line().close()  # type: ignore[attr-defined]
    assert [site.holds for site in program.take().sites] == [1, 1]
    program.first_line().close()  # type: ignore[attr-defined]
    assert [site.holds for site in program.take(0.1).sites] == [2]
    program.first_line().close()  # type: ignore[attr-defined]
    program.second_line().close()  # type: ignore[attr-defined]
    assert [site.holds for site in program.take(0.2).sites] == [3]  # one more would be two
    assert [site.holds for site in program.take(6.0).sites] == [2]


def test_who_holds_and_how_often() -> None:
    """A report has each call site with its present and its ended holds."""
    program = Program(settings=LedgerSettings(call_site_reports=CallSiteReportSettings(few=0)))
    kept = [program.first_line(), program.first_line(), program.second_line()]
    for _ in range(3):
        program.second_line().close()  # type: ignore[attr-defined]
    found = by_function(program.take())
    assert (found["first_line"].held, found["first_line"].holds) == (2, 0)
    assert (found["second_line"].held, found["second_line"].holds) == (1, 3)
    assert found["first_line"].usual is None
    assert found["second_line"].usual is not None
    assert found["first_line"].longest is not None
    assert {site.share for site in found.values()} == {1.0}
    assert program.take(1.0).sites == ()  # too soon
    assert [site.holds for site in program.take(6.0).sites] == [0, 3]  # both have held on
    kept.pop(0).close()  # type: ignore[attr-defined]
    assert program.take(7.0).sites == ()
    assert [site.holds for site in program.take(12.0).sites] == [1, 3]
    kept.pop(0).close()  # type: ignore[attr-defined]
    program.ledger.end()
    assert [site.holds for site in program.take(13.0).sites] == [2, 4]  # the last report has all
    program.ledger.restart()
    assert len(program.take().sites) == 2  # a full one has all


def test_who_waits() -> None:
    """The next report has how many wait at each call site, and the whereabouts of those they wait for."""
    program = Program(size=1)
    kept = program.first_line()
    waiter = threading.Thread(target=lambda: program.second_line().close())  # type: ignore[attr-defined]
    waiter.start()
    wait_for(lambda: program.account.waits, what="it to wait")
    report = program.take()
    kept.close()  # type: ignore[attr-defined]
    waiter.join(10)
    found = by_function(report)
    assert (found["first_line"].waiting, found["second_line"].waiting) == (0, 1)
    (connection,) = report.connections
    assert connection.holder_in == "elsewhere"  # the function that took it has ended
    assert connection.stack
    assert by_function(program.take())["second_line"].waiting == 0


def test_who_holds_one_and_waits_for_another() -> None:
    """Such a holder is shown as waiting; not where the function that took the connection has returned."""
    program = Program(size=2)

    def nested() -> None:
        first = program.engine.raw_connection()
        program.engine.raw_connection().close()
        first.close()

    left_behind = program.first_line()
    waiter = threading.Thread(target=nested)
    waiter.start()
    wait_for(lambda: program.account.waits, what="it to wait")
    wait_for(lambda: "waiting" in [each.holder_in for each in program.take().connections], what="the place")
    program.ledger.restart()
    report = program.take()
    left_behind.close()  # type: ignore[attr-defined]
    waiter.join(10)
    taken = {str(each.call_site).rpartition(" ")[2]: each.holder_in for each in report.connections}
    assert taken == {"first_line": "elsewhere", "nested": "waiting"}


def test_those_who_hold_what_others_wait_for() -> None:
    """At most 20 are checked for each report, with stacks of the longest holds among them."""
    program = Program(size=40)
    kept = [program.first_line() for _ in range(40)]
    waiter = threading.Thread(target=lambda: program.second_line().close())  # type: ignore[attr-defined]
    waiter.start()
    wait_for(lambda: program.account.waits, what="it to wait")
    report = program.take()
    kept.pop().close()  # type: ignore[attr-defined]
    waiter.join(10)
    oldest = sorted(report.connections, key=lambda connection: -(connection.held or 0.0))
    assert (
        sum(connection.holder_in is not None for connection in report.connections)
        == HolderCheckSettings().holders
    )
    assert [bool(connection.stack) for connection in oldest] == [True] * 3 + [False] * 37
    assert all(connection.call_site for connection in report.connections)


def test_call_sites_of_a_pool_that_is_gone() -> None:
    """The counts of a dropped engine's call sites stay in the reports."""
    program = Program()
    program.first_line().close()  # type: ignore[attr-defined]
    assert by_function(program.take())["first_line"].holds == 1
    del program.engine
    program.account.retired = True
    for entry in program.account.entries.values():
        entry.end()
    report = program.take(6.0)
    assert report.closed_pools
    (site,) = report.sites
    assert (site.holds, site.pool in report.closed_pools) == (1, False)


def test_call_sites_beyond_those_that_are_reported() -> None:
    """All call sites beyond 64 of a process are one, of no particular pool; the sums are complete."""
    program = Program(size=200)
    names: dict[str, Any] = {}
    source = "\n".join(
        f"def line_{number}(engine):\n    return engine.raw_connection()" for number in range(80)
    )
    exec(compile(source, "/app/shop.py", "exec"), names)
    kept = [names[f"line_{number}"](program.engine) for number in range(80)]
    report = program.take()
    assert len(report.sites) == SITES_REPORTED + 1
    assert sum(site.held for site in report.sites) == 80
    (other,) = [site for site in report.sites if site.call_site == OTHER_CALL_SITES]
    assert (other.pool, other.held) == (0, 16)
    for connection in kept:
        connection.close()
    assert sum(site.holds for site in program.take(6.0).sites) == 80


def test_off() -> None:
    """With connmon_trace=off there is no call site."""
    program = Program("off")
    kept = program.first_line()
    report = program.take()
    assert report.sites == ()
    assert report.connections[0].call_site is None
    del kept


def test_a_thread_that_has_ended_is_not_the_one_that_has_its_number_now() -> None:
    """Thread idents are used again; the holder is the thread that took the connection."""
    program = Program(size=10)
    program.account.long_hold_seconds = 0.0
    kept: list[object] = []
    for _ in range(5):
        thread = threading.Thread(target=lambda: kept.append(program.first_line()))
        thread.start()
        thread.join(10)
    stays = threading.Event()
    others = [threading.Thread(target=stays.wait, args=(10,)) for _ in range(5)]
    for thread in others:
        thread.start()
    report = program.take()
    stays.set()
    for thread in others:
        thread.join(10)
    assert {connection.holder_in for connection in report.connections} == {"ended"}
    assert all(str(connection.holder).endswith(" (ended)") for connection in report.connections)


def test_a_thread_that_works_with_another_connection() -> None:
    """Of a thread's connections the driver works with the one that it took last."""
    program = Program()
    program.account.long_hold_seconds = 0.0
    first = program.first_line()
    second = program.second_line()
    looked: list[bool] = []

    class Watched:
        name = staticmethod(holder.name)
        frame_text = staticmethod(holder.frame_text)
        in_driver = staticmethod(holder.in_driver)
        look = staticmethod(holder.look)
        application = staticmethod(holder.application)
        stack_texts = staticmethod(holder.stack_texts)

        @staticmethod
        def whereabouts(holding: object, code: CodeType | None, mine: bool) -> call_site_accounts.Whereabouts:
            looked.append(mine)
            return holder.whereabouts(holding, code, mine)

    program.ledger.holder_checks.holders = Watched()
    program.take()
    assert looked == [False, True]
    del first, second


def test_a_connection_that_another_thread_works_with() -> None:
    """A thread in the driver that holds nothing works with the newest idle-held connection."""
    program = Program()
    program.account.long_hold_seconds = 0.0
    kept: list[Any] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: kept.append(program.first_line()))
        thread.start()
        thread.join(10)
    answer = threading.Event()
    driver = types.SimpleNamespace(commit=answer.wait)
    worker = threading.Thread(target=program.engine.dialect.do_commit, args=(driver,))
    worker.start()
    wait_for(holder.in_driver, what="the driver to work")
    report = program.take()
    answer.set()
    worker.join(10)
    assert [connection.holder_in for connection in report.connections] == ["ended", "database"]


def test_a_connection_that_a_loop_has_left_behind() -> None:
    """A connection is left behind once the thread has taken another at the same call site."""
    program = Program()
    program.account.long_hold_seconds = 0.0
    places: list[list[str | None]] = []
    kept = []
    for _ in range(2):
        kept.append(program.engine.raw_connection())
        places.append([connection.holder_in for connection in program.take(6.0 * len(kept)).connections])
    kept.pop().close()
    program.ledger.restart()
    places.append([connection.holder_in for connection in program.take(20.0).connections])
    assert places == [["application"], ["elsewhere", "application"], ["elsewhere", None]]
    kept.pop().close()


def test_other_is_no_file() -> None:
    """The name of all other call sites cannot be one of a call site."""
    assert ":" not in OTHER_CALL_SITES


def test_waits_leave_room_for_holds() -> None:
    """In a full pool every checkout waits; the noted waits do not take the room of noted checkouts."""
    sampling = Sampling()
    noted = 0
    for number in range(3_000):
        now = 1.0 + number / 300.0
        sampling.wait_due(now)
        noted += sampling.due(now)
    assert noted >= 1_000
    assert sum(sampling.wait_due(11.0 + number / 300.0) for number in range(300)) <= 210

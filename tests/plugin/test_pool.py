"""Pool listeners, waits and timeouts: after every step the account is what the driver knows.

Real engines and pools over a driver that only counts; see tests/support/fake_dbapi.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, create_engine, event, exc, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.util import await_only

from connmon.plugin import pool as plugin_pool
from connmon.plugin import pool_account as plugin_account
from connmon.plugin import queuepool
from connmon.plugin.engine import describe
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool import instrument
from connmon.plugin.pool_account import KEY, UNCOUNTED, PoolAccount
from connmon.protocol import histogram
from connmon.protocol.reports import PoolInfo
from connmon.protocol.values import Gauges, Totals
from tests.support.fake_dbapi import Database, Disconnected
from tests.support.waiting import wait_for

CLASSES = [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool]
every_class = pytest.mark.parametrize("poolclass", CLASSES)


def make_ledger() -> Ledger:
    return Ledger("i", threading.Lock, time.monotonic)


class Watched:
    """An engine that is accounted for, and the truth about it."""

    def __init__(self, poolclass: type[Pool] = QueuePool, ledger: Ledger | None = None, **arguments: Any):
        self.database = Database()
        creator = arguments.pop("creator", "connect")
        self.engine = self.database.engine(poolclass, creator=getattr(self.database, creator), **arguments)
        clock: list[Callable[[], float]] = [time.monotonic]
        self.clock = clock
        self.ledger = ledger or Ledger("i", threading.Lock, lambda: clock[0]())
        self.account = instrument(self.engine.pool, self.ledger, describe(self.engine), lambda _: 7)

    def connect(self) -> Any:
        return self.engine.raw_connection()

    def check(self, held: int = 0, detached: int = 0, waiting: int = 0, *, adopted: int = 0) -> Totals:
        """Assert that the account has the truth; return the totals.

        `adopted`: how many of the open connections are older than the account.
        """
        account, database = self.account, self.database
        account.fold()
        gauges, totals, _ = account.count()
        assert gauges.connections == len(database.open)
        assert (gauges.checked_out, gauges.detached, gauges.waiting) == (held, detached, waiting)
        assert totals.connects - totals.closes + adopted == len(database.open)
        assert totals.checkouts - totals.checkins == held + detached
        if not adopted:
            assert (totals.connects, totals.closes) == (database.connects, database.closes)
            assert account.live.peak_open <= database.most
        self.check_live(gauges)
        times = account.times()
        assert sum(times.holds.values()) == totals.checkins
        assert sum(times.connects.values()) == totals.connects
        return totals

    def check_live(self, gauges: Gauges) -> None:
        """The live counts have not drifted from the sums."""
        live = self.account.live
        assert (live.open, live.checked_out, live.waiting) == (
            gauges.connections, gauges.checked_out, gauges.waiting,
        )  # fmt: skip
        if len(self.ledger.pools) == 1:
            process = self.ledger.process.live
            assert (process.open, process.checked_out, process.waiting) == (
                live.open, live.checked_out, live.waiting,
            )  # fmt: skip


# --- The life of a connection ---------------------------------------------------------------


@every_class
def test_checkout_and_checkin(poolclass: type[Pool]) -> None:
    """A connection is counted when it is made, is held during its hold, and idle or closed after it."""
    watched = Watched(poolclass)
    watched.check()
    connection = watched.connect()
    watched.check(held=1)
    connection.close()
    totals = watched.check()
    assert (totals.connects, totals.checkouts, totals.checkins) == (1, 1, 1)
    for _ in range(3):
        watched.connect().close()
    assert watched.check().checkouts == 4
    watched.engine.dispose()
    watched.check()
    assert not watched.database.open


@pytest.mark.parametrize("creator", [True, False], ids=["creator", "SQLAlchemy's"])
def test_the_creator_without_an_argument(creator: bool) -> None:
    """A pool's creator may be called like SQLAlchemy's own; what it makes then is in no pool."""
    engine = Database().engine(QueuePool) if creator else create_engine("sqlite://")
    account = instrument(engine.pool, make_ledger(), describe(engine), lambda _: 7)
    creates: Any = engine.pool._creator
    for connection in (creates(), creates(None)):
        connection.close()
    assert account.count()[1] == Totals()


def test_overflow() -> None:
    """Connections beyond the pool's size are closed when they are returned."""
    watched = Watched(pool_size=2, max_overflow=3)
    connections = [watched.connect() for _ in range(5)]
    watched.check(held=5)
    assert watched.account.count()[0].overflow == 3
    for left in range(4, -1, -1):
        connections.pop().close()
        watched.check(held=left)
    assert watched.account.count()[0].connections == 2


@every_class
@pytest.mark.parametrize("close", [True, False])
def test_dispose(poolclass: type[Pool], close: bool) -> None:
    """dispose() with an idle and a held connection; the held one lives until it is returned."""
    watched = Watched(poolclass)
    held = watched.connect()
    if poolclass is QueuePool:
        watched.connect().close()
    watched.engine.dispose(close=close)
    gc.collect()
    open_now = len(watched.database.open)
    watched.account.fold()
    gauges = watched.account.count()[0]
    assert gauges.connections == open_now
    with contextlib.suppress(Exception):  # StaticPool and AssertionPool have closed it
        held.close()
    del held
    gc.collect()
    watched.check()
    watched.connect().close()  # through the pool that was made for the old one
    watched.check()
    watched.engine.dispose()
    watched.check()
    assert not watched.account.retired


@every_class
def test_recreate(poolclass: type[Pool]) -> None:
    """A pool made by recreate() goes on in the same account, is timed, and isn't instrumented again."""
    watched = Watched(poolclass)
    first = watched.engine.pool
    second = first.recreate()
    assert type(second) is type(first)
    assert instrument(second, watched.ledger, watched.account.info, lambda _: None) is watched.account
    one, two = first.connect(), second.connect()
    watched.check(held=2)
    one.close()
    two.close()
    watched.check()
    assert watched.account.count()[1].checkouts == 2
    first.dispose()
    second.dispose()
    watched.check()


@every_class
def test_instrumented_twice(poolclass: type[Pool]) -> None:
    """A second call returns the same account, and nothing is counted twice."""
    watched = Watched(poolclass)
    other = make_ledger()
    assert instrument(watched.engine.pool, other, watched.account.info, lambda _: None) is watched.account
    assert not other.pools
    watched.connect().close()
    assert watched.check().checkouts == 1


@every_class
@pytest.mark.parametrize("how", ["pre_ping", "recycle", "pool_invalidated"])
def test_reconnect(poolclass: type[Pool], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pool replaces a connection at checkout, one has ended and another begun."""
    options: dict[str, dict[str, Any]] = {
        "pre_ping": {"pool_pre_ping": True},
        "recycle": {"pool_recycle": 100},
    }
    arguments = options.get(how, {})
    watched = Watched(poolclass, **arguments)
    watched.connect().close()
    watched.check()
    if how == "pre_ping":
        watched.database.dead |= watched.database.open
    elif how == "recycle":
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 1000)
    else:
        watched.engine.pool._invalidate_time = time.time()
    connection = watched.connect()
    watched.check(held=1)
    connection.close()
    assert watched.check().connects == 2
    if how == "pre_ping" and poolclass is not NullPool:
        assert watched.account.count()[1].invalidations == 1


@every_class
@pytest.mark.parametrize("soft", [False, True])
def test_invalidate(poolclass: type[Pool], soft: bool) -> None:
    """A hard invalidation ends the connection at once, a soft one at its next use."""
    watched = Watched(poolclass)
    connection = watched.connect()
    connection.invalidate(soft=soft)
    watched.check(held=int(soft))
    if soft:
        connection.close()
    watched.check()
    connection = watched.connect()
    totals = watched.check(held=1)
    assert (totals.invalidations, totals.connects) == (1, 2)
    connection.close()
    watched.check()


@every_class
@pytest.mark.parametrize("creator", ["connect", "watchless"])
@pytest.mark.parametrize("end", ["close", "garbage", "invalidate", "outlives the pool"])
def test_detach(poolclass: type[Pool], creator: str, end: str) -> None:
    """A detached connection is open and held, outside of the pool, until it is closed or collected."""
    watched = Watched(poolclass, creator=creator)
    connection = watched.connect()
    connection.detach()
    watched.check(detached=1)
    if poolclass is QueuePool:
        others = [watched.connect() for _ in range(2)]
        watched.check(held=2, detached=1)
        for other in others:
            other.close()
        del others, other
        watched.check(detached=1)
    if end == "outlives the pool":
        watched.engine.dispose()
        watched.check(detached=1)
    if end == "invalidate":
        connection.invalidate()
    elif end == "close":
        connection.close()
    del connection
    gc.collect()
    watched.check()


def test_detached_keeps_the_driver_connection() -> None:
    """The driver's own connection decides, if it has weak references, not SQLAlchemy's proxy of it."""
    watched = Watched()
    connection = watched.connect()
    connection.detach()
    driver = connection.driver_connection or connection.dbapi_connection
    del connection
    gc.collect()
    watched.check(detached=1)
    driver.close()
    del driver
    gc.collect()
    watched.check()


def test_reconnected_before_the_detach_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may reconnect the returned record before the event comes."""
    watched = Watched(pool_size=1, max_overflow=0)
    connection = watched.connect()
    taken = []
    detached = watched.engine.pool.dispatch.detach

    class Between:
        def __call__(self, *arguments: Any) -> None:
            taken.append(watched.connect())
            detached(*arguments)

        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr(watched.engine.pool.dispatch, "detach", Between(), raising=False)
    connection.detach()
    monkeypatch.undo()
    watched.check(held=1, detached=1)
    connection.close()
    watched.check(held=1)
    taken.pop().close()
    watched.check()


@every_class
def test_leaked(poolclass: type[Pool]) -> None:
    """A connection that its holder dropped is returned by the garbage collection."""
    watched = Watched(poolclass)
    loop: list[Any] = [watched.connect()]
    loop.append(loop)
    watched.check(held=1)
    del loop
    gc.collect()
    watched.check()


@every_class
def test_engine_dropped(poolclass: type[Pool]) -> None:
    """An engine that goes without dispose() takes its connections with it, and its pool's account."""
    watched = Watched(poolclass)
    connection = watched.connect()
    connection.close()
    del connection
    account, database, ledger = watched.account, watched.database, watched.ledger
    watched.check()
    del watched
    gc.collect()
    assert not database.open
    assert account.retired
    report = ledger.take(time.monotonic())
    assert report is not None
    assert [pool.gauges for pool in report.pools] == [Gauges()]
    assert report.pools[0].totals[:4] == (1, 1, 1, 1)
    assert report.peaks.connections == report.pools[0].peaks.connections == 1
    assert not ledger.pools


@every_class
def test_connection_outlives_the_engine(poolclass: type[Pool]) -> None:
    """A held connection keeps its pool alive."""
    watched = Watched(poolclass)
    connection = watched.connect()
    del watched.engine
    gc.collect()
    assert not watched.account.retired
    watched.check(held=1)
    connection.close()
    del connection
    gc.collect()
    watched.check()
    assert watched.account.retired


def test_held_when_instrumented() -> None:
    """Connections that are older than the account are adopted at their next checkout, without a connect."""
    watched = Watched(pool_size=5)
    database = Database()
    engine = database.engine(QueuePool)
    held = engine.raw_connection()
    engine.raw_connection().close()
    watched.database, watched.engine = database, engine
    watched.ledger = make_ledger()
    watched.account = instrument(engine.pool, watched.ledger, describe(engine), lambda _: None)
    held.close()
    assert watched.account.count()[0].connections == 0
    both = [watched.connect(), watched.connect()]
    totals = watched.check(held=2, adopted=2)
    assert (totals.connects, totals.checkouts) == (0, 2)
    for connection in both:
        connection.close()
    watched.check(adopted=2)
    engine.dispose()
    watched.account.fold()
    assert watched.account.count()[0].connections == 0
    assert watched.account.count()[1][:2] == (0, 0)


def test_two_engines_one_ledger() -> None:
    """Each engine has its own account, and the process's peaks are of both together."""
    ledger = make_ledger()
    one, two = Watched(QueuePool, ledger), Watched(NullPool, ledger)
    held = [one.connect(), one.connect(), two.connect()]
    one.check(held=2)
    two.check(held=1)
    assert (ledger.process.live.open, ledger.process.live.peak_checked_out) == (3, 3)
    for connection in held:
        connection.close()
    one.check()
    two.check()
    report = ledger.take(time.monotonic())
    assert report is not None
    assert report.peaks[:3] == (3, 3, 0)
    assert sorted(pool.peaks.connections for pool in report.pools) == [1, 2]


def test_singleton_thread_pool_cleans_up() -> None:
    """With more threads than its size, this pool closes connections that are held."""
    watched = Watched(SingletonThreadPool, pool_size=2)
    turn, done = threading.Barrier(2), threading.Event()
    threads = []
    for _ in range(4):

        def use() -> None:
            connection = watched.connect()
            turn.wait(10)
            done.wait(10)
            with contextlib.suppress(Exception):  # the cleanup has closed it
                connection.close()

        threads.append(threading.Thread(target=use))
        threads[-1].start()
        turn.wait(10)
        turn.reset()
        watched.account.fold()
        assert watched.account.count()[0].connections == len(watched.database.open)
    done.set()
    for thread in threads:
        thread.join(10)
    del threads, thread
    gc.collect()
    watched.account.fold()
    watched.check()


# --- Failures -------------------------------------------------------------------------------


@every_class
def test_connect_errors(poolclass: type[Pool]) -> None:
    """A failing creator is counted; the application gets the error as before."""
    watched = Watched(poolclass)
    woken = []
    watched.ledger.process.wake = lambda: woken.append(1)
    watched.database.refuse = Disconnected("no")
    for _ in range(3):
        with pytest.raises(Disconnected):
            watched.engine.pool.connect()
    assert watched.check().connect_errors == 3
    assert woken, "a process that can only fail to connect has something to report as well"
    watched.database.refuse = None
    watched.connect().close()
    watched.check()


def test_reconnect_fails() -> None:
    """A record whose reconnect failed is returned without a connection."""
    watched = Watched(pool_pre_ping=True, pool_size=1, max_overflow=0)
    watched.connect().close()
    watched.database.dead |= watched.database.open
    watched.database.refuse = Disconnected("no")
    for failures in (1, 2):
        with pytest.raises(Disconnected):
            watched.engine.pool.connect()
        assert watched.check().connect_errors == failures
    watched.database.refuse = None
    connection = watched.connect()
    watched.check(held=1)
    connection.close()
    watched.check()


@every_class
@pytest.mark.parametrize("insert", [False, True])
def test_connect_listener_of_others_fails(poolclass: type[Pool], insert: bool) -> None:
    """A connection that a connect listener rejects is closed, or collected, and no longer counted."""
    watched = Watched(poolclass)
    fail = True

    def reject(_: Any, __: Any) -> None:
        if fail:
            raise Disconnected("not good enough")

    event.listen(watched.engine.pool, "connect", reject, insert=insert)
    with pytest.raises(Disconnected):
        watched.engine.pool.connect()
    gc.collect()
    watched.account.fold()
    gauges, totals, _ = watched.account.count()
    assert gauges.connections == len(watched.database.open)
    assert totals.connects == watched.database.connects  # also where its event never came to us
    watched.check_live(gauges)
    fail = False
    watched.connect().close()
    watched.account.fold()
    assert watched.account.count()[0].connections == len(watched.database.open)
    assert watched.account.count()[0].checked_out == 0


@every_class
def test_connect_listener_fails_on_reconnect(poolclass: type[Pool]) -> None:
    """The same, where the record had a connection before."""
    watched = Watched(poolclass)
    connection = watched.connect()
    connection.invalidate(soft=True)
    connection.close()
    fail = [True]

    def reject(_: Any, __: Any) -> None:
        if fail[0]:
            raise Disconnected("not good enough")

    event.listen(watched.engine.pool, "connect", reject)
    with pytest.raises(Disconnected):
        watched.engine.pool.connect()
    gc.collect()
    watched.check()
    fail[0] = False
    watched.connect().close()
    watched.check()


@every_class
@pytest.mark.parametrize("insert", [False, True])
def test_checkout_listener_of_others_raises(poolclass: type[Pool], insert: bool) -> None:
    """A checkout that another listener rejects does not last."""
    watched = Watched(poolclass)

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    event.listen(watched.engine.pool, "checkout", broken, insert=insert)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            watched.engine.pool.connect()
        gc.collect()
        watched.check()
    event.remove(watched.engine.pool, "checkout", broken)
    connection = watched.connect()
    watched.check(held=1)
    connection.close()
    watched.check()


@every_class
@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("error", [exc.DisconnectionError, exc.InvalidatePoolError])
def test_disconnection_error(poolclass: type[Pool], insert: bool, times: int, error: type[Exception]) -> None:
    """A listener may ask for another connection; SQLAlchemy tries twice, then gives up."""
    watched = Watched(poolclass)
    left = itertools.repeat(None, times)

    def check(*_: Any) -> None:
        if next(left, 0) is None:
            raise error

    event.listen(watched.engine.pool, "checkout", check, insert=insert)
    try:
        connection = watched.connect()
    except exc.InvalidRequestError:
        assert times == 5
        gc.collect()
        watched.check()
    else:
        watched.check(held=1)
        connection.close()
        watched.check()
        assert watched.account.count()[1].connects == 2


@every_class
def test_reset_fails(poolclass: type[Pool]) -> None:
    """A connection whose rollback fails at its return is closed."""
    watched = Watched(poolclass)
    connection = watched.connect()
    watched.database.dead |= watched.database.open
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        connection.close()
    finally:
        logging.getLogger("sqlalchemy.pool").setLevel(logging.NOTSET)
    watched.check()


class Broken:
    """Raises at any use."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"injected: {name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("injected: call")


INJECTED: list[tuple[str, Callable[[Watched, pytest.MonkeyPatch], None]]] = [
    ("monotonic", lambda w, patch: patch.setattr(plugin_pool, "monotonic", Broken())),
    ("clock", lambda w, patch: w.clock.__setitem__(0, Broken())),
    ("monotonic of queuepool", lambda w, patch: patch.setattr(queuepool, "monotonic", Broken())),
    ("current_holder", lambda w, patch: setattr(w.account, "current_holder", Broken())),
    ("Token", lambda w, patch: patch.setattr(plugin_account, "Token", Broken())),
    ("_detach", lambda w, patch: patch.setattr(plugin_pool, "_detach", Broken())),
    ("wake", lambda w, patch: setattr(w.ledger.process, "wake", Broken())),
    ("entries", lambda w, patch: setattr(w.account, "entries", Broken())),
    ("waits", lambda w, patch: setattr(w.account, "waits", Broken())),
    ("detached", lambda w, patch: setattr(w.account, "detached", Broken())),
    ("numbers", lambda w, patch: setattr(w.ledger.process, "numbers", Broken())),
    ("opened", lambda w, patch: patch.setattr(PoolAccount, "opened", Broken())),
    ("wait_begins", lambda w, patch: patch.setattr(PoolAccount, "wait_begins", Broken())),
    ("wait_ends", lambda w, patch: patch.setattr(PoolAccount, "wait_ends", Broken())),
    ("relieve", lambda w, patch: patch.setattr(PoolAccount, "relieve", Broken())),
    ("timeouts", lambda w, patch: setattr(w.account, "timeouts", None)),
    ("connect_errors", lambda w, patch: setattr(w.account, "connect_errors", None)),
]


@pytest.mark.parametrize(("name", "inject"), INJECTED, ids=[name for name, _ in INJECTED])
def test_a_failure_within_never_surfaces(
    name: str, inject: Callable[[Watched, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in the account, the application sees nothing, and no slot of the pool is lost."""
    watched = Watched(pool_size=1, max_overflow=0, pool_timeout=0.01)
    inject(watched, monkeypatch)
    pool: Any = watched.engine.pool
    for _ in range(3):
        connection = watched.connect()
        with pytest.raises(exc.TimeoutError):
            pool.connect()
        connection.close()
        connection = watched.connect()
        connection.invalidate()
        connection = watched.connect()
        connection.detach()
        connection.close()
        watched.database.refuse = Disconnected("no")
        with pytest.raises(Disconnected):
            pool.connect()
        watched.database.refuse = None
    assert (pool.checkedout(), pool.overflow()) == (0, 0)
    monkeypatch.undo()


def test_server_id_fails() -> None:
    """A session id that the driver cannot say stays unknown."""
    database = Database()
    engine = database.engine(QueuePool)
    account = instrument(engine.pool, make_ledger(), describe(engine), Broken())
    connection = engine.raw_connection()
    (entry,) = account.entries.values()
    assert entry.server_id is None
    connection.close()


def test_the_server_id_is_kept() -> None:
    """The driver is asked once, when the connection is made."""
    watched = Watched()
    watched.connect().close()
    (entry,) = watched.account.entries.values()
    assert entry.server_id == 7


# --- How long things take -------------------------------------------------------------------


class Clock:
    """The clock of all durations, moved by the test."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (plugin_pool, queuepool):
            patch.setattr(module, "monotonic", self)

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_how_long_things_take(poolclass: type[Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Connects last from the creator's call to its return, holds from the checkout to whatever ends them."""
    clock = Clock(monkeypatch)
    watched = Watched(poolclass, Ledger("i", threading.Lock, clock))

    def slow() -> None:
        clock.now += 0.3

    watched.database.on_connect = slow
    connects, holds = [], []
    for took, end in (
        (0.002, lambda c: c.close()),
        (0.03, lambda c: c.invalidate()),
        (7.0, lambda c: (c.detach(), c.close())),
        (0.5, lambda c: None),  # dropped: the garbage collection gives it back
    ):
        before = watched.database.connects
        connection = watched.connect()
        connects += [0.3] * (watched.database.connects - before)
        clock.now += took
        end(connection)
        del connection
        gc.collect()
        holds.append(took)
        assert watched.account.times() == ({}, histogram.of(holds), histogram.of(connects))
        _, totals, _ = watched.account.count()
        # Rounded down, and a sum of floats besides.
        assert 0 <= 1000 * sum(holds) - totals.hold_ms < 1.001
        assert 0 <= 1000 * sum(connects) - totals.connect_ms < 1.001
    watched.database.refuse = Disconnected("no")
    watched.engine.dispose()
    with pytest.raises(Disconnected):
        watched.connect()
    watched.account.fold()
    assert watched.account.times() == ({}, histogram.of(holds), histogram.of(connects))


def test_how_long_waits_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait counts when it ends, by a connection or a timeout; a connection that is there costs no wait."""
    clock = Clock(monkeypatch)
    ledger = Ledger("i", threading.Lock, clock)
    watched = Watched(ledger=ledger, pool_size=1, max_overflow=0, pool_timeout=30.0)
    held = watched.connect()
    assert watched.account.times().waits == {}
    thread = threading.Thread(target=lambda: watched.connect().close())
    thread.start()
    wait_for(lambda: watched.account.live.waiting == 1)
    clock.now += 2.0
    held.close()
    thread.join(10)
    pool: Any = watched.engine.pool
    held, pool._timeout = watched.connect(), 0.01
    with pytest.raises(exc.TimeoutError):
        watched.connect()
    held.close()
    assert watched.account.times().waits == histogram.of([2.0, 0.0])
    assert watched.account.count()[1].wait_ms == 2000


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_times_do_not_pile_up_without_reports(poolclass: type[Pool]) -> None:
    """Without reports only so many durations stay uncounted, and none is lost."""
    watched = Watched(poolclass)
    most = 0
    for _ in range(1000):
        watched.connect().close()
        entries = list(watched.account.entries.values())
        most = max([most, len(watched.account.connect_times), *[len(entry.holds) for entry in entries]])
    assert most <= UNCOUNTED + 2
    times = watched.account.times()
    assert sum(times.holds.values()) == 1000
    assert sum(times.connects.values()) == watched.database.connects


def test_holds_of_many_threads_are_counted_while_reports_are_taken() -> None:
    """Each hold is counted once, by the reporter or by an application's thread."""
    watched = Watched(pool_size=3, max_overflow=0)
    stop = threading.Event()

    def work() -> None:
        for _ in range(2000):
            watched.connect().close()

    def report() -> None:
        while not stop.is_set():
            watched.ledger.take(0.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    reporter = threading.Thread(target=report)
    reporter.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    reporter.join(10)
    _, totals, _ = watched.account.count()
    times = watched.account.times()
    assert totals.checkins == sum(times.holds.values()) == 8000


@pytest.mark.parametrize(
    ("size", "overflow"), [(0, 0), (0, 3), (0, -1), (1, 0), (1, -1), (2, 3), (2, -1), (5, 10), (3, 0)]
)
def test_overflow_and_capacity_are_those_of_the_pool(size: int, overflow: int) -> None:
    """Overflow is always QueuePool's own; at its capacity the pool hands out no more."""
    watched = Watched(pool_size=size, max_overflow=overflow, pool_timeout=0.001)
    pool: Any = watched.engine.pool

    def check() -> Gauges:
        gauges, _, _ = watched.account.count()
        assert gauges.overflow == max(0, pool.overflow())
        assert gauges.checked_out == pool.checkedout()
        assert gauges.idle == pool.checkedin()
        assert gauges.waiting == 0
        return gauges

    held: list[Any] = []
    refused = False
    while len(held) < 20 and not refused:
        try:
            held.append(watched.connect())
        except exc.TimeoutError:
            refused = True
        check()
    gauges = check()
    if size == 0 or overflow == -1:
        assert (refused, gauges.unbounded, gauges.capacity) == (False, 1, 0)
    else:
        assert (refused, gauges.unbounded, gauges.capacity) == (True, 0, len(held))
    while held:
        held.pop().close()
        check()


# --- Waits and timeouts ---------------------------------------------------------------------


def test_a_wait_that_ends_with_a_connection() -> None:
    """A thread waits from when the pool has nothing to hand out until it has a connection."""
    watched = Watched(pool_size=1, max_overflow=1, pool_timeout=30)
    held = [watched.connect(), watched.connect()]
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(watched.connect())) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: watched.account.live.waiting == 3, what="three waiting threads")
    watched.check(held=2, waiting=3)
    report = watched.ledger.take(time.monotonic())
    assert report is not None
    assert report.pools[0].wait is not None
    for waiting in (2, 1):
        held.pop().close()
        wait_for(lambda waiting=waiting: watched.account.live.waiting == waiting)  # type: ignore[misc]
    wait_for(lambda: len(got) == 2)
    watched.check(held=2, waiting=1)
    got.pop().close()
    for thread in threads:
        thread.join(10)
    assert watched.check(held=2).timeouts == 0
    for connection in got:
        connection.close()
    watched.check()
    assert watched.account.live.peak_waiting == 3
    assert watched.account.live.longest_wait > 0.0


def test_timeouts() -> None:
    """A wait that ends with a timeout is counted once, and no longer goes on."""
    watched = Watched(pool_size=1, max_overflow=0, pool_timeout=0.01)
    held = watched.connect()
    for timeouts in (1, 2, 3):
        with pytest.raises(exc.TimeoutError):
            watched.engine.pool.connect()
        assert watched.check(held=1).timeouts == timeouts
    held.close()
    watched.check()


def test_a_timeout_after_a_lost_race() -> None:
    """A thread that loses a free slot to another one waits as well: one wait, one timeout."""
    watched = Watched(pool_size=1, max_overflow=0, pool_timeout=0.01)
    pool: Any = watched.engine.pool
    real = type(pool)._inc_overflow
    seen: list[int] = []

    def lose(self: Any) -> bool:
        seen.append(watched.account.live.waiting)
        taken.append(real(self))
        return False

    taken: list[bool] = []
    pool._inc_overflow = lose.__get__(pool)
    with pytest.raises(exc.TimeoutError):
        pool.connect()
    assert taken == [True]
    del pool._inc_overflow
    pool._dec_overflow()
    totals = watched.check()
    assert totals.timeouts == 1
    assert watched.account.live.peak_waiting == 1


def test_a_wait_that_begins_again_is_one() -> None:
    """SQLAlchemy's _do_get calls itself where it was too slow; that is no second wait."""
    watched = Watched(pool_size=1, max_overflow=0, pool_timeout=0.01)
    pool: Any = watched.engine.pool
    held = watched.connect()
    again: list[int] = []

    def lose(self: Any) -> bool:
        # The connection that was waited for was closed and, just now, replaced by another thread.
        again.append(watched.account.live.waiting)
        pool._overflow += 1
        return False

    class Emptied:
        """A queue whose first wait ends with nothing, since an overflow slot has become free."""

        def __init__(self, queue: Any) -> None:
            self.queue = queue

        def get(self, *arguments: Any) -> Any:
            try:
                return self.queue.get(*arguments)
            finally:
                if not again:
                    pool._overflow -= 1

        def __getattr__(self, name: str) -> Any:
            return getattr(self.queue, name)

    queue, pool._pool = pool._pool, Emptied(pool._pool)
    pool._inc_overflow = lose.__get__(pool)
    with pytest.raises(exc.TimeoutError):
        pool.connect()
    del pool._inc_overflow
    pool._pool = queue
    assert again == [1]
    assert watched.check(held=1).timeouts == 1
    assert watched.account.live.peak_waiting == 1
    held.close()
    watched.check()


def test_racing_for_connections() -> None:
    """Many threads wait briefly: every timeout that one of them sees is counted, once."""
    watched = Watched(pool_size=1, max_overflow=1, pool_timeout=0.001)
    timeouts = []

    def use() -> None:
        for _ in range(100):
            try:
                connection = watched.connect()
                time.sleep(0.0005)
                connection.close()
            except exc.TimeoutError:
                timeouts.append(1)

    run_threads(use, 8)
    assert timeouts
    assert watched.check().timeouts == len(timeouts)


def test_the_class_is_timed_once() -> None:
    """An engine made with poolclass=type(another.pool), whose pool is timed already, waits once."""
    first = Watched()
    second = Watched(type(first.engine.pool), pool_size=1, max_overflow=0, pool_timeout=0.01)
    assert type(second.engine.pool) is type(first.engine.pool)
    assert type(first.engine.pool).__name__ == "QueuePool"
    assert isinstance(first.engine.pool, QueuePool)
    held = second.connect()
    with pytest.raises(exc.TimeoutError):
        second.engine.pool.connect()
    assert second.check(held=1).timeouts == 1
    assert second.account.live.peak_waiting == 1
    held.close()


def test_a_timed_class_without_an_account() -> None:
    """Such an engine works as usual where it is not accounted for."""
    watched = Watched()
    engine = Database().engine(type(watched.engine.pool), pool_size=1, max_overflow=0, pool_timeout=0.01)
    held = engine.raw_connection()
    with pytest.raises(exc.TimeoutError):
        engine.pool.connect()
    held.close()


def test_a_pool_that_cannot_be_timed(caplog: pytest.LogCaptureFixture) -> None:
    """Where SQLAlchemy's pool has changed, one line is logged, and everything but waits works."""

    class Odd(QueuePool):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._pool_, self._pool = self._pool, Missing(self._pool)  # type: ignore[assignment]

    class Missing:
        def __init__(self, queue: Any) -> None:
            self._queue = queue

        def __getattr__(self, name: str) -> Any:
            if name == "empty":
                raise AttributeError(name)
            return getattr(self._queue, name)

    watched = Watched(Odd)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    connection = watched.connect()
    watched.check(held=1)
    connection.close()
    watched.check()


# --- Threads and garbage --------------------------------------------------------------------


def run_threads(work: Callable[[], None], count: int) -> None:
    """Run `work` in so many threads; fail the test if one of them fails or does not end."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert not failures, failures[0]


class _Litter:
    """Garbage that does something with a connection when it is collected, in any thread, at any place.

    It does not own the connection, else the collector would finalize both.
    """

    connections: ClassVar[dict[int, Any]] = {}

    def __init__(self, connection: Any, how: str) -> None:
        self.number = id(connection)
        self.connections[self.number] = connection
        self.how = how
        self.itself = self

    def __del__(self) -> None:
        getattr(self.connections.pop(self.number), self.how)()


def litter(connection: Any, how: str) -> None:
    _Litter(connection, how)


@pytest.fixture
def eager() -> Iterator[None]:
    """Collect garbage, and switch threads, as often as possible."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(20, 2, 2)
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, SingletonThreadPool])
def test_stress(poolclass: type[Pool]) -> None:
    """Threads, garbage that returns connections, reports meanwhile: in the end everything is exact."""
    arguments: dict[str, Any] = {QueuePool: {"pool_size": 4, "max_overflow": 2}, NullPool: {}}.get(
        poolclass, {"pool_size": 20}
    )
    watched = Watched(poolclass, **arguments)
    peaks: list[int] = []
    checkouts = itertools.count()
    stop = threading.Event()

    def use() -> None:
        for turn in range(250):
            next(checkouts)
            connection = watched.connect()
            if turn % 7 == 0 and poolclass is not SingletonThreadPool:  # that one hands out one twice
                litter(connection, "close")
                continue
            if turn % 11 == 0:
                connection.invalidate(soft=turn % 2 == 0)
                if turn % 2:
                    continue
            if turn % 13 == 0:
                connection.detach()
                if turn % 3:
                    continue  # dropped
            connection.close()

    def report() -> None:
        while not stop.is_set():
            taken = watched.ledger.take(time.monotonic(), alive=True)
            if taken is not None:
                watched.ledger.acknowledged(taken.sequence)
                peaks.append(taken.peaks.connections)
                if len(peaks) % 20 == 0:
                    gc.collect()  # or all may wait for what only litter has
                for pool in taken.pools:
                    assert pool.gauges.connections <= pool.peaks.connections
                    assert pool.gauges.checked_out <= pool.peaks.checked_out
                    assert pool.gauges.waiting <= pool.peaks.waiting

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        run_threads(use, 8)
    finally:
        stop.set()
        reporter.join(30)
    assert not reporter.is_alive()
    gc.collect()
    totals = watched.check()
    assert totals.checkouts == next(checkouts)
    last = watched.ledger.take(time.monotonic(), alive=True)
    assert last is not None
    if poolclass is QueuePool:
        # The driver's own count is made a moment after SQLAlchemy's events.
        assert max(peaks) <= watched.database.most + 8
        watched.engine.dispose()
        watched.check()


@pytest.mark.usefixtures("eager")
def test_a_listener_in_a_listener() -> None:
    """A garbage collection within a listener may check in, close and detach other connections."""
    watched = Watched(pool_size=5, max_overflow=50)

    for turn in range(200):
        litter(watched.connect(), ("close", "invalidate", "detach")[turn % 3])
        watched.ledger.take(time.monotonic(), alive=True)
    gc.collect()
    watched.check()


# --- asyncio --------------------------------------------------------------------------------


def test_asyncio(tmp_path: Path) -> None:
    """The pool of asyncio engines: overflow, waits of tasks, timeouts, a cancelled wait, detach, dispose."""
    asyncio.run(asyncio.wait_for(_asyncio(f"sqlite+aiosqlite:///{tmp_path}/x.db"), 60))


async def _asyncio(url: str) -> None:
    engine = create_async_engine(
        url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=1, pool_timeout=0.05
    )
    ledger = make_ledger()
    account = instrument(engine.sync_engine.pool, ledger, describe(engine.sync_engine), lambda _: None)

    def check(connections: int, held: int, waiting: int = 0) -> Totals:
        account.fold()
        gauges, totals, _ = account.count()
        assert (gauges.connections, gauges.checked_out, gauges.waiting) == (connections, held, waiting)
        assert totals.connects - totals.closes == connections
        assert totals.checkouts - totals.checkins == held + gauges.detached
        assert (account.live.open, account.live.checked_out) == (connections, held)
        return totals

    one, two = await engine.connect(), await engine.connect()
    await one.execute(text("SELECT 1"))
    check(2, 2)
    with pytest.raises(exc.TimeoutError):
        await engine.connect()
    assert check(2, 2).timeouts == 1
    waiter = asyncio.ensure_future(engine.connect().start())
    while not account.live.waiting:
        await asyncio.sleep(0)
    check(2, 2, 1)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert check(2, 2).timeouts == 1
    waiter = asyncio.ensure_future(engine.connect().start())
    while not account.live.waiting:
        await asyncio.sleep(0)
    await two.close()
    three = await waiter
    check(2, 2)
    raw = await three.get_raw_connection()
    raw.detach()
    account.fold()
    assert account.count()[0][3:] == (2, 1, 0, 1, 0)
    await three.close()
    check(1, 1)
    await one.close()
    check(0, 0)  # the queue is full, of a record that has lost its connection
    await engine.dispose()
    check(0, 0)
    connection = await engine.connect()
    check(1, 1)
    await connection.invalidate()
    await connection.close()
    check(0, 0)
    await engine.dispose()
    assert account.live.peak_waiting == 1


def test_asyncio_connect_cancelled() -> None:
    """A cancelled connect has failed."""

    async def run() -> None:
        engine = create_async_engine(
            "sqlite+aiosqlite://", creator=lambda: await_only(asyncio.sleep(60)), poolclass=NullPool
        )
        account = instrument(
            engine.sync_engine.pool, make_ledger(), describe(engine.sync_engine), lambda _: None
        )
        with pytest.raises((asyncio.TimeoutError, exc.SQLAlchemyError)):
            await asyncio.wait_for(engine.connect().start(), 0.02)
        assert account.count()[1] == Totals(connect_errors=1)

    asyncio.run(run())


# --- The mark -------------------------------------------------------------------------------


def test_a_pool_is_described_as_given() -> None:
    """The account keeps the description that it was given."""
    info = PoolInfo(
        url="u",
        dialect="d",
        database_host=None,
        database_port=None,
        database=None,
        pool_class="c",
        pool_size=1,
        max_overflow=2,
        timeout=3.0,
    )
    engine: Engine = Database().engine(QueuePool)
    account = instrument(engine.pool, make_ledger(), info, lambda _: None)
    assert account.info is info
    assert getattr(engine.pool._creator, KEY) is account

"""Exceptions raised into connmon reach the application, and the counts stay right.

A time limit strikes wherever the program is. Here it strikes at each line of each function of the plugin that
a pool's work reaches, one after the other; then the account is compared with the driver's truth.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import functools
import gc
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from sqlalchemy import event, exc
from sqlalchemy.pool import AssertionPool, NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

import connmon.plugin
from connmon.interrupts import interrupted
from connmon.plugin import holder, queuepool
from connmon.plugin.engine import describe
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool import instrument
from tests.support.fake_dbapi import Database, Disconnected

PLUGIN = str(Path(connmon.plugin.__file__).parent)
#: The line in which the pool gets its record back: a signal between its begin and that call loses the slot.
GIVES_BACK = next(
    number
    for number, line in enumerate(Path(queuepool.__file__).read_text().splitlines(), 1)
    if line.strip() == "do_return(self, record)"
)
CLASSES = [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool]


class TimeLimit(Exception):
    """What the signal handler raises."""


@pytest.fixture
def time_limit() -> Iterator[None]:
    """SIGUSR1 raises TimeLimit."""

    def expired(*_: object) -> None:
        raise TimeLimit

    previous = signal.signal(signal.SIGUSR1, expired)
    # What SQLAlchemy logs would keep connections alive, in pytest's records.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logging.getLogger("sqlalchemy.pool").setLevel(logging.NOTSET)
        signal.signal(signal.SIGUSR1, previous)


class Application:
    """An engine, the driver's truth, and the account."""

    def __init__(self, poolclass: type[Pool], off: bool) -> None:
        self.database = Database()
        options: dict[str, Any] = {}
        if poolclass is QueuePool:
            options = {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.001}
        self.engine = self.database.engine(poolclass, **options)
        self.ledger = Ledger("i", threading.Lock, time.monotonic, holder)
        self.ledger.process.wake = lambda: None
        tracing = holder.Tracing("off" if off else "auto", 30.0)
        self.account = instrument(self.engine.pool, self.ledger, describe(self.engine), lambda _: 7, tracing)

    def works(self) -> None:
        connection = self.engine.raw_connection()
        connection.close()

    def waits_in_vain(self) -> None:
        held = [self.engine.raw_connection(), self.engine.raw_connection()]
        with contextlib.suppress(exc.TimeoutError):
            self.engine.raw_connection()
        for connection in held:
            connection.close()

    def invalidates(self) -> None:
        connection = self.engine.raw_connection()
        connection.invalidate()
        connection.close()
        connection = self.engine.raw_connection()
        connection.close()

    def detaches(self) -> None:
        connection = self.engine.raw_connection()
        connection.detach()
        connection.close()

    def cannot_connect(self) -> None:
        self.engine.dispose()
        self.database.refuse = Disconnected("no")
        try:
            self.engine.raw_connection()
        except Disconnected:
            pass
        finally:
            self.database.refuse = None

    def disposes(self) -> None:
        self.engine.raw_connection().close()
        self.engine.dispose()


WORK: dict[str, Callable[[Application], None]] = {
    "works": Application.works,
    "waits in vain": Application.waits_in_vain,
    "invalidates": Application.invalidates,
    "detaches": Application.detaches,
    "cannot connect": Application.cannot_connect,
    "disposes": Application.disposes,
}


class Strike:
    """Raises SIGUSR1 at the `at`-th place of the plugin, counted from 0; `struck` says where.

    Places are the begin of each line and the instruction after each call, where the interpreter looks for
    signals. Each counts at its first and its second visit. Not counted are the entry of a function, which no
    `try` of its own can cover, and finalizers: nobody gets an exception there.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.seen: dict[tuple[CodeType, str, int], int] = {}
        self.last: dict[int, int] = {}
        """By the id of a frame: the instruction that it was at. No frame is kept."""
        self.struck: str | None = None
        self.entered = ""
        """The function of the plugin that was called from outside."""

    def __call__(self, frame: FrameType, what: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PLUGIN) or self.struck is not None:
            return None
        outer: FrameType | None = frame
        entered = ""
        while outer is not None and outer.f_code.co_filename.startswith(PLUGIN):
            entered = outer.f_code.co_name
            if entered in ("__del__", "ended"):
                return None
            outer = outer.f_back
        self.entered = entered
        self.last.pop(id(frame), None)
        frame.f_trace_opcodes = True
        return self.instruction

    def instruction(self, frame: FrameType, what: str, _: object) -> Any:
        code, line, at = frame.f_code, frame.f_lineno, frame.f_lasti
        if self.struck is not None or what not in ("line", "opcode"):
            return self.instruction
        last = self.last.get(id(frame), 0)
        if what == "opcode":
            self.last[id(frame)] = at
            if not dis.opname[code.co_code[last]].startswith(("CALL", "PRECALL")):
                return self.instruction
        if line in (None, code.co_firstlineno) or at == 0:
            return self.instruction
        if dis.opname[code.co_code[at]] in ("NOP", "SETUP_FINALLY"):
            return self.instruction
        times = self.seen[code, what, at] = self.seen.get((code, what, at), 0) + 1
        if times > 2:
            return self.instruction
        if self.count == self.at:
            self.struck = f"{Path(code.co_filename).name}:{line} {code.co_name} +{at} in {self.entered}"
            sys.settrace(None)
            signal.raise_signal(signal.SIGUSR1)
        self.count += 1
        return self.instruction


def interrupt(
    work: Callable[[Application], None], application: Application, at: int
) -> tuple[str | None, bool]:
    """Do the work and interrupt it; return where, and whether the application has seen it."""
    strike = Strike(at)
    seen = False
    sys.settrace(strike)
    try:
        work(application)
    except TimeLimit:
        seen = True
    finally:
        sys.settrace(None)
    return strike.struck, seen


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize(
    ("poolclass", "work", "off"),
    [(cls, work, False) for cls in CLASSES for work in WORK if cls is QueuePool or work != "waits in vain"]
    + [(cls, work, True) for cls in (QueuePool, NullPool) for work in ("works", "invalidates")],
)
def test_wherever_it_strikes(poolclass: type[Pool], work: str, off: bool) -> None:
    """The application gets the exception, and the next report says what the driver knows."""
    at = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy's, about what is collected as garbage
        while True:
            application = Application(poolclass, off)
            application.works()
            struck, seen = interrupt(WORK[work], application, at)
            if struck is None:
                break
            # SQLAlchemy itself catches what listeners of close_detached raise, and of close in one dispose().
            caught = "in close" if poolclass is SingletonThreadPool else "in close_detached"
            assert seen or caught in struck, f"{struck}: the application has not seen it"
            gc.collect(0)
            _check(application, struck)
            at += 1
    assert at > 10


def _check(application: Application, struck: str) -> None:
    account, database = application.account, application.database
    pool: Any = application.engine.pool
    for rest in ("", " and some work"):
        account.fold()
        gauges, totals, _ = account.count()
        where = struck + rest
        assert gauges.connections == len(database.open), where
        assert totals.connects - totals.closes == len(database.open), where
        assert (gauges.checked_out, gauges.detached, gauges.waiting) == (0, 0, 0), where
        assert totals.checkouts == totals.checkins, where
        live = account.live
        assert (live.open, live.checked_out, live.waiting) == (len(database.open), 0, 0), where
        assert all(entry.closed is False for entry in account.entries.values()), where
        # What SQLAlchemy's pool itself loses where an exception comes between its lines is lost without
        # connmon too: a record between `_do_get` and what it returns to, the slots of half a dispose.
        lost = " _do_get " in where or "in close" in where or f":{GIVES_BACK} " in where
        if isinstance(pool, QueuePool) and not lost:
            assert pool.checkedout() == 0, where
        if isinstance(pool, AssertionPool) and pool._checked_out:
            return  # SQLAlchemy's own: nothing gets a connection from it any more
        application.works()


def test_a_close_that_does_not_happen_leaves_the_hold_as_it_was() -> None:
    """The counts of an interrupted close are taken back: the connection is still held, once."""
    application = Application(QueuePool, False)
    application.works()
    (entry,) = application.account.entries.values()
    entry.since, entry.checkouts = time.monotonic(), entry.checkouts + 1
    before = entry.state()
    entry.end()
    entry.reopen(before)
    assert entry.state() == before
    assert not entry.closed


# --- What is an interruption ----------------------------------------------------------------


def raised(function: Callable[[], object]) -> BaseException:
    """Return what the function raises, as if it were called within the plugin."""
    namespace: dict[str, Any] = {}
    code = (
        "def call(function):\n    try:\n        function()\n"
        "    except BaseException as error:\n        return error\n"
    )
    exec(compile(code, f"{PLUGIN}/made_up.py", "exec"), namespace)
    error: BaseException = namespace["call"](function)
    return error


def _fails() -> None:
    raise KeyError("a bug")


def test_failures_of_its_own_are_none() -> None:
    """An exception of connmon, or of what it calls, is a failure, whatever its class."""

    class Strange(Exception):
        pass

    def strange() -> None:
        raise Strange

    assert not interrupted(raised(_fails))
    assert not interrupted(raised(strange))
    assert not interrupted(ValueError("never raised"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_is_one(error: type[BaseException]) -> None:
    """Ctrl-C and the end of the process are always interruptions."""

    def ends() -> None:
        raise error

    assert interrupted(raised(ends))


class Method:
    def handler(self, signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    def forgetful(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        raise TimeoutError


def _with_more(more: str, signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(more)


HANDLERS: dict[str, Any] = {
    "function": lambda signum, frame: _with_more("", signum, frame),
    "any arguments": lambda *arguments: _with_more("", *arguments),
    "method": Method().handler,
    "forgets its arguments": Method().forgetful,
    "partial": functools.partial(_with_more, "more"),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=list(HANDLERS))
def test_signal_handlers(handler: Any) -> None:
    """What a Python signal handler raises is an interruption, also where its class is a built-in one."""
    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        error = raised(lambda: signal.raise_signal(signal.SIGUSR1))
        assert isinstance(error, TimeoutError)
        assert interrupted(error)
        assert interrupted(error, in_driver=True)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_another_thread() -> None:
    """An exception that another thread sets in this one, as rq's time limit does, is an interruption."""
    namespace: dict[str, Any] = {"TimeLimit": TimeLimit}
    code = (
        "def call(begin):\n    try:\n        begin()\n        while True:\n            pass\n"
        "    except Exception as error:\n        return error\n"
    )
    exec(compile(code, f"{PLUGIN}/made_up.py", "exec"), namespace)
    target = ctypes.c_ulong(threading.get_ident())

    def strikes() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(TimeLimit))

    timer = threading.Timer(0.05, strikes)
    error = namespace["call"](timer.start)
    timer.join()
    assert isinstance(error, TimeLimit)
    assert interrupted(error)


# --- Listeners of others --------------------------------------------------------------------


class Mistake(Exception):
    """Raised by another listener."""


# Not a close, after: connmon has seen it, and then it does not happen (docs/limits.rst).
@pytest.mark.parametrize(
    ("name", "when"),
    [
        (name, when)
        for name in ("checkout", "checkin", "connect", "close", "invalidate", "detach")
        for when in ("before", "after")
        if (name, when) != ("close", "after")
    ],
)
@pytest.mark.parametrize("poolclass", CLASSES)
def test_listeners_of_others_that_raise(poolclass: type[Pool], name: str, when: str) -> None:
    """Whatever another listener of the pool raises, the account agrees with the driver and the pool."""
    database = Database()
    engine = database.engine(poolclass)
    failing = [False]

    def listener(*_: object) -> None:
        if failing[0]:
            raise Mistake

    if when == "before":
        event.listen(engine.pool, name, listener)
    ledger = Ledger("i", threading.Lock, time.monotonic, holder)
    account = instrument(engine.pool, ledger, describe(engine), lambda _: 7)
    if when == "after":
        event.listen(engine.pool, name, listener)
    for _ in range(2):
        failing[0] = True
        try:
            connection: Any = engine.raw_connection()
            if name == "invalidate":
                connection.invalidate()
            if name == "detach":
                connection.detach()
            connection.close()
            if name == "close":
                engine.dispose()
        except Mistake:
            pass
        failing[0] = False
        connection = None
        gc.collect()
        account.fold()
        gauges, totals, _ = account.count()
        pool: Any = engine.pool
        # A slot that SQLAlchemy itself has lost stays out there as well.
        held = pool.checkedout() if isinstance(pool, QueuePool) else 0
        assert gauges.connections == len(database.open)
        assert totals.connects - totals.closes == len(database.open)
        assert gauges.checked_out == min(held, len(database.open))
        assert totals.checkouts - totals.checkins == gauges.checked_out
        if isinstance(pool, AssertionPool) and pool._checked_out:
            break

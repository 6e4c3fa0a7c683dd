"""Who holds a connection."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from connmon.plugin import holder
from connmon.plugin.call_site_accounts import Whereabouts
from connmon.plugin.engine import describe
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool import instrument
from connmon.plugin.pool_account import KEY, PoolAccount
from connmon.protocol.reports import Connection
from tests.support.waiting import wait_for


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("worker-3", "worker-3"),
        ("", "Thread"),
        ("x" * 5000, "x" * 256),
        ("\udcff\ud800a", "??a"),
    ],
)
def test_name_of_a_thread(name: str, expected: str) -> None:
    """A running thread's name is reported, as far as the wire accepts it."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        done.wait(30)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        assert begun.wait(30)
        assert thread.ident is not None
        found = holder.name(thread.ident)
    finally:
        done.set()
        thread.join(30)
    assert found.startswith(expected)
    message = msgspec.msgpack.encode(
        Connection(number=1, pool=1, server_id=None, state="checked_out", age=1.0, held=1.0, holder=found)
    )
    assert msgspec.msgpack.decode(message, type=Connection).holder == found


def test_thread_that_has_ended() -> None:
    """A thread that has ended, or that Python has not started, is named by its number."""
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join(30)
    assert thread.ident is not None
    assert holder.name(-1) == "thread -1"
    assert holder.name(thread.ident).startswith(("thread ", "Thread-", "MainThread"))


def test_a_name_that_is_no_text() -> None:
    """Whatever is in threading's table, the name is text."""
    thread = threading.current_thread()
    name = thread._name  # type: ignore[attr-defined]
    assert thread.ident is not None
    try:
        thread._name = 7  # type: ignore[attr-defined]
        assert holder.name(thread.ident) == f"thread {thread.ident}"
    finally:
        thread._name = name  # type: ignore[attr-defined]


# --- Where in the code ----------------------------------------------------------------------


LEDGERS: dict[PoolAccount, Ledger] = {}
"""The ledger of each pool that `watched` has made."""


def held_connections(engine: Any) -> list[Connection]:
    """Return the held connections of a fresh report of the engine's ledger."""
    sync = getattr(engine, "sync_engine", engine)
    ledger = LEDGERS[getattr(sync.pool._creator, KEY)]
    ledger.restart()
    report = ledger.take(time.monotonic())
    assert report is not None
    return [connection for connection in report.connections if connection.state == "checked_out"]


def watched(make: Callable[[str], Any], url: str, tracing: holder.Tracing) -> Any:
    """Return an engine whose pool is accounted for, in a ledger of its own."""
    engine = make(url)
    sync = getattr(engine, "sync_engine", engine)
    ledger = Ledger("i", threading.Lock, time.monotonic, holder)
    LEDGERS[instrument(sync.pool, ledger, describe(sync), lambda _: None, tracing)] = ledger
    return engine


def test_thread_that_holds_long(tmp_path: Path) -> None:
    """A hold longer than the threshold also has its holder's present place and stack."""
    engine = watched(create_engine, f"sqlite:///{tmp_path}/x.db", holder.Tracing("auto", 0.05))
    taken, done = threading.Event(), threading.Event()

    def hold_for_long() -> None:
        with engine.connect():
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hold_for_long, name="leaker")
    thread.start()
    try:
        assert taken.wait(30)
        assert held_connections(engine)[0].holder_site is None  # not long yet
        wait_for(lambda: held_connections(engine)[0].holder_site)
        (connection,) = held_connections(engine)
    finally:
        done.set()
        thread.join(30)
    assert connection.holder == "leaker"
    assert connection.call_site is not None
    assert re.fullmatch(r".*test_holder\.py:\d+ hold_for_long", connection.call_site)
    assert connection.holder_site is not None
    assert re.fullmatch(r".*test_holder\.py:\d+ hold_for_long", connection.holder_site)
    assert connection.holder_site != connection.call_site
    assert connection.holder_in == "application"
    assert any(line == connection.holder_site for line in connection.stack)
    assert connection.stack[0].endswith(" wait")  # the innermost first
    engine.dispose()


def test_off(tmp_path: Path) -> None:
    """With connmon_trace=off no stack is looked at."""
    engine = watched(create_engine, f"sqlite:///{tmp_path}/x.db", holder.Tracing("off", 1e-9))
    with engine.connect():
        (connection,) = held_connections(engine)
    assert (connection.holder, connection.call_site, connection.stack) == ("MainThread", None, ())
    engine.dispose()


def test_every_checkout(tmp_path: Path) -> None:
    """With connmon_trace=all the call site of each checkout is reported at once, also of the next one."""
    engine = watched(create_engine, f"sqlite:///{tmp_path}/x.db", holder.Tracing("all"))

    def one_place() -> str | None:
        with engine.connect():
            return held_connections(engine)[0].call_site

    def another() -> str | None:
        with Session(engine) as session:
            session.execute(text("select 1"))
            return held_connections(engine)[0].call_site

    for function in (one_place, another, one_place):
        site = function()
        assert site is not None
        assert site.endswith(f" {function.__name__}"), site
    engine.dispose()


@pytest.mark.parametrize("trace", ["auto", "all"])
def test_task(tmp_path: Path, trace: Literal["auto", "all"]) -> None:
    """A task is reported by its name, where it awaits now, and where it checked the connection out."""

    async def inner(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
            await asyncio.sleep(30)

    async def main() -> Connection:
        engine = watched(
            create_async_engine, f"sqlite+aiosqlite:///{tmp_path}/x.db", holder.Tracing(trace, 1e-9)
        )
        task = asyncio.create_task(inner(engine), name="the-task")
        for _ in range(1000):
            await asyncio.sleep(0.01)
            found = held_connections(engine)
            if found and found[0].call_site:
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.dispose()
        return found[0]

    connection = asyncio.run(main())
    assert connection.holder == "the-task"
    assert connection.call_site is not None
    assert re.fullmatch(r".*test_holder\.py:\d+ inner", connection.call_site)


def test_ended_holders() -> None:
    """The whereabouts of an ended thread, task or greenlet are "ended", and nothing raises."""

    class Gone:
        pass

    gone = weakref.ref(Gone())
    assert holder.whereabouts(-1) == Whereabouts("ended", None, ())
    assert holder.whereabouts(gone) == Whereabouts("ended", None, ())
    assert holder.name(gone) == "(ended)"


def test_a_line_below_the_directory_it_was_imported_from() -> None:
    """A file is named relative to the longest entry of sys.path that it is below."""
    code = compile("0", f"{sys.path[-1]}/package/module.py", "exec")
    assert holder.frame_text(code, 412) == "package/module.py:412 <module>"

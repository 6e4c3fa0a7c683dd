"""A failure within the plugin stays there: each function that a pool's work reaches is made to fail.

The functions are not listed here but found, by watching the work once.
"""

from __future__ import annotations

import ast
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

import pytest
from sqlalchemy import exc
from sqlalchemy.pool import NullPool, Pool, QueuePool

import connmon.plugin
from connmon.plugin import holder
from connmon.plugin.engine import describe
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool import instrument
from tests.support.fake_dbapi import Database, Disconnected

PLUGIN = str(Path(connmon.plugin.__file__).parent)


class Injected(RuntimeError):
    """Raised by a function that is made to fail."""


class Work:
    """A pool, and everything that an application does with one."""

    def __init__(self, poolclass: type[Pool]) -> None:
        self.database = Database()
        options: dict[str, Any] = {}
        if poolclass is QueuePool:
            options = {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.001, "pool_pre_ping": True}
        self.engine = self.database.engine(poolclass, **options)
        self.connect().close()  # found in use later, where the pool keeps it
        ledger = Ledger("i", threading.Lock, time.monotonic, holder)
        ledger.process.wake = lambda: None
        holder._frame_kinds = None  # as in a process that has seen no frame yet
        tracing = holder.Tracing("all", 0.001)
        self.account = instrument(self.engine.pool, ledger, describe(self.engine), lambda _: 7, tracing)

    def connect(self) -> Any:
        return self.engine.raw_connection()

    def pieces(self) -> Iterator[Callable[[], None]]:
        """Yield pieces of work, in order."""
        yield lambda: self.connect().close()
        yield self.waits_in_vain
        yield lambda: self.connect().invalidate()
        yield lambda: self.connect().invalidate(soft=True)
        yield self.detaches
        yield self.drops
        yield self.cannot_connect
        yield self.finds_it_dead
        yield self.engine.dispose
        yield lambda: self.connect().close()

    def waits_in_vain(self) -> None:
        held = [self.connect(), self.connect()]
        if isinstance(self.engine.pool, QueuePool):
            with pytest.raises(exc.TimeoutError):
                self.connect()
        for connection in held:
            connection.close()

    def detaches(self) -> None:
        connection = self.connect()
        connection.detach()
        connection.close()
        connection = self.connect()
        connection.detach()
        del connection
        gc.collect()

    def drops(self) -> None:
        connection = self.connect()
        del connection
        gc.collect()

    def cannot_connect(self) -> None:
        self.engine.dispose()
        self.database.refuse = Disconnected("no")
        with pytest.raises(Disconnected):
            self.connect()
        self.database.refuse = None

    def finds_it_dead(self) -> None:
        self.connect().close()
        self.database.dead |= self.database.open
        if isinstance(self.engine.pool, QueuePool):
            self.connect().close()


def within(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PLUGIN)


Call: TypeAlias = "tuple[CodeType, int, CodeType]"
"""A call within the plugin: in which function, in which line, and of which function."""


def watched(piece: Callable[[], None], look: Callable[[Call], None]) -> None:
    """Do a piece of work, and call `look` where a function of the plugin calls another one."""

    def profile(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back
        if event == "call" and within(frame) and caller is not None and within(caller):
            look((caller.f_code, caller.f_lineno, frame.f_code))

    sys.setprofile(profile)
    try:
        piece()
    finally:
        sys.setprofile(None)


def reached(poolclass: type[Pool]) -> list[Call]:
    """Return the calls within the plugin of functions that can fail.

    A function with nothing outside of a `try` that catches everything cannot; what it calls is made to fail.
    Nor can the pool's own `connect`, which does SQLAlchemy's work.
    """
    calls: dict[Call, None] = {}
    for piece in Work(poolclass).pieces():
        watched(piece, lambda call: calls.setdefault(call, None))
    return [call for call in calls if not guarded(call[2]) and call[2].co_name != "connect"]


def guarded(code: CodeType) -> bool:
    """Return whether the function is one `try` with `except Exception`, whose handlers do next to nothing."""
    tree = ast.parse(Path(code.co_filename).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.lineno == code.co_firstlineno:
            body = [s for s in node.body if not isinstance(s, ast.Expr | ast.Global | ast.Nonlocal)]
            if len(body) != 1 or not isinstance(body[0], ast.Try):
                return False
            last = body[0].handlers[-1]
            quiet = all(_is_quiet(statement) for handler in body[0].handlers for statement in handler.body)
            return (
                quiet and isinstance(last.type, ast.Name) and last.type.id in ("Exception", "BaseException")
            )
    return False


def _is_quiet(statement: ast.stmt) -> bool:
    """Return whether a handler's statement raises nothing but what was raised into it from outside."""
    if isinstance(statement, ast.If):
        condition = statement.test
        return (
            isinstance(condition, ast.Call)
            and ast.unparse(condition.func) == "interrupted"
            and not statement.orelse
        )
    return isinstance(statement, ast.Pass | ast.Return) or ast.unparse(statement).endswith(".mend()")


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_a_failure_in_any_function_stays_within(poolclass: type[Pool]) -> None:
    """Wherever one function of the plugin calls another and that fails, the application sees nothing and
    loses no slot of its pool.
    """
    calls = reached(poolclass)
    names = {callee.co_name for _, _, callee in calls}
    assert {"opened", "end", "relieve", "seen", "call_site", "_detach", "find", "of"} <= names
    assert {"enter", "wait_begins", "wait_ends"} <= names or poolclass is NullPool
    for call in calls:
        caller, line, callee = call
        what = f"{callee.co_name}, called by {caller.co_name} in line {line}"
        work = Work(poolclass)
        failed: list[bool] = []

        def fail(at: Call, call: Call = call, failed: list[bool] = failed) -> None:
            if at == call:
                failed.append(True)  # the interpreter stops looking when this raises
                raise Injected

        try:
            for piece in work.pieces():
                watched(piece, fail)
        except Injected:
            pytest.fail(f"a failure of {what}, reached the application")
        assert failed, f"{what}, was not called again"
        pool: Any = work.engine.pool
        if poolclass is QueuePool:
            assert (pool.checkedout(), pool.overflow()) == (0, pool.checkedin() - pool.size()), what
        for connection in [work.connect(), work.connect()]:
            connection.close()

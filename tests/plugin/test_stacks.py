"""Stacks of holders that go through helpers, asynchronous generators and tasks of others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import CodeType
from typing import Any

import pytest

from connmon.plugin import holder, stacks
from connmon.plugin.call_site_accounts import Held
from tests.support.waiting import wait_for


def functions(task: asyncio.Task[Any]) -> list[str]:
    """Return the functions on the stack of a task, the innermost first."""
    (stack,) = stacks.read([weakref.ref(task)])
    return [code.co_name for code, _ in stack.frames]


async def innermost(event: asyncio.Event) -> None:
    await event.wait()


async def direct(event: asyncio.Event) -> None:
    await innermost(event)


async def in_a_generator(event: asyncio.Event) -> None:
    """As FastAPI's dependencies do: the code after `yield` runs when the generator is asked again."""

    @contextlib.asynccontextmanager
    async def dependency() -> AsyncIterator[None]:
        yield
        await innermost(event)

    async with dependency():
        pass


async def in_a_generator_that_is_closed(event: asyncio.Event) -> None:
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await innermost(event)

    generator = rows()
    await anext_of(generator)
    await generator.aclose()  # type: ignore[attr-defined]


async def anext_of(generator: AsyncIterator[int]) -> int:
    return await generator.__anext__()


async def in_a_shielded_task(event: asyncio.Event) -> None:
    """As SQLAlchemy closes a session."""
    await asyncio.shield(asyncio.ensure_future(innermost(event)))


async def in_a_task(event: asyncio.Event) -> None:
    await asyncio.ensure_future(innermost(event))


async def with_a_limit(event: asyncio.Event) -> None:
    await asyncio.wait_for(innermost(event), 60)


def functions_while_waiting(function: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> list[str]:
    """Return the functions on the stack of a task of this function while it waits for the event."""

    async def main() -> list[str]:
        event = asyncio.Event()
        task = asyncio.ensure_future(function(event))
        await asyncio.sleep(0.05)
        names = functions(task)
        event.set()
        await task
        return names

    return asyncio.run(main())


@pytest.mark.parametrize(
    "function",
    [direct, in_a_generator, in_a_generator_that_is_closed, in_a_shielded_task, in_a_task, with_a_limit],
)
def test_a_stack_goes_on_behind_what_a_task_awaits(
    function: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
) -> None:
    """The stack goes through generators and tasks that the task awaits, down to where it really waits."""

    names = functions_while_waiting(function)
    assert names[:2] == ["wait", "innermost"]
    assert names[-1] == function.__name__


def test_tasks_that_await_each_other_are_followed_only_so_far() -> None:
    """A long chain of tasks, each of which awaits the next, gives a stack and no endless search."""

    async def chain(depth: int, event: asyncio.Event) -> None:
        await (asyncio.ensure_future(chain(depth - 1, event)) if depth else innermost(event))

    names = functions_while_waiting(lambda event: chain(stacks.TASKS_FOLLOWED + 6, event))
    assert names == ["chain"] * (stacks.TASKS_FOLLOWED + 1)


def test_a_task_that_awaits_several_is_where_it_awaits_them() -> None:
    """Of several tasks none is the place of the one that awaits them."""

    async def both(event: asyncio.Event) -> None:
        await asyncio.gather(innermost(event), innermost(event))

    assert functions_while_waiting(both) == ["both"]


def take_connection() -> CodeType:
    """Stand for a helper that makes the first query of a transaction."""
    return take_connection.__code__


def test_a_holder_whose_helper_took_the_connection() -> None:
    """If a helper took the connection and has returned, the holder is where its caller is."""
    done = threading.Event()

    def request() -> None:
        holds.append((stacks.mark(), take_connection()))
        while not done.is_set():
            time.sleep(0.01)

    holds: list[tuple[stacks.ThreadMark, CodeType]] = []
    thread = threading.Thread(target=request)
    thread.start()
    try:
        wait_for(lambda: bool(holds), what="the thread to begin")
        (mark, code), wheres = holds[0], set[Any]()

        def sleeps() -> bool:
            wheres.update(look.where for look in holder.look([Held(mark, code, 1.0)]))
            return "time.sleep" in wheres

        wait_for(sleeps, what="the thread to sleep")
        assert "elsewhere" not in wheres
    finally:
        done.set()
        thread.join()


def test_a_task_whose_helper_took_the_connection() -> None:
    """The same of a task: it is at what its own coroutine awaits."""

    async def request(event: asyncio.Event) -> None:
        await innermost(event)

    async def main() -> str | None:
        event = asyncio.Event()
        task = asyncio.ensure_future(request(event))
        await asyncio.sleep(0.01)
        (look,) = holder.look([Held(weakref.ref(task), take_connection(), 1.0)])
        event.set()
        await task
        return look.where

    assert asyncio.run(main()) not in ("elsewhere", None)


def test_a_thread_of_a_pool_that_has_nothing_to_do_is_elsewhere() -> None:
    """A request has ended, but not given its connection back: its thread waits for the next request."""
    with ThreadPoolExecutor(1) as executor:
        mark, code = executor.submit(lambda: (stacks.mark(), take_connection())).result()
        wait_for(
            lambda: [look.where for look in holder.look([Held(mark, code, 1.0)])] == ["elsewhere"],
            what="the thread to wait for work",
        )


def test_an_older_hold_of_a_thread_at_work_is_elsewhere() -> None:
    """A thread works with the connection that it took last; what an earlier request has left is elsewhere."""
    work: queue.Queue[None] = queue.Queue()
    marks: list[stacks.ThreadMark] = []

    def request() -> None:
        marks.append(stacks.mark())
        work.get()

    thread = threading.Thread(target=request)
    thread.start()
    try:
        wait_for(lambda: bool(marks), what="the thread to begin")
        left = Held(marks[0], take_connection(), 1.0, newest=False)
        own = Held(marks[0], request.__code__, 2.0)
        wait_for(
            lambda: [look.where for look in holder.look([left, own])] == ["elsewhere", "queue.get"],
            what="the thread to wait in its queue",
        )
    finally:
        work.put(None)
        thread.join()


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_frames_are_read(enabled: bool) -> None:
    """Python 3.11 would crash where a collection lets a frame end whose object is being made. Afterwards the
    collector is as the application has it.
    """
    seen = []

    def collects() -> None:
        seen.append(gc.isenabled())

    assert gc.isenabled()
    try:
        if not enabled:
            gc.disable()
        stacks.read([collects])
        assert seen == [enabled and sys.version_info[:2] != (3, 11)]
        stacks.read_threads()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()

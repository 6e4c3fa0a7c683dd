"""The stacks of threads, asyncio tasks and greenlets, read from outside.

Rules:

1. Local variables are not read: asking a frame for its `f_locals` copies them, and under a debugger or a
   tracing function writes them back, over what the function has changed meanwhile.
2. Nothing of the application is kept. A stack becomes code objects and numbers at once (`Stack`), and the
   frames are released before anything is judged: a frame that is held while its function returns keeps the
   local variables, and then their destructors would run in this thread.
3. No function of the application is called, and no attribute asked for that it could have overwritten, but
   for what asyncio and greenlet themselves need.
4. Line numbers are found from the offset of the instruction, and only for the frames that are shown: asking a
   frame for its line is slower than all the rest.
"""

from __future__ import annotations

import _thread
import functools
import gc
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.plugin import unpatched
from connmon.plugin.call_site import Place

Holder: TypeAlias = Any
"""A thread's mark or its number, or a weak reference to a task or a greenlet."""

#: The most frames of a stack that are read.
FRAMES_READ: Final = 1000
_active: Final[dict[int, threading.Thread]] = getattr(threading, "_active", {})


class ThreadMark:
    """Stands for a thread, without keeping the thread object alive."""

    __slots__ = ("_thread", "ident", "name")

    def __init__(self) -> None:
        self.ident = unpatched.get_ident()
        thread = _active.get(self.ident)
        self._thread = None if thread is None else weakref.ref(thread)
        name = getattr(thread, "_name", None)
        self.name = name if isinstance(name, str) else None

    @property
    def ended(self) -> bool:
        """Whether the thread has ended. False for one that Python did not start."""
        if self._thread is None:
            return False
        thread = self._thread()
        return thread is None or _active.get(self.ident) is not thread


class _ThreadMarks(_thread._local):
    """The mark of each thread, made when the thread first asks for it."""

    def __init__(self) -> None:
        self.mark = ThreadMark()


#: Returns the mark of the calling thread, without calling a Python function.
mark: Final[Callable[[], ThreadMark]] = functools.partial(operator.attrgetter("mark"), _ThreadMarks())


def thread_of(ident: int) -> threading.Thread | None:
    """Return Python's object of a thread, where there is one."""
    return _active.get(ident)


class Stack(NamedTuple):
    """Where a thread, task or greenlet is: nothing but code and numbers, but for `variables`."""

    frames: list[tuple[CodeType, int]]
    """Code object and offset of the instruction, the innermost frame first."""
    variables: dict[str, Any] | None = None
    """The globals of the innermost frame's module."""
    suspended: bool = False
    """Whether it is a task that waits for something, or could go on."""
    ready: bool = False
    """Whether what the task waits for is done: it could go on."""
    complete: bool = True
    """Whether no frames are missing between the innermost and the outermost ones."""
    ended: bool | None = None
    """Whether thread, task or greenlet has ended, where there are no frames; None: not known."""


Threads: TypeAlias = "Mapping[int, FrameType]"
"""The innermost frame of each thread, by its number."""

NO_STACK: Final = Stack([])


def read(holders: list[Holder]) -> list[Stack]:
    """Return the stacks of these holders, all of one moment as far as can be. Never raises."""
    threads = sys._current_frames()
    try:
        return [_guarded(holder, threads) for holder in holders]
    finally:
        threads.clear()


def read_threads() -> dict[int, Stack]:
    """Return the stacks of all threads, by their numbers."""
    threads = sys._current_frames()
    try:
        return {ident: Stack(upwards(frame)) for ident, frame in threads.items()}
    finally:
        threads.clear()


def _guarded(holder: Holder, threads: Threads) -> Stack:
    try:
        return _stack(holder, threads)
    except Exception:  # it went on meanwhile, or is of a class that is unlike asyncio's
        return NO_STACK


def _stack(holder: Holder, threads: Threads) -> Stack:
    if isinstance(holder, ThreadMark):
        return Stack([], ended=True) if holder.ended else _of_thread(holder.ident, threads)
    if isinstance(holder, int):
        return _of_thread(holder, threads)
    target = holder()
    if target is None:
        return Stack([], ended=True)
    if hasattr(target, "get_coro"):
        return _of_task(target, threads)
    return _of_greenlet(target, threads)


# --- Threads --------------------------------------------------------------------------------


def _of_thread(ident: int, threads: Threads) -> Stack:
    frame = threads.get(ident)
    if frame is not None:
        return Stack(upwards(frame), frame.f_globals)
    thread = _active.get(ident)
    if thread is None or isinstance(thread, threading._DummyThread) or not thread.is_alive():
        return Stack([], ended=True)
    return NO_STACK


def upwards(frame: FrameType | None) -> list[tuple[CodeType, int]]:
    """Return code and offset of this frame and of those further out."""
    frames: list[tuple[CodeType, int]] = []
    while frame is not None and len(frames) < FRAMES_READ:
        frames.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return frames


def _runs(innermost: FrameType | None, frame: FrameType) -> bool:
    """Return whether this frame is on the stack."""
    while innermost is not None:
        if innermost is frame:
            return True
        innermost = innermost.f_back
    return False


# --- Tasks ----------------------------------------------------------------------------------


def _of_task(task: Any, threads: Threads) -> Stack:
    if task.done():
        return Stack([], ended=True)
    coroutine = task.get_coro()
    if getattr(coroutine, "cr_running", False):
        return _of_running_task(task, coroutine.cr_frame, threads)
    frames, variables = _awaited(coroutine)
    return Stack(frames, variables, suspended=True, ready=_ready(task))


def _of_running_task(task: Any, outermost: FrameType | None, threads: Threads) -> Stack:
    """Return the stack of a task that runs now, in a thread."""
    if outermost is None:
        return NO_STACK
    for frame in threads.values():
        if _runs(frame, outermost):
            return Stack(upwards(frame), frame.f_globals)
    # It is in SQLAlchemy's greenlet, whose stack does not lead to the task's.
    frame_of_loop = threads.get(getattr(task.get_loop(), "_thread_id", None) or 0)
    own = [(outermost.f_code, outermost.f_lasti)]
    if frame_of_loop is None:
        return Stack(own, complete=False)
    return Stack(upwards(frame_of_loop) + own, frame_of_loop.f_globals, complete=False)


def _ready(task: Any) -> bool:
    """Return whether what a suspended task waits for is done: then the loop is busy with others."""
    asyncio = sys.modules.get("asyncio")
    future = getattr(asyncio, "Future", None)
    if future is None:
        return False
    awaited = getattr(task, "_fut_waiter", task)  # `task` stands for: not known
    if awaited is None:
        return True
    return awaited is not task and issubclass(type(awaited), future) and bool(future.done(awaited))


def _awaited(coroutine: Any) -> tuple[list[tuple[CodeType, int]], dict[str, Any] | None]:
    """Return the frames of a chain of awaits, the innermost first, and the globals of that."""
    frames: list[tuple[CodeType, int]] = []
    variables: dict[str, Any] | None = None
    while len(frames) < FRAMES_READ:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            frame = getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        frames.append((frame.f_code, frame.f_lasti))
        variables = frame.f_globals
        if frame.f_code.co_name == "greenlet_spawn":  # SQLAlchemy's: the rest is in a greenlet
            inner = _frame_of_greenlet(coroutine, frame)
            if inner is not None:
                frames.extend(reversed(upwards(inner)))
                variables = inner.f_globals
        awaited = getattr(coroutine, "cr_await", None)
        coroutine = awaited if awaited is not None else getattr(coroutine, "gi_yieldfrom", None)
    frames.reverse()
    return frames, variables


def _frame_of_greenlet(coroutine: Any, frame: FrameType) -> FrameType | None:
    """Return the frame of the greenlet that is a local variable of this suspended frame.

    The garbage collector knows what an object refers to: up to Python 3.10 a frame has the local variables,
    and since then its coroutine.
    """
    kind = getattr(sys.modules.get("greenlet"), "greenlet", None)
    if kind is None:
        return None
    for owner in (coroutine, frame):
        for local in gc.get_referents(owner):
            if issubclass(type(local), kind) and local.gr_frame is not None:
                inner: FrameType = local.gr_frame
                return inner
    return None


# --- Greenlets ------------------------------------------------------------------------------


def _of_greenlet(greenlet: Any, threads: Threads) -> Stack:
    frame = greenlet.gr_frame
    if frame is not None:
        return Stack(upwards(frame), frame.f_globals)
    if greenlet.dead:
        return Stack([], ended=True)
    if not greenlet:  # it has not started
        return NO_STACK
    ident = _thread_that_runs(greenlet, threads)
    return NO_STACK if ident is None else _of_thread(ident, threads)


def _thread_that_runs(greenlet: Any, threads: Threads) -> int | None:
    """Return the number of the thread that runs this greenlet now; None: it cannot be found out."""
    hub = greenlet
    while (parent := hub.parent) is not None:
        ident = getattr(hub, "thread_ident", None)  # of gevent's hubs
        if isinstance(ident, int):
            return ident
        hub = parent
    others = [ident for ident in threads if ident != unpatched.thread_id()]
    if len(others) == 1:
        return others[0]
    main = threading.main_thread().ident
    return main if main in threads else None


# --- Lines ----------------------------------------------------------------------------------


def line_of(code: CodeType, offset: int) -> int:
    """Return the line of the instruction."""
    if offset >= 0:
        for start, end, line in code.co_lines():
            if start <= offset < end:
                return line or 0
    return code.co_firstlineno


def places(stack: Stack, most: int = FRAMES_READ) -> list[Place]:
    """Return code objects and lines of a stack's innermost frames."""
    return [(code, line_of(code, offset)) for code, offset in stack.frames[:most]]

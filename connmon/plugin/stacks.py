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
from collections.abc import Callable, Collection, Iterator, Mapping
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, FunctionType, GeneratorType
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.plugin import unpatched
from connmon.plugin.call_site import Place

Holder: TypeAlias = Any
"""A thread's mark or its number, or a weak reference to a task or a greenlet."""

#: The most frames of a stack that are read.
FRAMES_READ: Final = 400
#: How many tasks are followed, each of which awaits the next.
TASKS_FOLLOWED: Final = 4
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
    """Whether all frames were read."""
    ended: bool | None = None
    """Whether thread, task or greenlet has ended, where there are no frames; None: not known."""


Threads: TypeAlias = "Mapping[int, FrameType]"
"""The innermost frame of each thread, by its number."""

NO_STACK: Final = Stack([])


class _NoCollection:
    """Keeps the garbage collector away while frames of other threads are read.

    Python 3.11 makes a frame's object when somebody asks for it, and may collect garbage while it does. A
    finalizer can give the interpreter lock away then, the other thread goes on, the frame ends, and the new
    object is of memory that is something else by then: the process crashes. (Other versions either have the
    objects already or collect only between two instructions.)
    """

    __slots__ = ("_enabled",)

    def __enter__(self) -> None:
        self._enabled = _COLLECTS_WHILE_ALLOCATING and gc.isenabled()
        if self._enabled:
            gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            gc.enable()


_COLLECTS_WHILE_ALLOCATING: Final = sys.version_info[:2] == (3, 11)


def read(holders: list[Holder]) -> list[Stack]:
    """Return the stacks of these holders, all of one moment as far as can be. Never raises."""
    with _NoCollection():
        threads = sys._current_frames()
        try:
            return [_guarded(holder, threads) for holder in holders]
        finally:
            threads.clear()


def read_threads(without: Collection[int] = ()) -> dict[int, Stack]:
    """Return the stacks of all threads but these, by their numbers."""
    with _NoCollection():
        threads = sys._current_frames()
        try:
            return {ident: Stack(upwards(frame)) for ident, frame in threads.items() if ident not in without}
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
        return _from(frame)
    thread = _active.get(ident)
    if thread is None or isinstance(thread, threading._DummyThread) or not thread.is_alive():
        return Stack([], ended=True)
    return NO_STACK


def _from(frame: FrameType) -> Stack:
    """Return the stack whose innermost frame this is."""
    frames = upwards(frame)
    return Stack(frames, frame.f_globals, complete=len(frames) < FRAMES_READ)


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


def _of_task(task: Any, threads: Threads, tasks_further_in: int = TASKS_FOLLOWED) -> Stack:
    if task.done():
        return Stack([], ended=True)
    coroutine = task.get_coro()
    if getattr(coroutine, "cr_running", False):
        return _of_running_task(task, coroutine.cr_frame, threads)
    frames, variables, innermost = _awaited(coroutine)
    inner = _awaited_task(task, innermost) if tasks_further_in else None
    if inner is None:
        return Stack(frames, variables, suspended=True, ready=_ready(task))
    if inner.done():
        return Stack(frames, variables, suspended=True, ready=True)
    stack = _of_task(inner, threads, tasks_further_in - 1)
    return stack._replace(frames=stack.frames + frames) if stack.frames else Stack(frames, variables, True)


def _awaited_task(task: Any, innermost: Any) -> Any:
    """Return the task that a suspended one awaits, directly or by `asyncio.shield` or `wait_for`; or None.

    SQLAlchemy closes its asyncio sessions and connections in a task of their own, which is shielded.
    """
    asyncio = sys.modules.get("asyncio")
    kind = getattr(asyncio, "Task", None)
    if kind is None:
        return None
    awaited = getattr(task, "_fut_waiter", None)
    if issubclass(type(awaited), kind):
        return awaited
    frame = getattr(innermost, "cr_frame", None)
    if frame is None or frame.f_globals is not getattr(sys.modules.get("asyncio.tasks"), "__dict__", None):
        # shield is an ordinary function: what is left of it is a callback of the future that it returned.
        return next((inner for inner in _shielded(awaited) if issubclass(type(inner), kind)), None)
    if frame.f_code.co_name == "wait_for":  # up to Python 3.11 with a task of its own
        # Up to Python 3.10 the frame has the local variables.
        inner_tasks = [local for local in gc.get_referents(innermost, frame) if issubclass(type(local), kind)]
        return inner_tasks[0] if len(inner_tasks) == 1 else None
    return None


def _shielded(future: Any) -> Iterator[Any]:
    """Yield what `asyncio.shield` shields behind this future."""
    asyncio = sys.modules.get("asyncio")
    kind = getattr(asyncio, "Future", None)
    if kind is None or not issubclass(type(future), kind):
        return
    for callback, *_ in getattr(future, "_callbacks", None) or ():
        if type(callback) is FunctionType and callback.__qualname__ == "shield.<locals>._outer_done_callback":
            for name, cell in zip(callback.__code__.co_freevars, callback.__closure__ or (), strict=True):
                if name == "inner":
                    yield cell.cell_contents


def _of_running_task(task: Any, outermost: FrameType | None, threads: Threads) -> Stack:
    """Return the stack of a task that runs now, in a thread."""
    if outermost is None:
        return NO_STACK
    for frame in threads.values():
        if _runs(frame, outermost):
            return _from(frame)
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


def _awaited(coroutine: Any) -> tuple[list[tuple[CodeType, int]], dict[str, Any] | None, Any]:
    """Return the frames of a chain of awaits, the innermost first, the globals of that, and its coroutine."""
    frames: list[tuple[CodeType, int]] = []
    variables: dict[str, Any] | None = None
    innermost: Any = None
    while len(frames) < FRAMES_READ:
        coroutine = _wrapped(coroutine)
        frame = _attribute(coroutine, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            break
        innermost = coroutine
        frames.append((frame.f_code, frame.f_lasti))
        variables = frame.f_globals
        if frame.f_code.co_name == "greenlet_spawn":  # SQLAlchemy's: the rest is in a greenlet
            inner = _frame_of_greenlet(coroutine, frame)
            if inner is not None:
                frames.extend(reversed(upwards(inner)))
                variables = inner.f_globals
        coroutine = _attribute(coroutine, "cr_await", "gi_yieldfrom", "ag_await")
    frames.reverse()
    return frames, variables, innermost


def _attribute(coroutine: Any, *names: str) -> Any:
    """Return the first of these attributes that is there and not None."""
    return next((value for name in names if (value := getattr(coroutine, name, None)) is not None), None)


#: What Python itself awaits in place of a coroutine or an asynchronous generator, by their types' names.
_WRAPPING: Final = frozenset(
    {"async_generator_asend", "async_generator_athrow", "coroutine_wrapper", "anext_awaitable"}
)
_WRAPPED: Final = (CoroutineType, AsyncGeneratorType, GeneratorType)


def _wrapped(awaited: Any) -> Any:
    """Return the coroutine or generator that an object of Python's own stands for; else the object."""
    for _ in range(3):  # anext() with a default wraps twice
        if type(awaited).__name__ not in _WRAPPING:
            break
        inner = [one for one in gc.get_referents(awaited) if type(one) in _WRAPPED or _wraps(one)]
        awaited = inner[0] if inner else None
    return awaited


def _wraps(referent: Any) -> bool:
    return type(referent).__name__ in _WRAPPING


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
        return _from(frame)
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


def places(stack: Stack) -> list[Place]:
    """Return code objects and lines of a stack's innermost frames."""
    return [(code, line_of(code, offset)) for code, offset in stack.frames[:FRAMES_READ]]

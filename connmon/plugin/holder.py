"""Who holds a connection, and at which call site: threads, asyncio tasks, greenlets.

Rules:

1. A checkout keeps a holder, nothing more: the thread's mark (40 ns), or a weak reference to the task or
   greenlet. Names and lines are found when a report is made, by the reporter's thread. A thread's number
   would not do: the next thread may get the number of one that has ended.
2. Where the holder of a long hold is *now* is found from outside: `sys._current_frames()`, a task's chain of
   awaits, the frame of a waiting greenlet.
3. A checkout whose call site is noted (`call_site_accounts.Sampling` decides) walks its own stack, and keeps
   a code object and a line number.
4. Which frame of a stack is the call site, the module `call_site` says.
5. No locks: under eventlet and gevent threading's locks belong to greenlets, and the reporter is a thread of
   the operating system. Nothing here raises.
"""

from __future__ import annotations

import _thread
import functools
import importlib
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from connmon.interrupts import interrupted
from connmon.plugin import call_site as frames
from connmon.plugin import unpatched
from connmon.plugin.call_site_accounts import CallSite, Whereabouts
from connmon.protocol.values import HolderIn

#: The most frames of a stack that are reported, and the most characters of a name or line.
STACK_FRAMES: Final = 32
TEXT_CHARACTERS: Final = 256

Holder: TypeAlias = Any
"""A thread's mark or its number, or a weak reference to a task or a greenlet."""

_active: dict[int, threading.Thread] = getattr(threading, "_active", {})
_frame_kinds: frames.FrameKinds | None = None


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


class Tracing(NamedTuple):
    """Which checkouts have their call site noted: `auto`, a sample where they are many; `all`; `off`, none.

    `held`: seconds after which a holder's whereabouts are checked.
    """

    trace: Literal["auto", "all", "off"] = "auto"
    held: float = 30.0
    profile_hz: float = 10.0


# --- At the checkout ------------------------------------------------------------------------


def holder_source(asynchronous: bool) -> Callable[[], Holder]:
    """Return a function that returns its caller as a holder; `asynchronous`: the dialect is for asyncio."""
    if asynchronous:
        current_task = importlib.import_module("asyncio").current_task

        def task() -> Holder:
            try:
                return weakref.ref(current_task())
            except (RuntimeError, TypeError):  # no loop here, or no task
                return mark()

        return task
    if unpatched.patched():
        current: Callable[[], Any] = importlib.import_module("greenlet").getcurrent
        return lambda: weakref.ref(current())
    return mark


def call_site() -> CallSite | None:
    """Return the call site on the caller's stack. None: none is found."""
    return frames.find(sys._getframe(2), _kinds(), _parents)


def project(names: Iterable[str]) -> None:
    """Count the packages of these names as the application, in this process."""
    global _frame_kinds
    packages = frozenset(names)
    known_packages = _frame_kinds.project if _frame_kinds is not None else frozenset()
    if not packages <= known_packages:
        _frame_kinds = frames.FrameKinds(known_packages | packages)


def _kinds() -> frames.FrameKinds:
    global _frame_kinds
    kinds = _frame_kinds
    if kinds is None:
        kinds = _frame_kinds = frames.FrameKinds(own=_own())
    return kinds


def _own() -> frozenset[str]:
    try:
        main = vars(sys.modules["__main__"])
        return frames.own_packages(sys.argv, main, os.environ, list(sys.modules))
    except Exception as error:
        if interrupted(error):
            raise
        return frozenset()


def _parents() -> list[FrameType | None]:
    suspended: list[FrameType | None] = []
    # SQLAlchemy's asyncio runs in a greenlet of its own, below the task's.
    greenlet = sys.modules.get("greenlet")
    if greenlet is not None:
        parent = greenlet.getcurrent().parent
        while parent is not None:
            suspended.append(parent.gr_frame)
            parent = parent.parent
    return suspended


# --- At the report --------------------------------------------------------------------------


def name(holder: Holder) -> str:
    """Return the name of a thread, task or greenlet, of at most 256 characters.

    It is "thread <ident>" where a thread has no name, and "(ended)" where a task or greenlet is gone.
    """
    if isinstance(holder, ThreadMark) and holder.ended:
        return _text(f"{holder.name or f'thread {holder.ident}'} (ended)")
    if isinstance(holder, (int, ThreadMark)):
        ident = holder if isinstance(holder, int) else holder.ident
        name = getattr(_active.get(ident), "_name", None)
        return _text(name) if isinstance(name, str) else f"thread {ident}"
    target = holder()
    if target is None:
        return "(ended)"
    try:
        if hasattr(target, "get_name"):
            return _text(str(target.get_name()))
        return _text(str(getattr(target, "name", None) or f"greenlet {id(target):#x}"))
    except Exception:
        return "(no name)"


UNKNOWN: Final = Whereabouts(None, None, ())


def whereabouts(holder: Holder, code: CodeType | None = None, mine: bool = True) -> Whereabouts:
    """Return where the holder is now.

    `code` is the function that took the connection, None where that is not known. `mine` is False where the
    holder has taken another connection since: then the driver on its stack works with that one.
    """
    try:
        stack = list(_stack_of(holder))
        if not stack:
            return Whereabouts(_without_stack(holder), None, ())
        kinds = _kinds()
        call_site_place = frames.find_in(frames.above_driver(stack, kinds), kinds)
        where: HolderIn = "application"
        if mine and frames.in_database(stack, kinds, code):
            where = "database"
        elif code is not None and all(code is not frame_code for frame_code, _ in stack):
            where = "elsewhere"
        elif frames.waits(stack, kinds):
            where = "waiting"
        lines = tuple(frame_text(*place) for place in stack[:STACK_FRAMES])
        return Whereabouts(where, None if call_site_place is None else frame_text(*call_site_place), lines)
    except Exception:  # it went on meanwhile
        return UNKNOWN


def in_driver() -> frozenset[int]:
    """Return the idents of the threads in which SQLAlchemy calls a driver now."""
    try:
        kinds = _kinds()
        threads = list(sys._current_frames().items())
        return frozenset(ident for ident, frame in threads if frames.calls_driver(_upwards(frame), kinds))
    except Exception:
        return frozenset()


def frame_text(code: CodeType, number: int) -> str:
    """Return "file.py:412 function", the file relative to the directory that it was imported from."""
    path = code.co_filename
    roots = [root for root in sys.path if root and path.startswith(os.path.join(root, ""))]
    if roots:
        path = path[len(os.path.join(max(roots, key=len), "")) :]
    function = code.co_name
    if function in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):  # name the function around it
        names = getattr(code, "co_qualname", function).split(".")
        function = next((name for name in reversed(names) if not name.startswith("<")), function)
    suffix = f":{number} {function[: TEXT_CHARACTERS // 2]}"
    room = TEXT_CHARACTERS - len(suffix)
    if len(path) > room:  # its end says more
        path = "..." + path[3 - room :]
    return _text(path + suffix)


def _stack_of(holder: Holder) -> Iterable[frames.Place]:
    if isinstance(holder, ThreadMark):
        return () if holder.ended else _upwards(sys._current_frames().get(holder.ident))
    if isinstance(holder, int):
        return _upwards(sys._current_frames().get(holder))
    target = holder()
    if target is None:
        return ()
    if hasattr(target, "get_coro"):
        coroutine = target.get_coro()
        if getattr(coroutine, "cr_running", False) and (running := _running(coroutine.cr_frame)):
            return running
        return reversed(list(_awaited(coroutine)))
    return _upwards(getattr(target, "gr_frame", None))


def _without_stack(holder: Holder) -> HolderIn | None:
    """Return where a holder without a frame is: "ended"; None where that cannot be found out."""
    if isinstance(holder, (int, ThreadMark)):
        if isinstance(holder, ThreadMark) and holder.ended:
            return "ended"
        thread = _active.get(holder if isinstance(holder, int) else holder.ident)
        if thread is None or isinstance(thread, threading._DummyThread) or not thread.is_alive():
            return "ended"
        return None
    target = holder()
    if target is None or getattr(target, "dead", False) or (hasattr(target, "done") and target.done()):
        return "ended"
    return None


def _upwards(frame: FrameType | None) -> Iterator[frames.Place]:
    while frame is not None:
        yield frame.f_code, frame.f_lineno or 0
        frame = frame.f_back


def _running(frame: FrameType | None) -> list[frames.Place]:
    """Return the stack of the thread that runs this coroutine's frame now; empty where none does."""
    for innermost in sys._current_frames().values():
        outer: FrameType | None = innermost
        while outer is not None:
            if outer is frame:
                return list(_upwards(innermost))
            outer = outer.f_back
    return []


def _awaited(coroutine: Any) -> Iterator[frames.Place]:
    """Yield the place of each coroutine in a chain of awaits, the outermost first."""
    for _ in range(1000):
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            frame = getattr(coroutine, "ag_frame", None)
        if frame is None:
            return
        yield frame.f_code, frame.f_lineno or 0
        if frame.f_code.co_name == "greenlet_spawn":  # SQLAlchemy's: the rest is in a greenlet
            greenlet = frame.f_locals.get("context")
            yield from reversed(list(_upwards(getattr(greenlet, "gr_frame", None))))
        inner = getattr(coroutine, "cr_await", None)
        coroutine = inner if inner is not None else getattr(coroutine, "gi_yieldfrom", None)


def _text(text: str) -> str:
    """Return the text as the wire accepts it: no lone surrogates, at most TEXT_CHARACTERS."""
    return text[:TEXT_CHARACTERS].encode("utf-8", "replace").decode()

"""Who has a connection, and in which line of code: threads, asyncio tasks, greenlets.

Rules:

1. A checkout keeps a holder, nothing more: the thread's mark (40 ns), or a weak reference to the task or
   greenlet. Names and lines are found when a report is made, by the reporter's thread. A thread's number
   would not do: the next thread gets that of one that has ended.
2. Of a connection that is held long, what the holder does *now* is looked at from outside:
   `sys._current_frames()`, the chain of awaits of a task, the frame of a greenlet that waits.
3. A checkout whose line is noted (`sites.Sampling` decides) walks its own stack, and keeps a code object
   and a number.
4. The line that counts is the application's; which one that is, the module `call_site` says.
5. No locks: under eventlet and gevent threading's belong to greenlets, and the reporter is a
   native thread. Nothing here raises.
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
from connmon.plugin.call_site_accounts import Look, Site
from connmon.protocol.values import HolderIn

#: Frames of a stack that are reported at most, and characters of a line.
DEPTH: Final = 32
LONGEST: Final = 256

Holder: TypeAlias = Any
"""A thread's mark or its number, or a weak reference to a task or a greenlet."""

_active: dict[int, threading.Thread] = getattr(threading, "_active", {})
_known_kinds: frames.Kinds | None = None


class Mark:
    """By what a thread is known. Its object is not kept alive, its name is."""

    __slots__ = ("_thread", "ident", "name")

    def __init__(self) -> None:
        self.ident = unpatched.get_ident()
        thread = _active.get(self.ident)
        self._thread = None if thread is None else weakref.ref(thread)
        name = getattr(thread, "_name", None)
        self.name = name if isinstance(name, str) else None

    @property
    def ended(self) -> bool:
        """Whether the thread has ended. One that Python did not start is taken not to have."""
        if self._thread is None:
            return False
        thread = self._thread()
        return thread is None or _active.get(self.ident) is not thread


class _Marks(_thread._local):
    """The mark of each thread, made when it is asked for the first time there."""

    def __init__(self) -> None:
        self.mark = Mark()


#: Returns the mark of the thread that calls it; no function of Python's own is called for that.
mark: Final[Callable[[], Mark]] = functools.partial(operator.attrgetter("mark"), _Marks())


class Tracing(NamedTuple):
    """Whose lines are noted at a checkout: `auto`, a sample where they are many; `all`; `off`, nobody's."""

    trace: Literal["auto", "all", "off"] = "auto"
    held: float = 30.0


# --- At the checkout ------------------------------------------------------------------------


def asking(asynchronous: bool) -> Callable[[], Holder]:
    """Return what tells who calls it, for a pool of an asyncio dialect or of another."""
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


def call_site() -> Site | None:
    """Return the line of the application that this was called from."""
    return frames.find(sys._getframe(2), _kinds(), _parents)


def project(names: Iterable[str]) -> None:
    """Have the packages of these names count as the application, in this process."""
    global _known_kinds
    more = frozenset(names)
    before = _known_kinds.project if _known_kinds is not None else frozenset()
    if not more <= before:
        _known_kinds = frames.Kinds(before | more)


def _kinds() -> frames.Kinds:
    global _known_kinds
    kinds = _known_kinds
    if kinds is None:
        kinds = _known_kinds = frames.Kinds(own=_own())
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
    """Return the name of a thread, task or greenlet.

    "thread <ident>" where a thread has no name; the wire takes 256 characters.
    """
    if isinstance(holder, Mark) and holder.ended:
        return _text(f"{holder.name or f'thread {holder.ident}'} (ended)")
    if isinstance(holder, (int, Mark)):
        ident = holder if isinstance(holder, int) else holder.ident
        name = getattr(_active.get(ident), "_name", None)
        return _text(name) if isinstance(name, str) else f"thread {ident}"
    who = holder()
    if who is None:
        return "(ended)"
    try:
        if hasattr(who, "get_name"):
            return _text(str(who.get_name()))
        return _text(str(getattr(who, "name", None) or f"greenlet {id(who):#x}"))
    except Exception:
        return "(no name)"


NOWHERE: Final = Look(None, None, ())


def look(holder: Holder, code: CodeType | None = None, mine: bool = True) -> Look:
    """Return where the holder is now; `code` took the connection, None: not known.

    Not `mine`: the holder has taken another connection since, so that one is what the driver works with.
    """
    try:
        stack = list(_stack_of(holder))
        if not stack:
            return Look(_without_stack(holder), None, ())
        kinds = _kinds()
        site = frames.find_in(frames.above_driver(stack, kinds), kinds)
        where: HolderIn = "application"
        if mine and frames.in_database(stack, kinds, code):
            where = "database"
        elif code is not None and all(code is not frame_code for frame_code, _ in stack):
            where = "elsewhere"
        elif frames.waits(stack, kinds):
            where = "waiting"
        lines = tuple(line(*place) for place in stack[:DEPTH])
        return Look(where, None if site is None else line(*site), lines)
    except Exception:  # it went on while it was looked at
        return NOWHERE


def in_driver() -> frozenset[int]:
    """Return the numbers of the threads that work with a driver now, by way of SQLAlchemy."""
    try:
        kinds = _kinds()
        threads = list(sys._current_frames().items())
        return frozenset(ident for ident, frame in threads if frames.calls_driver(_upwards(frame), kinds))
    except Exception:
        return frozenset()


def line(code: CodeType, number: int) -> str:
    """Return "file.py:412 function", the file below the directory that it was imported from."""
    path = code.co_filename
    roots = [root for root in sys.path if root and path.startswith(os.path.join(root, ""))]
    if roots:
        path = path[len(os.path.join(max(roots, key=len), "")) :]
    function = code.co_name
    if function in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):  # it is its function's line
        names = getattr(code, "co_qualname", function).split(".")
        function = next((name for name in reversed(names) if not name.startswith("<")), function)
    where = f":{number} {function[: LONGEST // 2]}"
    room = LONGEST - len(where)
    if len(path) > room:  # its end tells more
        path = "..." + path[3 - room :]
    return _text(path + where)


def _stack_of(holder: Holder) -> Iterable[Site]:
    if isinstance(holder, Mark):
        return () if holder.ended else _upwards(sys._current_frames().get(holder.ident))
    if isinstance(holder, int):
        return _upwards(sys._current_frames().get(holder))
    who = holder()
    if who is None:
        return ()
    if hasattr(who, "get_coro"):
        coroutine = who.get_coro()
        if getattr(coroutine, "cr_running", False) and (running := _running(coroutine.cr_frame)):
            return running
        return reversed(list(_awaited(coroutine)))
    return _upwards(getattr(who, "gr_frame", None))


def _without_stack(holder: Holder) -> HolderIn | None:
    """Return where a holder is that has no frame: ended, or not in Python, or where nobody can look."""
    if isinstance(holder, (int, Mark)):
        if isinstance(holder, Mark) and holder.ended:
            return "ended"
        thread = _active.get(holder if isinstance(holder, int) else holder.ident)
        if thread is None or isinstance(thread, threading._DummyThread) or not thread.is_alive():
            return "ended"
        return None
    who = holder()
    if who is None or getattr(who, "dead", False) or (hasattr(who, "done") and who.done()):
        return "ended"
    return None


def _upwards(frame: FrameType | None) -> Iterator[Site]:
    while frame is not None:
        yield frame.f_code, frame.f_lineno or 0
        frame = frame.f_back


def _running(frame: FrameType | None) -> list[Site]:
    """Return the stack of the thread that runs this frame of a coroutine right now; empty: none does."""
    for innermost in sys._current_frames().values():
        each: FrameType | None = innermost
        while each is not None:
            if each is frame:
                return list(_upwards(innermost))
            each = each.f_back
    return []


def _awaited(coroutine: Any) -> Iterator[Site]:
    """Yield where each of a chain of coroutines stands, the outermost first."""
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
    """Return the text as the wire can take it: no lone surrogates, not too long."""
    return text[:LONGEST].encode("utf-8", "replace").decode()

"""Who holds a connection, and at which call site: threads, asyncio tasks, greenlets.

Rules:

1. A checkout keeps a holder, nothing more: the thread's mark (40 ns), or a weak reference to the task or
   greenlet. Names and lines are found when a report is made, by the reporter's thread. A thread's number
   would not do: the next thread may get the number of one that has ended.
2. Where a holder is *now* is found from outside (`stacks.py`): for a hold that is long (`whereabouts`), and
   for the profile of holds (`look`).
3. A checkout whose call site is noted (`call_site_accounts.Sampling` decides) walks its own stack, and keeps
   a code object and a line number.
4. Which frame of a stack is the call site, the module `call_site` says.
5. No locks: under eventlet and gevent threading's locks belong to greenlets, and the reporter is a thread of
   the operating system. Nothing here raises.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FrameType
from typing import Any, Final, Literal, NamedTuple

from connmon.interrupts import interrupted
from connmon.plugin import call_site as frames
from connmon.plugin import stacks, unpatched
from connmon.plugin import whereabouts as whereabouts_of
from connmon.plugin.call_site_accounts import CallSite, Held, Look, Whereabouts
from connmon.plugin.stacks import Holder, ThreadMark, mark
from connmon.plugin.whereabouts import Codes, lend, looks, may_be_lent, threads_of
from connmon.protocol.values import HolderIn

#: The most frames of a stack that are reported, and the most characters of a name or line.
STACK_FRAMES: Final = 32
TEXT_CHARACTERS: Final = 256

_frame_kinds: frames.FrameKinds | None = None
_codes: Codes | None = None


class Tracing(NamedTuple):
    """Which checkouts have their call site noted: `auto`, a sample where they are many; `all`; `off`, none.

    `held`: seconds after which a holder's whereabouts are checked. `profile_hz`: looks at holders per second
    on average, for the profile of holds; 0: none.
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


def _known_codes() -> Codes:
    global _codes
    kinds, codes = _kinds(), _codes
    if codes is None or codes.kinds is not kinds:
        codes = _codes = Codes(kinds)
    return codes


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
        name = getattr(stacks.thread_of(ident), "_name", None)
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
        (read,) = stacks.read([holder])
        stack = stacks.places(read)
        if not stack:
            return Whereabouts("ended" if read.ended else None, None, ())
        kinds = _kinds()
        call_site_place = frames.find_in(frames.above_driver(stack, kinds), kinds)
        where: HolderIn = "application"
        if mine and frames.in_database(stack, kinds, code):
            where = "database"
        elif code is not None and read.complete and all(code is not frame_code for frame_code, _ in stack):
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
        threads = stacks.read_threads().items()
        return frozenset(ident for ident, stack in threads if frames.calls_driver(stack.frames, kinds))
    except Exception:
        return frozenset()


def look(held: Sequence[Held], other_holders: Iterable[Holder] = ()) -> list[Look]:
    """Return where the holder of each of these connections is, all of one moment. Raises nothing.

    `other_holders`: those who hold connections which are not in `held`.
    """
    try:
        # All frames are released before the first is judged: see `stacks`.
        holders = [hold.holder for hold in held]
        read = stacks.read(holders)
        codes = _known_codes()
        found = looks(held, read, codes)
        if may_be_lent(held, found):
            strangers = stacks.read_threads(without=threads_of([*holders, *other_holders]))
            found = lend(held, found, strangers.values(), codes)
        return found
    except Exception as error:
        if interrupted(error):
            raise
        return [Look(None)] * len(held)


def application(look: Look) -> tuple[frames.Place, ...]:
    """Return the application's frames of a look, the innermost first, as far as the server."""
    return whereabouts_of.application(look, _known_codes())


def stack_texts(look: Look) -> tuple[str, ...]:
    """Return the innermost frames of a look as reports name them, but in any case the application's."""
    return tuple([frame_text(*place) for place in whereabouts_of.shown(look, _known_codes())])


def frame_text(code: CodeType, number: int) -> str:
    """Return "file.py:412 function", the file relative to the directory that it was imported from."""
    path, function = _path(code.co_filename, tuple(sys.path)), code.co_name
    if function in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):  # name the function around it
        names = getattr(code, "co_qualname", function).split(".")
        function = next((name for name in reversed(names) if not name.startswith("<")), function)
    suffix = f":{number} {function[: TEXT_CHARACTERS // 2]}"
    room = TEXT_CHARACTERS - len(suffix)
    if len(path) > room:  # its end says more
        path = "..." + path[3 - room :]
    return _text(path + suffix)


@functools.lru_cache(maxsize=1_000)
def _path(path: str, directories: tuple[str, ...]) -> str:
    """Return a file's path below the longest of these directories that it is in."""
    return frames.below(path, directories) or path


def _text(text: str) -> str:
    """Return the text as the wire accepts it: no lone surrogates, at most TEXT_CHARACTERS."""
    return text[:TEXT_CHARACTERS].encode("utf-8", "replace").decode()

"""Where holders of connections are: judged from stacks that `stacks.py` has read. Pure.

This module is about looks, which the profile of holds is made from; the labels are those of `values.Where`.

Rules:

1. `database`: the driver is innermost, whatever it uses of other libraries, or the application's innermost
   frame stands at a method of a cursor in C. SQLAlchemy's own work is "sqlalchemy".
2. A thread works with the connection that it took last, so for older ones it is `other connection`.
3. `waiting`: SQLAlchemy's pool is at a checkout, be it that it waits for a connection or makes one.
4. Else the label is what the application's innermost frame has called: the package, or for Python's own
   library the function. What only wraps calls does not count where it leads further (`_WRAPPERS`).
5. A connection may be handed to another thread (`holder_checks.py`, rule 4): see `lend`.
6. The function that took the connection is often gone: a helper has made the first query, and the function
   that called it goes on with the transaction. So a holder is `elsewhere` only if no function of the
   application is on its stack, or if it has taken another connection since.
7. Labels are few: names of packages and of functions of Python's library, never a number, an id or a path.
8. What is known of a code object is kept as `call_site.FrameKinds` keeps kinds, and for as long.
"""

from __future__ import annotations

import os
import re
import sys
import weakref
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any, Final

from connmon.interrupts import interrupted
from connmon.plugin import call_site, called
from connmon.plugin.call_site import FrameKinds, Place
from connmon.plugin.call_site_accounts import Held, Look
from connmon.plugin.stacks import Holder, Stack, ThreadMark, line_of
from connmon.protocol.values import (
    ELSEWHERE,
    ENDED,
    EVENT_LOOP,
    IN_DATABASE,
    OTHER_CONNECTION,
    OWN_CODE,
    WAITING,
)

#: A task awaits something whose maker is not known.
FUTURE: Final = "asyncio.Future"

_MEANINGS: Final = frozenset({IN_DATABASE, WAITING, ELSEWHERE, ENDED})
LABEL_CHARACTERS: Final = 64
#: The most frames of a stack that a look returns.
STACK_FRAMES: Final = 16
#: If a stack is longer, this many of its frames are further in than the application's innermost one.
INNER_FRAMES: Final = 7


# --- What is known of a code object ---------------------------------------------------------

#: They stand between the application and what it calls.
_WRAPPERS: Final = frozenset(
    {
        "contextlib", "functools", "asyncio", "wrapt", "decorator", "debtcollector", "tenacity", "retrying",
        "backoff", "osprofiler", "sentry_sdk", "opentelemetry", "newrelic", "ddtrace", "elasticapm",
        "greenlet",
    }
)  # fmt: skip
#: Of these, the ones that do no work themselves.
_TRANSPARENT: Final = frozenset({"contextlib", "functools", "greenlet"})
#: They stand in for functions of Python's library, so the function says more than the package.
_GREEN: Final = frozenset({"gevent", "eventlet"})
#: Methods of cursors and connections. Of a driver in C they have no frame.
_METHODS_OF_DRIVERS: Final = frozenset(
    {
        "execute", "executemany", "executescript", "callproc", "fetchone", "fetchmany", "fetchall", "nextset",
        "commit", "rollback",
    }
)  # fmt: skip
_FROZEN: Final = re.compile(r"<frozen ([\w.]+)>\Z")
_OF_SQLALCHEMY: Final = frozenset(
    {call_site.SQLALCHEMY, call_site.BOUNDARY, call_site.ACQUIRES, call_site.WAITS, call_site.AWAITS}
)
_DRIVER: Final = frozenset({call_site.DRIVER, call_site.BOUNDARY})
_ACQUIRES: Final = frozenset({call_site.ACQUIRES, call_site.WAITS})


class CodeFacts:
    """What is known of one code object."""

    __slots__ = ("calls", "label", "lines", "package")

    def __init__(self, package: str, label: str) -> None:
        self.package = package
        """Its top-level package or module; empty: not known."""
        self.label = label
        """What a call of it from the application is labelled; empty: nothing in particular."""
        self.calls: called.Calls | None = None
        """What it calls; None: not needed yet."""
        self.lines: dict[int, int] = {}
        """Line by offset, as far as needed yet."""


class Codes:
    """What is known of all code objects seen so far."""

    def __init__(self, kinds: FrameKinds, code_objects: int = call_site.CODE_OBJECTS) -> None:
        """`code_objects`: the most that are kept."""
        self.kinds = kinds
        self._limit = code_objects
        self.known: dict[int, CodeFacts] = {}
        self._references: dict[int, weakref.ref[CodeType]] = {}

    def kind(self, code: CodeType) -> int:
        """Return the kind of frame, of a HANDS_ON frame what it is otherwise."""
        kind = self.kinds.known.get(id(code))
        if kind is None:
            kind = self.kinds.of(code)
        if kind == call_site.HANDS_ON:
            _, kind = self.kinds.lines.get(id(code), (None, call_site.PLUMBING_FRAME))
        return kind

    def facts(self, code: CodeType) -> CodeFacts:
        """Return what is known of this code object."""
        key = id(code)
        facts = self.known.get(key)
        if facts is not None:
            return facts
        if len(self.known) >= self._limit:
            self.known, self._references = {}, {}
        known, references = self.known, self._references

        def ended(_: object, key: int = key) -> None:
            known.pop(key, None)
            references.pop(key, None)

        references[key] = weakref.ref(code, ended)
        facts = known[key] = CodeFacts(*_names(code, self.kind(code)))
        return facts

    def calls(self, code: CodeType) -> called.Calls:
        """Return what this function calls."""
        facts = self.facts(code)
        if facts.calls is None:
            facts.calls = called.calls(code)
        return facts.calls

    def place(self, code: CodeType, offset: int) -> Place:
        """Return code object and line."""
        lines = self.facts(code).lines
        line = lines.get(offset)
        if line is None:
            line = lines[offset] = line_of(code, offset)
        return code, line


def _names(code: CodeType, kind: int) -> tuple[str, str]:
    """Return package and label of a code object."""
    if kind in _OF_SQLALCHEMY:
        return "sqlalchemy", "sqlalchemy"
    path, frozen = code.co_filename, _FROZEN.match(code.co_filename)
    if frozen or kind == call_site.PYTHON:
        module = frozen[1] if frozen else _relative(path, call_site.PYTHON_DIRECTORIES)
        package = _top(module)
        return package, _sanitized(_function(package, code.co_name))
    if path.startswith("<"):
        return "", ""
    package = _top(_relative(path, sys.path))
    if package in _GREEN:
        return package, _sanitized(_function(package, code.co_name))
    return package, _sanitized(package)


def _relative(path: str, directories: Sequence[Any]) -> str:
    """Return the path below the longest of these directories that it is in; else only the file's name."""
    for mark in call_site.INSTALLED_MARKS:
        _, found, below = path.rpartition(mark)
        if found:
            return below
    return call_site.below(path, directories) or os.path.basename(path)


def _top(module: str) -> str:
    """Return the first name of a module's path or dotted name."""
    return re.split(r"[./\\]", module, maxsplit=1)[0].lstrip("_")


def _function(package: str, function: str) -> str:
    return f"{package}.{function}" if package and function.isidentifier() else package


def _sanitized(label: str) -> str:
    text = "".join(character if character.isalnum() or character in "._-" else "?" for character in label)
    # A package may have the name of a label that means something else.
    return (f"package {text}" if text in _MEANINGS else text)[:LABEL_CHARACTERS]


# --- One stack ------------------------------------------------------------------------------


def looks(held: Sequence[Held], stacks: Sequence[Stack], codes: Codes) -> list[Look]:
    """Return where the holder of each connection is, from the stack of each. Raises nothing."""
    found = []
    for hold, stack in zip(held, stacks, strict=True):
        try:
            found.append(_look(hold, stack, codes))
        except Exception as error:
            if interrupted(error):
                raise
            found.append(Look(None))
    return found


def _look(hold: Held, stack: Stack, codes: Codes) -> Look:
    if not stack.frames:
        return Look(ENDED if stack.ended else None, returned=bool(stack.ended))
    kinds, at = _inner_kinds(hold.code, stack, codes)
    returned = hold.code is not None and not _is_on(hold.code, stack)
    where = _where(stack, codes, kinds, at, mine=hold.newest, returned=returned)
    return Look(where, stack.frames, at, returned)


def _is_on(taker: CodeType, stack: Stack) -> bool:
    for code, _ in stack.frames:  # noqa: SIM110  # any() takes three times as long
        if code is taker:
            return True
    return False


def application(look: Look, codes: Codes) -> tuple[Place, ...]:
    """Return the frames of the application and of libraries, the innermost first, as far as the server."""
    places: list[Place] = []
    for code, offset in look.frames:
        kind = codes.kind(code)
        if kind == call_site.SERVER:
            break
        if kind <= call_site.HANDS_ON:
            places.append(codes.place(code, offset))
            if len(places) == STACK_FRAMES:
                break
    return tuple(places)


def shown(look: Look, codes: Codes) -> tuple[Place, ...]:
    """Return the frames to show: the innermost, but in any case the application's."""
    first, frames = 0, look.frames
    if look.at is not None and len(frames) > STACK_FRAMES:
        first = min(max(0, look.at - INNER_FRAMES), len(frames) - STACK_FRAMES)
    return tuple([codes.place(*frame) for frame in frames[first : first + STACK_FRAMES]])


def _inner_kinds(taker: CodeType | None, stack: Stack, codes: Codes) -> tuple[list[int], int | None]:
    """Return the position of the application's innermost frame, and the kinds of the frames further in.

    Frames further out than the function that took the connection have nothing to do with it. Where no frame
    is the application's by its kind, the library that took the connection is, or the outermost one. Where
    there is none either the position is None, and the kinds are those of all frames.
    """
    known = codes.kinds.known
    kinds: list[int] = []
    library: int | None = None
    for position, (code, _) in enumerate(stack.frames):
        kind = known.get(id(code))
        if kind is None:
            kind = codes.kind(code)
            known = codes.kinds.known
        elif kind == call_site.HANDS_ON:
            kind = codes.kind(code)
        if kind == call_site.APPLICATION:
            return kinds, position
        kinds.append(kind)
        if kind == call_site.LIBRARY:
            library = position
        if code is taker:
            library = position
            break
        if kind == call_site.SERVER and library is not None:
            break
    if library is None:
        return kinds, None
    package = codes.facts(stack.frames[library][0]).package
    for position, (code, _) in enumerate(stack.frames[:library]):
        if kinds[position] == call_site.LIBRARY and codes.facts(code).package == package:
            return kinds[:position], position
    return kinds[:library], library


def _where(
    stack: Stack, codes: Codes, kinds: Sequence[int], at: int | None, *, mine: bool, returned: bool
) -> str | None:
    """Return the label. `kinds` are those of the frames further in than the application's, which is `at`."""
    acquires = not _ACQUIRES.isdisjoint(kinds)
    in_driver = not acquires and (_in_driver(kinds) or (at == 0 and _at_cursor(stack, codes)))
    works = mine and at is not None
    if stack.ready and (works or not returned):
        return EVENT_LOOP
    if in_driver and mine:
        return IN_DATABASE
    if returned and stack.complete and not works:
        return ELSEWHERE
    if in_driver:
        return OTHER_CONNECTION
    if acquires:
        return WAITING
    return None if at is None else _label(stack, codes, at)


def _in_driver(kinds: Sequence[int]) -> bool:
    """Return whether the driver is innermost, apart from what it uses itself."""
    for kind in kinds:
        if kind in _DRIVER:
            return True
        if kind == call_site.SQLALCHEMY:
            return False
    return False


def _at_cursor(stack: Stack, codes: Codes) -> bool:
    """Return whether the innermost frame calls a method in C that has the name of a cursor's."""
    code, offset = stack.frames[0]
    name = codes.calls(code).called.get(offset)
    if name is None or not name.attributes or name.attributes[-1] not in _METHODS_OF_DRIVERS:
        return False
    return called.resolved(name, stack.variables or {}) is None


def _label(stack: Stack, codes: Codes, at: int) -> str:
    """Return the label of what the frame at this position has called."""
    if at == 0:
        return _innermost(stack, codes)
    wrapper = transparent = ""
    for position in range(at - 1, -1, -1):
        facts = codes.facts(stack.frames[position][0])
        if not facts.label:
            continue
        if facts.package not in _WRAPPERS:
            # Of Python's library what a wrapper uses itself: `tenacity` sleeps, `asyncio.wait` selects.
            python = codes.kind(stack.frames[position][0]) == call_site.PYTHON
            return wrapper if python and wrapper else facts.label
        if facts.package in _TRANSPARENT:
            transparent = transparent or facts.label
        else:
            wrapper = wrapper or facts.label
    return wrapper or transparent or OWN_CODE


def _innermost(stack: Stack, codes: Codes) -> str:
    """Return the label of what the application's frame calls or awaits, which has no frame."""
    code, offset = stack.frames[0]
    calls, variables = codes.calls(code), stack.variables or {}
    if stack.suspended:
        name = calls.awaited.get(offset)
        maker = None if name is None else called.python_function(called.resolved(name, variables))
        if maker is None or codes.kind(maker) == call_site.APPLICATION:
            return FUTURE
        return codes.facts(maker).label or FUTURE
    name = calls.called.get(offset)
    function = None if name is None else called.c_function(called.resolved(name, variables))
    return OWN_CODE if function is None else _sanitized(function)


# --- Connections in other threads -----------------------------------------------------------


def may_be_lent(held: Sequence[Held], found: Sequence[Look]) -> bool:
    """Return whether another thread may work with one of these connections."""
    return any(_lendable(hold, look) for hold, look in zip(held, found, strict=True))


def lend(
    held: Sequence[Held],
    found: Sequence[Look],
    strangers: Iterable[Stack],
    codes: Codes,
) -> list[Look]:
    """Return the looks, with connections in the database that threads without one work with.

    `strangers` are the stacks of threads that hold nothing. Those in a driver work with what others have
    taken: with the newest connections that their holders do not work with.
    """
    number_at_work = 0
    for stack in strangers:
        if call_site.calls_driver(stack.frames, codes.kinds):
            number_at_work += 1
    lendable = [number for number, hold in enumerate(held) if _lendable(hold, found[number])]
    lendable.sort(key=lambda number: held[number].since, reverse=True)
    lent = set(lendable[:number_at_work])
    return [look._replace(where=IN_DATABASE) if number in lent else look for number, look in enumerate(found)]


def _lendable(hold: Held, look: Look) -> bool:
    left = look.returned and look.where != IN_DATABASE
    return (left or (hold.code is None and look.where is None)) and _ident(hold.holder) is not None


def threads_of(holders: Iterable[Holder]) -> set[int]:
    """Return the numbers of the threads among these holders."""
    return {ident for holder in holders if (ident := _ident(holder)) is not None}


def _ident(holder: Holder) -> int | None:
    """Return the number of a thread; None where the holder is none, or has ended."""
    if isinstance(holder, ThreadMark):
        return -1 if holder.ended else holder.ident
    return holder if isinstance(holder, int) else None

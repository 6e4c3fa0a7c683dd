"""The waits for locks on a database server, and how one session is followed through them. Pure.

- A server is asked for all waits at once, or for one session and then, step by step, for its blockers (or for
  the sessions that wait for it). A limit of rows may cut the first; it cuts the second only on one step.
- Where a limit cuts, no session is reported to wait for nobody unless that is known.
- What the account may not see, or the server does not record, is one line in `Locks.problem`. A session that
  waits without a known blocker is in `Locks.unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from connmon.database.settings import LockLimits
from connmon.errors import ConnmonError

Query: TypeAlias = Callable[[str], Sequence[Any]]
"""Returns the rows of a statement. For locks it raises Unseen."""


class Unseen(ConnmonError):
    """The server did not answer a query for locks; the message is the server's."""


class Wait(NamedTuple):
    """One session waits for a lock that another one has, or has asked for before."""

    waiting: int
    blocking: int
    """0: a transaction without a session, such as a prepared one."""


class Locks(NamedTuple):
    """The waits for locks on a server at one moment."""

    waits: tuple[Wait, ...] = ()
    unknown: tuple[int, ...] = ()
    """Sessions that wait for a lock whose blocker is not seen."""
    problem: str | None = None
    """Why the answer is incomplete. None: it is complete."""
    partial: bool = False
    """Whether a session without a wait here may wait all the same."""


Step: TypeAlias = Callable[[Sequence[int], Collection[int]], Locks]
"""Given some sessions and all sessions seen so far, returns the waits of the former (or the waits for
them): at least one for each waiting session, and upwards one for each blocker that is not among those
seen."""


def follow(session: int, step: Step, limits: LockLimits, waiters: bool = False) -> Locks:
    """Return the waits of a session and, step by step, of its blockers.

    `waiters`: the waits for it instead, and for the sessions that wait for it.
    """
    waits: dict[Wait, None] = {}
    unknown: dict[int, None] = {}
    problems: dict[str, None] = {}
    seen, asked, partial = {session}, [session], False
    for _ in range(limits.steps):
        locks = step(asked, seen)
        waits.update(dict.fromkeys(locks.waits))
        unknown.update(dict.fromkeys(locks.unknown))
        if locks.problem is not None:
            problems[locks.problem] = None
        partial |= locks.partial
        if locks.partial and not waiters:  # a session that seems to wait for nobody may wait: it is no root
            waiting = {wait.waiting for wait in locks.waits}
            unknown.update(dict.fromkeys(number for number in asked if number not in waiting))
        # 0 is a transaction without a session, which waits for nobody.
        asked = sorted({wait.waiting if waiters else wait.blocking for wait in locks.waits} - seen - {0})
        seen.update(asked)
        if not asked:
            break
    else:
        partial = True
        unknown.update(dict.fromkeys(asked))
        whom = "that wait for it" if waiters else "that it waits for"
        problems[f"those {whom} by more than {limits.steps} others are left out"] = None
    if waiters:
        for wait in waits:
            unknown.pop(wait.waiting, None)
    return Locks(tuple(waits), tuple(unknown), "; ".join(problems) or None, partial)


def listed(numbers: Iterable[int]) -> str:
    """Return session ids for an IN of SQL."""
    return ", ".join(str(int(number)) for number in numbers)


def unique_waits(rows: Iterable[Any]) -> tuple[Wait, ...]:
    """Return the waits without duplicates and without a session's waits for itself (parallel workers)."""
    waits = (Wait(int(waiting), int(blocking)) for waiting, blocking in rows)
    return tuple(wait for wait in dict.fromkeys(waits) if wait.waiting != wait.blocking)


def beyond(rows: str, limits: LockLimits) -> str:
    """Return the name of what a limit of rows has cut."""
    return f"{rows} beyond {limits.rows}"


def cut_problem(left_out: Iterable[str], partial: bool) -> str:
    """Return the problem line for parts that limits have cut."""
    others = "whom others wait for is not known" + ", and a root may wait too" * partial
    return f"{' and '.join(left_out)} are left out: {others}"

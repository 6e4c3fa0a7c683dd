"""Which sessions block one that waits for a lock, and whose these are. Pure: no I/O, no time.

- `blocked_by` has all sessions that one waits for, those that it waits for directly first and a root
  last: a session that has the lock and waits for nobody. Of sessions that wait for one another in a
  circle (a deadlock, until the server ends it) there may be no root.
- `waiting_for` is the other way round: all sessions that one keeps waiting.
- A session is described by what the server says of it, and by the connection that has it, where
  that is reported; otherwise `host`, `program` and so on are None: not one of connmon's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from connmon.database.locks import Locks
from connmon.database.server_view import Session
from connmon.protocol.text import printable, short_age

#: What the server says of a session, and what the connection's row adds.
SERVER_KEYS: Final = (
    "client_host", "client_port", "user", "database", "application", "state", "state_seconds",
)  # fmt: skip
OWNER_KEYS: Final = (
    "host", "program", "pid", "instance", "connection", "held_seconds", "holder", "holder_in", "holder_site",
    "call_site", "stack", "verdict",
)  # fmt: skip


def blocked_by(locks: Locks, session: int) -> list[int] | None:
    """Return the sessions that it waits for, a root last; empty: it waits for none. None: not known."""
    direct = _direct(locks)
    distances = {session: 0}
    reached = [session]
    for each in reached:
        for other in direct.get(each, ()):
            if other not in distances:
                distances[other] = distances[each] + 1
                reached.append(other)
    others = sorted(reached[1:], key=lambda each: (each not in direct, distances[each], each))
    if not others and (session in locks.unknown or locks.partial):
        return None
    return others


def blocks(locks: Locks) -> dict[int, list[int]]:
    """Return the sessions that each session blocks, also through others; by the one that blocks."""
    found: dict[int, list[int]] = {}
    for session in sorted(_direct(locks)):
        for other in blocked_by(locks, session) or ():
            found.setdefault(other, []).append(session)
    return found


def waiting_for(locks: Locks, session: int) -> list[int] | None:
    """Return the sessions that wait for it, also through others, the nearest first. None: not known.

    `locks`: the waits for it. Empty: it blocks nobody.
    """
    waiting: dict[int, list[int]] = {}
    for wait in locks.waits:
        waiting.setdefault(wait.blocking, []).append(wait.waiting)
    reached, step = [session], [session]
    while step := sorted({other for each in step for other in waiting.get(each, ())} - set(reached)):
        reached += step
    if len(reached) == 1 and (locks.unknown or locks.partial):
        return None
    return reached[1:]


def roots(locks: Locks) -> frozenset[int]:
    """Return the sessions that block others and wait for nobody."""
    waiting = {wait.waiting for wait in locks.waits} | set(locks.unknown)
    return frozenset(wait.blocking for wait in locks.waits) - waiting


def described(
    session: int, sessions: Mapping[int, Session], owners: Mapping[int, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return what is known of a session: by the server's list and by the connections that have it.

    `sessions` and `owners` are by the id of the session.
    """
    listed = sessions.get(session)
    said = {key: None if listed is None else getattr(listed, key) for key in SERVER_KEYS}
    rows = owners.get(session, ())
    # After a fork several have it: of a living process, where there is one.
    row = min(rows, key=lambda row: row["state"] is None) if rows else {}
    return {"server_id": session, **said, **{key: row.get(key) for key in OWNER_KEYS}}


def whose(described: Mapping[str, Any]) -> str:
    """Return in a few words whose session it is."""
    if not described["server_id"]:
        return "a transaction without a session (prepared: see pg_prepared_xacts or XA RECOVER)"
    if described["program"] is not None:
        return f"{described['program']} on {described['host']}, pid {described['pid']}"
    user, host = described["user"], described["client_host"]
    by = f", {user} from {host or 'the server itself'}" if user else ""
    return f"not one of connmon's{by}"


def in_words(described: Mapping[str, Any]) -> str:
    """Return whose session it is, what it does by the server's words, and which line has it; printable."""
    parts = [whose(described)]
    if described["state"] is not None:
        for_ = "" if described["state_seconds"] is None else f" for {short_age(described['state_seconds'])}"
        parts.append(f"{described['state']}{for_}")
    if described["call_site"] is not None:
        parts.append(f"held by {described['call_site']}")
    return printable(", ".join(parts))


def _direct(locks: Locks) -> dict[int, list[int]]:
    direct: dict[int, list[int]] = {}
    for waiting, blocking in locks.waits:
        direct.setdefault(waiting, []).append(blocking)
    return direct

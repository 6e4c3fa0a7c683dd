"""Which sessions block one that waits for a lock, and to whom they belong. Pure: no I/O, no time.

- `blocked_by` has all sessions that one waits for, the direct blockers first and a root last: a session that
  has the lock and waits for nobody. Sessions that wait for one another in a circle (a deadlock, until the
  server ends it) may have no root.
- `waiting_for` is the other direction: all sessions that wait for one.
- A session is described by the server's words and by the connection that has it. Where no process reports
  that connection, `host`, `program` and so on are None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from connmon.database.documents import LockSession, SessionInfo, SessionOwner
from connmon.database.locks import Locks
from connmon.database.server_view import Session
from connmon.protocol.document import JsonConnection
from connmon.protocol.text import printable, short_age

_NO_OWNER: Final[SessionOwner] = {
    "host": None, "program": None, "pid": None, "instance": None, "connection": None, "held_seconds": None,
    "holder": None, "holder_in": None, "holder_site": None, "call_site": None, "stack": None, "verdict": None,
}  # fmt: skip


def blocked_by(locks: Locks, session: int) -> list[int] | None:
    """Return the sessions that it waits for, a root last; empty: it waits for none. None: not known."""
    blockers = _direct_blockers(locks)
    distances = {session: 0}
    reached = [session]
    for number in reached:
        for blocker in blockers.get(number, ()):
            if blocker not in distances:
                distances[blocker] = distances[number] + 1
                reached.append(blocker)
    chain = sorted(reached[1:], key=lambda number: (number not in blockers, distances[number], number))
    if not chain and (session in locks.unknown or locks.partial):
        return None
    return chain


def blocks(locks: Locks) -> dict[int, list[int]]:
    """Return the sessions that each blocking session blocks, also through others."""
    waiters: dict[int, list[int]] = {}
    for session in sorted(_direct_blockers(locks)):
        for blocker in blocked_by(locks, session) or ():
            waiters.setdefault(blocker, []).append(session)
    return waiters


def waiting_for(locks: Locks, session: int) -> list[int] | None:
    """Return the sessions that wait for it, also through others, the nearest first. None: not known.

    `locks`: the waits for it. Empty: it blocks nobody.
    """
    waiters: dict[int, list[int]] = {}
    for wait in locks.waits:
        waiters.setdefault(wait.blocking, []).append(wait.waiting)
    reached, step = [session], [session]
    while step := sorted({waiter for number in step for waiter in waiters.get(number, ())} - set(reached)):
        reached += step
    if len(reached) == 1 and (locks.unknown or locks.partial):
        return None
    return reached[1:]


def roots(locks: Locks) -> frozenset[int]:
    """Return the sessions that block others and wait for nobody."""
    waiting = {wait.waiting for wait in locks.waits} | set(locks.unknown)
    return frozenset(wait.blocking for wait in locks.waits) - waiting


def session_info(session: Session | None) -> SessionInfo:
    """Return the server's words about a session; None: it is not in the server's list."""
    return {
        "client_host": session and session.client_host,
        "client_port": session and session.client_port,
        "user": session and session.user,
        "database": session and session.database,
        "application": session and session.application,
        "state": session and session.state,
        "state_seconds": session and session.state_seconds,
    }


def described(
    number: int, sessions: Mapping[int, Session], owners: Mapping[int, Sequence[JsonConnection]]
) -> LockSession:
    """Return what is known of a session, from the server's list and from the connections that have it.

    `sessions` and `owners` are by session id.
    """
    rows = owners.get(number, ())
    # After a fork several processes have it: the living one, where there is one.
    owner = _owner(min(rows, key=lambda row: row.state is None)) if rows else _NO_OWNER
    return {"server_id": number, **session_info(sessions.get(number)), **owner}


def _owner(row: JsonConnection) -> SessionOwner:
    """Return who has a session, by the connection that has it."""
    return {
        "host": row.process.host,
        "program": row.process.program,
        "pid": row.process.pid,
        "instance": row.process.instance,
        "connection": row.connection,
        "held_seconds": row.held_seconds,
        "holder": row.holder,
        "holder_in": row.holder_in,
        "holder_site": row.holder_site,
        "call_site": row.call_site,
        "stack": list(row.stack),
        "verdict": row.verdict,
    }


def owner_name(session: LockSession) -> str:
    """Return in a few words to whom a session belongs."""
    if not session["server_id"]:
        return "a transaction without a session (prepared: see pg_prepared_xacts or XA RECOVER)"
    if session["program"] is not None:
        return f"{session['program']} on {session['host']}, pid {session['pid']}"
    user, host = session["user"], session["client_host"]
    login = f", {user} from {host or 'the server itself'}" if user else ""
    return f"not one of connmon's{login}"


def in_words(session: LockSession) -> str:
    """Return to whom a session belongs, its state by the server, and the call site that holds it;
    printable."""
    parts = [owner_name(session)]
    if session["state"] is not None:
        age = "" if session["state_seconds"] is None else f" for {short_age(session['state_seconds'])}"
        parts.append(f"{session['state']}{age}")
    if session["call_site"] is not None:
        parts.append(f"held by {session['call_site']}")
    return printable(", ".join(parts))


def _direct_blockers(locks: Locks) -> dict[int, list[int]]:
    blockers: dict[int, list[int]] = {}
    for waiting, blocking in locks.waits:
        blockers.setdefault(waiting, []).append(blocking)
    return blockers

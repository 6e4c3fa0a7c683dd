"""What a PostgreSQL server is asked, and how its answers are read. Read only. Pure: queries are passed in.

Sources: PostgreSQL 16, 28.2.3 (pg_stat_activity), 9.27 (pg_blocking_pids) and 54.12 (pg_locks, which
everybody may read).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from connmon.database.locks import Locks, Query, Unseen, beyond, cut_problem, follow, listed, unique_waits
from connmon.database.server_view import Listening, ServerView, Session
from connmon.database.settings import LOCK_LIMITS, LockLimits
from connmon.database_address import DatabaseServer, plain

_SESSIONS: Final = """
SELECT pid, usename, host(client_addr), client_port, datname, state,
    extract(epoch FROM clock_timestamp() - state_change),
    nullif(application_name, ''), extract(epoch FROM clock_timestamp() - backend_start)
FROM pg_stat_activity
WHERE (backend_type = 'client backend'
        OR (backend_type IS NULL AND datid IS NOT NULL AND usesysid IS NOT NULL))
    AND pid <> pg_backend_pid()
ORDER BY pid
"""
#: The socket directories are null for an account without pg_read_all_settings.
_LISTENING: Final = """
SELECT current_setting('port')::int, current_setting('listen_addresses', true),
    (SELECT setting FROM pg_settings WHERE name = 'unix_socket_directories'),
    host(inet_server_addr()), inet_server_port()
"""
_LIMITS: Final = """
SELECT current_setting('max_connections')::int,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0),
    current_setting('server_version'),
    extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())
"""


def read_server(query: Query, dialect: str, server: DatabaseServer) -> ServerView:
    """Return one look at the server."""
    ((maximum, reserved, version, uptime),) = query(_LIMITS)
    sessions = tuple(
        Session(
            id=int(pid),
            user=user,
            client_host=host,
            client_port=None if port in (None, -1) else int(port),
            database=database,
            state=state,
            state_seconds=seconds(state_age),
            application=application,
            age_seconds=seconds(age),
        )
        for pid, user, host, port, database, state, state_age, application, age in query(_SESSIONS)
    )
    (listening,) = query(_LISTENING)
    return ServerView(
        dialect=dialect,
        server=server,
        version=str(version),
        uptime_seconds=seconds(uptime),
        max_connections=maximum,
        reserved_connections=reserved,
        used_connections=len(sessions) + 1,
        sessions=sessions,
        # A session that the account may not look into has an id and a user, and no age.
        hidden_sessions=sum(session.age_seconds is None for session in sessions),
        listening=_listening(*listening),
    )


def _listening(
    port: int, addresses: str | None, directories: str | None, reached: str | None, reached_port: int | None
) -> Listening:
    sockets = None
    if directories is not None:
        paths = [path.strip().strip('"') for path in directories.split(",")]
        sockets = tuple(DatabaseServer(plain(path), port) for path in paths if path.startswith("/"))
    return Listening(
        port=port,
        sockets=sockets,
        addresses=tuple(plain(word.strip()) for word in (addresses or "").split(",") if word.strip()),
        reached=None if reached is None else DatabaseServer(plain(reached), reached_port),
    )


def seconds(value: float | str | None) -> float | None:
    """Return a server's number of seconds, at least 0, to the millisecond."""
    return None if value is None else round(max(0.0, float(value)), 3)


# --- Locks --------------------------------------------------------------------------------


def read_locks(
    query: Query, session: int | None = None, waiters: bool = False, limits: LockLimits = LOCK_LIMITS
) -> Locks:
    """Return all waits; `session`: those of one session and of its blockers; `waiters`: those for it.

    The caller sets the server's time limit for `query`.
    """
    if session is None:
        return _read_locks(query, limits)
    return follow(
        session, lambda asked, seen: _read_locks(query, limits, asked, seen, waiters), limits, waiters
    )


def _read_locks(
    query: Query,
    limits: LockLimits,
    asked: Sequence[int] = (),
    seen: Collection[int] = (),
    waiters: bool = False,
) -> Locks:
    waiting: list[int] | None = None
    try:
        among = f" AND pid IN ({listed(asked)})" if asked and not waiters else ""
        waiting = [
            int(pid)
            for (pid,) in query(
                f"SELECT DISTINCT pid FROM pg_locks WHERE NOT granted{among} ORDER BY pid LIMIT {limits.rows}"
            )
        ]
        if not waiting:
            return Locks()
        rows = query(_pairs(waiting[: limits.waiting_sessions], asked, seen, waiters, limits))
    except Unseen as error:
        # Which sessions wait is known all the same, if that query was answered.
        problem = f"which session blocks which is not seen: {error}"
        return Locks((), tuple(waiting or ()), problem, waiting is None or len(waiting) >= limits.rows)
    waits = unique_waits(rows)
    left_out = []
    if len(waiting) > limits.waiting_sessions:
        left_out.append(f"blockers of all but {limits.waiting_sessions} of the waiting sessions")
    if len(rows) >= limits.rows:
        left_out.append(beyond("waits for locks", limits))
    partial = len(waiting) >= limits.rows
    if not left_out and not partial:
        return Locks(waits)
    if partial:
        left_out.append(beyond("waiting sessions", limits))
    # With `waiters`, a session that waits for another one has no wait here: only those not asked about are
    # unknown.
    known = set(waiting[: limits.waiting_sessions]) if waiters else {wait.waiting for wait in waits}
    unknown = tuple(number for number in waiting if number not in known)
    return Locks(waits, unknown, cut_problem(left_out, partial), partial)


def _pairs(
    waiting: Sequence[int], asked: Sequence[int], seen: Collection[int], waiters: bool, limits: LockLimits
) -> str:
    """Return the query for pairs of a waiting session and a blocker.

    Where a session is followed: not all pairs, which are many when many wait for one, but those that `follow`
    needs.
    """
    pairs = (
        "SELECT w.pid AS waiting, b.pid AS blocking"
        f" FROM unnest(ARRAY[{listed(waiting)}]) AS w(pid),"
        " unnest(pg_blocking_pids(w.pid)) AS b(pid)"
    )
    if waiters:
        pairs = (
            f"WITH pairs AS ({pairs}) SELECT waiting, min(blocking) FROM pairs"
            f" WHERE blocking IN ({listed(asked)}) AND waiting NOT IN ({listed(seen)}) GROUP BY waiting"
        )
    elif asked:
        pairs = (
            f"WITH pairs AS ({pairs}) SELECT min(waiting), blocking FROM pairs"
            f" WHERE blocking NOT IN ({listed(seen)}) GROUP BY blocking"
            " UNION SELECT waiting, min(blocking) FROM pairs WHERE blocking <> waiting GROUP BY waiting"
        )
    return f"{pairs} LIMIT {limits.rows}"

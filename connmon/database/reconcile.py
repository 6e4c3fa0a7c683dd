"""The database server's session list against the replica: the result of `connmon reconcile`. Pure.

- A session is *accounted* to the program whose connection has its id on this server. A session that several
  processes have (a forked child and its parent) is accounted once.
- It is *unowned* where no reported connection has its id. A connection is *missing* where an application
  believes in it and the server does not know it. A report takes a second, so that one look may catch a
  session that was just opened or closed: with two looks, some seconds apart, only a mismatch in both
  counts. The other sessions are *unsettled*.
- Session ids are reused, by MySQL after a restart, by PostgreSQL at any time. A session that is younger than
  the connection, or on a server that is, does not belong to the connection.
- What a lost process believes is not known: its connections account for sessions, but are not missing.
- A session that waits for a lock is listed with the sessions that it waits for, of any program, by the
  last look.
- Each session of the list is in exactly one place: accounted + unowned + unsettled = sessions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias, cast

from connmon.database.documents import (
    BlockedSession,
    BlockingSession,
    LookHeader,
    OtherServer,
    ProgramSessions,
    Reconcile,
    ServerDocument,
    UnownedSession,
)
from connmon.database.lock_chains import blocked_by, blocks, described, roots
from connmon.database.locks import Locks
from connmon.database.naming import Naming, family_of, pool_servers
from connmon.database.server_view import ServerView, Session
from connmon.database_address import FAMILIES, UNKNOWN, named
from connmon.protocol.document import JsonConnection, JsonPool
from connmon.protocol.values import LOST

#: Seconds by which two ages of one moment may differ: logging in and reporting take time.
AGE_SLACK_SECONDS: Final = 10.0


ConnectionKey: TypeAlias = tuple["str | None", int]
"""Instance and number of a connection."""


class DatabaseLook(NamedTuple):
    """Replica and server at about one moment."""

    header: LookHeader
    pools: Sequence[JsonPool]
    """With sums of several pools, whose figure `pools` is their number."""
    connections: Sequence[JsonConnection]
    view: ServerView
    locks: Locks = Locks()
    """The waits for locks there."""

    def owners(self, naming: Naming) -> dict[int, list[JsonConnection]]:
        """Return the connections that have each session of the server, by session id."""
        return _match(self, naming).owners


class _Matched(NamedTuple):
    """One look, sorted."""

    owners: dict[int, list[JsonConnection]]
    """By session id: the connections that have it."""
    unowned: dict[int, Session]
    missing: dict[ConnectionKey, JsonConnection]
    pools: list[JsonPool]
    others: list[OtherServer]
    """The other servers of the same family, with the pools and connections there."""
    connections: int
    without_id: int
    pooled: int
    """The part of those without an id that goes through a pooler, which has ids of its own."""
    unknown: int
    """Connections at a server that is not known."""


def _match(look: DatabaseLook, naming: Naming) -> _Matched:
    view = look.view
    family = FAMILIES[view.dialect]
    pools = [row for row in look.pools if family_of(row.pool) == family]
    pools_here = [row for row in pools if naming.has(view, row)]
    rows = [row for row in look.connections if family_of(row.pool) == family]
    connections = [row for row in rows if naming.has(view, row)]
    others, unknown = _others(pools, pools_here, rows, connections)
    sessions = {session.id: session for session in view.sessions}
    owners: dict[int, list[JsonConnection]] = {}
    missing: dict[ConnectionKey, JsonConnection] = {}
    for row in connections:
        session = None if row.server_id is None else sessions.get(row.server_id)
        if session is not None and _is_old_enough(session, view, row):
            owners.setdefault(session.id, []).append(row)
        elif row.server_id is not None and row.state is not None:
            missing[(row.process.instance, row.connection)] = row
    return _Matched(
        owners=owners,
        unowned={key: session for key, session in sessions.items() if key not in owners},
        missing=missing,
        pools=pools_here,
        others=others,
        connections=len(connections),
        without_id=sum(row.server_id is None for row in connections),
        pooled=sum(row.server_id is None and bool(row.pool.pooler) for row in connections),
        unknown=unknown,
    )


def _others(
    pools: Sequence[JsonPool],
    pools_here: Sequence[JsonPool],
    connections: Sequence[JsonConnection],
    connections_here: Sequence[JsonConnection],
) -> tuple[list[OtherServer], int]:
    """Return the other servers and the number of connections at a server that is not known.

    A pool with some connections here counts at the other server with the connections there.
    """
    counts: dict[str, Counter[str]] = {}
    unknown = 0
    here = {*map(id, pools_here), *map(id, connections_here)}
    counted_pools: set[tuple[str | None, str | None]] = set()
    for pool in pools:
        if id(pool) in here:
            continue
        servers = pool_servers(pool.pool)
        count = counts.setdefault(named(servers), Counter())
        count["pools"] += 1
        if len(servers) == 1:
            count["connections"] += pool.figures.connections or 0
            count["pooler"] |= bool(pool.pool.pooler)
            counted_pools.add((pool.process.instance, pool.pool.pool))
    for connection in connections:
        if id(connection) in here:
            continue
        servers = pool_servers(connection.pool)
        if not servers:
            unknown += 1
        elif (connection.process.instance, connection.pool.pool) not in counted_pools:
            counts.setdefault(named(servers), Counter())["connections"] += 1
    counts.pop(str(UNKNOWN), None)
    others: list[OtherServer] = [
        {
            "server": server,
            "pools": count["pools"],
            "connections": count["connections"],
            "pooler": bool(count["pooler"]),
        }
        for server, count in sorted(counts.items())
    ]
    return others, unknown


def _is_old_enough(session: Session, view: ServerView, row: JsonConnection) -> bool:
    """Whether session and server existed when the connection of this row was opened."""
    ages = [age for age in (session.age_seconds, view.uptime_seconds) if age is not None]
    return row.age_seconds is None or all(row.age_seconds <= age + AGE_SLACK_SECONDS for age in ages)


def is_settled(look: DatabaseLook, naming: Naming) -> bool:
    """Whether nothing is unowned or missing, so that a second look is not needed."""
    matched = _match(look, naming)
    return not matched.unowned and not matched.missing


def reconcile(first: DatabaseLook, second: DatabaseLook | None, naming: Naming) -> Reconcile:
    """Return the document: the last look, with the mismatches that are in both looks."""
    last = first if second is None else second
    matched = _match(last, naming)
    unowned, missing = matched.unowned, matched.missing
    if second is not None:
        before = _match(first, naming)
        unowned = {key: session for key, session in unowned.items() if key in before.unowned}
        missing = {key: row for key, row in missing.items() if key in before.missing}
    view = last.view
    free = view.max_connections - view.reserved_connections
    pools = _PoolCapacity.of(matched.pools)
    blocked, blockers = _lock_sessions(last, matched)
    return {
        **last.header,
        "server": _server(view, free),
        "sessions": len(view.sessions),
        "accounted_sessions": len(matched.owners),
        "shared_sessions": sum(len(rows) > 1 for rows in matched.owners.values()),
        "unowned_sessions": len(unowned),
        "unsettled_sessions": len(matched.unowned) - len(unowned),
        "missing_connections": len(missing),
        "connections": matched.connections,
        "connections_without_id": matched.without_id,
        "connections_through_pooler": matched.pooled,
        "unknown_server_connections": matched.unknown,
        "pools": sum(row.figures.pools or 1 for row in matched.pools),  # a row can be of several
        "capacity": pools.capacity,
        "limited_capacity": pools.limited,
        "unlimited_pools": pools.unlimited,
        "lost_pools": pools.lost,
        "pooled_pools": pools.pooled,
        "capacity_headroom": None if pools.capacity is None else free - pools.capacity,
        "programs": _programs(matched),
        "unowned": [_unowned(session) for _, session in sorted(unowned.items())],
        "missing": sorted(missing.values(), key=_by_program),
        "other_servers": matched.others,
        "blocked": blocked,
        "blockers": blockers,
        "blocking_problem": last.locks.problem,
    }


def _server(view: ServerView, free: int) -> ServerDocument:
    return {
        "dialect": view.dialect,
        "host": view.server.host,
        "port": view.server.port,
        "version": view.version,
        "max_connections": view.max_connections,
        "reserved_connections": view.reserved_connections,
        "used_connections": view.used_connections,
        "headroom": free - view.used_connections,
        "hidden_sessions": view.hidden_sessions,
    }


def _unowned(session: Session) -> UnownedSession:
    return cast(UnownedSession, session._asdict())


def _lock_sessions(
    look: DatabaseLook, matched: _Matched
) -> tuple[list[BlockedSession], list[BlockingSession]]:
    """Return the sessions that wait for a lock, and the sessions that they wait for, the roots first."""
    locks, sessions = look.locks, {session.id: session for session in look.view.sessions}
    waiting = sorted({wait.waiting for wait in locks.waits} | set(locks.unknown))
    root = roots(locks)
    by_weight = sorted(blocks(locks).items(), key=lambda item: (item[0] not in root, -len(item[1]), item[0]))
    blocked: list[BlockedSession] = [
        {**described(number, sessions, matched.owners), "blocked_by": blocked_by(locks, number)}
        for number in waiting
    ]
    blockers: list[BlockingSession] = [
        {**described(number, sessions, matched.owners), "blocks": waiters, "root": number in root}
        for number, waiters in by_weight
    ]
    return blocked, blockers


class _PoolCapacity(NamedTuple):
    """How many connections pools can open."""

    limited: int
    """The sum over pools with a limit."""
    unlimited: int
    """Pools without a limit."""
    lost: int
    """Pools of lost processes."""
    pooled: int
    """Pools that go through a pooler, which has a limit of its own for the server."""

    @property
    def capacity(self) -> int | None:
        return None if self.unlimited or self.lost or self.pooled else self.limited

    @classmethod
    def of(cls, pools: Iterable[JsonPool]) -> _PoolCapacity:
        limited = unlimited = lost = pooled = 0
        for row in pools:
            if row.pool.pooler:
                pooled += 1
            elif row.state == LOST:
                lost += 1
            elif row.figures.capacity is None:
                unlimited += 1
            else:
                limited += row.figures.capacity
        return cls(limited=limited, unlimited=unlimited, lost=lost, pooled=pooled)


def _programs(matched: _Matched) -> list[ProgramSessions]:
    """Return what each program on each host has, the most sessions first."""
    counts: dict[tuple[str | None, str | None], Counter[str]] = {}
    for rows in matched.owners.values():
        row = min(rows, key=lambda row: row.state is None)  # of a living process, where there is one
        count = counts.setdefault((row.process.host, row.process.program), Counter())
        count["sessions"] += 1
        count[row.state or LOST] += 1
    unlimited: set[tuple[str | None, str | None]] = set()
    for pool in matched.pools:
        key = (pool.process.host, pool.process.program)
        count = counts.setdefault(key, Counter())
        if pool.figures.capacity is None:
            unlimited.add(key)
        else:
            count["capacity"] += pool.figures.capacity
    programs: list[ProgramSessions] = [
        {
            "host": host,
            "program": program,
            "sessions": count["sessions"],
            "checked_out": count["checked_out"],
            "idle": count["idle"],
            "detached": count["detached"],
            "lost": count["lost"],
            "capacity": None if (host, program) in unlimited else count["capacity"],
        }
        for (host, program), count in counts.items()
    ]
    return sorted(programs, key=lambda row: (-row["sessions"], row["host"] or "", row["program"] or ""))


def _by_program(row: JsonConnection) -> tuple[str, str, int, str, int]:
    who = row.process
    return (who.host or "", who.program or "", who.pid or 0, who.instance or "", row.connection)

"""The database server's own session list beside the replica: what `connmon reconcile` finds. Pure.

- A session is *accounted* to the program whose connection has its id on this server. One that
  several processes have (a forked child and its parent) is accounted once.
- It is *unowned* where no reported connection has its id; a connection is *missing* where an
  application believes in it and the server does not know it. What was so at one look may just
  have been opened or closed, since a report takes a second: with two looks, some seconds apart,
  only what was so at both counts. The other sessions are *unsettled*.
- A session id is used again, by MySQL after a restart, by PostgreSQL whenever it likes. A
  session that is younger than the connection, or a server that is, is not the connection's.
- Of a lost process nobody knows what it believes: its connections account for sessions, but
  are not missing.
- A session that waits for a lock is listed with those that it waits for, whosever they are, at the last look.
- Every session of the list is in exactly one place: accounted + unowned + unsettled = sessions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from connmon.database.blocking import blocked_by, blocks, described, roots
from connmon.database.locks import Locks
from connmon.database.server_view import ServerView, Session
from connmon.database_address import FAMILIES, UNKNOWN, DatabaseServer, named, names, plain, servers_of

#: Seconds by which ages may differ that mean the same moment: logging in and reporting take time.
SLACK: Final = 10.0


class Look(NamedTuple):
    """Replica and server at about one moment."""

    header: Mapping[str, Any]
    """service, node, leader, quorum, stale_seconds."""
    pools: Sequence[Mapping[str, Any]]
    """The rows of a snapshot by pool."""
    connections: Sequence[Mapping[str, Any]]
    """The rows of a snapshot by connection."""
    view: ServerView
    locks: Locks = Locks()
    """Who waits for whose lock there."""

    def owners(self, naming: Naming) -> dict[int, list[Mapping[str, Any]]]:
        """Return the connections that have each session of the server, by the session's id."""
        return _match(self, naming).owners


class Naming(NamedTuple):
    """Which pools and connections are at the server that is asked."""

    here: str
    """The name of the host that the URL's words are used on."""
    also: tuple[DatabaseServer, ...] = ()
    """Other words that the applications have for it, on whichever host they run."""
    addresses: frozenset[str] = frozenset()
    """The IP addresses of the host `here`."""

    def has(self, view: ServerView, row: Mapping[str, Any]) -> bool:
        """Whether the pool or connection of this row is, or may be, at the server.

        A pool that is at one of several servers is at each of them.
        """
        if FAMILIES.get(row["dialect"] or "") != FAMILIES[view.dialect]:
            return False
        return any(self.names(view, server, row["host"] or "") for server in servers_of(row))

    def names(self, view: ServerView, server: DatabaseServer, host: str) -> bool:
        """Whether `server` names the server that is asked, where a process on `host` says it."""
        asked, own = view.server, view.listening
        for other in self.also:
            if names(other, server):
                return True
            if other.local and server.local and not other.socket and other.port in (None, server.port):
                return True
        if server.local and asked.local:
            if _same_host(host, self.here) and _same_words(server, asked):
                return True
        elif names(asked, server):
            return True
        runs_on = self.runs_on(view)
        port = own.port if own.port is not None else None if asked.socket else asked.port
        if any(_same_host(host, name) for name in runs_on):
            if server.socket:
                return server in own.sockets if own.sockets is not None else server.port == port
            if server.port == port and (
                server.local or (self._is_here(view) and server.host in self.addresses)
            ):
                return True
        if server.local or own.port is None or server.port != own.port:
            return False
        known = [name for name in (own.hostname, self.here if self._is_here(view) else None) if name]
        return server.host in own.addresses or any(_same_host(server.host or "", name) for name in known)

    def runs_on(self, view: ServerView) -> list[str]:
        """Return the names of the host that the server runs on, as far as they are known."""
        asked, own = view.server, view.listening
        found = [own.hostname or ""]
        if not asked.local:
            found.append(asked.host or "")
        if self._is_here(view):
            found.append(self.here)
        return [name for name in found if name]

    def _is_here(self, view: ServerView) -> bool:
        """Whether it surely runs on this host. One behind a forwarded port (a container, ssh) does not."""
        asked, own = view.server, view.listening
        if not asked.local and asked.host not in self.addresses:
            return False
        if own.hostname is not None and not _same_host(own.hostname, self.here):
            return False
        if asked.socket:
            return own.sockets is not None and asked in own.sockets
        if own.port != asked.port:
            return False
        if own.reached is not None:
            return own.reached.port == asked.port and own.reached.host in (self.addresses | {asked.host})
        return own.hostname is not None


def _same_words(one: DatabaseServer, other: DatabaseServer) -> bool:
    """Whether two names of local servers, said on the same host, mean the same one."""
    return one == other if one.socket or other.socket else one.port == other.port


def _same_host(one: str, other: str) -> bool:
    """Whether two names of hosts, with or without the domain, can mean the same one."""
    a, b = plain(one), plain(other)
    if a == b:
        return True
    short = a.partition(".")[0] == b.partition(".")[0] and not a.replace(".", "").isdigit()
    return short and ("." not in a or "." not in b) and ":" not in a + b


class _Matched(NamedTuple):
    """One look, sorted out."""

    owners: dict[int, list[Mapping[str, Any]]]
    """By session id: the connections that have it."""
    unowned: dict[int, Session]
    missing: dict[tuple[str, int], Mapping[str, Any]]
    """By instance and number of the connection."""
    pools: list[Mapping[str, Any]]
    others: list[dict[str, Any]]
    """The other servers of the same kind, with the pools and connections that are there."""
    connections: int
    without_id: int
    pooled: int
    """How many of those a pooler has given ids of its own."""
    unknown: int
    """How many are at a server that is not known."""


def _match(look: Look, naming: Naming) -> _Matched:
    view = look.view
    family = FAMILIES[view.dialect]
    pools = [row for row in look.pools if FAMILIES.get(row["dialect"] or "") == family]
    ours = [row for row in pools if naming.has(view, row)]
    rows = [row for row in look.connections if FAMILIES.get(row["dialect"] or "") == family]
    connections = [row for row in rows if naming.has(view, row)]
    others, unknown = _others(pools, ours, rows, connections)
    sessions = {session.id: session for session in view.sessions}
    owners: dict[int, list[Mapping[str, Any]]] = {}
    missing: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in connections:
        session = sessions.get(row["server_id"])
        if session is not None and _same_age(row, session, view):
            owners.setdefault(session.id, []).append(row)
        elif row["server_id"] is not None and row["state"] is not None:
            missing[(row["instance"], row["connection"])] = row
    unowned = {key: session for key, session in sessions.items() if key not in owners}
    without = sum(row["server_id"] is None for row in connections)
    pooled = sum(row["server_id"] is None and bool(row["pooler"]) for row in connections)
    return _Matched(owners, unowned, missing, ours, others, len(connections), without, pooled, unknown)


def _others(
    pools: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    connections: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], int]:
    """Return the other servers, with what is there, and how many connections are at one that is not known.

    A pool of which some connections are here counts at the other server with those that are there.
    """
    counts: dict[str, Counter[str]] = {}
    unknown, mine = 0, {id(row) for row in ours}
    for row in pools:
        servers = servers_of(row)
        if id(row) in mine:
            continue
        count = counts.setdefault(named(servers), Counter())
        count["pools"] += 1
        if len(servers) == 1:
            count["connections"] += row["connections"] or 0
            count["pooler"] |= bool(row["pooler"])
    here = {id(row) for row in connections}
    shown = {
        (row["instance"], row["pool"]) for row in pools if id(row) not in mine and len(servers_of(row)) == 1
    }
    for row in rows:
        if id(row) in here:
            continue
        servers = servers_of(row)
        if not servers:
            unknown += 1
        elif (row["instance"], row["pool"]) not in shown:
            counts.setdefault(named(servers), Counter())["connections"] += 1
    counts.pop(str(UNKNOWN), None)
    found = [
        {
            "server": server,
            "pools": count["pools"],
            "connections": count["connections"],
            "pooler": bool(count["pooler"]),
        }
        for server, count in sorted(counts.items())
    ]
    return found, unknown


def _same_age(row: Mapping[str, Any], session: Session, view: ServerView) -> bool:
    """Whether the session was there when the connection was opened."""
    oldest = [age for age in (session.age_seconds, view.uptime_seconds) if age is not None]
    return all(row["age_seconds"] <= age + SLACK for age in oldest)


def is_settled(look: Look, naming: Naming) -> bool:
    """Whether everything fits, so that a second look could bring nothing."""
    matched = _match(look, naming)
    return not matched.unowned and not matched.missing


def reconcile(first: Look, second: Look | None, naming: Naming) -> dict[str, Any]:
    """Return the document: what the last look shows, where mismatches of both looks count."""
    last = first if second is None else second
    now = _match(last, naming)
    unowned, missing = now.unowned, now.missing
    if second is not None:
        before = _match(first, naming)
        unowned = {key: session for key, session in unowned.items() if key in before.unowned}
        missing = {key: row for key, row in missing.items() if key in before.missing}
    view = last.view
    free = view.max_connections - view.reserved_connections
    capacity, limited, unlimited, unknown, pooled = _capacity(now.pools)
    return {
        **last.header,
        "server": {
            "dialect": view.dialect,
            "host": view.server.host,
            "port": view.server.port,
            "version": view.version,
            "max_connections": view.max_connections,
            "reserved_connections": view.reserved_connections,
            "used_connections": view.used_connections,
            "headroom": free - view.used_connections,
            "hidden_sessions": view.hidden_sessions,
        },
        "sessions": len(view.sessions),
        "accounted_sessions": len(now.owners),
        "shared_sessions": sum(len(rows) > 1 for rows in now.owners.values()),
        "unowned_sessions": len(unowned),
        "unsettled_sessions": len(now.unowned) - len(unowned),
        "missing_connections": len(missing),
        "connections": now.connections,
        "connections_without_id": now.without_id,
        "connections_through_pooler": now.pooled,
        "unknown_server_connections": now.unknown,
        "pools": sum(row.get("pools") or 1 for row in now.pools),  # a row can be of several
        "capacity": capacity,
        "limited_capacity": limited,
        "unlimited_pools": unlimited,
        "lost_pools": unknown,
        "pooled_pools": pooled,
        "capacity_headroom": None if capacity is None else free - capacity,
        "programs": _programs(now),
        "unowned": [session._asdict() for _, session in sorted(unowned.items())],
        "missing": [dict(row) for _, row in sorted(missing.items(), key=_by_program)],
        "other_servers": now.others,
        **_blocking(last, now),
    }


def _blocking(look: Look, matched: _Matched) -> dict[str, Any]:
    """Return the sessions that wait for a lock, and those that they wait for."""
    locks, sessions = look.locks, {each.id: each for each in look.view.sessions}
    waiting = sorted({wait.waiting for wait in locks.waits} | set(locks.unknown))
    first = roots(locks)
    return {
        "blocked": [
            {**described(each, sessions, matched.owners), "blocked_by": blocked_by(locks, each)}
            for each in waiting
        ],
        "blockers": [
            {**described(each, sessions, matched.owners), "blocks": others, "root": each in first}
            for each, others in sorted(
                blocks(locks).items(), key=lambda item: (item[0] not in first, -len(item[1]), item[0])
            )
        ],
        "blocking_problem": locks.problem,
    }


def _capacity(pools: Iterable[Mapping[str, Any]]) -> tuple[int | None, int, int, int, int]:
    """Return the capacity (None: not known), that of limited pools, and how many are unlimited and lost, and
    how many go through a pooler, which has a limit of its own for the server."""
    limited = unlimited = lost = pooled = 0
    for row in pools:
        if row["pooler"]:
            pooled += 1
            continue
        if row["state"] == "lost":
            lost += 1
        elif row["capacity"] is None:
            unlimited += 1
        else:
            limited += row["capacity"]
    return (None if unlimited or lost or pooled else limited), limited, unlimited, lost, pooled


def _programs(matched: _Matched) -> list[dict[str, Any]]:
    """Return what each program on each host has, by most sessions."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for rows in matched.owners.values():
        row = min(rows, key=lambda row: row["state"] is None)  # of a living process, where there is one
        count = found.setdefault((row["host"], row["program"]), Counter())
        count["sessions"] += 1
        count[row["state"] or "lost"] += 1
    unlimited: set[tuple[str, str]] = set()
    for pool in matched.pools:
        key = (pool["host"], pool["program"])
        count = found.setdefault(key, Counter())
        if pool["capacity"] is None:
            unlimited.add(key)
        else:
            count["capacity"] += pool["capacity"]
    rows_of = [
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
        for (host, program), count in found.items()
    ]
    return sorted(rows_of, key=lambda row: (-row["sessions"], row["host"], row["program"]))


def _by_program(item: tuple[tuple[str, int], Mapping[str, Any]]) -> tuple[Any, ...]:
    key, row = item
    return (row["host"], row["program"], row["pid"] or 0, *key)

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
- Every session of the list is in exactly one place: accounted + unowned + unsettled = sessions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from connmon.database.server import FAMILIES, DatabaseServer, names, plain, server_of

#: Seconds by which ages may differ that mean the same moment: logging in and reporting take time.
SLACK: Final = 10.0


class Session(NamedTuple):
    """One client session, as the server lists it."""

    id: int
    user: str | None
    client_host: str | None
    """None: by a local socket, or the account may not see it."""
    client_port: int | None
    database: str | None
    state: str | None
    """As the server says it: Sleep, Query; idle, active, idle in transaction."""
    state_seconds: float | None
    application: str | None = None
    """The name that the client gave itself."""
    age_seconds: float | None = None
    """None: the server does not tell."""


class ServerView(NamedTuple):
    """What the server says, without the session that asks."""

    dialect: str
    server: DatabaseServer
    version: str
    uptime_seconds: float | None
    max_connections: int
    reserved_connections: int
    """Those of them that only administrators get."""
    used_connections: int
    """How many count against the limit now, the session that asks included."""
    sessions: tuple[Session, ...]
    hidden_sessions: int
    """How many more there are, that the account may not see."""


class Look(NamedTuple):
    """Replica and server at about one moment."""

    header: Mapping[str, Any]
    """service, node, leader, quorum, stale_seconds."""
    pools: Sequence[Mapping[str, Any]]
    """The rows of a snapshot by pool."""
    connections: Sequence[Mapping[str, Any]]
    """The rows of a snapshot by connection."""
    view: ServerView


class Naming(NamedTuple):
    """Which pools are pools of the server that is asked."""

    here: str
    """The name of the host that the URL's words are used on."""
    also: tuple[DatabaseServer, ...] = ()
    """Other words that the applications have for it, on whichever host they run."""

    def names(self, server: DatabaseServer, row: Mapping[str, Any]) -> bool:
        """Whether the pool of this row is one of `server`, as its URL was given."""
        if FAMILIES.get(row["dialect"] or "") is None:
            return False
        pool = server_of(row)
        host = row["host"] or ""
        if pool.local and server.local:
            if pool.port == server.port and _same_host(host, self.here):
                return True
        elif pool.local:
            if pool.port == server.port and _same_host(host, server.host or ""):
                return True
        elif names(server, pool):
            return True
        return any(
            names(other, pool) or (other.local and pool.local and other.port in (None, pool.port))
            for other in self.also
        )


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
    others: list[Mapping[str, Any]]
    """Pools of the same kind of server that are not this one's."""
    connections: int
    without_id: int


def _match(look: Look, naming: Naming) -> _Matched:
    view = look.view
    family = FAMILIES[view.dialect]
    ours: list[Mapping[str, Any]] = []
    others: list[Mapping[str, Any]] = []
    for row in look.pools:
        if FAMILIES.get(row["dialect"] or "") == family:
            (ours if naming.names(view.server, row) else others).append(row)
    connections = [
        row
        for row in look.connections
        if FAMILIES.get(row["dialect"] or "") == family and naming.names(view.server, row)
    ]
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
    return _Matched(owners, unowned, missing, ours, others, len(connections), without)


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
    capacity, limited, unlimited, unknown = _capacity(now.pools)
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
        "pools": sum(row.get("pools") or 1 for row in now.pools),  # a row can be of several
        "capacity": capacity,
        "limited_capacity": limited,
        "unlimited_pools": unlimited,
        "lost_pools": unknown,
        "capacity_headroom": None if capacity is None else free - capacity,
        "programs": _programs(now),
        "unowned": [session._asdict() for _, session in sorted(unowned.items())],
        "missing": [dict(row) for _, row in sorted(missing.items(), key=_by_program)],
        "other_servers": _other_servers(now.others),
    }


def _capacity(pools: Iterable[Mapping[str, Any]]) -> tuple[int | None, int, int, int]:
    """Return the capacity (None: not known), that of limited pools, and how many are unlimited and lost."""
    limited = unlimited = lost = 0
    for row in pools:
        if row["state"] == "lost":
            lost += 1
        elif row["capacity"] is None:
            unlimited += 1
        else:
            limited += row["capacity"]
    return (None if unlimited or lost else limited), limited, unlimited, lost


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


def _other_servers(pools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the servers of the pools that were left out, with how much they have."""
    counts: dict[str, Counter[str]] = {}
    for row in pools:
        count = counts.setdefault(str(server_of(row)), Counter())
        count["pools"] += 1
        count["connections"] += row["connections"] or 0
    return [
        {"server": server, "pools": count["pools"], "connections": count["connections"]}
        for server, count in sorted(counts.items())
    ]

"""What a reader's own `--server-max` adds to rows by database. Pure.

The nodes judge by the `server_max` of their config. A reader may know more maxima; they apply to what this
reader shows, and to nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter

from msgspec.structs import replace

from connmon.database_address import DatabaseServer, plain, servers_of
from connmon.protocol.document import JsonDatabase
from connmon.protocol.rows import Verdict
from connmon.protocol.verdicts import explained, overcommit


def judged_by(
    rows: Iterable[JsonDatabase], maxima: Mapping[tuple[str, int | None], int]
) -> list[JsonDatabase]:
    """Return database rows with their server and its maximum, and OVERCOMMIT by these maxima.

    A graver verdict of the node stays, and OVERCOMMIT follows in its reason; OVERCOMMIT by the node is not
    repeated.

    `maxima`: connections that a server takes, by host and port; port None: that host, any port.
    An unknown capacity (a pool without a limit) makes the server's unknown; that of databases whose processes
    are all lost is left out.
    """
    rows = list(rows)
    limits = {(plain(host), port): limit for (host, port), limit in maxima.items()}
    capacities = _capacities(rows)
    judged: list[JsonDatabase] = []
    for row in rows:
        # Each of several servers may get all connections of the pools; the one that takes fewest counts.
        known: list[tuple[int, DatabaseServer]] = []
        for server in _servers(row):
            host = str(server.host)
            limit = limits.get((host, server.port), limits.get((host, None)))
            if limit is not None:
                known.append((limit, server))
        if known:
            limit, server = min(known, key=itemgetter(0))
            capacity = capacities.get(server)
            row = replace(row, server=str(server), server_max=limit, server_capacity=capacity)
            row = _with_verdict(row, overcommit(capacity, limit, server))
        judged.append(row)
    return judged


def _capacities(rows: Iterable[JsonDatabase]) -> dict[DatabaseServer, int | None]:
    """Return how many connections all pools of each server may open. None: unknown."""
    capacities: dict[DatabaseServer, int | None] = {}
    for row in rows:
        if row.state == "lost":  # unknown, and what is known may be too much already
            continue
        for server in _servers(row):
            before, more = capacities.get(server, 0), row.figures.capacity
            capacities[server] = None if before is None or more is None else before + more
    return capacities


def _with_verdict(row: JsonDatabase, verdict: Verdict | None) -> JsonDatabase:
    reason = row.verdict_reason
    if verdict is None or row.verdict == verdict.word or f"{verdict.word}: " in (reason or ""):
        return row
    if row.verdict is None:
        return replace(row, verdict=verdict.word, verdict_reason=verdict.reason)
    return replace(row, verdict_reason=f"{reason}; {explained((verdict,))}")


def _servers(row: JsonDatabase) -> tuple[DatabaseServer, ...]:
    """Return the servers of a database row."""
    host, port = row.database_host, row.database_port
    return servers_of({"dialect": row.dialect, "database_host": host, "database_port": port})

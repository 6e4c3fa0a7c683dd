"""What a reader's own `--server-max` adds to rows by database. Pure.

The nodes judge by the `server_max` of their config. A reader may know more maxima; they apply to what this
reader shows, and to nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from connmon.database_address import DatabaseServer, servers_of
from connmon.protocol.document import JsonDatabase
from connmon.protocol.rows import Verdict
from connmon.protocol.server_capacity import Maxima, ServerLoads
from connmon.protocol.verdicts import explained, overcommit


def judged_by(rows: Iterable[JsonDatabase], maxima: Maxima) -> list[JsonDatabase]:
    """Return database rows with their server and its maximum, and OVERCOMMIT by these maxima.

    A graver verdict of the node stays, and OVERCOMMIT follows in its reason; OVERCOMMIT by the node is not
    repeated.

    `maxima`: connections that a server takes, by host and port; port None: that host, any port.
    An unknown capacity (a pool without a limit) makes the server's unknown; that of databases whose processes
    are all lost is left out.
    """
    rows = list(rows)
    loads = ServerLoads(maxima)
    for row in rows:
        if row.state != "lost":  # its capacity is unknown, and the known rest may be too much already
            loads.add(_servers(row), row.figures.capacity)
    judged: list[JsonDatabase] = []
    for row in rows:
        load = loads.tightest(_servers(row))
        if load is not None:
            row = replace(row, server=str(load.server), server_max=load.most, server_capacity=load.capacity)
            row = _with_verdict(row, overcommit(load.capacity, load.most, load.server))
        judged.append(row)
    return judged


def _with_verdict(row: JsonDatabase, verdict: Verdict | None) -> JsonDatabase:
    reason = row.verdict_reason
    if verdict is None or row.verdict == verdict.word or f"{verdict.word}: " in (reason or ""):
        return row
    if row.verdict is None:
        return replace(row, verdict=verdict.word, verdict_reason=verdict.reason)
    return replace(row, verdict_reason=f"{reason}; {explained((verdict,))}")


def _servers(row: JsonDatabase) -> tuple[DatabaseServer, ...]:
    """Return the servers of a database row."""
    return servers_of(row.dialect, row.database_host, row.database_port)

"""What a reader's own `--server-max` adds to rows by database. Pure.

The nodes judge by the `server_max` of their config. A reader may know more: what it is given on the command
line counts for what it shows, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, Final

from connmon.database_address import DatabaseServer, plain, servers_of
from connmon.protocol.rows import Verdict
from connmon.protocol.verdicts import explained, overcommit

#: The keys that rows get whose server's maximum is known; no part of the JSON contract.
ADDED: Final = ("server", "server_max", "server_capacity")


def judged_by(
    rows: Iterable[Mapping[str, Any]], maxima: Mapping[tuple[str, int | None], int]
) -> list[dict[str, Any]]:
    """Return database rows with what is `ADDED`, and OVERCOMMIT by these maxima.

    A graver verdict of the node stays, and OVERCOMMIT follows in its reason; one that the node has said is
    not said again.

    `maxima`: connections that a server takes, by host and port; port None: that host, any port.
    A capacity that is not known (a pool without a limit) makes the server's unknown; that of databases
    whose processes are all lost is left out.
    """
    found = [dict(row) for row in rows]
    takes = {(plain(host), port): most for (host, port), most in maxima.items()}
    sums: dict[DatabaseServer, int | None] = {}
    for row in found:
        if row.get("state") == "lost":  # not known: what is known may be too much already
            continue
        for server in _servers(row):
            before, more = sums.get(server, 0), row.get("capacity")
            sums[server] = None if before is None or more is None else before + more
    for row in found:
        # Of several servers, each of which may get all of the pools' connections, the one that takes fewest.
        judged: list[tuple[int, int | None, DatabaseServer]] = []
        for server in _servers(row):
            host = str(server.host)
            most = takes.get((host, server.port), takes.get((host, None)))
            if most is not None:
                judged.append((most, sums.get(server), server))
        if judged:
            row["server_max"], row["server_capacity"], server = min(judged, key=itemgetter(0))
            row["server"] = str(server)
            _add(row, overcommit(row["server_capacity"], row["server_max"], server))
    return found


def _add(row: dict[str, Any], verdict: Verdict | None) -> None:
    said = row.get("verdict_reason")
    if verdict is None or row.get("verdict") == verdict.word or f"{verdict.word}: " in (said or ""):
        return
    if row.get("verdict") is None:
        row["verdict"], row["verdict_reason"] = verdict.word, verdict.reason
    else:
        row["verdict_reason"] = f"{said}; {explained((verdict,))}"


def _servers(row: Mapping[str, Any]) -> tuple[DatabaseServer, ...]:
    """Return the servers of a database row."""
    host, port = row.get("database_host"), row.get("database_port")
    return servers_of({"dialect": row.get("dialect"), "database_host": host, "database_port": port})

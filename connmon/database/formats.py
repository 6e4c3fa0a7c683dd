"""The ways to print what `connmon reconcile` found: table and CSV. Pure: no I/O, no time.

Names come from applications and from the database server: nothing printed here may carry a
control character to a terminal (see formats).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

from connmon.database.blocking import whose
from connmon.database_address import DatabaseServer
from connmon.protocol.text import csv_cell, printable
from connmon.reader.formats import aligned

#: How many ids of sessions with the same owner a line of the table shows.
SHOWN_IDS: Final = 5

#: The keys of a CSV row. `kind`: program (a program's accounted sessions), unowned, missing, blocked (a
#: session that waits for a lock), blocker.
CSV_KEYS: Final = (
    "kind", "host", "program", "sessions", "checked_out", "idle", "detached", "lost", "capacity",
    "pid", "server_id", "client_host", "client_port", "user", "database", "application", "state",
    "state_seconds", "age_seconds", "held_seconds", "holder", "call_site",
    "verdict", "holder_in", "holder_site", "blocked_by", "blocks", "root",
)  # fmt: skip


def reconcile_csv(document: Mapping[str, Any]) -> str:
    """Return programs, unowned sessions, missing connections and who blocks whom as rows of one CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_KEYS)
    for kind, rows in (
        ("program", document["programs"]),
        ("unowned", [{**row, "server_id": row["id"]} for row in document["unowned"]]),
        ("missing", document["missing"]),
        ("blocked", document["blocked"]),
        ("blocker", document["blockers"]),
    ):
        for row in rows:
            row = {**row, **{key: _chain(row[key]) for key in ("blocked_by", "blocks") if key in row}}
            writer.writerow(csv_cell({**row, "kind": kind}.get(key)) for key in CSV_KEYS)
    return file.getvalue()


def reconcile_text(document: Mapping[str, Any]) -> str:
    """Return the comparison for people."""
    return "".join(f"{line.rstrip()}\n" for line in _lines(document))


def _lines(document: Mapping[str, Any]) -> Iterable[str]:
    server = document["server"]
    name = DatabaseServer(server["host"], server["port"])
    yield printable(f"{server['dialect']} {server['version']} at {name}")
    reserved = f" ({server['reserved_connections']} reserved)" if server["reserved_connections"] else ""
    yield (
        f"max connections {server['max_connections']}{reserved}  used {server['used_connections']}"
        f"  headroom {server['headroom']}"
    )
    yield _capacity(document)
    yield (
        f"sessions {document['sessions']}  accounted {document['accounted_sessions']}"
        f"  unowned {document['unowned_sessions']}  just opened {document['unsettled_sessions']}"
        f"  missing {document['missing_connections']}"
    )
    yield from map(printable, _notes(document))
    if document["programs"]:
        yield from ("", "Sessions by program")
        yield from aligned(_PROGRAM, document["programs"])
    if document["unowned"]:
        yield from ("", "Sessions that no reported process owns")
        yield from aligned(_UNOWNED, _grouped(document["unowned"]))
    if document["missing"]:
        yield from ("", "Connections that applications believe in and the server does not know")
        yield from aligned(_MISSING, document["missing"])
    if document["blocked"]:
        yield from ("", "Sessions that wait for a lock")
        yield from aligned(_BLOCKED, [_shown(row, "blocked_by") for row in document["blocked"]])
    if document["blockers"]:
        yield from ("", "Sessions that they wait for, the roots first")
        yield from aligned(_BLOCKERS, [_shown(row, "blocks") for row in document["blockers"]])


def _chain(sessions: list[int] | None) -> list[str] | None:
    return None if sessions is None else list(map(str, sessions))


def _shown(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the row for the table: ids as one text, whose it is in few words."""
    ids = _chain(row[key]) or []
    more = ["..."] if len(ids) > SHOWN_IDS and key == "blocks" else []
    shown = [*ids[:SHOWN_IDS], *more] if more else ids
    root = f"{len(ids)}: " if key == "blocks" else ""
    chain = "not known" if row[key] is None else root + (" " if key == "blocks" else " < ").join(shown)
    return {**row, "program": row["program"] or whose(row), key: chain}


_PROGRAM: Final = {
    "host": "HOST", "program": "PROGRAM", "sessions": "SESSIONS", "checked_out": "CHECKED OUT",
    "idle": "IDLE", "detached": "DETACHED", "lost": "LOST", "capacity": "CAPACITY",
}  # fmt: skip
_UNOWNED: Final = {
    "client_host": "CLIENT HOST", "user": "USER", "database": "DATABASE", "application": "APPLICATION",
    "sessions": "SESSIONS", "ids": "IDS",
}  # fmt: skip
_BLOCKED: Final = {
    "server_id": "SERVER ID", "host": "HOST", "program": "PROGRAM", "pid": "PID", "state": "STATE",
    "state_seconds": "FOR", "holder": "HOLDER", "call_site": "CALL SITE", "blocked_by": "BLOCKED BY",
}  # fmt: skip
_BLOCKERS: Final = {
    "server_id": "SERVER ID", "host": "HOST", "program": "PROGRAM", "pid": "PID", "state": "STATE",
    "state_seconds": "FOR", "holder": "HOLDER", "call_site": "CALL SITE", "blocks": "BLOCKS",
}  # fmt: skip
_MISSING: Final = {
    "host": "HOST", "program": "PROGRAM", "pid": "PID", "server_id": "SERVER ID", "state": "STATE",
    "age_seconds": "AGE", "held_seconds": "HELD", "holder": "HOLDER", "call_site": "CALL SITE",
}  # fmt: skip


def _capacity(document: Mapping[str, Any]) -> str:
    text = f"pools {document['pools']}  capacity "
    if document["capacity"] is not None:
        left = document["capacity_headroom"]
        verdict = (
            f"{left} below the limit" if left >= 0 else f"OVERCOMMIT: {-left} more than the server takes"
        )
        return f"{text}{document['capacity']}, {verdict}"
    reasons = []
    if document["unlimited_pools"]:
        reasons.append(f"{document['unlimited_pools']} without a limit")
    if document["lost_pools"]:
        reasons.append(f"{document['lost_pools']} of lost processes")
    if document["pooled_pools"]:
        reasons.append(f"{document['pooled_pools']} through a pooler")
    return f"{text}not known: at least {document['limited_capacity']}, and {', '.join(reasons)}"


def _notes(document: Mapping[str, Any]) -> Iterable[str]:
    if hidden := document["server"]["hidden_sessions"]:
        right = "PROCESS" if document["server"]["dialect"] != "postgresql" else "pg_read_all_stats"
        yield f"note: {hidden} sessions are hidden from this account: it needs {right} to see them all"
    if pooled := document["connections_through_pooler"]:
        yield (
            f"note: a pooler (PgBouncer) stands between this server and {pooled} connections: their session"
            " ids are its own, and some unowned sessions are theirs"
        )
    if without := document["connections_without_id"] - pooled:
        yield f"note: {without} connections have no session id: some unowned sessions may be theirs"
    if unknown := document["unknown_server_connections"]:
        yield (
            f"note: not compared, since it is not known where they are: {unknown} connections; some unowned"
            " sessions may be theirs"
        )
    if problem := document["blocking_problem"]:
        yield f"note: {problem}"
    if left_out := document.get("left_out"):
        yield f"note: limits leave out {left_out} of the service: some unowned sessions may be theirs"
    if shared := document["shared_sessions"]:
        yield f"note: {shared} sessions are held by several processes, after a fork"
    if others := document["other_servers"]:
        names = ", ".join(
            f"{each['server']} ({each['connections']} connections{' through a pooler' * each['pooler']})"
            for each in others[:10]
        )
        names += f" and {len(others) - 10} more" * (len(others) > 10)
        yield f"note: not compared, since applications name another server: {names}"
        yield f"      where that is this server too, say so: --database {others[0]['server']}"


def _grouped(unowned: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for all sessions of the same client host, user, database and application."""
    found: dict[tuple[Any, ...], list[int]] = {}
    keys = ("client_host", "user", "database", "application")
    for row in unowned:
        found.setdefault(tuple(row[key] for key in keys), []).append(row["id"])
    rows = []
    for group, ids in found.items():
        more = ["..."] if len(ids) > SHOWN_IDS else []
        shown = " ".join([*map(str, ids[:SHOWN_IDS]), *more])
        rows.append({**dict(zip(keys, group, strict=True)), "sessions": len(ids), "ids": shown})
    return sorted(rows, key=lambda row: -row["sessions"])

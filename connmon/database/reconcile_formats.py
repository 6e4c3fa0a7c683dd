"""Print the result of `connmon reconcile`: tables, CSV and JSON. Pure: no I/O, no time.

Names come from applications and from the database server: all are sanitized for the terminal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from connmon.database.documents import BlockedSession, BlockingSession, LockSession, Reconcile, UnownedSession
from connmon.database.lock_chains import owner_name
from connmon.database_address import DatabaseServer
from connmon.protocol.document import cells
from connmon.protocol.text import csv_cell, printable
from connmon.reader.formats import aligned, as_json

#: How many session ids with the same owner a line of the table has.
SHOWN_IDS: Final = 5
#: How many other servers a note names.
NAMED_SERVERS: Final = 10

#: The keys of a CSV row. `kind`: program (the accounted sessions of one), unowned, missing, blocked (a
#: session that waits for a lock), blocker.
CSV_KEYS: Final = (
    "kind", "host", "program", "sessions", "checked_out", "idle", "detached", "lost", "capacity",
    "pid", "server_id", "client_host", "client_port", "user", "database", "application", "state",
    "state_seconds", "age_seconds", "held_seconds", "holder", "call_site",
    "verdict", "holder_in", "holder_site", "blocked_by", "blocks", "root",
)  # fmt: skip


def reconcile_json(document: Reconcile) -> str:
    """Return the document as indented JSON."""
    return as_json({**document, "missing": [cells(row) for row in document["missing"]]})


def reconcile_csv(document: Reconcile) -> str:
    """Return programs, unowned sessions, missing connections, and the waits for locks as rows of one CSV."""
    rows: list[Mapping[str, Any]] = [
        *({**row, "kind": "program"} for row in document["programs"]),
        *({**row, "server_id": row["id"], "kind": "unowned"} for row in document["unowned"]),
        *({**cells(row), "kind": "missing"} for row in document["missing"]),
        *({**row, "blocked_by": _ids(row["blocked_by"]), "kind": "blocked"} for row in document["blocked"]),
        *({**row, "blocks": _ids(row["blocks"]), "kind": "blocker"} for row in document["blockers"]),
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_KEYS)
    writer.writerows([csv_cell(row.get(key)) for key in CSV_KEYS] for row in rows)
    return file.getvalue()


def reconcile_text(document: Reconcile) -> str:
    """Return the comparison for people."""
    return "".join(f"{line.rstrip()}\n" for line in _lines(document))


def _lines(document: Reconcile) -> Iterable[str]:
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
    blocked = [_blocked_cells(row) for row in document["blocked"]]
    blockers = [_blocker_cells(row) for row in document["blockers"]]
    tables: Sequence[tuple[str, Mapping[str, str], Sequence[Mapping[str, Any]]]] = (
        ("Sessions by program", _PROGRAM, document["programs"]),
        ("Sessions that no reported process owns", _UNOWNED, _grouped(document["unowned"])),
        (
            "Connections that applications believe in and the server does not know",
            _MISSING,
            [cells(row) for row in document["missing"]],
        ),
        ("Sessions that wait for a lock", _BLOCKED, blocked),
        ("Sessions that they wait for, the roots first", _BLOCKERS, blockers),
    )
    for title, headings, rows in tables:
        if rows:
            yield from ("", title)
            yield from aligned(headings, rows)


def _ids(sessions: list[int] | None) -> list[str] | None:
    return None if sessions is None else list(map(str, sessions))


def _blocked_cells(row: BlockedSession) -> dict[str, Any]:
    ids = _ids(row["blocked_by"])
    chain = "not known" if ids is None else " < ".join(ids)
    return {**row, "program": _program(row), "blocked_by": chain}


def _blocker_cells(row: BlockingSession) -> dict[str, Any]:
    return {**row, "program": _program(row), "blocks": f"{len(row['blocks'])}: {_some_ids(row['blocks'])}"}


def _program(row: LockSession) -> str:
    return row["program"] or owner_name(row)


def _some_ids(ids: list[int]) -> str:
    """Return the first ids, and "..." where there are more."""
    return " ".join([*map(str, ids[:SHOWN_IDS]), *["..."] * (len(ids) > SHOWN_IDS)])


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


def _capacity(document: Reconcile) -> str:
    text = f"pools {document['pools']}  capacity "
    if document["capacity"] is not None and document["capacity_headroom"] is not None:
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


def _notes(document: Reconcile) -> Iterable[str]:
    if hidden := document["server"]["hidden_sessions"]:
        privilege = "PROCESS" if document["server"]["dialect"] != "postgresql" else "pg_read_all_stats"
        yield f"note: {hidden} sessions are hidden from this account: it needs {privilege} to see them all"
    if pooled := document["connections_through_pooler"]:
        yield (
            f"note: a pooler (PgBouncer) stands between this server and {pooled} connections: their session"
            " ids are its own, and some unowned sessions are theirs"
        )
    if without_id := document["connections_without_id"] - pooled:
        yield f"note: {without_id} connections have no session id: some unowned sessions may be theirs"
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
            f"{other['server']} ({other['connections']} connections{' through a pooler' * other['pooler']})"
            for other in others[:NAMED_SERVERS]
        )
        names += f" and {len(others) - NAMED_SERVERS} more" * (len(others) > NAMED_SERVERS)
        yield f"note: not compared, since applications name another server: {names}"
        yield f"      where that is this server too, say so: --database {others[0]['server']}"


def _grouped(unowned: Iterable[UnownedSession]) -> list[dict[str, Any]]:
    """Return one row for all sessions of the same client host, user, database and application."""
    groups: dict[tuple[str | None, ...], list[int]] = {}
    for row in unowned:
        group = (row["client_host"], row["user"], row["database"], row["application"])
        groups.setdefault(group, []).append(row["id"])
    keys = ("client_host", "user", "database", "application")
    return [
        {**dict(zip(keys, group, strict=True)), "sessions": len(ids), "ids": _some_ids(ids)}
        for group, ids in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]

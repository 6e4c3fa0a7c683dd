"""Who holds a database server's session: what `connmon whois` prints. Pure: no I/O, no time.

- Session ids are the server's own, so that two servers may well have the same one, and a forked
  process the same as its parent: all that match are told of, each with its server.
- The operating system's user and the database's are two: each is named as what it is.
- Of a process that is lost, what was last heard is shown, and that it is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from connmon.dbaddress import DatabaseServer, joined, named, names, servers_of
from connmon.errors import ConfigError, one_line
from connmon.formats import printable, short_age
from connmon.model import LARGEST

#: The width of the names on the left.
_LEFT: Final = 10


def parse_session(text: str) -> int:
    """Return the session's id. Raises ConfigError where it is not one."""
    if text.isascii() and text.isdigit() and 0 < len(text) <= 16 and 1 <= int(text) <= LARGEST:
        return int(text)
    raise ConfigError(
        one_line(f"{text[:100]!r} is not a session id; expected the number that SHOW PROCESSLIST or "
                 "pg_stat_activity shows")
    )  # fmt: skip


def whois(
    document: Mapping[str, Any], session: int, database: Sequence[DatabaseServer] = ()
) -> tuple[dict[str, Any], str | None]:
    """Return what is known of the session, and where nothing is, why.

    `document` is a snapshot by connection. The result has those of its rows that match; `database`: only
    sessions of one of these servers.
    """
    found = [row for row in document["rows"] if row["server_id"] == session]
    rows = [{**row, "database_user": database_user(row["pool"])} for row in found if _at(row, database)]
    header = {key: document[key] for key in ("service", "node", "leader", "quorum", "stale_seconds")}
    result = {
        **header, "server_id": session, "database": joined(database) or None, "rows": rows,
    }  # fmt: skip
    return result, None if rows else _nobody(document, session, database, found)


def database_user(pool: str | None) -> str | None:
    """Return the user that a pool's URL logs in with; None where the URL does not say."""
    match = re.match("[^:/@]+://([^:/?#@]+)[@:]", pool or "")
    return unquote(match[1]) if match else None


def _at(row: Mapping[str, Any], database: Sequence[DatabaseServer]) -> bool:
    """Whether the connection of this row is at one of the servers; no servers: at any, or one not known."""
    return not database or any(names(wanted, server) for wanted in database for server in servers_of(row))


def _nobody(
    document: Mapping[str, Any], session: int, database: Sequence[DatabaseServer], found: list[dict[str, Any]]
) -> str:
    known = [row for row in document["rows"] if row["server_id"] is not None]
    where = f" on {joined(database)}" if database else ""
    if found:
        others = ", ".join(sorted({named(servers_of(row)) for row in found}))
        hint = f"there is one on {others}"
    elif database and not any(_at(row, database) for row in known):
        servers = sorted({named(servers_of(row)) for row in known})
        more = f" and {len(servers) - 10} more" * (len(servers) > 10)
        listed = f"the servers that pools name are {', '.join(servers[:10])}{more}"
        hint = listed if servers else "no server is known"
    else:
        without = len(document["rows"]) - len(known)
        hint = f"sessions known: {len(known)}; connections without a session id: {without}"
        if pooled := sum(bool(row["pooler"]) for row in document["rows"] if row["server_id"] is None):
            hint += f", {pooled} of them through a pooler (PgBouncer), which hides it"
    if left_out := document.get("totals", {}).get("left_out"):
        hint += f"; limits leave out {left_out} of the service"
    return f"no process that reports to service {document['service']} has session {session}{where}: {hint}"


def whois_text(result: Mapping[str, Any]) -> str:
    """Return the matches for people, a block for each."""
    blocks = [
        "".join(f"{line.rstrip()}\n" for line in _block(result["server_id"], row)) for row in result["rows"]
    ]
    return "\n".join(blocks)


def _block(session: int, row: Mapping[str, Any]) -> list[str]:
    lines = [f"session {session} of {printable(str(row['dialect']))} {printable(named(servers_of(row)))}"]
    if row["state"] is None:
        state = "lost: its process is silent, this is what was last heard"
    elif row["held_seconds"] is None:
        state = row["state"].replace("_", " ")
    else:
        state = f"{row['state'].replace('_', ' ')}, held for {short_age(row['held_seconds'])}"
    command = row["command"]
    for name, value in (
        ("host", row["host"]),
        ("program", row["program"]),
        ("pid", row["pid"]),
        ("os user", row["user"]),
        ("command", command),
        ("pool", row["pool"]),
        ("db user", row["database_user"]),
        ("state", state),
        ("holder", row["holder"]),
        ("opened", f"{short_age(row['age_seconds'])} ago"),
        ("code", row["call_site"]),
    ):
        shown = "-" if value is None else printable(str(value))
        lines.append(f"  {name:<{_LEFT}}{shown}")
    for number, line in enumerate(row["stack"]):
        lines.append(f"  {'stack' if not number else '':<{_LEFT}}{printable(line)}")
    return lines

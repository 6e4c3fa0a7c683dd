"""Print the result of `connmon whois`: text, CSV and JSON. Pure: no I/O, no time.

Names come from applications and from the database server: all are sanitized for the terminal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

from connmon.database.documents import Whois, WhoisRow
from connmon.database.lock_chains import in_words
from connmon.database.naming import pool_servers
from connmon.database_address import DatabaseServer, named
from connmon.protocol.document import JsonConnection
from connmon.protocol.text import HOLDER_WORDS, csv_cell, printable, short_age
from connmon.reader.formats import as_json

#: Characters of the names on the left.
_NAME_WIDTH: Final = 10
#: How many of the sessions that it blocks the text has.
BLOCKED_LINES: Final = 5
#: The keys of a CSV row. `kind`: session (a connection that has it, or the server's words about it), blocker,
#: blocked (a session that waits for it).
CSV_KEYS: Final = (
    "kind", "server_id", "host", "program", "pid", "pool", "database_user", "client_host", "client_port",
    "database", "application", "state", "state_seconds", "held_seconds", "verdict", "pool_verdict",
    "pool_verdict_reason", "holder", "holder_in", "holder_site", "call_site", "stack", "blocked_by", "root",
    "blocks",
)  # fmt: skip


def whois_json(result: Whois) -> str:
    """Return the document as indented JSON."""
    return as_json({**result, "rows": [row.cells() for row in result["rows"]]})


def whois_csv(result: Whois) -> str:
    """Return the matches, the blockers and the blocked sessions as rows of one CSV."""
    info = result["session"]
    if result["rows"]:
        client = {
            "client_host": info and info["client_host"],
            "client_port": info and info["client_port"],
        }
        sessions: list[Mapping[str, Any]] = [{**row.cells(), **client} for row in result["rows"]]
    elif info is not None:
        sessions = [{**info, "server_id": result["server_id"], "database_user": info["user"]}]
    else:
        sessions = []
    chains = {"blocked_by": _ids(result["blocked_by"]), "blocks": _ids(result["blocks"])}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_KEYS)
    rows: list[Mapping[str, Any]] = [
        *({**row, **chains, "kind": "session"} for row in sessions),
        *({**row, "database_user": row["user"], "kind": "blocker"} for row in result["blockers"] or ()),
        *({**row, "database_user": row["user"], "kind": "blocked"} for row in result["blocked"] or ()),
    ]
    writer.writerows([csv_cell(row.get(key)) for key in CSV_KEYS] for row in rows)
    return file.getvalue()


def _ids(sessions: list[int] | None) -> list[str] | None:
    return None if sessions is None else list(map(str, sessions))


def whois_text(result: Whois) -> str:
    """Return one block of lines for each match; without a match, the server's words about the session."""
    locks = [*_blocked_by(result), *_blocks(result)]
    blocks = [_match(result["server_id"], row, locks) for row in result["rows"]]
    if not blocks and result["session"] is not None:
        blocks = [[*_unreported(result), *locks]]
    return "\n".join("".join(f"{line.rstrip()}\n" for line in block) for block in blocks)


def _match(session: int, match: WhoisRow, locks: Iterable[str]) -> list[str]:
    """Return the block of a connection that has the session."""
    row = match.connection
    process, pool, reason = row.process, row.pool, match.pool_verdict_reason
    title = f"session {session} of {printable(str(pool.dialect))} {printable(named(pool_servers(pool)))}"
    pool_verdict = None if reason is None else f"{match.pool_verdict}: {reason}"
    stack = [
        f"  {'stack' if not number else '':<{_NAME_WIDTH}}{printable(line)}"
        for number, line in enumerate(row.stack)
    ]
    return [
        title,
        *_named(
            ("host", process.host),
            ("program", process.program),
            ("pid", process.pid),
            ("os user", process.user),
            ("command", process.command),
            ("pool", pool.pool),
            ("db user", match.database_user),
            ("state", _state(row)),
        ),
        *_named_if_known(("verdict", row.verdict), ("its pool", pool_verdict)),
        *locks,
        *_named(("holder", row.holder)),
        *_named_if_known(("holder is", _holder_place(row))),
        *_named(("opened", f"{short_age(row.age_seconds)} ago"), ("code", row.call_site)),
        *stack,
    ]


def _state(row: JsonConnection) -> str:
    if row.state is None:
        return "lost: its process is silent, this is the last report"
    state = row.state.replace("_", " ")
    return state if row.held_seconds is None else f"{state}, held for {short_age(row.held_seconds)}"


def _holder_place(row: JsonConnection) -> str | None:
    """Return where the holder is now: in the database, at which call site."""
    place = None if row.holder_in is None else HOLDER_WORDS[row.holder_in].brief
    return " ".join(filter(None, (place, row.holder_site))) or None


def _unreported(result: Whois) -> list[str]:
    """Return the server's words about a session that no process reports."""
    info = result["session"]
    assert info is not None
    state = info["state"]
    if state is not None and info["state_seconds"] is not None:
        state = f"{state} for {short_age(info['state_seconds'])}"
    client = info["client_host"]
    if client is not None and info["client_port"] is not None:
        client = str(DatabaseServer(client, info["client_port"]))
    return [
        f"session {result['server_id']} of {printable(str(result['database']))}, not one of connmon's",
        *_named(
            ("db user", info["user"]), ("client", client), ("database", info["database"]),
            ("name", info["application"]), ("state", state),
        ),
    ]  # fmt: skip


def _blocked_by(result: Whois) -> list[str]:
    """Return a line for each blocker; nothing where the server was not asked."""
    lines = [
        f"by session {blocker['server_id']}{' (the root)' * blocker['root']}: {in_words(blocker)}"
        for blocker in result["blockers"] or ()
    ]
    return _lock_lines("blocked", result["blocked_by"], lines or ["by nobody"], result["blocking_problem"])


def _blocks(result: Whois) -> list[str]:
    """Return a line for some of the sessions that it blocks; nothing where the server was not asked."""
    waiters = result["blocked"] or ()
    lines = [f"session {waiter['server_id']}: {in_words(waiter)}" for waiter in waiters[:BLOCKED_LINES]]
    if len(waiters) > BLOCKED_LINES:
        lines.append(f"and {len(waiters) - BLOCKED_LINES} more")
    return _lock_lines("blocks", result["blocks"], lines or ["nobody"], result["blocks_problem"])


def _lock_lines(name: str, ids: list[int] | None, lines: list[str], problem: str | None) -> list[str]:
    if ids is None:
        return [] if problem is None else _named((name, f"not known: {problem}"))
    if problem is not None:
        lines = [*lines, f"(not all is known: {printable(problem)})"]
    return [f"  {name if not number else '':<{_NAME_WIDTH}}{line}" for number, line in enumerate(lines)]


def _named(*pairs: tuple[str, object]) -> list[str]:
    return [
        f"  {name:<{_NAME_WIDTH}}{'-' if value is None else printable(str(value))}" for name, value in pairs
    ]


def _named_if_known(*pairs: tuple[str, object]) -> list[str]:
    return _named(*(pair for pair in pairs if pair[1] is not None))

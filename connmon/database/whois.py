"""Who holds a session of a database server: the result of `connmon whois`. Pure: no I/O, no time.

- Session ids are the server's own. Two servers may use the same id, and a forked process has its parent's:
  all matches are returned, each with its server.
- The operating system's user and the database's are two things, and are named differently.
- Where the server itself was asked, the sessions that this one waits for are resolved too, and those that
  wait for it (see `lock_chains`).
- Of a lost process the last report is shown, marked as lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import unquote

from connmon.database.documents import LookHeader, RootOrNot, Whois, WhoisLocks, WhoisRow
from connmon.database.lock_chains import blocked_by, described, roots, session_info, waiting_for
from connmon.database.locks import Locks
from connmon.database.naming import Naming, pool_servers
from connmon.database.reconcile import DatabaseLook
from connmon.database_address import DatabaseServer, joined, named, names
from connmon.errors import ConfigError, one_line
from connmon.protocol.document import JsonConnection, JsonPool, PoolFields
from connmon.protocol.values import LARGEST, VerdictWord

#: How many servers an error names.
_NAMED_SERVERS: Final = 10


def parse_session(text: str) -> int:
    """Return the session id. Raises ConfigError where the text is not one."""
    if text.isascii() and text.isdigit() and 0 < len(text) <= 16 and 1 <= int(text) <= LARGEST:
        return int(text)
    raise ConfigError(
        one_line(f"{text[:100]!r} is not a session id; expected the number that SHOW PROCESSLIST or "
                 "pg_stat_activity shows")
    )  # fmt: skip


class ServerLook(NamedTuple):
    """The answers of the database server that was asked."""

    look: DatabaseLook
    naming: Naming
    waiters: Locks
    """The waits for the session, and for those that wait for it."""


def whois(
    header: LookHeader,
    connections: Sequence[JsonConnection],
    session: int,
    database: Sequence[DatabaseServer] = (),
    pools: Iterable[JsonPool] = (),
    at: ServerLook | None = None,
) -> tuple[Whois, str | None]:
    """Return what is known of the session; and where no process has it, the reason.

    `connections`: the rows of a snapshot by connection; the result has those that match. `database`: only
    sessions of one of these servers. `pools`: the pools of the same snapshot, for their verdicts. `at`: the
    answers of the server that `database` names; without them the keys of `WhoisLocks` are None.
    """
    candidates = [row for row in connections if row.server_id == session]
    if at is None:
        matches = [row for row in candidates if _is_at(row.pool, database)]
    else:
        matches = _at_server(candidates, session, at)
    verdicts = _pool_verdicts(pools)
    rows = [
        WhoisRow(row, database_user(row.pool.pool), *verdicts.get(_pool_key(row), _NO_VERDICT))
        for row in matches
    ]
    result: Whois = {
        "service": header["service"],
        "node": header["node"],
        "leader": header["leader"],
        "quorum": header["quorum"],
        "stale_seconds": header["stale_seconds"],
        "server_id": session,
        "database": joined(database) or None,
        "rows": rows,
        **(_NOT_ASKED if at is None else _locks(session, at)),
    }
    return result, None if rows else _not_found(header, connections, session, database)


_NOT_ASKED: Final[WhoisLocks] = {
    "session": None, "blocked_by": None, "blockers": None, "blocking_problem": None,
    "blocks": None, "blocked": None, "blocks_problem": None,
}  # fmt: skip
_PoolVerdict: TypeAlias = tuple[VerdictWord | None, str | None]
"""A pool's verdict and its reason."""
_NO_VERDICT: Final[_PoolVerdict] = (None, None)


def _at_server(candidates: Iterable[JsonConnection], session: int, at: ServerLook) -> list[JsonConnection]:
    """Return the connections that have the session of the server that was asked."""
    if any(listed.id == session for listed in at.look.view.sessions):
        return list(at.look.owners(at.naming).get(session, ()))
    return [row for row in candidates if at.naming.has(at.look.view, row)]


def _locks(session: int, at: ServerLook) -> WhoisLocks:
    locks, owners = at.look.locks, at.look.owners(at.naming)
    sessions = {listed.id: listed for listed in at.look.view.sessions}
    chain, root = blocked_by(locks, session), roots(locks)
    blockers: list[RootOrNot] = [
        {**described(number, sessions, owners), "root": number in root} for number in chain or ()
    ]
    waiters = waiting_for(at.waiters, session)
    return {
        "session": session_info(sessions[session]) if session in sessions else None,
        "blocked_by": chain,
        "blockers": None if chain is None else blockers,
        "blocking_problem": locks.problem,
        "blocks": waiters,
        "blocked": None if waiters is None else [described(n, sessions, owners) for n in waiters],
        "blocks_problem": at.waiters.problem,
    }


def _pool_key(row: JsonPool | JsonConnection) -> tuple[object, ...]:
    pool = row.pool
    return (row.process.instance, pool.pool, pool.pool_class, pool.pool_size, pool.max_overflow)


def _pool_verdicts(pools: Iterable[JsonPool]) -> dict[tuple[object, ...], _PoolVerdict]:
    """Return the pools' verdicts; none for pools that a connection's row does not distinguish."""
    verdicts: dict[tuple[object, ...], _PoolVerdict] = {}
    for row in pools:
        key = _pool_key(row)
        verdicts[key] = _NO_VERDICT if key in verdicts else (row.verdict, row.verdict_reason)
    return verdicts


def database_user(pool: str | None) -> str | None:
    """Return the user that a pool's URL logs in with; None where the URL does not say."""
    match = re.match("[^:/@]+://([^:/?#@]+)[@:]", pool or "")
    return unquote(match[1]) if match else None


def _is_at(pool: PoolFields, database: Sequence[DatabaseServer]) -> bool:
    """Whether the pool is at one of the servers; no servers: at any, known or not."""
    return not database or any(names(wanted, server) for wanted in database for server in pool_servers(pool))


def _not_found(
    header: LookHeader,
    connections: Sequence[JsonConnection],
    session: int,
    database: Sequence[DatabaseServer],
) -> str:
    """Return the error for a session that no process has, with a hint at what is known."""
    with_id = [row for row in connections if row.server_id is not None]
    without_id = [row for row in connections if row.server_id is None]
    where = f" on {joined(database)}" if database else ""
    if candidates := [row for row in with_id if row.server_id == session]:
        servers = sorted({named(pool_servers(row.pool)) for row in candidates})
        hint = f"there is one on {', '.join(servers)}"
    elif database and not any(_is_at(row.pool, database) for row in with_id):
        servers = sorted({named(pool_servers(row.pool)) for row in with_id})
        more = f" and {len(servers) - _NAMED_SERVERS} more" * (len(servers) > _NAMED_SERVERS)
        hint = f"the servers that pools name are {', '.join(servers[:_NAMED_SERVERS])}{more}"
        if not servers:
            hint = "no server is known"
    else:
        hint = f"sessions known: {len(with_id)}; connections without a session id: {len(without_id)}"
        if pooled := sum(bool(row.pool.pooler) for row in without_id):
            hint += f", {pooled} of them through a pooler (PgBouncer), which hides it"
    if left_out := header.get("left_out"):
        hint += f"; limits leave out {left_out} of the service"
    return f"no process that reports to service {header['service']} has session {session}{where}: {hint}"

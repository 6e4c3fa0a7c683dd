"""Who waits for whose lock, as a database server says it: the queries, and how answers are read. Pure.

- Each query is read only, bounded by a limit of rows and by a time on the server, and changes no
  setting of the session.
- What the account may not see, or the server does not record, is one line (`Locks.problem`), and
  a session that waits without a known blocker is in `Locks.unknown`.
- The sources: PostgreSQL 16, 9.27 (pg_blocking_pids) and 54.12 (pg_locks, which everybody may read);
  MariaDB's pages on INNODB_LOCK_WAITS and performance_schema.metadata_locks; MySQL 8.4 reference
  manual, 29.12.13 (data_lock_waits, metadata_locks) and 30.4.3.9 (sys.innodb_lock_waits); which
  metadata locks exclude one another: the tables in MySQL's sql/mdl.cc (MDL_lock::m_object_lock_strategy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.errors import ConnmonError

#: Seconds that the server has for each query.
SECONDS: Final = 5
#: Waits that are read at most.
MOST: Final = 10_000
#: Waiting PostgreSQL sessions that are asked about at most: each is a look into the lock manager.
MOST_WAITING: Final = 500

Query: TypeAlias = Callable[[str], Sequence[Any]]
"""Returns the rows of a query; raises Unseen."""


class Unseen(ConnmonError):
    """The server did not answer a query; the message says why, in the server's words."""


class Wait(NamedTuple):
    """One session waits for a lock that another has, or has asked for before it."""

    waiting: int
    blocking: int
    """0: a transaction without a session, such as a prepared one."""


class Locks(NamedTuple):
    """The waits for locks on a server at one moment."""

    waits: tuple[Wait, ...] = ()
    unknown: tuple[int, ...] = ()
    """Sessions that wait for a lock, and whose blocker is not seen."""
    problem: str | None = None
    """Why not all is seen. None: it is."""
    partial: bool = False
    """Whether a session without a wait here may wait all the same."""


# --- PostgreSQL ---------------------------------------------------------------------------

_POSTGRESQL: Final = (
    "SELECT pid, unnest(pg_blocking_pids(pid)) FROM"
    f" (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted ORDER BY pid LIMIT {MOST_WAITING}) waiting"
    f" LIMIT {MOST}"
)


def postgresql(query: Query) -> Locks:
    """Return the waits of a PostgreSQL; `query` is to keep the time limit."""
    try:
        return Locks(_waits(query(_POSTGRESQL)))
    except Unseen as error:
        return Locks(problem=f"which session blocks which is not seen: {error}", partial=True)


# --- MySQL and MariaDB --------------------------------------------------------------------

_TRANSACTIONS: Final = (
    " JOIN information_schema.innodb_trx r ON r.trx_id = w.{requesting}"
    " JOIN information_schema.innodb_trx b ON b.trx_id = w.{blocking}"
    f" LIMIT {MOST}"
)
_ROWS: Final = "DISTINCT r.trx_mysql_thread_id, b.trx_mysql_thread_id FROM {table} w" + _TRANSACTIONS
#: MariaDB, and MySQL before 8.0.
_ROWS_OF_INNODB: Final = _ROWS.format(
    table="information_schema.innodb_lock_waits", requesting="requesting_trx_id", blocking="blocking_trx_id"
)
#: As sys.innodb_lock_waits of MySQL 8 joins them.
_ROWS_OF_SCHEMA: Final = _ROWS.format(
    table="performance_schema.data_lock_waits",
    requesting="requesting_engine_transaction_id",
    blocking="blocking_engine_transaction_id",
)
_METADATA: Final = (
    "DISTINCT t.processlist_id, l.lock_type, l.lock_status, l.object_type, l.object_schema, l.object_name"
    " FROM performance_schema.metadata_locks p JOIN performance_schema.metadata_locks l"
    " ON l.object_type = p.object_type AND l.object_schema <=> p.object_schema"
    " AND l.object_name <=> p.object_name"
    " JOIN performance_schema.threads t ON t.thread_id = l.owner_thread_id"
    f" WHERE p.lock_status = 'PENDING' AND t.processlist_id IS NOT NULL LIMIT {MOST}"
)
#: Sessions that wait for anything but a row: locks of tables, schemas, users' own names and the like.
_STATES: Final = (
    "id FROM information_schema.processlist"
    f" WHERE state LIKE 'Waiting for % lock' OR state = 'User lock' ORDER BY id LIMIT {MOST}"
)


def mysql(query: Query, version: str) -> Locks:
    """Return the waits of a MySQL or MariaDB of this version."""
    mariadb = "mariadb" in version.lower()
    major = version.partition(".")[0]
    new = not mariadb and major.isdigit() and int(major) >= 8
    head = (
        f"SET STATEMENT max_statement_time={SECONDS} FOR SELECT "
        if mariadb
        else f"SELECT /*+ MAX_EXECUTION_TIME({SECONDS * 1000}) */ "
    )
    problems = []
    partial = False
    waits: tuple[Wait, ...] = ()
    try:
        waits = _waits(query(head + (_ROWS_OF_SCHEMA if new else _ROWS_OF_INNODB)))
    except Unseen as error:
        partial = True
        needs = "PROCESS" + " and SELECT on performance_schema" * new
        problems.append(f"which session has a row locked is not seen: that needs {needs} ({error})")
    try:
        waiting = [int(number) for (number,) in query(head + _STATES)]
    except Unseen as error:
        waiting, partial = [], True
        problems.append(f"which session waits for a table's lock is not seen ({error})")
    said, rows = "", list[Any]()
    try:
        rows = list(query(head + _METADATA))
    except Unseen as error:
        said = f" ({error})"
    waits = tuple(dict.fromkeys([*waits, *metadata_waits(rows)]))
    known = {wait.waiting for wait in waits}
    unknown = tuple(number for number in waiting if number not in known)
    if unknown and rows:
        problems.append("which of several sessions has a table's lock is not told by their types of lock")
    elif unknown:
        problems.append(
            "which session has a table's lock is not seen: that needs performance_schema=ON, its instrument "
            f"wait/lock/metadata/sql/mdl, and SELECT on it{said}"
        )
    return Locks(waits, unknown, "; ".join(problems) or None, partial)


def _waits(rows: Iterable[Any]) -> tuple[Wait, ...]:
    """Return them without doubles, and without those for oneself (parallel workers of one session)."""
    found = (Wait(int(waiting), int(blocking)) for waiting, blocking in rows)
    return tuple(wait for wait in dict.fromkeys(found) if wait.waiting != wait.blocking)


# --- Metadata locks -----------------------------------------------------------------------

_SHORT: Final = {
    "SHARED": "S", "SHARED_HIGH_PRIO": "SH", "SHARED_READ": "SR", "SHARED_WRITE": "SW",
    "SHARED_WRITE_LOW_PRIO": "SWLP", "SHARED_UPGRADABLE": "SU", "SHARED_READ_ONLY": "SRO",
    "SHARED_NO_WRITE": "SNW", "SHARED_NO_READ_WRITE": "SNRW", "EXCLUSIVE": "X", "INTENTION_EXCLUSIVE": "IX",
}  # fmt: skip
#: By what is asked for: what another must not have.
_GRANTED: Final = {
    "S": {"X", "IX"},  # with IX on what is a scope: all tables, or those of a schema
    "SH": {"X"},
    "SR": {"SNRW", "X"},
    "SW": {"SRO", "SNW", "SNRW", "X"},
    "SWLP": {"SRO", "SNW", "SNRW", "X"},
    "SU": {"SU", "SNW", "SNRW", "X"},
    "SRO": {"SW", "SWLP", "SNRW", "X"},
    "SNW": {"SW", "SWLP", "SU", "SNW", "SNRW", "X"},
    "SNRW": {"SR", "SW", "SWLP", "SU", "SRO", "SNW", "SNRW", "X"},
    "X": set(_SHORT.values()),
    "IX": {"S", "X"},
}
#: By what is asked for: what another must not have asked for either, since that goes first.
_PENDING: Final = {
    "S": {"X"},
    "SR": {"SNRW", "X"},
    "SW": {"SNW", "SNRW", "X"},
    "SWLP": {"SRO", "SNW", "SNRW", "X"},
    "SU": {"X"},
    "SRO": {"SW", "SNRW", "X"},
    "SNW": {"X"},
    "SNRW": {"X"},
    "IX": {"S", "X"},
}
_EXCLUDED: Final = {"GRANTED": _GRANTED, "PENDING": _PENDING}


def metadata_waits(rows: Iterable[Sequence[Any]]) -> list[Wait]:
    """Return who waits for whom, of rows of metadata_locks: session, lock type, status, and the object.

    Where no lock is known to exclude the one asked for, and one other session alone has a lock on the object,
    it is that; of several nothing is said. (Of MariaDB's backup locks nothing is known here, and of LOCK
    TABLES READ it shows another type than it has.)
    """
    objects: dict[tuple[Any, ...], list[tuple[int, str, str]]] = {}
    for session, kind, status, *named in rows:
        objects.setdefault(tuple(named), []).append((int(session), _SHORT.get(kind, ""), status))
    found: dict[Wait, None] = {}
    for locks in objects.values():
        for waiting, wants, status in locks:
            if status != "PENDING":
                continue
            others = [(blocking, has, held) for blocking, has, held in locks if blocking != waiting]
            blockers = [
                blocking for blocking, has, held in others if has in _EXCLUDED.get(held, {}).get(wants, ())
            ]
            if not blockers:
                holders = {blocking for blocking, _, held in others if held == "GRANTED"}
                blockers = list(holders) if len(holders) == 1 else []
            found.update(dict.fromkeys(Wait(waiting, blocking) for blocking in blockers))
    return list(found)

"""Who waits for whose lock, as a database server says it: the queries, and how answers are read. Pure.

- Each query is read only, bounded by a limit of rows and by a time on the server, and changes no
  setting of the session.
- One session is asked about by itself, then whom it waits for, and so on: no limit of rows cuts that, however
  many others wait. Where a limit cuts the waits of all, who is not among them is not said to wait for nobody.
- What the account may not see, or the server does not record, is one line (`Locks.problem`), and
  a session that waits without a known blocker is in `Locks.unknown`.
- The sources: PostgreSQL 16, 9.27 (pg_blocking_pids) and 54.12 (pg_locks, which everybody may read);
  MariaDB's pages on INNODB_LOCK_WAITS and performance_schema.metadata_locks; MySQL 8.4 reference
  manual, 29.12.13 (data_lock_waits, metadata_locks) and 30.4.3.9 (sys.innodb_lock_waits); which
  metadata locks exclude one another: the tables in MySQL's sql/mdl.cc (MDL_lock::m_object_lock_strategy).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.errors import ConnmonError

#: Seconds that the server has for each query.
SECONDS: Final = 5
#: Waits that are read at most.
MOST: Final = 10_000
#: Waiting PostgreSQL sessions that are asked about at most: each is a look into the lock manager.
MOST_WAITING: Final = 500
#: The steps that one session is followed, upwards and downwards.
STEPS: Final = 16

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


# --- One session --------------------------------------------------------------------------


Ask: TypeAlias = Callable[[Sequence[int], Collection[int]], Locks]


def _followed(session: int, ask: Ask, down: bool = False) -> Locks:
    """Return the waits of one session and, step by step, of those that block it; `down`: the waits for it
    and for those that wait for it.

    `ask` returns the waits of some sessions (`down`: for them), given also those that are known already: of
    each that waits one wait at least, and upwards one for each blocker that was not known.
    """
    waits: dict[Wait, None] = {}
    unknown: dict[int, None] = {}
    problems: dict[str, None] = {}
    seen, asked, partial = {session}, [session], False
    for _ in range(STEPS):
        found = ask(asked, seen)
        waits.update(dict.fromkeys(found.waits))
        unknown.update(dict.fromkeys(found.unknown))
        if found.problem is not None:
            problems[found.problem] = None
        partial |= found.partial
        if found.partial and not down:  # one that seems to wait for nobody may wait all the same: no root
            waiting = {wait.waiting for wait in found.waits}
            unknown.update(dict.fromkeys(each for each in asked if each not in waiting))
        # 0 is a transaction without a session, which waits for nobody.
        asked = sorted({wait.waiting if down else wait.blocking for wait in found.waits} - seen - {0})
        seen.update(asked)
        if not asked:
            break
    else:
        partial = True
        unknown.update(dict.fromkeys(asked))
        whom = "that wait for it" if down else "that it waits for"
        problems[f"those {whom} by more than {STEPS} others are left out"] = None
    if down:
        for wait in waits:
            unknown.pop(wait.waiting, None)
    return Locks(tuple(waits), tuple(unknown), "; ".join(problems) or None, partial)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(int(number)) for number in numbers)


# --- PostgreSQL ---------------------------------------------------------------------------


def postgresql(query: Query, session: int | None = None, down: bool = False) -> Locks:
    """Return the waits of a PostgreSQL, or those of one session and its blockers; `down`: those for it.

    `query` keeps the time limit.
    """
    if session is None:
        return _postgresql(query)
    return _followed(session, lambda asked, seen: _postgresql(query, asked, seen, down), down)


def _postgresql(
    query: Query, asked: Sequence[int] = (), seen: Collection[int] = (), down: bool = False
) -> Locks:
    waiting: list[int] | None = None
    try:
        among = f" AND pid IN ({_listed(asked)})" if asked and not down else ""
        waiting = [
            int(pid)
            for (pid,) in query(
                f"SELECT DISTINCT pid FROM pg_locks WHERE NOT granted{among} ORDER BY pid LIMIT {MOST}"
            )
        ]
        if not waiting:
            return Locks()
        pairs = (
            "SELECT w.pid AS waiting, b.pid AS blocking"
            f" FROM unnest(ARRAY[{_listed(waiting[:MOST_WAITING])}]) AS w(pid),"
            " unnest(pg_blocking_pids(w.pid)) AS b(pid)"
        )
        # Not all pairs, which are many where many wait for one: what following needs of them.
        if down:
            pairs = (
                f"WITH pairs AS ({pairs}) SELECT waiting, min(blocking) FROM pairs"
                f" WHERE blocking IN ({_listed(asked)}) AND waiting NOT IN ({_listed(seen)}) GROUP BY waiting"
            )
        elif asked:
            pairs = (
                f"WITH pairs AS ({pairs}) SELECT min(waiting), blocking FROM pairs"
                f" WHERE blocking NOT IN ({_listed(seen)}) GROUP BY blocking"
                " UNION SELECT waiting, min(blocking) FROM pairs WHERE blocking <> waiting GROUP BY waiting"
            )
        rows = query(f"{pairs} LIMIT {MOST}")
    except Unseen as error:
        # Who waits is known all the same, if that was answered.
        problem = f"which session blocks which is not seen: {error}"
        return Locks((), tuple(waiting or ()), problem, waiting is None or len(waiting) >= MOST)
    waits = _waits(rows)
    left_out = []
    if len(waiting) > MOST_WAITING:
        left_out.append(f"blockers of all but {MOST_WAITING} of the waiting sessions")
    if len(rows) >= MOST:
        left_out.append(_beyond("waits for locks"))
    if not left_out and len(waiting) < MOST:
        return Locks(waits)
    if len(waiting) >= MOST:
        left_out.append(_beyond("waiting sessions"))
    # Downwards who waits for another has no wait here: only of those not asked about it is not known.
    known = set(waiting[:MOST_WAITING]) if down else {wait.waiting for wait in waits}
    unknown = tuple(each for each in waiting if each not in known)
    partial = len(waiting) >= MOST
    return Locks(waits, unknown, _said(left_out, partial), partial)


def _beyond(what: str) -> str:
    return f"{what} beyond {MOST}"


def _said(left_out: Iterable[str], partial: bool) -> str:
    others = "whom others wait for is not known" + ", and a root may wait too" * partial
    return f"{' and '.join(left_out)} are left out: {others}"


# --- MySQL and MariaDB --------------------------------------------------------------------

_JOINED: Final = (
    "{table} w JOIN information_schema.innodb_trx r ON r.trx_id = w.{requesting}"
    " JOIN information_schema.innodb_trx b ON b.trx_id = w.{blocking}"
)
#: MariaDB, and MySQL before 8.0.
_ROWS_OF_INNODB: Final = _JOINED.format(
    table="information_schema.innodb_lock_waits", requesting="requesting_trx_id", blocking="blocking_trx_id"
)
#: As sys.innodb_lock_waits of MySQL 8 joins them.
_ROWS_OF_SCHEMA: Final = _JOINED.format(
    table="performance_schema.data_lock_waits",
    requesting="requesting_engine_transaction_id",
    blocking="blocking_engine_transaction_id",
)
_REQUESTING: Final = "r.trx_mysql_thread_id"
_BLOCKING: Final = "b.trx_mysql_thread_id"
#: The sessions that wait for a row.
_ROW_WAITERS: Final = "trx_mysql_thread_id FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
_METADATA: Final = (
    "DISTINCT t.processlist_id, l.lock_type, l.lock_status, l.object_type, l.object_schema, l.object_name"
    " FROM performance_schema.metadata_locks p JOIN performance_schema.metadata_locks l"
    " ON l.object_type = p.object_type AND l.object_schema <=> p.object_schema"
    " AND l.object_name <=> p.object_name"
    " JOIN performance_schema.threads t ON t.thread_id = l.owner_thread_id"
    " JOIN performance_schema.threads q ON q.thread_id = p.owner_thread_id"
    " WHERE p.lock_status = 'PENDING' AND t.processlist_id IS NOT NULL"
)
#: Sessions that wait for anything but a row: locks of tables, schemas, users' own names and the like.
_STATES: Final = (
    "id FROM information_schema.processlist WHERE (state LIKE 'Waiting for % lock' OR state = 'User lock')"
)


def mysql(query: Query, version: str, session: int | None = None, down: bool = False) -> Locks:
    """Return the waits of a MySQL or MariaDB of this version, or those of one session and its blockers;
    `down`: those for it."""
    mariadb = "mariadb" in version.lower()
    major = version.partition(".")[0]
    new = not mariadb and major.isdigit() and int(major) >= 8
    head = (
        f"SET STATEMENT max_statement_time={SECONDS} FOR SELECT "
        if mariadb
        else f"SELECT /*+ MAX_EXECUTION_TIME({SECONDS * 1000}) */ "
    )

    def limited(statement: str) -> list[Any]:
        return list(query(f"{head}{statement} LIMIT {MOST}"))

    if session is None:
        return _mysql(limited, new)
    return _followed(session, lambda asked, seen: _mysql(limited, new, asked, seen, down), down)


def _row_locks(
    query: Query, new: bool, asked: Sequence[int], seen: Collection[int], down: bool
) -> list[Sequence[Any]]:
    joined = _ROWS_OF_SCHEMA if new else _ROWS_OF_INNODB
    if not asked:
        return [query(f"DISTINCT {_REQUESTING}, {_BLOCKING} FROM {joined}")]
    # Not all pairs, of which there are many where many wait for one row: what following needs of them.
    if down:
        return [
            query(
                f"{_REQUESTING}, MIN({_BLOCKING}) FROM {joined} WHERE {_BLOCKING} IN ({_listed(asked)})"
                f" AND {_REQUESTING} NOT IN ({_listed(seen)}) GROUP BY {_REQUESTING}"
            )
        ]
    among = f"{joined} WHERE {_REQUESTING} IN ({_listed(asked)})"
    return [
        query(
            f"MIN({_REQUESTING}), {_BLOCKING} FROM {among} AND {_BLOCKING} NOT IN ({_listed(seen)})"
            f" GROUP BY {_BLOCKING}"
        ),
        query(
            f"{_REQUESTING}, MIN({_BLOCKING}) FROM {among} AND {_BLOCKING} <> {_REQUESTING}"
            f" GROUP BY {_REQUESTING}"
        ),
    ]


def _mysql(
    query: Query, new: bool, asked: Sequence[int] = (), seen: Collection[int] = (), down: bool = False
) -> Locks:
    """Return the waits of these sessions (`down`: for them), or of all. `query` adds beginning and limits."""
    who_waits = () if down else asked
    problems: list[str] = []
    left_out: list[str] = []
    partial = False
    waits: tuple[Wait, ...] = ()
    row_waiters: list[int] = []
    try:
        answers = _row_locks(query, new, asked, seen, down)
        waits = _waits(row for answer in answers for row in answer)
        if any(len(answer) >= MOST for answer in answers):
            left_out.append(_beyond("waits for rows"))
            row_waiters = [int(number) for (number,) in query(_ROW_WAITERS)]
    except Unseen as error:
        partial = True
        needs = "PROCESS" + " and SELECT on performance_schema" * new
        problems.append(f"which session has a row locked is not seen: that needs {needs} ({error})")
    waiting: list[int] = []
    try:
        among = f" AND id IN ({_listed(who_waits)})" if who_waits else ""
        waiting = [int(number) for (number,) in query(f"{_STATES}{among} ORDER BY id")]
        if len(waiting) >= MOST:
            left_out.append(_beyond("sessions that wait for a table's lock"))
    except Unseen as error:
        partial = True
        problems.append(f"which session waits for a table's lock is not seen ({error})")
    said, rows = "", list[Any]()
    try:
        rows = list(
            query(_METADATA + (f" AND q.processlist_id IN ({_listed(who_waits)})" if who_waits else ""))
        )
        if len(rows) >= MOST:
            left_out.append(_beyond("locks of tables"))
    except Unseen as error:
        said = f" ({error})"
    of_tables = metadata_waits(rows)
    known = {wait.waiting for wait in (*waits, *of_tables)}
    concerned = [
        wait for wait in of_tables if not asked or (wait.blocking if down else wait.waiting) in asked
    ]
    waits = tuple(dict.fromkeys([*waits, *concerned]))
    unknown = [number for number in waiting if number not in known]
    if left_out:
        partial = True
        problems.append(_said(left_out, partial))
        unknown += [
            number for number in row_waiters if number not in known and (not who_waits or number in who_waits)
        ]
    elif unknown and rows:
        problems.append("the types of lock do not say which of several sessions has a table's lock")
    elif unknown:
        problems.append(
            "which session has a table's lock is not seen: that needs performance_schema=ON, its instrument "
            f"wait/lock/metadata/sql/mdl, and SELECT on it{said}"
        )
    return Locks(waits, tuple(dict.fromkeys(unknown)), "; ".join(problems) or None, partial)


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

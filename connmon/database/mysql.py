"""What a MySQL or MariaDB server is asked, and how its answers are read. Read only. Pure: queries are
passed in.

Each query for locks has a limit of rows and a time limit on the server; no setting of the session is changed.

Sources: MariaDB's pages on INNODB_LOCK_WAITS and performance_schema.metadata_locks; MySQL 8.4 reference
manual, 29.12.13 (data_lock_waits, metadata_locks) and 30.4.3.9 (sys.innodb_lock_waits).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from connmon.database.locks import (
    Locks,
    Query,
    Unseen,
    Wait,
    beyond,
    cut_problem,
    follow,
    listed,
    unique_waits,
)
from connmon.database.metadata_locks import metadata_waits
from connmon.database.server_view import Listening, ServerView, Session
from connmon.database.settings import LOCK_LIMITS, LockLimits
from connmon.database_address import DatabaseServer, of_socket, plain

_VARIABLES: Final = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('max_connections', 'version', 'hostname',"
    " 'port', 'socket', 'bind_address', 'skip_networking')"
)
_STATUS: Final = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Threads_connected', 'Uptime')"
_OWN_SESSION: Final = "SELECT connection_id(), substring_index(current_user(), '@', 1)"
_SESSIONS: Final = "SELECT id, user, host, db, command, time FROM information_schema.processlist ORDER BY id"


def read_server(query: Query, dialect: str, server: DatabaseServer) -> ServerView:
    """Return one look at the server."""
    variables = dict(map(tuple, query(_VARIABLES)))
    ((own_id, own_user),) = query(_OWN_SESSION)
    sessions = tuple(_sessions(query(_SESSIONS), own_id))
    status = dict(map(tuple, query(_STATUS)))
    used = int(status["Threads_connected"])
    # An account without the privilege to see others sees only its own sessions.
    sees_others = any(session.user != own_user for session in sessions)
    return ServerView(
        dialect=dialect,
        server=server,
        version=str(variables["version"]),
        uptime_seconds=float(status["Uptime"]),
        max_connections=int(variables["max_connections"]),
        reserved_connections=0,
        used_connections=used,
        sessions=sessions,
        hidden_sessions=0 if sees_others else max(0, used - len(sessions) - 1),
        listening=_listening(variables),
    )


def _sessions(rows: Iterable[Any], own_id: int) -> Iterable[Session]:
    """Yield the sessions of clients, our own left out."""
    for number, user, host, database, command, state_age in rows:
        if command == "Daemon" or user in ("system user", "event_scheduler") or number == own_id:
            continue
        client_host, client_port = _client(host or "")
        yield Session(
            id=int(number),
            user=user,
            client_host=client_host,
            client_port=client_port,
            database=database,
            state=command,
            state_seconds=None if state_age is None else round(max(0.0, float(state_age)), 3),
        )


def _listening(variables: Mapping[Any, Any]) -> Listening:
    networking = str(variables.get("skip_networking", "OFF")).upper() in ("OFF", "0")
    port = int(variables.get("port") or 0) if networking else 0
    addresses = [word for word in map(str.strip, str(variables.get("bind_address") or "").split(",")) if word]
    socket = str(variables.get("socket") or "")
    return Listening(
        hostname=str(variables.get("hostname") or "") or None,
        port=port or None,
        sockets=(of_socket("mysql", plain(socket)),) if socket.startswith("/") else (),
        addresses=tuple(plain(word) for word in addresses),
    )


def _client(host: str) -> tuple[str | None, int | None]:
    """Return the client's host and port; "localhost" without a port is a socket."""
    if host == "localhost":
        return None, None
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return name.strip("[]"), int(port)
    return host or None, None


# --- Locks --------------------------------------------------------------------------------

_JOINED: Final = (
    "{table} w JOIN information_schema.innodb_trx r ON r.trx_id = w.{requesting}"
    " JOIN information_schema.innodb_trx b ON b.trx_id = w.{blocking}"
)
#: MariaDB, and MySQL before 8.0.
_ROW_LOCKS_OF_INNODB: Final = _JOINED.format(
    table="information_schema.innodb_lock_waits", requesting="requesting_trx_id", blocking="blocking_trx_id"
)
#: As sys.innodb_lock_waits of MySQL 8 joins them.
_ROW_LOCKS_OF_SCHEMA: Final = _JOINED.format(
    table="performance_schema.data_lock_waits",
    requesting="requesting_engine_transaction_id",
    blocking="blocking_engine_transaction_id",
)
_REQUESTING: Final = "r.trx_mysql_thread_id"
_BLOCKING: Final = "b.trx_mysql_thread_id"
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
#: Sessions that wait for a lock other than a row's: tables, schemas, user locks and the like.
_OTHER_WAITERS: Final = (
    "id FROM information_schema.processlist WHERE (state LIKE 'Waiting for % lock' OR state = 'User lock')"
)


def read_locks(
    query: Query,
    version: str,
    session: int | None = None,
    waiters: bool = False,
    limits: LockLimits = LOCK_LIMITS,
) -> Locks:
    """Return all waits on a server of this version.

    `session`: those of one session and of its blockers; `waiters`: those for it.
    """
    mariadb = "mariadb" in version.lower()
    major = version.partition(".")[0]
    data_locks = not mariadb and major.isdigit() and int(major) >= 8
    head = (
        f"SET STATEMENT max_statement_time={limits.statement_seconds} FOR SELECT "
        if mariadb
        else f"SELECT /*+ MAX_EXECUTION_TIME({limits.statement_seconds * 1000}) */ "
    )

    def bounded(statement: str) -> list[Any]:
        return list(query(f"{head}{statement} LIMIT {limits.rows}"))

    if session is None:
        return _LockReader(bounded, data_locks, limits).read()
    return follow(
        session,
        lambda asked, seen: _LockReader(bounded, data_locks, limits, asked, seen, waiters).read(),
        limits,
        waiters,
    )


@dataclass
class _LockReader:
    """Reads the waits of the sessions `asked` (`waiters`: the waits for them), or of all."""

    query: Query
    """Adds SELECT and the limits to a statement."""
    data_locks: bool
    """MySQL 8: row locks are in performance_schema."""
    limits: LockLimits
    asked: Sequence[int] = ()
    seen: Collection[int] = ()
    waiters: bool = False
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    partial: bool = False

    @property
    def only_waiting(self) -> Sequence[int]:
        """The sessions whose own waits alone are wanted; empty: those of all."""
        return () if self.waiters else self.asked

    def read(self) -> Locks:
        waits, row_waiters = self._row_waits()
        other_waiters = self._other_waiters()
        metadata, metadata_error = self._metadata_rows()
        of_metadata = metadata_waits(metadata)
        known = {wait.waiting for wait in (*waits, *of_metadata)}
        concerned = [
            wait
            for wait in of_metadata
            if not self.asked or (wait.blocking if self.waiters else wait.waiting) in self.asked
        ]
        unknown = [number for number in other_waiters if number not in known]
        if self.left_out:
            self.partial = True
            self.problems.append(cut_problem(self.left_out, self.partial))
            only = self.only_waiting
            unknown += [
                number for number in row_waiters if number not in known and (not only or number in only)
            ]
        elif unknown and metadata:
            self.problems.append("the types of lock do not say which of several sessions has a table's lock")
        elif unknown:
            self.problems.append(
                "which session has a table's lock is not seen: that needs performance_schema=ON, its "
                f"instrument wait/lock/metadata/sql/mdl, and SELECT on it{metadata_error}"
            )
        return Locks(
            waits=tuple(dict.fromkeys([*waits, *concerned])),
            unknown=tuple(dict.fromkeys(unknown)),
            problem="; ".join(self.problems) or None,
            partial=self.partial,
        )

    def _row_waits(self) -> tuple[tuple[Wait, ...], list[int]]:
        """Return the waits for rows and, where these are cut, the sessions that wait for a row."""
        waits: tuple[Wait, ...] = ()
        row_waiters: list[int] = []
        try:
            answers = [self.query(statement) for statement in self._row_statements()]
            waits = unique_waits(row for answer in answers for row in answer)
            if any(len(answer) >= self.limits.rows for answer in answers):
                self.left_out.append(beyond("waits for rows", self.limits))
                row_waiters = [int(number) for (number,) in self.query(_ROW_WAITERS)]
        except Unseen as error:
            self.partial = True
            needs = "PROCESS" + " and SELECT on performance_schema" * self.data_locks
            self.problems.append(f"which session has a row locked is not seen: that needs {needs} ({error})")
        return waits, row_waiters

    def _row_statements(self) -> list[str]:
        """Return the statements for pairs of a waiting session and a blocker.

        Where a session is followed: not all pairs, which are many when many wait for one row, but those that
        `follow` needs.
        """
        joined = _ROW_LOCKS_OF_SCHEMA if self.data_locks else _ROW_LOCKS_OF_INNODB
        if not self.asked:
            return [f"DISTINCT {_REQUESTING}, {_BLOCKING} FROM {joined}"]
        asked, seen = listed(self.asked), listed(self.seen)
        if self.waiters:
            return [
                f"{_REQUESTING}, MIN({_BLOCKING}) FROM {joined} WHERE {_BLOCKING} IN ({asked})"
                f" AND {_REQUESTING} NOT IN ({seen}) GROUP BY {_REQUESTING}"
            ]
        among = f"{joined} WHERE {_REQUESTING} IN ({asked})"
        return [
            f"MIN({_REQUESTING}), {_BLOCKING} FROM {among} AND {_BLOCKING} NOT IN ({seen})"
            f" GROUP BY {_BLOCKING}",
            f"{_REQUESTING}, MIN({_BLOCKING}) FROM {among} AND {_BLOCKING} <> {_REQUESTING}"
            f" GROUP BY {_REQUESTING}",
        ]

    def _other_waiters(self) -> list[int]:
        """Return the sessions that wait for a lock other than a row's."""
        only = self.only_waiting
        among = f" AND id IN ({listed(only)})" if only else ""
        try:
            waiting = [int(number) for (number,) in self.query(f"{_OTHER_WAITERS}{among} ORDER BY id")]
        except Unseen as error:
            self.partial = True
            self.problems.append(f"which session waits for a table's lock is not seen ({error})")
            return []
        if len(waiting) >= self.limits.rows:
            self.left_out.append(beyond("sessions that wait for a table's lock", self.limits))
        return waiting

    def _metadata_rows(self) -> tuple[list[Any], str]:
        """Return the metadata locks on objects that are waited for, and the server's error in brackets."""
        only = self.only_waiting
        among = f" AND q.processlist_id IN ({listed(only)})" if only else ""
        try:
            rows = list(self.query(f"{_METADATA}{among}"))
        except Unseen as error:
            return [], f" ({error})"
        if len(rows) >= self.limits.rows:
            self.left_out.append(beyond("locks of tables", self.limits))
        return rows, ""

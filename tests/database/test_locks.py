"""Waits for locks: the servers' answers, and the output of `connmon whois` and `reconcile`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from connmon.database.documents import Whois, WhoisRow
from connmon.database.lock_chains import (
    blocked_by,
    blocks,
    described,
    in_words,
    owner_name,
    roots,
    session_info,
    waiting_for,
)
from connmon.database.locks import Locks, Unseen, Wait, follow
from connmon.database.metadata_locks import metadata_waits
from connmon.database.mysql import read_locks as mysql_locks
from connmon.database.postgresql import read_locks as postgresql_locks
from connmon.database.sessions import DatabaseSessions, parse_url
from connmon.database.settings import LOCK_LIMITS, DatabaseSettings, LockLimits
from connmon.database.whois import ServerLook, whois
from connmon.database.whois_formats import whois_csv, whois_json, whois_text
from tests.database.quick import run_connmon
from tests.database.test_reconcile import HEADER, NAMING, conn, look, session
from tests.database.test_sessions import DRIVERS, PASSWORD, RIGHTS, account, url_of
from tests.support.nodes import RunningNode, running_node
from tests.support.servers import MariaDB, Server
from tests.support.stopping import stopped
from tests.support.waiting import wait_for


def waits(*pairs: tuple[int, int]) -> Locks:
    return Locks(tuple(Wait(*pair) for pair in pairs))


# --- Who blocks whom (pure) ---------------------------------------------------------------


def test_the_root_is_last() -> None:
    """Direct blockers come first, and the session that waits for nobody comes last."""
    locked = waits((3, 2), (2, 1), (3, 1), (4, 3))
    assert blocked_by(locked, 4) == [3, 2, 1]
    assert blocked_by(locked, 3) == [2, 1]
    assert blocked_by(locked, 1) == []
    assert blocked_by(locked, 9) == []
    assert roots(locked) == {1}
    assert blocks(locked) == {1: [2, 3, 4], 2: [3, 4], 3: [4]}


def test_a_circle_ends() -> None:
    """Sessions that wait for one another in a circle are listed once, and none is a root."""
    locked = waits((1, 2), (2, 1), (3, 1))
    assert blocked_by(locked, 1) == [2]
    assert blocked_by(locked, 3) == [1, 2]
    assert roots(locked) == frozenset()


def test_whom_a_session_blocks() -> None:
    """All sessions that wait for it are listed, also through others, the nearest first."""
    locked = waits((3, 2), (2, 1), (5, 1), (4, 3), (9, 8))
    assert waiting_for(locked, 1) == [2, 5, 3, 4]
    assert waiting_for(locked, 4) == []
    assert waiting_for(waits((1, 2), (2, 1)), 1) == [2]
    assert waiting_for(Locks(unknown=(5,), problem="no right"), 1) is None
    assert waiting_for(Locks(problem="no right", partial=True), 1) is None
    assert waiting_for(Locks((Wait(2, 1),), unknown=(5,)), 1) == [2]


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda pair: pair[0] != pair[1])))
def test_who_blocks_and_who_is_blocked_are_the_same_pairs(pairs: list[tuple[int, int]]) -> None:
    """For any waits: a session is in another's list if and only if that one blocks it."""
    locked = waits(*pairs)
    for number in range(1, 9):
        below = waiting_for(locked, number)
        assert below is not None
        assert sorted(below) == blocks(locked).get(number, [])


def test_what_is_not_seen_is_not_known() -> None:
    """A session that may wait without a known blocker has None, not an empty list."""
    assert blocked_by(Locks(unknown=(5,), problem="no right"), 5) is None
    assert blocked_by(Locks(unknown=(5,), problem="no right"), 6) == []
    assert blocked_by(Locks(problem="no right", partial=True), 6) is None
    assert roots(Locks((Wait(1, 5),), unknown=(5,))) == frozenset()


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda pair: pair[0] != pair[1])))
def test_chains_of_whatever_the_server_says(pairs: list[tuple[int, int]]) -> None:
    """A chain has each other session at most once, and with each session all its blockers."""
    locked = waits(*pairs)
    for number in range(1, 9):
        chain = blocked_by(locked, number)
        assert chain is not None
        assert number not in chain
        assert len(set(chain)) == len(chain)
        for waiting, blocking in pairs:
            if waiting == number or waiting in chain:
                assert blocking in chain or blocking == number
        if any(number in roots(locked) for number in chain):
            assert chain[-1] in roots(locked)


def test_whose_session_it_is() -> None:
    """A session has the owner of its connection; one without is described by the server's words."""
    owners = {1: [conn(1, state=None, program="old"), conn(1, call_site="api.py:3 get")]}
    sessions = {1: session(1, state="idle in transaction", state_seconds=41.0), 2: session(2, user="backup")}
    ours = described(1, sessions, owners)
    assert (ours["program"], ours["pid"], ours["user"]) == ("nova-api", 42, "nova")
    assert in_words(ours) == ("nova-api on ctl1, pid 42, idle in transaction for 41s, held by api.py:3 get")
    strange = described(2, sessions, owners)
    assert strange["program"] is None
    assert owner_name(strange) == "not one of connmon's, backup from 10.0.0.5"
    assert owner_name(described(3, sessions, owners)) == "not one of connmon's"
    assert "pg_prepared_xacts" in owner_name(described(0, sessions, owners))


# --- What servers answer (pure, by their documentation) -----------------------------------


def answers(*given: tuple[str, Sequence[Any] | str]) -> tuple[Callable[[str], Sequence[Any]], list[str]]:
    """Return a query that answers by the first matching word, and the list of statements; a text is an
    error."""
    asked: list[str] = []

    def query(statement: str) -> Sequence[Any]:
        asked.append(statement)
        for word, answer in given:
            if word in statement:
                if isinstance(answer, str):
                    raise Unseen(answer)
                return answer
        return []

    return query, asked


def metadata(number: int, kind: str, status: str, name: str = "t") -> tuple[Any, ...]:
    return (number, kind, status, "TABLE", "nova", name)


@pytest.mark.parametrize(
    ("version", "table", "limit"),
    [
        ("8.4.2", "performance_schema.data_lock_waits w", "MAX_EXECUTION_TIME(5000)"),
        ("5.7.44-log", "information_schema.innodb_lock_waits w", "MAX_EXECUTION_TIME(5000)"),
        ("10.11.6-MariaDB", "information_schema.innodb_lock_waits w", "max_statement_time=5 "),
    ],
)
def test_row_locks_are_where_the_version_has_them(version: str, table: str, limit: str) -> None:
    """MySQL 8 has row locks in performance_schema, others in information_schema; each query has a limit."""
    query, asked = answers((table, [(7, 5), (7, 5)]))
    assert mysql_locks(query, version) == waits((7, 5))
    assert all(limit in statement for statement in asked)
    assert all("LIMIT" in statement for statement in asked)
    assert not any(word in statement for statement in asked for word in ("UPDATE ", "DELETE ", "CALL "))


def test_metadata_locks_of_mysql() -> None:
    """An ALTER waits for the open transaction that has read the table; new readers wait for both."""
    rows = [
        metadata(5, "SHARED_READ", "GRANTED"),
        metadata(6, "SHARED_UPGRADABLE", "GRANTED"),
        metadata(6, "EXCLUSIVE", "PENDING"),
        metadata(7, "SHARED_READ", "PENDING"),
        metadata(8, "SHARED_READ", "GRANTED", "another"),
    ]
    assert sorted(metadata_waits(rows)) == [(6, 5), (7, 6)]
    query, _ = answers(("metadata_locks", rows), ("processlist", [(6,), (7,)]))
    assert blocked_by(mysql_locks(query, "8.0.36"), 7) == [6, 5]


@pytest.mark.parametrize(
    ("wants", "has", "excluded"),
    [
        ("SHARED_READ", "SHARED_WRITE", False),
        ("SHARED_WRITE", "SHARED_NO_READ_WRITE", True),
        ("SHARED_NO_READ_WRITE", "SHARED_READ", True),
        ("SHARED_NO_WRITE", "SHARED_READ", False),
        ("SHARED_READ_ONLY", "SHARED_WRITE", True),
        ("SHARED_HIGH_PRIO", "EXCLUSIVE", True),
        ("SHARED_HIGH_PRIO", "SHARED_NO_READ_WRITE", False),
        ("INTENTION_EXCLUSIVE", "SHARED", True),
        ("INTENTION_EXCLUSIVE", "INTENTION_EXCLUSIVE", False),
        ("SHARED", "INTENTION_EXCLUSIVE", True),
        ("EXCLUSIVE", "EXCLUSIVE", True),
        ("EXCLUSIVE", "a type of tomorrow", False),
        ("a type of tomorrow", "EXCLUSIVE", False),
        ("SHARED_WRITE", "SHARED_READ", False),
    ],
)
def test_which_metadata_locks_exclude_one_another(wants: str, has: str, excluded: bool) -> None:
    """Two locks exclude one another as in the server's table; an unknown type excludes none."""
    others = [metadata(number, "SHARED_HIGH_PRIO", "GRANTED") for number in (3, 4)]
    if wants == "EXCLUSIVE":  # which excludes these too
        others = [metadata(number, "a type of tomorrow", "GRANTED") for number in (3, 4)]
    locks = metadata_waits([metadata(1, has, "GRANTED"), metadata(2, wants, "PENDING"), *others])
    assert locks == ([Wait(2, 1)] if excluded else [])


def test_the_only_one_with_a_lock_on_the_object_has_it() -> None:
    """With unknown types of lock, a single other session with a lock on the object is the blocker."""
    rows = [metadata(1, "BACKUP_FTWRL1", "GRANTED"), *(metadata(n, "BACKUP_DML", "PENDING") for n in (2, 3))]
    assert metadata_waits(rows) == [Wait(2, 1), Wait(3, 1)]
    query, _ = answers(
        ("metadata_locks", [*rows, metadata(4, "BACKUP_DML", "GRANTED")]), ("processlist", [(2,), (3,)])
    )  # fmt: skip
    locks = mysql_locks(query, "11.4.2-MariaDB")
    assert (locks.waits, locks.unknown) == ((), (2, 3))
    assert locks.problem == "the types of lock do not say which of several sessions has a table's lock"


def test_what_the_account_may_not_see_is_one_line() -> None:
    """A missing privilege is named, and the part that is visible is returned."""
    query, _ = answers(
        ("data_lock_waits", "SELECT command denied"), ("metadata_locks", "SELECT command denied"),
        ("processlist", [(6,)]),
    )  # fmt: skip
    locks = mysql_locks(query, "8.0.36")
    assert (locks.waits, locks.unknown, locks.partial) == ((), (6,), True)
    assert locks.problem is not None and locks.problem.isprintable()
    assert "PROCESS and SELECT on performance_schema (SELECT command denied)" in locks.problem
    assert "performance_schema=ON" in locks.problem
    query, _ = answers(
        ("pg_blocking_pids", "permission denied for function pg_blocking_pids"), ("pg_locks", [(6,)])
    )  # fmt: skip
    locks = postgresql_locks(query)
    assert locks.problem is not None and (locks.unknown, locks.partial) == ((6,), False)
    query, _ = answers(("pg_locks", "timeout"))
    assert blocked_by(postgresql_locks(query), 6) is None


def test_nothing_is_said_where_nobody_waits() -> None:
    """Without performance_schema there is no problem as long as nobody waits for a table's lock."""
    query, _ = answers(("metadata_locks", "Table doesn't exist"))
    assert mysql_locks(query, "10.4.1-MariaDB") == Locks()


QUEUE = [(waiting, blocking) for waiting in range(1, 8) for blocking in range(waiting)]
"""Seven sessions wait for one row, each for all before it."""


@pytest.mark.parametrize("version", ["8.4.2", "10.11.6-MariaDB"])
def test_who_is_beyond_the_limit_is_not_said_to_wait_for_nobody(version: str) -> None:
    """Where the limit of rows cuts the waits, the problem says so, and unseen blockers are None."""
    limits = LockLimits(rows=10)
    query, _ = answers(("lock_waits w", QUEUE[:10]), ("LOCK WAIT", [(number,) for number in range(1, 8)]))
    locks = mysql_locks(query, version, limits=limits)
    assert locks.partial and locks.problem is not None
    assert "waits for rows beyond 10 are left out" in locks.problem
    assert locks.unknown == (5, 6, 7)
    assert blocked_by(locks, 7) is None
    assert blocked_by(locks, 99) is None
    assert blocked_by(locks, 2) == [1, 0]
    tables = [metadata(number, "EXCLUSIVE", "GRANTED") for number in range(10)]
    for answer in (("metadata_locks", tables), ("information_schema.processlist", [(n,) for n in range(10)])):
        query, _ = answers(answer)
        locks = mysql_locks(query, version, limits=limits)
        assert locks.partial and locks.problem is not None and "beyond 10 are left out" in locks.problem
        assert blocked_by(locks, 99) is None


def test_postgresql_with_more_waiting_sessions_than_are_asked_about() -> None:
    """The blockers of sessions beyond the limit are unknown; sessions that do not wait have none."""
    limits = LockLimits(waiting_sessions=3)
    query, asked = answers(("NOT granted", [(number,) for number in range(1, 8)]), ("unnest", QUEUE[:6]))
    locks = postgresql_locks(query, limits=limits)
    assert "ARRAY[1, 2, 3]" in asked[-1]
    assert locks.problem is not None and "all but 3 of the waiting sessions are left out" in locks.problem
    assert (locks.unknown, locks.partial) == ((4, 5, 6, 7), False)
    assert (blocked_by(locks, 7), blocked_by(locks, 3), blocked_by(locks, 99)) == (None, [1, 2, 0], [])
    locks = postgresql_locks(query, limits=replace(limits, rows=7))  # the waiting sessions are cut too
    assert locks.partial and locks.problem is not None and "waiting sessions beyond 7" in locks.problem
    assert blocked_by(locks, 99) is None


def test_one_session_is_followed_upwards() -> None:
    """The session is asked about, then its blockers, then theirs; never the other waiting sessions."""
    above = {9: [5, 4], 5: [3], 4: [3, 0], 3: [2]}
    asked_in_turn: list[list[int]] = []

    def ask(asked: Sequence[int], seen: Any) -> Locks:
        asked_in_turn.append(list(asked))
        return waits(*((number, other) for number in asked for other in above.get(number, ())))

    locks = follow(9, ask, LOCK_LIMITS)
    assert asked_in_turn == [[9], [4, 5], [3], [2]]
    assert blocked_by(locks, 9) == [4, 5, 3, 0, 2] and roots(locks) == {0, 2}
    assert (locks.problem, locks.partial) == (None, False)


def test_a_session_is_followed_so_far() -> None:
    """An endless chain is cut after some steps, the problem says so, and its last session is no root."""
    locks = follow(1, lambda asked, seen: waits(*((number, number + 1) for number in asked)), LOCK_LIMITS)
    chain = blocked_by(locks, 1)
    assert chain is not None and len(chain) == LOCK_LIMITS.steps
    assert (
        locks.partial
        and locks.problem is not None
        and f"more than {LOCK_LIMITS.steps} others" in locks.problem
    )
    assert roots(locks) == frozenset()


def test_one_session_is_followed_downwards() -> None:
    """The waiting sessions are asked for, then those that wait for them, up to the limit of steps."""
    below = {1: [2, 3], 2: [4], 3: [4], 4: [5, 1]}
    asked_in_turn: list[list[int]] = []

    def ask(asked: Sequence[int], seen: Any) -> Locks:
        asked_in_turn.append(list(asked))
        pairs = [(other, number) for number in asked for other in below.get(number, ()) if other not in seen]
        return Locks(tuple(Wait(*pair) for pair in pairs), unknown=(2, 7))

    locks = follow(1, ask, LOCK_LIMITS, waiters=True)
    assert asked_in_turn == [[1], [2, 3], [4], [5]]
    assert (waiting_for(locks, 1), locks.unknown) == ([2, 3, 4, 5], (7,))
    endless = follow(
        1, lambda asked, seen: waits(*((number + 1, number) for number in asked)), LOCK_LIMITS, waiters=True
    )
    assert endless.partial and endless.problem is not None
    assert f"more than {LOCK_LIMITS.steps} others" in endless.problem
    unseen = follow(1, lambda asked, seen: Locks(problem="timeout", partial=True), LOCK_LIMITS, waiters=True)
    assert (waiting_for(unseen, 1), unseen.problem) == (None, "timeout")


def test_what_is_not_seen_of_a_blocker_makes_no_root() -> None:
    """Where only the first step is answered, its blockers are returned, and none of them is a root."""

    def ask(asked: Sequence[int], seen: Any) -> Locks:
        return waits((9, 5)) if list(asked) == [9] else Locks(problem="timeout", partial=True)

    locks = follow(9, ask, LOCK_LIMITS)
    assert (blocked_by(locks, 9), roots(locks), locks.problem) == ([5], frozenset(), "timeout")
    unseen = follow(9, lambda asked, seen: Locks(problem="timeout", partial=True), LOCK_LIMITS)
    assert blocked_by(unseen, 9) is None


# --- How it is printed --------------------------------------------------------------------


def result(**changes: Any) -> Whois:
    blocker = described(7, {7: session(7, state="Sleep", state_seconds=41.0)}, {7: [conn(7)]})
    given: Whois = {
        "service": "default", "node": "node1", "leader": "node1", "quorum": True, "stale_seconds": 0.2,
        "server_id": 5, "database": "db1:3306",
        "rows": [WhoisRow(conn(5), "nova", None, None)],
        "session": None, "blocked_by": [7], "blockers": [{**blocker, "root": True}], "blocking_problem": None,
        "blocks": [], "blocked": [], "blocks_problem": None,
    }  # fmt: skip
    return cast(Whois, {**given, **changes})


def test_the_contract_is_the_typed_document() -> None:
    """The document of whois has exactly the keys of its type, asked of a server or not."""
    view = look([conn(5)], session(5), session(7))
    at = ServerLook(view._replace(locks=waits((5, 7))), NAMING, Locks())
    for answers_of_server in (None, at):
        result, problem = whois(HEADER, [conn(5)], 5, (), (), answers_of_server)
        assert problem is None
        assert set(result) == set(Whois.__annotations__)


def test_the_blocker_is_printed() -> None:
    """A line has the blocking session, whether it is the root, and its host, program and pid."""
    printed = whois_text(result())
    assert "  blocked   by session 7 (the root): nova-api on ctl1, pid 42, Sleep for 41s" in printed
    assert "  blocked   by nobody\n" in whois_text(result(blocked_by=[], blockers=[]))
    unseen = result(blocked_by=None, blockers=None, blocking_problem="no right")
    assert "  blocked   not known: no right\n" in whois_text(unseen)
    not_asked = whois_text(result(blocked_by=None, blockers=None, blocks=None, blocked=None))
    assert "blocked" not in not_asked and "blocks" not in not_asked
    assert "  (not all is known: timeout)\n" in whois_text(result(blocking_problem="timeout"))


def test_whom_it_blocks_is_printed() -> None:
    """Each waiting session has a line; of many the first, and the number of the others."""
    blocked = [
        described(n, {n: session(n, state="Query", state_seconds=9.0)}, {n: [conn(n)]}) for n in range(9)
    ]
    shown = whois_text(result(blocks=[1], blocked=blocked[1:2]))
    assert "  blocks    session 1: nova-api on ctl1, pid 42, Query for 9.0s" in shown
    assert " more\n" not in shown
    lines = whois_text(result(blocks=[*range(1, 9)], blocked=blocked[1:])).splitlines()
    assert sum("session" in line and "Query for" in line for line in lines) == 5
    assert "            and 3 more" in lines
    assert "  blocks    nobody\n" in whois_text(result())
    unseen = result(blocks=None, blocked=None, blocks_problem="no right")
    assert "  blocks    not known: no right\n" in whois_text(unseen)
    assert "  (not all is known: timeout)\n" in whois_text(result(blocks_problem="timeout"))


def test_locks_are_printed_before_the_stack() -> None:
    """The blocking sessions come before the stack, which is long."""
    row = WhoisRow(conn(5, stack=[f"api.py:{n} f" for n in range(40)]), "nova", None, None)
    words = [line[2:12].strip() for line in whois_text(result(rows=[row])).splitlines()]
    assert words.index("state") < words.index("blocked") < words.index("blocks") < words.index("code")
    assert words.index("code") < words.index("stack")


def test_a_session_that_only_the_server_knows() -> None:
    """A session that no process reports has the server's words and its blockers."""
    printed = whois_text(result(rows=[], session=session_info(session(5))))
    assert "session 5 of db1:3306, not one of connmon's\n" in printed
    assert "  client    10.0.0.5:40005\n" in printed
    assert "  blocked   by session 7" in printed


def test_the_verdict_is_printed() -> None:
    """The connection's verdict, its holder's place and the pool's reason are printed where known."""
    held = conn(5, verdict="BLOCKED", holder_in="database", holder_site="api.py:9 get")
    row = WhoisRow(held, "nova", "BLOCKED", "held for 41s in the database")
    printed = whois_text(result(rows=[row]))
    for line in (
        "  verdict   BLOCKED",
        "  its pool  BLOCKED: held for 41s in the database",
        "  holder is in the database api.py:9 get",
    ):
        assert f"{line}\n" in printed
    row = row._replace(connection=conn(5, holder_in="waiting", holder_site="stock.py:7 reserve"))
    printed = whois_text(result(rows=[row]))
    assert "  holder is waiting for another connection stock.py:7 reserve\n" in printed
    assert "verdict" not in whois_text(result())


def test_csv_of_whois() -> None:
    """A CSV has a row for each connection with the session, and one for each session that blocks it."""
    first, second = csv.DictReader(io.StringIO(whois_csv(result())))
    assert (first["kind"], first["server_id"], first["blocked_by"]) == ("session", "5", "7")
    assert (second["kind"], second["server_id"], second["root"]) == ("blocker", "7", "True")
    assert (second["program"], second["state"]) == ("nova-api", "Sleep")
    waiter = described(9, {9: session(9)}, {})
    first, _, third = csv.DictReader(io.StringIO(whois_csv(result(blocks=[9], blocked=[waiter]))))
    assert (first["blocks"], third["kind"], third["server_id"]) == ("9", "blocked", "9")


def test_hostile_names_of_blockers() -> None:
    """Names from the server and from applications do not start another line."""
    evil = 'a\n\x1b[2J"\u202eb'
    blockers = result()["blockers"]
    assert blockers is not None
    blocker = {**blockers[0], **dict.fromkeys(("program", "host", "state", "call_site"), evil)}
    for row in (blocker, {**blocker, "program": None, "user": evil, "client_host": evil}):
        printed = whois_text(result(blockers=[row]))
        assert all(line.isprintable() for line in printed.splitlines())
        assert json.loads(whois_json(result(blockers=[row])))["blockers"][0]["state"] == evil


# --- Real servers -------------------------------------------------------------------------


@pytest.fixture(name="node", scope="module")
def a_running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


class WithSchema(MariaDB):
    """A MariaDB that records metadata locks."""

    def _command(self) -> list[str]:
        return [
            *super()._command(), "--performance-schema=ON",
            "--performance-schema-instrument=wait/lock/metadata/sql/mdl=ON",
        ]  # fmt: skip


@pytest.fixture(name="recording", scope="module")
def a_mariadb_that_records_metadata_locks() -> Iterator[Server]:
    server = WithSchema()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(name="server", params=["recording", "postgresql"])
def a_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


class Sessions:
    """Sessions with a server, some of them reported; statements run in threads."""

    def __init__(self, server: Server, node: RunningNode) -> None:
        driver = DRIVERS[server.backend]
        self.url = url_of(server, server.user, server.password)
        self._server, self._node = server, node
        url = server.url(driver, plugin="connmon", connmon_addr=node.address, connmon_program="the-app")
        self._reported = sqlalchemy.create_engine(url, pool_size=5)
        self._plain = sqlalchemy.create_engine(server.url(driver), poolclass=NullPool)
        self._open: list[Connection] = []
        self._threads: list[threading.Thread] = []
        with self._plain.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS locked"))
            connection.execute(text("CREATE TABLE locked (id INTEGER PRIMARY KEY, n INTEGER)"))
            connection.execute(text("INSERT INTO locked VALUES (1, 0), (2, 0)"))

    def open(self, reported: bool = True) -> tuple[Connection, int]:
        connection = (self._reported if reported else self._plain).connect()
        self._open.append(connection)
        number = connection.scalar(text(self._server._own_query))
        assert isinstance(number, int)
        connection.rollback()
        return connection, number

    def start(self, connection: Connection, statement: str) -> None:
        """Wait for the lock; the outcome does not matter."""

        def run() -> None:
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                connection.execute(text(statement))
                connection.rollback()

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

    def reported(self, *numbers: int) -> None:
        wait_for(
            lambda: {row["server_id"] for row in self._node.rows("connection")} >= set(numbers),
            what="the sessions to be reported",
        )

    def close(self) -> None:
        for connection in self._open:  # in the order in which they were opened: who blocks goes first
            thread_is_in_it = connection.in_transaction() and any(t.is_alive() for t in self._threads)
            if not thread_is_in_it or connection is self._open[0]:
                connection.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        for connection in self._open:
            connection.close()
        self._reported.dispose()
        self._plain.dispose()


@pytest.fixture(name="sessions")
def some_sessions(server: Server, node: RunningNode) -> Iterator[Sessions]:
    sessions = Sessions(server, node)
    try:
        yield sessions
    finally:
        sessions.close()


UPDATE = "UPDATE locked SET n = n + 1 WHERE id = 1"


def asked(
    capsys: pytest.CaptureFixture[str], *arguments: str, locks: LockLimits | None = None
) -> dict[str, Any]:
    run_connmon([*arguments, "--format", "json"], locks)
    output = capsys.readouterr()
    assert output.out, output.err
    document: dict[str, Any] = json.loads(output.out)
    return document


def test_a_row_and_who_holds_it(
    server: Server, node: RunningNode, sessions: Sessions, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session that is idle in its transaction blocks one that waits for its row; each is resolved from
    the other."""
    holder, holding = sessions.open()
    waiter, waiting = sessions.open()
    holder.execute(text(UPDATE))
    sessions.start(waiter, UPDATE)
    sessions.reported(holding, waiting)
    at = ("-H", node.address)

    def shown() -> dict[str, Any]:
        return asked(capsys, "whois", str(waiting), "--database", sessions.url, *at)

    wait_for(lambda: shown()["blocked_by"], what="one session to wait for another")
    document = shown()
    assert document["blocked_by"] == [holding]
    (blocker,) = document["blockers"]
    assert (blocker["server_id"], blocker["program"], blocker["root"]) == (holding, "the-app", True)
    assert blocker["state"] in ("Sleep", "idle in transaction")
    assert blocker["pid"] == document["rows"][0]["pid"]
    assert (document["blocks"], document["blocked"], document["blocks_problem"]) == ([], [], None)
    document = asked(capsys, "whois", str(holding), "--database", sessions.url, *at)
    assert (document["blocked_by"], document["blocks"]) == ([], [waiting])
    (blocked,) = document["blocked"]
    assert (blocked["server_id"], blocked["program"]) == (waiting, "the-app")
    assert blocked["pid"] == document["rows"][0]["pid"]
    assert run_connmon(["whois", str(holding), "--database", sessions.url, *at]) == 0
    assert f"  blocks    session {waiting}: the-app on " in capsys.readouterr().out
    document = asked(capsys, "whois", str(holding), *at)
    assert (document["blocks"], document["blocked"], document["blocks_problem"]) == (None, None, None)

    assert run_connmon(["whois", str(waiting), "--database", sessions.url, *at]) == 0
    printed = capsys.readouterr().out
    assert f"  blocked   by session {holding} (the root): the-app on " in printed
    assert server.password not in printed

    document = asked(capsys, "reconcile", sessions.url, *at)
    assert [(row["server_id"], row["blocked_by"]) for row in document["blocked"]] == [(waiting, [holding])]
    (blocker,) = document["blockers"]
    assert (blocker["server_id"], blocker["blocks"], blocker["program"]) == (holding, [waiting], "the-app")
    assert document["blocking_problem"] is None
    assert run_connmon(["reconcile", sessions.url, *at]) == 0
    assert "Sessions that they wait for, the roots first\n" in capsys.readouterr().out
    assert run_connmon(["reconcile", sessions.url, *at, "--format", "csv"]) == 0
    kinds = {row["kind"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert kinds["blocked"]["blocked_by"] == str(holding)
    assert kinds["blocker"]["blocks"] == str(waiting)


def test_a_long_queue_for_one_row(
    server: Server,
    node: RunningNode,
    sessions: Sessions,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With more waits than the limit, whois still finds every blocker, and reconcile says what it left
    out."""
    limits = LockLimits(rows=30)
    holder, holding = sessions.open(reported=False)
    holder.execute(text(UPDATE))
    waiters = dict(sessions.open(reported=False)[::-1] for _ in range(12))
    for waiter in waiters.values():
        sessions.start(waiter, UPDATE)
    queue = sorted(waiters)
    with DatabaseSessions(parse_url(sessions.url), settings=DatabaseSettings(locks=limits)) as database:
        view = database.look()

        def chain(number: int) -> list[int] | None:
            return blocked_by(database.locks(view, number), number)

        def all_wait() -> bool:
            return all((chain(number) or [0])[-1] == holding for number in queue)

        wait_for(all_wait, what="all to wait for the row")
        for number in queue:
            locks = database.locks(view, number)
            assert roots(locks) == {holding}
            assert (locks.problem, locks.partial) == (None, False)
        below = database.locks(view, holding, waiters=True)
        # The nearest first: on PostgreSQL that is who came first, whichever of them that was.
        assert (sorted(waiting_for(below, holding) or ()), below.problem) == (queue, None)
        alone = database.locks(view, holding)
        assert (blocked_by(alone, holding), alone.problem) == ([], None)
        everything = database.locks(view)
        assert everything.problem is not None
        assert everything.partial == (server.backend != "postgresql")  # which has a list of all who wait
        assert "beyond 30 are left out" in everything.problem
        assert not any(blocked_by(everything, number) == [] for number in queue)
    document = asked(
        capsys, "whois", str(queue[-1]), "--database", sessions.url, "-H", node.address, locks=limits
    )
    assert document["blocked_by"][-1] == holding
    assert [number["server_id"] for number in document["blockers"] if number["root"]] == [holding]
    document = asked(
        capsys, "whois", str(holding), "--database", sessions.url, "-H", node.address, locks=limits
    )
    assert sorted(document["blocks"]) == queue
    assert (
        run_connmon(["whois", str(holding), "--database", sessions.url, "-H", node.address], limits) == 1
    )  # a stranger
    assert "            and 7 more\n" in capsys.readouterr().out
    document = asked(capsys, "reconcile", sessions.url, "-H", node.address, locks=limits)
    assert "left out" in document["blocking_problem"]
    assert {row["server_id"] for row in document["blocked"]} == set(queue)
    assert all(row["blocked_by"] is None or row["blocked_by"] for row in document["blocked"])


def test_more_wait_in_a_postgresql_than_are_asked_about(postgresql: Server, node: RunningNode) -> None:
    """A session beyond the limit is followed by whois; for reconcile its blockers are unknown, not none."""
    limits = LockLimits(waiting_sessions=4)
    sessions = Sessions(postgresql, node)
    try:
        holder, holding = sessions.open(reported=False)
        holder.execute(text(UPDATE))
        waiters = dict(sessions.open(reported=False)[::-1] for _ in range(10))
        for waiter in waiters.values():
            sessions.start(waiter, UPDATE)
        with DatabaseSessions(parse_url(sessions.url), settings=DatabaseSettings(locks=limits)) as database:
            view = database.look()

            def seen() -> Locks:
                return database.locks(view)

            wait_for(lambda: {*seen().unknown, *(w.waiting for w in seen().waits)} == {*waiters})
            everything = seen()
            assert len(everything.unknown) == 6 and not everything.partial
            assert everything.problem is not None and "all but 4 of the waiting" in everything.problem
            assert blocked_by(everything, holding) == []
            below = database.locks(view, holding, waiters=True)
            assert below.problem is not None and len(below.unknown) == 6
            assert set(waiting_for(below, holding) or ()) == {*waiters} - {*below.unknown}
            for number in waiters:
                locks = database.locks(view, number)
                assert blocked_by(locks, number)
                assert roots(locks) <= {holding}
    finally:
        sessions.close()


def test_a_table_and_a_stranger_at_the_root(
    server: Server, node: RunningNode, sessions: Sessions, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader waits behind an ALTER TABLE, which waits for a transaction of a stranger: that is the root."""
    stranger, root = sessions.open(reported=False)
    alterer, altering = sessions.open()
    reader, reading = sessions.open()
    stranger.execute(text("SELECT * FROM locked")).all()
    sessions.start(alterer, "ALTER TABLE locked ADD COLUMN m INTEGER")

    def chain(number: int) -> list[int]:
        document = asked(capsys, "whois", str(number), "--database", sessions.url, "-H", node.address)
        locks: list[int] = document["blocked_by"]
        return locks

    wait_for(lambda: chain(altering) == [root], what="the ALTER to wait")
    sessions.start(reader, "SELECT * FROM locked")
    sessions.reported(altering, reading)
    wait_for(lambda: chain(reading) == [altering, root], what="the reader to wait")
    for number, below in ((root, [altering, reading]), (altering, [reading]), (reading, [])):
        document = asked(capsys, "whois", str(number), "--database", sessions.url, "-H", node.address)
        assert document["blocks"] == below, number
    assert run_connmon(["whois", str(reading), "--database", sessions.url, "-H", node.address]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if " by session " in line]
    assert f"by session {altering}: the-app on " in first
    assert f"by session {root} (the root): not one of connmon's, connmon from 127.0.0.1" in second


@pytest.mark.parametrize(
    ("takes", "wants"),
    [
        ("LOCK TABLES locked WRITE", "SELECT * FROM locked"),
        ("LOCK TABLES locked READ", UPDATE),
        ("FLUSH TABLES WITH READ LOCK", UPDATE),
        ("SELECT GET_LOCK('a', 10)", "SELECT GET_LOCK('a', 20)"),
        ("SELECT * FROM locked", "TRUNCATE TABLE locked"),
    ],
)
def test_what_else_sessions_wait_for(recording: Server, node: RunningNode, takes: str, wants: str) -> None:
    """Locked tables, a server that is locked for a backup and locks by name are found like rows."""
    sessions = Sessions(recording, node)
    try:
        holder, holding = sessions.open()
        waiter, waiting = sessions.open()
        holder.execute(text(takes))
        sessions.start(waiter, wants)
        with DatabaseSessions(parse_url(sessions.url)) as database:
            view = database.look()
            wait_for(lambda: blocked_by(database.locks(view), waiting) == [holding], what="it to wait")
            assert database.locks(view).problem is None
        holder.execute(text("UNLOCK TABLES"))
        holder.execute(text("SELECT RELEASE_ALL_LOCKS()"))
    finally:
        sessions.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_every_driver_of_postgresql(postgresql: Server, node: RunningNode, driver: str) -> None:
    """Each driver asks within a transaction of its own, which leaves nothing of the limit behind."""
    sessions = Sessions(postgresql, node)
    try:
        holder, holding = sessions.open()
        waiter, waiting = sessions.open()
        holder.execute(text("LOCK TABLE locked"))
        sessions.start(waiter, UPDATE)
        with DatabaseSessions(parse_url(postgresql.url(driver))) as database:
            view = database.look()
            wait_for(lambda: blocked_by(database.locks(view), waiting) == [holding], what="it to wait")
            assert database._connection is not None
            assert database._connection.scalar(text("SHOW statement_timeout")) == "0"
    finally:
        sessions.close()


def test_a_server_that_stops_answering(mariadb: Server) -> None:
    """Where a server hangs in the query for locks, only the locks are missing."""
    settings = DatabaseSettings(answer_seconds=1.5)
    with DatabaseSessions(parse_url(mariadb.url("pymysql")), settings=settings) as database:
        view = database.look()
        with stopped(mariadb.pid):
            locks = database.locks(view)
        assert locks.partial and locks.problem is not None
        assert "no answer within 1.5 s" in locks.problem
        wait_for(lambda: not any(thread.name == "ask-database" for thread in threading.enumerate()))


def test_an_account_with_few_rights(server: Server, node: RunningNode, sessions: Sessions) -> None:
    """A read-only account sees who blocks a row; one without privileges sees it, or which it needs."""
    holder, holding = sessions.open()
    waiter, waiting = sessions.open()
    holder.execute(text(UPDATE))
    sessions.start(waiter, UPDATE)
    with DatabaseSessions(parse_url(sessions.url)) as database:
        everything = database.look()
        wait_for(lambda: database.locks(everything).waits, what="one session to wait for another")
    for user, rights in (("looker", RIGHTS[server.backend]), ("nobody_much", "")):
        with (
            account(server, user, rights),
            DatabaseSessions(parse_url(url_of(server, user, PASSWORD))) as database,
        ):
            view = database.look()
            if rights or server.backend == "postgresql":
                assert blocked_by(database.locks(view), waiting) == [holding]
            else:
                locks = database.locks(view)
                assert waiting_for(database.locks(view, holding, waiters=True), holding) is None
                assert blocked_by(locks, waiting) is None
                assert locks.problem is not None and "needs PROCESS" in locks.problem


def test_a_mariadb_that_records_no_metadata_locks(
    mariadb: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the server does not record who has a table's lock, the problem says what that needs."""
    sessions = Sessions(mariadb, node)
    try:
        holder, holding = sessions.open()
        alterer, altering = sessions.open()
        holder.execute(text("SELECT * FROM locked")).all()
        sessions.start(alterer, "ALTER TABLE locked ADD COLUMN m INTEGER")
        sessions.reported(altering)

        def shown() -> dict[str, Any]:
            return asked(capsys, "whois", str(altering), "--database", sessions.url, "-H", node.address)

        wait_for(lambda: shown()["blocked_by"] is None, what="it to wait")
        document = shown()
        assert "needs performance_schema=ON" in document["blocking_problem"]
        document = asked(capsys, "whois", str(holding), "--database", sessions.url, "-H", node.address)
        assert (document["blocked_by"], document["blocks"]) == ([], None)
        assert "needs performance_schema=ON" in document["blocks_problem"]
        assert run_connmon(["reconcile", sessions.url, "-H", node.address]) == 0
        printed = capsys.readouterr().out
        assert "note: which session has a table's lock is not seen" in printed
        assert "not known" in printed
    finally:
        sessions.close()


def test_a_wrong_url_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    """A URL that cannot be is one line that has nothing of the password."""
    for url in ("sqlite://u:seSAme@h/", "mysql://u:p@seSAme@db/x", "mysql://u:seSAme@127.0.0.1:1/x"):
        assert run_connmon(["whois", "5", "--database", url, "-H", "127.0.0.1:1"]) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("connmon: ") and error[:-1].isprintable()
        assert "seSAme" not in error

"""`connmon reconcile`: a database server's session list against the reports of processes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.database import documents
from connmon.database.documents import LookHeader, Reconcile
from connmon.database.locks import Locks, Wait
from connmon.database.naming import Naming
from connmon.database.reconcile import DatabaseLook, is_settled, reconcile
from connmon.database.reconcile_formats import CSV_KEYS, reconcile_csv, reconcile_json, reconcile_text
from connmon.database.server_view import Listening, ServerView, Session
from connmon.database_address import DatabaseServer, parse_server, parse_servers
from connmon.protocol.document import JsonConnection, JsonPool
from tests.protocol.test_snapshot import connection as connection_row
from tests.protocol.test_snapshot import pool, process, shown
from tests.support.json_rows import typed

DB = DatabaseServer("10.0.0.9", 3306)
NAMING = Naming("terminal")
HEADER: LookHeader = {
    "service": "default", "node": "node1", "leader": "node1", "quorum": True, "stale_seconds": 0.2,
}  # fmt: skip
CONNECTION = shown("connection", process(), pool(), connection_row())["rows"][0]
POOL = shown("pool", process(), pool())["rows"][0]


def conn(server_id: int | None, number: int = 1, **changes: Any) -> JsonConnection:
    """Return a row of a snapshot by connection; `changes`: by their keys in JSON."""
    given = {"server_id": server_id, "connection": number, "age_seconds": 60.0}
    row: JsonConnection = typed("connection", {**CONNECTION, **given, **changes})
    return row


def pool_row(**changes: Any) -> JsonPool:
    """Return a row of a snapshot by pool; `changes`: by their keys in JSON."""
    row: JsonPool = typed("pool", {**POOL, **changes})
    return row


def session(number: int, **changes: Any) -> Session:
    given = Session(number, "nova", "10.0.0.5", 40000 + number % 1000, "nova", "Sleep", 1.0)
    return given._replace(**changes)


def view(*sessions: Session, **changes: Any) -> ServerView:
    given = ServerView("mysql", DB, "10.11", 1e6, 100, 0, len(sessions) + 1, sessions, 0)
    return given._replace(**changes)


def look(
    connections: list[JsonConnection],
    *sessions: Session,
    pools: list[JsonPool] | None = None,
    **changes: Any,
) -> DatabaseLook:
    return DatabaseLook(
        HEADER, [pool_row()] if pools is None else pools, connections, view(*sessions, **changes)
    )


def counts(document: Reconcile) -> tuple[int, int, int, int]:
    return (
        document["accounted_sessions"], document["unowned_sessions"],
        document["unsettled_sessions"], document["missing_connections"],
    )  # fmt: skip


def test_everything_fits() -> None:
    """Sessions are accounted to the programs that have them, and one look is enough."""
    one_look = look(
        [conn(1), conn(2, 2, state="idle"), conn(3, 3, program="cron")], session(1), session(2), session(3)
    )
    assert is_settled(one_look, NAMING)
    document = reconcile(one_look, None, NAMING)
    assert counts(document) == (3, 0, 0, 0)
    first, second = document["programs"]
    assert (first["program"], first["sessions"], first["checked_out"], first["idle"]) == ("nova-api", 2, 1, 1)
    assert first["capacity"] == POOL["capacity"]
    assert (second["program"], second["sessions"]) == ("cron", 1)


def test_limits() -> None:
    """Headroom is the limit minus reserved and used connections; the pools' capacity is compared with it."""
    document = reconcile(
        look([conn(1)], session(1), max_connections=250, reserved_connections=5), None, NAMING
    )
    assert document["server"]["headroom"] == 250 - 5 - 2
    assert (document["capacity"], document["capacity_headroom"]) == (240, 5)
    more = reconcile(look([conn(1)], session(1)), None, NAMING)
    assert more["capacity_headroom"] == -140
    assert "OVERCOMMIT: 140 more than the server takes" in reconcile_text(more)


@pytest.mark.parametrize(
    ("change", "unlimited", "lost"),
    [({"capacity": None}, 1, 0), ({"capacity": None, "connections": None, "state": "lost"}, 0, 1)],
)
def test_capacity_that_is_not_known(change: dict[str, Any], unlimited: int, lost: int) -> None:
    """A pool without a limit, or of a lost process, makes the capacity unknown."""
    document = reconcile(look([], pools=[pool_row(), pool_row(**change)]), None, NAMING)
    assert document["capacity"] is None
    assert document["capacity_headroom"] is None
    assert (document["limited_capacity"], document["unlimited_pools"], document["lost_pools"]) == (
        240, unlimited, lost,
    )  # fmt: skip
    assert "at least 240" in reconcile_text(document)


def test_two_looks() -> None:
    """Only a mismatch in both looks counts; other sessions were being opened or closed."""
    first = look([conn(1), conn(8, 8), conn(9, 9)], session(1), session(20), session(21))
    second = look(
        [conn(1), conn(8, 8), conn(21, 21), conn(10, 10)], session(1), session(20), session(21), session(22)
    )
    assert not is_settled(first, NAMING)
    document = reconcile(first, second, NAMING)
    assert counts(document) == (2, 1, 1, 1)
    assert [row["id"] for row in document["unowned"]] == [20]
    assert [row.server_id for row in document["missing"]] == [8]


def test_other_servers_with_the_same_ids() -> None:
    """A connection to another server accounts for no session here, and a note names that server."""
    elsewhere: dict[str, Any] = {"database_host": "db2"}
    one_look = look([conn(1, **elsewhere)], session(1), pools=[pool_row(), pool_row(**elsewhere)])
    document = reconcile(one_look, None, NAMING)
    assert counts(document) == (0, 1, 0, 0)
    assert document["other_servers"] == [
        {"server": "db2:3306", "pools": 1, "connections": 78, "pooler": False}
    ]
    printed = reconcile_text(document)
    assert "not compared, since applications name another server: db2:3306 (78 connections)" in printed
    assert "say so: --database db2:3306\n" in printed
    named = reconcile(one_look, None, Naming("terminal", (parse_server("DB2"),)))
    assert counts(named) == (1, 0, 0, 0)
    assert named["other_servers"] == []


@pytest.mark.parametrize(
    ("server", "pool_host", "host", "same"),
    [
        ("10.0.0.9", "10.0.0.9", "ctl1", True),
        ("localhost", "127.0.0.1", "terminal", True),
        ("::1", "localhost", "terminal.example", True),
        ("localhost", None, "terminal", False),  # not known
        ("localhost", "localhost", "ctl1", False),
        ("db1.example", "localhost", "db1", True),
        ("db1.example", "localhost", "db1.other", False),
        ("10.0.0.9", "localhost", "10.0.0.8", False),
        ("localhost", "10.0.0.9", "terminal", False),
    ],
)
def test_local_names_mean_another_server_on_each_host(
    server: str, pool_host: str | None, host: str, same: bool
) -> None:
    """localhost in a URL is the server on the process's own host."""
    row = pool_row(database_host=pool_host, host=host)
    sqlite = pool_row(database_host=pool_host, host=host, dialect="sqlite")
    assert NAMING.has(view(server=DatabaseServer(server, 3306)), row) is same
    assert not NAMING.has(view(server=DatabaseServer(server, 3307)), row)
    assert not NAMING.has(view(server=DatabaseServer(server, 3306)), sqlite)


MYSQL_HERE = Listening("terminal", 3306, (DatabaseServer("/run/s", None),), ("*",))
PG_HERE = Listening(
    None, 5433, (DatabaseServer("/run/pg", 5433),), ("*",), DatabaseServer("127.0.0.1", 5433)
)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "listening", "pools"),
    [
        # By TCP and by the socket the same pools are found.
        (
            "127.0.0.1:3306",
            MYSQL_HERE,
            "127.0.0.1:3306 localhost:3306 /var/run/s terminal:3306 10.0.0.1:3306",
        ),
        ("/run/s", MYSQL_HERE, "127.0.0.1:3306 localhost:3306 /var/run/s terminal:3306 10.0.0.1:3306"),
        ("127.0.0.1:5433", PG_HERE, "127.0.0.1:5433 /run/pg:5433 10.0.0.1:5433"),
        ("/run/pg:5433", PG_HERE._replace(reached=None), "127.0.0.1:5433 /run/pg:5433 10.0.0.1:5433"),
        # An account that may not see where the sockets are: by the port.
        ("127.0.0.1:5433", PG_HERE._replace(sockets=None), "127.0.0.1:5433 /run/pg:5433 /run/other:5433"),
        # By the address of the host itself.
        ("10.0.0.1:3306", MYSQL_HERE, "127.0.0.1:3306 /run/s 10.0.0.1:3306"),
    ],
)
def test_pools_of_the_same_server(asked: str, listening: Listening, pools: str) -> None:
    """Local pools match the server by TCP, by its socket and by its addresses."""
    (server,) = parse_servers(asked)
    naming = Naming("terminal", (), frozenset({"127.0.0.1", "10.0.0.1"}))
    seen = view(
        dialect="mysql" if listening is MYSQL_HERE else "postgresql", server=server, listening=listening
    )
    for words in pools.split():
        for named in parse_servers(words):
            assert naming.names(seen, named, "terminal.example"), words
            if named.local:
                assert not naming.names(seen, named, "elsewhere"), words
            assert not naming.names(seen, named._replace(host="/run/x", port=1), "terminal")
            assert not naming.names(seen, DatabaseServer("127.0.0.1", 3310), "terminal")


@pytest.mark.parametrize(
    ("asked", "listening"),
    [
        # A container whose port is published here; its host has a name of its own.
        ("127.0.0.1:3306", MYSQL_HERE._replace(hostname="9f86d081884c")),
        ("127.0.0.1:3307", MYSQL_HERE._replace(hostname="9f86d081884c")),
        # The same of PostgreSQL, and one behind ssh: not reached as it was asked for.
        ("127.0.0.1:5433", PG_HERE._replace(reached=DatabaseServer("172.17.0.2", 5433))),
        ("127.0.0.1:5434", PG_HERE),
        # A socket that another machine's server has, mounted here.
        ("/mnt/pg:5433", PG_HERE._replace(reached=None)),
    ],
)
def test_a_server_that_is_only_forwarded_here(asked: str, listening: Listening) -> None:
    """Behind a forwarded port only local pools with the same name of the server match."""
    (server,) = parse_servers(asked)
    naming = Naming("terminal", (), frozenset({"127.0.0.1", "10.0.0.1"}))
    dialect = "postgresql" if listening.hostname is None else "mysql"
    seen = view(dialect=dialect, server=server, listening=listening)
    assert naming.names(seen, server, "terminal")
    for words in ("/run/s", "/run/pg:5433", "terminal:3306", "terminal:5433", "10.0.0.1:3306"):
        assert not naming.names(seen, parse_servers(words)[0], "terminal"), words


def test_server_on_another_host() -> None:
    """Asked by its name, a server has the pools with local names on its own host, and no others."""
    seen = view(server=DatabaseServer("db1.example", 3306), listening=MYSQL_HERE._replace(hostname="db1"))
    for words in ("localhost:3306", "/run/s"):
        assert NAMING.names(seen, parse_servers(words)[0], "db1")
        assert not NAMING.names(seen, parse_servers(words)[0], "terminal")
    assert not NAMING.names(seen, DatabaseServer("/run/t", None), "db1")
    assert NAMING.names(seen, DatabaseServer("db1", 3306), "app1")


def test_servers_that_are_bound_to_an_address() -> None:
    """A listen address names the server on every host."""
    seen = view(server=DatabaseServer("/run/s", None), listening=MYSQL_HERE._replace(addresses=("10.0.0.7",)))
    assert NAMING.names(seen, DatabaseServer("10.0.0.7", 3306), "app1")
    assert not NAMING.names(seen, DatabaseServer("10.0.0.8", 3306), "app1")


def test_hint_for_several_hosts_is_taken() -> None:
    """--database takes the printed form of several hosts, and the pool then matches."""
    several: dict[str, Any] = {"dialect": "postgresql", "database_host": "a:1,b:2", "database_port": None}
    here: dict[str, Any] = {"dialect": "postgresql", "database_host": "b", "database_port": 2}
    one_look = look(
        [conn(1, **here)], session(1), pools=[pool_row(**several)], dialect="postgresql",
        server=DatabaseServer("c", 3),
    )  # fmt: skip
    printed = reconcile_text(reconcile(one_look, None, NAMING))
    (hint,) = [line.rpartition(" ")[2] for line in printed.splitlines() if "--database" in line]
    document = reconcile(one_look, None, Naming("terminal", parse_servers(hint)))
    assert counts(document) == (1, 0, 0, 0)
    assert document["other_servers"] == []


def test_server_that_is_not_known() -> None:
    """A connection whose server is not known accounts for no session, and a note says so."""
    nowhere: dict[str, Any] = {"database_host": None, "database_port": None}
    one_look = look(
        [conn(1, **nowhere)], session(1), pools=[pool_row(**nowhere)], server=DatabaseServer("/run/s", None)
    )
    document = reconcile(one_look, None, Naming("ctl1"))
    assert counts(document) == (0, 1, 0, 0)
    assert (document["unknown_server_connections"], document["pools"]) == (1, 0)
    assert "not known where they are: 1 connections" in reconcile_text(document)


def test_connections_through_a_pooler() -> None:
    """Connections with a pooler's own ids have a note, and are not missing."""
    document = reconcile(look([conn(None, pooler=True)], session(1)), None, NAMING)
    assert counts(document) == (0, 1, 0, 0)
    assert (document["connections_without_id"], document["connections_through_pooler"]) == (1, 1)
    both = reconcile(look([], pools=[pool_row(), pool_row(pooler=True)]), None, NAMING)
    assert (both["capacity"], both["limited_capacity"], both["pooled_pools"]) == (None, 240, 1)
    assert "not known: at least 240, and 1 through a pooler" in reconcile_text(both)
    printed = reconcile_text(document)
    assert "a pooler (PgBouncer) stands between this server and 1 connections" in printed
    assert "have no session id" not in printed


def test_session_id_used_again() -> None:
    """A session younger than the connection is another one, as are all sessions after a restart."""
    younger = look([conn(1)], session(1, age_seconds=20.0))
    assert counts(reconcile(younger, None, NAMING)) == (0, 1, 0, 1)
    restarted = look([conn(1)], session(1), uptime_seconds=30.0)
    assert counts(reconcile(restarted, None, NAMING)) == (0, 1, 0, 1)
    same = look([conn(1)], session(1, age_seconds=60.2), uptime_seconds=61.0)
    assert counts(reconcile(same, None, NAMING)) == (1, 0, 0, 0)


def test_lost_process() -> None:
    """A lost process's connections account for sessions, but are not missing."""
    document = reconcile(look([conn(1, state=None), conn(2, 2, state=None)], session(1)), None, NAMING)
    assert counts(document) == (1, 0, 0, 0)
    assert document["programs"][0]["lost"] == 1


def test_session_of_parent_and_child() -> None:
    """A session that a forked child also has is counted once."""
    document = reconcile(look([conn(1), conn(1, instance="i2")], session(1)), None, NAMING)
    assert counts(document) == (1, 0, 0, 0)
    assert document["shared_sessions"] == 1
    assert sum(row["sessions"] for row in document["programs"]) == 1


def test_connection_without_an_id() -> None:
    """A connection without a session id has a note, and is not missing."""
    document = reconcile(look([conn(None)], session(1)), None, NAMING)
    assert counts(document) == (0, 1, 0, 0)
    assert document["connections_without_id"] == 1
    assert "1 connections have no session id" in reconcile_text(document)


IDS = st.integers(1, 6)
#: Session id, program and state.
CONNECTIONS = st.lists(
    st.tuples(st.one_of(st.none(), IDS), st.integers(1, 3), st.sampled_from(["idle", "checked_out", None]))
)


@given(
    CONNECTIONS,
    st.sets(IDS),
    CONNECTIONS,
    st.sets(IDS),
    st.booleans(),
)
def test_every_session_is_in_one_place(
    before: list[tuple[Any, ...]], s1: set[int], after: list[tuple[Any, ...]], s2: set[int], twice: bool
) -> None:
    """accounted + unowned + unsettled = sessions, and the programs' sessions add up to the accounted ones."""

    def looked(rows: list[tuple[Any, ...]], ids: set[int]) -> DatabaseLook:
        connections = [
            conn(i, n, instance=f"i{k}", program=f"p{n}", state=s) for n, (i, k, s) in enumerate(rows)
        ]
        return look(connections, *map(session, sorted(ids)))

    last = s2 if twice else s1
    document = reconcile(looked(before, s1), looked(after, s2) if twice else None, NAMING)
    accounted, unowned, unsettled, _ = counts(document)
    assert accounted + unowned + unsettled == len(last) == document["sessions"]
    assert sum(row["sessions"] for row in document["programs"]) == accounted
    reconcile_text(document)
    json.loads(reconcile_json(document))


def test_pools_that_have_no_row_each_count() -> None:
    """A row for several pools counts with all of them; a note says how much limits leave out."""
    several = pool_row(pool="(others)", pools=4, capacity=60)
    one_look = look([conn(1)], session(1), pools=[pool_row(), several])
    document = reconcile(one_look._replace(header={**HEADER, "left_out": 4}), None, NAMING)
    assert (document["pools"], document["left_out"]) == (5, 4)
    assert document["capacity"] == POOL["capacity"] + 60
    assert "note: limits leave out 4 of the service" in reconcile_text(document)


def hostile() -> Reconcile:
    evil = '=a\n\x1b[2J"\u202e,b'
    bad: dict[str, Any] = dict.fromkeys(("host", "program", "holder", "call_site", "command"), evil)
    one_look = look(
        [conn(1, **bad), conn(2, 2, **bad), conn(9, 9, database_host=evil)],
        session(1), session(3, user=evil, client_host=evil, database=evil, application=evil, state=evil),
        pools=[pool_row(), pool_row(database_host=evil)],
        version=evil,
    )  # fmt: skip
    return reconcile(one_look, None, NAMING)


def test_hostile_names() -> None:
    """Names with line ends, quotes and escape codes reach neither the terminal nor another row."""
    document = hostile()
    printed = reconcile_text(document)
    assert all(line.isprintable() for line in printed.split("\n"))
    assert printed.count("\n") == 19
    rows = list(csv.DictReader(io.StringIO(reconcile_csv(document))))
    assert [row["kind"] for row in rows] == ["program", "program", "unowned", "missing"]
    assert all(value.isprintable() for row in rows for value in row.values())
    assert rows[2]["user"] == "'=a??[2J\"?,b"
    assert json.loads(reconcile_json(document))["unowned"][0]["user"] == '=a\n\x1b[2J"\u202e,b'


def test_the_contract_is_the_typed_document() -> None:
    """The document and its rows have exactly the keys of their types."""
    document = reconcile(
        look([conn(1), conn(9, 2)], session(1), session(3))._replace(
            header={**HEADER, "left_out": 0}, locks=Locks((Wait(3, 1),))
        ),
        None,
        NAMING,
    )
    assert set(document) == {*LookHeader.__annotations__, *Reconcile.__annotations__}
    kinds: tuple[tuple[Sequence[Mapping[str, Any]], type], ...] = (
        ([document["server"]], documents.ServerDocument),
        (document["programs"], documents.ProgramSessions),
        (document["unowned"], documents.UnownedSession),
        (document["blocked"], documents.BlockedSession),
        (document["blockers"], documents.BlockingSession),
    )
    for kind_rows, kind in kinds:
        assert kind_rows
        assert {frozenset(row) for row in kind_rows} == {frozenset(kind.__annotations__)}


def test_csv() -> None:
    """The CSV has programs, unowned sessions and missing connections, distinguished by `kind`."""
    document = reconcile(look([conn(1), conn(2, 2)], session(1), session(3)), None, NAMING)
    rows = list(csv.DictReader(io.StringIO(reconcile_csv(document))))
    assert list(rows[0]) == list(CSV_KEYS)
    assert [(row["kind"], row["sessions"], row["server_id"]) for row in rows] == [
        ("program", "1", ""), ("unowned", "", "3"), ("missing", "", "2"),
    ]  # fmt: skip
    assert rows[1]["client_host"] == "10.0.0.5"


def test_unowned_sessions_are_grouped() -> None:
    """The table has one line for all sessions of a client host, user and database, with some of the ids."""
    document = reconcile(look([], *map(session, range(1, 9)), session(9, client_host=None)), None, NAMING)
    lines = reconcile_text(document).splitlines()
    (line,) = [line for line in lines if "10.0.0.5" in line]
    assert line.split() == ["10.0.0.5", "nova", "nova", "-", "8", "1", "2", "3", "4", "5", "..."]


def test_hidden_sessions_are_said() -> None:
    """For an account that may not see others' sessions a note names the privilege."""
    printed = reconcile_text(reconcile(look([], hidden_sessions=4), None, NAMING))
    assert "4 sessions are hidden from this account: it needs PROCESS" in printed

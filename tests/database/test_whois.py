"""`connmon whois`: who holds a session of the database server."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from connmon.database.documents import LookHeader, look_header
from connmon.database.naming import pool_servers
from connmon.database.whois import parse_session, whois
from connmon.database.whois_formats import whois_json, whois_text
from connmon.database_address import DatabaseServer, names, parse_server, parse_servers
from connmon.errors import ConfigError
from connmon.protocol.document import JsonConnection, JsonPool, cells
from tests.database.quick import run_connmon
from tests.protocol.test_snapshot import connection as connection_row
from tests.protocol.test_snapshot import pool, process, shown, typed_document
from tests.support.json_rows import typed
from tests.support.nodes import RunningNode, running_node
from tests.support.servers import Server
from tests.support.waiting import wait_for

APPLICATION = str(Path(__file__).parents[1] / "support" / "blocking_application.py")


def connection(server_id: int | None = 5, **changes: Any) -> JsonConnection:
    """Return a row of a snapshot by connection; `changes`: by their keys in JSON."""
    (flat,) = shown("connection", process(), pool(), connection_row())["rows"]
    row: JsonConnection = typed("connection", {**flat, "server_id": server_id, **changes})
    return row


HEADER: LookHeader = look_header(typed_document("connection").head)


# --- Pure ---------------------------------------------------------------------------------


def test_all_matches_with_their_server() -> None:
    """Where several servers have the id, all are listed, each with its server."""
    rows = (connection(), connection(database_host="db2"), connection(6), connection(None))
    result, problem = whois(HEADER, rows, 5)
    assert problem is None
    added = {"database_user": "root", "pool_verdict": None, "pool_verdict_reason": None}
    assert [row.cells() for row in result["rows"]] == [{**cells(row), **added} for row in rows[:2]]
    assert result["server_id"] == 5
    printed = whois_text(result)
    assert "session 5 of mysql 10.0.0.9:3306\n" in printed
    assert "session 5 of mysql db2:3306\n" in printed


@pytest.mark.parametrize(
    ("database", "found"),
    [
        ("10.0.0.9", True),
        ("10.0.0.9:3306", True),
        ("10.0.0.9:3307", False),
        ("db2", False),
    ],
)
def test_only_of_the_server_named(database: str, found: bool) -> None:
    """Where a server is named only its sessions match; without a port, on any of its ports."""
    result, problem = whois(HEADER, [connection()], 5, parse_servers(database))
    assert bool(result["rows"]) is found
    assert (problem is None) is found


@pytest.mark.parametrize(
    ("text", "host", "same"),
    [
        ("DB.example.", "db.EXAMPLE", True),
        ("[::1]:5432", "0:0:0:0:0:0:0:1", True),
        ("10.0.0.9", "10.0.0.90", False),
        ("localhost", None, False),
    ],
)
def test_how_a_server_is_named(text: str, host: str | None, same: bool) -> None:
    """Names are compared without regard to case, a final dot and the spelling of IPv6."""
    row = connection(dialect="postgresql", database_host=host, database_port=None)
    assert any(names(parse_server(text), server) for server in pool_servers(row.pool)) is same


def test_port_left_out_in_the_applications_url() -> None:
    """A pool whose URL has no port is at its dialect's default port."""
    for dialect, port in (("mysql", 3306), ("mariadb", 3306), ("postgresql", 5432)):
        row = connection(dialect=dialect, database_host="db", database_port=None)
        assert pool_servers(row.pool) == (DatabaseServer("db", port),)


@pytest.mark.parametrize(
    ("rows", "database", "hint"),
    [
        ([connection(6), connection(None)], None, "sessions known: 1; connections without a session id: 1"),
        ([connection()], "db2", "there is one on 10.0.0.9:3306"),
        ([connection(6)], "db2", "the servers that pools name are 10.0.0.9:3306"),
        ([], "db2", "no server is known"),
        ([], None, "sessions known: 0"),
    ],
)  # fmt: skip
def test_nobody_has_it(rows: list[JsonConnection], database: str | None, hint: str) -> None:
    """Where no process has the session, the error says what is known instead."""
    result, problem = whois(HEADER, rows, 5, () if database is None else parse_servers(database))
    assert result["rows"] == []
    assert problem is not None
    assert hint in problem


def test_nobody_has_it_but_not_all_is_known() -> None:
    """The error says how much limits leave out, and how many servers there are beyond the first ten."""
    _, problem = whois({**HEADER, "left_out": 12}, [connection(6)], 5)
    assert problem is not None and problem.endswith("; limits leave out 12 of the service")
    rows = [connection(6, database_host=f"db{number}") for number in range(13)]
    _, problem = whois(HEADER, rows, 5, [parse_server("elsewhere")])
    assert problem is not None and problem.endswith(" and 3 more")


def test_what_is_printed() -> None:
    """A block has host, program, pid, holder, the time held, the call site and the whole stack."""
    row = connection(
        held_seconds=41.0,
        holder="Thread-7",
        call_site="api.py:412 get",
        stack=["api.py:412 get", "w.py:8 go"],
    )
    lines = whois_text(whois(HEADER, [row], 5)[0]).splitlines()
    for line in (
        "  host      ctl1",
        "  program   nova-api",
        "  pid       42",
        "  state     checked out, held for 41s",
        "  holder    Thread-7",
        "  code      api.py:412 get",
        "  stack     api.py:412 get",
        "            w.py:8 go",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("pool", "user"),
    [
        ("mysql+pymysql://nova@db/x", "nova"),
        ("postgresql+psycopg2://na%40me%3Ax@db/x", "na@me:x"),
        ("mysql+pymysql://nova@/x", "nova"),
        ("mysql+pymysql://db/x", None),
        ("postgresql://", None),
        ("sqlite:////v/a@b.db", None),
        (None, None),
    ],
)
def test_both_users_are_named_as_what_they_are(pool: str | None, user: str | None) -> None:
    """The process's user is the system's; the database user comes from the pool's URL, or is not known."""
    result, _ = whois(HEADER, [connection(pool=pool, user="www-data")], 5)
    assert result["rows"][0].database_user == user
    printed = whois_text(result)
    assert "  os user   www-data\n" in printed
    assert f"  db user   {user or '-'}\n" in printed
    assert "\n  user " not in printed


def test_the_verdict_of_its_pool() -> None:
    """A match has the verdict and reason of its pool; none where two pools look the same."""
    row = connection()
    same = {**cells(row), "verdict": "LEAK", "verdict_reason": "held"}
    pool_row: JsonPool = typed("pool", same)
    other: JsonPool = typed("pool", {**same, "pool": "sqlite://", "verdict": None, "verdict_reason": None})
    (known,) = whois(HEADER, [row], 5, pools=[other, pool_row])[0]["rows"]
    assert (known.pool_verdict, known.pool_verdict_reason) == ("LEAK", "held")
    (unknown,) = whois(HEADER, [row], 5, pools=[pool_row, other, pool_row])[0]["rows"]
    assert (unknown.pool_verdict, unknown.pool_verdict_reason) == (None, None)


def test_lost_and_idle_and_unknown() -> None:
    """A lost process is marked as lost, an idle connection has no holder, an unknown value is a dash."""
    lost = connection(state=None, held_seconds=None)
    idle = connection(state="idle", held_seconds=None, holder=None, call_site=None, stack=[], pid=None)
    first, second = whois_text(whois(HEADER, [lost, idle], 5)[0]).split("\n\n")
    assert "  state     lost: its process is silent" in first
    assert "  state     idle\n" in second
    assert "  holder    -\n" in second
    assert "  pid       -\n" in second


def test_hostile_names() -> None:
    """Names with line ends and escape codes reach neither the terminal nor another line."""
    evil = 'a\n\x1b[2J"\u202eb'
    row = connection(
        host=evil, program=evil, command=evil, pool=evil, holder=evil, call_site=evil, stack=[evil],
        database_host=evil, dialect=evil,
    )  # fmt: skip
    result, _ = whois(HEADER, [row], 5)
    printed = whois_text(result)
    assert all(line.isprintable() for line in printed.splitlines())
    assert len(printed.splitlines()) == 13
    assert json.loads(whois_json(result))["rows"][0]["program"] == evil


@pytest.mark.parametrize("wrong", ["", "0", "-1", "1.5", "0x1f", "٣", "9" * 17, "1 2", "a\nb"])
def test_no_session_id(wrong: str) -> None:
    """A session id that is no positive number is refused in one line."""
    with pytest.raises(ConfigError) as caught:
        parse_session(wrong)
    assert str(caught.value).isprintable()


# --- Real sessions that block one another -------------------------------------------------


@pytest.fixture(name="node", scope="module")
def a_running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


@contextlib.contextmanager
def blocking(server: Server, node: RunningNode, driver: str) -> Iterator[dict[str, int]]:
    """One program that holds a row and one that waits for it; yields their pids."""
    engine = sqlalchemy.create_engine(server.url(driver))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS blocked"))
        connection.execute(text("CREATE TABLE blocked (id INTEGER PRIMARY KEY, n INTEGER)"))
        connection.execute(text("INSERT INTO blocked VALUES (1, 0)"))
    engine.dispose()
    with contextlib.ExitStack() as stack:
        pids = {}
        for role in ("hold", "wait"):
            url = server.url(
                driver, plugin="connmon", connmon_addr=node.address, connmon_program=f"{role}er",
                connmon_held="0.1",
            )  # fmt: skip
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, APPLICATION, role, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            assert process.stdin is not None
            assert process.stdout is not None
            stack.callback(process.stdin.close)
            assert process.stdout.readline() == b"ready\n"
            pids[role] = process.pid
        yield pids


def check_both(
    server: Server,
    node: RunningNode,
    driver: str,
    blocked: Callable[[], list[tuple[int, int]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with blocking(server, node, driver) as pids:
        ((waiting, holding),) = wait_for(blocked, 20, "one session to wait for another")

        def asked(session: int, *more: str) -> list[dict[str, Any]]:
            code = run_connmon(["whois", str(session), "-H", node.address, "--format", "json", *more])
            rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
            assert code == (0 if rows else 1)
            return rows

        def is_known(session: int, role: str) -> bool:
            (row,) = asked(session, "--database", f"{server.host}:{server.port}")
            assert (row["program"], row["pid"]) == (f"{role}er", pids[role])
            assert row["holder"] == f"{role}s-the-row"
            assert row["held_seconds"] > 0
            assert row["call_site"], "not looked at yet"
            assert any(f"blocking_application.py:{n}" in row["call_site"] for n in range(20, 42))
            assert f" {role}" in " ".join(row["stack"])
            return True

        wait_for(lambda: is_known(holding, "hold"), 20, "the holder's line of code")
        wait_for(lambda: is_known(waiting, "wait"), 20, "the waiting one's line of code")
        assert asked(holding, "--database", f"{server.host}:1") == []

        url = server.url(driver)
        assert run_connmon(["whois", str(waiting), "-H", node.address, "--database", url]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "  blocked " in line]
        assert f"by session {holding} (the root): holder on " in line
        assert f", pid {pids['hold']}, " in line
        assert re.search(r", held by \S*blocking_application.py:\d+ ", line)
        assert run_connmon(["whois", str(holding), "-H", node.address]) == 0
        printed = capsys.readouterr().out
        assert f"session {holding} of {server.backend} {server.host}:{server.port}\n" in printed
        assert f"  pid       {pids['hold']}\n" in printed
        assert server.password not in printed


def test_mariadb_sessions_that_block(
    mariadb: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both threads of a lock wait in MariaDB are found in their programs, with their call sites."""
    engine = sqlalchemy.create_engine(mariadb.url("pymysql"))

    def blocked() -> list[tuple[int, int]]:
        query = (
            "SELECT w.trx_mysql_thread_id, b.trx_mysql_thread_id FROM information_schema.innodb_lock_waits l"
            " JOIN information_schema.innodb_trx w ON w.trx_id = l.requesting_trx_id"
            " JOIN information_schema.innodb_trx b ON b.trx_id = l.blocking_trx_id"
        )
        with engine.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(text(query))]

    try:
        check_both(mariadb, node, "pymysql", blocked, capsys)
    finally:
        engine.dispose()


def test_postgresql_sessions_that_block(
    postgresql: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both backends of a lock wait in PostgreSQL are found in their programs, with their call sites."""
    engine = sqlalchemy.create_engine(postgresql.url("psycopg"))

    def blocked() -> list[tuple[int, int]]:
        query = "SELECT pid, unnest(pg_blocking_pids(pid)) FROM pg_stat_activity"
        with engine.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(text(query))]

    try:
        check_both(postgresql, node, "psycopg2", blocked, capsys)
    finally:
        engine.dispose()

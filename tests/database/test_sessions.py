"""The connection to a database server, with real MariaDB and PostgreSQL servers and with none."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pymysql
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.pool import NullPool

from connmon.database.connection_limit import hint
from connmon.database.sessions import DatabaseSessions, parse_url, server_of_url, with_password
from connmon.database.settings import DatabaseSettings
from connmon.database_address import DatabaseServer
from connmon.errors import UnreachableError, UsageError
from tests.commands.test_cli import command, environment
from tests.database.quick import run_connmon
from tests.support.nodes import RunningNode, running_node
from tests.support.requirements import needs_driver
from tests.support.servers import PostgreSQL, Server
from tests.support.stopping import stopped
from tests.support.waiting import wait_for

#: Every character that a URL, a file or a shell could take for something else.
PASSWORD = "p:a/s@s#w?o%r&d=[é]\\'\"`$; x*"


@pytest.fixture(name="node", scope="module")
def a_running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture(name="home", autouse=True)
def an_empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PGPASSWORD", "PGPASSFILE", "PGUSER", "PGHOST", "PGPORT", "PGSERVICE", "CONNMON_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


# --- The URL ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("mysql://root@db", "db:3306"),
        ("mysql+pymysql_connmon://root:x@DB:3307/nova?connmon_service=a&charset=utf8", "db:3307"),
        ("mysql+connmon://root@db/nova", "db:3306"),
        ("postgresql+asyncpg://u@[::1]:5433/nova?plugin=connmon", "[::1]:5433"),
        ("mariadb+aiomysql://u@db/nova", "db:3306"),
        ("mysql://u@/nova?unix_socket=/var/run/mysqld.sock", "/run/mysqld.sock"),
        ("postgresql://u@/nova?host=/run/postgresql&port=5433", "/run/postgresql:5433"),
        ("postgresql://u@/nova", "localhost:5432"),
    ],
)
def test_applications_urls_are_taken(url: str, server: str) -> None:
    """An application's own URL is accepted; connmon's options are removed from it."""
    parsed = parse_url(url)
    assert str(server_of_url(parsed)) == server
    assert "connmon" not in str(parsed)


@pytest.mark.parametrize(
    "url",
    [
        "", "db", "sqlite://", "oracle://u:seSAme@db", "mysql://u:seSAme", "mysql://u:p@seSAme@db/x",
        "mysql://u:seSAme/x", "mysql://u:x@db:seSAme/x", "postgresql://u:se\nSAme@db", "mysql//u:seSAme@db",
        "mysql+nodriver_at_all://u:seSAme@127.0.0.1:1/x",
    ],
)  # fmt: skip
def test_urls_that_cannot_be(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL that cannot be parsed is one line without the password."""
    assert run_connmon(["reconcile", url, "-H", "127.0.0.1:1"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("connmon: ")
    assert error[:-1].isprintable()
    assert "SAme" not in error


def test_other_arguments_show_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    """A URL in the wrong place is quoted without its password."""
    assert run_connmon(["reconcile", "mysql://u:seSAme@h/", "--database", "mysql://a:seSAme@h/"]) == 2
    assert "seSAme" not in capsys.readouterr().err


# --- Passwords ----------------------------------------------------------------------------


def test_password_files(home: Path) -> None:
    """A password that is not in the URL is read from ~/.my.cnf or ~/.pgpass, and is in no repr()."""
    (home / ".my.cnf").write_text("[client]\nuser=nova\npassword='se%s@me'\n")
    (home / ".pgpass").write_text("db:5432:nova:nova:pg:pass\n")
    (home / ".pgpass").chmod(0o600)
    for url, password in (
        ("mysql://db/nova", "se%s@me"),
        ("mysql://nova@db/nova", "se%s@me"),
        ("mysql://keystone@db/nova", None),
        ("mysql://nova:own@db/nova", "own"),
        ("postgresql://nova@db/nova", "pg:pass"),
        ("postgresql://nova@other/nova", None),
    ):
        parsed = parse_url(url)
        completed = with_password(parsed, server_of_url(parsed))
        assert completed.password == password
        assert not password or password not in repr(completed)


def test_password_files_open_to_others(home: Path) -> None:
    """A ~/.pgpass that others can read, or a ~/.my.cnf that they can write, is not used."""
    (home / ".pgpass").write_text("*:*:*:*:secret\n")
    (home / ".pgpass").chmod(0o640)
    (home / ".my.cnf").write_text("[client]\npassword=secret\n")
    (home / ".my.cnf").chmod(0o646)
    for url in ("postgresql://u@db/x", "mysql://u@db/x"):
        parsed = parse_url(url)
        assert with_password(parsed, server_of_url(parsed)).password is None


def test_password_of_a_server_that_something_else_decides(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No password of ~/.pgpass is sent where a service file, the environment or several hosts decide."""
    (home / ".pgpass").write_text("localhost:*:*:*:secret\na:*:*:*:secret\ndb1:5433:*:*:right\n")
    (home / ".pgpass").chmod(0o600)

    def found(url: str) -> str | None:
        parsed = parse_url(url)
        return with_password(parsed, server_of_url(parsed)).password

    assert found("postgresql://u@/x?service=there") is None
    assert found("postgresql://u@/x?host=a:1&host=b:2") is None
    monkeypatch.setenv("PGHOST", "db1")
    monkeypatch.setenv("PGPORT", "5433")
    assert found("postgresql://u@/x") == found("postgresql://u@db1/x") == "right"
    monkeypatch.setenv("PGSERVICE", "there")
    assert found("postgresql://u@/x") is None


# --- Real servers -------------------------------------------------------------------------


@pytest.fixture(
    name="server",
    params=[pytest.param(name, marks=pytest.mark.slow) for name in ("mariadb", "postgresql")],
    scope="module",
)
def a_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


DRIVERS = {"mysql": "pymysql", "postgresql": "psycopg2"}


def url_of(server: Server, user: str, password: str | None = None, host: str | None = None) -> str:
    secret = "" if password is None else f":{quote(password, safe='')}"
    return f"{server.backend}://{user}{secret}@{host or server.host}:{server.port}/{server.database}"


@contextlib.contextmanager
def account(server: Server, user: str, rights: str) -> Iterator[str]:
    """Create a database account with a password of special characters; yields its name."""
    engine = sqlalchemy.create_engine(server.url(DRIVERS[server.backend]), poolclass=NullPool)
    quoted = PASSWORD.replace("'", "''")
    if server.backend == "mysql":
        quoted = quoted.replace("\\", "\\\\")
        made = [f"CREATE USER {user} IDENTIFIED BY '{quoted}'", f"GRANT {rights or 'USAGE'} ON *.* TO {user}",
                f"GRANT SELECT ON {server.database}.* TO {user}"]  # fmt: skip
    else:
        made = [
            f"CREATE ROLE {user} LOGIN PASSWORD '{quoted}'",
            *([f"GRANT {rights} TO {user}"] if rights else []),
        ]

    def do(*statements: str) -> None:
        with contextlib.closing(engine.raw_connection()) as connection:
            for statement in statements:
                connection.cursor().execute(statement)  # as it stands, with whatever is in the password
            connection.commit()

    do(*made)
    try:
        yield user
    finally:
        wait_for(lambda: user not in [session.user for session in server.sessions()], what="it to log off")
        do(f"DROP USER {user}")


@contextlib.contextmanager
def application(server: Server, node: RunningNode, connections: int) -> Iterator[sqlalchemy.Engine]:
    """An engine of this process that reports to the node, with some open connections."""
    url = server.url(
        DRIVERS[server.backend], plugin="connmon", connmon_addr=node.address, connmon_program="the-app"
    )
    engine = sqlalchemy.create_engine(url, pool_size=3, max_overflow=2)
    held = [engine.connect() for _ in range(connections)]
    try:
        wait_for(
            lambda: sum(row["connections"] or 0 for row in node.rows("program")) == connections,
            what="the connections to be reported",
        )
        yield engine
    finally:
        for connection in held:
            connection.close()
        engine.dispose()
        wait_for(lambda: sum(row["connections"] or 0 for row in node.rows("program")) == 0)


RIGHTS = {"mysql": "PROCESS", "postgresql": "pg_read_all_stats"}


def test_reconcile(server: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]) -> None:
    """A read-only account sees the program's sessions, unowned sessions and the server's limits."""
    with account(server, "auditor", RIGHTS[server.backend]) as user, application(server, node, 2) as engine:
        stranger = sqlalchemy.create_engine(server.url(DRIVERS[server.backend]), poolclass=NullPool).connect()
        try:
            url = url_of(server, user, PASSWORD)
            own = {server.asking_session, stranger.scalar(text(server._own_query))}
            assert run_connmon(["reconcile", url, "-H", node.address, "--format", "json"]) == 0
            output = capsys.readouterr()
            document = json.loads(output.out)
            assert (document["accounted_sessions"], document["missing_connections"]) == (2, 0)
            others = [session for session in server.sessions() if session.user != user]  # that may be leaving
            assert document["sessions"] == 2 + len(own) == len(others) + 1
            assert {row["id"] for row in document["unowned"]} == own
            assert {row["client_host"] for row in document["unowned"]} == {"127.0.0.1"}
            assert {row["user"] for row in document["unowned"]} == {server.user}
            (program,) = document["programs"]
            assert (program["program"], program["sessions"], program["checked_out"]) == ("the-app", 2, 2)
            assert (program["capacity"], document["capacity"]) == (5, 5)
            limits = document["server"]
            assert limits["max_connections"] == (500 if server.backend == "mysql" else 300)
            assert limits["hidden_sessions"] == 0
            assert limits["used_connections"] == 2 + len(own) + 1
            assert limits["headroom"] == (
                limits["max_connections"] - limits["reserved_connections"] - limits["used_connections"]
            )
            assert run_connmon(["reconcile", url, "-H", node.address]) == 0
            table = capsys.readouterr().out
            assert "Sessions that no reported process owns" in table
            assert run_connmon(["reconcile", url, "-H", node.address, "--format", "csv"]) == 0
            rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
            assert [row["kind"] for row in rows] == ["program", "unowned", "unowned"]
            for shown in (output.out, output.err, table):
                assert PASSWORD not in shown
                assert quote(PASSWORD, safe="") not in shown
        finally:
            stranger.close()
        assert engine.pool is not None


def test_connection_that_the_server_has_killed(
    server: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection that the server has ended, and the application still has, is missing."""
    with application(server, node, 2) as engine:
        admin = sqlalchemy.create_engine(server.url(DRIVERS[server.backend]), poolclass=NullPool)
        (victim, _) = sorted(
            row["server_id"] for row in node.rows("connection") if row["program"] == "the-app"
        )
        kill = f"KILL {victim}" if server.backend == "mysql" else f"SELECT pg_terminate_backend({victim})"
        with admin.connect() as connection:
            connection.execute(text(kill))
        wait_for(lambda: victim not in [session.id for session in server.sessions()])
        assert run_connmon(["reconcile", url_of(server, server.user, server.password), "-H", node.address, "--format", "json"]) == 0  # fmt: skip # noqa: E501
        document = json.loads(capsys.readouterr().out)
        assert [row["server_id"] for row in document["missing"]] == [victim]
        assert document["accounted_sessions"] == 1
        assert engine.pool is not None


def test_account_that_may_not_see_others(server: Server) -> None:
    """Sessions that the account may not see are counted as hidden."""
    with (
        account(server, "blind", "") as user,
        DatabaseSessions(parse_url(url_of(server, user, PASSWORD))) as database,
    ):
        view = database.look()
        assert view.hidden_sessions >= 1  # the one that tests ask by
        assert view.used_connections >= 2


def test_the_account_of_files(server: Server, home: Path) -> None:
    """The login works with the password of ~/.my.cnf and ~/.pgpass, whatever characters it has."""
    with account(server, "filed", RIGHTS[server.backend]) as user:
        if server.backend == "mysql":
            quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
            (home / ".my.cnf").write_text(f"[client]\nuser={user}\npassword='{quoted}'\n")
        else:
            quoted = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
            (home / ".pgpass").write_text(f"127.0.0.1:*:*:{user}:{quoted}\n")
            (home / ".pgpass").chmod(0o600)
        with DatabaseSessions(parse_url(url_of(server, user))) as database:
            assert database.look().max_connections > 0


def test_wrong_password(server: Server) -> None:
    """A refused login is a usage error with the server's message, without the password."""
    for password in ("seSAme", None):
        with pytest.raises(UsageError, match=r"~/\.my\.cnf or ~/\.pgpass") as caught:
            DatabaseSessions(parse_url(url_of(server, server.user, password)))
        assert "seSAme" not in str(caught.value)
        assert str(caught.value).isprintable()


def test_password_that_is_asked_for(mariadb: Server, node: RunningNode) -> None:
    """On a terminal the password is asked for, and not echoed."""
    here, there = pty.openpty()
    arguments = ("reconcile", url_of(mariadb, mariadb.user), "-H", node.address, "--format", "json")
    with subprocess.Popen(
        command(*arguments),
        stdin=there,
        stderr=there,
        stdout=subprocess.PIPE,
        env=environment(HOME=os.environ["HOME"]),
        start_new_session=True,
    ) as process:
        os.close(there)
        shown = b""
        while b"Password of connmon at " not in shown:
            shown += os.read(here, 1000)
        os.write(here, f"{mariadb.password}\n".encode())
        output, _ = process.communicate(timeout=30)
        with contextlib.suppress(OSError):  # how the end of a terminal is read
            while data := os.read(here, 1000):
                shown += data
        os.close(here)
    assert process.returncode == 0, shown
    assert json.loads(output)["server"]["port"] == mariadb.port
    assert mariadb.password.encode() not in shown


# --- No server ----------------------------------------------------------------------------


@pytest.fixture(name="mute")
def a_port_that_says_nothing() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("dialect", ["mysql", "mysql+mysqldb", "postgresql+psycopg", "postgresql+psycopg2"])
def test_server_that_does_not_answer(mute: int, dialect: str) -> None:
    """A server that accepts the connection and never answers is given up."""
    if dialect != "mysql":  # for which connmon takes the driver that is there
        needs_driver(dialect)
    url = parse_url(f"{dialect}://u:seSAme@127.0.0.1:{mute}/x")
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:\d+: no answer within 0\.3 s"):
        DatabaseSessions(url, settings=DatabaseSettings(connect_seconds=0.3))


@pytest.mark.parametrize("driver", ["pymysql", "mysqldb"])
def test_server_that_stops_answering(mariadb: Server, driver: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A server that hangs later is given up within the limit, and nothing else is printed."""
    needs_driver(driver)
    settings = DatabaseSettings(answer_seconds=1.5)
    with DatabaseSessions(parse_url(mariadb.url(driver)), settings=settings) as database:
        assert database.look().max_connections == 500
        with stopped(mariadb.pid):
            with pytest.raises(UnreachableError, match=r"no answer within 1\.5 s"):
                database.look()
            database.close()
        wait_for(lambda: not any(thread.name == "ask-database" for thread in threading.enumerate()))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dialect", ["mysql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_nobody_listens(dialect: str) -> None:
    """A refused connection is one line with the server and the reason."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(UnreachableError) as caught:
            DatabaseSessions(parse_url(f"{dialect}://u:seSAme@127.0.0.1:{port}/x"))
    assert str(caught.value).startswith(f"127.0.0.1:{port}: ")
    assert "refused" in str(caught.value)
    assert "seSAme" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the error names the package to install."""
    for name in ("psycopg", "psycopg2", "pg8000"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="no driver for postgresql is installed here; pip install"):
        DatabaseSessions(parse_url("postgresql://u:p@db/x"))


def test_server_of_the_sessions() -> None:
    """The server is the URL's, with its dialect's default port."""
    assert server_of_url(parse_url("mariadb://u@Db./x")) == DatabaseServer("db", 3306)


# --- No session left ----------------------------------------------------------------------


def refusal(url: str, node: RunningNode, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error line of reconcile."""
    assert run_connmon(["reconcile", url, "-H", node.address]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@contextlib.contextmanager
def full(connect: Callable[[], Any]) -> Iterator[None]:
    """Connect until the server takes no more."""
    with contextlib.ExitStack() as held:
        refused = 0

        def refuses() -> bool:
            nonlocal refused
            try:
                held.enter_context(contextlib.closing(connect()))
                refused = 0
            except (pymysql.Error, psycopg.Error):
                refused += 1
            return refused == 20  # a session that has just ended may leave room for a moment

        wait_for(refuses, what="the server to refuse")
        yield


@pytest.mark.slow
def test_a_full_mariadb_says_which_right_gets_in(
    mariadb: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without CONNECTION ADMIN the line names the privilege; an account that has it gets in."""
    (before,) = query(mariadb, "SELECT @@max_connections")
    with account(mariadb, "viewer", "PROCESS") as user, account(mariadb, "chief", "ALL PRIVILEGES") as chief:
        query(mariadb, "SET GLOBAL max_connections = 12")
        try:
            with full(lambda: pymysql.connect(
                host=mariadb.host, port=mariadb.port, user=user, password=PASSWORD.encode()
            )):  # fmt: skip
                line = refusal(url_of(mariadb, user, PASSWORD), node, capsys)
                assert "Too many connections (one session more is kept for an account with" in line
                assert "CONNECTION ADMIN (MariaDB 10.5) or SUPER" in line and "extra_port" in line
                for driver in ("mysqlconnector", "mysqldb"):
                    assert "CONNECTION ADMIN" in refusal(url_of(mariadb, user, PASSWORD).replace(
                        "mysql:", f"mysql+{driver}:"
                    ), node, capsys)  # fmt: skip
                assert run_connmon(["reconcile", url_of(mariadb, chief, PASSWORD), "-H", node.address]) == 0
        finally:
            query(mariadb, f"SET GLOBAL max_connections = {before}")
        query(mariadb, f"GRANT USAGE ON *.* TO {user} WITH MAX_USER_CONNECTIONS 1")
        with full(lambda: pymysql.connect(
            host=mariadb.host, port=mariadb.port, user=user, password=PASSWORD.encode()
        )):  # fmt: skip
            line = refusal(url_of(mariadb, user, PASSWORD), node, capsys)
            assert "(max_user_connections: that is this account's limit, use another account)" in line


def query(server: Server, statement: str) -> list[Any]:
    """Return the first column of the superuser's answer."""
    with server._lock:
        return [row[0] for row in server._rows(statement)]


class FewSlots(PostgreSQL):
    """A server with four sessions for everybody, and two for superusers."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-c", "max_connections=6", "-c", "superuser_reserved_connections=2"]


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_a_full_postgresql_says_which_right_gets_in(
    driver: str, postgresql: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reserved slots, a full server and a role's own limit have different hints."""
    server = FewSlots()

    def connect(user: str) -> Any:
        return psycopg.connect(
            host=server.host, port=server.port, user=user, password=passwords[user], dbname=server.database
        )

    passwords = {"viewer": PASSWORD, server.user: server.password}
    try:
        with account(server, "viewer", "pg_read_all_stats") as user:
            url = url_of(server, user, PASSWORD).replace("postgresql:", f"postgresql+{driver}:")
            chief = url_of(server, server.user, server.password)
            with full(lambda: connect(user)):
                line = refusal(url, node, capsys)
                assert "slots are reserved" in line
                assert "(superuser_reserved_connections are kept for a superuser" in line
                assert "pg_use_reserved_connections" in line
                assert run_connmon(["reconcile", chief, "-H", node.address]) == 0
                capsys.readouterr()
                with full(lambda: connect(server.user)):
                    assert "a superuser does not get in either" in refusal(url, node, capsys)
            query_postgresql(server, f"ALTER ROLE {user} CONNECTION LIMIT 0")
            assert "CONNECTION LIMIT: that is this role's" in refusal(url, node, capsys)
    finally:
        server.remove()


def query_postgresql(server: Server, statement: str) -> None:
    with server._lock:
        server._admin.execute(statement)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (1040, "Zu viele Verbindungen", "CONNECTION_ADMIN"),
        ("53300", "tut mir leid, schon zu viele Clients", "superuser_reserved_connections"),
        (None, "FATAL: remaining connection slots are reserved for roles with privileges of the "
         '"pg_use_reserved_connections" role', "pg_use_reserved_connections"),
        (1045, "Access denied for user", ""),
        (None, "connection refused", ""),
        ("28P01", "password authentication failed", ""),
    ],
)  # fmt: skip
def test_hints(code: object, message: str, expected: str) -> None:
    """The error code decides in any language of the server; other errors get no hint."""
    text = hint(code, message)
    assert expected in text if expected else text == ""

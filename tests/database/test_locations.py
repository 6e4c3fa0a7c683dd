"""Which server a connection is at, however the driver was led there: real servers, real drivers, a real node.

Each case opens a connection in one way, and then the node, `whois` and `reconcile` (which asks the server by
TCP and by its socket) have to say what the server itself says.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import warnings
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pymysql
import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from connmon.database_address import LARGEST_BACKEND_ID
from connmon.drivers import Driver
from tests.database.quick import run_connmon
from tests.database.test_sessions import PASSWORD, account
from tests.support.nodes import RunningNode, running_node
from tests.support.pgbouncer import pgbouncer
from tests.support.requirements import needs_driver
from tests.support.servers import MariaDB, Server
from tests.support.waiting import wait_for

T = TypeVar("T")
Place = tuple["str | None", "int | None"]

ASYNCIO: Final = ("asyncmy", "aiomysql", "asyncpg", "psycopg_async")
_numbers: Final = itertools.count(1)


@pytest.fixture(name="node", scope="module")
def a_running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture(autouse=True)
def nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PGHOST", "PGPORT", "PGSERVICE", "PGSERVICEFILE", "PGPASSWORD", "CONNMON_CONFIG"):
        monkeypatch.delenv(name, raising=False)


class Loop:
    """An event loop in a thread, for the drivers that need one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Opened(NamedTuple):
    """A connection that is held."""

    program: str
    session: int
    """By the server's word."""
    raw: Any
    """The driver's."""
    loop: Loop | None = None


@contextlib.contextmanager
def opened(node: RunningNode, server: Server, url: URL, **arguments: Any) -> Iterator[Opened]:
    """Open one connection with an engine that reports to the node, and hold it."""
    program = f"program{next(_numbers)}"
    options = {"plugin": "connmon", "connmon_addr": node.address, "connmon_program": program}
    url = url.update_query_dict(options)
    own = server._own_query
    if url.get_driver_name() not in ASYNCIO:
        engine = create_engine(url, pool_size=2, max_overflow=0, **arguments)
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            yield Opened(program, int(connection.scalar(text(own))), raw)
        engine.dispose()
        return
    loop = Loop()
    try:
        async_engine = create_async_engine(url, pool_size=2, max_overflow=0, **arguments)
        held = loop.run(_start(async_engine))
        raw = loop.run(held.get_raw_connection()).driver_connection
        try:
            yield Opened(program, int(loop.run(held.scalar(text(own)))), raw, loop)
        finally:
            loop.run(held.close())
            loop.run(async_engine.dispose())
    finally:
        loop.close()


async def _start(engine: Any) -> Any:
    return await engine.connect()


def login(server: Server) -> dict[str, Any]:
    return {"username": server.user, "password": server.password, "database": server.database}


def by_tcp(server: Server, driver: str, **query: Any) -> URL:
    return URL.create(
        f"{server.backend}+{driver}", **login(server), host=server.host, port=server.port, query=query
    )  # fmt: skip


def elsewhere(server: Server, driver: str) -> URL:
    """A URL that names a missing server."""
    return by_tcp(server, driver).set(host="elsewhere.invalid", port=1)


def nowhere(server: Server, driver: str, **query: Any) -> URL:
    """A URL that names no server."""
    return URL.create(f"{server.backend}+{driver}", **login(server), query=query)


def socket_of(server: Server) -> Place:
    """Return the expected place of a connection by the server's socket."""
    if server.backend == "mysql":
        return f"{server.directory}/socket", None
    return server.directory, server.port


def by_socket(server: Server) -> str:
    """Return the URL for `reconcile` by the socket."""
    if server.backend == "mysql":
        url = nowhere(server, "pymysql", unix_socket=f"{server.directory}/socket")
    else:
        url = nowhere(server, "psycopg", host=server.directory, port=str(server.port))
    return url.render_as_string(hide_password=False)


def asked(capsys: pytest.CaptureFixture[str], node: RunningNode, *command: str) -> Any:
    code = run_connmon([command[0], "-H", node.address, "--format", "json", *command[1:]])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def written(place: Place) -> str:
    host, port = place
    return str(host) if port is None else f"{host}:{port}"


def check(
    node: RunningNode, server: Server, case: Opened, place: Place, capsys: pytest.CaptureFixture[str],
    several: str | None = None,
) -> None:  # fmt: skip
    """The node, `whois` and `reconcile` agree with the server about the one connection."""

    def reported() -> bool:
        rows = [row for row in node.rows("connection") if row["program"] == case.program]
        assert [(row["database_host"], row["database_port"], row["server_id"]) for row in rows] == [
            (*place, case.session)
        ]
        return True

    wait_for(reported, 10, "the node to have the connection as it is")
    (pool,) = [row for row in node.rows("pool") if row["program"] == case.program]
    assert (pool["database_host"], pool["database_port"]) == (place if several is None else (several, None))
    (row,) = asked(capsys, node, "whois", str(case.session), "--database", written(place))["rows"]
    assert row["program"] == case.program
    for url in (by_tcp(server, "pymysql" if server.backend == "mysql" else "psycopg").render_as_string(False),
                by_socket(server)):  # fmt: skip
        document = asked(capsys, node, "reconcile", url)
        programs = {row["program"]: row["sessions"] for row in document["programs"]}
        assert programs[case.program] == 1
        assert document["missing_connections"] == 0
        assert case.session not in [row["id"] for row in document["unowned"]]


# --- MySQL ----------------------------------------------------------------------------------

MYSQL: Final = ("pymysql", "mysqldb", "mysqlconnector", "asyncmy", "aiomysql")


@pytest.mark.parametrize("driver", MYSQL)
@pytest.mark.parametrize(
    "way", ["url", "socket", "argument", "argument-socket", "file", "file-socket", "creator"]
)
def test_mysql(
    driver: str,
    way: str,
    mariadb: Server,
    node: RunningNode,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The connection is at the actual server, by every way to give a MySQL driver its server."""
    needs_driver(driver)
    tcp: Place = (mariadb.host, mariadb.port)
    path = f"{mariadb.directory}/socket"
    arguments: dict[str, Any] = {}
    place = socket_of(mariadb) if "socket" in way else tcp
    url = elsewhere(mariadb, driver)
    if way == "url":
        url = by_tcp(mariadb, driver)
    elif way == "socket":
        url = nowhere(mariadb, driver, unix_socket=path)
    elif way == "argument":
        arguments["connect_args"] = {"host": mariadb.host, "port": mariadb.port}
    elif way == "argument-socket":
        arguments["connect_args"] = {"unix_socket": path}
        if driver == "mysqldb":  # a host wins over a socket there
            url = nowhere(mariadb, driver)
    elif way.startswith("file"):
        file = tmp_path / "my.cnf"
        socket = mariadb.backend == "mysql" and place != tcp
        words = f"socket={path}" if socket else f"host={mariadb.host}\nport={mariadb.port}"
        if driver == "mysqlconnector":
            words = words.replace("socket=", "unix_socket=")
            arguments["connect_args"] = {"option_files": str(file), "option_groups": ["client"]}
            url = nowhere(mariadb, driver)
        else:
            url = nowhere(mariadb, driver, read_default_file=str(file))
        file.write_text(f"[client]\n{words}\n")
    else:
        arguments |= _creator(driver, mariadb, tcp)
    with opened(node, mariadb, url, **arguments) as case:
        check(node, mariadb, case, place, capsys)


def _creator(driver: str, server: Server, place: Place) -> dict[str, Any]:
    """Return the argument by which an engine connects to the server, whatever its URL names."""
    other = create_engine(by_tcp(server, driver).set(host=str(place[0]), port=place[1]), poolclass=NullPool)
    if driver in ASYNCIO:
        import importlib

        module: Any = importlib.import_module("psycopg" if driver == "psycopg_async" else driver)
        (_, given) = other.dialect.create_connect_args(other.url)

        async def connect() -> Any:
            if driver == "psycopg_async":
                return await module.AsyncConnection.connect(**given)
            given.pop("prepared_statement_cache_size", None)
            return await module.connect(**given)

        return {"async_creator": connect}
    args, keywords = other.dialect.create_connect_args(other.url)
    return {"creator": lambda: other.dialect.loaded_dbapi.connect(*args, **keywords)}


# --- PostgreSQL -----------------------------------------------------------------------------

LIBPQ: Final = ("psycopg2", "psycopg", "psycopg_async")
POSTGRESQL: Final = (*LIBPQ, "asyncpg", "pg8000")


@pytest.mark.parametrize(
    ("driver", "way"),
    [
        *itertools.product(POSTGRESQL, ["url", "socket", "argument", "argument-socket", "creator"]),
        *itertools.product((*LIBPQ, "asyncpg"), ["environment"]),  # pg8000 reads none
    ],
)
def test_postgresql(
    driver: str, way: str, postgresql: Server, node: RunningNode, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The connection is at the actual server, by every way to give a PostgreSQL driver its server."""
    tcp: Place = (postgresql.host, postgresql.port)
    place = socket_of(postgresql) if "socket" in way else tcp
    path = f"{postgresql.directory}/.s.PGSQL.{postgresql.port}"
    arguments: dict[str, Any] = {}
    url = elsewhere(postgresql, driver)
    if way == "url":
        url = by_tcp(postgresql, driver)
    elif way == "socket" and driver == "pg8000":
        url = nowhere(postgresql, driver, unix_sock=path)
    elif way == "socket":
        url = nowhere(postgresql, driver, host=postgresql.directory, port=str(postgresql.port))
    elif way == "argument":
        arguments["connect_args"] = {"host": postgresql.host, "port": postgresql.port}
    elif way == "argument-socket" and driver == "pg8000":
        arguments["connect_args"] = {"unix_sock": path}
    elif way == "argument-socket":
        arguments["connect_args"] = {"host": postgresql.directory, "port": postgresql.port}
    elif way == "environment":
        monkeypatch.setenv("PGHOST", postgresql.host)
        monkeypatch.setenv("PGPORT", str(postgresql.port))
        url = nowhere(postgresql, driver)
    else:
        arguments |= _creator(driver, postgresql, tcp)
    with opened(node, postgresql, url, **arguments) as case:
        monkeypatch.undo()
        check(node, postgresql, case, place, capsys)


@pytest.mark.parametrize("driver", LIBPQ)
def test_postgresql_service(
    driver: str, postgresql: Server, node: RunningNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The server of a libpq service is the one in its file."""
    file = tmp_path / "services"
    file.write_text(f"[there]\nhost={postgresql.host}\nport={postgresql.port}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    url = nowhere(postgresql, driver, service="there")
    with opened(node, postgresql, url) as case:
        check(node, postgresql, case, (postgresql.host, postgresql.port), capsys)


@pytest.mark.parametrize(
    ("driver", "form"),
    [*itertools.product(LIBPQ, ["repeated", "commas"]), ("asyncpg", "repeated")],
)
def test_postgresql_several_hosts(
    driver: str, form: str, postgresql: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """With several hosts in a URL the connection is at the one that accepted it; the pool may be at each."""
    dead, alive = "127.0.0.2:1", f"{postgresql.host}:{postgresql.port}"
    if form == "repeated":
        url = nowhere(postgresql, driver, host=(dead, alive))
    else:
        url = nowhere(postgresql, driver, host=f"127.0.0.2,{postgresql.host}", port=f"1,{postgresql.port}")
    with opened(node, postgresql, url) as case:
        check(node, postgresql, case, (postgresql.host, postgresql.port), capsys, f"{dead},{alive}")
        # The same URL is one for `reconcile`, too: it says where it went.
        document = asked(
            capsys, node, "reconcile", url.set(drivername="postgresql+psycopg").render_as_string(False)
        )
        assert (document["server"]["host"], document["server"]["port"]) == (postgresql.host, postgresql.port)
        assert [row["sessions"] for row in document["programs"] if row["program"] == case.program] == [1]


def test_account_that_may_only_look(
    postgresql: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """An account that does not see the socket directories matches pools with sockets by the port."""
    with account(postgresql, "looker", "pg_read_all_stats") as user:
        login = by_tcp(postgresql, "psycopg").set(username=user, password=PASSWORD)
        url = nowhere(postgresql, "psycopg2", host=postgresql.directory, port=str(postgresql.port))
        with opened(node, postgresql, url) as case:
            wait_for(lambda: case.program in [row["program"] for row in node.rows("connection")])
            document = asked(capsys, node, "reconcile", login.render_as_string(False))
            assert [row["sessions"] for row in document["programs"] if row["program"] == case.program] == [1]


# --- Before and between ---------------------------------------------------------------------


def test_server_that_becomes_known(mariadb: Server, node: RunningNode) -> None:
    """The server of a creator is unknown until its first connection; then the whole pool is there."""
    own = "information_schema"  # which no other test is in
    other = create_engine(by_tcp(mariadb, "pymysql").set(database=own))
    args, keywords = other.dialect.create_connect_args(other.url)
    broken = True

    def creator() -> Any:
        if broken:
            raise OSError("not yet")
        return other.dialect.loaded_dbapi.connect(*args, **keywords)

    url = elsewhere(mariadb, "pymysql")
    options = {"plugin": "connmon", "connmon_addr": node.address, "connmon_program": "becomes-known"}
    engine = create_engine(url.update_query_dict(options), creator=creator)

    def database() -> dict[Place, tuple[int, int, int]]:
        return {
            (row["database_host"], row["database_port"]): (
                row["pools"], row["connects_total"], row["connect_errors_total"],
            )
            for row in node.rows("database")
            if row["database"] == own or (row["dialect"] == "mysql" and row["database_host"] is None)
        }  # fmt: skip

    with pytest.raises(OSError):
        engine.connect()
    wait_for(lambda: database() == {(None, None): (1, 0, 1)}, 10, "the pool to be at a server not known")
    broken = False
    with engine.connect():
        moved = {(None, None): (0, 0, 0), (mariadb.host, mariadb.port): (1, 1, 1)}
        wait_for(lambda: database() == moved, 10, "the pool to be at its server")
        (row,) = [row for row in node.rows("program") if row["program"] == "becomes-known"]
        assert (row["connects_total"], row["connect_errors_total"], row["pools"]) == (1, 1, 1)
    engine.dispose()


def test_creator_to_several_servers(
    mariadb: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pool by TCP and by socket: each connection has its own place, and all are at the one server."""
    tcp = _creator("pymysql", mariadb, (mariadb.host, mariadb.port))["creator"]
    path = str(socket_of(mariadb)[0])
    other = create_engine(nowhere(mariadb, "pymysql", unix_socket=path))
    args, keywords = other.dialect.create_connect_args(other.url)
    makers = itertools.cycle([tcp, lambda: other.dialect.loaded_dbapi.connect(*args, **keywords)])
    url = elsewhere(mariadb, "pymysql")
    options = {"plugin": "connmon", "connmon_addr": node.address, "connmon_program": "both-ways"}
    engine = create_engine(url.update_query_dict(options), creator=lambda: next(makers)())
    with engine.connect(), engine.connect():

        def reported() -> bool:
            rows = [row for row in node.rows("connection") if row["program"] == "both-ways"]
            assert {(row["database_host"], row["database_port"]) for row in rows} == {
                (mariadb.host, mariadb.port),
                (path, None),
            }
            return True

        wait_for(reported, 10, "both connections")
        (pool,) = [row for row in node.rows("pool") if row["program"] == "both-ways"]
        # In an order that does not depend on which came first.
        assert pool["database_host"] == f"{path},{mariadb.host}:{mariadb.port}"
        for asking in (by_tcp(mariadb, "pymysql").render_as_string(False), by_socket(mariadb)):
            document = asked(capsys, node, "reconcile", asking)
            assert [row["sessions"] for row in document["programs"] if row["program"] == "both-ways"] == [2]
            assert document["missing_connections"] == 0
    engine.dispose()


@pytest.fixture(name="stranger", scope="module")
def another_server(mariadb: Server) -> Iterator[Server]:
    server = MariaDB()
    try:
        yield server
    finally:
        server.remove()


def test_session_of_a_stranger(
    mariadb: Server, stranger: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """A creator connects to another server than the URL's, where the same id is another session."""
    with contextlib.ExitStack() as stack:

        def connect(server: Server) -> Any:
            return pymysql.connect(
                host=server.host, port=server.port, user=server.user, password=server.password,
                database=server.database,
            )  # fmt: skip

        there = connect(mariadb)
        stack.callback(lambda: there.close() if there.open else None)

        def creator() -> Any:
            """Return a connection whose id also exists at the URL's server, after as many attempts as
            needed."""
            nonlocal there
            while (made := connect(stranger)).thread_id() != there.thread_id():
                if made.thread_id() > there.thread_id():
                    there.close()
                    there = connect(mariadb)
                made.close()
            return made

        case = stack.enter_context(opened(node, mariadb, by_tcp(mariadb, "pymysql"), creator=creator))
        assert case.session == there.thread_id()
        wait_for(lambda: case.program in [row["program"] for row in node.rows("connection")])
        (row,) = asked(
            capsys, node, "whois", str(case.session), "--database", f"{stranger.host}:{stranger.port}"
        )["rows"]
        assert row["program"] == case.program
        ours = f"{mariadb.host}:{mariadb.port}"
        assert run_connmon(["whois", str(case.session), "-H", node.address, "--database", ours]) == 1
        assert f"there is one on {stranger.host}:{stranger.port}" in capsys.readouterr().err
        for server, sessions in ((mariadb, []), (stranger, [1])):
            document = asked(capsys, node, "reconcile", by_tcp(server, "pymysql").render_as_string(False))
            assert [
                row["sessions"] for row in document["programs"] if row["program"] == case.program
            ] == sessions
            assert (case.session in [row["id"] for row in document["unowned"]]) is (server is mariadb)


# --- Poolers --------------------------------------------------------------------------------


@pytest.fixture(name="bouncer", scope="module")
def a_pooler(postgresql: Server) -> Iterator[int]:
    with pgbouncer(postgresql) as port:
        yield port


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_pgbouncer(
    driver: str, postgresql: Server, bouncer: int, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id of PgBouncer's own is null, and `reconcile` notes the pooler."""
    url = by_tcp(postgresql, driver).set(port=bouncer)
    direct = by_tcp(postgresql, "psycopg").render_as_string(False)
    through = by_tcp(postgresql, "psycopg").set(port=bouncer).render_as_string(False)
    named = ("--database", f"{postgresql.host}:{bouncer}")
    with contextlib.ExitStack() as stack:
        while True:  # one in a thousand of its ids could be a backend's
            case = stack.enter_context(opened(node, postgresql, url))
            number = Driver("postgresql", driver.removesuffix("_async")).session(case.raw)
            if number is not None and not 0 < number <= LARGEST_BACKEND_ID:
                break
            stack.close()

        def reported() -> bool:
            rows = [row for row in node.rows("connection") if row["state"] is not None]
            found = [(row["program"], row["server_id"], row["database_port"], row["pooler"]) for row in rows]
            assert found == [(case.program, None, bouncer, True)]
            return True

        wait_for(reported, 10, "the connection to be known as one through a pooler")
        document = asked(capsys, node, "reconcile", direct)
        other = {"server": f"{postgresql.host}:{bouncer}", "pools": 1, "connections": 1, "pooler": True}
        assert document["other_servers"] == [other]
        for command in ((direct, *named), (through,)):
            document = asked(capsys, node, "reconcile", *command)
            assert (document["missing_connections"], document["connections_through_pooler"]) == (0, 1)
            assert document["connections_without_id"] == 1
            assert run_connmon(["reconcile", "-H", node.address, *command]) == 0
            printed = capsys.readouterr().out
            assert "a pooler (PgBouncer) stands between this server and 1 connections" in printed
        assert run_connmon(["whois", str(case.session), "-H", node.address]) == 1
        assert "1 of them through a pooler (PgBouncer), which hides it" in capsys.readouterr().err


# --- Ids that change ------------------------------------------------------------------------


def _reconnect(driver: str, case: Opened) -> None:
    """Reconnect the driver behind the pool's back."""
    if driver == "pymysql":
        case.raw._force_close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyMySQL would have nobody use it
            case.raw.ping(reconnect=True)
    elif driver == "mysqldb":
        with contextlib.suppress(Exception):
            case.raw.kill(case.raw.thread_id())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nor would mysqlclient
            case.raw.ping(True)
    elif driver == "mysqlconnector":
        case.raw.reconnect()
    else:
        raise NotImplementedError(driver)


@pytest.mark.parametrize("driver", ["pymysql", "mysqldb", "mysqlconnector"])
def test_driver_that_connects_again(
    driver: str, mariadb: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """After ping(reconnect=True) or reconnect() the connection has the new session."""
    needs_driver(driver)
    with opened(node, mariadb, by_tcp(mariadb, driver)) as case:
        place: Place = (mariadb.host, mariadb.port)
        check(node, mariadb, case, place, capsys)
        _reconnect(driver, case)
        session = int(case.raw.connection_id if driver == "mysqlconnector" else case.raw.thread_id())
        assert session != case.session
        wait_for(lambda: case.session not in [session.id for session in mariadb.sessions()])
        check(node, mariadb, case._replace(session=session), place, capsys)
        assert run_connmon(["whois", str(case.session), "-H", node.address]) == 1
        capsys.readouterr()


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
def test_asyncio_driver_that_connects_again(
    driver: str, mariadb: Server, node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with the drivers for asyncio."""
    with opened(node, mariadb, by_tcp(mariadb, driver)) as case:
        place: Place = (mariadb.host, mariadb.port)
        check(node, mariadb, case, place, capsys)
        assert case.loop is not None
        case.loop.run(_again(driver, case.raw))
        session = int(case.raw.thread_id())
        assert session != case.session
        wait_for(lambda: case.session not in [session.id for session in mariadb.sessions()])
        check(node, mariadb, case._replace(session=session), place, capsys)


async def _again(driver: str, raw: Any) -> None:
    if driver == "aiomysql":
        raw.close()
        await raw.ping(reconnect=True)
    else:
        await raw.ensure_closed()
        await raw.connect()

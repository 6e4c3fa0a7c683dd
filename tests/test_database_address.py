"""Database servers: as URLs, rows and users name them, and as drivers report them."""

from __future__ import annotations

import gc
import os
import socket
import weakref
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon import drivers
from connmon.database_address import (
    LARGEST_BACKEND_ID,
    UNKNOWN,
    DatabaseServer,
    comparable,
    joined,
    named,
    parse_servers,
    plain,
    servers_in_url,
    servers_of,
)
from connmon.drivers import Driver
from connmon.errors import ConfigError
from connmon.plugin.describe import MOST_SERVERS, Location
from connmon.protocol.reports import PoolInfo, ServerAddress

# --- Words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "driver", "host", "port", "query", "servers"),
    [
        ("mysql", "pymysql", "db", None, {}, "db:3306"),
        ("mysql", "pymysql", "db", 1, {"port": "3307"}, "db:3307"),
        ("mysql", "pymysql", None, None, {}, ""),
        ("mysql", "pymysql", "db", None, {"unix_socket": "/s"}, "/s"),
        ("mysql", "mysqldb", "db", None, {"unix_socket": "/s"}, ""),
        ("mysql", "mysqldb", "localhost", None, {"unix_socket": "/s"}, "/s"),
        ("mysql", "mysqldb", "localhost", None, {}, ""),
        ("mysql", "pymysql", "db", None, {"read_default_file": "/f"}, ""),
        ("postgresql", "psycopg", "::1", None, {}, "[::1]:5432"),
        ("postgresql", "psycopg", "db", 5433, {"service": "s"}, ""),
        ("postgresql", "psycopg", None, None, {"host": "/d", "port": "5433"}, "/d:5433"),
        ("postgresql", "psycopg", None, None, {"host": ("a:1", "b")}, "a:1,b:5432"),
        ("postgresql", "psycopg", None, None, {"host": "a,b", "port": "1,2"}, "a:1,b:2"),
        ("postgresql", "psycopg", None, None, {"host": "a,b,c", "port": "1,2"}, ""),
        ("postgresql", "pg8000", None, None, {"unix_sock": "/d/.s.PGSQL.5433"}, "/d:5433"),
        ("mssql", "pyodbc", "db", None, {}, "db"),
    ],
)
def test_servers_of_urls(
    dialect: str, driver: str, host: str | None, port: int | None, query: dict[str, Any], servers: str
) -> None:
    """A URL names its servers, or none where files or the environment decide."""
    assert joined(servers_in_url(dialect, driver, host, port, query)) == servers


def test_port_of_the_environment() -> None:
    """A URL without a port names no server where PGPORT or a service could name the port."""
    for name in ("PGPORT", "PGSERVICE"):
        assert servers_in_url("postgresql", "psycopg", "db", None, {}, {name: "1"}) == ()
        assert servers_in_url("postgresql", "psycopg", "db", 5432, {}, {name: "1"}) != ()
        assert servers_in_url("postgresql", "pg8000", "db", None, {}, {name: "1"}) != ()


hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,8}(\.[a-z]{1,5})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"(/[a-z_.]{1,8}){1,3}", fullmatch=True),
)
servers = st.builds(DatabaseServer, hosts, st.one_of(st.none(), st.integers(1, 65535)))


@given(st.lists(servers, min_size=1, max_size=4))
def test_what_is_printed_is_taken(several: list[DatabaseServer]) -> None:
    """--database takes servers in their printed form."""
    assert parse_servers(joined(several)) == tuple(map(comparable, several))


@pytest.mark.parametrize("text", ["", ",", "a,", "/s:99999", "/s\n", "a:0", "/a:1:b,c d"])
def test_no_server(text: str) -> None:
    """A text that names no server is refused in one line."""
    with pytest.raises(ConfigError) as caught:
        parse_servers(text)
    assert str(caught.value).isprintable()


def test_not_known_is_no_server() -> None:
    """An unknown server is not the local one, and cannot be named."""
    for dialect in ("mysql", "postgresql", "sqlite"):
        assert servers_of(dialect, None, None) == ()
        assert named(servers_of(dialect, None, None)) == "a server that is not known"
    assert not UNKNOWN.local


def test_sockets_are_compared_by_their_directory() -> None:
    """/var/run is /run, and repeated slashes are one."""
    assert plain("/var/run/postgresql/") == plain("/run//postgresql") == "/run/postgresql"
    assert plain("/var/runner") == "/var/runner"
    assert DatabaseServer("/run/postgresql", 5432).local


# --- What drivers say -----------------------------------------------------------------------


class Connection:
    """A connection with PyMySQL's attributes."""

    host, port, unix_socket, host_info = "10.0.0.9", 3306, None, "socket"

    def __init__(self, number: int | None = 7, **attributes: Any) -> None:
        self.number = number
        self.__dict__.update(attributes)

    def thread_id(self) -> int | None:
        return self.number


def info(host: str | None = None, port: int | None = None, dialect: str = "mysql") -> PoolInfo:
    return PoolInfo("url", dialect, host, port, "x", "QueuePool", 5, 10, 30.0)


def entry() -> Any:
    return SimpleNamespace(
        server_id=None, server=None, driver=None, read=0, checkouts=0, since=0.0, opened=100.0
    )  # fmt: skip


def met(location: Location, connection: Any) -> Any:
    entry_ = entry()
    location.meet(entry_, connection)
    return entry_


PYMYSQL = Driver("mysql", "pymysql")


@pytest.mark.parametrize("driver", [*drivers._DRIVERS, "pysqlite", "another"])
@pytest.mark.parametrize("connection", [None, object(), SimpleNamespace(info=None, host=1, unix_socket=2)])
def test_a_driver_that_says_nothing(driver: str, connection: Any) -> None:
    """A value that a driver does not give is unknown; nothing is raised."""
    ask = Driver("mysql", driver)
    assert (ask(connection), ask.session(connection)) == (None, None)
    assert ask.server(connection).server == UNKNOWN


def test_the_driver_wins_over_the_url() -> None:
    """Where the driver names another server than the URL, pool and connection are at the driver's."""
    location = Location(info("db", 3306), PYMYSQL)
    entry_ = met(location, Connection())
    now = location.described(info("db", 3306))
    assert (now.database_host, now.database_port) == ("10.0.0.9", 3306)
    assert location.address_of(entry_, now) is None
    assert location.described(now) is now


def test_the_name_of_the_url_stays() -> None:
    """A driver that says the same, or knows only an address, leaves the URL's name."""
    given = info("DB.example", 3306)
    location = Location(given, PYMYSQL)
    met(location, Connection(host="db.example."))
    assert location.described(given) is given
    sock = SimpleNamespace(getpeername=lambda: ("10.0.0.9", 5432))
    pg8000 = SimpleNamespace(_usock=sock, _backend_key_data=b"\0\0\0\7abcd")
    given = info("db", 5432, "postgresql")
    location = Location(given, Driver("postgresql", "pg8000"))
    assert met(location, pg8000).server_id == 7
    assert location.described(given) is given
    sock.getpeername = lambda: ("10.0.0.9", 5433)
    met(location, pg8000)
    assert location.described(given).database_host == "10.0.0.9:5433,db:5432"


def test_a_pool_at_several_servers() -> None:
    """With a creator the pool is at all servers of its connections, each connection at its own."""
    location, given = Location(info(), PYMYSQL), info()
    assert location.described(given) is given
    one = met(location, Connection())
    assert location.described(given).database_host == "10.0.0.9"
    met(location, Connection(host="db2", port=3307))
    now = location.described(given)
    assert (now.database_host, now.database_port) == ("10.0.0.9:3306,db2:3307", None)
    assert location.address_of(one, now) == ServerAddress("10.0.0.9", 3306)
    for number in range(MOST_SERVERS):
        met(location, Connection(host=f"db{number}"))
    now = location.described(now)
    assert (now.database_host, now.database_port) == (None, None)
    assert location.address_of(one, now) == ServerAddress("10.0.0.9", 3306)
    for several in ("a:1,b:2", "/s,b:2", "b:2,/s"):
        assert len(servers_of("mysql", several, None)) == 2


def test_the_database_is_the_drivers_too() -> None:
    """With a creator the database may differ from the URL's; of several none is named."""
    location, given = Location(info(), PYMYSQL), info()
    met(location, Connection(db=None))
    assert location.described(given).database == "x"
    for name in (b"nova", "nova"):
        met(location, Connection(db=name))
        assert location.described(given).database == "nova"
    met(location, Connection(db="neutron"))
    assert location.described(given).database is None


def test_a_connection_that_was_not_asked_is_nowhere() -> None:
    """Where only a connection could name the server, and there was none, the server is unknown."""
    location = Location(info(), PYMYSQL)
    met(location, Connection())
    now = location.described(info())
    assert location.address_of(entry(), now) == ServerAddress(None, None)
    assert Location(info("db", 3306), PYMYSQL).address_of(entry(), info("db", 3306)) is None


@pytest.mark.parametrize("number", [-5, LARGEST_BACKEND_ID + 1, 2**32 - 1])
def test_ids_of_a_pooler(number: int) -> None:
    """An id that no PostgreSQL can have shows a pooler; then no id there is the server's."""
    location = Location(info("db", 5432, "postgresql"), Driver("postgresql", "psycopg"))

    def connection(number: int, host: str = "db") -> Any:
        return SimpleNamespace(info=SimpleNamespace(backend_pid=number, host=host, port=5432))

    first = met(location, connection(4711))
    assert location.session_of(first) == 4711
    assert location.described(info("db", 5432, "postgresql")).pooler is None
    assert location.session_of(met(location, connection(number))) is None
    assert location.session_of(first) is None
    assert location.session_of(met(location, connection(4712, "other"))) == 4712
    assert location.described(info("db", 5432, "postgresql")).pooler is True


def test_an_id_is_read_again_while_held_and_once_after() -> None:
    """After a driver's own reconnect the new session is as old as that was seen."""
    location, connection = Location(info(), PYMYSQL), Connection(7)
    entry_ = met(location, connection)
    connection.number = 8
    location.read_session_again(entry_, 200.0)
    assert (entry_.server_id, entry_.opened) == (7, 100.0)  # nobody has had it since
    entry_.checkouts, entry_.since = 1, 150.0
    location.read_session_again(entry_, 200.0)
    assert (entry_.server_id, entry_.opened) == (8, 200.0)
    connection.number = 9
    connection.host = "db2"
    entry_.since, entry_.checkouts = 0.0, 2
    location.read_session_again(entry_, 201.0)
    assert (entry_.server_id, entry_.opened, entry_.server) == (
        9,
        201.0,
        DatabaseServer("db2", 3306),
    )
    # What happens between a report and the giving back is seen with the next report.
    entry_.since = 201.5
    location.read_session_again(entry_, 202.0)
    entry_.since, connection.number = 0.0, 10
    location.read_session_again(entry_, 203.0)
    assert (entry_.server_id, entry_.opened) == (10, 203.0)
    connection.number = 11
    location.read_session_again(entry_, 204.0)
    assert entry_.server_id == 10
    connection.number = None  # cut off, and not connected again yet
    entry_.since = 205.0
    location.read_session_again(entry_, 206.0)
    assert (entry_.server_id, entry_.opened) == (None, 203.0)


def test_the_connection_is_not_kept() -> None:
    """Neither the entry nor the location keeps the driver's connection alive."""
    location, connection = Location(info(), PYMYSQL), Connection()
    entry_, dead = met(location, connection), weakref.ref(connection)
    del connection
    gc.collect()
    assert dead() is None
    entry_.since = 1.0
    location.read_session_again(entry_, 2.0)
    assert entry_.server_id == 7


@pytest.mark.parametrize(
    ("attributes", "server"),
    [
        ({"unix_socket": "/run/\udcff"}, DatabaseServer("/run/\ufffd", None)),
        ({"unix_socket": b"/run/\xff"}, DatabaseServer("/run/\ufffd", None)),
        ({"port": -1}, DatabaseServer("10.0.0.9", None)),
        ({"port": 2**70}, DatabaseServer("10.0.0.9", None)),
        ({"host": ""}, UNKNOWN),
        ({"host": 5}, UNKNOWN),
        ({"host_info": "Not connected", "_sock": None}, UNKNOWN),
        (
            {
                "host_info": "Not connected",
                "_sock": SimpleNamespace(getpeername=lambda: ("::ffff:10.0.0.7", 1)),
            },
            DatabaseServer("10.0.0.7", 1),
        ),
    ],
)
def test_what_a_report_could_not_take(attributes: dict[str, Any], server: DatabaseServer) -> None:
    """Any value of a driver is reported within the protocol's bounds."""
    connection = Connection(2**60, **attributes)
    assert PYMYSQL.server(connection).server == server
    assert PYMYSQL.session(connection) is None
    msgspec.msgpack.encode(ServerAddress(*PYMYSQL.server(connection).server))


def test_the_far_end_of_a_descriptor(tmp_path: Any) -> None:
    """The driver's socket stays open and unchanged, whatever the application's default timeout."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
        listener.bind(path)
        listener.listen()
        sock.connect(path)
        socket.setdefaulttimeout(5)
        try:
            for blocking in (True, False):
                os.set_blocking(sock.fileno(), blocking)
                assert drivers._name_of_far_end(sock.fileno()) == path
                assert os.get_blocking(sock.fileno()) is blocking
        finally:
            socket.setdefaulttimeout(None)
        assert sock.getpeername() == path

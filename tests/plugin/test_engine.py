"""From an engine to an instrumented pool: the plugin form, attach(), what is reported, session ids."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, create_engine, literal, make_url, select, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from connmon.plugin.engine import attach, describe, driver_of, split
from tests.support.requirements import needs_driver

Calls = list[tuple[Any, ...]]


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The arguments of each call of instrument(), the ledger being (service, program)."""
    calls: Calls = []
    pool = types.SimpleNamespace(instrument=lambda *arguments: calls.append(arguments))
    reporter = types.SimpleNamespace(ledger_for=lambda service, program: (service, program))
    monkeypatch.setitem(sys.modules, "connmon.plugin.pool", pool)
    monkeypatch.setitem(sys.modules, "connmon.plugin.reporter", reporter)
    monkeypatch.setenv("CONNMON_CONFIG", "")
    return calls


# --- The URL ------------------------------------------------------------------------------

_words = st.text("abcdefgh_", min_size=1, max_size=8)
_values = st.one_of(st.text(max_size=8), st.tuples(st.text(max_size=4), st.text(max_size=4)))


@given(
    st.dictionaries(_words, _values),
    st.dictionaries(_words.map("connmon_".__add__), _values),
    st.sampled_from(["", "_connmon"]),
)
def test_split(own: dict[str, Any], options: dict[str, Any], suffix: str) -> None:
    """All of connmon's options are taken out of the URL, and nothing else changes."""
    plain = URL.create("mysql+pymysql", "root", "sa", "db", 3306, "neutron", own)
    written = plain.set(drivername=plain.drivername + suffix).update_query_dict(options)
    url, found = split(written)
    assert url == plain
    assert dict(found) == dict(URL.create("x", query=options).query)


# --- Attaching ----------------------------------------------------------------------------


def test_plugin_form(attached: Calls) -> None:
    """?plugin=connmon leaves the driver's options in the URL, and attaches with connmon's."""
    engine = create_engine(
        "mysql+pymysql://root:sa@db/neutron?charset=utf8&plugin=connmon"
        "&connmon_addr=192.168.1.205&connmon_program=nova-api&connmon_held=5"
    )
    assert engine.url.render_as_string(False) == "mysql+pymysql://root:sa@db/neutron?charset=utf8"
    assert not engine._has_events
    ((pool, (service, program), info, *_),) = attached
    assert pool is engine.pool
    assert str(service.nodes[0].address) == "192.168.1.205:5800"
    assert program == "nova-api"
    assert info.url == "mysql+pymysql://root@db/neutron"


def test_plugin_form_by_argument(attached: Calls) -> None:
    """plugins=["connmon"] is the same, and given twice it attaches once, with the given options."""
    url = "sqlite://?connmon_addr=db:1"
    engine = create_engine(url, plugins=["connmon"])
    assert str(engine.url) == "sqlite://"
    create_engine(f"{url}&plugin=connmon", plugins=["connmon"])
    assert [str(ledger[0].nodes[0].address) for _, ledger, *_ in attached] == ["db:1", "db:1"]


def test_plugin_form_asyncio(attached: Calls) -> None:
    """The plugin form works with create_async_engine."""
    engine = create_async_engine("postgresql+asyncpg://u:p@db/x?plugin=connmon")
    assert engine.url.render_as_string(False) == "postgresql+asyncpg://u:p@db/x"
    assert attached[0][0] is engine.pool
    assert attached[0][2].pool_class == "AsyncAdaptedQueuePool"


@pytest.mark.parametrize(
    "url",
    [
        "mysql+pymysql://root:sa@db/neutron?charset=utf8&plugin=connmon&connmon_program=nova-api",
        "mysql+pymysql_connmon://root:sa@db/neutron?charset=utf8&connmon_program=nova-api",
        "mysql+connmon://root:sa@db/neutron?charset=utf8&connmon_driver=pymysql&connmon_program=nova-api",
    ],
)
def test_an_engine_made_from_an_engines_url(url: str, attached: Calls) -> None:
    """It is watched like the first: Alembic and others make engines this way, also for another database."""
    engine = create_engine(url)
    plain = "mysql+pymysql://root:sa@db/neutron?charset=utf8"
    assert engine.url == make_url(plain)
    assert hash(engine.url) == hash(make_url(plain))
    for made in (engine.url, engine.url.set(database="other"), copy.deepcopy(engine.url)):
        another = create_engine(made)
        pool, (_, program), _, *_ = attached[-1]
        assert pool is another.pool
        assert program == "nova-api"
        assert another.url == made
        third = create_engine(another.url)
        assert attached[-1][0] is third.pool
    assert len(attached) == 7


def test_options_added_to_an_engines_url(attached: Calls) -> None:
    """connmon takes its own options, and they do not reach the driver."""
    url = create_engine("mysql+pymysql://root:sa@db/neutron?plugin=connmon").url
    engine = create_engine(url.update_query_dict({"connmon_program": "migrations", "charset": "utf8"}))
    assert engine.url.query == {"charset": "utf8"}
    assert "connmon_program" not in engine.dialect.create_connect_args(engine.url)[1]
    assert attached[-1][1][1] == "migrations"


def test_an_engines_url_elsewhere(attached: Calls) -> None:
    """Pickled or converted to text, it is the plain URL, which is not watched."""
    engine = create_engine("sqlite:///x.db?plugin=connmon")
    assert type(pickle.loads(pickle.dumps(engine.url))) is URL
    attached.clear()
    create_engine(str(engine.url))
    create_engine(pickle.loads(pickle.dumps(engine.url)))
    create_engine(URL.create("sqlite"))
    assert attached == []


def test_plugin_form_round_trip(attached: Calls, tmp_path: Path) -> None:
    """A real engine of the plugin form works, with its statements cached and no engine events."""
    engine = create_engine(f"sqlite:///{tmp_path}/x.db?plugin=connmon&connmon_service=default")
    with engine.connect() as connection:
        for _ in range(3):
            result = connection.execute(select(literal(1)))
            hit = result.context.cache_hit.name
            assert result.scalar() == 1
    engine.dispose()
    assert hit == "CACHE_HIT"
    assert not engine._has_events


def test_attach(attached: Calls) -> None:
    """attach() takes the URL's options without their prefix; None counts as not given."""
    engine = create_engine("sqlite://")
    attach(engine, addr="db:1", program="p", held=0.5, trace=None)
    ((pool, (service, program), *_),) = attached
    assert pool is engine.pool
    assert str(service.nodes[0].address) == "db:1"
    assert program == "p"


def test_attach_asyncio(attached: Calls) -> None:
    """attach() takes an AsyncEngine."""
    engine = create_async_engine("sqlite+aiosqlite://")
    attach(engine)
    assert attached[0][0] is engine.sync_engine.pool


def test_attached_once(attached: Calls) -> None:
    """The pool is attached once, by any caller: the same engine, one with options, a shared pool."""
    engine = create_engine("sqlite://?plugin=connmon")
    attach(engine)
    attach(engine.execution_options(isolation_level="AUTOCOMMIT"))
    create_engine("sqlite://?plugin=connmon", pool=engine.pool)
    create_engine("sqlite+connmon://", pool=engine.pool)
    assert len(attached) == 1


def test_attach_after_dispose(attached: Calls) -> None:
    """The pool after dispose() is a new object, so attach() passes it to instrument(), which knows whether it
    is watched.
    """
    engine = create_engine("sqlite://?plugin=connmon")
    engine.dispose()
    attach(engine)
    assert attached[-1][0] is engine.pool


@pytest.mark.parametrize("engine", [None, "sqlite://", object()])
def test_attach_to_no_engine(engine: Any) -> None:
    """Another object is an ArgumentError that shows it."""
    with pytest.raises(ArgumentError, match="expected an Engine"):
        attach(engine)


WRONG = [
    ("connmon_nosuch=1", ["connmon_nosuch", "1"]),
    ("connmon_addr=db:abc", ["connmon_addr", "db:abc"]),
    ("connmon_addr=db:70000", ["connmon_addr", "70000"]),
    ("connmon_addr=db:0", ["connmon_addr", "db:0"]),
    ("connmon_service=nosuch", ["connmon_service", "nosuch"]),
    ("connmon_config=/nowhere/connmon.cfg", ["connmon_config", "/nowhere/connmon.cfg"]),
    ("connmon_trace=always", ["connmon_trace", "always"]),
    ("connmon_held=-1", ["connmon_held", "-1"]),
    ("connmon_profile=often", ["connmon_profile", "often"]),
    ("connmon_program=a&connmon_program=b", ["connmon_program", "a,b"]),
]


@pytest.mark.parametrize(("query", "named"), WRONG)
@pytest.mark.parametrize(
    "url", ["sqlite://?plugin=connmon&", "sqlite+connmon://?", "sqlite+pysqlite_connmon://?plugin=connmon&"]
)
def test_wrong_options(url: str, query: str, named: list[str], attached: Calls) -> None:
    """A wrong option fails at create_engine, in every form, with one line that names option and value."""
    with pytest.raises(ArgumentError) as error:
        create_engine(url + query)
    message = str(error.value)
    assert "\n" not in message
    for word in named:
        assert word in message
    assert attached == []


def test_wrong_options_of_attach(attached: Calls) -> None:
    """attach() raises the same errors for its options."""
    with pytest.raises(ArgumentError, match="connmon_nosuch=1"):
        attach(create_engine("sqlite://"), nosuch=1)


def test_bad_config_file(attached: Calls, tmp_path: Path) -> None:
    """A mistake in a config file fails at create_engine, and names the file."""
    file = tmp_path / "connmon.cfg"
    file.write_text("[connmon_service_default]\nname: default\nnosuch: 1\n")
    with pytest.raises(ArgumentError, match=f"connmon_config={file}.*nosuch"):
        create_engine(f"sqlite+connmon://?connmon_config={file}")


@pytest.mark.parametrize("url", ["sqlite://?plugin=connmon", "sqlite+connmon://"])
def test_failure_inside_is_one_warning(
    url: str, attached: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After any other failure in the plugin the engine works, and the log has one warning."""

    def broken(*_: object) -> None:
        raise RuntimeError("no ledger today")

    monkeypatch.setattr(sys.modules["connmon.plugin.pool"], "instrument", broken)
    with caplog.at_level(logging.DEBUG):
        engine = create_engine(url)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no ledger today" in record.getMessage()


def test_import_failure_inside_is_one_warning(
    attached: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A part of the plugin that cannot be imported is one warning as well."""
    monkeypatch.setitem(sys.modules, "connmon.plugin.reporter", None)
    create_engine("sqlite+connmon://")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# --- Which pool and database --------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown", "host", "port", "database"),
    [
        ("mysql+pymysql://u:p@db/x?charset=utf8", "mysql+pymysql://u@db/x", "db", 3306, "x"),
        ("mariadb+pymysql://u:p@db:3307/x", "mariadb+pymysql://u@db:3307/x", "db", 3307, "x"),
        ("mysql+pymysql://u@/x", "mysql+pymysql://u@/x", None, None, "x"),
        ("mysql+pymysql://u@localhost/x?unix_socket=/s", "mysql+pymysql://u@localhost/x", "/s", None, "x"),
        ("postgresql+psycopg2://", "postgresql+psycopg2://", None, None, None),
        ("postgresql+psycopg2://u:p@[::1]/x", "postgresql+psycopg2://u@[::1]/x", "::1", 5432, "x"),
        ("postgresql+psycopg2:///x?host=/var/run", "postgresql+psycopg2:///x", "/var/run", 5432, "x"),
        ("postgresql+psycopg2:///x?host=h1:5433", "postgresql+psycopg2:///x", "h1", 5433, "x"),
        ("postgresql+psycopg2:///x?host=h1&port=5433", "postgresql+psycopg2:///x", "h1", 5433, "x"),
        ("postgresql+psycopg2://h/x?port=5433", "postgresql+psycopg2://h/x", "h", 5433, "x"),
        ("postgresql+psycopg2:///x?host=h1,h2", "postgresql+psycopg2:///x", "h1:5432,h2:5432", None, "x"),
        (
            "postgresql+psycopg2:///x?host=h1:1&host=h2:2",
            "postgresql+psycopg2:///x", "h1:1,h2:2", None, "x",
        ),
        ("postgresql+psycopg2://h/password=p", "postgresql+psycopg2://h", "h", 5432, None),
        ("sqlite://", "sqlite://", None, None, ":memory:"),
        ("sqlite:///:memory:", "sqlite:///:memory:", None, None, ":memory:"),
        ("sqlite:////v/x.db?timeout=5", "sqlite:////v/x.db", None, None, "/v/x.db"),
        ("sqlite:///x.db", "sqlite:///x.db", None, None, os.path.abspath("x.db")),
        ("sqlite:///file:/v/x.db?uri=true&mode=ro", "sqlite:///file:/v/x.db", None, None, "file:/v/x.db"),
    ],
)  # fmt: skip
def test_where(url: str, shown: str, host: str | None, port: int | None, database: str | None) -> None:
    """Host and port are those that the driver uses, where they can be known; a socket has no port."""
    info = describe(create_engine(url))
    # Versions of SQLAlchemy differ in what they quote.
    assert make_url(info.url) == make_url(shown)
    assert (info.database_host, info.database_port, info.database) == (host, port, database)
    assert info.dialect == make_url(url).get_backend_name()


@pytest.mark.parametrize("url", ["mysql+pymysql_connmon://u@db/x", "mysql+pymysql://u@db/x?plugin=connmon"])
@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ({}, "db"),
        ({"connect_args": {"connect_timeout": 5}}, "db"),
        ({"connect_args": {"host": "db"}}, "db"),
        ({"connect_args": {"host": "other"}}, None),
        ({"connect_args": {"port": 3307}}, None),
        ({"connect_args": {"unix_socket": "/s"}}, None),
        ({"connect_args": {"read_default_file": "/f"}}, None),
        ({"creator": lambda: None}, None),
        ({"poolclass": NullPool}, "db"),
    ],
)
def test_what_decides_where_it_connects(
    url: str, arguments: dict[str, Any], host: str | None, attached: Calls
) -> None:
    """Until the first connection the URL's server counts, unless something else decides."""
    create_engine(url, **arguments)
    assert attached[-1][2].database_host == host


@pytest.mark.parametrize(
    ("url", "database"), [("mysql+pymysql_connmon://u@db/x", "x"), ("sqlite+connmon:////x", "/x")]
)
def test_what_decides_which_database(url: str, database: str, attached: Calls) -> None:
    """A creator may lead to another database than the URL's."""
    create_engine(url)
    assert attached[-1][2].database == database
    create_engine(url, creator=lambda: None)
    assert attached[-1][2].database is None
    create_engine("mysql+pymysql_connmon://u@db/x", connect_args={"database": "y"})
    assert attached[-1][2].database is None


@given(
    password=st.text("abc123@:/?#%", min_size=6),
    value=st.text("xyz789@:/?#%", min_size=6),
    host=st.sampled_from([None, "db", "::1"]),
)
def test_nothing_secret_is_reported(password: str, value: str, host: str | None) -> None:
    """Neither password nor query option is anywhere in what is reported of a pool."""
    url = URL.create("mysql+pymysql", "root", password, host, None, "neutron", {"ssl_key": value})
    info = describe(create_engine(url))
    database = info.url.removeprefix("mysql+pymysql://root@").replace("[::1]", "").removeprefix("db")
    assert database in ("/neutron",)
    assert (info.database_host, info.database) == (host, "neutron")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"poolclass": QueuePool}, ("QueuePool", 5, 10, 30.0)),
        (
            {"poolclass": QueuePool, "pool_size": 7, "max_overflow": -1, "pool_timeout": 2},
            ("QueuePool", 7, -1, 2.0),
        ),
        ({"poolclass": QueuePool, "pool_size": 0}, ("QueuePool", 0, -1, 30.0)),
        ({"poolclass": QueuePool, "pool_timeout": None}, ("QueuePool", 5, 10, None)),
        ({"poolclass": type("MyPool", (QueuePool,), {})}, ("MyPool", 5, 10, 30.0)),
        ({"poolclass": NullPool}, ("NullPool", None, None, None)),
        ({"poolclass": StaticPool}, ("StaticPool", 1, None, None)),
        ({"poolclass": AssertionPool}, ("AssertionPool", 1, None, None)),
        ({"poolclass": SingletonThreadPool, "pool_size": 3}, ("SingletonThreadPool", 3, None, None)),
    ],
)
def test_limits(arguments: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Size, overflow and timeout are reported for the classes that have them."""
    info = describe(create_engine("sqlite:////v/x.db", **arguments))
    assert (info.pool_class, info.pool_size, info.max_overflow, info.timeout) == expected


def test_limits_asyncio() -> None:
    """The pools of asyncio engines have them as well."""
    url = "sqlite+aiosqlite:////v/x.db"
    info = describe(create_async_engine(url, pool_size=2, poolclass=AsyncAdaptedQueuePool).sync_engine)
    assert (info.pool_class, info.pool_size, info.max_overflow, info.timeout) == (
        "AsyncAdaptedQueuePool", 2, 10, 30.0,
    )  # fmt: skip


def test_texts_that_the_wire_could_not_take() -> None:
    """A path with bytes that are not UTF-8, or one that is too long, is reported as far as possible."""
    info = describe(create_engine(URL.create("sqlite", database="/v/\udcff" + "x" * 5000)))
    assert info.database is not None
    assert info.database.startswith("/v/?x")
    assert len(info.database) == 2048
    assert len(info.url) == 2048


# --- Which session of the server ----------------------------------------------------------


def _session(engine: Engine, query: str, server_id: Any) -> tuple[Any, Any, Any]:
    """Return the session id by the function, by the server, and after its end by the function."""
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        ids = server_id(raw), connection.scalar(text(query))
        connection.rollback()
    engine.dispose()
    return *ids, server_id(raw)


async def _async_session(url: URL, query: str, attached: Calls) -> tuple[Any, Any]:
    engine = create_async_engine(url)
    server_id = attached[-1][3]
    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        ids = server_id(raw), await connection.scalar(text(query))
    await engine.dispose()
    return ids


def _server_url(server: Any, drivername: str) -> URL:
    return URL.create(
        drivername, server.user, server.password or None, server.host, server.port, server.database
    )


@pytest.mark.parametrize("driver", ["pymysql", "mysqldb", "mysqlconnector"])
@pytest.mark.parametrize("form", ["mysql+{}_connmon", "mariadb+{}_connmon"])
def test_mysql_thread_id(driver: str, form: str, mariadb: Any, attached: Calls) -> None:
    """The id is the server's own; a closed connection has none, or still the old one."""
    needs_driver(driver)
    engine = create_engine(_server_url(mariadb, form.format(driver)))
    known, said, after = _session(engine, "SELECT CONNECTION_ID()", attached[-1][3])
    assert known == said
    assert after in (known, None)


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
def test_mysql_thread_id_asyncio(driver: str, mariadb: Any, attached: Calls) -> None:
    """The same with the drivers for asyncio."""
    url = _server_url(mariadb, f"mysql+{driver}_connmon")
    known, said = asyncio.run(_async_session(url, "SELECT CONNECTION_ID()", attached))
    assert known == said


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000"])
def test_postgresql_backend_pid(driver: str, postgresql: Any, attached: Calls) -> None:
    """The id is the server's own; a closed connection has none, or still the old one."""
    engine = create_engine(_server_url(postgresql, f"postgresql+{driver}_connmon"))
    known, said, after = _session(engine, "SELECT pg_backend_pid()", attached[-1][3])
    assert known == said
    assert after in (known, None)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg"])
def test_postgresql_backend_pid_asyncio(driver: str, postgresql: Any, attached: Calls) -> None:
    """The same with the drivers for asyncio."""
    url = _server_url(postgresql, f"postgresql+{driver}_connmon")
    known, said = asyncio.run(_async_session(url, "SELECT pg_backend_pid()", attached))
    assert known == said


@pytest.mark.parametrize(
    "url", ["sqlite://", "mysql+pymysql://", "postgresql+psycopg2://", "postgresql+pg8000://"]
)
@pytest.mark.parametrize("connection", [None, object()])
def test_no_server_id(url: str, connection: Any) -> None:
    """Where no id is known it is None, whatever object stands for a connection."""
    assert driver_of(create_engine(url).dialect)(connection) is None

"""The URL form: whatever looks at the engine sees the plain URL's dialect.

The entry points are tested as installed. Nothing connects but the SQLite tests; what is attached to the pool
is faked here.
"""

from __future__ import annotations

import asyncio
import pickle
import re
import sys
import types
from importlib.metadata import entry_points
from typing import Any

import pytest
from sqlalchemy import URL, create_mock_engine, engine_from_config, literal, make_url, select, text
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import get_cls_kwargs

from connmon.plugin import dialect
from connmon.plugin import engine as plugin_engine
from tests.support.requirements import needs_driver

OPTIONS = {"connmon_service": "default", "connmon_program": "p", "connmon_trace": "off"}

#: Options of the driver's own, which have to get through to it.
OWN = {
    "pysqlite": {"timeout": "5", "uri": "true", "mode": "rwc"},
    "aiosqlite": {"timeout": "5"},
    "asyncpg": {"command_timeout": "5"},
    "pg8000": {"application_name": "a"},
    "psycopg2": {"connect_timeout": "5"},
    "psycopg": {"connect_timeout": "5"},
    "psycopg_async": {"connect_timeout": "5"},
}
ASYNC = {"aiosqlite", "asyncmy", "aiomysql", "asyncpg", "psycopg_async"}

#: (the driver name with connmon in it, the one without, whether it is for create_async_engine)
FORMS = [
    (f"{backend}+{driver}_connmon", f"{backend}+{driver}", is_async)
    for backend, drivers in dialect.DRIVERS.items()
    for driver in drivers
    for is_async in ((False, True) if driver == "psycopg" else (driver in ASYNC,))
] + [(f"{backend}+connmon", backend, False) for backend in dialect.DRIVERS]


@pytest.fixture(autouse=True)
def attached(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of each call of instrument()."""
    calls: list[tuple[Any, ...]] = []
    pool = types.SimpleNamespace(instrument=lambda *arguments: calls.append(arguments))
    reporter = types.SimpleNamespace(ledger_for=lambda service, program: (service.name, program))
    monkeypatch.setitem(sys.modules, "connmon.plugin.pool", pool)
    monkeypatch.setitem(sys.modules, "connmon.plugin.reporter", reporter)
    monkeypatch.setenv("CONNMON_CONFIG", "")
    return calls


def url_of(drivername: str, plain: str, query: dict[str, str]) -> URL:
    """Return a URL of that driver, with options of the driver's own and the given ones."""
    backend, _, driver = plain.partition("+")
    query = OWN.get(driver, {} if backend != "mysql" else {"charset": "utf8mb4"}) | query
    if backend == "sqlite":
        return URL.create(drivername, database="/nowhere/x.db", query=query)
    return URL.create(drivername, "root", "s@/:%", "db.example", 1234, "neutron", query)


def make(url: URL | str, is_async: bool, **arguments: Any) -> tuple[Engine, Engine | AsyncEngine]:
    """Return the engine as create_engine or create_async_engine makes it, the sync one first."""
    if is_async:
        engine = create_async_engine(url, **arguments)
        return engine.sync_engine, engine
    sync = create_sync_engine(url, **arguments)
    return sync, sync


def arguments(engine: Engine, url: URL) -> str:
    """Return the driver's arguments in a form that compares: psycopg's have an object in them."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(engine.dialect.create_connect_args(url)))


def pool_class(dialect: Any, url: URL) -> Any:
    """Return what oslo.db reads of the dialect, or of its class."""
    return dialect.get_pool_class(url)


def test_every_driver_has_its_entry_points() -> None:
    """The installed distribution declares exactly these entry points, and each can be loaded."""
    declared = {
        entry.name: entry
        for entry in entry_points(group="sqlalchemy.dialects")
        if entry.value.startswith("connmon.")
    }
    expected = {
        f"{backend}.{driver}_connmon" for backend, drivers in dialect.DRIVERS.items() for driver in drivers
    }
    assert set(declared) == expected | {f"{backend}.connmon" for backend in dialect.DRIVERS}
    for entry in declared.values():
        assert entry.load() is entry.load()
    plugins = [entry.load() for entry in entry_points(group="sqlalchemy.plugins", name="connmon")]
    assert plugins == [plugin_engine.ConnmonPlugin]


@pytest.mark.parametrize(("drivername", "plain", "is_async"), FORMS)
def test_engine_is_that_of_the_plain_url(
    drivername: str, plain: str, is_async: bool, attached: list[tuple[Any, ...]]
) -> None:
    """Name, driver, URL, connect arguments, pool and options are those of the plain URL."""
    needs_driver(plain)
    url, wanted = url_of(drivername, plain, OPTIONS), url_of(plain, plain, {})
    expected, _ = make(wanted, is_async)
    for given in (url, url.render_as_string(hide_password=False)):
        attached.clear()
        engine, outer = make(given, is_async, pool_recycle=3600)
        assert engine.url == outer.url == wanted
        assert engine.url.render_as_string(hide_password=False) == wanted.render_as_string(False)
        assert engine.name == expected.name
        assert engine.driver == expected.driver
        assert engine.url.get_backend_name() == wanted.get_backend_name()
        assert engine.url.get_driver_name() == wanted.get_driver_name()
        assert isinstance(engine.dialect, type(expected.dialect))
        assert type(engine.dialect).__name__ == type(expected.dialect).__name__
        assert engine.dialect.is_async == is_async
        # Also for code that kept the URL as it was written.
        for asked in (url, wanted):
            assert arguments(engine, asked) == arguments(expected, wanted)
            assert pool_class(engine.dialect, asked) is pool_class(expected.dialect, wanted)
        assert type(engine.pool) is type(expected.pool)
        assert engine.dialect._supports_statement_cache
        assert get_cls_kwargs(type(engine.dialect)) == get_cls_kwargs(type(expected.dialect))
        assert not engine._has_events
        assert not engine.dialect._has_events
        ((pool, ledger, info, *_),) = attached
        assert pool is engine.pool
        assert ledger == ("default", "p")
        assert info.dialect == expected.name


@pytest.mark.parametrize(("drivername", "plain", "is_async"), FORMS)
def test_dialect_before_the_engine(drivername: str, plain: str, is_async: bool) -> None:
    """oslo.db asks the URL's dialect for the pool class before it makes the engine."""
    needs_driver(plain)
    url, wanted = url_of(drivername, plain, OPTIONS), url_of(plain, plain, {})
    cls, expected = url.get_dialect(is_async), wanted.get_dialect(is_async)
    assert issubclass(cls, expected)
    assert cls is url.get_dialect(is_async)
    assert pool_class(cls, url) is pool_class(expected, wanted)
    assert url.get_backend_name() == wanted.get_backend_name()
    assert (cls.name, cls.driver) == (expected.name, expected.driver)


@pytest.mark.parametrize(("drivername", "plain", "is_async"), FORMS)
def test_dialect_pickles_as_the_plain_one(drivername: str, plain: str, is_async: bool) -> None:
    """A picklable dialect unpickles as the plain dialect; one that does not pickle still does not."""
    needs_driver(plain)
    expected: Any = url_of(plain, plain, {}).get_dialect(is_async)
    cls: Any = url_of(drivername, plain, {}).get_dialect(is_async)
    try:
        pickle.dumps(expected())
    except pickle.PicklingError as error:
        with pytest.raises(pickle.PicklingError, match=re.escape(str(error))):
            pickle.dumps(cls())
    else:
        assert type(pickle.loads(pickle.dumps(cls()))) is expected


def test_mysql_short_form_takes_pymysql_where_mysqlclient_is_missing(
    monkeypatch: pytest.MonkeyPatch, attached: list[tuple[Any, ...]]
) -> None:
    """`mysql+connmon` is `mysql`; where that could not work it is PyMySQL, and the URL says so."""
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    plugin_engine._has_mysqldb.cache_clear()
    try:
        for backend in ("mysql", "mariadb"):
            engine = create_sync_engine(f"{backend}+connmon://root@127.0.0.1/x")
            assert (engine.name, engine.driver) == (backend, "pymysql")
            assert str(engine.url) == f"{backend}+pymysql://root@127.0.0.1/x"
        assert len(attached) == 2
    finally:
        plugin_engine._has_mysqldb.cache_clear()


@pytest.mark.parametrize(
    "name", ["mysql_nosuch", "nosuch_default", "mysql", "sqlite_pymysql", "_", "default"]
)
def test_no_such_attribute(name: str) -> None:
    """The module has attributes for connmon's drivers only."""
    with pytest.raises(AttributeError, match=name):
        getattr(dialect, name)


def test_no_such_driver() -> None:
    """An unknown driver is SQLAlchemy's own error."""
    with pytest.raises(NoSuchModuleError, match="nosuch_connmon"):
        create_sync_engine("mysql+nosuch_connmon://h/db")


def test_engine_from_config(attached: list[tuple[Any, ...]]) -> None:
    """Alembic's way: URL and options from a dictionary of strings, coerced as usual."""
    config = {
        "sqlalchemy.url": "mysql+pymysql_connmon://root:sa@db/neutron?charset=utf8&connmon_service=default",
        "sqlalchemy.pool_recycle": "3600",
    }
    engine = engine_from_config(config, poolclass=NullPool)
    assert type(engine.pool) is NullPool
    assert engine.pool._recycle == 3600
    assert engine.url.render_as_string(False) == "mysql+pymysql://root:sa@db/neutron?charset=utf8"
    assert attached[0][2].pool_class == "NullPool"


def test_mock_engine() -> None:
    """create_mock_engine compiles for the dialect, and nothing is attached to it."""
    printed: list[str] = []

    def execute(sql: Any, *_: Any, **__: Any) -> None:
        printed.append(str(sql.compile(dialect=mock.dialect)))

    mock: Any = create_mock_engine("postgresql+psycopg2_connmon://?connmon_service=default", execute)
    mock.connect().execute(text("SELECT 1"))
    assert printed == ["SELECT 1"]
    assert mock.dialect.name == "postgresql"


@pytest.mark.parametrize("form", ["sqlite+pysqlite_connmon", "sqlite+connmon"])
@pytest.mark.parametrize("database", ["", "/{}/x.db"])
def test_sqlite_round_trip(form: str, database: str, tmp_path: Any) -> None:
    """A real engine of the URL form works, with its statements cached."""
    engine = create_sync_engine(f"{form}://{database.format(tmp_path)}?connmon_service=default&timeout=5")
    try:
        with engine.connect() as connection:
            for _ in range(3):
                result = connection.execute(select(literal(1)))
                hit = result.context.cache_hit.name
                assert result.scalar() == 1
            assert hit == "CACHE_HIT"
    finally:
        engine.dispose()


def test_sqlite_round_trip_asyncio(tmp_path: Any) -> None:
    """A real asyncio engine of the URL form works."""

    async def run() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite_connmon:///{tmp_path}/x.db?connmon_service=default")
        async with engine.connect() as connection:
            assert await connection.scalar(select(literal(1))) == 1
        await engine.dispose()

    asyncio.run(run())


def test_both_forms_at_once(attached: list[tuple[Any, ...]]) -> None:
    """With ?plugin=connmon and the URL form together, the pool is attached once, with the given options."""
    engine = create_sync_engine(
        "mysql+pymysql_connmon://root:sa@db/neutron?plugin=connmon&connmon_program=q&charset=utf8"
    )
    assert engine.url == make_url("mysql+pymysql://root:sa@db/neutron?charset=utf8")
    ((pool, ledger, *_),) = attached
    assert pool is engine.pool
    assert ledger == ("default", "q")


@pytest.mark.parametrize(("drivername", "plain", "is_async"), FORMS)
def test_the_engines_dialect_is_of_the_plain_class(
    drivername: str,
    plain: str,
    is_async: bool,
    attached: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A patch of a dialect's class counts for every engine of that dialect."""
    needs_driver(plain)
    url = url_of(drivername, plain, OPTIONS)
    engine, _ = make(url, is_async)
    expected, _ = make(url_of(plain, plain, {}), is_async)
    assert type(engine.dialect) is type(expected.dialect)
    monkeypatch.setattr(type(expected.dialect), "create_connect_args", lambda self, url: [[str(url)], {}])
    found: Any = engine.dialect.create_connect_args(url)
    assert found == [[str(url_of(plain, plain, {}))], {}]


@pytest.mark.parametrize("driver", dialect.DRIVERS["postgresql"])
def test_a_driver_without_an_underscore_in_the_scheme(driver: str, attached: list[tuple[Any, ...]]) -> None:
    """`postgresql+connmon://...&connmon_driver=D` is what `postgresql+D://...` is, and watched."""
    is_async = driver in ("asyncpg", "psycopg_async")
    url = make_url(f"postgresql+connmon://u:p@db/x?connmon_driver={driver}&connmon_program=p")
    engine, _ = make(url, is_async)
    expected, _ = make(make_url(f"postgresql+{driver}://u:p@db/x"), is_async)
    assert engine.url == expected.url
    assert type(engine.dialect) is type(expected.dialect)
    assert [ledger for _, ledger, *_ in attached] == [("default", "p")]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+connmon://db/x?connmon_driver=no-such", "'no-such' is not the name of a driver"),
        ("postgresql+connmon://db/x?connmon_driver=nosuch", "Can't load plugin"),
        ("postgresql+pg8000://db/x?plugin=connmon&connmon_driver=psycopg", "this URL names its driver"),
        ("postgresql+pg8000_connmon://db/x?connmon_driver=psycopg", "this URL names its driver"),
    ],
)
def test_a_wrong_driver(url: str, said: str) -> None:
    """It is one clear error line where the engine is made."""
    with pytest.raises(ArgumentError, match=said):
        create_sync_engine(url)

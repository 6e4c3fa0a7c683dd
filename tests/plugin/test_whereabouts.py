"""Looks at the holders of connections: where real threads, tasks and greenlets are, and what that leaves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import importlib.util
import json
import os
import queue
import re
import select
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import timeit
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from time import sleep
from types import CodeType
from typing import Any

import pytest
from sqlalchemy import Integer, create_engine, text
from sqlalchemy import select as sql_select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import connmon.plugin
from connmon.plugin import called, holder, stacks
from connmon.plugin.call_site_accounts import Held, Look
from connmon.plugin.whereabouts import LABEL_CHARACTERS, Codes
from tests.support.requirements import needs, needs_driver
from tests.support.servers import Server
from tests.support.site import ROOT
from tests.support.waiting import wait_for

PAUSE = 0.05


class Busy:
    """A thread that calls a function until the test ends."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.done = threading.Event()
        self.code: CodeType | None = getattr(function, "__code__", None)
        begun = threading.Event()

        def work() -> None:
            self.mark = stacks.mark()
            begun.set()
            while not self.done.is_set():
                function()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        assert begun.wait(30)

    def held(self, since: float = 1.0) -> Held:
        return Held(self.mark, self.code, since)

    def where(self) -> str | None:
        return holder.look([self.held()])[0].where

    def end(self) -> None:
        self.done.set()
        self.thread.join(30)


@contextlib.contextmanager
def busy(*functions: Callable[[], Any]) -> Iterator[list[Busy]]:
    threads = [Busy(function) for function in functions]
    try:
        yield threads
    finally:
        for thread in threads:
            thread.end()


def comes_to(function: Callable[[], Any], where: str) -> None:
    """Check that a thread which calls the function is there at some moment."""
    seen = set()
    with busy(function) as (thread,):

        def is_there() -> bool:
            seen.add(thread.where())
            return where in seen

        wait_for(is_there, 30, f"{where}, and not only {seen}")


# --- What the application calls -------------------------------------------------------------


def attribute_of_a_module() -> None:
    time.sleep(PAUSE)


def global_function() -> None:
    sleep(PAUSE)


def conditional_argument(seconds: float | None = None) -> None:
    time.sleep(PAUSE if seconds is None else seconds)


def imported_within() -> None:
    import time as clock

    clock.sleep(PAUSE)


def imported_name_within() -> None:
    from time import sleep as pause

    pause(PAUSE)


def in_a_comprehension() -> None:
    with open(os.devnull) as file:
        try:
            raise ValueError(file)
        except ValueError:
            assert [time.sleep(seconds) for seconds in (PAUSE,)] == [None]  # type: ignore[func-returns-value]


def with_arguments_of_its_own() -> None:
    arguments = (PAUSE,)
    time.sleep(*arguments)


def in_the_midst_of_an_expression() -> None:
    assert f"{PAUSE!r}{ {'a': [1, time.sleep(PAUSE)]} }"  # type: ignore[func-returns-value]


class Lazy:
    """An object of the application that does not expect to be asked for attributes."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("an attribute was asked for")

    def __call__(self) -> None:
        threading.Event().wait(PAUSE)


def waits_for_an_event() -> None:
    threading.Event().wait(PAUSE)


def runs_a_program() -> None:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"], check=True)


def waits_for_a_result() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(time.sleep, PAUSE).result()


def gets_from_a_queue() -> None:
    with contextlib.suppress(queue.Empty):
        queue.Queue[int]().get(timeout=PAUSE)


def compresses(data: bytes = os.urandom(2**22)) -> None:
    zlib.compress(data, 9)


def reads_json(document: str = json.dumps(list(range(500_000)))) -> None:
    json.loads(document)


def selects() -> None:
    select.select([], [], [], PAUSE)


def computes() -> None:
    sorted(range(100_000), key=str)


def takes_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=PAUSE)


def loops() -> None:
    number = 0
    for _ in range(100_000):
        number = (number * 31 + 7) % 1_000_003


CALLS: list[tuple[Callable[[], Any], str]] = [
    (attribute_of_a_module, "time.sleep"),
    (global_function, "time.sleep"),
    (conditional_argument, "time.sleep"),
    (imported_within, "time.sleep"),
    (imported_name_within, "time.sleep"),
    (in_a_comprehension, "time.sleep"),
    (with_arguments_of_its_own, "time.sleep"),
    (in_the_midst_of_an_expression, "time.sleep"),
    (selects, "select.select"),
    (compresses, "zlib.compress"),
    (reads_json, "json.loads"),
    (waits_for_an_event, "threading.wait"),
    (runs_a_program, "subprocess.run"),
    (waits_for_a_result, "concurrent.result"),
    (gets_from_a_queue, "queue.get"),
    (computes, "own code"),
    (loops, "own code"),
    (takes_a_lock, "own code"),
]


@pytest.mark.parametrize(("function", "where"), CALLS)
def test_what_the_application_calls(function: Callable[[], Any], where: str) -> None:
    """A holder is where the application's innermost frame has called something: functions of Python's own
    library by their names, also those in C, which have no frame; everything else in C is its own code.
    """
    comes_to(function, where)


def test_objects_of_the_application_are_not_asked() -> None:
    """What a name stands for is looked up in modules only: no attribute of an object is asked for."""
    variables: dict[str, Any] = {"lazy": Lazy()}
    exec("def call():\n    lazy.attribute.sleep(1)\n    lazy()\n", variables)
    calls = called.calls(variables["call"].__code__)
    assert {(name.root, name.attributes) for name in calls.called.values()} == {
        ("lazy", ("attribute", "sleep")),
        ("lazy", ()),
    }
    for name in calls.called.values():
        assert called.c_function(called.resolved(name, variables)) is None


def test_each_function_of_the_library_can_be_read() -> None:
    """The bytecode of whatever function is read without an error, and calls are found in most of them."""
    codes = [
        value.__code__
        for module in list(sys.modules.values())
        if isinstance(module, type(sys))
        for value in list(vars(module).values())
        if hasattr(value, "__code__") and isinstance(value.__code__, CodeType)
    ]
    with_calls = sum(bool(called.calls(code).called) for code in codes)
    assert with_calls > len(codes) / 2 > 100


PACKAGE = {
    "fetching/__init__.py": """
        import threading
        from fetching.sessions import send
        def get(seconds): return send(seconds)
    """,
    "fetching/sessions.py": """
        import threading
        def send(seconds): threading.Event().wait(seconds)
    """,
    "tenacity/__init__.py": """
        import time
        def retry(function):
            def wrapped(seconds): return again(function, seconds)
            return wrapped
        def again(function, seconds): return function(seconds)
        def pause(seconds): time.sleep(seconds)
    """,
    "shopping.py": """
        import fetching
        def work(seconds): prepare(seconds)
        def prepare(seconds): fetching.get(seconds)
    """,
    "waiting.py": """
        import threading
        def pause(seconds): threading.Event().wait(seconds)
    """,
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packages in a directory of installed packages of their own."""
    directory = tmp_path / "site-packages"
    for name, source in PACKAGE.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.setattr(holder, "_frame_kinds", None)
    yield
    for name in PACKAGE:
        sys.modules.pop(name.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."), None)


def test_packages(installed: None) -> None:
    """What the application has called of another package is that package, whatever that calls. A wrapper does
    not count where it leads to another one, and no package is mistaken for another label.
    """
    fetching, tenacity, waiting = map(importlib.import_module, ("fetching", "tenacity", "waiting"))

    def requests() -> None:
        fetching.get(PAUSE)

    def retried() -> None:
        tenacity.retry(fetching.get)(PAUSE)

    def pauses() -> None:
        tenacity.pause(PAUSE)

    def partial() -> None:
        with contextlib.nullcontext():
            functools.partial(fetching.get, PAUSE)()

    def misleading() -> None:
        waiting.pause(PAUSE)

    comes_to(requests, "fetching")
    comes_to(retried, "fetching")
    comes_to(pauses, "tenacity")
    comes_to(partial, "fetching")
    comes_to(misleading, "package waiting")


def test_library_that_takes_the_connection(installed: None) -> None:
    """Where a library has taken the connection, it counts as the application, and not what is further out."""
    shopping = importlib.import_module("shopping")
    seen = set()
    with busy(lambda: shopping.work(PAUSE)) as (thread,):
        taken_by = Held(thread.mark, shopping.work.__code__, 1.0)

        def is_there() -> bool:
            seen.add(holder.look([taken_by])[0].where)
            return "fetching" in seen

        wait_for(is_there, 30, f"fetching, and not only {seen}")
        assert "shopping" not in seen
        wait_for(lambda: thread.where() == "shopping", 30)


def test_labels_are_few_and_fit() -> None:
    """A label has at most 64 characters, all of them harmless, and none of a file's path."""
    codes = Codes(holder._kinds())
    for path in (
        "/srv/x/site-packages/a\x1b[31m b/c.py",
        f"/x/site-packages/{'y' * 300}/z.py",
        "/no/17/w.py",
    ):
        label = codes.facts(compile("0", path, "exec")).label
        assert label.isprintable()
        assert re.fullmatch(r"[\w.?-]{1,64}", label)
        assert len(label) <= LABEL_CHARACTERS


# --- Databases, pools, other holders --------------------------------------------------------


class Base(DeclarativeBase):
    """The tables of these tests."""


class Thing(Base):
    """A table with an index and three numbers."""

    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    one: Mapped[int]
    two: Mapped[int]


def test_sqlalchemy_itself(tmp_path: Path) -> None:
    """Building the objects of an ORM is SQLAlchemy's work, not the database's."""
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Thing(one=number, two=number) for number in range(2000)])
        session.commit()

    def loads() -> None:
        with Session(engine) as session:
            list(session.scalars(sql_select(Thing)))

    comes_to(loads, "sqlalchemy")
    comes_to(loads, "database")
    engine.dispose()


def test_cursor_without_a_frame(tmp_path: Path) -> None:
    """A driver in C that the application calls itself is in the database, too."""
    connection = sqlite3.connect(tmp_path / "x.db", check_same_thread=False)
    slow = (
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000)"
        " select max(i) from n"
    )

    def queries() -> None:
        connection.execute(slow).fetchone()

    comes_to(queries, "database")
    connection.close()


@pytest.mark.parametrize("driver", ["pymysql", "psycopg2"])
def test_threads_and_servers(driver: str, mariadb: Server, postgresql: Server) -> None:
    """A thread in a statement is in the database; with an older connection it works with another one; one
    that waits for the pool is waiting, and so is one that connects.
    """
    server, statement = (
        (mariadb, "select sleep(0.2)") if driver == "pymysql" else (postgresql, "select pg_sleep(0.2)")
    )
    engine = create_engine(server.url(driver), pool_size=1, max_overflow=0, pool_timeout=60)

    def queries() -> None:
        with engine.connect() as connection:
            connection.execute(text(statement))
            time.sleep(0.02)

    with busy(queries) as (thread,):
        wait_for(lambda: thread.where() == "database", 30)
        older, newer = thread.held(1.0)._replace(newest=False), thread.held(2.0)

        def of_both() -> list[str | None]:
            return [look.where for look in holder.look([older, newer])]

        wait_for(lambda: of_both() == ["other connection", "database"], 30)
        wait_for(lambda: thread.where() == "time.sleep", 30)
        with busy(queries) as (another,):
            wait_for(lambda: another.where() == "waiting", 30)
            thread.done.set()  # it would not let the other one have a connection
    engine.dispose()


def test_function_that_has_returned() -> None:
    """A holder has left the function that took the connection, but goes on with it; or it has ended."""

    def taker() -> None:
        pass

    with busy(waits_for_an_event) as (thread,):
        (look,) = holder.look([Held(thread.mark, taker.__code__, 1.0)])
        assert look.where not in ("elsewhere", None)
        assert look.returned and look.frames
    assert holder.look([thread.held()]) == [Look("ended", returned=True)]


def test_connection_in_another_thread(tmp_path: Path) -> None:
    """Where a thread that holds nothing is in a driver, it works with the newest connection that its holder
    has left; a thread with connections that the look is not about does not.
    """
    lock = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    lock.execute("begin exclusive")
    engine = create_engine(f"sqlite:///{tmp_path}/x.db", connect_args={"timeout": 60})
    connection = engine.raw_connection()
    reached = engine.connect()

    def queries() -> None:
        reached.execute(text("select * from sqlite_master"))

    def idle() -> None:
        threading.Event().wait(PAUSE)

    def taker() -> None:
        pass

    try:
        with busy(queries, idle) as (worker, taken_by):
            newer = Held(taken_by.mark, taker.__code__, 2.0)
            older = newer._replace(since=1.0, newest=False)
            wait_for(lambda: holder.look([older, newer])[1].where == "database", 30)
            assert holder.look([older, newer])[0].where != "database"
            looks = holder.look([older, newer], other_holders=[worker.mark.ident])
            assert looks[0].where == "elsewhere"
            assert looks[1].returned and looks[1].where != "database"
            worker.done.set()
            lock.rollback()
    finally:
        lock.close()
        connection.close()
        reached.close()
        engine.dispose()


def test_stack() -> None:
    """The places of a look are the stack, the innermost first; of a long one the frames around the
    application's innermost frame. Texts are as in reports.
    """

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            waits_for_an_event()

    with busy(lambda: deep(30)) as (thread,):
        hold = Held(thread.mark, None, 1.0)
        wait_for(lambda: holder.look([hold])[0].where == "threading.wait", 30)
        texts: tuple[str, ...] = ()

        def complete() -> bool:
            nonlocal texts
            texts = holder.stack_texts(holder.look([hold])[0])
            return [line.rpartition(" ")[2] for line in texts[:4]] == [
                "wait",
                "wait",
                "waits_for_an_event",
                "deep",
            ]

        wait_for(complete, 30)
    assert len(texts) == 16
    assert re.fullmatch(r"threading\.py:\d+ wait", texts[0])
    assert re.search(r"test_whereabouts\.py:\d+ deep$", texts[15])


def test_odd_holders() -> None:
    """A look never raises: not for an unknown thread, not for an object that is no task and no greenlet."""

    class Odd:
        """Has what tasks have, and nothing works."""

        def get_coro(self) -> Any:
            raise ValueError

        def done(self) -> Any:
            raise ValueError

    class Bare:
        """Has nothing."""

    odd, bare = Odd(), Bare()
    held = [Held(-1, None, 1.0), Held(weakref.ref(odd), None, 1.0), Held(weakref.ref(bare), None, 1.0)]
    assert [look.where for look in holder.look(held)] == ["ended", None, None]
    assert holder.look([]) == []


# --- Tasks ----------------------------------------------------------------------------------


class Looking:
    """Looks at a task from its own loop."""

    def __init__(self, task: asyncio.Task[Any], code: CodeType | None = None) -> None:
        self.held = Held(weakref.ref(task), code, 1.0)

    async def comes_to(self, where: str) -> None:
        seen = set()
        for _ in range(3000):
            seen.add(holder.look([self.held])[0].where)
            if where in seen:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{where} is not among {seen}")


async def sleeps() -> None:
    await asyncio.sleep(60)


async def gathers() -> None:
    await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))


async def waits_with_a_limit() -> None:
    await asyncio.wait_for(asyncio.Event().wait(), 60)


async def waits_for_a_future() -> None:
    await asyncio.get_running_loop().create_future()


async def uses_a_thread() -> None:
    await asyncio.to_thread(time.sleep, 0.5)


async def generates() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 1


@contextlib.asynccontextmanager
async def provides() -> AsyncIterator[int]:
    async for number in generates():
        yield number


async def enters() -> None:
    async with provides():
        pass


async def asks_for_the_next() -> None:
    await anext(generates(), None)


class Awaitable:
    """Stands for a coroutine."""

    def __await__(self) -> Generator[Any, None, None]:
        return sleeps().__await__()


async def awaits_another_object() -> None:
    await Awaitable()


@pytest.mark.parametrize(
    ("function", "where"),
    [
        (sleeps, "asyncio.sleep"),
        (gathers, "asyncio.gather"),
        (waits_with_a_limit, "asyncio.wait_for"),
        (waits_for_a_future, "asyncio.Future"),
        (uses_a_thread, "asyncio.to_thread"),
        (enters, "asyncio.wait"),
        (asks_for_the_next, "asyncio.wait"),
        (awaits_another_object, "asyncio.sleep"),
    ],
)
def test_what_a_task_awaits(function: Callable[[], Any], where: str) -> None:
    """A task is where the application awaits something, also where that has no frame."""

    async def main() -> None:
        task = asyncio.create_task(function())
        await Looking(task, function.__code__).comes_to(where)
        assert holder.look([Held(weakref.ref(task), main.__code__, 1.0)])[0].where == where
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert holder.look([Held(weakref.ref(task), None, 1.0)]) == [Look("ended", returned=True)]

    asyncio.run(main())


def test_busy_loop() -> None:
    """A task that could go on, while another one keeps the loop, is at the event loop; the other one is where
    its thread is.
    """
    tasks: list[asyncio.Task[None]] = []
    go_on = threading.Event()

    async def waits_a_moment() -> None:
        await asyncio.sleep(0.01)

    async def blocks() -> None:
        await asyncio.sleep(0)
        go_on.wait(60)

    async def main() -> None:
        tasks.extend([asyncio.create_task(waits_a_moment()), asyncio.create_task(blocks())])
        await asyncio.gather(*tasks)

    def places() -> list[str | None]:
        return [look.where for look in holder.look([Held(weakref.ref(task), None, 1.0) for task in tasks])]

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        # Its timer is due, but only the loop itself makes what it waits for done.
        wait_for(lambda: places() == ["asyncio.sleep", "threading.wait"], 30)
    finally:
        go_on.set()
        thread.join(30)


def test_task_that_is_ready() -> None:
    """A task whose future is done, and that has not gone on yet, waits for the event loop."""

    async def waits(future: asyncio.Future[None]) -> None:
        await future

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(waits(future))
        await Looking(task).comes_to("asyncio.Future")
        future.set_result(None)
        assert holder.look([Held(weakref.ref(task), None, 1.0)])[0].where == "event loop"
        await task

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "mysql+aiomysql"])
def test_tasks_and_servers(driver: str, mariadb: Server, postgresql: Server) -> None:
    """A task in a statement is in the database; one that waits for the pool is waiting."""
    needs_driver(driver)
    server, statement = (
        (postgresql, "select pg_sleep(0.5)") if driver == "asyncpg" else (mariadb, "select sleep(0.5)")
    )

    async def main() -> None:
        engine = create_async_engine(server.url(driver), pool_size=1, max_overflow=0, pool_timeout=60)

        async def queries() -> None:
            for _ in range(200):
                async with engine.connect() as connection:
                    await connection.execute(text(statement))
                    await asyncio.sleep(0.1)

        one = asyncio.create_task(queries())
        await Looking(one, queries.__code__).comes_to("database")
        await Looking(one, queries.__code__).comes_to("asyncio.sleep")
        two = asyncio.create_task(queries())
        await Looking(two, queries.__code__).comes_to("waiting")
        for task in (one, two):
            task.cancel()
        await asyncio.gather(one, two, return_exceptions=True)
        await engine.dispose()

    asyncio.run(main())


def test_aiosqlite_and_the_greenlet(tmp_path: Path) -> None:
    """In SQLAlchemy's greenlet, too: a statement that its own thread executes is in the database, and what
    the application does there is known, also while it runs.
    """
    lock = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    lock.execute("begin exclusive")
    tasks: list[asyncio.Task[None]] = []
    go_on = threading.Event()

    def in_the_greenlet(connection: Any) -> None:
        connection.execute(text("select * from sqlite_master"))
        go_on.wait(60)

    async def queries() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.db", connect_args={"timeout": 60})
        async with engine.connect() as connection:
            await connection.run_sync(in_the_greenlet)
        await engine.dispose()

    async def main() -> None:
        tasks.append(asyncio.create_task(queries()))
        await tasks[0]

    def where() -> str | None:
        return holder.look([Held(weakref.ref(tasks[0]), queries.__code__, 1.0)])[0].where if tasks else None

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        wait_for(lambda: where() == "database", 30)
        lock.rollback()
        wait_for(lambda: where() == "threading.wait", 30)
    finally:
        lock.close()
        go_on.set()
        thread.join(30)


# --- Greenlets ------------------------------------------------------------------------------

GREEN = """
    import sys, threading, time, weakref, warnings
    library, server = sys.argv[1:]
    warnings.simplefilter("ignore")
    if library == "gevent":
        import gevent.monkey
        gevent.monkey.patch_all()
        spawn = gevent.spawn
    else:
        import eventlet
        eventlet.monkey_patch()
        spawn = eventlet.spawn
    from greenlet import getcurrent
    from sqlalchemy import create_engine, text
    from connmon.plugin import holder, unpatched
    from connmon.plugin.whereabouts import Held

    engine = create_engine(server)
    go = []

    def sleeps():
        while not go:
            time.sleep(0.05)

    def queries():
        with engine.connect() as connection:
            while not go:
                connection.execute(text("select sleep(0.3)"))

    def computes():
        end = time.monotonic() + 60.0
        while not go and time.monotonic() < end:
            sum(range(1000))

    def keeps_the_thread():
        start.append(weakref.ref(getcurrent()))
        computes()

    start = []
    greenlets = [spawn(function) for function in (sleeps, queries)]
    held = [Held(weakref.ref(greenlet), None, 1.0) for greenlet in greenlets]
    seen = [set(), set(), set()]
    wanted = [f"{library}.sleep", "database", "own code"]

    def look():
        deadline = time.monotonic() + 50.0
        while time.monotonic() < deadline and not all(map(set.__contains__, seen, wanted)):
            third = [Held(start[0], None, 1.0)] if start else []
            for labels, look in zip(seen, holder.look([*held, *third])):
                labels.add(look.where)
            unpatched._original("time", "sleep")(0.005)
            if seen[0] >= {wanted[0]} and seen[1] >= {wanted[1]} and not start:
                begin.append(True)
        go.append(True)

    begin = []
    unpatched.start_thread(look)
    while not begin and not go:
        time.sleep(0.01)
    spawn(keeps_the_thread)
    while not go:
        time.sleep(0.01)
    print([wanted[number] in labels for number, labels in enumerate(seen)], seen)
"""


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets(library: str, mariadb: Server, tmp_path: Path) -> None:
    """A greenlet that waits is where its own stack is, and one that runs where its thread is."""
    needs(library)
    program = tmp_path / "green.py"
    program.write_text(textwrap.dedent(GREEN))
    done = subprocess.run(
        [sys.executable, program, library, mariadb.url("pymysql")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith("[True, True, True]"), done.stdout + done.stderr


# --- Harmless -------------------------------------------------------------------------------


def test_no_module_reads_local_variables() -> None:
    """No module of the plugin asks for the local variables of a frame."""
    for path in Path(connmon.plugin.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            assert "f_locals" not in line.partition("`f_locals`")[0], f"{path.name}: {line}"


@pytest.fixture
def looks() -> Iterator[list[Held]]:
    """What a thread looks at without a pause, from the begin of the test to its end."""
    held: list[Held] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            holder.look(list(held))
            time.sleep(0.0005)

    thread = threading.Thread(target=look, name="looking", daemon=True)
    thread.start()
    yield held
    done.set()
    thread.join(30)


def test_local_variables_die_with_their_function(looks: list[Held]) -> None:
    """An object of a holder dies when its function returns, in the holder's thread, while looks go on."""
    ended: list[str] = []

    class Local:
        def __del__(self) -> None:
            ended.append(threading.current_thread().name)

    def uses(local: Local) -> None:
        for _ in range(50):
            sum(range(20))

    def works() -> None:
        for number in range(2000):
            local = Local()
            uses(local)
            del local
            assert len(ended) == number + 1

    failures: list[BaseException] = []

    def guarded() -> None:
        looks.append(Held(stacks.mark(), works.__code__, 1.0))
        try:
            works()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, name="holding")
    thread.start()
    thread.join(120)
    assert not failures
    assert set(ended) == {"holding"}
    assert len(ended) == 2000


def test_tasks_and_greenlets_are_not_kept() -> None:
    """After a look nothing refers to a task, its coroutine or their variables."""

    class Local:
        pass

    references: list[weakref.ref[Any]] = []

    async def holds() -> None:
        local = Local()
        references.append(weakref.ref(local))
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(holds())
        references.append(weakref.ref(task))
        await Looking(task, holds.__code__).comes_to("asyncio.sleep")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        local, task = references[1], references[0]
        assert local() is None
        assert task() is None
    finally:
        gc.enable()


def test_code_that_is_gone_is_forgotten() -> None:
    """What is known of a code object goes with it."""
    codes = Codes(holder._kinds())
    # Never run: a measurement of coverage would keep it.
    code = compile("time.sleep(1)", "/srv/gone.py", "exec")
    codes.facts(code)
    codes.calls(code)
    codes.place(code, 0)
    assert len(codes.known) == 1
    del code
    gc.collect()
    assert not codes.known


def test_few_code_objects_are_known() -> None:
    """Memory is bounded, however much code an application makes."""
    codes = Codes(holder._kinds(), code_objects=10)
    kept = [compile("0", f"/srv/{number}.py", "exec") for number in range(35)]
    for code in kept:
        codes.facts(code)
    assert 0 < len(codes.known) <= 10


def traced(frame: Any, event: str, _: Any) -> Any:
    return traced


def test_debugger(looks: list[Held]) -> None:
    """What a debugger has changed in a function's variables stays, while its thread is looked at."""
    failures: list[BaseException] = []

    def changed(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is not counts.__code__:
            return None
        if event == "line" and frame.f_locals.get("number") == 7:
            frame.f_locals["number"] = 1000
        return changed

    def counts() -> int:
        number = 0
        for _ in range(20):
            number += 1
            sum(range(50))
        return number

    def works() -> None:
        looks.append(Held(stacks.mark(), counts.__code__, 1.0))
        sys.settrace(changed)
        try:
            for _ in range(500):
                assert counts() == 1013
        except BaseException as error:
            failures.append(error)
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=works)
    thread.start()
    thread.join(120)
    assert not failures


def test_deep_recursion() -> None:
    """Where not all of a deep stack is read, a function further out is not thought to have returned."""

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            threading.Event().wait(PAUSE)

    def takes() -> None:
        deep(stacks.FRAMES_READ)

    comes_to(takes, "threading.wait")


@pytest.mark.parametrize("tool", ["settrace", "setprofile", "monitoring", "none"])
def test_tracing(tool: str, looks: list[Held]) -> None:
    """Under a tracer, a profiler or a debugger a function's variables keep the values that it gives them,
    while its thread is looked at.
    """
    failures: list[BaseException] = []

    def counts() -> int:
        number = 0
        text_of_it = ""
        for step in range(3000):
            number += 1
            text_of_it = str(number)
            assert number == step + 1
            assert text_of_it == str(step + 1)
        return number

    def works() -> None:
        looks.append(Held(stacks.mark(), counts.__code__, 1.0))
        try:
            with tracing(tool):
                for _ in range(5):
                    assert counts() == 3000
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=works)
    thread.start()
    thread.join(120)
    assert not failures


@contextlib.contextmanager
def tracing(tool: str) -> Iterator[None]:
    monitoring = getattr(sys, "monitoring", None)
    before = sys.gettrace()
    if tool == "settrace":
        sys.settrace(traced)
        sys._getframe(2).f_trace = traced
    elif tool == "setprofile":
        sys.setprofile(traced)
    elif tool == "monitoring" and monitoring is not None:
        monitoring.use_tool_id(4, "test")
        monitoring.register_callback(4, monitoring.events.LINE, lambda *_: None)
        monitoring.set_events(4, monitoring.events.LINE)
    try:
        yield
    finally:
        if tool == "settrace":
            sys.settrace(before)
        elif tool == "setprofile":
            sys.setprofile(None)
        elif tool == "monitoring" and monitoring is not None:
            monitoring.set_events(4, 0)
            monitoring.free_tool_id(4)


def test_interpreter_lock_kept_for_long(looks: list[Held]) -> None:
    """A call in C that keeps the interpreter lock for long delays looks and nothing else."""

    def keeps_it() -> None:
        assert re.match(r"(a?){23}a{23}", "a" * 23)
        sorted(range(1_000_000), key=lambda number: -number)

    with busy(keeps_it) as (thread,):
        looks.append(thread.held())
        wait_for(lambda: thread.where() in ("re.match", "own code"), 60)


def test_cost(capsys: pytest.CaptureFixture[str]) -> None:
    """Print what a look at 20 threads costs, each 40 frames deep."""

    def deep(levels: int = 36) -> None:
        if levels:
            deep(levels - 1)
        else:
            threading.Event().wait(0.5)

    with busy(*[deep] * 20) as threads:
        held = [thread.held() for thread in threads]
        wait_for(lambda: {look.where for look in holder.look(held)} == {"threading.wait"}, 30)
        seconds = min(timeit.repeat(lambda: holder.look(held), number=20, repeat=20)) / 20
        frames = sum(len(stack.frames) for stack in stacks.read([thread.mark for thread in threads]))
    with capsys.disabled():
        print(f"a look at 20 threads with {frames} frames: {seconds * 1e6:.0f} us")
    assert frames > 700

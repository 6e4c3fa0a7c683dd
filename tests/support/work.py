"""Random work on SQLAlchemy engines, in threads and in tasks, with books.

Each piece of work is a method. Errors that it provokes (a pool timeout, a connect that fails, a session
that the server ends) are expected and counted there; any other error is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from typing import Any, ClassVar

from sqlalchemy import Engine, create_engine, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.support.books import Account, Driver, OrderedToFail, Refused


class Work(Account):
    """Random work of threads on one engine."""

    WEIGHTS: ClassVar[dict[str, int]] = {
        "query": 30, "transaction": 12, "nested": 10, "invalidate": 4, "soft_invalidate": 2,
        "killed": 1, "detach": 4, "keep": 5, "release": 4, "dispose": 1, "temporary": 1, "fail": 2,
        "drop": 4, "drop_detached": 2,
    }  # fmt: skip

    def __init__(self, spec: dict[str, Any], gone: list[Account]) -> None:
        super().__init__(spec)
        self.gone = gone
        self.one_at_a_time = threading.Lock()
        self.souvenirs: deque[Any] = deque(maxlen=5)
        self.engine = self._make(self)

    def _make(self, account: Account) -> Engine:
        engine = create_engine(self.spec["url"], **self.options())
        engine.dialect.dbapi = Driver(engine.dialect.dbapi, account)
        return engine

    def do(self, rng: random.Random) -> None:
        """Do one piece of work."""
        if self.spec.get("ping"):
            with self.one_at_a_time:
                self.ping()
        elif self.spec.get("broken"):
            self.take()
        else:
            (name,) = rng.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))
            getattr(self, name)(rng)

    def take(self) -> Any:
        try:
            connection = self.engine.connect()
        except exc.TimeoutError:
            self.count("timeouts")
            raise Refused from None
        except OrderedToFail:
            raise Refused from None
        except exc.DBAPIError:
            if self.spec.get("broken"):
                raise Refused from None
            raise
        self.count("checkouts")
        return connection

    def give(self, connection: Any) -> None:
        connection.close()
        self.count("checkins")

    def select(self, connection: Any) -> None:
        assert connection.execute(text("SELECT 1")).scalar() == 1

    def session_id(self, connection: Any) -> int | None:
        query = self.spec.get("id_query")
        return None if query is None else int(connection.execute(text(query)).scalar())

    def query(self, rng: random.Random) -> None:
        connection = self.take()
        try:
            self.select(connection)
            time.sleep(rng.random() * 0.004)
        finally:
            self.give(connection)

    def transaction(self, rng: random.Random) -> None:
        connection = self.take()
        try:
            with connection.begin() as transaction:
                self.select(connection)
                time.sleep(rng.random() * 0.004)
                self.select(connection)
                if rng.random() < 0.5:
                    transaction.rollback()
        finally:
            self.give(connection)

    def nested(self, rng: random.Random) -> None:
        held = []
        try:
            for _ in range(rng.randint(2, 4)):
                held.append(self.take())
                self.select(held[-1])
            time.sleep(rng.random() * 0.01)
        finally:
            for connection in held:
                self.give(connection)

    def invalidate(self, rng: random.Random) -> None:
        connection = self.take()
        try:
            self.select(connection)
            connection.invalidate()
            self.count("invalidations")
            self.count("checkins")  # an invalid connection returns to the pool at once
            if rng.random() < 0.5:
                connection.rollback()
                try:
                    self.select(connection)  # takes another connection from the pool
                except exc.StatementError as error:  # SQLAlchemy wraps the error of taking a connection
                    if isinstance(error.orig, exc.TimeoutError):
                        self.count("timeouts")
                    elif not isinstance(error.orig, OrderedToFail):
                        raise
                else:
                    self.count("checkouts")
                    self.count("checkins")
        finally:
            connection.close()

    def soft_invalidate(self, rng: random.Random) -> None:
        connection = self.take()
        try:
            connection.connection.invalidate(soft=True)
            self.count("invalidations")
        finally:
            self.give(connection)

    def killed(self, rng: random.Random) -> None:
        """Have the server end the session of a connection in use."""
        kill = self.spec.get("kill_self")
        if kill is None:
            return
        connection = self.take()
        try:
            for statement in (kill, "SELECT 1", "SELECT 1"):
                try:
                    connection.execute(text(statement))
                except exc.DBAPIError as error:
                    if error.connection_invalidated:
                        self.count("invalidations")
                        return
                    connection.rollback()
            raise AssertionError("the connection outlived its session")
        finally:
            self.give(connection)

    def detach(self, rng: random.Random) -> None:
        connection = self.take()
        try:
            connection.detach()
            self.select(connection)
            if rng.random() < 0.5:  # closed, but still referenced: no finaliser reports its end
                proxy = connection.connection
                self.souvenirs.append((proxy, proxy.dbapi_connection))
        finally:
            self.give(connection)

    def keep(self, rng: random.Random) -> None:
        """Hold a connection until `release`, also through a quiet moment."""
        if len(self.kept) >= self.spec.get("keep", 2):
            return
        connection = self.take()
        number = self.session_id(connection)
        connection.rollback()
        state = "checked_out"
        if rng.random() < 0.4:
            connection.detach()
            state = "detached"
        with self.lock:
            self.kept.append((connection, state, number))

    def release(self, rng: random.Random) -> None:
        with self.lock:
            if not self.kept:
                return
            connection, _, _ = self.kept.pop(rng.randrange(len(self.kept)))
        self.give(connection)

    def dispose(self, rng: random.Random) -> None:
        self.engine.dispose()

    def temporary(self, rng: random.Random) -> None:
        """Create an engine, use it and drop it, disposed of or not."""
        account = Account({**self.spec, "gone": True})
        engine = self._make(account)
        with self.lock:
            self.gone.append(account)
        for _ in range(rng.randint(1, 3)):
            with engine.connect() as connection:
                account.count("checkouts")
                self.select(connection)
            account.count("checkins")
        if rng.random() < 0.5:
            engine.dispose()

    def fail(self, rng: random.Random) -> None:
        with self.lock:
            self.orders_to_fail = 1

    def drop(self, rng: random.Random) -> None:
        """Take a connection and never return it: the garbage collection does."""
        connection = self.take()
        self.count("checkins")
        self.select(connection)

    def drop_detached(self, rng: random.Random) -> None:
        connection = self.take()
        self.count("checkins")
        connection.detach()

    def ping(self) -> None:
        """Have the server end an idle session, which the pool notices at the next checkout."""
        connection = self.take()
        number = self.session_id(connection)
        self.give(connection)
        assert number is not None
        end_session(self.spec, number)
        connection = self.take()
        self.count("invalidations")
        self.give(connection)


def end_session(spec: dict[str, Any], number: int) -> None:
    """Have the server end this session, and return when it has."""
    login = spec["login"]
    if spec["driver"].startswith("psycopg"):
        import psycopg2

        admin = psycopg2.connect(**login)
        try:
            with admin.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", (number,))
                assert cursor.fetchone() == (True,)
        finally:
            admin.close()
        return
    import pymysql

    admin = pymysql.connect(**login)
    try:
        with admin.cursor() as cursor:
            cursor.execute(f"KILL {number}")
            query = f"SELECT count(*) FROM information_schema.processlist WHERE id = {number}"
            while cursor.execute(query) and cursor.fetchone() != (0,):
                time.sleep(0.001)
    finally:
        admin.close()


class AsyncWork(Account):
    """Random work of tasks on one engine."""

    WEIGHTS: ClassVar[dict[str, int]] = {
        "query": 30, "transaction": 12, "nested": 10, "invalidate": 4, "detach": 4, "keep": 5,
        "release": 4, "dispose": 2, "fail": 2, "cancel": 2, "cancel_take": 3,
    }  # fmt: skip

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self.engine: AsyncEngine = create_async_engine(spec["url"], **self.options())
        dialect = self.engine.sync_engine.dialect
        dialect.dbapi = Driver(dialect.dbapi, self)
        self.busy = 0
        self.disposing = False

    async def do(self, rng: random.Random) -> None:
        (name,) = rng.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))
        if name == "dispose":
            # A garbage collection cannot close a connection that was returned to a disposed pool.
            if not self.busy and not self.kept and not self.disposing:
                self.disposing = True
                try:
                    await self.engine.dispose()
                finally:
                    self.disposing = False
            return
        while self.disposing:
            await asyncio.sleep(0.001)
        self.busy += 1
        try:
            await getattr(self, name)(rng)
        finally:
            self.busy -= 1

    async def take(self) -> Any:
        try:
            connection = await self.engine.connect().start()
        except exc.TimeoutError:
            self.count("timeouts")
            raise Refused from None
        except OrderedToFail:
            raise Refused from None
        self.count("checkouts")
        return connection

    async def give(self, connection: Any) -> None:
        await connection.close()
        self.count("checkins")

    async def select(self, connection: Any) -> None:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1

    async def query(self, rng: random.Random) -> None:
        connection = await self.take()
        try:
            await self.select(connection)
            await asyncio.sleep(rng.random() * 0.004)
        finally:
            await self.give(connection)

    async def transaction(self, rng: random.Random) -> None:
        connection = await self.take()
        try:
            async with connection.begin():
                await self.select(connection)
                await asyncio.sleep(rng.random() * 0.004)
        finally:
            await self.give(connection)

    async def nested(self, rng: random.Random) -> None:
        held: list[Any] = []
        try:
            for _ in range(rng.randint(2, 4)):
                held.append(await self.take())
                await self.select(held[-1])
        finally:
            for connection in held:
                await self.give(connection)

    async def invalidate(self, rng: random.Random) -> None:
        connection = await self.take()
        try:
            await connection.invalidate()
            self.count("invalidations")
            self.count("checkins")
        finally:
            await connection.close()

    async def detach(self, rng: random.Random) -> None:
        connection = await self.take()
        try:
            (await connection.get_raw_connection()).detach()
            await self.select(connection)
        finally:
            await self.give(connection)

    async def keep(self, rng: random.Random) -> None:
        if len(self.kept) >= 1:
            return
        connection = await self.take()
        query = self.spec.get("id_query")
        number = None if query is None else int((await connection.execute(text(query))).scalar())
        await connection.rollback()
        self.kept.append((connection, "checked_out", number))

    async def release(self, rng: random.Random) -> None:
        if self.kept:
            await self.give(self.kept.pop()[0])

    async def fail(self, rng: random.Random) -> None:
        self.orders_to_fail = 1

    async def cancel(self, rng: random.Random) -> None:
        """Cancel a task while the server works for it."""
        sleep = self.spec.get("sleep_query")
        if sleep is None:
            return
        connection = await self.take()
        try:
            await asyncio.wait_for(connection.execute(text(sleep)), 0.01)
        except asyncio.TimeoutError:
            if connection.invalidated:
                self.count("invalidations")
        finally:
            await self.give(connection)

    async def cancel_take(self, rng: random.Random) -> None:
        """Cancel a task while it waits for a connection, or for the server to accept it."""
        box: list[Any] = []

        async def take() -> None:
            box.append(await self.take())

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(take(), rng.random() * 0.004)
        for connection in box:
            await self.give(connection)

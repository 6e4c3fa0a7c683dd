"""Applications on oslo.db, with their own books: the programs that test_oslo runs.

    python -m tests.support.oslo_application SCENARIO OPTIONS

OPTIONS is JSON: the files of oslo.config for the scenario, and the directory in which to meet the test
(tests.support.heirs). oslo.db creates its engines itself and connects while it does so. So the books wrap
the driver's own `connect`, and distinguish the engines by their database.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pymysql
from oslo_config import cfg
from oslo_db import options as oslo_options
from oslo_db.sqlalchemy import asyncio_facade, enginefacade
from sqlalchemy import text
from sqlalchemy.dialects.mysql.asyncmy import AsyncAdapt_asyncmy_dbapi

from tests.support.books import Account, Driver
from tests.support.heirs import meet

OPTIONS: dict[str, Any] = {}
#: By the name of the database.
BOOKS: dict[str, Account] = {}
SLEEP = text("SELECT connection_id()")


def keep_books(driver: str) -> None:
    """Count the driver's connects from now on, in separate books for each database."""
    for name in OPTIONS["databases"]:
        BOOKS[name] = Account({"name": name, "driver": driver})

    def counted(connect: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        account = BOOKS[options.get("database") or options["db"]]
        return Driver(SimpleNamespace(connect=connect), account).connect(*arguments, **options)

    if driver == "pymysql":
        pymysql.connect = partial(counted, pymysql.connect)
        return
    connect = AsyncAdapt_asyncmy_dbapi.connect

    def connect_counted(self: Any, *arguments: Any, **options: Any) -> Any:
        return counted(partial(connect, self), *arguments, **options)

    AsyncAdapt_asyncmy_dbapi.connect = connect_counted  # type: ignore[method-assign]


def books() -> dict[str, Any]:
    return {name: account.report() for name, account in BOOKS.items()}


def configured() -> cfg.ConfigOpts:
    """Return the configuration as a service reads it."""
    conf = cfg.ConfigOpts()
    oslo_options.set_defaults(conf)
    conf(["--config-file", OPTIONS["file"]], project="connmon-test")
    cfg.CONF(["--config-file", OPTIONS["file"]], project="connmon-test")
    return conf


def used(account: Account) -> None:
    account.count("checkouts")
    account.count("checkins")


@enginefacade.transaction_context_provider
class Context:
    """The context of a request of an OpenStack service."""


@asyncio_facade.async_transaction_context_provider
class AsyncContext:
    """The same for asyncio."""


def facade() -> None:
    """Writers and readers, as sessions and as connections, as blocks and as decorators."""
    keep_books("pymysql")
    configured()
    writer, reader = (BOOKS[name] for name in OPTIONS["databases"])
    context = Context()

    def hold(account: Account, resource: Any, name: str) -> None:
        number = int(resource.execute(SLEEP).scalar())
        account.count("checkouts")
        account.kept.append((None, "checked_out", number))
        meet(OPTIONS["directory"], name, books())
        account.kept.clear()
        account.count("checkins")

    with enginefacade.writer.using(context) as session:
        used(writer)  # oslo.db tries a connection when it creates an engine, here for both
        used(reader)
        with enginefacade.writer.using(context) as same:
            assert same is session
        hold(writer, session, "writing")
    with enginefacade.writer.connection.using(Context()) as connection:
        hold(writer, connection, "a connection")
    with enginefacade.reader.using(Context()) as session:
        hold(writer, session, "reading what was written")  # [database] synchronous_reader
    with enginefacade.reader.async_.using(Context()) as session:
        hold(reader, session, "reading")

    @enginefacade.writer  # type: ignore[untyped-decorator]
    def decorated(context: Context) -> None:
        context.session.execute(SLEEP)  # type: ignore[attr-defined]
        used(writer)

    for _ in range(5):
        decorated(Context())
    meet(OPTIONS["directory"], "quiet", books())
    enginefacade.writer.dispose_pool()
    meet(OPTIONS["directory"], "disposed", books())
    decorated(Context())
    meet(OPTIONS["directory"], "end", books())


def asynchronous() -> None:
    """The same with asyncio: several tasks hold connections and wait for them."""
    keep_books("asyncmy")
    configured()
    asyncio.run(_asynchronous())


async def _asynchronous() -> None:
    (writer,) = BOOKS.values()
    go = asyncio.Event()

    async def hold() -> None:
        async with asyncio_facade.writer.using(AsyncContext()) as session:
            number = int((await session.execute(SLEEP)).scalar())
            writer.count("checkouts")
            entry = (None, "checked_out", number)
            writer.kept.append(entry)
            await go.wait()
            writer.kept.remove(entry)
        writer.count("checkins")

    async with asyncio_facade.reader.connection.using(AsyncContext()) as connection:
        await connection.execute(SLEEP)
    used(writer)
    used(writer)  # oslo.db's trial
    tasks = [asyncio.create_task(hold(), name=f"request-{number}") for number in range(6)]
    while len(writer.kept) < 4:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(meet, OPTIONS["directory"], "held", books())
    go.set()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(meet, OPTIONS["directory"], "quiet", books())
    await asyncio_facade.writer.get_engine().dispose()
    meet(OPTIONS["directory"], "end", books())


def guard() -> None:
    """A child of a process with an idle connection: oslo.db's pid guard makes it open its own."""
    keep_books("pymysql")
    configured()
    (account,) = BOOKS.values()

    def query() -> None:
        with enginefacade.writer.using(Context()) as session:
            session.execute(SLEEP)
        used(account)

    query()
    used(account)  # oslo.db's trial
    meet(OPTIONS["directory"], "before", books())
    if os.fork():
        meet(OPTIONS["directory"], "forked", books())
        os.wait()
        query()
        # The guard has closed the connection in the usual way, so for the parent too: the pool replaces it.
        account.count("invalidations")
        meet(OPTIONS["directory"], "end", books())
        return
    account.forget()
    query()
    account.count("invalidations")
    query()
    meet(OPTIONS["directory"], "forked", books())


SCENARIOS: dict[str, Callable[[], None]] = {
    "facade": facade,
    "asynchronous": asynchronous,
    "guard": guard,
}

if __name__ == "__main__":
    OPTIONS.update(json.loads(sys.argv[2]))
    SCENARIOS[sys.argv[1]]()

"""The private servers of tests/support/servers.py, which other tests use."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import psycopg2
import pymysql
import pytest
import sqlalchemy

from tests.support.requirements import needs_driver
from tests.support.servers import Server
from tests.support.waiting import wait_for


def login(server: Server, **names: str) -> dict[str, Any]:
    """Return a driver's arguments for logging in, by the driver's own names."""
    arguments = {
        "host": server.host, "port": server.port, "user": server.user,
        "password": server.password, "database": server.database,
    }  # fmt: skip
    return {names.get(name, name): value for name, value in arguments.items()}


def check_sessions(server: Server, connect: Callable[[], Any], own_id: Callable[[Any], int]) -> None:
    """Check that the server lists a session exactly while it is open."""
    before = server.sessions()
    with contextlib.closing(connect()) as connection:
        (session,) = [session for session in server.sessions() if session not in before]
        assert tuple(session) == (own_id(connection), server.user, server.host, server.database)
        assert session.id != server.asking_session
    wait_for(lambda: server.sessions() == before, what="the session to end")


def test_mariadb_lists_pymysql_session(mariadb: Server) -> None:
    """PyMySQL logs in by TCP with the password, and sessions() has its thread id."""
    check_sessions(mariadb, lambda: pymysql.connect(**login(mariadb)), lambda c: int(c.thread_id()))


def test_postgresql_lists_psycopg2_session(postgresql: Server) -> None:
    """psycopg2 logs in by TCP with the password, and sessions() has its backend's pid."""
    check_sessions(
        postgresql,
        lambda: psycopg2.connect(**login(postgresql, database="dbname")),
        lambda c: int(c.get_backend_pid()),
    )


def test_postgresql_lists_asyncpg_session(postgresql: Server) -> None:
    """asyncpg logs in by TCP with the password, and sessions() has its backend's pid."""

    async def connected() -> None:
        connection = await asyncpg.connect(**login(postgresql))
        try:
            assert connection.get_server_pid() in [session.id for session in postgresql.sessions()]
        finally:
            await connection.close()

    asyncio.run(connected())


@pytest.mark.parametrize("driver", ["pymysql", "mysql+mysqldb", "mariadb+mysqlconnector"])
def test_mariadb_url(mariadb: Server, driver: str) -> None:
    """The URL works unchanged, with any characters in the password."""
    needs_driver(driver)
    check_url(mariadb.url(driver, charset="utf8mb4"))


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "postgresql+pg8000"])
def test_postgresql_url(postgresql: Server, driver: str) -> None:
    """The URL works unchanged, with any characters in the password."""
    check_url(postgresql.url(driver))


def check_url(url: str) -> None:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT 42")) == 42
    finally:
        engine.dispose()


def no_sessions(server: Server) -> bool:
    return server.sessions() == []


def test_restart_keeps_data_and_port(postgresql: Server, mariadb: Server) -> None:
    """A server that was stopped and started keeps its port and users, and sessions() works again."""
    for server in (postgresql, mariadb):
        port, pid = server.port, server.pid
        server.sessions()
        server.stop()
        with socket.socket() as probe:
            assert probe.connect_ex((server.host, server.port)) != 0
        server.start()
        assert (server.port, server.pid == pid) == (port, False)
        wait_for(partial(no_sessions, server), what="no sessions")


@pytest.mark.parametrize("kind", ["MariaDB", "PostgreSQL"])
@pytest.mark.usefixtures("mariadb", "postgresql")
def test_server_dies_with_killed_tests(kind: str) -> None:
    """A server does not outlive the process that started it, even when that was killed."""
    program = (
        f"from tests.support.servers import {kind}; s = {kind}(); print(s.directory, s.port, flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}; input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        directory, port = process.stdout.readline().split()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def ended() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) != 0

    wait_for(ended, what="the server to end")
    shutil.rmtree(directory)


def test_wait_for_says_what_it_waited_for() -> None:
    """wait_for fails with what it waited for and the last value."""
    with pytest.raises(pytest.fail.Exception, match=r"waited 0 s for rain; the last value was \[\]"):
        wait_for(list, 0, "rain")


def test_wait_for_takes_assertions() -> None:
    """A condition that asserts is tried again until it holds, and its value is returned."""
    tries = iter([0, 0, 7])

    def condition() -> int:
        value = next(tries)
        assert value, "nothing yet"
        return value

    assert wait_for(condition) == 7

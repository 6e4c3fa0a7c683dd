"""What is added to what processes report: the system's own word, and the servers' maxima."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import psutil
import pytest

from connmon import procinfo
from connmon.console import merging
from connmon.console.local import Watch
from connmon.console.source import Source, Want
from tests.console_fakes import answer


def pool(port: int | None, connections: int = 1, **changes: Any) -> dict[str, Any]:
    """A pool row of this very process."""
    return {
        "host": procinfo.host(), "pid": os.getpid(), "state": "connected", "dialect": "mysql",
        "started_seconds": time.time() - psutil.Process().create_time(),
        "database_host": "/run/mysqld.sock" if port is None else "127.0.0.1", "database_port": port,
        "connections": connections, **changes,
    }  # fmt: skip


def test_sockets_beyond_those_of_the_pools_are_counted() -> None:
    """Three sockets to the server of which the pools know two: one is beyond; other servers do not count."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port = server.getsockname()[1]
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        held.append(socket.create_connection(other.getsockname()))
        try:
            watch = Watch()
            local = watch.look("i1", [pool(port, 1), pool(port, 1), pool(None, 7)])
            assert local is not None and local.instance == "i1"
            assert "TCP to the database 3, 1 BEYOND its pools' 2" in local.text
            assert "threads " in local.text and "memory " in local.text and "open files " in local.text
            again = watch.look("i1", [pool(port, 3)])
            assert again is not None and "TCP to the database 3, all its pools'" in again.text
        finally:
            for each in held:
                each.close()


def test_a_database_without_a_port_has_no_sockets() -> None:
    """SQLite, or a server reached by a socket file: there is nothing to count."""
    for each in (pool(None), pool(None, dialect="sqlite", database_host=None)):
        local = Watch().look("i1", [each])
        assert local is not None and "no TCP" in local.text


def test_a_server_that_is_not_known_is_no_local_one() -> None:
    """Where a pool's server is not known nothing is counted, since its sockets may be among the others."""
    local = Watch().look("i1", [pool(3306), pool(None, database_host=None)])
    assert local is not None
    assert "TCP to the database - (the server of a pool is not known)" in local.text


def test_each_of_several_servers_is_counted() -> None:
    """A pool whose URL names several servers has its connections at any of them."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        socket.create_connection(one.getsockname()),
        socket.create_connection(two.getsockname()),
    ):
        hosts = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two))
        local = Watch().look("i1", [pool(None, 2, dialect="postgresql", database_host=hosts)])
    assert local is not None and "TCP to the database 2, all its pools'" in local.text


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"pid": None}, {"pid": 2**22 + 1}, {"state": "lost"}, {"started_seconds": 9e9},
     {"started_seconds": None}],
)  # fmt: skip
def test_another_process_is_not_looked_at(changes: dict[str, Any]) -> None:
    """Elsewhere, gone, or of the same pid but started at another time: nothing is said."""
    assert Watch().look("i1", [pool(3306, **changes)]) is None
    assert Watch().look("i1", []) is None


def test_timeouts_that_are_not_known_to_be_recent() -> None:
    """Where the node could not tell of all rows with timeouts, a row is judged by those since first seen."""
    source = Source(Want("program"))
    source.apply(answer(source.question()))

    def with_timeouts() -> set[str]:
        return {row["program"] for _, row in source.rows() if "TIMEOUTS" in row["why"]}

    ever = {row["program"] for _, row in source.rows() if row["timeouts_total"]}
    assert ever
    source.remember({})
    assert not with_timeouts()
    source.remember({}, False)
    present = {row["program"] for _, row in source.rows() if row["state"] == "connected"}
    assert with_timeouts() == ever & present
    (row,) = [merging.together([{"recent_timeouts": 2}, {"timeouts_total": 3}])]
    assert row["recent_timeouts"] is None


def test_a_server_that_takes_less_than_its_pools_may_open_is_overcommitted() -> None:
    """With the server's maximum given, its databases say OVERCOMMIT; of others nothing is known."""
    source = Source(Want("database"), {("db1", 3306): 151})
    source.apply(answer(source.question()))
    rows = {row["database"]: row for _, row in source.rows()}
    assert rows["keystone"]["verdict"] == "OVERCOMMIT"
    assert "285 connections to db1:3306, which takes 151" in rows["nova"]["why"]
    source = Source(Want("database"), {("db2", None): 10})
    source.apply(answer(source.question()))
    assert {row["verdict"] for _, row in source.rows()} == {"LEAK", None}

"""What the system of this host says of a process, in addition to its reports."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import psutil
import pytest

from connmon import process_info
from connmon.console.local_process import Watch
from tests.support.console_states import row


def pool(port: int | None, connections: int = 1, **changes: Any) -> Any:
    """Return a pool of this process."""
    flat: dict[str, Any] = {
        "host": process_info.host(), "pid": os.getpid(), "state": "connected", "dialect": "mysql",
        "started_seconds": time.time() - psutil.Process().create_time(),
        "database_host": "/run/mysqld.sock" if port is None else "127.0.0.1", "database_port": port,
        "connections": connections, **changes,
    }  # fmt: skip
    return row("pool", **flat)


def test_sockets_beyond_those_of_the_pools_are_counted() -> None:
    """Of three sockets to the server the pools account for two: one is beyond; other servers do not count."""
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
            for connection in held:
                connection.close()


def test_a_database_without_a_port_has_no_sockets() -> None:
    """With SQLite or a socket file there are no TCP sockets to count."""
    for bare in (pool(None), pool(None, dialect="sqlite", database_host=None)):
        local = Watch().look("i1", [bare])
        assert local is not None and "no TCP" in local.text


def test_nothing_is_counted_where_a_server_is_unknown() -> None:
    """The sockets of a pool with an unknown server may be among the others, so none are counted."""
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
        hosts = ",".join(f"127.0.0.1:{server.getsockname()[1]}" for server in (one, two))
        local = Watch().look("i1", [pool(None, 2, dialect="postgresql", database_host=hosts)])
    assert local is not None and "TCP to the database 2, all its pools'" in local.text


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"pid": None}, {"pid": 2**22 + 1}, {"state": "lost"}, {"started_seconds": 9e9},
     {"started_seconds": None}],
)  # fmt: skip
def test_another_process_is_not_looked_at(changes: dict[str, Any]) -> None:
    """A process elsewhere, gone, or with the same pid but another start time is not looked at."""
    assert Watch().look("i1", [pool(3306, **changes)]) is None
    assert Watch().look("i1", []) is None

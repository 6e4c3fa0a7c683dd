"""A small limit on open files: its effect on a node, and the log lines."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.cluster.open_files import SETTINGS, ClientRoom, room
from connmon.config import Address, Node
from connmon.errors import RefusedError, UsageError
from connmon.reader.client import reach
from tests.cluster.test_daemon import Client, Connmond, free_port, started, write

__all__ = ["started"]


@given(st.integers(min_value=0, max_value=30_000), st.integers(min_value=0, max_value=8), st.booleans())
def test_room(limit: int, peers: int, scrapes: bool) -> None:
    """Clients, other nodes and scrapes fit into the limit together; a useless limit is refused."""
    try:
        clients_room = room(limit, peers, scrapes)
    except UsageError as error:
        assert f"ulimit -n {limit} " in str(error) and "LimitNOFILE=" in str(error)
        assert limit < 40 + peers * 4 + scrapes * 32 + SETTINGS.fewest_clients
        return
    assert SETTINGS.fewest_clients <= clients_room.clients <= SETTINGS.most_clients
    assert clients_room.clients + 40 + peers * 4 + scrapes * 32 <= limit
    assert (clients_room.limit is None) == (clients_room.clients == SETTINGS.most_clients)
    assert f"ulimit -n {limit} " in clients_room.notice or clients_room.limit is None


def test_no_limit() -> None:
    """Without a limit on open files the limit on clients applies, and nothing is logged."""
    assert room(None) == ClientRoom(SETTINGS.most_clients, None)
    assert room(None).notice == room(None).reason == ""


@pytest.mark.slow
def test_a_small_limit_is_named(started: list[Connmond], tmp_path: Path) -> None:
    """With `ulimit -n 64` a node logs how many clients it accepts and why, and tells a client above the
    limit."""
    port = free_port()
    started.append(Connmond("--config", str(write(tmp_path / "c.cfg", port)), files=64))
    node = started[-1]
    match = node.wait_for(
        r"WARNING .*open files: ulimit -n 64 leaves room for (\d+) clients; raise it with (.*)\n"
    )
    assert match[2] == "ulimit -n, under systemd with LimitNOFILE="
    count = int(match[1])
    assert count >= 16
    with contextlib.ExitStack() as clients:
        for _ in range(count):
            clients.enter_context(Client(port, "reader"))
        address = Address("127.0.0.1", port)
        with pytest.raises(
            RefusedError, match=f"has its {count} clients already .*ulimit -n 64.*LimitNOFILE="
        ):
            reach(Node("node1", address, address), "default")
    assert node.end(signal.SIGTERM) == 0
    assert "Too many open files" not in node.stderr


@pytest.mark.slow
def test_a_limit_that_leaves_no_room(started: list[Connmond], tmp_path: Path) -> None:
    """A node with room for no client does not start; --check-config prints the same line."""
    path = write(tmp_path / "c.cfg", free_port())
    lines = []
    for more in ([], ["--check-config"]):
        started.append(Connmond("--config", str(path), *more, files=32))
        assert started[-1].end() == 2
        lines.append(started[-1].stderr)
    assert lines[0] == lines[1]
    expected = r"connmond: open files: ulimit -n 32 leaves no room for clients, \d+ is the least here; .*\n"
    assert re.fullmatch(expected, lines[0])


@pytest.mark.slow
def test_the_least_limit_is_enough(started: list[Connmond], tmp_path: Path) -> None:
    """A node with the least limit, data_dir and a dump serves its clients while others try to connect."""
    port = free_port()
    more = f"data_dir: {tmp_path}/data\ncsv_dump: {tmp_path}/dump.csv\n"
    started.append(Connmond("--config", str(write(tmp_path / "c.cfg", port, more)), files=44))
    node = started[-1]
    node.wait_for("ready service=")
    with contextlib.ExitStack() as clients:
        for _ in range(SETTINGS.fewest_clients):
            clients.enter_context(Client(port, "reader"))
        for _ in range(100):
            clients.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port), 10)))
    with Client(port, "reader"):
        pass
    assert node.end(signal.SIGTERM) == 0

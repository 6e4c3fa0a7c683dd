"""Real processes with several engines, several services, and event loops that come and go.

Each runs a script of a few lines whose work is known exactly, and stops where the test wants to look.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import _ENVIRONMENT, RunningNode, running_node
from tests.support.servers import Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow


class Script:
    """A process that runs a script and stops at each `stop()` in it."""

    def __init__(self, text: str, *arguments: str) -> None:
        head = "import sys\n\ndef stop():\n    print('stopped', flush=True)\n    sys.stdin.readline()\n\n"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", head + text, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=_ENVIRONMENT,
        )  # fmt: skip

    def stopped(self) -> None:
        """Wait until it stops."""
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if line != "stopped\n":
            pytest.fail(f"{line!r}: {self._process.stderr.read()}")

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate("\n" * 10, timeout=10)
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def script(text: str, *arguments: str) -> Iterator[Script]:
    running = Script(text, *arguments)
    try:
        yield running
    finally:
        running.end()


def shows(node: RunningNode, **expected: Any) -> None:
    """Wait until the node shows one process, with these figures."""

    def compare() -> bool:
        rows = node.rows("process")
        assert len(rows) == 1, rows
        found = {key: rows[0][key] for key in expected}
        assert found == expected
        return True

    wait_for(compare, 15, "the node to show what the process has done")


SEVERAL = """
import gc

from sqlalchemy import create_engine
from connmon.plugin.engine import attach

one, two, directory = sys.argv[1:]
def use(engine, times):
    held = [engine.raw_connection() for _ in range(times)]
    for connection in held:
        connection.close()

a = create_engine(f"sqlite+pysqlite_connmon:///{directory}/a.db?connmon_addr={one}&connmon_program=p")
b = create_engine(f"sqlite:///{directory}/b.db?plugin=connmon&connmon_addr={one}&connmon_program=p")
c = create_engine(f"sqlite:///{directory}/c.db?plugin=connmon&connmon_addr={two}&connmon_program=p")
both = create_engine(
    f"sqlite+pysqlite_connmon:///{directory}/d.db?plugin=connmon&connmon_addr={two}&connmon_program=p"
)
shared = create_engine(f"sqlite:///{directory}/a.db", pool=a.pool)
plain = create_engine(f"sqlite:///{directory}/e.db")
for _ in range(3):
    attach(shared, addr=two)      # the pool is accounted for already, and stays where it is
    attach(a.execution_options(isolation_level="AUTOCOMMIT"), addr=two)
    attach(plain, addr=one, program="p")
use(a, 2), use(b, 3), use(c, 4), use(both, 1), use(shared, 2), use(plain, 1)
stop()
a.dispose(), both.dispose(), plain.dispose()
attach(a, addr=two)
use(a, 1)
del b
gc.collect()
stop()
"""


def test_several_engines_and_services(tmp_path: Path) -> None:
    """Engines of one process, attached in every way and repeatedly: each counts once, at its own service."""
    with running_node(tmp_path) as one, running_node(tmp_path) as two:
        with script(SEVERAL, one.address, two.address, str(tmp_path)) as process:
            process.stopped()
            shows(
                one,
                pools=3,
                connections=6,
                checked_out=0,
                connects_total=6,
                closes_total=0,
                checkouts_total=8,
            )
            shows(
                two,
                pools=2,
                connections=5,
                checked_out=0,
                connects_total=5,
                closes_total=0,
                checkouts_total=5,
            )
            process.go_on()
            process.stopped()
            shows(one, pools=2, connections=1, connects_total=7, closes_total=6, checkouts_total=9)
            shows(two, pools=2, connections=4, connects_total=5, closes_total=1, checkouts_total=5)
            (before,), (other,) = one.rows("process"), two.rows("process")
            assert (before["pid"], before["instance"] == other["instance"]) == (other["pid"], False)
        for node, done in ((one, (9, 7, 7)), (two, (5, 5, 5))):
            wait_for(lambda node=node: not node.rows("process"))  # type: ignore[misc]
            (program,) = node.rows("program")
            totals = (program["checkouts_total"], program["connects_total"], program["closes_total"])
            assert (program["state"], program["connections"], totals) == ("gone", 0, done)


LOOPS = """
import asyncio, gc
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

url = sys.argv[1]
everywhere = create_async_engine(url, poolclass=NullPool)

async def select(engine):
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))

async def own(dispose):
    engine = create_async_engine(url, pool_size=2, max_overflow=0)
    await asyncio.gather(*[select(engine) for _ in range(4)])
    if dispose:
        await engine.dispose()
    else:
        await engine.dispose(close=False)
    await select(everywhere)

async def cancelled():
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    async with engine.connect():
        waiting = asyncio.ensure_future(select(engine))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await engine.dispose()

asyncio.run(own(True))
asyncio.run(own(True))
stop()
asyncio.run(own(False))
asyncio.run(cancelled())
gc.collect()
stop()
"""


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql", "asyncpg", "psycopg_async", "aiosqlite"])
def test_event_loops_that_come_and_go(driver: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Engines of event loops that have ended, and one that outlives them: everything is counted, and nothing
    stays open that is not open at the server.
    """
    with running_node(tmp_path) as node:
        options = {"connmon_addr": node.address, "connmon_program": "p"}
        server: Server | None = None
        if driver == "aiosqlite":
            url = f"sqlite+aiosqlite_connmon:///{tmp_path}/x.db?" + "&".join(map("=".join, options.items()))
        else:
            name = "mariadb" if "my" in driver else "postgresql"
            server = request.getfixturevalue(name)
            url = server.url(f"{driver}_connmon", **options)
        with script(LOOPS, url) as process:
            process.stopped()
            shows(node, connections=0, waiting=0, connects_total=6, closes_total=6, checkouts_total=10)
            process.go_on()
            process.stopped()
            # Two more pooled, one of NullPool; then one that is held while another task's wait is cancelled.
            shows(node, connects_total=10, checkouts_total=16, checkins_total=16, waiting=0, timeouts_total=0)

            def open_at_the_server() -> bool:
                rows = node.rows("process")
                assert len(rows) == 1, rows
                row = rows[0]
                opened = node.rows("connection")
                assert row["connections"] == len(opened)
                if server is not None:
                    assert {each["server_id"] for each in opened} == {s.id for s in server.sessions()}
                return True

            wait_for(open_at_the_server, 15, "what is shown as open to be what the server has open")

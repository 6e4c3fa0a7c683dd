"""Compare the books of processes with what a node shows, for the tests of forks and of application servers.

The processes are programs in this directory, with the books of tests.support.heirs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from connmon.protocol.values import Grouping
from tests.support.heirs import Books
from tests.support.nodes import RunningNode
from tests.support.servers import Server
from tests.support.site import Spec, assert_row, at_the_end, figures
from tests.support.waiting import wait_for

GROUPINGS: tuple[Grouping, ...] = ("process", "program", "pool", "connection")
#: Seconds within which a quiet system has to show the truth.
TRUTH = 15.0


def engine(server: Server, node: RunningNode, program: str, **changes: Any) -> Spec:
    """Return the spec of a program's engine: pool_size 2, max_overflow 2, on PyMySQL.

    It has no TLS: PyMySQL creates an OpenSSL context for each connection. If another thread forks meanwhile,
    the child waits forever for OpenSSL's locks at its first connection.
    """
    options = {"connmon_addr": node.address, "connmon_program": program, "ssl_disabled": "true"}
    return {
        "name": program,
        "url": server.url("pymysql_connmon", **options),
        "driver": "pymysql",
        "size": 2,
        "overflow": 2,
        "timeout": 10.0,
        "id_query": "SELECT connection_id()",
        **changes,
    }


def same(actual: object, expected: object, name: str) -> None:
    """Assert that they are equal, with a message: pytest adds none in modules that are no tests."""
    assert actual == expected, f"{name}: {actual}, expected {expected}"


class Meetings:
    """The test's side of tests.support.heirs.meet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def books(self, name: str, processes: int) -> dict[int, Books]:
        """Wait until `processes` processes have come to the meeting, and return their books by pid."""

        def complete() -> list[Path]:
            files = list(self.directory.glob(f"{name}.*.json"))
            return files if len(files) == processes else []

        files = wait_for(complete, 30, f"{processes} processes to come to {name!r}")
        return {int(path.name.split(".")[1]): json.loads(path.read_text()) for path in files}

    def go(self, name: str) -> None:
        (self.directory / f"{name}.go").touch()


class Truth:
    """The books of one program's processes, and their comparison with what the node shows."""

    def __init__(self, node: RunningNode, server: Server, spec: Spec, program: str) -> None:
        self.node = node
        self.server = server
        self.spec = spec
        self.program = program
        self.living: dict[int, Books] = {}
        self.ended: Counter[str] = Counter()

    def update(self, books: Mapping[int, Books]) -> None:
        """Take the books of processes that the node has to show."""
        self.living.update(books)

    def has_ended(self, *pids: int, killed: bool = False) -> None:
        """Count these processes as ended, with the totals of their last books."""
        for pid in pids:
            self.ended.update(at_the_end(figures(self.spec, self.living.pop(pid)), killed))

    def equal(self, without: Collection[int] = ()) -> None:
        """Wait until the node shows the truth in every grouping.

        The sessions that it shows have to be those of the server. Sessions in `without` belong to a process
        that is not reported.
        """
        self._wait(lambda: {by: self.node.rows(by) for by in GROUPINGS}, without)

    def equal_in_snapshots(self, without: Collection[int] = ()) -> None:
        """Do the same with the real `connmon snapshot`, which takes a process for each grouping."""

        def snapshots() -> dict[Grouping, list[dict[str, Any]]]:
            return {by: document["rows"] for by, document in self.node.snapshots(GROUPINGS).items()}

        self._wait(snapshots, without)

    def _wait(
        self, look: Callable[[], dict[Grouping, list[dict[str, Any]]]], without: Collection[int]
    ) -> None:
        wait_for(lambda: self._compare(look(), without), TRUTH, "the node to show what the processes know")

    def _processes(self, rows: list[dict[str, Any]]) -> bool:
        rows = [row for row in rows if row["program"] == self.program]
        same(sorted(row["pid"] for row in rows), sorted(self.living), "processes")
        for row in rows:
            truth = figures(self.spec, self.living[row["pid"]])
            assert_row(row, truth, f"process {row['pid']}")
            same((row["pools"], row["state"]), (truth["pools"], "connected"), f"process {row['pid']}")
        return True

    def _compare(self, rows: dict[Grouping, list[dict[str, Any]]], without: Collection[int]) -> bool:
        self._processes(rows["process"])
        (program,) = [row for row in rows["program"] if row["program"] == self.program]
        sums = [figures(self.spec, books) for books in self.living.values()]
        assert_row(program, sum([*sums, self.ended], Counter()), "the program")
        state = "connected" if self.living else "gone"
        same((program["processes"], program["state"]), (len(self.living), state), "the program")
        for row in rows["pool"]:
            if row["program"] == self.program:
                truth = figures(self.spec, self.living[row["pid"]])
                assert_row(row, truth, f"the pool of process {row['pid']}")
        own = [row for row in rows["connection"] if row["program"] == self.program]
        reported = Counter((row["pid"], row["server_id"], row["state"]) for row in own)
        known = Counter(
            (pid, number, state) for pid, books in self.living.items() for number, state in books["sessions"]
        )
        same(reported, known, "connections")
        for row in own:
            assert (row["holder"] is None) == (row["state"] == "idle")
        sessions = {session.id for session in self.server.sessions()}
        same({number for _, number, _ in known} | set(without), sessions, "the server's sessions")
        return True

"""An engine whose process forks or is forked: books that distinguish inherited connections from own ones.

These books keep the rules of tests.support.work. A test cannot always send orders to the programs that use
them. Such a program meets the test in a directory: it writes its books there under the name of the meeting,
and waits until the test ends that meeting. The programs' side is in this module, and the test's side in
tests.support.truth.
"""

from __future__ import annotations

import gc
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from tests.support.work import Work

#: Seconds after which a process gives up if the test does not end the meeting.
PATIENCE = 90.0

Books = dict[str, Any]


def meet(directory: str, name: str, books: Books) -> None:
    """Write the books, and wait until the test has seen them."""
    new = Path(directory, f"{name}.{os.getpid()}.new")
    new.write_text(json.dumps(books))
    new.rename(new.with_suffix(".json"))
    deadline = time.monotonic() + PATIENCE
    while not Path(directory, f"{name}.go").exists():
        if time.monotonic() > deadline:
            os._exit(3)
        time.sleep(0.005)


class Heir(Work):
    """Work on one engine, in the process that created it or in a child."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.inherited: dict[int, Any] = {}
        self.limbo: list[Any] = []
        """What the parent held at the fork."""
        super().__init__(spec, [])

    def child(self) -> None:
        """Reset the books in a child: until now they were the parent's."""
        self.inherited |= {number: (number, ref) for number, ref in self.connections}
        self.limbo = self.kept
        self.forget()

    def hold(self, number: int = 1) -> None:
        """Hold `number` more connections."""
        for _ in range(number):
            connection = self.take()
            session = self.session_id(connection)
            connection.rollback()
            assert session is not None
            if session in self.inherited and self.inherited[session] not in self.connections:
                self.connections.append(self.inherited[session])
            self.kept.append((connection, "checked_out", session))

    def detach_last(self) -> None:
        """Detach the connection that was taken last."""
        connection, _, session = self.kept.pop()
        connection.detach()
        self.kept.append((connection, "detached", session))

    def give_back(self) -> None:
        """Return all connections."""
        while self.kept:
            self.give(self.kept.pop(0)[0])

    def drop_inherited(self) -> None:
        """Forget the parent's pool and close nothing, as SQLAlchemy advises for children."""
        self.engine.dispose(close=False)
        gc.collect()

    def queries(self, number: int) -> None:
        rng = random.Random(os.getpid())
        for _ in range(number):
            self.query(rng)

    def books(self) -> Books:
        books = self.report()
        books["adopted"] = sum(number in self.inherited for number, _ in books["sessions"])
        return books

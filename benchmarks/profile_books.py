"""The exact books of an application: which call site held a connection for how long, and where it was then.

Part of benchmarks/profile.py. Rules kept here:

- The books know nothing of connmon. They read `time.monotonic` in SQLAlchemy's own events, as close to the
  beginning and the end of a hold as there is an event: `checkout` and `checkin` of the pool.
- A visit is one call of a call site, from asking for a connection to giving it back. Who makes it notes it in
  a context variable, which threads, tasks and greenlets each have for themselves.
- In the database is: from before_cursor_execute to after_cursor_execute, and from the event of a rollback, a
  commit or a reset to the next event. Everything else is noted by `Visit.spend`, around what is called. The
  rest of a hold is SQLAlchemy, and the books themselves: `REST`.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final

from sqlalchemy import Engine, event

DATABASE: Final = "database"
WAITING: Final = "waiting"
OTHER_CONNECTION: Final = "other connection"
REST: Final = "(rest)"

Interval = tuple[str, float, float]
"""Call site, beginning and end by the monotonic clock."""


class Visit:
    """One call of a call site."""

    __slots__ = ("asked", "database_since", "held", "outer", "since", "site", "token", "where")

    def __init__(self, site: str) -> None:
        self.site = site
        self.outer: Visit | None = current.get(None)
        """The visit that this one is made in: it holds a connection already."""
        self.token = current.set(self)
        self.asked = monotonic()
        self.since = 0.0
        """When the hold began. 0.0: it has no connection yet, or no longer."""
        self.database_since = 0.0
        self.held = 0.0
        self.where: dict[str, float] = defaultdict(float)

    def spend(self, label: str, seconds: float) -> None:
        """Note where the holder was for so long."""
        visit, noted = self, label
        while True:
            if visit.since:
                visit.where[noted] += seconds
            if visit.outer is None:
                return
            visit, noted = visit.outer, OTHER_CONNECTION if label == DATABASE else label

    def timed(self, label: str, function: Callable[[], Any]) -> None:
        """Call the function, and note where that was spent."""
        began = monotonic()
        function()
        self.spend(label, monotonic() - began)

    def end(self) -> None:
        """End the visit in the thread, task or greenlet that made it."""
        current.reset(self.token)


current: ContextVar[Visit] = ContextVar("visit")


class Books:
    """What has been held and waited for in one process."""

    def __init__(self, journal: str = "") -> None:
        """`journal`: a file that gets a line for each hold when it ends, for a process that is killed."""
        self.holds: list[Interval] = []
        self.waits: list[Interval] = []
        self.where: list[tuple[str, dict[str, float]]] = []
        self._open: dict[int, Visit] = {}
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if journal else -1

    def watch(self, engine: Engine) -> None:
        """Keep books of this engine's pool."""
        event.listen(engine, "checkout", self._checkout)
        event.listen(engine, "checkin", self._checkin)
        event.listen(engine, "reset", _reset)
        event.listen(engine, "before_cursor_execute", _execute_begins)
        event.listen(engine, "after_cursor_execute", _execute_ends)
        event.listen(engine, "rollback", _database_begins)
        event.listen(engine, "commit", _database_begins)

    def _checkout(self, connection: Any, record: Any, proxy: Any) -> None:
        visit = current.get(None)
        if visit is None:
            return
        record.info["visit"] = visit
        now = monotonic()
        if "used" in record.info:
            self.waits.append((visit.site, visit.asked, now))
        record.info["used"] = True  # a new connection: the time was that of the connect
        if visit.outer is not None:
            visit.outer.spend(WAITING, now - visit.asked)
        self._open[id(visit)] = visit
        visit.since = monotonic()

    def _checkin(self, connection: Any, record: Any) -> None:
        now = monotonic()
        visit: Visit | None = record.info.pop("visit", None)
        if visit is None or not visit.since:
            return
        if visit.database_since:
            visit.spend(DATABASE, now - visit.database_since)
            visit.database_since = 0.0
        del self._open[id(visit)]
        since, visit.since = visit.since, 0.0
        visit.held += now - since
        self.holds.append((visit.site, since, now))
        self.where.append((visit.site, visit.where))
        visit.where = defaultdict(float)
        if self._journal >= 0:
            os.write(self._journal, f"{visit.site} {since} {now}\n".encode())

    def summary(self) -> dict[str, Any]:
        """Return, by call site, holds, seconds held, seconds by place, seconds waited, and waits caused.

        `open` has the moments since when its present holds go on; they are in no other figure.
        """
        sites: dict[str, dict[str, Any]] = {}

        def of(name: str) -> dict[str, Any]:
            figures: dict[str, Any] = {
                "holds": 0, "held": 0.0, "where": defaultdict(float), "waited": 0.0, "caused": 0.0,
                "open": [],
            }  # fmt: skip
            return sites.setdefault(name, figures)

        for name, began, ended in self.holds:
            of(name)["holds"] += 1
            of(name)["held"] += ended - began
        for name, places in self.where:
            for label, seconds in places.items():
                of(name)["where"][label] += seconds
        for name, began, ended in self.waits:
            of(name)["waited"] += ended - began
        for name, seconds in caused(self.holds, self.waits).items():
            of(name)["caused"] += seconds
        for visit in list(self._open.values()):
            of(visit.site)["open"].append(visit.since)
        for figures in sites.values():
            figures["where"][REST] = max(0.0, figures["held"] - sum(figures["where"].values()))
        return sites


def _execute_begins(connection: Any, cursor: Any, statement: Any, *_: Any) -> None:
    visit = current.get(None)
    if visit is not None:
        _close(visit)
        visit.database_since = monotonic()


def _execute_ends(connection: Any, cursor: Any, statement: Any, *_: Any) -> None:
    _database_ends()


def _database_begins(connection: Any) -> None:
    visit = current.get(None)
    if visit is not None:
        _close(visit)
        visit.database_since = monotonic()


def _reset(connection: Any, record: Any, state: Any) -> None:
    if state.transaction_was_reset:
        _database_ends()
    else:  # the pool sends a rollback now
        _database_begins(connection)


def _database_ends(*_: Any) -> None:
    now = monotonic()
    visit = current.get(None)
    if visit is not None:
        _close(visit, now)


def _close(visit: Visit, now: float | None = None) -> None:
    if visit.database_since:
        visit.spend(DATABASE, (monotonic() if now is None else now) - visit.database_since)
        visit.database_since = 0.0


def caused(holds: list[Interval], waits: list[Interval]) -> dict[str, float]:
    """Return the seconds of waiting that each call site caused: its part of what is held at each moment."""
    steps: list[tuple[float, int, str]] = []
    for site, began, ended in holds:
        steps += [(began, 1, site), (ended, -1, site)]
    for _, began, ended in waits:
        if ended - began > 0.001:  # else it got one at once
            steps += [(began, 1, ""), (ended, -1, "")]
    steps.sort()
    held: dict[str, int] = defaultdict(int)
    all_held = waiting = 0
    seconds: dict[str, float] = defaultdict(float)
    before = 0.0
    for at, change, site in steps:
        if waiting and all_held:
            for name, number in held.items():
                if number:
                    seconds[name] += (at - before) * waiting * number / all_held
        before = at
        if site:
            held[site] += change
            all_held += change
        else:
            waiting += change
    return seconds


@contextlib.contextmanager
def visiting(site: str) -> Iterator[Visit]:
    """Make a visit of this call site."""
    visit = Visit(site)
    try:
        yield visit
    finally:
        visit.end()

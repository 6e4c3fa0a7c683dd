"""What to ask a node for one table, and the rows of its answers. Pure.

- Only changes are asked for, where the node can tell them (all groupings, and the programs of a database).
- The node judges. A reader adds only what it alone knows: connects per second, from the reports of the
  last seconds, and OVERCOMMIT by the server maxima that it was given, where the node finds nothing graver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter, is_
from typing import Final, NamedTuple, TypeAlias

from msgspec import structs

from connmon.console import waits
from connmon.console.rows import CallSiteRow, Key, KeyedRow, Table, TableRow, program_and_host
from connmon.console.settings import DEFAULT_SETTINGS, ConsoleSettings
from connmon.protocol.document import (
    JsonCallSite,
    JsonConnection,
    JsonDatabase,
    JsonHead,
    JsonPool,
    JsonProcess,
    JsonRow,
)
from connmon.protocol.queries import RowsQuery, UsersQuery, WaitsQuery
from connmon.protocol.rows import RowKey, Rows
from connmon.protocol.snapshot import Snapshot
from connmon.reader.server_maxima import judged_by

Maxima: TypeAlias = Mapping[tuple[str, int | None], int]

#: The tables whose rows have a history.
TABLES_WITH_HISTORY: Final[tuple[Table, ...]] = ("program", "host", "database", "process")
#: Two reports of one row are at least so many seconds apart: the time of one is known to a millisecond or so.
_REPORTS_APART_SECONDS: Final = 0.1


class Want(NamedTuple):
    """The rows that a table shows."""

    by: Table
    host: str | None = None
    program: str | None = None
    instance: str | None = None
    database: RowKey | None = None
    """Programs only: those that use the database with this row key."""
    pool: str | None = None
    """Connections only: those of pools with this URL."""
    call_site: str | None = None
    """Call sites: this one. Connections: those that this call site has taken."""
    held: bool = False
    """Connections only: those that somebody holds."""


#: What is asked for where only the head of the answer is wanted.
HEAD: Final = Want("host")


class Source:
    """Follows a node's answers for one table; not for `node`, which no single node can answer."""

    def __init__(
        self, want: Want, maxima: Maxima | None = None, settings: ConsoleSettings = DEFAULT_SETTINGS
    ) -> None:
        self._want = want
        self._maxima = maxima or {}
        self._settings = settings
        self._connects: dict[RowKey, deque[tuple[float, int]]] = {}
        """The last reports of each row: when, and the connects so far."""
        self._call_sites: dict[Key, CallSiteRow] = {}
        """The rows of the last call: a row of which nothing has changed stays the same object."""
        self._keyed_call_sites: list[KeyedRow] = []
        narrow = (want.host, want.program, want.instance)
        assert want.by != "node"
        self._snapshots: tuple[Snapshot, ...]
        if want.by == "wait":
            self._snapshots = (Snapshot("pool"), Snapshot("connection"))
        elif want.by in ("connection", "site"):
            self._snapshots = (Snapshot(want.by, *narrow),)
        else:
            self._snapshots = (Snapshot(want.by, *narrow, derive=self._derive),)

    def __repr__(self) -> str:
        return f"<Source of {self._want}>"

    def question(self) -> RowsQuery:
        """Return what to ask next."""
        query = self._snapshots[0].query()
        if self._want.by == "wait":
            return WaitsQuery(self._held_seconds())
        if self._want.database is not None:
            _, dialect, host, port, database = self._want.database
            return UsersQuery(
                dialect=str(dialect),
                database_host=_text(host),
                database_port=port if isinstance(port, int) else None,
                database=_text(database),
                epoch=query.epoch,
                since=query.since,
            )
        return query

    def _held_seconds(self) -> float:
        """Return how long connections are held that are asked for: less where LEAK or BLOCKED may be found.

        The node has its own limit for these verdicts; `waits` then selects by the verdicts.
        """
        header = self._snapshots[0].header
        if header is None or any(word in waits.STUCK for word, _ in header.verdicts):
            return waits.HELD_LEAST_SECONDS
        return waits.HELD_LONG_SECONDS

    def apply(self, rows: Rows) -> None:
        """Take one frame of an answer."""
        for snapshot in self._snapshots:
            snapshot.apply(rows)

    def head(self) -> JsonHead:
        """Return who answered, and the totals. Raises ValueError before the first whole answer."""
        return self._snapshots[0].typed_head()

    @property
    def rows_left_out(self) -> int:
        """How many pools and holders the node's limits leave out of its answer about waits."""
        header = self._snapshots[0].header
        return header.left_out if self._want.by == "wait" and header is not None else 0

    def rows(self, seen: Collection[Key] | None = None) -> Sequence[KeyedRow]:
        """Return the rows, in the order of their names; `seen` as in `Snapshot.typed_rows`."""
        want = self._want
        if want.by == "site":
            call_sites = self._with_waiters(self._snapshots[0].typed_rows(seen))
            return (
                call_sites if want.call_site is None else [row for row in call_sites if belongs(want, row[1])]
            )
        rows = _of_tables(self._snapshots[0].typed_rows(seen))
        if want.by == "wait":
            return waits.waits(rows, _of_tables(self._snapshots[1].typed_rows()))
        if want.by == "database" and self._maxima:
            return _judged(rows, self._maxima)
        if len(self._connects) > 2 * len(rows) + 100:  # rows that are no longer there
            there = {key for key, _ in rows}
            self._connects = {key: reports for key, reports in self._connects.items() if key in there}
        # The node narrows by host, program and instance, but not the programs of a database.
        narrower = want.pool or want.call_site or want.held or (want.database and want.program)
        return [row for row in rows if belongs(want, row[1])] if narrower else rows

    def _with_waiters(self, rows: Sequence[tuple[Key, JsonRow]]) -> list[KeyedRow]:
        """Return call sites with how many wait for a connection in the same program on the same host."""
        sites = [row for _, row in rows if isinstance(row, JsonCallSite)]
        known = self._call_sites.values()
        if len(sites) == len(known) and all(map(is_, sites, map(attrgetter("site"), known))):
            return self._keyed_call_sites
        waiting: dict[Key, int] = {}
        for site in sites:
            if site.waiting_now:
                program = site.host, site.program
                waiting[program] = waiting.get(program, 0) + site.waiting_now
        before, call_sites = self._call_sites, {}
        for (key, _), site in zip(rows, sites, strict=True):
            waiters = waiting.get((site.host, site.program), 0) if waiting else 0
            row = before.get(key)
            if row is None or row.site is not site or row.waiting_in_program != waiters:
                row = CallSiteRow(site=site, waiting_in_program=waiters)
            call_sites[key] = row
        self._call_sites = call_sites
        self._keyed_call_sites = [*call_sites.items()]
        return self._keyed_call_sites

    def _derive(self, key: RowKey, row: JsonRow) -> JsonRow:
        """Return the row with its connects per second, which the node does not know."""
        if isinstance(row, JsonConnection | JsonCallSite):
            return row
        figures = row.figures
        rate = self._connect_rate(
            key, row.state == "connected", figures.last_report_seconds, figures.connects_total
        )
        return structs.replace(row, connects_per_second=rate)

    def _connect_rate(
        self, key: RowKey, connected: bool, report_age: float | None, connects: int | None
    ) -> float | None:
        """Return the connects per second of a row. None: unknown, as before its second report."""
        header = self._snapshots[0].header
        if header is None or report_age is None or connects is None or not connected:
            self._connects.pop(key, None)
            return None
        window = self._settings.connects_window_seconds
        reports = self._connects.setdefault(key, deque())
        at = header.clock + header.stale - report_age
        # A total that falls is of another life of the row; a time that falls is a replay that went back.
        if reports and (connects < reports[-1][1] or at < reports[-1][0] - window):
            reports.clear()
        if not reports or at > reports[-1][0] + _REPORTS_APART_SECONDS:
            reports.append((at, connects))
        while len(reports) > 2 and reports[-1][0] - reports[1][0] >= window:
            reports.popleft()
        (began, first), (ended, last) = reports[0], reports[-1]
        if ended <= began or report_age > self._settings.connects_valid_seconds:
            return None
        return (last - first) / (ended - began)


def belongs(want: Want, row: TableRow) -> bool:
    """Whether a row is one of those that are wanted."""
    program, host = program_and_host(row)
    if want.host not in (None, host) or want.program not in (None, program):
        return False
    if isinstance(row, CallSiteRow):
        return want.call_site in (None, row.site.call_site)
    if not isinstance(row, JsonProcess | JsonPool | JsonConnection):
        return True
    if want.instance not in (None, row.process.instance):
        return False
    if isinstance(row, JsonPool | JsonConnection) and want.pool not in (None, row.pool.pool):
        return False
    if isinstance(row, JsonConnection):
        return want.call_site in (None, row.call_site) and not (want.held and row.held_seconds is None)
    return True


def _of_tables(rows: Sequence[tuple[Key, JsonRow]]) -> Sequence[KeyedRow]:
    """Return the same rows, none of which is a call site."""
    return rows  # type: ignore[return-value]


def _judged(rows: Sequence[KeyedRow], maxima: Maxima) -> list[KeyedRow]:
    """Return database rows judged by the maxima of their servers too."""
    databases = [row for _, row in rows if isinstance(row, JsonDatabase)]
    judged = judged_by(databases, maxima)
    return [(key, row) for (key, _), row in zip(rows, judged, strict=True)]


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)

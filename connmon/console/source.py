"""What to ask a node for one table, and the rows that its answers make. Pure.

Rules kept here:

- Only what changed is asked for, where the node can tell (all groupings, and the programs of a database).
- Verdicts are the node's. What a reader adds is what it alone can know: how many connections are made in a
  second, from the answers of the last seconds, and whether pools may open more connections than the maxima of
  database servers that it was given, where the node finds nothing wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.console import aggregate
from connmon.console.columns import WAIT_THERE, Table
from connmon.console.fitting import Row
from connmon.protocol.queries import RowsQuery, UsersQuery, WaitsQuery
from connmon.protocol.rows import RowKey, Rows
from connmon.protocol.snapshot import Snapshot
from connmon.reader.server_maxima import judged_by

Key: TypeAlias = tuple[Any, ...]
Maxima: TypeAlias = Mapping[tuple[str, int | None], int]

#: The tables whose rows have a history.
REMEMBERED: Final[tuple[Table, ...]] = ("program", "host", "database", "process")
#: Seconds of reports from which connects a second are known.
WINDOW: Final = 10.0
#: Seconds after its last report for which a row's connects a second still hold: the default lease.
SILENT: Final = 15.0


class Want(NamedTuple):
    """The rows that a pane shows."""

    by: Table
    host: str | None = None
    program: str | None = None
    instance: str | None = None
    database: RowKey | None = None
    """Of programs: only those that use this database, by its row's key."""
    pool: str | None = None
    """Of connections: only those of pools with this URL."""
    call_site: str | None = None
    """Of connections: only those that this line has taken."""
    held: bool = False
    """Of connections: only those that somebody holds."""


class Source:
    """Follows a node's answers for one table; not for `node`, which no single node can answer."""

    def __init__(self, want: Want, maxima: Maxima | None = None) -> None:
        self._want = want
        self._maxima = maxima or {}
        self._connects: dict[RowKey, deque[tuple[float, int]]] = {}
        narrow = (want.host, want.program, want.instance)
        assert want.by != "node"
        self._snapshots: tuple[Snapshot, ...]
        if want.by == "wait":
            self._snapshots = (Snapshot("pool"), Snapshot("connection"))
        elif want.by in ("connection", "site"):
            self._snapshots = (Snapshot(want.by, *narrow),)
        else:
            self._snapshots = (Snapshot(want.by, *narrow, derive=self._add),)

    def question(self) -> RowsQuery:
        """Return what to ask next."""
        query = self._snapshots[0].query()
        if self._want.by == "wait":
            return WaitsQuery(self._held())
        if self._want.database is not None:
            _, dialect, host, port, database = self._want.database
            return UsersQuery(
                str(dialect), _text(host), _count(port), _text(database), query.epoch, query.since
            )
        return query

    def _held(self) -> float:
        """Return from how long on holds are asked for: where something may be LEAK or BLOCKED, the least.

        From how long on the node judges is its own; `aggregate.waits` then chooses by its verdicts.
        """
        header = self._snapshots[0].header
        if header is None or any(word in aggregate.STUCK for word, _ in header.verdicts):
            return aggregate.HELD_LEAST
        return aggregate.HELD_LONG

    def apply(self, rows: Rows) -> None:
        """Take one frame of an answer."""
        for snapshot in self._snapshots:
            snapshot.apply(rows)

    def head(self) -> dict[str, Any]:
        """Return who answered, and the totals: the document of the JSON contract without rows.

        Of waits also `rows_left_out`: pools and holders that the node's limits leave out of its answer.
        """
        head = self._snapshots[0].head()
        header = self._snapshots[0].header
        if self._want.by == "wait" and header is not None:
            head["rows_left_out"] = header.left_out
        return head

    def rows(self, seen: Container[Key] | None = None) -> list[tuple[Key, Row]]:
        """Return the rows, in the order of their names; `seen` as in `Snapshot.keyed_rows`."""
        rows: list[tuple[Key, Row]] = list(self._snapshots[0].keyed_rows(seen))
        want = self._want
        if want.by == "wait":
            return aggregate.waits(rows, list(self._snapshots[1].keyed_rows()))
        if want.by == "site":
            return _with_waiters(rows)
        if want.by == "database" and self._maxima:
            judged = judged_by([row for _, row in rows], self._maxima)
            return [(key, row) for (key, _), row in zip(rows, judged, strict=True)]
        if len(self._connects) > 2 * len(rows) + 100:  # rows that are no longer there
            there = {key for key, _ in rows}
            self._connects = {key: past for key, past in self._connects.items() if key in there}
        # The node has seen to host, program and instance, but not of the programs of a database.
        narrower = want.pool or want.call_site or want.held or (want.database and want.program)
        return [pair for pair in rows if belongs(want, pair[1])] if narrower else rows

    def _add(self, key: RowKey, cells: dict[str, Any]) -> None:
        """Add what the node does not tell to a row's cells."""
        cells["connects_per_second"] = self._connect_rate(key, cells)

    def _connect_rate(self, key: RowKey, cells: Mapping[str, Any]) -> float | None:
        """Return how many connections it makes in a second. None: not known, as before a second report."""
        header = self._snapshots[0].header
        ago, total = cells.get("last_report_seconds"), cells.get("connects_total")
        if header is None or ago is None or total is None or cells.get("state") != "connected":
            self._connects.pop(key, None)
            return None
        past = self._connects.setdefault(key, deque())
        at = header.clock + header.stale - ago
        if past and (total < past[-1][1] or at < past[-1][0] - WINDOW):  # another life, or a replay went back
            past.clear()
        # Of one report the time is known to a millisecond or so: what is no later is no other one.
        if not past or at > past[-1][0] + 0.1:
            past.append((at, total))
        while len(past) > 2 and past[-1][0] - past[1][0] >= WINDOW:
            past.popleft()
        (began, first), (ended, last) = past[0], past[-1]
        return None if ended <= began or ago > SILENT else (last - first) / (ended - began)


def belongs(want: Want, row: Row) -> bool:
    """Tell whether a row is one of those that are wanted."""
    return (
        want.host in (None, row.get("host"))
        and want.program in (None, row.get("program"))
        and want.instance in (None, row.get("instance"))
        and want.pool in (None, row.get("pool"))
        and want.call_site in (None, row.get("call_site"))
        and not (want.held and row.get("held_seconds") is None)
    )


def _with_waiters(rows: list[tuple[Key, Row]]) -> list[tuple[Key, Row]]:
    """Add to lines of code how many wait for connections in the same program on the same host."""
    waiting: dict[Key, int] = {}
    for key, row in rows:
        waiting[key[1:3]] = waiting.get(key[1:3], 0) + (row.get("waiting_now") or 0)
    return [(key, {**row, WAIT_THERE: waiting[key[1:3]]}) for key, row in rows]


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _count(value: str | int | None) -> int | None:
    return value if isinstance(value, int) else None

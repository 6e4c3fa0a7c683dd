"""What to ask a node for one table, and the rows that its answers make. Pure.

Rules kept here:

- Only what changed is asked for, where the node can tell (all groupings, and the programs of a database).
- Rows leave here judged: verdict and reason are in their cells. What a verdict needs beyond the row (the
  timeouts of the last minutes, the maxima of the database servers) is handed in before.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.console import merging, tables
from connmon.console.columns import Row
from connmon.console.tables import Table
from connmon.model import RowKey, Rows, RowsQuery, UsersQuery, WaitsQuery
from connmon.snapshot import Snapshot
from connmon.verdicts import HELD_LONG, with_server_maxima

Key: TypeAlias = tuple[Any, ...]
Maxima: TypeAlias = Mapping[tuple[str, int | None], int]

#: The tables whose rows have a history.
REMEMBERED: Final[tuple[Table, ...]] = ("program", "host", "database", "process")


class Want(NamedTuple):
    """The rows that a pane shows."""

    by: Table
    host: str | None = None
    program: str | None = None
    instance: str | None = None
    database: RowKey | None = None
    """Of programs: only those that use this database, by its row's key."""


class Source:
    """Follows a node's answers for one table; not for `node`, which no single node can answer."""

    def __init__(self, want: Want, maxima: Maxima | None = None) -> None:
        self._want = want
        self._maxima = maxima or {}
        self._recent: Mapping[RowKey, int] = {}
        self._otherwise: int | None = None
        """The timeouts of a row that is not in there."""
        narrow = (want.host, want.program, want.instance)
        assert want.by != "node"
        self._snapshots: tuple[Snapshot, ...]
        if want.by == "wait":
            self._snapshots = (Snapshot("pool", derive=self._judge), Snapshot("connection"))
        elif want.by == "connection":
            self._snapshots = (Snapshot("connection", *narrow),)
        else:
            self._snapshots = (Snapshot(want.by, *narrow, derive=self._judge),)

    def question(self) -> RowsQuery:
        """Return what to ask next."""
        query = self._snapshots[0].query()
        if self._want.by == "wait":
            return WaitsQuery(HELD_LONG)
        if self._want.database is not None:
            _, dialect, host, port, database = self._want.database
            return UsersQuery(
                str(dialect), _text(host), _count(port), _text(database), query.epoch, query.since
            )
        return query

    def apply(self, rows: Rows) -> None:
        """Take one frame of an answer."""
        for snapshot in self._snapshots:
            snapshot.apply(rows)

    def remember(self, timeouts: Mapping[RowKey, int], complete: bool = True) -> None:
        """Which rows had timeouts lately, and how many; `complete`: the others had none."""
        otherwise = 0 if complete else None
        if timeouts != self._recent or otherwise != self._otherwise:
            self._recent, self._otherwise = timeouts, otherwise
            for snapshot in self._snapshots:
                snapshot.remake()

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
        if self._want.by == "wait":
            return merging.waits(rows, list(self._snapshots[1].keyed_rows()))
        if self._want.database is not None and self._want.program is not None:
            return [pair for pair in rows if pair[1]["program"] == self._want.program]
        if self._want.by == "database" and self._maxima:
            judged = with_server_maxima([row for _, row in rows], self._maxima)
            for row in judged:
                tables.judged(row, row.get("recent_timeouts"))
            return [(key, row) for (key, _), row in zip(rows, judged, strict=True)]
        return rows

    def _judge(self, key: RowKey, cells: dict[str, Any]) -> None:
        recent = self._recent.get(("process", key[1]) if key[0] == "pool" else key, self._otherwise)
        tables.judged(cells, recent)


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _count(value: str | int | None) -> int | None:
    return value if isinstance(value, int) else None

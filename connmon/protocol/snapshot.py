"""What a reader has of one grouping. Pure: no I/O, no time.

`Snapshot` follows a node's answers and makes the document of the JSON contract of them.

- An answer counts only when its last frame is there. One that broke off leaves no trace, and
  is asked again from the same version.
- How long ago something was is the replica's clock, and for how long that has stood still (`stale`), minus
  the row's own time; never negative. How long something has gone on that may have ended since (a hold, a
  wait) is as of the last report of its process, and never longer: see `Figures`. Floats have three digits,
  quantiles nine. What is not known is None, never 0.
- Of a process that is lost, and of its pools, the present is not known (`PRESENT`, and the
  process's own usage); maxima and totals are. The same where all processes of a program, a host, a database
  or of everything are lost; where some are, figures are sums over the others. A connection of a lost process
  keeps what was last heard of it, but its `state` and `held_seconds` are not known.
- `left_out` is how many pools and connections a limit leaves out, None where it leaves out none; of the
  totals, processes as well.
- Where nobody waits or holds anything, `longest_*_seconds` is 0.0: that is known.
- `capacity` is None as soon as one of the pools has no limit.
- A row's cells are made anew only when something of it has changed. Of the others only ages go
  on, so that following thousands of quiet rows costs next to nothing. Cells once handed out do not change.

Which figures a row has: all `FIGURES`, but process rows are without processes and max_processes
(a process is one process), pool rows without these and pools, and connection rows without any.
`totals` has all of them in every grouping, with hosts and programs in front.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final, TypeAlias

from connmon.protocol.document import FigureFields, JsonHead, JsonRow, JsonTotals, typed
from connmon.protocol.keys import FIGURES, KEYS, POOL, PRESENT, PROCESS, QUANTILES, USAGE, VERDICT
from connmon.protocol.queries import Query
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    Figures,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Quantiles,
    Row,
    RowKey,
    Rows,
    SiteRow,
)
from connmon.protocol.text import short_age
from connmon.protocol.values import LOST, Grouping

__all__ = ["FIGURES", "KEYS", "PRESENT", "QUANTILES", "Cells", "Derive", "Snapshot", "figure_cells"]

Cells: TypeAlias = dict[str, Any]
Derive: TypeAlias = Callable[[RowKey, Cells], None]


class _Made:
    """The cells of a row, and what they were made of."""

    __slots__ = ("cells", "clock", "key", "order", "parts")

    def __init__(
        self, key: RowKey, parts: tuple[Row | None, ...], order: tuple[Any, ...], cells: Cells, clock: float
    ) -> None:
        self.key, self.order, self.cells, self.clock = key, order, cells, clock
        self.parts = parts
        """The row itself, and where it has them the rows of its process and its pool."""

    def of(self, parts: tuple[Row | None, ...]) -> bool:
        """Whether it was made of these very rows."""
        mine = self.parts
        return (
            mine[0] is parts[0] and mine[-1] is parts[-1] and mine[len(mine) // 2] is parts[len(parts) // 2]
        )


#: Seconds by which the ages of rows that nobody sees may be behind.
UNSEEN: Final = 15.0
#: No age is shown as longer than this (seconds), whatever a peer says.
LONGEST: Final = 1e12

_UNKNOWN_PRESENT: Final[Cells] = dict.fromkeys(PRESENT)
_WELL: Final[Cells] = dict.fromkeys(VERDICT)
_UNKNOWN_USAGE: Final[Cells] = dict.fromkeys(USAGE)
_UNKNOWN_PROCESS: Final[Cells] = dict.fromkeys(PROCESS)
_UNKNOWN_POOL: Final[Cells] = dict.fromkeys(POOL)


class Snapshot:
    """What a reader has of one grouping; `host`, `program` and `instance` narrow it."""

    def __init__(
        self,
        by: Grouping,
        host: str | None = None,
        program: str | None = None,
        instance: str | None = None,
        derive: Derive | None = None,
    ) -> None:
        """`derive`, where given, adds keys of its own to the cells of a row whenever these are made."""
        self.by: Final = by
        self.header: Rows | None = None
        """The last frame of the last complete answer. None: there was none yet."""
        self._derive = derive
        self._sums = False
        """Whether sums of several pools have rows by pool."""
        self._narrow = (host, program, instance)
        self._epoch = ""
        self._since = 0
        self._rows: dict[RowKey, Row] = {}
        self._made: dict[RowKey, _Made] = {}
        self._ordered: list[_Made] | None = None
        """In the order in which they are shown. None: rows have changed since."""
        self._answer: tuple[str, str, int, bool] | None = None
        self._coming: dict[RowKey, Row | None] = {}  # None: removed

    def query(self) -> Query:
        """Return what to ask next: everything that changed since the last complete answer."""
        return Query(self.by, self._epoch, self._since, *self._narrow)

    def apply(self, rows: Rows) -> None:
        """Take one frame of an answer; with its last frame the whole answer takes effect."""
        answer = (rows.node, rows.epoch, rows.version, rows.complete)
        if answer != self._answer:  # else: the same answer, or the same asked again
            self._answer = answer
            self._coming = {}
        coming = self._coming
        for key in rows.removed:
            coming.setdefault(key, None)  # a row that is there was removed before it came back
        for row in rows.rows:
            coming[row.key] = row
        if rows.more:
            return
        if coming or rows.complete or rows.epoch != self._epoch:
            self._ordered = None
        if rows.complete or rows.epoch != self._epoch:
            self._rows, self._made = {}, {}
        for key, changed in coming.items():
            if changed is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = changed
        self._epoch, self._since, self.header = rows.epoch, rows.version, rows
        self._answer, self._coming = None, {}

    def document(self) -> dict[str, Any]:
        """Return the document of the JSON contract.

        Raises ValueError while there is no complete answer yet.
        """
        return {**self.head(), "rows": self.rows()}

    def head(self) -> dict[str, Any]:
        """Return the document without its rows. Raises as `document` does."""
        header = self.header
        if header is None:
            raise ValueError("no complete answer was applied yet")
        return {
            "service": header.service,
            "node": header.node,
            "leader": header.leader,
            "quorum": header.quorum,
            "stale_seconds": round(header.stale, 3),
            "totals": {
                "hosts": header.hosts,
                "programs": header.programs,
                **figure_cells(header.totals, _now(header)),
                "verdicts": dict(header.verdicts),
            },
        }

    def rows(self) -> list[Cells]:
        """Return the rows of the document; empty while there is no complete answer."""
        return [cells for _, cells in self.keyed_rows()]

    def pool_rows(self) -> list[Cells]:
        """Return the rows by pool, which came with those by connection; for the same moment's sake.

        With those of sums of several pools, which have `pools`: how many these are.
        """
        pools = Snapshot("pool")
        pools._sums = True
        pools.header, pools._rows = self.header, self._rows
        return pools.rows()

    def typed_rows(self, seen: Container[RowKey] | None = None) -> list[tuple[RowKey, JsonRow]]:
        """Return the rows, each with the key that it keeps for as long as it lives; `seen` as below."""
        return [(key, typed(self.by, cells)) for key, cells in self.keyed_rows(seen)]

    def typed_head(self) -> JsonHead:
        """Return the document without its rows. Raises ValueError while there is no complete answer yet."""
        head = self.head()
        totals = head["totals"]
        figures = FigureFields(**{key: totals.get(key) for key in FigureFields.__struct_fields__})
        return JsonHead(
            service=head["service"],
            node=head["node"],
            leader=head["leader"],
            quorum=head["quorum"],
            stale_seconds=head["stale_seconds"],
            totals=JsonTotals(
                hosts=totals["hosts"],
                programs=totals["programs"],
                figures=figures,
                verdicts=totals["verdicts"],
            ),
        )

    def keyed_rows(self, seen: Container[RowKey] | None = None) -> list[tuple[RowKey, Cells]]:
        """Return the rows, each with the key that it keeps for as long as it lives.

        `seen`, where given, are the keys of rows on a screen: of other rows ages may be up to
        `UNSEEN` seconds old, where nothing else of them has changed.
        """
        if self.header is None:
            return []
        clock = _now(self.header)
        if self._ordered is None:
            made: dict[RowKey, _Made] = {}
            for key, parts in self._parts():
                before = self._made.get(key)
                if before is None or not before.of(parts):
                    before = self._make(key, parts, clock)
                made[key] = before
            self._made = made
            self._ordered = sorted(made.values(), key=attrgetter("order"))
        for each in self._ordered:
            if each.clock != clock and (seen is None or clock - each.clock > UNSEEN or each.key in seen):
                each.cells, each.clock = self._aged(each, clock), clock
        return [(each.key, each.cells) for each in self._ordered]

    def remake(self) -> None:
        """Make the cells of all rows anew next time: what `derive` adds to them has changed."""
        self._made.clear()
        self._ordered = None

    def _parts(self) -> Iterable[tuple[RowKey, tuple[Row | None, ...]]]:
        """The rows of the grouping, each with those of its process and pool."""
        kind = _KINDS[self.by]
        rows = self._rows
        if self.by in ("pool", "connection"):
            for key, row in rows.items():
                if not isinstance(row, kind):
                    continue
                assert isinstance(row, PoolRow | ConnectionRow)
                if isinstance(row, PoolRow) and row.info.several and not self._sums:
                    continue
                pool = row if isinstance(row, PoolRow) else rows.get(("pool", row.instance, row.pool))
                yield key, (row, rows.get(("process", row.instance)), pool)
        else:
            for key, row in rows.items():
                if isinstance(row, kind):
                    yield key, (row,)

    def _make(self, key: RowKey, parts: tuple[Row | None, ...], clock: float) -> _Made:
        row = parts[0]
        if isinstance(row, PoolRow | ConnectionRow):
            process, pool = parts[1:]
            reported: float | None = None
            if isinstance(process, ProcessRow):
                order, identity = _order(process), _process(process, clock)
                reported = None if process.state == LOST else process.figures.reported
                lost = process.state == LOST
            else:
                order, identity, lost = _stranger(row.instance)
            if isinstance(row, PoolRow):
                figures = _figures_of_one(row.figures, clock, row.state != LOST)
                if not row.info.several:
                    del figures["pools"]
                order = (*order, row.number)
                cells = {**identity, **_pool(row), "state": row.state, **figures}
                cells.update(_verdict_cells(row.figures, clock))
            else:
                order = (*order, row.pool, row.number)
                where = _pool(pool) if isinstance(pool, PoolRow) else _UNKNOWN_POOL
                if row.server is not None:  # another one than its pool's
                    host, port = row.server
                    where = {**where, "database_host": host, "database_port": port}
                cells = {**identity, **where, **_connection(row, clock, lost, reported)}
        elif isinstance(row, ProcessRow):
            order = _order(row)
            figures = _figures_of_one(row.figures, clock, row.state != LOST)
            cells = {**_process(row, clock), "state": row.state, **figures}
            cells.update(_verdict_cells(row.figures, clock))
        elif isinstance(row, SiteRow):
            order, cells = (row.host, row.program, row.call_site), _site(row)
        else:
            assert isinstance(row, ProgramRow | HostRow | DatabaseRow)
            head, order = _group(key, row)
            cells = {**head, "state": row.state, **figure_cells(row.figures, clock)}
            cells.update(_verdict_cells(row.figures, clock))
        if self._derive is not None:
            self._derive(key, cells)
        return _Made(key, parts, order, cells, clock)

    def _aged(self, made: _Made, clock: float) -> Cells:
        """Return the cells of a row of which nothing has changed but ages."""
        row = made.parts[0]
        process = row if isinstance(row, ProcessRow) else made.parts[len(made.parts) // 2]
        assert row is not None
        cells = dict(made.cells)
        if isinstance(process, ProcessRow) and process.started is not None:
            cells["started_seconds"] = _age(clock, process.started)
        if isinstance(row, ConnectionRow):
            cells["age_seconds"] = _age(clock, row.opened)
            return cells
        if isinstance(row, SiteRow):
            return cells
        if row.figures.reported is not None:
            cells["last_report_seconds"] = _age(clock, row.figures.reported)
            if row.figures.verdicts:
                cells.update(_verdict_cells(row.figures, clock))
        if self._derive is not None:
            self._derive(made.key, cells)
        return cells


#: What rows of each grouping are.
_KINDS: Final[Mapping[Grouping, type[Row]]] = {
    "program": ProgramRow,
    "host": HostRow,
    "database": DatabaseRow,
    "process": ProcessRow,
    "pool": PoolRow,
    "connection": ConnectionRow,
    "site": SiteRow,
}


def _age(clock: float, since: float) -> float:
    return round(min(max(0.0, clock - since), LONGEST), 3)


def _lasted(reported: float | None, since: float | None) -> float | None:
    """Return for how long it had gone on at the last report. None: nothing goes on, or it is not known."""
    return None if reported is None or since is None else _age(reported, since)


def _now(header: Rows) -> float:
    """Return the time by the replica's clock, had that not stood still since it was last moved."""
    return header.clock + header.stale


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _sortable(key: RowKey) -> tuple[Any, ...]:
    """None before everything, so that keys with and without it can be compared."""
    return tuple((part is not None, part if part is not None else 0) for part in key)


def _order(row: ProcessRow) -> tuple[Any, ...]:
    return (row.process.host, row.process.program, row.process.pid, row.instance)


def _stranger(instance: str) -> tuple[tuple[Any, ...], Cells, bool]:
    """Of a process whose row did not come."""
    return ("", "", 0, instance), {**_UNKNOWN_PROCESS, "instance": instance}, False


def _group(key: RowKey, row: ProgramRow | HostRow | DatabaseRow) -> tuple[Cells, tuple[Any, ...]]:
    """Return what identifies a group, and where it sorts."""
    if isinstance(row, ProgramRow):
        return {"host": row.host, "program": row.program}, (row.host, row.program)
    if isinstance(row, HostRow):
        return {"host": row.host, "programs": row.programs}, (row.host, "")
    return {**_database(row), "programs": row.programs}, _sortable(key)


def _connection(row: ConnectionRow, clock: float, lost: bool, reported: float | None) -> Cells:
    """`reported` is when its process last did; None: not known, or what it said then holds no more."""
    return {
        "connection": row.number,
        "server_id": row.server_id,
        "state": None if lost else row.state,
        "age_seconds": _age(clock, row.opened),
        "held_seconds": _lasted(reported, row.held_since),
        "holder": row.holder,
        "call_site": row.call_site,
        "stack": list(row.stack),
        "holder_in": row.holder_in,
        "holder_site": row.holder_site,
        "verdict": row.verdict,
    }


def _site(row: SiteRow) -> Cells:
    known = row.processes > 0  # else they are all lost
    return {
        "host": row.host,
        "program": row.program,
        "call_site": row.call_site,
        "processes": row.processes,
        "held_now": row.held if known else None,
        "in_database_now": row.in_database if known else None,
        "waiting_now": row.waiting if known else None,
        "holds_total": row.holds,
        "hold_seconds_total": round(row.hold_ms / 1000.0, 3),
        "database_seconds_total": None,  # not known, as the next
        "share": None,
        "longest_held_seconds": (_lasted(row.reported, row.held_since) or 0.0) if known else None,
        "usual_held_seconds": None if row.usual is None else round(row.usual, 9),
        "estimated": row.estimated,
        "verdict": row.verdict,
        "verdict_reason": row.reason,
    }


def _verdict_cells(figures: Figures, clock: float) -> Cells:
    """Return the gravest word and all reasons; for how long nothing was heard is known here alone."""
    found = figures.verdicts
    if not found:
        return _WELL
    reasons = [
        f"nothing heard for {short_age(_age(clock, figures.reported))}: {reason}"
        if word == "LOST" and figures.reported is not None
        else reason
        for word, reason in [(verdict.word, verdict.reason) for verdict in found]
    ]
    others = [f"{verdict.word}: {reason}" for verdict, reason in zip(found[1:], reasons[1:], strict=True)]
    return {"verdict": found[0].word, "verdict_reason": "; ".join([reasons[0], *others])}


def _process(row: ProcessRow, clock: float) -> Cells:
    process, usage = row.process, row.usage
    cells: Cells = {
        "host": process.host,
        "program": process.program,
        "pid": process.pid,
        "instance": row.instance,
        "ppid": process.ppid,
        "node": row.node,
        "user": process.user,
        "command": process.command,
        "started_seconds": None if row.started is None else _age(clock, row.started),
        "container": process.container,
        "cpu_percent": _round(usage.cpu_percent),
        "rss_bytes": usage.rss_bytes,
        "threads": usage.threads,
        "open_files": usage.open_files,
    }
    if row.state == LOST:
        cells.update(_UNKNOWN_USAGE)
    return cells


def _pool(row: PoolRow) -> Cells:
    info = row.info
    return {
        "pool": info.url,
        "pool_class": info.pool_class or None,
        "pool_size": info.pool_size,
        "max_overflow": info.max_overflow,
        "timeout_seconds": _round(info.timeout),
        "dialect": info.dialect,
        "database_host": info.database_host,
        "database_port": info.database_port,
        "database": info.database,
        "pooler": info.pooler,
    }


def _database(row: DatabaseRow) -> Cells:
    return {
        "dialect": row.dialect,
        "database_host": row.database_host,
        "database_port": row.database_port,
        "database": row.database,
    }


def figure_cells(figures: Figures, now: float, quantiles: bool = True) -> Cells:
    """Return the `FIGURES` of a row, with quantiles or without; `now` is by the replica's clock."""
    gauges, totals, reported = figures.gauges, figures.totals, figures.reported
    waited = _lasted(reported, figures.waiting_since) or 0.0
    cells: Cells = {
        "processes": figures.processes,
        "max_processes": figures.max_processes,
        "pools": gauges.pools,
        "capacity": None if gauges.unbounded else gauges.capacity,
        "connections": gauges.connections,
        "max_connections": figures.max_connections,
        "checked_out": gauges.checked_out,
        "max_checked_out": figures.max_checked_out,
        "idle": gauges.idle,
        "overflow": gauges.overflow,
        "detached": gauges.detached,
        "waiting": gauges.waiting,
        "max_waiting": figures.max_waiting,
        "longest_wait_seconds": round(max(figures.longest_wait, waited), 3),
        "longest_held_seconds": _lasted(reported, figures.held_since) or 0.0,
        "connects_total": totals.connects,
        "closes_total": totals.closes,
        "checkouts_total": totals.checkouts,
        "checkins_total": totals.checkins,
        "invalidations_total": totals.invalidations,
        "timeouts_total": totals.timeouts,
        "connect_errors_total": totals.connect_errors,
        "checkouts_per_second": _round(figures.checkouts_per_second),
        "last_report_seconds": None if reported is None else _age(now, reported),
    }
    if quantiles:
        cells.update(_quantiles("wait", figures.waits))
        cells.update(_quantiles("held", figures.holds))
        cells.update(_quantiles("connect", figures.connects))
    cells["left_out"] = figures.left_out or None
    cells["recent_timeouts"] = figures.recent_timeouts
    if not figures.known:
        cells.update(_UNKNOWN_PRESENT)
    return cells


def _quantiles(what: str, quantiles: Quantiles) -> Cells:
    # Nine digits: what takes 2 us would be nothing with three, and wrong by too much with six.
    return {
        f"{what}_{name}_seconds": None if value is None else round(value, 9)
        for name, value in zip(quantiles._fields, quantiles, strict=True)
    }


def _figures_of_one(figures: Figures, clock: float, present: bool) -> Cells:
    cells = figure_cells(figures, clock)
    del cells["processes"], cells["max_processes"]
    if not present:
        cells.update(_UNKNOWN_PRESENT)
    return cells

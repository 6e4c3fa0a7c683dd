"""Reading: what readers are told of the state, in frames. Pure; changes nothing but caches.

The rules kept here:

- A reader that has version `since` of this epoch gets the rows that changed after it and the
  keys of those that went; any other reader gets everything.
- Which rows are sent is decided at once, their content when the frame is made: the state may
  change between two frames. A row that has gone by then is left out (its removal is newer than
  the answer's version, and is sent with the next one), and one that has changed is sent again.
- Groups are narrowed by who counts in them, which changes without the group's key going away;
  such an answer is always complete.
- Figures are held down to what the wire allows, whatever the processes said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import fsum
from typing import Final, NamedTuple

import msgspec

from connmon import histogram
from connmon.cluster.records import (
    NO_GAUGES,
    NO_TIMES,
    NO_TOTALS,
    Group,
    PoolRecord,
    ProcessRecord,
    added_times,
    connection_weight,
    saturated,
)
from connmon.cluster.tables import Tables
from connmon.model import (
    LARGEST,
    ConnectionRow,
    DatabaseRow,
    Figures,
    Gauges,
    Grouping,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Quantiles,
    Query,
    Row,
    RowKey,
    Rows,
    Times,
    Totals,
    plus,
)

#: Rows and removed keys in one frame, at most.
CHUNK: Final = 2_000
#: What the rows of one frame may weigh before it is closed, about in characters.
CHUNK_WEIGHT: Final = 4 * 1024 * 1024

UNKNOWN: Final = Quantiles()

#: Whose rows are sent, for each grouping.
_TABLES: Final[dict[Grouping, tuple[Grouping, ...]]] = {
    "program": ("program",),
    "host": ("host",),
    "database": ("database",),
    "process": ("process",),
    "pool": ("process", "pool"),
    "connection": ("process", "pool", "connection"),
}


def answer(
    tables: Tables, query: Query, *, service: str, node: str, leader: str | None, quorum: bool, stale: float
) -> Iterator[Rows]:
    """Return the answer to a query, in one or several frames with the same header.

    `stale` is the seconds since the replica last moved. Apply nothing during the call itself;
    between two frames anything may be applied.
    """
    by = query.by
    complete = (
        query.epoch != tables.epoch
        or query.since == 0
        or any(query.since < tables.tombstones[kind].floor for kind in _TABLES[by])
        or (by in ("program", "host", "database") and _narrowed_by_members(query))
    )
    since = -1 if complete else query.since
    keys = list(_group_keys(tables, query, since) if by in _GROUPS else _process_keys(tables, query, since))
    removed: list[RowKey] = []
    if not complete:
        coming = set(keys)
        for kind in _TABLES[by]:
            removed += (key for key in tables.tombstones[kind].after(since) if key not in coming)
    # A reader that has more than this replica must not be told to go back.
    version = tables.version if complete else max(tables.version, query.since)
    about = About(service, node, leader, quorum, stale)
    return frames(tables, header(tables, about, version, complete), keys, list(dict.fromkeys(removed)))


class About(NamedTuple):
    """What every answer says of the node."""

    service: str
    node: str
    leader: str | None
    quorum: bool
    stale: float
    """Seconds since the replica last moved."""


def header(tables: Tables, about: About, version: int, complete: bool) -> Rows:
    """Return an answer without rows."""
    figures, hosts, programs = totals(tables)
    return Rows(*about, tables.epoch, version, tables.clock, complete, hosts, programs, figures)


def frames(tables: Tables, header: Rows, keys: list[RowKey], removed: list[RowKey]) -> Iterator[Rows]:
    """Yield the frames: the removed keys first."""
    while len(removed) > CHUNK:
        yield msgspec.structs.replace(header, removed=tuple(removed[:CHUNK]), more=True)
        removed = removed[CHUNK:]
    found: list[Row] = []
    weight = 0
    for key in keys:
        if len(found) >= CHUNK or weight > CHUNK_WEIGHT:
            yield msgspec.structs.replace(header, rows=tuple(found), removed=tuple(removed), more=True)
            found, removed, weight = [], [], 0
        row = row_of(tables, key)
        if row is None:
            continue
        found.append(row)
        if isinstance(row, ConnectionRow):
            weight += connection_weight(row)
        elif isinstance(row, (ProcessRow, PoolRow)):
            weight += 4096
    yield msgspec.structs.replace(header, rows=tuple(found), removed=tuple(removed))


# --- Which rows -----------------------------------------------------------------------------

_GROUPS: Final = ("program", "host", "database")


def _narrowed_by_members(query: Query) -> bool:
    """Whether the answer depends on who counts in a group, and not on the group's key alone."""
    if query.instance is not None:
        return True
    if query.by == "program":
        return False
    return query.program is not None or (query.by == "database" and query.host is not None)


def _selected(query: Query, process: ProcessRecord) -> bool:
    return (
        (query.host is None or process.process.host == query.host)
        and (query.program is None or process.process.program == query.program)
        and (query.instance is None or process.instance == query.instance)
    )


def _group_keys(tables: Tables, query: Query, since: int) -> Iterator[RowKey]:
    if since >= tables.moved:
        return
    by_members = _narrowed_by_members(query)
    for key, group in tables.groups.items():
        if key[0] != query.by or group.version <= since:
            continue
        if by_members and not any(_selected(query, process) for process in group.members.values()):
            continue
        if query.by != "database" and query.host not in (None, key[1]):
            continue
        if query.by == "program" and query.program not in (None, key[2]):
            continue
        yield key


def _process_keys(tables: Tables, query: Query, since: int) -> Iterator[RowKey]:
    processes: Iterable[ProcessRecord] = tables.processes.values()
    if query.instance is not None:
        only = tables.processes.get(query.instance)
        processes = () if only is None else (only,)
    for process in processes:
        # Nothing of a process changes without itself; and its pools have the time of its last
        # report in their rows, so they change with it.
        if process.version <= since or not _selected(query, process):
            continue
        yield ("process", process.instance)
        if query.by == "process":
            continue
        for pool in process.pools.values():
            # Connections of pools without a row each belong to the row of their sum.
            if pool.shown or (pool.has_row and query.by == "connection"):
                yield ("pool", process.instance, pool.number)
        if query.by == "connection":
            for connection in process.connections.values():
                if connection.version > since:
                    yield ("connection", process.instance, connection.number)


# --- Rows -----------------------------------------------------------------------------------


def row_of(tables: Tables, key: RowKey) -> Row | None:
    """Return the row of this key as it is now; None where there is none any more."""
    if key[0] in _GROUPS:
        group = tables.groups.get(key)
        return None if group is None else _group_row(group)
    process = tables.processes.get(str(key[1]))
    if process is None:
        return None
    if key[0] == "process":
        return ProcessRow(
            process.instance,
            process.node,
            process.process,
            process.started,
            process.usage,
            process.state,
            _own_figures(process, process),
        )
    number = key[2]
    assert isinstance(number, int)
    if key[0] == "pool":
        pool = process.pools.get(number)
        if pool is None or not pool.has_row:
            return None
        return PoolRow(
            process.instance, number, pool.info, process.state, _own_figures(process, pool)
        )  # fmt: skip
    c = process.connections.get(number)
    if c is None:
        return None
    return ConnectionRow(
        process.instance, c.number, c.pool, c.server_id, c.state, c.opened, c.held_since,
        c.holder, c.call_site, c.stack, c.server,
    )  # fmt: skip


def _own_figures(process: ProcessRecord, what: ProcessRecord | PoolRecord) -> Figures:
    """Return the figures of a process, or of one of its pools."""
    lost = process.lost
    if isinstance(what, PoolRecord):
        pools, left_out = [what], process.missing(what)
    else:
        pools, left_out = list(process.pools.values()), process.left_out
    return Figures(
        0 if lost else 1,
        1 if lost else 0,
        NO_GAUGES if lost else saturated(what.gauges),
        saturated(what.totals),
        1,
        what.max_connections,
        what.max_checked_out,
        what.max_waiting,
        0.0 if lost else what.longest_wait,
        None if lost else what.waiting_since,
        None if lost else what.held_since,
        0.0 if lost else what.rate,
        process.reported,
        *quantiles_of(() if lost else pools, process.reported),
        left_out=0 if lost else min(left_out, LARGEST),
    )


def quantiles_of(pools: Iterable[PoolRecord], clock: float) -> tuple[Quantiles, Quantiles, Quantiles]:
    """Return what waits, holds and connects took lately in these pools together.

    `clock` is when the row was last reported: a row changes by reports alone, and not with the time.
    """
    lately = [lately for pool in pools if (lately := pool.lately(clock)) is not NO_TIMES]
    return _quantiles_of(added_times(lately)) if lately else (UNKNOWN, UNKNOWN, UNKNOWN)


def _quantiles_of(times: Times) -> tuple[Quantiles, Quantiles, Quantiles]:
    return _quantiles(times.waits), _quantiles(times.holds), _quantiles(times.connects)


def _quantiles(counts: histogram.Histogram) -> Quantiles:
    """Return what half, 95 % and 99 % of what is counted took at most."""
    return (
        Quantiles(*[histogram.quantile(counts, percent) for percent in (50, 95, 99)]) if counts else UNKNOWN
    )


def _group_row(group: Group) -> ProgramRow | HostRow | DatabaseRow:
    key, figures = group.key, figures_of(group)
    waits, holds, connects = quantiles_of(group.pools(present=True), group.reported or 0.0)
    figures = msgspec.structs.replace(figures, waits=waits, holds=holds, connects=connects)
    if key[0] == "program":
        return ProgramRow(str(key[1]), str(key[2]), group.state, figures)
    programs = {(process.process.host, process.process.program) for process in group.members.values()}
    if key[0] == "host":
        return HostRow(str(key[1]), len(programs), group.state, figures)
    _, dialect, host, port, database = key
    assert isinstance(dialect, str)
    assert isinstance(host, (str, type(None)))
    assert isinstance(port, (int, type(None)))
    assert isinstance(database, (str, type(None)))
    return DatabaseRow(dialect, host, port, database, len(programs), group.state, figures)


def figures_of(group: Group) -> Figures:
    """Return the figures of a group but for its quantiles; what is no sum is looked up among its members."""
    if group.cached is not None and group.cached_at == group.version:
        return group.cached
    alive: list[tuple[float, ProcessRecord | PoolRecord]] = []
    left_out = 0
    for process in group.members.values():
        if process.lost:
            continue
        at = process.reported
        if group.key[0] == "database":
            pools = [pool for pool in process.pools.values() if pool.database == group.key]
            alive += ((at, pool) for pool in pools)
            if process.left_out:
                left_out += sum([pool.left_out + process.missing(pool) for pool in pools])
        else:
            alive.append((at, process))
            left_out += process.left_out
    group.cached_at = group.version
    group.cached = Figures(
        group.processes,
        group.lost,
        saturated(group.gauges),
        saturated(plus(group.totals, group.ended)),
        group.max_processes,
        min(group.max_connections, LARGEST),
        min(group.max_checked_out, LARGEST),
        min(group.max_waiting, LARGEST),
        max((what.longest_wait for _, what in alive), default=0.0),
        longest_since(group.reported, ((at, what.waiting_since) for at, what in alive)),
        longest_since(group.reported, ((at, what.held_since) for at, what in alive)),
        rate_of(what.rate for _, what in alive),
        group.reported,
        left_out=min(left_out, LARGEST),
    )
    return group.cached


def rate_of(rates: Iterable[float | None]) -> float | None:
    """Return the sum of those that are known; None where there are some, and none is known."""
    rates = list(rates)
    known = [rate for rate in rates if rate is not None]
    # Rounded once, so the order of the members does not show.
    return min(fsum(known), 1e15) if known or not rates else None


def longest_since(reported: float | None, parts: Iterable[tuple[float | None, float | None]]) -> float | None:
    """Return since when the longest of these goes on, as of `reported`; None where nothing goes on.

    `parts`: when each process last reported, and since when it was so in it. Each lasted until that report,
    and what came after is not known; so the oldest need not be the longest.
    """
    lasted = [at - since for at, since in parts if at is not None and since is not None]
    return reported - max(lasted) if lasted and reported is not None else None


def totals(tables: Tables) -> tuple[Figures, int, int]:
    """Return the figures summed over all programs, and how many hosts and programs are not gone.

    A program counts once on each host that it runs on.
    """
    if tables.header is not None and tables.header[0] == tables.moved:
        return tables.header[1:]
    hosts = programs = 0
    rows: list[Figures] = []
    for group in tables.groups.values():
        if group.key[0] == "host":
            hosts += bool(group.members)
        elif group.key[0] == "program":
            programs += bool(group.members)
            rows.append(figures_of(group))
    gauges = Gauges(*map(sum, zip(NO_GAUGES, *[row.gauges for row in rows], strict=True)))
    happened = Totals(*map(sum, zip(NO_TOTALS, *[row.totals for row in rows], strict=True)))
    reported = max((row.reported for row in rows if row.reported is not None), default=None)
    figures = Figures(
        sum(row.processes for row in rows),
        sum(row.lost_processes for row in rows),
        saturated(gauges),
        saturated(happened),
        sum(row.max_processes for row in rows),
        min(sum(row.max_connections for row in rows), LARGEST),
        min(sum(row.max_checked_out for row in rows), LARGEST),
        min(sum(row.max_waiting for row in rows), LARGEST),
        max((row.longest_wait for row in rows), default=0.0),
        longest_since(reported, ((row.reported, row.waiting_since) for row in rows)),
        longest_since(reported, ((row.reported, row.held_since) for row in rows)),
        rate_of(row.checkouts_per_second for row in rows if row.processes),
        reported,
        *_quantiles_of(tables.lately()),
        left_out=min(sum(row.left_out for row in rows) + len(tables.turned_away), LARGEST),
    )
    tables.header = (tables.moved, figures, hosts, programs)
    return figures, hosts, programs

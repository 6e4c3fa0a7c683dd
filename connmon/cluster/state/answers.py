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

from connmon.cluster.state.judging import name_of_pool
from connmon.cluster.state.records import (
    NO_GAUGES,
    NO_TIMES,
    NO_TOTALS,
    Group,
    PoolRecord,
    ProcessRecord,
    added_times,
    connection_weight,
)
from connmon.cluster.state.tables import Tables
from connmon.protocol import histogram
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
    Verdict,
)
from connmon.protocol.values import LARGEST, Gauges, Grouping, Times, Totals, plus, saturated
from connmon.protocol.verdicts import Stuck, line_reason, quoted

#: Rows and removed keys in one frame, at most.
CHUNK: Final = 2_000
#: What the rows of one frame may weigh before it is closed, about in characters.
CHUNK_WEIGHT: Final = 4 * 1024 * 1024

UNKNOWN: Final = Quantiles()

#: Whose rows are sent, for each grouping.
_TABLES: Final[dict[Grouping, tuple[Grouping, ...]]] = {
    "site": (),
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
    if by == "site":
        return _sites(tables, query, About(service, node, leader, quorum, stale))
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
    return Rows(
        *about, tables.epoch, version, tables.clock, complete, hosts, programs, figures,
        verdicts=tables.judge.fleet(),
    )  # fmt: skip


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


# --- Call sites ----------------------------------------------------------------------------

#: Call sites that are looked at before others have their turn.
PIECE: Final = 2_000
#: The line that stands for all those of a process that it does not report one by one.
OTHER: Final = "(other)"


class _Line:
    """What the processes of one program on one host report of one line."""

    __slots__ = (
        "estimated", "filled", "held", "hold_ms", "holds", "in_database", "lasted", "processes", "reported",
        "stuck", "usual", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.processes: set[str] = set()
        self.held = self.in_database = self.waiting = self.holds = self.hold_ms = 0
        self.lasted: float | None = None
        self.reported = 0.0
        self.usual: float | None = None
        self.estimated = False
        self.stuck: dict[Stuck, tuple[int, float]] = {}
        """Leaked and blocked connections: how many, and how long the one held longest was held."""
        self.filled: list[tuple[int, str, int, ProcessRecord, Verdict]] = []
        """Saturated pools of which it holds most: how many wait, the instance, the pool's number."""

    def row(self, host: str, program: str, call_site: str) -> SiteRow:
        verdict = self._verdict()
        return SiteRow(
            host, program, call_site, len(self.processes), min(self.held, LARGEST), self.in_database,
            None if self.lasted is None else self.reported - self.lasted, min(self.waiting, LARGEST),
            min(self.holds, LARGEST), min(self.hold_ms, LARGEST), self.usual, self.estimated, self.reported,
            None if verdict is None else verdict.word, None if verdict is None else verdict.reason,
        )  # fmt: skip

    def _verdict(self) -> Verdict | None:
        """Return the gravest: of several pools that it fills, of that for which most wait, which is named."""
        word: Stuck | None = "LEAK" if "LEAK" in self.stuck else "BLOCKED" if self.stuck else None
        if word is not None:
            return Verdict(word, line_reason(word, *self.stuck[word], self.usual))
        if not self.filled:
            return None
        _, _, number, process, verdict = max(self.filled, key=lambda each: each[:3])
        return quoted(verdict, name_of_pool(process, number, "program", len(self.filled) - 1))


def _sites(tables: Tables, query: Query, about: About) -> Iterator[Rows]:
    """Return a row for each line of the application; complete, or none where nothing has changed."""
    if query.epoch == tables.epoch and query.since > 0 and query.since >= tables.moved:
        yield header(tables, about, max(tables.version, query.since), False)
        return
    head = header(tables, about, tables.version, True)
    lines: dict[tuple[str, str, str], _Line] = {}
    seen = 0
    for process in list(tables.processes.values()):
        if not process.sites or not _selected(query, process):
            continue
        if seen >= PIECE:
            seen = 0
            yield msgspec.structs.replace(head, more=True)
        seen += _add_lines(tables, process, lines)
    found: list[Row] = []
    for key, line in lines.items():
        found.append(line.row(*key))
        if len(found) >= CHUNK:
            yield msgspec.structs.replace(head, rows=tuple(found), more=True)
            found = []
    yield msgspec.structs.replace(head, rows=tuple(found))


def _line(lines: dict[tuple[str, str, str], _Line], process: ProcessRecord, call_site: str) -> _Line:
    """Return the line of a process's program, which this process has reported."""
    key = process.process.host, process.process.program, call_site
    line = lines.get(key)
    if line is None:
        line = lines[key] = _Line()
    if not process.lost:
        line.processes.add(process.instance)
    line.reported = max(line.reported, process.reported)
    return line


def _add_lines(tables: Tables, process: ProcessRecord, lines: dict[tuple[str, str, str], _Line]) -> int:
    """Add what a process reports of its lines; return how many records were looked at.

    What a line holds now is taken from the connections, which are reported whenever they change. A line
    that is not reported by itself has a row where it has a verdict; else it is part of `OTHER`.
    """
    at, seen = process.reported, 0
    own: set[str] = set()
    for sites in process.sites.values():
        for call_site, site in sites.items():
            seen += 1
            own.add(call_site)
            line = _line(lines, process, call_site)
            line.waiting += 0 if process.lost else site.waiting
            line.holds += site.holds
            line.hold_ms += site.hold_ms
            if site.usual is not None and (line.usual is None or site.usual > line.usual):
                line.usual = site.usual
            if site.share < 1.0:
                line.estimated = True
    if process.lost or process.held_since is None:
        return seen
    for number, call_site, verdict, waiting in tables.judge.fillers(process):
        own.add(call_site)
        line = _line(lines, process, call_site)
        line.filled.append((waiting, process.instance, number, process, verdict))
    for c in process.connections.values():
        if c.held_since is None or c.call_site is None:
            continue
        seen += 1
        word = tables.judge.stuck(process, c.pool).get(c.number)
        line = _line(lines, process, c.call_site if word is not None or c.call_site in own else OTHER)
        line.held += 1
        line.in_database += c.holder_in == "database"
        if line.lasted is None or at - c.held_since > line.lasted:
            line.lasted = at - c.held_since
        if word is not None:
            number, longest = line.stuck.get(word, (0, 0.0))
            line.stuck[word] = (number + 1, max(longest, at - c.held_since))
    return seen


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
            at, long = process.reported, tables.judge.thresholds.held_long
            for connection in process.connections.values():
                held_since = connection.held_since
                # Whether one that is held long is a leak can change without itself.
                if connection.version > since or (held_since is not None and at - held_since >= long):
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
            _own_figures(tables, process, process),
        )
    number = key[2]
    assert isinstance(number, int)
    if key[0] == "pool":
        pool = process.pools.get(number)
        if pool is None or not pool.has_row:
            return None
        return PoolRow(
            process.instance, number, pool.info, process.state, _own_figures(tables, process, pool)
        )  # fmt: skip
    c = process.connections.get(number)
    if c is None:
        return None
    return ConnectionRow(
        process.instance, c.number, c.pool, c.server_id, c.state, c.opened, c.held_since,
        c.holder, c.call_site, c.stack, c.server, c.holder_in, c.holder_site,
        None if c.held_since is None else tables.judge.stuck(process, c.pool).get(c.number),
    )  # fmt: skip


def _own_figures(tables: Tables, process: ProcessRecord, what: ProcessRecord | PoolRecord) -> Figures:
    """Return the figures of a process, or of one of its pools."""
    lost = process.lost
    if isinstance(what, PoolRecord):
        pools, left_out = [what], process.missing(what)
        verdicts, timeouts = tables.judge.of_own(process, what)
    else:
        pools, left_out = list(process.pools.values()), process.left_out
        verdicts, timeouts = tables.judge.of_own(process)
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
        verdicts=verdicts,
        recent_timeouts=timeouts,
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
    figures = _figures_of(group)
    # Of a server it depends on other groups too.
    servers = () if group.judge is None else group.judge.of_servers(group)
    return msgspec.structs.replace(figures, verdicts=(*figures.verdicts, *servers)) if servers else figures


def _figures_of(group: Group) -> Figures:
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
    verdicts, timeouts = ((), 0) if group.judge is None else group.judge.of_group(group)
    group.cached_at = group.version if group.judge is None or group.judge.lasts(verdicts) else -1
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
        verdicts=verdicts,
        recent_timeouts=timeouts,
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
        recent_timeouts=min(sum(row.recent_timeouts for row in rows), LARGEST),
    )
    tables.header = (tables.moved, figures, hosts, programs)
    return figures, hosts, programs

"""Take what a report says of a process's pools and connections into the tables. Pure.

- A full report replaces what is known of a process, but not its maxima; a change replaces what it names.
- Each record that comes in weighs something, and is refused where the room or a limit does not allow it. What
  is refused is counted in the process: pools in `refused_pools`, connections by `refused`.
- Invalid input (an unknown pool, a number that was never reported) is dropped, by rules that give the same
  result on every replica.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from connmon.cluster.state.contents import Contents
from connmon.cluster.state.records import (
    LARGEST_COUNT,
    NO_GAUGES,
    NO_TOTALS,
    ConnectionRecord,
    PoolRecord,
    ProcessRecord,
    bounded,
    raise_maxima,
)
from connmon.cluster.state.reported_call_sites import ReportedCallSites
from connmon.cluster.state.times import (
    NO_TIMES_PACKED,
    bounded_times,
    merged_times,
    packed,
    times_since,
    unpacked,
)
from connmon.cluster.state.weights import (
    connection_weight,
    connections_weight,
    pool_weight,
)
from connmon.protocol.reports import Connection, PoolInfo, PoolReport, Report
from connmon.protocol.rows import database_key
from connmon.protocol.values import LARGEST, LARGEST_RATE, Gauges, Times, Totals, minus, plus


def rate(before: Totals, after: Totals, span: float) -> float | None:
    """Return checkouts per second over `span` seconds; None where the span is unknown (0)."""
    if span <= 0.0:
        return None
    return min(max(after.checkouts - before.checkouts, 0) / span, LARGEST_RATE)


class Connections:
    """The connections of processes, one by one.

    `listed` of each pool is how many of its connections are here.
    """

    def __init__(self, contents: Contents) -> None:
        self._now = contents.now
        self._room = contents.room
        self._tombstones = contents.tombstones
        self._most = contents.settings.limits.connections

    def take(self, process: ProcessRecord, report: Report) -> None:
        """Replace (full report) or change the process's connections."""
        if not report.full:
            for number in report.closed_connections:
                if number in process.connections:
                    self.close(process, number)
            self._put(process, report.connections)
            return
        before, process.connections = process.connections, {}
        self._room.weight -= connections_weight(before.values())
        process.refused = False
        for pool in process.pools.values():
            pool.listed = 0
        self._put(process, report.connections)
        for number in before:
            if number not in process.connections:
                self._tombstones.bury(("connection", process.instance, number))

    def close(self, process: ProcessRecord, number: int) -> None:
        """Remove one."""
        record = process.connections.pop(number)
        self._room.weight -= connection_weight(record)
        if (pool := process.pools.get(record.pool)) is not None:
            pool.listed -= 1
        self._tombstones.bury(("connection", process.instance, number))

    def close_pools(self, process: ProcessRecord, closed: set[int]) -> None:
        """Remove those of closed pools."""
        for connection in [c for c in process.connections.values() if c.pool in closed]:
            self.close(process, connection.number)

    def _put(self, process: ProcessRecord, reports: Iterable[Connection]) -> None:
        """Add or replace these; refuse those that there is no room for."""
        room, connections, pools = self._room, process.connections, process.pools
        clock, version = self._now.clock, self._now.version
        for report in reports:
            pool = pools.get(report.pool)
            if pool is None:
                continue
            known = connections.get(report.number)
            if known is None and len(connections) >= self._most:
                process.refused = True
                continue
            more = connection_weight(report) - (0 if known is None else connection_weight(known))
            # Not by `free`: the call costs 5 % of all this.
            if more > 0 and room.weight + more > room.most:
                # Without what says where it is held there may be room; a known connection must not get stale.
                report = msgspec.structs.replace(
                    report, holder=None, call_site=None, stack=(), holder_site=None
                )
                more = connection_weight(report) - (0 if known is None else connection_weight(known))
                if more > 0 and more > room.free:
                    process.refused = True
                    continue
            room.weight += more
            if known is None or known.pool != report.pool:
                pool.listed += 1
                if known is not None and (old := pools.get(known.pool)) is not None:
                    old.listed -= 1
            connections[report.number] = ConnectionRecord(
                number=report.number,
                pool=report.pool,
                server_id=report.server_id,
                state=report.state,
                opened=clock - report.age,
                held_since=None if report.held is None else clock - report.held,
                holder=report.holder,
                call_site=report.call_site,
                stack=report.stack,
                version=version,
                server=report.server,
                holder_in=report.holder_in,
                holder_site=report.holder_site,
            )


class Pools:
    """The pools of processes, and the sums over them in the process and in its databases."""

    def __init__(self, contents: Contents, connections: Connections, call_sites: ReportedCallSites) -> None:
        self._now = contents.now
        self._room = contents.room
        self._groups = contents.groups
        self._tombstones = contents.tombstones
        self._recent_times = contents.recent_times
        self._most = contents.settings.limits.pools
        self._connections = connections
        self._call_sites = call_sites

    def take(self, process: ProcessRecord, report: Report, span: float) -> bool:
        """Replace (full report) or change the process's pools.

        `span` is how many seconds the report's changes took; 0: unknown. Return whether pools came in that
        may have been refused before: their totals are no sign that something has just happened.
        """
        had_refused = process.refused_pools > 0
        closed = self._closed_by(process, report)
        # First what is closed, so that the number of a closed pool can be given to a new one.
        for number in closed:
            self._close(process, number)
        if closed and not report.full and process.connections:
            self._connections.close_pools(process, set(closed))
        # Of a process that is new here but not new, and of a pool that was refused before, it is unknown when
        # the events that they count were.
        young = (report.sequence == 1 or process.sequence > 0) and not had_refused
        known = len(process.pools)
        for pool_report in report.pools:
            self._take_one(process, pool_report, span, young, report.full)
        self._sum_up(process)
        return had_refused and len(process.pools) > known

    def _closed_by(self, process: ProcessRecord, report: Report) -> list[int]:
        """Return the numbers of the pools that the report closes; recount those that were refused."""
        if report.full:
            process.refused_pools = 0
            reported = {pool.number for pool in report.pools}
            return [number for number in process.pools if number not in reported]
        numbers = dict.fromkeys(report.closed_pools)  # each once, whatever the report says
        closed = [number for number in numbers if number in process.pools]
        if process.refused_pools:
            process.refused_pools = max(0, process.refused_pools - len(numbers) + len(closed))
        return closed

    def _sum_up(self, process: ProcessRecord) -> None:
        """Recompute what of the process is no running sum over its pools."""
        waiting_since = held_since = None
        shared = 0
        for pool in process.pools.values():
            shared += pool.left_out
            if pool.version != self._now.version:  # not in this report: nothing happened there
                pool.checkouts_per_second = 0.0
                if not pool.gauges.waiting:
                    pool.longest_wait = 0.0
            since = pool.waiting_since
            if since is not None and (waiting_since is None or since < waiting_since):
                waiting_since = since
            since = pool.held_since
            if since is not None and (held_since is None or since < held_since):
                held_since = since
        process.waiting_since, process.held_since, process.shared = waiting_since, held_since, shared

    def _close(self, process: ProcessRecord, number: int) -> None:
        pool = process.pools.pop(number)
        self._call_sites.forget(process, pool)
        process.gauges = minus(process.gauges, pool.gauges)
        process.totals = minus(process.totals, pool.totals)
        self._groups.shift(pool.database, minus(NO_GAUGES, pool.gauges), minus(NO_TOTALS, pool.totals))
        self._room.weight -= pool_weight(pool.info)
        if pool.has_row:
            self._tombstones.bury(("pool", process.instance, number))

    def _take_one(
        self, process: ProcessRecord, report: PoolReport, span: float, young: bool, full_report: bool
    ) -> None:
        """Change one pool, or add it; without saying what it is, only a known one.

        `young`: a pool that is new here is new, so what it counts has just happened.
        """
        pool = process.pools.get(report.number)
        unknown_rate = past = report.moved
        info = report.info or (None if pool is None else pool.info)
        if info is None:  # refused before, and counted
            process.refused_pools = max(process.refused_pools, report.left_out, 1)
            return
        if pool is None:
            if len(process.pools) >= self._most or pool_weight(info) > self._room.free:
                self._refuse(process, report, full_report)
                return
            fresh = young and not report.moved
            unknown_rate, past = not fresh and process.sequence > 0, not fresh
            pool = self._add(process, report, info, fresh)
        elif info is not pool.info and info != pool.info:
            self._change_info(pool, info)
        gauges, totals = bounded(report.gauges), bounded(report.totals)
        more, happened = NO_GAUGES, minus(totals, pool.totals)
        if gauges != pool.gauges:  # mostly the same at two reports of a busy pool
            more = minus(gauges, pool.gauges)
            process.gauges = plus(process.gauges, more)
        process.totals = plus(process.totals, happened)
        self._groups.shift(pool.database, more, happened)
        self._take_times(pool, report, gauges)
        if past:  # what it has counted so far has not just happened
            pool.age_counts(totals, self._now.clock)
        else:
            pool.count(totals, self._now.clock)
        # The remains of closed pools take over totals of what is long past.
        pool.checkouts_per_second = (
            None if unknown_rate else rate(pool.totals, totals, span) if gauges.pools else 0.0
        )
        self._replace_sums(process, pool, report, gauges, totals)
        raise_maxima(pool, gauges, report.peaks)
        pool.longest_wait = report.peaks.longest_wait
        pool.waiting_since = None if report.wait is None else self._now.clock - report.wait
        pool.held_since = None if report.held is None else self._now.clock - report.held
        pool.version = self._now.version

    @staticmethod
    def _refuse(process: ProcessRecord, report: PoolReport, full_report: bool) -> None:
        """Count a pool that there is no room for."""
        if report.left_out and not full_report:  # a sum reports again how many it is, perhaps counted already
            refused = max(process.refused_pools, report.left_out)
        else:
            refused = process.refused_pools + max(report.left_out, 1)
        process.refused_pools = min(refused, LARGEST_COUNT)

    def _add(self, process: ProcessRecord, report: PoolReport, info: PoolInfo, fresh: bool) -> PoolRecord:
        pool = PoolRecord(number=report.number, info=info, database=database_key(info))
        process.pools[report.number] = pool
        self._room.weight += pool_weight(info)
        pool.times = NO_TIMES_PACKED if fresh else packed(bounded_times(report.times, LARGEST_COUNT))
        pool.age_times(self._now.clock)
        return pool

    def _change_info(self, pool: PoolRecord, info: PoolInfo) -> None:
        key = database_key(info)
        if key != pool.database:
            self._groups.shift(pool.database, minus(NO_GAUGES, pool.gauges), minus(NO_TOTALS, pool.totals))
            self._groups.shift(key, pool.gauges, pool.totals)
        self._room.weight += pool_weight(info) - pool_weight(pool.info)
        pool.info, pool.database = info, key

    def _take_times(self, pool: PoolRecord, report: PoolReport, gauges: Gauges) -> None:
        """Take the pool's histograms: all of them where the report says what the pool is, else changes."""
        if report.info is None and pool.times and gauges.pools and not report.moved:
            self._grow_times(pool, report.times)
        elif report.info is not None or any(report.times):
            before, times = unpacked(pool.times), bounded_times(report.times, LARGEST_COUNT)
            more_times = times_since(times, before)
            if report.info is None:
                times = merged_times(before, times)
            if report.moved:
                pool.times = packed(times)
            elif times != before:
                if gauges.pools:
                    self._recent_times.add(more_times)
                pool.add_times(packed(times), self._now.clock)
        if report.moved:
            pool.age_times(self._now.clock)

    def _grow_times(self, pool: PoolRecord, changes: Times) -> None:
        """Do what `_take_times` does for changed counts of a pool at work, in one pass: they are most."""
        if not any(changes):
            return
        times, grown = unpacked(pool.times), False
        for known, changed, recent in zip(times, changes, self._recent_times.counts, strict=True):
            assert isinstance(known, dict)
            for number, count in changed.items():
                count = count if count <= LARGEST_COUNT else LARGEST_COUNT
                more = count - known.get(number, 0)
                if more > 0:
                    known[number] = count
                    total = recent.get(number, 0) + more
                    recent[number] = total if total <= LARGEST else LARGEST
                    grown = True
        if grown:
            pool.add_times(packed(times), self._now.clock)

    def _replace_sums(
        self, process: ProcessRecord, pool: PoolRecord, report: PoolReport, gauges: Gauges, totals: Totals
    ) -> None:
        """Replace gauges and totals; bury the rows that the pool has no longer."""
        if gauges.pools and not (report.left_out or pool.left_out):  # mostly: it has a row, or gets one
            pool.gauges, pool.totals = gauges, totals
            return
        had_pool_row, had_row = pool.shown, pool.has_row
        pool.gauges, pool.totals, pool.left_out = gauges, totals, min(report.left_out, LARGEST_COUNT)
        if (had_pool_row and not pool.shown) or (had_row and not pool.has_row):
            self._tombstones.bury(("pool", process.instance, report.number))

"""The connection-state machine: takes batches, says who has how many connections. Pure.

The rules kept here:

- No I/O, no clock, no randomness: replicas that apply the same batches in the same order have
  the same state, byte for byte in `dump`, also where one was loaded from another's dump.
- `apply` never raises, whatever a batch says: what makes no sense is left out, by a rule that
  comes out the same everywhere. (A replicated method that raises shakes the leadership.)
- A batch counts once, by its boot and number; a report counts once, by its sequence number.
- A full report replaces what is known of a process, but not its maxima. A change counts only on
  top of the report that it was made after; otherwise a full report is asked for.
- What a limit leaves out is counted. As soon as some of it would fit, a full report is asked for: at most
  one in `ASK_AGAIN` seconds of a process, and of no more new processes than there are places for.
- Within a batch time passes first, then reports count, then departures, and then it is judged
  who has been silent for too long: so nobody is lost in the batch that brings his report.
- A program's maximum is the largest, over all reports applied, of the sum of its processes'
  present values with the reporting process's own peak in place of its present value; a
  database's, the same of pools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from connmon.cluster.state import answers, checkpoint
from connmon.cluster.state.records import (
    BARE_WEIGHT,
    LARGEST_COUNT,
    LARGEST_POOL_WEIGHT,
    LIMITS,
    NO_GAUGES,
    NO_TIMES_PACKED,
    NO_TOTALS,
    BootRecord,
    ConnectionRecord,
    Group,
    Limits,
    PoolRecord,
    ProcessRecord,
    bounded,
    bounded_times,
    connection_weight,
    merged_times,
    packed,
    pool_weight,
    site_record,
    site_weight,
    sites_weight,
    times_since,
    unpacked,
)
from connmon.cluster.state.tables import Tables
from connmon.protocol.batch import Batch, Departure
from connmon.protocol.queries import Query
from connmon.protocol.reports import Connection, PoolReport, Report, SiteReport
from connmon.protocol.rows import Rows, database_key
from connmon.protocol.values import Gauges, Peaks, Totals, minus, plus

#: The largest step of the clock, in seconds, that one batch can make.
LONGEST_STEP: Final = 2.0
#: Seconds between two full reports that a process is asked for because something left out would fit.
ASK_AGAIN: Final = 5.0
#: The largest rate that is shown (a model.Number).
LARGEST_RATE: Final = 1e15

NO_PEAKS: Final = Peaks()


class Outcome(Struct, frozen=True):
    """What became of a batch."""

    version: int
    """Of the state, after the batch."""
    answers: tuple[tuple[str, int, bool], ...]
    """For each report, in order: instance, sequence, and whether a full report is wanted."""
    applied: bool
    """False: the batch was applied before, and changed nothing now."""


class State(Tables):
    """What the whole service's processes last reported, and what that adds up to."""

    _invited = 0
    """How many unknown processes this batch asks for a full report."""

    # --- batches

    def apply(self, batch: Batch) -> Outcome:
        """Apply one replicated command. Never raises."""
        last = self.boots.get(batch.boot)
        if last is not None and batch.number <= last.number:
            answers = tuple((r.instance, r.sequence, self._lacks(r)) for r in batch.reports)
            return Outcome(self.version, answers, False)
        self.version += 1
        if not self.epoch:
            self.epoch = batch.boot
        if batch.tick is not None:
            self.clock += min(max(batch.tick.step, 0.0), LONGEST_STEP)
            self.turn_window()
        self.boots.pop(batch.boot, None)
        self.boots[batch.boot] = BootRecord(batch.boot, batch.number, self.clock)
        self._invited = 0
        answers = tuple((r.instance, r.sequence, self._report(batch.node, r)) for r in batch.reports)
        for departure in batch.departures:
            self._depart(batch.node, departure)
        if batch.tick is not None:
            self.expire(batch.tick.lease)
        return Outcome(self.version, answers, True)

    def _depart(self, node: str, departure: Departure) -> None:
        process = self.processes.get(departure.instance)
        self.take_back(departure.instance)
        if process is not None and process.node == node and process.sequence <= departure.sequence:
            self.drop(process)

    # --- reports

    def _has(self, report: Report) -> bool:
        """Whether this report, or a later one of its instance, was applied already."""
        known = self.processes.get(report.instance) or self.ended.get(report.instance)
        return known is not None and report.sequence <= known.sequence

    def _lacks(self, report: Report) -> bool:
        """Whether to ask for a full report instead of this one, which is not to be applied.

        Never instead of a full one (it would be no better), nor from a process for which there
        is no room: it would send nothing but full reports from then on.
        """
        if report.full or self._has(report):
            return False
        return report.instance in self.processes or self.has_room()

    def _report(self, node: str, report: Report) -> bool:
        """Apply one report; return whether a full one is wanted instead."""
        if self._has(report):
            return False
        process = self.processes.get(report.instance)
        if process is not None:
            if not report.full and report.base != process.sequence:
                return True
            if report.sequence == process.sequence + 1:
                span = report.interval
            else:  # the reports between were lost, and with them their intervals
                span = max(report.interval, self.clock - process.reported)
        elif report.full and report.process is not None and self.has_room():
            process = ProcessRecord(report.instance, node, report.process, 0, self.clock, self.version)
            self.admit(process)
            span = 0.0
        else:
            return self._keep_out(report)
        self._take(process, report, span)
        process.node = node
        process.sequence = report.sequence
        process.reported = self.clock
        process.version = self.version
        # The dict is in the order of the last reports.
        self.processes[report.instance] = self.processes.pop(report.instance)
        return process.left_out > 0 and not report.full and self._would_fit(process)

    def _keep_out(self, report: Report) -> bool:
        """Leave out an unknown process, for now or because it has no place; return whether to ask it in."""
        places = self.places()
        if self._lacks(report) and self._invited < places:
            self._invited += 1
            return True
        if self._invited >= places:
            self.turn_away(report.instance)
        return False

    def _would_fit(self, process: ProcessRecord) -> bool:
        """Whether to ask the process for a full report, since some of what was refused fits now."""
        if process.asked is not None and self.clock - process.asked < ASK_AGAIN:
            return False
        limits, room = self.limits, self.limits.room - self.weight
        pools = process.refused_pools > 0 and len(process.pools) < limits.pools
        connections = process.refused and len(process.connections) < limits.connections
        if (pools and room >= LARGEST_POOL_WEIGHT) or (connections and room >= BARE_WEIGHT):
            process.asked = self.clock
            return True
        return False

    def _take(self, process: ProcessRecord, report: Report, span: float) -> None:
        """Replace or change what is known of the process, and what its groups add up to.

        `span` is the time in seconds that the report's changes took; 0: not known.
        """
        if process.lost:
            self.find(process)
        gauges, totals, databases = process.gauges, process.totals, process.databases()
        self._take_identity(process, report)
        came_in = self._take_pools(process, report, span)
        self._take_connections(process, report)
        self._take_sites(process, report)
        process.unlisted = report.left_out
        if process.shared or process.refused_pools or process.refused or process.unlisted or process.left_out:
            self._count_left_out(process)

        now = process.databases()
        for key in now:
            if key not in databases:
                self.enroll(self.group(key), process)
        for key in databases:
            if key not in now:
                self.unenroll(self.groups[key], process)
        changes = minus(process.gauges, gauges), minus(process.totals, totals)
        for key in (process.program_key, process.host_key):
            self.shift(key, *changes)
            self._raise(self.groups[key], process.gauges, report.peaks)
            self.groups[key].reported = self.clock
        for key in now:
            group = self.groups[key]
            self._raise(group, NO_GAUGES, NO_PEAKS)
            self.touch(group)
            group.reported = self.clock
        for told in report.pools:
            pool = process.pools.get(told.number)
            if pool is not None:
                self._raise(self.groups[pool.database], pool.gauges, told.peaks)
        process.rate = None if came_in else _rate(totals, process.totals, span)
        self._raise(process, process.gauges, report.peaks)
        process.longest_wait = report.peaks.longest_wait

    def _count_left_out(self, process: ProcessRecord) -> None:
        missing = process.missing_connections
        if not missing:
            process.refused = False
        process.left_out = process.shared + process.refused_pools + missing
        if process.left_out:
            self.crowded[process.instance] = process
        else:
            self.crowded.pop(process.instance, None)

    def _take_identity(self, process: ProcessRecord, report: Report) -> None:
        told = report.process
        if told is not None:
            # What groups it counts in must not change while it counts there.
            was = process.process
            if told.host != was.host or told.program != was.program:
                told = msgspec.structs.replace(told, host=was.host, program=was.program)
            process.process = told
            process.started = None if told.started is None else self.clock - told.started
        if report.usage is not None:
            process.usage = report.usage

    @staticmethod
    def _raise(what: Group | PoolRecord | ProcessRecord, own: Gauges, peaks: Peaks) -> None:
        """Raise the maxima to the present values, with these peaks in place of `own` among them."""
        present = what.gauges
        largest = present.connections
        if peaks.connections > own.connections:
            largest += max(min(peaks.connections, LARGEST_COUNT) - own.connections, 0)
        if largest > what.max_connections:
            what.max_connections = largest
        largest = present.checked_out
        if peaks.checked_out > own.checked_out:
            largest += max(min(peaks.checked_out, LARGEST_COUNT) - own.checked_out, 0)
        if largest > what.max_checked_out:
            what.max_checked_out = largest
        largest = present.waiting
        if peaks.waiting > own.waiting:
            largest += max(min(peaks.waiting, LARGEST_COUNT) - own.waiting, 0)
        if largest > what.max_waiting:
            what.max_waiting = largest

    # --- pools

    def _take_pools(self, process: ProcessRecord, report: Report, span: float) -> bool:
        """Change what is known of the process's pools.

        Return whether pools have come in that may have been refused before: what they have counted is
        no sign that something has just happened.
        """
        if report.full:
            told = {pool.number for pool in report.pools}
            closed = [number for number in process.pools if number not in told]
            had_refused, process.refused_pools = process.refused_pools > 0, 0
        else:
            # Each once, whatever the report says.
            numbers = dict.fromkeys(report.closed_pools)
            closed = [number for number in numbers if number in process.pools]
            had_refused = process.refused_pools > 0
            if process.refused_pools:
                process.refused_pools = max(0, process.refused_pools - len(numbers) + len(closed))
        # First what is closed, so that the number of a closed pool can be given to a new one.
        for number in closed:
            self._close_pool(process, number)
        if closed and not report.full and process.connections:
            gone = set(closed)
            for connection in [c for c in process.connections.values() if c.pool in gone]:
                self._close_connection(process, connection.number)
        # Of a process that is new here but not new, nobody knows when the things it tells of were.
        # Nor when those of a pool were that was refused before.
        young = (report.sequence == 1 or process.sequence > 0) and not had_refused
        known = len(process.pools)
        for pool_report in report.pools:
            self._take_pool(process, pool_report, span, young, report.full)
        waiting_since = held_since = None
        shared = 0
        for pool in process.pools.values():
            shared += pool.left_out
            if pool.version != self.version:  # nothing was told of it: nothing happened there
                pool.rate = 0.0
                if not pool.gauges.waiting:
                    pool.longest_wait = 0.0
            since = pool.waiting_since
            if since is not None and (waiting_since is None or since < waiting_since):
                waiting_since = since
            since = pool.held_since
            if since is not None and (held_since is None or since < held_since):
                held_since = since
        process.waiting_since, process.held_since, process.shared = waiting_since, held_since, shared
        return had_refused and len(process.pools) > known

    def _close_pool(self, process: ProcessRecord, number: int) -> None:
        pool = process.pools.pop(number)
        self._forget_sites(process, number)
        process.gauges = minus(process.gauges, pool.gauges)
        process.totals = minus(process.totals, pool.totals)
        self.shift(pool.database, minus(NO_GAUGES, pool.gauges), minus(NO_TOTALS, pool.totals))
        self.weight -= pool_weight(pool.info)
        if pool.has_row:
            self.bury(("pool", process.instance, number))

    def _take_pool(
        self, process: ProcessRecord, told: PoolReport, span: float, young: bool, full_report: bool
    ) -> None:
        """Change one pool, or add it; without saying what it is, only a known one.

        `young`: a pool that is new here is new, so what it tells of has just happened.
        """
        pool = process.pools.get(told.number)
        unknown = past = told.moved
        info = told.info or (None if pool is None else pool.info)
        if info is None:  # refused before, and counted
            process.refused_pools = max(process.refused_pools, told.left_out, 1)
            return
        if pool is None:
            full = len(process.pools) >= self.limits.pools
            if full or self.weight + pool_weight(info) > self.limits.room:
                if (
                    told.left_out and not full_report
                ):  # a sum says again what it is, and may be counted already
                    process.refused_pools = max(process.refused_pools, told.left_out)
                else:
                    process.refused_pools += max(told.left_out, 1)
                process.refused_pools = min(process.refused_pools, LARGEST_COUNT)
                return
            pool = PoolRecord(told.number, info, database_key(info))
            process.pools[told.number] = pool
            self.weight += pool_weight(info)
            fresh = young and not told.moved
            unknown, past = not fresh and process.sequence > 0, not fresh
            pool.times = NO_TIMES_PACKED if fresh else packed(bounded_times(told.times))
            pool.forget_times(self.clock)
        elif info is not pool.info and info != pool.info:
            key = database_key(info)
            if key != pool.database:
                self.shift(pool.database, minus(NO_GAUGES, pool.gauges), minus(NO_TOTALS, pool.totals))
                self.shift(key, pool.gauges, pool.totals)
            self.weight += pool_weight(info) - pool_weight(pool.info)
            pool.info, pool.database = info, key
        gauges, totals = bounded(told.gauges), bounded(told.totals)
        more, happened = minus(gauges, pool.gauges), minus(totals, pool.totals)
        process.gauges = plus(process.gauges, more)
        process.totals = plus(process.totals, happened)
        self.shift(pool.database, more, happened)
        if told.info is not None or any(told.times):
            before, times = unpacked(pool.times), bounded_times(told.times)
            more_times = times_since(times, before)
            if told.info is None:  # then only what has changed was told
                times = merged_times(before, times)
            if told.moved:
                pool.times = packed(times)
            elif times != before:
                if gauges.pools:
                    self.took(more_times)
                pool.tell_times(packed(times), self.clock)
        if told.moved:
            pool.forget_times(self.clock)
        if past:  # what it counts so far has not just happened
            pool.forget_counts(totals, self.clock)
        else:
            pool.count(totals, self.clock)
        # What remains of closed pools takes over totals of things long past.
        pool.rate = None if unknown else _rate(pool.totals, totals, span) if gauges.pools else 0.0
        if gauges.pools and not (told.left_out or pool.left_out):  # mostly: it has a row, or gets one
            pool.gauges, pool.totals = gauges, totals
        else:
            shown, had_row = pool.shown, pool.has_row
            pool.gauges, pool.totals, pool.left_out = gauges, totals, min(told.left_out, LARGEST_COUNT)
            if (shown and not pool.shown) or (had_row and not pool.has_row):
                self.bury(("pool", process.instance, told.number))
        self._raise(pool, gauges, told.peaks)
        pool.longest_wait = told.peaks.longest_wait
        pool.waiting_since = None if told.wait is None else self.clock - told.wait
        pool.held_since = None if told.held is None else self.clock - told.held
        pool.version = self.version

    # --- connections

    def _take_connections(self, process: ProcessRecord, report: Report) -> None:
        if report.full:
            before = process.connections
            for record in before.values():
                self.weight -= connection_weight(record)
            process.connections = {}
            process.refused = False
            for pool in process.pools.values():
                pool.listed = 0
            for connection in report.connections:
                self._take_connection(process, connection)
            for number in before:
                if number not in process.connections:
                    self.bury(("connection", process.instance, number))
            return
        for number in report.closed_connections:
            if number in process.connections:
                self._close_connection(process, number)
        for connection in report.connections:
            self._take_connection(process, connection)

    def _close_connection(self, process: ProcessRecord, number: int) -> None:
        record = process.connections.pop(number)
        self.weight -= connection_weight(record)
        if (pool := process.pools.get(record.pool)) is not None:
            pool.listed -= 1
        self.bury(("connection", process.instance, number))

    def _take_connection(self, process: ProcessRecord, told: Connection) -> None:
        pool = process.pools.get(told.pool)
        if pool is None:
            return
        weight = connection_weight(told)
        connections = process.connections
        known = connections.get(told.number)
        before = 0
        if known is not None:
            before = connection_weight(known)
        elif len(connections) >= self.limits.connections:
            process.refused = True
            return
        if weight > before and self.weight + weight - before > self.limits.room:
            # Without what says where it is held there may be room; what is known already must not get stale.
            told = msgspec.structs.replace(told, holder=None, call_site=None, stack=(), holder_site=None)
            weight = connection_weight(told)
            if weight > before and self.weight + weight - before > self.limits.room:
                process.refused = True
                return
        self.weight += weight - before
        if known is None or known.pool != told.pool:
            pool.listed += 1
            if known is not None and (old := process.pools.get(known.pool)) is not None:
                old.listed -= 1
        clock = self.clock
        connections[told.number] = ConnectionRecord(
            told.number,
            told.pool,
            told.server_id,
            told.state,
            clock - told.age,
            None if told.held is None else clock - told.held,
            told.holder,
            told.call_site,
            told.stack,
            self.version,
            told.server,
            told.holder_in,
            told.holder_site,
        )

    # --- call sites

    def _take_sites(self, process: ProcessRecord, report: Report) -> None:
        """Replace (full report) or change what is known of the process's call sites.

        What is too much, or of a pool that is not known, is left out: the first ones stay.
        """
        if report.full:
            if process.sites:
                self.weight -= sites_weight(process)
                process.sites = {}
        elif not report.sites:
            return
        number = sum([len(sites) for sites in process.sites.values()])
        for site in report.sites:
            number += self._take_site(process, site, number < self.limits.sites)

    def _take_site(self, process: ProcessRecord, site: SiteReport, place: bool) -> bool:
        """Take one; return whether it is new. `place`: whether there is a place for one more."""
        if site.pool and site.pool not in process.pools:  # 0: of several pools
            return False
        sites = process.sites.get(site.pool, {})
        new = site.call_site not in sites
        if new:
            weight = site_weight(site.call_site)
            if not place or self.weight + weight > self.limits.room:
                return False
            self.weight += weight
            process.sites[site.pool] = sites
        sites[site.call_site] = site_record(site)
        return new

    def _forget_sites(self, process: ProcessRecord, pool: int) -> None:
        for call_site in process.sites.pop(pool, ()):
            self.weight -= site_weight(call_site)

    # --- reading, dumping, loading

    def rows(
        self, query: Query, *, service: str, node: str, leader: str | None, quorum: bool, stale: float
    ) -> Iterator[Rows]:
        """Return the answer to a query, in frames; see `rows.answer`."""
        return answers.answer(
            self, query, service=service, node=node, leader=leader, quorum=quorum, stale=stale
        )  # fmt: skip

    def dump(self) -> bytes:
        """Return the whole state; equal bytes, equal state."""
        return checkpoint.dump(self)

    def digest(self) -> str:
        """Return a short text (hexadecimal) that is equal where the state is equal."""
        return hashlib.blake2b(self.dump(), digest_size=16).hexdigest()

    @classmethod
    def load(cls, data: bytes, limits: Limits = LIMITS) -> State:
        """Return the state that was dumped. Raises ProtocolError where this is no dump of it."""
        state = cls(limits)
        checkpoint.restore(state, data)
        return state


def _rate(before: Totals, after: Totals, span: float) -> float | None:
    """Return checkouts per second over `span` seconds; None where that is not known (0)."""
    if span <= 0.0:
        return None
    return min(max(after.checkouts - before.checkouts, 0) / span, LARGEST_RATE)

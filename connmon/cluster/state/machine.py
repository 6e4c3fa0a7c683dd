"""The replicated state machine: from batches to the connections of every process. Pure.

- No I/O, no clock, no randomness: replicas that apply the same batches in the same order have the same state,
  byte for byte in a checkpoint, also where one was loaded from another's checkpoint.
- `apply` never raises, whatever a batch says. Invalid input is dropped deterministically, so replicas agree.
  (A replicated method that raises shakes the leadership.)
- A batch counts once, by its boot and number; a report counts once, by its sequence number.
- A full report replaces what is known of a process, but not its maxima. A change counts only on top of the
  report that it builds on; otherwise a full report is asked for.
- What a limit leaves out is counted. As soon as some of it would fit, a full report is asked for: of a
  process at most every `StateSettings.full_report_interval_seconds`, and of no more unknown
  processes than there are places.
- Within a batch time passes first, then reports count, then departures, and then silent processes expire: no
  process is lost in the batch that brings its report.
- A program's maximum is the largest, over all reports applied, of the sum of its processes' present values
  with the reporting process's own peak in place of its present value; a database's, the same of pools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from connmon.cluster.state import answers, call_site_rows, checkpoint, lookups
from connmon.cluster.state.answer_frames import About, Sources
from connmon.cluster.state.contents import Contents
from connmon.cluster.state.figures import RowFigures
from connmon.cluster.state.groups import Group
from connmon.cluster.state.hold_profiles import packed_profiles
from connmon.cluster.state.judging import Judge
from connmon.cluster.state.records import (
    NO_GAUGES,
    NO_TOTALS,
    EndedRecord,
    ProcessRecord,
    raise_maxima,
)
from connmon.cluster.state.reported import Connections, Pools, rate
from connmon.cluster.state.reported_call_sites import Counting, ReportedCallSites, counted_profiles
from connmon.cluster.state.settings import ANSWERS, SETTINGS, AnswerSettings, Limits, StateSettings
from connmon.cluster.state.times import added_times, packed, unpacked
from connmon.cluster.state.weights import (
    BARE_CONNECTION_WEIGHT,
    LARGEST_POOL_WEIGHT,
    PROCESS_WEIGHT,
    call_sites_weight,
    connections_weight,
    pool_weight,
    surpluses_weight,
)
from connmon.protocol.batch import Batch, Departure, Tick
from connmon.protocol.queries import RowsQuery, UsersQuery, WaitsQuery
from connmon.protocol.reports import Report
from connmon.protocol.rows import RowKey, Rows
from connmon.protocol.values import Peaks, Times, Totals, minus, plus

NO_PEAKS: Final = Peaks()


class Outcome(Struct, frozen=True):
    """What became of a batch."""

    version: int
    """Of the state, after the batch."""
    answers: tuple[tuple[str, int, bool], ...]
    """For each report, in order: instance, sequence, and whether a full report is wanted."""
    applied: bool
    """False: the batch was applied before, and changes nothing now."""


class StateMachine:
    """What the processes of the whole service last reported, and what that adds up to."""

    def __init__(self, settings: StateSettings = SETTINGS, answering: AnswerSettings = ANSWERS) -> None:
        self.contents = contents = Contents(settings)
        self.answering = answering
        self.judge = Judge(contents, answering.judged_connections)
        """Makes verdicts when somebody asks; nothing of it is replicated."""
        self.figures = RowFigures(contents, self.judge)
        self._sources = Sources(contents, self.judge, self.figures, answering)
        self._call_sites = ReportedCallSites(contents)
        self._connections = Connections(contents)
        self._pools = Pools(contents, self._connections, self._call_sites)
        self._invited = 0
        """How many unknown processes the current batch asks for a full report."""

    def __repr__(self) -> str:
        return (
            f"<StateMachine {self.epoch or 'empty'} version {self.version}: {len(self.processes)} processes, "
            f"{len(self.groups)} groups>"
        )

    # --- contents

    @property
    def version(self) -> int:
        """Grows by one with each batch that is applied."""
        return self.contents.now.version

    @property
    def clock(self) -> float:
        """Seconds; moved by ticks only."""
        return self.contents.now.clock

    @property
    def epoch(self) -> str:
        """Names this life of the state: versions of another epoch mean nothing here."""
        return self.contents.epoch

    @epoch.setter
    def epoch(self, name: str) -> None:
        self.contents.epoch = name

    @property
    def settings(self) -> StateSettings:
        return self.contents.settings

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    @property
    def processes(self) -> Mapping[str, ProcessRecord]:
        """By instance, the one that has been silent longest first."""
        return self.contents.processes.by_instance

    @property
    def groups(self) -> Mapping[RowKey, Group]:
        return self.contents.groups.by_key

    def left_out(self) -> dict[str, int]:
        """Return how many pools, connections and processes each limit leaves out now."""
        return self.contents.left_out()

    @property
    def forgotten(self) -> dict[str, int]:
        """What limits made this replica forget early, since it was made or loaded, by the limit's name."""
        return self.contents.forgotten()

    # --- batches

    def apply(self, batch: Batch) -> Outcome:
        """Apply one replicated command. Never raises."""
        contents, now = self.contents, self.contents.now
        if contents.boots.has(batch):
            answers = tuple([(r.instance, r.sequence, self._lacks(r)) for r in batch.reports])
            return Outcome(version=now.version, answers=answers, applied=False)
        now.version += 1
        if not contents.epoch:
            contents.epoch = batch.boot
        if batch.tick is not None:
            now.clock += min(max(batch.tick.step, 0.0), contents.settings.clock_step_seconds)
            contents.recent_times.turn()
        contents.boots.note(batch, now.clock)
        self._invited = 0
        answers = tuple([(r.instance, r.sequence, self._report(batch.node, r)) for r in batch.reports])
        for departure in batch.departures:
            self._depart(batch.node, departure)
        if batch.tick is not None:
            self._expire(batch.tick)
        return Outcome(version=now.version, answers=answers, applied=True)

    def _depart(self, node: str, departure: Departure) -> None:
        process = self.processes.get(departure.instance)
        self.contents.turned_away.remove(departure.instance)
        if process is not None and process.node == node and process.sequence <= departure.sequence:
            self._drop(process)

    def _expire(self, tick: Tick) -> None:
        """Lose, drop and forget what the clock says."""
        contents, settings = self.contents, self.contents.settings
        clock, lease = contents.now.clock, tick.lease
        dropped_after = settings.leases_until_dropped * lease
        dropped_rows = 0
        for process in contents.processes.silent(clock, lease, dropped_after):
            if clock - process.reported > dropped_after and dropped_rows < settings.rows_dropped_per_tick:
                sites = sum(map(len, process.sites.values()))
                dropped_rows += 1 + len(process.pools) + len(process.connections) + sites
                self._drop(process)
            elif not process.lost:
                contents.groups.set_lost(process, True)
        contents.turned_away.expire(lease)
        contents.ended.expire(clock, settings.remember_seconds)
        for key in contents.groups.expire(settings.remember_seconds, settings.limits.gone):
            contents.tombstones.bury(key)
        contents.boots.expire(clock, settings.remember_seconds)

    # --- processes that come and go

    def _admit(self, process: ProcessRecord) -> Counting:
        """Take in a process that has no pools yet; what it was before it was dropped is taken back.

        Return how its call sites are to be taken.
        """
        contents = self.contents
        counting = Counting("past", contents.now.clock)
        ended = contents.ended.remove(process.instance)
        if ended is not None:
            counting = self._call_sites.come_back(process, ended)
            for (key, totals), times in zip(ended.totals, ended.times, strict=True):
                group = self.groups.get(key)
                # A younger group of this key has never had the process among its ended ones.
                if group is not None and group.born <= ended.version:
                    group.take_back(totals, unpacked(times))
                    contents.groups.touch(group)
        contents.turned_away.remove(process.instance)
        contents.processes.put_last(process)
        contents.room.weight += PROCESS_WEIGHT
        for key in (process.program_key, process.host_key):
            contents.groups.enroll(contents.groups.at(key), process)
        return counting

    def _drop(self, process: ProcessRecord) -> None:
        """Take the process out; its totals live on in the ended totals of its groups."""
        contents = self.contents
        if not process.lost:
            contents.groups.set_lost(process, True)
        totals, times = _totals_by_group(process)
        for key, happened in totals.items():
            group = self.groups[key]
            group.add_ended(happened, times[key])
            contents.groups.unenroll(group, process)
        contents.room.weight -= (
            PROCESS_WEIGHT
            + sum([pool_weight(pool.info) for pool in process.pools.values()])
            + connections_weight(process.connections.values())
            + call_sites_weight(process)
            + surpluses_weight(process)
        )
        self.judge.forget(process.instance)
        for key in process.row_keys():
            contents.tombstones.bury(key)
        contents.processes.remove(process.instance)
        profiles = packed_profiles(counted_profiles(process))
        contents.ended.add(
            EndedRecord(
                instance=process.instance,
                sequence=process.sequence,
                at=contents.now.clock,
                version=contents.now.version,
                reported=process.reported,
                totals=tuple(totals.items()),
                times=tuple([packed(times[key]) for key in totals]),
                profiles=profiles if not profiles or len(profiles) <= contents.room.spare else None,
            )
        )

    # --- reports

    def _has(self, report: Report) -> bool:
        """Whether this report, or a later one of its instance, was applied already."""
        known = self.processes.get(report.instance) or self.contents.ended.by_instance.get(report.instance)
        return known is not None and report.sequence <= known.sequence

    def _lacks(self, report: Report) -> bool:
        """Whether to ask for a full report instead of this one, which is not applied.

        Never instead of a full one (another would be no better), nor from a process for which there is no
        place: it would send nothing but full reports from then on.
        """
        if report.full or self._has(report):
            return False
        return report.instance in self.processes or self.contents.places() > 0

    def _report(self, node: str, report: Report) -> bool:
        """Apply one report; return whether a full one is wanted instead."""
        if self._has(report):
            return False
        now = self.contents.now
        process = self.processes.get(report.instance)
        if process is not None:
            if not report.full and report.base != process.sequence:
                return True
            if report.sequence == process.sequence + 1:
                span = report.interval
            else:  # the reports between were lost, and with them their intervals
                span = max(report.interval, now.clock - process.reported)
            counting = Counting.of(now.clock, now.clock - span)
        elif report.full and report.process is not None and self.contents.places() > 0:
            process = ProcessRecord(
                instance=report.instance,
                node=node,
                process=report.process,
                sequence=0,
                reported=now.clock,
                version=now.version,
            )
            counting, span = self._admit(process), 0.0
            age = report.process.started
            if report.sequence == 1 and age is not None:  # all that it counts has happened since its start
                counting = Counting.of(now.clock, now.clock - age)
        else:
            return self._keep_out(report)
        self._take(process, report, span, counting)
        process.node = node
        process.sequence = report.sequence
        process.reported = now.clock
        process.version = now.version
        self.contents.processes.put_last(process)
        return process.left_out > 0 and not report.full and self._would_fit(process)

    def _keep_out(self, report: Report) -> bool:
        """Leave out an unknown process; return whether to ask it for a full report, since it has a place."""
        places = self.contents.places()
        if self._lacks(report) and self._invited < places:
            self._invited += 1
            return True
        if self._invited >= places:
            self.contents.turned_away.add(report.instance)
        return False

    def _would_fit(self, process: ProcessRecord) -> bool:
        """Whether to ask the process for a full report, since some of what was refused fits now."""
        settings, clock, free = self.contents.settings, self.contents.now.clock, self.contents.room.free
        if process.asked is not None and clock - process.asked < settings.full_report_interval_seconds:
            return False
        pools = process.refused_pools > 0 and len(process.pools) < settings.limits.pools
        connections = process.refused and len(process.connections) < settings.limits.connections
        if (pools and free >= LARGEST_POOL_WEIGHT) or (connections and free >= BARE_CONNECTION_WEIGHT):
            process.asked = clock
            return True
        return False

    def _take(self, process: ProcessRecord, report: Report, span: float, counting: Counting) -> None:
        """Replace or change what is known of the process, and what its groups add up to.

        `span` is how many seconds the report's changes took; 0: unknown. `counting`: what the increases of
        its call sites are.
        """
        if process.lost:
            self.contents.groups.set_lost(process, False)
        gauges, totals, databases = process.gauges, process.totals, process.databases()
        self._take_identity(process, report)
        came_in = self._pools.take(process, report, span)
        self._connections.take(process, report)
        self._call_sites.take(process, report, counting)
        process.unlisted = report.left_out
        if process.shared or process.refused_pools or process.refused or process.unlisted or process.left_out:
            self.contents.processes.count_left_out(process)
        self._sum_up(process, report, databases)
        groups = self.contents.groups
        more = NO_GAUGES if process.gauges is gauges else minus(process.gauges, gauges)
        changes = more, minus(process.totals, totals)
        for key in (process.program_key, process.host_key):
            groups.shift(key, *changes)
            raise_maxima(self.groups[key], process.gauges, report.peaks)
            self.groups[key].reported = self.clock
        process.checkouts_per_second = None if came_in else rate(totals, process.totals, span)
        raise_maxima(process, process.gauges, report.peaks)
        process.longest_wait = report.peaks.longest_wait

    def _sum_up(self, process: ProcessRecord, report: Report, before: Mapping[RowKey, None]) -> None:
        """Count the process in its databases; `before`: those that it counted in until now."""
        groups, databases = self.contents.groups, process.databases()
        for key in databases:
            if key not in before:
                groups.enroll(groups.at(key), process)
        for key in before:
            if key not in databases:
                groups.unenroll(self.groups[key], process)
        for key in databases:
            group = self.groups[key]
            raise_maxima(group, NO_GAUGES, NO_PEAKS)
            groups.touch(group)
            group.reported = self.clock
        for pool_report in report.pools:
            pool = process.pools.get(pool_report.number)
            if pool is not None:
                raise_maxima(self.groups[pool.database], pool.gauges, pool_report.peaks)

    def _take_identity(self, process: ProcessRecord, report: Report) -> None:
        identity = report.process
        if identity is not None:
            # The groups that it counts in must not change while it counts there.
            was = process.process
            if identity.host != was.host or identity.program != was.program:
                identity = msgspec.structs.replace(identity, host=was.host, program=was.program)
            process.process = identity
            process.started = None if identity.started is None else self.clock - identity.started
        if report.usage is not None:
            process.usage = report.usage

    # --- reading

    def rows(self, query: RowsQuery, about: About) -> Iterator[Rows]:
        """Return the answer to a query, in one or several frames with the same header.

        Apply nothing during the call itself; between two frames anything may be applied.
        """
        if isinstance(query, WaitsQuery):
            return lookups.waits(self._sources, query, about)
        if isinstance(query, UsersQuery):
            return lookups.users(self._sources, query, about)
        if query.by == "site":
            return call_site_rows.answer(self._sources, query, about)
        return answers.answer(self._sources, query, about)

    # --- checkpoints

    def encode(self) -> bytes:
        """Return the whole state as a checkpoint; equal bytes, equal state."""
        return checkpoint.encode(self.contents)

    def digest(self) -> str:
        """Return a short text (hexadecimal) that is equal where the state is equal."""
        return hashlib.blake2b(self.encode(), digest_size=16).hexdigest()

    @classmethod
    def decode(
        cls, data: bytes, settings: StateSettings = SETTINGS, answering: AnswerSettings = ANSWERS
    ) -> StateMachine:
        """Return the state of a checkpoint. Raises ProtocolError where it cannot be read."""
        state = cls(settings, answering)
        checkpoint.decode(data, state.contents)
        return state

    def replacement(self, data: bytes | None = None) -> StateMachine:
        """Return the state of a checkpoint, or an empty one, with the settings of this one.

        Raises ProtocolError where the checkpoint cannot be read.
        """
        if data is None:
            return StateMachine(self.settings, self.answering)
        return StateMachine.decode(data, self.settings, self.answering)


def _totals_by_group(process: ProcessRecord) -> tuple[dict[RowKey, Totals], dict[RowKey, Times]]:
    """Return a process's totals and times in each of its groups: the databases first."""
    totals: dict[RowKey, Totals] = dict.fromkeys(process.databases(), NO_TOTALS)
    parts: dict[RowKey, list[Times]] = {key: [] for key in totals}
    for pool in process.pools.values():
        totals[pool.database] = plus(totals[pool.database], pool.totals)
        parts[pool.database].append(unpacked(pool.times))
    times = {key: added_times(part) for key, part in parts.items()}
    totals[process.program_key] = totals[process.host_key] = process.totals
    times[process.program_key] = times[process.host_key] = added_times(list(times.values()))
    return totals, times

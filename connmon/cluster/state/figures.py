"""The figures of each row: of a process, a pool, a group, and of everything. Pure; changes only caches.

Figures are at most what the wire allows, whatever the processes have reported. Those of a group and of
everything are aggregated by the rules of `connmon.protocol.aggregate`; its gauges, totals and maxima are
running sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from connmon.cluster.state.contents import Contents
from connmon.cluster.state.groups import Group
from connmon.cluster.state.judging import Judge
from connmon.cluster.state.records import NO_GAUGES, PoolRecord, ProcessRecord
from connmon.cluster.state.times import NO_TIMES, added_times
from connmon.protocol import histogram
from connmon.protocol.aggregate import aggregate_figures
from connmon.protocol.rows import Figures, Quantiles, RowKey
from connmon.protocol.values import LARGEST, Times, VerdictWord, plus, saturated
from connmon.protocol.verdicts import WORDS

UNKNOWN = Quantiles()


class FleetTotals(NamedTuple):
    """The figures of everything, and how many hosts and programs (per host) are not gone."""

    figures: Figures
    hosts: int
    programs: int
    verdicts: tuple[tuple[VerdictWord, int], ...]
    """How many programs have each verdict as their gravest, the gravest first."""


class _PoolShare(NamedTuple):
    """What the figures of a database aggregate of one pool."""

    reported: float
    longest_wait: float
    waiting_since: float | None
    held_since: float | None
    checkouts_per_second: float | None
    left_out: int


class RowFigures:
    """Makes figures of the present contents; those of unchanged groups come from a cache."""

    def __init__(self, contents: Contents, judge: Judge) -> None:
        self._contents = contents
        self._judge = judge
        self._totals: tuple[int, FleetTotals] | None = None
        """The totals, and the version as of which a group had last changed."""
        self._recent: dict[str, tuple[int, dict[int, Times]]] = {}
        """The recent times of one process's pools, as of its version."""

    def __repr__(self) -> str:
        return f"<RowFigures of {self._contents!r}>"

    def of_process(self, process: ProcessRecord) -> Figures:
        verdicts, timeouts = self._judge.of_own(process)
        return own_figures(
            process,
            process,
            left_out=process.left_out,
            verdicts=verdicts,
            recent_timeouts=timeouts,
            **self._quantiles(process, process.pools.values()),
        )

    def of_pool(self, process: ProcessRecord, pool: PoolRecord) -> Figures:
        verdicts, timeouts = self._judge.of_own(process, pool)
        return own_figures(
            process,
            pool,
            left_out=process.missing(pool),
            verdicts=verdicts,
            recent_timeouts=timeouts,
            **self._quantiles(process, (pool,)),
        )

    def _quantiles(self, process: ProcessRecord, pools: Iterable[PoolRecord]) -> dict[str, Quantiles]:
        """Return the quantiles of some pools of a process; its rows are made one after the other."""
        if process.lost:
            return _quantiles(NO_TIMES)
        version, recent = self._recent.get(process.instance, (-1, {}))
        if version != process.version:
            recent = {pool.number: pool.recent_times(process.reported) for pool in process.pools.values()}
            self._recent = {process.instance: (process.version, recent)}
        return _quantiles(_sum([recent[pool.number] for pool in pools]))

    def of_group(self, group: Group) -> Figures:
        """Return the figures of a group with its quantiles."""
        pools = group.pools(present=True)
        return msgspec.structs.replace(
            self.of_group_sums(group), **_quantiles_of(pools, group.reported or 0.0)
        )  # fmt: skip

    def of_group_sums(self, group: Group) -> Figures:
        """Return the figures of a group without its quantiles, which take much longer."""
        figures = group.figures
        if figures is None or group.figures_version != group.version:
            figures = self._aggregated(group)
        # The verdict of a server depends on other groups too.
        servers = self._judge.of_servers(group)
        return (
            msgspec.structs.replace(figures, verdicts=(*figures.verdicts, *servers)) if servers else figures
        )

    def _aggregated(self, group: Group) -> Figures:
        parts: list[Any] = []
        members = [process for process in group.members.values() if not process.lost]
        if group.key[0] == "database":
            for process in members:
                parts += _pool_parts(process, group.key)
        else:
            parts += members
        verdicts, timeouts = self._judge.of_group(group)
        group.figures = figures = aggregate_figures(
            parts,
            processes=group.processes,
            lost_processes=group.lost,
            gauges=saturated(group.gauges),
            totals=saturated(plus(group.totals, group.ended)),
            max_processes=group.max_processes,
            max_connections=min(group.max_connections, LARGEST),
            max_checked_out=min(group.max_checked_out, LARGEST),
            max_waiting=min(group.max_waiting, LARGEST),
            reported=group.reported,
            verdicts=verdicts,
            recent_timeouts=timeouts,
        )
        group.figures_version = group.version if self._judge.lasts(verdicts) else -1
        return figures

    def of_database_user(
        self, pools: list[tuple[ProcessRecord, PoolRecord]], database: RowKey, clock: float
    ) -> Figures:
        """Return the figures of one program's pools in a database; a pool comes with its process.

        Maxima are sums of the pools' maxima, so never below what was seen. `clock` is when one of the
        database's processes last reported.
        """
        parts = [
            own_figures(process, pool, left_out=pool.left_out + process.missing(pool))
            for process, pool in pools
        ]
        processes = {process.instance: process for process, _ in pools}
        lost = sum(process.lost for process in processes.values())
        verdicts, timeouts = self._judge.of_database_user(processes, database)
        return aggregate_figures(
            parts,
            [process.state for process, _ in pools],
            processes=len(processes) - lost,
            lost_processes=lost,
            max_processes=len(processes),
            verdicts=verdicts,
            recent_timeouts=timeouts,
            **_quantiles_of([pool for process, pool in pools if not process.lost], clock),
        )

    def totals(self) -> FleetTotals:
        """Return the figures of everything."""
        contents = self._contents
        if self._totals is not None and self._totals[0] == contents.now.moved:
            return self._totals[1]
        hosts = programs = 0
        parts: list[Figures] = []
        gravest: Counter[VerdictWord] = Counter()
        for group in contents.groups.by_key.values():
            if group.key[0] == "host":
                hosts += bool(group.members)
            elif group.key[0] == "program":
                parts.append(figures := self.of_group_sums(group))
                if group.members:
                    programs += 1
                    gravest.update([verdict.word for verdict in figures.verdicts[:1]])
        figures = aggregate_figures(
            parts,
            ["connected" if part.processes else "lost" for part in parts],
            **_quantiles(contents.recent_times.total()),
        )
        if contents.turned_away:
            left_out = min(figures.left_out + len(contents.turned_away), LARGEST)
            figures = msgspec.structs.replace(figures, left_out=left_out)
        verdicts = tuple([(word, gravest[word]) for word in WORDS if gravest[word]])
        totals = FleetTotals(figures, hosts, programs, verdicts)
        self._totals = contents.now.moved, totals
        return totals


def own_figures(
    process: ProcessRecord, record: ProcessRecord | PoolRecord, left_out: int, **more: Any
) -> Figures:
    """Return the figures of a process, or of one of its pools, without quantiles and verdicts."""
    lost = process.lost
    return Figures(
        processes=0 if lost else 1,
        lost_processes=1 if lost else 0,
        gauges=NO_GAUGES if lost else saturated(record.gauges),
        totals=saturated(record.totals),
        max_processes=1,
        max_connections=record.max_connections,
        max_checked_out=record.max_checked_out,
        max_waiting=record.max_waiting,
        longest_wait=0.0 if lost else record.longest_wait,
        waiting_since=None if lost else record.waiting_since,
        held_since=None if lost else record.held_since,
        checkouts_per_second=0.0 if lost else record.checkouts_per_second,
        reported=process.reported,
        left_out=0 if lost else min(left_out, LARGEST),
        **more,
    )


def _pool_parts(process: ProcessRecord, database: RowKey) -> list[_PoolShare]:
    return [
        _PoolShare(
            reported=process.reported,
            longest_wait=pool.longest_wait,
            waiting_since=pool.waiting_since,
            held_since=pool.held_since,
            checkouts_per_second=pool.checkouts_per_second,
            left_out=pool.left_out + process.missing(pool) if process.left_out else 0,
        )
        for pool in process.pools.values()
        if pool.database == database
    ]


def _quantiles_of(pools: Iterable[PoolRecord], clock: float) -> dict[str, Quantiles]:
    """Return the quantiles of what ended lately in all these pools.

    `clock` is when the row was last reported: a row changes by reports alone, and not with the time.
    """
    return _quantiles(_sum([pool.recent_times(clock) for pool in pools]))


def _sum(parts: list[Times]) -> Times:
    filled = [times for times in parts if times is not NO_TIMES]
    return filled[0] if len(filled) == 1 else added_times(filled)


def _quantiles(times: Times) -> dict[str, Quantiles]:
    return {name: _quantile_values(counts) for name, counts in zip(times._fields, times, strict=True)}


def _quantile_values(counts: histogram.Histogram) -> Quantiles:
    if not counts:
        return UNKNOWN
    return Quantiles(*histogram.quantiles(counts, (50, 95, 99)))

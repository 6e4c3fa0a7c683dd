"""The sum over the pools of one database beyond those that a process reports one by one. Pure.

- It counts exactly what its pools count: a pool that gets a report of its own takes its part along, and what
  remains of a closed pool goes where the remains of all closed pools go.
- Its peak is the largest sum with one pool's peak in place of its present, as a node computes a database's,
  but no more than the process's.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import structs

from connmon.plugin.pool_account import PoolAccount
from connmon.protocol.histogram import added
from connmon.protocol.reports import PoolInfo, PoolReport
from connmon.protocol.rows import database_key
from connmon.protocol.values import Gauges, Peaks, Times, Totals, changed_times, plus

#: Stands for the pools' URL.
OTHERS = "(others)"


class PoolFigures(NamedTuple):
    """What an account has counted, at one moment."""

    account: PoolAccount
    gauges: Gauges
    totals: Totals
    times: Times
    peaks: Peaks
    """Since the last acknowledged report."""
    held_since: float | None
    """When the longest present hold began."""
    waits_since: float | None
    """When the longest present wait began."""

    def facts(self) -> tuple[object, ...]:
        """Return what must have changed for the pool to be reported again."""
        return self.gauges, self.totals, self.times, self.peaks, self.held_since, self.waits_since


class PoolSum:
    """The sum over the pools of one database that have no report of their own."""

    def __init__(self, number: int, info: PoolInfo) -> None:
        self.number = number
        self.info = structs.replace(
            info, url=OTHERS, pool_class="", pool_size=None, max_overflow=None, timeout=None
        )
        self.reported: object = None
        """What the last report said of it. None: nothing yet."""
        self.reported_times = Times()
        self.moved_after: int | None = None
        """The report after which a pool has left this sum, until a later one is acknowledged."""
        self.pools: list[PoolFigures] = []
        """What the next report sums up."""

    def __repr__(self) -> str:
        return f"<PoolSum {self.number}: {len(self.pools)} pools of {self.info.database}>"

    def has(self, info: PoolInfo) -> bool:
        """Return whether pools of this database are summed here."""
        return self.info.dialect == OTHERS or database_key(self.info) == database_key(info)

    def take(self, now: float, full: bool, process_peaks: Peaks) -> PoolReport | None:
        """Return the sum's report, or None where nothing has changed. Empties `pools`."""
        pools, self.pools = self.pools, []
        gauges, totals = Gauges(), Totals()
        for pool in pools:
            gauges, totals = plus(gauges, pool.gauges), plus(totals, pool.totals)
        peaks = _peaks(pools, gauges, process_peaks)
        times = Times(*[added(counts) for counts in zip(*[pool.times for pool in pools], strict=True)])
        held_since = min((pool.held_since for pool in pools if pool.held_since is not None), default=None)
        waits_since = min((pool.waits_since for pool in pools if pool.waits_since is not None), default=None)
        facts = (gauges, totals, times, peaks, held_since, waits_since, len(pools))
        if not full and facts == self.reported:
            return None
        # Where a pool has left the sum, some counts are gone, which only the whole of them can show.
        with_info = full or self.reported is None or self.moved_after is not None
        reported_times, self.reported, self.reported_times = self.reported_times, facts, times
        return PoolReport(
            number=self.number,
            info=self.info if with_info else None,
            gauges=gauges,
            totals=totals,
            peaks=peaks,
            wait=age(now, waits_since),
            held=age(now, held_since),
            times=times if with_info else changed_times(times, reported_times),
            left_out=gauges.pools,
            moved=self.moved_after is not None,
        )


def _peaks(pools: list[PoolFigures], gauges: Gauges, process_peaks: Peaks) -> Peaks:
    """Return the peaks of the sum: see the module's docstring."""
    connections = max(pool.peaks.connections - pool.gauges.connections for pool in pools)
    checked_out = max(pool.peaks.checked_out - pool.gauges.checked_out for pool in pools)
    waiting = max(pool.peaks.waiting - pool.gauges.waiting for pool in pools)
    return Peaks(
        min(gauges.connections + connections, process_peaks.connections),
        min(gauges.checked_out + checked_out, process_peaks.checked_out),
        min(gauges.waiting + waiting, process_peaks.waiting),
        max(pool.peaks.longest_wait for pool in pools),
    )


def age(now: float, since: float | None) -> float | None:
    """Return the seconds since then; None where that is not known."""
    return None if since is None else max(0.0, now - since)

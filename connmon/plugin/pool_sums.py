"""The pools of one database beyond those that a process reports one by one: one sum. Pure.

- It counts what its pools count, exactly: a pool that gets a report of its own takes its part along, and
  what remains of a closed one goes where the remains of all closed pools go.
- Its peak is the largest sum with one pool's peak in place of its present, as of a database on the node,
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


class Counted(NamedTuple):
    """What an account has counted, at one moment."""

    account: PoolAccount
    gauges: Gauges
    totals: Totals
    times: Times
    peaks: Peaks
    """Those that are not acknowledged yet."""
    held_since: float | None
    waits_since: float | None

    def facts(self) -> tuple[object, ...]:
        """Return what must have changed for the pool to be reported again."""
        return self.gauges, self.totals, self.times, self.peaks, self.held_since, self.waits_since


class Surplus:
    """The sum over the surplus pools of one database."""

    def __init__(self, number: int, info: PoolInfo) -> None:
        self.number = number
        self.info = structs.replace(
            info, url=OTHERS, pool_class="", pool_size=None, max_overflow=None, timeout=None
        )
        self.told: object = None
        """What the last report said of it; None: nothing yet."""
        self.told_times = Times()
        self.moved_after: int | None = None
        """After which report a pool has left it, until a later one is acknowledged."""
        self.counted: list[Counted] = []

    def has(self, info: PoolInfo) -> bool:
        """Whether pools of this database count in here."""
        return self.info.dialect == OTHERS or database_key(self.info) == database_key(info)

    def take(self, now: float, full: bool, whole: Peaks) -> PoolReport | None:
        """Return its report where there is something to report. What it has counted is forgotten.

        `whole` are the process's own peaks.
        """
        counted, self.counted = self.counted, []
        gauges, totals = Gauges(), Totals()
        for each in counted:
            gauges, totals = plus(gauges, each.gauges), plus(totals, each.totals)
        opened = max(each.peaks.connections - each.gauges.connections for each in counted)
        checked_out = max(each.peaks.checked_out - each.gauges.checked_out for each in counted)
        waiting = max(each.peaks.waiting - each.gauges.waiting for each in counted)
        peaks = Peaks(
            min(gauges.connections + opened, whole.connections),
            min(gauges.checked_out + checked_out, whole.checked_out),
            min(gauges.waiting + waiting, whole.waiting),
            max(each.peaks.longest_wait for each in counted),
        )
        times = Times(*[added(counts) for counts in zip(*[each.times for each in counted], strict=True)])
        held = min((each.held_since for each in counted if each.held_since is not None), default=None)
        first = min((each.waits_since for each in counted if each.waits_since is not None), default=None)
        facts = (gauges, totals, times, peaks, held, first, len(counted))
        if not full and facts == self.told:
            return None
        # Where a pool has left it, counts are gone, which only all of them can tell.
        with_info = full or self.told is None or self.moved_after is not None
        told_times, self.told, self.told_times = self.told_times, facts, times
        return PoolReport(
            self.number,
            self.info if with_info else None,
            gauges,
            totals,
            peaks,
            age(now, first),
            age(now, held),
            times if with_info else changed_times(times, told_times),
            left_out=gauges.pools,
            moved=self.moved_after is not None,
        )


def age(now: float, since: float | None) -> float | None:
    """Return the seconds since then; None where that is not known."""
    return None if since is None else max(0.0, now - since)

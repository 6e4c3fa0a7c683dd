"""What a report has of the lines that take connections. Pure.

Rules:

1. What is counted is absolute. A line is reported when something of it has changed: at once where somebody
   waits there or has ceased to, else every `INTERVAL` seconds, since of a busy program all lines have changed
   at each report. The last report of a process has all that has changed.
2. Lines that have no report of their own are one, `OTHER`, of no pool (number 0).
3. One that holds something is reported again after `REFRESH` seconds although nothing has changed: the
   replica ages it by its own clock, and that can lag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from connmon.plugin.call_site_accounts import Room, SiteAccount
from connmon.plugin.pool_account import PoolAccount
from connmon.plugin.pool_sums import age
from connmon.protocol.reports import SiteReport

#: Seconds between two reports of a line where nobody waits.
INTERVAL: Final = 5.0
REFRESH: Final = 30.0


class _Held(NamedTuple):
    """What a line holds now."""

    number: int
    first: float
    """Since when the one is held that is held longest."""


class _Part(NamedTuple):
    """What one pool has of its lines."""

    held: dict[SiteAccount, _Held]
    waiting: Counter[SiteAccount]
    share: float


class SiteReports:
    """Makes the reports of the lines of one process. One thread at a time."""

    def __init__(self, line: Callable[[SiteAccount], str]) -> None:
        """`line` writes a line."""
        self._line = line
        self._parts: list[_Part] = []
        self._now = 0.0
        self._all = self._changed = False

    def begin(self, now: float, *, all_lines: bool, all_changed: bool) -> None:
        """Begin a report: with all lines, or with all that have changed, or with those that are due."""
        self._now, self._all, self._changed = now, all_lines, all_changed
        self._parts = []

    def of(self, account: PoolAccount, checkouts: int) -> list[SiteReport]:
        """Return what is to be reported of this pool, which has had so many checkouts."""
        sites = account.sites
        if not sites.accounts:
            return []
        held: dict[SiteAccount, _Held] = {}
        for entry in list(account.entries.values()):
            since, site = entry.since, entry.site
            if since and site is not None and entry.noted_at == entry.checkouts and not entry.closed:
                count, first = held.get(site.counts, (0, since))
                held[site.counts] = _Held(count + 1, min(first, since))
        part = _Part(held, Counter(list(account.wait_sites.values())), sites.share(checkouts))
        self._parts.append(part)
        return [
            report
            for site in sites.reported()
            if (report := self._one(site, account.number, held.get(site), part.waiting[site], part.share))
        ]

    def others(self, room: Room) -> list[SiteReport]:
        """Return what is to be reported of all lines together that have no report of their own."""
        parts, self._parts = self._parts, []
        other = room.other
        holding = [part.held[other] for part in parts if other in part.held]
        held = None
        if holding:
            held = _Held(sum([each.number for each in holding]), min([each.first for each in holding]))
        waiting = sum([part.waiting[other] for part in parts])
        if other.told is None and not (other.ended or other.holds or held or waiting):
            return []
        report = self._one(other, 0, held, waiting, min([part.share for part in parts], default=1.0))
        return [] if report is None else [report]

    def _one(
        self, site: SiteAccount, pool: int, held: _Held | None, waiting: int, share: float
    ) -> SiteReport | None:
        now, usual, told = self._now, site.count(), site.told
        count, first = held or (0, None)
        facts = (count, first, waiting, usual, share)
        passed = now - site.told_at
        if self._all or told is None:
            due = True
        elif facts == told:
            due = count > 0 and passed > REFRESH
        else:
            due = self._changed or passed >= INTERVAL or waiting > 0 or told[2] != waiting
        if not due:
            return None
        site.told, site.told_at = facts, now
        return SiteReport(pool, self._line(site), count, age(now, first), waiting, *usual, share)

"""What a report says of the call sites that check connections out. Pure.

Rules:

1. Counts are absolute. A call site is reported when something of it has changed: at once where somebody waits
   there or has stopped waiting, else every `interval_seconds`, since in a busy program all call sites have
   changed at each report. The last report of a process has all that have changed.
2. Call sites without a report of their own share one, `OTHER_CALL_SITES`, of no pool (number 0).
3. A call site that holds a connection is reported again after `refresh_seconds` although nothing has changed:
   the replica ages it by its own clock, which can lag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from connmon.plugin.call_site_accounts import CallSiteAccount, CallSiteRoom
from connmon.plugin.pool_account import PoolAccount
from connmon.plugin.pool_sums import age
from connmon.protocol.reports import SiteReport


@dataclass(frozen=True)
class CallSiteReportSettings:
    """How often a call site is reported."""

    interval_seconds: float = 5.0
    """Between two reports of a call site where nobody waits."""
    refresh_seconds: float = 30.0
    """After this a call site that holds a connection is reported again, changed or not."""


class _PresentHolds(NamedTuple):
    """The connections that a call site holds now."""

    number: int
    since: float
    """When the longest of these holds began."""


class _PoolPart(NamedTuple):
    """What one pool contributes to `OTHER_CALL_SITES`."""

    held: dict[CallSiteAccount, _PresentHolds]
    waiting: Counter[CallSiteAccount]
    share: float


class CallSiteReports:
    """Makes the call-site reports of one process. One thread at a time."""

    def __init__(
        self,
        text: Callable[[CallSiteAccount], str],
        settings: CallSiteReportSettings = CallSiteReportSettings(),  # it is immutable
    ) -> None:
        """`text` returns what a call site is called in reports."""
        self._text = text
        self._settings = settings
        self._parts: list[_PoolPart] = []
        self._now = 0.0
        self._all = self._changed = False

    def __repr__(self) -> str:
        return f"<CallSiteReports: {len(self._parts)} pools, as of {self._now:.1f}>"

    def begin(self, now: float, *, everything: bool, all_changed: bool) -> None:
        """Begin a report: with every call site, or all that have changed, or only those that are due."""
        self._now, self._all, self._changed = now, everything, all_changed
        self._parts = []

    def of(self, account: PoolAccount, checkouts: int) -> list[SiteReport]:
        """Return what is due of this pool, which has had `checkouts` checkouts."""
        call_sites = account.call_sites
        if not call_sites.accounts:
            return []
        held: dict[CallSiteAccount, _PresentHolds] = {}
        for entry in list(account.entries.values()):
            since, call_site = entry.since, entry.call_site
            if since and call_site is not None and entry.noted_at == entry.checkouts and not entry.closed:
                number, first = held.get(call_site.counts, (0, since))
                held[call_site.counts] = _PresentHolds(number + 1, min(first, since))
        waiting = Counter(list(account.wait_call_sites.values()))
        part = _PoolPart(held, waiting, call_sites.share(checkouts))
        self._parts.append(part)
        return [
            report
            for call_site in call_sites.reported()
            if (
                report := self._one(
                    call_site, account.number, held.get(call_site), part.waiting[call_site], part.share
                )
            )
        ]

    def others(self, room: CallSiteRoom) -> list[SiteReport]:
        """Return the report of all call sites without one of their own, where it is due."""
        parts, self._parts = self._parts, []
        other = room.other
        in_pools = [part.held[other] for part in parts if other in part.held]
        held = None
        if in_pools:
            number = sum([holds.number for holds in in_pools])
            held = _PresentHolds(number, min([holds.since for holds in in_pools]))
        waiting = sum([part.waiting[other] for part in parts])
        if other.reported is None and not (other.ended or other.holds or held or waiting):
            return []
        share = min([part.share for part in parts], default=1.0)
        report = self._one(other, 0, held, waiting, share)
        return [] if report is None else [report]

    def _one(
        self, account: CallSiteAccount, pool: int, held: _PresentHolds | None, waiting: int, share: float
    ) -> SiteReport | None:
        now, figures, reported = self._now, account.count(), account.reported
        number, since = held or (0, None)
        facts = (number, since, waiting, figures, share)
        passed = now - account.reported_at
        if self._all or reported is None:
            due = True
        elif facts == reported:
            due = number > 0 and passed > self._settings.refresh_seconds
        else:
            interval_over = passed >= self._settings.interval_seconds
            due = self._changed or interval_over or waiting > 0 or reported[2] != waiting
        if not due:
            return None
        account.reported, account.reported_at = facts, now
        # `held` and `longest` are not read by any node: it sums its connections' call sites instead. They
        # stay on the wire, whose structs are arrays.
        return SiteReport(
            pool=pool,
            call_site=self._text(account),
            held=number,
            longest=age(now, since),
            waiting=waiting,
            holds=figures.holds,
            hold_ms=figures.hold_ms,
            usual=figures.usual,
            share=share,
        )

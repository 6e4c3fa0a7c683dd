"""What a report says of the call sites that check connections out. Pure.

Rules:

1. Counts are absolute. A call site is reported when something of it has changed: at once where somebody waits
   there or has stopped waiting, or where few call sites change; else every `interval_seconds`, since in a
   busy program all call sites have changed at each report. The last report of a process has all that have
   changed. While a call site holds a connection, the time that it has held changes.
2. Call sites without a report of their own share one, `OTHER_CALL_SITES`, of no pool (number 0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from connmon.plugin.call_site_accounts import CallSiteAccount, CallSiteRoom, HoldFigures, usual_hold
from connmon.plugin.hold_profile import Places, added_profiles
from connmon.plugin.pool_account import PoolAccount
from connmon.plugin.pool_sums import age
from connmon.protocol.reports import NO_PROFILE, HoldProfile, SiteReport


@dataclass(frozen=True)
class CallSiteReportSettings:
    """How often a call site is reported."""

    interval_seconds: float = 5.0
    """Between two reports of a call site where nobody waits, and more than `few` change."""
    few: int = 8
    """So few call sites, if no more have changed since the report before, are reported at once."""


class _PresentHolds(NamedTuple):
    """The connections that a call site holds now."""

    number: int
    since: float
    """When the longest of these holds began."""


class _Others(NamedTuple):
    """What one pool contributes to `OTHER_CALL_SITES`."""

    account: CallSiteAccount
    held: _PresentHolds | None
    waiting: int
    profile: HoldProfile
    share: float


class _Facts(NamedTuple):
    """What must have changed for a call site to be reported again."""

    held: int
    held_since: float | None
    waiting: int
    figures: HoldFigures
    share: float
    profile: HoldProfile


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
        self._others: list[_Others] = []
        self._places_of_others: dict[str, None] = {}
        """Their places that have an entry of their own."""
        self._now = 0.0
        self._all = self._changed = False
        self._changes = 0
        """Call sites of this report that have changed since they were reported."""
        self._changes_before = 0
        """The same of the report before."""

    def __repr__(self) -> str:
        return f"<CallSiteReports: {len(self._others)} pools, as of {self._now:.1f}>"

    def begin(self, now: float, *, everything: bool, all_changed: bool) -> None:
        """Begin a report: with every call site, or all that have changed, or only those that are due."""
        self._now, self._all, self._changed = now, everything, all_changed
        self._others = []
        self._changes_before, self._changes = self._changes, 0

    def of(self, account: PoolAccount, checkouts: int, *, summed: bool = False) -> list[SiteReport]:
        """Return what is due of this pool, which has had `checkouts` checkouts.

        `summed`: the pool has no report of its own, so nor have its call sites. They are reported once the
        pool is; among the others they would have to be taken back then.
        """
        call_sites, profile = account.call_sites, account.time.profile
        held = {
            call_site: _PresentHolds(len(since), min(since))
            for call_site, since in account.time.present_of.items()
        }
        waiting = Counter(list(account.wait_call_sites.values()))
        share = call_sites.share(checkouts)
        self._add_others(account, held, waiting, share)
        reports: list[SiteReport] = []
        for call_site in () if summed else call_sites.reported():
            facts = _facts(
                held.get(call_site),
                waiting[call_site],
                call_site.figures(),
                share,
                profile.of(call_site),
            )
            if self._is_due(call_site, facts):
                stack = self._stack(profile.places.get(call_site))
                reports.append(self._report(call_site, account.number, facts, stack))
        return reports

    def _add_others(
        self,
        account: PoolAccount,
        held: Mapping[CallSiteAccount, _PresentHolds],
        waiting: Counter[CallSiteAccount],
        share: float,
    ) -> None:
        other = account.call_sites.other
        profile = account.time.profile.of(other)
        if profile != NO_PROFILE or other.ended or other in held or waiting[other]:
            self._others.append(
                _Others(
                    account=other,
                    held=held.get(other),
                    waiting=waiting[other],
                    profile=profile,
                    share=share,
                )
            )

    def others(self, room: CallSiteRoom) -> list[SiteReport]:
        """Return the report of all call sites without one of their own, where it is due."""
        others, self._others = self._others, []
        if not others and room.other.reported is None:
            return []
        held = [part.held for part in others if part.held is not None]
        facts = _facts(
            _PresentHolds(sum([holds.number for holds in held]), min([holds.since for holds in held]))
            if held
            else None,
            sum([part.waiting for part in others]),
            HoldFigures(
                holds=sum([part.account.ended for part in others]),
                hold_ms=int(1000.0 * sum([part.account.seconds for part in others])),
                usual=usual_hold([part.account for part in others]),
            ),
            min([part.share for part in others], default=1.0),
            added_profiles([part.profile for part in others], self._places_of_others),
        )
        if not self._is_due(room.other, facts):
            return []
        return [self._report(room.other, 0, facts, ())]

    def _is_due(self, account: CallSiteAccount, facts: _Facts) -> bool:
        """Return whether a call site is to be reported; then note what is reported of it."""
        reported, passed = account.reported, self._now - account.reported_at
        if self._all or reported is None:
            due = True
        elif facts == reported:
            due = False
        else:
            self._changes += 1
            # Where nothing but time has passed, that can wait.
            happened = facts._replace(profile=reported.profile) != reported
            few = max(self._changes, self._changes_before) <= self._settings.few
            interval_over = (few and happened) or passed >= self._settings.interval_seconds
            due = self._changed or interval_over or facts.waiting > 0 or reported.waiting != facts.waiting
        if due:
            account.reported, account.reported_at = facts, self._now
        return due

    def _stack(self, places: Places | None) -> tuple[str, ...]:
        """Return a call site's stack, where it is to be reported."""
        if places is None or not places.stack or (places.stack_reported and not self._all):
            return ()
        places.stack_reported = True
        return places.stack

    def _report(
        self, account: CallSiteAccount, pool: int, facts: _Facts, stack: tuple[str, ...]
    ) -> SiteReport:
        # `held` and `longest` are not read by any node: it sums its connections' call sites instead. They
        # stay on the wire, whose structs are arrays.
        return SiteReport(
            pool=pool,
            call_site=self._text(account),
            held=facts.held,
            longest=age(self._now, facts.held_since),
            waiting=facts.waiting,
            holds=facts.figures.holds,
            hold_ms=facts.figures.hold_ms,
            usual=facts.figures.usual,
            share=facts.share,
            profile=facts.profile,
            stack=stack,
        )


def _facts(
    held: _PresentHolds | None, waiting: int, figures: HoldFigures, share: float, profile: HoldProfile
) -> _Facts:
    number, since = held or (0, None)
    return _Facts(
        held=number, held_since=since, waiting=waiting, figures=figures, share=share, profile=profile
    )

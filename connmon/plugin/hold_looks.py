"""Looks at the holders of one process's connections, for the profile (`hold_profile`). Pure.

Rules:

1. A look asks about at most `ProfileSettings.holders` holders, drawn at random from all connections that are
   held; each stands for as many as were passed over. Where there are very many connections, the held ones are
   searched for among a random part of them.
2. A look takes a moment. A holder that has given its connection back meanwhile is not counted.
3. A hold that is not noted belongs to a call site as the noted ones do that were seen in the same function
   (`CallSites.taken_in`): the function that took the connection may have returned long ago. A look at a hold
   of a function that is not known yet is kept until it is (`unidentified_looks`).
4. Of the application nothing is kept but code objects, and the text of one stack for each call site, which is
   replaced at most every `stack_interval_seconds`.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from connmon.plugin.call_site_accounts import CallSiteAccount, Held, Look, identity
from connmon.plugin.hold_profile import YOUNG_SECONDS, Lateness, ProfileSettings
from connmon.plugin.holder_checks import Holders
from connmon.plugin.pool_account import Entry, PoolAccount


class _Holding(NamedTuple):
    """One held connection, as it was when the look began."""

    entry: Entry
    since: float
    holder: Any
    noted: CallSiteAccount | None
    """Its call site, where this hold is noted."""

    def question(self, newest: Mapping[int, float]) -> Held:
        """Return what a look is asked about this hold. `newest`: see `_newest`."""
        return Held(
            holder=self.holder,
            code=None if self.noted is None else self.noted.code,
            since=self.since,
            newest=not newest or self.since >= newest[identity(self.holder)],
        )


#: The `late` of a look that has waited for a CPU: whether the lock was taken at its moment is not known.
NO_CPU: Final = -1.0


class ComputedTime:
    """How much longer computing takes than the CPU clocks say.

    A thread that has the interpreter lock computes for everybody who waits for it, be it that the machine has
    no CPU for it at the moment. At random moments the lock is taken as often as it is for that part of the
    time. What the process computes by its CPU clock is less.
    """

    __slots__ = ("_at", "_cpu_at", "_cpu_seconds", "_late", "_looks", "_seconds", "_settings")

    def __init__(self, settings: ProfileSettings) -> None:
        self._settings = settings
        self._at = self._cpu_at = 0.0
        self._seconds = self._cpu_seconds = self._looks = self._late = 0.0

    def __repr__(self) -> str:
        return f"<ComputedTime x{self.scale:.2f}>"

    def add(self, now: float, cpu_seconds: float, late: bool | None) -> None:
        """Count a look. `cpu_seconds`: of the process, until now; 0.0: not known.

        `late`: None where it is not known whether the lock was taken at the moment of the look.
        """
        passed, cpu_passed = now - self._at, cpu_seconds - self._cpu_at
        self._at, self._cpu_at = now, cpu_seconds
        if not 0.0 < passed < self._settings.busy_seconds or cpu_passed < 0.0 or cpu_seconds == 0.0:
            return  # after a rest, or a fork
        kept = max(0.0, 1.0 - passed / self._settings.scale_seconds)
        self._seconds = self._seconds * kept + passed
        self._cpu_seconds = self._cpu_seconds * kept + cpu_passed
        self._looks = self._looks * kept + (late is not None)
        self._late = self._late * kept + bool(late)

    @property
    def scale(self) -> float:
        """What the seconds of a CPU clock are to be multiplied by: 1 to `ProfileSettings.largest_scale`."""
        if self._looks < self._settings.fewest_looks or not self._cpu_seconds > 0.0:
            return 1.0
        taken = self._late / self._looks * self._seconds
        return min(self._settings.largest_scale, max(1.0, taken / self._cpu_seconds))


class HoldLooks:
    """Looks at holders and counts what it sees in the profiles of their pools. One thread at a time."""

    def __init__(self, holders: Holders | None, settings: ProfileSettings) -> None:
        """`holders`: None where nobody knows who has a connection."""
        self._holders = holders
        self._settings = settings
        self._random = random.Random()  # so that the application's own random numbers stay as they are
        self._computed = ComputedTime(settings)
        self._with_stack: dict[int, float] = {}
        """By id of a call site whose stack is kept: when its holders were last looked at."""

    def __repr__(self) -> str:
        return f"<HoldLooks: at most {self._settings.holders} holders each>"

    def forget(self) -> None:
        """Start from nothing after a fork."""
        self._computed, self._with_stack = ComputedTime(self._settings), {}

    @property
    def cpu_scale(self) -> float:
        """See `ComputedTime`."""
        return self._computed.scale

    def look(self, accounts: Sequence[PoolAccount], now: float, late: float, cpu_seconds: float) -> None:
        """Look at the holders of these pools.

        `late`: how long the look has waited for the interpreter lock, or `NO_CPU`. `cpu_seconds`: how long
        the process has computed by now; 0.0: not known.
        """
        if self._holders is None:
            return
        lateness = Lateness(
            late=late > self._settings.late_seconds,
            preempted=late > self._settings.preempted * sys.getswitchinterval(),
        )
        self._computed.add(now, cpu_seconds, None if late == NO_CPU else lateness.late)
        held, weight = self._held(accounts)
        if not held:
            return
        newest = _newest(held)
        chosen: Collection[int] = range(len(held))
        if len(held) > self._settings.holders:
            weight *= len(held) / self._settings.holders
            chosen = set(self._random.sample(range(len(held)), self._settings.holders))
        holding = [_holding(*held[number]) for number in chosen]
        looks = self._holders.look(
            [hold.question(newest) for hold in holding],
            (entry.holder for number, (entry, _) in enumerate(held) if number not in chosen),
        )
        self._count(list(zip(holding, looks, strict=True)), weight, now, lateness)

    def _held(self, accounts: Sequence[PoolAccount]) -> tuple[list[tuple[Entry, float]], float]:
        """Return held connections, each with when its hold began, and how many each of them stands for."""
        looked_at = [account for account in accounts if account.looks]
        entries = [entry for account in looked_at for entry in list(account.entries.values())]
        weight = 1.0
        most = self._settings.connections
        if len(entries) > most:
            weight = len(entries) / most
            entries = self._random.sample(entries, most)
        return [(entry, since) for entry in entries if (since := entry.since) and not entry.closed], weight

    def _count(
        self, looks: list[tuple[_Holding, Look]], weight: float, now: float, lateness: Lateness
    ) -> None:
        """Count what was seen, in the profiles of the pools."""
        seen: dict[PoolAccount, list[dict[CallSiteAccount, float]]] = {}
        for hold, look in looks:
            if hold.entry.since != hold.since:
                continue
            account = hold.entry.pool
            parts = self._call_sites_of(hold, look, weight, now, lateness)
            if look.where is not None:
                for call_site, part in parts.items():
                    account.time.profile.places_of(call_site).see(look.where, weight * part, lateness)
            seen.setdefault(account, []).append(parts)
        for account, held in seen.items():
            waits = len(account.waits) / len(held)
            if waits:
                for parts in held:
                    for call_site, part in parts.items():
                        account.time.profile.see_cause(call_site, waits * part)

    def _call_sites_of(
        self, hold: _Holding, look: Look, weight: float, now: float, lateness: Lateness
    ) -> dict[CallSiteAccount, float]:
        """Return the call sites that the hold may be of, with parts that sum to 1; empty: it is not known."""
        entry, noted = hold.entry, hold.noted
        account, holders = entry.pool, self._holders
        assert holders is not None
        if noted is not None:
            if account.time.sampled:  # else there is nothing to be identified
                account.call_sites.seen_in(holders.application(look), noted, entry.noted.checkouts)
            if noted.counts is noted:
                self._keep_stack(account, noted, look, now)
            return {noted.counts: 1.0}
        application = holders.application(look)
        taken = account.call_sites.taken_in(application)
        parts = taken.parts if taken.sure else {}
        if now - hold.since > YOUNG_SECONDS:
            account.time.profile.see_old(parts, weight)
            if not taken.sure:
                account.time.unidentified.keep(now, look.where, application, weight, lateness)
                if account.sampling is not None and account.sampling.be_curious(now):
                    account.note_next()
        return parts

    def _keep_stack(self, account: PoolAccount, call_site: CallSiteAccount, look: Look, now: float) -> None:
        """Keep the stack of a call site as text, if it has none, or one that is old."""
        places, settings = account.time.profile.places_of(call_site), self._settings
        if not look.frames or self._holders is None:
            return
        if places.stack_at is not None and now - places.stack_at < settings.stack_interval_seconds:
            return
        if not self._may_keep_stack(call_site, now):
            return
        places.stack_at = now
        stack = self._holders.stack_texts(look)
        if stack != places.stack:
            places.stack, places.stack_reported = stack, False

    def _may_keep_stack(self, call_site: CallSiteAccount, now: float) -> bool:
        """Return whether this call site is among those whose stack is kept, or can take the place of one."""
        kept, settings = self._with_stack, self._settings
        if id(call_site) not in kept and len(kept) >= settings.stacks:
            oldest = min(kept, key=kept.__getitem__)
            if now - kept[oldest] < settings.stack_interval_seconds:
                return False
            del kept[oldest]
        kept[id(call_site)] = now
        return True


def _holding(entry: Entry, since: float) -> _Holding:
    noted = entry.call_site if entry.noted_at == entry.checkouts else None
    return _Holding(entry=entry, since=since, holder=entry.holder, noted=noted)


def _newest(held: Sequence[tuple[Entry, float]]) -> Mapping[int, float]:
    """Return when each holder with several connections took the newest one that it has."""
    if len({identity(entry.holder) for entry, _ in held}) == len(held):  # as mostly
        return {}
    return {identity(entry.holder): since for entry, since in sorted(held, key=_since)}


_since = itemgetter(1)

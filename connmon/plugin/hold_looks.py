"""Looks at the holders of one process's connections, for the profile (`hold_profile`). Pure.

Rules:

1. A look asks about at most `ProfileSettings.holders` holders, drawn at random from all connections that are
   held; each stands for as many as were passed over. Where there are very many connections, the held ones are
   searched for among a random part of them.
2. A look takes a moment. A holder that has given its connection back meanwhile is not counted.
3. A hold that is not noted belongs to the known call site whose function is on the holder's stack, and to the
   others where there is none.
4. Of the application nothing is kept but the text of one stack for each call site, which is replaced at most
   every `stack_interval_seconds`.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

from connmon.plugin.call_site_accounts import CallSiteAccount
from connmon.plugin.hold_profile import YOUNG_SECONDS, Lateness, ProfileSettings
from connmon.plugin.holder_checks import Held, Holders, Look
from connmon.plugin.pool_account import Entry, PoolAccount


class _Holding(NamedTuple):
    """One held connection, as it was when the look began."""

    account: PoolAccount
    entry: Entry
    since: float
    noted: CallSiteAccount | None
    """Its call site, where this hold is noted."""


class HoldLooks:
    """Looks at holders and counts what it sees in the profiles of their pools. One thread at a time."""

    def __init__(self, holders: Holders | None, settings: ProfileSettings) -> None:
        """`holders`: None where nobody knows who has a connection."""
        self._holders = holders
        self._settings = settings
        self._random = random.Random()  # so that the application's own random numbers stay as they are
        self._with_stack: set[int] = set()
        """The call sites, by id, whose stack is kept."""

    def __repr__(self) -> str:
        return f"<HoldLooks: at most {self._settings.holders} holders each>"

    def look(self, accounts: Sequence[PoolAccount], now: float, late: float) -> None:
        """Look at the holders of these pools; `late`: how long the look has waited for the interpreter."""
        if self._holders is None:
            return
        holding, weight = self._held(accounts)
        if not holding:
            return
        if len(holding) > self._settings.holders:
            weight *= len(holding) / self._settings.holders
            holding = self._random.sample(holding, self._settings.holders)
        looks = self._holders.look([_question(hold) for hold in holding])
        lateness = Lateness(
            late=late > self._settings.late_seconds,
            preempted=late > self._settings.preempted * sys.getswitchinterval(),
        )
        self._count(list(zip(holding, looks, strict=True)), weight, now, lateness)

    def _held(self, accounts: Sequence[PoolAccount]) -> tuple[list[_Holding], float]:
        """Return held connections, and how many each of them stands for."""
        entries = [entry for account in accounts for entry in list(account.entries.values())]
        weight = 1.0
        most = self._settings.connections
        if len(entries) > most:
            weight = len(entries) / most
            entries = self._random.sample(entries, most)
        holding = []
        for entry in entries:
            since = entry.since
            if since and not entry.closed:
                noted = entry.call_site if entry.noted_at == entry.checkouts else None
                holding.append(_Holding(account=entry.pool, entry=entry, since=since, noted=noted))
        return holding, weight

    def _count(
        self, looks: list[tuple[_Holding, Look]], weight: float, now: float, lateness: Lateness
    ) -> None:
        """Count what was seen, in the profiles of the pools."""
        seen: dict[PoolAccount, list[CallSiteAccount]] = {}
        for hold, look in looks:
            if hold.entry.since != hold.since:
                continue
            account, noted = hold.account, hold.noted
            call_site = account.call_sites.on_stack(look.places) if noted is None else noted
            counting = account.call_sites.other if call_site is None else call_site.counts
            if noted is None and now - hold.since > YOUNG_SECONDS:
                account.profile.see_old(counting, weight)
            if look.where is not None:
                account.profile.places_of(counting).see(look.where, weight, lateness)
                self._keep_stack(account, counting, look, now)
            seen.setdefault(account, []).append(counting)
        for account, call_sites in seen.items():
            waits = len(account.waits)
            if waits:
                for call_site in call_sites:
                    account.profile.see_cause(call_site, waits / len(call_sites))

    def _keep_stack(self, account: PoolAccount, call_site: CallSiteAccount, look: Look, now: float) -> None:
        """Keep the stack of a call site as text, if it has none, or one that is old."""
        places, settings = account.profile.places_of(call_site), self._settings
        if call_site.code is None or not look.places or self._holders is None:
            return
        if places.stack_at is not None and now - places.stack_at < settings.stack_interval_seconds:
            return
        if id(call_site) not in self._with_stack and len(self._with_stack) >= settings.stacks:
            return
        self._with_stack.add(id(call_site))
        stack = self._holders.stack_texts(look.places)
        places.stack_at = now
        if stack != places.stack:
            places.stack, places.stack_reported = stack, False


def _question(hold: _Holding) -> Held:
    code = None if hold.noted is None else hold.noted.code
    return Held(holder=hold.entry.holder, code=code, since=hold.since)

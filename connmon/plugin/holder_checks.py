"""Which holders' whereabouts are checked for a report, and what is reported of a holder. Pure.

Rules:

1. A holder is checked when its hold is long (`PoolAccount.long_hold_seconds`), and then every
   `interval_seconds`. Where somebody waits for a pool, up to `holders` of those who hold its connections are
   checked for each report.
2. A stack is long. So of the holders that are checked because somebody waits, only the `stacks` with the
   longest holds have theirs reported.
3. A thread with several connections works with the one that it took last: while the driver is on its stack,
   the others are not in the database.
4. A connection may be handed to another thread (FastAPI runs each synchronous dependency in one of its own).
   So threads that are in a driver and hold nothing work with what somebody else took: with the newest
   connections whose holders are not in a driver themselves.
5. A holder that has taken another connection at the same call site since has left this one behind, although
   the function may be on its stack again. A hold whose holder was once seen elsewhere stays so.
6. A check takes a moment. If the connection was returned meanwhile, the stack is of something else and is
   dropped.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final, Protocol

from connmon.plugin.call_site_accounts import CallSite, CallSiteAccount, Held, Look, Whereabouts, identity
from connmon.plugin.pool_account import Entry, PoolAccount
from connmon.protocol.values import OTHER_CALL_SITES


@dataclass(frozen=True)
class HolderCheckSettings:
    """How much is checked for one report."""

    interval_seconds: float = 5.0
    """Between two checks of a holder with a long hold."""
    holders: int = 20
    """The most holders checked because somebody waits for their pool."""
    stacks: int = 3
    """The most of these whose stack is reported."""


#: Of a holder that was not checked.
NOT_CHECKED: Final = Whereabouts(None, None, ())


class Holders(Protocol):
    """What is asked about holders; see the module `holder`."""

    def name(self, holder: Any, /) -> str: ...
    def frame_text(self, code: Any, number: int, /) -> str: ...
    def whereabouts(self, holder: Any, code: CodeType | None, mine: bool, /) -> Whereabouts: ...
    def in_driver(self) -> frozenset[int]: ...
    def look(self, held: Sequence[Held], other_holders: Iterable[Any], /) -> list[Look]: ...
    def application(self, look: Look, /) -> tuple[CallSite, ...]: ...
    def stack_texts(self, look: Look, /) -> tuple[str, ...]: ...


class HolderChecks:
    """Checks who holds the connections of a process, and where. One thread at a time."""

    def __init__(
        self,
        holders: Holders | None,
        settings: HolderCheckSettings = HolderCheckSettings(),  # it is immutable
    ) -> None:
        """`holders`: None where nobody knows who has a connection."""
        self.holders = holders
        self._settings = settings
        self._latest: dict[object, float] = {}
        """By holder: when it took its latest connection."""
        self._chosen: set[int] = set()
        """The connections, by number, whose holders are checked because somebody waits."""
        self._with_stack: set[int] = set()
        self._taken: dict[tuple[object, CallSiteAccount | None], float] = {}
        """By holder and call site: when a connection was taken there last."""
        self._lent: set[int] = set()
        """The connections that another thread works with than the one that took them."""
        self._random = random.Random()  # so that the application's own random numbers stay as they are

    def __repr__(self) -> str:
        return f"<HolderChecks: {len(self._chosen)} connections chosen>"

    def choose(self, accounts: Collection[PoolAccount], now: float) -> None:
        """Choose what to check for the next report, from who holds what at this moment."""
        self._chosen, self._with_stack, self._lent = set(), set(), set()
        self._latest, self._taken = {}, {}
        waited_for: list[tuple[float, int]] = []
        any_due = False
        for account in accounts:
            long_hold = account.long_hold_seconds
            if long_hold is None:
                continue
            has_waits = bool(account.waits)
            for entry in list(account.entries.values()):
                since = entry.since
                if since and not entry.closed and (has_waits or now - since >= long_hold):
                    any_due = True
                    if has_waits:
                        waited_for.append((since, entry.number))
        if any_due:
            self._choose_waited_for(waited_for)
            self._find_lent(self._look_at_holders(accounts))

    def _choose_waited_for(self, waited_for: list[tuple[float, int]]) -> None:
        """Choose among connections that somebody waits for, given by begin of the hold and number."""
        waited_for.sort()
        stacks, holders = self._settings.stacks, self._settings.holders
        self._with_stack = {number for _, number in waited_for[:stacks]}
        without_stack = [number for _, number in waited_for[stacks:]]
        if len(without_stack) > holders - stacks:
            without_stack = self._random.sample(without_stack, holders - stacks)
        self._chosen = self._with_stack.union(without_stack)

    def _look_at_holders(self, accounts: Collection[PoolAccount]) -> list[tuple[float, int, int]]:
        """Note who took what last; return begin of the hold, number and thread of each held connection."""
        by_thread: list[tuple[float, int, int]] = []
        for account in accounts:
            for entry in list(account.entries.values()):
                since = entry.since
                if since and not entry.closed:
                    holder = identity(entry.holder)
                    self._latest[holder] = max(since, self._latest.get(holder, 0.0))
                    ident = getattr(entry.holder, "ident", None)
                    if isinstance(ident, int):  # an ended thread's may be another thread's by now
                        by_thread.append((since, entry.number, -1 if entry.holder.ended else ident))
                call_site = entry.call_site
                if call_site is not None:
                    taker = identity(entry.holder), call_site
                    self._taken[taker] = max(entry.noted_since, self._taken.get(taker, 0.0))
        return by_thread

    def _find_lent(self, by_thread: list[tuple[float, int, int]]) -> None:
        """Find the connections that other threads work with (rule 4)."""
        busy = self.holders.in_driver() if self.holders is not None and by_thread else frozenset()
        strangers = len(busy.difference([thread for _, _, thread in by_thread]))
        if strangers:
            idle = sorted([hold for hold in by_thread if hold[2] not in busy], reverse=True)
            self._lent = {number for _, number, _ in idle[:strangers]}

    def holder_of(self, entry: Entry, since: float, now: float) -> tuple[str | None, str | None, Whereabouts]:
        """Return the holder since then, the call site where it took the connection, and its whereabouts."""
        holders = self.holders
        if holders is None:
            return None, None, NOT_CHECKED
        call_site = entry.call_site if entry.noted_at == entry.checkouts else None
        if entry.whereabouts_at < since:
            entry.whereabouts, entry.left_call_site = None, False
        long_hold = entry.pool.long_hold_seconds
        is_long = long_hold is not None and now - since >= long_hold
        due = entry.whereabouts is None or now - entry.whereabouts_at >= self._settings.interval_seconds
        if (is_long and due) or entry.number in self._chosen:
            whereabouts = self._check(holders, entry, call_site, since)
            if not is_long and entry.number not in self._with_stack:
                whereabouts = whereabouts._replace(stack=())
            if entry.since != since:
                return None, None, NOT_CHECKED
            entry.whereabouts, entry.whereabouts_at = whereabouts, now
        text = None if call_site is None else self.call_site_text(call_site)
        return holders.name(entry.holder), text, entry.whereabouts or NOT_CHECKED

    def _check(
        self, holders: Holders, entry: Entry, call_site: CallSiteAccount | None, since: float
    ) -> Whereabouts:
        if entry.number in self._lent:
            return Whereabouts("database", None, ())
        holder = identity(entry.holder)
        mine = since >= self._latest.get(holder, 0.0)
        whereabouts = holders.whereabouts(entry.holder, None if call_site is None else call_site.code, mine)
        retaken = since < self._taken.get((holder, entry.call_site), 0.0)
        in_function = whereabouts.where in ("application", "waiting")
        if whereabouts.where == "elsewhere" or (in_function and (retaken or entry.left_call_site)):
            entry.left_call_site = True
            return whereabouts._replace(where="elsewhere")
        return whereabouts

    def call_site_text(self, account: CallSiteAccount) -> str:
        """Return what a call site is called in reports."""
        if account.text is None:
            known = account.code is not None and self.holders is not None
            account.text = (
                self.holders.frame_text(account.code, account.number)
                if known and self.holders
                else OTHER_CALL_SITES
            )
        return account.text

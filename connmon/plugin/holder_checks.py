"""Whose stacks are looked at for a report, and what is reported of a holder. Pure.

Rules:

1. A holder is looked at when it has had its connection for long (`PoolAccount.look_after`), then every `LOOK`
   seconds; and where somebody waits, `LOOKS` of those who hold what is waited for, for each report.
2. A stack is long, so of those that are looked at because somebody waits, only the `STACKS` that have held
   longest have theirs reported.
3. A thread that has several connections works with the one that it took last: while the driver is on its
   stack, the others are not in the database.
4. A connection may be handed to another thread (FastAPI runs each synchronous dependency in one of its own).
   So threads that are in a driver and hold nothing work with what somebody else took: with the newest
   connections whose holders are not in a driver themselves.
5. A holder that has taken another connection in the same line since has left this one behind, although the
   function may be on its stack again. Once it was seen elsewhere in a hold, that hold stays so.
6. A look takes a moment. If the connection was given back meanwhile, the stack is of something else, and is
   not taken.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from types import CodeType
from typing import Any, Final, Protocol

from connmon.plugin.call_site_accounts import OTHER, Look, SiteAccount
from connmon.plugin.pool_account import Entry, PoolAccount

#: Seconds between two looks at a holder that has had its connection for long.
LOOK: Final = 5.0
#: Where somebody waits, so many of the holders that have what is waited for are looked at for each report.
LOOKS: Final = 20
#: And of so many of these the stack is reported.
STACKS: Final = 3
#: Of a holder that was not looked at.
NOT_LOOKED: Final = Look(None, None, ())


class Holders(Protocol):
    """What is asked of who holds a connection; see the module `holder`."""

    def name(self, holder: Any, /) -> str: ...
    def line(self, code: Any, number: int, /) -> str: ...
    def look(self, holder: Any, code: CodeType | None, mine: bool, /) -> Look: ...
    def in_driver(self) -> frozenset[int]: ...


class Looking:
    """Looks at those who hold the connections of a process. One thread at a time."""

    def __init__(self, holders: Holders | None) -> None:
        """`holders`: None: nobody knows who has a connection."""
        self.holders = holders
        self._latest: dict[object, float] = {}
        """By holder: since when it has the connection that it took last."""
        self._chosen: set[int] = set()
        """The connections, by number, whose holders are looked at since somebody waits for them."""
        self._with_stack: set[int] = set()
        self._taken: dict[tuple[object, SiteAccount | None], float] = {}
        """By holder and line: when a connection was taken there last."""
        self._lent: set[int] = set()
        """The connections that another thread works with than the one that took them."""
        self._random = random.Random()  # the application's own must go on as if this were not here

    def choose(self, accounts: Collection[PoolAccount], now: float) -> None:
        """Choose for the next report. Who holds what is taken from the accounts at this moment."""
        self._chosen, self._with_stack, self._lent = set(), set(), set()
        self._latest, self._taken = {}, {}
        wanted: list[tuple[float, int]] = []
        anybody = False
        for account in accounts:
            after = account.look_after
            if after is None:
                continue
            waited_for = bool(account.waits)
            for entry in list(account.entries.values()):
                since = entry.since
                if since and not entry.closed and (waited_for or now - since >= after):
                    anybody = True
                    if waited_for:
                        wanted.append((since, entry.number))
        if not anybody:
            return
        wanted.sort()
        self._with_stack = {number for _, number in wanted[:STACKS]}
        others = [number for _, number in wanted[STACKS:]]
        if len(others) > LOOKS - STACKS:
            others = self._random.sample(others, LOOKS - STACKS)
        self._chosen = self._with_stack.union(others)
        by_thread: list[tuple[float, int, int]] = []
        for account in accounts:
            for entry in list(account.entries.values()):
                since = entry.since
                if since and not entry.closed:
                    holder = _identity(entry.holder)
                    self._latest[holder] = max(since, self._latest.get(holder, 0.0))
                    ident = getattr(entry.holder, "ident", None)
                    if isinstance(ident, int):  # which another thread may have, where it has ended
                        by_thread.append((since, entry.number, -1 if entry.holder.ended else ident))
                site = entry.site
                if site is not None:
                    taker = _identity(entry.holder), site
                    self._taken[taker] = max(entry.noted_since, self._taken.get(taker, 0.0))
        busy = self.holders.in_driver() if self.holders is not None and by_thread else frozenset()
        strangers = len(busy.difference([holder for _, _, holder in by_thread]))
        if strangers:
            idle = sorted([held for held in by_thread if held[2] not in busy], reverse=True)
            self._lent = {number for _, number, _ in idle[:strangers]}

    def holder_of(self, entry: Entry, since: float, now: float) -> tuple[str | None, str | None, Look]:
        """Return who holds the connection since then, in which line it was taken, and where its holder is."""
        holders = self.holders
        if holders is None:
            return None, None, NOT_LOOKED
        site = entry.site if entry.noted_at == entry.checkouts else None
        if entry.seen_at < since:
            entry.seen, entry.left = None, False
        after = entry.pool.look_after
        held_long = after is not None and now - since >= after
        again = entry.seen is None or now - entry.seen_at >= LOOK
        if (held_long and again) or entry.number in self._chosen:
            if entry.number in self._lent:
                look = Look("database", None, ())
            else:
                mine = since >= self._latest.get(_identity(entry.holder), 0.0)
                look = holders.look(entry.holder, None if site is None else site.code, mine)
                retaken = since < self._taken.get((_identity(entry.holder), entry.site), 0.0)
                there = look.where in ("application", "waiting")
                if look.where == "elsewhere" or (there and (retaken or entry.left)):
                    entry.left = True
                    look = look._replace(where="elsewhere")
            if not held_long and entry.number not in self._with_stack:
                look = look._replace(stack=())
            if entry.since != since:
                return None, None, NOT_LOOKED
            entry.seen, entry.seen_at = look, now
        return holders.name(entry.holder), None if site is None else self.line(site), entry.seen or NOT_LOOKED

    def line(self, site: SiteAccount) -> str:
        """Return the line as it is written."""
        if site.line is None:
            known = site.code is not None and self.holders is not None
            site.line = self.holders.line(site.code, site.number) if known and self.holders else OTHER
        return site.line


def _identity(holder: Any) -> object:
    """Return what tells holders apart. (The hash of a dead weak reference is an error.)"""
    return holder if isinstance(holder, int) else id(holder)

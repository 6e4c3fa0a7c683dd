"""The exact account of one process: facts in, report out. No I/O, no time, no threads.

1. What happens is written to the accounts of the pools (`account.py`, which says who may write
   what). Here they are summed, by one thread at a time, into one report.
2. A report is absolute, and says what there can have been at one moment. Peaks stay until the
   report that carries them is acknowledged.
3. Nothing here grows with time or with what happens, only with what is open: what has ended is
   folded into totals, also where no report is ever taken.

Times are seconds of one monotonic clock, handed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from connmon.model import (
    CHECKED_OUT,
    DETACHED,
    IDLE,
    Connection,
    ConnectionState,
    Gauges,
    Peaks,
    PoolInfo,
    PoolReport,
    Report,
    RowKey,
    changed_times,
    database_key,
    plus,
)
from connmon.plugin.account import UNCOUNTED, Entry, Live, PoolAccount, highest, within

#: How many databases keep the totals of their pools that are gone; the rest share one.
REMAINS_LIMIT = 64
#: A connection that is held is told again after this many seconds, although nothing about it
#: changed: the replica ages it by its own clock, and that can lag.
REFRESH = 30.0
#: The holder of a connection that is held long is looked at every so many seconds.
LOOK = 5.0
#: Ended entries that may pile up while no reporter runs, before they are folded on the spot.
BACKLOG = 1000


class Lock(Protocol):
    """What is needed of a lock. It is only ever taken where entries are folded: by the reporter,
    and, without waiting for it, by a connect that finds too much left to fold."""

    def acquire(self, blocking: bool = True, timeout: float = -1, /) -> bool: ...
    def release(self) -> None: ...


class Holders(Protocol):
    """What is asked of who holds a connection; see the module `holder`."""

    def name(self, holder: Any, /) -> str: ...
    def line(self, code: Any, number: int, /) -> str: ...
    def look(self, holder: Any, /) -> tuple[str | None, tuple[str, ...]]: ...


class Ledger:
    """One process's account towards one service.

    `instance` names this process for as long as it lives; it is new after a fork.
    """

    def __init__(
        self,
        instance: str,
        lock: Callable[[], Lock],
        clock: Callable[[], float],
        holders: Holders | None = None,
    ) -> None:
        """`lock` makes a lock of the native kind; `holders` knows who has a connection.

        `clock` is the one that all times are of: nobody hands one in where a connection just ends.
        """
        self.instance = instance
        self.clock = clock
        self._lock = lock
        self._folding = lock()
        self.numbers = itertools.count(1)
        self.live = Live()
        self.pools: dict[int, PoolAccount] = {}
        self.remains: dict[RowKey, PoolAccount] = {}
        """By database: that is where the totals of a pool that is gone must not be missing."""
        self._crowd = BACKLOG
        self.used = False
        """Whether anything has happened that is worth a report."""
        self.wake: Callable[[], None] | None = None
        """Called when the first connection is seen: starts the reporter. None: it runs."""
        self._holders = holders
        self._sequence = 0
        self._base = 0
        self._taken_at: float | None = None
        self._busy = False
        self._unacknowledged: Peaks | None = None
        self._closed_pools: list[int] = []

    def pool(self, info: PoolInfo) -> PoolAccount:
        """Open the account of one more pool."""
        # Engines made and dropped must not pile up either while no report is taken.
        if len(self.pools) >= self._crowd and self._folding.acquire(False):
            try:
                self._retire()
                self._crowd = 2 * len(self.pools) + BACKLOG
            finally:
                self._folding.release()
        account = PoolAccount(self, next(self.numbers), info)
        self.pools[account.number] = account
        return account

    def forked(self, instance: str) -> None:
        """Begin anew in the child of a fork: nothing that the parent counted is ours."""
        self.instance = instance
        self.live.reset()
        self.remains = {}
        for account in list(self.pools.values()):
            account.forget()
        self.used = False
        self._sequence = self._base = 0
        self._taken_at = self._unacknowledged = None
        self._busy = False
        self._closed_pools = []
        self._folding = self._lock()

    def seen(self) -> None:
        """Something has happened that is worth a report: have the reporter run."""
        if self.wake is not None:
            self.wake()
        self.used = True

    def relieve(self, account: PoolAccount) -> None:
        """Keep what has ended from piling up where no reporter can run."""
        entries = len(account.entries) > 2 * account.live.open + BACKLOG
        if (entries or len(account.made) > UNCOUNTED) and self._folding.acquire(False):
            try:
                account.fold()
                account.times()
            finally:
                self._folding.release()

    def count_times(self, account: PoolAccount, entry: Entry | None = None) -> None:
        """Count how long holds of this connection took, or whatever there is of this pool.

        That keeps it from piling up where no report is taken.
        """
        if self._folding.acquire(False):
            try:
                if entry is None:
                    account.times()
                else:
                    account.count_holds(entry)
            finally:
                self._folding.release()

    def restart(self) -> None:
        """The next report must be a full one: the node is another, or missed something."""
        self._base = 0

    def acknowledged(self, sequence: int) -> None:
        """Report `sequence` was applied; the next one builds on it."""
        if sequence == self._sequence:
            self._base = sequence
            self._unacknowledged = None
            for account in self._accounts():
                account.unacknowledged = None

    def take(self, now: float, *, alive: bool = False) -> Report | None:
        """Return the next report: a full one, or what changed since the acknowledged one.

        Without `alive`, None where nothing has changed. The caller adds who reports, sends it,
        and calls `acknowledged` or `restart` before it takes another one.
        """
        if not self._folding.acquire(True, 1.0):
            return None
        try:
            return self._take(now, alive)
        finally:
            self._folding.release()

    def _take(self, now: float, alive: bool) -> Report | None:
        full = self._base == 0
        self._retire()
        pools, connections, closed = [], [], []
        present, longest, counted = Gauges(), 0.0, []
        for account in self._accounts():
            account.fold()
            gauges, totals, held_since = account.count()
            account.settle(gauges, totals, now)
            first = min(account.waits.copy().values(), default=None)
            wait = None if first is None else max(0.0, now - first)
            longest = max(longest, wait or 0.0)
            peaks = account.live.collect(wait or 0.0)
            account.unacknowledged = highest(account.unacknowledged, peaks)
            counted.append((account, gauges, totals, account.times(), peaks, held_since, first, wait))
        whole = self.live.collect(longest)
        self._unacknowledged = highest(self._unacknowledged, whole)
        for account, gauges, totals, times, peaks, held_since, first, wait in counted:
            gauges = within(gauges, peaks, whole, present)
            present = plus(present, gauges)
            peaks = account.unacknowledged or peaks
            facts = (gauges, totals, times, peaks, held_since, first)
            if full or facts != account.told:
                new = full or account.told is None
                pools.append(
                    PoolReport(
                        account.number,
                        account.info if new else None,
                        gauges,
                        totals,
                        peaks,
                        wait,
                        None if held_since is None else max(0.0, now - held_since),
                        times if new else changed_times(times, account.told_times),
                    )
                )
                account.told, account.told_times = facts, times
            closed += account.gone
            account.gone = []
            connections += self._connections(account.entries.values(), now, full)
        news = bool(pools or connections or closed or self._closed_pools)
        # One more report after the last change, so that rates and the longest wait come to rest.
        if not (full or alive or news or self._busy):
            return None
        self._busy = news
        self._sequence += 1
        interval = 0.0 if self._taken_at is None else max(0.0, now - self._taken_at)
        self._taken_at = now
        report = Report(
            instance=self.instance,
            sequence=self._sequence,
            base=self._base,
            interval=interval,
            peaks=self._unacknowledged,
            pools=tuple(pools),
            closed_pools=() if full else tuple(self._closed_pools),
            connections=tuple(connections),
            closed_connections=() if full else tuple(closed),
        )
        self._closed_pools = []
        return report

    def _accounts(self) -> list[PoolAccount]:
        return [*list(self.pools.values()), *self.remains.values()]

    def _connections(self, entries: Iterable[Entry], now: float, full: bool) -> list[Connection]:
        told = []
        for entry in list(entries):
            since, detached = entry.since, entry.detached
            held = since > 0.0
            name, site, stack = self._holder(entry, now - since) if held else (None, None, ())
            # The id comes later than the connection: its first statements may be on their way meanwhile.
            facts = (since, detached, entry.server_id, site, stack)
            if not full and entry.told == facts and not (held and now - entry.told_at > REFRESH):
                continue
            entry.told, entry.told_at = facts, now
            state: ConnectionState = DETACHED if detached else CHECKED_OUT if held else IDLE
            told.append(
                Connection(
                    entry.number,
                    entry.pool.number,
                    entry.server_id,
                    state,
                    max(0.0, now - entry.opened),
                    max(0.0, now - since) if held else None,
                    name,
                    site,
                    stack,
                )
            )
        return told

    def _holder(self, entry: Entry, held: float) -> tuple[str | None, str | None, tuple[str, ...]]:
        """Return who holds the connection, and where: at its checkout if that was kept, else now."""
        holders = self._holders
        if holders is None:
            return None, None, ()
        now = entry.since + held
        after = entry.pool.look_after
        if after is None or held < after:
            entry.seen = None
        elif entry.seen is None or entry.seen_at < entry.since or now - entry.seen_at >= LOOK:
            entry.seen, entry.seen_at = holders.look(entry.holder), now
        site, stack = entry.seen or (None, ())
        if entry.site is not None:
            site = holders.line(*entry.site)
        return holders.name(entry.holder), site, stack

    def _retire(self) -> None:
        """Hand the totals of pools that are gone to the remains of the same database."""
        for account in list(self.pools.values()):
            if not account.retired or account.waits:
                continue
            account.fold()
            if account.entries:  # a detached connection outlives its pool
                continue
            del self.pools[account.number]
            remains = self._remains_of(account)
            _, happened, _ = account.count()
            remains.ended = plus(remains.ended, happened)
            remains.inherit(account.times())
            remains.gone += account.gone
            if account.told is not None:
                self._closed_pools.append(account.number)
            # Also what it has seen since the last report, which may be all of its life.
            peaks = highest(account.unacknowledged, account.live.collect(0.0))
            remains.unacknowledged = highest(remains.unacknowledged, peaks)

    def _remains_of(self, account: PoolAccount) -> PoolAccount:
        info = account.info
        if database_key(info) not in self.remains and len(self.remains) >= REMAINS_LIMIT:
            info = PoolInfo("(others)", "(others)", None, None, None, "", None, None, None)
        key = database_key(info)
        remains = self.remains.get(key)
        if remains is None:
            remains = self.remains[key] = PoolAccount(self, next(self.numbers), info)
            remains.retired = True
        return remains

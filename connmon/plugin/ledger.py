"""The exact account of one process: facts in, report out. No I/O, no time, no threads.

1. What happens is written to the accounts of the pools (`account.py`, which says who may write
   what). Here they are summed, by one thread at a time, into one report.
2. A report is absolute, and says what there can have been at one moment. Peaks stay until the
   report that carries them is acknowledged.
3. Nothing here grows with time or with what happens, only with what is open: what has ended is
   folded into totals, also where no report is ever taken.
4. A report always fits on the wire, whatever the application opens. The oldest pools are reported one by
   one; those beyond are one sum for each database, so nothing that is counted is missing. Of connections
   that are too many only how many they are is told. What fits again later is told by the next report.

Times are seconds of one monotonic clock, handed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Protocol

from connmon.plugin.call_site_accounts import Look, Room, Sampling, SiteAccount
from connmon.plugin.call_site_reports import SiteReports
from connmon.plugin.holder_checks import NOT_LOOKED, Holders, Looking
from connmon.plugin.pool_account import UNCOUNTED, Entry, Live, PoolAccount, highest, within
from connmon.plugin.pool_sums import OTHERS, Counted, Surplus, age
from connmon.protocol.reports import (
    CONNECTIONS_REPORTED,
    POOLS_REPORTED,
    Connection,
    PoolInfo,
    PoolReport,
    Report,
    ServerAddress,
    SiteReport,
)
from connmon.protocol.rows import RowKey, database_key
from connmon.protocol.values import (
    CHECKED_OUT,
    DETACHED,
    IDLE,
    ConnectionState,
    Gauges,
    Peaks,
    changed_times,
    plus,
)

#: How many databases keep the totals of their pools that are gone, and of those that are not reported one
#: by one; the rest share one.
REMAINS_LIMIT = 64
#: Bytes in a report, at most, for what pools are; and for who holds connections, and where.
IDENTITIES = 3 * 2**20
HOLDERS = 6 * 2**20
#: So few pools fit, whatever they are called.
FEW = 100
#: A connection that is held is told again after this many seconds, although nothing about it
#: changed: the replica ages it by its own clock, and that can lag.
REFRESH = 30.0
#: Folding takes milliseconds. Where so many tries in a row found somebody at it, over so many seconds, nobody
#: is: an interruption came before the lock was released.
BLOCKED, BLOCKED_SECONDS = 3, 2.0
#: Ended entries that may pile up while no reporter runs, before they are folded on the spot.
BACKLOG = 1000


_ANY_OTHER = PoolInfo(OTHERS, OTHERS, None, None, None, "", None, None, None)


class Lock(Protocol):
    """What is needed of a lock. It is only ever taken where entries are folded: by the reporter,
    and, without waiting for it, by a connect that finds too much left to fold."""

    def acquire(self, blocking: bool = True, timeout: float = -1, /) -> bool: ...
    def release(self) -> None: ...


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
        self._blocked, self._blocked_since = 0, 0.0
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
        self.looking = Looking(holders)
        self._site_reports = SiteReports(self.looking.line)
        self.sampling = Sampling()
        """Which checkouts are noted by their line, of all pools together."""
        self.sites_room = Room()
        self._checkouts = 0
        """Of all pools, as last counted."""
        self._ending = False
        self._sequence = 0
        self._base = 0
        self._taken_at: float | None = None
        self._busy = False
        self._unacknowledged: Peaks | None = None
        self._closed_pools: list[int] = []
        self._surplus: dict[RowKey, Surplus] = {}
        """By database: the sums of the pools beyond those that are reported one by one."""
        self._surplus_of: dict[int, Surplus] = {}
        """By pool: the sum that it is in."""
        self._moved: dict[int, int] = {}
        """The pools that have left such a sum, by number, after which report; until that is acknowledged."""
        self._listed = 0
        """Connections that reports have told of and that have not been told to have ended."""
        self._unlisted = 0
        """Open ones that the last report did not tell of."""
        self._holders_room = HOLDERS

    def pool(self, info: PoolInfo) -> PoolAccount:
        """Open the account of one more pool."""
        # Engines made and dropped must not pile up either while no report is taken.
        if len(self.pools) >= self._crowd and (folding := self._fold()):
            try:
                self._retire()
                self._crowd = 2 * len(self.pools) + BACKLOG
            finally:
                folding.release()
        account = PoolAccount(self, next(self.numbers), info)
        self.pools[account.number] = account
        return account

    def forked(self, instance: str) -> None:
        """Begin anew in the child of a fork: nothing that the parent counted is ours."""
        self.instance = instance
        self.live.reset()
        self.remains = {}
        self.sites_room = Room()
        self._checkouts = 0
        for account in list(self.pools.values()):
            account.forget()
        self.used = False
        self._sequence = self._base = 0
        self._taken_at = self._unacknowledged = None
        self._busy = self._ending = False
        self._closed_pools = []
        self._surplus, self._surplus_of, self._moved = {}, {}, {}
        self._listed = self._unlisted = 0
        self._folding = self._lock()

    def seen(self) -> None:
        """Something has happened that is worth a report: have the reporter run."""
        if self.wake is not None:
            self.wake()
        self.used = True

    def relieve(self, account: PoolAccount) -> None:
        """Keep what has ended from piling up where no reporter can run."""
        entries = len(account.entries) > 2 * account.live.open + BACKLOG
        if (entries or len(account.made) > UNCOUNTED) and (folding := self._fold()):
            try:
                account.fold()
                account.times()
            finally:
                folding.release()

    def _fold(self, patience: float = 0.0) -> Lock | None:
        """Return the lock, held, under which one thread at a time folds; None where somebody else does."""
        folding = self._folding
        if folding.acquire(patience > 0.0, patience or -1):
            self._blocked = 0
            return folding
        now = self.clock()
        if not self._blocked:
            self._blocked_since = now
        self._blocked += 1
        if self._blocked >= BLOCKED and now - self._blocked_since >= BLOCKED_SECONDS:
            self._blocked, self._folding = 0, self._lock()
        return None

    def count_times(self, account: PoolAccount, entry: Entry | None = None) -> None:
        """Count how long holds of this connection took, or whatever there is of this pool.

        That keeps it from piling up where no report is taken.
        """
        if folding := self._fold():
            try:
                if entry is None:
                    account.times()
                else:
                    account.count_holds(entry)
            finally:
                folding.release()

    def count_sites(self, site: SiteAccount) -> None:
        """Count the holds of a line, which would pile up where no report is taken."""
        if folding := self._fold():
            try:
                site.count()
            finally:
                folding.release()

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
            moved = list(self._moved.items())  # an application's thread may retire one meanwhile
            self._moved = {number: after for number, after in moved if after >= sequence}
            for surplus in self._surplus.values():
                if surplus.moved_after is not None and surplus.moved_after < sequence:
                    surplus.moved_after = None

    def take_over(self) -> None:
        """Nobody folds any more, who may have been in the middle of it."""
        self._folding = self._lock()

    def end(self) -> None:
        """The process ends in good order: what is open now is closed with it, and what is held given back."""
        self._ending = True
        for account in self._accounts():
            for entry in list(account.entries.values()):
                entry.end()
            account.waits, account.wait_sites = {}, {}

    def take(self, now: float, *, alive: bool = False) -> Report | None:
        """Return the next report: a full one, or what changed since the acknowledged one.

        Without `alive`, None where nothing has changed. The caller adds who reports, sends it,
        and calls `acknowledged` or `restart` before it takes another one.
        """
        folding = self._fold(1.0)
        if folding is None:
            return None
        try:
            return self._take(now, alive)
        finally:
            folding.release()

    def _take(self, now: float, alive: bool) -> Report | None:
        full = self._base == 0
        self._retire()
        for account in self._accounts():
            account.locate()
        self._share()
        for surplus_before in self._surplus.values():
            surplus_before.counted = []  # of a report that failed
        pools, connections, closed = [], [], []
        sites: list[SiteReport] = []
        self._unlisted, self._holders_room = 0, HOLDERS
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
        self._sample(now, sum([totals.checkouts for _, _, totals, *_ in counted]))
        self.looking.choose(list(self.pools.values()), now)
        self._site_reports.begin(now, all_lines=full, all_changed=self._ending)
        whole = self.live.collect(longest)
        self._unacknowledged = highest(self._unacknowledged, whole)
        for account, gauges, totals, times, peaks, held_since, first, wait in counted:
            gauges = within(gauges, peaks, whole, present)
            present = plus(present, gauges)
            peaks = account.unacknowledged or peaks
            surplus = self._surplus_of.get(account.number)
            now_counted = Counted(account, gauges, totals, times, peaks, held_since, first)
            facts = (now_counted.facts(), account.info)
            if surplus is not None:
                surplus.counted.append(now_counted)
            elif full or facts != account.told:
                with_info = full or account.info is not account.told_info
                pools.append(
                    PoolReport(
                        account.number,
                        account.info if with_info else None,
                        gauges,
                        totals,
                        peaks,
                        wait,
                        age(now, held_since),
                        times if with_info else changed_times(times, account.told_times),
                        moved=account.number in self._moved,
                    )
                )
                account.told, account.told_info, account.told_times = facts, account.info, times
            closed += account.gone
            self._listed -= len(account.gone)
            account.gone = []
            number, info = (
                (account.number, account.info) if surplus is None else (surplus.number, surplus.info)
            )
            connections += self._connections(account.entries.values(), number, info, now, full)
            if surplus is None:
                sites += self._site_reports.of(account, totals.checkouts)
        pools += self._surplus_reports(now, full, self._unacknowledged)
        sites += self._site_reports.others(self.sites_room)
        news = bool(pools or connections or closed or self._closed_pools or sites)
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
            left_out=self._unlisted,
            sites=tuple(sites),
        )
        self._closed_pools = []
        return report

    def _accounts(self) -> list[PoolAccount]:
        return [*list(self.pools.values()), *self.remains.values()]

    def _share(self) -> None:
        """Decide which pools are reported one by one: the oldest. One that is, stays so to its end."""
        accounts = list(self.pools.values())
        if len(accounts) <= FEW and not self._surplus:
            return
        room = IDENTITIES
        for place, account in enumerate(accounts):
            info, number = account.info, account.number
            room -= _size(info.url, info.database or "", info.database_host or "")
            own = account.told is not None or (place < POOLS_REPORTED and room >= 0)
            if not own and number not in self._surplus_of:
                self._surplus_of[number] = self._surplus_for(account)
            elif not own and not self._surplus_of[number].has(info):  # its server is known only now
                self._leave_surplus(number)
                surplus = self._surplus_of[number] = self._surplus_for(account)
                surplus.moved_after = self._sequence
            elif own and number in self._surplus_of:
                self._leave_surplus(number)
                self._moved[number] = self._sequence

    def _surplus_for(self, account: PoolAccount) -> Surplus:
        key = database_key(account.info)
        if key not in self._surplus and len(self._surplus) >= REMAINS_LIMIT:
            key = database_key(_ANY_OTHER)
        surplus = self._surplus.get(key)
        if surplus is None:
            info = account.info if key == database_key(account.info) else _ANY_OTHER
            surplus = self._surplus[key] = Surplus(next(self.numbers), info)
        return surplus

    def _leave_surplus(self, number: int) -> None:
        surplus = self._surplus_of.pop(number, None)
        if surplus is not None:
            surplus.moved_after = self._sequence

    def _surplus_reports(self, now: float, full: bool, whole: Peaks) -> list[PoolReport]:
        reports = []
        for key, surplus in list(self._surplus.items()):
            if surplus.counted:
                report = surplus.take(now, full, whole)
                if report is not None:
                    reports.append(report)
            else:
                del self._surplus[key]
                if surplus.told is not None:
                    self._closed_pools.append(surplus.number)
        return reports

    def _connections(
        self, entries: Iterable[Entry], number: int, info: PoolInfo, now: float, full: bool
    ) -> list[Connection]:
        """Return what is to be told of these connections; `number` and `info` are of their pool's report."""
        told = []
        for entry in list(entries):
            if entry.told is None and self._listed >= CONNECTIONS_REPORTED:
                self._unlisted += 1
                continue
            session, server = self._session(entry, info, now)
            since, detached = entry.since, entry.detached
            held = since > 0.0
            name, site, look = self.looking.holder_of(entry, since, now) if held else (None, None, NOT_LOOKED)
            # The id comes later than the connection: its first statements may be on their way meanwhile.
            plain = (number, since, detached, session, server)
            facts: tuple[object, ...] = (plain, site, look)
            before = entry.told
            if not full and before == facts and not (held and now - entry.told_at > REFRESH):
                continue
            if name is not None:
                size = _size(name, site or "", look.site or "", *look.stack)
                if size > self._holders_room:  # told by the next report
                    if not full and before is not None and before[0] == plain:
                        continue
                    name, site, look = None, None, Look(look.where, None, ())
                    facts = (plain, None, look)
                else:
                    self._holders_room -= size
            if before is None:
                self._listed += 1
            entry.told, entry.told_at = facts, now
            state: ConnectionState = DETACHED if detached else CHECKED_OUT if held else IDLE
            told.append(
                Connection(
                    entry.number,
                    number,
                    session,
                    state,
                    max(0.0, now - entry.opened),
                    max(0.0, now - since) if held else None,
                    name,
                    site,
                    look.stack,
                    server,
                    look.where,
                    look.site,
                )
            )
        return told

    @staticmethod
    def _session(entry: Entry, info: PoolInfo, now: float) -> tuple[int | None, ServerAddress | None]:
        """Return the server's id of the connection, and where it is; None: where its pool is."""
        location = entry.pool.location
        if location is None:
            return entry.server_id, None
        if entry.driver is not None and (entry.since or entry.read != entry.checkouts):
            location.look_again(entry, now)
        number = location.session_of(entry) if location.poolers else entry.server_id
        if entry.server is not None and entry.server is location.at and info is entry.pool.info:  # as mostly
            return number, None
        return number, location.address_of(entry, info)

    def _sample(self, now: float, checkouts: int) -> None:
        """Note every checkout by its line again, where they have become few."""
        passed = 0.0 if self._taken_at is None else now - self._taken_at
        before, self._checkouts = self._checkouts, checkouts
        sparse = self.sampling.mean > 1
        if not sparse or passed <= 0.0 or not self.sampling.relax(now, (checkouts - before) / passed):
            return
        for account in list(self.pools.values()):
            if account.sampling is self.sampling:
                for entry in list(account.entries.values()):
                    entry.note_at = 0

    def _retire(self) -> None:
        """Hand the totals of pools that are gone to the remains of the same database."""
        for account in list(self.pools.values()):
            if not account.retired or account.waits:
                continue
            account.fold()
            if account.entries:  # a detached connection outlives its pool
                continue
            del self.pools[account.number]
            account.locate()
            self._leave_surplus(account.number)
            self._moved.pop(account.number, None)
            remains = self._remains_of(account)
            _, happened, _ = account.count()
            remains.ended = plus(remains.ended, happened)
            remains.inherit(account.times())
            account.sites.hand_over(remains.sites)
            remains.gone += account.gone
            if account.told is not None:
                self._closed_pools.append(account.number)
            # Also what it has seen since the last report, which may be all of its life.
            peaks = highest(account.unacknowledged, account.live.collect(0.0))
            remains.unacknowledged = highest(remains.unacknowledged, peaks)

    def _remains_of(self, account: PoolAccount) -> PoolAccount:
        info = account.info
        if database_key(info) not in self.remains and len(self.remains) >= REMAINS_LIMIT:
            info = _ANY_OTHER
        key = database_key(info)
        remains = self.remains.get(key)
        if remains is None:
            remains = self.remains[key] = PoolAccount(self, next(self.numbers), info)
            remains.retired = True
        return remains


def _size(*texts: str) -> int:
    """Return how many bytes these texts take on the wire, or more."""
    text = "".join(texts)
    return 5 * len(texts) + (len(text) if text.isascii() else 4 * len(text))

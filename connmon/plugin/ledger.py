"""The exact account of one process: what happened in, reports out. No I/O, no time, no threads.

1. What happens is written to the accounts of the pools (`pool_account.py` says who may write what). Here one
   thread at a time sums them into a report.
2. A report is absolute, and says what was possible at one moment. Peaks stay until the report that carries
   them is acknowledged.
3. Nothing here grows with time or with what happens, only with what is open: what has ended is folded into
   totals, also where no report is ever taken.
4. A report always fits on the wire, whatever the application opens. The oldest pools are reported one by one;
   those beyond are one sum for each database (`pool_sums.py`), so that nothing counted is missing. Of
   connections that are too many only the number is reported. What fits again later is in the next report.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from connmon.plugin.call_site_accounts import Sampling, SamplingSettings, Whereabouts
from connmon.plugin.call_site_reports import CallSiteReports, CallSiteReportSettings
from connmon.plugin.hold_looks import HoldLooks
from connmon.plugin.holder_checks import NOT_CHECKED, HolderChecks, HolderCheckSettings, Holders
from connmon.plugin.pool_account import Entry, PoolAccount, highest, within_peaks
from connmon.plugin.pool_sums import OTHERS, PoolFigures, PoolSum, age
from connmon.plugin.process_account import AccountSettings, Lock, ProcessAccount, unknown_cpu
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


@dataclass(frozen=True)
class LedgerSettings:
    """What one process's reports hold at most, and how often an unchanged connection is repeated."""

    pools_reported: int = POOLS_REPORTED
    connections_reported: int = CONNECTIONS_REPORTED
    databases: int = 64
    """How many databases keep the totals of their closed pools, and of pools that are not reported one by
    one, apart; the rest share one."""
    identity_bytes: int = 3 * 2**20
    """The most bytes in a report for what pools are."""
    holder_bytes: int = 6 * 2**20
    """The most bytes in a report for who holds connections, and where."""
    few_pools: int = 100
    """So few pools always fit, whatever they are called."""
    refresh_seconds: float = 30.0
    """A held connection is reported again after this, although nothing about it has changed: the replica ages
    it by its own clock, which can lag."""
    lock_wait_seconds: float = 1.0
    """How long the reporter waits for a thread that folds."""
    accounts: AccountSettings = field(default_factory=AccountSettings)
    holder_checks: HolderCheckSettings = field(default_factory=HolderCheckSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    call_site_reports: CallSiteReportSettings = field(default_factory=CallSiteReportSettings)


_ANY_OTHER = PoolInfo(
    url=OTHERS,
    dialect=OTHERS,
    database_host=None,
    database_port=None,
    database=None,
    pool_class="",
    pool_size=None,
    max_overflow=None,
    timeout=None,
)


class Ledger:
    """One process's account towards one service.

    `instance` names this process for as long as it lives; it is new after a fork.
    """

    def __init__(
        self,
        instance: str,
        make_lock: Callable[[], Lock],
        clock: Callable[[], float],
        holders: Holders | None = None,
        settings: LedgerSettings = LedgerSettings(),  # it is immutable
        thread_cpu: Callable[[], tuple[int, float]] = unknown_cpu,
    ) -> None:
        """`make_lock` makes a lock of the native kind; `holders` knows who has a connection.

        `clock` gives all times, in seconds. In an application it is `time.monotonic`, as queuepool reads it.
        `thread_cpu` returns the calling thread and the seconds that it has computed.
        """
        self.instance = instance
        self.settings = settings
        self.process = ProcessAccount(make_lock, clock, settings.accounts, thread_cpu)
        self.pools: dict[int, PoolAccount] = {}
        self.remains: dict[RowKey, PoolAccount] = {}
        """By database: the totals of its closed pools, which must not go missing there."""
        self._pools_before_fold = settings.accounts.backlog_entries
        self.holder_checks = HolderChecks(holders, settings.holder_checks)
        self._call_site_reports = CallSiteReports(
            self.holder_checks.call_site_text, settings.call_site_reports
        )
        self.profile_hz = 0.0
        """Looks per second at who holds connections, on average. 0: none."""
        self._looks = HoldLooks(holders, settings.accounts.profile)
        self._busy_until = 0.0
        self.sampling = Sampling(settings.sampling)
        """Which checkouts have their call site noted, of all pools together."""
        self._checkouts = 0
        """Of all pools, as last counted."""
        self._ending = False
        self._sequence = 0
        self._base = 0
        """The last acknowledged report. 0: the next report is a full one."""
        self._taken_at: float | None = None
        self._had_news = False
        """Whether the last report had anything new."""
        self._unacknowledged: Peaks | None = None
        """The process's peaks since the last acknowledged report."""
        self._closed_pools: list[int] = []
        self._sums: dict[RowKey, PoolSum] = {}
        """By database: the sums of the pools beyond those that are reported one by one."""
        self._sum_of_pool: dict[int, PoolSum] = {}
        """By pool: the sum that it is in."""
        self._moved: dict[int, int] = {}
        """By pool that has left a sum: after which report, until a later one is acknowledged."""
        self._listed = 0
        """Reported connections that are not reported as closed."""
        self._unlisted = 0
        """Open connections that the last report has left out."""
        self._holder_bytes_left = settings.holder_bytes

    def __repr__(self) -> str:
        return f"<Ledger of instance {self.instance}: report {self._sequence}, {self.process!r}>"

    # --- In the application's threads

    def pool(self, info: PoolInfo) -> PoolAccount:
        """Open the account of one more pool."""
        # Engines made and dropped must not pile up either while no report is taken.
        if len(self.pools) >= self._pools_before_fold and (lock := self.process.fold_lock.acquire()):
            try:
                self._retire()
                backlog = self.settings.accounts.backlog_entries
                self._pools_before_fold = 2 * len(self.pools) + backlog
            finally:
                lock.release()
        account = PoolAccount(self.process, next(self.process.numbers), info)
        self.process.pool_live[account.number] = account.live
        self.pools[account.number] = account
        return account

    def forked(self, instance: str) -> None:
        """Start from nothing in the child of a fork: nothing that the parent counted is ours."""
        self.instance = instance
        self.process.forked()
        self.remains = {}
        self._checkouts = 0
        for account in list(self.pools.values()):
            account.forget()
        self._sequence = self._base = 0
        self._taken_at = self._unacknowledged = None
        self._had_news = self._ending = False
        self._closed_pools = []
        self._sums, self._sum_of_pool, self._moved = {}, {}, {}
        self._listed = self._unlisted = 0
        self._busy_until = 0.0
        self._looks.forget()

    # --- In the reporter's thread

    @property
    def busy(self) -> bool:
        """Whether connections are held or waited for, or were a moment ago: looks are worth while."""
        live = self.process.live
        return bool(live.checked_out or live.waiting) or self.process.clock() < self._busy_until

    def look(self, now: float, late: float, cpu_seconds: float = 0.0) -> None:
        """Look where holders are.

        `late`: how many seconds after its moment this look has got the interpreter lock. `cpu_seconds`: how
        long the process has computed by now; 0.0: not known.
        """
        lock = self.process.fold_lock.acquire()
        if lock is None:
            return
        try:
            self._looks.look(self._accounts(), now, late, cpu_seconds)
        finally:
            lock.release()

    def restart(self) -> None:
        """Make the next report a full one: the node is another, or has missed something."""
        self._base = 0

    def acknowledged(self, sequence: int) -> None:
        """Note that report `sequence` was applied; the next one builds on it."""
        if sequence == self._sequence:
            self._base = sequence
            self._unacknowledged = None
            for account in self._accounts():
                account.unacknowledged = None
            moved = list(self._moved.items())  # an application's thread may retire one meanwhile
            self._moved = {number: after for number, after in moved if after >= sequence}
            for pool_sum in self._sums.values():
                if pool_sum.moved_after is not None and pool_sum.moved_after < sequence:
                    pool_sum.moved_after = None

    def take_over(self) -> None:
        """Go on in another thread; the one before is gone, maybe in the middle of folding."""
        self.process.fold_lock.replace()

    def end(self) -> None:
        """Note that the process ends in good order: every connection is closed, and every hold ends."""
        self._ending = True
        for account in self._accounts():
            for entry in list(account.entries.values()):
                entry.end()
            account.waits, account.wait_call_sites = {}, {}

    def take(self, now: float, *, alive: bool = False) -> Report | None:
        """Return the next report: a full one, or what changed since the acknowledged one.

        Without `alive`, None where nothing has changed. The caller adds who reports, sends it, and calls
        `acknowledged` or `restart` before it takes another one.
        """
        lock = self.process.fold_lock.acquire(self.settings.lock_wait_seconds)
        if lock is None:
            return None
        try:
            return self._take(now, alive)
        finally:
            lock.release()

    def _take(self, now: float, alive: bool) -> Report | None:
        full = self._base == 0
        counted = self._count_pools(now)
        self._adapt_sampling(now, sum([figures.totals.checkouts for figures in counted]))
        self.holder_checks.choose(list(self.pools.values()), now)
        self._call_site_reports.begin(now, everything=full, all_changed=self._ending)
        longest_wait = max([age(now, figures.waits_since) or 0.0 for figures in counted], default=0.0)
        process_peaks = self.process.live.collect(longest_wait)
        self._note_busy(now, process_peaks, counted)
        self._unacknowledged = highest(self._unacknowledged, process_peaks)
        self._unlisted, self._holder_bytes_left = 0, self.settings.holder_bytes
        pools: list[PoolReport] = []
        connections: list[Connection] = []
        closed_connections: list[int] = []
        call_sites: list[SiteReport] = []
        other_pools = Gauges()
        for figures in counted:
            account = figures.account
            gauges = within_peaks(figures.gauges, figures.peaks, process_peaks, other_pools)
            other_pools = plus(other_pools, gauges)
            figures = figures._replace(gauges=gauges, peaks=account.unacknowledged or figures.peaks)
            pool_sum = self._sum_of_pool.get(account.number)
            if pool_sum is not None:
                pool_sum.pools.append(figures)
            elif (report := self._pool_report(figures, now, full)) is not None:
                pools.append(report)
            closed_connections += account.closed_connections
            self._listed -= len(account.closed_connections)
            account.closed_connections = []
            row = account if pool_sum is None else pool_sum
            connections += self._connections(account.entries.values(), row.number, row.info, now, full)
            call_sites += self._call_site_reports.of(
                account, figures.totals.checkouts, summed=pool_sum is not None
            )
        pools += self._sum_reports(now, full, self._unacknowledged)
        call_sites += self._call_site_reports.others(self.process.call_site_room)
        has_news = bool(pools or connections or closed_connections or self._closed_pools or call_sites)
        # One more report after the last change, so that rates and the longest wait come to rest.
        if not (full or alive or has_news or self._had_news):
            return None
        self._had_news = has_news
        self._sequence += 1
        interval = 0.0 if self._taken_at is None else max(0.0, now - self._taken_at)
        self._taken_at = now
        closed_pools, self._closed_pools = self._closed_pools, []
        return Report(
            instance=self.instance,
            sequence=self._sequence,
            base=self._base,
            interval=interval,
            peaks=self._unacknowledged,
            pools=tuple(pools),
            closed_pools=() if full else tuple(closed_pools),
            connections=tuple(connections),
            closed_connections=() if full else tuple(closed_connections),
            left_out=self._unlisted,
            sites=tuple(call_sites),
        )

    def _note_busy(self, now: float, peaks: Peaks, counted: Iterable[PoolFigures]) -> None:
        """Have looks go on for a while, where something was held or waited for since the last report."""
        detached = any(figures.gauges.detached for figures in counted)
        if peaks.checked_out or peaks.waiting or detached:
            self._busy_until = now + self.settings.accounts.profile.busy_seconds

    def _count_pools(self, now: float) -> list[PoolFigures]:
        """Fold and count each pool; its peaks become part of the unacknowledged ones."""
        self._retire()
        for account in self._accounts():
            account.locate()
        self._assign_to_sums()
        for pool_sum in self._sums.values():
            pool_sum.pools = []  # of a report that failed
        counted = []
        for account in self._accounts():
            account.fold()
            gauges, totals, held_since = account.count(now)
            account.settle(gauges, totals, now)
            account.settle_time(totals, now, self._looks.cpu_scale, final=self._ending)
            waits_since = min(account.waits.copy().values(), default=None)
            peaks = account.live.collect(age(now, waits_since) or 0.0)
            account.unacknowledged = highest(account.unacknowledged, peaks)
            figures = PoolFigures(
                account=account,
                gauges=gauges,
                totals=totals,
                times=account.times(),
                peaks=peaks,
                held_since=held_since,
                waits_since=waits_since,
            )
            counted.append(figures)
        return counted

    def _pool_report(self, figures: PoolFigures, now: float, full: bool) -> PoolReport | None:
        """Return a pool's own report, or None where nothing has changed."""
        account = figures.account
        facts = (figures.facts(), account.info)
        if not full and facts == account.reported:
            return None
        with_info = full or account.info is not account.reported_info
        times = figures.times if with_info else changed_times(figures.times, account.reported_times)
        account.reported, account.reported_info, account.reported_times = facts, account.info, figures.times
        return PoolReport(
            number=account.number,
            info=account.info if with_info else None,
            gauges=figures.gauges,
            totals=figures.totals,
            peaks=figures.peaks,
            wait=age(now, figures.waits_since),
            held=age(now, figures.held_since),
            times=times,
            moved=account.number in self._moved,
        )

    def _accounts(self) -> list[PoolAccount]:
        return [*list(self.pools.values()), *self.remains.values()]

    def _assign_to_sums(self) -> None:
        """Decide which pools are reported one by one: the oldest. Such a pool stays so to its end."""
        accounts = list(self.pools.values())
        if len(accounts) <= self.settings.few_pools and not self._sums:
            return
        bytes_left = self.settings.identity_bytes
        for position, account in enumerate(accounts):
            info, number = account.info, account.number
            bytes_left -= _wire_bytes(info.url, info.database or "", info.database_host or "")
            fits = position < self.settings.pools_reported and bytes_left >= 0
            own = account.reported is not None or fits
            if not own and number not in self._sum_of_pool:
                self._sum_of_pool[number] = self._sum_for(account)
            elif not own and not self._sum_of_pool[number].has(info):  # its server is known only now
                self._leave_sum(number)
                pool_sum = self._sum_of_pool[number] = self._sum_for(account)
                pool_sum.moved_after = self._sequence
            elif own and number in self._sum_of_pool:
                self._leave_sum(number)
                self._moved[number] = self._sequence

    def _sum_for(self, account: PoolAccount) -> PoolSum:
        key = database_key(account.info)
        if key not in self._sums and len(self._sums) >= self.settings.databases:
            key = database_key(_ANY_OTHER)
        pool_sum = self._sums.get(key)
        if pool_sum is None:
            info = account.info if key == database_key(account.info) else _ANY_OTHER
            pool_sum = self._sums[key] = PoolSum(next(self.process.numbers), info)
        return pool_sum

    def _leave_sum(self, number: int) -> None:
        pool_sum = self._sum_of_pool.pop(number, None)
        if pool_sum is not None:
            pool_sum.moved_after = self._sequence

    def _sum_reports(self, now: float, full: bool, process_peaks: Peaks) -> list[PoolReport]:
        reports = []
        for key, pool_sum in list(self._sums.items()):
            if pool_sum.pools:
                report = pool_sum.take(now, full, process_peaks)
                if report is not None:
                    reports.append(report)
            else:
                del self._sums[key]
                if pool_sum.reported is not None:
                    self._closed_pools.append(pool_sum.number)
        return reports

    def _connections(
        self, entries: Iterable[Entry], number: int, info: PoolInfo, now: float, full: bool
    ) -> list[Connection]:
        """Return the reports of these connections; `number` and `info` are of their pool's report."""
        reports = []
        for entry in list(entries):
            if entry.reported is None and self._listed >= self.settings.connections_reported:
                self._unlisted += 1
                continue
            session, server = self._session(entry, info, now)
            since, detached = entry.since, entry.detached
            held = since > 0.0
            name, call_site, whereabouts = (
                self.holder_checks.holder_of(entry, since, now) if held else (None, None, NOT_CHECKED)
            )
            # The id comes later than the connection: its first statements may be on their way meanwhile.
            plain = (number, since, detached, session, server)
            facts: tuple[object, ...] = (plain, call_site, whereabouts)
            before = entry.reported
            refresh = held and now - entry.reported_at > self.settings.refresh_seconds
            if not full and before == facts and not refresh:
                continue
            if name is not None and not self._takes_room(name, call_site, whereabouts):
                if not full and before is not None and before[0] == plain:
                    continue  # the next report says where it is held
                name, call_site, whereabouts = None, None, Whereabouts(whereabouts.where, None, ())
                facts = (plain, None, whereabouts)
            if before is None:
                self._listed += 1
            entry.reported, entry.reported_at = facts, now
            state: ConnectionState = DETACHED if detached else CHECKED_OUT if held else IDLE
            reports.append(
                Connection(
                    number=entry.number,
                    pool=number,
                    server_id=session,
                    state=state,
                    age=max(0.0, now - entry.opened),
                    held=max(0.0, now - since) if held else None,
                    holder=name,
                    call_site=call_site,
                    stack=whereabouts.stack,
                    server=server,
                    holder_in=whereabouts.where,
                    holder_site=whereabouts.call_site,
                )
            )
        return reports

    def _takes_room(self, name: str, call_site: str | None, whereabouts: Whereabouts) -> bool:
        """Return whether the report has room for this holder, and take it."""
        size = _wire_bytes(name, call_site or "", whereabouts.call_site or "", *whereabouts.stack)
        if size > self._holder_bytes_left:
            return False
        self._holder_bytes_left -= size
        return True

    @staticmethod
    def _session(entry: Entry, info: PoolInfo, now: float) -> tuple[int | None, ServerAddress | None]:
        """Return the server's id of the connection, and where it is; None: where its pool is."""
        location = entry.pool.location
        if location is None:
            return entry.server_id, None
        if entry.driver_ref is not None and (entry.since or entry.session_read_at != entry.checkouts):
            location.read_session_again(entry, now)
        number = location.session_of(entry) if location.poolers else entry.server_id
        if entry.server is not None and entry.server is location.at and info is entry.pool.info:  # as mostly
            return number, None
        return number, location.address_of(entry, info)

    def _adapt_sampling(self, now: float, checkouts: int) -> None:
        """Note every checkout's call site again, where checkouts have become rare."""
        passed = 0.0 if self._taken_at is None else now - self._taken_at
        before, self._checkouts = self._checkouts, checkouts
        sparse = self.sampling.mean > 1
        if not sparse or passed <= 0.0 or not self.sampling.relax(now, (checkouts - before) / passed):
            return
        for account in list(self.pools.values()):
            if account.sampling is self.sampling:
                account.note_next()

    def _retire(self) -> None:
        """Move the totals of pools that are gone to the remains of the same database."""
        for account in list(self.pools.values()):
            if not account.retired or account.waits:
                continue
            account.fold()
            if account.entries:  # a detached connection outlives its pool
                continue
            del self.pools[account.number]
            self.process.pool_live.pop(account.number, None)
            account.locate()
            self._leave_sum(account.number)
            self._moved.pop(account.number, None)
            remains = self._remains_of(account)
            _, totals, _ = account.count()
            account.settle_time(totals, self.process.clock(), final=True)
            remains.ended = plus(remains.ended, totals)
            remains.inherit(account.times())
            heirs = account.call_sites.hand_over(remains.call_sites)
            remains.time.profile.absorb(account.time.profile, heirs)
            remains.closed_connections += account.closed_connections
            if account.reported is not None:
                self._closed_pools.append(account.number)
            # Also the peaks since the last report, which may be all of its life.
            peaks = highest(account.unacknowledged, account.live.collect(0.0))
            remains.unacknowledged = highest(remains.unacknowledged, peaks)

    def _remains_of(self, account: PoolAccount) -> PoolAccount:
        info = account.info
        if database_key(info) not in self.remains and len(self.remains) >= self.settings.databases:
            info = _ANY_OTHER
        key = database_key(info)
        remains = self.remains.get(key)
        if remains is None:
            remains = self.remains[key] = PoolAccount(self.process, next(self.process.numbers), info)
            remains.retired = True
        return remains


def _wire_bytes(*texts: str) -> int:
    """Return how many bytes these texts take on the wire, or more."""
    text = "".join(texts)
    return 5 * len(texts) + (len(text) if text.isascii() else 4 * len(text))

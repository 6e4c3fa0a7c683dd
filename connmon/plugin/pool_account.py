"""The account of one pool: its connections, its waits, its totals. No I/O, no time, no threads.

The application's threads write without a lock. These rules keep the account right:

1. What happens to a connection is written to its `Entry`, by the holder of the moment. Plain
   attribute writes only: a garbage collection inside a listener can run another checkin on the same thread,
   so a lock would deadlock.
2. Totals are never counted in a shared variable. They are the sum over the entries, plus what ended entries
   have left behind (`fold`).
3. Only the thread that has the process's fold lock sums, folds and deletes. An ended entry is taken out of
   its dict once, so it is folded once.
4. `LiveCounts` count the present a second time, for peaks only: a peak must be seen when it happens. If a
   lost update lets them drift, `settle` corrects them once the pool has been quiet.
5. A duration is appended to a list: a hold's to the entry's, a wait's or connect's to the pool's. Only the
   thread with the fold lock takes durations out, from the front, into the pool's histograms. Both are one
   step of the interpreter, so nothing is lost and nothing is counted twice.
6. An ended connection is `Entry.closed` by what notices it first: a close event, the end of the `Token` in
   `record.info`, or the end of the driver's connection. Later notices do nothing.
7. An exception can be raised into any line of this (`interrupts.py`). So each change of an entry has one
   write that decides, and the rest can be made up for: a connection is held while `checkouts` is larger than
   `checkins`, and open while it is not `closed`. After an interruption `mend` does the rest.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.database_address import DatabaseServer
from connmon.interrupts import interrupted, let_go
from connmon.plugin.call_site_accounts import (
    UNCOUNTED_SITE_HOLDS,
    CallSite,
    CallSiteAccount,
    CallSites,
    EndedHold,
    Sampling,
    Whereabouts,
)
from connmon.plugin.describe import Location
from connmon.plugin.hold_profile import old_seconds
from connmon.plugin.pool_time import PoolTime
from connmon.plugin.process_account import LiveCounts, ProcessAccount
from connmon.protocol.histogram import BOUNDS, ordered
from connmon.protocol.reports import PoolInfo
from connmon.protocol.values import Gauges, Peaks, Times, Totals, plus

#: The key of a connection's token in `record.info`.
KEY = "connmon"
#: Holds of one connection, or waits of one pool, that may be uncounted before they are counted on the spot:
#: without a reporter they would pile up. The checkin listeners use it as a bit mask, to look at the list once
#: in 64 checkouts. A constant of the module and not a setting, since an attribute would cost each checkin.
UNCOUNTED = 63

Histograms: TypeAlias = "tuple[Counter[int], Counter[int], Counter[int]]"
#: `histogram.bucket`, without the call of a Python function for each value.
_bucket = partial(bisect_left, BOUNDS)
#: No connection is ever checked out so many times.
NEVER = 2**62


def _no_call_site() -> None:
    """Stands for a search of the call site where none is wanted."""


def highest(a: Peaks | None, b: Peaks) -> Peaks:
    """Return the larger of each peak."""
    if a is None:
        return b
    return Peaks(
        max(a.connections, b.connections),
        max(a.checked_out, b.checked_out),
        max(a.waiting, b.waiting),
        max(a.longest_wait, b.longest_wait),
    )


def within_peaks(gauges: Gauges, peaks: Peaks, process_peaks: Peaks, other_pools: Gauges) -> Gauges:
    """Return a pool's gauges, lowered to what was possible at any one moment.

    The sum is taken while the application goes on: a connection may be counted as held, be returned, and the
    next one be counted as held as well. For a gauge that would pass in a second, but maxima are made of it
    and never come down again. `peaks` are the pool's, `process_peaks` the whole process's; `other_pools` is
    the sum of the process's pools that were lowered before.
    """
    connections = min(
        gauges.connections, peaks.connections, process_peaks.connections - other_pools.connections
    )
    detached = min(gauges.detached, connections)
    attached = connections - detached
    return gauges._replace(
        connections=connections,
        checked_out=min(
            gauges.checked_out,
            peaks.checked_out,
            process_peaks.checked_out - other_pools.checked_out,
            attached,
        ),
        overflow=min(gauges.overflow, attached),
        detached=detached,
        waiting=min(gauges.waiting, peaks.waiting, process_peaks.waiting - other_pools.waiting),
    )


def _count_durations(durations: list[float], histogram: Counter[int]) -> list[float]:
    """Move these durations into the histogram; return them.

    What other threads append meanwhile stays for the next call.
    """
    seconds = durations[:]
    del durations[: len(seconds)]
    histogram.update(map(_bucket, seconds))
    return seconds


class NotedCheckout(NamedTuple):
    """What is noted of a checkout besides its call site."""

    checkouts: int
    """How many checkouts it stands for: itself, and those since the one noted before it."""
    thread: int
    """The thread that made it. 0: not known."""
    cpu_seconds: float
    """How long that thread had computed by then."""


UNNOTED: Final = NotedCheckout(1, 0, 0.0)


class Entry:
    """One physical connection, from its connect (or adoption) to its end."""

    __slots__ = (
        "call_site", "checkins", "checkouts", "closed", "connect_seconds", "detached", "detached_ref",
        "driver_ref", "held_seconds", "holder", "holds", "invalidations", "key", "left_call_site", "note_at",
        "noted", "noted_at", "noted_since", "number", "old_seconds",
        "opened", "owned", "pool", "reported", "reported_at", "server", "server_id", "session_read_at",
        "since", "whereabouts", "whereabouts_at",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        pool: PoolAccount,
        key: int,
        opened: float,
        owned: bool,
        connect_seconds: float | None,
    ) -> None:
        self.number = number
        self.pool = pool
        self.key = key
        """id() of the DBAPI connection: some events pass nothing else."""
        self.opened = opened
        self.owned = owned
        """False: inherited through a fork, so another process has counted its connect."""
        self.connect_seconds = connect_seconds
        """How long the connect took. None: not known."""
        self.holds: list[float] = []
        """Seconds of each ended hold that is not counted yet."""
        self.held_seconds = self.old_seconds = 0.0
        """The sum of all holds that are counted; of these, what each lasted beyond `YOUNG_SECONDS`."""
        self.server_id: int | None = None
        """The server's session id. `Location` writes this and the next three."""
        self.server: DatabaseServer | None = None
        """Where it is connected, as far as is known. None: not asked."""
        self.driver_ref: Any = None
        """A weak reference to the driver's connection, for a driver that can reconnect within the same
        object."""
        self.session_read_at = 0
        """`checkouts` when the session id was last read."""
        self.since = 0.0
        """When the present hold began; 0.0: nobody holds it. Written before `checkouts`."""
        self.holder: Any = 0
        """Who checked it out last, as the account's `current_holder` returned it."""
        self.note_at = pool.first_noted_checkout
        """The call site of this checkout, counted from 1, is noted next; of earlier ones it is not."""
        self.noted_at = 0
        """The checkout whose call site was noted last."""
        self.call_site: CallSiteAccount | None = None
        """That call site, noted at `noted_since`."""
        self.noted_since = 0.0
        self.noted = UNNOTED
        """What else was noted of it."""
        self.left_call_site = False
        """Whether the holder was seen elsewhere during this hold: it does not return to the call site."""
        self.whereabouts: Whereabouts | None = None
        """Where its holder was when last checked, which was at `whereabouts_at`."""
        self.whereabouts_at = 0.0
        self.checkouts = self.checkins = 0
        """Checkouts, and those that have ended. Stored, not derived: a total must never go back."""
        self.invalidations = 0
        self.detached = False
        self.closed = True
        """Until `PoolAccount.opened` has added it, and from its end on."""
        self.detached_ref: Any = None
        """A weak reference to a detached driver connection, whose callback ends this entry."""
        self.reported: tuple[object, ...] | None = None
        """What the last report said of it. None: nothing yet."""
        self.reported_at = 0.0

    def __repr__(self) -> str:
        state = "closed" if self.closed else "held" if self.since else "idle"
        return f"<Entry {self.number} of pool {self.pool.number}: {state}, {self.checkouts} checkouts>"

    def end(self) -> None:
        """Note that the connection has ended. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        pool = self.pool
        pool.live.open -= 1
        pool.process_live.open -= 1
        if self.detached:
            pool.detached.pop(self.key, None)
            self.detached_ref = None  # its callback refers to this entry: a cycle
        elif self.checkouts != self.checkins:
            pool.live.checked_out -= 1
            pool.process_live.checked_out -= 1
        since = self.since  # read once: another thread may end the same hold
        if since:
            held = pool.process.clock() - since
            self.holds.append(held)
            if self.noted_at == self.checkouts:
                self.end_noted(held)
        self.checkins = self.checkouts
        self.since = 0.0  # last: from now on it may be folded

    def end_noted(self, held: float) -> None:
        """Count a hold of so many seconds for the call site that was noted."""
        call_site = self.call_site
        if call_site is None:
            return
        cpu_seconds, pool = None, self.pool
        noted = self.noted
        if noted.thread:
            thread, cpu = pool.process.thread_cpu()
            if thread == noted.thread:  # else another one has given it back
                # Tasks and greenlets share a thread: what it computed is of all that hold a connection.
                holders = max(1, pool.process_live.checked_out) if pool.shares_threads else 1
                cpu_seconds = (cpu - noted.cpu_seconds) / holders
        call_site.counts.holds.append(EndedHold(held, noted.checkouts, cpu_seconds))

    def state(self) -> tuple[int, float, int]:
        """Return what `end` changes, for `reopen`."""
        return self.checkins, self.since, len(self.holds)

    def reopen(self, state: tuple[int, float, int]) -> None:
        """Take back an `end` that was interrupted: the connection was not closed after all."""
        if self.number in self.pool.entries:  # else it is folded
            self.closed = False
            self.checkins, self.since, counted_holds = state
            new_holds, self.holds[counted_holds:] = self.holds[counted_holds:], []
            if new_holds and self.noted_at == self.checkouts and self.call_site is not None:
                holds = self.call_site.counts.holds
                with contextlib.suppress(StopIteration, ValueError):  # counted already
                    holds.remove(next(hold for hold in holds[:] if hold.seconds == new_holds[0]))

    def ended(self, _: object = None) -> None:
        """Do what `end` does, where no caller could take an exception: it would be written to stderr."""
        try:
            self.end()
        except BaseException:
            self.pool.mend()


class Token:
    """Ends its entry when it is collected.

    It lives in `record.info`, which SQLAlchemy clears on reconnect and copies on detach, so it dies with the
    connection's real owner. No event tells of a pool that is dropped.
    """

    __slots__ = ("entry",)

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __del__(self) -> None:
        try:
            if self.entry.detached_ref is None:  # else the end of the driver's connection decides
                self.entry.end()
        except AttributeError:  # its making was interrupted
            pass
        except BaseException:
            self.entry.pool.mend()


class Lifeline:
    """Marks the account as retired when it is collected.

    Only a pool's listeners refer to it. SQLAlchemy hands these from a pool to the one recreated from it, so
    the lifeline dies with the last of these pools.
    """

    __slots__ = ("pool",)

    def __init__(self, pool: PoolAccount) -> None:
        self.pool = pool

    def __del__(self) -> None:
        self.pool.retired = True


class PoolAccount:
    """The account of one engine's pool, over all its recreations."""

    def __init__(self, process: ProcessAccount, number: int, info: PoolInfo) -> None:
        self.process = process
        self.number = number
        self.info = info
        self.process_live = process.live
        self.live = LiveCounts()
        self.location: Location | None = None
        """What its connections say of their server. None: they are not asked."""
        self.retired = False
        self.long_hold_seconds: float | None = None
        """From this age of a hold on its holder's whereabouts are checked. None: never."""
        self.current_holder: Callable[[], Any] = int
        """Returns the holder that calls it, at a checkout."""
        self.find_call_site: Callable[[], CallSite | None] = _no_call_site
        """Returns the call site that it is called from."""
        self.sampling: Sampling | None = None
        """Decides which checkouts have their call site noted. None: none has."""
        self.call_sites = CallSites(process.call_site_room)
        self.wait_call_sites: dict[object, CallSiteAccount] = {}
        """By wait: its call site, where it was noted."""
        self.shares_threads = False
        """Whether its holders are tasks or greenlets, several of which share a thread."""
        self.looks = True
        """Whether its holders are looked at."""
        self.measures_cpu = True
        """Whether what holders compute is outside the database; SQLite computes in the holder's thread."""
        self.time = PoolTime(process.settings.profile)
        """How long its connections are held, and where that time goes."""
        self.entries: dict[int, Entry] = {}
        self.detached: dict[int, Entry] = {}
        self.waits: dict[object, float] = {}
        """By wait that goes on: when it began."""
        self.timeouts = 0
        self.connect_errors = 0
        self.wait_times: list[float] = []
        """Seconds of each ended wait that is not counted yet."""
        self.wait_seconds = 0.0
        """The sum of all ended waits."""
        self.ended = Totals()
        """The totals that folded entries have left behind."""
        self.ended_held_seconds = self.ended_old_seconds = self.ended_connect_seconds = 0.0
        """How long folded entries were held, beyond `YOUNG_SECONDS` of each hold, and how long their connects
        took."""
        self.last_milliseconds: tuple[int, ...] = (0, 0, 0)
        """The sums that `count` last returned: waits, holds, connects."""
        self.connect_times: list[float] = []
        """Seconds of each connect that is not counted yet."""
        self.histograms: Histograms = Counter(), Counter(), Counter()
        """What is counted: waits, holds, connects."""
        self.closed_connections: list[int] = []
        """Reported connections that have ended since the last report."""
        self.reported: object = None
        """What the last report said of the pool. None: nothing yet."""
        self.reported_info: PoolInfo | None = None
        self.reported_times = Times()
        self.unacknowledged: Peaks | None = None
        """The peaks since the last acknowledged report."""
        self.drift: object = None
        """What `settle` last compared, since when it is so, and how often that was seen."""
        self.drift_since, self.drift_seen = 0.0, 0

    def __repr__(self) -> str:
        retired = ", retired" if self.retired else ""
        return f"<PoolAccount {self.number} of {self.info.url}: {self.live!r}{retired}>"

    def locate(self) -> None:
        """Update `info` with what is known of the server by now."""
        if self.location is not None:
            self.info = self.location.described(self.info)

    def forget(self) -> None:
        """Start from nothing after a fork: everything so far was the parent's."""
        for entry in list(self.entries.values()):
            entry.closed = True
            entry.since = 0.0
        self.entries = {}
        self.detached = {}
        self.waits = {}
        self.timeouts = self.connect_errors = 0
        self.wait_times, self.connect_times = [], []
        self.wait_seconds = self.ended_held_seconds = self.ended_old_seconds = 0.0
        self.ended_connect_seconds = 0.0
        self.ended = Totals()
        self.call_sites = CallSites(self.process.call_site_room)
        self.wait_call_sites = {}
        self.time = PoolTime(self.process.settings.profile)
        self.histograms = Counter(), Counter(), Counter()
        self.last_milliseconds = (0, 0, 0)
        self.closed_connections = []
        self.reported = self.reported_info = self.unacknowledged = self.drift = None
        self.live.reset()

    # --- In the application's threads

    def opened(
        self,
        key: int,
        now: float,
        *,
        owned: bool = True,
        connect_seconds: float | None = None,
        info: MutableMapping[Any, Any] | None = None,
    ) -> Entry:
        """Add a connection that was just made or, not owned, that was found in use.

        `info` is its record's, which gets the token that ends the entry: first, so that no interruption
        leaves an entry that nothing ends.
        """
        entry = Entry(next(self.process.numbers), self, key, now, owned, connect_seconds)
        if info is not None:
            info[KEY] = Token(entry)
        entry.closed = False
        self.entries[entry.number] = entry
        if connect_seconds is not None:
            self.connect_times.append(connect_seconds)
        # No call and no loop between these counts, nor where they are counted back: another thread may run
        # there, and see (and peak at) a process that is not the sum of its pools.
        live, process = self.live, self.process_live
        live.open = count = live.open + 1
        if count > live.peak_open:
            live.peak_open = count
        process.open = count = process.open + 1
        if count > process.peak_open:
            process.peak_open = count
        return entry

    @property
    def first_noted_checkout(self) -> int:
        """`Entry.note_at` of a new connection."""
        return NEVER if self.sampling is None else 0

    def note(self, entry: Entry, now: float) -> None:
        """Note the call site of this checkout, if the sample has room for it.

        Called after the checkout is counted, in the stack that made it. Raises nothing of its own.
        """
        try:
            checkout, sampling = entry.checkouts, self.sampling
            if sampling is None:
                entry.note_at = NEVER
                return
            if sampling.due(now) and (call_site := self.find_call_site()) is not None:
                account = self.call_sites.of(*call_site)
                entry.call_site, entry.noted_since = account, now
                thread, cpu_seconds = self.process.thread_cpu() if self.measures_cpu else (0, 0.0)
                entry.noted = NotedCheckout(checkout - entry.noted_at, thread, cpu_seconds)
                entry.noted_at = checkout
                self.call_sites.noted += 1
                if len(account.counts.holds) > UNCOUNTED_SITE_HOLDS:
                    self._count_call_site(account.counts)
            entry.note_at = checkout + sampling.pause()
        except BaseException as error:
            if interrupted(error):
                let_go(error)
                raise

    def note_next(self) -> None:
        """Have the next checkout of each connection noted."""
        for entry in list(self.entries.values()):
            entry.note_at = 0

    def note_wait(self, wait: object, now: float) -> None:
        """Note the call site that waits, if the sample has room for it. Raises nothing of its own."""
        try:
            sampling = self.sampling
            if (
                sampling is not None
                and sampling.wait_due(now)
                and (call_site := self.find_call_site()) is not None
            ):
                self.wait_call_sites[wait] = self.call_sites.of(*call_site).counts
        except BaseException as error:
            if interrupted(error):
                let_go(error)
                raise

    def wait_begins(self, now: float, wait: object = None) -> object:
        """Note that a wait begins; return the object to end it with: `wait`, where one is given."""
        if wait is None:
            wait = object()
        self.waits[wait] = now
        live, process = self.live, self.process_live
        live.waiting = count = live.waiting + 1
        if count > live.peak_waiting:
            live.peak_waiting = count
        process.waiting = count = process.waiting + 1
        if count > process.peak_waiting:
            process.peak_waiting = count
        return wait

    def wait_ends(self, wait: object, now: float) -> None:
        """Note that a wait has ended, by a connection, a timeout or a cancellation."""
        call_site = self.wait_call_sites.pop(wait, None)
        began = self.waits.pop(wait, None)
        if began is None:  # ended already, or the process forked meanwhile
            return
        live, process = self.live, self.process_live
        live.waiting -= 1
        process.waiting -= 1
        waited = now - began
        if waited > live.longest_wait:
            live.longest_wait = waited
        if waited > process.longest_wait:
            process.longest_wait = waited
        self.wait_times.append(waited)
        self.wait_seconds += waited
        if call_site is not None:
            call_site.waits.append(waited)
        if len(self.wait_times) > UNCOUNTED:
            self.count_times()

    def relieve(self) -> None:
        """Fold what has piled up, where no reporter runs that would do it."""
        too_many = len(self.entries) > 2 * self.live.open + self.process.settings.backlog_entries
        if (too_many or len(self.connect_times) > UNCOUNTED) and (lock := self.process.fold_lock.acquire()):
            try:
                self.fold()
                self.times()
            finally:
                lock.release()

    def count_times(self, entry: Entry | None = None) -> None:
        """Count the holds of this connection, or all durations of the pool, before they pile up."""
        if lock := self.process.fold_lock.acquire():
            try:
                if entry is None:
                    self.times()
                else:
                    self.count_holds(entry)
            finally:
                lock.release()

    def _count_call_site(self, account: CallSiteAccount) -> None:
        """Count the holds of a call site before they pile up."""
        if lock := self.process.fold_lock.acquire():
            try:
                account.count()
            finally:
                lock.release()

    # --- With the fold lock

    def fold(self) -> None:
        """Move the counts of ended entries into `ended`."""
        ended_entries = [entry for entry in list(self.entries.values()) if entry.closed and not entry.since]
        for entry in ended_entries:
            if self.entries.pop(entry.number, None) is None:
                continue
            self.count_holds(entry)
            owned = int(entry.owned)
            self.ended_held_seconds += entry.held_seconds
            self.ended_old_seconds += entry.old_seconds
            self.ended_connect_seconds += entry.connect_seconds or 0.0
            self.ended = plus(
                self.ended,
                Totals(
                    connects=owned,
                    closes=owned,
                    checkouts=entry.checkouts,
                    checkins=entry.checkouts,
                    invalidations=entry.invalidations,
                ),
            )
            if entry.reported is not None:
                self.closed_connections.append(entry.number)

    def times(self) -> Times:
        """Count all durations and return the histograms."""
        waits, _, connects = self.histograms
        _count_durations(self.wait_times, waits)
        _count_durations(self.connect_times, connects)
        for entry in list(self.entries.values()):
            if entry.holds:
                self.count_holds(entry)
        return Times(*map(ordered, self.histograms))

    def count_holds(self, entry: Entry) -> None:
        """Count the ended holds of this connection."""
        holds = _count_durations(entry.holds, self.histograms[1])
        entry.held_seconds += sum(holds)
        entry.old_seconds += old_seconds(holds)

    def inherit(self, times: Times) -> None:
        """Add the histograms of a pool that is gone."""
        for histogram, counts in zip(self.histograms, times, strict=True):
            histogram.update(counts)

    def count(self, now: float = 0.0) -> tuple[Gauges, Totals, float | None]:
        """Return the gauges, the totals, and when the longest present hold began (None: none is held).

        How long connections were held is in `time` then: until now, where that is given.
        """
        # Call sites come first: a hold that ends meanwhile is in the totals then, else they would have more.
        for counting in self.call_sites.counting():
            counting.count()
        connects = closes = checkouts = checkins = connections = held = detached = invalidations = 0
        longest_since: float | None = None
        held_seconds, connect_seconds = self.ended_held_seconds, self.ended_connect_seconds
        beyond = self.ended_old_seconds
        self.time.begin()
        for entry in list(self.entries.values()):
            holds = entry.holds
            held_seconds += entry.held_seconds + sum(holds)
            beyond += entry.old_seconds + old_seconds(holds)
            connect_seconds += entry.connect_seconds or 0.0
            connects += entry.owned
            invalidations += entry.invalidations
            entry_checkouts = entry.checkouts  # before `checkins`, which may catch up meanwhile
            checkouts += entry_checkouts
            if entry.closed:  # since `fold`
                closes += entry.owned
                checkins += entry_checkouts
                continue
            connections += 1
            entry_checkins, since = entry.checkins, entry.since
            checkins += min(entry_checkouts, entry_checkins)
            if entry_checkouts > entry_checkins:
                held += 1
                detached += entry.detached
                if since:
                    call_site = entry.call_site if entry.noted_at == entry_checkouts else None
                    self.time.add_present(now, since, None if call_site is None else call_site.counts)
                    if longest_since is None or since < longest_since:
                        longest_since = since
        totals = Totals(
            connects=connects,
            closes=closes,
            checkouts=checkouts,
            checkins=checkins,
            invalidations=invalidations,
            timeouts=self.timeouts,
            connect_errors=self.connect_errors,
        )
        wait_ms, hold_ms, connect_ms = self._milliseconds(self.wait_seconds, held_seconds, connect_seconds)
        totals = totals._replace(wait_ms=wait_ms, hold_ms=hold_ms, connect_ms=connect_ms)
        self.time.end(held_seconds, beyond)
        return self._gauges(connections, held, detached), plus(self.ended, totals), longest_since

    def settle_time(self, totals: Totals, now: float, cpu_scale: float = 1.0, *, final: bool = False) -> None:
        """Split the time that `count` has just counted over the call sites and places.

        `cpu_scale`: see `hold_looks.ComputedTime`. `final`: nothing will become known of it later.
        """
        waits, wait_call_sites = self.waits.copy(), self.wait_call_sites.copy()
        self.time.settle(now, totals, self.call_sites, waits, wait_call_sites, cpu_scale, final)

    def _gauges(self, connections: int, held: int, detached: int) -> Gauges:
        size, max_overflow = self.info.pool_size, self.info.max_overflow
        limit = None
        # With pool_size=0 a QueuePool has no limit, whatever max_overflow says.
        if size and (max_overflow is None or max_overflow >= 0):
            limit = size + (max_overflow or 0)
        attached = connections - detached
        return Gauges(
            pools=int(not self.retired),
            capacity=0 if limit is None or self.retired else limit,
            unbounded=int(limit is None and not self.retired),
            connections=connections,
            checked_out=held - detached,
            overflow=max(0, attached - size) if size else 0,  # as QueuePool.overflow()
            detached=detached,
            waiting=len(self.waits),
        )

    def _milliseconds(self, *seconds: float) -> tuple[int, ...]:
        """Return these sums in whole milliseconds, none less than before.

        (Folding an entry adds the same numbers in another order, which rounds differently.)
        """
        sums = tuple([max(int(a * 1000.0), b) for a, b in zip(seconds, self.last_milliseconds, strict=True)])
        self.last_milliseconds = sums
        return sums

    def settle(self, gauges: Gauges, totals: Totals, now: float) -> None:
        """Correct the live counts where they differ from the sum, and nothing has changed for a while.

        Not at the second sight already: a thread may be in the middle of a listener, and the whole process
        may have been stopped there.
        """
        live = self.live
        drift = (
            live.open - gauges.connections,
            live.checked_out - gauges.checked_out,
            live.waiting - gauges.waiting,
        )
        if self.drift != (gauges, totals, drift):
            self.drift, self.drift_since, self.drift_seen = (gauges, totals, drift), now, 0
        self.drift_seen += 1
        quiet = now - self.drift_since > self.process.settings.quiet_seconds
        if any(drift) and self.drift_seen > 3 and quiet:
            self.process.correct(live, gauges.connections, gauges.checked_out, gauges.waiting)
            self.drift = None

    # --- After an interruption

    def mend(self) -> None:
        """Complete what an interruption left half done. Raises nothing of its own.

        What other threads do at this moment may leave the live counts wrong; `settle` corrects that.
        """
        try:
            opened = checked_out = 0
            for entry in list(self.entries.values()):
                if entry.closed:
                    if self.detached.get(entry.key) is entry:
                        del self.detached[entry.key]
                    entry.detached_ref = None
                    entry.checkins = entry.checkouts
                    entry.since = 0.0
                elif entry.checkouts == entry.checkins:
                    opened += 1
                    entry.since = 0.0
                else:
                    opened += 1
                    checked_out += not entry.detached
            self.process.correct(self.live, opened, checked_out, len(self.waits))
        except Exception:
            pass


def complete_checkin(account: PoolAccount | None, record: Any) -> None:
    """Complete a checkin that was interrupted. Raises nothing of its own."""
    try:
        entry = record.info[KEY].entry
        if record.dbapi_connection is None:
            entry.end()
        else:
            entry.checkins = entry.checkouts
    except Exception:
        pass
    if account is not None:
        account.mend()

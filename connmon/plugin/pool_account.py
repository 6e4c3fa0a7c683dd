"""The account of one pool: its connections, its waits, its totals. No I/O, no time, no threads.

Who may write what, so that no lock is needed where the application runs:

1. What happens to a connection is written to that connection's `Entry`, by whoever has the
   connection at that moment. Plain attribute writes, nothing else: a garbage collection inside
   a listener can run another checkin on the same thread, so a lock there would deadlock.
2. Totals are never counted in a shared variable. They are the sum over the entries, and over
   what entries that have ended left behind (`fold`).
3. Only `Ledger` (one thread at a time) sums, folds and deletes. An entry that has ended is
   taken out of its dict once, so it is folded once.
4. `Live` counts the present a second time, for peaks alone: a peak must be seen when it happens.
   If a lost update ever let it drift, `settle` sets it right when the pool has been quiet.
5. How long something took is appended to a list: of a hold to the entry's, of waits and connects to the
   pool's. Only `Ledger` takes things out, from the front, and counts them in the pool's histograms. Either is
   one step of the interpreter, so nothing is lost and nothing is counted twice.
6. An ended connection is `Entry.closed`, whoever notices it first: a close event, the end of the
   `Token` in `record.info`, or of the driver's connection. Further notices do nothing.

7. An exception can be raised into any line of this (`interrupts.py`). So each change of an entry has one
   write that decides, and what follows it can be made up for: a connection is held while `checkouts` is
   larger than `checkins`, and open while it is not `closed`. After an interruption `mend` does the rest.

Times are seconds of one monotonic clock, handed in.
"""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Protocol, TypeAlias

from connmon.database_address import DatabaseServer
from connmon.interrupts import interrupted, let_go
from connmon.plugin.call_site_accounts import UNCOUNTED as UNCOUNTED_HOLDS
from connmon.plugin.call_site_accounts import Look, Room, Sampling, Site, SiteAccount, Sites
from connmon.plugin.describe import Location
from connmon.protocol.histogram import BOUNDS, ordered
from connmon.protocol.reports import PoolInfo
from connmon.protocol.values import Gauges, Peaks, Times, Totals, plus

#: The key of a connection's token in `record.info`.
KEY = "connmon"
#: So many holds of one connection, or waits of one pool, that are not counted yet are counted on the spot:
#: where no report is taken they would pile up. (A bit mask: only then it is looked how many there are.)
UNCOUNTED = 63

Counts: TypeAlias = "tuple[Counter[int], Counter[int], Counter[int]]"
#: `histogram.bucket`, without the call of a Python function for each value.
_bucket = partial(bisect_left, BOUNDS)
#: No connection is ever checked out so many times.
NEVER = 2**62
#: A difference between the sum over the entries and what is counted beside it is one, and not a
#: moment, after this many seconds in which nothing happened.
QUIET = 3.0


class Live:
    """The present of a pool, or of the whole process, and the peaks since the last report."""

    __slots__ = (
        "checked_out", "longest_wait", "open", "peak_checked_out", "peak_open", "peak_waiting", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.open = self.checked_out = self.waiting = 0
        self.peak_open = self.peak_checked_out = self.peak_waiting = 0
        self.longest_wait = 0.0

    def collect(self, longest: float) -> Peaks:
        """Return the peaks, the longest of the waits that go on included, and begin anew."""
        # Each is read and begun anew before any call: at a call another thread may come in,
        # and a peak that it saw would be lost.
        peak_open, self.peak_open = self.peak_open, self.open
        peak_checked_out, self.peak_checked_out = self.peak_checked_out, self.checked_out
        peak_waiting, self.peak_waiting = self.peak_waiting, self.waiting
        longest_wait, self.longest_wait = self.longest_wait, 0.0
        return Peaks(
            max(peak_open, self.peak_open),
            max(peak_checked_out, self.peak_checked_out),
            max(peak_waiting, self.peak_waiting),
            max(longest_wait, longest),
        )


def _nowhere() -> None:
    """Where a checkout came from is not asked."""


def highest(a: Peaks | None, b: Peaks) -> Peaks:
    """Return the larger of each."""
    if a is None:
        return b
    return Peaks(
        max(a.connections, b.connections),
        max(a.checked_out, b.checked_out),
        max(a.waiting, b.waiting),
        max(a.longest_wait, b.longest_wait),
    )


def within(gauges: Gauges, peaks: Peaks, whole: Peaks, others: Gauges) -> Gauges:
    """Return the gauges of a pool, lowered to what there can have been at any one moment.

    They are summed while the application goes on: a connection is seen held, given back, and
    the next one taken and seen held. That may show for a second, but maxima are made of it, and
    these never come down again. `peaks` and `whole` tell what there was at most, in this pool
    and in the process; `others` are the pools of the process that have been lowered before.
    """
    connections = min(gauges.connections, peaks.connections, whole.connections - others.connections)
    detached = min(gauges.detached, connections)
    attached = connections - detached
    return gauges._replace(
        connections=connections,
        checked_out=min(
            gauges.checked_out, peaks.checked_out, whole.checked_out - others.checked_out, attached
        ),
        overflow=min(gauges.overflow, attached),
        detached=detached,
        waiting=min(gauges.waiting, peaks.waiting, whole.waiting - others.waiting),
    )


def _count(seconds: list[float], counts: Counter[int]) -> float:
    """Take these out and count them; return their sum. What others append meanwhile is for the next time."""
    taken = seconds[:]
    del seconds[: len(taken)]
    counts.update(map(_bucket, taken))
    return sum(taken)


class Entry:
    """One physical connection, from its connect (or adoption) to its end."""

    __slots__ = (
        "checkins", "checkouts", "closed", "detached", "driver", "held", "holder", "holds", "invalidations",
        "key", "left", "note_at", "noted_at", "noted_since", "number", "opened", "owned", "pool", "read",
        "seen", "seen_at", "server", "server_id", "since", "site", "told", "told_at", "took", "weak",
    )  # fmt: skip

    def __init__(
        self, number: int, pool: PoolAccount, key: int, opened: float, owned: bool, took: float | None
    ) -> None:
        self.number = number
        self.pool = pool
        self.key = key
        """id() of the DBAPI connection: all that some events give."""
        self.opened = opened
        self.owned = owned
        """False: inherited through a fork, so another process has counted its connect."""
        self.took = took
        """Seconds that it took to make. None: not known."""
        self.holds: list[float] = []
        """How long it was held, each time, since that was last counted; and in all before, in seconds."""
        self.held = 0.0
        self.server_id: int | None = None
        self.server: DatabaseServer | None = None
        """Where it is connected, as far as is known. None: not asked. These and the next are `location`'s."""
        self.driver: Any = None
        """A weak reference to the driver's connection, where that may connect again; and `checkouts` when
        the session id was last read."""
        self.read = 0
        self.since = 0.0
        """When the present holder got it; 0.0: nobody holds it. Written before `checkouts`."""
        self.holder: Any = 0
        """Who got it last, as `holder.asking` told."""
        self.note_at = pool.note_from
        """The line of this checkout, counted from 1, is to be noted; of none before it."""
        self.noted_at = 0
        """The line of this checkout was noted last: it was `site`; and when that was."""
        self.site: SiteAccount | None = None
        self.noted_since = 0.0
        self.left = False
        """Whether the holder was seen elsewhere in this hold: it does not come back to where it was."""
        self.seen: Look | None = None
        """Where its holder was when last looked at; and when that was."""
        self.seen_at = 0.0
        self.checkouts = 0
        self.checkins = 0
        """Checkouts that have ended. Written, not derived: a total must not go back for a moment."""
        self.invalidations = 0
        self.detached = False
        self.closed = True
        """Until it is entered (`PoolAccount.opened`), and from its end on."""
        self.weak: Any = None
        self.told: tuple[object, ...] | None = None
        """What the last report said of it; None: nothing yet."""
        self.told_at = 0.0

    def end(self) -> None:
        """Note that the connection is no more."""
        if self.closed:
            return
        self.closed = True
        pool = self.pool
        pool.live.open -= 1
        pool.process.open -= 1
        if self.detached:
            pool.detached.pop(self.key, None)
            self.weak = None  # its callback knows this entry: a cycle
        elif self.checkouts != self.checkins:
            pool.live.checked_out -= 1
            pool.process.checked_out -= 1
        since = self.since  # once: another thread may end the same hold
        if since:
            held = pool.ledger.clock() - since
            self.holds.append(held)
            if self.noted_at == self.checkouts and self.site is not None:
                self.site.counts.holds.append(held)
        self.checkins = self.checkouts
        self.since = 0.0  # last: from now on it may be folded

    def state(self) -> tuple[int, float, int]:
        """Return what `end` changes, for `reopen`."""
        return self.checkins, self.since, len(self.holds)

    def reopen(self, state: tuple[int, float, int]) -> None:
        """Take back an `end` that was interrupted: the connection was not closed after all."""
        if self.number in self.pool.entries:  # else it is folded
            self.closed = False
            self.checkins, self.since, holds = state
            again, self.holds[holds:] = self.holds[holds:], []
            if again and self.noted_at == self.checkouts and self.site is not None:
                with contextlib.suppress(ValueError):  # counted already
                    self.site.counts.holds.remove(again[0])

    def ended(self, _: object = None) -> None:
        """The same, where nobody is there to take an exception: it would be written to stderr."""
        try:
            self.end()
        except BaseException:
            self.pool.mend()


class Token:
    """Lives in `record.info` and dies with the connection's real owner: SQLAlchemy clears `info`
    on reconnect and copies it on detach, and no event tells of a pool that is dropped."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __del__(self) -> None:
        try:
            if self.entry.weak is None:  # else the driver's connection itself tells
                self.entry.end()
        except AttributeError:  # its making was interrupted
            pass
        except BaseException:
            self.entry.pool.mend()


class Lifeline:
    """Held by a pool's listeners alone, which SQLAlchemy hands from a pool to the one recreated
    from it; when it dies, the last of these pools is gone."""

    __slots__ = ("pool",)

    def __init__(self, pool: PoolAccount) -> None:
        self.pool = pool

    def __del__(self) -> None:
        self.pool.retired = True


class ProcessAccount(Protocol):
    """What a pool's account needs of the ledger that it belongs to."""

    clock: Callable[[], float]
    numbers: itertools.count[int]
    """The numbers of the process's connections."""
    live: Live
    pools: dict[int, PoolAccount]
    sites_room: Room

    def count_times(self, account: PoolAccount, entry: Entry | None = None) -> None: ...

    def count_sites(self, site: SiteAccount) -> None: ...

    def seen(self) -> None: ...

    def relieve(self, account: PoolAccount) -> None: ...


class PoolAccount:
    """The account of one engine's pool, over all its recreations."""

    def __init__(self, ledger: ProcessAccount, number: int, info: PoolInfo) -> None:
        self.ledger = ledger
        self.number = number
        self.info = info
        self.process = ledger.live
        self.live = Live()
        self.location: Location | None = None
        """What its connections say of their server. None: nobody asks them."""
        self.retired = False
        self.look_after: float | None = None
        """Seconds after which a held connection's holder is looked at; None: never."""
        self.asked: Callable[[], Any] = int
        """Tells who calls it: the holder, at a checkout."""
        self.called_from: Callable[[], Site | None] = _nowhere
        """Tells the line of the application that it is called from."""
        self.sampling: Sampling | None = None
        """Which checkouts are noted by their line; None: none."""
        self.sites = Sites(ledger.sites_room)
        self.wait_sites: dict[object, SiteAccount] = {}
        """Where those wait whose line was noted."""
        self.entries: dict[int, Entry] = {}
        self.detached: dict[int, Entry] = {}
        self.waits: dict[object, float] = {}
        """Since when each of those waits who wait now."""
        self.timeouts = 0
        self.connect_errors = 0
        self.waited: list[float] = []
        """How long each wait took that has ended since that was last counted; and all of them, in seconds."""
        self.wait_seconds = 0.0
        self.ended = Totals()
        """What the entries that have ended left behind; and how long in all, in seconds, they were
        held, and took to make."""
        self.ended_held = self.ended_took = 0.0
        self.counted_ms: tuple[int, ...] = (0, 0, 0)
        """What `count` last said: waits, holds, connects."""
        self.made: list[float] = []
        """How long each connection took to make, since that was last counted."""
        self.counts: Counts = Counter(), Counter(), Counter()
        """What was counted, as histograms: waits, holds, connects."""
        self.gone: list[int] = []
        """Told connections that have ended since the last report."""
        self.told: object = None
        self.told_info: PoolInfo | None = None
        """What the last report said that it is; None: nothing yet."""
        self.told_times = Times()
        self.unacknowledged: Peaks | None = None
        self.drift: object = None
        self.drift_since, self.drift_seen = 0.0, 0

    def locate(self) -> None:
        """Take into `info` what is known of the server by now."""
        if self.location is not None:
            self.info = self.location.described(self.info)

    def forget(self) -> None:
        """Begin anew after a fork: all of this was the parent's."""
        for entry in list(self.entries.values()):
            entry.closed = True
            entry.since = 0.0
        self.entries = {}
        self.detached = {}
        self.waits = {}
        self.timeouts = self.connect_errors = 0
        self.waited, self.made = [], []
        self.wait_seconds = self.ended_held = self.ended_took = 0.0
        self.ended = Totals()
        self.sites = Sites(self.ledger.sites_room)
        self.wait_sites = {}
        self.counts = Counter(), Counter(), Counter()
        self.counted_ms = (0, 0, 0)
        self.gone = []
        self.told = self.told_info = self.unacknowledged = self.drift = None
        self.live.reset()

    def opened(
        self,
        key: int,
        now: float,
        *,
        owned: bool = True,
        took: float | None = None,
        info: MutableMapping[Any, Any] | None = None,
    ) -> Entry:
        """Add a connection that was just made, in `took` seconds (or, not owned, that was found in use).

        `info` is its record's, which gets the token that ends the entry: first, so that no interruption
        leaves an entry that nothing ends.
        """
        entry = Entry(next(self.ledger.numbers), self, key, now, owned, took)
        if info is not None:
            info[KEY] = Token(entry)
        entry.closed = False
        self.entries[entry.number] = entry
        if took is not None:
            self.made.append(took)
        # No call and no loop in between here, nor where it is counted back: there another thread
        # may come in, and find (and peak at) a process that is not the sum of its pools.
        live, process = self.live, self.process
        live.open = count = live.open + 1
        if count > live.peak_open:
            live.peak_open = count
        process.open = count = process.open + 1
        if count > process.peak_open:
            process.peak_open = count
        return entry

    @property
    def note_from(self) -> int:
        """From which of its checkouts on the line of a new connection's is noted."""
        return NEVER if self.sampling is None else 0

    def note(self, entry: Entry, now: float) -> None:
        """Note the line of the application that took this connection, if there is room for one more.

        Called after the checkout is counted, in the stack of who made it. Raises nothing of its own.
        """
        try:
            checkout, sampling = entry.checkouts, self.sampling
            if sampling is None:
                entry.note_at = NEVER
                return
            if sampling.due(now) and (found := self.called_from()) is not None:
                site = self.sites.of(*found)
                entry.site, entry.noted_since = site, now
                entry.noted_at = checkout
                self.sites.noted += 1
                if len(site.counts.holds) > UNCOUNTED_HOLDS:
                    self.ledger.count_sites(site.counts)
            entry.note_at = checkout + sampling.pause()
        except BaseException as error:
            if interrupted(error):
                let_go(error)
                raise

    def note_wait(self, wait: object, now: float) -> None:
        """Note the line of the application that waits. Raises nothing of its own."""
        try:
            sampling = self.sampling
            if sampling is not None and sampling.due(now) and (found := self.called_from()) is not None:
                self.wait_sites[wait] = self.sites.of(*found).counts
        except BaseException as error:
            if interrupted(error):
                let_go(error)
                raise

    def wait_begins(self, now: float, wait: object = None) -> object:
        """Note that somebody waits; return what to end it with: `wait`, where one is given."""
        if wait is None:
            wait = object()
        self.waits[wait] = now
        live, process = self.live, self.process
        live.waiting = count = live.waiting + 1
        if count > live.peak_waiting:
            live.peak_waiting = count
        process.waiting = count = process.waiting + 1
        if count > process.peak_waiting:
            process.peak_waiting = count
        return wait

    def wait_ends(self, wait: object, now: float) -> None:
        """Note that a wait has ended, by a connection, a timeout or a cancellation."""
        self.wait_sites.pop(wait, None)
        began = self.waits.pop(wait, None)
        if began is None:  # ended already, or the process forked meanwhile
            return
        live, process = self.live, self.process
        live.waiting -= 1
        process.waiting -= 1
        waited = now - began
        if waited > live.longest_wait:
            live.longest_wait = waited
        if waited > process.longest_wait:
            process.longest_wait = waited
        self.waited.append(waited)
        self.wait_seconds += waited
        if len(self.waited) > UNCOUNTED:
            self.ledger.count_times(self)

    def fold(self) -> None:
        """Move what ended entries counted into `ended`. One thread at a time."""
        ended = [entry for entry in list(self.entries.values()) if entry.closed and not entry.since]
        for entry in ended:
            if self.entries.pop(entry.number, None) is None:
                continue
            self.count_holds(entry)
            owned = int(entry.owned)
            self.ended_held += entry.held
            self.ended_took += entry.took or 0.0
            self.ended = plus(
                self.ended,
                Totals(owned, owned, entry.checkouts, entry.checkouts, entry.invalidations),
            )
            if entry.told is not None:
                self.gone.append(entry.number)

    def times(self) -> Times:
        """Return how long things took. One thread at a time."""
        waits, _, connects = self.counts
        _count(self.waited, waits)
        _count(self.made, connects)
        for entry in list(self.entries.values()):
            if entry.holds:
                self.count_holds(entry)
        return Times(*map(ordered, self.counts))

    def count_holds(self, entry: Entry) -> None:
        """Count how long this connection was held. One thread at a time."""
        entry.held += _count(entry.holds, self.counts[1])

    def inherit(self, times: Times) -> None:
        """Add how long things took in a pool that is gone."""
        for counts, more in zip(self.counts, times, strict=True):
            counts.update(more)

    def count(self) -> tuple[Gauges, Totals, float | None]:
        """Return the present, the totals, and since when the connection held longest is held."""
        connects = closes = checkouts = checkins = connections = held = detached = invalidations = 0
        longest: float | None = None
        holding, making = self.ended_held, self.ended_took
        for entry in list(self.entries.values()):
            holding += entry.held + sum(entry.holds)
            making += entry.took or 0.0
            connects += entry.owned
            invalidations += entry.invalidations
            begun = entry.checkouts  # before `checkins`, which may follow it meanwhile
            checkouts += begun
            if entry.closed:  # since `fold`
                closes += entry.owned
                checkins += begun
                continue
            connections += 1
            ended, since = entry.checkins, entry.since
            checkins += min(begun, ended)
            if begun > ended:
                held += 1
                detached += entry.detached
                if since and (longest is None or since < longest):
                    longest = since
        info = self.info
        size, beyond = info.pool_size, info.max_overflow
        limit = None
        # With pool_size=0 a QueuePool has no limit, whatever else is said.
        if size and (beyond is None or beyond >= 0):
            limit = size + (beyond or 0)
        attached = connections - detached
        gauges = Gauges(
            pools=int(not self.retired),
            capacity=0 if limit is None or self.retired else limit,
            unbounded=int(limit is None and not self.retired),
            connections=connections,
            checked_out=held - detached,
            overflow=max(0, attached - size) if size else 0,  # as QueuePool.overflow()
            detached=detached,
            waiting=len(self.waits),
        )
        totals = plus(
            self.ended,
            Totals(
                connects,
                closes,
                checkouts,
                checkins,
                invalidations,
                self.timeouts,
                self.connect_errors,
                *self._milliseconds(self.wait_seconds, holding, making),
            ),
        )
        return gauges, totals, longest

    def _milliseconds(self, *seconds: float) -> tuple[int, ...]:
        """Return these sums in whole milliseconds, none less than it was before.

        (When an entry is folded the same is added up in another order, and rounded another way.)
        """
        now = tuple([max(int(a * 1000.0), b) for a, b in zip(seconds, self.counted_ms, strict=True)])
        self.counted_ms = now
        return now

    def settle(self, gauges: Gauges, totals: Totals, now: float) -> None:
        """Set `live` right if it differs from the sum, and nothing has moved for a while.

        Not at the second sight already: a thread may stand in the middle of a listener, and the
        whole process may have been stopped there.
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
        if any(drift) and self.drift_seen > 3 and now - self.drift_since > QUIET:
            self._correct(gauges.connections, gauges.checked_out, gauges.waiting)
            self.drift = None

    def _correct(self, opened: int, checked_out: int, waiting: int) -> None:
        """Set what is counted a second time, of the pool and of the process, to what there is."""
        live, process = self.live, self.process
        live.open, live.checked_out, live.waiting = opened, checked_out, waiting
        pools = [account.live for account in list(self.ledger.pools.values())]
        process.open = sum([pool.open for pool in pools])
        process.checked_out = sum([pool.checked_out for pool in pools])
        process.waiting = sum([pool.waiting for pool in pools])

    def mend(self) -> None:
        """Complete what an interruption left half done. Raises nothing of its own.

        What other threads do at this moment may be counted wrong in `live`; `settle` finds that.
        """
        try:
            opened = checked_out = 0
            for entry in list(self.entries.values()):
                if entry.closed:
                    if self.detached.get(entry.key) is entry:
                        del self.detached[entry.key]
                    entry.weak = None
                    entry.checkins = entry.checkouts
                    entry.since = 0.0
                elif entry.checkouts == entry.checkins:
                    opened += 1
                    entry.since = 0.0
                else:
                    opened += 1
                    checked_out += not entry.detached
            self._correct(opened, checked_out, len(self.waits))
        except Exception:
            pass


def given_back(account: PoolAccount | None, record: Any) -> None:
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

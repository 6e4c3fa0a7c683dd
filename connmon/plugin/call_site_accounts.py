"""Which checkouts have their call site noted, and what is counted by call site. Pure.

Rules:

1. Noting a checkout's call site walks its stack, which takes 10 us. So every checkout is noted while there
   are fewer than `SamplingSettings.checkouts_per_second`. Above that a fair sample is: each connection lets a
   random number of its checkouts pass (`Sampling.pause`), however they are spread over time. A checkout that
   is not noted costs one comparison.
2. Counts are absolute. They never move from one call site to another, but for those of a pool that is gone,
   which follow its totals.
3. Memory is bounded: a pool keeps `CallSiteSettings.kept_per_pool` call sites. A process reports the first
   `reported_per_process` of them; all others are counted as one, `OTHER_CALL_SITES`. Of the application only
   code objects are kept.
4. No lock: an update that another thread overtakes makes the sample slightly larger or smaller, nothing else.
   Durations are appended to lists, and taken out by one thread at a time.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import attrgetter
from types import CodeType
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.plugin.hold_profile import YOUNG_SECONDS, Counted, Sample, old_seconds
from connmon.protocol import histogram
from connmon.protocol.reports import SITES_REPORTED
from connmon.protocol.values import OTHER_CALL_SITES, HolderIn


@dataclass(frozen=True)
class SamplingSettings:
    """How the sample of noted checkouts adapts to their rate."""

    checkouts_per_second: float = 100.0
    """Up to this rate in the whole process every checkout is noted; infinite: always."""
    largest_pause_checkouts: int = 2**14
    """The most checkouts, on average, that a connection lets pass between two noted ones."""
    longer_after_seconds: float = 0.005
    """The least time between two doublings of the pause, when too many are noted."""
    shorter_after_seconds: float = 1.0
    """The least time between two halvings, when too few are."""
    curious_seconds: float = 30.0
    """For so long more is noted after a look at a hold whose call site is not known."""
    curious_factor: float = 3.0
    """Meanwhile so many times as many checkouts may be noted."""


@dataclass(frozen=True)
class CallSiteSettings:
    """How many call sites are kept and reported."""

    kept_per_pool: int = 1_000
    reported_per_process: int = SITES_REPORTED


#: A call site's usual hold is measured over this many of its latest holds, or up to twice as many.
RECENT_HOLDS: Final = 500
#: Uncounted holds of a call site are counted on the spot when there are more.
UNCOUNTED_SITE_HOLDS: Final = 256

#: Functions of which it is kept whose holds were seen in them; if there are more, all are forgotten.
FUNCTIONS_SEEN: Final = 2_000

_bucket = partial(bisect_left, histogram.BOUNDS)
CallSite: TypeAlias = "tuple[CodeType, int]"
"""A line of the application: code object and line number."""


class Whereabouts(NamedTuple):
    """Where a holder is now."""

    where: HolderIn | None
    """None: not checked, or not to be found out."""
    call_site: str | None
    """The line of the application that it is in."""
    stack: tuple[str, ...]
    """The innermost frame first."""


class Held(NamedTuple):
    """A held connection that a look is about."""

    holder: Any
    """A thread's mark or its number, or a weak reference to a task or a greenlet."""
    code: CodeType | None
    """The function that took the connection. None: not noted."""
    since: float
    """When the hold began, in seconds of the monotonic clock."""
    newest: bool = True
    """Whether the holder has taken no other connection since that it still holds."""


def identity(holder: Any) -> int:
    """Return what tells holders apart. (The hash of a dead weak reference is an error.)"""
    return holder if isinstance(holder, int) else id(holder)


class Look(NamedTuple):
    """Where the holder of one connection is."""

    where: str | None
    """A label of `values.Where`. None: it cannot be found out."""
    frames: Sequence[tuple[CodeType, int]] = ()
    """Its stack, the innermost frame first: code object and offset of the instruction."""
    at: int | None = None
    """The position of the application's innermost frame."""
    returned: bool = False
    """Whether the function that took the connection has returned, or its holder has ended."""


class Sampling:
    """Which checkouts of a process have their call site noted."""

    __slots__ = (
        "_at", "_changed", "_curious_until", "_left", "_random", "_settings", "_waits_at", "_waits_left",
        "mean", "rate",
    )  # fmt: skip

    def __init__(self, settings: SamplingSettings = SamplingSettings()) -> None:  # immutable
        self._settings = settings
        self.rate = settings.checkouts_per_second
        self.mean = 1
        """A connection has every so-many-th checkout noted, on average."""
        self._left = self.rate
        """How many more may be noted now: a token bucket."""
        self._at = self._changed = self._curious_until = 0.0
        self._waits_left, self._waits_at = self.rate, 0.0
        """The same for waits. Of their own: waits are not thinned out, and would leave no room for holds."""
        self._random = random.Random()  # so that the application's own random numbers stay as they are

    def __repr__(self) -> str:
        return f"<Sampling: one of {self.mean} checkouts, at most {self.rate:g} per second>"

    def due(self, now: float) -> bool:
        """Return whether there is room to note one more checkout, and take it."""
        rate = self.rate
        if rate == inf:
            return True
        if now < self._curious_until:
            rate *= self._settings.curious_factor
        left = _refilled(self._left, self._at, now, rate)
        self._at = now
        if left < 1.0:
            self._left = left
            longer_after, largest = (
                self._settings.longer_after_seconds,
                self._settings.largest_pause_checkouts,
            )
            if now - self._changed > longer_after and self.mean < largest:
                self.mean, self._changed = 2 * self.mean, now
            return False
        self._left = left - 1.0
        enough = self.mean > 1 and left > 0.75 * rate
        if enough and now - self._changed > self._settings.shorter_after_seconds:
            self.mean, self._changed = self.mean // 2, now
        return True

    def wait_due(self, now: float) -> bool:
        """Return whether there is room to note one more wait, and take it."""
        rate = self.rate
        if rate == inf:
            return True
        left = _refilled(self._waits_left, self._waits_at, now, rate)
        self._waits_at = now
        self._waits_left = left - 1.0 if left >= 1.0 else left
        return left >= 1.0

    def be_curious(self, now: float) -> bool:
        """Have more checkouts noted for a while; return whether this begins now.

        A call site with few, long holds is known only when one of its checkouts was noted.
        """
        begins = now >= self._curious_until
        self._curious_until = now + self._settings.curious_seconds
        return begins and self.mean > 1

    def pause(self) -> int:
        """Return after how many checkouts of a connection the next one is noted.

        1 means the next one; else it is a random number with mean `mean`.
        """
        mean = self.mean
        return 1 if mean == 1 else 1 + int(self._random.random() * (2 * mean - 1))

    def relax(self, now: float, per_second: float) -> bool:
        """Take the recent rate of checkouts; return whether every one is noted from now on.

        Without this, connections with a long pause would keep it for long after checkouts have become rare.
        """
        if self.mean > 1 and per_second < 0.9 * self.rate:
            self.mean, self._changed = 1, now
        return self.mean == 1


def _refilled(left: float, at: float, now: float, rate: float) -> float:
    """Return what a token bucket has now that had so much then; one that was never used is full."""
    return min(rate, left + (now - at) * rate) if at else rate


class HoldFigures(NamedTuple):
    """What a report says of a call site's noted holds that have ended."""

    holds: int
    hold_ms: int
    usual: float | None
    """Their 95th percentile in seconds, of the latest ones. None: none has ended."""


class EndedHold(NamedTuple):
    """A noted hold that has ended."""

    seconds: float
    checkouts: int = 1
    """How many checkouts of its connection it stands for: itself, and those before it that were not noted."""
    cpu_seconds: float | None = None
    """How long its holder computed meanwhile. None: not known."""


class CallSiteAccount:
    """One call site that checks connections out of one pool."""

    __slots__ = (
        "_before", "_latest", "_sample", "code", "counts", "cpu_held_seconds", "cpu_seconds", "ended",
        "holds", "number", "old_seconds", "reported", "reported_at", "seconds", "text", "waited_seconds",
        "waits",
    )  # fmt: skip

    def __init__(self, code: CodeType | None, number: int, counts: CallSiteAccount | None = None) -> None:
        """`counts`: the account that counts for this call site, where it is not reported by itself."""
        self.code = code
        """None: this is the account of all others."""
        self.number = number
        """The line number."""
        self.counts: CallSiteAccount = self if counts is None else counts
        self.holds: list[EndedHold] = []
        """Each ended hold that is not counted yet."""
        self.waits: list[float] = []
        """Seconds of each ended wait that is not counted yet."""
        self.ended = 0
        self.seconds = 0.0
        self.old_seconds = 0.0
        """Of these, what each hold lasted beyond `YOUNG_SECONDS`."""
        self.waited_seconds = 0.0
        self.cpu_seconds = self.cpu_held_seconds = 0.0
        """How long holders computed in so many seconds held, since `take_cpu`."""
        self._sample = Sample()
        self._latest: Counter[int] = Counter()
        self._before: Counter[int] = Counter()
        self.text: str | None = None
        """As reports name it. None: not needed yet."""
        self.reported: Any = None
        """What the last report said of it, as `call_site_reports` has it. None: nothing yet."""
        self.reported_at = 0.0

    def __repr__(self) -> str:
        place = OTHER_CALL_SITES if self.code is None else f"{self.code.co_filename}:{self.number}"
        return f"<CallSiteAccount {place}: {self.ended} holds>"

    def count(self) -> None:
        """Count the holds and waits that have ended. One thread at a time."""
        holds = self.holds[:]
        del self.holds[: len(holds)]
        if holds:
            self._count_holds(holds)
        waits = self.waits[:]
        del self.waits[: len(waits)]
        if waits:
            waited = sum(waits)
            self.waited_seconds += waited
            self._sample = self._sample._replace(waits=self._sample.waits + waited)

    def _count_holds(self, holds: list[EndedHold]) -> None:
        seconds = [hold.seconds for hold in holds]
        self.ended += len(holds)
        self.seconds += sum(seconds)
        self.old_seconds += old_seconds(seconds)
        unnoted = young = old = 0.0
        for held, checkouts, cpu_seconds in holds:
            if cpu_seconds is not None:
                self.cpu_seconds += cpu_seconds
                self.cpu_held_seconds += held
            if checkouts > 1:
                unnoted += checkouts - 1
                young += (checkouts - 1) * min(held, YOUNG_SECONDS)
                old += (checkouts - 1) * old_seconds([held])
        if unnoted:
            sample = self._sample
            self._sample = sample._replace(
                holds=sample.holds + unnoted,
                young_seconds=sample.young_seconds + young,
                old_seconds=sample.old_seconds + old,
            )
        if sum(self._latest.values()) >= RECENT_HOLDS:
            self._before, self._latest = self._latest, Counter()
        self._latest.update(map(_bucket, seconds))

    def figures(self) -> HoldFigures:
        """Return what is counted of the noted holds."""
        return HoldFigures(self.ended, int(self.seconds * 1000.0), usual_hold([self]))

    def counted(self, present_seconds: float, present_old_seconds: float, waiting_seconds: float) -> Counted:
        """Return what is counted, with the present holds and waits."""
        return Counted(
            seconds=self.seconds + present_seconds,
            old_seconds=self.old_seconds + present_old_seconds,
            holds=self.ended,
            waited_seconds=self.waited_seconds + waiting_seconds,
        )

    def take_sample(self) -> Sample:
        """Return what the holds counted since the last call stand for."""
        sample, self._sample = self._sample, Sample()
        return sample

    def take_cpu(self) -> tuple[float, float]:
        """Return how many seconds the holders computed since the last call, and in how many seconds held."""
        taken = self.cpu_seconds, self.cpu_held_seconds
        self.cpu_seconds = self.cpu_held_seconds = 0.0
        return taken

    def absorb(self, closed: CallSiteAccount) -> None:
        """Add what the same call site has counted in a pool that is gone. One thread at a time."""
        closed.count()
        self.count()
        self.ended += closed.ended
        self.seconds += closed.seconds
        self.old_seconds += closed.old_seconds
        self.waited_seconds += closed.waited_seconds
        self._latest.update(closed._latest)
        self._before.update(closed._before)


def usual_hold(accounts: Iterable[CallSiteAccount]) -> float | None:
    """Return the 95th percentile in seconds of the latest holds. None: none has ended."""
    counts: Counter[int] = Counter()
    for account in accounts:
        counts.update(account._latest)
        counts.update(account._before)
    return histogram.quantile(counts, 95) if counts else None


class CallSiteRoom:
    """How many more call sites a process may report one by one, and what was reported of all others."""

    __slots__ = ("kept_per_pool", "left", "other")

    def __init__(self, settings: CallSiteSettings = CallSiteSettings()) -> None:  # immutable
        self.kept_per_pool = settings.kept_per_pool
        self.left = settings.reported_per_process
        self.other = CallSiteAccount(None, 0)
        """Counts nothing; it stands for the others of all pools in reports."""


class Taken(NamedTuple):
    """At which call sites a hold may have been taken."""

    parts: dict[CallSiteAccount, float]
    """They sum to 1. Empty: nothing is known."""
    sure: bool
    """False: no noted hold was seen in one of its functions yet, so its call site may be a new one."""


class CallSites:
    """The call sites that check connections out of one pool."""

    __slots__ = ("_by_code", "_by_text", "_room", "_seen", "accounts", "noted", "other")

    def __init__(self, room: CallSiteRoom) -> None:
        self._room = room
        self.accounts: dict[tuple[int, int], CallSiteAccount] = {}
        """By id of the code object, which is kept, and line: comparing code objects is slow."""
        self._by_code: dict[int, list[CallSiteAccount]] = {}
        self._by_text: dict[tuple[str, str, int], CallSiteAccount] = {}
        """By file, function and line: those that are reported one by one."""
        self._seen: dict[int, tuple[CodeType, dict[CallSiteAccount, float]]] = {}
        """By id of the code object: the call sites of noted holds whose holders were seen in that function,
        each with the number of checkouts that it stands for."""
        self.other = CallSiteAccount(None, 0)
        """Counts for all call sites of this pool that are not reported by themselves."""
        self.noted = 0
        """Checkouts whose call site was noted."""

    def of(self, code: CodeType, number: int) -> CallSiteAccount:
        """Return the account of this call site."""
        key = id(code), number
        account = self.accounts.get(key)
        if account is None:
            room = self._room
            # Functions that were made twice, by a module that was loaded again, have one text in reports.
            text = code.co_filename, code.co_name, number
            same = self._by_text.get(text)
            own = same is None and room.left > 0
            account = CallSiteAccount(code, number, None if own else same or self.other)
            if len(self.accounts) < room.kept_per_pool:
                self.accounts[key] = account
                self._by_code.setdefault(id(code), []).append(account)
                if own:
                    room.left -= 1
                    self._by_text[text] = account
            else:
                account.counts = self.other
        return account

    def seen_in(self, places: Iterable[CallSite], account: CallSiteAccount, checkouts: int) -> None:
        """Note that a holder which took a connection here was seen in these functions, innermost first.

        `checkouts`: how many checkouts it stands for.
        """
        seen = self._seen
        if len(seen) >= FUNCTIONS_SEEN:
            seen.clear()
        for code, _ in places:
            _, accounts = seen.setdefault(id(code), (code, {}))
            accounts[account.counts] = accounts.get(account.counts, 0.0) + checkouts

    def taken_in(self, places: Sequence[CallSite]) -> Taken:
        """Return at which call sites a hold may have been taken whose holder is in these functions.

        That is decided by the function that says most: which has a call site itself, or in which one call
        site has the largest part of all noted holds seen there. At equal it is the innermost.
        """
        best: dict[CallSiteAccount, float] = {}
        best_says = 0.0
        strange = taken_here = False
        for code, number in places:
            _, seen = self._seen.get(id(code), (None, {}))
            parts = dict(seen)
            own = self._in_function(code, number)
            if own is not None:
                # Until it was seen here itself, it counts as if it had been, once.
                parts[own.counts] = max(1.0, parts.get(own.counts, 0.0))
                taken_here = True
            whole = sum(parts.values())
            strange = strange or not whole
            # Few holds say little: one alone would always be all that was seen there.
            says = max(parts.values(), default=0.0) / (whole + (own is None))
            if says > best_says:
                best_says, best = says, {account: part / whole for account, part in parts.items()}
        return Taken(best, sure=bool(best) and (taken_here or not strange))

    def _in_function(self, code: CodeType, number: int) -> CallSiteAccount | None:
        """Return the known call site in this function: of several the last one before this line."""
        accounts = self._by_code.get(id(code))
        if not accounts:
            return None
        before = [account for account in accounts if account.number <= number]
        return max(before, key=_number) if before else min(accounts, key=_number)

    def reported(self) -> list[CallSiteAccount]:
        """Return those that are reported one by one, and not as `OTHER_CALL_SITES`."""
        return [account for account in list(self.accounts.values()) if account.counts is account]

    def counting(self) -> list[CallSiteAccount]:
        """Return all that count: those reported one by one, and that of all others."""
        return [*self.reported(), self.other]

    def share(self, checkouts: int) -> float:
        """Return the noted part of the pool's `checkouts`: above 0, to one digit, 1.0 only where all were."""
        if self.noted >= checkouts:
            return 1.0
        return min(0.99, max(0.0001, float(f"{self.noted / checkouts:.1g}")))

    def hand_over(self, heirs: CallSites) -> dict[CallSiteAccount, CallSiteAccount]:
        """Move all counts to the pool account that takes over the totals. One thread at a time.

        Return what takes the place of each account that counts.
        """
        heir_of = {self.other: heirs.other}
        for account in self.reported():
            assert account.code is not None
            self._room.left += 1
            heir = heirs.of(account.code, account.number)
            if heir.counts is heirs.other and heir in heirs.accounts.values():  # there is room for it now
                heir.counts = heir
                self._room.left -= 1
            heir_of[account] = heir.counts
        for account, heir in heir_of.items():
            heir.absorb(account)
        heirs.noted += self.noted
        self.accounts, self._by_code, self._by_text, self._seen = {}, {}, {}, {}
        return heir_of


_number = attrgetter("number")

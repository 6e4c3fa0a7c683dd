"""Which lines of the application take connections: which are noted, and what is counted by line. Pure.

Rules:

1. A checkout that is noted walks its stack, which takes 10 us. So every one is noted while there are fewer
   than `RATE` a second, and above that a fair sample: each connection lets a random number of its checkouts
   pass (`Sampling.pause`), whenever these come. One that is not noted costs one comparison.
2. Counts are absolute. They are never moved from one line to another, but for those of a pool that is gone,
   which go where its totals go.
3. Memory is bounded: `KEPT` lines of a pool, of which the process reports `SITES_REPORTED`, those that came
   first; all others are counted as one, `OTHER`. Of the application only code objects are kept.
4. No lock: an update that another thread overtakes makes the sample a bit larger or smaller, nothing else.
   What is counted is appended to lists, and taken from them by one thread at a time.

Times are seconds of one monotonic clock, handed in.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from functools import partial
from math import inf
from types import CodeType
from typing import Final, NamedTuple, TypeAlias

from connmon.protocol import histogram
from connmon.protocol.reports import SITES_REPORTED
from connmon.protocol.values import HolderIn

#: Checkouts a second, of one process, up to which each of them is noted.
RATE: Final = 100.0
#: A connection lets so many checkouts pass at most, on average, between two that are noted.
LARGEST_PAUSE: Final = 2**14
#: Seconds between two changes of how many pass: when too many are noted, and when too few.
LONGER_AFTER: Final = 0.005
SHORTER_AFTER: Final = 1.0
#: Lines of one pool that are kept, whether they are reported or not.
KEPT: Final = 1_000
#: The line that stands for all those that are not reported one by one.
OTHER: Final = "(other)"
#: The usual hold of a line is that of so many of its latest ones, and of up to twice as many.
LATEST: Final = 500
#: Holds of a line that are not counted yet are counted on the spot when they are so many.
UNCOUNTED: Final = 256

_bucket = partial(bisect_left, histogram.BOUNDS)
Site: TypeAlias = "tuple[CodeType, int]"


class Look(NamedTuple):
    """Where a holder is now."""

    where: HolderIn | None
    """None: it was not looked at, or cannot be."""
    site: str | None
    """The line of the application."""
    stack: tuple[str, ...]
    """The innermost frame first."""


class Sampling:
    """Which checkouts of a process are noted by their line."""

    __slots__ = ("_at", "_changed", "_left", "_random", "mean", "rate")

    def __init__(self, rate: float = RATE) -> None:
        """`rate`: so many a second at most; infinite: each of them."""
        self.rate = rate
        self.mean = 1
        """A connection is looked at every so many checkouts, on average."""
        self._left = rate
        self._at = self._changed = 0.0
        self._random = random.Random()  # the application's own must go on as if this were not here

    def due(self, now: float) -> bool:
        """Whether there is room for one more."""
        rate = self.rate
        if rate == inf:
            return True
        left = min(rate, self._left + (now - self._at) * rate) if self._at else rate
        self._at = now
        if left < 1.0:
            self._left = left
            if now - self._changed > LONGER_AFTER and self.mean < LARGEST_PAUSE:
                self.mean, self._changed = 2 * self.mean, now
            return False
        self._left = left - 1.0
        if self.mean > 1 and left > 0.75 * rate and now - self._changed > SHORTER_AFTER:
            self.mean, self._changed = self.mean // 2, now
        return True

    def pause(self) -> int:
        """Return after how many checkouts of a connection the next one is to be noted: 1, that is each, or
        a random number with mean `mean`."""
        mean = self.mean
        return 1 if mean == 1 else 1 + int(self._random.random() * (2 * mean - 1))

    def relax(self, now: float, per_second: float) -> bool:
        """Take how many checkouts there were of late; return whether each is to be noted from now on.

        Connections that let many pass would go on to do so for long once there are few.
        """
        if self.mean > 1 and per_second < 0.9 * self.rate:
            self.mean, self._changed = 1, now
        return self.mean == 1


class Usual(NamedTuple):
    """The facts of a line that a report tells of."""

    holds: int
    hold_ms: int
    usual: float | None


class SiteAccount:
    """One line that takes connections from one pool."""

    __slots__ = (
        "_before", "_latest", "code", "counts", "ended", "holds", "line", "number", "seconds", "told",
        "told_at",
    )  # fmt: skip

    def __init__(self, code: CodeType | None, number: int, other: SiteAccount | None = None) -> None:
        """`other`: the one that counts for it, where it is not reported by itself."""
        self.code = code
        """None: all others."""
        self.number = number
        """The line of the file."""
        self.counts: SiteAccount = self if other is None else other
        self.holds: list[float] = []
        """How long each hold took that has ended since that was last counted, in seconds."""
        self.ended = 0
        self.seconds = 0.0
        self._latest: Counter[int] = Counter()
        self._before: Counter[int] = Counter()
        self.line: str | None = None
        """As it is written, once it was."""
        self.told: tuple[object, ...] | None = None
        """What the last report said of it; None: nothing yet."""
        self.told_at = 0.0

    @property
    def site(self) -> Site | None:
        return None if self.code is None else (self.code, self.number)

    def count(self) -> Usual:
        """Count what has ended. One thread at a time."""
        taken = self.holds[:]
        del self.holds[: len(taken)]
        if taken:
            self.ended += len(taken)
            self.seconds += sum(taken)
            if sum(self._latest.values()) >= LATEST:
                self._before, self._latest = self._latest, Counter()
            self._latest.update(map(_bucket, taken))
        usual = histogram.quantile(self._latest + self._before, 95) if self.ended else None
        return Usual(self.ended, int(self.seconds * 1000.0), usual)

    def absorb(self, gone: SiteAccount) -> None:
        """Take over what a line of a pool that is gone has counted. One thread at a time."""
        gone.count()
        self.count()
        self.ended += gone.ended
        self.seconds += gone.seconds
        self._latest.update(gone._latest)
        self._before.update(gone._before)


class Room:
    """How many lines of a process may still be reported one by one; and the account of all others."""

    __slots__ = ("left", "other")

    def __init__(self, left: int = SITES_REPORTED) -> None:
        self.left = left
        self.other = SiteAccount(None, 0)


class Sites:
    """The lines that take connections from one pool."""

    __slots__ = ("_room", "accounts", "noted")

    def __init__(self, room: Room) -> None:
        self._room = room
        self.accounts: dict[tuple[int, int], SiteAccount] = {}
        """By id of the code object, which is kept: comparing code objects takes long."""
        self.noted = 0
        """Checkouts whose line was noted."""

    def of(self, code: CodeType, number: int) -> SiteAccount:
        """Return the account of this line."""
        key = id(code), number
        account = self.accounts.get(key)
        if account is None:
            room = self._room
            own = room.left > 0
            account = SiteAccount(code, number, None if own else room.other)
            if len(self.accounts) < KEPT:
                self.accounts[key] = account
                if own:
                    room.left -= 1
            else:
                account.counts = room.other
        return account

    def reported(self) -> list[SiteAccount]:
        """Return those that are reported one by one, and not as `OTHER`."""
        return [account for account in list(self.accounts.values()) if account.counts is account]

    def share(self, checkouts: int) -> float:
        """Return which part of all checkouts was noted, above 0, to one digit; 1.0 only where all were.

        `checkouts`: how many there were.
        """
        if self.noted >= checkouts:
            return 1.0
        return min(0.99, max(0.0001, float(f"{self.noted / checkouts:.1g}")))

    def hand_over(self, heirs: Sites) -> None:
        """Give everything to the pool that has the totals of this one from now on. One thread at a time."""
        for account in self.reported():
            assert account.code is not None
            self._room.left += 1
            heirs.of(account.code, account.number).counts.absorb(account)
        heirs.noted += self.noted
        self.accounts = {}

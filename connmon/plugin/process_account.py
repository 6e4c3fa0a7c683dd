"""What the pools of one process share: clock, live counts, numbers, the fold lock, room for call sites.

`Ledger` owns one of these and hands it to each `PoolAccount`, so that neither needs the other's module.
No I/O, no threads. Times are seconds of one monotonic clock, which is passed in.

`LiveCounts` are changed in the application's threads and without a lock; `pool_account.py` says how they are
kept right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from connmon.plugin.call_site_accounts import CallSiteRoom, CallSiteSettings
from connmon.plugin.hold_profile import ProfileSettings
from connmon.protocol.values import Peaks


@dataclass(frozen=True)
class AccountSettings:
    """Limits of the accounts of one process."""

    backlog_entries: int = 1000
    """Ended connections, or dropped pools, that may pile up before they are folded without a reporter."""
    quiet_seconds: float = 3.0
    """After so long without a change a difference between live counts and sums is an error to correct."""
    stuck_lock_attempts: int = 3
    stuck_lock_seconds: float = 2.0
    """Folding takes milliseconds. After so many failed attempts in a row over so many seconds the fold lock
    has no owner: an interruption came before its release. It is replaced."""
    call_sites: CallSiteSettings = field(default_factory=CallSiteSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)


class LiveCounts:
    """The present of a pool, or of the whole process, and its peaks since the last report."""

    __slots__ = (
        "checked_out", "longest_wait", "open", "peak_checked_out", "peak_open", "peak_waiting", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def __repr__(self) -> str:
        return f"<LiveCounts {self.open} open, {self.checked_out} checked out, {self.waiting} waiting>"

    def reset(self) -> None:
        self.open = self.checked_out = self.waiting = 0
        self.peak_open = self.peak_checked_out = self.peak_waiting = 0
        self.longest_wait = 0.0

    def collect(self, longest_wait: float) -> Peaks:
        """Return the peaks and start new ones.

        `longest_wait`: seconds that the longest of the unfinished waits has lasted.
        """
        # Each peak is read and restarted before any call: at a call another thread may run, and a peak
        # that it sets would be lost.
        peak_open, self.peak_open = self.peak_open, self.open
        peak_checked_out, self.peak_checked_out = self.peak_checked_out, self.checked_out
        peak_waiting, self.peak_waiting = self.peak_waiting, self.waiting
        longest_ended, self.longest_wait = self.longest_wait, 0.0
        return Peaks(
            max(peak_open, self.peak_open),
            max(peak_checked_out, self.peak_checked_out),
            max(peak_waiting, self.peak_waiting),
            max(longest_ended, longest_wait),
        )


class Lock(Protocol):
    """What connmon uses of a lock."""

    def acquire(self, blocking: bool = True, timeout: float = -1, /) -> bool: ...
    def release(self) -> None: ...


class FoldLock:
    """The lock under which one thread at a time folds, counts and reports.

    The reporter waits for it. An application's thread, which folds only where too much has piled up, does
    not.
    """

    def __init__(
        self, make_lock: Callable[[], Lock], clock: Callable[[], float], settings: AccountSettings
    ) -> None:
        """`make_lock` makes a lock that stops a thread of the operating system, not a greenlet."""
        self._make_lock = make_lock
        self._clock = clock
        self._settings = settings
        self.current = make_lock()
        self._failed_attempts, self._failing_since = 0, 0.0

    def __repr__(self) -> str:
        return f"<FoldLock {self.current!r}: {self._failed_attempts} failed attempts>"

    def acquire(self, wait_seconds: float = 0.0) -> Lock | None:
        """Return the lock, acquired, for the caller to release; None where another thread has it."""
        lock = self.current
        if lock.acquire(wait_seconds > 0.0, wait_seconds or -1):
            self._failed_attempts = 0
            return lock
        now = self._clock()
        if not self._failed_attempts:
            self._failing_since = now
        self._failed_attempts += 1
        settings = self._settings
        stuck = now - self._failing_since >= settings.stuck_lock_seconds
        if stuck and self._failed_attempts >= settings.stuck_lock_attempts:
            self.replace()
        return None

    def replace(self) -> None:
        """Make a new lock: the thread that has the present one is gone, or will not release it."""
        self._failed_attempts, self.current = 0, self._make_lock()


def unknown_cpu() -> tuple[int, float]:
    return 0, 0.0


class ProcessAccount:
    """What the accounts of one process's pools share."""

    def __init__(
        self,
        make_lock: Callable[[], Lock],
        clock: Callable[[], float],
        settings: AccountSettings = AccountSettings(),  # it is immutable
        thread_cpu: Callable[[], tuple[int, float]] = unknown_cpu,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.thread_cpu = thread_cpu
        """Returns the number of the calling thread, and how many seconds it has computed; 0: not known."""
        self.live = LiveCounts()
        self.pool_live: dict[int, LiveCounts] = {}
        """The live counts of each open pool, by its number."""
        self.numbers = itertools.count(1)
        """The numbers of connections and pools of this process."""
        self.call_site_room = CallSiteRoom(settings.call_sites)
        self.fold_lock = FoldLock(make_lock, clock, settings)
        self.used = False
        """Whether anything has happened that is worth a report."""
        self.wake: Callable[[], None] | None = None
        """Starts the reporter, at the first connection. None: it runs."""

    def __repr__(self) -> str:
        return f"<ProcessAccount of {len(self.pool_live)} pools: {self.live!r}>"

    def seen(self) -> None:
        """Note that something is worth a report, and start the reporter where it does not run yet."""
        if self.wake is not None:
            self.wake()
        self.used = True

    def forked(self) -> None:
        """Start from nothing in the child of a fork. Connection and pool numbers go on."""
        self.live.reset()
        self.call_site_room = CallSiteRoom(self.settings.call_sites)
        self.used = False
        self.fold_lock.replace()

    def correct(self, live: LiveCounts, opened: int, checked_out: int, waiting: int) -> None:
        """Set a pool's live counts to these, and the process's to the sum over its pools."""
        live.open, live.checked_out, live.waiting = opened, checked_out, waiting
        process, pools = self.live, list(self.pool_live.values())
        process.open = sum([pool.open for pool in pools])
        process.checked_out = sum([pool.checked_out for pool in pools])
        process.waiting = sum([pool.waiting for pool in pools])

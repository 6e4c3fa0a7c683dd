"""When the holders of connections are looked at. Pure: no clock, no wait.

1. Looks come at random: the time between two of them has an exponential distribution. Looks at a fixed rate
   would beat with work that repeats at the same rate, and always see the same part of it.
2. Nothing is caught up with. After a pause of the process the next interval begins then.
3. While nothing is checked out and nobody waits, the reporter is not woken for looks. It finds out at its
   other turns that this has changed. For `idle_seconds` after that was last seen, looks go on: to stop at the
   first look that sees nobody, and to start at a turn that sees somebody, would see long holds more often
   than their share.
4. Looks take at most `cpu_part` of a core on average (ten times as much for ten times as many): where one
   takes long, as with very many threads, there are fewer. How long they take changes slowly, so that the
   moments stay independent of what they meet.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class LookScheduleSettings:
    """How looks are spread over time."""

    idle_seconds: float = 2.0
    """So long looks go on while nothing is checked out and nobody waits."""
    usual_cpu_seconds: float = 0.0002
    """What a look is taken to compute before any was taken."""
    cpu_part: float = 0.002
    """The part of a core that ten looks a second may take."""
    smoothing: float = 0.05
    """The weight of one look in the average of what looks take."""
    shortest_seconds: float = 0.001
    """The least time between two looks: what `poll` can wait."""


class LookSchedule:
    """The next look at the holders of one ledger."""

    __slots__ = ("_busy_at", "_cpu_seconds", "_random", "_settings", "due")

    def __init__(
        self,
        random_numbers: random.Random,
        settings: LookScheduleSettings = LookScheduleSettings(),  # it is immutable
    ) -> None:
        """`random_numbers`: not the application's own, which have to stay as they are."""
        self._random = random_numbers
        self._settings = settings
        self._busy_at = 0.0
        self._cpu_seconds = settings.usual_cpu_seconds
        """What a look takes on average."""
        self.due: float | None = None
        """When the next look is due. None: none is planned."""

    def __repr__(self) -> str:
        return f"<LookSchedule: {'no look planned' if self.due is None else f'due at {self.due:.3f}'}>"

    def consider(self, now: float, looks_per_second: float, busy: bool) -> None:
        """Plan a look, or none, at a turn of the reporter.

        `busy`: whether anything is checked out, or somebody waits.
        """
        if busy:
            self._busy_at = now
        if looks_per_second <= 0.0 or (not busy and now - self._busy_at > self._settings.idle_seconds):
            self.due = None
        elif self.due is None and busy:
            self.plan(now, looks_per_second)

    def plan(self, now: float, looks_per_second: float) -> None:
        """Plan the look after one that was just now."""
        if looks_per_second <= 0.0:
            self.due = None
        else:
            seconds = self._random.expovariate(self._affordable(looks_per_second))
            self.due = now + max(self._settings.shortest_seconds, seconds)

    def took(self, cpu_seconds: float) -> None:
        """Note how long a look has computed."""
        # The first looks read the code of all functions that they meet: they say little of those to come.
        before = self._cpu_seconds
        usual = min(cpu_seconds, 4.0 * before)
        self._cpu_seconds = before + self._settings.smoothing * (usual - before)

    def _affordable(self, looks_per_second: float) -> float:
        """Return how many of so many looks per second do not take too much."""
        budget = self._settings.cpu_part * max(1.0, looks_per_second / 10.0)
        return min(looks_per_second, budget / self._cpu_seconds)

    def put_off(self, now: float, seconds: float) -> None:
        """Have no look before that."""
        self.due = now + seconds

    def late(self, now: float, planned: float) -> float | None:
        """Return by how many seconds the look that is due now is late; None: none is due.

        `planned` is the moment at which the wait before now had to end.
        """
        if self.due is None or now < self.due:
            return None
        return max(0.0, now - max(self.due, planned))

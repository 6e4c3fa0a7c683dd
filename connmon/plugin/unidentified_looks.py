"""Looks at holds whose call site is not known yet, kept until it is. Pure.

Where only a sample of the checkouts is noted, a call site with few, long holds has had some of them before
one is noted. Until then looks meet them in functions in which no noted hold was ever seen. What is split over
the other call sites meanwhile is owed to this one as soon as it is known (`PoolProfile.owe`).

Memory is bounded: so many stacks, each for so long. Of the application only code objects are kept.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from connmon.plugin.call_site_accounts import CallSite, CallSiteAccount, CallSites
from connmon.plugin.hold_profile import Lateness, PoolProfile


@dataclass(frozen=True)
class UnidentifiedLookSettings:
    """How many looks are kept, and for how long."""

    stacks: int = 64
    """Looks at further stacks are not kept."""
    seconds: float = 120.0
    """After this the looks at a stack are forgotten."""


class _Stack:
    """The looks at holders with one and the same stack."""

    __slots__ = ("application", "since", "weights")

    def __init__(self, application: tuple[CallSite, ...], since: float) -> None:
        self.application = application
        self.since = since
        """When the first of them was."""
        self.weights: dict[tuple[str | None, Lateness], float] = {}
        """By where the holder was."""


class UnidentifiedLooks:
    """The looks of one pool. One thread at a time."""

    __slots__ = ("_settings", "_stacks")

    def __init__(self, settings: UnidentifiedLookSettings = UnidentifiedLookSettings()) -> None:  # immutable
        self._settings = settings
        self._stacks: dict[tuple[int, ...], _Stack] = {}
        """By the ids of the functions, which are kept."""

    def __repr__(self) -> str:
        return f"<UnidentifiedLooks at {len(self._stacks)} stacks>"

    def keep(
        self,
        now: float,
        where: str | None,
        application: tuple[CallSite, ...],
        weight: float,
        lateness: Lateness,
    ) -> None:
        """Keep one look: where the holder was, and the application's frames on its stack."""
        key = tuple([id(code) for code, _ in application])
        stack = self._stacks.get(key)
        if stack is None:
            if not key or len(self._stacks) >= self._settings.stacks:
                return
            stack = self._stacks[key] = _Stack(application, now)
        seen = where, lateness
        stack.weights[seen] = stack.weights.get(seen, 0.0) + weight

    def identify(self, now: float, call_sites: CallSites, profile: PoolProfile[CallSiteAccount]) -> None:
        """Count the looks whose call site is known by now, and forget those that are too old."""
        for key, stack in list(self._stacks.items()):
            taken = call_sites.taken_in(stack.application)
            if taken.sure:
                for (where, lateness), weight in stack.weights.items():
                    for call_site, part in taken.parts.items():
                        profile.owe(call_site, weight * part)
                        if where is not None:
                            profile.places_of(call_site).see(where, weight * part, lateness)
            if taken.sure or now - stack.since > self._settings.seconds:
                del self._stacks[key]

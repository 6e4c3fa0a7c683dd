"""How long the connections of one pool are held, and the profile that this time is split in. Pure.

The pool's account counts its entries for each report (`begin`, `add_present`, `end`); then `settle` splits
what was counted over the call sites. One thread at a time, with the fold lock.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping

from connmon.plugin.call_site_accounts import CallSiteAccount, CallSites
from connmon.plugin.hold_profile import HeldTime, PoolProfile, PoolTotals, ProfileSettings, old_seconds
from connmon.plugin.unidentified_looks import UnidentifiedLooks
from connmon.protocol.values import Totals


class PoolTime:
    """The time that one pool's connections are held, as last counted."""

    __slots__ = (
        "_present", "_present_unnoted", "_settled", "_unnoted", "_unnoted_before", "held", "present_of",
        "profile", "unidentified",
    )  # fmt: skip

    def __init__(self, settings: ProfileSettings) -> None:
        self.profile: PoolProfile[CallSiteAccount] = PoolProfile(settings)
        """How the time is split over call sites and places."""
        self.unidentified = UnidentifiedLooks()
        """Looks at holds whose call site is not known yet."""
        self.held = HeldTime()
        self._present: list[float] = []
        """Seconds of each present hold."""
        self.present_of: dict[CallSiteAccount, list[float]] = {}
        """By call site: since when each of its noted present holds goes on."""
        self._settled: tuple[int, ...] | None = None
        """What was split last."""
        self._present_unnoted = 0
        """Present holds whose call site was not noted."""
        self._unnoted = self._unnoted_before = (0, 0)
        """Checkouts and present holds that were not noted, as last counted, and the time before."""

    def __repr__(self) -> str:
        return f"<PoolTime {self.held.seconds:.1f} s: {self.profile!r}>"

    @property
    def sampled(self) -> bool:
        """Whether some checkouts, or present holds, were not noted, as last counted."""
        return any(self._unnoted)

    def begin(self) -> None:
        """Begin to count the present holds."""
        self._present, self.present_of, self._present_unnoted = [], {}, 0

    def add_present(self, now: float, since: float, call_site: CallSiteAccount | None) -> None:
        """Count a hold that goes on since then. `call_site`: None where it was not noted."""
        self._present.append(max(0.0, now - since))
        if call_site is None:
            self._present_unnoted += 1
        else:
            self.present_of.setdefault(call_site, []).append(since)

    def end(self, ended_seconds: float, ended_old_seconds: float) -> None:
        """Note the time of the ended holds; of these, what each lasted beyond `YOUNG_SECONDS`."""
        present_seconds = sum(self._present)
        self.held = HeldTime(
            present_seconds=present_seconds,
            seconds=ended_seconds + present_seconds,
            old_seconds=ended_old_seconds + old_seconds(self._present),
        )

    def settle(
        self,
        now: float,
        totals: Totals,
        call_sites: CallSites,
        waits: Mapping[object, float],
        wait_call_sites: Mapping[object, CallSiteAccount],
        cpu_scale: float,
        final: bool,
    ) -> None:
        """Split everything counted until now over the call sites and places.

        `waits`: when each present wait began, and `wait_call_sites` where, as far as that was noted.
        `cpu_scale`: see `hold_looks.ComputedTime`. `final`: nothing will become known of it later.
        """
        counts = totals.hold_ms, totals.checkins, totals.wait_ms, call_sites.noted
        if counts == self._settled and not (self._present or waits or final or self.profile.pending):
            return
        self._settled = counts
        waiting: dict[CallSiteAccount, float] = {}
        present_waits = 0.0
        for wait, began in waits.items():
            present_waits += now - began
            if (call_site := wait_call_sites.get(wait)) is not None:
                waiting[call_site] = waiting.get(call_site, 0.0) + now - began
        counted, samples = {}, {}
        for call_site in call_sites.counting():
            present = [max(0.0, now - since) for since in self.present_of.get(call_site, ())]
            counted[call_site] = call_site.counted(
                sum(present), old_seconds(present), waiting.get(call_site, 0.0)
            )
            samples[call_site] = call_site.take_sample()
            cpu_seconds, cpu_held_seconds = call_site.take_cpu()
            if cpu_held_seconds:
                self.profile.places_of(call_site).compute(cpu_seconds * cpu_scale, cpu_held_seconds)
        self.unidentified.identify(now, call_sites, self.profile)
        self.profile.settle(
            now,
            PoolTotals(
                held_ms=totals.hold_ms + int(self.held.present_seconds * 1000.0),
                holds=totals.checkins,
                waited_ms=totals.wait_ms + int(present_waits * 1000.0),
                held=self.held,
                sampled=self._is_sampled(totals.checkouts - call_sites.noted),
            ),
            counted,
            samples,
            call_sites.other,
            final=final,
        )

    def _is_sampled(self, unnoted_checkouts: int) -> bool:
        """Return whether some holds since the last two reports were not noted."""
        before, self._unnoted_before = self._unnoted_before, self._unnoted
        self._unnoted = unnoted_checkouts, self._present_unnoted
        return unnoted_checkouts > before[0] or self._present_unnoted + self._unnoted_before[1] > 0

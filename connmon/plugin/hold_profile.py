"""Where connection time goes: what a pool counts is split over its call sites and over places. Pure.

The ledger knows how long the connections of a pool were held, without an error. This module splits that time,
the holds that ended, and the time that was waited. Rules:

1. The parts are whole milliseconds (or holds). They sum to the total, and none ever goes back (`Split`).
2. What is known of a call site is counted: the holds that were noted. The rest is estimated in two strata. Of
   each hold the first `YOUNG_SECONDS` are split by the noted holds, each of which stands for the checkouts of
   its connection since the one noted before it: short holds are many, and a look rarely meets them. What is
   held longer is split by the looks, which meet each long hold: noted holds rarely are such.
3. A call site's time is split over places by the looks at its holders. A look is taken with the interpreter
   lock, so it meets a thread that computes only when the thread gives the lock away: mostly when it calls the
   driver. So the part in which holders computed is taken from the CPU clock of their threads, and looks that
   had to wait for the lock count for the rest only as far as somebody else may have had it. Where the machine
   is short of CPUs these clocks stand still while a thread has the lock: see `hold_looks.ComputedTime`.
4. While somebody waits for the pool, each call site causes the part of the wait that it has of the held
   connections.
5. Weights of earlier reports fade: each report halves them. Memory is bounded by the call sites and
   `ProfileSettings.places`.

Times are seconds of one monotonic clock, which is passed in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from connmon.protocol.reports import HoldProfile
from connmon.protocol.values import (
    COMPUTING,
    ELSEWHERE,
    ENDED,
    EVENT_LOOP,
    IN_DATABASE,
    OTHER_CONNECTION,
    OTHER_LABELS,
    WAITING,
)

#: The part of each hold that noted holds tell of; looks tell of the rest.
YOUNG_SECONDS: Final = 0.1

#: Places at which a holder does not compute.
_AT_REST: Final = frozenset({WAITING, EVENT_LOOP, OTHER_CONNECTION, ELSEWHERE, ENDED})


@dataclass(frozen=True)
class ProfileSettings:
    """How much is looked at, and how the looks are judged."""

    holders: int = 6
    """The most holders in one look; each stands for several where more connections are held."""
    connections: int = 400
    """The most connections among which a look searches for held ones."""
    places: int = 7
    """The most places of one call site that are kept apart; further ones are summed up."""
    late_seconds: float = 0.0
    """A look that comes later than this had to wait for the interpreter lock."""
    preempted: float = 0.9
    """A look that comes later than this many switch intervals has preempted a thread that computes."""
    patience_seconds: float = 10.0
    """Time that nothing says the call site of is split like the time so far, after this."""
    paid_part: float = 0.5
    """The most of a call site's newly counted time that goes to those that are owed some."""
    busy_seconds: float = 2.0
    """Looks go on for so long after the last report in which something was held."""
    stacks: int = 16
    """The most call sites of a process whose stack is kept."""
    stack_interval_seconds: float = 60.0
    """Between two stacks of one call site."""
    few_looks: float = 2.0
    """With fewer looks at computing holders their places are not known."""
    scale_seconds: float = 30.0
    """Over so long a time CPU clocks are compared with how often the interpreter lock is taken."""
    fewest_looks: float = 50.0
    """With fewer looks in that time they are not compared."""
    largest_scale: float = 20.0
    """CPU clocks run at most by this factor too slowly."""
    least_cpu: float = 0.02
    """Holders that compute for a smaller part of their time are taken to compute not at all."""


def old_seconds(holds: Iterable[float]) -> float:
    """Return what these holds, in seconds, lasted beyond `YOUNG_SECONDS` of each."""
    return sum([held - YOUNG_SECONDS for held in holds if held > YOUNG_SECONDS])


K = TypeVar("K", bound=Hashable)


def apportion(total: int, weights: Mapping[K, float]) -> dict[K, int]:
    """Return whole parts of `total` in proportion to the weights: they sum to it (largest remainders).

    Weights that are not positive get nothing. Without a positive weight the result is empty.
    """
    positive = {key: weight for key, weight in weights.items() if weight > 0.0}
    whole = sum(positive.values())
    if total <= 0 or not whole > 0.0:
        return {}
    exact = {key: total * (weight / whole) for key, weight in positive.items()}
    parts = {key: min(int(amount), total) for key, amount in exact.items()}
    rest = total - sum(parts.values())
    for key in sorted(exact, key=lambda key: parts[key] - exact[key])[: max(0, rest)]:
        parts[key] += 1
    return parts


class Split(Generic[K]):
    """A growing total, split over keys in whole units that never go back.

    What is counted for each key decides, plus what was estimated (`estimate`). `parts` sum to the total as
    soon as counts and estimates do, to less than one unit.
    """

    __slots__ = ("_extra", "_since", "_whole", "parts")

    def __init__(self) -> None:
        self.parts: dict[K, int] = {}
        self._extra: dict[K, float] = {}
        """What was estimated for each key."""
        self._whole = 0
        """The sum of the parts."""
        self._since: float | None = None
        """Since when a rest has waited to be estimated. None: there is none."""

    def __repr__(self) -> str:
        return f"<Split of {self._whole} over {len(self.parts)}>"

    @property
    def whole(self) -> int:
        """The sum of the parts."""
        return self._whole

    def rest(self, total: float, counted: Mapping[K, float]) -> float:
        """Return what is neither counted nor estimated: above 0 if somebody's part is not known yet."""
        return total - sum(counted.values()) - sum(self._extra.values())

    def estimate(self, amount: float, weights: Mapping[K, float]) -> bool:
        """Split this amount by the weights; return whether there was a weight to split it by."""
        whole = sum([weight for weight in weights.values() if weight > 0.0])
        if not whole > 0.0:
            return False
        for key, weight in weights.items():
            if weight > 0.0:
                self._extra[key] = self._extra.get(key, 0.0) + amount * (weight / whole)
        return True

    @property
    def pending(self) -> bool:
        """Whether a rest waits to be estimated."""
        return self._since is not None

    def overdue(self, rest: float, now: float, patience_seconds: float) -> bool:
        """Return whether a rest (of a unit or more) has been there for so long."""
        if rest < 1.0:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= patience_seconds

    def settle(self, total: int, counted: Mapping[K, float]) -> None:
        """Let the parts grow to what is counted and estimated, but together no further than to the total."""
        growth = total - self._whole
        if growth <= 0:
            return
        extra, parts = self._extra, self.parts
        due = {key: amount + extra.get(key, 0.0) - parts.get(key, 0) for key, amount in counted.items()}
        for key, amount in extra.items():
            if key not in due:
                due[key] = amount - parts.get(key, 0)
        wanted = sum([amount for amount in due.values() if amount > 0.0])
        for key, amount in apportion(growth if growth <= wanted + 1.0 else int(wanted), due).items():
            parts[key] = parts.get(key, 0) + amount
            self._whole += amount

    def absorb(self, closed: Split[K], heirs: Mapping[K, K]) -> None:
        """Add what another split has, under the keys of the heirs."""
        for key, amount in closed.parts.items():
            heir = heirs.get(key, key)
            self.parts[heir] = self.parts.get(heir, 0) + amount
        for key, estimated in closed._extra.items():
            heir = heirs.get(key, key)
            self._extra[heir] = self._extra.get(heir, 0.0) + estimated
        self._whole += closed._whole


class Lateness(NamedTuple):
    """How a look came to the interpreter lock."""

    late: bool
    """It had to wait: some thread computed at the moment of the look."""
    preempted: bool
    """That thread was stopped for it, in the middle of what it computed."""


#: Looks at one place: at once, late, late by preemption.
_Weights = list[float]


class Places:
    """Where the holders of one call site were seen, and for how long they were there."""

    __slots__ = ("_cpu", "_cpu_held", "_looks", "_settings", "split", "stack", "stack_at", "stack_reported")

    def __init__(self, settings: ProfileSettings) -> None:
        self._settings = settings
        self.split: Split[str] = Split()
        """Milliseconds held, by place."""
        self._looks: dict[str, _Weights] = {}
        self._cpu = self._cpu_held = 0.0
        """Seconds computed, in so many seconds held."""
        self.stack: tuple[str, ...] = ()
        """A recent stack, as reports have it; taken at `stack_at`."""
        self.stack_at: float | None = None
        self.stack_reported = False

    def __repr__(self) -> str:
        return f"<Places: {self.split.parts}>"

    def see(self, place: str, weight: float, lateness: Lateness) -> None:
        """Count one holder of a look."""
        looks, most = self._looks, self._settings.places
        known = looks.get(place)
        if known is None:
            if len(looks) >= most or (len(self.split.parts) >= most and place not in self.split.parts):
                place = OTHER_LABELS
            known = looks.setdefault(place, [0.0, 0.0, 0.0])
        known[2 if lateness.preempted else 1 if lateness.late else 0] += weight

    def compute(self, cpu_seconds: float, held_seconds: float) -> None:
        """Count how long holders computed, in so many seconds held."""
        self._cpu += cpu_seconds
        self._cpu_held += held_seconds

    def settle(self, held_ms: int) -> None:
        """Split what was held since the last time over the places, where somebody has looked."""
        pending = self.split.rest(held_ms, {})
        if pending > 0.0 and self.split.estimate(pending, self._weights()):
            self.split.settle(held_ms, {})
        self._fade()

    def _weights(self) -> dict[str, float]:
        """Return how much each place counts; see rule 3 of the module."""
        at_once = sum([looks[0] for looks in self._looks.values()])
        late = sum([looks[1] + looks[2] for looks in self._looks.values()])
        if not at_once + late > 0.0:
            return {}
        late_part = late / (at_once + late)
        cpu = min(1.0, self._cpu / self._cpu_held) if self._cpu_held > 0.0 else 0.0
        if cpu < self._settings.least_cpu:
            return {place: sum(looks) for place, looks in self._looks.items()}
        own = min(1.0, cpu / late_part) if late_part else 1.0
        """The part of the late looks at which these holders themselves computed."""
        resting = {
            place: looks[0] + (looks[1] + looks[2]) * (1.0 - own) for place, looks in self._looks.items()
        }
        if not sum(resting.values()) > 0.0:
            resting = {place: sum(looks) for place, looks in self._looks.items()}
        computing = {place: looks[2] for place, looks in self._looks.items() if place not in _AT_REST}
        if in_database := self._looks.get(IN_DATABASE):
            # A driver that computes for long (it reads many rows) is preempted. Where looks often came after
            # less than that, holders have computed before they called it, also where that took longer.
            computing[IN_DATABASE] = max(0.0, in_database[2] - in_database[1]) * own
        if sum(computing.values()) < self._settings.few_looks:
            computing = {COMPUTING: 1.0}
        weights: dict[str, float] = {}
        for part, seen in ((1.0 - cpu, resting), (cpu, computing)):
            whole = sum(seen.values())
            for place, weight in seen.items():
                weights[place] = weights.get(place, 0.0) + part * weight / whole
        return weights

    def _fade(self) -> None:
        for place, looks in list(self._looks.items()):
            faded = [weight / 2.0 for weight in looks]
            if sum(faded) < 0.01:
                del self._looks[place]
            else:
                self._looks[place] = faded
        self._cpu, self._cpu_held = self._cpu * 0.9, self._cpu_held * 0.9

    def absorb(self, closed: Places) -> None:
        """Add those of the same call site in a pool that is gone."""
        known = self.split.parts
        room = max(0, self._settings.places - len(known))
        new_places = [place for place in closed.split.parts if place not in known]
        self.split.absorb(closed.split, dict.fromkeys(new_places[room:], OTHER_LABELS))
        self.compute(closed._cpu, closed._cpu_held)
        if self.stack_at is None or (closed.stack_at is not None and closed.stack_at > self.stack_at):
            self.stack, self.stack_at, self.stack_reported = closed.stack, closed.stack_at, False


class HeldTime(NamedTuple):
    """How long the connections of a pool were held, as its account counts it, ended holds included."""

    present_seconds: float = 0.0
    """Of the present holds, until now."""
    seconds: float = 0.0
    """Of all holds, until now."""
    old_seconds: float = 0.0
    """Of these, what each hold lasted beyond `YOUNG_SECONDS`."""


class Counted(NamedTuple):
    """What is counted of one call site, until now."""

    seconds: float = 0.0
    """Of its noted holds."""
    old_seconds: float = 0.0
    """The same, beyond `YOUNG_SECONDS` of each."""
    holds: int = 0
    """Noted holds that have ended."""
    waited_seconds: float = 0.0
    """Of its noted waits."""


class Sample(NamedTuple):
    """What the holds noted since the last report stand for: those that were not noted."""

    holds: float = 0.0
    young_seconds: float = 0.0
    old_seconds: float = 0.0
    waits: float = 0.0
    """Seconds of noted waits."""


class PoolTotals(NamedTuple):
    """What is split, in the units of reports."""

    held_ms: int
    holds: int
    waited_ms: int
    held: HeldTime
    sampled: bool
    """Whether some holds since the last report were not noted."""


class PoolProfile(Generic[K]):
    """The profile of one pool. `K` is a call site; one thread at a time."""

    __slots__ = (
        "_caused_weights", "_old_estimated_ms", "_old_looks", "_old_unknown", "_old_weights", "_owed_ms",
        "_patience_seconds", "_sample", "_settings", "caused", "held", "holds", "places", "waited",
    )  # fmt: skip

    def __init__(self, settings: ProfileSettings = ProfileSettings()) -> None:  # it is immutable
        self._settings = settings
        self.held: Split[K] = Split()
        """Milliseconds held."""
        self.holds: Split[K] = Split()
        """Holds that have ended."""
        self.waited: Split[K] = Split()
        """Milliseconds waited."""
        self.caused: Split[K] = Split()
        """Milliseconds that others waited, by the call site that caused it."""
        self.places: dict[K, Places] = {}
        self._old_weights: dict[K, float] = {}
        """Looks at holds that are not noted and older than `YOUNG_SECONDS`."""
        self._patience_seconds = settings.patience_seconds
        self._old_unknown = 0.0
        """The same of holds that could not be identified."""
        self._old_looks = 0.0
        """The weight of all these looks ever."""
        self._owed_ms: dict[K, float] = {}
        """What call sites have too little, since they were not known yet when looks met their holds."""
        self._caused_weights: dict[K, float] = {}
        """Waits seen in looks, by the call site that caused them."""
        self._sample: dict[K, Sample] = {}
        """What noted holds stand for."""
        self._old_estimated_ms = 0.0
        """What was estimated of the time beyond `YOUNG_SECONDS` of holds."""

    def __repr__(self) -> str:
        return f"<PoolProfile: {self.held.whole} ms at {len(self.held.parts)} call sites>"

    @property
    def pending(self) -> bool:
        """Whether some of what was counted is not split yet."""
        return any(split.pending for split in (self.held, self.holds, self.waited, self.caused))

    def places_of(self, call_site: K) -> Places:
        """Return where the holders of this call site are."""
        places = self.places.get(call_site)
        if places is None:
            places = self.places[call_site] = Places(self._settings)
        return places

    def see_old(self, parts: Mapping[K, float], weight: float) -> None:
        """Count a look at a hold that is not noted and older than `YOUNG_SECONDS`.

        `parts`: the call sites that it may be of; empty: nothing is known of that.
        """
        self._old_looks += weight
        if not parts:
            self._old_unknown += weight
        for call_site, part in parts.items():
            self._old_weights[call_site] = self._old_weights.get(call_site, 0.0) + weight * part

    def owe(self, call_site: K, weight: float) -> None:
        """Note that this call site has had such looks while it was not known: it gets their time later."""
        if self._old_looks:
            owed_ms = weight * self._old_estimated_ms / self._old_looks
            self._owed_ms[call_site] = self._owed_ms.get(call_site, 0.0) + owed_ms

    def see_cause(self, call_site: K, waits: float) -> None:
        """Count a look while somebody waits: the number of waits that the call site causes."""
        self._caused_weights[call_site] = self._caused_weights.get(call_site, 0.0) + waits

    def settle(
        self,
        now: float,
        totals: PoolTotals,
        counted: Mapping[K, Counted],
        samples: Mapping[K, Sample],
        other: K,
        *,
        final: bool = False,
    ) -> None:
        """Split what the pool has counted until now. `other` gets what nothing is known of.

        `final`: nothing will become known of it later.
        """
        self._patience_seconds = 0.0 if final else self._settings.patience_seconds
        for call_site, sample in samples.items():
            known = self._sample.get(call_site, Sample())
            self._sample[call_site] = Sample._make(map(sum, zip(known, sample, strict=True)))
        before = dict(self.held.parts)
        self._settle_held(now, totals, counted, other)
        self._settle_holds(now, totals, counted, other)
        self._settle_waits(now, totals, counted, other, before)
        for call_site, held_ms in self.held.parts.items():
            self.places_of(call_site).settle(held_ms)
        self._fade()

    def _settle_held(self, now: float, totals: PoolTotals, counted: Mapping[K, Counted], other: K) -> None:
        held, samples = self.held, self._sample
        ms = {call_site: figures.seconds * 1000.0 for call_site, figures in counted.items()}
        rest = held.rest(totals.held.seconds * 1000.0, ms)
        if totals.sampled and rest > 0.0:
            young = {call_site: sample.young_seconds for call_site, sample in samples.items()}
            noted_old = sum([figures.old_seconds for figures in counted.values()])
            unnoted_old_ms = (totals.held.old_seconds - noted_old) * 1000.0 - self._old_estimated_ms
            old_ms = min(rest, max(0.0, unnoted_old_ms))
            young_ms = rest - old_ms
            if old_ms > 0.0 and held.estimate(old_ms, self._paid(old_ms, self._old_parts())):
                self._old_estimated_ms += old_ms
                rest -= old_ms
            if young_ms > 0.0 and held.estimate(young_ms, young):
                rest -= young_ms
        self._estimate_overdue(held, rest, now, other)
        held.settle(totals.held_ms, ms)

    def _paid(self, old_ms: float, parts: Mapping[K, float]) -> dict[K, float]:
        """Return how this time is split by these weights, less what some of it is owed to others."""
        whole = sum(parts.values())
        ms = {call_site: old_ms * part / whole for call_site, part in parts.items()} if whole > 0.0 else {}
        owed_ms = sum(self._owed_ms.values())
        payers = [call_site for call_site in ms if call_site not in self._owed_ms]
        most_ms = sum([ms[call_site] for call_site in payers]) * self._settings.paid_part
        if not owed_ms or not most_ms:
            return ms
        paid_ms = min(owed_ms, most_ms)
        for call_site in payers:
            ms[call_site] *= 1.0 - self._settings.paid_part * paid_ms / most_ms
        left = 1.0 - paid_ms / owed_ms
        for call_site, owed in list(self._owed_ms.items()):
            ms[call_site] = ms.get(call_site, 0.0) + owed * (1.0 - left)
            self._owed_ms[call_site] = owed * left
            if owed * left < 0.5:
                del self._owed_ms[call_site]
        return ms

    def _old_parts(self) -> dict[K, float]:
        """Return the weights by which time beyond `YOUNG_SECONDS` is split.

        Holds that no look could identify are split as the noted holds are, where any lasted so long.
        """
        parts = dict(self._old_weights)
        noted = {call_site: sample.old_seconds for call_site, sample in self._sample.items()}
        whole = sum(noted.values())
        unknown = self._old_unknown if parts else 1.0
        if whole > 0.0:
            for call_site, seconds in noted.items():
                parts[call_site] = parts.get(call_site, 0.0) + unknown * seconds / whole
        return parts

    def _settle_holds(self, now: float, totals: PoolTotals, counted: Mapping[K, Counted], other: K) -> None:
        holds = self.holds
        ended = {call_site: float(figures.holds) for call_site, figures in counted.items()}
        rest = holds.rest(float(totals.holds), ended)
        if totals.sampled and rest > 0.0:
            weights = {call_site: sample.holds for call_site, sample in self._sample.items()}
            rest -= rest if holds.estimate(rest, weights) else 0.0
        self._estimate_overdue(holds, rest, now, other)
        holds.settle(totals.holds, ended)

    def _settle_waits(
        self,
        now: float,
        totals: PoolTotals,
        counted: Mapping[K, Counted],
        other: K,
        held_before: Mapping[K, int],
    ) -> None:
        waited, caused = self.waited, self.caused
        ms = {call_site: figures.waited_seconds * 1000.0 for call_site, figures in counted.items()}
        rest = waited.rest(float(totals.waited_ms), ms)
        if rest >= 1.0:
            weights = {call_site: sample.waits for call_site, sample in self._sample.items()}
            rest -= rest if totals.sampled and waited.estimate(rest, weights) else 0.0
        self._estimate_overdue(waited, rest, now, other)
        waited.settle(totals.waited_ms, ms)
        rest = caused.rest(float(totals.waited_ms), {})
        if rest >= 1.0:
            held_since = {
                call_site: float(held_ms - held_before.get(call_site, 0))
                for call_site, held_ms in self.held.parts.items()
            }
            rest -= rest if caused.estimate(rest, self._caused_weights or held_since) else 0.0
        self._estimate_overdue(caused, rest, now, other)
        caused.settle(totals.waited_ms, {})

    def _estimate_overdue(self, split: Split[K], rest: float, now: float, other: K) -> None:
        """Split a rest that nothing has been known of for long as all time so far."""
        if split.overdue(rest, now, self._patience_seconds):
            past = {call_site: float(part) for call_site, part in self.held.parts.items()}
            split.estimate(rest, past if any(past.values()) else {other: 1.0})

    def _fade(self) -> None:
        """Halve the weights, so that they are of the last seconds."""
        self._old_unknown /= 2.0
        for weights in (self._old_weights, self._caused_weights):
            for call_site, weight in list(weights.items()):
                if weight < 0.02:
                    del weights[call_site]
                else:
                    weights[call_site] = weight / 2.0
        for call_site, sample in list(self._sample.items()):
            if sample.holds + sample.waits < 0.02:
                del self._sample[call_site]
            else:
                self._sample[call_site] = Sample._make([value / 2.0 for value in sample])

    def of(self, call_site: K) -> HoldProfile:
        """Return what a report says of a call site."""
        places = self.places.get(call_site)
        return HoldProfile(
            holds=self.holds.parts.get(call_site, 0),
            held_ms=self.held.parts.get(call_site, 0),
            waited_ms=self.waited.parts.get(call_site, 0),
            caused_ms=self.caused.parts.get(call_site, 0),
            where={} if places is None else dict(places.split.parts),
        )

    def absorb(self, closed: PoolProfile[K], heirs: Mapping[K, K]) -> None:
        """Add the profile of a pool that is gone, under the keys of the heirs of its call sites."""
        self.held.absorb(closed.held, heirs)
        self.holds.absorb(closed.holds, heirs)
        self.waited.absorb(closed.waited, heirs)
        self.caused.absorb(closed.caused, heirs)
        self._old_estimated_ms += closed._old_estimated_ms
        self._old_looks += closed._old_looks
        for call_site, places in closed.places.items():
            self.places_of(heirs.get(call_site, call_site)).absorb(places)


#: The most places in a sum of call sites; one for all others comes on top.
SUMMED_PLACES: Final = 8


def added_profiles(
    profiles: Sequence[HoldProfile], known: dict[str, None], places: int = SUMMED_PLACES
) -> HoldProfile:
    """Return the sum, with at most so many places and one for all others.

    `known`: the places that have an entry of their own. The first ones to be seen are added; they keep it, so
    that no sum goes back.
    """
    where: dict[str, int] = {}
    for profile in profiles:
        for place, ms in profile.where.items():
            if place not in known:
                if len(known) < places:
                    known[place] = None
                else:
                    place = OTHER_LABELS
            where[place] = where.get(place, 0) + ms
    return HoldProfile(
        holds=sum([profile.holds for profile in profiles]),
        held_ms=sum([profile.held_ms for profile in profiles]),
        waited_ms=sum([profile.waited_ms for profile in profiles]),
        caused_ms=sum([profile.caused_ms for profile in profiles]),
        where=where,
    )

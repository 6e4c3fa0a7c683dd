"""The sums of hold profiles over all processes that ever reported a call site. Pure.

- A program has a sum for each database and call site, of the increases that its processes report. So what an
  ended process has reported stays in it, and no sum ever goes back.
- A process whose pool has closed, or that was dropped and is back, was counted for more than its present
  records say. The difference is its surplus. What takes over these counts uses the surplus up first: the
  remains of closed pools, and call sites that are new in a full report. So nothing counts twice.
- Recent is what was added in the current window of the replica's clock and the one before.
- A program has a bounded number of sums and labels: what comes later counts as `OTHER_CALL_SITES` or
  `OTHER_LABELS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from connmon.cluster.state.times import WINDOW_SECONDS
from connmon.protocol.reports import NO_PROFILE, HoldProfile, excess
from connmon.protocol.rows import RowKey
from connmon.protocol.values import IN_DATABASE, LARGEST, OTHER_CALL_SITES, OTHER_LABELS
from connmon.protocol.verdicts import TopCallSite, top_call_site

#: The database of what is reported of several pools.
UNKNOWN_DATABASE: Final[RowKey] = ()
#: No profile may have more: the bound of `Where`.
MOST_LABELS: Final = 16

SiteKey: TypeAlias = tuple[RowKey, str]
"""Database and call site."""
Profiles: TypeAlias = dict[str, dict[RowKey, HoldProfile]]
"""By call site, then by database."""

PackedProfiles: TypeAlias = bytes
NO_PROFILES_PACKED: Final[PackedProfiles] = b""
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Profiles)


def packed_profiles(profiles: Profiles) -> PackedProfiles:
    """Return the profiles as bytes: they take a fifth of the memory."""
    return _encoder.encode(profiles) if profiles else NO_PROFILES_PACKED


def unpacked_profiles(data: PackedProfiles) -> Profiles:
    """Return packed profiles. Raises msgspec.MsgspecError where these are none."""
    return _decoder.decode(data) if data else {}


# --- Arithmetic -------------------------------------------------------------------------------


def fewer_labels(where: dict[str, int]) -> dict[str, int]:
    """Return at most `MOST_LABELS`: the database's and the largest ones, the rest as `OTHER_LABELS`."""
    if len(where) <= MOST_LABELS:
        return where
    named = [label for label in where if label not in (IN_DATABASE, OTHER_LABELS)]
    named.sort(key=lambda label: (-where[label], label))
    kept = {IN_DATABASE, *named[: MOST_LABELS - 2]}
    fewer = {label: ms for label, ms in where.items() if label in kept}
    fewer[OTHER_LABELS] = min(sum(where.values()) - sum(fewer.values()), LARGEST)
    return fewer


def added(a: HoldProfile, b: HoldProfile) -> HoldProfile:
    """Return the sum, with at most `MOST_LABELS` and no count above `LARGEST`."""
    where = dict(a.where)
    for label, ms in b.where.items():
        where[label] = min(where.get(label, 0) + ms, LARGEST)
    return HoldProfile(
        holds=min(a.holds + b.holds, LARGEST),
        held_ms=min(a.held_ms + b.held_ms, LARGEST),
        waited_ms=min(a.waited_ms + b.waited_ms, LARGEST),
        caused_ms=min(a.caused_ms + b.caused_ms, LARGEST),
        where=fewer_labels(where),
    )


def relabelled(profile: HoldProfile, labels: Labels) -> HoldProfile:
    """Return the profile by the labels that have a place; the rest as `OTHER_LABELS`."""
    where: dict[str, int] = {}
    for label, ms in profile.where.items():
        own = labels.shown(label)
        where[own] = min(where.get(own, 0) + ms, LARGEST)
    return replace(profile, where=where)


def highest(a: HoldProfile, b: HoldProfile) -> HoldProfile:
    """Return the larger one of each count."""
    return added(b, excess(a, b))


def is_nothing(profile: HoldProfile) -> bool:
    return not (
        profile.holds
        or profile.held_ms
        or profile.waited_ms
        or profile.caused_ms
        or any(profile.where.values())
    )


# --- Sums -------------------------------------------------------------------------------------


class Labels:
    """The labels of one call site in all databases: none that has a place ever loses it.

    Two of the `most` places are kept for the database and all others.
    """

    __slots__ = ("_most", "names")

    def __init__(self, most: int) -> None:
        self._most = most
        self.names: set[str] = set()
        """Those that have a place, but for these two."""

    def __repr__(self) -> str:
        return f"<Labels: {len(self.names)} of {self._most}>"

    def shown(self, label: str) -> str:
        """Return the label that this one counts as by now."""
        return label if label == IN_DATABASE or label in self.names else OTHER_LABELS

    def place(self, label: str) -> str:
        """Return the same, and give the label a place if there is one."""
        if len(self.names) < self._most - 2 and label not in (IN_DATABASE, OTHER_LABELS):
            self.names.add(label)
        return self.shown(label)


class HoldSum(Struct, array_like=True, gc=False):
    """The sum of one call site in one database. It refers to plain values only."""

    since: float
    """Since when it counts, by the replica's clock."""
    window: int
    """The window in which it last grew."""
    holds: int = 0
    held_ms: int = 0
    waited_ms: int = 0
    caused_ms: int = 0
    known_ms: int = 0
    """The sum over `where`."""
    unknown_ms: int = 0
    """The most that `settled_ms` has been above `known_ms` at a turn of the window; see `unknown`."""
    where: dict[str, int] = {}
    mark: HoldProfile = NO_PROFILE
    """Its profile before that window."""
    mark_before: HoldProfile = NO_PROFILE
    """Its profile before the window before that one."""
    stack: tuple[str, ...] = ()
    """The one reported last."""
    estimated: bool = False
    """Whether some of it is estimated from a sample of the checkouts."""

    def profile(self) -> HoldProfile:
        return HoldProfile(
            holds=self.holds,
            held_ms=self.held_ms,
            waited_ms=self.waited_ms,
            caused_ms=self.caused_ms,
            where=dict(self.where),
        )

    def recent(self, window: int) -> HoldProfile:
        """Return what was added in this window and the one before."""
        passed = window - self.window
        if passed > 1:
            return NO_PROFILE
        return excess(self.profile(), self.mark if passed else self.mark_before)

    def recent_ms(self, window: int) -> int:
        """Return `held_ms` of `recent`, which takes longer."""
        return max(0, self.held_ms - self.settled_ms(window))

    def settled_ms(self, window: int) -> int:
        """Return `held_ms` of what is not recent."""
        passed = window - self.window
        if passed > 1:
            return self.held_ms
        return (self.mark if passed == 1 else self.mark_before).held_ms

    def unknown(self, window: int) -> int:
        """Return of how much it was not known one to two minutes later where it went; never goes back."""
        return max(self.unknown_ms, self.settled_ms(window) - self.known_ms)

    def turn(self, window: int) -> None:
        """Begin another window, in which it grows now."""
        self.unknown_ms = self.unknown(window)
        profile = self.profile()
        self.mark_before = self.mark if window == self.window + 1 else profile
        self.mark, self.window = profile, window

    def grow(self, old: HoldProfile, new: HoldProfile, window: int) -> bool:
        """Add by how much `new` is above `old`.

        Return False, and add nothing, where a count went back or a label is new in either. This is the way
        of almost all reports, so it is written for speed.
        """
        after, before, where = new.where, old.where, self.where
        holds, held = new.holds - old.holds, new.held_ms - old.held_ms
        waited, caused = new.waited_ms - old.waited_ms, new.caused_ms - old.caused_ms
        if holds < 0 or held < 0 or waited < 0 or caused < 0 or len(after) != len(before):
            return False
        if window != self.window:
            self.turn(window)
        known = 0
        label = ""
        try:
            for label, ms in after.items():
                more = ms - before[label]
                if more > 0:
                    where[label] += more
                    known += more
                elif more:
                    raise KeyError
        except KeyError:
            for done in after:
                if done == label:
                    return False
                if more := after[done] - before[done]:
                    where[done] -= more
        self.holds = holds = self.holds + holds
        self.held_ms = held = self.held_ms + held
        self.waited_ms = waited = self.waited_ms + waited
        self.caused_ms = caused = self.caused_ms + caused
        self.known_ms = known = self.known_ms + known
        if holds + held + waited + caused + known > LARGEST:
            self._bound()
        return True

    def add(self, more: HoldProfile, window: int, labels: Labels, *, recent: bool) -> None:
        """Add this; `labels` are those of its call site. `recent`: whether it has just happened."""
        if not recent:
            self.unknown_ms = self.unknown(window)
        elif window != self.window:
            self.turn(window)
        folded: dict[str, int] = {}
        for label, ms in more.where.items():
            if ms:
                own = labels.place(label)
                self.where[own] = self.where.get(own, 0) + ms
                folded[own] = folded.get(own, 0) + ms
        self.holds += more.holds
        self.held_ms += more.held_ms
        self.waited_ms += more.waited_ms
        self.caused_ms += more.caused_ms
        self.known_ms += sum(folded.values())
        self._bound()
        if not recent:
            past = replace(more, where=folded)
            self.mark, self.mark_before = added(self.mark, past), added(self.mark_before, past)
            self.unknown_ms = self.unknown(window)

    def _bound(self) -> None:
        """Keep every count within what readers accept."""
        # A label is at most the sum over labels.
        if (
            self.held_ms > LARGEST
            or self.known_ms > LARGEST
            or self.holds > LARGEST
            or self.waited_ms > LARGEST
            or self.caused_ms > LARGEST
        ):
            self.holds, self.held_ms = min(self.holds, LARGEST), min(self.held_ms, LARGEST)
            self.waited_ms, self.caused_ms = min(self.waited_ms, LARGEST), min(self.caused_ms, LARGEST)
            self.known_ms = min(self.known_ms, LARGEST)
            for label, ms in self.where.items():
                self.where[label] = min(ms, LARGEST)


#: A sum without call site, labels and stack: the struct, its marks, its place in the table.
_SUM_WEIGHT: Final = 1024


def sum_weight(call_site: str, hold_sum: HoldSum) -> int:
    """Return what a sum weighs, roughly in bytes. Its marks have the same labels."""
    labels = 256 * len(hold_sum.where) + sum(map(len, hold_sum.where))
    return _SUM_WEIGHT + len(call_site) + labels + stack_weight(hold_sum.stack)


def stack_weight(stack: tuple[str, ...]) -> int:
    return 64 * len(stack) + sum(map(len, stack))


class HoldSums:
    """The sums of one program on one host, by database and call site, in the order they were first seen."""

    __slots__ = ("_labels", "by_database", "names", "number", "weight")

    def __init__(self, by_database: Mapping[RowKey, dict[str, HoldSum]] | None = None) -> None:
        self._labels: dict[str, Labels] = {}
        self.by_database: dict[RowKey, dict[str, HoldSum]] = dict(by_database or {})
        self.names = {call_site for sums in self.by_database.values() for call_site in sums}
        """The call sites that have a sum."""
        self.number = sum(map(len, self.by_database.values()))
        self.weight = sum(sum_weight(call_site, hold_sum) for _, call_site, hold_sum in self)

    def __repr__(self) -> str:
        return f"<HoldSums: {self.number} call sites in {len(self.by_database)} databases>"

    def __iter__(self) -> Iterator[tuple[RowKey, str, HoldSum]]:
        for database, sums in self.by_database.items():
            for call_site, hold_sum in sums.items():
                yield database, call_site, hold_sum

    def at(self, database: RowKey, call_site: str) -> HoldSum | None:
        """Return the sum; None: there is none."""
        sums = self.by_database.get(database)
        return None if sums is None else sums.get(call_site)

    def labels_of(self, call_site: str, most: int) -> Labels:
        """Return the labels of one call site; so many have a place if none had one before."""
        labels = self._labels.get(call_site)
        if labels is None:
            labels = self._labels[call_site] = Labels(most)
            for sums in self.by_database.values():
                if call_site in sums:
                    labels.names.update(sums[call_site].where)
            labels.names -= {IN_DATABASE, OTHER_LABELS}
        return labels

    def put(self, database: RowKey, call_site: str, hold_sum: HoldSum) -> None:
        """Add a sum that is new here."""
        self.by_database.setdefault(database, {})[call_site] = hold_sum
        self.names.add(call_site)
        self.number += 1
        self.weight += sum_weight(call_site, hold_sum)


def top_of(program: str, sums: HoldSums, database: RowKey, window: int) -> TopCallSite | None:
    """Return the call site that takes most of a program's recent time in a database; None: there is none.

    Time of which the database is not known may be of this one too, so it counts among all of the time.
    """
    times = {name: one.recent_ms(window) for name, one in sums.by_database.get(database, {}).items()}
    top = max(times, key=lambda name: (times[name], name), default=None)
    if top is None:
        return None
    unknown = sums.by_database.get(UNKNOWN_DATABASE, {}).values()
    held_ms = sum(times.values()) + sum([one.recent_ms(window) for one in unknown])
    others = [held for key, held in sums.by_database.items() if key not in (database, UNKNOWN_DATABASE)]
    shared = any(one.recent_ms(window) for held in others for one in held.values())
    # SQLite and sockets have a whole path here; the reason has the pool's URL besides.
    name = str(database[4] or database[2] or "").rpartition("/")[2] or "this database"
    profile = sums.by_database[database][top].recent(window)
    return top_call_site(program, held_ms, top, profile, name if shared else None)


def recent_seconds(since: float, window: int, reported: float | None) -> float:
    """Return what recent sums cover: until `reported`, or until this window began if that was later."""
    begin = window * WINDOW_SECONDS
    end = begin if reported is None else max(begin, reported)
    return max(0.0, end - max(begin - WINDOW_SECONDS, since))


def other_name(sums: HoldSums, database: RowKey) -> SiteKey:
    """Return what counts for a call site that there is no place for."""
    return (database if sums.at(database, OTHER_CALL_SITES) else UNKNOWN_DATABASE), OTHER_CALL_SITES

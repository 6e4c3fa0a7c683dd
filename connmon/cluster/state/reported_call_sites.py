"""Take what a report says of a process's call sites into the tables, and their profiles into the sums. Pure.

- A full report replaces what is known of the call sites, a change replaces what it names. Those of a closed
  pool end with it; what they have counted stays in the sums (module `hold_profiles`).
- What a sum holds of a process never exceeds what the process has reported: its present records and its
  surplus say together how much that is.
- Profiles take room only while a quarter of it is free: processes, pools and connections come first. Without
  room a call site has no profile, and counts in no sum until there is room; a stack is dropped first.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from connmon.cluster.state.contents import Contents
from connmon.cluster.state.hold_profiles import (
    UNKNOWN_DATABASE,
    HoldSum,
    HoldSums,
    Profiles,
    SiteKey,
    added,
    fewer_labels,
    highest,
    is_nothing,
    other_name,
    stack_weight,
    sum_weight,
    unpacked_profiles,
)
from connmon.cluster.state.records import CallSiteRecord, EndedRecord, PoolRecord, ProcessRecord
from connmon.cluster.state.times import WINDOW_SECONDS, window_of
from connmon.cluster.state.weights import (
    call_site_weight,
    call_sites_weight,
    profile_weight,
    surpluses_weight,
)
from connmon.protocol.reports import HoldProfile, Report, SiteReport, excess
from connmon.protocol.rows import RowKey
from connmon.protocol.values import LARGEST, OTHER_LABELS


class Counting(NamedTuple):
    """How to take what a report's call sites count beyond what is known."""

    when: Literal["recent", "past", "known"]
    """It has happened within the length of a window, or at an unknown time, or may be in the sums already."""
    since: float
    """It has happened since then, by the replica's clock; where `when` is not recent, now."""

    @classmethod
    def of(cls, clock: float, since: float) -> Counting:
        """Return how to take what has happened since a time."""
        return cls("recent", since) if clock - since <= WINDOW_SECONDS else cls("past", clock)


#: Databases of which the surplus of one call site is kept apart.
_MOST_DATABASES: Final = 16


class ReportedCallSites:
    """The call sites of processes, and the sums of their profiles. Those of a closed pool end with it."""

    def __init__(self, contents: Contents) -> None:
        self._room = contents.room
        self._now = contents.now
        self._groups = contents.groups
        self._settings = contents.settings
        self._most = contents.settings.limits.sites

    def take(self, process: ProcessRecord, report: Report, counting: Counting) -> None:
        """Replace (full report) or change the process's call sites; beyond the limit the first ones stay."""
        reported = report.site_reports()
        before: dict[int, dict[str, CallSiteRecord]] = {}
        had_room = not process.unprofiled
        if report.full:
            if process.sites:
                self._room.weight -= call_sites_weight(process)
                before, process.sites = process.sites, {}
                # First what is not reported any more, since other call sites may have taken over its counts.
                self._leave(process, before, {(one.pool, one.call_site) for one in reported})
            process.unprofiled = False
        elif not reported:
            return
        group = self._groups.by_key[process.program_key]
        if group.holds is None:
            group.holds = HoldSums()
        taking = _Taking(self, process, report, before, group.holds, counting, had_room)
        taking.take_all(reported)
        self._leave(process, before, set())

    def forget(self, process: ProcessRecord, pool: PoolRecord) -> None:
        """Remove those of one pool, which is closed."""
        for name, record in process.sites.pop(pool.number, {}).items():
            self._room.weight -= call_site_weight(name, record.profile)
            self._add_surplus(process, (pool.database, name), record.profile)

    def come_back(self, process: ProcessRecord, ended: EndedRecord) -> Counting:
        """Take over what the sums have of a process that was dropped; return how to take its first report."""
        group = self._groups.by_key.get(process.program_key)
        # A younger group has never had the process.
        if group is None or group.born > ended.version:
            return Counting("past", self._now.clock)
        if ended.profiles is None:
            return Counting("known", self._now.clock)
        try:
            process.surplus = unpacked_profiles(ended.profiles)
        except (msgspec.MsgspecError, ValueError):  # nothing here makes such ones; applying must not raise
            return Counting("known", self._now.clock)
        self._room.weight += surpluses_weight(process)
        return Counting.of(self._now.clock, ended.reported)

    # --- what the sums have of a process beyond its records

    def _leave(
        self,
        process: ProcessRecord,
        before: dict[int, dict[str, CallSiteRecord]],
        reported: set[tuple[int, str]],
    ) -> None:
        """Remove those that are not reported any more from `before`, and note what they had counted."""
        for number, call_sites in before.items():
            pool = process.pools.get(number)
            database = UNKNOWN_DATABASE if pool is None else pool.database
            for name in [name for name in call_sites if (number, name) not in reported]:
                self._add_surplus(process, (database, name), call_sites.pop(name).profile)

    def _add_surplus(self, process: ProcessRecord, key: SiteKey, profile: HoldProfile | None) -> None:
        if profile is None or is_nothing(profile):
            return
        (database, name), surplus = key, process.surplus
        # Beyond these limits comes only a process that means harm.
        if name not in surplus and len(surplus) >= self._most:
            name = next(iter(surplus))
        of_name = surplus.setdefault(name, {})
        if database not in of_name and len(of_name) >= _MOST_DATABASES:
            database = next(iter(of_name))
        known = of_name.get(database)
        of_name[database] = profile if known is None else added(known, profile)
        self._room.weight += call_site_weight(name, of_name[database]) - (
            0 if known is None else call_site_weight(name, known)
        )

    def use_surplus(self, process: ProcessRecord, key: SiteKey, more: HoldProfile) -> HoldProfile:
        """Return what of an increase is not in the sums yet; the rest is taken from the surplus."""
        database, name = key
        of_name = process.surplus.get(name)
        if of_name is None:
            return more
        # The database of a pool can become known between.
        for one in sorted(of_name, key=lambda other: other != database):
            known = of_name.pop(one)
            self._room.weight -= call_site_weight(name, known)
            left, more = excess(known, more), excess(more, known)
            more, left = _without_folded(more, left)
            if not is_nothing(left):
                of_name[one] = left
                self._room.weight += call_site_weight(name, left)
            if is_nothing(more):
                break
        if not of_name:
            del process.surplus[name]
        return more

    # --- sums

    def add(self, sums: HoldSums, key: SiteKey, more: HoldProfile, recent_since: float | None) -> HoldSum:
        """Add an increase to the sum of this database and call site; return the sum.

        `recent_since`: since when it has happened, by the replica's clock; None: it is long past.
        """
        (_, name), hold_sum = self._sum_at(sums, key)
        before = sum_weight(name, hold_sum)
        recent = recent_since is not None
        labels = sums.labels_of(name, self._settings.site_labels)
        hold_sum.add(more, window_of(self._now.clock), labels, recent=recent)
        if recent_since is not None and recent_since < hold_sum.since:
            hold_sum.since = recent_since
        self._weigh(sums, sum_weight(name, hold_sum) - before)
        return hold_sum

    def _sum_at(self, sums: HoldSums, key: SiteKey) -> tuple[SiteKey, HoldSum]:
        """Return the sum that counts this database and call site, and its key: perhaps that of all others."""
        hold_sum = sums.at(*key)
        if hold_sum is not None:
            return key, hold_sum
        hold_sum = HoldSum(since=self._now.clock, window=window_of(self._now.clock))
        fits = sums.number < self._settings.program_call_sites - 1
        if not fits or sum_weight(key[1], hold_sum) > self._room.spare:
            key = other_name(sums, key[0])
            known = sums.at(*key)
            if known is not None:
                return key, known
        before = sums.weight
        sums.put(*key, hold_sum)
        self._room.weight += sums.weight - before
        return key, hold_sum

    def _weigh(self, sums: HoldSums, more: int) -> None:
        sums.weight += more
        self._room.weight += more

    def keep_stack(self, sums: HoldSums, key: SiteKey, stack: tuple[str, ...]) -> None:
        """Keep the stack reported last; where there is no room, none."""
        hold_sum = sums.at(*key)
        if hold_sum is None:
            return
        self._weigh(sums, -stack_weight(hold_sum.stack))
        hold_sum.stack = stack if stack_weight(stack) <= self._room.spare else ()
        self._weigh(sums, stack_weight(hold_sum.stack))

    def profile_with_room(self, profile: HoldProfile | None, old: HoldProfile | None) -> HoldProfile | None:
        """Return the part that fits of a profile that replaces another one; None: nothing fits."""
        if profile is None:
            return None
        more = profile_weight(profile) - profile_weight(old)
        if more <= 0 or more <= self._room.spare:
            return profile
        if old is None:
            return None
        where = {label: ms for label, ms in profile.where.items() if label in old.where}
        rest = sum(profile.where.values()) - sum(where.values())
        where[OTHER_LABELS] = min(where.get(OTHER_LABELS, 0) + rest, LARGEST)
        return replace(profile, where=fewer_labels(where))


class _Taking:
    """Takes the call sites of one report."""

    __slots__ = (
        "_before", "_counting", "_had_room", "_number", "_owner", "_process", "_report", "_sums", "_window",
    )  # fmt: skip

    def __init__(
        self,
        owner: ReportedCallSites,
        process: ProcessRecord,
        report: Report,
        before: dict[int, dict[str, CallSiteRecord]],
        sums: HoldSums,
        counting: Counting,
        had_room: bool,
    ) -> None:
        """`had_room`: whether there was room for everything that the process had reported before."""
        self._owner = owner
        self._process = process
        self._report = report
        self._before = before
        self._sums = sums
        self._counting = counting
        self._had_room = had_room
        self._window = window_of(owner._now.clock)
        self._number = sum([len(call_sites) for call_sites in process.sites.values()])
        """Call sites that the process has now."""

    def take_all(self, reported: tuple[SiteReport, ...]) -> None:
        """Take the call sites of the report. Written for speed: almost all are known, and grow."""
        process, window, sites = self._process, self._window, self._process.sites
        quick = self._counting.when == "recent" and not process.surplus
        number = -1
        database: RowKey | None = None
        call_sites: dict[str, CallSiteRecord] | None = None
        sums: dict[str, HoldSum] = {}
        for report in reported:
            if report.pool != number or call_sites is None:
                number = report.pool
                database = self._database(number)
                call_sites = sites.get(number)
                sums = self._sums.by_database.get(database or UNKNOWN_DATABASE, {})
            if database is None:
                continue
            name, profile = report.call_site, report.profile
            known = None if call_sites is None else call_sites.get(name)
            if call_sites is None or known is None:
                self._add(report, database)
                call_sites = None
                continue
            old = known.profile
            if (
                quick
                and profile is not None
                and old is not None
                and (hold_sum := sums.get(name)) is not None
                and hold_sum.grow(old, profile, window)
            ):
                if report.share < 1.0:
                    hold_sum.estimated = True
            else:
                profile = self._count(report, database, old)
                sums = self._sums.by_database.get(database, {})
            call_sites[name] = CallSiteRecord.of(report, profile)
            if report.stack:
                self._owner.keep_stack(self._sums, (database, name), report.stack)

    def _database(self, number: int) -> RowKey | None:
        """Return the database of a pool; None: there is no such pool."""
        if not number:  # of several pools
            return UNKNOWN_DATABASE
        pool = self._process.pools.get(number)
        return None if pool is None else pool.database

    def _add(self, report: SiteReport, database: RowKey) -> None:
        """Take a call site that is not there, where there is a place and room for it."""
        process, number, name, room = self._process, report.pool, report.call_site, self._owner._room
        before = self._before.get(number, {}).pop(name, None)
        if self._number >= self._owner._most or call_site_weight(name, None) > room.free:
            if before is not None:
                self._before[number][name] = before
            process.unprofiled = True
            return
        self._number += 1
        old = None if before is None else before.profile
        room.weight += call_site_weight(name, old)
        profile = self._count(report, database, old, new=before is None)
        process.sites.setdefault(number, {})[name] = CallSiteRecord.of(report, profile)
        if report.stack:
            self._owner.keep_stack(self._sums, (database, name), report.stack)

    def _count(
        self, report: SiteReport, database: RowKey, old: HoldProfile | None, *, new: bool = False
    ) -> HoldProfile | None:
        """Add what the profile counts beyond `old` to its sum; return what is kept of the profile.

        `new`: whether the process has not reported the call site before.
        """
        owner, process, key = self._owner, self._process, (database, report.call_site)
        profile = report.profile
        if profile is not None and old is not None:
            profile = highest(profile, old)  # counts that go back do not count again
        profile = owner.profile_with_room(profile, old)
        owner._room.weight += profile_weight(profile) - profile_weight(old)
        if profile is None:
            if old is not None:
                owner._add_surplus(process, key, old)
            elif report.profile is not None:
                process.unprofiled = True
            return None
        more = profile if old is None else excess(profile, old)
        # Also in another pool, a call site that is new in a full report may have been counted before.
        again = old is None and (self._report.full or not self._had_room)
        if process.surplus and (again or _takes_over(process, report.pool)):
            more = owner.use_surplus(process, key, more)
        when, since = self._counting
        if when != "known" and (not is_nothing(more) or old is None):
            recent = when == "recent" and (old is not None or (new and self._is_young(report)))
            hold_sum = owner.add(self._sums, key, more, since if recent else None)
            if report.share < 1.0:
                hold_sum.estimated = True
        return profile

    def _is_young(self, report: SiteReport) -> bool:
        """Whether a call site that is new here is new."""
        if not self._had_room:
            return False
        return not any(pool.moved and pool.number == report.pool for pool in self._report.pools)


def _takes_over(process: ProcessRecord, number: int) -> bool:
    """Whether a pool has the remains of closed pools, or is a sum of several."""
    return number == 0 or not process.pools[number].gauges.pools


def _without_folded(more: HoldProfile, left: HoldProfile) -> tuple[HoldProfile, HoldProfile]:
    """Take the labels that a surplus has and an increase lacks from the increase of all other labels.

    A pool's call site can have labels that the call site which takes over its counts has no place for.
    """
    folded = more.where.get(OTHER_LABELS, 0)
    if not folded or left.held_ms or not left.where:
        return more, left
    labels, where = dict(left.where), dict(more.where)
    for label, ms in left.where.items():
        taken = min(ms, folded)
        labels[label], folded = ms - taken, folded - taken
    where[OTHER_LABELS] = folded
    return replace(more, where=where), replace(left, where=labels)


def counted_profiles(process: ProcessRecord) -> Profiles:
    """Return what the sums have of a process."""
    counted = {name: dict(of_name) for name, of_name in process.surplus.items()}
    for number, call_sites in process.sites.items():
        database = process.pools[number].database if number in process.pools else UNKNOWN_DATABASE
        for name, record in call_sites.items():
            if record.profile is not None:
                of_name = counted.setdefault(name, {})
                known = of_name.get(database)
                of_name[database] = record.profile if known is None else added(known, record.profile)
    return counted

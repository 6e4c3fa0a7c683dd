"""Where connection time goes, by call site, in a stretch of time. Pure: no I/O, no time.

- The last one to two minutes are in the rows of a node. Any other stretch is the difference of two answers:
  totals that all nodes have, so the second answer may be another node's.
- Nothing is negative. Totals begin again only with another epoch (all nodes have forgotten them: there is no
  profile then), or with a call site whose program was forgotten and has come back.
- The places of a call site sum to at most what it held; the rest is not known. A place may be reported later
  than the hold: where a difference has more in places than was held, the places are scaled down.
- Means are over the time that the reports of a call site's processes cover, not over that between the two
  answers: a process that reports every 5 s reports 5 s at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter

from msgspec.structs import replace

from connmon.errors import ConnmonError
from connmon.protocol.reports import NO_PROFILE, HoldProfile, excess
from connmon.protocol.rows import RowKey, SiteRow
from connmon.protocol.values import IN_DATABASE


@dataclass(frozen=True)
class SiteTime:
    """What one call site held in a stretch of time, and where its holders were."""

    host: str
    program: str
    call_site: str
    seconds: float
    """What the reports cover of the stretch, above 0."""
    profile: HoldProfile
    """Of the stretch; `where` sums to at most `held_ms`."""
    estimated: bool
    """Whether holds and time are estimated from a sample of the checkouts."""

    @property
    def mean_held(self) -> float:
        """Connections held on average."""
        return self.profile.held_ms / 1000.0 / self.seconds


@dataclass(frozen=True)
class MeasuredProfile:
    """The call sites of a stretch of time."""

    node: str
    """The node that answered last."""
    seconds: float
    """The stretch."""
    sites: Sequence[SiteTime]
    """Those that held or waited, by `SiteTime.mean_held`, the largest first."""
    without: Sequence[tuple[str, str]] = field(default=())
    """Host and program of those whose connmon is of a version that keeps no profile."""

    @cached_property
    def mean_held(self) -> float:
        return sum(site.mean_held for site in self.sites)

    @cached_property
    def several_hosts(self) -> bool:
        return len({site.host for site in self.sites}) > 1


@dataclass(frozen=True)
class SiteTotals:
    """The call sites of one answer of a node, with their totals."""

    node: str
    epoch: str
    version: int
    rows: Sequence[SiteRow]

    @property
    def programs(self) -> list[str]:
        return sorted({row.program for row in self.rows})

    def of(self, programs: Collection[str]) -> SiteTotals:
        """Return those of some programs; of all, if none is named."""
        if not programs:
            return self
        rows = [row for row in self.rows if row.program in programs]
        return SiteTotals(self.node, self.epoch, self.version, rows)


def recent_profile(totals: SiteTotals) -> MeasuredProfile:
    """Return the profile of the last one to two minutes, as the node keeps it."""
    stretch_seconds = max((row.recent_seconds for row in totals.rows), default=0.0)
    latest = max((row.reported for row in totals.rows if row.reported is not None), default=0.0)
    sites = []
    for row in totals.rows:
        # A call site that was first seen in the stretch held nothing before; only what comes after the last
        # report is not known.
        lag = stretch_seconds if row.reported is None else latest - row.reported
        seconds = max(row.recent_seconds, stretch_seconds - lag)
        if row.recent is not None and seconds > 0.0:
            sites.append(_site_time(row, seconds, row.recent))
    return _sorted_profile(totals, stretch_seconds, sites)


def profile_between(before: SiteTotals, after: SiteTotals, seconds: float) -> MeasuredProfile:
    """Return the profile between two answers, `seconds` apart (above 0).

    Raises ConnmonError if there is no difference between them.
    """
    if before.epoch not in ("", after.epoch):  # "": it had heard of nothing yet
        raise ConnmonError(
            "the nodes have restarted and forgotten the totals that were measured: measure again"
        )
    if after.version < before.version:
        raise ConnmonError(f"{after.node} is behind {before.node}, which was read before: measure again")
    earlier: Mapping[RowKey, SiteRow] = {row.key: row for row in before.rows}
    sites = []
    for row in after.rows:
        if row.profile is not None:
            earlier_row = earlier.get(row.key)
            since = NO_PROFILE if earlier_row is None or earlier_row.profile is None else earlier_row.profile
            site_seconds = _between_reports(earlier_row, row) or seconds
            sites.append(_site_time(row, site_seconds, _difference(since, row.profile)))
    return _sorted_profile(after, seconds, sites)


def _site_time(row: SiteRow, seconds: float, profile: HoldProfile) -> SiteTime:
    where = fitted({label: ms for label, ms in profile.where.items() if ms}, profile.held_ms)
    return SiteTime(
        host=row.host,
        program=row.program,
        call_site=row.call_site,
        seconds=seconds,
        profile=replace(profile, where=where),
        estimated=row.estimated,
    )


def _sorted_profile(totals: SiteTotals, seconds: float, sites: Iterable[SiteTime]) -> MeasuredProfile:
    active = [site for site in sites if site.profile != NO_PROFILE]
    active.sort(key=attrgetter("program", "host", "call_site"))
    active.sort(key=attrgetter("mean_held"), reverse=True)
    having = {(row.host, row.program) for row in totals.rows if row.profile is not None}
    lacking = {(row.host, row.program) for row in totals.rows} - having
    return MeasuredProfile(totals.node, seconds, active, sorted(lacking))


def _between_reports(before: SiteRow | None, after: SiteRow) -> float:
    """Return the seconds between the latest reports of the two answers; 0: not known, or none has come."""
    if before is None or before.reported is None or after.reported is None:
        return 0.0
    return max(0.0, after.reported - before.reported)


def _difference(before: HoldProfile, after: HoldProfile) -> HoldProfile:
    if after.held_ms < before.held_ms or after.holds < before.holds:  # it was forgotten, and has come back
        return after
    return excess(after, before)


def fitted(where: Mapping[str, int], held_ms: int) -> dict[str, int]:
    """Return the places, scaled down so that they sum to at most `held_ms`. Their ratios stay."""
    looked_ms = sum(where.values())
    if looked_ms <= held_ms:
        return dict(where)
    scaled = {label: ms * held_ms // looked_ms for label, ms in where.items()}
    # What rounding down has lost goes to the places that have lost most.
    lost = sorted(where, key=lambda label: (-(where[label] * held_ms % looked_ms), label))
    for label in lost[: held_ms - sum(scaled.values())]:
        scaled[label] += 1
    return {label: ms for label, ms in scaled.items() if ms}


def unknown_ms(profile: HoldProfile) -> int:
    """Return how much of `held_ms` nobody looked at."""
    return max(0, profile.held_ms - sum(profile.where.values()))


def database_share(profile: HoldProfile) -> float | None:
    """Return the part of the time looked at in which holders were in the database. None: nobody looked."""
    looked_ms = sum(profile.where.values())
    return profile.where.get(IN_DATABASE, 0) / looked_ms if looked_ms else None


def total_of(sites: Iterable[SiteTime]) -> HoldProfile:
    """Return the sum over call sites."""
    holds = held_ms = waited_ms = caused_ms = 0
    where: dict[str, int] = {}
    for profile in (site.profile for site in sites):
        holds += profile.holds
        held_ms += profile.held_ms
        waited_ms += profile.waited_ms
        caused_ms += profile.caused_ms
        for label, ms in profile.where.items():
            where[label] = where.get(label, 0) + ms
    return HoldProfile(holds=holds, held_ms=held_ms, waited_ms=waited_ms, caused_ms=caused_ms, where=where)

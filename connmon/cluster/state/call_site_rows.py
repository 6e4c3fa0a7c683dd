"""Make the rows by call site: each sums the processes of one program on one host. Pure; changes only caches.

- What a call site holds now is taken from the connections, which are reported whenever they change. A call
  site that is not reported by itself, or whose profile is not summed by itself, has a row where it has a
  verdict; else it is part of `OTHER_CALL_SITES`.
- Where its time went comes from the sums of its program, so a call site keeps its row as long as its program
  has one. Narrowed to one process, it comes from the process's own records, of which recent is not known.
- Recent figures are as of the last report of the program, or of the begin of the present window if that is
  later: so an answer changes only where something is reported, or the window turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

from connmon.cluster.state.answer_frames import About, Sources, header, unchanged
from connmon.cluster.state.answers import selects
from connmon.cluster.state.groups import Group
from connmon.cluster.state.hold_profiles import (
    HoldSums,
    added,
    recent_seconds,
    relabelled,
    stack_weight,
)
from connmon.cluster.state.judging import name_of_pool
from connmon.cluster.state.records import ProcessRecord
from connmon.protocol.queries import Query
from connmon.protocol.reports import NO_PROFILE, HoldProfile
from connmon.protocol.rows import Row, Rows, SiteRow, Verdict
from connmon.protocol.values import LARGEST, OTHER_CALL_SITES
from connmon.protocol.verdicts import Stuck, call_site_reason, quoted

CallSiteKey: TypeAlias = tuple[str, str, str]
"""Host, program, call site."""


_NO_SUMS: Final = HoldSums()
#: What a row weighs without its stack, roughly in bytes.
_ROW_WEIGHT: Final = 1024


class _CallSite:
    """The sum over the processes of one program on one host."""

    __slots__ = (
        "estimated", "filled", "held", "hold_ms", "holds", "in_database", "lasted", "processes", "profile",
        "recent", "recent_seconds", "reported", "share", "stack", "stuck", "usual", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.processes: set[str] = set()
        self.held = self.in_database = self.waiting = self.holds = self.hold_ms = 0
        self.lasted: float | None = None
        """How many seconds its longest hold had lasted at the last report of its process."""
        self.reported = 0.0
        self.usual: float | None = None
        self.estimated = False
        self.stuck: dict[Stuck, tuple[int, float]] = {}
        """Leaked and blocked connections: how many, and how many seconds the longest was held."""
        self.filled: list[tuple[int, str, int, ProcessRecord, Verdict]] = []
        """Saturated pools of which it holds most: how many wait, the instance, the pool's number."""
        self.profile: HoldProfile | None = None
        self.recent: HoldProfile | None = None
        self.recent_seconds = 0.0
        self.share: float | None = None
        self.stack: tuple[str, ...] = ()

    def row(self, host: str, program: str, call_site: str) -> SiteRow:
        verdict = self._verdict()
        return SiteRow(
            host=host,
            program=program,
            call_site=call_site,
            processes=len(self.processes),
            held=min(self.held, LARGEST),
            in_database=self.in_database,
            held_since=None if self.lasted is None else self.reported - self.lasted,
            waiting=min(self.waiting, LARGEST),
            holds=min(self.holds, LARGEST),
            hold_ms=min(self.hold_ms, LARGEST),
            usual=self.usual,
            estimated=self.estimated,
            reported=self.reported,
            verdict=None if verdict is None else verdict.word,
            reason=None if verdict is None else verdict.reason,
            profile=self.profile,
            recent=self.recent,
            recent_seconds=self.recent_seconds,
            share=self.share,
            stack=self.stack,
        )

    def _verdict(self) -> Verdict | None:
        """Return the gravest; of several pools that it fills, that of the one for which most wait."""
        word: Stuck | None = "LEAK" if "LEAK" in self.stuck else "BLOCKED" if self.stuck else None
        if word is not None:
            return Verdict(word, call_site_reason(word, *self.stuck[word], self.usual))
        if not self.filled:
            return None
        _, _, number, process, verdict = max(self.filled, key=lambda pool: pool[:3])
        return quoted(verdict, name_of_pool(process, number, "program", len(self.filled) - 1))


def answer(sources: Sources, query: Query, about: About) -> Iterator[Rows]:
    """Yield the rows in frames; all of them, or none where nothing has changed for the reader."""
    contents, settings = sources.contents, sources.settings
    if query.epoch == contents.epoch and query.since > 0 and query.since >= contents.now.moved:
        yield unchanged(sources, about, query.since)
        return
    head = header(sources, about, contents.now.version, True)
    call_sites: dict[CallSiteKey, _CallSite] = {}
    seen = 0
    for process in list(contents.processes.by_instance.values()):
        if not process.sites or not selects(query, process):
            continue
        if seen >= settings.piece_records:
            seen = 0
            yield msgspec.structs.replace(head, more=True)
        seen += _add_reported(sources, process, call_sites, own=query.instance is not None)
        if not process.lost and process.held_since is not None:
            seen += _add_held(sources, process, call_sites, own=query.instance is not None)
    for group in [] if query.instance is not None else list(contents.groups.by_key.values()):
        if group.holds is None or not _is_selected(query, group):
            continue
        if seen >= settings.piece_records:
            seen = 0
            yield msgspec.structs.replace(head, more=True)
        seen += group.holds.number
        _add_sums(group, call_sites, contents.recent_times.window)
    rows: list[Row] = []
    weight = 0
    for key, call_site in call_sites.items():
        rows.append(call_site.row(*key))
        weight += _ROW_WEIGHT + stack_weight(call_site.stack)
        if len(rows) >= settings.frame_rows or weight > settings.frame_weight:
            yield msgspec.structs.replace(head, rows=tuple(rows), more=True)
            rows, weight = [], 0
    yield msgspec.structs.replace(head, rows=tuple(rows))


def _is_selected(query: Query, group: Group) -> bool:
    _, host, program = group.key
    return query.host in (None, host) and query.program in (None, program)


def _add_sums(group: Group, call_sites: dict[CallSiteKey, _CallSite], window: int) -> None:
    """Add where the time of a program's call sites went.

    A call site has the same labels in all databases, so none is folded here: a reader takes differences.
    """
    assert group.holds is not None
    _, host, program = group.key
    recent_ms = 0
    rows: dict[str, _CallSite] = {}
    for _, name, hold_sum in group.holds:
        sums = rows.get(name)
        if sums is None:
            key = str(host), str(program), name
            sums = rows[name] = call_sites.setdefault(key, _CallSite())
            sums.reported = max(sums.reported, group.reported or 0.0)
        profile, recent = hold_sum.profile(), hold_sum.recent(window)
        sums.profile = profile if sums.profile is None else added(sums.profile, profile)
        sums.recent = recent if sums.recent is None else added(sums.recent, recent)
        covered = recent_seconds(hold_sum.since, window, group.reported)
        sums.recent_seconds = max(sums.recent_seconds, covered)
        sums.stack = hold_sum.stack or sums.stack
        sums.estimated = sums.estimated or hold_sum.estimated
        recent_ms += recent.held_ms
    if recent_ms:
        for sums in rows.values():
            assert sums.recent is not None
            sums.share = min(sums.recent.held_ms / recent_ms, 1.0)


def _of(call_sites: dict[CallSiteKey, _CallSite], process: ProcessRecord, call_site: str) -> _CallSite:
    """Return the sum that a process's call site counts in, and count the process there."""
    key = process.process.host, process.process.program, call_site
    call_site_sum = call_sites.get(key)
    if call_site_sum is None:
        call_site_sum = call_sites[key] = _CallSite()
    if not process.lost:
        call_site_sum.processes.add(process.instance)
    call_site_sum.reported = max(call_site_sum.reported, process.reported)
    return call_site_sum


def _summed(sources: Sources, process: ProcessRecord) -> HoldSums:
    """Return the sums of a process's program."""
    group = sources.contents.groups.by_key.get(process.program_key)
    return _NO_SUMS if group is None or group.holds is None else group.holds


def _add_reported(
    sources: Sources, process: ProcessRecord, call_sites: dict[CallSiteKey, _CallSite], *, own: bool
) -> int:
    """Add what the process counts for its call sites; return how many records were looked at.

    `own`: whether the profiles are those of the process, and not those of its program.
    """
    seen = 0
    sums_of_program, labels = _summed(sources, process), sources.contents.settings.site_labels
    names = None if own else sums_of_program.names
    for reported in process.sites.values():
        for name, record in reported.items():
            seen += 1
            has_row = names is None or record.profile is None or name in names
            sums = _of(call_sites, process, name if has_row else OTHER_CALL_SITES)
            sums.waiting += 0 if process.lost else record.waiting
            sums.holds += record.holds
            sums.hold_ms += record.hold_ms
            if record.usual is not None and (sums.usual is None or record.usual > sums.usual):
                sums.usual = record.usual
            if record.share < 1.0:
                sums.estimated = True
            if own and record.profile is not None:
                profile = record.profile
                if name in sums_of_program.names:
                    profile = relabelled(profile, sums_of_program.labels_of(name, labels))
                sums.profile = added(sums.profile or NO_PROFILE, profile)
    return seen


def _add_held(
    sources: Sources, process: ProcessRecord, call_sites: dict[CallSiteKey, _CallSite], *, own: bool
) -> int:
    """Add what the process's call sites hold now; return how many records were looked at. `own` as above."""
    at, seen = process.reported, 0
    names = None if own else _summed(sources, process).names
    with_row = {
        name
        for reported in process.sites.values()
        for name, record in reported.items()
        if names is None or record.profile is None or name in names
    }
    for number, name, verdict, waiting in sources.judge.fillers(process):
        with_row.add(name)
        _of(call_sites, process, name).filled.append((waiting, process.instance, number, process, verdict))
    stuck = sources.judge.stuck(process)
    for connection in process.connections.values():
        if connection.held_since is None or connection.call_site is None:
            continue
        seen += 1
        word, lasted = stuck.get(connection.number), at - connection.held_since
        has_row = word is not None or connection.call_site in with_row
        sums = _of(call_sites, process, connection.call_site if has_row else OTHER_CALL_SITES)
        sums.held += 1
        sums.in_database += connection.holder_in == "database"
        if sums.lasted is None or lasted > sums.lasted:
            sums.lasted = lasted
        if word is not None:
            count, longest = sums.stuck.get(word, (0, 0.0))
            sums.stuck[word] = (count + 1, max(longest, lasted))
    return seen

"""Make the rows by call site: each sums the processes of one program on one host. Pure; changes only caches.

What a call site holds now is taken from the connections, which are reported whenever they change. A call site
that is not reported by itself has a row where it has a verdict; else it is part of `OTHER_CALL_SITES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from connmon.cluster.state.answer_frames import About, Sources, header, unchanged
from connmon.cluster.state.answers import selects
from connmon.cluster.state.judging import name_of_pool
from connmon.cluster.state.records import ProcessRecord
from connmon.protocol.queries import Query
from connmon.protocol.rows import Row, Rows, SiteRow, Verdict
from connmon.protocol.values import LARGEST, OTHER_CALL_SITES
from connmon.protocol.verdicts import Stuck, call_site_reason, quoted

CallSiteKey: TypeAlias = tuple[str, str, str]
"""Host, program, call site."""


class _CallSite:
    """The sum over the processes of one program on one host."""

    __slots__ = (
        "estimated", "filled", "held", "hold_ms", "holds", "in_database", "lasted", "processes", "reported",
        "stuck", "usual", "waiting",
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
        seen += _add_reported(process, call_sites)
        if not process.lost and process.held_since is not None:
            seen += _add_held(sources, process, call_sites)
    rows: list[Row] = []
    for key, call_site in call_sites.items():
        rows.append(call_site.row(*key))
        if len(rows) >= settings.frame_rows:
            yield msgspec.structs.replace(head, rows=tuple(rows), more=True)
            rows = []
    yield msgspec.structs.replace(head, rows=tuple(rows))


def _of(call_sites: dict[CallSiteKey, _CallSite], process: ProcessRecord, call_site: str) -> _CallSite:
    """Return the sum that a process's call site counts in, and count the process there."""
    key = process.process.host, process.process.program, call_site
    found = call_sites.get(key)
    if found is None:
        found = call_sites[key] = _CallSite()
    if not process.lost:
        found.processes.add(process.instance)
    found.reported = max(found.reported, process.reported)
    return found


def _add_reported(process: ProcessRecord, call_sites: dict[CallSiteKey, _CallSite]) -> int:
    """Add what the process counts for its call sites; return how many records were looked at."""
    seen = 0
    for reported in process.sites.values():
        for name, record in reported.items():
            seen += 1
            sums = _of(call_sites, process, name)
            sums.waiting += 0 if process.lost else record.waiting
            sums.holds += record.holds
            sums.hold_ms += record.hold_ms
            if record.usual is not None and (sums.usual is None or record.usual > sums.usual):
                sums.usual = record.usual
            if record.share < 1.0:
                sums.estimated = True
    return seen


def _add_held(sources: Sources, process: ProcessRecord, call_sites: dict[CallSiteKey, _CallSite]) -> int:
    """Add what the process's call sites hold now; return how many records were looked at."""
    at, seen = process.reported, 0
    own = {name for reported in process.sites.values() for name in reported}
    for number, name, verdict, waiting in sources.judge.fillers(process):
        own.add(name)
        _of(call_sites, process, name).filled.append((waiting, process.instance, number, process, verdict))
    stuck = sources.judge.stuck(process)
    for connection in process.connections.values():
        if connection.held_since is None or connection.call_site is None:
            continue
        seen += 1
        word, lasted = stuck.get(connection.number), at - connection.held_since
        has_row = word is not None or connection.call_site in own
        sums = _of(call_sites, process, connection.call_site if has_row else OTHER_CALL_SITES)
        sums.held += 1
        sums.in_database += connection.holder_in == "database"
        if sums.lasted is None or lasted > sums.lasted:
            sums.lasted = lasted
        if word is not None:
            count, longest = sums.stuck.get(word, (0, 0.0))
            sums.stuck[word] = (count + 1, max(longest, lasted))
    return seen

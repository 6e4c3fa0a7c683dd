"""The connection time of the call sites that take most, in Prometheus's text format. Pure.

- A counter for each call site and each place where its holders were; `unknown` is the time of which that was
  not known one to two minutes later. They sum to how long its connections were held, but for what is younger
  than that and not known yet; what becomes known later still counts as `unknown` and at its place.
- There are at most as many call sites as the config says, those that have taken most since they were first
  seen. How many others there are is a metric too.
- A series never goes back while it is there: the sums of the state do not.
- Names come from any client that reports. Those that are written alike are summed as one: two samples with
  the same labels would make Prometheus refuse the whole page.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappush, heappushpop
from typing import Final, NamedTuple

from connmon.cluster.export.prometheus import head, label, printable, slices
from connmon.cluster.state.hold_profiles import HoldSum, HoldSums

UNKNOWN: Final = "unknown"
#: Characters of a call site; of a longer one its end is shown.
SITE_CHARACTERS: Final = 256
#: Call sites whose text is written in one piece.
PIECE_CALL_SITES: Final = 250

NAME: Final = "connmon_hold_seconds_total"
HELP: Final = "How long connections were held, by call site and by where their holders were."
LEFT_OUT_NAME: Final = "connmon_hold_seconds_left_out"
LEFT_OUT_HELP: Final = "Call sites that have no connmon_hold_seconds_total, because others have taken more."


class _Candidate(NamedTuple):
    held_ms: int
    program: str
    """The labels of its program; of these and the name there is one candidate only."""
    name: str
    sums: list[HoldSum]


class TopCallSites:
    """The call sites of one scrape that have taken most time.

    `most` is how many; `window` is the present window of the replica's clock.
    """

    def __init__(self, most: int, window: int) -> None:
        self._most = most
        self._window = window
        self._number = 0
        self._programs: set[str] = set()
        self._top: list[_Candidate] = []
        """A heap: the one that has taken least comes first."""

    def __repr__(self) -> str:
        return f"<TopCallSites: {len(self._top)} of {self._number}>"

    def take(self, host: str, program: str, sums: HoldSums) -> None:
        """Take in the call sites of one program on one host; of programs written alike only the first."""
        labels = f"host={label(host)},program={label(program)}"
        by_name: dict[str, list[HoldSum]] = {}
        for _, name, hold_sum in sums:
            site = name if len(name) <= SITE_CHARACTERS else f"...{name[3 - SITE_CHARACTERS :]}"
            by_name.setdefault(printable(site), []).append(hold_sum)
        self._number += len(by_name)
        if labels in self._programs:
            return
        self._programs.add(labels)
        for name, own in by_name.items():
            candidate = _Candidate(sum([hold_sum.held_ms for hold_sum in own]), labels, name, own)
            if len(self._top) < self._most:
                heappush(self._top, candidate)
            else:
                heappushpop(self._top, candidate)

    def pages(self) -> Iterator[str]:
        """Yield the text in pieces; nothing without a limit above 0."""
        if not self._most:
            return
        yield head(NAME, HELP, "counter")
        for some in slices(sorted(self._top, reverse=True), PIECE_CALL_SITES):
            yield "".join(map(self._samples, some))
        left_out = self._number - len(self._top)
        yield f"{head(LEFT_OUT_NAME, LEFT_OUT_HELP, 'gauge')}{LEFT_OUT_NAME} {left_out}\n"

    def _samples(self, call_site: _Candidate) -> str:
        labels = f"{call_site.program},site={label(call_site.name)}"
        places = self._places(call_site.sums)
        return "".join(
            [f"{NAME}{{{labels},where={label(where)}}} {ms / 1000}\n" for where, ms in places.items()]
        )

    def _places(self, sums: list[HoldSum]) -> dict[str, int]:
        """Return milliseconds by where the holders were, as that is written, of one call site."""
        places: dict[str, int] = {}
        for hold_sum in sums:
            for where, ms in hold_sum.where.items():
                place = printable(where)
                places[place] = places.get(place, 0) + ms
        unknown = sum([hold_sum.unknown(self._window) for hold_sum in sums])
        if unknown or not places:
            places[UNKNOWN] = places.get(UNKNOWN, 0) + unknown
        return places

"""The connection time of the call sites that take most, in Prometheus's text format. Pure.

- A counter for each call site and each place where its holders were; `unknown` is the time of which that is
  not known. They sum to how long its connections were held.
- There are at most as many call sites as the config says, those that have taken most since they were first
  seen. How many others there are is a metric too.
- A series never goes back while it is there: the sums of the state do not, and labels beyond
  `PLACES` of one call site are summed up in the order in which they were first seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappush, heappushpop
from typing import Final, NamedTuple

from connmon.cluster.export.prometheus import head, label
from connmon.cluster.state.hold_profiles import HoldSum, HoldSums
from connmon.protocol.values import OTHER_LABELS

#: Values of the label `where` of one call site, without `unknown`.
PLACES: Final = 16
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
    host: str
    program: str
    name: str


class TopCallSites:
    """The call sites of one scrape that have taken most time; `most` is how many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._number = 0
        self._top: list[_Candidate] = []
        """A heap: the one that has taken least comes first."""
        self._sums: dict[tuple[str, str], HoldSums] = {}

    def __repr__(self) -> str:
        return f"<TopCallSites: {len(self._top)} of {self._number}>"

    def take(self, host: str, program: str, sums: HoldSums) -> None:
        """Take in the call sites of one program on one host."""
        held: dict[str, int] = {}
        for _, name, hold_sum in sums:
            held[name] = held.get(name, 0) + hold_sum.held_ms
        self._number += len(held)
        self._sums[host, program] = sums
        for name, held_ms in held.items():
            one = _Candidate(held_ms, host, program, name)
            if len(self._top) < self._most:
                heappush(self._top, one)
            else:
                heappushpop(self._top, one)

    def pages(self) -> Iterator[str]:
        """Yield the text in pieces; nothing without a limit above 0."""
        if not self._most:
            return
        yield head(NAME, HELP, "counter")
        written: set[str] = set()
        text: list[str] = []
        for number, one in enumerate(sorted(self._top, reverse=True), 1):
            site = one.name
            if len(site) > SITE_CHARACTERS:
                site = f"...{site[3 - SITE_CHARACTERS :]}"
            labels = f"host={label(one.host)},program={label(one.program)},site={label(site)}"
            if labels not in written:  # else Prometheus would refuse the page
                written.add(labels)
                sums = self._sums[one.host, one.program]
                own = [hold_sum for _, name, hold_sum in sums if name == one.name]
                text += [
                    f"{NAME}{{{labels},where={label(where)}}} {ms / 1000}\n"
                    for where, ms in _places(own).items()
                ]
            if number % PIECE_CALL_SITES == 0:
                yield "".join(text)
                text = []
        yield "".join(text)
        left_out = self._number - len(written)
        yield f"{head(LEFT_OUT_NAME, LEFT_OUT_HELP, 'gauge')}{LEFT_OUT_NAME} {left_out}\n"


def _places(sums: list[HoldSum]) -> dict[str, int]:
    """Return milliseconds by where the holders were, of one call site in all databases."""
    places: dict[str, int] = {}
    for hold_sum in sums:
        for where, ms in hold_sum.where.items():
            known = where in places or len(places) < PLACES - 1
            place = where if known else OTHER_LABELS
            places[place] = places.get(place, 0) + ms
    unknown = sum([hold_sum.unknown_ms for hold_sum in sums])
    if unknown or not places:
        places[UNKNOWN] = places.get(UNKNOWN, 0) + unknown
    return places

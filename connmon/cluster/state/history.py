"""The last minutes of each row, sampled by a node from its own replica. Pure.

It is there when a console opens, since the node keeps it whether anybody looks or not. The rules:

- Every node keeps its own, in memory: nothing of it is replicated, and a node that was restarted
  begins anew.
- Where the node does not know the present (no quorum, all processes of a row are lost) a sample says so, and
  does not repeat what was.
- Programs, hosts and databases come first, then processes; beyond `SERIES` rows there is no history
  of further ones. A row takes `SAMPLES` * 8 bytes.
- Sampling many rows goes on in pieces, so that nobody waits for it.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from connmon.cluster.state import answers
from connmon.cluster.state.tables import Tables
from connmon.protocol.queries import EVERYTHING, History, HistoryQuery, Series
from connmon.protocol.rows import RowKey

#: Seconds between two samples, and how many are kept: ten minutes.
INTERVAL: Final = 2.0
SAMPLES: Final = 300
#: How many rows have a history.
SERIES: Final = 20_000
#: Rows that are sampled before others have their turn.
PIECE: Final = 500
#: How many rows with timeouts an answer tells of.
MOST_TIMEOUTS: Final = 1_000

_UNKNOWN: Final = math.nan


class Past:
    """The history that one node keeps."""

    def __init__(self, samples: int = SAMPLES, series: int = SERIES) -> None:
        self._samples = samples
        self._series = series
        self.number = 0
        """How many samples were taken."""
        # Two rings of single floats, one behind the other: exact for connections up to 16 million.
        self._rings: dict[RowKey, array[float]] = {}
        self._seen: dict[RowKey, int] = {}
        """Timeouts so far, of each row."""
        self._timeouts: dict[RowKey, deque[tuple[int, int]]] = {}
        """Of rows that had some lately: the sample before which, and how many."""

    def sample(self, tables: Tables, known: bool) -> Iterator[None]:
        """Take one sample; a generator that is to be exhausted, with pauses as the caller likes.

        `known`: what the tables say is the present. Rows that went away are forgotten.
        """
        self.number += 1
        present: set[RowKey] = {EVERYTHING}
        total, _, _ = answers.totals(tables)
        self._add(EVERYTHING, total.checkouts_per_second, total.gauges.connections, known and total.known)
        for at, key in enumerate(list(tables.groups)):
            if at % PIECE == PIECE - 1:
                yield
            group = tables.groups.get(key)
            if group is not None:
                present.add(key)
                figures = answers.figures_of(group)
                self._add(
                    key, figures.checkouts_per_second, figures.gauges.connections, known and figures.known
                )
                self._count(key, figures.totals.timeouts)
        for at, instance in enumerate(list(islice(tables.processes, self._series))):
            if at % PIECE == PIECE - 1:
                yield
            process = tables.processes.get(instance)
            if process is not None:
                present.add(key := ("process", instance))
                self._add(key, process.rate, process.gauges.connections, known and not process.lost)
                self._count(key, process.totals.timeouts)
        for key in self._seen.keys() - present:
            del self._seen[key]
            self._rings.pop(key, None)
            self._timeouts.pop(key, None)

    def _add(self, key: RowKey, rate: float | None, connections: int, known: bool) -> None:
        ring = self._rings.get(key)
        if ring is None:
            if len(self._rings) >= self._series:
                return
            ring = self._rings[key] = array("f", [_UNKNOWN]) * (2 * self._samples)
        at = self.number % self._samples
        ring[at] = min(rate, 1e30) if known and rate is not None else _UNKNOWN
        ring[self._samples + at] = connections if known else _UNKNOWN

    def _count(self, key: RowKey, timeouts: int) -> None:
        """Note the timeouts that came since the last sample; those before the first do not count."""
        more = timeouts - self._seen.get(key, timeouts)
        self._seen[key] = timeouts
        if more > 0:
            self._timeouts.setdefault(key, deque()).append((self.number, more))
        recent = self._timeouts.get(key)
        if recent is not None:
            while recent and recent[0][0] <= self.number - self._samples:
                recent.popleft()
            if not recent:
                del self._timeouts[key]

    def answer(self, query: HistoryQuery, service: str, node: str) -> History:
        """Return what is known of the rows that the query names."""
        most = min(query.most, self._samples, self.number)
        found = [
            Series(
                key,
                tuple([None if math.isnan(rate) else round(rate, 1) for rate in self._newest(key, 0, most)]),
                tuple([None if math.isnan(n) else int(n) for n in self._newest(key, self._samples, most)]),
            )
            for key in query.keys
            if key in self._rings
        ]
        timeouts = tuple(
            [
                (key, sum(count for _, count in recent))
                for key, recent in islice(self._timeouts.items(), MOST_TIMEOUTS)
            ]
        )
        return History(
            service, node, self.number, INTERVAL, tuple(found), timeouts, self._samples * INTERVAL,
            len(self._timeouts) - len(timeouts),
        )  # fmt: skip

    def _newest(self, key: RowKey, begin: int, most: int) -> list[float]:
        """Return the newest samples of a ring, the oldest first."""
        ring = self._rings[key]
        after = (self.number + 1) % self._samples
        ordered = ring[begin + after : begin + self._samples] + ring[begin : begin + after]
        return list(ordered[self._samples - most :])

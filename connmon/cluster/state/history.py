"""The last minutes of each row, sampled by a node from its own replica. Pure.

It is there when a console opens, since the node always keeps it.

- Every node keeps its own, in memory: nothing of it is replicated, and a restarted node begins with none.
- Where the node does not know the present (no quorum, all processes of a row are lost) a sample says so, and
  does not repeat the last one.
- Programs, hosts and databases come first, then processes; further rows have no history.
- Sampling many rows goes on in pieces, between which the node does other work.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from connmon.cluster.state.machine import StateMachine
from connmon.cluster.state.settings import HISTORY, HistorySettings
from connmon.protocol.queries import EVERYTHING, History, HistoryQuery, Series
from connmon.protocol.rows import RowKey

_UNKNOWN: Final = math.nan
#: Larger rates do not fit into a single float.
_LARGEST_RATE: Final = 1e30


class Past:
    """The history that one node keeps."""

    def __init__(self, settings: HistorySettings = HISTORY) -> None:
        self.settings = settings
        self._samples = settings.samples
        self.number = 0
        """How many samples were taken."""
        # For each row two rings of single floats, one behind the other: exact up to 16 million connections.
        self._rings: dict[RowKey, array[float]] = {}
        self._seen: dict[RowKey, int] = {}
        """Timeouts so far, of each row."""
        self._timeouts: dict[RowKey, deque[tuple[int, int]]] = {}
        """Of rows that had some lately: before which sample, and how many."""

    def __repr__(self) -> str:
        return f"<Past of {len(self._rings)} rows, {self.number} samples>"

    def sample(self, state: StateMachine, known: bool) -> Iterator[None]:
        """Take one sample: a generator to be exhausted, at whatever pace the caller likes.

        `known`: whether the state is the present. Rows that went away are forgotten.
        """
        self.number += 1
        piece = self.settings.piece_rows
        present: set[RowKey] = {EVERYTHING}
        total = state.figures.totals().figures
        self._add(EVERYTHING, total.checkouts_per_second, total.gauges.connections, known and total.known)
        for at, key in enumerate(list(state.groups)):
            if at % piece == piece - 1:
                yield
            group = state.groups.get(key)
            if group is not None:
                present.add(key)
                figures = state.figures.of_group_sums(group)
                self._add(
                    key, figures.checkouts_per_second, figures.gauges.connections, known and figures.known
                )
                self._count(key, figures.totals.timeouts)
        for at, instance in enumerate(list(islice(state.processes, self.settings.series))):
            if at % piece == piece - 1:
                yield
            process = state.processes.get(instance)
            if process is not None:
                present.add(key := ("process", instance))
                rate, connections = process.checkouts_per_second, process.gauges.connections
                self._add(key, rate, connections, known and not process.lost)
                self._count(key, process.totals.timeouts)
        for key in self._seen.keys() - present:
            del self._seen[key]
            self._rings.pop(key, None)
            self._timeouts.pop(key, None)

    def _add(self, key: RowKey, rate: float | None, connections: int, known: bool) -> None:
        ring = self._rings.get(key)
        if ring is None:
            if len(self._rings) >= self.settings.series:
                return
            ring = self._rings[key] = array("f", [_UNKNOWN]) * (2 * self._samples)
        at = self.number % self._samples
        ring[at] = min(rate, _LARGEST_RATE) if known and rate is not None else _UNKNOWN
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
        """Return the history of the rows that the query names."""
        most = min(query.most, self._samples, self.number)
        series = [
            Series(
                key=key,
                rates=tuple(
                    [None if math.isnan(rate) else round(rate, 1) for rate in self._newest(key, 0, most)]
                ),
                connections=tuple(
                    [None if math.isnan(n) else int(n) for n in self._newest(key, self._samples, most)]
                ),
            )
            for key in query.keys
            if key in self._rings
        ]
        timeouts = [
            (key, sum(count for _, count in recent))
            for key, recent in islice(self._timeouts.items(), self.settings.answer_timeouts)
        ]
        return History(
            service=service,
            node=node,
            number=self.number,
            interval=self.settings.interval_seconds,
            series=tuple(series),
            timeouts=tuple(timeouts),
            span=self._samples * self.settings.interval_seconds,
            left_out=len(self._timeouts) - len(timeouts),
        )

    def _newest(self, key: RowKey, begin: int, most: int) -> list[float]:
        """Return the newest samples of a ring, the oldest first."""
        ring = self._rings[key]
        after = (self.number + 1) % self._samples
        ordered = ring[begin + after : begin + self._samples] + ring[begin : begin + after]
        return list(ordered[self._samples - most :])

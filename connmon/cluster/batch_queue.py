"""The queue of reports and departures that wait to be applied. Pure.

- They leave in the order in which they came.
- A full report replaces an earlier report of the same process: it contains everything in it. So a node
  without quorum keeps one report of an application that reconnects again and again. (A report that is not
  full replaces none: its connection has one report in flight.)
- One departure waits per process, the latest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from connmon.protocol.batch import Departure
from connmon.protocol.reports import Report

Source = TypeVar("Source")
"""The connection that an entry came from."""


@dataclass(frozen=True)
class Waiting(Generic[Source]):
    """A report or departure that is to be applied."""

    message: Report | Departure
    source: Source | None
    """None: the connection has ended."""
    wire_bytes: int
    memory_bytes: int
    """Estimated."""


class BatchQueue(Generic[Source]):
    def __init__(self) -> None:
        self._waiting: dict[int, Waiting[Source]] = {}
        self._latest: dict[tuple[type[Report | Departure], str], int] = {}
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<BatchQueue: {len(self)} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting[Source]]:
        return iter(list(self._waiting.values()))

    def put(self, waiting: Waiting[Source]) -> Waiting[Source] | None:
        """Add an entry; return the one that it replaces."""
        message = waiting.message
        key = (type(message), message.instance)
        replaced = None
        if isinstance(message, Departure) or message.full:
            replaced = self._waiting.pop(self._latest.get(key, -1), None)
        number = self._latest[key] = next(self._numbers)
        self._waiting[number] = waiting
        return replaced

    def take(self, limit_bytes: int, limit_entries: int) -> list[Waiting[Source]]:
        """Remove and return the oldest entries, up to the limits, but at least one, however large it is.

        `limit_bytes`: on the wire.
        """
        taken: list[Waiting[Source]] = []
        size = 0
        for number, waiting in list(itertools.islice(self._waiting.items(), limit_entries)):
            size += waiting.wire_bytes
            if taken and size > limit_bytes:
                break
            del self._waiting[number]
            key = (type(waiting.message), waiting.message.instance)
            if self._latest.get(key) == number:
                del self._latest[key]
            taken.append(waiting)
        return taken

"""What applications have said and what is still to be applied. Pure.

- It is taken in the order in which it came.
- Of each process there is one report at most. A full one says all that an earlier one did, and takes
  its place: a node without quorum must not keep what an application that comes again and again has
  said each time. (A report that is not full never meets another one: its connection has one in flight.)
- Of each process there is one departure at most, the latest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from connmon.protocol.batch import Departure
from connmon.protocol.reports import Report

From = TypeVar("From")


@dataclass(frozen=True)
class Waiting(Generic[From]):
    """A report or departure that is to be applied, and the connection it came from, if that is there."""

    what: Report | Departure
    link: From | None
    size: int
    """In bytes, on the wire."""
    memory: int
    """In bytes, about."""


class Intake(Generic[From]):
    """The queue."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting[From]] = {}
        self._latest: dict[tuple[type[Report | Departure], str], int] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting[From]]:
        return iter(list(self._waiting.values()))

    def put(self, waiting: Waiting[From]) -> Waiting[From] | None:
        """Add something; return what it took the place of."""
        what = waiting.what
        key = (type(what), what.instance)
        dropped = None
        if isinstance(what, Departure) or what.full:
            dropped = self._waiting.pop(self._latest.get(key, -1), None)
        number = self._latest[key] = next(self._numbers)
        self._waiting[number] = waiting
        return dropped

    def take(self, most: int) -> list[Waiting[From]]:
        """Take the oldest, up to `most` bytes on the wire together, or one that is larger."""
        taken: list[Waiting[From]] = []
        size = 0
        for number, waiting in list(itertools.islice(self._waiting.items(), 10_000)):
            size += waiting.size
            if taken and size > most:
                break
            del self._waiting[number]
            key = (type(waiting.what), waiting.what.instance)
            if self._latest.get(key) == number:
                del self._latest[key]
            taken.append(waiting)
        return taken

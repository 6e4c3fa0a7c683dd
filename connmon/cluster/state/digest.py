"""Digests of the state at versions asked for, so that those of several nodes can be compared. Pure.

The state moves several times a second, on each node at its own moment: only digests of one
version say whether replicas are equal. So a reader names a version, best one that is still to
come, and each node makes the digest in the moment when it has that version. The rules:

- A digest costs as much as a dump of the whole state, on the thread that ticks the group. It is
  made once per version, and after one that took T seconds none for `REST` * T, however many ask.
- What cannot be had (a version gone by, a rest) is None, at once; nothing is kept for later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

#: How many times as long as the last one took no further digest is made.
REST: Final = 20.0

Told: TypeAlias = Callable[[str | None], None]


class Digestible(Protocol):
    """What this needs of a State."""

    epoch: str
    version: int

    def digest(self) -> str: ...


class Digests:
    """Makes digests of one node's state. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: dict[int, list[Told]] = {}
        self._last: tuple[str, int, str] | None = None
        """Epoch, version, digest."""
        self._rested = float("-inf")
        """When the next one may be made."""

    def ask(self, state: Digestible, version: int, told: Told) -> None:
        """Have `told` called, once, with the digest of that version; with None where it cannot be had.

        That may be at once. Where the version is still to come, `moved` calls it, or never.
        """
        if state.version < version:
            self._waiting.setdefault(version, []).append(told)
        else:
            told(self._digest(state) if state.version == version else None)

    def give_up(self, version: int, told: Told) -> None:
        """`told` is not to be called any more."""
        waiting = self._waiting.get(version, [])
        if told in waiting:
            waiting.remove(told)
        if not waiting:
            self._waiting.pop(version, None)

    def moved(self, state: Digestible) -> None:
        """The state may have another version now."""
        if not self._waiting:
            return
        for version in [version for version in self._waiting if version <= state.version]:
            digest = self._digest(state) if version == state.version else None
            for told in self._waiting.pop(version):
                told(digest)

    def _digest(self, state: Digestible) -> str | None:
        if self._last is not None and self._last[:2] == (state.epoch, state.version):
            return self._last[2]
        began = self._clock()
        if began < self._rested:
            return None
        digest = state.digest()
        ended = self._clock()
        self._rested = ended + REST * (ended - began)
        self._last = state.epoch, state.version, digest
        return digest

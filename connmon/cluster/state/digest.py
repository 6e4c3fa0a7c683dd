"""Digests of the state at versions asked for, so that those of several nodes can be compared. Pure.

The state moves several times a second, on each node at its own moment: only digests of one version say
whether replicas are equal. So a reader names a version, best one that is still to come, and each node makes
the digest at the moment when it has that version.

- A digest costs as much as a checkpoint of the whole state, on the thread that ticks the group. It is made
  once per version, and after one that took T seconds none for `rest_factor` * T, however many ask.
- A digest that cannot be made (the version is past, or a rest) is None, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

#: How many times as long as the last digest took no further one is made.
REST_FACTOR: Final = 20.0

OnDigest: TypeAlias = Callable[[str | None], None]


class Digestible(Protocol):
    """What `Digests` needs of a StateMachine."""

    epoch: str

    @property
    def version(self) -> int: ...

    def digest(self) -> str: ...


class Digests:
    """Makes digests of one node's state. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], rest_factor: float = REST_FACTOR) -> None:
        self._clock = clock
        self._rest_factor = rest_factor
        self._waiting: dict[int, list[OnDigest]] = {}
        self._last: tuple[str, int, str] | None = None
        """Epoch, version, digest."""
        self._rests_until = float("-inf")

    def __repr__(self) -> str:
        return f"<Digests: {len(self._waiting)} versions waited for>"

    def ask(self, state: Digestible, version: int, on_digest: OnDigest) -> None:
        """Have `on_digest` called, once, with the digest of that version; with None where it cannot be made.

        That may be at once. Where the version is still to come, `moved` calls it, or never.
        """
        if state.version < version:
            self._waiting.setdefault(version, []).append(on_digest)
        else:
            on_digest(self._digest(state) if state.version == version else None)

    def give_up(self, version: int, on_digest: OnDigest) -> None:
        """Do not call `on_digest` any more."""
        waiting = self._waiting.get(version, [])
        if on_digest in waiting:
            waiting.remove(on_digest)
        if not waiting:
            self._waiting.pop(version, None)

    def moved(self, state: Digestible) -> None:
        """The state may have another version now."""
        if not self._waiting:
            return
        for version in [version for version in self._waiting if version <= state.version]:
            digest = self._digest(state) if version == state.version else None
            for on_digest in self._waiting.pop(version):
                on_digest(digest)

    def _digest(self, state: Digestible) -> str | None:
        if self._last is not None and self._last[:2] == (state.epoch, state.version):
            return self._last[2]
        began = self._clock()
        if began < self._rests_until:
            return None
        digest = state.digest()
        ended = self._clock()
        self._rests_until = ended + self._rest_factor * (ended - began)
        self._last = state.epoch, state.version, digest
        return digest

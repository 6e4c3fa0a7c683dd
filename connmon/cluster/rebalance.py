"""Decide which applications should report to another node, so that all nodes have about as many. Pure.

An application chooses a node at random and stays. When a node fails, its applications move to the others,
and none returns by itself. Rules:

- Each node reads from its own replica which process reports where, and sends away only its own.
- A node counts once it has had a peer link for `settled_seconds`: an unstable one gets no applications.
- All nodes with clearly more applications than the one with the fewest share in filling it, so that together
  they do not send too many.
- An application that was asked to move and is still or again here is not asked again for
  `remembered_seconds`: it knows this node only, or cannot reach the other one, and each attempt costs it
  some seconds of silence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RebalanceSettings:
    settled_seconds: float = 10.0
    """For which a node must have had a peer link before applications are sent there."""
    remembered_seconds: float = 600.0
    """After which an application that did not move is asked again."""
    most_moves: int = 500
    """Applications sent away at once."""


class Rebalancer:
    """One node's decisions. Times are in seconds, of one monotonic clock."""

    def __init__(
        self, node: str, rng: random.Random, settings: RebalanceSettings = RebalanceSettings()
    ) -> None:
        self._node = node
        self._rng = rng
        self._settings = settings
        self._connected_since: dict[str, float] = {}
        """Other nodes with a peer link."""
        self._asked_at: dict[str, float] = {}
        """When each process was asked to move, in this order."""

    def __repr__(self) -> str:
        return f"<Rebalancer of {self._node}: {len(self._asked_at)} asked to move>"

    def observe(self, connected: Iterable[str], now: float) -> None:
        """Note the other nodes that have a peer link."""
        self._connected_since = {node: self._connected_since.get(node, now) for node in connected}

    def moves(
        self, nodes_of_processes: Iterable[str], own: Sequence[str], now: float
    ) -> list[tuple[str, str]]:
        """Return the instances that should move, each with the node to move to.

        `nodes_of_processes` has the node of each connected process; `own` the instances that report here.
        """
        settings = self._settings
        while self._asked_at and now - next(iter(self._asked_at.values())) > settings.remembered_seconds:
            del self._asked_at[next(iter(self._asked_at))]
        settled = [
            node for node, since in self._connected_since.items() if now - since >= settings.settled_seconds
        ]
        nodes = [self._node, *settled]
        loads = Counter(nodes_of_processes)
        emptiest = min(nodes, key=lambda node: (loads[node], node))
        here, there = loads[self._node], loads[emptiest]
        if not _clearly_more(here, there):
            return []
        sharing = sum(_clearly_more(loads[node], there) for node in nodes)
        number = (here - there) // (sharing + 1)
        if number == 0 and self._rng.random() * sharing < 1.0:
            number = 1
        free = [instance for instance in own if instance not in self._asked_at]
        chosen = self._rng.sample(free, min(number, len(free), settings.most_moves))
        self._asked_at |= dict.fromkeys(chosen, now)
        return [(instance, emptiest) for instance in chosen]


def _clearly_more(load: int, other: int) -> bool:
    """Return whether the difference is worth a move: more than one, and more than a tenth."""
    return load - other > max(1, load // 10)

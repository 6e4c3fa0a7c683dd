"""Which applications should report to another node, so that all nodes have about as many. Pure.

An application chooses a node by chance and stays; when a node fails, its applications go to the others,
and nobody goes back by himself. The rules:

- Each node looks at its own replica, which says who reports where, and sends away only its own.
- A node counts once it has had a link for `SETTLED` seconds: what comes and goes gets nobody.
- All who have clearly more than the node with the fewest share in what it lacks, so that together they
  do not send it more than that.
- Who was asked to go and is still or again here is not asked again for `REMEMBERED` seconds: it knows this
  node alone, or cannot reach the other one, and each attempt costs it some seconds of silence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

#: Seconds for which another node must have had a link before anybody is sent to it.
SETTLED: Final = 10.0
#: Seconds after which an application that did not go is asked again.
REMEMBERED: Final = 600.0
#: Applications sent away at once, at most.
MOST: Final = 500


class Spread:
    """One node's part in it."""

    def __init__(self, node: str, rng: random.Random) -> None:
        self._node = node
        self._rng = rng
        self._since: dict[str, float] = {}
        """Since when each other node has had a link."""
        self._asked: dict[str, float] = {}
        """When each process was asked to go, the first first."""

    def look(self, linked: Iterable[str], now: float) -> None:
        """Note which other nodes have a link."""
        self._since = {node: self._since.get(node, now) for node in linked}

    def moves(self, reporting: Iterable[str], own: Sequence[str], now: float) -> list[tuple[str, str]]:
        """Return who is to go, and to which node.

        `reporting` has, for each process that is connected, the node that it reports to; `own` are
        the processes that report here.
        """
        while self._asked and now - next(iter(self._asked.values())) > REMEMBERED:
            del self._asked[next(iter(self._asked))]
        nodes = [self._node, *(node for node, since in self._since.items() if now - since >= SETTLED)]
        loads = Counter(reporting)
        fewest = min(nodes, key=lambda node: (loads[node], node))
        here, there = loads[self._node], loads[fewest]
        if not _more(here, there):
            return []
        sharing = sum(_more(loads[node], there) for node in nodes)
        number = (here - there) // (sharing + 1)
        if number == 0 and self._rng.random() * sharing < 1.0:
            number = 1
        free = [instance for instance in own if instance not in self._asked]
        chosen = self._rng.sample(free, min(number, len(free), MOST))
        self._asked |= dict.fromkeys(chosen, now)
        return [(instance, fewest) for instance in chosen]


def _more(one: int, other: int) -> bool:
    """Whether the difference is worth a move: more than one, and more than a tenth."""
    return one - other > max(1, one // 10)

"""Rebalancing: it ends with all nodes having about as many applications, without moving back and forth."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from connmon.cluster.rebalance import Rebalancer, RebalanceSettings

REMEMBERED = RebalanceSettings().remembered_seconds
SETTLED = RebalanceSettings().settled_seconds
NODES = ("node1", "node2", "node3", "node4", "node5")


def settled(node: str, nodes: tuple[str, ...] = NODES, seed: int = 1) -> Rebalancer:
    rebalancer = Rebalancer(node, random.Random(seed))
    rebalancer.observe([other for other in nodes if other != node], 0.0)
    return rebalancer


def moves(
    rebalancer: Rebalancer, loads: dict[str, int], own: int | None = None, now: float = 100.0
) -> Counter[str]:
    """Return how many of node1's applications should move to each node."""
    mine = [f"i{number}" for number in range(loads["node1"] if own is None else own)]
    reporting = [node for node, load in loads.items() for _ in range(load)]
    moved = rebalancer.moves(reporting, mine, now)
    assert len({instance for instance, _ in moved}) == len(moved)
    assert {instance for instance, _ in moved} <= set(mine)
    return Counter(node for _, node in moved)


def test_a_node_that_comes_back_gets_its_share() -> None:
    """The nodes with more applications share in filling the one with the fewest."""
    rebalancer = settled("node1", NODES[:3])
    assert moves(rebalancer, {"node1": 30, "node2": 30, "node3": 0}) == {"node3": 10}
    assert moves(rebalancer, {"node1": 30, "node2": 3, "node3": 0}) == {"node3": 10}
    assert moves(rebalancer, {"node1": 2, "node2": 0, "node3": 1}) == {"node2": 1}


def test_nobody_is_sent_for_little() -> None:
    """A difference of one, or of a tenth, causes no move, and no node with more gets any."""
    rebalancer = settled("node1", NODES[:3])
    assert not moves(rebalancer, {"node1": 2, "node2": 1, "node3": 1})
    assert not moves(rebalancer, {"node1": 1000, "node2": 950, "node3": 905})
    assert not moves(rebalancer, {"node1": 0, "node2": 50, "node3": 9})


def test_an_application_that_did_not_move_is_not_asked_again_soon() -> None:
    """An application that did not move is asked again only after a long time."""
    rebalancer = settled("node1", NODES[:2])
    loads = {"node1": 30}
    assert sum(moves(rebalancer, loads, own=2).values()) == 2
    assert not moves(rebalancer, loads, own=2, now=100.0 + REMEMBERED)
    assert sum(moves(rebalancer, loads, own=3, now=100.0 + REMEMBERED).values()) == 1
    assert sum(moves(rebalancer, loads, own=3, now=101.0 + REMEMBERED).values()) == 2
    assert not moves(settled("node1"), loads, own=0)


def test_a_node_counts_when_its_link_has_lasted() -> None:
    """A node whose peer link is unstable or gone gets no applications."""
    rebalancer = settled("node1", ("node1", "node2"))
    loads = {"node1": 30}
    assert not moves(rebalancer, loads, now=SETTLED - 1.0)
    assert moves(rebalancer, loads, now=SETTLED)
    rebalancer.observe([], SETTLED)
    assert not moves(rebalancer, loads, now=SETTLED)
    rebalancer.observe(["node2"], SETTLED + 1.0)
    assert not moves(rebalancer, loads, now=2 * SETTLED)


@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=5),
    st.lists(st.integers(0, 20), min_size=5, max_size=5),
    st.integers(0, 2**32),
)
def test_it_comes_to_rest(movable: list[int], pinned: list[int], seed: int) -> None:
    """From any start, with applications that never move, moving soon stops, and every application that can
    move is then on a node that is not clearly fuller than another."""
    nodes = NODES[: len(movable)]
    rng = random.Random(seed)
    rebalancers = {node: settled(node, nodes, rng.randrange(2**32)) for node in nodes}
    where = {
        f"{node} {number}": node for node, load in zip(nodes, movable, strict=True) for number in range(load)
    }
    fixed = [node for node, load in zip(nodes, pinned, strict=False) for _ in range(load)]
    quiet = 0
    for turn in range(2000):
        reporting = [*where.values(), *fixed]
        moved = [
            move
            for node, rebalancer in rebalancers.items()
            for move in rebalancer.moves(
                reporting, [i for i, at in where.items() if at == node], 1000.0 * (turn + 1)
            )
        ]
        where.update(moved)
        quiet = 0 if moved else quiet + 1
        if quiet == 120:
            break
    assert quiet == 120
    loads = Counter([*where.values(), *fixed])
    fewest = min(loads[node] for node in nodes)
    for node in set(where.values()):
        assert loads[node] - fewest <= max(1, loads[node] // 10)

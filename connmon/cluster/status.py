"""What a node says of itself, for `connmon cluster-status`. Pure."""

from __future__ import annotations

from connmon import __version__
from connmon.cluster.raft.group import Status
from connmon.cluster.state.machine import State
from connmon.protocol.queries import NodeStatus


def of_node(
    service: str,
    node: str,
    group: Status,
    state: State,
    *,
    processes: int,
    consoles: int,
    uptime: float,
    digest: str | None,
) -> NodeStatus:
    """Return what the node says of itself. `uptime` is in seconds, `processes` and `consoles` its own."""
    return NodeStatus(
        service,
        node,
        __version__,
        group.role,
        group.leader,
        group.term,
        group.applied,
        group.lag,
        group.quorum,
        group.stale,
        processes,
        consoles,
        uptime,
        tuple(name for name, linked in group.connected.items() if linked),
        tuple(name for name, linked in group.connected.items() if not linked),
        state.epoch,
        state.version,
        digest,
    )

"""A node's status, for `connmon cluster-status`. Pure."""

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
    """Return the node's status. `uptime` is in seconds; `processes` and `consoles` are those of this node."""
    return NodeStatus(
        service=service,
        node=node,
        software=__version__,
        role=group.role,
        leader=group.leader,
        term=group.term,
        applied=group.applied,
        lag=group.lag,
        quorum=group.quorum,
        stale=group.stale,
        processes=processes,
        consoles=consoles,
        uptime=uptime,
        linked=tuple(name for name, connected in group.connected.items() if connected),
        unlinked=tuple(name for name, connected in group.connected.items() if not connected),
        epoch=state.epoch,
        version=state.version,
        digest=digest,
    )

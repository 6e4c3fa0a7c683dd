"""The node's answer to `connmon cluster-status`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from connmon.cluster.raft.status import Role, Status
from connmon.cluster.state.machine import StateMachine
from connmon.protocol.queries import NodeStatus
from connmon.protocol.values import NodeRole
from connmon.version import __version__

_ROLES: Final[Mapping[Role, NodeRole]] = {
    Role.LEADER: "leader",
    Role.FOLLOWER: "follower",
    Role.CANDIDATE: "candidate",
}


def of_node(
    service: str,
    node: str,
    group: Status,
    state: StateMachine,
    *,
    processes: int,
    consoles: int,
    uptime: float,
    digest: str | None,
) -> NodeStatus:
    """Return the node's status. `uptime` is in seconds; `processes` and `consoles` are its own."""
    return NodeStatus(
        service=service,
        node=node,
        software=__version__,
        role=_ROLES[group.role],
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

"""What a node reports of its membership in the Raft group. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from msgspec import Struct


class Role(str, enum.Enum):
    """A member's part in the group, as far as it knows."""

    FOLLOWER = "follower"
    """It follows a leader."""
    CANDIDATE = "candidate"
    """It knows of no leader; it stands for election when that lasts."""
    LEADER = "leader"


ROLE_CHANGES: Final[Mapping[Role, frozenset[Role]]] = {
    # A leader is heard of, or the member wins an election.
    Role.CANDIDATE: frozenset({Role.FOLLOWER, Role.LEADER}),
    # The leader is not heard of any more.
    Role.FOLLOWER: frozenset({Role.CANDIDATE}),
    # A majority is not heard of any more, or there is a later term; its leader is followed at once.
    Role.LEADER: frozenset({Role.CANDIDATE, Role.FOLLOWER}),
}


class Status(Struct, frozen=True, kw_only=True):
    """One node's membership at a moment. The defaults are those of a node that has not joined yet."""

    role: Role = Role.CANDIDATE
    leader: str | None = None
    """The leader's name, as far as known here."""
    term: int = 0
    applied: int = 0
    """The index of the last log entry applied here."""
    lag: int = 0
    """How many entries the leader had committed, when last heard of, that are not applied here."""
    quorum: bool = False
    """Whether what this node shows is what a majority has agreed on, up to a moment ago."""
    stale: float = 0.0
    """Seconds since the last batch was applied here; since the start if there was none."""
    connected: dict[str, bool] = {}
    """By the name of each other node: whether there is a peer link to it."""
    log_entries: int = 0
    """How many entries the log holds."""

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

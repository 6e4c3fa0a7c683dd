"""Timings and sizes of a Raft group. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class RaftSettings:
    """How one member of a group behaves. The defaults are those of connmond."""

    tick_seconds: float = 0.05
    """Between two ticks while nothing happens."""

    # --- elections
    heartbeat_seconds: float = 0.1
    """Between two heartbeats of a leader."""
    election_min_seconds: float = 0.6
    """A follower stands for election after a random time without a leader, from this..."""
    election_max_seconds: float = 1.2
    """...to this. A member that has forgotten its vote votes for nobody for as long."""
    fallback_seconds: float = 2.0
    """A leader without answers of a majority for so long stops leading."""
    turn_seconds: float = 0.2
    """How long a member has to win an election before one that would vote for it stands itself."""
    orphaned_min_seconds: float = 0.05
    """After its link to the leader breaks, a follower stands for election at a random time from this..."""
    orphaned_max_seconds: float = 0.3
    """...to this."""
    stall_seconds: float = 0.3
    """A tick that comes so long after the one before: this process stood still."""

    # --- the log
    append_entries: int = 500
    """Entries in one message to a follower, at most."""
    append_bytes: int = MIB
    """Bytes of those entries; the first may be larger."""
    log_entries: int = 500
    """The log is cut when it has more entries than this..."""
    log_bytes: int = 32 * MIB
    """...or when this much was applied since it was last cut."""
    kept_entries: int = 100
    """Applied entries that a cut keeps, at most; of `log_bytes` it keeps a quarter at most."""
    queued_commands: int = 1000
    """Commands of other nodes that may wait for the next tick; each node has one in flight."""

    # --- proposals
    repeat_seconds: float = 2.0
    """A batch that was not applied for so long is proposed again."""
    retry_seconds: float = 0.05
    """A batch that was refused (no leader yet) is proposed again after this."""

    # --- the disk
    disk_retry_seconds: float = 5.0
    """Between two attempts to write again what could not be written."""

    # --- whether the view is current
    silent_seconds: float = 1.5
    """Without news of the leader (on the leader: of a majority) for so long, the view is not current."""
    still_seconds: float = 3.0
    """Without a batch applied for so long, the view is not current."""
    lagging_seconds: float = 5.0
    """How long this node may apply nothing, while the leader has more, before it logs a warning."""
    warning_interval_seconds: float = 60.0
    """Between two such warnings."""

    def of_one(self) -> RaftSettings:
        """Return the settings of a group of one, which waits for no other node."""
        return replace(self, heartbeat_seconds=0.03, election_min_seconds=0.1, election_max_seconds=0.2)

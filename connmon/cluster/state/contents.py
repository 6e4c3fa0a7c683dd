"""Everything that a replica has: its tables, made together from the settings. Pure."""

from __future__ import annotations

from typing import Final

from connmon.cluster.state.groups import Groups
from connmon.cluster.state.settings import StateSettings
from connmon.cluster.state.tables import (
    Boots,
    EndedProcesses,
    Now,
    Processes,
    RecentTimes,
    Room,
    Tombstones,
    TurnedAway,
    places,
)

#: The limits of which the state counts how much they leave out now.
COUNTED_LIMITS: Final = ("processes", "pools", "connections", "room")
#: The limits of which the state counts how much they made it forget before its time.
FORGETTING_LIMITS: Final = ("ended", "gone")


class Contents:
    """The tables of one replica."""

    def __init__(self, settings: StateSettings) -> None:
        limits = settings.limits
        self.settings = settings
        self.epoch = ""
        """Names this life of the state: versions of another epoch mean nothing here."""
        self.now = Now()
        self.room = Room(limits.room)
        self.processes = Processes()
        self.groups = Groups(self.now, self.room)
        self.ended = EndedProcesses(limits.ended, self.room)
        self.boots = Boots(limits.boots)
        self.tombstones = Tombstones(self.now, limits.tombstones)
        self.turned_away = TurnedAway(self.now, limits.turned_away)
        self.recent_times = RecentTimes(self.now)

    def __repr__(self) -> str:
        return f"<Contents: version {self.now.version}, {len(self.processes)} processes, {self.groups!r}>"

    def places(self) -> int:
        """Return how many more processes may come in."""
        return places(self.processes, self.room, self.settings.limits.processes)

    def left_out(self) -> dict[str, int]:
        """Return how many pools, connections and processes each of `COUNTED_LIMITS` leaves out now."""
        limits = self.settings.limits
        counts = dict.fromkeys(COUNTED_LIMITS, 0)
        if self.turned_away:
            full = len(self.processes) >= limits.processes
            counts["processes" if full else "room"] += len(self.turned_away)
        for process in self.processes.crowded.values():
            if process.lost:
                continue
            full = len(process.pools) >= limits.pools
            counts["pools"] += process.shared
            counts["pools" if full else "room"] += process.refused_pools
            full = process.unlisted > 0 or len(process.connections) >= limits.connections
            missing_connections = process.left_out - process.shared - process.refused_pools
            counts["connections" if full else "room"] += missing_connections
        return counts

    def forgotten(self) -> dict[str, int]:
        """Return how much each of `FORGETTING_LIMITS` made this replica forget since its start or load."""
        return dict(zip(FORGETTING_LIMITS, (self.ended.forgotten, self.groups.forgotten), strict=True))

"""Groups: a program on a host, a host, or a database, with the sums over its processes. Pure.

A process counts in three kinds of groups: its program, its host, and each database that it has a pool in (or
the remains of a closed pool), once in each. A connected process counts with gauges and totals, a lost one
with totals only, a dropped one with its last totals (the group's ended totals). A group's totals and ended
totals together never go back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from connmon.cluster.state.hold_profiles import HoldSums
from connmon.cluster.state.records import NO_GAUGES, NO_TOTALS, GroupRecord, PoolRecord, ProcessRecord
from connmon.cluster.state.tables import Now, Room
from connmon.cluster.state.times import (
    NO_TIMES_PACKED,
    PackedTimes,
    added_times,
    bounded_times,
    packed,
    times_since,
    unpacked,
)
from connmon.protocol.rows import Figures, RowKey
from connmon.protocol.values import LARGEST, Gauges, RowState, Times, Totals, minus, plus, saturated


class Group:
    """One group. Loading a checkpoint recomputes gauges, totals and members from the processes."""

    __slots__ = (
        "born", "ended", "ended_times", "figures", "figures_version", "gauges", "gone_since", "holds", "key",
        "lost", "max_checked_out", "max_connections", "max_processes", "max_waiting", "members", "processes",
        "reported", "totals", "version",
    )  # fmt: skip

    def __init__(self, key: RowKey, version: int) -> None:
        self.key = key
        self.gauges = NO_GAUGES
        """Of connected processes."""
        self.totals = NO_TOTALS
        """Of connected and lost processes."""
        self.ended = NO_TOTALS
        """Of dropped processes."""
        self.ended_times: PackedTimes = NO_TIMES_PACKED
        self.processes = 0
        """Connected ones."""
        self.lost = 0
        self.max_processes = self.max_connections = self.max_checked_out = self.max_waiting = 0
        self.reported: float | None = None
        """When a process of it last reported."""
        self.version = self.born = version
        self.gone_since: float | None = None
        """Since when it has no process. None: it has some."""
        self.members: dict[str, ProcessRecord] = {}
        self.holds: HoldSums | None = None
        """Of a program: the sums of hold profiles. None: no call site has been reported."""
        self.figures: Figures | None = None
        """A cache of `RowFigures`: its figures as of `figures_version`."""
        self.figures_version = -1

    def __repr__(self) -> str:
        return f"<Group {self.key} {self.state}, {len(self.members)} processes>"

    @property
    def state(self) -> RowState:
        return "connected" if self.processes else "lost" if self.lost else "gone"

    def pools(self, present: bool = False) -> list[PoolRecord]:
        """Return the pools that count in it; `present`: without those of lost processes."""
        members = [process for process in self.members.values() if not (present and process.lost)]
        pools = [pool for process in members for pool in process.pools.values()]
        if self.key[0] == "database":
            return [pool for pool in pools if pool.database == self.key]
        return pools

    @property
    def times(self) -> Times:
        """The times of all its processes, dropped ones included. As totals they never go back."""
        return added_times([unpacked(self.ended_times), *(unpacked(pool.times) for pool in self.pools())])

    def add_ended(self, totals: Totals, times: Times) -> None:
        """Move a dropped process's totals to the ended totals, and add its times to those."""
        self.totals = minus(self.totals, totals)
        self.ended = saturated(plus(self.ended, totals))
        ended_times = added_times([unpacked(self.ended_times), times])
        self.ended_times = packed(bounded_times(ended_times, LARGEST))

    def take_back(self, totals: Totals, times: Times) -> None:
        """Take a process that was dropped and is back out of the ended totals and times."""
        self.ended = saturated(minus(self.ended, totals))
        self.ended_times = packed(times_since(unpacked(self.ended_times), times))

    def record(self) -> GroupRecord:
        """Return what a checkpoint has of it."""
        return GroupRecord(
            key=self.key,
            ended=self.ended,
            maxima=(self.max_processes, self.max_connections, self.max_checked_out, self.max_waiting),
            reported=self.reported,
            version=self.version,
            born=self.born,
            gone_since=self.gone_since,
            ended_times=self.ended_times,
            holds=() if self.holds is None else tuple(self.holds.by_database.items()),
        )

    @classmethod
    def of(cls, record: GroupRecord) -> Group:
        """Return the group of a checkpoint, without its processes."""
        group = cls(record.key, record.version)
        group.ended, group.ended_times = record.ended, record.ended_times
        group.max_processes, group.max_connections, group.max_checked_out, group.max_waiting = record.maxima
        group.reported, group.born, group.gone_since = record.reported, record.born, record.gone_since
        if record.holds:
            group.holds = HoldSums(dict(record.holds))
        return group


class Groups:
    """All groups, by key.

    A group is the sum over its members, and `gone` has exactly the groups without a member, the one that has
    been without one longest first. Every change of a group gives it the current version.
    """

    def __init__(self, now: Now, room: Room) -> None:
        self._now = now
        self._room = room
        self.by_key: dict[RowKey, Group] = {}
        self.gone: dict[RowKey, float] = {}
        """Since when each has been without a process."""
        self.forgotten = 0
        """Groups removed before their time because of the limit, since this replica was made or loaded."""

    def __repr__(self) -> str:
        return f"<Groups: {len(self.by_key)}, {len(self.gone)} gone>"

    def at(self, key: RowKey) -> Group:
        """Return the group; a new one where there is none."""
        group = self.by_key.get(key)
        if group is None:
            group = self.by_key[key] = Group(key, self._now.version)
            self._empty(group)
            self.touch(group)
        return group

    def touch(self, group: Group) -> None:
        """Note that the group changes now."""
        group.version = self._now.moved = self._now.version

    def _empty(self, group: Group) -> None:
        group.gone_since = self.gone[group.key] = self._now.clock

    def enroll(self, group: Group, process: ProcessRecord) -> None:
        """Count the process in the group; `shift` adds its gauges and totals."""
        group.members[process.instance] = process
        if process.lost:
            group.lost += 1
        else:
            group.processes += 1
            group.max_processes = max(group.max_processes, group.processes)
        if group.gone_since is not None:
            group.gone_since = None
            self.gone.pop(group.key, None)
        self.touch(group)

    def unenroll(self, group: Group, process: ProcessRecord) -> None:
        """Count the process no longer in the group."""
        del group.members[process.instance]
        if process.lost:
            group.lost -= 1
        else:
            group.processes -= 1
        if not group.members:
            self._empty(group)
        self.touch(group)

    def shift(self, key: RowKey, gauges: Gauges, totals: Totals) -> None:
        """Add these differences to the group."""
        group = self.at(key)
        if any(gauges):
            group.gauges = plus(group.gauges, gauges)
        if any(totals):
            group.totals = plus(group.totals, totals)
        self.touch(group)

    def set_lost(self, process: ProcessRecord, lost: bool) -> None:
        """Mark a process as lost: its gauges leave its groups, its totals stay; or as connected again."""
        sign, add = (-1, minus) if lost else (1, plus)
        for key in (process.program_key, process.host_key, *process.databases()):
            group = self.by_key[key]
            group.processes += sign
            group.lost -= sign
            group.max_processes = max(group.max_processes, group.processes)
        for key in (process.program_key, process.host_key):
            self.shift(key, add(NO_GAUGES, process.gauges), NO_TOTALS)
        for pool in process.pools.values():
            self.shift(pool.database, add(NO_GAUGES, pool.gauges), NO_TOTALS)
        process.lost = lost
        process.version = self._now.version

    def expire(self, remember_seconds: float, most: int) -> Iterator[RowKey]:
        """Remove groups that have been gone for long, and those beyond `most`; yield their keys."""
        while self.gone:
            key, since = next(iter(self.gone.items()))
            early = self._now.clock - since <= remember_seconds
            if early and len(self.gone) <= most:
                return
            self.forgotten += early
            holds = self.by_key[key].holds
            self._room.weight -= 0 if holds is None else holds.weight
            del self.gone[key], self.by_key[key]
            self._now.moved = self._now.version
            yield key

    def restore(self, records: list[GroupRecord], gone: list[RowKey]) -> Mapping[RowKey, Group]:
        """Take over the groups of a checkpoint, without their processes; return them."""
        self.by_key = {record.key: Group.of(record) for record in records}
        self.gone = {key: self.by_key[key].gone_since or 0.0 for key in gone}
        self._room.weight += sum([g.holds.weight for g in self.by_key.values() if g.holds is not None])
        return self.by_key

"""Which processes there are and which groups they count in. Pure; what reports say is in `state`.

The rules kept here:

- A process counts in three kinds of groups: its program, its host, and each database that it has
  a pool in (or what remains of a closed one), once in each.
- A connected process counts with gauges and totals, a lost one with totals only, a dropped one
  with what its totals were (the group's ended totals). The sum of the totals never goes back.
- A process that was dropped and comes back is taken out of the ended totals again.
- Everything is ordered by when it happened, so that what is too old is always at the front.
"""

from __future__ import annotations

from typing import Final

from connmon.cluster.state.judging import Judge
from connmon.cluster.state.records import (
    LIMITS,
    NO_GAUGES,
    NO_TIMES,
    NO_TOTALS,
    PROCESS_WEIGHT,
    WINDOW,
    BootRecord,
    EndedRecord,
    Group,
    Limits,
    ProcessRecord,
    Tombstones,
    added_times,
    bounded_times,
    connection_weight,
    packed,
    pool_weight,
    sites_weight,
    times_since,
    unpacked,
)
from connmon.protocol.rows import Figures, RowKey
from connmon.protocol.values import GROUPINGS, LARGEST, Gauges, Times, Totals, minus, plus, saturated

#: Seconds for which an ended process, a group without a process and a node's start are remembered.
MEMORY: Final = 3600.0
#: A process is lost after one lease of silence, and dropped after this many.
LEASES: Final = 5
#: Rows after which the dropping of silent processes goes on with the next tick: a batch must be
#: applied in well under 100 ms, however many fell silent together. They count as lost until then.
DROPPED_AT_ONCE: Final = 20_000
#: The limits of which it is counted what they leave out; see `Limits`.
COUNTED_LIMITS: Final = ("processes", "pools", "connections", "room")
#: Those of which it is counted what they have had forgotten before `MEMORY` was over.
FORGETTING_LIMITS: Final = ("ended", "gone")


class Tables:
    """All processes and groups, and how a process gets in and out of them."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.version = 0
        """Grows by one with each batch that is applied."""
        self.clock = 0.0
        """Seconds; moved by ticks only."""
        self.epoch = ""
        """Which life of the state this is: versions of another one mean nothing here."""
        self.processes: dict[str, ProcessRecord] = {}
        """By instance, the one that has been silent longest first."""
        self.groups: dict[RowKey, Group] = {}
        self.tombstones = {by: Tombstones(limits.tombstones) for by in GROUPINGS}
        self.moved = 0
        """The version at which a group last changed."""
        self.header: tuple[int, Figures, int, int] | None = None
        """The totals that go with each answer, kept by `rows`: version, figures, hosts, programs."""
        self.ended: dict[str, EndedRecord] = {}
        """Processes that were dropped, by instance, the first first."""
        self.ended_totals = 0
        """How many totals those have together."""
        self.gone: dict[RowKey, float] = {}
        """The groups without a process and since when, the first first."""
        self.boots: dict[str, BootRecord] = {}
        """The last batch of each node's start, the one not heard of for longest first."""
        self.window = 0
        """The window that the clock is in."""
        self.in_window = NO_TIMES
        """How long things took that were told of in it, of all processes; and in the one before it."""
        self.before_window = NO_TIMES
        self.weight = 0
        """What all processes, pools and connections weigh."""
        self.crowded: dict[str, ProcessRecord] = {}
        """The processes of which a limit leaves out something."""
        self.turned_away: dict[str, float] = {}
        """Processes that there was no room for, by instance, and when they last reported; the first first."""
        self.forgotten = dict.fromkeys(FORGETTING_LIMITS, 0)
        """What limits had this replica forget before its time, since it was made or loaded."""
        self.judge = Judge(self)
        """Says what is wrong, when it is asked; nothing of it is replicated."""

    # --- groups

    def group(self, key: RowKey) -> Group:
        """Return the group, which is made where there is none."""
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(key, self.version)
            group.judge = self.judge
            self._empty(group)
            self.touch(group)
        return group

    def touch(self, group: Group) -> None:
        group.version = self.moved = self.version

    def _empty(self, group: Group) -> None:
        group.gone_since = self.gone[group.key] = self.clock

    def enroll(self, group: Group, process: ProcessRecord) -> None:
        """Count the process in the group; its gauges and totals are added apart from this."""
        group.members[process.instance] = process
        if process.lost:
            group.lost += 1
        else:
            group.processes += 1
            if group.processes > group.max_processes:
                group.max_processes = group.processes
        if group.gone_since is not None:
            group.gone_since = None
            self.gone.pop(group.key, None)
        self.touch(group)

    def unenroll(self, group: Group, process: ProcessRecord) -> None:
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
        group = self.group(key)
        if any(gauges):
            group.gauges = plus(group.gauges, gauges)
        if any(totals):
            group.totals = plus(group.totals, totals)
        self.touch(group)

    # --- how long things took

    def took(self, times: Times) -> None:
        """Note what a pool has just told of, beyond what it told before."""
        self.in_window = bounded_times(added_times([self.in_window, times]), LARGEST)

    def lately(self) -> Times:
        """Return what took how long in this window and the one before, of all processes."""
        return added_times([self.in_window, self.before_window])

    def turn_window(self) -> None:
        """Begin another window if the clock has come to it."""
        window = int(self.clock // WINDOW)
        if window != self.window:
            self.before_window = self.in_window if window == self.window + 1 else NO_TIMES
            self.in_window, self.window = NO_TIMES, window
            self.moved = self.version  # the totals are others now

    # --- processes

    def has_room(self) -> bool:
        """Whether one more process may come in."""
        return self.places() > 0

    def places(self) -> int:
        """Return how many more processes may come in."""
        return min(
            self.limits.processes - len(self.processes), (self.limits.room - self.weight) // PROCESS_WEIGHT
        )

    def turn_away(self, instance: str) -> None:
        """Count a process that there is no room for."""
        known = self.turned_away.pop(instance, None) is not None
        if len(self.turned_away) < self.limits.turned_away:
            self.turned_away[instance] = self.clock
        if not known:
            self.moved = self.version  # the totals are others now

    def take_back(self, instance: str) -> None:
        """Count it no more: it has come in, has ended, or is silent."""
        if self.turned_away.pop(instance, None) is not None:
            self.moved = self.version

    def left_out(self) -> dict[str, int]:
        """Return how many pools, connections and processes each limit leaves out now; of all limits."""
        found = dict.fromkeys(COUNTED_LIMITS, 0)
        if self.turned_away:
            full = len(self.processes) >= self.limits.processes
            found["processes" if full else "room"] += len(self.turned_away)
        for process in self.crowded.values():
            if process.lost:
                continue
            full = len(process.pools) >= self.limits.pools
            found["pools"] += process.shared
            found["pools" if full else "room"] += process.refused_pools
            full = process.unlisted > 0 or len(process.connections) >= self.limits.connections
            missing = process.left_out - process.shared - process.refused_pools  # of connections
            found["connections" if full else "room"] += missing
        return found

    def admit(self, process: ProcessRecord) -> None:
        """Take in a process that has no pools yet; what it was before it was dropped is taken back."""
        ended = self.forget_ended(process.instance)
        if ended is not None:
            for (key, totals), times in zip(ended.totals, ended.times, strict=True):
                group = self.groups.get(key)
                # A group made anew since then has never had this process among its ended ones.
                if group is not None and group.born <= ended.version:
                    group.ended = saturated(minus(group.ended, totals))
                    group.ended_times = packed(times_since(unpacked(group.ended_times), unpacked(times)))
                    self.touch(group)
        self.take_back(process.instance)
        self.processes[process.instance] = process
        self.weight += PROCESS_WEIGHT
        self.enroll(self.group(process.program_key), process)
        self.enroll(self.group(process.host_key), process)

    def lose(self, process: ProcessRecord) -> None:
        """Mark a connected process as lost: its gauges leave the groups, its totals stay."""
        self._turn(process, True)

    def find(self, process: ProcessRecord) -> None:
        """Mark a lost process as connected again."""
        self._turn(process, False)

    def _turn(self, process: ProcessRecord, lost: bool) -> None:
        sign = -1 if lost else 1
        for key in (process.program_key, process.host_key, *process.databases()):
            group = self.groups[key]
            group.processes += sign
            group.lost -= sign
            if group.processes > group.max_processes:
                group.max_processes = group.processes
        add = minus if lost else plus
        for key in (process.program_key, process.host_key):
            self.shift(key, add(NO_GAUGES, process.gauges), NO_TOTALS)
        for pool in process.pools.values():
            self.shift(pool.database, add(NO_GAUGES, pool.gauges), NO_TOTALS)
        process.lost = lost
        process.version = self.version

    def drop(self, process: ProcessRecord) -> None:
        """Take the process out; its totals go on in the ended totals of its groups."""
        if not process.lost:
            self.lose(process)
        totals: dict[RowKey, Totals] = dict.fromkeys(process.databases(), NO_TOTALS)
        took: dict[RowKey, list[Times]] = {key: [] for key in totals}
        for pool in process.pools.values():
            totals[pool.database] = plus(totals[pool.database], pool.totals)
            took[pool.database].append(unpacked(pool.times))
            self.weight -= pool_weight(pool.info)
        times = {key: added_times(parts) for key, parts in took.items()}
        totals[process.program_key] = totals[process.host_key] = process.totals
        times[process.program_key] = times[process.host_key] = added_times(list(times.values()))
        for key, happened in totals.items():
            group = self.groups[key]
            group.totals = minus(group.totals, happened)
            group.ended = saturated(plus(group.ended, happened))
            ended_times = added_times([unpacked(group.ended_times), times[key]])
            group.ended_times = packed(bounded_times(ended_times, LARGEST))
            self.unenroll(group, process)
        for connection in process.connections.values():
            self.weight -= connection_weight(connection)
        self.weight -= PROCESS_WEIGHT + sites_weight(process)
        self.judge.forget(process.instance)
        for key in process.row_keys():
            self.bury(key)
        del self.processes[process.instance]
        self.crowded.pop(process.instance, None)
        ended = EndedRecord(
            process.instance,
            process.sequence,
            self.clock,
            self.version,
            tuple(totals.items()),
            tuple(packed(times[key]) for key in totals),
        )
        self.remember_ended(ended)

    def bury(self, key: RowKey) -> None:
        """Note that there is no row of this key any more."""
        self.tombstones[str(key[0])].add(self.version, key)  # type: ignore[index]

    # --- what is remembered for a while

    def remember_ended(self, ended: EndedRecord) -> None:
        self.forget_ended(ended.instance)
        self.ended[ended.instance] = ended
        self.ended_totals += len(ended.totals)
        # A process counts in at least two groups and mostly in three; one with a thousand
        # databases takes the place of many.
        while len(self.ended) > self.limits.ended or self.ended_totals > 10 * self.limits.ended:
            self.forgotten["ended"] += 1
            self.forget_ended(next(iter(self.ended)))

    def forget_ended(self, instance: str) -> EndedRecord | None:
        ended = self.ended.pop(instance, None)
        if ended is not None:
            self.ended_totals -= len(ended.totals)
        return ended

    def expire(self, lease: float) -> None:
        """Judge by the clock what is lost, what is dropped and what is forgotten."""
        silent = []
        for process in self.processes.values():
            if self.clock - process.reported <= lease:
                break
            if not process.lost or self.clock - process.reported > LEASES * lease:
                silent.append(process)
        dropped = 0
        for process in silent:
            if self.clock - process.reported <= LEASES * lease:
                self.lose(process)
            elif dropped < DROPPED_AT_ONCE:
                dropped += 1 + len(process.pools) + len(process.connections)
                self.drop(process)
            elif not process.lost:
                self.lose(process)
        while self.turned_away:
            instance, heard = next(iter(self.turned_away.items()))
            if self.clock - heard <= lease:
                break
            self.take_back(instance)
        while self.ended:
            oldest = next(iter(self.ended.values()))
            if self.clock - oldest.at <= MEMORY:
                break
            self.forget_ended(oldest.instance)
        while self.gone:
            key, since = next(iter(self.gone.items()))
            early = self.clock - since <= MEMORY
            if early and len(self.gone) <= self.limits.gone:
                break
            self.forgotten["gone"] += early
            del self.gone[key], self.groups[key]
            self.bury(key)
            self.moved = self.version
        while self.boots:
            boot = next(iter(self.boots.values()))
            if self.clock - boot.heard <= MEMORY and len(self.boots) <= self.limits.boots:
                break
            del self.boots[boot.boot]

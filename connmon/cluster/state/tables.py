"""The tables of the replicated state, each with its own invariant. Pure.

Everything in them is ordered by when it happened, so that what expires next is always first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from connmon.cluster.state.records import BootRecord, EndedRecord, ProcessRecord
from connmon.cluster.state.times import NO_TIMES, added_times, window_of
from connmon.cluster.state.weights import PROCESS_WEIGHT
from connmon.protocol.batch import Batch
from connmon.protocol.rows import RowKey
from connmon.protocol.values import GROUPINGS, LARGEST, Grouping, Times


class Now:
    """How far the state has come.

    `version` grows by one with each batch that is applied, `clock` (seconds) by ticks only. `moved` is the
    version at which a group, or what the totals of everything are made of, last changed.
    """

    __slots__ = ("clock", "moved", "version")

    def __init__(self) -> None:
        self.version = 0
        self.clock = 0.0
        self.moved = 0

    def __repr__(self) -> str:
        return f"<Now version {self.version}, {self.clock:.1f} s>"


class Room:
    """What everything in the state weighs together, against what it may weigh.

    `weight` is the sum of the weights of all processes, pools, connections, call sites and hold profiles.
    """

    __slots__ = ("most", "weight")

    def __init__(self, most: int) -> None:
        self.most = most
        self.weight = 0

    @property
    def free(self) -> int:
        return self.most - self.weight

    @property
    def spare(self) -> int:
        """What is free for hold profiles, which leave a quarter of the room to everything else."""
        return 3 * self.most // 4 - self.weight


class Processes:
    """All processes that are connected or lost, by instance, the one that has been silent longest first.

    `crowded` has exactly those of which a limit leaves out pools or connections.
    """

    def __init__(self) -> None:
        self.by_instance: dict[str, ProcessRecord] = {}
        self.crowded: dict[str, ProcessRecord] = {}

    def __len__(self) -> int:
        return len(self.by_instance)

    def put_last(self, process: ProcessRecord) -> None:
        """Add a process that reports now, or move it behind all others."""
        self.by_instance.pop(process.instance, None)
        self.by_instance[process.instance] = process

    def remove(self, instance: str) -> None:
        del self.by_instance[instance]
        self.crowded.pop(instance, None)

    def count_left_out(self, process: ProcessRecord) -> None:
        """Recount which of the process's pools and connections a limit leaves out."""
        missing = process.missing_connections
        if not missing:
            process.refused = False
        process.left_out = process.shared + process.refused_pools + missing
        if process.left_out:
            self.crowded[process.instance] = process
        else:
            self.crowded.pop(process.instance, None)

    def silent(self, clock: float, lease: float, dropped_after: float) -> list[ProcessRecord]:
        """Return the processes that are to be lost (silent for a lease) or dropped (for `dropped_after`)."""
        silent = []
        for process in self.by_instance.values():
            if clock - process.reported <= lease:
                break
            if not process.lost or clock - process.reported > dropped_after:
                silent.append(process)
        return silent


class EndedProcesses:
    """Dropped processes, remembered so that none counts twice when it comes back; the first dropped first.

    There are at most `most` of them, with at most ten times as many totals: a process counts in two groups or
    more and mostly in three; one with a thousand databases takes the place of many. What their profiles weigh
    is in the room.
    """

    def __init__(self, most: int, room: Room) -> None:
        self._most = most
        self._room = room
        self._totals = 0
        self.by_instance: dict[str, EndedRecord] = {}
        self.forgotten = 0
        """Processes forgotten early because of the limit, since this replica was made or loaded."""

    def add(self, ended: EndedRecord) -> None:
        self.remove(ended.instance)
        self.by_instance[ended.instance] = ended
        self._totals += len(ended.totals)
        self._room.weight += len(ended.profiles or b"")
        while len(self.by_instance) > self._most or self._totals > 10 * self._most:
            self.forgotten += 1
            self.remove(next(iter(self.by_instance)))

    def remove(self, instance: str) -> EndedRecord | None:
        """Forget the process; return what was known of it."""
        ended = self.by_instance.pop(instance, None)
        if ended is not None:
            self._totals -= len(ended.totals)
            self._room.weight -= len(ended.profiles or b"")
        return ended

    def expire(self, clock: float, remember_seconds: float) -> None:
        while self.by_instance:
            oldest = next(iter(self.by_instance.values()))
            if clock - oldest.at <= remember_seconds:
                return
            self.remove(oldest.instance)


class Boots:
    """The last batch of each start of a node, so that a batch counts once; the longest silent node first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.by_boot: dict[str, BootRecord] = {}

    def has(self, batch: Batch) -> bool:
        """Whether this batch, or a later one of that start, was applied."""
        last = self.by_boot.get(batch.boot)
        return last is not None and batch.number <= last.number

    def note(self, batch: Batch, clock: float) -> None:
        """Note that the batch is applied now."""
        self.by_boot.pop(batch.boot, None)
        self.by_boot[batch.boot] = BootRecord(batch.boot, batch.number, clock)

    def expire(self, clock: float, remember_seconds: float) -> None:
        while self.by_boot:
            boot = next(iter(self.by_boot.values()))
            if clock - boot.heard <= remember_seconds and len(self.by_boot) <= self._most:
                return
            del self.by_boot[boot.boot]


class Tombstones:
    """The keys of removed rows of each grouping, and when they were removed; only the newest are kept.

    They are not in a checkpoint: a replica that loads one sends each reader everything, once. So `restart`
    forgets them: of removals at or before that version nothing is known.
    """

    def __init__(self, now: Now, most: int) -> None:
        self._now = now
        self._most = most
        self._graves: dict[Grouping, deque[tuple[int, RowKey]]] = {}
        self._floors: dict[Grouping, int] = {}
        self.restart(0)

    def restart(self, version: int) -> None:
        """Forget all removals up to this version."""
        self._graves = {grouping: deque(maxlen=self._most) for grouping in GROUPINGS}
        self._floors = dict.fromkeys(GROUPINGS, version)

    def bury(self, key: RowKey) -> None:
        """Note that the row of this key is removed now."""
        grouping: Grouping = key[0]  # type: ignore[assignment]
        graves = self._graves[grouping]
        if len(graves) == graves.maxlen:
            self._floors[grouping] = graves[0][0]
        graves.append((self._now.version, key))

    def know_all_since(self, grouping: Grouping, version: int) -> bool:
        """Whether every removal after `version` is known."""
        return version >= self._floors[grouping]

    def since(self, grouping: Grouping, version: int) -> Iterator[RowKey]:
        """Yield the keys that were removed after `version`, the newest first."""
        for removed, key in reversed(self._graves[grouping]):
            if removed <= version:
                return
            yield key


class TurnedAway:
    """Processes that there is no room for, and when each last reported; the longest silent one first.

    At most `most` are counted.
    """

    def __init__(self, now: Now, most: int) -> None:
        self._now = now
        self._most = most
        self.heard: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.heard)

    def add(self, instance: str) -> None:
        known = self.heard.pop(instance, None) is not None
        if len(self.heard) < self._most:
            self.heard[instance] = self._now.clock
        if not known:
            self._now.moved = self._now.version

    def remove(self, instance: str) -> None:
        """Count it no longer: it has come in, has ended, or is silent."""
        if self.heard.pop(instance, None) is not None:
            self._now.moved = self._now.version

    def expire(self, lease: float) -> None:
        while self.heard:
            instance, heard = next(iter(self.heard.items()))
            if self._now.clock - heard <= lease:
                return
            self.remove(instance)


class RecentTimes:
    """The times of all processes that were reported in the current window of the clock and the one before."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self.window = 0
        """The number of the current window."""
        self.counts: list[dict[int, int]] = [{}, {}, {}]
        """Of the current window; counted in place, since every report of a pool counts here."""
        self.previous = NO_TIMES

    @property
    def current(self) -> Times:
        return Times(*self.counts)

    @current.setter
    def current(self, times: Times) -> None:
        self.counts = [dict(counts) for counts in times]

    def add(self, times: Times) -> None:
        """Add what a pool reports beyond what it has reported before."""
        for counts, more in zip(self.counts, times, strict=True):
            for number, count in more.items():
                total = counts.get(number, 0) + count
                counts[number] = total if total <= LARGEST else LARGEST  # min() takes twice as long

    def total(self) -> Times:
        return added_times([self.current, self.previous])

    def turn(self) -> None:
        """Begin another window if the clock has come to it."""
        window = window_of(self._now.clock)
        if window != self.window:
            self.previous = self.current if window == self.window + 1 else NO_TIMES
            self.current, self.window = NO_TIMES, window
            self._now.moved = self._now.version


def places(processes: Processes, room: Room, most: int) -> int:
    """Return how many more processes may come in."""
    return min(most - len(processes), room.free // PROCESS_WEIGHT)

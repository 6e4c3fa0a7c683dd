"""What is wrong with pools, and with what sums them, as the state has it. Pure; changes nothing but caches.

The rules are in `connmon.protocol.verdicts`; here are the facts for them, and how verdicts of pools become
verdicts of rows:

- Nothing is judged before somebody asks. What was found of a process is kept until its next report.
- Most pools are well, and a few comparisons show it; only of others are connections and times looked at.
- A row that sums pools has each word that one of them has, of the gravest pool that has it, and says which
  that is. Pools of lost processes make none, and sums over pools that are not reported one by one only
  TIMEOUTS.
- Verdicts are as of the last report of a process, so that replicas with the same state have the same ones.
  What a full pool's server takes besides depends on others, too: that is looked up whenever a row is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import nsmallest
from operator import itemgetter
from typing import Final, NamedTuple, Protocol, TypeAlias

from connmon.cluster.state.records import WINDOW, ConnectionRecord, Group, PoolRecord, ProcessRecord
from connmon.config import Service
from connmon.database_address import DatabaseServer, plain, servers_of
from connmon.protocol import histogram
from connmon.protocol.rows import RowKey, Verdict
from connmon.protocol.values import LARGEST, VerdictWord
from connmon.protocol.verdicts import (
    DEFAULTS,
    WORDS,
    Hold,
    PoolFacts,
    Stuck,
    Thresholds,
    filler,
    gravity,
    judge,
    lost,
    overcommit,
    pool_name,
    quoted,
    rank,
    stuck,
)

#: Held connections of one process that are judged, those held longest.
JUDGED_AT_MOST: Final = 5_000

#: By how many seconds a pool's longest hold has to be longer than those that are known, to be none of them.
ROUNDED: Final = 1.0

Maxima: TypeAlias = Mapping[tuple[str, "int | None"], int]
"""How many connections database servers take, by host and port; port None: that host, any port."""


def thresholds_of(service: Service) -> Thresholds:
    """Return what the config says."""
    return Thresholds(
        service.verdict_held_long,
        service.verdict_short_hold,
        service.verdict_slow_connect,
        service.verdict_timeouts,
    )


class Groups(Protocol):
    """What the judge needs of the state."""

    groups: dict[RowKey, Group]
    processes: dict[str, ProcessRecord]
    moved: int
    """The version at which a group last changed."""


class JudgedPool(NamedTuple):
    """One pool with which something is wrong."""

    facts: PoolFacts
    verdicts: tuple[Verdict, ...]
    """The headroom of its server is not in their reasons: it is not the pool's alone."""
    stuck: Mapping[int, Stuck]
    """Its leaked and blocked connections."""


class JudgedProcess(NamedTuple):
    """What is wrong with the pools of one process."""

    version: int
    """Of the process, when it was judged."""
    pools: Mapping[int, JudgedPool]
    """Those with which something is wrong."""
    timeouts: Mapping[int, int]
    """Recent ones, of the pools that have any."""


Grave: TypeAlias = tuple[ProcessRecord, int, JudgedPool]
"""A pool with which something is wrong: of which process, and its number."""

_NOTHING: Final[Mapping[int, JudgedPool]] = {}
_NO_TIMEOUTS: Final[Mapping[int, int]] = {}
_NO_STUCK: Final[Mapping[int, Stuck]] = {}


class Judge:
    """Says what is wrong with the processes, pools and groups of one state."""

    def __init__(self, tables: Groups) -> None:
        self._tables = tables
        self.thresholds: Thresholds = DEFAULTS
        self.maxima: Maxima = {}
        self._known: dict[str, JudgedProcess] = {}
        self._fleet: tuple[int, tuple[tuple[VerdictWord, int], ...]] = (-1, ())
        self._headrooms: dict[RowKey, int | None] = {}
        self._headrooms_at = -1

    def configure(self, thresholds: Thresholds, maxima: Maxima) -> None:
        """Judge by these from now on."""
        self.thresholds = thresholds
        self.maxima = {(plain(host), port): most for (host, port), most in maxima.items()}
        self._known.clear()
        self._fleet = (-1, ())
        self._headrooms_at = -1

    def judge_as(self, other: Judge) -> None:
        """Judge as the one of the state that this one replaces."""
        self.thresholds, self.maxima = other.thresholds, other.maxima

    def forget(self, instance: str) -> None:
        """The process has gone."""
        self._known.pop(instance, None)

    # --- processes and pools

    def of_process(self, process: ProcessRecord) -> JudgedProcess:
        known = self._known.get(process.instance)
        if known is None or known.version != process.version:
            known = self._judged(process)
            # Who is still making an answer may ask for one that has gone meanwhile: nobody would forget it.
            if self._tables.processes.get(process.instance) is process:
                self._known[process.instance] = known
        return known

    def _judged(self, process: ProcessRecord) -> JudgedProcess:
        if process.lost:
            return JudgedProcess(process.version, _NOTHING, _NO_TIMEOUTS)
        at = process.reported
        window = int(at // WINDOW)
        long = self.thresholds.held_long
        # No p95 can be that long where all connects together were shorter (but for the histogram's error).
        slow_ms = 800.0 * self.thresholds.slow_connect
        pools: dict[int, JudgedPool] = {}
        timeouts: dict[int, int] = {}
        connections: dict[int, list[ConnectionRecord]] | None = None
        for number, pool in process.pools.items():
            recent, connect_ms = (0, 0) if pool.recent is None else pool.counted_lately(window)
            since = pool.held_since
            if recent:
                timeouts[number] = min(recent, LARGEST)
            elif not (
                pool.gauges.waiting or connect_ms >= slow_ms or (since is not None and at - since >= long)
            ):
                continue
            if not pool.shown:  # of a sum of several pools only counts say anything
                facts = PoolFacts(recent_timeouts=recent)
                verdicts = judge(facts, self.thresholds)
                if verdicts:
                    pools[number] = JudgedPool(facts, verdicts, _NO_STUCK)
                continue
            if connections is None:
                connections = _held_by_pool(process)
            found = self._judged_pool(process, pool, connections.get(number, []), recent)
            if found.verdicts:
                pools[number] = found
        return JudgedProcess(process.version, pools or _NOTHING, timeouts or _NO_TIMEOUTS)

    def _judged_pool(
        self, process: ProcessRecord, pool: PoolRecord, connections: list[ConnectionRecord], recent: int
    ) -> JudgedPool:
        facts = self._facts(process, pool, connections, recent)
        words = stuck(facts, self.thresholds)
        return JudgedPool(facts, judge(facts, self.thresholds, words), words)

    def _facts(
        self, process: ProcessRecord, pool: PoolRecord, connections: list[ConnectionRecord], recent: int
    ) -> PoolFacts:
        at, gauges, totals = process.reported, pool.gauges, pool.totals
        sites = process.sites.get(pool.number, {})
        held = []
        for c in connections:
            assert c.held_since is not None
            site = None if c.call_site is None else sites.get(c.call_site)
            held.append(
                Hold(
                    c.number,
                    max(0.0, at - c.held_since),
                    c.call_site,
                    c.holder_in,
                    c.holder_site,
                    None if pool.info.pooler else c.server_id,
                    None if site is None else site.holds,
                    None if site is None else site.usual,
                    c.state == "detached",
                )
            )
        longest = None if pool.held_since is None else max(0.0, at - pool.held_since)
        if longest is not None and process.missing(pool):
            known = max((hold.seconds for hold in held), default=None)
            if known is None or longest > known + ROUNDED:  # then it is one that a limit leaves out
                held.append(Hold(-1, longest))
        lately = pool.lately(at)
        return PoolFacts(
            None if gauges.unbounded else gauges.capacity,
            gauges.checked_out,
            gauges.waiting,
            0.0 if pool.waiting_since is None else max(0.0, at - pool.waiting_since),
            longest,
            held,
            histogram.quantile(lately.holds, 95),
            sum(lately.holds.values()),
            totals.hold_ms / 1000.0 / totals.checkins if totals.checkins > 0 else None,
            totals.checkins,
            recent,
            histogram.quantile(lately.connects, 95),
            sum(lately.connects.values()),
        )

    def stuck(self, process: ProcessRecord, pool: int) -> Mapping[int, Stuck]:
        """Return the leaked and blocked connections of a pool."""
        found = self.of_process(process).pools.get(pool)
        return _NO_STUCK if found is None else found.stuck

    # --- rows

    def of_own(
        self, process: ProcessRecord, pool: PoolRecord | None = None
    ) -> tuple[tuple[Verdict, ...], int]:
        """Return the verdicts and the recent timeouts of a process, or of one of its pools."""
        if process.lost:
            return (lost(),), 0
        found = self.of_process(process)
        if pool is not None:
            own = found.pools.get(pool.number)
            verdicts = () if own is None else self._verdicts(process, pool.number, own)
            return verdicts, found.timeouts.get(pool.number, 0)
        graves = [(process, number, one) for number, one in found.pools.items()]
        return self._summed(graves, process.gauges.pools > 1, "process"), sum(found.timeouts.values())

    def of_group(self, group: Group) -> tuple[tuple[Verdict, ...], int]:
        """Return the verdicts and the recent timeouts of a group; not what `of_servers` returns."""
        if group.state == "lost":
            return (lost(group.lost),), 0
        database = group.key if group.key[0] == "database" else None
        return self.of_pools(group.members.values(), database, group.gauges.pools > 1, str(group.key[0]))

    def of_pools(
        self, processes: Iterable[ProcessRecord], database: RowKey | None, several: bool, by: str
    ) -> tuple[tuple[Verdict, ...], int]:
        """Return the verdicts and recent timeouts of all pools of these processes, or of one database's.

        `several`: whether these are several pools, so that the reason has to say which one is meant. `by`:
        what the row is; that need not be said.
        """
        timeouts = 0
        graves: list[tuple[ProcessRecord, int, JudgedPool]] = []
        known = self._known
        for process in processes:
            found = known.get(process.instance)
            if found is None or found.version != process.version:
                found = self.of_process(process)
            if not (found.pools or found.timeouts):
                continue
            for number, count in found.timeouts.items():
                if database is None or process.pools[number].database == database:
                    timeouts += count
            for number, one in found.pools.items():
                if database is None or process.pools[number].database == database:
                    graves.append((process, number, one))
        return self._summed(graves, several, by), min(timeouts, LARGEST)

    def _summed(self, graves: list[Grave], several: bool, by: str) -> tuple[Verdict, ...]:
        """Return each word that one of these pools has, the gravest first, of the gravest that has it."""
        worst: dict[VerdictWord, tuple[tuple[int, float, str, int], Grave]] = {}
        for grave in graves:
            process, number, one = grave
            for verdict in one.verdicts:
                # Of equal ones always the same, in whatever order they come.
                key = (*gravity(verdict, one.facts), process.instance, number)
                if verdict.word not in worst or key > worst[verdict.word][0]:
                    worst[verdict.word] = key, grave
        found: list[Verdict] = []
        for word in sorted(worst, key=rank, reverse=True):
            process, number, one = worst[word][1]
            verdicts = self._verdicts(process, number, one) if word == "SATURATED" else one.verdicts
            (verdict,) = [verdict for verdict in verdicts if verdict.word == word]
            if several:
                more = 0 if found or by == "process" else len(graves) - 1
                verdict = quoted(verdict, name_of_pool(process, number, by, more))
            found.append(verdict)
        return tuple(found)

    def fillers(self, process: ProcessRecord) -> Iterator[tuple[int, str, Verdict, int]]:
        """Yield the saturated pools of which one line holds most: number, line, its verdict, who wait."""
        for number, one in self.of_process(process).pools.items():
            if any(verdict.word == "SATURATED" for verdict in one.verdicts):
                found = filler(self._with_headroom(process, number, one), self.thresholds, one.stuck)
                if found is not None:
                    yield (number, *found, one.facts.waiting)

    def _with_headroom(self, process: ProcessRecord, number: int, one: JudgedPool) -> PoolFacts:
        headroom = self._headroom(process.pools[number].database) if self.maxima else None
        return one.facts if headroom is None else one.facts._replace(headroom=headroom)

    def _verdicts(self, process: ProcessRecord, number: int, one: JudgedPool) -> tuple[Verdict, ...]:
        """Return the verdicts of a pool, with what its server takes besides where it is full."""
        if self.lasts(one.verdicts):
            return one.verdicts
        facts = self._with_headroom(process, number, one)
        return one.verdicts if facts is one.facts else judge(facts, self.thresholds, one.stuck)

    def lasts(self, verdicts: Iterable[Verdict]) -> bool:
        """Return whether these stay what they are for as long as their processes say nothing new."""
        return not self.maxima or all(verdict.word != "SATURATED" for verdict in verdicts)

    def fleet(self) -> tuple[tuple[VerdictWord, int], ...]:
        """Return how many programs have each verdict as their gravest, the gravest first."""
        tables = self._tables
        if self._fleet[0] != tables.moved:
            from_groups: Counter[VerdictWord] = Counter()
            for key, group in tables.groups.items():
                if key[0] == "program" and group.members:
                    verdicts, _ = self.of_group(group)
                    if verdicts:
                        from_groups[verdicts[0].word] += 1
            counts = tuple((word, from_groups[word]) for word in WORDS if from_groups[word])
            self._fleet = (tables.moved, counts)
        return self._fleet[1]

    # --- database servers

    def of_servers(self, group: Group) -> tuple[Verdict, ...]:
        """Return OVERCOMMIT where a database server's pools may open more connections than it takes."""
        if not self.maxima or group.key[0] != "database" or group.state == "gone":
            return ()
        found = self._taken(group.key)
        if found is None:
            return ()
        most, capacity, _, server = found
        verdict = overcommit(capacity, most, server)
        return () if verdict is None else (verdict,)

    def _headroom(self, database: RowKey) -> int | None:
        """Return how many more connections the server takes than it may get already."""
        if self._headrooms_at != self._tables.moved:
            self._headrooms, self._headrooms_at = {}, self._tables.moved
        if database not in self._headrooms:
            found = self._taken(database)
            if found is None:
                self._headrooms[database] = None
            else:
                most, capacity, connections, _ = found
                self._headrooms[database] = most - (connections if capacity is None else capacity)
        return self._headrooms[database]

    def _taken(self, database: RowKey) -> tuple[int, int | None, int, DatabaseServer] | None:
        """Return what a database's server takes, what all pools in it may open and have open, and the server.

        Of several servers, each of which may get all of the pools' connections, the one that takes fewest.
        None: what they take is not known.
        """
        judged: list[tuple[int, DatabaseServer]] = []
        for server in _servers(database):
            most = self.maxima.get((str(server.host), server.port), self.maxima.get((str(server.host), None)))
            if most is not None:
                judged.append((most, server))
        if not judged:
            return None
        most, server = min(judged, key=itemgetter(0))
        capacity: int | None = 0
        connections = 0
        for key, group in self._tables.groups.items():
            # Of processes that are lost it is not known: what is known may be too much already.
            if key[0] == "database" and group.processes and server in _servers(key):
                connections += group.gauges.connections
                if capacity is not None:
                    capacity = None if group.gauges.unbounded else capacity + group.gauges.capacity
        return most, capacity, connections, server


def _held_by_pool(process: ProcessRecord) -> dict[int, list[ConnectionRecord]]:
    """Return the held connections of each pool, those held longest of very many."""
    held = [
        (connection.held_since, connection.number, connection)
        for connection in process.connections.values()
        if connection.held_since is not None
    ]
    if len(held) > JUDGED_AT_MOST:
        held = nsmallest(JUDGED_AT_MOST, held)
    found: dict[int, list[ConnectionRecord]] = {}
    for _, _, connection in held:
        found.setdefault(connection.pool, []).append(connection)
    return found


def name_of_pool(process: ProcessRecord, number: int, by: str = "process", more: int = 0) -> str:
    """Say which pool is meant in a row of that grouping; `more`: with how many others something is wrong."""
    who = process.process
    words = [pool_name(process.pools[number].info.url)]
    if by in ("host", "database"):
        words.append(f"of {who.program}")
    if by == "database":
        words.append(f"on {who.host}")
    text = " ".join(words)
    if by != "process":
        text += f", pid {who.pid}"
    return f"{text} (and {more} more)" if more else text


def _servers(database: RowKey) -> tuple[DatabaseServer, ...]:
    """Return the servers of a database's key, as hosts are compared."""
    _, dialect, host, port, _ = database
    return servers_of({"dialect": dialect, "database_host": host, "database_port": port})

"""The verdicts of processes and pools, and of the rows that sum pools. Pure; changes only caches.

The rules are in `connmon.protocol.verdicts`; here is how verdicts of pools become verdicts of rows:

- Nothing is judged before somebody asks. A verdict is kept until the next report of its process.
- Most pools are well, and a few comparisons show it; only for the others are connections and times looked at.
- A row that sums pools has each word that one of them has, of the gravest pool that has it, and says which
  pool that is. Pools of lost processes have no verdict, and sums over pools that are not reported one by one
  only TIMEOUTS.
- Verdicts are as of the last report of a process, so that replicas with the same state have the same ones.
  How many connections a full pool's server still takes, and which call site takes most of its program's time,
  depends on other processes too: it is looked up whenever a row is made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from connmon.cluster.state.contents import Contents
from connmon.cluster.state.groups import Group
from connmon.cluster.state.hold_profiles import top_of
from connmon.cluster.state.pool_facts import facts_of, held_by_pool
from connmon.cluster.state.records import ConnectionRecord, PoolRecord, ProcessRecord
from connmon.cluster.state.settings import ANSWERS
from connmon.cluster.state.times import window_of
from connmon.config import Service
from connmon.database_address import DatabaseServer, servers_of
from connmon.protocol.rows import RowKey, Verdict
from connmon.protocol.server_capacity import Maxima, ServerLoad, ServerLoads
from connmon.protocol.values import LARGEST, VerdictWord
from connmon.protocol.verdicts import (
    DEFAULTS,
    PoolFacts,
    Stuck,
    Thresholds,
    TopCallSite,
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


def thresholds_of(service: Service) -> Thresholds:
    """Return the thresholds of the config."""
    return Thresholds(
        held_long=service.verdict_held_long,
        short_hold=service.verdict_short_hold,
        slow_connect=service.verdict_slow_connect,
        timeouts=service.verdict_timeouts,
    )


class JudgedPool(NamedTuple):
    """One pool that has a verdict."""

    facts: PoolFacts
    verdicts: tuple[Verdict, ...]
    """Without the headroom of its server and the top call site of its program in the reasons, which other
    processes change."""
    stuck: Mapping[int, Stuck]
    """Its leaked and blocked connections, by number."""


class JudgedProcess(NamedTuple):
    """The verdicts of the pools of one process."""

    version: int
    """Of the process, when it was judged."""
    pools: Mapping[int, JudgedPool]
    """Those that have a verdict."""
    timeouts: Mapping[int, int]
    """Recent timeouts, of the pools that have any."""
    stuck: Mapping[int, Stuck]
    """The leaked and blocked connections of all its pools, by number."""


GravePool: TypeAlias = tuple[ProcessRecord, int, JudgedPool]
"""A pool that has a verdict: its process, its number."""

_NO_POOLS: Final[Mapping[int, JudgedPool]] = {}
_NO_TIMEOUTS: Final[Mapping[int, int]] = {}
_NO_STUCK: Final[Mapping[int, Stuck]] = {}


class Judge:
    """Judges the processes, pools and groups of one state.

    `most` is how many held connections of one process are looked at, those held longest.
    """

    def __init__(self, contents: Contents, most: int = ANSWERS.judged_connections) -> None:
        self._contents = contents
        self._most = most
        self.thresholds: Thresholds = DEFAULTS
        self.maxima: Maxima = {}
        self._judged: dict[str, JudgedProcess] = {}
        self._loads = ServerLoads({})
        self._loads_at = -1
        """The version as of which groups had last changed when the loads were summed."""
        self._tops: dict[tuple[RowKey, RowKey], TopCallSite | None] = {}
        """Of the programs and databases asked for."""
        self._tops_at = -1
        """The version as of which groups had last changed when the first of these was asked for."""

    def __repr__(self) -> str:
        return f"<Judge: {len(self._judged)} processes judged, {len(self.maxima)} server maxima>"

    def configure(self, thresholds: Thresholds, maxima: Maxima) -> None:
        """Judge by these from now on."""
        self.thresholds, self.maxima = thresholds, maxima
        self._judged.clear()
        self._loads_at = -1

    def judge_as(self, other: Judge) -> None:
        """Judge as the judge of the state that this one's state replaces."""
        self.thresholds, self.maxima = other.thresholds, other.maxima

    def forget(self, instance: str) -> None:
        """Forget a process that has gone."""
        self._judged.pop(instance, None)

    # --- processes and pools

    def of_process(self, process: ProcessRecord) -> JudgedProcess:
        judged = self._judged.get(process.instance)
        if judged is None or judged.version != process.version:
            judged = self._judge(process)
            # An answer in several frames may ask for a process that has gone: nobody would forget it.
            if self._contents.processes.by_instance.get(process.instance) is process:
                self._judged[process.instance] = judged
        return judged

    def _judge(self, process: ProcessRecord) -> JudgedProcess:
        if process.lost:
            return JudgedProcess(process.version, _NO_POOLS, _NO_TIMEOUTS, _NO_STUCK)
        window = window_of(process.reported)
        pools: dict[int, JudgedPool] = {}
        timeouts: dict[int, int] = {}
        stuck: dict[int, Stuck] = {}
        held: dict[int, list[ConnectionRecord]] | None = None
        for number, pool in process.pools.items():
            recent, connect_ms = (0, 0) if pool.recent is None else pool.recent_counts(window)
            if recent:
                timeouts[number] = min(recent, LARGEST)
            elif self._is_well(process, pool, connect_ms):
                continue
            if not pool.shown:  # of a sum of several pools only counts mean anything
                facts = PoolFacts(recent_timeouts=recent)
                judged = JudgedPool(facts, judge(facts, self.thresholds), _NO_STUCK)
            else:
                if held is None:
                    held = held_by_pool(process, self._most)
                judged = self._judge_pool(process, pool, held.get(number, []), recent)
            if judged.verdicts:
                pools[number] = judged
                stuck.update(judged.stuck)
        return JudgedProcess(
            version=process.version,
            pools=pools or _NO_POOLS,
            timeouts=timeouts or _NO_TIMEOUTS,
            stuck=stuck or _NO_STUCK,
        )

    def _is_well(self, process: ProcessRecord, pool: PoolRecord, connect_ms: int) -> bool:
        """Whether a pool without recent timeouts can have no verdict, by what is cheap to see."""
        # No p95 can be that long where all connects together were shorter (but for the histogram's error).
        if pool.gauges.waiting or connect_ms >= 800.0 * self.thresholds.slow_connect:
            return False
        since = pool.held_since
        return since is None or process.reported - since < self.thresholds.held_long

    def _judge_pool(
        self, process: ProcessRecord, pool: PoolRecord, held: list[ConnectionRecord], recent_timeouts: int
    ) -> JudgedPool:
        facts = facts_of(process, pool, held, recent_timeouts)
        words = stuck(facts, self.thresholds)
        return JudgedPool(facts, judge(facts, self.thresholds, words), words)

    def stuck(self, process: ProcessRecord) -> Mapping[int, Stuck]:
        """Return the leaked and blocked connections of a process, by number."""
        return self.of_process(process).stuck

    def fillers(self, process: ProcessRecord) -> Iterator[tuple[int, str, Verdict, int]]:
        """Yield the saturated pools of which one call site holds most.

        Each with its number, the call site, the verdict and how many wait.
        """
        for number, judged in self.of_process(process).pools.items():
            if any(verdict.word == "SATURATED" for verdict in judged.verdicts):
                facts = self._with_others(process, number, judged)
                most = filler(facts, self.thresholds, judged.stuck)
                if most is not None:
                    yield (number, *most, judged.facts.waiting)

    # --- rows

    def of_own(
        self, process: ProcessRecord, pool: PoolRecord | None = None
    ) -> tuple[tuple[Verdict, ...], int]:
        """Return the verdicts and the recent timeouts of a process, or of one of its pools."""
        if process.lost:
            return (lost(),), 0
        judged = self.of_process(process)
        if pool is not None:
            own = judged.pools.get(pool.number)
            verdicts = () if own is None else self._verdicts(process, pool.number, own)
            return verdicts, judged.timeouts.get(pool.number, 0)
        graves = [(process, number, one) for number, one in judged.pools.items()]
        return self._summed(graves, process.gauges.pools > 1, "process"), sum(judged.timeouts.values())

    def of_group(self, group: Group) -> tuple[tuple[Verdict, ...], int]:
        """Return the verdicts and the recent timeouts of a group; without those of `of_servers`."""
        if group.state == "lost":
            return (lost(group.lost),), 0
        database = group.key if group.key[0] == "database" else None
        return self._of_pools(group.members.values(), database, group.gauges.pools > 1, str(group.key[0]))

    def of_database_user(
        self, processes: Mapping[str, ProcessRecord], database: RowKey
    ) -> tuple[tuple[Verdict, ...], int]:
        """Return the verdicts and the recent timeouts of one program's pools in a database."""
        connected = [process for process in processes.values() if not process.lost]
        if not connected:
            return (lost(len(processes)),), 0
        pools = [
            pool for process in connected for pool in process.pools.values() if pool.database == database
        ]
        several = sum([pool.gauges.pools for pool in pools]) > 1
        return self._of_pools(processes.values(), database, several, "program")

    def _of_pools(
        self, processes: Collection[ProcessRecord], database: RowKey | None, several: bool, grouping: str
    ) -> tuple[tuple[Verdict, ...], int]:
        """Return the verdicts and recent timeouts of all pools of these processes, or of one database's.

        `several`: whether these are several pools, so that the reason has to say which one it means.
        """
        timeouts = 0
        graves: list[GravePool] = []
        known = self._judged
        for process in processes:
            judged = known.get(process.instance)
            if judged is None or judged.version != process.version:
                judged = self.of_process(process)
            if not (judged.pools or judged.timeouts):
                continue
            for number, count in judged.timeouts.items():
                if database is None or process.pools[number].database == database:
                    timeouts += count
            for number, one in judged.pools.items():
                if database is None or process.pools[number].database == database:
                    graves.append((process, number, one))
        return self._summed(graves, several, grouping), min(timeouts, LARGEST)

    def _summed(self, graves: list[GravePool], several: bool, grouping: str) -> tuple[Verdict, ...]:
        """Return one verdict per word that these pools have, the gravest first, each of the gravest pool."""
        worst: dict[VerdictWord, tuple[tuple[int, float, str, int], GravePool]] = {}
        for grave in graves:
            process, number, judged = grave
            for verdict in judged.verdicts:
                # Of equal ones always the same, in whatever order they come.
                key = (*gravity(verdict, judged.facts), process.instance, number)
                if verdict.word not in worst or key > worst[verdict.word][0]:
                    worst[verdict.word] = key, grave
        summed: list[Verdict] = []
        for word in sorted(worst, key=rank, reverse=True):
            process, number, judged = worst[word][1]
            own = self._verdicts(process, number, judged) if word == "SATURATED" else judged.verdicts
            (verdict,) = [verdict for verdict in own if verdict.word == word]
            if several:
                more = 0 if summed or grouping == "process" else len(graves) - 1
                verdict = quoted(verdict, name_of_pool(process, number, grouping, more))
            summed.append(verdict)
        return tuple(summed)

    def _verdicts(self, process: ProcessRecord, number: int, judged: JudgedPool) -> tuple[Verdict, ...]:
        """Return the verdicts of a pool; where it is full, with what depends on other processes."""
        if self.lasts(judged.verdicts):
            return judged.verdicts
        facts = self._with_others(process, number, judged)
        return judged.verdicts if facts is judged.facts else judge(facts, self.thresholds, judged.stuck)

    def lasts(self, verdicts: Iterable[Verdict]) -> bool:
        """Return whether these verdicts change only with a report of their processes."""
        return all(verdict.word != "SATURATED" for verdict in verdicts)

    # --- database servers

    def of_servers(self, group: Group) -> tuple[Verdict, ...]:
        """Return OVERCOMMIT where a database server's pools may open more connections than it takes."""
        if not self.maxima or group.key[0] != "database" or group.state == "gone":
            return ()
        load = self._load(group.key)
        verdict = None if load is None else overcommit(load.capacity, load.most, load.server)
        return () if verdict is None else (verdict,)

    def _with_others(self, process: ProcessRecord, number: int, judged: JudgedPool) -> PoolFacts:
        """Return the facts of a pool, with those that depend on other processes.

        These are how many more connections its server takes, and the top call site of its program.
        """
        facts, database = judged.facts, process.pools[number].database
        top = self._top(process, database)
        if top is not None:
            facts = facts._replace(top=top)
        load = self._load(database) if self.maxima else None
        if load is None:
            return facts
        expected = load.connections if load.capacity is None else load.capacity
        return facts._replace(headroom=load.most - expected)

    def _top(self, process: ProcessRecord, database: RowKey) -> TopCallSite | None:
        """Return the call site that takes most of the time of the process's program in a database."""
        moved = self._contents.now.moved
        if self._tops_at != moved:
            self._tops, self._tops_at = {}, moved
        key = (process.program_key, database)
        if key not in self._tops:
            group = self._contents.groups.by_key.get(process.program_key)
            sums = None if group is None else group.holds
            window = self._contents.recent_times.window
            program = process.process.program
            self._tops[key] = None if sums is None else top_of(program, sums, database, window)
        return self._tops[key]

    def _load(self, database: RowKey) -> ServerLoad | None:
        """Return the load of the server of a database."""
        if self._loads_at != self._contents.now.moved:
            self._loads = ServerLoads(self.maxima)
            for key, group in self._contents.groups.by_key.items():
                # Of lost processes the present is unknown: what is known may be too much already.
                if key[0] == "database" and group.processes:
                    capacity = None if group.gauges.unbounded else group.gauges.capacity
                    self._loads.add(_servers(key), capacity, group.gauges.connections)
            self._loads_at = self._contents.now.moved
        return self._loads.tightest(_servers(database))


def name_of_pool(process: ProcessRecord, number: int, grouping: str = "process", more: int = 0) -> str:
    """Return how a row of that grouping names a pool; `more`: how many other pools of it have a verdict."""
    identity = process.process
    words = [pool_name(process.pools[number].info.url)]
    if grouping in ("host", "database"):
        words.append(f"of {identity.program}")
    if grouping == "database":
        words.append(f"on {identity.host}")
    text = " ".join(words)
    if grouping != "process":
        text += f", pid {identity.pid}"
    return f"{text} (and {more} more)" if more else text


def _servers(database: RowKey) -> tuple[DatabaseServer, ...]:
    """Return the servers of a database's key, as hosts are compared."""
    _, dialect, host, port, _ = database
    assert isinstance(dialect, (str, type(None)))
    assert isinstance(host, (str, type(None)))
    assert isinstance(port, (int, type(None)))
    return servers_of(dialect, host, port)

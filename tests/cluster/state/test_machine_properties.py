"""The state machine by properties: it ends in the truth after any loss, repetition and order.

The model: applications open, use and close connections and make reports; a network loses, repeats and
reorders these, over several nodes; nodes gather batches, propose some of them twice, restart, and take ended
client connections for departures, rightly or not; a second replica lags and is loaded from checkpoints;
readers follow changes on either replica.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import add
from random import Random
from typing import get_args

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from connmon.cluster.state.answer_frames import About
from connmon.cluster.state.groups import Group
from connmon.cluster.state.hold_profiles import added, highest
from connmon.cluster.state.machine import Outcome, StateMachine
from connmon.cluster.state.records import NO_GAUGES, NO_TOTALS
from connmon.cluster.state.settings import Limits, StateSettings
from connmon.cluster.state.times import NO_TIMES, added_times
from connmon.protocol.batch import Batch, Departure, Tick
from connmon.protocol.histogram import BUCKETS
from connmon.protocol.queries import Query
from connmon.protocol.reports import (
    Connection,
    HoldProfile,
    PoolInfo,
    PoolReport,
    Process,
    Report,
    SiteReport,
)
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Row,
    RowKey,
    Rows,
    SiteRow,
    database_key,
)
from connmon.protocol.values import (
    GROUPINGS,
    OTHER_CALL_SITES,
    Gauges,
    Grouping,
    HolderIn,
    Peaks,
    Times,
    Totals,
    plus,
)

LEASE = 15.0
NODES = ("node1", "node2", "node3")
DATABASES = ("nova", "neutron")
HOSTS = ("ctl1", "ctl2")
PROGRAMS = ("api", "agent")


def ask(state: StateMachine, query: Query) -> list[Rows]:
    return list(state.rows(query, About("s", "n", None, True, 0.0)))


def add_gauges(parts: Iterator[Gauges]) -> Gauges:
    result = NO_GAUGES
    for part in parts:
        result = plus(result, part)
    return result


def add_totals(parts: Iterator[Totals]) -> Totals:
    result = NO_TOTALS
    for part in parts:
        result = plus(result, part)
    return result


def counts_by_site(profiles: Iterable[tuple[str, HoldProfile]]) -> dict[str, list[int]]:
    """Return the counts of each call site, summed: of the labels only the database's, and their sum."""
    counts: dict[str, list[int]] = {}
    for name, profile in profiles:
        where = profile.where
        own = [profile.holds, profile.held_ms, profile.waited_ms, profile.caused_ms]
        own += [where.get("database", 0), sum(where.values())]
        counts[name] = list(map(add, own, counts.get(name, [0] * len(own))))
    return counts


def sums_of(group: Group) -> dict[str, list[int]]:
    """Return what the sums of a program say, by call site."""
    holds = group.holds or ()
    return counts_by_site((name, hold_sum.profile()) for _, name, hold_sum in holds)


class Pool:
    """One pool of an application, or (with `real` False) the remains of closed ones."""

    def __init__(self, database: str, real: bool = True) -> None:
        self.info = PoolInfo(
            f"mysql://db/{database}", "mysql", "db", 3306, database, "QueuePool", 5, 10, 30.0
        )  # fmt: skip
        self.real = real
        self.connections: dict[int, bool] = {}
        """Whether each is checked out."""
        self.totals = NO_TOTALS
        self.times = NO_TIMES
        self.peak = 0
        self.sites: dict[str, HoldProfile] = {}

    @property
    def key(self) -> RowKey:
        return database_key(self.info)

    @property
    def gauges(self) -> Gauges:
        if not self.real:
            return NO_GAUGES
        return Gauges(1, 15, 0, len(self.connections), sum(self.connections.values()))

    def report(self, number: int, with_info: bool) -> PoolReport:
        held = 1.0 if any(self.connections.values()) else None
        peaks = Peaks(max(self.peak, len(self.connections)), self.gauges.checked_out)
        return PoolReport(
            number, self.info if with_info else None, self.gauges, self.totals, peaks, None, held, self.times
        )  # fmt: skip


class Application:
    """One process: the truth, and a ledger that reports it."""

    def __init__(self, instance: str, host: str, program: str, with_sites: bool = True) -> None:
        self.instance = instance
        self.with_sites = with_sites
        self.who = Process(host, program, 1, 0, None, None, 1.0)
        self.pools: dict[int, Pool] = {}
        self.numbers = 0
        self.sequence = 0
        self.alive = True
        self.changed_pools: dict[int, bool] = {}
        """Pools to report, and whether with their identity."""
        self.closed_pools: list[int] = []
        self.changed: set[tuple[int, int]] = set()
        self.closed: list[int] = []
        self.peak = 0
        self.largest = 0
        """The most connections it ever had."""
        self.reported_totals: dict[int, dict[RowKey, Totals]] = {0: {}}
        """Its totals by database in each report, by sequence."""
        self.reported_times: dict[int, Times] = {0: NO_TIMES}
        self.others = HoldProfile()
        """Of the call sites of all pools that are not reported one by one."""
        self.changed_sites: set[tuple[int, str]] = set()
        self.visible: dict[tuple[int, str], HoldProfile] = {}
        """The profile of each pool's call sites in the reports so far."""
        self.ended_profiles: dict[str, HoldProfile] = {}
        """What reports have said of each call site in pools that are closed."""
        self.reported_profiles: dict[int, dict[str, list[int]]] = {0: {}}
        """What reports have said of each call site in all pools, by sequence."""
        self.accepted = 0
        """The latest report that the state has."""

    def next(self) -> int:
        self.numbers += 1
        return self.numbers

    @property
    def gauges(self) -> Gauges:
        return add_gauges(pool.gauges for pool in self.pools.values())

    @property
    def totals(self) -> Totals:
        return add_totals(pool.totals for pool in self.pools.values())

    def _count(self, number: int, **more: int) -> None:
        pool = self.pools[number]
        pool.totals = plus(pool.totals, Totals(**more))
        happened = [{number % 3: count} for number, count in enumerate(more.values()) if count]
        if happened:
            pool.times = added_times([pool.times, Times({}, *(happened * 2)[:2])])
        self.changed_pools.setdefault(number, False)
        pool.peak = max(pool.peak, len(pool.connections))
        self.peak = max(self.peak, self.gauges.connections)
        self.largest = max(self.largest, self.peak)

    def open_pool(self, database: str) -> None:
        number = self.next()
        self.pools[number] = Pool(database)
        self.changed_pools[number] = True

    def close_pool(self, number: int) -> None:
        pool = self.pools[number]
        for connection in list(pool.connections):
            self.close(number, connection)
        del self.pools[number]
        self.changed_pools.pop(number, None)
        self.closed_pools.append(number)
        remains = next((n for n, p in self.pools.items() if not p.real and p.info == pool.info), None)
        if remains is None:
            remains = self.next()
            self.pools[remains] = Pool(str(pool.info.database), real=False)
            self.changed_pools[remains] = True
        self.pools[remains].totals = plus(self.pools[remains].totals, pool.totals)
        self.pools[remains].times = added_times([self.pools[remains].times, pool.times])
        for name, profile in pool.sites.items():
            heirs = self.pools[remains].sites
            heirs[name] = added(heirs.get(name, HoldProfile()), profile)
            self.changed_sites.add((remains, name))
        self.changed_pools.setdefault(remains, False)

    def open(self, number: int) -> None:
        connection = self.next()
        self.pools[number].connections[connection] = False
        self.changed.add((number, connection))
        self._count(number, connects=1)

    def use(self, number: int, connection: int) -> None:
        held = self.pools[number].connections
        held[connection] = not held[connection]
        self.changed.add((number, connection))
        self._count(number, **({"checkouts": 1} if held[connection] else {"checkins": 1}))
        where = {"database": connection % 7, f"package{connection % 12}": 1 + connection % 5}
        more = HoldProfile(1, 20 + connection, connection % 3, connection % 2, where)
        if connection % 5 == 0:
            self.others = added(self.others, more)
            self.changed_sites.add((0, OTHER_CALL_SITES))
            return
        name, sites = f"views.py:{connection % 3} f", self.pools[number].sites
        sites[name] = added(sites.get(name, HoldProfile()), more)
        self.changed_sites.add((number, name))

    def close(self, number: int, connection: int) -> None:
        held = self.pools[number].connections.pop(connection)
        self.changed.discard((number, connection))
        self.closed.append(connection)
        self._count(number, closes=1, checkins=int(held))

    def report(self, full: bool) -> Report:
        """Return a full report, or the changes since the last report."""
        self.sequence += 1
        full = full or self.sequence == 1
        every = {(n, c) for n, pool in self.pools.items() for c in pool.connections}
        report = Report(
            self.instance,
            self.sequence,
            0 if full else self.sequence - 1,
            1.0,
            Peaks(max(self.peak, self.gauges.connections), self.gauges.checked_out),
            pools=tuple(
                pool.report(number, full or self.changed_pools[number])
                for number, pool in self.pools.items()
                if full or number in self.changed_pools
            ),
            closed_pools=() if full else tuple(self.closed_pools),
            connections=tuple(self._connection(*each) for each in sorted(every if full else self.changed)),
            closed_connections=() if full else tuple(self.closed),
            process=self.who if full else None,
            sites=tuple(self._sites(full)),
        )
        self._note_profiles()
        self.changed_pools, self.changed = {}, set()
        self.closed_pools, self.closed = [], []
        self.peak = 0
        for pool in self.pools.values():
            pool.peak = 0
        self.reported_totals[self.sequence] = self.by_database()
        self.reported_times[self.sequence] = added_times([pool.times for pool in self.pools.values()])
        return report

    def _sites(self, full: bool) -> Iterator[SiteReport]:
        """Yield the call sites that are due: changed ones of each pool in every second report."""
        if not self.with_sites:
            return
        every = {(n, name): profile for n, pool in self.pools.items() for name, profile in pool.sites.items()}
        if self.others.holds:
            every[0, OTHER_CALL_SITES] = self.others
        for number, name in list(self.visible):
            if number and number not in self.pools:
                ended = self.ended_profiles
                ended[name] = added(ended.get(name, HoldProfile()), self.visible.pop((number, name)))
        for key, profile in every.items():
            if full or (key in self.changed_sites and (self.sequence + key[0]) % 2):
                self.changed_sites.discard(key)
                self.visible[key] = profile
                yield SiteReport(*key, profile=profile, stack=(f"views.py:{self.sequence} f",))

    def _note_profiles(self) -> None:
        remains: dict[str, HoldProfile] = {}
        living: list[tuple[str, HoldProfile]] = []
        for (number, name), profile in self.visible.items():
            if number and not self.pools[number].real:
                remains[name] = added(remains.get(name, HoldProfile()), profile)
            else:
                living.append((name, profile))
        for name, profile in remains.items():
            self.ended_profiles[name] = highest(profile, self.ended_profiles.get(name, profile))
        self.reported_profiles[self.sequence] = counts_by_site([*living, *self.ended_profiles.items()])

    def by_database(self) -> dict[RowKey, Totals]:
        return {
            key: add_totals(pool.totals for pool in self.pools.values() if pool.key == key)
            for key in {pool.key for pool in self.pools.values()}
        }

    def _connection(self, number: int, connection: int) -> Connection:
        held = self.pools[number].connections[connection]
        state = "checked_out" if held else "idle"
        return msgspec.convert(
            (connection, number, connection, state, 1.0, 0.5 if held else None, None), Connection
        )


class Follower:
    """A reader of one grouping that asks for changes only."""

    def __init__(self, by: Grouping, host: str | None = None, program: str | None = None) -> None:
        self.query = Query(by, host=host, program=program)
        self.rows: dict[RowKey, Row] = {}

    def read(self, state: StateMachine) -> None:
        for frame in ask(state, self.query):
            if frame.complete:
                self.rows = {}
            for key in frame.removed:
                self.rows.pop(key, None)
            self.rows |= {row.key: row for row in frame.rows}
            self.query = msgspec.structs.replace(self.query, epoch=frame.epoch, since=frame.version)


def fresh(state: StateMachine, query: Query) -> dict[RowKey, Row]:
    query = msgspec.structs.replace(query, epoch="", since=0)
    return {row.key: row for frame in ask(state, query) for row in frame.rows}


def check_sums(state: StateMachine) -> None:
    """Assert that the groups are what their processes add up to, and that nothing is negative."""
    for process in state.processes.values():
        assert len(process.connections) == sum(pool.listed for pool in process.pools.values())
        counted = process.shared + process.refused_pools + process.missing_connections
        assert process.left_out == counted
        assert (process.instance in state.contents.processes.crowded) == (process.left_out > 0)
        assert process.gauges == add_gauges(pool.gauges for pool in process.pools.values())
        assert process.totals == add_totals(pool.totals for pool in process.pools.values())
    for key, group in state.groups.items():
        members = {
            process.instance: process
            for process in state.processes.values()
            if key in (process.program_key, process.host_key, *process.databases())
        }
        assert group.members == members
        present = [p for p in members.values() if not p.lost]
        assert (group.processes, group.lost) == (len(present), len(members) - len(present))
        if key[0] == "database":
            own = [pool for p in members.values() for pool in p.pools.values() if pool.database == key]
            shown = [pool for p in present for pool in p.pools.values() if pool.database == key]
            assert group.totals == add_totals(pool.totals for pool in own)
            assert group.gauges == add_gauges(pool.gauges for pool in shown)
        else:
            assert group.totals == add_totals(p.totals for p in members.values())
            assert group.gauges == add_gauges(p.gauges for p in present)
        assert min(*group.gauges, *group.totals, *group.ended) >= 0
        assert group.max_processes >= group.processes
        assert group.max_connections >= group.gauges.connections
        assert group.max_checked_out >= group.gauges.checked_out
        assert (group.gone_since is not None) == (not members) == (key in state.contents.groups.gone)


def check_weight(state: StateMachine) -> None:
    """Assert that the state weighs what it weighs after a load: replicas decide by it what they refuse."""
    loaded = StateMachine.decode(state.encode(), state.settings)
    assert loaded.contents.room.weight == state.contents.room.weight


class Cluster(RuleBasedStateMachine):
    """The rules of the simulated world, run in any order."""

    applications = Bundle("applications")

    def __init__(self) -> None:
        super().__init__()
        self.state = StateMachine()
        self.replica = StateMachine()
        self.log: list[tuple[Batch, Outcome, bytes]] = []
        self.lag = 0
        self.boots = dict.fromkeys(NODES, 0)
        self.numbers = dict.fromkeys(NODES, 0)
        self.gathered: dict[str, list[Report | Departure]] = {node: [] for node in NODES}
        self.all: dict[str, Application] = {}
        self.sent: list[Report] = []
        """Everything that the network may still deliver, again."""
        self.heard: dict[tuple[str, str], int] = {}
        """By node and instance: the last sequence that arrived there."""
        self.known_totals: dict[RowKey, Totals] = {}
        self.known_times: dict[RowKey, Times] = {}
        self.known_sums: dict[RowKey, dict[str, list[int]]] = {}
        self.followers = [Follower(by) for by in GROUPINGS]
        self.followers += [
            Follower("connection", host="ctl1"),
            Follower("program", program="api"),
            Follower("database", program="api"),
            Follower("host", program="agent"),
        ]

    # --- applications

    @initialize(target=applications, data=st.lists(st.sampled_from(DATABASES), min_size=2, max_size=4))
    def start_some(self, data: list[str]) -> object:
        """There are some applications from the beginning."""
        started = [self.started("ctl1", "api", database) for database in data]
        return multiple(*started)

    @rule(
        target=applications,
        host=st.sampled_from(HOSTS),
        program=st.sampled_from(PROGRAMS),
        database=st.sampled_from(DATABASES),
    )
    def start(self, host: str, program: str, database: str) -> object:
        return self.started(host, program, database)

    def started(self, host: str, program: str, database: str) -> Application:
        application = Application(f"i{len(self.all)}", host, program)
        application.open_pool(database)
        self.all[application.instance] = application
        return application

    @rule(application=applications, picks=st.lists(st.integers(0, 999), min_size=3, max_size=10))
    def work(self, application: Application, picks: list[int]) -> None:
        """Pools and connections are opened, used and closed."""
        for pick in picks:
            pools = [number for number, pool in application.pools.items() if pool.real]
            if not application.alive:
                return
            if not pools or pick % 17 == 0:
                application.open_pool(DATABASES[pick % 2])
                continue
            number = pools[pick % len(pools)]
            connections = list(application.pools[number].connections)
            if pick % 13 == 0:
                application.close_pool(number)
            elif not connections or pick % 3 == 0:
                application.open(number)
            elif pick % 5 == 0:
                application.close(number, connections[pick % len(connections)])
            else:
                application.use(number, connections[pick % len(connections)])

    @rule(application=applications, full=st.booleans(), node=st.none() | st.sampled_from(NODES))
    def report(self, application: Application, full: bool, node: str | None) -> None:
        """A report is made; it arrives at a node now, or later, or never."""
        if application.alive:
            report = application.report(full)
            self.sent.append(report)
            if node is not None:
                self._arrive(node, report)

    @rule(application=applications, node=st.sampled_from(NODES))
    def report_until_it_counts(self, application: Application, node: str) -> None:
        """Report until no full report is wanted, as a reporter does."""
        if application.alive:
            self._deliver(application, node)

    @rule(application=applications, node=st.none() | st.sampled_from(NODES))
    def end(self, application: Application, node: str | None) -> None:
        """A process says goodbye after its last report, or dies without a word."""
        if application.alive:
            if node is not None:
                self._deliver(application, node)
                self._propose(node, Departure(application.instance, application.sequence))
            application.alive = False

    # --- network and nodes

    @precondition(lambda self: self.sent)
    @rule(node=st.sampled_from(NODES), pick=st.integers(1, 20))
    def deliver(self, node: str, pick: int) -> None:
        """Any report that was ever sent arrives somewhere: late, again, out of order."""
        self._arrive(node, self.sent[-min(pick, len(self.sent))])

    def _arrive(self, node: str, report: Report) -> None:
        self.gathered[node].append(report)
        self.heard[node, report.instance] = report.sequence

    @precondition(lambda self: self.heard)
    @rule(pick=st.integers(0, 20))
    def break_link(self, pick: int) -> None:
        """A client connection ends: the node takes its process for ended, though it may live."""
        node, instance = sorted(self.heard)[pick % len(self.heard)]
        sequence = self.heard.pop((node, instance))
        self.gathered[node].append(Departure(instance, sequence))

    @rule(node=st.sampled_from(NODES), step=st.none() | st.floats(0.0, 2.0))
    def flush(self, node: str, step: float | None) -> None:
        gathered, self.gathered[node] = self.gathered[node], []
        self._propose(node, *gathered, step=step)

    @rule(node=st.sampled_from(NODES))
    def restart_node(self, node: str) -> None:
        """A node forgets what it gathered and has a new boot."""
        self.boots[node] += 1
        self.numbers[node] = 0
        self.gathered[node] = []

    @precondition(lambda self: self.log)
    @rule(pick=st.integers(1, 20))
    def propose_again(self, pick: int) -> None:
        """A repeated batch changes nothing, and wants no more full reports than before."""
        batch, outcome, _ = self.log[-min(pick, len(self.log))]
        before = self.state.encode()
        again = self.state.apply(batch)
        assert not again.applied
        assert self.state.encode() == before
        for first, second in zip(outcome.answers, again.answers, strict=True):
            assert first[:2] == second[:2]
            assert first[2] or not second[2]

    @rule(seconds=st.sampled_from([2, 6, 16, 40, 80]))
    def wait(self, seconds: int) -> None:
        """Time passes without a report."""
        for _ in range(seconds // 2):
            self._propose("node1", step=2.0)

    def _propose(self, node: str, *messages: Report | Departure, step: float | None = None) -> Outcome:
        self.numbers[node] += 1
        batch = Batch(
            node,
            f"{node}-{self.boots[node]}",
            self.numbers[node],
            None if step is None else Tick(step, LEASE),
            tuple(m for m in messages if isinstance(m, Report)),
            tuple(m for m in messages if isinstance(m, Departure)),
        )
        outcome = self.state.apply(batch)
        assert outcome.applied
        self.log.append((batch, outcome, self.state.encode()))
        self.lag += 1
        for instance, sequence, full in outcome.answers:
            if not full:
                application = self.all[instance]
                application.accepted = max(application.accepted, sequence)
        return outcome

    def _deliver(self, application: Application, node: str) -> None:
        full = False
        for _ in range(2):
            report = application.report(full)
            self.sent.append(report)
            self.heard[node, report.instance] = report.sequence
            ((_, _, full),) = self._propose(node, report).answers
            if not full:
                return
        raise AssertionError("a full report was not enough")

    # --- replicas and readers

    @rule(batches=st.integers(1, 50))
    def catch_up(self, batches: int) -> None:
        """The second replica applies the next batches: byte for byte the same as the first."""
        for batch, outcome, checkpoint in self.log[len(self.log) - self.lag :][:batches]:
            assert self.replica.apply(batch) == outcome
            assert self.replica.encode() == checkpoint
            self.lag -= 1

    @rule()
    def load(self) -> None:
        """The second replica is loaded from its own checkpoint."""
        checkpoint = self.replica.encode()
        self.replica = StateMachine.decode(checkpoint)
        assert self.replica.encode() == checkpoint
        check_sums(self.replica)
        check_weight(self.replica)

    @rule()
    def install(self) -> None:
        """The second replica is loaded from the first one's checkpoint."""
        self.replica = StateMachine.decode(self.state.encode())
        self.lag = 0

    @rule(replica=st.booleans())
    def read(self, replica: bool) -> None:
        """Readers ask either replica, also the one that lags."""
        for follower in self.followers:
            follower.read(self.replica if replica else self.state)

    @rule()
    def read_and_compare(self) -> None:
        """A reader that follows changes has what a new reader gets."""
        for follower in self.followers:
            follower.read(self.state)
            assert follower.rows == fresh(self.state, follower.query)

    # --- what must always be true

    @invariant()
    def sums_are_right(self) -> None:
        check_sums(self.state)

    @invariant()
    def totals_never_go_back(self) -> None:
        """The totals and times of a group never go back while the group is known."""
        now = {}
        for key, group in self.state.groups.items():
            now[key] = plus(group.totals, group.ended)
            before = self.known_totals.get(key)
            if before is not None:
                assert all(a >= b for a, b in zip(now[key], before, strict=True))
            for then, counts in zip(self.known_times.get(key, NO_TIMES), group.times, strict=True):
                assert all(counts.get(number, 0) >= count for number, count in then.items())
        self.known_totals = now
        self.known_times = {key: group.times for key, group in self.state.groups.items()}

    @invariant()
    def sums_of_profiles_never_go_back(self) -> None:
        """Nor do the sums of a program's call sites."""
        sums = {key: sums_of(group) for key, group in self.state.groups.items() if group.holds is not None}
        for key, before in self.known_sums.items():
            for name, counts in before.items():
                assert all(now >= then for now, then in zip(sums[key][name], counts, strict=True))
        self.known_sums = sums

    @invariant()
    def maxima_could_have_been(self) -> None:
        """No program's maximum is above what its processes ever had, taken together."""
        most: Counter[RowKey] = Counter()
        for application in self.all.values():
            most["program", application.who.host, application.who.program] += application.largest
        for key, group in self.state.groups.items():
            if key[0] == "program":
                assert group.max_connections <= most[key]

    def teardown(self) -> None:
        """When nothing happens any more, the state equals the applications exactly."""
        for turn in range(10):
            for application in self.all.values():
                if application.alive:
                    self._deliver(application, NODES[turn % 3])
            self.wait(10)
        for application in self.all.values():
            if application.alive:
                self._deliver(application, "node1")
        self.catch_up(len(self.log))
        assert self.replica.digest() == self.state.digest()
        for state in (self.state, StateMachine.decode(self.state.encode())):
            check_sums(state)
            self._compare(state)
        self.read_and_compare()

    def _compare(self, state: StateMachine) -> None:
        alive = [application for application in self.all.values() if application.alive]
        gauges: dict[RowKey, Gauges] = {}
        totals: dict[RowKey, Totals] = {}
        times: dict[RowKey, list[Times]] = {}
        processes: Counter[RowKey] = Counter()
        expected: set[RowKey] = set()
        for application in self.all.values():
            keys: list[RowKey] = [
                ("program", application.who.host, application.who.program),
                ("host", application.who.host),
            ]
            reported = application.reported_totals[application.accepted]
            for key in keys:
                totals[key] = plus(totals.get(key, NO_TOTALS), add_totals(iter(reported.values())))
                times.setdefault(key, []).append(application.reported_times[application.accepted])
            for key, part in reported.items():
                totals[key] = plus(totals.get(key, NO_TOTALS), part)
            if application.alive:
                assert reported == application.by_database()
                processes.update([*keys, *reported])
                for key in keys:
                    gauges[key] = plus(gauges.get(key, NO_GAUGES), application.gauges)
                for pool in application.pools.values():
                    gauges[pool.key] = plus(gauges.get(pool.key, NO_GAUGES), pool.gauges)
                expected.add(("process", application.instance))
                for number, pool in application.pools.items():
                    if pool.real:
                        expected.add(("pool", application.instance, number))
                    expected |= {("connection", application.instance, c) for c in pool.connections}
        rows = fresh(state, Query("connection"))
        assert set(rows) == expected
        for row in rows.values():
            application = self.all[getattr(row, "instance", "")]
            if isinstance(row, ProcessRow):
                assert (row.figures.gauges, row.figures.totals) == (application.gauges, application.totals)
            elif isinstance(row, PoolRow):
                pool = application.pools[row.number]
                assert (row.figures.gauges, row.figures.totals) == (pool.gauges, pool.totals)
            elif isinstance(row, ConnectionRow):
                held = application.pools[row.pool].connections[row.number]
                assert row.state == ("checked_out" if held else "idle")
        for by in ("program", "host", "database"):
            grouped = fresh(state, Query(msgspec.convert(by, Grouping)))
            for key, each in grouped.items():
                assert isinstance(each, (ProgramRow, HostRow, DatabaseRow))
                assert each.figures.gauges == gauges.get(key, NO_GAUGES)
                assert each.figures.totals == totals[key]
                assert each.figures.processes == processes[key]
                assert each.figures.lost_processes == 0
                if key in times:
                    assert state.groups[key].times == added_times(times[key])
                assert each.state == ("connected" if processes[key] else "gone")
        self._compare_profiles(state)
        header = ask(state, Query("program"))[0]
        assert header.totals.processes == len(alive)
        assert header.totals.gauges == add_gauges(application.gauges for application in alive)

    def _compare_profiles(self, state: StateMachine) -> None:
        """Each program's sums are what its processes have ever reported, and so are its rows."""
        expected: dict[RowKey, dict[str, list[int]]] = {}
        for application in self.all.values():
            key: RowKey = ("program", application.who.host, application.who.program)
            sums = expected.setdefault(key, {})
            for name, counts in application.reported_profiles[application.accepted].items():
                sums[name] = list(map(add, counts, sums.get(name, [0] * len(counts))))
        rows = fresh(state, Query("site"))
        for key, group in state.groups.items():
            if key[0] == "program":
                assert sums_of(group) == expected[key]
                for name, counts in expected[key].items():
                    row = rows["site", key[1], key[2], name]
                    assert isinstance(row, SiteRow) and row.profile is not None
                    assert counts_by_site([(name, row.profile)]) == {name: counts}
                    assert len(row.profile.where) <= state.settings.site_labels


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
def test_long_lives_end_in_the_truth(seed: int) -> None:
    """The same world for hundreds of steps, with every kind of mishap in each life."""
    draw = Random(seed)
    world = Cluster()
    living: list[Application] = []

    def start() -> None:
        living.append(world.started(draw.choice(HOSTS), draw.choice(PROGRAMS), draw.choice(DATABASES)))

    def work() -> None:
        world.work(draw.choice(living), [draw.randrange(1000) for _ in range(5)])

    def end() -> None:
        world.end(living.pop(draw.randrange(len(living))), draw.choice((None, *NODES)))
        start()

    def node() -> str:
        return draw.choice(NODES)

    for _ in range(4):
        start()
    happenings: list[tuple[int, Callable[[], object]]] = [
        (40, work),
        (25, lambda: world.report(draw.choice(living), draw.random() < 0.1, draw.choice((None, *NODES)))),
        (15, lambda: world.report_until_it_counts(draw.choice(living), node())),
        (15, lambda: world.flush(node(), draw.choice((None, 0.1, 2.0)))),
        (10, lambda: world.deliver(node(), draw.randint(1, 20)) if world.sent else None),
        (5, lambda: world.break_link(draw.randrange(20)) if world.heard else None),
        (5, lambda: world.propose_again(draw.randint(1, 20)) if world.log else None),
        (10, lambda: world.read(draw.random() < 0.5)),
        (5, world.read_and_compare),
        (10, lambda: world.catch_up(draw.randint(1, 20))),
        (2, world.load),
        (2, world.install),
        (2, lambda: world.restart_node(node())),
        (2, lambda: world.wait(draw.choice((2, 6, 16, 40, 80)))),
        (2, end),
    ]
    weights = [weight for weight, _ in happenings]
    for _ in range(300):
        (happening,) = draw.choices(happenings, weights)
        happening[1]()
        world.sums_are_right()
        world.totals_never_go_back()
        world.sums_of_profiles_never_go_back()
        world.maxima_could_have_been()
    world.teardown()


# --- anything that can be decoded -------------------------------------------------------------

_small = st.integers(0, 4)
_seconds = st.floats(0.0, 1e12)
_instances = st.sampled_from(["a", "b", "c"])
_infos = st.none() | st.builds(
    PoolInfo, st.text(max_size=3), st.sampled_from(["mysql", ""]), st.none() | st.just("db"),
    st.none() | _small, st.none() | st.just("nova"), st.just("QueuePool"), st.none() | _small,
    st.none() | _small, st.none() | _seconds,
)  # fmt: skip
_counts = st.integers(0, 5) | st.just(2**53 - 1)
_gauges = st.tuples(*[_counts] * 8).map(Gauges._make)
_totals = st.tuples(*[_counts] * len(Totals._fields)).map(Totals._make)
_peaks = st.tuples(_counts, _counts, _counts, _seconds).map(Peaks._make)
_histograms = st.sampled_from([{}, {1: 3}, {0: 1, 2: 5}, {0: 2**53 - 1}, dict.fromkeys(range(BUCKETS), 1)])
_pools = st.builds(
    PoolReport, _small, _infos, _gauges, _totals, _peaks, st.none() | _seconds, st.none() | _seconds,
    st.builds(Times, _histograms, _histograms, _histograms), st.just(0) | _counts, st.booleans(),
)  # fmt: skip
_lines = st.sampled_from([None, "a.py:1 f", "b.py:2 g"])
_connections = st.builds(
    Connection, _small, _small, st.none() | st.integers(-5, 5), st.sampled_from(["idle", "detached"]),
    _seconds, st.none() | _seconds, st.none() | st.text(max_size=3), _lines, st.just(()), st.none(),
    st.sampled_from([None, *get_args(HolderIn)]), _lines,
)  # fmt: skip
_labels = st.sampled_from(["database", "requests", "own code", "(other)", *[f"label{n}" for n in range(16)]])
_profiles = st.none() | st.builds(
    HoldProfile, _counts, _counts, _counts, _counts, st.dictionaries(_labels, _counts, max_size=16)
)  # fmt: skip
_sites = st.builds(
    SiteReport, _small, st.sampled_from(["a.py:1 f", "b.py:2 g", "(other)"]), _counts, st.none() | _seconds,
    _counts, _counts, _counts, st.none() | _seconds, st.sampled_from([0.01, 1.0]), _profiles,
    st.sampled_from([(), ("a.py:1 f",), ("x" * 2048,) * 16]),
)  # fmt: skip
_reports = st.builds(
    Report, _instances, st.integers(1, 6), _small, _seconds, _peaks,
    st.lists(_pools, max_size=4).map(tuple), st.lists(_small, max_size=3).map(tuple),
    st.lists(_connections, max_size=5).map(tuple), st.lists(_small, max_size=3).map(tuple),
    st.none() | st.builds(
        Process, st.sampled_from(HOSTS), st.sampled_from(PROGRAMS), _small, _small, st.none(), st.none(),
        st.none() | _seconds,
    ),
    st.none(), _small, st.lists(_sites, max_size=4).map(tuple),
)  # fmt: skip
_batches = st.builds(
    Batch, st.sampled_from(NODES), st.sampled_from(["x", "y"]), st.integers(1, 30),
    st.none() | st.builds(Tick, st.floats(0.0, 2.0), st.floats(0.1, 5.0)),
    st.lists(_reports, max_size=4).map(tuple),
    st.lists(st.builds(Departure, _instances, _small), max_size=2).map(tuple),
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_batches, min_size=1, max_size=12), st.integers(0, 11), st.booleans())
def test_whatever_is_reported_nothing_raises_and_replicas_agree(
    batches: list[Batch], at: int, tight: bool
) -> None:  # fmt: skip
    """Invalid reports break no sum, no checkpoint, no verdict and no reader, with room and without."""
    limits = Limits(2, 2, 3, 60_000, 2, 1, 1, 3, sites=2) if tight else Limits()
    settings = StateSettings(limits, program_call_sites=3 if tight else 256, site_labels=3 if tight else 9)
    state, other = StateMachine(settings), StateMachine(settings)
    followers = [Follower(by) for by in GROUPINGS]
    for turn, batch in enumerate(batches):
        batch = msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=Batch)
        if turn == at:
            other = StateMachine.decode(other.encode(), settings)
        assert state.apply(batch) == other.apply(batch)
        assert state.encode() == other.encode()
        check_sums(state)
        check_weight(state)
        for follower in followers:
            follower.read(state)
            assert follower.rows == fresh(state, follower.query)
            for frame in ask(other, msgspec.structs.replace(follower.query, since=0)):
                msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=Rows)


# --- what limits leave out ------------------------------------------------------------------


def _picks(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 999), min_size=least, max_size=most)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_picks(20, 80), st.integers(1, 3), st.integers(0, 4), st.booleans())
def test_what_a_limit_leaves_out_is_counted_and_comes_in(
    picks: list[int], pools: int, connections: int, by_room: bool
) -> None:
    """Whatever is left out is counted; once everything fits, the state is exact."""
    limits = Limits(pools=pools, connections=connections)
    if by_room:
        limits = Limits(room=16_384 + 6_144 * pools + 256 * connections)
    settings = StateSettings(limits=limits)
    state, other = StateMachine(settings), StateMachine(settings)
    application = Application("a", "ctl1", "api", with_sites=False)  # they take room too
    application.open_pool("nova")
    batches, full = 0, True

    def report(step: float = 0.5) -> None:
        nonlocal batches, full
        batches += 1
        made = application.report(full)
        batch = Batch("node1", "boot", batches, Tick(step, LEASE), (made,))
        ((_, _, full),) = state.apply(batch).answers
        other.apply(batch)
        assert state.encode() == other.encode()
        check_sums(state)
        process = state.processes["a"]
        assert len(process.pools) + process.refused_pools == len(application.pools)
        here = {number: application.pools[number] for number in process.pools}
        assert process.gauges == add_gauges(pool.gauges for pool in here.values())
        assert process.totals == add_totals(pool.totals for pool in here.values())
        there = {connection for pool in here.values() for connection in pool.connections}
        assert len(process.connections) + process.missing_connections == len(there)
        assert set(process.connections) <= there

    def drop(number: int) -> None:
        gone = application.pools.pop(number)
        application.closed += gone.connections
        application.changed -= {(number, connection) for connection in gone.connections}
        if not application.changed_pools.pop(number, False):  # else no report has had it
            application.closed_pools.append(number)

    for pick in picks:
        numbers = list(application.pools)
        number = numbers[pick % len(numbers)] if numbers else 0
        here = list(application.pools[number].connections) if numbers else []
        if not numbers or pick % 7 == 0:
            application.open_pool(DATABASES[pick % 2])
        elif pick % 11 == 0:  # without what remains of it, which is not what this is about
            drop(number)
        elif not here or pick % 3 == 0:
            application.open(number)
        elif pick % 5 == 0:
            application.close(number, here[pick % len(here)])
        else:
            application.use(number, here[pick % len(here)])
        if pick % 2:
            report()
        if pick % 29 == 0:
            other = StateMachine.decode(other.encode(), settings)
    for number in list(application.pools)[1:]:
        drop(number)
    for number, pool in application.pools.items():
        for connection in list(pool.connections)[connections:]:
            application.close(number, connection)
    for _ in range(8):
        report(2.0)
    process = state.processes["a"]
    assert process.left_out == 0
    assert not any(state.left_out().values())
    assert process.pools.keys() == application.pools.keys()
    assert process.totals == application.totals
    assert process.gauges == application.gauges
    assert set(process.connections) == {c for pool in application.pools.values() for c in pool.connections}

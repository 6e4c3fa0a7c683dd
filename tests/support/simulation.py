"""A whole cluster in one process, on a virtual clock, with faults of all kinds.

Real RaftGroups (pysyncobj, the parts around it, the real StateMachine) work on a simulated network; simulated
applications keep the true figures. The rules kept here:

- A seed is a run: no clock, no thread, no socket, no hash order. The same seed gives the same trace in any
  process.
- The network is worse than TCP: messages are lost, delayed, doubled and overtake one another; it is cut in
  one direction or both. Nodes crash with and without their data, and stand still (SIGSTOP) while their clock
  goes on. Applications end, are killed, and move between nodes.
- The promises are checked all the time: one history (the same batch at the same index of the log everywhere),
  no version and no total that goes back, no view called current that is old, roles that change as their table
  says. In the end, when all is healed: equal replicas, and they equal what was reported.
- A group whose nodes lose their memory may lose what a majority had (`Kind.FORGETFUL`). Then the present has
  to come back from the applications, and the rest of the checks hold again.

    python -m tests.support.simulation --seeds 300 [--seed 0] [--verbose]
"""

from __future__ import annotations

import argparse
import enum
import hashlib
import heapq
import itertools
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from connmon.cluster.raft import messages
from connmon.cluster.raft.settings import RaftSettings
from connmon.cluster.state.machine import Outcome
from connmon.protocol.batch import Batch
from connmon.protocol.values import Totals, plus
from tests.support.simulated import LEASE_SECONDS, PROGRAMS, Application, Direction, Disk, Host, Violation

#: Virtual time: with faults, and to heal.
FAULT_SECONDS: Final = 14.0
HEALING_SECONDS: Final = 30.0
#: How old a view that is called current may be: RaftSettings.still_seconds, and the way of the messages.
CURRENT_SECONDS: Final = 4.0


class Kind(enum.Enum):
    """Which data nodes keep when they crash."""

    DATA = "data"
    """Everything."""
    GENTLE = "gentle"
    """Nothing, but only one of them crashes at a time, as in a rolling restart."""
    FORGETFUL = "forgetful"
    """Nothing."""


class Simulation:
    """One run."""

    def __init__(self, seed: int, directory: Path, verbose: bool = False) -> None:
        self.seed = seed
        self.verbose = verbose
        self.random = random.Random(f"connmon {seed}")
        self.kind = (Kind.DATA, Kind.GENTLE, Kind.FORGETFUL)[seed % 3]
        self.names = tuple(f"node{n}" for n in range(1, 6 if seed % 5 == 4 else 4))
        self.now = 1000.0
        self.trace = hashlib.blake2b(digest_size=16)
        self.histories: dict[int, tuple[str, int]] = {}
        """By index of the log: the batch that was applied there first."""
        self.forked = False
        """Another batch was applied there later."""
        self.violation: Violation | None = None
        """Raised again later: a Group logs what raises while it applies, and goes on."""
        self.frozen = False
        """No node proposes any more, so that the replicas can be compared."""
        self.ended: list[Application] = []
        self.versions: deque[tuple[float, str, int]] = deque()
        """When the newest version of any replica was reached."""
        self.counts = {"batches": 0, "messages": 0, "elections": 0, "rebuilt": 0, "overwritten": 0}
        self._numbers = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        harsh = self.random.choice((0.0, 0.005, 0.05))
        self.directions = {
            (a, b): Direction(f"{seed} {a} {b}", harsh) for a in self.names for b in self.names if a != b
        }
        self.delay = self.random.choice((0.001, 0.01, 0.05))
        # A short log, so that there are snapshots.
        log_entries = self.random.choice((10, 40, 500))
        self.settings = RaftSettings(log_entries=log_entries, kept_entries=log_entries // 5)
        random.seed(f"connmon {seed}")
        self.hosts: dict[str, Host] = {}
        for name in self.names:
            self.hosts[name] = Host(self, name, Disk(directory if self.kind is Kind.DATA else None, name))
        self.applications = [Application(self) for _ in range(self.random.randrange(2, 6))]
        self.later(0.01, self.relink)

    # --- time

    def number(self) -> int:
        return next(self._numbers)

    def later(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
            if self.violation is not None:
                raise self.violation
        self.now = end

    def log(self, *words: object) -> None:
        text = f"{self.now:.4f} {' '.join(map(str, words))}"
        self.trace.update(text.encode())
        if self.verbose:
            print(text)

    # --- the network

    def send(self, sender: str, receiver: str, message: messages.Message) -> bool:
        direction = self.directions[sender, receiver]
        link = direction.link
        if link is None:
            return False
        self.counts["messages"] += 1
        chance = direction.random
        if direction.cut or chance.random() < direction.loss:
            return True
        data = messages.encode(message)
        copies = 2 if chance.random() < direction.loss else 1
        for _ in range(copies):
            delay = self.delay * chance.uniform(0.2, 1.0)
            if chance.random() < direction.loss:
                delay += chance.uniform(0.0, 0.5)

            def arrive() -> None:
                if direction.link is link:
                    host = self.hosts[receiver]
                    host.when_awake(lambda: host.receive(sender, data) if direction.link is link else None)

            self.later(delay, arrive)
        return True

    def relink(self) -> None:
        """Open the links that are possible, and drop those that are not."""
        for a, b in itertools.combinations(self.names, 2):
            there, back = self.directions[a, b], self.directions[b, a]
            up = all(self.hosts[name].group is not None and not self.hosts[name].paused for name in (a, b))
            whole = up and not there.cut and not back.cut
            if whole and there.link is None:
                there.link = back.link = object()
                for one, other in ((a, b), (b, a)):
                    group = self.hosts[one].group
                    assert group is not None
                    group.link_up(other)
            elif there.link is not None and not whole and self.random.random() < 0.15:
                self.drop_link(a, b)  # nothing was heard for too long
        self.later(self.random.uniform(0.1, 0.5), self.relink)

    def drop_link(self, a: str, b: str) -> None:
        there, back = self.directions[a, b], self.directions[b, a]
        if there.link is None:
            return
        there.link = back.link = None
        for one, other in ((a, b), (b, a)):
            host = self.hosts[one]

            def notice(host: Host = host, other: str = other) -> None:
                assert host.group is not None
                if self.directions[host.name, other].link is None:
                    host.group.link_down(other)
                else:  # the node stood still meanwhile, and there is a new link
                    host.group.link_down(other)
                    host.group.link_up(other)

            host.when_awake(notice)

    def unlink(self, name: str) -> None:
        for other in self.names:
            if other != name:
                self.drop_link(name, other)

    # --- the faults

    def fault(self) -> None:
        """Cause a fault, or end one."""
        chance = self.random
        hosts = list(self.hosts.values())
        host = chance.choice(hosts)
        kind = chance.randrange(10)
        if kind <= 1:
            if host.group is None:
                self.start(host)
            elif self.kind is not Kind.GENTLE or self.calm():
                host.crash()
        elif kind == 2:
            if host.paused:
                host.resume()
            elif host.group is not None:
                host.pause()
                self.later(chance.choice((0.2, 1.0, 3.0, 6.0)), host.resume)
        elif kind <= 5:
            a, b = chance.sample(self.names, 2)
            cut = not self.directions[a, b].cut
            self.log("cut" if cut else "heal", a, b)
            self.directions[a, b].cut = cut
            if chance.random() < 0.5:
                self.directions[b, a].cut = cut
        elif kind == 6:  # one node from all others
            cut = chance.random() < 0.6
            self.log("isolate" if cut else "join", host.name)
            for other in self.names:
                if other != host.name:
                    self.directions[host.name, other].cut = self.directions[other, host.name].cut = cut
        elif kind == 7:
            self.log("heal all")
            self.heal_directions()
        elif kind == 8:
            self.applications.append(Application(self))
        elif len(self.applications) > 1:
            application = self.applications.pop(chance.randrange(len(self.applications)))
            application.end(chance.random() < 0.5)
            self.ended.append(application)
        self.later(chance.uniform(0.1, 1.2), self.fault)

    def calm(self) -> bool:
        """Whether all nodes run, are linked, and have everything: one may crash."""
        return all(
            host.group is not None
            and not host.paused
            and host.group.has_quorum(self.now)
            and host.group.follower.lag == 0
            for host in self.hosts.values()
        ) and not any(direction.cut or direction.link is None for direction in self.directions.values())

    def start(self, host: Host) -> None:
        self.log("start", host.name)
        host.start()

    def heal_directions(self) -> None:
        for direction in self.directions.values():
            direction.cut = False

    def heal(self) -> None:
        self.log("healing")
        self._events = [event for event in self._events if event[2] != self.fault]
        heapq.heapify(self._events)
        self.heal_directions()
        for direction in self.directions.values():
            direction.loss = 0.0
        for host in self.hosts.values():
            if host.paused:
                host.resume()
            if host.group is None:
                self.start(host)
        for application in self.applications:
            application.quiet = True

    # --- the promises

    def fail(self, violation: str) -> None:
        where = f"seed {self.seed} ({self.kind.value}, {len(self.names)} nodes) at {self.now:.3f}"
        self.violation = self.violation or Violation(f"{where}: {violation}")
        raise self.violation

    def applied(self, host: Host, batch: Batch, outcome: Outcome | None) -> None:
        group = host.group
        if group is None:  # while it starts, from its journal
            return
        if outcome is None:
            self.fail(f"{host.name}: batch {batch.number} of {batch.node} could not be applied")
            return
        self.counts["batches"] += 1
        index = group.member.applied + 1
        self.log("applied", host.name, index, batch.boot, batch.number, outcome.version)
        known = self.histories.setdefault(index, (batch.boot, batch.number))
        if known != (batch.boot, batch.number):
            if self.kind is not Kind.FORGETFUL:
                self.fail(f"{host.name} has {batch.boot} {batch.number} at {index}, another node has {known}")
            self.forked = True
            self.histories[index] = (batch.boot, batch.number)
            self.versions.clear()
        state = group.state
        if not self.versions or state.version > self.versions[-1][2]:
            self.versions.append((self.now, state.epoch, state.version))
        self.check_low(host)

    def started_over(self, host: Host) -> None:
        """Check that a node starts over only where the group may have lost what it had."""
        if self.kind is not Kind.FORGETFUL:
            self.fail(f"{host.name} starts over, although nothing was lost")
        host.low = ("", 0, 0)

    def check_low(self, host: Host) -> None:
        """Check that no version and no total goes back."""
        assert host.group is not None
        state = host.group.state
        totals = sum(
            group.totals.checkouts + group.ended.checkouts
            for key, group in state.groups.items()
            if key[0] == "program"
        )
        epoch, version, before = host.low
        same = epoch == state.epoch or self.kind is not Kind.FORGETFUL
        if same and (state.version < version or totals < before):
            self.fail(
                f"{host.name} went from version {version}, {before} checkouts to {state.version}, {totals}"
            )
        host.low = state.epoch, state.version, totals

    def check_current(self, host: Host) -> None:
        """Check that a view that is called current is not old."""
        assert host.group is not None
        state = host.group.state
        while len(self.versions) > 1 and self.versions[1][0] < self.now - CURRENT_SECONDS:
            self.versions.popleft()
        if self.versions and self.versions[0][0] < self.now - CURRENT_SECONDS:
            _, epoch, version = self.versions[0]
            same = epoch == state.epoch or self.kind is not Kind.FORGETFUL
            if same and state.version < version:
                self.fail(f"{host.name} calls version {state.version} current; {version} is old")

    # --- a run

    def run(self) -> dict[str, int]:
        """Run it: faults, healing, and the checks at the end. Raises Violation."""
        self.later(3.0, self.fault)
        self.run_for(FAULT_SECONDS)
        self.heal()
        end = self.now + HEALING_SECONDS
        quiet_since = self.now
        while not self.healed(quiet_since):
            if self.now >= end:
                self.fail(f"not healed: {self.describe()}")
            self.run_for(0.25)
        self.frozen = True
        self.run_for(2.0)
        self.check_end()
        for host in self.hosts.values():
            assert host.group is not None
            self.counts["overwritten"] += host.group.follower.overwritten
            self.counts["elections"] = max(self.counts["elections"], host.group.member.term)
        return self.counts

    def close(self) -> None:
        for host in self.hosts.values():
            if host.group is not None:
                host.group.close()

    def healed(self, since: float) -> bool:
        """Whether everything was reported, no process is silent any more, and nothing is under way."""
        groups = [host.group for host in self.hosts.values()]
        alive = {application.instance for application in self.applications}
        return (
            # A process that was taken for lost is not any more, if it runs.
            self.now - since > 2 * LEASE_SECONDS
            and all(group is not None and alive == set(group.state.processes) for group in groups)
            and all(
                group is not None and group.has_quorum(self.now) and not group.follower.lag
                for group in groups
            )
            and all(
                application.settled and application.acknowledged_at > since
                for application in self.applications
            )
        )

    def describe(self) -> str:
        return (
            "; ".join(
                f"{host.name}: {host.group.status} version {host.group.state.version}"
                for host in self.hosts.values()
                if host.group is not None
            )
            + "; not settled: "
            + ", ".join(a.instance for a in self.applications if not a.settled)
        )

    def check_end(self) -> None:
        states = [host.group.state for host in self.hosts.values() if host.group is not None]
        if len({state.digest() for state in states}) != 1:
            self.fail(f"the replicas differ: {self.describe()}")
        state = states[0]
        expected = {a.instance: (a.gauges, a.totals) for a in self.applications}
        found = {p.instance: (p.gauges, p.totals) for p in state.processes.values()}
        if found != expected:
            differ = [p for p in {**found, **expected} if found.get(p) != expected.get(p)]
            differences = "; ".join(f"{p}: {found.get(p)}, reported {expected.get(p)}" for p in differ)
            self.fail(f"the replicas are wrong: {differences}")
        reported = {program: Totals() for program in PROGRAMS}
        for application in [*self.applications, *self.ended]:
            known = application.acknowledged_state
            if application in self.applications:
                known = (application.gauges, application.totals)
            if known is not None:
                reported[application.program] = plus(reported[application.program], known[1])
        for program, totals in reported.items():
            kept = state.groups.get(("program", "ctl1", program))
            shown = Totals() if kept is None else plus(kept.totals, kept.ended)
            # The last report of a process that has ended may have counted without an answer.
            if not self.forked and self.kind is not Kind.FORGETFUL and shown.checkouts < totals.checkouts:
                self.fail(f"{program}: {shown} shown, {totals} acknowledged")


def run(seed: int, verbose: bool = False) -> tuple[str, dict[str, int]]:
    """Run one seed; return the digest of its trace, and counts. Raises Violation."""
    before = random.getstate()
    directory = Path(tempfile.mkdtemp(prefix="connmon-simulation-"))
    try:
        simulation = Simulation(seed, directory, verbose)
        try:
            counts = simulation.run()
        finally:
            simulation.close()
        return simulation.trace.hexdigest(), counts
    finally:
        random.setstate(before)
        shutil.rmtree(directory)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the simulated cluster with many seeds.")
    parser.add_argument("--seeds", type=int, default=300, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print what happens")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING if options.verbose else logging.CRITICAL)
    failed = 0
    totals: dict[str, int] = {}
    began = time.perf_counter()
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            digest, counts = run(seed, options.verbose)
        except Violation as error:
            failed += 1
            print(f"FAILED {error}")
            print(f"  again: python -m tests.support.simulation --seed {seed} --seeds 1 --verbose")
            continue
        for key, value in counts.items():
            totals[key] = totals.get(key, 0) + value
        if options.seeds == 1:
            print(f"seed {seed}: trace {digest}")
    took = time.perf_counter() - began
    print(f"{options.seeds} seeds, {failed} failed, {took:.1f} s; {totals}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

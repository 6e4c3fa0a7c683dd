"""The parts of a simulated cluster: nodes that crash and stand still, applications that keep the truth.

A `Host` drives a real Group as the server does. An `Application` keeps the true figures of one process and
reports them as the plugin does: totals, in sequence, in full when asked or on a new node.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connmon.cluster.raft import messages
from connmon.cluster.raft.applier import ApplyError
from connmon.cluster.raft.group import RaftGroup
from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.raft.status import ROLE_CHANGES, Role
from connmon.cluster.state.machine import Outcome, StateMachine
from connmon.protocol.batch import Batch, Departure, Tick
from connmon.protocol.reports import Connection, PoolInfo, PoolReport, Process, Report
from connmon.protocol.values import Gauges, Peaks, Totals, plus

if TYPE_CHECKING:
    from tests.support.simulation import Simulation

#: Virtual time: between two ticks of a node, the lease, between two batches of a node, and between two
#: batches of the leader that advance the clock of the state.
TICK_SECONDS: Final = 0.05
LEASE_SECONDS: Final = 2.0
BATCH_SECONDS: Final = 0.1
STEP_SECONDS: Final = 0.5

PROGRAMS: Final = ("nova-api", "neutron-server")
INFO: Final = PoolInfo("sqlite://", "sqlite", None, None, "x.db", "QueuePool", 5, 10, 30.0)


class Violation(AssertionError):
    """The cluster broke one of its promises."""


class Disk:
    """Where a node keeps its checkpoint (follower.Store); the journal is a real file."""

    def __init__(self, directory: Path | None, name: str) -> None:
        self.journal = None if directory is None else str(directory / f"{name}.journal")
        self.checkpoint: Checkpoint | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def load(self) -> Checkpoint | None:
        return self.checkpoint

    def drop(self) -> None:
        self.checkpoint = None


class Direction:
    """The network from one node to another."""

    def __init__(self, seed: str, loss: float) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.cut = False
        self.link: object | None = None
        """The peer link that both ends have now; what was sent over another one does not arrive."""


class Host:
    """A node: its group, and the server's work for applications."""

    def __init__(self, simulation: Simulation, name: str, disk: Disk) -> None:
        self.simulation = simulation
        self.name = name
        self.disk = disk
        self.group: RaftGroup | None = None
        self.paused = False
        self.life = 0
        """Grows with each crash: events that are due in an earlier life do not happen."""
        self.held: list[Callable[[], None]] = []
        """What to do when it goes on, for all that arrived while it stood still."""
        self.start()

    def start(self) -> None:
        simulation = self.simulation
        kept = self.disk.journal is not None
        self.boot = f"{self.name}-{simulation.number()}"
        self.batch = 0
        self.tick_at: float | None = None
        self.batch_at = float("-inf")
        self.queue: deque[tuple[Report | Departure, Application | None]] = deque()
        self.busy = False
        self.clients: dict[str, int] = {}
        """By instance: the last sequence number received on the connections to this node."""
        self.role = Role.CANDIDATE
        self.low: tuple[str, int, int] = ("", 0, 0)
        """Epoch, version and totals below which this replica must not fall; a crash forgets them."""
        self.group = RaftGroup(
            self.name,
            [name for name in simulation.names if name != self.name],
            StateMachine(),
            self,
            journal=self.disk.journal,
            store=self.disk if kept else None,
            settings=simulation.settings,
            clock=lambda: simulation.now,
            on_applied=self.applied,
            on_rebuilt=self.rebuilt,
        )
        self.started = simulation.now
        self.tick(self.life)

    # --- messages.Carrier

    def send(self, name: str, message: messages.Message) -> bool:
        return self.simulation.send(self.name, name, message)

    def room(self, name: str) -> bool:
        return True

    # --- faults

    def crash(self) -> None:
        assert self.group is not None
        self.simulation.log("crash", self.name)
        self.life += 1
        if self.disk.journal is not None:
            self.group.close()
        self.group, self.paused = None, False
        self.held.clear()
        self.clients.clear()
        self.simulation.unlink(self.name)

    def pause(self) -> None:
        self.simulation.log("pause", self.name)
        self.paused = True

    def resume(self) -> None:
        if not self.paused:
            return
        self.simulation.log("resume", self.name)
        self.paused = False
        held, self.held = self.held, []
        for action in held:
            action()
        if self.group is not None:
            self.work()

    def when_awake(self, action: Callable[[], None]) -> None:
        """Do it now, or when the node goes on, but in no later life."""
        life = self.life

        def act() -> None:
            if self.life == life and self.group is not None:
                action()

        if self.paused:
            self.held.append(act)
        else:
            act()

    def receive(self, name: str, data: bytes) -> None:
        assert self.group is not None
        self.group.receive(name, messages.decode(data))
        self.tick_group()

    def tick_group(self) -> None:
        """Tick, and check that the role changes only as its table says."""
        assert self.group is not None
        self.group.tick()
        role = self.group.role
        if role is not self.role and role not in ROLE_CHANGES[self.role]:
            self.simulation.fail(f"{self.name}: {self.role.value} -> {role.value}")
        self.role = role

    def tick(self, life: int) -> None:
        if life != self.life or self.group is None:
            return
        if not self.paused:
            self.work()
        self.simulation.later(TICK_SECONDS, lambda: self.tick(life))

    # --- the server's work

    def work(self) -> None:
        assert self.group is not None
        self.tick_group()
        self.pump()
        if self.group.has_quorum(self.simulation.now):
            self.simulation.check_current(self)

    def pump(self) -> None:
        group, now = self.group, self.simulation.now
        assert group is not None
        if not group.member.is_leader:
            self.tick_at = None
        if self.busy or now - self.batch_at < BATCH_SECONDS or self.simulation.frozen:
            return
        tick: Tick | None = None
        if group.member.is_leader:
            since = 0.0 if self.tick_at is None else now - self.tick_at
            if self.queue or self.tick_at is None or since >= STEP_SECONDS:
                tick = Tick(min(since, 2.0), LEASE_SECONDS)
                self.tick_at = now
        if not self.queue and tick is None:
            return
        self.batch_at = now
        self.batch += 1
        taken = list(self.queue)
        self.queue.clear()
        batch = Batch(
            self.name,
            self.boot,
            self.batch,
            tick,
            tuple(item for item, _ in taken if isinstance(item, Report)),
            tuple(item for item, _ in taken if isinstance(item, Departure)),
        )
        self.busy = True
        life = self.life

        def done(outcome: Outcome | ApplyError) -> None:
            if isinstance(outcome, ApplyError):
                raise Violation(f"{self.name}: {outcome}")
            if life != self.life:
                return
            self.busy = False
            full = {(instance, sequence): wanted for instance, sequence, wanted in outcome.answers}
            for item, application in taken:
                if isinstance(item, Report) and application is not None:
                    wanted = full.get((item.instance, item.sequence), True)
                    application.acknowledge(self, item.sequence, wanted)

        group.propose(batch, done)
        self.tick_group()

    def applied(self, batch: Batch, outcome: Outcome | None) -> None:
        self.simulation.applied(self, batch, outcome)

    def rebuilt(self) -> None:
        self.simulation.counts["rebuilt"] += 1
        self.simulation.log("rebuilt", self.name)
        if self.group is not None and not self.group.state.version:
            self.simulation.started_over(self)

    def reported(self, application: Application, report: Report) -> None:
        self.clients[report.instance] = report.sequence
        self.queue.append((report, application))
        self.pump()

    def left(self, instance: str, goodbye: bool) -> None:
        """The application's connection has ended."""
        sequence = self.clients.pop(instance, None)
        if sequence is None:
            return

        def missing() -> None:
            if instance not in self.clients:
                self.queue.append((Departure(instance, sequence), None))

        if goodbye:
            missing()
        else:
            self.simulation.later(0.5, lambda: self.when_awake(missing))


class Application:
    """One process with one pool, and the true figures of it."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.random = random.Random(f"{simulation.seed} application {simulation.number()}")
        self.instance = f"p{simulation.number()}"
        self.program = self.random.choice(PROGRAMS)
        self.gauges = Gauges(pools=1, capacity=15)
        self.totals = Totals()
        self.sequence = 0
        self.acknowledged = 0
        self.acknowledged_state: tuple[Gauges, Totals] | None = None
        self.full = True
        self.waiting: int | None = None
        self.sent_at = simulation.now
        self.acknowledged_at = simulation.now
        """When the last acknowledgement came."""
        self.host: Host | None = None
        self.host_life = 0
        self.quiet = False
        self.gone = False
        self.move()
        self.step()

    @property
    def settled(self) -> bool:
        """Whether the present figures were reported and acknowledged."""
        return self.acknowledged_state == (self.gauges, self.totals)

    @property
    def overdue(self) -> bool:
        """Whether the answer to the last report is late."""
        return self.waiting is not None and self.simulation.now - self.sent_at > 1.5

    def step(self) -> None:
        if self.gone:
            return
        if not self.quiet:
            self.happen()
        host = self.host
        if host is None or host.life != self.host_life or self.overdue:
            self.move()
        elif self.waiting is None:
            self.report()
        self.simulation.later(self.random.uniform(0.1, 0.5), self.step)

    def happen(self) -> None:
        chance = self.random
        opened, out = self.gauges.connections, self.gauges.checked_out
        totals = self.totals
        more = Totals()
        if opened < 15 and chance.random() < 0.4:
            opened += 1
            more = plus(more, Totals(connects=1))
        taken = chance.randrange(0, 4)
        given = min(out + taken, chance.randrange(0, 4))
        if out + taken - given <= opened:
            out += taken - given
            more = plus(more, Totals(checkouts=taken, checkins=given))
        if opened > out and chance.random() < 0.2:
            opened -= 1
            more = plus(more, Totals(closes=1))
        self.totals = plus(totals, more)
        self.gauges = self.gauges._replace(connections=opened, checked_out=out)

    def move(self) -> None:
        """Go to a random node that is up."""
        if self.host is not None and self.host.life == self.host_life:
            host, instance = self.host, self.instance
            self.simulation.later(0.01, lambda: host.when_awake(lambda: host.left(instance, False)))
        up = [host for host in self.simulation.hosts.values() if host.group is not None]
        self.host = self.random.choice(up) if up else None
        self.full, self.waiting = True, None
        if self.host is not None:
            self.host_life = self.host.life
            self.report()

    def report(self) -> None:
        host = self.host
        assert host is not None
        self.sequence += 1
        sequence = self.sequence
        full = self.full
        changed = full or self.acknowledged_state != (self.gauges, self.totals)
        pools: tuple[PoolReport, ...] = ()
        if changed:
            pools = (PoolReport(1, INFO if full else None, self.gauges, self.totals, Peaks()),)
        connections = (Connection(1, 1, 7, "idle", 1.0, None, None),) if full else ()
        report = Report(
            self.instance,
            sequence,
            0 if full else sequence - 1,
            0.3,
            Peaks(self.gauges.connections, self.gauges.checked_out),
            pools,
            connections=connections,
            process=Process("ctl1", self.program, 1, 0, None, None, None) if full else None,
        )
        self.waiting, self.sent_at, self.full = sequence, self.simulation.now, False
        self.sent_state = (self.gauges, self.totals)
        life = host.life
        delay = self.random.uniform(0.0005, 0.02)

        def arrive() -> None:
            if host.life == life and self.host is host:
                host.when_awake(lambda: host.reported(self, report))

        self.simulation.later(delay, arrive)

    def acknowledge(self, host: Host, sequence: int, full: bool) -> None:
        """Take the node's answer to a report, after a moment; `full`: it wants a full report next."""

        def arrive() -> None:
            if self.gone or self.host is not host or self.waiting != sequence:
                return
            self.waiting = None
            self.full = full
            self.acknowledged_at = self.simulation.now
            if not full:
                self.acknowledged_state = self.sent_state
            else:
                self.acknowledged_state = None

        self.simulation.later(self.random.uniform(0.0005, 0.02), arrive)

    def end(self, goodbye: bool) -> None:
        """End the process; what it has not reported is lost."""
        self.gone = True
        host, instance = self.host, self.instance
        if host is not None and host.life == self.host_life:
            self.simulation.later(0.01, lambda: host.when_awake(lambda: host.left(instance, goodbye)))

"""Cost and speed of a cluster of three connmond, compared with naive replication.

    python benchmarks/cluster.py [--quick] [--rate N] [--json FILE]

Exit code 1 if a count is wrong: a report was not acknowledged, or a node does not show exactly what was
reported. The targets are printed and not judged.

Rules kept here:

- Everything is on loopback and on two cores, also this process, which is all applications and readers.
- The load on connmond and the load on stock PySyncObj (benchmarks/naive.py) take turns, in slices of some
  seconds, while all six processes run.
- A report is visible when a reader has the answer that shows it; the last of the three nodes counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from simulated import (
    EVENTS,
    HOST,
    NAMES,
    WAIT,
    Application,
    Cluster,
    Usage,
    Wrong,
    compare,
    free_ports,
    launched,
    settle,
    until,
)

#: Events per second in naive replication's run at a fixed rate; and pending calls from each node in the other
#: runs, of which the fastest counts as its ceiling.
NAIVE_RATE: Final = 1000
NAIVE_PENDING: Final = (300, 1000, 3000, 10_000)
#: One in this many reports under load, at random, is looked for on every node.
PROBED: Final = 100
#: The measurement of memory: connections per process, and connections added in each step.
PER_PROCESS: Final = 100
MEMORY_STEP: Final = 10_000


@dataclass(frozen=True)
class Extent:
    """How long each part takes, in seconds or repetitions."""

    idle: float
    quiet: int
    events: int
    slices: int
    slice: float
    kills: int
    steps: int


QUICK: Final = Extent(idle=6, quiet=60, events=6, slices=2, slice=6, kills=3, steps=2)
FULL: Final = Extent(idle=30, quiet=600, events=30, slices=5, slice=12, kills=10, steps=4)

Figures = dict[str, Any]


def spread(values: Sequence[float]) -> Figures:
    """Return count, p50, p99 and the worst."""
    if not values:
        return {"count": 0, "p50": None, "p99": None, "worst": None}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"count": len(ordered), "p50": statistics.median(ordered), "p99": p99, "worst": ordered[-1]}


def by_role(cluster: Cluster, values: dict[str, float]) -> Figures:
    """Return the leader's value and the larger one of the followers'."""
    return {"leader": values[cluster.leader], "follower": max(values[name] for name in cluster.followers())}


async def visible(cluster: Cluster, application: Application, every: float) -> float:
    """Return the seconds from the report just sent until every node shows it."""
    sent_at, checkouts = application.sent_at, application.checkouts
    seen = await asyncio.gather(
        *(reader.shows(application.instance, checkouts, every) for reader in cluster.readers.values())
    )
    return max(seen) - sent_at


async def idle(cluster: Cluster, extent: Extent) -> Figures:
    await asyncio.sleep(2)  # until the work of the start is done
    usage = Usage({name: cluster.pid(name) for name in NAMES})
    await asyncio.sleep(extent.idle)
    return by_role(cluster, usage.percent())


async def quiet(cluster: Cluster, applications: Sequence[Application], extent: Extent) -> Figures:
    """Measure one report at a time."""
    seen: list[float] = []
    for number in range(extent.quiet):
        await asyncio.sleep(random.uniform(0.02, 0.15))
        application = applications[number % len(applications)]
        application.work()
        seen.append(await visible(cluster, application, 0.002))
    return {**acknowledged(cluster, applications), "visible": spread(seen)}


def acknowledged(cluster: Cluster, applications: Sequence[Application]) -> Figures:
    """Return the latencies since the last call, and forget them."""
    latencies = [latency for application in applications for latency in application.latencies]
    for application in applications:
        application.latencies.clear()
    return {
        "leader": spread([seconds for node, seconds in latencies if node == cluster.leader]),
        "follower": spread([seconds for node, seconds in latencies if node != cluster.leader]),
    }


# --- A real application ---------------------------------------------------------------------


def be_application(config: str) -> None:
    """Run as a process with a watched engine: each line on stdin is one checkout, answered with its time."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import QueuePool

    url = f"sqlite:///:memory:?plugin=connmon&connmon_config={config}&connmon_program=event"
    engine = create_engine(url, poolclass=QueuePool)
    for count, _ in enumerate(sys.stdin, 1):
        engine.raw_connection().close()
        print(json.dumps([time.monotonic(), count]), flush=True)


async def events(cluster: Cluster, extent: Extent) -> Figures:
    """Measure from a checkout in a real application until every node shows it."""
    command = [sys.executable, __file__, "--application", str(cluster.config)]
    pipe = asyncio.subprocess.PIPE
    programs = [
        await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**20) for _ in range(3)
    ]

    async def sample(program: asyncio.subprocess.Process) -> float:
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write(b"\n")
        at, count = json.loads(await program.stdout.readline())
        missing, end = set(NAMES), time.monotonic() + WAIT
        while missing and time.monotonic() < end:
            for name in sorted(missing):
                for row in await cluster.readers[name].processes(program="event"):
                    if row.process.pid == program.pid and row.figures.totals.checkouts >= count:
                        missing.discard(name)
            await asyncio.sleep(0.01)
        if missing:
            raise Wrong(f"a checkout was not visible on every node within {WAIT:g} s")
        return time.monotonic() - float(at)

    async def samples(program: asyncio.subprocess.Process) -> list[float]:
        await sample(program)  # it connects first
        durations = []
        for _ in range(extent.events):
            await asyncio.sleep(random.uniform(0.1, 1.1))
            durations.append(await sample(program))
        return durations

    try:
        runs = await asyncio.gather(*map(samples, programs))
        return spread([duration for durations in runs for duration in durations])
    finally:
        for program in programs:
            assert program.stdin is not None
            program.stdin.close()
            await program.wait()


# --- Under load, in turns with naive replication ----------------------------------------------


async def load(cluster: Cluster, applications: Sequence[Application], rate: float, seconds: float) -> Figures:
    """Have `rate` processes report once a second each. Raises Wrong if a report is not acknowledged."""
    usage = Usage({**{name: cluster.pid(name) for name in NAMES}, "generator": os.getpid()})
    before = [(one.sent, one.acknowledged, one.coalesced) for one in applications]
    began, due = time.monotonic(), 0
    # Probes do not wait for one another, so that a stall is not seen as one slow report.
    probes: list[asyncio.Future[float]] = []
    while (passed := time.monotonic() - began) < seconds:
        while due < passed * rate:
            application = applications[due % len(applications)]
            free = not application.waiting
            application.work()
            # At random: every hundredth would always come at the same moment of the nodes' batches.
            if free and random.random() < 1 / PROBED:
                probes.append(asyncio.ensure_future(visible(cluster, application, 0.01)))
            due += 1
        await asyncio.sleep(0.002)
    percent = usage.percent()
    seen = await asyncio.gather(*probes)
    await settle(applications)
    sent, answered, coalesced = (
        sum(getattr(one, name) - values[at] for one, values in zip(applications, before, strict=True))
        for at, name in enumerate(("sent", "acknowledged", "coalesced"))
    )
    if sent != answered:
        raise Wrong(f"{sent} reports were sent and {answered} acknowledged")
    return {
        "sent": sent, "acknowledged": answered, "coalesced": coalesced, "rate": due / passed, "seen": seen,
        "cpu": {**by_role(cluster, percent), "generator": percent["generator"]},
    }  # fmt: skip


class Naive:
    """Three processes of naive.py."""

    def __init__(self, log: Path) -> None:
        """Start them. Their logs, which are long under load, go to `log`."""
        addresses = [f"{HOST}:{port}" for port in free_ports(len(NAMES))]
        script = str(Path(__file__).with_name("naive.py"))
        with log.open("wb") as output:
            self.processes = [
                launched(
                    [sys.executable, script, own, *(address for address in addresses if address != own)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True,
                )
                for own in addresses
            ]  # fmt: skip

    async def order(self, *values: Any) -> list[Any]:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(values) + "\n")
            process.stdin.flush()
        loop = asyncio.get_running_loop()
        lines = await asyncio.gather(
            *(loop.run_in_executor(None, process.stdout.readline) for process in self.processes)  # type: ignore[union-attr]
        )
        return [json.loads(line) for line in lines]

    async def ready(self) -> None:
        end = time.monotonic() + WAIT
        while not all(answer["ready"] for answer in await self.order("count")):
            if time.monotonic() > end:
                raise Wrong("naive replication found no leader")
            await asyncio.sleep(0.2)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


async def turns(
    cluster: Cluster, applications: Sequence[Application], extent: Extent, rate: float
) -> tuple[Figures, Figures]:
    """Measure both under load, in turns."""
    log = cluster.config.with_name("naive.log")
    naive = Naive(log)
    ours: list[Figures] = []
    opened: list[Any] = []
    closed: dict[int, list[Any]] = {pending: [] for pending in NAIVE_PENDING}
    try:
        await naive.ready()
        acknowledged(cluster, applications)
        for _ in range(extent.slices):
            ours.append(await load(cluster, applications, rate, extent.slice))
            opened.append(await naive.order("rate", NAIVE_RATE / len(NAMES), extent.slice / 2))
            for pending, runs in closed.items():
                runs.append(await naive.order("ceiling", pending, extent.slice / 2))
        applied = [answer["applied"] for answer in await naive.order("count")]
    finally:
        naive.close()
    load_figures = {
        **acknowledged(cluster, applications),
        "visible": spread([seconds for figures in ours for seconds in figures["seen"]]),
        "cpu": {
            who: statistics.mean(figures["cpu"][who] for figures in ours)
            for who in ("leader", "follower", "generator")
        },
        "rate": statistics.mean(figures["rate"] for figures in ours),
        **{name: sum(figures[name] for figures in ours) for name in ("sent", "acknowledged", "coalesced")},
        "events_per_report": EVENTS,
    }
    ceilings = {
        pending: statistics.median(sum(node["done"] / node["seconds"] for node in nodes) for nodes in runs)
        for pending, runs in closed.items()
    }
    best = max(ceilings, key=lambda pending: ceilings[pending])
    everything = [node for runs in (opened, *closed.values()) for nodes in runs for node in nodes]
    return load_figures, {
        "rate": NAIVE_RATE,
        "latency": latency_of(opened),
        "cpu": cpu_of(opened),
        "ceilings": ceilings,
        "pending": best,
        "ceiling": ceilings[best],
        "ceiling_latency": latency_of(closed[best]),
        "ceiling_cpu": cpu_of(closed[best]),
        "sent": sum(node["sent"] for node in everything),
        "acknowledged": sum(len(node["latencies"]) for node in everything),
        "failed": sum(node["failed"] for node in everything),
        "applied": applied,
        "logged": log.read_text(errors="replace").splitlines(),
    }


def latency_of(runs: Sequence[Any]) -> Figures:
    return spread([latency for nodes in runs for node in nodes for latency in node["latencies"]])


def cpu_of(runs: Sequence[Any]) -> float:
    return 100 * statistics.fmean(node["cpu"] for nodes in runs for node in nodes)


# --- Recovery and memory ----------------------------------------------------------------------


async def recovery(cluster: Cluster, extent: Extent) -> Figures:
    """Kill the leader repeatedly; measure until reports are acknowledged and all nodes have quorum."""
    applications = [Application(number, program="survivor") for number in range(9)]
    cluster.applications += applications
    for number, application in enumerate(applications):
        name = NAMES[number % len(NAMES)]
        await application.to(name, cluster.ports[name])
    working = True

    async def keep_on(application: Application) -> None:
        """Report five times a second; go to another node if this one does not answer."""
        while working:
            if application.lost:
                name = random.choice([node for node in NAMES if node != application.node])
                with contextlib.suppress(OSError):
                    await application.to(name, cluster.ports[name])
            application.work()
            await asyncio.sleep(0.05 if application.lost else 0.2)

    tasks = [asyncio.ensure_future(keep_on(application)) for application in applications]
    reports: list[float] = []
    quorums: list[float] = []
    whole: list[float] = []
    for _ in range(extent.kills):
        await cluster.well()
        await asyncio.sleep(1.5)  # nodes that have just started do not vote yet
        await cluster.well()
        old, killed = cluster.leader, time.monotonic()
        cluster.kill(old)

        async def quorum(name: str, old: str = old) -> float:
            while True:
                status = await cluster.readers[name].status()
                if status.quorum and status.leader not in (None, old):
                    return time.monotonic()
                await asyncio.sleep(0.01)

        async def answered(killed: float = killed) -> float:
            await until(
                lambda: all(application.answered_for > killed for application in applications),
                "reports to be acknowledged again", 0.005,
            )  # fmt: skip
            return time.monotonic()

        others = [name for name in NAMES if name != old]
        ends = await asyncio.wait_for(asyncio.gather(answered(), *map(quorum, others)), WAIT)
        reports.append(ends[0] - killed)
        quorums.append(max(ends[1:]) - killed)
        whole.append(max(ends) - killed)
        cluster.start(old)
    working = False
    await asyncio.gather(*tasks)
    await cluster.well()
    await settle(applications)
    await compare(cluster, applications)
    for application in applications:
        application.close()
    return {
        name: {"median": statistics.median(values), "worst": max(values), "all": values}
        for name, values in (("acknowledged", reports), ("quorum", quorums), ("both", whole))
    }


async def memory(cluster: Cluster, extent: Extent) -> Figures:
    """Return by how many bytes a node grows for each 10,000 connections."""
    applications: list[Application] = []
    sizes: list[dict[str, int]] = []
    for step in range(extent.steps + 1):
        if step:
            more = [
                Application(len(applications) + n, PER_PROCESS, PER_PROCESS // 2)
                for n in range(MEMORY_STEP // PER_PROCESS)
            ]
            await spread_out(cluster, more)
            applications += more
        await asyncio.sleep(2)
        sizes.append({name: psutil.Process(cluster.pid(name)).memory_info().rss for name in NAMES})
    await compare(cluster, applications)
    for application in applications:
        application.close()
    return {
        "rss": sizes,
        "first": by_role(cluster, {name: sizes[1][name] - sizes[0][name] for name in NAMES}),
        "each": by_role(
            cluster, {name: (sizes[-1][name] - sizes[0][name]) / extent.steps for name in NAMES}
        ),
    }  # fmt: skip


async def spread_out(cluster: Cluster, applications: Sequence[Application]) -> None:
    """Connect the applications to the nodes in turn, and have each send a full report."""
    cluster.applications += applications
    for at in range(0, len(applications), 50):
        some = [(NAMES[n % 3], application) for n, application in enumerate(applications[at : at + 50], at)]
        await asyncio.gather(*(application.to(name, cluster.ports[name]) for name, application in some))
        for _, application in some:
            application.work()
    await settle(applications)


# --- Printing -----------------------------------------------------------------------------------


def _ms(figures: Figures) -> str:
    if not figures["count"]:
        return "nothing measured"
    return f"p50 {1000 * figures['p50']:.1f} ms, p99 {1000 * figures['p99']:.1f} ms ({figures['count']})"


def _seconds(figures: Figures) -> str:
    return f"median {figures['median']:.2f} s, worst {figures['worst']:.2f} s ({len(figures['all'])})"


def table(results: Figures) -> Iterator[str]:
    """Yield the lines of the printed table."""

    def line(name: str, value: str, target: str = "") -> str:
        return f"  {name:<38}{value:<46}{'target: ' + target if target else ''}".rstrip()

    cpu = "leader {leader:.1f} %, follower {follower:.1f} %"
    if "idle" in results:
        yield "idle"
        yield line("CPU per node, of a core", cpu.format(**results["idle"]), "at most 2 %")
    if "quiet" in results:
        yield "one report at a time"
        yield line("report acknowledged, by the leader", _ms(results["quiet"]["leader"]))
        yield line("report acknowledged, by a follower", _ms(results["quiet"]["follower"]))
        yield line("report visible on every node", _ms(results["quiet"]["visible"]), "p99 300 ms")
    if "events" in results:
        yield line("event in an application visible", _ms(results["events"]), "p99 1300 ms")
    if "load" in results:
        load = results["load"]
        yield f"under load, {load['events_per_report']} events in each report"
        rate = f"{load['rate']:.0f}/s, {load['acknowledged']} of {load['sent']} acknowledged"
        yield line("reports", rate, "1000/s, all")
        yield line("report acknowledged, by the leader", _ms(load["leader"]))
        yield line("report acknowledged, by a follower", _ms(load["follower"]))
        yield line("report visible on every node", _ms(load["visible"]), "p99 300 ms")
        yield line("held back for the next report", str(load["coalesced"]))
        yield line("CPU per node, of a core", cpu.format(**load["cpu"]))
        yield line("CPU of the generator", f"{load['cpu']['generator']:.1f} %")
    if "naive" in results:
        naive = results["naive"]
        yield "stock PySyncObj, one replicated call per event"
        yield line(f"{naive['rate']} events/s: latency", _ms(naive["latency"]))
        yield line(f"{naive['rate']} events/s: CPU per node", f"{naive['cpu']:.1f} %")
        yield line("ceiling, sum of three nodes", f"{naive['ceiling']:.0f} events/s")
        yield line("ceiling: CPU per node", f"{naive['ceiling_cpu']:.0f} %, {naive['pending']} pending calls")
        yield line("ceiling: latency", _ms(naive["ceiling_latency"]))
        applied = ", ".join(map(str, naive["applied"]))
        yield line("warnings in its log", f"{len(naive['logged'])} lines")
        yield line("acknowledged; applied per node", f"{naive['acknowledged']} of {naive['sent']}; {applied}")
    if "recovery" in results:
        yield "kill -9 of the leader"
        yield line("until all reports are acknowledged", _seconds(results["recovery"]["acknowledged"]))
        yield line("until the others have quorum", _seconds(results["recovery"]["quorum"]))
        yield line("until both", _seconds(results["recovery"]["both"]), "3 s")
    if "memory" in results:
        megabytes = {who: size / 1e6 for who, size in results["memory"]["each"].items()}
        yield "memory"
        yield line(
            "per 10,000 connections, half held",
            "leader {leader:.1f} MB, follower {follower:.1f} MB".format(**megabytes),
        )


async def measure(extent: Extent, rate: float, directory: Path, results: Figures) -> None:
    """Measure everything, into `results`. Raises Wrong if a count is wrong."""
    async with Cluster(directory / "first") as cluster:
        results["idle"] = await idle(cluster, extent)
        async with reporting(cluster, len(NAMES)) as applications:
            results["quiet"] = await quiet(cluster, applications, extent)
            await compare(cluster, applications)
        results["events"] = await events(cluster, extent)
        async with reporting(cluster, max(len(NAMES), round(rate))) as applications:
            results["load"], results["naive"] = await turns(cluster, applications, extent, rate)
            await compare(cluster, applications)
        results["recovery"] = await recovery(cluster, extent)
    async with Cluster(directory / "second") as cluster:
        results["memory"] = await memory(cluster, extent)


@contextlib.asynccontextmanager
async def reporting(cluster: Cluster, count: int) -> AsyncIterator[list[Application]]:
    applications = [Application(number) for number in range(count)]
    try:
        await spread_out(cluster, applications)
        acknowledged(cluster, applications)
        yield applications
    finally:
        for application in applications:
            application.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a first look: about a minute")
    parser.add_argument("--rate", type=float, default=1000, help="reports per second (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--application", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.application:
        be_application(options.application)
        return 0
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load_before = os.getloadavg()[0]
    print(
        f"Python {platform.python_version()}, {len(cores)} cores, load {load_before:.1f} before\n", flush=True
    )
    results: Figures = {"python": platform.python_version(), "cores": len(cores), "load_before": load_before}
    wrong = ""
    with tempfile.TemporaryDirectory(prefix="connmon-cluster-") as name:
        try:
            asyncio.run(measure(QUICK if options.quick else FULL, options.rate, Path(name), results))
        except (Wrong, asyncio.TimeoutError) as error:
            wrong = str(error) or "no answer came in time"
    print("\n".join(table(results)))
    print(f"\nWRONG: {wrong}" if wrong else "\nEvery report was acknowledged, and every node shows them all.")
    if options.json:
        Path(options.json).write_text(json.dumps({**results, "wrong": wrong or None}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The page of metrics: of the fleet from this node's replica, and of the node itself.

- Everything is read on the event loop's thread, in pieces between which others get their turn:
  a scrape holds no report and no heartbeat back, however many programs there are.
- A node without quorum tells of itself only: what it has of the fleet is of the past, and
  would be taken for the present.
- Scrapes that come while a page is being made, or soon after, get the same page.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from connmon import process_info
from connmon.cluster.export.prometheus import METRIC_GROUPINGS, Fleet, limits_text
from connmon.cluster.raft.replica import Replica
from connmon.cluster.server import Server
from connmon.protocol.batch import Batch
from connmon.protocol.queries import NodeStatus, StatusQuery

#: Seconds for which a page is served again.
FRESH: Final = 0.5
#: Programs and databases that are taken in at once.
AT_ONCE: Final = 250
#: The upper bounds (seconds) of the buckets of the latency of commands.
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Makes the page; counts what `server` has applied from now on."""

    def __init__(self, server: Server, replica: Replica) -> None:
        self._server = server
        self._replica = replica
        self._reports = 0
        self._batches = 0
        self._latency = [0] * (len(BOUNDS) + 1)
        self._latency_sum = 0.0
        self._page = b""
        self._made_at = float("-inf")
        self._making: asyncio.Task[bytes] | None = None
        server.on_command(self._applied)

    def _applied(self, batch: Batch, seconds: float) -> None:
        self._batches += 1
        self._reports += len(batch.reports)
        self._latency[bisect_left(BOUNDS, seconds)] += 1
        self._latency_sum += seconds

    async def page(self) -> bytes:
        """Return the page in Prometheus's text format."""
        if self._server.clock() - self._made_at < FRESH:
            return self._page
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make())
            self._making.add_done_callback(self._made)
        return await asyncio.shield(self._making)  # one who asks and goes takes it from nobody else

    def _made(self, task: asyncio.Task[bytes]) -> None:
        self._making = None
        if not task.cancelled() and task.exception() is None:
            self._page, self._made_at = task.result(), self._server.clock()

    async def _make(self) -> bytes:
        status = await self._server.status(StatusQuery())
        pieces = [generate_latest(_Families(self._own(status)))]
        if status.quorum:
            fleet, state = Fleet(), self._replica.state
            pieces.append(limits_text(state.left_out(), state.forgotten).encode())
            keys = [key for key in state.groups if key[0] in METRIC_GROUPINGS]
            for at in range(0, len(keys), AT_ONCE):
                now = state.clock + self._replica.status.stale
                for key in keys[at : at + AT_ONCE]:
                    group = state.groups.get(key)
                    if group is not None:  # else it has gone meanwhile
                        fleet.take(key, state.figures.of_group_sums(group), group.times, now)
                await asyncio.sleep(0)
            for text in fleet.pages():
                pieces.append(text.encode())
                await asyncio.sleep(0)
        return b"".join(pieces)

    def _own(self, status: NodeStatus) -> Iterable[Metric]:
        """Yield what the node has to say of itself."""
        info = GaugeMetricFamily(
            "connmon_node_info", "The node; always 1.", labels=["service", "node", "version"]
        )
        info.add_metric([status.service, status.node, status.software], 1)
        yield info
        role = GaugeMetricFamily(
            "connmon_node_role", "1 for the node's role in the Raft group.", labels=["role"]
        )
        for each in ("leader", "follower", "candidate"):
            role.add_metric([each], status.role == each)
        yield role
        links = GaugeMetricFamily(
            "connmon_node_links", "Other nodes, by whether there is a link.", labels=["state"]
        )
        links.add_metric(["linked"], len(status.linked))
        links.add_metric(["unlinked"], len(status.unlinked))
        yield links
        usage = process_info.usage()
        for name, text, value in (
            ("quorum", "Whether what the node shows is what a majority has agreed on.", status.quorum),
            ("term", "Raft's term.", status.term),
            ("applied_index", "Index of the last log entry applied.", status.applied),
            (
                "lag_entries",
                "Entries that the leader has committed and this node has not applied.",
                status.lag,
            ),
            ("log_entries", "Entries that the Raft log holds.", self._replica.status.log_entries),
            ("stale_seconds", "Time since the replica last moved.", status.stale),
            ("uptime_seconds", "Time since the node's start.", status.uptime),
            ("processes", "Processes that report to this node.", status.processes),
            ("consoles", "Readers that are connected to this node.", status.consoles),
            ("clients", "Connections to the node's port.", self._server.clients),
            ("clients_memory_bytes", "Memory that is held for clients.", self._server.held_bytes),
            ("resident_memory_bytes", "Resident memory of the node.", usage.rss_bytes),
            ("open_files", "Open file descriptors of the node.", usage.open_files),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"connmon_node_{name}", text, value=value)
        for name, text, count in (
            ("reports", "Reports of processes that this node has had applied.", self._reports),
            ("batches", "Commands that this node has had applied.", self._batches),
        ):
            yield CounterMetricFamily(f"connmon_node_{name}", text, value=count)
        seen, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._latency, strict=True):
            seen += count
            buckets.append((bound, float(seen)))
        yield HistogramMetricFamily(
            "connmon_node_command_seconds",
            "From a command's proposal until it was applied here.",
            buckets=buckets,
            sum_value=self._latency_sum,
        )


class _Families(Collector):
    """These families, as prometheus_client wants them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

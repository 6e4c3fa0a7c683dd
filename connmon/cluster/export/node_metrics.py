"""The page of metrics: the fleet's, from this node's replica, and the node's own.

- Everything is read on the event loop's thread, in pieces, with a turn for other tasks between them:
  a scrape delays no report and no heartbeat, however many programs there are.
- A node without quorum has its own metrics only: what it knows of the fleet is out of date, and would be
  taken for current.
- Scrapes during the making of a page, or within `fresh_seconds` after it, get the same page.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from connmon import process_info
from connmon.cluster.export.call_site_metrics import TopCallSites
from connmon.cluster.export.prometheus import METRIC_GROUPINGS, Fleet, limits_text
from connmon.cluster.raft.replica import Replica
from connmon.cluster.server import Server
from connmon.cluster.state.times import window_of
from connmon.protocol.batch import Batch
from connmon.protocol.queries import NodeStatus, StatusQuery

#: The upper bounds of the buckets of the latency of commands.
BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class MetricsSettings:
    """How often the page is made, and how."""

    fresh_seconds: float = 0.5
    """For which a page is served again."""
    piece_rows: int = 250
    """Programs and databases between two turns for other tasks."""
    call_sites: int = 0
    """Call sites that have a metric, those that have taken most connection time; 0: none."""


SETTINGS: Final = MetricsSettings()


class Metrics:
    """Makes the page. Counts what `server` applies from now on."""

    def __init__(self, server: Server, replica: Replica, settings: MetricsSettings = SETTINGS) -> None:
        self._server = server
        self._settings = settings
        self._replica = replica
        self._reports = 0
        self._batches = 0
        self._latency = [0] * (len(BOUNDS_SECONDS) + 1)
        self._latency_sum = 0.0
        self._page = b""
        self._made_at = float("-inf")
        self._making: asyncio.Task[bytes] | None = None
        server.on_command(self._applied)

    def __repr__(self) -> str:
        return f"<Metrics: {self._reports} reports in {self._batches} batches>"

    def _applied(self, batch: Batch, seconds: float) -> None:
        self._batches += 1
        self._reports += len(batch.reports)
        self._latency[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self._latency_sum += seconds

    async def page(self) -> bytes:
        """Return the page in Prometheus's text format."""
        if self._server.clock() - self._made_at < self._settings.fresh_seconds:
            return self._page
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make())
            self._making.add_done_callback(self._made)
        return await asyncio.shield(self._making)  # a client that leaves cancels it for no other

    def _made(self, task: asyncio.Task[bytes]) -> None:
        self._making = None
        if not task.cancelled() and task.exception() is None:
            self._page, self._made_at = task.result(), self._server.clock()

    async def _make(self) -> bytes:
        status = await self._server.status(StatusQuery())
        pieces = [generate_latest(_Families(self._own(status)))]
        if status.quorum:
            fleet, state = Fleet(), self._replica.state
            call_sites = TopCallSites(self._settings.call_sites, window_of(state.clock))
            pieces.append(limits_text(state.left_out(), state.forgotten).encode())
            keys = [key for key in state.groups if key[0] in METRIC_GROUPINGS]
            piece_rows = self._settings.piece_rows
            for at in range(0, len(keys), piece_rows):
                now = state.clock + self._replica.status.stale
                for key in keys[at : at + piece_rows]:
                    group = state.groups.get(key)
                    if group is not None:  # else it was removed meanwhile
                        fleet.take(key, state.figures.of_group_sums(group), group.times, now)
                        if self._settings.call_sites and group.holds is not None:
                            call_sites.take(str(key[1]), str(key[2]), group.holds)
                await asyncio.sleep(0)
            for text in chain(fleet.pages(), call_sites.pages()):
                pieces.append(text.encode())
                await asyncio.sleep(0)
        return b"".join(pieces)

    def _own(self, status: NodeStatus) -> Iterable[Metric]:
        """Yield the node's own metrics."""
        yield from _identity(status)
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
        yield self._command_seconds()

    def _command_seconds(self) -> Metric:
        counted, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS_SECONDS), "+Inf"), self._latency, strict=True):
            counted += count
            buckets.append((bound, float(counted)))
        return HistogramMetricFamily(
            "connmon_node_command_seconds",
            "From a command's proposal until it was applied here.",
            buckets=buckets,
            sum_value=self._latency_sum,
        )


def _identity(status: NodeStatus) -> Iterable[Metric]:
    """Yield which node this is, its role, and its peer links."""
    info = GaugeMetricFamily(
        "connmon_node_info", "The node; always 1.", labels=["service", "node", "version"]
    )
    info.add_metric([status.service, status.node, status.software], 1)
    yield info
    roles = GaugeMetricFamily(
        "connmon_node_role", "1 for the node's role in the Raft group.", labels=["role"]
    )
    for role in ("leader", "follower", "candidate"):
        roles.add_metric([role], status.role == role)
    yield roles
    links = GaugeMetricFamily(
        "connmon_node_links", "Other nodes, by whether there is a link.", labels=["state"]
    )
    links.add_metric(["linked"], len(status.linked))
    links.add_metric(["unlinked"], len(status.unlinked))
    yield links


class _Families(Collector):
    """Metrics as a prometheus_client collector."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

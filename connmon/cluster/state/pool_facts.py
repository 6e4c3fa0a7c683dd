"""The facts of one pool that its verdicts are made of, as of the last report of its process. Pure."""

from __future__ import annotations

from heapq import nsmallest

from connmon.cluster.state.records import ConnectionRecord, PoolRecord, ProcessRecord
from connmon.protocol import histogram
from connmon.protocol.verdicts import Hold, PoolFacts

#: By how many seconds a pool's longest hold has to exceed the known ones, to be none of them.
ROUNDING_SECONDS = 1.0


def held_by_pool(process: ProcessRecord, most: int) -> dict[int, list[ConnectionRecord]]:
    """Return the held connections of each pool; of more than `most` in all, those held longest."""
    held = [
        (connection.held_since, connection.number, connection)
        for connection in process.connections.values()
        if connection.held_since is not None
    ]
    if len(held) > most:
        held = nsmallest(most, held)
    by_pool: dict[int, list[ConnectionRecord]] = {}
    for _, _, connection in held:
        by_pool.setdefault(connection.pool, []).append(connection)
    return by_pool


def facts_of(
    process: ProcessRecord, pool: PoolRecord, held: list[ConnectionRecord], recent_timeouts: int
) -> PoolFacts:
    """Return the facts of a pool. `held`: its held connections, as far as they are looked at."""
    at, gauges, totals = process.reported, pool.gauges, pool.totals
    call_sites = process.sites.get(pool.number, {})
    holds = []
    for connection in held:
        assert connection.held_since is not None
        call_site = None if connection.call_site is None else call_sites.get(connection.call_site)
        holds.append(
            Hold(
                number=connection.number,
                seconds=max(0.0, at - connection.held_since),
                call_site=connection.call_site,
                holder_in=connection.holder_in,
                holder_site=connection.holder_site,
                server_id=None if pool.info.pooler else connection.server_id,
                call_site_ended=None if call_site is None else call_site.holds,
                call_site_usual=None if call_site is None else call_site.usual,
                detached=connection.state == "detached",
            )
        )
    longest = None if pool.held_since is None else max(0.0, at - pool.held_since)
    if longest is not None and process.missing(pool):
        known = max((hold.seconds for hold in holds), default=None)
        if known is None or longest > known + ROUNDING_SECONDS:  # then a limit leaves out the longest
            holds.append(Hold(-1, longest))
    recent = pool.recent_times(at)
    return PoolFacts(
        capacity=None if gauges.unbounded else gauges.capacity,
        checked_out=gauges.checked_out,
        waiting=gauges.waiting,
        longest_wait=0.0 if pool.waiting_since is None else max(0.0, at - pool.waiting_since),
        longest_held=longest,
        held=holds,
        held_p95=histogram.quantile(recent.holds, 95),
        held_samples=sum(recent.holds.values()),
        held_mean=totals.hold_ms / 1000.0 / totals.checkins if totals.checkins > 0 else None,
        held_ended=totals.checkins,
        recent_timeouts=recent_timeouts,
        connect_p95=histogram.quantile(recent.connects, 95),
        connect_samples=sum(recent.connects.values()),
    )

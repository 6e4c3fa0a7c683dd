"""What each part of the state weighs, roughly in bytes of memory; `Limits.room` bounds the sum. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from connmon.cluster.state.records import ConnectionRecord, ProcessRecord
from connmon.protocol.reports import Connection, HoldProfile, PoolInfo

#: More than any process can weigh without its pools and connections.
PROCESS_WEIGHT: Final = 2**14
#: No pool can weigh more.
LARGEST_POOL_WEIGHT: Final = 2048 * 3
#: A connection without holder, call site and stack.
BARE_CONNECTION_WEIGHT: Final = 256


def pool_weight(info: PoolInfo) -> int:
    """Return the weight of a pool; at least 2048, which bounds the number of pools."""
    return 2048 + len(info.url) + len(info.database or "")


def connection_weight(connection: Connection | ConnectionRecord) -> int:
    """Return the weight of a connection."""
    weight = BARE_CONNECTION_WEIGHT
    if holder := connection.holder:
        weight += len(holder)
    if (server := connection.server) is not None:
        weight += 64 + len(server.host or "")
    if call_site := connection.call_site:
        weight += len(call_site)
    if holder_site := connection.holder_site:
        weight += len(holder_site)
    if stack := connection.stack:
        weight += 64 * len(stack) + sum(map(len, stack))
    return weight


def connections_weight(connections: Iterable[Connection | ConnectionRecord]) -> int:
    """Return the weight of several connections."""
    return sum(map(connection_weight, connections))


def profile_weight(profile: HoldProfile | None) -> int:
    """Return the weight of a hold profile; 0 for none."""
    if profile is None:
        return 0
    where = profile.where
    return 320 + 64 * len(where) + sum(map(len, where))


def call_site_weight(call_site: str, profile: HoldProfile | None) -> int:
    """Return the weight of a call site of a process."""
    return 256 + len(call_site) + profile_weight(profile)


def call_sites_weight(process: ProcessRecord) -> int:
    """Return the weight of all call sites of a process."""
    return sum(
        [
            call_site_weight(call_site, record.profile)
            for call_sites in process.sites.values()
            for call_site, record in call_sites.items()
        ]
    )


def surpluses_weight(process: ProcessRecord) -> int:
    """Return the weight of all that the sums have of a process beyond its call sites."""
    return sum(
        [
            call_site_weight(call_site, profile)
            for call_site, of_name in process.surplus.items()
            for profile in of_name.values()
        ]
    )

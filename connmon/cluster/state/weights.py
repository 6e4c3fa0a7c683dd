"""What each part of the state weighs, roughly in bytes of memory; `Limits.room` bounds the sum. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from connmon.cluster.state.records import ConnectionRecord, ProcessRecord
from connmon.protocol.reports import Connection, PoolInfo

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


def call_site_weight(call_site: str) -> int:
    """Return the weight of a call site of a process."""
    return 256 + len(call_site)


def call_sites_weight(process: ProcessRecord) -> int:
    """Return the weight of all call sites of a process."""
    return sum(
        [call_site_weight(call_site) for call_sites in process.sites.values() for call_site in call_sites]
    )

"""State <-> bytes: what a replica hands to another one, and keeps on disk. Pure.

Equal states have equal bytes, also after one of them was loaded; so everything whose order
matters later is dumped in its order. What can be made from the rest is made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from connmon.cluster.state.records import (
    NO_GAUGES,
    PROCESS_WEIGHT,
    BootRecord,
    EndedRecord,
    Group,
    GroupRecord,
    Packed,
    ProcessRecord,
    Tombstones,
    check_packed,
    connection_weight,
    packed,
    pool_weight,
    sites_weight,
    unpacked,
)
from connmon.cluster.state.tables import Tables
from connmon.errors import ProtocolError
from connmon.protocol.rows import RowKey
from connmon.protocol.values import GROUPINGS


class _Image(Struct, array_like=True, frozen=True):
    layout: int
    version: int
    clock: float
    epoch: str
    boots: list[BootRecord]
    processes: list[ProcessRecord]
    groups: list[GroupRecord]
    gone: list[RowKey]
    ended: list[EndedRecord]
    window: int
    in_window: Packed
    before_window: Packed
    turned_away: list[tuple[str, float]] = []


_LAYOUT: Final = 2
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Image)


def dump(tables: Tables) -> bytes:
    """Return everything as bytes."""
    return _encoder.encode(
        _Image(
            _LAYOUT,
            tables.version,
            tables.clock,
            tables.epoch,
            list(tables.boots.values()),
            list(tables.processes.values()),
            [group.record() for group in tables.groups.values()],
            list(tables.gone),
            list(tables.ended.values()),
            tables.window,
            packed(tables.in_window),
            packed(tables.before_window),
            list(tables.turned_away.items()),
        )
    )


def restore(tables: Tables, data: bytes) -> None:
    """Fill empty tables with what was dumped. Raises ProtocolError where this is no dump."""
    try:
        image = _decoder.decode(data)
        for times in _all_packed(image):
            check_packed(times)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a dump of the state that cannot be read: {error}") from None
    if image.layout != _LAYOUT:
        raise ProtocolError(
            f"a dump of the state in layout {image.layout}, {_LAYOUT} is known here: "
            "run the same version of connmon on all nodes"
        )
    tables.version = tables.moved = image.version
    tables.clock, tables.epoch = image.clock, image.epoch
    tables.window = image.window
    tables.in_window, tables.before_window = unpacked(image.in_window), unpacked(image.before_window)
    tables.boots = {boot.boot: boot for boot in image.boots}
    tables.groups = {record.key: Group.of(record) for record in image.groups}
    for group in tables.groups.values():
        group.judge = tables.judge
    tables.gone = {key: tables.groups[key].gone_since or 0.0 for key in image.gone}
    tables.turned_away = dict(image.turned_away)
    for process in image.processes:
        _count(tables, process)
    for record in image.groups:  # counting has touched them
        tables.groups[record.key].version = record.version
    for ended in image.ended:
        tables.remember_ended(ended)
    # What was removed is not known: who asks from an earlier version on gets everything.
    tables.tombstones = {by: Tombstones(tables.limits.tombstones, image.version) for by in GROUPINGS}


def _all_packed(image: _Image) -> Iterator[Packed]:
    """Yield what is in there as bytes and was not looked at by decoding; most of it is the same twice."""
    yield image.in_window
    yield image.before_window
    for process in image.processes:
        for pool in process.pools.values():
            yield from {pool.times, pool.mark, pool.mark_before}
    for group in image.groups:
        yield group.ended_times
    for ended in image.ended:
        yield from ended.times


def _count(tables: Tables, process: ProcessRecord) -> None:
    """Add a process to its groups and to the weight."""
    tables.processes[process.instance] = process
    if process.left_out:
        tables.crowded[process.instance] = process
    for key in (process.program_key, process.host_key, *process.databases()):
        tables.enroll(tables.group(key), process)
    for key in (process.program_key, process.host_key):
        tables.shift(key, NO_GAUGES if process.lost else process.gauges, process.totals)
    listed = Counter([connection.pool for connection in process.connections.values()])
    for pool in process.pools.values():
        pool.listed = listed[pool.number]  # what an earlier version has kept on disk is without it
        tables.shift(pool.database, NO_GAUGES if process.lost else pool.gauges, pool.totals)
        tables.weight += pool_weight(pool.info)
    tables.weight += (
        PROCESS_WEIGHT + sites_weight(process) + sum(map(connection_weight, process.connections.values()))
    )

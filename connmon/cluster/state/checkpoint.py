"""The checkpoint of the state as bytes: what a replica hands to another one, and keeps on disk. Pure.

Equal states have equal bytes, also after one of them was loaded; so everything whose order matters later is
encoded in its order. What can be recomputed from the rest is not in it: the sums of groups, weights,
tombstones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from connmon.cluster.state.contents import Contents
from connmon.cluster.state.hold_profiles import unpacked_profiles
from connmon.cluster.state.records import NO_GAUGES, BootRecord, EndedRecord, GroupRecord, ProcessRecord
from connmon.cluster.state.times import PackedTimes, check_packed, packed, unpacked
from connmon.cluster.state.weights import (
    PROCESS_WEIGHT,
    call_sites_weight,
    connections_weight,
    pool_weight,
    surpluses_weight,
)
from connmon.errors import ProtocolError
from connmon.protocol.rows import RowKey


class _Checkpoint(Struct, array_like=True, frozen=True):
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
    current_times: PackedTimes
    previous_times: PackedTimes
    turned_away: list[tuple[str, float]] = []


_LAYOUT: Final = 2
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Checkpoint)


def encode(contents: Contents) -> bytes:
    """Return everything as bytes."""
    return _encoder.encode(
        _Checkpoint(
            layout=_LAYOUT,
            version=contents.now.version,
            clock=contents.now.clock,
            epoch=contents.epoch,
            boots=list(contents.boots.by_boot.values()),
            processes=list(contents.processes.by_instance.values()),
            groups=[group.record() for group in contents.groups.by_key.values()],
            gone=list(contents.groups.gone),
            ended=list(contents.ended.by_instance.values()),
            window=contents.recent_times.window,
            current_times=packed(contents.recent_times.current),
            previous_times=packed(contents.recent_times.previous),
            turned_away=list(contents.turned_away.heard.items()),
        )
    )


def decode(data: bytes, contents: Contents) -> None:
    """Fill empty contents with those of a checkpoint. Raises ProtocolError where it cannot be read."""
    try:
        checkpoint = _decoder.decode(data)
        for times in _all_packed(checkpoint):
            check_packed(times)
        for ended in checkpoint.ended:
            unpacked_profiles(ended.profiles or b"")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a checkpoint of the state that cannot be read: {error}") from None
    if checkpoint.layout != _LAYOUT:
        raise ProtocolError(
            f"a checkpoint of the state in layout {checkpoint.layout}, {_LAYOUT} is known here: "
            "run the same version of connmon on all nodes"
        )
    now, recent_times = contents.now, contents.recent_times
    now.version = now.moved = checkpoint.version
    now.clock, contents.epoch = checkpoint.clock, checkpoint.epoch
    recent_times.window = checkpoint.window
    recent_times.current = unpacked(checkpoint.current_times)
    recent_times.previous = unpacked(checkpoint.previous_times)
    contents.boots.by_boot = {boot.boot: boot for boot in checkpoint.boots}
    contents.turned_away.heard = dict(checkpoint.turned_away)
    groups = contents.groups.restore(checkpoint.groups, checkpoint.gone)
    for process in checkpoint.processes:
        _count(contents, process)
    for record in checkpoint.groups:  # counting has touched them
        groups[record.key].version = record.version
    for ended in checkpoint.ended:
        contents.ended.add(ended)
    # What was removed is unknown: a reader that asks from an earlier version on gets everything.
    contents.tombstones.restart(checkpoint.version)


def _all_packed(checkpoint: _Checkpoint) -> Iterator[PackedTimes]:
    """Yield the packed times, which decoding has not checked; of a pool most are the same."""
    yield checkpoint.current_times
    yield checkpoint.previous_times
    for process in checkpoint.processes:
        for pool in process.pools.values():
            yield from {pool.times, pool.mark, pool.mark_before}
    for group in checkpoint.groups:
        yield group.ended_times
    for ended in checkpoint.ended:
        yield from ended.times


def _count(contents: Contents, process: ProcessRecord) -> None:
    """Add a process to its groups and to the weight."""
    groups = contents.groups
    contents.processes.put_last(process)
    if process.left_out:
        contents.processes.crowded[process.instance] = process
    for key in (process.program_key, process.host_key, *process.databases()):
        groups.enroll(groups.at(key), process)
    for key in (process.program_key, process.host_key):
        groups.shift(key, NO_GAUGES if process.lost else process.gauges, process.totals)
    listed = Counter([connection.pool for connection in process.connections.values()])
    weight = PROCESS_WEIGHT + call_sites_weight(process) + surpluses_weight(process)
    for pool in process.pools.values():
        pool.listed = listed[pool.number]  # a checkpoint of an earlier version lacks it
        groups.shift(pool.database, NO_GAUGES if process.lost else pool.gauges, pool.totals)
        weight += pool_weight(pool.info)
    contents.room.weight += weight + connections_weight(process.connections.values())

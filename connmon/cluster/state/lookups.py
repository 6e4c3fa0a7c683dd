"""Answer queries across the groupings: who waits and who holds, and which programs use a database. Pure.

- Both answers are looked up when they are asked for, and cost the state no memory and no Raft entry.
- Long work is cut into pieces: an empty frame between two of them lets the node's other work have its turn.
- Both are bounded, however many wait. The pools for which most wait come first, then those of which a
  connection has been held longest. The answer says how many rows that leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest

import msgspec

from connmon.cluster.state.answer_frames import About, Sources, frames, header, unchanged
from connmon.cluster.state.answers import Chosen, process_rows
from connmon.cluster.state.records import PoolRecord, ProcessRecord
from connmon.protocol.queries import UsersQuery, WaitsQuery
from connmon.protocol.rows import ProgramRow, RowKey, Rows
from connmon.protocol.values import RowState


def waits(sources: Sources, query: WaitsQuery, about: About) -> Iterator[Rows]:
    """Return the pools with waiters or with a connection held for `query.held` seconds, and their holders."""
    contents, settings = sources.contents, sources.settings
    troubled: list[tuple[tuple[float, float], ProcessRecord, PoolRecord]] = []
    left_out = 0
    for process in contents.processes.by_instance.values():
        at = process.reported
        if process.lost or not _is_troubled(process, at - query.held):
            continue
        for pool in process.pools.values():
            if not _is_troubled(pool, at - query.held):
                continue
            if pool.left_out:  # a sum of several, which nobody can judge
                left_out += pool.left_out
            elif pool.shown:
                held = 0.0 if pool.held_since is None else at - pool.held_since
                troubled.append(((-pool.gauges.waiting, -held), process, pool))
    worst = nsmallest(settings.waits_pools, troubled, key=lambda entry: entry[0])
    left_out += len(troubled) - len(worst)
    chosen: list[Chosen] = []
    seen: set[str] = set()
    for _, process, pool in worst:
        held_here = [
            (connection.held_since, connection.number)
            for connection in process.connections.values()
            if connection.pool == pool.number and connection.held_since is not None
        ]
        holders = [number for _, number in nsmallest(settings.waits_holders, held_here)]
        chosen.append(Chosen(process.instance, process.instance not in seen, [pool.number], holders))
        seen.add(process.instance)
        left_out += max(0, len(held_here) - settings.waits_holders)
    head = header(sources, about, contents.now.version, True, left_out)
    return frames(head, process_rows(sources, chosen), [], settings)


def _is_troubled(record: ProcessRecord | PoolRecord, long_ago: float) -> bool:
    return record.gauges.waiting > 0 or (record.held_since is not None and record.held_since <= long_ago)


def users(sources: Sources, query: UsersQuery, about: About) -> Iterator[Rows]:
    """Yield a row for each program that has a pool in the database, with the figures of these pools."""
    contents, settings = sources.contents, sources.settings
    key: RowKey = (
        "database", query.dialect, query.database_host, query.database_port, query.database,
    )  # fmt: skip
    group = contents.groups.by_key.get(key)
    reported = None if group is None else group.reported
    if (
        query.epoch == contents.epoch
        and query.since > 0
        and group is not None
        # The verdict of a full pool depends on other processes too.
        and group.version <= query.since
        and (not group.gauges.waiting or contents.now.moved <= query.since)
    ):
        yield unchanged(sources, about, query.since)
        return
    head = header(sources, about, contents.now.version, True)
    pools: dict[tuple[str, str], list[tuple[ProcessRecord, PoolRecord]]] = {}
    seen = 0
    for process in [] if group is None else list(group.members.values()):
        if seen >= settings.piece_records:
            seen = 0
            yield msgspec.structs.replace(head, more=True)
        program = (process.process.host, process.process.program)
        for pool in process.pools.values():
            seen += 1
            if pool.database == key:
                pools.setdefault(program, []).append((process, pool))
    rows: list[ProgramRow] = []
    for (host, name), own in pools.items():
        figures = sources.figures.of_database_user(own, key, reported or 0.0)
        state: RowState = "connected" if figures.processes else "lost"
        rows.append(ProgramRow(host=host, program=name, state=state, figures=figures))
        if len(rows) >= settings.frame_rows:
            yield msgspec.structs.replace(head, rows=tuple(rows), more=True)
            rows = []
    yield msgspec.structs.replace(head, rows=tuple(rows))

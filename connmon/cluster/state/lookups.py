"""What readers ask across the groupings: who waits and who holds, and which programs use a database. Pure.

The rules kept here:

- Nothing is kept for it: both answers are found in the tables when they are asked for, and cost the
  state no memory and no Raft entry.
- A node goes on with its reports meanwhile. What takes long is done in pieces; an empty frame
  between two of them lets others have their turn.
- Both are bounded, however many wait. The pools that most wait for come first, then those of
  which a connection has been held longest. How many rows that leaves out is in the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest
from typing import Final

import msgspec

from connmon.cluster.state.answers import CHUNK, About, frames, header, longest_since, quantiles_of, rate_of
from connmon.cluster.state.records import NO_GAUGES, NO_TOTALS, PoolRecord, ProcessRecord
from connmon.cluster.state.tables import Tables
from connmon.protocol.queries import UsersQuery, WaitsQuery
from connmon.protocol.rows import Figures, ProgramRow, RowKey, Rows, Verdict
from connmon.protocol.values import LARGEST, RowState, plus, saturated
from connmon.protocol.verdicts import lost as all_lost

#: Pools in one answer, and of each of them the connections that have been held longest.
MOST_POOLS: Final = 300
MOST_HOLDERS: Final = 30
#: Pools that are looked at before others have their turn.
PIECE: Final = 2_000


def waits(tables: Tables, query: WaitsQuery, about: About) -> Iterator[Rows]:
    """Return the pools with waiters or with a connection held for `query.held` seconds, and their holders."""
    found: list[tuple[tuple[float, float], ProcessRecord, PoolRecord]] = []
    left_out = 0
    for process in tables.processes.values():
        at = process.reported
        if process.lost or not _troubled(process, at - query.held):
            continue
        for pool in process.pools.values():
            if not _troubled(pool, at - query.held):
                continue
            if pool.left_out:  # a sum of several, which nobody can judge
                left_out += pool.left_out
            elif pool.shown:
                held = 0.0 if pool.held_since is None else at - pool.held_since
                found.append(((-pool.gauges.waiting, -held), process, pool))
    worst = nsmallest(MOST_POOLS, found, key=lambda entry: entry[0])
    left_out += len(found) - len(worst)
    keys: dict[RowKey, None] = {}
    for _, process, pool in worst:
        keys["process", process.instance] = None
        keys["pool", process.instance, pool.number] = None
        held_here = [
            (connection.held_since, connection.number)
            for connection in process.connections.values()
            if connection.pool == pool.number and connection.held_since is not None
        ]
        for _, number in nsmallest(MOST_HOLDERS, held_here):
            keys["connection", process.instance, number] = None
        left_out += max(0, len(held_here) - MOST_HOLDERS)
    head = msgspec.structs.replace(header(tables, about, tables.version, True), left_out=left_out)
    return frames(tables, head, list(keys), [])


def _troubled(what: ProcessRecord | PoolRecord, long_ago: float) -> bool:
    return what.gauges.waiting > 0 or (what.held_since is not None and what.held_since <= long_ago)


def users(tables: Tables, query: UsersQuery, about: About) -> Iterator[Rows]:
    """Return a row for each program that has a pool in the database, with the figures of these pools.

    Its maxima are sums of its pools' maxima, so never below what was seen.
    """
    key: RowKey = (
        "database", query.dialect, query.database_host, query.database_port, query.database,
    )  # fmt: skip
    group = tables.groups.get(key)
    reported = None if group is None else group.reported
    if query.epoch == tables.epoch and query.since > 0 and group is not None and group.version <= query.since:
        yield header(tables, about, max(tables.version, query.since), False)
        return
    head = header(tables, about, tables.version, True)
    pools: dict[tuple[str, str], list[tuple[ProcessRecord, PoolRecord]]] = {}
    seen = 0
    for process in [] if group is None else list(group.members.values()):
        if seen >= PIECE:
            seen = 0
            yield msgspec.structs.replace(head, more=True)
        who = (process.process.host, process.process.program)
        for pool in process.pools.values():
            seen += 1
            if pool.database == key:
                pools.setdefault(who, []).append((process, pool))
    found: list[ProgramRow] = []
    for (host, program), of in pools.items():
        found.append(_program(tables, key, (host, program), of, reported or 0.0))
        if len(found) >= CHUNK:
            yield msgspec.structs.replace(head, rows=tuple(found), more=True)
            found = []
    yield msgspec.structs.replace(head, rows=tuple(found))


def _program(
    tables: Tables,
    database: RowKey,
    who: tuple[str, str],
    pools: list[tuple[ProcessRecord, PoolRecord]],
    clock: float,
) -> ProgramRow:
    at_and_alive = [(process.reported, pool) for process, pool in pools if not process.lost]
    alive = [pool for _, pool in at_and_alive]
    reported = max(process.reported for process, _ in pools)
    gauges, happened = NO_GAUGES, NO_TOTALS
    for pool in alive:
        gauges = plus(gauges, pool.gauges)
    for _, pool in pools:
        happened = plus(happened, pool.totals)
    processes = {process.instance: process.lost for process, _ in pools}
    lost = sum(processes.values())
    state: RowState = "connected" if lost < len(processes) else "lost"
    verdicts: tuple[Verdict, ...] = (all_lost(lost),)
    timeouts = 0
    if state == "connected":
        members = {process.instance: process for process, _ in pools}
        verdicts, timeouts = tables.judge.of_pools(members.values(), database, gauges.pools > 1, "program")
    figures = Figures(
        len(processes) - lost,
        lost,
        saturated(gauges),
        saturated(happened),
        len(processes),
        min(sum(pool.max_connections for _, pool in pools), LARGEST),
        min(sum(pool.max_checked_out for _, pool in pools), LARGEST),
        min(sum(pool.max_waiting for _, pool in pools), LARGEST),
        max((pool.longest_wait for pool in alive), default=0.0),
        longest_since(reported, ((at, pool.waiting_since) for at, pool in at_and_alive)),
        longest_since(reported, ((at, pool.held_since) for at, pool in at_and_alive)),
        rate_of(pool.rate for pool in alive),
        reported,
        *quantiles_of(alive, clock),
        left_out=min(
            sum(pool.left_out + process.missing(pool) for process, pool in pools if not process.lost), LARGEST
        ),
        verdicts=verdicts,
        recent_timeouts=timeouts,
    )
    return ProgramRow(*who, state, figures)

"""Who blocks whom: the pools that somebody waits for, and the places that hold their connections. Pure.

A place is a call site; where that is unknown, the thread, task or greenlet that has held a connection
long; all short holds of a pool are one place. The same place in several processes is one row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from connmon.console.aggregate import Sum, common, total
from connmon.console.row_words import VERDICTS, gravity
from connmon.console.rows import Key, KeyedRow, WaitRow
from connmon.protocol.document import JsonConnection, JsonPool
from connmon.protocol.values import VerdictWord

#: A connection held for so long is among the waits, even where nobody waits for it and it has no verdict.
HELD_LONG_SECONDS: Final = 30.0
#: The least value of a node's `verdict_held_long`: no LEAK or BLOCKED connection is held for less.
HELD_LEAST_SECONDS: Final = 1.0
#: The verdicts that single connections have.
STUCK: Final = ("LEAK", "BLOCKED")

Place: TypeAlias = tuple[Literal["site", "thread", "short", "nobody"], str | None]


def waits(pools: Sequence[KeyedRow], connections: Sequence[KeyedRow]) -> list[KeyedRow]:
    """Return a row for each place that holds connections of a pool in trouble.

    `pools` and `connections` are a node's answer to `WaitsQuery`.
    """
    pools_of: dict[Key, list[JsonPool]] = {}
    for _, pool in pools:
        assert isinstance(pool, JsonPool)
        if pool.figures.waiting or _is_long(pool.verdict, pool.figures.longest_held_seconds):
            pools_of.setdefault(_pool_key(pool), []).append(pool)
    # The same pool of other processes may be well: what these hold blocks nobody.
    in_trouble = {(key, pool.process.instance) for key, of in pools_of.items() for pool in of}
    held: dict[tuple[Key, Place], list[JsonConnection]] = {}
    for _, connection in connections:
        assert isinstance(connection, JsonConnection)
        key = _pool_key(connection)
        if connection.held_seconds is None or (key, connection.process.instance) not in in_trouble:
            continue
        place = _place(connection)
        # Short holds matter only where somebody waits for their end.
        if place[0] != "short" or any(pool.figures.waiting for pool in pools_of[key]):
            held.setdefault((key, place), []).append(connection)
    with_holders = {key for key, _ in held}
    for key in pools_of:
        if key not in with_holders:
            held[key, ("nobody", None)] = []
    rows = [
        (("wait", *key, *place), _wait(place, pools_of[key], holders))
        for (key, place), holders in held.items()
    ]
    # A place that is known by its call site or its thread says more than a number of short holds.
    rows.sort(key=lambda row: (row[0][4] == "short", -(row[1].held_seconds or 0.0)))
    return [*rows]


def _pool_key(row: JsonPool | JsonConnection) -> Key:
    return row.process.host, row.process.program, row.pool.pool


def _is_long(verdict: str | None, seconds: float | None) -> bool:
    """Whether a connection is held too long: by the node's verdict, which has its own limit, or by ours."""
    return verdict in STUCK or (seconds or 0.0) >= HELD_LONG_SECONDS


def _place(row: JsonConnection) -> Place:
    if row.call_site:
        return "site", row.call_site
    if _is_long(row.verdict, row.held_seconds):
        return "thread", row.holder
    return "short", None


def _wait(place: Place, pools: Sequence[JsonPool], holders: Sequence[JsonConnection]) -> WaitRow:
    longest = max(holders, key=lambda row: row.held_seconds or 0.0, default=None)
    sums = _blamed(total(pools), pools, holders)
    return WaitRow(
        process=common([pool.process for pool in pools]),
        pool=common([pool.pool for pool in pools]),
        state=sums.state,
        figures=sums.figures,
        verdict=sums.verdict,
        verdict_reason=sums.verdict_reason,
        blocker=_blocker(place, len(holders)),
        call_site=None if longest is None else longest.call_site,
        holder=None if longest is None else longest.holder,
        holder_in=None if longest is None else longest.holder_in,
        holder_site=None if longest is None else longest.holder_site,
        stack=() if longest is None else longest.stack,
        server_id=None if longest is None else longest.server_id,
        held_seconds=None if longest is None else longest.held_seconds,
        holds=len(holders),
        processes=len({pool.process.instance for pool in pools}),
        pids=tuple(sorted({row.process.pid for row in holders if row.process.pid is not None})),
    )


def _blocker(place: Place, holds: int) -> str:
    kind, name = place
    if kind == "short":
        return f"{holds} short holds" if holds > 1 else "a short hold"
    if not name:
        return "not known"
    return name if kind == "site" else f"thread {name}"


def _blamed(sums: Sum, pools: Sequence[JsonPool], holders: Sequence[JsonConnection]) -> Sum:
    """Return the sums with the place's own verdict: LEAK and BLOCKED are its connections', not the pool's."""
    worst = max(holders, key=lambda holder: gravity(holder.verdict), default=None)
    own = None if worst is None else worst.verdict
    if own == sums.verdict or (own is None and sums.verdict not in STUCK):
        return sums
    instance = None if worst is None else worst.process.instance
    own_pool_first = sorted(pools, key=lambda pool: pool.process.instance != instance)
    reasons = [_reason(pool, own) for pool in own_pool_first]
    return sums._replace(verdict=own, verdict_reason=next(filter(None, reasons), None))


_NEXT_VERDICT: Final = re.compile(f"; ({'|'.join(VERDICTS)}): ")


def _reason(pool: JsonPool, word: VerdictWord | None) -> str | None:
    """Return the part of a reason that is about one verdict: "why; WORD: why"; the first is the row's own."""
    first, *others = _NEXT_VERDICT.split(pool.verdict_reason or "")
    reasons: dict[str | None, str] = dict(zip(others[::2], others[1::2], strict=True))
    reasons[pool.verdict] = first
    return None if word is None else reasons.get(word)

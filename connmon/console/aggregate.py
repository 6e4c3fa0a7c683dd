"""Several rows made one: a program over its hosts, a pool over its processes, what blocks whom. Pure.

Rules kept here:

- Counts and totals are sums, and so are maxima, which are then never below what was seen. Ages are the
  oldest, a last report the newest. Of percentiles the worst is shown: no one's is hidden by another's.
- What limits have left out is summed where it is not None, which is: nothing.
- A sum of which a part is not known is not known; a part that is lost or gone has no present and adds none.
- A merged row is as grave as its gravest part, and has that one's verdict and reason: nothing is judged by
  figures that are sums.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from connmon.console import columns
from connmon.console.fitting import Row
from connmon.protocol.snapshot import FIGURES

Key: TypeAlias = tuple[Any, ...]

#: Seconds after which a connection is among the waits, though nobody waits for it and no verdict is its.
HELD_LONG: Final = 30.0
#: The least that a node's `verdict_held_long` can be: none that is LEAK or BLOCKED is held for less.
HELD_LEAST: Final = 1.0
#: The verdicts of what is held, which are a connection's own too.
STUCK: Final = ("LEAK", "BLOCKED")

_NEWEST: Final = ("last_report_seconds",)
_WORST: Final = (
    "longest_wait_seconds", "longest_held_seconds",
    *(f"{what}_p{part}_seconds" for what in ("wait", "held", "connect") for part in (50, 95, 99)),
)  # fmt: skip
_NOT_SUMMED: Final = (*_NEWEST, *_WORST, "left_out", "recent_timeouts", "verdict", "verdict_reason")
_SUMS: Final = tuple(key for key in FIGURES if key not in _NOT_SUMMED)
_DATABASE: Final = ("dialect", "database_host", "database_port", "database")
_STATES: Final = ("connected", "lost", "gone")


def together(rows: Sequence[Row]) -> dict[str, Any]:
    """Return one row of what several have in common, of the sums, and of the gravest verdict."""
    first = rows[0]
    alive = [row for row in rows if row.get("state") not in ("lost", "gone")]
    merged = {key: value for key, value in first.items() if all(row.get(key) == value for row in rows)}
    for key in _SUMS:
        told = rows if key.endswith("_total") or key.startswith("max_") or key == "processes" else alive
        values = [row.get(key) for row in told if key in row]
        if values:
            merged[key] = None if any(value is None for value in values) else sum(values)
        elif key in first:
            merged[key] = None if any(row.get("state") == "lost" for row in rows) else 0
    for key in (*_NEWEST, *_WORST):
        ages: list[float] = [row[key] for row in rows if row.get(key) is not None]
        if ages:
            merged[key] = min(ages) if key in _NEWEST else max(ages)
    if any("left_out" in row for row in rows):
        merged["left_out"] = sum(row.get("left_out") or 0 for row in rows) or None
    for key in ("recent_timeouts", "connects_per_second"):
        values = [row.get(key) for row in (rows if key == "recent_timeouts" else alive)]
        merged[key] = None if None in values or not values else sum(filter(None, values))
    worst = max(rows, key=_gravity)
    merged["verdict"], merged["verdict_reason"] = worst.get("verdict"), worst.get("verdict_reason")
    merged["state"] = next(
        (state for state in _STATES if any(row.get("state") == state for row in rows)), None
    )
    return merged


def _gravity(row: Row) -> tuple[int, int, float]:
    return (
        columns.gravity(row.get("verdict")),
        row.get("waiting") or 0,
        row.get("longest_held_seconds") or 0.0,
    )


def programs(pairs: Iterable[tuple[Key, Row]]) -> list[tuple[Key, Row]]:
    """Return one row for each program, over all hosts."""
    found: dict[Any, list[Row]] = {}
    for _, row in pairs:
        found.setdefault(row.get("program"), []).append(row)
    merged: list[tuple[Key, Row]] = []
    for program, rows in found.items():
        row = together(rows)
        row["hosts"] = len(rows)
        row["host"] = rows[0].get("host") if len(rows) == 1 else f"{len(rows)} hosts"
        merged.append((("programs", program), row))
    return merged


def pools(pairs: Iterable[tuple[Key, Row]]) -> list[tuple[Key, Row]]:
    """Return one row for each pool of a program, over its processes on a host."""
    found: dict[Key, list[Row]] = {}
    for _, row in pairs:
        found.setdefault(("pools", row.get("host"), row.get("program"), row.get("pool")), []).append(row)
    merged: list[tuple[Key, Row]] = []
    for key, rows in found.items():
        row = together(rows)
        row["processes"] = len(rows)
        merged.append((key, row))
    return merged


def users(pairs: Iterable[tuple[Key, Row]], database: Key) -> list[tuple[Key, Row]]:
    """Return a row for each program that has pools in a database, of pool rows."""
    found: dict[Key, list[Row]] = {}
    for _, row in pairs:
        if tuple(row.get(key) for key in _DATABASE) == database[1:]:
            found.setdefault(("program", row.get("host"), row.get("program")), []).append(row)
    merged: list[tuple[Key, Row]] = []
    for key, rows in found.items():
        row = {name: value for name, value in together(rows).items() if name != "pool"}
        row["pools"], row["processes"] = len(rows), len({pool.get("instance") for pool in rows})
        merged.append((key, row))
    return merged


def waits(pools: Sequence[tuple[Key, Row]], connections: Sequence[tuple[Key, Row]]) -> list[tuple[Key, Row]]:
    """Return who blocks whom: a row for each place in the code that holds connections of a troubled pool.

    A place is a line of code; where that is not known, the thread, task or greenlet that has held one
    long; all short holds of a pool are one. `pools` and `connections` are a node's answer to `waits`,
    pool rows keyed by instance and number. The same place in several processes is one row.
    """
    of_pool: dict[Key, list[Row]] = {}
    for _, row in pools:
        if row.get("waiting") or _is_long(row, "longest_held_seconds"):
            of_pool.setdefault(_pool(row), []).append(row)
    # The same pool of other processes may be well: what these hold blocks nobody.
    troubled = {(key, row.get("instance")) for key, rows in of_pool.items() for row in rows}
    held: dict[Key, list[Row]] = {}
    for _, row in connections:
        if row.get("held_seconds") is None or (_pool(row), row.get("instance")) not in troubled:
            continue
        # Short holds matter only where somebody waits for their end.
        if _place(row)[0] != "short" or any(pool.get("waiting") for pool in of_pool[_pool(row)]):
            held.setdefault((*_pool(row), *_place(row)), []).append(row)
    seen = {key[:3] for key in held}
    for pool in of_pool:
        if pool not in seen:
            held[pool + ("nobody", None)] = []  # noqa: RUF005  (a star in an index is not in Python 3.10)
    rows = [_wait(key, of_pool[key[:3]], holders) for key, holders in held.items()]
    # A place that is known by its line or its thread says more than a number of short holds.
    return sorted(rows, key=lambda pair: (pair[0][4] == "short", -(pair[1]["held_seconds"] or 0.0)))


def _pool(row: Row) -> Key:
    return row.get("host"), row.get("program"), row.get("pool")


def _is_long(row: Row, key: str) -> bool:
    """Whether a connection is held too long: by the node's verdict, which has its own limit, or by ours."""
    return row.get("verdict") in STUCK or (row.get(key) or 0.0) >= HELD_LONG


def _place(row: Row) -> tuple[str, Any]:
    if row.get("call_site"):
        return "line", row["call_site"]
    if _is_long(row, "held_seconds"):
        return "thread", row.get("holder")
    return "short", None


def _wait(key: Key, pools: Sequence[Row], holders: Sequence[Row]) -> tuple[Key, Row]:
    longest: Mapping[str, Any] = max(holders, key=lambda row: row["held_seconds"], default={})
    row = together(pools)
    held = longest.get("held_seconds")
    _blame(row, pools, holders)
    what, place = key[3:]
    if what == "short":
        row["blocker"] = f"{len(holders)} short holds" if len(holders) > 1 else "a short hold"
    elif what == "nobody":
        row["blocker"] = "not known"
    else:
        row["blocker"] = place if what == "line" else f"thread {place}" if place else "not known"
    row["call_site"] = longest.get("call_site")
    row["holder"] = longest.get("holder")
    row["holder_in"], row["holder_site"] = longest.get("holder_in"), longest.get("holder_site")
    row["stack"] = longest.get("stack") or []
    row["server_id"] = longest.get("server_id")
    row["held_seconds"], row["holds"] = held, len(holders)
    row["processes"] = len({pool.get("instance") for pool in pools})
    row["pids"] = sorted({holder["pid"] for holder in holders if holder.get("pid") is not None})
    return ("wait", *key), row


def _blame(row: dict[str, Any], pools: Sequence[Row], holders: Sequence[Row]) -> None:
    """Give a pool's LEAK or BLOCKED to the places whose connections are, and not to its every user."""
    worst: Row = max(holders, key=lambda holder: columns.gravity(holder.get("verdict")), default={})
    own, of_pool = worst.get("verdict"), row.get("verdict")
    if own == of_pool or (own is None and of_pool not in STUCK):
        return
    own_pool_first = sorted(pools, key=lambda pool: pool.get("instance") != worst.get("instance"))
    reasons = [_reason(pool, own) for pool in own_pool_first]
    row["verdict"], row["verdict_reason"] = own, next(filter(None, reasons), None)


_NEXT: Final = re.compile(f"; ({'|'.join(columns.VERDICTS)}): ")


def _reason(row: Row, word: str | None) -> str | None:
    """Return what a row's reason, "why; WORD: why", says of one word; the first part is the verdict's."""
    first, *others = _NEXT.split(row.get("verdict_reason") or "")
    reasons = {**dict(zip(others[::2], others[1::2], strict=True)), row.get("verdict"): first}
    return None if word is None else reasons.get(word)

"""Aggregate rows of a table: programs, pools and call sites, and the users of a database. Pure.

- Figures are aggregated by the rules of `protocol.aggregate`.
- An aggregate is as grave as its gravest part, and has the verdict and the reason of that part: nothing is
  judged by figures that are sums.
- A field of a process or a pool that differs between the parts is None.
- The share of a call site over several hosts is its part of what its program holds on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from msgspec import Struct, structs

from connmon.console.row_words import gravity
from connmon.console.rows import (
    CallSiteRow,
    DatabaseUser,
    FigureRow,
    Key,
    KeyedRow,
    PoolGroup,
    ProgramGroup,
    RatedRow,
    Table,
)
from connmon.protocol.aggregate import (
    CALL_SITE_RULES,
    CONNECTS_PER_SECOND,
    JSON_RULES,
    aggregate,
    aggregate_state,
)
from connmon.protocol.document import FigureFields, JsonCallSite, JsonPool, JsonProgram
from connmon.protocol.values import RowState, VerdictWord

S = TypeVar("S", bound=Struct)


class Sum(NamedTuple):
    """What several rows aggregate to."""

    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None
    verdict_reason: str | None


def total(parts: Sequence[FigureRow]) -> Sum:
    """Return the aggregate of at least one row."""
    states = [part.state for part in parts]
    figures = FigureFields(**aggregate([part.figures for part in parts], JSON_RULES, states))
    worst = max(parts, key=_trouble)
    return Sum(aggregate_state(states), figures, worst.verdict, worst.verdict_reason)


def _trouble(row: FigureRow) -> tuple[int, int, float]:
    return gravity(row.verdict), row.figures.waiting or 0, row.figures.longest_held_seconds or 0.0


def connect_rate(parts: Sequence[RatedRow]) -> float | None:
    rules = {"connects_per_second": CONNECTS_PER_SECOND}
    rate: float | None = aggregate(parts, rules, [part.state for part in parts])["connects_per_second"]
    return rate


def common(parts: Sequence[S]) -> S:
    """Return a struct of the fields that all parts share, None in the others."""
    first = parts[0]
    shared = {
        name: value if all(getattr(part, name) == value for part in parts[1:]) else None
        for name, value in structs.asdict(first).items()
    }
    return type(first)(**shared)


def programs(rows: Iterable[KeyedRow]) -> list[KeyedRow]:
    """Return one row for each program, over all hosts."""
    parts: dict[str, list[JsonProgram | DatabaseUser]] = {}
    for _, row in rows:
        assert isinstance(row, JsonProgram | DatabaseUser)
        parts.setdefault(row.program, []).append(row)
    return [(("programs", program), _program(of)) for program, of in parts.items()]


def _program(parts: Sequence[JsonProgram | DatabaseUser]) -> ProgramGroup:
    sums = total(parts)
    return ProgramGroup(
        host=parts[0].host if len(parts) == 1 else f"{len(parts)} hosts",
        program=parts[0].program,
        state=sums.state,
        figures=sums.figures,
        verdict=sums.verdict,
        verdict_reason=sums.verdict_reason,
        connects_per_second=connect_rate(parts),
        hosts=len(parts),
    )


def pools(rows: Iterable[KeyedRow]) -> list[KeyedRow]:
    """Return one row for each pool of a program, over its processes on a host."""
    parts: dict[Key, list[JsonPool]] = {}
    for _, row in rows:
        assert isinstance(row, JsonPool)
        parts.setdefault(("pools", row.process.host, row.process.program, row.pool.pool), []).append(row)
    return [(key, _pool(of)) for key, of in parts.items()]


def _pool(parts: Sequence[JsonPool]) -> PoolGroup:
    sums = total(parts)
    return PoolGroup(
        process=common([part.process for part in parts]),
        pool=common([part.pool for part in parts]),
        state=sums.state,
        figures=sums.figures,
        verdict=sums.verdict,
        verdict_reason=sums.verdict_reason,
        connects_per_second=connect_rate(parts),
        processes=len(parts),
    )


def call_sites(rows: Iterable[KeyedRow]) -> list[KeyedRow]:
    """Return one row for each call site of a program, over all hosts, from all its rows."""
    parts: dict[Key, list[CallSiteRow]] = {}
    held: dict[str, float] = {}
    for _, row in rows:
        assert isinstance(row, CallSiteRow)
        site = row.site
        parts.setdefault(("sites", site.program, site.call_site), []).append(row)
        held[site.program] = held.get(site.program, 0.0) + (site.mean_held or 0.0)
    return [(key, _call_site(of, held[str(key[1])])) for key, of in parts.items()]


def _call_site(parts: Sequence[CallSiteRow], program_held: float) -> CallSiteRow:
    """Return the aggregate; `program_held`: connections that the program holds on average on all hosts."""
    sites = [part.site for part in parts]
    states: list[RowState] = ["connected" if site.processes else "lost" for site in sites]
    worst = max(sites, key=lambda site: (gravity(site.verdict), site.held_now or 0))
    figures = aggregate(sites, CALL_SITE_RULES, states)
    mean_held = figures["mean_held"]
    return CallSiteRow(
        site=JsonCallSite(
            host=sites[0].host if len(sites) == 1 else f"{len(sites)} hosts",
            program=worst.program,
            call_site=worst.call_site,
            share=None if mean_held is None or not program_held else mean_held / program_held,
            verdict=worst.verdict,
            verdict_reason=worst.verdict_reason,
            **figures,
        ),
        waiting_in_program=sum(part.waiting_in_program for part in parts),
        summed_hosts=len(parts),
    )


def users(rows: Iterable[KeyedRow], database: Key) -> list[KeyedRow]:
    """Return a row for each program that has pools of a database, from the rows of all pools."""
    parts: dict[Key, list[JsonPool]] = {}
    for _, row in rows:
        assert isinstance(row, JsonPool)
        pool = row.pool
        if (pool.dialect, pool.database_host, pool.database_port, pool.database) == database[1:]:
            parts.setdefault(("program", row.process.host, row.process.program), []).append(row)
    return [(key, _user(of)) for key, of in parts.items()]


def _user(parts: Sequence[JsonPool]) -> DatabaseUser:
    sums = total(parts)
    return DatabaseUser(
        process=common([part.process for part in parts]),
        pool=structs.replace(common([part.pool for part in parts]), pool=None),
        state=sums.state,
        figures=structs.replace(
            sums.figures, pools=len(parts), processes=len({part.process.instance for part in parts})
        ),
        verdict=sums.verdict,
        verdict_reason=sums.verdict_reason,
        connects_per_second=connect_rate(parts),
    )


#: The tables whose rows can be aggregated further, and how.
GROUPED: Final[Mapping[Table, Callable[[Iterable[KeyedRow]], list[KeyedRow]]]] = {
    "program": programs,
    "pool": pools,
    "site": call_sites,
}

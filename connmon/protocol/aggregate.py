"""Aggregate the figures of several rows into those of one row. Pure.

A rule says how one field is aggregated: a combination (a sum, the largest, ...), and over which rows it goes.
There are three tables of rules by field name: `FIGURES_RULES` for the figures on the wire (`rows.Figures`),
`JSON_RULES` for those of the JSON contract (`document.FigureFields`), and `CALL_SITE_RULES` for its call
sites (`document.JsonCallSite`). `aggregate` applies any of them.

- Counts, totals and maxima are sums; a sum of maxima is never below what was seen at one moment. Ages are the
  longest, a last report is the latest. Of percentiles the worst counts: none hides another's.
- Gauges are summed over the rows that report. A lost or gone row has no present.
- In the JSON contract a sum is unknown (None) as soon as one of its parts is. On the wire gauges are always
  numbers; the known rates are summed, and unknown only where no row knows its own.
- Shares and mean holds are computed from sums, never averaged: the mean number of connections in a place is
  the mean held times the share of the place.
- Sums on the wire are capped at `LARGEST`, so that readers accept them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from math import fsum
from typing import Any, Final, NamedTuple

from connmon.protocol.rows import Figures
from connmon.protocol.values import (
    LARGEST,
    LARGEST_RATE,
    Gauges,
    RowState,
    Totals,
    Vector,
    largest_first,
    saturated,
)

# --- Combinations -----------------------------------------------------------------------------


def total(values: Sequence[Any]) -> Any:
    """Return the sum; None as soon as one value is unknown."""
    return None if None in values else sum(values)


def total_or_unknown(values: Sequence[Any]) -> Any:
    """Return the sum; None where there is no value, or one is unknown."""
    return total(values) if values else None


def total_left_out(values: Sequence[int | None]) -> int | None:
    """Return the sum of counts of which None means none; None where the sum is 0."""
    return sum(filter(None, values)) or None


def largest(values: Sequence[Any]) -> Any:
    """Return the largest known value; None where no value is known."""
    return max((value for value in values if value is not None), default=None)


def smallest(values: Sequence[Any]) -> Any:
    """Return the smallest known value; None where no value is known."""
    return min((value for value in values if value is not None), default=None)


def capped_total(values: Sequence[int]) -> int:
    """Return the sum of known counts, at most `LARGEST`."""
    return min(sum(values), LARGEST)


def known_rate(values: Sequence[float | None]) -> float | None:
    """Return the sum of the known rates, at most `LARGEST_RATE`; None where there are only unknown ones."""
    known = [rate for rate in values if rate is not None]
    # fsum rounds once, so that the order of the rows does not show.
    return min(fsum(known), LARGEST_RATE) if known or not values else None


def gauges_total(values: Sequence[Gauges]) -> Gauges:
    """Return the sum, field by field; no count below 0 or above `LARGEST`."""
    return _vector_total(Gauges(), values)


def totals_total(values: Sequence[Totals]) -> Totals:
    """Return the sum, field by field; no count below 0 or above `LARGEST`."""
    return _vector_total(Totals(), values)


def _vector_total(zero: Vector, values: Sequence[Vector]) -> Vector:
    return saturated(type(zero)(*map(sum, zip(zero, *values, strict=True))))


def longest_wait(values: Sequence[float]) -> float:
    """Return the longest of these seconds; 0.0 where there are none."""
    return max(values, default=0.0)


def longest_lasting(values: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Return how many seconds the longest of several states had lasted; None where none lasts.

    Each value is when its row was last reported, and since when the state lasts. What came after that report
    is unknown, so the oldest state need not be the longest.
    """
    return max((at - since for at, since in values if at is not None and since is not None), default=None)


def mappings_total(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of each key, the largest first."""
    sums: dict[str, float] = {}
    for mapping in values:
        for key, value in mapping.items():
            sums[key] = sums.get(key, 0.0) + value
    return dict(largest_first(sums))


def shares_total(values: Sequence[tuple[float | None, Mapping[str, float]]]) -> dict[str, float]:
    """Return the shares of a sum. Each value is the mean of a part, and the shares of that."""
    means = mappings_total(
        [{key: share * mean for key, share in shares.items()} for mean, shares in values if mean is not None]
    )
    whole = sum(means.values())
    return {key: mean / whole for key, mean in means.items()} if whole else {}


def share_total(values: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Return one share of a sum, as `shares_total`. None: unknown of all parts that have something."""
    known = [(mean, share) for mean, share in values if mean and share is not None]
    whole = sum(mean for mean, _ in known)
    return sum(mean * share for mean, share in known) / whole if whole else None


def mean_hold(values: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Return the mean seconds of a hold, from the connections held on average and the holds per second."""
    held, rate = total([held for held, _ in values]), total([rate for _, rate in values])
    return held / rate if held is not None and rate else None


def stack_of_largest(values: Sequence[tuple[float | None, tuple[str, ...]]]) -> tuple[str, ...]:
    """Return the stack of the part with the largest mean that has a stack."""
    return max(values, key=lambda value: (bool(value[1]), value[0] or 0.0), default=(0.0, ()))[1]


# --- Rules ------------------------------------------------------------------------------------


class Over(enum.Enum):
    """Which rows a rule goes over."""

    ALL = "all"
    REPORTING = "reporting"
    """Rows that are neither lost nor gone."""
    PRESENT = "present"
    """The same; where there are none, but lost ones, the aggregate is unknown (None)."""


class Rule(NamedTuple):
    """How one field is aggregated."""

    combine: Callable[[Sequence[Any]], Any]
    over: Over = Over.ALL
    fields: tuple[str, ...] = ()
    """The fields whose values are combined together, as tuples. (): the field itself."""


_WORST: Final = Rule(largest)
_PRESENT_SUM: Final = Rule(total, Over.PRESENT)
_SUM: Final = Rule(total)

#: How each figure of the JSON contract is aggregated.
JSON_RULES: Final[Mapping[str, Rule]] = {
    "processes": _SUM,
    "max_processes": _SUM,
    "pools": _PRESENT_SUM,
    "capacity": _PRESENT_SUM,
    "connections": _PRESENT_SUM,
    "max_connections": _SUM,
    "checked_out": _PRESENT_SUM,
    "max_checked_out": _SUM,
    "idle": _PRESENT_SUM,
    "overflow": _PRESENT_SUM,
    "detached": _PRESENT_SUM,
    "waiting": _PRESENT_SUM,
    "max_waiting": _SUM,
    "longest_wait_seconds": _WORST,
    "longest_held_seconds": _WORST,
    "connects_total": _SUM,
    "closes_total": _SUM,
    "checkouts_total": _SUM,
    "checkins_total": _SUM,
    "invalidations_total": _SUM,
    "timeouts_total": _SUM,
    "connect_errors_total": _SUM,
    "checkouts_per_second": _PRESENT_SUM,
    "last_report_seconds": Rule(smallest),
    "wait_p50_seconds": _WORST,
    "wait_p95_seconds": _WORST,
    "wait_p99_seconds": _WORST,
    "held_p50_seconds": _WORST,
    "held_p95_seconds": _WORST,
    "held_p99_seconds": _WORST,
    "connect_p50_seconds": _WORST,
    "connect_p95_seconds": _WORST,
    "connect_p99_seconds": _WORST,
    "left_out": Rule(total_left_out),
    "recent_timeouts": Rule(total_or_unknown),
}

#: How each field of a call site is aggregated; but for the share of its program's time, for which the time of
#: the program is needed, and its verdict, which belongs to the gravest part.
CALL_SITE_RULES: Final[Mapping[str, Rule]] = {
    "processes": _SUM,
    "held_now": _PRESENT_SUM,
    "in_database_now": _PRESENT_SUM,
    "waiting_now": _PRESENT_SUM,
    "holds_total": _SUM,
    "hold_seconds_total": _SUM,
    "database_seconds_total": _SUM,
    "mean_held": _SUM,
    "database_share": Rule(share_total, fields=("mean_held", "database_share")),
    "holds_per_second": _SUM,
    "mean_hold_seconds": Rule(mean_hold, fields=("mean_held", "holds_per_second")),
    "mean_waiting": _SUM,
    "mean_waiting_caused": _SUM,
    "where_shares": Rule(shares_total, fields=("mean_held", "where_shares")),
    "where_seconds_total": Rule(mappings_total),
    "waited_seconds_total": _SUM,
    "waiting_caused_seconds_total": _SUM,
    "longest_held_seconds": _WORST,
    "usual_held_seconds": _WORST,
    "estimated": Rule(any),
    "stack": Rule(stack_of_largest, fields=("mean_held", "stack")),
}

#: The rule of the rate that a reader derives itself and that is no part of the JSON contract.
CONNECTS_PER_SECOND: Final = Rule(total_or_unknown, Over.REPORTING)

#: How each field of `Figures` is aggregated; but for its quantiles, which histograms are needed for, and its
#: verdicts, which belong to the gravest part.
FIGURES_RULES: Final[Mapping[str, Rule]] = {
    "processes": Rule(capped_total),
    "lost_processes": Rule(capped_total),
    "gauges": Rule(gauges_total),
    "totals": Rule(totals_total),
    "max_processes": Rule(capped_total),
    "max_connections": Rule(capped_total),
    "max_checked_out": Rule(capped_total),
    "max_waiting": Rule(capped_total),
    "longest_wait": Rule(longest_wait),
    "waiting_since": Rule(longest_lasting, fields=("reported", "waiting_since")),
    "held_since": Rule(longest_lasting, fields=("reported", "held_since")),
    "checkouts_per_second": Rule(known_rate, Over.REPORTING),
    "reported": Rule(largest),
    "left_out": Rule(capped_total),
    "recent_timeouts": Rule(capped_total),
}


# --- Aggregates -------------------------------------------------------------------------------


def aggregate(
    parts: Sequence[Any],
    rules: Mapping[str, Rule],
    states: Sequence[RowState | None] | None = None,
    field: Callable[[Any, str], Any] = getattr,
) -> dict[str, Any]:
    """Return the aggregate of each field that has a rule.

    `states`: of each part, as rows have them; None: all parts report. `field(part, name)` returns one field
    of a part.
    """
    reporting, lost = parts, False
    if states is not None:
        reporting = [
            part for part, state in zip(parts, states, strict=True) if state not in ("lost", "gone")
        ]  # fmt: skip
        lost = "lost" in states
    result: dict[str, Any] = {}
    for name, rule in rules.items():
        over = parts if rule.over is Over.ALL else reporting
        if rule.over is Over.PRESENT and lost and not over:
            result[name] = None
        elif rule.fields:
            result[name] = rule.combine([tuple([field(part, each) for each in rule.fields]) for part in over])
        else:
            result[name] = rule.combine([field(part, name) for part in over])
    return result


def aggregate_figures(
    parts: Sequence[Any], states: Sequence[RowState | None] | None = None, **known: Any
) -> Figures:
    """Return the figures of a row that aggregates these parts.

    `known`: the fields of the row that the caller knows otherwise; the parts need no such fields. Quantiles,
    verdicts and, where parts have none, `recent_timeouts` have to be among them, or get their defaults.
    """
    rules = {name: rule for name, rule in FIGURES_RULES.items() if name not in known}
    values = aggregate(parts, rules, states) | known
    reported = values["reported"]
    for name in ("waiting_since", "held_since"):
        lasted = values[name]
        values[name] = None if lasted is None or reported is None else reported - lasted
    return Figures(**values)


def aggregate_state(states: Sequence[RowState | None]) -> RowState | None:
    """Return the state of a row that aggregates rows of these states: connected as soon as one is."""
    known: tuple[RowState, ...] = ("connected", "lost", "gone")
    return next((state for state in known if state in states), None)

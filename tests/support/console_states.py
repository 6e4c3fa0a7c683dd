"""States of the console as keys and snapshots make them, and rows of its tables, for its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from connmon.console import actions, keys, state
from connmon.console.rows import (
    CallSiteRow,
    Key,
    KeyedRow,
    NodeRow,
    Samples,
    Table,
    WaitRow,
    node_rows,
)
from connmon.console.source import Source, Want
from connmon.console.state import ConsoleState, Refresh, Remembered
from connmon.protocol.document import (
    FigureFields,
    JsonHead,
    JsonProgram,
    JsonTotals,
    PoolFields,
    ProcessFields,
)
from connmon.protocol.queries import HistoryQuery
from connmon.protocol.rows import Row
from tests.support import made_fleet
from tests.support.console_fakes import FLEET, answer, history
from tests.support.json_rows import typed

#: What the nodes say of themselves.
NODES: list[dict[str, Any]] = [
    {"node": "node1", "address": "ctl1:5800", "role": "leader", "term": 7, "applied": 88213, "lag": 0,
     "stale_seconds": 0.1, "processes": 14, "consoles": 1, "uptime_seconds": 266_400.0, "version": "0.1.0",
     "problems": []},
    {"node": "node2", "address": "ctl2:5800", "role": "unreachable", "term": None, "applied": None,
     "lag": None, "stale_seconds": None, "processes": None, "consoles": None, "uptime_seconds": None,
     "version": None, "problems": ["unreachable: No route to host"]},
]  # fmt: skip


def _fields(kind: type[Struct], flat: Mapping[str, Any]) -> Any:
    return kind(**{name: flat.get(name) for name in kind.__struct_fields__})


def row(by: Table, **flat: Any) -> Any:
    """Return a row of a table from flat fields, as in JSON; the fields that are not given are unknown."""
    if by == "site":
        names = {name: flat.get(name) or "" for name in ("host", "program", "call_site")}
        waiting = flat.get("waiting_in_program") or 0
        return CallSiteRow(site=typed("site", {**flat, **names}), waiting_in_program=waiting)
    if by == "node":
        return NodeRow(**{name: flat[name] for name in NodeRow.__struct_fields__ if name in flat})
    if by != "wait":
        return typed(by, flat)
    parts: dict[str, Any] = {
        "process": _fields(ProcessFields, flat), "pool": _fields(PoolFields, flat),
        "figures": _fields(FigureFields, flat), "stack": tuple(flat.get("stack") or ()), "pids": (),
        "holds": 0, "processes": 1, "blocker": flat.get("blocker") or "not known",
    }  # fmt: skip
    values: dict[str, Any] = {name: parts.get(name, flat.get(name)) for name in WaitRow.__struct_fields__}
    return WaitRow(**values)


def head(node: str = "n", **figures: Any) -> JsonHead:
    """Return the head of an answer without rows."""
    totals = JsonTotals(hosts=0, programs=0, figures=FigureFields(**figures), verdicts={})
    return JsonHead(service="s", node=node, leader=None, quorum=False, stale_seconds=0.0, totals=totals)


def refresh(shown: ConsoleState, rows: tuple[Row, ...], now: float, **answered: Any) -> Refresh:
    """Return what a node that has these rows sends for a state."""
    tables: dict[Want, Any] = {}
    sources: dict[Want, Source] = {want: Source(want) for want in shown.wants if want.by != "node"}
    first = Source(Want("host"))
    for source in (first, *sources.values()):
        source.apply(answer(source.question(), rows, **answered))
    for want in shown.wants:
        tables[want] = node_rows(NODES) if want.by == "node" else sources[want].rows()
    past = history(HistoryQuery(shown.remembers)) if rows else None
    remembered = (
        None
        if past is None
        else Remembered(
            150, 2.0, {series.key: Samples(series.rates, series.connections) for series in past.series}
        )
    )
    return Refresh(first.head(), tables, now, "14:03:22", remembered=remembered)


def refreshed(
    shown: ConsoleState, rows: tuple[Row, ...] = FLEET, now: float = 100.0, **answered: Any
) -> ConsoleState:
    """Return the state after a refresh from a node that has these rows."""
    return state.refreshed(shown, refresh(shown, rows, now, **answered))


def opened(*names: str, rows: tuple[Row, ...] = FLEET, **answered: Any) -> ConsoleState:
    """Return the state after these keys, with a refresh after each of them."""
    shown = refreshed(ConsoleState("connmon_service=default", now=100.0), rows, **answered)
    shown = refreshed(shown, rows, **answered)  # with the history of the rows that are there now
    for name in names:
        shown = actions.pressed(shown, name)
        shown = refreshed(refreshed(shown, rows, **answered), rows, **answered)
    return shown


def made(*names: str) -> ConsoleState:
    """Return the same for the made fleet."""
    return opened(*names, rows=made_fleet.FLEET, totals=made_fleet.TOTALS)


def typed_keys(shown: ConsoleState, *names: str) -> ConsoleState:
    """Return the state after these keys; a text of several characters that is no key's name is typed."""
    for name in names:
        for key in [name] if name in keys.ACTIONS else name:
            shown = actions.pressed(shown, key)
    return shown


def rows_of(shown: ConsoleState) -> list[Any]:
    """Return the rows of the table that has the focus."""
    return [row for _, row in shown.page.pane.rows or ()]


def programs(shown: ConsoleState) -> list[str]:
    """Return the programs of the first table, in order."""
    rows: list[KeyedRow] = list(shown.pages[0].panes[0].rows or ())
    return [row.program for _, row in rows if isinstance(row, JsonProgram)]


def under_cursor(shown: ConsoleState) -> Key:
    """Return the key of the row under the cursor."""
    selected = shown.page.pane.selected
    assert selected is not None
    return selected[0]

"""States of the console as keys and pictures make them, for its tests."""

from __future__ import annotations

from typing import Any

from connmon.console import actions, keys, state
from connmon.console.source import Source, Want
from connmon.console.state import Picture, Remembered, Samples, State
from connmon.protocol.queries import HistoryQuery
from connmon.protocol.rows import Row
from tests.support import made_fleet
from tests.support.console_fakes import FLEET, answer, history

#: What the nodes say of themselves.
NODES: list[dict[str, Any]] = [
    {"node": "node1", "address": "ctl1:5800", "role": "leader", "term": 7, "applied": 88213, "lag": 0,
     "stale_seconds": 0.1, "processes": 14, "consoles": 1, "uptime_seconds": 266_400.0, "version": "0.1.0",
     "problems": [], "problem": None},
    {"node": "node2", "address": "ctl2:5800", "role": "unreachable", "term": None, "applied": None,
     "lag": None, "stale_seconds": None, "processes": None, "consoles": None, "uptime_seconds": None,
     "version": None, "problems": ["unreachable: No route to host"],
     "problem": "unreachable: No route to host"},
]  # fmt: skip


def head_of(rows: tuple[Row, ...] = FLEET, **said: Any) -> dict[str, Any]:
    source = Source(Want("host"))
    source.apply(answer(source.question(), rows, **said))
    return source.head()


def pictured(shown: State, rows: tuple[Row, ...] = FLEET, now: float = 100.0, **said: Any) -> State:
    """The state after a refresh from a node that has these rows."""
    tables: dict[Want, Any] = {}
    for want in shown.wants:
        if want.by == "node":
            tables[want] = [(("node", node["node"], node["address"]), node) for node in NODES]
            continue
        source = Source(want)
        source.apply(answer(source.question(), rows, **said))
        tables[want] = source.rows()
    past = history(HistoryQuery(shown.remembers)) if rows else None
    remembered = (
        None
        if past is None
        else Remembered(150, 2.0, {each.key: Samples(each.rates, each.connections) for each in past.series})
    )
    picture = Picture(head_of(rows, **said), tables, now, "14:03:22", remembered=remembered)
    return state.pictured(shown, picture)


def opened(*names: str, rows: tuple[Row, ...] = FLEET, **said: Any) -> State:
    """The state after these keys, with a picture after each of them."""
    shown = pictured(State("connmon_service=default", now=100.0), rows, **said)
    shown = pictured(shown, rows, **said)  # the history of the rows that are there now
    for name in names:
        shown = actions.pressed(shown, name)
        shown = pictured(pictured(shown, rows, **said), rows, **said)
    return shown


def made(*names: str) -> State:
    """The same of the made fleet."""
    return opened(*names, rows=made_fleet.FLEET, totals=made_fleet.TOTALS)


def typed(shown: State, *names: str) -> State:
    """The state after these keys; a text of several characters that is no key's name is typed."""
    for name in names:
        for key in [name] if name in keys.ACTIONS else name:
            shown = actions.pressed(shown, key)
    return shown


def programs(shown: State) -> list[str]:
    return [row["program"] for _, row in shown.pages[0].panes[0].rows or ()]


def under_cursor(shown: State) -> Any:
    selected = shown.page.pane.selected
    assert selected is not None
    return selected[0]

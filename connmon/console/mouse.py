"""What a click or the wheel does, at a place of the screen. Pure."""

from __future__ import annotations

from dataclasses import replace

from connmon.console import actions, views
from connmon.console.state import State, with_page, with_pane

#: Rows that one notch of the wheel moves the cursor by.
WHEEL = 3


def clicked(state: State, x: int, y: int, width: int, height: int) -> State:
    """A click: a heading sorts (again: inverts), a row takes the cursor (again: is opened)."""
    if state.help:
        return replace(state, help=False, help_top=0)
    if state.typing is not None:
        return state
    state = replace(state, reading=None)
    plan = views.layout(state, width, height)
    line = plan.above
    for at, rows in enumerate(plan.panes):
        if not rows:
            continue
        if line <= y < line + plan.heading:
            key = _column(state, at, x, width, plan.heading)
            focused = with_page(state, replace(state.page, focus=at))
            return state if key is None else actions.sort_by(focused, key)
        line += plan.heading
        if line <= y < line + rows:
            focused = with_page(state, replace(state.page, focus=at))
            pane = focused.page.pane
            index = pane.top + y - line
            if index >= len(pane.rows or ()):
                return focused
            if state.page.focus == at and index == pane.index and pane.cursor is not None:
                return actions.open_row(focused)
            return with_pane(focused, pane.moved_to(index))
        line += rows
    return actions.read(state) if line <= y < line + plan.why else state


def turned(state: State, down: bool) -> State:
    """The wheel."""
    if state.help:
        return replace(state, help_top=max(0, state.help_top + (WHEEL if down else -WHEEL)))
    if state.scrolled is not None:
        return actions.scroll(state, WHEEL if down else -WHEEL)
    pane = state.page.pane
    return with_pane(state, pane.moved_to(pane.index + (WHEEL if down else -WHEEL)))


def _column(state: State, at: int, x: int, width: int, heading: int) -> str | None:
    """Return the key of the column at that place of a heading."""
    fitted, gap = views.placed(state.page.panes[at], width, heading)
    begin = 1
    for place in fitted:
        if begin <= x < begin + place.width + gap:
            return place.column.key
        begin += place.width + gap
    return None

"""What keys and the mouse do to the state. Pure; `keys` has the action of each key.

A key without a meaning does nothing; one that cannot do now what it means says why in a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

from connmon.console import columns, details, keys, layout, navigation, prompt, text
from connmon.console.modes import Event, Mode
from connmon.console.navigation import View
from connmon.console.panes import Pane
from connmon.console.settings import INTERVALS_SECONDS, REPLAY_SPEEDS
from connmon.console.state import ConsoleState, Reading, Reel, changed_mode, noted, with_page, with_pane

Action: TypeAlias = Callable[[ConsoleState], ConsoleState]


def pressed(state: ConsoleState, key: str) -> ConsoleState:
    """Return the state after a key, which is named as in `keys`."""
    return _PRESSED[state.mode](state, key)


def _in_table(state: ConsoleState, key: str) -> ConsoleState:
    action = keys.ACTIONS.get(key)
    if action is None:
        return state
    if state.scrolled is not None and action in _SCROLL:
        return _SCROLL[action](state)
    return ACTIONS[action](state)


_HELP_STEPS: Final[Mapping[keys.Action, int]] = {"up": -1, "down": 1, "page_up": -10, "page_down": 10}


def _in_help(state: ConsoleState, key: str) -> ConsoleState:
    action = keys.ACTIONS.get(key)
    if action == "quit":
        return changed_mode(state, Event.QUIT)
    step = _HELP_STEPS.get(action) if action else None
    return _close_help(state) if step is None else _scroll_help(state, step)


def _close_help(state: ConsoleState) -> ConsoleState:
    return replace(changed_mode(state, Event.CANCEL), help_top=0)


def _scroll_help(state: ConsoleState, step: int) -> ConsoleState:
    return replace(state, help_top=max(0, state.help_top + step))


#: Who takes a key, by the mode.
_PRESSED: Final[Mapping[Mode, Callable[[ConsoleState, str], ConsoleState]]] = {
    Mode.TABLE: _in_table,
    Mode.HELP: _in_help,
    Mode.FIND: prompt.pressed,
    Mode.FILTER: prompt.pressed,
    Mode.FILTER_OUT: prompt.pressed,
    Mode.SAVE: prompt.pressed,
    Mode.ENDED: lambda state, key: state,
}


# --- Moving ---------------------------------------------------------------------------------------


def move(state: ConsoleState, step: int) -> ConsoleState:
    """Move the cursor by so many rows."""
    pane = state.page.pane
    target = pane.index + step
    page = state.page
    # Past its end, the cursor goes on into the neighbouring table: no key has to be known for that.
    if abs(step) == 1 and not 0 <= target < len(pane.rows or ()) and 0 <= page.focus + step < len(page.panes):
        entered = replace(page, focus=page.focus + step)
        rows = entered.pane.rows
        if rows:
            return with_page(
                state, entered.with_pane(entered.pane.moved_to(0 if step > 0 else len(rows) - 1))
            )
    return with_pane(state, pane.moved_to(target))


def read(state: ConsoleState) -> ConsoleState:
    """Scroll the lines about the row under the cursor, if there are more of them than room."""
    pane, spread = state.page.pane, state.spread
    if pane.selected is None or spread is None or not spread.lowest:
        return state
    # From now on the cursor is on this row, wherever the row moves.
    key = pane.selected[0]
    return replace(with_pane(state, replace(pane, cursor=key)), reading=Reading(key, spread.top))


def scroll(state: ConsoleState, step: int) -> ConsoleState:
    """Scroll by so many lines, to the first or the last at most."""
    reading, spread = state.reading, state.spread
    if reading is None or spread is None:
        return state
    return replace(state, reading=reading._replace(top=max(0, min(reading.top + step, spread.lowest))))


def _first(state: ConsoleState) -> ConsoleState:
    return with_pane(state, replace(state.page.pane, cursor=None, index=0, top=0))


def _last(state: ConsoleState) -> ConsoleState:
    pane = state.page.pane
    return with_pane(state, pane.moved_to(len(pane.rows or ()) - 1))


def _other_pane(state: ConsoleState) -> ConsoleState:
    """Go to the next table, after the last to the lines about its row, and from there to the first."""
    page = state.page
    if state.scrolled is None and page.focus == len(page.panes) - 1:
        reading = read(state)
        if reading.scrolled is not None:
            return reading
    state = replace(state, reading=None)
    return with_page(state, replace(page, focus=(page.focus + 1) % len(page.panes)))


def open_row(state: ConsoleState) -> ConsoleState:
    """Go into the row under the cursor; where nothing is below it, show all of it."""
    pane = state.page.pane
    if pane.selected is None:
        return state
    opened = navigation.below(pane)
    if opened is None:
        if state.scrolled is None:
            reading = read(state)
            if reading.scrolled is not None:
                return reading
        return replace(state, expanded=not state.expanded, reading=None)
    # From now on the cursor of the page below is on the row that was opened, so that Esc returns to it.
    under = with_pane(state, replace(pane, cursor=pane.selected[0]))
    return replace(under, pages=(*under.pages, opened), find="", local=None)


def _back(state: ConsoleState) -> ConsoleState:
    if state.scrolled is not None:
        return replace(state, reading=None)
    pane = state.page.pane
    if state.find or pane.filter:
        return replace(with_pane(state, pane.changed(filter="") if pane.filter else pane), find="")
    return replace(state, pages=state.pages[:-1], local=None) if len(state.pages) > 1 else state


def _view(view: View) -> Action:
    def show(state: ConsoleState) -> ConsoleState:
        if view == state.view:
            return replace(state, pages=state.pages[:1], find="", local=None)
        roots = {**state.roots, state.view: state.pages[0]}
        first = roots.get(view) or navigation.root(view)
        return replace(state, view=view, pages=(first,), roots=roots, find="", local=None)

    return show


# --- Order, filter, grouping ------------------------------------------------------------------------


def _sort(state: ConsoleState, step: int) -> ConsoleState:
    pane = state.page.pane
    order = [column.key for column in columns.columns(pane.want.by)]
    sort = order[(order.index(pane.sort) + step) % len(order)]
    return with_pane(state, pane.changed(sort=sort, inverted=False))


def sort_by(state: ConsoleState, key: str) -> ConsoleState:
    """Sort by that column; the second time, invert the order."""
    pane = state.page.pane
    return with_pane(state, pane.changed(sort=key, inverted=pane.sort == key and not pane.inverted))


def _invert(state: ConsoleState) -> ConsoleState:
    pane = state.page.pane
    return with_pane(state, pane.changed(inverted=not pane.inverted))


def _freeze_order(state: ConsoleState) -> ConsoleState:
    pane = state.page.pane
    return with_pane(state, pane.frozen(pane.order is None))


def _group(state: ConsoleState) -> ConsoleState:
    pane = state.page.pane
    if not pane.groupable:
        return noted(state, "only programs (view 1) and pools (view 5) can be grouped")
    return with_pane(state, replace(pane.changed(grouped=not pane.grouped), cursor=None, index=0, top=0))


def _find(state: ConsoleState, step: int) -> ConsoleState:
    if not state.find:
        return noted(state, "nothing to find: / asks for a text")
    pane = state.page.pane
    at_match = pane.found(state.find, pane.index + step, step)
    if at_match is None:
        return noted(state, f"no row with {text.sanitize(state.find)!r}")
    return with_pane(state, at_match)


# --- Time ---------------------------------------------------------------------------------------------


def _freeze(state: ConsoleState) -> ConsoleState:
    reel = state.reel
    if reel is None:
        return replace(state, paused_at="" if state.paused_at else state.received_at or "now")
    if reel.at_end:
        return replace(state, reel=replace(reel, position=0, playing=True))
    return replace(state, reel=replace(reel, playing=not reel.playing))


def _change_interval(state: ConsoleState, step: int) -> ConsoleState:
    if state.reel is not None:
        return noted(state, "a replay has a speed, not an interval: ( and ) change it")
    choices = INTERVALS_SECONDS
    at = min(range(len(choices)), key=lambda index: abs(choices[index] - state.interval))
    interval = choices[max(0, min(at + step, len(choices) - 1))]
    return noted(replace(state, interval=interval), f"a snapshot every {interval:g} s")


def _reel(step: Callable[[Reel], Reel]) -> Action:
    def turn(state: ConsoleState) -> ConsoleState:
        if state.reel is None:
            return noted(state, "this is live: `connmon replay FILE` can step, jump and go faster")
        return replace(state, reel=step(state.reel))

    return turn


def _speed(step: int) -> Action:
    def change(reel: Reel) -> Reel:
        at = REPLAY_SPEEDS.index(reel.speed) + step
        return replace(reel, speed=REPLAY_SPEEDS[max(0, min(at, len(REPLAY_SPEEDS) - 1))])

    return _reel(change)


# --- Actions ------------------------------------------------------------------------------------------


def _screenful(state: ConsoleState) -> int:
    return max(1, (0 if state.spread is None else state.spread.room) - 1)


#: What keys that move do while the lines about a row are scrolled.
_SCROLL: Final[Mapping[keys.Action, Action]] = {
    "up": lambda state: scroll(state, -1),
    "down": lambda state: scroll(state, 1),
    "page_up": lambda state: scroll(state, -_screenful(state)),
    "page_down": lambda state: scroll(state, _screenful(state)),
    "first": lambda state: scroll(state, -details.MOST_LINES),
    "last": lambda state: scroll(state, details.MOST_LINES),
}


def _paged(pane: Pane) -> int:
    return max(2, pane.visible - 1)


ACTIONS: Final[Mapping[keys.Action, Action]] = {
    "up": lambda state: move(state, -1),
    "down": lambda state: move(state, 1),
    "page_up": lambda state: move(state, -_paged(state.page.pane)),
    "page_down": lambda state: move(state, _paged(state.page.pane)),
    "first": _first,
    "last": _last,
    "open": open_row,
    "back": _back,
    "other_pane": _other_pane,
    "programs": _view("programs"),
    "hosts": _view("hosts"),
    "databases": _view("databases"),
    "processes": _view("processes"),
    "pools": _view("pools"),
    "connections": _view("connections"),
    "waits": _view("waits"),
    "cluster": _view("cluster"),
    "code": _view("code"),
    "sort_next": lambda state: _sort(state, 1),
    "sort_previous": lambda state: _sort(state, -1),
    "invert": _invert,
    "find": lambda state: prompt.ask(state, Event.ASK_FIND),
    "find_next": lambda state: _find(state, 1),
    "find_previous": lambda state: _find(state, -1),
    "filter": lambda state: prompt.ask(state, Event.ASK_FILTER),
    "filter_out": lambda state: prompt.ask(state, Event.ASK_FILTER_OUT),
    "freeze": _freeze,
    "freeze_order": _freeze_order,
    "slower": lambda state: _change_interval(state, 1),
    "faster": lambda state: _change_interval(state, -1),
    "group": _group,
    "expand": lambda state: replace(state, expanded=not state.expanded),
    "save": lambda state: prompt.ask(state, Event.ASK_SAVE),
    "help": lambda state: replace(changed_mode(state, Event.ASK_HELP), help_top=0),
    "quit": lambda state: changed_mode(state, Event.QUIT),
    "step": _reel(lambda reel: reel.moved(1)),
    "step_back": _reel(lambda reel: reel.moved(-1)),
    "jump": _reel(lambda reel: reel.moved(reel.minute)),
    "jump_back": _reel(lambda reel: reel.moved(-reel.minute)),
    "speed_up": _speed(1),
    "speed_down": _speed(-1),
}


# --- The mouse ----------------------------------------------------------------------------------------


def clicked(state: ConsoleState, x: int, y: int, width: int, height: int) -> ConsoleState:
    """Return the state after a click: on a heading (sort, invert), a row (select, open), the lines below."""
    if state.mode is Mode.HELP:
        return _close_help(state)
    if state.mode.is_prompt:
        return state
    state = replace(state, reading=None)
    plan = layout.layout(state, width, height)
    line = plan.above
    for at, rows in enumerate(plan.panes):
        if not rows:
            continue
        focused = with_page(state, replace(state.page, focus=at))
        if line <= y < line + plan.heading:
            key = _column_at(state.page.panes[at], x, width, plan.heading)
            return state if key is None else sort_by(focused, key)
        line += plan.heading
        if line <= y < line + rows:
            return _clicked_row(focused, state.page.focus == at, y - line)
        line += rows
    return read(state) if line <= y < line + plan.about else state


def _clicked_row(state: ConsoleState, had_focus: bool, line: int) -> ConsoleState:
    pane = state.page.pane
    index = pane.top + line
    if index >= len(pane.rows or ()):
        return state
    if had_focus and index == pane.index and pane.cursor is not None:
        return open_row(state)
    return with_pane(state, pane.moved_to(index))


def _column_at(pane: Pane, x: int, width: int, heading: int) -> str | None:
    """Return the key of the column at that place of a heading."""
    fitted, gap = layout.fitted_columns(pane, width, heading)
    begin = 1
    for place in fitted:
        if begin <= x < begin + place.width + gap:
            return place.column.key
        begin += place.width + gap
    return None


def turned(state: ConsoleState, down: bool) -> ConsoleState:
    """Return the state after a notch of the mouse wheel."""
    step = state.settings.wheel_rows if down else -state.settings.wheel_rows
    if state.mode is Mode.HELP:
        return _scroll_help(state, step)
    if state.scrolled is not None:
        return scroll(state, step)
    pane = state.page.pane
    return with_pane(state, pane.moved_to(pane.index + step))

"""What a key does to the state. Pure; `keys` has which key means which of these.

A key that means nothing does nothing; one that cannot do now what it means says why in a note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

from connmon.console import columns, details, keys, navigation, text
from connmon.console.navigation import View
from connmon.console.panes import Pane
from connmon.console.state import (
    INTERVALS,
    SPEEDS,
    Prompt,
    Reading,
    State,
    Typing,
    noted,
    with_page,
    with_pane,
)

#: Characters that can be typed.
LONGEST: Final = 200


def pressed(state: State, key: str) -> State:
    """A key was pressed, named as in `keys`."""
    if state.typing is not None:
        return _typed(state, state.typing, key)
    action = keys.ACTIONS.get(key)
    if state.help and action != "quit":
        step = _HELP_STEPS.get(action) if action else None
        if step is None:
            return replace(state, help=False, help_top=0)
        return replace(state, help_top=max(0, state.help_top + step))
    if action and state.scrolled is not None and action in _SCROLLS:
        return _SCROLLS[action](state)
    return HANDLERS[action](state) if action else state


_HELP_STEPS: Final[dict[keys.Action, int]] = {"up": -1, "down": 1, "page_up": -10, "page_down": 10}


# --- Moving ---------------------------------------------------------------------------------------


def move(state: State, step: int) -> State:
    pane = state.page.pane
    target = pane.index + step
    page = state.page
    # Past its end, the cursor goes on into the neighbouring pane: no key has to be known for that.
    if abs(step) == 1 and not 0 <= target < len(pane.rows or ()) and 0 <= page.focus + step < len(page.panes):
        entered = replace(page, focus=page.focus + step)
        rows = entered.pane.rows
        if rows:
            return with_page(
                state, entered.with_pane(entered.pane.moved_to(0 if step > 0 else len(rows) - 1))
            )
    return with_pane(state, pane.moved_to(target))


def read(state: State) -> State:
    """Scroll what is said of the row under the cursor, where it has more lines than room."""
    pane, spread = state.page.pane, state.spread
    if pane.selected is None or spread is None or not spread.lowest:
        return state
    # From now on the cursor is on this row, wherever it moves.
    key = pane.selected[0]
    return replace(with_pane(state, replace(pane, cursor=key)), reading=Reading(key, spread.top))


def scroll(state: State, step: int) -> State:
    """Scroll by so many lines, to the first or the last at most."""
    reading, spread = state.reading, state.spread
    if reading is None or spread is None:
        return state
    return replace(state, reading=reading._replace(top=max(0, min(reading.top + step, spread.lowest))))


def _first(state: State) -> State:
    return with_pane(state, replace(state.page.pane, cursor=None, index=0, top=0))


def _last(state: State) -> State:
    pane = state.page.pane
    return with_pane(state, pane.moved_to(len(pane.rows or ()) - 1))


def _other_pane(state: State) -> State:
    """Go to the next table, after the last to the lines about its row, and from there to the first."""
    page = state.page
    if state.scrolled is None and page.focus == len(page.panes) - 1:
        reading = read(state)
        if reading.scrolled is not None:
            return reading
    state = replace(state, reading=None)
    return with_page(state, replace(page, focus=(page.focus + 1) % len(page.panes)))


def open_row(state: State) -> State:
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
    # From now on the cursor below is on the row that was opened, so that Esc returns to it.
    under = with_pane(state, replace(pane, cursor=pane.selected[0]))
    return replace(under, pages=(*under.pages, opened), find="", local=None)


def _back(state: State) -> State:
    if state.scrolled is not None:
        return replace(state, reading=None)
    pane = state.page.pane
    if state.find or pane.filter:
        return replace(with_pane(state, pane.changed(filter="") if pane.filter else pane), find="")
    return replace(state, pages=state.pages[:-1], local=None) if len(state.pages) > 1 else state


def _view(view: View) -> Handler:
    def show(state: State) -> State:
        if view == state.view:
            return replace(state, pages=state.pages[:1], find="", local=None)
        roots = {**state.roots, state.view: state.pages[0]}
        first = roots.get(view) or navigation.root(view)
        return replace(state, view=view, pages=(first,), roots=roots, find="", local=None)

    return show


# --- Order, filter, grouping ------------------------------------------------------------------------


def _sort(state: State, step: int) -> State:
    pane = state.page.pane
    order = [column.key for column in columns.COLUMNS[pane.want.by]]
    return with_pane(
        state, pane.changed(sort=order[(order.index(pane.sort) + step) % len(order)], inverted=False)
    )


def sort_by(state: State, key: str) -> State:
    """Sort by that column; again: the other way round."""
    pane = state.page.pane
    return with_pane(state, pane.changed(sort=key, inverted=pane.sort == key and not pane.inverted))


def _invert(state: State) -> State:
    pane = state.page.pane
    return with_pane(state, pane.changed(inverted=not pane.inverted))


def _freeze_order(state: State) -> State:
    pane = state.page.pane
    return with_pane(state, pane.frozen(pane.order is None))


def _group(state: State) -> State:
    pane = state.page.pane
    if not pane.groupable:
        return noted(state, "only programs (view 1) and pools (view 5) can be grouped")
    return with_pane(state, replace(pane.changed(grouped=not pane.grouped), cursor=None, index=0, top=0))


def _find(state: State, step: int) -> State:
    if not state.find:
        return noted(state, "nothing to find: / asks for a text")
    pane = state.page.pane
    found = pane.found(state.find, pane.index + step, step)
    return (
        noted(state, f"no row with {text.clean(state.find)!r}") if found is None else with_pane(state, found)
    )


# --- Typing -------------------------------------------------------------------------------------------


def _ask(prompt: Prompt) -> Handler:
    def ask(state: State) -> State:
        pane = state.page.pane
        begin = ""
        if prompt == "save":
            moment = "".join(character for character in state.received_at[-8:] if character.isdigit())
            begin = f"connmon-{state.view}-{moment or 'empty'}.txt"
        elif prompt != "find" and (prompt == "filter_out") is pane.inverse:
            begin = pane.filter
        return replace(state, typing=Typing(prompt, begin, pane.index))

    return ask


def _typed(state: State, typing: Typing, key: str) -> State:
    if key == "esc":
        shown = replace(state, typing=None)
        return with_pane(shown, shown.page.pane.moved_to(typing.began)) if typing.prompt == "find" else shown
    if key == "enter":
        return _entered(replace(state, typing=None), typing)
    if key == "backspace":
        typing = replace(typing, text=typing.text[:-1])
    elif len(key) == 1 and len(typing.text) < LONGEST:
        typing = replace(typing, text=typing.text + key)
    else:
        return state
    shown = replace(state, typing=typing)
    if typing.prompt == "find" and typing.text:
        found = shown.page.pane.found(typing.text, typing.began, 1)
        return shown if found is None else with_pane(shown, found)
    return shown


def _entered(state: State, typing: Typing) -> State:
    pane = state.page.pane
    if typing.prompt == "save":
        return replace(state, save=typing.text)
    if typing.prompt == "find":
        shown = replace(state, find=typing.text)
        if typing.text and pane.found(typing.text, typing.began, 1) is None:
            return noted(shown, f"no row with {text.clean(typing.text)!r}")
        return shown
    return with_pane(state, pane.changed(filter=typing.text, inverse=typing.prompt == "filter_out"))


# --- Time ---------------------------------------------------------------------------------------------


def _freeze(state: State) -> State:
    if state.reel is not None:
        if state.reel.at_end:
            return replace(state, reel=replace(state.reel, position=0, playing=True))
        return replace(state, reel=replace(state.reel, playing=not state.reel.playing))
    return replace(state, paused_at="" if state.paused_at else state.received_at or "now")


def _pace(state: State, step: int) -> State:
    if state.reel is not None:
        return noted(state, "a replay has a speed, not an interval: ( and ) change it")
    at = min(range(len(INTERVALS)), key=lambda index: abs(INTERVALS[index] - state.interval))
    interval = INTERVALS[max(0, min(at + step, len(INTERVALS) - 1))]
    return noted(replace(state, interval=interval), f"a picture every {interval:g} s")


def _reel(step: Callable[[Any], Any]) -> Handler:
    def turn(state: State) -> State:
        if state.reel is None:
            return noted(state, "this is live: `connmon replay FILE` can step, jump and go faster")
        return replace(state, reel=step(state.reel))

    return turn


def _speed(step: int) -> Handler:
    def change(reel: Any) -> Any:
        at = SPEEDS.index(reel.speed) + step
        return replace(reel, speed=SPEEDS[max(0, min(at, len(SPEEDS) - 1))])

    return _reel(change)


Handler: TypeAlias = Callable[[State], State]


def _screenful(state: State) -> int:
    return max(1, (0 if state.spread is None else state.spread.room) - 1)


#: What keys that move do while the lines about a row are scrolled.
_SCROLLS: Final[dict[keys.Action, Handler]] = {
    "up": lambda state: scroll(state, -1),
    "down": lambda state: scroll(state, 1),
    "page_up": lambda state: scroll(state, -_screenful(state)),
    "page_down": lambda state: scroll(state, _screenful(state)),
    "first": lambda state: scroll(state, -details.MOST),
    "last": lambda state: scroll(state, details.MOST),
}


def _paged(pane: Pane) -> int:
    return max(2, pane.visible - 1)


HANDLERS: Final[dict[keys.Action, Handler]] = {
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
    "find": _ask("find"),
    "find_next": lambda state: _find(state, 1),
    "find_previous": lambda state: _find(state, -1),
    "filter": _ask("filter"),
    "filter_out": _ask("filter_out"),
    "freeze": _freeze,
    "freeze_order": _freeze_order,
    "slower": lambda state: _pace(state, 1),
    "faster": lambda state: _pace(state, -1),
    "group": _group,
    "expand": lambda state: replace(state, expanded=not state.expanded),
    "save": _ask("save"),
    "help": lambda state: replace(state, help=True, help_top=0),
    "quit": lambda state: replace(state, ended=True),
    "step": _reel(lambda reel: reel.moved(1)),
    "step_back": _reel(lambda reel: reel.moved(-1)),
    "jump": _reel(lambda reel: reel.moved(reel.minute)),
    "jump_back": _reel(lambda reel: reel.moved(-reel.minute)),
    "speed_up": _speed(1),
    "speed_down": _speed(-1),
}

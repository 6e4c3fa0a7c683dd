"""The prompts: a text is typed, to find, filter or save. Pure.

While a prompt is open every key is text, but for Enter, Esc and Backspace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from connmon.console import text
from connmon.console.modes import Event, Mode
from connmon.console.state import ConsoleState, Input, changed_mode, noted, with_pane


def ask(state: ConsoleState, event: Event) -> ConsoleState:
    """Open the prompt of an event, with the text that it begins with."""
    state = changed_mode(state, event)
    return replace(state, input=Input(_first_text(state), state.page.pane.index))


def _first_text(state: ConsoleState) -> str:
    pane = state.page.pane
    if state.mode is Mode.SAVE:
        moment = "".join(character for character in state.received_at[-8:] if character.isdigit())
        return f"connmon-{state.view}-{moment or 'empty'}.txt"
    if state.mode is not Mode.FIND and (state.mode is Mode.FILTER_OUT) is pane.inverse:
        return pane.filter
    return ""


def pressed(state: ConsoleState, key: str) -> ConsoleState:
    """Return the state after a key at a prompt."""
    typed = state.input.text
    if key == "esc":
        closed = changed_mode(state, Event.CANCEL)
        pane = closed.page.pane
        return with_pane(closed, pane.moved_to(state.input.began)) if state.mode is Mode.FIND else closed
    if key == "enter":
        return _ENTERED[state.mode](changed_mode(state, Event.ENTER), state.input)
    if key == "backspace":
        typed = typed[:-1]
    elif len(key) == 1 and len(typed) < state.settings.input_characters:
        typed += key
    else:
        return state
    state = replace(state, input=state.input._replace(text=typed))
    if state.mode is Mode.FIND and typed:
        at_match = state.page.pane.found(typed, state.input.began, 1)
        return state if at_match is None else with_pane(state, at_match)
    return state


def _find(state: ConsoleState, entered: Input) -> ConsoleState:
    state = replace(state, find=entered.text)
    if entered.text and state.page.pane.found(entered.text, entered.began, 1) is None:
        return noted(state, f"no row with {text.sanitize(entered.text)!r}")
    return state


def _filter(inverse: bool) -> Callable[[ConsoleState, Input], ConsoleState]:
    def entered(state: ConsoleState, entered: Input) -> ConsoleState:
        return with_pane(state, state.page.pane.changed(filter=entered.text, inverse=inverse))

    return entered


#: What Enter does at each prompt.
_ENTERED: Final[Mapping[Mode, Callable[[ConsoleState, Input], ConsoleState]]] = {
    Mode.FIND: _find,
    Mode.FILTER: _filter(False),
    Mode.FILTER_OUT: _filter(True),
    Mode.SAVE: lambda state, entered: replace(state, save=entered.text),
}

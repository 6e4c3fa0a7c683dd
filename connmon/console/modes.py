"""The modes of the console: what the next key means, and which mode follows which. Pure.

`TRANSITIONS` has every possible change; `next_mode` refuses any other. The loop logs each change.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Mode(Enum):
    """What the next key means."""

    TABLE = "table"
    """The action that `keys` has for it."""
    HELP = "help"
    """Scroll the help screen, or leave it."""
    FIND = "find"
    """A character of the text to find; likewise in the modes that follow."""
    FILTER = "filter"
    FILTER_OUT = "filter out"
    SAVE = "save"
    ENDED = "ended"
    """Nothing: the console ends."""

    @property
    def is_prompt(self) -> bool:
        return self in PROMPTS


class Event(Enum):
    """What changes the mode."""

    ASK_HELP = "help"
    ASK_FIND = "find"
    ASK_FILTER = "filter"
    ASK_FILTER_OUT = "filter out"
    ASK_SAVE = "save"
    ENTER = "enter"
    CANCEL = "cancel"
    QUIT = "quit"


#: What stands in front of the text that is typed.
PROMPTS: Final[Mapping[Mode, str]] = {
    Mode.FIND: "find",
    Mode.FILTER: "show only rows with",
    Mode.FILTER_OUT: "hide rows with",
    Mode.SAVE: "save as",
}

_FROM_PROMPT: Final[Mapping[Event, Mode]] = {Event.ENTER: Mode.TABLE, Event.CANCEL: Mode.TABLE}
TRANSITIONS: Final[Mapping[Mode, Mapping[Event, Mode]]] = {
    Mode.TABLE: {
        Event.ASK_HELP: Mode.HELP,
        Event.ASK_FIND: Mode.FIND,
        Event.ASK_FILTER: Mode.FILTER,
        Event.ASK_FILTER_OUT: Mode.FILTER_OUT,
        Event.ASK_SAVE: Mode.SAVE,
        Event.QUIT: Mode.ENDED,
    },
    Mode.HELP: {Event.CANCEL: Mode.TABLE, Event.QUIT: Mode.ENDED},
    Mode.FIND: _FROM_PROMPT,
    Mode.FILTER: _FROM_PROMPT,
    Mode.FILTER_OUT: _FROM_PROMPT,
    Mode.SAVE: _FROM_PROMPT,
    Mode.ENDED: {},
}


def next_mode(mode: Mode, event: Event) -> Mode:
    """Return the mode after an event. Raises KeyError where the event is impossible in this mode."""
    return TRANSITIONS[mode][event]

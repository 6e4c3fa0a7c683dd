"""One table of keys. Dispatch, help screen and footer all read it, so that they cannot disagree. Pure.

Keys are named as `screen` names them: a printable character is itself, others are "up", "down",
"pgup", "pgdn", "home", "end", "enter", "esc", "tab", "backspace", "f1" to "f12".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Action: TypeAlias = Literal[
    "up", "down", "page_up", "page_down", "first", "last", "open", "back", "other_pane",
    "sort_next", "sort_previous", "invert", "help", "quit",
]  # fmt: skip


@dataclass(frozen=True)
class Binding:
    """What some keys do."""

    action: Action
    keys: tuple[str, ...]
    shown: str
    """How the help screen and the footer write the keys."""
    does: str
    """For the help screen."""
    short: str = ""
    """For the footer; "": not shown there."""


BINDINGS: Final[tuple[Binding, ...]] = (
    Binding("quit", ("q", "Q", "f10"), "q", "quit (Ctrl-C as well)", "quit"),
    Binding("help", ("?", "h", "f1"), "?", "this help; any other key returns (h, F1)", "help"),
    Binding("open", ("enter",), "Enter", "open the row: a program's processes, a process's pools", "open"),
    Binding("back", ("esc", "backspace"), "Esc", "back to where this was opened from", "back"),
    Binding("other_pane", ("tab",), "Tab", "between pools and connections", "pools/connections"),
    Binding("sort_previous", ("<", ","), "<", "sort by the column to the left", "sort"),
    Binding("sort_next", (">", ".", "f6"), ">", "sort by the column to the right (F6)", "sort"),
    Binding("invert", ("I",), "I", "invert the order", "invert"),
    Binding("up", ("up", "k"), "Up k", "the row above"),
    Binding("down", ("down", "j"), "Down j", "the row below"),
    Binding("page_up", ("pgup",), "PgUp", "a screen up"),
    Binding("page_down", ("pgdn", " "), "PgDn", "a screen down (Space)"),
    Binding("first", ("home", "g"), "Home", "the top row, whichever it is (g)"),
    Binding("last", ("end", "G"), "End", "the last row (G)"),
)

ACTIONS: Final[dict[str, Action]] = {key: binding.action for binding in BINDINGS for key in binding.keys}


def footer(without: frozenset[Action] = frozenset()) -> list[tuple[str, str]]:
    """Return (keys, what they do) for the footer, most needed first; neighbours of one meaning together."""
    entries: list[tuple[str, str]] = []
    for binding in BINDINGS:
        if not binding.short or binding.action in without:
            continue
        if entries and entries[-1][1] == binding.short:
            entries[-1] = (f"{entries[-1][0]} {binding.shown}", binding.short)
        else:
            entries.append((binding.shown, binding.short))
    return entries

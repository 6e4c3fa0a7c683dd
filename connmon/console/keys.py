"""One table of keys, for dispatch, help screen and footer, so that they cannot disagree. Pure.

Keys are named as `screen` names them: a printable character is itself, others are "up", "down",
"left", "right", "pgup", "pgdn", "home", "end", "enter", "esc", "tab", "backspace", "f1" to "f12".
While a prompt is open (find, filter, save) keys are text: see `prompt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Action: TypeAlias = Literal[
    "up", "down", "page_up", "page_down", "first", "last", "open", "back", "other_pane",
    "programs", "hosts", "databases", "processes", "pools", "connections", "waits", "cluster", "code",
    "sort_next", "sort_previous", "invert", "find", "find_next", "find_previous", "filter", "filter_out",
    "freeze", "freeze_order", "slower", "faster", "group", "expand", "save", "help", "quit",
    "step", "step_back", "jump", "jump_back", "speed_up", "speed_down",
]  # fmt: skip


@dataclass(frozen=True)
class Binding:
    """The action of some keys."""

    action: Action
    keys: tuple[str, ...]
    label: str
    """How the help screen and the footer write the keys."""
    does: str
    """For the help screen."""
    short: str = ""
    """For the footer; "": not shown there."""
    replay: bool = False
    """The keys have a meaning only in a replay."""


BINDINGS: Final[tuple[Binding, ...]] = (
    Binding("quit", ("q", "Q", "f10"), "q", "quit (F10, Ctrl-C)", "quit"),
    Binding("help", ("?", "f1"), "?", "this help (F1)", "help"),
    Binding("open", ("enter",), "Enter", "open the row: what it consists of; at the end, details", "open"),
    Binding("back", ("esc", "backspace"), "Esc", "end find or filter; else go back a page", "back"),
    Binding("other_pane", ("tab",), "Tab", "to the next table, then to the lines below, which then scroll",
            "other table"),
    Binding("step_back", ("left",), "Left", "replay: one snapshot back, and stop", "step", True),
    Binding("step", ("right",), "Right", "replay: one snapshot forward, and stop", "step", True),
    Binding("jump_back", ("[",), "[", "replay: a minute back", "jump", True),
    Binding("jump", ("]",), "]", "replay: a minute forward", "jump", True),
    Binding("speed_down", ("(",), "(", "replay: half as fast", "speed", True),
    Binding("speed_up", (")",), ")", "replay: twice as fast", "speed", True),
    Binding("programs", ("1", "p"), "1 p", "view: programs", "views"),
    Binding("hosts", ("2", "h"), "2 h", "view: hosts"),
    Binding("databases", ("3", "d"), "3 d", "view: databases, and the programs that use them"),
    Binding("processes", ("4",), "4", "view: processes"),
    Binding("pools", ("5",), "5", "view: pools"),
    Binding("connections", ("6",), "6", "view: connections"),
    Binding("waits", ("7", "w"), "7 w", "view: waits: who blocks whom; Enter: what is held", "waits"),
    Binding("cluster", ("8", "c"), "8 c", "view: cluster: the nodes"),
    Binding("code", ("9", "l"), "9 l", "view: code: which line holds connections, who blocks first", "code"),
    Binding("find", ("/",), "/", "find a row: type, Enter", "find"),
    Binding("find_next", ("n",), "n", "find the next"),
    Binding("find_previous", ("N",), "N", "find the one before"),
    Binding("filter", ("\\", "f4"), "\\", "filter: show only rows with a text (F4)", "filter"),
    Binding("filter_out", ("!",), "!", "inverse filter: hide rows with a text"),
    Binding("sort_previous", ("<", ","), "<", "sort by the column to the left", "sort"),
    Binding("sort_next", (">", ".", "f6"), ">", "sort by the column to the right (F6); or click its heading",
            "sort"),
    Binding("invert", ("I",), "I", "invert the order; or click the heading again", "invert"),
    Binding("freeze", ("Z",), "Z", "freeze the screen: PAUSED (in a replay: stop and go on)", "freeze"),
    Binding("freeze_order", ("z",), "z", "freeze only the order of the rows"),
    Binding("faster", ("-",), "-", "shorter interval between snapshots"),
    Binding("slower", ("+", "="), "+", "longer interval between snapshots"),
    Binding("group", ("m",), "m", "group: programs and lines over all hosts, pools over processes", "group"),
    Binding("expand", ("e",), "e", "expand: all that is known of the row, and what to do", "expand"),
    Binding("save", ("s",), "s", "save the whole table as plain text in a file", "save"),
    Binding("up", ("up", "k"), "Up k", "the row above"),
    Binding("down", ("down", "j"), "Down j", "the row below"),
    Binding("page_up", ("pgup",), "PgUp", "a screen up"),
    Binding("page_down", ("pgdn", " "), "PgDn", "a screen down (Space)"),
    Binding("first", ("home", "g"), "Home", "the top row, and stay on top (g)"),
    Binding("last", ("end", "G"), "End", "the last row (G)"),
)  # fmt: skip

ACTIONS: Final[dict[str, Action]] = {key: binding.action for binding in BINDINGS for key in binding.keys}

#: What the mouse does: see `actions`.
MOUSE: Final = (
    ("click", "a row: select it, again: open it; a heading: sort by it, again: invert"),
    ("wheel", "three rows up or down; with Shift the terminal's own selection works"),
)


def footer(without: frozenset[Action] = frozenset()) -> list[tuple[str, str]]:
    """Return (keys, what they do) for the footer, the most needed first; keys of one meaning are joined."""
    entries: list[tuple[str, str]] = []
    for binding in BINDINGS:
        if not binding.short or binding.action in without:
            continue
        label = "1-9" if binding.short == "views" else binding.label.split()[0]
        if entries and entries[-1][1] == binding.short:
            entries[-1] = (f"{entries[-1][0]} {label}", binding.short)
        else:
            entries.append((label, binding.short))
    return entries

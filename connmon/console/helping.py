"""The help screen: the keys of the one table, and what the words mean. Pure."""

from __future__ import annotations

from typing import Final

from connmon import verdicts
from connmon.console import keys, text
from connmon.console.header import VERDICT_ROLES
from connmon.console.lines import Line, Role

_WORDS: Final[tuple[tuple[str, Role, str], ...]] = (
    (
        "LEAK",
        "bad",
        f"a connection is held for {verdicts.HELD_LONG:.0f}s or more, which is not usual here",
    ),
    ("SATURATED", "warn", "somebody waits, all is checked out: the pool is too small, or holds are too long"),
    ("TIMEOUTS", "bad", "somebody gave up waiting in the last minutes"),
    ("LOST", "bad", "silent for longer than the lease; its present is not known"),
    ("SLOW CONNECT", "warn", f"making a connection takes {verdicts.SLOW:.0f}s or more (p95)"),
    ("OVERCOMMIT", "warn", "the pools may open more connections than the server takes"),
    ("connected", "good", "reports, and nothing is wrong"),
    ("gone", "faded", "all its processes have ended; maxima stay for an hour"),
    ("(max)", "strong", "the largest value since first seen"),
    ("p95", "strong", "19 of 20 took no longer"),
    ("-", "strong", "not known"),
)


def lines(top: int, replay: bool, width: int, height: int) -> list[Line]:
    """Return the screen from line `top` of the help on; never beyond its end."""
    told: list[Line] = []
    for binding in keys.BINDINGS:
        if not binding.replay or replay:
            told.append([("  " + text.left(binding.shown, 10), "strong"), (binding.does, "")])
    for shown, does in keys.MOUSE:
        told.append([("  " + text.left(shown, 10), "strong"), (does, "")])
    told.append([])
    for word, role, meaning in _WORDS:
        told.append([("  " + text.left(word, 14), role), (meaning, "")])
    room = max(1, height - 1)
    most = max(0, len(told) - room)
    top = max(0, min(top, most))
    more = f"; Up and Down scroll, {most - top} more below" if most else ""
    return [[(text.left(f" connmon help: any key returns{more}", width), "header")], *told[top : top + room]]


assert {word for word, _, _ in _WORDS} >= set(VERDICT_ROLES)

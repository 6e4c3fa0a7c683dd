"""The help screen: the keys, from their one table, and what words and marks mean. Pure."""

from __future__ import annotations

from typing import Final

from connmon.console import keys, text
from connmon.console.lines import VERDICT_ROLES, Line, Role
from connmon.console.row_words import MEANINGS, VERDICTS

_WORDS: Final[tuple[tuple[str, Role, str], ...]] = (
    *((verdict, VERDICT_ROLES[verdict], MEANINGS[verdict]) for verdict in VERDICTS),
    ("no verdict", "strong", "nothing is wrong"),
    ("gone", "faded", "all its processes have ended; maxima stay for an hour"),
    ("max", "strong", "the value of the highest block of a line; the lowest is 0"),
    ("share", "strong", "part of its program's connection time in the last minutes"),
    ("mean held", "strong", "connections held on average = holds/s x mean hold"),
    ("", "strong", "(Little's law: what comes in, times how long it stays)"),
    ("in the database", "strong", "the part of it in which the holders are in the database"),
    ("what else", "strong", "where the holders are otherwise, the largest part first"),
    ("waiting caused", "strong", "how many wait on average because of what is held there"),
    ("~71%", "strong", "estimated: only a sample of the checkouts is noted"),
    ("#2", "strong", "the second of two rows that otherwise look the same"),
    ("(max)", "strong", "the largest value since first seen"),
    ("p95", "strong", "19 of 20 took no longer"),
    ("-", "strong", "not known"),
)


def lines(top: int, replay: bool, width: int, height: int) -> list[Line]:
    """Return the help screen from line `top` on, but never beyond its end."""
    entries: list[Line] = []
    for binding in keys.BINDINGS:
        if not binding.replay or replay:
            entries.append([("  " + text.left(binding.label, 10), "strong"), (binding.does, "")])
    for label, does in keys.MOUSE:
        entries.append([("  " + text.left(label, 10), "strong"), (does, "")])
    entries.append([])
    for word, role, meaning in _WORDS:
        entries.append([("  " + text.left(word, 16), role), (meaning, "")])
    room = max(1, height - 1)
    most = max(0, len(entries) - room)
    top = max(0, min(top, most))
    more = f"; Up and Down scroll, {most - top} more below" if most else ""
    return [
        [(text.left(f" connmon help: any key returns{more}", width), "header")],
        *entries[top : top + room],
    ]

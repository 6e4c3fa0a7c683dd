"""All that is known of one row, and what to do about it, in lines. Pure.

In a stack the frame of the line that took the connection has ">" in front: above it is what it has called,
libraries as a rule, below it are its callers. Where not all lines have room, those above it go first, so that
it is seen.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from connmon.console import columns, format, text
from connmon.console.fitting import Row
from connmon.console.lines import VERDICT_ROLES, Field, Line, Role, flow, wrapped
from connmon.protocol.text import short_duration as duration

#: More lines than all fields need: what has no room is what is at the end.
MOST: Final = 10_000
#: Keys that are shown in a way of their own, or are only the machine's business.
_APART: Final = (
    "why", "verdict", "verdict_reason", "stack", "problems", "instance", "call_site", "holder", "holder_in",
    "holder_site", "blocker",
)  # fmt: skip
_NAMES: Final = {
    "rss_bytes": "memory", "server_max": "server's maximum", "started_seconds": "running",
}  # fmt: skip
_IN: Final = {
    "database": "in the database",
    "application": "in the application's own work",
    "waiting": "waiting for another connection of a pool",
    "elsewhere": "elsewhere: the function that took it has returned",
    "ended": "its thread or task has ended",
}


class Details(NamedTuple):
    """All lines, and where in them is what."""

    lines: list[Line]
    stack: int
    """The first frame of the stack; where there is none, the end."""
    own: int | None
    """The frame of the line that took the connection, or of the application's own work. None: not seen."""


#: Lines below the own frame that are shown with it, where there is room.
CALLERS: Final = 2


def lines(row: Row, width: int, most: int) -> list[Line]:
    """Return at most `most` of the lines, the first ones: of a longer stack those about the own frame."""
    found = whole(row, width)
    frames = most - found.stack
    if found.own is None or found.own < most or frames < 1:
        return found.lines[:most]
    begin = min(found.own + 1 - max(1, frames - CALLERS), len(found.lines) - frames)
    above = begin - found.stack
    heading: Line = [(text.clip(f" stack, without its {above} innermost frames:", width), "")]
    return [*found.lines[: found.stack - 1], heading, *found.lines[begin : begin + frames]]


def whole(row: Row, width: int) -> Details:
    """Return what is wrong, who holds it and where, its stack, then every figure that is known."""
    shown: list[Line] = []
    reason = columns.reason(row)
    if reason:
        shown += wrapped(f"{columns.name(row)}: {reason}", width, VERDICT_ROLES.get(row["verdict"], "strong"))
    for problem in row.get("problems") or ():
        shown += wrapped(str(problem), width, "strong")
    for name, value, role in _places(row):
        shown += wrapped(f"{name}: {value}", width, role)
    stack = [str(frame) for frame in row.get("stack") or []]
    own = _own(stack, row)
    if stack:
        shown.append([(" stack, the innermost first:", "")])
    begin = len(shown)
    for number, frame in enumerate(stack):
        mark, role = (" > ", "strong") if number == own else ("   ", "")
        shown.append([(text.clip(mark + text.clean(frame), width), role)])
    fields = [
        Field(_name(key), _value(key, value), 1)
        for key, value in row.items()
        if key not in _APART and not key.startswith("_") and value not in (None, [], "", False)
    ]
    shown += flow(fields, width, MOST)
    return Details(shown, begin if stack else len(shown), None if own is None else begin + own)


_FRAME: Final = re.compile(r"(.*):\d+(?: (.*))?")


def _own(stack: list[str], row: Row) -> int | None:
    """Return which frame is that of the line that took the connection, which may be at another line by now.

    Where that has returned: the frame of the application in which its holder is.
    """
    for site in (row.get("call_site"), row.get("holder_site")):
        if site in stack:
            return stack.index(str(site))
        place = _function(str(site))
        if place is not None:
            for number, frame in enumerate(stack):
                if _function(frame) == place:
                    return number
    return None


def _function(site: str) -> tuple[str | None, str | None] | None:
    """Return the file and the function of a line of code; None where there is no function in it."""
    found = _FRAME.fullmatch(site)
    return None if found is None or not found[2] else (found[1], found[2])


def _places(row: Row) -> list[tuple[str, str, Role]]:
    """Return who has the connection: the line that took it, and where its holder is now."""
    found: list[tuple[str, str, Role]] = []
    if row.get("call_site"):
        found.append(("taken in" if "holder" in row else "line of code", str(row["call_site"]), "warn"))
    where, site = row.get("holder_in"), row.get("holder_site")
    now = _IN.get(str(where), "") if where else ""
    if site:
        now += f"{', ' if now else ''}at {site}"
    if where == "ended":
        name = str(row.get("holder") or "")
        found.append(
            ("held by", "nobody any more: " + (now if name in ("", "(ended)") else f"{name}, {now}"), "")
        )
    elif row.get("holder"):
        found.append(("held by", f"{row['holder']}{f', now {now}' if now else ''}", ""))
    elif now:
        found.append(("its holder now", now, ""))
    return found


def _name(key: str) -> str:
    return _NAMES.get(key) or key.removesuffix("_seconds").replace("_", " ")


def _value(key: str, value: Any) -> str:
    if isinstance(value, list):
        return text.clean(", ".join(map(str, value)))
    if key.endswith("_seconds") and isinstance(value, int | float):
        return duration(value)
    if isinstance(value, float):
        return format.rate(value)
    if key == "rss_bytes":
        return format.size(value)
    return format.word(value)

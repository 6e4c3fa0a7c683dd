"""All that is known of one row, and what to do about it, in lines. Pure."""

from __future__ import annotations

from typing import Any, Final

from connmon.console import forms, tables, text
from connmon.console.columns import Row
from connmon.console.lines import VERDICT_ROLES, Field, Line, Role, flow, wrapped
from connmon.formats import short_duration as duration

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


def lines(row: Row, width: int, most: int) -> list[Line]:
    """Return at most `most` lines: what is wrong, who holds it and where, then every figure that is known."""
    shown: list[Line] = []
    reason = tables.reason(row)
    if reason:
        shown += wrapped(f"{tables.name(row)}: {reason}", width, VERDICT_ROLES.get(row["verdict"], "strong"))
    for problem in row.get("problems") or ():
        shown += wrapped(str(problem), width, "strong")
    for name, value, role in _places(row):
        shown += wrapped(f"{name}: {value}", width, role)
    stack = row.get("stack") or []
    if stack:
        shown.append([(" stack, the innermost first:", "")])
        shown += [[(text.clip("   " + text.clean(str(frame)), width), "")] for frame in stack]
    fields = [
        Field(_name(key), _value(key, value), 1)
        for key, value in row.items()
        if key not in _APART and not key.startswith("_") and value not in (None, [], "", False)
    ]
    room = most - len(shown)
    if room > 0:
        shown += flow(fields, width, MOST)[:room]
    return shown[:most]


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
        return forms.rate(value)
    if key == "rss_bytes":
        return forms.size(value)
    return forms.word(value)

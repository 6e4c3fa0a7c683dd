"""All that is known of one row, and what to do about it, in lines. Pure."""

from __future__ import annotations

from typing import Any, Final

from connmon.console import forms, text
from connmon.console.columns import Row
from connmon.console.lines import Field, Line, flow, wrapped
from connmon.formats import short_age as age

#: More lines than all fields need: what has no room is what is at the end.
MOST: Final = 10_000
#: Keys that are told of in a way of their own, or only the machine's business.
_APART: Final = ("why", "verdict", "stack", "problems", "server_capacity", "instance")
_NAMES: Final = {
    "rss_bytes": "memory", "server_max": "server's maximum", "call_site": "call site",
    "started_seconds": "running",
}  # fmt: skip


def lines(row: Row, width: int, most: int) -> list[Line]:
    """Return at most `most` lines: what is wrong, the call stack, then every figure that is known."""
    shown: list[Line] = []
    if row.get("why"):
        shown += wrapped(str(row["why"]), width, "strong")
    for problem in row.get("problems") or ():
        shown += wrapped(str(problem), width, "strong")
    stack = row.get("stack") or []
    if stack:
        shown.append([(" called from (the innermost first):", "")])
        shown += [[(text.clip("   " + text.clean(str(frame)), width), "")] for frame in stack]
    fields = [
        Field(_name(key), _value(key, value), 1, "warn" if key == "call_site" else "")
        for key, value in row.items()
        if key not in _APART and not key.startswith("_") and value not in (None, [], "")
    ]
    room = most - len(shown)
    if room > 0:
        shown += flow(fields, width, MOST)[:room]
    return shown[:most]


def _name(key: str) -> str:
    return _NAMES.get(key) or key.removesuffix("_seconds").replace("_", " ")


def _value(key: str, value: Any) -> str:
    if isinstance(value, list):
        return text.clean(", ".join(map(str, value)))
    if isinstance(value, float):
        return age(value) if key.endswith("_seconds") else forms.rate(value)
    if key == "rss_bytes":
        return forms.size(value)
    return forms.word(value)

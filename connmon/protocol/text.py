"""Text for terminals and CSV: sanitized names, ages and durations, call sites, where a holder is. Pure.

Names come from any client that reports: nothing printed may carry a control character to a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from connmon.protocol.values import HolderIn


class HolderWords(NamedTuple):
    """Where the holder of a connection is, in words."""

    brief: str
    """In a list of several: "3 in own work"."""
    now: str
    """After "is" or "now", in the details of one connection."""
    clause: str
    """In the reason of a verdict; "database" follows without a comma."""


#: Every text in which a place of a holder is worded.
HOLDER_WORDS: Final[Mapping[HolderIn, HolderWords]] = {
    "database": HolderWords("in the database", "in the database", "in the database"),
    "application": HolderWords(
        "in own work", "in the application's own work", "its holder is in work of its own"
    ),
    "waiting": HolderWords(
        "waiting for another connection",
        "waiting for another connection of a pool",
        "its holder waits for another connection",
    ),
    "elsewhere": HolderWords(
        "elsewhere", "elsewhere: the function that took it has returned", "its holder is elsewhere"
    ),
    "ended": HolderWords("ended", "its thread or task has ended", "its thread or task has ended"),
}


def printable(text: str) -> str:
    """Return the text with "?" for every character that does not print (controls, line ends, bidi marks)."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def short_age(seconds: float | None) -> str:
    """Return seconds as 0.4s, 41s, 1m42s, 12m, 5h07m or 3d02h; None as "-"."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f}s" if seconds else "0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 600:
        return f"{minutes}m{whole % 60:02}s"
    if not hours:
        return f"{minutes}m"
    return f"{days}d{hours % 24:02}h" if days else f"{hours}h{minutes % 60:02}m"


def short_duration(seconds: float | None) -> str:
    """Return seconds as `short_age` does, but less than 0.1 s as 63ms, 0.4ms or 20us."""
    if seconds is None or seconds == 0.0 or seconds >= 0.0995:
        return short_age(seconds)
    milliseconds = seconds * 1000.0
    if milliseconds < 0.0995:  # 0.0ms would look like nothing
        return f"{milliseconds * 1000.0:.0f}us"
    return f"{milliseconds:.0f}ms" if milliseconds >= 0.95 else f"{milliseconds:.1f}ms"


#: In a label they would look like the ends of its entry.
_ENTRY_ENDS: Final = str.maketrans(";=", "??")


def csv_cell(value: Any) -> Any:
    """Return the value for a CSV writer: text sanitized and never a formula.

    A list is joined by " < ", a mapping is "requests=0.6;database=0.2".
    """
    if isinstance(value, list):
        value = " < ".join(value)
    if isinstance(value, dict):
        value = ";".join(f"{label.translate(_ENTRY_ENDS)}={number}" for label, number in value.items())
    if isinstance(value, str):
        value = printable(value)
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "'")) else value
    return value


def shortened(site: str | None, size: int) -> str | None:
    """Return a call site in at most `size` characters: first the function goes, then the left of the path."""
    if site is None or len(site) <= size:
        return site
    match = re.match(r"(.*?:\d+)(?= |$)", site)
    place = match[1] if match else site
    if len(place) <= size:
        return site[:size].rstrip()
    return f"...{place[3 - size :]}" if size > 3 else place[-size:]

"""Text for terminals and CSV: sanitized names, ages and durations, shortened call sites. Pure.

Names come from any client that reports: nothing printed may carry a control character to a terminal.
"""

from __future__ import annotations

import re
from typing import Any


def printable(text: str) -> str:
    """Return the text with "?" for every character that does not print (controls, line ends, bidi marks)."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def short_age(seconds: float | None) -> str:
    """Return an age as 0.4s, 41s, 1m42s, 12m, 5h07m or 3d02h; None as "-"."""
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
    """Return how long something took, as an age; what is shorter than 0.1 s as 63ms, 0.4ms or 20us."""
    if seconds is None or seconds == 0.0 or seconds >= 0.0995:
        return short_age(seconds)
    milliseconds = seconds * 1000.0
    if milliseconds < 0.0995:  # 0.0ms would be nothing
        return f"{milliseconds * 1000.0:.0f}us"
    return f"{milliseconds:.0f}ms" if milliseconds >= 0.95 else f"{milliseconds:.1f}ms"


def csv_cell(value: Any) -> Any:
    if isinstance(value, list):
        value = " < ".join(value)
    if isinstance(value, str):
        value = printable(value)
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "'")) else value
    return value


def shortened(site: str | None, size: int) -> str | None:
    """Return a call site in so many characters: first the function goes, then the left of the path."""
    if site is None or len(site) <= size:
        return site
    found = re.match(r"(.*?:\d+)(?= |$)", site)
    place = found[1] if found else site
    if len(place) <= size:
        return site[:size].rstrip()
    return f"...{place[3 - size :]}" if size > 3 else place[-size:]

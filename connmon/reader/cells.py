"""Text in terminal cells: its width, shares and means, and where connection time goes. Pure.

- A share or a mean that is not 0 is never written as 0: "<1 %", "<0.01".
- Places are the labels of `Where` with their shares, the largest first: "requests 60 %, own code 12 %". Where
  they have no room, the last ones go; the first one keeps its share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from wcwidth import wcswidth

from connmon.protocol.text import printable
from connmon.protocol.values import IN_DATABASE

#: Places below this share are not worth a word next to larger ones.
_LEAST_SHARE: Final = 0.005
#: A place, as `other_places` writes it.
_PLACE: Final = re.compile(r"(.*) (<?\d+ ?%)")
#: Marks where a name was cut off.
_CUT: Final = "~"
#: What "~" in front of a call site's figures means.
ESTIMATED: Final = "~ holds and seconds are estimated: only a sample of the checkouts is noted"


def cell_width(text: str) -> int:
    """Return the terminal cells of a printable text."""
    return len(text) if text.isascii() else wcswidth(text)


def cut(text: str, cells: int | None) -> str:
    """Return as much of the text as fits into so many cells. None: all."""
    if cells is None or cell_width(text) <= cells:
        return text
    end = max(0, min(len(text), cells))
    while cell_width(text[:end]) > cells:
        end -= 1
    return text[:end]


def percent(share: float | None, unit: str = " %") -> str:
    """Return a share from 0 to 1 as 71 %; None as "-"."""
    if share is None:
        return "-"
    return f"<1{unit}" if 0.0 < share < _LEAST_SHARE else f"{100.0 * share:.0f}{unit}"


def mean(value: float | None) -> str:
    """Return a mean or a rate as 212, 36.2, 4.15 or 0.03; None as "-"."""
    if value is None:
        return "-"
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return "<0.01" if 0.0 < value < 0.005 else f"{value:.2f}" if value else "0"


def other_places(
    shares: Mapping[str, float], unit: str = " %", cleaned: Callable[[str], str] = printable
) -> str:
    """Return each place besides the database with its share, the largest first.

    "" for none, "-" where nobody has looked. `cleaned` sanitizes a foreign text.
    """
    others = [
        f"{cleaned(label)} {percent(share, unit)}"
        for label, share in shares.items()
        if label != IN_DATABASE and share >= _LEAST_SHARE
    ]
    return ", ".join(others) if shares else "-"


def shortened_places(text: str, cells: int) -> str:
    """Return the first of `other_places` that fit into so many cells; of the first one the name is cut."""
    entries = text.split(", ")
    first = entries[0]
    while entries and cell_width(", ".join(entries)) > cells:
        entries.pop()
    if entries:
        return ", ".join(entries)
    place = _PLACE.fullmatch(first)
    if place is None:
        return cut(first, cells)
    name, share = place.groups()
    room = cells - cell_width(share) - len(_CUT) - 1
    return f"{cut(name, room)}{_CUT} {share}" if room > 0 else cut(share, cells)

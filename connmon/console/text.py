"""What of a foreign string may reach a terminal, and how many columns it takes there. Pure.

Rules kept here:

- Names come from other people's programs. Control and format characters become "?", so that
  no name can move the cursor, colour the screen or reverse the reading direction.
- Width is the sum of `wcwidth` over characters: what curses and terminals agree on best.
  Characters without a width of their own are composed (NFC) or left out, since terminals differ on them.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from wcwidth import wcwidth

#: Stands for what was cut off. One column.
CUT = "~"


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """Return `text` with nothing in it that a terminal would act upon."""
    if text.isascii() and text.isprintable():
        return text
    kept = []
    for char in unicodedata.normalize("NFC", text):
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            kept.append("?")
            continue
        columns = wcwidth(char)
        if columns < 0:
            kept.append("?")
        elif columns > 0:
            kept.append(" " if char.isspace() else char)
    return "".join(kept)


def width(text: str) -> int:
    """Return how many columns a clean text takes."""
    if text.isascii():
        return len(text)
    return sum(max(0, wcwidth(char)) for char in text)


def clip(text: str, columns: int, cut: str = CUT) -> str:
    """Return a clean text in at most `columns` columns; `cut` marks that something is missing."""
    if width(text) <= columns:
        return text
    room = columns - width(cut)
    if room < 0:
        return ""
    taken = 0
    for position, char in enumerate(text):
        taken += max(0, wcwidth(char))
        if taken > room:
            return text[:position] + cut
    return text


def shorten(text: str, columns: int) -> str:
    """Return a clean text in at most `columns` columns, cut in its middle: names differ at their ends."""
    if width(text) <= columns:
        return text
    end = clip(text[::-1], max(0, (columns - width(CUT)) // 2), cut="")[::-1]
    return clip(text, columns - width(end)) + end


def left(text: str, columns: int) -> str:
    """Return a clean text in exactly `columns` columns, at the left of them."""
    text = clip(text, columns)
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """Return a clean text in exactly `columns` columns, at the right of them."""
    text = clip(text, columns)
    return " " * (columns - width(text)) + text

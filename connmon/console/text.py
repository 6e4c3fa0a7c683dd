"""What of a foreign string may reach a terminal, and how many columns it takes there. Pure.

Rules kept here:

- Names come from other people's programs. Control and format characters become "?", so that
  no name can move the cursor, colour the screen or reverse the reading direction.
- Width is the sum of `wcwidth` over characters: what curses and terminals agree on best.
  Characters without a width of their own are composed (NFC) or left out, since terminals differ on them.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from wcwidth import wcwidth

#: Stands for what was cut off. One column.
CUT = "~"
#: Stands for the left part of a path. One column.
LEFT_OUT: Final = "…"
#: For terminals that have no more than ASCII.
ASCII: Final = str.maketrans({"…": "~", "▼": "v", "▲": "^"})

#: Where in the code: the path, the file's name and the line, the function.
_PLACE: Final = re.compile(r"^(.*/)?([^/ ]+:\d+)( .*)?$")


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


def path_end(text: str, columns: int) -> str:
    """Return how short a path may get: `columns`, or what its last part or a file's name and line take."""
    place = _PLACE.match(text)
    if place is None:
        last = text.rpartition("/")[2]
        return shorten_path(text, max(columns, width(last) + 2)) if last != text else text
    lead = f"{LEFT_OUT}/" if width(place[1] or "") > 2 else place[1] or ""
    line = lead + place[2]
    return line + clip(place[3] or "", max(0, columns - width(line)))


def shorten_path(text: str, columns: int) -> str:
    """Return a clean path or call site in at most `columns` columns, without its left part.

    Of a call site the function is cut next; file name and line number stay as long as there is room.
    """
    if width(text) <= columns:
        return text
    place = _PLACE.match(text)
    if place is None:
        if "/" not in text:
            return shorten(text, columns)
        _, scheme, rest = text.partition("://")
        if scheme and width(rest) + 1 <= columns:
            return LEFT_OUT + rest
        return (LEFT_OUT + clip(text[::-1], columns - 1, cut="")[::-1]) if columns > 0 else ""
    directories = place[1] or ""
    rest = text[len(directories) :]
    for at, char in enumerate(directories):
        if char == "/" and at > 1 and width(directories[at:]) + width(rest) + 1 <= columns:
            return LEFT_OUT + directories[at:] + rest
    line = place[2]
    lead = f"{LEFT_OUT}/" if directories and width(line) + 2 <= columns else ""
    end = lead + line
    if width(end) > columns:
        return shorten(line, columns)
    function = clip(place[3] or "", columns - width(end))
    return end + (function if len(function) > 2 else "")


def left(text: str, columns: int) -> str:
    """Return a clean text in exactly `columns` columns, at the left of them."""
    text = clip(text, columns)
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """Return a clean text in exactly `columns` columns, at the right of them."""
    text = clip(text, columns)
    return " " * (columns - width(text)) + text

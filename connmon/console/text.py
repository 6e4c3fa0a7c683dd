"""Text on the terminal: sanitize foreign text, measure and shorten it. Pure.

- Names come from other programs. Characters that do not print become "?" (`printable`), so that no name can
  move the cursor, colour the screen or reverse the reading direction.
- Width is the sum of `wcwidth` over characters: what curses and terminals agree on best.
  Characters without a width of their own are composed (NFC) or left out, since terminals differ on them.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from wcwidth import wcwidth

from connmon.protocol.text import printable

#: Marks where text was cut off. One column.
CUT = "~"
#: Marks the missing left part of a path. One column.
LEFT_OUT: Final = "…"
#: For terminals that have only ASCII.
ASCII: Final = str.maketrans({"…": "~", "▼": "v", "▲": "^"})

#: The parts of a call site: the path, the file's name and the line, the function.
_PLACE: Final = re.compile(r"^(.*/)?([^/ ]+:\d+)( .*)?$")


@lru_cache(maxsize=8192)
def sanitize(text: str) -> str:
    """Return `text` without anything that a terminal would act on, in characters of a known width."""
    if text.isascii() and text.isprintable():
        return text
    composed = unicodedata.normalize("NFC", text)
    spaced = "".join(" " if unicodedata.category(char) == "Zs" else char for char in composed)
    return "".join(char for char in printable(spaced) if wcwidth(char) > 0)


def width(text: str) -> int:
    """Return how many columns a sanitized text takes."""
    if text.isascii():
        return len(text)
    return sum(max(0, wcwidth(char)) for char in text)


def clip(text: str, columns: int, cut: str = CUT) -> str:
    """Return a sanitized text in at most `columns` columns; `cut` marks that something is missing."""
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
    """Return a sanitized text in at most `columns` columns, cut in its middle: names differ at their ends."""
    if width(text) <= columns:
        return text
    end = clip(text[::-1], max(0, (columns - width(CUT)) // 2), cut="")[::-1]
    return clip(text, columns - width(end)) + end


def path_end(text: str, columns: int) -> str:
    """Return the shortest form of a path: in `columns`, or as long as its last part, or its file and line."""
    place = _PLACE.match(text)
    if place is None:
        last = text.rpartition("/")[2]
        return shorten_path(text, max(columns, width(last) + 2)) if last != text else text
    lead = f"{LEFT_OUT}/" if width(place[1] or "") > 2 else place[1] or ""
    line = lead + place[2]
    return line + clip(place[3] or "", max(0, columns - width(line)))


def shorten_path(text: str, columns: int) -> str:
    """Return a sanitized path or call site in at most `columns` columns, without its left part.

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
    """Return a sanitized text in exactly `columns` columns, left-aligned."""
    text = clip(text, columns)
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """Return a sanitized text in exactly `columns` columns, right-aligned."""
    text = clip(text, columns)
    return " " * (columns - width(text)) + text

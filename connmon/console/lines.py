"""Styled lines, of which the parts of the screen are made. Pure.

A line is a list of (text, role) spans. At most five roles have a colour (good, warn, bad, faded,
header); "cursor", "strong" and "paused" are brightness; "cursor_warn" and "cursor_bad" are "warn" and "bad"
under the cursor. What a colour says, a word in the same line says too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from connmon.console import text

Role: TypeAlias = Literal[
    "", "good", "warn", "bad", "faded", "header", "cursor", "cursor_warn", "cursor_bad", "strong", "paused"
]
Span: TypeAlias = tuple[str, Role]
Line: TypeAlias = list[Span]

#: The role of each verdict, whose word is always in the same line.
VERDICT_ROLES: Final[dict[str, Role]] = {
    "LEAK": "bad", "BLOCKED": "bad", "TIMEOUTS": "bad", "LOST": "bad",
    "SATURATED": "warn", "SLOW CONNECT": "warn", "OVERCOMMIT": "warn",
}  # fmt: skip


class Field(NamedTuple):
    """A name and a value of the header."""

    name: str
    value: str
    rank: int
    """The field with the highest rank goes first where room is scarce."""
    role: Role = ""


def flow(fields: Sequence[Field], width: int, most: int) -> list[Line]:
    """Return the fields in at most `most` lines, without those of the highest rank if they do not fit."""
    chosen = list(fields)
    while chosen and most > 0:
        lines: list[Line] = [[]]
        taken = 0
        for field in chosen:
            needs = 3 + text.width(field.name) + 1 + text.width(field.value)
            if taken and taken + needs > width:
                lines.append([])
                taken = 0
            lead = "   " if taken else " "
            taken += needs if taken else needs - 2
            lines[-1] += [(f"{lead}{field.name} ", field.role), (field.value, field.role or "strong")]
        if len(lines) <= most or len(chosen) == 1:
            return lines[:most]
        chosen.remove(max(chosen, key=lambda field: field.rank))
    return []


def wrapped(message: str, width: int, role: Role = "") -> list[Line]:
    """Return a message in as many lines as it needs; a word longer than a line is cut into pieces."""
    room = max(1, width - 2)
    lines: list[str] = [""]
    for word in text.sanitize(message).split():
        if lines[-1] and text.width(lines[-1]) + 1 + text.width(word) > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while text.width(lines[-1]) > room:
            head = text.clip(lines[-1], room, cut="") or lines[-1][:1]
            lines[-1:] = [head, lines[-1][len(head) :]]
    return [[(" " + line, role)] for line in lines]


def padded(line: Line, width: int, role: Role) -> Line:
    missing = width - sum(text.width(part) for part, _ in line)
    return [*line, (" " * missing, role)] if missing > 0 else line


def clipped(line: Line, width: int) -> Line:
    """Return the line in at most `width` columns, without empty spans."""
    kept: Line = []
    for part, role in line:
        if width <= 0:
            break
        part = text.clip(part, width, cut="")
        width -= text.width(part)
        if part:
            kept.append((part, role))
    return kept


def plain(lines: Sequence[Line]) -> str:
    """Return the lines as text, without roles."""
    return "\n".join("".join(part for part, _ in line).rstrip() for line in lines)

"""Columns: what they say of a row, and which of them fit into the width. Pure. `tables` has which there are.

Rules kept here:

- A column that does not fit is left out, the least important first (highest `rank`); it is never
  squeezed below its heading. Only names may be shortened, down to `least`, and are marked where cut.
- The column that names the row stays always, the one that the table is sorted by nearly so.
- Numbers stand at the right. A value that is not known is "-".
- Rows are the dicts of the JSON contract; a key that is missing is a value that is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.console import text

Row: TypeAlias = Mapping[str, Any]


class Cell(NamedTuple):
    """What a column says of one row; `second` is written after it, in a column of its own."""

    first: str
    second: str = ""


# --- Columns --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    key: str
    """Its name within its table; a key of the row, where `value` is not given."""
    title: str
    """In two lines at most."""
    short: str
    """The title where room is scarce."""
    rank: int
    """0: names the row, stays always; 1: most important; see `CORE` and `EXTRA`."""
    write: Callable[[Row], Cell]
    is_text: bool = False
    """At the left, sorted from A; else at the right, largest first."""
    least: int = 0
    """A name may be shortened to this many columns. 0: never."""
    value: Callable[[Row], Any] | None = None
    """What it is sorted by. None: the value of `key`."""

    def sorted_by(self, row: Row) -> Any:
        """Return what the row is sorted by; None: not known."""
        return row.get(self.key) if self.value is None else self.value(row)

    @property
    def name(self) -> str:
        return " ".join(self.title.split())

    def heading(self, short: bool, lines: int) -> list[str]:
        """Return the title in exactly `lines` (1 or 2) lines."""
        parts = (self.short if short else self.title).split("\n")
        if lines == 1:
            return [" ".join(parts)]
        return parts if len(parts) == 2 else ["", parts[0]]


#: Up to here, short titles are taken before a column is left out.
CORE: Final = 8
#: From here on, a column is shown only where nothing else has to give way for it.
EXTRA: Final = 20


# --- Which columns fit ------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A column with the place it got."""

    column: Column
    heading: tuple[str, ...]
    width: int
    second: int
    """How much of the width the cells' second part takes."""

    def cell(self, row: Row) -> str:
        """Return the row's cell in exactly `width` columns."""
        first, second = self.column.write(row)
        if second:
            second = " " + text.right(second, self.second - 1)
        if self.column.is_text:
            return text.left(text.shorten(first, self.width), self.width)
        return text.right(first, self.width - text.width(second)) + second

    def title(self, line: int) -> str:
        align = text.left if self.column.is_text else text.right
        return align(self.heading[line], self.width)


def _natural(col: Column, rows: Sequence[Row], short: bool, lines: int) -> Fitted:
    heading = tuple(col.heading(short, lines))
    cells = [col.write(row) for row in rows]
    first = max((text.width(cell.first) for cell in cells), default=0)
    second = max((text.width(cell.second) + 1 for cell in cells if cell.second), default=0)
    return Fitted(col, heading, max(first + second, *map(text.width, heading)), second)


def fit(
    columns: Sequence[Column], rows: Sequence[Row], room: int, lines: int, sort: str
) -> tuple[list[Fitted], int]:
    """Return the columns that fit into `room` columns, and the gap between them.

    `rows` are those to be shown: their widths count. `lines`: how many the heading has.
    The last column left may be wider than the room; the caller clips.
    """
    for short, gap in ((False, 2), (True, 1)):
        chosen = [_natural(col, rows, short, lines) for col in columns]
        while len(chosen) > 1 and _total([_least(place, short) for place in chosen], gap) > room:
            worst = max(chosen, key=lambda place: _rank(place.column, sort))
            if not short and worst.column.rank <= CORE:
                break  # what matters would have to go: short titles first
            chosen = [place for place in chosen if place is not worst]
        else:
            return _shrunk(chosen, [_least(place, short) for place in chosen], room, gap), gap
    raise AssertionError("the second pass always returns")


def _rank(col: Column, sort: str) -> float:
    return min(col.rank, 1.5) if col.key == sort else col.rank


def _least(place: Fitted, short: bool) -> int:
    """Return how narrow a column may get: no name is cut for the sake of long titles."""
    if not place.column.least or not (short or place.column.rank >= EXTRA):
        return place.width
    return min(place.width, max(place.column.least, *map(text.width, place.heading)))


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _shrunk(chosen: Sequence[Fitted], floors: Sequence[int], room: int, gap: int) -> list[Fitted]:
    """Take what is too much from the names, the widest first, none below its floor."""
    widths = [place.width for place in chosen]
    for _ in range(_total(widths, gap) - room):
        able = [index for index, floor in enumerate(floors) if widths[index] > floor]
        if not able:
            break
        widths[max(able, key=widths.__getitem__)] -= 1
    return [replace(place, width=width) for place, width in zip(chosen, widths, strict=True)]

"""Fit a table into the width of the screen: which columns are shown, and how wide. Pure.

- What identifies a row (host, program, pid, pool, call site) stays, and stays whole, until all numbers
  have made room. Only a path loses its left part before that, never its file name and line number.
- Any other column that does not fit is left out, the least important first (highest `rank`); it is never
  squeezed below its heading. Other names may be shortened, down to `least`, and are marked where they are
  cut. The places of a call site's time give way to every other column, down to `least`.
- Two rows that differ in what identifies them look different: names are cut less where they would look the
  same, and rows that still look the same get a number (`marks`).
- Below `NARROW_WIDTH` columns the name of a row and the most important numbers share the width.
- Numbers are right-aligned. An unknown value is "-". The sorted column has ▼ (largest first) or ▲.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from connmon.console import text
from connmon.console.columns import CORE_RANK, EXTRA_RANK, Column
from connmon.console.rows import Key, KeyedRow, TableRow, Trend

FALLING: Final = "▼"
RISING: Final = "▲"
#: On a narrower screen a row's name is cut before the most important numbers go.
NARROW_WIDTH: Final = 60
#: How much wider a path gets at a time, until rows look different, and how often at most: drawing a screen
#: must not take long, whatever the names are.
_PATH_STEP_CELLS: Final = 4
_PATH_STEPS: Final = 20


# --- Which columns fit ------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A column with the place it got."""

    column: Column[Any]
    heading: tuple[str, ...]
    width: int
    second: int
    """How much of the width the cells' second part takes."""
    floor: int = 0
    """The least width that it may get."""

    def cell(self, row: TableRow, mark: str = "", trend: Trend | None = None) -> str:
        """Return the row's cell in exactly `width` columns; the mark stands at its end, whole."""
        first, second = self.column.cell(row, trend)
        if second:
            second = " " + text.right(second, self.second - 1)
        if mark:
            first = self.column.shortened(first, max(0, self.width - text.width(mark))) + mark
        if self.column.is_text:
            return text.left(self.column.shortened(first, self.width) if not mark else first, self.width)
        return text.right(first, self.width - text.width(second)) + second

    def title(self, line: int) -> str:
        align = text.left if self.column.is_text else text.right
        return align(self.heading[line], self.width)


def _natural(
    column: Column[Any], rows: Sequence[TableRow], short: bool, cut: bool, lines: int, mark: str
) -> Fitted:
    """Return a column in the width that its heading and all its cells need."""
    heading = tuple(column.heading(short, lines, mark))
    cells = [column.write(row) for row in rows]
    first = max((text.width(cell.first) for cell in cells), default=0)
    second = max((text.width(cell.second) + 1 for cell in cells if cell.second), default=0)
    heading_width = max(map(text.width, heading))
    width = max(first + second, heading_width)
    floor = width
    if column.is_path and column.least and (cut or not column.identifies):
        needed = max((text.width(text.path_end(cell.first, column.least)) for cell in cells), default=0)
        floor = min(width, max(needed, heading_width))
    elif column.is_places:
        # Two places, where titles need not be short for that.
        floor = min(width, max(column.least * (1 if short else 2), heading_width))
    elif column.least and not column.identifies and (short or column.rank >= EXTRA_RANK):
        # No name is cut for the sake of long titles.
        floor = min(width, max(column.least, heading_width))
    return Fitted(column, heading, width, second, floor)


def fit(
    columns: Sequence[Column[Any]], rows: Sequence[TableRow], room: int, lines: int, sort: str, mark: str = ""
) -> tuple[list[Fitted], int]:
    """Return the columns that fit into `room` columns, and the gap between them.

    `rows` are the rows to be shown: their widths count. `lines`: how many the heading has. `mark` stands in
    the heading of the column that is sorted by. The last column left may be too wide; the caller clips.
    """
    # Before an important column has to go, titles get short, and then paths.
    for short, gap, cut in ((False, 2, False), (True, 1, False), (True, 1, True)):
        natural = [
            _natural(column, rows, short, cut, lines, mark if column.key == sort else "")
            for column in columns
        ]
        chosen = _chosen(natural, room, gap, sort, cut)
        if chosen is None:
            continue
        shrunk = _shrunk(chosen, room, gap)
        for _ in range(_PATH_STEPS):
            wider = _with_wider_path(natural, shrunk, rows)
            again = None if wider is None else _chosen(wider, room, gap, sort, True)
            if wider is None or again is None:
                break
            natural, shrunk = wider, _shrunk(again, room, gap)
        return shrunk, gap
    raise AssertionError("the last pass always returns")


def _chosen(natural: Sequence[Fitted], room: int, gap: int, sort: str, last: bool) -> list[Fitted] | None:
    """Leave out the least important columns until the others fit; None: more can be shortened first."""
    chosen = list(natural)
    if room < NARROW_WIDTH:
        chosen = [_squeezable(place) for place in chosen]
    while len(chosen) > 1 and _total([place.floor for place in chosen], gap) > room:
        able = [place for place in chosen if room < NARROW_WIDTH or not place.column.identifies]
        if not able and not last:
            return None
        if not able:
            return [_squeezable(place) for place in chosen]
        worst = max(able, key=lambda place: _rank(place.column, sort))
        if not last and worst.column.rank <= CORE_RANK:
            return None
        chosen = [place for place in chosen if place is not worst]
    return chosen


def _rank(column: Column[Any], sort: str) -> float:
    return min(column.rank, 1.5) if column.key == sort else column.rank


def _squeezable(place: Fitted) -> Fitted:
    """Return the place of a column that identifies rows, for a screen that has no room even for it."""
    column = place.column
    if not column.identifies or not column.least:
        return place
    return replace(place, floor=min(place.floor, max(column.least, *map(text.width, place.heading))))


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _shrunk(chosen: Sequence[Fitted], room: int, gap: int) -> list[Fitted]:
    """Take the excess width from the names, the widest first, none below its floor."""
    widths = [place.width for place in chosen]
    for _ in range(_total(widths, gap) - room):
        able = [index for index, place in enumerate(chosen) if widths[index] > place.floor]
        if not able:
            break
        widths[max(able, key=widths.__getitem__)] -= 1
    return [replace(place, width=width) for place, width in zip(chosen, widths, strict=True)]


# --- Rows look different ----------------------------------------------------------------------


def _identities(fitted: Sequence[Fitted], rows: Sequence[TableRow]) -> list[tuple[str, ...]]:
    """Return what the screen shows of the rows in the columns that identify them."""
    naming = [place for place in fitted if place.column.identifies]
    return [tuple(place.cell(row) for place in naming) for row in rows]


def _with_wider_path(
    natural: Sequence[Fitted], shrunk: Sequence[Fitted], rows: Sequence[TableRow]
) -> list[Fitted] | None:
    """Return the columns with a higher floor for a path that makes rows look the same, or None."""
    cut = [place for place in shrunk if place.column.identifies and place.width < _whole(natural, place)]
    if not cut:
        return None
    first: dict[tuple[str, ...], TableRow] = {}
    for row, identity in zip(rows, _identities(shrunk, rows), strict=True):
        other = first.setdefault(identity, row)
        if other is row:
            continue
        for place in cut:
            if place.column.write(row) != place.column.write(other):
                wider = min(place.width + _PATH_STEP_CELLS, _whole(natural, place))
                if wider <= _floor(natural, place):
                    continue  # it had that width already, and there was no room for it
                return [
                    replace(column, floor=max(column.floor, wider))
                    if column.column is place.column
                    else column
                    for column in natural
                ]
    return None


def _floor(natural: Sequence[Fitted], place: Fitted) -> int:
    return next(column.floor for column in natural if column.column is place.column)


def _whole(natural: Sequence[Fitted], place: Fitted) -> int:
    return next(column.width for column in natural if column.column is place.column)


def marks(fitted: Sequence[Fitted], rows: Sequence[KeyedRow]) -> dict[Key, str]:
    """Return the marks of rows that look the same, by their keys: "#2" for the second of two.

    A pool has its own number; others are counted in the order of their keys, wherever they stand.
    """
    alike: dict[tuple[str, ...], list[Key]] = {}
    for (key, _), identity in zip(rows, _identities(fitted, [row for _, row in rows]), strict=True):
        alike.setdefault(identity, []).append(key)
    numbers: dict[Key, str] = {}
    for keys in alike.values():
        if len(keys) < 2:
            continue
        pools = {key[2] for key in keys if key[0] == "pool" and len(key) == 3}
        for number, key in enumerate(sorted(keys, key=repr), 1):
            numbers[key] = f"#{key[2] if len(pools) == len(keys) else number}"
    return numbers

"""Columns: what they say of a row, and which of them fit into the width. Pure. `tables` lists them.

Rules kept here:

- What identifies a row (`identifies`: host, program, pid, pool, call site) stays, and stays whole, until all
  numbers have made room. Only a path loses its left part before that, never its file name and line number.
- Any other column that does not fit is left out, the least important first (highest `rank`); it is never
  squeezed below its heading. Other names may be shortened, down to `least`, and are marked where cut.
- Two rows that differ in what identifies them look different: names are cut less where they would look
  the same, and what then still looks the same gets a number (`marks`).
- Below `NARROW` columns the name of a row and the most important numbers share the width.
- Numbers stand at the right. A value that is not known is "-". The sorted column has ▼ (largest first) or ▲.
- Rows are the dicts of the JSON contract; a key that is missing is a value that is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.console import text

Row: TypeAlias = Mapping[str, Any]

FALLING: Final = "▼"
RISING: Final = "▲"


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
    identifies: bool = False
    is_path: bool = False
    """Its left part goes first where it is shortened; `least` then counts for what is left of it."""

    def sorted_by(self, row: Row) -> Any:
        """Return what the row is sorted by; None: not known."""
        return row.get(self.key) if self.value is None else self.value(row)

    @property
    def name(self) -> str:
        return " ".join(self.title.split())

    def heading(self, short: bool, lines: int, mark: str = "") -> list[str]:
        """Return the title in exactly `lines` (1 or 2) lines, the mark at its end."""
        parts = (self.short if short else self.title).split("\n")
        if lines == 1:
            return [" ".join(parts) + mark]
        return [parts[0], parts[1] + mark] if len(parts) == 2 else ["", parts[0] + mark]

    def shortened(self, cell: str, width: int) -> str:
        return (text.shorten_path if self.is_path else text.shorten)(cell, width)


#: Up to here, short titles are taken before a column is left out.
CORE: Final = 8
#: From here on, a column is shown only where nothing else has to give way for it.
EXTRA: Final = 20
#: With fewer columns than these a row's name is cut before the most important numbers go.
NARROW: Final = 60
#: So much wider a path gets at a time, until rows look different.
_STEP: Final = 4
#: So often at most: a frame must not take long, whatever the names are.
_TRIES: Final = 20


# --- Which columns fit ------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A column with the place it got."""

    column: Column
    heading: tuple[str, ...]
    width: int
    second: int
    """How much of the width the cells' second part takes."""
    floor: int = 0
    """How narrow it may get."""

    def cell(self, row: Row, mark: str = "") -> str:
        """Return the row's cell in exactly `width` columns; the mark stands at its end, whole."""
        first, second = self.column.write(row)
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
    col: Column, rows: Sequence[Row], short: bool, cut: bool, lines: int, mark: str
) -> Fitted:  # fmt: skip
    heading = tuple(col.heading(short, lines, mark))
    cells = [col.write(row) for row in rows]
    first = max((text.width(cell.first) for cell in cells), default=0)
    second = max((text.width(cell.second) + 1 for cell in cells if cell.second), default=0)
    titled = max(map(text.width, heading))
    width = max(first + second, titled)
    floor = width
    if col.is_path and col.least and (cut or not col.identifies):
        needed = max((text.width(text.path_end(cell.first, col.least)) for cell in cells), default=0)
        floor = min(width, max(needed, titled))
    elif col.least and not col.identifies and (short or col.rank >= EXTRA):
        # No name is cut for the sake of long titles.
        floor = min(width, max(col.least, titled))
    return Fitted(col, heading, width, second, floor)


def fit(
    columns: Sequence[Column], rows: Sequence[Row], room: int, lines: int, sort: str, mark: str = ""
) -> tuple[list[Fitted], int]:
    """Return the columns that fit into `room` columns, and the gap between them.

    `rows` are those to be shown: their widths count. `lines`: how many the heading has. `mark` stands in
    the heading of the column that is sorted by. The last column left may be too wide; the caller clips.
    """
    # Before what matters has to go, titles get short, and then paths.
    for short, gap, cut in ((False, 2, False), (True, 1, False), (True, 1, True)):
        every = [_natural(col, rows, short, cut, lines, mark if col.key == sort else "") for col in columns]
        chosen = _chosen(every, room, gap, sort, cut)
        if chosen is None:
            continue
        shrunk = _shrunk(chosen, room, gap)
        for _ in range(_TRIES):
            wider = _told_apart(every, shrunk, rows)
            again = None if wider is None else _chosen(wider, room, gap, sort, True)
            if wider is None or again is None:
                break
            every, shrunk = wider, _shrunk(again, room, gap)
        return shrunk, gap
    raise AssertionError("the last pass always returns")


def _chosen(every: Sequence[Fitted], room: int, gap: int, sort: str, last: bool) -> list[Fitted] | None:
    """Leave out the least important columns until the others fit; None: more can be shortened first."""
    chosen = list(every)
    if room < NARROW:
        chosen = [_squeezable(place) for place in chosen]
    while len(chosen) > 1 and _total([place.floor for place in chosen], gap) > room:
        able = [place for place in chosen if room < NARROW or not place.column.identifies]
        if not able and not last:
            return None
        if not able:
            return [_squeezable(place) for place in chosen]
        worst = max(able, key=lambda place: _rank(place.column, sort))
        if not last and worst.column.rank <= CORE:
            return None
        chosen = [place for place in chosen if place is not worst]
    return chosen


def _rank(col: Column, sort: str) -> float:
    return min(col.rank, 1.5) if col.key == sort else col.rank


def _squeezable(place: Fitted) -> Fitted:
    """Return the place of what identifies a row, where even that has no room."""
    col = place.column
    if not col.identifies or not col.least:
        return place
    return replace(place, floor=min(place.floor, max(col.least, *map(text.width, place.heading))))


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _shrunk(chosen: Sequence[Fitted], room: int, gap: int) -> list[Fitted]:
    """Take what is too much from the names, the widest first, none below its floor."""
    widths = [place.width for place in chosen]
    for _ in range(_total(widths, gap) - room):
        able = [index for index, place in enumerate(chosen) if widths[index] > place.floor]
        if not able:
            break
        widths[max(able, key=widths.__getitem__)] -= 1
    return [replace(place, width=width) for place, width in zip(chosen, widths, strict=True)]


# --- Rows look different ----------------------------------------------------------------------


def _identities(fitted: Sequence[Fitted], rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return what is seen of the rows in the columns that identify them."""
    naming = [place for place in fitted if place.column.identifies]
    return [tuple(place.cell(row) for place in naming) for row in rows]


def _told_apart(
    every: Sequence[Fitted], shrunk: Sequence[Fitted], rows: Sequence[Row]
) -> list[Fitted] | None:
    """Return the columns with higher floors, where rows look the same since paths are cut; else None."""
    cut = [place for place in shrunk if place.column.identifies and place.width < _whole(every, place)]
    if not cut:
        return None
    first: dict[tuple[str, ...], Row] = {}
    for row, seen in zip(rows, _identities(shrunk, rows), strict=True):
        other = first.setdefault(seen, row)
        if other is row:
            continue
        for place in cut:
            if place.column.write(row) != place.column.write(other):
                wider = min(place.width + _STEP, _whole(every, place))
                if wider <= _floor(every, place):
                    continue  # it had that already, and there was no room for it
                return [
                    replace(each, floor=max(each.floor, wider)) if each.column is place.column else each
                    for each in every
                ]
    return None


def _floor(every: Sequence[Fitted], place: Fitted) -> int:
    return next(each.floor for each in every if each.column is place.column)


def _whole(every: Sequence[Fitted], place: Fitted) -> int:
    return next(each.width for each in every if each.column is place.column)


def marks(fitted: Sequence[Fitted], rows: Sequence[tuple[Any, Row]]) -> dict[Any, str]:
    """Return what tells rows apart that look the same, by their keys: "#2" behind the name of the second.

    A pool has its own number; others are counted in the order of their keys, wherever they stand.
    """
    alike: dict[tuple[str, ...], list[Any]] = {}
    for (key, _), seen in zip(rows, _identities(fitted, [row for _, row in rows]), strict=True):
        alike.setdefault(seen, []).append(key)
    found: dict[Any, str] = {}
    for keys in alike.values():
        if len(keys) < 2:
            continue
        pools = {key[2] for key in keys if key[0] == "pool" and len(key) == 3}
        for number, key in enumerate(sorted(keys, key=repr), 1):
            found[key] = f"#{key[2] if len(pools) == len(keys) else number}"
    return found

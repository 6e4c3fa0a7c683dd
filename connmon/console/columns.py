"""What each table can show of a row: which columns, how they are written, sorted and fitted. Pure.

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
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from connmon.console import text
from connmon.formats import short_age as age

Row: TypeAlias = Mapping[str, Any]
Table: TypeAlias = Literal["program", "process", "pool", "connection"]

UNKNOWN: Final = "-"


class Cell(NamedTuple):
    """What a column says of one row; `second` is written after it, in a column of its own."""

    first: str
    second: str = ""


# --- How values are written -----------------------------------------------------------------


def count(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def rate(value: float | None) -> str:
    """Return events per second, with a tenth below a thousand."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f}" if value < 999.95 else f"{value:.0f}"


def size(value: int | None) -> str:
    """Return bytes as 512B, 38M, 1.2G (powers of 1024)."""
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in "BKMGT":
        if amount < 1023.5 or unit == "T":
            return f"{amount:.1f}{unit}" if amount < 9.95 and unit in "GT" else f"{amount:.0f}{unit}"
        amount /= 1024
    raise AssertionError


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}%"


def word(value: Any) -> str:
    return UNKNOWN if value in (None, "") else text.clean(str(value))


def state_word(row: Row) -> str:
    """Return the row's state in words; what colour only repeats. "waiting": connected, and someone waits."""
    state = row.get("state")
    if state == "connected" and row.get("waiting"):
        return "waiting"
    return word(state).replace("_", " ")


# --- Columns --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    key: str
    """What it is sorted by, a key of the row."""
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


def _number(key: str, title: str, rank: int, short: str = "", form: Callable[[Any], str] = count) -> Column:
    return Column(key, title, short or title, rank, lambda row: Cell(form(row.get(key))))


def _with_max(key: str, title: str, short: str, rank: int) -> Column:
    def write(row: Row) -> Cell:
        return Cell(count(row.get(key)), f"({count(row.get('max_' + key))})")

    return Column(key, title + "\n(max)", short, rank, write)


def _text(key: str, title: str, rank: int, least: int = 0, short: str = "") -> Column:
    return Column(key, title, short or title, rank, lambda row: Cell(word(row.get(key))), True, least)


def _state(rank: int) -> Column:
    return Column("state", "state", "state", rank, lambda row: Cell(state_word(row)), True)


_CONNECTIONS = _with_max("connections", "connections", "conns\n(max)", 2)
_CHECKED_OUT = _with_max("checked_out", "checked out", "checked\nout(max)", 3)
_WAITING = _number("waiting", "waiting", 1)
_LONGEST_WAIT = _number("longest_wait_seconds", "longest\nwait", 4, form=age)
_LONGEST_HELD = _number("longest_held_seconds", "longest\nheld", 5, form=age)
_RATE = _number("checkouts_per_second", "checkouts\n/s", 8, form=rate)
_MORE: Final = (
    _number("capacity", "capacity", EXTRA),
    _number("idle", "idle", EXTRA + 1),
    _number("overflow", "overflow", EXTRA + 2),
    _number("timeouts_total", "timeouts\ntotal", EXTRA + 3),
    _number("max_waiting", "waiting\nmax", EXTRA + 4),
    _number("connect_errors_total", "connect\nerrors", EXTRA + 5),
    _number("invalidations_total", "invali-\ndations", EXTRA + 6),
    _number("detached", "detached", EXTRA + 8),
    _number("checkouts_total", "checkouts\ntotal", EXTRA + 9),
)
_REPORT = _number("last_report_seconds", "last\nreport", EXTRA + 7, form=age)

COLUMNS: Final[dict[Table, tuple[Column, ...]]] = {
    "program": (
        _text("host", "host", 6, 8),
        _text("program", "program", 0, 11),
        _with_max("processes", "processes", "procs\n(max)", 7),
        _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, _RATE,
        _state(3),
        *_MORE, _REPORT,
        _number("pools", "pools", EXTRA + 10),
    ),
    "process": (
        _number("pid", "pid", 0),
        _CONNECTIONS, _CHECKED_OUT, _WAITING, _LONGEST_WAIT, _LONGEST_HELD, _RATE,
        _state(3),
        _number("cpu_percent", "CPU", 9, form=percent),
        _number("rss_bytes", "memory", 10, form=size),
        _number("started_seconds", "running", 11, form=age),
        _text("user", "user", 12, 8),
        _number("threads", "threads", 13),
        _number("open_files", "open\nfiles", 14),
        *_MORE[:5], _REPORT,
        _text("node", "node", EXTRA + 8, 8),
        _number("ppid", "parent", EXTRA + 9),
        _text("command", "command", EXTRA + 10, 20),
    ),
    "pool": (
        _text("pool", "pool", 0, 24),
        _CONNECTIONS, _CHECKED_OUT,
        _number("capacity", "capacity", 6),
        _WAITING, _LONGEST_WAIT, _LONGEST_HELD, _RATE,
        _state(9),
        _number("pool_size", "size", 10),
        _number("max_overflow", "max\noverflow", 10),
        _number("timeout_seconds", "timeout", 11, form=age),
        _text("pool_class", "class", 12),
        *_MORE[1:],
    ),
    "connection": (
        _number("connection", "connection", 0, "conn"),
        _number("server_id", "server session", 2, "server\nsession"),
        _state(1),
        _number("held_seconds", "held", 2, form=age),
        _number("age_seconds", "age", 5, form=age),
        _text("holder", "held by", 3, 12),
        _text("call_site", "call site", 4, 20),
        _text("pool", "pool", EXTRA, 24),
    ),
}  # fmt: skip
#: Who is to blame stands on top: those that wait, those that hold longest.
DEFAULT_SORT: Final[dict[Table, str]] = {
    "program": "waiting", "process": "waiting", "pool": "waiting", "connection": "held_seconds",
}  # fmt: skip


def column(table: Table, key: str) -> Column:
    """Return the table's column of that key. Raises KeyError."""
    for candidate in COLUMNS[table]:
        if candidate.key == key:
            return candidate
    raise KeyError(key)


def arranged(
    table: Table, rows: Sequence[tuple[Any, Row]], sort: str, inverted: bool
) -> tuple[tuple[Any, Row], ...]:
    """Return (key, row) pairs in order: values that are not known last, equals by connections, then name."""

    def names(pair: tuple[Any, Row]) -> tuple[str, ...]:
        return tuple(str(part).rjust(12) if isinstance(part, int) else str(part) for part in pair[0])

    by = column(table, sort)
    ordered = sorted(rows, key=names)
    ordered.sort(key=lambda pair: pair[1].get("connections") or 0, reverse=True)
    known = [pair for pair in ordered if pair[1].get(sort) is not None]
    unknown = [pair for pair in ordered if pair[1].get(sort) is None]
    if by.is_text:
        known.sort(key=lambda pair: str(pair[1][sort]), reverse=inverted)
    else:
        known.sort(key=lambda pair: pair[1][sort], reverse=not inverted)
    return (*known, *unknown)


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


def fit(table: Table, rows: Sequence[Row], room: int, lines: int, sort: str) -> tuple[list[Fitted], int]:
    """Return the columns that fit into `room` columns, and the gap between them.

    `rows` are those to be shown: their widths count. `lines`: how many the heading has.
    The last column left may be wider than the room; the caller clips.
    """
    for short, gap in ((False, 2), (True, 1)):
        chosen = [_natural(col, rows, short, lines) for col in COLUMNS[table]]
        while len(chosen) > 1 and _total([_least(place, short) for place in chosen], gap) > room:
            worst = max(chosen, key=lambda place: _rank(place.column, sort))
            if not short and worst.column.rank <= CORE:
                break  # what matters would have to go: short titles first
            chosen = [place for place in chosen if place is not worst]
        else:
            return _shrunk(chosen, [_least(place, short) for place in chosen], room, gap), gap
    raise AssertionError("the second pass always returns")


def _rank(col: Column, sort: str) -> float:
    return min(col.rank, 0.5) if col.key == sort else col.rank


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

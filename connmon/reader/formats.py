"""Print a snapshot: table, JSON, CSV. Pure: no I/O, no time.

Names come from any client that reports, so nothing printed here carries a control character to a terminal:
table and CSV have "?" for each character that does not print, JSON is ASCII with escapes. A CSV cell that a
spreadsheet would take for a formula, or that begins with an apostrophe, gets an apostrophe in front; without
it, the cell is the text again.

One printer makes all tables (`table_lines`); a table is data: its columns, each with the attribute of the
typed row that it shows.

tabulate, texttable, prettytable and rich were compared. They align cells, some by terminal width as here, but
where a table is too wide they wrap or cut cells; none leaves out columns by importance until the rows fit,
and none shortens a path from the left without making two call sites look the same. What they would replace is
the padding: ten lines.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from connmon.protocol.document import (
    KEYS,
    Document,
    JsonCallSite,
    JsonConnection,
    JsonDatabase,
    JsonHead,
    JsonHost,
    JsonPool,
    JsonProcess,
    JsonProgram,
    JsonRow,
    cells,
)
from connmon.protocol.text import csv_cell, printable, short_age, short_duration, shortened
from connmon.protocol.values import Grouping
from connmon.protocol.verdicts import rank
from connmon.reader.cells import ESTIMATED, cell_width, cut, mean, other_places, percent, shortened_places

# --- JSON and CSV -------------------------------------------------------------------------------


def printed(document: Document, form: str, width: int | None = None) -> str:
    """Return the document as `form` says: table, json or csv."""
    if form == "json":
        return as_json(document.flat())
    return as_csv(document) if form == "csv" else as_table(document, width)


def as_json(document: Mapping[str, Any]) -> str:
    """Return the document as indented JSON, in ASCII, with one line end at its end."""
    return _ascii(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def as_json_line(document: Mapping[str, Any]) -> str:
    """Return the document as JSON in one line, in ASCII, with its line end."""
    return _ascii(msgspec.json.encode(document).decode())


#: Occurs within strings only: between them JSON has ASCII and line ends.
_NOT_ASCII: Final = re.compile(r"[^\n -~]+")


def _ascii(text: str) -> str:
    return _NOT_ASCII.sub(lambda match: "".join(map(_escape, match[0])), text) + "\n"


def _escape(character: str) -> str:
    pairs = character.encode("utf-16-be").hex()
    return "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4))


def as_csv(document: Document) -> str:
    """Return the rows as CSV below a line of all keys; None is empty, stacks and shares as in `csv_cell`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(KEYS[document.by])
    writer.writerows(map(csv_cell, cells(row).values()) for row in document.rows)
    return file.getvalue()


# --- Columns ------------------------------------------------------------------------------------

R = TypeVar("R", contravariant=True)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else printable(str(value))


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f} MiB"


@dataclass(frozen=True)
class TableColumn(Generic[R]):
    """A column of a table."""

    heading: str
    value: Callable[[R], object]
    rank: int = 0
    """0: always shown. Columns of the highest rank go first where there is no room."""
    form: Callable[[Any], str] = field(default=_plain)
    """Returns the cell of a value."""
    is_text: bool = False
    """Text is aligned to the left, numbers to the right."""
    is_name: bool = False
    """Identifies a row, also in front of the reason of its verdict."""
    is_path: bool = False
    """A call site, which may lose the left of its path."""
    is_places: bool = False
    """Where time goes, the largest part first: the last parts go where there is no room."""

    def lines(self, rows: Iterable[R]) -> list[str]:
        """Return the heading and the cells, padded to one width."""
        texts = [self.heading, *(self.form(self.value(row)) for row in rows)]
        widths = [cell_width(text) for text in texts]
        size = max(widths)
        pads = [" " * (size - width) for width in widths]
        if self.is_text:
            return [text + pad for text, pad in zip(texts, pads, strict=True)]
        return [pad + text for text, pad in zip(texts, pads, strict=True)]


def _name(heading: str, value: Callable[[R], object]) -> TableColumn[R]:
    """Return a column that is always shown, and identifies the row."""
    return TableColumn(heading, value, is_text=True, is_name=True)


def _number_name(heading: str, value: Callable[[R], object]) -> TableColumn[R]:
    return TableColumn(heading, value, is_name=True)


def _text(heading: str, value: Callable[[R], object], rank: int) -> TableColumn[R]:
    return TableColumn(heading, value, rank, is_text=True)


def _age(heading: str, value: Callable[[R], float | None], rank: int) -> TableColumn[R]:
    return TableColumn(heading, value, rank, short_age)


def _estimated(form: Callable[[Any], str]) -> Callable[[tuple[bool, Any]], str]:
    """Return the form of a value that may be estimated: it has "~" in front then."""

    def marked(value: tuple[bool, Any]) -> str:
        estimated, known = value
        return ("~" if estimated and known is not None else "") + form(known)

    return marked


_Group: TypeAlias = JsonProgram | JsonHost | JsonDatabase
_Figured: TypeAlias = JsonProgram | JsonHost | JsonDatabase | JsonProcess | JsonPool
_OfProcess: TypeAlias = JsonProcess | JsonPool | JsonConnection
_OfPool: TypeAlias = JsonPool | JsonConnection

_STATE: Final[TableColumn[_Figured]] = _text("STATE", lambda row: row.state, 2)
_VERDICT: Final[TableColumn[JsonRow]] = _text("VERDICT", lambda row: row.verdict, 1)
_HOST_PROGRAM: Final[tuple[TableColumn[JsonProgram | JsonCallSite], ...]] = (
    _name("HOST", lambda row: row.host),
    _name("PROGRAM", lambda row: row.program),
)
_PROCESS: Final[tuple[TableColumn[_OfProcess], ...]] = (
    _name("HOST", lambda row: row.process.host),
    _name("PROGRAM", lambda row: row.process.program),
    _number_name("PID", lambda row: row.process.pid),
)
_PROGRAMS: Final[TableColumn[JsonHost | JsonDatabase]] = TableColumn("PROGRAMS", lambda row: row.programs, 3)
_PROCESSES: Final[TableColumn[_Group]] = TableColumn("PROCESSES", lambda row: row.figures.processes, 2)
_FIGURES: Final[tuple[TableColumn[_Figured], ...]] = (
    TableColumn("CAPACITY", lambda row: row.figures.capacity, 6),
    TableColumn("CONNECTIONS", lambda row: row.figures.connections, 0),
    TableColumn("MAX CONNECTIONS", lambda row: row.figures.max_connections, 6),
    TableColumn("CHECKED OUT", lambda row: row.figures.checked_out, 1),
    TableColumn("IDLE", lambda row: row.figures.idle, 3),
    TableColumn("OVERFLOW", lambda row: row.figures.overflow, 5),
    TableColumn("DETACHED", lambda row: row.figures.detached, 9),
    TableColumn("WAITING", lambda row: row.figures.waiting, 1),
    _age("LONGEST WAIT", lambda row: row.figures.longest_wait_seconds, 4),
    _age("LONGEST HELD", lambda row: row.figures.longest_held_seconds, 4),
    TableColumn("CHECKOUTS/S", lambda row: row.figures.checkouts_per_second, 5),
    TableColumn("TIMEOUTS", lambda row: row.figures.timeouts_total, 6),
    _age("LAST REPORT", lambda row: row.figures.last_report_seconds, 7),
)
#: Shown where a row has it.
_LEFT_OUT: Final[TableColumn[_Figured]] = TableColumn("LEFT OUT", lambda row: row.figures.left_out, 1)

_PROGRAM_TABLE: Final[tuple[TableColumn[JsonProgram], ...]] = (
    *_HOST_PROGRAM, _STATE, _VERDICT, _PROCESSES, *_FIGURES,
)  # fmt: skip
_HOST_TABLE: Final[tuple[TableColumn[JsonHost], ...]] = (
    _name("HOST", lambda row: row.host), _STATE, _VERDICT, _PROGRAMS, _PROCESSES, *_FIGURES,
)  # fmt: skip
_DATABASE_TABLE: Final[tuple[TableColumn[JsonDatabase], ...]] = (
    _name("DIALECT", lambda row: row.dialect),
    _name("DATABASE HOST", lambda row: row.database_host),
    _number_name("PORT", lambda row: row.database_port),
    _name("DATABASE", lambda row: row.database),
    _STATE,
    _VERDICT,
    _PROGRAMS,
    _PROCESSES,
    *_FIGURES,
)
_PROCESS_TABLE: Final[tuple[TableColumn[JsonProcess], ...]] = (
    *_PROCESS,
    _STATE,
    _VERDICT,
    _age("STARTED", lambda row: row.process.started_seconds, 7),
    TableColumn("CPU %", lambda row: row.process.cpu_percent, 8),
    TableColumn("RSS", lambda row: row.process.rss_bytes, 8, _mebibytes),
    TableColumn("POOLS", lambda row: row.figures.pools, 6),
    *_FIGURES,
    _text("COMMAND", lambda row: row.process.command, 9),
)
_POOL_TABLE: Final[tuple[TableColumn[JsonPool], ...]] = (
    *_PROCESS,
    _name("POOL", lambda row: row.pool.pool),
    _STATE,
    _VERDICT,
    _text("CLASS", lambda row: row.pool.pool_class, 8),
    *_FIGURES,
)
_CONNECTION_TABLE: Final[tuple[TableColumn[JsonConnection], ...]] = (
    *_PROCESS,
    _text("POOL", lambda row: row.pool.pool, 5),
    TableColumn("CONNECTION", lambda row: row.connection, 3),
    TableColumn("SERVER ID", lambda row: row.server_id, 2),
    _text("STATE", lambda row: row.state, 2),
    _text("VERDICT", lambda row: row.verdict, 0),
    _age("AGE", lambda row: row.age_seconds, 4),
    _age("HELD", lambda row: row.held_seconds, 0),
    _text("HOLDER", lambda row: row.holder, 3),
    _text("HOLDER IN", lambda row: row.holder_in, 5),
    TableColumn("CALL SITE", lambda row: row.call_site, is_text=True, is_path=True),
)
_CALL_SITE_TABLE: Final[tuple[TableColumn[JsonCallSite], ...]] = (
    *_HOST_PROGRAM,
    TableColumn("CALL SITE", lambda row: row.call_site, is_text=True, is_name=True, is_path=True),
    _VERDICT,
    TableColumn("SHARE", lambda row: (row.estimated, row.share), 1, _estimated(percent)),
    TableColumn("HELD", lambda row: row.mean_held, 1, mean),
    TableColumn("IN DB", lambda row: row.database_share, 1, percent),
    TableColumn("WHAT ELSE", lambda row: row.where_shares, 2, other_places, is_text=True, is_places=True),
    TableColumn("HOLDS/S", lambda row: (row.estimated, row.holds_per_second), 4, _estimated(mean)),
    TableColumn("MEAN HOLD", lambda row: row.mean_hold_seconds, 4, short_duration),
    TableColumn("WAITING CAUSED", lambda row: row.mean_waiting_caused, 3, mean),
    TableColumn("HELD NOW", lambda row: row.held_now, 3),
    TableColumn("WAITING NOW", lambda row: row.waiting_now, 3),
    TableColumn("IN DB NOW", lambda row: row.in_database_now, 6),
    _age("LONGEST HELD", lambda row: row.longest_held_seconds, 5),
    TableColumn("USUAL", lambda row: row.usual_held_seconds, 6, short_duration),
    TableColumn("HOLDS", lambda row: (row.estimated, row.holds_total), 6, _estimated(_plain)),
    _age("HELD IN ALL", lambda row: row.hold_seconds_total, 7),
    TableColumn("PROCESSES", lambda row: row.processes, 8),
)
_TABLES: Final[Mapping[Grouping, tuple[TableColumn[Any], ...]]] = {
    "program": _PROGRAM_TABLE,
    "host": _HOST_TABLE,
    "database": _DATABASE_TABLE,
    "process": _PROCESS_TABLE,
    "pool": _POOL_TABLE,
    "connection": _CONNECTION_TABLE,
    "site": _CALL_SITE_TABLE,
}

# --- Tables -------------------------------------------------------------------------------------


def as_table(document: Document, width: int | None = None) -> str:
    """Return a table for people: who answered, the totals, a choice of columns, and below it what is wrong.

    `width` in terminal cells: columns are left out until the rows fit. If they still do not fit, call sites
    lose the left of their paths, and then the row is cut. None: no limit.

    The gravest rows come first, then those for which most wait, then call sites that hold most, then the
    others by name as in JSON.
    """
    columns, rows = _TABLES[document.by], sorted(document.rows, key=_urgency)
    if any(_has_left_out(row) for row in rows):
        columns = (*columns, _LEFT_OUT)
    table = table_lines(columns, rows, width)
    lines = (*_head(document.head), "", *table, *_legend(rows, width), *_reasons(rows, columns))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _urgency(row: JsonRow) -> tuple[int, int, float]:
    """Return a key that sorts graver rows first."""
    waiting: int | None = 0
    held: float | None = 0.0
    if isinstance(row, JsonCallSite):
        waiting, held = row.waiting_now, row.mean_held
    elif not isinstance(row, JsonConnection):
        waiting = row.figures.waiting
    return -rank(row.verdict), -(waiting or 0), -(held or 0.0)


def _legend(rows: Iterable[JsonRow], width: int | None) -> list[str]:
    """Return a line that says what "~" means, where it stands."""
    if not any(isinstance(row, JsonCallSite) and row.estimated for row in rows):
        return []
    return ["", cut(ESTIMATED, width)]


def _has_left_out(row: JsonRow) -> bool:
    return not isinstance(row, JsonConnection | JsonCallSite) and bool(row.figures.left_out)


def table_lines(
    columns: Iterable[TableColumn[Any]], rows: Sequence[Any], width: int | None = None
) -> list[str]:
    """Return the lines of a table, the headings first; `width` as in `as_table`."""
    filled = [(column, column.lines(rows)) for column in columns]
    if width is not None:
        _fit(filled, rows, width)
    return [cut("  ".join(parts), width) for parts in zip(*(lines for _, lines in filled), strict=True)]


#: Terminal cells that a call site keeps, however narrow the table is.
_LEAST_PATH_CELLS: Final = 12
#: Terminal cells that the first of several places keeps, where the column is there at all.
_LEAST_PLACES_CELLS: Final = 14
#: Columns from this rank on go before a path loses its left part.
_DETAIL_RANK: Final = 3
_Filled: TypeAlias = list[tuple[TableColumn[Any], list[str]]]


def _fit(columns: _Filled, rows: Sequence[Any], width: int) -> None:
    """Leave out columns, and shorten places and call sites, until the rows fit, as far as possible.

    A call site keeps its file and line, and as much of its path as distinguishes it from the others.
    """
    path = next((column for column, _ in columns if column.is_path), None)
    sites: list[str | None] = [] if path is None else [path.value(row) for row in rows]  # type: ignore[misc]
    floors: dict[str, int] = {
        column.heading: _LEAST_PLACES_CELLS for column, _ in columns if column.is_places
    }

    def needed() -> int:
        widths = {column.heading: cell_width(lines[0]) for column, lines in columns}
        return sum(min(cells, floors.get(heading, cells)) + 2 for heading, cells in widths.items()) - 2

    for lowest_rank in (_DETAIL_RANK, 1):
        while needed() > width:
            least = max(reversed(columns), key=lambda entry: entry[0].rank)
            if least[0].rank < lowest_rank:
                break
            columns.remove(least)
        if path is not None and sites:
            floors[path.heading] = max(cell_width(path.heading), _distinct_size(sites))
    _shorten(columns, rows, width, floors, lambda column: column.is_places, shortened_places)
    if path is not None and sites:
        floors[path.heading] = _LEAST_PATH_CELLS
        _shorten(columns, rows, width, floors, lambda column: column.is_path, shortened)


def _shorten(
    columns: _Filled,
    rows: Sequence[Any],
    width: int,
    floors: Mapping[str, int],
    is_short: Callable[[TableColumn[Any]], bool],
    form: Callable[[str, int], str | None],
) -> None:
    """Take the cells that are too many from one column, none below its floor."""
    excess = sum(cell_width(lines[0]) + 2 for _, lines in columns) - 2 - width
    number = next((number for number, (column, _) in enumerate(columns) if is_short(column)), None)
    if excess <= 0 or number is None:
        return
    column, lines = columns[number]
    cells = max(min(floors[column.heading], cell_width(lines[0])), cell_width(lines[0]) - excess)
    short: TableColumn[Any] = replace(column, form=lambda value: _plain(form(column.form(value), cells)))
    columns[number] = (column, short.lines(rows))


def _distinct_size(sites: Iterable[str | None]) -> int:
    """Return how many characters show the file and line of each call site and keep all of them distinct."""
    known = {site for site in sites if site is not None}
    places = {site: re.match(r"(.*?:\d+)(?= |$)", site) for site in known}
    ends = [place[1].rpartition("/")[2] if place else site for site, place in places.items()]
    size = min(max(map(len, known), default=0), max(map(len, ends), default=0) + len("..."))
    while len({shortened(site, size) for site in known}) < len(known):
        size += 1
    return size


def _reasons(rows: Iterable[JsonRow], columns: Iterable[TableColumn[Any]]) -> list[str]:
    """Return a line for each row with a reason: its name, the verdict, and the reason in full."""
    names = [column for column in columns if column.is_name]
    lines = []
    for row in rows:
        if isinstance(row, JsonConnection) or row.verdict is None or row.verdict_reason is None:
            continue
        values = [column.value(row) for column in names]
        name = " ".join(printable(str(value)) for value in values if value is not None)
        lines.append(f"{name}  {row.verdict}: {printable(row.verdict_reason)}")
    return ["", *lines] if lines else []


def _head(head: JsonHead) -> tuple[str, str]:
    """Return two lines: who answered, and the totals."""
    stale, figures = short_age(head.stale_seconds), head.totals.figures
    quorum = f"quorum yes  stale {stale}" if head.quorum else f"NO QUORUM, stands still for {stale}"
    parts = [
        f"hosts {head.totals.hosts}",
        f"programs {head.totals.programs}",
        f"processes {_plain(figures.processes)}",
        f"capacity {_plain(figures.capacity)}",
        f"connections {_plain(figures.connections)} (max {_plain(figures.max_connections)})",
        f"checked out {_plain(figures.checked_out)} (max {_plain(figures.max_checked_out)})",
        f"waiting {_plain(figures.waiting)} (max {_plain(figures.max_waiting)})",
        f"checkouts/s {_plain(figures.checkouts_per_second)}",
    ]
    if head.totals.verdicts:
        parts.append(", ".join(f"{word} {count}" for word, count in head.totals.verdicts.items()))
    if figures.left_out:
        parts.append(f"LEFT OUT by limits {figures.left_out}")
    names = f"service {head.service}  node {head.node}  leader {head.leader or '-'}"
    return f"{printable(names)}  {quorum}", "  ".join(parts)


# --- Tables of dicts ----------------------------------------------------------------------------

_STATUS_KEYS: Final = (
    "node", "address", "role", "term", "applied", "lag", "stale_seconds",
    "processes", "consoles", "uptime_seconds", "version", "problems",
)  # fmt: skip
#: Keys whose values are text, aligned to the left.
_TEXT_KEYS: Final = frozenset({
    "host", "program", "state", "database", "holder", "call_site", "node", "address", "role", "version",
    "problems", "client_host", "user", "application", "ids", "blocked_by", "blocks",
})  # fmt: skip


def status_table(document: Mapping[str, Any]) -> str:
    """Return the document of cluster-status as a table for people; a node's problems come last, in full."""
    quorum = "yes" if document["quorum"] else "NO"
    names = f"service {document['service']}  quorum {quorum}  leader {document['leader'] or '-'}"
    head = f"{document['health'].upper()}  {printable(names)}  term {_plain(document['term'])}"
    rows = [{**row, "problems": "; ".join(row["problems"]) or None} for row in document["nodes"]]
    headings = {key: key.removesuffix("_seconds").upper() for key in _STATUS_KEYS}
    return "".join(f"{line}\n" for line in (head, "", *aligned(headings, rows)))


def aligned(headings: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of dicts; `headings` by key. A row may lack a key."""
    columns = [_column_of(key, heading) for key, heading in headings.items()]
    return [line.rstrip() for line in table_lines(columns, list(rows))]


def _column_of(key: str, heading: str) -> TableColumn[Mapping[str, Any]]:
    form = short_age if key.endswith("_seconds") else _plain
    return TableColumn(heading, lambda row: row.get(key), form=form, is_text=key in _TEXT_KEYS)

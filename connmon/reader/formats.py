"""The ways to print a snapshot's document: table, JSON, CSV. Pure: no I/O, no time.

Names come from whoever reports: nothing printed here may carry a control character to a
terminal, so table and CSV have "?" for each character that does not print; JSON is ASCII with
escapes. A CSV cell of text that a spreadsheet would take for a formula, or that begins with an
apostrophe, gets an apostrophe in front: taking one away gives the text back.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from wcwidth import wcswidth

from connmon.protocol.document import KEYS
from connmon.protocol.text import csv_cell, printable, short_age, short_duration, shortened
from connmon.protocol.values import Grouping


def as_json(document: Mapping[str, Any]) -> str:
    """Return the document as indented JSON, in ASCII, with one line end at its end."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    return _NOT_ASCII.sub(lambda match: "".join(map(_escape, match[0])), text) + "\n"


#: Stands only within strings: between them JSON has ASCII and line ends.
_NOT_ASCII: Final = re.compile(r"[^\n -~]+")


def _escape(character: str) -> str:
    pairs = character.encode("utf-16-be").hex()
    return "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4))


def as_csv(document: Mapping[str, Any], by: Grouping) -> str:
    """Return the rows as CSV under one line of all keys; None is empty, a stack joined by " < "."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(KEYS[by])
    writer.writerows([csv_cell(row[key]) for key in KEYS[by]] for row in document["rows"])
    return file.getvalue()


class _Column(NamedTuple):
    key: str
    heading: str
    rank: int
    """0: always shown. The highest goes first where there is no room."""


_HOST: Final = _Column("host", "HOST", 0)
_STATE: Final = _Column("state", "STATE", 2)
_VERDICT: Final = _Column("verdict", "VERDICT", 1)
_SITE: Final = _Column("call_site", "CALL SITE", 0)
_WHO: Final = (_HOST, _Column("program", "PROGRAM", 0), _Column("pid", "PID", 0))
_PROGRAMS: Final = _Column("programs", "PROGRAMS", 3)
_PROCESSES: Final = _Column("processes", "PROCESSES", 2)
_NUMBERS: Final = (
    _Column("capacity", "CAPACITY", 6),
    _Column("connections", "CONNECTIONS", 0),
    _Column("max_connections", "MAX CONNECTIONS", 6),
    _Column("checked_out", "CHECKED OUT", 1),
    _Column("idle", "IDLE", 3),
    _Column("overflow", "OVERFLOW", 5),
    _Column("detached", "DETACHED", 9),
    _Column("waiting", "WAITING", 1),
    _Column("longest_wait_seconds", "LONGEST WAIT", 4),
    _Column("longest_held_seconds", "LONGEST HELD", 4),
    _Column("checkouts_per_second", "CHECKOUTS/S", 5),
    _Column("timeouts_total", "TIMEOUTS", 6),
    _Column("last_report_seconds", "LAST REPORT", 7),
)
#: Shown where a row has it.
_LEFT_OUT: Final = _Column("left_out", "LEFT OUT", 1)
_TABLE: Final[Mapping[str, tuple[_Column, ...]]] = {
    "program": (*_WHO[:2], _STATE, _VERDICT, _PROCESSES, *_NUMBERS),
    "host": (_HOST, _STATE, _VERDICT, _PROGRAMS, _PROCESSES, *_NUMBERS),
    "database": (
        _Column("dialect", "DIALECT", 0),
        _Column("database_host", "DATABASE HOST", 0),
        _Column("database_port", "PORT", 0),
        _Column("database", "DATABASE", 0),
        *(_STATE, _VERDICT, _PROGRAMS, _PROCESSES, *_NUMBERS),
    ),
    "process": (
        *(*_WHO, _STATE, _VERDICT, _Column("started_seconds", "STARTED", 7)),
        *(_Column("cpu_percent", "CPU %", 8), _Column("rss_bytes", "RSS", 8), _Column("pools", "POOLS", 6)),
        *(*_NUMBERS, _Column("command", "COMMAND", 9)),
    ),
    "pool": (
        *(*_WHO, _Column("pool", "POOL", 0), _STATE, _VERDICT, _Column("pool_class", "CLASS", 8)),
        *_NUMBERS,
    ),
    "connection": (
        *(*_WHO, _Column("pool", "POOL", 5), _Column("connection", "CONNECTION", 3)),
        *(_Column("server_id", "SERVER ID", 2), _STATE, _VERDICT._replace(rank=0)),
        *(_Column("age_seconds", "AGE", 4), _Column("held_seconds", "HELD", 0)),
        *(_Column("holder", "HOLDER", 3), _Column("holder_in", "HOLDER IN", 5), _SITE),
    ),
    "site": (
        *(*_WHO[:2], _SITE, _VERDICT, _PROCESSES._replace(rank=5), _Column("held_now", "HELD", 1)),
        *(_Column("in_database_now", "IN DATABASE", 2), _Column("waiting_now", "WAITING", 1)),
        *(_Column("longest_held_seconds", "LONGEST HELD", 2), _Column("usual_held_seconds", "USUAL", 3)),
        *(_Column("holds_total", "HOLDS", 3), _Column("hold_seconds_total", "HELD IN ALL", 4)),
        _Column("estimated", "SAMPLED", 4),
    ),
}
_LEFT: Final = (
    "host", "program", "state", "dialect", "database_host", "database",
    "pool", "pool_class", "command", "holder", "holder_in", "call_site", "verdict",
    "node", "address", "role", "version", "problems",
    "client_host", "user", "application", "ids", "blocked_by", "blocks",
)  # fmt: skip


def as_table(document: Mapping[str, Any], by: Grouping, width: int | None = None) -> str:
    """Return a table for people: who answered, the totals, a choice of columns, and below it what is wrong.

    `width` in terminal cells: columns are left out until the rows fit. Where they still do not, call sites
    lose the left of their paths, and then a row is cut. None: no limit.

    The gravest rows come first, then those for which most wait, then the others; the same by name as in JSON.
    """
    chosen, rows = _TABLE[by], sorted(document["rows"], key=_urgency)
    if any(row.get("left_out") for row in rows):
        chosen = (*chosen, _LEFT_OUT)
    columns = [(column, _lines_of(column, rows)) for column in chosen]
    if width is not None:
        _fit(columns, rows, width)
    lines = [_cut("  ".join(cells), width) for cells in zip(*(lines for _, lines in columns), strict=True)]
    reasons = _reasons(rows, chosen)
    return "".join(f"{line.rstrip()}\n" for line in (*_head(document), "", *lines, *reasons))


def _urgency(row: Mapping[str, Any]) -> tuple[int, int]:
    """Return what puts a row before others that are less grave."""
    from connmon.protocol.verdicts import rank  # which writes ages as they are written here

    return (-rank(row.get("verdict")), -(row.get("waiting") or row.get("waiting_now") or 0))


#: Terminal cells that a call site keeps, whatever else there is.
_LEAST: Final = 12
#: Columns from this rank on go before a path loses its left part.
_DETAIL: Final = 3


def _fit(columns: list[tuple[_Column, list[str]]], rows: Iterable[Mapping[str, Any]], width: int) -> None:
    """Leave out columns and shorten call sites until the rows fit, as far as that goes.

    A call site keeps its file and line, and as much of its path as tells it from others.
    """
    sites = [row.get(_SITE.key) for row in rows] if any(each[0].key == _SITE.key for each in columns) else []
    spare = 0

    def over() -> int:
        return sum(_width(lines[0]) + 2 for _, lines in columns) - 2 - width

    for lowest in (_DETAIL, 1):
        while over() > spare:
            least = max(reversed(columns), key=lambda entry: entry[0].rank)
            if least[0].rank < lowest:
                break
            columns.remove(least)
        if sites:
            natural = next(_width(lines[0]) for column, lines in columns if column.key == _SITE.key)
            spare = max(0, natural - max(_width(_SITE.heading), _enough(sites)))
    if sites and over() > 0:
        number = next(number for number, (column, _) in enumerate(columns) if column.key == _SITE.key)
        size = max(_LEAST, _width(columns[number][1][0]) - over())
        short = [{_SITE.key: shortened(site, size)} for site in sites]
        columns[number] = (_SITE, _lines_of(_SITE, short))


def _enough(sites: Iterable[str | None]) -> int:
    """Return in how many characters each call site has its file and line, and differs from the others."""
    known = {site for site in sites if site is not None}
    places = {site: re.match(r"(.*?:\d+)(?= |$)", site) for site in known}
    ends = [place[1].rpartition("/")[2] if place else site for site, place in places.items()]
    size = min(max(map(len, known), default=0), max(map(len, ends), default=0) + len("..."))
    while len({shortened(site, size) for site in known}) < len(known):
        size += 1
    return size


def _reasons(rows: Iterable[Mapping[str, Any]], columns: Iterable[_Column]) -> list[str]:
    """Return a line for each row with a reason: what identifies it, the verdict, and the reason in full."""
    names = [
        column.key
        for column in columns
        if column.rank == 0 and column.key in (*_LEFT, "pid", "database_port")
    ]
    lines = []
    for row in rows:
        if row.get("verdict") is not None and row.get("verdict_reason") is not None:
            who = " ".join(printable(str(row[key])) for key in names if row[key] is not None)
            lines.append(f"{who}  {row['verdict']}: {printable(row['verdict_reason'])}")
    return ["", *lines] if lines else []


def printed(document: Mapping[str, Any], by: Grouping, form: str, width: int | None = None) -> str:
    """Return the document as `form` says: table, json or csv."""
    if form == "json":
        return as_json(document)
    return as_csv(document, by) if form == "csv" else as_table(document, by, width)


def as_json_line(document: Mapping[str, Any]) -> str:
    """Return the document as JSON in one line, in ASCII, with its line end."""
    text = msgspec.json.encode(document).decode()
    return _NOT_ASCII.sub(lambda match: "".join(map(_escape, match[0])), text) + "\n"


def _head(document: Mapping[str, Any]) -> tuple[str, str]:
    """Who answered, and the totals."""
    stale, leader = short_age(document["stale_seconds"]), document["leader"]
    quorum = f"quorum yes  stale {stale}" if document["quorum"] else f"NO QUORUM, stands still for {stale}"
    totals = {key: _cell(key, value) for key, value in document["totals"].items()}
    parts = [f"{key} {totals[key]}" for key in ("hosts", "programs", "processes", "capacity")]
    parts += [
        f"{key.replace('_', ' ')} {totals[key]} (max {totals['max_' + key]})"
        for key in ("connections", "checked_out", "waiting")
    ]
    parts.append(f"checkouts/s {totals['checkouts_per_second']}")
    if verdicts := document["totals"].get("verdicts"):
        parts.append(", ".join(f"{word} {count}" for word, count in verdicts.items()))
    if document["totals"].get("left_out"):
        parts.append(f"LEFT OUT by limits {totals['left_out']}")
    names = f"service {document['service']}  node {document['node']}  leader {leader or '-'}"
    return f"{printable(names)}  {quorum}", "  ".join(parts)


_STATUS: Final = tuple(
    _Column(key, key.removesuffix("_seconds").upper(), 0)
    for key in (
        "node", "address", "role", "term", "applied", "lag", "stale_seconds",
        "processes", "consoles", "uptime_seconds", "version", "problems",
    )
)  # fmt: skip


def status_table(document: Mapping[str, Any]) -> str:
    """Return the document of cluster-status as a table for people; a node's problems come last, whole."""
    quorum = "yes" if document["quorum"] else "NO"
    names = f"service {document['service']}  quorum {quorum}  leader {document['leader'] or '-'}"
    head = f"{document['health'].upper()}  {printable(names)}  term {_cell('term', document['term'])}"
    rows = [{**row, "problems": "; ".join(row["problems"]) or None} for row in document["nodes"]]
    columns = [_lines_of(column, rows) for column in _STATUS]
    lines = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    return "".join(f"{line.rstrip()}\n" for line in (head, "", *lines))


def _lines_of(column: _Column, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The heading and all cells of a column, padded to one width."""
    cells = [column.heading, *(_cell(column.key, row.get(column.key)) for row in rows)]
    widths = [_width(cell) for cell in cells]
    size = max(widths)
    if column.key in _LEFT:
        return [cell + " " * (size - width) for cell, width in zip(cells, widths, strict=True)]
    return [" " * (size - width) + cell for cell, width in zip(cells, widths, strict=True)]


def aligned(headings: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return lines of these columns (key: heading), cells as in all tables; for smaller tables."""
    rows = list(rows)
    columns = [_lines_of(_Column(key, heading, 0), rows) for key, heading in headings.items()]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "usual_held_seconds":
        return short_duration(value)
    if key.endswith("_seconds") or key == "hold_seconds_total":
        return short_age(value)
    if key == "rss_bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.1f}" if isinstance(value, float) else printable(str(value))


def _width(text: str) -> int:
    """Terminal cells of a printable text."""
    return len(text) if text.isascii() else wcswidth(text)


def _cut(text: str, width: int | None) -> str:
    """Return as much of the text as `width` cells hold."""
    if width is None or _width(text) <= width:
        return text
    end = min(len(text), width)
    while _width(text[:end]) > width:
        end -= 1
    return text[:end]

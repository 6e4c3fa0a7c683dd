"""Verdicts and call sites in what `connmon snapshot` and the batch output print."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from wcwidth import wcswidth

from connmon.protocol.document import KEYS, Document, JsonCallSite, JsonDatabase, cells
from connmon.protocol.rows import DatabaseRow, HostRow, ProgramRow
from connmon.protocol.text import shortened
from connmon.protocol.values import Grouping, VerdictWord
from connmon.reader.cells import cell_width, mean, other_places, percent, shortened_places
from connmon.reader.formats import as_csv, as_json, as_table
from connmon.reader.server_maxima import judged_by
from tests.protocol.test_snapshot import FIGURES_1, connection, pool, process, typed_document
from tests.support.json_rows import typed

LEAK = {"verdict": "LEAK", "verdict_reason": "a connection has been held for 41s by a thread that has ended"}
WELL = {"verdict": None, "verdict_reason": None}
SITES = ("nova/db/api.py:412 instance_get", "/usr/lib/python3/dist-packages/nova/compute/manager.py:1234 run")


def document(by: Grouping, *rows: dict[str, Any], verdicts: dict[VerdictWord, int] | None = None) -> Document:
    """Return a document of a node that judges: the first row of the grouping, with these cells each."""
    all_rows = (
        ProgramRow("ctl1", "nova-api", "connected", FIGURES_1), HostRow("ctl1", 2, "connected", FIGURES_1),
        DatabaseRow("mysql", "db", 3306, "nova", 2, "connected", FIGURES_1),
        process(), pool(), connection(),
    )  # fmt: skip
    made = typed_document(by, *all_rows)
    totals = made.head.totals
    if verdicts is not None:
        totals = structs.replace(totals, verdicts=verdicts)
    first = cells(made.rows[0])
    return Document(
        by, structs.replace(made.head, totals=totals), [typed(by, {**first, **row}) for row in rows]
    )


def site(call_site: str, **changes: Any) -> JsonCallSite:
    given = {
        "host": "ctl1", "program": "nova-api", "call_site": call_site, "processes": 2, "held_now": 3,
        "in_database_now": 1, "waiting_now": 4, "holds_total": 881, "hold_seconds_total": 3921.5,
        "share": 0.7134, "mean_held": 3.123, "database_share": 0.08, "holds_per_second": 41.2,
        "mean_hold_seconds": 0.0758, "mean_waiting_caused": 1.25,
        "where_shares": {"requests": 0.6, "own code": 0.316, "database": 0.08, "boto3": 0.004},
        "longest_held_seconds": 41.0, "usual_held_seconds": 0.0031, "estimated": False, **WELL,
    }  # fmt: skip
    row: JsonCallSite = typed("site", {**given, **changes})
    return row


def test_the_gravest_rows_come_first() -> None:
    """The table sorts rows by verdict, waits and name; JSON and CSV by name alone."""
    rows = [
        {"program": name, "waiting": waiting, "verdict": verdict, "verdict_reason": verdict and "why"}
        for name, waiting, verdict in (
            ("a", 0, None), ("b", 2, None), ("c", 0, "LOST"), ("d", None, None), ("e", 3, "SATURATED"),
            ("f", 9, "SATURATED"), ("g", 0, "LEAK"), ("h", 2, None),
        )
    ]  # fmt: skip
    made = document("program", *rows)
    lines = as_table(made).splitlines()
    assert [line.split()[1] for line in lines[4:12]] == [*"gfecbhad"]
    assert [line.split()[1] for line in lines[13:]] == [*"gfec"]
    assert [line.split(",")[1] for line in as_csv(made).splitlines()[1:]] == [*"abcdefgh"]
    assert [row["program"] for row in json.loads(as_json(made.flat()))["rows"]] == [*"abcdefgh"]
    assert "b.py:1 f" in sites(site("a.py:1 f", waiting_now=0), site("b.py:1 f", waiting_now=5))[1]
    by_held = [("a.py:1 f", 0.1), ("b.py:1 f", None), ("c.py:1 f", 0.7), ("d.py:1 f", 0.0)]
    lines = sites(*(site(place, mean_held=held) for place, held in by_held))[1:]
    assert [line.split()[2][0] for line in lines] == [*"cabd"]
    held = {"verdict": "BLOCKED", "verdict_reason": None, "holder": "h"}
    lines = as_table(document("connection", {**WELL, "holder": "g"}, held)).splitlines()
    assert "BLOCKED" in lines[4]


@pytest.mark.parametrize("by", ["program", "host", "database", "process", "pool"])
def test_the_table_has_the_verdict_and_below_it_the_reason(by: Grouping) -> None:
    """Each row has its verdict in a column, also in 80 cells, and its reason in full below."""
    for width in (None, 80):
        lines = as_table(document(by, LEAK, WELL), width).splitlines()
        reasons = lines[7:]
        (reason,) = reasons
        assert reason.endswith("  LEAK: a connection has been held for 41s by a thread that has ended")
        if by == "pool" and width:  # the names of pools leave no room for more
            continue
        assert "VERDICT" in lines[3].split()
        assert " LEAK " in lines[4] + " "
        assert " LEAK" not in lines[5]


def test_the_reason_names_its_row() -> None:
    """A reason begins with its row's name: program, process and pool as in the table."""
    (line,) = as_table(document("pool", LEAK)).splitlines()[6:]
    assert line.startswith("ctl1 nova-api 42 mysql+pymysql://root@10.0.0.9/nova  LEAK: ")
    (line,) = as_table(document("database", LEAK)).splitlines()[6:]
    assert line.startswith("mysql db 3306 nova  LEAK: ")


def test_nothing_is_wrong() -> None:
    """Without verdicts no line follows the table, and the totals have none."""
    lines = as_table(document("program", WELL, verdicts={})).splitlines()
    assert len(lines) == 5
    assert "LEAK" not in "".join(lines)


def test_the_totals_count_verdicts() -> None:
    """The totals count the programs of the fleet with each verdict, in every grouping."""
    groupings: tuple[Grouping, ...] = ("program", "connection")
    for by in groupings:
        counted = document(by, {"verdict": None}, verdicts={"LEAK": 1, "SATURATED": 2})
        assert as_table(counted).splitlines()[1].endswith("  LEAK 1, SATURATED 2")


def test_hostile_reasons() -> None:
    """A reason quotes names of applications; no control character of them reaches the terminal."""
    evil = {"verdict": "LEAK", "verdict_reason": "a\n\x1b[2J\u202eb", "program": "p\n\x1b[2Jq"}
    table = as_table(document("program", evil))
    assert all(line.isprintable() for line in table.splitlines())
    assert len(table.splitlines()) == 7
    assert as_json(document("program", evil).flat()).isascii()


def test_connections_and_where_their_holders_are() -> None:
    """A connection's row has its verdict and where its holder is, and its call site at any width."""
    held = {"verdict": "BLOCKED", "holder_in": "database", "call_site": SITES[0]}
    lines = as_table(document("connection", held)).splitlines()
    assert "HOLDER IN" in lines[3]
    assert "BLOCKED" in lines[4] and "database" in lines[4]
    for width in (80, 100, 120):
        line = as_table(document("connection", held), width).splitlines()[4]
        assert "api.py:412" in line


# --- By call site -------------------------------------------------------------------------


def sites(*rows: JsonCallSite, width: int | None = None) -> list[str]:
    made = document("program", WELL)
    return as_table(Document("site", made.head, rows), width).splitlines()[3:]


def test_by_site() -> None:
    """A row by call site has its share, what it holds, where that goes, and who waits for it."""
    head, line = sites(site(SITES[0], verdict="BLOCKED"))
    assert re.split(r" {2,}", head) == [
        "HOST", "PROGRAM", "CALL SITE", "VERDICT", "SHARE", "HELD", "IN DB", "WHAT ELSE", "HOLDS/S",
        "MEAN HOLD", "WAITING CAUSED", "HELD NOW", "WAITING NOW", "IN DB NOW", "LONGEST HELD", "USUAL",
        "HOLDS", "HELD IN ALL", "PROCESSES",
    ]  # fmt: skip
    assert re.split(r" {2,}", line) == [
        "ctl1", "nova-api", SITES[0], "BLOCKED", "71 %", "3.12", "8 %", "requests 60 %, own code 32 %",
        "41.2", "76ms", "1.25", "3", "4", "1", "41s", "3ms", "881", "1h05m", "2",
    ]  # fmt: skip


def test_an_estimated_row_is_marked() -> None:
    """An estimated row has "~" before its share and its holds, and a line below the table says why."""
    _, line, empty, legend = sites(site(SITES[0], estimated=True))
    assert "~71 %" in line and "~41.2" in line and "~881" in line and line.count("~") == 3
    assert (empty, legend[:2]) == ("", "~ ")
    assert "estimated" in legend
    assert not any("~" in line for line in sites(site(SITES[0])))


def test_an_unknown_profile_is_dashes() -> None:
    """A node of an earlier version has no profile: its cells are dashes, and a mark stands before no dash."""
    unknown = dict.fromkeys(
        ("share", "mean_held", "database_share", "holds_per_second", "mean_hold_seconds", "where_shares",
         "mean_waiting_caused")
    )  # fmt: skip
    line = sites(site(SITES[0], estimated=True, **unknown))[1]
    assert re.split(r" {2,}", line)[3:11] == ["-"] * 8
    assert "~881" in line and "~-" not in line
    # All in the database is known: nothing else.
    (_, line) = sites(site(SITES[0], where_shares={"database": 1.0}, database_share=1.0))
    assert re.split(r" {2,}", line)[6:8] == ["100 %", "41.2"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_a_call_site_is_never_cut_before_a_number(width: int) -> None:
    """Details go first, then a path loses its left part, then numbers go; a file and its line never do."""
    head, *lines = sites(*map(site, SITES), width=width)
    for line, number in zip(lines, ("412", "1234"), strict=True):
        assert wcswidth(line) <= width
        assert f".py:{number}" in line
    if width >= 80:
        assert {"VERDICT", "SHARE", "HELD", "IN", "WHAT"} <= set(head.split())
        assert all("71 %" in line and "3.12" in line and "requests 60 %" in line for line in lines)
    if width == 120:
        assert "nova/compute/manager.py:1234" in lines[1]


def test_places_give_way_before_a_number() -> None:
    """The last places go where there is no room, then the name of the first is cut, never its share."""
    shares = {"own code": 0.5, "x" * 64: 0.3, "包裹" * 8: 0.2}
    for width in range(80, 400, 7):
        head, line = sites(site("a.py:1 f", where_shares=shares), width=width)
        assert wcswidth(line) <= width and "own code 50 %" in line
        assert {"HOLDS/S", "CAUSED"} <= set(head.split()) or width < 120
    long = {"包裹" * 8 + "\x1b[2J": 0.5}
    cells_ = [sites(site("a.py:1 f", where_shares=long), width=width)[1] for width in (80, 400)]
    assert re.search(r"  (包裹)+包?~ 50 %", cells_[0]) and "包裹?[2J 50 %" in cells_[1]


@given(st.dictionaries(st.text(max_size=64), st.floats(0.0, 1.0)), st.integers(1, 200))
def test_places_fit(shares: dict[str, float], room: int) -> None:
    """Whatever the labels are, they are printable and take at most their room."""
    text = shortened_places(other_places(shares), room)
    assert text.isprintable() and cell_width(text) <= room


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (8e-6, "<0.01"), (0.005, "0.01"), (0.42, "0.42"), (9.994, "9.99"),
     (36.24, "36.2"), (99.96, "100"), (1234.0, "1234")],
)  # fmt: skip
def test_means(value: float | None, text: str) -> None:
    """A mean has three figures; one that is not 0 is never 0."""
    assert mean(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (0.0, "0 %"), (4e-5, "<1 %"), (0.006, "1 %"), (0.7134, "71 %"), (1.0, "100 %")],
)
def test_shares(share: float | None, text: str) -> None:
    """A share is a whole percentage; one that is not 0 is never 0."""
    assert percent(share) == text


def test_rows_never_look_the_same() -> None:
    """Paths that differ on the left keep as much as distinguishes them."""
    same = [f"{package}/db/sqlalchemy/api.py:412 get" for package in ("nova", "cinder", "glance/nova")]
    for width in (60, 80, 100):
        lines = sites(*map(site, same), width=width)[1:]
        assert len({line.split("  ")[2] for line in lines}) == 3


@given(st.text(min_size=1), st.integers(1, 80))
def test_shortened(text: str, size: int) -> None:
    """Any call site is shortened to the size; one that fits stays unchanged."""
    short = shortened(text, size)
    assert short is not None
    assert len(short) <= size
    if len(text) <= size:
        assert short == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (80, "/usr/lib/nova/api.py:412 get_instance"),
        (30, "/usr/lib/nova/api.py:412 get_i"),
        (24, "/usr/lib/nova/api.py:412"),
        (15, "...a/api.py:412"),
    ],
)
def test_what_a_call_site_loses_first(size: int, text: str) -> None:
    """First the function goes, then the path from its left."""
    assert shortened("/usr/lib/nova/api.py:412 get_instance", size) == text


# --- OVERCOMMIT by a maximum that the reader has ------------------------------------------


def databases(**changes: Any) -> list[JsonDatabase]:
    row = {
        "dialect": "mysql",
        "database_host": "db",
        "database_port": 3306,
        "database": "nova",
        "capacity": 240,
    }
    return [typed("database", {**row, "state": "connected", **WELL, **changes})]


def test_overcommit_of_the_readers_own_maximum() -> None:
    """With --server-max a row is OVERCOMMIT, though the node does not know that maximum."""
    (row,) = judged_by(databases(), {("db", 3306): 100})
    assert row.verdict == "OVERCOMMIT" and row.verdict_reason is not None
    assert "240" in row.verdict_reason and "100" in row.verdict_reason
    assert (row.server, row.server_max, row.server_capacity) == ("db:3306", 100, 240)
    assert cells(row).keys() == set(KEYS["database"])  # what only the reader knows is no part of the contract
    (row,) = judged_by(databases(), {("db", 3306): 300})
    assert row.verdict is None


def test_overcommit_adds_to_what_the_node_says() -> None:
    """A graver verdict stays in front, and OVERCOMMIT by the node is not repeated."""
    (row,) = judged_by(databases(**LEAK), {("db", None): 100})
    assert row.verdict == "LEAK" and row.verdict_reason is not None
    assert row.verdict_reason.startswith(LEAK["verdict_reason"])
    assert "; OVERCOMMIT: pools may open 240" in row.verdict_reason
    (said,) = databases(verdict="OVERCOMMIT", verdict_reason="as the node has it")
    (row,) = judged_by([said], {("db", None): 100})
    assert cells(row) == cells(said)

"""Snapshots: a reader follows a node's answers, returns typed rows, and prints them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth

from connmon.protocol.document import (
    FIGURES,
    KEYS,
    PRESENT,
    Document,
    JsonConnection,
    JsonHost,
    JsonProgram,
    JsonRow,
    head_cells,
)
from connmon.protocol.queries import Query
from connmon.protocol.reports import HoldProfile, PoolInfo, Process, Usage
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    Figures,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Quantiles,
    Row,
    RowKey,
    Rows,
    SiteRow,
    Verdict,
)
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.text import printable, short_age, short_duration
from connmon.protocol.values import GROUPINGS, Gauges, Grouping, RowState, Totals
from connmon.reader.formats import as_csv, as_json, as_table
from tests.support.json_rows import site_row

FIGURES_1 = Figures(
    processes=8,
    lost_processes=0,
    gauges=Gauges(pools=16, capacity=240, connections=78, checked_out=31, overflow=6, detached=2, waiting=5),
    totals=Totals(
        connects=91,
        closes=13,
        checkouts=88213,
        checkins=88182,
        invalidations=1,
        timeouts=3,
        connect_errors=4,
        wait_ms=5000,
        hold_ms=4321,
        connect_ms=9001,
    ),
    max_processes=9,
    max_connections=80,
    max_checked_out=47,
    max_waiting=10,
    longest_wait=1.5,
    waiting_since=86.8,
    held_since=58.2,
    checkouts_per_second=310.23456,
    reported=99.2,
    waits=Quantiles(0.0001234567, 3.5, 12.0),
    holds=Quantiles(0.002, 0.03, 0.04),
)
#: No maxima, nobody waits, nothing held, no report.
FIGURES_2_REST: Any = (0, 0, 0, 0, 0.0, None, None, 0.0, None)
FIGURES_2 = Figures(0, 0, Gauges(), Totals(), *FIGURES_2_REST)
INFO = PoolInfo(
    "mysql+pymysql://root@10.0.0.9/nova", "mysql", "10.0.0.9", 3306, "nova", "QueuePool", 5, 10, 30.0
)
SHOWN_1 = {
    "processes": 8,
    "max_processes": 9,
    "pools": 16,
    "capacity": 240,
    "connections": 78,
    "max_connections": 80,
    "checked_out": 31,
    "max_checked_out": 47,
    "idle": 45,
    "overflow": 6,
    "detached": 2,
    "waiting": 5,
    "max_waiting": 10,
    "longest_wait_seconds": 12.4,
    "longest_held_seconds": 41.0,
    "connects_total": 91,
    "closes_total": 13,
    "checkouts_total": 88213,
    "checkins_total": 88182,
    "invalidations_total": 1,
    "timeouts_total": 3,
    "connect_errors_total": 4,
    "checkouts_per_second": 310.235,
    "last_report_seconds": 0.8,
    "wait_p50_seconds": 0.000123457,
    "wait_p95_seconds": 3.5,
    "wait_p99_seconds": 12.0,
    "held_p50_seconds": 0.002,
    "held_p95_seconds": 0.03,
    "held_p99_seconds": 0.04,
    "connect_p50_seconds": None,
    "connect_p95_seconds": None,
    "connect_p99_seconds": None,
    "left_out": None,
    "recent_timeouts": 0,
}
WELL = {"verdict": None, "verdict_reason": None}
SHOWN_PROCESS = {
    "host": "ctl1",
    "program": "nova-api",
    "pid": 42,
    "instance": "i1",
    "ppid": 1,
    "node": "node1",
    "user": "nova",
    "command": "nova-api --x",
    "started_seconds": 150.5,
    "container": "9f86d081884c",
    "cpu_percent": 1.235,
    "rss_bytes": 2**27,
    "threads": 3,
    "open_files": 9,
}
SHOWN_POOL = {
    "pool": "mysql+pymysql://root@10.0.0.9/nova",
    "pool_class": "QueuePool",
    "pool_size": 5,
    "max_overflow": 10,
    "timeout_seconds": 30.0,
    "dialect": "mysql",
    "database_host": "10.0.0.9",
    "database_port": 3306,
    "database": "nova",
    "pooler": None,
}
OF_PROCESS = {key: value for key, value in SHOWN_1.items() if key not in ("processes", "max_processes")}
OF_POOL = {key: value for key, value in OF_PROCESS.items() if key != "pools"}


def process(
    instance: str = "i1",
    host: str = "ctl1",
    program: str = "nova-api",
    pid: int = 42,
    state: RowState = "connected",
    figures: Figures = FIGURES_1,
) -> ProcessRow:
    who = Process(host, program, pid, 1, "nova", "nova-api --x", 3.0, "9f86d081884c")
    return ProcessRow(instance, "node1", who, -50.5, Usage(1.23456, 2**27, 3, 9), state, figures)


def pool(instance: str = "i1", number: int = 1, state: RowState = "connected") -> PoolRow:
    return PoolRow(instance, number, INFO, state, FIGURES_1)


def connection(
    instance: str = "i1", number: int = 1, of: int = 1, held: float | None = 57.2
) -> ConnectionRow:
    stack = ("api.py:412 boot", "wsgi.py:3 call")
    state: Any = "idle" if held is None else "checked_out"
    return ConnectionRow(
        instance, number, of, 884213, state, 40.0, held, "Thread-1", "api.py:412 boot", stack
    )


def answer(*rows: Row, **changes: Any) -> Rows:
    header: dict[str, Any] = {
        "service": "default",
        "node": "node1",
        "leader": "node1",
        "quorum": True,
        "stale": 0.20049,
        "epoch": "e1",
        "version": 7,
        "clock": 99.79951,
        "complete": True,
        "hosts": 1,
        "programs": 2,
        "totals": FIGURES_1,
    }
    return Rows(**{**header, "rows": rows, **changes})


def typed_document(by: Grouping, *rows: Row, **changes: Any) -> Document:
    snapshot = Snapshot(by)
    snapshot.apply(answer(*rows, **changes))
    return snapshot.typed_document()


def shown(by: Grouping, *rows: Row, **changes: Any) -> dict[str, Any]:
    return typed_document(by, *rows, **changes).flat()


def keys(snapshot: Snapshot) -> list[RowKey]:
    return [key for key, _ in snapshot.typed_rows()]


# --- The document -------------------------------------------------------------------------


def test_program_document() -> None:
    """The document by program is the contract's, keys in its order, ages by the replica's clock."""
    document = shown("program", ProgramRow("ctl1", "nova-api", "connected", FIGURES_1))
    row = {"host": "ctl1", "program": "nova-api", "state": "connected", **SHOWN_1, **WELL}
    assert document == {
        "service": "default",
        "node": "node1",
        "leader": "node1",
        "quorum": True,
        "stale_seconds": 0.2,
        "totals": {"hosts": 1, "programs": 2, **SHOWN_1, "verdicts": {}},
        "rows": [row],
    }
    assert list(document) == ["service", "node", "leader", "quorum", "stale_seconds", "totals", "rows"]
    assert list(document["rows"][0]) == list(row)
    assert list(document["totals"]) == ["hosts", "programs", *SHOWN_1, "verdicts"]


@pytest.mark.parametrize(
    ("by", "rows", "expected"),
    [
        (
            "host",
            [HostRow("ctl1", 2, "connected", FIGURES_1)],
            {"host": "ctl1", "programs": 2, "state": "connected", **SHOWN_1, **WELL},
        ),
        (
            "database",
            [DatabaseRow("sqlite", None, None, "/x.db", 2, "gone", FIGURES_1)],
            {
                "dialect": "sqlite",
                "database_host": None,
                "database_port": None,
                "database": "/x.db",
                "programs": 2,
                "state": "gone",
                **SHOWN_1,
                **WELL,
            },
        ),
        ("process", [process()], {**SHOWN_PROCESS, "state": "connected", **OF_PROCESS, **WELL}),
        (
            "pool",
            [process(), pool()],
            {**SHOWN_PROCESS, **SHOWN_POOL, "state": "connected", **OF_POOL, **WELL},
        ),
        (
            "connection",
            [process(), pool(), connection()],
            {
                **SHOWN_PROCESS,
                **SHOWN_POOL,
                "connection": 1,
                "server_id": 884213,
                "state": "checked_out",
                "age_seconds": 60.0,
                "held_seconds": 42.0,
                "holder": "Thread-1",
                "call_site": "api.py:412 boot",
                "stack": ["api.py:412 boot", "wsgi.py:3 call"],
                "holder_in": None,
                "holder_site": None,
                "verdict": None,
            },
        ),
        (
            "site",
            [
                site_row(
                    processes=2,
                    usual=0.0123456789,
                    estimated=True,
                    verdict="LEAK",
                    reason="a connection has been held for 31s: give it back",
                    profile=HoldProfile(
                        holds=20,
                        held_ms=54_500,
                        waited_ms=7_000,
                        caused_ms=11_000,
                        where={"database": 10_000, "requests": 40_000},
                    ),
                    recent=HoldProfile(
                        holds=10,
                        held_ms=30_000,
                        waited_ms=5_000,
                        caused_ms=15_000,
                        where={"database": 5_000, "requests": 20_000},
                    ),
                    recent_seconds=100.0,
                    share=0.25,
                    stack=("api.py:420 call", "api.py:412 boot"),
                )
            ],
            {
                "host": "ctl1",
                "program": "nova-api",
                "call_site": "api.py:412 boot",
                "processes": 2,
                "held_now": 3,
                "in_database_now": 1,
                "waiting_now": 4,
                "holds_total": 20,
                "hold_seconds_total": 54.5,
                "database_seconds_total": 10.0,
                "share": 0.25,
                "mean_held": 0.3,
                "database_share": 0.2,
                "holds_per_second": 0.1,
                "mean_hold_seconds": 3.0,
                "mean_waiting": 0.05,
                "mean_waiting_caused": 0.15,
                "where_shares": {"requests": 0.8, "database": 0.2},
                "where_seconds_total": {"requests": 40.0, "database": 10.0},
                "waited_seconds_total": 7.0,
                "waiting_caused_seconds_total": 11.0,
                "longest_held_seconds": 31.0,
                "usual_held_seconds": 0.012345679,
                "estimated": True,
                "verdict": "LEAK",
                "verdict_reason": "a connection has been held for 31s: give it back",
                "stack": ["api.py:420 call", "api.py:412 boot"],
            },
        ),
    ],
)
def test_other_groupings(by: Grouping, rows: list[Row], expected: dict[str, Any]) -> None:
    """Each grouping has its identifying keys first, then the figures that make sense for it."""
    (row,) = shown(by, *rows)["rows"]
    assert row == expected
    assert list(row) == list(expected) == list(KEYS[by])


def test_a_call_site_without_a_profile_is_not_known_to_hold_nothing() -> None:
    """A node of an earlier version sends no profile: what follows from it is null or empty, never 0."""
    (cells,) = shown("site", site_row())["rows"]
    assert (cells["holds_total"], cells["hold_seconds_total"]) == (17, 23.456)
    assert cells["where_shares"] == cells["where_seconds_total"] == {}
    unknown = {
        "database_seconds_total", "share", "mean_held", "database_share", "holds_per_second",
        "mean_hold_seconds", "mean_waiting", "mean_waiting_caused", "waited_seconds_total",
        "waiting_caused_seconds_total",
    }  # fmt: skip
    assert {key for key, value in cells.items() if value is None} == unknown | {"verdict", "verdict_reason"}
    # A row of that version on the wire has no place for a profile at all.
    wire = msgspec.json.decode(msgspec.json.encode(site_row()))
    row = msgspec.convert(wire[:14], SiteRow)
    assert shown("site", row)["rows"] == [cells]


def test_a_call_site_that_nobody_has_looked_at() -> None:
    """Without looks the time is known, and where it went is not: null and empty, not 0 % in the database."""
    idle = HoldProfile(held_ms=30_000, where={"database": 0})
    (cells,) = shown("site", site_row(profile=idle, recent=idle, recent_seconds=60.0))["rows"]
    assert (cells["mean_held"], cells["holds_per_second"], cells["mean_hold_seconds"]) == (0.5, 0.0, None)
    assert (cells["database_share"], cells["database_seconds_total"]) == (None, None)
    assert cells["where_shares"] == cells["where_seconds_total"] == {}
    # The first moments of a window have no length: nothing follows from them.
    (cells,) = shown("site", site_row(profile=idle, recent=idle))["rows"]
    assert (cells["mean_held"], cells["holds_per_second"]) == (None, None)


@given(
    st.integers(1, 10**9),
    st.floats(1.0, 130.0),
    st.dictionaries(st.sampled_from(["database", "requests", "own code", "(other)"]), st.integers(0, 10**9)),
)
def test_what_was_held_is_never_a_mean_of_0(held_ms: int, seconds: float, where: dict[str, int]) -> None:
    """Means and shares are right to four figures, however small; shares of places sum to 1."""
    profile = HoldProfile(holds=1, held_ms=held_ms, waited_ms=held_ms, caused_ms=held_ms, where=where)
    share = held_ms / 10**9
    (cells,) = shown("site", site_row(profile=profile, recent=profile, recent_seconds=seconds, share=share))[
        "rows"
    ]
    mean = pytest.approx(held_ms / 1000 / seconds, rel=1e-3)
    assert cells["mean_held"] == cells["mean_waiting"] == cells["mean_waiting_caused"] == mean
    assert cells["holds_per_second"] == pytest.approx(1 / seconds, rel=1e-3)
    assert cells["share"] == pytest.approx(share, rel=1e-3) and cells["share"] > 0.0
    shares = cells["where_shares"]
    assert list(shares) == sorted(shares, key=lambda label: (-where[label], label))
    assert set(shares) == {label for label, ms in where.items() if ms} and 0.0 not in shares.values()
    assert not shares or sum(shares.values()) == pytest.approx(1.0, abs=1e-3)
    assert not shares or cells["database_share"] == shares.get("database", 0.0)


def test_call_sites_of_which_nothing_has_changed_stay() -> None:
    """A node sends all call sites each time: those that are the same are not built again."""
    snapshot = Snapshot("site")
    names = ("a.py:1 f", "b.py:1 f", "c.py:1 f")
    sites = [site_row(call_site=name) for name in names]

    def answered(version: int, *rows: Row) -> dict[Any, Any]:
        snapshot.apply(answer(rows[0], version=version, more=True))
        snapshot.apply(answer(*rows[1:], version=version))
        return {key[3]: row for key, row in snapshot.typed_rows()}

    before = answered(1, *sites)
    more = msgspec.structs.replace(sites[1], holds=99)
    after = answered(2, sites[0], more, msgspec.structs.replace(sites[2], call_site="d.py:1 f"))
    assert list(before) == [*names] and list(after) == [names[0], names[1], "d.py:1 f"]
    assert after[names[0]] is before[names[0]] and after[names[1]].holds_total == 99
    again = answered(3, *sites)
    assert again == before and again[names[0]] is before[names[0]]
    # Several answers before the rows are read, one of them without a row that comes back.
    snapshot.apply(answer(sites[0], version=4))
    assert answered(5, *sites) == before
    assert answered(6, sites[0]) == {names[0]: before[names[0]]}


def test_the_gravest_verdict_and_the_reasons_of_all() -> None:
    """A row has its gravest verdict; its reason has all reasons, each but the first with its word."""
    figures = msgspec.structs.replace(
        FIGURES_1,
        verdicts=(Verdict("LEAK", "held for 31s"), Verdict("TIMEOUTS", "2 gave up")),
        recent_timeouts=2,
    )
    kinds: tuple[tuple[Grouping, tuple[Row, ...]], ...] = (
        ("program", (ProgramRow("ctl1", "nova-api", "connected", figures),)),
        ("process", (process(figures=figures),)),
        ("pool", (process(), msgspec.structs.replace(pool(), figures=figures))),
    )
    for by, rows in kinds:
        (cells,) = shown(by, *rows)["rows"]
        assert (cells["verdict"], cells["recent_timeouts"]) == ("LEAK", 2)
        assert cells["verdict_reason"] == "held for 31s; TIMEOUTS: 2 gave up"


def test_for_how_long_nothing_was_heard_goes_on() -> None:
    """The node says that a process is lost; the reader says for how long."""
    figures = msgspec.structs.replace(FIGURES_1, verdicts=(Verdict("LOST", "the process is stopped"),))
    row = process(state="lost", figures=figures)
    snapshot = Snapshot("process")
    for clock, ago in ((100.0, "0.8s"), (112.0, "13s")):
        snapshot.apply(answer(row, clock=clock, stale=0.0))
        (cells,) = snapshot.document()["rows"]
        assert cells["verdict"] == "LOST"
        assert cells["verdict_reason"] == f"nothing heard for {ago}: the process is stopped"
        assert cells["recent_timeouts"] is None


def test_the_totals_say_how_many_programs_have_each_verdict() -> None:
    """Each grouping has the counts of the whole fleet."""
    document = shown("host", verdicts=(("LEAK", 1), ("TIMEOUTS", 12)))
    assert document["totals"]["verdicts"] == {"LEAK": 1, "TIMEOUTS": 12}


def test_keys_cover_the_model() -> None:
    """Every grouping has its keys, and each figure of the present is a figure."""
    assert set(KEYS) == set(GROUPINGS) == set(get_args(Grouping))
    assert set(PRESENT) < set(FIGURES)
    assert tuple(SHOWN_1) == FIGURES


def test_what_a_limit_has_left_out() -> None:
    """Rows and totals count what a limit leaves out; null for none, and for a lost process."""
    figures = msgspec.structs.replace(FIGURES_1, left_out=7)
    document = shown("program", ProgramRow("ctl1", "nova-api", "connected", figures), totals=figures)
    assert document["totals"]["left_out"] == 7
    assert document["rows"][0]["left_out"] == 7
    kinds: tuple[tuple[Grouping, Any], ...] = (("process", process), ("pool", pool))
    for by, row in kinds:
        states: tuple[tuple[RowState, int | None], ...] = (("connected", 7), ("lost", None))
        for state, expected in states:
            with_figures = msgspec.structs.replace(row(state=state), figures=figures)
            (cells,) = shown(by, with_figures)["rows"]
            assert cells["left_out"] == expected


def test_connections_of_pools_that_have_no_row_each() -> None:
    """Their database is known but not their pool, and the sum of pools has no row."""
    several = msgspec.structs.replace(pool().info, url="(others)", pool_class="", pool_size=None)
    summed = msgspec.structs.replace(pool(), info=several)
    (row,) = shown("connection", process(), summed, connection())["rows"]
    assert (row["pool"], row["pool_size"]) == ("(others)", None)
    assert row["database"] == pool().info.database
    assert shown("pool", process(), summed)["rows"] == []
    snapshot = Snapshot("connection")
    snapshot.apply(answer(process(), summed, connection()))
    assert [row.figures.pools for row in snapshot.pool_rows()] == [summed.figures.gauges.pools]


def test_nothing_known_is_null() -> None:
    """An unknown value is null; that nobody waits or holds a connection is known, and 0."""
    who = Process("h", "p", 1, 1, None, None, None)
    (row,) = shown("process", ProcessRow("i", "node1", who, None, Usage(), "connected", FIGURES_2))["rows"]
    for key in (
        *("user", "command", "started_seconds", "cpu_percent", "rss_bytes", "threads", "open_files"),
        "last_report_seconds",
    ):
        assert row[key] is None
    assert row["longest_wait_seconds"] == row["longest_held_seconds"] == 0.0
    assert row["connections"] == 0


def test_unbounded_pool_has_no_capacity() -> None:
    """One pool without a limit makes the capacity of the whole group unknown."""
    figures = Figures(3, 0, Gauges(pools=3, capacity=30, unbounded=1), Totals(), *FIGURES_2_REST)
    assert shown("host", HostRow("h", 1, "connected", figures))["rows"][0]["capacity"] is None


@pytest.mark.parametrize("by", ["process", "pool"])
def test_lost_process_has_no_present(by: Grouping) -> None:
    """The present of a lost process is null; maxima, totals and the last report are known."""
    (row,) = shown(by, process(state="lost"), pool(state="lost"))["rows"]
    assert row["state"] == "lost"
    unknown = {*PRESENT, "cpu_percent", "rss_bytes", "threads", "open_files"} - (
        {"pools"} if by == "pool" else set()
    )
    assert {key: row[key] for key in unknown} == dict.fromkeys(unknown)
    assert row["max_connections"] == 80
    assert row["checkouts_total"] == 88213
    assert row["last_report_seconds"] == 0.8
    assert row["started_seconds"] == 150.5


LOST_1 = msgspec.structs.replace(FIGURES_1, processes=0, lost_processes=2)
GONE_1 = msgspec.structs.replace(FIGURES_2, max_connections=80)


@pytest.mark.parametrize(
    ("by", "row"),
    [
        ("program", ProgramRow("ctl1", "nova-api", "lost", LOST_1)),
        ("host", HostRow("ctl1", 1, "lost", LOST_1)),
        ("database", DatabaseRow("mysql", "db", 3306, "nova", 1, "lost", LOST_1)),
    ],
)
def test_where_all_are_lost_there_is_no_present(by: Grouping, row: Row) -> None:
    """The present of a program, host, database and the totals is unknown, in JSON, CSV and the table."""
    typed = typed_document(by, row, totals=LOST_1)
    document = typed.flat()
    for cells in (document["rows"][0], document["totals"]):
        assert {key: cells[key] for key in PRESENT} == dict.fromkeys(PRESENT)
        assert cells["processes"] == 0  # that none reports is known
        assert (cells["max_connections"], cells["checkouts_total"]) == (80, 88213)
        assert cells["last_report_seconds"] == 0.8
    (written,) = csv.DictReader(io.StringIO(as_csv(typed)))
    assert {written[key] for key in PRESENT} == {""}
    table = as_table(typed).splitlines()
    assert "connections - (max 80)" in table[1]
    assert table[4].split().count("-") >= 9


def test_where_some_are_lost_the_others_are_summed() -> None:
    """The processes that report are summed; that an ended program has nothing open is known."""
    some = msgspec.structs.replace(FIGURES_1, lost_processes=2)
    document = shown("program", ProgramRow("h", "p", "connected", some), totals=some)
    assert document["rows"][0]["connections"] == document["totals"]["connections"] == 78
    document = shown("program", ProgramRow("h", "p", "gone", GONE_1), totals=GONE_1)
    for cells in (document["rows"][0], document["totals"]):
        assert (cells["connections"], cells["longest_held_seconds"], cells["processes"]) == (0, 0.0, 0)


@pytest.mark.parametrize("by", ["program", "process", "pool", "connection"])
def test_a_view_that_stands_still(by: Grouping) -> None:
    """Ages go on while the view stands still; durations that may have ended do not."""
    program = ProgramRow("ctl1", "nova-api", "connected", FIGURES_1)
    rows = [*((program,) if by == "program" else ()), process(), pool(), connection()]
    snapshot = Snapshot(by)
    snapshot.apply(answer(*rows, stale=0.2, clock=99.8))
    (before,) = snapshot.document()["rows"]
    snapshot.apply(answer(quorum=False, leader=None, stale=60.2, clock=99.8, complete=False))
    (after,) = snapshot.document()["rows"]
    changed = {key: after[key] - before[key] for key in before if before[key] != after[key]}
    assert changed == {
        key: pytest.approx(60.0)
        for key in ("last_report_seconds", "started_seconds", "age_seconds")
        if key in before
    }
    totals = head_cells(snapshot.typed_head())["totals"]
    assert (totals["last_report_seconds"], totals["longest_held_seconds"]) == (60.8, 41.0)


def test_holds_and_waits_are_as_of_the_last_report() -> None:
    """Holds and waits last until the last report and no longer, in new and in aged rows."""
    figures = msgspec.structs.replace(FIGURES_1, reported=70.0, held_since=59.0, waiting_since=68.0)
    for by in ("pool", "connection"):
        row = shown(by, process(figures=figures), msgspec.structs.replace(pool(), figures=figures),
                    connection(held=69.0))["rows"][0]  # fmt: skip
        if by == "pool":
            assert (row["longest_held_seconds"], row["longest_wait_seconds"]) == (11.0, 2.0)
            assert row["last_report_seconds"] == 30.0
        else:
            assert row["held_seconds"] == 1.0


def test_connection_of_lost_process() -> None:
    """Whether a lost process's connection is held is unknown; its last reported values stay."""
    (row,) = shown("connection", process(state="lost"), pool(state="lost"), connection())["rows"]
    assert (row["state"], row["held_seconds"]) == (None, None)
    assert (row["server_id"], row["age_seconds"], row["holder"]) == (884213, 60.0, "Thread-1")


def test_ages_are_never_negative_nor_absurd() -> None:
    """A time after the clock, or one that is not a number, gives an age that JSON can hold."""
    for opened in (200.0, float("nan"), float("inf"), float("-inf")):
        row = ConnectionRow("i1", 1, 1, None, "idle", opened, None, None, None, ())
        (shown_row,) = shown("connection", row)["rows"]
        assert shown_row["age_seconds"] == (1e12 if opened == float("-inf") else 0.0)


def test_row_without_its_process() -> None:
    """A connection without the rows of its process and pool is shown, with null for unknown values."""
    (row,) = shown("connection", connection("i9"))["rows"]
    assert list(row) == list(KEYS["connection"])
    assert (row["instance"], row["host"], row["pool"], row["connection"]) == ("i9", None, None, 1)


def test_rows_are_sorted() -> None:
    """Rows are in the order of host, program, pid, pool and connection number, however they came."""
    rows: list[Row] = [
        process("a", "ctl2", "nova", 1),
        process("b", "ctl1", "nova", 10),
        process("c", "ctl1", "nova", 9),
        process("d", "ctl1", "glance", 99),
        *(pool(instance, number) for instance in "abcd" for number in (10, 9)),
        connection("b", 10, 9),
        connection("b", 9, 10),
        connection("b", 2, 9),
        connection("a", 1, 9),
    ]
    for given_rows in (rows, rows[::-1]):
        snapshot = Snapshot("pool")
        snapshot.apply(answer(*given_rows))
        assert keys(snapshot) == [("pool", i, n) for i in "dcba" for n in (9, 10)]
        snapshot = Snapshot("connection")
        snapshot.apply(answer(*given_rows))
        assert [key[1:] for key in keys(snapshot)] == [("b", 2), ("b", 10), ("b", 9), ("a", 1)]
    databases = [
        DatabaseRow("mysql", host, port, name, 1, "connected", FIGURES_2)
        for host, port, name in (
            ("b", 1, "x"),
            ("a", 10, "x"),
            ("a", 9, "x"),
            (None, None, None),
            ("a", 9, None),
        )
    ]
    order = [(row["database_host"], row["database_port"]) for row in shown("database", *databases)["rows"]]
    assert order == [(None, None), ("a", 9), ("a", 9), ("a", 10), ("b", 1)]


# --- Following ----------------------------------------------------------------------------


def test_nothing_before_the_first_answer() -> None:
    """Before the first complete answer there are no rows and no document."""
    snapshot = Snapshot("host", host="ctl1", program="nova", instance="i1")
    assert snapshot.query() == Query("host", "", 0, "ctl1", "nova", "i1")
    assert snapshot.typed_rows() == []
    assert snapshot.rows_of(JsonHost) == []
    with pytest.raises(ValueError, match="no complete answer"):
        snapshot.document()


def test_broken_off_answer_is_asked_again() -> None:
    """Frames of an answer without its last frame change nothing, not even the next query."""
    one, two, three = process("a", pid=1), process("b", pid=2), process("c", pid=3)
    snapshot = Snapshot("process")
    snapshot.apply(answer(one, version=5))
    snapshot.apply(answer(two, version=6, complete=True, more=True))
    assert snapshot.query() == Query("process", "e1", 5)
    assert keys(snapshot) == [one.key]
    snapshot.apply(answer(three, version=7, complete=False))
    assert keys(snapshot) == [one.key, three.key]
    assert snapshot.query() == Query("process", "e1", 7)


def test_answer_in_several_frames() -> None:
    """An answer takes effect as a whole with its last frame, and `complete` replaces everything."""
    rows = [process(name, pid=pid) for pid, name in enumerate("abc")]
    snapshot = Snapshot("process")
    snapshot.apply(answer(process("old")))
    for row in rows:
        snapshot.apply(answer(row, version=9, more=row is not rows[-1]))
        assert len(keys(snapshot)) == (3 if row is rows[-1] else 1)
    assert keys(snapshot) == [row.key for row in rows]


@pytest.mark.parametrize("removed_first", [True, False])
def test_removed_and_back(removed_first: bool) -> None:
    """A row that was removed and came back exists, whichever frame has the removal."""
    row = process("a")
    snapshot = Snapshot("process")
    snapshot.apply(answer(row, process("b")))
    frames = [answer(removed=(row.key, ("process", "b"), ("process", "unknown")), version=9, complete=False)]
    frames.insert(removed_first, answer(row, version=9, complete=False))
    for frame in frames:
        snapshot.apply(
            answer(*frame.rows, removed=frame.removed, version=9, complete=False, more=frame is frames[0])
        )
    assert keys(snapshot) == [row.key]


def test_another_epoch_replaces_everything() -> None:
    """Rows of another epoch are never mixed with those that the reader has."""
    snapshot = Snapshot("process")
    snapshot.apply(answer(process("a")))
    snapshot.apply(answer(process("b"), epoch="e2", version=1, complete=False))
    assert keys(snapshot) == [("process", "b")]
    assert snapshot.query() == Query("process", "e2", 1)


class ToyNode:
    """Programs that come, change and go; answers in frames, complete or by changes."""

    def __init__(self) -> None:
        self.epoch, self.version = "e0", 0
        self.rows: dict[str, tuple[int, ProgramRow]] = {}
        self.removed: dict[str, int] = {}

    def put(self, program: str, processes: int) -> None:
        self.version += 1
        self.removed.pop(program, None)
        figures = Figures(processes, 0, Gauges(), Totals(), *FIGURES_2_REST)
        self.rows[program] = (self.version, ProgramRow("h", program, "connected", figures))

    def remove(self, program: str) -> None:
        self.version += 1
        if self.rows.pop(program, None):
            self.removed[program] = self.version

    def restart(self) -> None:
        self.epoch, self.version, self.removed = f"{self.epoch}+", 0, {}
        self.rows = {program: (0, row) for program, (_, row) in self.rows.items()}

    def answer(self, query: Query, size: int) -> list[Rows]:
        complete = query.epoch != self.epoch
        rows = [row for version, row in self.rows.values() if complete or version > query.since]
        removed = [] if complete else [n for n, version in self.removed.items() if version > query.since]
        cut = [
            (tuple(rows[at : at + size]), tuple(("program", "h", name) for name in removed[at : at + size]))
            for at in range(0, max(len(rows), len(removed), 1), size)
        ]
        return [
            answer(
                *some,
                removed=gone,
                epoch=self.epoch,
                version=self.version,
                complete=complete,
                more=at < len(cut),
            )
            for at, (some, gone) in enumerate(cut, 1)
        ]


NAMES = st.sampled_from("abcdef")
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, st.integers(0, 3)),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("restart")),
    st.tuples(st.just("read"), st.integers(1, 3), st.integers(0, 3)),
)


@given(st.lists(STEPS, max_size=40))
def test_following_equals_a_fresh_read(steps: list[tuple[Any, ...]]) -> None:
    """A reader that follows changes has the same rows as a fresh one, through broken answers and restarts."""
    node, follower = ToyNode(), Snapshot("program")
    for name, *arguments in [*steps, ("read", 2, 9)]:
        if name != "read":
            getattr(node, name)(*arguments)
            continue
        size, heard = arguments
        frames = node.answer(follower.query(), size)
        for frame in frames[:heard]:
            follower.apply(frame)
        if heard >= len(frames):
            fresh = Snapshot("program")
            for frame in node.answer(fresh.query(), 100):
                fresh.apply(frame)
            assert follower.document() == fresh.document()
            assert follower.typed_rows() == fresh.typed_rows()


def connection_rows(snapshot: Snapshot, seen: Collection[RowKey] | None = None) -> list[JsonConnection]:
    return [row for _, row in snapshot.typed_rows(seen) if isinstance(row, JsonConnection)]


def test_connections_share_the_fields_of_their_process_and_pool() -> None:
    """A process and a pool are built once; a connection to another server has pool fields of its own."""
    moved = msgspec.structs.replace(connection(number=3), server=("10.0.0.10", 3307))
    snapshot = Snapshot("connection")
    snapshot.apply(answer(process(), pool(), connection(), connection(number=2), moved))
    one, two, three = connection_rows(snapshot)
    assert one.process is two.process is three.process
    assert one.pool is two.pool
    assert (three.pool.database_host, three.pool.database_port) == ("10.0.0.10", 3307)
    assert three.pool.pool == one.pool.pool


def test_a_quiet_process_is_not_built_again() -> None:
    """A change of one process leaves the rows of another as they are, and returned rows never change."""
    rows: list[Row] = [*(process(name) for name in "ab"), *(pool(name) for name in "ab")]
    snapshot = Snapshot("connection")
    snapshot.apply(answer(*rows, connection("a"), connection("b")))
    before = connection_rows(snapshot)
    snapshot.apply(answer(connection("b", held=None), complete=False, version=8))
    after = connection_rows(snapshot)
    assert after[0] is before[0]
    assert (before[1].state, after[1].state) == ("checked_out", "idle")


def test_ages_off_the_screen_may_lag() -> None:
    """With `seen`, only the ages of rows on the screen are exact; others follow after `UNSEEN_SECONDS`."""
    snapshot = Snapshot("connection")
    snapshot.apply(answer(process(), pool(), connection(), connection(number=2), clock=100.0, stale=0.0))
    ages = [row.age_seconds for row in connection_rows(snapshot)]
    assert ages == [60.0, 60.0]
    seen = {("connection", "i1", 2)}
    for clock, expected in ((101.0, [60.0, 61.0]), (115.0, [60.0, 75.0]), (115.5, [75.5, 75.5])):
        snapshot.apply(answer(complete=False, clock=clock, stale=0.0))
        assert [row.age_seconds for row in connection_rows(snapshot, seen)] == expected
    snapshot.apply(answer(complete=False, clock=116.0, stale=0.0))
    assert [row.age_seconds for row in connection_rows(snapshot)] == [76.0, 76.0]


def test_derived_values_follow_changes_and_ages() -> None:
    """`derive` sees each row that is built or ages."""
    rates = iter((1.0, 2.0, 3.0))

    def derive(key: RowKey, row: JsonRow) -> JsonRow:
        assert isinstance(row, JsonProgram) and key == ("program", "ctl1", "nova-api")
        return msgspec.structs.replace(row, connects_per_second=next(rates))

    snapshot = Snapshot("program", derive=derive)
    snapshot.apply(answer(ProgramRow("ctl1", "nova-api", "connected", FIGURES_1), clock=100.0))
    for expected in (1.0, 2.0, 3.0):
        ((_, row),) = snapshot.typed_rows()
        assert isinstance(row, JsonProgram) and row.connects_per_second == expected
        snapshot.apply(answer(complete=False, clock=100.0 + expected))


def test_many_rows() -> None:
    """5,000 connections are a document of 5,000 rows."""
    snapshot = Snapshot("connection")
    count = 5000
    processes = [process(f"i{n}", pid=n) for n in range(50)]
    pools = [pool(f"i{n}") for n in range(50)]
    connections = [connection(f"i{n % 50}", n) for n in range(count)]
    snapshot.apply(answer(*processes, *pools, *connections))
    assert len(snapshot.document()["rows"]) == count


# --- Formats ------------------------------------------------------------------------------

HOSTILE = '\x1b[2J=1+1\n\x9b31m\u202e"x",\x7f\r\t\x00'


def hostile(by: Grouping) -> Document:
    who = Process(HOSTILE, HOSTILE, 1, 1, HOSTILE, HOSTILE, None)
    info = PoolInfo(HOSTILE, HOSTILE, HOSTILE, 1, HOSTILE, HOSTILE, None, -1, None)
    return typed_document(
        by,
        ProgramRow(HOSTILE, HOSTILE, "connected", FIGURES_1),
        HostRow(HOSTILE, 1, "connected", FIGURES_1),
        DatabaseRow(HOSTILE, HOSTILE, 1, HOSTILE, 1, "connected", FIGURES_1),
        ProcessRow("i1", HOSTILE, who, None, Usage(), "connected", FIGURES_1),
        PoolRow("i1", 1, info, "connected", FIGURES_1),
        ConnectionRow("i1", 1, 1, 1, "idle", 1.0, 1.0, HOSTILE, HOSTILE, (HOSTILE,), holder_site=HOSTILE),
        site_row(
            host=HOSTILE,
            program=HOSTILE,
            call_site=HOSTILE,
            verdict="LEAK",
            reason=HOSTILE,
            recent=HoldProfile(held_ms=2, where={HOSTILE: 2, "x" * 64: 1}),
            recent_seconds=60.0,
            stack=(HOSTILE,),
        ),
        service=HOSTILE,
        node=HOSTILE,
        leader=HOSTILE,
    )


@pytest.mark.parametrize("by", GROUPINGS)
def test_no_control_character_gets_out(by: Grouping) -> None:
    """A hostile name cannot steer a terminal or break a line, in any format."""
    document = hostile(by)
    flat = document.flat()
    for text in (as_table(document), as_table(document, 80), as_csv(document), as_json(flat)):
        assert all(line.isprintable() for line in text.split("\n"))
    reasons = sum(row.get("verdict_reason") is not None for row in flat["rows"])
    assert len(as_table(document).splitlines()) == 5 + (reasons and 1 + reasons)
    assert len(as_csv(document).splitlines()) == 2
    assert json.loads(as_json(flat)) == flat


def test_json() -> None:
    """JSON is indented ASCII with one line end at its end, and gives the same document back."""
    for rows in ([], [ProgramRow("hé\U0001f600\u2028", 'a"\\b', "gone", FIGURES_2)]):
        document = shown("program", *rows, quorum=False, leader=None)
        text = as_json(document)
        assert text == json.dumps(document, indent=2) + "\n"
        assert text.isascii()


def test_csv() -> None:
    """CSV has all keys, the stack in one cell, nothing for null, and no cell that is a formula."""
    document = typed_document("connection", process(program="=cmd()"), pool(), connection(held=None))
    text = as_csv(document)
    (row,) = csv.DictReader(io.StringIO(text))
    assert list(row) == list(KEYS["connection"])
    assert row["program"] == "'=cmd()"
    assert row["held_seconds"] == ""
    assert row["max_overflow"] == "10"
    assert row["stack"] == "api.py:412 boot < wsgi.py:3 call"
    assert "\r" not in text
    recent = HoldProfile(held_ms=5, where={"requests": 3, "=a;b=c": 2})
    site = site_row(profile=recent, recent=recent, recent_seconds=60.0, stack=("a.py:1 f", "b.py:2 g"))
    (row,) = csv.DictReader(io.StringIO(as_csv(typed_document("site", site))))
    assert row["where_shares"] == "requests=0.6;?a?b?c=0.4"
    assert row["where_seconds_total"] == "requests=0.003;?a?b?c=0.002"
    assert row["stack"] == "a.py:1 f < b.py:2 g"
    first = HoldProfile(where={"-1+cmd()": 1, "\x1b[2J\n": 1})
    site = site_row(recent=first, recent_seconds=60.0)
    (row,) = csv.DictReader(io.StringIO(as_csv(typed_document("site", site))))
    assert row["where_shares"] == "?[2J?=0.5;-1+cmd()=0.5"
    (row,) = csv.DictReader(
        io.StringIO(
            as_csv(typed_document("site", msgspec.structs.replace(site, recent=HoldProfile(where={"-1": 1}))))
        )
    )
    assert (row["where_shares"], row["where_seconds_total"]) == ("'-1=1.0", "")
    assert as_csv(typed_document("host")) == ",".join(KEYS["host"]) + "\n"


@given(st.lists(st.text(max_size=8), min_size=2, max_size=2))
def test_csv_round_trip(names: list[str]) -> None:
    """Taking away one leading apostrophe gives every printable name back, and none begins a formula."""
    document = typed_document("program", ProgramRow(names[0], names[1], "gone", FIGURES_2))
    (row,) = csv.DictReader(io.StringIO(as_csv(document)))
    for name, cell in zip(names, (row["host"], row["program"]), strict=True):
        assert cell.removeprefix("'") == printable(name)
        assert not cell.startswith(("=", "+", "-", "@"))
    assert row["connections"] == "0"


def test_table() -> None:
    """The table shows the node, the totals, and aligned columns with numbers to the right."""
    document = typed_document(
        "program",
        ProgramRow("ctl1", "nova-api", "connected", FIGURES_1),
        ProgramRow("ctl2", "glance", "gone", FIGURES_2),
    )
    assert as_table(document).splitlines() == [
        "service default  node node1  leader node1  quorum yes  stale 0.2s",
        "hosts 1  programs 2  processes 8  capacity 240  connections 78 (max 80)  checked out 31 (max 47)  "
        "waiting 5 (max 10)  checkouts/s 310.2",
        "",
        "HOST  PROGRAM   STATE      VERDICT  PROCESSES  CAPACITY  CONNECTIONS  MAX CONNECTIONS  CHECKED OUT  "
        "IDLE  OVERFLOW  DETACHED  WAITING  LONGEST WAIT  LONGEST HELD  CHECKOUTS/S  TIMEOUTS  LAST REPORT",
        "ctl1  nova-api  connected  -                8       240           78               80           31  "
        "  45         6         2        5           12s           41s        310.2         3         0.8s",
        "ctl2  glance    gone       -                0         0            0                0            0  "
        "   0         0         0        0            0s            0s          0.0         0            -",
    ]


def test_table_with_what_limits_leave_out() -> None:
    """The totals say how much it is, and there is a column for it; neither, where nothing is left out."""
    figures = msgspec.structs.replace(FIGURES_1, left_out=7)
    rows = [ProgramRow("ctl1", "nova", "connected", figures), ProgramRow("ctl2", "glance", "gone", FIGURES_2)]
    for width in (None, 80):
        lines = as_table(typed_document("program", *rows, totals=figures), width).splitlines()
        assert "LEFT OUT by limits 7" in lines[1]
        assert lines[3].endswith("LEFT OUT")
        assert [line.split()[-1] for line in lines[4:]] == ["7", "-"]


def test_table_without_quorum() -> None:
    """Without quorum the table says so, and how long the view has stood still."""
    document = typed_document("host", quorum=False, leader=None, stale=754.0)
    assert as_table(document).startswith(
        "service default  node node1  leader -  NO QUORUM, stands still for 12m\n"
    )


@pytest.mark.parametrize("by", GROUPINGS)
@pytest.mark.parametrize("width", [20, 60, 80, 120, 400])
def test_table_fits(by: Grouping, width: int) -> None:
    """Columns are left out by importance until every row fits the width, also with wide characters."""
    rows: list[Row] = [
        ProgramRow("主机一", "ノヴァ-api", "connected", FIGURES_1),
        HostRow("主机一", 1, "connected", FIGURES_1),
        DatabaseRow("mysql", "主机", 3306, "nova", 1, "connected", FIGURES_1),
        process(host="主机一", program="ノヴァ-api"),
        pool(),
        connection(),
        site_row(
            host="主机一",
            program="ノヴァ-api",
            call_site="库.py:1 f",
            share=0.71,
            recent=HoldProfile(held_ms=200, where={"包裹": 90, "database": 90, "y" * 64: 20}),
            recent_seconds=60.0,
        ),
    ]
    head, _, empty, *lines = as_table(typed_document(by, *rows), width).splitlines()
    assert "node1" in head
    assert empty == ""
    assert len(lines) == 2
    assert all(wcswidth(line) <= width for line in lines)
    if width >= 80 and by not in ("pool", "connection", "site"):
        assert "CONNECTIONS" in lines[0]
        assert "CHECKED OUT" in lines[0]
    if width == 80:
        assert "DETACHED" not in lines[0]


def test_wide_characters_are_aligned() -> None:
    """A column starts in the same terminal cell in every row, however wide the names before it are."""
    rows = [ProgramRow(host, "p", "gone", FIGURES_2) for host in ("主机一", "ctl", "e\u0301te")]
    lines = as_table(typed_document("program", *rows)).splitlines()[4:]
    assert {wcswidth(line[: line.index("gone")]) for line in lines} == {
        len("主机一") * 2 + 2 + len("PROGRAM") + 2
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(None, "-"), (0.0, "0s"), (0.04, "0.0s"), (0.42, "0.4s"), (9.94, "9.9s"), (9.96, "10s")],
        *[
            (41.0, "41s"),
            (59.6, "1m00s"),
            (102.0, "1m42s"),
            (599.4, "9m59s"),
            (599.6, "10m"),
            (754.0, "12m"),
            (3599.6, "1h00m"),
            (18420.0, "5h07m"),
        ],
        *[(266400.0, "3d02h"), (1e12, "11574074d01h")],
    ],
)
def test_short_age(seconds: float | None, text: str) -> None:
    """Ages are short: one or two units; below ten minutes to the second."""
    assert short_age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0.0, "0s"), (0.00000109, "1us"), (0.00004, "40us"), (0.0001, "0.1ms"),
        (0.0004, "0.4ms"), (0.00096, "1ms"), (0.0631, "63ms"), (0.0996, "0.1s"),
        (0.4, "0.4s"), (41.2, "41s"), (3700.0, "1h01m"),
    ],
)  # fmt: skip
def test_short_duration(seconds: float | None, text: str) -> None:
    """Durations below 0.1 s are in ms or us, longer ones as an age; only zero is shown as 0."""
    assert short_duration(seconds) == text

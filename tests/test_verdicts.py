"""Verdicts: what is wrong with a row, and why, by example and for anything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon import verdicts
from connmon.snapshot import KEYS

#: A pool at work, with nothing wrong.
WELL: dict[str, Any] = {
    "pool": "mysql://db1/nova", "state": "connected", "capacity": 15, "connections": 10, "checked_out": 6,
    "waiting": 0, "longest_wait_seconds": 0.0, "longest_held_seconds": 0.4, "timeouts_total": 0,
    "checkouts_per_second": 80.0, "last_report_seconds": 0.5,
    "held_p95_seconds": 0.3, "connect_p95_seconds": 0.01,
}  # fmt: skip
FULL = {"checked_out": 15, "waiting": 4, "longest_wait_seconds": 2.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        (FULL, ["SATURATED"]),
        ({"waiting": 4}, []),  # a pool that is not full: whoever asks gets one in this moment
        ({"waiting": 4, "capacity": None}, ["SATURATED"]),
        ({"longest_held_seconds": 41.0}, ["LEAK"]),
        ({"longest_held_seconds": 29.0}, []),
        # A program that always holds for long: a report, a batch.
        ({"longest_held_seconds": 41.0, "held_p95_seconds": 60.0}, []),
        ({"longest_held_seconds": 41.0, "held_p95_seconds": 60.0, "checkouts_per_second": 0.0}, []),
        # Between usual and unusual, and where nothing is known of that, the quiet decides.
        ({"longest_held_seconds": 41.0, "held_p95_seconds": 10.0}, []),
        ({"longest_held_seconds": 41.0, "held_p95_seconds": 10.0, "checkouts_per_second": 0.1}, ["LEAK"]),
        ({"longest_held_seconds": 41.0, "held_p95_seconds": None}, ["LEAK"]),  # 6 out at 80/s: 0.1 s each
        ({"longest_held_seconds": 41.0, "held_p95_seconds": None, "checkouts_per_second": 1.0}, []),
        ({"longest_held_seconds": 41.0, "held_p95_seconds": None, "checkouts_per_second": 0.2}, ["LEAK"]),
        # Both: those who wait do so because one does not come back.
        ({**FULL, "longest_held_seconds": 900.0}, ["LEAK", "SATURATED"]),
        ({"timeouts_total": 3}, ["TIMEOUTS"]),
        ({"timeouts_total": 3, "recent_timeouts": 0}, []),
        ({"timeouts_total": 3, "recent_timeouts": 1}, ["TIMEOUTS"]),
        ({"connect_p95_seconds": 1.2}, ["SLOW CONNECT"]),
        ({"connect_p95_seconds": None}, []),
        ({"server_max": 100, "server_capacity": 101}, ["OVERCOMMIT"]),
        ({"server_max": 100, "server_capacity": 100}, []),
        ({"server_max": 100, "server_capacity": None}, []),
        ({"state": "lost", "waiting": None, "checked_out": None, "timeouts_total": 4}, ["LOST"]),
        ({"state": "gone", "timeouts_total": 4}, []),
        (
            {**FULL, "timeouts_total": 4, "connect_p95_seconds": 2.0},
            ["SATURATED", "TIMEOUTS", "SLOW CONNECT"],
        ),
    ],
)  # fmt: skip
def test_verdicts(changes: dict[str, Any], words: list[str]) -> None:
    """Each state of a pool has the words that the module's page promises, the gravest first."""
    found = verdicts.of_row({**WELL, **changes})
    assert [verdict.word for verdict in found] == words
    assert words == sorted(words, key=verdicts.rank, reverse=True)


def test_what_sums_pools_is_saturated_by_waiting_alone() -> None:
    """A program with an empty pool beside the full one is not at its capacity, but somebody waits."""
    program = {key: value for key, value in WELL.items() if key != "pool"}
    assert verdicts.gravest(verdicts.of_row({**program, "waiting": 1})) == "SATURATED"


def test_the_reason_has_the_figures_and_what_to_do() -> None:
    """One line tells how bad it is and what helps."""
    assert verdicts.explained(verdicts.of_row({**WELL, **FULL})) == (
        "SATURATED: 4 wait up to 2.5s, 15 of 15 checked out, held 0.3s (p95): "
        "raise pool_size or hold for a shorter time"
    )
    assert verdicts.explained(verdicts.of_row({**WELL, "longest_held_seconds": 900.0})) == (
        "LEAK: a connection has been held for 15m, where 0.3s is usual (p95): "
        "see its call site and give it back"
    )
    assert verdicts.explained(verdicts.of_row(WELL)) == ""


def test_overcommit_counts_all_databases_of_a_server() -> None:
    """Capacities are summed by server; a server whose maximum is not known has no verdict."""
    rows: list[dict[str, Any]] = [
        {"database_host": "db1", "database_port": 3306, "database": name, "capacity": 80}
        for name in ("nova", "neutron")
    ]
    rows.append({"database_host": "db2", "database_port": 3306, "database": "nova", "capacity": 500})
    judged = verdicts.with_server_maxima(rows, {("db1", None): 151})
    assert [verdicts.gravest(verdicts.of_row(row)) for row in judged] == ["OVERCOMMIT", "OVERCOMMIT", None]
    assert "160 connections to db1:3306, which takes 151" in verdicts.explained(verdicts.of_row(judged[0]))
    assert "server_max" not in rows[0]
    # A pool whose URL names several servers may open all it can at each of them.
    either = {"database_host": "DB1:3306,db3:3306", "database_port": None, "database": "x", "capacity": 20}
    (_, _, _, last) = verdicts.with_server_maxima([*rows, either], {("Db1", None): 170, ("db3", 3306): 500})
    assert "180 connections to db1:3306, which takes 170" in verdicts.explained(verdicts.of_row(last))
    lost = {**rows[0], "state": "lost", "capacity": None}
    judged = verdicts.with_server_maxima([*rows, lost], {("db1", None): 151})
    assert [row.get("server_capacity") for row in judged] == [160, 160, None, 160]
    assert verdicts.with_server_maxima([lost], {("db1", None): 151})[0]["server_capacity"] is None
    rows[0]["capacity"] = None
    assert verdicts.of_row(verdicts.with_server_maxima(rows, {("db1", 3306): 151})[1]) == ()


JUDGED = ["recent_timeouts", *(key for key in KEYS["pool"] if key not in ("state", "pool"))]
VALUES = st.one_of(st.none(), st.integers(0, 2**53), st.floats(0, 1e12))


@given(st.dictionaries(st.sampled_from(JUDGED), VALUES), st.sampled_from([None, "connected", "lost", "gone"]))
def test_anything_can_be_judged(row: dict[str, Any], state: str | None) -> None:
    """Whatever is known or not, there is an answer, in words of the list, on one line."""
    found = verdicts.of_row({**row, "state": state})
    assert len({verdict.word for verdict in found}) == len(found)
    assert "\n" not in verdicts.explained(found)

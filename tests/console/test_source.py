"""What the console makes of a node's answers: the rows of a table, sums of rows, and who blocks whom."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from connmon.console import aggregate, row_words, rows, waits
from connmon.console.source import Source, Want
from connmon.protocol.document import JsonProgram
from connmon.protocol.queries import WaitsQuery
from connmon.protocol.rows import ConnectionRow, PoolRow, ProcessRow, ProgramRow, Row, Verdict
from connmon.protocol.values import VerdictWord
from tests.support.console_fakes import CLOCK, FLEET, answer, figures
from tests.support.console_states import row


def rows_of(source: Source) -> list[Any]:
    """Return the rows of its table."""
    return [row for _, row in source.rows()]


def test_a_server_that_takes_less_than_its_pools_may_open_is_overcommitted() -> None:
    """Databases of a server with a known maximum are OVERCOMMIT, if nothing graver; others are not judged."""
    source = Source(Want("database"), {("db1", 3306): 151})
    source.apply(answer(source.question()))
    rows = {row.database: row for row in rows_of(source)}
    assert rows["keystone"].verdict == "OVERCOMMIT"
    assert "285 connections to db1:3306, which takes 151" in rows["keystone"].verdict_reason
    assert (rows["nova"].verdict, rows["nova"].server_max) == ("LEAK", 151)
    source = Source(Want("database"), {("db2", None): 10})
    source.apply(answer(source.question()))
    assert {row.verdict for row in rows_of(source)} == {"LEAK", None}


def test_verdicts_are_the_nodes() -> None:
    """Rows have the verdict and the reason that the node sent; without one they have none."""
    source = Source(Want("program"))
    source.apply(answer(source.question()))
    rows = {row.program: row for row in rows_of(source)}
    assert rows["nova-api"].verdict == "LEAK"
    bare = Source(Want("program"))
    bare.apply(answer(bare.question(), [structs.replace(FLEET[0], figures=figures(15, 15, 9, held=4000.0))]))
    assert [row.verdict for row in rows_of(bare)] == [None]
    well = row("program", program="nova-api", state="connected", waiting=3)
    assert (row_words.state_word(well), row_words.reason(well)) == ("waiting", "")


def test_an_aggregate_is_as_grave_as_its_gravest_part() -> None:
    """It has that part's verdict and reason; its timeouts are the sum, unknown if a part's are."""
    parts = [
        row("pool", verdict="SATURATED", verdict_reason="9 wait", recent_timeouts=2, waiting=9),
        row("pool", verdict="LEAK", verdict_reason="held for 5m", recent_timeouts=1, waiting=0),
        row("pool", recent_timeouts=0, waiting=0),
    ]
    total = aggregate.total(parts)
    assert (total.verdict, total.verdict_reason, total.figures.recent_timeouts) == ("LEAK", "held for 5m", 3)
    unknown = aggregate.total([row("pool", recent_timeouts=2), row("pool", timeouts_total=3)])
    assert unknown.figures.recent_timeouts is None
    assert aggregate.total([row("pool"), row("pool")]).verdict is None


def test_a_user_of_a_database_has_what_its_pools_share() -> None:
    """A program made of the rows of its pools keeps the fields that all of them share, but not their URLs."""
    key = ("database", "mysql", "db1", 3306, "nova")
    place = {"host": "h", "program": "p", "dialect": "mysql", "database_host": "db1", "database_port": 3306}
    parts = [
        row("pool", **place, database="nova", pool="a", pool_size=5, pid=1, user="nova", instance="x"),
        row("pool", **place, database="nova", pool="b", pool_size=5, pid=2, user="nova", instance="y"),
    ]
    ((_, user),) = aggregate.users([(("pool", str(n), n), part) for n, part in enumerate(parts)], key)
    known = {name: value for name, value in rows.fields(user) if value is not None}
    assert {"pool_size": 5, "user": "nova", "processes": 2, "pools": 2}.items() <= known.items()
    assert not {"pid", "pool", "instance"} & known.keys()
    ((_, group),) = aggregate.programs([(("program", "h", "p"), user)])
    assert isinstance(group, rows.ProgramGroup) and group.program == "p"


def test_a_leak_is_blamed_on_the_line_that_leaks() -> None:
    """Only the place whose connection leaks is LEAK, not the other users of the pool."""
    source = Source(Want("wait"))
    source.apply(answer(source.question()))
    blamed = {row.blocker: row.verdict for row in rows_of(source)}
    assert [place for place, verdict in blamed.items() if verdict == "LEAK"] == ["thread Thread-0"]


def judged_soon(held: float, word: VerdictWord | None) -> list[Row]:
    """Return the rows of a node that judges after 5 s: one connection is held, nobody waits."""
    why = () if word is None else (Verdict(word, f"held for {held:g}s"),)
    names = {ProgramRow: FLEET[0], ProcessRow: fleet_row(ProcessRow), PoolRow: fleet_row(PoolRow)}
    rows = [structs.replace(row, figures=figures(1, 1, held=held, wrong=why)) for row in names.values()]
    connection = structs.replace(
        fleet_row(ConnectionRow), held_since=CLOCK - 0.8 - held, call_site=None, verdict=word
    )
    return [*rows, connection]


def fleet_row(kind: type[Any]) -> Any:
    return next(row for row in FLEET if isinstance(row, kind))


@pytest.mark.parametrize(
    ("held", "word", "blocker"),
    [
        (10.0, "LEAK", "thread Thread-0"),
        (10.0, "BLOCKED", "thread Thread-0"),
        (10.0, None, None),
        (31.0, None, "thread Thread-0"),
    ],
)
def test_connections_that_the_node_judges_sooner_are_among_the_waits(
    held: float, word: VerdictWord | None, blocker: str | None
) -> None:
    """With a low verdict_held_long a LEAK or BLOCKED of 10 s is among the waits at once, with its reason."""
    source = Source(Want("wait"))
    for _ in range(3):  # the first question, and those that come after an answer
        source.apply(answer(source.question(), judged_soon(held, word)))
        rows = rows_of(source)
        assert [row.blocker for row in rows] == ([blocker] if blocker else [])
        assert [(row.verdict, row.held_seconds) for row in rows] == ([(word, held)] if blocker else [])
        assert not word or rows[0].verdict_reason == f"held for {held:g}s"


def test_short_holds_are_asked_for_only_where_something_is_wrong() -> None:
    """Where nothing is LEAK or BLOCKED the console asks for long holds only."""
    source = Source(Want("wait"))
    assert source.question() == WaitsQuery(1.0)
    source.apply(answer(source.question(), judged_soon(10.0, None)))
    assert source.question() == WaitsQuery(30.0)
    source.apply(answer(source.question(), judged_soon(10.0, "BLOCKED")))
    assert source.question() == WaitsQuery(1.0)


def test_a_place_has_the_reason_of_its_own_verdict() -> None:
    """Each place of a pool with a LEAK and a BLOCKED has the node's reason of its own verdict."""
    who: dict[str, Any] = {"host": "ctl1", "program": "api", "pool": "mysql://db1/nova"}
    said = (
        "held for 41s: give it back; BLOCKED: held for 12s in the database: look for a lock: connmon whois 7"
        "; SATURATED: 3 wait: the cause: 1 leaked connection is never given back; give back what is taken"
    )
    other = row("pool", **who, instance="i1", verdict="BLOCKED", verdict_reason="held for 9s", waiting=0)
    pool = row("pool", **who, instance="i2", verdict="LEAK", verdict_reason=said, waiting=3)
    held = {**who, "instance": "i2", "held_seconds": 12.0}
    holders = [
        row("connection", **held, call_site="a.py:1 leaks", verdict="LEAK"),
        row("connection", **held, call_site="b.py:2 waits", verdict="BLOCKED"),
        row("connection", **held, call_site="c.py:3 works"),
    ]
    rows: list[Any] = waits.waits(
        [(("1",), other), (("2",), pool)], [((str(at),), holder) for at, holder in enumerate(holders)]
    )
    shown = {wait.call_site: (wait.verdict, wait.verdict_reason) for _, wait in rows}
    assert shown == {
        "a.py:1 leaks": ("LEAK", said),
        "b.py:2 waits": (
            "BLOCKED", "held for 12s in the database: look for a lock: connmon whois 7"
        ),
        "c.py:3 works": (None, None),
    }  # fmt: skip


def test_other_processes_of_a_program_block_nobody() -> None:
    """Their connections of a pool with the same URL are not among the waits, if their own pool is well."""
    who: dict[str, Any] = {"host": "ctl1", "program": "api", "pool": "mysql://db1/nova"}
    pools = [
        row("pool", **who, instance="i1", verdict="LEAK", longest_held_seconds=10.0),
        row("pool", **who, instance="i2", longest_held_seconds=2.0),
    ]
    leaks = row(
        "connection", **who, instance="i1", held_seconds=10.0, call_site="a.py:1 leaks", verdict="LEAK"
    )
    works = row("connection", **who, instance="i2", held_seconds=2.0, call_site="b.py:2 works")
    found: list[Any] = waits.waits([(("1",), pool) for pool in pools], [(("2",), leaks), (("3",), works)])
    assert [(wait.call_site, wait.processes) for _, wait in found] == [("a.py:1 leaks", 1)]


def test_connects_per_second_are_known_from_the_second_report_on() -> None:
    """They are unknown before it, and after a silence; the reports of the last seconds count."""
    source = Source(Want("program"))
    key = FLEET[0].key

    def after(seconds: float, connects: int, ago: float = 0.0) -> float | None:
        row = FLEET[0]
        assert isinstance(row, ProgramRow)
        now = row.figures
        changed = structs.replace(
            now, totals=now.totals._replace(connects=connects), reported=CLOCK + seconds - ago
        )
        frame = answer(source.question(), [structs.replace(row, figures=changed)], clock=CLOCK + seconds)
        source.apply(frame)
        counted = dict(source.rows())[key]
        assert isinstance(counted, JsonProgram)
        return counted.connects_per_second

    assert after(0.0, 91) is None
    assert after(2.0, 97) == pytest.approx(3.0)
    assert after(4.0, 97) == pytest.approx(1.5)
    assert after(30.0, 97) == pytest.approx(0.0)
    assert after(60.0, 97, ago=30.0) is None
    assert after(61.0, 5) is None  # the totals began again

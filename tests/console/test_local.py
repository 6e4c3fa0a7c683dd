"""What is added to what processes report: the system's own word, and the servers' maxima."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import psutil
import pytest
from msgspec import structs

from connmon import process_info
from connmon.console import aggregate, columns
from connmon.console.local_process import Watch
from connmon.console.source import Source, Want
from connmon.protocol.queries import WaitsQuery
from connmon.protocol.rows import ConnectionRow, PoolRow, ProcessRow, ProgramRow, Row, Verdict
from connmon.protocol.values import VerdictWord
from tests.support.console_fakes import CLOCK, FLEET, answer, figures


def pool(port: int | None, connections: int = 1, **changes: Any) -> dict[str, Any]:
    """A pool row of this very process."""
    return {
        "host": process_info.host(), "pid": os.getpid(), "state": "connected", "dialect": "mysql",
        "started_seconds": time.time() - psutil.Process().create_time(),
        "database_host": "/run/mysqld.sock" if port is None else "127.0.0.1", "database_port": port,
        "connections": connections, **changes,
    }  # fmt: skip


def test_sockets_beyond_those_of_the_pools_are_counted() -> None:
    """Three sockets to the server of which the pools know two: one is beyond; other servers do not count."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port = server.getsockname()[1]
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        held.append(socket.create_connection(other.getsockname()))
        try:
            watch = Watch()
            local = watch.look("i1", [pool(port, 1), pool(port, 1), pool(None, 7)])
            assert local is not None and local.instance == "i1"
            assert "TCP to the database 3, 1 BEYOND its pools' 2" in local.text
            assert "threads " in local.text and "memory " in local.text and "open files " in local.text
            again = watch.look("i1", [pool(port, 3)])
            assert again is not None and "TCP to the database 3, all its pools'" in again.text
        finally:
            for each in held:
                each.close()


def test_a_database_without_a_port_has_no_sockets() -> None:
    """SQLite, or a server reached by a socket file: there is nothing to count."""
    for each in (pool(None), pool(None, dialect="sqlite", database_host=None)):
        local = Watch().look("i1", [each])
        assert local is not None and "no TCP" in local.text


def test_a_server_that_is_not_known_is_no_local_one() -> None:
    """Where a pool's server is not known nothing is counted, since its sockets may be among the others."""
    local = Watch().look("i1", [pool(3306), pool(None, database_host=None)])
    assert local is not None
    assert "TCP to the database - (the server of a pool is not known)" in local.text


def test_each_of_several_servers_is_counted() -> None:
    """A pool whose URL names several servers has its connections at any of them."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        socket.create_connection(one.getsockname()),
        socket.create_connection(two.getsockname()),
    ):
        hosts = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two))
        local = Watch().look("i1", [pool(None, 2, dialect="postgresql", database_host=hosts)])
    assert local is not None and "TCP to the database 2, all its pools'" in local.text


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"pid": None}, {"pid": 2**22 + 1}, {"state": "lost"}, {"started_seconds": 9e9},
     {"started_seconds": None}],
)  # fmt: skip
def test_another_process_is_not_looked_at(changes: dict[str, Any]) -> None:
    """Elsewhere, gone, or of the same pid but started at another time: nothing is said."""
    assert Watch().look("i1", [pool(3306, **changes)]) is None
    assert Watch().look("i1", []) is None


def test_a_server_that_takes_less_than_its_pools_may_open_is_overcommitted() -> None:
    """With the server's maximum given, its databases say OVERCOMMIT, if nothing graver; of others nothing."""
    source = Source(Want("database"), {("db1", 3306): 151})
    source.apply(answer(source.question()))
    rows = {row["database"]: row for _, row in source.rows()}
    assert rows["keystone"]["verdict"] == "OVERCOMMIT"
    assert "285 connections to db1:3306, which takes 151" in rows["keystone"]["verdict_reason"]
    assert (rows["nova"]["verdict"], rows["nova"]["server_max"]) == ("LEAK", 151)
    source = Source(Want("database"), {("db2", None): 10})
    source.apply(answer(source.question()))
    assert {row["verdict"] for _, row in source.rows()} == {"LEAK", None}


def test_verdicts_are_the_nodes() -> None:
    """Rows have the word and the reason that came with them, and none where none came."""
    source = Source(Want("program"))
    source.apply(answer(source.question()))
    rows = {row["program"]: row for _, row in source.rows()}
    assert rows["nova-api"]["verdict"] == "LEAK"
    bare = Source(Want("program"))
    bare.apply(answer(bare.question(), [structs.replace(FLEET[0], figures=figures(15, 15, 9, held=4000.0))]))
    assert [row["verdict"] for _, row in bare.rows()] == [None]
    old = {"program": "nova-api", "state": "connected", "waiting": 3}
    assert (columns.state_word(old), columns.reason(old)) == ("waiting", "")


def test_a_merged_row_is_as_grave_as_its_gravest_part() -> None:
    """It has that part's verdict and reason; its timeouts are the sum, unknown where a part's are."""
    parts: list[dict[str, Any]] = [
        {"verdict": "SATURATED", "verdict_reason": "9 wait", "recent_timeouts": 2, "waiting": 9},
        {"verdict": "LEAK", "verdict_reason": "held for 5m", "recent_timeouts": 1, "waiting": 0},
        {"verdict": None, "verdict_reason": None, "recent_timeouts": 0, "waiting": 0},
    ]
    row = aggregate.together(parts)
    assert (row["verdict"], row["verdict_reason"], row["recent_timeouts"]) == ("LEAK", "held for 5m", 3)
    assert aggregate.together([{"recent_timeouts": 2}, {"timeouts_total": 3}])["recent_timeouts"] is None
    assert aggregate.together([{}, {}])["verdict"] is None


def test_a_leak_is_blamed_on_the_line_that_leaks() -> None:
    """Of a pool with a leak, only the place whose connection leaks is LEAK among the waits."""
    source = Source(Want("wait"))
    source.apply(answer(source.question()))
    blamed = {row["blocker"]: row["verdict"] for _, row in source.rows()}
    assert [place for place, verdict in blamed.items() if verdict == "LEAK"] == ["thread Thread-0"]


def judged_soon(held: float, word: VerdictWord | None) -> list[Row]:
    """What a node says that judges from 5 s on: one connection is held, nobody waits."""
    why = () if word is None else (Verdict(word, f"held for {held:g}s"),)
    names = {ProgramRow: FLEET[0], ProcessRow: row_of(ProcessRow), PoolRow: row_of(PoolRow)}
    rows = [structs.replace(row, figures=figures(1, 1, held=held, wrong=why)) for row in names.values()]
    connection = structs.replace(
        row_of(ConnectionRow), held_since=CLOCK - 0.8 - held, call_site=None, verdict=word
    )
    return [*rows, connection]


def row_of(kind: type[Any]) -> Any:
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
def test_what_the_node_judges_sooner_is_among_the_waits(
    held: float, word: VerdictWord | None, blocker: str | None
) -> None:
    """With a low verdict_held_long a LEAK or BLOCKED of 10 s is shown at once, and with its reason."""
    source = Source(Want("wait"))
    for _ in range(3):  # the first question, and those that come after an answer
        source.apply(answer(source.question(), judged_soon(held, word)))
        rows = [row for _, row in source.rows()]
        assert [row["blocker"] for row in rows] == ([blocker] if blocker else [])
        assert [(row["verdict"], row["held_seconds"]) for row in rows] == ([(word, held)] if blocker else [])
        assert not word or rows[0]["verdict_reason"] == f"held for {held:g}s"


def test_short_holds_are_asked_for_only_where_something_is_wrong() -> None:
    """Where nothing is LEAK or BLOCKED the node is not asked for what it then would send for nothing."""
    source = Source(Want("wait"))
    assert source.question() == WaitsQuery(1.0)
    source.apply(answer(source.question(), judged_soon(10.0, None)))
    assert source.question() == WaitsQuery(30.0)
    source.apply(answer(source.question(), judged_soon(10.0, "BLOCKED")))
    assert source.question() == WaitsQuery(1.0)


def test_a_place_has_its_own_words_reason() -> None:
    """Of a pool with a LEAK and a BLOCKED each place says why it is what it is, in the node's words."""
    who = {"host": "ctl1", "program": "api", "pool": "mysql://db1/nova"}
    said = (
        "held for 41s: give it back; BLOCKED: held for 12s in the database: look for a lock: connmon whois 7"
        "; SATURATED: 3 wait: the cause: 1 leaked connection is never given back; give back what is taken"
    )
    other = {**who, "instance": "i1", "verdict": "BLOCKED", "verdict_reason": "held for 9s", "waiting": 0}
    pool = {**who, "instance": "i2", "verdict": "LEAK", "verdict_reason": said, "waiting": 3}
    held = {**who, "instance": "i2", "held_seconds": 12.0}
    holders = [
        {**held, "call_site": "a.py:1 leaks", "verdict": "LEAK"},
        {**held, "call_site": "b.py:2 waits", "verdict": "BLOCKED"},
        {**held, "call_site": "c.py:3 works", "verdict": None},
    ]
    rows = aggregate.waits(
        [(("1",), other), (("2",), pool)], [((str(at),), row) for at, row in enumerate(holders)]
    )
    shown = {row["call_site"]: (row["verdict"], row["verdict_reason"]) for _, row in rows}
    assert shown == {
        "a.py:1 leaks": ("LEAK", said),
        "b.py:2 waits": (
            "BLOCKED", "held for 12s in the database: look for a lock: connmon whois 7"
        ),
        "c.py:3 works": (None, None),
    }  # fmt: skip


def test_other_processes_of_a_program_block_nobody() -> None:
    """What they hold of a pool of the same URL is not among the waits, where their own pool is well."""
    who = {"host": "ctl1", "program": "api", "pool": "mysql://db1/nova"}
    pools: list[dict[str, Any]] = [
        {**who, "instance": "i1", "verdict": "LEAK", "longest_held_seconds": 10.0},
        {**who, "instance": "i2", "verdict": None, "longest_held_seconds": 2.0},
    ]
    holders: list[dict[str, Any]] = [
        {**who, "instance": "i1", "held_seconds": 10.0, "call_site": "a.py:1 leaks", "verdict": "LEAK"},
        {**who, "instance": "i2", "held_seconds": 2.0, "call_site": "b.py:2 works", "verdict": None},
    ]
    rows = aggregate.waits([(("1",), row) for row in pools], [(("2",), row) for row in holders])
    assert [(row["call_site"], row["processes"]) for _, row in rows] == [("a.py:1 leaks", 1)]


def test_connects_a_second_are_known_from_the_second_report_on() -> None:
    """They are null before, and after a silence; of several reports those of the last seconds count."""
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
        rate = dict(source.rows())[key]["connects_per_second"]
        assert rate is None or isinstance(rate, float)
        return rate

    assert after(0.0, 91) is None
    assert after(2.0, 97) == pytest.approx(3.0)
    assert after(4.0, 97) == pytest.approx(1.5)
    assert after(30.0, 97) == pytest.approx(0.0)
    assert after(60.0, 97, ago=30.0) is None
    assert after(61.0, 5) is None  # it began again

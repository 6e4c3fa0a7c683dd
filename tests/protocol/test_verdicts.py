"""Verdicts: what is wrong with a pool, and why, by examples and by properties."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.protocol import verdicts
from connmon.protocol.document import JsonDatabase
from connmon.protocol.reports import HoldProfile
from connmon.protocol.values import HolderIn
from connmon.protocol.verdicts import (
    Hold,
    PoolFacts,
    Thresholds,
    TopCallSite,
    judge,
    rank,
    top_call_site,
)
from connmon.reader.server_maxima import judged_by
from tests.support.json_rows import typed

#: A pool at work, with nothing wrong.
WELL = PoolFacts(
    capacity=15, checked_out=6, longest_held=0.4, held_p95=0.3, held_samples=900, held_mean=0.1,
    held_ended=5_000, connect_p95=0.01, connect_samples=20,
    held=(Hold(1, 0.4, "api.py:88 list", "database", None, 7, 900, 0.3),),
)  # fmt: skip
#: The same, but nothing is known of times.
YOUNG = WELL._replace(held_p95=None, held_samples=0, held_mean=None, held_ended=0)


def words(facts: PoolFacts, **thresholds: Any) -> list[str]:
    return [verdict.word for verdict in judge(facts, Thresholds(**thresholds))]


def holding(*holds: Hold, facts: PoolFacts = WELL, **changes: Any) -> PoolFacts:
    """Return the facts of a pool of which these connections are held."""
    longest = max(hold.seconds for hold in holds)
    return facts._replace(held=holds, longest_held=longest, checked_out=len(holds), **changes)


def hold(
    seconds: float, where: HolderIn | None, ended: int | None = None, usual: float | None = None
) -> Hold:
    return Hold(1, seconds, None if ended is None else "jobs.py:12 run", where, None, 42, ended, usual)


def full(facts: PoolFacts, waiting: int = 4) -> PoolFacts:
    return facts._replace(checked_out=15, waiting=waiting, longest_wait=2.5)


def test_a_pool_at_work_has_no_verdict() -> None:
    """A busy, a new, an idle and an unknown pool have no verdict."""
    for facts in (WELL, YOUNG, PoolFacts(), WELL._replace(checked_out=0, held=(), longest_held=None)):
        assert judge(facts) == ()


def line(*counts: int, seconds: float = 0.4, where: HolderIn = "application", **changes: Any) -> PoolFacts:
    """Return a full pool of 15; `counts`: how many connections line 1 holds, line 2, and so on."""
    held = tuple(
        Hold(10 * number + at, seconds, f"jobs.py:{number} run", where, None, None, 900, 0.3)
        for number, count in enumerate(counts, 1)
        for at in range(count)
    )
    return full(WELL._replace(held=held, longest_held=seconds, **changes))


def test_the_line_that_fills_a_full_pool() -> None:
    """A call site with more than half of what is checked out is SATURATED, with the pool's advice."""
    found = verdicts.filler(line(15))
    assert found is not None
    assert found[0] == "jobs.py:1 run"
    assert found[1].word == "SATURATED"
    assert found[1].reason == (
        "15 connections taken here fill a pool for which 4 wait up to 2.5s: holds are short: give "
        "connections back before the application's own work, or raise pool_size"
    )
    found = verdicts.filler(line(3, 12, seconds=9.0, where="database"))
    assert found is not None and found[0] == "jobs.py:2 run"
    assert found[1].reason == (
        "12 connections taken here are most of the 15 of a full pool for which 4 wait up to 2.5s: the "
        "database takes the time: shorten the transaction or its statements, or look for a lock"
    )
    assert (
        found[1].reason.rpartition("2.5s: ")[2] in judge(line(3, 12, seconds=9.0, where="database"))[0].reason
    )
    one = line(1)._replace(capacity=1, checked_out=1, waiting=1, longest_wait=0.0)
    found = verdicts.filler(one)
    assert found is not None
    assert found[1].reason.startswith("a connection taken here fills a pool for which 1 waits: ")
    found = verdicts.filler(line(15, headroom=0))
    assert found is not None and "the database server takes no more connections" in found[1].reason


def test_no_line_fills_a_pool_that_is_not_known_to() -> None:
    """No call site fills a pool if it holds half or less, most are unknown, or nobody waits."""
    for facts in (
        line(7, 8)._replace(checked_out=16), line(7, 7), line(5, 5, 5), line(7), WELL, PoolFacts(),
        line(15)._replace(waiting=0), line(15)._replace(checked_out=14),
        line(15)._replace(held=[hold(0.4, "application")] * 15),
        line(15)._replace(held=[each._replace(detached=True) for each in line(15).held]),
    ):  # fmt: skip
        assert verdicts.filler(facts) is None
    found = verdicts.filler(line(7, 8))
    assert found is not None and found[0] == "jobs.py:2 run"
    leaked = line(2, 13)
    gone = [each._replace(seconds=99.0, holder_in="ended") for each in leaked.held[:2]]
    leaked = leaked._replace(held=[*gone, *leaked.held[2:]])
    found = verdicts.filler(leaked)
    assert found is not None
    assert found[1].reason.endswith(
        "the cause: 2 leaked connections are never given back; give back what is taken"
    )


# --- LEAK and BLOCKED -------------------------------------------------------------------------


def test_a_leak_is_what_nobody_works_with() -> None:
    """If the holder has ended, a long hold is a leak, unless the call site is known for longer ones."""
    assert words(holding(hold(41.0, "ended", 100, 0.01))) == ["LEAK"]
    assert words(holding(hold(29.0, "ended", 100, 0.01))) == []
    assert words(holding(hold(41.0, "ended", 100, 50.0))) == []
    assert words(holding(hold(41.0, "ended", 100, 20.0))) == ["LEAK"]
    assert words(holding(hold(41.0, "ended"), held_p95=50.0)) == ["LEAK"]
    assert words(holding(hold(41.0, "ended"), facts=YOUNG)) == ["LEAK"]
    # One hold that has ended is no usual one: here the other one, a leak too, until it was given back.
    assert words(holding(hold(41.0, "ended", 1, 900.0))) == ["LEAK"]


def test_a_holder_elsewhere_leaks_only_against_history() -> None:
    """A session taken in a helper function is used elsewhere: 45 s of it are no leak.

    A call site that leaks each time has no history of its own: the pool's history, or time, shows it.
    """
    assert words(holding(hold(45.0, "elsewhere", 100, 5.0))) == []
    assert words(holding(hold(51.0, "elsewhere", 100, 5.0))) == ["LEAK"]
    assert words(holding(hold(45.0, "elsewhere", 1, 40.0), facts=YOUNG)) == []
    assert words(holding(hold(45.0, "elsewhere"), facts=YOUNG)) == []
    assert words(holding(hold(45.0, "elsewhere"), held_p95=5.0)) == []
    # refund() has never given anything back, in a pool whose holds take 11 ms; or too seldom.
    for ended in (0, verdicts.LEAST_SAMPLES - 1):
        refund = hold(31.0, "elsewhere", ended, None)
        assert words(holding(refund, held_p95=0.011)) == ["LEAK"]
        assert words(holding(refund, held_p95=None, held_samples=0, held_mean=0.011)) == ["LEAK"]
        assert words(holding(refund, held_p95=0.011, held_samples=1, held_ended=1)) == []
    # And where the pool says nothing: 10 times as long as what is long.
    assert words(holding(hold(299.0, "elsewhere", 0, None), facts=YOUNG)) == []
    assert words(holding(hold(300.0, "elsewhere", 0, None), facts=YOUNG)) == ["LEAK"]
    assert words(holding(hold(300.0, "elsewhere", 1, 0.01), facts=YOUNG)) == []
    assert words(holding(hold(4000.0, "elsewhere"), facts=YOUNG)) == []


def test_own_work_is_no_leak() -> None:
    """A function that still runs works with its connection, however long and unusual the hold is."""
    assert words(holding(hold(4000.0, "application", 100, 0.01))) == []
    assert words(holding(hold(4000.0, "application", 0, None))) == []
    # Where the line is not known, it may be elsewhere as well: its pool's history is all that is known.
    assert words(holding(hold(41.0, "application"))) == ["LEAK"]
    assert words(holding(hold(41.0, "application"), facts=YOUNG)) == []


def test_an_unknown_holder_leaks_only_against_history() -> None:
    """Without a known holder, recent holds decide, else all that have ended, else there is no verdict."""
    unknown = hold(41.0, None)
    assert words(holding(unknown)) == ["LEAK"]
    assert words(holding(unknown, held_p95=5.0)) == []
    assert words(holding(unknown, held_p95=None, held_samples=0)) == ["LEAK"]
    assert words(holding(unknown, held_p95=None, held_samples=0, held_mean=5.0)) == []
    assert words(holding(unknown, held_p95=0.01, held_samples=1, held_ended=1)) == []
    assert words(holding(unknown, facts=YOUNG)) == []


def test_who_has_not_been_looked_for_does_not_leak() -> None:
    """Processes look for holders after 30 s; a smaller verdict_held_long makes no leak before."""
    assert words(holding(hold(29.0, None, 100, 0.01)), held_long=5.0) == []
    assert words(holding(hold(29.0, "ended", 100, 0.01)), held_long=5.0) == ["LEAK"]
    assert words(holding(hold(30.0, None, 100, 0.01)), held_long=5.0) == ["LEAK"]


@pytest.mark.parametrize("where", [None, "application"])
def test_a_pool_whose_long_holds_are_all_that_it_does(where: HolderIn | None) -> None:
    """In a pool whose holds take 40 s no hold is a leak, from the first to the tenth."""
    for ended in range(10):
        for seconds in (1.0, 31.0, 39.9):
            usual = 40.0 if ended else None
            batch = PoolFacts(
                capacity=15, checked_out=2, longest_held=seconds, held_p95=usual, held_samples=ended,
                held_mean=usual, held_ended=ended,
                held=[hold(seconds, where, ended, usual), hold(seconds, where)._replace(number=2)],
            )  # fmt: skip
            assert judge(batch) == ()


def test_who_waits_for_the_database_is_blocked() -> None:
    """A long hold in the database is BLOCKED if unusual or without history; the reason names whois."""
    assert words(holding(hold(41.0, "database", 100, 0.01))) == ["BLOCKED"]
    assert words(holding(hold(41.0, "database"), facts=YOUNG)) == ["BLOCKED"]
    assert words(holding(hold(29.0, "database", 100, 0.01))) == []
    assert words(holding(hold(41.0, "database", 100, 20.0))) == []
    # Too few have ended to say what is usual for the line: then the pool does.
    assert words(holding(hold(41.0, "database", 1, 20.0))) == ["BLOCKED"]
    assert words(holding(hold(41.0, "database", 1, 0.01), held_p95=20.0)) == []
    assert words(holding(hold(41.0, "database"), held_p95=20.0, held_samples=1, held_ended=1)) == ["BLOCKED"]
    (verdict,) = judge(holding(hold(41.0, "database", 100, 0.01)))
    assert verdict.reason == (
        "a connection taken at jobs.py:12 run has been held for 41s in the database, where 10ms is usual for "
        "that line (p95): look for a lock: connmon whois 42 --database URL names the session that blocks"
    )
    (verdict,) = judge(holding(hold(41.0, "database", 100, 0.01)._replace(server_id=None)))
    assert "connmon whois ID --database URL" in verdict.reason


def test_the_reason_of_a_leak() -> None:
    """The reason has call site, duration, holder and the usual hold; of several the longest."""
    leak = Hold(1, 4020.0, "jobs.py:12 run", "ended", None, 42, 100, 0.0005)
    (verdict,) = judge(holding(leak))
    assert verdict.reason == (
        "a connection taken at jobs.py:12 run has been held for 1h07m, its thread or task has ended, where "
        "0.5ms is usual for that line (p95): give it back"
    )
    other = Hold(2, 41.0, "api.py:88 list", "elsewhere", "main.py:5 loop", 43, 100, 0.0005)
    (verdict,) = judge(holding(leak, other))
    assert verdict.reason.startswith("2 connections are held, the longest taken at jobs.py:12 run for 1h07m")
    (verdict,) = judge(holding(other))
    assert "its holder is elsewhere (now at main.py:5 loop)" in verdict.reason


# --- SATURATED --------------------------------------------------------------------------------


def test_saturated_is_a_full_pool() -> None:
    """Only a full pool with waits is saturated; a pool without a limit is full if somebody waits."""
    assert words(full(WELL)) == ["SATURATED"]
    assert words(WELL._replace(waiting=4)) == []
    assert words(WELL._replace(waiting=4, capacity=None)) == ["SATURATED"]


def many(number: int, seconds: float, line: str, where: HolderIn, site: str | None = None) -> list[Hold]:
    return [Hold(at, seconds, line, where, site, None, 900, 0.7) for at in range(number)]


def test_what_fills_a_pool_and_where_it_is() -> None:
    """The reason names two call sites with the places of their holders, the p95 and the longest hold."""
    holds = [
        *many(9, 22.0, "api.py:88 list", "database"),
        *many(5, 0.2, "jobs.py:12 run", "application", "pdf.py:3 draw"),
        *many(1, 0.1, "x.py:1 f", "database"),
    ]  # fmt: skip
    (verdict,) = judge(full(WELL._replace(held=holds, held_p95=0.7)))
    assert verdict.reason == (
        "4 wait up to 2.5s, 15 of 15 checked out, taken at api.py:88 list (9, in the database) and "
        "jobs.py:12 run (5, in own work at pdf.py:3 draw) and 1 more line, held 0.7s (p95), the longest now "
        "for 22s: the database takes the time: shorten the transaction or its statements, or look for a lock"
    )


def test_a_detached_connection_fills_no_pool() -> None:
    """A detached connection is never blocked, and never the cause of a full pool."""
    own = Hold(99, 4000.0, "listen.py:7 wait", "database", None, 8, 0, None, detached=True)
    assert words(holding(own)) == []
    assert words(holding(own._replace(holder_in="elsewhere"))) == []
    assert words(holding(own._replace(holder_in="ended"))) == ["LEAK"]
    for place in ("database", "ended"):
        held = (*many(15, 0.7, "api.py:88 list", "application"), own._replace(holder_in=place))
        reason = judge(full(WELL._replace(held=held, longest_held=4000.0)))[-1].reason
        assert "taken at api.py:88 list (15, in own work), held" in reason
        assert "the longest now for 0.7s: holds are short" in reason
    assert "longest" not in judge(full(WELL._replace(held=[own], longest_held=4000.0)))[0].reason


def test_where_holders_are_of_a_pool_whose_lines_are_not_known() -> None:
    """If call sites are unknown, the reason names the lines where the holders are now."""
    holds = [hold._replace(call_site=None) for hold in many(3, 0.2, "x", "application", "pdf.py:3 draw")]
    (verdict,) = judge(full(WELL._replace(held=holds)))
    assert ", their holders now at pdf.py:3 draw (3, in own work at pdf.py:3 draw)," in verdict.reason


def test_a_pool_that_waits_for_itself() -> None:
    """A holder that waits for another connection is no leak; the reason names it as the cause."""
    holds = many(15, 45.0, "orders.py:88 checkout", "waiting", "stock.py:7 reserve")
    assert words(full(WELL._replace(held=holds))) == ["SATURATED"]
    (verdict,) = judge(full(WELL._replace(held=holds, held_p95=0.7)))
    assert verdict.reason == (
        "4 wait up to 2.5s, 15 of 15 checked out, taken at orders.py:88 checkout (15, waiting for another "
        "connection at stock.py:7 reserve), held 0.7s (p95), the longest now for 45s: the cause: who holds a "
        "connection waits for another one: use one at a time, or give the first back before the second is "
        "taken"
    )


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "raise pool_size"),
        ({"headroom": 20}, "raise pool_size (the database server takes 20 more)"),
        ({"headroom": 0}, "the database server takes no more connections"),
        ({"held": many(15, 22.0, "a.py:1 f", "database")}, "the database takes the time"),
        ({"held": many(15, 22.0, "a.py:1 f", "application")}, "own work takes the time"),
        ({"held": many(15, 22.0, "a.py:1 f", "elsewhere")}, "give them back sooner"),
        ({"held": many(15, 22.0, "a.py:1 f", "waiting")}, "who holds a connection waits for another one"),
        ({"held": many(15, 0.2, "a.py:1 f", "waiting")}, "who holds a connection waits for another one"),
        ({"held_p95": 2.0, "held": ()}, "hold for a shorter time"),
        ({"held": many(15, 41.0, "a.py:1 f", "ended")}, "15 leaked connections are never given back"),
        ({"held": many(15, 41.0, "a.py:1 f", "database")}, "15 blocked connections wait in the database"),
    ],
)
def test_the_advice_follows_from_the_cause(changes: dict[str, Any], advice: str) -> None:
    """The advice is a larger pool only if holds are short and the server takes more; else the cause."""
    found = judge(full(WELL)._replace(**changes))
    reason = next(verdict.reason for verdict in found if verdict.word == "SATURATED")
    assert advice in reason
    assert ("raise pool_size" in reason) == advice.startswith("raise pool_size")


# --- TIMEOUTS, SLOW CONNECT, thresholds ---------------------------------------------------------


def test_recent_timeouts() -> None:
    """Only recent timeouts count; the config sets how many make a verdict."""
    assert words(WELL._replace(recent_timeouts=1)) == ["TIMEOUTS"]
    assert words(WELL._replace(recent_timeouts=9), timeouts=10) == []
    assert words(WELL._replace(recent_timeouts=10), timeouts=10) == ["TIMEOUTS"]


def test_slow_connects() -> None:
    """The p95 of several connects decides; one slow connect is no verdict."""
    assert words(WELL._replace(connect_p95=1.2)) == ["SLOW CONNECT"]
    assert words(WELL._replace(connect_p95=1.2, connect_samples=verdicts.LEAST_SAMPLES - 1)) == []
    assert words(WELL._replace(connect_p95=1.2), slow_connect=2.0) == []


def test_thresholds_of_holds() -> None:
    """The config sets which holds are long and which are short."""
    leak = holding(hold(41.0, "ended", 100, 0.01))
    assert words(leak, held_long=60.0) == []
    assert words(leak, held_long=5.0) == ["LEAK"]
    slow = full(WELL._replace(held_p95=2.0, held=()))
    assert "raise pool_size" not in judge(slow)[0].reason
    assert "raise pool_size" in judge(slow, Thresholds(short_hold=5.0))[0].reason


def test_the_gravest_comes_first() -> None:
    """A pool can have several verdicts: one waits because a connection does not come back."""
    holds = [hold(900.0, "ended", 100, 0.01), hold(50.0, "database", 100, 0.01)._replace(number=2)]
    facts = full(WELL._replace(held=holds, longest_held=900.0, recent_timeouts=3, connect_p95=2.0))
    assert words(facts) == ["LEAK", "BLOCKED", "SATURATED", "TIMEOUTS", "SLOW CONNECT"]


def test_overcommit() -> None:
    """A server whose pools may open more connections than it takes; unknown values make no verdict."""
    found = verdicts.overcommit(160, 151, "db1:3306")
    assert found is not None
    assert found.word == "OVERCOMMIT"
    assert "160 connections to db1:3306, which takes 151" in found.reason
    assert verdicts.overcommit(151, 151, "db1") is None
    assert verdicts.overcommit(None, 151, "db1") is None
    assert verdicts.overcommit(160, None, "db1") is None


# --- Where the time goes ----------------------------------------------------------------------


def top(
    held_ms: int, all_ms: int, where: dict[str, int], name: str = "orders.py:88 checkout"
) -> TopCallSite | None:
    return top_call_site("shop-api", all_ms, name, HoldProfile(held_ms=held_ms, where=where))


def test_a_full_pool_says_where_the_time_goes() -> None:
    """SATURATED names the call site that takes most time, and whether the database takes it."""
    outside = top(71_000, 100_000, {"database": 5_600, "requests": 50_000, "own code": 14_400})
    text = "71 % of shop-api's pool time is orders.py:88 checkout, 92 % of it outside the database (requests)"
    reasons = {verdict.word: verdict.reason for verdict in judge(full(WELL._replace(top=outside)))}
    assert f"; {text}: " in reasons["SATURATED"]
    filling = verdicts.filler(line(9, 6, top=outside))
    assert filling is not None and f"; {text}: " in filling[1].reason
    inside = top(71_000, 100_000, {"database": 88, "requests": 12})
    spent = top(71_000, 71_000, {"database": 62_480, "requests": 8_520})
    (verdict,) = judge(full(WELL._replace(top=spent)))
    assert "100 % of shop-api's pool time is orders.py:88 checkout, 88 % of it in the database: " in (
        verdict.reason
    )
    assert inside is None  # where it was is known of too little


def test_time_in_one_of_several_databases_names_it() -> None:
    """Where the program's time is not all in the pool's database, the reason says whose part it is of."""
    spent = top(71_000, 100_000, {"database": 88, "requests": 70_000})
    assert spent is not None
    (verdict,) = judge(full(WELL._replace(top=spent._replace(database="billing.db"))))
    assert "71 % of shop-api's pool time in billing.db is orders.py:88 checkout, 100 % of it outside" in (
        verdict.reason
    )


def test_little_time_is_not_quoted() -> None:
    """Below 30 % or 5 s, of all other call sites, or where mostly nobody looked, nothing is said."""
    known = {"database": 1_000, "requests": 9_000}
    assert top(10_000, 33_000, known) is not None
    assert top(10_000, 34_000, known) is None
    assert top(4_999, 4_999, {"requests": 4_999}) is None
    assert top(10_000, 10_000, known, "(other)") is None
    assert top(10_000, 10_000, {"requests": 4_999}) is None
    assert top(10_000, 10_000, {}) is None


def test_other_labels_have_no_name() -> None:
    """Where the largest part is of labels without an entry of their own, none is named."""
    spent = top(10_000, 10_000, {"database": 1, "requests": 4, "(other)": 9_000})
    assert spent is not None and spent.label is None
    (verdict,) = judge(full(WELL._replace(top=spent)))
    assert "100 % of it outside the database: " in verdict.reason


@given(
    st.integers(0, 10**9), st.integers(0, 10**9),
    st.dictionaries(st.sampled_from(["database", "requests", "own code", "(other)"]), st.integers(0, 10**9)),
)  # fmt: skip
def test_any_time_is_quoted_in_parts(held_ms: int, more_ms: int, where: dict[str, int]) -> None:
    """Both parts are between 0 and 1, whatever was reported."""
    spent = top_call_site("p", held_ms + more_ms, "a.py:1 f", HoldProfile(held_ms=held_ms, where=where))
    if spent is not None:
        assert 0.3 <= spent.share <= 1.0
        assert 0.0 <= spent.in_database <= 1.0


# --- For anything -----------------------------------------------------------------------------

SECONDS = st.one_of(st.sampled_from([0.0, 0.01, 1.0, 29.9, 30.0, 300.0]), st.floats(0.0, 1e9))
MAYBE = st.one_of(st.none(), SECONDS)
COUNTS = st.integers(0, 20)
LINES = st.sampled_from([None, "a.py:1 f", "b.py:2 g", "c.py:3 h"])
WHERE = st.sampled_from([None, *get_args(HolderIn)])
HOLDS = st.builds(
    Hold, st.integers(0, 9), SECONDS, LINES, WHERE, LINES, st.none(), st.one_of(st.none(), COUNTS), MAYBE,
    st.booleans(),
)  # fmt: skip
FACTS = st.builds(
    PoolFacts, st.one_of(st.none(), COUNTS), COUNTS, COUNTS, SECONDS, MAYBE,
    st.lists(HOLDS, max_size=6, unique_by=lambda hold: hold.number), MAYBE, COUNTS, MAYBE, COUNTS, COUNTS,
    MAYBE, COUNTS, st.one_of(st.none(), st.integers(-5, 5)),
    st.one_of(
        st.none(),
        st.builds(
            TopCallSite, st.text(st.characters(exclude_categories=["C", "Z"])), st.just("a.py:1 f"),
            st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.sampled_from([None, "requests", "own code"]),
            st.sampled_from([None, "billing.db"]),
        ),
    ),
)  # fmt: skip


@given(FACTS)
def test_anything_can_be_judged(facts: PoolFacts) -> None:
    """Any facts can be judged: each word at most once, the gravest first, on one line."""
    found = judge(facts)
    ranks = [rank(verdict.word) for verdict in found]
    assert ranks == sorted(set(ranks), reverse=True)
    assert "\n" not in verdicts.explained(found)
    assert all(verdict.reason for verdict in found)
    stuck = set(verdicts.stuck(facts).values())
    assert stuck == {verdict.word for verdict in found} & {"LEAK", "BLOCKED"}


@given(FACTS, st.floats(0.0, 1e6))
def test_a_longer_hold_is_never_better(facts: PoolFacts, more: float) -> None:
    """A leaked or blocked connection stays so while it is held."""
    longer = facts._replace(held=[hold._replace(seconds=hold.seconds + more) for hold in facts.held])
    assert verdicts.stuck(facts).items() <= verdicts.stuck(longer).items()


@given(FACTS)
def test_who_waits_for_the_database_never_leaks(facts: PoolFacts) -> None:
    """A holder in the database is never a leak, and only such a holder is blocked."""
    for number, word in verdicts.stuck(facts).items():
        (where,) = [hold.holder_in for hold in facts.held if hold.number == number]
        assert (word == "BLOCKED") == (where == "database")


# --- The page -------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def test_the_page_has_every_word_and_threshold_and_tests_that_exist() -> None:
    """docs/verdicts.rst says when each verdict is made, with the test that shows it."""
    page = (ROOT / "docs/verdicts.rst").read_text()
    tests = (ROOT / "tests/protocol/test_verdicts.py").read_text() + (
        ROOT / "tests/cluster/state/test_judging.py"
    ).read_text()
    named = re.findall(r"``(test_\w+)``", page)
    assert len(named) > len(verdicts.WORDS)
    assert [name for name in named if f"def {name}(" not in tests] == []
    assert [word for word in verdicts.WORDS if f"\n{word} " not in page] == []
    assert [word for word in verdicts.WORDS if f"\n{word}\n    " not in page] == []
    assert [name for name in Thresholds._fields if f"verdict_{name}:" not in page] == []


# --- By a reader's own maxima --------------------------------------------------------------------


def database(host: str, name: str, capacity: int | None, **changes: Any) -> JsonDatabase:
    row: JsonDatabase = typed(
        "database",
        {
            "dialect": "mysql", "database_host": host, "database_port": 3306, "database": name,
            "capacity": capacity, "state": "connected", **changes,
        },
    )  # fmt: skip
    return row


def test_a_readers_own_maxima_count_all_databases_of_a_server() -> None:
    """Capacities are summed by server; a server with an unknown maximum has no verdict."""
    rows = [database("db1", name, 80) for name in ("nova", "neutron")]
    rows.append(database("db2", "nova", 500))
    judged = judged_by(rows, {("db1", None): 151})
    assert [row.verdict for row in judged] == ["OVERCOMMIT", "OVERCOMMIT", None]
    assert "160 connections to db1:3306, which takes 151" in str(judged[0].verdict_reason)
    assert rows[0].server_max is None
    # A pool whose URL names several servers may open all it can at each of them.
    either = database("DB1:3306,db3:3306", "x", 20, database_port=None)
    (_, _, _, last) = judged_by([*rows, either], {("Db1", None): 170, ("db3", 3306): 500})
    assert "180 connections to db1:3306, which takes 170" in str(last.verdict_reason)
    lost = database("db1", "nova", None, state="lost")
    judged = judged_by([*rows, lost], {("db1", None): 151})
    assert [row.server_capacity for row in judged] == [160, 160, None, 160]
    assert judged_by([lost], {("db1", None): 151})[0].server_capacity is None
    rows[0] = database("db1", "nova", None)
    assert judged_by(rows, {("db1", 3306): 151})[1].verdict is None

"""What `connmon profile` prints: the table, folded stacks, and speedscope's JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from wcwidth import wcswidth

from connmon.protocol.rows import SiteRow
from connmon.reader.profile import MeasuredProfile, recent_profile, total_of
from connmon.reader.profile_formats import (
    as_folded,
    as_speedscope,
    folded_frame,
    printed_profile,
    profile_table,
)
from tests.reader.test_profile import hold_profile, site_row, totals

CHECKOUT = "shop/views/checkout.py:118 place_order"


def recent_row(call_site: str, held_ms: int, where: dict[str, int], **changes: Any) -> SiteRow:
    profile = hold_profile(
        held_ms, where, holds=changes.pop("holds", 0), caused_ms=changes.pop("caused_ms", 0)
    )
    return site_row(call_site, profile=profile, recent=profile, recent_seconds=100.0, **changes)


def measured(*rows: SiteRow) -> MeasuredProfile:
    return recent_profile(totals(*rows))


SHOP = measured(
    recent_row(
        CHECKOUT, 400_000, {"database": 32_000, "requests": 360_000, "own code": 8_000},
        holds=200, caused_ms=150_000,
    ),
    recent_row(
        "shop/views/search.py:44 suggest", 60_000, {"database": 60_000}, holds=8_000, estimated=True
    ),
    recent_row("build.py:97 build", 40_000, {}, program="reports", host="batch1"),
)  # fmt: skip


TABLE = """\
100.0 s measured on node1, 5.00 connections held on average, 20 % in the database

SHARE  HELD  IN DB  WHAT ELSE                                 HOLDS/S  MEAN HOLD  WAITING CAUSED  CALL SITE                               PROGRAM  HOST
 80 %  4.00    8 %  requests 90 %, own code 2 %                  2.00       2.0s            1.50  shop/views/checkout.py:118 place_order  shop     web1
~12 %  0.60  100 %                                               80.0        8ms               0  shop/views/search.py:44 suggest         shop     web1
  8 %  0.40      -  unknown                                         0          -               0  build.py:97 build                       reports  batch1
100 %  5.00   20 %  requests 78 %, own code 2 %, unknown 8 %     82.0       61ms            1.50  total of 3 call sites
"""  # noqa: E501


# --- The table --------------------------------------------------------------------------------


def test_the_table() -> None:
    """A head, a line for each call site, the most time first, and the total."""
    assert profile_table(SHOP) == TABLE


def test_time_at_which_nobody_looked_is_unknown() -> None:
    """Without any look nothing is said of the database; one hold is no mean of none."""
    lines = profile_table(measured(recent_row("a.py:1 f", 10_000, {}))).splitlines()
    assert lines[0].endswith(", 0.10 connections held on average, how much in the database is unknown")
    assert lines[3].split()[:6] == ["100", "%", "0.10", "-", "unknown", "0"]
    partly = profile_table(measured(recent_row("a.py:1 f", 10_000, {"database": 1_000, "boto3": 3_000})))
    assert " 25 %  boto3 75 %, unknown 60 %  " in partly


def test_places_beyond_the_third_are_counted() -> None:
    """Where they are half a percent together; what is less is not worth a word."""
    where = {"database": 500, "a": 200, "b": 150, "c": 100, "d": 30, "e": 17, "f": 3}
    lines = profile_table(measured(recent_row("x.py:1 f", 1_000, where))).splitlines()
    assert "  a 20 %, b 15 %, c 10 %, 3 more 5 %  " in lines[3]
    lines = profile_table(measured(recent_row("x.py:1 f", 1_000, {"database": 997, "a": 3}))).splitlines()
    assert lines[3].split()[3:6] == ["100", "%", "0"]


def test_small_figures_are_not_nothing() -> None:
    """What is too small for its digits differs from 0."""
    lines = profile_table(
        measured(
            recent_row("a.py:1 f", 10_000_000, {"database": 10_000_000}, holds=5_000),
            recent_row("b.py:1 f", 1, {"own code": 1}, holds=1),
        )
    ).splitlines()
    assert lines[3].split()[:3] == ["100", "%", "100"]
    assert lines[4].split()[:3] == ["<1", "%", "<0.01"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 250])
def test_the_table_fits_the_terminal(width: int) -> None:
    """Rows are never wider than the terminal; where the holders are stays as long as there is room."""
    lines = profile_table(SHOP, width).splitlines()
    assert len(lines) == 7
    assert all(wcswidth(line) <= width for line in lines[1:])
    assert ("WHAT ELSE" in lines[2]) == (width >= 80)
    assert "checkout.py:118" in lines[3]


def test_in_a_pipe_all_call_sites_are_there() -> None:
    """No call site is cut away, and none is shortened."""
    rows = [recent_row(f"a/long/path/{n}.py:{n} f", 1_000 + n, {}) for n in range(500)]
    lines = profile_table(measured(*rows)).splitlines()
    assert len(lines) == 504
    assert sum("a/long/path/" in line for line in lines) == 500


def test_nothing_was_held() -> None:
    """Then the head is all."""
    idle = site_row("a", recent=hold_profile(), recent_seconds=90.0)
    assert profile_table(measured(idle)) == "node1: nothing was held in 90.0 s\n"
    assert profile_table(measured()) == "node1: nothing was held in the last minutes\n"
    assert as_folded(measured()) == ""


# --- Folded stacks ----------------------------------------------------------------------------


def test_folded_stacks() -> None:
    """A line for each call site and place in milliseconds; hosts are the roots where there are several."""
    assert as_folded(SHOP).splitlines() == [
        f"web1;shop;{CHECKOUT};requests 360000",
        f"web1;shop;{CHECKOUT};database 32000",
        f"web1;shop;{CHECKOUT};own code 8000",
        "web1;shop;shop/views/search.py:44 suggest;database 60000",
        "batch1;reports;build.py:97 build;unknown 40000",
    ]
    assert as_folded(measured(recent_row("a.py:1 f", 9, {"database": 4}))).splitlines() == [
        "shop;a.py:1 f;database 4",
        "shop;a.py:1 f;unknown 5",
    ]


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("a.py:1 f", "a.py:1 f"), ("a;b", "a:b"), ("a\nb\x1b[2J\u202e", "a?b?[2J?"), ("", "?"), (" ", "?"),
        ("own 12", "own_12"), ("x 1 2", "x 1_2"), ("x 1.5", "x_1.5"), ("12", "12"),
    ],
)  # fmt: skip
def test_names_in_folded_stacks(name: str, frame: str) -> None:
    """Nothing in a name ends a frame or a line, reaches a terminal, or looks like the value."""
    assert folded_frame(name) == frame


def parsed(folded: str) -> Counter[tuple[str, ...]]:
    """Return the stacks as flamegraph.pl reads them: a second number would be of a differential profile."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in folded.split("\n")[:-1]:
        match = re.fullmatch(r"(.*)\s+?(\d+(?:\.\d*)?)", line)
        assert match, line
        assert not re.fullmatch(r"(.*)\s+?(\d+(?:\.\d*)?)", match[1]), line
        stacks[tuple(match[1].split(";"))] += int(match[2])
    return stacks


NAMES = st.text(max_size=8) | st.sampled_from(["a.py:3 f", "x;y", "own code", "n 5", "a\nb", "\x1b[2J"])
ROWS = st.lists(
    st.builds(
        lambda host, program, call_site, held_ms, where: recent_row(
            call_site, held_ms, where, host=host, program=program
        ),
        st.sampled_from(["web1", "web2"]),
        NAMES,
        NAMES,
        st.integers(0, 10**10),
        st.dictionaries(NAMES, st.integers(0, 10**9), max_size=5),
    ),
    max_size=6,
)


@given(ROWS)
def test_folded_stacks_sum_to_what_was_held(rows: list[SiteRow]) -> None:
    """Exactly, whatever the names are, and each stack is there once."""
    profile = measured(*rows)
    folded = as_folded(profile)
    stacks = parsed(folded)
    assert sum(stacks.values()) == total_of(profile.sites).held_ms
    assert len(stacks) == folded.count("\n")
    assert {len(stack) for stack in stacks} <= {4 if profile.several_hosts else 3}
    assert all(line.isprintable() for line in folded.split("\n"))


# --- speedscope -------------------------------------------------------------------------------

SCHEMA = Draft7Validator(
    json.loads(Path(__file__).with_name("speedscope").joinpath("file-format-schema.json").read_text())
)


def test_a_file_for_speedscope() -> None:
    """A profile for each program, in milliseconds; a call site has its file and line."""
    document = json.loads(printed_profile(SHOP, "speedscope"))
    SCHEMA.validate(document)
    shop, reports = document["profiles"]
    assert (shop["name"], shop["unit"], shop["endValue"]) == ("shop", "milliseconds", 460_000)
    assert (reports["name"], reports["endValue"]) == ("reports", 40_000)
    frames = document["shared"]["frames"]
    assert [[frames[number]["name"] for number in sample] for sample in shop["samples"]] == [
        ["web1", CHECKOUT, "requests"],
        ["web1", CHECKOUT, "database"],
        ["web1", CHECKOUT, "own code"],
        ["web1", "shop/views/search.py:44 suggest", "database"],
    ]
    assert shop["weights"] == [360_000, 32_000, 8_000, 60_000]
    assert {"name": CHECKOUT, "file": "shop/views/checkout.py", "line": 118} in frames
    assert document["name"] == "connmon profile: 100.0 s on node1"


def test_speedscope_and_call_sites_without_a_line() -> None:
    """ "(other)" has no file; a place of the same name as a call site is a frame of its own."""
    frames = as_speedscope(
        measured(
            recent_row("(other)", 9, {"(other)": 9}),
            recent_row("/srv/a b.py:7", 9, {}),
        )
    )["shared"]["frames"]
    assert frames == [
        {"name": "(other)"},
        {"name": "(other)"},
        {"name": "/srv/a b.py:7", "file": "/srv/a b.py", "line": 7},
        {"name": "unknown"},
    ]


def test_the_schema_refuses_another_document() -> None:
    """The check of these tests is one."""
    document = as_speedscope(SHOP)
    document["profiles"][0]["unit"] = "hours"
    assert not SCHEMA.is_valid(document)
    assert not SCHEMA.is_valid({})


@given(ROWS)
def test_the_weights_of_speedscope_sum_to_what_was_held(rows: list[SiteRow]) -> None:
    """Of each program exactly; every sample names frames that exist, and the schema accepts it."""
    profile = measured(*rows)
    text = printed_profile(profile, "speedscope")
    document = json.loads(text)
    SCHEMA.validate(document)
    assert text.isascii() and text.count("\n") == 1
    total: Counter[str] = Counter()
    for site in profile.sites:
        total[site.program] += site.profile.held_ms
    assert {entry["name"]: sum(entry["weights"]) for entry in document["profiles"]} == total
    frames = document["shared"]["frames"]
    for entry in document["profiles"]:
        assert entry["endValue"] == sum(entry["weights"])
        assert len(entry["samples"]) == len(entry["weights"])
        assert all(0 <= number < len(frames) for sample in entry["samples"] for number in sample)

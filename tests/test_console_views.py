"""The console's screens, as text.

`python -m tests.test_console_views` writes the golden screens anew; read the difference before you keep it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connmon.console import columns, keys, state, text, views
from connmon.console.state import Picture, Silence, State, Want
from tests.console_fakes import many
from tests.test_console_state import opened, pictured

GOLDEN = Path(__file__).parent / "golden" / "console"


def scenes() -> dict[str, State]:
    """The screens that are kept as text."""
    empty = pictured(State("connmon_service=default", now=100.0), ())
    lost = opened("enter", "down", "end", "enter")
    silent = state.silenced(
        replace(opened(), now=141.0), Silence("no node reachable: node1 (ctl1:5800): refused")
    )
    return {
        "programs": opened("down"),
        "processes": opened("enter"),
        "connections": opened("enter", "enter", "tab", "down"),
        "help": state.pressed(opened(), "?"),
        "empty": empty,
        "lost": lost,
        "no-quorum": pictured(opened(), quorum=False),
        "disconnected": silent,
        "asking": State("connmon_service=default", now=100.0),
        "another-node": state.noted(opened(), "node2 does not answer: now reading from node1"),
    }


def screen(shown: State, width: int, height: int) -> str:
    """The screen as the loop makes it, as text."""
    shown = state.fitted(shown, views.layout(shown, width, height).panes)
    return views.plain(views.view(shown, width, height)) + "\n"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
@pytest.mark.parametrize("scene", scenes())
def test_golden_screens(scene: str, width: int, height: int) -> None:
    """Each screen is what was looked at and found right."""
    golden = (GOLDEN / f"{scene}-{width}x{height}.txt").read_text()
    assert screen(scenes()[scene], width, height) == golden


def test_without_quorum_it_is_said_since_when_the_picture_stands() -> None:
    """The banner has how long, and the time of day, which stays the same while the picture does."""
    shown = replace(pictured(opened(), quorum=False), stands_since="17:03:12")
    assert "NO QUORUM on node1: this picture has stood still for 41s, since 17:03:12" in screen(shown, 80, 24)


def test_the_whole_incident_is_in_the_first_screen() -> None:
    """At 80x24 the totals, who waits, how long, and who holds longest are all there."""
    shown = screen(opened(), 80, 24)
    for fact in (
        "node node1",
        "leader node1",
        "quorum yes",
        "hosts 2",
        "programs 5",
        "processes 15",
        "connections 136",
        "checked out 37",
        "capacity 375",
        "waiting 5",
        "checkouts/s 402.3",
        "nova-api",
        "78 (80)",
        "31 (47)",
        "12s",
        "41s",
        "3d02h",
        "lost",
        "gone",
    ):
        assert fact in shown


def test_what_a_colour_says_a_word_says_too() -> None:
    """Every row with a role of its own has the word of it in its text."""
    shown = pictured(State(""))
    for line in views.view(shown, 80, 24)[7:12]:
        roles = {role for _, role in line} - {"", "cursor"}
        assert roles <= {"connected", "waiting", "lost", "gone"}
        assert all(role in "".join(part for part, _ in line) for role in roles)


def test_help_and_footer_say_what_the_table_of_keys_says() -> None:
    """Each binding is on the help screen; what the footer shows are bindings of the table."""
    helped = screen(state.pressed(opened(), "?"), 80, 50)
    for binding in keys.BINDINGS:
        assert f"{binding.shown:<10}{binding.does}" in helped
    footer = screen(opened("enter", "enter"), 200, 24).splitlines()[-1]
    for binding in keys.BINDINGS:
        assert not binding.short or binding.action == "open" or binding.shown in footer


def test_columns_go_and_come_with_the_width_whole() -> None:
    """A heading is whole at every width, the narrower shows a part of the wider; names shrink last."""
    rows = [row for _, row in opened().page.pane.rows or ()]
    before = 0
    for width in range(19, 240):
        fitted, gap = columns.fit("program", rows, width, 2, "waiting")
        for place in fitted:
            assert all(text.width(part) <= place.width for part in place.heading)
        assert sum(place.width for place in fitted) + gap * (len(fitted) - 1) <= width
        assert {"program", "waiting"} <= {place.column.key for place in fitted}
        assert len(fitted) >= before or gap == 2
        before = len(fitted)


def test_numbers_stand_at_the_right_and_the_unknown_is_a_dash() -> None:
    """Digits of one column end at one place; a value that is not known is "-"."""
    lines = screen(opened("enter"), 80, 24).splitlines()[6:9]
    assert [line[:13] for line in lines] == [">4711      15", " 4712       9", " 4713       -"]
    assert "- (11)" in lines[2]


def test_no_control_character_reaches_the_terminal() -> None:
    """Names are foreign: what a terminal would act upon is shown as "?"."""
    shown = _filled(
        State(""), [{"host": "a\x1b]0;x\x07", "program": "b\r\n\u202e日本", "state": "connected"}]
    )
    kept = screen(shown, 80, 24)
    assert kept.replace("\n", "").isprintable()
    assert "a?]0;x?" in kept
    assert "b???日本" in kept


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (512, "512B"), (148_000_000, "141M"), (1_300_000_000, "1.2G")]
)
def test_sizes(value: int | None, shown: str) -> None:
    """Bytes are shown with a unit of powers of 1024."""
    assert columns.size(value) == shown


def _filled(shown: State, rows: list[dict[str, Any]]) -> State:
    """The state with these rows in all its panes."""
    tables = {want: [((want.by, str(at)), row) for at, row in enumerate(rows)] for want in shown.wants}
    head: dict[str, Any] = {
        "service": "s",
        "node": rows[0].get("host") if rows else None,
        "leader": None,
        "quorum": False,
        "totals": {},
    }
    return state.pictured(shown, Picture(head, tables, 1.0, "now"))


NAMES = st.one_of(st.none(), st.text(max_size=40))
COUNTS = st.one_of(st.none(), st.integers(0, 2**53))
TIMES = st.one_of(st.none(), st.floats(0, 1e12))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "host": NAMES,
            "program": NAMES,
            "state": st.sampled_from([None, "lost", "connected", "gone", "checked_out"]),
        },
        optional={
            "pid": COUNTS,
            "pool": NAMES,
            "waiting": COUNTS,
            "connections": COUNTS,
            "max_connections": COUNTS,
            "longest_wait_seconds": TIMES,
            "checkouts_per_second": TIMES,
            "rss_bytes": COUNTS,
            "command": NAMES,
            "holder": NAMES,
            "call_site": NAMES,
            "held_seconds": TIMES,
            "cpu_percent": TIMES,
            "connection": COUNTS,
        },
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(
    ROWS,
    st.integers(1, 220),
    st.integers(1, 60),
    st.lists(st.sampled_from(list(keys.ACTIONS)), max_size=6),
    st.booleans(),
    st.text(max_size=100),
)
def test_nothing_is_wider_or_higher_than_the_screen(
    rows: list[dict[str, Any]], width: int, height: int, pressed: list[str], silent: bool, reason: str
) -> None:
    """At any size and with any data, lines fit the width, their number the height; all is printable."""
    shown = _filled(State("connmon_addr=h:1"), rows)
    for key in pressed:
        shown = _filled(state.pressed(shown, key), rows)
    if silent:
        shown = state.silenced(replace(shown, now=50.0), Silence(reason))
    shown = state.fitted(shown, views.layout(shown, width, height).panes)
    lines = views.view(shown, width, height)
    assert len(lines) <= height
    for line in lines:
        line_text = "".join(part for part, _ in line)
        assert text.width(line_text) <= width
        assert line_text.isprintable()


@pytest.mark.parametrize(("width", "height"), [(20, 5), (30, 8), (40, 12)])
def test_small_screens_show_the_rows_first(width: int, height: int) -> None:
    """However small, there is a line of header, and the cursor's row with its name and who waits."""
    shown = screen(pictured(State(""), many(200)), width, height)
    assert "node" in shown.splitlines()[0]
    assert "waiting" in shown
    assert ">" in shown


def test_the_cursor_is_on_the_screen_at_every_size() -> None:
    """After a resize to any size the row under the cursor is in view."""
    shown = state.pressed(pictured(State(""), many(500)), "end")
    for height in range(5, 60):
        assert any(line.startswith(">") for line in screen(shown, 80, height).splitlines())


def test_wants_are_snapshots_arguments() -> None:
    """A want's fields are, in order, what `Snapshot` takes."""
    assert Want._fields == ("by", "host", "program", "instance")


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, scene in scenes().items():
        for columns_, lines_ in ((80, 24), (200, 50)):
            (GOLDEN / f"{name}-{columns_}x{lines_}.txt").write_text(screen(scene, columns_, lines_))
    began = time.perf_counter()
    large = pictured(State(""), many(5000))
    print(f"5,000 programs: picture {time.perf_counter() - began:.3f} s", end=", ")
    began = time.perf_counter()
    screen(large, 200, 50)
    print(f"frame {time.perf_counter() - began:.3f} s")

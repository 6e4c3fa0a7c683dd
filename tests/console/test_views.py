"""The console's screens, as text.

`python -m tests.console.test_views` writes the golden screens again; read the difference before you keep it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from connmon.console import (
    actions,
    columns,
    details,
    fitting,
    format,
    keys,
    layout,
    lines,
    state,
    text,
    views,
)
from connmon.console.modes import Mode
from connmon.console.rows import KeyedRow, Table
from connmon.console.source import Source, Want
from connmon.console.state import ConsoleState, Local, Reel, Refresh, Silence
from tests.support.console_fakes import FLEET, answer, many
from tests.support.console_states import (
    head,
    made,
    opened,
    programs,
    refreshed,
    row,
    typed_keys,
    under_cursor,
)

GOLDEN = Path(__file__).parent / "golden" / "console"


SIZES = ((80, 24), (200, 50))
#: Of the made fleet, more sizes: a scene's name, and the keys that lead there.
MADE_SIZES = ((80, 24), (100, 30), (120, 40), (200, 50))
MADE: dict[str, tuple[str, ...]] = {
    "programs": (),
    "hosts": ("2",),
    "databases": ("3",),
    "processes": ("4",),
    "pools": ("5",),
    "connections": ("6",),
    "waits": ("7",),
    "waits-opened": ("7", "enter"),
    "cluster": ("8",),
    "code": ("9",),
    "code-opened": ("9", "enter"),
    "locked-opened": ("9", "down", "enter"),
}


def golden_screens() -> list[tuple[str, int, int]]:
    return [
        (name, *size) for name in scenes() for size in (MADE_SIZES if name.startswith("fleet-") else SIZES)
    ]


def scenes() -> dict[str, ConsoleState]:
    """Return the states whose screens are kept as text."""
    empty = refreshed(ConsoleState("connmon_service=default", now=100.0), ())
    lost = opened("enter", "down", "enter")
    silent = state.silenced(
        replace(opened(), now=141.0), Silence("no node reachable: node1 (ctl1:5800): refused")
    )
    local = Local("i-4711", "on this host now: TCP to the database 17, 2 BEYOND its pools' 15   CPU 12%")
    return {
        **{f"fleet-{name}": made(*pressed) for name, pressed in MADE.items()},
        "programs": opened("down"),
        "hosts": opened("2"),
        "databases": opened("3"),
        "users": opened("3", "enter"),
        "processes": opened("enter"),
        "all-processes": opened("4"),
        "pools": opened("5"),
        "connections": replace(opened("enter", "enter", "tab", "down"), local=local),
        "waits": opened("7"),
        "cluster": opened("8", "down"),
        "grouped": opened("m"),
        "expanded": opened("e"),
        "filter": typed_keys(opened(), "\\", "nova", "enter"),
        "find": typed_keys(opened(), "/", "key"),
        "paused": typed_keys(opened(), "Z", "z"),
        "replay": replace(opened(), reel=Reel(300, 60, 99)),
        "help": actions.pressed(opened(), "?"),
        "empty": empty,
        "lost": lost,
        "no-quorum": refreshed(opened(), quorum=False),
        "disconnected": silent,
        "asking": ConsoleState("connmon_service=default", now=100.0),
        "another-node": state.noted(opened(), "node2 does not answer: now reading from node1"),
    }


def fit(shown: ConsoleState, width: int, height: int) -> ConsoleState:
    """Return the state as the loop fits it to the screen before it draws."""
    plan = layout.layout(shown, width, height)
    return state.fitted(shown, plan.panes, plan.spread)


def screen(shown: ConsoleState, width: int, height: int) -> str:
    """Return the screen that the loop draws, as text."""
    shown = fit(shown, width, height)
    return lines.plain(views.view(shown, width, height)) + "\n"


@pytest.mark.parametrize(("scene", "width", "height"), golden_screens())
def test_golden_screens(scene: str, width: int, height: int) -> None:
    """Each screen is the one that was reviewed and kept."""
    golden = (GOLDEN / f"{scene}-{width}x{height}.txt").read_text()
    assert screen(scenes()[scene], width, height) == golden


def test_without_quorum_the_banner_has_since_when_the_snapshot_stands() -> None:
    """The banner has how long, and the time of day, which stays the same while the snapshot does."""
    shown = replace(refreshed(opened(), quorum=False), stands_since="17:03:12")
    assert "NO QUORUM on node1: this snapshot has stood still for 41s, since 17:03:12" in screen(
        shown, 80, 24
    )


def test_the_whole_incident_is_in_the_first_screen() -> None:
    """A screen of 80x24 has the totals, who waits, how long, and who holds longest."""
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
        "LEAK",
        "LOST",
        "gone",
    ):
        assert fact in shown


def test_a_colour_never_says_more_than_a_word() -> None:
    """A row that is coloured as a whole has the word for it in its text."""
    wanted = {"bad": ("LEAK", "LOST"), "warn": ("SATURATED",), "faded": ("gone",), "good": ("checked out",)}
    seen = set()
    for scene in (opened("down"), opened("2", "down"), opened("4", "down"), opened("5", "down"), opened("6")):
        for line in views.view(state.fitted(scene, (30,)), 100, 40):
            row = "".join(part for part, _ in line)
            for role in {role for _, role in line} & set(wanted):
                if "ctl" in row or "4711" in row:
                    assert any(word in row for word in wanted[role]), row
                    seen.add(role)
    assert {"bad", "faded", "good"} <= seen


def test_help_and_footer_say_what_the_table_of_keys_says() -> None:
    """The help screen has each binding (of replays: in a replay); the footer those with a short text."""
    helped = screen(actions.pressed(replace(opened(), reel=Reel(3)), "?"), 80, 80)
    live = screen(actions.pressed(opened(), "?"), 80, 80)
    for binding in keys.BINDINGS:
        assert f"{binding.label:<10}{binding.does}" in helped
        assert (f"{binding.label:<10}{binding.does}" in live) is not binding.replay
    footer = screen(replace(opened("enter"), reel=Reel(3)), 300, 24).splitlines()[-1]
    for binding in keys.BINDINGS:
        if binding.short and binding.short != "views" and binding.action not in ("other_pane", "group"):
            assert binding.label.split()[0] in footer


def test_the_help_scrolls_to_its_end() -> None:
    """On a small screen PgDn brings the last line into view, and the title says how many lines are below."""
    shown = actions.pressed(opened(), "?")
    assert "more below" in screen(shown, 80, 24)
    for _ in range(8):
        shown = actions.pressed(shown, "pgdn")
    assert "not known" in screen(shown, 80, 24)
    assert screen(shown, 80, 24).splitlines()[0].strip().endswith("0 more below")


def test_columns_go_and_come_with_the_width_whole() -> None:
    """Headings are whole at every width; a narrower screen shows some of the columns of a wider one."""
    rows = [row for _, row in opened().page.pane.rows or ()]
    before = 0
    for width in range(19, 240):
        fitted, gap = fitting.fit(columns.columns("program"), rows, width, 2, "waiting")
        for place in fitted:
            assert all(text.width(part) <= place.width for part in place.heading)
        assert sum(place.width for place in fitted) + gap * (len(fitted) - 1) <= width
        assert {"program", "waiting"} <= {place.column.key for place in fitted}
        assert len(fitted) >= before or gap == 2
        before = len(fitted)


@pytest.mark.parametrize("site", ["api.py:412 get", "nova/db/main/api.py:1234 instance_get_all_by_filters"])
@pytest.mark.parametrize("host", ["ctl1", "controller-01.site"])
def test_a_long_name_of_a_program_leaves_room_for_what_matters(site: str, host: str) -> None:
    """With a program of 22 characters view 9 drops the least important columns first, at every width."""
    flat = {"program": "neutron-dhcp-agent-ovs", "call_site": site, "verdict": "LEAK", "held_now": 12,
           "waiting_now": 4, "in_database_now": 2, "longest_held_seconds": 4000.0, "usual_held_seconds": 0.2,
           "holds_total": 123_456, "hold_seconds_total": 9000.0, "processes": 8, "share": 0.71,
           "mean_held": 3.12, "database_share": 0.08, "where_shares": {"requests": 0.6, "own code": 0.32},
           "holds_per_second": 212.0, "mean_hold_seconds": 0.07, "mean_waiting_caused": 1.2}  # fmt: skip
    rows = [
        row("site", **{**flat, "host": host}),
        row("site", **{**flat, "host": "compute-0001", "verdict": None}),
    ]
    needed = (
        "share",
        "verdict",
        "mean_held",
        "database_share",
        "where_shares",
        "held_now",
        "mean_waiting_caused",
        "waiting_now",
    )
    for width in range(80, 200):
        fitted, _ = fitting.fit(columns.columns("site"), rows, width, 2, "verdict", fitting.FALLING)
        there = {place.column.key for place in fitted} & {*needed}
        assert there == {*needed[: len(there)]}
        assert len(there) >= (2 if width < 100 else 4 if width < 120 else 6)


def test_numbers_are_right_aligned_and_unknown_values_are_dashes() -> None:
    """The digits of a column are aligned; an unknown value is "-"."""
    shown = screen(opened("enter"), 80, 24).splitlines()
    rows = [line for line in shown if line[1:5] in ("4711", "4712", "4713")]
    assert [line[:13].split() for line in rows] == [[">4711", "LEAK"], ["4713", "LOST"], ["4712"]]
    assert len({line.index("(") for line in rows}) == 1
    assert "- (11)" in rows[1]


@pytest.mark.parametrize("by", [by for by in columns.TABLES if by not in ("connection", "node")])
def test_the_verdict_column_has_verdicts_alone(by: Table) -> None:
    """A row without a verdict has an empty cell in every view; a lost or gone row has that word."""
    write = columns.column(by, "verdict").write
    flat: dict[str, Any]
    for flat in (
        {"state": "connected"}, {"state": "connected", "waiting": 3}, {"waiting_now": 3}, {},
        {"state": "checked_out"},
    ):  # fmt: skip
        assert write(row(by, **flat)) == ("", "")
    assert write(row(by, state="connected", verdict="LEAK")) == ("LEAK", "")
    if by != "site":  # a call site has no state
        words = [write(row(by, state=word)).first for word in ("gone", "lost")]
        assert words == ["gone", "lost"]


def test_a_row_with_waiters_is_coloured_where_their_number_is_shown() -> None:
    """A row in which somebody waits is yellow if the column of waiters has room."""
    tables: tuple[Table, ...] = ("program", "site", "wait")
    for table in tables:
        waiting = row(
            table, program="a", host="h", call_site="a.py:1 f", state="connected", waiting=3, waiting_now=3
        )
        fitted, _ = fitting.fit(columns.columns(table), [waiting], 79, 2, "verdict")
        assert views._whole_role(waiting, fitted) == "warn"
        none = [place for place in fitted if not place.column.key.startswith("waiting")]
        assert views._whole_role(waiting, none) == ""


FRAMES = [f"lib/{n}.py:{n} f{n}" for n in range(30)]


def test_the_own_frame_is_marked_and_in_sight() -> None:
    """In a long stack the frame of the call site has a mark, and its callers follow."""
    stack = (*FRAMES, "app/a.py:12 get", "app/b.py:5 main")
    held = row("connection", call_site="app/a.py:10 get", stack=stack)
    for most in range(3, 34):
        shown = lines.plain(details.lines(held, 80, most)).splitlines()
        assert " > app/a.py:12 get" in shown and len(shown) == most
    assert " stack, without its 26 innermost frames:" in lines.plain(details.lines(held, 80, 8))
    assert lines.plain(details.lines(held, 80, 99)).splitlines()[1] == " stack, the innermost first:"
    assert len(details.lines(held, 80, 2)) == 2
    # The exact line goes before another one of the same function; then comes where the holder is.
    again = structs.replace(held, stack=("app/a.py:12 get", "app/a.py:10 get"))
    assert " > app/a.py:10 get" in lines.plain(details.lines(again, 80, 9))
    elsewhere = structs.replace(held, holder_site="lib/3.py:3 f3", stack=tuple(FRAMES))
    assert " > lib/3.py:3 f3" in lines.plain(details.lines(elsewhere, 80, 40))
    assert " > " not in lines.plain(details.lines(row("connection", call_site="x", stack=FRAMES), 80, 40))
    spans = [line for line in details.lines(held, 80, 9) if line[0][1] == "strong"]
    assert spans == [[(" > app/a.py:12 get", "strong")]]


def test_the_lines_below_a_table_scroll() -> None:
    """Tab enters the lines at the own frame; arrows, pages and ends scroll; Esc goes back to the rows."""
    shown = fit(made("9", "down", "enter"), 80, 24)
    row = under_cursor(shown)
    assert "29 more lines: Tab" in screen(shown, 80, 24)
    shown = fit(actions.pressed(shown, "tab"), 80, 24)
    assert " > billing/invoices/locks.py:204" in screen(shown, 80, 24)
    assert f"{shown.scrolled} lines above, " in screen(shown, 80, 24)

    def read(*names: str) -> list[str]:
        nonlocal shown
        for name in names:
            shown = fit(actions.pressed(shown, name), 80, 24)
        assert under_cursor(shown) == row
        drawn = screen(shown, 80, 24).splitlines()
        return drawn[next(at for at, line in enumerate(drawn) if line.startswith("---")) :]

    whole = [
        line.rstrip()
        for line in lines.plain(details.whole(dict(shown.page.pane.rows or ())[row], 80).lines).splitlines()
    ]
    top = read("home")
    assert top[0].startswith("-") and " 0 lines above, 29 below: " in top[0]
    room = len(top) - 2
    assert top[1:-1] == whole[:room]
    assert read("up")[1:-1] == whole[:room]
    assert read("down", "j")[1:-1] == whole[2 : 2 + room]
    assert read("k", "pgdn")[1:-1] == whole[room : 2 * room]
    assert " 29 lines above, 0 below: " in read("end")[0]
    assert read("down", "pgdn", " ")[1:-1] == whole[-room:]
    assert read("pgup")[1:-1] == whole[-2 * room + 1 : -room + 1]
    assert read("g")[1:-1] == whole[:room]
    seen = set(top[1:-1])
    for _ in range(len(whole)):
        seen |= set(read("down")[1:-1])
    assert seen == set(whole)
    shown = actions.turned(shown, False)
    assert shown.scrolled == 26
    assert fit(shown, 80, 60).scrolled == 0, "all lines have room"
    assert "29 more lines: Tab" in read("esc")[0]
    assert len(shown.pages) == 2, "Esc has left the lines alone"
    # Another row under the cursor has its own lines, from their beginning.
    shown = actions.pressed(fit(actions.pressed(shown, "tab"), 80, 24), "7")
    assert shown.scrolled is None


def test_ways_into_the_lines_and_out() -> None:
    """A click enters the lines too, and so does Enter where nothing is below a row; Tab again leaves them."""
    shown = fit(made("7", "down", "enter"), 80, 24)
    there = actions.clicked(shown, 5, 20, 80, 24)
    assert there.scrolled is not None
    assert actions.pressed(there, "tab").scrolled is None
    assert actions.pressed(actions.pressed(there, "tab"), "down").page.pane.index == 1
    assert actions.clicked(there, 5, 8, 80, 24).scrolled is None
    two = fit(made("4", "enter", "e"), 80, 24)
    there = actions.pressed(two, "enter")
    assert there.scrolled is not None
    there = actions.pressed(there, "enter")
    assert (there.scrolled, there.expanded) == (None, False)
    ways = [two]
    for _ in range(3):
        ways.append(fit(actions.pressed(ways[-1], "tab"), 80, 24))
    assert [(each.page.focus, each.scrolled is not None) for each in ways] == [
        (0, False), (1, False), (1, True), (0, False),
    ]  # fmt: skip
    # Where all lines are seen, or none, there is nothing to scroll.
    for width, height in ((200, 90), (80, 10)):
        assert actions.pressed(fit(made("9", "down", "enter"), width, height), "tab").scrolled is None


def test_a_refresh_does_not_leave_the_lines() -> None:
    """The row that is read keeps the cursor, wherever it moves; when it is gone, the next row is shown."""
    shown = fit(made("7"), 80, 24)
    row = under_cursor(shown)
    shown = actions.pressed(shown, "tab")
    assert shown.scrolled is not None
    for change in (actions.sort_by(shown, "held_seconds"), actions.pressed(shown, "I")):
        assert (under_cursor(change), change.scrolled) == (row, shown.scrolled)
    assert actions.sort_by(shown, "held_seconds").page.pane.index > 0
    gone = shown.page.pane.filled([pair for pair in shown.page.pane.source or () if pair[0] != row])
    assert state.with_pane(shown, gone).scrolled is None


def test_no_control_character_reaches_the_terminal() -> None:
    """Names are foreign: a character that a terminal would act on is drawn as "?"."""
    shown = _filled(
        ConsoleState(""), [{"host": "a\x1b]0;x\x07", "program": "b\r\n\u202e日本", "state": "connected"}]
    )
    kept = screen(shown, 80, 24)
    assert kept.replace("\n", "").isprintable()
    assert "a?]0;x?" in kept
    assert "b???日本" in kept


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (512, "512B"), (148_000_000, "141M"), (1_300_000_000, "1.2G")]
)
def test_sizes(value: int | None, shown: str) -> None:
    """Bytes have a unit of powers of 1024."""
    assert format.size(value) == shown


def test_rows_left_out_by_limits_are_counted_in_header_and_details() -> None:
    """The header counts those of the fleet, details those of a row; zero is not shown."""
    assert "left out" not in screen(opened(), 200, 50)
    shown = opened()
    assert shown.head is not None
    totals = shown.head.totals
    totals = structs.replace(totals, figures=structs.replace(totals.figures, left_out=12))
    shown = replace(shown, head=structs.replace(shown.head, totals=totals))
    assert "left out 12" in screen(shown, 200, 50)
    assert "left out 10" in lines.plain(details.lines(row("program", program="nova-api", left_out=10), 80, 9))


def test_waits_say_that_more_were_left_out() -> None:
    """The node's answer is bounded: the trail counts the pools and holders that are not in it."""
    assert "left out" not in screen(opened("7"), 200, 50)
    shown = opened("7")
    shown = replace(shown, rows_left_out=4)
    assert "[4 pools and holders left out]" in screen(shown, 200, 50)
    source = Source(Want("wait"))
    source.apply(structs.replace(answer(source.question(), FLEET), left_out=4))
    assert source.rows_left_out == 4


def _filled(shown: ConsoleState, rows: list[dict[str, Any]]) -> ConsoleState:
    """Return the state with these rows in all its tables."""
    tables: dict[Want, list[KeyedRow]] = {
        want: [((want.by, str(at)), row(want.by, **flat)) for at, flat in enumerate(rows)]
        for want in shown.wants
    }
    node = str(rows[0].get("host")) if rows else ""
    return state.refreshed(shown, Refresh(head(node), tables, 1.0, "now"))


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
            "why": NAMES,
            "stack": st.lists(st.text(max_size=20), max_size=4),
            "verdict": st.sampled_from([None, "LEAK", "SLOW CONNECT"]),
            "wait_p95_seconds": TIMES,
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
    """At any size and with any data, lines fit the width, their number the height; all text is printable."""
    shown = _filled(ConsoleState("connmon_addr=h:1"), rows)
    for key in pressed:
        shown = _filled(actions.pressed(shown, key), rows)
    if silent:
        shown = state.silenced(replace(shown, now=50.0), Silence(reason))
    shown = state.fitted(shown, layout.layout(shown, width, height).panes)
    drawn = views.view(shown, width, height)
    assert len(drawn) <= height
    for line in drawn:
        line_text = "".join(part for part, _ in line)
        assert text.width(line_text) <= width
        assert line_text.isprintable()


@pytest.mark.parametrize(("width", "height"), [(20, 5), (30, 8), (40, 12)])
def test_small_screens_show_the_rows_first(width: int, height: int) -> None:
    """However small, the screen has the title, and the row under the cursor with its name and who waits."""
    shown = screen(refreshed(ConsoleState(""), many(200)), width, height)
    assert "node" in shown.splitlines()[0]
    assert "waiting" in shown
    assert ">" in shown


def test_the_cursor_is_on_the_screen_at_every_size() -> None:
    """After a resize to any size the row under the cursor is in view."""
    shown = actions.pressed(refreshed(ConsoleState(""), many(500)), "end")
    for height in range(5, 60):
        assert any(line.startswith(">") for line in screen(shown, 80, height).splitlines())


def test_wants_are_snapshots_arguments() -> None:
    """The first fields of a want are the arguments of `Snapshot`, in order."""
    assert Want._fields[:4] == ("by", "host", "program", "instance")


def test_percentiles_are_shown_where_they_are_known() -> None:
    """Wait, hold and connect p95 have columns; an unknown value is "-"."""
    flat = {
        "host": "h",
        "program": "p",
        "state": "connected",
        "wait_p95_seconds": 2.5,
        "held_p95_seconds": 0.3,
    }
    shown = screen(_filled(ConsoleState(""), [flat]), 200, 24)
    assert " p95   p95      p95" in shown
    assert "2.5s  0.3s        -" in shown


def test_the_last_minutes_are_a_line_of_blocks() -> None:
    """The newest block is at the right; an unknown value is a gap; ASCII where the terminal has no blocks."""
    assert format.line([None, None, 0.0, 5.0, 10.0], 5, 5, 1) == "  ▁▅█"
    assert format.line([1.0, 3.0, 5.0, 7.0], 3, 2, 2) == "▃█"
    assert format.line([0.0, 10.0], 1, 3, 1, format.ASCII_BLOCKS) == " _#"
    assert format.line([], 0, 4, 10) == "    "
    # The line moves to the left, block by block, and the blocks keep their heights.
    samples = [10.0, *[float(at % 10) for at in range(39)]]
    before, after = format.line(samples, 39, 4, 10), format.line([*samples, 4.5], 40, 4, 10)
    assert before[1:] == after[:3]
    assert "▅" in screen(opened(), 200, 50)
    assert "▅" not in screen(replace(opened(), blocks=False), 200, 50)


def test_pool_use_is_a_bar_with_its_figures() -> None:
    """The bar fills with checked-out connections; the first one already shows."""
    assert format.bar(0, 15, 10) == "[        ]"
    assert format.bar(1, 150, 10) == "[|       ]"
    assert format.bar(15, 15, 10) == "[||||||||]"
    assert format.bar(20, 15, 10) == "[||||||||]"
    assert format.bar(3, None, 10) == "[        ]"
    assert "[|       ] 31/240" in screen(opened(), 200, 50)


def test_the_reason_stands_below_the_table() -> None:
    """The reason of the row under the cursor stands below the table; e shows all details."""
    assert "nova-api: LEAK: a connection has been held for 41s" in screen(opened(), 80, 24)
    assert "cinder-volume: LOST: nothing heard for 21s" in screen(opened("down"), 80, 24)
    expanded = screen(opened("e"), 80, 40)
    assert "checkouts total" in expanded and "raise pool_size" not in expanded.splitlines()[-1]


def test_a_mouse_click_sorts_and_moves_and_opens() -> None:
    """A click on a heading sorts, again inverts; on a row selects, again opens; elsewhere does nothing."""
    shown = state.fitted(opened(), layout.layout(opened(), 80, 24).panes)
    drawn = screen(shown, 80, 24).splitlines()
    heading = next(at for at, line in enumerate(drawn) if " host program" in line)
    x = drawn[heading].index("waiting")
    once = actions.clicked(shown, x, heading, 80, 24)
    assert (once.page.pane.sort, once.page.pane.inverted) == ("waiting", False)
    assert actions.clicked(once, x, heading, 80, 24).page.pane.inverted
    second = actions.clicked(shown, 10, heading + 2, 80, 24)
    assert under_cursor(second) == ("program", "ctl2", "cinder-volume")
    assert len(actions.clicked(second, 10, heading + 2, 80, 24).pages) == 2
    assert actions.clicked(shown, 10, heading + 10, 80, 24).page.pane.index == 0
    assert actions.clicked(shown, 10, 0, 80, 24) == shown
    assert under_cursor(actions.turned(shown, True)) == ("program", "ctl1", "keystone")
    assert actions.clicked(actions.pressed(shown, "?"), 1, 1, 80, 24).mode is Mode.TABLE


def test_a_click_reaches_the_lower_table() -> None:
    """With two tables a click selects a row of the table it is in."""
    shown = opened("enter", "enter")
    shown = state.fitted(shown, layout.layout(shown, 80, 24).panes)
    at = next(at for at, line in enumerate(screen(shown, 80, 24).splitlines()) if "Thread-1" in line)
    clicked = actions.clicked(shown, 5, at, 80, 24)
    assert clicked.page.pane.want.by == "connection"
    assert clicked.page.pane.selected is not None
    assert getattr(clicked.page.pane.selected[1], "holder", None) == "Thread-1"


def test_saved_text_has_every_row_and_every_column() -> None:
    """A saved table is plain text with every row and column, whatever the screen's size."""
    text_ = views.saved(refreshed(ConsoleState(""), many(300)))
    assert len([line for line in text_.splitlines() if "program-0" in line]) == 300
    assert "checkouts total" in text_ and "invali- dations" in text_
    assert text_.replace("\n", "").isprintable()
    assert programs(refreshed(ConsoleState(""), FLEET))


# --- Rows look different -------------------------------------------------------------------------------

WIDTHS = st.sampled_from([80, 100, 120])
PACKAGES = st.sampled_from(["shop", "shop/orders", "/usr/lib/python3/dist-packages/nova/db/main", "a/b", ""])
LINES = st.builds(
    lambda package, file, line, function: f"{package}{'/' * bool(package)}{file}:{line} {function}",
    PACKAGES,
    st.sampled_from(["api.py", "orders.py", "db_base_plugin_v2.py"]),
    st.integers(1, 3000),
    st.sampled_from(["checkout", "_get_networks", "instance_get_by_uuid_with_everything", "<module>"]),
)
URLS = st.builds(
    lambda driver, host, name: f"{driver}://{name}@{host}.example.org/{name}",
    st.sampled_from(["mysql+pymysql", "postgresql+psycopg"]),
    st.sampled_from(["db1", "db2", "database-cluster-primary"]),
    st.sampled_from(["nova", "nova_api", "nova_cell0", "shop"]),
)
PROGRAM_NAMES = st.sampled_from(
    ["nova-api", "nova-api-metadata", "neutron-openvswitch-agent", "shop.main:app", "celery@mail worker"]
)
HOST_NAMES = st.builds(
    lambda rack, number: f"compute-{rack}-{number:03}", st.sampled_from("ab"), st.integers(0, 9)
)
WHO = {"host": HOST_NAMES, "program": PROGRAM_NAMES, "state": st.just("connected")}
COUNTED = {
    "waiting": st.integers(0, 99), "connections": st.integers(0, 2000), "checked_out": st.integers(0, 2000),
    "longest_wait_seconds": st.floats(0, 9999), "verdict": st.sampled_from([None, "LEAK", "SLOW CONNECT"]),
}  # fmt: skip
MADE_ROWS: dict[Table, Any] = {
    "program": {**WHO, **COUNTED},
    "process": {**WHO, **COUNTED, "pid": st.integers(1, 99999)},
    "pool": {**WHO, **COUNTED, "pid": st.integers(1, 99999), "pool": URLS},
    "connection": {**WHO, "pid": st.integers(1, 99999), "connection": st.integers(0, 999), "call_site": LINES,
                   "held_seconds": st.floats(0, 9999)},
    "site": {**WHO, "call_site": LINES, "held_now": st.integers(0, 99), "waiting_now": st.integers(0, 99),
             "holds_total": st.integers(0, 10**9), "longest_held_seconds": st.floats(0, 9999)},
    "wait": {**WHO, **COUNTED, "pool": URLS, "blocker": st.one_of(LINES, st.just("6 short holds")),
             "held_seconds": st.floats(0, 9999)},
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(list(MADE_ROWS)), WIDTHS)
def test_no_two_rows_look_the_same(data: st.DataObject, by: Table, width: int) -> None:
    """Two rows that differ in what identifies them look different, at 80, 100 and 120 columns."""
    flat = data.draw(st.lists(st.fixed_dictionaries(MADE_ROWS[by]), min_size=2, max_size=20))
    rows = [row(by, **values) for values in flat]
    pairs: list[KeyedRow] = [((by, at), made_row) for at, made_row in enumerate(rows)]
    fitted, gap = fitting.fit(columns.columns(by), rows, width - 1, 2, columns.TABLES[by].sort, "▼")
    marks = fitting.marks(fitted, pairs)
    assert sum(place.width for place in fitted) + gap * (len(fitted) - 1) < width
    naming = [at for at, place in enumerate(fitted) if place.column.identifies]
    assert len(naming) == sum(column.identifies for column in columns.columns(by))
    looks = set()
    for key, shown in pairs:
        cells = views._cells(fitted, shown, marks.get(key, ""))
        looks.add(tuple(cells[at] for at in naming))
        # No name is cut while a number is there, and of a path never the file and the line.
        for at in naming if len(naming) < len(fitted) else ():
            whole = fitted[at].column.write(shown).first
            if fitted[at].column.is_path:
                line = whole.rpartition("/")[2].split(" ")[0]
                assert by in ("pool", "wait") or line in cells[at]
            elif not marks.get(key):
                assert cells[at].strip() == whole
    assert len(looks) == len(rows)


def test_rows_that_look_the_same_are_numbered() -> None:
    """Where names have no room, fitting ends soon, and rows that look the same get a number."""

    def pool(url: str) -> Any:
        return row("pool", host="h" * 40, program="p" * 60, pid=7, pool=url)

    rows = [pool(f"mysql://u@db{number}{'x' * 40}/same") for number in range(3)]
    pairs: list[KeyedRow] = [(("pool", f"i{at}", 0), made_row) for at, made_row in enumerate(rows)]
    fitted, _ = fitting.fit(columns.columns("pool"), rows, 79, 2, "verdict", "▼")
    marks = fitting.marks(fitted, pairs)
    assert len({tuple(views._cells(fitted, shown, marks.get(key, ""))) for key, shown in pairs}) == 3
    endless = [pool(f"mysql://u@{number}{'x' * 5000}/same") for number in range(3)]
    began = time.perf_counter()
    fitting.fit(columns.columns("pool"), endless, 79, 2, "verdict", "▼")
    assert time.perf_counter() - began < 5.0


def test_a_path_loses_its_left_part() -> None:
    """The directories go first, then the function is cut; file name and line stay; a cut is marked."""
    line = "nova/db/main/api.py:1873 instance_get_by_uuid"
    assert text.shorten_path(line, 40) == "…/main/api.py:1873 instance_get_by_uuid"
    assert text.shorten_path(line, 24) == "…/api.py:1873 instance_~"
    assert text.shorten_path(line, 13) == "…/api.py:1873"
    assert text.shorten_path("mysql+pymysql://nova@db1/nova", 20) == "…nova@db1/nova"
    assert "~/api.py" in screen(replace(made("9"), blocks=False), 80, 24)


@given(st.text(max_size=60), st.integers(0, 60))
def test_paths_fit(path: str, width: int) -> None:
    """Any text is shortened to its room."""
    path = text.sanitize(path)
    assert text.width(text.shorten_path(path, width)) <= width


def test_the_sorted_column_is_marked() -> None:
    """Its heading has ▼ with the largest on top, ▲ with the largest at the bottom; v and ^ in ASCII."""
    assert "verdict▼" in screen(made(), 80, 24)
    assert "verdict▲" in screen(typed_keys(made(), "I"), 80, 24)
    assert "node▲" in screen(made("8"), 80, 24)
    ascii_only = screen(replace(made("9"), blocks=False), 120, 30)
    assert "verdictv" in ascii_only and ascii_only.isascii()


def test_two_pools_of_one_url_look_different() -> None:
    """Two pools of a process with the same URL have their numbers behind it."""
    shown = screen(opened("enter", "enter"), 80, 24)
    assert "nova#0" in shown and "nova#1" in shown


def test_a_leaked_connection_is_red_with_its_verdict() -> None:
    """In the views of connections, waits and code the row has the word and its colour; other rows do not."""
    for pressed in (("6", "down", "down"), ("7",), ("9", "down"), ("9", "enter", "down")):
        shown = state.fitted(made(*pressed), layout.layout(made(*pressed), 200, 50).panes)
        # Rows have several spans, details one; the cursor's row has its own look.
        drawn = [line for line in views.view(shown, 200, 50) if len(line) > 2]
        leaks = [line for line in drawn if "monthly.py:97" in lines.plain([line])]
        leaks = [line for line in leaks if line[0][1] != "strong"]  # the trail
        assert leaks
        for line in leaks:
            assert "LEAK" in lines.plain([line]) and {role for _, role in line} == {"bad"}
        others = [line for line in drawn if "daily.py:61" in lines.plain([line])]
        assert all(role != "bad" for line in others for _, role in line)


def test_a_verdict_keeps_its_colour_under_the_cursor() -> None:
    """The cursor begins on the gravest row, which is reversed there, and red as elsewhere."""
    roles = {
        role
        for line in views.view(made("9"), 80, 24)
        for part, role in line
        if part.startswith(">") and "LEAK" in part
    }
    assert roles == {"cursor_bad"}


def test_one_key_for_the_line_that_blocks_and_two_for_its_stack() -> None:
    """9 has the worst call site on top, with its verdict; Enter then shows the holder and its stack."""
    first = screen(made("9"), 80, 24)
    (top,) = [line for line in first.splitlines() if line.startswith(">")]
    assert "monthly.py:97 build" in top and "LEAK" in top
    second = screen(made("9", "enter"), 80, 24)
    for fact in ("taken in: reports/build/monthly.py:97 build", "now elsewhere: the function",
                 "   reports/worker/loop.py:31 run"):  # fmt: skip
        assert fact in second
    holders = screen(made("7", "enter"), 80, 24)
    assert "now in the application's own work, at" in holders and "gateway.py:88 charge" in holders


def test_unused_height_has_the_details_of_the_selected_row() -> None:
    """Lines that the table leaves have the details; without such lines the reason stays."""
    tall, low = screen(opened(), 80, 50), screen(made(), 80, 24)
    assert "checkouts total" in tall and "nova-api: LEAK" in tall
    assert "checkouts total" not in low and "LEAK: a connection taken in" in low


def test_the_counts_of_verdicts_are_the_fleets_on_every_view() -> None:
    """The header has them from the node's totals, whatever the table shows; none if the node has none."""
    for key in "123456789":
        assert "LEAK 1   BLOCKED 1   SATURATED 1   LOST 1   SLOW CONNECT 1" in screen(made(key), 200, 50)
    shown = opened()
    old = replace(shown, head=head(waiting=5))
    assert "LEAK 1" not in screen(old, 200, 50)


def test_a_line_of_blocks_has_a_scale() -> None:
    """The value of its highest block stands at its end, in five characters at most."""
    assert format.peak([None, 7.25, 3.0]) == "7.2"
    assert [format.short(value) for value in (0.0, 312.4, 1000.0, 88_213.0, 1_300_000.0, None)] == [
        "0", "312", "1k", "88.2k", "1.3M", "-",
    ]  # fmt: skip
    assert " max 1" in screen(opened(), 80, 24).splitlines()[3]


def test_the_screens_of_the_readme_are_as_they_are() -> None:
    """Each screen in the README is a part of a golden screen, line by line."""
    readme = (GOLDEN.parents[3] / "README.rst").read_text()
    shown = readme.partition("Which line blocks")[2].partition("Watch your own")[0]
    blocks = shown.split("::\n\n")[1:]
    for name, block in zip(("code", "code-opened", "programs"), blocks, strict=True):
        screen_lines = [line[4:] for line in block.splitlines() if line.startswith("    ")]
        assert len(screen_lines) >= 10
        golden = (GOLDEN / f"fleet-{name}-80x24.txt").read_text()
        assert "\n".join(screen_lines) in "\n".join(line.rstrip() for line in golden.splitlines())


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    every = scenes()
    for name, columns_, lines_ in golden_screens():
        (GOLDEN / f"{name}-{columns_}x{lines_}.txt").write_text(screen(every[name], columns_, lines_))
    began = time.perf_counter()
    large = refreshed(ConsoleState(""), many(5000))
    print(f"5,000 programs: refresh {time.perf_counter() - began:.3f} s", end=", ")
    began = time.perf_counter()
    screen(large, 200, 50)
    print(f"screen {time.perf_counter() - began:.3f} s")

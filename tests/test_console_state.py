"""The console's state: what keys and pictures do to it, as pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.console import columns, keys, state, text
from connmon.console.state import Picture, Silence, State, Want
from connmon.model import Row
from connmon.snapshot import Snapshot
from tests.console_fakes import FLEET, answer, many


def pictured(shown: State, rows: tuple[Row, ...] = FLEET, now: float = 100.0, **said: Any) -> State:
    """The state after a refresh from a node that has these rows."""
    tables = {}
    for want in shown.wants:
        snapshot = Snapshot(*want)
        snapshot.apply(answer(snapshot.query(), rows, **said))
        tables[want] = snapshot.keyed_rows()
        head = snapshot.document()
    del head["rows"]
    return state.pictured(shown, Picture(head, tables, now, "14:03:22"))


def opened(*names: str) -> State:
    """The state after these keys, with a picture after each of them."""
    shown = pictured(State("connmon_service=default", now=100.0))
    for name in names:
        shown = pictured(state.pressed(shown, name))
    return shown


def programs(shown: State) -> list[str]:
    return [row["program"] for _, row in shown.pages[0].panes[0].rows or ()]


def under_cursor(shown: State) -> Any:
    selected = shown.page.pane.selected
    assert selected is not None
    return selected[0]


def test_every_action_has_a_handler_and_no_key_two_meanings() -> None:
    """The table of keys and the handlers name the same actions; each key stands in one row."""
    assert set(state.HANDLERS) == {binding.action for binding in keys.BINDINGS}
    every = [key for binding in keys.BINDINGS for key in binding.keys]
    assert len(every) == len(set(every))


def test_those_who_wait_stand_on_top() -> None:
    """Programs are in the order of waiting, then of connections."""
    assert programs(opened()) == ["nova-api", "neutron-server", "keystone", "cinder-volume", "glance-api"]


def test_enter_drills_down_and_esc_comes_back_to_the_same_row() -> None:
    """Enter goes from a program to its processes, then to pools and connections; Esc goes back."""
    shown = opened("enter")
    assert shown.wants == (Want("process", "ctl1", "nova-api"),)
    assert [row["pid"] for _, row in shown.page.pane.rows or ()] == [4711, 4712, 4713]
    shown = pictured(state.pressed(shown, "enter"))
    assert shown.wants == (Want("pool", instance="i-4711"), Want("connection", instance="i-4711"))
    assert [page.title for page in shown.pages] == ["programs", "nova-api on ctl1", "pid 4711"]
    assert state.pressed(shown, "enter") == shown
    shown = state.pressed(state.pressed(shown, "esc"), "esc")
    assert len(shown.pages) == 1
    assert under_cursor(shown) == ("program", "ctl1", "nova-api")
    assert state.pressed(shown, "esc") == shown


def test_the_cursor_stays_with_its_row_when_rows_move() -> None:
    """A row that was chosen keeps the cursor wherever the order puts it."""
    shown = opened("down")
    assert under_cursor(shown) == ("program", "ctl1", "neutron-server")
    turned = state.pressed(shown, "I")
    assert under_cursor(turned) == ("program", "ctl1", "neutron-server")
    assert turned.page.pane.index != shown.page.pane.index


def test_the_cursor_stays_near_when_its_row_goes() -> None:
    """When the chosen row is gone, the cursor is on the one that took its place."""
    shown = opened("down")
    shown = pictured(shown, tuple(row for row in FLEET if row.key != ("program", "ctl1", "neutron-server")))
    assert under_cursor(shown) == ("program", "ctl1", "keystone")


def test_an_untouched_cursor_stays_on_the_top_line() -> None:
    """Before it is moved, and after Home, the cursor is on the top line, whichever row that is."""
    assert under_cursor(state.pressed(opened(), "I")) == ("program", "ctl1", "neutron-server")
    shown = state.pressed(opened("down", "down", "home"), "I")
    assert under_cursor(shown) == ("program", "ctl1", "neutron-server")


@pytest.mark.parametrize(
    ("name", "index"),
    [("down", 1), ("j", 1), ("pgdn", 9), ("end", 99), ("G", 99), ("up", 0), ("k", 0), ("pgup", 0), ("x", 0)],
)
def test_keys_that_move(name: str, index: int) -> None:
    """Arrows, pages and ends move the cursor within the table and no further."""
    shown = state.fitted(pictured(State(""), many(100)), (10,))
    assert state.pressed(shown, name).page.pane.index == index


def test_scrolling_moves_as_little_as_needed() -> None:
    """The table scrolls by a line when the cursor leaves the screen by a line."""
    shown = state.fitted(pictured(State(""), many(100)), (3,))
    for _ in range(3):
        shown = state.pressed(shown, "down")
    assert (shown.page.pane.index, shown.page.pane.top) == (3, 1)
    shown = state.fitted(shown, (10,))
    assert shown.page.pane.top == 1


def test_sorting_goes_through_all_columns_and_back() -> None:
    """ ">" and F6 sort by the next column, "<" by the one before; numbers begin with the largest."""
    shown = opened()
    seen = [shown.page.pane.sort]
    for _ in columns.COLUMNS["program"][1:]:
        shown = state.pressed(shown, "f6")
        seen.append(shown.page.pane.sort)
    assert sorted(seen) == sorted(column.key for column in columns.COLUMNS["program"])
    assert state.pressed(shown, ">").page.pane.sort == "waiting"
    shown = state.pressed(opened(), "<")
    assert shown.page.pane.sort == "checked_out"
    assert programs(shown)[0] == "nova-api"
    assert programs(state.pressed(shown, "I"))[-1] == "nova-api"


def test_what_is_not_known_is_sorted_last() -> None:
    """A row without the value stands last, in either order."""
    shown = opened("enter", "<")
    for key in ("I", "I"):
        assert [row["pid"] for _, row in shown.page.pane.rows or ()][-1] == 4713
        shown = state.pressed(shown, key)


def test_tab_and_the_arrows_reach_both_panes() -> None:
    """Tab goes between pools and connections, and so does an arrow past the end of one."""
    shown = opened("enter", "enter")
    assert shown.page.pane.want.by == "pool"
    assert state.pressed(shown, "tab").page.pane.want.by == "connection"
    for _ in range(2):
        shown = state.pressed(shown, "down")
    assert (shown.page.pane.want.by, shown.page.pane.index) == ("connection", 0)
    shown = state.pressed(shown, "up")
    assert (shown.page.pane.want.by, shown.page.pane.index) == ("pool", 1)


def test_help_takes_one_key_to_leave_and_q_quits_from_it() -> None:
    """Any key returns from the help; q ends the console from anywhere."""
    helped = state.pressed(opened(), "?")
    assert helped.help
    assert not state.pressed(helped, "x").help
    assert len(state.pressed(helped, "enter").pages) == 1
    assert state.pressed(helped, "down").help_top == 1
    assert state.pressed(helped, "q").ended


def test_silence_keeps_the_picture_and_a_picture_ends_it() -> None:
    """When no node answers the rows stay; the next picture takes the line away."""
    shown = state.silenced(opened(), Silence("no node reachable"))
    assert programs(shown) == programs(opened())
    assert pictured(shown).silence is None


def test_a_note_goes_by_itself() -> None:
    """A note is there for a while, and then not."""
    shown = state.noted(opened(), "node2 does not answer")
    assert state.ticked(shown, 101.0).note
    assert not state.ticked(shown, 100.0 + state.NOTE_SECONDS).note


def test_age_counts_only_what_is_late() -> None:
    """The age is what the node says, and the time since the last answer once a refresh is overdue."""
    shown = opened()
    assert shown.age == pytest.approx(0.2)
    assert replace(shown, now=101.0).age == pytest.approx(0.2)
    assert replace(shown, now=110.0).age == pytest.approx(10.2)
    assert replace(shown, now=110.0).late
    assert State("").age is None


@given(st.lists(st.sampled_from([*keys.ACTIONS, "x", "ü"]), max_size=40), st.integers(1, 30))
def test_no_keys_break_it(names: list[str], visible: int) -> None:
    """Whatever is pressed, with or without rows, the cursor is on a row that is on the screen."""
    shown = pictured(State(""))
    for at, name in enumerate(names):
        shown = state.pressed(shown, name)
        if at % 3 == 0:
            shown = pictured(shown, FLEET if at % 2 else ())
        shown = state.fitted(shown, [visible] * len(shown.page.panes))
        for pane in shown.page.panes:
            assert pane.index == 0 or pane.index < len(pane.rows or ())
            assert pane.top <= pane.index < pane.top + visible


@given(st.text(), st.integers(0, 40))
def test_clean_text_is_printable_and_fits(foreign: str, width: int) -> None:
    """Nothing that a terminal would act upon is left, and a text takes exactly the room it is given."""
    kept = text.clean(foreign)
    assert kept.isprintable()
    assert text.width(text.clip(kept, width)) <= width
    assert text.width(text.left(kept, width)) == text.width(text.right(kept, width)) == width
    assert text.width(text.shorten(kept, width)) <= width


def test_names_are_cut_in_the_middle() -> None:
    """Names that differ at their ends stay different."""
    assert text.shorten("controller-01", 9) == "cont~r-01"
    assert text.clean("a\x1b[31m\u202eb\u200d日\n") == "a?[31m?b?日?"

"""The console's state: what keys and snapshots do to it, as pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.console import actions, columns, keys, modes, state, text
from connmon.console.modes import Event, Mode
from connmon.console.navigation import VIEWS
from connmon.console.rows import PoolGroup, ProgramGroup
from connmon.console.settings import INTERVALS_SECONDS, ConsoleSettings
from connmon.console.source import Want
from connmon.console.state import ConsoleState, Reel, Silence
from connmon.protocol.document import JsonConnection
from tests.support.console_fakes import CLOCK, FLEET, INFO, NOVA, many
from tests.support.console_states import (
    made,
    opened,
    programs,
    refreshed,
    rows_of,
    typed_keys,
    under_cursor,
)


def test_every_action_has_a_handler_and_no_key_two_meanings() -> None:
    """The table of keys and the actions have the same names; each key stands in one row."""
    assert set(actions.ACTIONS) == {binding.action for binding in keys.BINDINGS}
    every = [key for binding in keys.BINDINGS for key in binding.keys]
    assert len(every) == len(set(every))


def test_the_worst_program_is_on_top() -> None:
    """Programs are in the order of their verdicts, then of how many wait; gone programs are last."""
    assert programs(opened()) == ["nova-api", "cinder-volume", "neutron-server", "keystone", "glance-api"]


def test_enter_drills_down_and_esc_comes_back_to_the_same_row() -> None:
    """Enter goes from a program to its processes, then to pools and connections; Esc goes back."""
    shown = opened("enter")
    assert shown.wants == (Want("process", "ctl1", "nova-api"),)
    assert [row.process.pid for row in rows_of(shown)] == [4711, 4713, 4712]
    shown = refreshed(actions.pressed(shown, "enter"))
    assert shown.wants == (Want("pool", instance="i-4711"), Want("connection", instance="i-4711"))
    assert [page.title for page in shown.pages] == ["programs", "nova-api on ctl1", "pid 4711"]
    assert actions.pressed(shown, "enter") == replace(shown, expanded=True)  # nothing is below
    shown = actions.pressed(actions.pressed(shown, "esc"), "esc")
    assert len(shown.pages) == 1
    assert under_cursor(shown) == ("program", "ctl1", "nova-api")
    assert actions.pressed(shown, "esc") == shown


def test_the_cursor_stays_with_its_row_when_rows_move() -> None:
    """A selected row keeps the cursor wherever the order puts it."""
    shown = opened("down")
    assert under_cursor(shown) == ("program", "ctl2", "cinder-volume")
    turned = actions.pressed(shown, "I")
    assert under_cursor(turned) == ("program", "ctl2", "cinder-volume")
    assert turned.page.pane.index != shown.page.pane.index


def test_the_cursor_stays_near_when_its_row_goes() -> None:
    """When the selected row is gone, the cursor is on the row in its place."""
    shown = opened("down")
    shown = refreshed(shown, tuple(row for row in FLEET if row.key != ("program", "ctl2", "cinder-volume")))
    assert under_cursor(shown) == ("program", "ctl1", "neutron-server")


def test_an_untouched_cursor_stays_on_the_top_line() -> None:
    """Before it is moved, and after Home, the cursor is on the top line, whichever row that is."""
    assert under_cursor(actions.pressed(opened(), "I")) == ("program", "ctl2", "glance-api")
    shown = actions.pressed(opened("down", "down", "home"), "I")
    assert under_cursor(shown) == ("program", "ctl2", "glance-api")


@pytest.mark.parametrize(
    ("name", "index"),
    [("down", 1), ("j", 1), ("pgdn", 9), ("end", 99), ("G", 99), ("up", 0), ("k", 0), ("pgup", 0), ("x", 0)],
)
def test_keys_that_move(name: str, index: int) -> None:
    """Arrows, pages and ends move the cursor within the table and no further."""
    shown = state.fitted(refreshed(ConsoleState(""), many(100)), (10,))
    assert actions.pressed(shown, name).page.pane.index == index


def test_scrolling_moves_as_little_as_needed() -> None:
    """The table scrolls by a line when the cursor leaves the screen by a line."""
    shown = state.fitted(refreshed(ConsoleState(""), many(100)), (3,))
    for _ in range(3):
        shown = actions.pressed(shown, "down")
    assert (shown.page.pane.index, shown.page.pane.top) == (3, 1)
    shown = state.fitted(shown, (10,))
    assert shown.page.pane.top == 1


def test_sorting_goes_through_all_columns_and_back() -> None:
    """ ">" and F6 sort by the next column, "<" by the one before; numbers begin with the largest."""
    shown = opened()
    seen = [shown.page.pane.sort]
    for _ in columns.columns("program")[1:]:
        shown = actions.pressed(shown, "f6")
        seen.append(shown.page.pane.sort)
    assert sorted(seen) == sorted(column.key for column in columns.columns("program"))
    assert actions.pressed(shown, ">").page.pane.sort == "verdict"
    shown = typed_keys(opened(), ">", ">")
    assert shown.page.pane.sort == "connections"
    assert programs(shown)[0] == "nova-api"
    # A lost program is behind it: its connections are unknown.
    assert programs(actions.pressed(shown, "I"))[-2:] == ["nova-api", "cinder-volume"]


def test_unknown_values_are_sorted_last() -> None:
    """A row without the value stands last, in either order."""
    shown = opened("enter", ">", ">", ">")
    for key in ("I", "I"):
        assert [row.process.pid for row in rows_of(shown)][-1] == 4713
        shown = actions.pressed(shown, key)


def test_tab_and_the_arrows_reach_both_panes() -> None:
    """Tab goes between pools and connections, and so does an arrow past the end of one."""
    shown = opened("enter", "enter")
    assert shown.page.pane.want.by == "pool"
    assert actions.pressed(shown, "tab").page.pane.want.by == "connection"
    for _ in range(2):
        shown = actions.pressed(shown, "down")
    assert (shown.page.pane.want.by, shown.page.pane.index) == ("connection", 0)
    shown = actions.pressed(shown, "up")
    assert (shown.page.pane.want.by, shown.page.pane.index) == ("pool", 1)


def test_help_takes_one_key_to_leave_and_q_quits_from_it() -> None:
    """Any key returns from the help; q ends the console from anywhere."""
    helped = actions.pressed(opened(), "?")
    assert helped.mode is Mode.HELP
    assert actions.pressed(helped, "x").mode is Mode.TABLE
    assert len(actions.pressed(helped, "enter").pages) == 1
    assert actions.pressed(helped, "down").help_top == 1
    assert actions.pressed(helped, "q").ended


def test_silence_keeps_the_snapshot_and_a_snapshot_ends_it() -> None:
    """When no node answers the rows stay; the next snapshot takes the line away."""
    shown = state.silenced(opened(), Silence("no node reachable"))
    assert programs(shown) == programs(opened())
    assert refreshed(shown).silence is None


def test_a_note_goes_by_itself() -> None:
    """A note stays for as long as the settings say."""
    shown = state.noted(opened(), "node2 does not answer")
    assert state.ticked(shown, 101.0).note
    assert not state.ticked(shown, 112.0).note
    short = replace(opened(), settings=ConsoleSettings(note_seconds=0.5))
    assert not state.ticked(state.noted(short, "node2 does not answer"), 100.5).note


def test_age_counts_only_what_is_late() -> None:
    """The age is what the node says, and the time since the last answer once a refresh is overdue."""
    shown = opened()
    assert shown.age == pytest.approx(0.2)
    assert replace(shown, now=101.0).age == pytest.approx(0.2)
    assert replace(shown, now=110.0).age == pytest.approx(10.2)
    assert replace(shown, now=110.0).late
    assert ConsoleState("").age is None


@given(st.lists(st.sampled_from([*keys.ACTIONS, "x", "ü"]), max_size=40), st.integers(1, 30))
def test_no_keys_break_it(names: list[str], visible: int) -> None:
    """Whatever is pressed, with or without rows, the cursor is on a row that is on the screen."""
    shown = refreshed(ConsoleState(""))
    for at, name in enumerate(names):
        shown = actions.pressed(shown, name)
        if at % 3 == 0:
            shown = refreshed(shown, FLEET if at % 2 else ())
        shown = state.fitted(shown, [visible] * len(shown.page.panes))
        for pane in shown.page.panes:
            assert pane.index == 0 or pane.index < len(pane.rows or ())
            assert pane.top <= pane.index < pane.top + visible


@given(st.text(), st.integers(0, 40))
def test_clean_text_is_printable_and_fits(foreign: str, width: int) -> None:
    """Sanitized text has nothing that a terminal would act on, and takes exactly the room it is given."""
    kept = text.sanitize(foreign)
    assert kept.isprintable()
    assert text.width(text.clip(kept, width)) <= width
    assert text.width(text.left(kept, width)) == text.width(text.right(kept, width)) == width
    assert text.width(text.shorten(kept, width)) <= width


def test_names_are_cut_in_the_middle() -> None:
    """Names that differ at their ends stay different."""
    assert text.shorten("controller-01", 9) == "cont~r-01"
    assert text.sanitize("a\x1b[31m\u202eb\u200d日\n") == "a?[31m?b?日?"


# --- Every key does what the help says -------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "view"),
    [
        ("1", "programs"), ("p", "programs"), ("2", "hosts"), ("h", "hosts"), ("3", "databases"),
        ("d", "databases"), ("4", "processes"), ("5", "pools"), ("6", "connections"), ("7", "waits"),
        ("w", "waits"), ("8", "cluster"), ("c", "cluster"), ("9", "code"), ("l", "code"),
    ],
)  # fmt: skip
def test_a_key_for_each_view(key: str, view: Any) -> None:
    """From anywhere, the key shows the first page of its view, and asks for its rows."""
    shown = made("enter", "enter", key)
    assert (shown.view, len(shown.pages)) == (view, 1)
    assert shown.wants == (VIEWS[view],)
    assert shown.page.pane.rows


def test_each_view_keeps_its_order_and_filter() -> None:
    """A view is as it was left when one comes back to it."""
    shown = typed_keys(opened(), "I", "\\", "nova", "enter", "2", "1")
    assert shown.page.pane.inverted
    assert shown.page.pane.filter == "nova"


def test_from_a_database_to_its_programs_and_on() -> None:
    """Enter goes from a database to the programs that use it, to their processes; likewise from a host."""
    shown = opened("3", "enter")
    assert shown.wants == (Want("program", database=NOVA),)
    assert [page.title for page in shown.pages] == ["databases", "programs using nova on db1"]
    assert programs(replace(shown, pages=shown.pages[1:])) == ["nova-api", "neutron-server"]
    shown = refreshed(actions.pressed(shown, "enter"))
    assert shown.wants == (Want("process", "ctl1", "nova-api"),)
    assert opened("2", "enter").wants == (Want("program", host="ctl1"),)


def test_from_pools_connections_and_waits() -> None:
    """Enter goes from a pool and a connection to its process, from a wait to the held connections."""
    process = (Want("pool", instance="i-4711"), Want("connection", instance="i-4711"))
    assert opened("5", "enter").wants == process
    assert opened("6", "enter").wants == process
    holders = opened("7", "enter")
    assert holders.wants == (Want("connection", "ctl1", "nova-api", pool=INFO.url, held=True),)
    held = [row.held_seconds for row in rows_of(holders) if isinstance(row, JsonConnection)]
    assert None not in held and held[0] == 41.0
    assert held == sorted(held, key=lambda seconds: -(seconds or 0.0))
    assert refreshed(actions.pressed(holders, "enter")).wants == process
    assert opened("8", "enter").expanded


def test_find_goes_to_the_row_while_it_is_typed() -> None:
    """ "/" and a text: the cursor is on the first such row; n and N go on and back, past the end too."""
    shown = typed_keys(opened(), "/", "k", "e", "y")
    assert under_cursor(shown) == ("program", "ctl1", "keystone")
    assert under_cursor(typed_keys(shown, "esc")) == ("program", "ctl1", "nova-api")
    shown = typed_keys(opened(), "/", "CTL2", "enter")
    assert under_cursor(shown) == ("program", "ctl2", "cinder-volume")
    shown = typed_keys(shown, "n")
    assert under_cursor(shown) == ("program", "ctl2", "glance-api")
    assert under_cursor(typed_keys(shown, "n")) == ("program", "ctl2", "cinder-volume")
    assert under_cursor(typed_keys(shown, "N")) == ("program", "ctl2", "cinder-volume")
    assert "no row with" in typed_keys(opened(), "/", "nothing", "enter").note
    assert typed_keys(shown, "esc").find == ""
    assert "/ asks" in typed_keys(opened(), "n").note


def test_filter_shows_only_and_inverse_filter_hides() -> None:
    """ "\\" keeps the rows with a text, "!" those without; Esc ends it, before it goes back."""
    shown = typed_keys(opened(), "\\", "nova", "enter")
    assert programs(shown) == ["nova-api"]
    assert programs(refreshed(shown)) == ["nova-api"]
    assert len(programs(typed_keys(shown, "esc"))) == 5
    assert programs(typed_keys(opened(), "!", "ctl2", "enter")) == ["nova-api", "neutron-server", "keystone"]
    assert programs(typed_keys(opened(), "\\", "LOST", "enter")) == ["cinder-volume"]
    assert len(programs(typed_keys(opened(), "\\", "nova", "backspace", "esc"))) == 5


def test_freeze_keeps_the_screen_and_the_cursor_its_row() -> None:
    """Z: new snapshots change nothing until Z again; one can still move and drill down."""
    shown = typed_keys(opened(), "Z")
    assert shown.paused_at == "14:03:22"
    shown = refreshed(typed_keys(shown, "j"), ())
    assert programs(shown) == programs(opened())
    assert under_cursor(shown) == ("program", "ctl2", "cinder-volume")
    assert refreshed(actions.pressed(shown, "enter")).page.pane.rows is not None
    thawed = refreshed(typed_keys(shown, "Z"), FLEET[1:])
    assert "nova-api" not in programs(thawed)
    assert under_cursor(thawed) == ("program", "ctl2", "cinder-volume")


def test_freeze_order_lets_figures_change_but_not_places() -> None:
    """z: rows stay where they are, new ones stand below, figures go on; z again: in order."""
    shown = typed_keys(opened(), "I", "z")
    before = programs(shown)
    assert programs(refreshed(shown, FLEET[:4])) == [name for name in before if name != "glance-api"]
    moved = refreshed(shown, tuple(reversed(FLEET)))
    assert programs(moved) == before
    assert typed_keys(shown, "z").page.pane.order is None


def test_interval_goes_up_and_down_within_its_bounds() -> None:
    """+ and - choose the next interval and say which."""
    shown = typed_keys(opened(), "+")
    assert (shown.interval, shown.note) == (2.0, "a snapshot every 2 s")
    assert typed_keys(shown, "-").interval == 1.0
    assert typed_keys(opened(), *"-----").interval == INTERVALS_SECONDS[0]
    assert typed_keys(opened(), *"++++++++").interval == INTERVALS_SECONDS[-1]


def test_group_makes_one_row_of_a_program_and_of_a_pool() -> None:
    """m: a program over all hosts, a pool over all processes, with sums; elsewhere a note says where."""
    rows = (*FLEET, msgspec.structs.replace(FLEET[0], host="ctl9"))
    shown = refreshed(typed_keys(opened(), "m"), rows)
    top = rows_of(shown)[0]
    assert isinstance(top, ProgramGroup)
    assert (top.program, top.host, top.figures.connections) == ("nova-api", "2 hosts", 156)
    assert actions.pressed(shown, "enter").wants == (Want("program", program="nova-api"),)
    assert len(programs(typed_keys(shown, "m"))) == 6
    pools = [row for row in rows_of(opened("5", "m")) if isinstance(row, PoolGroup)]
    assert [row.figures.connections for row in pools] == [15]
    assert "only programs" in typed_keys(opened("6"), "m").note


def test_save_asks_for_a_name_and_leaves_the_rest_to_the_loop() -> None:
    """s proposes a name with view and time; Enter passes it to the loop, Esc drops it."""
    shown = typed_keys(opened(), "s")
    assert shown.mode is Mode.SAVE and shown.input.text == "connmon-programs-140322.txt"
    assert typed_keys(shown, "enter").save == "connmon-programs-140322.txt"
    assert typed_keys(shown, "esc").save == ""


def test_expand_is_a_toggle() -> None:
    """e shows all details of the row, and hides them again."""
    assert typed_keys(opened(), "e").expanded
    assert not typed_keys(opened(), "e", "e").expanded


def test_a_replay_steps_jumps_and_changes_speed() -> None:
    """Arrows step and stop it, brackets jump a minute, parentheses change the speed, Z stops and goes on."""
    shown = replace(opened(), reel=Reel(300, 60, 100))

    def reel(*names: str) -> Reel:
        after = typed_keys(shown, *names).reel
        assert after is not None
        return after

    assert (reel("right").position, reel("left").position) == (101, 99)
    assert not reel("right").playing
    assert (reel("]").position, reel("[").position) == (160, 40)
    assert (reel(*"]]]]]]").position, reel(*"[[[[").position) == (299, 0)
    assert (reel(")").speed, reel("(").speed, reel(*"))))))))))").speed) == (2.0, 0.5, 64.0)
    assert not reel("Z").playing and reel(*"ZZ").playing
    assert reel(*"]]]]]]Z").position == 0
    assert "live" in typed_keys(opened(), "]").note
    assert "speed" in typed_keys(shown, "+").note


def test_a_replay_that_was_moved_does_not_go_on_from_where_it_was() -> None:
    """The player's next position counts only if it follows the present one, and the replay is not stopped."""
    shown = replace(opened(), reel=Reel(300, 60, 100))
    assert state.played(shown, 101).reel == Reel(300, 60, 101)
    assert state.played(typed_keys(shown, "]"), 101).reel == Reel(300, 60, 160, playing=False)


def test_typed_keys_are_text_and_nothing_else() -> None:
    """While a text is typed, q does not quit and 2 is no view."""
    shown = typed_keys(opened(), "/", "q", "2", "?")
    assert not shown.ended and shown.view == "programs" and shown.mode is Mode.FIND


def test_only_the_transitions_of_the_table_happen() -> None:
    """Every key leads from its mode to itself or to a mode of the table; an impossible event is refused."""
    seen = {Mode.TABLE: opened()}
    modes_left = [Mode.TABLE]
    while modes_left:
        mode = modes_left.pop()
        for key in [*keys.ACTIONS, "x", "backspace"]:
            after = actions.pressed(seen[mode], key)
            assert after.mode in {mode, *modes.TRANSITIONS[mode].values()}, (mode, key)
            if after.mode not in seen:
                seen[after.mode] = after
                modes_left.append(after.mode)
    assert set(seen) == set(Mode) == set(modes.TRANSITIONS)
    with pytest.raises(KeyError):
        modes.next_mode(Mode.FIND, Event.QUIT)


def test_only_an_order_by_ages_needs_the_ages_of_all_rows() -> None:
    """Held times do not grow between reports: of other rows ages may lag. The age column needs all ages."""
    shown = state.fitted(opened("6"), (5,))
    assert shown.page.pane.sort == "held_seconds"
    assert shown.seen == frozenset(key for key, _ in (shown.page.pane.rows or ())[:5])
    assert actions.sort_by(shown, "age_seconds").seen is None
    assert opened("5", "m").seen is None


@pytest.mark.parametrize("sort", [">", ">>", ">>>", ">>>>>", "<", "I"])
def test_a_refresh_of_quiet_rows_is_what_a_fresh_look_shows(sort: str) -> None:
    """Where only ages have changed, refreshing in place has the same result as sorting again."""
    rows = (*FLEET, *many(50))
    shown = typed_keys(refreshed(ConsoleState("x"), rows), *sort)
    for later in (2.0, 9.0):
        shown = refreshed(shown, rows, clock=CLOCK + later)
        fresh = typed_keys(refreshed(ConsoleState("x"), rows, clock=CLOCK + later), *sort)
        assert shown.page.pane.rows == fresh.page.pane.rows

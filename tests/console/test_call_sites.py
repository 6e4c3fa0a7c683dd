"""The console's view of code: where connection time goes, by call site."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from wcwidth import wcswidth

from connmon.commands.record import run
from connmon.config import Address, Node, Service
from connmon.console import actions, aggregate, columns, details, fitting, lines, state, views
from connmon.console.fetcher import Demand
from connmon.console.replay import Player
from connmon.console.rows import CallSiteRow, KeyedRow
from connmon.console.source import Source, Want
from connmon.console.state import ConsoleState, Reel, Refresh
from connmon.protocol.credentials import OPEN
from connmon.protocol.reports import HoldProfile
from connmon.protocol.rows import Row, SiteRow
from connmon.reader.recording import Recording
from tests.console.test_views import fit, screen
from tests.support import made_fleet
from tests.support.console_fakes import FakeNode, answer
from tests.support.console_states import made, opened, row, rows_of, typed_keys

#: What a row of an earlier version is without.
PROFILED = ("profile", "recent", "share")
CHECKOUT = "shop/orders/checkout.py:118 place_order"
HOSTILE = '\x1b[2J=1+1\n\x9b31m\u202e"x",\x7f\r\t\x00'


def site_rows(**changes: Any) -> tuple[Row, ...]:
    """Return the made fleet with its call sites changed."""
    return tuple(
        structs.replace(made_row, **changes) if isinstance(made_row, SiteRow) else made_row
        for made_row in made_fleet.FLEET
    )


def call_sites(shown: ConsoleState) -> list[tuple[str, str]]:
    """Return the hosts and call sites of the table that has the focus, in order."""
    return [(site.site.host, site.site.call_site) for site in rows_of(shown)]


def test_the_gravest_then_those_that_hold_most_are_on_top() -> None:
    """Verdicts come first, then the programs in which somebody waits, then what is held on average."""
    shown = made("9")
    assert call_sites(shown)[:4] == [
        ("batch1", "reports/build/monthly.py:97 build"),
        ("web-b1", "billing/invoices/locks.py:203 number_for_update"),
        ("web-a1", CHECKOUT),
        ("web-a1", "shop/catalog/search.py:44 suggest"),
    ]
    means = [site.site.mean_held for site in rows_of(shown)[4:]]
    assert means == sorted(means, key=lambda mean: -(mean or 0.0))


def test_a_call_site_that_holds_nothing_at_this_moment_keeps_its_place() -> None:
    """What is held on average decides: a line that holds nothing now is not below one that seldom holds."""
    often = row("site", call_site="a.py:1 often", held_now=0, mean_held=3.0)
    seldom = row("site", call_site="b.py:1 seldom", held_now=1, mean_held=0.01)
    pairs: list[KeyedRow] = [(("site", "seldom"), seldom), (("site", "often"), often)]
    assert columns.arranged("site", pairs, "verdict", False) == (pairs[1], pairs[0])
    # Rows of an earlier version are in the order of what they hold now.
    old: list[KeyedRow] = [(("site", held), row("site", held_now=held)) for held in (1, 7, 0)]
    assert [key[1] for key, _ in columns.arranged("site", old, "verdict", False)] == [7, 1, 0]


@pytest.mark.parametrize("column", columns.columns("site"), ids=lambda column: column.key)
def test_every_column_sorts(column: columns.Column[Any]) -> None:
    """Each column can be sorted by, in both directions; what is unknown is last in both."""
    for inverted in (False, True):
        shown = actions.sort_by(made("9"), column.key)
        if column.key == "verdict":
            continue
        shown = typed_keys(shown, "I") if inverted else shown
        values = [column.value(site) for site in rows_of(shown)]
        known = [value for value in values if value is not None]
        assert len(known) > 1 and values[: len(known)] == known
        assert known == sorted(known, reverse=column.falls is not inverted)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50), (240, 50)])
def test_a_row_of_an_earlier_version_has_dashes(width: int, height: int) -> None:
    """Without a profile the cells that follow from it are "-", never 0, and the rest is as before."""
    rows = site_rows(**dict.fromkeys(PROFILED), recent_seconds=0.0)
    shown = opened("9", rows=rows)
    fitted, _ = fitting.fit(columns.columns("site"), rows_of(shown), width - 1, 2, "verdict", fitting.FALLING)
    for place in fitted:
        cells = {place.cell(site).strip() for site in rows_of(shown)}
        if place.column.key in (
            "share", "mean_held", "database_share", "where_shares", "holds_per_second", "mean_hold_seconds",
            "mean_waiting_caused", "mean_waiting",
        ):  # fmt: skip
            assert cells == {"-"}
        elif place.column.key == "holds_total":
            assert {"5857", "~190807"} <= cells
    said = screen(opened("9", "down", "down", "enter", rows=rows), width, height)
    assert "where its time goes" not in said and "last minutes:" not in said


def test_a_small_mean_is_not_zero() -> None:
    """What was held, however little, is not shown as 0."""
    little = HoldProfile(holds=1, held_ms=1, where={"database": 1})
    shown = opened("9", rows=site_rows(recent=little, recent_seconds=120.0, share=0.00002))
    (first, *_) = [line for line in screen(shown, 200, 50).splitlines() if line.startswith(">")]
    # Its share, what it holds on average, how much of that is in the database, and its holds per second.
    assert first.partition(" LEAK ")[2].split()[:4] == ["<1%", "<0.01", "100%", "0.01"]


def test_enter_leads_to_the_call_site_and_what_it_holds() -> None:
    """Enter shows where its time goes, now and since first seen, its stack, and the connections it holds."""
    shown = made("9", "down", "down", "enter")
    assert shown.wants == (
        Want("site", "web-a1", "shop.main:app", call_site=CHECKOUT),
        Want("connection", "web-a1", "shop.main:app", call_site=CHECKOUT, held=True),
    )
    assert [len(pane.rows or ()) for pane in shown.page.panes] == [1, 36]
    said = screen(shown, 160, 60)
    for fact in (
        "last minutes: 92 % of its program's connection time, 35.6 connections held on average",
        "average (39.7 holds/s, 0.9s each); 19.4 wait because of them",
        "where its time goes  last minutes               since first seen",
        "requests            86 % |||||||||||||||||      51 %",
        "database             8 % ||                     37 %",
        "json                 0 %                         1 %",
        "estimated: only a sample",
        "a recent stack, the innermost first:",
        " > shop/orders/checkout.py:131 place_order",
        "2100",
        "2109",
    ):
        assert fact in said
    # Nothing is below the row of the page: Enter scrolls its lines, and m has nothing to sum.
    fitted = fit(shown, 80, 24)
    assert actions.pressed(fitted, "enter").scrolled is not None
    assert not shown.page.pane.groupable
    # From a connection it goes on to its process, as from the view of connections.
    process = actions.pressed(actions.pressed(shown, "tab"), "enter")
    assert process.wants[0].by == "pool" and len(process.pages) == 3


def test_a_verdict_of_single_connections_leads_to_these() -> None:
    """The cursor begins on the connections where the verdict is theirs, else on the call site itself."""
    focus = {
        verdict: made("9", *["down"] * place, "enter").page.focus
        for place, verdict in enumerate(("LEAK", "BLOCKED", "SATURATED", None))
    }
    assert focus == {"LEAK": 1, "BLOCKED": 1, "SATURATED": 0, None: 0}
    # A lost program's call site may be LEAK and hold nothing that is known.
    leaked = opened("9", "enter", rows=site_rows(held=0))
    assert leaked.page.focus == 0


def test_a_call_site_over_all_hosts() -> None:
    """m sums call sites over hosts: the share is its part of the program's sum; Enter leads to all hosts."""
    shown = made("9", "m")
    sites = {(site.site.program, site.site.call_site): site.site for site in rows_of(shown)}
    checkout = sites["shop.main:app", CHECKOUT]
    assert (checkout.host, checkout.verdict, checkout.estimated) == ("2 hosts", "SATURATED", True)
    assert checkout.mean_held == pytest.approx(35.6 + 2.81, rel=1e-3)
    # 35.6 and 3.24 connections on one host, 2.81 and 0.8 on the other.
    assert checkout.share == pytest.approx((35.6 + 2.81) / (35.6 + 3.24 + 2.81 + 0.8), rel=1e-3)
    assert checkout.database_share == pytest.approx((35.6 * 0.08 + 2.81 * 0.38) / 38.41, rel=1e-3)
    assert checkout.where_shares["requests"] == pytest.approx((35.6 * 0.86 + 2.81 * 0.49) / 38.41, rel=1e-3)
    assert checkout.mean_hold_seconds == pytest.approx(38.41 / (39.7 + 38.1), rel=1e-2)
    assert checkout.held_now == 39 and checkout.stack == made_fleet.CHECKOUT_STACK
    by_program: dict[str, float] = {}
    for (program, _), site in sites.items():
        by_program[program] = by_program.get(program, 0.0) + (site.share or 0.0)
    assert {round(share, 2) for program, share in by_program.items() if program != "inventory-sync"} == {1.0}
    assert sites["inventory-sync", "<string>:1 <module>"].share is None
    shown = actions.sort_by(shown, "mean_held")
    shown = made("9", "m", "down", "down", "enter")
    assert [want.host for want in shown.wants] == [None, None]
    assert [host for host, _ in call_sites(shown)] == ["web-a1", "web-a2"]
    assert len(shown.page.panes[1].rows or ()) == 39


def test_a_lost_host_does_not_hide_what_others_hold() -> None:
    """The present is summed over hosts that report; where all are lost it is not known."""
    names = {"program": "p", "call_site": "a.py:1 f", "verdict": None, "estimated": False}
    there = {"processes": 1, "held_now": 3, "waiting_now": 1, "in_database_now": 0, "holds_total": 5,
             "hold_seconds_total": 1.0}  # fmt: skip
    lost = {"processes": 0, "holds_total": 2, "hold_seconds_total": 1.0}
    hosts: list[KeyedRow] = [
        (("site", host), row("site", host=host, **names, **values))
        for host, values in (("h1", there), ("h2", lost))
    ]
    ((_, summed),) = aggregate.call_sites(hosts)
    assert isinstance(summed, CallSiteRow)
    assert (summed.site.held_now, summed.site.holds_total, summed.site.share) == (3, 7, None)
    ((_, alone),) = aggregate.call_sites(hosts[1:])
    assert isinstance(alone, CallSiteRow)
    assert (alone.site.held_now, alone.site.host) == (None, "h2")


@pytest.mark.parametrize(("width", "height"), [(20, 5), (80, 24), (160, 45), (400, 60)])
@pytest.mark.parametrize("keys", [("9",), ("9", "m"), ("9", "enter"), ("9", "down", "down", "down", "enter")])
def test_hostile_labels(keys: tuple[str, ...], width: int, height: int) -> None:
    """Labels and frames are foreign: no control character is drawn, no line is wider than the screen."""
    labels = {HOSTILE: 50, "x" * 64: 20, "包裹" * 32: 20, ", , 50%": 9, "database": 1}
    profile = HoldProfile(holds=3, held_ms=100, where=labels)
    rows = site_rows(profile=profile, recent=profile, recent_seconds=60.0, stack=(HOSTILE, "包裹" * 64))
    shown = fit(opened(*keys, rows=rows), width, height)
    drawn = views.view(shown, width, height)
    for line in lines.plain(drawn).splitlines():
        assert line.isprintable() and wcswidth(line) <= width
    assert views.saved(shown).replace("\n", "").isprintable()
    assert lines.plain(details.whole(rows_of(shown)[0], width).lines).replace("\n", "").isprintable()


@given(
    st.dictionaries(st.text(max_size=64), st.floats(0.0, 1.0), max_size=9),
    st.dictionaries(st.text(max_size=64), st.floats(0.0, 1e9), max_size=9),
    st.integers(20, 200),
)
def test_places_of_any_name_fit(shares: dict[str, float], seconds: dict[str, float], width: int) -> None:
    """Where time goes has a line for each place, in the width, whatever the labels are."""
    site = row("site", where_shares=shares, where_seconds_total=seconds, mean_held=1.0)
    drawn = lines.plain(details.whole(site, width).lines).splitlines()
    assert all(line.isprintable() and wcswidth(line) <= width for line in drawn)
    begin = [at for at, line in enumerate(drawn) if "where its time goes"[: width - 3] in line]
    assert bool(begin) is bool(shares or seconds)


def test_what_else_gives_way_to_numbers() -> None:
    """Where a second place has no room, it goes before a number does; the first keeps its share."""
    shares = {"requests": 0.6, "own code": 0.2, "boto3.session": 0.1, "json": 0.1}
    rows = [row("site", host="ctl1", program="shop-api", call_site="orders.py:88 checkout",
                where_shares=shares, share=0.7, mean_held=1.0, database_share=0.0)]  # fmt: skip
    before = 0
    for width in range(80, 240):
        fitted, _ = fitting.fit(columns.columns("site"), rows, width, 2, "verdict", fitting.FALLING)
        (place,) = [place for place in fitted if place.column.key == "where_shares"]
        cell = place.cell(rows[0]).strip()
        assert cell in {
            "requests 60%", "requests 60%, own code 20%", "requests 60%, own code 20%, boto3.session 10%",
            "requests 60%, own code 20%, boto3.session 10%, json 10%",
        }  # fmt: skip
        before = max(before, len(cell))
    assert before == 55


def test_filter_by_where_time_goes() -> None:
    """A filter finds call sites by what they call."""
    shown = typed_keys(made("9"), "\\", "smtplib", "enter")
    assert [place for _, place in call_sites(shown)] == ["mail/queue.py:58 next_batch"]


def test_a_row_without_changes_stays_the_same_object() -> None:
    """A refresh builds only what has changed, and what waits in its program: the rest is as it was."""
    source = Source(Want("site"))
    source.apply(answer(source.question(), made_fleet.FLEET))
    before = dict(source.rows())
    assert source.rows() is source.rows()
    pane = made("9").page.pane.filled(source.rows())
    assert pane.filled(source.rows()) is pane
    rows = tuple(
        structs.replace(made_row, waiting=made_row.waiting + 1)
        if isinstance(made_row, SiteRow) and made_row.call_site.startswith("mail/")
        else made_row
        for made_row in made_fleet.FLEET
    )
    source.apply(answer(source.question(), rows))
    after = dict(source.rows())
    changed = [key for key in after if after[key] is not before[key]]
    assert len(after) == 13 and all(isinstance(after[key], CallSiteRow) for key in changed)
    assert [getattr(after[key], "waiting_in_program", None) for key in changed if "mail" in str(key)] == [1]


# --- Recordings ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recorded snapshots of the made fleet."""
    path = tmp_path_factory.mktemp("recording") / "a.jsonl"
    node = FakeNode(rows=made_fleet.FLEET)
    with contextlib.ExitStack() as stack:
        stack.callback(node.stop)
        address = Address("127.0.0.1", node.port)
        service = Service("default", (Node(node.name, address, address),))
        assert run(service, str(path), OPEN, interval=0.1, times=2, size=2**24, keep=2) == 0
    return path


def replayed(path: Path, *keys: str) -> ConsoleState:
    """Return the state of a replay after these keys."""
    player = Player(Recording(str(path)), lambda: 0.0)
    shown = ConsoleState("", reel=Reel(2, playing=False))
    for key in keys:
        shown = actions.pressed(shown, key)
        player.want(Demand(shown.wants, reel=shown.reel))
        for news in player.news():
            if isinstance(news, Refresh):
                shown = state.refreshed(shown, news)
    return shown


def test_a_replay_has_the_profile(recorded: Path) -> None:
    """A replay shows call sites as the node has shown them, in the view and on the page that Enter opens."""
    for keys in (("9",), ("9", "enter"), ("9", "down", "down", "enter"), ("9", "m", "down", "down", "enter")):
        live = [pane.rows for pane in made(*keys).page.panes]
        again = [pane.rows for pane in replayed(recorded, *keys).page.panes]
        assert again == live and all(live)


def test_an_old_recording_replays(recorded: Path, tmp_path: Path) -> None:
    """A recording of a version without profiles shows what it has, and "-" for the rest."""

    def aged(value: Any) -> Any:
        if isinstance(value, list) and value[:1] == ["site"]:
            return value[:16]
        if isinstance(value, list):
            return [aged(part) for part in value]
        return {key: aged(part) for key, part in value.items()} if isinstance(value, dict) else value

    old = tmp_path / "old.jsonl"
    old.write_text(
        "".join(
            json.dumps(aged(json.loads(line)), separators=(",", ":")) + "\n"
            for line in recorded.read_text().splitlines()
        )
    )
    assert "requests" not in old.read_text() and "requests" in recorded.read_text()
    (first, *_) = rows_of(replayed(old, "9"))
    assert (first.site.verdict, first.site.holds_total, first.site.share) == ("LEAK", 5857, None)
    assert Recording(str(old)).snapshot(0, "site").document()["rows"][0]["mean_held"] is None

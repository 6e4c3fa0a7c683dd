"""How the height of the screen is divided between its parts, and which columns a table shows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from connmon.console import columns, details, fitting, header
from connmon.console.columns import Column
from connmon.console.lines import flow
from connmon.console.panes import Pane
from connmon.console.state import ConsoleState, Spread

#: Heights in lines from which on parts of the screen are shown. Lower screens keep the more important parts.
BANNER_HEIGHT: Final = 3
TRAIL_HEIGHT: Final = 6
TOTALS_HEIGHT: Final = 7
FOOTER_HEIGHT: Final = 9
MORE_HEIGHT: Final = 12
"""A second line of totals, three banners, a line about the row under the cursor."""
TWO_TABLES_HEIGHT: Final = 14
TALL_HEADING_HEIGHT: Final = 16
"""Headings of two lines, and the line about a process on this host."""
TRENDS_HEIGHT: Final = 20


@dataclass(frozen=True)
class Layout:
    """Lines of each part, from the top to the bottom."""

    totals: int
    trends: int
    banners: int
    trail: int
    local: int
    heading: int
    """Of each table: 1 or 2."""
    panes: tuple[int, ...]
    """Rows of each table; 0: the table is not shown."""
    about: int
    """Lines about the row under the cursor."""
    spread: Spread | None
    """How all details of that row fit into them. None: they have only what is wrong."""
    footer: int

    @property
    def above(self) -> int:
        """Lines above the first table, with the title."""
        return 1 + self.totals + self.trends + self.banners + self.trail + self.local


def layout(state: ConsoleState, width: int, height: int) -> Layout:
    """Return how `height` lines are divided; the tables get what the other parts leave."""
    totals = 0
    if height >= TOTALS_HEIGHT:
        totals = len(flow(header.totals(state), width, 1 if height < MORE_HEIGHT else 2))
    trends = int(height >= TRENDS_HEIGHT and header.trends(state, width) is not None)
    most_banners = 0 if height < BANNER_HEIGHT else 1 if height < MORE_HEIGHT else 3
    banners = min(len(header.banners(state)), most_banners)
    trail = int(height >= TRAIL_HEIGHT)
    footer = int(height >= FOOTER_HEIGHT or (state.mode.is_prompt and height >= BANNER_HEIGHT))
    local = int(height >= TALL_HEADING_HEIGHT and header.local(state) is not None)
    heading = 2 if height >= TALL_HEADING_HEIGHT else 1
    rows = height - 1 - totals - trends - banners - trail - local - footer
    about, spread = _about(state, width, height, rows, heading)
    return Layout(
        totals=totals,
        trends=trends,
        banners=banners,
        trail=trail,
        local=local,
        heading=heading,
        panes=_panes(state, height, rows - about, heading),
        about=about,
        spread=spread,
        footer=footer,
    )


def _panes(state: ConsoleState, height: int, lines: int, heading: int) -> tuple[int, ...]:
    """Return the rows of each table that fit into so many lines."""
    panes = state.page.panes
    if len(panes) == 1 or height < TWO_TABLES_HEIGHT:
        return tuple(max(0, lines - heading) if at == state.page.focus else 0 for at in range(len(panes)))
    upper, lower = panes
    rows = lines - 2 * heading
    # Pools are few as a rule: they get what they need up to a third, or what connections leave.
    need = max(1, len(upper.rows or ()))
    others = max(1, len(lower.rows or ()))
    share = min(need, max(rows // 3, rows - others, 1))
    return share, max(1, rows - share)


def _about(
    state: ConsoleState, width: int, height: int, rows: int, heading: int
) -> tuple[int, Spread | None]:
    """Return how many of `rows` lines are about the row under the cursor, and how its details fit in."""
    page = state.page
    selected = page.pane.selected
    least = 0 if height < MORE_HEIGHT else 1 if height < TRENDS_HEIGHT or width >= 120 else 2
    want = page.pane.want
    wanted = state.expanded or want.held or want.call_site is not None
    if selected is None or (wanted and rows <= 6):
        return (0 if wanted else least), None
    # Details get what the tables leave; where they are asked for, up to half of the height.
    needed = sum(heading + max(1, len(pane.rows or ())) for pane in page.panes)
    room = max(rows - needed, max(3, rows // 2) if wanted else 0)
    if room < max(3, least + 1):
        return least, None
    row_details = details.whole(selected[1], width)
    lines = len(row_details.lines)
    room = min(room, lines + 1)
    top = (
        0
        if row_details.own is None or row_details.own < room - 1
        else row_details.own - details.CALLER_FRAMES
    )
    return room, Spread(lines, room - 1, max(0, min(top, lines + 1 - room)))


def shown_columns(pane: Pane) -> list[Column[Any]]:
    """Return the columns that tell the rows of a table apart; what all rows share is in the trail."""
    want = pane.want
    same: set[str] = set()
    if want.host is not None or want.instance is not None:
        same.add("host")
    of_one_program = want.by in ("process", "connection") or want.call_site is not None
    if want.instance is not None or (want.program is not None and of_one_program):
        same.add("program")
    if want.instance is not None or pane.grouped:
        same.add("pid")
    if want.pool is not None:
        same.add("pool")
    return [
        column for column in columns.columns(want.by) if column.key not in same or column.key == pane.sort
    ]


def fitted_columns(pane: Pane, width: int, heading: int) -> tuple[list[fitting.Fitted], int]:
    """Return the columns of a table that fit, and the gap between them."""
    rows = [row for _, row in pane.on_screen]
    return fitting.fit(shown_columns(pane), rows, width - 1, heading, pane.sort, header.mark(pane))

"""State, width and height -> styled lines. Pure.

Rules kept here:

- No line is wider than the width, and there are never more lines than the height, whatever the size
  and the data.
- Everything foreign goes through `text.clean` before it gets into a span.
- What does not fit is left out whole, the least important first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from connmon.console import columns, details, fitting, format, header, help_screen, text
from connmon.console.fitting import Column, Row
from connmon.console.lines import VERDICT_ROLES, Line, Role, clipped, flow, padded, plain, wrapped
from connmon.console.panes import Pane
from connmon.console.source import Want
from connmon.console.state import Spread, State

#: More than the longest row; where everything is to fit.
ANY_WIDTH: Final = 100_000


def view(state: State, width: int, height: int) -> list[Line]:
    """Return the screen: at most `height` lines of at most `width` columns each."""
    if width < 1 or height < 1:
        return []
    if state.help:
        lines = help_screen.lines(state.help_top, state.reel is not None, width, height)
    else:
        lines = _page(state, width, height)
    shown = [clipped(line, width) for line in lines[:height]]
    if state.blocks:
        return shown
    return [[(part.translate(text.ASCII), role) for part, role in line] for line in shown]


def saved(state: State) -> str:
    """Return the whole table that has the focus as plain text: every row, every column but the lines."""
    pane = state.page.pane
    rows = [row for _, row in pane.rows or ()]
    shown = [column for column in _columns(pane) if column.key not in ("rates", "counts")]
    fitted, gap = fitting.fit(shown, rows, ANY_WIDTH, 1, pane.sort, header.mark(pane))
    between = " " * gap
    lines: list[Line] = [header.title(state, ANY_WIDTH), *flow(header.totals(state), ANY_WIDTH, 1)]
    lines += [[(banner, role)] for banner, role in header.banners(state)]
    lines += [header.crumbs(state, 200, len(rows)), [(f" at {state.received_at}", "")], []]
    lines.append([(between.join(place.title(0) for place in fitted), "")])
    lines += [[(between.join(place.cell(row) for place in fitted), "")] for row in rows]
    return plain(lines) + "\n"


# --- Where things go ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How the height is divided: lines of each part, from the top to the bottom."""

    totals: int
    trends: int
    banners: int
    crumbs: int
    local: int
    heading: int
    """Lines of a table's heading: 1 or 2."""
    panes: tuple[int, ...]
    """Rows of each pane; 0: the pane is not shown."""
    why: int
    """Lines about the row under the cursor."""
    spread: Spread | None
    """They have all that is known of it: how much of that is seen. None: only what is wrong."""
    footer: int

    @property
    def above(self) -> int:
        """Lines above the first table, the title's included."""
        return 1 + self.totals + self.trends + self.banners + self.crumbs + self.local


def layout(state: State, width: int, height: int) -> Layout:
    """Return how `height` lines are divided; the table's rows are what is left."""
    totals = 0 if height < 7 else len(flow(header.totals(state), width, 1 if height < 12 else 2))
    trends = int(height >= 20 and header.trends(state, width) is not None)
    banners = min(len(header.banners(state)), 0 if height < 3 else 1 if height < 12 else 3)
    crumbs, footer = int(height >= 6), int(height >= 9 or (state.typing is not None and height > 2))
    local = int(height >= 16 and _local(state) is not None)
    heading = 2 if height >= 16 else 1
    rows = height - 1 - totals - trends - banners - crumbs - local - footer
    why, spread = _about(state, width, height, rows, heading)
    rows -= why
    panes = state.page.panes
    if len(panes) == 1 or height < 14:
        shown = tuple(max(0, rows - heading) if at == state.page.focus else 0 for at in range(len(panes)))
    else:
        upper, lower = panes
        rows -= 2 * heading
        # Pools are few as a rule: they get what they need up to a third, or what connections leave.
        need = max(1, len(upper.rows or ()))
        others = max(1, len(lower.rows or ()))
        share = min(need, max(rows // 3, rows - others, 1))
        shown = (share, max(1, rows - share))
    return Layout(totals, trends, banners, crumbs, local, heading, shown, why, spread, footer)


def _about(state: State, width: int, height: int, rows: int, heading: int) -> tuple[int, Spread | None]:
    """Return how many of `rows` lines are for the row under the cursor, and how all that is known fits."""
    page = state.page
    selected = page.pane.selected
    least = 0 if height < 12 else 1 if height < 20 or width >= 120 else 2
    wanted = state.expanded or page.pane.want.held
    if selected is None or (wanted and rows <= 6):
        return (0 if wanted else least), None
    # What the tables leave is for details, which may take half of the height where they are asked for.
    needed = sum(heading + max(1, len(pane.rows or ())) for pane in page.panes)
    room = max(rows - needed, max(3, rows // 2) if wanted else 0)
    if room < max(3, least + 1):
        return least, None
    found = details.whole(selected[1], width)
    every = len(found.lines)
    room = min(room, every + 1)
    top = 0 if found.own is None or found.own < room - 1 else found.own - details.CALLERS
    return room, Spread(every, room - 1, max(0, min(top, every + 1 - room)))


def _page(state: State, width: int, height: int) -> list[Line]:
    plan = layout(state, width, height)
    lines: list[Line] = [header.title(state, width)]
    lines += flow(header.totals(state), width, plan.totals)
    trend = header.trends(state, width)
    if plan.trends and trend is not None:
        lines.append(trend)
    for banner, role in header.banners(state)[: plan.banners]:
        lines.append([(text.left(" " + text.clean(banner), width), role)])
    if plan.crumbs:
        lines.append(header.crumbs(state, width, plan.panes[state.page.focus]))
    local = _local(state)
    if plan.local and local is not None:
        lines.append([(text.clip(f" {local}", width), "strong")])
    for at, rows in enumerate(plan.panes):
        if rows:
            pane = state.page.panes[at].shown(rows)
            lines += _table(state, pane, width, plan.heading, at == state.page.focus)
    if plan.why:
        lines += _why(state, width, plan.why, plan.spread)
    if plan.footer:
        lines += [[]] * (height - 1 - len(lines))
        lines[height - 1 :] = [header.footer(state, width)]
    return lines


def _local(state: State) -> str | None:
    local = state.local
    return local.text if local is not None and state.page.pane.want.instance == local.instance else None


def _why(state: State, width: int, most: int, spread: Spread | None) -> list[Line]:
    """Return what is to be said of the row under the cursor, in exactly so many lines."""
    selected = state.page.pane.selected
    lines: list[Line] = []
    if selected is not None and spread is not None:
        top = state.scrolled
        if top is None:
            lines = details.lines(selected[1], width, spread.room)
        else:
            top = min(top, spread.lowest)
            lines = details.whole(selected[1], width).lines[top : top + spread.room]
        lines = [_ruler(spread, top, width), *lines]
    elif selected is not None:
        row = selected[1]
        said = columns.reason(row) or "; ".join(row.get("problems") or ())
        if said:
            role = VERDICT_ROLES.get(str(row.get("verdict")), "strong")
            lines = wrapped(f"{columns.name(row)}: {said}", width, role)
            if len(lines) > most:
                last = "".join(part for part, _ in lines[most - 1])
                lines[most - 1] = [(text.left(last, max(0, width - 6)) + "(e)", role)]
    return (lines + [[]] * most)[:most]


def _ruler(spread: Spread, top: int | None, width: int) -> Line:
    """Return the line between the table and what is said of a row: how many more lines there are."""
    below = spread.lowest - (top or 0)
    said: tuple[str, ...] = ("",)
    if top is not None:
        said = (
            f" {top} lines above, {below} below: Up Down PgUp PgDn Home End, Esc ",
            f" {top} above, {below} below ",
        )
    elif below:
        said = (
            f" {below} more line{'s' * (below != 1)}: Tab, then Up Down PgUp PgDn ",
            f" {below} more: Tab ",
        )
    middle = next((each for each in said if text.width(each) + 4 <= width), "")
    return [
        ("-" * (width - text.width(middle) - 2), ""),
        (middle, "strong" if top is None else "warn"),
        ("--", ""),
    ]


# --- Tables -------------------------------------------------------------------------------------

_STATE_ROLES: Final[dict[Any, Role]] = {
    **VERDICT_ROLES,
    "lost": "bad", "gone": "faded", "waiting": "warn", "detached": "warn", "unreachable": "bad",
    "candidate": "bad",
}  # fmt: skip


def _columns(pane: Pane) -> list[Column]:
    """Return the columns that tell the rows of this pane apart; what all have in common is in the trail."""
    want = pane.want
    same = set()
    if want.host is not None or want.instance is not None:
        same.add("host")
    if want.instance is not None or (want.program is not None and want.by == "process"):
        same.add("program")
    if want.instance is not None or pane.grouped:
        same.add("pid")
    if want.by == "connection" and want.program is not None:
        same.add("program")
    if want.pool is not None:
        same.add("pool")
    return [
        column for column in columns.COLUMNS[want.by] if column.key not in same or column.key == pane.sort
    ]


def placed(pane: Pane, width: int, heading: int) -> tuple[list[fitting.Fitted], int]:
    """Return the columns of a pane that fit, and the gap between them."""
    rows = [row for _, row in (pane.rows or ())[pane.top : pane.top + pane.visible]]
    return fitting.fit(_columns(pane), rows, width - 1, heading, pane.sort, header.mark(pane))


def _table(state: State, pane: Pane, width: int, heading: int, focused: bool) -> list[Line]:
    shown = (pane.rows or ())[pane.top : pane.top + pane.visible]
    fitted, gap = placed(pane, width, heading)
    between = " " * gap
    lines: list[Line] = []
    for at in range(heading):
        line: Line = [(" ", "header")]
        for place in fitted:
            line += [(place.title(at) + between, "header")]
        lines.append(padded(line, width, "header"))
    marks = fitting.marks(fitted, shown)
    for number, (key, row) in enumerate(shown, pane.top):
        row = _remembering(state, key, row)
        cells = _cells(fitted, row, marks.get(key, ""))
        if focused and number == pane.index:
            role = _UNDER_CURSOR.get(_whole_role(row, fitted), "cursor")
            lines.append([(text.left(">" + between.join(cells), width), role)])
        else:
            lines.append(_row(row, fitted, [cell + between for cell in cells]))
    if not shown:
        lines += _nothing(state, pane, width)[: pane.visible]
    # The pane keeps its place while rows come and go.
    return lines + [[]] * (heading + pane.visible - len(lines))


def _remembering(state: State, key: Any, row: Row) -> Row:
    """Return the row with its last minutes, where the node has told them."""
    remembered = state.remembered
    samples = None if remembered is None else remembered.rows.get(key)
    if remembered is None or samples is None:
        return row
    blocks = format.BLOCKS if state.blocks else format.ASCII_BLOCKS
    return {**row, columns.TREND_KEY: (samples._asdict(), remembered.number, blocks)}


def _cells(fitted: Sequence[fitting.Fitted], row: Row, mark: str) -> list[str]:
    """Return the row's cells; the mark is in the first text that identifies it, else in the first cell."""
    if not mark:
        return [place.cell(row) for place in fitted]
    naming = [place.column.identifies and place.column.is_text for place in fitted]
    at = naming.index(True) if True in naming else 0
    return [place.cell(row, mark if number == at else "") for number, place in enumerate(fitted)]


#: What is wrong has its colour under the cursor too: the gravest row is where the cursor begins.
_UNDER_CURSOR: Final[dict[Role, Role]] = {"warn": "cursor_warn", "bad": "cursor_bad"}


def _whole_role(row: Row, fitted: Sequence[fitting.Fitted]) -> Role:
    """Return the role of a whole row, by the word for its state."""
    word = columns.state_word(row)
    shown = {place.column.key for place in fitted}
    if "role" in shown and row.get("role"):
        word = "waiting" if row.get("problem") and row["role"] != "unreachable" else str(row["role"])
    # Where the word itself, or how many wait, had no room, its colour would say more than the text.
    says = {"waiting", "waiting_now"} if word == "waiting" else {"verdict"}
    return _STATE_ROLES.get(word, "") if shown & {"state", "role", *says} else ""


def _row(row: Row, fitted: Sequence[fitting.Fitted], cells: Sequence[str]) -> Line:
    word = columns.state_word(row)
    whole = _whole_role(row, fitted)
    line: Line = [(" ", whole)]
    for place, cell in zip(fitted, cells, strict=True):
        role = whole
        if not whole and place.column.key == "state" and word == "checked out":
            role = "good"
        line.append((cell, role))
    return line


def _nothing(state: State, pane: Pane, width: int) -> list[Line]:
    """Return what stands where rows would."""
    if pane.rows is None:
        return wrapped(
            "Asking the node ..." if state.silence is None else "Not known: no node answers.", width
        )
    if pane.source and pane.filter:
        how = "has" if not pane.inverse else "is without"
        return wrapped(f"None of {len(pane.source)} rows {how} {pane.filter!r}: Esc ends the filter.", width)
    if pane.want == Want("program"):
        return [
            *wrapped(
                "No application reports yet: add connmon to the URL of an engine and let it connect.", width
            ),
            [],
            *wrapped(f"mysql+pymysql://USER:PW@HOST/DB?plugin=connmon&{state.url_option}", width),
        ]
    return wrapped(_NOTHING[pane.want.by], width)


_NOTHING: Final[dict[columns.Table, str]] = {
    "program": "No program now.",
    "host": "No host reports yet.",
    "database": "No database is used yet.",
    "process": "No process is running now.",
    "pool": "No pool. The process has made none yet, or it has ended.",
    "connection": "No open connection.",
    "site": "No line of code has taken a connection that is known by its line.",
    "wait": "Nobody waits for a connection, and none has been held long.",
    "node": "The nodes of the cluster are not known in this picture.",
}

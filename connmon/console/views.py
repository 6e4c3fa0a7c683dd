"""Draw the screen: state, width and height -> styled lines. Pure.

- No line is wider than the width, and there are never more lines than the height, whatever the size and
  the data.
- Every foreign text is sanitized by `text.sanitize` before it gets into a span.
- What does not fit is left out whole, the least important first; see `layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from connmon.console import details, fitting, format, header, help_screen, text
from connmon.console.layout import fitted_columns, layout, shown_columns
from connmon.console.lines import VERDICT_ROLES, Line, Role, clipped, flow, padded, plain, wrapped
from connmon.console.modes import Mode
from connmon.console.panes import Pane
from connmon.console.row_words import name, problems, reason, state_word, verdict
from connmon.console.rows import Key, NodeRow, Table, TableRow, Trend
from connmon.console.source import Want
from connmon.console.state import ConsoleState, Spread

#: Wider than any row, for a text into which everything is to fit.
ANY_WIDTH: Final = 100_000


def view(state: ConsoleState, width: int, height: int) -> list[Line]:
    """Return the screen: at most `height` lines of at most `width` columns each."""
    if width < 1 or height < 1:
        return []
    if state.mode is Mode.HELP:
        lines = help_screen.lines(state.help_top, state.reel is not None, width, height)
    else:
        lines = _page(state, width, height)
    clipped_lines = [clipped(line, width) for line in lines[:height]]
    if state.blocks:
        return clipped_lines
    return [[(part.translate(text.ASCII), role) for part, role in line] for line in clipped_lines]


def saved(state: ConsoleState) -> str:
    """Return the whole table that has the focus as plain text: every row, every column but the trends."""
    pane = state.page.pane
    rows = [row for _, row in pane.rows or ()]
    columns = [column for column in shown_columns(pane) if column.samples is None]
    fitted, gap = fitting.fit(columns, rows, ANY_WIDTH, 1, pane.sort, header.mark(pane))
    between = " " * gap
    lines: list[Line] = [header.title(state, ANY_WIDTH), *flow(header.totals(state), ANY_WIDTH, 1)]
    lines += [[(banner, role)] for banner, role in header.banners(state)]
    lines += [header.trail(state, 200, len(rows)), [(f" at {state.received_at}", "")], []]
    lines.append([(between.join(place.title(0) for place in fitted), "")])
    lines += [[(between.join(place.cell(row) for place in fitted), "")] for row in rows]
    return plain(lines) + "\n"


# --- Parts of the screen ------------------------------------------------------------------------


def _page(state: ConsoleState, width: int, height: int) -> list[Line]:
    plan = layout(state, width, height)
    lines: list[Line] = [header.title(state, width)]
    lines += flow(header.totals(state), width, plan.totals)
    trends = header.trends(state, width)
    if plan.trends and trends is not None:
        lines.append(trends)
    for banner, role in header.banners(state)[: plan.banners]:
        lines.append([(text.left(" " + text.sanitize(banner), width), role)])
    if plan.trail:
        lines.append(header.trail(state, width, plan.panes[state.page.focus]))
    local = header.local(state)
    if plan.local and local is not None:
        lines.append([(text.clip(f" {local}", width), "strong")])
    for at, rows in enumerate(plan.panes):
        if rows:
            pane = state.page.panes[at].shown(rows)
            lines += _table(state, pane, width, plan.heading, at == state.page.focus)
    if plan.about:
        lines += _about_row(state, width, plan.about, plan.spread)
    if plan.footer:
        lines += [[]] * (height - 1 - len(lines))
        lines[height - 1 :] = [header.footer(state, width)]
    return lines


def _about_row(state: ConsoleState, width: int, most: int, spread: Spread | None) -> list[Line]:
    """Return exactly `most` lines about the row under the cursor."""
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
        lines = _what_is_wrong(selected[1], width, most)
    return (lines + [[]] * most)[:most]


def _what_is_wrong(row: TableRow, width: int, most: int) -> list[Line]:
    """Return what is wrong with a row in at most `most` lines; "(e)" where the rest has no room."""
    said = reason(row) or "; ".join(problems(row))
    if not said:
        return []
    role = VERDICT_ROLES.get(str(verdict(row)), "strong")
    lines = wrapped(f"{name(row)}: {said}", width, role)
    if len(lines) > most:
        last = "".join(part for part, _ in lines[most - 1])
        lines[most - 1] = [(text.left(last, max(0, width - 6)) + "(e)", role)]
    return lines


def _ruler(spread: Spread, top: int | None, width: int) -> Line:
    """Return the line between the table and the details of a row: how many more lines there are."""
    below = spread.lowest - (top or 0)
    texts: tuple[str, ...] = ("",)
    if top is not None:
        texts = (
            f" {top} lines above, {below} below: Up Down PgUp PgDn Home End, Esc ",
            f" {top} above, {below} below ",
        )
    elif below:
        texts = (
            f" {below} more line{'s' * (below != 1)}: Tab, then Up Down PgUp PgDn ",
            f" {below} more: Tab ",
        )
    middle = next((candidate for candidate in texts if text.width(candidate) + 4 <= width), "")
    return [
        ("-" * (width - text.width(middle) - 2), ""),
        (middle, "strong" if top is None else "warn"),
        ("--", ""),
    ]


# --- Tables -------------------------------------------------------------------------------------

#: The roles of states, besides those of the verdicts.
_STATE_ROLES: Final[Mapping[str, Role]] = {
    **VERDICT_ROLES,
    "lost": "bad", "gone": "faded", "waiting": "warn", "detached": "warn", "unreachable": "bad",
    "candidate": "bad",
}  # fmt: skip


def _table(state: ConsoleState, pane: Pane, width: int, heading: int, focused: bool) -> list[Line]:
    rows = pane.on_screen
    fitted, gap = fitted_columns(pane, width, heading)
    between = " " * gap
    lines: list[Line] = []
    for at in range(heading):
        line: Line = [(" ", "header")]
        for place in fitted:
            line += [(place.title(at) + between, "header")]
        lines.append(padded(line, width, "header"))
    marks = fitting.marks(fitted, rows)
    for number, (key, row) in enumerate(rows, pane.top):
        cells = _cells(fitted, row, marks.get(key, ""), _trend(state, key))
        if focused and number == pane.index:
            role = _UNDER_CURSOR.get(_whole_role(row, fitted), "cursor")
            lines.append([(text.left(">" + between.join(cells), width), role)])
        else:
            lines.append(_row(row, fitted, [cell + between for cell in cells]))
    if not rows:
        lines += _empty_table(state, pane, width)[: pane.visible]
    # The table keeps its place while rows come and go.
    return lines + [[]] * (heading + pane.visible - len(lines))


def _trend(state: ConsoleState, key: Key) -> Trend | None:
    """Return the last minutes of a row; None where the node has not sent them."""
    remembered = state.remembered
    samples = None if remembered is None else remembered.rows.get(key)
    if remembered is None or samples is None:
        return None
    return Trend(samples, remembered.number, format.BLOCKS if state.blocks else format.ASCII_BLOCKS)


def _cells(
    fitted: Sequence[fitting.Fitted], row: TableRow, mark: str, trend: Trend | None = None
) -> list[str]:
    """Return the row's cells; the mark is in the first text that identifies it, else in the first cell."""
    if not mark:
        return [place.cell(row, trend=trend) for place in fitted]
    naming = [place.column.identifies and place.column.is_text for place in fitted]
    at = naming.index(True) if True in naming else 0
    return [place.cell(row, mark if number == at else "", trend) for number, place in enumerate(fitted)]


#: A row with something wrong keeps its colour under the cursor: the cursor begins on the gravest row.
_UNDER_CURSOR: Final[Mapping[Role, Role]] = {"warn": "cursor_warn", "bad": "cursor_bad"}


def _whole_role(row: TableRow, fitted: Sequence[fitting.Fitted]) -> Role:
    """Return the role of a whole row, by the word for its state."""
    word = state_word(row)
    keys = {place.column.key for place in fitted}
    if isinstance(row, NodeRow) and "role" in keys and row.role:
        word = "waiting" if row.problem and row.role != "unreachable" else row.role
    # Where neither the word nor how many wait has room, its colour would say more than the text.
    says = {"waiting", "waiting_now"} if word == "waiting" else {"verdict"}
    return _STATE_ROLES.get(word, "") if keys & {"state", "role", *says} else ""


def _row(row: TableRow, fitted: Sequence[fitting.Fitted], cells: Sequence[str]) -> Line:
    word = state_word(row)
    whole = _whole_role(row, fitted)
    line: Line = [(" ", whole)]
    for place, cell in zip(fitted, cells, strict=True):
        role = whole
        if not whole and place.column.key == "state" and word == "checked out":
            role = "good"
        line.append((cell, role))
    return line


def _empty_table(state: ConsoleState, pane: Pane, width: int) -> list[Line]:
    """Return the lines that stand in a table without rows."""
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
    return wrapped(_EMPTY[pane.want.by], width)


_EMPTY: Final[Mapping[Table, str]] = {
    "program": "No program now.",
    "host": "No host reports yet.",
    "database": "No database is used yet.",
    "process": "No process is running now.",
    "pool": "No pool. The process has made none yet, or it has ended.",
    "connection": "No open connection.",
    "site": "No line of code has taken a connection that is known by its line.",
    "wait": "Nobody waits for a connection, and none has been held long.",
    "node": "The nodes of the cluster are not known in this snapshot.",
}

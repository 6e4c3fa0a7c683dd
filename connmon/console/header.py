"""The lines above and below the tables: who answers, totals, banners, breadcrumbs, footer. Pure.

Banners have what must not be missed, the gravest first: no node, no answer, no quorum; then that the
screen is frozen or shows a recording; then a note.
"""

from __future__ import annotations

from typing import Final

from connmon.console import columns, format, keys, text
from connmon.console.fitting import FALLING, RISING
from connmon.console.lines import VERDICT_ROLES, Field, Line, Span
from connmon.console.modes import PROMPTS
from connmon.console.panes import Pane
from connmon.console.row_words import VERDICTS
from connmon.console.state import ConsoleState
from connmon.protocol.document import FigureFields, JsonTotals
from connmon.protocol.queries import EVERYTHING
from connmon.protocol.text import short_age as age

#: Samples that the trends of the header show: five minutes.
TREND_SAMPLES: Final = 150
#: The least width for them, and the width of each at most.
TRENDS_LEAST_WIDTH: Final = 80
TREND_MOST_WIDTH: Final = 75


def title(state: ConsoleState, width: int) -> Line:
    head = state.head
    # Of a node that does not answer it is unknown.
    quorum = None if state.silence is not None or state.late or head is None else head.quorum
    fields = [
        Field("connmon", format.word(None if head is None else head.service), 3),
        Field("node", format.word(None if head is None else head.node), 0),
        Field("leader", format.word(None if head is None else head.leader), 2),
        Field("quorum", format.UNKNOWN if quorum is None else "yes" if quorum else "NO", 1),
        Field("snapshot", "-" if state.age is None else f"{age(state.age)} old", 4),
    ]
    if state.interval != 1.0 and state.reel is None:
        fields.append(Field("every", f"{state.interval:g}s", 5))
    while True:
        line = " " + "   ".join(f"{field.name} {field.value}" for field in fields)
        if text.width(line) <= width or len(fields) == 1:
            return [(text.left(line, width), "header")]
        fields.remove(max(fields, key=lambda field: field.rank))


def totals(state: ConsoleState) -> list[Field]:
    """Return the figures of the whole fleet."""
    totals = _NO_TOTALS if state.head is None else state.head.totals
    figures, known = totals.figures, state.head is not None
    waiting, left_out = figures.waiting, figures.left_out
    return [
        Field("hosts", format.count(totals.hosts if known else None), 8),
        Field("programs", format.count(totals.programs if known else None), 9),
        Field("processes", format.count(figures.processes), 5),
        Field("connections", format.count(figures.connections), 1),
        Field("checked out", format.count(figures.checked_out), 3),
        Field("capacity", format.count(figures.capacity), 4),
        Field("waiting", format.count(waiting), 0, "warn" if waiting else ""),
        Field("checkouts/s", format.rate(figures.checkouts_per_second), 6),
        *([Field("left out", format.count(left_out), 2, "warn")] if left_out else []),
        *(
            Field(word, str(totals.verdicts[word]), 2, VERDICT_ROLES[word])
            for word in VERDICTS
            if totals.verdicts.get(word)
        ),
    ]


_NO_TOTALS: Final = JsonTotals(hosts=0, programs=0, figures=FigureFields(), verdicts={})


def trends(state: ConsoleState, width: int) -> Line | None:
    """Return the line of the last minutes; None where they are unknown or have no room."""
    remembered = state.remembered
    samples = None if remembered is None else remembered.rows.get(EVERYTHING)
    if remembered is None or samples is None or width < TRENDS_LEAST_WIDTH:
        return None
    # Names, "max" with up to five characters, and the minutes stand between the blocks.
    room = min(TREND_MOST_WIDTH, (width - 54) // 2)
    blocks = format.BLOCKS if state.blocks else format.ASCII_BLOCKS
    block_samples = max(1, TREND_SAMPLES // room)
    line: Line = []
    for name, values in (("checkouts/s", samples.rates), ("connections", samples.counts)):
        means = format.means(values, remembered.number, room, block_samples)
        line += [(f" {name} ", ""), (format.drawn(means, blocks), "good")]
        line += [(f" max {text.left(format.peak(means), 5)} ", "")]
    minutes = round(room * block_samples * remembered.interval / 60)
    return [*line, (f"{minutes} min", "")]


def banners(state: ConsoleState) -> list[Span]:
    """Return the lines that must not be missed, the gravest first."""
    lines: list[Span] = []
    node = format.word(None if state.head is None else state.head.node)
    if state.silence is not None:
        reason = state.silence.reason
        if state.received is None:
            lines.append((f"DISCONNECTED: {reason}; trying again", "bad"))
        else:
            since = age(max(0.0, state.now - state.received))
            last = "no node answers, this is the last snapshot"
            lines.append((f"DISCONNECTED since {state.received_at} ({since}): {last}. {reason}", "bad"))
    elif state.late and state.received is not None:
        since = age(max(0.0, state.now - state.received))
        lines.append(
            (f"NO ANSWER from {node} since {state.received_at} ({since}): this is the last snapshot", "bad")
        )
    elif state.head is not None and not state.head.quorum:
        since = f", since {state.stands_since}" if state.stands_since else ""
        lines.append(
            (f"NO QUORUM on {node}: this snapshot has stood still for {age(state.age)}{since}", "bad")
        )
    if state.reel is not None:
        reel = state.reel
        how = f"x{reel.speed:g}" if reel.playing else "at the END" if reel.at_end else "STOPPED"
        lines.append(
            (
                f"REPLAY {state.received_at}   snapshot {reel.position + 1} of {reel.snapshots}   {how}   "
                "(Left Right step, [ ] a minute, ( ) speed, Z stop and go)",
                "paused",
            )
        )
    elif state.paused_at:
        lines.append((f"PAUSED at {state.paused_at}   the screen stands still, Z goes on   PAUSED", "paused"))
    if state.note:
        lines.append((state.note, "warn"))
    return lines


def trail(state: ConsoleState, width: int, visible: int) -> Line:
    """Return the breadcrumbs, what is filtered, and the order."""
    pane = state.page.pane.shown(visible)
    titles = [page.title for page in state.pages]
    about = _about(state, pane)
    path = " " + " > ".join(titles)
    extra = _narrowed(state, pane)
    room = width - text.width(about) - 1
    while text.width(path + extra) > width and len(titles) > 1:
        # The last title says where one is.
        del titles[0]
        path = " .. > " + " > ".join(titles)
    if text.width(path + extra) + 2 > room:
        return [(text.clip(path + extra, width), "strong")]
    line: Line = [(path, "strong"), (extra, "warn")]
    return [*line, (" " * (room - text.width(path + extra)) + about + " ", "")]


def local(state: ConsoleState) -> str | None:
    """Return what this host's system says of the process on the screen, if it runs here."""
    local = state.local
    return local.text if local is not None and state.page.pane.want.instance == local.instance else None


def order(pane: Pane) -> str:
    """Return the order in words."""
    by = columns.column(pane.want.by, pane.sort)
    if pane.sort == "verdict":
        names = ("gravest first", "gravest last")
    elif by.falls:
        names = ("largest first", "smallest first")
    else:
        names = ("A to Z", "Z to A")
    return names[pane.inverted]


def mark(pane: Pane) -> str:
    """Return the mark in the heading of the column that is sorted by."""
    falls = columns.column(pane.want.by, pane.sort).falls
    return FALLING if falls is not pane.inverted else RISING


def _about(state: ConsoleState, pane: Pane) -> str:
    about = f"by {columns.column(pane.want.by, pane.sort).name}, {order(pane)}"
    if pane.rows:
        about += f"   {pane.index + 1} of {len(pane.rows)}"
    return about


def _narrowed(state: ConsoleState, pane: Pane) -> str:
    parts = []
    if pane.want.by == "wait" and state.rows_left_out:
        parts.append(f"{state.rows_left_out} pools and holders left out")
    if pane.grouped:
        parts.append("grouped")
    if pane.order is not None:
        parts.append("ORDER FROZEN")
    if pane.filter:
        hidden = len(pane.source or ()) - len(pane.rows or ()) if not pane.grouped else None
        count = "" if hidden is None else f", {hidden} hidden"
        parts.append(f"{'without' if pane.inverse else 'only'} {text.sanitize(pane.filter)!r}{count}")
    if state.find:
        parts.append(f"find {text.sanitize(state.find)!r}")
    return "".join(f"  [{part}]" for part in parts)


def footer(state: ConsoleState, width: int) -> Line:
    if state.mode.is_prompt:
        typed = f" {PROMPTS[state.mode]}: {text.sanitize(state.input.text)}_"
        hint = "   (Enter, or Esc)"
        if text.width(typed) + len(hint) <= width:
            return [(typed, "strong"), (hint, "")]
        # The end is where one types.
        return [(text.clip(typed[::-1], width, cut="")[::-1], "strong")]
    hidden: set[keys.Action] = set()
    pane = state.page.pane
    if len(state.pages) == 1 and not (pane.filter or state.find):
        hidden.add("back")
    if len(state.page.panes) == 1:
        hidden.add("other_pane")
    if state.view in ("waits", "code"):
        hidden.add("waits" if state.view == "waits" else "code")
    if not pane.groupable:
        hidden.add("group")
    if state.reel is None:
        hidden.update(binding.action for binding in keys.BINDINGS if binding.replay)
    line: Line = []
    taken = 0
    for label, does in keys.footer(frozenset(hidden)):
        taken += len(label) + len(does) + 4
        if taken > width:
            break
        line += [(f" {label}", "header"), (f" {does}  ", "")]
    return line

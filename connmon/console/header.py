"""What stands above and below the tables: who answers, totals, banners, breadcrumbs, footer. Pure.

The banner has what must not be missed, the gravest first: no node, no answer, no quorum; then that the
picture is frozen or a recording; then a note.
"""

from __future__ import annotations

from connmon.console import columns, format, keys, text
from connmon.console.fitting import FALLING, RISING
from connmon.console.lines import VERDICT_ROLES, Field, Line, Span
from connmon.console.panes import Pane
from connmon.console.state import State
from connmon.protocol.queries import EVERYTHING
from connmon.protocol.text import short_age as age

#: Samples that the lines in the header show: five minutes of them.
TREND_SAMPLES = 150


def title(state: State, width: int) -> Line:
    head = state.head
    # Of a node that does not answer it is not known.
    quorum = None if state.silence is not None or state.late else head.get("quorum")
    fields = [
        Field("connmon", format.word(head.get("service")), 3),
        Field("node", format.word(head.get("node")), 0),
        Field("leader", format.word(head.get("leader")), 2),
        Field("quorum", format.UNKNOWN if quorum is None else "yes" if quorum else "NO", 1),
        Field("picture", "-" if state.age is None else f"{age(state.age)} old", 4),
    ]
    if state.interval != 1.0 and state.reel is None:
        fields.append(Field("every", f"{state.interval:g}s", 5))
    while True:
        line = " " + "   ".join(f"{field.name} {field.value}" for field in fields)
        if text.width(line) <= width or len(fields) == 1:
            return [(text.left(line, width), "header")]
        fields.remove(max(fields, key=lambda field: field.rank))


def totals(state: State) -> list[Field]:
    totals = state.head.get("totals") or {}
    waiting = totals.get("waiting")

    def number(name: str, key: str, rank: int) -> Field:
        return Field(name, format.count(totals.get(key)), rank)

    wrong = totals.get("verdicts") or {}
    left_out = totals.get("left_out")
    return [
        number("hosts", "hosts", 8),
        number("programs", "programs", 9),
        number("processes", "processes", 5),
        number("connections", "connections", 1),
        number("checked out", "checked_out", 3),
        number("capacity", "capacity", 4),
        Field("waiting", format.count(waiting), 0, "warn" if waiting else ""),
        Field("checkouts/s", format.rate(totals.get("checkouts_per_second")), 6),
        *([Field("left out", format.count(left_out), 2, "warn")] if left_out else []),
        *(
            Field(word, str(wrong[word]), 2, VERDICT_ROLES[word])
            for word in columns.VERDICTS
            if wrong.get(word)
        ),
    ]


def trends(state: State, width: int) -> Line | None:
    """Return the line of the last minutes; None where nothing is known of them."""
    remembered = state.remembered
    samples = None if remembered is None else remembered.rows.get(EVERYTHING)
    if remembered is None or samples is None or width < 80:
        return None
    # Names, "max" with up to five characters, and the minutes stand between the blocks.
    room = min(75, (width - 54) // 2)
    blocks = format.BLOCKS if state.blocks else format.ASCII_BLOCKS
    each = max(1, TREND_SAMPLES // room)
    line: Line = []
    for name, values in (("checkouts/s", samples.rates), ("connections", samples.counts)):
        means = format.means(values, remembered.number, room, each)
        line += [(f" {name} ", ""), (format.drawn(means, blocks), "good")]
        line += [(f" max {text.left(format.peak(means), 5)} ", "")]
    minutes = round(room * each * remembered.interval / 60)
    return [*line, (f"{minutes} min", "")]


def banners(state: State) -> list[Span]:
    """Return the lines that must not be missed, the gravest first."""
    found: list[Span] = []
    node = format.word(state.head.get("node"))
    if state.silence is not None:
        reason = state.silence.reason
        if state.received is None:
            found.append((f"DISCONNECTED: {reason}; trying again", "bad"))
        else:
            since = age(max(0.0, state.now - state.received))
            last = "no node answers, this is the last picture"
            found.append((f"DISCONNECTED since {state.received_at} ({since}): {last}. {reason}", "bad"))
    elif state.late and state.received is not None:
        since = age(max(0.0, state.now - state.received))
        found.append(
            (f"NO ANSWER from {node} since {state.received_at} ({since}): this is the last picture", "bad")
        )
    elif state.head.get("quorum") is False:
        since = f", since {state.stands_since}" if state.stands_since else ""
        found.append(
            (f"NO QUORUM on {node}: this picture has stood still for {age(state.age)}{since}", "bad")
        )
    if state.reel is not None:
        reel = state.reel
        how = f"x{reel.speed:g}" if reel.playing else "at the END" if reel.at_end else "STOPPED"
        found.append(
            (
                f"REPLAY {state.received_at}   picture {reel.position + 1} of {reel.frames}   {how}   "
                "(Left Right step, [ ] a minute, ( ) speed, Z stop and go)",
                "paused",
            )
        )
    elif state.paused_at:
        found.append(
            (f"PAUSED at {state.paused_at}   the picture stands still, Z goes on   PAUSED", "paused")
        )
    if state.note:
        found.append((state.note, "warn"))
    return found


def crumbs(state: State, width: int, visible: int) -> Line:
    """Where one is, what is filtered, in which order."""
    pane = state.page.pane.shown(visible)
    titles = [page.title for page in state.pages]
    about = _about(state, pane)
    trail = " " + " > ".join(titles)
    extra = _narrowed(state, pane)
    room = width - text.width(about) - 1
    while text.width(trail + extra) > width and len(titles) > 1:
        # Where one is, is the end of the trail.
        del titles[0]
        trail = " .. > " + " > ".join(titles)
    if text.width(trail + extra) + 2 > room:
        return [(text.clip(trail + extra, width), "strong")]
    line: Line = [(trail, "strong"), (extra, "warn")]
    return [*line, (" " * (room - text.width(trail + extra)) + about + " ", "")]


def order(pane: Pane) -> str:
    """Return the order in words."""
    by = columns.column(pane.want.by, pane.sort)
    if pane.sort == "verdict":
        names = ("gravest first", "gravest last")
    elif columns.falls(by):
        names = ("largest first", "smallest first")
    else:
        names = ("A to Z", "Z to A")
    return names[pane.inverted]


def mark(pane: Pane) -> str:
    """Return what stands in the heading of the column that is sorted by."""
    falls = columns.falls(columns.column(pane.want.by, pane.sort))
    return FALLING if falls is not pane.inverted else RISING


def _about(state: State, pane: Pane) -> str:
    about = f"by {columns.column(pane.want.by, pane.sort).name}, {order(pane)}"
    if pane.rows:
        about += f"   {pane.index + 1} of {len(pane.rows)}"
    return about


def _narrowed(state: State, pane: Pane) -> str:
    parts = []
    if pane.want.by == "wait" and state.head.get("rows_left_out"):
        parts.append(f"{state.head['rows_left_out']} pools and holders left out")
    if pane.grouped:
        parts.append("grouped")
    if pane.order is not None:
        parts.append("ORDER FROZEN")
    if pane.filter:
        hidden = len(pane.source or ()) - len(pane.rows or ()) if not pane.grouped else None
        count = "" if hidden is None else f", {hidden} hidden"
        parts.append(f"{'without' if pane.inverse else 'only'} {text.clean(pane.filter)!r}{count}")
    if state.find:
        parts.append(f"find {text.clean(state.find)!r}")
    return "".join(f"  [{part}]" for part in parts)


_PROMPTS = {
    "find": "find", "filter": "show only rows with", "filter_out": "hide rows with", "save": "save as",
}  # fmt: skip


def footer(state: State, width: int) -> Line:
    if state.typing is not None:
        typed = f" {_PROMPTS[state.typing.prompt]}: {text.clean(state.typing.text)}_"
        hint = "   (Enter, or Esc)"
        if text.width(typed) + len(hint) <= width:
            return [(typed, "strong"), (hint, "")]
        # What is being typed is its end.
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
    for shown, does in keys.footer(frozenset(hidden)):
        taken += len(shown) + len(does) + 4
        if taken > width:
            break
        line += [(f" {shown}", "header"), (f" {does}  ", "")]
    return line

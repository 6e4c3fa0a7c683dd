"""State, width and height -> styled lines. Pure.

Rules kept here:

- A line is a list of (text, role) spans. No line is wider than the width, and there are never more
  lines than the height, whatever the size and the data.
- Everything foreign goes through `text.clean` before it gets into a span.
- At most five roles have a colour (connected, waiting, lost, gone, header); "cursor" and "strong"
  are brightness. What a colour says, a word beside it says too.
- What does not fit is left out whole, the least important first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from connmon.console import columns, keys, text
from connmon.console.columns import Row
from connmon.console.state import Pane, State
from connmon.formats import short_age as age

Role: TypeAlias = Literal["", "connected", "waiting", "lost", "gone", "header", "cursor", "strong"]
Span: TypeAlias = tuple[str, Role]
Line: TypeAlias = list[Span]


def view(state: State, width: int, height: int) -> list[Line]:
    """Return the screen: at most `height` lines of at most `width` columns each."""
    if width < 1 or height < 1:
        return []
    lines = _help(state, width, height) if state.help else _page(state, width, height)
    return [_clipped(line, width) for line in lines[:height]]


def plain(lines: Sequence[Line]) -> str:
    """Return the lines as text, without roles."""
    return "\n".join("".join(part for part, _ in line).rstrip() for line in lines)


# --- Where things go ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How the height is divided."""

    totals: int
    banner: bool
    crumbs: bool
    heading: int
    """Lines of a table's heading: 1 or 2."""
    panes: tuple[int, ...]
    """Rows of each pane; 0: the pane is not shown."""
    footer: bool


def layout(state: State, width: int, height: int) -> Layout:
    """Return how `height` lines are divided; the table's rows are what is left."""
    totals = 0 if height < 7 else len(_flow(_totals(state), width, 1 if height < 12 else 2))
    banner = _banner(state) is not None and height >= 3
    crumbs, footer = height >= 6, height >= 9
    heading = 2 if height >= 16 else 1
    rows = height - 1 - totals - banner - crumbs - footer
    panes = state.page.panes
    if len(panes) == 1 or height < 14:
        shown = tuple(max(0, rows - heading) if at == state.page.focus else 0 for at in range(len(panes)))
        return Layout(totals, banner, crumbs, heading, shown, footer)
    upper, lower = panes
    rows -= 2 * heading
    # Pools are few as a rule: they get what they need up to a third, or what connections leave.
    need = max(1, len(upper.rows or ()))
    others = max(1, len(lower.rows or ()))
    share = min(need, max(rows // 3, rows - others, 1))
    return Layout(totals, banner, crumbs, heading, (share, rows - share), footer)


def _page(state: State, width: int, height: int) -> list[Line]:
    plan = layout(state, width, height)
    lines: list[Line] = [_title(state, width)]
    lines += _flow(_totals(state), width, plan.totals)
    banner = _banner(state)
    if plan.banner and banner is not None:
        lines.append([(text.left(" " + text.clean(banner[0]), width), banner[1])])
    if plan.crumbs:
        lines.append(_crumbs(state, width, plan.panes[state.page.focus]))
    for at, rows in enumerate(plan.panes):
        if not rows:
            continue
        pane = state.page.panes[at].shown(rows)
        lines += _table(state, pane, width, plan.heading, at == state.page.focus)
    if plan.footer:
        lines += [[]] * (height - 1 - len(lines))
        lines.append(_footer(state, width))
    return lines


# --- Header -------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A name and a value of the header."""

    name: str
    value: str
    rank: int
    """The highest goes first where there is no room."""
    role: Role = ""


def _title(state: State, width: int) -> Line:
    head = state.head
    # Of a node that does not answer it is not known.
    quorum = None if state.silence is not None or state.late else head.get("quorum")
    fields = [
        Field("connmon", columns.word(head.get("service")), 3),
        Field("node", columns.word(head.get("node")), 0),
        Field("leader", columns.word(head.get("leader")), 2),
        Field("quorum", columns.UNKNOWN if quorum is None else "yes" if quorum else "NO", 1),
        Field("picture", "-" if state.age is None else f"{age(state.age)} old", 4),
    ]
    while True:
        line = " " + "   ".join(f"{field.name} {field.value}" for field in fields)
        if text.width(line) <= width or len(fields) == 1:
            return [(text.left(line, width), "header")]
        fields.remove(max(fields, key=lambda field: field.rank))


def _totals(state: State) -> list[Field]:
    totals = state.head.get("totals") or {}
    waiting = totals.get("waiting")

    def number(name: str, key: str, rank: int) -> Field:
        return Field(name, columns.count(totals.get(key)), rank)

    return [
        number("hosts", "hosts", 6),
        number("programs", "programs", 7),
        number("processes", "processes", 4),
        number("connections", "connections", 1),
        number("checked out", "checked_out", 2),
        number("capacity", "capacity", 3),
        Field("waiting", columns.count(waiting), 0, "waiting" if waiting else ""),
        Field("checkouts/s", columns.rate(totals.get("checkouts_per_second")), 5),
    ]


def _flow(fields: Sequence[Field], width: int, most: int) -> list[Line]:
    """Return the fields in at most `most` lines, those of the highest rank left out where they do not fit."""
    chosen = list(fields)
    while chosen and most > 0:
        lines: list[Line] = [[]]
        taken = 0
        for field in chosen:
            needs = 3 + len(field.name) + 1 + len(field.value)
            if taken and taken + needs > width:
                lines.append([])
                taken = 0
            lead = "   " if taken else " "
            taken += needs if taken else needs - 2
            lines[-1] += [(f"{lead}{field.name} ", field.role), (field.value, field.role or "strong")]
        if len(lines) <= most or len(chosen) == 1:
            return lines[:most]
        chosen.remove(max(chosen, key=lambda field: field.rank))
    return []


def _banner(state: State) -> Span | None:
    """Return the one line that must not be missed, the gravest first."""
    node = columns.word(state.head.get("node"))
    if state.silence is not None:
        if state.received is None:
            return f"DISCONNECTED: {state.silence.reason}; trying again", "lost"
        since = age(max(0.0, state.now - state.received))
        last = "no node answers, this is the last picture"
        return f"DISCONNECTED since {state.received_at} ({since}): {last}. {state.silence.reason}", "lost"
    if state.late and state.received is not None:
        since = age(max(0.0, state.now - state.received))
        return f"NO ANSWER from {node} since {state.received_at} ({since}): this is the last picture", "lost"
    if state.head.get("quorum") is False:
        since = f", since {state.stands_since}" if state.stands_since else ""
        return f"NO QUORUM on {node}: this picture has stood still for {age(state.age)}{since}", "lost"
    return (state.note, "waiting") if state.note else None


# --- Breadcrumbs and footer ------------------------------------------------------------------------


def _crumbs(state: State, width: int, visible: int) -> Line:
    pane = state.page.pane.shown(visible)
    trail = " " + " > ".join(page.title for page in state.pages)
    by = columns.column(pane.want.by, pane.sort)
    order = ("A to Z", "Z to A") if by.is_text else ("largest first", "smallest first")
    about = f"by {by.name}, {order[pane.inverted]}"
    if pane.rows:
        about += f"   {pane.index + 1} of {len(pane.rows)}"
    room = width - text.width(about) - 1
    if text.width(trail) + 2 > room:
        # Where one is, is the end of the trail.
        titles = [page.title for page in state.pages]
        while text.width(trail) > width and len(titles) > 1:
            del titles[0]
            trail = " .. > " + " > ".join(titles)
        return [(text.clip(trail, width), "strong")]
    return [(text.left(trail, room), "strong"), (about + " ", "")]


def _footer(state: State, width: int) -> Line:
    hidden: set[keys.Action] = set()
    if len(state.pages) == 1:
        hidden.add("back")
    if len(state.page.panes) == 1:
        hidden.add("other_pane")
    else:
        hidden.add("open")
    line: Line = []
    taken = 0
    for shown, does in keys.footer(frozenset(hidden)):
        taken += len(shown) + len(does) + 4
        if taken > width:
            break
        line += [(f" {shown}", "header"), (f" {does}  ", "")]
    return line


# --- Tables -------------------------------------------------------------------------------------

_ROW_ROLES: Final[dict[Any, Role]] = {
    "lost": "lost",
    "gone": "gone",
    "waiting": "waiting",
    "detached": "waiting",
}


def _table(state: State, pane: Pane, width: int, heading: int, focused: bool) -> list[Line]:
    shown = (pane.rows or ())[pane.top : pane.top + pane.visible]
    fitted, gap = columns.fit(pane.want.by, [row for _, row in shown], width - 1, heading, pane.sort)
    between = " " * gap
    lines: list[Line] = []
    for at in range(heading):
        line: Line = [(" ", "header")]
        for place in fitted:
            line += [(place.title(at) + between, "header")]
        lines.append(_padded(line, width, "header"))
    for number, (_, row) in enumerate(shown, pane.top):
        if focused and number == pane.index:
            cells = between.join(place.cell(row) for place in fitted)
            lines.append([(text.left(">" + cells, width), "cursor")])
        else:
            lines.append(_row(row, fitted, between))
    if not shown:
        lines += _nothing(state, pane, width)[: pane.visible]
    # The pane keeps its place while rows come and go.
    return lines + [[]] * (heading + pane.visible - len(lines))


def _row(row: Row, fitted: Sequence[columns.Fitted], between: str) -> Line:
    word = columns.state_word(row)
    shown = {place.column.key for place in fitted}
    # Where the word itself had no room, its colour would say more than the text.
    whole = _ROW_ROLES.get(word, "") if "state" in shown or word in shown else ""
    line: Line = [(" ", whole)]
    for place in fitted:
        role = whole
        if not whole and place.column.key == "state" and word in ("connected", "checked out"):
            role = "connected"
        line.append((place.cell(row) + between, role))
    return line


def _nothing(state: State, pane: Pane, width: int) -> list[Line]:
    """Return what stands where rows would."""
    if pane.rows is None:
        return _wrapped(
            "Asking the node ..." if state.silence is None else "Not known: no node answers.", width
        )
    if pane.want.by == "program":
        return [
            *_wrapped(
                "No application reports yet: add connmon to the URL of an engine and let it connect.", width
            ),
            [],
            *_wrapped(f"mysql+pymysql_connmon://USER:PW@HOST/DB?{state.url_option}", width),
            *_wrapped("or, with the plain driver:", width),
            *_wrapped(f"mysql+pymysql://USER:PW@HOST/DB?plugin=connmon&{state.url_option}", width),
        ]
    nothing = {
        "process": "No process of this program is running now.",
        "pool": "No pool. The process has made none yet, or it has ended.",
        "connection": "No open connection.",
    }
    return _wrapped(nothing[pane.want.by], width)


def _wrapped(message: str, width: int) -> list[Line]:
    """Return a message in as many lines as it needs; a word longer than a line is cut into pieces."""
    room = max(1, width - 2)
    lines: list[str] = [""]
    for word in text.clean(message).split():
        if lines[-1] and text.width(lines[-1]) + 1 + text.width(word) > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while text.width(lines[-1]) > room:
            head = text.clip(lines[-1], room, cut="") or lines[-1][:1]
            lines[-1:] = [head, lines[-1][len(head) :]]
    return [[(" " + line, "")] for line in lines]


# --- Help ----------------------------------------------------------------------------------------

_WORDS: Final[tuple[tuple[str, Role, str], ...]] = (
    ("connected", "connected", "reports, and nobody waits for a connection"),
    ("waiting", "waiting", "reports, and someone waits for a connection now"),
    ("lost", "lost", "silent for longer than the lease; its present is not known"),
    ("gone", "gone", "all its processes have ended; maxima stay for an hour"),
)


def _help(state: State, width: int, height: int) -> list[Line]:
    lines: list[Line] = []
    for binding in keys.BINDINGS:
        lines.append([("  " + text.left(binding.shown, 10), "strong"), (binding.does, "")])
    lines.append([])
    for word, role, meaning in _WORDS:
        lines.append([("  " + text.left(word, 10), role), (meaning, "")])
    lines.append([("  " + text.left("(max)", 10), "strong"), ("the largest value since first seen", "")])
    lines.append([("  " + text.left("-", 10), "strong"), ("not known", "")])
    room = max(1, height - 1)
    top = max(0, min(state.help_top, len(lines) - room))
    title: Line = [(text.left(" connmon help: any key returns", width), "header")]
    return [title, *lines[top : top + room]]


# --- Lines --------------------------------------------------------------------------------------


def _padded(line: Line, width: int, role: Role) -> Line:
    missing = width - sum(text.width(part) for part, _ in line)
    return [*line, (" " * missing, role)] if missing > 0 else line


def _clipped(line: Line, width: int) -> Line:
    """Return the line in at most `width` columns, without empty spans."""
    kept: Line = []
    for part, role in line:
        if width <= 0:
            break
        part = text.clip(part, width, cut="")
        width -= text.width(part)
        if part:
            kept.append((part, role))
    return kept

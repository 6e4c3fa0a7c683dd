"""All details of one row, and what to do about it, in lines. Pure.

In a stack the frame of the call site has ">" in front: the frames above it are what it has called,
libraries as a rule, the frames below it are its callers. Where not all frames have room, those above it go
first, so that it is seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from connmon.console import format, text
from connmon.console.lines import VERDICT_ROLES, Field, Line, Role, flow, wrapped
from connmon.console.row_words import name, problems, reason, verdict
from connmon.console.rows import CallSiteRow, TableRow, WaitRow, fields
from connmon.protocol.document import JsonCallSite, JsonConnection
from connmon.protocol.text import HOLDER_WORDS
from connmon.protocol.text import short_duration as duration
from connmon.reader.cells import ESTIMATED, mean, percent

#: More lines than all fields of a row need.
MOST_LINES: Final = 10_000
#: Frames below the own frame that are shown with it, where there is room.
CALLER_FRAMES: Final = 2
#: Fields that are shown in another way, or that only the machine needs.
_APART: Final = frozenset({
    "verdict", "verdict_reason", "stack", "problems", "instance", "call_site", "holder", "holder_in",
    "holder_site", "blocker", "waiting_in_program", "summed_hosts", "estimated", "share", "mean_held",
    "database_share", "holds_per_second", "mean_hold_seconds", "mean_waiting_caused", "where_shares",
    "where_seconds_total",
})  # fmt: skip
_NAMES: Final[Mapping[str, str]] = {
    "rss_bytes": "memory", "server_max": "server's maximum", "started_seconds": "running",
    "hold_seconds_total": "held altogether", "database_seconds_total": "in the database altogether",
    "waited_seconds_total": "waited here altogether",
    "waiting_caused_seconds_total": "waiting caused altogether",
}  # fmt: skip


class Details(NamedTuple):
    """All lines, and what is where in them."""

    lines: list[Line]
    stack: int
    """The first frame of the stack; where there is none, the end."""
    own: int | None
    """The frame of the call site, or of the application's own work. None: not in the stack."""


def lines(row: TableRow, width: int, most: int) -> list[Line]:
    """Return the first `most` lines at most; of a longer stack, the frames around the own frame."""
    all_details = whole(row, width)
    frames = most - all_details.stack
    if all_details.own is None or all_details.own < most or frames < 1:
        return all_details.lines[:most]
    begin = min(all_details.own + 1 - max(1, frames - CALLER_FRAMES), len(all_details.lines) - frames)
    above = begin - all_details.stack
    heading: Line = [(text.clip(f" stack, without its {above} innermost frames:", width), "")]
    return [*all_details.lines[: all_details.stack - 1], heading, *all_details.lines[begin : begin + frames]]


def whole(row: TableRow, width: int) -> Details:
    """Return what is wrong, who holds the connection and where, its stack, then all known figures."""
    lines: list[Line] = []
    why = reason(row)
    if why:
        lines += wrapped(f"{name(row)}: {why}", width, VERDICT_ROLES.get(str(verdict(row)), "strong"))
    for problem in problems(row):
        lines += wrapped(problem, width, "strong")
    for label, value, role in _holder(row):
        lines += wrapped(f"{label}: {value}", width, role)
    if isinstance(row, CallSiteRow):
        lines += _time(row.site, width)
    stack, sites = _stack(row)
    own = _own_frame(stack, sites)
    if stack:
        recent = "a recent " if isinstance(row, CallSiteRow) else ""
        lines.append([(text.clip(f" {recent}stack, the innermost first:", width), "")])
    begin = len(lines)
    for number, frame in enumerate(stack):
        mark, role = (" > ", "strong") if number == own else ("   ", "")
        lines.append([(text.clip(mark + text.sanitize(frame), width), role)])
    known = [
        Field(_name(key), _value(key, value), 1)
        for key, value in fields(row)
        if key not in _APART and value not in (None, (), "", False)
    ]
    lines += flow(known, width, MOST_LINES)
    return Details(lines, begin if stack else len(lines), None if own is None else begin + own)


_FRAME: Final = re.compile(r"(.*):\d+(?: (.*))?")


def _time(site: JsonCallSite, width: int) -> list[Line]:
    """Return how much a call site holds, and where that time goes."""
    lines: list[Line] = []
    if site.mean_held is not None:
        holds = f"{mean(site.holds_per_second)} holds/s, {duration(site.mean_hold_seconds)} each"
        caused = site.mean_waiting_caused
        waiting = f"; {mean(caused)} wait because of them" if caused else ""
        lines += wrapped(
            f"last minutes: {percent(site.share)} of its program's connection time, {mean(site.mean_held)} "
            f"connections held on average ({holds}){waiting}",
            width,
        )
    lines += _places(site, width)
    if site.estimated:
        lines += wrapped(ESTIMATED, width)
    return lines


#: Terminal columns of the name of a place, and of its bar.
PLACE_WIDTH: Final = 24
BAR_WIDTH: Final = 20


def _places(site: JsonCallSite, width: int) -> list[Line]:
    """Return where its time goes: a bar for each place, the largest of the last minutes first."""
    recent, whole = site.where_shares, site.where_seconds_total
    whole_seconds = sum(whole.values())
    names = {label: text.shorten(text.sanitize(label), PLACE_WIDTH) for label in (*recent, *whole)}
    if not names:
        return []
    heading = "where its time goes"
    size = max(len(heading) - 2, *map(text.width, names.values()))
    parts = [f" {text.left(heading, size + 2)}  {text.left('last minutes', BAR_WIDTH + 7)}since first seen"]
    for label, place in names.items():
        share = recent.get(label, 0.0) if recent else None
        bar = text.left("|" * round(BAR_WIDTH * min(share or 0.0, 1.0)), BAR_WIDTH)
        before = percent(whole.get(label, 0.0) / whole_seconds if whole_seconds else None)
        parts.append(f"   {text.left(place, size)} {percent(share):>6} {bar} {before:>6}")
    return [[(text.clip(part, width), "")] for part in parts]


def _stack(row: TableRow) -> tuple[Sequence[str], tuple[str | None, ...]]:
    """Return the stack of a row, and the call sites to look for in it, in this order."""
    if isinstance(row, CallSiteRow):
        return row.site.stack, (row.site.call_site,)
    if isinstance(row, JsonConnection | WaitRow):
        return row.stack, (row.call_site, row.holder_site)
    return (), ()


def _own_frame(stack: Sequence[str], sites: Sequence[str | None]) -> int | None:
    """Return the frame of the call site, which may be at another line of its function by now.

    Where that function has returned: the frame of the application in which its holder is.
    """
    for site in sites:
        if site is None:
            continue
        if site in stack:
            return stack.index(site)
        function = _function(site)
        if function is not None:
            for number, frame in enumerate(stack):
                if _function(frame) == function:
                    return number
    return None


def _function(site: str) -> tuple[str, str] | None:
    """Return the file and the function of a call site; None where it names no function."""
    match = _FRAME.fullmatch(site)
    return None if match is None or not match[2] else (match[1], match[2])


def _holder(row: TableRow) -> list[tuple[str, str, Role]]:
    """Return the call site that took a connection, and where its holder is now."""
    if isinstance(row, CallSiteRow):
        return [("line of code", row.site.call_site, "warn")] if row.site.call_site else []
    if not isinstance(row, JsonConnection | WaitRow):
        return []
    lines: list[tuple[str, str, Role]] = []
    if row.call_site:
        lines.append(("taken in", row.call_site, "warn"))
    now = HOLDER_WORDS[row.holder_in].now if row.holder_in else ""
    if row.holder_site:
        now += f"{', ' if now else ''}at {row.holder_site}"
    if row.holder_in == "ended":
        ended = now if row.holder in (None, "", "(ended)") else f"{row.holder}, {now}"
        lines.append(("held by", f"nobody any more: {ended}", ""))
    elif row.holder:
        lines.append(("held by", f"{row.holder}{f', now {now}' if now else ''}", ""))
    elif now:
        lines.append(("its holder now", now, ""))
    return lines


def _name(key: str) -> str:
    return _NAMES.get(key) or key.removesuffix("_seconds").replace("_", " ")


def _value(key: str, value: object) -> str:
    if isinstance(value, tuple):
        return text.sanitize(", ".join(map(str, value)))
    if isinstance(value, int | float) and key.endswith(("_seconds", "_seconds_total")):
        return duration(value)
    if isinstance(value, float) and key.startswith("mean_"):
        return mean(value)
    if isinstance(value, float):
        return format.rate(value)
    if isinstance(value, int) and key == "rss_bytes":
        return format.size(value)
    return format.word(value)

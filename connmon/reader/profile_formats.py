"""Print a profile: table, folded stacks, speedscope's JSON. Pure: no I/O, no time.

- The table is for people; its printer is the one of all tables (`formats.table_lines`).
- Folded stacks are the format of Brendan Gregg's flamegraph.pl, which inferno and speedscope read as well:
  frames joined by ";", the outermost first, a space, and an integer: milliseconds.
- speedscope's format is a JSON document: https://www.speedscope.app/file-format-schema.json. It has a sampled
  profile for each program.
- The last two sum to exactly what was held. Time at which nobody looked is in the frame "unknown". The recent
  stack of a call site is in neither: one stack stands for no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from connmon.protocol.reports import HoldProfile
from connmon.protocol.text import printable, short_duration
from connmon.protocol.values import IN_DATABASE, largest_first
from connmon.reader.cells import mean, percent
from connmon.reader.formats import TableColumn, as_json_line, table_lines
from connmon.reader.profile import MeasuredProfile, SiteTime, database_share, total_of, unknown_ms
from connmon.version import __version__

UNKNOWN: Final = "unknown"
#: How many places a line of the table names: as many as there is room for. The others are counted; with 0,
#: only the largest is named, and "..." stands for the others.
_PLACES_NAMED: Final = (3, 2, 1, 0)


def printed_profile(profile: MeasuredProfile, form: str, width: int | None = None) -> str:
    """Return the profile as `form` says: table, folded or speedscope. `width` as in `formats.as_table`."""
    if form == "folded":
        return as_folded(profile)
    return as_json_line(as_speedscope(profile)) if form == "speedscope" else profile_table(profile, width)


# --- Table --------------------------------------------------------------------------------------


class ProfileTableRow(NamedTuple):
    """A call site in the table, or the total below them."""

    share: str
    mean_held: float
    database_share: float | None
    where_else: str
    holds_per_second: float
    mean_hold_seconds: float | None
    mean_waiting_caused: float
    call_site: str
    program: str
    host: str


_WHAT_ELSE: Final = "WHAT ELSE"
_COLUMNS: Final[tuple[TableColumn[ProfileTableRow], ...]] = (
    TableColumn("SHARE", lambda row: row.share),
    TableColumn("HELD", lambda row: row.mean_held, 1, mean),
    TableColumn("IN DB", lambda row: row.database_share, 1, percent),
    TableColumn(_WHAT_ELSE, lambda row: row.where_else, 1, is_text=True),
    TableColumn("HOLDS/S", lambda row: row.holds_per_second, 4, mean),
    TableColumn("MEAN HOLD", lambda row: row.mean_hold_seconds, 4, short_duration),
    TableColumn("WAITING CAUSED", lambda row: row.mean_waiting_caused, 3, mean),
    TableColumn("CALL SITE", lambda row: row.call_site, is_text=True, is_path=True),
    TableColumn("PROGRAM", lambda row: row.program, is_text=True),
    TableColumn("HOST", lambda row: row.host, 2, is_text=True),
)


def profile_table(profile: MeasuredProfile, width: int | None = None) -> str:
    """Return a table for people: what was measured, a line for each call site, and the total."""
    total = total_of(profile.sites)
    lines = [_head(profile, total)]
    if profile.sites:
        lines += ["", *_fitted_lines(profile, total, width)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _fitted_lines(profile: MeasuredProfile, total: HoldProfile, width: int | None) -> list[str]:
    """Return the lines of the table. Fewer places are named before the column of places is left out."""
    lines: list[str] = []
    for places_named in _PLACES_NAMED:
        rows = [_table_row(site, profile.mean_held, places_named) for site in profile.sites]
        lines = table_lines(_COLUMNS, [*rows, _total_row(profile, total, places_named)], width)
        if _WHAT_ELSE in lines[0]:
            break
    return lines


def nothing_held(profile: MeasuredProfile) -> str:
    """Return the line for a profile without call sites."""
    if not profile.seconds:
        return f"{profile.node}: nothing was held in the last minutes"
    return f"{profile.node}: nothing was held in {profile.seconds:.1f} s"


def _head(profile: MeasuredProfile, total: HoldProfile) -> str:
    if not profile.sites:
        return printable(nothing_held(profile))
    share = database_share(total)
    where = "how much in the database is unknown" if share is None else f"{percent(share)} in the database"
    held = f"{mean(profile.mean_held)} connections held on average"
    return f"{profile.seconds:.1f} s measured on {printable(profile.node)}, {held}, {where}"


def _table_row(site: SiteTime, mean_held: float, places_named: int) -> ProfileTableRow:
    profile = site.profile
    share = site.mean_held / mean_held if mean_held else 0.0
    return ProfileTableRow(
        share=f"{'~' if site.estimated else ''}{percent(share)}",
        mean_held=site.mean_held,
        database_share=database_share(profile),
        where_else=_where_else(profile, places_named),
        holds_per_second=profile.holds / site.seconds,
        mean_hold_seconds=_mean_hold_seconds(profile),
        mean_waiting_caused=profile.caused_ms / 1000.0 / site.seconds,
        call_site=site.call_site,
        program=site.program,
        host=site.host,
    )


def _total_row(profile: MeasuredProfile, total: HoldProfile, places_named: int) -> ProfileTableRow:
    count = len(profile.sites)
    return ProfileTableRow(
        share="100 %" if total.held_ms else "0 %",
        mean_held=profile.mean_held,
        database_share=database_share(total),
        where_else=_where_else(total, places_named),
        holds_per_second=sum(site.profile.holds / site.seconds for site in profile.sites),
        mean_hold_seconds=_mean_hold_seconds(total),
        mean_waiting_caused=sum(site.profile.caused_ms / 1000.0 / site.seconds for site in profile.sites),
        call_site=f"total of {count} call site{'' if count == 1 else 's'}",
        program="",
        host="",
    )


def _mean_hold_seconds(profile: HoldProfile) -> float | None:
    return profile.held_ms / 1000.0 / profile.holds if profile.holds else None


def _where_else(profile: HoldProfile, places_named: int) -> str:
    """Return the places outside the database, the most time first, and how much is not known.

    The percentages of places are of the time looked at, as that of the database. What is less than half a
    percent is left out.
    """
    looked_ms = sum(profile.where.values())
    unknown = unknown_ms(profile)
    if not looked_ms:
        return UNKNOWN if unknown else ""
    places = [entry for entry in largest_first(profile.where) if entry[0] != IN_DATABASE and entry[1]]
    named = [(label, ms) for label, ms in places[: places_named or 1] if round(100.0 * ms / looked_ms)]
    parts = [f"{printable(label)} {percent(ms / looked_ms)}" for label, ms in named]
    rest = places[len(named) :]
    if round(100.0 * sum(ms for _, ms in rest) / looked_ms):
        parts.append(f"{len(rest)} more {percent(sum(ms for _, ms in rest) / looked_ms)}")
    if unknown and (share := percent(unknown / profile.held_ms)) != "<1 %":
        parts.append(f"{UNKNOWN} {share}")
    if not places_named and len(parts) > 1:
        parts[1:] = ["..."]
    return ", ".join(parts)


# --- Stacks -------------------------------------------------------------------------------------


def _places(profile: HoldProfile) -> Iterator[tuple[str, int]]:
    """Yield each place and its milliseconds, the most first; together all that was held."""
    yield from largest_first(profile.where)
    yield UNKNOWN, unknown_ms(profile)


def as_folded(profile: MeasuredProfile) -> str:
    """Return a line for each call site and place: frames joined by ";", a space, milliseconds held.

    The frames are host (only where there are several hosts), program, call site and place.
    """
    stacks: dict[str, int] = {}
    for site in profile.sites:
        roots = [site.host] if profile.several_hosts else []
        for place, ms in _places(site.profile):
            if ms:
                stack = ";".join(map(folded_frame, (*roots, site.program, site.call_site, place)))
                stacks[stack] = stacks.get(stack, 0) + ms
    return "".join(f"{stack} {ms}\n" for stack, ms in stacks.items())


#: A number at the end of a stack would be taken for its value.
_NUMBER_AT_END: Final = re.compile(r"\s+(?=[\d.]+$)")


def folded_frame(name: str) -> str:
    """Return a name as a frame of a folded stack: printable, without ";", and not ending in a number."""
    frame = printable(name).replace(";", ":").strip()
    return _NUMBER_AT_END.sub("_", frame) or "?"


_CALL_SITE: Final = re.compile(r"(?P<file>.+?):(?P<line>[0-9]{1,9})(?: (?P<function>.*))?")


class _FrameTable:
    """The shared frames of a speedscope document, each once."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, bool], int] = {}

    def number(self, name: str, is_call_site: bool = False) -> int:
        """Return the number of a frame. A call site has file and line, if it names them."""
        number = self._numbers.setdefault((name, is_call_site), len(self.frames))
        if number == len(self.frames):
            frame: dict[str, Any] = {"name": name}
            if is_call_site and (match := _CALL_SITE.fullmatch(name)):
                frame |= {"file": match["file"], "line": int(match["line"])}
            self.frames.append(frame)
        return number


def as_speedscope(profile: MeasuredProfile) -> dict[str, Any]:
    """Return the document of https://www.speedscope.app: a sampled profile for each program, in milliseconds.

    The frames of a sample are host (only where there are several hosts), call site and place.
    """
    table = _FrameTable()
    programs: dict[str, list[SiteTime]] = {}
    for site in profile.sites:
        programs.setdefault(site.program, []).append(site)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": f"connmon profile: {profile.seconds:.1f} s on {profile.node}",
        "exporter": f"connmon {__version__}",
        "activeProfileIndex": 0,
        "profiles": [
            _sampled(program, sites, profile.several_hosts, table) for program, sites in programs.items()
        ],
        "shared": {"frames": table.frames},
    }


def _sampled(
    program: str, sites: Sequence[SiteTime], several_hosts: bool, table: _FrameTable
) -> dict[str, Any]:
    hosts = list(dict.fromkeys(site.host for site in sites))
    samples: list[list[int]] = []
    weights: list[int] = []
    # Side by side, so that equal frames are one in its "Time Order" as well.
    for site in sorted(sites, key=lambda site: hosts.index(site.host)):
        roots = [table.number(site.host)] if several_hosts else []
        for place, ms in _places(site.profile):
            if ms:
                samples.append([*roots, table.number(site.call_site, True), table.number(place)])
                weights.append(ms)
    return {
        "type": "sampled",
        "name": program,
        "unit": "milliseconds",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }

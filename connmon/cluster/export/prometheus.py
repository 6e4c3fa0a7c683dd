"""The fleet in Prometheus's text format. Pure: figures in, text out.

- The numbers are those of `connmon snapshot` by program and by database, by the same names; what
  is not known is left out. Labels are host and program, or what names a database; never a pid.
- A counter is a program's total since it was first seen, ended processes included, so that it
  does not go back when one ends.
- A verdict has a sample for as long as it stands, and no other: `connmon_verdict` is 1 or is not there.
- Names come from whoever reports. A label that its rows share with another row's would make
  Prometheus refuse the whole page: of those only the first is shown.
- Written here and not by prometheus_client, which takes 0.8 s for the counters and gauges of 5,000
  programs, this 0.1 s.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple, get_args

from msgspec import structs

from connmon.protocol.histogram import BOUNDS
from connmon.protocol.rows import Figures, RowKey
from connmon.protocol.snapshot import figure_fields
from connmon.protocol.values import Times, Totals, VerdictWord

#: Rows whose histograms are written at once.
AT_ONCE: Final = 250


class _Family(NamedTuple):
    name: str
    """Without its prefix."""
    kind: str
    help: str
    samples: tuple[tuple[str, str], ...]
    """The keys of the values, each with the label that tells it from the others of a row ("": none)."""


def _one(name: str, kind: str, help: str, key: str | None = None) -> _Family:
    return _Family(name, kind, help, ((key or name, ""),))


_FAMILIES: Final = (
    _Family(
        "processes", "gauge", "Processes, by whether they report or were silent for longer than the lease.",
        (("processes", 'state="connected"'), ("lost_processes", 'state="lost"')),
    ),
    _Family(
        "connections", "gauge", "Open connections to the database.",
        (("idle", 'state="idle"'), ("checked_out", 'state="checked_out"'), ("detached", 'state="detached"')),
    ),
    _one("pools", "gauge", "Connection pools."),
    _one("capacity", "gauge", "Connections that all pools may open; not there where one has no limit."),
    _one("overflow", "gauge", "Open connections beyond the pools' size."),
    _one("waiting", "gauge", "Threads and tasks that wait for a connection."),
    _one("max_processes", "gauge", "Most processes since first seen."),
    _one("max_connections", "gauge", "Most open connections since first seen."),
    _one("max_checked_out", "gauge", "Most connections checked out since first seen."),
    _one("max_waiting", "gauge", "Most that waited for a connection since first seen."),
    _one("longest_wait_seconds", "gauge", "Longest wait for a connection of late."),
    _one(
        "longest_held_seconds", "gauge",
        "How long the connection held longest had been held when that was reported.",
    ),
    _one("last_report_seconds", "gauge", "Time since the latest report."),
    _one("connects_total", "counter", "Connections opened."),
    _one("closes_total", "counter", "Connections closed."),
    _one("checkouts_total", "counter", "Connections taken from a pool."),
    _one("checkins_total", "counter", "Checkouts that have ended."),
    _one("invalidations_total", "counter", "Connections invalidated."),
    _one("timeouts_total", "counter", "Checkouts that gave up waiting."),
    _one("connect_errors_total", "counter", "Connections that could not be opened."),
)  # fmt: skip


VERDICT: Final = _Family(
    "verdict", "gauge", "1 for each thing that is wrong now; not there where nothing is.", ()
)
VERDICTS: Final = _Family("verdicts", "gauge", "Programs, by the gravest thing that is wrong with them.", ())

LEFT_OUT_HELP: Final = "Processes, pools and connections that a limit leaves out."
FORGOTTEN_HELP: Final = "Ended processes and groups without a process forgotten early because of a limit."
#: The prefix of the names, and the labels for what a row's key is made of, by kind of row.
_LABELS: Final[Mapping[object, tuple[str, tuple[str, ...]]]] = {
    "program": ("connmon", ("host", "program")),
    "database": ("connmon_database", ("dialect", "database_host", "database_port", "database")),
}
#: The kinds of rows that there are metrics of.
KINDS: Final = tuple(_LABELS)


def label(text: object) -> str:
    """Return a label's value, quoted; None as ""."""
    value = "" if text is None else str(text)
    if not value.isprintable():
        # The format has escapes for line ends only, and readers end at a NUL.
        value = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))


class _Taken(NamedTuple):
    """What was taken in of one group."""

    labels: str
    cells: dict[str, Any]
    times: Times
    totals: Totals
    verdicts: tuple[VerdictWord, ...]


class Fleet:
    """The groups of one scrape, taken in one by one, and then the page of them, family by family."""

    def __init__(self) -> None:
        self._taken: dict[str, dict[str, _Taken]] = {prefix: {} for prefix, _ in _LABELS.values()}
        """By prefix of the names, and by labels."""

    def take(self, key: RowKey, figures: Figures, times: Times, now: float) -> None:
        """Take in a program or a database (by the key of its row), and what took how long in it.

        `now` is by the replica's clock; quantiles among the figures are not looked at.
        """
        kind, *names = key
        prefix, told = _LABELS[kind]
        labels = ",".join([f"{name}={label(value)}" for name, value in zip(told, names, strict=True)])
        if labels in self._taken[prefix]:
            return
        cells = structs.asdict(figure_fields(figures, now, quantiles=False))
        cells["lost_processes"] = figures.lost_processes
        self._taken[prefix][labels] = _Taken(
            labels,
            cells,
            times,
            figures.totals,
            tuple(dict.fromkeys(verdict.word for verdict in figures.verdicts)),
        )

    def pages(self) -> Iterator[str]:
        """Yield the text in pieces, each made in some milliseconds."""
        for prefix, taken in self._taken.items():
            rows = list(taken.values())
            for family in _FAMILIES:
                yield from _text(f"{prefix}_{family.name}", family, rows)
            for timed in _TIMED:
                yield from _histogram(f"{prefix}_{timed.name}", timed, rows)
            yield from _verdicts(f"{prefix}_{VERDICT.name}", rows)
        yield _counts(self._taken[_LABELS["program"][0]].values())


def _head(name: str, help: str, kind: str) -> str:
    return f"# HELP {name} {help}\n# TYPE {name} {kind}\n"


def _slices(rows: Sequence[_Taken], size: int) -> Iterator[Sequence[_Taken]]:
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


def _text(name: str, family: _Family, rows: Sequence[_Taken]) -> Iterator[str]:
    yield _head(name, family.help, family.kind)
    for key, own in family.samples:
        begin, end = f"{name}{{", f",{own}}} " if own else "} "
        for some in _slices(rows, 4 * AT_ONCE):
            yield "".join(
                [f"{begin}{row.labels}{end}{row.cells[key]}\n" for row in some if row.cells[key] is not None]
            )


def _verdicts(name: str, rows: Sequence[_Taken]) -> Iterator[str]:
    yield _head(name, VERDICT.help, VERDICT.kind)
    for some in _slices(rows, 4 * AT_ONCE):
        yield "".join(
            [f"{name}{{{row.labels},verdict={label(word)}}} 1\n" for row in some for word in row.verdicts]
        )


def _counts(rows: Iterable[_Taken]) -> str:
    """Return how many programs have each verdict as their gravest; 0 where none has."""
    counts = Counter(row.verdicts[0] for row in rows if row.verdicts)
    name = f"connmon_{VERDICTS.name}"
    words: tuple[VerdictWord, ...] = get_args(VerdictWord)
    return _head(name, VERDICTS.help, VERDICTS.kind) + "".join(
        [f"{name}{{verdict={label(word)}}} {counts[word]}\n" for word in words]
    )


def limits_text(left_out: Mapping[str, int], forgotten: Mapping[str, int]) -> str:
    """Return how much each limit leaves out, and has had forgotten; both by the name of the limit."""
    text = ""
    for name, help, kind, counts in (
        ("connmon_left_out", LEFT_OUT_HELP, "gauge", left_out),
        ("connmon_forgotten_total", FORGOTTEN_HELP, "counter", forgotten),
    ):
        text += _head(name, help, kind)
        text += "".join([f"{name}{{limit={label(limit)}}} {count}\n" for limit, count in counts.items()])
    return text


class _Timed(NamedTuple):
    """A histogram: of which of the `Times` and `Totals`, and which of the buckets' bounds are told."""

    name: str
    help: str
    field: str
    milliseconds: str
    bounds: tuple[float, ...]


def _bounds(low: float, high: float) -> tuple[float, ...]:
    """Return two bounds a decade of those that are counted by: fifteen would be too much to scrape."""
    steps = [bound for bound in BOUNDS if f"{bound:e}"[:3] in ("1.0", "2.5")]
    return tuple(bound for bound in steps if low <= bound <= high)


_TIMED: Final = (
    _Timed(
        "wait_seconds", "Waits for a connection that have ended.", "waits", "wait_ms", _bounds(1e-3, 100.0)
    ),
    _Timed("hold_seconds", "From checkout to checkin.", "holds", "hold_ms", _bounds(1e-3, 100.0)),
    _Timed("connect_seconds", "Opening a connection.", "connects", "connect_ms", _bounds(1e-3, 10.0)),
)


def _histogram(name: str, timed: _Timed, rows: Sequence[_Taken]) -> Iterator[str]:
    """Yield a histogram's text: the one place where a group's becomes Prometheus's.

    Where nothing was counted yet there is none.
    """
    yield _head(name, timed.help, "histogram")
    ends = [f',le="{bound}"}} ' for bound in timed.bounds]
    # Which of these buckets takes in each of those that are counted by; the last has what took longer.
    coarse = [bisect_left(timed.bounds, bound) for bound in BOUNDS] + [len(timed.bounds)]
    for some in _slices(rows, AT_ONCE):
        lines: list[str] = []
        for labels, _, times, totals, _ in some:
            counts = getattr(times, timed.field)
            if not counts:
                continue
            here = [0] * (len(ends) + 1)
            for number, count in counts.items():
                here[coarse[number]] += count
            *seen, count = accumulate(here)
            begin = f"{name}_bucket{{{labels}"
            lines += [f"{begin}{end}{below}\n" for end, below in zip(ends, seen, strict=True)]
            seconds = getattr(totals, timed.milliseconds) / 1000
            lines.append(f'{begin},le="+Inf"}} {count}\n')
            lines.append(f"{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}\n")
        yield "".join(lines)

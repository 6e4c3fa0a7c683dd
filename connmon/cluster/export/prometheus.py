"""The fleet in Prometheus's text format. Pure: figures in, text out.

- The numbers are those of `connmon snapshot` by program and by database, by the same names; an unknown value
  has no sample. Labels are host and program, or the parts of a database's name; never a pid.
- A counter is a program's total since it was first seen, including ended processes, so that it does not go
  back when one ends.
- A verdict has a sample for as long as it stands, and no other: `connmon_verdict` is 1 or absent.
- Names come from any client that reports. Two rows with the same labels would make Prometheus refuse the
  whole page, so only the first is shown.
- The text is written here, because prometheus_client takes 0.8 s for the counters and gauges of 5,000
  programs, this module 0.1 s; and it writes in pieces, between which the node answers its clients.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, Literal, NamedTuple, TypeVar, get_args

from connmon.protocol.document import FigureFields
from connmon.protocol.histogram import BOUNDS
from connmon.protocol.rows import Figures, RowKey
from connmon.protocol.typed_rows import figure_fields
from connmon.protocol.values import Buckets, Times, Totals, VerdictWord

#: Rows whose histograms are written in one piece, and whose gauges and counters.
HISTOGRAM_ROWS: Final = 250
FIGURE_ROWS: Final = 1000

_T = TypeVar("_T")


class _Row(NamedTuple):
    """A program or a database of one scrape."""

    labels: str
    figures: FigureFields
    lost_processes: int
    times: Times
    totals: Totals
    verdicts: tuple[VerdictWord, ...]


class _Sample(NamedTuple):
    """One of the values that a row has in a family."""

    value: Callable[[_Row], float | None]
    label: str = ""
    """Distinguishes it from the row's other values."""


class _Family(NamedTuple):
    name: str
    """Without its prefix."""
    kind: Literal["gauge", "counter"]
    help: str
    samples: tuple[_Sample, ...] = ()


def _gauge(name: str, figure: Callable[[FigureFields], float | None], help: str) -> _Family:
    return _Family(name, "gauge", help, (_Sample(lambda row: figure(row.figures)),))


def _counter(name: str, figure: Callable[[FigureFields], float | None], help: str) -> _Family:
    return _Family(name, "counter", help, (_Sample(lambda row: figure(row.figures)),))


_FAMILIES: Final = (
    _Family(
        "processes",
        "gauge",
        "Processes, by whether they report or were silent for longer than the lease.",
        (
            _Sample(lambda row: row.figures.processes, 'state="connected"'),
            _Sample(lambda row: row.lost_processes, 'state="lost"'),
        ),
    ),
    _Family(
        "connections",
        "gauge",
        "Open connections to the database.",
        (
            _Sample(lambda row: row.figures.idle, 'state="idle"'),
            _Sample(lambda row: row.figures.checked_out, 'state="checked_out"'),
            _Sample(lambda row: row.figures.detached, 'state="detached"'),
        ),
    ),
    _gauge("pools", lambda f: f.pools, "Connection pools."),
    _gauge(
        "capacity", lambda f: f.capacity,
        "Connections that all pools may open; not there where one has no limit.",
    ),
    _gauge("overflow", lambda f: f.overflow, "Open connections beyond the pools' size."),
    _gauge("waiting", lambda f: f.waiting, "Threads and tasks that wait for a connection."),
    _gauge("max_processes", lambda f: f.max_processes, "Most processes since first seen."),
    _gauge("max_connections", lambda f: f.max_connections, "Most open connections since first seen."),
    _gauge("max_checked_out", lambda f: f.max_checked_out, "Most connections checked out since first seen."),
    _gauge("max_waiting", lambda f: f.max_waiting, "Most that waited for a connection since first seen."),
    _gauge(
        "longest_wait_seconds", lambda f: f.longest_wait_seconds,
        "Longest wait for a connection of late.",
    ),
    _gauge(
        "longest_held_seconds", lambda f: f.longest_held_seconds,
        "How long the connection held longest had been held when that was reported.",
    ),
    _gauge("last_report_seconds", lambda f: f.last_report_seconds, "Time since the latest report."),
    _counter("connects_total", lambda f: f.connects_total, "Connections opened."),
    _counter("closes_total", lambda f: f.closes_total, "Connections closed."),
    _counter("checkouts_total", lambda f: f.checkouts_total, "Connections taken from a pool."),
    _counter("checkins_total", lambda f: f.checkins_total, "Checkouts that have ended."),
    _counter("invalidations_total", lambda f: f.invalidations_total, "Connections invalidated."),
    _counter("timeouts_total", lambda f: f.timeouts_total, "Checkouts that gave up waiting."),
    _counter(
        "connect_errors_total", lambda f: f.connect_errors_total,
        "Connections that could not be opened.",
    ),
)  # fmt: skip

VERDICT: Final = _Family(
    "verdict", "gauge", "1 for each thing that is wrong now; not there where nothing is."
)
VERDICTS: Final = _Family("verdicts", "gauge", "Programs, by the gravest thing that is wrong with them.")

LEFT_OUT_HELP: Final = "Processes, pools and connections that a limit leaves out."
FORGOTTEN_HELP: Final = "Ended processes and groups without a process forgotten early because of a limit."
#: The prefix of the names, and the labels for the parts of a row's key, by grouping.
_LABELS: Final[Mapping[object, tuple[str, tuple[str, ...]]]] = {
    "program": ("connmon", ("host", "program")),
    "database": ("connmon_database", ("dialect", "database_host", "database_port", "database")),
}
#: The groupings whose rows have metrics.
METRIC_GROUPINGS: Final = tuple(_LABELS)


def printable(text: str) -> str:
    """Return the text with an escape for each character that does not print."""
    if text.isprintable():
        return text
    # The format has escapes for line ends only, and readers end at a NUL.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def label(text: object) -> str:
    """Return the value of a label, quoted; None as ""."""
    value = "" if text is None else printable(str(text))
    return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))


class Fleet:
    """The programs and databases of one scrape: taken in one by one, then written family by family."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, _Row]] = {prefix: {} for prefix, _ in _LABELS.values()}
        """By the prefix of the names, and by labels."""

    def take(self, key: RowKey, figures: Figures, times: Times, now: float) -> None:
        """Take in a program or a database by the key of its row, and its histograms.

        `now` is by the replica's clock. The quantiles among the figures are not used.
        """
        grouping, *names = key
        prefix, label_names = _LABELS[grouping]
        labels = ",".join(
            [f"{label_name}={label(name)}" for label_name, name in zip(label_names, names, strict=True)]
        )
        rows = self._rows[prefix]
        if labels not in rows:
            rows[labels] = _Row(
                labels=labels,
                figures=figure_fields(figures, now, quantiles=False),
                lost_processes=figures.lost_processes,
                times=times,
                totals=figures.totals,
                verdicts=tuple(dict.fromkeys(verdict.word for verdict in figures.verdicts)),
            )

    def pages(self) -> Iterator[str]:
        """Yield the text in pieces, each made in some milliseconds."""
        for prefix, by_labels in self._rows.items():
            rows = list(by_labels.values())
            for family in _FAMILIES:
                yield from _figures(f"{prefix}_{family.name}", family, rows)
            for timed in _TIMED:
                yield from _histograms(f"{prefix}_{timed.name}", timed, rows)
            yield from _verdicts(f"{prefix}_{VERDICT.name}", rows)
        yield _counts(self._rows[_LABELS["program"][0]].values())


def head(name: str, help: str, kind: str) -> str:
    """Return the lines that come before the samples of a metric."""
    return f"# HELP {name} {help}\n# TYPE {name} {kind}\n"


def slices(rows: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Yield the rows, so many at a time."""
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


def _figures(name: str, family: _Family, rows: Sequence[_Row]) -> Iterator[str]:
    yield head(name, family.help, family.kind)
    for value_of, own_label in family.samples:
        begin, end = f"{name}{{", f",{own_label}}} " if own_label else "} "
        for some in slices(rows, FIGURE_ROWS):
            values = [(row.labels, value_of(row)) for row in some]
            yield "".join([f"{begin}{labels}{end}{value}\n" for labels, value in values if value is not None])


def _verdicts(name: str, rows: Sequence[_Row]) -> Iterator[str]:
    yield head(name, VERDICT.help, VERDICT.kind)
    for some in slices(rows, FIGURE_ROWS):
        yield "".join(
            [f"{name}{{{row.labels},verdict={label(word)}}} 1\n" for row in some for word in row.verdicts]
        )


def _counts(rows: Iterable[_Row]) -> str:
    """Return how many programs have each verdict as their gravest, including 0."""
    counts = Counter(row.verdicts[0] for row in rows if row.verdicts)
    name = f"connmon_{VERDICTS.name}"
    words: tuple[VerdictWord, ...] = get_args(VerdictWord)
    return head(name, VERDICTS.help, VERDICTS.kind) + "".join(
        [f"{name}{{verdict={label(word)}}} {counts[word]}\n" for word in words]
    )


def limits_text(left_out: Mapping[str, int], forgotten: Mapping[str, int]) -> str:
    """Return how much each limit leaves out, and how much was forgotten because of it, by limit."""
    text = ""
    for name, help, kind, counts in (
        ("connmon_left_out", LEFT_OUT_HELP, "gauge", left_out),
        ("connmon_forgotten_total", FORGOTTEN_HELP, "counter", forgotten),
    ):
        text += head(name, help, kind)
        text += "".join([f"{name}{{limit={label(limit)}}} {count}\n" for limit, count in counts.items()])
    return text


class _Timed(NamedTuple):
    """A histogram."""

    name: str
    help: str
    buckets: Callable[[Times], Buckets]
    milliseconds: Callable[[Totals], int]
    """Of all that was counted."""
    bounds: tuple[float, ...]
    """The upper bounds of its buckets, in seconds."""


def _bounds(low: float, high: float) -> tuple[float, ...]:
    """Return two bounds a decade: all fifteen that reports count by would be too much to scrape."""
    steps = [bound for bound in BOUNDS if f"{bound:e}"[:3] in ("1.0", "2.5")]
    return tuple(bound for bound in steps if low <= bound <= high)


_TIMED: Final = (
    _Timed(
        name="wait_seconds",
        help="Waits for a connection that have ended.",
        buckets=lambda times: times.waits,
        milliseconds=lambda totals: totals.wait_ms,
        bounds=_bounds(1e-3, 100.0),
    ),
    _Timed(
        name="hold_seconds",
        help="From checkout to checkin.",
        buckets=lambda times: times.holds,
        milliseconds=lambda totals: totals.hold_ms,
        bounds=_bounds(1e-3, 100.0),
    ),
    _Timed(
        name="connect_seconds",
        help="Opening a connection.",
        buckets=lambda times: times.connects,
        milliseconds=lambda totals: totals.connect_ms,
        bounds=_bounds(1e-3, 10.0),
    ),
)


def _histograms(name: str, timed: _Timed, rows: Sequence[_Row]) -> Iterator[str]:
    """Yield the text of a histogram; a row without a count has none."""
    yield head(name, timed.help, "histogram")
    ends = [f',le="{bound}"}} ' for bound in timed.bounds]
    # The bucket here of each bucket that reports count by; the last takes what took longer.
    coarse = [bisect_left(timed.bounds, bound) for bound in BOUNDS] + [len(timed.bounds)]
    for some in slices(rows, HISTOGRAM_ROWS):
        lines: list[str] = []
        for row in some:
            buckets = timed.buckets(row.times)
            if not buckets:
                continue
            counts = [0] * (len(ends) + 1)
            for number, count in buckets.items():
                counts[coarse[number]] += count
            *cumulated, total = accumulate(counts)
            begin = f"{name}_bucket{{{row.labels}"
            lines += [f"{begin}{end}{below}\n" for end, below in zip(ends, cumulated, strict=True)]
            seconds = timed.milliseconds(row.totals) / 1000
            lines.append(f'{begin},le="+Inf"}} {total}\n')
            lines.append(f"{name}_sum{{{row.labels}}} {seconds}\n{name}_count{{{row.labels}}} {total}\n")
        yield "".join(lines)

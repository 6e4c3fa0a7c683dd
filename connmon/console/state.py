"""What the console shows, and what a new picture or the time does to it. Pure: no I/O, no clock.

Rules kept here:

- A `State` is frozen; everything that happens is a function from one to the next: `pictured`,
  `silenced`, `noted`, `ticked`, `fitted` here, what keys do in `handlers`, the mouse in `mouse`. Times
  are handed in, in monotonic seconds.
- The pages form a stack: Enter puts one on top, Esc takes it off again. Each view keeps its first page.
- When no node answers, the last picture stays. While it is frozen, only tables that were never
  filled take rows in, so that one can still drill down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from connmon.console import navigation
from connmon.console.fitting import Row
from connmon.console.navigation import View
from connmon.console.panes import Page, Pane
from connmon.console.source import REMEMBERED, Key, Want
from connmon.protocol.queries import EVERYTHING
from connmon.protocol.rows import RowKey

#: Seconds that a note stays on the screen.
NOTE_SECONDS: Final = 12.0
#: Seconds between two pictures that can be chosen, and the one to begin with.
INTERVALS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
INTERVAL: Final = 1.0
#: What a picture may be late before its age counts, and before the screen says so.
GRACE_SECONDS: Final = 0.5
LATE_SECONDS: Final = 2.5
#: Pictures a minute, how many times as fast a replay can go, and how slow.
SPEEDS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
#: Rows whose history is asked for at once, at most.
MOST_REMEMBERED: Final = 100


class Samples(NamedTuple):
    """The last minutes of one row."""

    rates: Sequence[float | None]
    counts: Sequence[float | None]


class Remembered(NamedTuple):
    """What the node remembers of some rows."""

    number: int
    """Of the newest sample."""
    interval: float
    """Seconds between two of them."""
    rows: Mapping[RowKey, Samples]


class Local(NamedTuple):
    """What the operating system says of a process on this host, now."""

    instance: str
    text: str
    """One line."""


@dataclass(frozen=True)
class Picture:
    """What one refresh brought."""

    head: Mapping[str, Any]
    """service, node, leader, quorum, stale_seconds, totals: as in the JSON contract."""
    tables: Mapping[Want, Sequence[tuple[Key, Row]]]
    received: float
    received_at: str
    """The wall clock's time, for people."""
    stands_since: str = ""
    """The same of the moment when the node's replica last moved."""
    remembered: Remembered | None = None
    local: Local | None = None


@dataclass(frozen=True)
class Silence:
    """No node answers."""

    reason: str


@dataclass(frozen=True)
class Reel:
    """Where a replay stands."""

    frames: int
    minute: int = 60
    """How many frames make about a minute."""
    position: int = 0
    """From 0."""
    speed: float = 1.0
    playing: bool = True

    @property
    def at_end(self) -> bool:
        return self.position >= self.frames - 1

    def moved(self, step: int) -> Reel:
        """Return it so many frames on, standing still."""
        return replace(self, position=max(0, min(self.position + step, self.frames - 1)), playing=False)


class Spread(NamedTuple):
    """How the lines about the row under the cursor lie on the screen."""

    lines: int
    """All there are."""
    room: int
    """How many of them are seen."""
    top: int
    """From which one on they begin to be scrolled."""

    @property
    def lowest(self) -> int:
        return max(0, self.lines - self.room)


class Reading(NamedTuple):
    """The lines about a row are being scrolled."""

    key: Key
    """The row; where the cursor is on another one, they are not."""
    top: int


Prompt: TypeAlias = Literal["find", "filter", "filter_out", "save"]


@dataclass(frozen=True)
class Typing:
    """A text is being typed."""

    prompt: Prompt
    text: str = ""
    began: int = 0
    """The row on which the cursor was before."""


@dataclass(frozen=True)
class State:
    """Everything that the screen depends on, but its size."""

    url_option: str
    """What an engine's URL needs to report to these nodes: "connmon_service=default"."""
    view: View = "programs"
    pages: tuple[Page, ...] = field(default_factory=lambda: (navigation.root("programs"),))
    roots: Mapping[View, Page] = field(default_factory=dict)
    """The first pages of the views that are not shown."""
    head: Mapping[str, Any] = field(default_factory=dict)
    received: float | None = None
    received_at: str = ""
    stands_since: str = ""
    remembered: Remembered | None = None
    local: Local | None = None
    now: float = 0.0
    silence: Silence | None = None
    note: str = ""
    note_ends: float = 0.0
    typing: Typing | None = None
    find: str = ""
    paused_at: str = ""
    """Since when the picture is frozen, for people. "": it is not."""
    expanded: bool = False
    spread: Spread | None = None
    """None: they are not on the screen."""
    reading: Reading | None = None
    interval: float = INTERVAL
    blocks: bool = True
    """The terminal has block characters."""
    reel: Reel | None = None
    """Not live: a recording."""
    save: str = ""
    """The file in which the table is to be saved; the loop does it and takes this away."""
    help: bool = False
    help_top: int = 0
    ended: bool = False

    @property
    def page(self) -> Page:
        return self.pages[-1]

    @property
    def scrolled(self) -> int | None:
        """From which line on those about the row under the cursor are read. None: they are not scrolled."""
        reading, selected = self.reading, self.page.pane.selected
        return None if reading is None or selected is None or selected[0] != reading.key else reading.top

    @property
    def wants(self) -> tuple[Want, ...]:
        """The rows to ask the node for."""
        return tuple(pane.want for pane in self.page.panes)

    @property
    def remembers(self) -> tuple[RowKey, ...]:
        """The rows on the screen that have a history, and everything together."""
        pane = self.page.pane
        if pane.want.by not in REMEMBERED or pane.grouped:
            return (EVERYTHING,)
        shown = (pane.rows or ())[pane.top : pane.top + min(pane.visible, MOST_REMEMBERED)]
        return (EVERYTHING, *(key for key, _ in shown))

    @property
    def seen(self) -> frozenset[Key] | None:
        """The rows on the screen; None where the order or the rows themselves hang on others' ages."""
        keys: set[Key] = set()
        for pane in self.page.panes:
            if pane.sort.endswith("_seconds") or pane.grouped:
                return None
            keys.update(key for key, _ in (pane.rows or ())[pane.top : pane.top + pane.visible])
        return frozenset(keys)

    @property
    def age(self) -> float | None:
        """How old the picture is: what the node said, and the time since if that is long. None: unknown."""
        if self.received is None:
            return None
        since = self.now - self.received
        # The second between two refreshes does not count: a figure that flickers says nothing.
        late = self.reel is None and since > self.interval + GRACE_SECONDS
        return float(self.head.get("stale_seconds") or 0.0) + (since if late else 0.0)

    @property
    def late(self) -> bool:
        """Whether the node that is connected has not answered for too long: two refreshes were missed."""
        if self.received is None or self.reel is not None or self.paused_at:
            return False
        return self.now - self.received > self.interval + LATE_SECONDS


# --- What happens -----------------------------------------------------------------------------


def pictured(state: State, picture: Picture) -> State:
    """A refresh came. Panes that it has rows for show those."""

    def filled(pane: Pane) -> Pane:
        pairs = picture.tables.get(pane.want)
        if pairs is None or (state.paused_at and pane.source is not None):
            return pane
        return pane.filled(pairs)

    shown = tuple(replace(page, panes=tuple(map(filled, page.panes))) for page in state.pages)
    if state.paused_at and state.received is not None:
        return replace(state, pages=shown, silence=None)
    return replace(
        state, pages=shown, head=picture.head, received=picture.received, received_at=picture.received_at,
        stands_since=picture.stands_since, now=max(state.now, picture.received), silence=None,
        remembered=picture.remembered or state.remembered, local=picture.local,
    )  # fmt: skip


def silenced(state: State, silence: Silence) -> State:
    """No node answers. The last picture stays."""
    return replace(state, silence=silence)


def noted(state: State, note: str) -> State:
    """Something is to be read for a while."""
    return replace(state, note=note, note_ends=state.now + NOTE_SECONDS)


def ticked(state: State, now: float) -> State:
    """Time has passed."""
    return replace(state, now=now, note="" if now >= state.note_ends else state.note)


def fitted(state: State, visible: Sequence[int], spread: Spread | None = None) -> State:
    """The screen has room for so many rows of each pane of the page, and so many lines about the cursor's."""
    if state.spread != spread:
        state = replace(state, spread=spread)
    if spread is not None and state.reading is not None and state.reading.top > spread.lowest:
        state = replace(state, reading=state.reading._replace(top=spread.lowest))
    panes = state.page.panes
    if all(pane.visible == max(1, rows) for pane, rows in zip(panes, visible, strict=True)):
        return state
    shown = tuple(pane.shown(rows) for pane, rows in zip(panes, visible, strict=True))
    return with_page(state, replace(state.page, panes=shown))


def played(state: State, position: int) -> State:
    """The replay has gone on to that frame by itself."""
    if state.reel is None or not state.reel.playing or position != state.reel.position + 1:
        return state  # a key was faster
    reel = replace(state.reel, position=min(position, state.reel.frames - 1))
    return replace(state, reel=replace(reel, playing=not reel.at_end))


def with_page(state: State, page: Page) -> State:
    return replace(state, pages=(*state.pages[:-1], page))


def with_pane(state: State, pane: Pane) -> State:
    return with_page(state, state.page.with_pane(pane))

"""What the console shows, and what a refresh or the time does to it. Pure: no I/O, no clock.

- A `ConsoleState` is frozen; every event is a function from one state to the next: `refreshed`, `silenced`,
  `noted`, `ticked`, `fitted`, `played` here, keys and the mouse in `actions`. Times are passed in, in
  monotonic seconds.
- The pages form a stack: Enter puts one on top, Esc takes it off. Each view keeps its first page.
- When no node answers, the last snapshot stays. While the screen is frozen, only tables that were never
  filled take rows, so that one can still drill down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from connmon.console import navigation
from connmon.console.columns import column
from connmon.console.modes import Event, Mode, next_mode
from connmon.console.navigation import View
from connmon.console.panes import Page, Pane
from connmon.console.rows import Key, KeyedRow, Samples
from connmon.console.settings import DEFAULT_SETTINGS, ConsoleSettings
from connmon.console.source import TABLES_WITH_HISTORY, Want
from connmon.protocol.document import JsonHead
from connmon.protocol.queries import EVERYTHING
from connmon.protocol.rows import RowKey


class Remembered(NamedTuple):
    """The history of some rows, as the node keeps it."""

    number: int
    """Of the newest sample."""
    interval: float
    """Seconds between two samples."""
    rows: Mapping[RowKey, Samples]


class Local(NamedTuple):
    """What the operating system says of a process on this host, now."""

    instance: str
    text: str
    """One line."""


@dataclass(frozen=True)
class Refresh:
    """A snapshot of everything that the screen shows."""

    head: JsonHead
    tables: Mapping[Want, Sequence[KeyedRow]]
    received: float
    """When it came, in monotonic seconds."""
    received_at: str
    """The wall clock's time, for people."""
    stands_since: str = ""
    """The wall clock's time when the node's replica last moved."""
    rows_left_out: int = 0
    """Pools and holders that are not in the answer about waits."""
    remembered: Remembered | None = None
    local: Local | None = None


@dataclass(frozen=True)
class Silence:
    """No node answers."""

    reason: str


@dataclass(frozen=True)
class Reel:
    """Where a replay stands."""

    snapshots: int
    """In the recording."""
    minute: int = 60
    """How many snapshots make about a minute."""
    position: int = 0
    """From 0."""
    speed: float = 1.0
    playing: bool = True

    @property
    def at_end(self) -> bool:
        return self.position >= self.snapshots - 1

    def moved(self, step: int) -> Reel:
        """Return it so many snapshots later, standing still."""
        return replace(self, position=max(0, min(self.position + step, self.snapshots - 1)), playing=False)


class Spread(NamedTuple):
    """How the lines about the row under the cursor lie on the screen."""

    lines: int
    """All lines, on the screen or not."""
    room: int
    """How many of them are on the screen."""
    top: int
    """The first line on the screen when scrolling begins."""

    @property
    def lowest(self) -> int:
        return max(0, self.lines - self.room)


class Reading(NamedTuple):
    """The lines about a row are being scrolled."""

    key: Key
    """The row; when the cursor leaves it, the scrolling has ended."""
    top: int


class Input(NamedTuple):
    """The text that is typed at a prompt."""

    text: str = ""
    began: int = 0
    """The row on which the cursor was before."""


NO_INPUT: Final = Input()


@dataclass(frozen=True)
class ConsoleState:
    """Everything that the screen depends on, but its size."""

    url_option: str
    """What an engine's URL needs to report to these nodes: "connmon_service=default"."""
    view: View = "programs"
    pages: tuple[Page, ...] = field(default_factory=lambda: (navigation.root("programs"),))
    roots: Mapping[View, Page] = field(default_factory=dict)
    """The first pages of the views that are not shown."""
    head: JsonHead | None = None
    """None: no node has answered yet."""
    received: float | None = None
    received_at: str = ""
    stands_since: str = ""
    rows_left_out: int = 0
    remembered: Remembered | None = None
    local: Local | None = None
    now: float = 0.0
    silence: Silence | None = None
    note: str = ""
    note_ends: float = 0.0
    mode: Mode = Mode.TABLE
    input: Input = NO_INPUT
    """Of the prompt, in the modes that are one."""
    find: str = ""
    paused_at: str = ""
    """Since when the screen is frozen, for people. "": it is not."""
    expanded: bool = False
    spread: Spread | None = None
    """None: the lines about the row are not on the screen."""
    reading: Reading | None = None
    interval: float = DEFAULT_SETTINGS.refresh_seconds
    """Seconds between two refreshes."""
    blocks: bool = True
    """The terminal has block characters."""
    reel: Reel | None = None
    """Not live: a recording."""
    save: str = ""
    """The file in which the table is to be saved; the loop does it and takes this away."""
    help_top: int = 0
    settings: ConsoleSettings = DEFAULT_SETTINGS

    @property
    def page(self) -> Page:
        return self.pages[-1]

    @property
    def ended(self) -> bool:
        return self.mode is Mode.ENDED

    @property
    def scrolled(self) -> int | None:
        """The first line about the row under the cursor on the screen. None: they are not scrolled."""
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
        if pane.want.by not in TABLES_WITH_HISTORY or pane.grouped:
            return (EVERYTHING,)
        return (EVERYTHING, *(key for key, _ in pane.on_screen[: self.settings.history_rows]))

    @property
    def seen(self) -> frozenset[Key] | None:
        """The rows on the screen; None where the ages of the others are needed for the order or for sums."""
        keys: set[Key] = set()
        for pane in self.page.panes:
            if pane.grouped or column(pane.want.by, pane.sort).ages:
                return None
            keys.update(key for key, _ in pane.on_screen)
        return frozenset(keys)

    @property
    def age(self) -> float | None:
        """Seconds that the snapshot is old: by the node, and since it came if that is long. None: unknown."""
        if self.received is None or self.head is None:
            return None
        since = self.now - self.received
        # The second between two refreshes does not count: a figure that flickers says nothing.
        late = self.reel is None and since > self.interval + self.settings.late_age_seconds
        return self.head.stale_seconds + (since if late else 0.0)

    @property
    def late(self) -> bool:
        """Whether the node that is connected has not answered for too long: two refreshes were missed."""
        if self.received is None or self.reel is not None or self.paused_at:
            return False
        return self.now - self.received > self.interval + self.settings.late_banner_seconds


# --- Events -----------------------------------------------------------------------------------


def changed_mode(state: ConsoleState, event: Event) -> ConsoleState:
    """Return the state in the mode that follows; see `modes`."""
    return replace(state, mode=next_mode(state.mode, event))


def refreshed(state: ConsoleState, refresh: Refresh) -> ConsoleState:
    """Return the state after a refresh: its tables show the rows that came for them."""

    def filled(pane: Pane) -> Pane:
        rows = refresh.tables.get(pane.want)
        if rows is None or (state.paused_at and pane.source is not None):
            return pane
        return pane.filled(rows)

    pages = tuple(replace(page, panes=tuple(map(filled, page.panes))) for page in state.pages)
    if state.paused_at and state.received is not None:
        return replace(state, pages=pages, silence=None)
    return replace(
        state,
        pages=pages,
        head=refresh.head,
        received=refresh.received,
        received_at=refresh.received_at,
        stands_since=refresh.stands_since,
        rows_left_out=refresh.rows_left_out,
        now=max(state.now, refresh.received),
        silence=None,
        remembered=refresh.remembered or state.remembered,
        local=refresh.local,
    )


def silenced(state: ConsoleState, silence: Silence) -> ConsoleState:
    """Return the state while no node answers. The last snapshot stays."""
    return replace(state, silence=silence)


def noted(state: ConsoleState, note: str) -> ConsoleState:
    """Return the state with a note, which stays for `note_seconds`."""
    return replace(state, note=note, note_ends=state.now + state.settings.note_seconds)


def ticked(state: ConsoleState, now: float) -> ConsoleState:
    """Return the state at a later time."""
    return replace(state, now=now, note="" if now >= state.note_ends else state.note)


def fitted(state: ConsoleState, visible: Sequence[int], spread: Spread | None = None) -> ConsoleState:
    """Return the state on a screen with room for so many rows of each table of the page.

    `spread`: how the lines about the row under the cursor lie on it.
    """
    if state.spread != spread:
        state = replace(state, spread=spread)
    if spread is not None and state.reading is not None and state.reading.top > spread.lowest:
        state = replace(state, reading=state.reading._replace(top=spread.lowest))
    panes = state.page.panes
    if all(pane.visible == max(1, rows) for pane, rows in zip(panes, visible, strict=True)):
        return state
    scrolled = tuple(pane.shown(rows) for pane, rows in zip(panes, visible, strict=True))
    return with_page(state, replace(state.page, panes=scrolled))


def played(state: ConsoleState, position: int) -> ConsoleState:
    """Return the state after the replay has gone on to that snapshot by itself."""
    if state.reel is None or not state.reel.playing or position != state.reel.position + 1:
        return state  # a key was faster
    reel = replace(state.reel, position=min(position, state.reel.snapshots - 1))
    return replace(state, reel=replace(reel, playing=not reel.at_end))


def with_page(state: ConsoleState, page: Page) -> ConsoleState:
    return replace(state, pages=(*state.pages[:-1], page))


def with_pane(state: ConsoleState, pane: Pane) -> ConsoleState:
    return with_page(state, state.page.with_pane(pane))

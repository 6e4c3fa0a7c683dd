"""What the console shows, and what a key or a new picture does to it. Pure: no I/O, no clock.

Rules kept here:

- A `State` is frozen; everything that happens is a function from one to the next: `pressed`,
  `pictured`, `silenced`, `noted`, `ticked`, `fitted`. Times are handed in, in monotonic seconds.
- The pages form a stack: Enter puts one on top, Esc takes it off again.
- The cursor stays on the row's identity, wherever the row moves. Until it is moved, and after
  Home, it stays on the top line instead, so that what is worst remains in view.
- When no node answers, the last picture stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.console import columns, keys, text
from connmon.console.columns import Row, Table

Key: TypeAlias = tuple[Any, ...]
Pairs: TypeAlias = tuple[tuple[Key, Row], ...]

#: Seconds that a note stays on the screen.
NOTE_SECONDS: Final = 12.0
#: Longest time between two pictures when all is well.
REFRESH_SECONDS: Final = 1.5
#: Seconds without an answer after which the screen says so: two refreshes were missed.
LATE_SECONDS: Final = 3.5


class Want(NamedTuple):
    """The rows that a pane shows; the fields of a `Snapshot`."""

    by: Table
    host: str | None = None
    program: str | None = None
    instance: str | None = None


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


@dataclass(frozen=True)
class Silence:
    """No node answers."""

    reason: str


@dataclass(frozen=True)
class Pane:
    """One table on a page."""

    want: Want
    sort: str
    inverted: bool = False
    rows: Pairs | None = None
    """In order. None: not answered yet."""
    cursor: Key | None = None
    """The identity of the row that the cursor is on. None: the top line, whichever row that is."""
    index: int = 0
    top: int = 0
    visible: int = 1000
    """How many rows of it the screen has room for; many, until that is known."""

    @property
    def selected(self) -> tuple[Key, Row] | None:
        return self.rows[self.index] if self.rows else None

    def filled(self, pairs: Sequence[tuple[Key, Row]]) -> Pane:
        """Return the pane with other rows; the cursor stays with its row, or near where that was."""
        rows = columns.arranged(self.want.by, pairs, self.sort, self.inverted)
        if self.cursor is None:
            return replace(self, rows=rows, index=0, top=0)
        places = [place for place, (key, _) in enumerate(rows) if key == self.cursor]
        pane = replace(self, rows=rows)
        return pane.moved_to(places[0] if places else self.index)

    def moved_to(self, index: int) -> Pane:
        """Return the pane with the cursor on a row of that index, or the nearest there is."""
        if not self.rows:
            return replace(self, index=0, top=0)
        index = max(0, min(index, len(self.rows) - 1))
        return replace(self, index=index, cursor=self.rows[index][0]).shown(self.visible)

    def shown(self, visible: int) -> Pane:
        """Return the pane scrolled as little as brings the cursor among `visible` rows."""
        visible = max(1, visible)
        top = max(0, min(self.top, len(self.rows or ()) - visible))
        top = max(self.index - visible + 1, min(top, self.index))
        return replace(self, top=top, visible=visible)


@dataclass(frozen=True)
class Page:
    """One level of the drill-down."""

    title: str
    """For the breadcrumbs."""
    panes: tuple[Pane, ...]
    focus: int = 0

    @property
    def pane(self) -> Pane:
        return self.panes[self.focus]

    def with_pane(self, pane: Pane) -> Page:
        return replace(self, panes=(*self.panes[: self.focus], pane, *self.panes[self.focus + 1 :]))


def _page(title: str, *wants: Want) -> Page:
    return Page(title, tuple(Pane(want, columns.DEFAULT_SORT[want.by]) for want in wants))


@dataclass(frozen=True)
class State:
    """Everything that the screen depends on, but its size."""

    url_option: str
    """What an engine's URL needs to report to these nodes: "connmon_service=default"."""
    pages: tuple[Page, ...] = field(default_factory=lambda: (_page("programs", Want("program")),))
    head: Mapping[str, Any] = field(default_factory=dict)
    received: float | None = None
    received_at: str = ""
    stands_since: str = ""
    now: float = 0.0
    silence: Silence | None = None
    note: str = ""
    note_ends: float = 0.0
    help: bool = False
    help_top: int = 0
    ended: bool = False

    @property
    def page(self) -> Page:
        return self.pages[-1]

    @property
    def wants(self) -> tuple[Want, ...]:
        """The rows to ask the node for."""
        return tuple(pane.want for pane in self.page.panes)

    @property
    def age(self) -> float | None:
        """How old the picture is: what the node said, and the time since if that is long. None: unknown."""
        if self.received is None:
            return None
        since = self.now - self.received
        # The second between two refreshes does not count: a figure that flickers says nothing.
        return float(self.head.get("stale_seconds") or 0.0) + (since if since > REFRESH_SECONDS else 0.0)

    @property
    def late(self) -> bool:
        """Whether the node that is connected has not answered for too long."""
        return self.received is not None and self.now - self.received > LATE_SECONDS


# --- What happens -----------------------------------------------------------------------------


def pictured(state: State, picture: Picture) -> State:
    """A refresh came. Panes that it has rows for show those."""

    def filled(pane: Pane) -> Pane:
        pairs = picture.tables.get(pane.want)
        return pane if pairs is None else pane.filled(pairs)

    pages = tuple(replace(page, panes=tuple(map(filled, page.panes))) for page in state.pages)
    return replace(
        state, pages=pages, head=picture.head, received=picture.received, received_at=picture.received_at,
        stands_since=picture.stands_since, now=max(state.now, picture.received), silence=None,
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


def fitted(state: State, visible: Sequence[int]) -> State:
    """The screen has room for so many rows of each pane of the page."""
    panes = tuple(pane.shown(rows) for pane, rows in zip(state.page.panes, visible, strict=True))
    return replace(state, pages=(*state.pages[:-1], replace(state.page, panes=panes)))


def pressed(state: State, key: str) -> State:
    """A key was pressed, named as in `keys`. A key that means nothing does nothing."""
    action = keys.ACTIONS.get(key)
    if state.help and action != "quit":
        step = _HELP_STEPS.get(action) if action else None
        if step is None:
            return replace(state, help=False, help_top=0)
        return replace(state, help_top=max(0, state.help_top + step))
    return HANDLERS[action](state) if action else state


# --- What keys do ------------------------------------------------------------------------------

_HELP_STEPS: Final[dict[keys.Action, int]] = {"up": -1, "down": 1, "page_up": -10, "page_down": 10}


def _with_page(state: State, page: Page) -> State:
    return replace(state, pages=(*state.pages[:-1], page))


def _with_pane(state: State, pane: Pane) -> State:
    return _with_page(state, state.page.with_pane(pane))


def _move(state: State, step: int) -> State:
    pane = state.page.pane
    target = pane.index + step
    page = state.page
    # Past its end, the cursor goes on into the neighbouring pane: no key has to be known for that.
    if abs(step) == 1 and not 0 <= target < len(pane.rows or ()) and 0 <= page.focus + step < len(page.panes):
        entered = replace(page, focus=page.focus + step)
        rows = entered.pane.rows
        if rows:
            return _with_page(
                state, entered.with_pane(entered.pane.moved_to(0 if step > 0 else len(rows) - 1))
            )
    return _with_pane(state, pane.moved_to(target))


def _first(state: State) -> State:
    return _with_pane(state, replace(state.page.pane, cursor=None, index=0, top=0))


def _last(state: State) -> State:
    pane = state.page.pane
    return _with_pane(state, pane.moved_to(len(pane.rows or ()) - 1))


def _open(state: State) -> State:
    selected = state.page.pane.selected
    if selected is None:
        return state
    key, row = selected
    table = state.page.pane.want.by
    if table == "program":
        host, program = str(row.get("host")), str(row.get("program"))
        page = _page(text.clean(f"{program} on {host}"), Want("process", host=host, program=program))
    elif table == "process":
        # The row's identity, not a value of it: ("process", instance).
        instance = str(key[-1])
        pools, connections = Want("pool", instance=instance), Want("connection", instance=instance)
        page = _page(f"pid {columns.count(row.get('pid'))}", pools, connections)
    else:
        return state
    # From now on the cursor below is on the row that was opened, so that Esc returns to it.
    below = _with_pane(state, replace(state.page.pane, cursor=key))
    return replace(below, pages=(*below.pages, page))


def _back(state: State) -> State:
    return replace(state, pages=state.pages[:-1]) if len(state.pages) > 1 else state


def _other_pane(state: State) -> State:
    page = state.page
    return _with_page(state, replace(page, focus=(page.focus + 1) % len(page.panes)))


def _sort(state: State, step: int) -> State:
    pane = state.page.pane
    order = [column.key for column in columns.COLUMNS[pane.want.by]]
    key = order[(order.index(pane.sort) + step) % len(order)]
    return _with_pane(state, _sorted(pane, key, False))


def _invert(state: State) -> State:
    pane = state.page.pane
    return _with_pane(state, _sorted(pane, pane.sort, not pane.inverted))


def _sorted(pane: Pane, key: str, inverted: bool) -> Pane:
    pane = replace(pane, sort=key, inverted=inverted)
    return pane if pane.rows is None else pane.filled(pane.rows)


Handler: TypeAlias = Callable[[State], State]

HANDLERS: Final[dict[keys.Action, Handler]] = {
    "up": lambda state: _move(state, -1),
    "down": lambda state: _move(state, 1),
    "page_up": lambda state: _move(state, -max(2, state.page.pane.visible - 1)),
    "page_down": lambda state: _move(state, max(2, state.page.pane.visible - 1)),
    "first": _first,
    "last": _last,
    "open": _open,
    "back": _back,
    "other_pane": _other_pane,
    "sort_next": lambda state: _sort(state, 1),
    "sort_previous": lambda state: _sort(state, -1),
    "invert": _invert,
    "help": lambda state: replace(state, help=True, help_top=0),
    "quit": lambda state: replace(state, ended=True),
}

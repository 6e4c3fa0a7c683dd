"""One table on the screen: its rows in order, and where its cursor is. Pure.

Rules kept here:

- The cursor stays on the row's identity, wherever the row moves. Until it is moved, and after
  Home, it stays on the top line instead, so that what is worst remains in view.
- What came from the node is kept as it came; grouping, filter and order are made from it anew.
- A frozen order is one of identities: rows that are new stand below those that were there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from connmon.console import aggregate, columns
from connmon.console.fitting import Row
from connmon.console.source import Key, Want

Pairs = tuple[tuple[Key, Row], ...]


@dataclass(frozen=True)
class Pane:
    """One table."""

    want: Want
    sort: str
    inverted: bool = False
    source: Sequence[tuple[Key, Row]] | None = None
    """As it came, in the order of names. None: not answered yet."""
    rows: Pairs | None = None
    """What is shown, in order. None: not answered yet."""
    cursor: Key | None = None
    """The identity of the row that the cursor is on. None: the top line, whichever row that is."""
    index: int = 0
    top: int = 0
    visible: int = 1000
    """How many rows of it the screen has room for; many, until that is known."""
    filter: str = ""
    inverse: bool = False
    """The filter hides what it matches."""
    grouped: bool = False
    order: tuple[Key, ...] | None = None
    """The order is frozen: this one."""

    @property
    def groupable(self) -> bool:
        return self.want.by in ("program", "pool")

    @property
    def selected(self) -> tuple[Key, Row] | None:
        return self.rows[self.index] if self.rows else None

    def filled(self, pairs: Sequence[tuple[Key, Row]]) -> Pane:
        """Return the pane with other rows; the cursor stays with its row, or near where that was."""
        return self._refreshed(pairs) or replace(self, source=pairs)._arranged()

    def _refreshed(self, pairs: Sequence[tuple[Key, Row]]) -> Pane | None:
        """Return the pane with new ages in some rows, where nothing else has changed; else None.

        Of thousands of quiet rows only those on the screen are made anew: their order is the same then.
        """
        before = self.source
        plain = self.rows is not None and not (self.filter or self.grouped)
        if before is None or self.rows is None or not plain or len(before) != len(pairs):
            return None
        fresh: dict[Key, Row] = {}
        value = columns.column(self.want.by, self.sort).sorted_by
        for (key, old), (other, new) in zip(before, pairs, strict=True):
            if old is new:
                continue
            same = key == other and value(old) == value(new) and old.get("verdict") == new.get("verdict")
            if not same or columns.troubled(old) != columns.troubled(new):
                return None
            fresh[key] = new
        rows = tuple((pair[0], fresh[pair[0]]) if pair[0] in fresh else pair for pair in self.rows)
        return replace(self, source=pairs, rows=rows)

    def changed(
        self, *, sort: str | None = None, inverted: bool | None = None, filter: str | None = None,
        inverse: bool | None = None, grouped: bool | None = None,
    ) -> Pane:  # fmt: skip
        """Return the pane with another order, filter or grouping of the same rows."""
        pane = replace(
            self,
            sort=self.sort if sort is None else sort,
            inverted=self.inverted if inverted is None else inverted,
            filter=self.filter if filter is None else filter,
            inverse=self.inverse if inverse is None else inverse,
            grouped=self.grouped if grouped is None else grouped,
            order=None,
        )
        return pane._arranged()

    def frozen(self, frozen: bool) -> Pane:
        """Return the pane with its order frozen as it is, or moving again."""
        if not frozen:
            return replace(self, order=None)._arranged()
        return replace(self, order=tuple(key for key, _ in self.rows or ()))

    def _arranged(self) -> Pane:
        if self.source is None:
            return self
        pairs: Sequence[tuple[Key, Row]] = self.source
        if self.grouped:
            pairs = (aggregate.programs if self.want.by == "program" else aggregate.pools)(pairs)
        if self.filter:
            pairs = [pair for pair in pairs if columns.matches(pair[1], self.filter) is not self.inverse]
        rows = columns.arranged(self.want.by, pairs, self.sort, self.inverted)
        if self.order is not None:
            places = {key: place for place, key in enumerate(self.order)}
            rows = tuple(sorted(rows, key=lambda pair: places.get(pair[0], len(places))))
        if self.cursor is None:
            return replace(self, rows=rows, index=0, top=0)
        index = next((place for place, (key, _) in enumerate(rows) if key == self.cursor), self.index)
        return replace(self, rows=rows).moved_to(index)

    def moved_to(self, index: int) -> Pane:
        """Return the pane with the cursor on a row of that index, or the nearest there is."""
        if not self.rows:
            return replace(self, index=0, top=0)
        index = max(0, min(index, len(self.rows) - 1))
        return replace(self, index=index, cursor=self.rows[index][0]).shown(self.visible)

    def found(self, wanted: str, begin: int, step: int) -> Pane | None:
        """Return the pane with the cursor on the next row with that text, from `begin`, round the end."""
        rows = self.rows or ()
        for offset in range(len(rows)):
            index = (begin + step * offset) % len(rows)
            if columns.matches(rows[index][1], wanted):
                return self.moved_to(index)
        return None

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


def page(title: str, *wants: Want) -> Page:
    """Return a page whose tables are still empty."""
    return Page(title, tuple(Pane(want, columns.DEFAULT_SORT[want.by]) for want in wants))

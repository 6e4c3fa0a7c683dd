"""One table on the screen: its rows in order, and the cursor. Pure.

- The cursor stays on its row, wherever the row moves. Until it is moved, and after Home, it stays on the
  top line instead, so that the worst row remains in view.
- The rows of the node are kept as they came; grouping, filter and order are applied to them again.
- A frozen order is an order of keys: rows that are new stand below the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from connmon.console import aggregate, columns
from connmon.console.row_words import verdict
from connmon.console.rows import Key, KeyedRow, TableRow
from connmon.console.source import Want

KeyedRows: TypeAlias = tuple[KeyedRow, ...]


@dataclass(frozen=True)
class Pane:
    """One table."""

    want: Want
    sort: str
    """The key of the column that it is sorted by."""
    inverted: bool = False
    source: Sequence[KeyedRow] | None = None
    """The rows of the node, in the order of names. None: not answered yet."""
    rows: KeyedRows | None = None
    """The rows that the table shows, in order. None: not answered yet."""
    cursor: Key | None = None
    """The key of the row that the cursor is on. None: the top line, whichever row that is."""
    index: int = 0
    """The row under the cursor."""
    top: int = 0
    """The first row on the screen."""
    visible: int = 1000
    """How many rows the screen has room for; many until that is known."""
    filter: str = ""
    inverse: bool = False
    """The filter hides what it matches."""
    grouped: bool = False
    order: tuple[Key, ...] | None = None
    """The order is frozen: this one."""

    @property
    def groupable(self) -> bool:
        return self.want.by in aggregate.GROUPED and self.want.call_site is None

    @property
    def selected(self) -> KeyedRow | None:
        return self.rows[self.index] if self.rows else None

    @property
    def on_screen(self) -> KeyedRows:
        return (self.rows or ())[self.top : self.top + self.visible]

    def filled(self, rows: Sequence[KeyedRow]) -> Pane:
        """Return the pane with other rows; the cursor stays with its row, or near where that was."""
        return self._refreshed(rows) or replace(self, source=rows)._arranged()

    def _refreshed(self, rows: Sequence[KeyedRow]) -> Pane | None:
        """Return the pane with these rows in the order of before; None: the order may have changed.

        Of 100,000 rows a few change between two refreshes, and most of those keep their place.
        """
        before = self.source
        if before is rows and self.rows is not None:
            return self
        if before is None or self.rows is None or self.filter or self.grouped or len(before) != len(rows):
            return None
        changed = [
            (old, new)
            for old, new in zip(before, rows, strict=True)
            if old is not new and old[1] is not new[1]
        ]
        value = columns.column(self.want.by, self.sort).value
        trouble = columns.TABLES[self.want.by].trouble or _no_trouble
        fresh: dict[Key, KeyedRow] = {}
        for (key, old), new in changed:
            if key != new[0] or value(old) != value(new[1]) or trouble(old) != trouble(new[1]):
                return None
            if verdict(old) != verdict(new[1]):
                return None
            fresh[key] = new
        return replace(self, source=rows, rows=self._with(fresh))

    def _with(self, fresh: dict[Key, KeyedRow]) -> KeyedRows | None:
        """Return the rows with these ones in their places."""
        rows = self.rows
        if not fresh or rows is None:
            return rows
        if len(fresh) <= self.visible:
            # As a rule these are the rows on the screen, whose ages go on.
            seen = [fresh.get(row[0], row) for row in self.on_screen]
            if sum(row[0] in fresh for row in seen) == len(fresh):
                return (*rows[: self.top], *seen, *rows[self.top + len(seen) :])
        return tuple([fresh.get(row[0], row) for row in rows])

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
        """Return the pane with its rows grouped, filtered and sorted again."""
        if self.source is None:
            return self
        by, kept = self.want.by, self.source
        if self.grouped:
            kept = aggregate.GROUPED[by](kept)
        if self.filter:
            kept = [row for row in kept if columns.matches(by, row[1], self.filter) is not self.inverse]
        rows = columns.arranged(by, kept, self.sort, self.inverted)
        if self.order is not None:
            places = {key: place for place, key in enumerate(self.order)}
            rows = tuple(sorted(rows, key=lambda row: places.get(row[0], len(places))))
        if self.cursor is None:
            return replace(self, rows=rows, index=0, top=0)
        index = next((place for place, (key, _) in enumerate(rows) if key == self.cursor), self.index)
        return replace(self, rows=rows).moved_to(index)

    def moved_to(self, index: int) -> Pane:
        """Return the pane with the cursor on the row of that index, or on the nearest one."""
        if not self.rows:
            return replace(self, index=0, top=0)
        index = max(0, min(index, len(self.rows) - 1))
        return replace(self, index=index, cursor=self.rows[index][0]).shown(self.visible)

    def found(self, wanted: str, begin: int, step: int) -> Pane | None:
        """Return the pane with the cursor on the next row with that text, from `begin`, past the end too."""
        rows = self.rows or ()
        for offset in range(len(rows)):
            index = (begin + step * offset) % len(rows)
            if columns.matches(self.want.by, rows[index][1], wanted):
                return self.moved_to(index)
        return None

    def shown(self, visible: int) -> Pane:
        """Return the pane scrolled as little as brings the cursor among `visible` rows."""
        visible = max(1, visible)
        top = max(0, min(self.top, len(self.rows or ()) - visible))
        top = max(self.index - visible + 1, min(top, self.index))
        return replace(self, top=top, visible=visible)


def _no_trouble(row: TableRow) -> Any:
    return None


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
    return Page(title, tuple(Pane(want, columns.TABLES[want.by].sort) for want in wants))

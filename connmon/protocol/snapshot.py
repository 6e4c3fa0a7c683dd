"""What a reader knows of one grouping: follow a node's answers, return typed rows. Pure: no I/O, no time.

`typed_rows` (the module) builds the rows and says what their values mean.

Answers

- An answer counts only with its last frame. An answer that breaks off changes nothing, and the reader asks
  again from the same version.

Cost

- A `_Block` is the unit of work: a process with its pools or connections, or a single row. Only a block with
  a changed row is built again, and its connections share the fields of their process and pool. Of the other
  blocks only ages go on. A row once returned does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeAlias, TypeVar

from connmon.protocol.document import (
    Document,
    JsonHead,
    JsonPool,
    JsonRow,
    JsonTotals,
    ProcessFields,
)
from connmon.protocol.queries import Query
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Row,
    RowKey,
    Rows,
    SiteRow,
)
from connmon.protocol.typed_rows import (
    aged_row,
    connection_rows,
    figure_fields,
    milliseconds,
    one_row,
    pool_rows,
    process_fields,
)
from connmon.protocol.values import LOST, Grouping

OneRow = TypeVar("OneRow", bound=JsonRow)
Derive: TypeAlias = Callable[[RowKey, JsonRow], JsonRow]

#: How far the ages of rows off the screen may lag.
UNSEEN_SECONDS: Final = 15.0


class _Block:
    """Rows that are built together: a process with its pools or connections, or one row of another kind."""

    __slots__ = ("built", "clock", "order", "process", "received", "sources")

    def __init__(self, received: dict[RowKey, Row] | None = None) -> None:
        self.received: Final[dict[RowKey, Row]] = {} if received is None else received
        """The rows as the node sent them."""
        self.order: tuple[Any, ...] = ()
        """Sorts the blocks."""
        self.sources: list[Row] = []
        """The received row of each built row."""
        self.built: list[tuple[RowKey, JsonRow]] = []
        self.clock = 0.0
        """The time of the built rows' ages, but for rows on the screen, whose ages are newer."""
        self.process: ProcessRow | None = None
        """The process that pools or connections belong to."""


class Snapshot:
    """The rows of one grouping; `host`, `program` and `instance` narrow it."""

    def __init__(
        self,
        by: Grouping,
        host: str | None = None,
        program: str | None = None,
        instance: str | None = None,
        derive: Derive | None = None,
    ) -> None:
        """`derive` returns the row to use for a built row, for values that only the reader knows."""
        self.by: Final = by
        self.header: Rows | None = None
        """The last frame of the last complete answer. None: there was none yet."""
        self._derive = derive
        self._by_process: Final = by in ("pool", "connection")
        self._sums = False
        """Whether sums of several pools have rows in the grouping pool."""
        self._narrow: Final = (host, program, instance)
        self._epoch = ""
        self._since_version = 0
        self._blocks: dict[object, _Block] = {}
        self._changed: set[object] = set()
        """The names of the blocks that have to be built again."""
        self._ordered: list[_Block] = []
        self._answer: tuple[str, str, int, bool] | None = None
        self._coming: dict[RowKey, Row | None] = {}
        """The rows of the answer that is coming in. None: removed."""

    def __repr__(self) -> str:
        version = f"{self._epoch or '-'}/{self._since_version}"
        return f"<Snapshot by {self.by}, version {version}, {len(self._blocks)} blocks>"

    def query(self) -> Query:
        """Return what to ask next: the rows that changed since the last complete answer."""
        host, program, instance = self._narrow
        return Query(
            by=self.by,
            epoch=self._epoch,
            since=self._since_version,
            host=host,
            program=program,
            instance=instance,
        )

    def apply(self, rows: Rows) -> None:
        """Take one frame of an answer; the answer takes effect with its last frame."""
        answer = (rows.node, rows.epoch, rows.version, rows.complete)
        if answer != self._answer:  # else: the same answer, or the same asked again
            self._answer = answer
            self._coming = {}
        coming = self._coming
        for key in rows.removed:
            coming.setdefault(key, None)  # a row in the answer was removed before it came back
        for row in rows.rows:
            coming[row.key] = row
        if rows.more:
            return
        if rows.complete and self.by == "site" and rows.epoch == self._epoch:
            coming = self._difference(coming)
        elif rows.complete or rows.epoch != self._epoch:
            self._blocks, self._ordered = {}, []
            self._changed.clear()
        self._merge(coming)
        self._epoch, self._since_version, self.header = rows.epoch, rows.version, rows
        self._answer, self._coming = None, {}

    def _difference(self, coming: dict[RowKey, Row | None]) -> dict[RowKey, Row | None]:
        """Return what a complete answer changes: a node sends all call sites as soon as one has changed."""
        blocks = self._blocks
        changed: dict[RowKey, Row | None] = {}
        for key, row in coming.items():
            block = blocks.get(key)
            if block is None or block.received.get(key) != row:
                changed[key] = row
        for block in blocks.values():
            changed.update({key: None for key in block.received if key not in coming})
        return changed

    def _merge(self, coming: dict[RowKey, Row | None]) -> None:
        blocks, changed, by_process = self._blocks, self._changed, self._by_process
        for key, row in coming.items():
            name: object = key[1] if by_process else key
            block = blocks.get(name)
            if row is not None:
                if block is None:
                    block = blocks[name] = _Block()
                block.received[key] = row
            elif block is not None:
                block.received.pop(key, None)
            changed.add(name)

    def document(self) -> dict[str, Any]:
        """Return the document of the JSON contract.

        Raises ValueError while there is no complete answer yet.
        """
        return self.typed_document().flat()

    def typed_document(self) -> Document:
        """Return who answered, the totals and the rows. Raises as `document` does."""
        return Document(self.by, self.typed_head(), [row for _, row in self.typed_rows()])

    def rows_of(self, row_type: type[OneRow]) -> list[OneRow]:
        """Return the rows, which are of this type; empty while there is no complete answer."""
        return [row for _, row in self.typed_rows() if isinstance(row, row_type)]

    def pool_rows(self) -> list[JsonPool]:
        """Return the pools of a snapshot by connection, from the same answer.

        They include sums of several pools, whose figure `pools` is their number.
        """
        pools = Snapshot("pool")
        pools._sums = True
        pools.header = self.header
        pools._blocks = {name: _Block(block.received) for name, block in self._blocks.items()}
        pools._changed = set(pools._blocks)
        return pools.rows_of(JsonPool)

    def site_rows(self) -> list[SiteRow]:
        """Return the call sites as the node has sent them: with all milliseconds, for differences."""
        received = chain.from_iterable([block.received.values() for block in self._blocks.values()])
        return [row for row in received if isinstance(row, SiteRow)]

    def typed_head(self) -> JsonHead:
        """Return the document without its rows. Raises ValueError while there is no complete answer yet."""
        header = self.header
        if header is None:
            raise ValueError("no complete answer was applied yet")
        return JsonHead(
            service=header.service,
            node=header.node,
            leader=header.leader,
            quorum=header.quorum,
            stale_seconds=milliseconds(header.stale),
            totals=JsonTotals(
                hosts=header.hosts,
                programs=header.programs,
                figures=figure_fields(header.totals, _now(header)),
                verdicts=dict(header.verdicts),
            ),
        )

    def typed_rows(self, seen: Collection[RowKey] | None = None) -> list[tuple[RowKey, JsonRow]]:
        """Return the rows in the order of their names, each with its key; empty before the first answer.

        `seen`: the keys of the rows on a screen. The ages of other rows may lag by `UNSEEN_SECONDS`, unless
        something else of the row has changed. None: all ages are exact.
        """
        if self.header is None:
            return []
        clock = _now(self.header)
        if self._changed:
            self._build_changed(clock)
        if self.by == "site":  # has no ages that go on by themselves
            return list(chain.from_iterable([block.built for block in self._ordered]))
        names = None if seen is None else {key[1] if self._by_process else key for key in seen}
        for block in self._ordered:
            if block.clock != clock and (names is None or clock - block.clock > UNSEEN_SECONDS):
                self._renew(block, clock, None)
                block.clock = clock
        if seen is not None and names is not None:
            for name in names:
                seen_block = self._blocks.get(name)
                if seen_block is not None and seen_block.clock != clock:
                    self._renew(seen_block, clock, seen)
        return list(chain.from_iterable([block.built for block in self._ordered]))

    def _build_changed(self, clock: float) -> None:
        """Build the blocks that have changed, and sort the blocks where that changes their order."""
        same_order = True
        for name in self._changed:
            block = self._blocks.get(name)
            if block is None:
                continue
            order = block.order
            if self._by_process:
                self._build_process(block, str(name), clock)
            else:
                self._build_one(block, clock)
            block.clock = clock
            if not block.received:
                del self._blocks[name]
                same_order = False
            elif order != block.order:
                same_order = False
        self._changed.clear()
        if not same_order:
            self._ordered = sorted(self._blocks.values(), key=attrgetter("order"))

    def _build_one(self, block: _Block, clock: float) -> None:
        """Build the one row of a block, unless it belongs to another grouping."""
        block.sources, block.built = [], []
        for key, row in block.received.items():
            if isinstance(row, _ROW_TYPES[self.by]):
                block.order, built = one_row(key, row, clock)
                block.sources.append(row)
                block.built.append((key, built if self._derive is None else self._derive(key, built)))

    def _build_process(self, block: _Block, instance: str, clock: float) -> None:
        """Build the pools or the connections of a process."""
        received = block.received
        process_row = received.get(("process", instance))
        block.process = process_row if isinstance(process_row, ProcessRow) else None
        if isinstance(process_row, ProcessRow):
            who = process_row.process
            block.order = (who.host, who.program, who.pid, instance)
            process = process_fields(process_row, clock)
            lost = process_row.state == LOST
            reported = None if lost else process_row.figures.reported
        else:  # the row of the process did not come
            block.order = ("", "", 0, instance)
            process, lost, reported = ProcessFields(instance=instance), False, None
        if self.by == "pool":
            block.sources, block.built = pool_rows(received, process, clock, self._sums)
        else:
            block.sources, block.built = connection_rows(received, process, clock, lost, reported)
        if self._derive is not None:
            block.built = [(key, self._derive(key, row)) for key, row in block.built]

    def _renew(self, block: _Block, clock: float, seen: Collection[RowKey] | None) -> None:
        """Renew the ages of rows of which nothing else has changed. `seen`: only of these. None: of all."""
        process: ProcessFields | None = None
        if block.process is not None and block.process.started is not None:
            process = process_fields(block.process, clock)
        built = block.built
        for number, (key, row) in enumerate(built):
            if seen is None or key in seen:
                aged = aged_row(block.sources[number], row, process, clock)
                if self._derive is not None:
                    aged = self._derive(key, aged)
                built[number] = (key, aged)


#: The type of the rows that a node sends of each grouping.
_ROW_TYPES: Final[dict[Grouping, type[Row]]] = {
    "program": ProgramRow,
    "host": HostRow,
    "database": DatabaseRow,
    "process": ProcessRow,
    "pool": PoolRow,
    "connection": ConnectionRow,
    "site": SiteRow,
}


def _now(header: Rows) -> float:
    """Return the time by the replica's clock, if that had not stood still since it last moved."""
    return header.clock + header.stale

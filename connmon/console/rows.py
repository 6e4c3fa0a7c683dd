"""The rows of the console's tables: those of the JSON contract, and those that only the console has. Pure.

A table shows rows of one or two of these types. What all of them have in some form (a name, a state, how
many wait) is read by the functions of `row_words` and of this module, so that no other module asks for a
type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from connmon.protocol.document import (
    FigureFields,
    JsonCallSite,
    JsonConnection,
    JsonDatabase,
    JsonHost,
    JsonPool,
    JsonProcess,
    JsonProgram,
    PoolFields,
    ProcessFields,
)
from connmon.protocol.values import HolderIn, RowState, VerdictWord

Key: TypeAlias = tuple[Any, ...]
"""What identifies a row for as long as it lives: its table, then names or numbers."""

Table: TypeAlias = Literal[
    "program", "host", "database", "process", "pool", "connection", "site", "wait", "node"
]


# --- Rows that only the console has ---------------------------------------------------------------


class ProgramGroup(Struct, frozen=True, kw_only=True):
    """A program over all its hosts."""

    host: str
    """The only host, or how many hosts: "3 hosts"."""
    program: str
    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None
    verdict_reason: str | None
    connects_per_second: float | None
    hosts: int


class SummedPools(Struct, frozen=True, kw_only=True):
    """Several pools of one program on a host; None in a field in which they or their processes differ."""

    process: ProcessFields
    pool: PoolFields
    state: RowState | None
    figures: FigureFields
    verdict: VerdictWord | None
    verdict_reason: str | None
    connects_per_second: float | None


class PoolGroup(SummedPools, frozen=True, kw_only=True):
    """A pool over all processes of a program on a host."""

    processes: int


class DatabaseUser(SummedPools, frozen=True, kw_only=True):
    """A program with pools of one database."""

    @property
    def host(self) -> str:
        return self.process.host or ""

    @property
    def program(self) -> str:
        return self.process.program or ""


class WaitRow(Struct, frozen=True, kw_only=True):
    """Who blocks whom: a pool that somebody waits for, and one place that holds connections of it."""

    process: ProcessFields
    """None in a field in which the processes that have such a pool differ; likewise in `pool`."""
    pool: PoolFields
    state: RowState | None
    figures: FigureFields
    """Of all these pools."""
    verdict: VerdictWord | None
    verdict_reason: str | None
    blocker: str
    """The place: a call site, a thread, or a number of short holds."""
    call_site: str | None
    """This and the next fields are of the connection held longest."""
    holder: str | None
    holder_in: HolderIn | None
    holder_site: str | None
    stack: tuple[str, ...]
    server_id: int | None
    held_seconds: float | None
    holds: int
    """Connections that the place holds."""
    processes: int
    pids: tuple[int, ...]
    """Of the processes that hold them."""


class CallSiteRow(Struct, frozen=True, kw_only=True):
    """A call site, and how many wait for a connection anywhere in its program on its host."""

    site: JsonCallSite
    waiting_in_program: int
    summed_hosts: int = 1
    """How many hosts it is summed over; of several `site.host` is that number: "3 hosts"."""

    @property
    def verdict(self) -> VerdictWord | None:
        return self.site.verdict

    @property
    def verdict_reason(self) -> str | None:
        return self.site.verdict_reason


class NodeRow(Struct, frozen=True, kw_only=True):
    """A node of the cluster, as `connmon cluster-status` has it; None where the node did not answer."""

    node: str | None = None
    address: str | None = None
    role: str | None = None
    term: int | None = None
    applied: int | None = None
    lag: int | None = None
    stale_seconds: float | None = None
    processes: int | None = None
    consoles: int | None = None
    uptime_seconds: float | None = None
    version: str | None = None
    leader: str | None = None
    quorum: bool | None = None
    linked: tuple[str, ...] | None = None
    unlinked: tuple[str, ...] | None = None
    digest_version: int | None = None
    digest: str | None = None
    problems: tuple[str, ...] = ()
    problem: str | None = None
    """All problems in one line."""


RatedRow: TypeAlias = (
    JsonProgram | JsonHost | JsonDatabase | JsonProcess | JsonPool | ProgramGroup | PoolGroup | DatabaseUser
)
"""Rows with figures of pools, and with connects per second."""
FigureRow: TypeAlias = RatedRow | WaitRow
"""Rows with figures of pools."""
ProcessPart: TypeAlias = JsonProcess | JsonPool | JsonConnection | PoolGroup | DatabaseUser | WaitRow
"""Rows that belong to one process, or to several of one program."""
TableRow: TypeAlias = FigureRow | JsonConnection | CallSiteRow | NodeRow
KeyedRow: TypeAlias = tuple[Key, TableRow]


class Samples(NamedTuple):
    """The last minutes of one row, the oldest sample first; None: unknown at that moment."""

    rates: Sequence[float | None]
    """Checkouts per second."""
    counts: Sequence[float | None]
    """Open connections."""


class Trend(NamedTuple):
    """The samples of a row, as its table draws them."""

    samples: Samples
    number: int
    """Of the newest sample, counted from the start of the node or of the recording."""
    blocks: str
    """The characters for the smallest to the largest value."""


# --- What rows of several types have --------------------------------------------------------------


def program_and_host(row: TableRow) -> tuple[str | None, str | None]:
    """Return the names that a row has of a program and a host."""
    if isinstance(row, ProcessPart):
        return row.process.program, row.process.host
    if isinstance(row, CallSiteRow):
        return row.site.program, row.site.host
    if isinstance(row, JsonProgram | ProgramGroup):
        return row.program, row.host
    return None, row.host if isinstance(row, JsonHost) else None


def fields(row: Struct) -> Iterator[tuple[str, object]]:
    """Yield the name and the value of each field; those of a part stand in the row itself, as in JSON."""
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if isinstance(value, Struct):
            yield from fields(value)
        else:
            yield name, value


def node_rows(rows: Sequence[Mapping[str, Any]]) -> list[KeyedRow]:
    """Return the rows of cluster-status. Raises msgspec.ValidationError where they are not such rows."""
    nodes = msgspec.convert(rows, list[NodeRow])
    return [
        (
            ("node", node.node, node.address),
            msgspec.structs.replace(node, problem="; ".join(node.problems) or None),
        )
        for node in nodes
    ]

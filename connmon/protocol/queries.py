"""What a reader asks a node, and the answers that are not rows: status and history. Pure.

Structs are encoded as arrays. A new field goes to the end and has a default.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, Union

from msgspec import Meta, Struct

from connmon.protocol.rows import RowKey
from connmon.protocol.values import Count, Grouping, Name, NodeRole, Number, Seconds, Text


class Query(Struct, frozen=True, array_like=True, tag="query"):
    """Asks for the rows of one grouping that changed since the version the reader has.

    Groupings pool and connection are answered with the rows of the processes and pools
    that they belong to as well, since those identify them.
    """

    by: Grouping
    epoch: Annotated[str, Meta(max_length=64)] = ""
    """The epoch that `since` belongs to; another than the node's: everything is sent."""
    since: Count = 0
    host: Name | None = None
    program: Name | None = None
    instance: Annotated[str, Meta(max_length=64)] | None = None
    """These three narrow the answer, where not None, to the rows that belong to them."""


class StatusQuery(Struct, frozen=True, array_like=True, tag="status"):
    """Asks what a node has to say of itself."""

    digest_at: Count | None = None
    """The version of the state whose digest is wanted; the node waits a moment for it. None: no digest."""


class NodeStatus(Struct, frozen=True, array_like=True, tag="node-status"):
    """What a node says of itself."""

    service: str
    node: str
    software: str
    """The version of connmon that it runs."""
    role: NodeRole
    leader: str | None
    term: Count
    applied: Count
    """The index of the last log entry applied."""
    lag: Count
    """How many entries the leader had committed, when the node last heard of it, that are not applied."""
    quorum: bool
    stale: Seconds
    """Seconds since the node's replica last moved."""
    processes: Count
    """That report to this node."""
    consoles: Count
    """And readers that have asked it for rows."""
    uptime: Seconds
    linked: tuple[str, ...]
    """The other nodes of the group to which it has a link."""
    unlinked: tuple[str, ...]
    """And those to which it has none."""
    epoch: str
    version: Count
    """Of the state."""
    digest: str | None = None
    """Of the state as it was at the version asked for. None: not known."""


#: How many rows one question for their history can name, and how many samples it gets of each.
MOST_KEYS: Final = 256
MOST_SAMPLES: Final = 1_000

#: The key of the history of everything together.
EVERYTHING: Final[RowKey] = ("total",)


class HistoryQuery(Struct, frozen=True, array_like=True, tag="history"):
    """Asks for the last minutes of some rows, as this node has seen them in its replica."""

    keys: Annotated[tuple[RowKey, ...], Meta(max_length=MOST_KEYS)]
    """Of program, host, database and process rows, or `EVERYTHING`."""
    most: Annotated[int, Meta(ge=1, le=MOST_SAMPLES)] = MOST_SAMPLES
    """How many samples of each, the newest."""


class Series(Struct, frozen=True, array_like=True):
    """The samples of one row, the oldest first; the last of them is sample `History.number`."""

    key: RowKey
    rates: tuple[Number | None, ...]
    """Checkouts per second. None: not known at that time."""
    connections: tuple[Count | None, ...]


class History(Struct, frozen=True, array_like=True, tag="past"):
    """The answer to a question for history."""

    service: str
    node: str
    number: Count
    """How many samples the node has taken."""
    interval: Seconds
    """Between two of them."""
    series: tuple[Series, ...]
    """Of those keys that there is a history of, in the order in which they were asked for."""
    timeouts: tuple[tuple[RowKey, Count], ...]
    """Which rows had pool timeouts within `span`, and how many; whether asked for or not."""
    span: Seconds
    left_out: Count = 0
    """How many rows with timeouts are not among `timeouts`, since they are too many."""


class WaitsQuery(Struct, frozen=True, array_like=True, tag="waits"):
    """Asks for the pools that somebody waits for, or of which a connection has been held long.

    Answered by `rows`, always complete: these pools, the connections of each that have been held
    longest, and the processes that they belong to.
    """

    held: Seconds
    """From how long on that is long."""


class UsersQuery(Struct, frozen=True, array_like=True, tag="users"):
    """Asks for the programs that use one database: program rows that count its pools only.

    Answered by `rows`: all of them, or where nothing changed since the version that the reader
    has, none.
    """

    dialect: Name
    database_host: Name | None
    database_port: Count | None
    database: Text | None
    epoch: Annotated[str, Meta(max_length=64)] = ""
    since: Count = 0


RowsQuery: TypeAlias = Union[Query, WaitsQuery, UsersQuery]
"""What is answered by rows."""
Question: TypeAlias = Union[Query, StatusQuery, HistoryQuery, WaitsQuery, UsersQuery]
"""All that a reader may ask."""

"""The questions of a reader to a node, and the answers that are not rows: status and history. Pure.

Structs are encoded as arrays. A new field goes to the end and has a default.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, Union

from msgspec import Meta, Struct

from connmon.protocol.rows import RowKey
from connmon.protocol.values import Count, Grouping, Name, NodeRole, Number, Seconds, Text


class Query(Struct, frozen=True, array_like=True, tag="query"):
    """Asks for the rows of one grouping that changed since the version the reader has.

    The answers for pool and connection include the rows of their processes and pools, which identify them.
    """

    by: Grouping
    epoch: Annotated[str, Meta(max_length=64)] = ""
    """The epoch of `since`. If it is not the node's, the answer is complete."""
    since: Count = 0
    host: Name | None = None
    program: Name | None = None
    instance: Annotated[str, Meta(max_length=64)] | None = None
    """These three, if not None, narrow the answer to the rows that belong to them."""


class StatusQuery(Struct, frozen=True, array_like=True, tag="status"):
    """Asks a node for its status."""

    digest_at: Count | None = None
    """The version of the state to make a digest of; the node waits a moment for it. None: no digest."""


class NodeStatus(Struct, frozen=True, array_like=True, tag="node-status"):
    """The status of a node."""

    service: str
    node: str
    software: str
    """Its version of connmon."""
    role: NodeRole
    leader: str | None
    term: Count
    applied: Count
    """The index of the last log entry applied."""
    lag: Count
    """Entries that the leader had committed when the node last heard of it, and that are not applied here."""
    quorum: bool
    stale: Seconds
    """Seconds since the node's replica last moved."""
    processes: Count
    """Processes that report to this node."""
    consoles: Count
    """Readers that have asked it for rows."""
    uptime: Seconds
    linked: tuple[str, ...]
    """The other nodes of the group to which it has a peer link."""
    unlinked: tuple[str, ...]
    """The other nodes to which it has none."""
    epoch: str
    version: Count
    """The version of the state."""
    digest: str | None = None
    """The digest of the state at the version asked for. None: unknown."""


#: The most rows that one history query names, and the most samples of each.
MOST_KEYS: Final = 256
MOST_SAMPLES: Final = 1_000

#: The key of the history of the totals.
EVERYTHING: Final[RowKey] = ("total",)


class HistoryQuery(Struct, frozen=True, array_like=True, tag="history"):
    """Asks for the last minutes of some rows, as this node has sampled its replica."""

    keys: Annotated[tuple[RowKey, ...], Meta(max_length=MOST_KEYS)]
    """Keys of program, host, database and process rows, or `EVERYTHING`."""
    most: Annotated[int, Meta(ge=1, le=MOST_SAMPLES)] = MOST_SAMPLES
    """The number of samples of each row, the newest."""


class Series(Struct, frozen=True, array_like=True):
    """The samples of one row, the oldest first; the last one is sample `History.number`."""

    key: RowKey
    rates: tuple[Number | None, ...]
    """Checkouts per second. None: unknown at that time."""
    connections: tuple[Count | None, ...]


class History(Struct, frozen=True, array_like=True, tag="past"):
    """The answer to a history query."""

    service: str
    node: str
    number: Count
    """The number of samples that the node has taken."""
    interval: Seconds
    """Between two samples."""
    series: tuple[Series, ...]
    """Of the keys that have a history, in the order of the query."""
    timeouts: tuple[tuple[RowKey, Count], ...]
    """The rows that had pool timeouts within `span`, and how many; whether asked for or not."""
    span: Seconds
    left_out: Count = 0
    """Rows with timeouts that are not in `timeouts`, because they are too many."""


class WaitsQuery(Struct, frozen=True, array_like=True, tag="waits"):
    """Asks for the pools that somebody waits for, or of which a connection has been held long.

    The answer is `rows`, always complete: these pools, their connections held longest, and their processes.
    """

    held: Seconds
    """From this duration on, a hold is long."""


class UsersQuery(Struct, frozen=True, array_like=True, tag="users"):
    """Asks for the programs that use one database: program rows that count its pools only.

    The answer is `rows`: all of them, or none if nothing changed since the version that the reader has.
    """

    dialect: Name
    database_host: Name | None
    database_port: Count | None
    database: Text | None
    epoch: Annotated[str, Meta(max_length=64)] = ""
    since: Count = 0


RowsQuery: TypeAlias = Union[Query, WaitsQuery, UsersQuery]
"""Questions whose answer is rows."""
Question: TypeAlias = Union[Query, StatusQuery, HistoryQuery, WaitsQuery, UsersQuery]
"""All questions of a reader."""

"""What a process reports: itself, its pools, its connections and its call sites. Pure.

- Structs are encoded as arrays. A new field goes to the end and has a default.
- A report carries absolute totals and ages, never increments and never clock times: hosts' clocks differ, and
  repeating a report must be harmless.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from connmon.protocol.values import (
    LARGEST,
    ConnectionState,
    Count,
    Gauges,
    HolderIn,
    Instance,
    Integer,
    Name,
    Number,
    Peaks,
    Seconds,
    Text,
    Times,
    Totals,
)

#: How many pools and connections one report can tell of. They bound what a hostile one costs.
MOST_POOLS: Final = 10_000
MOST_CONNECTIONS: Final = 200_000
#: How many of its pools and connections a process reports one by one. The pools beyond are reported as
#: one sum for each database, the connections beyond are counted only: a report always fits on the wire.
POOLS_REPORTED: Final = 1_000
CONNECTIONS_REPORTED: Final = 100_000

#: How many lines of the application one report can tell of, and how many a process reports one by one.
MOST_SITES: Final = 1_000
SITES_REPORTED: Final = 64


class Process(Struct, frozen=True, array_like=True):
    """Who reports. `instance` is random, new for every process and after every fork."""

    host: Name
    program: Name
    pid: Count
    ppid: Count
    user: Name | None
    command: Text | None
    """The command line, secrets masked."""
    started: Seconds | None
    """Seconds since the process started, when this was sent."""
    container: Name | None = None
    """The id of the container that it runs in. None: in none, as far as can be seen from inside."""


class Usage(Struct, frozen=True, array_like=True):
    """What the process takes of its host, sampled now and then."""

    cpu_percent: Number | None = None
    rss_bytes: Count | None = None
    threads: Count | None = None
    open_files: Count | None = None


class ServerAddress(NamedTuple):
    """Where a database server is; see the module `dbaddress`. Both None: not known."""

    host: Name | None
    port: Count | None


class PoolInfo(Struct, frozen=True, array_like=True):
    """What a pool is; only where its server is may become known later."""

    url: Text
    """The engine's URL without password and query."""
    dialect: Name
    database_host: Name | None
    """A socket's path begins with "/". Several servers: HOST:PORT,HOST:PORT. None: a file, or not known."""
    database_port: Count | None
    database: Text | None
    pool_class: Name
    pool_size: Count | None
    """None: a pool class without a size."""
    max_overflow: Integer | None
    """-1: no limit. None: a pool class without overflow."""
    timeout: Seconds | None
    """How long a checkout waits before it fails. None: it never waits."""
    pooler: bool | None = None
    """True: a pooler (PgBouncer) stands between, as its session ids show. None: none that is known of."""

    @property
    def several(self) -> bool:
        """Whether it stands for several pools of a database, which have no row each."""
        return not self.pool_class


class PoolReport(Struct, frozen=True, array_like=True):
    """One pool's present, totals and peaks; all of them absolute.

    A pool whose engine is gone is reported as closed once more; its totals then go on
    in a pool report of the same database with `gauges.pools == 0` (the pool's `remains`),
    so that no total ever goes back.
    """

    number: Count
    """Which pool of this process."""
    info: PoolInfo | None
    """None: as reported before."""
    gauges: Gauges
    totals: Totals
    peaks: Peaks
    wait: Seconds | None = None
    """How long the one who waits longest has waited by now. None: nobody waits."""
    held: Seconds | None = None
    """How long the connection held longest has been held by now. None: none is held."""
    times: Times = Times()
    """Where `info` is given all of them; else those counts that have changed since the report that this
    one builds on (absolute, as everything)."""
    left_out: Count = 0
    """This is the sum of so many pools of one database, which have no report each. 0: it is one pool."""
    moved: bool = False
    """Some of its totals and times were in another pool's report before, or are in another's now: that is
    no sign that something has just happened."""


class Connection(Struct, frozen=True, array_like=True):
    """One physical connection."""

    number: Count
    """Which connection of this process; never used again for another one."""
    pool: Count
    server_id: Integer | None
    """MySQL thread id or PostgreSQL backend pid. None: not known; a pooler's are not the server's."""
    state: ConnectionState
    age: Seconds
    """Of the session: where the driver has connected again within the connection, since that was seen."""
    held: Seconds | None
    """How long its holder has had it. None: nobody has."""
    holder: Name | None
    """The thread, task or greenlet that checked it out."""
    call_site: Text | None = None
    stack: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    server: ServerAddress | None = None
    """Where it is connected. None: where its pool is."""
    holder_in: HolderIn | None = None
    """None: it was not looked at, or cannot be."""
    holder_site: Text | None = None
    """The line of the application where its holder is now; `call_site` is where it was taken."""


class SiteReport(Struct, frozen=True, array_like=True):
    """One line of the application that takes connections from one pool; what it counts is absolute.

    Where checkouts are many, only a sample of them is known by its line. What is counted here is then of the
    sample, and `share` says which part of all checkouts that is.
    """

    pool: Count
    """0: of several pools."""
    call_site: Text
    """"(other)": all lines beyond those that are reported one by one."""
    held: Count = 0
    """Connections that it holds now."""
    longest: Seconds | None = None
    """How long it has had the one of them held longest. None: it holds none."""
    waiting: Count = 0
    """Who waits for a connection in this line now."""
    holds: Count = 0
    """Holds that have ended."""
    hold_ms: Count = 0
    """Milliseconds that these took together."""
    usual: Seconds | None = None
    """What 95 % of its holds took at most, of the latest ones. None: none has ended yet."""
    share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    """The part of all the pool's checkouts whose line is known; 1: each."""


class Report(Struct, frozen=True, array_like=True, tag="report"):
    """What a process tells: everything (`base` 0), or what changed since report `base`.

    Sequence numbers grow by one from 1 for each report of an instance. A node that does not
    have report `base` as the instance's latest asks for a full one; a report that it already
    has is acknowledged and ignored.
    """

    instance: Instance
    sequence: Annotated[int, Meta(ge=1, le=LARGEST)]
    base: Count
    interval: Seconds
    """Seconds since report `sequence - 1` was made, by the process's own monotonic clock."""
    peaks: Peaks
    """Of the process as a whole."""
    pools: Annotated[tuple[PoolReport, ...], Meta(max_length=MOST_POOLS)] = ()
    closed_pools: Annotated[tuple[Count, ...], Meta(max_length=MOST_POOLS)] = ()
    connections: Annotated[tuple[Connection, ...], Meta(max_length=MOST_CONNECTIONS)] = ()
    closed_connections: Annotated[tuple[Count, ...], Meta(max_length=MOST_CONNECTIONS)] = ()
    process: Process | None = None
    """Given in every full report."""
    usage: Usage | None = None
    """None: as reported before."""
    left_out: Count = 0
    """Open connections that no report tells of one by one, since they are too many."""
    sites: Annotated[tuple[SiteReport, ...], Meta(max_length=MOST_SITES)] = ()
    """In a full report all; else those that have changed. Those of a closed pool end with it."""

    @property
    def full(self) -> bool:
        return self.base == 0

"""What a process reports: itself, its pools, its connections and its call sites. Pure.

- Structs are encoded as arrays. A new field goes to the end and has a default.
- A report carries absolute totals and ages, no increments and no clock times: hosts' clocks differ, and
  repeating a report must be harmless.
- A call site is a `site` in the names of the wire's structs and fields, as in the tag of its rows and in the
  option `--by site`: these are the contract with other versions and with users.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

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
    Where,
)

#: How many pools and connections one report can have: they bound what a hostile report costs.
MOST_POOLS: Final = 10_000
MOST_CONNECTIONS: Final = 200_000
#: How many of its pools and connections a process reports one by one. Further pools are reported as one sum
#: per database, further connections are only counted: a report always fits on the wire.
POOLS_REPORTED: Final = 1_000
CONNECTIONS_REPORTED: Final = 100_000

#: How many call sites one report can have, and how many a process reports one by one.
MOST_SITES: Final = 1_000
SITES_REPORTED: Final = 64


class Process(Struct, frozen=True, array_like=True):
    """The process that reports. Its `instance` is random, new for every process and after every fork."""

    host: Name
    program: Name
    pid: Count
    ppid: Count
    user: Name | None
    command: Text | None
    """The command line, secrets masked."""
    started: Seconds | None
    """Seconds from the start of the process until this was sent."""
    container: Name | None = None
    """The id of its container. None: in none, as far as can be seen from inside."""


class Usage(Struct, frozen=True, array_like=True):
    """What the process takes of its host, sampled now and then. None: unknown."""

    cpu_percent: Number | None = None
    rss_bytes: Count | None = None
    threads: Count | None = None
    open_files: Count | None = None


class ServerAddress(NamedTuple):
    """Where a database server is; see the module `database_address`. Both None: unknown."""

    host: Name | None
    port: Count | None


class PoolInfo(Struct, frozen=True, array_like=True):
    """What identifies a pool. Its server may become known later; the rest does not change."""

    url: Text
    """The engine's URL without password and query."""
    dialect: Name
    database_host: Name | None
    """A socket's path begins with "/". Several servers: HOST:PORT,HOST:PORT. None: a file, or unknown."""
    database_port: Count | None
    database: Text | None
    pool_class: Name
    pool_size: Count | None
    """None: a pool class without a size."""
    max_overflow: Integer | None
    """-1: no limit. None: a pool class without overflow."""
    timeout: Seconds | None
    """How many seconds a checkout waits before it fails. None: it never waits."""
    pooler: bool | None = None
    """True: its connections go through a pooler (PgBouncer), as the session ids show. None: none is known."""

    @property
    def several(self) -> bool:
        """Whether it stands for several pools of a database, which have no row each."""
        return not self.pool_class


class PoolReport(Struct, frozen=True, array_like=True):
    """One pool's gauges, totals and peaks; all of them absolute.

    A pool whose engine is gone is reported as closed; its totals then go on in a pool report of the same
    database with `gauges.pools == 0` (the remains of closed pools), so that no total goes back.
    """

    number: Count
    """Which pool of this process."""
    info: PoolInfo | None
    """None: as reported before."""
    gauges: Gauges
    totals: Totals
    peaks: Peaks
    wait: Seconds | None = None
    """For how many seconds the longest waiter has waited by now. None: nobody waits."""
    held: Seconds | None = None
    """For how many seconds the connection held longest has been held by now. None: none is held."""
    times: Times = Times()
    """With `info` all counts; else those changed since the report that this one builds on (absolute too)."""
    left_out: Count = 0
    """Of how many pools of one database, without reports of their own, it is the sum. 0: it is one pool."""
    moved: bool = False
    """Some of its totals and times were in another pool's report before, or are in another's now: their
    change is no sign that something has just happened."""


class Connection(Struct, frozen=True, array_like=True):
    """One physical connection."""

    number: Count
    """Which connection of this process; never reused for another one."""
    pool: Count
    server_id: Integer | None
    """MySQL thread id or PostgreSQL backend pid. None: unknown. Behind a pooler it is the pooler's."""
    state: ConnectionState
    age: Seconds
    """Of the session: a driver that reconnects within the connection begins a new one."""
    held: Seconds | None
    """For how many seconds its holder has had it. None: nobody holds it."""
    holder: Name | None
    """The name of the thread, task or greenlet that checked it out."""
    call_site: Text | None = None
    stack: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    server: ServerAddress | None = None
    """The server that it is connected to. None: its pool's."""
    holder_in: HolderIn | None = None
    """None: nobody looked, or it cannot be seen."""
    holder_site: Text | None = None
    """The line of the application where its holder is now; `call_site` is where the connection was taken."""


class HoldProfile(Struct, frozen=True, array_like=True, gc=False):
    """Where the connection time of one call site goes; of a process all of it is absolute.

    The `held_ms` of a pool's call sites sum to the time that its connections were held.
    """

    holds: Count = 0
    """Holds that have ended: counted, or estimated where only a sample of the checkouts is noted."""
    held_ms: Count = 0
    """Milliseconds of its ended and present holds together."""
    waited_ms: Count = 0
    """Milliseconds of ended and present waits for a connection at this call site."""
    caused_ms: Count = 0
    """Its part of the milliseconds that others waited for the pool while it held connections."""
    where: Where = {}
    """`held_ms` by where the holders were, as far as somebody looked; the rest is not known."""


NO_PROFILE: Final = HoldProfile()


def excess(a: HoldProfile, b: HoldProfile) -> HoldProfile:
    """Return by how much each count of `a` is above that of `b`."""
    before = b.where
    return HoldProfile(
        holds=max(a.holds - b.holds, 0),
        held_ms=max(a.held_ms - b.held_ms, 0),
        waited_ms=max(a.waited_ms - b.waited_ms, 0),
        caused_ms=max(a.caused_ms - b.caused_ms, 0),
        where={
            label: ms - before.get(label, 0) for label, ms in a.where.items() if ms > before.get(label, 0)
        },
    )


class SiteReport(Struct, frozen=True, array_like=True):
    """One call site that takes connections from one pool; its counts are absolute.

    Where checkouts are many, only a sample of them is attributed to call sites. The counts are then of the
    sample, and `share` is the sample's part of all checkouts.
    """

    pool: Count
    """0: of several pools."""
    call_site: Text
    """"(other)": all call sites that are not reported one by one."""
    held: Count = 0
    """Connections that it holds now. Nodes do not use this and `longest`: they look at the connections."""
    longest: Seconds | None = None
    """For how many seconds it has held the one held longest. None: it holds none."""
    waiting: Count = 0
    """How many wait for a connection here now."""
    holds: Count = 0
    """Holds that have ended."""
    hold_ms: Count = 0
    """Milliseconds of these holds together."""
    usual: Seconds | None = None
    """Seconds that 95 % of its latest holds took at most. None: none has ended yet."""
    share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    """The part of the pool's checkouts whose call site is known; 1: all."""
    profile: HoldProfile | None = None
    """None: the process does not know it (an earlier version)."""
    stack: Annotated[tuple[Text, ...], Meta(max_length=16)] = ()
    """A recent stack of a holder, the innermost frame first. Empty: as reported before, or none."""


SiteReports: TypeAlias = Annotated[tuple[SiteReport, ...], Meta(max_length=MOST_SITES)]
_site_reports: Final[msgspec.msgpack.Decoder[tuple[SiteReport, ...]]] = msgspec.msgpack.Decoder(SiteReports)
_encoder: Final = msgspec.msgpack.Encoder()
_NO_SITES: Final = msgspec.Raw(msgspec.msgpack.encode(()))


class Report(Struct, frozen=True, array_like=True, tag="report"):
    """What a process reports: everything (`base` 0), or what changed since report `base`.

    Sequence numbers grow by one from 1 for each report of an instance. A node whose latest report of the
    instance is not `base` asks for a full one; a report that it already has is acknowledged and ignored.
    """

    instance: Instance
    sequence: Annotated[int, Meta(ge=1, le=LARGEST)]
    base: Count
    interval: Seconds
    """Seconds since report `sequence - 1`, by the process's own monotonic clock."""
    peaks: Peaks
    """Of the process as a whole."""
    pools: Annotated[tuple[PoolReport, ...], Meta(max_length=MOST_POOLS)] = ()
    closed_pools: Annotated[tuple[Count, ...], Meta(max_length=MOST_POOLS)] = ()
    connections: Annotated[tuple[Connection, ...], Meta(max_length=MOST_CONNECTIONS)] = ()
    closed_connections: Annotated[tuple[Count, ...], Meta(max_length=MOST_CONNECTIONS)] = ()
    process: Process | None = None
    """Set in every full report."""
    usage: Usage | None = None
    """None: as reported before."""
    left_out: Count = 0
    """Open connections that are not reported one by one, since there are too many."""
    sites: SiteReports = ()
    """In a full report all; else the changed ones. The call sites of a closed pool end with it."""

    @property
    def full(self) -> bool:
        return self.base == 0

    def site_reports(self) -> tuple[SiteReport, ...]:
        """Return `sites`."""
        return self.sites


class PackedReport(Report, frozen=True, array_like=True, tag="report", eq=False):
    """A report as nodes have it on its way to the state: the call sites are still in the bytes of the wire.

    Nobody needs them before, and decoding and encoding them takes longer than all of the rest.
    """

    sites: msgspec.Raw = _NO_SITES  # type: ignore[assignment]

    def checked(self) -> PackedReport:
        """Return it without elements of a newer version in the call sites, which others might not skip.

        Raises msgspec.MsgspecError, ValueError or RecursionError where they make no sense.
        """
        if self.sites == _NO_SITES:
            return self
        return replace(self, sites=msgspec.Raw(_encoder.encode(_site_reports.decode(self.sites))))

    def __eq__(self, other: object) -> bool:
        """Whether it is the same report, packed or not."""
        if not isinstance(other, Report):
            return NotImplemented
        names = [name for name in self.__struct_fields__ if name != "sites"]
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and self.site_reports() == other.site_reports()

    __hash__ = None  # type: ignore[assignment]

    def site_reports(self) -> tuple[SiteReport, ...]:
        """Return `sites`; none where they make no sense."""
        try:
            return _site_reports.decode(self.sites)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return ()

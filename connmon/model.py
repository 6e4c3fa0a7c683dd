"""The vocabulary: what processes report, what nodes replicate, what readers are told.

Rules kept here:

- Everything is frozen, typed and bounded, so that decoding is validating: a number out of
  range or a text too long never gets past the wire (`msgspec` raises).
- Structs are encoded as arrays. A new field goes to the end and has a default.
- A report carries absolute totals and ages, never increments and never clock times, because
  hosts' clocks differ and because repeating a report must be harmless.
- A row carries times of the replica's own clock (`*_since`, `reported`), so that a row changes
  only when something happened. What is over (a start, a report) was so long ago: the reader subtracts it
  from the `clock` that comes with it, and adds for how long that has stood still (`stale`). What may have
  ended since (a hold, a wait) lasted until the last report: it is subtracted from `reported`.

Units: seconds as floats, sizes in bytes. A value that is not known is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import add, sub
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, TypeVar, Union

from msgspec import Meta, Struct

from connmon import histogram

#: The largest integer that JSON readers keep exact; no count can pass it.
LARGEST = 2**53 - 1

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

Count: TypeAlias = Annotated[int, Meta(ge=0, le=LARGEST)]
Integer: TypeAlias = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e12)]
Number: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e15)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]
Text: TypeAlias = Annotated[str, Meta(max_length=2048)]
Instance: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]

IDLE: Final = "idle"
CHECKED_OUT: Final = "checked_out"
DETACHED: Final = "detached"
ConnectionState: TypeAlias = Literal["idle", "checked_out", "detached"]

CONNECTED: Final = "connected"
LOST: Final = "lost"
GONE: Final = "gone"
RowState: TypeAlias = Literal["connected", "lost", "gone"]

HolderIn: TypeAlias = Literal["database", "application", "waiting", "elsewhere", "ended"]
"""Where the holder of a connection was when it was last looked at.

`database`: the driver is on its stack, and it works with this connection as far as can be seen;
`application`: it is in work of its own, in the function that took the connection or below it;
`waiting`: as that, and it waits until another connection of a pool comes back;
`elsewhere`: that function is not on its stack any more; `ended`: the thread, task or greenlet has ended.
Where the function is not known, `application` stands for `elsewhere` too.
"""

VerdictWord: TypeAlias = Literal[
    "LEAK", "BLOCKED", "SATURATED", "TIMEOUTS", "LOST", "SLOW CONNECT", "OVERCOMMIT"
]  # fmt: skip
"""What can be wrong; see the module `verdicts`."""

NodeRole: TypeAlias = Literal["leader", "follower", "candidate"]

Grouping: TypeAlias = Literal["program", "host", "database", "process", "pool", "connection", "site"]
GROUPINGS: tuple[Grouping, ...] = (
    "program", "host", "database", "process", "pool", "connection", "site",
)  # fmt: skip


class Gauges(NamedTuple):
    """What there is now, of a pool or of anything that pools add up to."""

    pools: Count = 0
    capacity: Count = 0
    """pool_size + max_overflow, summed over the pools that have a limit."""
    unbounded: Count = 0
    """Pools without a limit (NullPool, max_overflow=-1); where there is one, capacity is not known."""
    connections: Count = 0
    """Open connections to the database: idle + checked out + detached."""
    checked_out: Count = 0
    overflow: Count = 0
    """Open, attached connections beyond pool_size, as SQLAlchemy counts them: none where that is no limit
    (QueuePool's pool_size=0)."""
    detached: Count = 0
    waiting: Count = 0

    @property
    def idle(self) -> int:
        """Open connections that nobody holds."""
        return max(0, self.connections - self.checked_out - self.detached)


class Totals(NamedTuple):
    """What has happened since the beginning, of a pool or of anything that pools add up to.

    Once quiet, connects - closes = connections, and checkouts - checkins = checked_out +
    detached: a checkin is the end of a checkout, however it ended (given back, invalidated,
    closed while detached, or collected as garbage). Connections inherited through a fork are
    in neither connects nor closes.

    The last three are milliseconds, of what `Times` has the histograms of.
    """

    connects: Count = 0
    closes: Count = 0
    checkouts: Count = 0
    checkins: Count = 0
    invalidations: Count = 0
    timeouts: Count = 0
    connect_errors: Count = 0
    wait_ms: Count = 0
    hold_ms: Count = 0
    connect_ms: Count = 0


class Peaks(NamedTuple):
    """The largest values since the last acknowledged report, the present included."""

    connections: Count = 0
    checked_out: Count = 0
    waiting: Count = 0
    longest_wait: Seconds = 0.0


BucketNumber: TypeAlias = Annotated[int, Meta(ge=0, lt=histogram.BUCKETS)]
BucketCount: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST)]
Buckets: TypeAlias = Annotated[Mapping[BucketNumber, BucketCount], Meta(max_length=histogram.BUCKETS)]


class Times(NamedTuple):
    """How long things took, since the beginning; see the module `histogram`."""

    waits: Buckets = histogram.EMPTY
    """Waits that have ended, by a connection, a timeout or a cancellation. Who got a connection at
    once has not waited."""
    holds: Buckets = histogram.EMPTY
    """From checkout to checkin, however that came about."""
    connects: Buckets = histogram.EMPTY
    """Making a connection; those that failed are not in here."""


def changed_times(now: Times, before: Times) -> Times:
    """Return those counts of `now` that are others than they were."""
    return Times(*map(histogram.changed, now, before))


Vector = TypeVar("Vector", Gauges, Totals)


def plus(a: Vector, b: Vector) -> Vector:
    """Return a + b, field by field."""
    return type(a)(*map(add, a, b))


def minus(a: Vector, b: Vector) -> Vector:
    """Return a - b, field by field."""
    return type(a)(*map(sub, a, b))


# --- What a process reports ---------------------------------------------------------------


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


# --- What nodes replicate -----------------------------------------------------------------


class Departure(Struct, frozen=True, array_like=True):
    """The connection on which `instance` sent `sequence` as its last report has ended.

    It counts only if no later report of the instance was applied since, over any node.
    """

    instance: Instance
    sequence: Count


class Tick(Struct, frozen=True, array_like=True):
    """The leader's word that time has passed. Only this moves the replica's clock."""

    step: Annotated[float, Meta(ge=0.0, le=2.0)]
    """Seconds; bounded, so that a leader that slept does not expire the world on waking."""
    lease: Annotated[float, Meta(gt=0.0, le=86400.0)]


class Batch(Struct, frozen=True, array_like=True):
    """One replicated command: what a node heard in the last moment, in order.

    `boot` is random per start of the node and `number` grows by one from 1, so a batch that
    was proposed twice is applied once.
    """

    node: Name
    boot: Instance
    number: Annotated[int, Meta(ge=1, le=LARGEST)]
    tick: Tick | None = None
    reports: tuple[Report, ...] = ()
    departures: tuple[Departure, ...] = ()


# --- What readers are told ----------------------------------------------------------------


class Quantiles(NamedTuple):
    """What half, 95 % and 99 % of something took at most, lately, within `histogram.ERROR`. None: there was
    nothing."""

    p50: Seconds | None = None
    p95: Seconds | None = None
    p99: Seconds | None = None


class Verdict(Struct, frozen=True, array_like=True):
    """One thing that is wrong with a row."""

    word: VerdictWord
    reason: str
    """One line without the word: what was seen, in figures as of the last report, and what to do."""


class Figures(Struct, frozen=True, array_like=True):
    """The numbers of one row, whatever it groups."""

    processes: Count
    lost_processes: Count
    gauges: Gauges
    totals: Totals
    max_processes: Count
    max_connections: Count
    max_checked_out: Count
    max_waiting: Count
    longest_wait: Seconds
    """The longest wait that the latest reports tell of, those that have ended included."""
    waiting_since: float | None
    """By the replica's clock, as all times of rows; may be negative: before that clock began. `reported`
    minus this is how long somebody had waited at the last report of the process, and no more is known."""
    held_since: float | None
    """The same of the connection held longest. (Of several processes each is taken as of its own report.)"""
    checkouts_per_second: Number | None
    """Between the last two reports of each process. None: not known, nobody has sent a second one yet."""
    reported: Seconds | None
    """When the latest report was applied."""
    waits: Quantiles = Quantiles()
    """Of those that ended in the last one to two minutes, as the two that follow; see `Times`."""
    holds: Quantiles = Quantiles()
    connects: Quantiles = Quantiles()
    left_out: Count = 0
    """Pools and connections without a row of their own, since a limit leaves them out."""
    verdicts: tuple[Verdict, ...] = ()
    """What is wrong, the gravest first. Of what sums pools: what is wrong with its gravest pool."""
    recent_timeouts: Count = 0
    """Checkouts that gave up within the last one to two minutes."""

    @property
    def known(self) -> bool:
        """Whether the present is known: not where there are processes, and all of them are lost."""
        return self.processes > 0 or not self.lost_processes


class ProgramRow(Struct, frozen=True, array_like=True, tag="program"):
    host: str
    program: str
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("program", self.host, self.program)


class HostRow(Struct, frozen=True, array_like=True, tag="host"):
    host: str
    programs: int
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("host", self.host)


class DatabaseRow(Struct, frozen=True, array_like=True, tag="database"):
    dialect: str
    database_host: str | None
    database_port: int | None
    database: str | None
    programs: int
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return database_key(self)


class ProcessRow(Struct, frozen=True, array_like=True, tag="process"):
    instance: str
    node: str
    """The node that it reports to."""
    process: Process
    started: float | None
    """By the replica's clock; may be negative: before the replica's clock began."""
    usage: Usage
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("process", self.instance)


class PoolRow(Struct, frozen=True, array_like=True, tag="pool"):
    instance: str
    number: int
    info: PoolInfo
    state: RowState
    figures: Figures

    @property
    def key(self) -> RowKey:
        return ("pool", self.instance, self.number)


class ConnectionRow(Struct, frozen=True, array_like=True, tag="connection"):
    instance: str
    number: int
    pool: int
    server_id: int | None
    state: ConnectionState
    opened: float
    """By the replica's clock; may be negative."""
    held_since: float | None
    """The same. How long it was held is known as of its process's last report, `Figures.reported`."""
    holder: str | None
    call_site: str | None
    stack: tuple[str, ...]
    server: ServerAddress | None = None
    """Where it is connected. None: where its pool is."""
    holder_in: HolderIn | None = None
    holder_site: str | None = None
    verdict: VerdictWord | None = None
    """LEAK or BLOCKED, where it is this connection that is."""

    @property
    def key(self) -> RowKey:
        return ("connection", self.instance, self.number)


class SiteRow(Struct, frozen=True, array_like=True, tag="site"):
    """One line of the application: the sum over the processes of one program on one host."""

    host: str
    program: str
    call_site: str
    processes: Count
    """Those that have reported this line, and are not lost."""
    held: Count
    in_database: Count
    """Of these, connections whose holder was in the database when it was last looked at."""
    held_since: float | None
    """`reported` minus this is how long the connection held longest had been held at the last report."""
    waiting: Count
    holds: Count
    """Holds that have ended."""
    hold_ms: Count
    usual: Seconds | None
    """The largest of the processes' `SiteReport.usual`."""
    estimated: bool
    """Whether only a sample of the checkouts is known by its line."""
    reported: Seconds | None
    verdict: VerdictWord | None = None
    """LEAK or BLOCKED, where that is of a connection that this line took; SATURATED, where it holds most of
    what is checked out of a pool that is."""
    reason: str | None = None
    """Of the verdict, one line."""

    @property
    def key(self) -> RowKey:
        return ("site", self.host, self.program, self.call_site)


Row: TypeAlias = Union[ProgramRow, HostRow, DatabaseRow, ProcessRow, PoolRow, ConnectionRow, SiteRow]
RowKey: TypeAlias = tuple[Union[str, int, None], ...]
"""The row's table, then what identifies it there."""


def database_key(where: DatabaseRow | PoolInfo) -> RowKey:
    """Return the key of the database row that a pool belongs to."""
    return (
        "database", where.dialect, where.database_host, where.database_port, where.database,
    )  # fmt: skip


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


class Rows(Struct, frozen=True, array_like=True, tag="rows"):
    """The answer to a query, in one or several frames; `more` says that another follows.

    The header (everything but rows, removed and more) is the same in all frames of an answer.
    """

    service: str
    node: str
    leader: str | None
    quorum: bool
    stale: Seconds
    """Seconds since the node's replica last moved."""
    epoch: str
    version: Count
    clock: Seconds
    complete: bool
    """The rows are all there are, and replace what the reader has."""
    hosts: Count
    programs: Count
    totals: Figures
    rows: tuple[Row, ...] = ()
    removed: tuple[RowKey, ...] = ()
    more: bool = False
    left_out: Count = 0
    """Rows that would have been in the answer to `waits`, but for its limits."""
    verdicts: tuple[tuple[VerdictWord, Count], ...] = ()
    """How many programs of the fleet have each verdict as their gravest, the gravest first."""


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


# --- What else readers ask for ------------------------------------------------------------

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

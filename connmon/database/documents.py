"""The documents of `connmon whois` and `connmon reconcile`: their JSON contract. Pure.

JSON, CSV and table are made of them. Rows of snapshots in them are typed, and become flat dicts with the keys
of their grouping (`connmon.protocol.document`) where they are printed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

from connmon.protocol.document import JsonConnection, JsonHead, cells
from connmon.protocol.values import HolderIn, VerdictWord


class Header(TypedDict):
    """Who answered, and of when its replica is."""

    service: str
    node: str
    leader: str | None
    quorum: bool
    stale_seconds: float


class LookHeader(Header, total=False):
    left_out: int | None
    """Pools and connections of the service that limits leave out. None: none."""


def look_header(head: JsonHead) -> LookHeader:
    """Return the header of a document that is made of the node's answer."""
    return {
        "service": head.service,
        "node": head.node,
        "leader": head.leader,
        "quorum": head.quorum,
        "stale_seconds": head.stale_seconds,
        "left_out": head.totals.figures.left_out,
    }


# --- Sessions -----------------------------------------------------------------------------


class SessionInfo(TypedDict):
    """The server's words about a session; all None: the session is not in its list."""

    client_host: str | None
    client_port: int | None
    user: str | None
    database: str | None
    application: str | None
    state: str | None
    state_seconds: float | None


class SessionOwner(TypedDict):
    """The reported connection that has a session; all None: no process reports it."""

    host: str | None
    program: str | None
    pid: int | None
    instance: str | None
    connection: int | None
    held_seconds: float | None
    holder: str | None
    holder_in: HolderIn | None
    holder_site: str | None
    call_site: str | None
    stack: list[str] | None
    verdict: VerdictWord | None


class LockSession(SessionInfo, SessionOwner):
    """A session that waits for a lock or blocks one."""

    server_id: int
    """0: a transaction without a session."""


class BlockedSession(LockSession):
    blocked_by: list[int] | None
    """The sessions that it waits for, a root last. None: not known."""


class RootOrNot(LockSession):
    root: bool
    """It blocks others and waits for nobody."""


class BlockingSession(RootOrNot):
    blocks: list[int]
    """The sessions that wait for it, also through others."""


# --- whois --------------------------------------------------------------------------------


class WhoisLocks(TypedDict):
    """What a server that was asked says of a session; all None: no server was asked."""

    session: SessionInfo | None
    blocked_by: list[int] | None
    blockers: list[RootOrNot] | None
    blocking_problem: str | None
    """Why `blocked_by` is incomplete."""
    blocks: list[int] | None
    blocked: list[LockSession] | None
    blocks_problem: str | None


class WhoisRow(NamedTuple):
    """A connection that has the session; in JSON the other fields follow its own keys."""

    connection: JsonConnection
    database_user: str | None
    """The user that the pool's URL logs in with. None: the URL does not say."""
    pool_verdict: VerdictWord | None
    """The verdict of its pool."""
    pool_verdict_reason: str | None

    def cells(self) -> dict[str, Any]:
        """Return the row as a flat dict, as in JSON."""
        return {
            **cells(self.connection),
            "database_user": self.database_user,
            "pool_verdict": self.pool_verdict,
            "pool_verdict_reason": self.pool_verdict_reason,
        }


class Whois(Header, WhoisLocks):
    server_id: int
    database: str | None
    rows: list[WhoisRow]


# --- reconcile ----------------------------------------------------------------------------


class ServerDocument(TypedDict):
    """The server that was asked, and its limit of connections."""

    dialect: str
    host: str | None
    port: int | None
    version: str
    max_connections: int
    reserved_connections: int
    used_connections: int
    headroom: int
    """Connections that accounts without privileges can still open."""
    hidden_sessions: int


class ProgramSessions(TypedDict):
    """The sessions of one program on one host, by the state of their connections."""

    host: str | None
    program: str | None
    sessions: int
    checked_out: int
    idle: int
    detached: int
    lost: int
    capacity: int | None
    """None: a pool has no limit."""


class UnownedSession(SessionInfo):
    id: int
    age_seconds: float | None


class OtherServer(TypedDict):
    """A server that applications name and that was not compared."""

    server: str
    pools: int
    connections: int
    pooler: bool


class Reconcile(LookHeader):
    server: ServerDocument
    sessions: int
    accounted_sessions: int
    shared_sessions: int
    unowned_sessions: int
    unsettled_sessions: int
    missing_connections: int
    connections: int
    connections_without_id: int
    connections_through_pooler: int
    unknown_server_connections: int
    pools: int
    capacity: int | None
    """None: not known, because of unlimited, lost or pooled pools."""
    limited_capacity: int
    unlimited_pools: int
    lost_pools: int
    pooled_pools: int
    capacity_headroom: int | None
    programs: list[ProgramSessions]
    unowned: list[UnownedSession]
    missing: list[JsonConnection]
    other_servers: list[OtherServer]
    blocked: list[BlockedSession]
    blockers: list[BlockingSession]
    blocking_problem: str | None

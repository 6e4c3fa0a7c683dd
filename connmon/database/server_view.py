"""What a database server says of itself: its sessions, its limits, and where it listens. Pure."""

from __future__ import annotations

from typing import NamedTuple

from connmon.database_address import DatabaseServer


class Session(NamedTuple):
    """One client session, as the server lists it."""

    id: int
    user: str | None
    client_host: str | None
    """None: by a local socket, or the account may not see it."""
    client_port: int | None
    database: str | None
    state: str | None
    """As the server says it: Sleep, Query; idle, active, idle in transaction."""
    state_seconds: float | None
    application: str | None = None
    """The name that the client gave itself."""
    age_seconds: float | None = None
    """None: the server does not tell."""


class Listening(NamedTuple):
    """Where the server says that it listens, and how it was reached. Hosts as they are compared."""

    hostname: str | None = None
    """What it calls the host that it runs on."""
    port: int | None = None
    """None: not known, or it listens on none."""
    sockets: tuple[DatabaseServer, ...] | None = None
    """Its Unix sockets. None: not known."""
    addresses: tuple[str, ...] = ()
    """Addresses and names that it was given to listen on; * and the like mean all."""
    reached: DatabaseServer | None = None
    """The address and port at which the session that asks has reached it. None: not known, or by a socket."""


class ServerView(NamedTuple):
    """What the server says, without the session that asks."""

    dialect: str
    server: DatabaseServer
    version: str
    uptime_seconds: float | None
    max_connections: int
    reserved_connections: int
    """Those of them that only administrators get."""
    used_connections: int
    """How many count against the limit now, the session that asks included."""
    sessions: tuple[Session, ...]
    hidden_sessions: int
    """How many more there are, that the account may not see."""
    listening: Listening = Listening()

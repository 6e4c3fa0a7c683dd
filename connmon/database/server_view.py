"""The server's view of itself: its sessions, its limits, and where it listens. Pure."""

from __future__ import annotations

from typing import NamedTuple

from connmon.database_address import DatabaseServer


class Session(NamedTuple):
    """One client session in the server's list."""

    id: int
    user: str | None
    client_host: str | None
    """None: by a local socket, or hidden from the account."""
    client_port: int | None
    database: str | None
    state: str | None
    """In the server's words: Sleep, Query; idle, active, idle in transaction."""
    state_seconds: float | None
    application: str | None = None
    """The name that the client gave itself."""
    age_seconds: float | None = None
    """None: the server does not say."""


class Listening(NamedTuple):
    """Where the server listens, in its own words, and how it was reached. Hosts in comparable form."""

    hostname: str | None = None
    """The server's name for its host."""
    port: int | None = None
    """None: not known, or no port."""
    sockets: tuple[DatabaseServer, ...] | None = None
    """Its Unix sockets. None: not known."""
    addresses: tuple[str, ...] = ()
    """The configured listen addresses; * and the like mean all."""
    reached: DatabaseServer | None = None
    """The server's end of our own connection. None: not known, or a socket."""


class ServerView(NamedTuple):
    """One look at a server. The session that looks is left out."""

    dialect: str
    server: DatabaseServer
    version: str
    uptime_seconds: float | None
    max_connections: int
    reserved_connections: int
    """The part of max_connections that only administrators get."""
    used_connections: int
    """Connections that count against the limit now, our own included."""
    sessions: tuple[Session, ...]
    hidden_sessions: int
    """Sessions that exist and that the account may not see."""
    listening: Listening = Listening()

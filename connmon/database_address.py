"""Database servers as a URL, a driver, a row or a user names them. Pure: nothing is resolved or asked.

- A server is a host and a port. A Unix socket is a host that begins with "/": for PostgreSQL the directory,
  with the port; for MySQL the path of the socket, without a port. An unknown host is None, and never the
  local one.
- Several servers (of a pool whose URL names several) are written as HOST:PORT,HOST:PORT.
- Names are compared in a normal form (case, a final dot, the spelling of an IPv6 address, `/var/run` for
  `/run`). They are not resolved: this host's resolver may know another address than that of the
  application's host.
- A host that means the process's own (`localhost`, 127.0.0.1, ::1, a socket) is distinguished from other
  names, because it means another server on each host.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from connmon.address import parse_address
from connmon.errors import ConfigError, one_line

#: The default ports of the dialects.
PORTS: Final[Mapping[str, int]] = {"mysql": 3306, "mariadb": 3306, "postgresql": 5432}
#: The family of servers that a dialect speaks to.
FAMILIES: Final[Mapping[str, str]] = {"mysql": "mysql", "mariadb": "mysql", "postgresql": "postgresql"}

#: The largest session id of a PostgreSQL server: the pid of its process. On Linux the largest is
#: PID_MAX_LIMIT of include/linux/threads.h, 4 * 1024 * 1024; on macOS and the BSDs 99,999.
LARGEST_BACKEND_ID: Final = 4 * 1024 * 1024

Query: TypeAlias = Mapping[str, "str | Sequence[str]"]
"""The options of a URL."""


class DatabaseServer(NamedTuple):
    """One database server."""

    host: str | None
    """A name, an address, or the path of a socket. None: not known."""
    port: int | None
    """None: not known, any, or of a MySQL socket."""

    def __str__(self) -> str:
        if self.host is None:
            return "a server that is not known"
        if self.port is None:
            return f"[{self.host}]" if ":" in self.host and not self.socket else self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def socket(self) -> bool:
        """Whether it is a Unix socket. (One with "@" has no file: Linux's abstract sockets.)"""
        return self.host is not None and self.host.startswith(("/", "@"))

    @property
    def local(self) -> bool:
        """Whether the name means the host of the process that uses it."""
        if self.host is None:
            return False
        if self.socket or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


UNKNOWN: Final = DatabaseServer(None, None)


@functools.lru_cache(maxsize=256)  # asked at every connect, of few hosts
def plain(host: str) -> str:
    """Return the host in comparable form."""
    if host.startswith("/"):
        # FHS 3.0, 5.13: /var/run is /run under its old name.
        return re.sub(r"^/var/run(?=/|$)", "/run", re.sub(r"//+", "/", host).rstrip("/") or "/")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.rstrip(".").casefold()


def comparable(server: DatabaseServer) -> DatabaseServer:
    """Return the server with its host in comparable form."""
    return server if server.host is None else DatabaseServer(plain(server.host), server.port)


def names(wanted: DatabaseServer, server: DatabaseServer) -> bool:
    """Whether `wanted`, which may have no port, names this server. Both in comparable form."""
    return (
        wanted.host is not None and wanted.host == server.host and wanted.port in (None, server.port)
    )  # fmt: skip


# --- Written --------------------------------------------------------------------------------


def joined(servers: Sequence[DatabaseServer]) -> str:
    """Return several servers as one text."""
    return ",".join(map(str, servers))


def parse_servers(text: str) -> tuple[DatabaseServer, ...]:
    """Return the servers written as HOST[:PORT] (IPv6 in brackets) or /SOCKET[:PORT], separated by commas.

    The inverse of `joined`. Raises ConfigError.
    """
    return tuple(comparable(parse_server(part)) for part in text.split(","))


def parse_server(text: str) -> DatabaseServer:
    """Return one server of such a text. Raises ConfigError."""
    if text.startswith(("/", "@")):
        match = re.fullmatch(r"([/@][^,]*?)(?::(\d{1,5}))?", text)
        if match is None or not text.isprintable() or not 0 <= int(match[2] or 0) <= 65535:
            raise ConfigError(
                one_line(f"{text[:100]!r} is not a socket; expected /DIRECTORY or /PATH, or :PORT after it")
            )
        return comparable(DatabaseServer(match[1], int(match[2]) if match[2] else None))
    address = parse_address(text, 0)  # 0 stands for no port: no text can have it
    return comparable(DatabaseServer(address.host, address.port or None))


def servers_of(dialect: str | None, host: str | None, port: int | None) -> tuple[DatabaseServer, ...]:
    """Return the servers of a pool, in comparable form; none: not known."""
    if host is None:
        return ()
    if port is None and "," in host:
        try:
            return tuple(_with_port(server, dialect) for server in parse_servers(host))
        except ConfigError:
            pass  # another version of the plugin wrote them: one name, which equals no other
    return (_with_port(comparable(DatabaseServer(host, port)), dialect),)


def _with_port(server: DatabaseServer, dialect: str | None) -> DatabaseServer:
    if server.port is not None or (server.socket and dialect != "postgresql"):
        return server
    return DatabaseServer(server.host, PORTS.get(dialect or ""))


def named(servers: Sequence[DatabaseServer]) -> str:
    """Return the servers of a row for people; where they are known `parse_servers` reads the text."""
    return joined(servers) or str(UNKNOWN)


# --- In a URL -------------------------------------------------------------------------------

#: Options by which the drivers read files or the environment, which take precedence over the URL.
_ELSEWHERE: Final = (
    "service", "read_default_file", "read_default_group", "option_files", "option_groups", "dsn", "sock",
)  # fmt: skip
#: Drivers that read PGPORT and PGSERVICE.
_LIBPQ: Final = ("psycopg", "psycopg2", "psycopg2cffi", "psycopg_async", "asyncpg")


def servers_in_url(
    dialect: str,
    driver: str,
    host: str | None,
    port: int | None,
    query: Query,
    environ: Mapping[str, str] = {},
) -> tuple[DatabaseServer, ...]:
    """Return the servers that a URL names, as it writes them; none where files or the environment decide.

    `environ`: of the process that connects.
    """
    if decides_elsewhere(query):
        return ()
    family = FAMILIES.get(dialect)
    socket = _last(query.get("unix_socket")) or _last(query.get("unix_sock"))
    if socket:
        # libmysqlclient prefers a host other than localhost to a socket.
        by_tcp = driver == "mysqldb" and (_last(query.get("host")) or host or "localhost") != "localhost"
        return () if by_tcp else (of_socket(family, socket),)
    # As in SQLAlchemy: host and port among the options take precedence over the URL's own.
    hosts = list(_words(query.get("host"))) or [host or ""]
    ports = list(_words(query.get("port"))) or [str(port or "")]
    if len(ports) != len(hosts):
        if len(ports) > 1:
            return ()  # the drivers refuse that
        ports *= len(hosts)
    default_port = PORTS.get(dialect)
    if driver in _LIBPQ and (environ.get("PGPORT") or environ.get("PGSERVICE")):
        default_port = None
    servers: dict[DatabaseServer, None] = {}
    for name, digits in zip(hosts, ports, strict=True):
        inside = re.fullmatch(r"([A-Za-z0-9.-]+):(\d*)", name)
        if inside:
            name, digits = inside[1], inside[2] or digits
        if not name or name.lower().startswith("%2f") or not re.fullmatch(r"\d{0,5}", digits):
            return ()
        if family == "mysql" and driver == "mysqldb" and name == "localhost":
            return ()  # a socket, whose path only the driver's library knows
        if default_port is None and not digits and family is not None:
            return ()
        servers[DatabaseServer(name, int(digits) if digits else default_port)] = None
    return tuple(servers)


def decides_elsewhere(query: Query) -> bool:
    """Whether these options make the driver read the server from a file."""
    return any(query.get(name) for name in _ELSEWHERE)


def of_socket(family: str | None, path: str) -> DatabaseServer:
    """Return the server of a socket's path; for PostgreSQL the port is in the name of the file."""
    if family == "postgresql" and (match := re.fullmatch(r"(.*)/\.s\.PGSQL\.(\d{1,5})", path)):
        return DatabaseServer(match[1] or "/", int(match[2]))
    return DatabaseServer(path, None)


def _words(value: str | Sequence[str] | None) -> Iterator[str]:
    for text in (value,) if isinstance(value, str) else value or ():
        yield from text.split(",")


def _last(value: str | Sequence[str] | None) -> str | None:
    return value if value is None or isinstance(value, str) else value[-1] if value else None

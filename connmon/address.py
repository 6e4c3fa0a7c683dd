"""Network addresses, and how users write them.

Any text that is not clearly an address is refused, because a resolver accepts almost any text ("192.168.1" is
192.168.0.1 to it). Each refusal is a ConfigError of one line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from connmon.errors import ConfigError

DEFAULT_PORT: Final = 5800


def quoted(text: str) -> str:
    """Return the text for an error: in quotes, one line, at most 100 characters."""
    return repr(text if len(text) <= 100 else text[:97] + "...")


@dataclass(frozen=True, order=True)
class Address:
    """A host and a port. An IPv6 `host` has no brackets."""

    host: str
    port: int
    """1 to 65535."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int | None = DEFAULT_PORT) -> Address:
    """Return the address written as host, host:port, [ipv6] or [ipv6]:port.

    `default_port` is used where the text has none; None: the text must have one. Raises ConfigError.
    """
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::([^:]*))?", text)
    if match is None:
        raise ConfigError(
            f"{quoted(text)} is not an address; expected HOST:PORT, IPv6 in brackets: [::1]:5800"
        )
    bracketed, plain, digits = match.groups()
    host = _name_host(plain, text) if bracketed is None else _ipv6_host(bracketed, text)
    if digits is not None:
        return Address(host, _port(digits, text))
    if default_port is None:
        raise ConfigError(f"{quoted(text)} has no port; expected HOST:PORT")
    return Address(host, default_port)


ServerMax = tuple[tuple[str, "int | None"], int]
"""A database server's host and port (None: any), and the number of connections that it allows."""


def parse_server_max(text: str) -> ServerMax:
    """Return the maximum written as HOST=N or HOST:PORT=N. Raises ConfigError."""
    server, _, most = text.rpartition("=")
    if not server or not re.fullmatch(r"[0-9]{1,9}", most):
        raise ConfigError(f"{quoted(text)} is not a server's maximum; expected HOST=N or HOST:PORT=N")
    named = parse_address(server, 1)
    has_port = server.rstrip("0123456789").endswith(":") and not server.endswith("]")
    return (named.host, named.port if has_port else None), int(most)


def _ipv6_host(host: str, text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise ConfigError(f"{quoted(text)}: {quoted(host)} is not an IPv6 address") from None


def _name_host(host: str, text: str) -> str:
    if not host:
        raise ConfigError(f"{quoted(text)} has no host; expected HOST:PORT")
    if len(host) > 253 or not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", host):
        raise ConfigError(f"{quoted(text)}: {quoted(host)} is not a host name or IP address")
    if re.fullmatch(r"[\d.]+", host):
        # Only digits and dots mean IPv4; a resolver would read "192.168.1" as 192.168.0.1.
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ConfigError(f"{quoted(text)}: {quoted(host)} is not an IPv4 address") from None
    return host


def _port(digits: str, text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", digits) and 1 <= int(digits) <= 65535:
        return int(digits)
    raise ConfigError(f"{quoted(text)}: port {quoted(digits)} is not a number from 1 to 65535")

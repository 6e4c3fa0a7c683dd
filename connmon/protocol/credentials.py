"""What the connections of a service are closed with: its secret and its TLS, read from their files.

The rules it keeps:

- A secret is refused where others than the file's owner and group have any access to the file, be
  it a secret_file or a config file with the secret in it; where it is shorter than
  `SHORTEST` bytes; where the file is none (a pipe would be waited for).
- White space at the end of a secret_file is not part of the secret: editors and `echo` leave a line end.
- Each of these is a ConfigError of one line that names the file and never what is in it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from connmon.errors import ConfigError, one_line
from connmon.protocol.authentication import NONCE_BYTES

if TYPE_CHECKING:
    import ssl

    from connmon.config import Service
    from connmon.protocol.tls import Channel

#: Bytes that a secret has at least, and a secret_file at most.
SHORTEST: Final = 16
LARGEST_FILE: Final = 4096

_OTHERS: Final = 0o007


@dataclass(frozen=True)
class Credentials:
    """What one side has, to prove who it is and to check the other."""

    secret: bytes | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def any(self) -> bool:
        """Whether the port is closed to those who have nothing."""
        return self.secret is not None or self.tls is not None

    def channel(self, host: str | None) -> Channel | None:
        """Return a new connection's TLS; None: there is none.

        `host` is whom the node's certificate has to name; None: this is the node's side. Raises
        ProtocolError where the host is nothing that a certificate can name.
        """
        if self.tls is None:
            return None
        from connmon.protocol.tls import Channel

        return Channel(self.tls, host)


OPEN: Final = Credentials()
"""Neither secret nor TLS."""


def nonce() -> bytes:
    """Return what a new connection's handshake needs."""
    return os.urandom(NONCE_BYTES)


def of_node(service: Service) -> Credentials:
    """Return what a node of the service works with. Raises ConfigError."""
    secret = read_secret(service)
    if service.ssl_certfile is None and service.ssl_cafile is None:
        return Credentials(secret)
    from connmon.protocol.tls import node_context

    return Credentials(secret, node_context(service))


def of_client(service: Service) -> Credentials:
    """Return what a client works with: application, reader or another node. Raises ConfigError."""
    secret = read_secret(service)
    if service.ssl_certfile is None and service.ssl_cafile is None:
        return Credentials(secret)
    from connmon.protocol.tls import client_context

    return Credentials(secret, client_context(service))


def read_secret(service: Service) -> bytes | None:
    """Return the service's secret; None: it has none. Raises ConfigError."""
    where = f"{service.origin} " if service.origin else ""
    if service.secret is not None:
        option, path = "secret", service.file
        secret = service.secret.encode()
        if path is not None:
            try:
                status = os.stat(path)
            except OSError as error:
                raise _error(f"{where}secret: {path} cannot be looked at: {error.strerror}") from None
            if status.st_mode & _OTHERS:
                raise _error(
                    f"{where}secret: others have access to this file (mode {_mode(status)}), refused: "
                    f"chmod o= {path}, or keep the secret in a secret_file"
                )
    elif service.secret_file is not None:
        option, path = "secret_file", service.secret_file
        secret = _read(f"{where}secret_file: {path}", path)
    else:
        return None
    if len(secret) < SHORTEST:
        what = "empty" if not secret else f"only {len(secret)} bytes"
        file = f" {path}" if option == "secret_file" else ""
        raise _error(f"{where}{option}:{file} is {what}; expected at least {SHORTEST}, from a random source")
    return secret


def _read(where: str, path: str) -> bytes:
    try:
        # Looked at once it is open, so that it is this file; not waiting where it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _error(f"{where} is not a file; expected one with nothing but the secret in it")
            if status.st_mode & _OTHERS:
                raise _error(
                    f"{where}: others have access to it (mode {_mode(status)}), refused: chmod o= {path}"
                )
            content = os.read(descriptor, LARGEST_FILE + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _error(f"{where} cannot be read: {reason}") from None
    if len(content) > LARGEST_FILE:
        raise _error(f"{where} has more than {LARGEST_FILE} bytes; expected nothing but the secret in it")
    return content.rstrip()


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def _error(message: str) -> ConfigError:
    return ConfigError(one_line(message))

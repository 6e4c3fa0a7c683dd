"""Read a service's secret and TLS files: what a side proves who it is with, and checks the other side with.

Rules:

- A secret is refused if others than the owner and the group of its file have any access to the file
  (a secret_file, or a config file with the secret in it), if it is shorter than `SECRET_BYTES`, or
  if the file is not a regular one (reading a pipe would block).
- White space at the end of a secret_file is not part of the secret: editors and `echo` add a line end.
- Each error is a ConfigError of one line that names the file and never its content.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from connmon.config import Service
from connmon.errors import ConfigError, one_line
from connmon.protocol.authentication import NONCE_BYTES

if TYPE_CHECKING:
    import ssl

#: The shortest secret, and the largest secret_file.
SECRET_BYTES: Final = 16
SECRET_FILE_BYTES: Final = 4096

_OTHERS: Final = 0o007


class TlsChannel(Protocol):
    """The TLS of one connection (`connmon.protocol.tls.Channel`)."""

    plain: bool
    """The other side does not speak TLS."""

    @property
    def pending(self) -> int: ...
    def receive(self, data: bytes) -> bytes: ...
    def send(self, data: bytes) -> None: ...
    def outgoing(self) -> bytes: ...


@dataclass(frozen=True)
class Credentials:
    """What one side proves who it is with, and checks the other side with."""

    secret: bytes | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def any(self) -> bool:
        """Whether the port is closed to clients without credentials."""
        return self.secret is not None or self.tls is not None

    def channel(self, host: str | None) -> TlsChannel | None:
        """Return a new connection's TLS, None if there is none.

        `host` must be named in the node's certificate; None: this is the node's side. Raises ProtocolError if
        no certificate can name the host.
        """
        if self.tls is None:
            return None
        # Here and below: `ssl` takes 15 ms to load, and only a service with TLS needs it.
        from connmon.protocol.tls import Channel

        return Channel(self.tls, host)


OPEN: Final = Credentials()
"""Neither secret nor TLS."""


def nonce() -> bytes:
    """Return the random bytes that a new connection's handshake needs."""
    return os.urandom(NONCE_BYTES)


def of_node(service: Service) -> Credentials:
    """Return the credentials of a node of the service. Raises ConfigError."""
    secret = read_secret(service)
    if service.ssl_certfile is None and service.ssl_cafile is None:
        return Credentials(secret)
    from connmon.protocol.tls import node_context

    return Credentials(secret, node_context(service))


def of_client(service: Service) -> Credentials:
    """Return the credentials of a client: application, reader or another node. Raises ConfigError."""
    secret = read_secret(service)
    if service.ssl_certfile is None and service.ssl_cafile is None:
        return Credentials(secret)
    from connmon.protocol.tls import client_context

    return Credentials(secret, client_context(service))


def read_secret(service: Service) -> bytes | None:
    """Return the service's secret, None if it has none. Raises ConfigError."""
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
    if len(secret) < SECRET_BYTES:
        length = "empty" if not secret else f"only {len(secret)} bytes"
        file = f" {path}" if option == "secret_file" else ""
        raise _error(
            f"{where}{option}:{file} is {length}; expected at least {SECRET_BYTES}, from a random source"
        )
    return secret


def _read(where: str, path: str) -> bytes:
    try:
        # Opened first, so that the checks are of this very file; non-blocking in case it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _error(f"{where} is not a file; expected one with nothing but the secret in it")
            if status.st_mode & _OTHERS:
                raise _error(
                    f"{where}: others have access to it (mode {_mode(status)}), refused: chmod o= {path}"
                )
            content = os.read(descriptor, SECRET_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _error(f"{where} cannot be read: {reason}") from None
    if len(content) > SECRET_FILE_BYTES:
        raise _error(
            f"{where} has more than {SECRET_FILE_BYTES} bytes; expected nothing but the secret in it"
        )
    return content.rstrip()


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def _error(message: str) -> ConfigError:
    return ConfigError(one_line(message))

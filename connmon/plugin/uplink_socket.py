"""One uplink's socket: bytes between `Uplink` and its node, with TLS where the service has it.

Rules:

1. All sockets are non-blocking; `Uplink` decides what follows from what a node does or fails to do.
2. Secret and certificates are read again after a node has refused them: they may be newer now. A process that
   may no longer read them goes on with the old ones.
3. OpenSSL works, and sockets are made, only under the lock that a fork waits for (`Reporter.before_fork`).
4. A socket whose descriptor the application has closed is given up: its number may be another file's.
"""

from __future__ import annotations

import errno
import os
import socket
from time import monotonic
from typing import Any

from connmon.config import Address
from connmon.errors import ConfigError, ProtocolError
from connmon.plugin import unpatched
from connmon.plugin.uplink import Uplink, UplinkState
from connmon.protocol.credentials import Credentials, nonce, of_client

#: poll's flags, which gevent takes out of the select module.
READ, WRITE = 1, 4
#: A flag of send: no SIGPIPE, which would end an application that has set it back to its default.
NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)
RECEIVE_BYTES = 65536


class UplinkSocket:
    """One uplink and its socket."""

    def __init__(self, uplink: Uplink, fork_lock: Any, credentials: Credentials | None) -> None:
        """`fork_lock`: the lock that a fork waits for. `credentials`: None where they could not be read."""
        self.uplink = uplink
        self.credentials = credentials
        self._read_credentials = credentials is None
        """Whether to read them again before the next connect."""
        self._fork_lock = fork_lock
        self._host = ""
        self._channel: Any = None
        self.socket: Any = None
        self._identity: tuple[int, int] | None = None
        self.addresses: list[tuple[Any, ...]] = []
        """The node's addresses that are not tried yet."""
        self.unsent = b""

    def __repr__(self) -> str:
        descriptor = "no socket" if self.socket is None else f"descriptor {self.socket.fileno()}"
        tls = "" if self._channel is None else ", TLS"
        return f"<UplinkSocket {descriptor}{tls}, {len(self.unsent)} bytes unsent, {self.uplink!r}>"

    def close(self) -> None:
        if self.socket is not None:
            if self._is_ours():
                self.socket.close()
            else:
                self.socket.detach()
        self.socket = None
        self.unsent = b""
        self._channel = None

    def take_over(self, fork_lock: Any) -> None:
        """Go on in another thread; the one before is gone, maybe with locks that it held."""
        self._fork_lock = fork_lock
        self.uplink.ledger.take_over()

    def abandon(self, now: float) -> None:
        """Give up the connection, if there is one, whatever state it is in."""
        if self.uplink.state is not UplinkState.RESTING:
            self._fail("the reporter has failed", now)

    def _is_gone(self, now: float) -> bool:
        """Return whether the application has closed the socket; then give the connection up."""
        if self.socket is None or self._is_ours():
            return False
        self._fail("the application has closed the connection", now)
        return True

    def _is_ours(self) -> bool:
        return unpatched.identity(self.socket.fileno()) == self._identity

    def events(self) -> int:
        """Return what to poll the socket for."""
        if self.uplink.state is UplinkState.CONNECTING or self.unsent:
            return READ | WRITE
        return READ

    def step(self, now: float, *, begin: bool = True) -> None:
        """Do what is due; without `begin`, no new connection, which can take long."""
        uplink = self.uplink
        self._is_gone(now)
        reason = uplink.overdue(now)
        if reason is not None and uplink.state is UplinkState.CONNECTING:
            self._next_address(reason)
        elif reason is not None:
            self._fail(reason, now)
        if uplink.state is UplinkState.RESTING:
            if begin and now >= uplink.due and uplink.ledger.process.used and not uplink.hopeless:
                self._resolve(uplink.connect(now))
        elif uplink.state is UplinkState.READY and now >= uplink.due:
            self._send(uplink.outgoing(now), now)

    def ready(self, events: int, now: float) -> None:
        """Go on with a socket that can be read or written, or has failed."""
        if self._is_gone(now):
            return
        if self.uplink.state is UplinkState.CONNECTING:
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._next_address(os.strerror(error))
                return
            self._greet(now)
            return
        if self.unsent:
            self._send(b"", now)
        if self.socket is not None and events & ~WRITE:
            self._receive(now)

    def _receive(self, now: float) -> None:
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error.strerror or str(error), now)
            return
        if not data:
            self._fail("the node closed the connection", now)
            return
        try:
            if self._channel is not None:
                with self._fork_lock:
                    data = self._channel.receive(data)
            self._send(self.uplink.received(data, now), now)
        except ProtocolError as error:
            self._send_alert()
            self._fail(str(error), now)

    def _send_alert(self) -> None:
        """Send the node the TLS alert about a failure."""
        if self._channel is not None:
            try:
                self.socket.send(self._channel.outgoing(), NO_SIGPIPE)
            except OSError:
                pass

    def _greet(self, now: float) -> None:
        """Send the hello: the node has taken the connection."""
        assert self.credentials is not None
        try:
            if self.credentials.tls is not None:
                with self._fork_lock:
                    self._channel = self.credentials.channel(self._host)
        except ProtocolError as error:
            self._fail(str(error), now)
            return
        self._send(self.uplink.connected(now, self.credentials.secret, nonce()), now)

    def _send(self, data: bytes, now: float) -> None:
        if self._channel is not None:
            with self._fork_lock:
                self._channel.send(data)
                data = self._channel.outgoing()
        self.unsent += data
        if not self.unsent:
            return
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent, NO_SIGPIPE) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._fail(error.strerror or str(error), now)

    def _resolve(self, address: Address) -> None:
        if self._read_credentials:
            try:
                with self._fork_lock:
                    self.credentials = of_client(self.uplink.service)
            except ConfigError as error:
                if self.credentials is None:
                    self._fail(str(error), monotonic())
                    return
            self._read_credentials = False
        self._host = address.host
        try:
            # As bytes it needs no codec: importing that of names here, while another thread forks, would
            # leave the child without it for good.
            host = address.host.encode() if address.host.isascii() else address.host
            self.addresses = list(unpatched.getaddrinfo(host, address.port, 0, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # the latter: a label of more than 63 characters
            self._fail(getattr(error, "strerror", None) or str(error), monotonic())
            return
        self._next_address("its name has no address")

    def _next_address(self, reason: str) -> None:
        """Try the next address of the same node, or give the node up for `reason`."""
        self.close()
        now = monotonic()  # looking up the name may have taken long
        self.uplink.connecting(now)
        while self.addresses:
            family, socket_type, protocol, _, where = self.addresses.pop(0)
            try:
                with self._fork_lock:
                    self.socket = unpatched.socket_type(family, socket_type, protocol)
                self._identity = unpatched.identity(self.socket.fileno())
                self.socket.setblocking(False)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.socket.connect(where)
                self._greet(now)
                return
            except OSError as error:
                if error.errno == errno.EINPROGRESS:
                    return
                reason = error.strerror or str(error)
                self.close()
        self._fail(reason, now)

    def _fail(self, reason: str, now: float) -> None:
        if self.uplink.state is UplinkState.GREETING:
            self._read_credentials = True
        self.close()
        self.uplink.failed(reason, now)

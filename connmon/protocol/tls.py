"""TLS without sockets: bytes in, bytes out, for both sides of a connection.

Rules:

- TLS 1.2 or newer. A client checks the node's certificate and the host name in it, against `ssl_cafile`
  or else the system's authorities. A node with `ssl_cafile` requires a certificate of every client, and
  clients then show theirs, `ssl_certfile`.
- An unusable file is a ConfigError that names the option. A fault of the other side is a ProtocolError that
  says what it means for both.
- Nothing here blocks. Of received bytes only an incomplete record is kept.

Imported only if a service has TLS: `ssl` takes 15 ms to load.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Final, NamedTuple

from connmon.config import Service
from connmon.errors import ConfigError, ProtocolError, one_line
from connmon.protocol.certificate_validity import judge, validities

_CHUNK_BYTES: Final = 64 * 1024
#: The first byte of a TLS record: change cipher spec, alert, handshake, data.
_RECORDS: Final = (20, 21, 22, 23)

_UNWANTED: Final = "the other side does not accept this one's certificate"
#: What OpenSSL's reasons mean here; other reasons appear in OpenSSL's words.
_REASONS: Final = {
    "UNSUPPORTED_PROTOCOL": "the other side's TLS is older than 1.2",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other side's TLS is older than 1.2",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client shows no certificate and the node's ssl_cafile wants "
    "one: the client needs ssl_certfile, ssl_keyfile and ssl_cafile",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the node wants a certificate and this side has none: it needs "
    "ssl_certfile, ssl_keyfile and ssl_cafile",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"{_UNWANTED}, or wants one that is not there",
    "TLSV1_ALERT_UNKNOWN_CA": f"{_UNWANTED}: its ssl_cafile does not have who signed it",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"{_UNWANTED}: it has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _UNWANTED,
    "SSLV3_ALERT_BAD_CERTIFICATE": _UNWANTED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": f"{_UNWANTED}: it may not be used for this "
    "(extendedKeyUsage needs serverAuth and clientAuth)",
}


class _Encrypted(Exception):
    """The key has a passphrase."""


def _refuse_passphrase() -> str:
    raise _Encrypted


def node_context(service: Service) -> ssl.SSLContext | None:
    """Return the TLS context of a node of the service, None if it has no TLS. Raises ConfigError."""
    if service.ssl_certfile is None:
        if service.ssl_cafile is not None:
            raise _error(service, "ssl_cafile", "a node needs ssl_certfile and ssl_keyfile too")
        return None
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # sessions are never resumed
    _load_certificate(context, service)
    if service.ssl_cafile is not None:
        _load_authorities(context, service)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(service: Service) -> ssl.SSLContext | None:
    """Return the TLS context of a client of the service, None if it has no TLS. Raises ConfigError."""
    if service.ssl_certfile is None and service.ssl_cafile is None:
        return None
    context = _context(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    if service.ssl_cafile is None:
        # The node requests no certificate then, and not every client may read the node's key.
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    _load_authorities(context, service)
    if service.ssl_certfile is not None:
        _load_certificate(context, service)
    return context


class Notice(NamedTuple):
    """When the certificates of a file expire, and whether that is soon."""

    text: str
    soon: bool


def check_dates(service: Service, now: float) -> list[Notice]:
    """Return when the certificates of a node of the service expire. `now` is in seconds since the epoch.

    Raises ConfigError if they have expired or are not valid yet: no other side would accept them.
    """
    notices = []
    for option, path in (("ssl_certfile", service.ssl_certfile), ("ssl_cafile", service.ssl_cafile)):
        if path is None:
            continue
        pem = _read(service, option, path).decode("utf-8", "replace")
        judgement = judge(validities(pem), now, all_needed=option == "ssl_certfile")
        if judgement.problem:
            raise _error(service, option, f"{path} {judgement.problem}")
        if judgement.expires:
            notices.append(Notice(one_line(f"{option} {path} {judgement.expires}"), judgement.soon))
    return notices


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _error(service: Service, option: str, problem: str) -> ConfigError:
    where = f"{service.origin} " if service.origin else ""
    return ConfigError(one_line(f"{where}{option}: {problem}"))


def _readable(service: Service, option: str, path: str, mark: bytes) -> None:
    """Raise ConfigError unless the file can be read and contains this mark."""
    if mark not in _read(service, option, path):
        raise _error(service, option, f"{path} has no '-----BEGIN ... {mark.decode()}'; expected a PEM file")


def _read(service: Service, option: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _error(service, option, f"{path} cannot be read: {reason}") from None


def _load_certificate(context: ssl.SSLContext, service: Service) -> None:
    certificate, key = service.ssl_certfile, service.ssl_keyfile
    assert certificate is not None and key is not None  # checked by the config
    _readable(service, "ssl_certfile", certificate, b"CERTIFICATE-----")
    _readable(service, "ssl_keyfile", key, b"PRIVATE KEY-----")
    try:
        context.load_cert_chain(certificate, key, _refuse_passphrase)
    except _Encrypted:
        raise _error(service, "ssl_keyfile", f"{key} has a passphrase; expected a key without one") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"{key} is not the key of the certificate in {certificate}"
            raise _error(service, "ssl_keyfile", problem) from None
        problem = f"{certificate} and ssl_keyfile {key} cannot be used: {_words(error)}"
        raise _error(service, "ssl_certfile", problem) from None
    except OSError as error:
        raise _error(service, "ssl_certfile", f"{certificate} cannot be read: {error.strerror}") from None


def _load_authorities(context: ssl.SSLContext, service: Service) -> None:
    path = service.ssl_cafile
    assert path is not None
    _readable(service, "ssl_cafile", path, b"CERTIFICATE-----")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise _error(service, "ssl_cafile", f"{path} cannot be used: {_words(error)}") from None
    except OSError as error:
        raise _error(service, "ssl_cafile", f"{path} cannot be read: {error.strerror}") from None


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


class Channel:
    """One side of one TLS connection.

    Pass received bytes to `receive` and bytes to encrypt to `send`; after either, send the bytes of
    `outgoing`. A client has bytes in `outgoing` from the start.
    """

    def __init__(self, context: ssl.SSLContext, host: str | None) -> None:
        """`host` must be named in the node's certificate; None: this is the node's side.

        Raises ProtocolError if no certificate can name the host.
        """
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        name = None if host is None else host.rstrip(".")
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, host is None, name)
        except ValueError as error:
            raise ProtocolError(f"no certificate can be for this host name: {error}") from None
        self._unsent = bytearray()
        """Plain bytes to send after the handshake."""
        self._started = False
        self._sides = ("client", "node") if host is None else ("node", "client")
        """The other side, this side."""
        self._established = False
        self.plain = False
        """The other side does not speak TLS."""
        if host is not None:
            self._shake()

    @property
    def pending(self) -> int:
        """The bytes held: incomplete records received, and bytes not sent yet."""
        return self._incoming.pending + self._outgoing.pending + len(self._unsent)

    def receive(self, data: bytes) -> bytes:
        """Return the decrypted bytes. Raises ProtocolError."""
        if data and not self._started:
            self._started = True
            if data[0] not in _RECORDS:
                self.plain = True
                other, this = self._sides
                raise ProtocolError(
                    f"the {other} speaks no TLS and the {this} does: both need the service's ssl_* options"
                )
        self._incoming.write(data)
        parts = []
        try:
            if not self._established and not self._shake():
                return b""
            while part := self._tls.read(_CHUNK_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise ProtocolError(_problem(error)) from None
        return b"".join(parts)

    def send(self, data: bytes) -> None:
        """Encrypt bytes for the other side."""
        if not self._established:
            self._unsent += data
        elif data:
            with contextlib.suppress(ssl.SSLError):  # it has failed before, which was reported
                self._tls.write(data)

    def outgoing(self) -> bytes:
        """Return the encrypted bytes to send, once."""
        return self._outgoing.read()

    def _shake(self) -> bool:
        """Continue the TLS handshake; return whether it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._established = True
        unsent, self._unsent = bytes(self._unsent), bytearray()
        self.send(unsent)
        return True


def _problem(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return one_line(f"the other side's certificate is not accepted: {error.verify_message}")
    reason = error.reason or ""
    return _REASONS.get(reason, f"TLS failed: {_words(error)}")

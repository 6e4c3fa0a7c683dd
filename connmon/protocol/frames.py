"""Frames <-> messages: bytes in, messages out. No I/O, no time.

The rules of the protocol (docs/protocol.rst tells them at length):

1. A frame is a length (4 bytes, unsigned, big-endian) and as many bytes of msgpack: one message,
   an array whose first element is the message's name.
2. The client speaks first: `hello` with the protocol version, its role and the service it means
   ("": whichever the node serves). The node answers `welcome`, or `refuse` with the reason
   and closes. Nothing else is read before that, and a hello is small.
3. After the welcome a role may send only its own messages: an application `report` and
   `goodbye`, a reader its questions (`query`, `status`, `history`, `waits`, `users`). The node sends
   an application `ack`, a reader `rows`, `node-status` and `past`. What nodes tell one another
   (role `peer`) is only framed here; cluster/raft/messages.py has it.
4. With a secret the node answers the hello with `challenge`, the client sends `proof` that it knows the
   secret, and from then on every frame of both sides has a MAC (connmon/protocol/authentication.py), the
   `welcome` first: its MAC is the node's proof. A client that has a secret goes on with no node that does
   not prove it, and a node with no client. Before the welcome, `refuse` alone has no MAC. The
   nonces are given in by the caller.
5. Whatever breaks a rule (a length over the limit, no msgpack, an unknown message, a value out
   of range, a message that the role may not send) is a `ProtocolError`; the connection
   cannot go on after it. Nothing is kept of a frame beyond what has arrived of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, Union

import msgspec
from msgspec import Meta, Struct

from connmon.errors import ProtocolError
from connmon.protocol.authentication import NONCE_BYTES, PROOF_BYTES, SEAL_BYTES, Handshake, Seals
from connmon.protocol.queries import History, NodeStatus, Question
from connmon.protocol.reports import Report
from connmon.protocol.rows import Rows
from connmon.protocol.values import Count, Instance, Name, Text

VERSION: Final = 1

#: Largest payload of a frame, in bytes: of a hello and its answer; of what an application may
#: send (about 100,000 connections in one process); of a query; of what a node answers.
HELLO_LIMIT: Final = 4 * 1024
REPORT_LIMIT: Final = 16 * 1024 * 1024
QUERY_LIMIT: Final = 64 * 1024
ANSWER_LIMIT: Final = 64 * 1024 * 1024
#: And of what nodes tell one another; what is longer goes in parts.
PEER_LIMIT: Final = 1024 * 1024

Role: TypeAlias = Literal["application", "reader", "peer"]


Nonce: TypeAlias = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """The client's first message."""

    version: Count
    role: Name
    service: Name
    """The service that the client means; "": whichever the node serves."""
    client: Name = ""
    """Who it is, for the node's log."""
    nonce: Nonce | None = None
    """None: the client has no secret."""
    boot: Name = ""
    """Of a node: this run of it."""
    cluster: Text = ""
    """Of a node: which nodes it believes there are, and what else all of them must have alike."""


class Challenge(Struct, frozen=True, array_like=True, tag="challenge"):
    """The node's answer to a hello where the service has a secret: prove that you know it."""

    version: Count
    service: Name
    node: Name
    nonce: Nonce


class Proof(Struct, frozen=True, array_like=True, tag="proof"):
    """The client's answer to a challenge."""

    proof: Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]


class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    """The node's yes to a hello."""

    version: Count
    service: Name
    node: Name
    software: Name = ""


class Refuse(Struct, frozen=True, array_like=True, tag="refuse"):
    """The node's no, at any time; it closes the connection after it."""

    reason: Text


class Ack(Struct, frozen=True, array_like=True, tag="ack"):
    """Report `sequence` was applied by the group; with `full`, it could not be: send a full one."""

    instance: Instance
    sequence: Count
    full: bool = False
    elsewhere: Name | None = None
    """A node that has fewer applications: one that knows it by that name does well to go there."""


class Goodbye(Struct, frozen=True, array_like=True, tag="goodbye"):
    """The process ends, after the report it has just sent."""

    instance: Instance
    sequence: Annotated[int, Meta(ge=0)]


Message: TypeAlias = Union[
    Hello, Challenge, Proof, Welcome, Refuse, Report, Ack, Goodbye, Question, Rows, NodeStatus, History
]  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_Decoder: TypeAlias = "msgspec.msgpack.Decoder[Any]"

_HELLO: Final[_Decoder] = msgspec.msgpack.Decoder(Hello)
_HELLO_ANSWER: Final[_Decoder] = msgspec.msgpack.Decoder(Union[Welcome, Refuse])
_SECRET_ANSWER: Final[_Decoder] = msgspec.msgpack.Decoder(Union[Challenge, Welcome, Refuse])
_PROOF: Final[_Decoder] = msgspec.msgpack.Decoder(Proof)
_REFUSE: Final[_Decoder] = msgspec.msgpack.Decoder(Refuse)
_FROM_CLIENT: Final[dict[str, tuple[_Decoder, int]]] = {
    "application": (msgspec.msgpack.Decoder(Union[Report, Goodbye]), REPORT_LIMIT),
    "reader": (msgspec.msgpack.Decoder(Question), QUERY_LIMIT),
    "peer": (msgspec.msgpack.Decoder(msgspec.Raw), PEER_LIMIT),
}
_FROM_NODE: Final[dict[str, tuple[_Decoder, int]]] = {
    "application": (msgspec.msgpack.Decoder(Union[Ack, Refuse]), HELLO_LIMIT),
    "reader": (msgspec.msgpack.Decoder(Union[Rows, NodeStatus, History, Refuse]), ANSWER_LIMIT),
    "peer": (msgspec.msgpack.Decoder(msgspec.Raw), PEER_LIMIT),
}


def frame(message: Message) -> bytes:
    """Return the bytes of one message that is not sealed, its length in front."""
    return _framed(_encoder.encode(message))


def _framed(payload: bytes, seal: bytes = b"") -> bytes:
    return b"%b%b%b" % ((len(payload) + len(seal)).to_bytes(4, "big"), payload, seal)


class _Frames:
    """Cuts a stream of bytes into messages of the type that is allowed now."""

    def __init__(self, decoder: _Decoder, limit: int) -> None:
        self._buffer = bytearray()
        self._decoder = decoder
        self._limit = limit
        self._seals: Seals | None = None

    def expect(self, decoder: _Decoder, limit: int) -> None:
        self._decoder = decoder
        self._limit = limit

    def unseal(self, seals: Seals) -> None:
        """From the next frame on they have to have these seals."""
        self._seals = seals

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    def next(self) -> Any | None:
        """Return the next whole message, or None until more bytes come."""
        payload = self.payload()
        if payload is None:
            return None
        if self._seals is not None:
            payload, seal = payload[:-SEAL_BYTES], payload[-SEAL_BYTES:]
            if not self._seals.fits(seal, payload):
                raise ProtocolError(
                    "a frame without the right seal: it was altered, left out, repeated or forged on the way"
                )
        return self.decode(payload)

    def payload(self) -> bytes | None:
        """Return what the next frame holds, as it came, or None until it is whole."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        length = int.from_bytes(buffer[:4], "big")
        limit = self._limit if self._seals is None else self._limit + SEAL_BYTES
        if length > limit:
            if bytes(buffer[:2]) in (b"\x15\x03", b"\x16\x03"):  # an alert, a handshake
                raise ProtocolError(
                    "the other side speaks TLS and this one does not: both need the service's ssl_* options"
                )
            raise ProtocolError(
                f"a frame of {length} bytes, {limit} is the limit here: "
                "the other side does not speak connmon's protocol, or too much of it"
            )
        if len(buffer) < 4 + length:
            return None
        payload = bytes(memoryview(buffer)[4 : 4 + length])
        del buffer[: 4 + length]
        return payload

    def decode(self, payload: bytes) -> Any:
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProtocolError(f"a message that cannot be read: {error}") from None


class NodeSide:
    """The node's side of one connection: takes bytes, gives hello, reports and queries.

    `receive` yields the hello as the first message; the node answers it with `welcome` or
    `refuse`, and only after `welcome` are further messages read. With a secret there is one step
    more: `welcome` gives a challenge, the client's proof comes as the next message (a wrong one
    is a ProtocolError), and the node answers it with `welcome` once more.

    `nonce` is NONCE_BYTES random bytes, new for each connection; it is used with a secret only.
    """

    def __init__(self, secret: bytes | None = None, nonce: bytes = b"") -> None:
        self._frames = _Frames(_HELLO, HELLO_LIMIT)
        self._secret = secret
        self._nonce = nonce
        self._said = b""
        """The hello's frame, as it came."""
        self._handshake: Handshake | None = None
        self._seals: Seals | None = None
        self._answering = False
        """It is the node's turn."""
        self.hello: Hello | None = None
        self.role: Role | None = None
        """Set when the client is welcomed: who it is, and that it knows the secret."""

    @property
    def buffered(self) -> int:
        """How many bytes have been received that are no whole message yet."""
        return self._frames.buffered

    def receive(self, data: bytes) -> list[Hello | Proof | Report | Goodbye | Question]:
        """Return the messages that are complete with these bytes.

        Raises ProtocolError when a rule is broken; the connection is to be closed then.
        """
        self._frames.feed(data)
        if self._answering:
            raise ProtocolError("the client went on before its hello was answered")
        return self.pending()

    def pending(self) -> list[Hello | Proof | Report | Goodbye | Question]:
        """Return further complete messages among the bytes already received."""
        messages: list[Hello | Proof | Report | Goodbye | Question] = []
        if self.role is None:
            opening = self._opening()
            if opening is not None:
                messages.append(opening)
            return messages
        while (message := self._frames.next()) is not None:
            messages.append(message)
        return messages

    def _opening(self) -> Hello | Proof | None:
        """Return the next message before the welcome: the hello, or the proof."""
        payload = self._frames.payload()
        if payload is None:
            return None
        message: Hello | Proof = self._frames.decode(payload)
        if self.hello is None:
            assert isinstance(message, Hello)
            self.hello, self._said = message, _framed(payload)
        else:
            assert isinstance(message, Proof) and self._handshake is not None
            if not self._handshake.proven(message.proof):
                raise ProtocolError(
                    "the secrets differ: the client's is not this node's; both need the same "
                    "secret or secret_file"
                )
            self._seals = self._handshake.from_node()
            self._frames.unseal(self._handshake.from_client())
        self._answering = True
        return message

    def check(self, hello: Hello, service: str) -> str | None:
        """Return why this hello cannot be welcomed by a node of `service`, or None."""
        if hello.version != VERSION:
            return (
                f"protocol version {hello.version} is not spoken here, {VERSION} is: upgrade the older side"
            )
        if hello.role not in _FROM_CLIENT:
            return f"role {hello.role!r} is not known here"
        if hello.service not in ("", service):
            return f"service {hello.service!r} is not served here, {service!r} is"
        if self._secret is not None and hello.nonce is None:
            return (
                "the node has a secret and the client has none: the client needs the service's secret or "
                "secret_file, connmon_secret_file in a URL, or --secret-file"
            )
        if self._secret is None and hello.nonce is not None:
            return (
                "the client has a secret and the node has none: start the node with the same secret, or "
                "take the client's away"
            )
        return None

    def welcome(self, service: str, node: str, software: str = "") -> bytes:
        """Accept the hello, which `check` has let through: return the bytes of the answer.

        The role's messages are allowed from now. With a secret, that is so after the second call.
        """
        assert self.hello is not None and self._answering
        self._answering = False
        if self._secret is not None and self._seals is None:
            challenge = frame(Challenge(VERSION, service, node, self._nonce))
            self._handshake = Handshake(self._secret, self._said, challenge)
            self._frames.expect(_PROOF, HELLO_LIMIT)
            return challenge
        self.role = self.hello.role  # type: ignore[assignment]  # `check` saw to it
        self._frames.expect(*_FROM_CLIENT[self.hello.role])
        return self.frame(Welcome(VERSION, service, node, software))

    def frame(self, message: Struct) -> bytes:
        """Return the bytes of one message, sealed where they have to be; to be sent in this order."""
        return _sealed(message, self._seals if self.role is not None else None)

    @staticmethod
    def refuse(reason: str) -> bytes:
        """Return the bytes that say no before the welcome; the node closes after sending them."""
        return frame(Refuse(reason))


def _sealed(message: Struct, seals: Seals | None) -> bytes:
    payload = _encoder.encode(message)
    return _framed(payload) if seals is None else _framed(payload, seals.next(payload))


class ClientSide:
    """An application's or a reader's side of one connection.

    After each `receive` the bytes of `reply` are to be sent, where there are any. `nonce` is
    NONCE_BYTES random bytes, new for each connection; it is used with a secret only.
    """

    def __init__(
        self,
        role: Role,
        service: str,
        client: str = "",
        secret: bytes | None = None,
        nonce: bytes = b"",
        boot: str = "",
        cluster: str = "",
    ) -> None:
        self._role: Role = role
        self._secret = secret
        asked = None if secret is None else nonce
        self._hello = frame(Hello(VERSION, role, service, client, asked, boot, cluster))
        self._frames = _Frames(_HELLO_ANSWER if secret is None else _SECRET_ANSWER, HELLO_LIMIT)
        self._reply = b""
        self._handshake: Handshake | None = None
        self._seals: Seals | None = None
        self.welcome: Welcome | None = None

    def hello(self) -> bytes:
        """Return the first bytes to send."""
        return self._hello

    def reply(self) -> bytes:
        """Return, once, what has to be sent because of what was received: the proof."""
        reply, self._reply = self._reply, b""
        return reply

    def frame(self, message: Struct) -> bytes:
        """Return the bytes of one message, sealed where they have to be; to be sent in this order.

        Raises ProtocolError while the node has yet to prove that it knows the secret.
        """
        if self._secret is not None and self.welcome is None:
            raise ProtocolError("the node has not proven yet that it knows the secret")
        return _sealed(message, self._seals)

    def receive(self, data: bytes) -> list[Welcome | Refuse | Ack | Rows | NodeStatus | History]:
        """Return the messages that are complete with these bytes.

        Raises ProtocolError when a rule is broken; the connection is to be closed then.
        """
        self._frames.feed(data)
        messages: list[Welcome | Refuse | Ack | Rows | NodeStatus | History] = []
        while (message := self._next()) is not None:
            if not isinstance(message, Challenge):
                messages.append(message)
        return messages

    def _next(self) -> Challenge | Welcome | Refuse | Ack | Rows | NodeStatus | History | None:
        if self.welcome is not None:
            return self._frames.next()
        payload = self._frames.payload()
        if payload is None:
            return None
        message = self._opening(payload)
        if isinstance(message, Challenge | Welcome) and message.version != VERSION:
            raise ProtocolError(
                f"the node speaks protocol version {message.version}, this side {VERSION}: "
                "upgrade the older side"
            )
        if isinstance(message, Challenge):
            assert self._secret is not None
            self._handshake = Handshake(self._secret, self._hello, _framed(payload))
            self._reply = frame(Proof(self._handshake.proof()))
            # The welcome has a seal; it is looked at here, since a refusal in its place has none.
            self._frames.expect(_HELLO_ANSWER, HELLO_LIMIT + SEAL_BYTES)
        elif isinstance(message, Welcome):
            self.welcome = message
            self._frames.expect(*_FROM_NODE[self._role])
        return message

    def _opening(self, payload: bytes) -> Challenge | Welcome | Refuse:
        """Return the message of a frame that came before the node was known to be the right one."""
        if self._handshake is None:
            message: Challenge | Welcome | Refuse = self._frames.decode(payload)
            if self._secret is not None and isinstance(message, Welcome):
                raise ProtocolError(
                    "this side has a secret and the node asks for none: start the node with the same secret, "
                    "or take this side's away"
                )
            return message
        seals = self._handshake.from_node()
        if seals.fits(payload[-SEAL_BYTES:], payload[:-SEAL_BYTES]):
            self._frames.unseal(seals)
            self._seals = self._handshake.from_client()
            return self._frames.decode(payload[:-SEAL_BYTES])  # type: ignore[no-any-return]
        try:
            return _REFUSE.decode(payload)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ProtocolError("the node has not proven that it knows the secret") from None

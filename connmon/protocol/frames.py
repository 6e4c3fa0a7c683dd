"""Convert between bytes and messages. No I/O, no clock.

Rules (docs/protocol.rst has them in full):

1. A frame is a length (4 bytes, unsigned, big-endian) and that many bytes of msgpack: one message, an array
   whose first element is the message's name.
2. `HANDSHAKE` has every legal step of the handshake, `OPEN_MESSAGES` what each role may send and receive
   after it. The client sends `hello` first. The node answers `welcome`, or `refuse` with the reason, and
   closes the connection after a `refuse`. Before the welcome, frames are small.
3. With a secret the node answers the hello with `challenge`, the client sends `proof`, and every later frame
   of both sides has a MAC (connmon/protocol/authentication.py). The MAC of `welcome` is the node's proof.
   A client with a secret never continues with a node that does not prove it, nor a node with such a client.
   Before the welcome only `refuse` has no MAC. The caller supplies the nonces.
4. Messages between nodes (role `peer`) are only framed here; cluster/raft/messages.py defines them.
5. A broken rule (a length over the limit, invalid msgpack, an unknown message, a value out of range, a
   message that the role may not send) is a `ProtocolError`. The connection must be closed then. Only the
   received part of an incomplete frame is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, Union

import msgspec
from msgspec import Meta, Struct

from connmon.errors import ProtocolError
from connmon.protocol.authentication import MAC_BYTES, NONCE_BYTES, PROOF_BYTES, FrameMacs, Handshake
from connmon.protocol.queries import History, NodeStatus, Question
from connmon.protocol.reports import PackedReport, Report
from connmon.protocol.rows import Rows
from connmon.protocol.values import Count, Instance, Name, Text

VERSION: Final = 1

#: The largest payload of a frame: of the handshake, and of what a node answers an application; of what an
#: application sends (about 100,000 connections in one process); of a query; of an answer to a query;
#: of a message between nodes, which cut longer ones into parts.
HELLO_BYTES: Final = 4 * 1024
REPORT_BYTES: Final = 16 * 1024 * 1024
QUERY_BYTES: Final = 64 * 1024
ANSWER_BYTES: Final = 64 * 1024 * 1024
PEER_BYTES: Final = 1024 * 1024

Role: TypeAlias = Literal["application", "reader", "peer"]


Nonce: TypeAlias = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """The client's first message."""

    version: Count
    role: Name
    service: Name
    """The service that the client asks for; "": the one that the node serves."""
    client: Name = ""
    """The client's name, for the node's log."""
    nonce: Nonce | None = None
    """None: the client has no secret."""
    boot: Name = ""
    """Random per start of a node; "" for other roles."""
    cluster: Text = ""
    """The nodes of a node's configuration and whatever else all nodes must agree on; "" for other roles."""


class Challenge(Struct, frozen=True, array_like=True, tag="challenge"):
    """The node's answer to a hello if the service has a secret: it asks for the proof."""

    version: Count
    service: Name
    node: Name
    nonce: Nonce


class Proof(Struct, frozen=True, array_like=True, tag="proof"):
    """The client's answer to a challenge."""

    proof: Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]


class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    """The node accepts the client."""

    version: Count
    service: Name
    node: Name
    software: Name = ""


class Refuse(Struct, frozen=True, array_like=True, tag="refuse"):
    """The node refuses or ends the connection, at any time, and closes it."""

    reason: Text


class Ack(Struct, frozen=True, array_like=True, tag="ack"):
    """The group has applied report `sequence`; with `full`, it could not and needs a full report."""

    instance: Instance
    sequence: Count
    full: bool = False
    elsewhere: Name | None = None
    """The name of a node with fewer applications, to which this one should move. None: stay."""


class Goodbye(Struct, frozen=True, array_like=True, tag="goodbye"):
    """The process ends; report `sequence` was its last one."""

    instance: Instance
    sequence: Annotated[int, Meta(ge=0)]


Message: TypeAlias = Union[
    Hello, Challenge, Proof, Welcome, Refuse, Report, Ack, Goodbye, Question, Rows, NodeStatus, History
]  # fmt: skip
FromClient: TypeAlias = Union[Hello, Proof, Report, Goodbye, Question]
FromNode: TypeAlias = Union[Welcome, Refuse, Ack, Rows, NodeStatus, History]


class HandshakeState(Enum):
    """How far a connection has come. Both sides pass through the same states."""

    START = "start"
    """Nothing was sent."""
    GREETED = "greeted"
    """The client has sent its hello."""
    CHALLENGED = "challenged"
    """The node has asked for the proof of the secret."""
    PROVEN = "proven"
    """The client has sent its proof."""
    OPEN = "open"
    """The node has welcomed the client: the role's messages may be sent."""
    REFUSED = "refused"
    """The node has refused the client, or has ended the connection with a reason."""
    FAILED = "failed"
    """The other side has broken a rule."""


#: The handshake, without and with a secret: state -> message -> next state. The client sends hello and proof,
#: the node the others. In `OPEN`, the messages of `OPEN_MESSAGES` that are not here keep the state.
HANDSHAKE: Final[dict[bool, dict[HandshakeState, dict[type[Struct], HandshakeState]]]] = {
    False: {
        HandshakeState.START: {Hello: HandshakeState.GREETED, Refuse: HandshakeState.REFUSED},
        HandshakeState.GREETED: {Welcome: HandshakeState.OPEN, Refuse: HandshakeState.REFUSED},
        HandshakeState.OPEN: {Refuse: HandshakeState.REFUSED},
    },
    True: {
        HandshakeState.START: {Hello: HandshakeState.GREETED, Refuse: HandshakeState.REFUSED},
        HandshakeState.GREETED: {
            Challenge: HandshakeState.CHALLENGED,
            Refuse: HandshakeState.REFUSED,
            Welcome: HandshakeState.FAILED,
        },
        HandshakeState.CHALLENGED: {Proof: HandshakeState.PROVEN, Refuse: HandshakeState.REFUSED},
        HandshakeState.PROVEN: {Welcome: HandshakeState.OPEN, Refuse: HandshakeState.REFUSED},
        HandshakeState.OPEN: {Refuse: HandshakeState.REFUSED},
    },
}


class _Allowed(NamedTuple):
    """The messages of one side after the welcome, and their largest payload in bytes."""

    messages: Any
    limit: int


#: After the welcome: role -> side -> its messages.
OPEN_MESSAGES: Final[dict[str, dict[str, _Allowed]]] = {
    "application": {
        "client": _Allowed(Union[PackedReport, Goodbye], REPORT_BYTES),
        "node": _Allowed(Union[Ack, Refuse], HELLO_BYTES),
    },
    "reader": {
        "client": _Allowed(Question, QUERY_BYTES),
        "node": _Allowed(Union[Rows, NodeStatus, History, Refuse], ANSWER_BYTES),
    },
    "peer": {
        "client": _Allowed(msgspec.Raw, PEER_BYTES),
        "node": _Allowed(msgspec.Raw, PEER_BYTES),
    },
}

#: The states in which the node has to answer before the client may send more, and those of a connection that
#: is to be closed.
_NODES_TURN: Final = (HandshakeState.GREETED, HandshakeState.PROVEN)
_ENDED: Final = (HandshakeState.REFUSED, HandshakeState.FAILED)

_encoder = msgspec.msgpack.Encoder()
_Decoder: TypeAlias = "msgspec.msgpack.Decoder[Any]"

_HELLO: Final[_Decoder] = msgspec.msgpack.Decoder(Hello)
_PROOF: Final[_Decoder] = msgspec.msgpack.Decoder(Proof)
_REFUSE: Final[_Decoder] = msgspec.msgpack.Decoder(Refuse)
_ANSWER: Final[_Decoder] = msgspec.msgpack.Decoder(Union[Welcome, Refuse])
_ANSWER_WITH_SECRET: Final[_Decoder] = msgspec.msgpack.Decoder(Union[Challenge, Welcome, Refuse])
_OPEN_DECODERS: Final[dict[tuple[str, str], tuple[_Decoder, int]]] = {
    (role, side): (msgspec.msgpack.Decoder(sent.messages), sent.limit)
    for role, sides in OPEN_MESSAGES.items()
    for side, sent in sides.items()
}


def frame(message: Message) -> bytes:
    """Return the frame of a message without a MAC."""
    return framed(_encoder.encode(message))


def framed(payload: bytes, mac: bytes = b"") -> bytes:
    """Return the frame of an encoded message."""
    return b"%b%b%b" % ((len(payload) + len(mac)).to_bytes(4, "big"), payload, mac)


class _Side:
    """One side of a connection: its state, the bytes received, the MACs of both directions."""

    def __init__(self, secret: bytes | None, on_state: Callable[[HandshakeState], None] | None) -> None:
        self.state = HandshakeState.START
        self._on_state = on_state
        self._secret = secret
        self._transitions = HANDSHAKE[secret is not None]
        self._buffer = bytearray()
        self._decoder = _HELLO
        self._limit = HELLO_BYTES
        self._received_macs: FrameMacs | None = None
        self._sent_macs: FrameMacs | None = None
        self._handshake: Handshake | None = None

    def _change(self, state: HandshakeState) -> None:
        if state is not self.state:
            self.state = state
            if self._on_state is not None:
                self._on_state(state)

    def _received(self, message: Any) -> None:
        """Change the state after a message of the other side. Raises ProtocolError."""
        state = self._transitions.get(self.state, {}).get(type(message))
        if state is not None:
            self._change(state)
        elif self.state is not HandshakeState.OPEN:
            raise ProtocolError(f"a {type(message).__name__.lower()} in state {self.state.value}")

    def _send(self, message: Struct) -> None:
        """Change the state before a message of the handshake is sent."""
        state = self._transitions.get(self.state, {}).get(type(message))
        if state is None or state is HandshakeState.FAILED:
            raise RuntimeError(
                f"a {type(message).__name__.lower()} cannot be sent in state {self.state.value}"
            )
        self._change(state)

    def _frame(self, message: Struct) -> bytes:
        payload = _encoder.encode(message)
        return framed(payload) if self._sent_macs is None else framed(payload, self._sent_macs.next(payload))

    def _payload(self) -> bytes | None:
        """Return the payload of the next frame, with its MAC, or None until it is complete."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        length = int.from_bytes(buffer[:4], "big")
        limit = self._limit if self._received_macs is None else self._limit + MAC_BYTES
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

    def _verified(self, payload: bytes) -> bytes:
        """Return the payload without its MAC, if it must have one. Raises ProtocolError."""
        if self._received_macs is None:
            return payload
        payload, mac = payload[:-MAC_BYTES], payload[-MAC_BYTES:]
        if not self._received_macs.verify(mac, payload):
            raise ProtocolError(
                "a frame with a wrong MAC: it was altered, dropped, repeated or forged on the way"
            )
        return payload

    def _decoded(self, payload: bytes) -> Any:
        try:
            message = self._decoder.decode(payload)
            return message.checked() if type(message) is PackedReport else message
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProtocolError(f"a message that cannot be read: {error}") from None


class NodeSide(_Side):
    """The node's side of one connection: bytes in, messages out.

    The first message received is the hello. The node answers it: `refuse`, or `challenge` if
    `needs_proof`, or `welcome`. After a challenge the proof is the next message received (a wrong one is a
    ProtocolError), and the node answers it with `welcome`. Nothing is read while an answer is due.

    `nonce` is `NONCE_BYTES` random bytes, new for each connection; it is used with a secret only.
    `on_state` is called after each change of the state.
    """

    def __init__(
        self,
        secret: bytes | None = None,
        nonce: bytes = b"",
        on_state: Callable[[HandshakeState], None] | None = None,
    ) -> None:
        super().__init__(secret, on_state)
        self._nonce = nonce
        self._hello_frame = b""
        """As it arrived."""
        self.hello: Hello | None = None
        self.role: Role | None = None
        """Set by `welcome`: the client's role, once it has proven the secret."""

    def __repr__(self) -> str:
        return f"<NodeSide of {self.role or 'a client'}: {self.state.value}>"

    @property
    def buffered(self) -> int:
        """The bytes received that are not a whole message yet."""
        return len(self._buffer)

    @property
    def needs_proof(self) -> bool:
        """Whether the answer to the hello is a challenge."""
        return self._secret is not None and self.state is HandshakeState.GREETED

    def receive(self, data: bytes) -> list[FromClient]:
        """Return the messages that are complete with these bytes.

        After an answer, `receive(b"")` returns those that had arrived before it. Raises ProtocolError if a
        rule is broken; the connection must be closed then.
        """
        if self.state in _ENDED:
            return []
        try:
            if self.state in _NODES_TURN:
                raise ProtocolError("the client went on before its hello was answered")
            self._buffer += data
            messages: list[FromClient] = []
            while (payload := self._payload()) is not None:
                payload = self._verified(payload)
                message = self._decoded(payload)
                messages.append(message)
                if self.state is not HandshakeState.OPEN:
                    self._take_handshake(message, payload)
                    break  # the node's turn
            return messages
        except ProtocolError:
            self._change(HandshakeState.FAILED)
            raise

    def _take_handshake(self, message: Hello | Proof, payload: bytes) -> None:
        if isinstance(message, Hello):
            self.hello, self._hello_frame = message, framed(payload)
        else:
            assert self._handshake is not None
            if not self._handshake.verify_proof(message.proof):
                raise ProtocolError(
                    "the secrets differ: the client's is not this node's; both need the same "
                    "secret or secret_file"
                )
            self._received_macs = self._handshake.client_macs()
        self._received(message)

    def check(self, hello: Hello, service: str) -> str | None:
        """Return the reason to refuse this hello on a node of `service`, or None."""
        if hello.version != VERSION:
            return (
                f"protocol version {hello.version} is not spoken here, {VERSION} is: upgrade the older side"
            )
        if hello.role not in OPEN_MESSAGES:
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

    def challenge(self, service: str, node: str) -> bytes:
        """Ask for the proof: return the bytes to send. The hello must have passed `check`."""
        assert self._secret is not None
        challenge = Challenge(VERSION, service, node, self._nonce)
        self._send(challenge)
        data = frame(challenge)
        self._handshake = Handshake(self._secret, self._hello_frame, data)
        self._decoder = _PROOF
        return data

    def welcome(self, service: str, node: str, software: str = "") -> bytes:
        """Accept the client: return the bytes to send. The hello must have passed `check`.

        From now on the role's messages are received.
        """
        welcome = Welcome(VERSION, service, node, software)
        self._send(welcome)
        assert self.hello is not None
        self.role = self.hello.role  # type: ignore[assignment]  # `check` has compared it
        self._decoder, self._limit = _OPEN_DECODERS[self.hello.role, "client"]
        if self._handshake is not None:
            self._sent_macs = self._handshake.node_macs()
        return self._frame(welcome)

    def frame(self, message: Struct) -> bytes:
        """Return the bytes of one message, with its MAC if it needs one. Send frames in this order."""
        if isinstance(message, Refuse):
            self._change(HandshakeState.REFUSED)
        return self._frame(message)

    @staticmethod
    def refuse(reason: str) -> bytes:
        """Return the bytes of a refusal before the welcome. The node closes the connection after it."""
        return frame(Refuse(reason))


class ClientSide(_Side):
    """The side of an application, a reader or a dialing node.

    Send `hello` first. After each `receive` send what `reply` returns, if anything.

    `nonce` is `NONCE_BYTES` random bytes, new for each connection; it is used with a secret only.
    `boot` and `cluster` are those of a dialing node. `on_state` is called after each change of the state.
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
        on_state: Callable[[HandshakeState], None] | None = None,
    ) -> None:
        super().__init__(secret, on_state)
        self._role: Role = role
        self._hello = Hello(
            version=VERSION,
            role=role,
            service=service,
            client=client,
            nonce=None if secret is None else nonce,
            boot=boot,
            cluster=cluster,
        )
        self._decoder = _ANSWER if secret is None else _ANSWER_WITH_SECRET
        self.welcome: Welcome | None = None
        """The node's welcome. None: it has not come, or the node has not proven the secret."""

    def __repr__(self) -> str:
        return f"<ClientSide of {self._role}: {self.state.value}>"

    def hello(self) -> bytes:
        """Return the first bytes to send."""
        self._send(self._hello)
        return frame(self._hello)

    def reply(self) -> bytes:
        """Return the proof after a challenge, once; else b""."""
        if self.state is not HandshakeState.CHALLENGED:
            return b""
        assert self._handshake is not None
        proof = Proof(self._handshake.proof())
        self._send(proof)
        return frame(proof)

    def frame(self, message: Struct) -> bytes:
        """Return the bytes of one message, with its MAC if it needs one. Send frames in this order.

        Raises ProtocolError until the node has proven the secret.
        """
        if self._secret is not None and self.welcome is None:
            raise ProtocolError("the node has not proven yet that it knows the secret")
        return self._frame(message)

    def receive(self, data: bytes) -> list[FromNode]:
        """Return the messages that are complete with these bytes.

        Raises ProtocolError if a rule is broken; the connection must be closed then.
        """
        self._buffer += data
        messages: list[FromNode] = []
        try:
            while self.state not in _ENDED and (payload := self._payload()) is not None:
                if self.state is HandshakeState.OPEN:
                    message = self._decoded(self._verified(payload))
                    self._received(message)
                else:
                    message = self._take_handshake(payload)
                if not isinstance(message, Challenge):
                    messages.append(message)
        except ProtocolError:
            self._change(HandshakeState.FAILED)
            raise
        return messages

    def _take_handshake(self, payload: bytes) -> Challenge | Welcome | Refuse:
        message: Challenge | Welcome | Refuse
        message = self._decoded(payload) if self._handshake is None else self._decoded_proof(payload)
        if not isinstance(message, Refuse) and message.version != VERSION:
            raise ProtocolError(
                f"the node speaks protocol version {message.version}, this side {VERSION}: "
                "upgrade the older side"
            )
        self._received(message)
        if self.state is HandshakeState.FAILED:
            raise ProtocolError(
                "this side has a secret and the node asks for none: start the node with the same secret, "
                "or take this side's away"
            )
        if isinstance(message, Challenge):
            assert self._secret is not None
            self._handshake = Handshake(self._secret, frame(self._hello), framed(payload))
            self._decoder, self._limit = _ANSWER, HELLO_BYTES + MAC_BYTES
        elif isinstance(message, Welcome):
            self.welcome = message
            self._decoder, self._limit = _OPEN_DECODERS[self._role, "node"]
        return message

    def _decoded_proof(self, payload: bytes) -> Welcome | Refuse:
        """Return the node's answer to the proof: with the right MAC, or a refusal without one."""
        assert self._handshake is not None
        macs = self._handshake.node_macs()
        if macs.verify(payload[-MAC_BYTES:], payload[:-MAC_BYTES]):
            self._received_macs = macs
            self._sent_macs = self._handshake.client_macs()
            return self._decoded(payload[:-MAC_BYTES])  # type: ignore[no-any-return]
        try:
            return _REFUSE.decode(payload)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ProtocolError("the node has not proven that it knows the secret") from None

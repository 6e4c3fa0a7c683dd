"""With a secret: a side without it gets nothing, and no frame can be altered on its way."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.cluster.raft.messages import Ping
from connmon.errors import ProtocolError
from connmon.protocol import frames
from connmon.protocol.frames import (
    Ack,
    Challenge,
    ClientSide,
    Hello,
    NodeSide,
    Proof,
    Refuse,
    Role,
    Welcome,
    frame,
)
from connmon.protocol.queries import History, Query
from connmon.protocol.reports import Report
from connmon.protocol.values import Peaks

SECRET = b"0123456789abcdef0123456789abcdef"
OTHER = b"fedcba9876543210fedcba9876543210"
ROLES: list[Role] = ["application", "reader", "peer"]
REPORT = Report("i1", 1, 0, 0.0, Peaks(1, 1, 0, 0.0))
HISTORY = History("default", "node1", number=1, interval=1.0, series=(), timeouts=(), span=1.0)
FROM_CLIENT: dict[str, list[Any]] = {
    "application": [REPORT, frames.Goodbye("i1", 1)],
    "reader": [Query("program"), Query("host")],
    "peer": [Ping(), Ping()],
}
FROM_NODE: dict[str, list[Any]] = {
    "application": [Ack("i1", 1), Refuse("no")],
    "reader": [HISTORY, Refuse("not now")],
    "peer": [Ping(), Ping()],
}


def sides(
    role: Role = "application",
    *,
    client: bytes | None = SECRET,
    node: bytes | None = SECRET,
    nonces: tuple[bytes, bytes] = (b"c" * 32, b"n" * 32),
    service: str = "default",
) -> tuple[ClientSide, NodeSide]:
    """Return both sides of a new connection."""
    return ClientSide(role, service, "test", client, nonces[0]), NodeSide(node, nonces[1])


def answer(node: NodeSide) -> bytes:
    """Return the node's answer to a hello or a proof. Raises ProtocolError for a refusal."""
    assert node.hello is not None
    if (reason := node.check(node.hello, "default")) is not None:
        raise ProtocolError(reason)
    if node.needs_proof:
        return node.challenge("default", "node1")
    return node.welcome("default", "node1", "0.1.0")


def greet(client: ClientSide, node: NodeSide) -> list[bytes]:
    """Make the handshake; return its frames: hello, challenge, proof, welcome."""
    transcript = [client.hello()]
    node.receive(transcript[-1])
    transcript.append(answer(node))
    client.receive(transcript[-1])
    if node.role is None:
        transcript.append(client.reply())
        node.receive(transcript[-1])
        transcript.append(answer(node))
        client.receive(transcript[-1])
    assert node.role is not None and client.welcome is not None
    return transcript


def greeted(role: Role = "application", **options: Any) -> tuple[ClientSide, NodeSide]:
    client, node = sides(role, **options)
    greet(client, node)
    return client, node


# --- The handshake ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("service", ["", "default"])
def test_a_client_with_the_secret_is_welcomed(role: Role, service: str) -> None:
    """In every role both sides prove the secret, and then messages go both ways."""
    client, node = greeted(role, service=service)
    for message in FROM_CLIENT[role]:
        assert len(node.receive(client.frame(message))) == 1
    for message in FROM_NODE[role]:
        assert len(client.receive(node.frame(message))) == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_wrong_secret_is_refused(role: Role) -> None:
    """A client with another secret gets the reason."""
    client, node = sides(role, client=OTHER)
    node.receive(client.hello())
    client.receive(answer(node))
    with pytest.raises(ProtocolError, match="secrets differ"):
        node.receive(client.reply())
    assert node.role is None
    assert client.receive(node.frame(Refuse("the secrets differ"))) == [Refuse("the secrets differ")]


@pytest.mark.parametrize("role", ROLES)
def test_a_client_without_a_secret_gets_the_reason(role: Role) -> None:
    """A node with a secret refuses a client without one; the reason says what the client needs."""
    client, node = sides(role, client=None)
    node.receive(client.hello())
    with pytest.raises(ProtocolError, match=r"the client has none.*connmon_secret_file.*--secret-file"):
        answer(node)


@pytest.mark.parametrize("role", ROLES)
def test_a_client_of_a_node_without_a_secret_gets_the_reason(role: Role) -> None:
    """A node without a secret refuses a client that has one, with the reason."""
    client, node = sides(role, node=None)
    node.receive(client.hello())
    with pytest.raises(ProtocolError, match="the client has a secret and the node has none"):
        answer(node)


@pytest.mark.parametrize("role", ROLES)
def test_a_client_with_a_secret_never_goes_on_without(role: Role) -> None:
    """A welcome without a challenge is refused, and only the hello was sent."""
    client, node = sides(role, client=SECRET, node=None)
    node.receive(client.hello())
    with pytest.raises(ProtocolError, match="asks for none"):
        client.receive(node.welcome("default", "node1"))
    assert client.reply() == b"" and client.welcome is None
    with pytest.raises(ProtocolError, match="not proven"):
        client.frame(FROM_CLIENT[role][0])


@pytest.mark.parametrize("role", ROLES)
def test_a_node_that_does_not_know_the_secret_gets_nothing(role: Role) -> None:
    """A false node cannot compute the MAC of the welcome: the client stops there."""
    client, node = sides(role, node=OTHER)
    node.receive(client.hello())
    client.receive(answer(node))
    assert client.reply()
    for forged in (
        frame(Welcome(1, "default", "node1")),
        frames.framed(frame(Welcome(1, "default", "node1"))[4:], b"\0" * 16),
        frames.framed(b"", b"\0" * 16),
        frame(Challenge(1, "default", "node1", b"x" * 32)),
    ):
        copy = ClientSide(role, "default", "test", SECRET, b"c" * 32)
        copy.hello()
        copy.receive(frame(Challenge(1, "default", "node1", b"n" * 32)))
        with pytest.raises(ProtocolError, match="not proven"):
            copy.receive(forged)
        assert copy.welcome is None


def test_a_clients_frames_cannot_be_replayed() -> None:
    """A client's frames are useless on another connection: the node's nonce is new."""
    client, node = sides()
    hello, _, proof, _ = greet(client, node)
    again = NodeSide(SECRET, b"m" * 32)
    again.receive(hello)
    answer(again)
    with pytest.raises(ProtocolError, match="secrets differ"):
        again.receive(proof + client.frame(REPORT))
    assert again.role is None


def test_a_nodes_frames_cannot_be_replayed() -> None:
    """A node's frames are useless for a client with a new nonce."""
    client, node = sides()
    _, challenge, _, welcome = greet(client, node)
    again = ClientSide("application", "default", "test", SECRET, b"d" * 32)
    again.hello()
    again.receive(challenge)
    with pytest.raises(ProtocolError, match="not proven"):
        again.receive(welcome)


def test_a_side_refuses_its_own_frames() -> None:
    """A side refuses its own frames."""
    client, node = greeted("peer", nonces=(b"x" * 32, b"x" * 32))
    own = client.frame(Ping())
    with pytest.raises(ProtocolError, match="MAC"):
        client.receive(own)
    own = node.frame(Ping())
    with pytest.raises(ProtocolError, match="MAC"):
        node.receive(own)


@pytest.mark.parametrize("field", ["role", "service", "client", "nonce", "version"])
def test_an_altered_hello_is_noticed(field: str) -> None:
    """An altered hello gives a wrong proof, even if the node accepts the hello."""
    client, node = sides("reader", service="")
    changed = {
        "role": Hello(1, "application", "", "test", b"c" * 32),
        "service": Hello(1, "reader", "default", "test", b"c" * 32),
        "client": Hello(1, "reader", "", "tess", b"c" * 32),
        "nonce": Hello(1, "reader", "", "test", b"d" * 32),
        "version": Hello(1, "reader", "", "test", b"c" * 32, "b"),
    }[field]
    client.hello()
    node.receive(frame(changed))
    client.receive(answer(node))
    with pytest.raises(ProtocolError, match="secrets differ"):
        node.receive(client.reply())


@pytest.mark.parametrize(
    "challenge", [Challenge(1, "other", "node1", b"n" * 32), Challenge(1, "default", "x", b"n" * 32)]
)
def test_an_altered_challenge_is_noticed(challenge: Challenge) -> None:
    """An altered challenge gives a wrong proof."""
    client, node = sides()
    node.receive(client.hello())
    answer(node)
    client.receive(frame(challenge))
    with pytest.raises(ProtocolError, match="secrets differ"):
        node.receive(client.reply())


def test_nothing_is_read_before_the_proof() -> None:
    """A message after the hello, or instead of the proof, ends the connection unread."""
    for message in (REPORT, Query("program"), Hello(1, "application", "default", "", b"c" * 32)):
        client, node = sides()
        node.receive(client.hello())
        answer(node)
        with pytest.raises(ProtocolError, match="cannot be read"):
            node.receive(frame(message))
        assert node.role is None


def test_the_page_is_enough_to_implement_it() -> None:
    """Proof and MACs are as docs/protocol.rst says, computed here from the page alone."""
    client, node = sides()
    hello, challenge, proof, welcome = greet(client, node)
    transcript = hello + challenge

    def mac(key: bytes, text: bytes) -> bytes:
        return hmac.new(key, text, hashlib.sha256).digest()

    assert proof == frame(Proof(mac(SECRET, b"connmon client proof\0" + transcript)))
    key = mac(SECRET, b"connmon node to client\0" + transcript)
    payload = frame(Welcome(1, "default", "node1", "0.1.0"))[4:]
    data = payload + mac(key, struct.pack(">Q", 0) + payload)[:16]
    assert welcome == struct.pack(">I", len(data)) + data
    key = mac(SECRET, b"connmon client to node\0" + transcript)
    client.frame(REPORT)
    payload = frame(REPORT)[4:]
    data = payload + mac(key, struct.pack(">Q", 1) + payload)[:16]
    assert client.frame(REPORT) == struct.pack(">I", len(data)) + data


def test_the_secret_is_in_no_repr() -> None:
    """No repr() shows the secret or a key."""
    client, node = greeted()
    for thing in (client, node, client._sent_macs, node._handshake, node._received_macs):
        assert SECRET.decode() not in repr(thing)


# --- Frames with MACs ----------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_frames_out_of_their_order_are_refused(role: Role) -> None:
    """A repeated, missing or moved frame ends the connection; the frame before it counts."""
    for order in ([0, 0], [1], [1, 0], [0, 2]):
        client, node = greeted(role)
        frames = [client.frame(FROM_CLIENT[role][0]) for _ in range(3)]
        for number in order[:-1] if order[0] == 0 else []:
            assert len(node.receive(frames[number])) == 1
        with pytest.raises(ProtocolError, match="MAC"):
            node.receive(frames[order[-1] if order[0] == 0 else order[0]])


def test_a_frame_of_another_connection_is_refused() -> None:
    """A frame of another connection with the same secret and number has another MAC."""
    client, _ = greeted(nonces=(b"1" * 32, b"2" * 32))
    _, node = greeted(nonces=(b"3" * 32, b"4" * 32))
    with pytest.raises(ProtocolError, match="MAC"):
        node.receive(client.frame(REPORT))


def test_a_frame_without_a_mac_is_refused() -> None:
    """After the welcome neither a report nor a refusal is accepted without a MAC."""
    client, node = greeted()
    with pytest.raises(ProtocolError, match="MAC"):
        node.receive(frame(REPORT))
    with pytest.raises(ProtocolError, match="MAC"):
        client.receive(NodeSide.refuse("go away"))


@given(st.data())
def test_any_altered_byte_is_noticed(data: st.DataObject) -> None:
    """A changed byte anywhere in a frame with a MAC gives no message."""
    client, node = greeted()
    altered = bytearray(client.frame(REPORT))
    position = data.draw(st.integers(0, len(altered) - 1))
    altered[position] ^= data.draw(st.integers(1, 255))
    # A length that was made longer waits for more; a real frame behind it does not help.
    with contextlib.suppress(ProtocolError):
        assert node.receive(bytes(altered)) == []
        assert node.receive(client.frame(REPORT) * 3) == []


@given(st.integers(0, 10_000), st.booleans())
def test_a_cut_frame_is_noticed(keep: int, fix_length: bool) -> None:
    """A cut frame waits for the rest; with a matching length it is refused."""
    client, node = greeted()
    data = client.frame(REPORT)
    payload = data[4 : 4 + keep % (len(data) - 4)]
    if fix_length:
        with pytest.raises(ProtocolError, match="MAC"):
            node.receive(len(payload).to_bytes(4, "big") + payload)
    else:
        assert node.receive(data[:4] + payload) == []


@given(st.lists(st.integers(0, 400), max_size=12))
def test_any_split_of_a_stream_with_macs_gives_the_same_messages(cuts: list[int]) -> None:
    """From the hello on, the messages do not depend on where TCP cuts the stream."""
    client, node = sides()
    stream = client.hello()
    got: list[Any] = []

    def feed(data: bytes) -> None:
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
            if start < len(data):
                got.extend(node.receive(data[start:end]))

    feed(stream)
    client.receive(answer(node))
    feed(client.reply())
    client.receive(answer(node))
    feed(client.frame(REPORT) + client.frame(REPORT))
    assert got[2:] == [REPORT, REPORT]


@given(st.sampled_from(["new", "challenged", "welcomed"]), st.lists(st.binary(max_size=200), max_size=4))
def test_random_bytes_raise_nothing_but_protocol_errors(state: str, chunks: list[bytes]) -> None:
    """Garbage at any time, on both sides, is a ProtocolError or an incomplete frame, and opens nothing."""
    client, node = sides()
    if state != "new":
        node.receive(client.hello())
        client.receive(answer(node))
    if state == "welcomed":
        client, node = greeted()
    for side in (node, client):
        with contextlib.suppress(ProtocolError):
            for chunk in chunks:
                messages = side.receive(chunk)
                assert not messages or state != "welcomed"
                if messages and side is node:
                    break
    assert (node.role is not None) == (state == "welcomed")


def test_a_frame_of_the_largest_size_has_room_for_its_mac() -> None:
    """The limit is on the payload: with its MAC a frame may be 16 bytes longer, and no more."""
    limit = frames.REPORT_BYTES
    for over in (0, 1):
        _, node = greeted()
        with pytest.raises(ProtocolError) if over else contextlib.nullcontext():
            assert node.receive((limit + 16 + over).to_bytes(4, "big")) == []

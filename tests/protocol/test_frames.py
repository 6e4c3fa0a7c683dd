"""Bytes and messages: any bytes give only messages or a ProtocolError."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.errors import ProtocolError
from connmon.protocol import frames
from connmon.protocol.batch import Batch
from connmon.protocol.frames import (
    Ack,
    Challenge,
    ClientSide,
    Goodbye,
    HandshakeState,
    Hello,
    NodeSide,
    Proof,
    Refuse,
    Welcome,
    frame,
)
from connmon.protocol.histogram import BUCKETS
from connmon.protocol.queries import History, HistoryQuery, Query, UsersQuery, WaitsQuery
from connmon.protocol.reports import (
    MOST_SITES,
    Connection,
    HoldProfile,
    PoolInfo,
    PoolReport,
    Process,
    Report,
    SiteReport,
    Usage,
)
from connmon.protocol.rows import Figures, Rows
from connmon.protocol.values import Gauges, Peaks, Totals

INFO = PoolInfo("sqlite:////tmp/a.db", "sqlite", None, None, "/tmp/a.db", "QueuePool", 5, 10, 30.0)
FULL = Report(
    "i1", 1, 0, 0.0, Peaks(1, 1, 0, 0.0),
    pools=(PoolReport(0, INFO, Gauges(1, 15, 0, 1, 1), Totals(1, 0, 1), Peaks(1, 1)),),
    connections=(Connection(0, 0, None, "checked_out", 0.5, 0.5, "MainThread"),),
    process=Process("ctl1", "nova-api", 4711, 1, "nova", "nova-api", 2.5),
    usage=Usage(1.5, 1000, 3, 9),
)  # fmt: skip
NEXT = Report("i1", 2, 1, 1.0, Peaks(1, 1), closed_connections=(0,))


def welcomed(role: str, service: str = "default") -> NodeSide:
    side = NodeSide()
    (hello,) = side.receive(frame(Hello(frames.VERSION, role, service)))
    assert isinstance(hello, Hello)
    assert side.check(hello, "default") is None
    side.welcome("default", "node1")
    return side


def rows() -> Rows:
    nothing = Figures(0, 0, Gauges(), Totals(), 0, 0, 0, 0, 0.0, None, None, 0.0, None)
    return Rows("default", "node1", "node1", True, 0.0, "e", 1, 0.5, True, 0, 0, nothing)


def test_a_dialogue_of_an_application() -> None:
    """hello, welcome, report, ack, goodbye go through both sides unchanged."""
    client, node = ClientSide("application", "default", "nova-api"), NodeSide()
    (hello,) = node.receive(client.hello())
    assert hello == Hello(frames.VERSION, "application", "default", "nova-api")
    assert client.receive(node.welcome("default", "node1", "0.1")) == [
        Welcome(frames.VERSION, "default", "node1", "0.1")
    ]
    assert node.receive(frame(FULL) + frame(Goodbye("i1", 1))) == [FULL, Goodbye("i1", 1)]
    assert client.receive(frame(Ack("i1", 1))) == [Ack("i1", 1)]


def test_a_dialogue_of_a_reader() -> None:
    """hello, welcome, query, rows go through both sides unchanged."""
    client, node = ClientSide("reader", ""), NodeSide()
    (hello,) = node.receive(client.hello())
    assert isinstance(hello, Hello) and node.check(hello, "default") is None
    client.receive(node.welcome("default", "node1"))
    assert node.receive(frame(Query("program"))) == [Query("program")]
    assert client.receive(frame(rows())) == [rows()]


def test_what_follows_the_hello_is_kept_for_after_the_welcome() -> None:
    """A client may send its report with the hello; the node reads it after the welcome."""
    node = NodeSide()
    (hello,) = node.receive(frame(Hello(1, "application", "default")) + frame(FULL))
    assert isinstance(hello, Hello)
    assert node.buffered == len(frame(FULL))
    node.welcome("default", "node1")
    assert node.receive(b"") == [FULL]
    assert node.buffered == 0


@given(st.lists(st.sampled_from([FULL, NEXT, Goodbye("i1", 2)]), max_size=6), st.data())
def test_any_split_of_the_stream_gives_the_same_messages(
    messages: list[Report | Goodbye], data: st.DataObject
) -> None:
    """The messages do not depend on where TCP cuts the stream."""
    stream = b"".join(map(frame, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    node = welcomed("application")
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += node.receive(stream[start:end])
    assert got == messages
    assert node.buffered == 0


@given(st.sampled_from(["new", "application", "reader"]), st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_raise_nothing_but_protocol_errors(state: str, chunks: list[bytes]) -> None:
    """Garbage, before and after the hello, is a ProtocolError or an incomplete frame; no other exception."""
    node = NodeSide() if state == "new" else welcomed(state)
    try:
        for chunk in chunks:
            if node.receive(chunk) and node.role is None:
                return
    except ProtocolError:
        pass


@given(st.sampled_from(["new", "application", "reader"]), st.binary(max_size=300))
def test_random_payloads_raise_nothing_but_protocol_errors(state: str, payload: bytes) -> None:
    """A whole frame with any payload is a message or a ProtocolError."""
    node = NodeSide() if state == "new" else welcomed(state)
    with contextlib.suppress(ProtocolError):
        node.receive(len(payload).to_bytes(4, "big") + payload)


@given(st.integers(0, len(frame(FULL)) - 5), st.integers(0, 255))
def test_a_damaged_report_raises_nothing_but_protocol_errors(position: int, value: int) -> None:
    """One wrong byte in a real report is another report, or a ProtocolError."""
    payload = bytearray(frame(FULL)[4:])
    payload[position] = value
    try:
        messages = welcomed("application").receive(len(payload).to_bytes(4, "big") + bytes(payload))
    except ProtocolError:
        return
    assert all(isinstance(message, Report | Goodbye) for message in messages)


@pytest.mark.parametrize(
    "counts", [{-1: 1}, {BUCKETS: 1}, {0: 0}, {0: -1}, {0: 2**53}, {0: 1.5}, {"0": 1}, [1, 2], None]
)
def test_histograms_out_of_range_are_refused(counts: Any) -> None:
    """An invalid bucket or count is refused when it is decoded."""
    pool = msgspec.msgpack.decode(msgspec.msgpack.encode(FULL.pools[0]))
    pool[7] = [{}, {0: 1, BUCKETS - 1: 2**53 - 1}, {}]
    pool_report = msgspec.msgpack.decode(msgspec.msgpack.encode(pool), type=PoolReport)
    assert pool_report.times.holds == {0: 1, BUCKETS - 1: 2**53 - 1}
    pool[7] = [{}, counts, {}]
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(pool), type=PoolReport)


@given(st.binary(max_size=300))
def test_a_client_is_as_safe_from_its_node(data: bytes) -> None:
    """Garbage from a node is a ProtocolError at the client, nothing else."""
    client = ClientSide("reader", "default")
    client.hello()
    with contextlib.suppress(ProtocolError):
        client.receive(frame(Welcome(1, "default", "n")) + data)


@pytest.mark.parametrize(
    ("state", "limit"),
    [("new", frames.HELLO_BYTES), ("application", frames.REPORT_BYTES), ("reader", frames.QUERY_BYTES)],
)
def test_a_length_over_the_limit_is_refused_before_it_has_come(state: str, limit: int) -> None:
    """The length alone refuses a frame that is too large; the limit itself is allowed."""
    node = NodeSide() if state == "new" else welcomed(state)
    assert node.receive(limit.to_bytes(4, "big")) == []
    node = NodeSide() if state == "new" else welcomed(state)
    with pytest.raises(ProtocolError, match=f"{limit} is the limit"):
        node.receive((limit + 1).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("application", Query("program")),
        ("application", Ack("i1", 1)),
        ("application", Hello(1, "application", "default")),
        ("reader", FULL),
        ("reader", Goodbye("i1", 1)),
        ("reader", rows()),
    ],
)
def test_a_role_sends_only_its_own_messages(role: str, message: frames.Message) -> None:
    """A reader cannot report, an application cannot ask, and a second hello is refused."""
    with pytest.raises(ProtocolError, match="cannot be read"):
        welcomed(role).receive(frame(message))


@pytest.mark.parametrize("message", [FULL, Query("program"), Welcome(1, "default", "n"), Refuse("no")])
def test_nothing_but_a_hello_comes_first(message: frames.Message) -> None:
    """The first message is a hello."""
    with pytest.raises(ProtocolError):
        NodeSide().receive(frame(message))


def test_nothing_is_read_until_the_hello_is_answered() -> None:
    """Bytes that arrive before the node has answered are a ProtocolError."""
    node = NodeSide()
    node.receive(frame(Hello(1, "reader", "default")))
    with pytest.raises(ProtocolError, match="before its hello was answered"):
        node.receive(b"\0")


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(2, "reader", "default"), "protocol version 2"),
        (Hello(0, "reader", "default"), "protocol version 0"),
        (Hello(1, "spy", "default"), "role 'spy'"),
        (Hello(1, "reader", "other"), "service 'other'"),
    ],
)
def test_a_wrong_hello_is_refused_with_the_reason(hello: Hello, reason: str) -> None:
    """Version, role and service are checked; the reason names what is wrong."""
    node = NodeSide()
    assert reason in (node.check(hello, "default") or "")


@pytest.mark.parametrize("service", ["", "default"])
def test_a_hello_that_fits(service: str) -> None:
    """The service may be empty."""
    assert NodeSide().check(Hello(1, "reader", service), "default") is None


def test_a_client_refuses_a_node_of_another_version() -> None:
    """A welcome with another version is a ProtocolError that says what to do."""
    client = ClientSide("reader", "")
    client.hello()
    with pytest.raises(ProtocolError, match="upgrade the older side"):
        client.receive(frame(Welcome(2, "default", "n")))


@pytest.mark.parametrize(
    "report",
    [
        msgspec.structs.replace(FULL, sequence=0),
        msgspec.structs.replace(FULL, base=-1),
        msgspec.structs.replace(FULL, interval=-1.0),
        msgspec.structs.replace(FULL, interval=float("nan")),
        msgspec.structs.replace(FULL, instance=""),
        msgspec.structs.replace(FULL, instance="x" * 65),
        msgspec.structs.replace(FULL, closed_connections=(2**53,)),
    ],
)
def test_values_out_of_range_are_refused(report: Report) -> None:
    """A number out of range or a text too long is refused when it is decoded."""
    with pytest.raises(ProtocolError):
        welcomed("application").receive(frame(report))


def test_unknown_elements_of_a_report_are_not_replicated() -> None:
    """Elements of a newer version are ignored, and the batch has none of them, however deeply nested.

    Another node might not be able to decode them, and would skip a batch that the others apply.
    """
    payload = bytearray(frame(FULL)[4:])
    payload[0] += 1  # one element more
    payload += b"\x91" * 500 + b"\x90"
    (report,) = welcomed("application").receive(frames.framed(bytes(payload)))
    assert report == FULL
    batch = Batch("node1", "boot", 1, None, (report,))
    assert msgspec.msgpack.encode(batch) == msgspec.msgpack.encode(Batch("node1", "boot", 1, None, (FULL,)))


def test_unknown_elements_of_call_sites_are_not_replicated() -> None:
    """Call sites stay packed until they are applied; but what cannot be read is refused at once."""
    site = SiteReport(1, "a.py:1 f", profile=HoldProfile(1, 2, 3, 4, {"database": 1}))
    report = msgspec.structs.replace(FULL, sites=(site,))
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(report))
    fields[-1][0].append([[[]]])
    (received,) = welcomed("application").receive(frames.framed(msgspec.msgpack.encode(fields)))
    assert received == report
    batch, expected = (Batch("node1", "boot", 1, None, (one,)) for one in (received, report))
    assert msgspec.msgpack.encode(batch) == msgspec.msgpack.encode(expected)
    for nonsense in (
        None,
        {},
        "",
        5,
        True,
        b"",
        "no sites",
        [[1]],
        [[1, "a.py:1 f", -1]],
        [[1, "x"]] * (MOST_SITES + 1),
    ):
        fields[-1] = nonsense
        with pytest.raises(ProtocolError, match="cannot be read"):
            welcomed("application").receive(frames.framed(msgspec.msgpack.encode(fields)))


def test_bytes_after_a_report_are_refused() -> None:
    """A payload is one message: bytes after it would become part of a batch."""
    payload = frame(FULL)[4:] + b"\xc0"
    with pytest.raises(ProtocolError, match="cannot be read"):
        welcomed("application").receive(frames.framed(payload))


def test_deep_nesting_is_refused() -> None:
    """A payload of ten thousand nested arrays is a ProtocolError, not a RecursionError."""
    payload = b"\x91" * 4000
    with pytest.raises(ProtocolError):
        NodeSide().receive(len(payload).to_bytes(4, "big") + payload)


# --- States ---------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, b"0123456789abcdef"])
def test_both_sides_pass_through_the_states_of_the_table(secret: bytes | None) -> None:
    """Client and node report the same states in the same order, each of them a transition of HANDSHAKE."""
    states: dict[str, list[HandshakeState]] = {"client": [], "node": []}
    client = ClientSide("reader", "", "", secret, bytes(32), on_state=states["client"].append)
    node = NodeSide(secret, bytes(32), on_state=states["node"].append)
    node.receive(client.hello())
    if node.needs_proof:
        client.receive(node.challenge("default", "node1"))
        node.receive(client.reply())
    client.receive(node.welcome("default", "node1"))
    client.receive(node.frame(Refuse("the node is ending")))
    assert states["client"] == states["node"]
    before = HandshakeState.START
    for state in states["node"]:
        assert state in frames.HANDSHAKE[secret is not None][before].values()
        before = state
    proof = [HandshakeState.CHALLENGED, HandshakeState.PROVEN] if secret else []
    assert states["node"] == [HandshakeState.GREETED, *proof, HandshakeState.OPEN, HandshakeState.REFUSED]
    assert repr(client) == "<ClientSide of reader: refused>"
    assert repr(node) == "<NodeSide of reader: refused>"


@pytest.mark.parametrize("secret", [None, b"0123456789abcdef"])
def test_steps_out_of_order_are_errors_of_the_caller(secret: bytes | None) -> None:
    """A second hello, an answer to no hello and a welcome without the proof are never sent."""
    client, node = ClientSide("reader", "", "", secret, bytes(32)), NodeSide(secret, bytes(32))
    with pytest.raises(RuntimeError, match="welcome cannot be sent in state start"):
        node.welcome("default", "node1")
    node.receive(client.hello())
    with pytest.raises(RuntimeError, match="hello cannot be sent in state greeted"):
        client.hello()
    if secret:
        with pytest.raises(RuntimeError, match="welcome cannot be sent in state greeted"):
            node.welcome("default", "node1")
    assert client.reply() == b""


def test_nothing_is_read_after_a_broken_rule() -> None:
    """A side that has failed stays so; later bytes are not read."""
    node = welcomed("application")
    with pytest.raises(ProtocolError):
        node.receive(frame(Query("program")) + frame(FULL))
    assert node.state is HandshakeState.FAILED
    assert node.receive(frame(FULL)) == []


# --- docs/protocol.rst ----------------------------------------------------------------------

#: The example dialogue of docs/protocol.rst: who sends what.
DIALOGUE: list[tuple[str, frames.Message]] = [
    ("application", Hello(frames.VERSION, "application", "default", "nova-api")),
    ("node", Welcome(frames.VERSION, "default", "node1", "0.1.0")),
    ("application", FULL),
    ("node", Ack("i1", 1)),
    ("application", NEXT),
    ("node", Ack("i1", 2)),
    ("application", Goodbye("i1", 2)),
]


def example(dialogue: list[tuple[str, frames.Message, bytes]]) -> str:
    """Return a dialogue in the form of the page: sender, message, and every byte of the frame."""
    lines = []
    for who, message, data in dialogue:
        plain = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
        values = [value.hex() if isinstance(value, bytes) else value for value in plain]
        fields = msgspec.json.encode(values).decode()
        lines.append(f"{who}:")
        lines += [f"    {line}" for line in textwrap.wrap(fields, 90, break_on_hyphens=False)]
        lines += [f"        {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def indented(text: str) -> str:
    return textwrap.indent(text, "    ", lambda line: bool(line.strip()))


def dialogue_with_a_secret() -> list[tuple[str, frames.Message, bytes]]:
    """Return the page's example with a secret, made by both sides."""
    secret = b"0123456789abcdef0123456789abcdef"
    client = ClientSide("reader", "", "connmon", secret, bytes(range(32)))
    node = NodeSide(secret, bytes(range(32, 64)))
    steps: list[tuple[str, frames.Message, bytes]] = []

    def sent(data: bytes) -> None:
        (message,) = node.receive(data)
        steps.append(("reader", message, data))

    sent(client.hello())
    challenge = node.challenge("default", "node1")
    steps.append(("node", msgspec.msgpack.decode(challenge[4:], type=Challenge), challenge))
    assert client.receive(challenge) == []
    sent(client.reply())
    welcome = node.welcome("default", "node1", "0.1.0")
    steps += [("node", message, welcome) for message in client.receive(welcome)]
    sent(client.frame(Query("program")))
    refusal = node.frame(Refuse("the node is ending"))
    steps += [("node", message, refusal) for message in client.receive(refusal)]
    return steps


def test_the_example_with_a_secret_is_what_is_sent() -> None:
    """This code sends every byte of the dialogue with MACs in docs/protocol.rst."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.rst").read_text(encoding="utf-8")
    assert indented(example(dialogue_with_a_secret())) in page


def test_the_example_in_the_documentation_is_what_is_sent() -> None:
    """This code sends every byte of the dialogue in docs/protocol.rst, and both sides accept it."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.rst").read_text(encoding="utf-8")
    dialogue = [(who, message, frame(message)) for who, message in DIALOGUE]
    assert indented(example(dialogue)) in page
    client, node = ClientSide("application", "default", "nova-api"), NodeSide()
    client.hello()
    for who, message in DIALOGUE:
        if isinstance(message, Welcome):
            node.welcome("default", "node1", "0.1.0")
        side: NodeSide | ClientSide = node if who == "application" else client
        assert side.receive(frame(message)) == [message]


def test_the_limits_in_the_documentation_are_those_of_the_code() -> None:
    """The page has the version and the size limits of the code."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.rst").read_text(encoding="utf-8")
    assert f"This page describes version {frames.VERSION}." in page
    limits = (frames.HELLO_BYTES, frames.REPORT_BYTES, frames.QUERY_BYTES, frames.ANSWER_BYTES)
    for limit in limits:
        assert f"{limit:,}" in page
    sent = (Hello, Challenge, Proof, Welcome, Refuse, Report, Ack, Goodbye, Query, Rows)
    for message in (*sent, HistoryQuery, History, WaitsQuery, UsersQuery):
        tag = msgspec.inspect.type_info(message)
        assert isinstance(tag, msgspec.inspect.StructType)
        assert f"\n{tag.tag}\n" in page
        for field in tag.fields:
            assert f"``{field.name}``" in page, field.name

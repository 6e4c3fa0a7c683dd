"""Peer links: which nodes are refused, when a link is dropped, and messages longer than a frame."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from connmon.cluster.raft import messages
from connmon.cluster.raft.messages import (
    Append,
    AppendEntry,
    Install,
    Joiner,
    Matched,
    Part,
    Propose,
    cut,
    decode,
    encode,
)
from connmon.cluster.raft.status import Role
from connmon.cluster.raft.transport import LINK_CHANGES, LinkState, PeerSettings, cluster_text
from connmon.config import Address, Node
from connmon.errors import ProtocolError
from connmon.protocol.credentials import Credentials
from connmon.protocol.frames import PEER_BYTES, VERSION, ClientSide, Hello, Refuse, Welcome
from connmon.protocol.frames import frame as wire_frame
from tests.cluster.raft.test_replica import batch
from tests.support.cluster_fakes import full
from tests.support.trio import Trio


def frame(message: msgspec.Struct) -> bytes:
    """Return a message in a frame, as on a connection without a secret."""
    return ClientSide("peer", "default").frame(message)


def with_trio(body: Callable[[Trio], Awaitable[None]], **options: Any) -> None:
    """Run `body` with three linked nodes, for at most 60 s."""

    async def run() -> None:
        async with Trio(**options) as trio:
            await asyncio.wait_for(body(trio), 60)

    asyncio.run(run())


async def exchange(trio: Trio, to: str, *messages: Any) -> list[Any]:
    """Connect to a node as a peer, send these messages, and return its answers until it closes."""
    at = trio.service.node(to).bind
    reader, writer = await asyncio.open_connection(at.host, at.port)
    try:
        writer.write(b"".join(m if isinstance(m, bytes) else wire_frame(m) for m in messages))
        received = b""
        while data := await reader.read(65536):
            received += data
    finally:
        writer.close()
    frames = []
    while received:
        size = int.from_bytes(received[:4], "big")
        frames.append(received[4 : 4 + size])
        received = received[4 + size :]
    decoder = msgspec.msgpack.Decoder(Welcome | Refuse)
    return [decoder.decode(payload) for payload in frames]


def hello(trio: Trio, name: str, **changes: Any) -> Hello:
    right = Hello(VERSION, "peer", "default", name, None, "a boot", cluster_text(trio.service))
    return msgspec.structs.replace(right, **changes)


# --- three nodes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_one_proposes_all_apply() -> None:
    """A batch proposed on the leader and on the followers is applied everywhere, in one order."""

    async def body(trio: Trio) -> None:
        for number in range(1, 31):
            name = f"node{number % 3 + 1}"
            outcome = await trio.replicas[name].propose(batch(number, full("i", number)))
            assert outcome.applied
        await trio.until(lambda: {state.version for state in trio.states()} == {30})
        assert len({state.encode() for state in trio.states()}) == 1
        (leader,) = trio.leaders()
        for name, replica in trio.replicas.items():
            status = replica.status
            assert status.role is (Role.LEADER if name == leader else Role.FOLLOWER)
            assert (status.leader, status.lag, status.quorum) == (leader, 0, True)
            assert set(status.connected.values()) == {True}

    with_trio(body)


@pytest.mark.slow
def test_a_leader_that_ends_is_followed_by_another() -> None:
    """Batches are applied with the next leader; the node that comes back gets everything."""

    async def body(trio: Trio) -> None:
        await trio.replicas["node1"].propose(batch(1, full("i1")))
        (leader,) = trio.leaders()
        assert leader is not None
        trio.stop(leader)
        rest = next(iter(trio.replicas.values()))
        assert (await rest.propose(batch(2, full("i2")))).applied
        assert rest.status.leader != leader
        trio.start(leader)
        await trio.until(lambda: {state.version for state in trio.states()} == {2})
        await trio.until(lambda: all(replica.status.quorum for replica in trio.replicas.values()))

    with_trio(body)


@pytest.mark.slow
def test_without_a_majority_nothing_is_applied_and_quorum_is_denied() -> None:
    """One node of three waits; with a second one it goes on."""

    async def body(trio: Trio) -> None:
        await trio.replicas["node1"].propose(batch(1, full("i1")))
        trio.stop("node2")
        trio.stop("node3")
        replica = trio.replicas["node1"]
        await trio.until(lambda: not replica.status.quorum and replica.status.leader is None)
        proposal = asyncio.ensure_future(replica.propose(batch(2, full("i2"))))
        done, _ = await asyncio.wait({proposal}, timeout=0.5)
        assert not done and replica.state.version == 1
        trio.start("node2")
        assert (await proposal).applied

    with_trio(body)


@pytest.mark.slow
def test_a_large_batch_goes_in_parts() -> None:
    """A batch of 12 MB gets to every node, from a follower over the leader."""

    async def body(trio: Trio) -> None:
        (leader,) = trio.leaders()
        follower = next(name for name in trio.replicas if name != leader)
        reports = tuple(full(f"i{n}", 1, "x" * 2048) for n in range(6000))
        outcome = await trio.replicas[follower].propose(batch(1, *reports))
        assert outcome.applied
        await trio.until(lambda: {state.version for state in trio.states()} == {1})
        assert trio.leaders() == {leader}

    with_trio(body)


@pytest.mark.slow
def test_nodes_with_a_secret() -> None:
    """Nodes prove the secret to each other; a node without it is refused."""

    async def body(trio: Trio) -> None:
        assert (await trio.replicas["node3"].propose(batch(1, full("i1")))).applied
        (refuse,) = await exchange(trio, "node2", hello(trio, "node1"))
        assert "secret" in refuse.reason

    with_trio(body, credentials=Credentials(b"0123456789abcdef"))


# --- refused nodes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("node2", {}, "two nodes were started under one name"),
        ("node9", {}, "'node9' is not in this node's config; its nodes are: node1, node2, node3"),
        ("node1", {"cluster": "node1=x:1"}, "the config files differ"),
        ("node1", {"cluster": "node1=x:1 (rules f0192881)"}, "the config files differ"),
        ("node1", {"service": "other"}, "service 'other' is not served here"),
        ("node1", {"version": 99}, "protocol version 99"),
        ("node1", {}, "two nodes under one name"),
    ],
)
def test_who_does_not_belong_is_refused(
    name: str, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is sent and logged; the group goes on."""

    async def body(trio: Trio) -> None:
        await trio.until(lambda: all(trio.replicas["node2"].status.connected.values()))
        (refuse,) = await exchange(trio, "node2", hello(trio, name, **changes))
        assert isinstance(refuse, Refuse)
        assert reason in refuse.reason
        assert (await trio.replicas["node1"].propose(batch(1))).applied
        assert all(trio.replicas["node2"].status.connected.values())

    with_trio(body)
    assert reason in caplog.text


def test_a_node_whose_state_has_no_profiles_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It would drop them from the reports that it takes: no group has nodes of both versions."""

    async def body(trio: Trio) -> None:
        nodes, _, _ = cluster_text(trio.service).rpartition(" (rules ")
        earlier = hello(trio, "node1", cluster=f"{nodes} (rules f0192881)")
        (refuse,) = await exchange(trio, "node2", earlier)
        assert isinstance(refuse, Refuse)
        assert "the versions of connmon differ too much for one group" in refuse.reason
        assert refuse.reason.endswith("here; upgrade the older ones")

    with_trio(body)
    assert "upgrade the older ones" in caplog.text


@pytest.mark.slow
def test_another_config_is_logged_by_both(caplog: pytest.LogCaptureFixture) -> None:
    """A node started with another list of nodes is refused, and both sides log what differs."""
    caplog.set_level(logging.WARNING)

    async def body(trio: Trio) -> None:
        trio.stop("node3")
        more = (*trio.service.nodes, Node("node4", Address("127.0.0.1", 1), Address("127.0.0.1", 1)))
        trio.start("node3", config=dataclasses.replace(trio.service, nodes=more))

        def logged(by: str) -> bool:
            return any(
                record.name == by and "the config files differ" in record.getMessage()
                for record in caplog.records
            )

        await trio.until(
            lambda: logged("connmon.cluster.log_limit") and logged("connmon.cluster.raft.transport")
        )
        assert (await trio.replicas["node1"].propose(batch(1))).applied
        assert not trio.replicas["node3"].status.quorum

    with_trio(body)


def test_a_group_of_one_has_no_peers() -> None:
    """The text that nodes compare names every node, in whatever order the config file has them."""
    trio = Trio()
    turned = dataclasses.replace(trio.service, nodes=trio.service.nodes[::-1])
    assert cluster_text(turned) == cluster_text(trio.service)
    assert "node3=127.0.0.1:" in cluster_text(trio.service)


# --- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x02\xc1\xc1",
        (PEER_BYTES + 1).to_bytes(4, "big"),
        frame(Matched(1, 0, True, True)),
        frame(Propose(1, b"\x02membership")),
        frame(Append(99, 1, 5, 1, 0, messages.check(b"\x01"), (AppendEntry(99, b"\x03code"),))),
        frame(Part(b"\xc1", False)),
    ],
    ids=["rubbish", "long", "range", "membership", "version", "part"],
)
def test_a_peer_with_invalid_messages_is_dropped(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Its link ends with one log line; nothing is applied, and the real node links again."""

    async def body(trio: Trio) -> None:
        real = trio.replicas["node1"].peers
        assert real is not None
        boot = real._boot  # so that it takes the real node's place
        at = trio.service.node("node3").bind
        reader, writer = await asyncio.open_connection(at.host, at.port)
        side = ClientSide("peer", "default", "node1", boot=boot, cluster=cluster_text(trio.service))
        writer.write(side.hello())
        while not side.welcome:
            side.receive(await reader.read(65536))
        writer.write(garbage)
        while await reader.read(65536):
            pass
        writer.close()
        await trio.until(lambda: all(trio.replicas["node3"].status.connected.values()))
        assert (await trio.replicas["node3"].propose(batch(1))).applied

    with_trio(body)
    assert "is dropped" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_a_peer_whose_hello_is_followed_by_rubbish_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """Rubbish in the segment of the hello closes the connection with one line, before any link is made."""

    async def body(trio: Trio) -> None:
        real = trio.replicas["node1"].peers
        assert real is not None  # its boot, so that the hello is not refused
        await exchange(trio, "node3", hello(trio, "node1", boot=real._boot), b"\x00\x00\x00\x02\xc1\xc1")

    with_trio(body)
    assert caplog.text.count("connection closed:") == 1
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


@pytest.mark.slow
def test_a_silent_link_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A link on which nothing is heard for `dead_seconds` is dropped, and opened again."""

    async def body(trio: Trio) -> None:
        peers = trio.replicas["node2"].peers
        assert peers is not None
        link = peers._links["node3"]
        link.data_received = lambda data: None  # type: ignore[method-assign]
        await trio.until(lambda: peers._links.get("node3") is not link)
        await trio.until(lambda: "node3" in peers._links)

    with_trio(body, peer_settings=PeerSettings(dead_seconds=0.6))
    assert "nothing was heard" in caplog.text


def test_a_link_and_a_role_tell_their_story_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """Each change of a peer link or a role is one line; the objects describe themselves."""
    caplog.set_level(logging.DEBUG, "connmon.cluster.raft")

    async def body(trio: Trio) -> None:
        await trio.until(lambda: all(trio.replicas["node1"].status.connected.values()))
        replica = trio.replicas["node1"]
        assert repr(replica).startswith("<Replica default/node1 <RaftGroup ")
        assert "<PeerLink node2 127.0.0.1:" in repr(replica.peers)
        trio.stop("node1")

    with_trio(body)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    links = [line for line in lines if line.startswith("link to node node2 ")]
    changes = [line.partition("): ")[2] for line in links]
    assert changes[:2] == ["opening", "opening -> open"]
    assert "open -> closed" in changes
    assert any(line.startswith("this node: candidate -> leader in term ") for line in lines)


def test_a_congested_link_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above `room_bytes` a link carries heartbeats only; when it has room again, the group is called."""

    async def body(trio: Trio) -> None:
        peers = trio.replicas["node1"].peers
        assert peers is not None
        await trio.until(lambda: "node2" in peers._links)
        link = peers._links["node2"]
        roomy: list[str] = []
        monkeypatch.setattr(trio.replicas["node1"]._group, "roomy", roomy.append)
        link.resume_writing()
        link.pause_writing()
        assert link.state.name == "CONGESTED" and not peers.room("node2")
        link.resume_writing()
        assert link.state.name == "OPEN" and peers.room("node2")
        assert roomy == ["node2"]

    with_trio(body)


def test_the_changes_of_a_link() -> None:
    """Every state is in the table, can be reached, and ends as closed."""
    assert set(LINK_CHANGES) == set(LinkState)
    assert set.union(*map(set, LINK_CHANGES.values())) | {LinkState.OPENING} == set(LinkState)
    assert all(
        LinkState.CLOSED in LINK_CHANGES[state] for state in LinkState if state is not LinkState.CLOSED
    )


# --- messages -------------------------------------------------------------------------------


def test_long_messages_are_cut_and_joined() -> None:
    """No frame is above the limit, and the parts join to the same message."""
    entries = tuple(AppendEntry(n, b"\x00" + bytes([n]) * 300_000) for n in range(1, 9))
    for message in (
        Append(3, 1, 9, 1, 0, 0, entries),
        Propose(1, b"\x00" + b"x" * 3_000_000),
        Install(3, 9, 9, 3, b"\x00" * 700_000, 10, 0, b"y" * messages.PART_BYTES),
        Append(3, 1, 9, 1, 0, 0, (AppendEntry(1, b"\x01"),)),
    ):
        parts = cut(message)
        assert all(len(frame(part)) < PEER_BYTES for part in parts)
        if len(parts) > 1:
            joiner = Joiner()
            joined = [joiner.add(part) for part in parts if isinstance(part, Part)]
            assert joined[:-1] == [None] * (len(parts) - 1)
            assert joined[-1] == message
        else:
            assert parts == [message]
        assert decode(encode(message)) == message


def test_what_is_joined_has_a_limit() -> None:
    """A node cannot make another one grow without bound."""
    joiner = Joiner(limit_bytes=1000)
    joiner.add(Part(b"x" * 600, True))
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        joiner.add(Part(b"x" * 600, True))

"""The blocking client connection, against small nodes that behave well or badly."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import pytest

from connmon.config import Address, Node
from connmon.errors import PeerError, ProtocolError, RefusedError, UnreachableError
from connmon.protocol.frames import Hello, NodeSide, frame
from connmon.protocol.queries import Query
from connmon.protocol.rows import Figures, ProgramRow, Rows
from connmon.protocol.values import Gauges, Totals
from connmon.reader.client import TRANSITIONS, ClientState, connect, read_once
from tests.support.requirements import lacking

FIGURES = Figures(1, 0, Gauges(), Totals(), 1, 0, 0, 0, 0.0, None, None, 0.0, 0.0)

#: What a node does with an accepted connection; the node closes it afterwards.
Manner: TypeAlias = Callable[[socket.socket], None]


def rows(program: str = "nova", **changes: Any) -> Rows:
    header: dict[str, Any] = {
        "service": "default",
        "node": "node1",
        "leader": "node1",
        "quorum": True,
        "stale": 0.2,
        "epoch": "e1",
        "version": 7,
        "clock": 10.0,
        "complete": True,
        "hosts": 1,
        "programs": 1,
        "totals": FIGURES,
        "rows": (ProgramRow("ctl1", program, "connected", FIGURES),),
    }
    return Rows(**{**header, **changes})


def welcoming(*answer: Rows, raw: bytes = b"", service: str = "default") -> Manner:
    """Return a node that answers every query with these frames, and then these bytes."""

    def behave(sock: socket.socket) -> None:
        side = NodeSide()
        while data := sock.recv(65536):
            for message in side.receive(data):
                if isinstance(message, Hello):
                    reason = side.check(message, service)
                    if reason is not None:
                        sock.sendall(side.refuse(reason))
                        return
                    sock.sendall(side.welcome(service, "node1"))
                else:
                    assert isinstance(message, Query)
                    sock.sendall(b"".join(frame(rows) for rows in answer) + raw)
                    if raw:
                        return

    return behave


def refusing(reason: str) -> Manner:
    def behave(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(NodeSide.refuse(reason))

    return behave


def saying(data: bytes) -> Manner:
    def behave(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(data)

    return behave


def silent(sock: socket.socket) -> None:
    """Answer nothing, until the reader gives up."""
    while sock.recv(65536):
        pass


@contextmanager
def serving(
    manner: Manner, name: str = "node1", family: int = socket.AF_INET, host: str = "127.0.0.1"
) -> Iterator[Node]:
    """Run a node of this manner in threads; yields its address."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen()
        threads: list[threading.Thread] = []

        def serve(sock: socket.socket) -> None:
            with sock:
                try:
                    manner(sock)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):  # closing on unread bytes would reset the connection
                        pass
                except OSError:
                    pass  # the reader went first

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
                threads[-1].start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        address = Address(host, listener.getsockname()[1])
        yield Node(name, address, address)
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(10)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def nobody(name: str = "gone") -> Iterator[Node]:
    """A node that is down: its port is bound, so that nobody else gets it, and does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", sock.getsockname()[1])
        yield Node(name, address, address)


def test_ask() -> None:
    """A welcomed reader gets all frames of each answer, one query after the other."""
    frames = [rows("a", more=True), rows("b", more=True), rows("c")]
    with serving(welcoming(*frames)) as node, connect([node], "default") as client:
        assert client.node is node
        for _ in range(3):
            assert list(client.ask(Query("program"))) == frames
        assert not client.closed
    assert client.closed
    with pytest.raises(UnreachableError, match="the connection is closed"):
        next(client.ask(Query("program")))


def test_any_service() -> None:
    """A reader without a service reads the node's service."""
    with serving(welcoming(rows(), service="other")) as node, connect([node], "") as client:
        assert len(list(client.ask(Query("program")))) == 1


def test_random_node() -> None:
    """The node is chosen at random, and the same one for the same seed."""
    with serving(welcoming(rows()), "a") as a, serving(welcoming(rows()), "b") as b:

        def taken(seed: int) -> str:
            with connect([a, b], "default", rng=random.Random(seed)) as client:
                return client.node.name

        assert {taken(seed) for seed in range(10)} == {"a", "b"}
        assert taken(3) == taken(3)


@pytest.mark.parametrize("seed", range(4))
def test_next_node(seed: int) -> None:
    """Nodes that are down, refuse, are silent, send garbage or hang up are passed over."""
    bad = [refusing("no"), silent, saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), saying(b"")]
    with (
        nobody() as down,
        serving(bad[0]) as one,
        serving(bad[1]) as two,
        serving(bad[2]) as three,
        serving(bad[3]) as four,
        serving(welcoming(rows()), "good") as good,
    ):
        nodes = [down, one, two, three, four, good]
        with connect(nodes, "default", timeout=0.3, rng=random.Random(seed)) as client:
            assert client.node is good


def test_no_node() -> None:
    """Where no node welcomes, one line has each node's reason, sanitized."""
    with (
        nobody("down") as down,
        serving(refusing("go\naway \x1b[2J"), "rude") as rude,
        serving(silent, "silent") as mute,
        serving(saying(b"HTTP/1.1 400 Bad Request\r\n"), "web") as web,
        serving(saying(b""), "short") as short,
        serving(welcoming(service="other"), "other") as other,
    ):
        with pytest.raises(UnreachableError) as caught:
            connect([down, rude, mute, web, short, other], "default", timeout=0.3)
        text = str(caught.value)
        assert text.isprintable()
        for node in (down, rude, mute, web, short, other):
            assert f"{node.name} ({node.address}): " in text
        for reason in (
            "Connection refused",
            "go?away ?[2J",
            "no answer within 0.3 s",
            "a frame of 1213486160 bytes",
            "it closed the connection",
            "service 'default' is not served here, 'other' is",
        ):
            assert reason in text


def test_exclude() -> None:
    """Excluded nodes are not tried; where none is left, the error says so."""
    with serving(welcoming(rows()), "a") as a, serving(welcoming(rows()), "b") as b:
        for _ in range(5):
            with connect([a, b], "default", exclude={"a"}) as client:
                assert client.node is b
        with pytest.raises(UnreachableError, match="no node is left"):
            connect([a, b], "default", exclude=("a", "b"))


def test_unknown_host() -> None:
    """A name that cannot be resolved, or is no valid name, is a reason like any other."""
    for host in ("no-such-host.invalid", "a" * 70 + ".example"):
        node = Node("n", Address(host, 5800), Address("0.0.0.0", 5800))
        with pytest.raises(UnreachableError, match=rf"n \({host}:5800\): "):
            connect([node], "default")


def test_all_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that listens on only one address of its name is reached."""
    with nobody() as down, serving(welcoming(rows())) as up:
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (node.address.host, node.address.port))
            for node in (down, up)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        node = Node("n", Address("localhost", 5800), Address("0.0.0.0", 5800))
        with connect([node], "default") as client:
            assert len(list(client.ask(Query("program")))) == 1


def test_ipv6() -> None:
    """A node is reached over IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        lacking("IPv6 on loopback", "sysctl net.ipv6.conf.lo.disable_ipv6=0")
    with serving(welcoming(rows()), family=socket.AF_INET6, host="::1") as node:
        connect([node], "default").close()


@pytest.mark.parametrize(
    ("manner", "error", "reason"),
    [
        (welcoming(rows(more=True), raw=frame(rows())[:20]), UnreachableError, "it closed the connection"),
        (welcoming(rows(more=True), raw=b"\0\0\0\2\xc1\xc1"), ProtocolError, "a message that cannot be read"),
        (welcoming(rows(more=True), raw=b"\xff" * 8), ProtocolError, "a frame of 4294967295 bytes"),
        (welcoming(rows(more=True), raw=NodeSide.refuse("too\nmuch")), RefusedError, "too\\?much"),
        (welcoming(rows(more=True)), UnreachableError, "no answer within 0.3 s"),
    ],
)
def test_broken_answer(manner: Manner, error: type[PeerError], reason: str) -> None:
    """An answer that breaks off or turns into garbage is an error that names the node, and closes the
    client."""
    with serving(manner) as node, connect([node], "default") as client:
        client.timeout = 0.3
        with pytest.raises(error, match=rf"^node1 \({node.address}\): {reason}") as caught:
            list(client.ask(Query("program")))
        assert type(caught.value) is error
        assert str(caught.value).isprintable()
        assert client.closed


def test_trickling_answer() -> None:
    """An answer that comes byte by byte does not extend the limit."""
    stop = threading.Event()

    def trickle(sock: socket.socket) -> None:
        side = NodeSide()
        side.receive(sock.recv(65536))
        sock.sendall(side.welcome("default", "node1"))
        sock.recv(65536)
        for byte in frame(rows()):
            if stop.wait(0.05):
                return
            sock.sendall(bytes([byte]))

    with serving(trickle) as node, connect([node], "default") as client:
        client.timeout = 0.3
        with pytest.raises(UnreachableError, match=r"no answer within 0\.3 s"):
            list(client.ask(Query("program")))
        stop.set()


def test_answer_left_unread() -> None:
    """A caller that stops in the middle of an answer closes the client."""
    with serving(welcoming(rows(more=True), rows())) as node, connect([node], "default") as client:
        answer = client.ask(Query("program"))
        next(answer)
        with pytest.raises(RuntimeError, match="still being read"):
            next(client.ask(Query("program")))
        answer.close()  # type: ignore[attr-defined]
        assert client.closed


def test_unasked_words() -> None:
    """Frames after the last one of an answer are an error for the next query."""
    with serving(welcoming(rows(), rows("unasked"))) as node, connect([node], "default") as client:
        list(client.ask(Query("program")))
        with pytest.raises(PeerError, match="without being asked"):
            list(client.ask(Query("program")))


def test_read_once() -> None:
    """A command reads a node that has quorum, wherever it is, and passes over those that fail."""
    with (
        nobody() as down,
        serving(welcoming(rows(quorum=False, stale=9.0)), "cut") as cut,
        serving(welcoming(raw=b"\xff" * 8), "mad") as mad,
        serving(welcoming(rows("good")), "good") as good,
    ):
        for seed in range(6):
            snapshot = read_once([down, cut, mad, good], "default", "program", rng=random.Random(seed))
            assert [row["program"] for row in snapshot.document()["rows"]] == ["good"]


def test_read_once_without_quorum() -> None:
    """Where no node has quorum, the freshest snapshot is returned, and says that it has no quorum."""
    with (
        serving(welcoming(rows("old", quorum=False, stale=9.0)), "a") as a,
        serving(welcoming(rows("new", quorum=False, stale=3.0)), "b") as b,
    ):
        for seed in range(4):
            snapshot = read_once([a, b], "default", "program", rng=random.Random(seed))
            assert [row["program"] for row in snapshot.document()["rows"]] == ["new"]
            assert snapshot.document()["quorum"] is False


def test_read_once_nobody() -> None:
    """Where no node can be read, the error also has the nodes that failed after their welcome."""
    with (
        nobody("down") as down,
        serving(welcoming(raw=b"\xff" * 8), "mad") as mad,
        pytest.raises(
            UnreachableError, match=r"(?=.*down \(.*: Connection refused)(?=.*mad \(.*: a frame of)"
        ),
    ):
        read_once([down, mad], "default", "program")


def test_states(caplog: pytest.LogCaptureFixture) -> None:
    """Each change of state is one line of the log, and repr() names node and state."""
    caplog.set_level("DEBUG", "connmon.reader.client")
    with serving(welcoming(rows(more=True), rows())) as node, connect([node], "default") as client:
        where = f"node1 ({node.address})"
        assert repr(client) == f"<Client {where} READY>"
        answer = client.ask(Query("program"))
        next(answer)
        assert client.state.name == "ANSWERING"
        assert len(list(answer)) == 1
        assert client.state.name == "READY"
    assert repr(client) == f"<Client {where} CLOSED>"
    assert [record.getMessage() for record in caplog.records] == [
        f"{where}: connecting to 127.0.0.1",
        f"{where}: connected, hello sent",
        f"{where}: welcomed",
        f"{where}: Query sent",
        f"{where}: Rows received, quorum yes, view 0.2 s old",
        f"{where}: closed",
    ]


def test_transitions() -> None:
    """Every state but the last can be left, each can be closed, and all can be reached."""
    assert set(TRANSITIONS) == set(ClientState)
    for state, following in TRANSITIONS.items():
        assert (ClientState.CLOSED in following) is (state is not ClientState.CLOSED)
    assert set().union(*TRANSITIONS.values()) == set(ClientState) - {ClientState.NEW}

"""A client connection's states, without sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from connmon.cluster.client_connection import (
    TRANSITIONS,
    ClientConnection,
    ConnectionEvent,
    ConnectionSettings,
    End,
    ServingState,
)
from connmon.protocol.credentials import OPEN
from connmon.protocol.frames import ClientSide, Goodbye
from tests.support.cluster_fakes import full


class Transport(asyncio.Transport):
    """Keeps what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234)})
        self.written = b""
        self.reading = True
        self.ended = ""

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class Owner:
    """The server: keeps what was reported, and the reasons of refusals."""

    service_name = "default"
    node_name = "node1"
    lease_seconds = 15.0
    credentials = OPEN
    connection_settings = ConnectionSettings()

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.reasons: list[str] = []

    def clock(self) -> float:
        return self.now

    def accepted(self, connection: ClientConnection) -> str | None:
        return None

    def refused(self, connection: ClientConnection, reason: str) -> None:
        self.reasons.append(reason)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append(name)


class Connected:
    """A connection that was accepted, its owner and its transport."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.transport = Transport()
        self.connection = ClientConnection(self.owner)  # type: ignore[arg-type]
        self.connection.connection_made(self.transport)
        self.client = ClientSide("application", "default", "shop")

    def greet(self) -> None:
        self.connection.data_received(self.client.hello())
        self.client.receive(self.transport.written)

    def check_after(self, seconds: float) -> ServingState:
        self.owner.now += seconds
        self.connection.check(self.owner.now)
        return self.connection.state


def test_the_life_of_an_application(caplog: pytest.LogCaptureFixture) -> None:
    """Hello, report, acknowledgement, goodbye: one debug line for each change of the state."""
    caplog.set_level(logging.DEBUG, "connmon")
    connected = Connected()
    connection = connected.connection
    connected.greet()
    connection.data_received(connected.client.frame(full("i1")))
    assert connection.state is ServingState.BUSY
    connection.acknowledge("i1", 1, False)
    connection.data_received(connected.client.frame(Goodbye("i1", 1)))
    assert repr(connection) == "<ClientConnection 192.0.2.1:1234 of i1: leaving, 0 bytes>"
    connection.close()
    connection.connection_lost(None)
    assert connection.end is End.GOODBYE
    assert [call for call in connected.owner.calls if call != "held_changed"] == [
        "reported", "departed", "closed",
    ]  # fmt: skip
    changes = [record.getMessage() for record in caplog.records if " -> " in record.getMessage()]
    assert changes == [
        f"client 192.0.2.1:1234: {change}"
        for change in (
            "handshake -> idle (welcomed)",
            "idle -> busy (request)",
            "busy -> idle (done)",
            "idle -> leaving (goodbye)",
            "leaving -> closing (close)",
            "closing -> closed (lost)",
        )
    ]


def test_a_message_waits_while_another_one_is_worked_on() -> None:
    """The second report is taken up after the acknowledgement; until then nothing is read."""
    connected = Connected()
    connected.greet()
    connection, client = connected.connection, connected.client
    connection.data_received(client.frame(full("i1", 1)) + client.frame(full("i1", 2)))
    assert (connection.sequence, connected.transport.reading) == (1, False)
    connection.acknowledge("i1", 1, False)
    assert (connection.sequence, connected.transport.reading) == (2, True)


@pytest.mark.parametrize(
    ("seconds", "end"),
    [(5.1, End.UNEXPECTED), (30.1, End.SILENCE), (15.1, End.SILENCE), (30.2, End.SILENCE)],
    ids=["hello", "frame", "lease", "answers"],
)
def test_deadlines(request: pytest.FixtureRequest, seconds: float, end: End) -> None:
    """A missing hello, an incomplete frame, silence and unread answers end a connection in time."""
    connected = Connected()
    kind = request.node.callspec.id
    if kind != "hello":
        connected.greet()
    if kind == "frame":
        connected.owner.lease_seconds = 1000.0
        connected.connection.data_received(connected.client.frame(full("i1"))[:-1])
    if kind == "answers":
        connected.connection.pause_writing()
    assert connected.check_after(seconds - 0.2) in (ServingState.HANDSHAKE, ServingState.IDLE)
    assert connected.check_after(0.2) is ServingState.CLOSING
    assert connected.connection.end is end
    assert len(connected.owner.reasons) == 1
    assert connected.check_after(5.1) is ServingState.CLOSING
    assert connected.transport.ended == "aborted"


def test_a_slow_application_is_silent_while_its_frame_is_incomplete() -> None:
    """The lease also ends a connection in the middle of a frame."""
    connected = Connected()
    connected.greet()
    connected.connection.data_received(connected.client.frame(full("i1"))[:-1])
    assert connected.check_after(15.1) is ServingState.CLOSING
    assert "lease" in connected.owner.reasons[0]


def test_every_state_can_be_reached_and_left() -> None:
    """The table leads from the handshake to every state; only closed is final."""
    reached, todo = {ServingState.HANDSHAKE}, [ServingState.HANDSHAKE]
    while todo:
        following = set(TRANSITIONS[todo.pop()].values()) - reached
        reached |= following
        todo += following
    assert reached == set(ServingState) == set(TRANSITIONS)
    assert [state for state in ServingState if not TRANSITIONS[state]] == [ServingState.CLOSED]
    assert {event for events in TRANSITIONS.values() for event in events} == set(ConnectionEvent)


def test_an_event_that_the_table_does_not_have_is_an_error() -> None:
    """A transition outside of the table raises and changes nothing."""
    connection = Connected().connection
    with pytest.raises(RuntimeError, match=r"Event.DONE in <ClientConnection 192.0.2.1:1234"):
        connection._on(ConnectionEvent.DONE)
    assert connection.state is ServingState.HANDSHAKE

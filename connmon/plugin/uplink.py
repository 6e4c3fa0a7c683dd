"""One ledger's way to its service: which node, what to send, what is in flight. No I/O.

Time, bytes and failures are inputs; `UplinkSocket` passes them in and carries out what is returned.
`TRANSITIONS` has every change of state. Rules:

1. One node at a time, chosen at random. When it fails, the others in random order; when all have failed, a
   pause with jitter that grows to `pause_max_seconds`.
2. One report in flight. It is acknowledged, or the connection has failed; nothing is queued. Only the last
   one, with which the process ends, does not wait for the one before.
3. The first report on every connection is a full one, and so is the one after an acknowledgement that asks
   for it.
4. A report each `report_interval_seconds` while something changes, else one each `alive_seconds` as a sign of
   life.
5. When a node asks to go to another one, that one is tried next.
6. One warning per outage: when every node has failed and none has acknowledged a report since the last
   warning.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from connmon.config import Address, Service
from connmon.errors import ProtocolError, one_line
from connmon.plugin.ledger import Ledger
from connmon.protocol.frames import Ack, ClientSide, Goodbye, Refuse
from connmon.protocol.reports import Process, Report, Usage


class UplinkState(enum.Enum):
    """What an uplink is doing."""

    RESTING = "resting"
    """No connection, until `Uplink.due`."""
    CONNECTING = "connecting"
    """The node has not taken the connection yet."""
    GREETING = "greeting"
    """The hello is sent, or on its way."""
    READY = "ready"
    """The node has answered the hello and takes reports."""


class UplinkEvent(enum.Enum):
    """What changes an uplink's state."""

    CONNECT = "connect"
    CONNECTED = "connected"
    WELCOMED = "welcomed"
    FAILED = "failed"


#: From state and event to the next state. An event that is missing here is an error of the caller (KeyError).
TRANSITIONS: Final[Mapping[UplinkState, Mapping[UplinkEvent, UplinkState]]] = {
    UplinkState.RESTING: {
        UplinkEvent.CONNECT: UplinkState.CONNECTING,
        UplinkEvent.FAILED: UplinkState.RESTING,
    },
    UplinkState.CONNECTING: {
        UplinkEvent.CONNECTED: UplinkState.GREETING,
        UplinkEvent.FAILED: UplinkState.RESTING,
    },
    UplinkState.GREETING: {
        UplinkEvent.WELCOMED: UplinkState.READY,
        UplinkEvent.FAILED: UplinkState.RESTING,
    },
    UplinkState.READY: {
        UplinkEvent.FAILED: UplinkState.RESTING,
    },
}


@dataclass(frozen=True)
class UplinkSettings:
    """Intervals and time limits of an uplink."""

    report_interval_seconds: float = 1.0
    alive_seconds: float = 5.0
    """Between two reports while nothing changes."""
    answer_seconds: float = 3.0
    """Within this a node must take the connection, and answer the hello."""
    acknowledge_seconds: float = 10.0
    """Within this it must acknowledge a report."""
    pause_min_seconds: float = 0.25
    pause_max_seconds: float = 3.0
    """Bounds of the pause after all nodes have failed."""
    story_lines: int = 50
    """The most debug lines kept until the reporter logs them."""


Describe = Callable[[bool], "tuple[Process | None, Usage | None]"]
"""Returns the process (asked for, with True, for a full report) and what it takes of its host, where that is
new or asked for."""


class Uplink:
    """The protocol of one ledger with its nodes, as a state machine."""

    def __init__(
        self,
        service: Service,
        ledger: Ledger,
        describe: Describe,
        rng: random.Random,
        client: str = "",
        settings: UplinkSettings = UplinkSettings(),  # it is immutable
    ) -> None:
        """`client`: what the node's log calls this process."""
        self.service = service
        self.ledger = ledger
        self.settings = settings
        self.state = UplinkState.RESTING
        self.due = 0.0
        """When there is something to do next, even if nothing arrives."""
        self.complaint: str | None = None
        """A warning to log, once; the reporter logs and clears it."""
        self.story: list[str] = []
        """Debug lines, one for each change of state; the reporter logs and clears them."""
        self._describe = describe
        self._rng = rng
        self._client = client
        self._side = ClientSide("application", service.name, client)
        self._untried: list[Address] = []
        """The nodes of this turn that have not been tried; the last one is next."""
        self._address: Address | None = None
        self._failures: dict[str, str] = {}
        """By node of this turn: why it failed."""
        self._pause_seconds = settings.pause_min_seconds
        self._complained = False
        self._has_acknowledged = False
        """Whether the present node has applied a report."""
        self._in_flight: int | None = None
        self._full_in_flight = False
        self._last_sent = 0.0
        self._leaving = False
        self._said_goodbye = False
        self._elsewhere: Address | None = None
        """Where the node asks to go."""

    def __repr__(self) -> str:
        in_flight = "" if self._in_flight is None else f", report {self._in_flight} in flight"
        return (
            f"<Uplink to service {self.service.name!r}, node {self._address}: {self.state.value}{in_flight}>"
        )

    @property
    def finished(self) -> bool:
        """Whether, after `leave`, the goodbye is sent and the last report acknowledged."""
        return self._said_goodbye and self._in_flight is None

    @property
    def ready(self) -> bool:
        """Whether the node takes reports."""
        return self.state is UplinkState.READY

    @property
    def resting(self) -> bool:
        """Whether no node could be reached a moment ago."""
        return self.state is UplinkState.RESTING and self._pause_seconds > self.settings.pause_min_seconds

    @property
    def hopeless(self) -> bool:
        """Whether, after `leave`, no node can take the last report."""
        resting = self.state is UplinkState.RESTING
        return self._leaving and resting and (self._complained or not self._untried)

    def _change(self, event: UplinkEvent, line: str) -> None:
        """Change the state, with one debug line. Raises KeyError for an event without a transition."""
        self.state = TRANSITIONS[self.state][event]
        self._note(line)

    def _note(self, line: str) -> None:
        if len(self.story) < self.settings.story_lines:
            service = f"service {self.service.name!r}, " if self.service.name else ""
            self.story.append(f"connmon: {service}node {self._address}: {line}")

    def connect(self, now: float) -> Address:
        """Return the node to connect to. Called when resting and due."""
        if not self._untried:
            self._new_turn()
        self._address = self._untried.pop()
        self._has_acknowledged = False
        self._change(UplinkEvent.CONNECT, "connecting")
        self.due = now + self.settings.answer_seconds
        return self._address

    def _new_turn(self) -> None:
        self._untried = [node.address for node in self.service.nodes]
        self._rng.shuffle(self._untried)
        self._failures = {}

    def connecting(self, now: float) -> None:
        """Note that a connect to one of the node's addresses has begun."""
        self.due = now + self.settings.answer_seconds

    def connected(self, now: float, secret: bytes | None = None, nonce: bytes = b"") -> bytes:
        """Note that the node took the connection; return the hello to send.

        `secret` is the service's, if it has one; `nonce`, for it, is random and new each time.
        """
        self._change(UplinkEvent.CONNECTED, "connected, sending the hello")
        self.due = now + self.settings.answer_seconds
        self._side = ClientSide("application", self.service.name, self._client, secret, nonce)
        return self._side.hello()

    def received(self, data: bytes, now: float) -> bytes:
        """Take what the node sent; return what to send in reply.

        Raises ProtocolError: the caller closes the connection, and calls `failed`.
        """
        for message in self._side.receive(data):
            if isinstance(message, Refuse):
                raise ProtocolError(f"refused: {one_line(message.reason)}")
            if isinstance(message, Ack):
                self._acknowledged(message)
            elif self.state is UplinkState.GREETING:
                self._change(UplinkEvent.WELCOMED, "ready, a full report is next")
                self._in_flight = None
                self._last_sent = 0.0
                self.ledger.restart()
            self.due = now
        if reply := self._side.reply():
            self._note("challenged, proof sent")
        return reply

    def _acknowledged(self, ack: Ack) -> None:
        mine = ack.instance == self.ledger.instance
        if mine and self._said_goodbye and self._in_flight is not None and ack.sequence < self._in_flight:
            return  # of the report that was in flight when the last one was sent
        if ack.sequence != self._in_flight or not mine:
            raise ProtocolError(f"an acknowledgement of report {ack.sequence}, {self._in_flight} was sent")
        self._in_flight = None
        if ack.full:
            self.ledger.restart()
            if not self._full_in_flight:  # else the node is wrong: do not go faster for it
                self._last_sent = 0.0
            return
        self.ledger.acknowledged(ack.sequence)
        if ack.elsewhere is not None and not self._leaving:
            named = (node.address for node in self.service.nodes if node.name == ack.elsewhere)
            self._elsewhere = next((address for address in named if address != self._address), None)
            self._note(f"asks to go to {self._elsewhere or 'a node that is not known here'}")
        self._has_acknowledged = True
        self._pause_seconds = self.settings.pause_min_seconds
        self._complained = False

    def outgoing(self, now: float) -> bytes:
        """Return what to send now, if anything. Called when due; sets the next time."""
        settings = self.settings
        if self.state is not UplinkState.READY:
            return b""
        if self._leaving:
            return self._farewell(now)
        if self._in_flight is not None:
            self.due = self._last_sent + settings.acknowledge_seconds
            return b""
        if now - self._last_sent < settings.report_interval_seconds:
            self.due = self._last_sent + settings.report_interval_seconds
            return b""
        report = self._report(now, alive=now - self._last_sent >= settings.alive_seconds)
        if report is None:
            self.due = min(now + settings.report_interval_seconds, self._last_sent + settings.alive_seconds)
            return b""
        self._last_sent = now
        self._in_flight, self._full_in_flight = report.sequence, report.full
        self.due = now + settings.acknowledge_seconds
        return self._side.frame(report)

    def _farewell(self, now: float) -> bytes:
        self.due = now + self.settings.acknowledge_seconds
        if self._said_goodbye:
            return b""
        self.ledger.end()
        self.ledger.restart()  # a full one, so that the node has no reason to ask for another
        report = self._report(now, alive=True)
        if report is None:  # another thread folds
            self.due = now
            return b""
        self._said_goodbye = True
        self._last_sent = now
        self._in_flight, self._full_in_flight = report.sequence, True
        return self._side.frame(report) + self._side.frame(Goodbye(report.instance, report.sequence))

    def _report(self, now: float, alive: bool) -> Report | None:
        report = self.ledger.take(now, alive=alive)
        if report is None:
            return None
        process, usage = self._describe(report.full)
        return structs.replace(report, process=process, usage=usage)

    def leave(self, now: float) -> None:
        """Send the last report and say goodbye: the process ends."""
        if not self._leaving:
            self._leaving = True
            self._note("the process ends")
            if not self._untried and self.state is UplinkState.RESTING:
                self._new_turn()
            if self.state in (UplinkState.RESTING, UplinkState.READY):
                self.due = now

    def overdue(self, now: float) -> str | None:
        """Return why the connection has to end, or None. The caller closes it, and calls `failed`."""
        if self._elsewhere is not None and self.state is UplinkState.READY:
            return f"sent to {self._elsewhere}"
        if self.state is UplinkState.RESTING or now < self.due:
            return None
        if self.state is UplinkState.CONNECTING:
            return f"no answer within {self.settings.answer_seconds:.0f} s"
        if self.state is UplinkState.GREETING:
            return f"the hello was not answered within {self.settings.answer_seconds:.0f} s"
        limit = self.settings.acknowledge_seconds
        if self._in_flight is not None and now >= self._last_sent + limit:
            return f"a report was not acknowledged within {limit:.0f} s"
        return None

    def failed(self, reason: str, now: float) -> None:
        """Note that the connection, or the attempt to connect, has ended."""
        if self._in_flight is not None:
            self._said_goodbye = False  # maybe nobody heard it: say it to the next node
        self._in_flight = None
        if self._address is not None:
            self._failures[str(self._address)] = reason
        elsewhere, self._elsewhere = self._elsewhere, None
        if elsewhere is not None:
            self._new_turn()
            # The last in the list is tried first; where it fails, the present node is next, at once.
            self._untried.sort(key=lambda address: 2 if address == elsewhere else address == self._address)
            self.due = now
        elif self._has_acknowledged:
            # It worked until now: a new turn, but not all applications at the same moment.
            self._new_turn()
            self._untried.sort(key=lambda address: address != self._address)
            jitter = self._rng.uniform(0.0, self.settings.pause_min_seconds)
            self.due = now + (0.0 if self._leaving else jitter)
        elif self._untried:
            self.due = now
        else:
            self.due = now + self._pause_seconds * self._rng.uniform(0.5, 1.0)
            self._pause_seconds = min(2 * self._pause_seconds, self.settings.pause_max_seconds)
            self._complain()
        rest = max(0.0, self.due - now)
        self._change(UplinkEvent.FAILED, f"resting for {rest:.2f} s: {one_line(reason)}")

    def _complain(self) -> None:
        """Have a warning logged that no node can be reached, once per outage."""
        if not self._complained:
            self._complained = True
            name = f"service {self.service.name!r}" if self.service.name else "the service"
            nodes = "; ".join(f"{address}: {reason}" for address, reason in self._failures.items())
            self.complaint = (
                f"connmon: no node of {name} can be reached ({nodes}). The application goes on; "
                "its connections are counted, and reported once a node is there"
            )

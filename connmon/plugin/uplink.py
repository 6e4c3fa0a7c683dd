"""One ledger's way to its service: which node, what to send, what is in flight. No I/O.

Time, bytes and failures are inputs; `Reporter` feeds them in and carries out what comes back.
Rules:

1. One node at a time, chosen at random; when it fails, the others in random order, and when
   all have failed, a pause with jitter that grows to `PAUSE_MAX`.
2. One report in flight. It is acknowledged, or the connection has failed; nothing is queued. Only the
   last one, with which the process ends, does not wait for the one before.
3. The first report on every connection is a full one, and so is the one after an
   acknowledgement that asks for it.
4. A report a second while something changes, one every `ALIVE` seconds as a sign of life.
5. When a node asks to go to another one, that one is tried next.
6. One complaint per outage: when every node has failed and none had answered since the last.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from msgspec import structs

from connmon.config import Address, Service
from connmon.errors import ProtocolError, one_line
from connmon.plugin.ledger import Ledger
from connmon.protocol.frames import Ack, ClientSide, Goodbye, Refuse
from connmon.protocol.reports import Process, Report, Usage

#: Seconds. A node must take the connection, and answer the hello, within ANSWER, and
#: acknowledge a report within ACKNOWLEDGE.
INTERVAL = 1.0
ALIVE = 5.0
ANSWER = 3.0
ACKNOWLEDGE = 10.0
PAUSE_MIN = 0.25
PAUSE_MAX = 3.0
#: Lines of the story that are kept until somebody logs them.
STORY = 50

Describe = Callable[[bool], "tuple[Process | None, Usage | None]"]
"""Returns who reports (asked for, with True, for a full report) and what it takes of its host,
where that is new or asked for."""


class Uplink:
    """States: resting (until `due`), connecting, greeting, ready."""

    def __init__(
        self, service: Service, ledger: Ledger, describe: Describe, rng: random.Random, client: str = ""
    ) -> None:
        self.service = service
        self.ledger = ledger
        self.state = "resting"
        self.due = 0.0
        """When there is something to do next, whatever arrives or not."""
        self.complaint: str | None = None
        """A line for the log, once; whoever logs it clears it."""
        self.story: list[str] = []
        """Lines for the log at DEBUG, one for each change of the state; the reporter logs and clears it."""
        self.delivered = 0
        """Reports acknowledged."""
        self._describe = describe
        self._rng = rng
        self._client = client
        self._side = ClientSide("application", service.name, client)
        self._turn: list[Address] = []
        self._address: Address | None = None
        self._failures: dict[str, str] = {}
        self._pause = PAUSE_MIN
        self._complained = False
        self._proven = False
        """Whether the node at hand has applied a report."""
        self._in_flight: int | None = None
        self._full_in_flight = False
        self._last_sent = 0.0
        self._leaving = False
        self._said_goodbye = False
        self._elsewhere: Address | None = None
        """Where the node asks to go."""

    @property
    def finished(self) -> bool:
        """Whether everything has been told and acknowledged, after `leave`."""
        return self._said_goodbye and self._in_flight is None

    @property
    def ready(self) -> bool:
        """Whether a node has answered the hello, so that it takes reports."""
        return self.state == "ready"

    @property
    def resting(self) -> bool:
        """Whether no node could be reached a moment ago."""
        return self.state == "resting" and self._pause > PAUSE_MIN

    @property
    def hopeless(self) -> bool:
        """Whether, after `leave`, no node is there to be told."""
        return self._leaving and self.state == "resting" and (self._complained or not self._turn)

    def connect(self, now: float) -> Address:
        """Return the node to connect to. Called when resting and due."""
        if not self._turn:
            self._new_turn()
        self._address = self._turn.pop()
        self._proven = False
        self.state = "connecting"
        self._note("connecting")
        self.due = now + ANSWER
        return self._address

    def _note(self, what: str) -> None:
        if len(self.story) < STORY:
            service = f"service {self.service.name!r}, " if self.service.name else ""
            self.story.append(f"connmon: {service}node {self._address}: {what}")

    def _new_turn(self) -> None:
        self._turn = [node.address for node in self.service.nodes]
        self._rng.shuffle(self._turn)
        self._failures = {}

    def connecting(self, now: float) -> None:
        """A connection to one of the node's addresses has just been begun."""
        self.due = now + ANSWER

    def connected(self, now: float, secret: bytes | None = None, nonce: bytes = b"") -> bytes:
        """The node took the connection: return the hello.

        `secret` is the service's, if it has one; `nonce`, for it, is random and new each time.
        """
        self.state = "greeting"
        self._note("connected, sending the hello")
        self.due = now + ANSWER
        self._side = ClientSide("application", self.service.name, self._client, secret, nonce)
        return self._side.hello()

    def received(self, data: bytes, now: float) -> bytes:
        """Take what the node sent; return what has to be sent for that.

        Raises ProtocolError: the caller closes, and calls `failed`.
        """
        for message in self._side.receive(data):
            if isinstance(message, Refuse):
                raise ProtocolError(f"refused: {one_line(message.reason)}")
            if isinstance(message, Ack):
                self._acknowledged(message)
            elif self.state == "greeting":
                self.state = "ready"
                self._note("ready, a full report is next")
                self._in_flight = None
                self._last_sent = 0.0
                self.ledger.restart()
            self.due = now
        return self._side.reply()

    def _acknowledged(self, ack: Ack) -> None:
        mine = ack.instance == self.ledger.instance
        if mine and self._said_goodbye and self._in_flight is not None and ack.sequence < self._in_flight:
            return  # of the report that was on its way when the last one was sent
        if ack.sequence != self._in_flight or not mine:
            raise ProtocolError(f"an acknowledgement of report {ack.sequence}, {self._in_flight} was sent")
        self._in_flight = None
        if ack.full:
            self.ledger.restart()
            if not self._full_in_flight:  # else it is the node that is wrong: do not go faster for it
                self._last_sent = 0.0
            return
        self.ledger.acknowledged(ack.sequence)
        if ack.elsewhere is not None and not self._leaving:
            named = (node.address for node in self.service.nodes if node.name == ack.elsewhere)
            self._elsewhere = next((address for address in named if address != self._address), None)
            self._note(f"asks to go to {self._elsewhere or 'a node that is not known here'}")
        self.delivered += 1
        self._proven = True
        self._pause = PAUSE_MIN
        self._complained = False

    def outgoing(self, now: float) -> bytes:
        """Return what is to be sent now, if anything. Called when due; sets the next time."""
        if self.state != "ready":
            return b""
        if self._leaving:
            return self._farewell(now)
        if self._in_flight is not None:
            self.due = self._last_sent + ACKNOWLEDGE
            return b""
        if now - self._last_sent < INTERVAL:
            self.due = self._last_sent + INTERVAL
            return b""
        report = self._report(now, alive=now - self._last_sent >= ALIVE)
        if report is None:
            self.due = min(now + INTERVAL, self._last_sent + ALIVE)
            return b""
        self._last_sent = now
        self._in_flight, self._full_in_flight = report.sequence, report.full
        self.due = now + ACKNOWLEDGE
        return self._side.frame(report)

    def _farewell(self, now: float) -> bytes:
        self.due = now + ACKNOWLEDGE
        if self._said_goodbye:
            return b""
        self.ledger.end()
        self.ledger.restart()  # a full one, so that it cannot come back with a question
        report = self._report(now, alive=True)
        if report is None:  # somebody folds
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
        """The process ends: tell the last, and say goodbye."""
        if not self._leaving:
            self._leaving = True
            self._note("the process ends")
            if not self._turn and self.state == "resting":
                self._new_turn()
            if self.state in ("resting", "ready"):
                self.due = now

    def overdue(self, now: float) -> str | None:
        """Return what the node did not do in time, or None. The caller closes, and calls `failed`."""
        if self._elsewhere is not None and self.state == "ready":
            return f"sent to {self._elsewhere}"
        if self.state == "resting" or now < self.due:
            return None
        if self.state == "connecting":
            return f"no answer within {ANSWER:.0f} s"
        if self.state == "greeting":
            return f"the hello was not answered within {ANSWER:.0f} s"
        if self._in_flight is not None and now >= self._last_sent + ACKNOWLEDGE:
            return f"a report was not acknowledged within {ACKNOWLEDGE:.0f} s"
        return None

    def failed(self, reason: str, now: float) -> None:
        """The connection, or the attempt at one, is over."""
        self.state = "resting"
        if self._in_flight is not None:
            self._said_goodbye = False  # it was not heard, as far as is known: the next node is told
        self._in_flight = None
        if self._address is not None:
            self._failures[str(self._address)] = reason
        elsewhere, self._elsewhere = self._elsewhere, None
        if elsewhere is not None:
            self._new_turn()
            # Last in the list, first to be tried; and where that fails, this one at once again.
            self._turn.sort(key=lambda address: 2 if address == elsewhere else address == self._address)
            self.due = now
        elif self._proven:
            # It was well until now: a new turn, but not all applications at the same moment.
            self._new_turn()
            self._turn.sort(key=lambda address: address != self._address)
            self.due = now + (0.0 if self._leaving else self._rng.uniform(0.0, PAUSE_MIN))
        elif self._turn:
            self.due = now
        else:
            self.due = now + self._pause * self._rng.uniform(0.5, 1.0)
            self._pause = min(2 * self._pause, PAUSE_MAX)
            if not self._complained:
                self._complained = True
                name = f"service {self.service.name!r}" if self.service.name else "the service"
                nodes = "; ".join(f"{address}: {why}" for address, why in self._failures.items())
                self.complaint = (
                    f"connmon: no node of {name} can be reached ({nodes}). The application goes on; "
                    "its connections are counted, and reported once a node is there"
                )
        self._note(f"resting for {max(0.0, self.due - now):.2f} s: {one_line(reason)}")

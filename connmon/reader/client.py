"""A blocking client connection to a node, for the console and the commands.

- Nodes are tried in random order, each with all addresses of its name, until one welcomes this reader.
  Where none does, the error has each node's reason, in one line.
- Every wait is limited: connecting to one address, and one whole answer, however its bytes trickle in.
  (Only the resolver of names keeps its own limit.)
- A connection is closed after any error, and after an answer that was not read to its end: the next answer
  could not be distinguished from the rest of this one.
- A peer's words in an error are one line, sanitized for the terminal.
- Each change of state is one line of the logger at DEBUG (`connmon -v`).
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, final

from connmon.config import Node
from connmon.errors import PeerError, ProtocolError, RefusedError, UnreachableError
from connmon.protocol.credentials import OPEN, Credentials, nonce
from connmon.protocol.frames import Ack, ClientSide, Refuse, Welcome
from connmon.protocol.queries import History, HistoryQuery, NodeStatus, Question, RowsQuery, StatusQuery
from connmon.protocol.rows import Rows
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.text import printable
from connmon.protocol.values import Grouping
from connmon.version import __version__

S = TypeVar("S")
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timeouts:
    connect_seconds: float = 2.0
    """For connecting to one address, until the welcome."""
    answer_seconds: float = 10.0
    """For one whole answer."""


TIMEOUTS: Final = Timeouts()

_RECEIVE_BYTES: Final = 256 * 1024


class Shuffler(Protocol):
    """A source of randomness for `connect`: `random`, or a seeded `random.Random`."""

    def sample(self, population: Sequence[T], k: int) -> list[T]: ...


class ClientState(enum.Enum):
    """The states of a client connection."""

    NEW = enum.auto()
    CONNECTING = enum.auto()
    GREETING = enum.auto()
    """Connected, the hello is sent."""
    READY = enum.auto()
    """Welcomed, nothing is asked."""
    ANSWERING = enum.auto()
    """A question is sent; its answer is not complete."""
    CLOSED = enum.auto()


#: State -> states that may follow it.
TRANSITIONS: Final[Mapping[ClientState, frozenset[ClientState]]] = {
    ClientState.NEW: frozenset({ClientState.CONNECTING, ClientState.CLOSED}),
    ClientState.CONNECTING: frozenset({ClientState.GREETING, ClientState.CLOSED}),
    ClientState.GREETING: frozenset({ClientState.READY, ClientState.CLOSED}),
    ClientState.READY: frozenset({ClientState.ANSWERING, ClientState.CLOSED}),
    ClientState.ANSWERING: frozenset({ClientState.READY, ClientState.CLOSED}),
    ClientState.CLOSED: frozenset(),
}


class _Deadline:
    """The end of the time for connecting, or for an answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def wait(self, sock: socket.socket, call: Callable[[S], T], argument: S) -> T:
        """Return call(argument), a call of that socket. Raises UnreachableError where it fails."""
        left = self._end - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            return call(argument)
        except TimeoutError:
            raise UnreachableError(f"no answer within {self._seconds:g} s") from None
        except OSError as error:
            raise UnreachableError(_reason(error)) from None


@final
class Client:
    """A reader's connection to one node; `connect` makes them. Not for several threads at once."""

    def __init__(
        self, node: Node, service: str, sock: socket.socket, credentials: Credentials = OPEN
    ) -> None:
        self.node: Final = node
        self.timeout = TIMEOUTS.answer_seconds
        """Seconds for one whole answer, with the caller's work between its frames."""
        self.state = ClientState.NEW
        self._socket: Final = sock
        name = f"connmon {__version__} pid {os.getpid()}"
        self._side = ClientSide("reader", service, name, credentials.secret, nonce())
        self._channel = credentials.channel(node.address.host)
        self._protection = _protection(credentials)
        self._inbox: deque[Welcome | Refuse | Ack | Rows | NodeStatus | History] = deque()

    def __repr__(self) -> str:
        return f"<Client {_where(self.node)} {self.state.name}>"

    @property
    def closed(self) -> bool:
        return self.state is ClientState.CLOSED

    def _enter(self, state: ClientState, line: str) -> None:
        """Change the state, with one line for the log."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"{self!r} cannot become {state.name}")
        self.state = state
        self._log(line)

    def _log(self, line: str) -> None:
        logger.debug("%s: %s", _where(self.node), line)

    def ask(self, query: RowsQuery) -> Iterator[Rows]:
        """Send the query and yield the frames of its answer, the last of which has no `more`.

        Nothing is sent before the first frame is asked for. Raises UnreachableError when the node is gone
        or the answer takes longer than `timeout`, RefusedError with the node's reason, ProtocolError for
        bytes that the protocol does not allow. After an error, and when the caller stops before the last
        frame, the client is closed.
        """
        self._check_idle()
        more = True
        try:
            deadline = self._question(query)
            while more:
                rows = self._next(deadline)
                if not isinstance(rows, Rows):
                    raise ProtocolError(f"it answered a query with {type(rows).__name__}")
                more = rows.more
                if not more:
                    self._answered(rows)
                yield rows
        except PeerError as error:
            self._fail(error)
            raise type(error)(f"{_where(self.node)}: {error}") from None
        finally:
            if more:
                self.close("the answer was not read to its end")

    def status(self, query: StatusQuery) -> NodeStatus:
        """Return the node's status.

        Raises as `ask` does, but without naming the node; the client is closed then.
        """
        return self._answer(query, NodeStatus)

    def history(self, query: HistoryQuery) -> History:
        """Return the last minutes of some rows. Raises as `status` does; the client is closed then."""
        return self._answer(query, History)

    def _answer(self, query: Question, kind: type[T]) -> T:
        """Return an answer that is one message."""
        self._check_idle()
        try:
            answer = self._next(self._question(query))
            if not isinstance(answer, kind):
                raise ProtocolError(
                    f"it answered a question for {kind.__name__} with {type(answer).__name__}"
                )
        except PeerError as error:
            self._fail(error)
            raise
        self._answered(answer)
        return answer

    def _check_idle(self) -> None:
        if self.state is ClientState.ANSWERING:
            raise RuntimeError("the answer to another query is still being read")

    def _question(self, query: Question) -> _Deadline:
        """Send a question; return the deadline of its answer."""
        self._check_open()
        if self._inbox:
            raise ProtocolError("it spoke without being asked")
        self._enter(ClientState.ANSWERING, f"{type(query).__name__} sent")
        deadline = _Deadline(self.timeout)
        self._send(self._side.frame(query), deadline)
        return deadline

    def _answered(self, answer: object) -> None:
        detail = ""
        if isinstance(answer, Rows):
            detail = f", quorum {'yes' if answer.quorum else 'no'}, view {answer.stale:.1f} s old"
        self._enter(ClientState.READY, f"{type(answer).__name__} received{detail}")

    def _fail(self, error: PeerError) -> None:
        self.close(str(error))

    def close(self, reason: str = "") -> None:
        """Close the connection; closing twice is harmless. `reason`: for the log."""
        if self.state is not ClientState.CLOSED:
            self._enter(ClientState.CLOSED, f"closed: {reason}" if reason else "closed")
            self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def greet(self, address: Any, timeout: float) -> None:
        """Connect to this address of the node, until the welcome. Raises PeerError; the client is closed
        then."""
        deadline = _Deadline(timeout)
        try:
            self._enter(ClientState.CONNECTING, f"connecting to {address[0]}")
            deadline.wait(self._socket, self._socket.connect, address)
            self._send(self._side.hello(), deadline)
            self._enter(ClientState.GREETING, "connected, hello sent")
            self._next(deadline)  # the protocol lets nothing but a Welcome or a Refuse through here
            self._enter(ClientState.READY, f"welcomed{self._protection}")
        except PeerError as error:
            self._fail(error)
            raise

    def _check_open(self) -> None:
        if self.closed:
            raise UnreachableError("the connection is closed")

    def _send(self, data: bytes, deadline: _Deadline) -> None:
        self._check_open()
        if self._channel is not None:
            self._channel.send(data)
            data = self._channel.outgoing()
        if data:
            deadline.wait(self._socket, self._socket.sendall, data)

    def _next(self, deadline: _Deadline) -> Welcome | Ack | Rows | NodeStatus | History:
        """Return the node's next message."""
        self._check_open()
        while not self._inbox:
            data = deadline.wait(self._socket, self._socket.recv, _RECEIVE_BYTES)
            if not data:
                raise UnreachableError("it closed the connection")
            try:
                if self._channel is not None:
                    data = self._channel.receive(data)
                self._inbox += self._side.receive(data)
            except ProtocolError as error:
                with contextlib.suppress(PeerError):
                    self._send(b"", deadline)  # TLS's alert to the node
                raise ProtocolError(printable(str(error))) from None
            if reply := self._side.reply():
                self._send(reply, deadline)
                self._log("challenged, proof sent")
            elif self._channel is not None:
                self._send(b"", deadline)  # TLS's own messages
        message = self._inbox.popleft()
        if isinstance(message, Refuse):
            raise RefusedError(printable(message.reason) or "refused without a reason")
        return message


def connect(
    nodes: Sequence[Node],
    service: str,
    timeout: float = TIMEOUTS.connect_seconds,
    rng: Shuffler = random,
    exclude: Collection[str] = (),
    credentials: Credentials = OPEN,
) -> Client:
    """Return a client of the first node, in random order, that welcomes a reader of `service`.

    `service` "" means whichever a node serves. `timeout` is in seconds, for each address of each node.
    Nodes whose names are in `exclude` are not tried: a caller looks for another node where one has no
    quorum. Raises UnreachableError, with each node's reason, where none is left.
    """
    reasons: list[PeerError] = []
    for node in rng.sample(nodes, len(nodes)):
        if node.name not in exclude:
            try:
                return _connect(node, service, timeout, credentials)
            except PeerError as error:
                reasons.append(error)
    raise _unreachable(reasons)


def read_once(
    nodes: Sequence[Node],
    service: str,
    by: Grouping,
    timeout: float = TIMEOUTS.connect_seconds,
    rng: Shuffler = random,
    credentials: Credentials = OPEN,
) -> Snapshot:
    """Return the snapshot of a node with quorum, or the freshest one where no node has quorum.

    Nodes are tried in random order, also after one that welcomed and then failed. Raises UnreachableError,
    with each node's reason, where none could be read.
    """
    reasons: list[PeerError] = []
    best: Snapshot | None = None
    freshest = math.inf
    for node in rng.sample(nodes, len(nodes)):
        snapshot = Snapshot(by)
        try:
            with _connect(node, service, timeout, credentials) as client:
                for rows in client.ask(snapshot.query()):
                    snapshot.apply(rows)
        except PeerError as error:
            reasons.append(error)
            continue
        assert snapshot.header is not None
        if snapshot.header.quorum:
            return snapshot
        if snapshot.header.stale < freshest:
            best, freshest = snapshot, snapshot.header.stale
    if best is None:
        raise _unreachable(reasons)
    return best


def _unreachable(reasons: Sequence[PeerError]) -> UnreachableError:
    if not reasons:
        return UnreachableError("no node is left to try")
    # A node that refuses is running.
    hint = " (is connmond running there?)" if any(isinstance(r, UnreachableError) for r in reasons) else ""
    return UnreachableError(f"no node could be read: {'; '.join(map(str, reasons))}{hint}")


def _connect(node: Node, service: str, timeout: float, credentials: Credentials) -> Client:
    try:
        return reach(node, service, timeout, credentials)
    except PeerError as error:
        raise type(error)(f"{_where(node)}: {error}") from None


def reach(
    node: Node,
    service: str,
    timeout: float = TIMEOUTS.connect_seconds,
    credentials: Credentials = OPEN,
) -> Client:
    """Return a client of this one node.

    Raises, without naming the node, RefusedError where it refused, ProtocolError where its answer is no
    protocol of ours, else UnreachableError. `timeout` as for `connect`.
    """
    host, port = node.address.host, node.address.port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
        logger.debug("%s: %s", _where(node), _reason(error))
        raise UnreachableError(_reason(error)) from None
    errors: dict[str, type[PeerError]] = {}  # all addresses of a name mostly fail for one reason
    for family, kind, protocol, _, address in addresses:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # the system does not have this family
            errors[_reason(error)] = UnreachableError
            continue
        try:
            client = Client(node, service, sock, credentials)
        except ProtocolError as error:  # no certificate can be for such a name
            sock.close()
            errors[str(error)] = ProtocolError
            continue
        try:
            client.greet(address, timeout)
            return client
        except PeerError as error:
            errors[str(error)] = type(error)
        except BaseException:
            client.close("interrupted")
            raise
    for error_type in (RefusedError, ProtocolError):  # an answer says more than a silence
        if error_type in errors.values():
            raise error_type(", ".join(errors))
    raise UnreachableError(", ".join(errors))


def _protection(credentials: Credentials) -> str:
    """Return how the connection is protected, for the log; "": it is not."""
    names = [name for name, on in (("secret", credentials.secret), ("TLS", credentials.tls)) if on]
    return f", with {' and '.join(names)}" if names else ""


def _where(node: Node) -> str:
    """Return a node's name for errors; a node that was given by its address has no other name."""
    address = str(node.address)
    return printable(address if node.name == address else f"{node.name} ({address})")


def _reason(error: Exception) -> str:
    """Return the system's message, without its number."""
    return printable((error.strerror if isinstance(error, OSError) else None) or str(error))

"""A blocking connection to a node, for the console and the commands.

- Nodes are tried in random order, each with all the addresses that its name has, until one
  welcomes this reader. Where none does, the error tells of each of them, in one line.
- Nothing is endless: connecting to an address has one limit, a whole answer another, however
  the bytes trickle in. (Only the resolver of names keeps its own.)
- A connection on which anything went wrong, or an answer was not read to its end, is closed:
  what would come next on it cannot be told apart from what was left.
- What a peer says in an error is printed as one line without control characters.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar, final

from connmon import __version__
from connmon.config import Node
from connmon.errors import PeerError, ProtocolError, RefusedError, UnreachableError
from connmon.protocol.credentials import OPEN, Credentials, nonce
from connmon.protocol.frames import Ack, ClientSide, Refuse, Welcome
from connmon.protocol.queries import History, HistoryQuery, NodeStatus, Question, RowsQuery, StatusQuery
from connmon.protocol.rows import Rows
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.text import printable
from connmon.protocol.values import Grouping

S = TypeVar("S")
T = TypeVar("T")

#: Seconds for connecting to one address, its hello included.
CONNECT_TIMEOUT: Final = 2.0
#: Seconds of waiting for one whole answer.
ANSWER_TIMEOUT: Final = 10.0

_CHUNK: Final = 256 * 1024

logger = logging.getLogger(__name__)


class Shuffler(Protocol):
    """What `connect` needs of a source of randomness: `random`, or a seeded `random.Random`."""

    def sample(self, population: Sequence[T], k: int) -> list[T]: ...


class _Deadline:
    """When an answer, or a connection, has to be there."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def wait(self, sock: socket.socket, call: Callable[[S], T], argument: S) -> T:
        """Return call(argument), a call of that socket. Raises UnreachableError for whatever goes wrong."""
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
    """One welcomed reader's connection to one node; `connect` makes them. Not for several threads at once."""

    def __init__(
        self, node: Node, service: str, sock: socket.socket, credentials: Credentials = OPEN
    ) -> None:
        self.node: Final = node
        self.timeout = ANSWER_TIMEOUT
        """Seconds for one whole answer, what the caller does between its frames included."""
        self._socket: socket.socket | None = sock
        name = f"connmon {__version__} pid {os.getpid()}"
        self._side = ClientSide("reader", service, name, credentials.secret, nonce())
        self._channel = credentials.channel(node.address.host)
        self._inbox: deque[Welcome | Refuse | Ack | Rows | NodeStatus | History] = deque()
        self._asking = False

    def ask(self, query: RowsQuery) -> Iterator[Rows]:
        """Send the query and yield the frames of its answer, the last of which has no `more`.

        Nothing is sent before the first frame is asked for. Raises UnreachableError when the
        node is gone or the answer takes longer than `timeout`, RefusedError with the node's
        reason, ProtocolError for bytes that the protocol does not allow. After an error, and
        when the caller stops before the last frame, the client is closed.
        """
        if self._asking:
            raise RuntimeError("the answer to another query is still being read")
        whole = False
        self._asking = True
        try:
            if self._inbox:
                raise ProtocolError("it spoke without being asked")
            deadline = _Deadline(self.timeout)
            self._send(self._side.frame(query), deadline)
            while not whole:
                rows = self._next(deadline)
                if not isinstance(rows, Rows):
                    raise ProtocolError(f"it answered a query with {type(rows).__name__}")
                whole = not rows.more
                yield rows
        except PeerError as error:
            raise type(error)(f"{_where(self.node)}: {error}") from None
        finally:
            self._asking = False
            if not whole:
                self.close()

    def status(self, query: StatusQuery) -> NodeStatus:
        """Return what the node says of itself.

        Raises as `ask` does, but without naming the node; the client is closed then.
        """
        return self._answer(query, NodeStatus)

    def history(self, query: HistoryQuery) -> History:
        """Return the last minutes of some rows. Raises as `status` does; the client is closed then."""
        return self._answer(query, History)

    def _answer(self, query: Question, kind: type[T]) -> T:
        """Return an answer that is one message."""
        if self._asking:
            raise RuntimeError("the answer to another query is still being read")
        try:
            if self._inbox:
                raise ProtocolError("it spoke without being asked")
            deadline = _Deadline(self.timeout)
            self._send(self._side.frame(query), deadline)
            answer = self._next(deadline)
            if not isinstance(answer, kind):
                raise ProtocolError(
                    f"it answered a question for {kind.__name__} with {type(answer).__name__}"
                )
        except PeerError:
            self.close()
            raise
        return answer

    @property
    def closed(self) -> bool:
        return self._socket is None

    def close(self) -> None:
        """Close the connection; closing twice is harmless."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _greet(self, address: Any, timeout: float) -> None:
        """Connect and be welcomed. Raises PeerError."""
        deadline = _Deadline(timeout)
        sock = self._open()
        deadline.wait(sock, sock.connect, address)
        self._send(self._side.hello(), deadline)
        self._next(deadline)  # nothing but a Welcome or a Refuse gets past the wire here

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise UnreachableError("the connection is closed")
        return self._socket

    def _send(self, data: bytes, deadline: _Deadline) -> None:
        sock = self._open()
        if self._channel is not None:
            self._channel.send(data)
            data = self._channel.outgoing()
        if data:
            deadline.wait(sock, sock.sendall, data)

    def _next(self, deadline: _Deadline) -> Welcome | Ack | Rows | NodeStatus | History:
        """Return the node's next message."""
        sock = self._open()
        while not self._inbox:
            data = deadline.wait(sock, sock.recv, _CHUNK)
            if not data:
                raise UnreachableError("it closed the connection")
            try:
                if self._channel is not None:
                    data = self._channel.receive(data)
                self._inbox += self._side.receive(data)
            except ProtocolError as error:
                with contextlib.suppress(PeerError):
                    self._send(b"", deadline)  # what TLS has to say to the node about it
                raise ProtocolError(printable(str(error))) from None
            self._send(self._side.reply(), deadline)
        message = self._inbox.popleft()
        if isinstance(message, Refuse):
            raise RefusedError(printable(message.reason) or "refused without a reason")
        return message


def connect(
    nodes: Sequence[Node],
    service: str,
    timeout: float = CONNECT_TIMEOUT,
    rng: Shuffler = random,
    exclude: Collection[str] = (),
    credentials: Credentials = OPEN,
) -> Client:
    """Return a client of the first node, in random order, that welcomes a reader of `service`.

    `service` "" means whichever a node serves. `timeout` is in seconds, for each address of
    each node. Nodes whose names are in `exclude` are not tried, so that a caller whom a node
    tells that it has no quorum can look for another. Raises UnreachableError, with the
    reason of each node, where none is left.
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
    timeout: float = CONNECT_TIMEOUT,
    rng: Shuffler = random,
    credentials: Credentials = OPEN,
) -> Snapshot:
    """Return the snapshot of a node that has quorum, or where none has, the one whose view is the freshest.

    Nodes are tried in random order, also after one that welcomed and then failed. Raises
    UnreachableError, with the reason of each node, where none could be read.
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
        logger.debug(
            "%s: has answered: quorum %s, view %.1f s old",
            _where(node), "yes" if snapshot.header.quorum else "no", snapshot.header.stale,
        )  # fmt: skip
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
    # Who says no is there.
    hint = " (is connmond running there?)" if any(isinstance(r, UnreachableError) for r in reasons) else ""
    return UnreachableError(f"no node could be read: {'; '.join(map(str, reasons))}{hint}")


def _connect(node: Node, service: str, timeout: float, credentials: Credentials) -> Client:
    try:
        return reach(node, service, timeout, credentials)
    except PeerError as error:
        raise type(error)(f"{_where(node)}: {error}") from None


def reach(
    node: Node, service: str, timeout: float = CONNECT_TIMEOUT, credentials: Credentials = OPEN
) -> Client:
    """Return a client of this one node.

    Raises, without naming the node, RefusedError where it said no, ProtocolError where what it
    said is not to be understood, else UnreachableError. `timeout` as for `connect`.
    """
    logger.debug("%s: connecting", _where(node))
    try:
        client = _reach(node, service, timeout, credentials)
    except PeerError as error:
        logger.debug("%s: %s", _where(node), error)
        raise
    closed_by = [name for name, on in (("secret", credentials.secret), ("TLS", credentials.tls)) if on]
    logger.debug("%s: welcomed%s", _where(node), f", with {' and '.join(closed_by)}" if closed_by else "")
    return client


def _reach(node: Node, service: str, timeout: float, credentials: Credentials) -> Client:
    host, port = node.address.host, node.address.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
        raise UnreachableError(_reason(error)) from None
    reasons: dict[str, type[PeerError]] = {}  # all addresses of a name mostly fail for one reason
    for family, kind, protocol, _, address in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # this family is not there
            reasons[_reason(error)] = UnreachableError
            continue
        try:
            client = Client(node, service, sock, credentials)
        except ProtocolError as error:  # no certificate can be for such a name
            sock.close()
            reasons[str(error)] = ProtocolError
            continue
        try:
            client._greet(address, timeout)
            return client
        except BaseException as error:
            client.close()
            if not isinstance(error, PeerError):
                raise
            reasons[str(error)] = type(error)
    for error_type in (RefusedError, ProtocolError):  # whoever has answered tells more
        if error_type in reasons.values():
            raise error_type(", ".join(reasons))
    raise UnreachableError(", ".join(reasons))


def _where(node: Node) -> str:
    """A node as errors name it; one that was given by its address has no other name."""
    address = str(node.address)
    return printable(address if node.name == address else f"{node.name} ({address})")


def _reason(error: Exception) -> str:
    """What the system says, without the numbers."""
    return printable((error.strerror if isinstance(error, OSError) else None) or str(error))

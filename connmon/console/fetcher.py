"""The thread that talks to the node, so that the screen never waits for the network.

- The fetcher asks, and puts what happened into a queue that the loop empties many times a second.
- It has one connection. When that breaks, it tries any other node at once; when no node answers it tells
  the screen, and tries again each second for as long as the console runs.
- It asks only for changed rows. After a broken connection it asks for all rows once.
- Refreshes take at most a quarter of the time (`busy_share`): longer ones come at longer intervals.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from connmon.config import Node
from connmon.console.local_process import Watch
from connmon.console.rows import Key, KeyedRow, Samples, node_rows
from connmon.console.settings import DEFAULT_SETTINGS, ConsoleSettings
from connmon.console.source import HEAD, Maxima, Source, Want
from connmon.console.state import Local, Reel, Refresh, Remembered, Silence
from connmon.errors import ConnmonError
from connmon.protocol.credentials import OPEN, Credentials
from connmon.protocol.document import JsonPool
from connmon.protocol.queries import EVERYTHING, HistoryQuery
from connmon.protocol.rows import RowKey
from connmon.protocol.snapshot import Snapshot
from connmon.reader import client

logger = logging.getLogger("connmon.console")

#: Asks all nodes how they are, and returns the document of cluster-status.
AskNodes: TypeAlias = Callable[[], Mapping[str, Any]]


class Demand(NamedTuple):
    """What the screen shows now."""

    wants: tuple[Want, ...]
    remembers: tuple[RowKey, ...] = (EVERYTHING,)
    """The rows whose last minutes it shows."""
    interval: float = DEFAULT_SETTINGS.refresh_seconds
    """Seconds between two refreshes."""
    seen: frozenset[Key] | None = None
    """The rows on the screen; None: the ages of all rows are needed."""
    reel: Reel | None = None


@dataclass(frozen=True)
class Note:
    """Something to read for a while."""

    text: str


@dataclass(frozen=True)
class Crash:
    """The fetcher met a bug."""

    error: BaseException


@dataclass(frozen=True)
class Position:
    """A replay has gone on to that snapshot by itself."""

    number: int


News: TypeAlias = "Refresh | Silence | Note | Crash | Position"


class Fetcher(threading.Thread):
    """Asks the node for what the screen shows, at its interval and whenever that changes.

    `want` and `stop` may be called from any thread; `news` returns what happened, in order.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        service: str,
        first: client.Client,
        demand: Demand,
        credentials: Credentials = OPEN,
        ask_nodes: AskNodes | None = None,
        maxima: Maxima | None = None,
        settings: ConsoleSettings = DEFAULT_SETTINGS,
    ) -> None:
        """`maxima`: the connections that database servers take, by host and port."""
        super().__init__(name="connmon-console-fetcher", daemon=True)
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._nodes = tuple(nodes)
        self._service = service
        self._credentials = credentials
        self._client: client.Client | None = first
        self._demand = demand
        self._ask_nodes = ask_nodes
        self._maxima = maxima
        self._settings = settings
        self._sources: dict[Want, Source] = {}
        self._remembered: Remembered | None = None
        self._remembers: tuple[RowKey, ...] = ()
        self._next_history = 0.0
        self._watch = Watch()
        self._wake = threading.Event()
        self._stopping = False
        self._silent = False
        self._next_quorum_search = 0.0

    def __repr__(self) -> str:
        node = self._client
        where = "disconnected" if node is None else f"reading {node.node.name}"
        return f"<Fetcher {where}, {len(self._sources)} tables, every {self._demand.interval:g} s>"

    def news(self) -> list[News]:
        """Return what has happened since the last call."""
        news: list[News] = []
        with contextlib.suppress(queue.Empty):
            while True:
                news.append(self._news.get_nowait())
        return news

    def want(self, demand: Demand) -> None:
        """Ask for this from now on; at once if other rows are wanted than before."""
        at_once = demand.wants != self._demand.wants or demand.interval < self._demand.interval
        self._demand = demand
        if at_once:
            self._wake.set()

    def stop(self) -> None:
        """End soon; the caller does not wait for an answer that is still to come."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        try:
            while not self._stopping:
                began = time.monotonic()
                self._refresh()
                taken = time.monotonic() - began
                pause = max(self._demand.interval, taken / self._settings.busy_share) - taken
                if self._wake.wait(pause):
                    self._wake.clear()
        except Exception as error:
            self._news.put(Crash(error))
        finally:
            self._disconnect()

    def _refresh(self) -> None:
        broken = ""
        if self._client is not None:
            broken = self._client.node.name
            try:
                self._fetched(self._fetch(self._client), "")
            except (ConnmonError, OSError):
                self._disconnect()
            else:
                return
        try:
            self._client = self._connect(broken)
            self._fetched(self._fetch(self._client), broken)
        except (ConnmonError, OSError) as error:
            self._disconnect()
            self._silent = True
            logger.debug("no node answers: %s", error)
            self._news.put(Silence(str(error)))

    def _connect(self, broken: str) -> client.Client:
        """Connect to any node; to the node that has just failed only as the last resort."""
        if broken and len(self._nodes) > 1:
            with contextlib.suppress(ConnmonError, OSError):
                return client.connect(
                    self._nodes, self._service, exclude=(broken,), credentials=self._credentials
                )
        return client.connect(self._nodes, self._service, credentials=self._credentials)

    def _disconnect(self) -> None:
        self._sources.clear()
        self._remembered, self._next_history = None, 0.0
        gone, self._client = self._client, None
        if gone is not None:
            logger.debug("disconnected from %s", gone.node.name)
            gone.close()

    def _fetch(self, node: client.Client) -> Refresh:
        node.timeout = self._settings.answer_seconds
        demand = self._demand
        self._remember(node, demand.remembers)
        # The nodes' rows do not come from a node: only the head of its answer is wanted then.
        asked = {want: HEAD if want.by == "node" else want for want in demand.wants}
        self._sources = {
            want: self._sources.get(want) or Source(want, self._maxima, self._settings)
            for want in asked.values()
        }
        for source in self._sources.values():
            for rows in node.ask(source.question()):
                source.apply(rows)
        tables: dict[Want, Sequence[KeyedRow]] = {}
        for want, instead in asked.items():
            tables[want] = (
                self._nodes_rows() if want.by == "node" else self._sources[instead].rows(demand.seen)
            )
        first = self._sources[asked[demand.wants[0]]]
        head = first.head()
        return Refresh(
            head=head,
            tables=tables,
            received=time.monotonic(),
            received_at=wall_clock(0.0),
            stands_since=wall_clock(head.stale_seconds),
            rows_left_out=first.rows_left_out,
            remembered=self._remembered,
            local=self._local(tables),
        )

    def _remember(self, node: client.Client, keys: tuple[RowKey, ...]) -> None:
        """Ask for the history of the rows on the screen, if it is time to."""
        now = time.monotonic()
        if keys == self._remembers and now < self._next_history:
            return
        history = node.history(HistoryQuery(keys, self._settings.history_samples))
        self._remembers, self._next_history = keys, now + self._settings.history_seconds
        samples = {series.key: Samples(series.rates, series.connections) for series in history.series}
        self._remembered = Remembered(history.number, history.interval, samples)

    def _nodes_rows(self) -> list[KeyedRow]:
        return [] if self._ask_nodes is None else node_rows(self._ask_nodes()["nodes"])

    def _local(self, tables: Mapping[Want, Sequence[KeyedRow]]) -> Local | None:
        """Look at the process on the screen, if it runs on this host."""
        for want, rows in tables.items():
            if want.by == "pool" and want.instance is not None:
                pools = [row for _, row in rows if isinstance(row, JsonPool)]
                return self._watch.look(want.instance, pools)
        return None

    def _fetched(self, refresh: Refresh, broken: str) -> None:
        assert self._client is not None
        name, node = self._client.node.name, refresh.head.node
        if self._silent:
            self._note(f"connected again, to {node}")
        elif broken == name:
            self._note(f"the connection to {node} broke, and was made again")
        elif broken:
            self._note(f"{broken} does not answer: now reading from {node}")
        self._silent = False
        self._news.put(refresh)
        if not refresh.head.quorum and time.monotonic() >= self._next_quorum_search:
            self._next_quorum_search = time.monotonic() + self._settings.quorum_search_seconds
            self._find_quorum(name)

    def _note(self, text: str) -> None:
        logger.debug("%s", text)
        self._news.put(Note(text))

    def _find_quorum(self, name: str) -> None:
        """Go over from the node of that name to one that has quorum, if there is one."""
        seconds = self._settings.quorum_answer_seconds
        for node in self._nodes:
            if node.name == name or self._stopping:
                continue
            with contextlib.suppress(ConnmonError, OSError):
                other = client.connect([node], self._service, seconds, credentials=self._credentials)
                other.timeout = seconds
                if _has_quorum(other):
                    self._disconnect()
                    self._client = other
                    self._note(f"{name} has no quorum: now reading from {node.name}")
                    self._wake.set()
                    return
                other.close()


def wall_clock(ago: float) -> str:
    """Return the time of so many seconds ago as people write it, with the day if that is not today."""
    now = datetime.datetime.now()
    try:
        then = now - datetime.timedelta(seconds=ago)
    except OverflowError:
        return "long ago"
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def _has_quorum(node: client.Client) -> bool:
    snapshot = Snapshot("host")
    for rows in node.ask(snapshot.query()):
        snapshot.apply(rows)
    return snapshot.typed_head().quorum

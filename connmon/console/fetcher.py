"""The thread that talks to the node, so that the screen never waits for the network.

Rules kept here:

- The fetcher asks, and leaves what happened in a queue that the loop empties many times a second.
- One connection at a time. When it breaks, any other node is tried at once; only when none answers
  is the screen told so, and it is tried again each second for as long as the console runs.
- Only changed rows are asked for. After a broken connection everything is asked for once more.
- However much there is, at most a `SHARE` of the time goes into asking and sorting it out: the
  pictures then come at longer intervals.
"""

from __future__ import annotations

import contextlib
import datetime
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from connmon.config import Node
from connmon.console.fitting import Row
from connmon.console.local_process import Watch
from connmon.console.source import Key, Maxima, Source, Want
from connmon.console.state import INTERVAL, Local, Picture, Reel, Remembered, Samples, Silence
from connmon.errors import ConnmonError
from connmon.protocol.credentials import OPEN, Credentials
from connmon.protocol.queries import EVERYTHING, HistoryQuery
from connmon.protocol.rows import RowKey
from connmon.protocol.snapshot import Snapshot
from connmon.reader import client

#: Seconds after which a node that was asked counts as dead.
ANSWER: Final = 5.0
#: Seconds between looks for a node with quorum, while the present one has none.
LEAVE: Final = 5.0
#: Seconds that each of them has for an answer; meanwhile the picture does not move.
LOOKED_AT: Final = 0.8
#: Seconds between two questions for the last minutes, and how many samples are asked for.
REMEMBER: Final = 2.0
SAMPLES: Final = 150
#: The part of the time that goes into pictures at most.
SHARE: Final = 0.25

#: What asks all nodes how they are: the document of cluster-status.
AskNodes: TypeAlias = Callable[[], Mapping[str, Any]]


class Demand(NamedTuple):
    """What the screen shows now."""

    wants: tuple[Want, ...]
    remembers: tuple[RowKey, ...] = (EVERYTHING,)
    """The rows whose last minutes it shows."""
    interval: float = INTERVAL
    seen: frozenset[Key] | None = None
    """The rows on the screen; None: any may be, or their order hangs on ages."""
    reel: Reel | None = None


@dataclass(frozen=True)
class Note:
    """Something to be read for a while."""

    text: str


@dataclass(frozen=True)
class Crash:
    """The fetcher met a bug."""

    error: BaseException


@dataclass(frozen=True)
class Position:
    """A replay has gone on to that picture by itself."""

    number: int


News: TypeAlias = "Picture | Silence | Note | Crash | Position"


class Fetcher(threading.Thread):
    """Asks the node for what the screen shows, at its interval and whenever that changes.

    `want` and `stop` may be called from any thread; what happened is told by `news`, in order.
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
        self._sources: dict[Want, Source] = {}
        self._remembered: Remembered | None = None
        self._remembers: tuple[RowKey, ...] = ()
        self._remember_again = 0.0
        self._watch = Watch()
        self._wake = threading.Event()
        self._stopping = False
        self._silent = False
        self._look_again = 0.0

    def news(self) -> list[News]:
        """Return what has happened since this was asked last."""
        told: list[News] = []
        with contextlib.suppress(queue.Empty):
            while True:
                told.append(self._news.get_nowait())
        return told

    def want(self, demand: Demand) -> None:
        """Ask for this from now on, beginning at once if other rows are wanted than before."""
        at_once = demand.wants != self._demand.wants or demand.interval < self._demand.interval
        self._demand = demand
        if at_once:
            self._wake.set()

    def stop(self) -> None:
        """End soon. An answer that is being waited for is not waited for by the caller."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        try:
            while not self._stopping:
                began = time.monotonic()
                self._refresh()
                taken = time.monotonic() - began
                if self._wake.wait(max(self._demand.interval - taken, taken / SHARE - taken, 0.0)):
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
            self._news.put(Silence(str(error)))

    def _connect(self, broken: str) -> client.Client:
        """Connect to any node, to the one that has just failed as the last resort."""
        if broken and len(self._nodes) > 1:
            with contextlib.suppress(ConnmonError, OSError):
                return client.connect(
                    self._nodes, self._service, exclude=(broken,), credentials=self._credentials
                )
        return client.connect(self._nodes, self._service, credentials=self._credentials)

    def _disconnect(self) -> None:
        self._sources.clear()
        self._remembered, self._remember_again = None, 0.0
        gone, self._client = self._client, None
        if gone is not None:
            gone.close()

    def _fetch(self, node: client.Client) -> Picture:
        node.timeout = ANSWER
        demand = self._demand
        self._remember(node, demand.remembers)
        # The nodes' rows do not come from a node: of this one only the head is wanted then.
        asked = {want: _HEAD if want.by == "node" else want for want in demand.wants}
        self._sources = {
            want: self._sources.get(want) or Source(want, self._maxima) for want in asked.values()
        }
        for source in self._sources.values():
            for rows in node.ask(source.question()):
                source.apply(rows)
        tables: dict[Want, Sequence[tuple[Key, Row]]] = {}
        for want, instead in asked.items():
            tables[want] = (
                self._nodes_rows() if want.by == "node" else self._sources[instead].rows(demand.seen)
            )
        head = self._sources[asked[demand.wants[0]]].head()
        return Picture(
            head,
            tables,
            time.monotonic(),
            wall_clock(0.0),
            wall_clock(head["stale_seconds"]),
            self._remembered,
            self._look(tables),
        )

    def _remember(self, node: client.Client, keys: tuple[RowKey, ...]) -> None:
        """Ask for the last minutes of the rows on the screen."""
        now = time.monotonic()
        if keys == self._remembers and now < self._remember_again:
            return
        past = node.history(HistoryQuery(keys, SAMPLES))
        self._remembers, self._remember_again = keys, now + REMEMBER
        series = {each.key: Samples(each.rates, each.connections) for each in past.series}
        self._remembered = Remembered(past.number, past.interval, series)

    def _nodes_rows(self) -> list[tuple[Key, Row]]:
        if self._ask_nodes is None:
            return []
        rows = self._ask_nodes()["nodes"]
        return [
            (("node", row["node"], row["address"]), {**row, "problem": "; ".join(row["problems"]) or None})
            for row in rows
        ]

    def _look(self, tables: Mapping[Want, Sequence[tuple[Key, Row]]]) -> Local | None:
        """Look at the process on the screen, where it runs on this host."""
        for want, pairs in tables.items():
            if want.by == "pool" and want.instance is not None:
                return self._watch.look(want.instance, [row for _, row in pairs])
        return None

    def _fetched(self, picture: Picture, broken: str) -> None:
        assert self._client is not None
        name, node = self._client.node.name, str(picture.head["node"])
        if self._silent:
            self._news.put(Note(f"connected again, to {node}"))
        elif broken == name:
            self._news.put(Note(f"the connection to {node} broke, and was made again"))
        elif broken:
            self._news.put(Note(f"{broken} does not answer: now reading from {node}"))
        self._silent = False
        self._news.put(picture)
        if not picture.head["quorum"] and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + LEAVE
            self._leave(name)

    def _leave(self, name: str) -> None:
        """Go over to a node that has quorum, if there is one."""
        for node in self._nodes:
            if node.name == name or self._stopping:
                continue
            with contextlib.suppress(ConnmonError, OSError):
                other = client.connect([node], self._service, LOOKED_AT, credentials=self._credentials)
                other.timeout = LOOKED_AT
                if _has_quorum(other):
                    self._disconnect()
                    self._client = other
                    self._news.put(Note(f"{name} has no quorum: now reading from {node.name}"))
                    self._wake.set()
                    return
                other.close()


def wall_clock(ago: float) -> str:
    """Return the time of so many seconds ago as people write it, with the day where that is not today's."""
    now = datetime.datetime.now()
    try:
        then = now - datetime.timedelta(seconds=ago)
    except OverflowError:
        return "long ago"
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M:%S")


#: What is asked for where only the head of the answer is wanted.
_HEAD: Final = Want("host")


def _has_quorum(node: client.Client) -> bool:
    snapshot = Snapshot("host")
    for rows in node.ask(snapshot.query()):
        snapshot.apply(rows)
    return bool(snapshot.document()["quorum"])

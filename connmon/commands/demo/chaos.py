"""`connmon demo --chaos`: the nodes are killed and started again by turns, and nothing is lost.

- One node is down at a time, so that a majority always goes on; the next one is killed only when the
  one before is back and has caught up.
- The proof: what the applications counted by themselves while all that went on is, to the unit
  and process by process, what every node shows once they stand still.
- It writes nothing while the console has the screen.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

from connmon.commands.demo.child import counts_file
from connmon.commands.demo.process import Child
from connmon.config import Node, Service
from connmon.errors import ConnmonError, PeerError
from connmon.reader.client import read_once
from connmon.reader.cluster_status import ask

#: Seconds from one kill to the next, at least; for which a node stays down.
EVERY = 8.0
DOWN = 3.0
#: Kills before the proof: each node once.
ROUNDS = 3
#: Seconds for a node to come back, for the applications to stop, and for all nodes to agree with them.
BACK: Final = 30.0
STOP: Final = 30.0
AGREE: Final = 30.0

#: What applications count.
COUNTED: Final = ("connects_total", "closes_total", "checkouts_total", "checkins_total", "timeouts_total")


Counts = dict[int, dict[str, int]]
"""By pid: what was counted."""


@contextlib.contextmanager
def going_on(service: Service, nodes: Sequence[Child]) -> Iterator[None]:
    """Kill and restart nodes for as long as the block runs.

    Raises ConnmonError at its end where a node did not come back.
    """
    stop = threading.Event()
    failures: list[ConnmonError] = []

    def work() -> None:
        try:
            for node in cycle(_order(service, nodes)):
                _round(service, node, stop)
                if stop.is_set():
                    return
        except ConnmonError as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="chaos")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def prove(
    service: Service,
    nodes: Sequence[Child],
    applications: Sequence[Child],
    directory: Path,
    say: Callable[[str], None],
) -> int:
    """Kill and restart `ROUNDS` times, then compare; return 0, or 1 where something was lost."""
    turns = cycle(_order(service, nodes))
    for _ in range(ROUNDS):
        node = next(turns)
        role = "the leader" if _leader(service) == node.name else "a follower"
        say(f"{node.name}, {role}, is killed, and comes back after {DOWN:g} s")
        _round(service, node, threading.Event())
    counted = _stop(applications, directory)
    shown = {node.name: _agreed(node, service, counted) for node in service.nodes}
    print(_table(counted, shown), end="")
    wrong = [name for name, counts in shown.items() if counts != counted]
    if wrong:
        print(f"LOST OR COUNTED TWICE: {', '.join(wrong)} shows something else than the applications.")
        return 1
    print(
        f"Nothing was lost: nodes were killed {ROUNDS} times, and every node shows, process by process, "
        f"what the {len(counted)} processes counted themselves."
    )
    return 0


def _leader(service: Service) -> str | None:
    leader: str | None = ask(service).document["leader"]
    return leader


def _order(service: Service, nodes: Sequence[Child]) -> list[Child]:
    """Return the nodes in turn, the leader first."""
    leader = _leader(service)
    return sorted(nodes, key=lambda node: node.name != leader)


def _round(service: Service, node: Child, stop: threading.Event) -> None:
    """Kill a node, start it again, wait until all is well. Raises ConnmonError where it stays away."""
    began = time.monotonic()
    node.kill()
    if stop.wait(DOWN):
        return
    node.start()
    deadline = time.monotonic() + BACK
    while not stop.is_set() and ask(service).document["health"] != "healthy":
        if node.ended or time.monotonic() > deadline:
            raise ConnmonError(f"{node.name} of the demo did not come back: {node.last_words}")
        stop.wait(0.2)
    stop.wait(max(0.0, EVERY - (time.monotonic() - began)))


def _stop(applications: Sequence[Child], directory: Path) -> Counts:
    """Have the applications stop working; return what they counted. Raises ConnmonError."""
    for application in applications:
        application.tell()
    deadline = time.monotonic() + STOP
    counted: Counts = {}
    for application in applications:
        file = counts_file(directory, application.pid)
        while not file.exists():
            if application.ended or time.monotonic() > deadline:
                raise ConnmonError(f"{application.name} of the demo did not stop: {application.last_words}")
            time.sleep(0.05)
        counts = json.loads(file.read_text(encoding="ascii"))
        counted[application.pid] = {key: counts.get(key, 0) for key in COUNTED}
    return counted


def _agreed(node: Node, service: Service, counted: Counts) -> Counts:
    """Return what the node shows, as soon as it is what was counted; else what it shows in the end."""
    deadline = time.monotonic() + AGREE
    while True:
        shown: Counts = {}
        with contextlib.suppress(PeerError):
            rows = read_once([node], service.name, "process").rows()
            shown = {row["pid"]: {key: row[key] for key in COUNTED} for row in rows}
        if shown == counted or time.monotonic() > deadline:
            return shown
        time.sleep(0.1)


def _table(counted: Counts, shown: dict[str, Counts]) -> str:
    """Return the sums, one line for each who counted."""
    lines = [["", *(key.removesuffix("_total").upper() for key in COUNTED)]]
    for name, counts in {"applications": counted, **shown}.items():
        lines.append([name, *(str(sum(each[key] for each in counts.values())) for key in COUNTED)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        f"{line[0]:{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        + "\n"
        for line in lines
    )

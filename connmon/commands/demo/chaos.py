"""`connmon demo --chaos`: kill and restart the nodes in turn, and show that nothing is lost.

- One node is down at a time, so that a majority remains. The next one is killed when the one before has
  caught up.
- The proof: the applications' own counts, process by process, equal what every node shows once they stand
  still.
- Nothing is written while the console has the screen.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final, TypeAlias

from connmon.commands.demo.child import counts_file
from connmon.commands.demo.process import Child
from connmon.commands.demo.settings import DemoSettings
from connmon.config import Node, Service
from connmon.errors import ConnmonError, PeerError
from connmon.protocol.document import FigureFields, JsonProcess
from connmon.reader.client import read_once
from connmon.reader.cluster_status import ask
from connmon.reader.formats import aligned

COUNTED: Final = ("connects_total", "closes_total", "checkouts_total", "checkins_total", "timeouts_total")
_HEADINGS: Final = {"node": "", **{key: key.removesuffix("_total").upper() for key in COUNTED}}

Counts: TypeAlias = dict[int, dict[str, int]]
"""By pid: the counts by key of `COUNTED`."""


@contextlib.contextmanager
def chaos_running(service: Service, nodes: Sequence[Child], settings: DemoSettings) -> Iterator[None]:
    """Kill and restart nodes while the block runs.

    Raises ConnmonError at its end where a node did not come back.
    """
    stop = threading.Event()
    failures: list[ConnmonError] = []

    def work() -> None:
        try:
            for node in cycle(_leader_first(service, nodes)):
                _kill_and_restart(service, node, stop, settings)
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


def prove_no_loss(
    service: Service,
    nodes: Sequence[Child],
    applications: Sequence[Child],
    directory: Path,
    say: Callable[[str], None],
    settings: DemoSettings,
) -> int:
    """Kill and restart nodes, then compare the counts; return 0, or 1 where they differ."""
    turns = cycle(_leader_first(service, nodes))
    for _ in range(settings.kills):
        node = next(turns)
        role = "the leader" if _leader(service) == node.name else "a follower"
        say(f"{node.name}, {role}, is killed, and comes back after {settings.down_seconds:g} s")
        _kill_and_restart(service, node, threading.Event(), settings)
    counted = stop_and_count(applications, directory, settings)
    by_node = {node.name: _counts_of_node(node, service, counted, settings) for node in service.nodes}
    print(_table(counted, by_node), end="")
    wrong = [name for name, counts in by_node.items() if counts != counted]
    if wrong:
        print(f"LOST OR COUNTED TWICE: {', '.join(wrong)} shows something else than the applications.")
        return 1
    print(
        f"Nothing was lost: nodes were killed {settings.kills} times, and every node shows, process by "
        f"process, what the {len(counted)} processes counted themselves."
    )
    return 0


def _leader(service: Service) -> str | None:
    return ask(service).document["leader"]


def _leader_first(service: Service, nodes: Sequence[Child]) -> list[Child]:
    leader = _leader(service)
    return sorted(nodes, key=lambda node: node.name != leader)


def _kill_and_restart(service: Service, node: Child, stop: threading.Event, settings: DemoSettings) -> None:
    """Kill a node, restart it, and wait until the cluster is healthy.

    Raises ConnmonError where the node stays away.
    """
    start = time.monotonic()
    node.kill()
    if stop.wait(settings.down_seconds):
        return
    node.start()
    deadline = time.monotonic() + settings.recover_seconds
    while not stop.is_set() and ask(service).document["health"] != "healthy":
        if node.ended or time.monotonic() > deadline:
            raise ConnmonError(f"{node.name} of the demo did not come back: {node.last_line}")
        stop.wait(0.2)
    stop.wait(max(0.0, settings.kill_every_seconds - (time.monotonic() - start)))


def stop_and_count(applications: Sequence[Child], directory: Path, settings: DemoSettings) -> Counts:
    """Stop the applications' work; return their own counts. Raises ConnmonError where one goes on."""
    for application in applications:
        application.stop_work()
    deadline = time.monotonic() + settings.stop_seconds
    counted: Counts = {}
    for application in applications:
        file = counts_file(directory, application.pid)
        while not file.exists():
            if application.ended or time.monotonic() > deadline:
                raise ConnmonError(f"{application.name} of the demo did not stop: {application.last_line}")
            time.sleep(0.05)
        counts = json.loads(file.read_text(encoding="ascii"))
        counted[application.pid] = {key: counts.get(key, 0) for key in COUNTED}
    return counted


def _counts_of_node(node: Node, service: Service, counted: Counts, settings: DemoSettings) -> Counts:
    """Return the node's counts as soon as they equal `counted`, else its last ones."""
    deadline = time.monotonic() + settings.agree_seconds
    while True:
        counts: Counts = {}
        with contextlib.suppress(PeerError):
            rows = read_once([node], service.name, "process").rows_of(JsonProcess)
            counts = {row.process.pid: _counts(row.figures) for row in rows if row.process.pid is not None}
        if counts == counted or time.monotonic() > deadline:
            return counts
        time.sleep(0.1)


def _counts(figures: FigureFields) -> dict[str, int]:
    return {
        "connects_total": figures.connects_total or 0,
        "closes_total": figures.closes_total or 0,
        "checkouts_total": figures.checkouts_total or 0,
        "checkins_total": figures.checkins_total or 0,
        "timeouts_total": figures.timeouts_total or 0,
    }


def _table(counted: Counts, by_node: Mapping[str, Counts]) -> str:
    """Return the sums over all processes: a line for the applications and one for each node."""
    rows = [
        {"node": name, **{key: sum(process[key] for process in counts.values()) for key in COUNTED}}
        for name, counts in {"applications": counted, **by_node}.items()
    ]
    return "".join(f"{line}\n" for line in aligned(_HEADINGS, rows))

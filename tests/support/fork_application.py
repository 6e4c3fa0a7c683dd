"""Processes that fork with connections, each with its own books: the programs that test_forks runs.

    python -m tests.support.fork_application SCENARIO OPTIONS

OPTIONS is JSON: the engine (as in tests.support.work) and the directory in which to meet the test
(tests.support.heirs). A child never closes an inherited connection: that would end it for the parent as
well, which is a matter of SQLAlchemy and the driver, not of connmon.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.support.heirs import Heir, meet


class Process(Heir):
    """One of the processes."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options["engine"])
        self.settings = options

    def meet(self, name: str) -> None:
        meet(self.settings["directory"], name, self.books())


def idle(process: Process) -> None:
    """A child uses new connections, and connections that were idle at the fork."""
    process.hold(2)
    process.give_back()
    process.meet("before")
    if os.fork():
        for name in ("unused", "one", "all", "given back", "dropped", "own"):
            process.meet(name)
        os.wait()
        process.meet("ended")
        process.hold(2)
        process.meet("again")
        return
    process.child()
    process.meet("unused")
    process.hold()
    process.meet("one")
    process.hold(2)
    process.meet("all")
    process.give_back()
    process.meet("given back")
    process.drop_inherited()
    process.meet("dropped")
    process.queries(3)
    process.meet("own")


def held(process: Process) -> None:
    """A child returns a connection that was held at the fork, and then uses it."""
    process.hold(2)
    process.detach_last()
    process.meet("before")
    if os.fork():
        process.meet("given back")
        process.meet("used")
        os.wait()
        process.meet("ended")
        process.give_back()
        process.meet("again")
        return
    process.child()
    process.limbo[0][0].close()
    process.meet("given back")
    process.hold(2)  # the first is new: it takes the place of the detached one in the pool
    process.meet("used")
    os._exit(0)  # a detached connection that ends in the child would end in the parent too


def twice(process: Process) -> None:
    """A grandchild uses a connection that its grandparent opened and its parent never used."""
    process.hold()
    process.give_back()
    if os.fork():
        process.meet("used")
        process.meet("alone")
        os.wait()
        process.meet("ended")
        return
    process.child()
    if os.fork():
        process.meet("unused")
        os.wait()
        process.hold()
        process.meet("alone")
        return
    process.child()
    process.hold()
    process.meet("used")


def busy(process: Process) -> None:
    """A process forks while its threads and its reporter are at work."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            process.queries(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(process.settings["children"]):
        time.sleep(0.1)  # there is nothing to wait for: any moment is right
        if not os.fork():
            _busy_child(process)
            return
    stop.set()
    for thread in threads:
        thread.join()
    process.meet("worked")
    for _ in range(process.settings["children"]):
        os.wait()
    process.meet("ended")


def _busy_child(process: Process) -> None:
    process.child()
    process.drop_inherited()
    process.queries(5)
    process.hold()
    process.meet("worked")
    process.give_back()
    process.queries(5)
    process.meet("last")
    if process.settings["hard"]:
        os._exit(0)


def spawning(process: Process) -> None:
    """Children of multiprocessing, by the method that the options name."""
    global inheritance
    process.queries(2)
    context = multiprocessing.get_context(process.settings["method"])
    if process.settings["method"] == "fork":
        inheritance = process
    children = [context.Process(target=spawned, args=(process.settings,)) for _ in range(2)]
    for child in children:
        child.start()
    process.meet("worked")
    for child in children:
        child.join()
    process.meet("ended")


inheritance: Process | None = None


def spawned(options: dict[str, Any]) -> None:
    """The work of a child of multiprocessing; it does the last part after the last comparison."""
    if inheritance is None:
        process = Process(options)
    else:
        process = inheritance
        process.child()
        process.drop_inherited()
    process.queries(3)
    process.hold()
    process.meet("worked")
    process.give_back()
    process.queries(4)
    process.meet("last")


SCENARIOS: dict[str, Callable[[Process], None]] = {
    "idle": idle,
    "held": held,
    "twice": twice,
    "busy": busy,
    "spawning": spawning,
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Process(json.loads(sys.argv[2])))

"""Greenlets on one engine, one of which keeps the CPU for seconds: the program that test_greenlets runs.

    python -m tests.support.green_application LIBRARY PATCHED OPTIONS

LIBRARY is eventlet or gevent. PATCHED says when the standard library is patched: "first", as the
libraries require; "imported", after connmon was imported and the engine created; "connected", after a
connection was used as well, so that connmon's thread runs already. OPTIONS is JSON: the engine (as in
tests.support.work), and the directory in which to meet the test (tests.support.heirs).

It works in steps and meets the test after each. Greenlets do the work of a step.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from typing import Any

LIBRARY, PATCHED, OPTIONS = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


def patch() -> None:
    if LIBRARY == "gevent":
        import gevent.monkey

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is too late for some modules, on purpose
            gevent.monkey.patch_all()
    else:
        import eventlet

        eventlet.monkey_patch()


if PATCHED == "first":
    patch()

from tests.support.heirs import Heir, meet  # noqa: E402  # after the patch, or before it


class Site(Heir):
    """The engine. Its pool sends nothing to the server on its own: that would let other greenlets run."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "pool_reset_on_return": None}


site = Site(OPTIONS["engine"])
if PATCHED == "connected":
    site.queries(1)
if PATCHED != "first":
    patch()
    site.drop_inherited()  # the pool's locks are from before the patch, and unusable now
    site.lock = threading.Lock()


def spawn(function: Any, *arguments: Any) -> Any:
    if LIBRARY == "gevent":
        import gevent

        return gevent.spawn(function, *arguments)
    import eventlet

    return eventlet.spawn(function, *arguments)


def wait(greenlet: Any) -> None:
    greenlet.get() if LIBRARY == "gevent" else greenlet.wait()


def pause(condition: Any) -> None:
    while not condition():
        time.sleep(0.005)  # the other greenlets run meanwhile


def look(name: str) -> None:
    """Meet the test, while the greenlets continue."""
    meet(OPTIONS["directory"], name, site.books())


def holder(go: str) -> None:
    """Hold a connection until the test ends the meeting `go`."""
    connection = site.take()
    entry = (connection, "checked_out", site.session_id(connection))
    connection.rollback()
    site.kept.append(entry)
    pause(lambda: os.path.exists(os.path.join(OPTIONS["directory"], f"{go}.go")))
    site.kept.remove(entry)
    site.give(connection)


def hog() -> None:
    """Keep the CPU until the test ends the meeting, checking connections out and in."""
    end = time.monotonic() + 60.0
    go = os.path.join(OPTIONS["directory"], "hogged.go")
    while time.monotonic() < end and not os.path.exists(go):
        site.engine.pool.connect().close()
        site.numbers["checkouts"] += 1  # no lock: no other greenlet can run here
        site.numbers["checkins"] += 1


def main() -> None:
    capacity = site.spec["size"] + site.spec["overflow"]
    greenlets = [spawn(holder, "waiting") for _ in range(capacity)]
    pause(lambda: len(site.kept) == capacity)
    greenlets += [spawn(holder, "waiting") for _ in range(3)]
    look("waiting")
    for greenlet in greenlets:
        wait(greenlet)
    look("quiet")
    wait(spawn(hog))
    look("hogged, and done")


main()

"""Greenlets on one engine, one of which has the CPU for seconds: what test_greenlets runs.

    python -m tests.support.green_application LIBRARY PATCHED OPTIONS

LIBRARY is eventlet or gevent. PATCHED says when the standard library is replaced: "first", as
they ask for; "imported", after the import of connmon and the making of the engine; "connected",
when a connection has been used as well, so that connmon's thread runs already. OPTIONS is JSON:
the engine (as in tests.support.work), and the directory to meet the test in (tests.support.heirs).

It works in steps, and meets the test after each; greenlets are what a step is done by.
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
            warnings.simplefilter("ignore")  # that it is too late for this and that: so be it
            gevent.monkey.patch_all()
    else:
        import eventlet

        eventlet.monkey_patch()


if PATCHED == "first":
    patch()

from tests.support.heirs import Heir, meet  # noqa: E402  # after the patch, or before it


class Site(Heir):
    """The engine, whose pool does not talk to the server on its own: that would let other greenlets go on."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "pool_reset_on_return": None}


site = Site(OPTIONS["engine"])
if PATCHED == "connected":
    site.queries(1)
if PATCHED != "first":
    patch()
    site.drop_inherited()  # the pool's locks are of the time before, and no longer to be used
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
        time.sleep(0.005)  # the others go on meanwhile


def look(name: str) -> None:
    """Meet the test, while the greenlets go on."""
    meet(OPTIONS["directory"], name, site.books())


def holder(go: str) -> None:
    """Hold a connection until the test has been at the meeting `go`."""
    connection = site.take()
    entry = (connection, "checked_out", site.session_id(connection))
    connection.rollback()
    site.kept.append(entry)
    pause(lambda: os.path.exists(os.path.join(OPTIONS["directory"], f"{go}.go")))
    site.kept.remove(entry)
    site.give(connection)


def hog() -> None:
    """Have the CPU until the test has seen enough, checking connections out and in all the time."""
    end = time.monotonic() + 60.0
    go = os.path.join(OPTIONS["directory"], "hogged.go")
    while time.monotonic() < end and not os.path.exists(go):
        site.engine.pool.connect().close()
        site.numbers["checkouts"] += 1  # no lock: nobody else can be here
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

"""A WSGI application with books of its own: what gunicorn and uWSGI serve in test_application_servers.

What it is to do comes as JSON in the environment: the engine (as in tests.support.work), and whether to
use it while it is loaded. The path of a request names a method of `Site`, and each answer is the
books of the process that gave it. No at-fork hook is relied on: uWSGI may run none, so the books
begin anew when a request finds itself in another process.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.heirs import Heir

OPTIONS = json.loads(os.environ["CONNMON_TEST_APPLICATION"])


class Site(Heir):
    """One process's engine and books."""

    def __init__(self) -> None:
        super().__init__(OPTIONS["engine"])
        self.pid = os.getpid()
        if OPTIONS.get("use_while_loading"):
            self.two()

    def here(self) -> None:
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.child()

    def books_only(self) -> None:
        """Use nothing."""

    def one(self) -> None:
        self.hold()
        self.give_back()

    def two(self) -> None:
        self.hold(2)
        self.give_back()

    def keep_one(self) -> None:
        if not self.kept:
            self.hold()


site = Site()
if OPTIONS.get("uwsgidecorators"):
    importlib.import_module("uwsgidecorators")  # takes uWSGI's hook for itself


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    site.here()
    getattr(site, environ["PATH_INFO"].strip("/") or "books_only")()
    body = json.dumps({"pid": os.getpid(), **site.books()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

"""A WSGI application with its own books: gunicorn and uWSGI serve it in test_application_servers.

Its options come as JSON in the environment: the engine (as in tests.support.work), and whether to use it
while the application is loaded. The path of a request names a method of `Site`. Each answer is the books of
the process that gave it. The application needs no at-fork hook, since uWSGI may run none: a request that
finds itself in another process resets the books.
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
    """The engine and the books of one process."""

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
        """Use no connection."""

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
    importlib.import_module("uwsgidecorators")  # takes uWSGI's hook


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    site.here()
    getattr(site, environ["PATH_INFO"].strip("/") or "books_only")()
    body = json.dumps({"pid": os.getpid(), **site.books()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

"""Threads, sockets and locks of the operating system, also where eventlet or gevent replaced them.

The reporter must go on while a greenlet has the CPU, so nothing that it waits on may be a
greenlet's. The C types under `socket` and the clock are never replaced; the rest is fetched
from what the monkey patch put aside.
"""

from __future__ import annotations

import _socket
import _thread
import codecs
import os
import sys
from collections.abc import Callable
from typing import Any

get_ident: Callable[[], int] = _thread.get_ident
socket_type: type[_socket.socket] = _socket.socket
getaddrinfo = _socket.getaddrinfo

# Of which getaddrinfo asks for the codec. Were it imported by the reporter's thread, a fork in the
# middle of that would leave a child in which nobody, the application included, can look up a name.
codecs.lookup("idna")


def _original(module: str, name: str) -> Any:
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched(_EVENTLET.get(module, module)):
        return getattr(eventlet.original(module), name)
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None:
        return gevent.get_original(module, name)
    return getattr(__import__(module), name)


_EVENTLET = {"_thread": "thread"}


def patched() -> bool:
    """Whether threads are greenlets in this process."""
    eventlet = sys.modules.get("eventlet.patcher")
    gevent = sys.modules.get("gevent.monkey")
    return bool(
        (eventlet is not None and eventlet.is_monkey_patched("thread"))
        or (gevent is not None and gevent.is_module_patched("threading"))
    )


def start_thread(function: Callable[[], None]) -> None:
    """Run `function` in a daemon thread of the operating system. Raises RuntimeError if there can be none."""
    _original("_thread", "start_new_thread")(function, ())


def lock() -> Any:
    """Return a new lock that stops the thread, not the greenlet."""
    return _original("_thread", "allocate_lock")()


def thread_id() -> int:
    """Return the operating system's thread as Python numbers it."""
    return int(_original("_thread", "get_ident")())


def identity(descriptor: int) -> tuple[int, int] | None:
    """Return what tells a descriptor's file from all others; None: it is closed.

    An application may close what is not its own (daemons close all they find), and open a file of its
    own that gets the same number: that must not be read, written or closed for ours.
    """
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def poll_type() -> Any:
    """Return what makes a new poll object when it is called."""
    return _original("select", "poll")

"""Threads, sockets and locks of the operating system, also where eventlet or gevent have replaced them.

The reporter must go on while a greenlet has the CPU, so nothing that it waits on may belong to greenlets. The
C types under `socket` and the clock are never replaced; the rest is fetched from what the monkey patch has
put aside.

Imports and forks: a fork while another thread imports a module leaves a child that can never import it. So
nothing is imported in the reporter's thread.
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

# getaddrinfo looks up this codec. Imported by the reporter's thread, and with a fork in the middle of that,
# it would leave a child in which nobody, the application included, can resolve a name.
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
    """Run `function` in a daemon thread of the operating system. Raises RuntimeError where it cannot."""
    _original("_thread", "start_new_thread")(function, ())


def lock() -> Any:
    """Return a new lock that blocks the thread, not the greenlet."""
    return _original("_thread", "allocate_lock")()


def thread_id() -> int:
    """Return Python's ident of the operating system's thread."""
    return int(_original("_thread", "get_ident")())


def identity(descriptor: int) -> tuple[int, int] | None:
    """Return device and inode of a descriptor's file. None: it is closed.

    An application may close descriptors that are not its own (daemons close all they find), and open a file
    of its own that gets the same number: that must not be read, written or closed in place of ours.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def poll_type() -> Any:
    """Return the function that makes a new poll object."""
    return _original("select", "poll")

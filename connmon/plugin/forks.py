"""Fork detection, and from when on this process may have threads.

Rules, each with its reason:

1. Python calls hooks for its own forks. uWSGI forks in C: Python's hooks run only if uWSGI is asked for that
   (py-call-osafterfork, py-call-uwsgi-fork-hooks); its own post_fork_hook always runs.
2. That hook is one attribute, which `uwsgidecorators` overwrites without calling its predecessor. So within
   uWSGI, and only there, the pool's listeners check a page of memory that the kernel blanks in a child (20 to
   40 ns; asking for the pid takes 140 to 240).
3. No thread before uWSGI has forked. A worker that is forked while another thread has the interpreter's lock
   never gets it, and hangs at its start (seen at the first try with uWSGI 2.0.31, two workers and an
   application that used its pool while it was loaded).
4. Nothing in here raises.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from connmon.interrupts import interrupted

log = logging.getLogger("connmon")

#: Linux's MADV_WIPEONFORK, which Python's mmap does not name before 3.13.
WIPE_ON_FORK = 18

_forked: Callable[[], None] | None = None
_pid = os.getpid()
_page: Any = None
_warned = False


def register(
    forked: Callable[[], None], may_have_threads: Callable[[], None], advice: int = WIPE_ON_FORK
) -> None:
    """Have `forked` called in every child, and `may_have_threads` once this process may have threads.

    `advice` is what madvise is asked for to have a page blanked in children.
    """
    global _forked, _page
    _forked = forked
    os.register_at_fork(after_in_child=_in_child)
    uwsgi = _uwsgi()
    if uwsgi is None:
        return
    _page = _page_blanked_by_fork(advice)
    previous = getattr(uwsgi, "post_fork_hook", None)

    def post_fork_hook() -> None:
        _check_pid()
        may_have_threads()
        if previous is not None:
            previous()

    uwsgi.post_fork_hook = post_fork_hook
    if not getattr(uwsgi, "has_threads", 1):
        log.warning(
            "connmon: uWSGI runs without enable-threads, so its processes are reported only while they "
            "serve requests, and shown as lost in between; set uWSGI's option enable-threads"
        )


def threads_allowed() -> bool:
    """Return whether no more forks come that a thread would break. Logs one warning where they may come."""
    global _warned
    uwsgi = _uwsgi()
    if uwsgi is None:
        return True
    try:
        if uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler():
            return True
        if uwsgi.masterpid() and not _warned:  # without a master this will be a worker
            _warned = True
            log.warning(
                "connmon: the application uses a connection pool in uWSGI's master, which is not reported "
                "(a thread there could hang its workers); they are. With uWSGI's option lazy-apps the "
                "application is loaded in the workers alone"
            )
        return False
    except Exception:
        return True  # not uWSGI's own module, but another one of that name


def fork_check() -> Callable[[], None] | None:
    """Return a function that finds out about a fork within uWSGI. None: Python calls hooks for all forks."""
    page = _page
    if page is None:
        return None

    def check() -> None:
        if not page[0]:
            _check_pid()

    return check


def after_fork_check(listener: Callable[..., None]) -> Callable[..., None]:
    """Return the listener; within uWSGI it first checks for a fork."""
    check = fork_check()
    if check is None:
        return listener

    def check_and_listen(*arguments: Any) -> None:
        check()
        listener(*arguments)

    return check_and_listen


def _uwsgi() -> Any:
    """Return uWSGI's module, which exists only inside of it, or None."""
    module = sys.modules.get("uwsgi")
    return module if hasattr(module, "worker_id") else None


def _check_pid() -> None:
    """Find out whether this process is a child for which no hook has run."""
    if _pid != os.getpid():
        _in_child()
    elif _page is not None:
        _page[0] = 1


def _in_child() -> None:
    global _pid
    _pid = os.getpid()
    if _page is not None:
        _page[0] = 1
    try:
        if _forked is not None:
            _forked()
    except Exception as error:
        if interrupted(error):
            raise
        log.warning("connmon: this process, a child, cannot be reported: %r", error)


class _AlwaysBlank:
    """Stands for the page where the kernel cannot blank one: each check asks for the pid."""

    def __getitem__(self, index: int) -> int:
        return 0

    def __setitem__(self, index: int, value: int) -> None:
        pass


def _page_blanked_by_fork(advice: int) -> Any:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(advice)
        page[0] = 1
        return page
    except Exception:
        return _AlwaysBlank()

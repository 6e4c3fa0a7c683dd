"""When this process turns out to be another one than before, and when it may have a thread.

Rules, each paid for:

1. Python tells of its own forks. uWSGI forks in C: Python's hooks run only if uWSGI is asked
   for that (py-call-osafterfork, py-call-uwsgi-fork-hooks); its own post_fork_hook always does.
2. That hook has one place for all, which `uwsgidecorators` takes without asking who was there.
   So within uWSGI, and only there, the pool's listeners look at a page of memory that the
   kernel blanks in a child (20 to 40 ns; asking for the pid takes 140 to 240).
3. No thread before uWSGI has forked. A worker that is forked while another thread has the
   interpreter's lock never gets it: it hangs at its start (two workers, application used its
   pool while it was loaded: seen at the first try, uWSGI 2.0.31).
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
_WIPE_ON_FORK = 18

_forked: Callable[[], None] | None = None
_settled: Callable[[], None] | None = None
_pid = os.getpid()
_page: Any = None
_said = False


def tell(forked: Callable[[], None], settled: Callable[[], None]) -> None:
    """Have `forked` called in every child, and `settled` when this process may have threads from now on."""
    global _forked, _settled, _page
    _forked, _settled = forked, settled
    os.register_at_fork(after_in_child=_child)
    uwsgi = _uwsgi()
    if uwsgi is None:
        return
    _page = _blanked_by_fork()
    previous = getattr(uwsgi, "post_fork_hook", None)

    def post_fork_hook() -> None:
        _look()
        settled()
        if previous is not None:
            previous()

    uwsgi.post_fork_hook = post_fork_hook
    if not getattr(uwsgi, "has_threads", 1):
        log.warning(
            "connmon: uWSGI runs without enable-threads, so its processes are reported only while they "
            "serve requests, and shown as lost in between; set uWSGI's option enable-threads"
        )


def threads_allowed() -> bool:
    """Whether no fork is to be feared any more that a thread would make go wrong. Says once if not."""
    global _said
    uwsgi = _uwsgi()
    if uwsgi is None:
        return True
    try:
        if uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler():
            return True
        if uwsgi.masterpid() and not _said:  # without a master this will be a worker
            _said = True
            log.warning(
                "connmon: the application uses a connection pool in uWSGI's master, which is not reported "
                "(a thread there could hang its workers); they are. With uWSGI's option lazy-apps the "
                "application is loaded in the workers alone"
            )
        return False
    except Exception:
        return True  # not uWSGI's own module, but what somebody calls the same


def look_for_one() -> Callable[[], None] | None:
    """Return what finds out, within uWSGI, whether there was a fork; None: Python tells of all forks."""
    page = _page
    if page is None:
        return None

    def look() -> None:
        if not page[0]:
            _look()

    return look


def guarded(listener: Callable[..., None]) -> Callable[..., None]:
    """Return the listener, within uWSGI so that it first looks whether there was a fork."""
    look = look_for_one()
    if look is None:
        return listener

    def after_a_look(*arguments: Any) -> None:
        look()
        listener(*arguments)

    return after_a_look


def _uwsgi() -> Any:
    """Return the module that there is within uWSGI alone, or None."""
    module = sys.modules.get("uwsgi")
    return module if hasattr(module, "worker_id") else None


def _look() -> None:
    """Find out whether this is a child of the process that it was, where nobody has told."""
    if _pid != os.getpid():
        _child()
    elif _page is not None:
        _page[0] = 1


def _child() -> None:
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


class _Unmarked:
    """What stands for the page where the kernel has none of the kind: it is always looked into."""

    def __getitem__(self, place: int) -> int:
        return 0

    def __setitem__(self, place: int, value: int) -> None:
        pass


def _blanked_by_fork() -> Any:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
        page[0] = 1
        return page
    except Exception:
        return _Unmarked()

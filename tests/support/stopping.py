"""Stop a process by SIGSTOP, so that it certainly does nothing more.

The signal takes effect later than it is sent: on a busy machine a thread of a server can still answer a
query or two. So `stop` returns when every thread has stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.waiting import wait_for


def stop(pid: int) -> None:
    """Send SIGSTOP and return when every thread of the process has stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: _has_stopped(pid), what=f"process {pid} to stop")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop the process within the block, and resume it after."""
    stop(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _has_stopped(pid: int) -> bool:
    try:
        threads = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended
        return False
    if not threads:  # the system has no such files
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    # The state follows the program's name, which is in brackets and may contain brackets.
    return all(text.rpartition(")")[2].split()[0] == "T" for text in threads)

"""A process that forks in C, as uWSGI does, behind Python's back: what test_forks runs.

    python -m tests.support.raw_fork DIRECTORY [no-page]

There is a module `uwsgi` in here that says what uWSGI's own says to a process that is not a worker
yet, and then to a worker. Prints what happened, a line of JSON for each step.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import types
from typing import Any

LIBC = ctypes.PyDLL(None)


def uwsgi(**changes: Any) -> Any:
    module = types.ModuleType("uwsgi")
    module.__dict__.update(
        worker_id=lambda: 0,
        mule_id=lambda: 0,
        i_am_the_spooler=lambda: None,
        masterpid=os.getpid,
        has_threads=0,
        **changes,
    )
    sys.modules["uwsgi"] = module
    return module


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main(page: bool) -> None:
    earlier: list[int] = []
    module = uwsgi(post_fork_hook=lambda: earlier.append(os.getpid()))
    from connmon.plugin import forks

    advice = forks.WIPE_ON_FORK if page else -1  # -1: as on a kernel that cannot blank a page
    called: list[str] = []
    forks.register(lambda: called.append("forked"), lambda: called.append("may have threads"), advice)
    seen: list[int] = []
    listener = forks.after_fork_check(seen.append)
    listener(1)
    say(step="before", called=called, seen=seen, allowed=[forks.threads_allowed(), forks.threads_allowed()])

    def child(step: str, *does: Any) -> None:
        pid = LIBC.fork()
        if pid == 0:
            module.worker_id = lambda: 1
            for do in does:
                do()
            say(step=step, called=called, seen=seen, allowed=forks.threads_allowed(), earlier=len(earlier))
            os._exit(0)
        os.waitpid(pid, 0)

    child("listener", lambda: listener(2), lambda: listener(3))
    child("hook", lambda: module.post_fork_hook(), lambda: listener(2))

    def by_python() -> None:
        pid = os.fork()
        if pid == 0:
            listener(4)
            say(step="grandchild", called=called, seen=seen)
            os._exit(0)
        os.waitpid(pid, 0)

    child("parent", lambda: listener(2), by_python)
    say(step="after", called=called, seen=seen)


if __name__ == "__main__":
    main(page=len(sys.argv) < 2)

"""A process that forks in C, as uWSGI does, without Python's at-fork hooks: the program that test_forks runs.

    python -m tests.support.raw_fork DIRECTORY [no-page]

A fake module `uwsgi` answers as uWSGI's own does in a process that is not a worker yet, and then in a
worker. The program prints a line of JSON for each step.
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


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main(page: bool) -> None:
    earlier: list[int] = []
    module = uwsgi(post_fork_hook=lambda: earlier.append(os.getpid()))
    from connmon.plugin import forks

    advice = forks.WIPE_ON_FORK if page else -1  # -1: as on a kernel that cannot blank a page
    calls: list[str] = []
    forks.register(lambda: calls.append("forked"), lambda: calls.append("settled"), advice)
    seen: list[int] = []
    listener = forks.after_fork_check(seen.append)
    listener(1)
    say(step="before", calls=calls, seen=seen, allowed=[forks.threads_allowed(), forks.threads_allowed()])

    def child(step: str, *does: Any) -> None:
        pid = LIBC.fork()
        if pid == 0:
            module.worker_id = lambda: 1
            for do in does:
                do()
            say(step=step, calls=calls, seen=seen, allowed=forks.threads_allowed(), earlier=len(earlier))
            os._exit(0)
        os.waitpid(pid, 0)

    child("listener", lambda: listener(2), lambda: listener(3))
    child("hook", lambda: module.post_fork_hook(), lambda: listener(2))

    def by_python() -> None:
        pid = os.fork()
        if pid == 0:
            listener(4)
            say(step="grandchild", calls=calls, seen=seen)
            os._exit(0)
        os.waitpid(pid, 0)

    child("parent", lambda: listener(2), by_python)
    say(step="after", calls=calls, seen=seen)


if __name__ == "__main__":
    main(page=len(sys.argv) < 2)

"""Become another program that dies with its parent: python launch.py SIGNAL USER COMMAND...

The kernel sends SIGNAL to the program when the parent ends, however that ends. USER is the user to
become first ("": no change). This is a separate program, since Popen's preexec_fn is not safe in a
process with threads. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(death: str, user: str, *command: str) -> None:
    parent = os.getppid()
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    # This comes after setuid, which clears it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.Signals[death]))
    if os.getppid() != parent:  # the parent ended before the kernel knew
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])

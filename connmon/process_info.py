"""What the operating system knows of a process. The only import of psutil.

Nothing in here raises: what cannot be read is None.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import psutil

from connmon.protocol.reports import Process, Usage

T = TypeVar("T")

#: By how much two clocks may differ on when a process has started.
SAME_START_SECONDS = 3.0

_COMMAND_CHARACTERS = 2048
_SECRET = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|api_?key|(?<![a-z])(?:pass|key)(?![a-z]))"
# Each pattern starts with something rare, and its repetitions are bounded, as is the word that it searches:
# an argument can have 100,000 characters, and a search blocks all threads. Where a password may have
# characters that a URL should not have, too much is masked.
_WORD_CHARACTERS = 4 * _COMMAND_CHARACTERS
_IN_URL = re.compile(r"(://[^:/?#@\s]{0,256}):\S*@")
_QUERY = re.compile(r"(://[^\s?]{0,2048})\?\S*")
_ASSIGNED = re.compile(rf"(?is)({_SECRET}[\w.-]{{0,64}}[\"']?\s{{0,8}}[=:]).+")
_OPTION = re.compile(rf"(?i)-(?=.{{0,256}}\Z)[\w.-]*{_SECRET}[\w.-]*\Z")


def host() -> str:
    """Return this host's name."""
    return printable(socket.gethostname())[:256] or "localhost"


def addresses() -> list[str]:
    """Return the IP addresses of this host's interfaces."""
    return [
        address.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family in (socket.AF_INET, socket.AF_INET6)
    ]


def printable(text: str) -> str:
    """Return the text as the wire accepts it: what is not UTF-8 becomes "?"."""
    return text.encode("utf-8", "replace").decode()


def masked(command: Sequence[str]) -> str:
    """Return a command line in which what looks like a secret is replaced by ***.

    That is: passwords and query options of URLs, values of options and variables whose name says password,
    secret, token or key, and the argument after such an option.
    """
    words: list[str] = []
    hide = False
    for word in command[:_COMMAND_CHARACTERS]:  # each takes at least one character: the space after it
        if hide and not word.startswith("-"):
            words.append("***")
            hide = False
            continue
        word = word[:_WORD_CHARACTERS]
        hide = bool(_OPTION.match(word))
        word = _IN_URL.sub(r"\1:***@", word)
        word = _QUERY.sub(r"\1?***", word)
        words.append(_ASSIGNED.sub(r"\1***", word))
    return printable(" ".join(words))[:_COMMAND_CHARACTERS]


_PROC = "/proc/self"
# Docker, Podman, containerd and CRI-O: 64 hexadecimal digits in a control group's name, or in the path of a
# file that they mount over one of /etc. LXC: the container's name.
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_LXC = re.compile(r"/lxc(?:\.payload[./]|/)([^/\s]+)")
_MOUNTED = re.compile(r" /etc/(?:hostname|hosts|resolv\.conf) ")
_PROC_BYTES = 1 << 20


def container(proc: str = _PROC) -> str | None:
    """Return the id of the container that this process runs in, None where it sees none.

    Host names and pids repeat in containers; this tells them apart. `proc` is the kernel's directory for the
    process.
    """
    groups = _read(proc, "cgroup")
    match = _CONTAINER.search(groups)
    if match is None:  # in a namespace of control groups a container does not see its own name
        mounts = [line for line in _read(proc, "mountinfo").splitlines() if _MOUNTED.search(line)]
        match = _CONTAINER.search("\n".join(mounts))
    if match is not None:
        return match[0]
    lxc = _LXC.search(groups)
    return None if lxc is None else printable(lxc[1])[:256]


def _read(proc: str, name: str) -> str:
    try:
        with open(f"{proc}/{name}", "rb") as file:
            return file.read(_PROC_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def identity(host: str, program: str, proc: str = _PROC) -> Process:
    """Return what a report says of this process. `host` and `program` are its names."""
    process = _self()
    user = command = created = None
    if process is not None:
        user, command, created = _try(process.username), _try(process.cmdline), _try(process.create_time)
    return Process(
        host=host,
        program=program,
        pid=os.getpid(),
        ppid=os.getppid(),
        user=None if user is None else printable(user)[:256],
        command=None if command is None else masked(command),
        started=None if created is None else max(0.0, time.time() - created),
        container=container(proc),
    )


def command(pid: int) -> tuple[str, ...]:
    """Return the unmasked command line of a process of this host; empty where it cannot be read."""
    return tuple(_try(lambda: psutil.Process(pid).cmdline()) or ())


def usage() -> Usage:
    """Return what this process takes of its host: CPU since the last call, memory, threads, descriptors."""
    global _measured
    process = _self()
    if process is None:
        return Usage()
    first, _measured = _measured is not process, process
    percent = _try(process.cpu_percent)
    memory = _try(process.memory_info)
    return Usage(
        cpu_percent=None if first or percent is None else max(0.0, percent),
        rss_bytes=None if memory is None else memory.rss,
        threads=_try(process.num_threads),
        open_files=_try(process.num_fds),
    )


class Live(NamedTuple):
    """What a process takes of its host now, as seen by another process."""

    cpu_percent: float | None
    rss_bytes: int | None
    threads: int | None
    open_files: int | None
    """None where it is another user's process."""
    sockets: int | None
    """TCP connections to the given addresses."""


class Watched:
    """A process on this host, measured repeatedly from outside."""

    def __init__(self, pid: int, started: float | None) -> None:
        """`started`: seconds since its start, to tell it from another process with that pid."""
        self._process = _try(lambda: psutil.Process(pid))
        created = None if self._process is None else _try(self._process.create_time)
        if started is None or created is None or abs(time.time() - created - started) > SAME_START_SECONDS:
            self._process = None
        self._first = True

    def look(self, servers: Collection[tuple[str, int]]) -> Live | None:
        """Return what it takes; None where it is gone. `servers`: whose connections are counted."""
        process = self._process
        if process is None or not _try(process.is_running):
            return None
        percent = _try(process.cpu_percent)  # since the last look
        memory = _try(process.memory_info)
        first, self._first = self._first, False
        sockets = _try(lambda: _remote_ends(process))
        return Live(
            cpu_percent=None if first else percent,
            rss_bytes=None if memory is None else memory.rss,
            threads=_try(process.num_threads),
            open_files=_try(process.num_fds),
            sockets=None if sockets is None else sum(end in servers for end in sockets),
        )


def _remote_ends(process: psutil.Process) -> list[tuple[str, int]]:
    """Return the far address and port of each TCP connection of a process."""
    ask: Callable[..., list[Any]] = getattr(process, "net_connections", None) or process.connections
    ends = [connection.raddr for connection in ask(kind="tcp") if connection.raddr]
    return [(end.ip.removeprefix("::ffff:"), end.port) for end in ends]


_cached: psutil.Process | None = None
_measured: psutil.Process | None = None
"""The process whose CPU was measured before: psutil's first answer is always 0."""


def _self() -> psutil.Process | None:
    """Return this process, after a fork the child: one object for its life, as cpu_percent needs."""
    global _cached
    if _cached is None or _cached.pid != os.getpid():
        _cached = _try(psutil.Process)
    return _cached


def _try(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except Exception:  # psutil raises many things where /proc is not what it expects
        return None

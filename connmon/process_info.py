"""What the operating system knows of a process. The only import of psutil.

Nothing in here raises: what cannot be had is None.
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

#: Seconds by which two clocks may differ on when a process has started.
SAME_START = 3.0

_COMMAND_LIMIT = 2048
_SECRET = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|api_?key|(?<![a-z])(?:pass|key)(?![a-z]))"
# Each starts with something that is rarely there, and what it repeats is bounded, as is the word
# it looks at: an argument can have 100,000 characters, and a search holds back all threads.
# Where a password may have characters in it that should not be there, too much is masked.
_WORD_LIMIT = 4 * _COMMAND_LIMIT
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
    """Return the text as the wire can take it: what was no UTF-8 becomes "?"."""
    return text.encode("utf-8", "replace").decode()


def masked(command: Sequence[str]) -> str:
    """Return a command line with what looks like a secret in it replaced by ***.

    Passwords and query options of URLs, values of options and variables whose name says
    password, secret, token or key, and the argument after such an option.
    """
    words: list[str] = []
    hide = False
    for word in command[:_COMMAND_LIMIT]:  # each takes a character at least: the space after it
        if hide and not word.startswith("-"):
            words.append("***")
            hide = False
            continue
        word = word[:_WORD_LIMIT]
        hide = bool(_OPTION.match(word))
        word = _IN_URL.sub(r"\1:***@", word)
        word = _QUERY.sub(r"\1?***", word)
        words.append(_ASSIGNED.sub(r"\1***", word))
    return printable(" ".join(words))[:_COMMAND_LIMIT]


_PROC = "/proc/self"
# Docker, Podman, containerd and CRI-O: 64 hexadecimal digits, as part of a control group's name, or of
# the path of a file that they mount over one of /etc; LXC: the name that the container has.
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_LXC = re.compile(r"/lxc(?:\.payload[./]|/)([^/\s]+)")
_MOUNTED = re.compile(r" /etc/(?:hostname|hosts|resolv\.conf) ")
_PROC_LIMIT = 1 << 20


def container() -> str | None:
    """Return the id of the container that this process runs in, None where it sees none.

    Hosts' names and pids repeat in containers; this tells one from the other.
    """
    groups = _read("cgroup")
    found = _CONTAINER.search(groups)
    if found is None:  # in a namespace of control groups a container does not see its own name
        mounts = [line for line in _read("mountinfo").splitlines() if _MOUNTED.search(line)]
        found = _CONTAINER.search("\n".join(mounts))
    if found is not None:
        return found[0]
    lxc = _LXC.search(groups)
    return None if lxc is None else printable(lxc[1])[:256]


def _read(name: str) -> str:
    try:
        with open(f"{_PROC}/{name}", "rb") as file:
            return file.read(_PROC_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""


def identity(host: str, program: str) -> Process:
    """Return who this process is."""
    process = _self()
    pid = os.getpid()
    within = container()
    if process is None:
        return Process(host, program, pid, os.getppid(), None, None, None, within)
    user = _try(process.username)
    command = _try(process.cmdline)
    created = _try(process.create_time)
    return Process(
        host,
        program,
        pid,
        os.getppid(),
        None if user is None else printable(user)[:256],
        None if command is None else masked(command),
        None if created is None else max(0.0, time.time() - created),
        within,
    )


def command(pid: int) -> tuple[str, ...]:
    """Return the command line of a process of this host, as it is; empty where it cannot be had."""
    return tuple(_try(lambda: psutil.Process(pid).cmdline()) or ())


def usage() -> Usage:
    """Return what this process takes: CPU since the last call, memory, threads, descriptors."""
    global _measured
    process = _self()
    if process is None:
        return Usage()
    first, _measured = _measured is not process, process
    percent = _try(process.cpu_percent)
    memory = _try(process.memory_info)
    return Usage(
        None if first or percent is None else max(0.0, percent),
        None if memory is None else memory.rss,
        _try(process.num_threads),
        _try(process.num_fds),
    )


class Live(NamedTuple):
    """What a process takes now, as its host's system tells another process."""

    cpu_percent: float | None
    rss_bytes: int | None
    threads: int | None
    open_files: int | None
    """None where it is somebody else's process."""
    sockets: int | None
    """TCP connections to the addresses asked about."""


class Watched:
    """A process on this host, looked at from outside, again and again."""

    def __init__(self, pid: int, started: float | None) -> None:
        """`started`: seconds since it did; another process of that pid (in a container, say) is not it."""
        self._process = _try(lambda: psutil.Process(pid))
        created = None if self._process is None else _try(self._process.create_time)
        if started is None or created is None or abs(time.time() - created - started) > SAME_START:
            self._process = None
        self._first = True

    def look(self, servers: Collection[tuple[str, int]]) -> Live | None:
        """Return what it takes; None where it is not there. `servers`: addresses and ports."""
        process = self._process
        if process is None or not _try(process.is_running):
            return None
        percent = _try(process.cpu_percent)  # since the last look
        memory = _try(process.memory_info)
        first, self._first = self._first, False
        sockets = _try(lambda: _remote_ends(process))
        return Live(
            None if first else percent,
            None if memory is None else memory.rss,
            _try(process.num_threads),
            _try(process.num_fds),
            None if sockets is None else sum(end in servers for end in sockets),
        )


def _remote_ends(process: psutil.Process) -> list[tuple[str, int]]:
    """Return the far address and port of each TCP connection of a process."""
    ask: Callable[..., list[Any]] = getattr(process, "net_connections", None) or process.connections
    return [
        (each.raddr.ip.removeprefix("::ffff:"), each.raddr.port) for each in ask(kind="tcp") if each.raddr
    ]


_cached: psutil.Process | None = None
_measured: psutil.Process | None = None
"""Whose CPU was asked for before: the first answer of psutil is always 0."""


def _self() -> psutil.Process | None:
    """Return this process, and after a fork the child: one object for its life, as cpu_percent needs."""
    global _cached
    if _cached is None or _cached.pid != os.getpid():
        _cached = _try(psutil.Process)
    return _cached


def _try(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except Exception:  # psutil raises what it likes where /proc is not what it expects
        return None

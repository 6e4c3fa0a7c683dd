"""A network namespace for each node and one for the applications, which a test can cut off.

Rules kept here:

- Every address is inside a namespace made here: one per node, one for the applications, and one with the
  bridge that joins them. The machine's own network is not touched.
- The namespaces are removed in any case. If they cannot be made, the test is skipped.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tests.support.requirements import lacking, needs_root, program

T = TypeVar("T")

APPLICATIONS = "applications"
_CLONE_NEWNET = 0x40000000


class Network:
    """Namespaces for `members`; a cut is undone by `heal`."""

    def __init__(self, members: Sequence[str]) -> None:
        needs_root("make network namespaces")
        self._ip = program("ip")
        self._iptables = program("iptables")
        self.members = tuple(members)
        self._bridge = f"connmon{os.getpid()}-bridge"
        self._made: list[str] = []

    def address(self, member: str) -> str:
        return f"10.177.0.{self.members.index(member) + 1}"

    def prefix(self, member: str) -> tuple[str, ...]:
        """Return the arguments before a command that run it in the member's namespace."""
        return self._ip, "netns", "exec", self._name(member)

    def make(self) -> None:
        """Make the namespaces. Raises CalledProcessError if the system does not allow it."""
        for name in (self._bridge, *map(self._name, self.members)):
            self._run("netns", "add", name)
            self._made.append(name)
            self._run("-n", name, "link", "set", "lo", "up")
        self._run("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        self._run("-n", self._bridge, "link", "set", "br0", "up")
        for member in self.members:
            name, port = self._name(member), self._port(member)
            self._run(
                "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._bridge
            )
            self._run("-n", name, "address", "add", f"{self.address(member)}/24", "dev", "eth0")
            self._run("-n", name, "link", "set", "eth0", "up")
            self._run("-n", self._bridge, "link", "set", port, "master", "br0", "up")
            self._filter(member, "-L")

    def remove(self) -> None:
        for name in self._made:
            self._run("netns", "delete", name)
        self._made.clear()

    def cut(self, member: str) -> None:
        """Cut the member off from all others."""
        self._run("-n", self._bridge, "link", "set", self._port(member), "down")

    def part(self, member: str, others: Sequence[str]) -> None:
        """Cut the member off from these others, in both directions."""
        self.deafen(member, others)
        for other in others:
            self._filter(member, "-A", "OUTPUT", "-d", self.address(other), "-j", "DROP")

    def deafen(self, member: str, others: Sequence[str]) -> None:
        """Drop what these others send to the member; what it sends to them arrives."""
        for other in others:
            self._filter(member, "-A", "INPUT", "-s", self.address(other), "-j", "DROP")

    def refuse(self, member: str, others: Sequence[str]) -> None:
        """Reset the member's connections to these others, and refuse new ones."""
        for other in others:
            reset = ("-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
            self._filter(member, "-A", "OUTPUT", "-d", self.address(other), *reset)

    def heal(self) -> None:
        for member in self.members:
            self._filter(member, "-F")
            self._run("-n", self._bridge, "link", "set", self._port(member), "up")

    def namespace(self, member: str) -> str:
        """Return the path of the member's namespace."""
        return f"/var/run/netns/{self._name(member)}"

    def _name(self, member: str) -> str:
        return f"connmon{os.getpid()}-{member}"

    def _port(self, member: str) -> str:
        return f"port{self.members.index(member) + 1}"

    def _filter(self, member: str, *arguments: str) -> None:
        self._do(*self.prefix(member), self._iptables, "-w", "5", *arguments)

    def _run(self, *arguments: str) -> None:
        self._do(self._ip, *arguments)

    def _do(self, *arguments: str) -> None:
        subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=10)


def inside(namespace: str, function: Callable[[], T]) -> T:
    """Call the function in the network of `namespace` ("": this process's), and return its result.

    It runs on a thread of its own; the rest of this process stays where it is.
    """
    if not namespace:
        return function()

    def work() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(namespace) as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@contextlib.contextmanager
def network(members: Sequence[str]) -> Iterator[Network]:
    """A network that is removed after the block; the test is skipped if it cannot be made."""
    made = Network(members)
    try:
        try:
            made.make()
        except subprocess.CalledProcessError as error:
            reason = " ".join(error.stderr.decode(errors="replace").split())
            lacking("network namespaces", f"run where root may make them, not here ({reason})")
        yield made
    finally:
        made.remove()

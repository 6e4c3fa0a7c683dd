"""Three replicas in this process with real peer links on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from connmon.cluster.raft.replica import Replica
from connmon.cluster.raft.transport import Peers, PeerSettings
from connmon.cluster.server import Server
from connmon.config import Address, Node, Service
from connmon.protocol.credentials import OPEN, Credentials
from tests.support.cluster_fakes import FakeState

NAMES = ("node1", "node2", "node3")


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def service(ports: list[int]) -> Service:
    nodes = (
        Node(name, Address("127.0.0.1", port), Address("127.0.0.1", port))
        for name, port in zip(NAMES, ports, strict=True)
    )
    return Service("default", tuple(nodes))


class Trio:
    """The servers node1, node2 and node3; only the test proposes batches.

    As `async with`: inside, all run and have a leader.
    """

    def __init__(
        self,
        credentials: Credentials = OPEN,
        state: Callable[[], Any] = FakeState,
        peer_settings: PeerSettings | None = None,
    ) -> None:
        self.service = service(free_ports(len(NAMES)))
        self.credentials = credentials
        self.state = state
        self.peer_settings = peer_settings
        self.servers: dict[str, Server] = {}
        self.replicas: dict[str, Replica] = {}

    def make(self, name: str, config: Service | None = None, **options: Any) -> tuple[Server, Replica]:
        """Return a server that is not running."""
        used = config or self.service
        node = used.node(name)
        peers = Peers(used, node, credentials=self.credentials, settings=self.peer_settings)
        replica = Replica("default", name, self.state(), peers=peers, **options)
        return Server(used, node, replica, credentials=self.credentials), replica

    def start(self, name: str, **options: Any) -> asyncio.Task[None]:
        server, replica = self.make(name, **options)
        self.servers[name], self.replicas[name] = server, replica

        async def run() -> None:
            await server.start()
            server._tasks[0].cancel()  # the leader's own batches, which advance the clock

        return asyncio.get_running_loop().create_task(run())

    def stop(self, name: str) -> None:
        """End the node at once, as a crash does."""
        server, replica = self.servers.pop(name), self.replicas.pop(name)
        assert server._listener is not None
        server._listener.close()
        for task in server._tasks:
            task.cancel()
        server.abort_clients()
        peers = replica.peers
        assert peers is not None
        for peer_link in [*peers._links.values(), *peers._opening]:
            peer_link.abort()
        replica.close()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; the test has a time limit."""
        while not condition():
            await asyncio.sleep(0.01)

    def states(self) -> list[Any]:
        return [self.replicas[name].state for name in sorted(self.replicas)]

    def leaders(self) -> set[str | None]:
        return {replica.status.leader for replica in self.replicas.values()}

    async def __aenter__(self) -> Trio:
        await asyncio.gather(*(self.start(name) for name in NAMES))
        await self.until(lambda: len(self.leaders()) == 1 and None not in self.leaders())
        return self

    async def __aexit__(self, *raised: object) -> None:
        for name in list(self.servers):
            self.stop(name)
        await asyncio.sleep(0)

"""Three real connmonds, the applications that report to them, and the comparison of what all three show.

Rules kept here:

- The applications keep their own books (tests/support/application.py) and are compared with
  `connmon snapshot --node` of each node by tests/support/site.py, to the unit and in every grouping.
- On loopback their databases are MariaDB, PostgreSQL and SQLite. In network namespaces, which cannot reach
  servers on loopback, they are SQLite files.
- Nodes are on loopback, or each in its own network namespace (tests/support/namespaces.py).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from connmon.config import Address, Node
from connmon.protocol.values import GROUPINGS, Grouping
from connmon.reader.client import read_once
from tests.support.namespaces import APPLICATIONS, Network, inside
from tests.support.nodes import _ENVIRONMENT, RunningNode, command
from tests.support.servers import Server
from tests.support.site import Site, Spec
from tests.support.trio import NAMES, free_ports
from tests.support.waiting import wait_for

#: Seconds within which the group has to be well again: elections, catching up, a busy machine.
WELL = 20.0


def cluster_status(config: Path, prefix: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the document of `connmon cluster-status`, run under `prefix`."""
    done = subprocess.run(
        [*prefix, command("connmon"), "cluster-status", "--config", str(config), "--format", "json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=_ENVIRONMENT,
        timeout=30,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


class FleetNode(RunningNode):
    """One of several nodes of one config file."""

    def __init__(
        self, name: str, address: Address, config: Path, prefix: Sequence[str], namespace: str
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.service = "default"
        self.host = address.host
        self.port = address.port
        self.config = config
        self.prefix = tuple(prefix)
        self.which = ("--node", name)
        self._log = config.parent / f"connmond-{name}.log"
        self._process = None
        self._before = 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def rows(self, by: Grouping) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._document(by)["rows"]
        return rows

    def snapshots(self, groupings: Sequence[Grouping] = GROUPINGS) -> dict[Grouping, dict[str, Any]]:
        """Return a snapshot for each grouping: by program from the real command, else from its library."""
        documents = super().snapshots(["program"])
        return documents | {by: self._document(by) for by in groupings if by != "program"}

    def _document(self, by: Grouping) -> dict[str, Any]:
        address = Address(self.host, self.port)
        node = Node(self.name, address, address)
        document = inside(self.namespace, lambda: read_once([node], self.service, by).document())
        assert document["node"] == self.name
        return document

    def says(self) -> tuple[dict[str, Any], str]:
        """Return the output of `connmon snapshot` on the node's own host, and its errors."""
        output, errors = self._snapshot("program").communicate(timeout=30)
        return json.loads(output), errors.decode()

    def status(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code and the document of `connmon cluster-status` on the node's own host."""
        return cluster_status(self.config, self.prefix)

    @property
    def running(self) -> bool:
        return self._process is not None


class NoServers:
    """A stand-in for a database server that no application of a fleet uses."""

    backend = ""

    def sessions(self) -> list[Any]:
        return []


class Fleet(Site):
    """node1, node2 and node3 of one service, and applications."""

    def __init__(
        self,
        directory: Path,
        network: Network | None = None,
        mariadb: Server | None = None,
        postgresql: Server | None = None,
    ) -> None:
        self.directory = directory
        none: Any = NoServers()
        self.mariadb: Server = mariadb or none
        self.postgresql: Server = postgresql or none
        self.drivers = ("pysqlite",) if mariadb is None else ("pymysql", "psycopg2", "pysqlite")
        self.workers = []
        self.living = []
        self.ended = []
        prefixes: dict[str, tuple[str, ...]] = dict.fromkeys(NAMES, ())
        namespaces = dict.fromkeys(NAMES, "")
        if network is None:
            addresses = [Address("127.0.0.1", port) for port in free_ports(len(NAMES))]
        else:
            addresses = [Address(network.address(name), 5800) for name in NAMES]
            prefixes = {name: network.prefix(name) for name in NAMES}
            namespaces = {name: network.namespace(name) for name in NAMES}
            self.prefix = network.prefix(APPLICATIONS)
        self.config = directory / "connmon.cfg"
        lines = [
            f"    {name} hostname={address.host}:{address.port} bind={address.host}:{address.port}\n"
            for name, address in zip(NAMES, addresses, strict=True)
        ]
        self.config.write_text(f"[connmon_service_default]\nname: default\n\nnodes:\n{''.join(lines)}")
        self.nodes = [
            FleetNode(name, address, self.config, prefixes[name], namespaces[name])
            for name, address in zip(NAMES, addresses, strict=True)
        ]
        self.node = self.nodes[0]
        """Whom Site compares with: each in turn."""

    def where(self, number: int, program: str) -> tuple[str, dict[str, str]]:
        """Return how a worker knows the nodes, all of them: by the config file."""
        if number % 2:
            return f"connmon_program={program}&connmon_service=default", {"CONNMON_CONFIG": str(self.config)}
        return f"connmon_program={program}&connmon_config={self.config}", {}

    def engines(self, number: int, where: str) -> list[Spec]:
        size, overflow = ((8, 8), (3, 13), (16, 0))[number % 3]
        driver = self.drivers[number % len(self.drivers)]
        return [self.engine(driver, where, plugin=bool(number % 2), size=size, overflow=overflow)]

    def start_at(self, node: FleetNode, program: str) -> None:
        """Start a worker that knows this node only, and have it work."""
        where = f"connmon_program={program}&connmon_addr={node.address}"
        worker = self.worker(program, self.engines(len(self.workers), where), threads=2)
        worker.last = worker.answer()
        self.load([worker])

    # --- nodes

    def start_nodes(self) -> None:
        """Start the nodes that do not run, and return when the group is well."""
        begun = [node for node in self.nodes if not node.running]
        for node in begun:
            node.begin()
        for node in begun:
            node.wait_until_ready()
        self.until_well()

    def command_status(self) -> tuple[int, dict[str, Any]]:
        """Return exit code and document of `connmon cluster-status`, run where the applications run."""
        return cluster_status(self.config, self.prefix)

    def until_well(self) -> None:
        """Wait until `connmon cluster-status` exits with 0."""

        def well() -> bool:
            code, document = self.command_status()
            assert code == 0, document
            return True

        wait_for(well, WELL, "the group to be well")

    def leader(self) -> FleetNode:
        """Wait for a leader and return it."""

        def leading() -> FleetNode | None:
            name = self.command_status()[1]["leader"]
            return next((node for node in self.nodes if node.name == name), None)

        return wait_for(leading, WELL, "a leader") or self.nodes[0]

    def followers(self) -> list[FleetNode]:
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]

    def applications_of(self, node: FleetNode) -> int:
        """Return how many applications report to the node."""
        (row,) = [row for row in self.command_status()[1]["nodes"] if row["node"] == node.name]
        return int(row["processes"] or 0)

    # --- comparing

    def equal_everywhere(self) -> None:
        """Wait until every node shows exactly what the applications know."""
        for node in self.nodes:
            self.node = node
            self.equal()

    def remove(self) -> None:
        for worker in self.workers:
            worker.remove()
        for node in self.nodes:
            node.remove()

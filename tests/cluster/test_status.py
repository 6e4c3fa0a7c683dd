"""A node's status, its digests, and `connmon cluster-status` with three real nodes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.cluster.server import ServerSettings
from connmon.cluster.state.digest import REST_FACTOR, Digests
from connmon.cluster.state.machine import StateMachine
from connmon.protocol.queries import NodeStatus, Query, StatusQuery
from tests.cluster.test_server import Client, until, with_server
from tests.support.cluster_fakes import FakeState
from tests.support.nodes import command
from tests.support.trio import NAMES, Trio, free_ports
from tests.support.waiting import wait_for

# --- Digests ------------------------------------------------------------------------------


class Moving:
    """A state with a version only; its digest takes `cost` seconds."""

    epoch = "e"

    def __init__(self) -> None:
        self.version = 0
        self.now = 0.0
        self.cost = 0.0
        self.made: list[int] = []

    def digest(self) -> str:
        self.made.append(self.version)
        self.now += self.cost
        return f"digest {self.version}"


@given(st.lists(st.one_of(st.just(None), st.integers(0, 20)), max_size=60))
def test_a_digest_is_of_the_version_asked_for(steps: list[int | None]) -> None:
    """Each request is answered once, by the digest of its version or None; each digest is made once."""
    state, answers = Moving(), list[tuple[int, str | None, int]]()
    digests = Digests(lambda: state.now)
    asked = 0

    def teller(version: int) -> Callable[[str | None], None]:
        return lambda digest: answers.append((version, digest, state.version))

    for version in steps:
        if version is None:
            state.version += 1
            digests.moved(state)
        else:
            asked += 1
            digests.ask(state, version, teller(version))
    for version, digest, then in answers:
        assert digest == (f"digest {version}" if version == then else None)
        assert then >= version
    assert len(state.made) == len(set(state.made))
    state.version = 100
    digests.moved(state)
    assert len(answers) == asked


def test_a_costly_digest_is_rarely_made() -> None:
    """After a digest that took T seconds none is made for REST_FACTOR * T; the last one is given again."""
    state, answers = Moving(), list[str | None]()
    state.cost = 0.1
    digests = Digests(lambda: state.now)
    for _ in range(3):
        digests.ask(state, 0, answers.append)
    state.version = 1
    digests.ask(state, 1, answers.append)
    state.now += REST_FACTOR * 0.1 + 0.001
    digests.ask(state, 1, answers.append)
    assert answers == ["digest 0"] * 3 + [None, "digest 1"]


def test_a_request_that_was_given_up_is_not_answered() -> None:
    """A request that was given up leaves nothing behind."""
    state, answers = Moving(), list[str | None]()
    digests = Digests(lambda: state.now)
    digests.ask(state, 1, answers.append)
    digests.give_up(1, answers.append)
    digests.give_up(1, answers.append)
    state.version = 1
    digests.moved(state)
    assert (answers, state.made) == ([], [])


# --- One node -----------------------------------------------------------------------------


async def ask(client: Client, digest_at: int | None = None) -> NodeStatus:
    client.send(StatusQuery(digest_at))
    status = await client.next()
    assert isinstance(status, NodeStatus)
    return status


def test_a_node_says_how_it_is() -> None:
    """A status has role, term, processes and readers; asking for it does not count as a console."""

    async def body(server: Any, state: FakeState) -> None:
        application = await Client.connect(server)
        await application.report("i1")
        reader, console = await Client.connect(server, "reader"), await Client.connect(server, "reader")
        console.send(Query("process"))
        await console.next()
        status = await ask(reader)
        assert (status.service, status.node, status.role, status.leader) == (
            "default", "node1", "leader", "node1",
        )  # fmt: skip
        assert (status.quorum, status.processes, status.consoles, status.lag) == (True, 1, 1, 0)
        assert (status.linked, status.unlinked, status.digest) == ((), (), None)
        assert status.version == state.version
        assert status.applied > 0

    with_server(body)


@pytest.mark.slow
def test_a_digest_is_waited_for() -> None:
    """The digest is of the version asked for, also of a future one; one that does not come is None."""

    async def body(server: Any, state: FakeState) -> None:
        reader = await Client.connect(server, "reader")
        await until(lambda: state.version > 0)
        ahead = state.version + 1  # the leader's ticks move it on
        status = await ask(reader, ahead)
        assert status.digest == f"digest at {ahead}"
        assert (await ask(reader, 0)).digest is None
        assert (await ask(reader, ahead + 1000)).digest is None
        assert not server._digests._waiting
        # The node goes on with others meanwhile, and with this one afterwards.
        reader.send(StatusQuery(ahead + 1000))
        assert (await ask(await Client.connect(server, "reader"))).node == "node1"
        assert isinstance(await reader.next(), NodeStatus)
        reader.send(Query("process"))
        await reader.next()

    with_server(body, settings=ServerSettings(digest_wait_seconds=1.5))


def test_an_application_may_not_ask() -> None:
    """An application that asks for a status is refused."""

    async def body(server: Any, state: FakeState) -> None:
        application = await Client.connect(server)
        application.send(StatusQuery())
        (refusal,) = await application.rest()
        assert "cannot be read" in refusal.reason

    with_server(body)


def test_a_reader_that_leaves_is_not_waited_for() -> None:
    """A reader that leaves while it waits for a digest leaves nothing behind."""

    async def body(server: Any, state: FakeState) -> None:
        reader = await Client.connect(server, "reader")
        reader.send(StatusQuery(10**6))
        await until(lambda: bool(server._digests._waiting))
        reader.kill()
        await until(lambda: not server._digests._waiting)

    with_server(body)


# --- Three nodes --------------------------------------------------------------------------


def test_three_nodes_have_one_digest() -> None:
    """All nodes of a group have the same digest of one future version."""

    async def body() -> None:
        async with Trio(state=StateMachine) as trio:
            replicas = trio.replicas.values()
            clients = [await Client.connect(server, "reader") for server in trio.servers.values()]
            ahead = max(replica.state.version for replica in replicas) + 1
            asking = [asyncio.ensure_future(ask(client, ahead)) for client in clients]
            await trio.until(lambda: all(server._digests._waiting for server in trio.servers.values()))
            await trio.replicas["node2"].propose(_tick("node2"))
            statuses = await asyncio.gather(*asking)
            assert len({status.digest for status in statuses}) == 1
            assert statuses[0].digest is not None
            for status in statuses:
                assert set(status.linked) == set(NAMES) - {status.node}
                assert status.leader == trio.replicas["node1"].status.leader
            while Client.made:
                Client.made.pop().kill()

    _run(body)


def _tick(node: str) -> Any:
    from connmon.protocol.batch import Batch, Tick

    return Batch(node, "boot", 1, Tick(0.1, 15.0), (), ())


def _run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(body(), 30.0)

    asyncio.run(limited())


class Nodes:
    """Three connmond processes, and the real `connmon cluster-status`."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "connmon.cfg"
        lines = "".join(
            f"    {name} hostname=127.0.0.1:{port} bind=127.0.0.1\n"
            for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True)
        )
        self.config.write_text(f"[connmon_service_default]\nname: default\nnodes:\n{lines}")
        self._log = directory / "connmond.log"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with self._log.open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [command("connmond"), "--config", str(self.config), "--node", name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def connmon(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command("connmon"), *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def status(self) -> tuple[int, Any]:
        """Return exit code and document."""
        done = self.connmon("cluster-status", "--format", "json")
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    def until(self, code: int, health: str) -> Any:
        """Wait for this health; return the document."""

        def so() -> Any:
            got, document = self.status()
            differs = [node for node, word in trouble(document).items() if word == "differs"]
            if differs:
                pytest.fail(f"replicas differ: {differs} in {document}")
            assert (got, document["health"]) == (code, health), document
            return document

        return wait_for(so, 30, health)

    def until_compared(self) -> Any:
        """Wait for a healthy group whose digests are of one version and equal; return the document.

        On a busy machine a version may come too soon for one node, or too late: then that run of the command
        has compared nothing, and the next one may. Replicas that differ fail at once: it does not pass.
        """

        def so() -> Any:
            document = self.until(0, "healthy")
            digests = {(node["digest_version"], node["digest"]) for node in document["nodes"]}
            return document if len(digests) == 1 and None not in digests.pop() else None

        return wait_for(so, 30, "digests of one version")


@pytest.fixture(name="nodes")
def three_nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    try:
        for name in NAMES:
            nodes.start(name)
        yield nodes
    finally:
        nodes.close()


def trouble(document: Any) -> dict[str, str]:
    """Return the first word of each node's first problem."""
    return {node["node"]: node["problems"][0].split(":")[0] for node in document["nodes"] if node["problems"]}


@pytest.mark.slow
def test_nodes_killed_stopped_and_back(nodes: Nodes) -> None:
    """Healthy with three and identical digests; one killed or stopped: 1; two: 2; back: 0 again."""
    document = nodes.until_compared()
    assert [node["role"] for node in document["nodes"]].count("leader") == 1

    nodes.signal("node3", signal.SIGSTOP)
    document = nodes.until(1, "degraded")
    assert trouble(document)["node3"] == "unreachable"
    nodes.signal("node3", signal.SIGCONT)
    document = nodes.until(0, "healthy")

    leader = document["leader"]
    nodes.kill(leader)
    document = nodes.until(1, "degraded")
    wait_for(lambda: trouble(nodes.status()[1]) == {leader: "unreachable"}, 30, "another leader")
    second, last = (name for name in NAMES if name != leader)
    nodes.kill(second)
    document = nodes.until(2, "no quorum")
    assert trouble(document)[last] in ("candidate", "stale")
    assert document["leader"] is None

    # What the last node has is still shown, and that it stands still.
    done = nodes.connmon("snapshot", "--format", "json")
    assert (done.returncode, json.loads(done.stdout)["quorum"]) == (0, False)
    assert done.stderr.startswith(f"connmon: {last} has no quorum: what it shows has stood still for ")
    assert "NO QUORUM" in nodes.connmon("snapshot").stdout

    nodes.start(leader)
    nodes.until(1, "degraded")
    nodes.start(second)
    nodes.until_compared()
    nodes.close()
    nodes.until(2, "unreachable")

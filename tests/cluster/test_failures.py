"""Nodes of a cluster are killed, stopped, restarted and cut off while applications work.

Each application keeps its own books (tests/support/application.py), and works throughout every scenario. When
it is quiet, `connmon snapshot` of every node has to show exactly those figures; and none of its calls may
have failed or been slow (Worker.take_report checks that).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, FleetNode
from tests.support.namespaces import APPLICATIONS, Network, network
from tests.support.servers import Server
from tests.support.site import TOTALS
from tests.support.trio import NAMES
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

PROGRAMS = ("alpha", "alpha", "beta")


@contextlib.contextmanager
def working(fleet: Fleet) -> Iterator[Fleet]:
    """Start nodes and applications; in the end, check the nodes' logs."""
    try:
        fleet.start_nodes()
        fleet.start(*PROGRAMS)
        fleet.work(0.5)
        yield fleet
        for node in fleet.nodes:
            assert "Traceback" not in node.log, node.log
            assert " ERROR " not in node.log, node.log
    finally:
        fleet.remove()


@pytest.fixture(name="fleet")
def a_fleet(tmp_path: Path, mariadb: Server, postgresql: Server) -> Iterator[Fleet]:
    """Three healthy nodes, and three applications that work, each on another kind of database."""
    with working(Fleet(tmp_path, None, mariadb, postgresql)) as fleet:
        yield fleet


@pytest.fixture(name="net")
def a_network() -> Iterator[Network]:
    """A network namespace for each node, and one for the applications."""
    with network([*NAMES, APPLICATIONS]) as made:
        yield made


@pytest.fixture(name="apart")
def a_fleet_of_hosts(tmp_path: Path, net: Network) -> Iterator[Fleet]:
    """The same, each node in its own network namespace."""
    with working(Fleet(tmp_path, net)) as fleet:
        yield fleet


def proven(fleet: Fleet) -> None:
    """Check that all nodes show the applications' own figures, and that the load covered every total."""
    fleet.quiet()
    fleet.equal_everywhere()
    for key in TOTALS:
        if key not in ("connect_errors_total", "timeouts_total", "invalidations_total"):
            assert sum(worker.sum()[key] for worker in fleet.workers), f"the load did nothing for {key}"


def test_kill_of_the_leader(fleet: Fleet) -> None:
    """After kill -9 of the leader the others go on; when it is back, all three show the true figures."""
    leader = fleet.leader()
    leader.kill()
    wait_for(lambda: fleet.command_status()[1]["leader"] not in (None, leader.name), 15, "another leader")
    code, document = fleet.command_status()
    assert code == 1 and document["quorum"]
    fleet.work()
    fleet.start_nodes()
    fleet.work()
    proven(fleet)


def test_kill_of_a_follower(fleet: Fleet) -> None:
    """After kill -9 of a follower the leader stays; when the node is back, it shows the true figures too."""
    leader, (victim, _) = fleet.leader(), fleet.followers()
    victim.kill()
    fleet.work()
    code, document = fleet.command_status()
    assert (code, document["quorum"], document["leader"]) == (1, True, leader.name)
    roles = {node["node"]: node["role"] for node in document["nodes"]}
    assert roles[victim.name] == "unreachable"
    fleet.start_nodes()
    fleet.work()
    proven(fleet)


def test_leader_that_is_stopped_like_a_process(fleet: Fleet) -> None:
    """While the leader is stopped by SIGSTOP another one leads; when it goes on, it expires no process."""
    leader = fleet.leader()
    leader.pause()
    wait_for(lambda: fleet.command_status()[1]["leader"] not in (None, leader.name), 15, "another leader")
    fleet.work(20.0)
    fleet.quiet()  # and check every call
    fleet.load()
    leader.resume()
    fleet.until_well()
    fleet.work()
    proven(fleet)


def test_rolling_restart(fleet: Fleet) -> None:
    """Each node is restarted, the leader too: the applications do not notice."""
    for node in fleet.nodes:
        node.stop()
        fleet.work(0.5)
        fleet.start_nodes()
    fleet.work()
    proven(fleet)
    assert not any(worker.last["log"] for worker in fleet.workers), "there was always a node"


def test_restart_of_all_nodes(fleet: Fleet) -> None:
    """Nodes without data get the whole present back after their restart."""
    for node in fleet.nodes:
        node.kill()
    fleet.work()
    fleet.start_nodes()
    proven(fleet)
    assert all(len(worker.last["log"]) <= 1 for worker in fleet.workers), "one warning for one outage"


def test_nodes_that_return_take_applications(fleet: Fleet) -> None:
    """With two nodes down no call waits; after their return each takes new applications, none is stuck."""
    for node in fleet.followers():
        node.kill()
    fleet.work()
    fleet.quiet()  # and check every call
    fleet.load()
    fleet.start_nodes()
    for node in fleet.nodes:
        fleet.start_at(node, "gamma")
    fleet.work()
    proven(fleet)
    owners = {row["pid"]: row["node"] for row in fleet.nodes[0].rows("process")}
    assert [owners[worker.pid] for worker in fleet.workers[-3:]] == list(NAMES)
    assert sum(fleet.applications_of(node) for node in fleet.nodes) == len(fleet.workers)


def test_applications_spread_over_nodes_that_return(fleet: Fleet) -> None:
    """Applications that are all at one node spread when the others come back; meanwhile each process is
    shown once, connected."""
    for node in fleet.followers():
        node.kill()
    fleet.work()
    fleet.start_nodes()
    pids = sorted(worker.pid for worker in fleet.workers)

    def each_has_one() -> bool:
        rows = fleet.nodes[0].rows("process")
        if sorted(row["pid"] for row in rows) != pids or {row["state"] for row in rows} != {"connected"}:
            pytest.fail(f"a process that moves is not shown once, connected: {rows}")
        return {row["node"] for row in rows} == set(NAMES)

    wait_for(each_has_one, 60, "each node to have one of three applications")
    fleet.work()
    proven(fleet)


def others(node: FleetNode) -> list[str]:
    return [name for name in NAMES if name != node.name]


def all_applications_at(fleet: Fleet, net: Network, node: FleetNode) -> None:
    """Make all applications report to this node, so that its faults concern them."""
    net.refuse(APPLICATIONS, others(node))

    def there() -> bool:
        owners = [row["node"] for row in node.rows("process")]
        return owners == [node.name] * len(fleet.workers)

    wait_for(there, 15, f"all applications to report to {node.name}")
    net.heal()


def until_it_stands_still(node: FleetNode) -> None:
    """Wait until the node itself answers, to a client on its own host, that it has no quorum."""

    def says_so() -> bool:
        document, complaint = node.says()
        assert not document["quorum"]
        assert f"{node.name} has no quorum: what it shows has stood still for" in complaint
        return True

    wait_for(says_so, 15, f"{node.name} to notice that it has no quorum")


def until_the_rest_goes_on(fleet: Fleet, cut: FleetNode) -> None:
    """Wait until the majority has a leader and all applications, none of them at the node that is cut off."""

    def goes_on() -> bool:
        code, document = fleet.command_status()
        assert code == 1 and document["quorum"], document
        assert document["leader"] not in (None, cut.name)
        node = next(node for node in fleet.nodes if node.name == document["leader"])
        rows = node.rows("process")
        assert {row["pid"] for row in rows if row["state"] == "connected"} == {
            worker.pid for worker in fleet.workers
        }
        assert cut.name not in {row["node"] for row in rows}
        return True

    wait_for(goes_on, 30, "the majority to go on with all applications")


def test_a_follower_is_cut_off(apart: Fleet, net: Network) -> None:
    """A follower that is cut off answers that it has no quorum; all its applications move to other nodes."""
    cut, _ = apart.followers()
    all_applications_at(apart, net, cut)
    net.cut(cut.name)
    until_it_stands_still(cut)
    code, document = cut.status()
    assert code == 2 and not document["quorum"]
    until_the_rest_goes_on(apart, cut)
    net.heal()
    apart.until_well()
    apart.work(0.5)
    proven(apart)


def test_the_leader_is_cut_off_from_the_nodes(apart: Fleet, net: Network) -> None:
    """A leader cut off from the nodes, but not from applications, loses its role, and its applications."""
    cut = apart.leader()
    all_applications_at(apart, net, cut)
    net.part(cut.name, others(cut))
    until_it_stands_still(cut)
    until_the_rest_goes_on(apart, cut)
    net.heal()
    apart.until_well()
    apart.work(0.5)
    proven(apart)


def test_one_direction_only(apart: Fleet, net: Network) -> None:
    """A leader that hears no other node loses its role; when healed, all nodes show the true figures."""
    cut = apart.leader()
    all_applications_at(apart, net, cut)
    net.deafen(cut.name, others(cut))
    until_it_stands_still(cut)
    until_the_rest_goes_on(apart, cut)
    net.heal()
    apart.until_well()
    apart.work(0.5)
    proven(apart)

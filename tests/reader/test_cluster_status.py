"""`connmon cluster-status`: the verdict over the nodes' answers, and nodes that behave badly."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.commands import cli
from connmon.config import Address, Node, Service
from connmon.protocol.frames import Hello, NodeSide, frame
from connmon.protocol.queries import NodeStatus, StatusQuery
from connmon.reader import cluster_status
from connmon.reader.cluster_health import (
    DEGRADED,
    HEALTHY,
    LAGGING_ENTRIES,
    NO_QUORUM,
    Answer,
    ClusterHealth,
    ClusterVerdict,
    NodeHealth,
    judge,
)
from connmon.reader.formats import as_json, status_table
from tests.reader.test_client import Manner, nobody, refusing, saying, serving, silent

NAMES = ("node1", "node2", "node3")
NODES = tuple(Node(name, Address("h", 1 + at), Address("h", 1 + at)) for at, name in enumerate(NAMES))


def status(name: str = "node1", **changes: Any) -> NodeStatus:
    """Return the status of a node of a healthy group, whose leader is node1."""
    others = tuple(other for other in NAMES if other != name)
    statuses: dict[str, Any] = {
        "service": "default",
        "node": name,
        "software": "0.1.0",
        "role": "leader" if name == "node1" else "follower",
        "leader": "node1",
        "term": 7,
        "applied": 1000,
        "lag": 0,
        "quorum": True,
        "stale": 0.2,
        "processes": 4,
        "consoles": 1,
        "uptime": 90.0,
        "linked": others,
        "unlinked": (),
        "epoch": "e",
        "version": 900,
    }
    return NodeStatus(**{**statuses, **changes})


def verdict(**statuses: NodeStatus | Answer | None) -> ClusterVerdict:
    """Judge a group of three: healthy nodes but for those given; None: the node is away."""
    answers = []
    for node in NODES:
        answer = statuses.get(node.name, status(node.name))
        if isinstance(answer, Answer):
            answers.append(answer)
        elif answer is None:
            answers.append(Answer(node, reason="Connection refused"))
        else:
            answers.append(Answer(node, answer, 900))
    return judge("default", answers)


def problems(of: ClusterVerdict) -> dict[str, list[str]]:
    return {node["node"]: node["problems"] for node in of.document["nodes"] if node["problems"]}


# --- The verdict --------------------------------------------------------------------------


def test_a_healthy_group() -> None:
    """All nodes answer, follow one leader and have the same state: healthy, 0, in the contract's words."""
    document, code = verdict()
    assert code == HEALTHY == 0
    assert {key: document[key] for key in ("service", "health", "quorum", "leader", "term")} == {
        "service": "default", "health": "healthy", "quorum": True, "leader": "node1", "term": 7,
    }  # fmt: skip
    contract = {
        "node": "node2", "address": "h:2", "role": "follower", "term": 7, "applied": 1000, "lag": 0,
        "stale_seconds": 0.2, "processes": 4, "consoles": 1, "uptime_seconds": 90.0, "version": "0.1.0",
    }  # fmt: skip
    assert contract.items() <= document["nodes"][1].items()


def test_the_contract_is_the_typed_document() -> None:
    """The document has exactly the keys of its types, in their order, also for a node that is away."""
    document = verdict(node3=None).document
    assert list(document) == list(ClusterHealth.__annotations__)
    assert [list(row) for row in document["nodes"]] == [list(NodeHealth.__annotations__)] * 3


def test_a_node_that_is_away() -> None:
    """One of three away: degraded, 1; its row says so, and its other values are None."""
    judged = verdict(node3=None)
    assert (judged.exit_code, judged.document["quorum"]) == (DEGRADED, True)
    assert problems(judged) == {"node3": ["unreachable: Connection refused"]}
    row = judged.document["nodes"][2]
    assert row["role"] == "unreachable"
    assert all(row[key] is None for key in ("term", "applied", "lag", "stale_seconds", "version"))


def test_no_quorum() -> None:
    """Nodes that answer without a majority: 2, no leader, and the age of each node's view."""
    alone = status("node3", role="candidate", leader=None, quorum=False, stale=41.0, unlinked=NAMES[:2])
    judged = verdict(node1=None, node2=None, node3=alone)
    assert judged.exit_code == NO_QUORUM
    assert (judged.document["health"], judged.document["quorum"], judged.document["leader"]) == (
        "no quorum", False, None,
    )  # fmt: skip
    assert problems(judged)["node3"] == ["candidate: knows no leader, its view has stood still for 41s"]


def test_nobody_answers() -> None:
    """No node reachable: 2, and the health is "unreachable"."""
    judged = verdict(node1=None, node2=None, node3=None)
    assert (judged.exit_code, judged.document["health"], judged.document["term"]) == (2, "unreachable", None)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"role": "candidate", "leader": None, "quorum": False}, "candidate: knows no leader"),
        ({"quorum": False, "stale": 12.0}, "stale: hears too little of node1, its view has stood still for"),
        ({"lag": LAGGING_ENTRIES + 1}, f"lagging: {LAGGING_ENTRIES + 1} entries behind"),
        ({"leader": "node3", "term": 6}, "divided: follows node3 in term 6"),
        ({"linked": ("node1",), "unlinked": ("node3",)}, "cut: no link to node3"),
        ({"node": "node3"}, "misnamed: it says that it is node3"),
        ({"linked": ("node1", "node3", "node4")}, "stranger: its config has other nodes: node1, node2"),
    ],
)
def test_each_kind_of_trouble_has_its_word(changes: dict[str, Any], word: str) -> None:
    """Each problem of a node that answers makes the group degraded, and the first word is its kind."""
    judged = verdict(node2=status("node2", **changes))
    assert judged.exit_code == DEGRADED
    assert problems(judged)["node2"][0].startswith(word)


def test_a_leader_that_has_lost_its_majority_counts_less_than_the_one_that_has_it() -> None:
    """Of two leaders the one with the higher term counts; the other one is divided."""
    old = status("node1", linked=(), unlinked=NAMES[1:])
    new = {"leader": "node2", "term": 8}
    judged = verdict(node1=old, node2=status("node2", role="leader", **new), node3=status("node3", **new))
    assert (judged.document["leader"], judged.document["term"], judged.exit_code) == ("node2", 8, DEGRADED)
    assert problems(judged) == {"node1": ["divided: follows node1 in term 7", "cut: no link to node2, node3"]}


def test_replicas_that_differ() -> None:
    """A node with another digest of the same version differs; digests of other versions are not compared."""
    same = {name: status(name, digest="aa") for name in ("node1", "node3")}
    judged = verdict(**same, node2=status("node2", digest="bb"))
    assert problems(judged) == {"node2": ["differs: not the state that the others have at version 900"]}
    assert judged.exit_code == DEGRADED
    other = Answer(NODES[1], status("node2", digest="bb"), 899)
    assert verdict(**same, node2=other).exit_code == HEALTHY
    two = verdict(node1=status("node1", digest="aa"), node2=status("node2", digest="bb"), node3=None)
    assert list(problems(two)) == ["node2", "node3"]


def test_a_missing_link_to_a_node_that_is_away_is_one_problem() -> None:
    """A missing link to a node that is down is not a problem of the others."""
    rest = {name: status(name, linked=(), unlinked=("node3",)) for name in ("node1", "node2")}
    rest = {
        name: status(name, linked=tuple({"node1", "node2"} - {name}), unlinked=("node3",)) for name in rest
    }
    assert list(problems(verdict(**rest, node3=None))) == ["node3"]


def test_one_node_alone_may_be_asked() -> None:
    """With --node or --host the other nodes are not expected, and a node given by address has its name."""
    node = Node("h:9", Address("h", 9), Address("h", 9))
    judged = judge("", [Answer(node, status("node2"))], whole=False)
    assert judged.exit_code == HEALTHY
    assert (judged.document["service"], judged.document["nodes"][0]["node"]) == ("default", "node2")


STATUSES = st.builds(
    status,
    st.sampled_from(NAMES),
    role=st.sampled_from(["leader", "follower", "candidate"]),
    leader=st.one_of(st.none(), st.sampled_from(NAMES), st.text(max_size=10)),
    term=st.integers(0, 9),
    lag=st.integers(0, 100),
    quorum=st.booleans(),
    stale=st.floats(0, 1e12),
    linked=st.lists(st.sampled_from(NAMES), max_size=3).map(tuple),
    unlinked=st.lists(st.sampled_from(NAMES), max_size=3).map(tuple),
    digest=st.one_of(st.none(), st.sampled_from(["aa", "bb"])),
    software=st.text(max_size=20),
)
SAID = st.one_of(
    st.tuples(STATUSES, st.integers(1, 2)),
    st.tuples(st.sampled_from(["unreachable", "refused", "garbled"]), st.text(max_size=30)),
)


@given(st.lists(SAID, min_size=1, max_size=3), st.booleans())
def test_any_answers_have_a_verdict(statuses: list[tuple[Any, Any]], whole: bool) -> None:
    """For any answers, exit code and document agree, and both forms can be printed."""
    answers = [
        Answer(node, one, other) if isinstance(one, NodeStatus) else Answer(node, None, None, one, other)
        for node, (one, other) in zip(NODES, statuses, strict=False)
    ]
    document, code = judge("default", answers, whole)
    quorum = any(answer.status.quorum for answer in answers if answer.status)
    assert document["quorum"] is quorum
    assert (code == NO_QUORUM) is not quorum
    assert (code == HEALTHY) is (quorum and not any(node["problems"] for node in document["nodes"]))
    assert document["health"] in {0: ["healthy"], 1: ["degraded"], 2: ["no quorum", "unreachable"]}[code]
    assert len(document["nodes"]) == len(answers)
    assert json.loads(as_json(document)) == document
    table = status_table(document)
    assert table.count("\n") == len(answers) + 3
    assert all(line.isprintable() for line in table.splitlines())


def test_the_table() -> None:
    """The table has the verdict, then an aligned line per node with its problems at the end."""
    lagging = status("node2", lag=120, applied=880)
    assert status_table(verdict(node2=lagging, node3=None).document).splitlines() == [
        "DEGRADED  service default  quorum yes  leader node1  term 7",
        "",
        "NODE   ADDRESS  ROLE         TERM  APPLIED  LAG  STALE  PROCESSES  CONSOLES  UPTIME  VERSION  "
        "PROBLEMS",
        "node1  h:1      leader          7     1000    0   0.2s          4         1   1m30s  0.1.0    -",
        "node2  h:2      follower        7      880  120   0.2s          4         1   1m30s  0.1.0    "
        "lagging: 120 entries behind",
        "node3  h:3      unreachable     -        -    -      -          -         -       -  -        "
        "unreachable: Connection refused",
    ]


# --- Asking -------------------------------------------------------------------------------


class Fake:
    """A node whose state changes with every question."""

    def __init__(self, name: str, ahead: int = 0, version: int = 900, **says: Any) -> None:
        self.name = name
        self._version = version
        self.says = says
        self.asked: list[int | None] = []
        self._ahead = ahead
        """Versions that pass before a question arrives."""

    def __call__(self, sock: socket.socket) -> None:
        side = NodeSide()
        while data := sock.recv(65536):
            for message in side.receive(data):
                if isinstance(message, Hello):
                    reason = side.check(message, "default")
                    sock.sendall(side.refuse(reason) if reason else side.welcome("default", self.name))
                else:
                    assert isinstance(message, StatusQuery)
                    sock.sendall(frame(self.answer(message)))

    def answer(self, query: StatusQuery) -> NodeStatus:
        self.asked.append(query.digest_at)
        version = self._version + self._ahead * (len(self.asked) - 1)
        digest = None
        if query.digest_at is not None and query.digest_at >= version:
            version, digest = query.digest_at, f"digest {query.digest_at}"
        return status(self.name, **{"version": version, "digest": digest, **self.says})


@contextlib.contextmanager
def group(*manners: Manner | None) -> Iterator[Service]:
    """Run a node of each manner, node1 first; None: nobody listens there."""
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(nobody(name) if manner is None else serving(manner, name))
            for name, manner in zip(NAMES, manners, strict=False)
        ]
        yield Service("default", tuple(nodes))


def dribbling(sock: socket.socket) -> None:
    """Send an endless frame byte by byte."""
    sock.sendall(b"\0\0\1\0")
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"x")
            time.sleep(0.05)


def falling_silent(name: str) -> Manner:
    """A node that answers once and then stops."""
    fake = Fake(name)

    def behave(sock: socket.socket) -> None:
        if not fake.asked:
            real = fake.answer

            def once(query: StatusQuery) -> NodeStatus:
                if fake.asked:
                    threading.Event().wait(5)
                return real(query)

            fake.answer = once  # type: ignore[method-assign]
        fake(sock)

    return behave


def test_all_nodes_are_asked_at_once() -> None:
    """Each node is asked on its own; without digests one question is enough."""
    fakes = [Fake(name) for name in NAMES]
    with group(*fakes) as service:
        judged = cluster_status.ask(service)
    assert judged.exit_code == HEALTHY
    assert [fake.asked for fake in fakes] == [[None], [None], [None]]


def test_digests_are_of_one_version() -> None:
    """With digests, all nodes are asked for one future version, and again where it came too soon for one."""
    slow, quick = Fake("node1"), Fake("node2", ahead=3)
    with group(slow, quick, Fake("node3")) as service:
        judged = cluster_status.ask(service, digests=True)
    assert judged.exit_code == HEALTHY
    assert slow.asked[0] is None
    assert len(slow.asked) > 2
    assert slow.asked == quick.asked
    (digest,) = {(node["digest"], node["digest_version"]) for node in judged.document["nodes"]}
    assert digest == (f"digest {slow.asked[-1]}", slow.asked[-1])


class Idle(Fake):
    """A node of a group without load: a version every 0.3 s, each waited for up to 0.6 s."""

    began = 0.0
    """When the group's version was 900, in seconds of the monotonic clock."""

    def __init__(self, name: str, late: float = 0.0) -> None:
        super().__init__(name)
        self._late = late
        """How long the first question for a digest takes to arrive, in seconds."""

    def answer(self, query: StatusQuery) -> NodeStatus:
        if query.digest_at is not None:
            time.sleep(self._late)
            self._late = 0.0
            ahead = max(0.0, (query.digest_at - 900) * 0.3 - (time.monotonic() - self.began))
            time.sleep(min(ahead, 0.6))
        self._version = 900 + int((time.monotonic() - self.began) / 0.3)
        passed = query.digest_at is not None and query.digest_at != self._version
        return super().answer(StatusQuery(None) if passed else query)


@pytest.mark.slow
def test_an_idle_group_compares_after_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that came too late for one node is asked again at a version that comes in time."""
    monkeypatch.setattr(Idle, "began", time.monotonic())
    with group(Idle("node1"), Idle("node2", late=0.65), Idle("node3")) as service:
        judged = cluster_status.ask(service, digests=True)
    assert judged.exit_code == HEALTHY
    (digest,) = {(node["digest"], node["digest_version"]) for node in judged.document["nodes"]}
    assert None not in digest


def test_without_quorum_each_digest_is_of_what_the_node_has() -> None:
    """In a group that stands still each node is asked for its current version."""
    still: dict[str, Any] = {"quorum": False, "leader": None, "role": "candidate"}
    with group(Fake("node1", **still), Fake("node2", **still, version=7), None) as service:
        judged = cluster_status.ask(service, digests=True)
    assert judged.exit_code == NO_QUORUM
    assert [node["digest_version"] for node in judged.document["nodes"]] == [900, 7, None]


@pytest.mark.slow
@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize(
    ("manner", "words"),
    [
        (None, "unreachable: "),
        (silent, "unreachable: no answer within"),
        (dribbling, ""),
        (refusing("the secrets differ"), "refused: the secrets differ"),
        (saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "garbled: "),
        (saying(b""), "unreachable: it closed the connection"),
    ],
)
def test_a_bad_node_spoils_only_its_own_row(manner: Manner | None, words: str, digests: bool) -> None:
    """Whatever one node does, the others' answers arrive in time, and its row has its failure."""
    with group(Fake("node1"), Fake("node2"), manner) as service:
        judged = cluster_status.ask(service, digests)
    assert judged.exit_code == DEGRADED
    statuses = problems(judged)
    assert list(statuses) == ["node3"]
    assert statuses["node3"][0].startswith(words)
    if digests:
        assert [node["digest"] is not None for node in judged.document["nodes"]] == [True, True, False]


@pytest.mark.slow
def test_a_node_that_stops_between_two_questions() -> None:
    """Its first answer is shown, without a digest."""
    with group(Fake("node1"), Fake("node2"), falling_silent("node3")) as service:
        judged = cluster_status.ask(service, digests=True)
    row = judged.document["nodes"][2]
    assert (row["role"], row["digest"]) == ("follower", None)


def test_a_node_of_another_service_or_version() -> None:
    """It refuses, and its reason is shown."""
    with group(Fake("node1")) as service:
        other = Service("other", service.nodes)
        judged = cluster_status.ask(other)
    assert judged.exit_code == NO_QUORUM
    assert problems(judged)["node1"] == ["refused: service 'other' is not served here, 'default' is"]


# --- The command --------------------------------------------------------------------------


Asked = Callable[..., tuple[int, str]]


@pytest.fixture(name="asked")
def the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    def run(service: Service, *arguments: str) -> tuple[int, str]:
        path = tmp_path / "connmon.cfg"
        lines = "".join(f"    {node.name} hostname={node.address}\n" for node in service.nodes)
        path.write_text(f"[connmon_service_x]\nname: default\nnodes:\n{lines}")
        code = cli.main(["cluster-status", "--config", str(path), *arguments])
        captured = capsys.readouterr()
        assert captured.err == ""
        return code, captured.out

    return run


def test_the_command(asked: Asked) -> None:
    """A table or JSON on stdout, and the exit code: 0 healthy, 1 degraded, 2 no quorum or no answer."""
    with group(*map(Fake, NAMES)) as service:
        code, table = asked(service)
        assert (code, table.split("\n")[0]) == (
            0, "HEALTHY  service default  quorum yes  leader node1  term 7",
        )  # fmt: skip
        code, text = asked(service, "--format", "json")
        assert (code, json.loads(text)["health"]) == (0, "healthy")
        code, text = asked(service, "--format", "json", "--node", "node2")
        assert (code, [node["node"] for node in json.loads(text)["nodes"]]) == (0, ["node2"])
        host = str(service.nodes[2].address)
        assert cli.main(["cluster-status", "--host", host]) == 0
    with group(Fake("node1"), Fake("node2"), None) as service:
        assert asked(service)[0] == 1
    with group(None, None, None) as service:
        code, text = asked(service, "--format", "json")
        assert (code, json.loads(text)["health"]) == (2, "unreachable")

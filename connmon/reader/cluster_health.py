"""The verdict over a cluster, from the status of each node. Pure.

- Each node reports only its own status. Its problems are judged here, from all answers; the first word of
  each is its kind (unreachable, refused, garbled, candidate, stale, lagging, differs, misnamed, stranger,
  cut, divided).
- The group has quorum where a node says so. Leader and term are those of such a node of the highest term. A
  node that has not answered is never a reason for "no quorum".
- Digests are compared only where they are of the same version of the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, TypedDict, cast

from connmon.config import Node
from connmon.protocol.queries import NodeStatus
from connmon.protocol.text import short_age

#: Log entries that a node may be behind: more than a busy group writes in a second.
LAGGING_ENTRIES: Final = 50

HEALTHY: Final = 0
DEGRADED: Final = 1
NO_QUORUM: Final = 2

Failure: TypeAlias = Literal["unreachable", "refused", "garbled"]


class NodeHealth(TypedDict):
    """A node's row of `connmon cluster-status`: the JSON contract. None: the node did not answer."""

    node: str
    address: str
    role: str
    """leader, follower, candidate; or unreachable: it did not answer."""
    term: int | None
    applied: int | None
    lag: int | None
    stale_seconds: float | None
    processes: int | None
    consoles: int | None
    uptime_seconds: float | None
    version: str | None
    """Of connmon."""
    leader: str | None
    quorum: bool | None
    linked: list[str] | None
    unlinked: list[str] | None
    digest_version: int | None
    digest: str | None
    problems: list[str]


class ClusterHealth(TypedDict):
    """The document of `connmon cluster-status`: the JSON contract."""

    service: str
    health: Literal["healthy", "degraded", "no quorum", "unreachable"]
    quorum: bool
    leader: str | None
    term: int | None
    nodes: list[NodeHealth]


class Answer(NamedTuple):
    """The answer of one node: its status, or a failure and the reason."""

    node: Node
    status: NodeStatus | None = None
    digest_at: int | None = None
    """The version of the state that the status's digest is of. None: no digest was asked for."""
    failure: Failure = "unreachable"
    reason: str = ""


class ClusterVerdict(NamedTuple):
    document: ClusterHealth
    exit_code: int
    """HEALTHY, DEGRADED or NO_QUORUM; the latter also where no node answered."""


def judge(service: str, answers: Sequence[Answer], whole: bool = True) -> ClusterVerdict:
    """Return the verdict over the nodes that were asked. `whole`: they are all nodes of the config."""
    statuses = [answer.status for answer in answers if answer.status is not None]
    current = [status for status in statuses if status.quorum]
    best = max(current, key=lambda status: (status.term, status.role == "leader"), default=None)
    group = _Group(answers=answers, best=best, whole=whole, differing=_differing(answers))
    nodes = [_row(answer, group.problems(answer)) for answer in answers]
    health: Literal["healthy", "degraded", "no quorum", "unreachable"] = "healthy"
    code = HEALTHY
    if not statuses:
        health, code = "unreachable", NO_QUORUM
    elif best is None:
        health, code = "no quorum", NO_QUORUM
    elif any(node["problems"] for node in nodes):
        health, code = "degraded", DEGRADED
    highest = max((status.term for status in statuses), default=None)
    document: ClusterHealth = {
        "service": service or (statuses[0].service if statuses else ""),
        "health": health,
        "quorum": best is not None,
        "leader": None if best is None else best.leader,
        "term": highest if best is None else best.term,
        "nodes": nodes,
    }
    return ClusterVerdict(document, code)


def _differing(answers: Sequence[Answer]) -> frozenset[str]:
    """Return the nodes whose digest is not the majority's of the same version; in a tie, not the leader's."""
    by_version: dict[int | None, dict[str, list[Answer]]] = {}
    for answer in answers:
        if answer.status is not None and answer.status.digest is not None:
            by_digest = by_version.setdefault(answer.digest_at, {})
            by_digest.setdefault(answer.status.digest, []).append(answer)
    differing: set[str] = set()
    for by_digest in by_version.values():
        right = max(
            by_digest, key=lambda digest: (len(by_digest[digest]), any(map(_leads, by_digest[digest])))
        )
        for digest, holders in by_digest.items():
            if digest != right:
                differing.update(answer.node.name for answer in holders)
    return frozenset(differing)


def _leads(answer: Answer) -> bool:
    return answer.status is not None and answer.status.role == "leader"


@dataclass(frozen=True)
class _Group:
    """All answers, against which one of them is judged."""

    answers: Sequence[Answer]
    best: NodeStatus | None
    """Of a node with quorum and the highest term."""
    whole: bool
    differing: frozenset[str]

    def problems(self, answer: Answer) -> list[str]:
        """Return a node's problems, the gravest first."""
        status = answer.status
        if status is None:
            return [f"{answer.failure}: {answer.reason or 'no reason given'}"]
        problems = []
        if answer.node.name not in (status.node, str(answer.node.address)):
            problems.append(f"misnamed: it says that it is {status.node}")
        if problem := self._quorum_problem(status):
            problems.append(problem)
        if answer.node.name in self.differing:
            problems.append(f"differs: not the state that the others have at version {answer.digest_at}")
        if status.lag > LAGGING_ENTRIES:
            problems.append(f"lagging: {status.lag} entries behind")
        answering = {other.status.node for other in self.answers if other.status is not None}
        if cut := [name for name in status.unlinked if name in answering]:
            problems.append(f"cut: no link to {', '.join(cut)}")
        group = {status.node, *status.linked, *status.unlinked}
        if self.whole and group != {other.node.name for other in self.answers}:
            problems.append(f"stranger: its config has other nodes: {', '.join(sorted(group))}")
        return problems

    def _quorum_problem(self, status: NodeStatus) -> str | None:
        if status.quorum:
            if self.best is not None and status.leader != self.best.leader:
                return f"divided: follows {status.leader} in term {status.term}"
            return None
        age = f"its view has stood still for {short_age(status.stale)}"
        if status.leader is None:
            return f"candidate: knows no leader, {age}"
        if status.role == "leader":
            return f"stale: leads without a majority, {age}"
        return f"stale: hears too little of {status.leader}, {age}"


def _row(answer: Answer, problems: list[str]) -> NodeHealth:
    status = answer.status
    name = answer.node.name
    address = str(answer.node.address)
    if status is None:
        unknown = dict.fromkeys(NodeHealth.__annotations__)
        row = {**unknown, "node": name, "address": address, "role": "unreachable", "problems": problems}
        return cast(NodeHealth, row)
    return {
        "node": status.node if name == address else name,
        "address": address,
        "role": status.role,
        "term": status.term,
        "applied": status.applied,
        "lag": status.lag,
        "stale_seconds": round(status.stale, 3),
        "processes": status.processes,
        "consoles": status.consoles,
        "uptime_seconds": round(status.uptime, 3),
        "version": status.software,
        "leader": status.leader,
        "quorum": status.quorum,
        "linked": list(status.linked),
        "unlinked": list(status.unlinked),
        "digest_version": None if status.digest is None else answer.digest_at,
        "digest": status.digest,
        "problems": problems,
    }

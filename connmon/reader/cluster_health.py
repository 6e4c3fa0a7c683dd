"""The verdict over a cluster, from what each of its nodes says of itself. Pure.

- Each node tells only what it knows by itself; what is wrong with it is judged here, from all
  answers, and said in `problems`: the first word says what kind it is (unreachable, refused,
  garbled, candidate, stale, lagging, differs, misnamed, stranger, cut, divided).
- The group has quorum where a node says so; what such a node of the highest term says of leader
  and term counts. A node that was asked and has not answered is never a reason to say "no quorum".
- Digests are compared only where they are of one version of the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from connmon.config import Node
from connmon.protocol.queries import NodeStatus
from connmon.protocol.text import short_age

#: Entries of the log that a node may be behind: more than come in a second, however busy it is.
LAGGING: Final = 50

HEALTHY: Final = 0
DEGRADED: Final = 1
NO_QUORUM: Final = 2

Failure: TypeAlias = Literal["unreachable", "refused", "garbled"]


class Answer(NamedTuple):
    """What became of asking one node: a status, or a failure and its reason."""

    node: Node
    status: NodeStatus | None = None
    digest_at: int | None = None
    """The version of the state that the status's digest is of. None: none was asked for."""
    failure: Failure = "unreachable"
    reason: str = ""


class Verdict(NamedTuple):
    document: dict[str, Any]
    """As in the JSON contract."""
    exit_code: int
    """HEALTHY, DEGRADED or NO_QUORUM, which also stands for: no node answered."""


def judge(service: str, answers: Sequence[Answer], whole: bool = True) -> Verdict:
    """Return the verdict over the nodes that were asked. `whole`: they are all that the config has."""
    told = [answer.status for answer in answers if answer.status is not None]
    current = [status for status in told if status.quorum]
    best = max(current, key=lambda status: (status.term, status.role == "leader"), default=None)
    odd = _odd(answers)
    nodes = [_row(answer, _problems(answer, answers, best, whole, odd)) for answer in answers]
    code = NO_QUORUM
    if not told:
        health = "unreachable"
    elif best is None:
        health = "no quorum"
    elif any(node["problems"] for node in nodes):
        health, code = "degraded", DEGRADED
    else:
        health, code = "healthy", HEALTHY
    document = {
        "service": service or (told[0].service if told else ""),
        "health": health,
        "quorum": best is not None,
        "leader": None if best is None else best.leader,
        "term": best.term if best is not None else max((status.term for status in told), default=None),
        "nodes": nodes,
    }
    return Verdict(document, code)


def _odd(answers: Sequence[Answer]) -> frozenset[str]:
    """Return the nodes whose digest is not the one that most have of that version, or else the leader."""
    found: dict[int | None, dict[str, list[Answer]]] = {}
    for answer in answers:
        if answer.status is not None and answer.status.digest is not None:
            found.setdefault(answer.digest_at, {}).setdefault(answer.status.digest, []).append(answer)
    odd: set[str] = set()
    for having in found.values():
        right = max(having, key=lambda digest: (len(having[digest]), any(map(_leads, having[digest]))))
        odd.update(a.node.name for digest, those in having.items() if digest != right for a in those)
    return frozenset(odd)


def _leads(answer: Answer) -> bool:
    return answer.status is not None and answer.status.role == "leader"


def _problems(
    answer: Answer,
    answers: Sequence[Answer],
    best: NodeStatus | None,
    whole: bool,
    odd: frozenset[str],
) -> list[str]:
    """Return what is wrong with a node, the gravest first."""
    status = answer.status
    if status is None:
        return [f"{answer.failure}: {answer.reason or 'no reason given'}"]
    problems = []
    if answer.node.name not in (status.node, str(answer.node.address)):
        problems.append(f"misnamed: it says that it is {status.node}")
    still = f"its picture stands still for {short_age(status.stale)}"
    if not status.quorum and status.leader is None:
        problems.append(f"candidate: knows no leader, {still}")
    elif not status.quorum:
        alone = (
            "leads without a majority" if status.role == "leader" else f"hears too little of {status.leader}"
        )
        problems.append(f"stale: {alone}, {still}")
    elif best is not None and status.leader != best.leader:
        problems.append(f"divided: follows {status.leader} in term {status.term}")
    if answer.node.name in odd:
        problems.append(f"differs: not the state that the others have at version {answer.digest_at}")
    if status.lag > LAGGING:
        problems.append(f"lagging: {status.lag} entries behind")
    there = {other.status.node for other in answers if other.status is not None}
    if cut := [name for name in status.unlinked if name in there]:
        problems.append(f"cut: no link to {', '.join(cut)}")
    group = {status.node, *status.linked, *status.unlinked}
    if whole and group != {other.node.name for other in answers}:
        problems.append(f"stranger: its config has other nodes: {', '.join(sorted(group))}")
    return problems


def _row(answer: Answer, problems: list[str]) -> dict[str, Any]:
    status = answer.status
    name = answer.node.name
    address = str(answer.node.address)
    if status is None:
        unknown = dict.fromkeys(_OF_STATUS)
        return {"node": name, "address": address, **unknown, "role": "unreachable", "problems": problems}
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


#: The keys of a node's row whose values it has to tell.
_OF_STATUS: Final = (
    "role", "term", "applied", "lag", "stale_seconds", "processes", "consoles", "uptime_seconds", "version",
    "leader", "quorum", "linked", "unlinked", "digest_version", "digest",
)  # fmt: skip

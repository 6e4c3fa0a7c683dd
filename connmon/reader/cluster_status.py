"""Asks every node of a service how it is, each by itself, all at once, within two seconds.

- A thread per node, for which nobody waits longer than `WITHIN`: a node that is stopped, a name
  that does not resolve, one that answers a byte at a time hold up nothing but their own row.
- Digests of the state are compared at one version of it. The state moves on several times a second,
  so all nodes are asked for a version that is still to come, again with a later one where it
  came too soon for one of them. Where the group stands still each node is asked for its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from connmon.config import Node, Service
from connmon.errors import PeerError, ProtocolError, RefusedError
from connmon.protocol.credentials import OPEN, Credentials
from connmon.protocol.queries import StatusQuery
from connmon.reader import client
from connmon.reader.cluster_health import Answer, Verdict, judge

#: Seconds for everything, the process's own start not included.
WITHIN: Final = 1.6
#: Seconds after which digests are asked for without the nodes that have not answered yet.
FIRST: Final = 0.8
#: How many versions ahead of the most advanced node digests are asked for, one attempt after the other.
AHEAD: Final = (1, 4, 12, 30)


def ask(
    service: Service, digests: bool = False, whole: bool = True, credentials: Credentials = OPEN
) -> Verdict:
    """Ask all nodes of `service`, with digests or without, and judge what they say.

    `whole`: these are all nodes that the config has for the service. Takes at most `WITHIN` seconds.
    """
    now = time.monotonic()
    end = now + WITHIN
    nodes = [_Asked(node, service.name, credentials) for node in service.nodes]
    _together(nodes, _Asked.begin, now + FIRST if digests else end)
    if digests:
        for ahead in AHEAD:
            if not _compare(nodes, ahead, end):
                break
        for each in nodes:
            each.wait(end)
    answers = [each.answer for each in nodes]
    for each in nodes:
        each.let_go()
    return judge(service.name, answers, whole)


def _compare(nodes: Sequence[_Asked], ahead: int, end: float) -> bool:
    """Have those that have answered make digests of one version. False: they have, or it is too late."""
    told = [(each, each.answer.status) for each in nodes if each.idle and each.answer.status is not None]
    if not told or time.monotonic() >= end:
        return False
    of = {each.answer.digest_at for each, status in told if status.quorum}
    if len(of) < 2 and all(status.digest is not None for _, status in told):
        return False
    moving = [status.version for _, status in told if status.quorum]
    common = max(moving) + ahead if moving else None
    at = {each: common if common is not None and status.quorum else status.version for each, status in told}
    _together(list(at), lambda each: each.ask(at[each]), end)
    return True


def _together(nodes: Sequence[_Asked], what: Callable[[_Asked], None], until: float) -> None:
    """Do it for each node in a thread of its own; return when it is done for all, or it is that late."""
    for each in nodes:
        each.start(what)
    for each in nodes:
        each.wait(until)


class _Asked:
    """One node, and what has become of asking it; one thing is done at a time."""

    def __init__(self, node: Node, service: str, credentials: Credentials) -> None:
        self.answer = Answer(node, reason=f"no answer within {WITHIN:g} s")
        """The last one so far."""
        self._node = node
        self._service = service
        self._credentials = credentials
        self._client: client.Client | None = None
        self._done = threading.Event()
        self._let_go = False

    @property
    def idle(self) -> bool:
        """What was begun is done."""
        return self._done.is_set()

    def start(self, what: Callable[[_Asked], None]) -> None:
        self._done.clear()
        threading.Thread(target=self._run, args=(what,), name=f"ask-{self._node.name}", daemon=True).start()

    def wait(self, until: float) -> None:
        self._done.wait(max(0.0, until - time.monotonic()))

    def let_go(self) -> None:
        """Nothing more will be asked; what is still being done may take its time."""
        self._let_go = True
        if self.idle:  # else the thread closes the connection
            self._close()

    def begin(self) -> None:
        """Connect, and ask for a status without a digest."""
        self._client = client.reach(self._node, self._service, WITHIN, self._credentials)
        self._client.timeout = WITHIN
        self.ask(None)

    def ask(self, digest_at: int | None) -> None:
        assert self._client is not None
        status = self._client.status(StatusQuery(digest_at))
        before = self.answer.status
        if status.digest is not None or before is None or before.digest is None:
            self.answer = Answer(self._node, status, digest_at)

    def _run(self, what: Callable[[_Asked], None]) -> None:
        try:
            what(self)
        except RefusedError as error:
            self.answer = Answer(self._node, failure="refused", reason=str(error))
        except ProtocolError as error:
            self.answer = Answer(self._node, failure="garbled", reason=str(error))
        except PeerError as error:
            self.answer = Answer(self._node, failure="unreachable", reason=str(error))
        finally:
            self._done.set()
            if self._let_go:
                self._close()

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()

"""Ask every node of a service for its status, each on its own, all at once, within two seconds.

- Each node has a thread, for which nobody waits longer than `StatusSettings.total_seconds`. A node that is
  stopped, a name that does not resolve, or an answer that trickles in delays only its own row.
- Digests of the state are compared at one version. The state changes several times a second, so that all
  nodes are asked for a version that is still to come, and for a later one where it came too soon for one of
  them. In a group that stands still each node is asked for its own version.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from connmon.config import Node, Service
from connmon.errors import PeerError, ProtocolError, RefusedError
from connmon.protocol.credentials import OPEN, Credentials
from connmon.protocol.queries import StatusQuery
from connmon.reader import client
from connmon.reader.cluster_health import Answer, ClusterVerdict, Failure, judge


@dataclass(frozen=True)
class StatusSettings:
    total_seconds: float = 1.6
    """For all nodes together; the start of the process is not included."""
    first_answer_seconds: float = 0.8
    """After this, digests are asked for without the nodes that have not answered."""
    versions_ahead: tuple[int, ...] = (1, 1, 4, 12, 30)
    """By attempt: how far ahead of the most advanced node the version of the digests is.

    An idle group makes two versions a second, and a node waits a second for one: more than one ahead may not
    come in time there, so the first miss is followed by another attempt at the next version.
    """


DEFAULTS: Final = StatusSettings()


def ask(
    service: Service,
    digests: bool = False,
    whole: bool = True,
    credentials: Credentials = OPEN,
    settings: StatusSettings = DEFAULTS,
) -> ClusterVerdict:
    """Ask all nodes of `service`, for digests too or not, and judge their answers.

    `whole`: these are all nodes that the config has for the service. Takes at most `total_seconds`.
    """
    now = time.monotonic()
    end = now + settings.total_seconds
    nodes = [_NodeQuestion(node, service.name, credentials, settings.total_seconds) for node in service.nodes]
    _run_all(nodes, _NodeQuestion.begin, now + settings.first_answer_seconds if digests else end)
    if digests:
        for ahead in settings.versions_ahead:
            if not _ask_for_digests(nodes, ahead, end):
                break
        for node in nodes:
            node.wait(end)
    answers = [node.answer for node in nodes]
    for node in nodes:
        node.release()
    return judge(service.name, answers, whole)


def _ask_for_digests(nodes: Sequence[_NodeQuestion], ahead: int, end: float) -> bool:
    """Ask the nodes that have answered for digests of one version.

    False: they have them, or it is too late.
    """
    statuses = {node: node.answer.status for node in nodes if node.is_idle and node.answer.status is not None}
    if not statuses or time.monotonic() >= end:
        return False
    versions = {node.answer.digest_at for node, status in statuses.items() if status.quorum}
    if len(versions) < 2 and all(status.digest is not None for status in statuses.values()):
        return False
    moving = [status.version for status in statuses.values() if status.quorum]
    common = max(moving) + ahead if moving else None
    wanted = {
        node: common if common is not None and status.quorum else status.version
        for node, status in statuses.items()
    }
    _run_all(list(wanted), lambda node: node.ask(wanted[node]), end)
    return True


def _run_all(nodes: Sequence[_NodeQuestion], call: Callable[[_NodeQuestion], None], until: float) -> None:
    """Run the call for each node in a thread of its own; return when all have ended, or at that time."""
    for node in nodes:
        node.start(call)
    for node in nodes:
        node.wait(until)


class _NodeQuestion:
    """One node that is asked, and its last answer; one call runs at a time."""

    def __init__(self, node: Node, service: str, credentials: Credentials, timeout_seconds: float) -> None:
        self.answer = Answer(node, reason=f"no answer within {timeout_seconds:g} s")
        """The last one so far."""
        self._node = node
        self._service = service
        self._credentials = credentials
        self._timeout_seconds = timeout_seconds
        self._client: client.Client | None = None
        self._done = threading.Event()
        self._released = False

    def __repr__(self) -> str:
        return f"<_NodeQuestion {self._node.name} {'idle' if self.is_idle else 'asking'}>"

    @property
    def is_idle(self) -> bool:
        """The last call has ended."""
        return self._done.is_set()

    def start(self, call: Callable[[_NodeQuestion], None]) -> None:
        self._done.clear()
        threading.Thread(target=self._run, args=(call,), name=f"ask-{self._node.name}", daemon=True).start()

    def wait(self, until: float) -> None:
        self._done.wait(max(0.0, until - time.monotonic()))

    def release(self) -> None:
        """Ask nothing more. A call that still runs may take its time."""
        self._released = True
        if self.is_idle:  # else the thread closes the connection
            self._close()

    def begin(self) -> None:
        """Connect, and ask for a status without a digest."""
        self._client = client.reach(self._node, self._service, self._timeout_seconds, self._credentials)
        self._client.timeout = self._timeout_seconds
        self.ask(None)

    def ask(self, digest_at: int | None) -> None:
        assert self._client is not None
        status = self._client.status(StatusQuery(digest_at))
        before = self.answer.status
        if status.digest is not None or before is None or before.digest is None:
            self.answer = Answer(self._node, status, digest_at)

    def _run(self, call: Callable[[_NodeQuestion], None]) -> None:
        try:
            call(self)
        except RefusedError as error:
            self._fail("refused", error)
        except ProtocolError as error:
            self._fail("garbled", error)
        except PeerError as error:
            self._fail("unreachable", error)
        finally:
            self._done.set()
            if self._released:
                self._close()

    def _fail(self, failure: Failure, error: PeerError) -> None:
        self.answer = Answer(self._node, failure=failure, reason=str(error))

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()

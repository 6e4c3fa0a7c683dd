"""The Raft group on an event loop: ticks when something is due, and proposes for coroutines.

The decisions are made in `group`; this is their clockwork.

Everything happens on the event loop's thread. A thread of its own would share the interpreter with the loop
and the state with queries, so that each apply and each frame of an answer would need a lock, while without
one what can hold a heartbeat back is short. Measured with 100,000 connections of 1,000 processes in the
state, on one busy core: encoding a checkpoint 10 ms, the longest stretch of a full query 30 ms, a batch of 2
MB 30 ms. Longer: loading a checkpoint (100 ms, on a follower that has no state yet) and one process that
reports 100,000 connections at once (180 ms); a follower without a heartbeat waits for at least 600 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from connmon.cluster.raft.applier import ApplyError
from connmon.cluster.raft.follower import Store
from connmon.cluster.raft.group import RaftGroup
from connmon.cluster.raft.settings import RaftSettings
from connmon.cluster.raft.status import Status
from connmon.cluster.raft.transport import Peers
from connmon.cluster.state.machine import Outcome, StateMachine
from connmon.protocol.batch import Batch

__all__ = ["ApplyError", "Replica"]


class _NoCarrier:
    """The carrier of a group of one."""

    def send(self, name: str, message: object) -> bool:
        return False

    def room(self, name: str) -> bool:
        return False


class Replica:
    """This node's member of the Raft group of `service`.

    `start`, `propose` and `close` are called on one running event loop. `peers` connects it with the other
    nodes; None: there are none. `journal` and `store` as for RaftGroup.
    """

    def __init__(
        self,
        service: str,
        node: str,
        state: StateMachine,
        *,
        peers: Peers | None = None,
        journal: object | None = None,
        store: Store | None = None,
        settings: RaftSettings | None = None,
        on_applied: Callable[[Batch, Outcome | None], None] | None = None,
        on_rebuilt: Callable[[], None] | None = None,
    ) -> None:
        self.service = service
        self.node = node
        self.peers = peers
        self.on_applied = on_applied
        """Called after each batch; with None if the state could not apply it."""
        self.on_rebuilt = on_rebuilt
        """Called after the state was replaced by another object."""
        self._journal = journal
        self._store = store
        self._settings = settings or RaftSettings()
        self._state = state
        """As long as there is no group."""
        self._group: RaftGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Replica {self.service}/{self.node} {self._group!r}>"

    @property
    def state(self) -> StateMachine:
        """The state as of the last applied batch; another object after a checkpoint was loaded."""
        return self._state if self._group is None else self._group.state

    @property
    def status(self) -> Status:
        return Status() if self._group is None else self._group.status

    def start(self) -> None:
        """Join the group and begin to tick. A group of one has its leader within 0.3 s.

        Raises OSError and ProtocolError if what was kept on disk cannot be read.
        """
        if self._group is not None:
            raise RuntimeError("the replica has been started already")
        self._group = RaftGroup(
            self.node,
            () if self.peers is None else self.peers.names,
            self._state,
            _NoCarrier() if self.peers is None else self.peers,
            journal=self._journal,
            store=self._store,
            settings=self._settings,
            on_applied=self._was_applied,
            on_rebuilt=self._was_rebuilt,
        )
        if self.peers is not None:
            self.peers.start(self._group, self._wake)
        self._beat()

    async def propose(self, batch: Batch) -> Outcome:
        """Have the group apply `batch`; return the result of applying it here.

        Waits as long as it takes: for a leader, for a quorum. Batches go one after the other. Raises
        ApplyError if the state could not apply it.
        """
        async with self._turn:
            if self._group is None:
                raise RuntimeError("the replica has not been started")
            applied: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

            def done(result: Outcome | ApplyError) -> None:
                if not applied.done():
                    if isinstance(result, ApplyError):
                        applied.set_exception(result)
                    else:
                        applied.set_result(result)

            self._group.propose(batch, done)
            self._group.tick()
            self._wake()
            try:
                return await applied
            finally:
                if self._group is not None:
                    self._group.give_up()

    def close(self) -> None:
        """Leave the group. The caller cancels what is still being proposed."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None
        group, self._group = self._group, None
        if group is not None:
            self._state = group.state
            group.member.step_down()
            if self.peers is not None:
                self.peers.close()
            group.close()

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._settings.tick_seconds, self._beat)
        self._tick()

    def _wake(self) -> None:
        """Tick before the loop waits for anything again."""
        if self._soon is None and self._group is not None:
            self._soon = asyncio.get_running_loop().call_soon(self._tick_soon)

    def _tick_soon(self) -> None:
        self._soon = None
        self._tick()

    def _tick(self) -> None:
        if self._group is not None:
            self._group.tick()

    # The callbacks may be replaced while the group runs.

    def _was_applied(self, batch: Batch, outcome: Outcome | None) -> None:
        if self.on_applied is not None:
            self.on_applied(batch, outcome)

    def _was_rebuilt(self) -> None:
        if self.on_rebuilt is not None:
            self.on_rebuilt()

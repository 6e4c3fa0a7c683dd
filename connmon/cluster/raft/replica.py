"""The Raft group on an event loop: ticks when something is due, and proposes for coroutines.

What is decided is decided in `group` and `raft`; this is their clockwork.

Everything happens on the event loop's thread. A thread of its own would share the interpreter with
the loop and the state with queries, so that each apply and each frame of an answer would need a
lock, while what can hold a heartbeat back is short without one. Measured with 100,000 connections
of 1,000 processes in the state, on one busy core: a dump for another node 10 ms, the longest stretch of a
full query 30 ms, a batch of 2 MB 30 ms. Longer: taking a snapshot in (100 ms, on a follower that
has none) and one process that reports 100,000 connections at once (180 ms); a follower without a
heartbeat waits for at least 600 ms.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from connmon.cluster.raft.core import Store
from connmon.cluster.raft.group import ApplyError, Group, GroupRole, Status
from connmon.protocol.batch import Batch

if TYPE_CHECKING:
    from connmon.cluster.raft.transport import Peers
    from connmon.cluster.state.machine import Outcome, State

__all__ = ["ApplyError", "GroupRole", "Replica", "Status"]

#: Seconds between two ticks while nothing happens.
TICK: Final = 0.05


class _Nobody:
    """The carrier of a group of one."""

    def send(self, name: str, message: object) -> bool:
        return False

    def room(self, name: str) -> bool:
        return False


class Replica:
    """This node's member of the Raft group of `service`.

    `start`, `propose` and `close` are called on one running event loop. `peers` connects it with
    the other nodes; None: there are none. `journal` and `store` as for Group.
    """

    def __init__(
        self,
        service: str,
        node: str,
        state: State,
        *,
        peers: Peers | None = None,
        journal: object | None = None,
        store: Store | None = None,
        on_applied: Callable[[Batch, Outcome | None], None] | None = None,
        on_rebuilt: Callable[[], None] | None = None,
    ) -> None:
        self.service = service
        self.node = node
        self.peers = peers
        self.on_applied = on_applied
        """Called after each batch; with None where the state could not apply it."""
        self.on_rebuilt = on_rebuilt
        """Called after the state was replaced by another object."""
        self._initial = state
        self._make = functools.partial(
            Group,
            service,
            node,
            () if peers is None else peers.names,
            state,
            _Nobody() if peers is None else peers,
            journal=journal,
            store=store,
            on_applied=self._was_applied,
            on_rebuilt=self._was_rebuilt,
        )
        self._group: Group | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._turn = asyncio.Lock()

    # --- what it knows ---

    @property
    def state(self) -> State:
        """The state as of the last applied batch; another object after a snapshot was loaded."""
        return self._initial if self._group is None else self._group.state

    @property
    def leader(self) -> str | None:
        """The leader's name as far as known here."""
        return None if self._group is None else self._group.leader

    @property
    def is_leader(self) -> bool:
        return self._group is not None and self._group.is_leader

    @property
    def quorum(self) -> bool:
        """Whether what this node shows is what a majority has agreed on, up to a moment ago."""
        return self._group is not None and self._group.quorum

    @property
    def term(self) -> int:
        return 0 if self._group is None else self._group.term

    @property
    def stale(self) -> float:
        """Seconds since the last batch was applied here; since the start where there was none."""
        return 0.0 if self._group is None else self._group.stale

    @property
    def lag(self) -> int:
        """How many entries the leader had committed, when last heard of, that are not applied here."""
        return 0 if self._group is None else self._group.raft.lag

    @property
    def status(self) -> Status:
        if self._group is None:
            return Status("candidate", None, 0, 0, 0, False, 0.0, {}, 0)
        return self._group.status

    @property
    def log_entries(self) -> int:
        """How many commands the log holds."""
        return 0 if self._group is None else self._group.raft.log_entries

    # --- what it does ---

    def start(self) -> None:
        """Join the group and begin to tick. A group of one has its leader within 0.3 s.

        Raises OSError and ProtocolError where what was kept on disk cannot be read.
        """
        if self._group is not None:
            raise RuntimeError("the replica has been started already")
        self._group = self._make()
        if self.peers is not None:
            self.peers.start(self._group, self._wake)
        self._beat()

    async def propose(self, batch: Batch) -> Outcome:
        """Have the group apply `batch`; return what applying it here brought.

        Waits as long as it takes: for a leader, for a quorum. Batches go one after the other.
        Raises ApplyError where the state could not apply it.
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
        """Leave the group. What is still being proposed is to be cancelled by its caller."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None
        group, self._group = self._group, None
        if group is not None:
            self._initial = group.state
            group.raft.step_down()
            if self.peers is not None:
                self.peers.close()
            group.close()

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK, self._beat)
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

    def _was_applied(self, batch: Batch, outcome: Any) -> None:
        if self.on_applied is not None:
            self.on_applied(batch, outcome)

    def _was_rebuilt(self) -> None:
        if self.on_rebuilt is not None:
            self.on_rebuilt()

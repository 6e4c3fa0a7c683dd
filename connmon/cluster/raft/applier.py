"""The state, and the batch that this node proposes: what the group's log is applied to.

Knows nothing of Raft. The rules kept here:

- One batch in flight. It is proposed again, with the same number, on any error and after `repeat_seconds`
  until it has been applied here: an answer may never come, and an error does not mean "not applied". The
  state ignores a batch that it has already.
- Nothing raises into the log: what is applied and raises is logged and passed to the proposer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from connmon.cluster.raft.settings import RaftSettings
from connmon.cluster.state.machine import Outcome, StateMachine
from connmon.errors import ConnmonError
from connmon.protocol.batch import Batch, PackedBatch

logger = logging.getLogger(__name__)


class ApplyError(ConnmonError):
    """The state could not apply a batch. That is a bug; it is logged, and the group goes on."""


class Proposal:
    """The batch that is being proposed."""

    def __init__(self, batch: Batch, done: Callable[[Outcome | ApplyError], None], now: float) -> None:
        self.boot, self.number = batch.boot, batch.number
        self.data = msgspec.msgpack.encode(batch)
        self.done = done
        self.due = now
        """When it is to be proposed (again)."""
        self.attempt = 0

    def __repr__(self) -> str:
        return f"<Proposal of batch {self.number} attempt={self.attempt}>"


class Applier:
    """The state of one node. Times are by `clock`, which is monotonic, in seconds."""

    def __init__(
        self,
        node: str,
        state: StateMachine,
        settings: RaftSettings,
        clock: Callable[[], float],
        on_applied: Callable[[Batch, Outcome | None], None] | None = None,
        on_rebuilt: Callable[[], None] | None = None,
    ) -> None:
        self.node = node
        self.state = state
        """As of the last applied batch; another object after a checkpoint was loaded."""
        self.moved = False
        """A batch was applied, or a checkpoint loaded, since the start (over)."""
        self._settings = settings
        self._clock = clock
        self._on_applied = on_applied
        """Called after each batch; with None if the state could not apply it."""
        self._on_rebuilt = on_rebuilt
        """Called after the state was replaced: by a checkpoint, or by nothing."""
        self._decoder = msgspec.msgpack.Decoder(PackedBatch)
        self._applied_at = clock()
        self._proposal: Proposal | None = None

    def __repr__(self) -> str:
        return f"<Applier {self.node} version={self.state.version} {self._proposal!r}>"

    def stale(self, now: float) -> float:
        """Return the seconds since the last batch was applied here; since the start if there was none."""
        return max(0.0, now - self._applied_at)

    # --- proposing ---

    def propose(self, batch: Batch, done: Callable[[Outcome | ApplyError], None]) -> None:
        """Have `due` return the batch until it is applied; `done` is called once with the result of that."""
        if self._proposal is not None:
            raise RuntimeError(f"batch {self._proposal.number} is still being proposed")
        self._proposal = Proposal(batch, done, self._clock())

    def give_up(self) -> None:
        """Propose no more what is being proposed; it may still be applied."""
        self._proposal = None

    def due(self, now: float) -> tuple[bytes, Callable[[object, int], None]] | None:
        """Return what is to be proposed now, and what to call with the group's result and error (0: none)."""
        proposal = self._proposal
        if proposal is None or now < proposal.due:
            return None
        proposal.attempt += 1
        proposal.due = now + self._settings.repeat_seconds
        attempt = proposal.attempt

        def answered(_result: object, error: int) -> None:
            # `apply` notices success, also that of an earlier attempt.
            if error and self._proposal is proposal and proposal.attempt == attempt:
                proposal.due = min(proposal.due, self._clock() + self._settings.retry_seconds)

        return proposal.data, answered

    # --- applying ---

    def apply(self, data: bytes) -> None:
        """Apply one encoded batch. Never raises."""
        try:
            batch = self._decoder.decode(data)
        except Exception:
            logger.exception("a replicated command of %d bytes cannot be read; it is skipped", len(data))
            return
        self._applied_at = self._clock()
        self.moved = True
        outcome: Outcome | None = None
        try:
            outcome = self.state.apply(batch)
        except Exception:
            logger.exception("batch %d of node %r cannot be applied; it is skipped", batch.number, batch.node)
        try:
            self._finish(batch, outcome)
            if self._on_applied is not None:
                self._on_applied(batch, outcome)
        except Exception:
            logger.exception("what follows batch %d of node %r has failed", batch.number, batch.node)

    def _finish(self, batch: Batch, outcome: Outcome | None) -> None:
        """Call `done` of the proposal if this was its batch."""
        proposal = self._proposal
        if proposal is None or (batch.boot, batch.number) != (proposal.boot, proposal.number):
            return
        self._proposal = None
        if outcome is None:
            proposal.done(ApplyError(f"batch {batch.number} of node {self.node!r} could not be applied"))
        else:
            proposal.done(outcome)

    def begin(self, name: str) -> None:
        """Name the state after the leader's term that begins. Never raises.

        Where nodes lose their memory, a leader may begin with less than another replica had; versions can be
        compared only where what has been led by the same leader is the same.
        """
        self.state.epoch = name

    # --- checkpoints ---

    def encode(self) -> bytes:
        """Return the state, encoded."""
        return self.state.encode()

    def load(self, data: bytes) -> None:
        """Become the state that was encoded. Raises ProtocolError."""
        self._replace(self.state.replacement(data))
        self._applied_at = self._clock()
        self._rebuilt(moved=True)

    def forget(self) -> None:
        """Become empty."""
        self._replace(self.state.replacement())
        self._rebuilt(moved=False)

    def _replace(self, state: StateMachine) -> None:
        state.judge.judge_as(self.state.judge)
        self.state = state

    def _rebuilt(self, moved: bool) -> None:
        self.moved = moved
        if self._proposal is not None:
            self._proposal.due = self._clock()  # it may be in the state already, which only an attempt shows
        if self._on_rebuilt is not None:
            self._on_rebuilt()

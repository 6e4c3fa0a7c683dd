"""Who leads: pysyncobj's elections, with a question before them.

- A member asks first whether it would be voted for (pre-vote), so that one that comes back, or
  hears nobody, cannot unseat a leader: without it the term that it has counted up meanwhile does.
- A member that has forgotten whom it has voted for votes for nobody for `MAX_TIMEOUT`.
- A vote counts once. A leader of an earlier term is told of the later one, which it may not hear
  of otherwise: nobody stands for election against a leader that others hear.
"""

from __future__ import annotations

import random
from typing import Any, Final

from connmon.cluster.raft import member, messages
from connmon.cluster.raft.member import MIN_TIMEOUT, Member

#: Seconds that a member has to win an election, before one that would vote for it stands itself.
TURN: Final = 0.2


class Elections(Member):
    """How a member becomes the leader, and ceases to be it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._round = 0
        self._round_at = float("-inf")
        self._voters: tuple[int, set[str]] = (0, set())
        """In which term who has voted for this member."""

    def _elect(self, now: float) -> None:
        """Ask whether an election could be won, where no leader has been heard of for too long."""
        if self.is_leader or self._transfer or not self._nodes or self._deadline >= now:
            return
        self._deadline = now + self._random_timeout()
        if self._leader is not None:
            self._lose_leader()
        if now < self._quiet_until:
            self._deadline = self._quiet_until + self._heartbeat * 3 * random.random()
            return
        self._round += 1
        self._round_at = now
        self._willing = {self.name}
        for name in sorted(self._connected):
            self._carrier.send(name, messages.Ask(self._round, self._log[-1][2], self.last))

    def _asked(self, name: str, message: messages.Ask) -> None:
        now = member.clock()
        led = (self._leader is not None or self.is_leader) and now - self.contact < MIN_TIMEOUT
        if led and not self.is_leader and str(self._leader.id) not in self._connected:
            led = False
        mine, its = (self._log[-1][2], self.last), (message.last_term, message.last)
        if led or now < self._quiet_until or its < mine:
            return
        if self._willing is not None and now - self._round_at < TURN and its == mine and self.name < name:
            return  # both have asked at once: the first by name has its turn, lest nobody wins
        self._willing = None
        self._deadline = max(self._deadline, now + TURN)
        self._carrier.send(name, messages.Would(message.round))

    def _would(self, name: str, message: messages.Would) -> None:
        if self._willing is None or message.round != self._round or self.is_leader:
            return
        self._willing.add(name)
        if 2 * len(self._willing) > len(self._nodes) + 1:
            self._willing = None
            self._deadline = float("-inf")
            self._run()

    def _vote_requested(self, node: Any, message: messages.RequestVote) -> None:
        if member.clock() < self._quiet_until:
            return
        if message.term < self._term:
            self._carrier.send(node.id, messages.Stale(self._term))
            return
        self._tell(
            node,
            type="request_vote",
            term=message.term,
            last_log_term=message.last_term,
            last_log_index=message.last,
        )

    def _voted(self, node: Any, message: messages.Vote) -> None:
        term, voters = self._voters
        if term != self._term:
            voters = set()
            self._voters = self._term, voters
        if message.term == self._term and node.id not in voters:
            voters.add(node.id)
            self._tell(node, type="response_vote", term=message.term)

    def _stale(self, term: int) -> None:
        """There is a later term than the one in which this node leads or stands for election."""
        if term > self._term:
            self._become_follower(term)

    def _hear_majority(self, now: float) -> None:
        """Note when a majority, this leader among it, was last heard of."""
        answers = sorted((self._answered[node] for node in self._nodes.values()), reverse=True)
        needed = (len(self._nodes) + 1) // 2
        self.contact = answers[needed - 1] if needed else now

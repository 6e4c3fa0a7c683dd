"""Who leads: the questions before pysyncobj's elections. No I/O, no clock.

- A member asks first whether it would be voted for (pre-vote), so that one that comes back, or hears nobody,
  cannot unseat a leader: otherwise the term that it has counted up meanwhile does.
- A member that has forgotten its vote votes for nobody for `election_max_seconds`.
- A vote counts once. A leader of an earlier term is sent the later one, which it may not hear of otherwise:
  nobody stands for election against a leader that others hear.
- A tick that comes late has been delayed together with the messages of others: no election before those
  were received.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Set
from typing import Protocol

from connmon.cluster.raft.log import Log
from connmon.cluster.raft.messages import Ask, RequestVote, Stale, Vote, Would
from connmon.cluster.raft.settings import RaftSettings

logger = logging.getLogger(__name__)


class Voter(Protocol):
    """What an election needs of its member."""

    name: str
    log: Log
    deadline: float

    @property
    def others(self) -> tuple[str, ...]: ...
    @property
    def connected(self) -> Set[str]: ...
    @property
    def term(self) -> int: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def transferring(self) -> bool: ...
    def random_timeout(self) -> float: ...
    def lose_leader(self) -> None: ...
    def fail_proposals(self) -> None: ...
    def become_follower(self, term: int) -> None: ...
    def stand_for_election(self) -> None: ...
    def receive(self, name: str, message: RequestVote | Vote, /) -> None: ...


class Election:
    """How a member becomes the leader, and ceases to be it. Times are by one monotonic clock, in seconds."""

    def __init__(self, member: Voter, settings: RaftSettings, now: float, forgot_vote: bool) -> None:
        self._member = member
        self._settings = settings
        self.contact = float("-inf")
        """When the leader was last heard of; on the leader itself, a majority of the others."""
        self._abstains_until = now
        """Until then this member votes for nobody, and does not stand for election."""
        self._round = 0
        self._round_at = float("-inf")
        self._willing: set[str] | None = None
        """Who would vote for this member in the present round; None: it is not asking."""
        self._voters: tuple[int, set[str]] = (0, set())
        """In which term who has voted for this member."""
        self._ticked: float | None = None
        self._stalled_at = float("-inf")
        if forgot_vote:
            self.abstain(now)

    def __repr__(self) -> str:
        asking = "" if self._willing is None else f" asking, willing: {sorted(self._willing)}"
        return f"<Election round={self._round}{asking}>"

    # --- what is heard of a leader ---

    def heard_leader(self, now: float) -> None:
        self._willing = None
        self.contact = now

    def heard_majority(self, answers: list[float], now: float) -> None:
        """Note when a majority, this leader among it, last answered. `answers`: when each other one did."""
        needed = (len(answers) + 1) // 2
        self.contact = sorted(answers, reverse=True)[needed - 1] if needed else now

    def lost_link(self, name: str, now: float) -> None:
        """Stand for election soon if that was the leader; its answers to proposals will never come."""
        if self._member.leader == name:
            self._member.fail_proposals()
            shortest, longest = self._settings.orphaned_min_seconds, self._settings.orphaned_max_seconds
            soon = now + shortest + (longest - shortest) * random.random()
            self._member.deadline = min(self._member.deadline, soon)

    def abstain(self, now: float) -> None:
        """Vote for nobody for a while: this member has forgotten its vote."""
        self._abstains_until = now + self._settings.election_max_seconds

    def awake(self, now: float) -> bool:
        """Whether messages are news. Those that waited while this process stood still are not."""
        return not self._member.others or not (
            self._is_late(now) or now - self._stalled_at < self._settings.stall_seconds
        )

    def _is_late(self, now: float) -> bool:
        return self._ticked is not None and now - self._ticked > self._settings.stall_seconds

    # --- standing for election ---

    def tick(self, now: float) -> Ask | None:
        """Return the question to send to all connected members, if no leader was heard of for too long."""
        member = self._member
        if self._is_late(now) and member.others:
            member.deadline = max(member.deadline, now + self._settings.stall_seconds)
            self._stalled_at = now
        self._ticked = now
        if member.is_leader or member.transferring or not member.others or member.deadline >= now:
            return None
        member.deadline = now + member.random_timeout()
        if member.leader is not None:
            member.lose_leader()
        if now < self._abstains_until:
            member.deadline = self._abstains_until + self._settings.heartbeat_seconds * 3 * random.random()
            return None
        self._round += 1
        self._round_at = now
        self._willing = {member.name}
        logger.debug("no leader heard of in term %d; round %d of asking for votes", member.term, self._round)
        return Ask(self._round, member.log.last_term, member.log.last)

    def asked(self, name: str, message: Ask, now: float) -> Would | None:
        """Return the answer, if this member would vote for that one. Refusals are not sent."""
        member = self._member
        own, theirs = (member.log.last_term, member.log.last), (message.last_term, message.last)
        if self._hears_leader(now) or now < self._abstains_until or theirs < own:
            return None
        turn = self._settings.turn_seconds
        if self._willing is not None and now - self._round_at < turn and theirs == own and member.name < name:
            return None  # both have asked at once: the first by name wins
        self._willing = None
        member.deadline = max(member.deadline, now + turn)
        return Would(message.round)

    def _hears_leader(self, now: float) -> bool:
        member = self._member
        if now - self.contact >= self._settings.election_min_seconds:
            return False
        return member.is_leader or (member.leader is not None and member.leader in member.connected)

    def would(self, name: str, message: Would) -> None:
        """Stand for election once a majority would vote for this member."""
        if self._willing is None or message.round != self._round or self._member.is_leader:
            return
        self._willing.add(name)
        if 2 * len(self._willing) > len(self._member.others) + 1:
            logger.debug(
                "%s would vote for this node: it stands for election", ", ".join(sorted(self._willing))
            )
            self._willing = None
            self._member.stand_for_election()

    # --- votes ---

    def vote_requested(self, name: str, message: RequestVote, now: float) -> Stale | None:
        """Vote, or return the later term that there is. Refusals are not sent."""
        if now < self._abstains_until:
            return None
        if message.term < self._member.term:
            return Stale(self._member.term)
        self._member.receive(name, message)
        return None

    def voted(self, name: str, message: Vote) -> None:
        """Count a vote, once."""
        term, voters = self._voters
        if term != self._member.term:
            voters = set()
            self._voters = self._member.term, voters
        if message.term == self._member.term and name not in voters:
            voters.add(name)
            self._member.receive(name, message)

    def later_term(self, term: int) -> None:
        """Follow: there is a later term than the one in which this node leads or stands for election."""
        if term > self._member.term:
            logger.debug("term %d instead of %d, by another node", term, self._member.term)
            self._member.become_follower(term)

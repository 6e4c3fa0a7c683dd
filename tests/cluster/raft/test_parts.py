"""Election, leader, follower and log alone: each over a member that is a few fields, without pysyncobj."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from connmon.cluster.raft.election import Election
from connmon.cluster.raft.follower import Follower
from connmon.cluster.raft.leader import Leader
from connmon.cluster.raft.log import Checkpoint, Log
from connmon.cluster.raft.messages import (
    NO_OP,
    PART_BYTES,
    Append,
    AppendEntry,
    Ask,
    Install,
    Matched,
    Message,
    RequestVote,
    Stale,
    Vote,
    Would,
    check,
)
from connmon.cluster.raft.settings import RaftSettings
from connmon.errors import ProtocolError

SETTINGS = RaftSettings()


class ListJournal(list[tuple[bytes, int, int]]):
    """A journal in memory (log.LogJournal)."""

    committed = 0

    def add(self, command: bytes, index: int, term: int) -> None:
        self.append((command, index, term))

    def deleteEntriesFrom(self, position: int) -> None:
        del self[position:]

    def deleteEntriesTo(self, position: int) -> None:
        del self[:position]

    def setRaftCommitIndex(self, index: int) -> None:
        self.committed = index


def log_of(*terms: int, first: int = 1) -> Log:
    """Return a log with an entry of each of these terms; the command is b"\\0" and the index."""
    return Log(ListJournal((b"\0%d" % index, index, term) for index, term in enumerate(terms, first)))


@dataclass
class FakeMember:
    """The member of a group of three, as its fields say; `calls` has what was asked of it."""

    name: str = "node1"
    others: tuple[str, ...] = ("node2", "node3")
    connected: frozenset[str] = frozenset({"node2", "node3"})
    log: Log = field(default_factory=lambda: log_of(1, 1, 1))
    term: int = 1
    leader: str | None = None
    is_leader: bool = False
    transferring: bool = False
    deadline: float = 0.0
    commit: int = 1
    applied: int = 1
    calls: list[object] = field(default_factory=list)
    next: dict[str, int] = field(default_factory=dict)

    def random_timeout(self) -> float:
        return 0.7

    def lose_leader(self) -> None:
        self.leader = None
        self.calls.append("lose_leader")

    def fail_proposals(self) -> None:
        self.calls.append("fail_proposals")

    def become_follower(self, term: int) -> None:
        self.term, self.leader, self.is_leader = term, None, False

    def stand_for_election(self) -> None:
        self.calls.append("stand_for_election")

    def receive(self, name: str, message: Message) -> None:
        self.calls.append((name, message))

    def follow(self, name: str, term: int) -> None:
        self.leader, self.term = name, term

    def drop_waiting(self, index: int | None = None) -> None:
        self.calls.append(("drop_waiting", index))

    def next_index(self, name: str) -> int:
        return self.next[name]

    def set_next_index(self, name: str, index: int) -> None:
        self.next[name] = index


# --- election -------------------------------------------------------------------------------


def election(member: FakeMember, now: float = 10.0, forgot_vote: bool = False) -> Election:
    return Election(member, SETTINGS, now, forgot_vote)


def test_a_member_asks_before_it_stands_for_election() -> None:
    """After its deadline it asks; it stands once a majority, itself included, would vote for it."""
    member = FakeMember(deadline=11.0)
    voter = election(member)
    assert voter.tick(10.9) is None
    assert voter.tick(11.1) == Ask(1, 1, 3)
    assert member.deadline == pytest.approx(11.8)
    voter.would("node2", Would(7))
    assert not member.calls
    voter.would("node2", Would(1))
    voter.would("node3", Would(1))
    assert member.calls == ["stand_for_election"]


def test_a_leader_that_is_heard_is_not_unseated() -> None:
    """A member that hears its leader would not vote for another one; without a link to it, it would."""
    member = FakeMember(leader="node2")
    voter = election(member)
    voter.heard_leader(10.0)
    assert voter.asked("node3", Ask(1, 1, 9), 10.5) is None
    assert voter.asked("node3", Ask(1, 1, 9), 10.7) == Would(1)
    voter.heard_leader(10.7)
    member.connected = frozenset({"node3"})
    assert voter.asked("node3", Ask(2, 1, 9), 10.8) == Would(2)


@pytest.mark.parametrize(
    ("ask", "granted"), [((1, 3), True), ((2, 1), True), ((1, 2), False), ((0, 9), False)]
)
def test_a_shorter_log_gets_no_vote(ask: tuple[int, int], granted: bool) -> None:
    """Only a member whose last entry is of a later term, or of the same and as far, would be voted for."""
    answer = election(FakeMember()).asked("node2", Ask(1, *ask), 10.5)
    assert answer == (Would(1) if granted else None)


def test_of_two_that_ask_at_once_the_first_by_name_wins() -> None:
    """The first one keeps its turn; the second one gives way."""
    for name, gives_way in (("node1", False), ("node3", True)):
        member = FakeMember(name=name, others=("node2", "node4"))
        voter = election(member)
        assert voter.tick(10.0) is not None
        assert (voter.asked("node2", Ask(1, 1, 3), 10.1) is not None) is gives_way


def test_a_member_that_forgot_its_vote_abstains() -> None:
    """For the longest election timeout it neither votes nor stands; then it does."""
    member = FakeMember()
    voter = election(member, forgot_vote=True)
    assert voter.asked("node2", Ask(1, 9, 9), 11.1) is None
    assert voter.vote_requested("node2", RequestVote(2, 9, 9), 11.1) is None
    assert voter.tick(11.1) is None
    assert member.deadline >= 11.2 and not member.calls
    assert voter.vote_requested("node2", RequestVote(2, 9, 9), 11.3) is None
    assert member.calls == [("node2", RequestVote(2, 9, 9))]


def test_a_vote_counts_once_and_a_candidate_of_an_earlier_term_gets_the_later_one() -> None:
    """Votes of other terms and second votes are dropped."""
    member = FakeMember(term=3)
    voter = election(member)
    for vote in (Vote(2), Vote(3), Vote(3)):
        voter.voted("node2", vote)
    assert member.calls == [("node2", Vote(3))]
    assert voter.vote_requested("node2", RequestVote(2, 9, 9), 10.0) == Stale(3)
    voter.later_term(2)
    assert member.term == 3
    voter.later_term(5)
    assert member.term == 5


def test_a_late_tick_holds_no_election_at_once() -> None:
    """After this process stood still, it first hears what others sent meanwhile."""
    member = FakeMember(deadline=10.2)
    voter = election(member)
    voter.tick(10.0)
    assert voter.awake(10.1)
    assert voter.tick(15.0) is None
    assert voter.tick(15.2) is None
    assert not voter.awake(15.2) and voter.awake(15.31)
    assert voter.tick(15.31) is not None


def test_a_follower_whose_link_to_the_leader_breaks_stands_soon() -> None:
    """Its proposals have failed; links to others change nothing."""
    member = FakeMember(leader="node2", deadline=20.0)
    voter = election(member)
    voter.lost_link("node3", 10.0)
    assert (member.deadline, member.calls) == (20.0, [])
    voter.lost_link("node2", 10.0)
    assert 10.05 <= member.deadline <= 10.3
    assert member.calls == ["fail_proposals"]


# --- follower -------------------------------------------------------------------------------


class FakeMachine:
    state: bytes | None = b"old"

    def load(self, data: bytes) -> None:
        if data == b"bad":
            raise ProtocolError("bad")
        self.state = data

    def forget(self) -> None:
        self.state = None


def append(
    previous: int, term: int, *entries: AppendEntry, commit: int = 1, last: int = 9, of: bytes | None = None
) -> Append:
    command = b"\0%d" % previous if of is None else of
    return Append(term, commit, last, previous, 1, check(command), entries)


def test_entries_are_appended_and_only_what_differs_is_deleted() -> None:
    """What the follower has already stays; what differs after that is replaced."""
    member = FakeMember(log=log_of(1, 1, 1, 1))
    follower = Follower(member, FakeMachine(), None)
    message = append(1, 2, AppendEntry(1, b"\x002"), commit=2)
    assert follower.follow("node2", message) is None
    assert follower.append("node2", message) == Matched(2, 3, False, True)
    assert (member.log.last, member.commit, follower.lag) == (4, 2, 1)
    assert follower.append("node2", append(2, 2, AppendEntry(2, b"\0new"))) == Matched(2, 4, False, True)
    assert [member.log.entry(index).term for index in range(1, 4)] == [1, 1, 2]
    assert member.log.last == 3


def test_an_append_that_does_not_fit_is_answered_with_where_to_go_on() -> None:
    """Beyond the log, or after an entry that differs: the leader goes back to what is committed here."""
    member = FakeMember(commit=2)
    follower = Follower(member, FakeMachine(), None)
    assert follower.append("node2", append(7, 1)) == Matched(1, 3, True, False)
    assert follower.append("node2", append(3, 1, of=b"\0other")) == Matched(1, 3, True, False)
    assert member.log.last == 2


def test_an_earlier_leader_is_sent_the_later_term() -> None:
    """And so is a second leader of this term, which then ends for both."""
    member = FakeMember(term=3)
    follower = Follower(member, FakeMachine(), None)
    assert follower.follow("node2", append(1, 2)) == Stale(3)
    member.is_leader = True
    assert follower.follow("node2", append(1, 3)) == Stale(4)
    assert not member.is_leader and member.leader is None


def test_a_leader_that_lacks_what_was_committed_makes_the_follower_start_over() -> None:
    """The group has forgotten it: state and log are dropped."""
    member, machine = FakeMember(commit=3, applied=3), FakeMachine()
    follower = Follower(member, machine, None)
    follower.follow("node2", append(1, 2, last=2))
    assert machine.state is None and follower.overwritten == 1
    assert (member.log.first, member.log.last, member.applied, member.commit) == (1, 1, 1, 1)
    assert member.log.entry(1).command == NO_OP


def install(offset: int, data: bytes, size: int = 6) -> Install:
    return Install(2, 9, 8, 1, b"\x008", size, offset, data)


def test_a_checkpoint_is_loaded_when_its_last_piece_is_there() -> None:
    """A piece that does not follow is ignored; a checkpoint that cannot be read changes nothing."""
    member, machine = FakeMember(term=2), FakeMachine()
    follower = Follower(member, machine, None)
    assert follower.install("node2", install(3, b"ond")) == []
    assert follower.install("node2", install(0, b"sec")) == [Matched(2, 2, False, False)]
    assert follower.install("node3", install(3, b"xxx")) == []
    answers = follower.install("node2", install(3, b"ond"))
    assert answers == [Matched(2, 2, False, False), Matched(2, 9, False, True)]
    assert machine.state == b"second"
    assert (member.applied, member.commit, member.log.first, member.log.last) == (8, 8, 8, 8)


def test_a_checkpoint_that_cannot_be_read_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and not confirmed."""
    member, machine = FakeMember(term=2), FakeMachine()
    follower = Follower(member, machine, None)
    assert follower.install("node2", install(0, b"bad", 3)) == [Matched(2, 2, False, False)]
    assert machine.state == b"old" and member.log.last == 3
    assert "the checkpoint of node node2 cannot be used: bad" in caplog.text


# --- leader ---------------------------------------------------------------------------------


class FakeCarrier:
    """Keeps what is sent; `rooms` says how often there is room."""

    def __init__(self, rooms: int = 100) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.rooms = rooms

    def send(self, name: str, message: Message) -> bool:
        self.sent.append((name, message))
        return True

    def room(self, name: str) -> bool:
        self.rooms -= 1
        return self.rooms >= 0


def leader(member: FakeMember, carrier: FakeCarrier, state: bytes = b"state", **settings: int) -> Leader:
    return Leader(
        member, carrier, RaftSettings(**settings), lambda: Checkpoint(member.applied, 1, b"\0c", state)
    )


def test_a_follower_gets_the_entries_that_it_lacks() -> None:
    """In messages of limited size, after the entry that it has; then heartbeats only."""
    member = FakeMember(is_leader=True, log=log_of(1, 1, 1, 1, 1), next={"node2": 2})
    carrier = FakeCarrier()
    sender = leader(member, carrier, append_entries=2)
    sender.feed("node2")
    messages = [message for _, message in carrier.sent]
    assert [(m.previous, len(m.entries)) for m in messages if isinstance(m, Append)] == [(1, 2), (3, 2)]
    assert member.next == {"node2": 6}
    carrier.sent.clear()
    sender.feed("node2")
    assert carrier.sent == [("node2", Append(1, 1, 5, 5, 1, check(b"\x005"), ()))]


def test_a_link_without_room_carries_a_heartbeat() -> None:
    """Entries wait until the link takes them."""
    member, carrier = FakeMember(is_leader=True, next={"node2": 2}), FakeCarrier(rooms=0)
    leader(member, carrier).feed("node2")
    ((_, message),) = carrier.sent
    assert isinstance(message, Append) and not message.entries
    assert member.next == {"node2": 2}


def test_a_follower_that_is_too_far_behind_gets_a_checkpoint() -> None:
    """In pieces as the link takes them; then the entries after it."""
    member = FakeMember(is_leader=True, log=log_of(1, 1, 1, first=5), applied=6, next={"node2": 2})
    state = b"x" * (PART_BYTES + 10)
    carrier = FakeCarrier(rooms=1)
    sender = leader(member, carrier, state)
    sender.feed("node2")
    carrier.rooms = 100
    sender.feed("node2")
    pieces = [message for _, message in carrier.sent if isinstance(message, Install)]
    assert b"".join(piece.data for piece in pieces) == state
    assert [(piece.index, piece.offset, piece.size) for piece in pieces] == [
        (6, 0, len(state)),
        (6, PART_BYTES, len(state)),
    ]
    _, last = carrier.sent[-1]
    assert isinstance(last, Append) and (last.previous, len(last.entries)) == (6, 1)


def test_an_answer_to_an_earlier_term_is_ignored() -> None:
    """So is one that confirms more than the leader has."""
    member = FakeMember(is_leader=True, term=2)
    sender = leader(member, FakeCarrier())
    for answer in (Matched(1, 2, False, True), Matched(2, 5, False, True), Matched(2, 4, False, True)):
        sender.matched("node2", answer)
    assert member.calls == [("node2", Matched(2, 4, False, True))]


# --- log ------------------------------------------------------------------------------------


def test_a_cut_keeps_what_slow_members_need() -> None:
    """Up to so many entries, and so many bytes of commands, before the last one applied."""
    log = log_of(*[1] * 9)
    assert log.cut_at(8, 3, 1000) == (5, 6)
    assert log.cut_at(8, 100, 1000) == (1, 14)
    assert log.cut_at(8, 100, 5) == (6, 6)
    log.delete_before(5)
    assert (log.first, log.last, len(log), 4 in log, 5 in log) == (5, 9, 5, False, True)

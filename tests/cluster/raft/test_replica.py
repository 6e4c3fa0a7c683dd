"""A replica applies each batch once, in order, and never gets stuck; pysyncobj unpickles no code."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pysyncobj.journal
import pysyncobj.node
import pysyncobj.pickle
import pysyncobj.syncobj
import pytest

from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.raft.replica import ApplyError, Replica
from connmon.cluster.raft.settings import RaftSettings
from connmon.protocol.batch import Batch, Tick
from connmon.protocol.reports import Report
from tests.support.cluster_fakes import FakeState, full
from tests.support.trio import Trio


def batch(number: int, *reports: Report, boot: str = "b") -> Batch:
    return Batch("node1", boot, number, Tick(0.1, 15.0), reports)


def with_replica(
    body: Callable[[Replica, FakeState], Awaitable[None]], settings: RaftSettings | None = None
) -> None:
    """Run `body` with a started replica, for at most 30 s."""

    async def run() -> None:
        inner: Any = FakeState()
        replica = Replica("default", "node1", inner, settings=settings)
        replica.start()
        try:
            await asyncio.wait_for(body(replica, inner), 30)
        finally:
            replica.close()

    asyncio.run(run())


def test_a_batch_is_applied_and_its_outcome_returned() -> None:
    """propose waits for the election and returns the outcome of applying the batch."""

    async def body(replica: Replica, state: FakeState) -> None:
        assert replica.status.leader is None
        assert not replica.status.quorum
        outcome = await replica.propose(batch(1, full("i1")))
        assert outcome.applied
        assert outcome.answers == (("i1", 1, False),)
        assert state.reports == {"i1": 1}
        assert replica.status.leader == "node1"
        assert replica.status.is_leader
        assert replica.status.quorum
        assert replica.status.stale < 30

    with_replica(body)


def test_the_same_batch_again_is_applied_once() -> None:
    """A batch proposed twice under one number changes nothing the second time."""

    async def body(replica: Replica, state: FakeState) -> None:
        await replica.propose(batch(1, full("i1")))
        clock = state.clock
        outcome = await replica.propose(batch(1, full("i1")))
        assert not outcome.applied
        assert state.clock == clock

    with_replica(body)


def test_batches_go_in_order_one_at_a_time() -> None:
    """Batches proposed at the same time are applied one after the other, in the order of the calls."""

    async def body(replica: Replica, state: FakeState) -> None:
        applied_numbers: list[int] = []
        replica.on_applied = lambda applied, outcome: applied_numbers.append(applied.number)
        outcomes = await asyncio.gather(*(replica.propose(batch(n, full("i", n))) for n in range(1, 21)))
        assert applied_numbers == list(range(1, 21))
        assert all(outcome.applied for outcome in outcomes)

    with_replica(body)


def test_a_proposal_that_is_lost_is_repeated() -> None:
    """pysyncobj's callbacks may never come; the batch is proposed again until it is applied."""

    async def body(replica: Replica, state: FakeState) -> None:
        member: Any = replica._group.member  # type: ignore[union-attr]
        real = member.propose
        lost = 0

        def lose(data: bytes, answered: Any) -> None:
            nonlocal lost
            if lost >= 3:
                real(data, answered)
            else:
                lost += 1

        member.propose = lose
        outcome = await replica.propose(batch(1, full("i1")))
        assert lost == 3
        assert outcome.applied

    with_replica(body, RaftSettings(repeat_seconds=0.05))


def test_a_state_that_raises_does_not_stop_the_group(caplog: pytest.LogCaptureFixture) -> None:
    """The bug is logged and raised at the proposer; the batch is not retried, the next one is applied."""

    async def body(replica: Replica, state: FakeState) -> None:
        state.fail_on = "bad"
        with pytest.raises(ApplyError, match="batch 1 of node 'node1'"):
            await replica.propose(batch(1, full("bad")))
        outcome = await replica.propose(batch(2, full("good")))
        assert outcome.applied
        assert state.reports == {"good": 1}

    with_replica(body)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "batch 1 of node 'node1' cannot be applied; it is skipped"
    ]


def test_a_callback_that_raises_does_not_apply_twice(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in on_applied is logged, and the batch counts once."""

    async def body(replica: Replica, state: FakeState) -> None:
        replica.on_applied = lambda applied, outcome: 1 / 0  # type: ignore[assignment]
        await replica.propose(batch(1, full("i1")))
        await replica.propose(batch(2, full("i1", 2)))
        assert state.version == 2

    with_replica(body)
    assert "what follows batch 1" in caplog.text


def test_bytes_that_are_no_batch_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    """A command that cannot be read is logged and skipped by every node alike."""

    async def body(replica: Replica, state: FakeState) -> None:
        await replica.propose(batch(1))
        replica._group.member.propose(b"\x00\xc1garbage", lambda result, error: None)  # type: ignore[union-attr]
        assert (await replica.propose(batch(2))).applied

    with_replica(body)
    assert "cannot be read" in caplog.text


def test_the_log_stays_short_over_5000_commands() -> None:
    """The log is cut every 500 commands, and the state has all 5,000 commands in it."""

    async def body(replica: Replica, state: FakeState) -> None:
        longest = 0
        for number in range(1, 5001):
            await replica.propose(batch(number, full(f"i{number % 7}", number)))
            longest = max(longest, replica.status.log_entries)
        assert state.version == 5000
        assert sorted(state.reports.values()) == list(range(4994, 5001))
        assert longest <= RaftSettings().log_entries + 3

    with_replica(body)


def test_the_log_is_cut_by_size_too() -> None:
    """Large commands do not add up to 500 times their size."""

    async def body(replica: Replica, state: FakeState) -> None:
        longest = 0
        for number in range(1, 201):
            await replica.propose(batch(number, full("i", number, "x" * 2000)))
            longest = max(longest, replica.status.log_entries)
        assert longest < 60

    with_replica(body, RaftSettings(log_bytes=100_000))


class Shelf:
    """A follower.Store in memory."""

    checkpoint: Checkpoint | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def load(self) -> Checkpoint | None:
        return self.checkpoint

    def drop(self) -> None:
        self.checkpoint = None


def test_journal_and_store_bring_the_state_back(tmp_path: Path) -> None:
    """After a crash the state comes back from the checkpoint and the log after it."""
    journal, shelf = str(tmp_path / "journal"), Shelf()

    async def run(numbers: range, until: int) -> FakeState:
        inner: Any = FakeState()
        replica = Replica("default", "node1", inner, journal=journal, store=shelf)
        replica.start()
        try:
            for number in numbers:
                await replica.propose(batch(number, full(f"i{number % 7}", number)))
            while not replica.status.quorum or replica.state.version < until:
                await asyncio.sleep(0.01)
            return replica.state  # type: ignore[return-value]
        finally:
            replica.close()

    before = asyncio.run(run(range(1, 1301), 1300))
    assert shelf.checkpoint is not None
    # The next leader commits again what was not known to be committed.
    after = asyncio.run(run(range(1301, 1302), 1301))
    assert before.version == 1300
    assert sorted(after.reports.values()) == list(range(1295, 1302))
    assert after.clock == pytest.approx(130.1)


def test_another_replica_gets_a_checkpoint() -> None:
    """A node that lacks entries cut off the log gets a checkpoint; one that does not gets the entries."""

    async def body() -> None:
        async with Trio() as trio:
            for number in range(1, 700):
                await trio.replicas["node1"].propose(batch(number, full(f"i{number % 7}", number)))
            trio.stop("node3")
            for number in range(700, 1500):
                await trio.replicas["node1"].propose(batch(number, full(f"i{number % 7}", number)))
            rebuilt: list[str] = []
            trio.start("node3", on_rebuilt=lambda: rebuilt.append("node3"))
            await trio.until(lambda: len(set(map(FakeState.encode, trio.states()))) == 1)
            assert rebuilt == ["node3"]
            assert trio.states()[2].version == 1499

    asyncio.run(asyncio.wait_for(body(), 60))


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    "loads",
    [pysyncobj.pickle.loads, pysyncobj.journal.loads, pysyncobj.syncobj.pickle.loads],
    ids=["pickle", "journal", "syncobj"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_pickle_runs_code(
    loads: Callable[[bytes], object], protocol: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each unpickler of pysyncobj refuses os.system, and does not run it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=r"system is nothing that pysyncobj writes"):
        loads(pickle.dumps(Evil(), protocol))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "builtins.getattr", "_codecs.encode", "pysyncobj.node.TCPNode", "pysyncobj.node.Node"],
)
def test_no_other_name_is_known(name: str) -> None:
    """The unpickler refuses every name, also harmless ones."""
    where, what = name.rsplit(".", 1)
    with pytest.raises(pickle.UnpicklingError):
        pysyncobj.pickle.loads(f"c{where}\n{what}\n.".encode())


def test_what_pysyncobj_writes_is_read_back() -> None:
    """The journal's term, vote and commit index survive a round trip."""
    value = {"currentTerm": 7, "votedForNodeId": "node2", "raftCommitIndex": 1234, "none": None}
    assert pysyncobj.pickle.loads(pysyncobj.pickle.dumps(value)) == value


def test_nothing_of_the_network_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries, commands and checkpoints are applied without an unpickler."""

    def never(*arguments: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads"):
        monkeypatch.setattr(pysyncobj.pickle, name, never)

    async def body() -> None:
        async with Trio() as trio:
            for number in range(1, 20):
                await trio.replicas["node2"].propose(batch(number, full("i", number)))
            await trio.until(lambda: {state.version for state in trio.states()} == {19})

    asyncio.run(asyncio.wait_for(body(), 60))


def test_no_port_is_opened() -> None:
    """A group of one listens nowhere."""
    before = own_ports()

    async def body(replica: Replica, state: FakeState) -> None:
        await replica.propose(batch(1))
        assert own_ports() <= before

    with_replica(body)


def fd_there(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def own_ports() -> set[str]:
    """Return the sockets by which this process can be reached; other tests may have left some."""
    mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_there(fd)}
    listening: set[str] = set()
    for table, reachable in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):  # 0A: listening
        if os.path.exists(f"/proc/net/{table}"):
            with open(f"/proc/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in list(file)[1:]]
            listening.update(f"socket:[{row[9]}]" for row in rows if row[3] == reachable)
    return listening & mine


def test_it_cannot_be_started_twice() -> None:
    """A second start raises RuntimeError."""

    async def body(replica: Replica, state: FakeState) -> None:
        with pytest.raises(RuntimeError):
            replica.start()

    with_replica(body)

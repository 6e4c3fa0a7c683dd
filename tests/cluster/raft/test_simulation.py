"""The simulated cluster: 300 runs with all kinds of faults, each of which can be replayed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import simulation
from tests.support.simulated import Violation

SEEDS = 300
SLICE = 30


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, SLICE))
def test_the_cluster_keeps_its_word(first: int, caplog: pytest.LogCaptureFixture) -> None:
    """One history, no step back, no old view called current; in the end the state is what was reported."""
    caplog.set_level("CRITICAL")
    for seed in range(first, first + SLICE):
        simulation.run(seed)


def test_a_seed_is_a_run(caplog: pytest.LogCaptureFixture) -> None:
    """The same seed gives the same trace whatever the hash seed; another one gives another trace."""
    caplog.set_level("CRITICAL")
    here, _ = simulation.run(7)
    assert simulation.run(7)[0] == here
    assert simulation.run(10)[0] != here
    command = [sys.executable, "-m", "tests.support.simulation", "--seed", "7", "--seeds", "1"]
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert f"trace {here}" in done.stdout


def test_a_violation_is_found(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks work: a node that calls every view current is found."""
    caplog.set_level("CRITICAL")
    monkeypatch.setattr("connmon.cluster.raft.group.RaftGroup.has_quorum", lambda group, now: True)
    with pytest.raises(Violation, match="old"):
        for seed in range(20):
            simulation.run(seed)


def test_a_forgotten_history_comes_back_from_the_applications(caplog: pytest.LogCaptureFixture) -> None:
    """After an empty majority has overwritten a survivor, the present comes back from the applications."""
    caplog.set_level("CRITICAL")
    forgetful = range(2, 600, 3)
    assert any(simulation.run(seed)[1]["overwritten"] for seed in forgetful)

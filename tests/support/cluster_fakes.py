"""A small state for tests of the parts around it: it keeps each instance's last report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from connmon.cluster.state.answer_frames import About
from connmon.cluster.state.contents import Contents
from connmon.cluster.state.figures import RowFigures
from connmon.cluster.state.judging import Judge
from connmon.cluster.state.settings import LIMITS, SETTINGS
from connmon.protocol.batch import Batch
from connmon.protocol.queries import Query
from connmon.protocol.reports import Process, Report, Usage
from connmon.protocol.rows import Figures, ProcessRow, RowKey, Rows
from connmon.protocol.values import Gauges, Peaks, Totals

NOTHING = Figures(0, 0, Gauges(), Totals(), 0, 0, 0, 0, 0.0, None, None, 0.0, None)
PROCESS = Process("ctl1", "nova-api", 1, 0, None, None, None)


def full(instance: str, sequence: int = 1, text: str = "") -> Report:
    """Return a full report; `text` makes it larger."""
    process = msgspec.structs.replace(PROCESS, command=text)
    return Report(instance, sequence, 0, 1.0, Peaks(), process=process)


def change(instance: str, sequence: int) -> Report:
    """Return a report of the changes since the one before."""
    return Report(instance, sequence, sequence - 1, 1.0, Peaks())


class FakeOutcome(NamedTuple):
    version: int
    applied: bool
    answers: tuple[tuple[str, int, bool], ...]


class FakeState:
    """The interface of connmon.cluster.state.machine.StateMachine, with fields that tests read and set."""

    def __init__(self) -> None:
        self.version = 0
        self.epoch = "epoch"
        self.clock = 0.0
        self.groups: dict[RowKey, Any] = {}
        self.processes: dict[str, Any] = {}
        self.limits = LIMITS
        self.forgotten: dict[str, int] = {}
        empty = Contents(SETTINGS)
        self.judge = Judge(empty)
        self.figures = RowFigures(empty, self.judge)
        self.seen: dict[str, tuple[str, int]] = {}
        self.reports: dict[str, int] = {}
        self.chunks = 1
        """In how many frames rows are sent."""
        self.row_text = ""
        """Makes a row larger."""
        self.fail_on: str | None = None
        """The instance whose report raises."""

    def left_out(self) -> dict[str, int]:
        return {}

    def apply(self, batch: Batch) -> FakeOutcome:
        boot, number = self.seen.get(batch.node, ("", 0))
        if boot == batch.boot and number >= batch.number:
            return FakeOutcome(self.version, False, ())
        self.seen[batch.node] = (batch.boot, batch.number)
        self.version += 1
        if batch.tick is not None:
            self.clock += batch.tick.step
        answers = []
        for report in batch.reports:
            if report.instance == self.fail_on:
                raise RuntimeError("a bug in the state")
            known = self.reports.get(report.instance, 0)
            wanted = not report.full and known != report.base
            if not wanted:
                self.reports[report.instance] = report.sequence
            answers.append((report.instance, report.sequence, wanted))
        for departure in batch.departures:
            if self.reports.get(departure.instance, departure.sequence + 1) <= departure.sequence:
                del self.reports[departure.instance]
        return FakeOutcome(self.version, True, tuple(answers))

    def rows(self, query: Query, about: About) -> Iterator[Rows]:
        rows = tuple(
            ProcessRow(
                instance,
                about.node,
                msgspec.structs.replace(PROCESS, command=self.row_text),
                None,
                Usage(),
                "connected",
                msgspec.structs.replace(NOTHING, processes=sequence),
            )
            for instance, sequence in self.reports.items()
        )
        for chunk in range(self.chunks):
            yield Rows(
                *about,
                "epoch",
                self.version,
                self.clock,
                True,
                1,
                1,
                NOTHING,
                rows=rows,
                more=chunk < self.chunks - 1,
            )

    def digest(self) -> str:
        return f"digest at {self.version}"

    def encode(self) -> bytes:
        return msgspec.msgpack.encode((self.version, self.clock, self.seen, self.reports))

    def replacement(self, data: bytes | None = None) -> FakeState:
        return FakeState() if data is None else FakeState.decode(data)

    @classmethod
    def decode(cls, data: bytes) -> FakeState:
        state = cls()
        version, clock, seen, reports = msgspec.msgpack.decode(data)
        state.version, state.clock, state.reports = version, clock, reports
        state.seen = {node: tuple(value) for node, value in seen.items()}
        return state

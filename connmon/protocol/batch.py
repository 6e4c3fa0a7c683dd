"""What nodes replicate: the reports and departures that a node received, as one command. Pure.

Structs are encoded as arrays. A new field goes to the end and has a default.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from connmon.protocol.reports import PackedReport, Report
from connmon.protocol.values import LARGEST, Count, Instance, Name


class Departure(Struct, frozen=True, array_like=True):
    """The end of the connection on which `instance` sent `sequence` as its last report.

    It counts only if no later report of the instance has been applied, over any node.
    """

    instance: Instance
    sequence: Count


class Tick(Struct, frozen=True, array_like=True):
    """The time that has passed by the leader's clock. Nothing else moves the replica's clock."""

    step: Annotated[float, Meta(ge=0.0, le=2.0)]
    """Seconds; bounded, so that a leader that was suspended does not expire every process on waking."""
    lease: Annotated[float, Meta(gt=0.0, le=86400.0)]


class Batch(Struct, frozen=True, array_like=True):
    """One replicated command: what a node received in the last moment, in order.

    `boot` is random per start of the node, and `number` grows by one from 1, so that a batch that is proposed
    twice is applied once.
    """

    node: Name
    boot: Instance
    number: Annotated[int, Meta(ge=1, le=LARGEST)]
    tick: Tick | None = None
    reports: tuple[Report, ...] = ()
    departures: tuple[Departure, ...] = ()


class PackedBatch(Batch, frozen=True, array_like=True):
    """A batch as it is decoded to be applied."""

    reports: tuple[PackedReport, ...] = ()

"""What nodes replicate: the reports and departures that a node heard, as one command. Pure.

Structs are encoded as arrays. A new field goes to the end and has a default.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from connmon.protocol.reports import Report
from connmon.protocol.values import LARGEST, Count, Instance, Name


class Departure(Struct, frozen=True, array_like=True):
    """The connection on which `instance` sent `sequence` as its last report has ended.

    It counts only if no later report of the instance was applied since, over any node.
    """

    instance: Instance
    sequence: Count


class Tick(Struct, frozen=True, array_like=True):
    """The leader's word that time has passed. Only this moves the replica's clock."""

    step: Annotated[float, Meta(ge=0.0, le=2.0)]
    """Seconds; bounded, so that a leader that slept does not expire the world on waking."""
    lease: Annotated[float, Meta(gt=0.0, le=86400.0)]


class Batch(Struct, frozen=True, array_like=True):
    """One replicated command: what a node heard in the last moment, in order.

    `boot` is random per start of the node and `number` grows by one from 1, so a batch that
    was proposed twice is applied once.
    """

    node: Name
    boot: Instance
    number: Annotated[int, Meta(ge=1, le=LARGEST)]
    tick: Tick | None = None
    reports: tuple[Report, ...] = ()
    departures: tuple[Departure, ...] = ()

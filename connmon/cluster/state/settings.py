"""What the replicated state keeps at most and for how long, and how much of it one answer carries. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from connmon.protocol.reports import MOST_SITES


class Limits(NamedTuple):
    """How much is kept at most. All replicas of a group must have the same; their nodes compare it."""

    processes: int = 50_000
    pools: int = 1_200
    """Of one process: `POOLS_REPORTED`, and the sums over closed pools and over the pools beyond."""
    connections: int = 200_000
    """Of one process."""
    room: int = 2**30
    """What all processes, pools, connections and call sites may weigh together, roughly in bytes."""
    ended: int = 10_000
    """Ended processes that are remembered, so that one that comes back is not counted twice."""
    gone: int = 10_000
    """Groups without a process."""
    boots: int = 1_000
    """Starts of nodes."""
    tombstones: int = 20_000
    """Keys of removed rows, per grouping."""
    turned_away: int = 50_000
    """Processes that are left out and counted; beyond, processes are left out and not counted."""
    sites: int = MOST_SITES
    """Call sites of one process."""


LIMITS: Final = Limits()


@dataclass(frozen=True)
class StateSettings:
    """How the state machine judges time. All replicas of a group must have the same."""

    limits: Limits = LIMITS
    remember_seconds: float = 3_600.0
    """For how long an ended process, a group without a process and a node's start are remembered."""
    leases_until_dropped: int = 5
    """A process is lost after one lease of silence, and dropped after this many."""
    rows_dropped_per_tick: int = 20_000
    """Rows after which dropping silent processes goes on with the next tick: a batch must be applied in well
    under 100 ms, however many processes fall silent together. They count as lost until then."""
    full_report_interval_seconds: float = 5.0
    """The least time between two full reports that a process is asked for because left-out rows would fit."""
    program_call_sites: int = 256
    """Call sites of one program on one host whose profiles are summed, each in one database; the rest are
    summed as one."""
    site_labels: int = 9
    """Labels of the profile of one of these; 3 at least."""
    clock_step_seconds: float = 2.0
    """The largest step of the clock that one batch can make."""


@dataclass(frozen=True)
class AnswerSettings:
    """How much one frame of an answer carries, and how far an answer goes."""

    frame_rows: int = 2_000
    """Rows and removed keys in one frame."""
    frame_weight: int = 4 * 1024 * 1024
    """What the rows of one frame may weigh before it is closed, roughly in characters."""
    piece_records: int = 2_000
    """Pools or call sites that are looked at before an empty frame lets other clients have their turn."""
    waits_pools: int = 300
    """Pools in the answer to a waits query."""
    waits_holders: int = 30
    """Connections of each of these pools, those held longest."""
    judged_connections: int = 5_000
    """Held connections of one process that verdicts look at, those held longest."""


@dataclass(frozen=True)
class HistorySettings:
    """The rings of samples that one node keeps."""

    interval_seconds: float = 2.0
    """Between two samples."""
    samples: int = 300
    """Samples of each row: ten minutes."""
    series: int = 20_000
    """Rows that have a history; each takes `samples` * 8 bytes."""
    piece_rows: int = 500
    """Rows that are sampled before other work of the node has its turn."""
    answer_timeouts: int = 1_000
    """Rows with timeouts that one answer lists."""


SETTINGS: Final = StateSettings()
ANSWERS: Final = AnswerSettings()
HISTORY: Final = HistorySettings()

"""The keys of the JSON contract's rows, for each grouping. Pure.

`snapshot` makes the rows; its docstring says what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from connmon.protocol.values import Grouping

#: What half, 95 % and 99 % of the waits, the holds and the connects took at most, of those that ended
#: in the last one to two minutes; None where there were none.
QUANTILES: Final = (
    "wait_p50_seconds", "wait_p95_seconds", "wait_p99_seconds",
    "held_p50_seconds", "held_p95_seconds", "held_p99_seconds",
    "connect_p50_seconds", "connect_p95_seconds", "connect_p99_seconds",
)  # fmt: skip
#: The keys of a row's figures, in the order of the contract.
FIGURES: Final = (
    "processes", "max_processes", "pools", "capacity",
    "connections", "max_connections", "checked_out", "max_checked_out", "idle", "overflow", "detached",
    "waiting", "max_waiting", "longest_wait_seconds", "longest_held_seconds",
    "connects_total", "closes_total", "checkouts_total", "checkins_total",
    "invalidations_total", "timeouts_total", "connect_errors_total",
    "checkouts_per_second", "last_report_seconds", *QUANTILES, "left_out", "recent_timeouts",
)  # fmt: skip
#: What follows the figures of a row: its gravest verdict and the reasons of all, None where it is well.
VERDICT: Final = ("verdict", "verdict_reason")
#: Those of them that tell the present, which is not known of what is lost.
PRESENT: Final = (
    "pools", "capacity", "connections", "checked_out", "idle", "overflow", "detached", "waiting",
    "longest_wait_seconds", "longest_held_seconds", "checkouts_per_second",
    *QUANTILES, "left_out", "recent_timeouts",
)  # fmt: skip
_OF_PROCESS: Final = tuple(key for key in FIGURES if key not in ("processes", "max_processes"))
_OF_POOL: Final = tuple(key for key in _OF_PROCESS if key != "pools")

USAGE: Final = ("cpu_percent", "rss_bytes", "threads", "open_files")
PROCESS: Final = (
    "host", "program", "pid", "instance", "ppid", "node", "user", "command", "started_seconds", "container",
    *USAGE,
)  # fmt: skip
DATABASE: Final = ("dialect", "database_host", "database_port", "database")
POOL: Final = ("pool", "pool_class", "pool_size", "max_overflow", "timeout_seconds", *DATABASE, "pooler")

#: The keys of a row of each grouping, in order.
KEYS: Final[Mapping[Grouping, tuple[str, ...]]] = {
    "program": ("host", "program", "state", *FIGURES, *VERDICT),
    "host": ("host", "programs", "state", *FIGURES, *VERDICT),
    "database": (*DATABASE, "programs", "state", *FIGURES, *VERDICT),
    "process": (*PROCESS, "state", *_OF_PROCESS, *VERDICT),
    "pool": (*PROCESS, *POOL, "state", *_OF_POOL, *VERDICT),
    "connection": (
        *PROCESS, *POOL, "connection", "server_id", "state",
        "age_seconds", "held_seconds", "holder", "call_site", "stack", "holder_in", "holder_site", "verdict",
    ),
    "site": (
        "host", "program", "call_site", "processes", "held_now", "in_database_now", "waiting_now",
        "holds_total", "hold_seconds_total", "database_seconds_total", "share", "longest_held_seconds",
        "usual_held_seconds", "estimated",
        *VERDICT,
    ),
}  # fmt: skip

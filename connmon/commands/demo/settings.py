"""How long the demo works, waits and troubles its nodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoSettings:
    start_seconds: float = 30.0
    """For the nodes, and then for all applications, to start."""
    work_seconds: float = 3.0
    """Without a terminal: how long the applications work before the snapshot is printed."""
    kill_every_seconds: float = 8.0
    """At least, from one kill to the next."""
    down_seconds: float = 3.0
    """How long a killed node stays down."""
    kills: int = 3
    """Before the comparison: each node once."""
    recover_seconds: float = 30.0
    """For a restarted node to catch up."""
    stop_seconds: float = 30.0
    """For the applications to stop working."""
    agree_seconds: float = 30.0
    """For each node to show the applications' own counts."""

"""An application's own times of its holds, which the profile is compared with.

An endpoint says who it is (`endpoint`), and times what it does while it holds a connection (`timed`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import event

SECONDS: defaultdict[str, float] = defaultdict(float)
endpoint = ContextVar("endpoint", default="start")


@contextmanager
def timed(activity: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        SECONDS[f"{endpoint.get()} {activity}"] += time.perf_counter() - started


def watch(engine: Any) -> None:
    """Sum up the holds of this engine's pool for each endpoint."""

    @event.listens_for(engine, "checkout")
    def _checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        record.info["hold"] = endpoint.get(), time.perf_counter()

    @event.listens_for(engine, "checkin")
    def _checkin(_connection: Any, record: Any) -> None:
        name, since = record.info.pop("hold", ("", 0.0))
        SECONDS[f"{name} held"] += time.perf_counter() - since
        SECONDS[f"{name} holds"] += 1

"""Wait for a condition with a time limit: tests do this instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def wait_for(condition: Callable[[], T], limit: float = 10.0, what: str = "") -> T:
    """Return the condition's value as soon as it is true; fail the test after `limit` seconds.

    A condition may assert: an AssertionError counts as "not yet". The failure says `what` it waited for.
    """
    deadline = time.monotonic() + limit
    pause = 0.005
    while True:
        problem: AssertionError | None = None
        value: T | None = None
        try:
            value = condition()
            if value:
                return value
        except AssertionError as error:
            problem = error
        if time.monotonic() > deadline:
            last = f"the last try failed: {problem}" if problem else f"the last value was {value!r}"
            pytest.fail(f"waited {limit:g} s for {what or 'a condition'}; {last}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)

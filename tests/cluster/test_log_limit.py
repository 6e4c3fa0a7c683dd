"""Log lines about limits: one when a limit begins to leave something out, and no flood of them."""

from __future__ import annotations

import pytest

from connmon.cluster.log_limit import LimitLog, LogSettings
from connmon.cluster.state.contents import COUNTED_LIMITS, FORGETTING_LIMITS
from connmon.cluster.state.settings import LIMITS

LIMIT_INTERVAL = LogSettings().limit_interval_seconds


class Watch:
    """The log of limits, and the lines since the last call."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.now = 0.0
        self.log = log
        self.limit_log = LimitLog(lambda: self.now)

    def look(self, **left_out: int) -> list[str]:
        self.log.clear()
        none = dict.fromkeys((*COUNTED_LIMITS, *FORGETTING_LIMITS), 0)
        self.limit_log.observe({**none, **left_out}, LIMITS._asdict())
        return [record.getMessage() for record in self.log.records]


def test_one_line_when_a_limit_begins_to_leave_something_out(caplog: pytest.LogCaptureFixture) -> None:
    """The line names the limit, its value and the number left out; it is not repeated."""
    watch = Watch(caplog)
    assert watch.look() == []
    (line,) = watch.look(pools=10)
    assert "pools (1200)" in line
    assert "10 pools" in line
    watch.now += 1.0
    assert watch.look(pools=12) == []
    (line,) = watch.look(pools=12, room=3)
    assert "room (1073741824)" in line
    assert "3 processes, pools or connections" in line


@pytest.mark.parametrize("name", (*COUNTED_LIMITS, *FORGETTING_LIMITS))
def test_every_limit_has_a_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every limit has a line when it is reached, and one when it leaves nothing out any more."""
    watch = Watch(caplog)
    assert len(watch.look(**{name: 1})) == 1
    watch.now += LIMIT_INTERVAL
    (line,) = watch.look()
    assert name in line
    assert "any more" in line


def test_a_limit_that_goes_to_and_fro_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A limit that changes often is logged once a minute, with its present state."""
    watch = Watch(caplog)
    lines = []
    for second in range(2 * int(LIMIT_INTERVAL) + 1):
        watch.now = float(second)
        lines += watch.look(pools=second % 2)
    assert len(lines) <= 4
    watch.now += LIMIT_INTERVAL
    watch.look(pools=5)
    watch.now += LIMIT_INTERVAL
    assert watch.look(pools=5) == []

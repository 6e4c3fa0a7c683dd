"""Shared by all tests: private database servers, a fresh reporter for each test, Hypothesis's settings.

tests.support.requirements says what a test does if a server is not installed.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.servers import MariaDB, PostgreSQL, Server

# Tests assert no timings. In CI Hypothesis's default is its profile for CI: the same examples each time.
settings.register_profile(
    "connmon", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("connmon")

# A program that a shell starts in the background ignores Ctrl-C, and so would all programs started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def a_reporter_of_its_own() -> Iterator[None]:
    """End the reporter with each test, as if each test were a process."""
    yield
    module = sys.modules.get("connmon.plugin.reporter")
    reporter = getattr(module, "_reporter", None)
    if reporter is not None and reporter._running:
        reporter.leave()
        assert reporter._thread_ended.acquire(True, 20), "the reporter's thread does not end"
        reporter.after_fork_in_child()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a real server as slow."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "mariadb" in names or "postgresql" in names:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print at the end what the skipped tests need, one line for each need."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped tests")
    for reason, tests in sorted(reasons.items()):
        terminalreporter.line(f"SKIPPED [{tests}] {reason}")


def _running(server_class: type[Server]) -> Iterator[Server]:
    server = server_class()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """A private MariaDB, the same one for all tests."""
    yield from _running(MariaDB)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A private PostgreSQL, the same one for all tests."""
    yield from _running(PostgreSQL)

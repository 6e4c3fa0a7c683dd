"""`connmon` with little time between two looks at a server: what these tests compare stands still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from connmon.commands import cli
from connmon.commands.settings import CommandSettings
from connmon.database.settings import DatabaseSettings, LockLimits

SETTLE_SECONDS: Final = 0.2


def run_connmon(arguments: Sequence[str], locks: LockLimits | None = None) -> int:
    """Run a command in this process and return its exit code."""
    database = DatabaseSettings(settle_seconds=SETTLE_SECONDS, locks=locks or LockLimits())
    return cli.main(arguments, CommandSettings(database=database))

"""The limits of the commands that tests change. Nothing here is an option of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from connmon.commands.demo.settings import DemoSettings
from connmon.database.settings import DatabaseSettings


@dataclass(frozen=True)
class CommandSettings:
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    demo: DemoSettings = field(default_factory=DemoSettings)


DEFAULTS: Final = CommandSettings()

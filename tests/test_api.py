"""connmon.attach(): the function that an application calls."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError

import connmon
from connmon.plugin import engine as plugin

#: Prints the modules of connmon and SQLAlchemy that importing connmon loads.
IMPORT = """
import sys, connmon
print(*(name for name in sys.modules if name.partition(".")[0] in ("connmon", "sqlalchemy")))
"""


def test_importing_connmon_loads_no_plugin() -> None:
    """The commands import connmon for its version: that loads neither SQLAlchemy nor the plugin."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["connmon", "connmon.version"]


def test_attach_is_the_plugin_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """connmon.attach() passes the engine and all options on to the plugin."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(plugin, "attach", lambda engine, **options: calls.append((engine, options)))
    engine = create_engine("sqlite://")
    connmon.attach(engine, program="a", held=10)
    assert calls == [(engine, {"program": "a", "held": 10})]


def test_attach_watches_the_pool() -> None:
    """The call watches the engine's pool, and a second call changes nothing."""
    engine = create_engine("sqlite://")
    connmon.attach(engine, addr="127.0.0.1:1", program="a")
    assert engine.pool in plugin._attached
    connmon.attach(engine, addr="127.0.0.1:2", program="b")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("options", [{"held": 0}, {"no_such_option": "x"}, {"addr": "a:b:c"}])
def test_wrong_options(options: dict[str, Any]) -> None:
    """A wrong option is an ArgumentError that names it."""
    with pytest.raises(ArgumentError, match=next(iter(options))):
        connmon.attach(create_engine("sqlite://"), **options)


def test_wrong_engine() -> None:
    """Anything but an engine is an ArgumentError."""
    with pytest.raises(ArgumentError, match="expected an Engine"):
        connmon.attach("sqlite://")  # type: ignore[arg-type]

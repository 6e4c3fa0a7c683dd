"""Completion of the commands' arguments in a real bash, by what shtab makes of the parsers."""

from __future__ import annotations

import subprocess

import pytest
import shtab

from connmon.cluster import daemon
from connmon.commands.arguments import argument_parser


def completed(script: str, name: str, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in (name, *words))
    ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_{name}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"],
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["wh"], ["whois"]),
        (["re"], ["reconcile"]),
        (["snapshot", "--by", "p"], ["program", "process", "pool"]),
        (["reconcile", "--format", "c"], ["csv"]),
        (["whois", "--data"], ["--database"]),
        (["profile", "--format", "f"], ["folded"]),
    ],
)
def test_connmon(words: list[str], offered: list[str]) -> None:
    """Commands, options and what an option may be are completed."""
    script = shtab.complete(argument_parser(), shell="bash")
    assert set(offered) <= set(completed(script, "connmon", *words))


def test_connmond() -> None:
    """The options of connmond are completed."""
    script = shtab.complete(daemon.argument_parser(), shell="bash")
    assert completed(script, "connmond", "--check") == ["--check-config"]

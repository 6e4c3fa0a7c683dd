"""A row in words: its state, its verdict and the reason, its name. Pure.

The node judges. Nothing here decides that something is wrong; it only words what the node has found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from connmon.console.format import word
from connmon.console.rows import CallSiteRow, FigureRow, NodeRow, TableRow, program_and_host
from connmon.protocol.document import JsonConnection, JsonDatabase
from connmon.protocol.values import VerdictWord

#: The gravest first.
VERDICTS: Final[tuple[VerdictWord, ...]] = get_args(VerdictWord)
_GRAVITY: Final[Mapping[str | None, int]] = {
    word: len(VERDICTS) - place for place, word in enumerate(VERDICTS)
}

#: What each verdict means, for a row that has no reason of its own.
MEANINGS: Final = {
    "LEAK": "it does not come back, and nobody works with it: see the line that took it",
    "BLOCKED": "held long in the database: look for a lock there",
    "SATURATED": "somebody waits and all is checked out: see which lines hold it (9)",
    "TIMEOUTS": "somebody gave up waiting in the last minutes",
    "LOST": "silent for longer than the lease; its present is not known",
    "SLOW CONNECT": "making a connection takes long (p95)",
    "OVERCOMMIT": "the pools may open more connections than the server takes",
}


def verdict(row: TableRow) -> VerdictWord | None:
    return None if isinstance(row, NodeRow) else row.verdict


def verdict_reason(row: TableRow) -> str | None:
    return None if isinstance(row, NodeRow | JsonConnection) else row.verdict_reason


def gravity(word: str | None) -> int:
    """Return how grave a verdict is: 0 for none, a larger number for a graver one."""
    return _GRAVITY.get(word, 0)


def state_word(row: TableRow) -> str:
    """Return the row's verdict, else its state; a colour only repeats it."""
    own_verdict = verdict(row)
    if own_verdict:
        return own_verdict
    if isinstance(row, CallSiteRow):
        return "waiting" if row.site.waiting_now else word(None)
    if isinstance(row, NodeRow):
        return word(None)
    if isinstance(row, FigureRow) and row.state == "connected" and row.figures.waiting:
        return "waiting"
    return word(row.state).replace("_", " ")


def verdict_word(row: TableRow) -> str:
    """Return the row's verdict, or "lost" or "gone"; "" where nothing is wrong."""
    own_verdict = verdict(row)
    if own_verdict:
        return own_verdict
    state = row.state if isinstance(row, FigureRow) else None
    return str(state) if state in ("lost", "gone") else ""


def reason(row: TableRow) -> str:
    """Return the verdict with its reason in one line; "" where nothing is wrong."""
    own_verdict, why = verdict(row), verdict_reason(row)
    if not own_verdict:
        return ""
    if not why:
        return f"{own_verdict}: {MEANINGS[own_verdict]}" if own_verdict in MEANINGS else own_verdict
    return why if why.startswith(f"{own_verdict}:") else f"{own_verdict}: {why}"


def problems(row: TableRow) -> tuple[str, ...]:
    """Return the problems of a node; none for other rows."""
    return row.problems if isinstance(row, NodeRow) else ()


def name(row: TableRow) -> str:
    """Return what a row is called in a sentence."""
    program, host = program_and_host(row)
    database = row.database if isinstance(row, JsonDatabase) else None
    node = row.node if isinstance(row, NodeRow) else None
    return str(program or host or database or node)

"""`connmon profile`: where connection time goes, by call site.

- Without seconds: the last one to two minutes, by one node's answer. With seconds: two answers, that far
  apart; the second is of the same node, or of another one where it is away.
- Ctrl-C ends the measurement early, with what was measured until then. A second one ends the command.
- What is wrong with an argument or a node is said before anything is measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from connmon.config import Node, Service
from connmon.errors import ConnmonError, PeerError
from connmon.protocol.credentials import Credentials
from connmon.protocol.queries import StatusQuery
from connmon.protocol.rows import Rows
from connmon.reader.client import connect, read_once
from connmon.reader.profile import SiteTotals, profile_between, recent_profile
from connmon.reader.profile_formats import nothing_held, printed_profile

T = TypeVar("T")

#: How many names an error line or a remark has at most.
_NAMES: Final = 10


def profile(
    service: Service,
    credentials: Credentials,
    *,
    programs: Sequence[str],
    seconds: float | None,
    form: str,
    write: Callable[[str], None],
    complain: Callable[[str], None],
    announce: Callable[[str], None],
    width: Callable[[], int | None],
) -> Rows:
    """Print the profile of these programs (none: all); return the header of the answer that it ends with.

    `announce` gets lines that only a person at a terminal needs. Raises ConnmonError where no node answers, a
    program is not known, nobody keeps a profile, or the totals go back.
    """
    totals, header = _read(service, credentials)
    _check(totals, programs, service, credentials)
    if seconds is None:
        measured = recent_profile(totals.of(programs))
    else:
        begin = time.monotonic()
        try:
            announce(f"measuring for {seconds:g} s on {totals.node}; Ctrl-C ends it early")
            time.sleep(seconds)
        except KeyboardInterrupt:
            complain(f"ended early: {time.monotonic() - begin:.1f} s of {seconds:g} s are measured")
        later, header = _read(service, credentials, first=totals.node)
        elapsed_seconds = time.monotonic() - begin
        if later.node != totals.node:
            complain(f"the second answer is of {later.node}, not of {totals.node}: it has the same totals")
        measured = profile_between(totals.of(programs), later.of(programs), elapsed_seconds)
    write(printed_profile(measured, form, width()))
    if form != "table" and not measured.sites:
        complain(nothing_held(measured))
    if measured.without:
        complain(
            f"no profile of {_list(f'{program} on {host}' for host, program in measured.without)}: "
            "connmon is of an earlier version there, or was on the node that it reported to"
        )
    return header


def _read(service: Service, credentials: Credentials, first: str | None = None) -> tuple[SiteTotals, Rows]:
    """Return the call sites of one node's answer, and its header. `first`: the node to try first."""
    snapshot = read_once(service.nodes, service.name, "site", rng=_NodeFirst(first), credentials=credentials)
    header = snapshot.header
    assert header is not None  # `read_once` returns a snapshot only with a complete answer
    return SiteTotals(header.node, header.epoch, header.version, snapshot.site_rows()), header


class _NodeFirst:
    """Draws nodes in random order, but one of them first."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        drawn = random.sample(population, k)
        return sorted(drawn, key=lambda node: not (isinstance(node, Node) and node.name == self._name))


def _check(totals: SiteTotals, programs: Sequence[str], service: Service, credentials: Credentials) -> None:
    """Raise ConnmonError for a program without call sites, and where no program keeps a profile."""
    unknown = sorted(set(programs) - set(totals.programs))
    if unknown:
        raise ConnmonError(
            f"no call site of {_list(unknown)} is known to {totals.node}; programs with call sites are: "
            f"{_list(totals.programs) or '-'}"
        )
    rows = totals.of(programs).rows
    if rows and all(row.profile is None for row in rows):
        software = _software(totals.node, service, credentials)
        raise ConnmonError(
            f"{totals.node} runs connmon {software} and has no profile of "
            f"{_list(sorted({row.program for row in rows}))}: upgrade connmon there, or in the applications"
        )


def _software(name: str, service: Service, credentials: Credentials) -> str:
    """Return the version of a node that has just answered; "?": it is away by now."""
    nodes = [node for node in service.nodes if node.name == name] or service.nodes
    try:
        with connect(nodes, service.name, credentials=credentials) as client:
            return client.status(StatusQuery()).software
    except PeerError:
        return "?"


def _list(names: Iterable[str]) -> str:
    """Return the first names, an empty one as \"\", and how many more there are."""
    every = list(names)
    more = len(every) - _NAMES
    return ", ".join([name or '""' for name in every[:_NAMES]]) + (f" and {more} more" if more > 0 else "")

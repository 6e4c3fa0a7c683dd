"""Cut the answer to a query into frames. Pure.

All frames of an answer have the same header. Each frame has a bounded number of rows and a bounded weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import msgspec

from connmon.cluster.state.contents import Contents
from connmon.cluster.state.figures import RowFigures
from connmon.cluster.state.judging import Judge
from connmon.cluster.state.settings import AnswerSettings
from connmon.protocol.rows import Row, RowKey, Rows

#: What a process row or a pool row weighs at most.
OWN_ROW_WEIGHT = 4096


class About(NamedTuple):
    """What every answer says of the node."""

    service: str
    node: str
    leader: str | None
    quorum: bool
    stale: float
    """Seconds since the replica last moved."""


class Sources(NamedTuple):
    """Where answers come from."""

    contents: Contents
    judge: Judge
    figures: RowFigures
    settings: AnswerSettings


def header(sources: Sources, about: About, version: int, complete: bool, left_out: int = 0) -> Rows:
    """Return an answer without rows. `version` is what the reader has after it."""
    totals = sources.figures.totals()
    return Rows(
        service=about.service,
        node=about.node,
        leader=about.leader,
        quorum=about.quorum,
        stale=about.stale,
        epoch=sources.contents.epoch,
        version=version,
        clock=sources.contents.now.clock,
        complete=complete,
        hosts=totals.hosts,
        programs=totals.programs,
        totals=totals.figures,
        left_out=left_out,
        verdicts=totals.verdicts,
    )


def unchanged(sources: Sources, about: About, since_version: int) -> Rows:
    """Return the answer for a reader that has everything as of `since_version`."""
    # A reader that has more than this replica must not be sent back.
    return header(sources, about, max(sources.contents.now.version, since_version), False)


RowsOfFrames: TypeAlias = Iterator[tuple[list[Row], bool]]
"""The rows of each frame, and whether another frame follows. They are made when the frame is taken."""


def frames(
    header: Rows, rows_of_frames: RowsOfFrames, removed: list[RowKey], settings: AnswerSettings
) -> Iterator[Rows]:
    """Yield the frames: the removed keys first, then the rows."""
    most = settings.frame_rows
    while len(removed) > most:
        yield msgspec.structs.replace(header, removed=tuple(removed[:most]), more=True)
        removed = removed[most:]
    for rows, more in rows_of_frames:
        yield msgspec.structs.replace(header, rows=tuple(rows), removed=tuple(removed), more=more)
        removed = []

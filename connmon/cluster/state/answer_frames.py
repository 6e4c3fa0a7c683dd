"""Cut the answer to a query into frames. Pure.

All frames of an answer have the same header. Each frame has a bounded number of rows and a bounded weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from connmon.cluster.state.contents import Contents
from connmon.cluster.state.figures import RowFigures
from connmon.cluster.state.judging import Judge
from connmon.cluster.state.settings import AnswerSettings
from connmon.cluster.state.weights import connection_weight
from connmon.protocol.rows import ConnectionRow, PoolRow, ProcessRow, Row, RowKey, Rows

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
    figures, hosts, programs = sources.figures.totals()
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
        hosts=hosts,
        programs=programs,
        totals=figures,
        left_out=left_out,
        verdicts=sources.judge.fleet(),
    )


def unchanged(sources: Sources, about: About, since_version: int) -> Rows:
    """Return the answer for a reader that has everything as of `since_version`."""
    # A reader that has more than this replica must not be sent back.
    return header(sources, about, max(sources.contents.now.version, since_version), False)


def frames(
    header: Rows, rows: Iterator[Row | None], number: int, removed: list[RowKey], settings: AnswerSettings
) -> Iterator[Rows]:
    """Yield the frames: the removed keys first, then `number` rows.

    Rows are taken one by one when their frame is made, since batches may be applied between two frames; None
    stands for a row that has gone by then.
    """
    most, heaviest = settings.frame_rows, settings.frame_weight
    while len(removed) > most:
        yield msgspec.structs.replace(header, removed=tuple(removed[:most]), more=True)
        removed = removed[most:]
    in_frame: list[Row] = []
    weight = 0
    for _ in range(number):
        if len(in_frame) >= most or weight > heaviest:
            yield msgspec.structs.replace(header, rows=tuple(in_frame), removed=tuple(removed), more=True)
            in_frame, removed, weight = [], [], 0
        row = next(rows)
        if row is None:
            continue
        in_frame.append(row)
        if isinstance(row, ConnectionRow):
            weight += connection_weight(row)
        elif isinstance(row, (ProcessRow, PoolRow)):
            weight += OWN_ROW_WEIGHT
    yield msgspec.structs.replace(header, rows=tuple(in_frame), removed=tuple(removed))

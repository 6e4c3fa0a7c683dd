"""Build the typed rows of the JSON contract from the rows that a node sends. Pure: no I/O, no time.

- The age of a start, a connection or a report is the replica's clock, plus how long that clock has stood
  still (`stale`), minus the row's own time; never negative. A hold or a wait may have ended since, so its
  duration is as of the last report of its process: see `Figures`.
- Floats have three digits, quantiles and mean holds nine, shares and means four figures below 1. An unknown
  value is None, never 0.
- The present of a lost process and of its pools is unknown (`PRESENT`, and the usage of the process); maxima
  and totals are known. The same applies to a program, host, database or the totals where all processes are
  lost; where some are lost, figures are sums over the others. A connection of a lost process keeps its last
  reported values, but `state` and `held_seconds` are unknown.
- `left_out` is the number of pools and connections that a limit leaves out, None for none; in the totals it
  includes processes.
- `longest_*_seconds` is 0.0 where nobody waits or holds a connection: that is known.
- `capacity` is None as soon as one of the pools has no limit.
- A process is one process and a pool one pool: process rows have neither processes nor max_processes, pool
  rows have no pools either, connection rows no figures. The totals have all figures in every grouping.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from connmon.protocol.document import (
    PRESENT,
    FigureFields,
    JsonCallSite,
    JsonConnection,
    JsonDatabase,
    JsonHost,
    JsonPool,
    JsonProcess,
    JsonProgram,
    JsonRow,
    PoolFields,
    ProcessFields,
)
from connmon.protocol.reports import ServerAddress
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    Figures,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Quantiles,
    Row,
    RowKey,
    SiteRow,
    Verdict,
)
from connmon.protocol.text import short_age
from connmon.protocol.values import IN_DATABASE, LOST, VerdictWord, Where, largest_first

#: No age is longer than this, whatever a peer reports.
LONGEST_SECONDS: Final = 1e12

_UNKNOWN_PRESENT: Final[dict[str, None]] = dict.fromkeys(PRESENT)
_UNKNOWN_POOL: Final = PoolFields()
_NO_QUANTILES: Final = Quantiles()

# --- Rows ---------------------------------------------------------------------------------------


def one_row(key: RowKey, row: Row, clock: float) -> tuple[tuple[Any, ...], JsonRow]:
    """Return the order and the typed row of a grouping whose rows stand alone."""
    if isinstance(row, SiteRow):
        return (row.host, row.program, row.call_site), _call_site(row)
    assert isinstance(row, ProgramRow | HostRow | DatabaseRow | ProcessRow)
    word, reason = _verdict(row.figures, clock)
    if isinstance(row, ProcessRow):
        who = row.process
        return (who.host, who.program, who.pid, row.instance), JsonProcess(
            process=process_fields(row, clock),
            state=row.state,
            figures=_figures_of_one(row.figures, clock, row.state != LOST),
            verdict=word,
            verdict_reason=reason,
        )
    figures = figure_fields(row.figures, clock)
    if isinstance(row, ProgramRow):
        return (row.host, row.program), JsonProgram(
            host=row.host,
            program=row.program,
            state=row.state,
            figures=figures,
            verdict=word,
            verdict_reason=reason,
        )
    if isinstance(row, HostRow):
        return (row.host, ""), JsonHost(
            host=row.host,
            programs=row.programs,
            state=row.state,
            figures=figures,
            verdict=word,
            verdict_reason=reason,
        )
    return _sortable(key), JsonDatabase(
        dialect=row.dialect,
        database_host=row.database_host,
        database_port=row.database_port,
        database=row.database,
        programs=row.programs,
        state=row.state,
        figures=figures,
        verdict=word,
        verdict_reason=reason,
    )


def pool_rows(
    received: dict[RowKey, Row], process: ProcessFields, clock: float, sums: bool
) -> tuple[list[Row], list[tuple[RowKey, JsonRow]]]:
    """Return the received and the typed rows of a process's pools, by number."""
    pools = [(row.number, key, row) for key, row in received.items() if isinstance(row, PoolRow)]
    sources: list[Row] = []
    built: list[tuple[RowKey, JsonRow]] = []
    for _, key, row in sorted(pools, key=lambda pool: pool[0]):
        if row.info.several and not sums:
            continue
        word, reason = _verdict(row.figures, clock)
        figures = _figures_of_one(row.figures, clock, row.state != LOST)
        pool = JsonPool(
            process=process,
            pool=_pool_fields(row),
            state=row.state,
            figures=figures if row.info.several else replace(figures, pools=None),
            verdict=word,
            verdict_reason=reason,
        )
        sources.append(row)
        built.append((key, pool))
    return sources, built


def connection_rows(
    received: dict[RowKey, Row], process: ProcessFields, clock: float, lost: bool, reported: float | None
) -> tuple[list[Row], list[tuple[RowKey, JsonRow]]]:
    """Return the received and the typed rows of a process's connections, by pool and number.

    `reported`: the time of the process's last report. None: unknown, or what it said no longer holds.
    """
    connections: list[tuple[int, int, RowKey, ConnectionRow]] = []
    pools: dict[int, PoolFields] = {}
    for key, row in received.items():
        if type(row) is ConnectionRow:
            connections.append((row.pool, row.number, key, row))
        elif type(row) is PoolRow:
            pools[row.number] = _pool_fields(row)
    connections.sort()  # pool and number differ, so that the rest is never compared
    elsewhere: dict[tuple[int, ServerAddress], PoolFields] = {}
    sources: list[Row] = []
    built: list[tuple[RowKey, JsonRow]] = []
    for pool_number, number, key, row in connections:
        pool = pools.get(pool_number, _UNKNOWN_POOL)
        if row.server is not None:  # a server other than its pool's
            place = (pool_number, row.server)
            if place not in elsewhere:
                host, port = row.server
                elsewhere[place] = replace(pool, database_host=host, database_port=port)
            pool = elsewhere[place]
        held_since = row.held_since
        sources.append(row)
        connection = JsonConnection(
            process=process,
            pool=pool,
            connection=number,
            server_id=row.server_id,
            state=None if lost else row.state,
            age_seconds=_age(clock, row.opened),
            held_seconds=None if held_since is None or reported is None else _age(reported, held_since),
            holder=row.holder,
            call_site=row.call_site,
            stack=row.stack,
            holder_in=row.holder_in,
            holder_site=row.holder_site,
            verdict=row.verdict,
        )
        built.append((key, connection))
    return sources, built


def _call_site(row: SiteRow) -> JsonCallSite:
    known = row.processes > 0  # else they are lost or have ended
    profile, recent, seconds = row.profile, row.recent, row.recent_seconds
    return JsonCallSite(
        host=row.host,
        program=row.program,
        call_site=row.call_site,
        processes=row.processes,
        held_now=row.held if known else None,
        in_database_now=row.in_database if known else None,
        waiting_now=row.waiting if known else None,
        holds_total=row.holds if profile is None else profile.holds,
        hold_seconds_total=_seconds_of(row.hold_ms if profile is None else profile.held_ms),
        database_seconds_total=None if profile is None else _database_seconds(profile.where),
        share=None if row.share is None else _four_figures(row.share),
        mean_held=None if recent is None else _mean(recent.held_ms, seconds),
        database_share=None if recent is None else _database_share(recent.where),
        holds_per_second=None if recent is None else _mean(recent.holds * 1000, seconds),
        mean_hold_seconds=None
        if recent is None or not recent.holds
        else _nanoseconds(recent.held_ms / recent.holds / 1000.0),
        mean_waiting=None if recent is None else _mean(recent.waited_ms, seconds),
        mean_waiting_caused=None if recent is None else _mean(recent.caused_ms, seconds),
        where_shares={} if recent is None else _shares(recent.where),
        where_seconds_total={} if profile is None else _where_seconds(profile.where),
        waited_seconds_total=None if profile is None else _seconds_of(profile.waited_ms),
        waiting_caused_seconds_total=None if profile is None else _seconds_of(profile.caused_ms),
        longest_held_seconds=(_lasted(row.reported, row.held_since) or 0.0) if known else None,
        usual_held_seconds=_nanoseconds(row.usual),
        estimated=row.estimated,
        verdict=row.verdict,
        verdict_reason=row.reason,
        stack=row.stack,
    )


def _database_seconds(where: Where) -> float | None:
    """Return the seconds in the database. None: nobody has looked."""
    return _seconds_of(where.get(IN_DATABASE, 0)) if any(where.values()) else None


def _database_share(where: Where) -> float | None:
    """Return the part of the time looked at that is in the database. None: nobody has looked."""
    looked_ms = sum(where.values())
    return _four_figures(where.get(IN_DATABASE, 0) / looked_ms) if looked_ms else None


def _shares(where: Where) -> dict[str, float]:
    """Return the parts of the time looked at, the largest first."""
    looked_ms = sum(where.values())
    return {label: _four_figures(ms / looked_ms) for label, ms in _without_zeros(where)}


def _where_seconds(where: Where) -> dict[str, float]:
    return {label: _seconds_of(ms) for label, ms in _without_zeros(where)}


def _without_zeros(where: Where) -> list[tuple[str, int]]:
    """Return the places in which there was any time, the largest first."""
    return largest_first({label: ms for label, ms in where.items() if ms})


def aged_row(source: Row, row: JsonRow, process: ProcessFields | None, clock: float) -> JsonRow:
    """Return the row with the ages of this time. `process`: the fields of its process, None: as they are."""
    if isinstance(row, JsonConnection):
        assert isinstance(source, ConnectionRow)
        return replace(row, process=process or row.process, age_seconds=_age(clock, source.opened))
    if isinstance(row, JsonCallSite):
        return row
    assert not isinstance(source, ConnectionRow | SiteRow)
    if isinstance(source, ProcessRow) and isinstance(row, JsonProcess) and source.started is not None:
        process = replace(row.process, started_seconds=_age(clock, source.started))
    if process is not None and isinstance(row, JsonPool | JsonProcess):
        row = replace(row, process=process)
    reported = source.figures.reported
    if reported is None:
        return row
    row = replace(row, figures=replace(row.figures, last_report_seconds=_age(clock, reported)))
    if source.figures.verdicts:
        word, reason = _verdict(source.figures, clock)
        row = replace(row, verdict=word, verdict_reason=reason)
    return row


# --- Parts of rows ------------------------------------------------------------------------------


def process_fields(row: ProcessRow, clock: float) -> ProcessFields:
    process, usage, lost = row.process, row.usage, row.state == LOST
    return ProcessFields(
        host=process.host,
        program=process.program,
        pid=process.pid,
        instance=row.instance,
        ppid=process.ppid,
        node=row.node,
        user=process.user,
        command=process.command,
        started_seconds=None if row.started is None else _age(clock, row.started),
        container=process.container,
        cpu_percent=None if lost or usage.cpu_percent is None else round(usage.cpu_percent, 3),
        rss_bytes=None if lost else usage.rss_bytes,
        threads=None if lost else usage.threads,
        open_files=None if lost else usage.open_files,
    )


def _pool_fields(row: PoolRow) -> PoolFields:
    info = row.info
    return PoolFields(
        pool=info.url,
        pool_class=info.pool_class or None,
        pool_size=info.pool_size,
        max_overflow=info.max_overflow,
        timeout_seconds=None if info.timeout is None else round(info.timeout, 3),
        dialect=info.dialect,
        database_host=info.database_host,
        database_port=info.database_port,
        database=info.database,
        pooler=info.pooler,
    )


def figure_fields(figures: Figures, now: float, quantiles: bool = True) -> FigureFields:
    """Return the figures of a row, with quantiles or without; `now` is by the replica's clock."""
    gauges, totals, reported = figures.gauges, figures.totals, figures.reported
    waits = figures.waits if quantiles else _NO_QUANTILES
    holds = figures.holds if quantiles else _NO_QUANTILES
    connects = figures.connects if quantiles else _NO_QUANTILES
    rate = figures.checkouts_per_second
    fields = FigureFields(
        processes=figures.processes,
        max_processes=figures.max_processes,
        pools=gauges.pools,
        capacity=None if gauges.unbounded else gauges.capacity,
        connections=gauges.connections,
        max_connections=figures.max_connections,
        checked_out=gauges.checked_out,
        max_checked_out=figures.max_checked_out,
        idle=gauges.idle,
        overflow=gauges.overflow,
        detached=gauges.detached,
        waiting=gauges.waiting,
        max_waiting=figures.max_waiting,
        longest_wait_seconds=milliseconds(
            max(figures.longest_wait, _lasted(reported, figures.waiting_since) or 0.0)
        ),
        longest_held_seconds=_lasted(reported, figures.held_since) or 0.0,
        connects_total=totals.connects,
        closes_total=totals.closes,
        checkouts_total=totals.checkouts,
        checkins_total=totals.checkins,
        invalidations_total=totals.invalidations,
        timeouts_total=totals.timeouts,
        connect_errors_total=totals.connect_errors,
        checkouts_per_second=None if rate is None else round(rate, 3),
        last_report_seconds=None if reported is None else _age(now, reported),
        wait_p50_seconds=_nanoseconds(waits.p50),
        wait_p95_seconds=_nanoseconds(waits.p95),
        wait_p99_seconds=_nanoseconds(waits.p99),
        held_p50_seconds=_nanoseconds(holds.p50),
        held_p95_seconds=_nanoseconds(holds.p95),
        held_p99_seconds=_nanoseconds(holds.p99),
        connect_p50_seconds=_nanoseconds(connects.p50),
        connect_p95_seconds=_nanoseconds(connects.p95),
        connect_p99_seconds=_nanoseconds(connects.p99),
        left_out=figures.left_out or None,
        recent_timeouts=figures.recent_timeouts,
    )
    return fields if figures.known else replace(fields, **_UNKNOWN_PRESENT)


def _figures_of_one(figures: Figures, clock: float, present: bool) -> FigureFields:
    """Return the figures of one process or pool."""
    fields = figure_fields(figures, clock)
    unknown = {} if present else _UNKNOWN_PRESENT
    return replace(fields, processes=None, max_processes=None, **unknown)


def _verdict(figures: Figures, clock: float) -> tuple[VerdictWord | None, str | None]:
    """Return the gravest word and the reasons of all verdicts.

    The node knows that a process is lost; only the reader knows for how long.
    """
    verdicts = figures.verdicts
    if not verdicts:
        return None, None

    def reason(verdict: Verdict) -> str:
        if verdict.word == "LOST" and figures.reported is not None:
            return f"nothing heard for {short_age(_age(clock, figures.reported))}: {verdict.reason}"
        return verdict.reason

    others = [f"{verdict.word}: {reason(verdict)}" for verdict in verdicts[1:]]
    return verdicts[0].word, "; ".join([reason(verdicts[0]), *others])


# --- Values -------------------------------------------------------------------------------------


def _age(now: float, since: float) -> float:
    """Return seconds with three digits; 0.0 for a time after `now` and for what is no number."""
    seconds = now - since
    if 0.0 <= seconds <= LONGEST_SECONDS:
        return int(seconds * 1000.0 + 0.5) / 1000.0  # four times faster than round()
    return LONGEST_SECONDS if seconds > LONGEST_SECONDS else 0.0


def _lasted(reported: float | None, since: float | None) -> float | None:
    """Return how long it had gone on at the last report. None: nothing goes on, or it is unknown."""
    return None if reported is None or since is None else _age(reported, since)


def milliseconds(seconds: float) -> float:
    return round(seconds, 3)


def _seconds_of(ms: int) -> float:
    return ms / 1000.0  # has three digits


def _mean(total_ms: int, seconds: float) -> float | None:
    """Return the mean over these seconds. None: there were none."""
    return _four_figures(total_ms / 1000.0 / seconds) if seconds > 0.0 else None


def _four_figures(value: float) -> float:
    """Return a mean or a share with three digits, below 1 with four figures: only 0 is shown as 0.

    A connection that is held for 1 ms in two minutes is a mean of 0.000008333.
    """
    return round(value, 3) if value >= 1.0 or value == 0.0 else float(f"{value:.4g}")


def _nanoseconds(seconds: float | None) -> float | None:
    # Nine digits: with three, 2 us would be 0, and with six it would be too inexact.
    return None if seconds is None else round(seconds, 9)


def _sortable(key: RowKey) -> tuple[Any, ...]:
    """Return the key so that None sorts before every value."""
    return tuple((part is not None, part if part is not None else 0) for part in key)

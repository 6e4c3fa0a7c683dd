"""The views of the console, and where Enter leads from a row. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, TypeAlias

from connmon.console import text
from connmon.console.format import count
from connmon.console.panes import Page, Pane, page
from connmon.console.rows import (
    CallSiteRow,
    DatabaseUser,
    Key,
    NodeRow,
    PoolGroup,
    ProgramGroup,
    TableRow,
    WaitRow,
)
from connmon.console.source import Want
from connmon.console.waits import STUCK
from connmon.protocol.document import JsonDatabase, JsonHost, JsonProcess, JsonProgram

View: TypeAlias = Literal[
    "programs", "hosts", "databases", "processes", "pools", "connections", "waits", "cluster", "code"
]  # fmt: skip

VIEWS: Final[Mapping[View, Want]] = {
    "programs": Want("program"),
    "hosts": Want("host"),
    "databases": Want("database"),
    "processes": Want("process"),
    "pools": Want("pool"),
    "connections": Want("connection"),
    "waits": Want("wait"),
    "cluster": Want("node"),
    "code": Want("site"),
}


def root(view: View) -> Page:
    """Return the first page of a view, without rows."""
    return page(view, VIEWS[view])


def below(pane: Pane) -> Page | None:
    """Return the page that Enter opens from the row under the cursor; None where nothing is below it."""
    if pane.selected is None:
        return None
    opened = _opened(pane.want, *pane.selected)
    if opened is None:
        return None
    row = pane.selected[1]
    # LEAK and BLOCKED are verdicts of single connections: the cursor begins on these.
    is_stuck = isinstance(row, CallSiteRow) and bool(row.site.held_now) and row.verdict in STUCK
    return replace(page(text.sanitize(opened[0]), *opened[1]), focus=int(is_stuck))


def _opened(want: Want, key: Key, row: TableRow) -> tuple[str, tuple[Want, ...]] | None:
    """Return the title and the tables of the page that Enter opens."""
    if isinstance(row, ProgramGroup) and row.hosts > 1:
        return f"{row.program} on all hosts", (
            Want("program", program=row.program, database=want.database),
        )  # fmt: skip
    if isinstance(row, JsonProgram | ProgramGroup | DatabaseUser):
        return f"{row.program} on {row.host}", (Want("process", host=row.host, program=row.program),)
    if isinstance(row, PoolGroup):
        host, program = str(row.process.host), str(row.process.program)
        return f"{program} on {host}", (Want("process", host=host, program=program),)
    if isinstance(row, CallSiteRow):
        return None if want.call_site is not None else _held_by(row)
    if isinstance(row, WaitRow):
        return _held_of(row)
    if isinstance(row, JsonHost):
        return f"programs on {row.host}", (Want("program", host=row.host),)
    if isinstance(row, JsonDatabase):
        name = str(row.database or "?").rsplit("/", 1)[-1]
        server = f" on {row.database_host}" if row.database_host else ""
        return f"programs using {name}{server}", (Want("program", database=key),)
    if isinstance(row, NodeRow) or (want.instance is not None and not isinstance(row, JsonProcess)):
        return None
    # The row's identity, not a value of it: ("process", instance), ("pool", instance, number).
    instance = str(key[1])
    return f"pid {count(row.process.pid)}", (
        Want("pool", instance=instance), Want("connection", instance=instance),
    )  # fmt: skip


def _held_by(row: CallSiteRow) -> tuple[str, tuple[Want, ...]]:
    """Return the page of a call site and of the connections that it holds."""
    site = row.site
    host = site.host if row.summed_hosts == 1 else None
    title = f"{site.program} on {site.host}: {text.shorten_path(site.call_site, 40)}"
    return title, (
        Want("site", host, site.program, call_site=site.call_site),
        Want("connection", host, site.program, call_site=site.call_site, held=True),
    )


def _held_of(row: WaitRow) -> tuple[str, tuple[Want, ...]]:
    """Return the page of the connections of a pool that somebody holds."""
    host, program, pool = str(row.process.host), str(row.process.program), row.pool.pool
    who = "who holds" if pool is None else f"who holds {text.shorten_path(pool, 32)}"
    return f"{program} on {host}: {who}", (Want("connection", host, program, pool=pool, held=True),)

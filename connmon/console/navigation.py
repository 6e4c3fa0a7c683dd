"""Which views there are, and where Enter leads from a row. Pure."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from connmon.console import text
from connmon.console.fitting import Row
from connmon.console.format import count
from connmon.console.panes import Page, Pane, page
from connmon.console.source import Key, Want

View: TypeAlias = Literal[
    "programs", "hosts", "databases", "processes", "pools", "connections", "waits", "cluster", "code"
]  # fmt: skip

VIEWS: Final[dict[View, Want]] = {
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
    """Return a view that nothing has come for yet."""
    return page(view, VIEWS[view])


def below(pane: Pane) -> Page | None:
    """Return what the row under the cursor consists of; None where nothing is below it."""
    if pane.selected is None:
        return None
    key, row = pane.selected
    opened = _opened(pane.want, key, row)
    return None if opened is None else page(text.clean(opened[0]), *opened[1])


def _opened(want: Want, key: Key, row: Row) -> tuple[str, tuple[Want, ...]] | None:
    by = want.by
    if key[0] == "programs" and row["hosts"] > 1:
        program = str(row.get("program"))
        return f"{program} on all hosts", (Want("program", program=program, database=want.database),)
    if by in ("wait", "site"):
        return _holders(by, row)
    if by == "program" or key[0] == "pools":
        host, program = str(row.get("host")), str(row.get("program"))
        return f"{program} on {host}", (Want("process", host=host, program=program),)
    if by == "host":
        return f"programs on {row.get('host')}", (Want("program", host=str(row.get("host"))),)
    if by == "database":
        name = str(row.get("database") or "?").rsplit("/", 1)[-1]
        server = f" on {row['database_host']}" if row.get("database_host") else ""
        return f"programs using {name}{server}", (Want("program", database=key),)
    if by == "process" or (by in ("pool", "connection") and want.instance is None):
        # The row's identity, not a value of it: ("process", instance), ("pool", instance, number).
        instance = str(key[1])
        return f"pid {count(row.get('pid'))}", (
            Want("pool", instance=instance), Want("connection", instance=instance),
        )  # fmt: skip
    return None


def _holders(by: str, row: Row) -> tuple[str, tuple[Want, ...]]:
    """Return the connections that are held: of the pool that somebody waits for, or by the line of code."""
    host, program = str(row.get("host")), str(row.get("program"))
    if by == "site":
        site = str(row.get("call_site"))
        return f"{program} on {host}: {text.shorten_path(site, 40)}", (
            Want("connection", host, program, call_site=site, held=True),
        )  # fmt: skip
    pool = row.get("pool")
    who = "who holds" if pool is None else f"who holds {text.shorten_path(str(pool), 32)}"
    return f"{program} on {host}: {who}", (
        Want("connection", host, program, pool=None if pool is None else str(pool), held=True),
    )  # fmt: skip

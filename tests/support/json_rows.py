"""Rows of call sites as a node sends them, and typed rows of the JSON contract from flat dicts.

A test names only the fields that it is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from connmon.protocol.document import PARTS, ROW_TYPES
from connmon.protocol.rows import SiteRow
from connmon.protocol.values import Grouping


def typed(by: Grouping, flat: Mapping[str, Any]) -> Any:
    """Return the row of a flat dict as in JSON. A key that the dict lacks is an unknown value."""
    parts: dict[str, Any] = {}
    for name in ROW_TYPES[by].__struct_fields__:
        part = PARTS.get(name)
        if part is not None:
            parts[name] = part(**{field: flat.get(field) for field in part.__struct_fields__})
        elif name == "stack":
            parts[name] = tuple(flat.get(name) or ())
        elif name in ("where_shares", "where_seconds_total"):
            parts[name] = dict(flat.get(name) or {})
        else:
            parts[name] = flat.get(name)
    return ROW_TYPES[by](**parts)


def site_row(**values: Any) -> SiteRow:
    """Return the row of a call site with these values, else as nodes without profiles send it."""
    given: dict[str, Any] = {
        "host": "ctl1", "program": "nova-api", "call_site": "api.py:412 boot", "processes": 1, "held": 3,
        "in_database": 1, "held_since": 68.5, "waiting": 4, "holds": 17, "hold_ms": 23_456, "usual": 0.01,
        "estimated": False, "reported": 99.5,
    }  # fmt: skip
    return SiteRow(**(given | values))

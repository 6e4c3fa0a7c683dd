"""Typed rows of the JSON contract from flat dicts, so that a test names only the keys that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from connmon.protocol.document import PARTS, ROW_TYPES
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

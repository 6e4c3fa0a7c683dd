"""Which metadata lock of MySQL and MariaDB waits for which other. Pure.

The server lists metadata locks without their blockers. Two tables in MySQL's sql/mdl.cc say which types
exclude one another (MDL_lock::m_object_lock_strategy and m_scoped_lock_strategy); they are repeated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from connmon.database.locks import Wait

_SHORT_NAMES: Final = {
    "SHARED": "S", "SHARED_HIGH_PRIO": "SH", "SHARED_READ": "SR", "SHARED_WRITE": "SW",
    "SHARED_WRITE_LOW_PRIO": "SWLP", "SHARED_UPGRADABLE": "SU", "SHARED_READ_ONLY": "SRO",
    "SHARED_NO_WRITE": "SNW", "SHARED_NO_READ_WRITE": "SNRW", "EXCLUSIVE": "X", "INTENTION_EXCLUSIVE": "IX",
}  # fmt: skip
#: Requested type -> granted types of other sessions that it waits for.
_WAITS_FOR_GRANTED: Final = {
    "S": {"X", "IX"},  # IX is on a scope: on all tables, or on those of a schema
    "SH": {"X"},
    "SR": {"SNRW", "X"},
    "SW": {"SRO", "SNW", "SNRW", "X"},
    "SWLP": {"SRO", "SNW", "SNRW", "X"},
    "SU": {"SU", "SNW", "SNRW", "X"},
    "SRO": {"SW", "SWLP", "SNRW", "X"},
    "SNW": {"SW", "SWLP", "SU", "SNW", "SNRW", "X"},
    "SNRW": {"SR", "SW", "SWLP", "SU", "SRO", "SNW", "SNRW", "X"},
    "X": set(_SHORT_NAMES.values()),
    "IX": {"S", "X"},
}
#: Requested type -> requested types of other sessions that go first.
_WAITS_FOR_PENDING: Final = {
    "S": {"X"},
    "SR": {"SNRW", "X"},
    "SW": {"SNW", "SNRW", "X"},
    "SWLP": {"SRO", "SNW", "SNRW", "X"},
    "SU": {"X"},
    "SRO": {"SW", "SNRW", "X"},
    "SNW": {"X"},
    "SNRW": {"X"},
    "IX": {"S", "X"},
}
_WAITS_FOR: Final = {"GRANTED": _WAITS_FOR_GRANTED, "PENDING": _WAITS_FOR_PENDING}


def metadata_waits(rows: Iterable[Sequence[Any]]) -> list[Wait]:
    """Return the waits in rows of performance_schema.metadata_locks: session, type, status, object.

    Where no known type excludes the requested one and exactly one other session has a lock on the object,
    that session is the blocker. Of several, none is named. (MariaDB's backup locks are not in the tables,
    and it shows another type for LOCK TABLES READ than it has.)
    """
    objects: dict[tuple[Any, ...], list[tuple[int, str, str]]] = {}
    for session, lock_type, status, *object_name in rows:
        lock = (int(session), _SHORT_NAMES.get(lock_type, ""), status)
        objects.setdefault(tuple(object_name), []).append(lock)
    waits: dict[Wait, None] = {}
    for locks in objects.values():
        for waiting, requested, status in locks:
            if status != "PENDING":
                continue
            others = [lock for lock in locks if lock[0] != waiting]
            blockers = [
                blocking
                for blocking, lock_type, other_status in others
                if lock_type in _WAITS_FOR.get(other_status, {}).get(requested, ())
            ]
            if not blockers:
                owners = {blocking for blocking, _, other_status in others if other_status == "GRANTED"}
                blockers = list(owners) if len(owners) == 1 else []
            waits.update(dict.fromkeys(Wait(waiting, blocking) for blocking in blockers))
    return list(waits)

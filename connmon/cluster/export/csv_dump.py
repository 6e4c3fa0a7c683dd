"""The CSV dump: one row per host, program and second while something changes.

- The columns are `TIMESTAMP`, `TOKEN`, `SERVICE`, `NODE` and the keys of `connmon snapshot --by program`. A
  row is written when one of its columns has changed, other than those that only show the time.
- The leader writes, or every node, as configured. A node without quorum does not: its rows are out of date.
- A thread of its own writes, one write at a time: a hanging disk delays the dump and nothing else, not
  even the node's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime
import io
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from connmon.cluster.export.dump_file import DumpFile
from connmon.cluster.raft.replica import Replica
from connmon.cluster.server import Server
from connmon.config import Service
from connmon.errors import ConfigError, one_line
from connmon.protocol.document import KEYS
from connmon.protocol.document import cells as json_cells
from connmon.protocol.rows import RowKey
from connmon.protocol.snapshot import Snapshot
from connmon.protocol.text import csv_cell

logger = logging.getLogger(__name__)

TIMESTAMP: Final = "timestamp"
TOKEN: Final = "token"
SERVICE: Final = "service"
NODE: Final = "node"
#: All possible columns.
COLUMNS: Final = (TIMESTAMP, TOKEN, SERVICE, NODE, *KEYS["program"])
#: The columns if the config has no csv_columns; the token's only if the config has one.
DEFAULT_COLUMNS: Final = (
    TIMESTAMP, TOKEN, "host", "program", "state", "processes", "connections", "checked_out", "waiting",
    "max_processes", "max_connections", "max_checked_out", "checkouts_total", "checkouts_per_second",
)  # fmt: skip
_TIME_ONLY: Final = (TIMESTAMP, "last_report_seconds", "verdict_reason")


@dataclass(frozen=True)
class DumpSettings:
    """How often the dump is written, and how large its files are where the config says nothing."""

    interval_seconds: float = 1.0
    """Between two looks at the rows."""
    file_bytes: int = 100 * 2**20
    """Of one file, before it is rotated."""
    kept_files: int = 5
    """Older files that are kept."""


SETTINGS: Final = DumpSettings()


def columns_of(service: Service) -> tuple[str, ...]:
    """Return the columns of the service's dump. Raises ConfigError."""
    where = f"{service.origin} " if service.origin else ""
    if service.csv_columns is None:
        return tuple(column for column in DEFAULT_COLUMNS if column != TOKEN or service.csv_token is not None)
    for column in service.csv_columns:
        if column not in COLUMNS:
            raise ConfigError(
                one_line(f"{where}csv_columns: no column {column[:100]!r}; possible are {', '.join(COLUMNS)}")
            )
    if TOKEN in service.csv_columns and service.csv_token is None:
        raise ConfigError(f"{where}csv_columns: {TOKEN}, but there is no csv_token")
    return service.csv_columns


def check_dump(service: Service) -> None:
    """Raise ConfigError if `open_dump` would. Makes and writes nothing."""
    _dump_file(service, DumpFile.check_only)


def open_dump(service: Service) -> DumpFile | None:
    """Return the file of the service's dump, None if it has none.

    Raises ConfigError if the file cannot be written to, or if options contradict each other.
    """
    return _dump_file(service, DumpFile.check)


def _dump_file(service: Service, check: Callable[[DumpFile], None]) -> DumpFile | None:
    where = f"{service.origin} " if service.origin else ""
    if service.csv_dump is None:
        for option in ("csv_columns", "csv_token", "csv_by", "csv_size", "csv_keep"):
            if getattr(service, option) is not None:
                raise ConfigError(f"{where}{option}: without csv_dump, which names the file")
        return None
    columns = columns_of(service)
    size = SETTINGS.file_bytes if service.csv_size is None else service.csv_size
    keep = SETTINGS.kept_files if service.csv_keep is None else service.csv_keep
    file = DumpFile(service.csv_dump, _line(columns), size, keep)
    try:
        check(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            one_line(f"{where}csv_dump: {service.csv_dump} cannot be written: {reason}")
        ) from None
    return file


class ChangedRows:
    """Select the rows that have changed. Pure.

    `columns` are those of `columns_of`, `fixed` the cells that all rows have alike.
    """

    def __init__(self, columns: Sequence[str], fixed: Mapping[str, str]) -> None:
        self._columns = columns
        self._fixed = fixed
        self._compared = [column for column in columns if column not in _TIME_ONLY]
        self._last: dict[RowKey, list[Any]] = {}

    def __repr__(self) -> str:
        return f"<ChangedRows: {len(self._columns)} columns, {len(self._last)} rows>"

    def due(self, rows: Sequence[tuple[RowKey, Mapping[str, Any]]], timestamp: str) -> str:
        """Return the rows that have changed since the last call, as lines."""
        lines: list[str] = []
        compared: dict[RowKey, list[Any]] = {}
        for key, cells in rows:
            row = {**cells, **self._fixed, TIMESTAMP: timestamp}
            compared[key] = [row[column] for column in self._compared]
            if self._last.get(key) != compared[key]:
                lines.append(_line([csv_cell(row[column]) for column in self._columns]))
        self._last = compared
        return "".join(lines)

    def forget(self) -> None:
        """Treat every row as changed: what was written last is unknown."""
        self._last = {}


def _line(cells: Sequence[Any]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue()


class Dump:
    """Writes the dump of this node."""

    def __init__(
        self,
        service: Service,
        node: str,
        server: Server,
        replica: Replica,
        file: DumpFile,
        settings: DumpSettings = SETTINGS,
    ) -> None:
        self._interval_seconds = settings.interval_seconds
        self._leader_only = service.csv_by != "node"
        self._server = server
        self._replica = replica
        self._file = file
        fixed = {SERVICE: service.name, NODE: node, TOKEN: service.csv_token or ""}
        self._rows = ChangedRows(columns_of(service), fixed)
        self._snapshot = Snapshot("program")

    def __repr__(self) -> str:
        return f"<Dump to {self._file!r}>"

    async def run(self) -> None:
        """Write changed rows, until cancelled."""
        while True:
            try:
                await self._write_changes()
            except Exception:
                logger.exception("the CSV dump has failed; going on")
            await asyncio.sleep(self._interval_seconds)

    async def _write_changes(self) -> None:
        group = self._replica.status
        if not group.quorum or (self._leader_only and not group.is_leader):
            self._rows.forget()
            return
        for frame in self._server.rows(self._snapshot.query()):
            self._snapshot.apply(frame)
            await asyncio.sleep(0)
        now = datetime.datetime.now(datetime.timezone.utc)
        timestamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        rows = self._rows.due([(key, json_cells(row)) for key, row in self._snapshot.typed_rows()], timestamp)
        if rows and not await _on_a_thread(lambda: self._file.write(rows)):
            self._rows.forget()


async def _on_a_thread(call: Callable[[], bool]) -> bool:
    """Return the result of `call`, made on a daemon thread: the process can end before it does."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bool] = loop.create_future()

    def run() -> None:
        try:
            result = call()
        except Exception:
            logger.exception("writing the CSV dump has failed")
            result = False
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(result))

    threading.Thread(target=run, name="csv-dump", daemon=True).start()
    return await done

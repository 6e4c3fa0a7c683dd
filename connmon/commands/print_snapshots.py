"""Print snapshots at an interval: the console's output with --batch, for pipes and files.

- No escape code is printed and no key is waited for. Each snapshot is flushed, so that a reader has it at
  once.
- JSON is one document per line. Tables and CSV are separated by an empty line.
- The nodes judge: verdicts are in the rows. Only OVERCOMMIT by a maximum that this reader alone has
  (--server-max) is judged here, and stands in the row as if the node had judged it.
- A snapshot that no node gives is one line on stderr; the next one is tried all the same. The exit code is
  1 where the last snapshot failed, else 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from connmon.config import Service
from connmon.errors import ConnmonError
from connmon.protocol.credentials import Credentials
from connmon.protocol.document import Document, JsonDatabase
from connmon.protocol.text import short_age
from connmon.protocol.values import Grouping
from connmon.reader.client import read_once
from connmon.reader.formats import as_json_line, printed
from connmon.reader.server_maxima import judged_by

DONE, UNREACHABLE = 0, 1


def print_snapshots(
    service: Service,
    credentials: Credentials,
    *,
    by: Grouping,
    form: str,
    times: int | None,
    interval_seconds: float,
    maxima: Mapping[tuple[str, int | None], int],
    write: Callable[[str], None],
    complain: Callable[[str], None],
    width: Callable[[], int | None],
) -> int:
    """Print `times` snapshots (None: until interrupted); return the exit code.

    Raises ConnmonError where the only snapshot fails.
    """
    number = 0
    code = DONE
    due = time.monotonic()
    while times is None or number < times:
        if number:
            due = max(due + interval_seconds, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        try:
            document = read_once(service.nodes, service.name, by, credentials=credentials).typed_document()
        except ConnmonError as error:
            if times == 1:
                raise
            complain(str(error))
            code = UNREACHABLE
        else:
            code = DONE
            if by == "database" and maxima:
                databases = [row for row in document.rows if isinstance(row, JsonDatabase)]
                document = document._replace(rows=judged_by(databases, maxima))
            write(_text(document, form, width(), is_first=not number))
            head = document.head
            if warning := quorum_warning(head.node, head.quorum, head.stale_seconds):
                complain(warning)
        number += 1
    return code


def _text(document: Document, form: str, width: int | None, is_first: bool) -> str:
    if form == "json":
        return as_json_line(document.flat())
    return ("" if is_first else "\n") + printed(document, form, width)


def quorum_warning(node: str, quorum: bool, stale_seconds: float) -> str | None:
    """Return the line for a document of a node without quorum; None: the node has quorum."""
    if quorum:
        return None
    return f"{node} has no quorum: what it shows has stood still for {short_age(stale_seconds)}"

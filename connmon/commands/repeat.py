"""The console's batch output: what a node shows, printed again and again, for pipes and for files.

Rules kept here:

- Never an escape code, never a key that is waited for; each picture is flushed, so that a reader has it.
- JSON is one document per line. Tables and CSV are parted by an empty line.
- What is wrong the nodes judge: it is in the rows. Only of a maximum that this reader alone has been given
  (--server-max) is OVERCOMMIT judged here, and stands in the row as if the node had.
- A picture that no node gives is one line on stderr; the next one is tried all the same. Exit code 1
  where the last one could not be had, 0 else.
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


def run(
    service: Service,
    credentials: Credentials,
    *,
    by: Grouping,
    form: str,
    times: int | None,
    interval: float,
    maxima: Mapping[tuple[str, int | None], int],
    write: Callable[[str], None],
    complain: Callable[[str], None],
    width: Callable[[], int | None],
) -> int:
    """Print so many pictures (None: until interrupted), `interval` seconds apart; return the exit code."""
    number = 0
    code = DONE
    due = time.monotonic()
    while times is None or number < times:
        if number:
            due = max(due + interval, time.monotonic())
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
            write(_text(document, form, width(), number > 0))
            if not document.head.quorum:
                still = short_age(document.head.stale_seconds)
                complain(f"{document.head.node} has no quorum: what it shows has stood still for {still}")
        number += 1
    return code


def _text(document: Document, form: str, width: int | None, again: bool) -> str:
    if form == "json":
        return as_json_line(document.flat())
    return ("\n" if again else "") + printed(document, form, width)

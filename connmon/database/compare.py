"""Reads a node and a database server one after the other, twice where they do not fit: `connmon reconcile`.
Once for `connmon whois` with a URL.

- The node is read first, and where nothing is wrong that is all. Otherwise both are read again
  after `SETTLE` seconds, in which what was just opened or closed has been reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from connmon.config import Service
from connmon.database.reconcile import Look, Naming, is_settled, reconcile
from connmon.database.sessions import DatabaseSessions, parse_url
from connmon.database.whois import At, whois
from connmon.database_address import DatabaseServer, plain
from connmon.process_info import addresses, host
from connmon.protocol.credentials import Credentials
from connmon.reader.client import read_once

#: Seconds between two looks: a report a second, a batch, and some to spare.
SETTLE: Final = 2.5


def compare(
    service: Service,
    credentials: Credentials,
    url: str,
    also: Sequence[DatabaseServer] = (),
    ask_password: Callable[[str], str] | None = None,
) -> dict[str, Any]:
    """Return the document of the comparison. Raises ConnmonError.

    `also` are names that applications have for the server besides the URL's; `ask_password` as
    for DatabaseSessions.
    """
    parsed = parse_url(url)
    naming = Naming(host(), tuple(also), frozenset(map(plain, addresses())))
    with DatabaseSessions(parsed, ask_password) as database:
        first = _look(service, credentials, database)
        second = None
        if not is_settled(first, naming):
            time.sleep(SETTLE)
            second = _look(service, credentials, database)
    return reconcile(first, second, naming)


def _look(
    service: Service, credentials: Credentials, database: DatabaseSessions, session: int | None = None
) -> Look:
    snapshot = read_once(service.nodes, service.name, "connection", credentials=credentials)
    view = database.look()
    document = snapshot.document()
    header = {key: document[key] for key in ("service", "node", "leader", "quorum", "stale_seconds")}
    header["left_out"] = document["totals"]["left_out"]
    return Look(header, snapshot.pool_rows(), document["rows"], view, database.locks(view, session))


def whois_at(
    service: Service,
    credentials: Credentials,
    url: str,
    session: int,
    ask_password: Callable[[str], str] | None = None,
) -> tuple[dict[str, Any], str | None]:
    """Return what `whois` does of a session of this server, who blocks it and whom it blocks. Raises
    ConnmonError."""
    parsed = parse_url(url)
    naming = Naming(host(), (), frozenset(map(plain, addresses())))
    with DatabaseSessions(parsed, ask_password) as database:
        look = _look(service, credentials, database, session)
        waiting = database.locks(look.view, session, down=True)
    document = {**look.header, "totals": look.header, "rows": look.connections}
    return whois(document, session, (look.view.server,), look.pools, At(look, naming, waiting))

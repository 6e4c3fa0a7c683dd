"""Read a node and a database server, one after the other, for `connmon reconcile` and `connmon whois`.

For `reconcile` the node is read first. Where everything fits that is all. Otherwise both are read again after
`DatabaseSettings.settle_seconds`, in which anything just opened or closed has been reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from connmon.config import Service
from connmon.database.documents import Reconcile, Whois, look_header
from connmon.database.naming import Naming
from connmon.database.reconcile import DatabaseLook, is_settled, reconcile
from connmon.database.sessions import DatabaseSessions, parse_url
from connmon.database.settings import DEFAULTS, DatabaseSettings
from connmon.database.whois import ServerLook, whois
from connmon.database_address import DatabaseServer, plain
from connmon.process_info import addresses, host
from connmon.protocol.credentials import Credentials
from connmon.protocol.document import JsonConnection
from connmon.reader.client import read_once


def reconcile_server(
    service: Service,
    credentials: Credentials,
    url: str,
    also: Sequence[DatabaseServer] = (),
    ask_password: Callable[[str], str] | None = None,
    settings: DatabaseSettings = DEFAULTS,
) -> Reconcile:
    """Return the comparison. Raises ConnmonError.

    `also`: names that applications use for the server besides the URL's. `ask_password`: see
    DatabaseSessions.
    """
    parsed = parse_url(url)
    naming = _naming(also)
    with DatabaseSessions(parsed, ask_password, settings) as database:
        first = _look(service, credentials, database)
        second = None
        if not is_settled(first, naming):
            time.sleep(settings.settle_seconds)
            second = _look(service, credentials, database)
    return reconcile(first, second, naming)


def whois_on_server(
    service: Service,
    credentials: Credentials,
    url: str,
    session: int,
    ask_password: Callable[[str], str] | None = None,
    settings: DatabaseSettings = DEFAULTS,
) -> tuple[Whois, str | None]:
    """Return what `whois` does of a session of this server, with its blockers and the sessions that it
    blocks.

    Raises ConnmonError.
    """
    parsed = parse_url(url)
    with DatabaseSessions(parsed, ask_password, settings) as database:
        look = _look(service, credentials, database, session)
        waiters = database.locks(look.view, session, waiters=True)
    at = ServerLook(look, _naming(()), waiters)
    return whois(look.header, look.connections, session, (look.view.server,), look.pools, at)


def _naming(also: Sequence[DatabaseServer]) -> Naming:
    return Naming(here=host(), also=tuple(also), addresses=frozenset(map(plain, addresses())))


def _look(
    service: Service, credentials: Credentials, database: DatabaseSessions, session: int | None = None
) -> DatabaseLook:
    snapshot = read_once(service.nodes, service.name, "connection", credentials=credentials)
    view = database.look()
    return DatabaseLook(
        header=look_header(snapshot.typed_head()),
        pools=snapshot.pool_rows(),
        connections=snapshot.rows_of(JsonConnection),
        view=view,
        locks=database.locks(view, session),
    )

"""Which privilege still gets a session on a server that is at its connection limit. Pure: no I/O, no time.

Sources: MySQL 8.4 reference manual, 7.1.12.1 (one extra connection for CONNECTION_ADMIN or SUPER) and
7.1.12.2 (admin_port); MariaDB's pages on max_connections, extra_port and CONNECTION ADMIN (since 10.5.2,
SUPER before); PostgreSQL 16, 20.3.1 (superuser_reserved_connections, reserved_connections).
"""

from __future__ import annotations

import re
from typing import Final

_MYSQL_SERVER_FULL: Final = (1040,)
"""ER_CON_COUNT_ERROR: max_connections is reached."""
_MYSQL_ACCOUNT_FULL: Final = (1203, 1226)
"""The account's own limit is reached."""
_POSTGRESQL_FULL: Final = "53300"
"""too_many_connections."""

_MYSQL_HINT: Final = (
    "one session more is kept for an account with CONNECTION_ADMIN (MySQL), CONNECTION ADMIN (MariaDB 10.5) "
    "or SUPER; or use the server's admin_port (MySQL) or extra_port (MariaDB)"
)
_MYSQL_ACCOUNT_HINT: Final = "max_user_connections: that is this account's limit, use another account"
_RESERVED_HINT: Final = (
    "superuser_reserved_connections are kept for a superuser, and from PostgreSQL 16 on reserved_connections "
    "for a member of pg_use_reserved_connections"
)
_FULL_HINT: Final = (
    "the reserved ones are used up too, so that a superuser does not get in either: end a session there"
)
_ROLE_HINT: Final = "CONNECTION LIMIT: that is this role's or database's limit, which no superuser has"


def hint(code: object, message: str) -> str:
    """Return the hint in brackets after a space; "" where the server is not at its limit.

    `code` is MySQL's error number or PostgreSQL's SQLSTATE; None where the driver does not give it (psycopg
    has none for a refused connection). `message` is the server's.
    """
    text = ""
    if code in _MYSQL_SERVER_FULL:
        text = _MYSQL_HINT
    elif code in _MYSQL_ACCOUNT_FULL:
        text = _MYSQL_ACCOUNT_HINT
    elif "connection slots are reserved" in message:
        text = _RESERVED_HINT
    elif "too many clients already" in message:
        text = _FULL_HINT
    elif re.search("too many connections for (role|database)", message):
        text = _ROLE_HINT
    elif code == _POSTGRESQL_FULL:  # the message is in the server's language
        text = _RESERVED_HINT
    return f" ({text})" if text else ""

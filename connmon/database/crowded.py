"""Which right still gets a session where the server says that it has too many. Pure: no I/O, no time.

The sources: MySQL 8.4 reference manual, 7.1.12.1 (one connection more, for CONNECTION_ADMIN or SUPER) and
7.1.12.2 (admin_port); MariaDB's pages on max_connections, extra_port and CONNECTION ADMIN (10.5.2 on, SUPER
before); PostgreSQL 16, 20.3.1 (superuser_reserved_connections, reserved_connections).
"""

from __future__ import annotations

import re
from typing import Final

#: max_connections is reached; an account's own limit is.
_MYSQL_ALL: Final = (1040,)
_MYSQL_ACCOUNT: Final = (1203, 1226)
_POSTGRESQL: Final = "53300"

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


def hint(code: object, said: str) -> str:
    """Return which right gets in, in brackets after a space; "" where the server has sessions to give.

    `code` is MySQL's number or PostgreSQL's SQLSTATE, None where the driver does not have it (psycopg
    has none for a connection that was refused); `said` is the server's message.
    """
    found = ""
    if code in _MYSQL_ALL:
        found = _MYSQL_HINT
    elif code in _MYSQL_ACCOUNT:
        found = _MYSQL_ACCOUNT_HINT
    elif re.search("connection slots are reserved", said):
        found = _RESERVED_HINT
    elif re.search("too many clients already", said):
        found = _FULL_HINT
    elif re.search("too many connections for (role|database)", said):
        found = _ROLE_HINT
    elif code == _POSTGRESQL:  # in the server's own language
        found = _RESERVED_HINT
    return f" ({found})" if found else ""

"""Read user and password from ~/.my.cnf and ~/.pgpass as the servers' own clients do. Pure.

- Only user and password are taken: the URL says where the server is.
- A password that a file has for another user or server is never returned: it would be sent to the wrong one.

Why not a library:

- PyMySQL's `optionfile.Parser` and configparser, which it is built on, read `password = x # comment` and
  escapes (`a\\sb`, `'it\\'s'`) literally, and refuse a file with `!includedir`, with an option given twice
  or with a group given twice. The server's own client takes all of these.
- pgpasslib 1.1 (the newest) takes the last colons for separators: one password with an unescaped colon, or
  one port that is no number, makes the whole file unreadable. It does not unescape `\\\\`.
- libpq reads ~/.pgpass by itself, but only for psycopg and psycopg2; pg8000 does not use it, and PyMySQL and
  mysqlclient differ in what they read of ~/.my.cnf. One reader gives all drivers the same login.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: The groups of ~/.my.cnf that are read. A later one wins.
GROUPS: Final = ("client", "client-mariadb", "connmon")

_ESCAPES: Final[Mapping[str, str]] = {
    "b": "\b", "t": "\t", "n": "\n", "r": "\r", "s": " ", "\\": "\\", "'": "'", '"': '"',
}  # fmt: skip


def from_my_cnf(text: str, user: str | None) -> tuple[str | None, str | None]:
    """Return user and password for a login as `user`; None: as the user that the file names."""
    groups: dict[str, dict[str, str]] = {}
    options: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;!":
            continue
        if group := re.fullmatch(r"\[([^]]*)\].*", line):
            options = groups.setdefault(group[1].strip().lower(), {})
        elif option := re.match(r"([^=#]+?)\s*=\s*(.*)", line):
            options[option[1].replace("_", "-").lower()] = _my_cnf_value(option[2])
    merged: dict[str, str] = {}
    for name in GROUPS:
        merged |= groups.get(name, {})
    file_user = merged.get("user") or None
    if user is not None and file_user is not None and file_user != user:
        return user, None
    return user or file_user, merged.get("password") or None


def _my_cnf_value(text: str) -> str:
    if text[:1] in ("'", '"'):
        if quoted := re.match(rf"{text[0]}((?:\\.|[^{text[0]}\\])*){text[0]}", text):
            text = quoted[1]
    else:
        text = re.sub(r"\s*(?<!\\)#.*", "", text)
    return re.sub(r"\\([btnrs'\"\\])", lambda match: _ESCAPES[match[1]], text)


def from_pgpass(text: str, host: str | None, port: int, database: str, user: str) -> str | None:
    """Return the password of the first line that matches; `host` None: a local socket."""
    login = (host or "localhost", str(port), database, user)
    for line in text.splitlines():
        match = None if line.startswith("#") else _PGPASS.fullmatch(line)
        if match is None:
            continue
        *fields, password = match.groups()
        if all(
            field == "*" or _unescaped(field) == value for field, value in zip(fields, login, strict=True)
        ):
            return _unescaped(password) or None
    return None


#: host:port:database:user:password. The password may have colons that are not escaped.
_PGPASS: Final = re.compile(r"((?:\\.|[^:\\])*):" * 4 + "(.*)")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)

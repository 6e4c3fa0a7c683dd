"""What ~/.my.cnf and ~/.pgpass say of a login, read as the servers' own clients read them. Pure.

- Only user and password are taken: where the server is, the URL says.
- A password that a file has for another user or server is never returned, since it would be
  sent to whoever is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: The groups of ~/.my.cnf that are read, the last one wins.
GROUPS: Final = ("client", "client-mariadb", "connmon")

_ESCAPES: Final[Mapping[str, str]] = {
    "b": "\b", "t": "\t", "n": "\n", "r": "\r", "s": " ", "\\": "\\", "'": "'", '"': '"',
}  # fmt: skip


def from_my_cnf(text: str, user: str | None) -> tuple[str | None, str | None]:
    """Return user and password for logging in as `user`; None: as the file's own user."""
    found: dict[str, dict[str, str]] = {}
    options: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;!":
            continue
        if group := re.fullmatch(r"\[([^]]*)\].*", line):
            options = found.setdefault(group[1].strip().lower(), {})
        elif option := re.match(r"([^=#]+?)\s*=\s*(.*)", line):
            options[option[1].replace("_", "-").lower()] = _my_cnf_value(option[2])
    given: dict[str, str] = {}
    for name in GROUPS:
        given |= found.get(name, {})
    own = given.get("user") or None
    if user is not None and own is not None and own != user:
        return user, None
    return user or own, given.get("password") or None


def _my_cnf_value(text: str) -> str:
    if text[:1] in ("'", '"'):
        if quoted := re.match(rf"{text[0]}((?:\\.|[^{text[0]}\\])*){text[0]}", text):
            text = quoted[1]
    else:
        text = re.sub(r"\s*(?<!\\)#.*", "", text)
    return re.sub(r"\\([btnrs'\"\\])", lambda match: _ESCAPES[match[1]], text)


def from_pgpass(text: str, host: str | None, port: int, database: str, user: str) -> str | None:
    """Return the password of the first line that fits; `host` None: by a local socket."""
    wanted = (host or "localhost", str(port), database, user)
    for line in text.splitlines():
        match = None if line.startswith("#") else _PGPASS.fullmatch(line)
        if match is None:
            continue
        *fields, password = match.groups()
        if all(field == "*" or _unescaped(field) == want for field, want in zip(fields, wanted, strict=True)):
            return _unescaped(password) or None
    return None


#: The password may have colons that are not escaped.
_PGPASS: Final = re.compile(r"((?:\\.|[^:\\])*):" * 4 + "(.*)")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)

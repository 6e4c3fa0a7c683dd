"""User and password of ~/.my.cnf and ~/.pgpass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.database.login_files import from_my_cnf, from_pgpass

MY_CNF = """
# a comment
[mysqld]
user = mysql
password = servers
!includedir /etc/mysql/conf.d/
[client]
port=3307
user = "nova"
password = 'a#b;c=d\\\\e "f"'   # said here
[client-mariadb]
ssl
"""


def test_my_cnf() -> None:
    """User and password are those of the client's groups, quotes and comments taken off."""
    assert from_my_cnf(MY_CNF, None) == ("nova", 'a#b;c=d\\e "f"')
    assert from_my_cnf(MY_CNF, "nova") == ("nova", 'a#b;c=d\\e "f"')
    assert from_my_cnf("", None) == (None, None)


def test_my_cnf_of_another_user() -> None:
    """A password that the file has for one user is not used for another."""
    assert from_my_cnf(MY_CNF, "keystone") == ("keystone", None)
    assert from_my_cnf("[client]\npassword=x", "keystone") == ("keystone", "x")


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("password=plain", "plain"),
        ("password = with space  # and a comment", "with space"),
        (r"password = a\sb\tc\\d", "a b\tc\\d"),
        ('password = "it\'s"', "it's"),
        (r"password = 'it\'s'", "it's"),
        ("PASSWORD=x", "x"),
        ("password=", None),
        ("password", None),
        ("pass_word=x", None),
        ("password = 'not closed", "'not closed"),
    ],
)
def test_my_cnf_values(line: str, password: str | None) -> None:
    """A value is read as the server's own client reads it."""
    assert from_my_cnf(f"[client]\n{line}\n", "u")[1] == password


def test_my_cnf_later_group_wins() -> None:
    """[connmon] takes precedence over [client]."""
    assert from_my_cnf("[connmon]\nuser=ro\npassword=2\n[client]\npassword=1\n", None) == ("ro", "2")


PGPASS = r"""# host:port:database:user:password
db:5433:nova:nova:other port
db:5432:*:nova:first
db:5432:nova:nova:second
*:*:*:back\\slash:a\:b\\c:d
localhost:*:*:local:socket
"""


@pytest.mark.parametrize(
    ("host", "port", "database", "user", "password"),
    [
        ("db", 5432, "nova", "nova", "first"),
        ("db", 5433, "nova", "nova", "other port"),
        ("db", 5433, "other", "nova", None),
        ("x", 1, "y", "back\\slash", "a:b\\c:d"),
        (None, 5432, "y", "local", "socket"),
        ("db", 5432, "nova", "keystone", None),
    ],
)
def test_pgpass(host: str | None, port: int, database: str, user: str, password: str | None) -> None:
    """The first matching line counts; escapes, and plain colons in the password, are read."""
    assert from_pgpass(PGPASS, host, port, database, user) == password


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), st.text("abc:\\*é", min_size=1))
def test_pgpass_round_trip(password: str, user: str) -> None:
    """Any user and password, written with escapes, are read back."""

    def escaped(field: str) -> str:
        return field.replace("\\", "\\\\").replace(":", "\\:")

    line = f"h:1:d:{escaped(user)}:{escaped(password)}\n"
    if user != "*":
        assert from_pgpass(line, "h", 1, "d", user) == password


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1))
def test_my_cnf_round_trip(password: str) -> None:
    """Any password, written in quotes with escapes, is read back."""
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    assert from_my_cnf(f"[client]\npassword='{quoted}'\n", "u") == ("u", password)

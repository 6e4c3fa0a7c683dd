"""Requirements of tests that a machine may lack: packages without wheels, servers, programs, privileges.

Rules kept here: a test that lacks something is skipped with one line that says what to install. With
CONNMON_TEST_SERVERS=required, as in CI, it fails instead. No other module skips a test.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Final, NoReturn

import pytest

#: By module or program: what provides it, and how to install it on Debian.
INSTALL: Final = {
    "MySQLdb": (
        "mysqlclient",
        "apt-get install gcc libmariadb-dev pkg-config python3-dev, then pip install mysqlclient"
        " (tox does the latter)",
    ),
    "uwsgi": ("uwsgi", "apt-get install gcc python3-dev, then pip install uwsgi (tox does the latter)"),
    "placement": ("openstack-placement", "pip install openstack-placement"),
    "mariadbd": ("MariaDB", "apt-get install mariadb-server"),
    "mariadb-install-db": ("MariaDB", "apt-get install mariadb-server"),
    "initdb": ("PostgreSQL", "apt-get install postgresql"),
    "postgres": ("PostgreSQL", "apt-get install postgresql"),
    "pgbouncer": ("PgBouncer", "apt-get install pgbouncer"),
    "prometheus": ("Prometheus", "apt-get install prometheus"),
    "promtool": ("promtool", "apt-get install prometheus"),
    "systemd-analyze": ("systemd-analyze", "apt-get install systemd"),
    "shellcheck": ("shellcheck", "apt-get install shellcheck"),
    "tmux": ("tmux", "apt-get install tmux"),
    "ip": ("ip and iptables", "apt-get install iproute2 iptables"),
    "iptables": ("ip and iptables", "apt-get install iproute2 iptables"),
}


def required() -> bool:
    """Return whether a test fails if it lacks something."""
    return os.environ.get("CONNMON_TEST_SERVERS") == "required"


def lacking(need: str, remedy: str) -> NoReturn:
    """Skip the test, or fail it if nothing may be missing: it needs something that is not here."""
    line = f"needs {need}: {remedy}"
    if required():
        pytest.fail(f"{line} (CONNMON_TEST_SERVERS=required)", pytrace=False)
    pytest.skip(line)


def not_installed(name: str) -> NoReturn:
    """Skip or fail the test for lack of a module or a program, by its name."""
    lacking(*INSTALL.get(name, (name, f"pip install {name.replace('_', '-')}")))


def needs(*modules: str) -> None:
    """Require modules that the test imports; uwsgi is a program that is installed with the interpreter."""
    for module in modules:
        uwsgi = shutil.which(module, path=str(Path(sys.executable).parent)) if module == "uwsgi" else None
        if uwsgi is None and importlib.util.find_spec(module) is None:
            not_installed(module)


def needs_driver(drivername: str) -> None:
    """Require the driver of an engine by its SQLAlchemy name: "mysqldb", "mysql+mysqldb", "mysql"."""
    if drivername.rpartition("+")[2] in ("mysqldb", "mysql", "mariadb"):
        needs("MySQLdb")


def program(name: str) -> str:
    """Return the path of a program that the test requires."""
    return shutil.which(name) or not_installed(name)


def needs_root(purpose: str) -> None:
    """Require root, for something that only root may do."""
    if os.geteuid():
        lacking("root", f"{purpose} as root")

"""Private MariaDB and PostgreSQL servers for tests.

Rules kept here: all files of a server are in one temporary directory; it listens on a free port of
127.0.0.1; it dies with the process that started it, also when that is killed. Servers that run on the
machine already are never touched.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import psycopg
import pymysql
from sqlalchemy.engine import URL

from tests.support.requirements import not_installed
from tests.support.waiting import wait_for

_LAUNCH: Final = str(Path(__file__).with_name("launch.py"))
_STOP_SECONDS: Final = 20.0


class Session(NamedTuple):
    """One client session, as the server lists it."""

    id: int
    user: str
    host: str | None
    db: str | None


class Server(ABC):
    """A private database server. Without its package a test is skipped: see tests.support.requirements."""

    backend: ClassVar[str]
    _death: ClassVar[str]
    """The signal that ends it at once, if the tests end without stopping it."""

    host: Final = "127.0.0.1"
    user: Final = "connmon"
    #: Contains characters that need quoting in a URL, and is never part of another text by chance.
    password: Final = "open%sesame@7"
    database: Final = "connmon"

    def __init__(self) -> None:
        self._find()
        self.directory = tempfile.mkdtemp(prefix="connmon-", dir=_directory_for_all())
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: Any = None
        self._lock = threading.Lock()
        try:
            self._prepare()
            self.start()
            self._finish()
            # The sessions of the preparation have ended before any test looks.
            wait_for(lambda: not self.sessions(), what="the first sessions to end")
        except BaseException:
            self.remove()
            raise

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, driver: str, **query: str) -> str:
        """Return the URL for a driver, such as pymysql_connmon, or in full mariadb+pymysql."""
        name = driver if "+" in driver else f"{self.backend}+{driver}"
        url = URL.create(
            name, self.user, self.password, self.host, self.port, database=self.database, query=query
        )
        return url.render_as_string(hide_password=False)

    def sessions(self) -> list[Session]:
        """Return the server's own list of client sessions, without the one that asks.

        The same session always asks, so that no session of the tests' own opens or ends meanwhile.
        """
        with self._lock:
            if self._admin is None:
                self._admin = self._connect(self.database)
            try:
                rows = self._rows(self._sessions_query)
            except (pymysql.Error, psycopg.Error):  # the server has restarted since
                self._disconnect()
                self._admin = self._connect(self.database)
                rows = self._rows(self._sessions_query)
        return [Session(*row) for row in rows]

    @property
    def asking_session(self) -> int:
        """The id of the session that `sessions` uses; it stays open."""
        self.sessions()
        with self._lock:
            (row,) = self._rows(self._own_query)
        return int(row[0])

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        log = Path(self.directory, "log")
        with log.open("ab") as output:
            self._process = self._launch(self._command(), output)

        def answers() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{self.backend} did not start:\n{log.read_text(errors='replace')[-4000:]}"
                )
            with contextlib.suppress(pymysql.Error, psycopg.Error, OSError):
                self._connect(self._first_database).close()
                return True
            return False

        wait_for(answers, 60, f"{self.backend} to answer, see {log}")

    def stop(self, signal_sent: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server, and return when it has ended. It keeps its data and its port."""
        self._disconnect()
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal_sent)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """End the server at once and delete its data."""
        self.stop(signal.Signals[self._death])
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- Specific to a server ---

    _first_database: ClassVar[str]
    """A database that exists as soon as the server runs."""
    _sessions_query: ClassVar[str]
    _own_query: ClassVar[str]
    _run_as: str = ""

    @abstractmethod
    def _find(self) -> None: ...

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _connect(self, database: str) -> Any: ...

    @abstractmethod
    def _finish(self) -> None:
        """Finish the preparation when the server runs for the first time."""

    # --- Common to the servers ---

    def _rows(self, query: str) -> Sequence[Any]:
        with self._admin.cursor() as cursor:
            cursor.execute(query)
            rows: Sequence[Any] = cursor.fetchall()
            return rows

    def _disconnect(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(pymysql.Error, psycopg.Error):
                admin.close()

    def _launch(self, command: list[str], output: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", _LAUNCH, self._death, self._run_as, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            # A MariaDB that starts deletes all temporary tables in TMPDIR, also those of another server.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TMPDIR": self.directory},
            start_new_session=True,  # Ctrl-C goes to pytest only, which then stops the server cleanly
        )

    def _run(self, command: list[str]) -> None:
        process = self._launch(command, subprocess.PIPE)
        output, _ = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{output.decode(errors='replace')[-4000:]}")


class MariaDB(Server):
    """A MariaDB server with one user, who may do everything."""

    backend = "mysql"
    _death = "SIGKILL"
    _first_database = Server.database
    # A client that is still logging in has no session yet.
    _sessions_query = (
        "SELECT id, user, substring_index(host, ':', 1), db FROM information_schema.processlist"
        " WHERE id <> connection_id() AND command <> 'Daemon'"
        " AND user NOT IN ('system user', 'event_scheduler', 'unauthenticated user') ORDER BY id"
    )
    _own_query = "SELECT connection_id()"

    def _find(self) -> None:
        self._server = _program("mariadbd", "/usr/sbin", "/usr/libexec")
        self._install = _program("mariadb-install-db")

    def _prepare(self) -> None:
        self._data = f"--datadir={self.directory}/data"
        self._user = f"--user={pwd.getpwuid(os.geteuid()).pw_name}"
        self._run([
            self._install, "--no-defaults", self._user, self._data,
            "--auth-root-authentication-method=normal", "--skip-test-db",
        ])  # fmt: skip
        password = self.password.replace("'", "''")
        Path(self.directory, "init.sql").write_text(
            f"CREATE DATABASE IF NOT EXISTS {self.database};\n"
            f"CREATE USER IF NOT EXISTS '{self.user}'@'%' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON *.* TO '{self.user}'@'%' WITH GRANT OPTION;\n",
            "utf-8",
        )

    def _command(self) -> list[str]:
        return [
            self._server, "--no-defaults", self._user, self._data,
            f"--socket={self.directory}/socket", f"--pid-file={self.directory}/pid",
            f"--init-file={self.directory}/init.sql",
            f"--bind-address={self.host}", f"--port={self.port}", "--skip-name-resolve",
            "--max-connections=500", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0",
        ]  # fmt: skip

    def _finish(self) -> None:
        pass  # init.sql has done it

    def _connect(self, database: str) -> Any:
        return pymysql.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, database=database,
            autocommit=True, connect_timeout=5, read_timeout=30,
        )  # fmt: skip


class PostgreSQL(Server):
    """A PostgreSQL server with one user, its superuser."""

    backend = "postgresql"
    _death = "SIGQUIT"  # "immediate shutdown", which ends its children too
    _first_database = "postgres"
    _sessions_query = (
        "SELECT pid, usename, host(client_addr), datname FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
    )
    _own_query = "SELECT pg_backend_pid()"

    def _find(self) -> None:
        # Debian keeps each version's programs in its own directory, outside PATH; newest first.
        versions = glob.glob("/usr/lib/postgresql/*/bin")
        places = sorted(versions, key=lambda place: float(place.split("/")[-2]), reverse=True)
        self._initdb = _program("initdb", *places)
        self._server = _program("postgres", *places)
        if os.geteuid() == 0:  # it refuses to run as root
            self._run_as = "postgres"
            try:
                pwd.getpwnam(self._run_as)
            except KeyError:
                not_installed("postgres")

    def _prepare(self) -> None:
        password = Path(self.directory, "password")
        password.write_text(self.password + "\n", "utf-8")
        if self._run_as:
            shutil.chown(self.directory, self._run_as)
            shutil.chown(password, self._run_as)
        self._run([
            self._initdb, f"--pgdata={self.directory}/data",
            f"--username={self.user}", f"--pwfile={password}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        ])  # fmt: skip

    def _finish(self) -> None:
        with contextlib.closing(self._connect(self._first_database)) as connection:
            connection.execute(f"CREATE DATABASE {self.database}")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": self.host, "port": self.port, "unix_socket_directories": self.directory,
            "max_connections": 300, "fsync": "off", "synchronous_commit": "off", "autovacuum": "off",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._server, "-D", f"{self.directory}/data", *options]

    def _connect(self, database: str) -> Any:
        return psycopg.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, dbname=database,
            autocommit=True, connect_timeout=5,
        )  # fmt: skip


def _program(name: str, *places: str) -> str:
    """Return the program's path, from PATH or one of the places; else skip the test."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *places])
    return shutil.which(name, path=path) or not_installed(name)


def _directory_for_all() -> str:
    """Return a directory for temporary files that every user can reach."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        way = [Path(place).resolve(), *Path(place).resolve().parents]
        if all(step.is_dir() and step.stat().st_mode & 0o001 for step in way):
            return place
    return tempfile.gettempdir()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((Server.host, 0))
        port: int = probe.getsockname()[1]
        return port

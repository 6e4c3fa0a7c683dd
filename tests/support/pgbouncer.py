"""A private PgBouncer in front of a private PostgreSQL, for tests: a pooler with session ids of its own.

Like the servers, it has its files in a temporary directory, listens on a free port of 127.0.0.1, and dies
with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.servers import _LAUNCH, Server, _directory_for_all, _free_port, _program
from tests.support.waiting import wait_for


@contextlib.contextmanager
def pgbouncer(server: Server) -> Iterator[int]:
    """Yield the port. Skip the test if PgBouncer is not installed."""
    program = _program("pgbouncer", "/usr/sbin")
    user = "postgres" if os.geteuid() == 0 else ""  # it refuses to run as root
    directory = Path(tempfile.mkdtemp(prefix="connmon-", dir=_directory_for_all()))
    port = _free_port()
    (directory / "ini").write_text(
        f"[databases]\n{server.database} = host={server.host} port={server.port} user={server.user}"
        f" password={server.password}\n"
        f"[pgbouncer]\nlisten_addr = {server.host}\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    if user:
        for path in (directory, directory / "ini"):
            shutil.chown(path, user)
    log = (directory / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", _LAUNCH, "SIGKILL", user, program, str(directory / "ini")],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory,
    )  # fmt: skip

    def answers() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        with contextlib.suppress(psycopg.Error):
            psycopg.connect(
                host=server.host, port=port, user=server.user, password=server.password,
                dbname=server.database, connect_timeout=5,
            ).close()  # fmt: skip
            return True
        return False

    try:
        wait_for(answers, 20, f"PgBouncer to answer, see {log.name}")
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        log.close()
        shutil.rmtree(directory, ignore_errors=True)

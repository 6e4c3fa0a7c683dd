"""`connmon demo`: three nodes and busy applications on SQLite, on loopback, with nothing to set up.

Rules kept here:

- The nodes are a real cluster, and the applications real processes with real engines that are watched
  as a user's would be, by their URLs and a config file; nothing that is then shown is made up.
- Everything lives in one temporary directory and in child processes, and all of it is gone
  afterwards: after q, Ctrl-C, SIGTERM, SIGHUP or an error. The children watch their standard
  input, which ends with this process, so even after SIGKILL none of them goes on.
- Two of the applications have the troubles that connmon is for: a pool that is too small,
  so that threads wait, and a connection that is never given back. `demoshop` has their code.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from connmon.commands.demo import chaos as troubles
from connmon.commands.demo.child import PREFIX, PROGRAMS, SERVICE
from connmon.commands.demo.process import Child
from connmon.config import Service, load
from connmon.errors import ConnmonError
from connmon.reader.client import read_once
from connmon.reader.cluster_status import ask
from connmon.reader.formats import as_table, status_table
from connmon.signals import terminable

NODES: Final = ("node1", "node2", "node3")
#: Seconds for the nodes and all applications to be there; without a terminal, seconds of work
#: before the snapshot.
START: Final = 30.0
WORK: Final = 3.0
#: Where ports are looked for: below those that the system gives to outgoing connections, which
#: could otherwise take the port of a node that is down for a moment.
PORTS: Final = range(20000, 32000)


def run(once: bool, chaos: bool = False) -> int:
    """Run the demo until the console is left, or `once`: print what there is after a few seconds.

    `chaos`: kill and restart the nodes by turns meanwhile; with `once`, then compare what the
    applications counted with what every node shows. Returns the exit code: 0; 1 where that
    differs; or what the console ended with. Raises ConnmonError where something does not start.
    """
    with terminable(), tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        directory = Path(name)
        config = _prepare(directory)
        service = load(str(config)).service(SERVICE)
        nodes = [Child(directory, node, "node", str(config), node) for node in NODES]
        applications = [
            Child(directory, f"{program}-{number}", "application", str(config), program)
            for program, (processes, _) in PROGRAMS.items()
            for number in range(processes)
        ]
        _say("starting three nodes and their applications ...")
        with _running(nodes, applications):
            _wait_for_nodes(service, nodes)
            for application in applications:
                application.start()
            _wait_for_applications(service, applications)
            if chaos:
                if once:
                    return troubles.prove(service, nodes, applications, directory, _say)
                with troubles.going_on(service, nodes):
                    return _console(service)
            if once:
                time.sleep(WORK)
                print(_tables(service), end="", flush=True)
                return 0
            return _console(service)


def _console(service: Service) -> int:
    from connmon.console.app import run as run_console

    return run_console(service.nodes, service.name, ask_nodes=lambda: ask(service).document)


def _say(text: str) -> None:
    print(f"connmon demo: {text}", file=sys.stderr, flush=True)


def _prepare(directory: Path) -> Path:
    """Write the config file and the databases."""
    for _, pools in PROGRAMS.values():
        for pool in pools:
            database = sqlite3.connect(directory / pool.database)
            database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)")
            database.executemany("INSERT INTO item (name) VALUES (?)", [(f"item {n}",) for n in range(100)])
            database.commit()
            database.close()
    lines = "".join(
        f"    {node} hostname=127.0.0.1:{port} bind=127.0.0.1:{port}\n"
        for node, port in zip(NODES, _free_ports(len(NODES)), strict=True)
    )
    config = directory / "connmon.cfg"
    config.write_text(f"[connmon_service_{SERVICE}]\nname: {SERVICE}\nnodes:\n{lines}", encoding="utf-8")
    return config


def _free_ports(number: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(PORTS, 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == number:
            return found
    raise ConnmonError(f"no free ports from {PORTS.start} to {PORTS.stop - 1} on 127.0.0.1")


@contextlib.contextmanager
def _running(nodes: list[Child], applications: list[Child]) -> Iterator[None]:
    """Start the nodes; end all children afterwards, the applications first."""
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for children in (applications, nodes):
            for child in children:
                child.close()
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.end()


def _wait_for_nodes(service: Service, nodes: list[Child]) -> None:
    deadline = time.monotonic() + START
    while ask(service).document["health"] != "healthy":
        for node in nodes:
            if node.ended or time.monotonic() > deadline:
                raise ConnmonError(f"{node.name} of the demo did not start: {node.last_words}")
        time.sleep(0.05)


def _wait_for_applications(service: Service, applications: list[Child]) -> None:
    """Return when every application has reported and the troubles show."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        totals = read_once(service.nodes, service.name, "program").document()["totals"]
        if totals["processes"] == len(applications) and totals["waiting"]:
            return
        time.sleep(0.1)
    raise ConnmonError(f"the applications of the demo did not report within {START:.0f} s")


def _tables(service: Service) -> str:
    shown = [status_table(ask(service).document)]
    for by in ("program", "pool", "site"):
        shown.append(as_table(read_once(service.nodes, service.name, by).typed_document()))
    return "\n".join(shown)

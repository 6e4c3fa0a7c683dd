"""A real connmond on a free port, and the real `connmon snapshot` that reads it.

Rules kept here: node and commands are the installed ones; the node's config file is like the built-in
one; a node that was stopped or killed restarts on the same port; the log of all runs is kept for the
test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from connmon.config import direct
from connmon.protocol.document import cells
from connmon.protocol.values import GROUPINGS, Grouping
from connmon.reader.client import read_once
from tests.support.stopping import stop
from tests.support.waiting import wait_for

_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    "PYTHONUNBUFFERED": "1",
}


def command(name: str) -> str:
    """Return the installed console script."""
    script = Path(sys.executable).with_name(name)
    path = str(script) if script.exists() else shutil.which(name)
    assert path, f"the console script {name} is not installed"
    return path


class RunningNode:
    """One node of one service; `start` it first."""

    #: The command under which it and the commands that read it run (for a network namespace).
    prefix: tuple[str, ...] = ()
    #: Arguments of commands that name this node, if the config has several.
    which: tuple[str, ...] = ()

    def __init__(self, directory: Path, service: str = "default", host: str = "localhost") -> None:
        self.service = service
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.config = directory / f"connmon-{self.port}.cfg"
        self.config.write_text(
            f"[connmon_service_{service}]\nname: {service}\n\n"
            f"nodes:\n    node1 hostname={host}:{self.port} bind=0.0.0.0\n"
        )
        self._log = directory / f"connmond-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._before = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """The standard error of all runs of the node."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start the node and return when it logs that it is ready."""
        self.begin()
        self.wait_until_ready()

    def begin(self) -> None:
        """Start the node without waiting: without a majority of the nodes it is never ready."""
        assert self._process is None
        self._before = len(self.log)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *self.prefix, command("connmond"), "--config", str(self.config),
                    "--service", self.service, *self.which,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_ENVIRONMENT,
                start_new_session=True,
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Wait until the started node logs that it is ready."""
        process = self._process
        assert process is not None

        def ready() -> bool:
            assert process.poll() is None, self.log
            return "ready service=" in self.log[self._before :]

        wait_for(ready, 15, "connmond to be ready")

    def stop(self) -> None:
        """Stop the node by SIGTERM; it has to end cleanly."""
        assert self._end(signal.SIGTERM) == 0, self.log

    def kill(self) -> None:
        """Kill the node by SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the node by SIGSTOP: it answers nothing, and the kernel still accepts connections for it."""
        assert self._process is not None
        stop(self._process.pid)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """End the node, in whatever state it is."""
        if self._process is not None:
            self.resume()
            self._end(signal.SIGKILL)

    def rows(self, by: Grouping) -> list[dict[str, Any]]:
        """Return the rows without starting a process, for frequent checks."""
        document = read_once(direct(self.address).nodes, self.service, by).typed_document()
        return [cells(row) for row in document.rows]

    def snapshots(self, groupings: Sequence[Grouping] = GROUPINGS) -> dict[Grouping, dict[str, Any]]:
        """Return the output of the real `connmon snapshot` for each grouping; two run at a time."""
        documents: dict[Grouping, dict[str, Any]] = {}
        remaining = list(groupings)
        while remaining:
            pair, remaining = remaining[:2], remaining[2:]
            running = [(by, self._snapshot(by)) for by in pair]
            for by, process in running:
                output, errors = process.communicate(timeout=30)
                assert process.returncode == 0, errors.decode(errors="replace")
                assert not errors
                documents[by] = json.loads(output)
        return documents

    def _snapshot(self, by: Grouping) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *self.prefix, command("connmon"), "snapshot", "--config", str(self.config),
                "--service", self.service, *self.which, "--by", by, "--format", "json",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
        )  # fmt: skip

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(10)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def running_node(directory: Path, service: str = "default") -> Iterator[RunningNode]:
    """Start a node, and end it with the block."""
    node = RunningNode(directory, service)
    try:
        node.start()
        yield node
    finally:
        node.remove()

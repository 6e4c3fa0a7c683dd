"""Notify the service manager, and reload on SIGHUP.

- Notifications are datagrams as of sd_notify(3), sent if the manager has set $NOTIFY_SOCKET. Sending
  never blocks and never fails.
- READY=1 means that the node listens. Whether there is a quorum is in the status line and is not waited
  for: the first node of three would never be ready, and would be killed.
- The event loop feeds the watchdog, so that a blocked loop is noticed.
- SIGHUP reopens log files and reads certificates again. What cannot be read is logged and stays as it was;
  open connections keep their certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace

from connmon.cluster import startup
from connmon.cluster.raft.replica import Replica
from connmon.cluster.raft.transport import Peers
from connmon.cluster.server import Server
from connmon.config import Service
from connmon.errors import ConfigError, one_line
from connmon.protocol.credentials import of_client, of_node

logger = logging.getLogger(__name__)


class Manager:
    """The service manager; does nothing if there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds: float | None = None
        """Seconds within which the watchdog must be fed. None: there is no watchdog."""
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with contextlib.suppress(ValueError):
                self.watchdog_seconds = max(0, int(environ.get("WATCHDOG_USEC", ""))) / 1e6 or None

    def __repr__(self) -> str:
        return f"<Manager at {self._address or 'no address'}, watchdog {self.watchdog_seconds} s>"

    def notify(self, *lines: str) -> None:
        """Send these assignments."""
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)

    async def attend(self, replica: Replica) -> None:
        """Feed the watchdog and keep the status line current, until cancelled."""
        every = 1.0 if self.watchdog_seconds is None else min(1.0, self.watchdog_seconds / 3)
        sent = ""
        while True:
            group = replica.status
            status = f"leader {group.leader}" if group.quorum else "no quorum"
            if status != sent:
                self.notify(f"STATUS={one_line(status)}")
                sent = status
            if self.watchdog_seconds is not None:
                self.notify("WATCHDOG=1")
            await asyncio.sleep(every)


def reload(service: Service, server: Server, peers: Peers | None, manager: Manager) -> None:
    """Reopen log files and read certificates again."""
    manager.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    reopen_logs()
    try:
        own, client = of_node(service), of_client(service)
        if own.tls is not None:
            for expiry in startup.expiries(service):
                logger.log(logging.WARNING if expiry.soon else logging.INFO, "%s", expiry.text)
    except ConfigError as error:
        logger.error("SIGHUP: the certificates from before stay: %s", error)
    else:
        # The secret must be the same everywhere, or the group falls apart: changing it takes a restart.
        server.credentials = replace(server.credentials, tls=own.tls)
        if peers is not None:
            peers.renew(client)
        logger.info("SIGHUP: log files are reopened%s", "" if own.tls is None else ", certificates read")
    manager.notify("READY=1")


def reopen_logs() -> None:
    """Reopen the file of each log handler; one that cannot be opened stays open."""
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {handler: None for log in known if isinstance(log, logging.Logger) for handler in log.handlers}
    problems: list[str] = []
    for handler in handlers:
        if not isinstance(handler, logging.FileHandler):
            continue
        handler.acquire()
        try:
            opened = handler._open()
            old, handler.stream = handler.stream, opened
            if old is not None:
                old.close()
        except OSError as error:
            problems.append(f"{handler.baseFilename}: {error.strerror}")
        finally:
            handler.release()
    for problem in problems:  # after the release of all handlers: these lines are logged too
        logger.error("SIGHUP: the log file could not be reopened: %s", problem)

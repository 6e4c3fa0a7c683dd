"""What the service manager and the operator are told and ask for: readiness, watchdog, reload.

- The manager is told by sd_notify(3)'s datagrams, where it has set $NOTIFY_SOCKET; telling it never
  waits and never fails.
- "Ready" is that the node listens. Whether there is a quorum is in the status line, and not waited
  for: the first node of three would never get ready, and be killed for that.
- The watchdog is fed from the event loop, so that it finds a loop that is stuck.
- SIGHUP opens log files anew and reads certificates again. What cannot be read is said, and what
  was there before stays; connections that are open keep what they have.
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

from connmon.cluster.raft.replica import Replica
from connmon.cluster.raft.transport import Peers
from connmon.cluster.server import Server
from connmon.config import Service
from connmon.errors import ConfigError, one_line
from connmon.protocol.credentials import of_client, of_node

logger = logging.getLogger(__name__)


class Manager:
    """The way to the service manager; one that does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog: float | None = None
        """Seconds within which it wants to hear of the node. None: it does not."""
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with contextlib.suppress(ValueError):
                self.watchdog = max(0, int(environ.get("WATCHDOG_USEC", ""))) / 1e6 or None

    def tell(self, *lines: str) -> None:
        """Send these assignments."""
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)

    def status(self, text: str) -> None:
        self.tell(f"STATUS={one_line(text)}")

    async def attend(self, replica: Replica) -> None:
        """Feed the watchdog and keep the status line right, for ever."""
        every = 1.0 if self.watchdog is None else min(1.0, self.watchdog / 3)
        said = ""
        while True:
            status = replica.status
            now = f"leader {status.leader}" if status.quorum else "no quorum"
            if now != said:
                self.status(now)
                said = now
            if self.watchdog is not None:
                self.tell("WATCHDOG=1")
            await asyncio.sleep(every)


def reload(service: Service, server: Server, peers: Peers | None, manager: Manager) -> None:
    """Open log files anew and read certificates again."""
    manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    reopen_logs()
    try:
        own, client = of_node(service), of_client(service)
        if own.tls is not None:
            from connmon.protocol.tls import check_dates

            for notice in check_dates(service, time.time()):
                logger.log(logging.WARNING if notice.soon else logging.INFO, "%s", notice.text)
    except ConfigError as error:
        logger.error("SIGHUP: the certificates from before stay: %s", error)
    else:
        # A secret is the same on all sides or the group falls apart: it takes a restart.
        server.credentials = replace(server.credentials, tls=own.tls)
        if peers is not None:
            peers.renew(client)
        logger.info("SIGHUP: log files are opened anew%s", "" if own.tls is None else ", certificates read")
    manager.tell("READY=1")


def reopen_logs() -> None:
    """Open the file of each log handler anew; one that cannot be opened stays as it is."""
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {
        handler: None for each in known if isinstance(each, logging.Logger) for handler in each.handlers
    }
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
    for problem in problems:  # once all are released: this is logged too
        logger.error("SIGHUP: the log file could not be opened anew: %s", problem)

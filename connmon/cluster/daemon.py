"""`connmond`: run one node in the foreground until SIGTERM or SIGINT.

Exit codes: 0 after a signal, or if --check-config finds no problem; 1 if a port cannot be opened; 2 if the
command line or the config file is wrong. 1 and 2 come with one line on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from connmon import signals
from connmon.cluster import check_config, startup
from connmon.cluster.export.csv_dump import Dump, open_dump
from connmon.cluster.export.dump_file import DumpFile
from connmon.cluster.export.http import ScrapePort
from connmon.cluster.log_limit import RateLimitedLog
from connmon.cluster.open_files import ClientRoom, raise_limit
from connmon.cluster.raft.member import check_pysyncobj
from connmon.cluster.raft.replica import Replica
from connmon.cluster.raft.storage import DataDir
from connmon.cluster.raft.transport import Peers
from connmon.cluster.server import Server
from connmon.cluster.service_manager import Manager, reload
from connmon.cluster.state.judging import thresholds_of
from connmon.cluster.state.machine import StateMachine
from connmon.config import DEFAULT_SERVICE, Config, Node, Service, load
from connmon.errors import ProtocolError, UsageError
from connmon.protocol.credentials import Credentials, of_client
from connmon.version import __version__

logger = logging.getLogger("connmon.connmond")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node; return the exit code. `argv` is without the program's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the locale cannot encode must not end the node
            stream.reconfigure(errors="backslashreplace")
    options = argument_parser().parse_args(argv)
    raise_limit()
    try:
        check_pysyncobj()
        config = load(options.config)
        if options.check_config:
            return check_config.check(config, options.service, options.node)
        setup = _prepare(config, options)
    except UsageError as error:
        return startup.complain(str(error), 2)
    try:
        return asyncio.run(_serve(setup))
    except KeyboardInterrupt:  # before the event loop took over the signal
        return 0
    finally:
        if setup.data_dir is not None:
            setup.data_dir.close()


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser; shtab makes shell completions from it."""
    parser = argparse.ArgumentParser(
        prog="connmond",
        description="Run one connmon node in the foreground.",
        epilog="exit codes: 0 ended by a signal, or the config file is right; 1 a port cannot be had; "
        "2 wrong arguments or configuration. SIGHUP reopens log files and reads certificates again.",
    )
    parser.add_argument(
        "--config", "-c", metavar="FILE", help="config file (default: $CONNMON_CONFIG, else /etc/connmon.cfg)"
    )
    parser.add_argument(
        "--service", "-s", metavar="NAME", help=f"default: {DEFAULT_SERVICE}; with --check-config: all"
    )
    parser.add_argument("--node", "-n", metavar="NAME", help="may be left out where the service has one node")
    parser.add_argument(
        "--verbose",
        "-v",
        action="store_true",
        help="log client connections, peer links, leaders and batches, a line for each change",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="say whether a node would start with this config file, and when certificates expire, and end",
    )
    parser.add_argument("--version", action="version", version=f"connmond {__version__}")
    return parser


@dataclass(frozen=True)
class _Setup:
    """A node that is ready to start."""

    service: Service
    node: Node
    credentials: Credentials
    clients: ClientRoom
    notices: list[tuple[str, bool]]
    """To log at start; True: as a warning."""
    data_dir: DataDir | None
    dump_file: DumpFile | None


def _prepare(config: Config, options: argparse.Namespace) -> _Setup:
    """Make the checks of a start and open the files. Raises UsageError."""
    service = config.service(options.service or DEFAULT_SERVICE)
    node = service.node(options.node)
    credentials, expiries = startup.credentials_of(service)
    startup.set_up_logging(config, options.verbose)
    clients = startup.room_of(service)
    notices = [(expiry.text, expiry.soon) for expiry in expiries]
    if clients.notice:
        notices.append((clients.notice, clients.few))
    dump_file = open_dump(service)
    data_dir = None
    if service.data_dir is not None:
        data_dir = DataDir(service.data_dir, service.name, node.name, service.origin)
    return _Setup(
        service=service,
        node=node,
        credentials=credentials,
        clients=clients,
        notices=notices,
        data_dir=data_dir,
        dump_file=dump_file,
    )


async def _serve(setup: _Setup) -> int:
    """Run the node until a signal; return the exit code."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unexpected(RateLimitedLog(time.monotonic)))
    stop = asyncio.Event()

    def stopped(received: signal.Signals) -> None:
        logger.info("%s: ending", received.name)
        stop.set()

    signals.call_once(loop, stopped)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is something to reload
    service, node = setup.service, setup.node
    peers = Peers(service, node, credentials=of_client(service)) if len(service.nodes) > 1 else None
    replica = _replica(setup, peers)
    server = Server(service, node, replica, credentials=setup.credentials, clients=setup.clients)
    if (error := await _start(setup, server)) is not None:
        return startup.complain(*error)
    scrapes = None
    if service.metrics is not None:
        scrapes = await _serve_metrics(service, server, replica)
        if scrapes is None:
            await server.close()
            return 1
    _log_start(setup)
    manager = Manager()
    loop.add_signal_handler(signal.SIGHUP, reload, service, server, peers, manager)
    manager.notify("READY=1")
    work = [_log_ready(service, node, replica, server.port), manager.attend(replica)]
    if setup.dump_file is not None:
        work.append(Dump(service, node.name, server, replica, setup.dump_file).run())
    tasks = [loop.create_task(coroutine) for coroutine in work]
    await stop.wait()
    manager.notify("STOPPING=1")
    for task in tasks:
        task.cancel()
    if scrapes is not None:
        await scrapes.close()
    await server.close()
    logger.info("ended")
    return 0


def _replica(setup: _Setup, peers: Peers | None) -> Replica:
    service, data_dir = setup.service, setup.data_dir
    state = StateMachine()
    state.judge.configure(thresholds_of(service), dict(service.server_max))
    journal = None if data_dir is None else data_dir.journal
    return Replica(service.name, setup.node.name, state, peers=peers, journal=journal, store=data_dir)


async def _start(setup: _Setup, server: Server) -> tuple[str, int] | None:
    """Start the server. If that fails, return the message and the exit code."""
    try:
        await server.start()
    except ProtocolError as error:
        await server.close()
        return str(error if setup.data_dir is None else setup.data_dir.damaged(str(error))), 2
    except OSError as error:
        return startup.cannot_listen(setup.node, error), 1
    return None


def _log_start(setup: _Setup) -> None:
    service, node = setup.service, setup.node
    logger.info(
        "connmond %s: node %s of service %s listens on %s", __version__, node.name, service.name, node.bind
    )
    for notice, urgent in setup.notices:
        logger.log(logging.WARNING if urgent else logging.INFO, "%s", notice)
    if not setup.credentials.any:
        logger.warning(
            "neither secret nor TLS is set for service %s: anyone who reaches %s can report and read",
            service.name,
            node.bind,
        )


async def _serve_metrics(service: Service, server: Server, replica: Replica) -> ScrapePort | None:
    """Return the metrics port, listening; None, after a line on stderr, if it cannot."""
    # Loaded here: prometheus_client takes 50 ms, and only a service with metrics needs it.
    from connmon.cluster.export.node_metrics import Metrics, MetricsSettings

    assert service.metrics is not None
    settings = MetricsSettings(call_sites=service.metrics_call_sites)
    scrapes = ScrapePort(service.metrics, Metrics(server, replica, settings).page)
    try:
        await scrapes.start()
    except OSError as error:
        startup.complain(startup.cannot_serve_metrics(service, error), 1)
        return None
    logger.info("metrics are at http://%s/metrics, for anyone who reaches it", service.metrics)
    return scrapes


async def _log_ready(service: Service, node: Node, replica: Replica, port: int) -> None:
    """Log, also for programs that wait for it, that reports are applied from now on."""
    while not replica.status.quorum:
        await asyncio.sleep(0.02)
    logger.info("ready service=%s node=%s port=%d pid=%d", service.name, node.name, port, os.getpid())


def _unexpected(log: RateLimitedLog) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return the event loop's handler of exceptions that no coroutine gets.

    A system error is one line, rate limited (when files run out, asyncio reports hundreds at once);
    any other one is a traceback.
    """

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):
            log.warning("%s: %s", context.get("message"), error)
        else:
            logger.error("%s", context.get("message"), exc_info=error)

    return handle


if __name__ == "__main__":
    sys.exit(main())

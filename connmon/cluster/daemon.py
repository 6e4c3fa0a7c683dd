"""`connmond`: runs one node in the foreground until SIGTERM or SIGINT.

Exit codes: 0 after a signal, or where --check-config finds nothing; 1 where a port cannot be had; 2 where
the command line or the config file says something that cannot be done. 1 and 2 with one line on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from connmon import __version__
from connmon.cluster import log_sections
from connmon.cluster.export.csv_dump import Dump, check_dump, open_dump
from connmon.cluster.export.dump_file import DumpFile
from connmon.cluster.log_limit import Notices, system_reason
from connmon.cluster.open_files import Room, current_limit, raise_limit, room
from connmon.cluster.raft.member import check_pysyncobj
from connmon.cluster.raft.replica import Replica
from connmon.cluster.raft.storage import DataDir, check_data_dir
from connmon.cluster.raft.transport import Peers
from connmon.cluster.server import Server
from connmon.cluster.service_manager import Manager, reload
from connmon.cluster.state.judging import thresholds_of
from connmon.cluster.state.machine import State
from connmon.cluster.writable import can_bind, check_file
from connmon.config import DEFAULT_SERVICE, Address, Config, Node, Service, load
from connmon.errors import ProtocolError, UsageError, one_line
from connmon.protocol.credentials import Credentials, of_client, of_node

if TYPE_CHECKING:
    from connmon.cluster.export.http import ScrapePort
    from connmon.protocol.tls import Notice

logger = logging.getLogger("connmon.connmond")

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node; return the exit code. `argv` is without the program's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the locale cannot write is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    options = argument_parser().parse_args(argv)
    raise_limit()
    try:
        check_pysyncobj()
        config = load(options.config)
        if options.check_config:
            return _check(config, options.service, options.node)
        service = config.service(options.service or DEFAULT_SERVICE)
        node = service.node(options.node)
        credentials, dates = _closed_with(service)
        _set_up_logging(config, options.verbose)
        clients = _room(service)
        dump_file = open_dump(service)
        kept = (
            None
            if service.data_dir is None
            else DataDir(service.data_dir, service.name, node.name, service.origin)
        )
    except UsageError as error:
        return _complain(str(error), 2)
    notices = [(notice.text, notice.soon) for notice in dates]
    if clients.notice:
        notices.append((clients.notice, clients.few))
    try:
        return asyncio.run(_serve(service, node, credentials, clients, notices, kept, dump_file))
    except KeyboardInterrupt:  # before the loop took over the signal
        return 0
    finally:
        if kept is not None:
            kept.close()


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser, for what makes completions of it (shtab)."""
    parser = argparse.ArgumentParser(
        prog="connmond",
        description="Run one connmon node in the foreground.",
        epilog="exit codes: 0 ended by a signal, or the config file is right; 1 a port cannot be had; "
        "2 wrong arguments or configuration. SIGHUP opens log files anew and reads certificates again.",
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
        help="log connections, leaders and batches, a line for each change",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="say whether a node would start with this config file, and when certificates expire, and end",
    )
    parser.add_argument("--version", action="version", version=f"connmond {__version__}")
    return parser


def _check(config: Config, service_name: str | None, node_name: str | None) -> int:
    """Make the checks of a start, for all services or the one that is named, without touching anything.

    Return the exit code. Raises UsageError.
    """
    every = service_name is None and node_name is None
    services = config.services if every else [config.service(service_name or DEFAULT_SERVICE)]
    for service in services:
        nodes = service.nodes if node_name is None else (service.node(node_name),)
        notes = [notice.text + (": replace it soon" * notice.soon) for notice in _closed_with(service)[1]]
        clients = _room(service)
        if clients.few:
            notes.append(clients.notice)
        check_dump(service)
        if service.data_dir is not None:
            names = [node.name for node in nodes]
            if check_data_dir(service.data_dir, service.name, names, service.origin):
                notes.append(f"data_dir {service.data_dir} is in use, as by a running node: not looked into")
        count = len(service.nodes)
        print(f"service {service.name}: {count} node{'s' if count > 1 else ''}")
        if len(nodes) == 1:  # the others are on other hosts
            for address, cannot_listen in _addresses(service, nodes[0]):
                try:
                    if not can_bind(address):
                        notes.append(f"{address} is in use, as by a running node")
                except OSError as error:
                    return _complain(cannot_listen(error), 1)
        for note in notes:
            print(f"service {service.name}: {one_line(note)}")
    if config.logging:
        # Not opened: a log file would be made, and belong to who checks. (The process ends after this.)
        logging.FileHandler._open = _found  # type: ignore[method-assign,assignment]
        _set_up_logging(config, False)
    print(f"{config.path or 'the built-in default'} is right")
    return 0


def _closed_with(service: Service) -> tuple[Credentials, list[Notice]]:
    """Return what a node works with, and when its certificates expire. Raises ConfigError."""
    credentials = of_node(service)
    of_client(service)  # a node is a client of the other nodes
    if credentials.tls is None:
        return credentials, []
    from connmon.protocol.tls import check_dates

    return credentials, check_dates(service, time.time())


def _room(service: Service) -> Room:
    """Return how many clients there is room for. Raises UsageError where there is too little."""
    return room(current_limit(), len(service.nodes) - 1, service.metrics is not None)


def _addresses(service: Service, node: Node) -> list[tuple[Address, Callable[[OSError], str]]]:
    """Return where the node listens, each with what to say where it cannot."""
    addresses: list[tuple[Address, Callable[[OSError], str]]] = [
        (node.bind, functools.partial(_cannot_listen, node))
    ]
    if service.metrics is not None:
        addresses.append((service.metrics, functools.partial(_cannot_serve_metrics, service)))
    return addresses


def _cannot_listen(node: Node, error: OSError) -> str:
    return f"cannot listen on {node.bind} (bind of node {node.name!r}): {system_reason(error)}"


def _cannot_serve_metrics(service: Service, error: OSError) -> str:
    where = f"{service.origin} metrics: " if service.origin else ""
    return f"{where}cannot listen on {service.metrics}: {system_reason(error)}"


def _found(handler: logging.FileHandler) -> TextIO:
    """Stand in for opening a log file. Raises the OSError that opening it would raise."""
    check_file(handler.baseFilename)
    return open(os.devnull, "a", encoding="utf-8")


def _complain(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"connmond: {message}", file=sys.stderr, flush=True)
    return code


def _set_up_logging(config: Config, verbose: bool) -> None:
    """Log as the config file says, else to stderr. Raises ConfigError."""
    logging.raiseExceptions = False  # a full disk or a closed stderr is no reason to print more
    if not config.logging:
        level = logging.DEBUG if verbose else logging.INFO
        logging.basicConfig(level=level, format=LOG_FORMAT, stream=sys.stderr)
        return
    log_sections.set_up(str(config.path))
    if verbose:
        logging.getLogger("connmon").setLevel(logging.DEBUG)


async def _serve(
    service: Service,
    node: Node,
    credentials: Credentials,
    clients: Room,
    notices: Sequence[tuple[str, bool]],
    kept: DataDir | None,
    dump_file: DumpFile | None,
) -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unexpected(Notices(time.monotonic)))
    stop = asyncio.Event()

    def stopped(number: int) -> None:
        logger.info("%s: ending", signal.Signals(number).name)
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)  # a second one ends it at once
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopped, each)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is something to reload
    manager = Manager()
    peers = Peers(service, node, credentials=of_client(service)) if len(service.nodes) > 1 else None
    journal = None if kept is None else kept.journal
    state = State()
    state.judge.configure(thresholds_of(service), dict(service.server_max))
    replica = Replica(service.name, node.name, state, peers=peers, journal=journal, store=kept)
    server = Server(service, node, replica, credentials=credentials, clients=clients)
    try:
        await server.start()
    except ProtocolError as error:
        await server.close()
        return _complain(str(error if kept is None else kept.damaged(str(error))), 2)
    except OSError as error:
        return _complain(_cannot_listen(node, error), 1)
    scrapes = None
    if service.metrics is not None:
        scrapes = await _serve_metrics(service, server, replica)
        if scrapes is None:
            await server.close()
            return 1
    logger.info(
        "connmond %s: node %s of service %s listens on %s", __version__, node.name, service.name, node.bind
    )
    for notice, urgent in notices:
        logger.log(logging.WARNING if urgent else logging.INFO, "%s", notice)
    if not credentials.any:
        logger.warning(
            "neither secret nor TLS is set for service %s: anyone who reaches %s can report and read",
            service.name,
            node.bind,
        )
    loop.add_signal_handler(signal.SIGHUP, reload, service, server, peers, manager)
    manager.tell("READY=1")
    tasks = [
        loop.create_task(_tell_ready(service, node, replica, server.port)),
        loop.create_task(manager.attend(replica)),
    ]
    if dump_file is not None:
        tasks.append(loop.create_task(Dump(service, node.name, server, replica, dump_file).run()))
    await stop.wait()
    manager.tell("STOPPING=1")
    for task in tasks:
        task.cancel()
    if scrapes is not None:
        await scrapes.close()
    await server.close()
    logger.info("ended")
    return 0


async def _serve_metrics(service: Service, server: Server, replica: Replica) -> ScrapePort | None:
    """Return the port of the metrics, which listens; None, after saying why, where it cannot."""
    from connmon.cluster.export.http import ScrapePort
    from connmon.cluster.export.node_metrics import (
        Metrics,  # prometheus_client takes a while, and few need it
    )

    assert service.metrics is not None
    scrapes = ScrapePort(service.metrics, Metrics(server, replica).page)
    try:
        await scrapes.start()
    except OSError as error:
        _complain(_cannot_serve_metrics(service, error), 1)
        return None
    logger.info("metrics are at http://%s/metrics, for anyone who reaches it", service.metrics)
    return scrapes


async def _tell_ready(service: Service, node: Node, replica: Replica, port: int) -> None:
    """Log the line that says, also to programs, that reports are being applied from now."""
    while not replica.status.quorum:
        await asyncio.sleep(0.02)
    logger.info("ready service=%s node=%s port=%d pid=%d", service.name, node.name, port, os.getpid())


def _unexpected(notices: Notices) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return what logs that for which asyncio has nobody to tell it to.

    One line for the system's errors, and few of them (where files run out, asyncio reports it
    hundreds of times at once); a traceback for ours.
    """

    def log(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):
            notices.warning("%s: %s", context.get("message"), error)
        else:
            logger.error("%s", context.get("message"), exc_info=error)

    return log


if __name__ == "__main__":
    sys.exit(main())

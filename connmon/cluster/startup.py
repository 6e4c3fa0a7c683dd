"""What a node needs before it starts: credentials, room for clients, addresses, logging.

The start and `--check-config` use the same functions, so that both report a problem in the same words.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from connmon.cluster import log_sections
from connmon.cluster.log_limit import system_reason
from connmon.cluster.open_files import ClientRoom, current_limit, room
from connmon.config import Address, Config, Node, Service
from connmon.protocol.credentials import Credentials, of_client, of_node

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Expiry(NamedTuple):
    """When a certificate expires."""

    text: str
    soon: bool


def credentials_of(service: Service) -> tuple[Credentials, list[Expiry]]:
    """Return the credentials of a node, and when its certificates expire. Raises ConfigError."""
    credentials = of_node(service)
    of_client(service)  # a node is a client of the other nodes
    return credentials, [] if credentials.tls is None else expiries(service)


def expiries(service: Service) -> list[Expiry]:
    """Return when the certificates of a node with TLS expire. Raises ConfigError if they are not valid."""
    # Loaded here: `ssl` takes 15 ms, and only a service with TLS needs it.
    from connmon.protocol.tls import check_dates

    return [Expiry(notice.text, notice.soon) for notice in check_dates(service, time.time())]


def room_of(service: Service) -> ClientRoom:
    """Return how many clients the limit on open files allows. Raises UsageError if too few."""
    return room(current_limit(), len(service.nodes) - 1, service.metrics is not None)


def addresses_of(service: Service, node: Node) -> list[tuple[Address, Callable[[OSError], str]]]:
    """Return the addresses that the node listens on, each with the text of an error."""
    addresses: list[tuple[Address, Callable[[OSError], str]]] = [
        (node.bind, functools.partial(cannot_listen, node))
    ]
    if service.metrics is not None:
        addresses.append((service.metrics, functools.partial(cannot_serve_metrics, service)))
    return addresses


def cannot_listen(node: Node, error: OSError) -> str:
    return f"cannot listen on {node.bind} (bind of node {node.name!r}): {system_reason(error)}"


def cannot_serve_metrics(service: Service, error: OSError) -> str:
    where = f"{service.origin} metrics: " if service.origin else ""
    return f"{where}cannot listen on {service.metrics}: {system_reason(error)}"


def complain(message: str, code: int) -> int:
    """Print a message on stderr; return the exit code."""
    with contextlib.suppress(OSError):
        print(f"connmond: {message}", file=sys.stderr, flush=True)
    return code


def set_up_logging(config: Config, verbose: bool) -> None:
    """Log as the config file says, else to stderr; `verbose`: also debug lines. Raises ConfigError."""
    logging.raiseExceptions = False  # a full disk or a closed stderr must not print more
    if config.logging:
        log_sections.set_up(str(config.path))
    else:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    if verbose:
        logging.getLogger("connmon").setLevel(logging.DEBUG)

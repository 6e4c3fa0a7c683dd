"""`connmond --check-config`: make the checks of a start without making, writing or locking anything."""

from __future__ import annotations

import logging
import os
from typing import TextIO

from connmon.cluster import startup
from connmon.cluster.export.csv_dump import check_dump
from connmon.cluster.raft.storage import check_data_dir
from connmon.cluster.writable import can_bind, check_file
from connmon.config import DEFAULT_SERVICE, Config, Node, Service
from connmon.errors import one_line


def check(config: Config, service_name: str | None, node_name: str | None) -> int:
    """Check all services, or the one that is named; return the exit code. Raises UsageError."""
    every = service_name is None and node_name is None
    services = config.services if every else [config.service(service_name or DEFAULT_SERVICE)]
    for service in services:
        nodes = service.nodes if node_name is None else (service.node(node_name),)
        notes = _notes(service, nodes)
        count = len(service.nodes)
        print(f"service {service.name}: {count} node{'s' if count > 1 else ''}")
        if len(nodes) == 1:  # the others are on other hosts
            for address, error_text in startup.addresses_of(service, nodes[0]):
                try:
                    if not can_bind(address):
                        notes.append(f"{address} is in use, as by a running node")
                except OSError as error:
                    return startup.complain(error_text(error), 1)
        for note in notes:
            print(f"service {service.name}: {one_line(note)}")
    if config.logging:
        # Opening a log file would make it, owned by the user who checks. The process ends after this.
        logging.FileHandler._open = _check_log_file  # type: ignore[method-assign,assignment]
        startup.set_up_logging(config, verbose=False)
    print(f"{config.path or 'the built-in default'} is right")
    return 0


def _notes(service: Service, nodes: tuple[Node, ...]) -> list[str]:
    """Return what an operator should know about a service that can start. Raises UsageError if it cannot."""
    _, expiries = startup.credentials_of(service)
    notes = [expiry.text + (": replace it soon" * expiry.soon) for expiry in expiries]
    clients = startup.room_of(service)
    if clients.few:
        notes.append(clients.notice)
    check_dump(service)
    if service.data_dir is not None:
        names = [node.name for node in nodes]
        if check_data_dir(service.data_dir, service.name, names, service.origin):
            notes.append(f"data_dir {service.data_dir} is in use, as by a running node: not looked into")
    return notes


def _check_log_file(handler: logging.FileHandler) -> TextIO:
    """Replace the opening of a log file. Raises the OSError that opening it would raise."""
    check_file(handler.baseFilename)
    return open(os.devnull, "a", encoding="utf-8")

"""`connmon`: runs a command, and says what it ends with.

- Exit codes: 0 done; 1 no node could be read, nothing was found, or the output could not be written;
  2 an argument or the configuration is wrong; 130 ended by Ctrl-C; 141 by a reader of the output
  that went away. Whatever goes wrong is one line on stderr that begins with "connmon: ".
- stdout that is no terminal gets plain output, never escape codes, and never waits for a key:
  the console is then one table.
- A command imports what it needs when it runs: `snapshot` knows nothing of curses.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from connmon.commands import output
from connmon.commands.arguments import argument_parser
from connmon.errors import ConnmonError, UsageError

if TYPE_CHECKING:
    from connmon.config import Service
    from connmon.protocol.document import Document
    from connmon.protocol.values import Grouping

DONE: Final = 0
UNREACHABLE: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `connmon` with these arguments (default: the process's own) and return its exit code."""
    try:
        # A name that the locale cannot write is no reason to fail.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        arguments = argument_parser().parse_args(argv)
        with _debug_lines() if arguments.verbose else contextlib.nullcontext():
            return _run(arguments)
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or DONE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        output.let_go(sys.stdout)
        return BROKEN_PIPE
    except ConnmonError as error:
        output.complain(str(error))
        return USAGE if isinstance(error, UsageError) else UNREACHABLE


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "replay":
        return _replay(arguments)
    if arguments.command == "demo":
        for option in ("service", "host", "node", "config", "secret-file", "verbose"):
            if getattr(arguments, option.replace("-", "_")) not in (None, False):
                raise UsageError(f"demo takes no --{option}: it runs nodes of its own")
        from connmon.commands.demo.run import run as run_demo

        return run_demo(once=not output.is_terminal(sys.stdout), chaos=arguments.chaos)

    service = _service(arguments)
    if arguments.command == "snapshot":
        return _print_snapshot(service, arguments.by, arguments.format)
    if arguments.command == "cluster-status":
        return _print_status(service, arguments.format, arguments.host is None and arguments.node is None)
    if arguments.command == "whois":
        return _print_whois(service, arguments.session, arguments.database, arguments.format)
    if arguments.command == "reconcile":
        return _print_reconcile(service, arguments.url, arguments.database, arguments.format)
    if arguments.command == "record":
        from connmon.commands.record import run as run_record
        from connmon.protocol.credentials import of_client

        return run_record(
            service, arguments.file, of_client(service),
            interval=arguments.interval, times=arguments.times,
            size=arguments.max_size * 2**20, keep=arguments.keep,
        )  # fmt: skip
    return _console(service, arguments)


@contextlib.contextmanager
def _debug_lines() -> Iterator[None]:
    """Say on stderr what happens, in lines like those of errors."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.complain(record.getMessage())

    logger = logging.getLogger("connmon")
    before = logger.level, logger.propagate
    handler = Lines()
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[1]
        logger.setLevel(before[0])


def _console(service: Service, arguments: argparse.Namespace) -> int:
    """Show the console; without a terminal, or where batch output is wished, print tables."""
    from connmon.protocol.credentials import of_client

    credentials = of_client(service)
    maxima = dict([*service.server_max, *(arguments.server_max or ())])
    terminal = output.can_show()
    if arguments.batch or not terminal:
        from connmon.commands import repeat

        return repeat.run(
            service, credentials, by=arguments.by or "program", form=arguments.format or "table",
            times=arguments.times if arguments.batch else arguments.times or 1,
            interval=arguments.interval or 1.0, maxima=maxima,
            write=output.write, complain=output.complain, width=output.terminal_width,
        )  # fmt: skip
    for option in ("times", "by", "format", "verbose"):
        if getattr(arguments, option):
            raise UsageError(f"--{option} is for the batch output: add --batch")
    from connmon.console.app import run as run_console
    from connmon.reader.cluster_status import ask

    whole = arguments.host is None and arguments.node is None
    return run_console(
        service.nodes, service.name, credentials,
        lambda: ask(service, whole=whole, credentials=credentials).document,
        maxima, arguments.interval or 1.0,
    )  # fmt: skip


def _replay(arguments: argparse.Namespace) -> int:
    from connmon.reader.recording import Recording

    recording = Recording(arguments.file)
    if arguments.service is not None and recording.service not in ("", arguments.service):
        raise UsageError(
            f"--service {arguments.service}: {arguments.file} is a recording of service {recording.service!r}"
        )
    if recording.cut:
        output.complain(recording.cut)
    if output.can_show():
        from connmon.console.replay import run as run_replay

        return run_replay(recording)
    from connmon.reader.formats import printed

    document = recording.snapshot(len(recording) - 1, arguments.by).typed_document()
    output.write(printed(document, arguments.format, output.terminal_width()))
    return DONE


def _service(arguments: argparse.Namespace) -> Service:
    """Return the service that the options mean, with only those nodes that may be read."""
    from dataclasses import replace

    from connmon.config import DEFAULT_SERVICE, direct, load

    if arguments.host is not None:
        for option in ("node", "service"):
            if getattr(arguments, option) is not None:
                raise UsageError(
                    f"--{option} and --host exclude each other: --host names a node by its address"
                    f"{_times(arguments) if option == 'node' else ''}"
                )
        try:
            service = direct(arguments.host)
        except UsageError as error:
            raise UsageError(f"--host: {error}") from None
        if arguments.config is not None:
            # The node is the one named; the file has what it takes to talk to it.
            config = load(arguments.config)
            known = config.services[0] if len(config.services) == 1 else config.service(DEFAULT_SERVICE)
            service = replace(known, name=service.name, nodes=service.nodes)
    else:
        name = DEFAULT_SERVICE if arguments.service is None else arguments.service
        service = load(arguments.config).service(name)
        if arguments.node is not None:
            try:
                node = service.node(arguments.node)
            except UsageError as error:
                raise UsageError(f"{error}{_times(arguments)}") from None
            service = replace(service, nodes=(node,))
    if arguments.secret_file is not None:
        service = replace(service, secret=None, secret_file=arguments.secret_file, origin="")
    return service


def _times(arguments: argparse.Namespace) -> str:
    """Return what to add to an error about --node where a number was given, as -n of top takes it."""
    counts = arguments.command in (None, "console", "record")
    if counts and arguments.node is not None and arguments.node.isdigit():
        return f"; how many times is --times {arguments.node} (-t)"
    return ""


def _print_status(service: Service, form: str, whole: bool) -> int:
    from connmon.protocol.credentials import of_client
    from connmon.reader.cluster_status import ask
    from connmon.reader.formats import as_json, status_table

    verdict = ask(service, form == "json", whole, of_client(service))
    output.write(as_json(verdict.document) if form == "json" else status_table(verdict.document))
    return verdict.exit_code


def _print_whois(service: Service, session: str, database: str | None, form: str) -> int:
    from connmon.database.whois import parse_session, whois, whois_csv, whois_text
    from connmon.database_address import parse_servers
    from connmon.protocol.credentials import of_client
    from connmon.reader.client import read_once
    from connmon.reader.formats import as_json

    number = parse_session(session)
    if database is not None and "://" in database:
        from connmon.database.compare import whois_at

        ask = output.ask_password if output.can_ask() else None
        result, problem = whois_at(service, of_client(service), database, number, ask)
    else:
        try:
            servers = () if database is None else parse_servers(database)
        except UsageError as error:
            raise UsageError(f"--database: {error}") from None
        snapshot = read_once(service.nodes, service.name, "connection", credentials=of_client(service))
        result, problem = whois(snapshot.document(), number, servers, snapshot.pool_rows())
    output.write({"json": as_json, "csv": whois_csv, "table": whois_text}[form](result))
    _mention_quorum(result)
    if problem is not None:
        raise ConnmonError(problem)
    return DONE


def _print_reconcile(service: Service, url: str, also: Sequence[str], form: str) -> int:
    from connmon.database.compare import compare
    from connmon.database.formats import reconcile_csv, reconcile_text
    from connmon.database_address import parse_servers
    from connmon.protocol.credentials import of_client
    from connmon.reader.formats import as_json

    try:
        others = tuple(server for each in also for server in parse_servers(each))
    except UsageError as error:
        raise UsageError(f"--database: {error}") from None
    document = compare(
        service, of_client(service), url, others, output.ask_password if output.can_ask() else None
    )
    if form == "json":
        text = as_json(document)
    else:
        text = reconcile_csv(document) if form == "csv" else reconcile_text(document)
    output.write(text)
    _mention_quorum(document)
    return DONE


def _print_snapshot(service: Service, by: Grouping, form: str) -> int:
    from msgspec.structs import asdict

    from connmon.reader.formats import printed

    document = _read(service, by)
    output.write(printed(document, form, output.terminal_width()))
    _mention_quorum(asdict(document.head))  # a CSV has no other place for it
    return DONE


def _read(service: Service, by: Grouping) -> Document:
    """Return a snapshot's document, of a node that has quorum where there is one."""
    from connmon.protocol.credentials import of_client
    from connmon.reader.client import read_once

    return read_once(service.nodes, service.name, by, credentials=of_client(service)).typed_document()


def _mention_quorum(document: Mapping[str, Any]) -> None:
    from connmon.protocol.text import short_age

    if not document["quorum"]:
        still = short_age(document["stale_seconds"])
        output.complain(f"{document['node']} has no quorum: what it shows has stood still for {still}")

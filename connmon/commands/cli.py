"""`connmon`: runs a command and turns its result into an exit code.

- Exit codes: 0 done; 1 no node could be read, nothing was found, or the output could not be written; 2 an
  argument or the configuration is wrong; 130 ended by Ctrl-C; 141 the reader of the output went away. Each
  error is one line on stderr that begins with "connmon: ".
- Where stdout is no terminal the output is plain, without escape codes, and no key is waited for: the
  console is then one table.
- Each command imports its modules when it runs, inside its function, so that `snapshot` starts without
  curses, SQLAlchemy and asyncio.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from connmon.commands import output
from connmon.commands.arguments import argument_parser
from connmon.commands.settings import DEFAULTS, CommandSettings
from connmon.config import DEFAULT_SERVICE, Service, direct, load
from connmon.errors import ConnmonError, UsageError

DONE: Final = 0
UNREACHABLE: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


def main(argv: Sequence[str] | None = None, settings: CommandSettings = DEFAULTS) -> int:
    """Run `connmon` with these arguments (default: the process's own) and return its exit code."""
    # A name that the locale cannot write is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def run() -> int:
        arguments = argument_parser().parse_args(argv)
        command = _COMMANDS[arguments.command or "console"]
        with _debug_lines() if arguments.verbose else contextlib.nullcontext():
            return command(arguments, settings)

    return _exit_code(run)


def _exit_code(run: Callable[[], int]) -> int:
    """Return the exit code of a call; print its error."""
    try:
        return run()
    except SystemExit as end:  # argparse after --help and --version; a signal
        return int(end.code or DONE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        output.let_go(sys.stdout)
        return BROKEN_PIPE
    except ConnmonError as error:
        output.complain(str(error))
        return USAGE if isinstance(error, UsageError) else UNREACHABLE


class _StderrLines(logging.Handler):
    """Writes log records like error lines."""

    def emit(self, record: logging.LogRecord) -> None:
        output.complain(record.getMessage())


@contextlib.contextmanager
def _debug_lines() -> Iterator[None]:
    """Write the logger "connmon" to stderr from DEBUG on, for as long as the block runs."""
    logger = logging.getLogger("connmon")
    level, propagate = logger.level, logger.propagate
    handler = _StderrLines()
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


# --- The commands -------------------------------------------------------------------------


def _console(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    """Show the console; with --batch or without a terminal, print snapshots."""
    from connmon.protocol.credentials import of_client

    service = _service(arguments)
    credentials = of_client(service)
    maxima = dict([*service.server_max, *(arguments.server_max or ())])
    interval_seconds = arguments.interval or 1.0
    if arguments.batch or not output.can_show():
        from connmon.commands.print_snapshots import print_snapshots

        return print_snapshots(
            service,
            credentials,
            by=arguments.by or "program",
            form=arguments.format or "table",
            times=arguments.times if arguments.batch else arguments.times or 1,
            interval_seconds=interval_seconds,
            maxima=maxima,
            write=output.write,
            complain=output.complain,
            width=output.terminal_width,
        )
    _refuse_options_of_batch(arguments)
    from connmon.console.app import run as run_console
    from connmon.reader.cluster_status import ask

    whole = _is_whole_service(arguments)
    return run_console(
        service.nodes, service.name, credentials,
        lambda: ask(service, whole=whole, credentials=credentials).document,
        maxima, interval_seconds,
    )  # fmt: skip


def _refuse_options_of_batch(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option that the console on a screen does not take."""
    for option in ("times", "by", "format"):
        if getattr(arguments, option):
            raise UsageError(f"--{option} is for printed snapshots: add --batch")
    if arguments.verbose and output.is_terminal(sys.stderr):
        raise UsageError(
            "--verbose would write over the console: add --batch, or redirect stderr with 2>FILE"
        )


def _snapshot(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    from connmon.protocol.credentials import of_client
    from connmon.reader.client import read_once
    from connmon.reader.formats import printed

    service, by = _service(arguments), arguments.by
    document = read_once(service.nodes, service.name, by, credentials=of_client(service)).typed_document()
    output.write(printed(document, arguments.format, output.terminal_width()))
    head = document.head  # a CSV has no other place for it
    _warn_without_quorum(head.node, head.quorum, head.stale_seconds)
    return DONE


def _profile(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    from connmon.commands.profile import profile
    from connmon.protocol.credentials import of_client

    service = _service(arguments)
    header = profile(
        service,
        of_client(service),
        programs=arguments.program,
        seconds=arguments.seconds,
        form=arguments.format,
        write=output.write,
        complain=output.complain,
        announce=output.complain if output.is_terminal(sys.stderr) else lambda line: None,
        width=output.terminal_width,
    )
    _warn_without_quorum(header.node, header.quorum, header.stale)
    return DONE


def _cluster_status(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    from connmon.protocol.credentials import of_client
    from connmon.reader.cluster_status import ask
    from connmon.reader.formats import as_json, status_table

    service, is_json = _service(arguments), arguments.format == "json"
    verdict = ask(service, is_json, _is_whole_service(arguments), of_client(service))
    output.write(as_json(verdict.document) if is_json else status_table(verdict.document))
    return verdict.exit_code


def _whois(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    from connmon.database.documents import look_header
    from connmon.database.whois import parse_session, whois
    from connmon.database.whois_formats import whois_csv, whois_json, whois_text
    from connmon.database_address import parse_servers
    from connmon.protocol.credentials import of_client
    from connmon.protocol.document import JsonConnection
    from connmon.reader.client import read_once

    service, database = _service(arguments), arguments.database
    session = parse_session(arguments.session)
    if database is not None and "://" in database:
        from connmon.database.collect import whois_on_server

        result, problem = whois_on_server(
            service, of_client(service), database, session, output.password_prompt(), settings.database
        )
    else:
        with _named_option("--database"):
            servers = () if database is None else parse_servers(database)
        snapshot = read_once(service.nodes, service.name, "connection", credentials=of_client(service))
        result, problem = whois(
            look_header(snapshot.typed_head()), snapshot.rows_of(JsonConnection), session, servers,
            snapshot.pool_rows(),
        )  # fmt: skip
    output.write({"json": whois_json, "csv": whois_csv, "table": whois_text}[arguments.format](result))
    _warn_without_quorum(result["node"], result["quorum"], result["stale_seconds"])
    if problem is not None:
        raise ConnmonError(problem)
    return DONE


def _reconcile(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    from connmon.database.collect import reconcile_server
    from connmon.database.reconcile_formats import reconcile_csv, reconcile_json, reconcile_text
    from connmon.database_address import parse_servers
    from connmon.protocol.credentials import of_client

    service = _service(arguments)
    with _named_option("--database"):
        also = tuple(server for names in arguments.database for server in parse_servers(names))
    document = reconcile_server(
        service, of_client(service), arguments.url, also, output.password_prompt(), settings.database
    )
    formats = {"json": reconcile_json, "csv": reconcile_csv, "table": reconcile_text}
    output.write(formats[arguments.format](document))
    _warn_without_quorum(document["node"], document["quorum"], document["stale_seconds"])
    return DONE


def _record(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    from connmon.commands.record import run as run_record
    from connmon.protocol.credentials import of_client

    service = _service(arguments)
    return run_record(
        service, arguments.file, of_client(service),
        interval=arguments.interval, times=arguments.times,
        size=arguments.max_size * 2**20, keep=arguments.keep,
    )  # fmt: skip


def _replay(arguments: argparse.Namespace, settings: CommandSettings) -> int:
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


def _demo(arguments: argparse.Namespace, settings: CommandSettings) -> int:
    for option in ("service", "host", "node", "config", "secret-file", "verbose"):
        if getattr(arguments, option.replace("-", "_")) not in (None, False):
            raise UsageError(f"demo takes no --{option}: it runs nodes of its own")
    from connmon.commands.demo.run import run as run_demo

    return run_demo(once=not output.is_terminal(sys.stdout), chaos=arguments.chaos, settings=settings.demo)


_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace, CommandSettings], int]]] = {
    "console": _console,
    "snapshot": _snapshot,
    "profile": _profile,
    "cluster-status": _cluster_status,
    "whois": _whois,
    "reconcile": _reconcile,
    "record": _record,
    "replay": _replay,
    "demo": _demo,
}


# --- Which node is read -------------------------------------------------------------------


def _service(arguments: argparse.Namespace) -> Service:
    """Return the service by the options, with only the nodes that may be read."""
    service = _service_of_config(arguments) if arguments.host is None else _service_of_host(arguments)
    if arguments.secret_file is not None:
        service = replace(service, secret=None, secret_file=arguments.secret_file, origin="")
    return service


def _service_of_host(arguments: argparse.Namespace) -> Service:
    for option in ("node", "service"):
        if getattr(arguments, option) is not None:
            raise UsageError(
                f"--{option} and --host exclude each other: --host names a node by its address"
                f"{_times_hint(arguments) if option == 'node' else ''}"
            )
    with _named_option("--host"):
        service = direct(arguments.host)
    if arguments.config is None:
        return service
    # The node is the one named; secret and certificates are the file's.
    config = load(arguments.config)
    known = config.services[0] if len(config.services) == 1 else config.service(DEFAULT_SERVICE)
    return replace(known, name=service.name, nodes=service.nodes)


def _service_of_config(arguments: argparse.Namespace) -> Service:
    name = DEFAULT_SERVICE if arguments.service is None else arguments.service
    service = load(arguments.config).service(name)
    if arguments.node is None:
        return service
    try:
        node = service.node(arguments.node)
    except UsageError as error:
        raise UsageError(f"{error}{_times_hint(arguments)}") from None
    return replace(service, nodes=(node,))


def _is_whole_service(arguments: argparse.Namespace) -> bool:
    """Whether the nodes that are asked are all nodes of the config's service."""
    return arguments.host is None and arguments.node is None


@contextlib.contextmanager
def _named_option(option: str) -> Iterator[None]:
    """Put the option's name before an error about its value."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None


def _times_hint(arguments: argparse.Namespace) -> str:
    """Return the end of an error about --node where its value is a number, since -n of top is a count."""
    counts = arguments.command in (None, "console", "record")
    if counts and arguments.node is not None and arguments.node.isdigit():
        return f"; how many times is --times {arguments.node} (-t)"
    return ""


def _warn_without_quorum(node: str, quorum: bool, stale_seconds: float) -> None:
    from connmon.commands.print_snapshots import quorum_warning

    if warning := quorum_warning(node, quorum, stale_seconds):
        output.complain(warning)

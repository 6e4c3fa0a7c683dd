"""`connmon`: arguments, and what a command ends with.

- Exit codes: 0 done; 1 no node could be read, nothing was found, or the output could not be written;
  2 an argument or the configuration is wrong; 130 ended by Ctrl-C; 141 by a reader of the output
  that went away. Whatever goes wrong is one line on stderr that begins with "connmon: ".
- stdout that is no terminal gets plain output, never escape codes, and never waits for a key:
  the console is then one table.
- A command imports what it needs when it runs: `snapshot` knows nothing of curses.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeAlias

from connmon import __version__
from connmon.errors import ConnmonError, UsageError, without_passwords
from connmon.model import GROUPINGS, Grouping

if TYPE_CHECKING:
    from connmon.config import Service

    _Commands: TypeAlias = argparse._SubParsersAction["_Parser"]

DONE: Final = 0
UNREACHABLE: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

_EPILOG: Final = """\
Without a command the console is run; options may stand before the command or after it.
exit codes: 0 done, 1 no node could be read, 2 wrong arguments or configuration
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `connmon` with these arguments (default: the process's own) and return its exit code."""
    try:
        # A name that the locale cannot write is no reason to fail.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return _run(_parser().parse_args(argv))
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or DONE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _let_go(sys.stdout)
        return BROKEN_PIPE
    except ConnmonError as error:
        _complain(str(error))
        return USAGE if isinstance(error, UsageError) else UNREACHABLE


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser, for what makes completions of it (shtab)."""
    return _parser()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="connmon",
        description='A "top" for database connections: who holds them, who waits for one.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"connmon {__version__}")
    _add_reading(parser, None)
    _add_console(parser, None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    summary = "watch live in the terminal (the default)"
    console = commands.add_parser("console", help=summary, description=summary, allow_abbrev=False)
    # Suppressed, so that an option left out here does not undo one given before the command.
    _add_reading(console, argparse.SUPPRESS)
    _add_console(console, argparse.SUPPRESS)

    summary = "print once what a node knows now"
    snapshot = commands.add_parser("snapshot", help=summary, description=summary, allow_abbrev=False)
    _add_reading(snapshot, argparse.SUPPRESS)
    snapshot.add_argument(
        "--by", choices=GROUPINGS, default="program", help="what a row is (default: program)"
    )
    snapshot.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="default: table"
    )

    summary = "ask every node of the service how it is"
    status = commands.add_parser(
        "cluster-status",
        help=summary,
        description=summary,
        epilog="exit codes: 0 healthy, 1 degraded, 2 no quorum or no node reachable",
        allow_abbrev=False,
    )
    _add_reading(status, argparse.SUPPRESS)
    status.add_argument("--format", choices=("table", "json"), default="table", help="default: table")

    _add_whois(commands)
    _add_reconcile(commands)

    summary = "keep what a node shows in a file, to replay it later"
    record = commands.add_parser("record", help=summary, description=summary, allow_abbrev=False)
    _add_reading(record, argparse.SUPPRESS)
    _add_record(record)

    summary = "show a recording in the console"
    replay = commands.add_parser("replay", help=summary, description=summary, allow_abbrev=False)
    _add_replay(replay)

    summary = "run three nodes and busy applications here, to try connmon"
    demo = commands.add_parser("demo", help=summary, description=summary, allow_abbrev=False)
    demo.add_argument(
        "--chaos", action="store_true", help="kill and restart the nodes by turns: nothing is lost"
    )
    return parser


def _add_whois(commands: _Commands) -> None:
    summary = "tell who holds a session of the database server"
    whois = commands.add_parser(
        "whois",
        help=summary,
        description=f"{summary}: host, program, pid, thread or task, and line of code.",
        epilog="exit codes: 0 found, 1 nobody has it or no node could be read, 2 wrong arguments",
        allow_abbrev=False,
    )
    _add_reading(whois, argparse.SUPPRESS)
    whois.add_argument("session", metavar="ID", help="a MySQL thread id or PostgreSQL backend pid")
    whois.add_argument(
        "--database", metavar="HOST[:PORT]", help="only of this server, named as in the applications' URLs"
    )
    whois.add_argument("--format", choices=("table", "json"), default="table", help="default: table")


def _add_reconcile(commands: _Commands) -> None:
    summary = "compare a database server's own session list with what processes report"
    reconcile = commands.add_parser(
        "reconcile",
        help=summary,
        description=f"{summary}. A read-only account will do; it has to see the sessions of others "
        "(PROCESS, or pg_read_all_stats). The password may be in ~/.my.cnf or ~/.pgpass.",
        epilog="exit codes: 0 done, 1 no node or no database server answers, 2 wrong arguments or login",
        allow_abbrev=False,
    )
    _add_reading(reconcile, argparse.SUPPRESS)
    reconcile.add_argument(
        "url", metavar="URL", help="mysql://, mariadb:// or postgresql://USER@HOST/DATABASE"
    )
    reconcile.add_argument(
        "--database",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help="what applications call this server besides the URL's name; may be repeated",
    )
    reconcile.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="default: table"
    )


def _add_reading(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the options of every command that reads."""
    group = parser.add_argument_group("which node to read")
    for short, long, metavar, text in (
        ("-s", "--service", "NAME", "service of the config file (default: default)"),
        ("-H", "--host", "HOST[:PORT]", "this node, without a config file (default port: 5800)"),
        ("-n", "--node", "NAME", "this node of the service (default: any that can be reached)"),
        ("-c", "--config", "FILE", "config file (default: $CONNMON_CONFIG, else /etc/connmon.cfg)"),
    ):
        action = _Node if long == "--node" else "store"
        group.add_argument(short, long, metavar=metavar, default=default, help=text, action=action)
    # A file, never the secret itself: everybody on the host sees the arguments of a process.
    group.add_argument(
        "--secret-file", metavar="FILE", default=default, help="file with the secret (default: the config's)"
    )


class _Node(argparse.Action):
    """--node, and how it was written: with -b, -n is how many times, as everywhere where there is a -b."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        namespace.node, namespace.node_option = values, option_string


def _add_console(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the options of the console."""
    group = parser.add_argument_group("the console, and its batch output")
    group.add_argument(
        "-b", "--batch", action="store_true", default=default or False,
        help="print tables instead of a screen, as is done anyway where stdout is no terminal, then once",
    )  # fmt: skip
    group.add_argument(
        "--times", metavar="N", type=_count, default=default,
        help="with --batch: so many times (also -n N; default: until Ctrl-C)",
    )  # fmt: skip
    group.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=default, help="between pictures (default: 1)"
    )
    group.add_argument(
        "--by", choices=GROUPINGS, default=default, help="with --batch: what a row is (default: program)"
    )
    group.add_argument(
        "--format", choices=("table", "json", "csv"), default=default,
        help="with --batch; json is one document per line (default: table)",
    )  # fmt: skip
    group.add_argument(
        "--server-max", metavar="HOST[:PORT]=N", type=_server_max, action="append", default=default,
        help="connections that a database server takes, to be warned of OVERCOMMIT; may be repeated",
    )  # fmt: skip


def _add_record(parser: argparse.ArgumentParser) -> None:
    """Add the options of `record`."""
    parser.add_argument("file", metavar="FILE", help="a new file; FILE.1, FILE.2 ... are older parts of it")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=1.0, help="between pictures (default: 1)"
    )
    parser.add_argument(
        "--times", metavar="N", type=_count, help="so many pictures (default: until Ctrl-C or SIGTERM)"
    )
    parser.add_argument(
        "--max-size", metavar="MIB", type=_count, default=64, help="of one file, in MiB (default: 64)"
    )
    parser.add_argument(
        "--keep", metavar="N", type=_count, default=4, help="older parts that are kept (default: 4)"
    )


def _add_replay(parser: argparse.ArgumentParser) -> None:
    """Add the options of `replay`."""
    parser.add_argument("file", metavar="FILE", help="a file that `connmon record` has written")
    parser.add_argument(
        "--by", choices=GROUPINGS, default="program",
        help="without a terminal: what a row of the last picture is (default: program)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is expected, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400.0:
        raise argparse.ArgumentTypeError(f"seconds from 0.1 to 86400 are expected, not {text!r}")
    return seconds


def _server_max(text: str) -> tuple[tuple[str, int | None], int]:
    server, equals, most = text.rpartition("=")
    host, colon, port = server.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = server, ""
    if not (
        equals and host and most.isascii() and most.isdigit() and (port.isdigit() or not colon or not port)
    ):
        raise argparse.ArgumentTypeError(f"HOST=N or HOST:PORT=N is expected, not {text!r}")
    return (host.strip("[]"), int(port) if port else None), int(most)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "replay":
        return _replay(arguments)
    if arguments.command == "demo":
        for option in ("service", "host", "node", "config", "secret-file"):
            if getattr(arguments, option.replace("-", "_")) is not None:
                raise UsageError(f"demo takes no --{option}: it runs nodes of its own")
        from connmon.demo import run as run_demo

        return run_demo(once=not _is_terminal(sys.stdout), chaos=arguments.chaos)

    _settle(arguments)
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
        from connmon.credentials import of_client
        from connmon.record import run as run_record

        return run_record(
            service, arguments.file, of_client(service),
            interval=arguments.interval, times=arguments.times,
            size=arguments.max_size * 2**20, keep=arguments.keep,
        )  # fmt: skip
    return _console(service, arguments)


def _console(service: Service, arguments: argparse.Namespace) -> int:
    """Show the console; without a terminal, or where batch output is wished, print tables."""
    from connmon.credentials import of_client

    credentials = of_client(service)
    maxima = dict(arguments.server_max or ())
    terminal = _can_show()
    if arguments.batch or not terminal:
        from connmon import batch

        return batch.run(
            service, credentials, by=arguments.by or "program", form=arguments.format or "table",
            times=arguments.times if arguments.batch else arguments.times or 1,
            interval=arguments.interval or 1.0, maxima=maxima,
            write=_write, complain=_complain, width=_terminal_width,
        )  # fmt: skip
    for option in ("times", "by", "format"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} is for the batch output: add --batch")
    from connmon.clusterstatus import ask
    from connmon.console.app import run as run_console

    whole = arguments.host is None and arguments.node is None
    return run_console(
        service.nodes, service.name, credentials,
        lambda: ask(service, whole=whole, credentials=credentials).document,
        maxima, arguments.interval or 1.0,
    )  # fmt: skip


def _replay(arguments: argparse.Namespace) -> int:
    for option in ("service", "host", "node", "config", "secret-file"):
        if getattr(arguments, option.replace("-", "_")) is not None:
            raise UsageError(f"replay takes no --{option}: all is in the file")
    from connmon.recording import Recording

    recording = Recording(arguments.file)
    if recording.cut:
        _complain(recording.cut)
    if _can_show():
        from connmon.console.replay import run as run_replay

        return run_replay(recording)
    from connmon.formats import printed

    document = recording.snapshot(len(recording) - 1, arguments.by).document()
    _write(printed(document, arguments.by, arguments.format, _terminal_width()))
    return DONE


def _can_show() -> bool:
    """Whether there is a terminal for the console, as far as can be told without curses."""
    if os.environ.get("TERM", "") in ("", "dumb"):
        return False
    return _is_terminal(sys.stdin) and _is_terminal(sys.stdout)


def _settle(arguments: argparse.Namespace) -> None:
    """With -b, -n is how many times: so it is in top, and --node names the node."""
    batch = arguments.command in (None, "console") and arguments.batch
    if batch and getattr(arguments, "node_option", None) == "-n":
        try:
            arguments.times, arguments.node = _count(arguments.node), None
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"-n with --batch is how many times: {error}; --node names a node") from None


def _service(arguments: argparse.Namespace) -> Service:
    """Return the service that the options mean, with only those nodes that may be read."""
    from dataclasses import replace

    from connmon.config import DEFAULT_SERVICE, direct, load

    if arguments.host is not None:
        for option in ("node", "service"):
            if getattr(arguments, option) is not None:
                raise UsageError(
                    f"--{option} and --host exclude each other: --host names a node by its address"
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
            service = replace(service, nodes=(service.node(arguments.node),))
    if arguments.secret_file is not None:
        service = replace(service, secret=None, secret_file=arguments.secret_file, origin="")
    return service


def _print_status(service: Service, form: str, whole: bool) -> int:
    from connmon.clusterstatus import ask
    from connmon.credentials import of_client
    from connmon.formats import as_json, status_table

    verdict = ask(service, form == "json", whole, of_client(service))
    _write(as_json(verdict.document) if form == "json" else status_table(verdict.document))
    return verdict.exit_code


def _print_whois(service: Service, session: str, database: str | None, form: str) -> int:
    from connmon.dbserver import parse_server
    from connmon.formats import as_json
    from connmon.whois import parse_session, whois, whois_text

    number = parse_session(session)
    try:
        server = None if database is None else parse_server(database)
    except UsageError as error:
        raise UsageError(f"--database: {error}") from None
    document = _read(service, "connection")
    result, problem = whois(document, number, server)
    _write(as_json(result) if form == "json" else whois_text(result))
    _mention_quorum(document)
    if problem is not None:
        raise ConnmonError(problem)
    return DONE


def _print_reconcile(service: Service, url: str, also: Sequence[str], form: str) -> int:
    from connmon.credentials import of_client
    from connmon.dbserver import parse_server
    from connmon.formats import as_json
    from connmon.reconcileformats import reconcile_csv, reconcile_text
    from connmon.reconciling import compare

    try:
        others = tuple(parse_server(each) for each in also)
    except UsageError as error:
        raise UsageError(f"--database: {error}") from None
    document = compare(service, of_client(service), url, others, _ask_password if _can_ask() else None)
    if form == "json":
        text = as_json(document)
    else:
        text = reconcile_csv(document) if form == "csv" else reconcile_text(document)
    _write(text)
    _mention_quorum(document)
    return DONE


def _can_ask() -> bool:
    return _is_terminal(sys.stdin) and _is_terminal(sys.stderr)


def _ask_password(prompt: str) -> str:
    """Ask on the terminal, without an echo. Raises UsageError where nothing is given."""
    from getpass import getpass

    from connmon.formats import printable

    try:
        return getpass(printable(prompt), sys.stderr)
    except EOFError:
        raise UsageError("no password given") from None


def _print_snapshot(service: Service, by: Grouping, form: str) -> int:
    from connmon.formats import printed

    document = _read(service, by)
    _write(printed(document, by, form, _terminal_width()))
    _mention_quorum(document)  # a CSV has no other place for it
    return DONE


def _read(service: Service, by: Grouping) -> dict[str, Any]:
    """Return a snapshot's document, of a node that has quorum where there is one."""
    from connmon.client import read_once
    from connmon.credentials import of_client

    return read_once(service.nodes, service.name, by, credentials=of_client(service)).document()


def _mention_quorum(document: Mapping[str, Any]) -> None:
    from connmon.formats import short_age

    if not document["quorum"]:
        still = short_age(document["stale_seconds"])
        _complain(f"{document['node']} has no quorum: what it shows has stood still for {still}")


def _write(text: str) -> None:
    """Write to stdout. Raises ConnmonError where that cannot be, BrokenPipeError where nobody reads."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _let_go(sys.stdout)
        raise ConnmonError(f"the output cannot be written: {error.strerror}") from None


def _is_terminal(stream: TextIO | None) -> bool:
    """None: the process was started without this stream."""
    return stream is not None and not stream.closed and stream.isatty()


def _terminal_width() -> int | None:
    """Return the cells of a line of stdout, or None where it is no terminal."""
    if not _is_terminal(sys.stdout):
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def _complain(message: str) -> None:
    from connmon.formats import printable

    if sys.stderr is not None:
        print(f"connmon: {printable(without_passwords(message))}", file=sys.stderr)


def _let_go(stream: TextIO) -> None:
    """Give the stream somewhere to write, since Python flushes it once more at exit and would complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a file of the system's
        pass

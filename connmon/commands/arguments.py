"""What can be said to `connmon`: its commands and their options.

- Options of a command may stand before it or after it.
- Whatever is wrong with them is a UsageError of one line, raised by the parser.
- A secret or a password is never an option: everybody on the host sees the arguments of a process.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from connmon import __version__
from connmon.address import ServerMax, parse_server_max
from connmon.errors import ConfigError, UsageError
from connmon.protocol.values import GROUPINGS

if TYPE_CHECKING:
    _Commands: TypeAlias = argparse._SubParsersAction["_Parser"]

_EPILOG: Final = """\
Without a command the console is run; options may stand before the command or after it.
exit codes: 0 done, 1 no node could be read, 2 wrong arguments or configuration, 130 Ctrl-C; those of
cluster-status and whois: see their --help
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser; what makes completions of it (shtab) asks for it as well."""
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
    _add_reading(
        replay,
        argparse.SUPPRESS,
        "Taken as by every command that reads, and not needed: the file has it all. A --service that is not "
        "the recording's is an error.",
    )
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
        "--database",
        metavar="HOST[:PORT]|URL",
        help="only of this server, as rows name it; with a URL the server itself is asked which session "
        "blocks this one (the password may be in ~/.my.cnf or ~/.pgpass)",
    )
    whois.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")


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


def _add_reading(
    parser: argparse.ArgumentParser, default: str | None, description: str | None = None
) -> None:
    """Add the options of every command that reads."""
    group = parser.add_argument_group("which node to read", description)
    for short, long, metavar, text in (
        ("-s", "--service", "NAME", "service of the config file (default: default)"),
        ("-H", "--host", "HOST[:PORT]", "this node, without a config file (default port: 5800)"),
        ("-n", "--node", "NAME", "this node of the service (default: any that can be reached)"),
        ("-c", "--config", "FILE", "config file (default: $CONNMON_CONFIG, else /etc/connmon.cfg)"),
    ):
        group.add_argument(short, long, metavar=metavar, default=default, help=text)
    # A file, never the secret itself: everybody on the host sees the arguments of a process.
    group.add_argument(
        "--secret-file", metavar="FILE", default=default, help="file with the secret (default: the config's)"
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", default=default or False,
        help="say on stderr which nodes are tried, and what they answer",
    )  # fmt: skip


def _add_console(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the options of the console."""
    group = parser.add_argument_group("the console, and its batch output")
    group.add_argument(
        "-b", "--batch", action="store_true", default=default or False,
        help="print tables instead of a screen, as is done anyway where stdout is no terminal, then once",
    )  # fmt: skip
    group.add_argument(
        "-t", "--times", metavar="N", type=count, default=default,
        help="with --batch: so many times (default: until Ctrl-C)",
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
        "--server-max", metavar="HOST[:PORT]=N", type=server_max, action="append", default=default,
        help="connections that a database server takes, to be warned of OVERCOMMIT; may be repeated",
    )  # fmt: skip


def _add_record(parser: argparse.ArgumentParser) -> None:
    """Add the options of `record`."""
    parser.add_argument("file", metavar="FILE", help="a new file; FILE.1, FILE.2 ... are older parts of it")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=1.0, help="between pictures (default: 1)"
    )
    parser.add_argument(
        "-t", "--times", metavar="N", type=count, help="so many pictures (default: until Ctrl-C or SIGTERM)"
    )
    parser.add_argument(
        "--max-size", metavar="MIB", type=count, default=64, help="of one file, in MiB (default: 64)"
    )
    parser.add_argument(
        "--keep", metavar="N", type=count, default=4, help="older parts that are kept (default: 4)"
    )


def _add_replay(parser: argparse.ArgumentParser) -> None:
    """Add the options of `replay`."""
    parser.add_argument("file", metavar="FILE", help="a file that `connmon record` has written")
    parser.add_argument(
        "--by", choices=GROUPINGS, default="program",
        help="without a terminal: what a row of the last picture is (default: program)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")


def count(text: str) -> int:
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


def server_max(text: str) -> ServerMax:
    try:
        return parse_server_max(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

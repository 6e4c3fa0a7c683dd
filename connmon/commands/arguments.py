"""The commands of `connmon` and their options.

- The options of a command may stand before it or after it.
- A mistake is a UsageError of one line, raised by the parser.
- A secret or a password is never an option: everybody on the host sees the arguments of a process.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from connmon.address import ServerMax, parse_server_max
from connmon.errors import ConfigError, UsageError
from connmon.protocol.values import GROUPINGS
from connmon.version import __version__

if TYPE_CHECKING:
    _Commands: TypeAlias = argparse._SubParsersAction["_Parser"]

_EPILOG: Final = """\
Without a command the console runs; options may stand before the command or after it.
exit codes: 0 done, 1 no node could be read, 2 wrong arguments or configuration, 130 Ctrl-C; for
cluster-status and whois see their --help
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `connmon`; shtab makes completions of it."""
    parser = _Parser(
        prog="connmon",
        description='A "top" for database connections: who holds them, who waits for one.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"connmon {__version__}")
    _add_reading(parser, None)
    _add_console_options(parser, None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (
        _add_console, _add_snapshot, _add_profile, _add_cluster_status, _add_whois, _add_reconcile,
        _add_record, _add_replay, _add_demo,
    ):  # fmt: skip
        add(commands)
    return parser


def _add_command(
    commands: _Commands, name: str, summary: str, description: str | None = None, epilog: str | None = None
) -> _Parser:
    return commands.add_parser(
        name, help=summary, description=description or summary, epilog=epilog, allow_abbrev=False
    )


def _add_console(commands: _Commands) -> None:
    console = _add_command(commands, "console", "watch live in the terminal (the default)")
    # Suppressed, so that an option left out here does not undo one given before the command.
    _add_reading(console, argparse.SUPPRESS)
    _add_console_options(console, argparse.SUPPRESS)


def _add_snapshot(commands: _Commands) -> None:
    snapshot = _add_command(commands, "snapshot", "print a snapshot of what a node knows")
    _add_reading(snapshot, argparse.SUPPRESS)
    snapshot.add_argument(
        "--by", choices=GROUPINGS, default="program", help=f"{_GROUPING} (default: program)"
    )
    _add_format(snapshot)


def _add_profile(commands: _Commands) -> None:
    summary = "show where connection time goes, by call site"
    profile = _add_command(
        commands, "profile", summary,
        f"{summary}: of the last one to two minutes, or with --seconds of the next N seconds.",
        "Ctrl-C ends --seconds early, with what was measured until then; a second one at once.",
    )  # fmt: skip
    _add_reading(profile, argparse.SUPPRESS)
    profile.add_argument(
        "--program", metavar="NAME", action="append", default=[],
        help="only this program, by its exact name; may be repeated (default: all)",
    )  # fmt: skip
    profile.add_argument(
        "--seconds", metavar="N", type=_seconds,
        help="measure for N seconds, 0.1 to 86400; 10 and more give good figures "
        "(default: the last one to two minutes, at once)",
    )  # fmt: skip
    profile.add_argument(
        "--format", choices=("table", "folded", "speedscope"), default="table",
        help="folded: for flamegraph.pl and inferno, in milliseconds; speedscope: JSON for "
        "www.speedscope.app (default: table)",
    )  # fmt: skip


def _add_cluster_status(commands: _Commands) -> None:
    status = _add_command(
        commands, "cluster-status", "ask every node of the service for its status",
        epilog="exit codes: 0 healthy, 1 degraded, 2 no quorum or no node reachable",
    )  # fmt: skip
    _add_reading(status, argparse.SUPPRESS)
    _add_format(status, ("table", "json"))


def _add_whois(commands: _Commands) -> None:
    summary = "name the holder of a session of the database server"
    whois = _add_command(
        commands, "whois", summary,
        f"{summary}: host, program, pid, thread or task, and call site.",
        "exit codes: 0 found, 1 nobody has it or no node could be read, 2 wrong arguments",
    )  # fmt: skip
    _add_reading(whois, argparse.SUPPRESS)
    whois.add_argument("session", metavar="ID", help="a MySQL thread id or PostgreSQL backend pid")
    whois.add_argument(
        "--database",
        metavar="HOST[:PORT]|URL",
        help="only of this server, by its name in rows; with a URL the server itself is asked which session "
        "blocks this one (the password may be in ~/.my.cnf or ~/.pgpass)",
    )
    _add_format(whois)


def _add_reconcile(commands: _Commands) -> None:
    summary = "compare a database server's own session list with the reports of processes"
    reconcile = _add_command(
        commands, "reconcile", summary,
        f"{summary}. A read-only account is enough; it must see the sessions of others "
        "(PROCESS, or pg_read_all_stats). The password may be in ~/.my.cnf or ~/.pgpass.",
        "exit codes: 0 done, 1 no node or no database server answers, 2 wrong arguments or login",
    )  # fmt: skip
    _add_reading(reconcile, argparse.SUPPRESS)
    reconcile.add_argument(
        "url", metavar="URL", help="mysql://, mariadb:// or postgresql://USER@HOST/DATABASE"
    )
    reconcile.add_argument(
        "--database",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help="another name that applications use for this server; may be repeated",
    )
    _add_format(reconcile)


def _add_record(commands: _Commands) -> None:
    record = _add_command(commands, "record", "record snapshots of a node in a file, for replay")
    _add_reading(record, argparse.SUPPRESS)
    record.add_argument("file", metavar="FILE", help="a new file; FILE.1, FILE.2 ... are older parts of it")
    record.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=1.0, help="between snapshots (default: 1)"
    )
    record.add_argument(
        "-t", "--times", metavar="N", type=count,
        help="number of snapshots (default: until Ctrl-C or SIGTERM)",
    )  # fmt: skip
    record.add_argument(
        "--max-size", metavar="MIB", type=count, default=64, help="of one file, in MiB (default: 64)"
    )
    record.add_argument("--keep", metavar="N", type=count, default=4, help="older parts to keep (default: 4)")


def _add_replay(commands: _Commands) -> None:
    replay = _add_command(commands, "replay", "show a recording in the console")
    _add_reading(
        replay,
        argparse.SUPPRESS,
        "Accepted, as by every command that reads, and not needed: the file has it all. A --service other "
        "than the recording's is an error.",
    )
    replay.add_argument("file", metavar="FILE", help="a file of `connmon record`")
    replay.add_argument(
        "--by", choices=GROUPINGS, default="program",
        help="without a terminal: the grouping of the last snapshot (default: program)",
    )  # fmt: skip
    _add_format(replay)


def _add_demo(commands: _Commands) -> None:
    demo = _add_command(commands, "demo", "run three nodes and busy applications here, to try connmon")
    demo.add_argument(
        "--chaos", action="store_true", help="kill and restart the nodes in turn: nothing is lost"
    )


_GROUPING: Final = "what a row groups"


def _add_format(parser: argparse.ArgumentParser, formats: Sequence[str] = ("table", "json", "csv")) -> None:
    parser.add_argument("--format", choices=formats, default="table", help="default: table")


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
        help="log each connection to a node on stderr: tried, welcomed, refused, closed; the console takes "
        "it only with --batch or 2>FILE",
    )  # fmt: skip


def _add_console_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    group = parser.add_argument_group("the console, and printed snapshots (--batch)")
    group.add_argument(
        "-b", "--batch", action="store_true", default=default or False,
        help="print snapshots instead of a screen; without a terminal on stdout one is printed anyway",
    )  # fmt: skip
    group.add_argument(
        "-t", "--times", metavar="N", type=count, default=default,
        help="with --batch: number of snapshots (default: until Ctrl-C)",
    )  # fmt: skip
    group.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=default, help="between snapshots (default: 1)"
    )
    group.add_argument(
        "--by", choices=GROUPINGS, default=default, help=f"with --batch: {_GROUPING} (default: program)"
    )
    group.add_argument(
        "--format", choices=("table", "json", "csv"), default=default,
        help="with --batch; json is one document per line (default: table)",
    )  # fmt: skip
    group.add_argument(
        "--server-max", metavar="HOST[:PORT]=N", type=server_max, action="append", default=default,
        help="connections that a database server allows, for the verdict OVERCOMMIT; may be repeated",
    )  # fmt: skip


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

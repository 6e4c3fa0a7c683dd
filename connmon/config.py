"""The configuration: config file, environment and URL options, read into frozen Service and Node.

- The whole file is checked once, before anything uses it: a mistake in one service is an error for all. Each
  mistake is a ConfigError of one line with the file, the section, the option, the value and what is expected.
- A secret is in no error and in no repr().
- The built-in default is a text for the same parser.
- Applications import this module: it imports nothing slow and sets nothing up. The sections for logging are
  left to the program that configures logging.
"""

from __future__ import annotations

import configparser
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from connmon.address import Address, ServerMax, parse_address, parse_server_max, quoted
from connmon.errors import ConfigError, one_line

__all__ = [
    "Address", "Config", "Node", "Service", "UrlOptions", "direct", "load", "parse_address", "url_options",
]  # fmt: skip

DEFAULT_SERVICE: Final = "default"
DEFAULT_PATH: Final = "/etc/connmon.cfg"
ENVIRONMENT: Final = "CONNMON_CONFIG"
"""The environment variable with the path of the config file; empty means not set."""

BUILT_IN: Final = """\
[connmon_service_default]
name: default

nodes:
    node1 hostname=localhost:5800 bind=0.0.0.0
"""

_PREFIX: Final = "connmon_service_"
_LOGGING: Final = re.compile(r"(loggers|handlers|formatters|(logger|handler|formatter)_.+)\Z")
_SECTIONS: Final = (
    f"[{_PREFIX}NAME], or of Python's logging [loggers], [handlers], [formatters], [logger_NAME], "
    "[handler_NAME], [formatter_NAME]"
)
_NODE_LINE: Final = "NAME hostname=HOST[:PORT] [bind=HOST[:PORT]]"
_FILE_BYTES: Final = 1024 * 1024
_NAME_CHARACTERS: Final = 256
"""The protocol's limit."""
_MOST_LOOKS_PER_SECOND: Final = 100.0
_DAY_SECONDS: Final = 86400.0

Trace: TypeAlias = Literal["auto", "all", "off"]
CsvBy: TypeAlias = Literal["leader", "node"]
_CSV_BY: Final[Mapping[str, CsvBy]] = {"leader": "leader", "node": "node"}
_TRACES: Final[Mapping[str, Trace]] = {"auto": "auto", "all": "all", "off": "off"}


def _error(message: str) -> ConfigError:
    """Return the error as one line, whatever it quotes."""
    return ConfigError(one_line(message))


# --- Services and nodes -------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """One connmond."""

    name: str
    address: Address
    """Where applications, readers and the other nodes reach it."""
    bind: Address
    """The address that it listens on."""


@dataclass(frozen=True)
class Service:
    """One cluster: its nodes, and the settings that they share."""

    name: str
    """ "": any service that the node serves."""
    nodes: tuple[Node, ...]
    """At least one, in the file's order."""
    lease: float = 15.0
    """Seconds without a report after which a process is lost; above 0, at most a day."""
    secret: str | None = field(default=None, repr=False)
    secret_file: str | None = None
    """At most one of `secret` and `secret_file` is set."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    """Set if and only if `ssl_certfile` is."""
    ssl_cafile: str | None = None
    data_dir: str | None = None
    metrics: Address | None = None
    metrics_call_sites: int = 0
    """Call sites that have a metric of their own; at most 1000."""
    csv_dump: str | None = None
    csv_columns: tuple[str, ...] | None = None
    csv_token: str | None = field(default=None, repr=False)
    csv_by: CsvBy | None = None
    """Which node writes; None: the leader."""
    csv_size: int | None = None
    """Bytes at which the file is rotated."""
    csv_keep: int | None = None
    """The number of old files that are kept."""
    server_max: tuple[ServerMax, ...] = ()
    """Connections that database servers allow."""
    verdict_held_long: float = 30.0
    """Seconds, 1 to a day; this and the next three: see `verdicts.Thresholds`."""
    verdict_short_hold: float = 1.0
    """Seconds, above 0, at most a day."""
    verdict_slow_connect: float = 1.0
    """Seconds, above 0, at most a day."""
    verdict_timeouts: int = 1
    """1 to a million."""
    origin: str = field(default="", compare=False)
    """The file and section, for errors."""
    file: str | None = field(default=None, compare=False)
    """The config file; None: there is none."""

    def node(self, name: str | None) -> Node:
        """Return the node of that name; None: the service's only node.

        Raises ConfigError for an unknown name, and for None where the service has several nodes.
        """
        if name is None and len(self.nodes) == 1:
            return self.nodes[0]
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        if name is None:
            problem = f"service {quoted(self.name)} has several nodes, name one of them: {names}"
        else:
            problem = f"service {quoted(self.name)} has no node {quoted(name)}; its nodes are: {names}"
        raise _error(f"{self.origin} nodes: {problem}" if self.origin else problem)


@dataclass(frozen=True)
class Config:
    """One config file, or the built-in default."""

    path: str | None
    """None: the built-in default, which has no file."""
    services: tuple[Service, ...]
    """At least one, in the file's order."""
    logging: bool
    """Whether the file has sections for `logging.config.fileConfig`."""

    def service(self, name: str) -> Service:
        """Return the service of that name. Raises ConfigError for an unknown name."""
        for service in self.services:
            if service.name == name:
                return service
        names = ", ".join(service.name for service in self.services)
        raise _error(f"{_origin(self.path)}: no service {quoted(name)}; the services there are: {names}")


def _origin(path: str | None) -> str:
    return f"built-in default (there is no {DEFAULT_PATH})" if path is None else path


def direct(address: str) -> Service:
    """Return a service of one node with this address; its name is "", the node's is the address.

    Raises ConfigError.
    """
    parsed = parse_address(address)
    return Service(name="", nodes=(Node(str(parsed), parsed, Address("0.0.0.0", parsed.port)),))


# --- The file -----------------------------------------------------------------------------


def load(
    path: str | None = None, environ: Mapping[str, str] = os.environ, default_path: str = DEFAULT_PATH
) -> Config:
    """Return the configuration of `path`, else $CONNMON_CONFIG, else /etc/connmon.cfg, else the built-in.

    Only /etc/connmon.cfg may be missing. Raises ConfigError for any mistake in it.
    """
    named = path if path is not None else environ.get(ENVIRONMENT) or None
    used = default_path if named is None else named
    text = _read(used, missing_ok=named is None)
    return _parse(BUILT_IN, None) if text is None else _parse(text, used)


def _read(path: str, missing_ok: bool) -> str | None:
    """Return the file's text; None: it is missing, and may be."""
    try:
        with open(path, "rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except OSError as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            return None
        raise _error(f"{path or repr(path)}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name that no file can have
        raise _error(f"{path}: cannot be read: {error}") from None
    if len(content) > _FILE_BYTES:
        raise _error(f"{path}: larger than {_FILE_BYTES} bytes, expected a config file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _error(f"{path}: line {line}: not UTF-8, which a config file has to be") from None


def _parse(text: str, path: str | None) -> Config:
    origin = _origin(path)
    # No interpolation, because passwords contain %, and no section of defaults for all others.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise _error(f"{origin}: {_ini_problem(error)}") from None
    services: dict[str, Service] = {}
    logging = False
    for section in parser.sections():
        if _LOGGING.match(section):
            logging = True
        elif section.startswith(_PREFIX) and section != _PREFIX:
            reader = _Section(f"{origin}: [{section}]", parser[section], path)
            service = reader.service()
            if service.name in services:
                other = services[service.name].origin.rpartition(": ")[2]
                raise reader.error("name", f"{quoted(service.name)} is the name of {other} too")
            services[service.name] = service
        else:
            raise _error(f"{origin}: [{section}]: unknown section; possible are {_SECTIONS}")
    if not services:
        raise _error(f"{origin}: no service; expected a section [{_PREFIX}NAME]")
    return Config(path, tuple(services.values()), logging)


def _ini_problem(error: configparser.Error) -> str:
    """Return the mistake in the file's syntax, without quoting lines: they may have secrets."""
    if isinstance(error, configparser.DuplicateSectionError):
        return f"[{error.section}]: line {error.lineno}: this section is given twice"
    if isinstance(error, configparser.DuplicateOptionError):
        return f"[{error.section}] {error.option}: line {error.lineno}: this option is given twice"
    if isinstance(error, configparser.MissingSectionHeaderError):
        return f"line {error.lineno}: comes before any section; expected [{_PREFIX}NAME]"
    if isinstance(error, configparser.ParsingError):
        line = error.errors[0][0] if error.errors else getattr(error, "lineno", "?")  # a new class in 3.13
        return f"line {line}: expected 'OPTION: VALUE', '[SECTION]' or '# COMMENT'"
    return "not a config file; expected sections with options"


class _Section:
    """Reads one service's section; errors name the file and the section."""

    def __init__(self, origin: str, values: Mapping[str, str], file: str | None) -> None:
        self._origin = origin
        self._file = file
        self._values = values

    def error(self, option: str, problem: str) -> ConfigError:
        return _error(f"{self._origin} {option}: {problem}")

    def service(self) -> Service:
        self._check_options()
        if "name" not in self._values:
            raise self.error("name", "missing; expected the service's name")
        values = {option: self._get(option, convert) for option, convert in _OPTIONS.items()}
        settings = {option: value for option, value in values.items() if value is not None}
        if "secret" in settings and "secret_file" in settings:
            raise self.error("secret_file", "secret is given as well; expected one of the two")
        for one, other in (("ssl_certfile", "ssl_keyfile"), ("ssl_keyfile", "ssl_certfile")):
            if one in settings and other not in settings:
                raise self.error(other, f"missing; expected together with {one}")
        return Service(nodes=self._nodes(), origin=self._origin, file=self._file, **settings)

    def _check_options(self) -> None:
        for option in self._values:
            if option not in _OPTIONS and option != "nodes":
                hint = " (the lines of nodes are indented)" if " hostname" in option else ""
                possible = ", ".join(["name", "nodes", *(name for name in _OPTIONS if name != "name")])
                raise self.error(option, f"unknown option{hint}; possible are {possible}")

    def _get(self, option: str, convert: Callable[[str], Any]) -> Any:
        """Return the option's value; None: it is not given."""
        value = self._values.get(option)
        if value is None:
            return None
        if not value:
            raise self.error(option, "empty; expected a value, or no such line")
        if not value.isprintable():
            raise self.error(option, "more than one line, or characters that cannot be printed")
        try:
            return convert(value)
        except ConfigError as error:
            raise self.error(option, str(error)) from None

    def _nodes(self) -> tuple[Node, ...]:
        lines = [line.strip() for line in self._values.get("nodes", "").split("\n")]
        nodes: list[Node] = []
        for line in filter(None, lines):
            node = self._node(line)
            for other in nodes:
                if other.name == node.name:
                    raise self.error("nodes", f"{quoted(line)}: there are two nodes {quoted(node.name)}")
                if _same(other.address, node.address):
                    raise self.error(
                        "nodes", f"{quoted(line)}: node {quoted(other.name)} has hostname {other.address} too"
                    )
            nodes.append(node)
        if not nodes:
            raise self.error("nodes", f"no node; expected indented lines like {_NODE_LINE}")
        return tuple(nodes)

    def _node(self, line: str) -> Node:
        name, *words = line.split()
        if "=" in name:
            raise self.error("nodes", f"{quoted(line)} begins without a name; expected {_NODE_LINE}")
        addresses: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if key not in ("hostname", "bind") or not equals:
                raise self.error(
                    "nodes", f"{quoted(line)}: unknown word {quoted(word)}; expected {_NODE_LINE}"
                )
            if key in addresses:
                raise self.error("nodes", f"{quoted(line)}: {key} is given twice; expected {_NODE_LINE}")
            addresses[key] = value
        if "hostname" not in addresses:
            raise self.error("nodes", f"{quoted(line)} has no hostname; expected {_NODE_LINE}")
        try:
            address = parse_address(addresses["hostname"])
            bind = parse_address(addresses.get("bind", "0.0.0.0"), address.port)
            return Node(_name(name), address, bind)
        except ConfigError as error:
            raise self.error("nodes", f"{quoted(line)}: {error}; expected {_NODE_LINE}") from None


def _same(a: Address, b: Address) -> bool:
    """Return whether two addresses are equal, but for case and a final dot of host names."""
    return a.port == b.port and a.host.rstrip(".").casefold() == b.host.rstrip(".").casefold()


# --- Values -------------------------------------------------------------------------------


def _name(text: str) -> str:
    if len(text) > _NAME_CHARACTERS or not text.isprintable() or not text.strip():
        raise _error(
            f"{quoted(text)} is not a name; expected at most {_NAME_CHARACTERS} printable characters"
        )
    return text


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and number > 0:
        return number
    raise _error(f"{quoted(text)} is not a number of seconds above 0")


def _most_a_day(text: str) -> float:
    seconds = _positive(text)
    if seconds > _DAY_SECONDS:
        raise _error(f"{quoted(text)} is more than a day; expected at most {_DAY_SECONDS:.0f} seconds")
    return seconds


def _held_long(text: str) -> float:
    seconds = _most_a_day(text)
    if seconds < 1.0:
        raise _error(f"{quoted(text)} is too short; expected at least 1 second")
    return seconds


def _timeouts(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= 1_000_000:
        raise _error(f"{quoted(text)} is not a number of timeouts from 1 to 1000000")
    return int(text)


def _call_sites(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > 1000:
        raise _error(f"{quoted(text)} is not a number of call sites from 0 to 1000")
    return int(text)


def _columns(text: str) -> tuple[str, ...]:
    columns = tuple(re.split(r"\s*,\s*|\s+", text))
    if "" in columns or len(set(columns)) < len(columns):
        raise _error(
            f"{quoted(text)} is not a list of columns; expected names, each once, separated by commas"
        )
    return columns


def _csv_by(text: str) -> CsvBy:
    if text not in _CSV_BY:
        raise _error(f"{quoted(text)} is not one of {', '.join(_CSV_BY)}")
    return _CSV_BY[text]


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12}) ?([kMG]?)B?", text)
    size = 0 if match is None else int(match[1]) * {"": 1, "k": 2**10, "M": 2**20, "G": 2**30}[match[2]]
    if size < 1024:
        raise _error(f"{quoted(text)} is not a size; expected bytes, at least 1k, as in 100M")
    return size


def _keep(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise _error(f"{quoted(text)} is not a number of files from 0 to 999")
    return int(text)


#: The options of a service's section, without `nodes`: name -> conversion of its text.
_OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "name": _name,
    "lease": _most_a_day,
    "secret": str,
    "secret_file": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cafile": str,
    "data_dir": str,
    "metrics": lambda text: parse_address(text, None),
    "metrics_call_sites": _call_sites,
    "csv_dump": str,
    "csv_columns": _columns,
    "csv_token": str,
    "csv_by": _csv_by,
    "csv_size": _size,
    "csv_keep": _keep,
    "server_max": lambda text: tuple(parse_server_max(word) for word in re.split(r"[,\s]+", text)),
    "verdict_held_long": _held_long,
    "verdict_short_hold": _most_a_day,
    "verdict_slow_connect": _most_a_day,
    "verdict_timeouts": _timeouts,
}


# --- Options of an engine's URL -----------------------------------------------------------


@dataclass(frozen=True)
class UrlOptions:
    """The connmon_ options of one engine's URL."""

    service: str = DEFAULT_SERVICE
    addr: Address | None = None
    """Takes precedence over `service` and `config`."""
    config: str | None = None
    program: str | None = None
    trace: Trace = "auto"
    held: float = 30.0
    """Seconds after which a checkout is held long; above 0."""
    secret_file: str | None = None
    project: tuple[str, ...] = ()
    """The application's packages; empty: guessed by the place of installation."""
    driver: str | None = None
    """Of `<dialect>+connmon://`; None: the dialect's default."""
    profile: float = 10.0
    """Looks per second at who holds connections, on average: from 0 (none) to 100."""

    def resolve(self, environ: Mapping[str, str] = os.environ, default_path: str = DEFAULT_PATH) -> Service:
        """Return the service to report to. Raises ConfigError."""
        if self.addr is not None:
            service = direct(str(self.addr))
        else:
            try:
                service = load(self.config, environ, default_path).service(self.service)
            except ConfigError as error:
                option = "connmon_service" if self.config is None else "connmon_config"
                value = self.service if self.config is None else self.config
                raise _error(f"{option}={value}: {error}") from None
        if self.secret_file is not None:
            service = replace(service, secret=None, secret_file=self.secret_file)
        return service


def url_options(query: Mapping[str, str | Iterable[str]]) -> UrlOptions:
    """Return the connmon_ options of a URL; others are ignored.

    Raises ConfigError with option and value.
    """
    options: dict[str, Any] = {}
    for key, value in query.items():
        if not key.startswith("connmon_"):
            continue
        convert = _URL_OPTIONS.get(key)
        values = [value] if isinstance(value, str) else list(value)
        if convert is None:
            possible = ", ".join(_URL_OPTIONS)
            raise _error(f"{key}={','.join(values)}: unknown option; possible are {possible}")
        if len(values) != 1:
            raise _error(f"{key}={','.join(values)}: given {len(values)} times; expected once")
        if not values[0]:
            raise _error(f"{key}=: empty; expected a value, or no such option")
        try:
            options[key.removeprefix("connmon_")] = convert(values[0])
        except ConfigError as error:
            raise _error(f"{key}={values[0]}: {error}") from None
    return UrlOptions(**options)


def _driver(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", text) or text.endswith("connmon"):
        raise _error(f"{quoted(text)} is not the name of a driver; expected one like psycopg or pymysql")
    return text


def _project(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if len(name) > _NAME_CHARACTERS or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            raise _error(f"{quoted(name)} is not the name of a package; expected PACKAGE[,PACKAGE...]")
    return names


def _profile(text: str) -> float:
    try:
        looks_per_second = float(text)
    except ValueError:
        looks_per_second = math.nan
    if 0.0 <= looks_per_second <= _MOST_LOOKS_PER_SECOND:
        return looks_per_second
    raise _error(f"{quoted(text)} is not a number of looks per second from 0 (off) to 100")


def _trace(text: str) -> Trace:
    if text not in _TRACES:
        raise _error(f"{quoted(text)} is not one of {', '.join(_TRACES)}")
    return _TRACES[text]


_URL_OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "connmon_service": _name,
    "connmon_addr": parse_address,
    "connmon_config": str,
    "connmon_program": _name,
    "connmon_trace": _trace,
    "connmon_held": _positive,
    "connmon_project": _project,
    "connmon_secret_file": str,
    "connmon_driver": _driver,
    "connmon_profile": _profile,
}

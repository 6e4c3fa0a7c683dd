"""connmon/config.py and connmon/address.py: the values that are read, and the error of each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connmon.address import Address, parse_address
from connmon.cluster.state.judging import thresholds_of
from connmon.config import BUILT_IN, Config, Node, Service, UrlOptions, direct, load, url_options
from connmon.errors import ConfigError, UsageError
from connmon.protocol.verdicts import Thresholds

CLUSTER = """\
# one file for all of them
[connmon_service_default]
name: default

nodes:
    node1 hostname=192.168.1.205:5800
    # node2 was moved
    node2 hostname=192.168.1.206

    node3 hostname=[fd00::7]:5801 bind=0.0.0.0:5800
"""


@pytest.fixture(name="default_path")
def a_default_path(tmp_path: Path) -> str:
    """Return a path in place of /etc/connmon.cfg; the file is missing until a test writes it."""
    path = tmp_path / "etc" / "connmon.cfg"
    path.parent.mkdir()
    return str(path)


def write(directory: Path, text: str | bytes) -> str:
    path = directory / "test.cfg"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(directory: Path, text: str | bytes) -> Config:
    return load(write(directory, text), {})


def service(directory: Path, options: str) -> Service:
    """Return a service with one node and these options."""
    return read(directory, f"[connmon_service_a]\nname: a\n{options}\nnodes:\n  n hostname=h\n").services[0]


def problem(directory: Path, text: str | bytes) -> str:
    """Return the error line of the text, without the name of the file."""
    path = write(directory, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# --- Addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", Address("localhost", 5800)),
        ("192.168.1.205:1", Address("192.168.1.205", 1)),
        ("ctl1.example.org:65535", Address("ctl1.example.org", 65535)),
        ("under_score.local.", Address("under_score.local.", 5800)),
        ("[::1]", Address("::1", 5800)),
        ("[FD00:0::7]:80", Address("fd00::7", 80)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
    ],
)
def test_address_is_parsed(text: str, expected: Address) -> None:
    """Host, host:port and bracketed IPv6 are addresses; the default port is 5800."""
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has no host; expected HOST:PORT"),
        (":5800", "':5800' has no host; expected HOST:PORT"),
        ("h:", "'h:': port '' is not a number from 1 to 65535"),
        ("h:http", "'h:http': port 'http' is not a number from 1 to 65535"),
        ("h:0", "'h:0': port '0' is not a number from 1 to 65535"),
        ("h:65536", "'h:65536': port '65536' is not a number from 1 to 65535"),
        ("h:-1", "'h:-1': port '-1' is not a number from 1 to 65535"),
        ("h:+80", "'h:+80': port '+80' is not a number from 1 to 65535"),
        ("h:٣", "'h:٣': port '٣' is not a number from 1 to 65535"),
        ("h:1\n", r"'h:1\n': port '1\n' is not a number from 1 to 65535"),
        ("::1", "'::1' is not an address; expected HOST:PORT, IPv6 in brackets: [::1]:5800"),
        ("[::1", "'[::1' is not an address; expected HOST:PORT, IPv6 in brackets: [::1]:5800"),
        ("[::g]:1", "'[::g]:1': '::g' is not an IPv6 address"),
        ("[localhost]:1", "'[localhost]:1': 'localhost' is not an IPv6 address"),
        ("192.168.1.256", "'192.168.1.256': '192.168.1.256' is not an IPv4 address"),
        ("192.168.1", "'192.168.1': '192.168.1' is not an IPv4 address"),
        ("a b:80", "'a b:80': 'a b' is not a host name or IP address"),
        ("http://h:80", "'http://h:80' is not an address; expected HOST:PORT, IPv6 in brackets: [::1]:5800"),
        ("a..b", "'a..b': 'a..b' is not a host name or IP address"),
    ],
)
def test_bad_address_is_refused(text: str, message: str) -> None:
    """A text that is no address is refused with the reason."""
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert str(caught.value) == message


def test_address_without_default_port() -> None:
    """Without a default port the text must have one."""
    assert parse_address("h:9", None) == Address("h", 9)
    with pytest.raises(ConfigError, match="'h' has no port; expected HOST:PORT"):
        parse_address("h", None)


@given(st.text(alphabet=st.sampled_from("a1.:[]-% _٣\n/0f"), max_size=30) | st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Any text gives an address that reads back the same, or a ConfigError of one line."""
    try:
        address = parse_address(text)
    except ConfigError as error:
        assert str(error).isprintable()
    else:
        assert 1 <= address.port <= 65535
        assert parse_address(str(address)) == address


def test_direct() -> None:
    """A bare address is a service without a name, of one node named as the address."""
    assert direct("[::1]:7") == Service("", (Node("[::1]:7", Address("::1", 7), Address("0.0.0.0", 7)),))
    assert direct("h").node(None).name == "h:5800"


# --- Which file ---------------------------------------------------------------------------


def test_built_in_default(default_path: str) -> None:
    """Without a file there is service default with one node, as documented."""
    default = load(environ={}, default_path=default_path)
    assert (default.path, default.logging) == (None, False)
    assert default.service("default") == Service(
        "default", (Node("node1", Address("localhost", 5800), Address("0.0.0.0", 5800)),)
    )
    assert BUILT_IN == (
        "[connmon_service_default]\nname: default\n\nnodes:\n    node1 hostname=localhost:5800 bind=0.0.0.0\n"
    )


def test_order_of_files(tmp_path: Path, default_path: str) -> None:
    """The argument takes precedence over $CONNMON_CONFIG, that over /etc/connmon.cfg, that over the
    default."""
    paths = []
    for name in ("given", "environment", "etc"):
        path = tmp_path / name if name != "etc" else Path(default_path)
        path.write_text(BUILT_IN.replace("name: default", f"name: {name}"))
        paths.append(str(path))
    given, environment, etc = paths
    assert load(given, {"CONNMON_CONFIG": environment}).services[0].name == "given"
    assert load(None, {"CONNMON_CONFIG": environment}).services[0].name == "environment"
    assert load(None, {"CONNMON_CONFIG": ""}, default_path).services[0].name == "etc"
    assert load(None, {}, default_path).path == etc
    Path(default_path).unlink()
    assert load(None, {}, default_path).path is None


def test_environment_is_read_when_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own environment is the default, as it is at the time of the call."""
    monkeypatch.setenv("CONNMON_CONFIG", write(tmp_path, CLUSTER))
    assert len(load().service("default").nodes) == 3


def test_missing_named_file_is_error(tmp_path: Path) -> None:
    """A file that an argument or the environment names must exist."""
    path = str(tmp_path / "nowhere.cfg")
    for named, environ in ((path, None), (None, path)):
        with pytest.raises(ConfigError) as caught:
            load(named, {"CONNMON_CONFIG": environ} if environ else {})
        assert str(caught.value) == f"{path}: cannot be read: No such file or directory"
    for odd, message in (("", "''"), ("a\0b", r"a\x00b")):
        with pytest.raises(ConfigError) as caught:
            load(odd)
        assert str(caught.value).startswith(f"{message}: cannot be read: ")


def test_unreadable_system_file_is_error(default_path: str) -> None:
    """/etc/connmon.cfg may be missing; where it exists it must be readable."""
    Path(default_path).mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(environ={}, default_path=default_path)


def test_explicit_system_file_is_error_when_missing(default_path: str) -> None:
    """/etc/connmon.cfg must exist where an argument names it."""
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load(default_path, {}, default_path)


def test_endless_file_is_error() -> None:
    """A file that is too large to be a config file is not read to its end."""
    with pytest.raises(ConfigError, match="/dev/zero: larger than 1048576 bytes"):
        load("/dev/zero", {})


# --- What is read -------------------------------------------------------------------------


def test_cluster(tmp_path: Path) -> None:
    """Nodes are lines, with comments and blank lines between; bind defaults to 0.0.0.0 and the hostname's
    port."""
    anywhere = Address("0.0.0.0", 5800)
    assert read(tmp_path, CLUSTER).service("default").nodes == (
        Node("node1", Address("192.168.1.205", 5800), anywhere),
        Node("node2", Address("192.168.1.206", 5800), anywhere),
        Node("node3", Address("fd00::7", 5801), anywhere),
    )


def test_bind_takes_port_of_hostname(tmp_path: Path) -> None:
    """A bind without a port has the hostname's."""
    (node,) = (
        read(tmp_path, "[connmon_service_a]\nname=a\nnodes:\n n hostname=h:7 bind=[::]\n").services[0].nodes
    )
    assert node.bind == Address("::", 7)


def test_all_options(tmp_path: Path) -> None:
    """Every option of a service is read; nothing in a value is interpolated."""
    given = service(
        tmp_path,
        "secret: 50%s %(name)s =:\nssl_certfile: c.pem\nssl_keyfile: k.pem\nssl_cafile: ca.pem\n"
        "data_dir: /d\nmetrics: [::]:9100\ncsv_dump: dump.csv\ncsv_columns: host, program connections\n"
        "csv_token: t\nlease: 2.5",
    )
    assert given.secret == "50%s %(name)s =:"
    assert (given.ssl_certfile, given.ssl_keyfile, given.ssl_cafile) == ("c.pem", "k.pem", "ca.pem")
    assert (given.data_dir, given.metrics, given.csv_dump) == ("/d", Address("::", 9100), "dump.csv")
    assert (given.csv_columns, given.csv_token, given.lease) == (("host", "program", "connections"), "t", 2.5)
    assert service(tmp_path, "secret_file: /s").secret_file == "/s"


def test_defaults(tmp_path: Path) -> None:
    """An option that is not given is None; the lease is 15 s."""
    given = service(tmp_path, "")
    assert given == Service("a", given.nodes)
    assert given.lease == 15.0


def test_logging_sections_are_left_alone(tmp_path: Path) -> None:
    """Sections of Python's logging are allowed, with any content, and noted."""
    logging = "".join(
        f"[{name}]\nkeys=root\nformat=%(asctime)s\n"
        for name in ("loggers", "handlers", "formatters", "logger_root", "handler_console", "formatter_f")
    )
    assert read(tmp_path, CLUSTER + logging).logging
    assert not read(tmp_path, CLUSTER).logging


def test_forms_that_editors_make(tmp_path: Path) -> None:
    """A byte order mark, CRLF and indentation of the whole text make no difference."""
    expected = read(tmp_path, CLUSTER).services
    assert read(tmp_path, b"\xef\xbb\xbf" + CLUSTER.encode()).services == expected
    assert read(tmp_path, CLUSTER.replace("\n", "\r\n")).services == expected
    assert read(tmp_path, "".join(f"    {line}\n" for line in CLUSTER.split("\n"))).services == expected


def test_two_services(tmp_path: Path) -> None:
    """A file may have several services; each is found by its `name`, not by its section's."""
    both = read(
        tmp_path, CLUSTER + CLUSTER.replace("service_default", "service_x").replace(": default", ": b")
    )
    assert [service_.name for service_ in both.services] == ["default", "b"]
    assert both.service("b").origin.endswith("test.cfg: [connmon_service_x]")
    assert both.service("b").nodes == both.service("default").nodes
    assert hash(both.service("b")) != hash(both.service("default"))


def test_secret_is_not_shown(tmp_path: Path) -> None:
    """A secret is in no repr(), and not in an error about its own line."""
    path = write(tmp_path, CLUSTER + "secret: hunter2\n")
    assert load(path, {}).services[0].secret == "hunter2"
    assert "hunter2" not in repr(load(path, {}))
    for wrong in (
        "secret: hunter2\nsecret_file: f\n",
        "secret: hunter2\n  hunter2\n",
        "sceret: hunter2\n",
        "secret hunter2\n",
        "secret: hunter2\nsecret: hunter2\n",
        "secret: hunter2\n[connmon_service_default]\n",
    ):
        assert "hunter2" not in problem(tmp_path, CLUSTER + wrong)
    assert "hunter2" not in problem(tmp_path, "secret: hunter2\n" + CLUSTER)


# --- Mistakes -----------------------------------------------------------------------------

HEAD = "[connmon_service_a]\nname: a\n"
NODE = "nodes:\n  n hostname=h\n"
LINE = "expected NAME hostname=HOST[:PORT] [bind=HOST[:PORT]]"
LINES = LINE.replace("expected", "expected indented lines like")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no service; expected a section [connmon_service_NAME]"),
        ("[loggers]\n", "no service; expected a section [connmon_service_NAME]"),
        ("name: a\n", "line 1: comes before any section; expected [connmon_service_NAME]"),
        ("\n\0\x01\n", "line 2: comes before any section; expected [connmon_service_NAME]"),
        (HEAD + "what\n" + NODE, "line 3: expected 'OPTION: VALUE', '[SECTION]' or '# COMMENT'"),
        (b"# \xe4\n" + HEAD.encode(), "line 1: not UTF-8, which a config file has to be"),
        (HEAD + HEAD, "[connmon_service_a]: line 3: this section is given twice"),
        (HEAD + "name: b\n", "[connmon_service_a] name: line 3: this option is given twice"),
        (
            "[connmon]\n",
            "[connmon]: unknown section; possible are [connmon_service_NAME], or of Python's logging"
            " [loggers], [handlers], [formatters], [logger_NAME], [handler_NAME], [formatter_NAME]",
        ),
        (
            HEAD + "port: 1\n" + NODE,
            "[connmon_service_a] port: unknown option; possible are name, nodes, lease, secret, secret_file,"
            " ssl_certfile, ssl_keyfile, ssl_cafile, data_dir, metrics, metrics_call_sites, csv_dump,"
            " csv_columns, csv_token, csv_by, csv_size, csv_keep, server_max, verdict_held_long,"
            " verdict_short_hold, verdict_slow_connect, verdict_timeouts",
        ),
        ("[connmon_service_a]\n" + NODE, "[connmon_service_a] name: missing; expected the service's name"),
        (
            "[connmon_service_a]\nname:\n" + NODE,
            "[connmon_service_a] name: empty; expected a value, or no such line",
        ),
        (
            HEAD + NODE + HEAD.replace("_a", "_b") + NODE,
            "[connmon_service_b] name: 'a' is the name of [connmon_service_a] too",
        ),
        (HEAD, f"[connmon_service_a] nodes: no node; {LINES}"),
        (
            HEAD + "nodes:\n  # none\n",
            f"[connmon_service_a] nodes: no node; {LINES}",
        ),
        (HEAD + "nodes:\n  n\n", f"[connmon_service_a] nodes: 'n' has no hostname; {LINE}"),
        (
            HEAD + "nodes:\n  hostname=h\n",
            f"[connmon_service_a] nodes: 'hostname=h' begins without a name; {LINE}",
        ),
        (
            HEAD + "nodes:\n  n hostname=h port=1\n",
            f"[connmon_service_a] nodes: 'n hostname=h port=1': unknown word 'port=1'; {LINE}",
        ),
        (
            HEAD + "nodes:\n  n hostname=h # here\n",
            f"[connmon_service_a] nodes: 'n hostname=h # here': unknown word '#'; {LINE}",
        ),
        (
            HEAD + "nodes:\n  n hostname=h hostname=i\n",
            f"[connmon_service_a] nodes: 'n hostname=h hostname=i': hostname is given twice; {LINE}",
        ),
        (
            HEAD + "nodes:\n  n hostname=h:x\n",
            "[connmon_service_a] nodes: 'n hostname=h:x': 'h:x': port 'x' is not a number from 1 to 65535;"
            f" {LINE}",
        ),
        (
            HEAD + "nodes:\n  n hostname=h bind=h:70000\n",
            "[connmon_service_a] nodes: 'n hostname=h bind=h:70000': 'h:70000': port '70000' is not a number"
            f" from 1 to 65535; {LINE}",
        ),
        (
            HEAD + "nodes:\n  n hostname=h\n  n hostname=i\n",
            "[connmon_service_a] nodes: 'n hostname=i': there are two nodes 'n'",
        ),
        (
            HEAD + "nodes:\n  n hostname=h\n  m hostname=H.:5800\n",
            "[connmon_service_a] nodes: 'm hostname=H.:5800': node 'n' has hostname h:5800 too",
        ),
        (
            HEAD + "secret: s\nsecret_file: f\n" + NODE,
            "[connmon_service_a] secret_file: secret is given as well; expected one of the two",
        ),
        (
            HEAD + "ssl_certfile: f\n" + NODE,
            "[connmon_service_a] ssl_keyfile: missing; expected together with ssl_certfile",
        ),
        (
            HEAD + "ssl_keyfile: f\n" + NODE,
            "[connmon_service_a] ssl_certfile: missing; expected together with ssl_keyfile",
        ),
        (
            HEAD + "metrics: h\n" + NODE,
            "[connmon_service_a] metrics: 'h' has no port; expected HOST:PORT",
        ),
        (
            HEAD + "data_dir: a\n  b\n" + NODE,
            "[connmon_service_a] data_dir: more than one line, or characters that cannot be printed",
        ),
        (
            HEAD + "csv_columns: a,,b\n" + NODE,
            "[connmon_service_a] csv_columns: 'a,,b' is not a list of columns; expected names, each once,"
            " separated by commas",
        ),
        (
            HEAD + "lease: 1e9\n" + NODE,
            "[connmon_service_a] lease: '1e9' is more than a day; expected at most 86400 seconds",
        ),
    ],
)  # fmt: skip
def test_mistake_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    """Every mistake is one line: file, section, option, value, and what is expected."""
    assert problem(tmp_path, text) == message


def test_nodes_that_are_not_indented(tmp_path: Path) -> None:
    """Node lines without indentation are options to the parser; the error says that they must be indented."""
    message = problem(tmp_path, HEAD + "nodes:\nn hostname=h\n")
    assert "n hostname: unknown option (the lines of nodes are indented)" in message


@pytest.mark.parametrize("lease", ["abc", "0", "-1", "nan", "inf", "15s"])
def test_lease_is_positive_number(tmp_path: Path, lease: str) -> None:
    """A lease is a number of seconds above 0."""
    message = problem(tmp_path, f"{HEAD}lease: {lease}\n{NODE}")
    assert message == f"[connmon_service_a] lease: '{lease}' is not a number of seconds above 0"


def test_mistake_in_another_service(tmp_path: Path) -> None:
    """The file is checked whole, whichever service is meant."""
    assert problem(tmp_path, CLUSTER + HEAD + "what: 1\n").startswith("[connmon_service_a] what: unknown")


def test_unknown_service_and_node(tmp_path: Path) -> None:
    """The error for an unknown service or node lists the known ones, also where no node is named."""
    path = write(tmp_path, CLUSTER)
    there = load(path, {})
    with pytest.raises(UsageError) as caught:
        there.service("x")
    assert str(caught.value) == f"{path}: no service 'x'; the services there are: default"
    with pytest.raises(UsageError) as caught:
        there.service("default").node("x")
    where = f"{path}: [connmon_service_default] nodes: service 'default'"
    assert str(caught.value) == f"{where} has no node 'x'; its nodes are: node1, node2, node3"
    with pytest.raises(UsageError) as caught:
        there.service("default").node(None)
    assert str(caught.value) == (f"{where} has several nodes, name one of them: node1, node2, node3")
    assert there.service("default").node("node2").address == Address("192.168.1.206", 5800)


def test_unknown_service_of_built_in_default(default_path: str) -> None:
    """An error about the built-in default says why it is used."""
    with pytest.raises(ConfigError) as caught:
        load(environ={}, default_path=default_path).service("x")
    assert str(caught.value) == (
        "built-in default (there is no /etc/connmon.cfg): no service 'x'; the services there are: default"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                "[connmon_service_a]", "[DEFAULT]", "[]", "[loggers]", "name: a", "nodes:", "  n hostname=h",
                "  m", " bind=h", "lease: 1", "secret: %(", "name", "=", ":", "\tx", "# c", "; c", "",
                "\x85", "\u2028",
            ]
        )
    ).map(lambda lines: "\n".join(lines).encode())
)  # fmt: skip
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Any bytes give a configuration or a ConfigError of one line."""
    path = write(tmp_path, content)
    try:
        assert load(path, {}).services
    except ConfigError as error:
        assert str(error).isprintable()
        assert str(error).startswith(path)


# --- Options of an engine's URL -----------------------------------------------------------


def test_url_options() -> None:
    """All connmon_ options of the query are read; others are ignored."""
    assert url_options({"charset": "utf8", "plugin": ("connmon", "x")}) == UrlOptions()
    assert url_options(
        {
            "connmon_service": "s",
            "connmon_addr": "192.168.1.205",
            "connmon_config": "/c",
            "connmon_program": "nova-api",
            "connmon_trace": "all",
            "connmon_held": "2.5",
            "connmon_secret_file": "/s",
        }
    ) == UrlOptions("s", Address("192.168.1.205", 5800), "/c", "nova-api", "all", 2.5, "/s")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("connmon_adr", "h", "connmon_adr=h: unknown option; possible are connmon_service, connmon_addr,"),
        ("connmon_", "h", "connmon_=h: unknown option; possible are connmon_service, connmon_addr,"),
        ("connmon_addr", "h:x", "connmon_addr=h:x: 'h:x': port 'x' is not a number from 1 to 65535"),
        ("connmon_addr", ("a", "b"), "connmon_addr=a,b: given 2 times; expected once"),
        ("connmon_service", "", "connmon_service=: empty; expected a value, or no such option"),
        ("connmon_trace", "on", "connmon_trace=on: 'on' is not one of auto, all, off"),
        ("connmon_held", "0", "connmon_held=0: '0' is not a number of seconds above 0"),
        ("connmon_held", "long", "connmon_held=long: 'long' is not a number of seconds above 0"),
        ("connmon_program", "a\nb", r"connmon_program=a\nb: 'a\nb' is not a name; expected at most 256"),
    ],
)
def test_bad_url_option(option: str, value: str | tuple[str, ...], message: str) -> None:
    """A wrong option is one line that names it and its value."""
    with pytest.raises(ConfigError) as caught:
        url_options({option: value})
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_url_options_resolve(tmp_path: Path, default_path: str) -> None:
    """The options give the service: by address, else from the file; their secret file is used."""
    path = write(tmp_path, CLUSTER + "secret: s\n")
    assert url_options({}).resolve({}, default_path).name == "default"
    assert url_options({"connmon_addr": "h", "connmon_service": "x"}).resolve({}) == direct("h")
    assert url_options({"connmon_config": path}).resolve({}).secret == "s"
    assert url_options({}).resolve({"CONNMON_CONFIG": path}).secret == "s"
    resolved = url_options({"connmon_config": path, "connmon_secret_file": "/f"}).resolve({})
    assert (resolved.secret, resolved.secret_file, len(resolved.nodes)) == (None, "/f", 3)


def test_url_options_resolve_mistakes(tmp_path: Path) -> None:
    """An error names the option, its value, and the file."""
    path = write(tmp_path, CLUSTER)
    with pytest.raises(ConfigError) as caught:
        url_options({"connmon_service": "x"}).resolve({"CONNMON_CONFIG": path})
    assert str(caught.value) == f"connmon_service=x: {path}: no service 'x'; the services there are: default"
    with pytest.raises(ConfigError) as caught:
        url_options({"connmon_config": "/no/such"}).resolve({})
    assert str(caught.value) == "connmon_config=/no/such: /no/such: cannot be read: No such file or directory"


# --- The house ----------------------------------------------------------------------------


def test_import_is_light() -> None:
    """Importing it imports no socket, asyncio, logging or msgspec."""
    program = (
        "import sys; import connmon.config; heavy = "
        "{'socket', 'asyncio', 'logging', 'threading', 'msgspec', 'sqlalchemy'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=Path(__file__).parents[1],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.strip() == ""


# --- Servers' maxima ----------------------------------------------------------------------


def test_server_max(tmp_path: Path) -> None:
    """The limits of database servers are read, with a port or for all servers of a host."""
    maxima = service(tmp_path, "server_max: db1=500, 10.0.0.9:3306=151 [::1]:5432=100\n").server_max
    assert dict(maxima) == {("db1", None): 500, ("10.0.0.9", 3306): 151, ("::1", 5432): 100}


@pytest.mark.parametrize("value", ["db1", "db1=", "=5", "db1=many", "db1:x=5", "db1=-1", "192.168.1=5"])
def test_a_wrong_server_max(value: str, tmp_path: Path) -> None:
    """A wrong maximum is one line that names the option and what is expected."""
    with pytest.raises(ConfigError, match=r"server_max: "):
        service(tmp_path, f"server_max: {value}\n")


# --- Thresholds of verdicts ---------------------------------------------------------------


def test_thresholds_of_verdicts(tmp_path: Path) -> None:
    """Thresholds are set per service; the defaults are those of the rules."""
    plain = service(tmp_path, "")
    assert thresholds_of(plain) == Thresholds()
    given = service(
        tmp_path,
        "verdict_held_long: 300\nverdict_short_hold: 0.2\nverdict_slow_connect: 2.5\nverdict_timeouts: 10\n",
    )
    assert thresholds_of(given) == Thresholds(300.0, 0.2, 2.5, 10)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("verdict_held_long: 0.5", "verdict_held_long: '0.5' is too short; expected at least 1 second"),
        ("verdict_held_long: long", "verdict_held_long: 'long' is not a number of seconds above 0"),
        (
            "verdict_short_hold: 86401",
            "verdict_short_hold: '86401' is more than a day; expected at most 86400 seconds",
        ),
        ("verdict_slow_connect: -1", "verdict_slow_connect: '-1' is not a number of seconds above 0"),
        (
            "metrics_call_sites: 1001",
            "metrics_call_sites: '1001' is not a number of call sites from 0 to 1000",
        ),
        ("metrics_call_sites: -1", "metrics_call_sites: '-1' is not a number of call sites from 0 to 1000"),
        ("verdict_timeouts: 0", "verdict_timeouts: '0' is not a number of timeouts from 1 to 1000000"),
        ("verdict_timeouts: 2.5", "verdict_timeouts: '2.5' is not a number of timeouts from 1 to 1000000"),
    ],
)
def test_a_wrong_threshold(line: str, problem: str, tmp_path: Path) -> None:
    """A wrong threshold is one line that names the option and what is expected."""
    with pytest.raises(ConfigError) as error:
        service(tmp_path, f"{line}\n")
    assert str(error.value).endswith(problem)

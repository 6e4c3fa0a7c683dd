"""The documentation has every option, command and metric there is. (That it builds, tox sees to.)"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest
from msgspec import Struct

from connmon import config
from connmon.cluster import daemon
from connmon.cluster.export import prometheus
from connmon.cluster.raft import messages
from connmon.commands.arguments import argument_parser
from connmon.protocol import batch, frames

DOCS = Path(__file__).parents[1] / "docs"


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the long options, the commands and the choices of a parser and of its commands."""
    found: set[str] = set()
    for action in parser._actions:
        found.update(option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                found |= {name, *options(command)}
        elif action.choices:
            found.update(map(str, action.choices))
    return found


def test_every_command_and_option() -> None:
    """Every command, option and choice is in the page of its program."""
    for name, parser in (("connmon", argument_parser()), ("connmond", daemon.argument_parser())):
        page = (DOCS / f"{name}.rst").read_text()
        for option in options(parser):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page), option


def test_every_option_of_the_config_file() -> None:
    """Every option of a service's section is in the page about the config file."""
    page = (DOCS / "configuration.rst").read_text()
    for option in (*config._OPTIONS, "nodes"):
        assert re.search(rf"^``{option}``|^``\w+``, ``{option}``", page, re.M), option


def test_every_metric() -> None:
    """Every metric is in the page about metrics, those of the node with their whole name."""
    page = (DOCS / "metrics.rst").read_text()
    for family in (*prometheus._FAMILIES, *prometheus._TIMED, prometheus.VERDICT):
        assert f"\n``{family.name}`` (" in page, family.name
    assert f"\n``connmon_{prometheus.VERDICTS.name}`` (" in page
    source = Path(prometheus.__file__).with_name("node_metrics.py").read_text()
    names = re.findall(r'^            \(\s*"(\w+)",\s*"', source, re.M)
    assert len(names) > 12
    for name in (*names, "info", "role", "links", "command_seconds"):
        assert re.search(rf"``connmon_node_{name}(_total)?``", page), name


#: What raises or prints an error line in each of these modules.
ERRORS = (
    "_error",
    "error",
    "ConfigError",
    "UsageError",
    "ConnmonError",
    "damaged",
    "_DamagedError",
    "_complain",
    "UnreachableError",
    "_Mistake",
)
MODULES = (
    "config", "address", "database_address", "protocol/credentials", "protocol/tls", "cluster/raft/storage",
    "cluster/raft/member", "cluster/export/csv_dump", "cluster/daemon", "cluster/open_files",
    "cluster/log_sections",
    "commands/arguments", "commands/cli", "commands/repeat", "commands/output", "commands/record",
    "commands/demo/run", "commands/demo/process", "commands/demo/chaos", "reader/client", "reader/recording",
    "database/sessions", "database/whois", "console/screen",
)  # fmt: skip


def words(node: ast.expr) -> list[str]:
    """Return the longest fixed part of each text that an argument of an error can be."""
    if isinstance(node, ast.IfExp):
        return words(node.body) + words(node.orelse)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "one_line":
        return words(node.args[0])
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    fixed = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
    return [max((" ".join(text.split()) for text in fixed), key=len)] if fixed else []


def test_every_error_line() -> None:
    """Whatever connmond and connmon say when they cannot go on is in the page about error lines."""
    page = " ".join((DOCS / "errors.rst").read_text().split())
    package = Path(config.__file__).parent
    found, missing = 0, list[str]()
    for module in MODULES:
        for node in ast.walk(ast.parse((package / f"{module}.py").read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name not in (*ERRORS, "ScreenError", "_unreachable"):
                continue
            for text in (text for argument in node.args for text in words(argument)):
                if len(text) > 11:
                    missing = (
                        missing
                        if text.strip(" :;,[]") in page
                        else [*missing, f"{module}:{node.lineno}: {text}"]
                    )
                    found += 1
    assert not missing
    assert found > 80


def urls(page: Path) -> list[str]:
    """Return the database URLs of a page that have connmon in them, in its order."""
    found = re.findall(r"\b(?:mysql|mariadb|postgresql|sqlite)[+\w]*://[^\s\"`]+", page.read_text())
    return [url for url in found if "connmon" in url]


def test_the_form_of_url_that_everybody_can_parse_comes_first() -> None:
    """Each page begins with ?plugin=connmon; the form that is no URI has its warning where all forms are."""
    names = ("applications", "openstack", "tutorial")
    pages = [DOCS.parent / "README.rst", *(DOCS / f"{name}.rst" for name in names)]
    for page in pages:
        first = urls(page)[0]
        assert "plugin=connmon" in first and "connmon" not in first.partition("://")[0], page.name
    for page in pages[:2]:
        assert any(url.startswith("mysql+connmon://") and "connmon_driver=" in url for url in urls(page))
        assert "RFC 3986" in page.read_text()


def test_which_forms_are_uris() -> None:
    """urllib.parse finds host and password in all forms but the one with _connmon, as the warning says."""
    for url in urls(DOCS / "applications.rst"):
        parts = urlsplit(url)
        if "_connmon://" in url:
            assert (parts.scheme, parts.hostname, parts.password) == ("", None, None)
        elif "neutron:secret" in url:
            assert (parts.hostname, parts.password) == ("db", "secret")


def message_types() -> list[type[Struct]]:
    """Return the types of all messages, those of nodes to one another too."""
    return [*get_args(frames.Message), *get_args(messages.Framed)]


@pytest.mark.parametrize("message", message_types(), ids=lambda message: message.__struct_config__.tag)
def test_every_message_of_the_protocol(message: type[Struct]) -> None:
    """Each message has its section in the page about the protocol, with its fields, in their order."""
    page = (DOCS / "protocol.rst").read_text()
    tag = message.__struct_config__.tag
    found = re.search(rf"^{tag}\n~+\n(.*?)(?=^\S[^\n]*\n[~-]+$|\Z)", page, re.M | re.S)
    assert found, f"no section {tag}"
    documented = [
        name
        for row in re.findall(r"^((?:``\w+``(?:, )?)+) ", found[1], re.M)
        for name in re.findall(r"\w+", row)
    ]
    assert documented == list(message.__struct_encode_fields__)
    limits = page[page.index("The largest payload") : page.index("A connection\n")]
    assert message in get_args(messages.Framed) or tag == "refuse" or f"``{tag}``" in limits


def test_what_a_batch_is() -> None:
    """The parts of a command are in the page, in their order."""
    page = " ".join((DOCS / "protocol.rst").read_text().split())
    for part in (batch.Batch, batch.Tick, batch.Departure, messages.Entry):
        assert f"``[{', '.join(part.__struct_encode_fields__)}]``" in page, part


def test_the_limits_of_the_protocol() -> None:
    """The sizes in the page are those of the code."""
    page = (DOCS / "protocol.rst").read_text()
    for size in (
        frames.HELLO_LIMIT, frames.REPORT_LIMIT, frames.QUERY_LIMIT, frames.ANSWER_LIMIT, frames.PEER_LIMIT,
        messages.COMMAND_BYTES, messages.PART_BYTES, messages.MESSAGE_BYTES,
    ):  # fmt: skip
        assert f"{size:,}" in page, size

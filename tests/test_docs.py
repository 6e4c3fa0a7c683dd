"""The pages have every option, command, metric, error line and message. (tox checks that they build.)"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args
from urllib.parse import urlsplit

import pytest
from msgspec import Struct

from connmon import config
from connmon.cluster import daemon
from connmon.cluster.export import prometheus
from connmon.cluster.raft import messages
from connmon.commands.arguments import argument_parser
from connmon.protocol import batch, document, frames

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the long options, the commands and the choices of a parser and of its commands."""
    names: set[str] = set()
    for action in parser._actions:
        names.update(option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                names |= {name, *options(command)}
        elif action.choices:
            names.update(map(str, action.choices))
    return names


def test_every_command_and_option() -> None:
    """The page of each program has all its commands, options and choices."""
    for name, parser in (("connmon", argument_parser()), ("connmond", daemon.argument_parser())):
        page = (DOCS / f"{name}.rst").read_text()
        for option in options(parser):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page), option


def test_every_option_of_the_config_file() -> None:
    """The page about the config file has every option of a service's section."""
    page = (DOCS / "configuration.rst").read_text()
    for option in (*config._OPTIONS, "nodes"):
        assert re.search(rf"^``{option}``|^``\w+``, ``{option}``", page, re.M), option


def test_every_metric() -> None:
    """The page about metrics has every metric, those of the node with their full name."""
    page = (DOCS / "metrics.rst").read_text()
    for family in (*prometheus._FAMILIES, *prometheus._TIMED, prometheus.VERDICT):
        assert f"\n``{family.name}`` (" in page, family.name
    assert f"\n``connmon_{prometheus.VERDICTS.name}`` (" in page
    source = Path(prometheus.__file__).with_name("node_metrics.py").read_text()
    names = re.findall(r'^            \(\s*"(\w+)",\s*"', source, re.M)
    assert len(names) > 12
    for name in (*names, "info", "role", "links", "command_seconds"):
        assert re.search(rf"``connmon_node_{name}(_total)?``", page), name


#: The functions and classes that raise or print an error line in MODULES.
ERRORS = (
    "_error",
    "error",
    "ConfigError",
    "UsageError",
    "ConnmonError",
    "damaged",
    "complain",
    "_DamagedError",
    "UnreachableError",
    "_Mistake",
)
MODULES = (
    "config", "address", "database_address", "protocol/credentials", "protocol/tls", "cluster/raft/storage",
    "cluster/raft/member", "cluster/export/csv_dump", "cluster/daemon", "cluster/startup",
    "cluster/check_config", "cluster/open_files", "cluster/log_sections",
    "commands/arguments", "commands/cli", "commands/print_snapshots", "commands/output", "commands/record",
    "commands/profile", "commands/demo/run", "commands/demo/process", "commands/demo/chaos",
    "reader/client", "reader/profile", "reader/recording", "database/sessions", "database/whois",
    "console/screen",
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
    """The page about error lines has every line that connmond and connmon print when they cannot continue."""
    page = " ".join((DOCS / "errors.rst").read_text().split())
    package = Path(config.__file__).parent
    checked, missing = 0, list[str]()
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
                    checked += 1
    assert not missing
    assert checked > 80


def urls(page: Path) -> list[str]:
    """Return the database URLs of a page that contain connmon, in the order of the page."""
    candidates = re.findall(r"\b(?:mysql|mariadb|postgresql|sqlite)[+\w]*://[^\s\"`]+", page.read_text())
    return [url for url in candidates if "connmon" in url]


def test_the_form_of_url_that_everybody_can_parse_comes_first() -> None:
    """Each page begins with ?plugin=connmon; pages with all forms warn of the form that is not a URI."""
    names = ("applications", "openstack", "tutorial")
    pages = [DOCS.parent / "README.rst", *(DOCS / f"{name}.rst" for name in names)]
    for page in pages:
        first = urls(page)[0]
        assert "plugin=connmon" in first and "connmon" not in first.partition("://")[0], page.name
    for page in pages[:2]:
        assert any(url.startswith("mysql+connmon://") and "connmon_driver=" in url for url in urls(page))
        assert "RFC 3986" in page.read_text()


def test_which_forms_are_uris() -> None:
    """As the warning says, urllib.parse finds host and password in all forms but the one with _connmon."""
    for url in urls(DOCS / "applications.rst"):
        parts = urlsplit(url)
        if "_connmon://" in url:
            assert (parts.scheme, parts.hostname, parts.password) == ("", None, None)
        elif "neutron:secret" in url:
            assert (parts.hostname, parts.password) == ("db", "secret")


def test_the_json_contract() -> None:
    """The page about JSON is what its generator writes, and has every key of every grouping."""
    specification = importlib.util.spec_from_file_location("json_contract", DOCS / "json_contract.py")
    assert specification is not None and specification.loader is not None
    generator = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generator)
    page = (DOCS / "json.rst").read_text()
    assert page == generator.page(), "run: python docs/json_contract.py"
    for struct in generator.described().values():
        assert all(text for name, (_, text) in struct.fields.items() if name not in generator.PARTS)
    for keys in document.KEYS.values():
        assert [key for key in keys if f"\n``{key}`` (" not in page] == []


def message_types() -> list[type[Struct]]:
    """Return the types of all messages, also of those between nodes."""
    return [*get_args(frames.Message), *get_args(messages.Framed)]


@pytest.mark.parametrize("message", message_types(), ids=lambda message: message.__struct_config__.tag)
def test_every_message_of_the_protocol(message: type[Struct]) -> None:
    """The page about the protocol has a section for each message, with its fields in their order."""
    page = (DOCS / "protocol.rst").read_text()
    tag = message.__struct_config__.tag
    section = re.search(rf"^{tag}\n~+\n(.*?)(?=^\S[^\n]*\n[~-]+$|\Z)", page, re.M | re.S)
    assert section, f"no section {tag}"
    documented = [
        name
        for row in re.findall(r"^((?:``\w+``(?:, )?)+) ", section[1], re.M)
        for name in re.findall(r"\w+", row)
    ]
    assert documented == list(message.__struct_encode_fields__)
    limits = page[page.index("The largest payload") : page.index("A connection\n")]
    assert message in get_args(messages.Framed) or tag == "refuse" or f"``{tag}``" in limits


def test_what_a_batch_is() -> None:
    """The page has the parts of a command, in their order."""
    page = " ".join((DOCS / "protocol.rst").read_text().split())
    for part in (batch.Batch, batch.Tick, batch.Departure, messages.AppendEntry):
        assert f"``[{', '.join(part.__struct_encode_fields__)}]``" in page, part


def test_the_limits_of_the_protocol() -> None:
    """The page has the size limits of the code."""
    page = (DOCS / "protocol.rst").read_text()
    for size in (
        frames.HELLO_BYTES, frames.REPORT_BYTES, frames.QUERY_BYTES, frames.ANSWER_BYTES, frames.PEER_BYTES,
        messages.COMMAND_BYTES, messages.PART_BYTES, messages.MESSAGE_BYTES,
    ):  # fmt: skip
        assert f"{size:,}" in page, size


#: Where the pages name files from: the root, the package and the tests.
BASES = (ROOT, ROOT / "connmon", ROOT / "tests")
#: Directories at these places whose files the pages name.
_TOP = "|".join(
    sorted(
        {path.name for base in BASES for path in base.iterdir() if path.is_dir() and path.name[0] not in "._"}
    )
)
#: A file or directory of the repository. Programs of examples, as shop/main.py, lie in other directories.
PATHS = re.compile(rf"(?<![\w./-])(?:{_TOP})/(?:[\w-]+/)*(?:[\w-]+\.[a-z]+|(?=[`\s]))")
#: An object of the package by its dotted name.
_PACKAGES = "|".join(sorted(path.name for path in (ROOT / "connmon").iterdir() if path.is_dir()))
NAMES = re.compile(rf"(?<![\w.])connmon\.(?:{_PACKAGES})\.[\w.]+\w")


@pytest.mark.parametrize(
    "page", [*sorted(DOCS.glob("*.rst")), *sorted(ROOT.glob("*.rst"))], ids=lambda p: p.name
)
def test_every_path_of_a_page_exists(page: Path) -> None:
    """Each file or directory that a page names exists, below the root, connmon/ or tests/."""
    paths = PATHS.findall(page.read_text())
    assert [path for path in paths if not any((base / path).exists() for base in BASES)] == []


def test_every_object_of_a_page_exists() -> None:
    """Each object of the package that a page names, as the parsers for shell completion, can be imported."""
    names = [name for page in DOCS.glob("*.rst") for name in NAMES.findall(page.read_text())]
    assert "connmon.commands.arguments.argument_parser" in names
    for name in names:
        assert resolve_name(name)


def test_paths_are_found_in_the_pages() -> None:
    """The pattern finds paths in prose and commands, and no programs of examples."""
    text = "``plugin/pool.py``, connmon/config.py; python benchmarks/names.py; ``contrib/``; ``shop/main.py``"
    assert PATHS.findall(text) == [
        "plugin/pool.py", "connmon/config.py", "benchmarks/names.py", "contrib/",
    ]  # fmt: skip
    assert sum(len(PATHS.findall(page.read_text())) for page in DOCS.glob("*.rst")) > 100

"""The documentation has every option, command and metric there is. (That it builds, tox sees to.)"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

from connmon import config
from connmon.arguments import argument_parser
from connmon.cluster import daemon, exposition

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
    for family in (*exposition._FAMILIES, *exposition._TIMED):
        assert f"\n``{family.name}`` (" in page, family.name
    source = Path(exposition.__file__).with_name("metrics.py").read_text()
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
    "_complain",
    "UnreachableError",
)
MODULES = (
    "config", "credentials", "tls", "address", "cluster/datadir", "cluster/dump", "cluster/daemon",
    "arguments", "cli", "client", "batch", "output", "record", "recording", "database/sessions",
    "database/whois", "dbaddress", "demo", "chaos", "console/screen",
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

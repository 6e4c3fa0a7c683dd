"""Write docs/json.rst from the structs of `connmon.protocol.document`: `python docs/json_contract.py`.

tests/test_docs.py fails when the page is not what this prints.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

from connmon.protocol import document
from connmon.protocol.values import GROUPINGS

PAGE = Path(__file__).with_name("json.rst")
PARTS = {"process": "ProcessFields", "pool": "PoolFields", "figures": "FigureFields"}
LINKS = {
    "ProcessFields": "`Fields of a process`_",
    "PoolFields": "`Fields of a pool`_",
    "FigureFields": "Figures_",
    "JsonTotals": "Totals_",
}
TYPES = {
    "str": "text", "int": "integer", "float": "number", "bool": "true or false", "tuple[str, ...]": "texts",
    "dict[VerdictWord, int]": "object", "dict[str, float]": "object", "JsonTotals": "object",
}  # fmt: skip
INTRODUCTION = """\
The JSON contract
=================

``connmon snapshot --format json`` prints one object: who answered, the totals, and ``rows``, one for each
program, or for what ``--by`` names. ``--format csv`` has the same keys as columns, in the order of this page;
null is an empty cell, a stack is joined by ``" < "``, and an object is ``requests=0.6;database=0.2``, the
largest first (``;`` and ``=`` within a name are ``?``).

Seconds have three digits, quantiles (``_p50_`` and its like) and ``mean_hold_seconds`` nine. Shares and the
other means have four figures below 1, so that only 0 is shown as 0. Null is an unknown value, never 0.
:doc:`numbers` says what the numbers mean. This page is written from ``connmon/protocol/document.py`` by
``docs/json_contract.py``.
"""


class Described(NamedTuple):
    """A struct: what it is, and its fields by name, each with its type and what it means."""

    text: str
    fields: dict[str, tuple[str, str]]


def described() -> dict[str, Described]:
    """Return the structs of the contract by name, as their source has them."""
    structs: dict[str, Described] = {}
    for node in ast.parse(Path(document.__file__).read_text()).body:
        if not isinstance(node, ast.ClassDef) or ast.unparse(node.bases[0]) != "Struct":
            continue
        fields: dict[str, tuple[str, str]] = {}
        name = ""
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                fields[name] = ast.unparse(statement.annotation), ""
            elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                fields[name] = fields[name][0], " ".join(str(statement.value.value).split())
        structs[node.name] = Described(ast.get_docstring(node) or "", fields)
    return structs


def table(struct: Described, without: frozenset[str] = frozenset()) -> list[str]:
    """Return a definition list of the fields, in their order."""
    lines: list[str] = []
    for name, (annotation, text) in struct.fields.items():
        if name in without:
            continue
        if annotation in LINKS and name in PARTS:
            lines.append(f"\n*All of* {LINKS[annotation]}\n")
            continue
        kind, *null = annotation.split(" | ")
        or_null = " or null" if null else ""
        lines += [f"``{name}`` ({TYPES.get(kind, 'text')}{or_null})", f"    {text}"]
    return [*lines, ""]


def titled(title: str, line: str, text: str) -> list[str]:
    return [title, line * len(title), "", text, ""]


def page() -> str:
    """Return the whole page."""
    structs = described()
    lines = [INTRODUCTION, *titled("The document", "-", "Its keys, and ``rows``.")]
    lines += table(structs["JsonHead"])
    lines += titled("Totals", "-", structs["JsonTotals"].text)
    lines += table(structs["JsonTotals"])
    for by in GROUPINGS:
        name = document.ROW_TYPES[by].__name__
        lines += titled(f"Rows by {by}", "-", structs[name].text)
        missing = document.WITHOUT.get(by)
        lines += table(structs[name], document.READER_ONLY)
        if missing:
            names = [f"``{figure}``" for figure in document.FIGURES if figure in missing]
            lines += [f"Of the figures it has no {' and no '.join(names)}.", ""]
    for title, name in (
        ("Fields of a process", "ProcessFields"),
        ("Fields of a pool", "PoolFields"),
        ("Figures", "FigureFields"),
    ):
        lines += titled(title, "-", structs[name].text) + table(structs[name])
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())

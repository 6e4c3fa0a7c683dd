"""Rules of the house that no other tool checks: short functions, no patched constants, docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import connmon

PACKAGE = Path(connmon.__file__).parent
TESTS = Path(__file__).parent
FUNCTION_LINES = 60


def modules(top: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Yield each module below a directory."""
    for path in sorted(top.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, its decorators and its docstring not counted."""
    first = function.body[0]
    docstring = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        docstring = (first.end_lineno or first.lineno) - first.lineno + 1
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def test_functions_are_short() -> None:
    """No function is longer than 60 lines."""
    long = [
        f"{path.relative_to(PACKAGE)}: {node.name} has {body_lines(node)} lines"
        for path, tree in modules(PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > FUNCTION_LINES
    ]
    assert not long


def test_each_module_says_what_it_is_for() -> None:
    """Each module of the package and each test module begins with a docstring."""
    assert not [
        str(path)
        for top in (PACKAGE, TESTS)
        for path, tree in modules(top)
        if tree.body and ast.get_docstring(tree) is None
    ]


@pytest.mark.parametrize(
    "pattern",
    [r"setattr\(\s*[\w.]+,\s*\"[A-Z][A-Z_0-9]+\"", r"setattr\(\s*\"connmon[\w.]+\.[A-Z][A-Z_0-9]+\""],
)
def test_no_test_patches_a_constant(pattern: str) -> None:
    """Tests pass settings in; a patched constant would not be seen by what has imported it."""
    assert not [
        f"{path.relative_to(TESTS)}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]}"
        for path in sorted(TESTS.rglob("*.py"))
        for text in [path.read_text(encoding="utf-8")]
        for found in re.finditer(pattern, text)
    ]

"""Rules of the house that no other tool checks: short functions, no patched constants, names that resolve."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections import defaultdict
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


def test_classes_have_names_of_their_own() -> None:
    """No two classes of the package have one name, private ones and protocols included."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules(PACKAGE):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not {name: where for name, where in places.items() if len(where) > 1}


# --- Names in docstrings and comments ---------------------------------------------------------------

#: A dotted name in backticks, with what follows it there; and a class or constant of a module without them.
QUOTED_NAME = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)+)[^`]*`")
BARE_NAME = re.compile(r"(?<![`\w./])((?:[a-z_]\w*\.)+[A-Z]\w*)")
#: Names that begin like a module of the package and belong to others: SQLAlchemy's, and an example's.
OTHERS_NAMES = frozenset({"engine.dispose", "engine.url.set", "record.info", "shop.main"})


class PackageNames:
    """The modules and classes of the package, and the names that each defines."""

    def __init__(self) -> None:
        self.modules: dict[tuple[str, ...], set[str]] = {}
        """By dotted name: what the module defines."""
        self.classes: dict[str, ast.ClassDef] = {}
        for path, tree in modules(PACKAGE):
            parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
            self.modules[parts[:-1] if parts[-1] == "__init__" else parts] = set(_bound(tree.body))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.classes[node.name] = node

    def begins(self, word: str) -> bool:
        """Return whether a name that begins with `word` is one of the package's."""
        return word in self.classes or any(word in parts for parts in self.modules)

    def resolves(self, name: str) -> bool:
        """Return whether a dotted name exists; its first parts are a class, or the end of a module's name."""
        first, *rest = parts = tuple(name.split("."))
        if first in self.classes and self._has(first, rest):
            return True
        if parts[-1] == "py":
            parts = parts[:-1]
        return any(
            self._module_has(module, parts[length:])
            for module in self.modules
            for length in range(1, len(parts) + 1)
            if module[-length:] == parts[:length]
        )

    def _module_has(self, module: tuple[str, ...], names: tuple[str, ...]) -> bool:
        if not names:
            return True
        name, *rest = names
        return name in self.modules[module] and (not rest or (name in self.classes and self._has(name, rest)))

    def _has(self, name: str, rest: list[str]) -> bool:
        """Return whether a class, or one that it derives from, has the one name in `rest`."""
        node = self.classes[name]
        bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        return rest[0] in _members(node) or any(
            self._has(base.id, rest)
            for base in bases
            if isinstance(base, ast.Name) and base.id in self.classes
        )


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements define: no imported ones, and no others' ones."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from _bound(node.body)
            yield from _bound(node.orelse)


def _members(node: ast.ClassDef) -> set[str]:
    """Return the attributes of a class, and those that its methods give to `self`."""
    given = {
        name.attr
        for name in ast.walk(node)
        if isinstance(name, ast.Attribute) and isinstance(name.ctx, ast.Store)
        if isinstance(name.value, ast.Name) and name.value.id == "self"
    }
    return given | set(_bound(node.body))


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the docstrings and comments of a module, each with its line."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                yield node.lineno, docstring
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def unresolved(text: str, names: PackageNames) -> list[tuple[int, str]]:
    """Return the names in a module's docstrings and comments that the package does not have, with lines."""
    return [
        (line, name)
        for line, prose in _prose(text)
        for pattern in (QUOTED_NAME, BARE_NAME)
        for name in pattern.findall(prose)
        if names.begins(name.split(".")[0]) and name not in OTHERS_NAMES and not names.resolves(name)
    ]


@pytest.fixture(scope="module")
def names() -> PackageNames:
    return PackageNames()


def test_names_in_prose_resolve(names: PackageNames) -> None:
    """A dotted name in a docstring or comment that begins with a module or class of the package exists."""
    assert not [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path, _ in modules(PACKAGE)
        for line, name in unresolved(path.read_text(encoding="utf-8"), names)
    ]


@pytest.mark.parametrize(
    ("prose", "found"),
    [
        ("See `machine.State`.", ["machine.State"]),
        ("See `machine.StateMachine`, `raft.messages` and `connmon.reader.client`.", []),
        ("A journal (log.Journal).", ["log.Journal"]),
        ("A journal (storage.Journal; `pool_account.py`).", []),
        ("`Journal.behind`, `Journal.nothing`, `Journal.fall_behind(error)`", ["Journal.nothing"]),
        ("`connmon.cluster.raft.nothing`", ["connmon.cluster.raft.nothing"]),
        ("`nothing_of_ours.State`, asyncio.Queue, `os.path.join`", []),
    ],
)
def test_a_name_that_does_not_resolve_is_found(names: PackageNames, prose: str, found: list[str]) -> None:
    """In docstrings and in comments, with backticks or without; others' names are not looked at."""
    for text in (f'"""{prose}"""\n', f"# {prose}\n"):
        assert [name for _, name in unresolved(text, names)] == found


# --- Long-lived objects -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "cluster.export.csv_dump.ChangedRows", "cluster.log_limit.LimitLog",
        "cluster.log_limit.RateLimitedLog",
        "cluster.state.contents.Contents", "cluster.state.digest.Digests", "cluster.state.figures.RowFigures",
        "cluster.state.groups.Groups", "cluster.state.judging.Judge", "commands.record.Recorder",
        "commands.record.Rotating", "plugin.call_site_accounts.Sampling",
        "plugin.call_site_reports.CallSiteReports",
        "plugin.describe.Location", "plugin.holder_checks.HolderChecks", "plugin.process_account.FoldLock",
    ],
)  # fmt: skip
def test_what_lives_long_can_be_printed(name: str) -> None:
    """Its class has a `__repr__` of its own."""
    module, _, class_name = name.rpartition(".")
    assert "__repr__" in vars(getattr(importlib.import_module(f"connmon.{module}"), class_name))

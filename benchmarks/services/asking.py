"""Determine the call site at checkouts. It runs within a program of `benchmarks/services.py`, not by itself.

It does so three times for each query: from the stack alone (as under mod_wsgi and uWSGI), as in a process
that the service's own script started, and with connmon_project.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

from connmon.plugin import call_site, holder

_shown: list[str] | None = None
_kinds: list[call_site.FrameKinds] = []


@event.listens_for(Pool, "checkout")
def _checkout(*_: Any) -> None:
    if _shown is None or _shown:
        return
    for kinds in _kinds:
        place = call_site.find(sys._getframe(1), kinds, holder._parents)
        _shown.append("nothing" if place is None else holder.frame_text(*place))


def of(package: str) -> None:
    """Say which package the service is."""
    names = frozenset({package})
    _kinds[:] = [call_site.FrameKinds(), call_site.FrameKinds(own=names), call_site.FrameKinds(project=names)]


def right_line(file: str, function: str, fragment: str) -> str:
    """Return "file:line function" for the last line of the function that contains the fragment."""
    path = next(path for root in sys.path if (path := Path(root) / file).is_file())
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == function:
            for number in range(node.end_lineno or node.lineno, node.lineno, -1):
                if fragment in text.splitlines()[number - 1]:
                    return f"{file}:{number} {function}"
    raise LookupError(f"{path}: no {fragment!r} in {function}()")


def begin() -> None:
    global _shown
    _shown = []


def end(how: str, file: str, function: str, fragment: str) -> None:
    """Print the call site of the first checkout since `begin`, and the right line."""
    global _shown
    shown, _shown = _shown or ["no checkout"], None
    wrong = sorted(set(shown) - {right := right_line(file, function, fragment)})
    print(
        "ROW " + json.dumps({"query": how, "shown": wrong[0] if wrong else right, "right": right}), flush=True
    )


def ask(how: str, query: Callable[[], Any], file: str, function: str, fragment: str) -> None:
    """Run the query; the right line is the line of this function that contains the fragment."""
    begin()
    try:
        query()
    except Exception as error:
        print(f"{how}: {error!r}", file=sys.stderr)
    end(how, file, function, fragment)

"""Sphinx's configuration: `tox -e docs` builds pages and manual pages, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

project = "connmon"
author = "the connmon authors"
version = release = re.findall(
    r'"(.*)"', Path(__file__).parents[1].joinpath("connmon/__init__.py").read_text()
)[-1]
extensions: list[str] = []
exclude_patterns = ["_build"]
nitpicky = True
html_theme = "alabaster"
man_pages = [
    ("connmon", "connmon", 'a "top" for database connections', author, 1),
    ("connmond", "connmond", "a node of connmon", author, 8),
]

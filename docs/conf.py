"""Sphinx's configuration: `tox -e docs` builds pages and manual pages, with warnings as errors."""

from __future__ import annotations

from connmon import __version__

project = "connmon"
author = "the connmon authors"
version = release = __version__
extensions = ["sphinx.ext.autodoc"]
# The build reads no pages of other projects, so these names have no target.
nitpick_ignore = [
    ("py:class", "Engine"),
    ("py:class", "AsyncEngine"),
    ("py:exc", "sqlalchemy.exc.ArgumentError"),
]
exclude_patterns = ["_build"]
nitpicky = True
html_theme = "alabaster"
man_pages = [
    ("connmon", "connmon", 'a "top" for database connections', author, 1),
    ("connmond", "connmond", "a node of connmon", author, 8),
]

"""The version, in a module that every part may import."""

from __future__ import annotations

__version__ = "1.0.0.dev0"

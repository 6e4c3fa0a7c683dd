"""The package index shows working links and a version above the predecessor's."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.version import Version

from connmon import __version__

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/connmon/connmon"
#: The addresses of the repository's files.
FILES = (
    f"{REPOSITORY}/blob/main/",
    f"{REPOSITORY}/tree/main/",
    "https://raw.githubusercontent.com/connmon/connmon/main/",
)


def files_linked(text: str) -> set[str]:
    """Return the paths in the repository that a text links to."""
    return {path for start in FILES for path in re.findall(re.escape(start) + r"([\w./-]+)", text)}


def test_the_links_of_the_readme_are_absolute() -> None:
    """The package index shows the README without the other files, so every link in it is absolute."""
    readme = (ROOT / "README.rst").read_text()
    targets = [
        *re.findall(r"<([^<>\s]+[^_<>\s])>`_", readme),  # those with an underscore are defined below
        *re.findall(r"^\.\. _[^:]+: (\S+)", readme, re.M),
        *re.findall(r"^\.\. image:: (\S+)", readme, re.M),
    ]
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []


def test_what_links_lead_to_exists() -> None:
    """Each file of the repository that the README or the package's metadata link to exists."""
    for name, least in (("README.rst", 20), ("pyproject.toml", 2)):
        paths = files_linked((ROOT / name).read_text())
        assert len(paths) >= least
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_one_address_of_the_repository() -> None:
    """Every page and the package's metadata have the same address of the repository."""
    for name in ("pyproject.toml", "README.rst", "SECURITY.rst"):
        addresses = set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", (ROOT / name).read_text()))
        assert addresses == {REPOSITORY}, name


def test_the_version_is_above_the_predecessor_s() -> None:
    """The package index has 0.3.6 of the predecessor under this name: an upgrade has to take this one."""
    assert Version(__version__) > Version("0.3.6")


def test_the_hooks_of_git_download_nothing() -> None:
    """Each hook of pre-commit runs a tool of the environment that is active."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (.*)", hooks) == ["local"]
    assert hooks.count("language: system") == hooks.count("- id: ") > 3

"""Build sdist and wheel, install each in a fresh environment, run the demo and check the types there.

    python tests/support/package.py

tox runs it, not pytest: it installs from the package index and takes a minute. Exit code 1, with the reason,
if something is missing or fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Files that have to be in the sdist, and prefixes of everything at the top of the wheel.
IN_SDIST = (
    "connmon/commands/cli.py", "connmon/cluster/daemon.py", "connmon/py.typed", "contrib/alerts.yml",
    "contrib/connmond.service", "contrib/grafana.json", "docs/operations.rst", "tests/conftest.py", "tox.ini",
    "LICENSE", "README.rst", "CONTRIBUTING.rst", "SECURITY.rst",
)  # fmt: skip
IN_WHEEL = ("connmon", "connmon-")
#: The file that says to type checkers that the package has types (PEP 561).
TYPED = "connmon/py.typed"

#: A correct application, a wrong one, and the complaint of a strict mypy about the latter.
RIGHT = """\
from sqlalchemy import create_engine
from connmon import attach
attach(create_engine("sqlite://"), program="a", held=10)
"""
WRONG = """\
from connmon import attach
attach("sqlite://")
"""
COMPLAINT = 'Argument 1 to "attach" has incompatible type "str"; expected "Engine | AsyncEngine"'


class Failed(Exception):
    pass


def run(*command: str, directory: Path = ROOT) -> str:
    """Return the output of a command, run in an environment without anything of this checkout."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "CONNMON", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(directory: Path) -> tuple[Path, Path]:
    run(sys.executable, "-m", "build", "--outdir", str(directory))
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if missing := [name for name in IN_SDIST if name not in names]:
        raise Failed(f"{sdist.name} lacks {', '.join(missing)}")
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            top = name.partition("/")[0]
            if top != IN_WHEEL[0] and not top.startswith(IN_WHEEL[1]):
                raise Failed(f"{wheel.name} has {name}, which is not part of the package")
        if TYPED not in packed.namelist():
            raise Failed(f"{wheel.name} lacks {TYPED}")
    return sdist, wheel


def check(package: Path, directory: Path) -> None:
    """Install the package and run the installed commands, from a directory outside the checkout."""
    directory.mkdir()
    run(sys.executable, "-m", "venv", "venv", directory=directory)
    run("venv/bin/pip", "install", "--quiet", str(package), directory=directory)
    for name in ("connmon", "connmond"):
        version = run(f"venv/bin/{name}", "--version", directory=directory)
        if not version.startswith(f"{name} "):
            raise Failed(f"{name} --version says {version!r}")
    (directory / "connmon.cfg").write_text(
        "[connmon_service_default]\nname: default\nmetrics: 127.0.0.1:1\nnodes:\n    a hostname=localhost\n"
    )
    run("venv/bin/connmond", "--check-config", "--config", "connmon.cfg", directory=directory)
    output = run("venv/bin/connmon", "demo", directory=directory)
    if "shop-api" not in output:
        raise Failed(f"connmon demo says {output!r}")
    check_types(directory)
    print(f"{package.name}: installs, the demo runs, and type checkers see its types")


def check_types(directory: Path) -> None:
    """Have mypy check both applications against the installed package."""
    mypy = (
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        "venv/bin/python",
        "--no-error-summary",
    )
    (directory / "right.py").write_text(RIGHT)
    run(*mypy, "right.py", directory=directory)
    (directory / "wrong.py").write_text(WRONG)
    try:
        run(*mypy, "wrong.py", directory=directory)
    except Failed as error:
        if COMPLAINT not in str(error):
            raise
    else:
        raise Failed("mypy finds no fault with a wrong call of attach()")


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for number, package in enumerate(build(Path(scratch, "dist"))):
                check(package, Path(scratch, str(number)))
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

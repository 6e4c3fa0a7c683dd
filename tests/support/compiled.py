"""Build and install packages without wheels, if possible: python -m tests.support.compiled EXTRA...

EXTRA is an extra of this project; the packages go into the environment that runs this. For a package that
cannot be built it prints one line that says what to install, and its tests are skipped. With
CONNMON_TEST_SERVERS=required it prints pip's output too, and the exit code is 1.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

from tests.support.requirements import INSTALL, required


def of_extra(extra: str) -> list[str]:
    """Return the requirements of one of this project's extras, without markers."""
    return [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("connmon") or ()
        if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", requirement)
    ]


def installed(requirement: str) -> bool:
    try:
        importlib.metadata.distribution(requirement)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(extras: list[str]) -> int:
    remedies = dict(INSTALL.values())
    failures = 0
    for extra in extras:
        requirements = of_extra(extra)
        if not requirements:
            print(f"tests.support.compiled: connmon has no extra {extra!r}", file=sys.stderr)
            return 2
        for requirement in requirements:
            if installed(requirement):
                continue
            install = [sys.executable, "-m", "pip", "install", "--quiet", requirement]
            done = subprocess.run(
                install, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            if not done.returncode:
                continue
            line = f"{requirement} cannot be built here: {remedies[requirement]}"
            if required():
                sys.stdout.buffer.write(done.stdout)
                print(f"{line} (CONNMON_TEST_SERVERS=required)", flush=True)
                failures += 1
            else:
                print(f"{line}; without it, its tests are skipped", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Check the call sites of real services: python benchmarks/services.py [service ...]

Each service is installed from PyPI into its own environment (kept in --directory), with this connmon, and
runs its own functions on its own database (SQLite). The call site of each query is compared with the right
line: the line of the service's function that a person would open. It prints a table; exit code 1 if a line is
wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVICES = {
    "placement": ["openstack-placement"],
    "keystone": ["keystone"],
    "glance": ["glance"],
    "cinder": ["cinder"],
    "neutron": ["neutron"],
    "flask": ["Flask-SQLAlchemy"],
    "fastapi": ["fastapi", "httpx", "aiosqlite", "sqlalchemy[asyncio]"],
    "celery": ["celery", "sqlalchemy"],
    "airflow": ["apache-airflow"],
}


#: Our code must not be in files: it would be an application that calls the service as its library.
RUN = """
import sys, types
del sys.argv[0]
here = sys.argv[0].rpartition("/")[0]
asking = sys.modules["asking"] = types.ModuleType("asking")
exec(compile(open(here + "/asking.py").read(), "<asking>", "exec"), vars(asking))
exec(compile(open(sys.argv[0]).read(), "<queries>", "exec"))
"""


def environment(directory: Path, service: str) -> Path:
    """Return the Python of the service's environment, and create the environment if it is missing."""
    python = directory / service / "bin" / "python"
    if not python.exists():
        venv.create(directory / service, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    ready = directory / service / "installed"
    if not ready.exists():
        subprocess.run([*pip, *SERVICES[service]], check=True)
        ready.touch()
    subprocess.run(
        [*pip, "--editable", str(HERE.parent)], check=True
    )  # the checkout may be another one by now
    return python


def rows(python: Path, service: str, verbose: bool) -> list[dict[str, str]]:
    """Run the service's queries; return the call site and the right line of each."""
    program = HERE / "services" / f"{service}_queries.py"
    with tempfile.TemporaryDirectory() as directory:
        result = subprocess.run(
            [str(python), "-W", "ignore", "-c", RUN, str(program), f"sqlite:///{directory}/x.db"],
            cwd=directory,
            env={**os.environ, "AIRFLOW_HOME": directory, "HOME": directory},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )  # fmt: skip
    if verbose or result.returncode:
        print(result.stderr[-4000:], file=sys.stderr)
    lines = [line.removeprefix("ROW ") for line in result.stdout.splitlines() if line.startswith("ROW ")]
    if result.returncode:
        lines.append(json.dumps({"query": "(it failed)", "shown": "-", "right": "?"}))
    return [json.loads(line) for line in lines]


def rst(table: list[tuple[str, ...]]) -> str:
    """Return the table as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for number, (service, query, line, right, ok) in enumerate(table):
        lines += [f"   * - {service}", f"     - {query}"]
        lines.append(f"     - ``{line}``" if number else f"     - {line}")
        lines.append(
            "     - the same" if ok == "yes" else f"     - ``{right}``" if number else f"     - {right}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("services", nargs="*", metavar="service", help=", ".join(SERVICES))
    parser.add_argument(
        "--directory", type=Path, default=Path("services"), help="where the environments are kept"
    )
    parser.add_argument("--rst", action="store_true", help="a table for the documentation")
    parser.add_argument("--verbose", action="store_true", help="also print the services' standard error")
    options = parser.parse_args()
    wrong = 0
    table = [("service", "query", "line shown", "right line", "ok")]
    for service in options.services or SERVICES:
        for row in rows(environment(options.directory.absolute(), service), service, options.verbose):
            ok = row["shown"] == row["right"]
            wrong += not ok
            table.append((service, row["query"], row["shown"], row["right"], "yes" if ok else "NO"))
    if options.rst:
        print(rst(table))
        return int(wrong > 0)
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    for line in table:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"{len(table) - 1} queries, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

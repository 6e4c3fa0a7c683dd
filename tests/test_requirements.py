"""Tests run on a machine that lacks something: each need is one line, and a failure in CI."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import compiled, requirements
from tests.support.site import ROOT

PAGES = (
    *Path(ROOT).glob("*.rst"),
    *Path(ROOT, "docs").glob("*.rst"),
    *Path(ROOT, "benchmarks").glob("*.rst"),
)
LINE = r"needs MariaDB: apt-get install mariadb-server"


def test_what_is_missing_skips_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what the test needs and what to install."""
    monkeypatch.delenv("CONNMON_TEST_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=rf"^{LINE}$"):
        requirements.not_installed("mariadbd")
    with pytest.raises(pytest.skip.Exception, match=r"^needs no_such_thing: pip install no-such-thing$"):
        requirements.needs("sys", "no_such_thing")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match=r"^needs tmux: apt-get install tmux$"):
        requirements.program("tmux")


def test_what_is_missing_fails_where_nothing_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CONNMON_TEST_SERVERS=required the same line is a failure."""
    monkeypatch.setenv("CONNMON_TEST_SERVERS", "required")
    with pytest.raises(pytest.fail.Exception, match=rf"^{LINE} \(CONNMON_TEST_SERVERS=required\)$"):
        requirements.not_installed("mariadbd")


def test_every_remedy_is_one_line() -> None:
    """Each requirement has one printable line that says what to run."""
    for need, remedy in requirements.INSTALL.values():
        assert re.search(r"(apt-get|pip) install \S", remedy)
        assert f"{need}{remedy}".isprintable()


def test_nothing_else_skips() -> None:
    """No other module of the tests skips one: only there is it a failure in CI."""
    skipping = {"skip", "skipif", "importorskip", "xfail"}
    places = [
        f"{path.name}:{node.lineno}"
        for path in Path(ROOT, "tests").rglob("*.py")
        if path.name not in ("requirements.py", Path(__file__).name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in skipping
        and ast.unparse(node.value) in ("pytest", "pytest.mark")
    ]
    assert not places, f"{places}: use tests.support.requirements"


@pytest.mark.parametrize(("setting", "code"), [("", 0), ("required", 1)])
def test_what_cannot_be_built(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], setting: str, code: int
) -> None:
    """A package that cannot be built is one line that says what to install. If nothing may be missing, pip's
    output comes before the line, and the exit code is 1."""
    monkeypatch.setenv("CONNMON_TEST_SERVERS", setting)
    monkeypatch.setattr(compiled, "installed", lambda requirement: False)

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        assert command[1:] == ["-m", "pip", "install", "--quiet", "mysqlclient"]
        return subprocess.CompletedProcess(command, 1, b"no compiler\n")

    monkeypatch.setattr(subprocess, "run", pip)
    assert compiled.main(["test-compiled"]) == code
    *before, line = capfd.readouterr().out.splitlines()
    assert line.startswith("mysqlclient cannot be built here: apt-get install gcc libmariadb-dev")
    assert before == (["no compiler"] if setting else [])


def test_extras_without_wheels_are_apart() -> None:
    """Packages that need a compiler are in separate extras, so that the others install without one."""
    apart = {*compiled.of_extra("test-compiled"), *compiled.of_extra("servers-compiled")}
    assert apart == {"mysqlclient", "uwsgi"}
    for extra in ("test", "servers", "openstack"):
        wanted = {re.split(r"[\[<>=]", requirement)[0] for requirement in compiled.of_extra(extra)}
        assert wanted
        assert not wanted & apart


def test_environments_of_the_pages_exist() -> None:
    """Every environment of tox that a page names exists, and the README names the quick one."""
    tox = configparser.ConfigParser()
    tox.read(Path(ROOT, "tox.ini"))
    named = {name for page in PAGES for name in re.findall(r"tox -e (\w+)", page.read_text())}
    assert "quick" in re.findall(r"tox -e (\w+)", Path(ROOT, "README.rst").read_text())
    assert {f"testenv:{name}" for name in named} <= set(tox.sections())


def test_what_the_pages_make_is_ignored() -> None:
    """The virtual environments that README and CONTRIBUTING make in the checkout are ignored by git."""
    ignored = Path(ROOT, ".gitignore").read_text().splitlines()
    pages = [Path(ROOT, name).read_text() for name in ("README.rst", "CONTRIBUTING.rst")]
    made = {name for page in pages for name in re.findall(r"-m venv (\S+)", page)}
    assert made
    assert {f"/{name}/" for name in made} <= set(ignored)
    assert "/.venv" in ignored  # tox leaves a file of that name, which names an environment for editors

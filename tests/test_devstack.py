"""The devstack plugin changes the services' configuration: oslo.config, which they use, reads it here.

uWSGI's own parser reads uWSGI's files.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy.engine import URL, make_url

from connmon.config import load
from tests.support.devstack import FUNCTIONS, LOGIN, PLUGIN, SECTIONS, UWSGIS, Stack
from tests.support.nodes import running_node
from tests.support.requirements import needs, program
from tests.support.servers import Server
from tests.support.site import ROOT
from tests.support.truth import TRUTH
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FORMS = pytest.mark.parametrize("form", ["parameters", "url"])


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    needs("oslo_config", "oslo_db")
    return Stack(tmp_path)


def plain(url: URL) -> URL:
    """Return the URL without connmon."""
    query = {name: value for name, value in url.query.items() if not name.startswith("connmon_")}
    plugins = [name for name in _list(query.pop("plugin", ())) if name != "connmon"]
    if plugins:
        query["plugin"] = plugins[0] if len(plugins) == 1 else tuple(plugins)
    return url.set(drivername=url.drivername.removesuffix("_connmon"), query=query)


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def watched(url: URL, form: str) -> bool:
    """Return whether an engine of that URL is watched, in this form only."""
    plugin = "connmon" in _list(url.query.get("plugin", ()))
    return (url.drivername.endswith("_connmon"), plugin) == (form == "url", form != "url")


def test_scripts() -> None:
    """bash and shellcheck find no fault in the plugin."""
    for script in (PLUGIN / "plugin.sh", PLUGIN / "settings", FUNCTIONS):
        for check in (["bash", "-n"], [program("shellcheck"), "--external-sources"]):
            done = subprocess.run([*check, str(script)], capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@FORMS
def test_every_service_is_watched(stack: Stack, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Each service's database, also nova's api and cells, is watched and otherwise unchanged, including other
    plugins; behind uWSGI each service has its name."""
    needs("uwsgi")
    other = {"cinder": {"init_command": "SET x"}}
    stack.edit("cinder.conf", "max_retries", "connection_parameters = init_command=SET%20x\nmax_retries")
    said = stack.stack(CONNMON_FORM=form, CONNMON_OPTIONS="connmon_trace=all&connmon_held=5")
    for section in SECTIONS:
        url = stack.read(section)
        assert plain(url) == stack.url(section.database).update_query_dict(other.get(section.database, {}))
        assert watched(url, form)
        options = {name: value for name, value in url.query.items() if name.startswith("connmon_")}
        assert options == {
            "connmon_config": str(stack.config), "connmon_trace": "all", "connmon_held": "5",
        }  # fmt: skip
    for uwsgi in UWSGIS:
        for name, url in stack.read_behind(uwsgi, monkeypatch).items():
            (section,) = [known for known in SECTIONS if known[:2] == (uwsgi.reads, name)]
            assert url.query["connmon_program"] == uwsgi.program
            assert url.difference_update_query(["connmon_program"]) == stack.read(section)
        assert "env = LC_ALL=C\n" in (stack.directory / uwsgi.file).read_text()
    (service,) = load(str(stack.config)).services
    (node,) = service.nodes
    assert (service.name, str(node.address), str(node.bind)) == (
        "default",
        "127.0.0.1:5800",
        "127.0.0.1:5800",
    )
    assert said.splitlines() == [
        f"pip_install {stack.settings['DEST']}/connmon",
        f"run_process connmond /venv/bin/connmond --config {stack.config} --service default",
    ]


@FORMS
def test_twice_is_once(stack: Stack, form: str) -> None:
    """Stacking again changes nothing."""
    stack.stack(CONNMON_FORM=form)
    once, noted = stack.files(), stack.changed.read_text()
    stack.stack(CONNMON_FORM=form)
    assert (stack.files(), stack.changed.read_text()) == (once, noted)


@FORMS
def test_unstack(stack: Stack, form: str) -> None:
    """Unstacking restores every file byte for byte: it keeps the settings of others, and also cleans the copy
    that devstack made for nova-compute."""
    stack.edit(
        "cinder.conf", "max_retries", "connection_parameters = read_timeout=9%25&plugin=x\nmax_retries"
    )
    stack.edit(
        "glance-api.conf", "max_retries", "slave_connection = mysql+pymysql://a:b@c/glance\nmax_retries"
    )
    before = stack.files()
    stack.stack(CONNMON_FORM=form)
    changed = stack.files()
    assert all(changed[name] != before[name] for name in before)
    stack.directory.joinpath("nova-cpu.conf").write_text(
        "".join(line for line in changed["nova.conf"].splitlines(True) if not line.startswith("connection ="))
    )
    said = stack.run("unstack", "clean")
    after = stack.files()
    assert "connmon" not in after.pop("nova-cpu.conf")
    assert after == before
    assert (stack.config.exists(), stack.changed.exists()) == (False, False)
    assert said.splitlines() == ["stop_process connmond", "pip_uninstall connmon"]
    stack.run("unstack")
    after = stack.files()
    del after["nova-cpu.conf"]
    assert after == before


def test_a_url_without_options(tmp_path: Path) -> None:
    """Unstacking finds connmon's options also if they are a URL's only ones, and its password contains a
    question mark."""
    needs("oslo_config", "oslo_db")
    stack = Stack(tmp_path, query={})
    before = stack.files()
    stack.stack(CONNMON_FORM="url")
    for section in SECTIONS:
        url = stack.read(section)
        assert (url.password, dict(url.query)) == (LOGIN.password, {"connmon_config": str(stack.config)})
    stack.run("unstack")
    assert stack.files() == before


def test_other_settings(stack: Stack) -> None:
    """Stacking with other settings replaces the earlier ones in the services."""
    before = stack.files()
    stack.stack(CONNMON_FORM="url", CONNMON_OPTIONS="connmon_held=5")
    stack.stack(CONNMON_SERVICE="other", CONNMON_SECRET="0123456789abcdef")
    for section in SECTIONS:
        url = stack.read(section)
        assert watched(url, "parameters")
        assert "connmon_held" not in url.query
        assert url.query["connmon_service"] == "other"
    (service,) = load(str(stack.config)).services
    assert service.name == "other"
    assert stack.config.stat().st_mode & 0o777 == 0o640
    stack.run("unstack")
    assert stack.files() == before


def test_what_others_have_set(stack: Stack) -> None:
    """An option with connmon in it that the plugin has not set stays as it is, also when unstacking. So do an
    existing config file and services that are not enabled; without the plugin everything does."""
    stack.edit("neutron.conf", "max_retries", "connection_parameters = plugin=connmon\nmax_retries")
    stack.edit("cinder.conf", "mysql+pymysql:", "mysql+pymysql_connmon:")
    stack.config.write_text("[connmon_service_default]\nname: default\nnodes:\n    node1 hostname=db\n")
    config, before = stack.config.read_text(), stack.files()
    stack.stack(disabled="connmon")
    assert stack.files() == before
    said = stack.stack(disabled="glance")
    after = stack.files()
    own = ("neutron.conf", "neutron-api-uwsgi.ini", "cinder.conf", "cinder-api-uwsgi.ini")
    for name in (*own, "glance-api.conf", "glance-uwsgi.ini"):
        assert after[name] == before[name]
    for name in ("neutron.conf", "cinder.conf", stack.config.name):
        assert f"{name} " in said
    stack.run("unstack")
    assert stack.files() == before
    assert stack.config.read_text() == config


@contextlib.contextmanager
def databases(server: Server) -> Iterator[None]:
    """Create a database for each section, for the block."""
    connection = pymysql.connect(
        host=server.host, port=server.port, user=server.user, password=server.password, autocommit=True
    )
    with contextlib.closing(connection), connection.cursor() as cursor:
        for section in SECTIONS:
            cursor.execute(f"CREATE DATABASE {section.database}")
        try:
            yield
        finally:
            for section in SECTIONS:
                cursor.execute(f"DROP DATABASE {section.database}")


def test_the_engines_report(tmp_path: Path, mariadb: Server) -> None:
    """A node shows the engines that oslo.db creates from the plugin's settings, in one form and then in the
    other: each pool by its database, with the sessions that the server has."""
    needs("oslo_config", "oslo_db")
    base = make_url(mariadb.url("pymysql")).set(database=None)
    stack = Stack(tmp_path, base, {"charset": "utf8"})
    names = {section.database for section in SECTIONS}
    arguments = [
        part for section in SECTIONS for part in (str(stack.directory / section.file), f"[{section.section}]")
    ]
    with running_node(tmp_path) as node, databases(mariadb):
        stack.settings["CONNMON_CONFIG"] = str(node.config)
        for form in ("url", "parameters"):
            stack.stack(CONNMON_FORM=form)
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.devstack_services", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
            )  # fmt: skip
            with process:
                assert process.stdin is not None and process.stdout is not None
                assert process.stdout.readline() == "connected\n"

                def shown() -> bool:
                    pools = {make_url(row["pool"]).database: row for row in node.rows("pool")}
                    assert set(pools) == names
                    assert {row["program"] for row in pools.values()} == {"tests.support.devstack_services"}
                    rows = node.rows("connection")
                    ids = {(make_url(row["pool"]).database, row["server_id"]) for row in rows}
                    assert ids == {(one.db, one.id) for one in mariadb.sessions() if one.db in names}
                    return len(ids) == len(SECTIONS)

                wait_for(shown, TRUTH, "the pools to be shown")
                process.stdin.close()
                assert process.wait(20) == 0
            wait_for(lambda: not node.rows("process"), TRUTH, "the process to be gone")

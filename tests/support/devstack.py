"""The parts of a devstack that its connmon plugin uses: configuration files as devstack writes them.

The plugin runs as devstack runs it, sourced under errexit. The functions of devstack that it calls are
in tests/support/devstack_functions.sh. With CONNMON_TEST_DEVSTACK, the directory of a devstack, they are
devstack's own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy.engine import URL

from tests.support.site import ROOT

PLUGIN = Path(ROOT, "devstack")
FUNCTIONS = Path(ROOT, "tests", "support", "devstack_functions.sh")
INI = os.environ.get("CONNMON_TEST_DEVSTACK", "")


class Section(NamedTuple):
    """A section of a service that names a database."""

    file: str
    section: str
    database: str


class Uwsgi(NamedTuple):
    """A service behind uWSGI, and the configuration that it reads."""

    file: str
    program: str
    reads: str
    sections: tuple[str, ...] = ("database",)


SECTIONS = (
    Section("keystone.conf", "database", "keystone"),
    Section("nova.conf", "database", "nova_cell0"),
    Section("nova.conf", "api_database", "nova_api"),
    Section("nova_cell1.conf", "database", "nova_cell1"),
    Section("nova_cell2.conf", "database", "nova_cell2"),
    Section("neutron.conf", "database", "neutron"),
    Section("cinder.conf", "database", "cinder"),
    Section("glance-api.conf", "database", "glance"),
    Section("placement.conf", "placement_database", "placement"),
)
UWSGIS = (
    Uwsgi("keystone-uwsgi-public.ini", "keystone-api", "keystone.conf"),
    Uwsgi("nova-api-uwsgi.ini", "nova-api", "nova.conf", ("database", "api_database")),
    Uwsgi("nova-metadata-uwsgi.ini", "nova-metadata", "nova.conf", ("database", "api_database")),
    Uwsgi("neutron-api-uwsgi.ini", "neutron-api", "neutron.conf"),
    Uwsgi("cinder-api-uwsgi.ini", "cinder-api", "cinder.conf"),
    Uwsgi("glance-uwsgi.ini", "glance-api", "glance-api.conf"),
    Uwsgi("placement-uwsgi.ini", "placement-api", "placement.conf", ("placement_database",)),
)
#: As devstack sets them when it gathers performance figures: with a plugin of its own.
QUERY = {"charset": "utf8", "plugin": "dbcounter"}
LOGIN = URL.create("mysql+pymysql", "root", "se?cr$et", "127.0.0.1")


def uwsgi() -> str:
    """Return the path of uWSGI: next to the interpreter, if it is there."""
    return shutil.which("uwsgi", path=str(Path(sys.executable).parent)) or "uwsgi"


class Stack:
    """The parts of a devstack that the plugin uses."""

    def __init__(self, directory: Path, base: URL = LOGIN, query: Mapping[str, str] = QUERY) -> None:
        self.directory = directory / "etc"
        self.directory.mkdir()
        self.base, self.query = base, dict(query)
        self.settings = {
            "CONNMON_CONFIG": str(directory / "connmon.cfg"),
            "SERVICE_HOST": "127.0.0.1",
            "DATA_DIR": str(directory / "data"),
            "DEST": str(directory),
        }
        self.config = directory / "connmon.cfg"
        self.changed = directory / "data" / "connmon" / "changed"
        for name in dict.fromkeys(section.file for section in SECTIONS):
            self._write(name)
        for service in UWSGIS:
            (self.directory / service.file).write_text(
                "\n[uwsgi]\nmodule = a.b:application\nprocesses = 2\nmaster = true\nenable-threads = true\n"
                "lazy-apps = true\nenv = LC_ALL=C\nstart-time = %t\n"
            )

    def url(self, database: str) -> URL:
        return self.base.set(database=database).update_query_dict(self.query)

    def _write(self, name: str) -> None:
        lines = [
            "[DEFAULT]",
            "# connection = sqlite:///etc",
            "debug = True",
            "transport_url = rabbit://a:b@c/",
            "",
        ]
        for section in SECTIONS:
            if section.file == name:
                # oslo.config begins a substitution with $; devstack does not quote the password.
                url = self.url(section.database).render_as_string(hide_password=False)
                url = url.replace("%24", "$$").replace("%3F", "?")
                lines += [f"[{section.section}]", "max_retries = -1", f"connection = {url}", ""]
        lines += ["[oslo_concurrency]", "lock_path = /var/lock", ""]
        (self.directory / name).write_text("\n".join(lines))

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.directory / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    def files(self) -> dict[str, str]:
        return {file.name: file.read_text() for file in self.directory.iterdir()}

    def run(self, *phases: str, disabled: str = "", **settings: str) -> str:
        """Have devstack call the plugin; return its output."""
        directory = shlex.quote(str(self.directory))
        variables = {
            "KEYSTONE_CONF": "keystone.conf", "KEYSTONE_PUBLIC_UWSGI_CONF": "keystone-uwsgi-public.ini",
            "NOVA_CONF": "nova.conf", "NOVA_CPU_CONF": "nova-cpu.conf",
            "NOVA_UWSGI_CONF": "nova-api-uwsgi.ini", "NOVA_METADATA_UWSGI_CONF": "nova-metadata-uwsgi.ini",
            "NEUTRON_CONF": "neutron.conf", "NEUTRON_UWSGI_CONF": "neutron-api-uwsgi.ini",
            "CINDER_CONF": "cinder.conf", "CINDER_UWSGI_CONF": "cinder-api-uwsgi.ini",
            "GLANCE_API_CONF": "glance-api.conf", "GLANCE_UWSGI_CONF": "glance-uwsgi.ini",
            "PLACEMENT_CONF": "placement.conf", "PLACEMENT_UWSGI_CONF": "placement-uwsgi.ini",
        }  # fmt: skip
        functions = f"{INI}/inc/ini-config" if INI else str(FUNCTIONS)
        script = [
            "set -o errexit", *([] if INI else ["set -o nounset"]),
            f"source {shlex.quote(functions)}",
            *(f"{name}={directory}/{file}" for name, file in variables.items()),
            "NOVA_NUM_CELLS=2",
            f"conductor_conf() {{ echo {directory}/nova_cell$1.conf; }}",
            "enabled=' keystone nova neutron cinder glance placement '",
            'enable_service() { enabled+="$* "; }',
            f"is_service_enabled() {{ [[ $1 != '{disabled}' && $enabled == *\" $1 \"* ]]; }}",
            "define_plugin() { :; }", "echo_summary() { :; }", "get_python_exec_prefix() { echo /venv/bin; }",
            'sudo() { "$@"; }',
            *(f'{name}() {{ echo "{name} $*"; }}'
              for name in ("pip_install", "pip_uninstall", "run_process", "stop_process")),
            *(f"{name}={shlex.quote(value)}" for name, value in {**self.settings, **settings}.items()),
            f"source {shlex.quote(str(PLUGIN / 'settings'))}",
            "set -o xtrace",
            *(f"source {shlex.quote(str(PLUGIN / 'plugin.sh'))} {phase}" for phase in phases),
            "[[ $- == *x* ]]",
        ]  # fmt: skip
        run = subprocess.run(
            ["bash", "-c", "\n".join(script)], capture_output=True, text=True, timeout=60, cwd=self.directory
        )
        assert run.returncode == 0, run.stderr
        assert "xtrace" in run.stderr
        assert f"{self.base.username}:" not in run.stderr
        return run.stdout

    def stack(self, **settings: str) -> str:
        return self.run("stack pre-install", "stack install", "stack post-config", "stack extra", **settings)

    def read(self, section: Section) -> URL:
        """Return the URL of the engine that the service creates."""
        return self._read(self.directory / section.file, section.section)

    def _read(self, file: Path, section: str) -> URL:
        from oslo_db.sqlalchemy import utils

        from tests.support.devstack_services import configured

        group = configured([str(file)], section)[section]
        url: URL = utils.make_url(group.connection)
        # As oslo.db does it.
        return url.update_query_string(group.connection_parameters or "", append=True)

    def read_behind(self, service: Uwsgi, monkeypatch: pytest.MonkeyPatch) -> dict[str, URL]:
        """Return the URLs of a service that has its environment from uWSGI, by section."""
        shown = subprocess.run(
            [uwsgi(), "--ini", str(self.directory / service.file), "--no-server", "--show-config"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20,
        )  # fmt: skip
        environment = [
            line.removeprefix("env = ").partition("=")
            for line in shown.stdout.splitlines()
            if line.startswith("env = ")
        ]
        assert environment, shown.stdout
        with monkeypatch.context() as patch:
            for name, _, value in environment:
                patch.setenv(name, value)
            return {name: self._read(self.directory / service.reads, name) for name in service.sections}

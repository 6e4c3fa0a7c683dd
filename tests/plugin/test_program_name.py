"""What a program is called: the table, and the facts that real interpreters give it.

The real servers are in benchmarks/names.py, and gunicorn and uWSGI also in test_application_servers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.plugin import program_name as rules
from connmon.plugin.program_name import VARIABLES, Facts, facts, name, program_name


def called(command: str, **others: Any) -> str:
    """Return the name of a process with this command line, started in /srv/shop."""
    words = shlex.split(command)
    argv = tuple(words)
    known: dict[str, Any] = {"directory": "/srv/shop"}
    if words[:2] == ["python", "-m"]:
        known["main"] = f"{words[2]}.__main__"
        argv = (f"/venv/lib/{words[2]}/__main__.py", *words[3:])
    return name(Facts(argv=argv, orig_argv=tuple(words), **{**known, **others}))


# --- The table ----------------------------------------------------------------------------

SERVED = [
    # A target is called as it was typed.
    ("shop.main:app", "shop.main:app"),
    ("shop:app", "shop:app"),
    ("shop", "shop"),
    ("shop.web:application", "shop.web:application"),
    ("shop:site.app", "shop:site.app"),
    # A factory has no arguments: one may be a password.
    ("shop:create_app()", "shop:create_app()"),
    ("shop:create_app('secret', key=\"x\")", "shop:create_app()"),
    # The callable that every WSGI module has is left out, and so is the module that every project has.
    ("shop.wsgi:application", "shop"),
    ("shop.wsgi", "shop"),
    ("shop.core.wsgi", "shop.core.wsgi"),
    ("shop.asgi:application", "shop"),
    ("shop.wsgi:app", "shop.wsgi:app"),
    ("placement.wsgi:application", "placement"),
    ("placement.wsgi.api:application", "placement"),
    ("keystone.wsgi.api:application", "keystone"),
    ("glance.wsgi.api:application", "glance"),
    ("nova.wsgi.osapi_compute:application", "nova-api"),
    ("nova.wsgi.metadata:application", "nova-metadata"),
    ("heat.wsgi.cfn:application", "heat-cfn"),
    # What says nothing has its directory before it.
    ("app:app", "shop/app:app"),
    ("main:create_app()", "shop/main:create_app()"),
    ("wsgi:application", "shop/wsgi:application"),
    ("config.wsgi:application", "shop/config.wsgi:application"),
    ("api.main:app", "shop/api.main:app"),
    # What a server of another kind stands in for.
    ("mlflow.server.fastapi_app:app", "mlflow server"),
    ("airflow.www.app:cached_app()", "airflow webserver"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "right"), SERVED)
@pytest.mark.parametrize(
    "server",
    [
        "gunicorn {}", "/srv/venv/bin/gunicorn -w 4 -b :8000 {}", "gunicorn --preload -k gevent {} --reload",
        "gunicorn --keyfile secret --reload -D {}", "python -m gunicorn {} -c x.py", "gunicorn -w4 -- {}",
        "uvicorn {} --reload", "uvicorn --host 0.0.0.0 --workers 4 {}", "python -m uvicorn --reload {}",
        "hypercorn --bind :80 {}", "hypercorn asgi:{}", "daphne -b 0.0.0.0 -p 80 {}",
        "python -m hypercorn {}",
        "waitress-serve --listen=*:80 {}", "waitress-serve --port 80 --call {}", "python -m waitress {}",
        "granian --interface asgi {} --workers 2",
    ],
)  # fmt: skip
def test_servers(server: str, target: str, right: str) -> None:
    """A server is called what it serves, wherever that is among its options."""
    if server.endswith("asgi:{}") and ":" not in target:
        return
    assert called(server.format(shlex.quote(target))) == right


SCRIPTS_SERVED = [
    ("/usr/bin/placement-api", "placement"),
    ("/usr/bin/keystone-wsgi-public", "keystone"),
    ("/usr/bin/glance-wsgi-api", "glance"),
    ("/usr/bin/nova-api-wsgi", "nova-api"),
    ("/usr/bin/nova-metadata-wsgi", "nova-metadata"),
    ("/usr/bin/cinder-wsgi", "cinder"),
    ("/srv/shop/shop.py", "shop.py"),
    ("/srv/shop/shop.wsgi", "shop"),
    ("/srv/site/shop/wsgi.py", "shop"),
    ("/srv/shop/app.py", "shop/app.py"),
    ("/srv/shop/app.wsgi", "shop/app"),
    ("/srv/shop/releases/20240131/src/app.py", "shop/app.py"),
    ("/srv/shop/current/venv/lib/python3.11/site-packages/main.py", "shop/main.py"),
    ("/srv/shop/api/main.py", "shop/api/main.py"),
    ("/srv/api/main.py", "api/main.py"),
    ("/app/main.py", "main.py"),
    ("app.py", "shop/app.py"),
    ("../blog/app.py", "blog/app.py"),
]


@pytest.mark.parametrize(("path", "right"), SCRIPTS_SERVED)
def test_wsgi_scripts(path: str, right: str) -> None:
    """A served script is called by its name; where that says nothing, with its directory."""
    assert called("", uwsgi={"wsgi-file": (path,)}) == right
    assert called("", uwsgi={"mount": (f"/={path}",)}) == right or "." not in right
    assert called("mod_wsgi", process_group="shop", script=path) == right


def test_uwsgi() -> None:
    """uWSGI's own options say what it serves, from its command line or a file."""

    def of(**options: str | tuple[str, ...]) -> str:
        given = {
            key.replace("_", "-"): (value,) if isinstance(value, str) else value
            for key, value in options.items()
        }
        return called("uwsgi", uwsgi=given)

    assert of(module="shop.main:app") == "shop.main:app"
    assert of(module="shop.main", callable="app") == "shop.main:app"
    assert of(module="shop.wsgi") == "shop"
    assert of(wsgi_file="/usr/bin/nova-api-wsgi", ini="/etc/nova/uwsgi.ini") == "nova-api"
    assert of(mount=("/shop=shop.wsgi:application", "/blog=blog.main:app")) == "shop,blog.main:app"
    assert of(mount=("/=shop:app", "/x=shop:app")) == "shop:app"
    # A vassal of the emperor's whose application says nothing is called by its file.
    assert called("", directory="/", uwsgi={"module": ("app:app",), "ini": ("/etc/vassals/shop.ini",)}) == (
        "shop/app:app"
    )
    assert of(ini="/etc/vassals/shop.ini") == "shop"
    assert of(ini_paste="/srv/blog/blog.ini") == "blog"
    assert of(ini="/etc/uwsgi/uwsgi.ini") == "uwsgi"
    assert of() == "uwsgi"
    assert called("uwsgi", uwsgi={}) == "uwsgi"


def test_mod_wsgi() -> None:
    """mod_wsgi's process is called by its script, else by the group in Apache's configuration."""
    assert called("mod_wsgi", process_group="keystone-public") == "keystone-public"
    assert called("mod_wsgi", process_group="") == "mod_wsgi"
    assert called("mod_wsgi", process_group="%{GLOBAL}") == "mod_wsgi"
    assert called("mod_wsgi", process_group="localhost:8000") == "mod_wsgi"
    assert called("mod_wsgi", process_group="localhost:8000", script="/srv/blog/blog.wsgi") == "blog"


def test_gunicorn_configuration() -> None:
    """gunicorn's application may be in its configuration file; one on the command line wins."""
    assert called("gunicorn -c conf.py", wsgi_app="shop.main:app") == "shop.main:app"
    assert called("gunicorn -c conf.py blog:app", wsgi_app="shop.main:app") == "blog:app"
    assert called("gunicorn -c conf.py") == "gunicorn"
    assert called("uvicorn --port 80", environ={"UVICORN_APP": "shop:app"}) == "shop:app"


def test_the_directory_of_a_module() -> None:
    """The directory is the loaded module's, wherever the process is by then."""
    loaded = {"app": "/srv/blog/current/app.py"}
    assert called("gunicorn app:app", directory="/", modules=loaded) == "blog/app:app"
    package = {"app": "/srv/blog/app/__init__.py"}
    assert called("uvicorn --app-dir /srv/blog app.main:app", modules=package) == "blog/app.main:app"
    assert called("gunicorn app:app", directory="/") == "app:app"
    assert called("gunicorn app:app", directory="/tmp/tmp_1a2b3c4") == "app:app"


def test_unknown_flag() -> None:
    """An unknown option without a value, as of a newer server, does not hide a loaded application."""
    assert called("gunicorn --new shop:app", modules={"shop": "/srv/shop/shop.py"}) == "shop:app"
    assert called("gunicorn --keyfile-password admin:hunter2") == "gunicorn"
    assert called("dramatiq redis://:hunter2@db/0 shop.tasks") == "dramatiq shop.tasks"
    assert called("flask run", environ={"FLASK_APP": "mysql://u:hunter2@db/x"}) == "flask run"


TOOLS = [
    ("celery -A shop worker -l info", "celery shop worker"),
    ("celery -A shop beat", "celery shop beat"),
    ("celery --app=shop.celery:app worker -B -Q mail -n w1@%h", "celery shop worker"),
    ("celery --broker redis://:secret@db/0 -A shop.tasks:app worker", "celery shop.tasks:app worker"),
    ("celery worker -A shop --loglevel worker", "celery shop worker"),
    ("python -m celery -Ashop -q flower", "celery shop flower"),
    ("celery -A tasks worker", "celery shop/tasks worker"),
    ("celery -b secret worker", "celery worker"),
    ("rq worker -u redis://:secret@db high low", "rq worker"),
    ("dramatiq shop.tasks --processes 2", "dramatiq shop.tasks"),
    ("huey_consumer.py shop.main.huey -w 4", "huey_consumer shop.main.huey"),
    ("arq shop.worker.Settings", "arq shop.worker.Settings"),
    ("airflow scheduler", "airflow scheduler"),
    ("airflow dag-processor -v", "airflow dag-processor"),
    ("python -m airflow api-server --port 80", "airflow api-server"),
    ("airflow celery worker", "airflow celery worker"),
    ("airflow tasks run dag task", "airflow tasks run"),
    ("airflow connections add --conn-password secret x", "airflow connections add"),
    ("airflow hunter2", "airflow"),
    ("flask --app shop run", "flask run shop"),
    ("flask --app shop.main:create_app('secret') --debug run -p 80", "flask run shop.main:create_app()"),
    ("flask -A app run", "flask run shop/app"),
    ("flask run", "flask run shop"),
    ("flask --app shop db upgrade", "flask db upgrade shop"),
    ("flask -e secret shell", "flask shell shop"),
    ("manage.py runserver 80", "manage.py runserver shop"),
    ("../blog/manage.py migrate", "manage.py migrate blog"),
    ("django-admin migrate --settings=blog.settings", "django-admin migrate blog"),
    ("python -m django check", "django-admin check shop"),
    ("manage.py --settings=config.settings", "manage.py shop"),
    ("alembic upgrade head", "alembic upgrade"),
    ("alembic -c x.ini -x password=secret --raiseerr downgrade -1", "alembic downgrade"),
    ("python -m alembic current", "alembic current"),
    ("superset db upgrade", "superset db upgrade"),
    ("mlflow server --backend-store-uri mysql://u:secret@db/m", "mlflow server"),
    ("nova-manage db sync", "nova-manage db sync"),
    ("nova-manage --config-file /etc/nova.conf --debug cell_v2 update_cell --transport-url secret",
     "nova-manage cell_v2 update_cell"),
    ("keystone-manage bootstrap --bootstrap-password secret", "keystone-manage bootstrap"),
    ("neutron-db-manage --config-file x upgrade heads", "neutron-db-manage upgrade"),
    ("nova-manage hunter2", "nova-manage"),
    ("pserve -q production.ini", "pserve shop"),
    ("pserve --reload /srv/blog/development.ini#main key=secret", "pserve blog"),
    ("fastapi run main.py --port 80", "fastapi run shop/main.py"),
    ("streamlit run shop.py -- secret", "streamlit run shop.py"),
    ("pytest -x tests", "pytest"),
    ("py.test", "pytest"),
    ("python -m pytest", "pytest"),
    ("python -m ipykernel_launcher -f kernel.json", "ipykernel"),
    # All else is what it is.
    ("/usr/bin/nova-scheduler --config-file x", "nova-scheduler"),
    ("neutron-server", "neutron-server"),
    ("/opt/shop/shop", "shop"),
    ("shop-worker --password secret", "shop-worker"),
    ("main.py", "shop/main.py"),
    ("/srv/blog/worker.py --x", "blog/worker.py"),
    ("python -m shop.worker", "shop.worker"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "right"), TOOLS)
def test_tools(command: str, right: str) -> None:
    """A tool is called by its name and subcommand, a worker by its application and role."""
    shown = called(command)
    assert shown == right
    assert "secret" not in shown


def test_the_page_about_applications() -> None:
    """The page's table of names agrees with the code's."""
    page = (Path(__file__).parents[2] / "docs/applications.rst").read_text()
    (part,) = re.findall(r"started in ``/srv/shop``:(.*?)\n- ", page, re.DOTALL)
    rows = re.findall(r"\* - ``(.*)``\n     - ``(.*)``", part)
    assert len(rows) > 20
    for command, right in rows:
        assert called(command) == right, command


def test_variables() -> None:
    """An application named in the environment counts like one on the command line, which wins."""
    environ = {
        "FLASK_APP": "shop/app.py",
        "CELERY_APP": "blog",
        "DJANGO_SETTINGS_MODULE": "blog.settings.live",
    }
    assert called("flask run", environ=environ) == "flask run shop/app.py"
    assert called("flask --app=forum run", environ=environ) == "flask run forum"
    assert called("celery beat", environ=environ) == "celery blog beat"
    assert called("manage.py migrate", environ=environ) == "manage.py migrate blog"
    assert called("quart run", environ={"QUART_APP": "shop:app"}) == "quart run shop:app"


SPAWNED = (
    "python",
    "-c",
    "from multiprocessing.spawn import spawn_main; spawn_main()",
    "--multiprocessing-fork",
)


def test_children_of_multiprocessing() -> None:
    """A child is called like its parent, by its inherited arguments or the parent's own."""

    def child(argv: str, *parent: str) -> str:
        return name(Facts((argv,), SPAWNED, directory="/srv/shop", parent=parent))

    assert child("/venv/bin/nova-api", "python", "x") == "nova-api"
    assert child("/x/a/b/__main__.py", "python", "-m", "a.b") == "a.b"
    assert child("/x/a/b/__main__.py") == "b"
    assert child("/x/a/b/__main__.py", "/usr/bin/other", "-x") == "b"
    # The server that forks children has no arguments of its own.
    assert child("-c", "python", "-W", "error", "/srv/x/tool.py", "-m") == "tool.py"
    assert child("-c", "python", "-um", "a.b", "-c") == "a.b"
    assert child("-c", "python", "-c", "print()") == "python -c"
    assert child("-c") == "python -c"
    served = Facts(("/x/uvicorn/__main__.py", "shop:app"), SPAWNED, parent=("python", "-m", "uvicorn"))
    assert name(served) == "shop:app"


def test_launchers() -> None:
    """A debugger, a profiler or a coverage tool is called what it runs."""
    assert name(Facts(("tool.py",), main="cProfile")) == "tool.py"
    assert name(Facts(("/x/gunicorn/__main__.py", "shop:app"), main="coverage.__main__")) == "shop:app"


def test_modules_that_are_called_the_same() -> None:
    """A module that says nothing has the directory of its first package before it."""
    for module, file, right in (
        ("app", "/srv/shop/app.py", "shop/app"),
        ("api.__main__", "/srv/shop/api/__main__.py", "shop/api"),
        ("api.worker", "/srv/shop/src/api/worker.py", "shop/api.worker"),
        ("api.worker.__main__", "/srv/shop/api/worker/__main__.py", "shop/api.worker"),
        ("shop.worker", "/srv/blog/shop/worker.py", "shop.worker"),
    ):
        assert name(Facts((file,), ("python", "-m", module), main=module, main_file=file)) == right


def test_main_is_replaced() -> None:
    """A notebook's kernel has another __main__: what the interpreter was started with counts."""
    kernel = ("/x/ipykernel_launcher.py", "-f", "kernel.json")
    assert name(Facts(kernel, ("python", "-m", "ipykernel_launcher", *kernel[1:]))) == "ipykernel"
    assert name(Facts(("/x/shop/job/__main__.py",), ("python", "-m", "shop.job"))) == "shop.job"
    assert name(Facts(("/srv/tool.py",), ("python", "-m", "shop.job"))) == "tool.py"


def test_xdist() -> None:
    """It names pytest's workers under xdist, and not what their tests start."""
    modules = {"xdist": None, "execnet": None}
    assert called("-c", modules=modules) == "pytest"
    assert called("nova-api", modules=modules) == "nova-api"


WORDS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(), max_size=300),
    st.sampled_from(
        [word for command, _ in TOOLS for word in command.split()]
        + [
            "-m",
            "-c",
            "-",
            "--",
            "-A",
            "--app",
            "--config",
            "\ud800",
            "\x1b[31m",
            "/",
            ".",
            "..",
            "__main__.py",
        ]
        + [*SPAWNED, "gunicorn", "uvicorn", "wsgi", "/dev/stdin", "a" * 300, "x:y", "shop:app('", "=", "a=b"]
    ),
)
LINES = st.lists(WORDS, max_size=6).map(tuple)
MAPPINGS = st.dictionaries(
    st.sampled_from(["module", "wsgi", "wsgi-file", "file", "mount", "ini", "callable"]), LINES
)
FACTS = st.builds(
    Facts, LINES, LINES, st.dictionaries(st.sampled_from(VARIABLES), WORDS), st.none() | WORDS,
    st.none() | WORDS, WORDS, LINES, st.dictionaries(WORDS, st.none() | WORDS), st.none() | MAPPINGS,
    st.none() | WORDS,
    st.none() | WORDS, st.none() | WORDS,
)  # fmt: skip


@given(FACTS)
def test_total(known: Facts) -> None:
    """Any process has a name that the wire and a terminal accept, always the same."""
    shown = name(known)
    assert 1 <= len(shown) <= 256
    assert shown.isprintable() and shown.strip() == shown
    shown.encode()
    assert name(known) == shown


@given(st.lists(st.sampled_from(["-w", "4", "--new", "-k", "gevent", "-b", ":80"]), max_size=5))
def test_a_secret_is_never_in_a_name(others: list[str]) -> None:
    """The value of an option, known or not, is not taken for an application."""
    for tool in rules.RULES:
        for option in ("--password", "--keyfile-password", "-x", "--broker", "-p"):
            command = [tool, *others, option, "hunter2/secret", "--", "shop:app"]
            assert "secret" not in name(Facts(tuple(command), tuple(command)))


# --- The edge -----------------------------------------------------------------------------


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_first_name", [])
    monkeypatch.delenv("CONNMON_PROGRAM", raising=False)


@pytest.mark.usefixtures("forgotten")
def test_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNMON_PROGRAM names the program; empty counts as not set, and it is cut to the limit."""
    own = program_name()
    for value, right in (
        ("shop-eu", "shop-eu"), ("", own), ("  ", own), ("x" * 300, "x" * 256), (" a\nb ", "a?b"),
        ("caf\udce9", "caf?"),
    ):  # fmt: skip
        monkeypatch.setenv("CONNMON_PROGRAM", value)
        assert program_name() == right


@pytest.mark.usefixtures("forgotten")
def test_one_name_for_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of sys.argv does not give the process a second name."""
    first = program_name()
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setattr(sys, "argv", ["other"])
    assert program_name() == first
    assert name(facts()) == "other"


def test_facts_of_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """uWSGI's options, gunicorn's configuration and mod_wsgi's script are read from memory."""

    def module(name: str, **values: object) -> None:
        made = types.ModuleType(name)
        made.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, made)

    monkeypatch.setattr(sys, "argv", ["gunicorn", "-c", "x.py"])
    module("__config__", wsgi_app="shop:app")
    assert facts().wsgi_app == "shop:app"
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--config=python:shop_conf")
    monkeypatch.setattr(sys, "argv", ["gunicorn"])
    module("shop_conf", wsgi_app="blog:app")
    assert facts().wsgi_app == "blog:app"
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "'")
    assert facts().wsgi_app is None
    module("mod_wsgi", process_group="shop", application_group="")
    assert (facts().process_group, facts().script) == ("shop", None)
    module("_mod_wsgi_1", __file__="/tmp/handler.wsgi", entry_point="/srv/shop.wsgi")
    assert facts().script == "/srv/shop.wsgi"
    module("uwsgi", opt={"module": b"shop:app", "mount": [b"/=x:y", "/z=z"], "master": True, b"odd": 1})
    options: Mapping[str, Any] = facts().uwsgi or {}
    assert options == {"module": ("shop:app",), "mount": ("/=x:y", "/z=z"), "master": (), "odd": ()}


def test_facts_import_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loaded modules are looked at, and a directory that is gone is no error."""

    def gone() -> str:
        raise FileNotFoundError

    before = set(sys.modules)
    monkeypatch.setattr(os, "getcwd", gone)
    assert facts().directory == ""
    assert set(sys.modules) == before


# --- Real interpreters --------------------------------------------------------------------

PRINT = "from connmon.plugin.program_name import program_name; print(program_name())"
SPAWN = """
import multiprocessing
from connmon.plugin.program_name import program_name
def run(): print(program_name(), flush=True)
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=run)
    process.start(); process.join()
"""
SCRIPTS = {
    "__main__.py": PRINT,
    "tool.py": PRINT,
    "pack/__init__.py": "",
    "pack/__main__.py": PRINT,
    "pack/part.py": PRINT,
    "early/__init__.py": PRINT,
    "early/__main__.py": "",
    "spawn.py": SPAWN,
    "bin/nova-api": PRINT,
    "folder/__main__.py": PRINT,
}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["tool.py"], "tool.py"),
        (["{}/bin/nova-api", "--config", "x"], "nova-api"),
        (["-m", "tool", "-m", "other"], "tool"),
        (["-m", "pack"], "pack"),
        (["-m", "pack.part"], "pack.part"),
        (["-bm", "pack"], "pack"),
        (["-W", "ignore", "-X", "dev", "-mearly"], "early"),
        (["-Wignore", "--check-hash-based-pycs", "default", "-m", "early"], "early"),
        (["folder"], "folder"),
        (["folder/__main__.py"], "folder"),
        (["-c", PRINT], "python -c"),
        (["-"], "python"),
        (["-", "file", "-m", "tool"], "python"),
        (["-u", "-X", "dev", "-"], "python"),
        (["-i"], "python"),
        (["-i", "-"], "python"),
        ([], "python"),
        (["/dev/stdin"], "python"),
        (["/dev/fd/0"], "python"),
        (["/proc/self/fd/0"], "python"),
        (["-X", "utf8", "-W", "error", "-c", PRINT], "python -c"),
        (["-i", "tool.py"], "tool.py"),
        (["tool.py", "-"], "tool.py"),
        (["../app.pyz"], "app.pyz"),
        (["."], "python-program"),
        (["__main__.py"], "python-program"),
        (["folder/../folder"], "folder"),
        (["-m", "spawn"], "spawn"),
        (["spawn.py"], "spawn.py"),
    ],
)
def test_program_name(arguments: list[str], name: str, tmp_path: Path) -> None:
    """The program is the script's name, or the module's as given with -m."""
    tmp_path = tmp_path / "python-program"
    with zipfile.ZipFile(tmp_path.parent / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", PRINT)
    for file, content in SCRIPTS.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    command = [sys.executable, *(argument.format(tmp_path) for argument in arguments)]
    done = subprocess.run(
        command, cwd=tmp_path, input=PRINT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[0] == name, done.stderr


def test_program_name_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded and interactive interpreters have no useful sys.argv."""
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    for argv in ([], [""], ["/"], None, [1], "gunicorn"):
        monkeypatch.setattr(sys, "argv", argv)
        assert name(facts()) == "python"
    monkeypatch.delattr(sys, "argv")
    assert name(facts()) == "python"

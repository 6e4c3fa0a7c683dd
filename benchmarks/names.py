"""Compare connmon's names of real servers and tools with the names that a person would give them.

    python benchmarks/names.py [--kit KIT ...] [--venv KIT=DIRECTORY ...] [--only TEXT] [--rst FILE]

Each is started on loopback with one of two small sites, `shop` and `blog`, that use an engine with
`plugin=connmon`. The name comes from `connmon snapshot --by process --format json`, for every process of its
tree. Each kit (packages that are installed together) gets its own environment, unless `--venv` names one that
has the kit and this connmon already. Exit code 1 if a name is wrong or missing, or a kit could not be
installed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from overhead import HOST, _port, connmond

ROOT = Path(__file__).resolve().parents[1]

#: Packages that are installed together. mod_wsgi needs Apache's headers (apache2-dev), uWSGI a compiler.
KITS: Mapping[str, tuple[str, ...]] = {
    "python": (),
    "web": ("gunicorn", "uvicorn", "hypercorn", "daphne", "waitress", "flask", "django"),
    "uwsgi": ("uwsgi",),
    "mod_wsgi": ("mod_wsgi",),
    "celery": ("celery", "dramatiq", "huey"),
    "tools": ("alembic", "pytest", "pytest-xdist", "ipykernel"),
    "airflow": ("apache-airflow",),
    "openstack": ("openstack-placement", "keystone", "gunicorn", "uwsgi"),
}

#: The files of a site; SITE is its name.
FILES: Mapping[str, str] = {
    "SITE/__init__.py": "",
    "SITE/main.py": """
import watched
def application(environ, start_response):
    watched.use()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
app = application
def create_app(password=None):
    return application
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    watched.use()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
def create_asgi():
    return asgi
""",
    "SITE/wsgi.py": "from SITE.main import application\n",
    "SITE/asgi.py": "from SITE.main import asgi as application\n",
    "SITE/web.py": """
import flask, watched
app = flask.Flask("SITE")
app.route("/")(lambda: watched.use() or "ok")
""",
    "SITE/settings.py": "SECRET_KEY = 'x'\nROOT_URLCONF = 'SITE.urls'\nDEBUG = True\nALLOWED_HOSTS = ['*']\n",
    "SITE/urls.py": """
import watched
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("", lambda request: HttpResponse(watched.use() or "ok"))]
""",
    "SITE/celery.py": """
import celery, watched
app = celery.Celery("SITE", broker="memory://")
app.conf.beat_schedule_filename = watched.scratch("SITE")
watched.use()
""",
    "SITE/actors.py": """
import dramatiq, watched
from dramatiq.brokers.stub import StubBroker
dramatiq.set_broker(StubBroker())
watched.use()
""",
    "SITE/queue.py": "import huey, watched\nhuey = huey.MemoryHuey()\nwatched.use()\n",
    "SITE/report.py": "import import_orders\nif __name__ == '__main__': import_orders.main()\n",
    "app.py": "from SITE.main import application, app, asgi\n",
    "SITE.wsgi": "import sys\nsys.path[:0] = ['HERE', 'BASE']\nfrom SITE.main import application\n",
    "SITE-api-wsgi": "from SITE.main import application\n",
    "gunicorn_of_SITE.py": "wsgi_app = 'SITE.main:app'\n",
    "SITE.ini": "[uwsgi]\nmodule = SITE.main\ncallable = app\nchdir = HERE\nmaster = true\nlazy-apps = true\n"
                "enable-threads = true\nhttp-socket = 127.0.0.1:$(PORT_SITE)\nprocesses = 2\n",
    "manage.py": """
import os, sys
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "SITE.settings")
execute_from_command_line(sys.argv)
""",
    "alembic.ini": "[alembic]\nscript_location = HERE/migrations\n",
    "migrations/env.py": "import watched\nwatched.use(stay=True)\n",
    "migrations/versions/.keep": "",
    "test_SITE.py": """
import watched
def test_it(): watched.use(stay=True)
def test_too(): watched.use(stay=True)
""",
    "import_orders.py": """
import concurrent.futures, multiprocessing, sys, watched
def work(): watched.use(stay=True)
def main():
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[2:] == ["executor"]:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
            executor.submit(work).result()
    else:
        process = context.Process(target=work)
        process.start()
        process.join()
if __name__ == "__main__":
    main()
""",
    "sync_stock.py": "import watched\nwatched.use(stay=True)\n",
}  # fmt: skip
WATCHED = """
import os, time
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
engine = None
def use(stay=False):
    global engine
    if engine is None:
        engine = create_engine(
            "sqlite://?plugin=connmon&connmon_config=" + os.environ["NAMES_CONFIG"],
            poolclass=QueuePool, connect_args={"check_same_thread": False},
        )
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        if stay:
            time.sleep(120)
def scratch(name):
    return os.path.join(os.path.dirname(os.environ["NAMES_CONFIG"]), name + "-beat-" + str(os.getpid()))
"""


@dataclass(frozen=True)
class Start:
    """A command, and the name that a person would give its program."""

    kit: str
    command: str
    right: str
    site: str = "shop"
    """The site in whose directory it starts; "": the directory above both."""
    environ: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    rights: tuple[str, ...] = ()
    """If it starts several programs: the name of each."""


MULTIPROCESSING = [
    Start("python", f"python import_orders.py {method}{executor}", "import_orders.py")
    for method in ("spawn", "fork", "forkserver")
    for executor in ("", " executor")
]
PLACEMENT = {
    "OS_PLACEMENT_DATABASE__CONNECTION": "sqlite:///BASE/placement.db?plugin=connmon",
    "OS_PLACEMENT_DATABASE__SYNC_ON_STARTUP": "true",
    "OS_API__AUTH_STRATEGY": "noauth2",
}
STARTS = (
    Start("python", "python sync_stock.py", "sync_stock.py"),
    Start("python", "python -m shop.report spawn", "shop.report"),
    Start("python", "python -m shop.report forkserver", "shop.report"),
    Start("python", "python -c 'import watched; watched.use(stay=True)'", "python -c"),
    Start("python", "python -", "python", stdin="import watched; watched.use(stay=True)"),
    *MULTIPROCESSING,
    Start("python", "python sync_stock.py", "stock-eu", environ={"CONNMON_PROGRAM": "stock-eu"}),
    Start("web", "gunicorn -w 2 -b 127.0.0.1:PORT shop.main:app", "shop.main:app"),
    Start("web", "gunicorn -w 2 -b 127.0.0.1:PORT blog.main:app", "blog.main:app", "blog"),
    Start("web", "gunicorn --preload -b 127.0.0.1:PORT shop.main:app", "shop.main:app"),
    Start("web", "gunicorn --reload -b 127.0.0.1:PORT shop.wsgi:application", "shop"),
    Start("web", "gunicorn -b 127.0.0.1:PORT 'shop.main:create_app(\"secret\")'", "shop.main:create_app()"),
    Start("web", "gunicorn -b 127.0.0.1:PORT -c gunicorn_of_shop.py", "shop.main:app"),
    Start("web", "gunicorn -b 127.0.0.1:PORT --chdir shop app:app", "shop/app:app", ""),
    Start("web", "gunicorn -b 127.0.0.1:PORT --chdir blog app:app", "blog/app:app", ""),
    Start("web", "gunicorn", "shop.main:app",
          environ={"GUNICORN_CMD_ARGS": "-b 127.0.0.1:PORT -c gunicorn_of_shop.py"}),
    Start("web", "python -m gunicorn -b 127.0.0.1:PORT blog.main:app", "blog.main:app", "blog"),
    Start("web", "uvicorn --port PORT shop.main:asgi", "shop.main:asgi"),
    Start("web", "uvicorn --port PORT --workers 2 shop.main:asgi", "shop.main:asgi"),
    Start("web", "uvicorn --port PORT --reload shop.main:asgi", "shop.main:asgi"),
    Start("web", "uvicorn --port PORT --factory shop.main:create_asgi", "shop.main:create_asgi"),
    Start("web", "python -m uvicorn --port PORT --reload --app-dir blog app:asgi", "blog/app:asgi", ""),
    Start("web", "hypercorn -b 127.0.0.1:PORT -w 2 shop.main:asgi", "shop.main:asgi"),
    Start("web", "python -m hypercorn -b 127.0.0.1:PORT blog.asgi:application", "blog", "blog"),
    Start("web", "daphne -b 127.0.0.1 -p PORT shop.asgi:application", "shop"),
    Start("web", "waitress-serve --listen 127.0.0.1:PORT shop.main:app", "shop.main:app"),
    Start("web", "python -m waitress --port PORT --call shop.main:create_app", "shop.main:create_app"),
    Start("web", "flask --app shop.web run -p PORT", "flask run shop.web"),
    Start("web", "flask run --debug -p PORT", "flask run blog.web:app", "blog",
          {"FLASK_APP": "blog.web:app"}),
    Start("web", "python manage.py runserver PORT", "manage.py runserver shop"),
    Start("web", "python manage.py runserver PORT", "manage.py runserver blog", "blog"),
    Start("web", "django-admin runserver PORT", "django-admin runserver shop", environ={
        "DJANGO_SETTINGS_MODULE": "shop.settings"}),
    Start("uwsgi", "UWSGI --module shop.main:app", "shop.main:app"),
    Start("uwsgi", "UWSGI -w shop.wsgi", "shop"),
    Start("uwsgi", "UWSGI --master --processes 2 --wsgi-file app.py",
          "shop/app.py"),
    Start("uwsgi", "UWSGI --chdir ../blog --wsgi-file app.py", "blog/app.py"),
    Start("uwsgi", "UWSGI --manage-script-name --mount /=shop.main:app",
          "shop.main:app"),
    Start("uwsgi", "UWSGI --wsgi-file shop-api-wsgi", "shop-api"),
    Start("uwsgi", "uwsgi --ini shop.ini", "shop.main:app", environ={"PORT_shop": "PORT"}),
    Start("uwsgi", "uwsgi --emperor 'BASE/*/*.ini'", "", "", {"PORT_shop": "PORT", "PORT_blog": "PORT2"},
          rights=("blog.main:app", "shop.main:app")),
    Start("mod_wsgi", "mod_wsgi-express start-server --port PORT EXPRESS shop.wsgi", "shop"),
    Start("mod_wsgi", "mod_wsgi-express start-server --port PORT EXPRESS blog.wsgi", "blog", "blog"),
    Start("celery", "celery -A shop worker -c 2", "celery shop worker"),
    Start("celery", "celery -A shop.celery:app beat", "celery shop beat"),
    Start("celery", "python -m celery --app blog worker -P solo", "celery blog worker", "blog"),
    Start("celery", "dramatiq -p 1 -t 1 shop.actors", "dramatiq shop.actors"),
    Start("celery", "huey_consumer shop.queue.huey", "huey_consumer shop.queue.huey"),
    Start("tools", "alembic upgrade head", "alembic upgrade"),
    Start("tools", "pytest -q test_shop.py", "pytest"),
    Start("tools", "python -m pytest -q -n 2 test_shop.py", "pytest"),
    Start("tools", "python -m ipykernel_launcher -f BASE/kernel.json "
          "--IPKernelApp.exec_lines='import watched; watched.use()'", "ipykernel"),
    Start("airflow", "airflow db migrate", "airflow db migrate"),
    Start("airflow", "airflow scheduler", "airflow scheduler"),
    Start("airflow", "airflow dag-processor", "airflow dag-processor"),
    Start("airflow", "airflow triggerer", "airflow triggerer"),
    Start("airflow", "airflow api-server -p PORT", "airflow api-server"),
    Start("openstack", "gunicorn -b 127.0.0.1:PORT placement.wsgi.api:application", "placement",
          environ=PLACEMENT),
    Start("openstack", "UWSGI --module placement.wsgi.api:application", "placement", environ=PLACEMENT),
    Start("openstack", "placement-manage db sync", "placement-manage db sync",
          environ={"OS_PLACEMENT_DATABASE__CONNECTION": "sqlite:///BASE/new.db?plugin=connmon"}),
    Start("openstack", "keystone-manage db_sync", "keystone-manage db_sync", environ={
        "OS_DATABASE__CONNECTION": "sqlite:///BASE/keystone.db?plugin=connmon"}),
)  # fmt: skip


def make_sites(base: Path) -> None:
    (base / "watched.py").write_text(WATCHED)
    for site in ("shop", "blog"):
        here = base / site
        for name, content in FILES.items():
            file = here / name.replace("SITE", site)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = content.replace("SITE", site).replace("HERE", str(here)).replace("BASE", str(base))
            file.write_text(text)
    for directory in (base, *base.rglob("*")):
        if directory.is_dir():
            directory.chmod(0o755)  # Apache's processes run as another user


def make_environment(kit: str, directory: Path) -> Path:
    """Create an environment with the kit and this connmon; return its bin directory."""
    print(f"making an environment for {kit}: {' '.join(KITS[kit])}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    pip = [str(directory / "bin/python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-e", str(ROOT), *KITS[kit]], check=True)
    return directory / "bin"


@contextlib.contextmanager
def started(start: Start, bin: Path, base: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    def filled(text: str) -> str:
        express = f"--server-root {base}/express-{port}"
        if os.geteuid() == 0:
            express += " --user www-data --group www-data"
        values = {
            "UWSGI": "uwsgi --http-socket 127.0.0.1:PORT --enable-threads", "EXPRESS": express,
            "PORT2": str(port + 1), "PORT": str(port), "BASE": str(base),
        }  # fmt: skip
        for word, value in values.items():
            text = text.replace(word, value)
        return text

    environ = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("CONNMON", "FLASK", "DJANGO", "PYTEST", "GUNICORN"))
    }
    config = base / "connmon.cfg"
    environ |= {
        "PATH": f"{bin}:{environ.get('PATH', os.defpath)}",
        "PYTHONPATH": f"{base / start.site}:{base}",
        "NAMES_CONFIG": str(config),
        "CONNMON_CONFIG": str(config),
        "AIRFLOW_HOME": str(base / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{base}/airflow/airflow.db?plugin=connmon",
    } | {key: filled(value) for key, value in start.environ.items()}
    (base / "airflow").mkdir(exist_ok=True)
    log = base / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {filled(start.command)}"],
            cwd=base / start.site, env=environ, start_new_session=True,
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdin is not None
        if start.stdin:
            process.stdin.write(start.stdin.encode())
            process.stdin.close()
        try:
            yield process
        finally:
            end(process)


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all processes that it has started."""
    children = tree(process)
    process.terminate()
    psutil.wait_procs(children[:1], 2)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def ask(port: int) -> None:
    """Request a page, so that a worker uses its pool."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(HOST, port, timeout=2)
        connection.request("GET", "/")
        connection.getresponse().read()
        connection.close()


def snapshot(config: Path, by: str) -> list[dict[str, Any]]:
    main = "import sys; from connmon.commands.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "--config", str(config), "snapshot", "--by", by]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def program_names(config: Path, pids: set[int]) -> dict[int, str]:
    """Return the program's name of each of these processes that the node knows."""
    return {row["pid"]: row["program"] for row in snapshot(config, "process") if row["pid"] in pids}


def connects(config: Path) -> dict[str, int]:
    """Return how often each program has connected, including programs that have ended."""
    return {row["program"]: row["connects_total"] for row in snapshot(config, "program")}


def run(start: Start, bin: Path, base: Path, limit: float) -> str:
    """Start it; return its programs' names, or "" if there was none within the limit."""
    port = _port()
    names_by_pid: dict[int, str] = {}
    seen: set[int] = set()
    settled = None
    config = base / "connmon.cfg"
    before_it = connects(config)
    with started(start, bin, base, port) as process:
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            ask(port)  # a worker that serves nothing does not report
            if start.rights:
                ask(port + 1)
            pids = {child.pid for child in tree(process)}
            seen |= pids
            before = len(names_by_pid)
            names_by_pid |= program_names(config, seen)
            if len(names_by_pid) > before or settled is None:
                complete = len(set(names_by_pid.values())) >= max(1, len(start.rights))
                settled = time.monotonic() if complete else None
            elif time.monotonic() > settled + 1.5:  # no other process of it is coming
                break
            if process.poll() is not None:
                break
            time.sleep(0.3)
    names = set(names_by_pid.values())
    if not names:  # it ended before it was seen, but its last report is there
        names = {name for name, number in connects(config).items() if number > before_it.get(name, 0)}
    return ", ".join(sorted(names))


def typed(start: Start) -> str:
    """Return the command as a person would type it, without the address on which it listens."""
    environ = {key: value for key, value in start.environ.items() if not key.startswith(("OS_", "PORT_"))}
    words = [*(f"{key}={shlex.quote(value)}" for key, value in environ.items()), start.command]
    words = [word.replace(" EXPRESS", "").replace("daphne -b 127.0.0.1", "daphne") for word in words]
    text = re.sub(r"(?<=[ '])(-b|-p|--port|--listen) [\w.:]*PORT ?| [\w.:]*PORT$", "", " ".join(words))
    return text.replace("UWSGI", "uwsgi").replace("BASE/", "").strip()


def table(rows: list[tuple[str, str, str, bool]]) -> str:
    """Return the rows as a table of reStructuredText, in which an incorrect name stands out."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - started as", "     - shown as"]
    for command, name, _, ok in rows:
        lines += [f"   * - ``{command}``", f"     - ``{name}``" + ("" if ok else " (wrong)")]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kit", action="append", choices=KITS, help="only these (default: all)")
    parser.add_argument(
        "--venv",
        action="append",
        default=[],
        metavar="KIT=DIRECTORY",
        help="an environment that has the kit already",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only commands with this in them")
    parser.add_argument("--limit", type=float, default=40.0, help="seconds to wait for a name (default: 40)")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the table for the documentation")
    parser.add_argument("--log", action="store_true", help="print the output of a command with a wrong name")
    arguments = parser.parse_args()
    given = {kit: Path(path) / "bin" for kit, _, path in (word.partition("=") for word in arguments.venv)}
    rows: list[tuple[str, str, str, bool]] = []
    missing: list[str] = []
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        stack.enter_context(connmond(base))
        make_sites(base)
        print(f"{'started as':76} {'name shown':30} {'right name':30} ok")
        for kit in arguments.kit or KITS:
            starts = [start for start in STARTS if start.kit == kit and arguments.only in start.command]
            if kit not in given and starts:
                try:
                    given[kit] = make_environment(kit, base / f"venv-{kit}")
                except subprocess.CalledProcessError as error:
                    print(f"{kit}: not installed: {error}")
                    missing.append(kit)
                    continue
            for start in starts:
                right = ", ".join(start.rights) or start.right
                name = run(start, given[kit], base, arguments.limit)
                command = typed(start)
                rows.append((command, name, right, name == right))
                print(f"{command:76} {name:30} {right:30} {'yes' if name == right else 'NO'}", flush=True)
                if arguments.log and name != right:
                    print((base / "log").read_text(errors="replace")[-3000:])
    if arguments.rst:
        arguments.rst.write_text(table(rows))
    wrong = sum(not ok for *_, ok in rows)
    print(
        f"{len(rows) - wrong} of {len(rows)} are right"
        + (f"; not tried: {', '.join(missing)}" if missing else "")
    )
    return 1 if wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main())

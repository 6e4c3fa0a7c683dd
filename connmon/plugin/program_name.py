"""What the program of this process is called: a pure table (`name`), and what gathers the facts for it
(`facts`).

This page can be read from top to bottom: the facts, words that say nothing, what a server serves, command
lines, the rules of the tools (`RULES`), the table itself (`name`), and the edge where the process is looked
at.

- A program is called what a person would call it: a server is called what it serves, a tool is called by its
  name and its subcommand, everything else by its script or module.
- Two deployments on one host are two names. A name that is the same in every deployment (`app:app`,
  `main.py`) has the directory that it lies in before it: the innermost one that says something, so not `src`,
  `current`, or a release's number.
- Only words that are names of something end up in a program's name: a target, a module, a script, a
  subcommand. Never the value of any other option, nor an argument of a factory: it may be a password.
- A child process of multiprocessing, a reloader's child and a forked worker are called like their parent.
- `name()` is pure and receives every input. `facts()` reads only what is in memory already, imports nothing,
  and never raises.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from connmon import process_info
from connmon.interrupts import interrupted

#: The variable that names a program where no option of a URL does.
ENVIRONMENT: Final = "CONNMON_PROGRAM"
#: The longest name.
NAME_CHARACTERS: Final = 256
#: The variables that the table looks at.
VARIABLES: Final = (
    "CELERY_APP", "DJANGO_SETTINGS_MODULE", "FLASK_APP", "GUNICORN_CMD_ARGS", "QUART_APP", "UVICORN_APP",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known of a process."""

    argv: tuple[str, ...] = ()
    """sys.argv."""
    orig_argv: tuple[str, ...] = ()
    """sys.orig_argv: with the interpreter and its options."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """The variables of `VARIABLES` that are set."""
    main: str | None = None
    """`__main__.__spec__.name`."""
    main_file: str | None = None
    directory: str = ""
    """The working directory."""
    parent: tuple[str, ...] = ()
    """The parent's command line, for a child of multiprocessing whose own does not name the program."""
    modules: Mapping[str, str | None] = field(default_factory=dict)
    """The file of each loaded module that the table asks for; None: it has no file."""
    uwsgi: Mapping[str, tuple[str, ...]] | None = None
    """uWSGI's own options; None outside of uWSGI."""
    wsgi_app: str | None = None
    """The application that gunicorn's configuration file names."""
    script: str | None = None
    """The WSGI script that mod_wsgi serves."""
    process_group: str | None = None
    """mod_wsgi's name for this process; None outside of mod_wsgi."""


# --- Words that say nothing ---------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Modules and scripts that have the same name in many deployments.
_COMMON: Final = _words(
    """
    __init__ __main__ api app application apps asgi backend bot celery celery_app celeryapp celeryconfig
    cli conf config core django_project entrypoint handler index job jobs main manage mysite project run
    runner runserver script serve server service settings site src start task tasks web webapp website
    worker workers wsgi wsgi_app
    """
)
#: Directories that say nothing about the deployment in them.
_SILENT: Final = _words(
    """
    app apps application applications bin cgi-bin code current data deploy dist-packages env home htdocs
    html lib lib64 libexec live local opt public public_html python release releases repo root sbin
    scripts share site-packages sites source sources srv src system tmp usr var venv virtualenv
    virtualenvs work workspace www
    """
)
_SILENT_PATTERN: Final = re.compile(
    r"python[\d.]*|[vr]?\d[\d._TZ:-]*|[0-9a-f]{7,64}|\..*|tmp[a-z0-9_]{8}", re.IGNORECASE
)


def _deployment(directory: str) -> str:
    """Return the innermost directory that names the deployment, or "".

    One that names only a part of it (`api`, `web`) has the deployment before it: `shop/api`.
    """
    parts: list[str] = []
    for part in reversed(directory.split("/")):
        if part and part.lower() not in _SILENT and not _SILENT_PATTERN.fullmatch(part):
            parts.insert(0, part)
            if part.lower() not in _COMMON:
                break
    return "/".join(parts)


def _placed(name: str, stem: str, directory: str) -> str:
    """Return the name, with its deployment before it where `stem`, its first word, says nothing."""
    deployment = _deployment(directory) if stem.lower() in _COMMON else ""
    return f"{deployment}/{name}" if deployment else name


# --- What a server serves -----------------------------------------------------------------

_TARGET: Final = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)(?::([^\W\d]\w*(?:\.\w+)*)?(\(.*)?)?", re.DOTALL)
#: Packages whose program has another name than their module.
_KNOWN_MODULES: Final[Mapping[str, str]] = {
    "airflow.api_fastapi": "airflow api-server",
    "airflow.www": "airflow webserver",
    "mlflow.server": "mlflow server",
    "nova.wsgi.osapi_compute": "nova-api",
    "nova.wsgi.metadata": "nova-metadata",
}
#: WSGI scripts of OpenStack, and their programs.
_KNOWN_SCRIPTS: Final[Mapping[str, str]] = {
    "aodh-api": "aodh",
    "barbican-wsgi-api": "barbican",
    "glance-wsgi-api": "glance",
    "gnocchi-api": "gnocchi",
    "heat-wsgi-api": "heat",
    "heat-wsgi-api-cfn": "heat-cfn",
    "keystone-wsgi-admin": "keystone-admin",
    "keystone-wsgi-public": "keystone",
    "neutron-api": "neutron",
    "placement-api": "placement",
}


def served(target: str, facts: Facts) -> str:
    """Return an application's name, from the text that a server was given for it; "" where it is no
    application.

    That is what was typed: `shop.main:app`. `P.wsgi:application` is P, as are P.asgi and P.wsgi.api, and
    P.wsgi.X:application is P-X. A factory's arguments are left out. A file has its own rule (`served_file`).
    """
    if "://" in target:  # a database URL, with a password
        return ""
    if target.endswith(".py") or "/" in target:
        return served_file(target, facts)
    match = _TARGET.fullmatch(re.sub(r"\A(?:wsgi|asgi|asgi3):(?=\w+(?:\.\w+)*:)", "", target))
    if match is None:
        return ""
    module, name, call = match.groups()
    for known, program in _KNOWN_MODULES.items():
        if module == known or module.startswith(known + "."):
            return program
    first = module.partition(".")[0]
    if name in (None, "application") and not call and first.lower() not in _COMMON:
        package = re.fullmatch(r"([^.]+)\.(?:wsgi|asgi)(?:\.api)?", module)
        if package:
            return package[1]
        part = re.fullmatch(r"([^.]+)\.wsgi\.(\w+)", module)
        if part:
            return f"{part[1]}-{part[2]}"
    typed = module + (f":{name}" if name else "") + ("()" if call and name else "")
    return _placed(typed, first, _directory_of(first, facts))


def _directory_of(module: str, facts: Facts) -> str:
    """Return the directory that a module lies in: where it was loaded from, else the working directory."""
    file = facts.modules.get(module)
    if not file:
        return facts.directory
    directory, name = posixpath.split(posixpath.join(facts.directory, file))
    return posixpath.dirname(directory) if name.startswith("__init__.") else directory


def served_file(path: str, facts: Facts) -> str:
    """Return a WSGI script's name, without the suffix that every such name has."""
    path = posixpath.normpath(posixpath.join(facts.directory, path.partition(":")[0]))
    directory, name = posixpath.split(path)
    stem, suffix = posixpath.splitext(name)
    if name in _KNOWN_SCRIPTS:
        return _KNOWN_SCRIPTS[name]
    if stem in ("wsgi", "asgi"):
        return _deployment(directory) or name
    if suffix in (".wsgi", ""):
        name = re.sub(r"(?<=\w)[-_]wsgi\Z", "", stem)
    return _placed(name, stem, directory)


# --- Command lines ------------------------------------------------------------------------

_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}", re.IGNORECASE)
_MODULE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+|[^\W\d]\w*")


def positionals(arguments: Sequence[str], flags: str = "") -> Iterator[str]:
    """Yield the arguments that are neither an option nor its value.

    `flags` are the options that take no value; `--no-...` takes none either, all others do. A value does not
    look like an option.
    """
    plain = set(flags.split())
    takes = False
    for number, word in enumerate(arguments):
        if word == "--":
            yield from arguments[number + 1 :]
            return
        if word == "-" or not word.startswith("-"):
            if not takes:
                yield word
            takes = False
        elif word.startswith("--"):
            takes = "=" not in word and word not in plain and not word.startswith("--no-")
        else:
            takes = len(word) == 2 and word not in plain


def value_of(arguments: Sequence[str], *options: str) -> str | None:
    """Return the last value of an option that is written `-A x`, `-Ax`, `--app x` or `--app=x`."""
    value = None
    for word, following in zip(arguments, (*arguments[1:], None), strict=False):
        for option in options:
            if word == option:
                value = following
            elif option.startswith("--"):
                if word.startswith(f"{option}="):
                    value = word[len(option) + 1 :]
            elif word.startswith(option) and not word.startswith("--"):
                value = word[len(option) :]
    return value


def _served_of(arguments: Sequence[str], flags: str, facts: Facts) -> str:
    """Return the name of the first argument that is an application; "" where none is."""
    for word in positionals(arguments, flags):
        application = served(word, facts)
        if application:
            return application
    for word in arguments:  # after an option that takes no value, and that is not known here
        target = _TARGET.fullmatch(word)
        if target and target[2] and target[1] in facts.modules:
            return served(word, facts)
    return ""


Rule: TypeAlias = Callable[[str, "tuple[str, ...]", Facts], str]
"""From a tool's name and its arguments to the program's name; "" where they do not say it."""


def _server(flags: str) -> Rule:
    return lambda tool, arguments, facts: _served_of(arguments, flags, facts)


def _gunicorn(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
    return _served_of(arguments, _GUNICORN, facts) or served(facts.wsgi_app or "", facts)


def _uvicorn(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
    return _served_of(arguments, _UVICORN, facts) or served(facts.environ.get("UVICORN_APP", ""), facts)


_GUNICORN: Final = """
    -D --daemon -R -h -v --help --version --reload --preload --spew --check-config --print-config
    --capture-output --enable-stdio-inheritance --initgroups --log-syslog
    --disable-redirect-access-to-syslog --reuse-port --proxy-protocol --strip-header-spaces
    --permit-obsolete-folding --permit-unconventional-http-method --permit-unconventional-http-version
    --casefold-http-method --suppress-ragged-eofs --do-handshake-on-connect
"""
_UVICORN: Final = """
    --reload --access-log --use-colors --proxy-headers --server-header --date-header --factory
    --reset-contextvars --version --help
"""
_HYPERCORN: Final = "--debug --reload -D --daemon -h --help --version"
_DAPHNE: Final = "--proxy-headers -h --help --version"
_WAITRESS: Final = """
    --call --expose-tracebacks --asyncore-use-poll --log-untrusted-proxy-headers
    --clear-untrusted-proxy-headers --help
"""
_GRANIAN: Final = """
    --access-log --log --reload --factory --ws --opt --use-opt --process-name --respawn-failed-workers
    --ssl --version --help
"""

_CELERY: Final = _words("""
    beat call control events flower graph inspect list logtool migrate multi purge report result shell status
    worker
""")


def _celery(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
    """celery APP ROLE"""
    roles = (
        word for word in positionals(arguments, "-C --no-color -q --quiet --skip-checks -B --beat -E -D")
    )
    role = next((word for word in roles if word in _CELERY), "")
    app = value_of(arguments, "-A", "--app") or facts.environ.get("CELERY_APP", "")
    first = app.partition(":")[0]
    package = re.fullmatch(r"([^\W\d]\w*)\.(?:celery|celery_app|celeryapp)", first)
    if package and package[1].lower() not in _COMMON:
        app = package[1]
    return " ".join(part for part in ("celery", served(app, facts), role) if part)


def _flask(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
    """flask SUBCOMMAND APP"""
    variable = "QUART_APP" if tool == "quart" else "FLASK_APP"
    flags = "--debug --version --help"
    command = _subcommand(positionals(arguments, flags), None, ("db",))
    app = value_of(_before(arguments, command), "--app", "-A") or facts.environ.get(variable, "")
    application = served(app, facts) if app else _deployment(facts.directory)
    return " ".join(part for part in (tool, command, application) if part)


def _before(arguments: tuple[str, ...], command: str) -> tuple[str, ...]:
    first = command.partition(" ")[0]
    return arguments[: arguments.index(first)] if first in arguments else arguments


def _django(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
    """manage.py SUBCOMMAND PROJECT"""
    command = arguments[0] if arguments and _WORD.fullmatch(arguments[0]) else ""
    settings = value_of(arguments, "--settings") or facts.environ.get("DJANGO_SETTINGS_MODULE", "")
    project = settings.partition(".")[0] if _MODULE.fullmatch(settings) else ""
    if not project or project.lower() in _COMMON:
        script = facts.argv[0] if tool == "manage.py" and facts.argv else ""
        directory = posixpath.dirname(posixpath.join(facts.directory, script)) if script else facts.directory
        project = _deployment(posixpath.normpath(directory)) or project
    return " ".join(part for part in (tool, command, project) if part)


def _commands(known: str | None, groups: str = "", flags: str = "") -> Rule:
    """Return the rule of a tool whose program is named by its subcommand (two words in a group of them)."""
    return lambda tool, arguments, facts: " ".join(
        part
        for part in (
            tool,
            _subcommand(positionals(arguments, flags), known and known.split(), groups.split()),
        )
        if part
    )


def _subcommand(words: Iterator[str], known: Sequence[str] | None, groups: Sequence[str]) -> str:
    for word in words:
        if not _WORD.fullmatch(word):
            return ""
        if known is None or word in known:
            following = next(words, "") if word in groups else ""
            return f"{word} {following}" if _WORD.fullmatch(following) else word
    return ""


def _consumer(flags: str = "") -> Rule:
    """Return the rule of a tool whose program is named by the first module among its arguments."""

    def rule(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
        module = _served_of(arguments, flags, facts)
        return f"{tool} {module}" if module else tool

    return rule


def _pserve(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
    """pserve DEPLOYMENT"""
    for word in positionals(arguments, "--reload -q --quiet -v --verbose -b --browser"):
        if word.partition("#")[0].endswith(".ini"):
            return f"pserve {_deployment(posixpath.dirname(posixpath.join(facts.directory, word)))}".rstrip()
    return ""


def _runs(tool: str, arguments: tuple[str, ...], facts: Facts) -> str:
    """Return tool, subcommand and script: `streamlit run app.py`."""
    words = [*positionals(arguments, "--reload --proxy-headers --help --version --headless"), "", ""]
    if not _WORD.fullmatch(words[0]):
        return tool
    return f"{tool} {words[0]} {served_file(words[1], facts) if words[1].endswith('.py') else ''}".rstrip()


_AIRFLOW: Final = """
    api-server celery cheat-sheet config connections dag-processor dags db db-manager fab-db info jobs
    kerberos kubernetes plugins pools providers rotate-fernet-key scheduler serve-logs standalone
    sync-perm tasks triggerer users variables version webserver roles assets backfill edge teams
    internal-api
"""
_AIRFLOW_GROUPS: Final = """
    assets backfill celery config connections dags db db-manager edge fab-db jobs kubernetes pools
    providers roles tasks teams users variables
"""
_ALEMBIC: Final = """
    branches check current downgrade edit ensure_version heads history init list_templates merge
    revision show stamp upgrade
"""
_SUPERSET: Final = """
    compute-thumbnails db export-dashboards export-datasources fab import-dashboards import-datasources
    init load-examples re-encrypt-secrets run set-database-uri shell sync-tags test update-api-docs
    version
"""
_MLFLOW: Final = "artifacts db deployments experiments gateway gc models run runs server ui"
_OPENSTACK: Final = """
    api_db backup bootstrap cell_v2 cg check cluster contract current db db_sync db_version
    db_load_metadefs doctor downgrade expand fernet_rotate fernet_setup credential_migrate
    credential_rotate credential_setup host image_property libvirt limits mapping_engine migrate
    placement quota revision service shell stamp sync token_flush trust_flush update upgrade version
    volume volume_attachment
"""
_OPENSTACK_GROUPS: Final = """
    api_db backup cell_v2 cg cluster db host image_property libvirt limits placement quota service
    volume volume_attachment
"""
_OPENSTACK_FLAGS: Final = "-d --debug --nodebug -v --verbose --use-syslog --nouse-syslog --post-mortem"

#: By the name of the script or module that is run: its rule.
RULES: Final[Mapping[str, Rule]] = {
    "gunicorn": _gunicorn,
    "gunicorn3": _gunicorn,
    "gunicorn.app.wsgiapp": _gunicorn,
    "uvicorn": _uvicorn,
    "hypercorn": _server(_HYPERCORN),
    "daphne": _server(_DAPHNE),
    "daphne.cli": _server(_DAPHNE),
    "waitress": _server(_WAITRESS),
    "waitress-serve": _server(_WAITRESS),
    "granian": _server(_GRANIAN),
    "celery": _celery,
    "flask": _flask,
    "quart": _flask,
    "manage.py": _django,
    "manage": _django,
    "django-admin": _django,
    "dramatiq": _consumer("--use-spawn -v --verbose --skip-logging"),
    "arq": _consumer("--burst -v --verbose"),
    "huey_consumer": _consumer("-v --verbose -q --quiet -n --no-periodic -S --simple"),
    "rq": _commands("cron empty enqueue info requeue resume scheduler suspend worker worker-pool"),
    "airflow": _commands(_AIRFLOW, _AIRFLOW_GROUPS, "-v --verbose"),
    "alembic": _commands(_ALEMBIC, "", "--raiseerr -q --quiet --version"),
    "superset": _commands(_SUPERSET, "db fab"),
    "mlflow": _commands(_MLFLOW, "db"),
    "pserve": _pserve,
    "fastapi": _runs,
    "streamlit": _runs,
}
_MANAGE: Final = re.compile(r"[a-z]+(?:-[a-z]+)*-(?:db-)?manage")
_MANAGE_RULE: Final = _commands(_OPENSTACK, _OPENSTACK_GROUPS, _OPENSTACK_FLAGS)

#: Scripts and modules that people know by another name.
_USUAL_NAMES: Final[Mapping[str, str]] = {
    "py.test": "pytest",
    "ipykernel_launcher": "ipykernel",
    "django": "django-admin",
    "django.core.management": "django-admin",
    "django-admin.py": "django-admin",
    "huey_consumer.py": "huey_consumer",
    "huey.bin.huey_consumer": "huey_consumer",
    "alembic.config": "alembic",
    "rq.cli": "rq",
}
#: Modules that run another program in this process, and say so in sys.argv.
_LAUNCHERS: Final = _words(
    """
    cProfile coverage debugpy kernprof line_profiler memray pdb profile runpy scalene trace tracemalloc
    viztracer joblib.externals.loky.backend.popen_loky_posix loky.backend.popen_loky_posix
    """
)
#: The code that multiprocessing runs in a child, or in the server that forks it.
_CHILD: Final = re.compile(r"from (?:multiprocessing|billiard)[.\w]* import ")


# --- The table ----------------------------------------------------------------------------


def name(facts: Facts) -> str:
    """Return a process's name, of 1 to 256 characters."""
    if facts.uwsgi is not None:
        return clean(_uwsgi(facts.uwsgi, facts)) or "uwsgi"
    if facts.process_group is not None:
        return clean(_mod_wsgi(facts)) or "mod_wsgi"
    if _is_xdist_worker(facts):
        return "pytest"
    tool, script = _tool(facts)
    program = _USUAL_NAMES.get(tool, tool)
    rule = RULES.get(program) or (_MANAGE_RULE if _MANAGE.fullmatch(program) else None)
    if rule is not None:
        return clean(rule(program, facts.argv[1:], facts)) or clean(program)
    path = script or facts.main_file
    if path is None or (script is not None and not program.endswith(".py")):
        return clean(program) or "python"
    path = posixpath.normpath(posixpath.join(facts.directory, path))
    if script is None:  # up to the directory that the module's first package lies in
        path = path.removesuffix("/__main__.py")
        for _ in range(program.count(".")):
            path = posixpath.dirname(path)
    return clean(_placed(program, program.partition(".")[0], posixpath.dirname(path))) or "python"


def is_child(facts: Facts) -> bool:
    """Return whether multiprocessing has started this interpreter."""
    return any(_CHILD.match(word) for word in facts.orig_argv) or "--multiprocessing-fork" in facts.orig_argv


def wants_parent(facts: Facts) -> bool:
    """Return whether only the parent's command line says what this process is."""
    first = facts.argv[0] if facts.argv else ""
    return is_child(facts) and (first in ("", "-c", "-m") or first.endswith("/__main__.py"))


def _is_xdist_worker(facts: Facts) -> bool:
    return facts.argv[:1] == ("-c",) and "xdist" in facts.modules and "execnet" in facts.modules


def _tool(facts: Facts) -> tuple[str, str | None]:
    """Return what is run, and the path of its script; None: it is a module."""
    argv = facts.argv or ("",)
    main = facts.main
    if main and main != "__main__" and main.removesuffix(".__main__") not in _LAUNCHERS:
        # Unlike orig_argv this is right in the children of multiprocessing too.
        return main.removesuffix(".__main__"), None
    if wants_parent(facts) and facts.parent:
        module = module_asked_for(facts.parent)
        if module:
            return module.removesuffix(".__main__"), None
        if argv[0] in ("", "-c", "-m"):
            script = next(iter(_after_interpreter(facts.parent)), "-c")
            return _script(script, facts)
    asked = module_asked_for(facts.orig_argv)
    if argv[0] == "-m":  # not known yet: the module's own package is just being imported
        return (asked or "python"), None
    if asked and asked not in _LAUNCHERS and argv[0].endswith(_files_of(asked)):
        return asked, None  # another module has taken the place of __main__, as a notebook's kernel does
    return _script(argv[0], facts)


def _files_of(module: str) -> tuple[str, str]:
    path = "/" + module.replace(".", "/")
    return f"{path}.py", f"{path}/__main__.py"


def _script(script: str, facts: Facts) -> tuple[str, str | None]:
    if script == "-" or re.fullmatch(r"/dev/stdin|/(dev|proc/\w+)/fd/\d+", script):
        return "python", None
    if script == "-c":
        return "python -c", None
    directory, name = posixpath.split(script.rstrip("/"))
    if name in ("__main__.py", ".", ".."):  # a directory that is run; its name is the program's
        path = directory if name == "__main__.py" else script
        path = posixpath.normpath(posixpath.join(facts.directory, path))
        return (posixpath.basename(path) or name), path
    return (name or "python"), script


def _after_interpreter(command: Sequence[str]) -> Sequence[str]:
    """Return a command line without the interpreter and its options: from the script or -c on."""
    words = list(command[1:])
    while words:
        word = words.pop(0)
        if word == "--check-hash-based-pycs" or re.fullmatch(r"-[^cmWX-]*[WX]", word):
            words[:1] = []
        elif re.fullmatch(r"-[^WX-]*c.*", word, re.DOTALL):
            return ["-c", *words]
        elif not word.startswith("-") or word == "-":
            return [word, *words]
    return []


def module_asked_for(argv: Sequence[str]) -> str | None:
    """Return x of `python ... -m x ...`."""
    words = iter(argv[1:])
    for word in words:
        if word == "--check-hash-based-pycs":
            next(words, None)
        elif word.startswith("-") and not word.startswith("--"):
            # Letters without a value may be joined, and the last may have its value behind it.
            flag = re.fullmatch(r"-[^cmWX]*([cmWX])(.*)", word, re.DOTALL)
            value = flag and (flag[2] or next(words, None))
            if flag and flag[1] in "cm":
                return value if flag[1] == "m" else None
        else:
            return None
    return None


def _uwsgi(options: Mapping[str, tuple[str, ...]], facts: Facts) -> str:
    """Return what uWSGI serves; where that says nothing, the name of its configuration file."""
    callables = options.get("callable", ())
    targets = []
    for key in ("module", "wsgi", "w"):
        for target in options.get(key, ()):
            suffix = f":{callables[0]}" if callables and ":" not in target else ""
            targets.append(served(target + suffix, facts))
    for key in ("wsgi-file", "file"):
        targets += [served_file(path, facts) for path in options.get(key, ())]
    for mount in options.get("mount", ()):
        targets.append(served(mount.partition("=")[2], facts))
    names = ",".join(dict.fromkeys(target for target in targets if target))
    first = re.split(r"[.:,]", names)[0].lower()
    if names and first not in _COMMON:
        return names
    for key in ("ini", "ini-paste", "paste", "yaml", "yml", "json", "xml"):
        for path in options.get(key, ()):
            stem = posixpath.splitext(posixpath.basename(path.partition(":")[0]))[0]
            if stem and stem.lower() not in (*_COMMON, "uwsgi"):
                return f"{stem}/{names}" if names else stem
    return names


def _mod_wsgi(facts: Facts) -> str:
    if facts.script:
        return served(facts.script, facts)
    group = facts.process_group or ""
    return "" if re.fullmatch(r"%\{\w+\}|.*:\d+", group) else group


def clean(text: str) -> str:
    """Return the text as the wire and a terminal accept it: no lone surrogates, nothing unprintable."""
    text = text.encode("utf-8", "replace").decode()[: 4 * NAME_CHARACTERS]
    return "".join(char if char.isprintable() else "?" for char in text.strip())[:NAME_CHARACTERS].strip()


# --- The edge -----------------------------------------------------------------------------

_first_name: list[str] = []
"""What the table returned first: a process, and its forks, keep one name for their lives."""


def program_name() -> str:
    """Return the name of this process's program, where no option of the URL gives it.

    That is $CONNMON_PROGRAM, else what the table says. Never raises.
    """
    chosen = clean(os.environ.get(ENVIRONMENT) or "")
    if chosen:
        return chosen
    if not _first_name:
        _first_name.append(name(facts()))
    return _first_name[0]


def facts() -> Facts:
    """Gather what is known of this process. What cannot be read is left out."""
    argv = _texts(getattr(sys, "argv", None))
    main = sys.modules.get("__main__")
    environ = {key: os.environ[key] for key in VARIABLES if key in os.environ}
    mod_wsgi = sys.modules.get("mod_wsgi")
    group = getattr(mod_wsgi, "process_group", None)
    known = Facts(
        argv=argv,
        orig_argv=_texts(sys.orig_argv),
        environ=environ,
        main=_text(getattr(getattr(main, "__spec__", None), "name", None)),
        main_file=_text(getattr(main, "__file__", None)),
        directory=_try(os.getcwd) or "",
        modules=_modules(argv),
        uwsgi=_try(_uwsgi_options),
        wsgi_app=_try(lambda: _wsgi_app(argv, environ)),
        script=_try(_script_of_mod_wsgi) if mod_wsgi is not None else None,
        process_group=group if isinstance(group, str) else None,
    )
    if wants_parent(known):
        process = sys.modules.get("multiprocessing.process")
        parent = _try(lambda: process.parent_process().pid) if process is not None else None
        return replace(known, parent=_texts(process_info.command(parent or os.getppid())))
    return known


def _modules(argv: Sequence[str]) -> dict[str, str | None]:
    wanted = {*_COMMON, "xdist", "execnet"}
    for word in argv[1:]:
        target = _TARGET.fullmatch(word)
        if target:
            wanted.add(target[1])
            wanted.add(target[1].partition(".")[0])
    return {
        module: _text(getattr(sys.modules[module], "__file__", None))
        for module in wanted
        if module in sys.modules
    }


def _wsgi_app(argv: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """Return `wsgi_app` of gunicorn's configuration file, which it has loaded as a module."""
    split = getattr(sys.modules.get("shlex"), "split", str.split)  # gunicorn has imported it
    arguments = [*split(environ.get("GUNICORN_CMD_ARGS", "")), *argv[1:]]
    file = value_of(arguments, "-c", "--config") or ""
    module = file.removeprefix("python:") if file.startswith("python:") else "__config__"
    return _text(getattr(sys.modules.get(module), "wsgi_app", None))


def _uwsgi_options() -> dict[str, tuple[str, ...]] | None:
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if not isinstance(options, dict):
        return None
    texts = {}
    for key, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        texts[_decoded(key)] = tuple(_decoded(one) for one in values if isinstance(one, str | bytes))
    return texts


def _script_of_mod_wsgi() -> str | None:
    """Return the script that mod_wsgi has loaded as a module; mod_wsgi-express's own loads another."""
    for name in list(sys.modules):
        if name.startswith("_mod_wsgi_"):
            module = sys.modules[name]
            return _text(getattr(module, "entry_point", None)) or _text(getattr(module, "__file__", None))
    return None


def _decoded(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(values: object) -> tuple[str, ...]:
    return (
        tuple(value for value in values if isinstance(value, str)) if isinstance(values, list | tuple) else ()
    )


def _try(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:
        if interrupted(error):
            raise
        return None

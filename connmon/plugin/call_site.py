"""Which frame of a stack is the call site: the line of the application that an operator wants to see.

This page can be read from top to bottom: what a frame is (`FrameKinds`), code that only hands on a call
(`hands_on`), which frame of a stack it is then (`find`), and the packages of the application
(`own_packages`).

Rules:

1. It is the first frame, from the innermost, that is the application's. Frames of SQLAlchemy, of a driver, of
   a library between these and the application (`PLUMBING`), and of Python's own library are not, by the real
   directories of these packages: a directory that is merely called sqlalchemy is the application's.
2. Nor is a frame that only hands on a call: a decorator's wrapper in the line where it calls `f(*args,
   **kwargs)`, a method where it calls the one that it overrides (`super().save(...)` in `save`), or a
   function that does nothing but `return other(its, arguments)`. The last counts where it calls SQLAlchemy:
   then it is the query. A generator of @contextmanager hands on too: the `with` statement that enters it
   counts.
3. The application is the packages of `connmon_project`. Without that option it is what lies outside of
   site-packages, and the package that the process was started with. Another package in site-packages is a
   library. It counts where nothing of the application called it, as far as the server (`SERVERS`), the end of
   the stack or `FRAMES_BEYOND` more frames.
4. Where nothing counts, the innermost frame of the plumbing does.
5. What a frame is depends on its code object alone, and is kept by the id() of that: code objects compare by
   value, and hashing one is slower than all the rest. A weak reference removes the entry when the code object
   goes, before its id can be used again.

No locks, and nothing here raises, whatever an application's modules look like. Kinds are plain numbers and
module constants: they are compared for each frame of each noted checkout.
"""

from __future__ import annotations

import contextlib
import dis
import os
import re
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, TypeAlias

import sqlalchemy

from connmon.interrupts import interrupted

Place: TypeAlias = "tuple[CodeType, int]"
"""Where a frame is: code object and line number."""
MoreStacks: TypeAlias = "Callable[[], list[FrameType | None]]"
"""Returns the innermost frames of the stacks further out. No generator: an exception that is raised into one
when it is closed goes to nobody."""

# --- What a frame is ------------------------------------------------------------------------

APPLICATION: Final = 0
LIBRARY: Final = 1
HANDS_ON: Final = 2
"""Hands on a call in some lines; see `FrameKinds.handing_on`."""
SERVER: Final = 3
PLUMBING_FRAME: Final = 4
MADE: Final = 5
"""Compiled from no file."""
SQLALCHEMY: Final = 6
BOUNDARY: Final = 7
"""A function of SQLAlchemy that calls the driver."""
ACQUIRES: Final = 8
"""SQLAlchemy's pool, at a checkout."""
WAITS: Final = 9
"""SQLAlchemy's pool, where it waits until a connection comes back."""
AWAITS: Final = 10
"""SQLAlchemy's way from a greenlet to asyncio."""
DRIVER: Final = 11
PYTHON: Final = 12
"""Python's own library."""
OURS: Final = 13

DRIVERS: Final = (
    "pymysql", "MySQLdb", "mysql.connector", "mariadb", "aiomysql", "asyncmy", "psycopg2", "psycopg",
    "psycopg_pool", "asyncpg", "pg8000", "sqlite3", "aiosqlite", "sqlcipher3", "oracledb", "cx_Oracle",
    "pyodbc", "aioodbc", "pymssql",
)  # fmt: skip
#: Between the application and SQLAlchemy, or around the application's functions.
PLUMBING: Final = (
    "oslo_db", "oslo_versionedobjects", "osprofiler", "neutron_lib.db", "neutron.objects.base",
    "neutron.objects.db", "flask_sqlalchemy", "flask_migrate", "flask_sqlalchemy_lite", "sqlmodel",
    "alembic", "sqlalchemy_utils", "sqlalchemy_continuum", "advanced_alchemy", "zope.sqlalchemy",
    "pandas", "dogpile", "futurist", "tenacity", "retrying", "backoff", "wrapt", "decorator",
    "debtcollector", "greenlet", "psycogreen", "anyio", "asgiref", "sentry_sdk", "opentelemetry",
    "newrelic", "ddtrace", "elasticapm", "sqlalchemy_collectd",
)  # fmt: skip
#: They call the application: frames further out have nothing to do with the query.
SERVERS: Final = (
    "gunicorn", "uvicorn", "hypercorn", "daphne", "waitress", "cheroot", "uwsgi", "eventlet", "gevent",
    "celery", "billiard", "kombu", "flask", "werkzeug", "starlette", "fastapi", "django", "webob",
    "paste", "routes", "pecan", "oslo_service", "oslo_messaging", "oslo_middleware", "cotyledon",
    "tornado", "aiohttp", "twisted", "apscheduler", "rq", "dramatiq", "huey", "click", "typer",
    "pytest", "_pytest", "pluggy", "ipykernel", "IPython",
)  # fmt: skip

_NOBODY: Final = -1
"""Stands for the kind of what the innermost frame calls."""
_QUERY: Final = frozenset({_NOBODY, MADE, SQLALCHEMY, BOUNDARY, ACQUIRES, WAITS, AWAITS, DRIVER})

_CALLS_DRIVER: Final = frozenset(
    {
        "execute", "executemany", "callproc", "fetchone", "fetchmany", "fetchall", "nextset", "commit",
        "rollback", "ping", "await_", "close", "tpc_begin", "tpc_commit", "tpc_rollback", "tpc_prepare",
        "tpc_recover", "begin",
    }
)  # fmt: skip
_PASSING: Final = frozenset(
    {
        "RESUME", "NOP", "CACHE", "EXTENDED_ARG", "COPY_FREE_VARS", "MAKE_CELL", "PUSH_NULL", "PRECALL",
        "KW_NAMES", "LOAD_ATTR", "LOAD_METHOD", "BUILD_MAP", "DICT_MERGE", "BUILD_LIST", "LIST_EXTEND",
        "LIST_TO_TUPLE", "CALL_INTRINSIC_1", "RETURN_VALUE", "RETURN_GENERATOR", "GEN_START", "POP_TOP",
        "GET_AWAITABLE", "SEND", "YIELD_VALUE", "YIELD_FROM", "JUMP_BACKWARD_NO_INTERRUPT",
        "JUMP_BACKWARD", "END_SEND", "CLEANUP_THROW", "RERAISE", "NOT_TAKEN",
    }
)  # fmt: skip
_GENERATOR: Final = 0x20 | 0x200  # synchronous and asynchronous ones
_ENTERING: Final = frozenset({"__enter__", "__exit__", "__aenter__", "__aexit__"})
_CONTEXTLIB: Final = contextlib.__file__
_VARIABLE: Final = 0x04 | 0x08  # *args and **kwargs
_LARGEST_BYTECODE_BYTES: Final = 200
_SEP: Final = os.sep
_HERE: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_SQLALCHEMY: Final = os.path.join(os.path.dirname(sqlalchemy.__file__), "")
#: Where Python's own library is.
PYTHON_DIRECTORIES: Final = tuple(
    {os.path.join(path, "") for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))}
)
_SCRIPTS: Final = frozenset(
    {os.path.dirname(sys.executable or ""), sysconfig.get_path("scripts") or "", "/usr/bin", "/usr/local/bin"}
)
#: In the paths of installed packages.
INSTALLED_MARKS: Final = (f"{_SEP}site-packages{_SEP}", f"{_SEP}dist-packages{_SEP}")
_TYPED_IN: Final = ("<stdin", "<console", "<ipython")
#: How many frames further out than a library the application is searched for.
FRAMES_BEYOND: Final = 30
#: The most code objects that are known; then all are forgotten.
CODE_OBJECTS: Final = 20_000


class FrameKinds:
    """The kinds of all code objects seen so far, for one set of the application's packages."""

    def __init__(
        self,
        project: frozenset[str] = frozenset(),
        own: frozenset[str] = frozenset(),
        code_objects: int = CODE_OBJECTS,
    ) -> None:
        """`project`: the packages of `connmon_project`. `own`: the package that the process was started with.

        `code_objects`: the most that are kept.
        """
        self.project = project
        self.own = own
        self._limit = code_objects
        self.known: dict[int, int] = {}
        self.lines: dict[int, tuple[HandsOn, int]] = {}
        """By id of code that hands on a call: where it does, and what kind it is elsewhere."""
        self._references: dict[int, weakref.ref[CodeType]] = {}

    def of(self, code: CodeType) -> int:
        """Return the kind of this code object."""
        key = id(code)
        kind = self.known.get(key)
        if kind is not None:
            return kind
        try:
            kind = self._kind(code)
            lines = hands_on(code) if kind <= LIBRARY else None
        except Exception as error:
            if interrupted(error):
                raise
            kind, lines = PLUMBING_FRAME, None
        if len(self.known) >= self._limit:
            self._clear()
        known, all_lines, references = self.known, self.lines, self._references

        def ended(_: object, key: int = key) -> None:
            known.pop(key, None)
            all_lines.pop(key, None)
            references.pop(key, None)

        references[key] = weakref.ref(code, ended)
        if lines is not None:
            all_lines[key] = lines, kind
            kind = HANDS_ON
        known[key] = kind
        return kind

    def handing_on(self, code: CodeType, number: int, inner: int) -> int:
        """Return the kind of a HANDS_ON frame in this line; `inner` is the kind of the frame it calls."""
        where, kind = self.lines.get(id(code), (None, PLUMBING_FRAME))
        if where is None or number not in where.lines or (inner in _QUERY and not where.always):
            return kind
        return PLUMBING_FRAME

    def _clear(self) -> None:
        # New dicts, not the same emptied: another thread may be about to write to these.
        self.known, self.lines, self._references = {}, {}, {}

    def _kind(self, code: CodeType) -> int:
        path = code.co_filename
        if path.startswith("<"):
            return APPLICATION if path.startswith(_TYPED_IN) else MADE
        if path.startswith(_SQLALCHEMY):
            return _of_sqlalchemy(code, path[len(_SQLALCHEMY) :])
        if path.startswith(_HERE):
            return OURS
        if _in_any(DRIVERS, path):
            return DRIVER
        # The longest matching name decides: an application may contain plumbing, and plumbing an application.
        application = _longest(self.project or self.own, path, self.project)
        plumbing, server = _longest(PLUMBING, path), _longest(SERVERS, path)
        if application and application >= max(plumbing, server):
            return APPLICATION
        if plumbing or server:
            return PLUMBING_FRAME if plumbing >= server else SERVER
        if _installed(path):
            return LIBRARY
        if path.startswith(PYTHON_DIRECTORIES):
            return PYTHON
        if code.co_name == "<module>" and _made_by_pip(path):
            return PLUMBING_FRAME
        return LIBRARY if self.project else APPLICATION


def _of_sqlalchemy(code: CodeType, path: str) -> int:
    path = path.replace("\\", "/")
    if path == "pool/base.py" and code.co_name == "_checkout":
        return ACQUIRES
    if path == "util/queue.py" and code.co_name == "get":
        return WAITS
    if path.startswith("util/") and code.co_name in (
        "await_only",
        "await_fallback",
        "await_",
        "greenlet_spawn",
    ):
        return AWAITS
    calling = path.startswith(("dialects/", "connectors/")) or path in (
        "engine/default.py",
        "engine/cursor.py",
    )
    if calling and not _CALLS_DRIVER.isdisjoint(code.co_names):
        return BOUNDARY
    return SQLALCHEMY


def _in_any(names: Iterable[str], path: str) -> bool:
    return any(name.partition(".")[0] in path and _in(name, path) for name in names)


def _in(name: str, path: str) -> bool:
    """Return whether the file belongs to the imported package or module of this name."""
    module = sys.modules.get(name)
    if module is None:
        return False
    try:  # not getattr, which would import a lazy module
        names = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return False
    file, paths = names.get("__file__"), names.get("__path__")
    if paths is None:
        return isinstance(file, str) and path == file
    if isinstance(file, str):
        return path.startswith(os.path.join(os.path.dirname(file), ""))
    return any(isinstance(root, str) and path.startswith(os.path.join(root, "")) for root in list(paths))


def _longest(names: Iterable[str], path: str, by_path: Iterable[str] = ()) -> int:
    """Return the length of the longest of these package names that the file belongs to; 0: none."""
    lengths = [len(name) for name in names if name.partition(".")[0] in path and _in(name, path)]
    return max(lengths or (len(name) for name in by_path if _below(name, path)), default=0)


def below(path: str, directories: Iterable[Any]) -> str | None:
    """Return the path below the longest of these directories that it is in. None: it is in none."""
    roots = [os.path.join(root, "") for root in directories if root and isinstance(root, str)]
    longest = max((len(root) for root in roots if path.startswith(root)), default=0)
    return path[longest:] if longest else None


def _below(name: str, path: str) -> bool:
    """Return whether the file has this name below the directory that it is imported from."""
    relative = below(path, sys.path)
    if relative is None:
        return False
    return (os.path.splitext(relative)[0].replace(_SEP, ".") + ".").startswith(f"{name}.")


def _made_by_pip(path: str) -> bool:
    """Return whether this file is a script that does nothing but call an entry point."""
    if path.endswith(".py"):
        return False
    # An environment can be used by a symbolic link (/opt/shop/current), which its Python does not know.
    directory = os.path.dirname(path)
    return directory in _SCRIPTS or os.path.realpath(directory) in map(
        os.path.realpath, filter(None, _SCRIPTS)
    )


def _installed(path: str) -> bool:
    return any(part in path for part in INSTALLED_MARKS)


# --- Code that hands on a call --------------------------------------------------------------


class HandsOn(NamedTuple):
    """Where a function only hands on the call that it received."""

    lines: frozenset[int]
    always: bool
    """Whether also where it calls SQLAlchemy."""


def hands_on(code: CodeType) -> HandsOn | None:
    """Return where this function only hands on a call. None: nowhere."""
    wrapper = code.co_flags & _VARIABLE == _VARIABLE
    overrides = "super" in code.co_names and code.co_name in code.co_names
    if not (wrapper or overrides) and (len(code.co_code) > _LARGEST_BYTECODE_BYTES or not _parameters(code)):
        return None
    instructions = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    if _passes_through(code, instructions):
        lines = frozenset(number for _, _, number in code.co_lines() if number is not None)
        return HandsOn(lines, wrapper and bool(_calls_with_all(code, instructions)))
    lines = _calls_with_all(code, instructions) if wrapper else frozenset()
    lines |= _calls_overridden(code, instructions) if overrides else frozenset()
    return HandsOn(lines, True) if lines else None


def _parameters(code: CodeType) -> tuple[str, ...]:
    number = code.co_argcount + code.co_kwonlyargcount
    number += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return code.co_varnames[:number]


def _loaded(instruction: dis.Instruction) -> tuple[str, ...]:
    """Return the names of the local variables that the instruction loads."""
    if not instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF")):
        return ()
    value = instruction.argval
    return value if isinstance(value, tuple) else (str(value),)


def _calls(opname: str) -> bool:
    return opname == "CALL" or (opname.startswith("CALL_") and not opname.startswith("CALL_INTRINSIC"))


def _calls_with_all(code: CodeType, instructions: Sequence[dis.Instruction]) -> frozenset[int]:
    """Return the lines in which a function calls another one with its own *args and **kwargs."""
    starred = set(_parameters(code)[-2:])
    lines = set()
    loaded: set[str] = set()
    for instruction in instructions:
        name = instruction.opname
        if name == "CALL_FUNCTION_EX":
            if starred <= loaded:
                lines.add(_line_of(code, instruction.offset))
            loaded = set()
        elif _calls(name) or name.startswith(("STORE", "JUMP", "POP_JUMP", "RETURN")):
            loaded = set()
        else:
            loaded.update(_loaded(instruction))
    return frozenset(number for number in lines if number is not None)


def _calls_overridden(code: CodeType, instructions: Sequence[dis.Instruction]) -> frozenset[int]:
    """Return the lines in which a method calls the `super()` method that it overrides."""
    lines = set()
    start: int | None = None
    for instruction in instructions:
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval == "super":
            start = _line_of(code, instruction.offset)
        elif start is not None and instruction.argval == code.co_name:
            lines |= {start, _line_of(code, instruction.offset)}
            start = None
    return frozenset(number for number in lines if number is not None)


def _line_of(code: CodeType, offset: int) -> int | None:
    return next((line for start, end, line in code.co_lines() if start <= offset < end), None)


def _passes_through(code: CodeType, instructions: Sequence[dis.Instruction]) -> bool:
    """Return whether a function only returns what another one makes of its arguments.

    It has one call, with all of its own arguments and no others: `return self.x.list(context, filters)`.
    """
    parameters = _parameters(code)
    loaded: set[str] = set()
    calls = returns = 0
    outside = False  # whether what it calls is not an attribute of an argument
    before = ""
    for instruction in instructions:
        name = instruction.opname
        if names := _loaded(instruction):
            loaded.update(local for local in names if local in parameters)
            if any(local not in parameters for local in names):
                if name.startswith("LOAD_FAST") or calls or loaded:
                    return False
                outside = True
        elif name in ("LOAD_GLOBAL", "LOAD_NAME"):
            if loaded or calls:
                return False
            outside = True
        elif name == "LOAD_CONST":
            value = instruction.argval
            if not (value is None or (isinstance(value, tuple) and all(isinstance(v, str) for v in value))):
                return False
        elif _calls(name):
            calls += 1
        elif name not in _PASSING or (name == "RETURN_VALUE" and before == "LOAD_CONST"):
            return False
        before = name
        returns += name == "RETURN_VALUE"
    return calls == returns == 1 and set(parameters) <= loaded and len(loaded) + outside >= 2


# --- Which frame ----------------------------------------------------------------------------


def find(frame: FrameType | None, kinds: FrameKinds, more_stacks: MoreStacks = list) -> Place | None:
    """Return the call site on the stack of this frame, going on with those of `more_stacks`."""
    known = kinds.known
    plumbing: Place | None = None
    made: Place | None = None
    others: Iterator[FrameType | None] | None = None
    inner = _NOBODY
    while True:
        while frame is not None:
            code = frame.f_code
            try:
                kind = known[id(code)]
            except KeyError:
                kind = kinds.of(code)
                known = kinds.known
            if kind > MADE:
                if made is not None and kind == SQLALCHEMY:
                    made = None
            else:
                if kind == HANDS_ON:
                    kind = kinds.handing_on(code, frame.f_lineno or 0, inner)
                if kind == APPLICATION:
                    if not _entered(code, frame.f_back):
                        return code, frame.f_lineno or 0
                    kind = PLUMBING_FRAME
                if kind == LIBRARY:
                    library = code, frame.f_lineno or 0
                    return _beyond(frame, kinds, others, more_stacks) or library
                if kind == SERVER:
                    if plumbing is not None:
                        return plumbing
                # Finding a frame's line number is slower than all the rest.
                elif kind == PLUMBING_FRAME:
                    plumbing = plumbing or (code, frame.f_lineno or 0)
                else:
                    made = made or (code, frame.f_lineno or 0)
            inner = kind
            frame = frame.f_back
        if others is None:
            others = iter(more_stacks())
        try:
            frame = next(others)
        except StopIteration:
            return plumbing or made


def _entered(code: CodeType, caller: FrameType | None) -> bool:
    """Return whether this is a generator of @contextmanager, whose `with` statement is the call site."""
    return bool(code.co_flags & _GENERATOR) and caller is not None and _enters(caller.f_code)


def _enters(code: CodeType) -> bool:
    """Return whether this is contextlib's code that runs a generator of @contextmanager."""
    return code.co_name in _ENTERING and code.co_filename == _CONTEXTLIB


def _beyond(
    frame: FrameType | None,
    kinds: FrameKinds,
    others: Iterator[FrameType | None] | None,
    more_stacks: MoreStacks,
) -> Place | None:
    """Return the place where the application called the library of this frame. None: it did not."""
    known = kinds.known
    inner = LIBRARY
    for _ in range(FRAMES_BEYOND):
        frame = frame.f_back if frame is not None else None
        while frame is None:
            if others is None:
                others = iter(more_stacks())
            try:
                frame = next(others)
            except StopIteration:
                return None
        code = frame.f_code
        try:
            kind = known[id(code)]
        except KeyError:
            kind = kinds.of(code)
            known = kinds.known
        if kind < PLUMBING_FRAME and kind != LIBRARY:
            if kind == HANDS_ON:
                kind = kinds.handing_on(code, frame.f_lineno or 0, inner)
            if kind == APPLICATION:
                if not _entered(code, frame.f_back):
                    return code, frame.f_lineno or 0
                kind = PLUMBING_FRAME
            if kind == SERVER:
                return None
        inner = kind
    return None


def find_in(stack: Iterable[Place], kinds: FrameKinds) -> Place | None:
    """Return the call site among these places, the innermost first: what `find` does, without frames."""
    library = plumbing = made = None
    inner = _NOBODY
    left = FRAMES_BEYOND
    places = list(stack)
    for at, (code, number) in enumerate(places):
        kind = kinds.of(code)
        if kind == HANDS_ON:
            kind = kinds.handing_on(code, number, inner)
        if library is not None:
            left -= 1
        if left < 0:
            return library
        if kind == APPLICATION:
            called = at + 1 < len(places) and _enters(places[at + 1][0])
            if not code.co_flags & _GENERATOR or not called:
                return code, number
            kind = PLUMBING_FRAME
        if kind == LIBRARY:
            library = library or (code, number)
        elif kind == SERVER:
            if library is not None or plumbing is not None:
                return library or plumbing
        elif kind == PLUMBING_FRAME:
            plumbing = plumbing or (code, number)
        elif kind == MADE:
            made = made or (code, number)
        elif kind == SQLALCHEMY:
            made = None
        inner = kind
    return library or plumbing or made


def above_driver(stack: Sequence[Place], kinds: FrameKinds) -> Sequence[Place]:
    """Return the stack without the driver's frames, also of a driver that is not in `DRIVERS`."""
    for position, (code, _) in enumerate(stack):
        kind = kinds.of(code)
        if kind == BOUNDARY:
            return stack[position:]
        if kind in (SQLALCHEMY, ACQUIRES, WAITS):
            break
    return stack


def in_database(stack: Sequence[Place], kinds: FrameKinds, taker: CodeType | None = None) -> bool:
    """Return whether the driver works on this stack, with a connection that is held already.

    `taker` is the function that took the connection: frames further out have nothing to do with it.
    """
    working = None
    for code, _ in stack:
        kind = kinds.of(code)
        if kind in (ACQUIRES, WAITS):  # it has no connection yet
            return False
        if working is None and kind not in (PYTHON, MADE, AWAITS):
            if kind in (DRIVER, BOUNDARY):
                working = True
            elif kind == SQLALCHEMY:
                return False
        if code is taker:
            break
    return bool(working)


def waits(stack: Iterable[Place], kinds: FrameKinds) -> bool:
    """Return whether a pool of SQLAlchemy waits on this stack for a connection to be returned."""
    for code, _ in stack:
        kind = kinds.of(code)
        if kind == WAITS:
            return True
        if kind in (APPLICATION, LIBRARY, HANDS_ON, BOUNDARY, ACQUIRES):
            return False
    return False


def calls_driver(stack: Iterable[Place], kinds: FrameKinds) -> bool:
    """Return whether SQLAlchemy calls a driver on this stack, with a connection that is held already."""
    calls = False
    for code, _ in stack:
        kind = kinds.of(code)
        if kind == ACQUIRES:
            return False
        if not calls and kind not in (PYTHON, MADE, AWAITS, DRIVER):
            if kind != BOUNDARY:
                return False
            calls = True
    return calls


# --- The application's packages -------------------------------------------------------------

_TARGET: Final = re.compile(r"([A-Za-z_]\w*)(\.\w+)*:[A-Za-z_]\w*(\(.*\))?\Z")
_DOTTED: Final = re.compile(r"([A-Za-z_]\w*)(\.\w+)+\Z")
_APP_OPTIONS: Final = ("-A", "--app", "--module", "--wsgi")
_NOT_OWN: Final = frozenset(name.partition(".")[0] for name in (*PLUMBING, *SERVERS, *DRIVERS)) | {
    "__main__", "sqlalchemy", "connmon", "neutron_lib",
}  # fmt: skip


def own_packages(
    argv: Sequence[str],
    main: Mapping[str, Any],
    environ: Mapping[str, str],
    modules: Iterable[str] = (),
) -> frozenset[str]:
    """Return the top-level packages that a process was started with; empty where that is not known.

    `main` are the attributes of its module `__main__`: a script that pip made has the entry point among them.
    """
    packages: set[str] = set()
    spec = main.get("__spec__")
    name = getattr(spec, "name", None)
    if isinstance(name, str):
        packages.add(name.partition(".")[0])
    elif _made_by_pip(str(main.get("__file__"))):
        for value in list(main.values()):
            module = getattr(value, "__module__", None) if callable(value) else None
            if isinstance(module, str):
                packages.add(module.partition(".")[0])
    servers = packages & _NOT_OWN
    packages -= _NOT_OWN | sys.stdlib_module_names
    if servers or not packages:
        packages |= _served(argv[1:], environ, frozenset(modules)) - _NOT_OWN
    return frozenset(packages)


def _served(arguments: Sequence[str], environ: Mapping[str, str], modules: frozenset[str]) -> set[str]:
    targets = {environ[key] for key in ("FLASK_APP", "CELERY_APP") if environ.get(key)}
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in _APP_OPTIONS:
            targets.update([value] if equals else arguments[position + 1 : position + 2])
        elif _TARGET.match(argument) or (_DOTTED.match(argument) and argument in modules):
            targets.add(argument)
    return {re.split(r"[.:]", name)[0] for name in targets if re.match(r"[A-Za-z_]\w*", name)}

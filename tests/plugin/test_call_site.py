"""Which frame of a stack is the call site, and where a holder is."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.util
import os
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import pluggy
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.types import TypeDecorator

from connmon.config import url_options
from connmon.errors import ConfigError
from connmon.plugin import call_site, holder, stacks
from connmon.plugin.call_site import FrameKinds, Place
from connmon.plugin.call_site_accounts import Whereabouts
from connmon.plugin.engine import attach
from tests.support.requirements import needs, needs_driver
from tests.support.servers import Server
from tests.support.waiting import wait_for

SQLALCHEMY = os.path.dirname(sqlalchemy.__file__)
SITE = "/venv/lib/python3/site-packages"
SESSION = f"{SQLALCHEMY}/orm/session.py"
POOL = f"{SQLALCHEMY}/pool/base.py"
STDLIB = os.path.join(sysconfig.get_path("stdlib"), "contextlib.py")

# --- Stacks ---------------------------------------------------------------------------------

PLAIN = "def NAME(*given):\n    result = call()\n    return result\n"
WRAPPER = """\
def decorator(f):
    def NAME(*args, **kwargs):
        try:
            return f(*args, **kwargs)
        finally:
            pass
    return NAME
NAME = decorator(call)
"""
PASSES_ON = "def NAME(context='c', filters=None):\n    return call(context, filters)\n"
OVERRIDES = """\
class Base:
    def NAME(self, *given):
        return call()
Base.NAME = lambda self, *given: call()
class Model(Base):
    def NAME(self, session=None):
        session = session or 7
        super().NAME(session)
def start(*given):
    Model().NAME()
"""


class Frame:
    """A function of a file that calls the next inner one."""

    def __init__(self, path: str, name: str = "work", source: str = PLAIN) -> None:
        self.path, self.name, self.source = path, name, source

    def function(self, call: Callable[..., Any]) -> Callable[..., Any]:
        names: dict[str, Any] = {"call": call, "__name__": "m"}
        exec(compile(self.source.replace("NAME", self.name), self.path, "exec"), names)
        made: Callable[..., Any] = names.get("start") or names[self.name]
        return made


def shown(*frames: Frame, kinds: FrameKinds | None = None) -> str | None:
    """Return "path function" of the call site on a stack of these frames, the innermost first."""
    kinds = kinds or FrameKinds()
    found: list[Place | None] = []

    def innermost(*_: Any) -> None:
        frame = sys._getframe(1)
        found.append(call_site.find(frame, kinds))
        stack = stacks.places(stacks.Stack(stacks.upwards(frame)))
        found.append(call_site.find_in(stack, kinds))

    call: Callable[..., Any] = innermost
    for frame in frames:
        call = frame.function(call)
    thread = threading.Thread(target=call)  # Python's own library is all that is further out
    thread.start()
    thread.join(30)
    by_frame, by_place = found
    assert by_frame == by_place
    return None if by_frame is None else f"{by_frame[0].co_filename} {by_frame[0].co_name}"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Have a package of this name imported from this directory; None: not from a file."""

    def imported(name: str, directory: str | None) -> None:
        made = ModuleType(name)
        made.__file__ = None if directory is None else f"{directory}/__init__.py"
        made.__path__ = [directory] if directory else []
        monkeypatch.setitem(sys.modules, name, made)

    return imported


Imported = Callable[[str, "str | None"], None]

# --- Rules ----------------------------------------------------------------------------------


def test_first_frame_above_sqlalchemy() -> None:
    """It is the first frame above SQLAlchemy; frames further out do not matter, SQLAlchemy's included."""
    sqla, app = Frame(SESSION), Frame("/srv/shop/db.py", "query")
    outer = Frame("/srv/shop/web.py", "view")
    assert shown(sqla, app, outer) == "/srv/shop/db.py query"
    assert shown(sqla, app, Frame(SESSION), outer) == "/srv/shop/db.py query"
    assert shown(sqla, Frame(STDLIB), app, Frame(SESSION)) == "/srv/shop/db.py query"


@pytest.mark.parametrize("path", ["/srv/svc/db/sqlalchemy/api.py", f"{SITE}/svc/db/sqlalchemy/api.py"])
def test_directory_that_is_only_called_so(path: str) -> None:
    """A directory that is merely called sqlalchemy is the application's: glance, manila, ironic have one."""
    assert shown(Frame(SESSION), Frame(path, "image_get_all"), Frame("/srv/x.py")) in (
        f"{path} image_get_all",
        "/srv/x.py work",  # a library of the application x
    )
    assert shown(Frame(SESSION), Frame(path, "image_get_all")) == f"{path} image_get_all"


def test_plumbing_by_its_real_directory(module: Imported) -> None:
    """A library of the plumbing is not the application; a directory of the same name is."""
    module("oslo_db", f"{SITE}/oslo_db")
    app = Frame("/srv/shop/db.py", "query")
    assert shown(Frame(SESSION), Frame(f"{SITE}/oslo_db/api.py"), app) == "/srv/shop/db.py query"
    mine = Frame("/srv/oslo_db/api.py", "mine")
    assert shown(Frame(SESSION), mine, app) == "/srv/oslo_db/api.py mine"


def test_plumbing_where_nothing_else_is(module: Imported) -> None:
    """Where only plumbing is on the stack, its innermost frame is shown; an empty stack has no call site."""
    module("celery", f"{SITE}/celery")
    module("alembic", f"{SITE}/alembic")
    backend = Frame(f"{SITE}/alembic/runtime.py", "migrate")
    worker = Frame(f"{SITE}/celery/worker.py", "loop")
    assert shown(Frame(SESSION), backend, worker, worker) == f"{SITE}/alembic/runtime.py migrate"
    assert (
        shown(Frame(SESSION), backend, worker, Frame("/srv/run.py")) == f"{SITE}/alembic/runtime.py migrate"
    )
    assert shown(Frame(SESSION), Frame(STDLIB)) is None


@pytest.mark.parametrize("plumbing", ["oslo_db", "tenacity"])
def test_wrapper_of_a_decorator(module: Imported, plumbing: str) -> None:
    """A decorator's wrapper only calls the function: once that has returned, the caller is the call site."""
    module(plumbing, f"{SITE}/{plumbing}")
    inside = Frame(f"{SITE}/{plumbing}/api.py", "commit")
    wrapper = Frame("/srv/shop/db.py", "wrapper", WRAPPER)
    caller = Frame("/srv/shop/web.py", "view")
    assert shown(Frame(SESSION), inside, wrapper, caller) == "/srv/shop/web.py view"
    query = Frame("/srv/shop/db.py", "volume_get")
    assert shown(Frame(SESSION), query, inside, wrapper, caller) == "/srv/shop/db.py volume_get"
    assert shown(Frame(SESSION), inside, wrapper) == f"{SITE}/{plumbing}/api.py commit"


def test_wrapper_that_queries_itself() -> None:
    """A wrapper with a query of its own is the call site, in that line."""
    source = """\
def decorator(f):
    def NAME(*args, **kwargs):
        user = call()
        return f(*args, user=user, **kwargs)
    return NAME
NAME = decorator(lambda **kwargs: None)
"""
    wrapper = Frame("/srv/shop/auth.py", "needs_user", source)
    assert shown(Frame(SESSION), wrapper, Frame("/srv/shop/web.py")) == "/srv/shop/auth.py needs_user"


def test_pure_pass_through(module: Imported) -> None:
    """A function that only passes its arguments to plumbing is not the call site; passing them to SQLAlchemy
    is.
    """
    module("oslo_db", f"{SITE}/oslo_db")
    passing, caller = Frame("/srv/shop/db/__init__.py", "list", PASSES_ON), Frame("/srv/shop/web.py", "view")
    assert shown(Frame(SESSION), Frame(f"{SITE}/oslo_db/api.py"), passing, caller) == "/srv/shop/web.py view"
    assert shown(Frame(SESSION), passing, caller) == "/srv/shop/db/__init__.py list"


def test_overridden_method() -> None:
    """A method that calls the one that it overrides is not the call site: its caller is."""
    save = Frame("/srv/shop/models.py", "save", OVERRIDES)
    caller = Frame("/srv/shop/db.py", "create")
    base = [Frame(SESSION), save]
    found = shown(*base, caller)
    # `start` and the lambda of the example stand for the caller and for SQLAlchemy's own method.
    assert found in ("/srv/shop/models.py <lambda>", "/srv/shop/models.py start")
    names: dict[str, Any] = {}
    exec(compile(OVERRIDES.replace("NAME", "save"), "/srv/m.py", "exec"), names)
    assert call_site.hands_on(names["Model"].save.__code__) == (frozenset({8}), True)


def code_of(source: str) -> CodeType:
    """Return the code of the innermost function of this source."""
    code = compile(source, "/srv/x.py", "exec")
    while inner := [constant for constant in code.co_consts if isinstance(constant, CodeType)]:
        code = inner[0]
    return code


@pytest.mark.parametrize(
    "source",
    [
        "def f(self, a): return self.x.list(a)",
        "def f(self, a, b=None): return self.db.api.list(a, b=b)",
        "def f(context, a): return IMPL.get(context, a)",
        "def f(context): return get(context)",
        "async def f(self, a): return await self.x.list(a)",
        "def f(self, *args, **kwargs): return self.x.list(*args, **kwargs)",
        "def f(*args, **kwargs):\n  log(7)\n  return g(*args, **kwargs)",
        "def f(*args, **kwargs):\n  with lock:\n    return g(1, *args, x=2, **kwargs)",
        "def d(f):\n def w(*a, **k):\n  return f(*a, **k)\n return w",
        "def f(*args, **kwargs): return g(args, kwargs)",
        "async def f(self, *args, **kwargs):\n  log(7)\n  return await self.g(*args, **kwargs)",
        "class A(B):\n def f(self, x):\n  log(x)\n  return super().f(x)",
        "class A(B):\n def f(self, x):\n  super(A, self).f(x or g())",
    ],
)
def test_hands_on(source: str) -> None:
    """One call with all of the function's own arguments, or of the overridden method."""
    assert call_site.hands_on(code_of(source)) is not None


@pytest.mark.parametrize(
    "source",
    [
        "def f(): return g()",
        "def f(self): return self.query.all()",
        "def f(self, a): return self.session.execute(select(a))",
        "def f(self, a): return self.session.get(User, a)",
        "def f(self, a): return self.session.execute('select 1', a)",
        "def f(self, a): return self.x.list(a).all()",
        "def f(self, a, b): return self.x.list(a)",
        "def f(self, a): self.x.list(a)",
        "def f(self, a):\n  if a: return self.x.list(a)",
        "def f(self, a): return [x for x in self.x.list(a)]",
        "def f(*args, **kwargs): return g(*args)",
        "class A(B):\n def f(self, x):\n  return super().g(x)",
        "def f(self, a):\n  x = self.x.list(a)\n  return x",
        "def f(self, a):\n  while True: self.g(a)",
        "x = 1",
    ],
)
def test_does_not_hand_on(source: str) -> None:
    """A function that does more than that can be the call site."""
    assert call_site.hands_on(code_of(source)) is None


def test_library_and_application() -> None:
    """A library counts where nothing of the application called it."""
    library, app = Frame(f"{SITE}/audit/log.py", "write"), Frame("/srv/shop/db.py", "query")
    assert shown(Frame(SESSION), library, app) == "/srv/shop/db.py query"
    assert shown(Frame(SESSION), library, Frame(STDLIB)) == f"{SITE}/audit/log.py write"
    assert shown(Frame(SESSION), app, library) == "/srv/shop/db.py query"


def test_server_between_application_and_library(module: Imported) -> None:
    """What called the server has nothing to do with the query: a script that runs it is not the call site."""
    module("flask", f"{SITE}/flask")
    library, server = Frame(f"{SITE}/admin/view.py", "list_all"), Frame(f"{SITE}/flask/app.py", "dispatch")
    script = Frame("/srv/shop/run.py", "main")
    assert shown(Frame(SESSION), library, server, script) == f"{SITE}/admin/view.py list_all"
    assert shown(Frame(SESSION), server, script) == "/srv/shop/run.py main"


def test_library_far_from_the_application() -> None:
    """The application is searched for thirty frames further out than the library, no more."""
    library, far = Frame(f"{SITE}/audit/log.py", "write"), Frame(STDLIB)
    app = Frame("/srv/shop/db.py", "query")
    near = [far] * (call_site.FRAMES_BEYOND - 1)
    assert shown(Frame(SESSION), library, *near, app) == "/srv/shop/db.py query"
    assert shown(Frame(SESSION), library, *near, far, app) == f"{SITE}/audit/log.py write"


def test_process_of_an_installed_package(module: Imported) -> None:
    """What the process was started with is the application, also in site-packages."""
    module("nova", f"{SITE}/nova")
    library, nova = Frame(f"{SITE}/audit/log.py", "write"), Frame(f"{SITE}/nova/db/api.py", "instance_get")
    assert shown(Frame(SESSION), library, nova) == f"{SITE}/audit/log.py write"
    own = FrameKinds(own=frozenset({"nova"}))
    assert shown(Frame(SESSION), library, nova, kinds=own) == f"{SITE}/nova/db/api.py instance_get"
    script = Frame(os.path.join(os.path.dirname(sys.executable), "nova-api"), "<module>", "call()")
    names: dict[str, Any] = {}
    code = compile(script.source, script.path, "exec")
    assert own.of(code) == call_site.PLUMBING_FRAME
    assert not names


def test_project(module: Imported) -> None:
    """connmon_project decides: exactly its packages are the application."""
    module("shop", f"{SITE}/shop")
    library, shop = Frame("/srv/helpers/db.py", "write"), Frame(f"{SITE}/shop/db.py", "query")
    assert shown(Frame(SESSION), library, shop) == "/srv/helpers/db.py write"
    project = FrameKinds(project=frozenset({"shop"}))
    assert shown(Frame(SESSION), library, shop, kinds=project) == f"{SITE}/shop/db.py query"
    assert shown(Frame(SESSION), library, kinds=project) == "/srv/helpers/db.py write"


def test_project_that_is_not_imported_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script, and a package without a file of its own, are found by their place below sys.path."""
    monkeypatch.syspath_prepend("/srv/app")
    project = FrameKinds(project=frozenset({"shop.db", "script"}))
    library = Frame(f"{SITE}/audit/log.py", "write")
    assert shown(Frame(SESSION), library, Frame("/srv/app/shop/db/api.py"), kinds=project) == (
        "/srv/app/shop/db/api.py work"
    )
    assert (
        shown(Frame(SESSION), library, Frame("/srv/app/script.py"), kinds=project)
        == "/srv/app/script.py work"
    )
    assert shown(Frame(SESSION), library, Frame("/srv/app/shop/dbx.py"), kinds=project) == (
        f"{SITE}/audit/log.py write"
    )


def test_plumbing_of_the_application_itself(module: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest matching name decides: neutron has plumbing of its own, and plumbing can be a project."""
    module("neutron", f"{SITE}/neutron")
    module("neutron.objects.db", f"{SITE}/neutron/objects/db")
    module("celery", f"{SITE}/celery")
    plumbing, nets = Frame(f"{SITE}/neutron/objects/db/api.py"), Frame(f"{SITE}/neutron/db/nets.py", "get")
    for kinds in (FrameKinds(own=frozenset({"neutron"})), FrameKinds(project=frozenset({"neutron"}))):
        assert shown(Frame(SESSION), plumbing, nets, kinds=kinds) == f"{SITE}/neutron/db/nets.py get"
    task = Frame(f"{SITE}/celery/backends.py", "store")
    kinds = FrameKinds(project=frozenset({"celery"}))
    assert shown(Frame(SESSION), task, Frame("/srv/x.py"), kinds=kinds) == f"{SITE}/celery/backends.py store"


def test_code_of_no_file() -> None:
    """Typed-in code is the application's; generated code counts where nothing else does."""
    made, app = Frame("<string>", "made"), Frame("/srv/shop/db.py", "query")
    assert shown(Frame(SESSION), made, app) == "/srv/shop/db.py query"
    assert shown(Frame(SESSION), Frame("<stdin>", "typed"), app) == "<stdin> typed"
    assert shown(Frame(SESSION), Frame("<string>", "script")) == "<string> script"
    assert shown(Frame(SESSION), made, Frame(SESSION), Frame("<string>", "script")) == "<string> script"


def test_modules_that_are_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in sys.modules, a call site is found, and no lazy module is imported by it."""

    class Lazy(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    for name, value in (
        ("flask", None),
        ("celery", Lazy("celery")),
        ("alembic", 7),
        ("dogpile", SimpleNamespace(__file__=7, __path__=[7, None])),
        ("sqlmodel", SimpleNamespace(__file__=None, __path__=None)),
    ):
        monkeypatch.setitem(sys.modules, name, value)
    path = "/srv/flask/celery/alembic/dogpile/sqlmodel.py"
    assert shown(Frame(SESSION), Frame(path, "query")) == f"{path} query"


# --- What a process was started with --------------------------------------------------------


def main_of(*modules: str, spec: str | None = None) -> dict[str, Any]:
    names: dict[str, Any] = {"__spec__": SimpleNamespace(name=spec) if spec else None, "sys": sys}
    names["__file__"] = os.path.join(os.path.dirname(sys.executable), "script")
    for number, module in enumerate(modules):

        def function() -> None: ...

        function.__module__ = module
        names[f"main{number}"] = function
    return names


@pytest.mark.parametrize(
    ("argv", "main", "environ", "own"),
    [
        (["/venv/bin/nova-api"], main_of("nova.cmd.api"), {}, {"nova"}),
        (["/venv/bin/airflow", "scheduler"], main_of("airflow.__main__"), {}, {"airflow"}),
        (["/x/shop/__main__.py"], main_of(spec="shop.__main__"), {}, {"shop"}),
        (["/venv/bin/gunicorn", "-w", "4", "shop.main:app"], main_of("gunicorn.app.wsgiapp"), {}, {"shop"}),
        (["/venv/bin/gunicorn", "shop.main:create()"], main_of("gunicorn.app.wsgiapp"), {}, {"shop"}),
        (["uvicorn", "--factory", "shop:make"], main_of("uvicorn.main"), {}, {"shop"}),
        (["celery", "-A", "shop.tasks", "worker"], main_of("celery.__main__"), {}, {"shop"}),
        (["celery", "--app=shop", "worker"], main_of("celery.__main__"), {}, {"shop"}),
        (["flask", "run"], main_of("flask.cli"), {"FLASK_APP": "shop:app"}, {"shop"}),
        (["flask", "--app", "shop", "run"], main_of("flask.cli"), {}, {"shop"}),
        (["hypercorn", "shop.asgi"], main_of("hypercorn.__main__"), {}, {"shop"}),
        (["pytest", "-q"], main_of("pytest"), {}, set()),
        (["uwsgi"], {}, {}, set()),
        (["gunicorn", "-b", "host:5000", "127.0.0.1:80"], main_of("gunicorn.app.wsgiapp"), {}, set()),
        (["shop"], main_of("shop", "__main__", "json", "sqlalchemy.orm"), {}, {"shop"}),
        (["/srv/run.py"], {**main_of("requests"), "__file__": "/srv/run.py"}, {}, set()),
        ([], {}, {}, set()),
    ],
)
def test_own_packages(argv: list[str], main: dict[str, Any], environ: dict[str, str], own: set[str]) -> None:
    """The package of `python -m`, of a script that pip made, or of the application that a server was started
    with.
    """
    assert call_site.own_packages(argv, main, environ, ["shop.asgi"]) == own


def test_a_script_of_an_environment_that_is_used_by_a_link(tmp_path: Path) -> None:
    """A script that pip made is known by its directory, also where the path to that is a symbolic link."""
    (tmp_path / "current").symlink_to(Path(sys.executable).parent)
    main = {
        "__file__": str(tmp_path / "current" / "nova-api"),
        "main": type("Main", (), {"__module__": "nova.cmd"}),
    }
    assert call_site.own_packages(["nova-api"], main, {}) == {"nova"}
    main["__file__"] = str(tmp_path / "nova-api")
    assert call_site.own_packages(["nova-api"], main, {}) == frozenset()


# --- The cache ------------------------------------------------------------------------------


def test_cache_keeps_no_code_alive() -> None:
    """A code object that goes takes its entry with it, so that its id can be used again."""
    kinds = FrameKinds()
    codes = [
        compile(f"def f(*a, **k): return g{n}(*a, **k)", "/srv/x.py", "exec").co_consts[0] for n in range(50)
    ]
    assert [kinds.of(code) for code in codes] == [call_site.HANDS_ON] * 50
    references = [weakref.ref(code) for code in codes]
    assert len(kinds.known) == len(kinds.lines) == 50
    codes.clear()
    gc.collect()
    assert not [each for each in references if each() is not None]
    assert not kinds.known
    assert not kinds.lines


def test_cache_is_bounded() -> None:
    """However many code objects there are, only so many are kept; the answers stay right."""
    kinds = FrameKinds(code_objects=10)
    codes = [compile(str(n), f"{(SITE, '/srv')[n % 2]}/x.py", "exec") for n in range(100)]
    for _ in range(2):
        for number, code in enumerate(codes):
            assert kinds.of(code) == (call_site.LIBRARY, call_site.APPLICATION)[number % 2]
            assert len(kinds.known) <= 10


def test_equal_code_of_different_files() -> None:
    """Code objects are distinguished by identity, not by value."""
    kinds = FrameKinds()
    for path, kind in ((SITE, call_site.LIBRARY), ("/srv", call_site.APPLICATION)):
        assert kinds.of(compile("7", f"{path}/x.py", "exec")) == kind


# --- Anything -------------------------------------------------------------------------------

PATHS = [
    SESSION, POOL, f"{SQLALCHEMY}/engine/default.py", f"{SQLALCHEMY}/util/concurrency.py", STDLIB,
    os.path.join(os.path.dirname(sqlite3.__file__), "dbapi2.py"), f"{SITE}/audit/log.py", "/srv/shop/db.py",
    "<string>", "<stdin>", call_site.__file__, pytest.__file__, "", "x", "\udcff\x00", "/srv/sqlalchemy/x.py",
]  # fmt: skip
FRAMES = st.builds(
    Frame,
    st.sampled_from([path for path in PATHS if "\x00" not in path]),
    st.sampled_from(["work", "_checkout", "do_execute", "await_only"]),
    st.sampled_from([PLAIN, WRAPPER, PASSES_ON]),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(FRAMES, min_size=1, max_size=60), st.sampled_from([frozenset(), frozenset({"shop"})]))
def test_any_stack(frames: list[Frame], project: frozenset[str]) -> None:
    """Nothing raises, frames and places give the same result, and it is on the stack."""
    found = shown(*frames, kinds=FrameKinds(project=project))
    assert found is None or found.rpartition(" ")[0] in {frame.path for frame in frames}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(PATHS), st.text(min_size=1, max_size=9).filter(str.isidentifier), st.integers(0)
        ),
        max_size=60,
    ),
    st.integers(0, 60),
)
def test_any_places(places: list[tuple[str, str, int]], taker: int) -> None:
    """Any list of places has a call site in it, or none, and no function raises."""
    stack = [
        (compile("7", "x", "exec").replace(co_filename=path, co_name=name), number)
        for path, name, number in places
    ]
    kinds = FrameKinds()
    found = call_site.find_in(stack, kinds)
    assert found is None or found in stack
    inner: Sequence[Place] = call_site.above_driver(stack, kinds)
    assert list(inner) == stack[len(stack) - len(inner) :]
    call_site.in_database(stack, kinds, stack[taker][0] if taker < len(stack) else None)


SOURCES = st.sampled_from(
    [
        "return g(*args, **kwargs)", "x = g(*args, **kwargs)", "return await g(*args, **kwargs)",
        "yield from g(*args, **kwargs)", "return super().f(*args, **kwargs)", "return self.f(args)",
        "with self: return g(*args, **kwargs)", "try:\n  return f(*args, **kwargs)\n except E: pass",
        "return lambda: g(*args, **kwargs)", "return [g(*args, **kwargs) for self in args]", "pass",
    ]
)  # fmt: skip


@given(st.sampled_from(["self, *args, **kwargs", "args, kwargs, self", "*args, self, **kwargs", "g, args=1"]),
       st.lists(SOURCES, min_size=1, max_size=4), st.booleans())  # fmt: skip
def test_any_function(parameters: str, lines: list[str], asynchronous: bool) -> None:
    """For any function it is known where it hands on; these lines are its own."""
    body = "\n ".join(lines)
    source = f"{'async ' * asynchronous}def f({parameters}):\n {body}\n"
    try:
        code = code_of(source)
    except SyntaxError:
        return
    found = call_site.hands_on(code)
    if found is not None:
        assert found.lines <= {number for _, _, number in code.co_lines()}


# --- Real engines ---------------------------------------------------------------------------


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The call site of each checkout of any pool."""
    found: list[str] = []
    monkeypatch.setattr(holder, "_frame_kinds", FrameKinds())

    def checkout(*_: Any) -> None:
        site = holder.call_site()
        found.append("nothing" if site is None else holder.frame_text(*site).rpartition(" ")[2])

    event.listen(sqlalchemy.pool.Pool, "checkout", checkout)
    yield found
    event.remove(sqlalchemy.pool.Pool, "checkout", checkout)


@pytest.mark.slow
def test_oslo_db_decorators(sites: list[str], tmp_path: Path) -> None:
    """Below oslo.db's decorators the call site is the function, not the decorator."""
    needs("oslo_db")
    from oslo_db import api as oslo_api
    from oslo_db.sqlalchemy import enginefacade

    manager = enginefacade.transaction_context()
    manager.configure(connection=f"sqlite:///{tmp_path}/x.db")

    @enginefacade.transaction_context_provider
    class Context:
        session: Session

    def require_context(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    def volume_get(context: Context) -> None:
        context.session.execute(text("select 1"))

    def volume_retry(context: Context) -> None:
        with manager.writer.using(context) as session:
            session.execute(text("select 1"))

    manager.writer.get_engine()
    retried = oslo_api.wrap_db_retry(max_retries=2)
    for function in (require_context(manager.reader(volume_get)), retried(volume_retry)):
        sites.clear()
        function(Context())
        assert sites == [function.__name__]


def test_async_session_generator_and_thread(sites: list[str], tmp_path: Path) -> None:
    """In a task's greenlet, a function run in it, a generator and a thread, the call site is found."""
    url = f"{tmp_path}/x.db"

    def in_the_greenlet(session: Session) -> None:
        session.execute(text("select 1"))

    async def of_a_task() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{url}")
        async with AsyncSession(engine) as session:
            await session.execute(text("select 1"))
        async with AsyncSession(engine) as session:
            await session.run_sync(in_the_greenlet)
        await engine.dispose()

    engine = create_engine(f"sqlite:///{url}")

    def generator() -> Iterator[int]:
        with engine.connect():
            yield 1

    def in_a_thread() -> None:
        engine.connect().close()

    asyncio.run(of_a_task())
    assert sites == ["of_a_task", "in_the_greenlet"]
    sites.clear()
    assert list(generator()) == [1]
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join(30)
    assert sites == ["generator", "in_a_thread"]
    engine.dispose()


def test_package_of_a_process(tmp_path: Path) -> None:
    """A program run by `python -m` from site-packages is the application; its libraries are not."""
    installed = tmp_path / "site-packages"
    for name, source in (
        ("audit", "def log(connect):\n    return connect()\n"),
        ("shop", ""),
        (
            "shop/__main__",
            "import audit, sqlalchemy\n"
            "from sqlalchemy import event\n"
            "from connmon.plugin import holder\n"
            "engine = sqlalchemy.create_engine('sqlite://')\n"
            "@event.listens_for(engine, 'checkout')\n"
            "def _(*_):\n    print(holder.frame_text(*holder.call_site()))\n"
            "def sell():\n    audit.log(lambda: 7 and engine.connect()).close()\n"
            "class Log:\n    def write(self):\n        return 7 and engine.connect()\n"
            "sell()\n",
        ),
    ):
        path = installed / (f"{name}.py" if "/" in name or name == "audit" else f"{name}/__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    result = subprocess.run(
        [sys.executable, "-m", "shop"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(installed), str(Path(holder.__file__).parents[2])]),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.startswith("shop/__main__.py:9 "), result.stdout + result.stderr


def test_comprehension_is_of_its_function() -> None:
    """A line in a comprehension is named after the function around it."""

    def get_ports() -> list[CodeType]:
        return [sys._getframe().f_code for _ in range(1)]

    (code,) = get_ports()
    name = holder.frame_text(code, 7).rpartition(" ")[2]
    assert name == "get_ports" or (sys.version_info < (3, 11) and name == "<listcomp>")


# --- Where a holder is ----------------------------------------------------------------------


class Held:
    """A thread that does something until it is released."""

    def __init__(self, work: Callable[..., object], *args: Any) -> None:
        self.thread = threading.Thread(target=work, args=args, daemon=True)
        self.thread.start()

    def look(self, code: CodeType | None = None) -> Whereabouts:
        assert self.thread.ident is not None
        return holder.whereabouts(self.thread.ident, code)


def locked(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("begin exclusive")
    return connection


def test_in_the_database_by_a_driver_without_frames(tmp_path: Path) -> None:
    """A thread that waits in a driver made in C is in the database, as SQLAlchemy's frame shows."""
    path = tmp_path / "x.db"
    lock = locked(path)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})

    def query() -> None:
        with engine.connect() as connection:
            connection.execute(text("select * from sqlite_master")).all()

    def elsewhere() -> None: ...

    held = Held(query)
    try:
        wait_for(lambda: held.look().where == "database")
        found = held.look(query.__code__)
        assert (found.where, (found.call_site or "").rpartition(" ")[2]) == ("database", "query")
        assert held.look(elsewhere.__code__).where == "database"  # with another connection, perhaps
    finally:
        lock.close()
        held.thread.join(60)
        engine.dispose()
    wait_for(lambda: held.look().where == "ended")
    assert held.look(query.__code__) == ("ended", None, ())


def test_application_elsewhere_and_a_type(tmp_path: Path) -> None:
    """Work in the function that took the connection, or elsewhere; and code that SQLAlchemy calls."""
    go_on = threading.Event()
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")

    class Slow(TypeDecorator[str]):
        impl = sqlalchemy.String
        cache_ok = True

        def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
            go_on.wait(60)
            return value

    def take() -> Any:
        return engine.connect()

    def request() -> None:
        with take():
            go_on.wait(60)

    def typed() -> None:
        with engine.connect() as connection:
            connection.execute(select(sqlalchemy.literal("x", Slow()))).all()

    one, two = Held(request), Held(typed)
    try:
        wait_for(lambda: (one.look().call_site or "").endswith(" request"))
        assert one.look(request.__code__).where == "application"
        assert one.look(take.__code__).where == "elsewhere"
        assert one.look(None).where == "application"
        wait_for(lambda: (two.look().call_site or "").endswith(" process_bind_param"))
        assert two.look(typed.__code__).where == "application"
    finally:
        go_on.set()
        one.thread.join(60)
        two.thread.join(60)
        engine.dispose()


def test_waits_for_another_connection(tmp_path: Path) -> None:
    """A holder that waits for another connection of the pool is waiting, not in the database."""
    engine = create_engine(
        f"sqlite:///{tmp_path}/x.db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=60
    )

    def both() -> None:
        with engine.connect() as first, engine.connect():
            first.close()

    def elsewhere() -> None: ...

    held = Held(both)
    wait_for(lambda: held.look(both.__code__).where == "waiting")
    found = held.look(both.__code__)
    assert (found.where, (found.call_site or "").rpartition(" ")[2]) == ("waiting", "both")
    assert held.look(elsewhere.__code__).where == "elsewhere"
    engine.pool._pool.put(engine.pool._create_connection())  # type: ignore[attr-defined]
    held.thread.join(60)
    engine.dispose()


def places(*steps: tuple[str, str, str]) -> list[Place]:
    """Return a stack of functions: file, name, and a name that the function uses."""
    return [
        (compile(f"def {name}(x): x.{used}()", path, "exec").co_consts[0], 1) for path, name, used in steps
    ]


APP = ("/srv/shop/db.py", "query", "x")
DO_EXECUTE = (f"{SQLALCHEMY}/engine/default.py", "do_execute", "execute")
BASE = (f"{SQLALCHEMY}/engine/base.py", "execute", "x")
DRIVER = (os.path.join(os.path.dirname(sqlite3.__file__), "dbapi2.py"), "read", "recv")


@pytest.mark.parametrize(
    ("stack", "there"),
    [
        ([DO_EXECUTE, BASE, APP], True),
        ([(f"{SQLALCHEMY}/engine/default.py", "do_commit", "commit"), BASE, APP], True),
        ([(f"{SQLALCHEMY}/engine/cursor.py", "fetchall", "fetchall"), BASE, APP], True),
        ([(f"{SQLALCHEMY}/dialects/mysql/mysqldb.py", "do_ping", "ping"), BASE, APP], True),
        ([DRIVER, DO_EXECUTE, BASE, APP], True),
        ([(STDLIB, "recv", "x"), DRIVER, APP], True),  # the driver's connection without SQLAlchemy
        ([(f"{SITE}/unknown/driver.py", "read", "x"), DO_EXECUTE, BASE, APP], True),
        ([(f"{SQLALCHEMY}/util/concurrency.py", "await_only", "x"), DO_EXECUTE, APP], True),
        ([DO_EXECUTE, BASE, (POOL, "_checkout", "x"), BASE, APP], False),  # a ping of another connection
        ([DO_EXECUTE, BASE, (POOL, "_finalize_fairy", "reset"), APP], True),
        ([BASE, APP], False),
        ([("/srv/shop/types.py", "process", "x"), BASE, APP], False),
        ([APP], False),
        (
            [
                (STDLIB, "wait", "x"),
                (f"{SQLALCHEMY}/util/queue.py", "get", "wait"),
                (POOL, "_checkout", "x"),
                APP,
            ],
            False,
        ),
        ([], False),
    ],
)
def test_in_database(stack: list[tuple[str, str, str]], there: bool) -> None:
    """The driver works on the stack, and SQLAlchemy's pool is not about to get a connection."""
    assert call_site.in_database(places(*stack), FrameKinds()) is there


HUB = os.path.dirname(pluggy.__file__)  # of a library that runs the application, as gevent does
QUEUE = (f"{SQLALCHEMY}/util/queue.py", "get", "wait")


@pytest.mark.parametrize(
    ("stack", "there"),
    [
        ([(STDLIB, "wait", "x"), QUEUE, (POOL, "_checkout", "x"), APP], True),
        ([(f"{HUB}/hub.py", "switch", "x"), (STDLIB, "wait", "x"), QUEUE, APP], True),
        ([(STDLIB, "wait_for", "x"), (f"{SQLALCHEMY}/util/concurrency.py", "await_only", "x"), QUEUE], True),
        ([(STDLIB, "get", "x"), (f"{SQLALCHEMY}/util/compat.py", "wait_for", "x"), QUEUE], True),
        ([(STDLIB, "connect", "x"), DRIVER, (POOL, "_checkout", "x"), APP], False),  # a new connection
        ([DO_EXECUTE, BASE, APP, QUEUE], False),  # of a creator, say
        ([APP, BASE, QUEUE], False),
        ([], False),
    ],
)
def test_waits(stack: list[tuple[str, str, str]], there: bool) -> None:
    """The innermost frame that is not Python's own is the one where SQLAlchemy's pool waits."""
    assert call_site.waits(places(*stack), FrameKinds()) is there


def test_unknown_driver_is_not_the_call_site() -> None:
    """What SQLAlchemy calls to execute a statement is a driver, also one that is not in the list."""
    stack = places(("/srv/mydriver/x.py", "read", "x"), DO_EXECUTE, BASE, APP)
    assert call_site.find_in(call_site.above_driver(stack, FrameKinds()), FrameKinds()) == stack[-1]
    stack = places(("/srv/shop/types.py", "process", "x"), BASE, APP)
    assert call_site.find_in(call_site.above_driver(stack, FrameKinds()), FrameKinds()) == stack[0]


def test_outside_of_the_function_that_took_it() -> None:
    """A checkout further out than the function that holds the connection does not matter."""
    stack = places(DO_EXECUTE, BASE, APP, BASE, (POOL, "_checkout", "x"), APP)
    assert call_site.in_database(stack, FrameKinds(), stack[2][0])
    assert not call_site.in_database(stack, FrameKinds())


def test_task_in_the_database_waiting_and_done(tmp_path: Path) -> None:
    """A task's work in SQLAlchemy's greenlet is known: execute, wait for the pool, or its own."""
    path = tmp_path / "x.db"

    async def seen(task: asyncio.Task[None], function: str, where: str) -> Whereabouts:
        for _ in range(3000):
            found = holder.whereabouts(weakref.ref(task), query.__code__)
            if (found.where, (found.call_site or "").rpartition(" ")[2]) == (where, function):
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(found)

    def in_the_greenlet(session: Session) -> None:
        session.execute(text("select * from sqlite_master"))

    async def query(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.run_sync(in_the_greenlet)
            await asyncio.sleep(60)

    async def main() -> None:
        lock = locked(path)
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{path}",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            connect_args={"timeout": 60},
        )
        one = asyncio.create_task(query(engine))
        await seen(one, "in_the_greenlet", "database")
        two = asyncio.create_task(query(engine))
        await seen(two, "in_the_greenlet", "waiting")  # for the pool
        lock.close()
        await seen(one, "query", "application")
        assert holder.whereabouts(weakref.ref(one), main.__code__).where == "elsewhere"
        for task in (one, two):
            task.cancel()
        await asyncio.gather(one, two, return_exceptions=True)
        assert holder.whereabouts(weakref.ref(one)) == ("ended", None, ())
        await engine.dispose()

    asyncio.run(main())


SYNC = ["pymysql", "mysql+mysqldb", "mariadb+mysqlconnector", "psycopg2", "psycopg", "postgresql+pg8000"]
ASYNC = ["mysql+asyncmy", "mysql+aiomysql", "asyncpg", "postgresql+psycopg_async"]


def sleeping(driver: str, mariadb: Server, postgresql: Server) -> tuple[str, str]:
    """Return a URL for the driver, and a statement that takes two seconds."""
    needs_driver(driver)
    if "my" in driver:
        return mariadb.url(driver), "select sleep(2)"
    return postgresql.url(driver), "select pg_sleep(2)"


@pytest.mark.parametrize("driver", SYNC)
def test_real_drivers(driver: str, mariadb: Server, postgresql: Server) -> None:
    """A thread that executes a statement is in the database, whatever the driver is made of; its call site is
    right.
    """
    url, statement = sleeping(driver, mariadb, postgresql)
    engine = create_engine(url)

    def query() -> None:
        with engine.connect() as connection:
            connection.execute(text(statement))

    held = Held(query)
    wait_for(lambda: held.look(query.__code__).where == "database")
    found = held.look(query.__code__)
    held.thread.join(60)
    assert (found.call_site or "").rpartition(" ")[2] == "query"
    engine.dispose()


@pytest.mark.parametrize("driver", ASYNC)
def test_real_drivers_of_asyncio(driver: str, mariadb: Server, postgresql: Server) -> None:
    """The same for a task."""
    url, statement = sleeping(driver, mariadb, postgresql)

    async def query(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text(statement))

    async def main() -> Whereabouts:
        engine = create_async_engine(url)
        task = asyncio.create_task(query(engine))
        found = holder.UNKNOWN
        while not task.done() and found.where != "database":
            await asyncio.sleep(0.05)
            found = holder.whereabouts(weakref.ref(task), query.__code__)
        await task
        await engine.dispose()
        return found

    found = asyncio.run(main())
    assert (found.where, (found.call_site or "").rpartition(" ")[2]) == ("database", "query")


def test_task_that_runs() -> None:
    """A task that is running has the stack of its thread."""
    begun, go_on = threading.Event(), threading.Event()
    tasks: list[asyncio.Task[None] | None] = []

    async def busy() -> None:
        tasks.append(asyncio.current_task())
        begun.set()
        go_on.wait(60)

    thread = threading.Thread(target=lambda: asyncio.run(busy()))
    thread.start()
    try:
        assert begun.wait(30)
        wait_for(lambda: holder.whereabouts(weakref.ref(tasks[0]), busy.__code__).stack[0].endswith(" wait"))
        found = holder.whereabouts(weakref.ref(tasks[0]), busy.__code__)
        assert (found.where, (found.call_site or "").rpartition(" ")[2]) == ("application", "busy")
    finally:
        go_on.set()
        thread.join(30)


def test_thread_number_that_is_used_again() -> None:
    """A thread is known by more than its ident, which the next thread can get."""
    marks: list[stacks.ThreadMark] = []

    def work() -> None:
        marks.append(stacks.mark())
        assert stacks.mark() is marks[-1]
        assert not marks[-1].ended

    for _ in range(2):
        thread = threading.Thread(target=work, name="worker")
        thread.start()
        thread.join(30)
    assert [mark.ended for mark in marks] == [True, True]
    assert holder.name(marks[0]) == "worker (ended)"
    assert holder.whereabouts(marks[0]) == Whereabouts("ended", None, ())
    here = stacks.mark()
    assert not here.ended
    assert holder.whereabouts(here).stack


def test_contextmanager_of_the_application(sites: list[str], tmp_path: Path) -> None:
    """The call site in a generator of @contextmanager is its `with` statement, by frames and by places."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/x.db")

    @contextlib.contextmanager
    def database() -> Iterator[Any]:
        with engine.begin() as connection:
            looked.append(holder.whereabouts(threading.get_ident(), None).call_site)
            yield connection

    looked: list[str | None] = []
    with database():
        pass
    engine.dispose()
    assert [site.rpartition(" ")[2] for site in sites] == ["test_contextmanager_of_the_application"]
    assert (looked[0] or "").endswith(" test_contextmanager_of_the_application")


def test_a_long_path_loses_its_left_part() -> None:
    """A line keeps its file's name and number, however long the path is."""
    code = compile("0", "/" + "d" * 1_000 + "/shop/orders.py", "exec")
    line = holder.frame_text(code, 88)
    assert len(line) == holder.TEXT_CHARACTERS
    assert line.startswith("...")
    assert line.endswith("/shop/orders.py:88 <module>")


# --- The option -----------------------------------------------------------------------------


def test_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """connmon_project is a list of packages; those of all engines of a process add up."""
    assert url_options({"connmon_project": "shop, lib.db"}).project == ("shop", "lib.db")
    monkeypatch.setattr(holder, "_frame_kinds", None)
    for names in ("shop", "lib.db,shop"):
        engine = create_engine("sqlite://")
        attach(engine, addr="127.0.0.1:1", project=names)
    kinds = holder._frame_kinds
    assert kinds is not None
    assert kinds.project == {"shop", "lib.db"}


@pytest.mark.parametrize("value", ["/srv/shop", "shop,", "a b", "7", "shop.", "x" * 300])
def test_bad_option(value: str) -> None:
    """A value that is not a package name is an error that says what is expected."""
    with pytest.raises(ConfigError, match=r"is not the name of a package; expected PACKAGE\[,PACKAGE"):
        url_options({"connmon_project": value})


def test_benchmark() -> None:
    """The benchmark runs; its figures mean nothing here, with other tests running."""
    path = Path(__file__).parents[2] / "benchmarks" / "call_site.py"
    result = subprocess.run(
        [sys.executable, str(path), "3"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "At most 5.0 us" in result.stdout, result.stderr


@pytest.mark.slow
def test_a_real_service() -> None:
    """For placement from PyPI, the call site of each query is the function that makes it."""
    needs("placement")
    path = Path(__file__).parents[2] / "benchmarks" / "services.py"
    spec = importlib.util.spec_from_file_location("connmon_services", path)
    assert spec is not None
    assert spec.loader is not None
    services = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(services)
    rows = services.rows(Path(sys.executable), "placement", False)
    assert len(rows) >= 4
    assert [row for row in rows if row["shown"] != row["right"]] == []

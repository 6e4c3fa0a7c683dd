"""The applications of benchmarks/profile.py: each scenario is one process with a watched engine.

    python benchmarks/profile_application.py OPTIONS

OPTIONS is JSON: see `Options`. The process works for so many seconds, gives everything back, prints its books
(profile_books) as one line of JSON, and ends when its standard input ends.
"""

from __future__ import annotations

import asyncio
import heapq
import importlib
import importlib.util
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from profile_books import DATABASE, Books, Visit, current, visiting
from sqlalchemy import Engine, create_engine, event, orm, text
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool


@dataclass(frozen=True)
class Options:
    """What one process is asked for."""

    scenario: str
    url: str
    """With the options of connmon."""
    http: str
    """URL of a server that answers /0.25 after 0.25 s."""
    seconds: float
    seed: int
    journal: str = ""
    """Prefix of the journals of processes that are killed."""


# --- What a holder does ---------------------------------------------------------------------

Step = tuple[str, float]
"""A label of `Where`, and seconds."""
Draw = Callable[[random.Random], Sequence[Step]]
"""Returns what a visit does next."""

SLEEP: Final = {
    "mysql": text("SELECT SLEEP(:seconds)"),
    "postgresql": text("SELECT pg_sleep(:seconds)"),
    "sqlite": text("SELECT nap(:seconds)"),
}
_LINES: Final = """
def {name}(engine, visit):
    with engine.connect() as connection:
        visit(connection)


async def {name}_async(engine, visit):
    async with engine.connect() as connection:
        await visit(connection)


def {name}_session(session_class, engine, visit):
    with session_class(engine) as session:
        visit(session)


def {name}_query(session, statement, parameters):
    return session.execute(statement, parameters)
"""


def call_sites(names: Sequence[str]) -> dict[str, Any]:
    """Return functions of a module of their own; each has one line that takes a connection."""
    namespace: dict[str, Any] = {}
    source = "".join(_LINES.format(name=name) for name in names)
    exec(compile(source, str(Path(__file__).with_name("shop.py")), "exec"), namespace)
    return namespace


def _loops_per_second() -> float:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        compute_loops(1000)
        count += 1000
    return count / (time.perf_counter() - began)


def compute_loops(loops: int) -> int:
    total = 0
    for number in range(loops):
        total += number * number % 7
    return total


#: What a task calls for HTTP, where httpx is not installed: nothing of that kind.
HTTP: Final = "httpx" if importlib.util.find_spec("httpx") else "asyncio.sleep"


class Doing:
    """Does the steps of visits, and notes where the time goes."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options = options
        self.sleep = SLEEP[engine.dialect.name]
        self.speed = _loops_per_second()

    def step(self, connection: Any, visit: Visit, label: str, seconds: float) -> None:
        """Do one step in a thread or greenlet."""
        if label == DATABASE:
            connection.execute(self.sleep, {"seconds": seconds})
        elif label == "time.sleep":
            visit.timed(label, lambda: time.sleep(seconds))
        elif label == "own code":
            loops = int(seconds * self.speed)
            visit.timed(label, lambda: compute_loops(loops))
        elif label == "subprocess.run":
            visit.timed(label, lambda: subprocess.run(["sleep", str(seconds)], check=True))
        elif label == "requests":
            requests = importlib.import_module("requests")
            visit.timed(label, lambda: requests.get(f"{self.options.http}/{seconds}", timeout=60))
        elif label == "urllib3":
            urllib3 = importlib.import_module("urllib3")
            visit.timed(label, lambda: urllib3.request("GET", f"{self.options.http}/{seconds}"))
        elif label == "locked":  # C code that keeps the interpreter lock
            numbers = range(int(seconds * 4e7))
            visit.timed("own code", lambda: sum(numbers))
        else:
            raise ValueError(label)

    async def step_async(self, connection: Any, visit: Visit, label: str, seconds: float) -> None:
        """Do one step in a task."""
        if label == DATABASE:
            await connection.execute(self.sleep, {"seconds": seconds})
            return
        began = time.monotonic()
        if label == "asyncio.sleep":
            await asyncio.sleep(seconds)
        elif label == "httpx":
            httpx = importlib.import_module("httpx")
            async with httpx.AsyncClient(trust_env=False) as client:
                await client.get(f"{self.options.http}/{seconds}", timeout=60)
        elif label == "own code":
            compute_loops(int(seconds * self.speed))
        else:
            raise ValueError(label)
        visit.spend(label, time.monotonic() - began)

    def visit(self, function: Callable[..., Any], engine: Engine, name: str, steps: Sequence[Step]) -> None:
        """Visit a call site in a thread or greenlet."""

        def work(connection: Any) -> None:
            for label, seconds in steps:
                self.step(connection, visit, label, seconds)

        with visiting(name) as visit:
            function(engine, work)


class Scenario:
    """One process: an engine, its books, and what it does for so many seconds."""

    def __init__(self, options: Options, size: int, overflow: int = 0, **engine_options: Any) -> None:
        self.options = options
        self.books = Books()
        self.rng = random.Random(options.seed)
        self.engine = make_engine(options, size, overflow, **engine_options)
        self.books.watch(self.engine)
        self.doing = Doing(options, self.engine)
        self.deadline = time.monotonic() + options.seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline

    def work(self, sites: dict[str, tuple[float, Draw]], threads: int, pause_seconds: float) -> None:
        """Have threads visit call sites, drawn by weight, with a pause after each visit."""
        functions = call_sites([*sites])
        names, weights = [*sites], [weight for weight, _ in sites.values()]

        def loop(seed: int) -> None:
            rng = random.Random(seed)
            while not self.over:
                (name,) = rng.choices(names, weights)
                self.doing.visit(functions[name], self.engine, name, sites[name][1](rng))
                if pause_seconds:
                    time.sleep(rng.expovariate(1.0 / pause_seconds))

        run_threads([lambda number=number: loop(self.options.seed + number) for number in range(threads)])


def make_engine(options: Options, size: int, overflow: int = 0, **engine_options: Any) -> Engine:
    pool_class = AsyncAdaptedQueuePool if "async" in options.scenario else QueuePool
    arguments = {"poolclass": pool_class, "pool_size": size, "max_overflow": overflow, "pool_timeout": 120}
    arguments |= engine_options
    if "async" in options.scenario:
        create_async_engine = importlib.import_module("sqlalchemy.ext.asyncio").create_async_engine
        engine: Engine = create_async_engine(options.url, **arguments).sync_engine
    else:
        engine = create_engine(options.url, **arguments)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _add_nap)
    return engine


def _add_nap(connection: Any, record: Any) -> None:
    """Let SQLite sleep as the servers do."""
    connection.create_function("nap", 1, time.sleep)


def run_threads(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- Scenarios ------------------------------------------------------------------------------


def uneven(seconds: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.uniform(0.3, 1.7) * seconds


def steps(*parts: Step) -> Draw:
    """Return a draw of these steps in random order, each with a random duration around its mean."""

    def draw(rng: random.Random) -> Sequence[Step]:
        drawn = [(label, uneven(seconds)(rng)) for label, seconds in parts]
        rng.shuffle(drawn)
        return drawn

    return draw


MIXED: Final[dict[str, tuple[float, Draw]]] = {
    "orders": (4, steps((DATABASE, 0.15), ("time.sleep", 0.02))),
    "payments": (2, steps((DATABASE, 0.02), ("requests", 0.25), (DATABASE, 0.03))),
    "mails": (2, steps((DATABASE, 0.01), ("urllib3", 0.12), ("time.sleep", 0.06))),
    "reports": (1, steps((DATABASE, 0.3), ("own code", 0.15))),
    "exports": (1, steps(("subprocess.run", 0.2), (DATABASE, 0.1))),
    "locks": (1, steps(("time.sleep", 0.4))),
    "searches": (3, steps((DATABASE, 0.08))),
}


def threads(options: Options) -> Books:
    """Eight threads and seven call sites; below 100 checkouts a second."""
    scenario = Scenario(options, size=8)
    scenario.work(MIXED, threads=8, pause_seconds=0.05)
    return scenario.books


def busy(options: Options) -> Books:
    """The same while a thread of the application computes."""
    scenario = Scenario(options, size=8)

    def compute() -> None:
        while not scenario.over:
            compute_loops(100_000)

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    scenario.work(MIXED, threads=8, pause_seconds=0.05)
    return scenario.books


def locked(options: Options) -> Books:
    """Holders that call C code which keeps the interpreter lock for tens of milliseconds."""
    scenario = Scenario(options, size=6)
    sites: dict[str, tuple[float, Draw]] = {
        "sums": (1, steps((DATABASE, 0.05), ("locked", 0.06), (DATABASE, 0.02))),
        "waits": (1, steps((DATABASE, 0.1), ("time.sleep", 0.1))),
    }
    scenario.work(sites, threads=4, pause_seconds=0.1)
    return scenario.books


def alternating(options: Options, threads: int) -> Books:
    """Holders that alternate short computing with short queries, as ORM applications do."""
    scenario = Scenario(options, size=threads)

    def rounds(compute: float, query: float) -> Draw:
        def draw(rng: random.Random) -> Sequence[Step]:
            count = rng.randint(5, 40)
            return [
                step
                for _ in range(count)
                for step in (("own code", uneven(compute)(rng)), (DATABASE, uneven(query)(rng)))
            ]

        return draw

    sites: dict[str, tuple[float, Draw]] = {
        "mostly_database": (1, rounds(0.001, 0.002)),
        "mostly_python": (1, rounds(0.004, 0.001)),
        "both": (1, rounds(0.0015, 0.0015)),
    }
    scenario.work(sites, threads=threads, pause_seconds=0.01)
    return scenario.books


def short(options: Options) -> Books:
    """Holds of some milliseconds only, above 100 checkouts a second."""
    scenario = Scenario(options, size=4)
    sites: dict[str, tuple[float, Draw]] = {
        "a": (8, steps((DATABASE, 0.002), ("time.sleep", 0.001))),
        "b": (2, steps((DATABASE, 0.001), ("time.sleep", 0.006))),
        "c": (1, steps((DATABASE, 0.02))),
        "d": (1, steps(("time.sleep", 0.03))),
    }
    scenario.work(sites, threads=4, pause_seconds=0.004)
    return scenario.books


def periodic(options: Options) -> Books:
    """One thread that visits two call sites in strict turns on one connection, hundreds of times a second."""
    scenario = Scenario(options, size=1)
    functions = call_sites(["first", "second"])
    while not scenario.over:
        scenario.doing.visit(functions["first"], scenario.engine, "first", [("time.sleep", 0.0005)])
        scenario.doing.visit(functions["second"], scenario.engine, "second", [(DATABASE, 0.003)])
    return scenario.books


def sites(options: Options, per_second: float) -> Books:
    """Forty call sites with uneven rates and holds from 0.2 ms to 30 s.

    Visits of a call site are a Poisson process. `per_second` is the rate of all of them together.
    """
    scenario = Scenario(options, size=100)
    rng, longest = random.Random(7), min(30.0, options.seconds / 3)
    names = [f"site_{number:02}" for number in range(40)]
    mean = {name: 0.0002 * (longest / 0.0002) ** (n / 39) for n, name in enumerate(names)}
    in_database = {name: rng.random() for name in names}
    # Zipf, but at most three connections on average.
    ranks = rng.sample(range(1, 41), 40)
    rate = {name: min(3.0 / mean[name], 1.0 / rank) for name, rank in zip(names, ranks, strict=True)}
    quick = [name for name in names if mean[name] < 0.1]
    factor = per_second / sum(rate[name] for name in quick)
    rate |= {name: min(rate[name] * factor, 1.0 / mean[name]) for name in quick}

    def draw(name: str) -> Sequence[Step]:
        seconds = mean[name] * rng.lognormvariate(-0.08, 0.4)
        part = seconds * in_database[name]
        return [(DATABASE, part / 2), ("time.sleep", seconds - part), (DATABASE, part / 2)]

    _arrive(scenario, rate, draw, rng)
    return scenario.books


def _arrive(
    scenario: Scenario, rate: dict[str, float], draw: Callable[[str], Sequence[Step]], rng: random.Random
) -> None:
    """Visit each call site so many times a second at random moments, in threads that wait for that."""
    due: queue.SimpleQueue[tuple[str, Sequence[Step]] | None] = queue.SimpleQueue()
    functions = call_sites([*rate])

    def loop() -> None:
        while (visit := due.get()) is not None:
            name, drawn = visit
            scenario.doing.visit(functions[name], scenario.engine, name, drawn)

    threads = [threading.Thread(target=loop) for _ in range(100)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    arrivals = [(began + rng.expovariate(per_second), name) for name, per_second in rate.items()]
    heapq.heapify(arrivals)
    while not scenario.over:
        at, name = heapq.heappop(arrivals)
        time.sleep(max(0.0, at - time.monotonic()))
        due.put((name, draw(name)))
        heapq.heappush(arrivals, (at + rng.expovariate(rate[name]), name))
    for _ in threads:
        due.put(None)
    for thread in threads:
        thread.join()


def bursts(options: Options) -> Books:
    """Bursts of hundreds of checkouts a second between seconds of rest, and rare long holds in both."""
    scenario = Scenario(options, size=6)
    functions = call_sites(["burst", "burst_slow", "rare", "late"])
    visit, began = scenario.doing.visit, time.monotonic()

    def burst(seed: int) -> None:
        rng = random.Random(seed)
        while not scenario.over:
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                slow = rng.random() < 0.02
                name = "burst_slow" if slow else "burst"
                drawn = [("time.sleep", 0.04)] if slow else [(DATABASE, 0.002)]
                visit(functions[name], scenario.engine, name, drawn)
            time.sleep(rng.uniform(2.0, 4.0))

    def rare(seed: int) -> None:
        rng = random.Random(seed)
        while not scenario.over:
            time.sleep(rng.expovariate(1.0))
            is_late = time.monotonic() - began > options.seconds / 2 and rng.random() < 0.5
            name = "late" if is_late else "rare"
            drawn = steps((DATABASE, 0.5), ("time.sleep", 0.2))(rng)
            visit(functions[name], scenario.engine, name, drawn)

    run_threads([
        *[lambda n=n: burst(options.seed + n) for n in range(3)],
        *[lambda n=n: rare(options.seed + 10 + n) for n in range(2)],
    ])  # fmt: skip
    return scenario.books


def sessions(options: Options) -> Books:
    """ORM sessions: the first query takes the connection, and it is kept until the session ends."""
    scenario = Scenario(options, size=4)
    functions = call_sites(["cart", "stock"])
    doing = scenario.doing

    def loop(seed: int) -> None:
        rng = random.Random(seed)
        while not scenario.over:
            name = rng.choice(["cart", "cart", "stock"])
            query = functions[f"{name}_query"]

            def work(session: Any, query: Any = query, name: str = name) -> None:
                time.sleep(0.02)  # it holds nothing yet
                visit.asked = time.monotonic()
                query(session, doing.sleep, {"seconds": rng.uniform(0.01, 0.05)})
                visit.timed("time.sleep", lambda: time.sleep(rng.uniform(0.0, 0.1)))
                if name == "stock":
                    session.execute(doing.sleep, {"seconds": rng.uniform(0.05, 0.1)})

            with visiting(f"{name}_query") as visit:
                functions[f"{name}_session"](orm.Session, scenario.engine, work)

    run_threads([lambda n=n: loop(options.seed + n) for n in range(4)])
    return scenario.books


def waiting(options: Options) -> Books:
    """Ten threads at a pool of two."""
    scenario = Scenario(options, size=2)
    sites: dict[str, tuple[float, Draw]] = {
        "greedy": (1, steps((DATABASE, 0.05), ("requests", 0.25))),
        "modest": (3, steps((DATABASE, 0.03))),
    }
    scenario.work(sites, threads=10, pause_seconds=0.3)
    return scenario.books


def waiting_fast(options: Options) -> Books:
    """Ten threads at a pool of two, hundreds of checkouts a second."""
    scenario = Scenario(options, size=2)
    sites: dict[str, tuple[float, Draw]] = {
        "greedy": (1, steps((DATABASE, 0.02), ("time.sleep", 0.02))),
        "modest": (12, steps((DATABASE, 0.002))),
    }
    scenario.work(sites, threads=10, pause_seconds=0.02)
    return scenario.books


def nested(options: Options) -> Books:
    """Holders that take a second connection while they hold one."""
    scenario = Scenario(options, size=6)
    functions = call_sites(["outside", "inside"])
    visit = scenario.doing.visit

    def loop(seed: int) -> None:
        rng = random.Random(seed)
        while not scenario.over:

            def outer(connection: Any) -> None:
                scenario.doing.step(connection, current.get(), DATABASE, rng.uniform(0.0, 0.1))
                drawn = [(DATABASE, rng.uniform(0.0, 0.2)), ("time.sleep", rng.uniform(0.0, 0.1))]
                visit(functions["inside"], scenario.engine, "inside", drawn)

            with visiting("outside"):
                functions["outside"](scenario.engine, outer)
            time.sleep(rng.uniform(0.0, 0.1))

    run_threads([lambda n=n: loop(options.seed + n) for n in range(3)])
    return scenario.books


def tasks(options: Options) -> Books:
    """Thirty tasks of asyncio."""
    scenario = Scenario(options, size=30)
    extension = importlib.import_module("sqlalchemy.ext.asyncio")
    asynchronous = extension.AsyncEngine(scenario.engine)
    sites: dict[str, tuple[float, Draw]] = {
        "orders": (4, steps((DATABASE, 0.2), ("asyncio.sleep", 0.05))),
        "payments": (2, steps((DATABASE, 0.05), (HTTP, 0.3))),
        "idlers": (1, steps(("asyncio.sleep", 0.5), (DATABASE, 0.02))),
        "searches": (3, steps((DATABASE, 0.1))),
        "thinkers": (1, steps((DATABASE, 0.05), ("own code", 0.003))),
    }
    functions = call_sites([*sites])
    names, weights = [*sites], [weight for weight, _ in sites.values()]

    async def loop(seed: int) -> None:
        rng = random.Random(seed)
        while not scenario.over:
            (name,) = rng.choices(names, weights)
            drawn = sites[name][1](rng)

            async def work(connection: Any, drawn: Sequence[Step] = drawn) -> None:
                for label, seconds in drawn:
                    await scenario.doing.step_async(connection, visit, label, seconds)

            with visiting(name) as visit:
                await functions[f"{name}_async"](asynchronous, work)
            await asyncio.sleep(rng.expovariate(2.0))

    async def everything() -> None:
        await asyncio.gather(*[loop(options.seed + number) for number in range(30)])

    asyncio.run(everything())
    return scenario.books


def greenlets(options: Options) -> Books:
    """Twenty greenlets of gevent or eventlet; the standard library is patched."""
    scenario = Scenario(options, size=20)
    sites: dict[str, tuple[float, Draw]] = {
        "orders": (4, steps((DATABASE, 0.15), ("time.sleep", 0.02))),
        "payments": (2, steps((DATABASE, 0.02), ("urllib3", 0.25), (DATABASE, 0.03))),
        "locks": (1, steps(("time.sleep", 0.4))),
        "searches": (3, steps((DATABASE, 0.08))),
        "thinkers": (1, steps((DATABASE, 0.05), ("own code", 0.003))),
    }
    scenario.work(sites, threads=20, pause_seconds=0.3)
    return scenario.books


def present(options: Options) -> Books:
    """A connection that is still held when the table is read, and when the process ends."""
    scenario = Scenario(options, size=8)
    functions = call_sites(["leak", "shop"])

    def leak() -> None:
        with visiting("leak"):
            functions["leak"](scenario.engine, lambda connection: time.sleep(3600))

    threading.Thread(target=leak, daemon=True).start()
    while not scenario.over:
        drawn = [(DATABASE, scenario.rng.uniform(0.0, 0.1)), ("time.sleep", scenario.rng.uniform(0.0, 0.1))]
        scenario.doing.visit(functions["shop"], scenario.engine, "shop", drawn)
    return scenario.books


def prefork(options: Options) -> Books:
    """A parent that has used its engine forks workers; one is killed, one ends early, two go on to the end.

    Journals have the workers' holds.
    """
    scenario = Scenario(options, size=4)
    functions = call_sites(["parent", "worker"])
    scenario.doing.visit(functions["parent"], scenario.engine, "parent", [(DATABASE, 0.3)])
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            _be_worker(scenario, functions, number)
        children.append(child)
    while not scenario.over:
        scenario.doing.visit(functions["parent"], scenario.engine, "parent", [("time.sleep", 0.1)])
    os.kill(children[0], signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    for number in range(4):
        _add_journal(scenario.books, Path(f"{options.journal}-{number}"))
    return scenario.books


def _be_worker(scenario: Scenario, functions: dict[str, Any], number: int) -> None:
    code = 1
    try:
        scenario.engine.dispose(close=False)
        scenario.books = books = Books(f"{scenario.options.journal}-{number}")
        engine = make_engine(scenario.options, 4)
        books.watch(engine)
        rng = random.Random(number)
        seconds = scenario.options.seconds * (0.4 if number == 1 else 2.0 if number == 0 else 1.0)
        end = scenario.deadline - scenario.options.seconds + seconds
        while time.monotonic() < end:
            drawn = [(DATABASE, rng.uniform(0.0, 0.1)), ("time.sleep", rng.uniform(0.0, 0.1))]
            scenario.doing.visit(functions["worker"], engine, "worker", drawn)
        code = 0
    finally:
        if number == 2:
            os._exit(code)
        sys.exit(code)


def _add_journal(books: Books, journal: Path) -> None:
    for line in journal.read_text().splitlines():
        site, began, ended = line.split()
        books.holds.append((site, float(began), float(ended)))


SCENARIOS: Final[dict[str, Callable[[Options], Books]]] = {
    "threads": threads,
    "busy": busy,
    "locked": locked,
    "alternating-1": lambda options: alternating(options, 1),
    "alternating-8": lambda options: alternating(options, 8),
    "short": short,
    "periodic": periodic,
    "sites-counted": lambda options: sites(options, 40.0),
    "sites-sampled": lambda options: sites(options, 250.0),
    "bursts": bursts,
    "sessions": sessions,
    "waiting": waiting,
    "waiting-fast": waiting_fast,
    "nested": nested,
    "async": tasks,
    "greenlets": greenlets,
    "present": present,
    "prefork": prefork,
}


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    base = options.scenario.split(":")[0]
    books = SCENARIOS[base](options)
    print(json.dumps(books.summary()), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

"""An application that keeps its own books: the program that test_applications runs in processes.

It reads orders as lines of JSON on stdin and answers each with one line on stdout: its own account
(tests/support/books.py) of its random work (tests/support/work.py). An exception that the work did not
provoke is an error, and is reported.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import sys
import threading
import time
import traceback
import weakref
from typing import Any

from tests.support.books import Account, Refused, open_files
from tests.support.work import AsyncWork, Work


class Pace:
    """A clock that stops while the machine is too busy to run this process.

    So the duration of a call is the time that the call itself waited, without the load of the machine.
    """

    TICK = 0.05

    def __init__(self) -> None:
        self._start()
        os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self._late = 0.0
        self._began = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(self.TICK)
            now = time.monotonic()
            self._late += max(0.0, now - self._began - self.TICK)
            self._began = now

    def now(self) -> float:
        """Return seconds."""
        now = time.monotonic()
        return now - self._late - max(0.0, now - self._began - self.TICK)


class Application:
    """The process: its engines, its threads and tasks, and the orders that it carries out."""

    def __init__(self, specs: list[dict[str, Any]], threads: int, seed: int) -> None:
        self.gone: list[Account] = []
        self.works = [Work(spec, self.gone) for spec in specs if not spec.get("async")]
        self.async_works = [AsyncWork(spec) for spec in specs if spec.get("async")]
        self.threads = threads
        self.seed = seed
        self.started = False
        self.go = threading.Event()
        self.lock = threading.Lock()
        self.parked = 0
        self.workers = 0
        self.done = 0
        self.slowest = 0.0
        self.pace = Pace()
        self.errors: list[str] = []
        self.log: list[str] = []

    def accounts(self) -> list[Account]:
        return [*self.works, *self.async_works, *self.gone]

    def load(self) -> None:
        """Work until `quiet`."""
        self.go.set()
        if self.started:
            return
        self.started = True
        for number in range(self.threads if self.works else 0):
            threading.Thread(target=self._thread, args=(number,), name=f"work-{number}", daemon=True).start()
            self.workers += 1
        if self.async_works:
            self.workers += 4
            threading.Thread(target=lambda: asyncio.run(self._tasks()), daemon=True).start()

    def quiet(self) -> None:
        """Return when every thread and task has finished its piece of work."""
        self.go.clear()
        while self.parked < self.workers:
            time.sleep(0.002)
        for _ in range(3):  # a finaliser can create more garbage
            gc.collect()

    def _note(self, began: float, error: BaseException | None) -> None:
        with self.lock:
            self.done += 1
            self.slowest = max(self.slowest, self.pace.now() - began)
            if error is not None and not isinstance(error, Refused):
                self.errors.append("".join(traceback.format_exception(error)))

    def _park(self, step: int) -> None:
        with self.lock:
            self.parked += step

    def _thread(self, number: int) -> None:
        rng = random.Random(self.seed * 100 + number)
        while True:
            if not self.go.is_set():
                self._park(1)
                self.go.wait()
                self._park(-1)
            self.piece(rng)
            time.sleep(rng.random() * 0.006)

    def piece(self, rng: random.Random) -> None:
        began = self.pace.now()
        try:
            rng.choice(self.works).do(rng)
        except BaseException as error:
            self._note(began, error)
        else:
            self._note(began, None)

    async def _tasks(self) -> None:
        await asyncio.gather(*(self._task(number) for number in range(4)))

    async def _task(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        while True:
            if not self.go.is_set():
                self._park(1)
                while not self.go.is_set():
                    await asyncio.sleep(0.005)
                self._park(-1)
            began = self.pace.now()
            try:
                await rng.choice(self.async_works).do(rng)
            except BaseException as error:
                self._note(began, error)
            else:
                self._note(began, None)
            await asyncio.sleep(rng.random() * 0.006)

    def report(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "accounts": [account.report() for account in self.accounts()],
            "done": self.done,
            "slowest": self.slowest,
            "errors": self.errors,
            "log": self.log,
        }

    def say(self, message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def once(self) -> None:
        """Use one connection of each working engine, without threads."""
        for work in self.works:
            if not work.spec.get("broken"):
                work.query(random.Random(self.seed))

    def renew(self) -> None:
        """Leave one idle, usable connection in each pool that a child inherits from."""
        for work in self.works:
            if work.spec.get("adopt"):
                work.orders_to_fail = 0
                work.engine.dispose()
                work.query(random.Random(self.seed))

    def fork(self, adopt: bool) -> int:
        """Fork while the pools have idle connections; return the child's pid, or 0 in the child.

        The child disposes of the parent's pools as SQLAlchemy advises for children, and continues to work.
        With `adopt` it uses an inherited connection instead, as an application should not.
        """
        pid = os.fork()
        if pid:
            return pid
        limbo = [(account.kept, account.connections) for account in self.accounts()]
        self.gone.clear()
        self.lock = threading.Lock()
        self.errors, self.log, self.workers, self.parked, self.async_works = [], [], 0, 0, []
        for work in self.works:
            inherited = work.connections
            work.forget()
            work.one_at_a_time = threading.Lock()
            if not adopt:
                work.engine.dispose(close=False)
                gc.collect()
            if work.file is not None:
                work.files_before = open_files(work.file)
            if adopt and work.spec.get("adopt"):
                self._adopt(work, inherited)
        if not adopt:
            rng = random.Random(self.seed)
            for _ in range(40):
                self.piece(rng)
            gc.collect()
        self._limbo = limbo
        return 0

    def _adopt(self, work: Work, inherited: list[tuple[int, weakref.ref[Any]]]) -> None:
        connection = work.take()
        number = work.session_id(connection)
        connection.rollback()
        work.give(connection)
        work.count("adopted")
        work.connections = [entry for entry in inherited if entry[0] == number]
        work.files_before -= 1


def main() -> None:
    options = json.loads(sys.argv[1])
    application = Application(options["engines"], options["threads"], options["seed"])

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("connmon"):
                application.log.append(f"{record.levelname} {record.getMessage()}")

    logging.getLogger().addHandler(Keep())
    application.say({"pid": os.getpid()})
    for line in sys.stdin:
        order = json.loads(line)["do"]
        if order == "load":
            application.load()
            application.say({})
        elif order == "once":
            application.once()
            application.say(application.report())
        elif order == "renew":
            application.renew()
            gc.collect()
            application.say(application.report())
        elif order == "quiet":
            application.quiet()
            application.say(application.report())
        elif order in ("fork", "fork_adopt"):
            reading, writing = os.pipe()
            if application.fork(order == "fork_adopt"):
                os.close(reading)
                application._child = writing  # type: ignore[attr-defined]
                continue
            os.close(writing)
            application.say(application.report())
            os.read(reading, 1)
            return
        elif order == "end_child":
            os.close(application._child)  # type: ignore[attr-defined]
            os.wait()
            application.say({})
        elif order == "end":
            application.quiet()
            application.say(application.report())
            return


if __name__ == "__main__":
    main()

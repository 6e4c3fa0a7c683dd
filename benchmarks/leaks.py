"""How often the call site of a leak is known: a program leaks a part of its connections, in real time.

    python benchmarks/leaks.py [--leaks 100]

Fifty checkouts a second come at random from ten call sites, and one in ten is never returned. The call site
reported for each leaked connection is compared with the line that took it. Then the same at 1,000 checkouts a
second, where a sample is noted. Each result is printed next to what the present place of the holder shows.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from sqlalchemy.pool import QueuePool

from connmon.plugin import holder
from connmon.plugin.engine import describe
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool import instrument
from tests.support.fake_dbapi import Database

_LINES = """
def line_{n}(engine):
    return engine.raw_connection()
"""


def lines() -> list[Any]:
    """Return ten functions of a separate module, each with one line that takes a connection."""
    names: dict[str, Any] = {}
    source = "".join(_LINES.format(n=number) for number in range(10))
    exec(compile(source, str(Path(__file__).with_name("shop.py")), "exec"), names)
    return [names[f"line_{number}"] for number in range(10)]


def run(leaks: int, per_second: float, one_in: int) -> tuple[int, int, int]:
    """Return the number of leaks, and for how many call site and present place are the right line."""
    engine = Database().engine(QueuePool, pool_size=leaks + 5, max_overflow=0)
    ledger = Ledger("i", threading.Lock, time.monotonic, holder)
    ledger.process.wake = lambda: None
    account = instrument(engine.pool, ledger, describe(engine), lambda _: None, holder.Tracing("auto", 0.0))
    rng, functions = random.Random(7), lines()
    kept: dict[int, tuple[str, Any]] = {}
    next_at = reported = time.monotonic()
    while len(kept) < leaks:
        next_at += rng.expovariate(per_second)
        time.sleep(max(0.0, next_at - time.monotonic()))
        function = rng.choice(functions)
        connection = function(engine)
        if rng.randrange(one_in) == 0:
            kept[id(connection.dbapi_connection)] = function.__name__, connection
        else:
            connection.close()
        if time.monotonic() - reported >= 1.0:
            reported = time.monotonic()
            report = ledger.take(reported, alive=True)
            if report is not None:
                ledger.acknowledged(report.sequence)
    ledger.restart()
    report = ledger.take(time.monotonic())
    assert report is not None
    keys = {entry.number: entry.key for entry in account.entries.values()}
    right = now = 0
    for connection in report.connections:
        if connection.state == "checked_out":
            name = kept[keys[connection.number]][0]
            right += (connection.call_site or "").endswith(f" {name}")
            now += (connection.holder_site or "").endswith(f" {name}")
    return len(kept), right, now


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leaks", type=int, default=100)
    leaks = parser.parse_args().leaks
    wrong = False
    for per_second, one_in in ((50, 10), (1_000, 100)):
        there, right, now = run(leaks, per_second, one_in)
        print(
            f"{per_second:5,} checkouts/s: {there} leaks, {right} with the right call site; "
            f"the present place of the holder is that line for {now}"
        )
        wrong |= per_second < 100 and right < 0.99 * there
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""How long it takes to find the call site: python benchmarks/call_site.py [rounds]

The stack has 60 frames, as in a web service: a pool's checkout below SQLAlchemy's ORM, oslo.db's wrappers,
an application and a server. For comparison: a bare walk over the frames, and traceback.extract_stack.
Medians, in us.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy

from connmon.plugin import call_site

FRAMES = 60
LIMIT = 5.0
ROUNDS = 300


def nested(paths: list[str], innermost: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that calls `innermost` through one function in each of these files."""
    call = innermost
    for number, path in enumerate(paths):
        names: dict[str, Any] = {"call": call}
        source = f"def work_{number}(context=None):\n    result = call()\n    return result\n"
        exec(compile(source, path, "exec"), names)
        call = names[f"work_{number}"]
    return call


def bare(frame: FrameType | None) -> int:
    number = 0
    while frame is not None:
        number += 1
        frame = frame.f_back
    return number


def median(function: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        for _ in range(20):
            function()
        times.append((time.perf_counter_ns() - begin) / 20)
    return statistics.median(times) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("rounds", type=int, nargs="?", default=ROUNDS, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    orm = str(Path(sqlalchemy.__file__).parent / "orm" / "session.py")
    python = str(Path(traceback.__file__))
    library = "/venv/lib/python3/site-packages/service/api.py"
    here = bare(sys._getframe())
    worst = 0.0
    title = "the application in a stack of 60 frames"
    print(f"{title:44}{'call site':>10}{'bare walk':>11}{'extract_stack':>15}")
    for title, application in (
        ("its line at frame 20", ["/srv/shop/shop/db.py"] * 5 + [python] * 80),
        ("its line at frame 50", [python] * 30 + ["/srv/shop/shop/db.py"] * 60),
        ("none: the line of a library", [library] * 30 + [python] * 60),
    ):
        kinds = call_site.FrameKinds()
        figures: list[float] = []

        def measure(kinds: call_site.FrameKinds = kinds, figures: list[float] = figures) -> None:
            frame = sys._getframe(1)
            assert bare(frame) == FRAMES, bare(frame)
            figures.append(median(lambda: call_site.find(frame, kinds), rounds))
            figures.append(median(lambda: bare(frame), rounds))
            figures.append(median(traceback.extract_stack, max(3, rounds // 30)))

        nested(([orm] * 20 + application)[: FRAMES - here], measure)()
        print(f"{title:44}{figures[0]:10.2f}{figures[1]:11.2f}{figures[2]:15.1f}")
        worst = max(worst, figures[0])
    print(f"At most {LIMIT} us: {'yes' if worst <= LIMIT else 'NO'}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

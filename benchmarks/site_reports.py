"""What profiles of call sites cost a node: its CPU per report, memory, checkpoint and answer.

    python benchmarks/site_reports.py [--other TREE] [--processes N] [--sites N] [--rounds R] [--json FILE]

Each process has two pools, 20 connections and 64 call sites with four labels each. It reports two changed
connections each time, and in every fifth report all call sites, as the plugin does. Two processes of the
system measure in turn, so that both have the same machine: this tree, and the one of `--other` (a checkout of
an earlier version, whose reports have no profiles); without it, this tree without profiles.

CPU is from the bytes of the reports to the applied command, of a batch of 100 processes. Memory is what the
state adds to the resident memory. Nothing is judged; the last lines print both and their ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path as FilePath
from typing import Any, Final

import msgspec
from rows import About, Node, report_of, some

from connmon.protocol import reports as wire
from connmon.protocol.queries import Query
from connmon.protocol.reports import Report, SiteReport

HoldProfile: Any = getattr(wire, "HoldProfile", None)
CONNECTIONS: Final = 20
REPORTING: Final = 100
EVERY: Final = 5
LABELS: Final = ("database", "requests", "own code", "time.sleep")
STACK: Final = tuple(f"shop/layer_{depth}.py:{depth} call_{depth}" for depth in range(8))


def sites_of(process: int, sequence: int, number: int, profiles: bool) -> tuple[SiteReport, ...]:
    """Return the reports of `number` call sites, all of which have changed since the last sequence."""
    made = []
    for at in range(number):
        more: dict[str, Any] = {}
        if profiles:
            where = {label: sequence * 1_000 + at * 10 + place for place, label in enumerate(LABELS)}
            held = sum(where.values()) + 17 * sequence
            more["profile"] = HoldProfile(sequence * 12, held, sequence * 3, sequence * 2, where)
            more["stack"] = STACK if sequence % 60 == at else ()
        made.append(
            SiteReport(
                pool=1 + at * 2 // number,
                call_site=f"program_{process % 20:02}/views_{at:02}.py:{100 + at} place_order_{at:02}",
                held=1, longest=1.5, holds=1_000 + sequence, hold_ms=40_000 + sequence, usual=0.05, **more,
            )
        )  # fmt: skip
    return tuple(made)


def report(process: int, sequence: int, options: argparse.Namespace, profiles: bool) -> Report:
    drawn = random.Random(process * 1_009 + sequence)
    touched = None if sequence == 1 else some(drawn, CONNECTIONS, 0.1)
    made = report_of(process, sequence, CONNECTIONS, touched)
    due = sequence == 1 or (sequence + process) % EVERY == 0
    return msgspec.structs.replace(
        made, sites=sites_of(process, sequence, options.sites, profiles) if due else ()
    )


def resident() -> int:
    """Return this process's resident memory in bytes."""
    pages = int(FilePath("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def work(options: argparse.Namespace) -> None:
    """Measure when asked to: one line on stdin, one line of JSON on stdout."""
    profiles = HoldProfile is not None and not options.plain
    before = resident()
    node = Node()
    node.take(report(number, 1, options, profiles) for number in range(options.processes))
    gc.collect()
    memory = resident() - before
    checkpoint = node.checkpoint()
    print(json.dumps({"memory": memory, "checkpoint": len(checkpoint)}), flush=True)
    del checkpoint
    sequence = 1
    for _ in sys.stdin:
        took = []
        for _ in range(EVERY):
            sequence += 1
            sent = [
                node.path.sent(report(number, sequence, options, profiles)) for number in range(REPORTING)
            ]
            gc.collect()
            began = time.process_time()
            for data in sent:
                node.path.queue(data)
            batch = node.path.batch()
            assert batch is not None
            node.apply(node.path.command(batch))
            took.append(time.process_time() - began)
        state = node._group.state
        began = time.process_time()
        frames = [node.encoded(frame) for frame in state.rows(Query("site"), About("s", "n", "n", True, 0.0))]
        answer = time.process_time() - began
        print(
            json.dumps(
                {
                    "report_us": 1e6 * sum(took) / (EVERY * REPORTING),
                    "answer_ms": 1e3 * answer,
                    "answer_bytes": sum(map(len, frames)),
                }
            ),
            flush=True,
        )


class Worker:
    """This program in another process, with the package of one tree."""

    def __init__(self, tree: FilePath, options: argparse.Namespace, plain: bool) -> None:
        command = [sys.executable, __file__, "--work", f"--processes={options.processes}"]
        command += [f"--sites={options.sites}", *(["--plain"] if plain else [])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )
        self.first = self._line()

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line: dict[str, float] = json.loads(self._process.stdout.readline())
        return line

    def measure(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", type=FilePath, help="the tree of another version")
    parser.add_argument("--processes", type=int, default=300)
    parser.add_argument("--sites", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return 0
    here = FilePath(__file__).resolve().parents[1]
    workers = {
        "before": Worker(options.other or here, options, plain=True),
        "with profiles": Worker(here, options, plain=False),
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            measured[name].append(worker.measure())
    figures = {
        name: {
            **worker.first,
            **{key: statistics.median([one[key] for one in measured[name]]) for key in measured[name][0]},
        }
        for name, worker in workers.items()
    }
    for worker in workers.values():
        worker.close()
    for key, scale, unit in (
        ("report_us", 1.0, "us of CPU per report"),
        ("memory", 1e-6, "MB of memory"),
        ("checkpoint", 1e-6, "MB of checkpoint"),
        ("answer_ms", 1.0, "ms for the rows by call site"),
        ("answer_bytes", 1e-6, "MB of these rows"),
    ):
        before, now = (figures[name][key] * scale for name in workers)
        print(f"{unit:30} {before:10.2f} {now:10.2f}  x{now / before:.3f}")
    if options.json:
        FilePath(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How long a scrape of many programs takes, and whether reports have to wait for it.

    python benchmarks/metrics.py [--programs N] [--scrapes N] [--json FILE]

One real connmond has the programs in its replica, each reported by one simulated process. All processes
report between two scrapes, and some of them during the scrapes. The targets are printed and not judged. Exit
code 1 if a page does not have exactly the programs and totals that were reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from simulated import WAIT, Wrong, _Speaker, free_ports, launched, until

from connmon.protocol.frames import Ack
from connmon.protocol.reports import PoolInfo, PoolReport, Process, Report
from connmon.protocol.values import Gauges, Peaks, Times, Totals

CHECKOUTS: Final = 7
#: Waits, holds and connects of up to half a second.
TIMES: Final = Times(*[{number: number for number in range(60, 117)}] * 3)
#: Processes that report while pages are made, and how often.
PROBES: Final = 20
EVERY: Final = 0.2


class One(_Speaker):
    """One process, the only one of its program."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.sequence = 0
        self.sent = 0.0
        self.took: list[float] = []
        self.answered = asyncio.Event()

    def report(self) -> None:
        self.sequence += 1
        info = PoolInfo("mysql://db/x", "mysql", "db", 3306, f"d{self.number % 50}", "QueuePool", 5, 10, 30.0)
        pool = PoolReport(
            1, info, Gauges(1, 15, 0, 3, 2), Totals(3, 0, CHECKOUTS, 5), Peaks(3, 2, 0, 0.0), times=TIMES
        )
        who = Process(f"host{self.number % 100}", f"program-{self.number}", self.number, 1, None, None, 1.0)
        self.sent = time.perf_counter()
        self.answered.clear()
        self.write(Report(f"i{self.number}", self.sequence, 0, 1.0, Peaks(), (pool,), process=who))

    def heard(self, message: Any) -> None:
        if isinstance(message, Ack):
            self.took.append(time.perf_counter() - self.sent)
            self.answered.set()


def scrape(port: int, programs: int) -> tuple[float, int]:
    """Return seconds and bytes of a scrape; it runs in a separate process. Raises Wrong."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        page = answer.read()
    took = time.perf_counter() - began
    checkouts = [
        float(line.rpartition(b" ")[2]) for line in re.findall(rb"^connmon_checkouts_total\{.*$", page, re.M)
    ]
    if len(checkouts) != programs or set(checkouts) != {float(CHECKOUTS)}:
        raise Wrong(f"the page has {len(checkouts)} programs, with {sum(checkouts):.0f} checkouts in all")
    return took, len(page)


async def everyone(ones: list[One]) -> None:
    """Have each of these processes report once."""
    for at in range(0, len(ones), 200):
        some = ones[at : at + 200]
        for one in some:
            one.report()
        for one in some:
            await asyncio.wait_for(one.answered.wait(), WAIT)


async def probe(ones: list[One], over: Callable[[], bool]) -> list[float]:
    """Have these processes report until it is over; return the seconds of each acknowledgement."""

    async def go(one: One) -> list[float]:
        one.took.clear()
        while not over():
            one.report()
            await asyncio.wait_for(one.answered.wait(), WAIT)
            await asyncio.sleep(EVERY)
        return one.took

    return [seconds for durations in await asyncio.gather(*map(go, ones)) for seconds in durations]


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "max": ordered[-1],
    }


async def measure(programs: int, scrapes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        port, metrics = free_ports(2)
        config = Path(directory, "connmon.cfg")
        config.write_text(
            f"[connmon_service_default]\nname: default\nlease: 3600\nmetrics: 127.0.0.1:{metrics}\n"
            f"nodes:\n    node1 hostname=127.0.0.1:{port}\n"
        )
        log = Path(directory, "log")
        with log.open("wb") as output:
            node = launched(
                [sys.executable, "-m", "connmon.cluster.daemon", "-c", str(config)], stderr=output,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            await until(lambda: b"ready service=" in log.read_bytes(), "the node")
            ones = [One(number) for number in range(programs)]
            for at in range(0, programs, 200):
                some = ones[at : at + 200]
                await asyncio.gather(*(one.open(port, "application") for one in some))
                await everyone(some)
            ended = asyncio.ensure_future(everyone(ones[PROBES:]))
            quiet = await probe(ones[:PROBES], ended.done)
            await ended
            loop = asyncio.get_running_loop()
            took: list[float] = []
            size = 0

            async def scraping(scraper: ProcessPoolExecutor) -> None:
                nonlocal size
                for _ in range(scrapes):
                    await everyone(ones[PROBES:])  # so that everything has changed since the last scrape
                    seconds, size = await loop.run_in_executor(scraper, scrape, metrics, programs)
                    took.append(seconds)
                    await asyncio.sleep(1.0)  # longer than the node reuses a page

            # In a separate process: the work of this one would delay the scrape.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as scraper:
                await loop.run_in_executor(scraper, scrape, metrics, programs)
                ended = asyncio.ensure_future(scraping(scraper))
                busy = await probe(ones[:PROBES], ended.done)
                await ended
            for one in ones:
                one.close()
            return {
                "programs": programs,
                "page_bytes": size,
                "scrape_seconds": spread(took),
                "report_seconds_without_scrapes": spread(quiet),
                "report_seconds_with_scrapes": spread(busy),
                "load": os.getloadavg()[0],
            }
        finally:
            node.kill()
            node.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=5000)
    parser.add_argument("--scrapes", type=int, default=20)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    try:
        figures = asyncio.run(measure(options.programs, options.scrapes))
    except Wrong as error:
        print(f"WRONG: {error}")
        return 1
    size = figures["page_bytes"] / 1e6
    print(f"{figures['programs']} programs, a page of {size:.1f} MB, load {figures['load']:.1f}")
    for name, text in (
        ("scrape_seconds", "a scrape (target: at most 500 ms)"),
        ("report_seconds_without_scrapes", "a report until acknowledged, without scrapes"),
        ("report_seconds_with_scrapes", "a report until acknowledged, with scrapes"),
    ):
        values = "  ".join(f"{key} {value * 1000:.0f} ms" for key, value in figures[name].items())
        print(f"{text}: {values}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

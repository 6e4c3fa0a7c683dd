"""How much longer a short program takes to end with connmon, by the state of its node.

    python benchmarks/exit.py [--rounds N] [--life SECONDS]

A program uses its pool once, runs for `--life` seconds and ends. The time is from its last line to the end of
the process. A round runs one program of each kind, in random order. The result is the medians, and the median
of the differences from the program without connmon in the same round. "without, once more" is the
measurement's error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from overhead import HOST, _port, connmond

PROGRAM = """
import sys, time
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[1])
connection = engine.connect()
connection.execute(text("select 1"))
time.sleep(float(sys.argv[2]))
print(time.monotonic(), flush=True)
"""
KINDS = (
    "without connmon",
    "without, once more",
    "node is well",
    "no node",
    "stopped by SIGSTOP",
    "says nothing",
)


def ends(url: str, life: float) -> float:
    """Run the program; return the milliseconds from its last line to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(life)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.wait()
    return (time.monotonic() - float(line)) * 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--life", type=float, default=0.3)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        silent = stack.enter_context(socket.create_server((HOST, 0)))
        well, other = Path(directory, "well"), Path(directory, "stopped")
        well.mkdir()
        other.mkdir()
        address = stack.enter_context(connmond(well))
        stopped = stack.enter_context(connmond(other))
        (process,) = [
            child for child in psutil.Process().children() if str(other) in " ".join(child.cmdline())
        ]
        process.suspend()
        try:
            plain = f"sqlite:///{directory}/x.db"
            watched = f"{plain}?plugin=connmon&connmon_program=exit&connmon_addr="
            urls = {
                "without connmon": plain,
                "without, once more": plain,
                "node is well": watched + address,
                "no node": f"{watched}{HOST}:{_port()}",
                "stopped by SIGSTOP": watched + stopped,
                "says nothing": f"{watched}{HOST}:{silent.getsockname()[1]}",
            }
            for _ in range(arguments.rounds):
                for kind in random.sample(KINDS, len(KINDS)):
                    times[kind].append(ends(urls[kind], arguments.life))
        finally:
            process.resume()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {arguments.rounds} rounds")
    print(f"{'milliseconds from the last line to the end':44} {'median':>7} {'longer':>7} {'p90':>7}")
    for kind in KINDS:
        longer = [a - b for a, b in zip(times[kind], times["without connmon"], strict=True)]
        p90 = sorted(longer)[len(longer) * 9 // 10]
        median = statistics.median(times[kind])
        print(f"{kind:44} {median:7.1f} {statistics.median(longer):7.1f} {p90:7.1f}")


if __name__ == "__main__":
    main()

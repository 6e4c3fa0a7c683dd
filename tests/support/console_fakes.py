"""The rows of an operator's fleet, and a small node that answers with them, for the console's tests.

Run as a program, it serves until stdin ends: `python console_fakes.py [PORT]`; it prints its port.
"""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, get_args

from connmon.protocol import frames
from connmon.protocol.queries import History, HistoryQuery, RowsQuery, Series, UsersQuery, WaitsQuery
from connmon.protocol.reports import PoolInfo, Process, Usage
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    Figures,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Row,
    RowKey,
    Rows,
    SiteRow,
    Verdict,
)
from connmon.protocol.values import Gauges, Totals, VerdictWord

#: The time of the rows by the replica's clock, which has stood still for `STALE` seconds since.
CLOCK: Final = 400_000.0
STALE: Final = 0.2
INFO: Final = PoolInfo(
    url="mysql+pymysql://nova@db1/nova",
    dialect="mysql",
    database_host="db1",
    database_port=3306,
    database="nova",
    pool_class="QueuePool",
    pool_size=5,
    max_overflow=10,
    timeout=30.0,
)


COMMAND: Final = "/usr/bin/nova-api --config x"
LEAK: Final = (
    Verdict(
        "LEAK", "a connection has been held for 41s at 310.2 checkouts/s: see its call site and give it back"
    ),
    Verdict("SATURATED", "5 wait up to 12s"),
)
SILENT: Final = (Verdict("LOST", "the process is stopped, or its host or network is down"),)


def figures(
    connections: int = 0,
    out: int = 0,
    waiting: int = 0,
    *,
    wait: float | None = None,
    held: float | None = None,
    processes: int = 1,
    lost: int = 0,
    rate: float = 0.0,
    capacity: int = 15,
    pools: int = 1,
    ago: float = 0.8,
    most: int | None = None,
    wrong: tuple[Verdict, ...] = (),
) -> Figures:
    """Return figures of a row, reported `ago` seconds before CLOCK; `wait` and `held` are seconds by then."""
    checkouts = out + round(rate * 300)
    return Figures(
        processes=processes,
        lost_processes=lost,
        gauges=Gauges(
            pools=pools,
            capacity=capacity,
            unbounded=0,
            connections=connections,
            checked_out=out,
            overflow=max(0, connections - 5 * pools),
            detached=0,
            waiting=waiting,
        ),
        totals=Totals(
            connects=connections + 13,
            closes=13,
            checkouts=checkouts,
            checkins=checkouts - out,
            invalidations=1,
            timeouts=3 if waiting else 0,
        ),
        max_processes=processes,
        max_connections=most or connections + 2,
        max_checked_out=out + 16,
        max_waiting=waiting + 4,
        longest_wait=wait or 0.0,
        waiting_since=None if wait is None else CLOCK - ago - wait,
        held_since=None if held is None else CLOCK - ago - held,
        checkouts_per_second=rate,
        reported=CLOCK - ago,
        verdicts=wrong,
    )


FLEET: tuple[Row, ...] = (
    ProgramRow(
        "ctl1",
        "nova-api",
        "connected",
        figures(78, 31, 5, wait=12.4, held=41, processes=8, rate=310.2, capacity=240, pools=16, wrong=LEAK),
    ),
    ProgramRow(
        "ctl1",
        "neutron-server",
        "connected",
        figures(40, 4, held=0.4, processes=4, rate=88.1, capacity=60, pools=4),
    ),
    ProgramRow("ctl1", "keystone", "connected", figures(12, 0, processes=3, rate=4.0, capacity=45, pools=3)),
    ProgramRow(
        "ctl2",
        "cinder-volume",
        "lost",
        figures(6, 2, held=266_400, processes=0, lost=2, capacity=30, pools=2, ago=21, wrong=SILENT),
    ),
    ProgramRow(
        "ctl2", "glance-api", "gone", figures(0, 0, processes=0, capacity=0, pools=0, ago=751, most=22)
    ),
    ProcessRow(
        instance="i-4711",
        node="node1",
        process=Process(
            host="ctl1", program="nova-api", pid=4711, ppid=1, user="nova", command=COMMAND, started=None
        ),
        started=CLOCK - 7500,
        usage=Usage(12.5, 148_000_000, 9, 77),
        state="connected",
        figures=figures(15, 15, 5, wait=12.4, held=41, rate=120.5, pools=2, capacity=20, wrong=LEAK),
    ),
    ProcessRow(
        instance="i-4712",
        node="node1",
        process=Process(
            host="ctl1", program="nova-api", pid=4712, ppid=1, user="nova", command=COMMAND, started=None
        ),
        started=CLOCK - 7400,
        usage=Usage(2.5, 141_000_000, 9, 70),
        state="connected",
        figures=figures(9, 2, held=3, rate=80.0, pools=2, capacity=20),
    ),
    ProcessRow(
        instance="i-4713",
        node="node1",
        process=Process(
            host="ctl1", program="nova-api", pid=4713, ppid=1, user="nova", command=None, started=None
        ),
        started=None,
        usage=Usage(),
        state="lost",
        figures=figures(9, 2, held=3, rate=80.0, pools=2, capacity=20, ago=19, wrong=SILENT),
    ),
    PoolRow(
        instance="i-4711",
        number=0,
        info=INFO,
        state="connected",
        figures=figures(14, 14, 5, wait=12.4, held=41, rate=100.0, wrong=LEAK),
    ),
    PoolRow(
        instance="i-4711",
        number=1,
        info=INFO,
        state="connected",
        figures=figures(1, 1, held=2.4, rate=20.5, capacity=5),
    ),
    *(
        ConnectionRow(
            instance="i-4711",
            number=number,
            pool=0,
            server_id=884_200 + number,
            state="checked_out",
            opened=CLOCK - 900 - number,
            held_since=CLOCK - 0.8 - 41 + number,
            holder=f"Thread-{number}",
            call_site=None,
            stack=(),
            verdict=None if number else "LEAK",
        )
        for number in range(14)
    ),
    PoolRow(
        instance="i-4713",
        number=0,
        info=INFO,
        state="lost",
        figures=figures(9, 2, held=3, rate=80.0, ago=19, wrong=SILENT),
    ),
    ConnectionRow(
        instance="i-4713",
        number=0,
        pool=0,
        server_id=884_300,
        state="checked_out",
        opened=CLOCK - 90,
        held_since=CLOCK - 3,
        holder="MainThread",
        call_site=None,
        stack=(),
    ),
    ConnectionRow(
        instance="i-4711",
        number=14,
        pool=1,
        server_id=None,
        state="idle",
        opened=CLOCK - 60,
        held_since=None,
        holder=None,
        call_site=None,
        stack=(),
    ),
)
NOVA: Final[RowKey] = ("database", "mysql", "db1", 3306, "nova")
FLEET += (
    HostRow(
        "ctl1",
        3,
        "connected",
        figures(130, 35, 5, wait=12.4, held=41, processes=15, rate=402.3, capacity=345, pools=23, wrong=LEAK),
    ),
    HostRow(
        "ctl2",
        2,
        "lost",
        figures(6, 2, held=266_400, processes=0, lost=2, capacity=30, pools=2, ago=21, wrong=SILENT),
    ),
    DatabaseRow(
        dialect="mysql",
        database_host="db1",
        database_port=3306,
        database="nova",
        programs=2,
        state="connected",
        figures=figures(
            90, 31, 5, wait=12.4, held=41, processes=8, rate=310.2, capacity=240, pools=16, wrong=LEAK
        ),
    ),
    DatabaseRow(
        dialect="mysql",
        database_host="db1",
        database_port=3306,
        database="keystone",
        programs=1,
        state="connected",
        figures=figures(12, 0, processes=3, rate=4.0, capacity=45, pools=3),
    ),
)
TOTALS: Final = figures(
    136, 37, 5, wait=12.4, held=266_400, processes=15, lost=2, rate=402.3, capacity=375, pools=23
)


def wanted(rows: Iterable[Row], query: RowsQuery) -> tuple[Row, ...]:
    """Return the rows that belong to the answer to a query."""
    if isinstance(query, WaitsQuery):
        troubled = {
            (row.instance, row.number)
            for row in rows
            if isinstance(row, PoolRow)
            and row.state != "lost"
            and (row.figures.gauges.waiting or (row.figures.held_since or CLOCK) < CLOCK - query.held)
        }
        return tuple(
            row
            for row in rows
            if (isinstance(row, PoolRow) and (row.instance, row.number) in troubled)
            or (isinstance(row, ConnectionRow) and (row.instance, row.pool) in troubled and row.held_since)
            or (isinstance(row, ProcessRow) and row.instance in {instance for instance, _ in troubled})
        )
    if isinstance(query, UsersQuery):
        first = (query.database or "?")[0]
        return tuple(row for row in rows if isinstance(row, ProgramRow) and row.program.startswith(first))
    kinds: dict[str, tuple[type, ...]] = {
        "program": (ProgramRow,),
        "host": (HostRow,),
        "database": (DatabaseRow,),
        "process": (ProcessRow,),
        "pool": (ProcessRow, PoolRow),
        "connection": (ProcessRow, PoolRow, ConnectionRow),
        "site": (SiteRow,),
    }

    rows = tuple(rows)
    processes = {row.instance: row.process for row in rows if isinstance(row, ProcessRow)}

    def fits(row: Row) -> bool:
        if not isinstance(row, kinds.get(query.by, ())):
            return False
        if query.instance is not None and getattr(row, "instance", None) != query.instance:
            return False
        who: Any = row.process if isinstance(row, ProcessRow) else row
        if isinstance(row, PoolRow | ConnectionRow):  # their host and program are those of their process
            who = processes.get(row.instance, row)
        return query.host in (None, getattr(who, "host", query.host)) and query.program in (
            None,
            getattr(who, "program", query.program),
        )

    return tuple(row for row in rows if fits(row))


def history(query: HistoryQuery, node: str = "node1") -> History:
    """Return the history of the rows asked for: unknown at first, then a wave."""
    rates = tuple(None if at < 60 else 100.0 + 90.0 * math.sin(at / 12) for at in range(150))
    counts = tuple(None if at < 60 else 40 + at // 10 for at in range(150))
    series = tuple(Series(key, rates, counts) for key in query.keys if key[-1] != "glance-api")
    return History(
        service="default", node=node, number=150, interval=2.0, series=series, timeouts=(), span=600.0
    )


def answer(
    query: RowsQuery,
    rows: Iterable[Row] = FLEET,
    *,
    node: str = "node1",
    quorum: bool = True,
    clock: float = CLOCK,
    totals: Figures | None = None,
) -> Rows:
    """Return a node's whole answer to a query."""
    rows = tuple(rows)
    return Rows(
        service="default",
        node=node,
        leader=node if quorum else None,
        quorum=quorum,
        stale=STALE if quorum else 41.0,
        epoch="e-" + node,
        version=1,
        clock=clock - STALE,
        complete=True,
        hosts=len({row.host for row in rows if isinstance(row, ProgramRow)}),
        programs=sum(isinstance(row, ProgramRow) for row in rows),
        totals=totals or (TOTALS if rows else figures(processes=0, capacity=0, pools=0)),
        rows=wanted(rows, query),
        verdicts=_verdicts(rows),
    )


def _verdicts(rows: Iterable[Row]) -> tuple[tuple[VerdictWord, int], ...]:
    """Return how many programs have each verdict, the gravest first."""
    words = [
        row.figures.verdicts[0].word for row in rows if isinstance(row, ProgramRow) and row.figures.verdicts
    ]
    gravest: tuple[VerdictWord, ...] = get_args(VerdictWord)
    return tuple((word, words.count(word)) for word in gravest if word in words)


class FakeNode:
    """A node on loopback, in threads. Change `rows`, `quorum`; `stop` breaks all connections."""

    def __init__(
        self, name: str = "node1", rows: Iterable[Row] = FLEET, port: int = 0, lively: bool = False
    ) -> None:
        self.name = name
        self.rows = tuple(rows)
        self.quorum = True
        self.totals: Figures | None = None
        self.after: tuple[int, Iterable[Row]] | None = None
        """After this many queries it has these rows."""
        self.queries: list[RowsQuery] = []
        self._lively = lively
        self._began = time.monotonic()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):  # the other side has closed it
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._accepting.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        side = frames.NodeSide()
        try:
            while data := sock.recv(65536):
                for message in side.receive(data):
                    if isinstance(message, frames.Hello):
                        sock.sendall(side.welcome("default", self.name))
                    elif isinstance(message, HistoryQuery):
                        sock.sendall(frames.frame(history(message, self.name)))
                    elif isinstance(message, RowsQuery.__args__):  # type: ignore[attr-defined]
                        self.queries.append(message)
                        sock.sendall(frames.frame(self._answer(message)))
        except OSError:
            return

    def _answer(self, query: RowsQuery) -> Rows:
        clock = CLOCK + (time.monotonic() - self._began if self._lively else 0.0)
        if self.after is not None and len(self.queries) > self.after[0]:
            self.rows, self.after = tuple(self.after[1]), None
        rows: tuple[Row, ...] = self.rows
        if self._lively:
            wave = round(10 + 10 * math.sin(clock))
            busy = ProgramRow(
                "ctl1", "keystone", "connected", figures(12 + wave, wave, processes=3, rate=float(wave))
            )
            rows = tuple(busy if row.key == busy.key else row for row in rows)
        return answer(query, rows, node=self.name, quorum=self.quorum, clock=clock, totals=self.totals)


def many(programs: int) -> tuple[Row, ...]:
    """Return a fleet of many programs."""
    return tuple(
        ProgramRow(
            f"host{number % 50:03}", f"program-{number:04}", "connected", figures(number % 97, number % 13)
        )
        for number in range(programs)
    )


if __name__ == "__main__":
    served = FakeNode(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0, lively=True)
    print(served.port, flush=True)
    sys.stdin.read()
    served.stop()

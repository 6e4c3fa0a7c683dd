# ruff: noqa: E501  (a table of long lines is easier to read than one of short pieces)
"""A made fleet of 20 programs on 5 hosts in the middle of an incident: for the console's golden screens.

All of it follows from the table `PROGRAMS`, so that it is the same in every run. As a program, it serves them until
stdin ends, and prints its port, for docs/draw_screen.py.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from connmon.protocol.reports import HoldProfile, PoolInfo, Process, Usage
from connmon.protocol.rows import (
    ConnectionRow,
    DatabaseRow,
    Figures,
    HostRow,
    PoolRow,
    ProcessRow,
    ProgramRow,
    Quantiles,
    Row,
    SiteRow,
    Verdict,
)
from connmon.protocol.values import Gauges, HolderIn, RowState, Totals, VerdictWord
from tests.support.console_fakes import CLOCK, FakeNode

HOSTS: Final = ("web-a1", "web-a2", "web-b1", "batch1", "db-proxy1")


class Site(NamedTuple):
    """A call site that holds connections."""

    place: str
    held: tuple[float, ...]
    """Seconds, of each connection that it holds."""
    where: HolderIn = "application"
    now: str | None = None
    verdict: VerdictWord | None = None
    waiting: int = 0
    usual: float = 0.02
    stack: tuple[str, ...] = ()
    mean: float | None = None
    """Connections that it holds on average. None: four fifths of those that it holds now."""
    rate: float | None = None
    """Holds per second. None: two fifths of its program's checkouts."""
    places: tuple[tuple[str, int], ...] = ()
    """Percent of its time, by where its holders are. (): as `where` has it."""
    before: tuple[tuple[str, int], ...] = ()
    """The same since first seen. (): as now."""
    caused: float = 0.0
    """How many wait because of it, on average."""
    old: bool = False
    """Its processes are of a version without profiles."""


class Made(NamedTuple):
    """A program on a host."""

    host: int
    program: str
    processes: int
    size: int
    """The most connections of one pool."""
    idle: int
    rate: float
    sites: tuple[Site, ...] = ()
    verdicts: tuple[tuple[VerdictWord, str], ...] = ()
    state: RowState = "connected"
    waits: float | None = None
    timeouts: int = 0
    database: str = "shop"
    connect: float = 0.004


CHECKOUT_STACK: Final = (
    "shop/payment/gateway.py:214 _wait_for_answer",
    "shop/payment/gateway.py:88 charge",
    "shop/orders/checkout.py:131 place_order",
    "shop/api/views.py:57 post",
)
#: A stack while a statement waits: the driver and SQLAlchemy first.
LOCKED_STACK: Final = (
    "psycopg/waiting.py:228 wait_epoll",
    "psycopg/connection.py:453 wait",
    "psycopg/cursor.py:97 execute",
    *(
        f"sqlalchemy/engine/{frame}"
        for frame in (
            "default.py:952 do_execute",
            "base.py:1967 _exec_single_context",
            "base.py:1846 _execute_context",
            "base.py:1641 _execute_clauseelement",
        )
    ),
    "sqlalchemy/sql/elements.py:526 _execute_on_connection",
    "sqlalchemy/engine/base.py:1419 execute",
    *(
        f"sqlalchemy/orm/{frame}"
        for frame in (
            "context.py:306 orm_execute_statement",
            "session.py:2246 _execute_internal",
            "session.py:2365 execute",
            "query.py:2863 _iter",
            "query.py:2819 first",
        )
    ),
    "billing/invoices/locks.py:204 number_for_update",
    "billing/invoices/api.py:77 create",
    "billing/wsgi.py:31 application",
    *(
        f"gunicorn/{frame}"
        for frame in (
            "workers/sync.py:177 handle_request",
            "workers/sync.py:131 handle",
            "workers/sync.py:70 run",
            "workers/base.py:147 init_process",
            "arbiter.py:205 run",
            "app/base.py:236 run",
            "app/wsgiapp.py:67 run",
        )
    ),
)
REPORT_STACK: Final = (
    "reports/worker/loop.py:52 next_task",
    "reports/worker/loop.py:31 run",
    "reports/worker/main.py:19 main",
)
PROGRAMS: Final[tuple[Made, ...]] = (
    Made(
        host=0,
        program="shop.main:app",
        processes=4,
        size=10,
        idle=0,
        rate=212.0,
        sites=(
            Site(
                place="shop/orders/checkout.py:118 place_order",
                held=tuple(4.1 - 0.1 * n for n in range(36)),
                where="application",
                now="shop/payment/gateway.py:214 _wait_for_answer",
                verdict="SATURATED",
                waiting=14,
                usual=0.9,
                stack=CHECKOUT_STACK,
                mean=35.6,
                rate=39.7,
                places=(("requests", 86), ("database", 8), ("own code", 6)),
                before=(("requests", 51), ("database", 37), ("own code", 11), ("json", 1)),
                caused=19.4,
            ),
            Site(
                place="shop/catalog/search.py:44 suggest",
                held=(0.3, 0.2, 0.1, 0.1),
                where="database",
                now=None,
                verdict=None,
                waiting=9,
                usual=0.06,
                mean=3.24,
                rate=172.3,
                places=(("database", 93), ("own code", 7)),
                caused=1.77,
            ),
        ),
        verdicts=(
            (
                "SATURATED",
                "23 wait up to 6.2s, 40 of 40 checked out, 36 of them by shop/orders/checkout.py:118 "
                "place_order in the application's own work (shop/payment/gateway.py:214): hold for a shorter time",
            ),
            ("TIMEOUTS", "7 checkouts gave up waiting in the last minutes"),
        ),
        waits=6.2,
        timeouts=7,
    ),
    Made(
        host=1,
        program="shop.main:app",
        processes=4,
        size=10,
        idle=12,
        rate=198.5,
        sites=(
            Site(
                place="shop/orders/checkout.py:118 place_order",
                held=(0.9, 0.7, 0.4),
                where="application",
                now="shop/payment/gateway.py:214 _wait_for_answer",
                verdict=None,
                waiting=0,
                usual=0.9,
                stack=CHECKOUT_STACK,
                mean=2.81,
                rate=38.1,
                places=(("requests", 49), ("database", 38), ("own code", 12), ("json", 1)),
            ),
            Site(
                place="shop/catalog/search.py:44 suggest",
                held=(0.1,),
                where="database",
                now=None,
                verdict=None,
                waiting=0,
                usual=0.06,
            ),
        ),
    ),
    Made(
        host=3,
        program="celery@reports worker",
        processes=2,
        size=5,
        idle=1,
        rate=6.5,
        sites=(
            Site(
                place="reports/build/monthly.py:97 build",
                held=(1502.0, 311.0),
                where="elsewhere",
                now="reports/worker/loop.py:52 next_task",
                verdict="LEAK",
                waiting=0,
                usual=1.4,
                stack=REPORT_STACK,
                mean=2.0,
                rate=0.02,
                places=(("elsewhere", 100),),
                before=(("elsewhere", 77), ("database", 19), ("pandas", 4)),
            ),
            Site(
                place="reports/build/daily.py:61 build",
                held=(2.2,),
                where="database",
                now=None,
                verdict=None,
                waiting=0,
                usual=1.1,
                mean=0.66,
                rate=0.6,
                places=(("database", 58), ("pandas", 31), ("openpyxl", 9), ("own code", 2)),
            ),
        ),
        verdicts=(
            (
                "LEAK",
                "a connection taken in reports/build/monthly.py:97 build has been held for 25m, and its holder "
                "is elsewhere (reports/worker/loop.py:52 next_task): give it back there",
            ),
        ),
        database="reports",
    ),
    Made(
        host=2,
        program="billing.wsgi",
        processes=3,
        size=8,
        idle=3,
        rate=41.0,
        sites=(
            Site(
                place="billing/invoices/locks.py:203 number_for_update",
                held=(102.0, 87.0, 64.0, 31.0),
                where="database",
                now=None,
                verdict="BLOCKED",
                waiting=2,
                usual=0.04,
                stack=LOCKED_STACK,
                mean=3.9,
                rate=40.2,
                places=(("database", 100),),
                before=(("database", 88), ("own code", 9), ("boto3", 3)),
                caused=1.31,
            ),
        ),
        verdicts=(
            (
                "BLOCKED",
                "4 connections of billing/invoices/locks.py:203 number_for_update are in the database for up to "
                "1m42s: look for a lock (connmon whois, pg_blocking_pids)",
            ),
        ),
        waits=12.0,
        database="billing",
    ),
    Made(
        host=4,
        program="pgbouncer-check",
        processes=1,
        size=2,
        idle=1,
        rate=0.2,
        sites=(),
        verdicts=(("SLOW CONNECT", "making a connection takes 2.4s (p95)"),),
        connect=2.4,
    ),
    Made(
        host=2,
        program="cinder-volume",
        processes=2,
        size=15,
        idle=0,
        rate=0.0,
        sites=(),
        verdicts=(("LOST", "the process is stopped, or its host or network is down"),),
        state="lost",
        database="cinder",
    ),
    Made(
        host=1,
        program="nova-api",
        processes=8,
        size=30,
        idle=44,
        rate=310.2,
        sites=(Site("nova/db/main/api.py:1873 instance_get_by_uuid", (0.2, 0.1), "database"),),
        database="nova",
    ),
    Made(
        host=0,
        program="nova-api-metadata",
        processes=4,
        size=15,
        idle=9,
        rate=88.0,
        sites=(Site("nova/db/main/api.py:1873 instance_get_by_uuid", (0.1,), "database"),),
        database="nova",
    ),
    Made(host=2, program="nova-conductor", processes=4, size=15, idle=13, rate=61.2, database="nova"),
    Made(
        host=2,
        program="neutron-server",
        processes=4,
        size=15,
        idle=22,
        rate=140.3,
        sites=(Site("neutron/db/db_base_plugin_v2.py:643 _get_networks", (0.4, 0.2), "database"),),
        database="neutron",
    ),
    Made(
        host=1,
        program="neutron-server",
        processes=4,
        size=15,
        idle=20,
        rate=131.9,
        sites=(Site("neutron/db/db_base_plugin_v2.py:643 _get_networks", (0.3,), "database"),),
        database="neutron",
    ),
    Made(host=1, program="keystone", processes=3, size=15, idle=12, rate=4.0, database="keystone"),
    Made(
        host=0, program="glance-api", processes=0, size=0, idle=0, rate=0.0, state="gone", database="glance"
    ),
    Made(host=0, program="placement", processes=3, size=10, idle=6, rate=52.4, database="placement"),
    Made(
        host=3,
        program="celery@mail worker",
        processes=2,
        size=5,
        idle=4,
        rate=3.3,
        sites=(
            Site(
                "mail/queue.py:58 next_batch",
                (0.6,),
                "database",
                mean=0.42,
                rate=0.7,
                places=(("smtplib", 71), ("database", 22), ("time.sleep", 5), ("own code", 2)),
            ),
        ),
    ),
    Made(host=3, program="celery beat", processes=1, size=5, idle=1, rate=0.1),
    Made(host=3, program="airflow scheduler", processes=1, size=5, idle=3, rate=12.5, database="airflow"),
    Made(host=3, program="airflow triggerer", processes=1, size=5, idle=2, rate=2.5, database="airflow"),
    Made(
        host=4,
        program="inventory-sync",
        processes=2,
        size=5,
        idle=4,
        rate=9.1,
        sites=(Site("<string>:1 <module>", (3.0,), "database", old=True),),
    ),
    Made(host=4, program="django-admin clearsessions", processes=1, size=5, idle=1, rate=0.4),
)


FILLS: Final = (
    "pool postgresql://shop@db2.example.org/shop, pid 2100 (and 3 more): 9 connections taken here are most of the "
    "10 of a full pool for which 6 wait up to 6.2s: the application's own work takes the time: take it out of the "
    "transaction"
)


def _url(made: Made) -> str:
    driver = "mysql+pymysql" if made.database in ("nova", "neutron", "cinder") else "postgresql+psycopg"
    return f"{driver}://{made.database}@db{1 + (driver[0] == 'p')}.example.org/{made.database}"


def _figures(
    of: list[Made],
    processes: bool = True,
    out: int | None = None,
    part: float = 1.0,
    verdicts: bool = True,
    which: int = 0,
) -> Figures:
    """Return the figures of several programs; `part`: the share of one of several processes."""
    alive = [made for made in of if made.state == "connected"]
    held = [seconds for made in alive for site in made.sites for seconds in site.held]
    checked = sum(len(site.held) for made in alive for site in made.sites) if out is None else out
    waiting = sum(site.waiting for made in alive for site in made.sites)
    if part < 1.0:  # those that wait for the pool of process number `which`
        waiting = len(range(which, waiting, round(1 / part)))
    idle = round(sum(made.idle for made in alive) * part)
    capacity = round(sum(made.size * made.processes for made in alive) * part)
    rate = round(sum(made.rate for made in alive) * part, 1)
    waits = [made.waits for made in alive if made.waits is not None]
    worst = max(
        of, key=lambda made: (bool(made.verdicts), made.state == "connected", made.timeouts, made.rate)
    )
    ago = 751.0 if worst.state == "gone" and len(of) == 1 else 21.0 if not alive else 0.8
    if not waiting:
        waits = []
    if part < 1.0 and out == 0:
        held = []
    count = sum(made.processes for made in of if made.state == "connected") if processes else 1
    lost = sum(made.processes for made in of if made.state == "lost")
    first = min((made for made in of if made.verdicts), key=_gravity, default=worst)
    return Figures(
        processes=count,
        lost_processes=lost,
        gauges=Gauges(
            pools=max(1, count),
            capacity=capacity,
            unbounded=0,
            connections=idle + checked,
            checked_out=checked,
            overflow=0,
            detached=0,
            waiting=waiting,
        ),
        totals=Totals(
            connects=idle + checked + 40,
            closes=40,
            checkouts=round(rate * 300) + checked,
            checkins=round(rate * 300),
            invalidations=0,
            timeouts=7 if waiting else 0,
        ),
        max_processes=max(1, count),
        max_connections=idle + checked + 3,
        max_checked_out=checked + 5,
        max_waiting=waiting + 4 if waiting else 2,
        longest_wait=max(waits, default=0.0),
        waiting_since=CLOCK - ago - max(waits) if waits else None,
        held_since=CLOCK - ago - max(held) if held else None,
        checkouts_per_second=rate,
        reported=CLOCK - ago,
        waits=Quantiles(0.0, max(waits, default=0.002) / 2, max(waits, default=0.002)),
        holds=Quantiles(0.01, max((site.usual for made in of for site in made.sites), default=0.02), 4.0),
        connects=Quantiles(0.002, max(made.connect for made in of), 0.01),
        left_out=0,
        verdicts=tuple(Verdict(word, why) for word, why in first.verdicts) if verdicts else (),
        recent_timeouts=sum(made.timeouts for made in of),
    )


_GRAVE: Final = ("LEAK", "BLOCKED", "SATURATED", "TIMEOUTS", "LOST", "SLOW CONNECT", "OVERCOMMIT")


def _gravity(made: Made) -> int:
    return _GRAVE.index(made.verdicts[0][0])


def _of_program(at: int, made: Made) -> list[Row]:
    rows: list[Row] = [ProgramRow(HOSTS[made.host], made.program, made.state, _figures([made]))]
    place = 0
    for number in range(made.processes):
        instance = f"i-{at:02}-{number}"
        pid = 2100 + 97 * at + 3 * number
        holds = [
            (site, seconds)
            for site in made.sites
            for which, seconds in enumerate(site.held)
            if which % max(1, made.processes) == number
        ]
        part = 1.0 / made.processes
        figures = _figures([made], False, len(holds), part, bool(holds) or made.state == "lost", number)
        lost = made.state == "lost"
        process = Process(
            host=HOSTS[made.host],
            program=made.program,
            pid=pid,
            ppid=1,
            user="app",
            command=f"/usr/bin/python3 {made.program}",
            started=None,
        )
        usage = Usage() if lost else Usage(3.0 + at, 90_000_000 + at * 5_000_000, 9, 60)
        rows.append(
            ProcessRow(
                instance=instance,
                node="node1",
                process=process,
                started=CLOCK - 90_000 - 600 * at,
                usage=usage,
                state="lost" if lost else "connected",
                figures=figures,
            )
        )
        url = _url(made)
        dialect, server = url.partition("+")[0], url.partition("@")[2].partition("/")[0]
        info = PoolInfo(
            url=url,
            dialect=dialect,
            database_host=server,
            database_port=3306 if dialect == "mysql" else 5432,
            database=made.database,
            pool_class="QueuePool",
            pool_size=5,
            max_overflow=made.size - 5,
            timeout=30.0,
        )
        rows.append(
            PoolRow(
                instance=instance, number=0, info=info, state="lost" if lost else "connected", figures=figures
            )
        )
        for site, seconds in holds:
            place += 1
            rows.append(
                ConnectionRow(
                    instance=instance,
                    number=place,
                    pool=0,
                    server_id=884_000 + 100 * at + place,
                    state="checked_out",
                    opened=CLOCK - 4000 - place,
                    held_since=CLOCK - 0.8 - seconds,
                    holder=f"Thread-{place}",
                    call_site=site.place,
                    stack=site.stack or (site.place,),
                    server=None,
                    holder_in=site.where,
                    holder_site=site.now or (site.place if site.where != "ended" else None),
                    verdict=site.verdict if seconds > 60 else None,
                )
            )
        rows += (
            ConnectionRow(
                instance=instance,
                number=50 + idle,
                pool=0,
                server_id=890_000 + 100 * at + idle,
                state="idle",
                opened=CLOCK - 900 - idle,
                held_since=None,
                holder=None,
                call_site=None,
                stack=(),
            )
            for idle in range(min(2, made.idle))
        )
    rows += (_site_row(made, site) for site in made.sites)
    return rows


#: The recent profile covers so much, the whole one so much more.
RECENT_SECONDS: Final = 93.0
_WHOLE: Final = 120


def _mean(site: Site) -> float:
    return 0.8 * len(site.held) if site.mean is None else site.mean


def _profile(made: Made, site: Site, times: int, places: tuple[tuple[str, int], ...]) -> HoldProfile:
    """Return the profile of `times` as many seconds as the recent one covers."""
    by_place = places or ((("database", 94), ("own code", 6)) if site.where == "database" else ())
    held_ms = 1000.0 * times * RECENT_SECONDS * _mean(site)
    rate = 0.4 * made.rate if site.rate is None else site.rate
    return HoldProfile(
        holds=round(times * RECENT_SECONDS * rate),
        held_ms=round(held_ms),
        waited_ms=round(450.0 * RECENT_SECONDS * site.waiting),
        caused_ms=round(1000.0 * RECENT_SECONDS * site.caused),
        where={place: round(held_ms * 0.99 * percent / 100.0) for place, percent in by_place},
    )


def _site_row(made: Made, site: Site) -> SiteRow:
    return SiteRow(
        host=HOSTS[made.host],
        program=made.program,
        call_site=site.place,
        processes=made.processes,
        held=len(site.held),
        in_database=len(site.held) if site.where == "database" else 0,
        held_since=CLOCK - 0.8 - max(site.held),
        waiting=site.waiting,
        holds=round(made.rate * 900) + 7,
        hold_ms=round(made.rate * 900 * site.usual * 400),
        usual=site.usual,
        estimated=made.rate > 200,
        reported=CLOCK - 0.8,
        verdict=site.verdict,
        reason=FILLS if site.verdict == "SATURATED" else made.verdicts[0][1] if site.verdict else None,
        profile=None if site.old else _profile(made, site, _WHOLE, site.before or site.places),
        recent=None if site.old else _profile(made, site, 1, site.places),
        recent_seconds=0.0 if site.old else RECENT_SECONDS,
        share=None if site.old else _mean(site) / sum(map(_mean, made.sites)),
        stack=site.stack,
    )


def fleet() -> tuple[Row, ...]:
    """Return all rows of all groupings."""
    rows: list[Row] = []
    for at, made in enumerate(PROGRAMS):
        rows += _of_program(at, made)
    for number, host in enumerate(HOSTS):
        of = [made for made in PROGRAMS if made.host == number]
        rows.append(HostRow(host, len(of), "connected", _figures(of)))
    for url in sorted({_url(made) for made in PROGRAMS}):
        of = [made for made in PROGRAMS if _url(made) == url]
        dialect, server = url.partition("+")[0], url.partition("@")[2].partition("/")[0]
        port = 3306 if dialect == "mysql" else 5432
        state = "connected" if any(made.state == "connected" for made in of) else of[0].state
        rows.append(
            DatabaseRow(
                dialect=dialect,
                database_host=server,
                database_port=port,
                database=of[0].database,
                programs=len(of),
                state=state,
                figures=_figures(of),
            )
        )
    return tuple(rows)


FLEET: Final = fleet()
TOTALS: Final = _figures(list(PROGRAMS))
VERDICTS: Final = tuple(
    (word, sum(made.verdicts[0][0] == word for made in PROGRAMS if made.verdicts))
    for word in _GRAVE
    if any(made.verdicts and made.verdicts[0][0] == word for made in PROGRAMS)
)


if __name__ == "__main__":
    served = FakeNode(rows=FLEET)
    served.totals = TOTALS
    print(served.port, flush=True)
    sys.stdin.read()
    served.stop()

"""The call sites of a process have exactly the time that its pools count, whatever becomes of the pools."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon.plugin.call_site_accounts import CallSite, Held, Look, Sampling, SamplingSettings, Whereabouts
from connmon.plugin.call_site_reports import CallSiteReportSettings
from connmon.plugin.hold_profile import ProfileSettings
from connmon.plugin.ledger import Ledger, LedgerSettings
from connmon.plugin.pool_account import Entry, PoolAccount
from connmon.plugin.process_account import AccountSettings
from connmon.protocol.reports import Report
from tests.plugin.test_ledger import info


class Holders:
    """Sees every holder in the database."""

    def __init__(self) -> None:
        self.asked = 0

    def name(self, holder: Any) -> str:
        return "t"

    def frame_text(self, code: CodeType, number: int) -> str:
        return f"{code.co_filename}:{number} {code.co_name}"

    def whereabouts(self, holder: Any, code: CodeType | None, mine: bool) -> Whereabouts:
        return Whereabouts(None, None, ())

    def in_driver(self) -> frozenset[int]:
        return frozenset()

    def look(self, held: Sequence[Held], other_holders: Iterable[Any]) -> list[Look]:
        self.asked += len(held)
        return [Look("database", ((hold.code, 0),) if hold.code is not None else ()) for hold in held]

    def application(self, look: Look) -> tuple[CallSite, ...]:
        return tuple(look.frames)

    def stack_texts(self, look: Look) -> tuple[str, ...]:
        return ("stack",)


def function(name: str) -> CodeType:
    made: dict[str, Any] = {}
    exec(compile(f"def {name}(): pass", "app.py", "exec"), made)
    code = made[name].__code__
    assert isinstance(code, CodeType)
    return code


class Program:
    """A ledger, its clock, and what the last report said of each call site."""

    def __init__(self, settings: LedgerSettings | None = None) -> None:
        self.now = 100.0
        self.holders = Holders()
        self.ledger = Ledger(
            "i", threading.Lock, lambda: self.now, self.holders, settings or LedgerSettings()
        )
        self.sites: dict[tuple[int, str], int] = {}

    def pool(self, sampling: Sampling | None) -> PoolAccount:
        account = self.ledger.pool(info())
        account.sampling = sampling
        return account

    def take(self) -> Report | None:
        report = self.ledger.take(self.now)
        if report is not None:
            self.ledger.acknowledged(report.sequence)
            for pool in report.closed_pools:
                for key in [key for key in self.sites if key[0] == pool]:
                    del self.sites[key]
            for site in report.sites:
                assert site.profile is not None
                self.sites[site.pool, site.call_site] = site.profile.held_ms
                assert sum(site.profile.where.values()) <= site.profile.held_ms
        return report

    def hold(self, account: PoolAccount, code: CodeType, seconds: float) -> None:
        give_back(self.check_out(account, code), self, seconds)

    def check_out(self, account: PoolAccount, code: CodeType) -> Entry:
        entry = next((one for one in account.entries.values() if not one.since), None)
        if entry is None:
            entry = account.opened(id(account), self.now)
        entry.since = self.now
        entry.checkouts += 1
        account.live.checked_out += 1
        account.process_live.checked_out += 1
        account.find_call_site = lambda: (code, 1)
        if entry.checkouts >= entry.note_at:
            account.note(entry, self.now)
        return entry

    def counted_ms(self) -> int:
        accounts = [*self.ledger.pools.values(), *self.ledger.remains.values()]
        return sum(account.count()[1].hold_ms for account in accounts)


def give_back(entry: Entry, program: Program, seconds: float) -> None:
    program.now += seconds
    held = program.now - entry.since
    entry.holds.append(held)
    entry.checkins = entry.checkouts
    entry.since = 0.0
    if entry.noted_at == entry.checkouts:
        entry.end_noted(held)
    entry.pool.live.checked_out -= 1
    entry.pool.process_live.checked_out -= 1


def retire(account: PoolAccount) -> None:
    for entry in list(account.entries.values()):
        entry.end()
    account.retired = True


def few(rate: float) -> Sampling:
    return Sampling(SamplingSettings(checkouts_per_second=rate))


AT_ONCE = LedgerSettings(call_site_reports=CallSiteReportSettings(interval_seconds=0.0))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hold", "hold", "hold", "long", "look", "take", "retire", "off"]),
            st.integers(0, 3),
            st.floats(0.0001, 0.5),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_call_sites_sum_to_what_is_counted(steps: list[tuple[str, int, float]]) -> None:
    """Of pools that are sampled, not noted at all, closed or made again: in the end the sums are equal, and
    no report has more than was counted."""
    program = Program(AT_ONCE)
    functions = [function(f"f{number}") for number in range(4)]
    pools = [program.pool(few(2.0)), program.pool(None)]
    for step, number, seconds in steps:
        account = pools[number % 2]
        if step == "hold":
            for _ in range(5):
                program.hold(account, functions[number], seconds / 100.0)
        elif step == "long":
            entry = program.check_out(account, functions[number])
            program.now += seconds
            program.ledger.look(program.now, 0.0)
            give_back(entry, program, seconds)
        elif step == "look":
            program.ledger.look(program.now, 0.0)
        elif step == "retire":
            retire(account)
            pools[number % 2] = program.pool(few(2.0))
        elif step == "off":
            pools[number % 2] = program.pool(None)
        else:
            program.take()
            assert sum(program.sites.values()) <= program.counted_ms()
    program.ledger.end()
    program.take()
    assert sum(program.sites.values()) == program.counted_ms()


def test_a_pool_that_is_closed_soon() -> None:
    """A pool's time is split when the pool is closed, although it was never reported."""
    program = Program(AT_ONCE)
    first, second = function("first"), function("second")
    for _ in range(2):
        account = program.pool(few(5.0))
        for number in range(300):
            program.hold(account, second if number % 3 else first, 0.002)
        retire(account)
        program.take()
    program.now += 60.0
    program.take()
    assert sum(program.sites.values()) == program.counted_ms() > 1_000


def test_a_process_that_ends_soon() -> None:
    """The last report has all time, also that of which nothing is known."""
    program = Program(AT_ONCE)
    program.hold(program.pool(None), function("f"), 3.0)
    program.ledger.end()
    program.take()
    assert program.sites == {(0, "(other)"): 3_000}


def test_functions_of_one_text_are_one_call_site() -> None:
    """A module that is loaded again has its functions twice: they share one report."""
    program = Program(AT_ONCE)
    account = program.pool(few(100.0))
    program.hold(account, function("f"), 1.0)
    program.hold(account, function("f"), 0.5)
    program.take()
    assert program.sites == {(account.number, "app.py:1 f"): 1_500}


def test_generated_functions_take_bounded_memory() -> None:
    """Call sites that have no report of their own have no places either."""
    settings = LedgerSettings(accounts=AccountSettings(profile=ProfileSettings(stacks=4)))
    program = Program(settings)
    account = program.pool(few(1e9))
    for number in range(3_000):
        entry = program.check_out(account, function(f"f{number}"))
        program.now += 0.01
        program.ledger.look(program.now, 0.0)
        give_back(entry, program, 0.01)
        if not number % 100:
            program.take()
    assert len(account.time.profile.places) <= 65


@pytest.mark.parametrize("looks", [True, False])
def test_a_pool_without_looks(looks: bool) -> None:
    """Holders of an engine with connmon_profile=0 are not looked at, whatever other engines have."""
    program = Program()
    account = program.pool(few(100.0))
    account.looks = looks
    program.check_out(account, function("f"))
    program.ledger.look(program.now, 0.0)
    assert program.holders.asked == looks


def test_a_holder_of_several_connections() -> None:
    """A look knows which connection of a holder is the newest, also if some holders have only one."""
    program = Program()
    account = program.pool(few(100.0))
    asked: dict[int, bool] = {}

    def look(held: Sequence[Held], other_holders: Iterable[Any]) -> list[Look]:
        asked.update({round(hold.since): hold.newest for hold in held})
        return [Look(None) for _ in held]

    setattr(program.holders, "look", look)  # noqa: B010  # mypy lets no method be assigned to
    for holder in (1, 1, 2):
        program.check_out(account, function("f")).holder = holder
        program.now += 1.0
    program.ledger.look(program.now, 0.0)
    assert asked == {100: False, 101: True, 102: True}


def test_time_alone_is_no_news() -> None:
    """A call site that holds on, and nothing else, is reported at the interval, not each time."""
    program = Program()
    program.check_out(program.pool(few(100.0)), function("f"))
    reported = []
    for _ in range(12):
        report = program.take()
        reported.append(bool(report and report.sites))
        program.now += 1.0
    assert reported == [True, *[False] * 4] * 2 + [True, False]

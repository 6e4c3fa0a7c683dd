"""Looks at holds whose call site becomes known later."""

from __future__ import annotations

from types import CodeType

from connmon.plugin.call_site_accounts import CallSite, CallSiteAccount, CallSiteRoom, CallSites
from connmon.plugin.hold_profile import HeldTime, Lateness, PoolProfile, PoolTotals
from connmon.plugin.unidentified_looks import UnidentifiedLooks, UnidentifiedLookSettings

AT_ONCE = Lateness(late=False, preempted=False)


def code(name: str) -> CodeType:
    """Return the code of a function of this name."""
    return compile("0", f"/app/{name}.py", "exec")


QUERY, ORDERS, MAILS, LOOP = code("query"), code("orders"), code("mails"), code("loop")


def stack(function: CodeType) -> tuple[CallSite, ...]:
    """Return the application's frames of a holder: all call sites share a helper and a loop."""
    return (QUERY, 1), (function, 8), (LOOP, 3)


def seen() -> tuple[CallSites, CallSiteAccount]:
    """Return call sites of which one is known, and that one."""
    call_sites = CallSites(CallSiteRoom())
    orders = call_sites.of(ORDERS, 7)
    call_sites.seen_in(stack(ORDERS), orders, 10)
    return call_sites, orders


def test_function_that_says_most() -> None:
    """A shared helper, which is innermost, does not hide the call site further out."""
    call_sites, orders = seen()
    mails = call_sites.of(MAILS, 7)
    call_sites.seen_in(stack(MAILS), mails, 30)
    assert call_sites.taken_in(stack(ORDERS)) == ({orders: 1.0}, True)
    assert call_sites.taken_in(stack(MAILS)) == ({mails: 1.0}, True)


def test_function_of_several_call_sites() -> None:
    """In a function that holders of two call sites were seen in, a hold is of either, in proportion."""
    call_sites, orders = seen()
    mails = call_sites.of(MAILS, 7)
    call_sites.seen_in(stack(MAILS), mails, 30)
    assert call_sites.taken_in(((QUERY, 1), (LOOP, 3))) == ({orders: 0.25, mails: 0.75}, True)


def test_helper_that_few_were_seen_in() -> None:
    """A call site's own function says more than a helper in which only others were seen until now."""
    call_sites, _ = seen()
    mails = call_sites.of(MAILS, 7)
    assert call_sites.taken_in(stack(MAILS)) == ({mails: 1.0}, True)


def test_new_function_is_not_sure() -> None:
    """A stack with a function in which no noted hold was seen may be of a new call site."""
    call_sites, _ = seen()
    assert not call_sites.taken_in(stack(MAILS)).sure
    assert not call_sites.taken_in(()).sure


def settle(profile: PoolProfile[CallSiteAccount], call_sites: CallSites, seconds: float) -> None:
    """Split so many seconds of holds, all of them long and none noted."""
    held = HeldTime(seconds=seconds, old_seconds=seconds)
    ms = int(seconds * 1000)
    totals = PoolTotals(held_ms=ms, holds=0, waited_ms=0, held=held, sampled=True)
    profile.settle(seconds, totals, {}, {}, call_sites.other)


def test_time_is_given_back() -> None:
    """A call site that is noted late gets the time of its earlier looks from later time; sums stay exact."""
    call_sites, orders = seen()
    profile: PoolProfile[CallSiteAccount] = PoolProfile()
    unidentified = UnidentifiedLooks()
    for second in range(1, 41):
        for function in (ORDERS, MAILS):
            taken = call_sites.taken_in(stack(function))
            profile.see_old(taken.parts if taken.sure else {}, 5.0)
            if not taken.sure:
                unidentified.keep(float(second), "requests", stack(function), 5.0, AT_ONCE)
        if second == 10:
            mails = call_sites.of(MAILS, 7)
        unidentified.identify(float(second), call_sites, profile)
        settle(profile, call_sites, float(second))
        assert sum(profile.held.parts.values()) == second * 1000
    assert abs(profile.held.parts[mails] - 20_000) < 1_000
    assert abs(profile.held.parts[orders] - 20_000) < 1_000
    assert profile.of(mails).where.keys() == {"requests"}


def test_memory_is_bounded() -> None:
    """Looks at too many stacks are not kept, and none is kept forever."""
    call_sites, _ = seen()
    profile: PoolProfile[CallSiteAccount] = PoolProfile()
    unidentified = UnidentifiedLooks(UnidentifiedLookSettings(stacks=3, seconds=60.0))
    codes = [code(f"job{number}") for number in range(5)]
    for function in codes:
        unidentified.keep(0.0, "requests", stack(function), 1.0, AT_ONCE)
    assert repr(unidentified) == "<UnidentifiedLooks at 3 stacks>"
    unidentified.identify(61.0, call_sites, profile)
    assert repr(unidentified) == "<UnidentifiedLooks at 0 stacks>"

"""Pool listeners: what SQLAlchemy's pool does, written into its account.

Rules, each with its reason:

1. Pool events only. A ConnectionEvents listener would cost every statement.
2. A listener never raises for connmon's own sake, never logs, never locks. What others raise into it
   (`interrupts.py`) goes on to the application, after the account is whole again.
3. No reference to a record, a connection or a proxy is kept.
4. A pool that can do so by its own methods accounts for checkouts and checkins there (`queuepool.py`): their
   two events cost more than everything else. The others listen, before all other listeners: one of these may
   raise, and the connection is returned all the same.
5. The creator is wrapped for what may have no event: that it failed, and that there is a connection. The
   connect event adds the server's session id.
6. A pool is instrumented once, however often that is asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any, TypeAlias

from sqlalchemy import event
from sqlalchemy.pool import Pool

from connmon.interrupts import interrupted
from connmon.plugin import forks, holder, unpatched
from connmon.plugin.call_site_accounts import Sampling, SamplingSettings
from connmon.plugin.describe import Location
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool_account import KEY, UNCOUNTED, Entry, Lifeline, PoolAccount, complete_checkin
from connmon.plugin.queuepool import CheckoutHooks, count_by_methods
from connmon.protocol.reports import PoolInfo

Checkout: TypeAlias = Callable[[Any, Any, Any], None]
Checkin: TypeAlias = Callable[[Any, Any], None]
Enter: TypeAlias = Callable[[Any, Any, bool], Entry]
"""Adds a connection: record, DBAPI connection, and whether this process has made it."""


def instrument(
    pool: Pool,
    ledger: Ledger,
    info: PoolInfo,
    server_id: Callable[[Any], int | None],
    tracing: holder.Tracing = holder.Tracing(),  # noqa: B008  # it is immutable
) -> PoolAccount:
    """Account for this pool, and for those recreated from it, in `ledger`; return its account.

    `server_id` takes a driver connection and returns the server's id of the session, or None. A `Driver` is
    also asked where the connection is. A pool that is accounted for already is left alone.
    """
    present: PoolAccount | None = getattr(pool._creator, KEY, None)
    if present is not None:
        return present
    account = ledger.pool(info)
    account.location = location = Location(info, server_id)
    _wrap_creator(pool, account)
    account.long_hold_seconds = None if tracing.trace == "off" else tracing.held
    account.current_holder = holder.holder_source(bool(getattr(pool, "_is_asyncio", False)))
    account.shares_threads = bool(getattr(pool, "_is_asyncio", False)) or unpatched.patched()
    account.looks = tracing.profile_hz > 0.0
    account.measures_cpu = account.looks and info.dialect != "sqlite"
    account.find_call_site = holder.call_site
    if tracing.trace == "all":
        account.sampling = Sampling(SamplingSettings(checkouts_per_second=inf))
    elif tracing.trace == "auto":
        account.sampling = ledger.sampling
    ledger.profile_hz = max(ledger.profile_hz, tracing.profile_hz)
    enter = _enter_function(account, location)
    _listen(pool, account, location, enter)
    checkout = _checkout_listener(account, enter)
    if not count_by_methods(pool, CheckoutHooks(checkout, forks.fork_check())):
        event.listen(pool, "checkout", forks.after_fork_check(checkout))
        event.listen(pool, "checkin", _checkin_listener(account), insert=True)
    return account


# The listeners are closures: these are cheaper to call than bound methods.


def _enter_function(account: PoolAccount, location: Location) -> Enter:
    process, clock = account.process, account.process.clock

    def enter(record: Any, connection: Any, owned: bool) -> Entry:
        """Add a connection: a new one, or one that is in use but was never added."""
        process.seen()
        entry = account.opened(id(connection), clock(), owned=owned, info=record.info)
        try:
            location.meet(entry, record.driver_connection)
        except Exception as error:  # its server stays unknown
            if interrupted(error, in_driver=True):
                raise
        return entry

    return enter


def _checkout_listener(account: PoolAccount, enter: Enter) -> Checkout:
    live, process = account.live, account.process_live
    current_holder, clock = account.current_holder, account.process.clock

    # What `queuepool` does in `connect`, for a connection that is known and not held. It stands twice, like
    # the end of a hold: one function for both would cost each checkout and each checkin a call.
    def checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        try:
            try:
                entry = record.info[KEY].entry
                if entry.closed:  # the parent's, before a fork
                    entry = enter(record, dbapi_connection, False)
            except KeyError:  # made before the plugin was attached
                entry = enter(record, dbapi_connection, False)
            if entry.checkouts == entry.checkins:
                live.checked_out = count = live.checked_out + 1
                if count > live.peak_checked_out:
                    live.peak_checked_out = count
                process.checked_out = count = process.checked_out + 1
                if count > process.peak_checked_out:
                    process.peak_checked_out = count
            entry.holder = current_holder()
            entry.since = now = clock()
            entry.checkouts = count = entry.checkouts + 1
            if count >= entry.note_at:
                account.note(entry, now)
        except BaseException as error:
            if interrupted(error):
                account.mend()
                raise

    return checkout


def _checkin_listener(account: PoolAccount) -> Checkin:
    live, process, clock = account.live, account.process_live, account.process.clock

    # What `queuepool` does in `_return_conn`; see there why it stands twice.
    def checkin(dbapi_connection: Any, record: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if dbapi_connection is None:  # it is gone: a reconnect failed
                entry.end()
            elif since := entry.since:  # read once: another thread may end the same hold
                held = clock() - since
                entry.holds.append(held)
                entry.checkins = count = entry.checkouts
                entry.since = 0.0
                live.checked_out -= 1
                process.checked_out -= 1
                if entry.noted_at == count:
                    entry.end_noted(held)
                if not count & UNCOUNTED and len(entry.holds) >= UNCOUNTED:
                    account.count_times(entry)
            else:
                entry.checkins = entry.checkouts
        except BaseException as error:
            if interrupted(error):
                complete_checkin(account, record)
                raise

    return checkin


def _listen(pool: Pool, account: PoolAccount, location: Location, enter: Enter) -> None:
    """Listen to the rare events."""
    # Before all other listeners, since one of them may raise, and what has happened has happened. But after
    # all others to a close, which does not happen where a listener raises.
    connect = _connect_listener(account, location, enter)
    invalidate = _invalidate_listener(account, enter)
    detach, close_detached = _detach_listeners(account)
    event.listen(pool, "connect", forks.after_fork_check(connect), insert=True)
    event.listen(pool, "invalidate", invalidate, insert=True)
    event.listen(pool, "soft_invalidate", invalidate, insert=True)
    event.listen(pool, "close", _close_listener(account))
    event.listen(pool, "detach", detach, insert=True)
    event.listen(pool, "close_detached", close_detached, insert=True)


def _connect_listener(account: PoolAccount, location: Location, enter: Enter) -> Callable[[Any, Any], None]:
    lifeline = Lifeline(account)

    def connect(dbapi_connection: Any, record: Any) -> None:
        try:
            lifeline  # noqa: B018  # held by this closure for as long as the pool's listeners live
            token = record.info.get(KEY)
            if token is None or token.entry.key != id(dbapi_connection) or token.entry.closed:
                enter(record, dbapi_connection, True)  # made by a creator that is not ours
            else:
                location.meet(token.entry, record.driver_connection)
            account.relieve()
        except BaseException as error:
            if interrupted(error, in_driver=True):
                account.mend()
                raise

    return connect


def _invalidate_listener(account: PoolAccount, enter: Enter) -> Callable[[Any, Any, Any], None]:
    def invalidate(dbapi_connection: Any, record: Any, exception: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if entry.closed:  # the parent's, which a pre-ping or an application's own check refuses
                entry = enter(record, dbapi_connection, False)
            entry.invalidations += 1
        except BaseException as error:
            if interrupted(error):
                account.mend()
                raise

    return invalidate


def _close_listener(account: PoolAccount) -> Callable[[Any, Any], None]:
    def close(dbapi_connection: Any, record: Any) -> None:
        entry = None
        try:
            entry = record.info[KEY].entry
            if entry.key == id(dbapi_connection):
                before = entry.state()
                entry.end()
        except BaseException as error:
            if interrupted(error):  # then SQLAlchemy does not close it either
                if entry is not None and entry.closed:
                    entry.reopen(before)
                account.mend()
                raise

    return close


def _detach_listeners(account: PoolAccount) -> tuple[Callable[[Any, Any], None], Callable[[Any], None]]:
    """Return the listeners of detach and close_detached."""

    def detach(dbapi_connection: Any, record: Any) -> None:
        try:
            _detach(account, dbapi_connection, record)
        except BaseException as error:
            if interrupted(error):
                _complete_detach(account, dbapi_connection, record)
                raise

    def close_detached(dbapi_connection: Any) -> None:
        try:
            entry = account.detached.get(id(dbapi_connection)) or _entry_of(account, dbapi_connection)
            if entry is not None:
                entry.end()
        except BaseException as error:
            if interrupted(error):
                account.mend()
                raise

    return detach, close_detached


def _entry_of(account: PoolAccount, connection: Any) -> Entry | None:
    """Return the entry of an open connection that nothing else leads to."""
    key = id(connection)
    entries = [entry for entry in list(account.entries.values()) if entry.key == key and not entry.closed]
    return entries[-1] if entries else None


def _detach(account: PoolAccount, connection: Any, record: Any) -> None:
    """Note that the connection leaves the pool and stays open.

    The record was returned before this event, so another thread may have reconnected it, and its token may be
    of a new connection. The id of the connection decides.
    """
    token = record.info.get(KEY)
    if token is not None and token.entry.key == id(connection):
        entry = token.entry
    else:
        entry = _entry_of(account, connection)
        token = None
    if entry is None or entry.closed:
        return
    if not entry.detached:
        if entry.checkouts != entry.checkins:
            entry.detached = True
            account.live.checked_out -= 1
            account.process_live.checked_out -= 1
        else:  # its checkout was not seen
            entry.since = account.process.clock()
            entry.detached = True
            entry.checkouts += 1
    account.detached[entry.key] = entry
    try:
        # The application may keep the driver's connection and drop SQLAlchemy's proxy, in whose `info` the
        # token lives on. Where the driver's object can be weakly referenced, its end decides.
        entry.detached_ref = weakref.ref(connection, entry.ended)
    except TypeError:
        pass
    if token is not None:
        record.info.pop(KEY, None)


def _complete_detach(account: PoolAccount, connection: Any, record: Any) -> None:
    """Repeat a detach that was interrupted, and complete what it has left half done."""
    try:
        _detach(account, connection, record)
    except Exception:
        pass
    account.mend()


def _wrap_creator(pool: Pool, account: PoolAccount) -> None:
    invoke = pool._invoke_creator

    # SQLAlchemy sees by the signature whether a creator takes the record; like its own, this can do without.
    def creator(connection_record: Any = None) -> Any:
        if connection_record is None:  # a connection that no pool will have
            return invoke(connection_record)  # type: ignore[arg-type]  # SQLAlchemy's takes None
        began = _clock()
        try:
            connection = invoke(connection_record)
        except BaseException:  # a cancelled connect has failed as well
            _count_connect_error(account)
            raise
        _enter_made(account, connection_record, connection, began)
        return connection

    setattr(creator, KEY, account)
    pool._creator = creator


def _clock() -> float | None:
    try:
        return monotonic()
    except Exception as error:
        if interrupted(error):
            raise
        return None


def _enter_made(account: PoolAccount, record: Any, connection: Any, began: float | None) -> None:
    """Add a connection as soon as it is made.

    Its connect event may never come: an asyncio task can be cancelled while it waits for the first connection
    of all to be set up, and then SQLAlchemy closes this one without an event.
    """
    try:
        account.process.seen()
        now = monotonic()
        connect_seconds = None if began is None else now - began
        account.opened(id(connection), now, connect_seconds=connect_seconds, info=record.info)
    except BaseException as error:
        if interrupted(error):
            record.info.pop(KEY, None)  # the connection is lost, as if it had not been made
            account.mend()
            raise


def _count_connect_error(account: PoolAccount) -> None:
    try:
        account.connect_errors += 1
        account.process.seen()  # maybe this process never has anything else to report
    except Exception as error:
        if interrupted(error):
            raise

"""Pool listeners: what SQLAlchemy's pool does, written into its account.

Rules, each paid for:

1. Pool events only. A ConnectionEvents listener would cost every statement.
2. A listener never raises for connmon's own sake, never logs, never locks. What others raise into it
   (`interrupts.py`) goes on to the application, after the account is whole again.
3. No reference to a record, a connection or a proxy is kept.
4. A pool that can do so by its own methods accounts for checkouts and checkins there
   (`queuepool.py`): their two events cost more than everything else. The others listen, before all other
   listeners: one of these may raise, and the connection is back all the same.
5. The creator is wrapped for what may have no event: that it failed, and that there is a
   connection. The connect event adds the server's session id.
6. A pool is instrumented once, whoever asks and how often.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeAlias

from sqlalchemy import event
from sqlalchemy.pool import Pool

from connmon.interrupts import interrupted
from connmon.plugin import forks, holder
from connmon.plugin.call_site_accounts import Sampling
from connmon.plugin.describe import Location
from connmon.plugin.ledger import Ledger
from connmon.plugin.pool_account import KEY, UNCOUNTED, Entry, Lifeline, PoolAccount, given_back
from connmon.plugin.queuepool import Extra, watch
from connmon.protocol.reports import PoolInfo

Checkout: TypeAlias = Callable[[Any, Any, Any], None]
Checkin: TypeAlias = Callable[[Any, Any], None]


def instrument(
    pool: Pool,
    ledger: Ledger,
    info: PoolInfo,
    server_id: Callable[[Any], int | None],
    tracing: holder.Tracing = holder.Tracing(),  # noqa: B008  # it is immutable
) -> PoolAccount:
    """Account for this pool, and for those that will be recreated from it, in `ledger`.

    `server_id` takes a driver connection and returns the server's id of the session, or None; where it is
    a `Driver`, that is asked where the connection is as well.
    A pool that is accounted for already is left alone; its account is returned.
    """
    present: PoolAccount | None = getattr(pool._creator, KEY, None)
    if present is not None:
        return present
    account = ledger.pool(info)
    account.location = location = Location(info, server_id)
    _wrap_creator(pool, account)
    account.look_after = None if tracing.trace == "off" else tracing.held
    account.asked = holder.asking(bool(getattr(pool, "_is_asyncio", False)))
    account.called_from = holder.call_site
    if tracing.trace == "all":
        account.sampling = Sampling(math.inf)
    elif tracing.trace == "auto":
        account.sampling = ledger.sampling
    checkout, checkin = _listen(pool, account, location)
    if not watch(pool, Extra(checkout, forks.look_for_one())):
        event.listen(pool, "checkout", forks.guarded(checkout))
        event.listen(pool, "checkin", checkin, insert=True)
    return account


def _listen(pool: Pool, account: PoolAccount, location: Location) -> tuple[Checkout, Checkin]:
    """Listen to what is rare; return the listeners of checkout and checkin, which are not."""
    # Closures: cheaper to call than bound methods, and this is the path that counts.
    live, process, ledger = account.live, account.process, account.ledger
    lifeline = Lifeline(account)
    asked = account.asked

    def found(record: Any, connection: Any, owned: bool) -> Entry:
        """Enter a connection: a new one, or one that is in use but was never entered."""
        ledger.seen()
        entry = account.opened(id(connection), monotonic(), owned=owned, info=record.info)
        try:
            location.meet(entry, record.driver_connection)
        except Exception as error:  # unknown, then
            if interrupted(error, in_driver=True):
                raise
        return entry

    def connect(dbapi_connection: Any, record: Any) -> None:
        try:
            lifeline  # noqa: B018  # held by this closure for as long as the pool's listeners live
            token = record.info.get(KEY)
            if token is None or token.entry.key != id(dbapi_connection) or token.entry.closed:
                found(record, dbapi_connection, True)  # made by a creator that is not ours
            else:
                location.meet(token.entry, record.driver_connection)
            ledger.relieve(account)
        except BaseException as error:
            if interrupted(error, in_driver=True):
                account.mend()
                raise

    def checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        try:
            try:
                entry = record.info[KEY].entry
                if entry.closed:  # the parent's, before a fork
                    entry = found(record, dbapi_connection, False)
            except KeyError:  # made before the plugin was attached
                entry = found(record, dbapi_connection, False)
            if entry.checkouts == entry.checkins:
                live.checked_out = count = live.checked_out + 1
                if count > live.peak_checked_out:
                    live.peak_checked_out = count
                process.checked_out = count = process.checked_out + 1
                if count > process.peak_checked_out:
                    process.peak_checked_out = count
            entry.holder = asked()
            entry.since = now = monotonic()
            entry.checkouts = count = entry.checkouts + 1
            if count >= entry.note_at:
                account.note(entry, now)
        except BaseException as error:
            if interrupted(error):
                account.mend()
                raise

    def checkin(dbapi_connection: Any, record: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if dbapi_connection is None:  # it is gone: a reconnect failed
                entry.end()
            elif since := entry.since:  # read once: another thread may end the same hold
                held = monotonic() - since
                entry.holds.append(held)
                entry.checkins = count = entry.checkouts
                entry.since = 0.0
                if entry.noted_at == count and entry.site is not None:
                    entry.site.counts.holds.append(held)
                live.checked_out -= 1
                process.checked_out -= 1
                if not count & UNCOUNTED and len(entry.holds) >= UNCOUNTED:
                    ledger.count_times(account, entry)
            else:
                entry.checkins = entry.checkouts
        except BaseException as error:
            if interrupted(error):
                given_back(account, record)
                raise

    def complete(again: Callable[[], None]) -> None:
        """Do once more what was interrupted, and what the interruption left undone."""
        try:
            again()
        except Exception:
            pass
        account.mend()

    def invalidate(dbapi_connection: Any, record: Any, exception: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if entry.closed:  # the parent's, which a pre-ping or a guard of others refuses
                entry = found(record, dbapi_connection, False)
            entry.invalidations += 1
        except BaseException as error:
            if interrupted(error):
                account.mend()
                raise

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

    def detach(dbapi_connection: Any, record: Any) -> None:
        try:
            _detach(account, dbapi_connection, record)
        except BaseException as error:
            if interrupted(error):
                complete(lambda: _detach(account, dbapi_connection, record))
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

    # First of all listeners, since one of the others may raise, and what happened has happened; but for the
    # close, which does not happen where a listener raises.
    event.listen(pool, "connect", forks.guarded(connect), insert=True)
    event.listen(pool, "invalidate", invalidate, insert=True)
    event.listen(pool, "soft_invalidate", invalidate, insert=True)
    event.listen(pool, "close", close)
    event.listen(pool, "detach", detach, insert=True)
    event.listen(pool, "close_detached", close_detached, insert=True)
    return checkout, checkin


def _entry_of(account: PoolAccount, connection: Any) -> Entry | None:
    """Return the entry of an open connection that nothing else leads to."""
    key = id(connection)
    found = [entry for entry in list(account.entries.values()) if entry.key == key and not entry.closed]
    return found[-1] if found else None


def _detach(account: PoolAccount, connection: Any, record: Any) -> None:
    """The connection leaves the pool and stays open.

    The record was given back before this event, so another thread may have reconnected it: the
    token in it may be that of a new connection. The id of the connection tells.
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
            account.process.checked_out -= 1
        else:  # its checkout was not seen
            entry.since = monotonic()
            entry.detached = True
            entry.checkouts += 1
    account.detached[entry.key] = entry
    try:
        # The application may keep the driver's connection and drop SQLAlchemy's proxy, in whose
        # `info` the token lives on. Where the driver's object can be watched, it decides.
        entry.weak = weakref.ref(connection, entry.ended)
    except TypeError:
        pass
    if token is not None:
        record.info.pop(KEY, None)


def _wrap_creator(pool: Pool, account: PoolAccount) -> None:
    invoke = pool._invoke_creator

    # SQLAlchemy tells by the signature whether it takes the record; as its own, this can do without.
    def creator(connection_record: Any = None) -> Any:
        if connection_record is None:  # a connection that no pool will have
            return invoke(connection_record)  # type: ignore[arg-type]  # SQLAlchemy's takes None
        began = _clock()
        try:
            connection = invoke(connection_record)
        except BaseException:  # a cancelled connect has failed as well
            _count_connect_error(account)
            raise
        _enter(account, connection_record, connection, began)
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


def _enter(account: PoolAccount, record: Any, connection: Any, began: float | None) -> None:
    """Enter a connection as soon as it is there.

    Its connect event may never come: an asyncio task can be cancelled while it waits for the
    first connection of all to be set up, and then SQLAlchemy closes this one without a word.
    """
    try:
        account.ledger.seen()
        now = monotonic()
        took = None if began is None else now - began
        account.opened(id(connection), now, took=took, info=record.info)
    except BaseException as error:
        if interrupted(error):
            record.info.pop(KEY, None)  # the connection is lost, as if it had not come about
            account.mend()
            raise


def _count_connect_error(account: PoolAccount) -> None:
    try:
        account.connect_errors += 1
        account.ledger.seen()  # maybe the only thing that this process will ever have to tell
    except Exception as error:
        if interrupted(error):
            raise

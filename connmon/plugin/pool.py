"""Pool listeners: what SQLAlchemy's pool does, written into its account.

Rules, each paid for:

1. Pool events only. A ConnectionEvents listener would cost every statement.
2. A listener never raises (in a checkin that leaks a pool slot), never logs, never locks.
3. No reference to a record, a connection or a proxy is kept.
4. A pool that can do so by its own methods accounts for checkouts and checkins there
   (`queuepool.py`): their two events cost more than everything else. The others listen.
5. The creator is wrapped for what may have no event: that it failed, and that there is a
   connection. The connect event adds the server's session id.
6. A pool is instrumented once, whoever asks and how often.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeAlias

from sqlalchemy import event
from sqlalchemy.pool import Pool

from connmon.model import PoolInfo
from connmon.plugin import forks, holder
from connmon.plugin.account import UNCOUNTED, Entry, Lifeline, PoolAccount, Token
from connmon.plugin.ledger import Ledger
from connmon.plugin.queuepool import KEY, watch

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

    `server_id` takes a driver connection and returns the server's id of the session, or None.
    A pool that is accounted for already is left alone; its account is returned.
    """
    present: PoolAccount | None = getattr(pool._creator, KEY, None)
    if present is not None:
        return present
    account = ledger.pool(info)
    _wrap_creator(pool, account)
    account.look_after = None if tracing.trace == "off" else tracing.held
    account.asked = holder.asking(bool(getattr(pool, "_is_asyncio", False)))
    every_site = tracing.trace == "all"
    checkout, checkin = _listen(pool, account, server_id, every_site)
    if not watch(pool, checkout, waits_only=every_site or forks.guarded(checkout) is not checkout):
        event.listen(pool, "checkout", forks.guarded(checkout))
        event.listen(pool, "checkin", checkin)
    return account


def _listen(
    pool: Pool, account: PoolAccount, server_id: Callable[[Any], int | None], every_site: bool
) -> tuple[Checkout, Checkin]:
    """Listen to what is rare; return the listeners of checkout and checkin, which are not."""
    # Closures: cheaper to call than bound methods, and this is the path that counts.
    live, process, ledger = account.live, account.process, account.ledger
    lifeline = Lifeline(account)
    asked = account.asked

    def found(record: Any, connection: Any, owned: bool) -> Entry:
        """Enter a connection: a new one, or one that is in use but was never entered."""
        ledger.seen()
        entry = account.opened(id(connection), monotonic(), owned=owned)
        record.info[KEY] = Token(entry)
        try:
            entry.server_id = server_id(record.driver_connection)
        except Exception:
            pass  # unknown, then
        return entry

    def connect(dbapi_connection: Any, record: Any) -> None:
        try:
            lifeline  # noqa: B018  # held by this closure for as long as the pool's listeners live
            token = record.info.get(KEY)
            if token is None or token.entry.key != id(dbapi_connection) or token.entry.closed:
                found(record, dbapi_connection, True)  # made by a creator that is not ours
            else:
                token.entry.server_id = server_id(record.driver_connection)
            ledger.relieve(account)
        except Exception:
            pass

    def checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        try:
            try:
                entry = record.info[KEY].entry
                if entry.closed:  # the parent's, before a fork
                    entry = found(record, dbapi_connection, False)
            except KeyError:  # made before the plugin was attached
                entry = found(record, dbapi_connection, False)
            if not entry.since:
                live.checked_out = count = live.checked_out + 1
                if count > live.peak_checked_out:
                    live.peak_checked_out = count
                process.checked_out = count = process.checked_out + 1
                if count > process.peak_checked_out:
                    process.peak_checked_out = count
            entry.holder = asked()
            entry.checkouts += 1
            entry.since = monotonic()
        except Exception:
            pass

    def traced_checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        checkout(dbapi_connection, record, proxy)
        try:
            record.info[KEY].entry.site = holder.call_site()
        except Exception:
            pass

    def checkin(dbapi_connection: Any, record: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if dbapi_connection is None:  # it is gone: a reconnect failed
                entry.end()
            elif since := entry.since:  # read once: another thread may end the same hold
                held = monotonic() - since
                entry.holds.append(held)
                entry.held += held
                entry.checkins = entry.checkouts
                entry.since = 0.0
                live.checked_out -= 1
                process.checked_out -= 1
                if not entry.checkouts & UNCOUNTED and len(entry.holds) >= UNCOUNTED:
                    ledger.count_times(account, entry)
        except Exception:
            pass

    def invalidate(dbapi_connection: Any, record: Any, exception: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if entry.closed:  # the parent's, which a pre-ping or a guard of others refuses
                entry = found(record, dbapi_connection, False)
            entry.invalidations += 1
        except Exception:
            pass

    def close(dbapi_connection: Any, record: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if entry.key == id(dbapi_connection):
                entry.end()
        except Exception:
            pass

    def detach(dbapi_connection: Any, record: Any) -> None:
        try:
            _detach(account, dbapi_connection, record)
        except Exception:
            pass

    def close_detached(dbapi_connection: Any) -> None:
        try:
            account.detached[id(dbapi_connection)].end()
        except Exception:
            pass

    # First among the connect listeners: one of the others may fail, and the connection is there.
    event.listen(pool, "connect", forks.guarded(connect), insert=True)
    event.listen(pool, "invalidate", invalidate)
    event.listen(pool, "soft_invalidate", invalidate)
    event.listen(pool, "close", close)
    event.listen(pool, "detach", detach)
    event.listen(pool, "close_detached", close_detached)
    return traced_checkout if every_site else checkout, checkin


def _detach(account: PoolAccount, connection: Any, record: Any) -> None:
    """The connection leaves the pool and stays open.

    The record was given back before this event, so another thread may have reconnected it: the
    token in it may be that of a new connection. The id of the connection tells.
    """
    token = record.info.get(KEY)
    if token is not None and token.entry.key == id(connection):
        del record.info[KEY]
        entry = token.entry
    else:
        held = [e for e in list(account.entries.values()) if e.key == id(connection) and not e.closed]
        if not held:
            return
        entry = held[-1]
    if entry.closed:
        return
    if entry.since:
        account.live.checked_out -= 1
        account.process.checked_out -= 1
    else:
        entry.since = monotonic()
    entry.detached = True
    account.detached[entry.key] = entry
    try:
        # The application may keep the driver's connection and drop SQLAlchemy's proxy, in whose
        # `info` the token lives on. Where the driver's object can be watched, it decides.
        entry.weak = weakref.ref(connection, entry.ended)
    except TypeError:
        pass


def _wrap_creator(pool: Pool, account: PoolAccount) -> None:
    invoke = pool._invoke_creator

    # SQLAlchemy tells by the signature whether it takes the record.
    def creator(connection_record: Any) -> Any:
        began = _clock()
        try:
            connection = invoke(connection_record)
        except BaseException:  # a cancelled connect has failed as well
            _count_connect_error(account)
            raise
        _enter(account, connection_record, connection, began)
        return connection

    setattr(creator, KEY, account)
    pool._creator = creator  # type: ignore[assignment]  # mypy: a setter


def _clock() -> float | None:
    try:
        return monotonic()
    except Exception:
        return None


def _enter(account: PoolAccount, record: Any, connection: Any, began: float | None) -> None:
    """Enter a connection as soon as it is there.

    Its connect event may never come: an asyncio task can be cancelled while it waits for the
    first connection of all to be set up, and then SQLAlchemy closes this one without a word.
    """
    try:
        account.ledger.seen()
        now = monotonic()
        entry = account.opened(id(connection), now, took=None if began is None else now - began)
        record.info[KEY] = Token(entry)
    except Exception:
        pass


def _count_connect_error(account: PoolAccount) -> None:
    try:
        account.connect_errors += 1
        account.ledger.seen()  # maybe the only thing that this process will ever have to tell
    except Exception:
        pass

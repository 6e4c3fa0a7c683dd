"""QueuePools, which account for checkouts, checkins and waits by their own methods.

Rules:

1. The pool gets a subclass of its own class; a pool recreated from it keeps that class. The
   account is found on the creator, which a recreated pool keeps as well.
2. `connect` and `_return_conn` do what the listeners of checkout and checkin would do. Without
   the dispatch of these two events a checkout costs half as much. A checkout counts
   when the application gets the connection; whatever is unusual about it is left to the listener.
3. No event precedes a wait: `_do_get` is timed when there is nothing to hand out.
4. Where SQLAlchemy has no such methods any more, listeners do the rest and there are no
   figures of waits; one line in the log says so.
5. Nothing in here raises, logs on the way, or locks.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from sqlalchemy import exc
from sqlalchemy.pool import Pool, QueuePool

from connmon.plugin.account import UNCOUNTED, PoolAccount

#: The key in `record.info`, the mark on a wrapped creator, and on a class made here.
KEY = "connmon"
#: The mark on a wrapped creator whose pool accounts for checkouts itself: what does the unusual ones.
CHECKOUT = "connmon_checkout"

log = logging.getLogger("connmon")

_watched: dict[type[Pool], type[Pool]] = {}


def watch(pool: Pool, checkout: Callable[[Any, Any, Any], None], *, waits_only: bool) -> bool:
    """Have the pool's own methods account for checkouts and checkins, if they can and are to; return whether.

    Waits are timed in any case, if they can be. `checkout` takes the DBAPI connection, the
    record and the proxy of a checkout that is unusual.
    """
    cls = type(pool)
    if not isinstance(pool, QueuePool):
        return False  # the others never wait, and are not what is fast
    try:
        if not getattr(cls, KEY, False):  # it is with poolclass=type(another_engine.pool)
            watched = _watched.get(cls)
            if watched is None:
                watched = _watched[cls] = _watched_class(cls)
            pool._overflow, pool._max_overflow, pool._pool.empty  # noqa: B018
            pool.__class__ = watched  # type: ignore[assignment]
    except (AttributeError, TypeError) as error:
        log.warning("connmon: this SQLAlchemy's %s cannot be timed, so waits are not shown: %s", cls, error)
        return False
    if waits_only:
        return False
    setattr(pool._creator, CHECKOUT, checkout)
    return True


def _watched_class(cls: type[Any]) -> type[Pool]:
    do_connect, do_get, do_return = cls.connect, cls._do_get, cls._return_conn

    def connect(self: Any) -> Any:
        proxy = do_connect(self)
        try:
            entry = proxy._connection_record.info[KEY].entry
            if entry.since or entry.closed:  # a listener has counted it, or it was the parent's
                _unusual(self, proxy)
                return proxy
            account = entry.pool
            who, now = account.asked(), monotonic()
            live = account.live
            live.checked_out = count = live.checked_out + 1
            if count > live.peak_checked_out:
                live.peak_checked_out = count
            live = account.process
            live.checked_out = count = live.checked_out + 1
            if count > live.peak_checked_out:
                live.peak_checked_out = count
            entry.holder = who
            entry.checkouts += 1
            entry.since = now
        except KeyError:
            _unusual(self, proxy)
        except Exception:
            pass
        return proxy

    # Not `_do_return_conn`: a detach gives the record back by that, and has an event of its own.
    def _return_conn(self: Any, record: Any) -> None:
        try:
            entry = record.info[KEY].entry
            if record.dbapi_connection is None:  # a reconnect failed
                entry.end()
            elif since := entry.since:  # read once: another thread may end the same hold
                account = entry.pool
                held = monotonic() - since
                entry.holds.append(held)
                entry.held += held
                entry.checkins = entry.checkouts
                entry.since = 0.0
                account.live.checked_out -= 1
                account.process.checked_out -= 1
                if not entry.checkouts & UNCOUNTED and len(entry.holds) >= UNCOUNTED:
                    account.ledger.count_times(account, entry)
        except Exception:
            pass
        do_return(self, record)

    def _do_get(self: Any) -> Any:
        try:
            if self._overflow < self._max_overflow or self._max_overflow < 0 or not self._pool.empty():
                return do_get(self)
        except exc.TimeoutError as error:  # another thread was faster, and then it waited
            _count_timeout(self, error)
            raise
        account: PoolAccount | None = getattr(self._creator, KEY, None)
        if account is None or _waiting.get() is account:
            return do_get(self)
        marked = _waiting.set(account)
        wait = _wait_begins(account)
        try:
            return do_get(self)
        except exc.TimeoutError as error:
            _count_timeout(self, error)
            raise
        finally:
            _wait_ends(account, wait, marked)

    namespace: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__, KEY: True}
    namespace |= {"connect": connect, "_return_conn": _return_conn, "_do_get": _do_get}
    return type(cls.__name__, (cls,), namespace)


def _unusual(pool: Any, proxy: Any) -> None:
    """Account for a checkout of a connection that is not known, not ours, or held already."""
    try:
        checkout = getattr(pool._creator, CHECKOUT, None)
        if checkout is not None:
            checkout(proxy.dbapi_connection, proxy._connection_record, proxy)
    except Exception:
        pass


#: The pool that this thread, task or greenlet waits for: `_do_get` calls itself when it was not
#: fast enough, and that is not another one who waits.
_waiting: contextvars.ContextVar[PoolAccount | None] = contextvars.ContextVar("connmon", default=None)


def _wait_begins(account: PoolAccount) -> int:
    try:
        account.ledger.seen()
        return account.wait_begins(monotonic())
    except Exception:
        return 0


def _wait_ends(account: PoolAccount, wait: int, marked: contextvars.Token[PoolAccount | None]) -> None:
    try:
        _waiting.reset(marked)
        account.wait_ends(wait, monotonic())
    except Exception:
        pass


def _count_timeout(pool: Any, error: exc.TimeoutError) -> None:
    """Count a pool timeout once, although `_do_get` calls itself."""
    try:
        account: PoolAccount | None = getattr(pool._creator, KEY, None)
        if account is not None and not hasattr(error, KEY):
            setattr(error, KEY, True)
            account.timeouts += 1
    except Exception:
        pass

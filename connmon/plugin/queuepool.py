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
5. Nothing in here raises for connmon's own sake, logs on the way, or locks. What others raise into it
   (`interrupts.py`) goes on to the application, after the pool has its record back and the account is whole.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import exc
from sqlalchemy.pool import Pool, QueuePool

from connmon.interrupts import interrupted
from connmon.plugin.pool_account import KEY, UNCOUNTED, PoolAccount, given_back

#: The mark on a wrapped creator whose pool accounts for checkouts itself: its `Extra`.
EXTRA = "connmon_extra"

log = logging.getLogger("connmon")

_watched: dict[tuple[type[Pool], bool], type[Pool]] = {}


class Extra(NamedTuple):
    """What a checkout calls besides its fast path."""

    checkout: Callable[[Any, Any, Any], None]
    """With the DBAPI connection, the record and the proxy of a checkout that is unusual."""
    look: Callable[[], None] | None = None
    """Before each checkout, to find out about forks."""


def watch(pool: Pool, extra: Extra) -> bool:
    """Have the pool's own methods account for checkouts, checkins and waits, if they can; return whether."""
    cls = type(pool)
    if not isinstance(pool, QueuePool):
        return False  # the others never wait, and are not what is fast
    try:
        pool._overflow, pool._max_overflow, pool._pool.empty  # noqa: B018
        real = cls.__dict__.get(KEY, cls)  # it is there with poolclass=type(another_engine.pool)
        if real is not cls or not hasattr(cls, KEY):
            kind = (real, extra.look is not None)
            if kind not in _watched:
                _watched[kind] = _watched_class(*kind)
            pool.__class__ = _watched[kind]  # type: ignore[assignment]
    except (AttributeError, TypeError) as error:
        log.warning("connmon: this SQLAlchemy's %s cannot be timed, so waits are not shown: %s", cls, error)
        return False
    setattr(pool._creator, EXTRA, extra)
    return True


def _watched_class(cls: type[Any], with_look: bool) -> type[Pool]:
    do_connect, do_get, do_return = cls.connect, cls._do_get, cls._return_conn

    def connect(self: Any) -> Any:
        proxy = do_connect(self)
        try:
            entry = proxy._connection_record.info[KEY].entry
            if entry.since or entry.closed:  # held already, or it was the parent's
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
            entry.since = now
            entry.checkouts = count = entry.checkouts + 1
            if count >= entry.note_at:
                account.note(entry, now)
        except BaseException as error:
            if interrupted(error):
                _mend(self)
                raise
            if isinstance(error, KeyError):
                _unusual(self, proxy)
        return proxy

    def look_and_connect(self: Any) -> Any:
        extra: Extra | None = getattr(self._creator, EXTRA, None)
        if extra is not None and extra.look is not None:
            extra.look()
        return connect(self)

    # Not `_do_return_conn`: a detach gives the record back by that, and has an event of its own.
    def _return_conn(self: Any, record: Any) -> None:
        try:
            try:
                entry = record.info[KEY].entry
                if record.dbapi_connection is None:  # a reconnect failed
                    entry.end()
                elif since := entry.since:  # read once: another thread may end the same hold
                    account = entry.pool
                    held = monotonic() - since
                    entry.holds.append(held)
                    entry.checkins = count = entry.checkouts
                    entry.since = 0.0
                    if entry.noted_at == count:
                        entry.site.counts.holds.append(held)
                    account.live.checked_out -= 1
                    account.process.checked_out -= 1
                    if not count & UNCOUNTED and len(entry.holds) >= UNCOUNTED:
                        account.ledger.count_times(account, entry)
                else:
                    entry.checkins = entry.checkouts
            except BaseException as error:
                if interrupted(error):
                    given_back(getattr(self._creator, KEY, None), record)
                    raise
        finally:  # whatever was raised into this, the pool gets its record back
            do_return(self, record)

    def _do_get(self: Any) -> Any:
        try:
            if self._overflow < self._max_overflow or self._max_overflow < 0 or not self._pool.empty():
                return do_get(self)
        except exc.TimeoutError as error:  # another thread was faster, and then it waited
            _count_timeout(self, error)
            raise
        account: PoolAccount | None = getattr(self._creator, KEY, None)
        before = _waiting.get()
        if account is None or before is account:
            return do_get(self)
        wait = object()
        record = None
        try:
            _wait_begins(account, wait)
            record = do_get(self)
        except exc.TimeoutError as error:
            _count_timeout(self, error)
            raise
        finally:
            try:
                _wait_ends(account, wait, before)
            except BaseException:
                _wait_ends(account, wait, before)
                account.mend()
                if record is not None:  # nobody will get it
                    self._do_return_conn(record)
                raise
        return record

    namespace: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__, KEY: cls}
    namespace |= {"_return_conn": _return_conn, "_do_get": _do_get}
    namespace["connect"] = look_and_connect if with_look else connect
    return type(cls.__name__, (cls,), namespace)


def _mend(pool: Any) -> None:
    account: PoolAccount | None = getattr(pool._creator, KEY, None)
    if account is not None:
        account.mend()


def _unusual(pool: Any, proxy: Any) -> None:
    """Account for a checkout of a connection that is not known, not ours, or held already."""
    try:
        extra: Extra | None = getattr(pool._creator, EXTRA, None)
        if extra is not None:
            extra.checkout(proxy.dbapi_connection, proxy._connection_record, proxy)
    except BaseException as error:
        if interrupted(error):
            raise


#: The pool that this thread, task or greenlet waits for: `_do_get` calls itself when it was not
#: fast enough, and that is not another one who waits.
_waiting: contextvars.ContextVar[PoolAccount | None] = contextvars.ContextVar("connmon", default=None)


def _wait_begins(account: PoolAccount, wait: object) -> None:
    try:
        _waiting.set(account)
        account.ledger.seen()
        now = monotonic()
        account.wait_begins(now, wait)
        account.note_wait(wait, now)
    except BaseException as error:
        if interrupted(error):
            account.mend()
            raise


def _wait_ends(account: PoolAccount, wait: object, before: PoolAccount | None) -> None:
    """End the wait; a second call does nothing more."""
    try:
        _waiting.set(before)
        account.wait_ends(wait, monotonic())
    except BaseException as error:
        if interrupted(error):
            raise


def _count_timeout(pool: Any, error: exc.TimeoutError) -> None:
    """Count a pool timeout once, although `_do_get` calls itself."""
    try:
        account: PoolAccount | None = getattr(pool._creator, KEY, None)
        if account is not None and not hasattr(error, KEY):
            setattr(error, KEY, True)
            account.timeouts += 1
    except BaseException as caught:
        if interrupted(caught):
            raise

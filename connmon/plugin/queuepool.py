"""QueuePools, which account for checkouts, checkins and waits by their own methods.

Rules:

1. The pool gets a subclass of its own class; a pool recreated from it keeps that class. The account is found
   on the creator, which a recreated pool keeps as well.
2. `connect` and `_return_conn` do what the listeners of checkout and checkin would do. Without the dispatch
   of these two events a checkout costs half as much. A checkout counts when the application gets the
   connection; whatever is unusual about it is left to the listener.
3. No event precedes a wait: `_do_get` is timed when the pool has nothing to hand out.
4. Where SQLAlchemy no longer has such methods, listeners do the rest and waits are not measured; one line in
   the log says so.
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
from connmon.plugin.pool_account import KEY, UNCOUNTED, PoolAccount, complete_checkin

#: The attribute of a wrapped creator whose pool accounts for checkouts itself: its `CheckoutHooks`.
HOOKS = "connmon_hooks"

log = logging.getLogger("connmon")

_counting_classes: dict[tuple[type[Pool], bool], type[Pool]] = {}
"""By a pool's class, and whether its checkouts check for forks."""


class CheckoutHooks(NamedTuple):
    """What a checkout calls besides its fast path."""

    checkout: Callable[[Any, Any, Any], None]
    """Called with DBAPI connection, record and proxy of an unusual checkout."""
    fork_check: Callable[[], None] | None = None
    """Called before each checkout, to find out about forks."""


def count_by_methods(pool: Pool, hooks: CheckoutHooks) -> bool:
    """Have the pool's own methods account for checkouts, checkins and waits; return whether they can."""
    cls = type(pool)
    if not isinstance(pool, QueuePool):
        return False  # the others never wait, and are not fast
    try:
        pool._overflow, pool._max_overflow, pool._pool.empty  # noqa: B018
        real = cls.__dict__.get(KEY, cls)  # it is there with poolclass=type(another_engine.pool)
        if real is not cls or not hasattr(cls, KEY):
            key = (real, hooks.fork_check is not None)
            if key not in _counting_classes:
                _counting_classes[key] = _counting_class(*key)
            pool.__class__ = _counting_classes[key]  # type: ignore[assignment]
    except (AttributeError, TypeError) as error:
        log.warning("connmon: this SQLAlchemy's %s cannot be timed, so waits are not shown: %s", cls, error)
        return False
    setattr(pool._creator, HOOKS, hooks)
    return True


def _counting_class(cls: type[Any], checks_forks: bool) -> type[Pool]:
    """Return the subclass of a pool's class that accounts for checkouts, checkins and waits."""
    connect = _connect_method(cls.connect)
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        KEY: cls,
        "connect": _fork_checking(connect) if checks_forks else connect,
        "_return_conn": _return_method(cls._return_conn),
        "_do_get": _get_method(cls._do_get),
    }
    return type(cls.__name__, (cls,), namespace)


def _connect_method(do_connect: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def connect(self: Any) -> Any:
        proxy = do_connect(self)
        try:
            entry = proxy._connection_record.info[KEY].entry
            if entry.since or entry.closed:  # held already, or it was the parent's
                _unusual(self, proxy)
                return proxy
            account = entry.pool
            holder, now = account.current_holder(), monotonic()
            live = account.live
            live.checked_out = count = live.checked_out + 1
            if count > live.peak_checked_out:
                live.peak_checked_out = count
            live = account.process_live
            live.checked_out = count = live.checked_out + 1
            if count > live.peak_checked_out:
                live.peak_checked_out = count
            entry.holder = holder
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

    return connect


def _fork_checking(connect: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check_and_connect(self: Any) -> Any:
        hooks: CheckoutHooks | None = getattr(self._creator, HOOKS, None)
        if hooks is not None and hooks.fork_check is not None:
            hooks.fork_check()
        return connect(self)

    return check_and_connect


# Not `_do_return_conn`: a detach returns the record by that, and has an event of its own.
def _return_method(do_return: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    # The end of a hold stands here and in `pool`: a function for both would cost each checkin the call of
    # a Python function, 20 ns.
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
                    account.live.checked_out -= 1
                    account.process_live.checked_out -= 1
                    if entry.noted_at == count:
                        entry.end_noted(held)
                    if not count & UNCOUNTED and len(entry.holds) >= UNCOUNTED:
                        account.count_times(entry)
                else:
                    entry.checkins = entry.checkouts
            except BaseException as error:
                if interrupted(error):
                    complete_checkin(getattr(self._creator, KEY, None), record)
                    raise
        finally:  # whatever was raised into this, the pool gets its record back
            do_return(self, record)

    return _return_conn


def _get_method(do_get: Callable[[Any], Any]) -> Callable[[Any], Any]:
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

    return _do_get


def _mend(pool: Any) -> None:
    account: PoolAccount | None = getattr(pool._creator, KEY, None)
    if account is not None:
        account.mend()


def _unusual(pool: Any, proxy: Any) -> None:
    """Account for a checkout of a connection that is unknown, the parent's, or held already."""
    try:
        hooks: CheckoutHooks | None = getattr(pool._creator, HOOKS, None)
        if hooks is not None:
            hooks.checkout(proxy.dbapi_connection, proxy._connection_record, proxy)
    except BaseException as error:
        if interrupted(error):
            raise


#: The pool that this thread, task or greenlet waits for: `_do_get` calls itself when another thread was
#: faster, and that is not a second wait.
_waiting: contextvars.ContextVar[PoolAccount | None] = contextvars.ContextVar("connmon", default=None)


def _wait_begins(account: PoolAccount, wait: object) -> None:
    try:
        _waiting.set(account)
        account.process.seen()
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
    except BaseException as failure:
        if interrupted(failure):
            raise

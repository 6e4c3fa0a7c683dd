"""The one thread: it carries reports from this process's ledgers to their nodes.

Rules:

1. One native daemon thread for all ledgers, started when the first connection is seen and not when an engine
   is made, since what is made before a fork is used after it.
2. The application never waits for anything in here, but at its exit, for at most `exit_seconds`. The goodbye
   comes last of all: functions that were registered with atexit before connmon was imported run after its
   own, and may use the database. So connmon's own only sees to it that there is a connection to a node. The
   main thread says goodbye in the garbage collection with which the interpreter's end begins, when no other
   thread runs any more and all modules are still there.
3. After a fork the child has a new instance, no thread, no sockets, and empty accounts; its first connection
   starts its own thread.
4. Secret and certificates are first read when the engine is made, with the rights that the process has then.
   What is wrong with them is a warning in the log, like a node that cannot be reached.
5. An unexpected failure in the thread is an error in the log; after `restart_seconds` the thread restarts,
   with full reports.
6. The same thread looks where the holders of connections are (`look_schedule.py`), right after it has woken
   for that. How late it wakes says how long another thread has kept the interpreter's lock. So what it
   does itself before it waits does not count, and the wait is in whole milliseconds, as poll takes them.
"""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import math
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, process_time
from typing import Any, Final, NamedTuple

from connmon import process_info
from connmon.config import Service
from connmon.errors import ConfigError
from connmon.interrupts import interrupted
from connmon.plugin import forks, holder, unpatched
from connmon.plugin.hold_looks import NO_CPU
from connmon.plugin.ledger import Ledger, LedgerSettings
from connmon.plugin.look_schedule import LookSchedule, LookScheduleSettings
from connmon.plugin.uplink import Uplink, UplinkSettings
from connmon.plugin.uplink_socket import READ, UplinkSocket
from connmon.protocol.credentials import Credentials, of_client
from connmon.protocol.reports import Process, Usage
from connmon.version import __version__


@dataclass(frozen=True)
class ReporterSettings:
    """Time limits of the reporter, and the settings of its ledgers and uplinks."""

    exit_seconds: float = 0.25
    """How long the exit of the process may wait in all: for a connection to a node, and for its last report
    to be acknowledged."""
    usage_interval_seconds: float = 5.0
    """Between two measurements of what the process takes of its host."""
    restart_seconds: float = 30.0
    """After this the thread restarts when something in it has failed."""
    fork_wait_seconds: float = 0.5
    """How long a fork may wait for the thread, which needs a few milliseconds."""
    standstill_seconds: float = 0.1
    """How long the thread stands still when the process is about to end."""
    stuck_start_seconds: float = 5.0
    """After this a start of the thread that has not finished was interrupted."""
    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    uplink: UplinkSettings = field(default_factory=UplinkSettings)
    looks: LookScheduleSettings = field(default_factory=LookScheduleSettings)


log = logging.getLogger("connmon")


def _instance() -> str:
    return os.urandom(8).hex()


class Reporter:
    """The process's thread and its sockets, one for each ledger."""

    def __init__(self, settings: ReporterSettings = ReporterSettings()) -> None:  # immutable
        self.settings = settings
        self.instance = _instance()
        self._sockets: dict[tuple[Service, str], UplinkSocket] = {}
        """By service and program."""
        self._schedules: dict[Ledger, LookSchedule] = {}
        """When the holders of each ledger's connections are looked at."""
        self._looks_failed = False
        """Whether a look has failed, which is logged once."""
        self._guard = unpatched.lock()
        """Held while a ledger is made."""
        self._starting = unpatched.lock()
        """Held while the thread is started."""
        self._starting_since: float | None = None
        """When `_starting` was first found taken."""
        self._running = False
        self._leaving = False
        """Whether the last reports are due."""
        self._preparing = False
        """Whether the process is about to end: have a connection, and begin nothing more."""
        self._ending = False
        """Whether `prepare_to_leave` was called."""
        self._prepared = unpatched.lock()
        """Released by the thread once it has prepared the end."""
        self._working = unpatched.lock()
        """Held by the thread except while it waits: a thread that gets it can go on in its place, once it is
        gone."""
        self._exit_seconds_left = settings.exit_seconds
        self._thread_ended = unpatched.lock()
        """Released by the thread when it ends."""
        self._fork_lock = unpatched.lock()
        """Held while OpenSSL works or a socket is made, and during a fork."""
        self._forking = 0
        """The thread that holds `_fork_lock` for a fork."""
        self._alarm: _Alarm | None = None
        self._new_poll: Any = None
        self._failed = False
        """Whether the thread has failed, and waits to restart."""
        self._host = process_info.host()
        self._usage: Usage | None = None
        self._usage_at = -settings.usage_interval_seconds
        """When `_usage` was measured."""

    def __repr__(self) -> str:
        state = "failed" if self._failed else "leaving" if self._leaving else "running"
        state = state if self._running else "no thread"
        return f"<Reporter of instance {self.instance}: {state}, {list(self._sockets.values())}>"

    # --- In the application's threads

    def ledger_for(self, service: Service, program: str) -> Ledger:
        """Return the ledger of this process towards `service`, under the name `program`."""
        with self._guard:
            uplink_socket = self._sockets.get((service, program))
            if uplink_socket is None:
                # One process under two names is two rows: the second ledger is an instance of its own.
                instance = self.instance if not self._sockets else _instance()
                ledger = Ledger(
                    instance, unpatched.lock, monotonic, holder, self.settings.ledger, _thread_cpu
                )
                uplink_socket = self._open(ledger, service, program, _credentials(service))
        return uplink_socket.uplink.ledger

    def _open(
        self, ledger: Ledger, service: Service, program: str, credentials: Credentials | None
    ) -> UplinkSocket:
        uplink = Uplink(
            service,
            ledger,
            lambda full: self._describe(program, full),
            random.Random(os.urandom(8)),
            f"connmon {__version__} {program} pid {os.getpid()}"[:256],
            self.settings.uplink,
        )
        self._schedules[ledger] = LookSchedule(random.Random(os.urandom(8)), self.settings.looks)
        ledger.process.wake = self._wake(ledger)
        uplink_socket = UplinkSocket(uplink, self._fork_lock, credentials)
        self._sockets[service, program] = uplink_socket
        return uplink_socket

    def _wake(self, ledger: Ledger) -> Callable[[], None]:
        process = ledger.process

        def wake() -> None:
            process.used = True
            # Else the next connect tries again, or `may_have_threads`.
            if forks.threads_allowed() and self._start():
                process.wake = None

        return wake

    def _start(self) -> bool:
        """Start the thread, or wake it; return whether that is done."""
        # A lock of its own: this one must only be busy while the thread is being started.
        if not self._starting.acquire(False):
            now = monotonic()
            if self._starting_since is None:
                self._starting_since = now
            elif (
                now - self._starting_since > self.settings.stuck_start_seconds
            ):  # an interruption came before its release
                self._starting_since, self._starting = None, unpatched.lock()
            return False
        try:
            self._starting_since = None
            if self._running:
                self._wake_thread()
            elif not self._leaving:
                self._launch()
        finally:
            self._starting.release()
        return True

    def _launch(self) -> None:
        try:
            self._alarm = _Alarm()
            # Not in the thread, since eventlet imports for it: see `unpatched` on imports and forks.
            self._new_poll = unpatched.poll_type()
            self._thread_ended.acquire(False)
            self._prepared.acquire(False)
            _at_exit_of_workers()
            self._running = True
            unpatched.start_thread(self._run)
        except BaseException as error:  # no thread, no descriptor: the application goes on unwatched
            self._running = False
            self._drop_alarm()
            if interrupted(error):
                raise
            log.warning("connmon: this process cannot be reported: %r", error)

    def _drop_alarm(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            alarm.close()

    def _wake_thread(self) -> None:
        """Wake the thread from its poll."""
        alarm = self._alarm
        if alarm is not None:
            alarm.ring()

    def leave(self) -> None:
        """Have the last reports sent since the process ends, and wait for that, but not long."""
        if self._running and not self._leaving:
            self._leaving = True
            self._wake_thread()
            if not self._failed and self._thread_ended.acquire(True, self.settings.exit_seconds):
                self._thread_ended.release()

    def prepare_to_leave(self) -> None:
        """Have a connection to a node: the process is about to end (rule 2)."""
        if self._ending:
            return
        if not gc.isenabled():  # there will be no last collection
            self.leave()
            return
        self._ending = True
        gc.callbacks.append(self._collecting)
        if self._running and not self._leaving and not self._failed:
            began = monotonic()
            self._preparing = True
            self._wake_thread()
            if self._prepared.acquire(True, self.settings.exit_seconds):
                _release(self._prepared)
            self._exit_seconds_left = self.settings.exit_seconds - (monotonic() - began)

    def _collecting(self, phase: str, _: Any) -> None:
        if phase == "start" and sys.is_finalizing():
            gc.callbacks.remove(self._collecting)
            try:
                self._say_goodbye()
            except Exception:
                pass  # the process ends; the node will notice

    def _say_goodbye(self) -> None:
        """Send the last reports and goodbye in place of the thread, which is gone."""
        if not self._running or self._leaving or self._failed or not self._working.acquire(False):
            return
        self._leaving = True
        fork_lock = unpatched.lock()
        for uplink_socket in list(self._sockets.values()):
            uplink_socket.take_over(fork_lock)
        deadline = monotonic() + self._exit_seconds_left
        poller = self._new_poll()
        while self._turn(poller, None, deadline) and monotonic() < deadline:
            pass
        for uplink_socket in list(self._sockets.values()):
            uplink_socket.close()

    def before_fork(self) -> None:
        """Wait until the thread is not in the middle of what a child must not inherit.

        That is OpenSSL at work (its locks would never be released, and the child, or the application in it,
        would hang where it uses TLS itself), and a socket that is made and not yet known here: the child
        would keep it open, and the node would not see the parent end (one child in three, where a program
        forks right after it used an engine).
        """
        if self._fork_lock.acquire(True, self.settings.fork_wait_seconds):
            self._forking = unpatched.thread_id()

    def after_fork_in_parent(self) -> None:
        if self._forking == unpatched.thread_id():
            self._forking = 0
            self._fork_lock.release()

    def may_have_threads(self) -> None:
        """Start the thread where there is something to report: threads are allowed from now on."""
        for uplink_socket in list(self._sockets.values()):
            process = uplink_socket.uplink.ledger.process
            if process.used and process.wake is not None:
                process.wake()

    def after_fork_in_child(self) -> None:
        """Start from nothing: everything so far was the parent's."""
        self.instance = _instance()
        self._fork_lock = unpatched.lock()
        self._forking = 0
        self._guard = unpatched.lock()
        self._starting = unpatched.lock()
        self._starting_since = None
        self._thread_ended = unpatched.lock()
        self._prepared = unpatched.lock()
        self._working = unpatched.lock()
        self._running = self._leaving = self._preparing = self._ending = self._failed = False
        self._exit_seconds_left = self.settings.exit_seconds
        self._drop_alarm()
        self._usage, self._usage_at = None, -self.settings.usage_interval_seconds
        self._schedules, self._looks_failed = {}, False
        parent_sockets, self._sockets = self._sockets, {}
        for number, ((service, program), parent_socket) in enumerate(parent_sockets.items()):
            parent_socket.close()
            ledger = parent_socket.uplink.ledger
            ledger.forked(_instance() if number else self.instance)
            self._open(ledger, service, program, parent_socket.credentials)

    # --- In the reporter's thread

    def _run(self) -> None:
        working, prepared = self._working, self._prepared
        working.acquire()
        try:
            while self._alarm is not None:  # else it leaves before it could restart
                try:
                    self._loop(self._alarm)
                    return
                except Exception as error:
                    if sys.is_finalizing() or self._leaving:
                        return
                    self._restart(error)
        except BaseException as error:
            if not sys.is_finalizing():
                self._log(
                    logging.ERROR, f"connmon: the reporter has ended, nothing more is reported: {error!r}"
                )
        finally:
            for uplink_socket in list(self._sockets.values()):
                uplink_socket.close()
            for lock in (prepared, working, self._thread_ended):
                _release(lock)

    def _restart(self, error: Exception) -> None:
        """Wait and restart: a bug of ours, or the application has closed a descriptor of connmon's."""
        self._failed = True
        seconds = self.settings.restart_seconds
        self._log(
            logging.ERROR, f"connmon: the reporter has failed, and restarts in {seconds:g} s: {error!r}"
        )
        for uplink_socket in list(self._sockets.values()):
            uplink_socket.abandon(monotonic())
        self._drop_alarm()
        while self._alarm is None and not self._leaving:
            self._new_poll().poll(seconds * 1000.0)
            try:
                with self._fork_lock:
                    self._alarm = _Alarm()
            except OSError:  # the application has no descriptors left
                pass
        self._failed = False

    def _loop(self, alarm: _Alarm) -> None:
        poller = self._new_poll()
        while self._turn(poller, alarm, None):
            pass

    def _turn(self, poller: Any, alarm: _Alarm | None, deadline: float | None) -> bool:
        """Do what is due, then wait for what comes next; return whether anything is left to do.

        Without an alarm the main thread is here, at the end of the process; it waits until `deadline`.
        """
        now = monotonic()
        sockets = [one for one in list(self._sockets.values()) if one.uplink.ledger.process.used]
        if alarm is None:  # to connect can take long
            sockets = [uplink_socket for uplink_socket in sockets if uplink_socket.socket is not None]
        uplinks = [uplink_socket.uplink for uplink_socket in sockets]
        if self._leaving:
            for uplink in uplinks:
                uplink.leave(now)
        for uplink_socket in sockets:
            uplink_socket.step(now, begin=alarm is not None)
            if alarm is not None:
                self._log_uplink(uplink_socket.uplink)
        if self._leaving and all(uplink.finished or uplink.hopeless for uplink in uplinks):
            return False
        prepared = self._preparing and all(uplink.ready or uplink.resting for uplink in uplinks)
        if alarm is not None:
            poller.register(alarm.read_end, READ)
        by_descriptor: dict[int, UplinkSocket] = {}
        for uplink_socket in sockets:
            if uplink_socket.socket is not None:
                descriptor = uplink_socket.socket.fileno()
                by_descriptor[descriptor] = uplink_socket
                poller.register(descriptor, uplink_socket.events())
        due = min((uplink.due for uplink in uplinks), default=now + 60.0)
        if deadline is not None:
            due = min(due, deadline)
        if alarm is None:
            events = _poll_until(poller, due).events
        else:
            events = self._wait_and_look(poller, due, uplinks, prepared)
        for descriptor in by_descriptor:
            poller.unregister(descriptor)
        now = monotonic()
        for descriptor, flags in events:
            if alarm is not None and descriptor == alarm.read_end:
                alarm.hear()
            else:
                by_descriptor[descriptor].ready(flags, now)
        return True

    def _wait_and_look(self, poller: Any, due: float, uplinks: list[Uplink], prepared: bool) -> Any:
        """Poll until then, or until a look is due, and look; return what the poll has returned."""
        schedules: list[tuple[Ledger, LookSchedule]] = []
        if not (self._leaving or self._preparing or self._ending):
            now = monotonic()
            schedules = [(uplink.ledger, self._schedules[uplink.ledger]) for uplink in uplinks]
            for ledger, schedule in schedules:
                schedule.consider(now, ledger.profile_hz, ledger.profile_hz > 0.0 and ledger.busy)
        look_due = min([one.due for _, one in schedules if one.due is not None], default=None)
        woken = self._wait(poller, due, look_due, prepared)
        for ledger, schedule in schedules:
            late = schedule.late(woken.at, woken.planned)
            if late is not None and not self._leaving:
                if not woken.waited_for_lock:
                    late = 0.0 if late <= LATE_SECONDS else NO_CPU
                self._look(ledger, schedule, woken.at, late)
        return woken.events

    def _look(self, ledger: Ledger, schedule: LookSchedule, now: float, late: float) -> None:
        """Look where the holders of this ledger's connections are."""
        try:
            _, began = _thread_cpu()
            ledger.look(now, late, process_time())
            _, ended = _thread_cpu()
            schedule.took(ended - began)
        except Exception as error:
            if interrupted(error):
                raise
            seconds = self.settings.restart_seconds
            schedule.put_off(monotonic(), seconds)
            if not self._looks_failed:
                self._looks_failed = True
                self._log(
                    logging.ERROR,
                    "connmon: where connections are held cannot be looked at, and is tried again after "
                    f"{seconds:g} s: {error!r}",
                )
        else:
            schedule.plan(monotonic(), ledger.profile_hz)

    def _wait(self, poller: Any, due: float, look_due: float | None, prepared: bool) -> _Woken:
        """Poll until then, and let the main thread take this one's place meanwhile."""
        self._working.release()
        try:
            if prepared:
                # Only now, and standing still for a while: the main thread may take its place at once. The
                # alarm does not wake it: the one that asked for this may have come after it was seen.
                self._preparing = False
                _release(self._prepared)
                self._new_poll().poll(self.settings.standstill_seconds * 1000.0)
            return _poll_until(poller, due, look_due)
        finally:
            self._working.acquire()

    def _log_uplink(self, uplink: Uplink) -> None:
        if uplink.story:
            story, uplink.story = uplink.story, []
            if log.getEffectiveLevel() <= logging.DEBUG:  # isEnabledFor takes a lock of logging
                for line in story:
                    self._log(logging.DEBUG, line)
        if uplink.complaint is not None:
            self._log(logging.WARNING, uplink.complaint)
            uplink.complaint = None

    def _log(self, level: int, line: str) -> None:
        # Under eventlet and gevent the locks of logging belong to greenlets, and this is none.
        if unpatched.patched():
            try:
                os.write(2, f"{line}\n".encode("utf-8", "replace"))
            except OSError:
                pass
        else:
            try:
                log.log(level, "%s", line)
            except Exception:
                pass

    def _describe(self, program: str, full: bool) -> tuple[Process | None, Usage | None]:
        now = monotonic()
        fresh = now - self._usage_at >= self.settings.usage_interval_seconds
        if fresh:
            self._usage_at = now
            self._usage = process_info.usage()
        process = process_info.identity(self._host, program) if full else None
        return process, self._usage if full or fresh else None


#: A look that comes later than this has waited: for the interpreter lock, or for a CPU.
LATE_SECONDS: Final = 0.0005


class _Woken(NamedTuple):
    """How a wait has ended."""

    events: Any
    """What poll has returned."""
    at: float
    """When the thread went on."""
    planned: float
    """When it had to go on for a look; meaningless where none was due."""
    waited_for_lock: bool
    """Whether it may have waited for the interpreter lock then. A machine that is short of CPUs makes a
    thread late too."""


def _thread_cpu() -> tuple[int, float]:
    """Return the ident of the calling thread, and how many seconds it has computed.

    The ident is 0 where the platform has no clock for that.
    """
    return (unpatched.thread_id(), _thread_time()) if _thread_time is not None else (0, 0.0)


_thread_time: Callable[[], float] | None = getattr(time, "thread_time", None)


def _poll_until(poller: Any, due: float, look_due: float | None = None) -> _Woken:
    now = planned = monotonic()
    milliseconds = math.ceil(max(0.0, due - now) * 1000.0) + 1
    if look_due is not None:
        before_look = math.ceil(max(0.0, look_due - now) * 1000.0)
        planned = now + before_look / 1000.0
        milliseconds = min(milliseconds, before_look)
    before = _pauses()
    events = poller.poll(milliseconds)
    # Poll itself pauses once, where it had to wait. Another pause is for the lock.
    at = monotonic()
    known = before >= 0
    waited = _pauses() - before > (milliseconds > 0) if known else at - planned > LATE_SECONDS
    return _Woken(events, at, planned, waited)


def _pauses() -> int:
    """Return how often this thread has stopped by itself, to wait for something. -1: not known."""
    if _getrusage is None:
        return -1
    pauses: int = _getrusage(_OF_THREAD).ru_nvcsw
    return pauses


try:
    import resource
except ImportError:  # not on Windows
    _getrusage: Callable[[int], Any] | None = None
    _OF_THREAD = 0
else:
    _OF_THREAD = getattr(resource, "RUSAGE_THREAD", -1)  # of Linux and FreeBSD
    _getrusage = resource.getrusage if _OF_THREAD >= 0 else None


def _release(lock: Any) -> None:
    """Release a lock, if it is held."""
    try:
        lock.release()
    except RuntimeError:
        pass


class _Alarm:
    """A pipe that wakes the thread. Raises OSError where none can be made."""

    def __init__(self) -> None:
        self.read_end, self._write_end = ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
        self._identity = unpatched.identity(self.read_end)
        """Of both ends: a pipe is one file."""

    def ring(self) -> None:
        """Wake the thread. Raises nothing."""
        try:
            if unpatched.identity(self._write_end) == self._identity:
                os.write(self._write_end, b"!")
        except OSError:
            pass  # full: the thread wakes anyway

    def hear(self) -> None:
        """Empty the pipe. Raises OSError where the application has closed an end of it."""
        if unpatched.identity(self.read_end) != self._identity or not os.read(self.read_end, 512):
            raise OSError(errno.EBADF, "the application has closed a descriptor of connmon's")

    def close(self) -> None:
        for end in (self.read_end, self._write_end):
            if unpatched.identity(end) == self._identity:
                os.close(end)


def _credentials(service: Service) -> Credentials | None:
    try:
        return of_client(service)
    except ConfigError:
        return None  # the reporter tries again, and logs what is wrong


_reporter = Reporter()
ledger_for = _reporter.ledger_for

atexit.register(_reporter.prepare_to_leave)
os.register_at_fork(before=_reporter.before_fork, after_in_parent=_reporter.after_fork_in_parent)
forks.register(_reporter.after_fork_in_child, _reporter.may_have_threads)


def _at_exit_of_workers() -> None:
    """Have `leave` called in workers that end by os._exit and offer a hook before it."""
    for name in ("multiprocessing", "billiard"):
        util, process = sys.modules.get(f"{name}.util"), sys.modules.get(f"{name}.process")
        if util is None or process is None:
            continue
        # Not in the main process, which ends as any other.
        if getattr(process.current_process(), "_parent_pid", None) is not None:
            util.Finalize(None, _reporter.leave, exitpriority=-sys.maxsize)
    signals = sys.modules.get("celery.signals")
    if signals is not None:  # billiard's pool, which makes Celery's workers, runs no finalizers either
        signals.worker_process_shutdown.connect(_leave_celery, weak=False, dispatch_uid="connmon")


def _leave_celery(**_: Any) -> None:
    _reporter.leave()

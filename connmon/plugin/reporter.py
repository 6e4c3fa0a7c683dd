"""The one thread: it carries reports from this process's ledgers to their nodes.

Rules:

1. One native daemon thread for all ledgers, started when the first connection is seen and not
   when an engine is made, since what is made before a fork is used after it.
2. Nothing in here is ever waited for by the application, but at its exit, for at most `EXIT`.
   The goodbye comes last of all: functions that were registered with atexit before connmon was imported run
   after its own, and may use the database. So that one only sees to it that there is a connection to a node;
   the goodbye is said by the main thread in the garbage collection with which the interpreter's end begins,
   when no other thread runs any more and all modules are still there.
3. After a fork the child has a new instance, no thread, no sockets, and empty accounts; its
   first connection starts its own thread.
4. Secret and certificates are first read when the engine is made, by who may read them; what is
   wrong with them is a complaint in the log, like a node that is not there.
5. What fails in the thread and cannot is an error in the log; after `AGAIN` seconds it begins anew
   with full reports.
"""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import random
import sys
from time import monotonic
from typing import Any

from connmon import __version__, process_info
from connmon.config import Service
from connmon.errors import ConfigError
from connmon.interrupts import interrupted
from connmon.plugin import forks, holder, unpatched
from connmon.plugin.ledger import Ledger
from connmon.plugin.uplink import Uplink
from connmon.plugin.uplink_socket import READ, Line
from connmon.protocol.credentials import Credentials, of_client
from connmon.protocol.reports import Process, Usage

#: Seconds that the exit of the process may wait in all: for a connection to a node, and for its last report
#: to be acknowledged.
EXIT = 0.25
#: Seconds between two looks at what the process takes of its host.
SAMPLE = 5.0
#: Seconds after which the thread begins anew when something in it has failed.
AGAIN = 30.0
#: Seconds that a fork may wait for the thread, which is through in a few milliseconds.
FORK = 0.5
#: Seconds for which the thread stands still when the process is about to end.
STILL = 0.1
#: Seconds after which a start of the thread that is not through was interrupted.
STUCK = 5.0

log = logging.getLogger("connmon")


def _instance() -> str:
    return os.urandom(8).hex()


class Reporter:
    """The process's thread and its lines, one for each ledger."""

    def __init__(self) -> None:
        self.instance = _instance()
        self._lines: dict[tuple[Service, str], Line] = {}
        self._guard = unpatched.lock()
        self._starting = unpatched.lock()
        self._starting_since: float | None = None
        self._running = False
        self._leaving = False
        self._preparing = False
        """The process is about to end: have a connection, and begin nothing more."""
        self._ending = False
        """Whether `prepare_to_leave` was called."""
        self._prepared = unpatched.lock()
        self._working = unpatched.lock()
        """Held by the thread but while it waits: who gets it can go on in its place, once it is no more."""
        self._patience = EXIT
        self._left = unpatched.lock()
        self._whole = unpatched.lock()
        self._forking = 0
        """The thread that holds `_whole` for a fork."""
        self._alarm: _Alarm | None = None
        self._new_poll: Any = None
        self._hurt = False
        """Whether it has failed, and waits to begin anew."""
        self._host = process_info.host()
        self._usage: Usage | None = None
        self._sampled = -SAMPLE

    # -- in the application's threads

    def ledger_for(self, service: Service, program: str) -> Ledger:
        """Return the ledger of this process towards `service`, under the name `program`."""
        with self._guard:
            line = self._lines.get((service, program))
            if line is None:
                # One process under two names is two rows: the second ledger is an instance of its own.
                instance = self.instance if not self._lines else _instance()
                ledger = Ledger(instance, unpatched.lock, monotonic, holder)
                line = self._open(ledger, service, program, _credentials(service))
        return line.uplink.ledger

    def _open(self, ledger: Ledger, service: Service, program: str, credentials: Credentials | None) -> Line:
        uplink = Uplink(
            service,
            ledger,
            lambda full: self._describe(program, full),
            random.Random(os.urandom(8)),
            f"connmon {__version__} {program} pid {os.getpid()}"[:256],
        )
        ledger.wake = self._wake(ledger)
        line = self._lines[service, program] = Line(uplink, self._whole, credentials)
        return line

    def _wake(self, ledger: Ledger) -> Any:
        def wake() -> None:
            ledger.used = True
            # Else it is asked again at the next connect, or in `settled`.
            if forks.threads_allowed() and self._start():
                ledger.wake = None

        return wake

    def _start(self) -> bool:
        """Start the thread, or have it look up; return whether that is done."""
        # A lock of its own: this one must only be busy while the thread is being started.
        if not self._starting.acquire(False):
            now = monotonic()
            if self._starting_since is None:
                self._starting_since = now
            elif now - self._starting_since > STUCK:  # an interruption came before its release
                self._starting_since, self._starting = None, unpatched.lock()
            return False
        try:
            self._starting_since = None
            if self._running:
                self._ring()
            elif not self._leaving:
                self._launch()
        finally:
            self._starting.release()
        return True

    def _launch(self) -> None:
        try:
            self._alarm = _Alarm()
            # Not in the thread, since eventlet imports for it: see `native` on forks.
            self._new_poll = unpatched.poll_type()
            self._left.acquire(False)
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

    def _ring(self) -> None:
        """Have the thread look up from its poll."""
        alarm = self._alarm
        if alarm is not None:
            alarm.ring()

    def leave(self) -> None:
        """The process ends: have the last reports sent, and wait for that, but not long."""
        if self._running and not self._leaving:
            self._leaving = True
            self._ring()
            if not self._hurt and self._left.acquire(True, EXIT):
                self._left.release()

    def prepare_to_leave(self) -> None:
        """The process is about to end; others may still use the database (rule 2)."""
        if self._ending:
            return
        if not gc.isenabled():  # there will be no last collection
            self.leave()
            return
        self._ending = True
        gc.callbacks.append(self._collecting)
        if self._running and not self._leaving and not self._hurt:
            began = monotonic()
            self._preparing = True
            self._ring()
            if self._prepared.acquire(True, EXIT):
                _release(self._prepared)
            self._patience = EXIT - (monotonic() - began)

    def _collecting(self, phase: str, _: Any) -> None:
        if phase == "start" and sys.is_finalizing():
            gc.callbacks.remove(self._collecting)
            try:
                self._say_goodbye()
            except Exception:
                pass  # the process ends; the node will notice

    def _say_goodbye(self) -> None:
        """Do what the thread did, which is no more: the last reports, and goodbye."""
        if not self._running or self._leaving or self._hurt or not self._working.acquire(False):
            return
        self._leaving = True
        whole = unpatched.lock()
        for line in list(self._lines.values()):
            line.take_over(whole)
        deadline = monotonic() + self._patience
        poller = self._new_poll()
        while self._turn(poller, None, deadline) and monotonic() < deadline:
            pass
        for line in list(self._lines.values()):
            line.close()

    def forking(self) -> None:
        """Before a fork: wait until the thread is not in the middle of what a child must not inherit.

        That is OpenSSL at work (its locks would never be released, and the child, or the
        application in it, would wait for ever where it uses TLS itself), and a socket that is made
        and not yet known here: the child would keep it open, and the node would not see the
        parent end (one child in three, where a program forks right after it used an engine).
        """
        if self._whole.acquire(True, FORK):
            self._forking = unpatched.thread_id()

    def went_on(self) -> None:
        """In the parent, after a fork."""
        if self._forking == unpatched.thread_id():
            self._forking = 0
            self._whole.release()

    def settled(self) -> None:
        """Threads are allowed from now on: start, if there is something to report."""
        for line in list(self._lines.values()):
            ledger = line.uplink.ledger
            if ledger.used and ledger.wake is not None:
                ledger.wake()

    def forked(self) -> None:
        """In the child: everything so far was the parent's."""
        self.instance = _instance()
        self._whole = unpatched.lock()
        self._forking = 0
        self._guard = unpatched.lock()
        self._starting = unpatched.lock()
        self._starting_since = None
        self._left = unpatched.lock()
        self._prepared = unpatched.lock()
        self._working = unpatched.lock()
        self._running = self._leaving = self._preparing = self._ending = self._hurt = False
        self._patience = EXIT
        self._drop_alarm()
        self._usage, self._sampled = None, -SAMPLE
        lines, self._lines = self._lines, {}
        for number, ((service, program), old) in enumerate(lines.items()):
            old.close()
            ledger = old.uplink.ledger
            ledger.forked(_instance() if number else self.instance)
            self._open(ledger, service, program, old.credentials)

    # -- in the reporter's thread

    def _run(self) -> None:
        working, prepared = self._working, self._prepared
        working.acquire()
        try:
            while self._alarm is not None:  # else it leaves before it could begin anew
                try:
                    self._loop(self._alarm)
                    return
                except Exception as error:
                    if sys.is_finalizing() or self._leaving:
                        return
                    self._begin_anew(error)
        except BaseException as error:
            if not sys.is_finalizing():
                self._say(
                    logging.ERROR, f"connmon: the reporter has ended, nothing more is reported: {error!r}"
                )
        finally:
            for line in list(self._lines.values()):
                line.close()
            for lock in (prepared, working, self._left):
                _release(lock)

    def _begin_anew(self, error: Exception) -> None:
        """Something failed that cannot: a bug of ours, or the application has closed what is not its own."""
        self._hurt = True
        self._say(
            logging.ERROR, f"connmon: the reporter has failed, and begins anew in {AGAIN:g} s: {error!r}"
        )
        for line in list(self._lines.values()):
            line.abandon(monotonic())
        self._drop_alarm()
        while self._alarm is None and not self._leaving:
            self._new_poll().poll(AGAIN * 1000.0)
            try:
                with self._whole:
                    self._alarm = _Alarm()
            except OSError:  # the application has no descriptors left
                pass
        self._hurt = False

    def _loop(self, alarm: _Alarm) -> None:
        poller = self._new_poll()
        while self._turn(poller, alarm, None):
            pass

    def _turn(self, poller: Any, alarm: _Alarm | None, deadline: float | None) -> bool:
        """Do what is due and wait for what comes next; return whether there is anything left to do.

        Without an alarm it is the main thread, at the end of the process, which waits until `deadline`.
        """
        now = monotonic()
        lines = [line for line in list(self._lines.values()) if line.uplink.ledger.used]
        if alarm is None:  # to connect can take long
            lines = [line for line in lines if line.socket is not None]
        if self._leaving:
            for line in lines:
                line.uplink.leave(now)
        for line in lines:
            line.step(now, begin=alarm is not None)
            if alarm is not None:
                self._complain(line.uplink)
        if self._leaving and all(line.uplink.finished or line.uplink.hopeless for line in lines):
            return False
        prepared = self._preparing and all(line.uplink.ready or line.uplink.resting for line in lines)
        watched: dict[int, Line] = {}
        if alarm is not None:
            poller.register(alarm.read_end, READ)
        for line in lines:
            if line.socket is not None:
                watched[line.socket.fileno()] = line
                poller.register(line.socket.fileno(), line.events())
        due = min((line.uplink.due for line in lines), default=now + 60.0)
        if deadline is not None:
            due = min(due, deadline)
        if alarm is None:
            events = poller.poll(max(0.0, due - monotonic()) * 1000.0 + 1.0)
        else:
            self._working.release()
            try:
                if prepared:
                    # Only now, and standing still for a while: the main thread may take its place at once.
                    # Not woken by the alarm: that which asked for this may have come after it was seen.
                    self._preparing = False
                    _release(self._prepared)
                    self._new_poll().poll(STILL * 1000.0)
                events = poller.poll(max(0.0, due - monotonic()) * 1000.0 + 1.0)
            finally:
                self._working.acquire()
        for descriptor in watched:
            poller.unregister(descriptor)
        now = monotonic()
        for descriptor, flags in events:
            if alarm is not None and descriptor == alarm.read_end:
                alarm.hear()
            else:
                watched[descriptor].ready(flags, now)
        return True

    def _complain(self, uplink: Uplink) -> None:
        if uplink.story:
            story, uplink.story = uplink.story, []
            if log.getEffectiveLevel() <= logging.DEBUG:  # isEnabledFor takes a lock of logging
                for line in story:
                    self._say(logging.DEBUG, line)
        if uplink.complaint is not None:
            self._say(logging.WARNING, uplink.complaint)
            uplink.complaint = None

    def _say(self, level: int, line: str) -> None:
        # Under eventlet and gevent the locks of logging belong to greenlets, which this is not.
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
        fresh = now - self._sampled >= SAMPLE
        if fresh:
            self._sampled = now
            self._usage = process_info.usage()
        process = process_info.identity(self._host, program) if full else None
        return process, self._usage if full or fresh else None


def _release(lock: Any) -> None:
    """Release it, if it is held."""
    try:
        lock.release()
    except RuntimeError:
        pass


class _Alarm:
    """A pipe by which the thread is woken. Raises OSError where there can be none."""

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
            pass  # full: it will look anyway

    def hear(self) -> None:
        """Take what was rung. Raises OSError where the pipe is not whole any more."""
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
        return None  # the reporter tries again, and says what is wrong


_reporter = Reporter()
ledger_for = _reporter.ledger_for

atexit.register(_reporter.prepare_to_leave)
os.register_at_fork(before=_reporter.forking, after_in_parent=_reporter.went_on)
forks.tell(_reporter.forked, _reporter.settled)


def _at_exit_of_workers() -> None:
    """Have `leave` called where a worker ends by os._exit, but says so before."""
    for name in ("multiprocessing", "billiard"):
        util, process = sys.modules.get(f"{name}.util"), sys.modules.get(f"{name}.process")
        if util is None or process is None:
            continue
        # Not in the main process, which ends as any other.
        if getattr(process.current_process(), "_parent_pid", None) is not None:
            util.Finalize(None, _reporter.leave, exitpriority=-sys.maxsize)
    signals = sys.modules.get("celery.signals")
    if signals is not None:  # billiard's pool, which Celery's workers are of, runs no finalisers either
        signals.worker_process_shutdown.connect(_leave_celery, weak=False, dispatch_uid="connmon")


def _leave_celery(**_: Any) -> None:
    _reporter.leave()

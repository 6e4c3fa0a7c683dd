"""Tell connmon's own failures from exceptions that are raised into it.

A signal handler (Celery's soft time limit, an alarm, a SIGTERM handler that raises SystemExit), Ctrl-C, or
another thread (PyThreadState_SetAsyncExc) raises wherever the program happens to be, also in the middle of
connmon. The application waits for that exception and has to get it. It must never get a failure of connmon.

This is called where an exception was caught, never on the fast path: it may take its time.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import FrameType, TracebackType
from typing import Any, Final

_HERE: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
#: Packages whose exceptions connmon's own calls can raise.
_OWN: Final = ("builtins", "connmon", "sqlalchemy")


def interrupted(error: BaseException, *, in_driver: bool = False) -> bool:
    """Return whether `error`, just caught, was raised into connmon, so that the application has to get it.

    `in_driver`: a database driver was called, whose own exceptions are no sign of an interruption. False for
    an exception of a built-in class that another thread has set: it looks like a failure.
    """
    try:
        if not isinstance(error, Exception):
            return True
        innermost: TracebackType | None = None
        trace = error.__traceback__
        while trace is not None:
            if _is_signal_handler(trace.tb_frame):
                return True
            innermost, trace = trace, trace.tb_next
        if in_driver or innermost is None:
            return False
        # Set by another thread: it appears in a line of connmon's that raises no such thing.
        here = innermost.tb_frame.f_code.co_filename.startswith(_HERE)
        return here and type(error).__module__.partition(".")[0] not in _OWN
    except Exception:
        return False


def _is_signal_handler(frame: FrameType) -> bool:
    """Return whether this is the frame of a Python signal handler: its caller is among its arguments."""
    caller, code = frame.f_back, frame.f_code
    if caller is None or code.co_filename.startswith(_HERE):
        return False
    values = list(frame.f_locals.values())
    for value in list(values):
        if isinstance(value, tuple):  # handler(*arguments)
            values.extend(value)
    if any(value is caller for value in values) and any(isinstance(value, int) for value in values):
        return True
    # The handler may have deleted or replaced its arguments.
    return any(code is handler for handler in _handlers())


def _handlers() -> list[Any]:
    """Return the code objects of the signal handlers that are set now."""
    module = sys.modules.get("signal")
    if module is None:
        return []
    codes = []
    for number in module.valid_signals():
        handler: Any = module.getsignal(number)
        handler = getattr(handler, "func", handler)  # functools.partial
        handler = getattr(handler, "__func__", handler)
        codes.append(getattr(handler, "__code__", None))
    return [code for code in codes if code is not None]


def let_go(error: BaseException) -> None:
    """Clear connmon's frames in the error's traceback.

    They refer to the application's frames and connections, which would else live until a garbage collection.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(_HERE):
            with contextlib.suppress(RuntimeError):  # the frame still runs
                trace.tb_frame.clear()
        trace = trace.tb_next

"""A child process of the demo: a node or an application."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

#: For a child to end by itself.
END_SECONDS: Final = 3.0


class Child:
    """A child process that can be restarted; it ends when its standard input does."""

    def __init__(self, directory: Path, name: str, *arguments: str) -> None:
        self.name = name
        self._directory = directory
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "ended" if self.ended else f"pid {self.pid}"
        return f"<Child {self.name} {state}>"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def last_line(self) -> str:
        """The last line of its log."""
        text = (self._directory / f"{self.name}.log").read_text(encoding="utf-8", errors="replace")
        return (text.splitlines() or ["no reason given"])[-1]

    def start(self) -> None:
        with open(self._directory / f"{self.name}.log", "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "connmon.commands.demo.child", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the console
            )

    def stop_work(self) -> None:
        """Write a line to its standard input: an application then stops working and writes its counts."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self.end()

    def close(self) -> None:
        """Close its standard input, at which it ends."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def end(self) -> None:
        """Return when it has ended, at most `END_SECONDS` later."""
        self.close()
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(END_SECONDS)
            finally:
                process.kill()
                process.wait()

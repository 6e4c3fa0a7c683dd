"""Render a screen of the console as SVG: the image in the README.

    python -m tests.support.made_fleet    # run a node with the tests' fleet; it prints its port
    python docs/draw_screen.py docs/console.svg --host 127.0.0.1:PORT

The real console runs in a pseudo-terminal of 100 x 24. pyte keeps its screen, which is drawn character by
character, with its colours.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from xml.sax.saxutils import escape

import pyte

COLUMNS, LINES = 100, 24
#: Size of a character in pixels.
WIDE, HIGH = 8, 17
SECONDS = 6.0
COLOURS = {
    "default": "#d8d8d8", "green": "#5faf5f", "brown": "#d7af00", "red": "#ff5f5f", "white": "#9a9a9a",
    "cyan": "#5fafaf", "black": "#141414",
}  # fmt: skip
GROUND = "#141414"


def captured(arguments: list[str], keys: str) -> pyte.Screen:
    """Return the screen of `connmon`, some seconds after these keys."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from connmon.commands.cli import main; sys.exit(main())", *arguments,
        ],
        stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "linux"},
    )  # fmt: skip
    end = time.monotonic() + SECONDS
    pressed = False
    while time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            stream.feed(os.read(master, 65536))
        if not pressed and end - time.monotonic() < SECONDS / 2:
            os.write(master, keys.encode())
            pressed = True
    process.terminate()
    process.wait()
    os.close(master)
    os.close(slave)
    return screen


def svg(screen: pyte.Screen) -> str:
    """Return the screen as SVG: a text for each run of one style, and a rectangle for its background."""
    width, height = COLUMNS * WIDE + 16, LINES * HIGH + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13">',
        f'<rect width="{width}" height="{height}" rx="6" fill="{GROUND}"/>',
    ]
    for line in range(LINES):
        run, look, begin = "", ("", "", False), 0
        for column in range(COLUMNS + 1):
            cell = screen.buffer[line][column] if column < COLUMNS else None
            now = ("", "", False)
            if cell is not None:
                ink = COLOURS.get(cell.fg, COLOURS["default"])
                ground = "" if cell.bg == "default" else COLOURS.get(cell.bg, GROUND)
                now = (GROUND, ink, cell.bold) if cell.reverse else (ink, ground, cell.bold)
            if now != look or cell is None:
                parts += _run(run, look, begin, line)
                run, look, begin = "", now, column
            run += "" if cell is None else cell.data
    return "\n".join([*parts, "</svg>"]) + "\n"


def _run(run: str, look: tuple[str, str, bool], begin: int, line: int) -> list[str]:
    ink, ground, bold = look
    x, y = 8 + begin * WIDE, 8 + line * HIGH
    parts = []
    if ground:
        parts.append(f'<rect x="{x}" y="{y}" width="{len(run) * WIDE}" height="{HIGH}" fill="{ground}"/>')
    if run.strip():
        weight = ' font-weight="bold"' if bold else ""
        parts.append(
            f'<text x="{x}" y="{y + 13}" fill="{ink}"{weight} textLength="{len(run) * WIDE}" '
            f'xml:space="preserve">{escape(run)}</text>'
        )
    return parts


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(svg(captured(sys.argv[2:], "9")), encoding="utf-8")

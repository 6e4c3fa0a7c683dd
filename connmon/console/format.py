"""Write values: counts, rates, sizes, bars, lines of blocks. Pure.

An unknown value is "-". Every character takes one column of the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from connmon.console import text

UNKNOWN: Final = "-"

#: From the lowest to the highest value, for terminals with block characters and without.
BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = "_.-:=+*#"


def count(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def rate(value: float | None) -> str:
    """Return events per second, with a tenth below a thousand."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f}" if value < 999.95 else f"{value:.0f}"


def size(value: int | None) -> str:
    """Return bytes as 512B, 38M, 1.2G (powers of 1024)."""
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in "BKMGT":
        if amount < 1023.5 or unit == "T":
            return f"{amount:.1f}{unit}" if amount < 9.95 and unit in "GT" else f"{amount:.0f}{unit}"
        amount /= 1024
    raise AssertionError


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}%"


def word(value: Any) -> str:
    return UNKNOWN if value in (None, "") else text.sanitize(str(value))


def bar(part: int | None, whole: int | None, columns: int) -> str:
    """Return [||||    ]: full where `part` is `whole` or more, not empty as soon as `part` is not 0.

    Spaces where `part` is unknown: an empty bar would say that it is 0.
    """
    room = columns - 2
    if part is None:
        return " " * columns
    if not whole:
        return "[" + " " * room + "]"
    filled = min(room, max(part * room // whole, 1 if part else 0))
    return "[" + "|" * filled + " " * (room - filled) + "]"


def of(part: int | None, whole: int | None) -> str:
    """Return 13/15; a whole without a limit is "-"."""
    return UNKNOWN if part is None else f"{part}/{count(whole)}"


def means(
    samples: Sequence[float | None], number: int, columns: int, block_samples: int
) -> list[float | None]:
    """Return the means of `columns` blocks of `block_samples` samples, the newest last; None: unknown.

    `number` is the number of the last sample. Which samples share a block depends on their numbers, not on
    the moment, so that a line of blocks moves to the left and does not shimmer.
    """
    blocks: list[float | None] = []
    last = number // block_samples
    for block in range(last - columns + 1, last + 1):
        begin = block * block_samples - (number - len(samples) + 1)
        known = [
            value for value in samples[max(0, begin) : max(0, begin + block_samples)] if value is not None
        ]
        blocks.append(sum(known) / len(known) if known else None)
    return blocks


def drawn(values: Sequence[float | None], blocks: str = BLOCKS) -> str:
    """Return a block for each value: the highest for the largest, the lowest for 0, a space for None."""
    top = max((value for value in values if value is not None), default=0.0)
    return "".join(
        " " if value is None else blocks[0] if not top else blocks[round(value / top * (len(blocks) - 1))]
        for value in values
    )


def peak(values: Sequence[float | None]) -> str:
    """Return the value of the highest block of a line."""
    return short(max((value for value in values if value is not None), default=None))


def short(value: float | None) -> str:
    """Return a number in five characters at most: 7.5, 312, 88.2k, 1.3M."""
    if value is None:
        return UNKNOWN
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            break
        value /= 1000.0
    whole = f"{value:.0f}" if value >= 99.95 or value == int(value) else f"{value:.1f}"
    return whole + unit


def line(
    samples: Sequence[float | None], number: int, columns: int, block_samples: int, blocks: str = BLOCKS
) -> str:
    """Return samples as `columns` blocks, each the mean of `block_samples`; the newest at the right."""
    return drawn(means(samples, number, columns, block_samples), blocks)

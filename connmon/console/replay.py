"""`connmon replay`: a recording in the console, where a node would be.

Rules kept here:

- What is shown is what the console would have shown in that moment, in all views. Times are those of
  the recording.
- It goes on as fast as it was recorded, times the speed that was chosen; the state has where it stands.
- The last minutes of a row are made from the frames that were read on the way, since the last
  complete one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from connmon.console import aggregate, app, screen
from connmon.console.fetcher import Demand, News, Note, Position
from connmon.console.fitting import Row
from connmon.console.source import Key, Source, Want, belongs
from connmon.console.state import Picture, Reel, Remembered, Samples, State
from connmon.protocol.queries import EVERYTHING
from connmon.protocol.rows import RowKey
from connmon.protocol.values import Grouping
from connmon.reader.recording import Recording, answered

#: Samples of a row that are kept.
SAMPLES = 300


class Player:
    """Gives the console pictures from a recording; `moved` is told when it goes on by itself."""

    def __init__(self, recording: Recording, clock: Callable[[], float] = time.monotonic) -> None:
        self._recording = recording
        self._clock = clock
        self._shown: tuple[Any, ...] | None = None
        self._position = -1
        self._wants: tuple[Want, ...] = ()
        self._playing: tuple[int, float] = (-1, 0.0)
        self._sources: dict[Want, Source] = {}
        self._past: dict[RowKey, tuple[list[float | None], list[float | None]]] = {}
        self._nodes: list[tuple[Key, Row]] = []
        self._due: float | None = None
        self._told: list[News] = []
        if recording.cut:
            self._told.append(Note(recording.cut))

    @property
    def minute(self) -> int:
        """How many frames are about a minute."""
        last = len(self._recording) - 1
        if not last:
            return 1
        span = self._recording.frame(last).at - self._recording.frame(0).at
        return max(1, min(last, round(60.0 * last / span))) if span > 0 else last

    def want(self, demand: Demand) -> None:
        reel = demand.reel
        if reel is None:
            return
        now = self._clock()
        position = reel.position
        if reel.playing and position < len(self._recording) - 1:
            pause = self._recording.frame(position + 1).at - self._recording.frame(position).at
            pause = min(max(pause, 0.01), 60.0) / reel.speed
            if self._due is None or (position, reel.speed) != self._playing:
                self._due, self._playing = now + pause, (position, reel.speed)
            elif now >= self._due:
                position, self._due = position + 1, None
                self._told.append(Position(position))
        else:
            self._due = None
        if (position, demand.wants) != self._shown:
            self._shown = (position, demand.wants)
            self._told.append(self._picture(position, demand.wants))

    def news(self) -> Sequence[News]:
        told, self._told = self._told, []
        return told

    def _picture(self, position: int, wants: tuple[Want, ...]) -> Picture:
        if wants != self._wants or position < self._position:
            self._wants = wants
            self._sources = {want: Source(_asked(want)) for want in wants if want.by != "node"}
            self._sources[_HEAD] = Source(_HEAD)
            self._position = -1
            self._past.clear()
        begin = self._recording.before(position)
        for at in range(max(begin, self._position + 1), position + 1):
            self._read(at)
        self._position = position
        frame = self._recording.frame(position)
        head = self._sources[_HEAD].head()
        then = datetime.fromtimestamp(frame.at)
        return Picture(
            head,
            {want: self._rows(want) for want in wants},
            self._clock(),
            then.strftime("%Y-%m-%d %H:%M:%S"),
            datetime.fromtimestamp(frame.at - head["stale_seconds"]).strftime("%H:%M:%S"),
            Remembered(position, 1.0, {key: Samples(*past) for key, past in self._past.items()}),
        )

    def _read(self, at: int) -> None:
        frame = self._recording.frame(at)
        if frame.nodes is not None:
            self._nodes = [
                (
                    ("node", row.get("node"), row.get("address")),
                    {**row, "problem": "; ".join(map(str, row.get("problems") or ())) or None},
                )
                for row in frame.nodes
            ]
        for want, source in self._sources.items():
            for rows in answered(frame, _grouping(want)):
                source.apply(rows)
            if want.by not in ("wait", "connection", "pool", "site"):
                for key, row in source.rows():
                    self._sampled(key, row)
        self._sampled(EVERYTHING, self._sources[_HEAD].head()["totals"])

    def _sampled(self, key: Key, row: Row) -> None:
        rates, counts = self._past.setdefault(key, ([], []))
        rates.append(row.get("checkouts_per_second"))
        counts.append(row.get("connections"))
        del rates[:-SAMPLES], counts[:-SAMPLES]

    def _rows(self, want: Want) -> list[tuple[Key, Row]]:
        if want.by == "node":
            return self._nodes
        rows = self._sources[want].rows()
        if want.by == "program" and want.database is not None:
            return aggregate.users(rows, want.database)
        if want.by == "wait":
            return rows
        return [pair for pair in rows if belongs(want, pair[1])]


#: Whose answer gives the head.
_HEAD = Want("host")


def _grouping(want: Want) -> Grouping:
    """Return the grouping whose rows a table is made of."""
    by = _asked(want).by
    return "connection" if by in ("wait", "node") else by  # type: ignore[return-value]


def _asked(want: Want) -> Want:
    """Return the table that is made of a recording's answers for this one: they are not narrowed."""
    if want.database is not None:
        return Want("pool")
    return Want(want.by)


def run(recording: Recording) -> int:
    """Show it until the console is left; return the exit code, as `app.run` does."""
    screen.check()
    player = Player(recording)
    option = f"connmon_service={recording.service}"
    reel = Reel(len(recording), player.minute, playing=len(recording) > 1)
    return app.show(replace(State(option, now=time.monotonic()), reel=reel), player)

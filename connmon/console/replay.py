"""`connmon replay`: a recording in the place of a node.

- The screen shows what the console would have shown at that moment, in all views. Times are those of the
  recording.
- It goes on as fast as it was recorded, times the speed that was chosen; the state has its position.
- The last minutes of a row come from the recorded snapshots that were read on the way, since the last
  complete one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from connmon.console import aggregate, app, screen
from connmon.console.fetcher import Demand, News, Note, Position
from connmon.console.rows import FigureRow, KeyedRow, Samples, node_rows
from connmon.console.settings import DEFAULT_SETTINGS, ConsoleSettings
from connmon.console.source import HEAD, Source, Want, belongs
from connmon.console.state import ConsoleState, Reel, Refresh, Remembered
from connmon.errors import UsageError
from connmon.protocol.document import FigureFields
from connmon.protocol.queries import EVERYTHING
from connmon.protocol.rows import RowKey
from connmon.protocol.values import Grouping
from connmon.reader.recording import Recording, answered


class Player:
    """Gives the console snapshots of a recording; `news` says when it goes on by itself."""

    def __init__(
        self,
        recording: Recording,
        clock: Callable[[], float] = time.monotonic,
        settings: ConsoleSettings = DEFAULT_SETTINGS,
    ) -> None:
        self._recording = recording
        self._clock = clock
        self._settings = settings
        self._shown: tuple[Any, ...] | None = None
        self._position = -1
        self._wants: tuple[Want, ...] = ()
        self._playing: tuple[int, float] = (-1, 0.0)
        self._sources: dict[Want, Source] = {}
        self._samples: dict[RowKey, tuple[list[float | None], list[float | None]]] = {}
        self._nodes: list[KeyedRow] = []
        self._due: float | None = None
        self._news: list[News] = []
        if recording.cut:
            self._news.append(Note(recording.cut))

    def __repr__(self) -> str:
        return f"<Player of {self._recording.path}, {self._position + 1} of {len(self._recording)}>"

    @property
    def minute(self) -> int:
        """How many snapshots are about a minute."""
        last = len(self._recording) - 1
        if not last:
            return 1
        span = self._recording.recorded(last).at - self._recording.recorded(0).at
        return max(1, min(last, round(60.0 * last / span))) if span > 0 else last

    def want(self, demand: Demand) -> None:
        """Show this from now on, and go on to the next snapshot if it is due."""
        reel = demand.reel
        if reel is None:
            return
        now = self._clock()
        position = reel.position
        if reel.playing and position < len(self._recording) - 1:
            pause = self._recording.recorded(position + 1).at - self._recording.recorded(position).at
            pause = min(max(pause, 0.01), 60.0) / reel.speed
            if self._due is None or (position, reel.speed) != self._playing:
                self._due, self._playing = now + pause, (position, reel.speed)
            elif now >= self._due:
                position, self._due = position + 1, None
                self._news.append(Position(position))
        else:
            self._due = None
        if (position, demand.wants) != self._shown:
            self._shown = (position, demand.wants)
            self._news.append(self._refresh(position, demand.wants))

    def news(self) -> Sequence[News]:
        """Return what has happened since the last call."""
        news, self._news = self._news, []
        return news

    def _refresh(self, position: int, wants: tuple[Want, ...]) -> Refresh:
        if wants != self._wants or position < self._position:
            self._wants = wants
            self._sources = {
                want: Source(_recorded(want), settings=self._settings) for want in wants if want.by != "node"
            }
            self._sources[HEAD] = Source(HEAD, settings=self._settings)
            self._position = -1
            self._samples.clear()
        begin = self._recording.before(position)
        for at in range(max(begin, self._position + 1), position + 1):
            self._read(at)
        self._position = position
        moment = self._recording.recorded(position).at
        head = self._sources[HEAD].head()
        return Refresh(
            head=head,
            tables={want: self._rows(want) for want in wants},
            received=self._clock(),
            received_at=datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S"),
            stands_since=datetime.fromtimestamp(moment - head.stale_seconds).strftime("%H:%M:%S"),
            remembered=Remembered(
                position, 1.0, {key: Samples(*samples) for key, samples in self._samples.items()}
            ),
        )

    def _read(self, at: int) -> None:
        """Read one recorded snapshot. Raises UsageError where the file is damaged there."""
        recorded = self._recording.recorded(at)
        if recorded.nodes is not None:
            try:
                self._nodes = node_rows(recorded.nodes)
            except msgspec.ValidationError as error:
                raise UsageError(
                    f"{self._recording.path}: snapshot {at + 1} cannot be read: {error}"
                ) from None
        for want, source in self._sources.items():
            for rows in answered(recorded, _grouping(want)):
                source.apply(rows)
            if want.by not in ("wait", "connection", "pool", "site"):
                for key, row in source.rows():
                    if isinstance(row, FigureRow):
                        self._sample(key, row.figures)
        self._sample(EVERYTHING, self._sources[HEAD].head().totals.figures)

    def _sample(self, key: RowKey, figures: FigureFields) -> None:
        rates, counts = self._samples.setdefault(key, ([], []))
        rates.append(figures.checkouts_per_second)
        counts.append(figures.connections)
        most = self._settings.replay_samples
        del rates[:-most], counts[:-most]

    def _rows(self, want: Want) -> Sequence[KeyedRow]:
        if want.by == "node":
            return self._nodes
        rows = self._sources[want].rows()
        if want.by == "program" and want.database is not None:
            return aggregate.users(rows, want.database)
        if want.by == "wait":
            return rows
        return [row for row in rows if belongs(want, row[1])]


def _recorded(want: Want) -> Want:
    """Return the table of the recording that has the rows of this one: recorded answers are not narrowed."""
    return Want("pool") if want.database is not None else Want(want.by)


def _grouping(want: Want) -> Grouping:
    """Return the grouping of the recording that has the rows of this table."""
    by = _recorded(want).by
    return "connection" if by == "wait" or by == "node" else by


def run(recording: Recording) -> int:
    """Show it until the console is left; return the exit code, as `app.run` does."""
    screen.check()
    player = Player(recording)
    reel = Reel(len(recording), player.minute, playing=len(recording) > 1)
    state = ConsoleState(f"connmon_service={recording.service}", now=time.monotonic(), reel=reel)
    return app.show(state, player)

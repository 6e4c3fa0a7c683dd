"""The times and sizes of the console, in one object that tests pass in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ConsoleSettings:
    """Times in seconds unless a name says otherwise."""

    # The loop and the screen's state.
    key_wait_seconds: float = 0.1
    """How long the loop waits for a key before it looks for news."""
    refresh_seconds: float = 1.0
    """Between two refreshes, until the user chooses another interval."""
    note_seconds: float = 12.0
    """How long a note stays on the screen."""
    late_age_seconds: float = 0.5
    """How late a refresh is before the time since the last one counts as age."""
    late_banner_seconds: float = 2.5
    """How late a refresh is before the screen says that the node does not answer."""
    history_rows: int = 100
    """Rows whose history is asked for at once, at most."""
    input_characters: int = 200
    """Length of a text that can be typed at a prompt."""
    wheel_rows: int = 3
    """Rows or lines that one notch of the mouse wheel moves by."""

    # The thread that talks to the node.
    answer_seconds: float = 5.0
    """A node that takes longer to answer counts as dead."""
    history_seconds: float = 2.0
    """Between two queries for the history of the rows on the screen."""
    history_samples: int = 150
    """Samples of each row in the answer."""
    quorum_search_seconds: float = 5.0
    """Between two searches for a node with quorum, while the present node has none."""
    quorum_answer_seconds: float = 0.8
    """How long each node of such a search may take; no refresh comes meanwhile."""
    busy_share: float = 0.25
    """The share of the time that refreshes may take; longer ones come at longer intervals."""

    # Figures that only a reader knows.
    connects_window_seconds: float = 10.0
    """Connects per second are a mean over the reports of this time."""
    connects_valid_seconds: float = 15.0
    """How long after its last report a row keeps its connects per second: the default lease."""
    replay_samples: int = 300
    """Samples of each row that a replay keeps."""


DEFAULT_SETTINGS: Final = ConsoleSettings()

#: Refresh intervals in seconds, and replay speeds, that the keys step through.
INTERVALS_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
REPLAY_SPEEDS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

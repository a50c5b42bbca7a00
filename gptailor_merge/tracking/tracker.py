"""The protocol of trackers: programs that record the numbers of a search.

A tracker receives numbers for each candidate, the held-out scores at the end, and a few settings. It is
never sent a path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

PROJECT = "gptailor"
"""The project under which trackers file our runs."""


Numbers = Mapping[str, float]


TrackerSettings = Mapping[str, str | int | float]


class Tracker(Protocol):
    """Records one run."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Records the numbers of one candidate.

        Args:
            step: the number of the candidate, from 0; each call has a larger one than the call before.
        """

    def finish(self, results: Numbers) -> None:
        """Records the results of the run and closes the tracker; it is called once, and last.

        Args:
            results: the held-out scores; empty where the search broke off.
        """


TrackerFactory = Callable[[Path, str, TrackerSettings], Tracker]
"""Makes a tracker from the run directory, the run's name and its settings.

Files may go into the run directory. Its path must not be sent anywhere.
"""

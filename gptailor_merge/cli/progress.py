"""Reports on a search while it runs: by a live bar on a terminal, by plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gptailor_merge.cli.terminal import PlainConsole
from gptailor_merge.time_left import time_left
from gptailor_merge.visible_text import visible_line

if TYPE_CHECKING:
    from gptailor_merge import Candidate

LINES = 10
"""About this many plain lines report a whole search."""


class Reporter(Protocol):
    """Shows how a search goes."""

    def begin(self, candidates: int) -> None:
        """Begins, with the number of candidates that are to come."""

    def step(self, step: str) -> None:
        """Shows what is being done now."""

    def candidate(self, candidate: Candidate) -> None:
        """Counts a candidate."""


class Tally:
    """Keeps the best loss and the speed as candidates come in.

    Attributes:
        scored: candidates that this process has scored; those that a journal knew take no time.
    """

    def __init__(self) -> None:
        self.best = float("inf")
        self.failures = 0
        self.scored = 0
        self._begun: float | None = None

    def add(self, candidate: Candidate) -> None:
        """Counts a candidate."""
        if not candidate.replayed:
            self._begun = self._begun or time.monotonic() - candidate.seconds
            self.scored += 1
        self.failures += candidate.status == "failed"
        if candidate.loss is not None and candidate.status != "probe":
            self.best = min(self.best, candidate.loss)

    @property
    def per_minute(self) -> float:
        """Candidates per minute since the first that was scored here."""
        elapsed = time.monotonic() - (self._begun or time.monotonic())
        return 60 * self.scored / max(elapsed, 1e-9)

    def left(self, candidates: int) -> str:
        """Says about how long further candidates take, as the end of a clause; repairs and tuning follow."""
        if not (self.scored and candidates):
            return ""
        return f"{time_left(60 * candidates / self.per_minute)} of the search"

    def __str__(self) -> str:
        failed = f", {self.failures} failed" if self.failures else ""
        best = "probing" if self.best == float("inf") else f"best {self.best:.4f}"
        speed = f"{self.per_minute:.0f} candidates/min" if self.scored else "from the journal"
        return f"{best}, {speed}{failed}"


class Bar:
    """Shows a bar with the best loss, the speed and the time left; drawn from `begin` until `end`."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tally]}", markup=False),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=None, tally="")
        self._tally = Tally()

    def begin(self, candidates: int) -> None:
        """Draws the bar."""
        self._bar.update(self._task, total=candidates)
        self._bar.start()

    def step(self, step: str) -> None:
        """Writes the step before the bar, and a warning above it, where it stays."""
        if step.startswith("warning: "):
            self._bar.console.print(visible_line(step))
            return
        self._bar.update(self._task, description=visible_line(step))

    def candidate(self, candidate: Candidate) -> None:
        """Moves the bar on."""
        self._tally.add(candidate)
        if self._tally.scored == 1:  # what came from the journal says nothing about the time that is left
            self._bar.reset(self._task, completed=candidate.number)
        self._bar.update(self._task, advance=1, tally=str(self._tally))

    def end(self) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()


class Lines:
    """Prints a line for each step, and about ten lines in the course of the search."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._candidates = 0
        self._tally = Tally()

    def begin(self, candidates: int) -> None:
        """Notes how many candidates there will be."""
        self._candidates = candidates

    def step(self, step: str) -> None:
        """Prints the step."""
        self._print(step)

    def candidate(self, candidate: Candidate) -> None:
        """Prints the tally now and then."""
        self._tally.add(candidate)
        count = candidate.number + 1
        if count % max(1, self._candidates // LINES) == 0 or count == self._candidates:
            left = self._tally.left(self._candidates - count)
            self._print(f"{count}/{self._candidates}: {self._tally}{left}")

    def _print(self, text: str) -> None:
        self._console.print(visible_line(text))


@contextmanager
def progress() -> Iterator[Reporter]:
    """Yields a bar on a terminal, and plain lines elsewhere."""
    console = PlainConsole(stderr=True)
    if not console.is_terminal:
        yield Lines(console)
        return
    bar = Bar(console)
    try:
        yield bar
    finally:
        bar.end()

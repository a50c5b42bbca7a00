"""How a search reports while it runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gptailor_merge.search.candidates import Candidate, Status

Callbacks = tuple[Callable[[str], None], Callable[[Candidate], None]]


LINES = 10
"""About so many plain lines report a whole search."""


class Tally:
    """The best loss and the speed, as candidates come in."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.failures = 0
        self._done = 0
        self._begun: float | None = None

    def add(self, candidate: Candidate) -> None:
        """Count a candidate."""
        self._begun = self._begun or time.monotonic() - candidate.seconds
        self._done += 1
        self.failures += candidate.status == "failed"
        if candidate.loss is not None and candidate.status != Status.PROBE:
            self.best = min(self.best, candidate.loss)

    @property
    def per_minute(self) -> float:
        """Candidates per minute since the first."""
        elapsed = time.monotonic() - (self._begun or time.monotonic())
        return 60 * self._done / max(elapsed, 1e-9)

    def __str__(self) -> str:
        failed = f", {self.failures} failed" if self.failures else ""
        best = "probing" if self.best == float("inf") else f"best {self.best:.4f}"
        return f"{best}, {self.per_minute:.0f} candidates/min{failed}"


@contextmanager
def live(console: Console, budget: int) -> Iterator[Callbacks]:
    """A bar with the best loss, the speed and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tally]}"),
        TimeRemainingColumn(),
    )
    tally = Tally()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=budget, tally="")

        def on_step(step: str) -> None:
            progress.update(task, description=step)

        def on_candidate(candidate: Candidate) -> None:
            tally.add(candidate)
            progress.update(task, advance=1, tally=str(tally))

        yield on_step, on_candidate


@contextmanager
def plain(console: Console, budget: int) -> Iterator[Callbacks]:
    """A line for each step, and about ten lines in the course of the search."""
    tally = Tally()
    every = max(1, budget // LINES)

    def on_step(step: str) -> None:
        console.print(step, markup=False, highlight=False)

    def on_candidate(candidate: Candidate) -> None:
        tally.add(candidate)
        if (candidate.number + 1) % every == 0 or candidate.number + 1 == budget:
            console.print(f"{candidate.number + 1}/{budget}: {tally}", markup=False, highlight=False)

    yield on_step, on_candidate

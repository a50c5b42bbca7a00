"""Feeds trackers while a search runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gptailor_merge.config import SearchConfig
from gptailor_merge.objectives.scores import TOTAL, natural
from gptailor_merge.runs.summary import Summary
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.tracking.tracker import Numbers, Tracker, TrackerFactory, TrackerSettings


class TrackerFeed:
    """Sends each candidate to the trackers as it comes, and the results of the run at the end.

    The trackers are made when the first candidate comes, so that a search that is refused leaves no
    trace in them.
    """

    def __init__(
        self, factories: Mapping[str, TrackerFactory], directory: Path, config: SearchConfig
    ) -> None:
        """
        Args:
            factories: tracker name -> factory, see `registry.tracker_factories`.
            directory: the run directory; its name is the name of the run.
        """
        self._factories, self._directory, self._config = factories, directory, config
        self._trackers: list[Tracker] | None = None
        self._results: Numbers = {}
        self._tokens, self._seconds = 0, 0.0
        self._best: float | None = None

    def send(self, candidate: Candidate) -> None:
        """Sends the next candidate; candidates come in the order of their numbers."""
        if self._trackers is None:
            settings, name = _settings(self._config), self._directory.name or "run"
            self._trackers = [make(self._directory, name, settings) for make in self._factories.values()]
        numbers = self._numbers(candidate)
        for tracker in self._trackers:
            tracker.log(candidate.number, numbers)

    def after(self, listener: Callable[[Candidate], None]) -> Callable[[Candidate], None]:
        """Returns a listener that calls the one given and then sends the candidate to the trackers."""

        def both(candidate: Candidate) -> None:
            listener(candidate)
            self.send(candidate)

        return both

    def keep_results(self, summary: Summary) -> None:
        """Keeps the held-out scores of the members and of the best recipe for `finish`."""
        on_front = {row.recipe.stem for row in summary.front}
        self._results = {
            f"held_out/{model}/{objective}/{name}": value
            for model, scores in summary.held_out.items()
            if model not in on_front
            for objective, by_set in scores.items()
            for name, value in by_set.items()
        }

    def finish(self) -> None:
        """Sends the results that were kept and closes the trackers, also where the search broke off."""
        for tracker in self._trackers or ():
            tracker.finish(self._results)
        self._trackers = None

    def _numbers(self, candidate: Candidate) -> Numbers:
        self._tokens += candidate.tokens
        self._seconds += candidate.seconds
        numbers: dict[str, float] = {"tokens": self._tokens, "seconds": self._seconds}
        # The loss means little where a front is sought, and a probe is a model of another size.
        if candidate.loss is not None and candidate.status != Status.PROBE and not self._config.pareto:
            numbers["loss"] = candidate.loss
            if candidate.status == Status.SCORED:
                self._best = candidate.loss if self._best is None else min(self._best, candidate.loss)
        if self._best is not None:
            numbers["best"] = self._best
        for objective, by_set in natural(candidate.scores).items():
            numbers[f"scores/{objective}"] = by_set[TOTAL]
        return numbers


@contextmanager
def tracker_feed(
    factories: Mapping[str, TrackerFactory], directory: Path, config: SearchConfig
) -> Iterator[TrackerFeed]:
    """Yields a feed and finishes it whatever happens."""
    feed = TrackerFeed(factories, directory, config)
    try:
        yield feed
    finally:
        feed.finish()


def _settings(config: SearchConfig) -> TrackerSettings:
    """Returns what tells runs apart; it holds no names of files or directories."""
    target = config.target.model_dump(exclude_none=True)
    search = config.search
    return {
        **{f"target/{name}": str(value) for name, value in target.items()},
        "optimizer": search.optimizer,
        "budget": search.budget,
        "population": search.population,
        "seed": config.seed,
        "members": 1 + len(config.family.variants),
        "merge": ", ".join(config.operations.merge),
        "objectives": ", ".join(objective.kind for objective in config.objectives),
    }

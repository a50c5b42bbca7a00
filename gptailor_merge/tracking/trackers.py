"""Trackers: a search told to trackio, Weights & Biases or TensorBoard, by their own libraries.

What they are told are numbers by candidate, the held-out scores at the end, and a few settings: no paths.
A further tracker is a class and an entry in TRACKERS.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol

from gptailor_merge.config import SearchConfig
from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.scores import TOTAL, natural
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.summary import Summary
from gptailor_merge.search.candidates import Candidate, Status

PROJECT = "gptailor"


NONE = "none"


Numbers = Mapping[str, float]


Settings = Mapping[str, str | int | float]


class Tracker(Protocol):
    """What is told of one run."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Numbers of a candidate; steps are candidates, from 0."""

    def finish(self, results: Numbers) -> None:
        """What the run came to. Nothing is logged afterwards."""


class TrackioTracker:
    """Into trackio's local database, see `trackio show`; it sends nothing unless it is set up to."""

    def __init__(self, run: Run, name: str, settings: Settings) -> None:
        import trackio

        self._library = trackio
        # Its greeting is no output of ours.
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=PROJECT,
                name=name,
                config=dict(settings),
                auto_log_gpu=False,
                auto_log_cpu=False,
                embed=False,
            )
        # It would store who is logged in to the Hub.
        self._run.config.pop("_Username", None)

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self, results: Numbers) -> None:
        if results:
            self._run.log(dict(results))
        with redirect_stdout(sys.stderr):
            self._library.finish()


class TensorBoardTracker:
    """Into RUN/tensorboard, see `tensorboard --logdir RUN`."""

    def __init__(self, run: Run, name: str, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run is told from the start again: what was there from step 0 on is void.
        self._writer = SummaryWriter(run.path / "tensorboard", purge_step=0)
        text = "\n".join(f"- {key}: {value}" for key, value in settings.items())
        self._writer.add_text("settings", text, 0)
        self._last = 0

    def log(self, step: int, numbers: Numbers) -> None:
        self._last = step
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def finish(self, results: Numbers) -> None:
        self.log(self._last, results)
        self._writer.close()


class WandbTracker:
    """To Weights & Biases, or offline, as its own environment variables say; its files go into RUN."""

    def __init__(self, run: Run, name: str, settings: Settings) -> None:
        import wandb

        self._run = wandb.init(project=PROJECT, name=name, config=dict(settings), dir=str(run.path))

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self, results: Numbers) -> None:
        self._run.summary.update(dict(results))
        self._run.finish()


Make = Callable[[Run, str, Settings], Tracker]


TRACKERS: Mapping[str, Make] = {
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
}
"""By the names of their libraries, which are those of our extras."""


def chosen(given: Sequence[str]) -> tuple[str, ...]:
    """The trackers that `--report-to` names, each once; their libraries are there.

    Raises:
        ConfigError: an unknown name, or a library that is not installed.
    """
    names = list(dict.fromkeys(name.strip() for text in given for name in text.split(",")))
    for name in names:
        if name not in (*TRACKERS, NONE):
            hint = suggest(name, [*TRACKERS, NONE])
            raise ConfigError(f"--report-to: unknown tracker, found {name!r}{hint}")
    wanted = tuple(name for name in names if name != NONE)
    if len(wanted) < len(names) and wanted:
        raise ConfigError(f"--report-to: none stands alone, found {', '.join(names)}")
    for name in wanted:
        try:
            importlib.import_module(name)
        except ImportError:
            extra = f"pip install 'gptailor-merge[{name}]'"
            raise ConfigError(f"--report-to {name}: {name} is not installed; {extra}") from None
    return wanted


class Telling:
    """Tells trackers of candidates as they come, and at the end what the run came to.

    They are begun with the first candidate: a run that is refused leaves nothing with them.
    """

    def __init__(self, names: Sequence[str], run: Run, config: SearchConfig) -> None:
        """
        Args:
            names: see `chosen`.
        """
        self._names, self._run, self._config = names, run, config
        self._trackers: list[Tracker] | None = None
        self._results: Numbers = {}
        self._tokens, self._seconds = 0, 0.0
        self._best: float | None = None

    def candidate(self, candidate: Candidate) -> None:
        """The next in order."""
        if self._trackers is None:
            settings, name = _settings(self._config), self._run.path.name or "run"
            self._trackers = [TRACKERS[one](self._run, name, settings) for one in self._names]
        numbers = self._numbers(candidate)
        for tracker in self._trackers:
            tracker.log(candidate.number, numbers)

    def after(self, report: Callable[[Candidate], None]) -> Callable[[Candidate], None]:
        """What is called with each candidate, where somebody else is told of it before."""

        def both(candidate: Candidate) -> None:
            report(candidate)
            self.candidate(candidate)

        return both

    def summary(self, made: Summary) -> None:
        """What the run came to: held-out scores, of the members and of what was found."""
        on_front = {row.recipe.stem for row in made.front}
        self._results = {
            f"held_out/{model}/{objective}/{name}": value
            for model, scores in made.held_out.items()
            if model not in on_front
            for objective, by_set in scores.items()
            for name, value in by_set.items()
        }

    def finish(self) -> None:
        """Also where the search broke off."""
        for tracker in self._trackers or ():
            tracker.finish(self._results)
        self._trackers = None

    def _numbers(self, candidate: Candidate) -> Numbers:
        self._tokens += candidate.tokens
        self._seconds += candidate.seconds
        found: dict[str, float] = {"tokens": self._tokens, "seconds": self._seconds}
        # Of a front the loss says little, and of a probe it is that of another size.
        if candidate.loss is not None and candidate.status != Status.PROBE and not self._config.pareto:
            found["loss"] = candidate.loss
            if candidate.status == Status.SCORED:
                self._best = candidate.loss if self._best is None else min(self._best, candidate.loss)
        if self._best is not None:
            found["best"] = self._best
        for objective, by_set in natural(candidate.scores).items():
            found[f"scores/{objective}"] = by_set[TOTAL]
        return found


@contextmanager
def telling(names: Sequence[str], run: Run, config: SearchConfig) -> Iterator[Telling]:
    """A Telling that is finished whatever happens."""
    told = Telling(names, run, config)
    try:
        yield told
    finally:
        told.finish()


def _settings(config: SearchConfig) -> dict[str, Any]:
    """What tells runs apart; names of files and directories are left out."""
    given = config.target.model_dump(exclude_none=True)
    target = {f"target/{name}": str(value) for name, value in given.items()}
    search = config.search
    return {
        **target,
        "optimizer": search.optimizer,
        "budget": search.budget,
        "population": search.population,
        "seed": config.seed,
        "members": 1 + len(config.family.variants),
        "merge": ", ".join(config.operations.merge),
        "objectives": ", ".join(one.kind for one in config.objectives),
    }

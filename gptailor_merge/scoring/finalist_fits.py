"""Fits what refines finalists, maps and gains, in this process or on workers elsewhere.

Whoever fits elsewhere is sent a fitting and a plan, and sends back the refined plan with its files as bytes:
the family's weights and hidden states stay where they are, and one process writes the run directory.
"""

from __future__ import annotations

import io
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.memory import free
from gptailor_merge.files import make_directory, write_beside
from gptailor_merge.recipe.plan import Edit, Plan
from gptailor_merge.scoring.workplace import Workplace

Progress = Callable[[str], None]
"""Is told sentences on what is being done."""


Refine = Callable[[Plan, Path, Progress], tuple[Plan, int]]
"""Refines a plan: takes it, the directory that its maps or gains are written to, and whom to tell each step;
returns the refined plan, and how many tokens went through models for it."""


class Fitting(Protocol):
    """Says what is fitted to which texts. It holds no weights, and can be pickled."""

    def open(self, composer: Composer, plans: Sequence[Plan]) -> Refine:
        """Returns what refines any of the plans, with the weights that a composer has."""


@dataclass(frozen=True)
class FitTask:
    """A plan that is to be refined.

    Attributes:
        directory: gets its maps or gains.
        name: what sentences call it.
    """

    plan: Plan
    directory: Path
    name: str


@dataclass(frozen=True)
class Fitted:
    """Tells what became of a task.

    Attributes:
        plan: the refined plan; the plan as it was where nothing helped, or nothing could be fitted.
        tokens: how many tokens went through models.
        seconds: the time that the fit took.
        cause: why nothing could be fitted, or None.
    """

    plan: Plan
    tokens: int = 0
    seconds: float = 0.0
    cause: str | None = None


class Fitter(Protocol):
    """Refines the finalists of a stage, one after the other or side by side."""

    def fit(
        self, fitting: Fitting, tasks: Sequence[FitTask], begins: Callable[[int], None], progress: Progress
    ) -> Iterator[Sequence[Fitted]]:
        """Yields what becomes of the tasks in their order, together for those that are done side by side.

        What a fit raises is raised here, after what became of the tasks before it was yielded.

        Args:
            begins: called with the position of each task that begins.
            progress: told the steps of a fit, which may be over by then.

        Raises:
            ScoringError: the workers cannot be reached any more.
        """


@dataclass(frozen=True)
class LocalFitter:
    """Refines finalists in this process, one after the other."""

    workplace: Workplace

    def fit(
        self, fitting: Fitting, tasks: Sequence[FitTask], begins: Callable[[int], None], progress: Progress
    ) -> Iterator[Sequence[Fitted]]:
        """Yields what becomes of each task; see Fitter."""
        refine = fitting.open(self.workplace.composer, [task.plan for task in tasks])
        for position, task in enumerate(tasks):
            begins(position)
            make_directory(task.directory)
            yield [_fitted(refine, task.plan, task.directory, progress)]


def _fitted(refine: Refine, plan: Plan, directory: Path, progress: Progress) -> Fitted:
    begun = time.perf_counter()
    refined, tokens = refine(plan, directory, progress)
    return Fitted(refined, tokens, time.perf_counter() - begun)


@dataclass(frozen=True)
class SentFit:
    """Carries what became of a plan that was refined on a worker; it can be pickled.

    Attributes:
        fitted: the edits of its plan that are new name their files by the keys of `files`.
        files: name -> content of the maps and gains.
        steps: the sentences that were said.
        error: what the fit raised, in place of the rest.
    """

    fitted: Fitted
    files: Mapping[str, bytes] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    error: Exception | None = None

    def received(self, directory: Path) -> Fitted:
        """Writes the files into a directory, and returns the fit with a plan that names them there.

        Raises:
            ConfigError, UnwritableError: the directory cannot be written.
        """
        make_directory(directory)
        for name, content in self.files.items():
            write_beside(directory / name, content)

        def written(edit: Edit) -> Edit:
            return replace(edit, file=str(directory / edit.file)) if edit.file in self.files else edit

        return replace(self.fitted, plan=self.fitted.plan.with_edits(written))


def fit_on_worker(composer: Composer, fitting: bytes, plan: Plan) -> SentFit:
    """Refines a plan in a directory of its own, which is gone afterwards.

    Args:
        fitting: a Fitting as torch.save wrote it, in the process that has started this one.
    """
    steps: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gptailor-fit-") as name:
        try:
            opened: Fitting = torch.load(
                io.BytesIO(fitting), map_location=composer.device, weights_only=False
            )
            fitted = _fitted(opened.open(composer, [plan]), plan, Path(name), steps.append)
            sent = _packed(fitted, Path(name), tuple(steps))
        except Exception as error:  # it is raised where the search runs, as if the fit had run there
            sent = SentFit(Fitted(plan), steps=tuple(steps), error=_portable(error))
    free(composer.device)
    return sent


def _packed(fitted: Fitted, directory: Path, steps: tuple[str, ...]) -> SentFit:
    """Reads the files of a fit that its plan names; others were tried and are of no use."""
    files: dict[str, bytes] = {}

    def packed(edit: Edit) -> Edit:
        file = Path(edit.file)
        if edit.digest is None or file.parent != directory:
            return edit
        files[file.name] = file.read_bytes()
        return replace(edit, file=file.name)

    plan = fitted.plan.with_edits(packed)
    return SentFit(replace(fitted, plan=plan), files, steps)


def _portable(error: Exception) -> Exception:
    """Returns an error as it arrives elsewhere, or its message where it cannot be sent."""
    try:
        arrived = pickle.loads(pickle.dumps(error))
    except Exception:  # an error of another package may raise anything
        arrived = None
    return arrived if isinstance(arrived, Exception) else RuntimeError(f"{type(error).__name__}: {error}")

"""Tunes the best recipes of a search, repaired or not, scores them again, and remembers them beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.editing import GAINS_FILE
from gptailor_merge.composing.memory import is_out_of_memory
from gptailor_merge.errors import ConfigError, DataError, InputError, Problem, ScoringError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.repair.finalists import Finished, best_by_layers, best_of, has_files
from gptailor_merge.repair.refining import FinalistJudge, numbered, refine
from gptailor_merge.scoring.finalist_fits import Fitter, Progress, Refine
from gptailor_merge.scoring.workplace import Workplace
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.front import front
from gptailor_merge.tuning.tuner import Aim, TuneOptions, Tuner

STATE_FILE = "tuning-state.safetensors"
"""The name of the file in which a fit keeps its state until it is done."""


_OUT_OF_MEMORY = (
    "tuning ran out of memory; --bank host and objectives with a shorter sequence_length need less, and "
    "--resume goes on from here"
)


class TuneLog(Finished, Protocol):
    """Remembers candidates and their tunings; see runs.journal.Journal."""

    def tunings(self) -> Mapping[str, Candidate]:
        """Returns digest of the original -> what became of its tuning."""

    def record_tuning(self, original: str, tuned: Candidate) -> None:
        """Writes what became of the tuning of a candidate."""


def to_tune(log: TuneLog, axes: Sequence[str], count: int) -> list[Candidate]:
    """Returns the best candidate of each choice of layers, as it is or repaired, the best choices first.

    Args:
        axes: the objectives of which a front is sought, all of whose recipes are tuned; none where the
            loss is minimised.
        count: most candidates where no front is sought.
    """
    refined = (Status.TUNED, Status.HEALED)
    known = [candidate for candidate in log.finished() if candidate.status not in refined]
    if axes:
        return [point.candidate for point in front(known, axes)] if count else []
    return best_by_layers(known, count)


def tune_finalists(
    workplace: Workplace, fitter: Fitter, judge: FinalistJudge, log: TuneLog, directory: Path
) -> None:
    """Tunes the finalists that are not tuned yet, and writes what became of them into the log.

    Args:
        workplace: the objectives and their teachers.
        fitter: tunes, in this process or elsewhere.
        directory: where the gains of each finalist are, in a directory of its own.

    Raises:
        InputError: the recipes cannot be tuned, and the config asks for it.
        ScoringError: memory ran out, likewise.
    """
    config = workplace.config
    chosen = to_tune(log, judge.settings.axes, config.tuned)
    best = {candidate.digest for candidate in best_of(log, judge.settings.axes)}
    done = {
        original for original, tuned in log.tunings().items() if tuned.digest not in best or has_files(tuned)
    }
    # What a search has dropped of a candidate that it did not choose then is gone.
    of_all = numbered({candidate.digest: candidate for candidate in chosen})
    left = [each for each in of_all if each.key not in done and has_files(each.candidate)]
    if not left:
        return
    try:
        tuned = refine(
            fitter,
            NumberFitting(_tuner(workplace)),
            left,
            judge,
            directory,
            Status.TUNED,
            begins=lambda position: workplace.progress(f"tuning {left[position].name}"),
            progress=workplace.progress,
        )
        for finalist, candidate in zip(left, tuned, strict=True):
            log.record_tuning(finalist.key, candidate)
            (directory / finalist.key / STATE_FILE).unlink(missing_ok=True)
    except Exception as error:
        if not (isinstance(error, InputError) or is_out_of_memory(error)):
            raise
        reason = error if isinstance(error, InputError) else ScoringError(_OUT_OF_MEMORY)
        if config.tune.finalists is not None:
            raise reason from None
        workplace.progress(f"note: no recipe is tuned: {reason}")


@dataclass(frozen=True)
class NumberFitting:
    """Fits merge weights and gains, see Tuner."""

    tuner: Tuner

    def open(self, composer: Composer, plans: Sequence[Plan]) -> Refine:
        """Returns what tunes any of the plans, and keeps its state beside the gains until it is done."""

        def tune(plan: Plan, directory: Path, progress: Progress) -> tuple[Plan, int]:
            state = directory / STATE_FILE
            tuned, tuning = self.tuner.tune(composer, plan, directory, GAINS_FILE, progress, state)
            return tuned, tuning.fit.tokens

        return tune


def _tuner(workplace: Workplace) -> Tuner:
    """Runs the teachers on the texts to tune on.

    Raises:
        ConfigError: an objective has no gradient, or has too few sequences.
    """
    section, measures = workplace.config.tune, workplace.measures
    outer = workplace.config.operations.outer != "base"
    options = TuneOptions(section.steps, section.weights, section.norms, section.rate, outer)
    aims = [
        Aim(config, config.weight, measures.tuned_on.get(position, ()))
        for position, config in enumerate(workplace.config.objectives)
        if config.weight is not None
    ]
    workplace.progress("running the teachers on the texts to tune on")
    try:
        return Tuner(aims, measures.context, options)
    except (ConfigError, DataError) as error:
        raise ConfigError(Problem(("tune",), str(error))) from None

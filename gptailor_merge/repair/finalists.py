"""Repairs the best recipes of a search, scores them again, and remembers them beside the search.

Repairs can change which recipe is the best: a cut that costs more may leave more to make up for. So for
each choice of layers the best candidate is a finalist, also one that a race has dropped.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Protocol

from gptailor_merge.calibration.held_back import divided, has_enough, shortened
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.editing import GAINS_FILE
from gptailor_merge.errors import ConfigError, DataError, Problem
from gptailor_merge.recipe.edits import edit_files
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.repair.fitting import MAP_PATTERN, Repairer
from gptailor_merge.repair.refining import FinalistJudge, numbered, refine
from gptailor_merge.scoring.finalist_fits import Fitter, Progress, Refine
from gptailor_merge.scoring.workplace import Workplace
from gptailor_merge.search.candidates import REFINED, Candidate, Status
from gptailor_merge.search.front import front
from gptailor_merge.time_left import StepClock

FIRST_TOKENS = 8192
"""Tokens that tell which finalist is repaired everywhere: their ranks do not change with more."""


SHORT = "-short"
"""The ending of the name of a finalist's directory where it was healed on few tokens first."""


HEALED_FILES = ("adapter", "healed.json", "checkpoints")
"""The names of an adapter's directory, and of what lies beside it in the directory of a healed finalist."""


class Finished(Protocol):
    """Remembers candidates that were scored on everything; see runs.journal.Journal."""

    def finished(self) -> Iterator[Candidate]:
        """Yields the candidates of a target size that were scored on everything, refined ones last."""

    def best(self) -> Candidate | None:
        """Returns the first of the finished candidates with the lowest loss."""


class RepairLog(Finished, Protocol):
    """Remembers candidates and their repairs; see runs.journal.Journal."""

    def candidates(self) -> Iterator[Candidate]:
        """Yields every candidate in the order of proposal."""

    def repairs(self) -> Mapping[str, Candidate]:
        """Returns digest of the original -> what became of its repair."""

    def tunings(self) -> Mapping[str, Candidate]:
        """Returns digest of the original, which may be a repaired one -> what became of its tuning."""

    def record_repair(self, original: str, repaired: Candidate) -> None:
        """Writes what became of the repair of a candidate."""


def finalists(log: RepairLog, axes: Sequence[str], count: int) -> list[Candidate]:
    """Returns the best candidate of each choice of layers, the best choices first.

    A search for a front has all recipes of its front as finalists.

    Args:
        axes: the objectives of which a front is sought; none where the loss is minimised.
        count: most finalists where no front is sought.
    """
    searched = [candidate for candidate in log.finished() if candidate.status not in REFINED]
    if axes:
        return [point.candidate for point in front(searched, axes)]
    dropped = (candidate for candidate in log.candidates() if candidate.status == Status.DROPPED)
    return best_by_layers((*searched, *dropped), count)


def best_by_layers(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """Returns the best candidate of each choice of layers, the best choices first, at most `count`."""
    best: dict[tuple[int, ...], Candidate] = {}
    for candidate in sorted(candidates, key=_rank):
        best.setdefault(candidate.plan.kept, candidate)
    return list(best.values())[:count]


def has_files(candidate: Candidate) -> bool:
    """Tells whether the maps and gains of a candidate are there, and its adapter."""
    adapter = candidate.parsed.parameters.adapter
    has_adapter = adapter is None or Path(adapter).is_dir()
    return has_adapter and all(Path(file).is_file() for file in edit_files(candidate.parsed))


def repair_finalists(
    workplace: Workplace, fitter: Fitter, judge: FinalistJudge, log: RepairLog, directory: Path
) -> None:
    """Repairs the finalists that are not repaired yet, and writes what became of them into the log.

    With `everywhere: best` they are repaired at their cuts, on some of the tokens; then the best of them, or
    all on the front, is repaired everywhere on all tokens. Such a repair is remembered under the digest of
    the recipe that was repaired first.

    Args:
        workplace: the texts.
        fitter: fits maps, in this process or elsewhere.
        directory: where the maps of each finalist are, in a directory of its own.

    Raises:
        ConfigError: repair.data has too few sequences.
    """
    config, texts = workplace.config.repair, workplace.measures.texts
    if not texts or (config.data is None and not has_enough(texts)):
        return
    axes = judge.settings.axes
    stage = _Stage(workplace, fitter, judge, log, directory)
    chosen = finalists(log, axes, config.finalists)
    originals = {candidate.digest: candidate for candidate in chosen}
    if config.everywhere != "best":
        stage.repair(originals, texts, everywhere=config.everywhere)
        return
    stage.repair(originals, shortened(texts, FIRST_TOKENS), everywhere=False)
    repairs = log.repairs()
    by_repaired = {repairs[digest].digest: digest for digest in originals if repairs[digest].loss is not None}
    best = best_refined([repairs[original] for original in by_repaired.values()], log, axes)
    stage.repair({digest: originals[by_repaired[digest]] for digest in best}, texts, everywhere=True)


@dataclass(frozen=True)
class _Stage:
    """The parts of a run that its repairs need; see `repair_finalists`."""

    workplace: Workplace
    fitter: Fitter
    judge: FinalistJudge
    log: RepairLog
    directory: Path

    def repair(
        self, originals: Mapping[str, Candidate], texts: Sequence[TokenSet], *, everywhere: bool
    ) -> None:
        """Repairs the candidates that are not repaired yet.

        Args:
            originals: the digest that a repair is remembered under -> the candidate that is repaired.
        """
        best = {candidate.digest for candidate in best_of(self.log, self.judge.settings.axes)}
        best |= {original for original, tuned in self.log.tunings().items() if tuned.digest in best}
        known = self.log.repairs()
        done = {key for key, repaired in known.items() if repaired.digest not in best or has_files(repaired)}
        chosen = numbered(originals)
        left = [finalist for finalist in chosen if finalist.key not in done]
        if not left:
            return
        try:
            divided(texts)
        except DataError as error:
            raise ConfigError(Problem(("repair", "data"), str(error))) from None
        clock, where = StepClock(0, len(left)), "everywhere" if everywhere else "at its cuts"
        workplace, recorded = self.workplace, 0

        def begins(position: int) -> None:
            workplace.progress(f"repairing {left[position].name} {where}{clock.left(recorded)}")

        repaired = refine(
            self.fitter,
            MapFitting(tuple(texts), everywhere),
            left,
            self.judge,
            self.directory,
            Status.REPAIRED,
            begins=begins,
            # A repair everywhere takes long enough to be followed from cut to cut.
            progress=workplace.progress if everywhere else lambda step: None,
        )
        for finalist, candidate in zip(left, repaired, strict=True):
            # What the base takes is counted once, also where another process does the rest.
            of_base = sum(token_set.tokens for token_set in texts) if finalist is chosen[0] else 0
            self.log.record_repair(finalist.key, replace(candidate, tokens=candidate.tokens + of_base))
            recorded += 1


@dataclass(frozen=True)
class MapFitting:
    """Fits maps to texts, see Repairer.

    Attributes:
        everywhere: fits them also where no layer is missing.
    """

    texts: tuple[TokenSet, ...]
    everywhere: bool

    def open(self, composer: Composer, plans: Sequence[Plan]) -> Refine:
        """Returns what repairs any of the plans."""
        repairer = Repairer(composer, composer.bank.family, self.texts, plans, everywhere=self.everywhere)

        def repair(plan: Plan, directory: Path, progress: Progress) -> tuple[Plan, int]:
            spent_before = repairer.spent
            repaired, _ = repairer.repair(plan, directory, progress)
            return repaired, repairer.spent - spent_before

        return repair


def best_refined(refined: Sequence[Candidate], log: Finished, axes: Sequence[str]) -> list[str]:
    """Returns the digest of the best refined candidate, or of those on a front with what was searched."""
    if not axes:
        return [min(refined, key=_rank).digest] if refined else []
    searched = [candidate for candidate in log.finished() if candidate.status not in REFINED]
    points = front([*searched, *refined], axes)
    return [point.candidate.digest for point in points if point.candidate.status in REFINED]


def best_of(log: Finished, axes: Sequence[str]) -> list[Candidate]:
    """Returns the best recipe, or all of a front, refined ones included."""
    if axes:
        return [point.candidate for point in front(log.finished(), axes)]
    best = log.best()
    return [] if best is None else [best]


def drop_files(log: RepairLog, directory: Path, survivors: Iterable[Candidate]) -> None:
    """Removes the maps and gains of all recipes but the survivors: those of a large model are large.

    Only what the search has written is removed: its files in directories that are named after its candidates.
    """
    recipes = [candidate.parsed for candidate in survivors]
    kept = {PurePath(file).parts[-2:] for recipe in recipes for file in edit_files(recipe)}
    kept |= {PurePath(recipe.parameters.adapter or "").parts[-2:] for recipe in recipes}
    refined = (*log.repairs().values(), *log.tunings().values())
    known = {candidate.digest for candidate in (*log.candidates(), *refined)}
    for files in sorted(directory.glob("*/")):
        if files.name.removesuffix(SHORT) not in known or files.is_symlink():
            continue
        for file in (*files.glob(MAP_PATTERN), *files.glob(GAINS_FILE)):
            if file.parts[-2:] not in kept:
                file.unlink()
        healed = () if (files.name, HEALED_FILES[0]) in kept else HEALED_FILES
        for file in (files / name for name in healed):
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)
        if not any(files.iterdir()):
            files.rmdir()


def _rank(candidate: Candidate) -> tuple[float, int]:
    return math.inf if candidate.loss is None else candidate.loss, candidate.number

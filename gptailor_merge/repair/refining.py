"""Refines finalists by whatever is fitted to them, and judges them as the search did its candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from gptailor_merge.planning.slot_replacement import with_plan
from gptailor_merge.recipe.plan import Edit, Plan
from gptailor_merge.scoring.executor import Executor, Outcome
from gptailor_merge.scoring.finalist_fits import FitTask, Fitter, Fitting, Progress
from gptailor_merge.scoring.gates import Gates
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.judging import verdicts
from gptailor_merge.search.outcomes import Judgement, candidate_of
from gptailor_merge.search.settings import SearchSettings


@dataclass(frozen=True)
class Finalist:
    """A candidate that is to be refined.

    Attributes:
        key: the name of its directory of maps or gains.
        name: what sentences call it.
    """

    key: str
    candidate: Candidate
    name: str


def numbered(candidates: Mapping[str, Candidate]) -> list[Finalist]:
    """Returns finalists by the names of their directories, called by their place among all."""
    return [
        Finalist(key, candidate, f"recipe {number} of {len(candidates)}")
        for number, (key, candidate) in enumerate(candidates.items(), start=1)
    ]


def refine(
    fitter: Fitter,
    fitting: Fitting,
    chosen: Sequence[Finalist],
    judge: FinalistJudge,
    directory: Path,
    status: Status,
    *,
    begins: Callable[[int], None],
    progress: Progress,
) -> Iterator[Candidate]:
    """Yields what becomes of finalists that are refined, in their order, and counts what that took.

    Args:
        directory: has the finalists' directories.
        begins, progress: see Fitter.fit.
    """
    tasks = [FitTask(each.candidate.plan, directory / each.key, each.name) for each in chosen]
    left = iter(chosen)
    for part in fitter.fit(fitting, tasks, begins, progress):
        refined = [
            Refined(finalist.candidate, fit.plan, fit.cause)
            for finalist, fit in zip(islice(left, len(part)), part, strict=True)
        ]
        for judged, fit in zip(judge.judge_all(refined, directory, status), part, strict=True):
            yield replace(judged, tokens=judged.tokens + fit.tokens, seconds=judged.seconds + fit.seconds)


@dataclass(frozen=True)
class Refined:
    """A candidate, and the plan that it was refined to.

    Attributes:
        cause: why nothing could be fitted, or None.
    """

    original: Candidate
    plan: Plan
    cause: str | None = None


@dataclass(frozen=True)
class FinalistJudge:
    """Judges and scores recipes that are repaired or tuned as the search did its candidates.

    Attributes:
        executor: scores plans on the calibration set.
        gates: None where the config has none.
        settings: those of the search.
    """

    executor: Executor
    gates: Gates | None
    settings: SearchSettings

    def judge(
        self, original: Candidate, refined: Plan, directory: Path, status: Status = Status.REPAIRED
    ) -> Candidate:
        """Returns what becomes of a refined plan: it is scored if it has changed and no gate is against it.

        Args:
            directory: of all maps and gains; the recipe names them from the directory that it is in.
            status: says how the plan was refined.
        """
        return self.judge_all([Refined(original, refined)], directory, status)[0]

    def judge_all(self, refined: Sequence[Refined], directory: Path, status: Status) -> list[Candidate]:
        """Returns what becomes of refined plans, which are scored together, in their order; see `judge`."""
        judgements = {
            position: Judgement(outcome=Outcome.failure(each.cause or _USELESS[status]))
            for position, each in enumerate(refined)
            if each.cause is not None or each.plan.digest == each.original.digest
        }
        changed = [position for position in range(len(refined)) if position not in judgements]
        plans = [refined[position].plan for position in changed]
        gated = [Judgement()] * len(plans) if self.gates is None else verdicts(self.gates, plans)
        judgements |= zip(changed, gated, strict=True)
        passing = [position for position in changed if judgements[position].passes]
        outcomes = self.executor.score([refined[position].plan for position in passing])
        for position, outcome in zip(passing, outcomes, strict=True):
            judgements[position] = replace(judgements[position], outcome=outcome)
        return [
            self._candidate(each, judgements[position], directory, status)
            for position, each in enumerate(refined)
        ]

    def _candidate(
        self, refined: Refined, judgement: Judgement, directory: Path, status: Status
    ) -> Candidate:
        original, plan = refined.original, refined.plan
        recipe = with_plan(original.parsed, _with_relative_files(plan, directory))
        return candidate_of(original.number, plan, recipe, judgement, self.settings, status)


_USELESS = {
    Status.REPAIRED: "no map helps",
    Status.TUNED: "tuning does not help",
    Status.HEALED: "healing does not help",
}
"""Says of each way to refine a plan that it left the plan as it was."""


def _with_relative_files(plan: Plan, directory: Path) -> Plan:
    """Returns a plan whose edits name their files from the directory that `directory` is in."""

    def relative(edit: Edit) -> Edit:
        if edit.digest is None:
            return edit
        return replace(edit, file=Path(edit.file).relative_to(directory.parent).as_posix())

    return plan.with_edits(relative)

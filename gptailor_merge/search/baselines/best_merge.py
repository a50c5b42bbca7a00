"""Merges the whole family, and prunes the merge that is best."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.search.baselines.protocol import Baseline, PruningProblem
from gptailor_merge.search.baselines.subject import Subject, whole_models
from gptailor_merge.search.candidates import Status
from gptailor_merge.space.space import Space


@dataclass(frozen=True)
class BestMerge:
    """Scores the members and the usual merges of the whole family, and prunes the best of them.

    Merging first and pruning after costs few candidates more than pruning the base. This is what a search
    starts from by default.

    Attributes:
        method: prunes the model that is chosen.
    """

    method: Baseline
    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        return self.models_scored(space) + self.method.candidates(space, budget)

    def models_scored(self, space: Space) -> int:
        """Returns the number of whole models that are scored first; one alone is not."""
        count = len(whole_models(space))
        return count if count > 1 else 0

    def find(self, problem: PruningProblem) -> list[Plan]:
        chosen = problem if problem.model is not None else replace(problem, model=self._best(problem))
        if problem.space.sizes == (problem.space.depth,):
            return [chosen.subject.without(())]
        return self.method.find(chosen)

    def _best(self, problem: PruningProblem) -> Subject:
        """Returns the best of the whole models; the base where none can be scored."""
        space = problem.space
        models = whole_models(space)
        if len(models) == 1:
            return models[0]
        status = Status.SCORED if space.depth in space.sizes else Status.PROBE
        scored = problem.runner.score(
            [model.without(()) for model in models], status=status, keep=1 if problem.racing else None
        )
        losses = [
            (candidate.loss, number) for number, candidate in enumerate(scored) if candidate.loss is not None
        ]
        return models[min(losses)[1]] if losses else problem.base

"""Random search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.search.baselines.layer_sets import draws
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.space.space import Space

GENERATION = 32
"""The number of plans that are scored together."""


class RandomSearch:
    """The best of as many random plans as the budget allows.

    They are drawn from the config's whole space, or, where one model is pruned, from the removals of its
    layers. Where only the best counts they are raced, so that those without a chance take few tokens.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        return budget

    def find(self, problem: PruningProblem) -> list[Plan]:
        keep = 1 if problem.racing and len(problem.space.sizes) == 1 else None
        drawn = self._drawn(problem)
        by_size: dict[int, list[Candidate]] = {size: [] for size in problem.space.sizes}
        for first in range(0, problem.budget, GENERATION):
            plans = [next(drawn) for _ in range(min(GENERATION, problem.budget - first))]
            for plan, candidate in zip(plans, problem.runner.score(plans, keep=keep), strict=True):
                by_size[len(plan.slots)].append(candidate)
        scored = [group for group in by_size.values() if any(map(problem.is_complete, group))]
        # Where nothing could be scored, `best` says why.
        return [problem.best(group).plan for group in scored or by_size.values()]

    def _drawn(self, problem: PruningProblem) -> Iterator[Plan]:
        rng = np.random.RandomState(problem.seed)
        space = problem.space
        while True:
            if problem.model is None:
                yield space.decode(space.random(rng))
            else:
                size = space.sizes[rng.randint(len(space.sizes))]
                yield problem.model.without(next(draws(space, size, rng)))

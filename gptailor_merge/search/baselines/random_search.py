"""Random search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.search.baselines.problem import Problem, draws
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.space.space import Space

GENERATION = 32
"""So many are scored together."""


class RandomSearch:
    """The best of as many random recipes as the budget allows.

    They are of the config's whole space, or, where one model is pruned, of random sets of its layers. Where
    only the best counts they are raced, so that those without a chance take few tokens.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        return budget

    def find(self, problem: Problem) -> list[Recipe]:
        keep = 1 if problem.racing and len(problem.space.sizes) == 1 else None
        drawn = self._drawn(problem)
        by_size: dict[int, list[Candidate]] = {size: [] for size in problem.space.sizes}
        for first in range(0, problem.budget, GENERATION):
            recipes = [next(drawn) for _ in range(min(GENERATION, problem.budget - first))]
            for recipe, candidate in zip(recipes, problem.run.score(recipes, keep=keep), strict=True):
                by_size[len(plan(recipe).slots)].append(candidate)
        found = [one for one in by_size.values() if any(map(problem.is_complete, one))]
        # With none at all `best` says why.
        return [problem.best(one).parsed for one in found or by_size.values()]

    def _drawn(self, problem: Problem) -> Iterator[Recipe]:
        rng = np.random.RandomState(problem.seed)
        space = problem.space
        while True:
            if problem.given is None:
                yield space.decode(space.random(rng))
            else:
                size = space.sizes[rng.randint(len(space.sizes))]
                yield problem.given.without(next(draws(space, size, rng)))

"""Evolutionary search over which layers go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.racing import Selection
from gptailor_merge.search.baselines.layer_sets import LayerSet, draws, nearest, removed_by
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.space.space import Space

ATTEMPTS = 50
"""Draws for each set that is wanted, after which there seems to be no new one."""


@dataclass(frozen=True)
class EvoPress:
    """An elitist (1 + λ) evolution strategy on the set of layers that go.

    O. Sieberling et al., EvoPress: Accurate Dynamic Model Compression via Evolutionary Search, arXiv
    2410.14649, with the settings of its depth pruning: 64 random sets to begin with, of which the best
    becomes the parent; generations of 32 offspring; level-switch mutation, in which a layer that stays
    changes places with one that has gone, min(a, b) times with a, b uniform in {1, 2, 3}; selection in
    two steps, on few tokens to 2 survivors, then, against the parent, on many to 1. Whole layers are
    removed. The fitness is the config's objectives, such as KL.

    What differs: the steps are the first rung of the calibration set and all of it (an eighth and all; the
    paper draws 2,048 and 32,768 tokens anew), so that a set that was proposed once is not proposed again;
    and where the budget holds fewer than eight generations, generations are smaller.
    """

    initial: int = 64
    offspring: int = 32
    survivors: int = 2
    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        return budget

    def find(self, problem: PruningProblem) -> list[Plan]:
        rng = np.random.RandomState(problem.seed)
        sizes = problem.space.sizes
        shares = [len(part) for part in np.array_split(np.arange(problem.budget), len(sizes))]
        return [
            self._evolve(problem, size, max(1, share), rng).plan
            for size, share in zip(sizes, shares, strict=True)
        ]

    def _evolve(
        self, problem: PruningProblem, size: int, budget: int, rng: np.random.RandomState
    ) -> Candidate:
        space = problem.space
        offspring = min(self.offspring, max(1, budget // 8))
        initial = min(self.initial, 2 * offspring, budget)
        seen: set[LayerSet] = set()
        first = _take_new(draws(space, size, rng), initial, seen)
        parent = problem.best(self._selected(problem, first, survivors=1))
        while len(seen) < budget:
            wanted = min(offspring, budget - len(seen))
            mutants = _mutants(space, removed_by(space, parent.plan), size, rng)
            children = _take_new(mutants, wanted, seen)
            if not children:
                break
            selected = self._selected(problem, children, survivors=self.survivors)
            complete = [candidate for candidate in selected if problem.is_complete(candidate)]
            parent = problem.best([parent, *complete])
        return parent

    def _selected(
        self, problem: PruningProblem, removals: Sequence[LayerSet], survivors: int
    ) -> list[Candidate]:
        plans = [problem.subject.without(removed) for removed in removals]
        return problem.runner.score(plans, keep=Selection(survivors, problem.weights))


def _mutants(space: Space, parent: LayerSet, size: int, rng: np.random.RandomState) -> Iterator[LayerSet]:
    """Yields sets that differ from a parent's by one to three exchanges."""
    if not set(space.removable) - parent:
        return
    while True:
        child = set(parent)
        for _ in range(min(rng.randint(1, 4), rng.randint(1, 4))):
            out = rng.choice(sorted(set(space.removable) - child))
            back = rng.choice(sorted(child))
            child = (child | {int(out)}) - {int(back)}
        yield nearest(space, child, size)


def _take_new(drawn: Iterable[LayerSet], count: int, seen: set[LayerSet]) -> list[LayerSet]:
    """Returns the next `count` sets that have not been seen, or as many as there seem to be; add them to
    `seen`.
    """
    new: list[LayerSet] = []
    for removed in islice(drawn, ATTEMPTS * count):
        if removed not in seen:
            seen.add(removed)
            new.append(removed)
        if len(new) == count:
            break
    return new

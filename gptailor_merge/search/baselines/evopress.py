"""Evolutionary search over which layers go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.racing import Selection
from gptailor_merge.search.baselines.problem import Problem, draws, nearest, removed_by
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.space.space import Space

Removed = frozenset[int]


ATTEMPTS = 50
"""So many draws in vain for each candidate that is wanted: there is nothing new to be drawn."""


@dataclass(frozen=True)
class EvoPress:
    """An elitist (1 + λ) evolution strategy on the set of layers that go.

    O. Sieberling et al., EvoPress: Accurate Dynamic Model Compression via Evolutionary Search, arXiv
    2410.14649, with the settings of its depth pruning: 64 random sets to begin with, of which the best
    becomes the parent; generations of 32 offspring; level-switch mutation, in which a layer that stays
    changes places with one that has gone, min(a, b) times with a, b uniform in {1, 2, 3}; selection in
    two steps, on few tokens to 2 survivors, then, against the parent, on many to 1. Whole layers are
    removed. The fitness is the config's objectives, KL where they are.

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

    def find(self, problem: Problem) -> list[Recipe]:
        rng = np.random.RandomState(problem.seed)
        sizes = problem.space.sizes
        shares = [len(part) for part in np.array_split(np.arange(problem.budget), len(sizes))]
        return [
            self._evolve(problem, size, max(1, share), rng).parsed
            for size, share in zip(sizes, shares, strict=True)
        ]

    def _evolve(self, problem: Problem, size: int, budget: int, rng: np.random.RandomState) -> Candidate:
        space = problem.space
        offspring = min(self.offspring, max(1, budget // 8))
        initial = min(self.initial, 2 * offspring, budget)
        seen: set[Removed] = set()
        first = _new(draws(space, size, rng), initial, seen)
        parent = problem.best(self._selected(problem, first, survivors=1))
        while len(seen) < budget:
            wanted = min(offspring, budget - len(seen))
            children = _new(_mutants(space, removed_by(space, parent.parsed), size, rng), wanted, seen)
            if not children:
                break
            selected = self._selected(problem, children, survivors=self.survivors)
            scored = [candidate for candidate in selected if problem.is_complete(candidate)]
            parent = problem.best([parent, *scored])
        return parent

    def _selected(self, problem: Problem, sets: Sequence[Removed], survivors: int) -> list[Candidate]:
        recipes = [problem.subject.without(removed) for removed in sets]
        return problem.run.score(recipes, keep=Selection(survivors, problem.weights))


def _mutants(space: Space, parent: Removed, size: int, rng: np.random.RandomState) -> Iterator[Removed]:
    """Sets that differ from a parent's by one to three exchanges."""
    if not set(space.removable) - parent:
        return
    while True:
        child = set(parent)
        for _ in range(min(rng.randint(1, 4), rng.randint(1, 4))):
            out = rng.choice(sorted(set(space.removable) - child))
            back = rng.choice(sorted(child))
            child = (child | {int(out)}) - {int(back)}
        yield nearest(space, child, size)


def _new(drawn: Iterable[Removed], count: int, seen: set[Removed]) -> list[Removed]:
    """The next so many that have not been seen, or as many as there seem to be; now they have."""
    found: list[Removed] = []
    for removed in islice(drawn, ATTEMPTS * count):
        if removed not in seen:
            seen.add(removed)
            found.append(removed)
        if len(found) == count:
            break
    return found

"""Greedy removal that measures only those layers again that were cheapest when last measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.racing import Selection
from gptailor_merge.search.baselines.layer_sets import are_targets, extends, nearest
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.candidates import Status
from gptailor_merge.space.space import Space

LOOKS = 5
"""The number of layers that are measured again before each removal but the first."""


class LazyGreedy:
    """Removes the layer that hurts least, again and again, as SLEB does, at a fraction of its cost.

    Layers are put in order by what their removal cost when it was last measured, since what is lost by a
    removal seldom shrinks when others have gone before (M. Minoux, Accelerated greedy algorithms, 1978); of
    these, the first few are measured on what is left. Only the first rung of the calibration set is looked
    at.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        rounds = space.depth - min(space.sizes)
        again = sum(min(LOOKS, len(space.removable) - removed) for removed in range(1, rounds))
        return len(space.removable) + again + len(space.sizes)

    def find(self, problem: PruningProblem) -> list[Plan]:
        space = problem.space
        removed: list[int] = []
        losses = self._losses(problem, [(layer,) for layer in space.removable])
        # All are put too low by what the cheapest costs, so that none is overlooked for it.
        current = min(losses, default=0.0)
        costs = {layer: loss - current for layer, loss in zip(space.removable, losses, strict=True)}
        while len(removed) < space.depth - min(space.sizes):
            possible = [layer for layer in costs if extends(space, (*removed, layer), min(space.sizes))]
            if not possible:
                break
            if removed:
                again = sorted(possible, key=costs.__getitem__)[:LOOKS]
                losses = self._losses(problem, [(*removed, layer) for layer in again])
                costs |= {layer: loss - current for layer, loss in zip(again, losses, strict=True)}
            cheapest = min(possible, key=costs.__getitem__)
            current += costs.pop(cheapest)
            removed.append(cheapest)
        return [
            problem.subject.without(nearest(space, removed[: space.depth - size], size))
            for size in space.sizes
        ]

    def _losses(self, problem: PruningProblem, removals: Sequence[Collection[int]]) -> list[float]:
        """Returns the losses without some layers; infinity where nothing could be scored.

        The best of those that are results is scored on everything.
        """
        pruned = [frozenset(layers) for layers in removals]
        are_results = are_targets(problem.space, pruned)
        scored = problem.runner.score(
            [problem.subject.without(layers) for layers in pruned],
            status=Status.SCORED if are_results else Status.PROBE,
            keep=Selection(int(are_results), problem.weights) if problem.racing else None,
        )
        return [math.inf if candidate.loss is None else candidate.loss for candidate in scored]

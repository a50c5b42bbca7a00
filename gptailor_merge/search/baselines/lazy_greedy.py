"""Greedy removal that measures only those layers again that were cheapest when last measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
        space, smallest = problem.space, min(problem.space.sizes)
        removed: list[int] = []
        losses: dict[int, float] = dict.fromkeys(space.removable, 0.0)
        looks = len(losses)
        while len(removed) < space.depth - smallest:
            possible = [layer for layer in losses if extends(space, (*removed, layer), smallest)]
            if not possible:
                break
            again = sorted(possible, key=losses.__getitem__)[:looks]
            losses = _raised(losses, self._losses(problem, removed, again))
            removed.append(min(again, key=losses.__getitem__))
            del losses[removed[-1]]
            looks = LOOKS
        return [
            problem.subject.without(nearest(space, removed[: space.depth - size], size))
            for size in space.sizes
        ]

    def _losses(
        self, problem: PruningProblem, removed: Sequence[int], layers: Sequence[int]
    ) -> dict[int, float]:
        """Returns layer -> the loss where it is removed as well; infinity where nothing could be scored.

        The best of those that are results is scored on everything.
        """
        removals = [frozenset((*removed, layer)) for layer in layers]
        are_results = are_targets(problem.space, removals)
        scored = problem.runner.score(
            [problem.subject.without(removal) for removal in removals],
            status=Status.SCORED if are_results else Status.PROBE,
            keep=Selection(int(are_results), problem.weights) if problem.racing else None,
        )
        losses = [math.inf if candidate.loss is None else candidate.loss for candidate in scored]
        return dict(zip(layers, losses, strict=True))


def _raised(known: Mapping[int, float], measured: Mapping[int, float]) -> dict[int, float]:
    """Returns all losses; those that were not measured again rise as the least of the others did.

    >>> _raised({1: 0.5, 2: 0.75, 3: 1.0}, {1: 1.0, 2: 1.0})
    {1: 1.0, 2: 1.0, 3: 1.25}
    """
    rises = (loss - known[layer] for layer, loss in measured.items())
    rise = min(filter(math.isfinite, rises), default=0.0)
    return {layer: measured.get(layer, loss + rise) for layer, loss in known.items()}

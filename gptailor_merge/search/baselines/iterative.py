"""Removes layers in rounds, each measured on what the rounds before have left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.racing import Selection
from gptailor_merge.search.baselines.layer_sets import are_targets, extends, nearest
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.candidates import Status
from gptailor_merge.space.space import Space

CONTENDERS = 2
"""After the first round, this many layers for each that must go are looked at: those that cost least then."""


class Iterative:
    """Iterative removal: every round removes half of the layers that must still go, those that cost least.

    One-shot removal (arXiv 2402.02834) measures layers on the whole model and is wrong where two of them do
    the same; greedy removal (SLEB, arXiv 2402.09025) measures again after each layer. With n layers to
    remove, this takes about log2(n) rounds. All layers of a round are scored on the first rung of the
    calibration set, and twice as many as it removes on all of it.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        missing = space.depth - min(space.sizes)
        looked_at, count, removed = len(space.removable), len(space.sizes), 0
        for number in _rounds(missing):
            count += looked_at - removed
            removed += number
            looked_at = max(removed, min(CONTENDERS * missing, len(space.removable)))
        return count

    def find(self, problem: PruningProblem) -> list[Plan]:
        space = problem.space
        missing = space.depth - min(space.sizes)
        contenders: Sequence[int] = space.removable
        removed: list[int] = []
        for number in _rounds(missing):
            cheapest = self._cheapest_first(problem, removed, contenders, number)
            removed += _first_possible(space, removed, cheapest, number)
            contenders = [layer for layer in cheapest[: CONTENDERS * missing] if layer not in removed]
        return [
            problem.subject.without(nearest(space, removed[: space.depth - size], size))
            for size in space.sizes
        ]

    def _cheapest_first(
        self, problem: PruningProblem, removed: Sequence[int], contenders: Sequence[int], number: int
    ) -> list[int]:
        """Returns the contenders, first the layer without which what is left is best."""
        removals = [frozenset((*removed, layer)) for layer in contenders]
        scored = problem.runner.score(
            [problem.subject.without(layers) for layers in removals],
            status=Status.SCORED if are_targets(problem.space, removals) else Status.PROBE,
            keep=Selection(CONTENDERS * number, problem.weights) if problem.racing else None,
        )
        # A layer without which nothing could be scored is kept if possible.
        losses = [math.inf if candidate.loss is None else candidate.loss for candidate in scored]
        return [layer for _, layer in sorted(zip(losses, contenders, strict=True))]


def _rounds(missing: int) -> Iterator[int]:
    """Yields the numbers of layers that rounds remove.

    >>> list(_rounds(9))
    [5, 2, 1, 1]
    """
    while missing:
        yield (missing + 1) // 2
        missing //= 2


def _first_possible(space: Space, removed: Sequence[int], layers: Sequence[int], number: int) -> list[int]:
    """Returns the first layers that can go together with those that are removed already."""
    chosen: list[int] = []
    for layer in layers:
        if len(chosen) == number:
            break
        if extends(space, (*removed, *chosen, layer), min(space.sizes)):
            chosen.append(layer)
    return chosen

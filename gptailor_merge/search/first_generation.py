"""The first generation of a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.search.baselines.layer_sets import removed_by
from gptailor_merge.search.baselines.subject import whole_models
from gptailor_merge.space.points import Point
from gptailor_merge.space.space import Space


def first_generation(
    space: Space,
    warm: Sequence[Plan],
    size: int,
    rng: np.random.RandomState,
    start: Sequence[Plan] = (),
) -> list[Point]:
    """Returns `size` points: the start, the warm starts, every whole model pruned like these, and mutations.

    The whole models are the usual merges of the family and its members; merges come first.

    With nothing to start from, the points are random.

    Args:
        warm: plans that baselines came to. Where `size` does not hold all that follows from them, the first
            are taken.
        start: plans that the user names; no more than `size`.
    """
    starts = [space.encode(plan, rng, nearest=True) for plan in start]
    removals = dict.fromkeys(removed_by(space, plan) for plan in warm)
    models = sorted(whole_models(space), key=lambda model: len(model.sources) == 1)
    pruned = {
        plan.digest: plan
        for plan in (*warm, *(model.without(removed) for model in models for removed in removals))
    }
    warm_starts = list(pruned.values())[: size - len(starts)]
    starts += [space.encode(plan, rng, nearest=True) for plan in warm_starts]
    if not starts:
        return [space.random(rng) for _ in range(size)]
    mutants = [space.mutate(starts[i % len(starts)], rng) for i in range(size - len(starts))]
    return [*starts, *mutants]

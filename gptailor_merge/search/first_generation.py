"""The first generation of a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.search.baselines.problem import removed_by
from gptailor_merge.space.points import Point
from gptailor_merge.space.space import Space


def first_generation(
    space: Space,
    found: Sequence[Recipe],
    size: int,
    rng: np.random.RandomState,
    start: Sequence[Recipe] = (),
) -> Sequence[Point]:
    """The given recipes, what warm starts found, each other member without the same layers, and mutations.

    With nothing to start from, random points.

    Args:
        found: no more of them and of what follows from them than `size` holds, the first ones.
    """
    starts = [space.encode(recipe, rng, nearest=True) for recipe in start]
    removals = dict.fromkeys(removed_by(space, recipe) for recipe in found)
    pruned = [space.select(m, set(gone)) for m in range(1, len(space.models)) for gone in removals]
    starts += [space.encode(recipe, rng, nearest=True) for recipe in [*found, *pruned][: size - len(starts)]]
    if not starts:
        return [space.random(rng) for _ in range(size)]
    others = [space.mutate(starts[i % len(starts)], rng) for i in range(size - len(starts))]
    return [*starts, *others]

"""Where a search starts: which layers cost least to remove, measured on the base one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.search.points import Point
from gptailor_merge.search.space import Space


def probes(space: Space) -> list[tuple[int, Recipe]]:
    """(layer, the base without it) for every layer that may be removed."""
    return [(layer, space.select(0, removed={layer})) for layer in space.removable]


def one_shot(space: Space, losses: Mapping[int, float]) -> dict[int, set[int]]:
    """For each size the layers to remove if their costs simply added up.

    Args:
        losses: loss of the base without each layer alone; a layer that is not there is kept if
            possible.
    """
    dearest_first = sorted(
        range(space.depth), key=lambda layer: (losses.get(layer, float("inf")), layer), reverse=True
    )
    keys = [0.0] * space.depth
    for rank, layer in enumerate(dearest_first):
        keys[layer] = float(rank)
    return {size: set(range(space.depth)) - set(space.keep(keys, size)) for size in space.sizes}


def first_generation(
    space: Space,
    removed: Mapping[int, set[int]] | None,
    size: int,
    rng: np.random.RandomState,
    start: Sequence[Recipe] = (),
) -> Sequence[Point]:
    """The given recipes, each member alone without these layers, the base first, and mutations of all.

    With nothing to start from, random points.

    Args:
        removed: for each size the layers that the members go without.
    """
    starts = [space.encode(recipe, rng, nearest=True) for recipe in start]
    if removed is not None:
        pruned = [space.select(m, layers) for m in range(len(space.models)) for layers in removed.values()]
        starts += [space.encode(recipe, rng) for recipe in pruned[: size - len(starts)]]
    if not starts:
        return [space.random(rng) for _ in range(size)]
    others = [space.mutate(starts[i % len(starts)], rng) for i in range(size - len(starts))]
    return [*starts, *others]

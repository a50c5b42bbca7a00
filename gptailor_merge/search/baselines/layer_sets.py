"""Sets of layers that are removed, as far as a space allows their removal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.space.space import Space

LayerSet = frozenset[int]


def removal(space: Space, keys: Sequence[float], size: int) -> LayerSet:
    """Returns the layers that are removed where those with the highest keys go, see Layout.keep."""
    return frozenset(range(space.depth)) - set(space.keep(keys, size))


def nearest(space: Space, removed: Collection[int], size: int) -> LayerSet:
    """Returns a removal that the architecture allows, with as many of these layers as can go together."""
    keys = [float(layer in removed) for layer in range(space.depth)]
    return removal(space, keys, size)


def extends(space: Space, removed: Collection[int], size: int) -> bool:
    """Tells whether a model of this size can be made by removing these layers, and more if need be."""
    return set(removed) <= nearest(space, removed, size)


def are_targets(space: Space, removals: Collection[LayerSet]) -> bool:
    """Tells whether a space has models without these layers; all removals are of one size."""
    size = space.depth - len(next(iter(removals), ()))
    return size in space.sizes and all(nearest(space, layers, size) == layers for layers in removals)


def draws(space: Space, size: int, rng: np.random.RandomState) -> Iterator[LayerSet]:
    """Yields random removals."""
    while True:
        yield removal(space, rng.uniform(size=space.depth).tolist(), size)


def removed_by(space: Space, plan: Plan) -> LayerSet:
    """Returns the layers that a plan goes without."""
    return frozenset(range(space.depth)) - set(plan.kept)

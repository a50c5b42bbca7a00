"""How one point of a space becomes another: small moves, and taking from two parents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptailor_merge.space import merging, outer
from gptailor_merge.space.points import Array, Point, at_offset, index, middle

if TYPE_CHECKING:
    from gptailor_merge.space.space import Space

SIZE_SHARE = 0.25
"""Of the moves where the size is open: a step to the next one."""


OUTER_SHARE = 0.15
"""Of the moves where embeddings and head are open: a change of these."""


SWAP_SHARE = 0.4
"""Of the moves: a removed layer changes places with a kept one."""


NEIGHBOUR_SHARE = 0.2
"""Of the moves at a slot where neighbours are allowed: another layer of the same member."""


def mutate(space: Space, point: Point, rng: np.random.RandomState) -> Point:
    """A neighbour: one to a few moves; see Space.mutate."""
    child = {name: values.copy() for name, values in point.items()}
    for _ in range(min(rng.geometric(0.6), 4)):
        if "size" in child and rng.uniform() < SIZE_SHARE:
            _step_size(space, child, rng)
        elif space.outer is not None and rng.uniform() < OUTER_SHARE:
            space.outer.mutate(child, rng)
        else:
            _change_layers(space, child, rng)
    return child


def recombine(space: Space, first: Point, second: Point, rng: np.random.RandomState) -> Point:
    """A child of two parents; see Space.recombine."""
    masks = dict.fromkeys(first.keys() - {"size", *outer.ARRAYS}, rng.uniform(size=space.depth) < 0.5)
    if space.outer is not None:
        masks |= dict.fromkeys(outer.ARRAYS, rng.uniform(size=len(first[outer.KIND])) < 0.5)
    child = dict(first)
    for name, mask in masks.items():
        along = mask.reshape(-1, *[1] * (first[name].ndim - 1))
        child[name] = np.where(along, first[name], second[name])
    return child


def _step_size(space: Space, point: dict[str, Array], rng: np.random.RandomState) -> None:
    count = len(space.sizes)
    at = index(point["size"][0], count)
    ends = {0: 1, count - 1: -1}
    point["size"][:] = middle(at + ends.get(at, rng.choice([-1, 1])), count)


def _change_layers(space: Space, point: dict[str, Array], rng: np.random.RandomState) -> None:
    kept = space.kept_layers(point)
    removed = sorted(set(range(space.depth)) - set(kept))
    free = [layer for layer in kept if layer in space.removable]
    if free and rng.uniform() < SWAP_SHARE:
        out, back = rng.choice(free), rng.choice(removed)
        keys = point["removal"]
        keys[out], keys[back] = keys[back], keys[out]
        return
    layer = rng.choice(kept)
    if space.neighbours and rng.uniform() < NEIGHBOUR_SHARE and _shift(space, point, layer, rng):
        return
    kind = index(point["kind"][layer], space.kinds)
    changes_inside = kind >= len(space.models) and rng.uniform() < 0.5
    if changes_inside and kind == space.parts_kind:
        _change_part(space, point, layer, rng)
    elif changes_inside:
        merging.change(point["share"][layer], point["weight"][layer], rng)
    elif space.kinds > 1:
        _change_kind(space, point, layer, kind, rng)


def _change_kind(
    space: Space, point: dict[str, Array], layer: int, kind: int, rng: np.random.RandomState
) -> None:
    chosen = rng.choice([other for other in range(space.kinds) if other != kind])
    if chosen == space.parts_kind and kind < len(space.models):
        # One part stays the member's that was selected.
        point["part"][layer] = middle(kind, len(space.models))
        _change_part(space, point, layer, rng)
    point["kind"][layer] = middle(chosen, space.kinds)


def _change_part(space: Space, point: dict[str, Array], layer: int, rng: np.random.RandomState) -> None:
    """Take attention or MLP from another member."""
    part, count = rng.randint(2), len(space.models)
    own = index(point["part"][layer, part], count)
    others = [member for member in range(count) if member != own]
    point["part"][layer, part] = middle(rng.choice(others), count)


def _shift(space: Space, point: dict[str, Array], layer: int, rng: np.random.RandomState) -> bool:
    """Take another layer of a member that the slot takes; False where there is none."""
    member = rng.choice(space.members(point, layer))
    now = space.source_layer(point, layer, member)
    others = [other for other in space.layers_for(layer) if other != now]
    if not others:
        return False
    point["shift"][layer, member] = at_offset(rng.choice(others) - layer, space.neighbours)
    return True

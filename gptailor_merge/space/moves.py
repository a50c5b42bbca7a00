"""Moves through a space: a point becomes a neighbour, or two points a child."""

from __future__ import annotations

import numpy as np

from gptailor_merge.space import merging, outer
from gptailor_merge.space.layout import Layout
from gptailor_merge.space.points import Array, Point, at_offset, index, middle

SIZE_SHARE = 0.25
"""The share of moves that step to the next size, where the size is open."""


OUTER_SHARE = 0.15
"""The share of moves that change embeddings or head, where these are open."""


SWAP_SHARE = 0.4
"""The share of moves in which a removed layer changes places with a kept one."""


NEIGHBOUR_SHARE = 0.2
"""The share of moves at a slot that take another layer of the same member, where neighbours are allowed."""


def mutate(layout: Layout, point: Point, rng: np.random.RandomState) -> Point:
    """Returns a point one to a few moves away; see Space.mutate."""
    child = {name: values.copy() for name, values in point.items()}
    for _ in range(min(rng.geometric(0.6), 4)):
        if "size" in child and rng.uniform() < SIZE_SHARE:
            _step_size(layout, child, rng)
        elif layout.outer is not None and rng.uniform() < OUTER_SHARE:
            layout.outer.mutate(child, rng)
        else:
            _change_layers(layout, child, rng)
    return child


def recombine(layout: Layout, first: Point, second: Point, rng: np.random.RandomState) -> Point:
    """Returns a child of two points; see Space.recombine."""
    masks = dict.fromkeys(first.keys() - {"size", *outer.ARRAYS}, rng.uniform(size=layout.depth) < 0.5)
    if layout.outer is not None:
        masks |= dict.fromkeys(outer.ARRAYS, rng.uniform(size=len(first[outer.KIND])) < 0.5)
    child = dict(first)
    for name, mask in masks.items():
        along = mask.reshape(-1, *[1] * (first[name].ndim - 1))
        child[name] = np.where(along, first[name], second[name])
    return child


def _step_size(layout: Layout, point: dict[str, Array], rng: np.random.RandomState) -> None:
    count = len(layout.sizes)
    at = index(point["size"][0], count)
    ends = {0: 1, count - 1: -1}
    point["size"][:] = middle(at + ends.get(at, rng.choice([-1, 1])), count)


def _change_layers(layout: Layout, point: dict[str, Array], rng: np.random.RandomState) -> None:
    kept = layout.kept_layers(point)
    removed = sorted(set(range(layout.depth)) - set(kept))
    exchangeable = [layer for layer in kept if layer in layout.removable]
    if exchangeable and removed and rng.uniform() < SWAP_SHARE:
        out, back = rng.choice(exchangeable), rng.choice(removed)
        keys = point["removal"]
        keys[out], keys[back] = keys[back], keys[out]
        return
    layer = rng.choice(kept)
    if layout.neighbours and rng.uniform() < NEIGHBOUR_SHARE and _shift(layout, point, layer, rng):
        return
    kind = layout.kind(point, layer)
    changes_inside = kind >= len(layout.models) and rng.uniform() < 0.5
    if changes_inside and kind == layout.parts_kind:
        _change_part(layout, point, layer, rng)
    elif changes_inside:
        merging.change(point["share"][layer], point["weight"][layer], rng)
    elif layout.kinds > 1:
        _change_kind(layout, point, layer, kind, rng)


def _change_kind(
    layout: Layout, point: dict[str, Array], layer: int, kind: int, rng: np.random.RandomState
) -> None:
    chosen = rng.choice([alternative for alternative in range(layout.kinds) if alternative != kind])
    if chosen == layout.parts_kind and kind < len(layout.models):
        # One part stays the member's that was selected.
        point["part"][layer] = middle(kind, len(layout.models))
        _change_part(layout, point, layer, rng)
    point["kind"][layer] = middle(chosen, layout.kinds)


def _change_part(layout: Layout, point: dict[str, Array], layer: int, rng: np.random.RandomState) -> None:
    """Takes attention or MLP from another member."""
    part, count = rng.randint(2), len(layout.models)
    current = index(point["part"][layer, part], count)
    alternatives = [member for member in range(count) if member != current]
    point["part"][layer, part] = middle(rng.choice(alternatives), count)


def _shift(layout: Layout, point: dict[str, Array], layer: int, rng: np.random.RandomState) -> bool:
    """Takes another layer of a member that the slot takes; return False where there is none."""
    member = rng.choice(layout.members(point, layer))
    current = layout.source_layer(point, layer, member)
    alternatives = [near for near in layout.layers_for(layer) if near != current]
    if not alternatives:
        return False
    point["shift"][layer, member] = at_offset(rng.choice(alternatives) - layer, layout.neighbours)
    return True

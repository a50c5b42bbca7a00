"""Plans become points that decode to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptailor_merge.errors import ConfigError
from gptailor_merge.models.depth import assign
from gptailor_merge.recipe.plan import SELECT, Plan, Slot
from gptailor_merge.space import merging, slots
from gptailor_merge.space.decoding import decode
from gptailor_merge.space.layout import Layout
from gptailor_merge.space.points import Array, Point, at_offset, middle

_ELSEWHERE = "the recipe uses layers, methods or parameters that this space does not have"


def encode(layout: Layout, plan: Plan, point: dict[str, Array], *, nearest: bool) -> Point:
    """Sets a point's entries so that it decodes to a plan; entries that the plan leaves open stay.

    Args:
        nearest: accept weights that come back rounded to those of the space.

    Raises:
        ConfigError: the plan is not in this space.
    """
    places = _places(layout, plan)
    if "size" in point:
        point["size"][:] = middle(layout.sizes.index(len(places)), len(layout.sizes))
    if "shift" in point:
        point["shift"][:] = 0.5
    for layer in range(layout.depth):
        key = point["removal"][layer] / 2
        point["removal"][layer] = key if layer in places else key + 0.5
    for layer, slot in zip(places, plan.slots, strict=True):
        _encode_slot(layout, point, layer, slot)
    if layout.outer is not None:
        layout.outer.encode(point, plan)
    back = decode(layout, point)
    is_same = _shape(back) == _shape(plan) if nearest else back.digest == plan.digest
    if not is_same:
        raise ConfigError(_ELSEWHERE)
    return point


def _places(layout: Layout, plan: Plan) -> list[int]:
    """Returns for each slot the layer in whose place it stands: its own, or the nearest that can be."""
    taken = [[layer for _, layer in slot.layers] for slot in plan.slots]

    def cost(slot: int, layer: int) -> float | None:
        near = layout.layers_for(layer)
        return sum(abs(t - layer) for t in taken[slot]) if set(taken[slot]) <= set(near) else None

    if len(taken) not in layout.sizes:
        sizes = " or ".join(map(str, layout.sizes))
        layers = [layers_of_slot[0] for layers_of_slot in taken]
        raise ConfigError(f"a recipe of the layers {layers} is not in a space of {sizes} layers")
    places = assign(len(taken), layout.depth, cost, set(range(layout.depth)) - set(layout.removable))
    if places is None:
        raise ConfigError(_ELSEWHERE)
    return places


def _encode_slot(layout: Layout, point: Point, layer: int, slot: Slot) -> None:
    operation = slot.operation
    try:
        members = [layout.models.index(model) for model, _ in slot.layers]
        kind = members[0]
        if layout.parts and slots.is_parts(operation):
            kind = layout.kinds - 1
        elif operation.method != SELECT:
            kind = len(layout.models) + layout.methods.index(operation.method)
    except ValueError:
        raise ConfigError(f"layer {layer}: its model or method is not in this space") from None
    point["kind"][layer] = middle(kind, layout.kinds)
    if layout.neighbours:
        for member, (_, taken) in zip(members, slot.layers, strict=True):
            point["shift"][layer, member] = at_offset(taken - layer, layout.neighbours)
    if kind == layout.parts_kind:
        point["part"][layer] = [middle(member, len(layout.models)) for member in members]
    elif operation.method != SELECT:
        merging.set_merge(members, operation, point["share"][layer], point["weight"][layer])


def _shape(plan: Plan) -> list[Any]:
    """Returns all of a plan but the values that are searched, and the order of a merge's sources."""
    operations = [*((slot.layers, slot.operation) for slot in plan.slots), plan.embeddings, plan.head]
    edits, ends = [slot.edits for slot in plan.slots], (plan.gains, plan.adapter)
    return [*(merging.shape(sources, operation) for sources, operation in operations), edits, *ends]


def half(layout: Layout) -> dict[str, Array]:
    """Returns the point whose entries are all 1/2."""
    return {name: np.full(shape, 0.5) for name, shape in layout.shapes().items()}

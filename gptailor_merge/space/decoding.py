"""Points become plans. Every point has a plan, and the plan is of a target size."""

from __future__ import annotations

from gptailor_merge.recipe.plan import Plan, Slot
from gptailor_merge.space import slots
from gptailor_merge.space.layout import Layout
from gptailor_merge.space.outer import whole
from gptailor_merge.space.points import Point


def decode(layout: Layout, point: Point) -> Plan:
    """Returns the plan of a point, equal to that of the recipe that documents it."""
    base = layout.models[0]
    embeddings, head = (whole(base), whole(base)) if layout.outer is None else layout.outer.decode(point)
    return Plan(
        base_model=base,
        slots=tuple(_slot(layout, point, layer) for layer in layout.kept_layers(point)),
        embeddings=embeddings,
        head=head,
        tokenizer=base,
        dtype=layout.dtype,
        out_dtype=layout.out_dtype,
    )


def _slot(layout: Layout, point: Point, layer: int) -> Slot:
    def place(member: int) -> tuple[str, int]:
        return layout.models[member], layout.source_layer(point, layer, member)

    kind = layout.kind(point, layer)
    if kind == layout.parts_kind:
        attention, mlp = layout.part_members(point, layer)
        if attention != mlp:
            return slots.parts(place(attention), place(mlp), layout.parts)
        kind = attention
    if kind < len(layout.models):
        return slots.select(*place(kind))
    merge = layout.merge(point, layer)
    return Slot(tuple(place(member) for member in merge.members), merge.operation)

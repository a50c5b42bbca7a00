"""Puts other slots in the places of a recipe's own and leaves the rest as its author wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptailor_merge.planning import resolve
from gptailor_merge.planning.writing import origin_of, slices_of
from gptailor_merge.recipe.edits import without_adapter
from gptailor_merge.recipe.plan import Plan, Slot
from gptailor_merge.recipe.recipe import Recipe, Slice


def rewritten(recipe: Recipe, slots: Sequence[Slot]) -> Recipe:
    """Returns the recipe with these slots; slices whose slots have not changed stay as they are written.

    An adapter was trained on the slots as they were, and leaves with them if any has changed.

    Args:
        slots: as many as the recipe fills, some of them with another operation or other edits.
    """
    before = resolve.plan(recipe).slots
    slices: list[Slice] = []
    begin = 0
    for part in recipe.slices:
        end = begin + (0 if part.parameter("op") == "remove" else part.sources[0].length)
        is_unchanged = tuple(slots[begin:end]) == before[begin:end]
        slices += [part] if is_unchanged else slices_of(slots[begin:end], recipe.base_model)
        begin = end
    recipe = recipe if tuple(slots) == before else without_adapter(recipe)
    return recipe.model_copy(update={"slices": tuple(slices)})


def with_plan(recipe: Recipe, plan: Plan) -> Recipe:
    """Returns the recipe with a plan's slots, its embeddings and head, and its gains outside the layers.

    An adapter stays only where the plan has it and nothing else has changed, see `rewritten`; a plan with
    another one was trained as it is.
    """
    whole, gains = rewritten(recipe, plan.slots), plan.gains
    update: dict[str, Any] = {
        "gains": None if gains is None else gains.file,
        "gains_digest": None if gains is None else gains.digest,
    }
    before = resolve.plan(recipe)
    for name in ("embeddings", "head"):
        component = getattr(plan, name)
        if component != getattr(before, name):
            update[name] = origin_of(component, recipe.base_model)
    if plan.adapter is not None and plan.adapter != before.adapter:
        update |= {"adapter": plan.adapter.file, "adapter_digest": plan.adapter.digest}
    elif plan != before:
        update |= {"adapter": None, "adapter_digest": None}
    return whole.model_copy(update={"parameters": whole.parameters.model_copy(update=update)})

"""Puts other slots in the places of a recipe's own and leaves the rest as its author wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor_merge.planning.resolve import plan
from gptailor_merge.planning.writing import slices_of
from gptailor_merge.recipe.plan import Slot
from gptailor_merge.recipe.recipe import Recipe, Slice


def rewritten(recipe: Recipe, slots: Sequence[Slot]) -> Recipe:
    """Returns the recipe with these slots; slices whose slots have not changed stay as they are written.

    Args:
        slots: as many as the recipe fills, some of them with another operation or other edits.
    """
    before = plan(recipe).slots
    slices: list[Slice] = []
    begin = 0
    for part in recipe.slices:
        end = begin + (0 if part.parameter("op") == "remove" else part.sources[0].length)
        is_unchanged = tuple(slots[begin:end]) == before[begin:end]
        slices += [part] if is_unchanged else slices_of(slots[begin:end], recipe.base_model)
        begin = end
    return recipe.model_copy(update={"slices": tuple(slices)})

"""Recipes with other slots in the places of their own."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Slot
from gptailor_merge.recipe.recipe import (
    Recipe,
    Slice,
)
from gptailor_merge.recipe.writing import written


def rewritten(recipe: Recipe, slots: Sequence[Slot]) -> Recipe:
    """A recipe with other slots, as many as it has, in the places of its own.

    Slices whose slots are the same stay as they are written.

    Args:
        slots: those of the recipe's plan, some of them with other operations or edits.
    """
    before = list(plan(recipe).slots)
    slices: list[Slice] = []
    at = 0
    for part in recipe.slices:
        count = 0 if part.parameter("op") == "remove" else part.sources[0].length
        own = slots[at : at + count]
        slices += [part] if list(own) == before[at : at + count] else written(own, recipe.base_model)
        at += count
    return recipe.model_copy(update={"slices": tuple(slices)})

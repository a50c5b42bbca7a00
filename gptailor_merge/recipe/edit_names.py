"""Gives the files of a recipe's edits and its adapter other names; model_names.py does so for models."""

from __future__ import annotations

from collections.abc import Mapping

from gptailor_merge.recipe.recipe import GAINS, REPAIR, Recipe


def with_files(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """Returns a recipe with other names for the files of its edits.

    Args:
        names: file of a map or of gains, or directory of an adapter -> its new name.
    """
    slices = tuple(
        part.model_copy(
            update={
                "parameters": tuple(
                    (key, names[value] if key in (REPAIR, GAINS) else value) for key, value in part.parameters
                )
            }
        )
        for part in recipe.slices
    )
    outer = recipe.parameters
    if outer.gains is not None:
        outer = outer.model_copy(update={"gains": names[outer.gains]})
    if outer.adapter is not None:
        outer = outer.model_copy(update={"adapter": names[outer.adapter]})
    return recipe.model_copy(update={"slices": slices, "parameters": outer})

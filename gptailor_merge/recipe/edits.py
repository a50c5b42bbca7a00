"""Reads the edits that the slices of a recipe name."""

from __future__ import annotations

from gptailor_merge.recipe.plan import MLP, Edit
from gptailor_merge.recipe.recipe import REPAIR, REPAIR_DIGEST, WITHOUT, Recipe, Slice


def edits_of(part: Slice) -> tuple[Edit, ...]:
    """Returns the edits of a slice that has no problems."""
    edits = []
    if (without := part.parameter(WITHOUT)) is not None:
        edits.append(Edit(without))
    if (file := part.parameter(REPAIR)) is not None:
        edits.append(Edit(MLP, part.parameter(REPAIR_DIGEST), file))
    return tuple(edits)


def map_files(recipe: Recipe) -> list[str]:
    """Returns the files of all repair maps of a recipe."""
    edits = (edit for part in recipe.slices for edit in edits_of(part))
    return [edit.file for edit in edits if edit.digest is not None]

"""The edits that a slice of a recipe names."""

from __future__ import annotations

from gptailor_merge.recipe.plan import MLP, Edit
from gptailor_merge.recipe.recipe import REPAIR, REPAIR_DIGEST, WITHOUT, Recipe, Slice


def edits_of(part: Slice) -> tuple[Edit, ...]:
    """The edits of a sound slice."""
    made = []
    if (without := part.parameter(WITHOUT)) is not None:
        made.append(Edit(without))
    if (file := part.parameter(REPAIR)) is not None:
        made.append(Edit(MLP, part.parameter(REPAIR_DIGEST), file))
    return tuple(made)


def map_files(recipe: Recipe) -> list[str]:
    """The files of all maps."""
    edits = (edit for part in recipe.slices for edit in edits_of(part))
    return [edit.file for edit in edits if edit.digest is not None]

"""Reads the edits that a recipe names."""

from __future__ import annotations

from gptailor_merge.recipe.plan import MLP, NORMS, Edit
from gptailor_merge.recipe.recipe import (
    GAINS,
    GAINS_DIGEST,
    REPAIR,
    REPAIR_DIGEST,
    WITHOUT,
    Recipe,
    Slice,
)


def edits_of(part: Slice) -> tuple[Edit, ...]:
    """Returns the edits of a slice that has no problems; those of norms are last."""
    edits = []
    if (without := part.parameter(WITHOUT)) is not None:
        edits.append(Edit(without))
    if (file := part.parameter(REPAIR)) is not None:
        edits.append(Edit(MLP, part.parameter(REPAIR_DIGEST), file))
    if (file := part.parameter(GAINS)) is not None:
        edits.append(Edit(NORMS, part.parameter(GAINS_DIGEST), file))
    return tuple(edits)


def outer_gains(recipe: Recipe) -> Edit | None:
    """Returns the edit of the norms outside the layers, or None; the recipe has no problems."""
    parameters = recipe.parameters
    if parameters.gains is None:
        return None
    return Edit(NORMS, parameters.gains_digest, parameters.gains)


def map_files(recipe: Recipe) -> list[str]:
    """Returns the files of all repair maps of a recipe."""
    edits = (edit for part in recipe.slices for edit in edits_of(part))
    return [edit.file for edit in edits if edit.is_repair]


def gains_files(recipe: Recipe) -> list[str]:
    """Returns the files of all gains of norms of a recipe, each once."""
    edits = [edit for part in recipe.slices for edit in edits_of(part) if edit.part == NORMS]
    outer = outer_gains(recipe)
    return list(dict.fromkeys(edit.file for edit in (*edits, *([outer] if outer else []))))


def edit_files(recipe: Recipe) -> list[str]:
    """Returns every file that the edits of a recipe name: repair maps and gains of norms."""
    return [*map_files(recipe), *gains_files(recipe)]

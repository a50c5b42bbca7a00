"""Completes a recipe that was imported from another format: checks it and documents what is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor_merge.errors import KeyPath, Problem, RecipeError
from gptailor_merge.models.checkpoint import depth_on_disk
from gptailor_merge.planning.resolve import problems
from gptailor_merge.planning.writing import with_removals
from gptailor_merge.recipe.recipe import MOST_LAYERS, Recipe

Document = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """An imported recipe.

    Attributes:
        notes: sentences about what was assumed where the file said nothing.
    """

    recipe: Recipe
    notes: tuple[str, ...]


def complete(document: Document, notes: Sequence[str]) -> Imported:
    """Checks a recipe's document and adds slices that document the removed layers.

    Raises:
        RecipeError: the recipe has problems, see planning.resolve.problems.
    """
    recipe = Recipe.from_mapping(document)
    mistakes = problems(recipe) or _filter_problems(document)
    if mistakes:
        raise RecipeError(mistakes)
    base = recipe.base_model
    ends = [source.layer_range[1] for part in recipe.slices for source in part.sources]
    slices = with_removals(recipe.slices, base, min(depth_on_disk(base) or max(ends), MOST_LAYERS))
    return Imported(recipe.model_copy(update={"slices": slices}), tuple(notes))


def _filter_problems(document: Any, path: KeyPath = ()) -> list[Problem]:
    """Returns filters that mean whole layers: mergekit's see whole names, a recipe's names inside layers."""
    if isinstance(document, list):
        return [p for index, item in enumerate(document) for p in _filter_problems(item, (*path, index))]
    if not isinstance(document, Mapping):
        return []
    text = document.get("filter")
    if isinstance(text, str) and (text in "model.layers." or text.strip(".").isdigit()):
        return [Problem(path, f"the filter {text!r} means whole layers; write slices of their own for them")]
    return [p for key, value in document.items() for p in _filter_problems(value, (*path, str(key)))]

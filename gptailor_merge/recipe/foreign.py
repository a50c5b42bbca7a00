"""What becomes of a recipe that was made of somebody else's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gptailor_merge.errors import KeyPath, Problem, RecipeError
from gptailor_merge.recipe.checkpoint import depth_on_disk
from gptailor_merge.recipe.operations import problems
from gptailor_merge.recipe.recipe import Recipe

Document = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """A recipe, and what was decided where the file was silent, one sentence each."""

    recipe: Recipe
    notes: tuple[str, ...]


def finish(document: Document, notes: Sequence[str]) -> Imported:
    """Check a recipe's document, and write down in it what was removed.

    Raises:
        RecipeError: see operations.problems.
    """
    found = problems(Recipe.from_mapping(document)) or _filter_problems(document)
    if found:
        raise RecipeError(found)
    whole = _with_removals(document["slices"], document["base_model"])
    return Imported(Recipe.from_mapping({**document, "slices": whole}), tuple(notes))


def _filter_problems(document: Any, path: KeyPath = ()) -> list[Problem]:
    """mergekit's filters see whole names (model.layers.3.mlp…), a recipe's what is behind the index."""
    if isinstance(document, list):
        return [p for index, item in enumerate(document) for p in _filter_problems(item, (*path, index))]
    if not isinstance(document, Mapping):
        return []
    text = document.get("filter")
    if isinstance(text, str) and (text in "model.layers." or text.strip(".").isdigit()):
        return [Problem(path, f"the filter {text!r} means whole layers; write slices of their own for them")]
    return [p for key, value in document.items() for p in _filter_problems(value, (*path, str(key)))]


def _with_removals(slices: Sequence[Document], base: str) -> list[Document]:
    """The slices, with a slice that documents the layers that none of them uses, in their places."""
    ranges = [range(*source["layer_range"]) for part in slices for source in part["sources"]]
    used = {layer for layers in ranges for layer in layers}
    depth = depth_on_disk(base) or max(used) + 1
    unused = [layer for layer in range(depth) if layer not in used]
    runs = _runs(unused)
    whole: list[Document] = []
    for part in slices:
        first = part["sources"][0]["layer_range"][0]
        while runs and runs[0][0] < first:
            whole.append(_removal(runs.pop(0), base))
        whole.append(part)
    return [*whole, *(_removal(run, base) for run in runs)]


def _runs(layers: Sequence[int]) -> list[list[int]]:
    """Ascending layers, those that follow each other together."""
    in_line = groupby(enumerate(layers), lambda pair: pair[1] - pair[0])
    return [[layer for _, layer in run] for _, run in in_line]


def _removal(run: Sequence[int], base: str) -> Document:
    source = {"model": base, "layer_range": [run[0], run[-1] + 1]}
    return {"sources": [source], "parameters": {"op": "remove"}}

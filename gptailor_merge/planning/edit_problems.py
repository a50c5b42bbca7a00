"""Finds mistakes in the keys of a slice that edit its layers: `without`, `repair` and `repair_digest`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptailor_merge.composing.editing import load_map
from gptailor_merge.composing.output_projections import placed
from gptailor_merge.documents import suggest
from gptailor_merge.errors import FamilyError, Problem, RecipeError
from gptailor_merge.models.architecture import Architecture
from gptailor_merge.recipe.edits import edits_of
from gptailor_merge.recipe.plan import MLP, PARTS
from gptailor_merge.recipe.recipe import REPAIR, REPAIR_DIGEST, WITHOUT, Recipe, Slice


def edit_problems(part: Slice) -> Iterator[Problem]:
    """Yields mistakes in the keys, with paths relative to the slice."""
    without, file, digest = (part.parameter(name) for name in (WITHOUT, REPAIR, REPAIR_DIGEST))
    if without is not None and without not in PARTS:
        text = f"expected {' or '.join(PARTS)}, found {without!r}{suggest(str(without), PARTS)}"
        yield Problem(("parameters", WITHOUT), text)
    for name, value in ((REPAIR, file), (REPAIR_DIGEST, digest)):
        if value is not None and not isinstance(value, str):
            yield Problem(("parameters", name), f"expected a text, in quotes, found {value!r}")
    if (file is None) != (digest is None):
        missing = REPAIR if file is None else REPAIR_DIGEST
        text = (
            f"{missing} is missing; a repair is the file of a map and its digest, as gptailor repair writes"
        )
        yield Problem(("parameters",), text)
    if file is None:
        return
    if without == MLP:
        text = "the repair is of the MLP, which this slice leaves out"
        yield Problem(("parameters", REPAIR), text)
    if part.sources and part.sources[0].length != 1:
        text = f"a map is of one layer, and this slice has {part.sources[0].length}; split it"
        yield Problem(("parameters", REPAIR), text)


def map_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields repair maps that are absent, or not those that the recipe was made with."""
    for index, part in enumerate(recipe.slices):
        for edit in edits_of(part):
            try:
                if edit.digest is not None:
                    load_map(edit.file, edit.digest)
            except RecipeError as error:
                yield Problem(("slices", index, "parameters", REPAIR), str(error))


def place_problems(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields edits that the layers of a config do not allow."""
    for index, part in enumerate(recipe.slices):
        for edit in edits_of(part):
            path = ("slices", index, "parameters", WITHOUT if edit.digest is None else REPAIR)
            for layer in range(*part.sources[0].layer_range):
                try:
                    (placed_edit,) = placed([edit], config, layer)
                except FamilyError as error:
                    yield Problem(path, str(error))
                    break
                if edit.digest is not None:
                    width = Architecture.of(config).layers[layer][placed_edit.names[0]][0]
                    shape = list(load_map(edit.file, edit.digest).shape)
                    if shape != [width, width]:
                        text = f"the map is {shape}, and the layer's MLP takes [{width}, {width}]"
                        yield Problem(path, text)

"""Finds mistakes in the keys that edit layers: `without`, and `repair`, `gains`, `adapter` with digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptailor_merge.composing.adapter_places import check_adapter
from gptailor_merge.composing.adapting import load_adapter
from gptailor_merge.composing.editing import load_gains, load_map
from gptailor_merge.composing.norms import check_gains
from gptailor_merge.composing.output_projections import placed
from gptailor_merge.documents import suggest
from gptailor_merge.errors import FamilyError, KeyPath, Problem, RecipeError
from gptailor_merge.models.architecture import Architecture, pruned
from gptailor_merge.recipe.edits import adapter_of, edits_of, outer_gains
from gptailor_merge.recipe.plan import MLP, NORMS, PARTS, Edit
from gptailor_merge.recipe.recipe import (
    ADAPTER,
    ADAPTER_DIGEST,
    GAINS,
    GAINS_DIGEST,
    REPAIR,
    REPAIR_DIGEST,
    WITHOUT,
    Recipe,
    Slice,
)


def edit_problems(part: Slice) -> Iterator[Problem]:
    """Yields mistakes in the keys, with paths relative to the slice."""
    without, file = part.parameter(WITHOUT), part.parameter(REPAIR)
    if without is not None and without not in PARTS:
        text = f"expected {' or '.join(PARTS)}, found {without!r}{suggest(str(without), PARTS)}"
        yield Problem(("parameters", WITHOUT), text)
    for file_key, digest_key in ((REPAIR, REPAIR_DIGEST), (GAINS, GAINS_DIGEST)):
        values = {name: part.parameter(name) for name in (file_key, digest_key)}
        for name, value in values.items():
            if value is not None and not isinstance(value, str):
                yield Problem(("parameters", name), f"expected a text, in quotes, found {value!r}")
        yield from _pair_problems(values)
    if file is None:
        return
    if without == MLP:
        text = "the repair is of the MLP, which this slice leaves out"
        yield Problem(("parameters", REPAIR), text)
    if part.sources and part.sources[0].length != 1:
        text = f"a map is of one layer, and this slice has {part.sources[0].length}; split it"
        yield Problem(("parameters", REPAIR), text)


def outer_edit_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields mistakes in the keys of `parameters` that set norms outside the layers, or an adapter."""
    parameters = recipe.parameters
    yield from _pair_problems({GAINS: parameters.gains, GAINS_DIGEST: parameters.gains_digest})
    yield from _pair_problems({ADAPTER: parameters.adapter, ADAPTER_DIGEST: parameters.adapter_digest})
    if parameters.adapter is not None and recipe.out_dtype is None:
        text = "is missing; a recipe with an adapter says to which dtype its sum is rounded, e.g. bfloat16"
        yield Problem(("out_dtype",), text)


_PAIRS = {
    REPAIR: "a repair is the file of a map and its digest, as gptailor repair writes",
    GAINS: "gains are a file of them and its digest",
    ADAPTER: "an adapter is a directory of peft and its digest, as gptailor heal writes",
}
"""Key of a file -> a sentence on what stands beside it."""


def _pair_problems(values: Mapping[str, object]) -> Iterator[Problem]:
    """Yields the key that is missing of a pair of which the first names a file, the second its digest."""
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == 1:
        yield Problem(("parameters",), f"{missing[0]} is missing; {_PAIRS[next(iter(values))]}")


def file_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields files of edits that are absent, unusable, or not those that the recipe was made with."""
    seen: set[tuple[str, str]] = set()
    for path, edit, _ in _edits_at(recipe):
        # Many slices may name one file, and hear of its mistakes once.
        if edit.digest is None or (edit.file, edit.digest) in seen:
            continue
        seen.add((edit.file, edit.digest))
        load = load_gains if edit.part == NORMS else load_map
        try:
            load(edit.file, edit.digest)
        except RecipeError as error:
            yield Problem(path, str(error))
    if (adapter := adapter_of(recipe)) is not None and adapter.digest is not None:
        try:
            load_adapter(adapter.file, adapter.digest)
        except RecipeError as error:
            yield Problem(("parameters", ADAPTER), str(error))


def place_problems(recipe: Recipe, config: Mapping[str, Any], kept: Sequence[int]) -> Iterator[Problem]:
    """Yields edits that a config's layers, or the norms outside them, do not allow.

    Args:
        config: the base's.
        kept: the layer of each slot's first source.
    """
    refused = set()
    first: dict[Edit, KeyPath] = {}
    for path, edit, _ in _edits_at(recipe):
        if edit.part == NORMS:
            first.setdefault(edit, path)
    for edit, path in first.items():
        try:
            check_gains(edit, config)
        except (FamilyError, RecipeError) as error:
            refused.add(edit)
            yield Problem(path, str(error))
    for path, edit, layers in _edits_at(recipe):
        if edit in refused:
            continue
        try:
            for layer in layers:
                (placed_edit,) = placed([edit], config, layer)
                if edit.is_repair and layer is not None:
                    _check_map(edit, Architecture.of(config).layers[layer][placed_edit.names[0]][0])
        except (FamilyError, RecipeError) as error:
            yield Problem(path, str(error))
    if (adapter := adapter_of(recipe)) is not None:
        try:
            check_adapter(adapter, pruned(config, kept))
        except (FamilyError, RecipeError) as error:
            yield Problem(("parameters", ADAPTER), str(error))


def _check_map(edit: Edit, width: int) -> None:
    assert edit.digest is not None
    shape = list(load_map(edit.file, edit.digest).shape)
    if shape != [width, width]:
        raise RecipeError(f"the map is {shape}, and the layer's MLP takes [{width}, {width}]")


def _edits_at(recipe: Recipe) -> Iterator[tuple[KeyPath, Edit, Sequence[int | None]]]:
    """Yields the key of each edit, the edit, and the layers that it edits; None is outside the layers."""
    for index, part in enumerate(recipe.slices):
        for edit in edits_of(part):
            key = GAINS if edit.part == NORMS else REPAIR if edit.is_repair else WITHOUT
            yield ("slices", index, "parameters", key), edit, range(*part.sources[0].layer_range)
    if (gains := outer_gains(recipe)) is not None:
        yield ("parameters", GAINS), gains, [None]

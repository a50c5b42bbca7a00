"""Slots as slices of a recipe: what planning resolves, written down again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gptailor_merge.recipe.fields import Conditional, Parameters
from gptailor_merge.recipe.plan import SELECT, Settings, Slot
from gptailor_merge.recipe.recipe import (
    BASE_MARK,
    REPAIR,
    REPAIR_DIGEST,
    WITHOUT,
    Slice,
    Source,
)


def written(slots: Sequence[Slot], base_model: str) -> Iterator[Slice]:
    """Slices of slots; neighbours that are made alike are one, those that are repaired stand alone.

    Args:
        base_model: of the recipe.
    """
    begun = 0
    for place in range(1, len(slots) + 1):
        first = slots[begun]
        shifted = tuple((model, layer + place - begun) for model, layer in first.layers)
        alone = any(edit.digest is not None for edit in first.edits)
        if place == len(slots) or alone or slots[place] != replace(first, layers=shifted):
            yield _slice(first, place - begun, base_model)
            begun = place


def _slice(slot: Slot, length: int, base_model: str) -> Slice:
    operation = slot.operation
    marked = None if operation.method == SELECT else operation.base
    models = [model for model, _ in slot.layers]
    if marked is not None and models[marked] == base_model and models.count(base_model) == 1:
        marked = None  # as it is without a word
    sources = []
    for position, ((model, layer), settings) in enumerate(zip(slot.layers, operation.inputs, strict=True)):
        mark: Parameters = ((BASE_MARK, True),) if position == marked else ()
        own = (*mark, *_parameters(settings))
        sources.append(Source(model=model, layer_range=(layer, layer + length), parameters=own))
    op: Parameters = (("op", "select"),)
    if operation.method != SELECT:
        op = (("op", "merge"), ("method", operation.method))
    edits: list[tuple[str, str]] = []
    for edit in slot.edits:
        if edit.digest is None:
            edits.append((WITHOUT, edit.part))
        else:
            edits += [(REPAIR, edit.file), (REPAIR_DIGEST, edit.digest)]
    return Slice(sources=tuple(sources), parameters=(*op, *_parameters(operation.shared), *edits))


def _parameters(settings: Settings) -> Parameters:
    return tuple(
        (name, tuple(Conditional(filter=f, value=v) for f, v in value) if isinstance(value, tuple) else value)
        for name, value in settings
    )
